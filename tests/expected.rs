//! A snapshot of a disk that an earlier one resembles: cut where that was, it is the snapshot that a cutter makes which
//! knows nothing of it.

mod common;

use common::made::{BLOCK, Edit, Watched, any_edits, any_kinds, any_params, edit, put_block};
use common::{Caller, MemoryDisk, memory_region, provider, read_whole, session, small_packs, text, volume};
use imgstore::disk::DiskError;
use imgstore::io::memory::Memory;
use imgstore::io::storage::Storage;
use imgstore::model::changes::Changes;
use imgstore::model::region::ChunkerParams;
use imgstore::ops::context::{Context, Progress};
use imgstore::ops::error::OpsError;
use imgstore::ops::snapshot::{Hint, SnapshotOptions, snapshot};
use imgstore::ops::verify::{VerifyOptions, verify};
use imgstore::region::{Region, RegionOptions};
use proptest::prelude::*;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

/// Disks of several pieces: the runs of one, many times.
fn any_long_kinds() -> impl Strategy<Value = Vec<u8>> {
    (prop::collection::vec(any_kinds(), 1..5), 1..4_usize)
        .prop_map(|(some, times)| some.concat().repeat(times))
}

fn check_same(
    kinds: &[u8],
    edits: &[Edit],
    params: ChunkerParams,
    holes: [usize; 2],
    cut_off: usize,
    threads: usize,
) -> Result<(), TestCaseError> {
    let caller = Caller { memory_bytes: 1 << 30, ..Caller::new(threads) };
    let options = RegionOptions { chunker: params, ..RegionOptions::named("test", provider()) };
    let (region, other) = (memory_region(&Memory::new(), &options), memory_region(&Memory::new(), &options));
    let mut bytes = vec![0; kinds.len() * BLOCK - cut_off];
    kinds.iter().enumerate().for_each(|(at, &kind)| put_block(&mut bytes, at, kind));
    let before = bytes.clone();
    caller.snapshot(&region, &MemoryDisk { bytes: before.clone(), hole_blocks: holes[0] }).unwrap();
    edit(&mut bytes, edits);
    let disk = MemoryDisk { bytes, hole_blocks: holes[1] };
    let taken = caller.snapshot(&region, &disk).unwrap();
    let full = read_whole(&caller, &other, &disk);
    prop_assert_eq!(region.load_map(&taken.snapshot.manifest).unwrap(), other.load_map(&full).unwrap());
    prop_assert_eq!(taken.snapshot.manifest.hash, full.hash);
    prop_assert!(caller.read_directly(&region, taken.snapshot.id).unwrap() == disk.bytes);
    prop_assert!(taken.ingested.new_chunks == 0 || disk.bytes != before);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(
        std::env::var("IMGSTORE_HINT_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(300)
    ))]
    #[test]
    fn what_is_cut_as_before_is_what_a_cutter_makes(
        kinds in any_long_kinds(),
        edits in any_edits(),
        params in any_params(),
        holes in [prop::sample::select(vec![0_usize, 1, 5, 40]), prop::sample::select(vec![0_usize, 1, 5, 40])],
        cut_off in prop::sample::select(vec![0_usize, 1, 4095]),
        threads in 1..4_usize,
    ) {
        check_same(&kinds, &edits, params, holes, cut_off, threads)?;
    }
}

/// A new hole that begins right before the end of a piece, over an old chunk: what is left of it there is too short to
/// be a zero run by itself.
#[test]
fn a_hole_over_the_end_of_a_piece() {
    let params = ChunkerParams { min_blocks: 64, avg_blocks: 64, max_blocks: 64, zero_tail_bytes: 0 };
    for hole in (240..260).flat_map(|start| [16, 20, 40].map(|len| start..start + len)) {
        let kinds: Vec<u8> = (0..400).map(|at| (at % 97 + 1) as u8).collect();
        let options = RegionOptions { chunker: params, ..RegionOptions::named("test", provider()) };
        let (region, caller) = (memory_region(&Memory::new(), &options), Caller::new(2));
        let mut bytes = vec![0; kinds.len() * BLOCK];
        kinds.iter().enumerate().for_each(|(at, &kind)| put_block(&mut bytes, at, kind));
        caller.snapshot(&region, &MemoryDisk { bytes: bytes.clone(), hole_blocks: 16 }).unwrap();
        bytes[hole.start * BLOCK..hole.end * BLOCK].fill(0);
        let disk = MemoryDisk { bytes, hole_blocks: 16 };
        let taken = caller.snapshot(&region, &disk).unwrap().snapshot;
        assert!(caller.read_back(&region, taken.id).unwrap() == disk.bytes, "{hole:?}");
        assert_eq!(taken.manifest.hash, read_whole(&caller, &region, &disk).hash, "{hole:?}");
    }
}

struct Cancelled<'a>(&'a AtomicBool);

impl Progress for Cancelled<'_> {
    fn begin(&self, _phase: &'static str, _total_bytes: u64) {}
    fn advance(&self, _bytes: u64) {}
    fn note(&self, _message: &str) {}
    fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// While one piece is slow to come all others are left, more than there are buffers; then it comes, fails, or nobody wants
/// it any more.
#[test]
fn a_piece_that_is_late_holds_nobody_for_ever() {
    let (done, is_done) = mpsc::channel();
    let work = thread::spawn(move || {
        for threads in 1..5 {
            let caller = Caller::new(threads);
            let region = memory_region(&Memory::new(), &small_packs());
            let disk = MemoryDisk::new(text(48 << 20, 3));
            let before = caller.snapshot(&region, &disk).unwrap().snapshot;
            for middle in [5 << 20_u64, 24 << 20, 47 << 20] {
                let is_cancelled = AtomicBool::new(false);
                let late = || thread::sleep(Duration::from_millis(60));
                let comes = || {
                    late();
                    Ok(())
                };
                let fails = || {
                    late();
                    Err(DiskError::NotADisk { path: "late".into(), found: "late" })
                };
                let is_unwanted = || {
                    late();
                    is_cancelled.store(true, Ordering::SeqCst);
                    Ok(())
                };
                let panics = || panic!("late");
                let at = middle..middle + 1;
                let progress = Cancelled(&is_cancelled);
                let context = Context { progress: &progress, ..caller.context() };
                // What is tried beforehand is a chunk, and shorter.
                let take = |then: &(dyn Fn() -> Result<(), DiskError> + Sync)| {
                    let then = |place: Range<u64>| {
                        let is_there = place.start < at.end && at.start < place.end;
                        if is_there && place.end - place.start > 64 * BLOCK as u64 { then() } else { Ok(()) }
                    };
                    let disk = Watched { then: &then, ..Watched::new(&disk) };
                    snapshot(&region, &disk, &SnapshotOptions::default(), &context)
                };
                let taken = take(&comes).unwrap();
                assert_eq!(taken.ingested.manifest, before.manifest);
                let error = take(&fails).unwrap_err();
                assert!(matches!(error, OpsError::Disk(DiskError::NotADisk { .. })), "{error}");
                let error = take(&panics).unwrap_err();
                assert!(matches!(error, OpsError::WorkerGone), "{error}");
                let error = take(&is_unwanted).unwrap_err();
                assert!(matches!(error, OpsError::Interrupted), "{error}");
            }
        }
        done.send(()).unwrap();
    });
    let ended = is_done.recv_timeout(Duration::from_secs(120));
    assert_ne!(ended, Err(RecvTimeoutError::Timeout), "somebody waits for what will not come");
    work.join().unwrap();
}

#[test]
fn everything_is_read_once() {
    let caller = Caller::new(2);
    let region = memory_region(&Memory::new(), &small_packs());
    let disk = MemoryDisk::new(volume(24 << 20, 4));
    let first = caller.snapshot(&region, &disk).unwrap();
    let counting = Watched::new(&disk);
    let again = caller.snapshot(&region, &counting).unwrap();
    assert_eq!(again.ingested.manifest, first.ingested.manifest, "an unchanged disk costs a record");
    assert_eq!(again.ingested.read_bytes, first.ingested.read_bytes);
    // Beside it eight chunks that tell whether the earlier snapshot is one of this disk.
    let read = counting.read_bytes.into_inner() as u64;
    assert!((again.ingested.read_bytes..again.ingested.read_bytes + (8 * 64 * BLOCK) as u64).contains(&read));
    assert_eq!((again.ingested.new_chunks, again.ingested.stored_bytes), (0, 0));
}

#[test]
fn what_is_lost_is_stored_again() {
    let caller = Caller::new(2);
    let storage = Memory::new();
    let region = memory_region(&storage, &small_packs());
    let disk = MemoryDisk::new(volume(6 << 20, 3));
    let before = caller.snapshot(&region, &disk).unwrap().snapshot;
    let packs: Vec<String> = region.catalog().unwrap().packs.keys().map(ToString::to_string).collect();
    packs[2..5].iter().for_each(|pack| storage.delete(pack).unwrap());
    let region = Region::open(Arc::new(storage.clone()), session()).unwrap();
    let taken = caller.snapshot(&region, &disk).unwrap();
    assert!(taken.ingested.new_chunks > 0);
    assert!(caller.read_back(&region, taken.snapshot.id).unwrap() == disk.bytes);
    assert!(caller.read_back(&region, before.id).unwrap() == disk.bytes, "what is stored anew heals it");
}

#[test]
fn an_earlier_map_that_is_lost_is_done_without() {
    let caller = Caller::new(2);
    let storage = Memory::new();
    let region = memory_region(&storage, &small_packs());
    let disk = MemoryDisk::new(volume(6 << 20, 3));
    let before = caller.snapshot(&region, &disk).unwrap().snapshot;
    storage.delete(&before.manifest.name.to_string()).unwrap();
    let region = Region::open(Arc::new(storage.clone()), session()).unwrap();
    let options = SnapshotOptions { parent: Some(before.id), ..SnapshotOptions::default() };
    let taken = snapshot(&region, &disk, &options, &caller.context()).unwrap();
    assert_ne!(taken.snapshot.manifest.name, before.manifest.name, "it is not counted on");
    assert_eq!(taken.snapshot.manifest.hash, before.manifest.hash);
    assert!(caller.read_back(&region, taken.snapshot.id).unwrap() == disk.bytes);
}

/// Zeros that a hint did not tell of continue those at the end of a chunk that was kept: the map is none that a cutter makes,
/// and is not taken over.
#[test]
fn cuts_that_a_wrong_hint_left_in_zeros_are_not_kept() {
    for zeros in [1, 2, 3, 4, 9] {
        let (region, caller) = (memory_region(&Memory::new(), &small_packs()), Caller::new(1));
        let kinds = [1, 0, 0, 0].into_iter().chain((0..600).map(|at| [1, 2, 4, 5, 7, 8][at % 6]));
        let mut bytes = vec![0; 604 * BLOCK];
        kinds.enumerate().for_each(|(at, kind)| put_block(&mut bytes, at, kind));
        let parent = caller.snapshot(&region, &MemoryDisk::new(bytes.clone())).unwrap().snapshot;
        assert_eq!(region.load_map(&parent.manifest).unwrap().chunks()[0].blocks, 4);
        bytes[4 * BLOCK..(4 + zeros) * BLOCK].fill(0);
        put_block(&mut bytes, 20, 11);
        let disk = MemoryDisk::new(bytes);
        let mut changes = Changes::default();
        changes.add_blocks(20..21);
        let hint = Some(Hint { changes, verify: false });
        let options = SnapshotOptions { parent: Some(parent.id), hint, ..SnapshotOptions::default() };
        let hinted = snapshot(&region, &disk, &options, &caller.context()).unwrap().snapshot;
        let whole = read_whole(&caller, &region, &disk);
        assert_ne!(hinted.manifest.hash, whole.hash, "the hint was wrong");
        let options = SnapshotOptions { parent: Some(hinted.id), ..SnapshotOptions::default() };
        let taken = snapshot(&region, &disk, &options, &caller.context()).unwrap().snapshot;
        assert_eq!(taken.manifest.hash, whole.hash, "{zeros}");
    }
}

#[test]
fn disks_of_many_lines_in_turn() {
    let caller = Caller::new(2);
    let region = memory_region(&Memory::new(), &small_packs());
    let mut disks: Vec<MemoryDisk> = (0..12).map(|seed| MemoryDisk::new(volume(3 << 20, seed))).collect();
    let first: Vec<_> = disks.iter().map(|disk| caller.snapshot(&region, disk).unwrap().snapshot).collect();
    for (disk, parent) in disks.iter_mut().zip(&first) {
        disk.bytes[1 << 20] ^= 1;
        // Named, or found among the newest, or neither.
        for named in [Some(parent.id), None] {
            let options = SnapshotOptions { parent: named, ..SnapshotOptions::default() };
            let taken = snapshot(&region, disk, &options, &caller.context()).unwrap();
            assert_eq!(taken.snapshot.parent, named, "what was found is not said to be the parent");
            assert!(caller.read_back(&region, taken.snapshot.id).unwrap() == disk.bytes);
            assert_eq!(taken.snapshot.manifest.hash, read_whole(&caller, &region, disk).hash);
        }
    }
    assert_eq!(verify(&region, &VerifyOptions::default(), &caller.context()).unwrap().findings, []);
}
