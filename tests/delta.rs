//! Chunks that are stored against others: smaller, read back whole, and never without what they need.

mod common;

use common::{Caller, MemoryDisk, NOW_MS, changed, pass_on, session, small_packs, text};
use imgstore::io::directory::DirectoryOptions;
use imgstore::io::memory::Memory;
use imgstore::io::storage::{Created, Listed, Object, Storage, StorageError};
use imgstore::model::catalog::RootId;
use imgstore::model::ids::SnapshotId;
use imgstore::model::objects::{PackName, PackState};
use imgstore::model::op::Op;
use imgstore::ops::context::Context;
use imgstore::ops::copy::{CopyOptions, CopyWhat, apply, plan};
use imgstore::ops::delete::delete_snapshot;
use imgstore::ops::encode::Compression;
use imgstore::ops::find::AnyId;
use imgstore::ops::gaps::Gaps;
use imgstore::ops::gc::{Collected, GcOptions, collect};
use imgstore::ops::ingest::ingest;
use imgstore::ops::repair::{RepairSources, Repaired, repair, repair_into};
use imgstore::ops::snapshot::{SnapshotOptions, snapshot};
use imgstore::ops::stats::item_stats;
use imgstore::ops::verify::{Report, VerifyOptions, verify};
use imgstore::region::error::RegionError;
use imgstore::region::{Region, RegionOptions};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

const NOW: GcOptions = GcOptions { grace_ms: 0, repack_percent: 50 };

struct Place {
    folder: tempfile::TempDir,
    caller: Caller,
}

impl Place {
    fn new() -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap(), caller: Caller::new(2) };
        place.make("here");
        place
    }

    fn root(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn options() -> DirectoryOptions {
        DirectoryOptions { reserve_bytes: 0, ..DirectoryOptions::default() }
    }

    fn make(&self, name: &str) {
        Region::create_directory(&self.root(name), &small_packs(), Self::options()).unwrap();
    }

    fn region(&self, name: &str) -> Region {
        Region::open_directory(&self.root(name), Self::options()).unwrap()
    }

    fn open(&self) -> Region {
        self.region("here")
    }

    /// A snapshot, and what it added to the store.
    fn take(&self, bytes: &[u8], delta: bool) -> (SnapshotId, u64) {
        let options = SnapshotOptions {
            compression: Compression { delta, ..Compression::default() },
            ..SnapshotOptions::default()
        };
        let disk = MemoryDisk::new(bytes.to_vec());
        let taken = snapshot(&self.open(), &disk, &options, &self.caller.context()).unwrap();
        (taken.snapshot.id, taken.ingested.stored_bytes)
    }

    fn assert_has(&self, name: &str, id: SnapshotId, bytes: &[u8]) {
        assert!(self.caller.read_back(&self.region(name), id).unwrap() == bytes, "{id} has other bytes");
    }

    fn verify(&self, name: &str, content: bool) -> Report {
        let options = VerifyOptions { content, ..VerifyOptions::default() };
        verify(&self.region(name), &options, &self.caller.context()).unwrap()
    }

    fn assert_clean(&self, name: &str) {
        for content in [true, false] {
            let report = self.verify(name, content);
            assert!(report.findings.is_empty(), "{:?}", report.findings);
        }
    }

    fn collect(&self, options: GcOptions) -> Collected {
        collect(&self.open(), &options, &self.caller.context()).unwrap()
    }

    fn delete(&self, id: SnapshotId) {
        delete_snapshot(&self.open(), id, &self.caller.context()).unwrap();
    }

    fn copy(&self, id: SnapshotId, to: &str) -> SnapshotId {
        let (options, context) = (CopyOptions::default(), self.caller.context());
        let (from, to) = (self.open(), self.region(to));
        let plan = plan(&from, &to, CopyWhat::Snapshot(id), &options, &context).unwrap();
        apply(&from, &to, &plan, &options, &context).unwrap().snapshots[0].id
    }

    fn packs_with_bases(&self, name: &str) -> Vec<(PackName, Vec<PackName>)> {
        let catalog = self.region(name).catalog().unwrap();
        let packs = catalog.packs.values().map(|pack| (pack.record.name, pack.record.bases.clone()));
        packs.filter(|(_, bases)| !bases.is_empty()).collect()
    }

    fn stored(&self, name: &str) -> u64 {
        let objects = self.region(name).objects().unwrap();
        objects.iter().filter(|object| object.name.starts_with("packs/")).map(|object| object.len).sum()
    }
}

/// Counts how often each pack is opened.
#[derive(Default)]
struct Counted {
    inner: Memory,
    opened: Mutex<BTreeMap<String, usize>>,
}

impl Storage for Counted {
    fn open(&self, name: &str) -> Result<Arc<dyn Object>, StorageError> {
        if name.starts_with("packs/") {
            *self.opened.lock().unwrap().entry(name.to_owned()).or_default() += 1;
        }
        self.inner.open(name)
    }

    pass_on!(create list restore delete persist admit_writer admit_collector is_writer_gone);
}

/// Refuses manifests, if it is to.
#[derive(Default)]
struct Refusing {
    inner: Memory,
    refuses: AtomicBool,
}

impl Storage for Refusing {
    fn create(&self, name: &str, parts: &[&[u8]]) -> Result<Created, StorageError> {
        if name.starts_with("manifests/") && self.refuses.load(Ordering::SeqCst) {
            let source = std::io::Error::other("refused");
            return Err(StorageError::Io { action: "write", name: name.into(), source });
        }
        self.inner.create(name, parts)
    }

    fn open(&self, name: &str) -> Result<Arc<dyn Object>, StorageError> {
        self.inner.open(name)
    }

    pass_on!(list restore delete persist admit_writer admit_collector is_writer_gone);
}

/// Flips a bit of a file.
fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
}

#[test]
fn what_resembles_something_costs_what_differs() {
    let place = Place::new();
    let first = text(2_000_000, 1);
    let second = changed(&first, 3000);
    let (one, stored) = place.take(&first, true);
    let (two, more) = place.take(&second, true);
    assert!(more * 3 < stored, "{more} bytes after {stored}");
    assert!(!place.packs_with_bases("here").is_empty());
    place.assert_has("here", one, &first);
    place.assert_has("here", two, &second);
    place.assert_clean("here");
    let plain = Place::new();
    plain.take(&first, false);
    let (_, more) = plain.take(&second, false);
    assert!(more * 3 > stored * 2, "without deltas {more} bytes after {stored}");
    assert!(plain.packs_with_bases("here").is_empty() && !plain.root("here").join("features").exists());
    // Within one disk, too.
    let both = Place::new();
    let bytes = [&first[..], &second].concat();
    let (id, all) = both.take(&bytes, true);
    assert!(all * 3 < stored * 4, "{all} bytes for both, {stored} for one");
    both.assert_has("here", id, &bytes);
    both.assert_clean("here");
}

#[test]
fn without_feature_tables_nothing_is_lost_but_size() {
    let place = Place::new();
    let first = text(500_000, 1);
    let (one, _) = place.take(&first, true);
    for damage in ["nonsense", ""] {
        for table in fs::read_dir(place.root("here").join("features")).unwrap() {
            for table in fs::read_dir(table.unwrap().path()).unwrap() {
                let path = table.unwrap().path();
                fs::remove_file(&path).unwrap();
                fs::write(&path, damage).unwrap();
            }
        }
        let second = changed(&first, 3000 + damage.len());
        let (two, _) = place.take(&second, true);
        place.assert_has("here", one, &first);
        place.assert_has("here", two, &second);
    }
    place.assert_clean("here");
}

/// A snapshot that failed has stored what the next try finds; what resembles that is stored against it.
#[test]
fn what_a_snapshot_that_failed_has_stored_is_a_base() {
    let (caller, storage) = (Caller::new(2), Arc::new(Refusing::default()));
    let region = Region::create(storage.clone(), session(), &small_packs()).unwrap();
    let first = text(1_000_000, 1);
    storage.refuses.store(true, Ordering::SeqCst);
    assert!(caller.snapshot(&region, &MemoryDisk::new(first.clone())).is_err());
    storage.refuses.store(false, Ordering::SeqCst);
    let region = Region::open(storage.clone(), session()).unwrap();
    let again = caller.snapshot(&region, &MemoryDisk::new(first.clone())).unwrap().ingested;
    assert_eq!(again.new_chunks, 0, "all was stored");
    let stored = || region.catalog().unwrap().packs.values().map(|pack| pack.record.len).sum::<u64>();
    let before = stored();
    caller.snapshot(&region, &MemoryDisk::new(changed(&first, 3000))).unwrap();
    let more = stored() - before;
    assert!(more * 3 < before, "{more} bytes after {before}");
}

#[test]
fn a_damaged_feature_table_goes_and_takes_no_sound_one_along() {
    let place = Place::new();
    place.take(&text(500_000, 1), true);
    let tables = || {
        let folders = fs::read_dir(place.root("here").join("features")).unwrap();
        let files = folders.flat_map(|folder| fs::read_dir(folder.unwrap().path()).unwrap());
        files.map(|file| file.unwrap().path()).collect::<Vec<_>>()
    };
    let [damaged] = &tables()[..] else { panic!("{:?}", tables()) };
    let bytes = fs::read(damaged).unwrap();
    // Two of the same content, of which the one that is looked at first has slots that no longer ascend.
    let sound = damaged.with_file_name("900000");
    fs::write(&sound, &bytes).unwrap();
    let mut spoiled = bytes.clone();
    let last_slots = spoiled.len() - 64;
    spoiled[last_slots..].fill(0);
    fs::write(damaged, &spoiled).unwrap();
    place.take(&text(500_000, 2), true);
    assert!(fs::read(&sound).unwrap() == bytes, "the sound one was written anew");
    assert!(!damaged.exists() && tables().len() == 2, "{:?}", tables());
    place.assert_clean("here");
}

#[test]
fn a_base_stays_as_long_as_a_delta_needs_it_and_no_longer() {
    let place = Place::new();
    let first = text(1_000_000, 1);
    let second = changed(&first, 3000);
    let (one, _) = place.take(&first, true);
    let (two, _) = place.take(&second, true);
    let context = place.caller.context();
    let costs = item_stats(&place.open(), &[AnyId::Snapshot(one), AnyId::Snapshot(two)], &context).unwrap();
    assert!(costs[0].freed_bytes * 4 < costs[0].shared_stored_bytes, "the second needs it: {costs:?}");
    place.delete(one);
    assert_eq!(place.collect(NOW).freed.count, 0);
    place.assert_has("here", two, &second);
    place.assert_clean("here");
    // What only serves as base is counted with what needs it.
    let costs = item_stats(&place.open(), &[AnyId::Snapshot(two)], &context).unwrap();
    assert!(costs[0].freed_bytes * 10 > place.stored("here") * 8, "{costs:?} of {}", place.stored("here"));
    place.delete(two);
    place.collect(NOW);
    assert_eq!(place.stored("here"), 0);
    assert!(place.open().objects().unwrap().iter().all(|object| !object.name.starts_with("features/")));
}

#[test]
fn packs_of_which_only_bases_are_needed_are_rewritten() {
    let place = Place::new();
    // Of each pack's content a little is needed.
    let parts: Vec<Vec<u8>> = (0..20).map(|seed| text(100_000, seed)).collect();
    let first = parts.concat();
    let second: Vec<u8> = parts.iter().flat_map(|part| changed(&part[..30_000], 3000)).collect();
    let (one, _) = place.take(&first, true);
    let (two, _) = place.take(&second, true);
    let before = (place.stored("here"), place.packs_with_bases("here"));
    assert!(!before.1.is_empty());
    place.delete(one);
    let collected = place.collect(GcOptions { repack_percent: 80, ..NOW });
    assert!(collected.repacked.count > 1, "{collected:?}");
    assert!(place.stored("here") * 10 < before.0 * 8, "{} of {}", place.stored("here"), before.0);
    place.assert_has("here", two, &second);
    place.assert_clean("here");
    let region = place.open();
    let records = 1..=region.catalog().unwrap().sequence;
    let ops = records.flat_map(|sequence| region.record(sequence).unwrap().unwrap().ops);
    assert!(ops.into_iter().any(|op| matches!(op, Op::RebasePack { .. })));
    let gone = |base: &PackName| !region.catalog().unwrap().packs.contains_key(base);
    assert!(place.packs_with_bases("here").iter().all(|(_, bases)| !bases.iter().any(gone)));
    assert_eq!(place.collect(NOW).repacked.count, 0, "and once is enough");
}

#[test]
fn what_a_command_under_way_stores_against_is_not_collected() {
    let place = Place::new();
    let first = text(1_000_000, 1);
    let second = changed(&first, 3000);
    let (one, _) = place.take(&first, true);
    let region = place.open();
    let mut session = region.begin(place.caller.account).unwrap();
    let disk = MemoryDisk::new(second.clone());
    ingest(&mut session, &disk, &Compression::default(), &place.caller.context()).unwrap();
    place.delete(one);
    let collected = place.collect(GcOptions { repack_percent: 100, ..NOW });
    assert_eq!((collected.condemned.count, collected.repacked.count), (0, 0));
    assert!(collected.in_progress.count > 1, "{collected:?}");
    let (two, more) = place.take(&second, true);
    assert!(more < 100_000, "what was stored is found: {more}");
    drop((session, region));
    place.assert_has("here", two, &second);
    place.assert_clean("here");
}

#[test]
fn a_copy_takes_deltas_along_with_their_bases_and_no_delta_without() {
    let place = Place::new();
    let first = text(1_000_000, 1);
    let second = changed(&first, 9000);
    let (one, _) = place.take(&first, true);
    let (two, _) = place.take(&second, true);
    place.make("alone");
    let copy = place.copy(two, "alone");
    assert!(place.packs_with_bases("alone").is_empty(), "their bases are of no use there");
    place.assert_has("alone", copy, &second);
    place.assert_clean("alone");
    place.make("both");
    place.copy(one, "both");
    let before = place.stored("both");
    let copy = place.copy(two, "both");
    assert!((place.stored("both") - before) * 4 < before, "they go as they are");
    assert!(!place.packs_with_bases("both").is_empty());
    place.assert_has("both", copy, &second);
    place.assert_clean("both");
}

#[test]
fn a_damaged_base_touches_what_is_stored_against_it_and_is_mended() {
    let place = Place::new();
    let first = text(1_000_000, 1);
    let second = changed(&first, 3000);
    let (one, _) = place.take(&first, true);
    let (two, _) = place.take(&second, true);
    place.make("away");
    place.copy(one, "away");
    place.copy(two, "away");
    let (_, bases) = place.packs_with_bases("here").remove(0);
    flip(&place.root("here").join(bases[0].to_string()), 200);
    for content in [true, false] {
        let affected: Vec<String> =
            place.verify("here", content).findings.into_iter().flat_map(|finding| finding.affected).collect();
        for id in [one, two] {
            assert!(affected.contains(&id.to_string()), "{id} is not told of, content: {content}");
        }
    }
    assert!(place.caller.read_back(&place.open(), two).is_err());
    let away = [place.region("away")];
    let sources = RepairSources { regions: &away, ..RepairSources::default() };
    let repaired = repair(&place.open(), &sources, &place.caller.context()).unwrap();
    assert!(repaired.lost.is_empty() && repaired.fetched > 0, "{repaired:?}");
    place.assert_has("here", one, &first);
    place.assert_has("here", two, &second);
    place.assert_clean("here");
    for _ in 0..2 {
        place.collect(GcOptions { repack_percent: 95, ..NOW });
        place.assert_has("here", two, &second);
        place.assert_clean("here");
    }
}

#[test]
fn a_pack_that_lost_its_own_index_gives_back_its_deltas() {
    let place = Place::new();
    let first = text(300_000, 1);
    let bytes = [&first[..], &changed(&first, 3000)].concat();
    let (id, _) = place.take(&bytes, true);
    for (_, pack) in place.open().catalog().unwrap().packs.iter() {
        let at = usize::try_from(pack.record.len - 1).unwrap();
        flip(&place.root("here").join(pack.record.name.to_string()), at);
    }
    let repaired = repair(&place.open(), &RepairSources::default(), &place.caller.context()).unwrap();
    assert!(repaired.lost.is_empty() && repaired.moved > 2, "{repaired:?}");
    place.assert_has("here", id, &bytes);
    place.assert_clean("here");
}

/// The other region has the base, and not what is stored against it.
#[test]
fn a_base_from_elsewhere_brings_back_what_is_stored_against_it() {
    let place = Place::new();
    let first = text(1_000_000, 1);
    let second = changed(&first, 3000);
    let (one, _) = place.take(&first, true);
    let (two, _) = place.take(&second, true);
    place.make("away");
    place.copy(one, "away");
    place.delete(one);
    let (_, bases) = place.packs_with_bases("here").remove(0);
    flip(&place.root("here").join(bases[0].to_string()), 200);
    let away = [place.region("away")];
    let sources = RepairSources { regions: &away, ..RepairSources::default() };
    let repaired = repair(&place.open(), &sources, &place.caller.context()).unwrap();
    assert!(repaired.lost.is_empty(), "{repaired:?}");
    place.assert_has("here", two, &second);
    for _ in 0..2 {
        place.collect(GcOptions { repack_percent: 95, ..NOW });
        place.assert_has("here", two, &second);
        place.assert_clean("here");
    }
}

/// Packs that wait keep those with their bases from being swept, and these the ones with theirs. What is being swept
/// keeps nothing.
#[test]
fn what_waits_keeps_its_bases_and_theirs() {
    let place = Place::new();
    let (one, two) = (text(20_480, 1), text(20_480, 2));
    let both = [&changed(&one, 3000)[..], &[0; 8192], &two].concat();
    let taken = [&one, &both, &changed(&two, 3000)].map(|bytes| place.take(bytes, true).0);
    let (region, account) = (place.open(), place.caller.account);
    let packs = region.catalog().unwrap().packs.clone();
    let last = *packs.keys().find(|name| !packs.values().any(|p| p.record.bases.contains(name))).unwrap();
    let [middle] = packs[&last].record.bases[..] else { panic!("{packs:?}") };
    let [first] = packs[&middle].record.bases[..] else { panic!("{packs:?}") };
    taken.into_iter().for_each(|id| place.delete(id));
    for (pack, at_ms) in [(last, 3), (middle, 2), (first, 1)] {
        let op = Op::CondemnPacks { packs: vec![pack], at_ms };
        region.commit::<_, RegionError>(account, |_| Ok((vec![op.clone()], ()))).unwrap();
    }
    let mark = region.mark::<RegionError>(&HashSet::new(), || Ok(())).unwrap();
    let sweep = |of: RangeInclusive<u64>| {
        let is_due =
            |_: &_, state| matches!(state, PackState::Condemned { since_ms } if of.contains(&since_ms));
        region.sweep(&mark, &mark.kept_packs(), account, is_due).unwrap().into_iter().collect::<BTreeSet<_>>()
    };
    assert_eq!(sweep(1..=1), [].into());
    assert_eq!(sweep(1..=2), [].into());
    assert_eq!(sweep(3..=3), [last].into());
    assert_eq!(sweep(1..=2), [first, middle].into(), "both at once");
}

#[test]
fn whole_packs_are_not_rewritten_again_and_again() {
    let place = Place::new();
    let first = text(300_000, 1);
    place.take(&[&first[..], &changed(&first, 3000)].concat(), true);
    assert_eq!(place.collect(GcOptions { repack_percent: 100, ..NOW }), Collected::default());
}

#[test]
fn deltas_on_a_pack_that_is_gone_are_stored_anew() {
    let place = Place::new();
    let first = text(1_000_000, 1);
    let second = changed(&first, 3000);
    place.take(&first, true);
    let (two, _) = place.take(&second, true);
    for (_, bases) in place.packs_with_bases("here") {
        for base in bases {
            let _ = fs::remove_file(place.root("here").join(base.to_string()));
        }
    }
    assert!(place.caller.read_back(&place.open(), two).is_err());
    let (again, _) = place.take(&second, true);
    place.assert_has("here", again, &second);
    place.assert_has("here", two, &second);
}

/// Packs with bases are in quarantine, as while a repair is at work or when one was interrupted: what is stored against them is
/// not counted on, be it by a new snapshot or by one that looked before.
#[test]
fn deltas_on_a_pack_in_quarantine_are_stored_anew() {
    let place = Place::new();
    let first = text(1_000_000, 1);
    let second = changed(&first, 3000);
    place.take(&first, true);
    let (two, _) = place.take(&second, true);
    let region = place.open();
    let manifest = region.catalog().unwrap().snapshots[&two].manifest.clone();
    let ids: Vec<_> = region.load_map(&manifest).unwrap().chunks().iter().map(|chunk| chunk.id).collect();
    let bases: BTreeSet<PackName> =
        place.packs_with_bases("here").into_iter().flat_map(|(_, bases)| bases).collect();
    let mut early = region.begin(place.caller.account).unwrap();
    let looked = region.stored().unwrap();
    assert!(!early.reserve(&ids).unwrap().contains(&true), "all is there");
    early.use_packs(looked.packs_of(&ids).unwrap().unwrap());
    let closed = Op::QuarantinePacks { packs: bases.iter().copied().collect(), at_ms: 1 };
    let commit =
        |op: &Op| place.open().commit::<_, RegionError>(place.caller.account, |_| Ok((vec![op.clone()], ())));
    commit(&closed).unwrap();
    let catalog = region.catalog().unwrap();
    assert!(catalog.packs_to_name(&early.used_packs()).is_err(), "who looked before is refused");
    let used: Vec<_> = looked.packs_of(&ids).unwrap().into_iter().flatten().collect();
    assert!(used.is_empty() || catalog.packs_to_name(&used).is_err(), "also who looks at what was there");
    assert_eq!(region.stored().unwrap().packs_of(&ids).unwrap(), None);
    assert!(region.has_chunks(&ids).unwrap().contains(&false));
    let (again, _) = place.take(&second, true);
    // Nor does a collection keep the one that is not counted on, whose frames it can read yet.
    place.collect(NOW);
    place.collect(NOW);
    bases.iter().for_each(|base| fs::remove_file(place.root("here").join(base.to_string())).unwrap());
    place.assert_has("here", again, &second);
}

/// Bases that no snapshot refers to itself are lost: collection keeps what is stored against them, and frees other things;
/// with the bases all is back.
#[test]
fn what_is_stored_against_a_lost_base_outlives_a_collection() {
    let place = Place::new();
    let first = text(1_000_000, 1);
    let second = changed(&first, 3000);
    let (one, _) = place.take(&first, true);
    let (two, _) = place.take(&second, true);
    let (three, _) = place.take(&text(300_000, 9), true);
    place.delete(one);
    place.delete(three);
    let bases: BTreeSet<PackName> =
        place.packs_with_bases("here").into_iter().flat_map(|(_, bases)| bases).collect();
    let path = |base: &PackName| place.root("here").join(base.to_string());
    let lost: Vec<(PathBuf, Vec<u8>)> =
        bases.iter().map(|base| (path(base), fs::read(path(base)).unwrap())).collect();
    lost.iter().for_each(|(path, _)| fs::remove_file(path).unwrap());
    let mend = || {
        let sources = RepairSources { force: true, ..RepairSources::default() };
        repair(&place.open(), &sources, &place.caller.context()).unwrap()
    };
    assert!(collect(&place.open(), &NOW, &place.caller.context()).is_err(), "nobody knows yet what is lost");
    let roots: Vec<RootId> = mend().lost.iter().map(|lost| lost.root).collect();
    assert_eq!(roots, [RootId::Snapshot(two)]);
    // Both the lost packs and those with the deltas are in quarantine by now.
    let collected = place.collect(NOW);
    assert!(collected.freed.count > 0, "{collected:?}");
    for (path, bytes) in &lost {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    assert!(mend().lost.is_empty());
    assert!(place.collect(NOW).lost.is_empty());
    place.assert_has("here", two, &second);
    place.assert_clean("here");
}

/// Deltas of many packs on many others: with a look at all bases of each it would be packs times packs.
#[test]
fn a_pack_is_not_looked_for_with_each_that_is_based_on_it() {
    let (caller, storage) = (Caller::new(2), Arc::new(Counted::default()));
    let options = RegionOptions { pack_bytes: 16 << 10, ..small_packs() };
    let region = Region::create(storage.clone(), session(), &options).unwrap();
    let first = text(1_000_000, 1);
    let second = (300..320).flat_map(|every| changed(&first, every)).collect();
    let second = MemoryDisk::new(second);
    caller.snapshot(&region, &MemoryDisk::new(first)).unwrap();
    caller.snapshot(&region, &second).unwrap();
    let packs = region.catalog().unwrap().packs.len();
    let bases = region.catalog().unwrap().packs.values().map(|pack| pack.record.bases.len()).sum::<usize>();
    assert!(packs > 10 && bases > packs, "{packs} packs with {bases} bases");
    let region = Region::open(storage.clone(), session()).unwrap();
    storage.opened.lock().unwrap().clear();
    assert_eq!(caller.snapshot(&region, &second).unwrap().ingested.new_chunks, 0);
    // Once for its own index, once as a base of the first that needs it, once to see that it is there itself.
    let opened = storage.opened.lock().unwrap().clone();
    assert!(opened.values().all(|times| *times <= 3), "{opened:?}");
}

/// A base is in a pack that cannot be opened, and in no other: what is stored against it is not lost, and not zeros.
#[test]
fn what_is_out_of_reach_is_not_written_as_zeros() {
    for is_listed in [false, true] {
        keep_bases_away(is_listed);
    }
}

/// The index knows what is in those packs by itself, or not.
fn keep_bases_away(is_listed: bool) {
    let place = Place::new();
    let first = text(1_000_000, 1);
    let second = changed(&first, 3000);
    place.take(&first, true);
    let (two, _) = place.take(&second, true);
    let bases: BTreeSet<PackName> =
        place.packs_with_bases("here").into_iter().flat_map(|(_, bases)| bases).collect();
    assert!(!bases.is_empty());
    for seed in 0..if is_listed { 70 } else { 0 } {
        place.take(&text(4096, 1000 + seed), false);
    }
    assert_eq!(place.open().catalog().unwrap().segments.is_empty(), !is_listed);
    let read = || {
        let gaps = Gaps::default();
        let read = place.caller.read_with(&place.open(), two, Some(&gaps));
        (read, gaps)
    };
    let is_kept_away = || {
        let (out_of_reach, gaps) = read();
        assert!(out_of_reach.is_err() && gaps.is_empty(), "{:?}", gaps.of(RootId::Snapshot(two)));
    };
    for base in &bases {
        let path = place.root("here").join(base.to_string());
        fs::remove_file(&path).unwrap();
        // As one of another user's would be to whoever is not root: there, and not to be read.
        fs::create_dir(&path).unwrap();
    }
    is_kept_away();
    // The same in quarantine, as an interrupted repair leaves one: it may be all that has what is intact of it.
    let region = place.open();
    region.quarantine(&bases, place.caller.account, NOW_MS).unwrap();
    is_kept_away();
    let mut repaired = Repaired::default();
    let none = RepairSources::default();
    let ended = repair_into(&mut repaired, &place.open(), &none, &place.caller.context());
    assert!(ended.is_err() && repaired.lost.is_empty(), "{ended:?} {repaired:?}");
    let open = |state| matches!(state, PackState::Live);
    let catalog = place.open().catalog().unwrap();
    assert!(catalog.packs.iter().all(|(name, pack)| open(pack.state) != bases.contains(name)), "only those");
    is_kept_away();
    for base in &bases {
        fs::remove_dir(place.root("here").join(base.to_string())).unwrap();
    }
    let (lost, gaps) = read();
    assert!(lost.is_ok() && !gaps.is_empty(), "now it is gone");
}

/// What a pack has is known without it, from the index: while it is there and cannot be opened, nothing of it is lost.
#[test]
fn what_is_listed_in_a_pack_out_of_reach_is_not_lost() {
    let place = Place::new();
    let (one, _) = place.take(&text(300_000, 1), false);
    let packs: BTreeSet<PackName> = place.open().catalog().unwrap().packs.keys().copied().collect();
    for seed in 0..70 {
        place.take(&text(4096, 1000 + seed), false);
    }
    let region = place.open();
    assert!(!region.catalog().unwrap().segments.is_empty());
    region.quarantine(&packs, place.caller.account, NOW_MS).unwrap();
    for pack in &packs {
        let path = place.root("here").join(pack.to_string());
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
    }
    let repaired = || {
        let mut repaired = Repaired::default();
        let none = RepairSources::default();
        let ended = repair_into(&mut repaired, &place.open(), &none, &place.caller.context());
        (ended, repaired.lost)
    };
    let (ended, lost) = repaired();
    let said = ended.unwrap_err().to_string();
    assert!(
        lost.is_empty() && said.contains("cannot be read now") && said.contains("packs/"),
        "{said} {lost:?}"
    );
    let found = format!("{:?}", place.verify("here", false).findings);
    assert!(found.contains("pack that can be read now"), "{found}");
    for pack in &packs {
        fs::remove_dir(place.root("here").join(pack.to_string())).unwrap();
    }
    let (ended, lost) = repaired();
    assert!(ended.is_ok() && lost.len() == 1 && lost[0].root == RootId::Snapshot(one), "{ended:?} {lost:?}");
}

/// An image is copied without what it is stored against: the plan says about what it will take.
#[test]
fn a_plan_says_what_deltas_take_without_their_bases() {
    let place = Place::new();
    place.make("there");
    let first = text(1_000_000, 1);
    let (one, _) = place.take(&first, true);
    let (two, _) = place.take(&changed(&first, 3000), true);
    let (options, context) = (CopyOptions::default(), place.caller.context());
    let asked = Context { dry_run: true, ..context };
    let (from, to) = (place.open(), place.region("there"));
    let before = place.stored("there");
    let expected = plan(&from, &to, CopyWhat::Snapshot(two), &options, &asked).unwrap().expected_bytes();
    let made = plan(&from, &to, CopyWhat::Snapshot(two), &options, &context).unwrap();
    apply(&from, &to, &made, &options, &context).unwrap();
    let stored = place.stored("there") - before;
    assert!(made.transfer_bytes() * 3 < stored, "deltas are small: {} {stored}", made.transfer_bytes());
    assert!(expected * 9 < stored * 10 && stored * 9 < expected * 10, "{expected} {stored}");
    // Where the bases are nothing is more.
    place.make("third");
    place.copy(one, "third");
    let third = plan(&from, &place.region("third"), CopyWhat::Snapshot(two), &options, &asked).unwrap();
    assert!(third.new_chunks() > 0);
    assert_eq!(third.expected_bytes(), third.transfer_bytes());
}
