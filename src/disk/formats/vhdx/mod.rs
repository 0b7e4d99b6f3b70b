//! VHDX, Hyper-V's disks, by the specification \[MS-VHDX\]: dynamic and fixed ones.
//!
//! The file is made of whole MiB: a MiB of headers, then regions (the block allocation table and the metadata),
//! a log, and the disk's blocks. Differencing disks are refused, since they stand on another file, and so are
//! those whose log holds changes that are not in their places yet.

mod header;
pub mod write;

use super::pieces::{Area, Piece, extent_of, part_of, read_pieces, shared_block};
use super::{Limits, refused};
use crate::io::disk::{DiskError, DiskRead, Extent};
use header::{FileParts, MIB, Metadata};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const FORMAT: &str = "VHDX";
const COPY_AGAIN: &str = "copy it here again, or export the disk anew";
const FLATTEN: &str = "merge it with its parents in Hyper-V, or convert it with qemu-img where they are";
/// Entries of the table that are read at once.
const BATCH_ENTRIES: usize = 8192;
/// What a block costs while the file is opened: its place, twice.
const BLOCK_MEMORY_BYTES: u64 = 8;

/// A VHDX file open for reading.
pub struct Vhdx {
    file: Arc<dyn DiskRead>,
    path: PathBuf,
    len: u64,
    block_bytes: u64,
    sector_bytes: u64,
    /// Of each block the MiB of the file that it begins at; 0, where the headers are, if it reads as zeros.
    blocks: Vec<u32>,
}

/// Opens a VHDX file. Its headers and all of its block allocation table are checked: no block lies outside of the
/// file, over a header, a region or the log, or over another block.
pub fn open(file: Arc<dyn DiskRead>, path: &Path, limits: &Limits) -> Result<Vhdx, DiskError> {
    let parts = header::read_parts(&*file, path)?;
    let metadata = header::read_metadata(&*file, path, &parts.metadata)?;
    limits.check_size(path, FORMAT, metadata.disk_bytes)?;
    if metadata.disk_bytes % metadata.sector_bytes != 0 {
        let why = format!("its size of {} bytes is not whole sectors", metadata.disk_bytes);
        return Err(refused(path, FORMAT, why, COPY_AGAIN));
    }
    let blocks = read_table(&*file, path, &parts, &metadata, limits)?;
    let Metadata { disk_bytes: len, block_bytes, sector_bytes } = metadata;
    let vhdx = Vhdx { file, path: path.to_owned(), len, block_bytes, sector_bytes, blocks };
    vhdx.check_blocks(&parts)?;
    Ok(vhdx)
}

/// Reads the block allocation table: after the entries of as many blocks as a sector bitmap covers comes one of
/// that bitmap, which means nothing where there is no parent.
fn read_table(
    file: &dyn DiskRead,
    path: &Path,
    parts: &FileParts,
    metadata: &Metadata,
    limits: &Limits,
) -> Result<Vec<u32>, DiskError> {
    let chunk_ratio = metadata.chunk_ratio();
    let blocks = metadata.disk_bytes.div_ceil(metadata.block_bytes);
    if blocks.saturating_mul(BLOCK_MEMORY_BYTES) > limits.metadata_bytes {
        let why = format!(
            "its table of {blocks} blocks is larger than the {} bytes allowed",
            limits.metadata_bytes
        );
        return Err(refused(path, FORMAT, why, "convert it to one with larger blocks"));
    }
    let entries = metadata.table_entries();
    let table = &parts.table;
    if entries.saturating_mul(8) > table.end.saturating_sub(table.start) {
        let why = format!("its block allocation table has no place for {entries} entries");
        return Err(refused(path, FORMAT, why, COPY_AGAIN));
    }
    let mut places = Vec::new();
    let (mut first, mut at) = (0u64, table.start);
    while first < entries {
        let count =
            usize::try_from(entries.saturating_sub(first)).unwrap_or(BATCH_ENTRIES).min(BATCH_ENTRIES);
        let batch = part_of(file, at, count.saturating_mul(8))?.ok_or_else(|| truncated(path))?;
        for (number, entry) in (first..).zip(batch.as_chunks().0) {
            if number % chunk_ratio.saturating_add(1) != chunk_ratio {
                places.push(place_of(path, u64::from_le_bytes(*entry), places.len())?);
            }
        }
        first = first.saturating_add(count as u64);
        at = at.saturating_add((count as u64).saturating_mul(8));
    }
    Ok(places)
}

/// What an entry of the table says: the MiB of the file that its block begins at, or 0.
fn place_of(path: &Path, entry: u64, number: usize) -> Result<u32, DiskError> {
    let why = match entry & 7 {
        // Not present, undefined, zero, unmapped, and that of version 0.95: without a parent, all of them are zeros.
        0..=3 | 5 => return Ok(0),
        6 => match u32::try_from(entry >> 20) {
            Ok(place) if place > 0 => return Ok(place),
            _ => format!("block {number} lies at MiB {} of the file", entry >> 20),
        },
        7 => {
            let why = format!("block {number} is partly in another file, as in a differencing disk");
            return Err(refused(path, FORMAT, why, FLATTEN));
        }
        state => format!("block {number} is in the unknown state {state}"),
    };
    Err(refused(path, FORMAT, why, COPY_AGAIN))
}

fn truncated(path: &Path) -> DiskError {
    refused(path, FORMAT, "it ends before its headers and regions do", COPY_AGAIN)
}

impl Vhdx {
    /// What is to be known of it, for people.
    pub fn notes(&self) -> Vec<String> {
        let bytes = self.sector_bytes;
        let why = format!(
            "it has sectors of {bytes} bytes, which nothing keeps: give it to a machine as a disk with such sectors"
        );
        if bytes == 512 { vec![] } else { vec![why] }
    }

    /// Checks each block's place against the file's length, its other parts, and the other blocks.
    fn check_blocks(&self, parts: &FileParts) -> Result<(), DiskError> {
        let bad = |why| refused(&self.path, FORMAT, why, COPY_AGAIN);
        let file_bytes = self.file.len_bytes();
        // First: of a table that names one place again and again not every entry is looked at.
        let placed: Vec<_> = self.blocks.iter().copied().filter(|&place| place != 0).collect();
        if let Some(place) = shared_block(placed, self.block_bytes / MIB) {
            return Err(bad(format!("two blocks lie over each other at MiB {place} of the file")));
        }
        for ((number, &place), start) in
            self.blocks.iter().enumerate().zip((0u64..).map(|n| n * self.block_bytes))
        {
            if place == 0 {
                continue;
            }
            // The last block of a fixed disk may end with the disk.
            let used = self.len.saturating_sub(start).min(self.block_bytes);
            let area = Area::new("block", u64::from(place) * MIB, used);
            let Some(area) = area.filter(|area| area.end <= file_bytes) else {
                return Err(bad(format!("block {number} lies after the file's end")));
            };
            if let Some(other) = parts.occupied.iter().find(|other| other.overlaps(&area)) {
                return Err(bad(format!("block {number} lies over its {}", other.what)));
            }
        }
        Ok(())
    }

    /// Where the disk's bytes from `offset` to the end of their block lie.
    fn piece_at(&self, offset: u64) -> Piece {
        let (number, start) = (offset / self.block_bytes, offset % self.block_bytes);
        let place = usize::try_from(number).ok().and_then(|number| self.blocks.get(number));
        let at = place.filter(|&&place| place != 0).map(|&place| u64::from(place) * MIB + start);
        Piece { at, len: self.block_bytes - start }
    }
}

impl DiskRead for Vhdx {
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
