//! Which operations may run at the same time: all of them, each with each and with itself, in processes that know
//! nothing of each other. A test for each cell of the table in docs/CONCURRENCY.md.

mod common;

use common::{Caller, Draw, MemoryDisk, small_packs, volume};
use imgstore::io::directory::DirectoryOptions;
use imgstore::model::ids::SnapshotId;
use imgstore::ops::copy::{CopyOptions, CopyWhat, apply, plan};
use imgstore::ops::delete::delete_snapshot;
use imgstore::ops::error::{Class, OpsError};
use imgstore::ops::gc::{GcOptions, collect};
use imgstore::ops::repair::{RepairSources, repair};
use imgstore::ops::verify::{VerifyOptions, verify};
use imgstore::region::Region;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;

type Operation = fn(&World, &mut Draw);

/// The operations of the table, in its order.
const OPERATIONS: [(&str, Operation); 8] = [
    ("snapshot", snapshot),
    ("copy in", copy_in),
    ("copy out", copy_out),
    ("export", export),
    ("delete", delete),
    ("gc", gc),
    ("verify", check),
    ("repair", mend),
];
/// How often each runs beside the other.
const ROUNDS: usize = 5;

struct World {
    folder: tempfile::TempDir,
    /// What was acknowledged and not deleted.
    there: Mutex<BTreeMap<SnapshotId, Vec<u8>>>,
    /// What somebody deletes, or has deleted.
    gone: Mutex<Vec<SnapshotId>>,
    away: SnapshotId,
    away_bytes: Vec<u8>,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["here", "away"] {
            Region::create_directory(&folder.path().join(name), &small_packs(), options()).unwrap();
        }
        let away_bytes = volume(150_000, 3);
        let caller = Caller::new(1);
        let away = open(folder.path(), "away");
        let away = caller.snapshot(&away, &MemoryDisk::new(away_bytes.clone())).unwrap().snapshot.id;
        let world = Self { folder, there: Mutex::default(), gone: Mutex::default(), away, away_bytes };
        let mut draw = Draw::new(9);
        for _ in 0..3 {
            snapshot(&world, &mut draw);
        }
        // Something for a collection to find.
        delete(&world, &mut draw);
        world
    }

    /// As another process opens it.
    fn open(&self, name: &str) -> Region {
        open(self.folder.path(), name)
    }

    fn acknowledge(&self, id: SnapshotId, bytes: Vec<u8>) {
        self.there.lock().unwrap().insert(id, bytes);
    }

    fn any(&self, draw: &mut Draw) -> Option<(SnapshotId, Vec<u8>)> {
        let there = self.there.lock().unwrap();
        let at = draw.below(there.len());
        there.iter().nth(at).map(|(id, bytes)| (*id, bytes.clone()))
    }

    /// An operation on a snapshot failed: it must have been deleted meanwhile, and that must be what it says.
    fn excuse(&self, id: SnapshotId, error: &OpsError, what: &str) {
        assert!(!self.there.lock().unwrap().contains_key(&id), "{what} of {id}: {error}");
        assert_eq!(error.class(), Class::NotFound, "{what}: {error}");
    }
}

fn options() -> DirectoryOptions {
    DirectoryOptions { reserve_bytes: 0, ..DirectoryOptions::default() }
}

fn open(folder: &Path, name: &str) -> Region {
    Region::open_directory(&folder.join(name), options()).unwrap()
}

fn snapshot(world: &World, draw: &mut Draw) {
    // Most of it is in other snapshots, too.
    let mut bytes = volume(120_000, draw.next() % 3);
    bytes.extend(volume(40_000, draw.next() % 1000));
    let taken = Caller::new(1).snapshot(&world.open("here"), &MemoryDisk::new(bytes.clone())).unwrap();
    world.acknowledge(taken.snapshot.id, bytes);
}

fn copy(from: &Region, to: &Region, id: SnapshotId) -> Result<SnapshotId, OpsError> {
    let (caller, options) = (Caller::new(1), CopyOptions::default());
    let plan = plan(from, to, CopyWhat::Snapshot(id), &options, &caller.context())?;
    Ok(apply(from, to, &plan, &options, &caller.context())?.snapshots[0].id)
}

fn copy_in(world: &World, _: &mut Draw) {
    let id = copy(&world.open("away"), &world.open("here"), world.away).unwrap();
    world.acknowledge(id, world.away_bytes.clone());
}

fn copy_out(world: &World, draw: &mut Draw) {
    let Some((id, bytes)) = world.any(draw) else { return };
    match copy(&world.open("here"), &world.open("away"), id) {
        Ok(copy) => assert!(Caller::new(1).read_back(&world.open("away"), copy).unwrap() == bytes),
        Err(error) => world.excuse(id, &error, "copy"),
    }
}

fn export(world: &World, draw: &mut Draw) {
    let Some((id, bytes)) = world.any(draw) else { return };
    match Caller::new(1).read_back(&world.open("here"), id) {
        Ok(read) => assert!(read == bytes, "{id} has other bytes"),
        Err(error) => world.excuse(id, &error, "export"),
    }
}

fn delete(world: &World, draw: &mut Draw) {
    // Another time what somebody else deletes: one of the two finds it gone, whichever that is.
    let others = {
        let gone = world.gone.lock().unwrap();
        if draw.below(3) == 0 { gone.last().copied() } else { None }
    };
    if let Some(id) = others {
        if let Err(error) = delete_snapshot(&world.open("here"), id, &Caller::new(1).context()) {
            assert_eq!(error.class(), Class::NotFound, "{id}: {error}");
        }
        return;
    }
    // It is gone from here on, for whoever finds it gone.
    let removed = {
        let mut there = world.there.lock().unwrap();
        let at = draw.below(there.len());
        let id = there.keys().nth(at).copied();
        id.and_then(|id| there.remove_entry(&id))
    };
    let Some((id, _)) = removed else { return };
    world.gone.lock().unwrap().push(id);
    if let Err(error) = delete_snapshot(&world.open("here"), id, &Caller::new(1).context()) {
        assert_eq!(error.class(), Class::NotFound, "{id}: {error}");
    }
}

/// Of what is about to go there is something each time.
fn gc(world: &World, draw: &mut Draw) {
    if world.there.lock().unwrap().len() > 2 {
        delete(world, draw);
    }
    let options = GcOptions { grace_ms: 0, repack_percent: 60 };
    collect(&world.open("here"), &options, &Caller::new(1).context()).unwrap();
}

fn check(world: &World, _: &mut Draw) {
    let report = verify(&world.open("here"), &VerifyOptions::default(), &Caller::new(1).context()).unwrap();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
}

fn mend(world: &World, _: &mut Draw) {
    let repaired = repair(&world.open("here"), &RepairSources::default(), &Caller::new(1).context()).unwrap();
    assert!(repaired.findings.is_empty() && repaired.lost.is_empty(), "{repaired:?}");
}

#[test]
fn every_operation_runs_beside_every_other() {
    for (at, (first, run_first)) in OPERATIONS.iter().enumerate() {
        for (second, run_second) in &OPERATIONS[at..] {
            let world = World::new();
            std::thread::scope(|scope| {
                for (seed, run) in [(1, run_first), (2, run_second)] {
                    let world = &world;
                    scope.spawn(move || {
                        let mut draw = Draw::new(seed);
                        (0..ROUNDS).for_each(|_| run(world, &mut draw));
                    });
                }
            });
            let region = world.open("here");
            let there = world.there.lock().unwrap();
            let listed: Vec<SnapshotId> = region.catalog().unwrap().snapshots.keys().copied().collect();
            let known: Vec<SnapshotId> = there.keys().copied().collect();
            assert_eq!(listed, known, "{first} beside {second}");
            for (id, bytes) in there.iter() {
                let read = Caller::new(1).read_directly(&region, *id).unwrap();
                assert!(read == *bytes, "{first} beside {second}: {id} has other bytes");
            }
            drop(there);
            drop(region);
            check(&world, &mut Draw::new(1));
        }
    }
}

/// The table of the page has a row and a column for each of them.
#[test]
fn the_page_has_every_operation() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/CONCURRENCY.md")).unwrap();
    let rows: Vec<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| **")?.split_once("**"))
        .map(|(name, _)| name)
        .collect();
    let names: Vec<&str> = OPERATIONS.iter().map(|(name, _)| *name).collect();
    assert_eq!(rows, names);
    let header = page.lines().find(|line| line.starts_with("| | ")).unwrap();
    let columns: Vec<&str> = header.split('|').map(str::trim).filter(|name| !name.is_empty()).collect();
    assert_eq!(columns, names);
}
