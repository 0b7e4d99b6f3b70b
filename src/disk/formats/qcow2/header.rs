//! The header of a qcow2 file, and what is refused by it alone.

use super::source::{Source, be32, be64};
use crate::disk::formats::Limits;
use crate::io::disk::DiskError;

const MAGIC: u32 = 0x5146_49fb;
/// Bytes of a header of version 2.
const HEADER_V2: u32 = 72;
/// Bytes of a header of version 3 at least.
const HEADER_V3: u32 = 104;
/// Bytes of the fields that are known.
const HEADER_KNOWN: usize = 112;
/// QEMU accepts no more of an L1 table, either.
const L1_BYTES_MAX: u64 = 32 << 20;
/// QEMU accepts no more of a refcount table, either.
const REFCOUNT_BYTES_MAX: u64 = 8 << 20;
/// QEMU accepts no more, either.
const SNAPSHOTS_MAX: u32 = 65_536;
/// Bytes of a snapshot's entry at least.
const SNAPSHOT_BYTES: u64 = 40;

/// Bits of the incompatible features.
const DIRTY: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
const DATA_FILE: u64 = 1 << 2;
const COMPRESSION: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;
/// Bits of the autoclear features.
const BITMAPS: u64 = 1 << 0;
const RAW_EXTERNAL: u64 = 1 << 1;

/// Header extensions that are refused: where an encryption header lies; the name of a data file.
const CRYPTO_EXTENSION: u32 = 0x0537_be77;
const DATA_FILE_EXTENSION: u32 = 0x4441_5441;

const FLATTEN: &str = "where it was made, make one file of it and those that it needs: \
    `qemu-img convert -O qcow2 OLD NEW`, or `qemu-img rebase -b '' OLD`";
const CONVERT: &str = "where it was made, write it anew: `qemu-img convert -O qcow2 OLD NEW`";
const DECRYPT: &str = "where its key is known, write it anew without encryption: `qemu-img convert -O qcow2`";
const CLEAN: &str =
    "shut the machine down that uses it, mend it where it was made with `qemu-img check -r all`, and copy it";

/// What is known of a disk after its header is checked.
pub(super) struct Header {
    pub(super) cluster_bits: u32,
    pub(super) virtual_bytes: u64,
    pub(super) l1_offset: u64,
    /// Entries of the L1 table that the virtual size needs. There may be more, which stand for nothing.
    pub(super) l1_entries: usize,
    pub(super) has_zero_flag: bool,
    pub(super) is_extended: bool,
    pub(super) is_zstd: bool,
    pub(super) snapshots: u32,
    pub(super) has_bitmaps: bool,
}

/// The version, and which fields it has.
struct Features {
    version: u32,
    length: u32,
    incompatible: u64,
    autoclear: u64,
    compression: u8,
}

/// Reads and checks a header.
pub(super) fn read(source: &Source, limits: &Limits) -> Result<Header, DiskError> {
    let mut bytes = [0; HEADER_KNOWN];
    source.read(0, &mut bytes)?;
    let features = features(source, &bytes)?;
    check_features(source, &features)?;
    check_alone(source, &bytes)?;
    let cluster_bits = be32(&bytes, 20);
    let is_extended = features.incompatible & EXTENDED_L2 != 0;
    // A cluster has 32 subclusters, and each at least one sector.
    let bits_min = if is_extended { 14 } else { 9 };
    if !(bits_min..=21).contains(&cluster_bits) {
        let why = format!("its clusters have 2^{cluster_bits} bytes, not 2^{bits_min} to 2^21");
        return Err(source.damaged(why));
    }
    let cluster_bytes = 1 << cluster_bits;
    if u64::from(features.length) > cluster_bytes.min(source.bytes) {
        let why =
            format!("it says that its header has {} bytes, more than its first cluster", features.length);
        return Err(source.damaged(why));
    }
    check_extensions(source, features.length, cluster_bytes)?;
    let virtual_bytes = be64(&bytes, 24);
    limits.check_size(&source.path, "qcow2", virtual_bytes)?;
    let entry_bytes = if is_extended { 16 } else { 8 };
    // At most 2^21 times 2^18.
    let l2_covers = cluster_bytes * (cluster_bytes / entry_bytes);
    let l1_entries = check_tables(source, limits, &bytes, virtual_bytes.div_ceil(l2_covers))?;
    Ok(Header {
        cluster_bits,
        virtual_bytes,
        l1_offset: be64(&bytes, 40),
        l1_entries,
        has_zero_flag: features.version >= 3 && !is_extended,
        is_extended,
        is_zstd: features.compression == 1,
        snapshots: be32(&bytes, 60),
        has_bitmaps: features.autoclear & BITMAPS != 0,
    })
}

fn features(source: &Source, bytes: &[u8; HEADER_KNOWN]) -> Result<Features, DiskError> {
    if be32(bytes, 0) != MAGIC {
        return Err(source.damaged("it does not begin with the signature of qcow2"));
    }
    let version = be32(bytes, 4);
    let mut features = Features { version, length: HEADER_V2, incompatible: 0, autoclear: 0, compression: 0 };
    match version {
        2 => {}
        3 => {
            features.incompatible = be64(bytes, 72);
            features.autoclear = be64(bytes, 88);
            features.length = be32(bytes, 100);
        }
        _ => return Err(source.refused(format!("it has version {version}, not 2 or 3"), CONVERT)),
    }
    let least = if version == 2 { HEADER_V2 } else { HEADER_V3 };
    if source.bytes < u64::from(least) {
        return Err(source.damaged(format!("it has {} bytes and ends inside its header", source.bytes)));
    }
    if features.length < least || !features.length.is_multiple_of(8) {
        return Err(source.damaged(format!("it says that its header has {} bytes", features.length)));
    }
    if features.length > HEADER_V3 {
        features.compression = bytes[104];
    }
    if version == 3 && be32(bytes, 96) > 6 {
        return Err(source.damaged(format!("its refcounts have 2^{} bits", be32(bytes, 96))));
    }
    Ok(features)
}

fn check_features(source: &Source, features: &Features) -> Result<(), DiskError> {
    let has = |bit| features.incompatible & bit != 0;
    let unknown = features.incompatible & !(DIRTY | CORRUPT | DATA_FILE | COMPRESSION | EXTENDED_L2);
    if has(DATA_FILE) || features.autoclear & RAW_EXTERNAL != 0 {
        return Err(source.refused("its data is in another file", FLATTEN));
    }
    if unknown != 0 {
        let why = format!("it needs features that are not known here (bits {unknown:#x})");
        return Err(source.refused(why, CONVERT));
    }
    if has(CORRUPT) {
        return Err(source.refused("it is marked as corrupt", CLEAN));
    }
    if has(DIRTY) {
        return Err(source.refused("it is marked as dirty: in use, or its last user crashed", CLEAN));
    }
    if features.compression > 1 {
        let why = format!("it has compression type {}, not zlib or zstd", features.compression);
        return Err(source.refused(why, CONVERT));
    }
    if has(COMPRESSION) != (features.compression != 0) {
        return Err(
            source.damaged("its compression type and the bit that announces one contradict each other")
        );
    }
    Ok(())
}

/// The disk must be whole in this file and readable without a key.
fn check_alone(source: &Source, bytes: &[u8]) -> Result<(), DiskError> {
    if be64(bytes, 8) != 0 || be32(bytes, 16) != 0 {
        return Err(source.refused("it has a backing file, which would be opened with your rights", FLATTEN));
    }
    match be32(bytes, 32) {
        0 => Ok(()),
        1 => Err(source.refused("it is encrypted (AES)", DECRYPT)),
        2 => Err(source.refused("it is encrypted (LUKS)", DECRYPT)),
        method => Err(source.refused(format!("it is encrypted (method {method})"), DECRYPT)),
    }
}

fn check_extensions(source: &Source, header_length: u32, cluster_bytes: u64) -> Result<(), DiskError> {
    let long = || source.damaged("a header extension reaches over its first cluster");
    let len = usize::try_from(cluster_bytes.min(source.bytes)).map_err(|_| long())?;
    let mut cluster = vec![0; len];
    source.read(0, &mut cluster)?;
    let mut rest = usize::try_from(header_length).ok().and_then(|at| cluster.get(at..)).ok_or_else(long)?;
    while rest.len() >= 8 {
        let (kind, bytes) = (be32(rest, 0), be32(rest, 4));
        match kind {
            0 => break,
            CRYPTO_EXTENSION => return Err(source.refused("it has an encryption header", DECRYPT)),
            DATA_FILE_EXTENSION => return Err(source.refused("it names another file for its data", FLATTEN)),
            _ => {}
        }
        let padded = usize::try_from(bytes).ok().and_then(|bytes| bytes.checked_next_multiple_of(8));
        let end = padded.and_then(|padded| padded.checked_add(8)).ok_or_else(long)?;
        rest = rest.get(end..).ok_or_else(long)?;
    }
    Ok(())
}

/// Checks where the tables are; returns how many entries of the L1 table are needed.
fn check_tables(source: &Source, limits: &Limits, bytes: &[u8], needed: u64) -> Result<usize, DiskError> {
    let cluster_bytes = 1_u64 << be32(bytes, 20);
    let table = |name: &str, offset: u64, bytes: u64| {
        let end = offset.checked_add(bytes);
        if offset < cluster_bytes || !offset.is_multiple_of(cluster_bytes) {
            Err(source
                .damaged(format!("its {name} is at byte {offset:#x}: not on a cluster after the header")))
        } else if end.is_none_or(|end| end > source.bytes) {
            let why =
                format!("its {name} at byte {offset:#x} reaches over the file's end at {:#x}", source.bytes);
            Err(source.damaged(why))
        } else {
            Ok(offset..offset.saturating_add(bytes))
        }
    };
    let l1_entries = u64::from(be32(bytes, 36));
    // Far from overflow: 2^32 times 8; 2^32 times 2^21.
    let (l1_bytes, refcount_bytes) = (l1_entries * 8, u64::from(be32(bytes, 56)) * cluster_bytes);
    if l1_entries < needed {
        return Err(source.damaged(format!("its L1 table has {l1_entries} entries, its size needs {needed}")));
    }
    if l1_bytes > L1_BYTES_MAX {
        return Err(
            source.damaged(format!("its L1 table has {l1_entries} entries, more than are ever needed"))
        );
    }
    if needed * 8 > limits.metadata_bytes {
        let why = format!("its L1 table of {needed} entries is over the limit of memory for tables");
        return Err(source.refused(why, CONVERT));
    }
    if refcount_bytes == 0 || refcount_bytes > REFCOUNT_BYTES_MAX {
        return Err(source.damaged(format!("its refcount table has {} clusters", be32(bytes, 56))));
    }
    let l1 = table("L1 table", be64(bytes, 40), l1_bytes)?;
    let refcounts = table("refcount table", be64(bytes, 48), refcount_bytes)?;
    if l1.start < refcounts.end && refcounts.start < l1.end {
        return Err(source.damaged("its L1 table and its refcount table lie over each other"));
    }
    let snapshots = be32(bytes, 60);
    if snapshots > SNAPSHOTS_MAX {
        return Err(source.damaged(format!("it says that it has {snapshots} snapshots")));
    }
    if snapshots > 0 {
        table("snapshot table", be64(bytes, 64), u64::from(snapshots) * SNAPSHOT_BYTES)?;
    }
    usize::try_from(needed).map_err(|e| source.damaged(e.to_string()))
}
