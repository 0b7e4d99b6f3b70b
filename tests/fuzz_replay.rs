//! Replays what the fuzzer starts from and what it once found, without a fuzzer: the targets of `fuzz/` on
//! every committed seed and regression, and on a few thousand fixed mutations of each. So every ordinary
//! test run, on any toolchain, keeps the decoders from falling back. fuzz/README.md says how to fuzz.

#[path = "../fuzz/src/lib.rs"]
mod targets;
#[path = "../src/disk/formats/vmdk/sample.rs"]
#[allow(dead_code, reason = "the unit tests use the rest of it")]
mod vmdk_sample;

use imgstore::chunk::features::features as features_of;
use imgstore::chunk::frame::{Codec, CodecPool, chunk_id};
use imgstore::disk::DiskRead;
use imgstore::disk::bundle::manifest::{self as bundle, Manifest, Part};
use imgstore::disk::formats::{Limits, qcow2};
use imgstore::format::checkpoint::Checkpoint;
use imgstore::format::entry::Entry;
use imgstore::format::features::{self, slots_of};
use imgstore::format::segment::SegmentWriter;
use imgstore::format::{checkpoint, manifest, pack, record, region};
use imgstore::model::account::{AccountId, ClientToken, Permission, Resource, RetentionRule, Tag};
use imgstore::model::blockmap::{BlockMap, ChunkRef};
use imgstore::model::catalog::Catalog;
use imgstore::model::ids::{
    ChunkId, ImageId, InstanceId, ObjectHash, RegionId, ReservationId, RuleId, SessionId, SnapshotId,
    TemplateId, VolumeId,
};
use imgstore::model::image::*;
use imgstore::model::instance::*;
use imgstore::model::objects::*;
use imgstore::model::op::*;
use imgstore::model::region::{ChunkerParams, RegionHeader};
use imgstore::model::snapshot::{Snapshot, SnapshotSource, Template};
use imgstore::model::units::BLOCK_BYTES;
use imgstore::model::words::*;
use imgstore::ops::copy::{CopyOptions, CopyWhat};
use imgstore::ops::offer::Offer;
use imgstore::ops::source::Found;
use imgstore::pack::build::{PackBuilder, SealedPack};
use imgstore::serve::message::{Message, NewRegion, Welcome};
use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

/// Mutations of each file. Each costs tens of microseconds.
const MUTATIONS: u64 = 3000;
/// Those of sequences of operations, each of which costs milliseconds.
const SEQUENCES: u64 = 150;
/// All of seeds and regressions together: they are committed.
const BYTES_MAX: u64 = 200 << 10;

fn folder(kind: &str, target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(kind).join(target)
}

/// A folder's files by name; none if there is no such folder.
fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let Ok(listing) = fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<_> = listing.map(|entry| entry.expect("a readable folder").path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), fs::read(&path).expect("a readable file"))).collect()
}

/// A fixed sequence of numbers (splitmix64): the same mutations on every machine.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit.max(1) as u64).unwrap_or(0)
    }
}

/// One to four of: a flipped bit, an edge value, a cut, a removed, doubled or foreign piece.
fn mutate(seed: &[u8], other: &[u8], numbers: &mut Numbers) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=numbers.below(4) {
        // Half of all changes fall where the fields are rather than anywhere.
        let reach = if numbers.below(2) == 0 { bytes.len() } else { bytes.len().min(128) };
        let at = numbers.below(reach);
        let end = (at + 1 + numbers.below(64)).min(bytes.len());
        match numbers.below(8) {
            0..=2 if at < bytes.len() => bytes[at] ^= 1 << numbers.below(8),
            3 if at < bytes.len() => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][numbers.below(5)],
            4 if at < bytes.len() => bytes[at..end].fill([0, 0xff][numbers.below(2)]),
            5 => bytes.truncate(at),
            6 if at < bytes.len() => drop(bytes.drain(at..end)),
            _ => {
                let from = numbers.below(other.len());
                let piece = &other[from..(from + 1 + numbers.below(256)).min(other.len())];
                bytes.splice(at..at, piece.iter().copied());
            }
        }
    }
    bytes
}

/// Runs a target; on a panic keeps the input, so that it can be moved to the regressions.
fn run(name: &str, target: fn(&[u8]), input: &[u8], origin: &str) {
    targets::RUNS_ALL.store(true, Ordering::Relaxed);
    if catch_unwind(|| target(input)).is_err() {
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-replay-{name}"));
        fs::write(&kept, input).expect("a writable target folder");
        panic!("{name}: {origin} panicked; the input is kept in {}", kept.display());
    }
}

fn replay(name: &str) {
    let target = targets::TARGETS.iter().find(|target| target.0 == name).expect("a target").1;
    let seeds = files(&folder("seeds", name));
    assert!(!seeds.is_empty(), "no seeds in {}", folder("seeds", name).display());
    let inputs: Vec<_> = seeds.into_iter().chain(files(&folder("regressions", name))).collect();
    run(name, target, &[], "no bytes");
    for (place, (path, bytes)) in inputs.iter().enumerate() {
        run(name, target, bytes, &path.display().to_string());
        for number in 0..if name == "model" { SEQUENCES } else { MUTATIONS } {
            let mut numbers = Numbers(number);
            let other = &inputs[(place + numbers.below(inputs.len())) % inputs.len()].1;
            let mutated = mutate(bytes, other, &mut numbers);
            run(name, target, &mutated, &format!("mutation {number} of {}", path.display()));
        }
    }
}

macro_rules! replays {
    ($($target:ident)+) => {
        /// One test for each target, so that a failure is named by it.
        mod replayed {
            $(#[test]
            fn $target() {
                super::replay(stringify!($target));
            })+

            #[test]
            fn every_target() {
                assert_eq!(super::targets::TARGETS.map(|target| target.0), [$(stringify!($target)),+]);
            }
        }
    };
}

replays!(bundle changes checkpoint detect features frame free manifest message model ova pack qcow2 record region segment vdi vhd vhdx vmdk);

#[test]
fn seeds_and_regressions_are_small_and_each_belongs_to_a_target() {
    let mut total = 0;
    for kind in ["seeds", "regressions"] {
        let root = folder(kind, "");
        let known: Vec<_> = targets::TARGETS.iter().map(|target| folder(kind, target.0)).collect();
        for entry in fs::read_dir(&root).into_iter().flatten() {
            let path = entry.expect("a readable folder").path();
            assert!(known.contains(&path), "{} belongs to no target", path.display());
            total += files(&path).iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>();
        }
    }
    assert!(total <= BYTES_MAX, "{total} bytes of seeds and regressions");
}

/// The seeds must be valid objects: else the mutations would test refusals alone. Where no compressor had a
/// part, they are even the bytes that the library writes today, so that no format changes unseen.
#[test]
fn seeds_are_what_the_library_writes() {
    for (target, name, bytes) in seeds() {
        let stored = fs::read(folder("seeds", target).join(name)).unwrap_or_default();
        let valid = match target {
            "frame" => !stored.is_empty(),
            "pack" => stored.first_chunk().zip(stored.last_chunk()).is_some_and(|(header, footer)| {
                let start = pack::trailer_offset(footer, stored.len() as u64).map(|start| start as usize);
                start.is_ok_and(|start| pack::decode_trailer(header, &stored[start..]).is_ok())
            }),
            _ => stored == bytes,
        };
        assert!(valid, "seeds/{target}/{name}: write the seeds anew, see fuzz/README.md");
    }
}

/// As one record they apply, so that mutations of the seeds reach all that applying does.
#[test]
fn the_operations_of_the_seeds_are_all_and_apply() {
    let all: Vec<_> = makings().into_iter().chain(changes()).chain(endings()).collect();
    let mut kinds: Vec<_> = all.iter().map(std::mem::discriminant).collect();
    kinds.sort_by_key(|kind| format!("{kind:?}"));
    kinds.dedup();
    assert_eq!(kinds.len(), 22);
    let author = Author { account: AccountId::from_random(1), session: SESSION };
    let mut catalog = Catalog::default();
    for (op, sequence) in all.into_iter().zip(1..) {
        let ops = vec![op];
        let record = LogRecord { sequence, previous: HASH, nonce: [3; 16], time_ms: 1, author, ops };
        let applied = catalog.apply(&record);
        assert!(applied.is_ok(), "{applied:?}: {:?}", record.ops);
    }
}

#[test]
#[ignore = "writes the seeds anew"]
fn write_seeds() {
    for (target, name, bytes) in seeds() {
        let folder = folder("seeds", target);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(name), bytes).unwrap();
    }
}

const REGION: RegionId = RegionId([0xa1; 16]);
const SESSION: SessionId = SessionId([0x5e; 16]);
const HASH: ObjectHash = ObjectHash([0x4a; 32]);

/// A valid object of each kind, small and with every optional part both there and not.
fn seeds() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let mut seeds = Vec::new();
    let record_of = |body| {
        let author = Author { account: AccountId::from_random(1), session: SESSION };
        record::StoredRecord {
            sequence: 1,
            previous: HASH,
            nonce: [3; 16],
            time_ms: 1_795_000_000_000,
            author,
            body,
        }
    };
    let spilled = record::Body::Spilled { name: ListName { session: SESSION, number: 4 }, hash: HASH };
    let record_bytes = |body| record::encode(&record_of(body)).expect("it encodes").0;
    seeds.push(("record", "no-op", record_bytes(record::Body::Inline(vec![Op::NoOp]))));
    let every = || makings().into_iter().chain(changes()).chain(endings()).collect::<Vec<_>>();
    seeds.push(("record", "every-op", record_bytes(record::Body::Inline(every()))));
    seeds.push(("record", "spilled", record_bytes(spilled)));
    seeds.push(("record", "list", record::encode_list(&every()).expect("it encodes").0));

    let mut catalog = Catalog::default();
    let empty = Checkpoint { record_hash: HASH, catalog: catalog.clone() };
    seeds.push(("checkpoint", "empty", checkpoint::encode(&empty).expect("it encodes")));
    let made = makings().into_iter().chain(changes()).collect();
    let record = record_of(record::Body::Inline(Vec::new())).with_ops(made);
    catalog.apply(&record).expect("the operations apply");
    std::sync::Arc::make_mut(&mut catalog.fenced_sessions).insert(SessionId([9; 16]));
    let full = Checkpoint { record_hash: HASH, catalog };
    seeds.push(("checkpoint", "full", checkpoint::encode(&full).expect("it encodes")));

    let header = RegionHeader {
        id: REGION,
        name: "eu-home-1".into(),
        provider: AccountId::from_random(1),
        created_ms: 1_795_000_000_000,
        // Not the defaults: those may be tuned without a change of the format.
        chunker: ChunkerParams { min_blocks: 4, avg_blocks: 32, max_blocks: 64, zero_tail_bytes: 32 },
        zstd_level: 3,
        pack_bytes: 32 << 20,
    };
    seeds.push(("region", "region", region::encode(&header).expect("it encodes").0));

    let chunk = |start_block, blocks: u16| ChunkRef { start_block, blocks, id: id(start_block) };
    let map = |bytes, chunks| manifest::encode(&BlockMap::new(bytes, chunks).expect("a map")).0;
    seeds.push(("manifest", "zeros", map(1, vec![])));
    seeds.push(("manifest", "chunks", map(400 * 4096 - 7, vec![chunk(0, 4), chunk(4, 64), chunk(144, 256)])));
    seeds.push(("manifest", "largest", map(1 << 60, vec![chunk((1 << 48) - 1, 1)])));

    let text: Vec<u8> = b"all work and no play ".iter().copied().cycle().take(3 * BLOCK_BYTES).collect();
    let mut numbers = Numbers(7);
    let noise: Vec<u8> =
        std::iter::repeat_with(|| numbers.next().to_le_bytes()[0]).take(BLOCK_BYTES).collect();
    let mixed = [&text[..BLOCK_BYTES], &noise[..1000], &[0; BLOCK_BYTES - 1000]].concat();
    let codecs = CodecPool::new();
    let name = PackName { session: SESSION, number: 1 };
    let mut whole = PackBuilder::new(REGION, name, 0, Vec::new());
    let mut small = PackBuilder::new(REGION, name, 0, Vec::new());
    for (name, raw) in [("text", &text), ("noise", &noise), ("mixed", &mixed)] {
        let frame = codecs.encode(raw, chunk_id(raw), 3).expect("it encodes");
        whole.push(chunk_id(raw), &frame, None).expect("it fits");
        if name == "text" {
            small.push(chunk_id(raw), &frame, None).expect("it fits");
        }
        seeds.push(("frame", name, frame.body));
    }
    let (base, mut changed) = (chunk_id(&text), text.clone());
    changed[100..107].copy_from_slice(b"changed");
    let changed_id = chunk_id(&changed);
    let delta = codecs
        .encode_delta(&changed, changed_id, (base, &text), 3, 9999)
        .expect("it encodes")
        .expect("it is small");
    let other = PackName { number: 2, ..name };
    let mut with_delta = PackBuilder::new(REGION, name, 0, Vec::new());
    with_delta
        .push(chunk_id(&noise), &codecs.encode(&noise, chunk_id(&noise), 3).expect("it encodes"), None)
        .expect("it fits");
    with_delta.push(changed_id, &delta, Some(other)).expect("it fits");
    let features: Vec<_> = [&text, &noise, &mixed].into_iter().filter_map(|raw| features_of(raw)).collect();
    let bases: Vec<u64> = (0..features.len() as u64).collect();
    let slots = slots_of(&features, 0).into_iter();
    seeds.push(("features", "table", features::encode(REGION, &bases, slots).expect("slots ascend")));
    seeds.push(("features", "words", (0..240_u32).flat_map(|n| (n * 17_895_697).to_le_bytes()).collect()));
    for (name, builder) in [("three-frames", whole), ("one-frame", small), ("delta", with_delta)] {
        let SealedPack { bytes, .. } = builder.seal(0).expect("it seals");
        seeds.push(("pack", name, bytes));
    }

    for (name, entries, filter_pages) in
        [("empty", 0, 0), ("one-page", 3, 0), ("three-pages", 180, 0), ("filter", 180, 2)]
    {
        let mut writer = SegmentWriter::new(entries).with_filter_pages(filter_pages);
        let mut ids: Vec<_> = (0..entries as u64).map(id).collect();
        ids.sort_unstable();
        for id in ids {
            let pack = u32::from(id.0[0] % 2);
            let codec = Codec::Zstd;
            writer
                .push(Entry { id, pack, offset: 64, stored_len: 99, raw_blocks: 8, codec })
                .expect("ascending");
        }
        let packs = [1, 2].map(|number| PackName { session: SESSION, number });
        seeds.push(("segment", name, writer.finish(REGION, &packs).expect("it is small").0));
    }

    let vdi_head = [&[b'<'; 64][..], &[0x7f, 0x10, 0xda, 0xbe]].concat();
    let heads: [(&str, &[u8]); 7] = [
        ("qcow2", b"QFI\xfb\0\0\0\x03"),
        ("vmdk", b"KDMV\x01"),
        ("vmdk-descriptor", b"# Disk DescriptorFile\n"),
        ("vhd", b"conectix"),
        ("vhdx", b"vhdxfile"),
        ("vdi", &vdi_head),
        ("boot-sector", b"\xeb\x63\x90"),
    ];
    seeds.extend(heads.map(|(name, head)| ("detect", name, head.to_vec())));
    seeds.push(("qcow2", "zlib", qcow2_clusters(false)));
    seeds.push(("qcow2", "zstd", qcow2_clusters(true)));
    seeds.push(("qcow2", "subclusters", qcow2_subclusters()));
    seeds.extend(
        bundles().map(|(name, manifest)| ("bundle", name, bundle::encode(&manifest).expect("it encodes"))),
    );
    seeds.extend([("vmdk", "sparse", vmdk_sample::sparse()), ("vmdk", "stream", vmdk_sample::stream())]);
    use targets::archive::{DISK, OVF, SUMS, archive};
    let members = [("m.ovf", OVF.as_bytes()), ("disk.img", &DISK), ("m.mf", SUMS.as_bytes())];
    seeds.push(("ova", "archive", archive(&members)));
    seeds.push(("ova", "description", OVF.into()));
    // Two bytes an operation: take, delete, collect, take again; writers left half-done; taken for gone.
    seeds.push((
        "model",
        "reuse",
        vec![0, 0xf0, 0, 0x81, 3, 0, 4, 0, 0, 0xf0, 4, 1, 5, 60, 3, 1, 4, 0, 2, 0xf3, 0],
    ));
    seeds.push((
        "model",
        "half-done",
        vec![6, 0xf0, 0, 0xf0, 8, 1, 4, 0, 6, 0x70, 7, 0, 4, 3, 8, 0, 0, 0x70, 4, 0, 0],
    ));
    seeds.push((
        "model",
        "worn",
        vec![0, 0xf1, 0, 0x11, 3, 0, 4, 99, 0, 0xf4, 3, 0, 9, 255, 4, 2, 9, 99, 5, 200, 0],
    ));
    // On a medium that wears out, which the last byte says.
    let worn: [(&str, &[u8]); 6] = [
        ("rot-unlisted", &[0, 141, 15, 101, 218, 116, 12, 191, 238, 1, 5, 145, 1]),
        (
            "rot-killed-repair",
            &[2, 184, 15, 56, 0, 240, 3, 82, 12, 137, 10, 154, 206, 129, 174, 220, 4, 183, 1],
        ),
        ("rot-copy", &[2, 42, 1, 170, 15, 220, 2, 193, 10, 22, 4, 96, 1]),
        ("rot-half-done", &[2, 168, 6, 164, 10, 11, 10, 244, 3, 164, 1]),
        ("rot-map", &[0, 240, 1, 243, 12, 0x60, 14, 0, 4, 0, 14, 3, 4, 3, 1]),
        ("rot-index", &[6, 255, 164, 237, 12, 123, 1]),
    ];
    seeds.extend(worn.map(|(name, sequence)| ("model", name, sequence.to_vec())));
    seeds.push(("ova", "checksums", SUMS.into()));
    seeds.extend(lists_of_changes());
    use targets::sparse::{vdi, vhd_dynamic, vhd_fixed, vhdx};
    let files = [
        ("vhd", "dynamic", vhd_dynamic()),
        ("vhd", "fixed", vhd_fixed()),
        ("vhdx", "dynamic", vhdx()),
        ("vdi", "dynamic", vdi()),
    ];
    seeds.extend(files.map(|(target, name, file)| (target, name, file.encode())));
    seeds.extend(
        messages()
            .into_iter()
            .map(|(name, message)| ("message", name, message.encode().expect("it encodes"))),
    );
    seeds
}

/// What nbdinfo prints of dirty bitmaps, behind the length of the disk.
fn lists_of_changes() -> [(&'static str, &'static str, Vec<u8>); 3] {
    let printed = r#"[
{ "offset": 0, "length": 65536, "type": 0, "description": "clean"},
{ "offset": 65536, "length": 65536, "type": 1, "description": "dirty"},
{ "offset": 131072, "length": 917504, "type": 0, "description": "clean"},
{ "offset": 1048576, "length": 262144, "type": 1, "description": "dirty"},
{ "offset": 1310720, "length": 2883584, "type": 0, "description": "clean"}
]
"#;
    let odd = r#"[{"type":1,"length":3000,"description":"dirty","offset":0},
{"offset":3000,"length":1096,"type":0,"description":"\u0063lean"},{"offset":4096,"length":8704,"type":1,"description":"dirty"},
{"offset":12800,"length":1,"type":1,"description":"dirty"},{"offset":12801,"length":511,"type":0,"description":"clean"}]"#;
    let last = r#"[{"offset":0,"length":18446744073709551615,"type":1,"description":"dirty"}]"#;
    let seed = |len: u64, text: &str| [&len.to_le_bytes()[..], text.as_bytes()].concat();
    [
        ("changes", "nbdinfo", seed(4 << 20, printed)),
        ("changes", "odd", seed(13000, odd)),
        ("changes", "largest", seed(u64::MAX, last)),
    ]
}

/// They are lists of the disk that they stand behind, so that mutations reach what is behind the refusals.
#[test]
fn the_seeds_of_changes_are_taken() {
    for (_, name, bytes) in lists_of_changes() {
        let (len, text) = bytes.split_first_chunk().unwrap();
        let changes =
            imgstore::disk::changes::parse(std::str::from_utf8(text).unwrap(), u64::from_le_bytes(*len));
        assert!(changes.is_ok_and(|changes| changes.blocks() > 0), "{name}");
    }
}

/// One of each kind of message that has something in it.
fn messages() -> [(&'static str, Message); 8] {
    let what = CopyWhat::Image(ImageId::from_random(1));
    let found = Found {
        id: id(1),
        pack: PACK,
        offset: 64,
        stored_bytes: 900,
        raw_blocks: 3,
        is_delta: true,
        base: Some(7),
    };
    let offer = Offer {
        sequence: 9,
        image: Some(image(1, 1, None)),
        snapshots: vec![snapshot(1, true), snapshot(2, false)],
        template: None,
    };
    let create = Some(NewRegion { name: "far".into(), chunker: ChunkerParams::DEFAULT, zstd_level: 3 });
    [
        ("hello", Message::Hello { version: 1, create }),
        ("welcome", Message::Welcome(Welcome::nobody())),
        ("offered", Message::Offered(Box::new(offer))),
        ("locate", Message::Locate(vec![id(1), id(2)])),
        ("located", Message::Located(vec![found])),
        ("fetch", Message::Fetch(vec![(id(1), true), (id(2), false)])),
        (
            "pull",
            Message::Pull {
                region: REGION,
                name: "near".into(),
                what,
                options: CopyOptions { client_token: Some("once".into()), ..CopyOptions::default() },
                dry_run: true,
            },
        ),
        ("run", Message::Run(vec!["images".into(), "--json".into()])),
    ]
}

/// A file of version 3, without its refcounts: `cluster_bits`, the disk's bytes, the cluster of the L1 table,
/// the cluster of the L2 table.
fn qcow2_head(cluster_bits: u32, disk_bytes: u64, l1: u64, l2: u64) -> Vec<u8> {
    let cluster_bytes = 1_u64 << cluster_bits;
    let mut file = vec![0; (cluster_bytes * (l1.max(l2) + 1)) as usize];
    let words = [(24, disk_bytes), (40, l1 * cluster_bytes), (48, cluster_bytes)];
    for (at, word) in words.into_iter().chain([((l1 * cluster_bytes) as usize, l2 * cluster_bytes)]) {
        file[at..at + 8].copy_from_slice(&word.to_be_bytes());
    }
    let halves = [(0, 0x5146_49fb), (4, 3), (20, cluster_bits), (36, 1), (56, 1), (96, 4), (100, 112)];
    for (at, half) in halves {
        file[at..at + 4].copy_from_slice(&u32::to_be_bytes(half));
    }
    file
}

/// Clusters of 512 bytes: data, zeros with and without a place, compressed, compressed over a sector's end.
fn qcow2_clusters(is_zstd: bool) -> Vec<u8> {
    let mut file = qcow2_head(9, 9 * 512 + 99, 3, 4);
    if is_zstd {
        (file[79], file[104]) = (8, 1);
    }
    file.extend([5; 512]);
    file.extend([6; 512]);
    // 64 times "squeeze "; 512 times 0x77.
    let stored: &[u8] = if is_zstd {
        b"\x28\xb5\x2f\xfd\x60\x00\x01\x03\x10\x00\x77"
    } else {
        b"\x2b\x2e\x2c\x4d\x4d\xad\x4a\x55\x28\x1e\xa5\x47\x24\x0d\x00"
    };
    file.resize(7 * 512 + 3, 0);
    file.extend(stored);
    file.resize(8 * 512 - 3, 0);
    file.extend(stored);
    const COMPRESSED: u64 = 1 << 62;
    let across = COMPRESSED | 1 << 61 | (8 * 512 - 3);
    let entries =
        [(5 * 512) | (1 << 63), 6 * 512, 1, 0, (6 * 512) | 1, COMPRESSED | (7 * 512 + 3), across, 5 * 512];
    for (at, entry) in (4 * 512..).step_by(8).zip(entries) {
        file[at..at + 8].copy_from_slice(&u64::to_be_bytes(entry));
    }
    file
}

/// Extended entries, in as small a file as can be: one cluster is refcount table, L2 table and data.
fn qcow2_subclusters() -> Vec<u8> {
    const CLUSTER: u64 = 1 << 14;
    let mut file = qcow2_head(14, 3 * CLUSTER - 5, 2, 1);
    file.truncate(2 * CLUSTER as usize + 2048);
    file[79] = 16;
    let words = [CLUSTER, 0x5555_5555, 2 * CLUSTER, 0xff00_0000_0000_000f, 0, 0x0f00_0000_0000_0000];
    for (at, word) in (CLUSTER as usize..).step_by(8).zip(words) {
        file[at..at + 8].copy_from_slice(&word.to_be_bytes());
    }
    file
}

/// What mutations start from is read whole, so that they reach everything.
#[test]
fn the_qcow2_seeds_are_read() {
    for bytes in [qcow2_clusters(false), qcow2_clusters(true), qcow2_subclusters()] {
        let file = std::sync::Arc::new(targets::File(bytes));
        let disk = qcow2::open(file, Path::new("seed"), &Limits::default()).expect("it opens");
        let mut whole = vec![0; usize::try_from(disk.len_bytes()).expect("it is small")];
        disk.read_at(0, &mut whole).expect("it is read");
        assert!(whole.iter().any(|&byte| byte != 0));
    }
}

/// They are no fixed bytes, but what tools have written: each has a file system whose free blocks are taken.
#[test]
fn the_seeds_of_file_systems_are_taken() {
    for (path, bytes) in files(&folder("seeds", "free")) {
        use imgstore::disk::free::{Limits, Outcome, skip_free};
        let disk = Box::new(targets::sparse::Sparse::parse(&bytes));
        let (_, parts) = skip_free(disk, &Limits::default(), &|| false).expect("it is read");
        let is_taken = parts.iter().any(|part| matches!(part.outcome, Outcome::Skipped { .. }));
        assert!(is_taken, "{}: {}", path.display(), parts[0]);
    }
}

fn bundles() -> [(&'static str, Manifest); 3] {
    let zeros = Manifest {
        name: "zeros".into(),
        volume_bytes: 1,
        part_bytes: bundle::PART_BYTES,
        attributes: [].into(),
        parts: vec![],
    };
    let part = |number, raw_bytes, stored_bytes| Part { number, raw_bytes, stored_bytes, blake3: HASH };
    let parts = Manifest {
        name: "web-1.2_x".into(),
        volume_bytes: 5 * 4096 - 7,
        part_bytes: 4096,
        attributes: [("Name", "Zürich \"1\"\\\n\u{1}"), ("", "")].map(|(k, v)| (k.into(), v.into())).into(),
        parts: vec![part(0, 4096, 1), part(1, 4096, 4096 + 64 + 1024), part(4, 4089, 17)],
    };
    let largest = Manifest {
        name: "9".repeat(128),
        volume_bytes: 64 << 40,
        parts: vec![part((4 << 20) - 1, 16 << 20, 999)],
        ..zeros.clone()
    };
    [("zeros", zeros), ("parts", parts), ("largest", largest)]
}

fn id(number: u64) -> ChunkId {
    chunk_id(&number.to_le_bytes())
}

fn tags() -> Vec<Tag> {
    vec![Tag { key: "Name".into(), value: "web".into() }]
}

fn token() -> Option<ClientToken> {
    Some(ClientToken { token: "token".into(), request: HASH })
}

const PACK: PackName = PackName { session: SESSION, number: 1 };
const MANIFEST: ManifestRecord =
    ManifestRecord { name: ManifestName { session: SESSION, number: 1 }, len: 192, hash: HASH, chunks: 3 };
const STAY: BinStay = BinStay { since_ms: 5, until_ms: 9 };

/// Operations in an order in which they apply, after which something is in every table of a catalogue.
fn makings() -> Vec<Op> {
    let bases = vec![];
    let packed = PackRecord { name: PACK, len: 999, frames: 3, raw_bytes: 24576, trailer_hash: HASH, bases };
    let delta = PackRecord { name: PackName { number: 2, ..PACK }, bases: vec![PACK], ..packed.clone() };
    let segment = SegmentName { session: SESSION, number: 1 };
    let listed =
        SegmentRecord { name: segment, len: 8224, entries: 3, hash: HASH, replaces: vec![], partial: vec![] };
    let merged = SegmentRecord {
        name: SegmentName { number: 2, ..segment },
        replaces: vec![segment],
        ..listed.clone()
    };
    let create = |number, full, packs| {
        let snapshot = Box::new(snapshot(number, full));
        Op::CreateSnapshot { snapshot, packs }
    };
    let template = |number| {
        let template = Template {
            id: TemplateId::from_random(number),
            owner: AccountId::from_random(1),
            volume_bytes: 1 << 20,
            data_bytes: 24576,
            created_ms: 5,
            manifest: MANIFEST,
        };
        Op::CreateTemplate { template: Box::new(template), packs: vec![PACK] }
    };
    let register = |number, on, template| Op::RegisterImage(Box::new(image(number, on, template)));
    let run = |number, template, volumes| {
        let instance = Box::new(instance(number, template));
        Op::RunInstance { instance, volumes }
    };
    let deregister = |number, bin| Op::DeregisterImage { id: ImageId::from_random(number), bin };
    let delete = |number, bin| Op::DeleteSnapshot { id: SnapshotId::from_random(number), bin };
    vec![
        Op::NoOp,
        Op::RegisterPack(packed),
        Op::RegisterPack(delta),
        Op::RegisterSegment(listed),
        Op::RegisterSegment(merged),
        create(1, true, vec![PACK]),
        create(2, false, vec![]),
        create(3, false, vec![]),
        template(1),
        template(2),
        register(1, 1, Some(1)),
        register(2, 2, Some(2)),
        register(3, 3, None),
        run(1, 1, vec![volume(1, Some(1), Some(1)), volume(2, Some(3), None)]),
        run(2, 2, vec![]),
        Op::CreateVolume(Box::new(volume(3, None, Some(2)))),
        // Under a volume, and in the bin with its image.
        deregister(3, None),
        delete(3, None),
        deregister(2, Some(STAY)),
        delete(2, Some(STAY)),
    ]
}

/// Every change.
fn changes() -> Vec<Op> {
    let owner = AccountId::from_random(1);
    let rule = |id, resource| RetentionRule { id: RuleId::from_random(id), resource, days: 30, tags: tags() };
    let permissions = vec![Permission::All, Permission::Account(owner)];
    let images = [
        ImageChange::Tags(vec![]),
        ImageChange::Deprecation(None),
        ImageChange::Disable,
        ImageChange::Enable,
        ImageChange::LaunchPermissions(permissions.clone()),
        ImageChange::Protection(DeregistrationProtection::CoolingDown { until_ms: 9 }),
        ImageChange::Description("web".into()),
        ImageChange::ProductCodes(vec![]),
    ];
    let snapshots = [SnapshotChange::CreateVolumePermissions(permissions), SnapshotChange::Tags(vec![])];
    let accounts = [
        AccountChange::Alias(Some("lab".into())),
        AccountChange::BlockPublicImages(true),
        AccountChange::BlockPublicSnapshots(true),
        AccountChange::AddRule(rule(1, Resource::Image)),
        AccountChange::AddRule(rule(2, Resource::Snapshot)),
        AccountChange::RemoveRule(RuleId::from_random(1)),
    ];
    let volumes = [
        VolumeChange::Attachment(None),
        VolumeChange::Attachment(volume(3, None, Some(1)).attachment),
        VolumeChange::Tags(vec![]),
    ];
    let instances = [InstanceChange::Stop, InstanceChange::Start, InstanceChange::Tags(vec![])];
    let image = |change| Op::ModifyImage { id: ImageId::from_random(1), change };
    let snapshot = |change| Op::ModifySnapshot { id: SnapshotId::from_random(1), change };
    let account = |change| Op::ModifyAccount { account: owner, change };
    let volume = |change| Op::ModifyVolume { id: VolumeId::from_random(3), change };
    let instance = |change| Op::ModifyInstance { id: InstanceId::from_random(1), change };
    let mut ops: Vec<_> = images.map(image).into();
    ops.extend(snapshots.map(snapshot));
    ops.extend(accounts.map(account));
    ops.extend(volumes.map(volume));
    ops.extend(instances.map(instance));
    ops
}

/// Things come back from the bin, and end.
fn endings() -> Vec<Op> {
    let [first, second] = [1, 2].map(SnapshotId::from_random);
    let [one, two] = [1, 2].map(ImageId::from_random);
    let [runs, ran] = [1, 2].map(InstanceId::from_random);
    vec![
        Op::RestoreSnapshot { id: second },
        Op::RestoreImage { id: two },
        Op::DeregisterImage { id: two, bin: Some(STAY) },
        Op::DeleteSnapshot { id: second, bin: Some(STAY) },
        Op::ExpireImage { id: two },
        Op::ExpireSnapshot { id: second },
        Op::DeregisterImage { id: one, bin: None },
        Op::DeleteSnapshot { id: first, bin: None },
        Op::TerminateInstance { id: runs, at_ms: 7 },
        Op::ForgetInstance { id: runs },
        Op::TerminateInstance { id: ran, at_ms: 7 },
        Op::DeleteVolume { id: VolumeId::from_random(2) },
    ]
}

/// With every optional part, or without.
fn snapshot(number: u64, full: bool) -> Snapshot {
    let owner = AccountId::from_random(1);
    let source = SnapshotSource {
        region_id: REGION,
        region: "away".into(),
        snapshot_id: SnapshotId::from_random(77),
        sequence: 5,
    };
    Snapshot {
        id: SnapshotId::from_random(number),
        owner,
        description: "Zürich".into(),
        volume_bytes: 1 << 20,
        data_bytes: 24576,
        state: SnapshotState::Completed,
        created_ms: 5,
        tags: tags(),
        parent: full.then(|| SnapshotId::from_random(9)),
        volume: full.then(|| VolumeId::from_random(9)),
        source: full.then_some(source),
        create_volume_permissions: vec![Permission::All, Permission::Account(owner)],
        client_token: full.then(token).flatten(),
        manifest: MANIFEST,
    }
}

fn machine() -> Machine {
    Machine {
        architecture: Architecture::X86_64,
        platform: Some("windows".into()),
        virtualization_type: VirtualizationType::Hvm,
        boot_mode: Some(BootMode::Uefi),
        tpm_support: Some("v2.0".into()),
        ena_support: true,
        imds_support: None,
        kernel_id: None,
        ramdisk_id: None,
    }
}

fn image(number: u64, snapshot: u64, template: Option<u64>) -> Image {
    let owner = AccountId::from_random(1);
    let ebs = EbsBlockDevice {
        snapshot_id: Some(SnapshotId::from_random(snapshot)),
        volume_bytes: 1 << 20,
        volume_type: VolumeType::Gp3,
        iops: Some(3000),
        delete_on_termination: true,
    };
    let device = |name: &str, target| BlockDeviceMapping { device_name: name.into(), target };
    let source =
        ImageSource { region_id: REGION, region: "away".into(), image_id: ImageId::from_random(77), owner };
    Image {
        id: ImageId::from_random(number),
        name: format!("web {number}"),
        description: String::new(),
        owner,
        state: ImageState::Available,
        machine: machine(),
        root_device_name: "/dev/xvda".into(),
        template: template.map(TemplateId::from_random),
        devices: vec![
            device("/dev/xvdf", DeviceTarget::Ebs(ebs)),
            device("/dev/xvdb", DeviceTarget::Ephemeral(0)),
        ],
        launch_permissions: vec![Permission::Account(owner)],
        product_codes: vec!["code".into()],
        tags: tags(),
        created_ms: 5,
        deprecation_ms: Some(9),
        deregistration_protection: DeregistrationProtection::Disabled,
        source: Some(source),
        source_instance: Some(InstanceId::from_random(8)),
        predecessor: Some(ImageId::from_random(8)),
        client_token: token(),
    }
}

fn instance(number: u64, template: u64) -> Instance {
    let disk = |device_name: &str, template_id, ephemeral| LocalDisk {
        device_name: device_name.into(),
        volume_bytes: 1 << 20,
        template_id,
        ephemeral,
        path: format!("/vm/{number}{device_name}.raw"),
    };
    Instance {
        id: InstanceId::from_random(number),
        owner: AccountId::from_random(1),
        image_id: ImageId::from_random(number),
        reservation_id: ReservationId::from_random(1),
        launch_index: 0,
        state: InstanceState::Running,
        launched_ms: 5,
        terminated_ms: None,
        machine: machine(),
        product_codes: vec!["code".into()],
        root_device_name: "/dev/xvda".into(),
        local_disks: vec![
            disk("/dev/xvda", Some(TemplateId::from_random(template)), None),
            disk("/dev/xvdb", None, Some(0)),
        ],
        path: format!("/vm/{number}"),
        tags: tags(),
        client_token: token(),
    }
}

fn volume(number: u64, snapshot: Option<u64>, instance: Option<u64>) -> Volume {
    let attachment = |instance| Attachment {
        instance_id: InstanceId::from_random(instance),
        device_name: format!("/dev/sd{number}"),
        delete_on_termination: number == 1,
        attached_ms: 5,
    };
    Volume {
        id: VolumeId::from_random(number),
        owner: AccountId::from_random(1),
        volume_bytes: 1 << 20,
        volume_type: VolumeType::Gp3,
        iops: Some(3000),
        snapshot_id: snapshot.map(SnapshotId::from_random),
        created_ms: 5,
        attachment: instance.map(attachment),
        path: format!("/vm/{number}.raw"),
        tags: tags(),
        client_token: token(),
    }
}
