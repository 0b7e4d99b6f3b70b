//! A stored index segment, and a pack's own index: what does not belong to what the log names is refused, and what is
//! there is found however the ids lie.

mod common;

use common::{Caller, MemoryDisk, memory_region, small_packs, volume};
use imgstore::chunk::frame::{Codec, CodecPool, chunk_id};
use imgstore::format::entry::{ENTRY_BYTES, Entry};
use imgstore::format::error::FormatError;
use imgstore::format::pack::{
    FOOTER_BYTES, FRAME_HEADER_BYTES, HEADER_BYTES, PACK_BYTES_MAX, decode_trailer, encode_frame_header,
    encode_header, encode_trailer, frame_body, trailer_offset,
};
use imgstore::format::segment::{SegmentWriter, decode_header, filter_page, page};
use imgstore::io::map::{Bytes, map_sealed};
use imgstore::io::memory::Memory;
use imgstore::io::storage::{Storage, read_whole};
use imgstore::model::ids::{ChunkId, ObjectHash, RegionId, SessionId};
use imgstore::model::objects::{PackName, SegmentName, SegmentRecord};
use imgstore::ops::delete::delete_snapshot;
use imgstore::ops::gc::{GcOptions, collect};
use imgstore::pack::build::PackBuilder;
use imgstore::pack::error::PackError;
use imgstore::pack::segment::Segment;
use imgstore::pack::trailer::read_trailer;
use imgstore::region::Region;
use std::sync::Arc;

const REGION: RegionId = RegionId([3; 16]);
const SESSION: SessionId = SessionId([7; 16]);

fn packs() -> Vec<PackName> {
    (1..4).map(|number| PackName { session: SESSION, number }).collect()
}

fn entry(id: [u8; 32], number: usize) -> Entry {
    let offset = 64 + u32::try_from(number).unwrap() * 100;
    Entry {
        id: ChunkId(id),
        pack: u32::try_from(number % 3).unwrap(),
        offset,
        stored_len: 88,
        raw_blocks: 1,
        codec: Codec::Zstd,
    }
}

/// A segment of these ids, which ascend, and what the log says of it.
fn segment(ids: &[[u8; 32]]) -> (Vec<u8>, SegmentRecord) {
    let mut writer = SegmentWriter::new(ids.len());
    for (number, id) in ids.iter().enumerate() {
        writer.push(entry(*id, number)).unwrap();
    }
    let (bytes, hash, entries) = writer.finish(REGION, &packs()).unwrap();
    let name = SegmentName { session: SESSION, number: 9 };
    let len = bytes.len() as u64;
    (bytes, SegmentRecord { name, len, entries, hash, replaces: vec![], partial: vec![] })
}

fn open(bytes: &[u8], record: &SegmentRecord) -> Result<Segment, PackError> {
    Segment::from_bytes(Bytes::Owned(Arc::new(bytes.to_vec())), REGION, record)
}

/// Ids that lie evenly, all in one corner, at both ends, or doubling: interpolation helps with the first ones only.
fn families() -> Vec<(&'static str, Vec<[u8; 32]>)> {
    let with = |leading: u64, low: u16| {
        let mut id = [0; 32];
        id[..8].copy_from_slice(&leading.to_be_bytes());
        id[30..].copy_from_slice(&low.to_be_bytes());
        id
    };
    let even = (1..4000_u64).map(|n| with(u64::MAX / 4001 * n, 0)).collect();
    let corner = (1..4000_u16).map(|n| with(5, n)).collect();
    let mut ends: Vec<_> = (1..2000_u64).map(|n| with(n, 0)).collect();
    ends.extend((1..2000_u64).rev().map(|n| with(u64::MAX - n, 0)));
    let doubling = (0..60_u32).flat_map(|n| (0..40_u16).map(move |low| with(1 << n, low))).collect();
    vec![("even", even), ("corner", corner), ("ends", ends), ("doubling", doubling)]
}

#[test]
fn every_id_is_found_and_no_other_however_they_lie() {
    for (name, ids) in families() {
        let (bytes, record) = segment(&ids);
        let segment = open(&bytes, &record).unwrap();
        segment.check_hash().unwrap();
        assert_eq!(segment.entries(), ids.len() as u64);
        for (number, id) in ids.iter().enumerate() {
            let (found, pack) = segment.lookup(ChunkId(*id)).unwrap().unwrap();
            assert_eq!((found, pack), (entry(*id, number), packs()[number % 3]), "{name} {number}");
            let leading = ChunkId(*id).leading();
            let (alike, _) = segment.lookup_leading(leading).unwrap().unwrap();
            assert_eq!(alike.id.leading(), leading, "{name} {number}");
            for change in [0, 1] {
                let mut absent = *id;
                absent[29] = 1;
                absent[31] ^= change;
                assert_eq!(segment.lookup(ChunkId(absent)).unwrap(), None, "{name} {number}");
            }
        }
        for absent in [[0; 32], [255; 32]] {
            assert_eq!(segment.lookup(ChunkId(absent)).unwrap(), None, "{name}");
        }
        let listed: Vec<ChunkId> = segment.iter().map(|item| item.unwrap().0.id).collect();
        assert!(listed.iter().map(|id| id.0).eq(ids.iter().copied()), "{name}");
    }
}

#[test]
fn a_segment_that_is_not_the_logs_is_refused() {
    let ids: Vec<[u8; 32]> = (1..200_u8).map(|n| [n; 32]).collect();
    let (bytes, record) = segment(&ids);
    let refused = |record: &SegmentRecord, region| {
        Segment::from_bytes(Bytes::Owned(Arc::new(bytes.clone())), region, record).unwrap_err().to_string()
    };
    assert!(refused(&record, RegionId([4; 16])).contains("of region"));
    let fewer = SegmentRecord { entries: record.entries - 1, ..record.clone() };
    assert!(refused(&fewer, REGION).contains("entries"));
    let longer = SegmentRecord { len: record.len + 1, ..record.clone() };
    assert!(refused(&longer, REGION).contains("entries"));
    let another = SegmentRecord { hash: ObjectHash([1; 32]), ..record.clone() };
    let error = open(&bytes, &another).unwrap().check_hash().unwrap_err();
    assert!(error.to_string().contains("index segment"), "{error}");
    // A page whose bytes rotted is noticed at its first touch, and again at the next.
    let mut rotten = bytes.clone();
    rotten[4096 + 50] ^= 1;
    let segment = open(&rotten, &record).unwrap();
    for _ in 0..2 {
        assert!(segment.lookup(ChunkId([1; 32])).is_err());
    }
    assert!(segment.iter().any(|item| item.is_err()));
    assert!(segment.lookup(ChunkId([199; 32])).unwrap().is_some(), "other pages are good");
}

/// The device does not give a part of a segment that is mapped, here because it is no longer there: that is an error to who looks
/// there, and not the end of the process.
#[test]
fn what_cannot_be_read_of_a_map_is_damage() {
    let ids: Vec<[u8; 32]> = (0..40_000_u32)
        .map(|at| {
            let mut id = [0; 32];
            id[..4].copy_from_slice(&(at * 100_000).to_be_bytes());
            id
        })
        .collect();
    let (bytes, record) = segment(&ids);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &bytes).unwrap();
    let map = || map_sealed(file.as_file()).unwrap();
    let [whole, later] = [0; 2].map(|_| Segment::from_bytes(map(), REGION, &record).unwrap());
    let cut = map();
    file.as_file().set_len(100 * 4096).unwrap();
    assert!(whole.lookup(ChunkId(ids[10])).unwrap().is_some());
    for at in [20_000, 39_999] {
        let error = whole.lookup(ChunkId(ids[at])).unwrap_err();
        assert!(error.to_string().contains("cannot be read"), "{error}");
        assert!(whole.lookup_leading(ChunkId(ids[at]).leading()).is_err());
    }
    let read = whole.iter().take_while(Result::is_ok).count();
    assert_eq!(read, 99 * 85, "as far as it goes");
    later.check_filter().unwrap_err();
    later.check_hash().unwrap_err();
    assert!(later.may_hold(7), "what cannot be told is not denied");
    assert!(Segment::from_bytes(cut, REGION, &record).is_err());
}

#[test]
fn entries_must_ascend_and_name_packs_of_the_table() {
    let mut writer = SegmentWriter::new(2);
    writer.push(entry([2; 32], 0)).unwrap();
    for id in [[2; 32], [1; 32]] {
        assert!(writer.push(entry(id, 1)).unwrap_err().to_string().contains("ascend"));
    }
    let stray = Entry { pack: 3, ..entry([9; 32], 2) };
    writer.push(stray).unwrap();
    let (bytes, hash, entries) = writer.finish(REGION, &packs()).unwrap();
    let name = SegmentName { session: SESSION, number: 9 };
    let len = bytes.len() as u64;
    let record = SegmentRecord { name, len, entries, hash, replaces: vec![], partial: vec![] };
    let error = open(&bytes, &record).unwrap().lookup(ChunkId([9; 32])).unwrap_err();
    assert!(error.to_string().contains("not in the table"), "{error}");
}

/// A pack under another's name, and another pack under a name.
#[test]
fn a_pack_that_is_not_the_logs_is_refused() {
    let storage = Memory::new();
    let region = memory_region(&storage, &small_packs());
    let caller = Caller::new(1);
    // Noise of one length, so that both packs have one length.
    for seed in [1, 2] {
        let mut draw = common::Draw::new(seed);
        let noise: Vec<u8> = (0..8192 / 8).flat_map(|_| draw.next().to_le_bytes()).collect();
        caller.snapshot(&region, &MemoryDisk::new(noise)).unwrap();
    }
    let catalog = region.catalog().unwrap();
    let [one, two] = [0, 1].map(|at| catalog.packs.values().nth(at).unwrap().record.clone());
    assert_eq!(one.len, two.len);
    let id = region.header().id;
    read_trailer(&storage, id, &one).unwrap();
    // Of the length that the log says, and of one that a pack can have: else it is damaged, and not out of reach.
    let of_length = |len| imgstore::model::objects::PackRecord { len, ..one.clone() };
    let is_length = |error: &PackError| {
        matches!(error, PackError::Damaged { source: FormatError::Length { what: "pack", .. }, .. })
    };
    for len in [one.len - 1, one.len + 1] {
        let error = read_trailer(&storage, id, &of_length(len)).unwrap_err();
        assert!(is_length(&error), "{error}");
    }
    let whole = read_whole(&storage, &one.name.to_string(), 1 << 20).unwrap();
    for len in [1, HEADER_BYTES, HEADER_BYTES + FOOTER_BYTES - 1] {
        storage.restore(&one.name.to_string(), &whole[..len]).unwrap();
        let error = read_trailer(&storage, id, &of_length(len as u64)).unwrap_err();
        assert!(is_length(&error), "{len} bytes: {error}");
    }
    storage.restore(&one.name.to_string(), &whole).unwrap();
    let error = read_trailer(&storage, RegionId([9; 16]), &one).unwrap_err();
    assert!(error.to_string().contains("of region"), "{error}");
    let bytes = read_whole(&storage, &two.name.to_string(), 1 << 20).unwrap();
    storage.restore(&one.name.to_string(), &bytes).unwrap();
    let error = read_trailer(&storage, id, &one).unwrap_err();
    assert!(error.to_string().contains(&two.name.to_string()), "{error}");
    // Well made, with its name, and with other content.
    let raw = volume(8192, 3);
    let frame = CodecPool::new().encode(&raw, chunk_id(&raw), 3).unwrap();
    let mut builder = PackBuilder::new(id, one.name, 1 << 16, Vec::new());
    builder.push(chunk_id(&raw), &frame, None).unwrap();
    let sealed = builder.seal(0).unwrap();
    storage.restore(&one.name.to_string(), &sealed.bytes).unwrap();
    let record = imgstore::model::objects::PackRecord { len: sealed.record.len, ..one };
    let error = read_trailer(&storage, id, &record).unwrap_err();
    assert!(error.to_string().contains("pack"), "{error}");
    assert!(read_trailer(&storage, id, &sealed.record).is_ok(), "by its own record it is good");
}

/// A frame whose checksum is good, and of which the index says something else.
#[test]
fn a_frame_that_is_not_what_the_index_says_is_refused() {
    let raw = volume(8192, 3);
    let frame = CodecPool::new().encode(&raw, chunk_id(&raw), 3).unwrap();
    let mut bytes = encode_frame_header(&frame).unwrap().to_vec();
    bytes.extend(&frame.body);
    let stored_len = u32::try_from(frame.body.len()).unwrap();
    let good =
        Entry { id: chunk_id(&raw), pack: 0, offset: 64, stored_len, raw_blocks: 2, codec: frame.codec };
    assert_eq!(frame_body(&bytes, &good).unwrap(), frame.body);
    for other in [Entry { raw_blocks: 3, ..good }, Entry { codec: Codec::Raw, ..good }] {
        let error = frame_body(&bytes, &other).unwrap_err();
        assert!(error.to_string().contains("not what the index says"), "{error}");
    }
    let mut longer = bytes.clone();
    longer[..4].copy_from_slice(&(stored_len + 1).to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&longer[..8]), &longer[FRAME_HEADER_BYTES..]);
    longer[8..12].copy_from_slice(&crc.to_le_bytes());
    let error = frame_body(&longer, &good).unwrap_err();
    assert!(error.to_string().contains("not what the index says"), "{error}");
    assert!(frame_body(&bytes[..bytes.len() - 1], &good).is_err());
}

#[test]
fn a_trailer_has_frames_in_order_end_to_end() {
    let region = RegionId([1; 16]);
    let header = encode_header(region, packs()[0]);
    let entry = |id: u8, offset, stored_len| Entry {
        id: ChunkId([id; 32]),
        pack: 0,
        offset,
        stored_len,
        raw_blocks: 1,
        codec: Codec::Zstd,
    };
    let end = 64 + 2 * 112;
    let good = [entry(2, 64, 100), entry(1, 176, 100)];
    let (bytes, hash) = encode_trailer(&header, &mut good.clone(), &mut [], end, 9).unwrap();
    let trailer = decode_trailer(&header, &bytes).unwrap();
    assert_eq!((trailer.entries, trailer.hash, trailer.effort), (vec![good[1], good[0]], hash, 9));
    assert!(encode_trailer(&header, &mut good.clone(), &mut [], end, 23).is_err(), "no such level");
    let refused =
        |mut entries: Vec<Entry>, end| encode_trailer(&header, &mut entries, &mut [], end, 0).is_err();
    assert!(refused(vec![], 64), "no frames");
    let delta = Entry { codec: Codec::Delta, ..good[1] };
    assert!(refused(vec![good[0], delta], end), "a delta without a base");
    let mut of_another = [(good[0].id, good[1].id)];
    assert!(encode_trailer(&header, &mut good.clone(), &mut of_another, end, 0).is_err(), "a base for none");
    assert!(refused(vec![good[0], good[0]], end), "one twice");
    assert!(refused(vec![good[0], entry(2, 176, 100)], end), "a chunk twice");
    assert!(refused(good.to_vec(), end + 1) && refused(good.to_vec(), end - 1), "a gap at the end");
    assert!(refused(vec![good[0], entry(1, 177, 99)], end), "a gap between");
    assert!(refused(vec![good[0], entry(1, 175, 101)], end), "one over the other");
    assert!(refused(vec![entry(2, 65, 99), good[1]], end), "a gap at the beginning");
    assert!(refused(vec![good[0], Entry { pack: 1, ..good[1] }], end), "another pack");
    assert!(refused(vec![good[0], Entry { raw_blocks: 0, ..good[1] }], end), "no blocks");
    assert!(refused(vec![good[0], Entry { raw_blocks: 257, ..good[1] }], end), "too many blocks");
    assert!(
        refused(vec![good[0], Entry { codec: Codec::Raw, ..good[1] }], end),
        "raw, and of another length"
    );
    assert!(refused(vec![good[0], entry(1, 176, 0)], 176 + 12), "no bytes");
    assert!(!refused(vec![good[0], Entry { raw_blocks: 256, ..good[1] }], end));
    // With a base for a frame that says it is none, and a hash that fits.
    let mut base = [(delta.id, good[0].id)];
    let (mut lies, _) = encode_trailer(&header, &mut [good[0], delta], &mut base, end, 9).unwrap();
    assert_eq!(decode_trailer(&header, &lies).unwrap().deltas().count(), 1);
    // The entries are those of before but for the codec.
    lies[..2 * ENTRY_BYTES].copy_from_slice(&bytes[..2 * ENTRY_BYTES]);
    let footer = lies.len() - 32;
    let covered = [&header[..], &lies[..footer]].concat();
    lies[footer..].copy_from_slice(&blake3::derive_key("imgstore 2026-11 pack trailer v1", &covered));
    let error = decode_trailer(&header, &lies).unwrap_err();
    assert!(error.to_string().contains("a base for each delta"), "{error}");
    // In another order, and with a hash that fits.
    let mut swapped = bytes.clone();
    let (first, rest) = swapped.split_at_mut(48);
    first.swap_with_slice(&mut rest[..48]);
    let footer = swapped.len() - 32;
    let covered = [&header[..], &swapped[..footer]].concat();
    swapped[footer..].copy_from_slice(&blake3::derive_key("imgstore 2026-11 pack trailer v1", &covered));
    let error = decode_trailer(&header, &swapped).unwrap_err();
    assert!(error.to_string().contains("ascend"), "{error}");
}

#[test]
fn a_footer_is_of_a_pack_of_possible_length() {
    let footer = |frames: u32, offset: u32| {
        let mut footer = [0; FOOTER_BYTES];
        footer[..8].copy_from_slice(b"IMGSPEND");
        footer[8..12].copy_from_slice(&frames.to_le_bytes());
        footer[12..16].copy_from_slice(&offset.to_le_bytes());
        footer
    };
    let read = |offset: u32, pack_len: u64| trailer_offset(&footer(2, offset), pack_len).ok();
    let around = 2 * ENTRY_BYTES as u64 + FOOTER_BYTES as u64;
    let largest = u32::try_from(PACK_BYTES_MAX - around).unwrap();
    assert_eq!(read(largest, PACK_BYTES_MAX), Some(largest));
    assert_eq!(read(largest + 1, PACK_BYTES_MAX + 1), None, "longer than a pack may be");
    let smallest = u32::try_from(HEADER_BYTES).unwrap();
    assert_eq!(read(smallest, u64::from(smallest) + around), Some(smallest));
    assert_eq!(read(smallest - 1, u64::from(smallest) - 1 + around), None, "in the header");
    for len in [999 + around, 1001 + around] {
        assert_eq!(read(1000, len), None, "of another length");
    }
}

/// The pages end where the table of packs begins, however long that is.
#[test]
fn what_follows_the_last_page_is_no_page() {
    let mut writer = SegmentWriter::new(1);
    writer.push(entry([1; 32], 0)).unwrap();
    let packs: Vec<_> = (0..500).map(|number| PackName { session: SESSION, number }).collect();
    let (bytes, _, _) = writer.finish(REGION, &packs).unwrap();
    let header = decode_header(&bytes).unwrap();
    assert!(page(&bytes, &header, 0, true).is_ok());
    let Err(FormatError::Length { expected, found, .. }) = page(&bytes, &header, 1, false) else {
        panic!("it is taken for a page")
    };
    assert_eq!((expected, found), (3 * 4096, bytes.len() as u64));
    assert!(filter_page(&bytes, &header, 0).is_none(), "nor is it one of a filter that it does not have");
}

#[test]
fn a_short_object_is_told_by_its_length() {
    let error = imgstore::format::manifest::decode(&[0; 10]).unwrap_err();
    assert!(error.to_string().contains("72") && error.to_string().contains("10"), "{error}");
}

/// A page with an id twice, its checksum made anew.
#[test]
fn a_page_has_each_id_once() {
    let ids: Vec<[u8; 32]> = (0..3).map(|n| [n; 32]).collect();
    let (good, record) = segment(&ids);
    let lookup = |bytes: &[u8]| open(bytes, &record).unwrap().lookup(ChunkId(ids[0]));
    assert!(lookup(&good).unwrap().is_some());
    let mut twice = good;
    let page = &mut twice[4096..2 * 4096];
    page.copy_within(..32, 48);
    let crc = crc32c::crc32c(&page[..4092]);
    page[4092..].copy_from_slice(&crc.to_le_bytes());
    assert!(matches!(lookup(&twice), Err(PackError::Damaged { .. })));
}

/// However much comes in, a region has a few segments, and every chunk is found in them.
#[test]
fn segments_are_merged_as_a_region_grows() {
    let (storage, caller) = (Memory::new(), Caller::new(1));
    let region = memory_region(&storage, &small_packs());
    let mut taken = Vec::new();
    let mut most = 0;
    for seed in 0..60 {
        let mut draw = common::Draw::new(seed + 1);
        let noise: Vec<u8> = (0..1_000_000 / 8).flat_map(|_| draw.next().to_le_bytes()).collect();
        let id = caller.snapshot(&region, &MemoryDisk::new(noise.clone())).unwrap().snapshot.id;
        taken.push((id, noise));
        most = most.max(region.catalog().unwrap().segments.len());
    }
    let packs = region.catalog().unwrap().packs.len();
    assert!(packs > 4 * 64, "{packs} packs make no segments");
    assert!((1..=2).contains(&most), "{most} segments of {packs} packs");
    for (id, bytes) in taken {
        assert!(caller.read_back(&region, id).unwrap() == bytes);
    }
}

/// A segment is made anew when half of its packs are gone, and not before.
#[test]
fn a_segment_is_made_anew_when_half_of_its_packs_are_gone() {
    let (storage, caller) = (Memory::new(), Caller::new(1));
    let region = memory_region(&storage, &small_packs());
    storage.take_all_for_gone(true);
    let mut taken = Vec::new();
    // The 65th has two packs: their number is even.
    let segment = loop {
        let mut draw = common::Draw::new(taken.len() as u64 + 1);
        let mut noise = |words| (0..words).flat_map(|_| draw.next().to_le_bytes()).collect::<Vec<u8>>();
        let mut bytes = noise(512);
        if taken.len() == 64 {
            bytes = [noise(9000), vec![0; 8192], bytes].concat();
        }
        taken.push(caller.snapshot(&region, &MemoryDisk::new(bytes)).unwrap().snapshot.id);
        if let Some(record) = region.catalog().unwrap().segments.values().next() {
            break record.clone();
        }
    };
    let bytes = read_whole(&storage, &segment.name.to_string(), 1 << 20).unwrap();
    let packs = decode_header(&bytes).unwrap().packs.len();
    assert_eq!((packs, taken.len()), (66, 65));
    let mut gone = 0;
    let mut forget = |count| {
        // Not by the region that has written them: it is taken for gone.
        let collector = Region::open(Arc::new(storage.clone()), common::session()).unwrap();
        for id in taken.drain(..count) {
            delete_snapshot(&collector, id, &caller.context()).unwrap();
        }
        let options = GcOptions { grace_ms: 0, repack_percent: 0 };
        gone += collect(&collector, &options, &caller.context()).unwrap().freed.count;
        let left: Vec<_> = region.catalog().unwrap().segments.keys().copied().collect();
        (gone, left)
    };
    assert_eq!(forget(32), (32, vec![segment.name]));
    let (gone, left) = forget(1);
    assert!(gone == 33 && left.len() == 1 && left[0] != segment.name, "{gone}, {left:?}");
    let record = region.catalog().unwrap().segments.values().next().unwrap().clone();
    let bytes = read_whole(&storage, &record.name.to_string(), 1 << 20).unwrap();
    assert_eq!(decode_header(&bytes).unwrap().packs.len(), 33, "it lists what is left");
}
