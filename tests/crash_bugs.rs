//! Bugs that are put into the protocol on purpose: the crash harness must find each of them.

mod common;
mod crash_harness;

use common::{Caller, MemoryDisk, pass_on, volume};
use crash_harness::{HOME, History, World, Wrap, crash_everywhere, honest};
use imgstore::io::sim::{CrashMode, Hook, SimFiles, SimOp, Verdict};
use imgstore::io::storage::{Created, Listed, Object, Storage, StorageError};
use imgstore::model::ids::SnapshotId;
use imgstore::model::words::VolumeType;
use imgstore::ops::error::OpsError;
use imgstore::ops::launch::{LaunchOptions, launch};
use imgstore::ops::volume::{VolumeOptions, create_volume};
use imgstore::region::error::RegionError;
use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

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
    /// When it errs.
    errs: Arc<AtomicBool>,
}

impl Faulty {
    fn wrap(fault: Fault) -> Wrap {
        Self::wrap_while(Arc::new(AtomicBool::new(true)), fault)
    }

    fn wrap_while(errs: Arc<AtomicBool>, fault: Fault) -> Wrap {
        Arc::new(move |inner| Arc::new(Self { inner, fault, late: Mutex::default(), errs: errs.clone() }))
    }

    fn write_late(&self) -> Result<(), StorageError> {
        for (name, bytes) in std::mem::take(&mut *self.late.lock().unwrap()) {
            self.inner.create(&name, &[&bytes])?;
        }
        Ok(())
    }

    fn is_late(&self, name: &str) -> bool {
        self.errs.load(Ordering::SeqCst)
            && match self.fault {
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

    fn leave_twin(&self, name: &str, parts: &[&[u8]]) -> bool {
        self.inner.leave_twin(name, parts)
    }

    fn has_twins(&self) -> bool {
        self.inner.has_twins()
    }

    fn open(&self, name: &str) -> Result<Arc<dyn Object>, StorageError> {
        if self.late.lock().unwrap().iter().any(|(late, _)| late == name) {
            self.write_late()?;
        }
        self.inner.open(name)
    }

    fn persist(&self, folder: &str) -> Result<(), StorageError> {
        if self.fault == Fault::SkipPersist { Ok(()) } else { self.inner.persist(folder) }
    }

    pass_on!(list restore delete admit_writer admit_collector is_writer_gone);
}

fn record(wrap: &Wrap, hook: Option<Hook>) -> History {
    crash_harness::record(wrap, hook, &AtomicBool::new(false))
}

fn caught(name: &str, wrap: &Wrap, hook: Option<Hook>) {
    caught_in(name, &record(wrap, hook));
}

fn caught_in(name: &str, history: &History) {
    let (tried, violations) = crash_everywhere(history, 20_000, true);
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

/// What a hook does, but only while `collecting`.
fn only_while(collecting: &Arc<AtomicBool>, hook: Hook) -> Hook {
    let collecting = collecting.clone();
    // The hook sees everything, since it learns from it; what it says counts only then.
    Arc::new(move |op| {
        let verdict = hook(op);
        if collecting.load(Ordering::SeqCst) { verdict } else { Verdict::Proceed }
    })
}

#[test]
fn seeded_bugs_of_the_collector_are_caught() {
    let bugs: [(&str, Hook); 4] = [
        ("rewritten packs not synced", skip_sync_of(b"IMGSPACK")),
        ("folders of rewritten packs not synced", skip_sync_dir(|path| path.contains("/packs/"))),
        ("records of the collection not synced", skip_sync_of(b"IMGSRECD")),
        ("folders of its records not synced", skip_sync_dir(|path| path.contains("/log/"))),
    ];
    for (name, hook) in bugs {
        let collecting = Arc::new(AtomicBool::new(false));
        let hook = only_while(&collecting, hook);
        caught_in(name, &crash_harness::record(&honest(), Some(hook), &collecting));
    }
    for (name, fault) in [
        ("bytes removed before the record that says so", Fault::AcknowledgeEarly),
        ("rewritten packs after the record that names them", Fault::RecordBeforePack),
    ] {
        let collecting = Arc::new(AtomicBool::new(false));
        let wrap = Faulty::wrap_while(collecting.clone(), fault);
        caught_in(name, &crash_harness::record(&wrap, None, &collecting));
    }
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

/// Whoever has put a record in its place dies before that is durable.
fn die_before_the_sync() -> Hook {
    let is_dying = AtomicBool::new(false);
    Arc::new(move |op| match op {
        SimOp::Rename(_, to) if to.to_string_lossy().contains("/log/") => {
            is_dying.store(true, Ordering::SeqCst);
            Verdict::Proceed
        }
        SimOp::SyncDir(_) if is_dying.load(Ordering::SeqCst) => Verdict::Fail(std::io::ErrorKind::Other),
        _ => Verdict::Proceed,
    })
}

/// A record that another writer left visible but not durable: whoever acts on it must make it durable.
#[test]
fn acting_on_a_record_that_is_not_durable_is_caught() {
    let survives = |wrap: &Wrap| {
        let files = SimFiles::new();
        let caller = Caller::new(1);
        World::honest(&files).create(HOME).unwrap();
        let dying = World::honest(&files.with_hook(die_before_the_sync())).open(HOME).unwrap();
        let nobody = caller.snapshot(&dying, &MemoryDisk::new(volume(20_000, 4)));
        assert!(nobody.is_err(), "the dying writer acknowledges nothing");
        let reader = World { files: files.clone(), wrap: wrap.clone() }.open(HOME).unwrap();
        let seen = reader
            .commit::<_, RegionError>(caller.account, |catalog| Ok((vec![], catalog.sequence)))
            .unwrap();
        assert!(seen > 0, "the record is visible");
        let after = files.crash(files.operations(), CrashMode::DropUnsynced);
        World::honest(&after).open(HOME).unwrap().catalog().unwrap().sequence == seen
    };
    assert!(survives(&honest()));
    assert!(!survives(&Faulty::wrap(Fault::SkipPersist)), "the seeded bug was not caught");
}

/// A request is answered by what an earlier one with its token made, whose writer died before that was durable: then it is.
#[test]
fn the_answer_to_a_repeated_request_is_durable() {
    let files = SimFiles::new();
    let (caller, disks) = (Caller::new(1), tempfile::tempdir().unwrap());
    World::honest(&files).create(HOME).unwrap();
    let options = VolumeOptions {
        snapshot_id: None,
        volume_bytes: Some(1 << 20),
        volume_type: VolumeType::Gp3,
        iops: None,
        output: disks.path().into(),
        tags: vec![],
        client_token: Some("nightly".into()),
    };
    let dying = World::honest(&files.with_hook(die_before_the_sync())).open(HOME).unwrap();
    assert!(create_volume(&dying, &options, &caller.context()).is_err());
    let again = World::honest(&files).open(HOME).unwrap();
    let made = create_volume(&again, &options, &caller.context()).unwrap();
    let after = files.crash(files.operations(), CrashMode::DropUnsynced);
    let catalog = World::honest(&after).open(HOME).unwrap().catalog().unwrap();
    assert!(catalog.volumes.contains_key(&made.id), "it was acknowledged");
    assert!(
        Path::new(&made.path).exists(),
        "the first request left the disk to the record that may be there"
    );
}

/// The same of instances: their disks are those that the request wrote which did not know how it ended.
#[test]
fn the_disks_of_a_launch_whose_answer_was_lost_stay() {
    let files = SimFiles::new();
    let (caller, disks) = (Caller::new(1), tempfile::tempdir().unwrap());
    World::honest(&files).create(HOME).unwrap();
    let bytes = volume(20_000, 1);
    let home = World::honest(&files).open(HOME).unwrap();
    let image = common::import_disks(&home, &caller, "machine", vec![bytes.clone()]);
    let options = LaunchOptions { client_token: Some("nightly".into()), ..LaunchOptions::one(disks.path()) };
    let dying = World::honest(&files.with_hook(die_before_the_sync())).open(HOME).unwrap();
    assert!(launch(&dying, image.id, &options, &caller.context()).is_err());
    let again = World::honest(&files).open(HOME).unwrap();
    let launched = launch(&again, image.id, &options, &caller.context()).unwrap();
    assert!(std::fs::read(&launched[0].volumes[0].path).unwrap().starts_with(&bytes));
    assert_eq!(again.catalog().unwrap().instances.len(), 1, "nothing was launched twice");
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
        let Ok(catalog) = World::honest(&files).open(HOME).and_then(|region| region.catalog()) else {
            return false;
        };
        made.is_ok_and(|id| catalog.snapshots.contains_key(&id))
            && raced.is_some_and(|id| catalog.snapshots.contains_key(&id))
    };
    assert!(both_there(&honest()));
    assert!(!both_there(&Faulty::wrap(Fault::Replace)), "the seeded bug was not caught");
}
