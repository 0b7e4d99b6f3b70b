//! Change hints: a snapshot that is made from its parent and what changed is the one that reading everything makes,
//! and costs what changed.

mod common;

use common::made::{BLOCK, Edit, Watched, any_edits, any_kinds, any_params, edit, put_block};
use common::{Caller, MemoryDisk, memory_region, provider, read_whole, session, small_packs, volume};
use imgstore::disk::DiskRead;
use imgstore::io::memory::Memory;
use imgstore::io::storage::Storage;
use imgstore::model::changes::Changes;
use imgstore::model::ids::SnapshotId;
use imgstore::model::region::ChunkerParams;
use imgstore::ops::copy::{CopyOptions, CopyWhat, apply, plan};
use imgstore::ops::error::OpsError;
use imgstore::ops::snapshot::{Hint, HintUse, SnapshotOptions, Taken, snapshot};
use imgstore::ops::verify::{VerifyOptions, verify};
use imgstore::region::{Region, RegionOptions};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

fn hinted(
    region: &Region,
    caller: &Caller,
    disk: &dyn DiskRead,
    parent: SnapshotId,
    hint: Hint,
) -> Result<Taken, OpsError> {
    let options = SnapshotOptions { parent: Some(parent), hint: Some(hint), ..SnapshotOptions::default() };
    snapshot(region, disk, &options, &caller.context())
}

fn believed(changes: Changes) -> Hint {
    Hint { changes, verify: false }
}

fn of_blocks(blocks: &BTreeSet<usize>) -> Changes {
    let mut changes = Changes::default();
    blocks.iter().for_each(|&at| changes.add_blocks(at as u64..at as u64 + 1));
    changes
}

fn check_same(
    kinds: &[u8],
    edits: &[Edit],
    params: ChunkerParams,
    hole_blocks: usize,
    cut_off: usize,
) -> Result<(), TestCaseError> {
    let caller = Caller { memory_bytes: 1, ..Caller::new(1) };
    let options = RegionOptions { chunker: params, ..RegionOptions::named("test", provider()) };
    let region = memory_region(&Memory::new(), &options);
    let mut bytes = vec![0; kinds.len() * BLOCK - cut_off];
    kinds.iter().enumerate().for_each(|(at, &kind)| put_block(&mut bytes, at, kind));
    let parent =
        caller.snapshot(&region, &MemoryDisk { bytes: bytes.clone(), hole_blocks }).unwrap().snapshot;
    let changed = edit(&mut bytes, edits);
    let disk = MemoryDisk { bytes, hole_blocks };
    let hint = believed(of_blocks(&changed));
    let watched = Watched::new(&disk);
    let taken = hinted(&region, &caller, &watched, parent.id, hint.clone()).unwrap();
    prop_assert_eq!(taken.hint, Some(HintUse::Believed));
    prop_assert!(taken.ingested.read_bytes == 0 || !watched.read.lock().unwrap().is_empty());
    let map = region.load_map(&taken.snapshot.manifest).unwrap();
    let full = read_whole(&caller, &region, &disk);
    prop_assert_eq!(&map, &region.load_map(&full).unwrap());
    prop_assert_eq!(taken.snapshot.manifest.hash, full.hash);
    prop_assert!(caller.read_directly(&region, taken.snapshot.id).unwrap() == disk.bytes);
    let verified = hinted(&region, &caller, &disk, parent.id, Hint { verify: true, ..hint }).unwrap();
    prop_assert_eq!(verified.hint, Some(HintUse::Verified { wrong: vec![] }));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(
        std::env::var("IMGSTORE_HINT_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(400)
    ))]
    #[test]
    fn what_a_hint_gives_is_what_reading_everything_gives(
        kinds in any_kinds(),
        edits in any_edits(),
        params in any_params(),
        hole_blocks in prop::sample::select(vec![0_usize, 1, 5, 40]),
        cut_off in prop::sample::select(vec![0_usize, 1, 4095]),
    ) {
        check_same(&kinds, &edits, params, hole_blocks, cut_off)?;
    }
}

#[test]
fn only_what_is_near_changes_is_read() {
    let caller = Caller::new(2);
    let region = memory_region(&Memory::new(), &small_packs());
    let mut disk = MemoryDisk::new(volume(24 << 20, 4));
    let parent = caller.snapshot(&region, &disk).unwrap();
    assert_eq!(parent.hint, None);
    assert!(parent.ingested.read_bytes > 16 << 20);

    let watched = Watched::new(&disk);
    let same = hinted(&region, &caller, &watched, parent.snapshot.id, believed(Changes::default())).unwrap();
    assert_eq!(same.ingested.read_bytes, 0);
    // A few chunks are looked at, which have 64 blocks at most.
    let read = watched.read.into_inner().unwrap();
    assert!((1..8 * 64).contains(&read.len()), "{}", read.len());
    assert_eq!(same.ingested.manifest, parent.ingested.manifest, "an unchanged disk costs a record");
    assert_eq!(same.snapshot.parent, Some(parent.snapshot.id));

    let mut changed = BTreeSet::new();
    for at in [0, 700, 701, 3000, 24 * 256 - 1] {
        disk.bytes[at * BLOCK + 17] ^= 0x55;
        changed.insert(at);
    }
    let watched = Watched::new(&disk);
    let taken =
        hinted(&region, &caller, &watched, parent.snapshot.id, believed(of_blocks(&changed))).unwrap();
    assert!(caller.read_back(&region, taken.snapshot.id).unwrap() == disk.bytes);
    let read = watched.read.into_inner().unwrap();
    assert!(changed.iter().all(|at| read.contains(at)));
    // One or two chunks before a change, a few behind it; and those few.
    let far = read.iter().filter(|at| changed.iter().all(|change| at.abs_diff(*change) >= 5 * 64)).count();
    assert!(far < 8 * 64, "{far}: {read:?}");
    assert!(taken.ingested.read_bytes < 4 << 20, "{}", taken.ingested.read_bytes);
}

#[test]
fn large_changes_go_through_many_buffers() {
    let caller = Caller { memory_bytes: 1, ..Caller::new(2) };
    let region = memory_region(&Memory::new(), &small_packs());
    let parent = caller.snapshot(&region, &MemoryDisk::new(volume(20 << 20, 1))).unwrap().snapshot;
    let mut disk = MemoryDisk::new(volume(20 << 20, 1));
    let mut changes = Changes::default();
    for (range, seed) in [(1 << 20..9 << 20, 2), (9 << 20..9 << 20, 3), (12 << 20..20 << 20, 4)] {
        let new = volume(range.len(), seed);
        disk.bytes[range.clone()].copy_from_slice(&new);
        changes.add_bytes(range.start as u64..range.end as u64);
    }
    let taken = hinted(&region, &caller, &disk, parent.id, believed(changes)).unwrap();
    assert!(caller.read_back(&region, taken.snapshot.id).unwrap() == disk.bytes);
    let full = caller.snapshot(&region, &disk).unwrap();
    assert_eq!(full.snapshot.manifest.hash, taken.snapshot.manifest.hash);
    assert_eq!(full.ingested.new_bytes, 0);
    assert_eq!(verify(&region, &VerifyOptions::default(), &caller.context()).unwrap().findings, []);
}

#[test]
fn a_wrong_hint_is_found_by_reading_everything() {
    let caller = Caller::new(2);
    let region = memory_region(&Memory::new(), &small_packs());
    let mut disk = MemoryDisk::new(volume(8 << 20, 6));
    let parent = caller.snapshot(&region, &disk).unwrap().snapshot;
    for at in [100, 1500] {
        disk.bytes[at * BLOCK] ^= 1;
    }
    let hint = believed(of_blocks(&BTreeSet::from([100])));
    let verified = hinted(&region, &caller, &disk, parent.id, Hint { verify: true, ..hint.clone() }).unwrap();
    let Some(HintUse::Verified { wrong }) = verified.hint else { panic!("{:?}", verified.hint) };
    let holds = |range: &Range<u64>, at: usize| range.contains(&((at * BLOCK) as u64));
    assert!(!wrong.is_empty());
    assert!(wrong.iter().all(|range| holds(range, 1500)), "{wrong:?}");
    // The snapshot is the disk all the same; believed, the hint gives the parent's old block.
    assert!(caller.read_back(&region, verified.snapshot.id).unwrap() == disk.bytes);
    let taken = hinted(&region, &caller, &disk, parent.id, hint).unwrap();
    disk.bytes[1500 * BLOCK] ^= 1;
    assert!(caller.read_back(&region, taken.snapshot.id).unwrap() == disk.bytes);
}

/// A bitmap of another disk, or one that begins at another snapshot; and a parent in which free blocks were left out.
#[test]
fn a_hint_that_is_not_of_this_disk_is_not_believed() {
    let caller = Caller::new(2);
    let region = memory_region(&Memory::new(), &small_packs());
    let bytes = volume(8 << 20, 6);
    let parent = caller.snapshot(&region, &MemoryDisk::new(bytes.clone())).unwrap().snapshot;
    let mut without_free = bytes.clone();
    without_free[2 << 20..3 << 20].fill(0);
    let skipping = caller.snapshot(&region, &MemoryDisk::new(without_free)).unwrap().snapshot;
    let mut written = bytes.clone();
    written[..4096].fill(7);
    let used = |parent: SnapshotId, bytes: &[u8], changes: Changes| {
        let disk = MemoryDisk::new(bytes.to_vec());
        let taken = hinted(&region, &caller, &disk, parent, believed(changes)).unwrap();
        assert!(caller.read_back(&region, taken.snapshot.id).unwrap() == bytes);
        taken.hint.unwrap()
    };
    let first = of_blocks(&BTreeSet::from([0]));
    let all = {
        let mut changes = Changes::default();
        changes.add_bytes(0..8 << 20);
        changes
    };
    let why = "the disk differs from the parent where the hint says that nothing changed";
    let refused = HintUse::Unusable { why: why.into() };
    assert_eq!(used(parent.id, &written, first.clone()), HintUse::Believed);
    assert_eq!(used(parent.id, &volume(8 << 20, 7), first.clone()), refused);
    assert_eq!(used(skipping.id, &written, first), refused);
    // Where everything may have changed there is nothing to look at.
    assert_eq!(used(skipping.id, &written, all), HintUse::Believed);
}

#[test]
fn what_is_lost_is_read_although_it_did_not_change() {
    let caller = Caller::new(2);
    let storage = Memory::new();
    let region = memory_region(&storage, &small_packs());
    let disk = MemoryDisk::new(volume(6 << 20, 3));
    let parent = caller.snapshot(&region, &disk).unwrap().snapshot;
    let packs: Vec<String> = region.catalog().unwrap().packs.keys().map(ToString::to_string).collect();
    assert!(packs.len() > 8);
    packs[2..5].iter().for_each(|pack| storage.delete(pack).unwrap());
    let region = Region::open(Arc::new(storage.clone()), session()).unwrap();
    let taken = hinted(&region, &caller, &disk, parent.id, believed(Changes::default())).unwrap();
    assert_eq!(taken.hint, Some(HintUse::Believed));
    assert!(taken.ingested.new_chunks > 0);
    assert!(taken.ingested.read_bytes < 3 << 20, "{}", taken.ingested.read_bytes);
    assert!(caller.read_back(&region, taken.snapshot.id).unwrap() == disk.bytes);
    assert!(
        caller.read_back(&region, parent.id).unwrap() == disk.bytes,
        "what is stored anew heals the parent"
    );
}

#[test]
fn a_hint_that_cannot_be_used_is_not_and_says_why() {
    let caller = Caller::new(2);
    let (storage, other) = (Memory::new(), Memory::new());
    let region = memory_region(&storage, &small_packs());
    let mut disk = MemoryDisk::new(volume(4 << 20, 3));
    let parent = caller.snapshot(&region, &disk).unwrap().snapshot;
    disk.bytes.extend([1; 10]);
    let why = |region: &Region, parent: SnapshotId, disk: &MemoryDisk| {
        let taken = hinted(region, &caller, disk, parent, believed(Changes::default())).unwrap();
        assert!(caller.read_back(region, taken.snapshot.id).unwrap() == disk.bytes, "everything was read");
        match taken.hint {
            Some(HintUse::Unusable { why }) => why,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(why(&region, parent.id, &disk), format!("{} has 4194304 bytes, the disk 4194314", parent.id));

    // A copy was cut where it comes from, perhaps with other parameters.
    let params = ChunkerParams { max_blocks: 32, ..ChunkerParams::DEFAULT };
    let away = memory_region(&other, &RegionOptions { chunker: params, ..small_packs() });
    let plan =
        plan(&region, &away, CopyWhat::Snapshot(parent.id), &CopyOptions::default(), &caller.context());
    let copied = apply(&region, &away, &plan.unwrap(), &CopyOptions::default(), &caller.context()).unwrap();
    let copy = copied.snapshots[0].id;
    disk.bytes.truncate(4 << 20);
    let said = format!("{copy} is a copy, and may have been cut otherwise where it comes from");
    assert_eq!(why(&away, copy, &disk), said);

    // Lost block maps.
    storage.delete(&parent.manifest.name.to_string()).unwrap();
    let region = Region::open(Arc::new(storage), session()).unwrap();
    assert!(
        why(&region, parent.id, &disk).starts_with(&format!("the block map of {} cannot be read", parent.id))
    );

    let hint = Some(believed(Changes::default()));
    let options = SnapshotOptions { hint, ..SnapshotOptions::default() };
    let error = snapshot(&region, &disk, &options, &caller.context()).unwrap_err();
    assert_eq!(error.code(), "MissingParameter");
}
