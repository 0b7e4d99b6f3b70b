//! Garbage collection: what nothing needs goes, what anything needs stays, whoever works beside it.

mod common;

use common::{Caller, Draw, MemoryDisk, memory_region, pass_on, session, small_packs, volume};
use imgstore::io::directory::{Directory, DirectoryOptions};
use imgstore::io::memory::Memory;
use imgstore::io::os::OsFiles;
use imgstore::io::storage::{Created, Listed, Object, Storage, StorageError, read_whole};
use imgstore::model::account::Resource;
use imgstore::model::catalog::{Rejection, RootId};
use imgstore::model::ids::SnapshotId;
use imgstore::model::objects::{ManifestName, PackName, PackState};
use imgstore::model::op::Op;
use imgstore::ops::bin;
use imgstore::ops::context::{Context, Progress};
use imgstore::ops::delete::delete_snapshot;
use imgstore::ops::encode::Compression;
use imgstore::ops::error::{Class, OpsError};
use imgstore::ops::gc::{Amount, Collected, GcOptions, collect, preview};
use imgstore::ops::repair::{RepairSources, repair};
use imgstore::ops::verify::{VerifyOptions, verify};
use imgstore::region::error::RegionError;
use imgstore::region::losses::Losses;
use imgstore::region::{Region, RegionOptions, directory_storage};
use std::collections::{BTreeSet, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

const NOW: GcOptions = GcOptions { grace_ms: 0, repack_percent: 50 };
const HOUR: GcOptions = GcOptions { grace_ms: 3_600_000, repack_percent: 50 };

/// A region in a folder. Each handle is a writer of its own, which is gone when it is dropped.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        Region::create_directory(&place.root(), &small_packs(), Self::options()).unwrap();
        place
    }

    fn root(&self) -> std::path::PathBuf {
        self.0.path().join("region")
    }

    fn options() -> DirectoryOptions {
        DirectoryOptions { reserve_bytes: 0, ..DirectoryOptions::default() }
    }

    fn open(&self) -> Region {
        Region::open_directory(&self.root(), Self::options()).unwrap()
    }

    /// A snapshot by a writer that is gone afterwards.
    fn snapshot(&self, caller: &Caller, bytes: &[u8]) -> SnapshotId {
        caller.snapshot(&self.open(), &MemoryDisk::new(bytes.to_vec())).unwrap().snapshot.id
    }

    fn collect(&self, options: GcOptions, caller: &Caller) -> Collected {
        collect(&self.open(), &options, &caller.context()).unwrap()
    }

    /// Of everything but the log, which only grows.
    fn bytes(&self) -> u64 {
        let of_log = |name: &str| ["log/", "checkpoints/", "twins/"].iter().any(|of| name.starts_with(of));
        let objects = self.open().objects().unwrap();
        objects.iter().filter(|object| !of_log(&object.name)).map(|object| object.len).sum()
    }

    fn assert_clean(&self, caller: &Caller) {
        let report = verify(&self.open(), &VerifyOptions::default(), &caller.context()).unwrap();
        assert!(report.findings.is_empty(), "{:?}", report.findings);
    }
}

#[test]
fn what_nothing_needs_goes_and_the_rest_stays() {
    let (place, caller) = (Place::new(), Caller::new(1));
    let kept = volume(900_000, 1);
    let first = place.snapshot(&caller, &kept);
    let before = place.bytes();
    let second = place.snapshot(&caller, &volume(900_000, 2));
    let both = place.bytes();
    assert_eq!(place.collect(NOW, &caller), Collected::default(), "nothing is garbage yet");
    delete_snapshot(&place.open(), second, &caller.context()).unwrap();
    assert_eq!(place.bytes(), both, "deleting changes roots only");
    let collected = place.collect(NOW, &caller);
    assert!(collected.condemned.count > 3 && collected.freed.count == collected.condemned.count);
    assert_eq!(collected.orphans.count, 1, "its manifest: {collected:?}");
    assert_eq!(place.bytes(), before, "all of it is gone");
    assert_eq!(caller.read_back(&place.open(), first).unwrap(), kept);
    place.assert_clean(&caller);
    assert_eq!(place.collect(NOW, &caller), Collected::default(), "a second collection finds nothing");
}

#[test]
fn a_preview_says_what_would_go_and_changes_nothing() {
    let (place, caller) = (Place::new(), Caller::new(1));
    place.snapshot(&caller, &volume(500_000, 1));
    let gone = place.snapshot(&caller, &volume(500_000, 2));
    delete_snapshot(&place.open(), gone, &caller.context()).unwrap();
    let sequence = place.open().catalog().unwrap().sequence;
    let dry = imgstore::ops::context::Context { dry_run: true, ..caller.context() };
    let said = collect(&place.open(), &NOW, &dry).unwrap();
    assert_eq!(place.open().catalog().unwrap().sequence, sequence, "nothing is on record");
    let done = place.collect(NOW, &caller);
    assert_eq!((said.condemned, said.freed, said.orphans), (done.condemned, done.freed, done.orphans));
}

/// What lies beside more that is needed stays, and is told of, until all packs are to be rewritten that have any of it.
#[test]
fn what_stays_beside_what_is_needed_is_told() {
    let (place, caller) = (Place::new(), Caller::new(1));
    let bytes = volume(1_200_000, 1);
    let gone = place.snapshot(&caller, &bytes);
    // Each piece in turn is in the other disk, too, or not: packs are needed for some three quarters.
    let mut kept = bytes.clone();
    for (number, piece) in kept.chunks_mut(30_000).enumerate() {
        if number % 4 == 0 {
            piece.fill(0);
        }
    }
    let id = place.snapshot(&caller, &kept);
    delete_snapshot(&place.open(), gone, &caller.context()).unwrap();
    let dry = imgstore::ops::context::Context { dry_run: true, ..caller.context() };
    let said = collect(&place.open(), &NOW, &dry).unwrap();
    let done = place.collect(NOW, &caller);
    assert!(done.unneeded.count > 0 && done.unneeded.bytes > 5_000, "{done:?}");
    assert_eq!(said.unneeded, done.unneeded);
    let before = place.bytes();
    let all = place.collect(GcOptions { repack_percent: 100, ..NOW }, &caller);
    assert_eq!(all.unneeded, Default::default());
    let freed = before - place.bytes();
    assert!(freed >= done.unneeded.bytes * 9 / 10, "{freed} of {:?}", done.unneeded);
    assert!(caller.read_back(&place.open(), id).unwrap() == kept);
}

#[test]
fn a_condemned_pack_waits_and_a_use_rescues_it() {
    let (place, mut caller) = (Place::new(), Caller::new(1));
    let bytes = volume(600_000, 3);
    let first = place.snapshot(&caller, &bytes);
    delete_snapshot(&place.open(), first, &caller.context()).unwrap();
    let collected = place.collect(HOUR, &caller);
    assert!(collected.condemned.count > 0 && collected.freed.count == 0);
    assert_eq!(collected.waiting_until_ms, Some(caller.now_ms + HOUR.grace_ms));
    // The same content again costs nothing: it is still there.
    let taken = caller.snapshot(&place.open(), &MemoryDisk::new(bytes.clone())).unwrap();
    assert_eq!(taken.ingested.new_chunks, 0);
    caller.now_ms += 2 * HOUR.grace_ms;
    let collected = place.collect(HOUR, &caller);
    assert_eq!((collected.freed.count, collected.waiting.count), (0, 0), "rescued: {collected:?}");
    assert_eq!(caller.read_back(&place.open(), taken.snapshot.id).unwrap(), bytes);
    // Without a use it goes when its time is up.
    delete_snapshot(&place.open(), taken.snapshot.id, &caller.context()).unwrap();
    assert_eq!(place.collect(HOUR, &caller).freed.count, 0);
    caller.now_ms += HOUR.grace_ms - 1;
    assert_eq!(place.collect(HOUR, &caller).freed.count, 0, "not a moment before");
    caller.now_ms += 1;
    assert!(place.collect(HOUR, &caller).freed.count > 0);
    place.assert_clean(&caller);
}

#[test]
fn packs_that_hardly_anything_is_needed_of_are_rewritten() {
    let (place, caller) = (Place::new(), Caller::new(1));
    // One pack with everything; then a tenth of it stays.
    let options = RegionOptions { pack_bytes: 8 << 20, ..small_packs() };
    let root = place.0.path().join("large");
    Region::create_directory(&root, &options, Place::options()).unwrap();
    let open = || Region::open_directory(&root, Place::options()).unwrap();
    let whole = volume(3 << 20, 4);
    let part = whole[..400_000].to_vec();
    let first = caller.snapshot(&open(), &MemoryDisk::new(whole)).unwrap().snapshot.id;
    let second = caller.snapshot(&open(), &MemoryDisk::new(part.clone())).unwrap().snapshot.id;
    delete_snapshot(&open(), first, &caller.context()).unwrap();
    let stored = |region: &Region| {
        region.objects().unwrap().iter().filter(|o| o.name.starts_with("packs/")).map(|o| o.len).sum::<u64>()
    };
    let before = stored(&open());
    let kept = collect(&open(), &GcOptions { repack_percent: 0, ..NOW }, &caller.context()).unwrap();
    assert_eq!((kept.repacked.count, stored(&open())), (0, before), "not asked for");
    let collected = collect(&open(), &NOW, &caller.context()).unwrap();
    assert!(collected.repacked.count == 1 && collected.moved.count > 0, "{collected:?}");
    assert!(stored(&open()) < before / 3, "{} of {before}", stored(&open()));
    assert_eq!(caller.read_back(&open(), second).unwrap(), part);
    let report = verify(&open(), &VerifyOptions::default(), &caller.context()).unwrap();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
}

/// Two packs hold the same chunks, as racing writers leave them: one of them goes, and the other is found,
/// whatever the index has merged.
#[test]
fn of_two_places_of_a_chunk_one_stays_and_is_found() {
    let (place, caller) = (Place::new(), Caller::new(1));
    let bytes = volume(700_000, 5);
    // Both look before either has stored.
    let (one, other) = (place.open(), place.open());
    let mut sessions = [&one, &other].map(|region| region.begin(caller.account).unwrap());
    let taken = sessions.each_mut().map(|session| {
        let disk = MemoryDisk::new(bytes.clone());
        imgstore::ops::ingest::ingest(session, &disk, &Compression::default(), &caller.context())
            .unwrap()
            .packs
    });
    assert!(taken[0].iter().all(|pack| !taken[1].contains(pack)), "each has stored all of it");
    drop(sessions);
    drop((one, other));
    let id = place.snapshot(&caller, &bytes);
    // Enough packs that segments are made of them, before and after the collection.
    let more: Vec<_> = (0..30).map(|seed| place.snapshot(&caller, &volume(900_000, 50 + seed))).collect();
    let catalog = place.open().catalog().unwrap();
    assert!(!catalog.segments.is_empty(), "{} packs", catalog.packs.len());
    let collected = place.collect(NOW, &caller);
    assert_eq!(collected.freed.count, taken[0].len() as u64, "{collected:?}");
    assert_eq!(caller.read_back(&place.open(), id).unwrap(), bytes);
    for id in more {
        delete_snapshot(&place.open(), id, &caller.context()).unwrap();
    }
    place.collect(NOW, &caller);
    assert_eq!(caller.read_back(&place.open(), id).unwrap(), bytes);
    place.assert_clean(&caller);
}

#[test]
fn what_is_in_the_bin_stays_until_its_time_is_up() {
    let (place, mut caller) = (Place::new(), Caller::new(1));
    bin::add_rule(&place.open(), Resource::Snapshot, 2, &[], &caller.context()).unwrap();
    let bytes = volume(400_000, 6);
    let id = place.snapshot(&caller, &bytes);
    delete_snapshot(&place.open(), id, &caller.context()).unwrap();
    assert_eq!(place.collect(NOW, &caller), Collected::default(), "it can be restored");
    bin::restore_snapshot(&place.open(), id, &caller.context()).unwrap();
    assert_eq!(caller.read_back(&place.open(), id).unwrap(), bytes);
    delete_snapshot(&place.open(), id, &caller.context()).unwrap();
    caller.now_ms += 3 * 86_400_000;
    let collected = place.collect(NOW, &caller);
    assert!(collected.expired == 1 && collected.freed.count > 0, "{collected:?}");
    assert!(bin::restore_snapshot(&place.open(), id, &caller.context()).is_err());
}

#[test]
fn what_dead_sessions_left_goes_and_they_are_fenced() {
    let (place, caller) = (Place::new(), Caller::new(1));
    let id = place.snapshot(&caller, &volume(200_000, 7));
    let dead = session();
    let pack = PackName { session: dead, number: 3 }.to_string();
    let manifest = ManifestName { session: dead, number: 4 }.to_string();
    let storage = imgstore::region::directory_storage(&place.root(), Place::options()).unwrap().0;
    storage.create(&pack, &[&[1; 5000]]).unwrap();
    storage.create(&manifest, &[&[2; 700]]).unwrap();
    let alive = place.open();
    let mut session = alive.begin(caller.account).unwrap();
    let collected = place.collect(NOW, &caller);
    assert_eq!((collected.orphans.count, collected.orphans.bytes), (2, 5700));
    assert!(storage.open(&pack).is_err_and(|e| e.is_not_found()));
    assert!(place.open().catalog().unwrap().fenced_sessions.contains(&dead));
    // One that lives is left alone, also in the middle of storing.
    let bytes = volume(300_000, 8);
    imgstore::ops::ingest::ingest(
        &mut session,
        &MemoryDisk::new(bytes.clone()),
        &Compression::default(),
        &caller.context(),
    )
    .unwrap();
    let collected = place.collect(NOW, &caller);
    assert!(collected.in_progress.count > 0 && collected.condemned.count == 0, "{collected:?}");
    drop(session);
    drop(alive);
    assert!(place.collect(NOW, &caller).freed.count > 0, "it is gone, and what it stored is nobody's");
    assert!(caller.read_back(&place.open(), id).is_ok());
    place.assert_clean(&caller);
}

#[test]
fn nothing_goes_as_long_as_anything_cannot_be_read() {
    let (place, caller) = (Place::new(), Caller::new(1));
    let kept = place.snapshot(&caller, &volume(300_000, 9));
    let gone = place.snapshot(&caller, &volume(300_000, 10));
    delete_snapshot(&place.open(), gone, &caller.context()).unwrap();
    let catalog = place.open().catalog().unwrap();
    let manifest = place.root().join(catalog.snapshots[&kept].manifest.name.to_string());
    let pack = place.root().join(catalog.packs.keys().next().unwrap().to_string());
    let objects =
        || place.open().objects().unwrap().into_iter().filter(|o| o.name.starts_with("packs")).count();
    let before = objects();
    for path in [manifest, pack] {
        let aside = path.with_extension("aside");
        std::fs::rename(&path, &aside).unwrap();
        let error = collect(&place.open(), &NOW, &caller.context()).unwrap_err();
        assert_eq!(error.class(), Class::Damage, "{error}");
        std::fs::rename(&aside, &path).unwrap();
        assert_eq!(objects(), before);
    }
    assert!(place.collect(NOW, &caller).freed.count > 0);
    place.assert_clean(&caller);
}

/// What was swept and not yet removed when a collector died is removed by the next one.
#[test]
fn an_interrupted_collection_is_gone_on_with() {
    let (place, caller) = (Place::new(), Caller::new(1));
    let kept = place.snapshot(&caller, &volume(300_000, 11));
    let gone = place.snapshot(&caller, &volume(300_000, 12));
    delete_snapshot(&place.open(), gone, &caller.context()).unwrap();
    place.collect(HOUR, &caller);
    let region = place.open();
    let swept: Vec<PackName> = region
        .catalog()
        .unwrap()
        .packs
        .values()
        .filter(|pack| matches!(pack.state, PackState::Condemned { .. }))
        .map(|pack| pack.record.name)
        .collect();
    region
        .commit::<_, OpsError>(caller.account, |_| Ok((vec![Op::SweepPacks { packs: swept.clone() }], ())))
        .unwrap();
    assert!(!swept.is_empty());
    // A pack that is being swept is used by nobody any more: its content is stored anew.
    let again = caller.snapshot(&place.open(), &MemoryDisk::new(volume(300_000, 12))).unwrap();
    assert!(again.ingested.new_chunks > 0);
    drop(region);
    let collected = place.collect(NOW, &caller);
    assert_eq!(collected.freed.count, swept.len() as u64);
    assert_eq!(caller.read_back(&place.open(), again.snapshot.id).unwrap(), volume(300_000, 12));
    assert!(caller.read_back(&place.open(), kept).is_ok());
    place.assert_clean(&caller);
}

/// A commit that counts on a pack which is swept meanwhile stores its content again, and ends well.
#[test]
fn a_snapshot_beside_a_collection_without_grace_is_whole() {
    let (place, caller) = (Place::new(), Caller::new(1));
    let open = || place.open();
    let bytes = volume(400_000, 13);
    let first = place.snapshot(&caller, &bytes);
    delete_snapshot(&open(), first, &caller.context()).unwrap();
    let region = open();
    let mut session = region.begin(caller.account).unwrap();
    let ingested = imgstore::ops::ingest::ingest(
        &mut session,
        &MemoryDisk::new(bytes.clone()),
        &Compression::default(),
        &caller.context(),
    )
    .unwrap();
    assert_eq!(ingested.new_chunks, 0, "it counts on what is there");
    collect(&open(), &NOW, &caller.context()).unwrap();
    let mut snapshot = caller.snapshot(&open(), &MemoryDisk::new(vec![1; 5000])).unwrap().snapshot;
    snapshot.id = SnapshotId::from_random(9);
    snapshot.manifest = ingested.manifest.clone();
    let refused = region.commit::<_, OpsError>(caller.account, |_| {
        let packs = ingested.packs.clone();
        Ok((vec![Op::CreateSnapshot { snapshot: Box::new(snapshot.clone()), packs }], ()))
    });
    assert!(matches!(refused, Err(OpsError::ContentGone { .. })), "{refused:?}");
    let whole = caller.snapshot(&region, &MemoryDisk::new(bytes.clone())).unwrap();
    assert_eq!(caller.read_back(&open(), whole.snapshot.id).unwrap(), bytes);
}

fn is_fenced(error: &OpsError) -> bool {
    matches!(error, OpsError::Region(RegionError::Rejected(Rejection::SessionFenced(_))))
}

/// Writers, deleters, two collectors without any grace, and readers, all at once, over one storage that takes every
/// writer for gone: every snapshot that was acknowledged and not deleted reads as it was taken.
#[test]
fn everything_at_once_loses_nothing() {
    let storage = Memory::new();
    memory_region(&storage, &small_packs());
    let open = || Region::open(Arc::new(storage.clone()), session()).unwrap();
    let rounds: u64 = std::env::var("IMGSTORE_GC_ROUNDS").map_or(12, |n| n.parse().unwrap());
    let done = AtomicBool::new(false);
    let kept: Vec<(SnapshotId, Vec<u8>)> = std::thread::scope(|scope| {
        let collectors = [0, 1].map(|number: u64| {
            let (open, done, storage) = (&open, &done, &storage);
            scope.spawn(move || {
                let caller = Caller::new(1);
                let (mut freed, mut rounds) = (0, 0);
                loop {
                    let is_last = done.load(Ordering::SeqCst);
                    // Sessions are taken for gone at times; then their commands fail, and nothing is lost.
                    storage.take_all_for_gone(is_last || (number == 0 && rounds % 2 == 0));
                    rounds += 1;
                    match collect(&open(), &NOW, &caller.context()) {
                        Ok(collected) => freed += collected.freed.count,
                        Err(error) => assert!(is_fenced(&error), "{error}"),
                    }
                    if is_last {
                        break;
                    }
                }
                freed
            })
        });
        let writers = [1, 2].map(|number: u64| {
            let open = &open;
            scope.spawn(move || {
                let (caller, mut draw) = (Caller::new(1), Draw::new(number));
                let mut own: Vec<(SnapshotId, Vec<u8>)> = Vec::new();
                for round in 0..rounds {
                    // Much in common with what came before, and with what the other writer has.
                    let mut bytes = volume(200_000, draw.next() % 3);
                    bytes.extend(volume(30_000, number * 1000 + round % 4));
                    match caller.snapshot(&open(), &MemoryDisk::new(bytes.clone())) {
                        Ok(taken) => own.push((taken.snapshot.id, bytes)),
                        // Fenced, or robbed three times: it says so, and nothing of it is there.
                        Err(OpsError::ContentGone { .. }) => {}
                        Err(error) => assert!(is_fenced(&error), "{error}"),
                    }
                    if own.len() > 2 {
                        let (id, bytes) = own.remove(draw.below(own.len()));
                        assert_eq!(caller.read_back(&open(), id).unwrap(), bytes);
                        delete_snapshot(&open(), id, &caller.context()).unwrap();
                    }
                }
                own
            })
        });
        let kept = writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect();
        done.store(true, Ordering::SeqCst);
        let freed: u64 = collectors.into_iter().map(|collector| collector.join().unwrap()).sum();
        assert!(freed > 0, "the collectors did something");
        kept
    });
    let caller = Caller::new(1);
    storage.take_all_for_gone(true);
    collect(&open(), &NOW, &caller.context()).unwrap();
    let catalog = open().catalog().unwrap();
    assert!(!kept.is_empty() && catalog.snapshots.len() == kept.len());
    for (id, bytes) in &kept {
        assert_eq!(caller.read_back(&open(), *id).unwrap(), *bytes);
    }
    assert!(catalog.packs.values().all(|pack| pack.state == PackState::Live));
    let report = verify(&open(), &VerifyOptions::default(), &caller.context()).unwrap();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
}

// What a review of collection and repair found ---------------------------------------------------------------

/// Content that two writers have stored at once, each in packs of its own: those that sort first, and the others.
fn doubled_in_few(place: &Place, caller: &Caller) -> (SnapshotId, Vec<u8>, [Vec<PackName>; 2]) {
    let bytes = volume(300_000, 5);
    let regions = [place.open(), place.open()];
    let mut sessions = regions.each_ref().map(|region| region.begin(caller.account).unwrap());
    let mut packs = sessions.each_mut().map(|session| {
        let disk = MemoryDisk::new(bytes.clone());
        imgstore::ops::ingest::ingest(session, &disk, &Compression::default(), &caller.context())
            .unwrap()
            .packs
    });
    packs.sort();
    drop(sessions);
    drop(regions);
    let id = place.snapshot(caller, &bytes);
    assert!(place.open().catalog().unwrap().segments.is_empty());
    (id, bytes, packs)
}

/// The same, and it is in the index of segments, too.
fn doubled(place: &Place, caller: &Caller) -> (SnapshotId, Vec<u8>, [Vec<PackName>; 2]) {
    let doubled = doubled_in_few(place, caller);
    fill(place, caller, 0);
    assert!(!place.open().catalog().unwrap().segments.is_empty());
    doubled
}

/// Enough small packs that a segment is made of them.
fn fill(place: &Place, caller: &Caller, seed: u64) {
    for number in 0..70_u64 {
        place.snapshot(caller, &(1000 + 100 * seed + number).to_le_bytes().repeat(600));
    }
}

fn move_away(place: &Place, packs: &[PackName]) -> Vec<(std::path::PathBuf, std::path::PathBuf)> {
    let moved = packs.iter().map(|pack| {
        let path = place.root().join(pack.to_string());
        let aside = place.0.path().join(pack.to_string().replace('/', "-"));
        std::fs::rename(&path, &aside).unwrap();
        (path, aside)
    });
    moved.collect()
}

fn damage_frame(place: &Place, pack: &PackName, at: usize) {
    use std::os::unix::fs::PermissionsExt;
    let path = place.root().join(pack.to_string());
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[at] ^= 1;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::write(&path, bytes).unwrap();
}

#[test]
fn a_copy_does_not_go_for_one_that_is_not_there() {
    let (place, caller) = (Place::new(), Caller::new(1));
    let (id, bytes, [first, second]) = doubled(&place, &caller);
    for lost in [&first, &second] {
        let moved = move_away(&place, lost);
        let refused = collect(&place.open(), &NOW, &caller.context());
        assert_eq!(caller.read_back(&place.open(), id).unwrap(), bytes, "there is another copy");
        for (path, aside) in moved {
            std::fs::rename(aside, path).unwrap();
        }
        if lost == &first {
            assert_eq!(refused.unwrap_err().class(), Class::Damage, "it is what was to be kept");
        }
    }
}

#[test]
fn a_copy_does_not_go_for_one_that_is_damaged() {
    let (place, caller) = (Place::new(), Caller::new(1));
    let (id, bytes, [first, second]) = doubled(&place, &caller);
    damage_frame(&place, &first[0], 200);
    assert_eq!(caller.read_back(&place.open(), id).unwrap(), bytes, "the other copy is read");
    let error = collect(&place.open(), &NOW, &caller.context()).unwrap_err();
    assert_eq!(error.class(), Class::Damage, "{error}");
    // And the other way round: what is damaged is not what would be kept.
    damage_frame(&place, &first[0], 200);
    damage_frame(&place, &second[0], 200);
    assert_eq!(caller.read_back(&place.open(), id).unwrap(), bytes, "the other copy is read");
    assert!(collect(&place.open(), &NOW, &caller.context()).unwrap().freed.count > 0);
    assert_eq!(caller.read_back(&place.open(), id).unwrap(), bytes);
    place.assert_clean(&caller);
}

/// A copy that was condemned by an earlier collection goes for one that is good now, and not before it is due.
#[test]
fn a_condemned_copy_does_not_go_for_one_that_was_damaged_since() {
    let (place, mut caller) = (Place::new(), Caller::new(1));
    let (id, bytes, [first, second]) = doubled(&place, &caller);
    assert_eq!(place.collect(HOUR, &caller).condemned.count, second.len() as u64);
    damage_frame(&place, &first[0], 200);
    place.collect(HOUR, &caller);
    caller.now_ms += 2 * HOUR.grace_ms;
    let error = collect(&place.open(), &HOUR, &caller.context()).unwrap_err();
    assert_eq!(error.class(), Class::Damage, "{error}");
    assert_eq!(caller.read_back(&place.open(), id).unwrap(), bytes, "it is read from the other copy");
}

#[test]
fn what_is_to_be_moved_and_is_damaged_is_told() {
    let (storage, caller) = (Memory::new(), Caller::new(1));
    memory_region(&storage, &RegionOptions { pack_bytes: 8 << 20, ..small_packs() });
    storage.take_all_for_gone(true);
    let open = || Region::open(Arc::new(storage.clone()), session()).unwrap();
    let whole = volume(3 << 20, 4);
    let part = MemoryDisk::new(whole[..400_000].to_vec());
    let first = caller.snapshot(&open(), &MemoryDisk::new(whole)).unwrap().snapshot.id;
    caller.snapshot(&open(), &part).unwrap();
    delete_snapshot(&open(), first, &caller.context()).unwrap();
    let pack = open().catalog().unwrap().packs.keys().next().unwrap().to_string();
    let mut bytes = read_whole(&storage, &pack, 1 << 24).unwrap();
    bytes[200] ^= 1;
    storage.restore(&pack, &bytes).unwrap();
    let error = collect(&open(), &NOW, &caller.context()).unwrap_err();
    assert_eq!(error.class(), Class::Damage, "{error}");
}

#[test]
fn a_merge_forgets_no_pack_that_it_cannot_read_now() {
    let (place, caller) = (Place::new(), Caller::new(1));
    let (id, bytes, [first, second]) = doubled(&place, &caller);
    let moved = move_away(&place, &second);
    fill(&place, &caller, 1);
    fill(&place, &caller, 2);
    for (path, aside) in moved {
        std::fs::rename(aside, path).unwrap();
    }
    place.assert_clean(&caller);
    move_away(&place, &first);
    assert_eq!(caller.read_back(&place.open(), id).unwrap(), bytes, "the other copy is still known");
}

#[test]
fn repair_takes_each_chunk_from_whichever_pack_has_it_intact() {
    let (place, caller) = (Place::new(), Caller::new(1));
    let (id, bytes, [first, second]) = doubled(&place, &caller);
    let len = std::fs::metadata(place.root().join(first[0].to_string())).unwrap().len() as usize;
    damage_frame(&place, &first[0], 200);
    damage_frame(&place, &second[0], len / 2);
    let repaired = repair(&place.open(), &RepairSources::default(), &caller.context()).unwrap();
    assert!(repaired.lost.is_empty() && repaired.quarantined.len() == 2, "{repaired:?}");
    place.assert_clean(&caller);
    place.collect(NOW, &caller);
    assert_eq!(caller.read_back(&place.open(), id).unwrap(), bytes);
    place.assert_clean(&caller);
}

/// A repair was interrupted when it had put two packs in quarantine: one has a frame damaged, the other its own index, so
/// that nobody knows that it has the chunk, too. It stays until that was moved, and no longer; also if it has damaged frames.
#[test]
fn a_damaged_pack_that_nobody_knows_the_content_of_stays_while_it_alone_has_it() {
    for case in 0..3 {
        let (place, caller) = (Place::new(), Caller::new(1));
        let (id, bytes, [first, second]) = doubled_in_few(&place, &caller);
        let len = std::fs::metadata(place.root().join(second[0].to_string())).unwrap().len() as usize;
        let is_frame_damaged = case > 0;
        if case == 1 {
            damage_frame(&place, &first[0], 200);
        } else if case == 2 {
            damage_frame(&place, &first[0], len / 10 * 9);
            damage_frame(&place, &second[0], 200);
        }
        damage_frame(&place, &second[0], len - 60);
        let damaged = [first[0], second[0]].into_iter().collect();
        place.open().quarantine(&damaged, caller.account, caller.now_ms).unwrap();
        let freed = second.len() as u64 - u64::from(is_frame_damaged);
        assert_eq!(preview(&place.open(), &NOW, &caller.context()).unwrap().freed.count, freed);
        // The first says what it holds, and stays for that.
        let mut unsaved =
            Amount { count: 1, bytes: place.open().catalog().unwrap().packs[&first[0]].record.len };
        if is_frame_damaged {
            unsaved.count += 1;
            unsaved.bytes += len as u64;
        }
        assert_eq!(preview(&place.open(), &NOW, &caller.context()).unwrap().unsaved, unsaved);
        assert_eq!(place.collect(NOW, &caller).unsaved, unsaved);
        assert_eq!(place.root().join(second[0].to_string()).exists(), is_frame_damaged);
        let repaired = repair(&place.open(), &RepairSources::default(), &caller.context()).unwrap();
        assert!(repaired.lost.is_empty() && repaired.moved > 0, "{repaired:?}");
        place.collect(NOW, &caller);
        assert_eq!(caller.read_back(&place.open(), id).unwrap(), bytes);
        assert!(!place.root().join(second[0].to_string()).exists());
        place.assert_clean(&caller);
    }
}

/// A copy that only a condemned pack has is stored again: that pack goes when its grace is over.
#[test]
fn repair_does_not_count_on_a_condemned_pack() {
    let (place, mut caller) = (Place::new(), Caller::new(1));
    let (id, bytes, [first, second]) = doubled(&place, &caller);
    place.collect(HOUR, &caller);
    let state = |pack: &PackName| place.open().catalog().unwrap().packs[pack].state;
    assert!(matches!(state(&second[0]), PackState::Condemned { .. }));
    let region = place.open();
    let mark = region.mark::<OpsError>(&HashSet::new(), || Ok(())).unwrap();
    let kept = mark.kept_packs();
    damage_frame(&place, &first[0], 200);
    let repaired = repair(&place.open(), &RepairSources::default(), &caller.context()).unwrap();
    assert!(repaired.lost.is_empty() && repaired.moved > 0, "{repaired:?}");
    // A collector that has marked before takes nothing by that mark any more.
    assert!(region.sweep(&mark, &kept, caller.account, |_, _| true).unwrap().is_empty());
    caller.now_ms += 2 * HOUR.grace_ms;
    place.collect(HOUR, &caller);
    assert_eq!(caller.read_back(&place.open(), id).unwrap(), bytes);
    place.assert_clean(&caller);
}

/// A snapshot in the bin has lost a pack. What nothing refers to goes all the same; what is left of it stays, until the
/// pack is found again and it is whole.
#[test]
fn what_is_left_of_a_damaged_snapshot_stays_and_the_rest_goes() {
    // The packs are listed by the trailers, or by a segment.
    for (pack_bytes, len, is_listed) in [(150 << 10, 4 << 20, false), (16 << 10, 16 << 20, true)] {
        let (place, caller) = (Place::new(), Caller::new(1));
        let root = place.0.path().join("other");
        let options = RegionOptions { pack_bytes, ..small_packs() };
        Region::create_directory(&root, &options, Place::options()).unwrap();
        let open = || Region::open_directory(&root, Place::options()).unwrap();
        let take = |bytes: &[u8]| {
            let disk = MemoryDisk::new(bytes.to_vec());
            caller.snapshot(&open(), &disk).unwrap().snapshot.id
        };
        let (kept, damaged) = (volume(400_000, 21), volume(len, 22));
        let [kept_id, damaged_id, garbage] = [&kept, &damaged, &volume(300_000, 23)].map(|bytes| take(bytes));
        delete_snapshot(&open(), garbage, &caller.context()).unwrap();
        bin::add_rule(&open(), Resource::Snapshot, 7, &[], &caller.context()).unwrap();
        delete_snapshot(&open(), damaged_id, &caller.context()).unwrap();
        let catalog = open().catalog().unwrap();
        let map = open().load_map(&catalog.binned_snapshots[&damaged_id].item.manifest).unwrap();
        let chunks: Vec<_> = map.chunks().iter().map(|chunk| chunk.id).collect();
        let packs: BTreeSet<PackName> =
            open().locate(&chunks).unwrap().iter().map(|(_, place)| place.pack).collect();
        let lost = *packs.first().unwrap();
        let is_in_segment = !catalog.segments.is_empty();
        assert!(
            packs.len() > 1 && is_in_segment == is_listed,
            "{} packs, {:?}",
            packs.len(),
            catalog.segments
        );
        let path = root.join(lost.to_string());
        let aside = path.with_extension("aside");
        std::fs::rename(&path, &aside).unwrap();
        let run = || collect(&open(), &NOW, &caller.context());
        assert_eq!(run().unwrap_err().class(), Class::Damage, "nobody knows that it is lost");
        let mended = || repair(&open(), &RepairSources::default(), &caller.context()).unwrap().lost;
        assert_eq!(mended().len(), 1);
        let dry = imgstore::ops::context::Context { dry_run: true, ..caller.context() };
        let said = collect(&open(), &NOW, &dry).unwrap();
        let done = run().unwrap();
        assert!(done.freed.count > 0 && done.orphans.count == 1, "{done:?}");
        assert_eq!((said.freed, said.lost), (done.freed, done.lost.clone()));
        assert_eq!(done.lost, [RootId::Snapshot(damaged_id)]);
        assert_eq!(run().unwrap().freed.count, 0);
        let there: BTreeSet<PackName> = open().catalog().unwrap().packs.keys().copied().collect();
        assert!(packs.is_subset(&there), "what is left of it stays, and what is lost stays on record");
        for pack in packs.iter().filter(|pack| **pack != lost) {
            assert!(root.join(pack.to_string()).exists());
        }
        assert_eq!(caller.read_back(&open(), kept_id).unwrap(), kept);
        // No pack goes that holds any of what is missing, whatever the index says.
        let region = open();
        let watch = || Ok::<_, OpsError>(());
        let mark = region.mark_despite(Losses::Accepted, &HashSet::new(), watch).unwrap();
        let strict = region.mark::<OpsError>(&HashSet::new(), watch);
        let strict = strict.and_then(|mark| region.check_kept(&mark, watch));
        assert!(strict.is_err(), "others than a collection do not go on");
        region.prove_unwanted(&mark, [lost], watch).unwrap();
        std::fs::rename(&aside, &path).unwrap();
        let error = region.prove_unwanted(&mark, [lost], watch).unwrap_err();
        assert!(error.to_string().contains("which the index does not find"), "{error}");
        drop(region);
        assert_eq!(mended(), []);
        bin::restore_snapshot(&open(), damaged_id, &caller.context()).unwrap();
        assert_eq!(caller.read_back(&open(), damaged_id).unwrap(), damaged);
        let done = run().unwrap();
        assert!(
            done.lost.is_empty() && done.freed.count > 0,
            "what was in quarantine is not needed: {done:?}"
        );
        assert_eq!(caller.read_back(&open(), damaged_id).unwrap(), damaged);
    }
}

/// Does something before the first pack goes.
struct BeforePacksGo {
    inner: Directory<OsFiles>,
    first: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl Storage for BeforePacksGo {
    fn open(&self, name: &str) -> Result<Arc<dyn Object>, StorageError> {
        self.inner.open(name)
    }

    fn delete(&self, name: &str) -> Result<(), StorageError> {
        let first = self.first.lock().unwrap().take_if(|_| name.starts_with("packs/"));
        if let Some(first) = first {
            first();
        }
        self.inner.delete(name)
    }

    pass_on!(create list restore persist admit_writer admit_collector is_writer_gone);
}

/// Both remove the same packs; one of them tells of each.
#[test]
fn of_two_collections_at_once_one_tells_of_each_pack() {
    let (caller, place) = (Caller::new(2), Place::new());
    let taken = place.snapshot(&caller, &volume(1 << 20, 1));
    let other = place.open();
    delete_snapshot(&other, taken, &caller.context()).unwrap();
    let packs: Vec<u64> = other.catalog().unwrap().packs.values().map(|pack| pack.record.len).collect();
    assert!(packs.len() > 3);
    let freed = Arc::new(Mutex::new(Amount::default()));
    let (told, second) = (freed.clone(), Caller::new(1));
    let first = move || *told.lock().unwrap() = collect(&other, &NOW, &second.context()).unwrap().freed;
    let (inner, session) = directory_storage(&place.root(), Place::options()).unwrap();
    let storage = BeforePacksGo { inner, first: Mutex::new(Some(Box::new(first))) };
    let region = Region::open(Arc::new(storage), session).unwrap();
    let mine = collect(&region, &NOW, &caller.context()).unwrap().freed;
    let others = *freed.lock().unwrap();
    assert_eq!(mine.count + others.count, packs.len() as u64, "{mine:?} {others:?}");
    assert_eq!(mine.bytes + others.bytes, packs.iter().sum::<u64>());
    assert!(others.count > 0 && region.catalog().unwrap().packs.is_empty());
}

/// Packs and block maps go and come back, or are damaged and then as they were; between that everybody collects, stores and
/// deletes. What was not deleted is whole at the end: no collection took anything that was still to be mended.
#[test]
fn what_may_come_back_is_not_collected() {
    let rounds = std::env::var("IMGSTORE_LOSS_ROUNDS").map_or(15, |n| n.parse().unwrap());
    let mut went_on = 0;
    for round in 0..rounds {
        let (mut draw, place, caller) = (Draw::new(round + 900), Place::new(), Caller::new(1));
        let mut bytes = volume(400_000, round);
        let mut alive: Vec<(SnapshotId, Vec<u8>)> = Vec::new();
        let mut take = |draw: &mut Draw, alive: &mut Vec<(SnapshotId, Vec<u8>)>| {
            // Some are much like the one before: stored as deltas.
            if draw.below(3) == 0 {
                bytes = volume(200_000 + draw.below(200_000), draw.next());
            }
            (0..6).for_each(|_| bytes[draw.below(200_000)] ^= 1);
            alive.push((place.snapshot(&caller, &bytes), bytes.clone()));
        };
        let delete = |draw: &mut Draw, alive: &mut Vec<(SnapshotId, Vec<u8>)>| {
            let (id, _) = alive.swap_remove(draw.below(alive.len()));
            delete_snapshot(&place.open(), id, &caller.context()).unwrap();
        };
        (0..6).for_each(|_| take(&mut draw, &mut alive));
        (0..2).for_each(|_| delete(&mut draw, &mut alive));
        let mend = || {
            let sources = RepairSources { force: true, ..RepairSources::default() };
            repair(&place.open(), &sources, &caller.context()).unwrap()
        };
        let catalog = place.open().catalog().unwrap();
        let mut names: Vec<String> = catalog.packs.keys().map(ToString::to_string).collect();
        if draw.below(5) == 0 {
            names.extend(catalog.roots().map(|root| root.manifest.name.to_string()));
        }
        let mut gone: Vec<(String, Vec<u8>)> = Vec::new();
        for _ in 0..1 + draw.below(3) {
            let name = names.swap_remove(draw.below(names.len()));
            let path = place.root().join(&name);
            let sound = std::fs::read(&path).unwrap();
            std::fs::remove_file(&path).unwrap();
            match draw.below(3) {
                0 => {}
                1 => std::fs::write(&path, &sound[..draw.below(sound.len())]).unwrap(),
                _ => {
                    let mut damaged = sound.clone();
                    damaged[draw.below(sound.len())] ^= 4;
                    std::fs::write(&path, damaged).unwrap();
                }
            }
            gone.push((name, sound));
        }
        mend();
        for _ in 0..6 {
            match draw.below(4) {
                0 => take(&mut draw, &mut alive),
                1 if alive.len() > 2 => delete(&mut draw, &mut alive),
                _ => match collect(&place.open(), &NOW, &caller.context()) {
                    Ok(collected) => went_on += usize::from(!collected.lost.is_empty()),
                    Err(error) => assert_eq!(error.class(), Class::Damage, "round {round}: {error}"),
                },
            }
        }
        for (name, sound) in gone {
            let path = place.root().join(&name);
            let _ = std::fs::remove_file(&path);
            // What nothing needs any more is forgotten, and would not be looked at.
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, sound).unwrap();
        }
        let repaired = mend();
        assert!(repaired.lost.is_empty(), "round {round}: {repaired:?}");
        for (id, bytes) in &alive {
            assert!(caller.read_back(&place.open(), *id).unwrap() == *bytes, "round {round}: {id}");
        }
        assert!(place.collect(NOW, &caller).lost.is_empty(), "round {round}");
        for (id, bytes) in &alive {
            assert!(caller.read_back(&place.open(), *id).unwrap() == *bytes, "round {round}: {id}");
        }
        place.assert_clean(&caller);
    }
    assert!(went_on > 0 || rounds < 10, "no collection went on beside a loss");
}

/// As long as a block map is lost nobody knows what to keep. It is said whose it is, and the way out is one.
#[test]
fn a_lost_block_map_is_named_with_the_way_out() {
    let (place, caller) = (Place::new(), Caller::new(1));
    let id = place.snapshot(&caller, &volume(300_000, 24));
    let rule = bin::add_rule(&place.open(), Resource::Snapshot, 7, &[], &caller.context()).unwrap();
    delete_snapshot(&place.open(), id, &caller.context()).unwrap();
    let name = place.open().catalog().unwrap().binned_snapshots[&id].item.manifest.name.to_string();
    std::fs::remove_file(place.root().join(&name)).unwrap();
    repair(&place.open(), &RepairSources::default(), &caller.context()).unwrap();
    let error = collect(&place.open(), &NOW, &caller.context()).unwrap_err();
    assert_eq!(error.class(), Class::Damage);
    for part in [format!("what {id}, which is in the recycle bin, needs"), name, format!("bin restore {id}")]
    {
        assert!(error.to_string().contains(&part), "{error}");
    }
    bin::restore_snapshot(&place.open(), id, &caller.context()).unwrap();
    bin::remove_rule(&place.open(), rule.id, &caller.context()).unwrap();
    let error = collect(&place.open(), &NOW, &caller.context()).unwrap_err();
    assert!(
        error.to_string().ends_with(&format!("delete it with `imgstore delete-snapshot {id}`")),
        "{error}"
    );
    delete_snapshot(&place.open(), id, &caller.context()).unwrap();
    assert!(place.collect(NOW, &caller).freed.count > 0);
}

#[test]
fn what_is_all_needed_is_not_rewritten_however_small() {
    let (place, caller) = (Place::new(), Caller::new(1));
    for seed in 0..5 {
        place.snapshot(&caller, &[seed + 1; 4096]);
    }
    for _ in 0..2 {
        assert_eq!(place.collect(NOW, &caller), Collected::default());
    }
}

/// Whatever the clock said when a pack was condemned: without grace it goes.
#[test]
fn a_clock_that_was_ahead_keeps_nothing_for_ever() {
    let (place, caller) = (Place::new(), Caller::new(1));
    let gone = place.snapshot(&caller, &volume(300_000, 31));
    delete_snapshot(&place.open(), gone, &caller.context()).unwrap();
    let ahead = Caller { now_ms: caller.now_ms * 10, ..Caller::new(1) };
    assert!(place.collect(HOUR, &ahead).condemned.count > 0);
    assert_eq!(place.collect(HOUR, &caller).freed.count, 0);
    assert!(place.collect(NOW, &caller).freed.count > 0);
}

/// Each writer has folders of its own, and whoever lists looks into all of them.
#[test]
fn empty_folders_of_writers_that_are_gone_go() {
    let (place, caller) = (Place::new(), Caller::new(1));
    let kept = place.snapshot(&caller, &volume(100_000, 32));
    let gone: Vec<SnapshotId> =
        (40..44).map(|seed| place.snapshot(&caller, &volume(100_000, seed))).collect();
    let at_work = place.open();
    caller.snapshot(&at_work, &MemoryDisk::new(volume(100_000, 45))).unwrap();
    for id in gone {
        delete_snapshot(&place.open(), id, &caller.context()).unwrap();
    }
    let folders = |kind: &str| std::fs::read_dir(place.root().join(kind)).unwrap().count();
    assert_eq!(folders("packs"), 6);
    let collected = place.collect(NOW, &caller);
    assert!(collected.freed.count > 0);
    assert_eq!((folders("packs"), folders("manifests")), (2, 2));
    // Who is at work goes on where it was.
    caller.snapshot(&at_work, &MemoryDisk::new(volume(100_000, 46))).unwrap();
    assert!(caller.read_back(&place.open(), kept).is_ok());
    place.assert_clean(&caller);
}

/// Somebody who takes a snapshot again and again while all that is needed is looked through.
struct Restless<'a> {
    place: &'a Place,
    content: fn(u64) -> Vec<u8>,
    looks: AtomicU64,
    taken: AtomicU64,
}

impl Progress for Restless<'_> {
    fn begin(&self, _: &'static str, _: u64) {}
    fn advance(&self, _: u64) {}
    fn note(&self, _: &str) {}
    fn is_cancelled(&self) -> bool {
        let taken = self.taken.load(Ordering::Relaxed);
        if self.looks.fetch_add(1, Ordering::Relaxed) >= taken {
            self.looks.store(0, Ordering::Relaxed);
            self.taken.fetch_add(1, Ordering::Relaxed);
            self.place.snapshot(&Caller::new(1), &(self.content)(taken));
        }
        false
    }
}

impl Restless<'_> {
    /// What a collection beside it comes to.
    fn collect(place: &Place, content: fn(u64) -> Vec<u8>) -> Collected {
        let caller = Caller::new(1);
        let restless = Restless { place, content, looks: AtomicU64::new(0), taken: AtomicU64::new(0) };
        let context = Context { progress: &restless, ..caller.context() };
        let collected = collect(&place.open(), &NOW, &context).unwrap();
        assert!(restless.taken.into_inner() > 0);
        collected
    }
}

/// What is new needs nothing of what goes.
#[test]
fn who_takes_snapshots_again_and_again_keeps_nothing_from_being_collected() {
    let (place, caller) = (Place::new(), Caller::new(1));
    let kept = place.snapshot(&caller, &volume(50_000, 34));
    let gone = place.snapshot(&caller, &volume(300_000, 33));
    delete_snapshot(&place.open(), gone, &caller.context()).unwrap();
    let collected =
        Restless::collect(&place, |taken| [volume(9000, 34), vec![taken as u8 + 1; 5000]].concat());
    assert!(!collected.given_up && collected.freed.count > 0, "{collected:?}");
    assert!(caller.read_back(&place.open(), kept).unwrap() == volume(50_000, 34));
    place.assert_clean(&caller);
}

/// What is new is always just what was to go.
#[test]
fn a_collection_that_gives_up_says_so() {
    let (place, caller) = (Place::new(), Caller::new(1));
    let content = |number: u64| volume(20_000, 100 + number);
    for number in 0..80 {
        let gone = place.snapshot(&caller, &content(number));
        delete_snapshot(&place.open(), gone, &caller.context()).unwrap();
    }
    let collected = Restless::collect(&place, |taken| volume(20_000, 100 + taken));
    assert!(collected.given_up && collected.freed.count == 0, "{collected:?}");
    place.assert_clean(&caller);
    let collected = place.collect(NOW, &caller);
    assert!(!collected.given_up && collected.freed.count > 0, "{collected:?}");
}

/// What the end of a stay in the bin frees is in the preview, as in the collection.
#[test]
fn a_preview_counts_what_leaves_the_bin() {
    let place = Place::new();
    let mut caller = Caller::new(1);
    bin::add_rule(&place.open(), Resource::Snapshot, 1, &[], &caller.context()).unwrap();
    let id = place.snapshot(&caller, &volume(300_000, 1));
    place.snapshot(&caller, &volume(200_000, 2));
    delete_snapshot(&place.open(), id, &caller.context()).unwrap();
    let now = GcOptions { grace_ms: 0, repack_percent: 50 };
    assert_eq!(place.collect(now, &caller).freed.count, 0, "it can be restored");
    caller.now_ms += 2 * 86_400_000;
    for grace_ms in [3_600_000, 0] {
        let options = GcOptions { grace_ms, ..now };
        let previewed = preview(&place.open(), &options, &caller.context()).unwrap();
        let done = place.collect(options, &caller);
        assert_eq!(previewed.expired, done.expired);
        assert_eq!(
            (previewed.condemned, previewed.freed),
            (done.condemned, done.freed),
            "{previewed:?} {done:?}"
        );
        assert_eq!((previewed.orphans, previewed.waiting), (done.orphans, done.waiting));
        if grace_ms > 0 {
            assert!(done.expired == 1 && done.condemned.count > 0 && done.orphans.count > 0, "{done:?}");
        } else {
            assert!(done.freed.count > 0, "{done:?}");
        }
    }
}

/// A pack has a damaged frame, and nobody has what is lost with it: it stays for what else it holds until its snapshot goes, and
/// is not told to be freed at any time.
#[test]
fn a_damaged_pack_that_is_needed_is_not_told_to_go() {
    let (storage, caller) = (Memory::new(), Caller::new(1));
    let region = memory_region(&storage, &small_packs());
    let taken = caller.snapshot(&region, &MemoryDisk::new(volume(40_000, 1))).unwrap().snapshot;
    let name = region.catalog().unwrap().packs.keys().next().unwrap().to_string();
    let mut bytes = read_whole(&storage, &name, 1 << 24).unwrap();
    bytes[200..260].fill(0x55);
    storage.delete(&name).unwrap();
    storage.restore(&name, &bytes).unwrap();
    let region = Region::open(Arc::new(storage.clone()), session()).unwrap();
    let repaired = repair(&region, &RepairSources::default(), &caller.context()).unwrap();
    assert!(repaired.lost.len() == 1 && repaired.quarantined.len() == 1, "{repaired:?}");
    let now = GcOptions { grace_ms: 0, repack_percent: 50 };
    let asked = Context { dry_run: true, ..caller.context() };
    for context in [asked, caller.context()] {
        let collected = collect(&region, &now, &context).unwrap();
        assert_eq!((collected.unsaved.count, collected.waiting.count, collected.freed.count), (1, 0, 0));
    }
    delete_snapshot(&region, taken.id, &caller.context()).unwrap();
    let freed: u64 = (0..2).map(|_| collect(&region, &now, &caller.context()).unwrap().freed.count).sum();
    assert!(freed >= 1 && region.catalog().unwrap().packs.is_empty());
}
