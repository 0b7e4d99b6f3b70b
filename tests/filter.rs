//! Filters of index segments, sound, damaged and lying: what is stored is found all the same, and at worst stored twice.
//! And merges of large segments.

mod common;

use common::{Caller, MemoryDisk, memory_region, small_packs, volume};
use imgstore::chunk::frame::Codec;
use imgstore::format::entry::Entry;
use imgstore::format::segment::{SEGMENT, SegmentWriter, decode_header};
use imgstore::io::map::Bytes;
use imgstore::io::memory::Memory;
use imgstore::io::storage::{Storage, read_whole};
use imgstore::model::ids::{ChunkId, ObjectHash, RegionId, SessionId};
use imgstore::model::objects::{PackName, PackRecord, SegmentName, SegmentRecord};
use imgstore::model::op::Op;
use imgstore::ops::delete::delete_snapshot;
use imgstore::ops::gc::{GcOptions, collect};
use imgstore::ops::repair::{RepairSources, repair};
use imgstore::ops::verify::{VerifyOptions, verify};
use imgstore::pack::segment::Segment;
use imgstore::pack::trailer::read_trailer;
use imgstore::region::Region;
use imgstore::region::error::RegionError;
use proptest::prelude::*;
use std::sync::Arc;

const REGION: RegionId = RegionId([3; 16]);
const SESSION: SessionId = SessionId([9; 16]);

fn record_of(number: u64, bytes: &[u8], hash: ObjectHash, entries: u64) -> SegmentRecord {
    let (name, len) = (SegmentName { session: SESSION, number }, bytes.len() as u64);
    SegmentRecord { name, len, entries, hash, replaces: vec![], partial: vec![] }
}

fn entry(id: ChunkId) -> Entry {
    Entry { id, pack: 0, offset: 64, stored_len: 88, raw_blocks: 1, codec: Codec::Zstd }
}

/// A segment of these ids with a filter of so many pages.
fn segment(ids: &[ChunkId], filter_pages: u32) -> (Vec<u8>, SegmentRecord) {
    let mut writer = SegmentWriter::new(ids.len()).with_filter_pages(filter_pages);
    ids.iter().for_each(|id| writer.push(entry(*id)).unwrap());
    let (bytes, hash, entries) = writer.finish(REGION, &[PackName { session: SESSION, number: 1 }]).unwrap();
    let record = record_of(1, &bytes, hash, entries);
    (bytes, record)
}

fn open(bytes: &[u8], record: &SegmentRecord) -> Segment {
    Segment::from_bytes(Bytes::Owned(Arc::new(bytes.to_vec())), REGION, record).unwrap()
}

/// The places of a segment's filter pages.
fn filter_range(bytes: &[u8]) -> std::ops::Range<usize> {
    let header = decode_header(bytes).unwrap();
    let start = (header.pages as usize + 1) * 4096;
    start..start + header.filter_pages as usize * 4096
}

/// Makes checksums and the hash fit again; gives the hash.
fn reseal(bytes: &mut [u8]) -> ObjectHash {
    let filter = filter_range(bytes);
    for page in bytes[filter].chunks_mut(4096) {
        let crc = crc32c::crc32c(&page[..4092]);
        page[4092..].copy_from_slice(&crc.to_le_bytes());
    }
    let (covered, stored) = bytes.split_last_chunk_mut::<32>().unwrap();
    *stored = SEGMENT.hash(&[covered]).0;
    ObjectHash(*stored)
}

fn random_ids(seed: u64, count: usize) -> Vec<ChunkId> {
    let mut draw = common::Draw::new(seed);
    let mut id = || {
        let mut id = [0; 32];
        id.as_chunks_mut::<8>().0.iter_mut().for_each(|word| *word = draw.next().to_be_bytes());
        ChunkId(id)
    };
    let mut ids: Vec<ChunkId> = (0..count).map(|_| id()).collect();
    ids.sort_unstable();
    ids
}

proptest! {
    /// Whatever the ids, and whatever is in the filter: look-ups are right. A sound filter denies nothing that is there.
    #[test]
    fn look_ups_are_right_whatever_a_filter_says(
        mut ids in proptest::collection::btree_set(
            prop_oneof![any::<[u8; 32]>(), (any::<[u8; 2]>(), 0..4_usize).prop_map(|(low, at)| {
                let mut id = [[0, 0x7f, 0x80, 0xff][at]; 32];
                id[30..].copy_from_slice(&low);
                id
            })],
            1..600,
        ),
        pages in 1..4_u32,
        noise in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..200),
    ) {
        let absent = ids.pop_first().map(ChunkId);
        let ids: Vec<ChunkId> = ids.into_iter().map(ChunkId).collect();
        let (mut bytes, record) = segment(&ids, pages);
        let sound = open(&bytes, &record);
        sound.check_hash().unwrap();
        sound.check_filter().unwrap();
        prop_assert!(ids.iter().all(|id| sound.may_hold(id.leading())));
        let filter = filter_range(&bytes);
        for (at, value) in noise {
            // Its end says which page it is, and is not the filter's word.
            let at = filter.start + at.index(filter.len());
            if (at - filter.start) % 4096 < 4032 {
                bytes[at] = value;
            }
        }
        let hash = reseal(&mut bytes);
        let lying = open(&bytes, &SegmentRecord { hash, ..record });
        lying.check_hash().unwrap();
        for id in &ids {
            prop_assert_eq!(lying.lookup(*id).unwrap().map(|(found, _)| found), Some(entry(*id)));
        }
        if let Some(id) = absent {
            prop_assert!(lying.lookup(id).unwrap().is_none());
        }
    }
}

/// A flipped bit in a page of the filter: nothing on that page is denied any more, and the hash does not fit.
#[test]
fn a_flipped_bit_in_a_filter_denies_nothing() {
    let ids = random_ids(1, 6000);
    let (good, record) = segment(&ids, 3);
    let strange = random_ids(2, 2000);
    let denied = |segment: &Segment| strange.iter().filter(|id| !segment.may_hold(id.leading())).count();
    assert!(denied(&open(&good, &record)) > 1900);
    let filter = filter_range(&good);
    for at in filter.clone().step_by(61).chain([filter.end - 1]) {
        let mut bytes = good.clone();
        bytes[at] ^= 1 << (at % 8);
        let segment = open(&bytes, &record);
        for _ in 0..2 {
            assert!(ids.iter().step_by(7).all(|id| segment.may_hold(id.leading())), "byte {at}");
        }
        assert!(denied(&segment) < 1500, "a page that is damaged still denies");
        assert!(segment.check_hash().is_err());
        assert!(segment.lookup(ids[5]).unwrap().is_some());
    }
}

/// A region with one snapshot, and a segment over its packs with a filter that `change` had its way with.
fn region_with_filter(change: impl Fn(&mut [u8])) -> (Memory, Region, Caller, Vec<ChunkId>, Vec<u8>) {
    let (storage, caller) = (Memory::new(), Caller::new(1));
    let region = memory_region(&storage, &small_packs());
    let content = volume(400_000, 1);
    caller.snapshot(&region, &MemoryDisk::new(content.clone())).unwrap();
    let catalog = region.catalog().unwrap();
    let id = region.header().id;
    let packs: Vec<PackName> = catalog.packs.keys().copied().collect();
    let mut entries = Vec::new();
    for (pack, known) in (0..).zip(catalog.packs.values()) {
        let trailer = read_trailer(&storage, id, &known.record).unwrap();
        entries.extend(trailer.entries.into_iter().map(|entry| Entry { pack, ..entry }));
    }
    entries.sort_by_key(|entry| entry.id);
    let mut writer = SegmentWriter::new(entries.len()).with_filter_pages(1);
    entries.iter().for_each(|entry| writer.push(*entry).unwrap());
    let (mut bytes, _, count) = writer.finish(id, &packs).unwrap();
    let filter = filter_range(&bytes);
    change(&mut bytes[filter]);
    let hash = reseal(&mut bytes);
    let record = record_of(1, &bytes, hash, count);
    storage.create(&record.name.to_string(), &[&bytes]).unwrap();
    let op = Op::RegisterSegment(record);
    region.commit::<_, RegionError>(caller.account, |_| Ok((vec![op.clone()], ()))).unwrap();
    let ids = entries.iter().map(|entry| entry.id).collect();
    (storage, region, caller, ids, content)
}

/// A filter that denies everything, with checksums and hash that fit: what a bug in a writer could leave. Nothing is
/// called lost for it, nothing is collected, it is found and mended, and new snapshots store again what it denies.
#[test]
fn a_filter_that_lies_costs_space_and_no_content() {
    let deny_all = |filter: &mut [u8]| {
        for page in filter.chunks_mut(4096) {
            page[..4032].as_chunks_mut::<64>().0.iter_mut().for_each(|block| block[4..].fill(0));
        }
    };
    let (storage, region, caller, ids, content) = region_with_filter(deny_all);
    let id = *region.catalog().unwrap().snapshots.keys().next().unwrap();
    assert!(region.has_chunks(&ids).unwrap().iter().all(|has| !has), "the lie");
    assert!(region.has_live_chunks(&ids).unwrap().iter().all(|has| *has));
    assert!(region.try_locate(&ids).unwrap().iter().all(Option::is_some));
    assert!(region.try_locate_usable(&ids).unwrap().iter().all(Option::is_some));
    assert!(ids.iter().all(|id| region.intact_frame(*id).is_some()));
    assert!(caller.read_back(&region, id).unwrap() == content);

    let options = GcOptions { grace_ms: 0, repack_percent: 25 };
    let collected = collect(&region, &options, &caller.context()).unwrap();
    assert_eq!((collected.condemned.count, collected.freed.count), (0, 0), "nothing is garbage");

    let report = verify(&region, &VerifyOptions::default(), &caller.context()).unwrap();
    let problems: Vec<_> = report.findings.iter().map(|finding| finding.problem.clone()).collect();
    assert!(problems.len() == 1 && problems[0].contains("denies chunk"), "{problems:?}");

    let mut changed = content.clone();
    changed[..4096].fill(7);
    let again = caller.snapshot(&region, &MemoryDisk::new(changed.clone())).unwrap();
    assert!(again.ingested.new_bytes > 300_000, "{} bytes are stored again", again.ingested.new_bytes);
    for (id, content) in [(id, &content), (again.snapshot.id, &changed)] {
        assert!(caller.read_back(&region, id).unwrap() == *content);
    }

    let sources = RepairSources { regions: &[], disks: &[], force: true };
    repair(&region, &sources, &caller.context()).unwrap();
    let opened = Region::open(Arc::new(storage.clone()), common::session()).unwrap();
    let report = verify(&opened, &VerifyOptions::default(), &caller.context()).unwrap();
    assert!(report.findings.is_empty(), "{:?}", report.findings.first());
    assert!(opened.has_chunks(&ids).unwrap().iter().all(|has| *has));
    delete_snapshot(&opened, again.snapshot.id, &caller.context()).unwrap();
    collect(&opened, &options, &caller.context()).unwrap();
    assert!(caller.read_back(&opened, id).unwrap() == content);
}

/// Hints that lead astray cost a few steps.
#[test]
fn numbers_that_lie_mislead_nobody() {
    for value in [0, 0xff, 0x55] {
        let (_, region, caller, ids, content) = region_with_filter(|filter| {
            filter[..4032].as_chunks_mut::<64>().0.iter_mut().for_each(|block| block[..4].fill(value));
        });
        assert!(region.has_chunks(&ids).unwrap().iter().all(|has| *has));
        let id = *region.catalog().unwrap().snapshots.keys().next().unwrap();
        assert!(caller.read_back(&region, id).unwrap() == content);
    }
}

/// Segments that a writer leaves alone become one, without what is gone, and every chunk is found in it.
#[test]
fn large_segments_are_merged_and_can_be_given_up() {
    const ENTRIES: usize = (2 << 20) + 1000;
    let (storage, caller) = (Memory::new(), Caller::new(1));
    let region = memory_region(&storage, &small_packs());
    let register = |number: u64, ids: &[ChunkId]| {
        let packs = [2 * number, 2 * number + 1].map(|number| PackName { session: SESSION, number });
        let mut writer = SegmentWriter::new(ids.len());
        (0_u32..).zip(ids).for_each(|(at, id)| writer.push(Entry { pack: at % 2, ..entry(*id) }).unwrap());
        let (bytes, hash, entries) = writer.finish(region.header().id, &packs).unwrap();
        let record = record_of(number, &bytes, hash, entries);
        storage.create(&record.name.to_string(), &[&bytes]).unwrap();
        let pack = |name| {
            let (trailer_hash, bases) = (ObjectHash([1; 32]), vec![]);
            Op::RegisterPack(PackRecord { name, len: 1 << 20, frames: 9, raw_bytes: 9, trailer_hash, bases })
        };
        let [one, two] = packs.map(pack);
        let ops = vec![one, two, Op::RegisterSegment(record)];
        region.commit::<_, RegionError>(caller.account, |_| Ok((ops.clone(), ()))).unwrap();
    };
    let (one, two) = (random_ids(3, ENTRIES), random_ids(4, ENTRIES));
    register(1, &one);
    region.merge_large_segments::<RegionError>(caller.account, || Ok(())).unwrap();
    assert_eq!(region.catalog().unwrap().segments.len(), 1, "one stays as it is");
    register(2, &two);

    let objects = || storage.list("index").unwrap().len();
    for patience in [0, 1, 40] {
        let mut left = patience;
        let given_up = region.merge_large_segments(caller.account, || {
            left -= 1;
            if left < 0 { Err(RegionError::WriterGone) } else { Ok(()) }
        });
        assert!(matches!(given_up, Err(RegionError::WriterGone)), "{given_up:?}");
        assert_eq!((region.catalog().unwrap().segments.len(), objects()), (2, 2), "nothing is left of it");
    }
    region.merge_large_segments::<RegionError>(caller.account, || Ok(())).unwrap();
    let catalog = region.catalog().unwrap();
    let merged = catalog.segments.values().next().unwrap();
    assert_eq!((catalog.segments.len(), objects(), merged.entries), (1, 1, 2 * ENTRIES as u64));
    let bytes = read_whole(&storage, &merged.name.to_string(), 1 << 30).unwrap();
    assert_eq!((decode_header(&bytes).unwrap().packs.len(), bytes.len() as u64), (4, merged.len));
    let opened = Segment::from_bytes(Bytes::Owned(Arc::new(bytes)), region.header().id, merged).unwrap();
    opened.check_hash().unwrap();
    opened.check_filter().unwrap();
    let packs = |number: u64| [2 * number, 2 * number + 1];
    for (number, ids) in [(1, one), (2, two)] {
        let places = region.try_locate(&ids[..10_000]).unwrap();
        for (at, place) in places.into_iter().enumerate() {
            assert_eq!(place.unwrap().pack.number, packs(number)[at % 2]);
        }
    }
    let strange = random_ids(5, 10_000);
    assert!(strange.iter().filter(|id| opened.may_hold(id.leading())).count() < 100);
}
