//! The header of a hosted sparse extent, and its copy at the file's end.

use super::descriptor::is_descriptor;
use super::{Fault, SECTOR_BYTES};

/// Bytes of the header: one sector.
pub(super) const HEADER_BYTES: usize = 512;
/// Entries of a grain table; VMware has never written another number.
pub(super) const TABLE_ENTRIES: u64 = 512;
/// The directory's place when only the footer knows it.
pub(super) const DIRECTORY_AT_END: u64 = u64::MAX;
/// Footer marker, footer, end-of-stream marker.
pub(super) const TAIL_BYTES: usize = 3 * HEADER_BYTES;

const NEWLINES_VALID: u32 = 1;
const REDUNDANT_TABLES: u32 = 1 << 1;
const ZEROED_GRAINS: u32 = 1 << 2;
const COMPRESSED: u32 = 1 << 16;
const MARKERS: u32 = 1 << 17;
/// Whoever does not know one of the flags from here on cannot read the file (Virtual Disk Format 5.0).
const INCOMPATIBLE_FLAGS: u32 = 0xffff << 16;
const DEFLATE: u16 = 1;
const FOOTER_MARKER: u32 = 3;
/// Sectors of a grain: the format's least, and 1 MiB, sixteen times what VMware writes.
const GRAIN_SECTORS: std::ops::RangeInclusive<u64> = 8..=2048;

/// What the header says, as far as it could be checked by itself. Offsets and lengths are in sectors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) capacity: u64,
    pub(super) grain_sectors: u64,
    pub(super) descriptor_offset: u64,
    pub(super) descriptor_sectors: u64,
    /// The redundant directory's place, if there is one. It is never read, but no grain may lie in it.
    pub(super) redundant_offset: Option<u64>,
    /// The directory's place, or [`DIRECTORY_AT_END`].
    pub(super) directory_offset: u64,
    /// Whether a grain's entry may be 1, for zeros.
    pub(super) zeroed_grains: bool,
    /// Whether each grain is a zlib stream behind a marker.
    pub(super) compressed: bool,
}

/// The bytes of a field. All places are constants inside the bytes.
pub(super) fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(field(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(field(bytes, at))
}

/// What the file's first bytes are, if they are not a hosted sparse extent's.
fn check_signature(bytes: &[u8]) -> Result<(), Fault> {
    if is_descriptor(bytes) {
        return Err(Fault::variant("it is only a descriptor, which names other files that hold the data"));
    }
    if bytes.starts_with(b"COWD") {
        return Err(Fault::variant("it is an extent of VMware ESX (COWD)"));
    }
    if !bytes.starts_with(b"KDMV") {
        return Err(Fault::damaged("it does not begin with the signature KDMV"));
    }
    Ok(())
}

/// Which of the flags are set: redundant tables, zeroed grains, compressed grains.
fn check_flags(bytes: &[u8]) -> Result<(bool, bool, bool), Fault> {
    let flags = u32_at(bytes, 8);
    let unknown = flags & INCOMPATIBLE_FLAGS & !(COMPRESSED | MARKERS);
    if unknown != 0 {
        return Err(Fault::variant(format!("it has unknown flags ({unknown:#x})")));
    }
    let newlines: [u8; 4] = field(bytes, 73);
    if flags & NEWLINES_VALID != 0 && newlines != *b"\n \r\n" {
        return Err(Fault::damaged("a transfer as text changed its line ends, and so its data"));
    }
    let compressed = flags & COMPRESSED != 0;
    if compressed != (flags & MARKERS != 0) {
        return Err(Fault::variant("it has compressed grains without markers, or markers without them"));
    }
    match u16::from_le_bytes(field(bytes, 77)) {
        0 if !compressed => {}
        DEFLATE if compressed => {}
        other => {
            let why = format!("its compression {other} is unknown, or does not fit its flags");
            return Err(Fault::variant(why));
        }
    }
    Ok((flags & REDUNDANT_TABLES != 0, flags & ZEROED_GRAINS != 0, compressed))
}

/// Checks a header. What needs the file's length is checked by others.
pub(super) fn parse(bytes: &[u8]) -> Result<Header, Fault> {
    check_signature(bytes)?;
    if bytes.len() < HEADER_BYTES {
        return Err(Fault::damaged("it ends inside its header"));
    }
    let version = u32_at(bytes, 4);
    if !(1..=3).contains(&version) {
        return Err(Fault::variant(format!("its version is {version}, known are 1 to 3")));
    }
    let (redundant, zeroed_grains, compressed) = check_flags(bytes)?;
    if bytes.get(72) != Some(&0) {
        let why = "it was not closed after writing; its tables may not fit its data";
        return Err(Fault { why: why.into(), cure: "open and close it in VMware, which repairs it" });
    }
    let grain_sectors = u64_at(bytes, 20);
    if !grain_sectors.is_power_of_two() || !GRAIN_SECTORS.contains(&grain_sectors) {
        let why = format!("its grains have {grain_sectors} sectors, not a power of two from 8 to 2048");
        return Err(Fault::variant(why));
    }
    let entries = u32_at(bytes, 44);
    if u64::from(entries) != TABLE_ENTRIES {
        return Err(Fault::variant(format!("its grain tables have {entries} entries, not {TABLE_ENTRIES}")));
    }
    Ok(Header {
        capacity: u64_at(bytes, 12),
        grain_sectors,
        descriptor_offset: u64_at(bytes, 28),
        descriptor_sectors: u64_at(bytes, 36),
        // A stream has none, whatever its flag says: writers put no place there, or all ones.
        redundant_offset: (redundant && !compressed).then(|| u64_at(bytes, 48)),
        directory_offset: u64_at(bytes, 56),
        zeroed_grains,
        compressed,
    })
}

/// The place of the directory that the footer knows. The footer is between two markers, and otherwise says
/// what the header says.
pub(super) fn directory_of_footer(header: &Header, tail: &[u8]) -> Result<u64, Fault> {
    if !header.compressed {
        return Err(Fault::damaged("its grain directory is at its end, which only markers allow"));
    }
    let (marker, rest) = tail.split_at_checked(HEADER_BYTES).unwrap_or_default();
    let (footer, end) = rest.split_at_checked(HEADER_BYTES).unwrap_or_default();
    // Sectors that follow, size, type.
    let is_marker = |bytes: &[u8], sectors: u64, kind: u32| {
        (u64_at(bytes, 0), u32_at(bytes, 8), u32_at(bytes, 12)) == (sectors, 0, kind)
    };
    if !is_marker(marker, 1, FOOTER_MARKER) || end.len() != HEADER_BYTES || !is_marker(end, 0, 0) {
        return Err(Fault::damaged("it does not end with a footer; it may be cut off"));
    }
    let footer = parse(footer)?;
    let same = |header: &Header| Header {
        directory_offset: 0,
        redundant_offset: None,
        descriptor_offset: 0,
        descriptor_sectors: 0,
        ..header.clone()
    };
    if same(&footer) != same(header) {
        return Err(Fault::damaged("its footer says something else than its header"));
    }
    if footer.directory_offset == DIRECTORY_AT_END {
        return Err(Fault::damaged("its footer does not say where its grain directory is"));
    }
    Ok(footer.directory_offset)
}

/// The bytes from a sector on, if they end at or before `end`.
pub(super) fn range(sector: u64, bytes: u64, end: u64) -> Option<(u64, u64)> {
    let start = sector.checked_mul(SECTOR_BYTES)?;
    let stop = start.checked_add(bytes)?;
    (stop <= end).then_some((start, stop))
}
