//! docs/FORMAT.md held to its word: files of every kind, byte for byte; regions that the library wrote, read
//! by a decoder that was made from the page alone; and reserved fields, which no reader may guess about.

mod common;
mod format_decoder;

use common::{Caller, MemoryDisk, session, volume};
use format_decoder as second;
use imgstore::chunk::frame::{Codec, CodecPool, Frame, chunk_id};
use imgstore::format::checkpoint::{self, Checkpoint};
use imgstore::format::entry::Entry;
use imgstore::format::error::FormatError;
use imgstore::format::record::{self, Body, StoredRecord};
use imgstore::format::segment::{self, SegmentWriter};
use imgstore::format::{manifest, pack, region};
use imgstore::io::directory::DirectoryOptions;
use imgstore::io::memory::Memory;
use imgstore::io::storage::Storage;
use imgstore::model::account::{AccountId, Permission, Tag};
use imgstore::model::blockmap::{BlockMap, ChunkRef};
use imgstore::model::catalog::{Catalog, Pack};
use imgstore::model::ids::{ChunkId, ObjectHash, RegionId, SessionId, SnapshotId};
use imgstore::model::image::{
    Architecture, BlockDeviceMapping, BootMode, DeviceTarget, EbsBlockDevice, Image, ImageSource, ImageState,
    RootDeviceType, VirtualizationType, VolumeType,
};
use imgstore::model::instance::{Attachment, Instance, InstanceState, Volume, VolumeState};
use imgstore::model::objects::{
    ListName, ManifestName, ManifestRecord, PackName, PackRecord, PackState, SegmentName, SegmentRecord,
};
use imgstore::model::op::{Author, Op};
use imgstore::model::region::{ChunkerParams, RegionHeader};
use imgstore::model::snapshot::{Snapshot, SnapshotSource, SnapshotState};
use imgstore::ops::error::OpsError;
use imgstore::region::{Region, RegionOptions};
use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

// ---- Fixed values: each as the library has it, and as the second decoder must read it. Every field has
// another value than its neighbours, so that no two can be confused.

const SESSION: [u8; 16] = *b"session 16 bytes";
const REGION: [u8; 16] = *b"region: 16 bytes";

fn id<T: FromStr<Err: Debug>>(prefix: &str, number: u128) -> (T, second::ShortId) {
    (format!("{prefix}{number:017x}").parse().expect("an id"), second::ShortId(number))
}

fn account(number: u64) -> (AccountId, second::AccountId) {
    (format!("{number:012}").parse().expect("an account"), second::AccountId(number))
}

fn name(number: u64) -> second::Name {
    second::Name { session: SESSION, number }
}

fn text(text: &str) -> (String, String) {
    (text.to_owned(), text.to_owned())
}

fn tag(key: &str, value: &str) -> (Tag, second::Tag) {
    let (key, value) = (key.to_owned(), value.to_owned());
    (Tag { key: key.clone(), value: value.clone() }, second::Tag { key, value })
}

fn region_header() -> (RegionHeader, second::RegionHeader) {
    let chunker = ChunkerParams { min_blocks: 2, avg_blocks: 33, max_blocks: 256, zero_tail_bytes: 4096 };
    let (name, created, zstd_level, pack_bytes) = ("golden-1".to_owned(), 0x0001_9abc_def0_1234, 12, 16_384);
    (
        RegionHeader {
            id: RegionId(REGION),
            name: name.clone(),
            created_ms: created,
            chunker,
            zstd_level,
            pack_bytes,
        },
        second::RegionHeader {
            id: REGION,
            name,
            created,
            chunker: second::Chunker {
                min_blocks: 2,
                avg_blocks: 33,
                max_blocks: 256,
                zero_tail_bytes: 4096,
            },
            zstd_level,
            pack_bytes,
        },
    )
}

fn pack_record() -> (PackRecord, second::PackRecord) {
    let pack = |number| PackName { session: SessionId(SESSION), number };
    (
        PackRecord {
            name: pack(u64::MAX - 1),
            len: 1 << 33,
            frames: 7,
            raw_bytes: 1 << 35,
            trailer_hash: ObjectHash([0x71; 32]),
            bases: vec![pack(5), pack(4)],
        },
        second::PackRecord {
            name: name(u64::MAX - 1),
            len: 1 << 33,
            frames: 7,
            raw_bytes: 1 << 35,
            trailer_hash: [0x71; 32],
            bases: vec![name(5), name(4)],
        },
    )
}

fn segment_record() -> (SegmentRecord, second::SegmentRecord) {
    let segment = |number| SegmentName { session: SessionId(SESSION), number };
    (
        SegmentRecord {
            name: segment(9),
            len: 4096,
            entries: 1 << 34,
            hash: ObjectHash([0x5e; 32]),
            replaces: vec![segment(3)],
        },
        second::SegmentRecord {
            name: name(9),
            len: 4096,
            entries: 1 << 34,
            hash: [0x5e; 32],
            replaces: vec![name(3)],
        },
    )
}

/// With every optional field, or without.
fn snapshot(number: u128, full: bool) -> (Snapshot, second::Snapshot) {
    let ((id, id2), (owner, owner2)) = (id("snap-", number), account(999_999_999_999));
    let (description, description2) = text("größer als ASCII: 雪");
    let ((tag, tag2), (parent, parent2)) = (tag("Name", "root"), self::id("snap-", 0xf_0000_0000_0000_0001));
    let ((volume, volume2), (of, of2)) = (self::id("vol-", 0x22), self::id("snap-", 0x33));
    let source =
        SnapshotSource { region_id: RegionId([3; 16]), region: "far".into(), snapshot_id: of, sequence: 44 };
    let source2 =
        second::SnapshotSource { region_id: [3; 16], region: "far".into(), snapshot_id: of2, sequence: 44 };
    let (friend, friend2) = account(123_456_789_012);
    let permissions = [vec![], vec![Permission::All, Permission::Account(friend)]];
    let permissions2 = [vec![], vec![second::Permission::All, second::Permission::Account(friend2)]];
    (
        Snapshot {
            id,
            owner,
            description,
            volume_bytes: 0x1111,
            data_bytes: 0x2222,
            state: if full { SnapshotState::Error } else { SnapshotState::Completed },
            created_ms: 0x3333,
            tags: vec![tag],
            parent: full.then_some(parent),
            volume: full.then_some(volume),
            source: full.then_some(source),
            create_volume_permissions: permissions[usize::from(full)].clone(),
            client_token: full.then(|| "token".into()),
            manifest: ManifestRecord {
                name: ManifestName { session: SessionId(SESSION), number: 8 },
                len: 0x4444,
                hash: ObjectHash([0x55; 32]),
                chunks: 0x6666,
            },
        },
        second::Snapshot {
            id: id2,
            owner: owner2,
            description: description2,
            volume_bytes: 0x1111,
            data_bytes: 0x2222,
            state: if full { second::SnapshotState::Error } else { second::SnapshotState::Completed },
            created: 0x3333,
            tags: vec![tag2],
            parent: full.then_some(parent2),
            volume: full.then_some(volume2),
            source: full.then_some(source2),
            create_volume_permissions: permissions2[usize::from(full)].clone(),
            client_token: full.then(|| "token".into()),
            manifest: second::ManifestRecord { name: name(8), len: 0x4444, hash: [0x55; 32], chunks: 0x6666 },
        },
    )
}

fn image(number: u128, full: bool) -> (Image, second::Image) {
    let ((id, id2), (owner, owner2)) = (id("ami-", number), account(1));
    let ((stood, stood2), (from, from2)) = (self::id("snap-", 0x77), self::id("ami-", 0x88));
    let ((ran, ran2), (before, before2)) = (self::id("i-", 0x99), self::id("ami-", 0xaa));
    let some = |text: &str| full.then(|| text.to_owned());
    let ebs = EbsBlockDevice {
        snapshot_id: Some(stood),
        volume_bytes: 0xbbbb,
        volume_type: VolumeType::Standard,
        iops: full.then_some(0xcccc),
        delete_on_termination: full,
    };
    let ebs2 =
        second::Target::Ebs(Some(stood2), 0xbbbb, second::VolumeType::Standard, full.then_some(0xcccc), full);
    let device = |name: &str, target| BlockDeviceMapping { device_name: name.to_owned(), target };
    let device2 = |name: &str, target| second::Device { device_name: name.to_owned(), target };
    let ((tag, tag2), region) = (tag("Stage", ""), "elsewhere".to_owned());
    (
        Image {
            id,
            name: "web server".into(),
            description: "an image".into(),
            owner,
            state: if full { ImageState::Disabled } else { ImageState::Available },
            architecture: Architecture::Arm64Mac,
            platform: some("windows"),
            virtualization_type: VirtualizationType::Paravirtual,
            boot_mode: full.then_some(BootMode::UefiPreferred),
            tpm_support: some("v2.0"),
            ena_support: !full,
            imds_support: some("imds"),
            kernel_id: some("aki"),
            ramdisk_id: some("ari"),
            root_device_name: "/dev/xvda".into(),
            root_device_type: RootDeviceType::InstanceStore,
            devices: vec![
                device("/dev/xvda", DeviceTarget::Ebs(ebs)),
                device("/dev/sdb", DeviceTarget::Ephemeral(23)),
            ],
            launch_permissions: vec![Permission::All],
            product_codes: vec!["code 1".into(), "code 2".into()],
            tags: vec![tag],
            created_ms: 0xdddd,
            deprecation_ms: full.then_some(0xeeee),
            deregistration_protected: full,
            source: full.then(|| ImageSource {
                region_id: RegionId([4; 16]),
                region: region.clone(),
                image_id: from,
                owner,
            }),
            source_instance: full.then_some(ran),
            predecessor: full.then_some(before),
            client_token: some("once"),
        },
        second::Image {
            id: id2,
            name: "web server".into(),
            description: "an image".into(),
            owner: owner2,
            state: if full { second::ImageState::Disabled } else { second::ImageState::Available },
            architecture: second::Architecture::Arm64Mac,
            platform: some("windows"),
            virtualization_type: second::Virtualization::Paravirtual,
            boot_mode: full.then_some(second::BootMode::UefiPreferred),
            tpm_support: some("v2.0"),
            ena_support: !full,
            imds_support: some("imds"),
            kernel_id: some("aki"),
            ramdisk_id: some("ari"),
            root_device_name: "/dev/xvda".into(),
            root_device_type: second::RootDevice::InstanceStore,
            devices: vec![device2("/dev/xvda", ebs2), device2("/dev/sdb", second::Target::Ephemeral(23))],
            launch_permissions: vec![second::Permission::All],
            product_codes: vec!["code 1".into(), "code 2".into()],
            tags: vec![tag2],
            created: 0xdddd,
            deprecation: full.then_some(0xeeee),
            deregistration_protected: full,
            source: full.then(|| second::ImageSource {
                region_id: [4; 16],
                region: region.clone(),
                image_id: from2,
                owner: owner2,
            }),
            source_instance: full.then_some(ran2),
            predecessor: full.then_some(before2),
            client_token: some("once"),
        },
    )
}

fn instance() -> (Instance, second::Instance) {
    let ((id, id2), (image, image2), (owner, owner2)) = (id("i-", 0x1a), self::id("ami-", 0x1b), account(2));
    let (tag, tag2) = tag("k", "v");
    (
        Instance {
            id,
            owner,
            image_id: image,
            state: InstanceState::Terminated,
            launched_ms: 0x1c1c,
            root_device_name: "/dev/sda1".into(),
            path: "/srv/i".into(),
            tags: vec![tag],
        },
        second::Instance {
            id: id2,
            owner: owner2,
            image_id: image2,
            state: second::InstanceState::Terminated,
            launched: 0x1c1c,
            root_device_name: "/dev/sda1".into(),
            path: "/srv/i".into(),
            tags: vec![tag2],
        },
    )
}

fn disk(number: u128, full: bool) -> (Volume, second::Volume) {
    let ((id, id2), (on, on2), (of, of2)) =
        (id("vol-", number), self::id("snap-", 0x2b), self::id("i-", 0x1a));
    let (owner, owner2) = account(3);
    let device_name = "/dev/sda1".to_owned();
    (
        Volume {
            id,
            owner,
            volume_bytes: 0x2c2c,
            volume_type: VolumeType::Io1,
            snapshot_id: full.then_some(on),
            state: if full { VolumeState::InUse } else { VolumeState::Available },
            created_ms: 0x2d2d,
            attachment: full.then(|| Attachment {
                instance_id: of,
                device_name: device_name.clone(),
                delete_on_termination: true,
            }),
            path: "/srv/i/sda1.raw".into(),
            tags: vec![],
        },
        second::Volume {
            id: id2,
            owner: owner2,
            volume_bytes: 0x2c2c,
            volume_type: second::VolumeType::Io1,
            snapshot_id: full.then_some(on2),
            state: if full { second::VolumeState::InUse } else { second::VolumeState::Available },
            created: 0x2d2d,
            attachment: full.then(|| second::Attachment {
                instance_id: of2,
                device_name: device_name.clone(),
                delete_on_termination: true,
            }),
            path: "/srv/i/sda1.raw".into(),
            tags: vec![],
        },
    )
}

/// Every operation.
fn operations() -> (Vec<Op>, Vec<second::Op>) {
    let ((pack, pack2), (segment, segment2)) = (pack_record(), segment_record());
    let ((taken, taken2), (bare, bare2)) = (snapshot(0x1_2345_6789_abcd_ef01, true), snapshot(0x2b, false));
    let ((gone, gone2), (made, made2)) = (id("snap-", 0x66), image(0xf_ffff_ffff_ffff_ffff, true));
    let ((plain, plain2), (left, left2)) = (image(0x31, false), id("ami-", 0x32));
    let ((run, run2), (on, on2), (empty, empty2)) = (instance(), disk(0x2a, true), disk(0x2e, false));
    let packs = vec![pack.name, PackName { number: 1, ..pack.name }];
    (
        vec![
            Op::NoOp,
            Op::RegisterPack(pack),
            Op::RegisterSegment(segment),
            Op::CreateSnapshot { snapshot: Box::new(taken), packs },
            Op::CreateSnapshot { snapshot: Box::new(bare), packs: vec![] },
            Op::DeleteSnapshot { id: gone },
            Op::RegisterImage(Box::new(made)),
            Op::RegisterImage(Box::new(plain)),
            Op::DeregisterImage { id: left },
            Op::RunInstance { instance: Box::new(run), volumes: vec![on, empty] },
        ],
        vec![
            second::Op::NoOp,
            second::Op::RegisterPack(pack2),
            second::Op::RegisterSegment(segment2),
            second::Op::CreateSnapshot(Box::new(taken2), vec![name(u64::MAX - 1), name(1)]),
            second::Op::CreateSnapshot(Box::new(bare2), vec![]),
            second::Op::DeleteSnapshot(gone2),
            second::Op::RegisterImage(Box::new(made2)),
            second::Op::RegisterImage(Box::new(plain2)),
            second::Op::DeregisterImage(left2),
            second::Op::RunInstance(Box::new(run2), vec![on2, empty2]),
        ],
    )
}

fn stored_record(body: Body, body2: second::Body) -> (StoredRecord, second::StoredRecord) {
    let (account, account2) = account(12);
    let (sequence, time) = (0x0102_0304_0506_0708, 0x0001_9abc_def0_0000);
    (
        StoredRecord {
            sequence,
            previous: ObjectHash([0x9e; 32]),
            nonce: *b"nonce of 16 byte",
            time_ms: time,
            author: Author { account, session: SessionId(SESSION) },
            body,
        },
        second::StoredRecord {
            sequence,
            previous: [0x9e; 32],
            nonce: *b"nonce of 16 byte",
            time,
            author: second::Author { account: account2, session: SESSION },
            body: body2,
        },
    )
}

fn inline_record() -> (StoredRecord, second::StoredRecord) {
    let (operations, operations2) = operations();
    stored_record(Body::Inline(operations), second::Body::Inline(operations2))
}

fn spilled_record() -> (StoredRecord, second::StoredRecord) {
    let list = ListName { session: SessionId(SESSION), number: 1_000_000 };
    let hash = [0x11; 32];
    stored_record(
        Body::Spilled { name: list, hash: ObjectHash(hash) },
        second::Body::Spilled(name(1_000_000), hash),
    )
}

fn catalogue() -> (Checkpoint, second::Checkpoint) {
    let ((record, record2), (segment, segment2)) = (pack_record(), segment_record());
    let mut both =
        (Catalog::default(), second::value::<second::Catalog>(&[0; 72]).expect("an empty catalogue"));
    let (ours, theirs) = (&mut both.0, &mut both.1);
    (ours.sequence, theirs.sequence) = (64, 64);
    // 256 stands before 3 in bytes and after it in numbers.
    let states =
        [(256, PackState::Live), (3, PackState::Condemned { since_ms: 77 }), (4, PackState::Sweeping)];
    let states2 = [second::PackState::Live, second::PackState::Condemned(77), second::PackState::Sweeping];
    for ((number, state), state2) in states.into_iter().zip(states2) {
        let record = PackRecord { name: PackName { number, ..record.name }, ..record.clone() };
        let record2 = second::PackRecord { name: name(number), ..record2.clone() };
        Arc::make_mut(&mut ours.packs).insert(record.name, Pack { record, state });
        theirs.packs.insert(name(number), second::Pack { record: record2, state: state2 });
    }
    Arc::make_mut(&mut ours.segments).insert(segment.name, segment);
    theirs.segments.insert(segment2.name.clone(), segment2);
    for (number, full) in [(0x100, true), (0x2, false)] {
        let (one, one2) = snapshot(number, full);
        Arc::make_mut(&mut ours.snapshots).insert(one.id, one);
        theirs.snapshots.insert(one2.id, one2);
        let (one, one2) = image(number, full);
        Arc::make_mut(&mut ours.images).insert(one.id, one);
        theirs.images.insert(one2.id, one2);
        let (one, one2) = disk(number, full);
        Arc::make_mut(&mut ours.volumes).insert(one.id, one);
        theirs.volumes.insert(one2.id, one2);
    }
    let ((run, run2), (kept, kept2)) = (instance(), snapshot(0x2b, true));
    Arc::make_mut(&mut ours.instances).insert(run.id, run);
    theirs.instances.insert(run2.id, run2);
    Arc::make_mut(&mut ours.retained_manifests).insert(kept.id, kept);
    theirs.retained_manifests.insert(kept2.id, kept2);
    for session in [[9; 16], [7; 16]] {
        ours.fenced_sessions.insert(SessionId(session));
        theirs.fenced_sessions.insert(session);
    }
    let (ours, theirs) = both;
    let record_hash = [0xc4; 32];
    (
        Checkpoint { record_hash: ObjectHash(record_hash), catalog: ours },
        second::Checkpoint { record_hash, catalog: theirs },
    )
}

/// The chunks of the golden pack: a block that does not compress, and two that do.
fn chunks() -> [Vec<u8>; 2] {
    let noise = (0..128_u32).flat_map(|at| *blake3::hash(&at.to_le_bytes()).as_bytes()).collect();
    [noise, b"the same words again and again\n".iter().copied().cycle().take(2 * 4096).collect()]
}

/// The golden pack from given bodies of its two frames.
fn encode_pack(bodies: [Vec<u8>; 2]) -> Vec<u8> {
    let header =
        pack::encode_header(RegionId(REGION), PackName { session: SessionId(SESSION), number: 0x0a0b_0c0d });
    let mut bytes = header.to_vec();
    let mut entries = Vec::new();
    for ((chunk, body), codec) in chunks().into_iter().zip(bodies).zip([Codec::Raw, Codec::Zstd]) {
        let raw_blocks = u16::try_from(chunk.len() / 4096).expect("a few blocks");
        let [offset, stored_len] = [bytes.len(), body.len()].map(|n| u32::try_from(n).expect("a small pack"));
        let frame = Frame { codec, raw_blocks, body };
        bytes.extend(pack::encode_frame_header(&frame).expect("a frame"));
        bytes.extend(frame.body);
        entries.push(Entry { id: chunk_id(&chunk), pack: 0, offset, stored_len, raw_blocks, codec });
    }
    let end = u32::try_from(bytes.len()).expect("a small pack");
    bytes.extend(pack::encode_trailer(&header, &mut entries, end).expect("a trailer").0);
    bytes
}

/// Entries for three pages, the last of which is not full, and the pack table.
fn segment_parts() -> (Vec<Entry>, Vec<second::Entry>, Vec<PackName>) {
    let mut entries = Vec::new();
    for at in 0..200_u32 {
        let mut id = [0xab; 32];
        id[..4].copy_from_slice(&(at * 0x0101_0101).to_be_bytes());
        let codec = if at % 3 == 0 { Codec::Raw } else { Codec::Zstd };
        let (raw_blocks, stored_len) = (u16::try_from(at + 1).expect("200 at most"), 1000 + at);
        entries.push(Entry {
            id: ChunkId(id),
            pack: at % 3,
            offset: 64 + at * 5000,
            stored_len,
            raw_blocks,
            codec,
        });
    }
    let entries2 = entries.iter().map(|entry| second::Entry {
        id: entry.id.0,
        pack: entry.pack,
        offset: entry.offset,
        stored: entry.stored_len,
        blocks: entry.raw_blocks,
        codec: entry.codec.number(),
        flags: 0,
    });
    let entries2 = entries2.collect();
    // Ascending as numbers, which their bytes do not.
    let pack = |session, number| PackName { session: SessionId(session), number };
    let packs = vec![pack([1; 16], 2), pack([1; 16], 256), pack(SESSION, 1)];
    (entries, entries2, packs)
}

fn encode_segment() -> Vec<u8> {
    let (entries, _, packs) = segment_parts();
    let mut writer = SegmentWriter::new(entries.len());
    entries.into_iter().for_each(|entry| writer.push(entry).expect("ids ascend"));
    writer.finish(RegionId(REGION), &packs).expect("a segment").0
}

fn block_map() -> (BlockMap, Vec<second::ChunkRef>) {
    let places = [(0, 256, 1), (256, 1, 2), (300, 5, 1), (0x0000_ffff_0000_0000, 3, 4)];
    let ours =
        places.map(|(start_block, blocks, id)| ChunkRef { start_block, blocks, id: ChunkId([id; 32]) });
    let theirs = places.map(|(first, blocks, id)| second::ChunkRef { first, blocks, id: [id; 32] });
    let volume_bytes = (0x0000_ffff_0000_0002 << 12) + 1;
    (BlockMap::new(volume_bytes, ours.to_vec()).expect("a map"), theirs.to_vec())
}

// ---- Golden files

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn golden(name: &str) -> Vec<u8> {
    fs::read(folder().join(name)).expect("a golden file")
}

/// What the library's encoders make of the fixed values, except the pack.
fn encoded() -> [(&'static str, Vec<u8>); 7] {
    [
        ("region", region::encode(&region_header().0).expect("a region file").0),
        ("record", record::encode(&inline_record().0).expect("a record").0),
        ("record-spilled", record::encode(&spilled_record().0).expect("a record").0),
        ("list", record::encode_list(&operations().0).expect("a list").0),
        ("checkpoint", checkpoint::encode(&catalogue().0).expect("a checkpoint")),
        ("segment", encode_segment()),
        ("manifest", manifest::encode(&block_map().0).0),
    ]
}

#[test]
#[ignore = "writes the golden files anew"]
fn write_golden_files() {
    fs::create_dir_all(folder()).unwrap();
    let [raw, text] = chunks();
    let zstd = CodecPool::new().encode(&text, chunk_id(&text), 3).unwrap();
    assert_eq!(zstd.codec, Codec::Zstd);
    for (name, bytes) in encoded().into_iter().chain([("pack", encode_pack([raw, zstd.body]))]) {
        fs::write(folder().join(name), bytes).unwrap();
    }
}

#[test]
fn the_encoders_write_the_golden_bytes() {
    for (name, bytes) in encoded() {
        assert!(bytes == golden(name), "{name}: other bytes than version 1 has");
    }
    // What zstd makes may change with its version: the body of that frame is taken as it is.
    let bytes = golden("pack");
    let entries = second::pack(&bytes).unwrap().entries;
    let zstd = entries.iter().find(|entry| entry.codec == 1).unwrap();
    let start = zstd.offset as usize + 12;
    let body = bytes[start..start + zstd.stored as usize].to_vec();
    assert!(encode_pack([chunks()[0].clone(), body]) == bytes, "pack: other bytes than version 1 has");
    let total: u64 =
        fs::read_dir(folder()).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum();
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
    assert_eq!(library_segment(&golden("segment")).unwrap(), segment_parts().0);
    let mut found = library_pack(&golden("pack")).unwrap();
    let mut expected = chunks().to_vec();
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
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
    let expected = chunks().map(|chunk| (*blake3::hash(&chunk).as_bytes(), chunk));
    assert_eq!(pack.chunks, expected.into_iter().collect());
    assert_eq!((pack.header.region, pack.header.name), (REGION, name(0x0a0b_0c0d)));
    assert_eq!((pack.footer.frames, pack.footer.raw_bytes), (2, 3 * 4096));
    assert_eq!(pack.footer.hash.to_vec(), hash_of("pack"));

    let segment = second::segment(&golden("segment")).unwrap();
    let (_, entries, packs) = segment_parts();
    assert_eq!((segment.header.region, segment.header.pages, segment.entries), (REGION, 3, entries));
    let found: Vec<_> = segment.packs.iter().map(|pack| (pack.session, pack.number)).collect();
    assert_eq!(found, packs.iter().map(|pack| (pack.session.0, pack.number)).collect::<Vec<_>>());

    let manifest = second::manifest(&golden("manifest")).unwrap();
    let (map, references) = block_map();
    assert_eq!((manifest.header.volume_bytes, manifest.chunks), (map.volume_bytes(), references));
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

const FILES: [&str; 8] =
    ["region", "record", "record-spilled", "list", "checkpoint", "pack", "segment", "manifest"];

/// All chunks of a pack, decoded by the library.
fn library_pack(bytes: &[u8]) -> Result<Vec<Vec<u8>>, FormatError> {
    let header = bytes.first_chunk().expect("a header");
    pack::decode_header(header)?;
    let start = pack::trailer_offset(bytes.last_chunk().expect("a footer"), bytes.len() as u64)? as usize;
    let mut chunks = Vec::new();
    for entry in pack::decode_trailer(header, &bytes[start..])?.entries {
        let frame = &bytes[entry.offset as usize..start];
        pack::scan_frame(frame)?;
        let mut raw = vec![0; usize::from(entry.raw_blocks) * 4096];
        CodecPool::new()
            .decode(entry.codec, pack::frame_body(frame, &entry)?, entry.id, &mut raw)
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
    Ok(entries)
}

fn library_reads(name: &str, bytes: &[u8]) -> Result<(), FormatError> {
    match name {
        "region" => region::decode(bytes).map(drop),
        "record" | "record-spilled" => record::decode(bytes).map(drop),
        "list" => record::decode_list(bytes).map(drop),
        "checkpoint" => checkpoint::decode(bytes).map(drop),
        "pack" => library_pack(bytes).map(drop),
        "segment" => library_segment(bytes).map(drop),
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
        "segment" => second::segment(bytes).map(drop),
        _ => second::manifest(bytes).map(drop),
    }
}

/// Makes checksums and hashes fit again, so that nothing is wrong with an object but what was changed in it.
fn reseal(name: &str, bytes: &mut [u8]) {
    let end = bytes.len() - 32;
    if name == "segment" {
        for page in bytes[..4 * 4096].chunks_mut(4096) {
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
        "segment" => "imgstore 2026-11 index segment v1",
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
fn frame_places(bytes: &[u8]) -> [usize; 3] {
    let len =
        |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]) as usize;
    let next = 64 + 12 + len(64);
    [64, next, next + 12 + len(next)]
}

fn reseal_frames(bytes: &mut [u8]) -> usize {
    let [first, next, trailer] = frame_places(bytes);
    for (at, end) in [(first, next), (next, trailer)] {
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
    let [first, next, trailer] = frame_places(&bytes);
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
        ("pack", "last entry's flags", footer - 1..footer),
        ("pack", "footer", footer + 24..footer + 32),
    ]);
    let last_page = 3 * 4096;
    table.extend([
        ("segment", "header page's begin", 48..56),
        ("segment", "header page's end", 4084..4092),
        ("segment", "entry's codec", 4096 + 46..4096 + 47),
        ("segment", "entry's flags", 4096 + 47..4096 + 48),
        ("segment", "page's end", 4096 + 4088..4096 + 4092),
        ("segment", "last page's end", last_page + 4088..last_page + 4092),
        ("segment", "unused entry", last_page + 30 * 48..last_page + 31 * 48),
        ("segment", "last unused entry", last_page + 84 * 48..last_page + 85 * 48),
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

/// Images, an instance and their ends, so that every operation is in the log. The snapshot `gone` is deleted
/// while a volume stands on it.
fn live_and_go(region: &Region, gone: SnapshotId, stays: SnapshotId) {
    let on = |number, name: &str, snapshot| {
        let mut image = image(number, false).0;
        image.name = name.to_owned();
        image.devices.truncate(1);
        if let DeviceTarget::Ebs(ebs) = &mut image.devices[0].target {
            ebs.snapshot_id = Some(snapshot);
        }
        image
    };
    let [first, second, third] = [on(1, "one", gone), on(2, "two", stays), on(3, "three", stays)];
    let volumes = vec![Volume { snapshot_id: Some(gone), ..disk(4, true).0 }, disk(5, false).0];
    let records = [
        vec![Op::RegisterImage(Box::new(first.clone())), Op::RegisterImage(Box::new(second.clone()))],
        vec![Op::RunInstance { instance: Box::new(instance().0), volumes }],
        vec![Op::DeregisterImage { id: first.id }, Op::DeleteSnapshot { id: gone }],
        vec![Op::DeregisterImage { id: second.id }, Op::RegisterImage(Box::new(third))],
    ];
    for operations in records {
        let account = account(5).0;
        region
            .commit::<_, OpsError>(account, |_| Ok((operations.clone(), ())))
            .expect("operations that apply");
    }
}

#[test]
fn records_stand_where_the_page_says() {
    let storage = Memory::new();
    let region = Region::create(Arc::new(storage.clone()), session(), &RegionOptions::named("log")).unwrap();
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
    let options = RegionOptions { pack_bytes: 16 << 10, ..RegionOptions::named("real") };
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
    live_and_go(&region, taken.pop().unwrap().0, taken[0].0);
    for kind in ["packs", "index", "manifests", "lists", "log", "checkpoints"] {
        let is_there = root.join(kind).read_dir().is_ok_and(|mut files| files.next().is_some());
        assert!(is_there, "the region has no {kind}");
    }

    let (header, last_record, catalog) = second::replay(&root).unwrap();
    assert_eq!(header.name, "real");
    assert_eq!(catalog, as_second(&region.catalog().unwrap()), "another state after the log");
    assert!(!catalog.images.is_empty() && !catalog.retained_manifests.is_empty());
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
        let options = RegionOptions { chunker, ..RegionOptions::named("cuts") };
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

#[test]
fn changes_of_images_and_snapshots_read_alike() {
    use imgstore::model::account::Permission;
    use imgstore::model::ids::ImageId;
    use imgstore::model::op::{ImageChange, SnapshotChange};
    let (image, snapshot) = (ImageId::from_random(7), SnapshotId::from_random(8));
    let permissions = vec![Permission::All, Permission::Account(AccountId::from_random(5))];
    let changes = [
        ImageChange::LaunchPermissions(permissions.clone()),
        ImageChange::Tags(vec![]),
        ImageChange::Deprecation(Some(60_000)),
        ImageChange::Disable,
        ImageChange::Enable,
        ImageChange::Protection(true),
    ];
    let mut ops: Vec<Op> = changes.into_iter().map(|change| Op::ModifyImage { id: image, change }).collect();
    let change = SnapshotChange::CreateVolumePermissions(permissions);
    ops.push(Op::ModifySnapshot { id: snapshot, change });
    let (bytes, _) = record::encode_list(&ops).unwrap();
    let (second, _) = second::envelope::<Vec<second::Op>>(&bytes, second::LIST).unwrap();
    assert_eq!(second.len(), ops.len());
    let second::Op::ModifyImage(_, second::ImageChange::Deprecation(at)) = &second[2] else {
        panic!("{second:?}")
    };
    assert_eq!(*at, Some(60_000));
    let second::Op::ModifySnapshot(_, second::SnapshotChange::CreateVolumePermissions(read)) = &second[6]
    else {
        panic!("{second:?}")
    };
    assert_eq!(read.len(), 2);
}
