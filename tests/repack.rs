//! What is stored is compressed anew: smaller, the same content, and at no moment less safe.

mod common;

use common::{Caller, Draw, Meanwhile, MemoryDisk, Told, memory_region, small_packs};
use imgstore::chunk::frame::Codec;
use imgstore::io::directory::DirectoryOptions;
use imgstore::io::memory::Memory;
use imgstore::model::ids::SnapshotId;
use imgstore::model::objects::{PackName, PackState};
use imgstore::ops::context::{Context, Progress};
use imgstore::ops::copy::{CopyOptions, CopyWhat, apply, plan};
use imgstore::ops::delete::delete_snapshot;
use imgstore::ops::encode::Compression;
use imgstore::ops::error::OpsError;
use imgstore::ops::gc::{Collected, GcOptions, collect, collect_into};
use imgstore::ops::repack::{RepackOptions, Repacked, repack};
use imgstore::ops::snapshot::{SnapshotOptions, snapshot};
use imgstore::ops::verify::{VerifyOptions, verify};
use imgstore::region::Region;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};

const ALL: RepackOptions = RepackOptions { level: 12, limit_bytes: u64::MAX };

struct Place {
    folder: tempfile::TempDir,
    caller: Caller,
}

impl Place {
    fn new() -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap(), caller: Caller::new(2) };
        Region::create_directory(place.folder.path(), &small_packs(), Self::options()).unwrap();
        place
    }

    fn options() -> DirectoryOptions {
        DirectoryOptions { reserve_bytes: 0, ..DirectoryOptions::default() }
    }

    fn open(&self) -> Region {
        Region::open_directory(self.folder.path(), Self::options()).unwrap()
    }

    fn take(&self, bytes: &[u8], delta: bool) -> SnapshotId {
        let compression = Compression { level: Some(1), delta };
        let options = SnapshotOptions { compression, ..SnapshotOptions::default() };
        let disk = MemoryDisk::new(bytes.to_vec());
        snapshot(&self.open(), &disk, &options, &self.caller.context()).unwrap().snapshot.id
    }

    fn repack(&self, options: &RepackOptions) -> Repacked {
        repack(&self.open(), options, &self.caller.context()).unwrap()
    }

    fn collect(&self) {
        collect(&self.open(), &GcOptions { grace_ms: 0, repack_percent: 50 }, &self.caller.context())
            .unwrap();
    }

    fn assert_has(&self, id: SnapshotId, bytes: &[u8]) {
        assert!(self.caller.read_back(&self.open(), id).unwrap() == bytes, "{id} has other bytes");
    }

    fn assert_clean(&self) {
        let options = VerifyOptions { content: true, ..VerifyOptions::default() };
        let report = verify(&self.open(), &options, &self.caller.context()).unwrap();
        assert!(report.findings.is_empty(), "{:?}", report.findings);
    }

    /// Bytes of live packs, and of all.
    fn stored(&self) -> (u64, u64) {
        let catalog = self.open().catalog().unwrap();
        let len = |only_live: bool| {
            let counts = |state: PackState| !only_live || state == PackState::Live;
            catalog.packs.values().filter(|pack| counts(pack.state)).map(|pack| pack.record.len).sum()
        };
        (len(true), len(false))
    }

    /// The packs, and how many frames each has.
    fn frames(&self) -> BTreeMap<PackName, u64> {
        let catalog = self.open().catalog().unwrap();
        catalog.packs.iter().map(|(name, pack)| (*name, u64::from(pack.record.frames))).collect()
    }

    fn deltas(&self, id: SnapshotId) -> usize {
        let region = self.open();
        let manifest = region.catalog().unwrap().snapshots[&id].manifest.clone();
        let ids: Vec<_> = region.load_map(&manifest).unwrap().chunks().iter().map(|chunk| chunk.id).collect();
        region.locate(&ids).unwrap().iter().filter(|(_, place)| place.codec == Codec::Delta).count()
    }
}

/// Text that compresses, better at a higher level.
fn text(len: usize, seed: u64) -> Vec<u8> {
    let mut draw = Draw::new(seed);
    let mut bytes = Vec::with_capacity(len + 64);
    while bytes.len() < len {
        let word = draw.below(5000);
        bytes.extend(format!("word {word} of {} ", word * word % 977).bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Noise that is changed every so many bytes.
fn noise(len: usize, seed: u64, every: usize) -> Vec<u8> {
    let mut draw = Draw::new(seed);
    changed((0..len / 8 + 1).flat_map(|_| draw.next().to_le_bytes()).take(len).collect(), every)
}

fn changed(mut bytes: Vec<u8>, every: usize) -> Vec<u8> {
    for at in (every..bytes.len().saturating_sub(8)).step_by(every) {
        bytes[at..at + 8].copy_from_slice(b"changed!");
    }
    bytes
}

#[test]
fn everything_is_smaller_and_the_same() {
    let place = Place::new();
    let (first, other) = (text(1 << 20, 1), text(1 << 19, 2));
    let ids = [place.take(&first, true), place.take(&other, true)];
    let (before, _) = place.stored();
    let repacked = place.repack(&ALL);
    assert!(repacked.emptied.count > 0 && repacked.left.count == 0, "{repacked:?}");
    assert_eq!(repacked.emptied.bytes, before);
    let (now, with_old) = place.stored();
    assert_eq!((now, with_old), (repacked.stored_bytes, before + repacked.stored_bytes));
    assert!(now * 10 < before * 9, "{now} of {before}");
    place.assert_has(ids[0], &first);
    place.collect();
    assert_eq!(place.stored(), (now, now), "the old packs are gone");
    place.assert_has(ids[0], &first);
    place.assert_has(ids[1], &other);
    place.assert_clean();
    assert_eq!(place.repack(&ALL), Repacked::default(), "made so already");
    assert_eq!(place.repack(&RepackOptions { level: 9, ..ALL }), Repacked::default());
}

/// What was made anew rots, and what it was made of is still there: also a copy takes it from there.
#[test]
fn a_copy_takes_chunks_from_wherever_they_are_intact() {
    let place = Place::new();
    let (first, second) = (noise(1 << 20, 1, 1 << 20), noise(1 << 20, 1, 30_000));
    let ids = [place.take(&first, true), place.take(&second, true)];
    place.repack(&ALL);
    let region = place.open();
    for id in ids {
        let manifest = region.catalog().unwrap().snapshots[&id].manifest.clone();
        let ids: Vec<_> = region.load_map(&manifest).unwrap().chunks().iter().map(|chunk| chunk.id).collect();
        for (_, at) in region.locate(&ids).unwrap() {
            assert_eq!(region.catalog().unwrap().packs[&at.pack].state, PackState::Live);
            let path = place.folder.path().join(at.pack.to_string());
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[at.offset as usize + 20] = !bytes[at.offset as usize + 20];
            std::fs::remove_file(&path).unwrap();
            std::fs::write(&path, bytes).unwrap();
        }
    }
    let (options, context) = (CopyOptions::default(), place.caller.context());
    for (id, bytes) in ids.into_iter().zip([first, second]) {
        let target = memory_region(&Memory::new(), &small_packs());
        let source = place.open();
        let plan = plan(&source, &target, CopyWhat::Snapshot(id), &options, &context).unwrap();
        let copied = apply(&source, &target, &plan, &options, &context).unwrap();
        assert!(place.caller.read_back(&target, copied.snapshots[0].id).unwrap() == bytes);
    }
}

#[test]
fn what_resembles_becomes_deltas_and_bases_stay_plain() {
    let place = Place::new();
    let [first, second, third] = [1 << 19, 5000, 7000].map(|every| noise(1 << 19, 3, every));
    // The third is stored against the first; the second could have been.
    let ids = [place.take(&first, true), place.take(&second, false), place.take(&third, true)];
    assert!(place.deltas(ids[2]) > 0 && place.deltas(ids[1]) == 0);
    let (before, _) = place.stored();
    place.repack(&ALL);
    place.collect();
    assert!(place.stored().0 * 10 < before * 7, "{} of {before}", place.stored().0);
    assert!(place.deltas(ids[1]) + place.deltas(ids[0]) > 0 && place.deltas(ids[2]) > 0);
    for (id, bytes) in ids.iter().zip([&first, &second, &third]) {
        place.assert_has(*id, bytes);
    }
    place.assert_clean();
    // What the deltas need stays, whoever goes.
    delete_snapshot(&place.open(), ids[0], &place.caller.context()).unwrap();
    place.collect();
    place.repack(&ALL);
    place.collect();
    place.assert_has(ids[1], &second);
    place.assert_has(ids[2], &third);
    place.assert_clean();
}

#[test]
fn a_limit_leaves_the_rest_for_later() {
    let place = Place::new();
    let bytes = text(2 << 20, 4);
    let id = place.take(&bytes, true);
    let packs = place.open().catalog().unwrap().packs.len() as u64;
    assert!(packs > 3);
    let preview = Context { dry_run: true, ..place.caller.context() };
    let before = place.stored();
    let would = repack(&place.open(), &ALL, &preview).unwrap();
    assert_eq!((would.emptied.count, would.stored_bytes, place.stored()), (packs, 0, before));
    for left in (0..packs).rev() {
        let repacked = place.repack(&RepackOptions { limit_bytes: 1, ..ALL });
        assert_eq!((repacked.emptied.count, repacked.left.count), (1, left));
    }
    assert_eq!(place.repack(&RepackOptions { limit_bytes: 0, ..ALL }).emptied.count, 0);
    place.collect();
    place.assert_has(id, &bytes);
    assert!(place.stored().0 < before.0);
}

/// Cancels after so many looks.
struct Impatient(AtomicU64);

impl Progress for Impatient {
    fn begin(&self, _: &'static str, _: u64) {}
    fn advance(&self, _: u64) {}
    fn note(&self, _: &str) {}
    fn is_cancelled(&self) -> bool {
        self.0.fetch_sub(1, Ordering::Relaxed) == 0
    }
}

#[test]
fn an_interrupted_run_is_gone_on_with() {
    let bytes = text(1 << 20, 5);
    let mut moved = Vec::new();
    for patience in 1.. {
        let place = Place::new();
        let id = place.take(&bytes, true);
        let impatient = Impatient(AtomicU64::new(patience));
        let context = Context { progress: &impatient, ..place.caller.context() };
        match repack(&place.open(), &ALL, &context) {
            Err(OpsError::Interrupted) => {}
            done => {
                done.unwrap();
                break;
            }
        }
        place.assert_has(id, &bytes);
        let repacked = place.repack(&ALL);
        assert!(repacked.left.count == 0, "{repacked:?}");
        moved.push(repacked.moved.count);
        place.collect();
        place.assert_has(id, &bytes);
        place.assert_clean();
    }
    let (first, last) = (moved.first().unwrap(), moved.last().unwrap());
    assert!(moved.is_sorted_by(|a, b| a >= b) && last < first, "not moved again: {moved:?}");
}

#[test]
fn what_is_stored_meanwhile_against_old_packs_keeps_what_it_needs() {
    let place = Place::new();
    let (bytes, like_it) = (noise(1 << 19, 6, 1 << 19), noise(1 << 19, 6, 3000));
    let id = place.take(&bytes, true);
    // Somebody takes a snapshot as soon as something was moved.
    let moves = AtomicU64::new(0);
    let busy = Meanwhile(|told| {
        if told == Told::Advanced && moves.fetch_add(1, Ordering::Relaxed) == 0 {
            place.take(&like_it, true);
        }
    });
    let context = Context { progress: &busy, ..place.caller.context() };
    repack(&place.open(), &ALL, &context).unwrap();
    place.collect();
    place.assert_has(id, &bytes);
    let meanwhile = *place.open().catalog().unwrap().snapshots.keys().find(|other| **other != id).unwrap();
    place.assert_has(meanwhile, &like_it);
    assert!(place.deltas(meanwhile) > 0);
    place.assert_clean();
}

#[test]
fn a_pack_that_nothing_needs_keeps_no_other_from_being_made_anew() {
    let place = Place::new();
    let (bytes, like_it, other) = (noise(1 << 18, 8, 1 << 18), noise(1 << 18, 8, 3000), text(1 << 19, 9));
    let ids = [place.take(&bytes, true), place.take(&like_it, true), place.take(&other, true)];
    assert!(place.deltas(ids[1]) > 0);
    // Nobody needs its deltas any more, but no collection has looked: their bases are held where they are.
    delete_snapshot(&place.open(), ids[1], &place.caller.context()).unwrap();
    let mut emptied = 0;
    while let one = place.repack(&RepackOptions { limit_bytes: 1, ..ALL })
        && one.emptied.count > 0
    {
        emptied += 1;
    }
    let all = place.repack(&ALL);
    assert!(emptied + all.emptied.count > 2 && all.left.count == 0, "{emptied}, {all:?}");
    place.collect();
    place.assert_has(ids[0], &bytes);
    place.assert_has(ids[2], &other);
    place.assert_clean();
}

/// A region whose packs are needed for less than a half: of one volume the rest is gone, the other is stored against it. Gives both
/// snapshots with what they hold.
fn worn(place: &Place) -> [(SnapshotId, Vec<u8>); 2] {
    let thinned = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        for (number, piece) in bytes.chunks_mut(150_000).enumerate() {
            if number % 3 > 0 {
                piece.fill(0);
            }
        }
        bytes
    };
    let volumes = [text(4 << 20, 12), changed(text(4 << 20, 12), 3000)];
    let whole = volumes.each_ref().map(|bytes| place.take(bytes, true));
    let kept = volumes.map(|bytes| (place.take(&thinned(&bytes), true), thinned(&bytes)));
    assert!(place.deltas(kept[1].0) > 3);
    for id in whole {
        delete_snapshot(&place.open(), id, &place.caller.context()).unwrap();
    }
    kept
}

/// Collects until `patience` ends or it is done: what was done.
fn collect_with(place: &Place, patience: u64, memory_bytes: u64) -> (Collected, bool) {
    let impatient = Impatient(AtomicU64::new(patience));
    let context = Context { progress: &impatient, memory_bytes, ..place.caller.context() };
    let mut collected = Collected::default();
    let options = GcOptions { grace_ms: 0, repack_percent: 50 };
    let done = match collect_into(&mut collected, &place.open(), &options, &context) {
        Err(OpsError::Interrupted) => false,
        done => done.is_ok(),
    };
    (collected, done)
}

/// Collects until there is nothing to do: what is moved may have been all that kept something else. Gives how many frames were
/// moved, and packs rewritten.
fn collect_all(place: &Place, memory_bytes: u64) -> (u64, u64) {
    let (mut frames, mut packs) = (0, 0);
    loop {
        let (collected, is_done) = collect_with(place, u64::MAX, memory_bytes);
        assert!(is_done);
        frames += collected.moved.count;
        packs += collected.repacked.count;
        if collected.freed.count == 0 {
            return (frames, packs);
        }
    }
}

#[test]
fn a_collection_with_little_memory_rewrites_some_packs_at_a_time() {
    let mut moved = Vec::new();
    for memory_bytes in [1 << 30, 1] {
        let place = Place::new();
        let kept = worn(&place);
        let deltas = place.deltas(kept[1].0);
        moved.push(collect_all(&place, memory_bytes));
        assert_eq!(place.deltas(kept[1].0), deltas, "each goes on with its base, wherever that is now");
        kept.iter().for_each(|(id, bytes)| place.assert_has(*id, bytes));
        place.assert_clean();
    }
    assert_eq!(moved[0], moved[1]);
    assert!(moved[0].1 > 4, "{moved:?}");
    // What was rewritten is gone before the rest is.
    let mut freed = BTreeSet::new();
    for patience in (0..).step_by(10) {
        let place = Place::new();
        let kept = worn(&place);
        let (collected, is_done) = collect_with(&place, patience, 1);
        kept.iter().for_each(|(id, bytes)| place.assert_has(*id, bytes));
        if is_done {
            break;
        }
        freed.insert(collected.repacked.count);
    }
    assert!(freed.len() > 3, "{freed:?}");
}

#[test]
fn an_interrupted_collection_moves_nothing_twice() {
    let place = Place::new();
    worn(&place);
    let all = collect_all(&place, 1 << 30).0;
    let mut moved = Vec::new();
    for patience in (0..).step_by(6) {
        let place = Place::new();
        let kept = worn(&place);
        let before = place.frames();
        let (collected, is_done) = collect_with(&place, patience, 1 << 30);
        if is_done || collected.repacked.count > 0 {
            break;
        }
        let new = place.frames().into_iter().filter(|(name, _)| !before.contains_key(name));
        let by_first: u64 = new.map(|(_, frames)| frames).sum();
        moved.push((by_first, collect_all(&place, 1 << 30).0));
        kept.iter().for_each(|(id, bytes)| place.assert_has(*id, bytes));
        place.assert_clean();
    }
    assert!(moved.iter().all(|(first, then)| first + then == all), "{all}: {moved:?}");
    assert!(moved.iter().any(|(first, _)| (1..all).contains(first)), "{all}: {moved:?}");
}
