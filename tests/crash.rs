//! Power loss and failing operations at every point of init, snapshot, copy, delete and collection, on the simulated
//! file system, and damage to what is there. `tests/crash_bugs.rs` proves that this harness finds what it is there for,
//! `tests/crash_sequences.rs` has the other commands.
//!
//! `IMGSTORE_CRASH_STATES=5000000 cargo test --release --test crash no_crash` is the long run.

mod common;
mod crash_harness;

use common::Caller;
use crash_harness::{AWAY, Ack, HOME, History, Player, World, acks_at, crash_everywhere, honest, violation};
use imgstore::io::sim::{CrashMode, Hook, ReadHook, SimFiles, SimOp, Verdict};
use imgstore::model::ids::SnapshotId;
use imgstore::ops::repair::{RepairSources, repair};
use imgstore::ops::verify::{VerifyOptions, verify};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

fn record(hook: Option<Hook>) -> History {
    crash_harness::record(&honest(), hook, &AtomicBool::new(false))
}

fn states_wanted() -> usize {
    std::env::var("IMGSTORE_CRASH_STATES").ok().and_then(|text| text.parse().ok()).unwrap_or(60_000)
}

#[test]
fn no_crash_loses_or_changes_what_was_acknowledged() {
    let history = record(None);
    assert!(history.acks.iter().any(|(_, ack)| matches!(ack, Ack::Collected)));
    assert_eq!(history.acks.len(), 10, "the honest run does all it should");
    let (tried, violations) = crash_everywhere(&history, states_wanted(), false);
    assert!(violations.is_empty(), "{} violations, the first: {}", violations.len(), violations[0]);
    assert!(tried * 100 >= states_wanted() * 95, "{tried} states tried");
    println!("{tried} crash states over {} operations, no violation", history.files.operations());
}

#[test]
fn every_operation_may_fail_once_and_nothing_acknowledged_suffers() {
    use std::io::ErrorKind;
    // All calls, also those that find that there is nothing to do.
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let honest = record(Some(Arc::new(move |_: &SimOp| {
        counted.fetch_add(1, Ordering::SeqCst);
        Verdict::Proceed
    })));
    let calls = calls.load(Ordering::SeqCst);
    assert!(calls > honest.files.operations() && honest.acks.len() == 10, "{calls}");
    let caller = Caller::new(1);
    // The last two are done all the same, where they give a name, or in part, where they write.
    let kinds = [ErrorKind::Other, ErrorKind::StorageFull, ErrorKind::Interrupted, ErrorKind::WriteZero];
    let others = [Verdict::FailAfter(ErrorKind::TimedOut), Verdict::FailPartWay(ErrorKind::StorageFull)];
    for verdict in kinds.map(Verdict::Fail).into_iter().chain(others) {
        for at in 0..calls {
            let count = AtomicUsize::new(0);
            let hook: Hook =
                Arc::new(
                    move |_: &SimOp| {
                        if count.fetch_add(1, Ordering::SeqCst) == at { verdict } else { Verdict::Proceed }
                    },
                );
            let history = record(Some(hook));
            let end = history.files.operations();
            let acks = acks_at(&history, end);
            for mode in [CrashMode::DropUnsynced, CrashMode::KeepAll] {
                let fault =
                    violation(&caller, &history.files.crash(end, mode), &acks, &history.contents, true);
                assert_eq!(fault, None, "{verdict:?} at operation {at}, then {mode:?}");
            }
        }
    }
}

/// A medium that does not give something back once: what was acknowledged is there, nothing goes that is needed.
#[test]
fn every_read_may_fail_once_and_nothing_acknowledged_suffers() {
    let reads = Arc::new(AtomicUsize::new(0));
    let play = |fails_at: Option<usize>| {
        let (files, count) = (SimFiles::new(), reads.clone());
        count.store(0, Ordering::SeqCst);
        let hook: ReadHook = Arc::new(move |_| {
            let at = count.fetch_add(1, Ordering::SeqCst);
            if fails_at == Some(at) {
                Err(std::io::Error::other("the medium does not answer"))
            } else {
                Ok(())
            }
        });
        let seen = files.with_read_hook(hook);
        crash_harness::record_on(files, &seen, &honest(), &AtomicBool::new(false))
    };
    assert_eq!(play(None).acks.len(), 10);
    let honest = reads.load(Ordering::SeqCst);
    assert!(honest > 200, "{honest} reads");
    let step = if std::env::var_os("IMGSTORE_CRASH_STATES").is_some() { 1 } else { 3 };
    let (caller, mut failed) = (Caller::new(1), 0);
    for at in (0..honest).step_by(step) {
        let history = play(Some(at));
        let end = history.files.operations();
        let acks = acks_at(&history, end);
        failed += usize::from(acks.len() < 10);
        for mode in [CrashMode::DropUnsynced, CrashMode::KeepAll] {
            let disk = history.files.crash(end, mode);
            let fault = violation(&caller, &disk, &acks, &history.contents, true);
            assert_eq!(fault, None, "read {at} of {honest} failed, then {mode:?}");
        }
    }
    let tried = honest.div_ceil(step);
    assert!(failed * 3 > tried, "only {failed} of {tried} made a command fail");
    println!("{tried} of {honest} reads failed once, {failed} commands with them");
}

/// Two snapshots at home that share content, and copies of both away.
fn two_regions() -> History {
    let mut first = common::volume(9_000, 1);
    first[5000..9000].fill(0xab);
    let mut second = first.clone();
    second[6000] = 1;
    second.resize(13_000, 0xcd);
    let contents = vec![Arc::new(first), Arc::new(second)];
    let (files, mut acks) = (SimFiles::new(), Vec::new());
    let mut player = Player::new(World::honest(&files), contents.clone(), &mut acks);
    let (home, away) = (player.init(HOME).unwrap(), player.init(AWAY).unwrap());
    for at in 0..2 {
        let id = player.take(&home, at).unwrap();
        player.copy(&home, &away, id).unwrap();
    }
    History { files, start: 0, acks, contents }
}

#[test]
fn damage_to_any_byte_is_found_or_harmless_and_mended() {
    let history = two_regions();
    let every_bit = std::env::var_os("IMGSTORE_EVERY_BIT").is_some();
    let files: Vec<(PathBuf, u64)> =
        history.files.all_files().into_iter().filter(|(path, _)| path.starts_with(HOME)).collect();
    assert!(files.len() > 12);
    let flips: Vec<(&PathBuf, usize)> =
        files.iter().flat_map(|(path, len)| (0..*len as usize * 8).map(move |bit| (path, bit))).collect();
    // Each byte has eight chances, and 7 shares no factor with them.
    let chosen: Vec<_> = flips.iter().step_by(if every_bit { 1 } else { 7 }).collect();
    let end = history.files.operations();
    let (next, found) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                let caller = Caller::new(1);
                while let Some((path, bit)) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let damaged = history.files.crash(end, CrashMode::KeepAll);
                    damaged.damage(path, |bytes| bytes[bit / 8] ^= 1 << (bit % 8));
                    if finds_damage(&caller, &damaged, &history.contents) {
                        found.fetch_add(1, Ordering::Relaxed);
                    }
                    let what = format!("bit {bit} of {}", path.display());
                    mend(&caller, &damaged, &history, &what);
                }
            });
        }
    });
    let (found, flips) = (found.into_inner(), chosen.len());
    assert!(found * 2 > flips, "only {found} of {flips} flips were reported");
    println!("{flips} flips in {} files, {found} reported, all mended", files.len());
}

/// Repairs home from the other region; then everything is as it was.
fn mend(caller: &Caller, files: &SimFiles, history: &History, what: &str) {
    let world = World::honest(files);
    world.mend(HOME).unwrap();
    let home = world.open(HOME).unwrap_or_else(|error| panic!("{what}: {error}"));
    let regions = [world.open(AWAY).unwrap()];
    let sources = RepairSources { regions: &regions, disks: &[], force: true };
    let repaired = repair(&home, &sources, &caller.context()).unwrap();
    assert!(repaired.lost.is_empty(), "{what}: {repaired:?}");
    for ack in acks_at(history, history.files.operations()) {
        if let Ack::Snapshot(HOME, id, bytes) = ack {
            let read = caller.read_directly(&home, id).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert!(read == *bytes, "{what}: {id}");
        }
    }
    let report = verify(&home, &VerifyOptions::default(), &caller.context()).unwrap();
    assert!(report.findings.is_empty(), "{what}: {:?}", report.findings);
}

/// Whether `verify` reports damage. If it does not, everything must read as it was.
fn finds_damage(caller: &Caller, files: &SimFiles, contents: &[Arc<Vec<u8>>]) -> bool {
    let world = World::honest(files);
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
