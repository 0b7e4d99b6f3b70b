//! VDI 1.1, the disks of VirtualBox, by what it and QEMU (`block/vdi.c`) write: dynamic and fixed (static) ones.
//! Differencing and undo disks are refused, since they stand on another file.
//!
//! A header of 512 bytes; the block map, which has of each block of the disk the number of the block in the file
//! that holds it, or that it is zeros; then the file's blocks. In a fixed disk all of them are there, in order.

use super::pieces::{Area, Piece, extent_of, field, part_of, read_pieces, shared_block};
use super::{Limits, refused};
use crate::io::disk::{DiskError, DiskRead, Extent};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const FORMAT: &str = "VDI";
const COPY_AGAIN: &str = "copy it here again, or export the disk anew";
const FLATTEN: &str = "clone it where its parents are (VBoxManage clonemedium), and take the clone";
const CONVERT: &str = "convert it with the program that made it, or with qemu-img";
const SIGNATURE: u32 = 0xbeda_107f;
const VERSION: u32 = 0x1_0001;
const SECTOR_BYTES: u64 = 512;
const BLOCK_BYTES_MAX: u64 = 256 << 20;
/// What is read of the header: all up to the ids of its parents.
const HEADER_BYTES: usize = 0x1c8;
/// Where the header's length counts from.
const HEADER_START: u64 = 0x48;

/// Entries from here on are of blocks that have no place in the file: discarded, and never written ones.
const DISCARDED: u32 = u32::MAX - 1;
/// What a block costs while the file is opened: its entry as it is stored, as it is held, and to be compared.
const BLOCK_MEMORY_BYTES: u64 = 12;

/// Kinds of disks.
const DYNAMIC: u32 = 1;
const FIXED: u32 = 2;
const UNDO: u32 = 3;
const DIFFERENCING: u32 = 4;

/// A VDI file open for reading.
pub struct Vdi {
    file: Arc<dyn DiskRead>,
    path: PathBuf,
    len: u64,
    block_bytes: u64,
    data_at: u64,
    /// Of each block its number in the file, or [`DISCARDED`] or more.
    blocks: Vec<u32>,
}

/// What matters of a header.
struct Header {
    len: u64,
    block_bytes: u64,
    /// Entries of the block map. Numbers of blocks in the file are below that, too.
    entries: u32,
    map: Area,
    data_at: u64,
}

/// Opens a VDI file. Its header and all of its block map are checked: no block lies outside of the file or is
/// that of two places of the disk.
pub fn open(file: Arc<dyn DiskRead>, path: &Path, limits: &Limits) -> Result<Vdi, DiskError> {
    let header = read_header(&*file, path, limits)?;
    let blocks = read_map(&*file, path, &header, limits)?;
    let Header { len, block_bytes, data_at, .. } = header;
    let vdi = Vdi { file, path: path.to_owned(), len, block_bytes, data_at, blocks };
    vdi.check_blocks(header.entries)?;
    Ok(vdi)
}

fn bad(path: &Path, why: impl Into<String>) -> DiskError {
    refused(path, FORMAT, why, COPY_AGAIN)
}

fn read_header(file: &dyn DiskRead, path: &Path, limits: &Limits) -> Result<Header, DiskError> {
    let bytes = part_of(file, 0, HEADER_BYTES)?.ok_or_else(|| bad(path, "it is shorter than a header"))?;
    let word = |at| u32::from_le_bytes(field(&bytes, at));
    if word(0x40) != SIGNATURE {
        return Err(refused(path, FORMAT, "it does not have the signature", "say the format that it has"));
    }
    if word(0x44) != VERSION {
        let (major, minor) = (word(0x44) >> 16, word(0x44) & 0xffff);
        let why = format!("its version is {major}.{minor}; version 1.1 is known");
        return Err(refused(path, FORMAT, why, CONVERT));
    }
    let header = Area::new("header", 0, HEADER_START + u64::from(word(0x48)));
    let Some(header) = header.filter(|header| header.end >= HEADER_BYTES as u64) else {
        return Err(bad(path, format!("its header says that it has {} bytes", word(0x48))));
    };
    let has_parent = [0x1a8, 0x1b8].iter().any(|&at| field(&bytes, at) != [0u8; 16]);
    match word(0x4c) {
        DYNAMIC | FIXED if !has_parent => {}
        DYNAMIC | FIXED => return Err(refused(path, FORMAT, "it names a parent", FLATTEN)),
        UNDO | DIFFERENCING => {
            return Err(refused(path, FORMAT, "it is a differencing disk: it has a parent", FLATTEN));
        }
        kind => return Err(bad(path, format!("it is of the unknown type {kind}"))),
    }
    let disk_bytes = u64::from_le_bytes(field(&bytes, 0x170));
    limits.check_size(path, FORMAT, disk_bytes)?;
    // As QEMU rounds, so that the disk is whole sectors.
    let len = disk_bytes.checked_next_multiple_of(SECTOR_BYTES).unwrap_or(disk_bytes);
    let (block_bytes, extra, entries) = (u64::from(word(0x178)), word(0x17c), word(0x180));
    if !block_bytes.is_power_of_two() || !(SECTOR_BYTES..=BLOCK_BYTES_MAX).contains(&block_bytes) {
        let why =
            format!("its blocks of {block_bytes} bytes are not a power of two from 512 bytes to 256 MiB");
        return Err(bad(path, why));
    }
    if u64::from(word(0x168)) != SECTOR_BYTES || extra != 0 {
        let why = format!("it has sectors of {} bytes and {extra} more bytes a block", word(0x168));
        return Err(refused(path, FORMAT, why, CONVERT));
    }
    let map = Area::new("block map", u64::from(word(0x154)), u64::from(entries) * 4);
    let Some(map) = map.filter(|map| map.end <= file.len_bytes()) else {
        return Err(bad(path, "its block map lies after the file's end"));
    };
    let data_at = u64::from(word(0x158));
    if map.overlaps(&header) || data_at < map.end.max(header.end) {
        return Err(bad(path, "its header, its block map and its blocks do not lie behind each other"));
    }
    Ok(Header { len, block_bytes, entries, map, data_at })
}

/// Reads what the disk needs of the block map.
fn read_map(
    file: &dyn DiskRead,
    path: &Path,
    header: &Header,
    limits: &Limits,
) -> Result<Vec<u32>, DiskError> {
    let needed = header.len.div_ceil(header.block_bytes);
    if needed > u64::from(header.entries) {
        let why = format!("its block map has {} entries; the disk has {needed} blocks", header.entries);
        return Err(bad(path, why));
    }
    if needed.saturating_mul(BLOCK_MEMORY_BYTES) > limits.metadata_bytes {
        let why = format!(
            "its block map of {needed} blocks is larger than the {} bytes allowed",
            limits.metadata_bytes
        );
        return Err(refused(path, FORMAT, why, "convert it to one with larger blocks"));
    }
    let stored = part_of(file, header.map.start, usize::try_from(needed * 4).unwrap_or(usize::MAX))?;
    let stored = stored.ok_or_else(|| bad(path, "its block map lies after the file's end"))?;
    Ok(stored.as_chunks().0.iter().map(|&entry| u32::from_le_bytes(entry)).collect())
}

impl Vdi {
    /// Checks each block's place against the number of blocks, the file's length, and the other blocks.
    fn check_blocks(&self, entries: u32) -> Result<(), DiskError> {
        let file_bytes = self.file.len_bytes();
        for ((number, &block), start) in
            self.blocks.iter().enumerate().zip((0u64..).map(|n| n * self.block_bytes))
        {
            if block >= DISCARDED {
                continue;
            }
            if block >= entries {
                let why = format!("block {number} is number {block} in the file, of {entries}");
                return Err(bad(&self.path, why));
            }
            // The last block of the disk may end with it.
            let used = self.len.saturating_sub(start).min(self.block_bytes);
            let area = Area::new("block", self.place_of(block), used);
            if area.is_none_or(|area| area.end > file_bytes) {
                return Err(bad(&self.path, format!("block {number} lies after the file's end")));
            }
        }
        let placed: Vec<_> = self.blocks.iter().copied().filter(|&block| block < DISCARDED).collect();
        match shared_block(placed, 1) {
            Some(block) => Err(bad(&self.path, format!("block {block} of the file is used twice"))),
            None => Ok(()),
        }
    }

    /// Where a block of the file begins. Blocks are below 2^32 of at most 2^28 bytes, so this has a number.
    fn place_of(&self, block: u32) -> u64 {
        self.data_at + u64::from(block) * self.block_bytes
    }

    /// Where the disk's bytes from `offset` to the end of their block lie.
    fn piece_at(&self, offset: u64) -> Piece {
        let (number, start) = (offset / self.block_bytes, offset % self.block_bytes);
        let block = usize::try_from(number).ok().and_then(|number| self.blocks.get(number));
        let at = block.filter(|&&block| block < DISCARDED).map(|&block| self.place_of(block) + start);
        Piece { at, len: self.block_bytes - start }
    }
}

impl DiskRead for Vdi {
    fn len_bytes(&self) -> u64 {
        self.len
    }

    fn extent_at(&self, offset: u64) -> Result<Extent, DiskError> {
        extent_of(&*self.file, self.len, offset, |at| self.piece_at(at))
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        let fill = |at, piece: &mut [u8]| match self.piece_at(at).at {
            Some(place) => self.file.read_at(place, piece),
            None => {
                piece.fill(0);
                Ok(())
            }
        };
        read_pieces(&self.path, self.len, offset, buffer, fill, |at| self.piece_at(at).len)
    }
}
