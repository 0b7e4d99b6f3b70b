//! What the fuzzer runs: for every decoder a function from arbitrary bytes to nothing, which panics when the
//! decoder, or a promise about it, breaks.
//!
//! Most objects end in a hash that no random bytes fit, so that a fuzzer alone would test the hash check and
//! nothing behind it. Each target therefore runs its input as it is and *repaired*: sealed anew, so that
//! what is behind the check sees hostile content, too. Besides never panicking, whatever decodes must
//! encode to the very same bytes: the store names objects by their hash, and a second spelling of one
//! object would be a second object.
//!
//! Of a target's cases, an execution of the fuzzer runs one, which the input's last byte chooses ([`runs`]): many
//! quick executions find more than few slow ones.
//!
//! These are plain functions and this file has no dependency that the root package does not have, because
//! `tests/fuzz_replay.rs` includes it: the ordinary tests replay seeds and past finds without a fuzzer.

use imgstore::chunk::frame::{BASE_ID_BYTES, Codec, CodecPool, FRAME_HEADER_BYTES, FrameError, chunk_id};
use imgstore::disk::bundle::is_bundle_name;
use imgstore::disk::bundle::manifest::{self as bundle_format, Manifest, Part};
use imgstore::disk::detect::{HEAD_BYTES, head_signatures};
use imgstore::disk::formats::vmdk as vmdk_format;
use imgstore::disk::formats::{
    Limits, qcow2 as qcow2_format, vdi as vdi_format, vhd as vhd_format, vhdx as vhdx_format,
};
use imgstore::disk::ova as ova_format;
use imgstore::disk::{DiskError, DiskRead, Extent};
use imgstore::format::entry::{ENTRY_BYTES, Entry, entry_id};
use imgstore::format::envelope::{self, HASH_BYTES, Kind, VERSION};
use imgstore::format::segment::{PAGE_BYTES, PAGE_ENTRIES, SEGMENT, SegmentHeader, SegmentWriter};
use imgstore::format::{checkpoint as checkpoint_format, manifest as manifest_format, pack as pack_format};
use imgstore::format::{
    filter as filter_format, record as record_format, region as region_format, segment as segment_format,
};
use imgstore::io::map::Bytes;
use imgstore::model::account::AccountId;
use imgstore::model::blockmap::Run;
use imgstore::model::catalog::Catalog;
use imgstore::model::ids::{ChunkId, ObjectHash, SessionId};
use imgstore::model::objects::{ManifestName, ManifestRecord, SegmentName, SegmentRecord};
use imgstore::model::op::{AccountChange, Author, BinStay, InstanceChange, LogRecord, Op, VolumeChange};
use imgstore::model::units::{BLOCK_BYTES, CHUNK_BLOCKS_MAX};
use imgstore::pack::scan::Scan;
use imgstore::pack::segment::Segment;
use imgstore::serve::message::Message;
use sparse::Sparse;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

pub mod archive;
pub mod changes;
pub mod features;
pub mod free;
pub mod model;
pub mod sparse;
pub mod wear;

/// A target's name and function.
pub type Target = (&'static str, fn(&[u8]));

/// Every target by its name: the name of its binary, of its seeds' folder and of its finds' folder.
pub const TARGETS: [Target; 20] = [
    ("bundle", bundle),
    ("changes", changes::changes),
    ("checkpoint", checkpoint),
    ("detect", detect),
    ("features", features::features),
    ("frame", frame),
    ("free", free::free),
    ("manifest", manifest),
    ("message", message),
    ("model", model::model),
    ("ova", ova),
    ("pack", pack),
    ("qcow2", qcow2),
    ("record", record),
    ("region", region),
    ("segment", segment),
    ("vdi", vdi),
    ("vhd", vhd),
    ("vhdx", vhdx),
    ("vmdk", vmdk),
];

/// Whether an execution runs all cases of its target, as tests do.
pub static RUNS_ALL: AtomicBool = AtomicBool::new(false);

/// Whether a case is to run: the input's last byte, modulo `of`, is among the case's numbers. So each lineage of inputs
/// grows with the case that it is for.
fn runs(data: &[u8], of: u8, numbers: impl IntoIterator<Item = u8>) -> bool {
    let number = data.last().map_or(0, |last| last % of);
    RUNS_ALL.load(Ordering::Relaxed) || numbers.into_iter().any(|it| it == number)
}

/// Whether all bytes are zero. Without an exit on the way this becomes vector instructions.
fn is_zeros(bytes: &[u8]) -> bool {
    bytes.iter().fold(0, |all, byte| all | byte) == 0
}

/// Manifests of bundles: parsed as they are and with the hash that fits, and made of the input's numbers.
pub fn bundle(data: &[u8]) {
    const SEAL: &[u8] = b"\"blake3\":\"";
    // Parts of a manifest that is made: more are more of the same.
    const PARTS: usize = 16;
    if runs(data, 8, [0]) {
        bundle_of(data);
    }
    if runs(data, 8, 1..5)
        && let Some(at) = data.windows(SEAL.len()).rposition(|piece| piece == SEAL)
    {
        let start = &data[..at + SEAL.len()];
        let seal = chunk_id(&[start, b"\"}"].concat()).to_string();
        bundle_of(&[start, seal.as_bytes(), b"\"}"].concat());
    }
    let numbers = data.as_chunks().0.iter().map(|&bytes| u64::from_le_bytes(bytes));
    let numbers: Vec<u64> = numbers.take(2 + 70).collect();
    let [volume_bytes, part_bytes, parts @ ..] = &numbers[..] else { return };
    let attributes = parts.iter().map(|part| (part.to_string(), part.to_string()));
    let is_there_and_back = |manifest: Manifest| {
        if let Ok(bytes) = bundle_format::encode(&manifest) {
            assert_eq!(bundle_format::parse(&bytes), Ok(manifest));
        }
    };
    if runs(data, 8, [5]) {
        is_there_and_back(Manifest {
            name: String::from_utf8_lossy(&data[..data.len().min(16)]).into_owned(),
            volume_bytes: *volume_bytes,
            part_bytes: *part_bytes,
            attributes: attributes.clone().take(70).collect(),
            parts: parts.iter().take(PARTS).map(|&number| part_of(number, number, number)).collect(),
        });
    }
    if !runs(data, 8, 6..8) {
        return;
    }
    // What is likely to be right.
    let mut fitting = Manifest {
        name: "name".into(),
        volume_bytes: volume_bytes % (64 << 20),
        part_bytes: part_bytes % (1 << 20) / 4096 * 4096,
        attributes: attributes.take(3).collect(),
        parts: Vec::new(),
    };
    for part in parts.iter().take(PARTS) {
        let number = fitting.parts.last().map_or(0, |last| last.number + 1) + (part >> 62);
        let raw_bytes = fitting.raw_bytes(number);
        if raw_bytes == 0 {
            break;
        }
        fitting.parts.push(part_of(number, raw_bytes, part % 1024 + 1));
    }
    is_there_and_back(fitting);
}

fn part_of(number: u64, raw_bytes: u64, stored_bytes: u64) -> Part {
    Part { number, raw_bytes, stored_bytes, blake3: ObjectHash([number.to_le_bytes()[0]; 32]) }
}

fn bundle_of(bytes: &[u8]) {
    let Ok(manifest) = bundle_format::parse(bytes) else { return };
    assert_eq!(bundle_format::encode(&manifest).as_deref(), Ok(bytes));
    assert!(is_bundle_name(&manifest.name) && manifest.is_name_of_file(&manifest.file_name()));
    let mut end = 0;
    for part in &manifest.parts {
        let name = manifest.part_name(part.number);
        assert!(manifest.is_name_of_file(&name) && !name.contains('/') && name != manifest.file_name());
        let start = part.number * manifest.part_bytes;
        assert!(start >= end && part.raw_bytes > 0 && part.raw_bytes <= manifest.part_bytes);
        end = start + part.raw_bytes;
    }
    assert!(end <= manifest.volume_bytes);
}

/// Checkpoints: decoded, encoded, and records put on top of them, as a reader does.
pub fn checkpoint(data: &[u8]) {
    for_envelopes(&checkpoint_format::CHECKPOINT, data, |bytes| {
        if let Ok(value) = checkpoint_format::decode(bytes) {
            let again = checkpoint_format::encode(&value).expect("what decoded encodes");
            assert_eq!(again, bytes);
            // What follows from the tables is made when they are read, whatever they say. Operations on tables
            // that contradict themselves must end well, and no more.
            assert_eq!(value.catalog.clone().with_derived(), value.catalog);
            let ops = endings(&value.catalog);
            apply(value.catalog, ops, |_| ());
        }
    });
}

/// Operations that bring things back from the bin and end what is there, of each kind a few.
fn endings(catalog: &Catalog) -> Vec<Op> {
    const EACH: usize = 4;
    let stay = BinStay { since_ms: 0, until_ms: u64::MAX };
    let mut ops = vec![Op::NoOp];
    // Of what is in the bin every second thing comes back.
    let binned = catalog.binned_snapshots.keys().take(EACH);
    ops.extend(binned.clone().step_by(2).map(|&id| Op::RestoreSnapshot { id }));
    for &id in catalog.binned_images.keys().take(EACH) {
        ops.extend([Op::RestoreImage { id }, Op::ExpireImage { id }]);
    }
    ops.extend(binned.map(|&id| Op::ExpireSnapshot { id }));
    for (&id, image) in catalog.images.iter().take(EACH) {
        ops.extend([Op::DeregisterImage { id, bin: Some(stay) }, Op::RegisterImage(Box::new(image.clone()))]);
        ops.extend(image.snapshot_ids().map(|id| Op::DeleteSnapshot { id, bin: Some(stay) }));
        ops.extend([Op::ExpireImage { id }, Op::DeregisterImage { id, bin: None }]);
    }
    for &id in catalog.volumes.keys().skip(1).take(EACH) {
        ops.push(Op::ModifyVolume { id, change: VolumeChange::Attachment(None) });
    }
    for &id in catalog.instances.keys().take(EACH) {
        for change in [InstanceChange::Stop, InstanceChange::Start] {
            ops.push(Op::ModifyInstance { id, change });
        }
        ops.extend([Op::TerminateInstance { id, at_ms: 1 }, Op::ForgetInstance { id }]);
    }
    ops.extend(catalog.snapshots.keys().take(EACH).map(|&id| Op::DeleteSnapshot { id, bin: None }));
    ops.extend(catalog.volumes.keys().take(EACH).map(|&id| Op::DeleteVolume { id }));
    ops.extend(catalog.roots().take(EACH).map(|root| {
        let by = ManifestRecord {
            name: ManifestName { number: 7, ..root.manifest.name },
            ..root.manifest.clone()
        };
        Op::ReplaceManifest { lost: root.manifest.name, by }
    }));
    for &name in catalog.packs.keys().rev().take(EACH) {
        let packs = || vec![name];
        ops.extend([
            Op::CondemnPacks { packs: packs(), at_ms: 1 },
            Op::QuarantinePacks { packs: packs(), at_ms: 1 },
            Op::SweepPacks { packs: packs() },
            Op::ForgetPacks { packs: packs() },
        ]);
    }
    ops.push(Op::FenceSessions {
        sessions: catalog.packs.keys().map(|name| name.session).take(EACH).collect(),
    });
    for (&account, settings) in catalog.accounts.iter().take(EACH) {
        let rules = settings.retention_rules.iter().take(EACH).map(|rule| AccountChange::RemoveRule(rule.id));
        let changes = rules.chain([AccountChange::Alias(None)]);
        ops.extend(changes.map(|change| Op::ModifyAccount { account, change }));
    }
    ops
}

/// Signatures of foreign disk formats: no more than the head decides.
pub fn detect(data: &[u8]) {
    const VDI: [u8; 68] = {
        let mut vdi = [b'<'; 68];
        [vdi[64], vdi[65], vdi[66], vdi[67]] = 0xbeda_107f_u32.to_le_bytes();
        vdi
    };
    const SIGNATURES: [&[u8]; 7] =
        [b"QFI\xfb", b"KDMV", b"COWD", b"# Disk DescriptorFile", b"vhdxfile", b"conectix", &VDI];
    let head = &data[..data.len().min(HEAD_BYTES)];
    if runs(data, 15, [0]) {
        let found = head_signatures(data);
        assert_eq!(found, head_signatures(head));
        assert!(found.iter().all(|format| !format.as_str().is_empty()));
    }
    // Repaired: each signature before the input, so that every length after one is met, and cut at its end.
    for (signature, number) in SIGNATURES.into_iter().zip((1..).step_by(2)) {
        if runs(data, 15, [number]) {
            assert!(!head_signatures(&[signature, head].concat()).is_empty());
        }
        if runs(data, 15, [number + 1]) {
            let cut = signature.len().min(data.len());
            head_signatures(&[&signature[..cut], head].concat());
        }
    }
}

/// A file of these bytes, for the readers of disk formats.
pub struct File(pub Vec<u8>);

impl DiskRead for File {
    fn len_bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn extent_at(&self, offset: u64) -> Result<Extent, DiskError> {
        Ok(Extent { start: offset, end: self.len_bytes(), is_zero: false })
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        let at = usize::try_from(offset).expect("inside the file");
        buffer.copy_from_slice(&self.0[at..][..buffer.len()]);
        Ok(())
    }
}

/// Reads a foreign disk by its extents and across them: each ends after its start and inside the disk, and
/// what is said to be zeros reads as zeros.
fn read_disk(disk: &dyn DiskRead) {
    const STEPS: usize = 64;
    const PIECE: usize = 16 << 10;
    let mut buffer = vec![0; PIECE];
    let mut at = 0;
    for _ in 0..STEPS {
        let Ok(extent) = disk.extent_at(at) else { return };
        assert!(extent.start == at && extent.end > at && extent.end <= disk.len_bytes());
        let inside = usize::try_from(extent.end - at).unwrap_or(PIECE).min(PIECE);
        if disk.read_at(at, &mut buffer[..inside]).is_ok() && extent.is_zero {
            assert!(is_zeros(&buffer[..inside]));
        }
        // Over the extent's end into the next.
        let start = extent.end.saturating_sub(700).max(at);
        let across = usize::try_from(disk.len_bytes() - start).unwrap_or(PIECE).min(1500);
        let _ = disk.read_at(start, &mut buffer[..across]);
        if extent.end == disk.len_bytes() {
            break;
        }
        at = extent.end;
    }
    assert!(disk.read_at(disk.len_bytes(), &mut buffer[..1]).is_err());
}

/// qcow2 files: the bytes as they are, and with a header that fits, so that the tables are reached.
pub fn qcow2(data: &[u8]) {
    if runs(data, 8, [0]) {
        qcow2_of(data.to_vec());
    }
    let mut repaired = data.to_vec();
    if runs(data, 8, 1..8)
        && let Some(header) = repaired.first_chunk_mut::<72>()
    {
        header[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        header[8..20].fill(0);
        header[20..24].copy_from_slice(&9_u32.to_be_bytes());
        header[24..29].fill(0);
        header[32..36].fill(0);
        header[36..40].copy_from_slice(&8_u32.to_be_bytes());
        header[60..64].fill(0);
        for (at, cluster) in [(40, 3_u64), (48, 1)] {
            header[at..at + 8].copy_from_slice(&(cluster * 512).to_be_bytes());
        }
        header[56..60].copy_from_slice(&1_u32.to_be_bytes());
        qcow2_of(repaired);
    }
}

fn qcow2_of(bytes: Vec<u8>) {
    let limits = Limits { virtual_bytes: 64 << 20, metadata_bytes: 64 << 10 };
    if let Ok(disk) = qcow2_format::open(Arc::new(File(bytes)), Path::new("fuzz.qcow2"), &limits) {
        assert!(disk.len_bytes() > 0 && disk.len_bytes() <= limits.virtual_bytes);
        assert!(disk.notes().len() <= 2);
        read_disk(&disk);
    }
}

/// Frames: the bytes as a zstd frame, as what follows the header of one, and as one block in it; then as
/// content that must come back, also from a frame with a flipped bit.
pub fn frame(data: &[u8]) {
    // Contexts are made once, and used again, as they are by readers and writers.
    static POOL: LazyLock<CodecPool> = LazyLock::new(CodecPool::new);
    let pool = &*POOL;
    let selector = data.first().copied().unwrap_or(0);
    let blocks = 1 + usize::from(selector % 8);
    if runs(data, 16, 0..4) {
        let declared = zstd::zstd_safe::get_frame_content_size(data).ok().flatten();
        let declared = declared.and_then(|size| usize::try_from(size).ok()).filter(|&size| size <= 1 << 21);
        frame_body_of(pool, data, declared.unwrap_or(blocks * BLOCK_BYTES));
    }

    let rest = data.get(1..).unwrap_or_default();
    let Ok(raw_len) = u32::try_from(blocks * BLOCK_BYTES) else { return };
    // Magic, then the descriptor: a single segment whose content size has four bytes.
    let header = [&[0x28, 0xb5, 0x2f, 0xfd, 0xa0][..], &raw_len.to_le_bytes()].concat();
    if runs(data, 16, 4..8) {
        frame_body_of(pool, &[&header, rest].concat(), blocks * BLOCK_BYTES);
    }
    if runs(data, 16, 8..14)
        && let Ok(len) = u32::try_from(rest.len().min(128 << 10))
    {
        // The last block, compressed.
        let block_header = (1 | 2 << 1 | len << 3).to_le_bytes();
        let body = &rest[..len as usize];
        frame_body_of(pool, &[&header, &block_header[..3], body].concat(), blocks * BLOCK_BYTES);
    }

    let mut raw = data[..data.len().min(8 * BLOCK_BYTES)].to_vec();
    raw.resize(raw.len().next_multiple_of(BLOCK_BYTES).max(BLOCK_BYTES), selector);
    // Compressing takes many times as long as what it is to show, so it is rarer.
    if runs(data, 16, [14]) {
        delta_of(pool, &raw, selector);
    }
    if runs(data, 16, [15]) {
        let id = chunk_id(&raw);
        let mut encoded = pool.encode(&raw, id, i32::from(selector % 14)).expect("whole blocks encode");
        let mut decoded = vec![0; raw.len()];
        pool.decode(encoded.codec, &encoded.body, id, None, &mut decoded).expect("what was encoded decodes");
        assert_eq!(decoded, raw);
        let at = data.iter().fold(0usize, |at, &byte| at.wrapping_mul(31).wrapping_add(usize::from(byte)));
        let at = at % encoded.body.len();
        encoded.body[at] ^= 1 << (selector % 8);
        if pool.decode(encoded.codec, &encoded.body, id, None, &mut decoded).is_ok() {
            assert_eq!(decoded, raw, "damage gave other content");
        }
    }
}

/// Content against a base that it is a changed copy of: it comes back, and from a damaged delta nothing else does.
fn delta_of(pool: &CodecPool, raw: &[u8], selector: u8) {
    let mut base = raw.to_vec();
    base[usize::from(selector)..].iter_mut().step_by(977).for_each(|byte| *byte = byte.wrapping_add(1));
    let (id, base_id) = (chunk_id(raw), chunk_id(&base));
    let level = i32::from(selector % 14);
    let encoded =
        pool.encode_delta(raw, id, (base_id, &base), level, usize::MAX).expect("whole blocks encode");
    let Some(mut delta) = encoded else { return };
    let mut decoded = vec![0; raw.len()];
    pool.decode(delta.codec, &delta.body, id, Some(&base), &mut decoded).expect("what was encoded decodes");
    assert_eq!(decoded, raw);
    assert!(matches!(
        pool.decode(delta.codec, &delta.body, id, None, &mut decoded),
        Err(FrameError::Base { base, .. }) if base == base_id
    ));
    let at = BASE_ID_BYTES + usize::from(selector) % (delta.body.len() - BASE_ID_BYTES);
    delta.body[at] ^= 1 << (selector % 8);
    if pool.decode(delta.codec, &delta.body, id, Some(&base), &mut decoded).is_ok() {
        assert_eq!(decoded, raw, "damage gave other content");
    }
}

fn frame_body_of(pool: &CodecPool, body: &[u8], raw_len: usize) {
    let nobody = ChunkId([0; 32]);
    let mut raw = vec![0; raw_len];
    // As a delta on some base: what it decodes to is some content, or nothing.
    static BASE: LazyLock<Vec<u8>> =
        LazyLock::new(|| (0..2 * BLOCK_BYTES).map(|at| (at / 16) as u8).collect());
    let against = [&[7; BASE_ID_BYTES][..], body].concat();
    if let Err(FrameError::Content { found, .. }) =
        pool.decode(Codec::Delta, &against, nobody, Some(&BASE), &mut raw)
    {
        assert_eq!(found, chunk_id(&raw));
    }
    for codec in [Codec::Zstd, Codec::Raw] {
        // What decodes says which content it is; as that one it must decode again, and encode.
        let Err(FrameError::Content { found, .. }) = pool.decode(codec, body, nobody, None, &mut raw) else {
            continue;
        };
        assert_eq!(found, chunk_id(&raw));
        let mut again = vec![0xff; raw_len];
        pool.decode(codec, body, found, None, &mut again).expect("it has the id that was found");
        assert_eq!(again, raw);
        let encoded = pool.encode(&raw, found, 1).expect("what decoded encodes");
        again.fill(0xff);
        pool.decode(encoded.codec, &encoded.body, found, None, &mut again).expect("what was encoded decodes");
        assert_eq!(again, raw);
    }
}

/// Manifests, and the runs of a map that decodes.
pub fn manifest(data: &[u8]) {
    const HEADER: usize = manifest_format::HEADER_BYTES;
    if runs(data, 8, [0]) {
        manifest_of(data);
    }
    let mut bytes = data.to_vec();
    if runs(data, 8, 1..4) && seal_end(&manifest_format::MANIFEST, &mut bytes) {
        manifest_of(&bytes);
    }
    // Repaired wholly: only volume length and chunks are the input's.
    bytes.truncate(bytes.len().saturating_sub(HASH_BYTES));
    if bytes.len() < HEADER || !runs(data, 8, 4..8) {
        return;
    }
    let chunks = (bytes.len() - HEADER) / manifest_format::CHUNK_REF_BYTES;
    bytes.truncate(HEADER + chunks * manifest_format::CHUNK_REF_BYTES);
    preamble(&manifest_format::MANIFEST, &mut bytes);
    bytes[12..16].fill(0);
    bytes[24..32].copy_from_slice(&(chunks as u64).to_le_bytes());
    bytes[32..40].fill(0);
    bytes.extend([0; HASH_BYTES]);
    seal_end(&manifest_format::MANIFEST, &mut bytes);
    manifest_of(&bytes);
}

fn manifest_of(bytes: &[u8]) {
    let Ok((map, hash)) = manifest_format::decode(bytes) else { return };
    assert_eq!(manifest_format::encode(&map), (bytes.to_vec(), hash));
    assert!(map.data_bytes() <= map.volume_bytes());
    let end = map.runs().fold(0, |at, run| {
        let (start, blocks) = match run {
            Run::Zero { start_block, blocks } => (start_block, blocks),
            Run::Chunk(chunk) => (chunk.start_block, u64::from(chunk.blocks)),
        };
        assert!(start == at && blocks > 0, "a gap, or an empty run");
        start + blocks
    });
    assert_eq!(end, map.volume_blocks());
}

/// Packs: header, footer, trailer, the frames by scanning and the frames by the trailer.
pub fn pack(data: &[u8]) {
    if runs(data, 8, [0]) {
        pack_of(data);
    }
    let mut bytes = data.to_vec();
    if runs(data, 8, 1..6) {
        seal_frames(&mut bytes);
    }
    if runs(data, 8, 1..3) && seal_trailer(&mut bytes) {
        pack_of(&bytes);
    }
    // Repaired wholly: the trailer lists exactly the frames that the input holds, if it holds any.
    if runs(data, 8, 3..6) && bytes.len() >= pack_format::HEADER_BYTES {
        preamble(&pack_format::PACK, &mut bytes);
        bytes[12..16].fill(0);
        bytes[56..64].fill(0);
        relist(&mut bytes, data);
        seal_trailer(&mut bytes);
        pack_of(&bytes);
    }
    // The input as entries alone, behind frames that are not there.
    if runs(data, 8, 6..8) {
        let mut entries = vec![0; pack_format::HEADER_BYTES];
        preamble(&pack_format::PACK, &mut entries);
        let len = data.len() / ENTRY_BYTES * ENTRY_BYTES;
        let table: Vec<[u8; ENTRY_BYTES]> = data[..len].as_chunks().0.to_vec();
        end_to_end(&mut entries, table);
        pack_of(&entries);
    }
}

fn pack_of(bytes: &[u8]) {
    let header = bytes.first_chunk::<{ pack_format::HEADER_BYTES }>();
    if let Some(Ok((region, name))) = header.map(pack_format::decode_header) {
        assert_eq!(Some(&pack_format::encode_header(region, name)), header);
    }
    scan(bytes);
    scan(bytes.get(pack_format::HEADER_BYTES..).unwrap_or_default());
    let (Some(header), Some(footer)) = (header, bytes.last_chunk()) else { return };
    // By what the footer says, and wherever the trailer may be instead.
    let declared = pack_format::trailer_offset(footer, bytes.len() as u64).ok().map(|offset| offset as usize);
    for start in [declared, Some(pack_format::HEADER_BYTES), Some(0)].into_iter().flatten() {
        let stored = &bytes[start..];
        let Ok(trailer) = pack_format::decode_trailer(header, stored) else { continue };
        let offset = u32::from_le_bytes([footer[12], footer[13], footer[14], footer[15]]);
        let mut entries = trailer.entries.clone();
        let mut deltas: Vec<_> =
            trailer.deltas().map(|(entry, base)| (entry.id, begins_with(base))).collect();
        let again = pack_format::encode_trailer(header, &mut entries, &mut deltas, offset, trailer.effort);
        let again = again.expect("what decoded encodes");
        assert_eq!(again, (stored.to_vec(), trailer.hash));
        let raw: u64 = entries.iter().map(|e| u64::from(e.raw_blocks) * BLOCK_BYTES as u64).sum();
        assert_eq!((entries, trailer.raw_bytes), (trailer.entries.clone(), raw));
        for entry in &trailer.entries {
            assert_eq!(Ok(*entry), Entry::decode(&entry.encode()));
            frame_at(bytes, entry);
        }
    }
}

/// A chunk's id with these leading bytes.
fn begins_with(leading: u64) -> ChunkId {
    let mut id = [0; 32];
    id[..8].copy_from_slice(&leading.to_be_bytes());
    ChunkId(id)
}

fn frame_at(bytes: &[u8], entry: &Entry) {
    let frame = bytes.get(entry.offset as usize..).unwrap_or_default();
    let Ok(body) = pack_format::frame_body(frame, entry) else { return };
    assert_eq!(body.len(), entry.stored_len as usize);
    // An index may name a frame with an empty body, which no writer makes and a scan refuses.
    if !body.is_empty() && body.len() <= pack_format::BODY_BYTES_MAX {
        let (scanned, len) = pack_format::scan_frame(frame).expect("what an index finds a scan finds");
        assert_eq!((scanned.body.as_slice(), len), (body, FRAME_HEADER_BYTES + body.len()));
        assert_eq!((scanned.codec, scanned.raw_blocks), (entry.codec, entry.raw_blocks));
    }
}

/// Frames one behind the other; and those that are found behind what is none stand there, in their order.
fn scan(mut bytes: &[u8]) {
    let mut found = Scan::new(bytes);
    while let Ok((frame, len)) = pack_format::scan_frame(bytes) {
        assert_eq!(frame.stored_bytes(), len as u64);
        let header = pack_format::encode_frame_header(&frame).expect("what decoded encodes");
        assert_eq!([&header[..], &frame.body].concat(), bytes[..len]);
        assert_eq!(pack_format::claimed_len(bytes), Some(len));
        assert_eq!(found.next(), Some(frame));
        bytes = &bytes[len..];
    }
    for frame in found {
        let header = pack_format::encode_frame_header(&frame).expect("what decoded encodes");
        let whole = [&header[..], &frame.body].concat();
        let at = bytes.windows(whole.len()).position(|there| there == whole).expect("it stands there");
        bytes = &bytes[at + whole.len()..];
    }
}

/// Gives every frame, as the lengths lead from one to the next, the checksum that fits it. The first length
/// that leads out of the bytes ends that: behind the last frame there is the trailer.
fn seal_frames(bytes: &mut [u8]) {
    for (start, len) in frame_places(bytes) {
        let frame = &mut bytes[start..start + len];
        let crc = crc32c::crc32c_append(crc32c::crc32c(&frame[..8]), &frame[FRAME_HEADER_BYTES..]);
        frame[8..FRAME_HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
    }
}

fn frame_places(bytes: &[u8]) -> Vec<(usize, usize)> {
    let end = bytes.last_chunk::<{ pack_format::FOOTER_BYTES }>().map_or(bytes.len(), |footer| {
        let offset = u32::from_le_bytes([footer[12], footer[13], footer[14], footer[15]]) as usize;
        offset.min(bytes.len() - pack_format::FOOTER_BYTES)
    });
    let mut places = Vec::new();
    let mut at = pack_format::HEADER_BYTES;
    while let Some(header) = bytes.get(at..).and_then(|rest| rest.first_chunk::<FRAME_HEADER_BYTES>()) {
        let len =
            FRAME_HEADER_BYTES + u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
        if at + len > end {
            break;
        }
        places.push((at, len));
        at += len;
    }
    places
}

/// Replaces everything behind the last frame by a trailer that lists the frames, under ids from the input.
fn relist(bytes: &mut Vec<u8>, data: &[u8]) {
    let places = frame_places(bytes);
    let end = places.last().map_or(pack_format::HEADER_BYTES, |(start, len)| start + len);
    let mut table: Vec<[u8; ENTRY_BYTES]> = Vec::new();
    for (number, (start, len)) in (0u32..).zip(places) {
        let Ok(offset) = u32::try_from(start) else { return };
        let mut entry = [0; ENTRY_BYTES];
        entry[..4].copy_from_slice(&number.to_be_bytes());
        entry[4] = data.get(start).copied().unwrap_or(0);
        entry[36..40].copy_from_slice(&offset.to_le_bytes());
        entry[40..44].copy_from_slice(&bytes[start..start + 4]);
        entry[44..48].copy_from_slice(&bytes[start + 4..start + 8]);
        debug_assert!(len >= FRAME_HEADER_BYTES);
        table.push(entry);
    }
    bytes.truncate(end);
    footer(bytes, &table, end);
}

/// Adds a trailer of these entries with offsets that lie end to end, whatever frames those would be.
fn end_to_end(bytes: &mut Vec<u8>, mut table: Vec<[u8; ENTRY_BYTES]>) {
    let mut offset = bytes.len();
    for entry in &mut table {
        let Ok(at) = u32::try_from(offset) else { return };
        entry[32..36].fill(0);
        entry[36..40].copy_from_slice(&at.to_le_bytes());
        entry[42..44].fill(0);
        entry[45] &= 1;
        entry[46] %= 3;
        entry[47] = 0;
        offset += FRAME_HEADER_BYTES + usize::from(u16::from_le_bytes([entry[40], entry[41]]));
    }
    sort(&mut table);
    footer(bytes, &table, offset);
    seal_trailer(bytes);
}

/// Sorts entries by their ids, as numbers: libFuzzer traces each comparison of byte strings.
fn sort(table: &mut [[u8; ENTRY_BYTES]]) {
    table.sort_unstable_by_key(|entry| {
        let (halves, _) = entry.as_chunks();
        (u128::from_be_bytes(halves[0]), u128::from_be_bytes(halves[1]))
    });
}

fn footer(bytes: &mut Vec<u8>, table: &[[u8; ENTRY_BYTES]], offset: usize) {
    let (Ok(offset), Ok(frames)) = (u32::try_from(offset), u32::try_from(table.len())) else { return };
    bytes.extend(table.as_flattened());
    // For each delta something as its base.
    let deltas: Vec<_> = table.iter().filter(|entry| entry[46] == 2).collect();
    deltas.iter().for_each(|entry| bytes.extend(&entry[24..32]));
    bytes.extend(b"IMGSPEND");
    bytes.extend(frames.to_le_bytes());
    bytes.extend(offset.to_le_bytes());
    let blocks = table.iter().map(|e| u64::from(u16::from_le_bytes([e[44], e[45]]))).sum::<u64>();
    bytes.extend((blocks * BLOCK_BYTES as u64).to_le_bytes());
    bytes.extend(u32::try_from(deltas.len()).unwrap_or(0).to_le_bytes());
    bytes.extend([0; 4 + HASH_BYTES]);
}

/// Gives a trailer that ends the bytes, and starts where its footer's count of entries says, its hash.
fn seal_trailer(bytes: &mut [u8]) -> bool {
    let len = bytes.len();
    if len < pack_format::HEADER_BYTES + pack_format::FOOTER_BYTES {
        return false;
    }
    let footer = &bytes[len - pack_format::FOOTER_BYTES..];
    let u32_at = |at: usize| u32::from_le_bytes([footer[at], footer[at + 1], footer[at + 2], footer[at + 3]]);
    let tables = u32_at(8) as usize * ENTRY_BYTES + u32_at(24) as usize * pack_format::BASE_BYTES;
    let Some(start) = len.checked_sub(pack_format::FOOTER_BYTES + tables) else { return false };
    let header = &bytes[..pack_format::HEADER_BYTES];
    let hash = pack_format::PACK.hash(&[header, &bytes[start..len - HASH_BYTES]]);
    bytes[len - HASH_BYTES..].copy_from_slice(&hash.0);
    true
}

/// Log records and lists, and the catalogue that their operations are applied to.
pub fn record(data: &[u8]) {
    // The kind is as the input's other choices, and independent of them.
    let is_list = data.last().is_some_and(|last| last & 0x10 != 0);
    if !is_list || RUNS_ALL.load(Ordering::Relaxed) {
        records(data);
    }
    if is_list || RUNS_ALL.load(Ordering::Relaxed) {
        lists(data);
    }
}

fn records(data: &[u8]) {
    for_envelopes(&record_format::RECORD, data, |bytes| {
        if let Ok((value, hash)) = record_format::decode(bytes) {
            assert_eq!(record_format::encode(&value), Ok((bytes.to_vec(), hash)));
            if let record_format::Body::Inline(ops) = value.body.clone() {
                let record = value.with_ops(ops);
                // On its own, as the first of a log, and each operation by itself.
                let mut catalog = Catalog::default();
                if catalog.apply(&record).is_ok() {
                    is_whole(&catalog);
                }
                apply(Catalog::default(), record.ops, is_whole);
            }
        }
    });
}

fn lists(data: &[u8]) {
    for_envelopes(&record_format::LIST, data, |bytes| {
        if let Ok((ops, hash)) = record_format::decode_list(bytes) {
            assert_eq!(record_format::encode_list(&ops), Ok((bytes.to_vec(), hash)));
            apply(Catalog::default(), ops, is_whole);
        }
    });
}

/// What a log leads to: what is kept beside the tables is what follows from them, and its checkpoint reads back
/// as the same.
fn is_whole(catalog: &Catalog) {
    assert_eq!(&catalog.clone().with_derived(), catalog, "what is kept does not follow from the tables");
    let value = checkpoint_format::Checkpoint { record_hash: ObjectHash([0; 32]), catalog: catalog.clone() };
    let bytes = checkpoint_format::encode(&value).expect("a catalogue encodes");
    assert_eq!(checkpoint_format::decode(&bytes), Ok(value));
}

/// Applies each operation as a record of its own; a refusal is a good answer. What one leaves is checked.
fn apply(mut catalog: Catalog, ops: Vec<Op>, check: impl Fn(&Catalog)) {
    for op in ops {
        let Some(sequence) = catalog.sequence.checked_add(1) else { return };
        let author = Author { account: AccountId::from_random(1), session: SessionId([1; 16]) };
        let previous = ObjectHash([0; 32]);
        let record = LogRecord { sequence, previous, nonce: [0; 16], time_ms: 0, author, ops: vec![op] };
        // What a refused record leaves of a catalogue is none.
        let mut after = catalog.clone();
        if after.apply(&record).is_ok() {
            assert_eq!(after.sequence, sequence);
            check(&after);
            catalog = after;
        }
    }
}

/// Region files.
pub fn region(data: &[u8]) {
    for_envelopes(&region_format::REGION, data, |bytes| {
        if let Ok((header, hash)) = region_format::decode(bytes) {
            assert_eq!(region_format::encode(&header), Ok((bytes.to_vec(), hash)));
            assert!(header.chunker.is_valid() && region_format::is_region_name(&header.name));
        }
    });
}

/// What two hosts say to each other: the heads of messages.
pub fn message(data: &[u8]) {
    for body_len in [0, 1] {
        if !runs(data, 2, [body_len]) {
            continue;
        }
        let body_len = usize::from(body_len);
        if let Ok(message) = Message::decode(data, body_len) {
            assert_eq!(message.encode().expect("what came can be sent"), data);
        }
    }
}

/// Index segments: header, every page, whole hash, and looking up and listing as a reader does.
pub fn segment(data: &[u8]) {
    if runs(data, 8, [0]) {
        segment_of(data);
    }
    let mut bytes = data.to_vec();
    if runs(data, 8, 1..3) && seal_segment(&mut bytes) {
        segment_of(&bytes);
    }
    // Repaired wholly: as many pages and packs as fit the input's length, each page with its number.
    if runs(data, 8, 3..6) && bytes.len() >= PAGE_BYTES + HASH_BYTES {
        refit(&mut bytes);
        segment_of(&bytes);
    }
    // The input as entries alone, as they are and ascending.
    if runs(data, 8, 6..8)
        && let Some((&selector, rest)) = data.split_first()
    {
        let mut table: Vec<[u8; ENTRY_BYTES]> = rest.as_chunks().0.to_vec();
        if selector & 1 != 0 {
            table.iter_mut().for_each(|entry| {
                entry[33..36].fill(0);
                entry[45] &= 1;
                entry[46] &= 1;
                entry[47] = 0;
                // Lengths that such a frame may have.
                (entry[42], entry[43]) = (entry[42] & 7, 0);
                entry[40] |= 1;
                if entry[46] == 0 {
                    let bytes = u32::from(u16::from_le_bytes([entry[44], entry[45]])) * BLOCK_BYTES as u32;
                    entry[40..44].copy_from_slice(&bytes.to_le_bytes());
                }
            });
        }
        if selector & 2 != 0 {
            sort(&mut table);
            table.dedup_by_key(|entry| entry_id(entry));
        }
        segment_of(&lay_out(&table, selector >> 2));
    }
}

fn segment_of(bytes: &[u8]) {
    let hash = segment_format::check_hash(bytes);
    let Ok(header) = segment_format::decode_header(bytes) else { return };
    assert!(segment_format::page(bytes, &header, header.pages, true).is_err());
    assert!(segment_format::page(bytes, &header, u32::MAX, false).is_err());
    let mut sound = true;
    let mut stored: Vec<&[u8; ENTRY_BYTES]> = Vec::new();
    for number in 0..header.pages {
        let unchecked = segment_format::page(bytes, &header, number, false).expect("its length was checked");
        assert!((1..=PAGE_ENTRIES).contains(&unchecked.len()));
        match segment_format::page(bytes, &header, number, true) {
            Ok(page) => assert_eq!(page, unchecked),
            Err(_) => sound = false,
        }
        stored.extend(unchecked);
    }
    assert_eq!(stored.len() as u64, header.entries);
    assert!(segment_format::filter_page(bytes, &header, header.filter_pages).is_none());
    let filter = (0..header.filter_pages).map(|page| segment_format::filter_page(bytes, &header, page));
    let filter: Vec<_> = filter.map(|page| page.expect("its length was checked")).collect();
    let is_filter_sound =
        filter.iter().all(|(page, number)| filter_format::check_page(page, *number).is_ok());
    sound &= stored.is_sorted_by(|a, b| entry_id(a) < entry_id(b));
    read(bytes, &header, hash.clone().unwrap_or(ObjectHash([0; 32])), &stored, sound);

    let decoded: Result<Vec<Entry>, _> = stored.iter().map(|bytes| Entry::decode(bytes)).collect();
    let (Ok(hash), Ok(entries), true) = (hash, decoded, sound) else { return };
    let mut writer = SegmentWriter::new(entries.len()).with_filter_pages(header.filter_pages);
    for entry in &entries {
        writer.push(*entry).expect("ids ascend");
    }
    let again = writer.finish(header.region, &header.packs).expect("it is as many as it was");
    if header.filter_pages == 0 {
        assert_eq!(again, (bytes.to_vec(), hash, header.entries));
        return;
    }
    if entries.iter().any(|entry| entry.pack as usize >= header.packs.len()) {
        return;
    }
    // The filter may say what it will; one that was made for these entries denies none of them.
    let filter_at = (header.pages as usize + 1) * PAGE_BYTES;
    assert_eq!(
        (again.0.len(), &again.0[PAGE_BYTES..filter_at]),
        (bytes.len(), &bytes[PAGE_BYTES..filter_at])
    );
    let opened = |bytes: &[u8], hash| segment_reader(bytes, &header, hash);
    let (made, as_it_is) = (opened(&again.0, again.1), opened(bytes, hash));
    made.check_filter().expect("it was made for them");
    let denies = entries.iter().any(|entry| !as_it_is.may_hold(entry.id.leading()));
    assert!(
        as_it_is.check_filter().is_err() == denies && (is_filter_sound || header.filter_pages > 1 || !denies)
    );
}

fn segment_reader(bytes: &[u8], header: &SegmentHeader, hash: ObjectHash) -> Segment {
    let name = SegmentName { session: SessionId([1; 16]), number: 0 };
    let (len, entries) = (bytes.len() as u64, header.entries);
    let record = SegmentRecord { name, len, entries, hash, replaces: Vec::new(), partial: Vec::new() };
    let owned = Bytes::Owned(Arc::new(bytes.to_vec()));
    Segment::from_bytes(owned, header.region, &record).expect("the record is made from it")
}

/// Reads as `Segment`; if every page is sound, all answers must be right as well.
fn read(bytes: &[u8], header: &SegmentHeader, hash: ObjectHash, stored: &[&[u8; ENTRY_BYTES]], sound: bool) {
    let segment = segment_reader(bytes, header, hash);
    assert_eq!((segment.entries(), segment.packs()), (header.entries, header.packs.as_slice()));
    let _ = segment.check_hash();

    let expected = |bytes: &[u8; ENTRY_BYTES]| {
        let entry = Entry::decode(bytes).ok()?;
        Some((entry, *header.packs.get(entry.pack as usize)?))
    };
    // Looked up before listed, so that pages are touched, and so checked, in a searching order.
    // Of damaged ones few: each answer is an error that is written out.
    let step = stored.len() / if sound { 12 } else { 4 } + 1;
    for bytes in stored.iter().step_by(step) {
        let id = entry_id(bytes);
        let found = segment.lookup(id);
        if sound {
            assert_eq!(found.ok().flatten(), expected(bytes), "{id}");
        }
        for near in [flip_last(id, 1), flip_last(id, 0x80)] {
            let found = segment.lookup(near);
            if sound && stored.binary_search_by_key(&near, |bytes| entry_id(bytes)).is_err() {
                assert!(matches!(found, Ok(None)), "{near} is not there");
            }
        }
    }
    for id in [ChunkId([0; 32]), ChunkId([0xff; 32]), ChunkId([0x80; 32])] {
        let _ = segment.lookup(id);
    }
    let listed: Vec<_> =
        segment.iter().map(Result::ok).take(if sound { usize::MAX } else { 2 * PAGE_ENTRIES }).collect();
    if sound {
        assert_eq!(listed, stored.iter().map(|bytes| expected(bytes)).collect::<Vec<_>>());
    }
}

fn flip_last(mut id: ChunkId, bits: u8) -> ChunkId {
    id.0[31] ^= bits;
    id
}

/// Gives header page, pages, pack table and the whole the checksums that fit, where the header says they are.
fn seal_segment(bytes: &mut [u8]) -> bool {
    if bytes.len() < PAGE_BYTES + HASH_BYTES {
        return false;
    }
    let end = bytes.len() - HASH_BYTES;
    let packs = u32::from_le_bytes([bytes[12], bytes[13], bytes[14], bytes[15]]) as usize;
    let Some(table) =
        packs.checked_mul(24).and_then(|len| end.checked_sub(len)).filter(|&at| at >= PAGE_BYTES)
    else {
        return false;
    };
    let crc = crc32c::crc32c(&bytes[table..end]);
    bytes[28..32].copy_from_slice(&crc.to_le_bytes());
    for page in bytes[..table].chunks_exact_mut(PAGE_BYTES) {
        let (covered, stored) = page.split_at_mut(PAGE_BYTES - 4);
        stored.copy_from_slice(&crc32c::crc32c(covered).to_le_bytes());
    }
    seal_end(&SEGMENT, bytes)
}

/// Makes header and page tails fit a segment's length; the bytes are at least a header page and a hash.
fn refit(bytes: &mut Vec<u8>) {
    let body = bytes.len() - HASH_BYTES;
    let pages = body / PAGE_BYTES - 1;
    let packs = body % PAGE_BYTES / 24;
    let table = (pages + 1) * PAGE_BYTES;
    bytes.truncate(table + packs * 24);
    bytes[table..].as_chunks_mut::<24>().0.sort_unstable_by_key(|name| {
        let mut key = *name;
        key[16..].reverse();
        key
    });
    let mut entries = 0u64;
    // The last ones are the filter's.
    let filter_pages = usize::from(bytes[48]) % (pages + 1);
    for number in 0..pages {
        let page = &mut bytes[(number + 1) * PAGE_BYTES..][..PAGE_BYTES];
        if number >= pages - filter_pages {
            page[4032..].fill(0);
            page[4084..4088].copy_from_slice(&u32::try_from(number).unwrap_or(0).to_le_bytes());
            continue;
        }
        let last = number + 1 == pages - filter_pages;
        let count = if last { 1 + u32::from(page[4080]) % 85 } else { 85 };
        page[count as usize * ENTRY_BYTES..4080].fill(0);
        page[4080..4084].copy_from_slice(&count.to_le_bytes());
        page[4084..4088].copy_from_slice(&u32::try_from(number).unwrap_or(0).to_le_bytes());
        page[4088..4092].fill(0);
        entries += u64::from(count);
    }
    fill_header(bytes, packs, entries, pages - filter_pages, filter_pages);
    bytes.extend([0; HASH_BYTES]);
    seal_segment(bytes);
}

/// A segment of these entries, whatever their order, with `packs` packs.
fn lay_out(table: &[[u8; ENTRY_BYTES]], packs: u8) -> Vec<u8> {
    let mut bytes = vec![0; PAGE_BYTES];
    for (number, entries) in (0u32..).zip(table.chunks(PAGE_ENTRIES)) {
        let start = bytes.len();
        bytes.extend(entries.as_flattened());
        bytes.resize(start + PAGE_BYTES, 0);
        bytes[start + 4080..start + 4084]
            .copy_from_slice(&u32::try_from(entries.len()).unwrap_or(0).to_le_bytes());
        bytes[start + 4084..start + 4088].copy_from_slice(&number.to_le_bytes());
    }
    for number in 0..packs {
        bytes.extend([7; 16]);
        bytes.extend(u64::from(number).to_le_bytes());
    }
    fill_header(&mut bytes, usize::from(packs), table.len() as u64, table.len().div_ceil(PAGE_ENTRIES), 0);
    bytes.extend([0; HASH_BYTES]);
    seal_segment(&mut bytes);
    bytes
}

fn fill_header(bytes: &mut [u8], packs: usize, entries: u64, pages: usize, filter_pages: usize) {
    preamble(&SEGMENT, bytes);
    bytes[12..16].copy_from_slice(&u32::try_from(packs).unwrap_or(0).to_le_bytes());
    bytes[16..24].copy_from_slice(&entries.to_le_bytes());
    bytes[24..28].copy_from_slice(&u32::try_from(pages).unwrap_or(0).to_le_bytes());
    bytes[48..PAGE_BYTES].fill(0);
    bytes[48..52].copy_from_slice(&u32::try_from(filter_pages).unwrap_or(0).to_le_bytes());
}

/// OVA: the input as the archive, as it is and with headers whose checksums fit; as the description in one; and as
/// its list of checksums.
pub fn ova(data: &[u8]) {
    if runs(data, 8, [0]) {
        ova_of(data.to_vec());
    }
    if runs(data, 8, 1..4) {
        let mut sealed = data.to_vec();
        archive::seal_all(&mut sealed);
        ova_of(sealed);
    }
    if runs(data, 8, 4..7) {
        ova_of(archive::archive(&[("m.ovf", data), ("disk.img", &archive::DISK)]));
    }
    if runs(data, 8, [7]) {
        let members = [("m.ovf", archive::OVF.as_bytes()), ("disk.img", &archive::DISK), ("m.mf", data)];
        ova_of(archive::archive(&members));
    }
}

fn ova_of(bytes: Vec<u8>) {
    let limits = Limits { virtual_bytes: 64 << 20, metadata_bytes: 64 << 10 };
    let len = bytes.len() as u64;
    let Ok(ova) = ova_format::open(Arc::new(File(bytes)), Path::new("fuzz.ova"), &limits) else { return };
    assert!(ova.disks.len() <= 25 && ova.notes.len() <= 200);
    assert!(ova.disks.iter().any(|disk| disk.content.is_some()));
    for disk in &ova.disks {
        assert!(disk.volume_bytes > 0 && disk.volume_bytes <= limits.virtual_bytes.max(len));
        if let Some(content) = &disk.content {
            assert_eq!(content.len_bytes(), disk.volume_bytes);
            read_disk(&**content);
        }
    }
    let mut checked = 0;
    let outcome = ova.check::<DiskError>(|bytes| {
        checked += bytes;
        Ok(())
    });
    assert!(checked <= ova.checked_bytes() && (outcome.is_err() || checked == ova.checked_bytes()));
}

/// VDI: the input as the file, and as places of one.
pub fn vdi(data: &[u8]) {
    for_files(data, None, |file, path, limits| vdi_format::open(file, path, limits));
}

/// VHD: the input as the file, and as places of one; then with the checksums that fit.
pub fn vhd(data: &[u8]) {
    for_files(data, Some(sparse::seal_vhd), |file, path, limits| {
        let has_footer = vhd_format::has_footer(&*file).expect("memory is read");
        let opened = vhd_format::open(file.clone(), path, limits);
        // Whatever opens has a footer at one end; only a fixed one leaves the start alone.
        assert!(opened.is_err() || has_footer || file.get(0, 8) == b"conectix");
        opened
    });
}

/// VHDX: the input as the file, and as places of one; then with the checksums that fit.
pub fn vhdx(data: &[u8]) {
    for_files(data, Some(sparse::seal_vhdx), |file, path, limits| vhdx_format::open(file, path, limits));
}

/// Opens files that are the input, and are made of it, and reads what opens.
fn for_files<D: DiskRead>(
    data: &[u8],
    seal: Option<fn(&mut Sparse)>,
    open: impl Fn(Arc<Sparse>, &Path, &Limits) -> Result<D, DiskError>,
) {
    // Few of a table's entries are looked at; longer tables would only take longer to read.
    let limits = Limits { virtual_bytes: 64 << 40, metadata_bytes: 16 << 10 };
    let mut buffer = [0; 3000];
    for file in sparse_files(data, seal) {
        let Ok(disk) = open(Arc::new(file), Path::new("fuzzed"), &limits) else { continue };
        let len = disk.len_bytes();
        assert!(len > 0 && len <= limits.virtual_bytes);
        let mut at = 0;
        for _ in 0..64 {
            let extent = disk.extent_at(at).expect("memory is read");
            assert!(extent.start == at && extent.end > at && extent.end <= len, "{extent:?} of {len}");
            for start in [at, extent.end.saturating_sub(3000).max(at)] {
                let bytes = &mut buffer[..(extent.end - start).min(3000) as usize];
                bytes.fill(0xaa);
                disk.read_at(start, bytes).expect("memory is read");
                assert!(!extent.is_zero || is_zeros(bytes));
            }
            at = extent.end;
            if at == len {
                break;
            }
        }
        assert!(disk.read_at(len, &mut [0]).is_err() && disk.read_at(u64::MAX, &mut [0]).is_err());
    }
}

/// The files that an input is: its bytes, places of one, and those with the checksums that fit.
fn sparse_files(data: &[u8], seal: Option<fn(&mut Sparse)>) -> Vec<Sparse> {
    let mut files = Vec::new();
    if runs(data, 8, [0]) {
        files.push(Sparse { len: data.len() as u64, pieces: vec![(0, data.to_vec())] });
    }
    if runs(data, 8, if seal.is_some() { 1..3 } else { 1..8 }) {
        files.push(Sparse::parse(data));
    }
    if let Some(seal) = seal
        && runs(data, 8, 3..8)
    {
        let mut sealed = Sparse::parse(data);
        seal(&mut sealed);
        files.push(sealed);
    }
    files
}

/// The input as it is; as the body of an envelope; and, with its own first and last bytes replaced by ones
/// that fit, as the envelope that a mutated seed was.
fn for_envelopes(kind: &Kind, data: &[u8], check: impl Fn(&[u8])) {
    if runs(data, 16, [0]) {
        check(data);
    }
    let inner = data.len().checked_sub(HASH_BYTES).and_then(|end| data.get(envelope::HEADER_BYTES..end));
    for (body, numbers) in [(Some(data), 1..7), (inner, 7..16)] {
        let Some(body) = body.filter(|_| runs(data, 16, numbers.clone())) else { continue };
        let (bytes, hash) = kind.seal(body).expect("it is short");
        if runs(data, 16, [numbers.start]) {
            assert_eq!(kind.open(&bytes), Ok((body, hash)));
        }
        check(&bytes);
    }
}

/// Writes the first twelve bytes that an object of this kind has.
fn preamble(kind: &Kind, bytes: &mut [u8]) {
    if let Some(first) = bytes.first_chunk_mut::<12>() {
        first[..8].copy_from_slice(&kind.magic);
        first[8..10].copy_from_slice(&VERSION.to_le_bytes());
        first[10..].fill(0);
    }
}

/// Writes the hash over everything before the last 32 bytes into those.
fn seal_end(kind: &Kind, bytes: &mut [u8]) -> bool {
    let Some((covered, stored)) = bytes.split_last_chunk_mut::<HASH_BYTES>() else { return false };
    *stored = kind.hash(&[covered]).0;
    true
}

/// A file in memory. A read outside it panics: readers must know where a file ends.
struct MemoryFile(Vec<u8>);

impl DiskRead for MemoryFile {
    fn len_bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn extent_at(&self, offset: u64) -> Result<Extent, DiskError> {
        Ok(Extent { start: offset, end: self.len_bytes(), is_zero: false })
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        let start = usize::try_from(offset).expect("inside the file");
        buffer.copy_from_slice(&self.0[start..start + buffer.len()]);
        Ok(())
    }
}

/// VMDK files: opened, then read by extents and in pieces. Repaired: with the descriptor that fits the header
/// behind it.
pub fn vmdk(data: &[u8]) {
    if runs(data, 4, [0]) {
        vmdk_of(data.to_vec());
    }
    let Some(head) = data.first_chunk::<1024>().filter(|_| runs(data, 4, 1..4)) else { return };
    let sectors = u64::from_le_bytes([12, 13, 14, 15, 16, 17, 18, 19].map(|at| head[at]));
    let kind = if head[77] == 0 { "monolithicSparse" } else { "streamOptimized" };
    let text = format!(
        "# Disk DescriptorFile\nversion=1\nparentCID=ffffffff\ncreateType={kind}\nRW {sectors} SPARSE \"\"\n"
    );
    let mut bytes = data.to_vec();
    bytes[..4].copy_from_slice(b"KDMV");
    bytes[28..44].copy_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    bytes[512..1024].fill(0);
    bytes[512..512 + text.len()].copy_from_slice(text.as_bytes());
    vmdk_of(bytes);
}

fn vmdk_of(bytes: Vec<u8>) {
    let limits = Limits { virtual_bytes: 1 << 50, metadata_bytes: 128 << 10 };
    if let Ok(disk) = vmdk_format::open(Arc::new(MemoryFile(bytes)), Path::new("disk.vmdk"), &limits) {
        assert!((1..=limits.virtual_bytes).contains(&disk.len_bytes()));
        let _ = walk(&disk);
    }
}

/// Reads the start of a disk's first extents, and its end. What an extent says holds, and pieces read the same
/// as the whole.
fn walk(disk: &dyn DiskRead) -> Result<(), DiskError> {
    let len = disk.len_bytes();
    let mut at = 0;
    for _ in 0..16 {
        let extent = disk.extent_at(at)?;
        assert!(extent.start == at && extent.end > at && extent.end <= len);
        let mut whole = vec![0xee; usize::try_from((extent.end - at).min(10_000)).expect("it is small")];
        disk.read_at(at, &mut whole)?;
        assert!(!extent.is_zero || is_zeros(&whole));
        let (one, two) = whole.split_at(whole.len() / 3);
        let mut pieces = vec![0x11; whole.len()];
        let (first, second) = pieces.split_at_mut(one.len());
        disk.read_at(at, first)?;
        disk.read_at(at + one.len() as u64, second)?;
        assert!(first == one && second == two);
        at = extent.end;
        if at == len {
            break;
        }
    }
    assert!(disk.extent_at(len).is_err());
    disk.read_at(len - 1, &mut [0])
}

const _: () =
    assert!(CHUNK_BLOCKS_MAX == 256, "the frame target's limit of 2 MiB is twice the largest chunk");
