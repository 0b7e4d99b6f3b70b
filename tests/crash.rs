//! Power loss and failing operations at every point of init, snapshot, copy, delete and collection, on the simulated
//! file system; and the proof that this harness finds the bugs that it is there for.
//!
//! The oracle: what was acknowledged before the crash is there and whole, what was deleted stays deleted,
//! everything that the catalogue lists is whole, and the region goes on.
//!
//! `IMGSTORE_CRASH_STATES=5000000 cargo test --release --test crash` is the long run.

mod common;

use common::{Caller, MemoryDisk, session, volume};
use imgstore::io::directory::{Directory, DirectoryOptions};
use imgstore::io::sim::{CrashMode, Hook, SimFiles, SimOp, Verdict};
use imgstore::io::storage::{Created, Listed, Object, Storage, StorageError};
use imgstore::model::account::AccountId;
use imgstore::model::ids::SnapshotId;
use imgstore::model::region::ChunkerParams;
use imgstore::ops::copy::{CopyOptions, CopyWhat, apply, plan};
use imgstore::ops::delete::delete_snapshot;
use imgstore::ops::error::OpsError;
use imgstore::ops::gc::{GcOptions, collect};
use imgstore::ops::verify::{VerifyOptions, verify};
use imgstore::region::error::RegionError;
use imgstore::region::{Region, RegionOptions};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

const HOME: &str = "/a";
const AWAY: &str = "/b";

fn options() -> RegionOptions {
    let chunker = ChunkerParams { min_blocks: 1, avg_blocks: 2, max_blocks: 4, zero_tail_bytes: 32 };
    RegionOptions { chunker, pack_bytes: 16 << 10, ..RegionOptions::named("sim", AccountId::from_random(1)) }
}

/// A wrapper around a region's storage: a seeded bug, or none.
type Wrap = Arc<dyn Fn(Arc<dyn Storage>) -> Arc<dyn Storage> + Send + Sync>;

fn honest() -> Wrap {
    Arc::new(|storage| storage)
}

struct World {
    files: SimFiles,
    wrap: Wrap,
}

impl World {
    fn storage(&self, root: &str) -> (Directory<SimFiles>, imgstore::model::ids::SessionId) {
        let session = session();
        let directory = DirectoryOptions { reserve_bytes: 0, ..DirectoryOptions::default() };
        (Directory::new(self.files.clone(), Path::new(root), session.to_string(), directory), session)
    }

    fn create(&self, root: &str) -> Result<Region, RegionError> {
        let (storage, session) = self.storage(root);
        storage.initialize()?;
        Region::create((self.wrap)(Arc::new(storage)), session, &options())
    }

    fn open(&self, root: &str) -> Result<Region, RegionError> {
        let (storage, session) = self.storage(root);
        Region::open((self.wrap)(Arc::new(storage)), session)
    }
}

/// What was acknowledged, and after how many operations.
#[derive(Clone)]
enum Ack {
    Init(&'static str),
    Snapshot(&'static str, SnapshotId, Arc<Vec<u8>>),
    Deleted(&'static str, SnapshotId),
    /// Packs were condemned, rewritten and freed, and orphans removed.
    Collected,
}

struct History {
    files: SimFiles,
    acks: Vec<(usize, Ack)>,
    /// What may exist: every snapshot that was tried.
    contents: Vec<Arc<Vec<u8>>>,
}

fn contents() -> Vec<Arc<Vec<u8>>> {
    let first = volume(70_000, 1);
    let mut second = first.clone();
    second[20_000..24_000].fill(7);
    second.extend(volume(30_000, 2));
    let third = volume(20_001, 3);
    [first, second, third].map(Arc::new).to_vec()
}

/// Init of two regions, three snapshots, a copy, a deletion, a collection, another opening: until something fails.
fn play(files: &SimFiles, wrap: &Wrap, acks: &mut Vec<(usize, Ack)>) -> Result<(), OpsError> {
    let caller = Caller::new(1);
    let world = World { files: files.clone(), wrap: wrap.clone() };
    let contents = contents();
    let mut say = |ack| acks.push((files.operations(), ack));
    let take = |region: &Region, at: usize| -> Result<SnapshotId, OpsError> {
        let disk = MemoryDisk::new(contents[at].to_vec());
        Ok(caller.snapshot(region, &disk)?.snapshot.id)
    };
    let home = world.create(HOME)?;
    say(Ack::Init(HOME));
    let first = take(&home, 0)?;
    say(Ack::Snapshot(HOME, first, contents[0].clone()));
    let second = take(&home, 1)?;
    say(Ack::Snapshot(HOME, second, contents[1].clone()));
    let away = world.create(AWAY)?;
    say(Ack::Init(AWAY));
    let copy_options = CopyOptions::default();
    let plan = plan(&home, &away, CopyWhat::Snapshot(second), &copy_options, &caller.context())?;
    let copy = apply(&home, &away, &plan, &copy_options, &caller.context())?.snapshots.remove(0).id;
    say(Ack::Snapshot(AWAY, copy, contents[1].clone()));
    delete_snapshot(&home, first, &caller.context())?;
    say(Ack::Deleted(HOME, first));
    // What was in the first alone goes at once; of what is left some packs are rewritten.
    drop(home);
    let options = GcOptions { grace_ms: 0, repack_percent: 90 };
    let collected = collect(&world.open(HOME)?, &options, &caller.context())?;
    if collected.freed.count > 0 && collected.repacked.count > 0 && collected.orphans.count > 0 {
        say(Ack::Collected);
    }
    let home = world.open(HOME)?;
    let third = take(&home, 2)?;
    say(Ack::Snapshot(HOME, third, contents[2].clone()));
    Ok(())
}

fn record(wrap: &Wrap, hook: Option<Hook>) -> History {
    let files = SimFiles::new();
    let seen = hook.map_or_else(|| files.clone(), |hook| files.with_hook(hook));
    let mut acks = Vec::new();
    // A seeded bug may make the run itself fail; what it acknowledged until then still counts.
    let _ = play(&seen, wrap, &mut acks);
    History { files, acks, contents: contents() }
}

/// What is wrong with a disk after a crash at which `acks` had been given.
fn violation(
    caller: &Caller,
    files: &SimFiles,
    acks: &[Ack],
    contents: &[Arc<Vec<u8>>],
    go_on: bool,
) -> Option<String> {
    let world = World { files: files.clone(), wrap: honest() };
    for root in [HOME, AWAY] {
        let promised = acks.iter().any(|ack| matches!(ack, Ack::Init(of) if *of == root));
        let region = match world.open(root) {
            Ok(region) => region,
            Err(RegionError::NotARegion) if !promised => {
                if go_on && let Err(error) = world.create(root) {
                    return Some(format!("{root}: a new region cannot be made: {error}"));
                }
                continue;
            }
            Err(error) => return Some(format!("{root}: {error}")),
        };
        if let Some(fault) = region_violation(caller, root, &region, acks, contents, go_on) {
            return Some(format!("{root}: {fault}"));
        }
    }
    None
}

fn region_violation(
    caller: &Caller,
    root: &str,
    region: &Region,
    acks: &[Ack],
    contents: &[Arc<Vec<u8>>],
    go_on: bool,
) -> Option<String> {
    let catalog = match region.catalog() {
        Ok(catalog) => catalog,
        Err(error) => return Some(error.to_string()),
    };
    let deleted =
        |id: &SnapshotId| acks.iter().any(|ack| matches!(ack, Ack::Deleted(of, d) if *of == root && d == id));
    for ack in acks {
        match ack {
            Ack::Snapshot(of, id, bytes) if *of == root && catalog.snapshots.contains_key(id) => {
                match caller.read_directly(region, *id) {
                    Ok(found) if found == **bytes => {}
                    Ok(_) => return Some(format!("{id} has other bytes")),
                    Err(error) => return Some(format!("{id}: {error}")),
                }
            }
            // A deletion that was under way may have become durable.
            Ack::Snapshot(of, id, _) if *of == root && !deleted(id) && !may_be_deleted(acks, id) => {
                return Some(format!("{id} was acknowledged and is gone"));
            }
            Ack::Deleted(of, id) if *of == root && catalog.snapshots.contains_key(id) => {
                return Some(format!("{id} was deleted and is back"));
            }
            _ => {}
        }
    }
    for id in catalog.snapshots.keys() {
        match caller.read_directly(region, *id) {
            Ok(bytes) if contents.iter().any(|content| **content == bytes) => {}
            Ok(_) => return Some(format!("{id} is listed and has bytes that nobody wrote")),
            Err(error) => return Some(format!("{id} is listed and cannot be read: {error}")),
        }
    }
    if go_on {
        let disk = MemoryDisk::new(contents[1].to_vec());
        let id = match caller.snapshot(region, &disk) {
            Ok(taken) => taken.snapshot.id,
            Err(error) => return Some(format!("it does not go on: {error}")),
        };
        if !caller.read_directly(region, id).is_ok_and(|bytes| bytes == *contents[1]) {
            return Some("a snapshot after the crash is not whole".into());
        }
        match verify(region, &VerifyOptions::default(), &caller.context()) {
            Ok(report) if report.findings.is_empty() => {}
            Ok(report) => return Some(format!("verify: {:?}", report.findings)),
            Err(error) => return Some(format!("verify: {error}")),
        }
    }
    None
}

/// The first snapshot is deleted right after the copy was acknowledged.
fn may_be_deleted(acks: &[Ack], id: &SnapshotId) -> bool {
    let first = acks.iter().find_map(|ack| if let Ack::Snapshot(_, id, _) = ack { Some(id) } else { None });
    let copied = acks.iter().any(|ack| matches!(ack, Ack::Snapshot(root, ..) if *root == AWAY));
    first == Some(id) && copied
}

/// Crashes a history at every operation in many ways. Gives the number of states and the violations.
fn crash_everywhere(history: &History, states: usize, stop_at_first: bool) -> (usize, Vec<String>) {
    let operations = history.files.operations();
    let mixtures = (states / (operations + 1)).saturating_sub(2);
    let (next, tried, violations) = (AtomicUsize::new(0), AtomicUsize::new(0), Mutex::new(Vec::new()));
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                let caller = Caller::new(1);
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    if at > operations || (stop_at_first && !violations.lock().unwrap().is_empty()) {
                        return;
                    }
                    let acks: Vec<Ack> = history
                        .acks
                        .iter()
                        .filter(|(when, _)| *when <= at)
                        .map(|(_, ack)| ack.clone())
                        .collect();
                    let mixed = (0..mixtures as u64).map(|seed| CrashMode::Mixed(seed << 20 | at as u64));
                    for (number, mode) in
                        [CrashMode::DropUnsynced, CrashMode::KeepAll].into_iter().chain(mixed).enumerate()
                    {
                        let files = history.files.crash(at, mode);
                        tried.fetch_add(1, Ordering::Relaxed);
                        let go_on = number % 16 < 2;
                        if let Some(fault) = violation(&caller, &files, &acks, &history.contents, go_on) {
                            violations.lock().unwrap().push(format!("operation {at}, {mode:?}: {fault}"));
                            break;
                        }
                    }
                }
            });
        }
    });
    (tried.into_inner(), violations.into_inner().unwrap())
}

fn states_wanted() -> usize {
    std::env::var("IMGSTORE_CRASH_STATES").ok().and_then(|text| text.parse().ok()).unwrap_or(100_000)
}

#[test]
fn no_crash_loses_or_changes_what_was_acknowledged() {
    let history = record(&honest(), None);
    assert_eq!(history.acks.len(), 8, "the honest run does all it should");
    let (tried, violations) = crash_everywhere(&history, states_wanted(), false);
    assert!(violations.is_empty(), "{} violations, the first: {}", violations.len(), violations[0]);
    assert!(tried * 100 >= states_wanted() * 95, "{tried} states tried");
    println!("{tried} crash states over {} operations, no violation", history.files.operations());
}

#[test]
fn every_operation_may_fail_once_and_nothing_acknowledged_suffers() {
    use std::io::ErrorKind;
    let operations = record(&honest(), None).files.operations();
    let caller = Caller::new(1);
    for kind in [ErrorKind::Other, ErrorKind::StorageFull, ErrorKind::Interrupted, ErrorKind::WriteZero] {
        for at in 0..operations {
            let count = AtomicUsize::new(0);
            let hook: Hook = Arc::new(move |_: &SimOp| {
                if count.fetch_add(1, Ordering::SeqCst) == at {
                    Verdict::Fail(kind)
                } else {
                    Verdict::Proceed
                }
            });
            let history = record(&honest(), Some(hook));
            let acks: Vec<Ack> = history.acks.iter().map(|(_, ack)| ack.clone()).collect();
            let end = history.files.operations();
            for mode in [CrashMode::DropUnsynced, CrashMode::KeepAll] {
                let fault =
                    violation(&caller, &history.files.crash(end, mode), &acks, &history.contents, true);
                assert_eq!(fault, None, "{kind:?} at operation {at}, then {mode:?}");
            }
        }
    }
}

// Seeded bugs ---------------------------------------------------------------------------------------------

/// The kind of object that an inode holds, by its first bytes.
#[derive(Default)]
struct Kinds(Mutex<HashMap<u64, [u8; 8]>>);

impl Kinds {
    fn note(&self, op: &SimOp) {
        if let SimOp::Write(inode, bytes) = op
            && let Some(magic) = bytes.first_chunk()
        {
            self.0.lock().unwrap().entry(*inode).or_insert(*magic);
        }
    }

    fn is(&self, inode: u64, magic: &[u8; 8]) -> bool {
        self.0.lock().unwrap().get(&inode) == Some(magic)
    }
}

/// A kind of object is never synced.
fn skip_sync_of(magic: &'static [u8; 8]) -> Hook {
    let kinds = Kinds::default();
    Arc::new(move |op| {
        kinds.note(op);
        match op {
            SimOp::Sync(inode) if kinds.is(*inode, magic) => Verdict::Skip,
            _ => Verdict::Proceed,
        }
    })
}

/// Some directories are never synced.
fn skip_sync_dir(of: fn(&str) -> bool) -> Hook {
    Arc::new(move |op| match op {
        SimOp::SyncDir(path) if of(&path.to_string_lossy()) => Verdict::Skip,
        _ => Verdict::Proceed,
    })
}

/// What a faulty protocol would do with a call of `create`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// Packs are written after the record that names them.
    RecordBeforePack,
    /// Manifests are written after the record that names them.
    RecordBeforeManifest,
    /// A record is acknowledged when it is handed over, and written later.
    AcknowledgeEarly,
    /// A failed sync of a directory is taken for success.
    IgnoreFailedSync,
    /// What was replayed is acted on without making it durable.
    SkipPersist,
    /// A name that exists is replaced.
    Replace,
}

struct Faulty {
    inner: Arc<dyn Storage>,
    fault: Fault,
    late: Mutex<Vec<(String, Vec<u8>)>>,
}

impl Faulty {
    fn wrap(fault: Fault) -> Wrap {
        Arc::new(move |inner| Arc::new(Self { inner, fault, late: Mutex::default() }))
    }

    fn write_late(&self) -> Result<(), StorageError> {
        for (name, bytes) in std::mem::take(&mut *self.late.lock().unwrap()) {
            self.inner.create(&name, &[&bytes])?;
        }
        Ok(())
    }

    fn is_late(&self, name: &str) -> bool {
        match self.fault {
            Fault::RecordBeforePack => name.starts_with("packs/"),
            Fault::RecordBeforeManifest => name.starts_with("manifests/"),
            Fault::AcknowledgeEarly => name.starts_with("log/"),
            _ => false,
        }
    }
}

impl Storage for Faulty {
    fn create(&self, name: &str, parts: &[&[u8]]) -> Result<Created, StorageError> {
        if self.fault == Fault::AcknowledgeEarly {
            self.write_late()?;
        }
        if self.is_late(name) {
            self.late.lock().unwrap().push((name.to_owned(), parts.concat()));
            return Ok(Created::New);
        }
        if self.fault == Fault::Replace {
            self.inner.delete(name)?;
        }
        let created = self.inner.create(name, parts);
        self.write_late()?;
        match created {
            Err(e) if e.is_unknown_outcome() && self.fault == Fault::IgnoreFailedSync => Ok(Created::New),
            created => created,
        }
    }

    fn open(&self, name: &str) -> Result<Arc<dyn Object>, StorageError> {
        if self.late.lock().unwrap().iter().any(|(late, _)| late == name) {
            self.write_late()?;
        }
        self.inner.open(name)
    }

    fn list(&self, folder: &str) -> Result<Vec<Listed>, StorageError> {
        self.inner.list(folder)
    }

    fn delete(&self, name: &str) -> Result<(), StorageError> {
        self.inner.delete(name)
    }

    fn persist(&self, folder: &str) -> Result<(), StorageError> {
        if self.fault == Fault::SkipPersist { Ok(()) } else { self.inner.persist(folder) }
    }

    fn admit_writer(&self) -> Result<(), StorageError> {
        self.inner.admit_writer()
    }

    fn admit_collector(&self) -> Result<bool, StorageError> {
        self.inner.admit_collector()
    }

    fn is_writer_gone(&self, writer: &str) -> Result<bool, StorageError> {
        self.inner.is_writer_gone(writer)
    }
}

fn caught(name: &str, wrap: &Wrap, hook: Option<Hook>) {
    let history = record(wrap, hook);
    let (tried, violations) = crash_everywhere(&history, 20_000, true);
    assert!(!violations.is_empty(), "{name} was not caught in {tried} states");
}

#[test]
fn seeded_bugs_in_what_is_synced_are_caught() {
    let bugs: [(&str, Hook); 10] = [
        ("packs not synced", skip_sync_of(b"IMGSPACK")),
        ("manifests not synced", skip_sync_of(b"IMGSMANI")),
        ("records not synced", skip_sync_of(b"IMGSRECD")),
        ("region file not synced", skip_sync_of(b"IMGSREGN")),
        ("folders of packs not synced", skip_sync_dir(|path| path.contains("/packs/"))),
        ("folders of manifests not synced", skip_sync_dir(|path| path.contains("/manifests/"))),
        ("folders of records not synced", skip_sync_dir(|path| path.contains("/log/"))),
        ("new folders not synced above", skip_sync_dir(|path| path.ends_with("/packs"))),
        ("new shards of the log not synced above", skip_sync_dir(|path| path.ends_with("/log"))),
        ("region's own folder not synced", skip_sync_dir(|path| path == HOME)),
    ];
    for (name, hook) in bugs {
        caught(name, &honest(), Some(hook));
    }
}

#[test]
fn seeded_bugs_in_the_order_of_writes_are_caught() {
    caught("record before its packs", &Faulty::wrap(Fault::RecordBeforePack), None);
    caught("record before its manifest", &Faulty::wrap(Fault::RecordBeforeManifest), None);
    caught("acknowledged before the record is durable", &Faulty::wrap(Fault::AcknowledgeEarly), None);
}

/// Fails the sync of a log folder, number `at`, after the rename has made the record visible.
fn fail_log_sync(at: usize) -> Hook {
    let count = AtomicUsize::new(0);
    Arc::new(move |op| match op {
        SimOp::SyncDir(path) if path.to_string_lossy().contains("/log/") => {
            let fails = count.fetch_add(1, Ordering::SeqCst) == at;
            if fails { Verdict::Fail(std::io::ErrorKind::Other) } else { Verdict::Proceed }
        }
        _ => Verdict::Proceed,
    })
}

#[test]
fn a_failed_sync_that_is_taken_for_success_is_caught() {
    let lost = |wrap: &Wrap| {
        (0..6).any(|at| {
            let history = record(wrap, Some(fail_log_sync(at)));
            !crash_everywhere(&history, 5_000, true).1.is_empty()
        })
    };
    assert!(!lost(&honest()), "the honest store reports an unknown outcome");
    assert!(lost(&Faulty::wrap(Fault::IgnoreFailedSync)), "the seeded bug was not caught");
}

/// A record that another writer left visible but not durable: whoever acts on it must make it durable.
#[test]
fn acting_on_a_record_that_is_not_durable_is_caught() {
    let survives = |wrap: &Wrap| {
        let files = SimFiles::new();
        let caller = Caller::new(1);
        World { files: files.clone(), wrap: honest() }.create(HOME).unwrap();
        let dying = AtomicBool::new(false);
        let hook: Hook = Arc::new(move |op| match op {
            SimOp::Rename(_, to) if to.to_string_lossy().contains("/log/") => {
                dying.store(true, Ordering::SeqCst);
                Verdict::Proceed
            }
            SimOp::SyncDir(_) if dying.load(Ordering::SeqCst) => Verdict::Fail(std::io::ErrorKind::Other),
            _ => Verdict::Proceed,
        });
        let dying = World { files: files.with_hook(hook), wrap: honest() }.open(HOME).unwrap();
        let nobody = caller.snapshot(&dying, &MemoryDisk::new(volume(20_000, 4)));
        assert!(nobody.is_err(), "the dying writer acknowledges nothing");
        let reader = World { files: files.clone(), wrap: wrap.clone() }.open(HOME).unwrap();
        let seen = reader
            .commit::<_, RegionError>(caller.account, |catalog| Ok((vec![], catalog.sequence)))
            .unwrap();
        assert!(seen > 0, "the record is visible");
        let after = files.crash(files.operations(), CrashMode::DropUnsynced);
        World { files: after, wrap: honest() }.open(HOME).unwrap().catalog().unwrap().sequence == seen
    };
    assert!(survives(&honest()));
    assert!(!survives(&Faulty::wrap(Fault::SkipPersist)), "the seeded bug was not caught");
}

/// Two writers race for one place in the log: the slower one must see it taken.
#[test]
fn a_log_that_replaces_records_is_caught() {
    let both_there = |wrap: &Wrap| {
        let files = SimFiles::new();
        let caller = Caller::new(1);
        let world = World { files: files.clone(), wrap: wrap.clone() };
        world.create(HOME).unwrap();
        let (slow, fast) = (world.open(HOME).unwrap(), world.open(HOME).unwrap());
        let first = caller.snapshot(&fast, &MemoryDisk::new(volume(20_000, 1))).unwrap().snapshot;
        let mut raced = None;
        let made = slow.commit::<_, OpsError>(caller.account, |catalog| {
            if raced.is_none() {
                raced = Some(caller.snapshot(&fast, &MemoryDisk::new(volume(20_000, 2)))?.snapshot.id);
            }
            let mut copy = catalog.snapshots[&first.id].clone();
            copy.id = SnapshotId::from_random(77);
            let op = imgstore::model::op::Op::CreateSnapshot { snapshot: Box::new(copy), packs: vec![] };
            Ok((vec![op], SnapshotId::from_random(77)))
        });
        let Ok(catalog) = World { files, wrap: honest() }.open(HOME).and_then(|region| region.catalog())
        else {
            return false;
        };
        made.is_ok_and(|id| catalog.snapshots.contains_key(&id))
            && raced.is_some_and(|id| catalog.snapshots.contains_key(&id))
    };
    assert!(both_there(&honest()));
    assert!(!both_there(&Faulty::wrap(Fault::Replace)), "the seeded bug was not caught");
}

#[test]
fn damage_to_any_byte_is_found_or_harmless() {
    let history = record(&honest(), None);
    let caller = Caller::new(1);
    let mut draw = common::Draw::new(5);
    let every_bit = std::env::var_os("IMGSTORE_EVERY_BIT").is_some();
    let files: Vec<(PathBuf, u64)> =
        history.files.all_files().into_iter().filter(|(path, _)| path.starts_with(HOME)).collect();
    assert!(files.len() > 10);
    let end = history.files.operations();
    let mut found = 0;
    for (path, len) in &files {
        for at in 0..*len as usize {
            let bits = if every_bit { (0..8).collect() } else { vec![draw.below(8)] };
            // A bit of every byte of small files; of large ones a sample.
            if !every_bit && *len > 6000 && draw.below(8) != 0 {
                continue;
            }
            for bit in bits {
                let damaged = history.files.crash(end, CrashMode::KeepAll);
                damaged.damage(path, |bytes| bytes[at] ^= 1 << bit);
                if finds_damage(&caller, &damaged, &history.contents) {
                    found += 1;
                }
            }
        }
    }
    assert!(found > 1000, "only {found} flips were reported");
}

/// Whether `verify` reports damage. If it does not, everything must read as it was.
fn finds_damage(caller: &Caller, files: &SimFiles, contents: &[Arc<Vec<u8>>]) -> bool {
    let world = World { files: files.clone(), wrap: honest() };
    let region = match world.open(HOME) {
        Ok(region) => region,
        Err(error) => {
            assert!(error.is_damage() || error.to_string().contains("newer"), "{error}");
            return true;
        }
    };
    let report = verify(&region, &VerifyOptions::default(), &caller.context()).unwrap();
    let ids: Vec<SnapshotId> =
        region.catalog().map(|c| c.snapshots.keys().copied().collect()).unwrap_or_default();
    for id in &ids {
        if let Ok(bytes) = caller.read_directly(&region, *id) {
            assert!(contents.iter().any(|content| **content == bytes), "{id} gives wrong bytes");
        } else {
            assert!(!report.findings.is_empty(), "{id} cannot be read, and verify found nothing");
        }
    }
    if report.findings.is_empty() {
        assert_eq!(ids.len(), 2, "harmless damage hides nothing");
    }
    !report.findings.is_empty()
}
