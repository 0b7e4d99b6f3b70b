//! What a collection makes out before it lets anything go: which packs stay, how much of them is needed, and what bases they
//! are put on.

mod common;

use common::{Caller, MemoryDisk, changed, memory_region, session, small_packs, text, volume};
use imgstore::io::memory::Memory;
use imgstore::io::storage::{Storage, read_whole};
use imgstore::model::ids::{SessionId, SnapshotId};
use imgstore::model::objects::{PackName, PackRecord};
use imgstore::model::op::Op;
use imgstore::ops::context::Context;
use imgstore::ops::delete::delete_snapshot;
use imgstore::ops::encode::Compression;
use imgstore::ops::error::{Class, OpsError};
use imgstore::ops::gc::{Collected, GcOptions, collect, preview};
use imgstore::ops::ingest::ingest;
use imgstore::region::collect::Mark;
use imgstore::region::error::RegionError;
use imgstore::region::session::Session;
use imgstore::region::{Region, RegionOptions};
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

const NOW: GcOptions = GcOptions { grace_ms: 0, repack_percent: 0 };

/// A region in memory with a pack for each writer. Writers have numbers, and their packs come by name in that order.
struct Place {
    storage: Memory,
    caller: Caller,
}

impl Place {
    fn new() -> Self {
        let place = Self { storage: Memory::new(), caller: Caller::new(1) };
        memory_region(&place.storage, &RegionOptions { pack_bytes: 8 << 20, ..small_packs() });
        place
    }

    fn writer(&self, number: u8) -> Region {
        Region::open(Arc::new(self.storage.clone()), SessionId([number; 16])).unwrap()
    }

    fn open(&self) -> Region {
        Region::open(Arc::new(self.storage.clone()), session()).unwrap()
    }

    /// Stores bytes as far as the session knows no such chunks; its pack, if it is the session's first.
    fn store(&self, session: &mut Session, bytes: &[u8], delta: bool) {
        let compression = Compression { delta, ..Compression::default() };
        ingest(session, &MemoryDisk::new(bytes.to_vec()), &compression, &self.caller.context()).unwrap();
    }

    /// A snapshot by a writer of its own, as deltas where something is like it.
    fn take(&self, number: u8, bytes: &[u8]) -> SnapshotId {
        self.caller.snapshot(&self.writer(number), &MemoryDisk::new(bytes.to_vec())).unwrap().snapshot.id
    }

    fn delete(&self, id: SnapshotId) {
        delete_snapshot(&self.open(), id, &self.caller.context()).unwrap();
    }

    fn append(&self, ops: Vec<Op>) {
        self.open().commit::<_, RegionError>(self.caller.account, |_| Ok((ops.clone(), ()))).unwrap();
    }

    fn mark(&self) -> Result<Mark, RegionError> {
        self.open().mark(&HashSet::new(), || Ok(()))
    }

    /// Collects, with every writer taken for gone.
    fn collect(&self, options: &GcOptions) -> Result<Collected, OpsError> {
        self.storage.take_all_for_gone(true);
        let collected = collect(&self.open(), options, &self.caller.context());
        self.storage.take_all_for_gone(false);
        collected
    }

    fn pack(&self, name: PackName) -> Option<PackRecord> {
        self.open().catalog().unwrap().packs.get(&name).map(|pack| pack.record.clone())
    }

    fn sequence(&self) -> u64 {
        self.open().catalog().unwrap().sequence
    }

    fn assert_has(&self, id: SnapshotId, bytes: &[u8]) {
        assert!(self.caller.read_directly(&self.open(), id).unwrap() == bytes, "{id} has other bytes");
    }
}

/// The first pack of a writer.
fn pack_of(number: u8) -> PackName {
    PackName { session: SessionId([number; 16]), number: 0 }
}

#[test]
fn of_a_pack_that_is_needed_whole_a_hundred_percent_are() {
    let place = Place::new();
    // Small frames, such that much of the pack is its own index; and deltas, which take more of that.
    let blocks: Vec<u8> =
        (1..=200_u8).flat_map(|number| [vec![number; 4096], vec![0; 4096]].concat()).collect();
    let first = text(400_000, 1);
    place.take(1, &blocks);
    place.take(2, &[&first[..], &changed(&first, 3000)].concat());
    let mark = place.mark().unwrap();
    for (number, frames_min) in [(1, 100), (2, 6)] {
        let record = place.pack(pack_of(number)).unwrap();
        assert!(record.frames >= frames_min, "{record:?}");
        assert_eq!(mark.usage(&record.name).frames, u64::from(record.frames));
        assert_eq!(mark.needed_percent(&record), 100, "{record:?}");
    }
    let collected = place.collect(&GcOptions { repack_percent: 100, ..NOW }).unwrap();
    assert_eq!(collected, Collected::default());
}

#[test]
fn a_plain_copy_is_kept_before_a_delta_whichever_pack_comes_first() {
    let place = Place::new();
    let (first, second) = (text(300_000, 1), changed(&text(300_000, 1), 3000));
    place.take(1, &first);
    for [delta, plain] in [[2, 3], [5, 4]] {
        // Both look before either has stored.
        let writers = [delta, plain].map(|number| place.writer(number));
        let mut sessions = writers.each_ref().map(|writer| writer.begin(place.caller.account).unwrap());
        place.store(&mut sessions[0], &second, true);
        place.store(&mut sessions[1], &second, false);
        drop(sessions);
        let id = place.take(10 + delta, &second);
        assert!(!place.pack(pack_of(delta)).unwrap().bases.is_empty());
        let mark = place.mark().unwrap();
        let frames = [delta, plain].map(|number| mark.usage(&pack_of(number)).frames);
        assert!(frames[0] == 0 && frames[1] > 1, "{frames:?}");
        assert!(!mark.kept_packs().contains(&pack_of(delta)));
        place.delete(id);
        place.collect(&NOW).unwrap();
    }
}

/// Nothing is to be done about deltas that are where their bases are on record.
#[test]
fn a_collection_that_finds_nothing_to_do_leaves_no_record() {
    let place = Place::new();
    let first = text(300_000, 1);
    place.take(1, &first);
    place.take(2, &changed(&first, 3000));
    assert_eq!(place.pack(pack_of(2)).unwrap().bases, [pack_of(1)]);
    let before = place.sequence();
    assert_eq!(place.collect(&NOW).unwrap(), Collected::default());
    assert_eq!(place.sequence(), before);
}

/// Deltas on two disks, the second of which is in two packs. They are on record with the one that is kept last.
fn on_a_copy(place: &Place) -> (SnapshotId, Vec<u8>) {
    let (one, two) = (text(300_000, 1), text(300_000, 2));
    let copier = place.writer(6);
    let mut session = copier.begin(place.caller.account).unwrap();
    let bases = [place.take(5, &one), place.take(7, &two)];
    let both = [changed(&one, 3000), changed(&two, 3000)].concat();
    let id = place.take(8, &both);
    place.store(&mut session, &two, false);
    bases.into_iter().for_each(|id| place.delete(id));
    assert_eq!(place.pack(pack_of(8)).unwrap().bases, [pack_of(5), pack_of(7)]);
    assert!(place.pack(pack_of(6)).is_some());
    (id, both)
}

#[test]
fn deltas_are_put_on_the_copy_of_their_bases_that_stays() {
    let place = Place::new();
    let (id, bytes) = on_a_copy(&place);
    assert_eq!(place.collect(&NOW).unwrap().freed.count, 1);
    assert_eq!(place.pack(pack_of(8)).unwrap().bases, [pack_of(5), pack_of(6)]);
    assert_eq!(place.pack(pack_of(7)), None);
    place.assert_has(id, &bytes);
}

/// One of the packs with their bases is damaged, so that nothing new may be put on it: all stays as it is on record.
#[test]
fn deltas_stay_on_what_they_are_on_as_long_as_some_of_it_is_damaged() {
    let place = Place::new();
    let (id, bytes) = on_a_copy(&place);
    place.append(vec![Op::QuarantinePacks { packs: vec![pack_of(5)], at_ms: 1 }]);
    assert_eq!(place.collect(&NOW).unwrap().freed.count, 0);
    assert_eq!(place.pack(pack_of(8)).unwrap().bases, [pack_of(5), pack_of(7)]);
    place.assert_has(id, &bytes);
}

#[test]
fn a_delta_in_a_condemned_pack_keeps_its_base() {
    let place = Place::new();
    let first = text(300_000, 1);
    let base = place.take(1, &first);
    place.take(2, &changed(&first, 3000));
    place.delete(base);
    place.append(vec![Op::CondemnPacks { packs: vec![pack_of(2)], at_ms: 1 }]);
    let mark = place.mark().unwrap();
    assert_eq!(mark.kept_packs(), [pack_of(1), pack_of(2)].into());
    assert!(mark.usage(&pack_of(1)).frames > 1);
}

/// A chunk is nowhere, beside bases that are there and that nothing else refers to.
#[test]
fn bases_do_not_make_up_for_a_chunk_that_is_nowhere() {
    let place = Place::new();
    let first = text(300_000, 1);
    let base = place.take(1, &first);
    place.take(2, &changed(&first, 3000));
    place.delete(base);
    place.take(3, &[7; 4096]);
    assert!(place.mark().is_ok());
    let packs = vec![pack_of(3)];
    place.append(vec![Op::CondemnPacks { packs: packs.clone(), at_ms: 1 }, Op::SweepPacks { packs }]);
    let error = place.mark().map(drop).unwrap_err();
    assert!(error.to_string().contains("in no pack"), "{error}");
}

/// A mark outlives a record that changes nothing of what it keeps, also where a pack that it keeps is condemned.
#[test]
fn a_mark_holds_beside_a_commit_that_touches_nothing_of_it() {
    let place = Place::new();
    place.take(1, &[1; 4096]);
    let garbage = place.take(2, &[2; 4096]);
    place.delete(garbage);
    place.append(vec![Op::CondemnPacks { packs: vec![pack_of(1)], at_ms: 1 }]);
    let (collector, account) = (place.open(), place.caller.account);
    let mark = collector.mark::<RegionError>(&HashSet::new(), || Ok(())).unwrap();
    let kept = mark.kept_packs();
    assert_eq!(kept, [pack_of(1)].into());
    place.append(vec![Op::NoOp]);
    assert!(collector.condemn(&mark, &kept, &[pack_of(2)], account, 1).unwrap());
    // As it does beside the use of a pack that it keeps, and not if that goes.
    place.take(3, &[[1; 4096], [3; 4096]].concat());
    assert!(
        !collector.condemn(&mark, &kept, &[], account, 1).unwrap(),
        "there is a block map that it has not seen"
    );
}

#[test]
fn a_collection_leaves_what_its_own_handle_is_storing() {
    let place = Place::new();
    let writer = place.writer(1);
    let mut session = writer.begin(place.caller.account).unwrap();
    let bytes = volume(40_000, 1);
    place.store(&mut session, &bytes, true);
    // Of others each is taken for gone. So is this one, which knows better.
    place.storage.take_all_for_gone(true);
    assert_eq!(writer.find_orphans().unwrap().objects, [], "its block map, which nothing names yet");
    assert_eq!(place.open().find_orphans().unwrap().objects.len(), 1, "another handle would take it");
    let collected = collect(&writer, &NOW, &place.caller.context()).unwrap();
    assert_eq!((collected.condemned.count, collected.in_progress.count), (0, 1), "{collected:?}");
    assert_eq!(collected.orphans.count, 0);
    let id = place.caller.snapshot(&writer, &MemoryDisk::new(bytes.clone())).unwrap().snapshot.id;
    place.assert_has(id, &bytes);
}

/// What is in a segment is found whether its pack is there or not. As long as one of them is not, or not whole, nothing goes.
#[test]
fn nothing_goes_as_long_as_a_pack_that_a_segment_lists_is_not_there() {
    let place = Place::new();
    let region = place.open();
    for number in 0..70_u64 {
        let disk = MemoryDisk::new(number.to_le_bytes().repeat(512));
        place.caller.snapshot(&region, &disk).unwrap();
    }
    drop(region);
    let catalog = place.open().catalog().unwrap();
    assert!(!catalog.segments.is_empty());
    let kept = catalog.packs.keys().next().unwrap().to_string();
    let garbage = place.take(255, &[9; 4096]);
    place.delete(garbage);
    let sound = read_whole(&place.storage, &kept, 1 << 20).unwrap();
    for left in [&[][..], &sound[..sound.len() - 1]] {
        place.storage.delete(&kept).unwrap();
        if !left.is_empty() {
            place.storage.restore(&kept, left).unwrap();
        }
        let error = place.collect(&NOW).unwrap_err();
        assert_eq!(error.class(), Class::Damage, "{error}");
        assert!(place.pack(pack_of(255)).is_some());
    }
    place.storage.restore(&kept, &sound).unwrap();
    assert_eq!(place.collect(&NOW).unwrap().freed.count, 1);
}

/// A preview counts what a collection then does: also what one before it had on record as swept, and what is moved.
#[test]
fn a_collection_does_what_its_preview_says() {
    let place = Place::new();
    let part = text(81_920, 1);
    // What is not stored lies between, so that the part is cut alike.
    let whole = place.take(1, &[&part[..], &[0; 1 << 17], &text(300_000, 2)].concat());
    let kept = place.take(2, &part);
    let garbage = place.take(3, &[3; 4096]);
    [whole, garbage].into_iter().for_each(|id| place.delete(id));
    let swept = vec![pack_of(3)];
    place.append(vec![Op::CondemnPacks { packs: swept.clone(), at_ms: 1 }, Op::SweepPacks { packs: swept }]);
    let options = GcOptions { repack_percent: 90, ..NOW };
    let needed = place.mark().unwrap().usage(&pack_of(1));
    let swept_bytes = place.pack(pack_of(3)).unwrap().len;
    let worn_bytes = place.pack(pack_of(1)).unwrap().len;
    place.storage.take_all_for_gone(true);
    let dry = Context { dry_run: true, ..place.caller.context() };
    let said = preview(&place.open(), &options, &dry).unwrap();
    let done = place.collect(&options).unwrap();
    for collected in [&said, &done] {
        assert_eq!(
            (collected.freed.count, collected.freed.bytes),
            (2, swept_bytes + worn_bytes),
            "{collected:?}"
        );
        assert_eq!(
            (collected.moved.count, collected.moved.bytes),
            (needed.frames, needed.bytes),
            "{collected:?}"
        );
    }
    assert!(needed.bytes > 0);
    place.assert_has(kept, &part);
    let left: BTreeSet<PackName> = place.open().catalog().unwrap().packs.keys().copied().collect();
    assert_eq!(left.len(), 1);
}
