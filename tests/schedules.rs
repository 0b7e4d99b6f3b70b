//! Random schedules of writers, deleters, collectors, readers, copies and checks in several processes, of which one at a time
//! takes a step on the simulated disk, with kills, lost answers, failing steps and power failures: nothing that was
//! acknowledged is lost, nobody reads other bytes, and who fails says why.
//!
//! A long run: `IMGSTORE_SCHEDULES=100000 cargo test --release --test schedules`. One again: `IMGSTORE_SCHEDULE=SEED`.

mod common;
mod turns;

use common::{Caller, Draw, MemoryDisk, changed, session, text, volume};
use imgstore::io::directory::{Directory, DirectoryOptions};
use imgstore::io::sim::{CrashMode, SimFiles};
use imgstore::io::storage::Storage;
use imgstore::model::account::{AccountId, Resource};
use imgstore::model::catalog::Rejection;
use imgstore::model::ids::SnapshotId;
use imgstore::model::region::ChunkerParams;
use imgstore::ops::bin::{add_rule, restore_snapshot};
use imgstore::ops::copy::{CopyOptions, CopyWhat, apply, plan};
use imgstore::ops::delete::delete_snapshot;
use imgstore::ops::diff::{differences, pairs};
use imgstore::ops::error::{Class, OpsError};
use imgstore::ops::find::AnyId;
use imgstore::ops::gc::{GcOptions, collect, preview};
use imgstore::ops::repack::{RepackOptions, repack};
use imgstore::ops::repair::{RepairSources, repair};
use imgstore::ops::stats::{item_stats, region_stats};
use imgstore::ops::verify::{VerifyOptions, verify};
use imgstore::region::error::RegionError;
use imgstore::region::{Region, RegionOptions};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use turns::{Fate, Running, Turns};

/// The two regions, on one disk.
const ROOTS: [&str; 2] = ["/a", "/b"];
/// Processes that run beside each other at most.
const PROCESSES: usize = 4;

type Content = Arc<Vec<u8>>;

/// What is known of a snapshot that was acknowledged.
struct Known {
    content: Content,
    deletion: Deletion,
    /// How often somebody began to delete or restore it, and how many are under way: of what others did meanwhile nobody knows
    /// which came last.
    tries: u64,
    under_way: u64,
}

impl Known {
    fn new(content: Content, deletion: Deletion) -> Self {
        Self { content, deletion, tries: 0, under_way: 0 }
    }
}

/// A snapshot that a command is about.
struct Chosen {
    id: SnapshotId,
    content: Content,
    /// How often somebody had tried to delete or restore it.
    tries: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Deletion {
    No,
    /// Somebody tries to, or did and has no answer, as has whoever made it: it may be gone, and may come back after a power
    /// failure.
    Begun,
    Acknowledged,
}

/// What everybody was told, in each region.
type Told = [BTreeMap<SnapshotId, Known>; 2];

/// How commands ended, over all schedules.
type Counts = Mutex<BTreeMap<&'static str, u64>>;

/// What all processes of a schedule share beside the disk.
struct World {
    disk: SimFiles,
    told: Mutex<Told>,
    contents: Vec<Content>,
    clock_ms: AtomicU64,
    /// Whether living writers are taken for gone now and then.
    is_mistaken: bool,
}

/// Disks that have much in common: the same files in another order, or a little changed, so that what one lets go of
/// another one is about to use, as it is or as the base of a delta.
fn contents() -> Vec<Content> {
    let mut pieces: Vec<Vec<u8>> = (0..4).map(|seed| text(10_000 + 5_000 * seed as usize, seed)).collect();
    pieces.extend((0..2).map(|seed| volume(20_000, seed)));
    let near: Vec<Vec<u8>> = pieces[..4].iter().map(|piece| changed(piece, 2_500)).collect();
    pieces.extend(near);
    // Files begin at blocks.
    pieces.iter_mut().for_each(|piece| piece.resize(piece.len().next_multiple_of(4096), 0));
    let mut draw = Draw::new(7);
    let mut disk = |_| {
        let parts = 1 + draw.below(3);
        Arc::new((0..parts).flat_map(|_| pieces[draw.below(pieces.len())].clone()).collect())
    };
    (0..24).map(&mut disk).collect()
}

fn options() -> RegionOptions {
    let chunker = ChunkerParams { min_blocks: 1, avg_blocks: 2, max_blocks: 4, zero_tail_bytes: 32 };
    RegionOptions { chunker, pack_bytes: 16 << 10, ..RegionOptions::named("sim", AccountId::from_random(1)) }
}

fn directory(disk: SimFiles, root: &str) -> (Directory<SimFiles>, imgstore::model::ids::SessionId) {
    let session = session();
    let options = DirectoryOptions { reserve_bytes: 0, ..DirectoryOptions::default() };
    (Directory::new(disk, Path::new(root), session.to_string(), options), session)
}

/// A region as nobody disturbs it.
fn open(disk: &SimFiles, root: &str) -> Result<Region, RegionError> {
    let (storage, session) = directory(disk.clone(), root);
    Region::open(Arc::new(storage), session)
}

/// One process: its commands one after another, until its fate comes.
struct Process<'a> {
    world: &'a World,
    running: Running,
    caller: &'a mut Caller,
    counts: &'a Counts,
    draw: Draw,
    /// The regions that it has open, for it may keep them from command to command.
    open: [Option<Region>; 2],
}

impl Process<'_> {
    fn run(mut self) {
        for _ in 0..1 + self.draw.below(7) {
            // Now and then half a day goes by, which is half of what things stay in the bin.
            let later_ms = if self.draw.below(20) == 0 { 12 * 3_600_000 } else { 1000 };
            self.caller.now_ms = self.world.clock_ms.fetch_add(later_ms, Ordering::Relaxed);
            let at = self.draw.below(10) / 7;
            if self.draw.below(3) > 0 {
                self.open = [None, None];
            }
            match self.draw.below(18) {
                0..4 => self.snapshot(at),
                4..8 => self.delete(at),
                8..11 => self.collect(at),
                11 => self.read(at),
                12 => self.copy(at),
                13 => self.check(at),
                14 => self.restore(at),
                15 => self.stats(at),
                16 => self.diff(at),
                _ if self.draw.below(2) == 0 => self.repack(at),
                _ => self.repair(at),
            }
            if self.running.is_hit() {
                // As it would: it ends, and whoever goes on is another process.
                return;
            }
        }
    }

    fn count(&self, what: &'static str) {
        *self.counts.lock().unwrap().entry(what).or_default() += 1;
    }

    /// The region as this process has it.
    fn region(&mut self, at: usize) -> Result<Region, OpsError> {
        if let Some(region) = self.open[at].take() {
            return Ok(region);
        }
        let (storage, session) = directory(self.running.files(&self.world.disk), ROOTS[at]);
        Ok(Region::open(self.running.storage(Arc::new(storage)), session)?)
    }

    /// An error that this process may meet; `deletion` is that of what it was about.
    fn excuse(&self, what: &'static str, error: &OpsError, deletion: Deletion) {
        let is_gone = error.class() == Class::NotFound && deletion > Deletion::No;
        let is_fenced = matches!(error, OpsError::Region(RegionError::Rejected(Rejection::SessionFenced(_))));
        // A pack or block map that cannot be read ends a collection, whatever the reason.
        let is_ended = matches!(
            error,
            OpsError::Region(RegionError::Uncollectable { .. } | RegionError::LostMap { .. })
        );
        let is_sound = !matches!(error.class(), Class::Damage | Class::NotFound);
        let is_hit = self.running.is_hit() && (is_sound || is_ended || deletion > Deletion::No);
        let kind = match error {
            _ if is_gone => "was deleted",
            _ if is_fenced && self.world.is_mistaken => "was fenced",
            OpsError::ContentGone { .. } if ["snapshot", "copy"].contains(&what) => {
                "was collected three times"
            }
            _ if is_hit => "was hit",
            _ => panic!("{what}, {deletion:?}, hit {}: {error:?}: {error}", self.running.is_hit()),
        };
        self.count(kind);
    }

    fn snapshot(&mut self, at: usize) {
        let content = self.world.contents[self.draw.below(self.world.contents.len())].clone();
        let taken = self.region(at).and_then(|region| {
            let taken = self.caller.snapshot(&region, &MemoryDisk::new(content.to_vec()))?;
            self.open[at] = Some(region);
            Ok(taken.snapshot.id)
        });
        match taken {
            Ok(id) => self.acknowledge("snapshot", at, id, content),
            Err(error) => self.excuse("snapshot", &error, Deletion::No),
        }
    }

    fn acknowledge(&self, what: &'static str, at: usize, id: SnapshotId, content: Content) {
        self.count(what);
        let known = Known::new(content, Deletion::No);
        assert!(self.world.told.lock().unwrap()[at].insert(id, known).is_none(), "{id} is there twice");
    }

    /// One that was acknowledged, and mostly one that nobody deletes.
    fn any(&mut self, at: usize) -> Option<Chosen> {
        let told = self.world.told.lock().unwrap();
        let whatever = self.draw.below(10) == 0;
        let there: Vec<_> =
            told[at].iter().filter(|(_, known)| whatever || known.deletion == Deletion::No).collect();
        let (id, known) = there.get(self.draw.below(there.len()))?;
        Some(Chosen { id: **id, content: known.content.clone(), tries: known.tries })
    }

    /// Whether somebody wanted it gone, meanwhile at least.
    fn deletion(&self, at: usize, chosen: &Chosen) -> Deletion {
        let known = &self.world.told.lock().unwrap()[at][&chosen.id];
        if known.tries == chosen.tries { known.deletion } else { known.deletion.max(Deletion::Begun) }
    }

    /// It is about to be deleted or restored: what it was until now, and which try this is.
    fn begin(&self, at: usize, id: SnapshotId) -> (Deletion, u64) {
        let mut told = self.world.told.lock().unwrap();
        let known = told[at].get_mut(&id).unwrap();
        known.tries += 1;
        known.under_way += 1;
        (std::mem::replace(&mut known.deletion, Deletion::Begun), known.tries)
    }

    /// It was, as the answer says. Whether nobody else tried meanwhile.
    fn end(&self, at: usize, id: SnapshotId, tries: u64, deletion: Deletion) -> bool {
        let mut told = self.world.told.lock().unwrap();
        let known = told[at].get_mut(&id).unwrap();
        known.under_way -= 1;
        let is_alone = known.tries == tries && known.under_way == 0;
        if is_alone {
            known.deletion = deletion;
        }
        is_alone
    }

    fn delete(&mut self, at: usize) {
        let Some(Chosen { id, .. }) = self.any(at) else { return };
        let (before, tries) = self.begin(at, id);
        let done = self.region(at).and_then(|region| {
            delete_snapshot(&region, id, &self.caller.context())?;
            self.open[at] = Some(region);
            Ok(())
        });
        match done {
            Ok(()) => {
                assert!(before < Deletion::Acknowledged, "{id} was deleted twice");
                self.end(at, id, tries, Deletion::Acknowledged);
                self.count("delete");
            }
            Err(error) if error.class() == Class::NotFound => {
                let is_alone = self.end(at, id, tries, before);
                assert!(before > Deletion::No || !is_alone, "{id} is gone");
                self.count("delete what is gone");
            }
            Err(error) => {
                self.end(at, id, tries, Deletion::Begun);
                self.excuse("delete", &error, Deletion::Begun);
            }
        }
    }

    /// Takes one out of the bin, whose time there may be over.
    fn restore(&mut self, at: usize) {
        let deleted: Vec<SnapshotId> = {
            let told = self.world.told.lock().unwrap();
            let deleted = told[at].iter().filter(|(_, known)| known.deletion == Deletion::Acknowledged);
            deleted.map(|(id, _)| *id).collect()
        };
        let Some(&id) = deleted.get(self.draw.below(deleted.len())) else { return };
        let (before, tries) = self.begin(at, id);
        let done = self.region(at).and_then(|region| restore_snapshot(&region, id, &self.caller.context()));
        match done {
            Ok(_) => {
                self.end(at, id, tries, Deletion::No);
                self.count("restore");
            }
            Err(error) if error.class() == Class::NotFound => {
                self.end(at, id, tries, before);
                self.count("restore what is gone");
            }
            // Another one has restored it.
            Err(error) if error.code() == "IncorrectState" => {
                assert!(!self.end(at, id, tries, before), "{id} is back");
                self.count("restore what is there");
            }
            Err(error) => {
                self.end(at, id, tries, Deletion::Begun);
                self.excuse("restore", &error, Deletion::Begun);
            }
        }
    }

    fn collect(&mut self, at: usize) {
        let options = GcOptions {
            grace_ms: [0, 0, 0, 5_000][self.draw.below(4)],
            repack_percent: [0, 50, 100][self.draw.below(3)],
        };
        if self.draw.below(6) == 0 {
            let previewed =
                self.region(at).and_then(|region| preview(&region, &options, &self.caller.context()));
            return match previewed {
                Ok(collected) => {
                    assert!(collected.lost.is_empty(), "{collected:?}");
                    self.count("gc, dry run");
                }
                Err(error) => self.excuse("gc, dry run", &error, Deletion::No),
            };
        }
        let collected = self.region(at).and_then(|region| {
            let collected = collect(&region, &options, &self.caller.context())?;
            self.open[at] = Some(region);
            Ok(collected)
        });
        match collected {
            Ok(collected) => {
                assert!(collected.lost.is_empty(), "{collected:?}");
                let told = [
                    ("gc", true),
                    ("gc that condemned", collected.condemned.count > 0),
                    ("gc that freed", collected.freed.count > 0),
                    ("gc that rewrote", collected.repacked.count > 0),
                    ("gc that removed orphans", collected.orphans.count > 0),
                    ("gc that gave up", collected.given_up),
                ];
                told.iter().filter(|(_, is_so)| *is_so).for_each(|(what, _)| self.count(what));
            }
            Err(error) => self.excuse("gc", &error, Deletion::No),
        }
    }

    fn read(&mut self, at: usize) {
        let Some(chosen) = self.any(at) else { return };
        let read = self.region(at).and_then(|region| self.caller.read_back(&region, chosen.id));
        match read {
            Ok(bytes) => {
                assert!(bytes == *chosen.content, "{} has other bytes", chosen.id);
                self.count("read");
            }
            Err(error) => self.excuse("read", &error, self.deletion(at, &chosen)),
        }
    }

    fn stats(&mut self, at: usize) {
        let of_all = self.region(at).and_then(|region| region_stats(&region, &self.caller.context()));
        match of_all {
            Ok(stats) => {
                assert!(stats.unread.is_empty() || self.running.is_hit(), "{:?}", stats.unread);
                self.count("stats");
            }
            Err(error) => self.excuse("stats", &error, Deletion::No),
        }
        let Some(chosen) = self.any(at) else { return };
        let ids = [AnyId::Snapshot(chosen.id)];
        let of_one = self.region(at).and_then(|region| item_stats(&region, &ids, &self.caller.context()));
        match of_one {
            Ok(stats) => {
                assert!(stats[0].unread.is_empty() || self.running.is_hit(), "{:?}", stats[0].unread);
                self.count("stats of one");
            }
            Err(error) => self.excuse("stats of one", &error, self.deletion(at, &chosen)),
        }
    }

    fn diff(&mut self, at: usize) {
        let (Some(first), Some(second)) = (self.any(at), self.any(at)) else { return };
        let ids = [first.id, second.id].map(AnyId::Snapshot);
        let found = self.region(at).and_then(|region| {
            let (catalog, context) = (region.catalog()?, self.caller.context());
            let pairs = pairs(&region, &catalog, ids, None, &context)?;
            let mut ranges = 0;
            differences(&region, &pairs[0], &mut |_, _| ranges += 1, &context)?;
            Ok(ranges)
        });
        match found {
            Ok(ranges) => {
                assert_eq!(ranges == 0, first.content == second.content, "{} and {}", first.id, second.id);
                self.count("diff");
            }
            Err(error) => {
                let deletion = self.deletion(at, &first).max(self.deletion(at, &second));
                self.excuse("diff", &error, deletion);
            }
        }
    }

    fn copy(&mut self, from: usize) {
        let Some(chosen) = self.any(from) else { return };
        let options = CopyOptions::default();
        let copied = self.region(from).and_then(|source| {
            let target = self.region(1 - from)?;
            let context = self.caller.context();
            let plan = plan(&source, &target, CopyWhat::Snapshot(chosen.id), &options, &context)?;
            Ok(apply(&source, &target, &plan, &options, &context)?.snapshots[0].id)
        });
        match copied {
            Ok(copy) => self.acknowledge("copy", 1 - from, copy, chosen.content),
            Err(error) => self.excuse("copy", &error, self.deletion(from, &chosen)),
        }
    }

    fn check(&mut self, at: usize) {
        let report = self
            .region(at)
            .and_then(|region| verify(&region, &VerifyOptions::default(), &self.caller.context()));
        match report {
            Ok(report) if report.findings.is_empty() => self.count("verify"),
            Ok(report) => assert!(self.running.is_hit(), "{:?}", report.findings),
            Err(error) => self.excuse("verify", &error, Deletion::No),
        }
    }

    fn repack(&mut self, at: usize) {
        let options = RepackOptions { level: 9, ..RepackOptions::default() };
        let done = self.region(at).and_then(|region| repack(&region, &options, &self.caller.context()));
        match done {
            Ok(done) => self.count(if done.emptied.count > 0 { "repack" } else { "repack of nothing" }),
            Err(error) => self.excuse("repack", &error, Deletion::No),
        }
    }

    fn repair(&mut self, at: usize) {
        let done = self
            .region(at)
            .and_then(|region| repair(&region, &RepairSources::default(), &self.caller.context()));
        match done {
            Ok(done) if done.findings.is_empty() => {
                let is_idle = done.lost.is_empty() && done.quarantined.is_empty() && !done.is_log_broken;
                assert!(is_idle, "{done:?}");
                self.count("repair");
            }
            Ok(done) => {
                assert!(self.running.is_hit(), "{done:?}");
                assert!(done.lost.is_empty() && done.quarantined.is_empty(), "{done:?}");
            }
            Err(error) => self.excuse("repair", &error, Deletion::No),
        }
    }
}

/// What is there is what was told: everything that is listed is whole, all that was acknowledged is, unless somebody
/// wanted it gone, and what was deleted stays so.
/// If it is all durable, it is known from now on what was not told.
fn check(world: &World, caller: &Caller, is_durable: bool) {
    for (at, root) in ROOTS.iter().enumerate() {
        let region = open(&world.disk, root).unwrap();
        let catalog = region.catalog().unwrap();
        let told = &mut world.told.lock().unwrap()[at];
        for id in catalog.snapshots.keys() {
            let bytes = caller.read_directly(&region, *id);
            let bytes = bytes.unwrap_or_else(|error| panic!("{root}: {id} is listed: {error}"));
            // What nobody was told of is there since its answer was lost. It need not be durable.
            let known = told.entry(*id).or_insert_with(|| {
                let content = world.contents.iter().find(|content| ***content == bytes);
                let content = content.expect("bytes that nobody wrote").clone();
                Known::new(content, Deletion::Begun)
            });
            assert!(*known.content == bytes, "{root}: {id} has other bytes");
            assert_ne!(known.deletion, Deletion::Acknowledged, "{root}: {id} is back");
            if is_durable {
                known.deletion = Deletion::No;
            }
        }
        for (id, known) in told.iter_mut().filter(|(id, _)| !catalog.snapshots.contains_key(id)) {
            assert_ne!(known.deletion, Deletion::No, "{root}: {id} is gone");
            if is_durable {
                known.deletion = Deletion::Acknowledged;
            }
        }
        let report = verify(&region, &VerifyOptions::default(), &caller.context()).unwrap();
        assert!(report.findings.is_empty(), "{root}: {:?}", report.findings);
    }
}

/// With nothing left that anybody needs, and nobody there, all packs go.
fn empty(world: &World, caller: &mut Caller) {
    caller.now_ms = world.clock_ms.fetch_add(0, Ordering::Relaxed);
    for root in ROOTS {
        let region = open(&world.disk, root).unwrap();
        for id in region.catalog().unwrap().snapshots.keys() {
            delete_snapshot(&region, *id, &caller.context()).unwrap();
        }
        // What is in the bin has been there long enough.
        caller.now_ms += 2 * 86_400_000;
        let options = GcOptions { grace_ms: 0, repack_percent: 50 };
        collect(&region, &options, &caller.context()).unwrap();
        assert_eq!(region.catalog().unwrap().packs.len(), 0, "{root}: packs that nothing needs");
        let (storage, _) = directory(world.disk.clone(), root);
        let packs = storage.list("packs").unwrap();
        let maps = storage.list("manifests").unwrap();
        assert!(packs.is_empty() && maps.is_empty(), "{root}: {packs:?}, {maps:?}");
    }
}

/// Mostly none: who fails is not there to lose anything.
fn fate(draw: &mut Draw) -> Fate {
    let most = [20, 200, 1000][draw.below(3)];
    let after = draw.below(most);
    match draw.below(16) {
        0 | 1 => Fate::Killed(after),
        2 | 3 => Fate::AnswerLost(after),
        4 => Fate::StepFails(after, [ErrorKind::Other, ErrorKind::StorageFull][draw.below(2)]),
        _ => Fate::Lives,
    }
}

/// The regions, in each some snapshots that stay, and what one has left that was deleted.
fn set_up(world: &World, draw: &mut Draw, caller: &mut Caller) {
    caller.now_ms = common::NOW_MS;
    let has_bin = draw.below(2) == 0;
    for (at, root) in ROOTS.iter().enumerate() {
        let (storage, session) = directory(world.disk.clone(), root);
        storage.initialize().unwrap();
        let region = Region::create(Arc::new(storage), session, &options()).unwrap();
        if has_bin {
            add_rule(&region, Resource::Snapshot, 1, &[], &caller.context()).unwrap();
        }
        for deletion in [Deletion::Acknowledged, Deletion::No, Deletion::No] {
            let content = world.contents[draw.below(world.contents.len())].clone();
            let id = caller.snapshot(&region, &MemoryDisk::new(content.to_vec())).unwrap().snapshot.id;
            if deletion == Deletion::Acknowledged {
                delete_snapshot(&region, id, &caller.context()).unwrap();
            }
            world.told.lock().unwrap()[at].insert(id, Known::new(content, deletion));
        }
    }
}

/// A schedule: up to four times several processes, each time from what the last has left, or a power failure of it.
fn run(seed: u64, contents: &[Content], callers: &mut [Caller], counts: &Counts) -> usize {
    let mut draw = Draw::new(seed);
    let mut world = World {
        disk: SimFiles::new(),
        told: Mutex::default(),
        contents: contents.to_vec(),
        clock_ms: AtomicU64::new(common::NOW_MS),
        is_mistaken: draw.below(3) == 0,
    };
    set_up(&world, &mut draw, &mut callers[0]);
    let mut steps = 0;
    for _ in 0..1 + draw.below(4) {
        let fates: Vec<Fate> = (0..2 + draw.below(PROCESSES - 1)).map(|_| fate(&mut draw)).collect();
        let off_at = if draw.below(4) == 0 { draw.below(2000) } else { usize::MAX };
        let turns = Turns::new(draw.next(), &fates, off_at, if world.is_mistaken { 3 } else { 0 });
        let running: Vec<Running> = (0..fates.len()).map(|number| turns.process(number)).collect();
        std::thread::scope(|scope| {
            for (running, caller) in running.into_iter().zip(callers.iter_mut()) {
                let draw = Draw::new(draw.next());
                let process = Process { world: &world, running, caller, counts, draw, open: [None, None] };
                scope.spawn(|| process.run());
            }
        });
        steps += turns.steps();
        let was_off = turns.steps() > off_at;
        if was_off {
            let mode = match draw.below(4) {
                0 => CrashMode::DropUnsynced,
                1 => CrashMode::KeepAll,
                _ => CrashMode::Mixed(draw.next()),
            };
            world.disk = world.disk.crash(world.disk.operations(), mode).settled();
            *counts.lock().unwrap().entry("power failure").or_default() += 1;
        }
        check(&world, &callers[0], was_off);
    }
    empty(&world, &mut callers[0]);
    steps
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap())
}

#[test]
fn no_schedule_loses_anything() {
    let seeds = match number("IMGSTORE_SCHEDULE") {
        Some(seed) => seed..seed + 1,
        None => 0..number("IMGSTORE_SCHEDULES").unwrap_or(200),
    };
    let (contents, counts) = (contents(), Counts::default());
    let next = AtomicU64::new(seeds.start);
    let steps = AtomicU64::new(0);
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                let mut callers: Vec<Caller> = (0..PROCESSES).map(|_| Caller::new(1)).collect();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                        run(seed, &contents, &mut callers, &counts)
                    }));
                    match ran {
                        Ok(taken) => drop(steps.fetch_add(taken as u64, Ordering::Relaxed)),
                        Err(_) => {
                            next.store(seeds.end, Ordering::Relaxed);
                            panic!("schedule {seed}");
                        }
                    }
                }
            });
        }
    });
    let counts = counts.into_inner().unwrap();
    println!("{} schedules, {} steps: {counts:?}", seeds.end - seeds.start, steps.into_inner());
    if seeds.end - seeds.start >= 200 {
        for what in [
            "restore",
            "snapshot",
            "copy",
            "read",
            "delete",
            "verify",
            "repair",
            "repack",
            "gc that condemned",
            "gc that freed",
            "gc that rewrote",
            "gc that removed orphans",
            "was deleted",
            "was hit",
            "power failure",
        ] {
            assert!(counts.contains_key(what), "nothing {what}: {counts:?}");
        }
    }
}
