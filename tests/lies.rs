//! Packs and segments that are whole by their hashes and damaged or untrue all the same: who meets them.

mod common;

use common::{Caller, Draw, MemoryDisk, alike, memory_region, session, small_packs};
use imgstore::format::pack::{HEADER_BYTES, encode_header, encode_trailer};
use imgstore::io::memory::Memory;
use imgstore::io::storage::{Storage, read_whole};
use imgstore::model::ids::{ChunkId, SessionId, SnapshotId};
use imgstore::model::objects::{PackName, PackRecord};
use imgstore::model::op::Op;
use imgstore::ops::verify::{Finding, VerifyOptions, verify};
use imgstore::pack::trailer::read_trailer;
use imgstore::region::Region;
use imgstore::region::error::RegionError;
use std::sync::Arc;

fn open(storage: &Memory) -> Region {
    Region::open(Arc::new(storage.clone()), session()).unwrap()
}

fn findings(storage: &Memory) -> Vec<Finding> {
    verify(&open(storage), &VerifyOptions::default(), &Caller::new(1).context()).unwrap().findings
}

fn noise() -> MemoryDisk {
    let mut draw = Draw::new(1);
    MemoryDisk::new((0..2_000_000).flat_map(|_| draw.next().to_le_bytes()).collect())
}

/// A region whose chunks are in a segment, with the snapshot of a disk.
fn with_segment() -> (Memory, SnapshotId) {
    let (storage, caller) = (Memory::new(), Caller::new(1));
    let region = memory_region(&storage, &small_packs());
    let taken = caller.snapshot(&region, &noise()).unwrap();
    drop(region);
    assert_eq!(open(&storage).catalog().unwrap().segments.len(), 1);
    (storage, taken.snapshot.id)
}

/// The trailer of a pack names another base for a delta than the frame does: a collection would keep the wrong one.
#[test]
fn a_pack_that_names_another_base_is_found() {
    let (storage, caller) = (Memory::new(), Caller::new(1));
    let region = memory_region(&storage, &small_packs());
    for disk in alike(300_000) {
        caller.snapshot(&region, &MemoryDisk::new(disk)).unwrap();
    }
    let catalog = region.catalog().unwrap();
    let has_bases = |record: &&PackRecord| !record.bases.is_empty();
    let record = catalog.packs.values().map(|pack| &pack.record).find(has_bases).unwrap();
    let trailer = read_trailer(&storage, region.header().id, record).unwrap();
    let bytes = read_whole(&storage, &record.name.to_string(), 1 << 20).unwrap();
    let ends = trailer.entries.iter().map(|entry| entry.offset + 12 + entry.stored_len);
    let end = ends.max().unwrap();
    let base = |leading: u64| {
        let mut id = [0; 32];
        id[..8].copy_from_slice(&leading.to_be_bytes());
        ChunkId(id)
    };
    for lies in [false, true] {
        let mut deltas: Vec<_> = trailer.deltas().map(|(entry, leading)| (entry.id, base(leading))).collect();
        deltas[0].1.0[7] ^= u8::from(lies);
        let name = PackName { session: SessionId([9; 16]), number: u64::from(lies) };
        let header = encode_header(region.header().id, name);
        let (tail, trailer_hash) =
            encode_trailer(&header, &mut trailer.entries.clone(), &mut deltas, end, trailer.effort).unwrap();
        let frames = &bytes[HEADER_BYTES..end as usize];
        storage.create(&name.to_string(), &[&header, frames, &tail]).unwrap();
        let op = Op::RegisterPack(PackRecord { name, trailer_hash, ..record.clone() });
        region.commit::<_, RegionError>(caller.account, |_| Ok((vec![op.clone()], ()))).unwrap();
        let problems: Vec<String> = findings(&storage).into_iter().map(|finding| finding.problem).collect();
        assert_eq!(problems.len(), usize::from(lies), "{problems:?}");
        assert!(!lies || problems[0].contains("is not the one that the trailer says"), "{problems:?}");
    }
}

/// A pack whose trailer is damaged, while a segment still says what is in it: the snapshot that needs it is named.
#[test]
fn what_an_unreadable_pack_held_is_told_of_though_a_segment_lists_it() {
    let (storage, snapshot) = with_segment();
    let catalog = open(&storage).catalog().unwrap();
    let record = catalog.packs.values().next().unwrap().record.clone();
    let mut bytes = read_whole(&storage, &record.name.to_string(), 1 << 20).unwrap();
    let at = bytes.len() - 60;
    bytes[at] ^= 1;
    storage.restore(&record.name.to_string(), &bytes).unwrap();
    let found = findings(&storage);
    let of_pack = found.iter().find(|finding| finding.object.contains(&record.name.to_string())).unwrap();
    assert_eq!(of_pack.affected, [snapshot.to_string()], "{found:?}");
}

/// A page of a segment is damaged, and the first to read it is a writer who asks what is new.
#[test]
fn a_writer_that_meets_a_damaged_segment_finds_what_is_there() {
    let (storage, snapshot) = with_segment();
    let region = open(&storage);
    let catalog = region.catalog().unwrap();
    let segment = *catalog.segments.keys().next().unwrap();
    let map = region.load_map(&catalog.snapshots[&snapshot].manifest).unwrap();
    let mut ids: Vec<ChunkId> = map.chunks().iter().map(|chunk| chunk.id).collect();
    ids.push(ChunkId([7; 32]));
    let mut bytes = read_whole(&storage, &segment.to_string(), 1 << 20).unwrap();
    bytes[4096 + 50] ^= 1;
    storage.restore(&segment.to_string(), &bytes).unwrap();
    let mut writer = open(&storage).begin(Caller::new(1).account).unwrap();
    let is_new = writer.reserve(&ids).unwrap();
    assert!(is_new.iter().rev().skip(1).all(|is_new| !is_new) && is_new[ids.len() - 1]);
    // So does who asks what is stored.
    let stored = open(&storage).stored().unwrap();
    let packs = stored.packs_of(&ids[..ids.len() - 1]).unwrap().unwrap();
    assert!(packs.len() > 64 && stored.packs_of(&ids).unwrap().is_none());
}

/// A pack is gone, a segment still lists it, and what was in it was stored again: it is counted on where it is now.
#[test]
fn what_was_stored_again_is_looked_for_where_it_is() {
    let (storage, snapshot) = with_segment();
    let catalog = open(&storage).catalog().unwrap();
    let lost = *catalog.packs.keys().next().unwrap();
    storage.delete(&lost.to_string()).unwrap();
    let again = Caller::new(1).snapshot(&open(&storage), &noise()).unwrap();
    assert!(again.ingested.new_chunks > 0);
    let region = open(&storage);
    let map = region.load_map(&catalog.snapshots[&snapshot].manifest).unwrap();
    let ids: Vec<ChunkId> = map.chunks().iter().map(|chunk| chunk.id).collect();
    let packs = region.stored().unwrap().packs_of(&ids).unwrap().unwrap();
    assert!(packs.len() > 64 && !packs.contains(&lost));
}
