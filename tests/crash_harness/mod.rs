//! What the crash tests share: two regions on the simulated file system, commands on them with what each has
//! acknowledged, crashes at every operation, and the oracle.
//!
//! The oracle: what was acknowledged before the crash is there and whole, what was deleted stays deleted,
//! everything that the catalogue lists is whole, and the region goes on.
#![allow(dead_code, reason = "every test uses a part of it")]

use crate::common::{Caller, MemoryDisk, session, volume};
use imgstore::io::directory::{Directory, DirectoryOptions};
use imgstore::io::sim::{CrashMode, Hook, SimFiles};
use imgstore::io::storage::Storage;
use imgstore::model::account::AccountId;
use imgstore::model::ids::{SessionId, SnapshotId};
use imgstore::model::region::ChunkerParams;
use imgstore::ops::copy::{CopyOptions, CopyWhat, apply, plan};
use imgstore::ops::delete::delete_snapshot;
use imgstore::ops::error::OpsError;
use imgstore::ops::gc::{GcOptions, collect};
use imgstore::ops::repack::{RepackOptions, repack};
use imgstore::ops::verify::{VerifyOptions, verify};
use imgstore::region::error::RegionError;
use imgstore::region::mend::Mended;
use imgstore::region::{Region, RegionOptions};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// Where commands happen.
pub const HOME: &str = "/a";
/// Where copies go.
pub const AWAY: &str = "/b";

fn options() -> RegionOptions {
    let chunker = ChunkerParams { min_blocks: 1, avg_blocks: 2, max_blocks: 4, zero_tail_bytes: 32 };
    RegionOptions { chunker, pack_bytes: 16 << 10, ..RegionOptions::named("sim", AccountId::from_random(1)) }
}

/// A wrapper around a region's storage: a seeded bug, or none.
pub type Wrap = Arc<dyn Fn(Arc<dyn Storage>) -> Arc<dyn Storage> + Send + Sync>;

/// No bug.
pub fn honest() -> Wrap {
    Arc::new(|storage| storage)
}

/// Two regions, which may not exist yet.
#[derive(Clone)]
pub struct World {
    pub files: SimFiles,
    pub wrap: Wrap,
}

impl World {
    pub fn honest(files: &SimFiles) -> Self {
        Self { files: files.clone(), wrap: honest() }
    }

    fn storage(&self, root: &str) -> (Directory<SimFiles>, SessionId) {
        let session = session();
        let directory = DirectoryOptions { reserve_bytes: 0, ..DirectoryOptions::default() };
        (Directory::new(self.files.clone(), Path::new(root), session.to_string(), directory), session)
    }

    pub fn create(&self, root: &str) -> Result<Region, RegionError> {
        let (storage, session) = self.storage(root);
        storage.initialize()?;
        Region::create((self.wrap)(Arc::new(storage)), session, &options())
    }

    /// Mends region file and log, without which the region cannot be opened.
    pub fn mend(&self, root: &str) -> Result<Mended, RegionError> {
        Region::mend_log(&*(self.wrap)(Arc::new(self.storage(root).0)), false, || Ok(()))
    }

    pub fn open(&self, root: &str) -> Result<Region, RegionError> {
        let (storage, session) = self.storage(root);
        Region::open((self.wrap)(Arc::new(storage)), session)
    }
}

/// What was acknowledged, or what is about to be done.
#[derive(Clone)]
pub enum Ack {
    Init(&'static str),
    Snapshot(&'static str, SnapshotId, Arc<Vec<u8>>),
    /// It may be gone from now on.
    Deleting(&'static str, SnapshotId),
    Deleted(&'static str, SnapshotId),
    /// Packs were condemned, rewritten and freed, and orphans removed.
    Collected,
    /// The log was mended: a region can be opened.
    Mended(&'static str),
    /// A region was repaired: nothing in it is damaged.
    Repaired(&'static str),
    /// Whatever was done, the log of the region has come to this record.
    Reached(&'static str, u64),
}

/// What happened, and after how many operations each thing was acknowledged.
pub struct History {
    pub files: SimFiles,
    /// Operations before the first crash: what they did is there.
    pub start: usize,
    pub acks: Vec<(usize, Ack)>,
    /// What may exist: the content of every snapshot that was tried.
    pub contents: Vec<Arc<Vec<u8>>>,
}

/// The contents of the disks.
pub fn contents() -> Vec<Arc<Vec<u8>>> {
    let both = volume(60_000, 1);
    let mut second = both.clone();
    // Stored against what it was.
    second[20_000..20_050].fill(7);
    second.extend(volume(30_000, 2));
    let first = [both, volume(30_000, 4)].concat();
    let third = volume(20_001, 3);
    [first, second, third].map(Arc::new).to_vec()
}

/// Who does things, one after another, and what was acknowledged.
pub struct Player<'a> {
    pub world: World,
    pub caller: Caller,
    pub contents: Vec<Arc<Vec<u8>>>,
    pub acks: &'a mut Vec<(usize, Ack)>,
}

impl<'a> Player<'a> {
    pub fn new(world: World, contents: Vec<Arc<Vec<u8>>>, acks: &'a mut Vec<(usize, Ack)>) -> Self {
        Self { world, caller: Caller::new(1), contents, acks }
    }

    pub fn say(&mut self, ack: Ack) {
        self.acks.push((self.world.files.operations(), ack));
    }

    /// What is durable now: whatever came before was acknowledged.
    pub fn reached(&mut self, root: &'static str) -> Result<(), OpsError> {
        let sequence = self.world.open(root)?.catalog()?.sequence;
        self.say(Ack::Reached(root, sequence));
        Ok(())
    }

    pub fn init(&mut self, root: &'static str) -> Result<Region, OpsError> {
        let region = self.world.create(root)?;
        self.say(Ack::Init(root));
        Ok(region)
    }

    pub fn take(&mut self, region: &Region, at: usize) -> Result<SnapshotId, OpsError> {
        let bytes = self.contents[at].clone();
        let id = self.caller.snapshot(region, &MemoryDisk::new(bytes.to_vec()))?.snapshot.id;
        self.say(Ack::Snapshot(HOME, id, bytes));
        Ok(id)
    }

    pub fn copy(&mut self, from: &Region, to: &Region, id: SnapshotId) -> Result<SnapshotId, OpsError> {
        let (options, context) = (CopyOptions::default(), self.caller.context());
        let plan = plan(from, to, CopyWhat::Snapshot(id), &options, &context)?;
        let copy = apply(from, to, &plan, &options, &context)?.snapshots.remove(0).id;
        let known = self.acks.iter().find_map(|(_, ack)| match ack {
            Ack::Snapshot(_, of, bytes) if *of == id => Some(bytes.clone()),
            _ => None,
        });
        self.say(Ack::Snapshot(AWAY, copy, known.expect("what is copied was acknowledged")));
        Ok(copy)
    }

    pub fn delete(&mut self, region: &Region, id: SnapshotId) -> Result<(), OpsError> {
        self.say(Ack::Deleting(HOME, id));
        delete_snapshot(region, id, &self.caller.context())?;
        self.say(Ack::Deleted(HOME, id));
        Ok(())
    }
}

/// Init of two regions, three snapshots, a copy, a deletion, a collection, another opening, all made anew: until something fails.
/// `collecting` is set while the collection runs.
fn play(player: &mut Player<'_>, collecting: &AtomicBool) -> Result<(), OpsError> {
    let home = player.init(HOME)?;
    let first = player.take(&home, 0)?;
    let second = player.take(&home, 1)?;
    let away = player.init(AWAY)?;
    player.copy(&home, &away, second)?;
    player.delete(&home, first)?;
    // What was in the first alone goes at once; of what is left some packs are rewritten.
    drop(home);
    let options = GcOptions { grace_ms: 0, repack_percent: 90 };
    collecting.store(true, Ordering::SeqCst);
    let collected = player
        .world
        .open(HOME)
        .map_err(OpsError::from)
        .and_then(|region| collect(&region, &options, &player.caller.context()));
    collecting.store(false, Ordering::SeqCst);
    let collected = collected?;
    if collected.freed.count > 0 && collected.repacked.count > 0 && collected.orphans.count > 0 {
        player.say(Ack::Collected);
    }
    let home = player.world.open(HOME)?;
    player.take(&home, 2)?;
    repack(&player.world.open(HOME)?, &RepackOptions::default(), &player.caller.context())?;
    player.reached(HOME)
}

/// A run of the schedule, with a seeded bug in the storage or the file system, or without.
pub fn record(wrap: &Wrap, hook: Option<Hook>, collecting: &AtomicBool) -> History {
    let files = SimFiles::new();
    let seen = hook.map_or_else(|| files.clone(), |hook| files.with_hook(hook));
    record_on(files, &seen, wrap, collecting)
}

/// The same on files as `seen` shows them.
pub fn record_on(files: SimFiles, seen: &SimFiles, wrap: &Wrap, collecting: &AtomicBool) -> History {
    let mut acks = Vec::new();
    let world = World { files: seen.clone(), wrap: wrap.clone() };
    // A seeded bug may make the run itself fail; what it acknowledged until then still counts.
    let _ = play(&mut Player::new(world, contents(), &mut acks), collecting);
    History { files, start: 0, acks, contents: contents() }
}

/// What is wrong with a disk after a crash at which `acks` had been given.
pub fn violation(
    caller: &Caller,
    files: &SimFiles,
    acks: &[Ack],
    contents: &[Arc<Vec<u8>>],
    go_on: bool,
) -> Option<String> {
    let world = World::honest(files);
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
    if let Some(fault) = not_as_acknowledged(caller, root, region, acks, contents) {
        return Some(fault);
    }
    if !go_on {
        return None;
    }
    // What a crash has left is what a collection finds.
    does_not_go_on(caller, region, &contents[1])
        .or_else(|| not_as_acknowledged(caller, root, region, acks, contents))
}

/// What is missing of what was acknowledged, is back, or is not what anybody wrote.
fn not_as_acknowledged(
    caller: &Caller,
    root: &str,
    region: &Region,
    acks: &[Ack],
    contents: &[Arc<Vec<u8>>],
) -> Option<String> {
    let catalog = match region.catalog() {
        Ok(catalog) => catalog,
        Err(error) => return Some(error.to_string()),
    };
    // A deletion that was under way may have become durable.
    let may_be_gone = |id: &SnapshotId| {
        acks.iter().any(|ack| matches!(ack, Ack::Deleting(of, d) if *of == root && d == id))
    };
    for ack in acks {
        match ack {
            Ack::Snapshot(of, id, bytes) if *of == root && catalog.snapshots.contains_key(id) => {
                match caller.read_directly(region, *id) {
                    Ok(found) if found == **bytes => {}
                    Ok(_) => return Some(format!("{id} has other bytes")),
                    Err(error) => return Some(format!("{id}: {error}")),
                }
            }
            Ack::Snapshot(of, id, _) if *of == root && !may_be_gone(id) => {
                return Some(format!("{id} was acknowledged and is gone"));
            }
            Ack::Deleted(of, id) if *of == root && catalog.snapshots.contains_key(id) => {
                return Some(format!("{id} was deleted and is back"));
            }
            Ack::Reached(of, sequence) if *of == root && catalog.sequence < *sequence => {
                return Some(format!(
                    "record {sequence} was acknowledged, the log ends at {}",
                    catalog.sequence
                ));
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
    None
}

/// What is wrong with what comes after the crash: a snapshot, a check of everything, a collection of what the crash has
/// left and a few packs anew, and another check.
fn does_not_go_on(caller: &Caller, region: &Region, content: &[u8]) -> Option<String> {
    let disk = MemoryDisk::new(content.to_vec());
    let id = match caller.snapshot(region, &disk) {
        Ok(taken) => taken.snapshot.id,
        Err(error) => return Some(format!("it does not go on: {error}")),
    };
    if !caller.read_directly(region, id).is_ok_and(|bytes| bytes == content) {
        return Some("a snapshot after the crash is not whole".into());
    }
    if let Some(fault) = check_finds(caller, region) {
        return Some(fault);
    }
    let options = GcOptions { grace_ms: 0, repack_percent: 90 };
    if let Err(error) = collect(region, &options, &caller.context()) {
        return Some(format!("it cannot be collected: {error}"));
    }
    check_finds(caller, region).map(|fault| format!("after a collection: {fault}"))
}

fn check_finds(caller: &Caller, region: &Region) -> Option<String> {
    match verify(region, &VerifyOptions::default(), &caller.context()) {
        Ok(report) if report.findings.is_empty() => None,
        Ok(report) => Some(format!("verify: {:?}", report.findings)),
        Err(error) => Some(format!("verify: {error}")),
    }
}

/// What had been acknowledged when so many operations were done.
pub fn acks_at(history: &History, operations: usize) -> Vec<Ack> {
    history.acks.iter().filter(|(when, _)| *when <= operations).map(|(_, ack)| ack.clone()).collect()
}

/// A disk after a crash, and what is known of it: see [`violation`].
pub struct Crash<'a> {
    pub caller: &'a Caller,
    pub files: &'a SimFiles,
    pub acks: &'a [Ack],
    pub contents: &'a [Arc<Vec<u8>>],
    pub go_on: bool,
}

impl Crash<'_> {
    pub fn violation(&self) -> Option<String> {
        violation(self.caller, self.files, self.acks, self.contents, self.go_on)
    }
}

/// What is wrong after a crash.
pub type Oracle<'a> = &'a (dyn Fn(&Crash<'_>) -> Option<String> + Sync);

/// Crashes a history at every operation in many ways. Gives the number of states and the violations.
pub fn crash_everywhere(history: &History, states: usize, stop_at_first: bool) -> (usize, Vec<String>) {
    crash_with(&|crash: &Crash<'_>| crash.violation(), history, states, stop_at_first)
}

/// The same, as an oracle sees it.
pub fn crash_with(
    oracle: Oracle<'_>,
    history: &History,
    states: usize,
    stop_at_first: bool,
) -> (usize, Vec<String>) {
    let operations = history.files.operations();
    let mixtures = (states / (operations - history.start + 1)).saturating_sub(2);
    let (next, tried, violations) =
        (AtomicUsize::new(history.start), AtomicUsize::new(0), Mutex::new(Vec::new()));
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
                    let acks = acks_at(history, at);
                    let mixed = (0..mixtures as u64).map(|seed| CrashMode::Mixed(seed << 20 | at as u64));
                    for (number, mode) in
                        [CrashMode::DropUnsynced, CrashMode::KeepAll].into_iter().chain(mixed).enumerate()
                    {
                        let files = history.files.crash(at, mode);
                        tried.fetch_add(1, Ordering::Relaxed);
                        let go_on = number % 16 < 2;
                        let (caller, files, acks) = (&caller, &files, &acks);
                        let crash = Crash { caller, files, acks, contents: &history.contents, go_on };
                        if let Some(fault) = oracle(&crash) {
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
