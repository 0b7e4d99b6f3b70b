//! What stands before a VHDX file's blocks: identifier, headers, region tables, metadata.

use super::{COPY_AGAIN, FLATTEN, FORMAT, truncated};
use crate::disk::formats::pieces::{Area, field, part_of};
use crate::disk::formats::refused;
use crate::io::disk::{DiskError, DiskRead};
use std::path::Path;

/// What places and lengths of regions and blocks are multiples of.
pub(super) const MIB: u64 = 1 << 20;

pub(super) const HEADERS_AT: [u64; 2] = [64 << 10, 128 << 10];
pub(super) const HEADER_BYTES: usize = 4096;
pub(super) const REGION_TABLES_AT: [u64; 2] = [192 << 10, 256 << 10];
pub(super) const TABLE_BYTES: usize = 64 << 10;
/// Entries that a region table or a metadata table has at most.
const ENTRIES_MAX: u32 = 2047;
const ENTRY_BYTES: usize = 32;
/// The items' values come after the metadata table.
pub(super) const ITEMS_AT: u64 = 64 << 10;
/// A disk may have so many bytes by the specification, whatever the limits say.
pub(super) const DISK_BYTES_MAX: u64 = 64 << 40;

pub(super) const TABLE_REGION: [u8; 16] = guid(0x2dc27766_f623_4200_9d64_115e9bfd4a08);
pub(super) const METADATA_REGION: [u8; 16] = guid(0x8b7ca206_4790_4b9a_b8fe_575f050f886e);

pub(super) const FILE_PARAMETERS: [u8; 16] = guid(0xcaa16737_fa36_4d43_b3b6_33f0aa44e76b);
pub(super) const DISK_BYTES: [u8; 16] = guid(0x2fa54224_cd1b_4876_b211_5dbed83bf4b8);
pub(super) const DISK_ID: [u8; 16] = guid(0xbeca12ab_b2e6_4523_93ef_c309e000c746);
pub(super) const LOGICAL_SECTOR: [u8; 16] = guid(0x8141bf1d_a96f_4709_ba47_f233a8faab5f);
pub(super) const PHYSICAL_SECTOR: [u8; 16] = guid(0xcda348c7_445d_4471_9cc9_e9885251c556);
const PARENT_LOCATOR: [u8; 16] = guid(0xa8d35f2d_b30b_454d_abf7_d3d84834ab0c);

/// A GUID as it is stored: its first three fields are little-endian.
pub(super) const fn guid(value: u128) -> [u8; 16] {
    let b = value.to_be_bytes();
    [b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]]
}

/// Where what lies in a file.
pub(super) struct FileParts {
    /// The block allocation table's region.
    pub table: Area,
    /// The metadata region.
    pub metadata: Area,
    /// Everything that no block may lie over: headers, log, all regions.
    pub occupied: Vec<Area>,
}

/// What the metadata says of the disk.
pub(super) struct Metadata {
    /// The disk's size.
    pub disk_bytes: u64,
    /// A power of two from 1 to 256 MiB.
    pub block_bytes: u64,
    /// 512 or 4096.
    pub sector_bytes: u64,
}

impl Metadata {
    /// How many blocks a sector bitmap of 1 MiB would cover.
    pub fn chunk_ratio(&self) -> u64 {
        (self.sector_bytes << 23) / self.block_bytes
    }

    /// Entries of the block allocation table: of the blocks, and of the sector bitmaps between them.
    pub fn table_entries(&self) -> u64 {
        let blocks = self.disk_bytes.div_ceil(self.block_bytes);
        blocks.saturating_add(blocks.saturating_sub(1) / self.chunk_ratio())
    }
}

fn bad(path: &Path, why: impl Into<String>) -> DiskError {
    refused(path, FORMAT, why, COPY_AGAIN)
}

/// Whether a structure with a checksum at its fifth byte has the one that fits.
fn is_sealed(bytes: &[u8], signature: &[u8; 4]) -> bool {
    bytes.starts_with(signature) && checksum(bytes).to_le_bytes() == field(bytes, 4)
}

/// Gives a structure the checksum that fits.
pub(super) fn seal(bytes: &mut [u8]) {
    let sum = checksum(bytes).to_le_bytes();
    if let Some(place) = bytes.get_mut(4..8) {
        place.copy_from_slice(&sum);
    }
}

/// The checksum of a structure, whose own four bytes count as zeros.
fn checksum(bytes: &[u8]) -> u32 {
    let without = crc32c::crc32c_append(crc32c::crc32c(&field::<4>(bytes, 0)), &[0; 4]);
    crc32c::crc32c_append(without, bytes.get(8..).unwrap_or(&[]))
}

/// Reads identifier, headers and region tables.
pub(super) fn read_parts(file: &dyn DiskRead, path: &Path) -> Result<FileParts, DiskError> {
    let identifier = part_of(file, 0, 8)?.ok_or_else(|| truncated(path))?;
    if identifier != b"vhdxfile" {
        return Err(refused(path, FORMAT, "it does not begin with vhdxfile", "say the format that it has"));
    }
    let mut occupied: Vec<_> = Area::new("headers", 0, MIB).into_iter().collect();
    let header = read_header(file, path)?;
    if let Some(log) = check_header(path, &header)? {
        if let Some(other) = occupied.iter().find(|other| other.overlaps(&log)) {
            return Err(bad(path, format!("its log lies over its {}", other.what)));
        }
        occupied.push(log);
    }
    let regions = read_regions(file, path, &mut occupied)?;
    let [Some(table), Some(metadata)] = regions else {
        return Err(bad(path, "its region table names no block allocation table, or no metadata"));
    };
    Ok(FileParts { table, metadata, occupied })
}

/// The header that counts: the sealed one with the higher sequence number.
fn read_header(file: &dyn DiskRead, path: &Path) -> Result<Vec<u8>, DiskError> {
    let mut newest: Option<(u64, Vec<u8>)> = None;
    for at in HEADERS_AT {
        let header = part_of(file, at, HEADER_BYTES)?.ok_or_else(|| truncated(path))?;
        if !is_sealed(&header, b"head") {
            continue;
        }
        let sequence = u64::from_le_bytes(field(&header, 8));
        match &newest {
            Some((other, bytes)) if *other == sequence && *bytes != header => {
                return Err(bad(path, "its two headers have one sequence number and are not the same"));
            }
            Some((other, _)) if *other >= sequence => {}
            _ => newest = Some((sequence, header)),
        }
    }
    newest
        .map(|(_, header)| header)
        .ok_or_else(|| bad(path, "neither of its headers has a checksum that fits"))
}

/// Checks a header, and says where the log lies if there is one.
fn check_header(path: &Path, header: &[u8]) -> Result<Option<Area>, DiskError> {
    let version = u16::from_le_bytes(field(header, 66));
    if version != 1 {
        return Err(bad(path, format!("its version is {version}; version 1 is known")));
    }
    if field(header, 48) != [0u8; 16] {
        let why = "the log holds changes that were not applied";
        let cure = "attach it once with Hyper-V, or have them applied by qemu-img check -r all";
        return Err(refused(path, FORMAT, why, cure));
    }
    let len = u64::from(u32::from_le_bytes(field(header, 68)));
    let start = u64::from_le_bytes(field(header, 72));
    if len == 0 {
        return Ok(None);
    }
    let log = Area::new("log", start, len).filter(|_| start % MIB == 0 && len % MIB == 0);
    log.map(Some).ok_or_else(|| bad(path, "its log does not lie at whole MiB"))
}

/// The regions of the block allocation table and of the metadata, from the first sealed region table. All regions
/// are added to what is occupied.
fn read_regions(
    file: &dyn DiskRead,
    path: &Path,
    occupied: &mut Vec<Area>,
) -> Result<[Option<Area>; 2], DiskError> {
    let mut sealed = None;
    for at in REGION_TABLES_AT {
        let bytes = part_of(file, at, TABLE_BYTES)?.ok_or_else(|| truncated(path))?;
        sealed = sealed.or(Some(bytes).filter(|bytes| is_sealed(bytes, b"regi")));
    }
    let Some(bytes) = sealed else {
        return Err(bad(path, "neither of its region tables has a checksum that fits"));
    };
    let mut found = [None; 2];
    for entry in table_entries(path, &bytes, 16, u32::from_le_bytes(field(&bytes, 8)), "region table")? {
        let id: [u8; 16] = field(entry, 0);
        let is_required = u32::from_le_bytes(field(entry, 28)) & 1 == 1;
        let known = [TABLE_REGION, METADATA_REGION].iter().position(|known| *known == id);
        if known.is_none() && is_required {
            let why = "it has a region that must be understood and is not known";
            return Err(refused(path, FORMAT, why, "convert it with the program that made it"));
        }
        let what = match known {
            Some(0) => "block allocation table",
            Some(_) => "metadata",
            None => "region that is not known",
        };
        let area = check_region(file, path, entry, what)?;
        if let Some(other) = occupied.iter().find(|other| other.overlaps(&area)) {
            return Err(bad(path, format!("its {what} lies over its {}", other.what)));
        }
        occupied.push(area);
        if let Some(slot) = known.and_then(|known| found.get_mut(known))
            && slot.replace(area).is_some()
        {
            return Err(bad(path, format!("it has more than one {what}")));
        }
    }
    Ok(found)
}

/// The place of a region: whole MiB after the headers, inside the file.
fn check_region(
    file: &dyn DiskRead,
    path: &Path,
    entry: &[u8],
    what: &'static str,
) -> Result<Area, DiskError> {
    let start = u64::from_le_bytes(field(entry, 16));
    let len = u64::from(u32::from_le_bytes(field(entry, 24)));
    let area = Area::new(what, start, len).filter(|area| area.end <= file.len_bytes());
    area.filter(|_| start % MIB == 0 && len % MIB == 0 && len > 0).ok_or_else(|| {
        bad(path, format!("its {what}, of {len} bytes at {start}, does not lie at whole MiB of the file"))
    })
}

/// The entries of a region table or a metadata table.
fn table_entries<'a>(
    path: &Path,
    table: &'a [u8],
    at: usize,
    count: u32,
    what: &str,
) -> Result<impl Iterator<Item = &'a [u8]>, DiskError> {
    let entries = table.get(at..).filter(|_| count <= ENTRIES_MAX);
    let entries = entries.ok_or_else(|| bad(path, format!("its {what} says that it has {count} entries")))?;
    Ok(entries.chunks_exact(ENTRY_BYTES).take(usize::try_from(count).unwrap_or(0)))
}

/// What the metadata's items say until all are read.
#[derive(Default)]
struct Items {
    file_parameters: Option<[u8; 8]>,
    disk_bytes: Option<[u8; 8]>,
    logical_sector: Option<[u8; 4]>,
    physical_sector: Option<[u8; 4]>,
}

/// Reads the metadata of the disk.
pub(super) fn read_metadata(file: &dyn DiskRead, path: &Path, region: &Area) -> Result<Metadata, DiskError> {
    let table = part_of(file, region.start, TABLE_BYTES)?.ok_or_else(|| truncated(path))?;
    if !table.starts_with(b"metadata") {
        return Err(bad(path, "its metadata do not begin with their signature"));
    }
    let mut items = Items::default();
    let count = u32::from(u16::from_le_bytes(field(&table, 10)));
    for entry in table_entries(path, &table, 32, count, "metadata table")? {
        read_item(file, path, region, entry, &mut items)?;
    }
    let missing = |what| move || bad(path, format!("its metadata do not say {what}"));
    let parameters = items.file_parameters.ok_or_else(missing("the block size"))?;
    let disk_bytes = u64::from_le_bytes(items.disk_bytes.ok_or_else(missing("the disk's size"))?);
    let sector = u32::from_le_bytes(items.logical_sector.ok_or_else(missing("the size of sectors"))?);
    let physical = u32::from_le_bytes(items.physical_sector.unwrap_or(sector.to_le_bytes()));
    if u32::from_le_bytes(field(&parameters, 4)) & 2 != 0 {
        return Err(refused(path, FORMAT, "it is a differencing disk: it has a parent", FLATTEN));
    }
    let block_bytes = u64::from(u32::from_le_bytes(field(&parameters, 0)));
    if !block_bytes.is_power_of_two() || !(MIB..=256 * MIB).contains(&block_bytes) {
        let why = format!("its blocks of {block_bytes} bytes are not a power of two from 1 to 256 MiB");
        return Err(bad(path, why));
    }
    if ![512, 4096].contains(&sector) || ![512, 4096].contains(&physical) {
        return Err(bad(
            path,
            format!("its sectors of {sector} and {physical} bytes are not of 512 or 4096"),
        ));
    }
    if disk_bytes > DISK_BYTES_MAX {
        return Err(bad(path, format!("it says that it has {disk_bytes} bytes; VHDX ends at 64 TiB")));
    }
    Ok(Metadata { disk_bytes, block_bytes, sector_bytes: u64::from(sector) })
}

/// Reads the item that an entry of the metadata table names.
fn read_item(
    file: &dyn DiskRead,
    path: &Path,
    region: &Area,
    entry: &[u8],
    items: &mut Items,
) -> Result<(), DiskError> {
    let flags = u32::from_le_bytes(field(entry, 24));
    let (is_user, is_required) = (flags & 1 != 0, flags & 4 != 0);
    let id: [u8; 16] = field(entry, 0);
    if is_user || ![FILE_PARAMETERS, DISK_BYTES, LOGICAL_SECTOR, PHYSICAL_SECTOR].contains(&id) {
        if id == PARENT_LOCATOR {
            return Err(refused(path, FORMAT, "it is a differencing disk: it names a parent", FLATTEN));
        }
        if is_required && (is_user || id != DISK_ID) {
            let why = "its metadata have an item that must be understood and is not known";
            return Err(refused(path, FORMAT, why, "convert it with the program that made it"));
        }
        return Ok(());
    }
    let is_new = match id {
        FILE_PARAMETERS => items.file_parameters.replace(item_value(file, path, region, entry)?).is_none(),
        DISK_BYTES => items.disk_bytes.replace(item_value(file, path, region, entry)?).is_none(),
        LOGICAL_SECTOR => items.logical_sector.replace(item_value(file, path, region, entry)?).is_none(),
        _ => items.physical_sector.replace(item_value(file, path, region, entry)?).is_none(),
    };
    if is_new { Ok(()) } else { Err(bad(path, "its metadata have an item twice")) }
}

/// The value of an item that must be `N` bytes long.
fn item_value<const N: usize>(
    file: &dyn DiskRead,
    path: &Path,
    region: &Area,
    entry: &[u8],
) -> Result<[u8; N], DiskError> {
    let offset = u64::from(u32::from_le_bytes(field(entry, 16)));
    let len = u32::from_le_bytes(field(entry, 20));
    let at = region.start.checked_add(offset).filter(|_| offset >= ITEMS_AT && u64::from(len) == N as u64);
    let at = at.filter(|at| at.checked_add(N as u64).is_some_and(|end| end <= region.end));
    let Some(at) = at else {
        return Err(bad(
            path,
            format!("an item of its metadata, of {len} bytes at {offset}, is out of its place"),
        ));
    };
    let value = part_of(file, at, N)?.ok_or_else(|| truncated(path))?;
    Ok(field(&value, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guids_are_stored_with_three_little_endian_fields() {
        let stored =
            [0x66, 0x77, 0xc2, 0x2d, 0x23, 0xf6, 0, 0x42, 0x9d, 0x64, 0x11, 0x5e, 0x9b, 0xfd, 0x4a, 0x08];
        assert_eq!(TABLE_REGION, stored);
    }

    #[test]
    fn a_sector_bitmap_covers_the_specified_blocks() {
        let ratio = |block_mib, sector_bytes| {
            Metadata { disk_bytes: 0, block_bytes: block_mib * MIB, sector_bytes }.chunk_ratio()
        };
        assert_eq!([ratio(1, 512), ratio(32, 512), ratio(256, 512)], [4096, 128, 16]);
        assert_eq!([ratio(1, 4096), ratio(256, 4096)], [32768, 128]);
    }
}
