//! docs/FORMAT.md held to its word: files of every kind, byte for byte; regions that the library wrote, read
//! by a decoder that was made from the page alone; and reserved fields, which no reader may guess about.

mod common;
mod format_decoder;
mod format_samples;

use common::{Caller, Draw, MemoryDisk, session, volume};
use format_decoder as second;
use format_samples::*;
use imgstore::chunk::frame::{Codec, CodecPool, chunk_id};
use imgstore::disk::DiskRead;
use imgstore::disk::bundle::manifest::{self as bundle_format, Manifest, Part};
use imgstore::disk::bundle::{BundleOptions, create_bundle, open_bundle};
use imgstore::format::checkpoint::{self, Checkpoint};
use imgstore::format::entry::Entry;
use imgstore::format::error::FormatError;
use imgstore::format::{codec, filter, manifest, pack, record, region, segment};
use imgstore::io::directory::DirectoryOptions;
use imgstore::io::memory::Memory;
use imgstore::io::storage::Storage;
use imgstore::model::account::{AccountId, RetentionRule};
use imgstore::model::catalog::{Catalog, DEREGISTERED_KEPT, Deregistered, Pack};
use imgstore::model::ids::{ImageId, ObjectHash, SessionId, SnapshotId};
use imgstore::model::image::{DeviceTarget, Image};
use imgstore::model::instance::{Attachment, Instance, LocalDisk, Volume};
use imgstore::model::objects::{ManifestRecord, PackName, PackRecord, PackState, SegmentName, SegmentRecord};
use imgstore::model::op::{AccountChange, Author, BinStay, InstanceChange, LogRecord, Op, VolumeChange};
use imgstore::model::region::ChunkerParams;
use imgstore::model::snapshot::{Snapshot, Template};
use imgstore::model::words::{
    Architecture, BootMode, ImageState, InstanceState, SnapshotState, VirtualizationType, VolumeType,
};
use imgstore::ops::error::OpsError;
use imgstore::region::{Region, RegionOptions};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

// ---- Golden files

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn golden(name: &str) -> Vec<u8> {
    fs::read(folder().join(name)).expect("a golden file")
}

fn bundle_path() -> PathBuf {
    folder().join("bundle/web-1.manifest.json")
}

fn bundle_part_path(number: u64) -> PathBuf {
    folder().join(format!("bundle/web-1.part.{number:05}"))
}

/// The golden bundle's manifest, for the parts as they are: what zstd makes may change with its version.
fn encode_bundle() -> Vec<u8> {
    let part = |(number, raw, _): (u64, Vec<u8>, bool)| {
        let stored = fs::read(bundle_part_path(number)).expect("a part");
        let blake3 = ObjectHash(*blake3::hash(&stored).as_bytes());
        Part { number, raw_bytes: raw.len() as u64, stored_bytes: stored.len() as u64, blake3 }
    };
    let manifest = Manifest {
        name: "web-1".into(),
        volume_bytes: bundle_volume().len() as u64,
        part_bytes: 4096,
        attributes: bundle_attributes(),
        parts: bundle_parts().into_iter().map(part).collect(),
    };
    bundle_format::encode(&manifest).expect("a manifest")
}

/// What the library's encoders make of the fixed values, except the pack.
fn encoded() -> [(&'static str, Vec<u8>); 8] {
    [
        ("region", region::encode(&region_header().0).expect("a region file").0),
        ("record", record::encode(&inline_record().0).expect("a record").0),
        ("record-spilled", record::encode(&spilled_record().0).expect("a record").0),
        ("list", record::encode_list(&operations().0).expect("a list").0),
        ("checkpoint", checkpoint::encode(&catalogue().0).expect("a checkpoint")),
        ("segment", encode_segment(0)),
        ("segment-filter", encode_segment(2)),
        ("manifest", manifest::encode(&block_map().0).0),
    ]
}

#[test]
#[ignore = "writes the golden files anew"]
fn write_golden_files() {
    fs::create_dir_all(folder()).unwrap();
    let ([raw, text, changed], codecs) = (chunks(), CodecPool::new());
    let zstd = codecs.encode(&text, chunk_id(&text), 3).unwrap();
    assert_eq!(zstd.codec, Codec::Zstd);
    let base = (chunk_id(&text), &text[..]);
    let delta = codecs.encode_delta(&changed, chunk_id(&changed), base, 3, 4096).unwrap().unwrap();
    let pack = encode_pack([raw, zstd.body, delta.body]);
    for (name, bytes) in encoded().into_iter().chain([("pack", pack)]) {
        fs::write(folder().join(name), bytes).unwrap();
    }
    fs::create_dir_all(bundle_path().parent().unwrap()).unwrap();
    for (number, raw, checksum) in bundle_parts() {
        let mut zstd = zstd::bulk::Compressor::new(3).unwrap();
        zstd.include_checksum(checksum).unwrap();
        fs::write(bundle_part_path(number), zstd.compress(&raw).unwrap()).unwrap();
    }
    fs::write(bundle_path(), encode_bundle()).unwrap();
}

#[test]
fn the_encoders_write_the_golden_bytes() {
    for (name, bytes) in encoded() {
        assert!(bytes == golden(name), "{name}: other bytes than version 1 has");
    }
    // What zstd makes may change with its version: the bodies of these frames are taken as they are.
    let bytes = golden("pack");
    let entries = second::pack(&bytes).unwrap().entries;
    let [zstd, delta] = [1, 2].map(|codec| {
        let entry = entries.iter().find(|entry| entry.codec == codec).unwrap();
        let start = entry.offset as usize + 12;
        bytes[start..start + entry.stored as usize].to_vec()
    });
    let again = encode_pack([chunks()[0].clone(), zstd, delta]);
    assert!(again == bytes, "pack: other bytes than version 1 has");
    assert!(
        encode_bundle() == fs::read(bundle_path()).unwrap(),
        "bundle: another manifest than version 1 has"
    );
    let files = [folder(), bundle_path().parent().unwrap().to_owned()].map(|dir| fs::read_dir(dir).unwrap());
    let total: u64 = files.into_iter().flatten().map(|file| file.unwrap().metadata().unwrap().len()).sum();
    assert!(total < 100 << 10, "{total} bytes are committed");
}

#[test]
fn the_library_reads_the_golden_files() {
    assert_eq!(region::decode(&golden("region")).unwrap().0, region_header().0);
    assert_eq!(record::decode(&golden("record")).unwrap().0, inline_record().0);
    assert_eq!(record::decode(&golden("record-spilled")).unwrap().0, spilled_record().0);
    assert_eq!(record::decode_list(&golden("list")).unwrap().0, operations().0);
    assert_eq!(checkpoint::decode(&golden("checkpoint")).unwrap(), catalogue().0);
    assert_eq!(manifest::decode(&golden("manifest")).unwrap().0, block_map().0);
    for name in ["segment", "segment-filter"] {
        assert_eq!(library_segment(&golden(name)).unwrap(), segment_parts().0);
    }
    let mut found = library_pack(&golden("pack")).unwrap();
    let mut expected = chunks().to_vec();
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
    let (bundle, volume) = (open_bundle(&bundle_path()).unwrap(), bundle_volume());
    assert_eq!((bundle.name(), bundle.attributes()), ("web-1", &bundle_attributes()));
    assert_eq!(bundle.len_bytes(), volume.len() as u64);
    let mut read = vec![0xaa; volume.len()];
    bundle.read_at(0, &mut read).unwrap();
    assert!(read == volume, "another content than the bundle was made of");
}

/// The golden record and list have every operation, and every change that an operation can make.
#[test]
fn every_operation_is_in_the_golden_files() {
    let expected: BTreeSet<_> =
        CHANGES.iter().enumerate().flat_map(|(op, &changes)| (0..changes).map(move |c| (op, c))).collect();
    let record::Body::Inline(operations) = record::decode(&golden("record")).unwrap().0.body else {
        panic!("the golden record spills")
    };
    for operations in [operations, record::decode_list(&golden("list")).unwrap().0] {
        assert_eq!(operations.iter().map(numbers).collect::<BTreeSet<_>>(), expected);
        for op in &operations {
            // The page counts variants from 0 in their order.
            let bytes = codec::encode("operation", op).unwrap();
            assert_eq!(bytes[..4], u32::try_from(numbers(op).0).unwrap().to_le_bytes(), "{op:?}");
        }
    }
}

/// Words and the choices that the page has for them, in its order.
fn read_alike<T: FromStr<Err: Debug> + Serialize, U: second::Value + PartialEq + Debug>(
    words: &[&str],
    choices: &[U],
) {
    assert_eq!(words.len(), choices.len(), "{words:?}");
    for (word, choice) in words.iter().zip(choices) {
        let bytes = codec::encode("word", &word.parse::<T>().unwrap()).unwrap();
        assert_eq!(second::value::<U>(&bytes).as_ref(), Ok(choice), "{word}");
    }
    let unknown = u32::try_from(words.len()).unwrap().to_le_bytes();
    assert!(second::value::<U>(&unknown).is_err());
}

#[test]
fn every_word_has_the_number_of_the_page() {
    use second::Architecture::{Arm64, Arm64Mac, I386, X86_64, X86_64Mac};
    use second::BootMode::{LegacyBios, Uefi, UefiPreferred};
    use second::InstanceState::{Pending, Running, ShuttingDown, Stopped, Stopping, Terminated};
    use second::Virtualization::{Hvm, Paravirtual};
    use second::VolumeType::{Gp2, Gp3, Io1, Io2, Sc1, St1, Standard};
    use second::{ImageState as Image2, SnapshotState as Snapshot2};
    read_alike::<Architecture, _>(Architecture::WORDS, &[I386, X86_64, Arm64, X86_64Mac, Arm64Mac]);
    read_alike::<VirtualizationType, _>(VirtualizationType::WORDS, &[Hvm, Paravirtual]);
    read_alike::<BootMode, _>(BootMode::WORDS, &[LegacyBios, Uefi, UefiPreferred]);
    read_alike::<VolumeType, _>(VolumeType::WORDS, &[Gp3, Gp2, Io1, Io2, St1, Sc1, Standard]);
    let states = [Pending, Running, Stopping, Stopped, ShuttingDown, Terminated];
    read_alike::<InstanceState, _>(InstanceState::WORDS, &states);
    let states = [Snapshot2::Pending, Snapshot2::Completed, Snapshot2::Error];
    read_alike::<SnapshotState, _>(SnapshotState::WORDS, &states);
    let states = [
        Image2::Pending,
        Image2::Available,
        Image2::Invalid,
        Image2::Deregistered,
        Image2::Transient,
        Image2::Failed,
        Image2::Error,
        Image2::Disabled,
    ];
    read_alike::<ImageState, _>(ImageState::WORDS, &states);
}

#[test]
fn the_second_decoder_reads_the_same_from_them() {
    let hash_of = |name: &str| golden(name)[golden(name).len() - 32..].to_vec();
    let (header, hash) = second::region_file(&golden("region")).unwrap();
    assert_eq!((header, hash.to_vec()), (region_header().1, hash_of("region")));
    assert_eq!(second::envelope(&golden("record"), second::RECORD).map(|(it, _)| it), Ok(inline_record().1));
    let spilled = second::envelope(&golden("record-spilled"), second::RECORD);
    assert_eq!(spilled.map(|(it, _)| it), Ok(spilled_record().1));
    assert_eq!(second::envelope(&golden("list"), second::LIST).map(|(it, _)| it), Ok(operations().1));
    let state = second::envelope(&golden("checkpoint"), second::CHECKPOINT);
    assert_eq!(state.map(|(it, _)| it), Ok(catalogue().1));

    let pack = second::pack(&golden("pack")).unwrap();
    let [noise, text, changed] = chunks().map(|chunk| (*blake3::hash(&chunk).as_bytes(), chunk));
    let delta = &pack.deltas[&changed.0];
    assert_eq!((delta.base, delta.chunk(&text.1)), (text.0, Ok(changed.1)));
    assert_eq!(pack.chunks, BTreeMap::from([noise, text]));
    assert_eq!((pack.header.region, pack.header.name), (REGION, name(0x0a0b_0c0d)));
    assert_eq!((pack.footer.frames, pack.footer.raw_bytes), (3, 5 * 4096));
    assert_eq!(pack.footer.hash.to_vec(), hash_of("pack"));

    for (name, filter_pages) in [("segment", 0), ("segment-filter", 2)] {
        let segment = second::segment(&golden(name)).unwrap();
        let (_, entries, packs) = segment_parts();
        assert_eq!((segment.header.region, segment.header.pages, segment.entries), (REGION, 3, entries));
        assert_eq!(segment.header.filter_pages, filter_pages);
        let found: Vec<_> = segment.packs.iter().map(|pack| (pack.session, pack.number)).collect();
        assert_eq!(found, packs.iter().map(|pack| (pack.session.0, pack.number)).collect::<Vec<_>>());
    }

    let manifest = second::manifest(&golden("manifest")).unwrap();
    let (map, references) = block_map();
    assert_eq!((manifest.header.volume_bytes, manifest.chunks), (map.volume_bytes(), references));

    let (manifest, volume) = second::bundle(&bundle_path()).unwrap();
    assert_eq!((manifest.name.as_str(), manifest.part_bytes), ("web-1", 4096));
    assert_eq!(manifest.attributes, bundle_attributes().into_iter().collect::<Vec<_>>());
    assert!(volume == bundle_volume(), "another content than the bundle was made of");
}

#[test]
fn the_second_decoder_survives_every_flipped_bit_and_every_cut() {
    for name in FILES {
        let good = golden(name);
        let step = good.len().div_ceil(400);
        for at in (0..good.len()).step_by(step) {
            let mut bytes = good.clone();
            bytes[at] ^= 1 << (at % 8);
            // A frame's crc32c and the hash of what it decodes to hold, if the pack's hash does not cover it.
            assert!(second_reads(name, &bytes).is_err(), "{name}: byte {at} was changed");
            assert!(second_reads(name, &good[..at]).is_err(), "{name}: only {at} bytes");
        }
        assert!(second_reads(name, &[good, vec![0]].concat()).is_err(), "{name}: a byte more");
    }
}

// ---- Reserved fields

const FILES: [&str; 9] = [
    "region",
    "record",
    "record-spilled",
    "list",
    "checkpoint",
    "pack",
    "segment",
    "segment-filter",
    "manifest",
];

/// All chunks of a pack, decoded by the library.
fn library_pack(bytes: &[u8]) -> Result<Vec<Vec<u8>>, FormatError> {
    let header = bytes.first_chunk().expect("a header");
    pack::decode_header(header)?;
    let start = pack::trailer_offset(bytes.last_chunk().expect("a footer"), bytes.len() as u64)? as usize;
    let mut chunks: Vec<Vec<u8>> = Vec::new();
    let trailer = pack::decode_trailer(header, &bytes[start..])?;
    let plain_first =
        [true, false].map(|plain| trailer.entries.iter().filter(move |e| e.codec.is_plain() == plain));
    for entry in plain_first.into_iter().flatten() {
        let frame = &bytes[entry.offset as usize..start];
        let base = pack::scan_frame(frame)?.0.base();
        let base = base.and_then(|base| chunks.iter().find(|chunk| chunk_id(chunk) == base)).cloned();
        let mut raw = vec![0; usize::from(entry.raw_blocks) * 4096];
        CodecPool::new()
            .decode(entry.codec, pack::frame_body(frame, entry)?, entry.id, base.as_deref(), &mut raw)
            .map_err(|error| FormatError::Invalid { what: "frame", why: error.to_string() })?;
        chunks.push(raw);
    }
    Ok(chunks)
}

/// All entries of a segment, decoded by the library.
fn library_segment(bytes: &[u8]) -> Result<Vec<Entry>, FormatError> {
    let header = segment::decode_header(bytes)?;
    segment::check_hash(bytes)?;
    let mut entries = Vec::new();
    for number in 0..header.pages {
        for entry in segment::page(bytes, &header, number, true)? {
            entries.push(Entry::decode(entry)?);
        }
    }
    for number in 0..header.filter_pages {
        let (page, number) = segment::filter_page(bytes, &header, number).expect("its length was checked");
        filter::check_page(page, number)?;
    }
    Ok(entries)
}

fn library_reads(name: &str, bytes: &[u8]) -> Result<(), FormatError> {
    match name {
        "region" => region::decode(bytes).map(drop),
        "record" | "record-spilled" => record::decode(bytes).map(drop),
        "list" => record::decode_list(bytes).map(drop),
        "checkpoint" => checkpoint::decode(bytes).map(drop),
        "pack" => library_pack(bytes).map(drop),
        "segment" | "segment-filter" => library_segment(bytes).map(drop),
        _ => manifest::decode(bytes).map(drop),
    }
}

fn second_reads(name: &str, bytes: &[u8]) -> second::Result<()> {
    match name {
        "region" => second::region_file(bytes).map(drop),
        "record" | "record-spilled" => {
            second::envelope::<second::StoredRecord>(bytes, second::RECORD).map(drop)
        }
        "list" => second::envelope::<Vec<second::Op>>(bytes, second::LIST).map(drop),
        "checkpoint" => second::envelope::<second::Checkpoint>(bytes, second::CHECKPOINT).map(drop),
        "pack" => second::pack(bytes).map(drop),
        "segment" | "segment-filter" => second::segment(bytes).map(drop),
        _ => second::manifest(bytes).map(drop),
    }
}

/// Makes checksums and hashes fit again, so that nothing is wrong with an object but what was changed in it.
fn reseal(name: &str, bytes: &mut [u8]) {
    let end = bytes.len() - 32;
    if name.starts_with("segment") {
        let pages = if name == "segment" { 4 } else { 6 };
        for page in bytes[..pages * 4096].chunks_mut(4096) {
            let crc = crc32c::crc32c(&page[..4092]);
            page[4092..].copy_from_slice(&crc.to_le_bytes());
        }
    }
    let context = match name {
        "region" => second::REGION.1,
        "record" | "record-spilled" => second::RECORD.1,
        "list" => second::LIST.1,
        "checkpoint" => second::CHECKPOINT.1,
        "pack" => "imgstore 2026-11 pack trailer v1",
        "segment" | "segment-filter" => "imgstore 2026-11 index segment v1",
        _ => "imgstore 2026-11 manifest v1",
    };
    let covered = if name == "pack" {
        let trailer = reseal_frames(bytes);
        [&bytes[..64], &bytes[trailer..end]].concat()
    } else {
        bytes[..end].to_vec()
    };
    bytes[end..].copy_from_slice(&blake3::derive_key(context, &covered));
}

/// Where the golden pack's frames begin, from their lengths.
fn frame_places(bytes: &[u8]) -> [usize; 4] {
    let len =
        |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]) as usize;
    let next = 64 + 12 + len(64);
    let last = next + 12 + len(next);
    [64, next, last, last + 12 + len(last)]
}

fn reseal_frames(bytes: &mut [u8]) -> usize {
    let [first, next, last, trailer] = frame_places(bytes);
    for (at, end) in [(first, next), (next, last), (last, trailer)] {
        let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[at..at + 8]), &bytes[at + 12..end]);
        bytes[at + 8..at + 12].copy_from_slice(&crc.to_le_bytes());
    }
    trailer
}

#[test]
fn what_is_reserved_is_refused_and_not_guessed() {
    let mut table = Vec::new();
    for file in FILES {
        table.push((file, "version", 8..10));
        table.push((file, "encryption suite", 10..11));
        table.push((file, "flags", 11..12));
    }
    let bytes = golden("pack");
    let [first, next, _, trailer] = frame_places(&bytes);
    let footer = bytes.len() - 64;
    table.extend([
        ("pack", "header", 12..16),
        ("pack", "key id", 56..64),
        ("pack", "first frame's codec", first + 6..first + 7),
        ("pack", "first frame's flags", first + 7..first + 8),
        ("pack", "second frame's flags", next + 7..next + 8),
        ("pack", "entry's pack", trailer + 32..trailer + 36),
        ("pack", "entry's codec", trailer + 46..trailer + 47),
        ("pack", "entry's flags", trailer + 47..trailer + 48),
        ("pack", "last entry's flags", footer - 8 - 1..footer - 8),
        ("pack", "footer", footer + 29..footer + 32),
    ]);
    let last_page = 3 * 4096;
    table.extend([
        ("segment", "header page's begin", 52..60),
        ("segment", "header page's end", 4084..4092),
        ("segment", "entry's codec", 4096 + 46..4096 + 47),
        ("segment", "entry's flags", 4096 + 47..4096 + 48),
        ("segment", "page's end", 4096 + 4088..4096 + 4092),
        ("segment", "last page's end", last_page + 4088..last_page + 4092),
        ("segment", "unused entry", last_page + 30 * 48..last_page + 31 * 48),
        ("segment", "last unused entry", last_page + 84 * 48..last_page + 85 * 48),
        ("segment-filter", "filter page's end", 4 * 4096 + 4032..4 * 4096 + 4084),
        ("segment-filter", "filter page's last field", 5 * 4096 + 4088..5 * 4096 + 4092),
        ("manifest", "header", 12..16),
        ("manifest", "key id", 32..40),
    ]);
    let records_first_op = 16 + 8 + 32 + 16 + 8 + 8 + 16 + 4 + 8;
    table.extend([
        ("list", "operation", 16 + 8..16 + 12),
        ("record", "operation", records_first_op..records_first_op + 4),
        ("record", "body", records_first_op - 12..records_first_op - 8),
    ]);
    for (file, what, range) in table {
        for (at, value) in range.flat_map(|at| [8, 0x40, 0xff].map(|value| (at, value))) {
            let mut bytes = golden(file);
            reseal(file, &mut bytes);
            assert!(bytes == golden(file), "{file}: sealing again changes nothing");
            assert_ne!(bytes[at], value);
            bytes[at] = value;
            reseal(file, &mut bytes);
            let refused = library_reads(file, &bytes);
            let is_clear = matches!(refused, Err(FormatError::Newer { .. } | FormatError::Invalid { .. }));
            assert!(is_clear, "{file}: {what}, byte {at} = {value}: {refused:?}");
            let refused = second_reads(file, &bytes).unwrap_err();
            assert!(!refused.contains("hash") && !refused.contains("crc32c"), "{file}: {what}: {refused}");
        }
    }
}

// ---- Whole regions

/// Text, noise, holes, short runs of zeros, and an odd end.
fn odd_volume(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = volume(len - 4096 * 3 - 77, seed);
    bytes.resize(len - 77, 0);
    bytes.extend([0xee; 77]);
    bytes
}

fn second_chunker(params: ChunkerParams) -> second::Chunker {
    let ChunkerParams { min_blocks, avg_blocks, max_blocks, zero_tail_bytes } = params;
    second::Chunker { min_blocks, avg_blocks, max_blocks, zero_tail_bytes }
}

/// The catalogue of the library as the second decoder reads it.
fn as_second(catalog: &Catalog) -> second::Catalog {
    let state = Checkpoint { record_hash: ObjectHash([0; 32]), catalog: catalog.clone() };
    let bytes = checkpoint::encode(&state).expect("a checkpoint");
    second::envelope::<second::Checkpoint>(&bytes, second::CHECKPOINT).expect("its catalogue").0.catalog
}

/// An id of the library's.
fn one<T: FromStr<Err: Debug>>(prefix: &str, number: u128) -> T {
    id(prefix, number).0
}

/// An image of an account on a snapshot, or on a template.
fn image_on(number: u128, name: &str, owner: u64, on: Result<SnapshotId, u128>) -> Image {
    let mut image = Image { name: name.to_owned(), owner: account(owner).0, ..image(number, false).0 };
    match (on, &mut image.devices[0].target) {
        (Ok(snapshot), DeviceTarget::Ebs(ebs)) => ebs.snapshot_id = Some(snapshot),
        (Err(template), _) => {
            image.devices.remove(0);
            image.template = Some(one("tmpl-", template));
        }
        _ => {}
    }
    image
}

/// A running instance with a root device of its own from a template, if it has one.
fn instance_on(number: u128, template: Option<u128>) -> Instance {
    let sample = instance(number, true).0;
    let disk =
        |template| LocalDisk { template_id: Some(one("tmpl-", template)), ..sample.local_disks[0].clone() };
    let local_disks = template.map(disk).into_iter().collect();
    Instance { local_disks, state: InstanceState::Running, ..sample }
}

fn attached_to(instance: u128, device_name: &str, delete_on_termination: bool) -> Attachment {
    let device_name = device_name.to_owned();
    Attachment { instance_id: one("i-", instance), device_name, delete_on_termination, ..attachment().0 }
}

fn volume_on(number: u128, snapshot: Option<SnapshotId>, attachment: Option<Attachment>) -> Volume {
    Volume { snapshot_id: snapshot, attachment, ..disk(number, false).0 }
}

/// Records after which every operation and change was in the log, and something is left in every table. The
/// snapshot `gone` is deleted while a volume stands on it.
fn lives_and_ends(catalog: &Catalog, gone: SnapshotId, stays: SnapshotId) -> Vec<Vec<Op>> {
    let stay = |until_ms| Some(BinStay { since_ms: 1, until_ms });
    let copy = |number| Snapshot { id: one("snap-", number), ..catalog.snapshots[&stays].clone() };
    let create = |number| Op::CreateSnapshot { snapshot: Box::new(copy(number)), packs: vec![] };
    let template = |number| Template { manifest: copy(0).manifest, ..template(number).0 };
    let create_template = |number| Op::CreateTemplate { template: Box::new(template(number)), packs: vec![] };
    let register = |number, name: &str, on| Op::RegisterImage(Box::new(image_on(number, name, 5, on)));
    let run = |instance, volumes| Op::RunInstance { instance: Box::new(instance), volumes };
    let deregister = |number, bin| Op::DeregisterImage { id: one("ami-", number), bin };
    let delete = |number, bin| Op::DeleteSnapshot { id: one("snap-", number), bin };
    let (copied, binned) = (copy(2).id, copy(3).id);
    let account = account(5).0;
    let (first, second) = (rule(1).0, rule(2).0);
    let forget = AccountChange::RemoveRule(first.id);
    let changes =
        [AccountChange::AddRule(first), AccountChange::AddRule(second), forget].into_iter().chain([
            AccountChange::Alias(Some("lab".into())),
            AccountChange::BlockPublicImages(true),
            AccountChange::BlockPublicSnapshots(true),
            AccountChange::BlockPublicImages(false),
        ]);
    let modify_volume = |number, change| Op::ModifyVolume { id: one("vol-", number), change };
    let modify_instance = |change| Op::ModifyInstance { id: one("i-", 2), change };
    let manifest = &catalog.snapshots[&stays].manifest;
    let pack = |number| PackName { session: SessionId([0xee; 16]), number };
    let register_pack =
        |number| Op::RegisterPack(PackRecord { name: pack(number), bases: vec![], ..pack_record().0 });
    vec![
        vec![create(1), create(2), create(3), Op::NoOp],
        vec![register(1, "one", Ok(gone)), register(2, "two", Ok(stays)), register(3, "three", Ok(binned))],
        vec![
            create_template(1),
            register(4, "four", Err(1)),
            create_template(2),
            register(5, "five", Err(2)),
        ],
        vec![
            run(instance_on(1, Some(1)), vec![volume_on(1, Some(gone), Some(attached_to(1, "sdf", true)))]),
            run(instance_on(2, Some(2)), vec![volume_on(2, Some(gone), None), volume_on(3, None, None)]),
            Op::CreateVolume(Box::new(volume_on(4, Some(copied), Some(attached_to(1, "sdg", false))))),
        ],
        vec![deregister(1, None), Op::DeleteSnapshot { id: gone, bin: None }],
        // The template of the fourth image is still under an instance, that of the fifth one in the bin.
        vec![deregister(4, stay(9)), Op::ExpireImage { id: one("ami-", 4) }, deregister(5, stay(9))],
        vec![deregister(2, stay(9)), Op::RestoreImage { id: one("ami-", 2) }, deregister(3, stay(9))],
        vec![delete(3, stay(9)), Op::RestoreSnapshot { id: binned }, delete(3, stay(10))],
        vec![delete(1, stay(9)), Op::ExpireSnapshot { id: one("snap-", 1) }],
        changes.map(|change| Op::ModifyAccount { account, change }).collect(),
        vec![
            modify_volume(3, VolumeChange::Attachment(Some(attached_to(2, "sdh", true)))),
            modify_volume(3, VolumeChange::Attachment(None)),
            modify_volume(3, VolumeChange::Attachment(Some(attached_to(2, "sdi", true)))),
            modify_volume(3, VolumeChange::Tags(vec![tag("a", "b").0])),
        ],
        [InstanceChange::Stop, InstanceChange::Start, InstanceChange::Tags(vec![])]
            .map(modify_instance)
            .into(),
        operations().0.into_iter().filter_map(|op| of_existing(op, one("ami-", 2), stays)).collect(),
        vec![Op::TerminateInstance { id: one("i-", 1), at_ms: 77 }, Op::ForgetInstance { id: one("i-", 1) }],
        vec![Op::DeleteVolume { id: one("vol-", 4) }],
        vec![
            register_pack(1),
            register_pack(2),
            register_pack(3),
            Op::RebasePack { pack: pack(3), bases: vec![] },
            Op::CondemnPacks { packs: vec![pack(1), pack(3)], at_ms: 5 },
            Op::QuarantinePacks { packs: vec![pack(2)], at_ms: 5 },
            Op::SweepPacks { packs: vec![pack(1), pack(2), pack(3)] },
            Op::ForgetPacks { packs: vec![pack(2), pack(1), pack(3)] },
            Op::FenceSessions { sessions: vec![pack(1).session] },
            Op::ReplaceManifest { lost: manifest.name, by: manifest.clone() },
        ],
    ]
}

/// The samples of changes of images and snapshots, for ones that exist.
fn of_existing(op: Op, image: ImageId, snapshot: SnapshotId) -> Option<Op> {
    match op {
        Op::ModifyImage { change, .. } => Some(Op::ModifyImage { id: image, change }),
        Op::ModifySnapshot { change, .. } => Some(Op::ModifySnapshot { id: snapshot, change }),
        _ => None,
    }
}

#[test]
fn records_stand_where_the_page_says() {
    let storage = Memory::new();
    let region = Region::create(
        Arc::new(storage.clone()),
        session(),
        &RegionOptions::named("log", AccountId::from_random(1)),
    )
    .unwrap();
    for _ in 0..1001 {
        region.commit::<_, OpsError>(account(5).0, |_| Ok((vec![Op::NoOp], ()))).unwrap();
    }
    for (shard, records) in [(0, 1..1000), (1, 1000..1002)] {
        let listed = storage.list(&format!("log/{shard:017}")).unwrap();
        let names: Vec<_> = listed.into_iter().map(|listed| listed.name).collect();
        assert_eq!(names, records.map(second::record_path).collect::<Vec<_>>());
    }
}

#[test]
fn the_second_decoder_reads_regions_that_the_library_wrote() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("region");
    let options =
        RegionOptions { pack_bytes: 16 << 10, ..RegionOptions::named("real", AccountId::from_random(1)) };
    let region = Region::create_directory(&root, &options, DirectoryOptions::default()).unwrap();
    let caller = Caller::new(2);
    let first = odd_volume((6 << 20) + 1234, 1);
    // The second one shares half of its content with the first.
    let second_half = odd_volume((2 << 20) + 4095, 2);
    let volumes = [first.clone(), [&first[..1 << 20], &second_half].concat(), vec![0; 5000], vec![1]];
    let mut taken = Vec::new();
    for bytes in volumes {
        let id = caller.snapshot(&region, &MemoryDisk::new(bytes.clone())).unwrap().snapshot.id;
        taken.push((id, bytes));
    }
    region.commit::<_, OpsError>(caller.account, |_| Ok((vec![Op::NoOp; 70_000], ()))).unwrap();
    let gone = taken.pop().unwrap().0;
    for record in lives_and_ends(&region.catalog().unwrap(), gone, taken[0].0) {
        region.commit::<_, OpsError>(caller.account, |_| Ok((record.clone(), ()))).expect("what applies");
    }
    for kind in ["packs", "index", "manifests", "lists", "log", "checkpoints"] {
        let is_there = root.join(kind).read_dir().is_ok_and(|mut files| files.next().is_some());
        assert!(is_there, "the region has no {kind}");
    }

    let (header, last_record, catalog) = second::replay(&root).unwrap();
    assert_eq!(header.name, "real");
    assert_eq!(catalog, as_second(&region.catalog().unwrap()), "another state after the log");
    for (what, len) in [
        ("packs", catalog.packs.len()),
        ("segments", catalog.segments.len()),
        ("snapshots", catalog.snapshots.len()),
        ("templates", catalog.templates.len()),
        ("images", catalog.images.len()),
        ("volumes", catalog.volumes.len()),
        ("instances", catalog.instances.len()),
        ("accounts", catalog.accounts.len()),
        ("binned images", catalog.binned_images.len()),
        ("binned snapshots", catalog.binned_snapshots.len()),
        ("deregistered", catalog.deregistered.len()),
        ("retained snapshots", catalog.retained_snapshots.len()),
    ] {
        assert!(len > 0, "no {what} are left to be compared");
    }
    for (id, bytes) in &taken {
        let read = second::read_volume(&root, &id.to_string()).unwrap();
        assert!(read == *bytes, "{id}: another content");
        let record = &region.catalog().unwrap().snapshots[id].manifest;
        let manifest = second::manifest(&fs::read(root.join(record.name.to_string())).unwrap()).unwrap();
        assert_eq!(manifest.chunks, second::cut(bytes, &header.chunker), "{id}: cut elsewhere");
    }
    let mut checkpoints = 0;
    for file in root.join("checkpoints").read_dir().unwrap() {
        let bytes = fs::read(file.unwrap().path()).unwrap();
        let (state, _): (second::Checkpoint, _) = second::envelope(&bytes, second::CHECKPOINT).unwrap();
        let record = fs::read(root.join(second::record_path(state.catalog.sequence))).unwrap();
        assert_eq!(state.record_hash[..], record[record.len() - 32..]);
        checkpoints += 1;
    }
    assert!(checkpoints > 0);
    let record = fs::read(root.join(second::record_path(catalog.sequence))).unwrap();
    assert_eq!(last_record[..], record[record.len() - 32..]);
    assert!(second::read_volume(&root, "snap-00000000000000000").is_err(), "there is no such snapshot");
    for cache in ["index", "checkpoints"] {
        fs::remove_dir_all(root.join(cache)).unwrap();
    }
    let (id, bytes) = &taken[0];
    let read = second::read_volume(&root, &id.to_string()).unwrap();
    assert!(read == *bytes, "nothing is lost with the caches");
}

#[test]
fn the_second_chunker_cuts_where_the_library_does() {
    let caller = Caller::new(2);
    let params = |min_blocks, avg_blocks, max_blocks, zero_tail_bytes| ChunkerParams {
        min_blocks,
        avg_blocks,
        max_blocks,
        zero_tail_bytes,
    };
    let kinds = [
        ChunkerParams::DEFAULT,
        params(1, 1, 1, 0),
        params(1, 2, 3, 0),
        params(2, 8, 16, 4096),
        params(3, 5, 256, 1),
        params(1, 200, 200, 0),
        params(256, 256, 256, 32),
    ];
    let mut volumes: Vec<_> = (0..3).map(|seed| odd_volume((2 << 20) + 999, 10 + seed)).collect();
    // Zeros in runs of 1 to 9 blocks between content, and ends of every length in blocks and bytes.
    let block = |fill: u8| vec![fill; 4096];
    let runs = (1..10).flat_map(|zeros| [block(zeros), vec![0; 4096 * usize::from(zeros)]]);
    let stripes: Vec<u8> = runs.flatten().collect();
    for end in [0, 1, 4095, 4096, 3 * 4096 + 1, 4 * 4096 - 1, 4 * 4096, 5 * 4096 + 7] {
        volumes.push([&stripes[..], &vec![0; end]].concat());
        volumes.push([&stripes[..], &block(200)[..], &vec![0; end], &[7]].concat());
        volumes.push([&vec![0; end][..], &stripes].concat());
        volumes.push(vec![0; end.max(1)]);
        volumes.push(vec![255; end.max(1)]);
    }
    for chunker in kinds {
        let storage = Memory::new();
        let options = RegionOptions { chunker, ..RegionOptions::named("cuts", AccountId::from_random(1)) };
        let region = Region::create(Arc::new(storage), session(), &options).unwrap();
        for (at, bytes) in volumes.iter().enumerate() {
            for hole_blocks in [0, 1, 6] {
                let disk = MemoryDisk { bytes: bytes.clone(), hole_blocks };
                let taken = caller.snapshot(&region, &disk).unwrap();
                let map = region.load_map(&taken.snapshot.manifest).unwrap();
                let found: Vec<_> = map.chunks().iter().map(|c| (c.start_block, c.blocks, c.id.0)).collect();
                let expected = second::cut(bytes, &second_chunker(chunker));
                let expected: Vec<_> = expected.into_iter().map(|c| (c.first, c.blocks, c.id)).collect();
                assert_eq!(found, expected, "volume {at}, {chunker:?}, holes of {hole_blocks}");
            }
        }
    }
}

// ---- Operations, side by side

/// Draws operations on few things, so that many apply and many do not.
struct Chance(Draw);

impl Chance {
    fn one_in(&mut self, count: usize) -> bool {
        self.0.below(count) == 0
    }

    fn id<T: FromStr<Err: Debug>>(&mut self, prefix: &str) -> T {
        one(prefix, self.number())
    }

    fn number(&mut self) -> u128 {
        1 + self.0.below(4) as u128
    }

    fn account(&mut self) -> AccountId {
        account(1 + self.0.below(3) as u64).0
    }

    fn name(&mut self) -> String {
        ["one", "two", "three"][self.0.below(3)].to_owned()
    }

    fn packs(&mut self) -> Vec<PackName> {
        let pack = |number| PackName { number, ..pack_record().0.name };
        // At first 1 is live, 2 condemned, 3 swept and 4 damaged. Most draws are to be good ones.
        (0..self.0.below(3)).map(|_| pack(if self.one_in(8) { 3 } else { 1 })).chain([pack(2)]).collect()
    }

    fn bin(&mut self) -> Option<BinStay> {
        let until_ms = self.0.below(4) as u64;
        (!self.one_in(3)).then_some(BinStay { since_ms: 0, until_ms })
    }

    fn image(&mut self) -> Image {
        let on = if self.one_in(2) { Ok(self.id("snap-")) } else { Err(self.number()) };
        let (number, name, owner) = (self.number(), self.name(), 1 + self.0.below(2) as u64);
        let mut image = image_on(number, &name, owner, on);
        if self.one_in(4) {
            image.devices.extend(image_on(number, "", 1, Ok(self.id("snap-"))).devices);
        }
        image
    }

    fn instance(&mut self) -> Instance {
        let first = self.one_in(2).then(|| self.number());
        let mut instance = instance_on(self.number(), first);
        if self.one_in(3) {
            // Perhaps of the same template, and perhaps of the same name, which nobody minds.
            let template_id = (!self.one_in(4)).then(|| self.id("tmpl-"));
            instance
                .local_disks
                .push(LocalDisk { template_id, ..instance_on(1, Some(1)).local_disks[0].clone() });
        }
        if self.one_in(12) {
            instance.state = InstanceState::Terminated;
        }
        instance
    }

    fn attachment(&mut self) -> Option<Attachment> {
        let device = ["sda1", "sdf", "sdg"][self.0.below(3)];
        let (number, delete) = (self.number(), self.one_in(2));
        self.one_in(2).then(|| attached_to(number, device, delete))
    }

    fn volume(&mut self) -> Volume {
        let snapshot = (!self.one_in(4)).then(|| self.id("snap-"));
        volume_on(self.number(), snapshot, self.attachment())
    }

    fn rule(&mut self) -> RetentionRule {
        rule(self.number()).0
    }

    /// What collection and repair do.
    fn upkeep(&mut self) -> Op {
        // The packs that others use may be condemned, and are not to be swept.
        let what = self.0.below(7);
        let number = if matches!(what, 0 | 6) { self.0.below(9) } else { 3 + self.0.below(9) } as u64;
        let packs = number..=number + self.0.below(2) as u64;
        let packs: Vec<PackName> = packs.map(|number| PackName { number, ..pack_record().0.name }).collect();
        match what {
            0 => Op::CondemnPacks { packs, at_ms: 7 },
            1 => Op::SweepPacks { packs },
            2 => Op::ForgetPacks { packs },
            3 => Op::QuarantinePacks { packs, at_ms: 8 },
            4 => Op::FenceSessions { sessions: vec![SessionId([9; 16])] },
            6 => Op::RebasePack { pack: packs[0], bases: self.packs() },
            _ => {
                let lost = snapshot(self.number(), false).0.manifest;
                let by = ManifestRecord { chunks: lost.chunks + u64::from(self.one_in(3)), ..lost.clone() };
                Op::ReplaceManifest { lost: lost.name, by }
            }
        }
    }

    fn op(&mut self) -> Op {
        match self.0.below(28) {
            24..=27 => self.upkeep(),
            0 => self.object(),
            1 | 2 => {
                let snapshot = Box::new(snapshot(self.number(), false).0);
                Op::CreateSnapshot { snapshot, packs: self.packs() }
            }
            3 => Op::DeleteSnapshot { id: self.id("snap-"), bin: self.bin() },
            4 | 5 => Op::RegisterImage(Box::new(self.image())),
            6 => Op::DeregisterImage { id: self.id("ami-"), bin: self.bin() },
            7 => {
                let volumes = (0..self.0.below(3)).map(|_| self.volume()).collect();
                Op::RunInstance { instance: Box::new(self.instance()), volumes }
            }
            8 | 9 => {
                let template = Box::new(template(self.number()).0);
                Op::CreateTemplate { template, packs: self.packs() }
            }
            10 => Op::RestoreImage { id: self.id("ami-") },
            11 => Op::RestoreSnapshot { id: self.id("snap-") },
            12 => Op::ExpireImage { id: self.id("ami-") },
            13 => Op::ExpireSnapshot { id: self.id("snap-") },
            14 => Op::CreateVolume(Box::new(self.volume())),
            15 => Op::DeleteVolume { id: self.id("vol-") },
            16 | 17 => {
                let change = VolumeChange::Attachment(self.attachment());
                Op::ModifyVolume { id: self.id("vol-"), change }
            }
            18 => Op::TerminateInstance { id: self.id("i-"), at_ms: self.0.below(9) as u64 },
            19 => Op::ForgetInstance { id: self.id("i-") },
            20 | 21 => Op::ModifyAccount { account: self.account(), change: self.account_change() },
            _ => self.change(),
        }
    }

    /// Packs and segments: four packs are there from the start.
    fn object(&mut self) -> Op {
        let number = 4 + self.0.below(30) as u64;
        if self.one_in(2) {
            let name = PackName { number, ..pack_record().0.name };
            return Op::RegisterPack(PackRecord { name, bases: self.packs(), ..pack_record().0 });
        }
        let segment = |number| SegmentName { number, ..segment_record().0.name };
        let replaces = (0..self.0.below(2)).map(|_| segment(4 + self.0.below(30) as u64)).collect();
        Op::RegisterSegment(SegmentRecord { name: segment(number), replaces, ..segment_record().0 })
    }

    fn account_change(&mut self) -> AccountChange {
        match self.0.below(5) {
            0 => AccountChange::Alias((!self.one_in(3)).then(|| self.name())),
            1 => AccountChange::BlockPublicImages(self.one_in(2)),
            2 => AccountChange::BlockPublicSnapshots(self.one_in(2)),
            3 => AccountChange::AddRule(self.rule()),
            _ => AccountChange::RemoveRule(self.rule().id),
        }
    }

    /// A sample of a change, for something that may exist.
    fn change(&mut self) -> Op {
        let samples: Vec<_> = operations().0.into_iter().filter(|op| CHANGES[numbers(op).0] > 1).collect();
        match samples[self.0.below(samples.len())].clone() {
            Op::ModifyVolume { change: VolumeChange::Tags(tags), .. } => {
                Op::ModifyVolume { id: self.id("vol-"), change: VolumeChange::Tags(tags) }
            }
            Op::ModifyInstance { change, .. } => Op::ModifyInstance { id: self.id("i-"), change },
            op => of_existing(op, self.id("ami-"), self.id("snap-")).unwrap_or(Op::NoOp),
        }
    }
}

/// Packs in all states; and images that were deregistered, so many that the oldest are soon forgotten.
fn first_catalog(deregistered: u64) -> Catalog {
    let mut catalog = Catalog::default();
    let states = [
        PackState::Live,
        PackState::Condemned { since_ms: 5 },
        PackState::Sweeping,
        PackState::Quarantined { since_ms: 6 },
    ];
    for (number, state) in (1..).zip(states) {
        let name = PackName { number, ..pack_record().0.name };
        let record = PackRecord { name, bases: vec![], ..pack_record().0 };
        Arc::make_mut(&mut catalog.packs).insert(record.name, Pack { record, state });
    }
    let gone =
        (0..deregistered).map(|n| Deregistered { id: ImageId::from_random(100 + n), owner: account(7).0 });
    Arc::make_mut(&mut catalog.deregistered).extend(gone);
    catalog
}

/// The library and the page agree on which operations apply, and on what is there afterwards. And what the
/// library keeps beside its tables is what follows from them.
#[test]
fn the_page_judges_operations_as_the_library_does() {
    let (mut applied, mut refused) = (BTreeMap::new(), BTreeMap::new());
    for (seed, deregistered, steps) in
        [(1, 0, 2500), (2, 0, 2500), (3, 0, 2500), (4, DEREGISTERED_KEPT as u64, 400)]
    {
        let mut catalog = first_catalog(deregistered);
        let mut state = as_second(&catalog);
        let mut chance = Chance(Draw::new(seed));
        for step in 0..steps {
            let op = chance.op();
            let (bytes, _) = record::encode_list(std::slice::from_ref(&op)).unwrap();
            let (ops, _) = second::envelope::<Vec<second::Op>>(&bytes, second::LIST).unwrap();
            let author = Author { account: account(1).0, session: SessionId(SESSION) };
            let (sequence, previous) = (catalog.sequence + 1, ObjectHash([0; 32]));
            let record =
                LogRecord { sequence, previous, nonce: [0; 16], time_ms: 0, author, ops: vec![op.clone()] };
            let (mut ours, mut theirs) = (catalog.clone(), state.clone());
            let judged = ours.apply(&record);
            let judged2 = ops.into_iter().try_for_each(|op| theirs.apply(op));
            let what = format!("step {step} of seed {seed}: {op:?}: {judged:?}, the page: {judged2:?}");
            assert_eq!(judged.is_ok(), judged2.is_ok(), "{what}");
            let counts = if judged.is_ok() { &mut applied } else { &mut refused };
            *counts.entry(numbers(&op)).or_insert(0) += 1;
            if judged.is_ok() {
                theirs.sequence += 1;
                assert!(as_second(&ours) == theirs, "another state after {what}");
                assert!(ours.clone().with_derived() == ours, "what follows is not what is kept: {what}");
                (catalog, state) = (ours, theirs);
            }
        }
        let oldest = Deregistered { id: ImageId::from_random(100), owner: account(7).0 };
        assert!(!catalog.deregistered.contains(&oldest), "nothing was forgotten");
    }
    // Each of them happened, and each that can be refused was.
    let every = operations().0.iter().map(numbers).collect::<BTreeSet<_>>();
    assert_eq!(applied.into_keys().collect::<BTreeSet<_>>(), every);
    let always = [(0, 0), (15, 1), (15, 2), (26, 0)];
    let never: Vec<_> = every.into_iter().filter(|kind| !refused.contains_key(kind)).collect();
    assert_eq!(never, always);
}

#[test]
fn every_operation_is_in_the_log_of_a_real_region() {
    let snapshots = [1, 2].map(|number| snapshot(number, false).0);
    let mut catalog = Catalog::default();
    snapshots.iter().for_each(|one| drop(Arc::make_mut(&mut catalog.snapshots).insert(one.id, one.clone())));
    let records = lives_and_ends(&catalog, snapshots[0].id, snapshots[1].id);
    let found: BTreeSet<_> = records.iter().flatten().map(numbers).collect();
    // The pipelines have made segments before.
    let every = operations().0;
    let others = every.iter().map(numbers).filter(|kind| kind.0 != 2);
    assert_eq!(found, others.collect());
}

// ---- Bundles

#[test]
fn the_second_decoder_reads_bundles_that_the_library_wrote() {
    let folder = tempfile::tempdir().unwrap();
    let attributes = bundle_attributes();
    for (name, holes) in [("small", 0), ("with.holes", 40 << 20)] {
        let mut bytes = odd_volume((2 << 20) + 1234, 5);
        bytes.extend(vec![0; holes]);
        bytes.extend([7; 1000]);
        let options = BundleOptions {
            name: name.into(),
            attributes: attributes.clone(),
            volume_bytes: bytes.len() as u64,
            zstd_level: 1,
        };
        let mut bundle = create_bundle(folder.path(), &options).unwrap();
        bundle.write_at(0, &bytes).unwrap();
        bundle.finish().unwrap();
        let (manifest, volume) =
            second::bundle(&folder.path().join(format!("{name}.manifest.json"))).unwrap();
        assert_eq!(manifest.attributes, attributes.clone().into_iter().collect::<Vec<_>>());
        assert!(volume == bytes, "{name}: another content");
        assert_eq!(manifest.parts.len(), if holes == 0 { 1 } else { 2 }, "a part is nothing but zeros");
    }
}

#[test]
fn changed_bundles_are_refused_by_both() {
    let good = fs::read(bundle_path()).unwrap();
    for at in 0..good.len() {
        let mut bytes = good.clone();
        bytes[at] ^= 1 << (at % 8);
        for bytes in [&bytes[..], &good[..at]] {
            assert!(second::bundle_manifest(bytes).is_err(), "byte {at}");
            assert!(bundle_format::parse(bytes).is_err(), "byte {at}");
        }
    }
    let text = String::from_utf8(good).unwrap();
    // With a hash that fits.
    for (from, to) in [
        ("\"version\":1", "\"version\":2"),
        ("\"imgstore bundle\"", "\"other\""),
        ("\"web-1\"", "\".web\""),
        ("\"web-1\"", "\"a/b\""),
        ("\"part_bytes\":4096", "\"part_bytes\":4097"),
        ("\"part_bytes\":4096", "\"part_bytes\":134217728"),
        ("\"volume_bytes\":20490", "\"volume_bytes\":20491"),
        ("\"volume_bytes\":20490", "\"volume_bytes\":0"),
        ("\"volume_bytes\":20490", "\"volume_bytes\":020490"),
        ("\"number\":2", "\"number\":3"),
        ("\"number\":5", "\"number\":6"),
        ("\"raw_bytes\":10", "\"raw_bytes\":11"),
        ("\"stored_bytes\":", "\"stored_bytes\":9"),
        ("\"attributes\":{", "\"attributes\":{\"~\":\"\","),
        ("\"attributes\":{", "\"attributes\":{\"\":\"\","),
        ("\"attributes\":", "\"more\":0,\"attributes\":"),
        ("\\t", "\\u0009"),
        ("ü", "\\u00fc"),
        ("/", "\\/"),
        (",\"name\"", ", \"name\""),
    ] {
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text, "{from}");
        let start = &changed[..changed.rfind("\"blake3\":\"").unwrap() + 10];
        let hash = blake3::hash(format!("{start}\"}}").as_bytes()).to_hex();
        let changed = format!("{start}{hash}\"}}");
        let (ours, theirs) =
            (bundle_format::parse(changed.as_bytes()), second::bundle_manifest(changed.as_bytes()));
        assert!(ours.is_err() && theirs.is_err(), "{from} -> {to}: {ours:?}, {theirs:?}");
        assert_eq!(ours.unwrap_err().to_string().contains("newer"), theirs.unwrap_err().contains("newer"));
    }
    let folder = tempfile::tempdir().unwrap();
    for file in fs::read_dir(bundle_path().parent().unwrap()).unwrap() {
        let path = file.unwrap().path();
        fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let manifest = folder.path().join("web-1.manifest.json");
    second::bundle(&manifest).unwrap();
    let part = folder.path().join("web-1.part.00002");
    let stored = fs::read(&part).unwrap();
    for at in 0..stored.len() {
        let mut bytes = stored.clone();
        bytes[at] ^= 1 << (at % 8);
        fs::write(&part, &bytes).unwrap();
        assert!(second::bundle(&manifest).is_err(), "byte {at} of a part");
    }
    fs::remove_file(&part).unwrap();
    assert!(second::bundle(&manifest).is_err() && open_bundle(&manifest).is_err());
    fs::write(&part, &stored).unwrap();
    let other = folder.path().join("web-2.manifest.json");
    fs::rename(&manifest, &other).unwrap();
    assert!(second::bundle(&other).is_err() && open_bundle(&other).is_err());
}
