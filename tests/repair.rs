//! Repair: whatever is damaged in a region is made whole from wherever it can be had, or it is said exactly what is lost.

mod common;

use common::{Caller, Draw, MemoryDisk, alike, memory_region, session, small_packs, volume};
use imgstore::disk::{DiskError, DiskRead, Extent};
use imgstore::io::directory::DirectoryOptions;
use imgstore::io::memory::Memory;
use imgstore::io::storage::Storage;
use imgstore::model::catalog::RootId;
use imgstore::model::ids::{SessionId, SnapshotId};
use imgstore::model::objects::{PackRecord, PackState};
use imgstore::model::op::Op;
use imgstore::ops::copy::{CopyOptions, CopyWhat, apply, plan};
use imgstore::ops::delete::delete_snapshot;
use imgstore::ops::error::{Class, OpsError};
use imgstore::ops::find::AnyId;
use imgstore::ops::gaps::Gaps;
use imgstore::ops::gc::{GcOptions, collect};
use imgstore::ops::repair::{Lost, RepairSources, Repaired, repair};
use imgstore::ops::stats::{item_stats, region_stats};
use imgstore::ops::verify::{Report, VerifyOptions, verify};
use imgstore::region::error::RegionError;
use imgstore::region::mend::Mended;
use imgstore::region::{Region, RegionOptions};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A region with two snapshots that share content, and a second region with copies of both.
struct Two {
    folder: tempfile::TempDir,
    caller: Caller,
    taken: Vec<(SnapshotId, Vec<u8>)>,
}

fn directory() -> DirectoryOptions {
    DirectoryOptions { reserve_bytes: 0, map: false }
}

impl Two {
    fn new(options: &RegionOptions) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let caller = Caller::new(2);
        for name in ["here", "there"] {
            Region::create_directory(&folder.path().join(name), options, directory()).unwrap();
        }
        let mut two = Self { folder, caller, taken: Vec::new() };
        let first = volume(2_500_000, 1);
        let second = [&first[..300_000], &volume(200_001, 2)].concat();
        for bytes in [first, second] {
            let disk = MemoryDisk::new(bytes.clone());
            let id = two.caller.snapshot(&two.here(), &disk).unwrap().snapshot.id;
            two.copy(id);
            two.taken.push((id, bytes));
        }
        two
    }

    /// With files of every kind: so many packs that there is a segment, so many records that there is a checkpoint, and a list.
    fn with_all_kinds() -> Self {
        let mut two = Self::new(&small_packs());
        for number in 0..70 {
            let bytes = volume(9_000, 100 + number);
            let id = two.caller.snapshot(&two.here(), &MemoryDisk::new(bytes.clone())).unwrap().snapshot.id;
            two.copy(id);
            two.taken.push((id, bytes));
        }
        let fenced = [Op::FenceSessions { sessions: (0..20_000).map(session_number).collect() }];
        two.here().commit::<_, RegionError>(two.caller.account, |_| Ok((fenced.to_vec(), ()))).unwrap();
        for kind in ["index", "checkpoints", "lists"] {
            assert!(!two.files(kind).is_empty(), "{kind}, {} packs", two.files("packs").len());
        }
        assert!(two.is_clean());
        two
    }

    /// The same again, in another place.
    fn copied(&self) -> Self {
        fn copy(from: &Path, to: &Path) {
            fs::create_dir_all(to).unwrap();
            for entry in fs::read_dir(from).unwrap().map(|entry| entry.unwrap()) {
                let to = to.join(entry.file_name());
                if entry.path().is_dir() {
                    copy(&entry.path(), &to)
                } else {
                    {
                        fs::copy(entry.path(), &to).unwrap();
                    }
                }
            }
        }
        let folder = tempfile::tempdir().unwrap();
        copy(self.folder.path(), folder.path());
        Self { folder, caller: Caller::new(2), taken: self.taken.clone() }
    }

    /// Whether a check finds something. If it does not, everything is there and reads as it was; wrong bytes come never.
    fn finds_or_reads_all(&self, what: &str) -> bool {
        let Ok(region) = Region::open_directory(&self.root(), directory()) else { return true };
        let report = verify(&region, &VerifyOptions::default(), &self.caller.context()).unwrap();
        let found = !report.findings.is_empty();
        for (id, bytes) in &self.taken {
            match self.caller.read_back(&region, *id) {
                Ok(read) => assert!(read == *bytes, "{what}: wrong bytes"),
                Err(error) => assert!(found, "{what}: nothing was found, and {id} cannot be read: {error}"),
            }
        }
        found
    }

    fn copy(&self, id: SnapshotId) {
        let (options, context) = (CopyOptions::default(), self.caller.context());
        let plan = plan(&self.here(), &self.there(), CopyWhat::Snapshot(id), &options, &context).unwrap();
        apply(&self.here(), &self.there(), &plan, &options, &context).unwrap();
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("here")
    }

    fn here(&self) -> Region {
        Region::open_directory(&self.root(), directory()).unwrap()
    }

    fn there(&self) -> Region {
        Region::open_directory(&self.folder.path().join("there"), directory()).unwrap()
    }

    fn disks(&self, which: &[usize]) -> Vec<Box<dyn DiskRead>> {
        let disk = |at: &usize| Box::new(MemoryDisk::new(self.taken[*at].1.clone())) as Box<dyn DiskRead>;
        which.iter().map(disk).collect()
    }

    fn repair(&self, regions: &[Region], disks: &[Box<dyn DiskRead>]) -> Repaired {
        repair(&self.here(), &RepairSources { regions, disks, force: true }, &self.caller.context()).unwrap()
    }

    fn files(&self, folder: &str) -> Vec<PathBuf> {
        let listed = self.here().objects().unwrap();
        let of_folder = listed.iter().filter(|object| object.name.starts_with(&format!("{folder}/")));
        of_folder.map(|object| self.root().join(&object.name)).collect()
    }

    fn is_clean(&self) -> bool {
        let report = verify(&self.here(), &VerifyOptions::default(), &self.caller.context()).unwrap();
        report.findings.is_empty()
    }

    fn largest_pack(&self) -> PathBuf {
        self.files("packs").into_iter().max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap()
    }

    /// All is as it was, and stays so when what is in quarantine was collected.
    fn assert_whole(&self, what: &str) {
        for round in ["repaired", "collected"] {
            assert!(self.is_clean(), "{what}, {round}");
            for (id, bytes) in &self.taken {
                assert!(self.caller.read_back(&self.here(), *id).unwrap() == *bytes, "{what}, {round}: {id}");
            }
            let options = GcOptions { grace_ms: 0, repack_percent: 50 };
            collect(&self.here(), &options, &self.caller.context()).unwrap();
        }
        let left = self.here().catalog().unwrap();
        assert!(left.packs.values().all(|pack| pack.state.as_str() == "live"), "{what}");
    }
}

/// Changes a sealed file, as bad hardware does.
fn damage(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    use std::os::unix::fs::PermissionsExt;
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(path, bytes).unwrap();
}

#[test]
fn every_kind_of_damage_is_mended_from_another_region() {
    type Harm = (&'static str, fn(&Two));
    let harms: [Harm; 9] = [
        ("a flipped bit in each pack", |two| {
            for path in two.files("packs") {
                damage(&path, |bytes| {
                    let middle = bytes.len() / 2;
                    bytes[middle] ^= 4;
                });
            }
        }),
        ("packs cut short", |two| {
            two.files("packs").iter().for_each(|path| damage(path, |b| b.truncate(9000)))
        }),
        ("packs that are gone", |two| {
            two.files("packs").iter().for_each(|path| fs::remove_file(path).unwrap())
        }),
        ("trailers that are damaged", |two| {
            two.files("packs").iter().for_each(|path| {
                damage(path, |bytes| {
                    let at = bytes.len() - 100;
                    bytes[at] ^= 1;
                });
            });
        }),
        ("headers that are damaged", |two| {
            two.files("packs").iter().for_each(|p| damage(p, |bytes| bytes[20] ^= 1))
        }),
        ("packs that are each other", |two| {
            let packs = two.files("packs");
            let (first, second) = (fs::read(&packs[0]).unwrap(), fs::read(&packs[1]).unwrap());
            damage(&packs[0], |bytes| *bytes = second);
            damage(&packs[1], |bytes| *bytes = first);
        }),
        ("block maps", |two| two.files("manifests").iter().for_each(|path| damage(path, |b| b[70] ^= 1))),
        ("block maps that are gone", |two| {
            two.files("manifests").iter().for_each(|p| fs::remove_file(p).unwrap())
        }),
        ("block maps and packs", |two| {
            two.files("manifests").iter().for_each(|path| fs::remove_file(path).unwrap());
            two.files("packs").iter().for_each(|path| damage(path, |bytes| bytes[500] ^= 1));
        }),
    ];
    for (what, harm) in harms {
        let two = Two::new(&small_packs());
        assert!(two.files("packs").len() > 3 && two.is_clean());
        harm(&two);
        assert!(!two.is_clean(), "{what} is found");
        let repaired = two.repair(&[two.there()], &[]);
        assert!(repaired.lost.is_empty() && !repaired.findings.is_empty(), "{what}: {repaired:?}");
        two.assert_whole(what);
        assert!(two.repair(&[], &[]).findings.is_empty(), "{what}: a second repair finds nothing");
    }
}

#[test]
fn what_is_intact_in_a_damaged_pack_is_moved() {
    let two = Two::new(&RegionOptions { pack_bytes: 8 << 20, ..small_packs() });
    damage(&two.largest_pack(), |bytes| bytes[200] ^= 1);
    let frames = two.here().catalog().unwrap().packs.values().map(|pack| pack.record.frames).max().unwrap();
    let repaired = two.repair(&[two.there()], &[]);
    assert_eq!((repaired.fetched, repaired.quarantined.len()), (1, 1), "{repaired:?}");
    assert!(repaired.moved > 3 && repaired.moved < u64::from(frames), "{repaired:?} of {frames}");
    two.assert_whole("one frame");
    // The pack's own index is gone: its frames are told apart without it.
    let two = Two::new(&RegionOptions { pack_bytes: 8 << 20, ..small_packs() });
    for path in two.files("packs") {
        damage(&path, |bytes| {
            let end = bytes.len() - 10;
            bytes[end] ^= 1;
        });
    }
    let repaired = two.repair(&[], &[]);
    assert!(repaired.lost.is_empty() && repaired.moved > 5 && repaired.fetched == 0, "{repaired:?}");
    two.assert_whole("indexes of packs");
}

#[test]
fn what_is_lost_is_told_by_its_bytes_and_mended_by_the_disk() {
    let two = Two::new(&RegionOptions { pack_bytes: 8 << 20, ..small_packs() });
    damage(&two.largest_pack(), |bytes| bytes[200] ^= 1);
    let dry = imgstore::ops::context::Context { dry_run: true, ..two.caller.context() };
    let sequence = two.here().catalog().unwrap().sequence;
    let said = repair(&two.here(), &RepairSources::default(), &dry).unwrap();
    assert!(!said.findings.is_empty() && two.here().catalog().unwrap().sequence == sequence);
    let repaired = two.repair(&[], &[]);
    assert!(!repaired.lost.is_empty());
    for lost in &repaired.lost {
        let RootId::Snapshot(id) = lost.root else { panic!("{lost:?}") };
        let (_, bytes) = two.taken.iter().find(|(taken, _)| *taken == id).unwrap();
        let [range] = lost.ranges.as_slice() else { panic!("one chunk is lost: {lost:?}") };
        // What the pack began with stands in the volume where it is said to be lost.
        assert!(range.start < range.end && range.end <= bytes.len() as u64 && range.start % 4096 == 0);
    }
    let again = two.repair(&[], &[]);
    assert_eq!(again.lost, repaired.lost, "it stays lost");
    assert!(!two.is_clean(), "a check says so, too, although what is damaged is in quarantine");
    let options = GcOptions { grace_ms: 0, repack_percent: 50 };
    let collected = collect(&two.here(), &options, &two.caller.context()).unwrap();
    assert_eq!(collected.freed.count, 0, "what is in quarantine may be all that is left");
    // The first disk has all that the second shares with it.
    let repaired = two.repair(&[], &two.disks(&[0]));
    assert!(repaired.lost.is_empty() && repaired.reread > 0, "{repaired:?}");
    two.assert_whole("from the disk");

    let two = Two::new(&small_packs());
    two.files("manifests").iter().for_each(|path| fs::remove_file(path).unwrap());
    two.files("packs").iter().for_each(|path| fs::remove_file(path).unwrap());
    let asked = repair(&two.here(), &RepairSources::default(), &two.caller.context()).unwrap_err();
    assert!(asked.to_string().contains("mounted"), "{asked}");
    let repaired = two.repair(&[], &[]);
    assert_eq!(repaired.lost.len(), 2);
    assert_eq!(repaired.lost[0].ranges.len(), 1, "the whole volume");
    let repaired = two.repair(&[], &two.disks(&[1, 0]));
    assert!(repaired.lost.is_empty() && repaired.manifests == 2, "{repaired:?}");
    two.assert_whole("everything from disks");
    // Without what is lost the rest can be collected.
    let two = Two::new(&small_packs());
    two.files("packs").iter().for_each(|path| fs::remove_file(path).unwrap());
    two.repair(&[], &[]);
    for (id, _) in &two.taken {
        delete_snapshot(&two.here(), *id, &two.caller.context()).unwrap();
    }
    assert!(collect(&two.here(), &options, &two.caller.context()).unwrap().freed.count > 0);
    assert!(two.is_clean());
}

/// A disk that nothing was taken of gives nothing and leaves nothing; of one that is like a lost one only what is missing is
/// taken.
#[test]
fn of_a_disk_only_what_is_missing_is_stored() {
    let two = Two::new(&RegionOptions { pack_bytes: 8 << 20, ..small_packs() });
    damage(&two.largest_pack(), |bytes| bytes[200] ^= 1);
    let lost = two.repair(&[], &[]).lost;
    assert!(!lost.is_empty());
    let names = || two.here().objects().unwrap().into_iter().map(|o| (o.name, o.len)).collect::<Vec<_>>();
    let before = names();
    let foreign = || Box::new(MemoryDisk::new(volume(2_000_000, 77))) as Box<dyn DiskRead>;
    let repaired = two.repair(&[], &[foreign()]);
    assert_eq!((repaired.foreign_disks, repaired.lost, repaired.stored_bytes), (vec![0], lost, 0));
    assert_eq!(names(), before, "it leaves nothing behind");
    // The right disk with much behind it that was never stored.
    let longer = [two.taken[0].1.clone(), volume(2_000_000, 78)].concat();
    let disks = [foreign(), Box::new(MemoryDisk::new(longer)), foreign()];
    let repaired = two.repair(&[], &disks);
    assert!(repaired.lost.is_empty() && repaired.foreign_disks == [0], "{repaired:?}");
    assert!(repaired.reread == 1 && repaired.stored_bytes < 100_000, "one chunk was lost: {repaired:?}");
    two.assert_whole("from a longer disk");
    // Block maps are known by their disks, and what they want is taken then.
    two.files("manifests").iter().for_each(|path| fs::remove_file(path).unwrap());
    two.files("packs").iter().for_each(|path| fs::remove_file(path).unwrap());
    let [second] = &mut two.disks(&[1])[..] else { panic!("one disk") };
    let disks = [foreign(), std::mem::replace(second, foreign())];
    let repaired = two.repair(&[], &disks);
    assert_eq!((repaired.manifests, repaired.lost.len(), &repaired.foreign_disks[..]), (1, 1, &[0][..]));
    assert_eq!(two.caller.read_back(&two.here(), two.taken[1].0).unwrap(), two.taken[1].1);
    assert!(two.repair(&[], &two.disks(&[0])).lost.is_empty());
    two.assert_whole("from both disks");
}

/// A disk of which some places cannot be read; of others it is not known what they are.
struct Torn {
    disk: MemoryDisk,
    unreadable: Vec<Range<u64>>,
    unknown: Range<u64>,
}

impl Torn {
    fn failed(&self, range: Range<u64>) -> Result<(), DiskError> {
        let (path, action, source) = ("torn".into(), "read", std::io::Error::other("a bad place"));
        let bad = self.unreadable.iter().any(|bad| bad.start < range.end && range.start < bad.end);
        if bad { Err(DiskError::Io { action, path, offset: range.start, source }) } else { Ok(()) }
    }
}

impl DiskRead for Torn {
    fn len_bytes(&self) -> u64 {
        self.disk.len_bytes()
    }

    fn extent_at(&self, offset: u64) -> Result<Extent, DiskError> {
        if self.unknown.contains(&offset) {
            return Err(DiskError::Shrank { path: "torn".into(), expected: 1, found: 0 });
        }
        // Data everywhere up to there, as of a disk without holes.
        let end = if offset < self.unknown.start { self.unknown.start } else { self.len_bytes() };
        Ok(Extent { start: offset, end, is_zero: false })
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        self.failed(offset..offset + buffer.len() as u64)?;
        self.disk.read_at(offset, buffer)
    }
}

/// What lies before, between and behind the places that cannot be read is taken, and the next disk is read, too.
#[test]
fn places_that_cannot_be_read_are_stepped_over() {
    let (bad, unknown) = (vec![700_000..700_001, 1_200_000..1_250_000], 2_000_000 / 4096 * 4096..2_040_000);
    let torn = |bytes: &[u8]| {
        let disk = MemoryDisk { bytes: bytes.to_vec(), hole_blocks: 0 };
        Box::new(Torn { disk, unreadable: bad.clone(), unknown: unknown.clone() }) as Box<dyn DiskRead>
    };
    let lose = |two: &Two| two.files("packs").iter().for_each(|path| fs::remove_file(path).unwrap());
    let two = Two::new(&small_packs());
    lose(&two);
    let (id, bytes) = &two.taken[0];
    let repaired = two.repair(&[], &[torn(bytes)]);
    let [(0, why)] = &repaired.unread_disks[..] else { panic!("{repaired:?}") };
    assert!(why.contains("a bad place") && repaired.foreign_disks.is_empty(), "{why}");
    let lost = repaired.lost.iter().find(|lost| lost.root == RootId::Snapshot(*id)).unwrap();
    // A few chunks around each of them, and what is left out at once.
    let near = 200_000;
    let around: Vec<Range<u64>> =
        bad.iter().chain([&unknown]).map(|bad| bad.start.saturating_sub(near)..bad.end + near).collect();
    for range in &lost.ranges {
        assert!(around.iter().any(|near| near.start <= range.start && range.end <= near.end), "{range:?}");
    }
    assert!(
        bad.iter().all(|bad| lost.ranges.iter().any(|lost| lost.start < bad.end && bad.start < lost.end))
    );
    // The rest is from a disk behind it, and of the first only what it has.
    let again = two.repair(&[], &[torn(bytes), two.disks(&[0]).remove(0), two.disks(&[1]).remove(0)]);
    assert!(again.lost.is_empty() && again.unread_disks.len() == 1, "{again:?}");
    two.assert_whole("from a torn disk and others");
    // A block map is never made of such a disk, and one that fails everywhere comes to its end.
    let two = Two::new(&small_packs());
    two.files("manifests").iter().for_each(|path| fs::remove_file(path).unwrap());
    let nothing = Torn {
        disk: MemoryDisk::new(vec![0; 300 << 20]),
        unreadable: std::iter::once(0..u64::MAX).collect(),
        unknown: u64::MAX..u64::MAX,
    };
    let repaired = two.repair(&[], &[torn(&two.taken[0].1), Box::new(nothing), two.disks(&[0]).remove(0)]);
    assert_eq!((repaired.manifests, repaired.lost.len(), repaired.unread_disks.len()), (1, 1, 2));
    assert!(two.repair(&[], &two.disks(&[1])).lost.is_empty());
    two.assert_whole("block maps");
}

/// With more than one pack gone, and more than half of them, a disk may not be mounted: repair asks first.
#[test]
fn repair_asks_when_most_packs_are_gone() {
    let cases = [(1, 1, false), (2, 1, false), (4, 2, false), (2, 2, true), (3, 2, true), (7, 4, true)];
    for (total, missing, is_asked) in cases {
        let (storage, caller) = (Memory::new(), Caller::new(1));
        let region = memory_region(&storage, &small_packs());
        for number in 1..=total {
            let disk = MemoryDisk::new(vec![u8::try_from(number).unwrap(); 4096]);
            caller.snapshot(&region, &disk).unwrap();
        }
        let packs: Vec<String> = region.catalog().unwrap().packs.keys().map(ToString::to_string).collect();
        assert_eq!(packs.len(), total);
        packs[..missing].iter().for_each(|pack| storage.delete(pack).unwrap());
        let done = repair(&region, &RepairSources::default(), &caller.context());
        let asked = imgstore::ops::context::Context { dry_run: true, ..caller.context() };
        let asked = repair(&region, &RepairSources::default(), &asked);
        assert_eq!(asked.is_err(), done.is_err(), "{asked:?}");
        match done {
            Err(OpsError::MostlyMissing { missing: told, total: of }) => {
                assert!(is_asked && (told, of) == (missing, total), "{missing} of {total}: {told} of {of}");
            }
            done => assert!(!is_asked && done.unwrap().lost.len() == missing, "{missing} of {total}"),
        }
        let sources = RepairSources { force: true, ..RepairSources::default() };
        assert_eq!(repair(&region, &sources, &caller.context()).unwrap().lost.len(), missing);
        // What was given up does not count among those that are there.
        for number in 200..203 {
            caller.snapshot(&region, &MemoryDisk::new(vec![number; 4096])).unwrap();
        }
        let live: Vec<String> = (region.catalog().unwrap().packs.values())
            .filter(|pack| pack.state == PackState::Live)
            .map(|pack| pack.record.name.to_string())
            .collect();
        live.iter().for_each(|pack| storage.delete(pack).unwrap());
        match repair(&region, &RepairSources::default(), &caller.context()) {
            Err(OpsError::MostlyMissing { missing: told, total: of }) => {
                assert_eq!((told, of), (live.len(), live.len()));
            }
            done => panic!("{done:?}"),
        }
    }
}

#[test]
fn caches_are_made_anew() {
    let two = Two::new(&small_packs());
    // Enough for segments and checkpoints.
    for seed in 0..70 {
        let disk = MemoryDisk::new(volume(20_000, 100 + seed));
        two.caller.snapshot(&two.here(), &disk).unwrap();
    }
    for folder in ["index", "checkpoints"] {
        let files = two.files(folder);
        assert!(!files.is_empty(), "{folder}");
        for path in &files {
            let middle = fs::metadata(path).unwrap().len() as usize / 2;
            damage(path, |bytes| bytes[middle] ^= 1);
        }
        assert!(!two.is_clean());
        let repaired = two.repair(&[], &[]);
        assert!(repaired.caches > 0 && repaired.lost.is_empty(), "{folder}: {repaired:?}");
        assert!(two.is_clean(), "{folder}");
    }
    two.files("index").iter().for_each(|path| fs::remove_file(path).unwrap());
    assert!(!two.is_clean(), "a segment that is gone is found");
    assert!(two.repair(&[], &[]).caches > 0 && two.is_clean());
    for (id, bytes) in &two.taken {
        assert!(two.caller.read_back(&two.here(), *id).unwrap() == *bytes);
    }
}

/// Sectors that read as zeros or noise, truncations, swapped and missing files, a thousand times: found or harmless, and
/// mended from the second region.
#[test]
fn random_losses_are_mended() {
    let rounds = std::env::var("IMGSTORE_LOSS_ROUNDS").map_or(12, |n| n.parse().unwrap());
    let whole = Two::with_all_kinds();
    let kinds = ["region", "log", "twins", "lists", "checkpoints", "index", "packs", "manifests"];
    let mut harmed: BTreeMap<&str, [usize; 2]> = BTreeMap::new();
    for round in 0..rounds {
        let mut draw = Draw::new(round);
        let two = whole.copied();
        let mut touched = BTreeSet::new();
        for _ in 0..1 + draw.below(4) {
            // Each kind as often as the others.
            let kind = kinds[draw.below(kinds.len())];
            let names = names_in(&two.root(), kind);
            if names.is_empty() {
                continue;
            }
            let [name, other] = [0; 2].map(|_: i32| names[draw.below(names.len())].clone());
            let (harm, noise) = (draw.below(6), draw.next() as u8);
            let swapped = (harm == 0 && other != name).then_some(other);
            // An object and its twin are not lost at once.
            let of = |name: &str| name.strip_prefix("twins/").unwrap_or(name).to_owned();
            let meant: Vec<String> =
                [Some(&name), swapped.as_ref()].into_iter().flatten().map(|n| of(n)).collect();
            if meant.iter().any(|name| touched.contains(name)) {
                continue;
            }
            touched.extend(meant);
            harmed.entry(kind).or_default()[0] += 1;
            let path = two.root().join(&name);
            let at = |bytes: &[u8], draw: &mut Draw| {
                let start = draw.below(bytes.len()) / 512 * 512;
                start..(start + 512).min(bytes.len())
            };
            match (harm, swapped) {
                (_, Some(other)) => {
                    let other = two.root().join(other);
                    let (first, second) = (fs::read(&path).unwrap(), fs::read(&other).unwrap());
                    damage(&path, |bytes| *bytes = second);
                    damage(&other, |bytes| *bytes = first);
                }
                (0 | 1, None) => fs::remove_file(&path).unwrap(),
                (2, None) => damage(&path, |bytes| bytes.truncate(draw.below(bytes.len()))),
                (3, None) => damage(&path, |bytes| {
                    let sector = at(bytes, &mut draw);
                    bytes[sector].fill(0);
                }),
                (4, None) => damage(&path, |bytes| bytes.extend_from_slice(&[noise; 512])),
                _ => damage(&path, |bytes| {
                    let sector = at(bytes, &mut draw);
                    bytes[sector].iter_mut().for_each(|byte| *byte = byte.wrapping_mul(3) ^ noise | 1);
                }),
            }
        }
        let what = format!("round {round}, {touched:?}");
        let found = two.finds_or_reads_all(&what);
        for name in &touched {
            let kind = kinds.iter().find(|kind| name.starts_with(**kind)).unwrap();
            harmed.entry(kind).or_default()[1] += usize::from(found);
        }
        mend(&two.root(), false);
        let repaired = two.repair(&[two.there()], &[]);
        assert!(repaired.lost.is_empty(), "{what}: {repaired:?}");
        two.assert_whole(&what);
    }
    println!("{rounds} rounds, [harmed, in rounds with findings]: {harmed:?}");
    assert!(kinds.iter().all(|kind| rounds < 60 || harmed[kind][0] > 1), "{harmed:?}");
}

/// The names of the files of a kind in a region's folder.
fn names_in(root: &Path, kind: &str) -> Vec<String> {
    let (mut folders, mut names) = (vec![root.join(kind)], Vec::new());
    while let Some(path) = folders.pop() {
        if path.is_dir() {
            folders.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.exists() {
            names.push(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned());
        }
    }
    names.sort();
    names
}

/// Every object that the log consists of is damaged in turn, beyond what its twin knows nothing of.
#[test]
fn the_log_and_the_region_file_come_back_from_their_twins() {
    let two = Two::new(&small_packs());
    // A record that is so long that it has a list: tags of many snapshots would do, many packs do, too.
    let region = two.here();
    let long: Vec<Op> = vec![Op::FenceSessions { sessions: (0..20_000).map(session_number).collect() }];
    region.commit::<_, RegionError>(two.caller.account, |_| Ok((long.clone(), ()))).unwrap();
    let mut objects = two.files("log");
    objects.extend(two.files("lists"));
    objects.push(two.root().join("region"));
    assert!(objects.len() > 6 && !two.files("lists").is_empty(), "{objects:?}");
    let mend = |dry_run| mend(&two.root(), dry_run);
    assert_eq!(mend(false), Mended::default(), "all is well");
    type Harm = (&'static str, fn(&Path));
    let harms: [Harm; 4] = [
        ("flipped", |path| damage(path, |bytes| bytes[30] ^= 2)),
        ("cut", |path| damage(path, |bytes| bytes.truncate(40))),
        ("gone", |path| fs::remove_file(path).unwrap()),
        ("another's", |path| damage(path, |bytes| *bytes = vec![0; 512])),
    ];
    for path in &objects {
        let before = fs::read(path).unwrap();
        let name = path.strip_prefix(two.root()).unwrap().to_string_lossy().into_owned();
        for (what, harm) in &harms {
            harm(path);
            let opened = Region::open_directory(&two.root(), directory());
            let seen = opened.is_err() || !two.is_clean();
            assert!(seen, "{name} {what} is found, even at the end of the log");
            assert_eq!(mend(true).restored, std::slice::from_ref(&name));
            assert!(fs::read(path).map_or(true, |bytes| bytes != before), "a dry run changes nothing");
            assert_eq!(mend(false), Mended { restored: vec![name.clone()], ..Mended::default() }, "{what}");
            assert!(fs::read(path).unwrap() == before, "{name} {what}");
        }
        // What is damaged in both is left alone, and the rest of the log is not touched.
        let twin = two.root().join("twins").join(&name);
        damage(&twin, |bytes| bytes[30] ^= 2);
        damage(path, |bytes| bytes[30] ^= 2);
        assert_eq!(mend(false), Mended::default(), "{name}");
        fs::remove_file(path).unwrap();
        fs::write(path, &before).unwrap();
        assert_eq!(mend(false), Mended { twins: 1, ..Mended::default() }, "{name}: the twin is made anew");
        assert!(fs::read(&twin).unwrap() == before);
    }
    two.assert_whole("the log");
}

fn mend(root: &Path, dry_run: bool) -> Mended {
    Region::mend_directory::<RegionError>(root, directory(), dry_run, || Ok(())).unwrap()
}

/// Puts a file in the place of a twin.
fn replace_twin(root: &Path, name: &Path, bytes: &[u8]) {
    let twin = root.join("twins").join(name);
    fs::remove_file(&twin).unwrap();
    fs::write(&twin, bytes).unwrap();
}

/// A twin from another history is no twin, and one of another branch of this history is not taken either, unless the
/// records after it ask for it.
#[test]
fn a_twin_of_another_history_is_not_taken() {
    let two = Two::new(&small_packs());
    let (here, there) = (two.root(), two.folder.path().join("there"));
    let mut names: Vec<PathBuf> =
        two.files("log").iter().map(|path| path.strip_prefix(&here).unwrap().to_owned()).collect();
    names.push("region".into());
    for name in &names {
        let Ok(foreign) = fs::read(there.join(name)) else { continue };
        let (own, twin) = (here.join(name), fs::read(here.join("twins").join(name)).unwrap());
        let before = fs::read(&own).unwrap();
        replace_twin(&here, name, &foreign);
        damage(&own, |bytes| bytes[30] ^= 2);
        assert!(mend(&here, false).restored.is_empty(), "{}", name.display());
        damage(&own, |bytes| *bytes = before);
        replace_twin(&here, name, &twin);
    }
    // The other way: another region's file in the place of ours is no region file of this log.
    let foreign = fs::read(there.join("region")).unwrap();
    damage(&here.join("region"), |bytes| *bytes = foreign);
    assert_eq!(mend(&here, false).restored, ["region"]);
    assert!(two.is_clean());
}

/// Two records that both continue the log: which one counts is told by what follows, and without that nothing is touched.
#[test]
fn of_two_branches_the_one_that_goes_on_counts() {
    let two = Two::new(&small_packs());
    let root = two.root();
    let log = two.files("log");
    let (last, before_last) = (&log[log.len() - 1], &log[log.len() - 2]);
    // Another record after the same predecessor: made in a copy of the region without the last two.
    let branch = two.folder.path().join("branch");
    copy_folder(&root, &branch);
    let name = |path: &Path| path.strip_prefix(&root).unwrap().to_owned();
    for path in [last, before_last] {
        fs::remove_file(branch.join(name(path))).unwrap();
        fs::remove_file(branch.join("twins").join(name(path))).unwrap();
    }
    let _ = fs::remove_dir_all(branch.join("checkpoints"));
    let other = Region::open_directory(&branch, directory()).unwrap();
    other.commit::<_, RegionError>(two.caller.account, |_| Ok((vec![Op::NoOp], ()))).unwrap();
    let foreign = fs::read(branch.join(name(before_last))).unwrap();
    let (ours, twin) =
        (fs::read(before_last).unwrap(), fs::read(root.join("twins").join(name(before_last))).unwrap());
    // Where no record follows, only a twin: what stands in the log stays, and what follows it comes back.
    fs::remove_file(last).unwrap();
    replace_twin(&root, &name(before_last), &foreign);
    assert_eq!(mend(&root, false).restored, [name(last).to_string_lossy()]);
    assert!(fs::read(before_last).unwrap() == ours);
    // In the middle: the last record names ours, so the other is not put in its place even if ours is damaged.
    let conflict =
        Mended { conflicts: vec![name(before_last).to_string_lossy().into_owned()], ..Mended::default() };
    assert_eq!(mend(&root, false), conflict, "whole and different");
    damage(before_last, |bytes| bytes[40] ^= 1);
    assert!(mend(&root, false).restored.is_empty());
    damage(before_last, |bytes| *bytes = ours.clone());
    // Ours is the twin, the other stands in the log: what follows says that the twin is right.
    replace_twin(&root, &name(before_last), &twin);
    damage(before_last, |bytes| *bytes = foreign);
    assert_eq!(mend(&root, false).restored.len(), 1);
    assert!(fs::read(before_last).unwrap() == ours && two.is_clean());
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// A copy of a region's folder has the region's id, and may still have what was deleted since.
#[test]
fn what_was_deleted_comes_back_from_a_copy_of_the_folder() {
    let two = Two::new(&small_packs());
    let backup = two.folder.path().join("backup");
    copy_folder(&two.root(), &backup);
    let (id, bytes) = &two.taken[0];
    let (context, options) = (two.caller.context(), CopyOptions::default());
    delete_snapshot(&two.here(), *id, &context).unwrap();
    collect(&two.here(), &GcOptions { grace_ms: 0, repack_percent: 50 }, &context).unwrap();
    let backup = Region::open_directory(&backup, directory()).unwrap();
    let planned = plan(&backup, &two.here(), CopyWhat::Snapshot(*id), &options, &context).unwrap();
    assert!(planned.new_chunks() > 0);
    let copied = apply(&backup, &two.here(), &planned, &options, &context).unwrap();
    assert!(two.caller.read_back(&two.here(), copied.snapshots[0].id).unwrap() == *bytes);
    assert!(two.is_clean());
}

/// Reading goes on without a record whose twin only is left; writing in its place would make the loss final.
#[test]
fn a_lost_record_is_not_written_over() {
    let two = Two::new(&small_packs());
    let open_before = two.here();
    let last = two.files("log").pop().unwrap();
    fs::remove_file(&last).unwrap();
    let append =
        |region: &Region| region.commit::<_, RegionError>(two.caller.account, |_| Ok((vec![Op::NoOp], ())));
    let region = two.here();
    assert!(!region.catalog().unwrap().snapshots.is_empty(), "what is there can be read");
    assert!(append(&region).unwrap_err().to_string().contains("imgstore repair"));
    assert!(!two.is_clean());
    // Twins that say nothing keep nobody from anything.
    let twin = two.root().join("twins").join(last.strip_prefix(two.root()).unwrap());
    let bytes = fs::read(&twin).unwrap();
    for nonsense in [&b""[..], b"torn", &bytes[..bytes.len() - 1]] {
        fs::remove_file(&twin).unwrap();
        fs::write(&twin, nonsense).unwrap();
        assert!(two.is_clean());
        let elsewhere = tempfile::tempdir().unwrap();
        copy_folder(&two.root(), elsewhere.path());
        append(&Region::open_directory(elsewhere.path(), directory()).unwrap()).unwrap();
    }
    fs::remove_file(&twin).unwrap();
    fs::write(&twin, &bytes).unwrap();
    assert_eq!(mend(&two.root(), false).restored.len(), 1);
    append(&open_before).unwrap();
    assert!(two.is_clean());
    // Neither does a folder of twins that is none.
    fs::remove_dir_all(two.root().join("twins")).unwrap();
    fs::write(two.root().join("twins"), b"").unwrap();
    append(&two.here()).unwrap();
    assert!(two.is_clean());
    assert_eq!(mend(&two.root(), false), Mended::default(), "none can be made, and none is said to be");
}

/// What lies before a checkpoint is not needed: a hopeless record there keeps nothing from being mended after it.
#[test]
fn the_log_is_mended_behind_a_checkpoint() {
    let two = Two::new(&small_packs());
    let region = two.here();
    for _ in 0..70 {
        region.commit::<_, RegionError>(two.caller.account, |_| Ok((vec![Op::NoOp], ()))).unwrap();
    }
    let log = two.files("log");
    let hopeless = &log[3];
    fs::remove_file(hopeless).unwrap();
    fs::remove_file(two.root().join("twins").join(hopeless.strip_prefix(two.root()).unwrap())).unwrap();
    // The checkpoint's own record, and the last one.
    for path in [&log[63], log.last().unwrap()] {
        damage(path, |bytes| bytes[40] ^= 1);
    }
    assert!(Region::open_directory(&two.root(), directory()).is_err());
    assert_eq!(mend(&two.root(), false).restored.len(), 2);
    // The checkpoint is all that opens the region: repair leaves it, says that a record is lost, and mends other things.
    let is_lost = |problem: &str| problem.contains("log record 4 ") && problem.contains("not there");
    for (harm, is_damaged) in [(false, false), (true, true)] {
        if harm {
            damage(&two.largest_pack(), |bytes| bytes[200] ^= 1);
        }
        let repaired = two.repair(&[two.there()], &[]);
        let problems: Vec<&str> = repaired.findings.iter().map(|finding| finding.problem.as_str()).collect();
        assert!(!repaired.is_log_broken && is_lost(problems[0]), "{problems:?}");
        assert_eq!(repaired.lost_records, 1);
        assert_eq!((problems.len() > 1, repaired.lost.len()), (is_damaged, 0), "{problems:?}");
        assert!(!two.files("checkpoints").is_empty());
    }
    // Another checkpoint is damaged: that goes, and this one stays.
    let region = two.here();
    for _ in 0..70 {
        region.commit::<_, RegionError>(two.caller.account, |_| Ok((vec![Op::NoOp], ()))).unwrap();
    }
    let checkpoints = two.files("checkpoints");
    assert_eq!(checkpoints.len(), 2);
    for path in &checkpoints {
        let before = fs::read(path).unwrap();
        damage(path, |bytes| bytes[100] ^= 1);
        two.repair(&[], &[]);
        assert_eq!(two.files("checkpoints").len(), 1, "{}", path.display());
        fs::write(path, before).unwrap();
    }
    for (id, bytes) in &two.taken {
        assert!(two.caller.read_back(&two.here(), *id).unwrap() == *bytes);
    }
}

fn session_number(number: u128) -> SessionId {
    SessionId(number.to_be_bytes())
}

// In memory, by the count -------------------------------------------------------------------------------------

/// A region in memory with large packs, and a snapshot of each of these disks, each by a writer of its own.
fn taken(disks: &[&[u8]]) -> (Memory, Region, Vec<SnapshotId>) {
    let (storage, caller) = (Memory::new(), Caller::new(1));
    let options = RegionOptions { pack_bytes: 8 << 20, ..small_packs() };
    let region = memory_region(&storage, &options);
    let take = |bytes: &&[u8]| {
        let writer = Region::open(Arc::new(storage.clone()), session()).unwrap();
        caller.snapshot(&writer, &MemoryDisk::new(bytes.to_vec())).unwrap().snapshot.id
    };
    let ids = disks.iter().map(take).collect();
    (storage, region, ids)
}

/// The pack of deltas, and the one with their bases.
fn delta_and_base(region: &Region) -> [PackRecord; 2] {
    let catalog = region.catalog().unwrap();
    let delta = catalog.packs.values().find(|pack| !pack.record.bases.is_empty()).unwrap();
    let [base] = delta.record.bases[..] else { panic!("{delta:?}") };
    [delta.record.clone(), catalog.packs[&base].record.clone()]
}

#[test]
fn lost_chunks_beside_each_other_are_one_range_and_others_are_not() {
    const BLOCK: usize = 4096;
    let mut draw = Draw::new(1);
    let mut noise = |blocks: usize| (0..blocks * BLOCK).map(|_| draw.next() as u8 | 1).collect::<Vec<u8>>();
    let mut disk = [noise(72), vec![0; 16 * BLOCK], noise(12)].concat();
    disk.truncate(disk.len() - 1000);
    let (storage, region, ids) = taken(&[&disk]);
    let manifest = region.catalog().unwrap().snapshots[&ids[0]].manifest.clone();
    assert!(region.load_map(&manifest).unwrap().chunks().len() > 2);
    region.catalog().unwrap().packs.keys().for_each(|pack| storage.delete(&pack.to_string()).unwrap());
    let caller = Caller::new(1);
    let repaired = repair(&region, &RepairSources::default(), &caller.context()).unwrap();
    let ranges = vec![0..72 * BLOCK as u64, 88 * BLOCK as u64..disk.len() as u64];
    assert_eq!(repaired.lost, [Lost { root: RootId::Snapshot(ids[0]), images: vec![], ranges }]);
}

/// Whatever pack is lost, damaged or cut: what is told as a gap reads as zeros, and all else is what it was. Figures can be had, too.
#[test]
fn what_is_left_can_be_exported() {
    let disks = alike(300_000);
    let caller = Caller::new(2);
    let kinds: [fn(&mut Vec<u8>); 4] =
        [|bytes| bytes[200] ^= 1, |bytes| bytes.truncate(0), |bytes| bytes.truncate(bytes.len() / 2), |_| {}];
    let packs = taken(&[&disks[0], &disks[1]]).1.catalog().unwrap().packs.len();
    let (mut with_gaps, mut whole) = (0, 0);
    for (number, kind) in (0..packs).flat_map(|number| kinds.iter().map(move |kind| (number, kind))) {
        let (storage, region, ids) = taken(&[&disks[0], &disks[1]]);
        let name = region.catalog().unwrap().packs.keys().nth(number).unwrap().to_string();
        let mut bytes = storage.open(&name).unwrap().bytes().unwrap().as_ref().to_vec();
        kind(&mut bytes);
        storage.delete(&name).unwrap();
        if !bytes.is_empty() {
            storage.restore(&name, &bytes).unwrap();
        }
        // As who opens it now.
        let region = Region::open(Arc::new(storage), session()).unwrap();
        region_stats(&region, &caller.context()).unwrap();
        item_stats(&region, &[AnyId::Snapshot(ids[0])], &caller.context()).unwrap();
        for (id, disk) in ids.iter().zip(&disks) {
            let gaps = Gaps::default();
            let read = caller.read_with(&region, *id, Some(&gaps)).unwrap();
            let mut expected = disk.clone();
            let lost = gaps.of(RootId::Snapshot(*id));
            for range in &lost {
                expected[range.start as usize..range.end as usize].fill(0);
            }
            assert!(read == expected, "{name}: {lost:?}");
            assert_eq!(gaps.is_empty(), lost.is_empty());
            match caller.read_back(&region, *id) {
                Ok(all) => assert!(lost.is_empty() && all == *disk),
                Err(error) => assert!(!lost.is_empty() && error.class() == Class::Damage, "{error}"),
            }
            *if lost.is_empty() { &mut whole } else { &mut with_gaps } += 1;
        }
    }
    assert!(with_gaps > 3 && whole > 3, "{with_gaps} {whole}");
}

#[test]
fn block_maps_that_another_region_has_are_counted() {
    let disks = [volume(30_000, 1), volume(40_000, 2)];
    let (storage, region, ids) = taken(&[&disks[0], &disks[1]]);
    let (_, there, _) = taken(&[&disks[1], &disks[0], &volume(10_000, 3)]);
    for snapshot in region.catalog().unwrap().snapshots.values() {
        storage.delete(&snapshot.manifest.name.to_string()).unwrap();
    }
    let (caller, regions) = (Caller::new(1), [there]);
    let sources = RepairSources { regions: &regions, ..RepairSources::default() };
    let repaired = repair(&region, &sources, &caller.context()).unwrap();
    assert!(repaired.lost.is_empty() && repaired.manifests == 2, "{repaired:?}");
    for (id, bytes) in ids.iter().zip(disks) {
        assert!(caller.read_directly(&region, *id).unwrap() == bytes);
    }
}

/// What is stored against a chunk that is lost stays where it is and is whole as soon as that is back, wherever it came from.
#[test]
fn deltas_are_whole_once_their_bases_are_back() {
    let disks = alike(300_000);
    let chunks = delta_and_base(&taken(&[&disks[0], &disks[1]]).1);
    let frames = chunks.map(|pack| u64::from(pack.frames));
    assert!(frames[0] > 1 && frames[1] > 1);
    let (_, there, _) = taken(&[&disks[0]]);
    let (caller, regions) = (Caller::new(1), [there]);
    for is_disk in [false, true] {
        let (storage, region, ids) = taken(&[&disks[0], &disks[1]]);
        storage.delete(&delta_and_base(&region)[1].name.to_string()).unwrap();
        let disk: [Box<dyn DiskRead>; 1] = [Box::new(MemoryDisk::new(disks[0].clone()))];
        let sources = if is_disk {
            RepairSources { disks: &disk, ..RepairSources::default() }
        } else {
            RepairSources { regions: &regions, ..RepairSources::default() }
        };
        let repaired = repair(&region, &sources, &caller.context()).unwrap();
        assert!(repaired.lost.is_empty(), "{repaired:?}");
        let brought = if is_disk { repaired.reread } else { repaired.fetched };
        assert_eq!([repaired.moved, brought], [0, frames[1]], "{repaired:?}");
        for (id, bytes) in ids.iter().zip(&disks) {
            assert!(caller.read_directly(&region, *id).unwrap() == *bytes);
        }
    }
}

/// A block map is put in the place of one that is named, and of nothing else.
#[test]
fn a_block_map_that_nothing_names_any_more_is_not_replaced() {
    let bytes = volume(30_000, 1);
    let (storage, region, ids) = taken(&[&bytes]);
    let caller = Caller::new(1);
    let lost = region.catalog().unwrap().snapshots[&ids[0]].manifest.clone();
    let map = region.load_map(&lost).unwrap();
    storage.delete(&lost.name.to_string()).unwrap();
    let mut session = region.begin(caller.account).unwrap();
    let by = session.place_manifest(&map).unwrap();
    let replace = || region.replace_manifest(&lost, &by, &session, caller.account).unwrap();
    assert!(replace());
    let catalog = region.catalog().unwrap();
    assert_eq!(catalog.snapshots[&ids[0]].manifest, by);
    assert!(!replace(), "somebody else was faster");
    assert_eq!(region.catalog().unwrap(), catalog);
    assert!(caller.read_directly(&region, ids[0]).unwrap() == bytes);
}

#[test]
fn a_check_says_how_much_it_has_looked_at() {
    let disks = [volume(30_000, 1), volume(40_000, 2), volume(50_000, 3)];
    let (_, region, _) = taken(&[&disks[0], &disks[1], &disks[2]]);
    let catalog = region.catalog().unwrap();
    let report = verify(&region, &VerifyOptions::default(), &Caller::new(1).context()).unwrap();
    let (packs, snapshots) = (catalog.packs.len() as u64, catalog.snapshots.len() as u64);
    assert!(packs > 1 && snapshots == 3 && report.findings.is_empty());
    let sum = |of: fn(&PackRecord) -> u64| catalog.packs.values().map(|pack| of(&pack.record)).sum::<u64>();
    let (chunks, pack_bytes) = (sum(|pack| pack.frames.into()), sum(|pack| pack.len));
    assert_eq!(report, Report { findings: vec![], snapshots, packs, chunks, pack_bytes });
}

/// A pack is gone: what is wrong with it touches what is stored against its chunks, too, whether or not an index segment
/// still lists these.
#[test]
fn what_is_stored_against_a_pack_that_is_gone_is_told_of() {
    for is_listed in [false, true] {
        let disks = alike(300_000);
        let (storage, region, ids) = taken(&[&disks[0], &disks[1]]);
        let caller = Caller::new(1);
        for number in 0..if is_listed { 70_u64 } else { 0 } {
            let disk = MemoryDisk::new(number.to_le_bytes().repeat(512));
            caller.snapshot(&region, &disk).unwrap();
        }
        assert_eq!(!region.catalog().unwrap().segments.is_empty(), is_listed);
        let base = delta_and_base(&region)[1].name.to_string();
        storage.delete(&base).unwrap();
        // Each of them is as it was written, and of no use.
        let options = VerifyOptions { content: false, ..VerifyOptions::default() };
        let report = verify(&region, &options, &caller.context()).unwrap();
        let of_pack = report.findings.iter().find(|finding| finding.object == base).unwrap();
        assert_eq!(of_pack.affected, [ids[1].to_string()], "listed: {is_listed}; {report:?}");
    }
}

/// Only a lost block map's own disk brings it back, and another of as many chunks leaves nothing behind.
#[test]
fn a_disk_of_as_many_chunks_is_not_taken_for_the_lost_one() {
    let (storage, region, ids) = taken(&[&[1; 4096]]);
    let name = region.catalog().unwrap().snapshots[&ids[0]].manifest.name.to_string();
    storage.delete(&name).unwrap();
    let before = storage.list("").unwrap();
    let repair = |byte: u8| {
        let disks: [Box<dyn DiskRead>; 1] = [Box::new(MemoryDisk::new(vec![byte; 4096]))];
        let sources = RepairSources { disks: &disks, ..RepairSources::default() };
        repair(&region, &sources, &Caller::new(1).context()).unwrap()
    };
    let repaired = repair(2);
    assert_eq!((repaired.manifests, repaired.lost.len(), &repaired.foreign_disks[..]), (0, 1, &[0][..]));
    assert_eq!(storage.list("").unwrap(), before);
    let repaired = repair(1);
    assert_eq!((repaired.manifests, repaired.lost.len(), repaired.foreign_disks.len()), (1, 0, 0));
}

/// One early pack is lost, on which later ones lie with a few deltas each. What is lost comes back, the later ones are put on it, and
/// nothing that they hold is stored anew.
#[test]
fn what_is_stored_against_a_lost_pack_stays_as_it_is() {
    let mut two = Two::new(&small_packs());
    let [text, changed] = alike(900_000);
    for bytes in [text, changed] {
        let id = two.caller.snapshot(&two.here(), &MemoryDisk::new(bytes.clone())).unwrap().snapshot.id;
        two.copy(id);
        two.taken.push((id, bytes));
    }
    let packs = two.here().catalog().unwrap().packs;
    let on = |base| packs.values().filter(|pack| pack.record.bases.contains(base)).count();
    let (lost, deltas_on) = packs.keys().map(|pack| (*pack, on(pack))).max_by_key(|(_, on)| *on).unwrap();
    assert!(deltas_on > 0);
    fs::remove_file(two.root().join(lost.to_string())).unwrap();
    let there = two.there();
    let repaired = two.repair(std::slice::from_ref(&there), &[]);
    assert_eq!((&repaired.quarantined[..], repaired.lost.len()), (&[lost][..], 0));
    assert_eq!((repaired.moved, repaired.fetched), (0, packs[&lost].record.frames.into()));
    let now = two.here().catalog().unwrap().packs;
    let still_on = |pack: &&imgstore::model::catalog::Pack| pack.record.bases.contains(&lost);
    assert_eq!(now.values().filter(still_on).count(), 0, "all are on what came in its place");
    two.assert_whole("put on others");
}

/// The packs of what is checked lie on others: what is damaged there is lost with them.
#[test]
fn a_check_of_one_snapshot_reads_what_its_deltas_are_on() {
    let disks = alike(300_000);
    let (storage, region, ids) = taken(&[&disks[0], &disks[1]]);
    let base = delta_and_base(&region)[1].name.to_string();
    let options = VerifyOptions {
        ids: vec![imgstore::ops::find::AnyId::Snapshot(ids[1])],
        content: false,
        ..VerifyOptions::default()
    };
    let check = |region: &Region| verify(region, &options, &Caller::new(1).context()).unwrap();
    assert!(check(&region).findings.is_empty());
    let mut bytes = imgstore::io::storage::read_whole(&storage, &base, 8 << 20).unwrap();
    let count = bytes.len();
    (400..count - 2000).step_by(10_000).for_each(|at| bytes[at] ^= 1);
    storage.restore(&base, &bytes).unwrap();
    let report = check(&Region::open(Arc::new(storage), session()).unwrap());
    assert!(report.findings.iter().any(|finding| finding.affected == [ids[1].to_string()]), "{report:?}");
}

/// On a nearly full disk nothing can be moved. What does not say what it holds is put in quarantine all the same: else no
/// collection could make room.
#[test]
fn a_repair_without_space_lets_a_collection_make_some() {
    let two = Two::new(&small_packs());
    let gone = two.caller.snapshot(&two.here(), &MemoryDisk::new(volume(400_000, 9))).unwrap().snapshot.id;
    delete_snapshot(&two.here(), gone, &two.caller.context()).unwrap();
    fs::remove_file(two.largest_pack()).unwrap();
    let full = DirectoryOptions { reserve_bytes: u64::MAX / 2, ..directory() };
    let open = || Region::open_directory(&two.root(), full).unwrap();
    let collect = || collect(&open(), &GcOptions { grace_ms: 0, repack_percent: 50 }, &two.caller.context());
    assert!(collect().is_err());
    let there = two.there();
    let sources = RepairSources { regions: std::slice::from_ref(&there), ..RepairSources::default() };
    let error = repair(&open(), &sources, &two.caller.context()).unwrap_err();
    assert_eq!(error.class(), imgstore::ops::error::Class::NoSpace, "{error}");
    assert!(collect().unwrap().freed.count > 0);
    two.repair(std::slice::from_ref(&there), &[]);
    two.assert_whole("once there was space");
}
