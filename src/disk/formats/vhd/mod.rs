//! VHD, the disks of Virtual PC, of Hyper-V's first generation and of Azure, by the Virtual Hard Disk Image Format
//! Specification 1.0: fixed and dynamic ones. Differencing disks are refused, since they stand on another file.
//!
//! A footer of 512 bytes ends each file; a dynamic one has a copy of it at its start. What is between is the disk
//! itself in a fixed file; in a dynamic one, a second header, the block allocation table, and blocks, each after
//! a bitmap of the sectors in it that were written: the others are zeros.
//!
//! # Size
//!
//! A footer has two sizes: one in bytes, and a geometry (cylinders, heads, sectors), whose product can be less.
//! Which of them a program means is told by its name in the footer. This follows QEMU 10.0 (`block/vpc.c`): the
//! geometry counts if the name is one of [`GEOMETRY_SIZED`], unless the geometry is the largest that there is,
//! which stands for all larger disks; else the size in bytes does. Other than there, a geometry does not count that
//! lacks more than a cylinder of those bytes: a program that made the disk larger left it as it was, or wrote the
//! one that stands for "large" elsewhere (16383, 16, 63), under the name of the one before it.

pub mod write;

use super::pieces::{Area, Piece, extent_of, field, part_of, read_pieces, shared_block};
use super::{Limits, refused};
use crate::io::disk::{DiskError, DiskRead, Extent};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Creators whose disks have the size of their geometry: Virtual PC, and QEMU without `force_size`.
pub const GEOMETRY_SIZED: [&[u8; 4]; 2] = [b"vpc ", b"qemu"];

const FORMAT: &str = "VHD";
const COPY_AGAIN: &str = "copy it here again, or export the disk anew";
const FLATTEN: &str = "merge it with its parents where they are, or convert it there with qemu-img";
const SECTOR_BYTES: u64 = 512;
const FOOTER_BYTES: usize = 512;
const DYNAMIC_HEADER_BYTES: usize = 1024;
/// With shorter ones readers do not agree on how long the bitmap before a block is.
const BLOCK_BYTES_MIN: u64 = 4096;
const BLOCK_BYTES_MAX: u64 = 256 << 20;
/// The largest geometry.
const GEOMETRY_SECTORS_MAX: u64 = 65535 * 16 * 255;
/// An entry of a block that has no place in the file.
const UNUSED: u32 = u32::MAX;
/// What a block costs while the file is opened: its entry as it is stored, as it is held, and to be compared.
const BLOCK_MEMORY_BYTES: u64 = 12;
/// Sectors whose bits are looked at at once.
const WINDOW_SECTORS: u64 = 4096;
const WINDOW_BYTES: u64 = WINDOW_SECTORS * SECTOR_BYTES;

/// A VHD file open for reading.
pub struct Vhd {
    file: Arc<dyn DiskRead>,
    path: PathBuf,
    len: u64,
    left_over_bytes: u64,
    layout: Layout,
}

impl Vhd {
    /// What of the file is not on the disk, for people.
    pub fn notes(&self) -> Vec<String> {
        let bytes = self.left_over_bytes;
        let why = format!(
            "the last {bytes} bytes of the size in its footer are no part of the disk: its cylinders, heads and sectors end before"
        );
        if bytes == 0 { vec![] } else { vec![why] }
    }
}

/// How the disk lies in the file.
enum Layout {
    /// As it is, from the file's start.
    Fixed,
    /// In blocks.
    Dynamic(Blocks),
}

struct Blocks {
    block_bytes: u64,
    /// The sectors' bits before each block, in whole sectors.
    bitmap_bytes: u64,
    /// Of each block the sector of the file that its bitmap begins at, or [`UNUSED`].
    sectors: Vec<u32>,
}

/// What matters of a footer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Footer {
    kind: u32,
    header_at: u64,
    disk_bytes: u64,
    /// What the size in bytes has more.
    left_over_bytes: u64,
}

/// A fixed disk, a dynamic one, one that has a parent.
const FIXED: u32 = 2;
const DYNAMIC: u32 = 3;
const DIFFERENCING: u32 = 4;

/// Bytes that a fixed disk may have after its end: what a size by cylinders, heads and sectors leaves over.
const LEFT_OVER_MAX: u64 = 16 * 255 * SECTOR_BYTES;

/// Whether a disk ends in the footer of a VHD: a fixed one has no signature at its start. A raw disk may end like
/// that by accident or by malice, so this is no more than a hint.
pub fn has_footer(disk: &dyn DiskRead) -> Result<bool, DiskError> {
    Ok(read_footer(disk, disk.len_bytes().checked_sub(FOOTER_BYTES as u64))?.is_ok())
}

/// Opens a VHD file. Its footers and all of its block allocation table are checked: no block lies outside of the
/// file, over a header or the table, or over another block.
pub fn open(file: Arc<dyn DiskRead>, path: &Path, limits: &Limits) -> Result<Vhd, DiskError> {
    let footer = agreed_footer(&*file, path)?;
    limits.check_size(path, FORMAT, footer.disk_bytes)?;
    let len = footer.disk_bytes;
    let layout = match footer.kind {
        FIXED => {
            let data_bytes = file.len_bytes().saturating_sub(FOOTER_BYTES as u64);
            if len > data_bytes {
                let why = format!("it says that it has {len} bytes, the file has {data_bytes} of them");
                let cure = "copy it here again, or export the disk anew; if it is a raw disk that only ends like a VHD, say --format raw";
                return Err(refused(path, FORMAT, why, cure));
            }
            if data_bytes - len > LEFT_OVER_MAX {
                let why = format!("it says that it has {len} bytes, the file has {} more", data_bytes - len);
                let cure = "if it is a raw disk that only ends like a VHD, say --format raw";
                return Err(refused(path, FORMAT, why, cure));
            }
            Layout::Fixed
        }
        DYNAMIC => Layout::Dynamic(read_blocks(&*file, path, &footer, limits)?),
        DIFFERENCING => {
            return Err(refused(path, FORMAT, "it is a differencing disk: it has a parent", FLATTEN));
        }
        kind => return Err(bad(path, format!("it is of the unknown type {kind}"))),
    };
    Ok(Vhd { file, path: path.to_owned(), len, left_over_bytes: footer.left_over_bytes, layout })
}

fn bad(path: &Path, why: impl Into<String>) -> DiskError {
    refused(path, FORMAT, why, COPY_AGAIN)
}

/// The ones' complement of the sum of all bytes but those of the checksum itself.
fn checksum(bytes: &[u8], stored_at: usize) -> u32 {
    let (before, rest) = bytes.split_at_checked(stored_at).unwrap_or((bytes, &[]));
    let counted = before.iter().chain(rest.iter().skip(4));
    !counted.fold(0u32, |sum, &byte| sum.wrapping_add(u32::from(byte)))
}

/// Reads a footer, or says what is wrong with it.
fn read_footer(file: &dyn DiskRead, at: Option<u64>) -> Result<Result<Footer, &'static str>, DiskError> {
    let bytes = match at {
        Some(at) => part_of(file, at, FOOTER_BYTES)?,
        None => None,
    };
    Ok(bytes.ok_or("it is shorter than a footer").and_then(|bytes| parse_footer(&bytes)))
}

fn parse_footer(bytes: &[u8]) -> Result<Footer, &'static str> {
    if !bytes.starts_with(b"conectix") {
        return Err("its footer does not begin with conectix");
    }
    if u32::from_be_bytes(field(bytes, 64)) != checksum(bytes, 64) {
        return Err("its footer's checksum does not fit");
    }
    if u16::from_be_bytes(field(bytes, 12)) != 1 {
        return Err("its footer is of another version than 1");
    }
    let current_sectors = u64::from_be_bytes(field(bytes, 48)) / SECTOR_BYTES;
    let cylinders = u64::from(u16::from_be_bytes(field(bytes, 56)));
    let [heads, per_track] = field(bytes, 58).map(|byte: u8| u64::from(byte));
    let geometry_sectors = cylinders * heads * per_track;
    let creator: [u8; 4] = field(bytes, 28);
    let is_geometry_sized = GEOMETRY_SIZED.contains(&&creator)
        && geometry_sectors != GEOMETRY_SECTORS_MAX
        && current_sectors.saturating_sub(geometry_sectors) <= LEFT_OVER_MAX / SECTOR_BYTES;
    let sectors = if is_geometry_sized { geometry_sectors } else { current_sectors };
    Ok(Footer {
        kind: u32::from_be_bytes(field(bytes, 60)),
        header_at: u64::from_be_bytes(field(bytes, 16)),
        disk_bytes: sectors.saturating_mul(SECTOR_BYTES),
        left_over_bytes: current_sectors.saturating_sub(sectors).saturating_mul(SECTOR_BYTES),
    })
}

/// The footer at the end; for a dynamic file also the copy at the start, which must say the same, and which counts
/// where the file ends in something else than a footer, because it was cut while it grew.
fn agreed_footer(file: &dyn DiskRead, path: &Path) -> Result<Footer, DiskError> {
    let end = read_footer(file, file.len_bytes().checked_sub(FOOTER_BYTES as u64))?;
    let start = read_footer(file, Some(0))?;
    let has_copy = part_of(file, 0, 8)?.is_some_and(|bytes| bytes == b"conectix");
    let footer = match (start, end) {
        (Ok(start), Ok(end)) if start == end => end,
        (_, Ok(end)) if end.kind == FIXED && !has_copy => end,
        (_, Ok(_)) => return Err(bad(path, "its footer and the copy at its start do not say the same")),
        (Ok(start), Err(_)) if start.kind != FIXED => start,
        (_, Err(why)) => return Err(bad(path, why)),
    };
    if footer.kind == FIXED && has_copy {
        return Err(bad(path, "it has a footer at its start, too, although it is fixed"));
    }
    Ok(footer)
}

/// Reads the header of a dynamic file and its block allocation table.
fn read_blocks(
    file: &dyn DiskRead,
    path: &Path,
    footer: &Footer,
    limits: &Limits,
) -> Result<Blocks, DiskError> {
    let header = part_of(file, footer.header_at, DYNAMIC_HEADER_BYTES)?;
    let header = header.ok_or_else(|| bad(path, "its second header lies after the file's end"))?;
    if !header.starts_with(b"cxsparse") {
        return Err(bad(path, "its second header does not begin with cxsparse"));
    }
    if u32::from_be_bytes(field(&header, 36)) != checksum(&header, 36) {
        return Err(bad(path, "its second header's checksum does not fit"));
    }
    if u16::from_be_bytes(field(&header, 24)) != 1 {
        return Err(bad(path, "its second header is of another version than 1"));
    }
    let block_bytes = u64::from(u32::from_be_bytes(field(&header, 32)));
    if !block_bytes.is_power_of_two() || !(BLOCK_BYTES_MIN..=BLOCK_BYTES_MAX).contains(&block_bytes) {
        let why = format!("its blocks of {block_bytes} bytes are not a power of two from 4 KiB to 256 MiB");
        return Err(bad(path, why));
    }
    let (table_at, entries) =
        (u64::from_be_bytes(field(&header, 16)), u32::from_be_bytes(field(&header, 28)));
    let needed = footer.disk_bytes.div_ceil(block_bytes);
    if needed > u64::from(entries) {
        return Err(bad(path, format!("its table has {entries} entries; the disk has {needed} blocks")));
    }
    if needed.saturating_mul(BLOCK_MEMORY_BYTES) > limits.metadata_bytes {
        let why = format!(
            "its table of {needed} blocks is larger than the {} bytes allowed",
            limits.metadata_bytes
        );
        return Err(refused(path, FORMAT, why, "convert it to one with larger blocks"));
    }
    let table = Area::new("block allocation table", table_at, u64::from(entries) * 4);
    let Some(table) = table.filter(|table| table.end <= file.len_bytes()) else {
        return Err(bad(path, "its block allocation table lies after the file's end"));
    };
    let stored = part_of(file, table_at, usize::try_from(needed * 4).unwrap_or(usize::MAX))?;
    let stored = stored.ok_or_else(|| bad(path, "its block allocation table lies after the file's end"))?;
    let sectors = stored.as_chunks().0.iter().map(|&entry| u32::from_be_bytes(entry)).collect();
    let bitmap_bytes = (block_bytes / SECTOR_BYTES / 8).next_multiple_of(SECTOR_BYTES);
    let blocks = Blocks { block_bytes, bitmap_bytes, sectors };
    check_blocks(file, path, footer, table, &blocks)?;
    Ok(blocks)
}

/// Checks the places of the table and of each block against the file's length, its headers, and each other.
fn check_blocks(
    file: &dyn DiskRead,
    path: &Path,
    footer: &Footer,
    table: Area,
    blocks: &Blocks,
) -> Result<(), DiskError> {
    let file_bytes = file.len_bytes();
    let mut occupied: Vec<_> = Area::new("footer's copy", 0, FOOTER_BYTES as u64).into_iter().collect();
    occupied.extend(Area::new("second header", footer.header_at, DYNAMIC_HEADER_BYTES as u64));
    let end_at = file_bytes.saturating_sub(FOOTER_BYTES as u64);
    if part_of(file, end_at, 8)?.is_some_and(|bytes| bytes == b"conectix") {
        occupied.extend(Area::new("footer", end_at, FOOTER_BYTES as u64));
    }
    let over = |area: &Area, occupied: &[Area]| {
        occupied.iter().find(|other| other.overlaps(area)).map(|other| other.what)
    };
    if let Some(other) = over(&table, &occupied) {
        return Err(bad(path, format!("its block allocation table lies over its {other}")));
    }
    occupied.push(table);
    let whole = blocks.bitmap_bytes + blocks.block_bytes;
    let placed: Vec<_> = blocks.sectors.iter().copied().filter(|&sector| sector != UNUSED).collect();
    for &sector in &placed {
        let area = Area::new("block", u64::from(sector) * SECTOR_BYTES, whole);
        let Some(area) = area.filter(|area| area.end <= file_bytes) else {
            return Err(bad(path, format!("its block at sector {sector} ends after the file's end")));
        };
        if let Some(other) = over(&area, &occupied) {
            return Err(bad(path, format!("its block at sector {sector} lies over its {other}")));
        }
    }
    match shared_block(placed, whole / SECTOR_BYTES) {
        Some(sector) => Err(bad(path, format!("two blocks lie over each other at sector {sector}"))),
        None => Ok(()),
    }
}

impl Blocks {
    /// Where the bitmap of the block that `offset` is in lies, and where in the block that is.
    fn find(&self, offset: u64) -> (Option<u64>, u64) {
        let number = usize::try_from(offset / self.block_bytes).ok();
        let sector = number.and_then(|number| self.sectors.get(number)).filter(|&&sector| sector != UNUSED);
        (sector.map(|&sector| u64::from(sector) * SECTOR_BYTES), offset % self.block_bytes)
    }

    fn piece_at(&self, offset: u64) -> Piece {
        let (bitmap_at, start) = self.find(offset);
        Piece { at: bitmap_at.map(|at| at + self.bitmap_bytes + start), len: self.block_bytes - start }
    }

    /// Reads what lies in one block and one window of its bitmap.
    fn read(&self, file: &dyn DiskRead, offset: u64, piece: &mut [u8]) -> Result<(), DiskError> {
        let (Some(bitmap_at), start) = self.find(offset) else {
            piece.fill(0);
            return Ok(());
        };
        file.read_at(bitmap_at + self.bitmap_bytes + start, piece)?;
        let window = start / WINDOW_BYTES;
        let mut bits = [0; FOOTER_BYTES];
        file.read_at(bitmap_at + window * FOOTER_BYTES as u64, &mut bits)?;
        let (mut at, mut rest) = (start % WINDOW_BYTES, piece);
        while !rest.is_empty() {
            let left = usize::try_from(SECTOR_BYTES - at % SECTOR_BYTES).unwrap_or(FOOTER_BYTES);
            let (sector, behind) = rest.split_at_mut(left.min(rest.len()));
            if !is_written(&bits, at / SECTOR_BYTES) {
                sector.fill(0);
            }
            at += sector.len() as u64;
            rest = behind;
        }
        Ok(())
    }
}

/// Whether a sector's bit is set; the first sector has the highest bit of the first byte.
fn is_written(bits: &[u8], sector: u64) -> bool {
    let byte = usize::try_from(sector / 8).ok().and_then(|at| bits.get(at));
    byte.is_some_and(|byte| byte & (0x80 >> (sector % 8)) != 0)
}

impl DiskRead for Vhd {
    fn len_bytes(&self) -> u64 {
        self.len
    }

    fn extent_at(&self, offset: u64) -> Result<Extent, DiskError> {
        extent_of(&*self.file, self.len, offset, |at| match &self.layout {
            Layout::Fixed => Piece { at: Some(at), len: self.len.saturating_sub(at) },
            Layout::Dynamic(blocks) => blocks.piece_at(at),
        })
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        let file = &*self.file;
        let fill = |at, piece: &mut [u8]| match &self.layout {
            Layout::Fixed => file.read_at(at, piece),
            Layout::Dynamic(blocks) => blocks.read(file, at, piece),
        };
        read_pieces(&self.path, self.len, offset, buffer, fill, |at| match &self.layout {
            Layout::Fixed => self.len.saturating_sub(at),
            Layout::Dynamic(blocks) => blocks.piece_at(at).len.min(WINDOW_BYTES - at % WINDOW_BYTES),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_leaves_itself_out() {
        assert_eq!(checksum(&[], 0), u32::MAX);
        assert_eq!(checksum(&[1, 9, 9, 9, 9, 2], 1), !3);
    }

    #[test]
    fn bits_count_from_the_highest() {
        assert!(is_written(&[0x80, 0x01], 0) && is_written(&[0x80, 0x01], 15));
        assert!(!is_written(&[0x80, 0x01], 1) && !is_written(&[0x80, 0x01], 16));
    }
}
