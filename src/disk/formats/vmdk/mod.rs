//! VMDK, the format of VMware: one file with its descriptor inside, sparse (`monolithicSparse`) or compressed
//! (`streamOptimized`, as in OVA files).
//!
//! Read by VMware's "Virtual Disk Format 5.0". Everything that has its data in other files is refused: a
//! descriptor names files by any path, and so whoever makes one would choose what is read here. The extent
//! is the file itself, whatever name the descriptor gives it. Two grains of an uncompressed file may share
//! bytes; the virtual size, which is limited, bounds what that leads to.

mod cache;
mod descriptor;
mod header;
#[cfg(test)]
mod sample;
mod tables;
#[cfg(test)]
mod tests;
pub mod write;

use super::{Limits, refused};
use crate::io::disk::{DiskError, DiskRead, Extent};
use cache::Cache;
use descriptor::DESCRIPTOR_BYTES_MAX;

pub use descriptor::is_descriptor;
use flate2::{Decompress, FlushDecompress, Status};
use header::{DIRECTORY_AT_END, HEADER_BYTES, Header, TAIL_BYTES, field, range};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tables::{GRAIN_MARKER_BYTES, Grain, Tables};

const FORMAT: &str = "VMDK";
const NO_DESCRIPTOR: &str = "it has no descriptor: it is one of several files of a disk";
const SECTOR_BYTES: u64 = 512;
/// How far an extent reaches at most.
const AHEAD_BYTES: u64 = 64 << 20;
/// Decompressed grains that are kept: a read may end in a grain that the next begins in.
const KEPT_GRAIN_BYTES: u64 = 2 << 20;

/// Why a file is refused.
#[derive(Debug, PartialEq, Eq)]
struct Fault {
    why: String,
    cure: &'static str,
}

impl Fault {
    fn damaged(why: impl Into<String>) -> Self {
        Self { why: why.into(), cure: "copy it here again, or make it anew" }
    }

    fn variant(why: impl Into<String>) -> Self {
        let cure = "where it was made, convert it to raw or to a streamOptimized VMDK without a parent";
        Self { why: why.into(), cure }
    }
}

/// The file that the virtual disk is in.
struct Source {
    file: Arc<dyn DiskRead>,
    path: PathBuf,
}

impl Source {
    fn refuse(&self, fault: Fault) -> DiskError {
        refused(&self.path, FORMAT, fault.why, fault.cure)
    }

    /// Bytes that are in the file and bounded, both checked before.
    fn read(&self, offset: u64, bytes: u64) -> Result<Vec<u8>, DiskError> {
        let bytes = usize::try_from(bytes)
            .map_err(|_| DiskError::io("read", &self.path, offset, io::ErrorKind::OutOfMemory.into()))?;
        let mut buffer = vec![0; bytes];
        self.file.read_at(offset, &mut buffer)?;
        Ok(buffer)
    }
}

/// A VMDK open for reading.
pub struct Vmdk {
    source: Source,
    tables: Tables,
    grains: Cache<Vec<u8>>,
}

/// Opens the virtual disk in a file; `path` is what messages call it and is never opened. Header, descriptor
/// and grain directory are checked at once, each grain table when it is first needed, and compressed grains
/// when they are read.
pub fn open(file: Arc<dyn DiskRead>, path: &Path, limits: &Limits) -> Result<Vmdk, DiskError> {
    let source = Source { file, path: path.to_owned() };
    let file_len = source.file.len_bytes();
    let head = source.read(0, file_len.min(HEADER_BYTES as u64))?;
    let mut header = header::parse(&head).map_err(|fault| source.refuse(fault))?;
    let virtual_bytes = header.capacity.saturating_mul(SECTOR_BYTES);
    limits.check_size(path, FORMAT, virtual_bytes)?;
    let mut end = file_len;
    if header.directory_offset == DIRECTORY_AT_END {
        (end, header.directory_offset) = read_footer(&source, &header, file_len)?;
    }
    let sectors = read_descriptor(&source, &header, end)?;
    let len = sectors.saturating_mul(SECTOR_BYTES);
    limits.check_size(path, FORMAT, len)?;
    let tables = Tables::open(&source, &header, len, end, limits)?;
    let grains = Cache::new(KEPT_GRAIN_BYTES / tables.grain_bytes);
    Ok(Vmdk { source, tables, grains })
}

/// Where grains end, and the directory's place.
fn read_footer(source: &Source, header: &Header, file_len: u64) -> Result<(u64, u64), DiskError> {
    let tail = TAIL_BYTES as u64;
    let start = file_len.checked_sub(tail).filter(|start| start % SECTOR_BYTES == 0);
    let start = start
        .ok_or_else(|| source.refuse(Fault::damaged("it does not end with a footer; it may be cut off")))?;
    let tail = source.read(start, tail)?;
    let directory = header::directory_of_footer(header, &tail).map_err(|fault| source.refuse(fault))?;
    Ok((start, directory))
}

/// The disk's sectors by the descriptor, which must fit the header.
///
/// VirtualBox rounds the header's capacity up to whole grains; what its guest saw is in the descriptor.
fn read_descriptor(source: &Source, header: &Header, end: u64) -> Result<u64, DiskError> {
    let fault = |fault| source.refuse(fault);
    if header.descriptor_offset == 0 || header.descriptor_sectors == 0 {
        return Err(fault(Fault::variant(NO_DESCRIPTOR)));
    }
    let bytes = header.descriptor_sectors.checked_mul(SECTOR_BYTES);
    let Some(bytes) = bytes.filter(|&bytes| bytes <= DESCRIPTOR_BYTES_MAX) else {
        let why = format!("its descriptor has {} sectors, over the limit", header.descriptor_sectors);
        return Err(fault(Fault::damaged(why)));
    };
    let place = range(header.descriptor_offset, bytes, end);
    let (start, _) = place.ok_or_else(|| fault(Fault::damaged("its descriptor is outside the file")))?;
    let found = descriptor::parse(&source.read(start, bytes)?).map_err(fault)?;
    if found.stream_optimized != header.compressed {
        return Err(fault(Fault::variant(
            "its header and its descriptor differ in whether it is compressed",
        )));
    }
    let rounded = found.sectors.checked_next_multiple_of(header.grain_sectors);
    if found.sectors != header.capacity && rounded != Some(header.capacity) {
        let why = format!(
            "its header says that it has {} sectors, its descriptor says {}",
            header.capacity, found.sectors
        );
        return Err(fault(Fault::damaged(why)));
    }
    Ok(found.sectors)
}

impl Vmdk {
    /// Refuses what is not inside the disk.
    fn check_inside(&self, offset: u64, bytes: u64) -> Result<(), DiskError> {
        if offset.checked_add(bytes).is_none_or(|end| end > self.tables.len) {
            return Err(DiskError::io("read", &self.source.path, offset, io::ErrorKind::InvalidInput.into()));
        }
        Ok(())
    }

    /// A compressed grain's bytes; `start` is its marker.
    fn decoded(&self, grain: u64, start: u64) -> Result<Arc<Vec<u8>>, DiskError> {
        if let Some(bytes) = self.grains.get(grain) {
            return Ok(bytes);
        }
        let fault = |why: &str| self.source.refuse(Fault::damaged(format!("grain {grain} {why}")));
        let marker = self.source.read(start, GRAIN_MARKER_BYTES)?;
        let lba = u64::from_le_bytes(field(&marker, 0)).checked_mul(SECTOR_BYTES);
        if lba.is_none_or(|lba| lba != grain.saturating_mul(self.tables.grain_bytes)) {
            return Err(fault("has the marker of another grain"));
        }
        let stored = u64::from(u32::from_le_bytes(field(&marker, 8)));
        // What deflate cannot shorten it lengthens by far less than this.
        let most = self.tables.grain_bytes.saturating_mul(2);
        if stored == 0 || stored > most || !self.tables.is_free(start, GRAIN_MARKER_BYTES + stored) {
            return Err(fault("has a length that does not fit"));
        }
        let compressed = self.source.read(start.saturating_add(GRAIN_MARKER_BYTES), stored)?;
        let whole = usize::try_from(self.tables.grain_bytes).unwrap_or(usize::MAX);
        let bytes = inflate(&compressed, whole).map_err(fault)?;
        let least = self.tables.bytes_of(grain);
        let is_last = grain.saturating_add(1) == self.tables.grains;
        if bytes.len() != whole && !(is_last && bytes.len() as u64 >= least) {
            return Err(fault("has fewer bytes than a grain"));
        }
        let bytes = Arc::new(bytes);
        self.grains.put(grain, bytes.clone());
        Ok(bytes)
    }
}

/// Decompresses exactly one zlib stream of at most `most` bytes.
fn inflate(compressed: &[u8], most: usize) -> Result<Vec<u8>, &'static str> {
    // One more, so that a longer stream is told from one that fits.
    let mut bytes = vec![0; most.saturating_add(1)];
    let mut stream = Decompress::new(true);
    let status = stream.decompress(compressed, &mut bytes, FlushDecompress::Finish);
    let len = usize::try_from(stream.total_out()).unwrap_or(usize::MAX);
    if len > most {
        return Err("has more bytes than a grain");
    }
    if !matches!(status, Ok(Status::StreamEnd)) {
        return Err("cannot be decompressed");
    }
    if stream.total_in() != compressed.len() as u64 {
        return Err("has bytes after its compressed ones");
    }
    bytes.truncate(len);
    Ok(bytes)
}

impl DiskRead for Vmdk {
    fn len_bytes(&self) -> u64 {
        self.tables.len
    }

    fn extent_at(&self, offset: u64) -> Result<Extent, DiskError> {
        self.check_inside(offset, 1)?;
        let grain_bytes = self.tables.grain_bytes;
        let first = offset / grain_bytes;
        let limit = first.saturating_add(AHEAD_BYTES / grain_bytes).min(self.tables.grains);
        let is_zero = |grain| grain == Grain::Zeros;
        let same = |before, here| is_zero(before) == is_zero(here);
        let (grain, next) = self.tables.run(&self.source, first, limit, same)?;
        let end = next.saturating_mul(grain_bytes).min(self.tables.len);
        Ok(Extent { start: offset, end, is_zero: is_zero(grain) })
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        self.check_inside(offset, buffer.len() as u64)?;
        let grain_bytes = self.tables.grain_bytes;
        let (mut at, mut rest) = (offset, buffer);
        while !rest.is_empty() {
            let (first, skip) = (at / grain_bytes, at % grain_bytes);
            let wanted = at.saturating_add(rest.len() as u64).div_ceil(grain_bytes);
            // Neighbours on the disk that are neighbours in the file are read at once.
            let adjoins = |before, here| match (before, here) {
                (Grain::Zeros, Grain::Zeros) => true,
                (Grain::At(before), Grain::At(here)) => before.checked_add(grain_bytes) == Some(here),
                _ => false,
            };
            let limit = if self.tables.compressed { first.saturating_add(1) } else { wanted };
            let (grain, next) = self.tables.run(&self.source, first, limit, adjoins)?;
            let left = next.saturating_mul(grain_bytes).saturating_sub(at);
            let left = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
            let (piece, behind) = rest.split_at_mut(left);
            match grain {
                Grain::Zeros => piece.fill(0),
                Grain::At(start) if self.tables.compressed => {
                    let bytes = self.decoded(first, start)?;
                    let from = usize::try_from(skip).unwrap_or(usize::MAX);
                    let part = bytes.get(from..).and_then(|bytes| bytes.get(..piece.len()));
                    let short =
                        || DiskError::io("read", &self.source.path, at, io::ErrorKind::InvalidData.into());
                    piece.copy_from_slice(part.ok_or_else(short)?);
                }
                Grain::At(start) => self.source.file.read_at(start.saturating_add(skip), piece)?,
            }
            at = at.saturating_add(piece.len() as u64);
            rest = behind;
        }
        Ok(())
    }

    fn is_computed(&self) -> bool {
        self.tables.compressed
    }
}
