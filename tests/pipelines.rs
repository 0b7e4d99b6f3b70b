//! Snapshot, export, copy and launch through the library, on regions in memory and in directories.

mod common;

use common::{
    Caller, Draw, MemoryDisk, MemoryTarget, import_disks, memory_region, session, small_packs, volume,
};
use imgstore::disk::{DiskError, DiskRead, DiskWrite, Extent};
use imgstore::io::directory::DirectoryOptions;
use imgstore::io::memory::Memory;
use imgstore::io::storage::Storage;
use imgstore::model::account::AccountId;
use imgstore::model::blockmap::BlockMap;
use imgstore::model::catalog::Root;
use imgstore::model::ids::SnapshotId;
use imgstore::model::words::Architecture;
use imgstore::ops::context::{Context, Progress};
use imgstore::ops::copy::{CopyOptions, CopyWhat, apply, plan};
use imgstore::ops::devices::DeviceSpec;
use imgstore::ops::encode::Compression;
use imgstore::ops::error::{Class, OpsError};
use imgstore::ops::import::{ImportDisk, import};
use imgstore::ops::ingest::ingest;
use imgstore::ops::launch::{LaunchOptions, launch};
use imgstore::ops::recheck::differences;
use imgstore::ops::register::ImageOptions;
use imgstore::ops::snapshot::{SnapshotOptions, snapshot};
use imgstore::ops::verify::{VerifyOptions, verify};
use imgstore::ops::{delete, export, gc, stats};
use imgstore::region::{Region, RegionOptions};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

fn image_options(name: &str) -> ImageOptions {
    ImageOptions::named(name, Architecture::X86_64)
}

#[test]
fn every_length_comes_back_with_one_thread_and_with_several() {
    let mut lengths = vec![1, 511, 512, 4095, 4096, 4097, 16384, 16385, (1 << 20) + 1, 3 << 20];
    let mut draw = Draw::new(3);
    lengths.extend((0..20).map(|_| 1 + draw.below(6 << 20)));
    for (threads, memory_bytes) in [(1, 16 << 20), (4, 64 << 20)] {
        let caller = Caller { memory_bytes, ..Caller::new(threads) };
        let region = memory_region(&Memory::new(), &small_packs());
        for (seed, &len) in lengths.iter().enumerate() {
            let bytes = volume(len, seed as u64);
            let taken = caller.snapshot(&region, &MemoryDisk::new(bytes.clone())).unwrap();
            assert_eq!(taken.snapshot.volume_bytes, len as u64);
            assert!(
                caller.read_back(&region, taken.snapshot.id).unwrap() == bytes,
                "{len} bytes, {threads} threads"
            );
        }
        let report = verify(&region, &VerifyOptions::default(), &caller.context()).unwrap();
        assert_eq!(report.findings, []);
        assert_eq!(report.snapshots, lengths.len() as u64);
    }
}

#[test]
fn zeros_in_every_arrangement_come_back() {
    let caller = Caller::new(2);
    let region = memory_region(&Memory::new(), &small_packs());
    let mut draw = Draw::new(9);
    for round in 0..40 {
        let mut bytes = Vec::new();
        for _ in 0..1 + draw.below(60) {
            let blocks = 1 + draw.below(9);
            let value = if draw.below(2) == 0 { 0 } else { draw.next() as u8 | 1 };
            bytes.resize(bytes.len() + blocks * 4096, value);
        }
        bytes.truncate(bytes.len() - draw.below(4096));
        let mut manifests = vec![];
        for hole_blocks in [0, 1, 5, 17] {
            let disk = MemoryDisk { bytes: bytes.clone(), hole_blocks };
            let taken = caller.snapshot(&region, &disk).unwrap();
            assert!(caller.read_back(&region, taken.snapshot.id).unwrap() == bytes, "round {round}");
            manifests.push(taken.snapshot.manifest.hash);
        }
        manifests.dedup();
        assert_eq!(manifests.len(), 1, "holes and zeros give one manifest");
    }
}

#[test]
fn a_second_snapshot_stores_nothing() {
    let caller = Caller::new(2);
    let region = memory_region(&Memory::new(), &small_packs());
    let disk = MemoryDisk::new(volume(4 << 20, 1));
    let first = caller.snapshot(&region, &disk).unwrap().ingested;
    assert!(first.new_chunks > 0 && first.stored_bytes > 0);
    let again = caller.snapshot(&region, &disk).unwrap().ingested;
    assert_eq!((again.new_chunks, again.new_bytes, again.stored_bytes), (0, 0, 0));
    assert_eq!(again.manifest, first.manifest, "the block map is stored once, too");
}

#[test]
fn a_block_map_that_nothing_names_any_more_is_not_built_on() {
    let caller = Caller::new(2);
    let region = memory_region(&Memory::new(), &small_packs());
    let disk = MemoryDisk::new(volume(1 << 20, 1));
    let first = caller.snapshot(&region, &disk).unwrap().snapshot;
    let mut session = region.begin(caller.account).unwrap();
    let again = ingest(&mut session, &disk, &Compression::default(), &caller.context()).unwrap();
    assert_eq!(again.manifest, first.manifest);
    assert_eq!(session.lost_manifest(&region.catalog().unwrap()), None);
    delete::delete_snapshot(&region, first.id, &caller.context()).unwrap();
    assert_eq!(session.lost_manifest(&region.catalog().unwrap()), Some(first.manifest.name));
    // The next try has one of its own.
    let last = caller.snapshot(&region, &disk).unwrap();
    assert_ne!(last.snapshot.manifest.name, first.manifest.name);
    assert!(caller.read_back(&region, last.snapshot.id).unwrap() == disk.bytes);
}

#[test]
fn a_chunk_that_occurs_twice_in_one_run_is_stored_once() {
    let caller = Caller::new(4);
    let storage = Memory::new();
    let region = memory_region(&storage, &small_packs());
    let once = volume(1 << 20, 5);
    let mut twice = once.clone();
    for _ in 0..5 {
        twice.extend(&once);
    }
    let disk = MemoryDisk::new(twice);
    let taken = caller.snapshot(&region, &disk).unwrap().ingested;
    let stats = stats::region_stats(&region, &caller.context()).unwrap();
    assert_eq!(stats.chunks, taken.new_chunks);
    let report = verify(&region, &VerifyOptions::default(), &caller.context()).unwrap();
    assert_eq!(report.chunks, taken.new_chunks, "frames in packs");
}

/// A disk of any length with a little data, of which it makes the bytes as they are read.
struct Synthetic {
    len: u64,
    data: Vec<(u64, u64)>,
}

impl DiskRead for Synthetic {
    fn len_bytes(&self) -> u64 {
        self.len
    }

    fn extent_at(&self, offset: u64) -> Result<Extent, DiskError> {
        for &(start, end) in &self.data {
            if offset < start {
                return Ok(Extent { start: offset, end: start, is_zero: true });
            }
            if offset < end {
                return Ok(Extent { start: offset, end, is_zero: false });
            }
        }
        Ok(Extent { start: offset, end: self.len, is_zero: true })
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        for (at, byte) in (offset..).zip(buffer) {
            let inside = self.data.iter().any(|&(start, end)| (start..end).contains(&at));
            *byte = if inside { ((at / 97) ^ (at >> 17)) as u8 | 1 } else { 0 };
        }
        Ok(())
    }
}

/// Checks what it is given against a synthetic disk, and that zeros come as ranges.
struct Comparing {
    disk: Synthetic,
    position: u64,
    done: Arc<AtomicU64>,
}

impl DiskWrite for Comparing {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        assert_eq!(offset, self.position);
        let mut expected = vec![0; bytes.len()];
        self.disk.read_at(offset, &mut expected)?;
        assert!(expected == bytes, "at {offset}");
        self.position += bytes.len() as u64;
        Ok(())
    }

    fn zero_at(&mut self, offset: u64, len: u64) -> Result<(), DiskError> {
        assert_eq!(offset, self.position);
        let is_outside = |&(start, end): &(u64, u64)| end <= offset || start >= offset + len;
        assert!(self.disk.data.iter().all(is_outside), "zeros over data, at {offset}");
        self.position += len;
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<(), DiskError> {
        self.done.store(self.position, Ordering::SeqCst);
        Ok(())
    }
}

#[test]
fn sixty_four_tebibytes_with_little_data_take_little() {
    const TIB: u64 = 1 << 40;
    let synthetic = || Synthetic {
        len: 64 * TIB - 5,
        data: vec![
            (0, 4096),
            (TIB + 12288, TIB + 12288 + (8 << 20)),
            (63 * TIB, 63 * TIB + 100),
            (64 * TIB - 9, 64 * TIB - 5),
        ],
    };
    let caller = Caller::new(2);
    let region = memory_region(&Memory::new(), &small_packs());
    let taken = caller.snapshot(&region, &synthetic()).unwrap();
    assert!(taken.ingested.data_bytes < 9 << 20);
    let map = export::load(&region, &Root::from(&taken.snapshot)).unwrap();
    let done = Arc::new(AtomicU64::new(0));
    let target = Comparing { disk: synthetic(), position: 0, done: done.clone() };
    export::export(
        &region,
        &Root::from(&taken.snapshot),
        &map,
        map.volume_bytes(),
        None,
        Box::new(target),
        &caller.context(),
    )
    .unwrap();
    assert_eq!(done.load(Ordering::SeqCst), 64 * TIB - 5);
}

/// A disk that fails, or ends, from a byte on.
struct Failing {
    inner: MemoryDisk,
    from: u64,
}

impl DiskRead for Failing {
    fn len_bytes(&self) -> u64 {
        self.inner.len_bytes()
    }

    fn extent_at(&self, offset: u64) -> Result<Extent, DiskError> {
        self.inner.extent_at(offset)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        if offset + buffer.len() as u64 > self.from {
            return Err(DiskError::Shrank {
                path: "disk".into(),
                expected: self.len_bytes(),
                found: self.from,
            });
        }
        self.inner.read_at(offset, buffer)
    }
}

#[test]
fn a_disk_that_fails_half_way_leaves_no_snapshot_and_hangs_nothing() {
    let caller = Caller { memory_bytes: 16 << 20, ..Caller::new(2) };
    let region = memory_region(&Memory::new(), &small_packs());
    for from in [0, 1 << 20, 9 << 20] {
        let disk = Failing { inner: MemoryDisk { bytes: volume(12 << 20, 2), hole_blocks: 0 }, from };
        let error = caller.snapshot(&region, &disk).unwrap_err();
        assert!(matches!(error, OpsError::Disk(DiskError::Shrank { .. })), "{error}");
        assert_eq!(error.class(), Class::Refused);
        assert!(region.catalog().unwrap().snapshots.is_empty());
    }
}

/// Wants to stop after so many bytes.
struct StopAfter(AtomicU64);

impl Progress for StopAfter {
    fn begin(&self, _phase: &'static str, _total_bytes: u64) {}
    fn advance(&self, bytes: u64) {
        let left = self.0.load(Ordering::SeqCst);
        self.0.store(left.saturating_sub(bytes), Ordering::SeqCst);
    }
    fn note(&self, _message: &str) {}
    fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::SeqCst) == 0
    }
}

#[test]
fn an_interrupted_snapshot_resumes_by_what_it_stored() {
    let caller = Caller { memory_bytes: 16 << 20, ..Caller::new(2) };
    let region = memory_region(&Memory::new(), &small_packs());
    let disk = MemoryDisk { bytes: volume(16 << 20, 7), hole_blocks: 0 };
    let whole = {
        let region = memory_region(&Memory::new(), &small_packs());
        caller.snapshot(&region, &disk).unwrap().ingested
    };
    let stop = StopAfter(AtomicU64::new(9 << 20));
    let context = Context { progress: &stop, ..caller.context() };
    let error = snapshot(&region, &disk, &SnapshotOptions::default(), &context).unwrap_err();
    assert_eq!(error.class(), Class::Interrupted);
    assert!(region.catalog().unwrap().snapshots.is_empty());
    let rest = caller.snapshot(&region, &disk).unwrap();
    assert!(rest.ingested.new_bytes < whole.new_bytes * 3 / 4, "the first half was found again");
    assert!(caller.read_back(&region, rest.snapshot.id).unwrap() == disk.bytes);
}

#[test]
fn copies_move_exactly_what_is_missing_and_stand_alone() {
    let caller = Caller::new(2);
    let (source_storage, target_storage) = (Memory::new(), Memory::new());
    let source = memory_region(&source_storage, &small_packs());
    let target = memory_region(&target_storage, &small_packs());
    let base = volume(6 << 20, 1);
    let mut web = base.clone();
    let at = web.len() / 4096 / 2 * 4096;
    web.splice(at..at, volume(1 << 20, 2).into_iter().chain(std::iter::repeat_n(0, 0)).take(1 << 20));
    let base_image = import_disks(&source, &caller, "base", vec![base.clone()]);
    let web_image = import_disks(&source, &caller, "web", vec![web.clone(), base.clone()]);
    let options = CopyOptions { source_region: "a".into(), ..CopyOptions::default() };
    let run = |image: &imgstore::model::image::Image, options: &CopyOptions| {
        let plan = plan(&source, &target, CopyWhat::Image(image.id), options, &caller.context()).unwrap();
        let before: u64 = target.objects().unwrap().iter().map(|o| o.len).sum();
        let copied = apply(&source, &target, &plan, options, &caller.context()).unwrap();
        let after: u64 = target.objects().unwrap().iter().map(|o| o.len).sum();
        assert_eq!(copied.transferred_bytes, plan.transfer_bytes(), "the plan is exact");
        (copied, plan.new_chunks(), after - before)
    };
    let (first, _, _) = run(&base_image, &options);
    let (second, chunks, growth) = run(&web_image, &options);
    assert!(chunks > 0 && growth < second.transferred_bytes + 96 * chunks + 20_000);
    let renamed = CopyOptions { name: Some("web again".into()), ..options.clone() };
    let (third, chunks, _) = run(&web_image, &renamed);
    assert_eq!((third.transferred_bytes, chunks), (0, 0), "copying again moves nothing");

    let image = second.image.unwrap();
    assert_ne!(image.id, web_image.id);
    assert_eq!(image.source.as_ref().map(|s| s.image_id), Some(web_image.id));
    assert_eq!(first.snapshots[0].source.as_ref().map(|s| s.region_id), Some(source.header().id));
    for listed in source_storage.list("").unwrap() {
        source_storage.delete(&listed.name).unwrap();
    }
    let fresh = Region::open(Arc::new(target_storage), session()).unwrap();
    let ids: Vec<_> = image.snapshot_ids().collect();
    assert!(caller.read_back(&fresh, ids[0]).unwrap() == web);
    assert!(caller.read_back(&fresh, ids[1]).unwrap() == base);
    assert_eq!(verify(&fresh, &VerifyOptions::default(), &caller.context()).unwrap().findings, []);
}

#[test]
fn a_copy_belongs_to_its_maker_and_needs_permission() {
    let (owner, stranger) = (Caller::new(1), Caller::new(1));
    let stranger = Caller { account: imgstore::model::account::AccountId::from_random(99), ..stranger };
    let source = memory_region(&Memory::new(), &small_packs());
    let target = memory_region(&Memory::new(), &small_packs());
    let image = import_disks(&source, &owner, "mine", vec![volume(1 << 20, 1)]);
    let options = CopyOptions::default();
    let refused = plan(&source, &target, CopyWhat::Image(image.id), &options, &stranger.context());
    let error = refused.err().unwrap();
    assert_eq!((error.code(), error.class()), ("InvalidAMIID.NotFound", Class::NotFound));
    assert_eq!(error.to_string(), format!("The image id '[{}]' does not exist", image.id));
}

#[test]
fn a_client_token_makes_a_copy_once_and_refuses_other_arguments() {
    let caller = Caller::new(1);
    let source = memory_region(&Memory::new(), &small_packs());
    let target = memory_region(&Memory::new(), &small_packs());
    let image = import_disks(&source, &caller, "one", vec![volume(1 << 20, 1)]);
    let other = import_disks(&source, &caller, "two", vec![volume(1 << 20, 2)]);
    let options = CopyOptions { client_token: Some("t".into()), ..CopyOptions::default() };
    let copy = |id| {
        let plan = plan(&source, &target, CopyWhat::Image(id), &options, &caller.context())?;
        apply(&source, &target, &plan, &options, &caller.context())
    };
    let first = copy(image.id).unwrap();
    let second = copy(image.id).unwrap();
    assert!(second.was_made_before);
    assert_eq!(first.image.unwrap().id, second.image.unwrap().id);
    assert_eq!(copy(other.id).unwrap_err().code(), "IdempotentParameterMismatch");
    assert_eq!(target.catalog().unwrap().images.len(), 1);
}

#[test]
fn a_copy_within_a_region_moves_nothing() {
    let caller = Caller::new(1);
    let region = memory_region(&Memory::new(), &small_packs());
    let image = import_disks(&region, &caller, "one", vec![volume(1 << 20, 1)]);
    let options = CopyOptions { name: Some("two".into()), ..CopyOptions::default() };
    let plan = plan(&region, &region, CopyWhat::Image(image.id), &options, &caller.context()).unwrap();
    assert_eq!(plan.transfer_bytes(), 0);
    let copied = apply(&region, &region, &plan, &options, &caller.context()).unwrap();
    assert_eq!(copied.transferred_bytes, 0);
    assert_eq!(region.catalog().unwrap().images.len(), 2);
}

#[test]
fn launched_volumes_have_the_content_and_the_size_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let caller = Caller::new(2);
    let region = memory_region(&Memory::new(), &small_packs());
    let (root, data) = (volume(3 << 20, 1), volume((1 << 20) + 700, 2));
    let image = import_disks(&region, &caller, "database", vec![root.clone(), data.clone()]);
    let larger =
        DeviceSpec { device_name: "/dev/xvda".into(), volume_bytes: Some(8 << 20), ..DeviceSpec::default() };
    let options = LaunchOptions {
        count_min: 2,
        count_max: 2,
        devices: vec![larger],
        ..LaunchOptions::one(&folder.path().join("vms"))
    };
    let launched = launch(&region, image.id, &options, &caller.context()).unwrap();
    assert_eq!(launched.len(), 2);
    for made in &launched {
        let written = std::fs::read(&made.volumes[0].path).unwrap();
        assert_eq!(written.len(), 8 << 20);
        assert!(written[..root.len()] == root && written[root.len()..].iter().all(|&byte| byte == 0));
        assert!(std::fs::read(&made.volumes[1].path).unwrap() == data);
    }
    assert_eq!(region.catalog().unwrap().volumes.len(), 4);

    let too_small =
        DeviceSpec { device_name: "/dev/xvda".into(), volume_bytes: Some(1 << 20), ..DeviceSpec::default() };
    let options = LaunchOptions { devices: vec![too_small], ..options };
    let error = launch(&region, image.id, &options, &caller.context()).unwrap_err();
    assert_eq!(error.code(), "InvalidBlockDeviceMapping");
    assert!(error.to_string().contains("is smaller than  snapshot"), "{error}");
}

#[test]
fn a_cancelled_launch_leaves_no_file_and_no_record() {
    let folder = tempfile::tempdir().unwrap();
    let caller = Caller { memory_bytes: 16 << 20, ..Caller::new(2) };
    let region = memory_region(&Memory::new(), &small_packs());
    let image = import_disks(&region, &caller, "big", vec![volume(48 << 20, 1)]);
    let stop = StopAfter(AtomicU64::new(5 << 20));
    let context = Context { progress: &stop, ..caller.context() };
    let options = LaunchOptions::one(folder.path());
    assert_eq!(launch(&region, image.id, &options, &context).unwrap_err().class(), Class::Interrupted);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    assert!(region.catalog().unwrap().instances.is_empty());
}

#[test]
fn snapshots_in_use_stay_and_names_are_unique() {
    let caller = Caller::new(1);
    let region = memory_region(&Memory::new(), &small_packs());
    let image = import_disks(&region, &caller, "one", vec![volume(1 << 20, 1)]);
    let snapshot = image.snapshot_ids().next().unwrap();
    let error = delete::delete_snapshot(&region, snapshot, &caller.context()).unwrap_err();
    assert_eq!(error.code(), "InvalidSnapshot.InUse");
    let expected = format!("The snapshot {snapshot} is currently in use by {}", image.id);
    assert_eq!(error.to_string(), expected);

    let disks =
        [ImportDisk { device_name: "/dev/xvda".into(), disk: Box::new(MemoryDisk::new(vec![1; 4096])) }];
    let error =
        import(&region, &disks, &[], &image_options("one"), Compression::default(), &caller.context())
            .unwrap_err();
    assert_eq!(error.code(), "InvalidAMIName.Duplicate");
    assert_eq!(error.to_string(), format!("AMI name one is already in use by AMI {}", image.id));

    delete::deregister(&region, image.id, false, &caller.context()).unwrap();
    delete::delete_snapshot(&region, snapshot, &caller.context()).unwrap();
    let gone = delete::delete_snapshot(&region, snapshot, &caller.context()).unwrap_err();
    assert_eq!(gone.code(), "InvalidSnapshot.NotFound");
}

#[test]
fn stats_tell_what_deleting_would_free() {
    let caller = Caller::new(2);
    let storage = Memory::new();
    let region = memory_region(&storage, &small_packs());
    let shared = volume(2 << 20, 1);
    let own = [shared.clone(), volume(1 << 20, 2)].concat();
    let base = import_disks(&region, &caller, "base", vec![shared]);
    let more = import_disks(&region, &caller, "more", vec![own]);
    let of = |id| {
        stats::item_stats(&region, &[imgstore::ops::find::AnyId::Image(id)], &caller.context())
            .unwrap()
            .remove(0)
    };
    let (base, more) = (of(base.id), of(more.id));
    assert!(more.shared_stored_bytes > 0 && base.shared_stored_bytes > 0);
    assert!(more.unique_stored_bytes > base.unique_stored_bytes);
    assert_eq!(more.freed_bytes, more.unique_stored_bytes);
    let whole = stats::region_stats(&region, &caller.context()).unwrap();
    assert!(whole.store_bytes > base.freed_bytes + more.freed_bytes);
    // What it says is what goes: packs and block maps, but for the entries of chunks in packs, 48 bytes each.
    let stored = || {
        let kept = |name: &str| name.starts_with("packs/") || name.starts_with("manifests/");
        let objects = region.objects().unwrap();
        objects.iter().filter(|object| kept(&object.name)).map(|object| object.len).sum::<u64>()
    };
    storage.take_all_for_gone(true);
    let region = Region::open(std::sync::Arc::new(storage.clone()), session()).unwrap();
    let collect_all = || {
        for _ in 0..2 {
            gc::collect(&region, &gc::GcOptions { grace_ms: 0, repack_percent: 100 }, &caller.context())
                .unwrap();
        }
    };
    collect_all();
    let before = stored();
    let id: imgstore::model::ids::ImageId = more.id.parse().unwrap();
    delete::deregister(&region, id, true, &caller.context()).unwrap();
    collect_all();
    let freed = before - stored();
    assert!(freed >= more.freed_bytes && freed < more.freed_bytes * 21 / 20, "{freed} {}", more.freed_bytes);
}

/// Several processes on one region: each has a handle of its own.
fn concurrent_writers(open: impl Fn() -> Region + Sync) {
    let shared = volume(2 << 20, 100);
    let taken: Vec<(SnapshotId, Vec<u8>)> = std::thread::scope(|scope| {
        let writer = |number: u64| {
            let (open, shared) = (&open, &shared);
            move || {
                let caller = Caller::new(1);
                let region = open();
                let write = |round| {
                    let bytes = [shared.clone(), volume(300_000, number * 10 + round)].concat();
                    let id = caller.snapshot(&region, &MemoryDisk::new(bytes.clone())).unwrap().snapshot.id;
                    (id, bytes)
                };
                (0..3).map(write).collect::<Vec<_>>()
            }
        };
        let threads: Vec<_> = (0..4).map(|number| scope.spawn(writer(number))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let caller = Caller::new(2);
    let region = open();
    assert_eq!(region.catalog().unwrap().snapshots.len(), taken.len());
    for (id, bytes) in taken {
        assert!(caller.read_back(&region, id).unwrap() == bytes);
    }
    assert_eq!(verify(&region, &VerifyOptions::default(), &caller.context()).unwrap().findings, []);
}

#[test]
fn four_writers_at_once_all_succeed_in_memory() {
    let storage = Memory::new();
    memory_region(&storage, &small_packs());
    concurrent_writers(|| Region::open(Arc::new(storage.clone()), session()).unwrap());
}

#[test]
fn four_writers_at_once_all_succeed_in_a_directory() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("r");
    Region::create_directory(&root, &small_packs(), DirectoryOptions::default()).unwrap();
    concurrent_writers(|| Region::open_directory(&root, DirectoryOptions::default()).unwrap());
}

#[test]
fn segments_are_written_merged_and_not_needed() {
    let caller = Caller::new(2);
    let storage = Memory::new();
    let options =
        RegionOptions { pack_bytes: 16 << 10, ..RegionOptions::named("test", AccountId::from_random(1)) };
    let region = memory_region(&storage, &options);
    let mut taken = vec![];
    for seed in 0..6 {
        let disk = MemoryDisk::new(volume(4 << 20, seed));
        taken.push((caller.snapshot(&region, &disk).unwrap().snapshot.id, disk.bytes));
    }
    let segments = storage.list("index").unwrap();
    assert!(!segments.is_empty(), "many packs have a segment");
    let check = |region: &Region| {
        for (id, bytes) in &taken {
            assert!(caller.read_back(region, *id).unwrap() == *bytes);
        }
        let again = caller.snapshot(region, &MemoryDisk::new(taken[0].1.clone())).unwrap();
        assert_eq!(again.ingested.new_chunks, 0, "everything is found");
    };
    check(&Region::open(Arc::new(storage.clone()), session()).unwrap());
    assert_eq!(verify(&region, &VerifyOptions::default(), &caller.context()).unwrap().findings, []);
    for listed in segments.into_iter().chain(storage.list("checkpoints").unwrap()) {
        storage.delete(&listed.name).unwrap();
    }
    check(&Region::open(Arc::new(storage.clone()), session()).unwrap());
}

#[test]
fn a_target_that_is_not_empty_gets_its_zeros() {
    let caller = Caller::new(2);
    let region = memory_region(&Memory::new(), &small_packs());
    let bytes = vec![0; 3 << 20];
    let taken = caller.snapshot(&region, &MemoryDisk::new(bytes.clone())).unwrap();
    assert_eq!(taken.ingested.chunks, 0);
    assert!(caller.read_back(&region, taken.snapshot.id).unwrap() == bytes);
    assert!(MemoryTarget::new(4).bytes() == [0xaa; 4], "targets of tests begin with other bytes");
}

#[test]
fn a_lost_record_is_not_taken_for_the_end_of_the_log() {
    let caller = Caller::new(1);
    let storage = Memory::new();
    let region = memory_region(&storage, &small_packs());
    for seed in 0..4 {
        caller.snapshot(&region, &MemoryDisk::new(volume(50_000, seed))).unwrap();
    }
    let records = storage.list("log").unwrap();
    storage.delete(&records[2].name).unwrap();
    let error = Region::open(Arc::new(storage.clone()), session()).err().unwrap();
    assert!(error.is_damage() && error.to_string().contains("missing"), "{error}");
    assert_eq!(storage.list("log").unwrap().len(), records.len() - 1, "nothing was written in its place");
}

#[test]
fn chunks_of_a_pack_that_is_gone_are_stored_again() {
    let caller = Caller::new(2);
    let storage = Memory::new();
    let options =
        RegionOptions { pack_bytes: 16 << 10, ..RegionOptions::named("test", AccountId::from_random(1)) };
    let region = memory_region(&storage, &options);
    let disk = MemoryDisk::new(volume(12 << 20, 1));
    let first = caller.snapshot(&region, &disk).unwrap().snapshot.id;
    assert!(!storage.list("index").unwrap().is_empty(), "a segment lists the packs");
    for listed in storage.list("packs").unwrap().into_iter().step_by(3) {
        storage.delete(&listed.name).unwrap();
    }
    let region = Region::open(Arc::new(storage), session()).unwrap();
    assert!(caller.read_back(&region, first).is_err());
    let second = caller.snapshot(&region, &disk).unwrap();
    assert!(second.ingested.new_chunks > 0);
    assert!(caller.read_back(&region, second.snapshot.id).unwrap() == disk.bytes);
    let report = verify(&region, &VerifyOptions::default(), &caller.context()).unwrap();
    assert!(!report.findings.is_empty(), "the packs are still missed");
    assert!(caller.read_back(&region, first).unwrap() == disk.bytes, "what was stored again heals the first");
}

#[test]
fn a_damaged_segment_is_replaced_by_the_next_writer() {
    let caller = Caller::new(2);
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("r");
    let options =
        RegionOptions { pack_bytes: 16 << 10, ..RegionOptions::named("test", AccountId::from_random(1)) };
    let region = Region::create_directory(&root, &options, DirectoryOptions::default()).unwrap();
    let disk = MemoryDisk::new(volume(12 << 20, 1));
    let id = caller.snapshot(&region, &disk).unwrap().snapshot.id;
    drop(region);
    let session = std::fs::read_dir(root.join("index")).unwrap().next().unwrap().unwrap().path();
    let segment = std::fs::read_dir(session).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[4096 + 50] ^= 1;
    std::fs::remove_file(&segment).unwrap();
    std::fs::write(&segment, &bytes).unwrap();
    let open = || Region::open_directory(&root, DirectoryOptions::default()).unwrap();
    assert!(!verify(&open(), &VerifyOptions::default(), &caller.context()).unwrap().findings.is_empty());
    assert!(caller.read_back(&open(), id).unwrap() == disk.bytes, "the trailers say the same");
    assert_eq!(caller.snapshot(&open(), &disk).unwrap().ingested.new_chunks, 0);
    assert_eq!(verify(&open(), &VerifyOptions::default(), &caller.context()).unwrap().findings, []);
}

#[test]
fn racing_copies_with_one_token_make_one_copy() {
    let caller = Caller::new(1);
    let source = memory_region(&Memory::new(), &small_packs());
    let storage = Memory::new();
    memory_region(&storage, &small_packs());
    let image = import_disks(&source, &caller, "one", vec![volume(1 << 20, 1)]);
    let options = CopyOptions { client_token: Some("t".into()), ..CopyOptions::default() };
    let copy = || {
        let caller = Caller::new(1);
        let target = Region::open(Arc::new(storage.clone()), session()).unwrap();
        let plan = plan(&source, &target, CopyWhat::Image(image.id), &options, &caller.context()).unwrap();
        apply(&source, &target, &plan, &options, &caller.context()).unwrap().image.unwrap().id
    };
    let ids: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(copy)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
}

#[test]
fn devices_that_are_one_in_the_guest_and_sizes_over_the_limit_are_refused() {
    use imgstore::ops::register::register;
    let caller = Caller::new(1);
    let region = memory_region(&Memory::new(), &small_packs());
    let id = caller.snapshot(&region, &MemoryDisk::new(volume(50_000, 1))).unwrap().snapshot.id;
    let device = |name: &str, volume_bytes: Option<u64>| DeviceSpec {
        device_name: name.into(),
        snapshot_id: volume_bytes.is_none().then_some(id),
        volume_bytes,
        ..DeviceSpec::default()
    };
    for second in [device("xvda", Some(1 << 30)), device("/dev/xvdb", Some(1 << 60))] {
        let devices = [device("/dev/xvda", None), second];
        let error = register(&region, &image_options("image"), &devices, &caller.context()).unwrap_err();
        assert_eq!(error.code(), "InvalidBlockDeviceMapping", "{error}");
    }
}

#[test]
fn what_was_stored_again_stays_readable_whatever_segments_list_it() {
    let caller = Caller::new(2);
    for _ in 0..8 {
        // Sessions are random, so segments sort differently each time.
        let storage = Memory::new();
        let options =
            RegionOptions { pack_bytes: 16 << 10, ..RegionOptions::named("test", AccountId::from_random(1)) };
        memory_region(&storage, &options);
        let open = || Region::open(Arc::new(storage.clone()), session()).unwrap();
        let disk = MemoryDisk::new(volume(12 << 20, 1));
        caller.snapshot(&open(), &disk).unwrap();
        let lost = storage.list("packs").unwrap();
        for listed in lost.iter().step_by(2) {
            storage.delete(&listed.name).unwrap();
        }
        let second = caller.snapshot(&open(), &disk).unwrap().snapshot.id;
        // Enough packs that the new places come into a segment, too.
        caller.snapshot(&open(), &MemoryDisk::new(volume(4 << 20, 2))).unwrap();
        assert!(caller.read_back(&open(), second).unwrap() == disk.bytes);
        let third = caller.snapshot(&open(), &disk).unwrap();
        assert_eq!(third.ingested.new_chunks, 0);
        assert!(caller.read_back(&open(), third.snapshot.id).unwrap() == disk.bytes);
        let target = memory_region(&Memory::new(), &small_packs());
        let options = CopyOptions::default();
        let what = CopyWhat::Snapshot(second);
        let plan = plan(&open(), &target, what, &options, &caller.context()).unwrap();
        let copied = apply(&open(), &target, &plan, &options, &caller.context()).unwrap();
        assert!(caller.read_back(&target, copied.snapshots[0].id).unwrap() == disk.bytes);
    }
}

#[test]
fn a_session_knows_what_it_awaits_after_a_flush() {
    let caller = Caller::new(1);
    let region = memory_region(&Memory::new(), &small_packs());
    let mut session = region.begin(caller.account).unwrap();
    let raw = volume(8192, 3);
    let id = imgstore::chunk::frame::chunk_id(&raw);
    assert_eq!(session.reserve(&[id, id]).unwrap(), [true, false]);
    session.flush().unwrap();
    assert_eq!(session.reserve(&[id]).unwrap(), [false], "its frame is still under way");
    session.put(id, &region.encode(&raw, id, 3).unwrap()).unwrap();
    session.flush().unwrap();
    assert_eq!(session.reserve(&[id]).unwrap(), [false]);
}

#[test]
fn a_copy_does_not_count_on_a_manifest_that_is_gone() {
    let caller = Caller::new(1);
    let source = memory_region(&Memory::new(), &small_packs());
    let storage = Memory::new();
    let target = memory_region(&storage, &small_packs());
    let disk = MemoryDisk::new(volume(1 << 20, 1));
    let id = caller.snapshot(&source, &disk).unwrap().snapshot.id;
    let options = CopyOptions::default();
    let copy = || {
        let plan = plan(&source, &target, CopyWhat::Snapshot(id), &options, &caller.context()).unwrap();
        let copied = apply(&source, &target, &plan, &options, &caller.context()).unwrap();
        assert_eq!(copied.transferred_bytes, plan.transfer_bytes());
        copied.snapshots[0].id
    };
    copy();
    for listed in storage.list("manifests").unwrap() {
        storage.delete(&listed.name).unwrap();
    }
    let second = copy();
    assert!(caller.read_back(&target, second).unwrap() == disk.bytes);
}

/// A disk that says of what it holds that it is a hole.
struct FalseHoles(MemoryDisk, std::ops::Range<u64>);

impl DiskRead for FalseHoles {
    fn len_bytes(&self) -> u64 {
        self.0.len_bytes()
    }

    fn extent_at(&self, offset: u64) -> Result<Extent, DiskError> {
        if self.1.contains(&offset) {
            return Ok(Extent { start: offset, end: self.1.end, is_zero: true });
        }
        let found = self.0.extent_at(offset)?;
        let end = if offset < self.1.start { found.end.min(self.1.start) } else { found.end };
        Ok(Extent { end, ..found })
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        self.0.read_at(offset, buffer)
    }
}

/// Reading again finds what was told to be a hole and is none, and what changed since; and nothing else, whatever the length.
#[test]
fn a_second_reading_finds_what_the_first_was_not_told_of() {
    const K: u64 = 4096;
    let caller = Caller::new(2);
    for len in [K as usize * 700, K as usize * 700 - 1, 5] {
        let region = memory_region(&Memory::new(), &small_packs());
        let mut bytes = volume(len, 3);
        let hole = K * 512..K * 600;
        if len > 5 {
            bytes[K as usize * 100..K as usize * 400].fill(0);
        }
        let found = |disk: &dyn DiskRead, map: &BlockMap| differences(disk, map, &caller.context()).unwrap();
        let disk = MemoryDisk::new(bytes.clone());
        let taken = caller.snapshot(&region, &disk).unwrap().snapshot;
        let map = region.load_map(&taken.manifest).unwrap();
        assert_eq!(found(&disk, &map), [], "{len}");
        let last = len - 1;
        bytes[last] ^= 1;
        let [end] = &found(&MemoryDisk::new(bytes.clone()), &map)[..] else { panic!("{len}") };
        assert!(end.contains(&(last as u64)) && end.end == len as u64);
        let shorter = MemoryDisk::new(bytes[..last].to_vec());
        assert_eq!(found(&shorter, &map).first(), Some(&(last as u64..len as u64)));
        if len > 5 {
            let lying = FalseHoles(MemoryDisk::new(bytes.clone()), hole.clone());
            let taken = caller.snapshot(&region, &lying).unwrap().snapshot;
            let map = region.load_map(&taken.manifest).unwrap();
            assert_eq!(found(&lying, &map), std::slice::from_ref(&hole), "{len}");
        }
    }
}
