//! Power loss while caches of the index and the log and long records are written, while a damaged log is mended and while a damaged region is
//! repaired: by the oracle of `crash_harness`, and by one that mends first.
//!
//! `IMGSTORE_CRASH_STATES=5000000 cargo test --release --test crash_upkeep` is the long run.

mod common;
mod crash_harness;

use common::{Caller, Draw, MemoryDisk};
use crash_harness::{AWAY, Ack, Crash, HOME, History, Player, World, contents, crash_with, honest};
use imgstore::io::sim::{CrashMode, Hook, SimFiles, SimOp, Verdict};
use imgstore::model::ids::SessionId;
use imgstore::model::op::Op;
use imgstore::ops::error::OpsError;
use imgstore::ops::gc::{GcOptions, collect};
use imgstore::ops::repair::{RepairSources, repair};
use imgstore::ops::verify::{VerifyOptions, verify};
use imgstore::region::Region;
use imgstore::region::error::RegionError;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

const NOW: GcOptions = GcOptions { grace_ms: 0, repack_percent: 90 };

fn states_wanted() -> usize {
    let wanted = std::env::var("IMGSTORE_CRASH_STATES").ok().and_then(|text| text.parse().ok());
    wanted.map_or(1500, |states: usize| states / 10)
}

/// Two regions as they are before the first crash, with so many packs and records at home that the next command writes a segment
/// and a checkpoint, and what was acknowledged.
struct Full {
    files: SimFiles,
    acks: Vec<(usize, Ack)>,
    contents: Vec<Arc<Vec<u8>>>,
}

impl Full {
    fn new() -> Self {
        let mut draw = Draw::new(3);
        // Does not get smaller: a pack each 16 KiB.
        let mut noise =
            |len: usize| (0..len / 8).flat_map(|_| draw.next().to_le_bytes()).collect::<Vec<u8>>();
        let mut contents = contents();
        contents.extend([noise(1_100_000), noise(160_000)].map(Arc::new));
        let (files, mut acks) = (SimFiles::new(), Vec::new());
        let mut player = Player::new(World::honest(&files), contents.clone(), &mut acks);
        let (home, away) = (player.init(HOME).unwrap(), player.init(AWAY).unwrap());
        for at in [3, 0] {
            let id = player.take(&home, at).unwrap();
            player.copy(&home, &away, id).unwrap();
        }
        while home.catalog().unwrap().sequence < 120 {
            let fenced = [Op::FenceSessions { sessions: vec![common::session()] }];
            home.commit::<_, RegionError>(player.caller.account, |_| Ok((fenced.to_vec(), ()))).unwrap();
        }
        player.delete(&home, first_snapshot(&home, &contents[0])).unwrap();
        let catalog = home.catalog().unwrap();
        let (packs, records) = (catalog.packs.len(), catalog.sequence);
        assert!((56..=64).contains(&packs) && records < 128, "{packs} packs, {records} records");
        let acks = acks.into_iter().map(|(_, ack)| (0, ack)).collect();
        Self { files, acks, contents }
    }

    /// Every file at home in a folder.
    fn in_folder(&self, folder: &str) -> Vec<PathBuf> {
        let folder = Path::new(HOME).join(folder);
        let files = self.files.all_files().into_iter().map(|(path, _)| path);
        files.filter(|path| path.starts_with(&folder)).collect()
    }

    /// What happens from here on, with what is there as if it always had been.
    fn play(self, hook: Option<Hook>, play: impl FnOnce(&mut Player<'_>) -> Result<(), OpsError>) -> History {
        let Self { files, mut acks, contents } = self;
        let files = files.settled();
        let start = files.operations();
        let seen = hook.map_or_else(|| files.clone(), |hook| files.with_hook(hook));
        let world = World { files: seen, wrap: honest() };
        // A seeded bug may make the run fail; what it acknowledged until then still counts.
        let _ = play(&mut Player::new(world, contents.clone(), &mut acks));
        History { files, start, acks, contents }
    }
}

fn first_snapshot(region: &Region, content: &[u8]) -> imgstore::model::ids::SnapshotId {
    let catalog = region.catalog().unwrap();
    let of_length = catalog.snapshots.values().find(|snapshot| snapshot.volume_bytes == content.len() as u64);
    of_length.unwrap().id
}

/// Snapshots that write a segment and checkpoints, a collection that frees the one that was deleted, and a record with a list.
fn write_caches(player: &mut Player<'_>) -> Result<(), OpsError> {
    for at in [4, 1] {
        let home = player.world.open(HOME)?;
        player.take(&home, at)?;
    }
    collect(&player.world.open(HOME)?, &NOW, &player.caller.context())?;
    for at in [0, 2] {
        let home = player.world.open(HOME)?;
        player.take(&home, at)?;
    }
    // More than stands in a record.
    let sessions = (0..20_000).map(|number: u128| SessionId(number.to_be_bytes())).collect();
    let fenced = [Op::FenceSessions { sessions }];
    let home = player.world.open(HOME)?;
    home.commit::<_, RegionError>(player.caller.account, |_| Ok((fenced.to_vec(), ())))?;
    player.reached(HOME)
}

/// What is wrong after a crash; also with what the next writer would make anew.
fn not_whole(crash: &Crash<'_>) -> Option<String> {
    match World::honest(crash.files).open(HOME) {
        Ok(home) => match verify(&home, &VerifyOptions::default(), &crash.caller.context()) {
            Ok(report) if report.findings.is_empty() => {}
            found => return Some(format!("{found:?}")),
        },
        Err(error) => return Some(error.to_string()),
    }
    crash.violation()
}

#[test]
fn no_crash_while_segments_and_checkpoints_are_written_loses_anything() {
    let full = Full::new();
    assert!(full.in_folder("index").is_empty());
    let history = full.play(None, write_caches);
    let named = |folder: &str| {
        let folder = Path::new(HOME).join(folder);
        let ops = history.files.log(history.files.operations());
        ops.iter().filter(|op| matches!(op, SimOp::Rename(_, to) if to.starts_with(&folder))).count()
    };
    for folder in ["index", "checkpoints", "lists"] {
        assert!(named(folder) > 0, "nothing was written to {folder}");
    }
    assert!(matches!(history.acks.last(), Some((_, Ack::Reached(..)))), "the honest run comes to its end");
    let (tried, violations) = crash_with(&not_whole, &history, states_wanted(), false);
    assert!(violations.is_empty(), "{} violations, the first: {}", violations.len(), violations[0]);
    println!("{tried} crash states over {} operations", history.files.operations() - history.start);
}

/// Files of a folder are never synced.
fn skip_sync_in(folder: &'static str) -> Hook {
    let staged: Mutex<std::collections::BTreeMap<u64, Vec<u8>>> = Mutex::default();
    let magic: &[u8] = match folder {
        "index" => b"IMGSSEGM",
        "lists" => b"IMGSLIST",
        _ => b"IMGSCKPT",
    };
    Arc::new(move |op| match op {
        SimOp::Write(inode, bytes) => {
            staged.lock().unwrap().entry(*inode).or_insert_with(|| bytes.iter().copied().take(8).collect());
            Verdict::Proceed
        }
        SimOp::Sync(inode) if staged.lock().unwrap().get(inode).is_some_and(|found| found == magic) => {
            Verdict::Skip
        }
        _ => Verdict::Proceed,
    })
}

#[test]
fn caches_and_lists_that_are_not_synced_are_caught() {
    for folder in ["index", "checkpoints", "lists"] {
        let history = Full::new().play(Some(skip_sync_in(folder)), write_caches);
        let (tried, violations) = crash_with(&not_whole, &history, states_wanted(), true);
        assert!(!violations.is_empty(), "{folder} not synced: not caught in {tried} states");
    }
}

/// A region whose log lacks a record that its twin has, and of whose packs one is damaged, one gone, with a block map.
fn damaged() -> Full {
    let full = Full::new();
    let records = full.in_folder("log");
    full.files.damage(&records[records.len() / 2], |bytes| bytes[30] ^= 1);
    let packs = full.in_folder("packs");
    full.files.damage(&packs[2], |bytes| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    });
    full.files.damage(&packs[packs.len() - 1], |bytes| bytes.truncate(100));
    full.files.damage(&full.in_folder("manifests")[0], |bytes| bytes[70] ^= 1);
    full
}

/// The log is mended, the region repaired from the other one, and both go on.
fn mend_and_repair(player: &mut Player<'_>) -> Result<(), OpsError> {
    let mended = player.world.mend(HOME)?;
    assert_eq!(mended.restored.len(), 1);
    player.say(Ack::Mended(HOME));
    let (home, away) = (player.world.open(HOME)?, [player.world.open(AWAY)?]);
    let sources = RepairSources { regions: &away, disks: &[], force: true };
    let repaired = repair(&home, &sources, &player.caller.context())?;
    assert!(repaired.lost.is_empty() && repaired.manifests == 1, "{repaired:?}");
    assert!(repaired.quarantined.len() == 2 && repaired.moved > 0 && repaired.fetched > 0, "{repaired:?}");
    player.say(Ack::Repaired(HOME));
    drop(home);
    let home = player.world.open(HOME)?;
    player.take(&home, 4)?;
    drop(home);
    collect(&player.world.open(HOME)?, &NOW, &player.caller.context())?;
    player.reached(HOME)
}

/// What is wrong after a crash in a damaged region: what was mended stays so, and what is not yet can be.
fn not_mended(crash: &Crash<'_>) -> Option<String> {
    let (caller, acks) = (crash.caller, crash.acks);
    let world = World::honest(crash.files);
    let is_mended = acks.iter().any(|ack| matches!(ack, Ack::Mended(HOME)));
    let is_repaired = acks.iter().any(|ack| matches!(ack, Ack::Repaired(HOME)));
    if is_mended && let Err(error) = world.open(HOME) {
        return Some(format!("it was mended: {error}"));
    }
    if let Err(error) = world.mend(HOME) {
        return Some(format!("it cannot be mended: {error}"));
    }
    let (home, away) = match (world.open(HOME), world.open(AWAY)) {
        (Ok(home), Ok(away)) => (home, [away]),
        (Err(error), _) | (_, Err(error)) => return Some(format!("after mending: {error}")),
    };
    if is_repaired {
        match verify(&home, &VerifyOptions::default(), &caller.context()) {
            Ok(report) if report.findings.is_empty() => {}
            found => return Some(format!("it was repaired: {found:?}")),
        }
    }
    let sources = RepairSources { regions: &away, disks: &[], force: true };
    match repair(&home, &sources, &caller.context()) {
        Ok(repaired) if repaired.lost.is_empty() => {}
        found => return Some(format!("it cannot be repaired: {found:?}")),
    }
    drop((home, away));
    crash.violation()
}

#[test]
fn no_crash_while_damage_is_mended_makes_it_worse() {
    let history = damaged().play(None, mend_and_repair);
    assert!(matches!(history.acks.last(), Some((_, Ack::Reached(..)))), "the honest run comes to its end");
    let (tried, violations) = crash_with(&not_mended, &history, states_wanted(), false);
    assert!(violations.is_empty(), "{} violations, the first: {}", violations.len(), violations[0]);
    println!("{tried} crash states over {} operations", history.files.operations() - history.start);
}

/// What is put back of the log is not synced, or not in the folder.
#[test]
fn mending_that_is_not_durable_is_caught() {
    let records: Hook = Arc::new(|op| match op {
        SimOp::SyncDir(path) if path.to_string_lossy().contains("/log/") => Verdict::Skip,
        _ => Verdict::Proceed,
    });
    let maps: Hook = Arc::new(|op| match op {
        SimOp::SyncDir(path) if path.to_string_lossy().contains("/manifests/") => Verdict::Skip,
        _ => Verdict::Proceed,
    });
    for (what, hook) in [("the log", records), ("block maps", maps)] {
        let history = damaged().play(Some(hook), mend_and_repair);
        let (tried, violations) = crash_with(&not_mended, &history, states_wanted(), true);
        assert!(!violations.is_empty(), "{what} not synced: not caught in {tried} states");
    }
}

/// Each call of mending and repairing fails once: what is acknowledged is so, and the next repair mends the rest.
#[test]
fn every_call_of_a_repair_may_fail_once() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let hook: Hook = Arc::new(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        Verdict::Proceed
    });
    damaged().play(Some(hook), mend_and_repair);
    let calls = calls.load(Ordering::SeqCst);
    let caller = Caller::new(1);
    let step = if std::env::var_os("IMGSTORE_CRASH_STATES").is_some() { 1 } else { 8 };
    let kinds = [
        Verdict::Fail(std::io::ErrorKind::Other),
        Verdict::FailPartWay(std::io::ErrorKind::StorageFull),
        Verdict::FailAfter(std::io::ErrorKind::TimedOut),
    ];
    // Each call of the sample fails in one way, in a long run in all.
    let cases = (0..calls)
        .step_by(step)
        .flat_map(|at| (0..kinds.len()).map(move |kind| (at, kind)))
        .filter(|(at, kind)| step == 1 || at / step % kinds.len() == *kind);
    for (at, kind) in cases {
        let (count, verdict) = (AtomicUsize::new(0), kinds[kind]);
        let hook: Hook =
            Arc::new(
                move |_| {
                    if count.fetch_add(1, Ordering::SeqCst) == at { verdict } else { Verdict::Proceed }
                },
            );
        let history = damaged().play(Some(hook), mend_and_repair);
        let end = history.files.operations();
        let acks = crash_harness::acks_at(&history, end);
        for mode in [CrashMode::KeepAll, CrashMode::DropUnsynced] {
            let files = &history.files.crash(end, mode);
            let (caller, acks, contents) = (&caller, &acks, &history.contents);
            let fault = not_mended(&Crash { caller, files, acks, contents, go_on: true });
            assert_eq!(fault, None, "{verdict:?} at call {at} of {calls}, then {mode:?}");
        }
    }
}

/// That a disk of the harness is what the tests take it for.
#[test]
fn the_large_disk_is_many_packs() {
    let full = Full::new();
    let home = World::honest(&full.files).open(HOME).unwrap();
    let disk = MemoryDisk::new(full.contents[3].to_vec());
    let again = Caller::new(1).snapshot(&home, &disk).unwrap();
    assert_eq!(again.ingested.new_chunks, 0, "it is there");
}
