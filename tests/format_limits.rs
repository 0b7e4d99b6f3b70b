//! Fields of objects at their limits: the last value that is taken, and the first that is not.

mod common;

use imgstore::chunk::features::FEATURES;
use imgstore::chunk::frame::{Codec, CodecPool, Frame, FrameError, chunk_id};
use imgstore::format::entry::{ENTRY_BYTES, Entry};
use imgstore::format::envelope::Kind;
use imgstore::format::error::FormatError;
use imgstore::format::features::{self, BASES_MAX, FEATURE_TABLE};
use imgstore::format::manifest::{self, MANIFEST};
use imgstore::format::record::{LIST, RECORD};
use imgstore::format::region::REGION;
use imgstore::format::segment::{self, PAGE_BYTES, SEGMENT, SegmentEncoder, SegmentPlan, SegmentWriter};
use imgstore::format::{checkpoint::CHECKPOINT, pack};
use imgstore::model::account::AccountId;
use imgstore::model::ids::{ChunkId, RegionId, SessionId};
use imgstore::model::objects::PackName;

const MIB: usize = 1 << 20;

fn entry(raw_blocks: u16) -> Entry {
    Entry { id: ChunkId([7; 32]), pack: 1, offset: 64, stored_len: 10, raw_blocks, codec: Codec::Zstd }
}

#[test]
fn a_chunk_has_1_to_256_blocks() {
    for (blocks, is_good) in
        [(0, false), (1, true), (255, true), (256, true), (257, false), (u16::MAX, false)]
    {
        let bytes: [u8; ENTRY_BYTES] = entry(blocks).encode();
        assert_eq!(Entry::decode(&bytes).is_ok(), is_good, "an entry of {blocks} blocks");
        let frame = Frame { codec: Codec::Zstd, raw_blocks: blocks, body: vec![0; 10] };
        assert_eq!(pack::encode_frame_header(&frame).is_ok(), is_good, "a frame of {blocks} blocks");
    }
}

#[test]
fn a_body_has_1_byte_to_1_mib_and_a_raw_one_what_it_says() {
    let fits = |codec, raw_blocks, stored| {
        pack::encode_frame_header(&Frame { codec, raw_blocks, body: vec![0; stored] }).is_ok()
    };
    assert_eq!(
        [0, 1, MIB - 1, MIB, MIB + 1].map(|len| fits(Codec::Zstd, 256, len)),
        [false, true, true, true, false]
    );
    assert_eq!([4095, 4096, 4097].map(|len| fits(Codec::Raw, 1, len)), [false, true, false]);
    assert_eq!([MIB, MIB - 4096].map(|len| fits(Codec::Raw, 256, len)), [true, false]);
    // A delta begins with the id of its base, and something follows.
    let short = Frame { codec: Codec::Delta, raw_blocks: 1, body: vec![0; 32] };
    let expected = FormatError::Length { what: "frame", expected: 33, found: 32 };
    assert_eq!(pack::encode_frame_header(&short), Err(expected));
    assert_eq!([1, 31, 32, 33].map(|len| fits(Codec::Delta, 1, len)), [false, false, false, true]);
}

/// Bytes as they are found in a damaged pack: a frame's header, and what follows.
fn scanned(codec: u8, raw_blocks: u16, stored_len: u32, there: usize) -> Result<(Frame, usize), FormatError> {
    let mut bytes = vec![0; 12 + there];
    bytes[..4].copy_from_slice(&stored_len.to_le_bytes());
    bytes[4..6].copy_from_slice(&raw_blocks.to_le_bytes());
    bytes[6] = codec;
    let end = (12 + stored_len as usize).min(bytes.len());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..8]), &bytes[12..end]);
    bytes[8..12].copy_from_slice(&crc.to_le_bytes());
    pack::scan_frame(&bytes)
}

#[test]
fn a_frame_is_found_by_its_header_alone() {
    let (frame, len) = scanned(1, 3, 100, 5000).unwrap();
    assert_eq!((frame.raw_blocks, frame.body.len(), len), (3, 100, 112));
    let (frame, len) = scanned(0, 256, MIB as u32, MIB).unwrap();
    assert_eq!((frame.codec, frame.body.len(), len), (Codec::Raw, MIB, MIB + 12));
    assert!(scanned(1, 3, 0, 5000).is_err(), "an empty body");
    assert!(scanned(1, 256, MIB as u32 + 1, MIB + 1).is_err(), "a body of more than a MiB");
    assert!(scanned(1, 3, 101, 100).is_err(), "a body that is cut off");
    assert!(scanned(0, 1, 4095, 5000).is_err(), "raw bytes that are no block");
    assert!(matches!(scanned(3, 1, 100, 100), Err(FormatError::Newer { .. })));
    // A length that none has is enough: what would be its bytes may be a whole pack, and is not gone through.
    for len in [0, MIB as u32 + 1] {
        let mut bytes = vec![1; 2 * MIB];
        bytes[..4].copy_from_slice(&len.to_le_bytes());
        let expected = FormatError::Length { what: "frame", expected: MIB as u64, found: u64::from(len) };
        assert_eq!(pack::scan_frame(&bytes), Err(expected));
    }
}

#[test]
fn a_trailer_is_refused_if_its_footer_does_not_fit_it() {
    let region = RegionId([7; 16]);
    let name = PackName { session: SessionId([8; 16]), number: 9 };
    let header = pack::encode_header(region, name);
    let (good, _) =
        pack::encode_trailer(&header, &mut [Entry { pack: 0, ..entry(3) }], &mut [], 64 + 12 + 10, 0)
            .unwrap();
    let footer = good.len() - pack::FOOTER_BYTES;
    pack::decode_trailer(&header, &good).unwrap();
    // Its magic, its number of frames, its number of deltas: each alone, with a hash that fits.
    for at in [footer, footer + 8, footer + 24] {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        let end = bytes.len() - 32;
        let hash = pack::PACK.hash(&[&header, &bytes[..end]]);
        bytes[end..].copy_from_slice(&hash.0);
        let refused = pack::decode_trailer(&header, &bytes).unwrap_err();
        assert!(matches!(refused, FormatError::Invalid { .. }), "byte {at}: {refused}");
    }
}

#[test]
fn a_segment_takes_the_entries_that_were_announced_and_then_their_filter() {
    let packs = [PackName { session: SessionId([8; 16]), number: 9 }];
    let plan = SegmentPlan { region: RegionId([7; 16]), packs: &packs, entries: 2, filter_pages: 1 };
    let [first, second, third] = [1, 2, 3].map(|n| Entry { id: ChunkId([n; 32]), pack: 0, ..entry(3) });
    let begin = || SegmentEncoder::begin(plan).unwrap();

    let mut encoder = begin();
    encoder.push(&first).unwrap();
    encoder.push_filter(first.id).expect_err("the filter before all entries");

    let mut encoder = begin();
    encoder.push(&first).unwrap();
    encoder.push(&first).expect_err("an entry twice");

    let mut encoder = begin();
    encoder.push(&first).unwrap();
    encoder.push(&second).unwrap();
    encoder.push_filter(first.id).unwrap();
    encoder.finish().expect_err("a filter of which half is missing");

    let mut encoder = begin();
    [first, second].iter().for_each(|entry| encoder.push(entry).unwrap());
    encoder.push(&third).expect_err("more entries than were announced");

    let mut encoder = begin();
    [first, second].iter().for_each(|entry| encoder.push(entry).unwrap());
    [first, second].iter().for_each(|entry| encoder.push_filter(entry.id).unwrap());
    encoder.push_filter(third.id).expect_err("a filter of more than there are entries");
}

/// Who writes a large segment asks what is ready, so that it is never in memory as a whole.
#[test]
fn what_is_ready_of_a_segment_is_what_can_be_taken() {
    let packs = [PackName { session: SessionId([8; 16]), number: 9 }];
    let plan = SegmentPlan { region: RegionId([7; 16]), packs: &packs, entries: 200, filter_pages: 0 };
    let mut encoder = SegmentEncoder::begin(plan).unwrap();
    let ready = |encoder: &mut SegmentEncoder<'_>| {
        let ready = encoder.ready();
        assert_eq!(encoder.take().len(), ready);
        ready
    };
    assert_eq!(ready(&mut encoder), PAGE_BYTES, "the header");
    for number in 1..=200_u8 {
        encoder.push(&Entry { id: ChunkId([number; 32]), pack: 0, ..entry(3) }).unwrap();
        let ends_page = [85, 170, 200].contains(&number);
        assert_eq!(ready(&mut encoder), if ends_page { PAGE_BYTES } else { 0 }, "entry {number}");
    }
}

/// A feature table's header with fields as they are given, and nothing behind it.
fn table_header(bases: u32, bits: u8, algorithm: u8, reserved: u8) -> Vec<u8> {
    let good = features::encode(RegionId([7; 16]), &[5, 6, 7], [(1, 0)].into_iter()).unwrap();
    let mut header = good[..features::HEADER_BYTES].to_vec();
    header[32..36].copy_from_slice(&bases.to_le_bytes());
    (header[40], header[41], header[63]) = (bits, algorithm, reserved);
    let crc = crc32c::crc32c(&header[16..]);
    header[12..16].copy_from_slice(&crc.to_le_bytes());
    header
}

#[test]
fn a_feature_table_has_bases_and_bits_that_fit_them() {
    let refused = |bases, bits| features::decode_header(&table_header(bases, bits, 1, 0)).unwrap_err();
    let most = BASES_MAX as u32;
    // Of a good header only the rest of the table is missing.
    for (bases, bits) in [(1, 0), (2, 1), (3, 1), (4, 2), (most - 1, 23), (most, 24)] {
        let error = refused(bases, bits);
        assert!(matches!(error, FormatError::Length { .. }), "{bases} bases, {bits} bits: {error}");
    }
    for (bases, bits) in [(0, 0), (1, 1), (3, 2), (4, 1), (most, 23), (most + 1, 24), (u32::MAX, 31)] {
        let error = refused(bases, bits);
        assert!(matches!(error, FormatError::Invalid { .. }), "{bases} bases, {bits} bits: {error}");
    }
}

#[test]
fn a_feature_table_of_another_algorithm_or_with_more_fields_is_a_newer_one() {
    for (algorithm, reserved) in [(0, 0), (2, 0), (1, 1)] {
        let refused = features::decode_header(&table_header(3, 1, algorithm, reserved)).unwrap_err();
        assert!(matches!(refused, FormatError::Newer { .. }), "{algorithm}, {reserved}: {refused}");
    }
}

#[test]
fn a_feature_table_is_as_long_as_it_says() {
    let slots = (0..FEATURES as u32).map(|feature| (feature << 20, 0));
    let good = features::encode(RegionId([7; 16]), &[5, 6, 7], slots).unwrap();
    assert_eq!(good.len(), features::HEADER_BYTES + 3 * 8 + 3 * 4 + FEATURES * 4);
    features::decode_header(&good).unwrap();
    for len in [good.len() - 1, good.len() + 1] {
        let mut bytes = good.clone();
        bytes.resize(len, 0);
        assert!(matches!(features::decode_header(&bytes), Err(FormatError::Length { .. })), "{len} bytes");
    }
}

/// Whoever takes one object for another is told so, and not that it is damaged.
#[test]
fn an_object_of_another_kind_is_told_as_that() {
    let kinds: [Kind; 5] = [REGION, RECORD, LIST, CHECKPOINT, SEGMENT];
    for sealed in kinds.into_iter().chain([MANIFEST, FEATURE_TABLE]) {
        let (bytes, _) = sealed.seal(&[0; 200]).unwrap();
        for opened in kinds.iter().filter(|kind| kind.magic != sealed.magic) {
            let refused = opened.open(&bytes).unwrap_err();
            assert_eq!(
                refused,
                FormatError::Magic { what: opened.what },
                "{} is no {}",
                sealed.what,
                opened.what
            );
        }
        if sealed.magic != MANIFEST.magic {
            assert_eq!(manifest::decode(&bytes).unwrap_err(), FormatError::Magic { what: MANIFEST.what });
        }
        if sealed.magic != SEGMENT.magic {
            assert_eq!(
                segment::decode_header(&bytes).unwrap_err(),
                FormatError::Magic { what: SEGMENT.what }
            );
        }
    }
}

/// A segment of two pages of entries and two of a filter, with one pack.
fn segment_of_two_pages() -> Vec<u8> {
    let packs = [PackName { session: SessionId([8; 16]), number: 9 }];
    let mut writer = SegmentWriter::new(100).with_filter_pages(2);
    (0..100).for_each(|n| writer.push(Entry { id: ChunkId([n; 32]), pack: 0, ..entry(3) }).unwrap());
    writer.finish(RegionId([7; 16]), &packs).unwrap().0
}

/// Makes a page's checksum fit again.
fn seal(bytes: &mut [u8], page: usize) {
    let page = &mut bytes[page * PAGE_BYTES..][..PAGE_BYTES];
    let crc = crc32c::crc32c(&page[..PAGE_BYTES - 4]);
    page[PAGE_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
}

#[test]
fn a_segment_has_the_entries_that_fit_its_pages() {
    let good = segment_of_two_pages();
    assert_eq!(segment::decode_header(&good).unwrap().entries, 100);
    // Each byte of the number counts, the highest, too.
    for at in 16..24 {
        let mut bytes = good.clone();
        bytes[at] ^= 0x80;
        seal(&mut bytes, 0);
        let refused = segment::decode_header(&bytes).unwrap_err();
        assert!(matches!(refused, FormatError::Invalid { .. }), "byte {at}: {refused}");
    }
}

#[test]
fn a_page_says_how_many_entries_it_has_and_which_it_is() {
    let good = segment_of_two_pages();
    let header = segment::decode_header(&good).unwrap();
    assert_eq!([0, 1].map(|page| segment::page(&good, &header, page, true).unwrap().len()), [85, 15]);
    assert!(segment::page(&good, &header, 2, true).is_err(), "behind the last page");
    for at in [4080, 4084, 4088] {
        let mut bytes = good.clone();
        bytes[PAGE_BYTES + at] ^= 1;
        seal(&mut bytes, 1);
        assert!(segment::page(&bytes, &header, 0, true).is_err(), "byte {at}");
    }
}

#[test]
fn a_filter_has_the_pages_that_the_header_says() {
    let bytes = segment_of_two_pages();
    let header = segment::decode_header(&bytes).unwrap();
    let numbers = [0, 1, 2].map(|page| segment::filter_page(&bytes, &header, page).map(|(_, number)| number));
    assert_eq!(numbers, [Some(2), Some(3), None]);
}

#[test]
fn a_pack_stands_in_a_segment_once() {
    let name = |number| PackName { session: SessionId([8; 16]), number };
    for (packs, is_good) in [([1, 2], true), ([2, 2], false), ([2, 1], false)] {
        let mut writer = SegmentWriter::new(1);
        writer.push(Entry { pack: 0, ..entry(3) }).unwrap();
        let (bytes, ..) = writer.finish(RegionId([7; 16]), &packs.map(name)).unwrap();
        assert_eq!(segment::decode_header(&bytes).is_ok(), is_good, "{packs:?}");
    }
}

#[test]
fn an_account_has_12_digits_and_is_never_zero() {
    let number = |random| AccountId::from_random(random).to_string();
    assert_eq!(number(0), "000000000001");
    assert_eq!(number(999_999_999_998), "999999999999");
    assert_eq!(number(999_999_999_999), "000000000001");
    assert_eq!(number(u64::MAX).len(), 12);
}

// ---- Frames

#[test]
fn what_compression_saves_no_32nd_of_is_stored_raw() {
    let mut draw = common::Draw::new(5);
    let mut raw: Vec<u8> = (0..MIB).map(|_| (draw.next() >> 32) as u8).collect();
    let codecs = CodecPool::new();
    // Of noise that begins with zeros these are saved, but for some bytes.
    let mut saved = |zeros: usize| {
        raw[..zeros].fill(0);
        let frame = codecs.encode(&raw, chunk_id(&raw), 3).unwrap();
        (frame.codec, MIB - frame.body.len())
    };
    assert_eq!(saved(MIB / 50), (Codec::Raw, 0));
    let least = (MIB / 32 + 250..MIB / 32 + 400).map(&mut saved).find(|(codec, _)| *codec == Codec::Zstd);
    assert_eq!(least, Some((Codec::Zstd, MIB / 32 + 1)));
}

#[test]
fn levels_are_1_to_12_and_others_the_nearest_of_them() {
    let raw: Vec<u8> = common::volume(1 << 20, 3);
    let bytes = |level| CodecPool::new().encode(&raw, chunk_id(&raw), level).unwrap().body;
    let (lowest, highest) = (bytes(1), bytes(12));
    assert!(highest.len() < lowest.len(), "{} and {} bytes", highest.len(), lowest.len());
    assert!(bytes(-5) == lowest && bytes(0) == lowest);
    assert!(bytes(13) == highest && bytes(22) == highest);
}

#[test]
fn a_body_of_another_length_than_the_chunk_is_told_as_that() {
    let (codecs, id) = (CodecPool::new(), ChunkId([7; 32]));
    let mut raw = vec![0; 3 * 4096];
    let mut refused = |codec, stored| codecs.decode(codec, &vec![0; stored], id, None, &mut raw).unwrap_err();
    for stored in [0, 4096, 3 * 4096 - 1, 3 * 4096 + 1] {
        assert_eq!(refused(Codec::Raw, stored), FrameError::Length { blocks: 3, stored });
    }
    // Too short for the id of its base.
    assert_eq!(refused(Codec::Delta, 31), FrameError::Length { blocks: 3, stored: 31 });
    assert!(matches!(refused(Codec::Delta, 32), FrameError::Base { .. }));
}
