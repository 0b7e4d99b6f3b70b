//! Writing VHD files, dynamic and fixed.
//!
//! All programs are to see one size, the footer's size in bytes. Hyper-V and Azure know no other. QEMU
//! (`block/vpc.c`) takes it for creators that are known to mean it, among them `win `, Hyper-V, whose name is
//! therefore written here; ours it would not know, and whether it takes the size or the geometry then has changed
//! from version to version. The geometry, which Virtual PC goes by, is the specification's for that size: not more.

use super::{DYNAMIC, DYNAMIC_HEADER_BYTES, FIXED, FOOTER_BYTES, FORMAT, SECTOR_BYTES, UNUSED, checksum};
use crate::disk::formats::VolumeLimit;
use crate::disk::formats::growing::{Growing, Shape, check_inside};
use crate::disk::formats::refused;
use crate::disk::is_zero;
use crate::io::disk::{DiskError, DiskWrite, FileWrite};
use std::path::{Path, PathBuf};

/// Which VHD is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Blocks of zeros are absent. The disk has the volume's size in whole sectors of 512 bytes.
    Dynamic,
    /// The disk as it is, and a footer: what Azure takes. It demands whole MiB, and so many the disk has.
    Fixed,
}

/// Bytes of the largest disk: what QEMU, Hyper-V and Azure take at most.
pub const DISK_BYTES_MAX: u64 = 2040 << 30;

const BLOCK_BYTES: u32 = 2 << 20;
/// A block's bitmap: all of its sectors are written.
const BITMAP: [u8; FOOTER_BYTES] = [0xff; FOOTER_BYTES];
/// What the disk's blocks begin at multiples of, as Hyper-V has it since disks have such sectors.
const ALIGNMENT: u64 = 4096;
const HEADER_AT: u64 = FOOTER_BYTES as u64;
const TABLE_AT: u64 = HEADER_AT + DYNAMIC_HEADER_BYTES as u64;
/// Azure's unit of sizes.
const FIXED_UNIT: u64 = 1 << 20;

/// The volumes that the format holds.
pub const LIMIT: VolumeLimit = VolumeLimit { format: FORMAT, bytes: DISK_BYTES_MAX };

/// A file that becomes a VHD of a volume. `id`, which is random, tells it from all others. A volume of more than
/// [`DISK_BYTES_MAX`] is refused.
pub fn create<'a>(
    file: Box<dyn FileWrite + 'a>,
    path: &Path,
    volume_bytes: u64,
    kind: Kind,
    id: u128,
) -> Result<Box<dyn DiskWrite + 'a>, DiskError> {
    LIMIT.check(path, volume_bytes)?;
    let path = path.to_owned();
    Ok(match kind {
        Kind::Fixed => {
            let footer = footer(FIXED, u64::MAX, volume_bytes.next_multiple_of(FIXED_UNIT), id);
            Box::new(Fixed { file, path, volume_bytes, footer })
        }
        Kind::Dynamic => {
            let block_bytes = u64::from(BLOCK_BYTES);
            let entries = volume_bytes.div_ceil(block_bytes);
            let head_end = (TABLE_AT + entries * 4).next_multiple_of(SECTOR_BYTES);
            let shape = Shape {
                volume_bytes,
                block_bytes,
                head_end,
                first_at: (head_end + BITMAP.len() as u64).next_multiple_of(ALIGNMENT),
                stride_bytes: block_bytes + ALIGNMENT,
                lead: BITMAP.to_vec(),
            };
            let footer = footer(DYNAMIC, HEADER_AT, volume_bytes.next_multiple_of(SECTOR_BYTES), id);
            Box::new(Dynamic { blocks: Growing::new(file, &path, shape), entries, footer })
        }
    })
}

/// Puts fields into zeros. None lies outside of them.
fn structure<const N: usize>(fields: &[(usize, &[u8])], checksum_at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    let put = |bytes: &mut [u8; N], at: usize, field: &[u8]| {
        if let Some(place) = bytes.get_mut(at..).and_then(|rest| rest.get_mut(..field.len())) {
            place.copy_from_slice(field);
        }
    };
    for (at, field) in fields {
        put(&mut bytes, *at, field);
    }
    let sum = checksum(&bytes, checksum_at);
    put(&mut bytes, checksum_at, &sum.to_be_bytes());
    bytes
}

/// The footer. Its time, which nobody needs, is the first there is.
fn footer(kind: u32, header_at: u64, disk_bytes: u64, id: u128) -> [u8; FOOTER_BYTES] {
    let fields: [(usize, &[u8]); 12] = [
        (0, b"conectix"),
        (8, &2u32.to_be_bytes()),
        (12, &0x1_0000u32.to_be_bytes()),
        (16, &header_at.to_be_bytes()),
        (28, b"win "),
        (32, &0xa_0000u32.to_be_bytes()),
        (36, b"Wi2k"),
        (40, &disk_bytes.to_be_bytes()),
        (48, &disk_bytes.to_be_bytes()),
        (56, &geometry(disk_bytes / SECTOR_BYTES)),
        (60, &kind.to_be_bytes()),
        (68, &id.to_be_bytes()),
    ];
    structure(&fields, 64)
}

/// The second header of a dynamic disk.
fn dynamic_header(entries: u64) -> [u8; DYNAMIC_HEADER_BYTES] {
    let entries = u32::try_from(entries).unwrap_or(u32::MAX);
    let fields: [(usize, &[u8]); 6] = [
        (0, b"cxsparse"),
        (8, &u64::MAX.to_be_bytes()),
        (16, &TABLE_AT.to_be_bytes()),
        (24, &0x1_0000u32.to_be_bytes()),
        (28, &entries.to_be_bytes()),
        (32, &BLOCK_BYTES.to_be_bytes()),
    ];
    structure(&fields, 36)
}

/// Cylinders, heads, and sectors of a track, as the specification counts them.
fn geometry(sectors: u64) -> [u8; 4] {
    let sectors = sectors.min(super::GEOMETRY_SECTORS_MAX);
    let tracks = sectors / 17;
    let (heads, per_track) = match u8::try_from(tracks.div_ceil(1024).max(4)) {
        _ if sectors >= 65535 * 16 * 63 => (16, 255),
        Ok(heads) if heads <= 16 && tracks < u64::from(heads) * 1024 => (heads, 17),
        _ if sectors / 31 < 16 * 1024 => (16, 31),
        _ => (16, 63),
    };
    let cylinders = sectors / u64::from(per_track) / u64::from(heads);
    let [high, low] = u16::try_from(cylinders).unwrap_or(u16::MAX).to_be_bytes();
    [high, low, heads, per_track]
}

/// A dynamic disk in the making.
struct Dynamic<'a> {
    blocks: Growing<'a>,
    entries: u64,
    footer: [u8; FOOTER_BYTES],
}

impl DiskWrite for Dynamic<'_> {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.blocks.write(offset, bytes)
    }

    /// What is not written reads as zeros.
    fn zero_at(&mut self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.blocks.check_inside(offset, len)
    }

    fn finish(mut self: Box<Self>) -> Result<(), DiskError> {
        let blocks = &mut self.blocks;
        blocks.put(0, &self.footer)?;
        blocks.put(HEADER_AT, &dynamic_header(self.entries))?;
        blocks.put_table(TABLE_AT, |_, place| {
            let bitmap_at = place.map(|place| (place - BITMAP.len() as u64) / SECTOR_BYTES);
            let sector = bitmap_at.and_then(|sector| u32::try_from(sector).ok()).unwrap_or(UNUSED);
            (None, sector.to_be_bytes())
        })?;
        // The table's last sector is unused behind its entries, not the first sector of the file.
        let table_end = TABLE_AT + self.entries * 4;
        let unused = usize::try_from(table_end.next_multiple_of(SECTOR_BYTES) - table_end).unwrap_or(0);
        blocks.put(table_end, &[0xff; FOOTER_BYTES][..unused])?;
        blocks.put(blocks.end(), &self.footer)?;
        self.blocks.close()
    }
}

/// A fixed disk in the making.
struct Fixed<'a> {
    file: Box<dyn FileWrite + 'a>,
    path: PathBuf,
    volume_bytes: u64,
    footer: [u8; FOOTER_BYTES],
}

impl DiskWrite for Fixed<'_> {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        check_inside(&self.path, self.volume_bytes, offset, bytes.len() as u64)?;
        // Such a file would be taken for a dynamic one, of which the guest wrote the headers.
        if offset == 0 && bytes.starts_with(b"conectix") {
            let why = "the volume begins with a VHD's footer itself, and a fixed one would be misread";
            return Err(refused(&self.path, FORMAT, why, "choose another --format"));
        }
        if is_zero(bytes) { Ok(()) } else { self.file.put_at(offset, bytes) }
    }

    /// What is not written reads as zeros.
    fn zero_at(&mut self, offset: u64, len: u64) -> Result<(), DiskError> {
        check_inside(&self.path, self.volume_bytes, offset, len)
    }

    fn finish(mut self: Box<Self>) -> Result<(), DiskError> {
        self.file.put_at(self.volume_bytes.next_multiple_of(FIXED_UNIT), &self.footer)?;
        self.file.close()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn geometries_are_those_of_the_specification() {
        let sectors = |mib: u64| mib * 2048;
        let chs = |sectors| {
            let [high, low, heads, per_track] = geometry(sectors);
            (u16::from_be_bytes([high, low]), heads, per_track)
        };
        assert_eq!(chs(1), (0, 4, 17));
        assert_eq!(chs(sectors(1)), (30, 4, 17));
        assert_eq!(chs(sectors(100)), (1003, 12, 17));
        assert_eq!(chs(sectors(200)), (825, 16, 31));
        assert_eq!(chs(sectors(503)), (1021, 16, 63));
        assert_eq!(chs(sectors(10 << 10)), (20805, 16, 63));
        assert_eq!(chs(sectors(127 << 10)), (65278, 16, 255));
        assert_eq!(chs(DISK_BYTES_MAX / 512), (65535, 16, 255));
    }
}
