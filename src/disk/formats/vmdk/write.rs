//! Writing VMDK as `streamOptimized`: compressed grains of 64 KiB behind markers, as OVA files hold them.
//!
//! The file is written from its first byte to its last, so that it can be hashed and sent on the way. Each grain
//! table follows the grains that it names, the grain directory follows them all, and only the footer says where
//! it is. Grains of zeros are not there, and neither are tables of none but such. Memory: a batch and what
//! becomes of it, one grain table, and four bytes for each 32 MiB of the disk.

mod head;
#[cfg(test)]
mod tests;

use super::header::TABLE_ENTRIES;
use super::{FORMAT, SECTOR_BYTES};
use crate::disk::formats::VolumeLimit;
use crate::disk::formats::units::{Squeeze, Squeezers, UNIT_BYTES, Unit, Units};
use crate::io::disk::{DiskError, DiskWrite, FileWrite};
use flate2::{Compress, Compression, FlushCompress, Status};
use rayon::ThreadPool;
use std::io;
use std::path::{Path, PathBuf};

const SECTOR: usize = 512;
const GRAIN_SECTORS: u64 = UNIT_BYTES as u64 / SECTOR_BYTES;
/// Sectors before the first grain, as VMware has it.
const HEAD_SECTORS: u64 = 128;
const TABLE_BYTES: usize = 4 * 512;
/// The largest disk of VMware: 62 TiB.
const GUEST_BYTES_MAX: u64 = 62 << 40;
/// Against 6, zlib's default, a quarter less time for files that are a third of a percent longer.
const LEVEL: u32 = 5;
/// What deflate adds to a grain at most is far less than this.
const GROWTH: usize = 4096;
/// Kinds of markers.
const END: u32 = 0;
const TABLE: u32 = 1;
const DIRECTORY: u32 = 2;
const FOOTER: u32 = 3;

/// The volumes that the format holds.
pub const LIMIT: VolumeLimit = VolumeLimit { format: FORMAT, bytes: GUEST_BYTES_MAX };

/// A new streamOptimized VMDK in `file`, which `path` is the name of in messages and, its last part, in the
/// descriptor. The virtual disk has `volume_bytes` rounded up to whole sectors of 512 bytes; what is not written
/// reads as zeros. Every [`FileWrite::put_at`] begins where the one before ended, the first at 0. Compression
/// runs on `pool`.
///
/// A volume of no bytes is refused as [`DiskError::Empty`], one over 62 TiB as [`DiskError::TooLong`]. Sectors of
/// the file have 32 bits: a disk that does not compress to less than 2 TiB fails on the way.
pub fn create<'a>(
    file: Box<dyn FileWrite + 'a>,
    path: &Path,
    volume_bytes: u64,
    pool: &'a ThreadPool,
) -> Result<Box<dyn DiskWrite + 'a>, DiskError> {
    LIMIT.check(path, volume_bytes)?;
    let sectors = volume_bytes.div_ceil(SECTOR_BYTES);
    let mut stream = Stream { file, path: path.to_owned(), position: 0 };
    stream.put(&head::head(path, sectors))?;
    let content = Content {
        stream,
        squeezers: Squeezers::new(pool),
        table: [0; TABLE_BYTES],
        table_index: None,
        directory: Vec::new(),
    };
    Ok(Box::new(Writer { units: Units::new(path, volume_bytes), content, sectors }))
}

/// A disk being written, front to back.
struct Writer<'a> {
    units: Units,
    content: Content<'a>,
    sectors: u64,
}

impl DiskWrite for Writer<'_> {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.units.write(offset, bytes, &mut |batch| self.content.put(batch))
    }

    fn zero_at(&mut self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.units.zero(offset, len, &mut |batch| self.content.put(batch))
    }

    fn finish(self: Box<Self>) -> Result<(), DiskError> {
        let Self { mut units, mut content, sectors } = *self;
        units.finish(&mut |batch| content.put(batch))?;
        content.close(sectors)
    }
}

/// The file, front to back.
struct Stream<'a> {
    file: Box<dyn FileWrite + 'a>,
    path: PathBuf,
    position: u64,
}

impl Stream<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), DiskError> {
        self.file.put_at(self.position, bytes)?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    /// The sector that comes next, as tables hold it.
    fn sector(&self) -> Result<u32, DiskError> {
        let why = "the file of a streamOptimized VMDK has at most 2 TiB, even compressed the volume has more; \
            choose another --format";
        let too_large = || self.failed(io::Error::new(io::ErrorKind::FileTooLarge, why));
        u32::try_from(self.position / SECTOR_BYTES).map_err(|_| too_large())
    }

    /// What goes before `sectors` sectors that are no grain.
    fn put_marker(&mut self, sectors: u64, kind: u32) -> Result<(), DiskError> {
        let mut marker = [0; SECTOR];
        let fields = sectors.to_le_bytes().into_iter().chain([0; 4]).chain(kind.to_le_bytes());
        marker.iter_mut().zip(fields).for_each(|(place, byte)| *place = byte);
        self.put(&marker)
    }

    fn failed(&self, source: io::Error) -> DiskError {
        DiskError::io("write", &self.path, self.position, source)
    }
}

/// Grains and the tables that they are found by.
struct Content<'a> {
    stream: Stream<'a>,
    squeezers: Squeezers<'a, Deflate>,
    /// The grain table at hand.
    table: [u8; TABLE_BYTES],
    /// Its entry in the directory; nothing before the first grain.
    table_index: Option<u64>,
    /// The sector of each table that was written, 0 for those that are not there.
    directory: Vec<u32>,
}

impl Content<'_> {
    fn put(&mut self, batch: &[Unit<'_>]) -> Result<(), DiskError> {
        let all_packed = self.squeezers.squeeze(batch).map_err(|error| self.stream.failed(error))?;
        for (unit, packed) in batch.iter().zip(all_packed) {
            let index = unit.number / TABLE_ENTRIES;
            if self.table_index != Some(index) {
                put_table(&mut self.stream, &mut self.directory, self.table_index.take(), &self.table)?;
                self.table.fill(0);
                self.table_index = Some(index);
            }
            let sector = self.stream.sector()?;
            let slot = usize::try_from(unit.number % TABLE_ENTRIES).unwrap_or(usize::MAX);
            if let Some(place) = self.table.as_chunks_mut().0.get_mut(slot) {
                *place = sector.to_le_bytes();
            }
            self.stream.put(packed)?;
        }
        Ok(())
    }

    /// Writes what follows the grains, and closes the file.
    fn close(self, sectors: u64) -> Result<(), DiskError> {
        let Self { mut stream, table, table_index, mut directory, .. } = self;
        put_table(&mut stream, &mut directory, table_index, &table)?;
        let tables = sectors.div_ceil(GRAIN_SECTORS * TABLE_ENTRIES);
        directory.resize(usize::try_from(tables).unwrap_or(usize::MAX), 0);
        let mut bytes: Vec<u8> = directory.iter().flat_map(|sector| sector.to_le_bytes()).collect();
        bytes.resize(bytes.len().next_multiple_of(SECTOR), 0);
        stream.put_marker(bytes.len() as u64 / SECTOR_BYTES, DIRECTORY)?;
        let directory_sector = stream.sector()?;
        stream.put(&bytes)?;
        stream.put_marker(1, FOOTER)?;
        stream.put(&head::header(sectors, Some(directory_sector.into())))?;
        stream.put_marker(0, END)?;
        stream.file.close()
    }
}

/// Writes a grain table, if there is one, and notes where.
fn put_table(
    stream: &mut Stream<'_>,
    directory: &mut Vec<u32>,
    index: Option<u64>,
    table: &[u8; TABLE_BYTES],
) -> Result<(), DiskError> {
    let Some(index) = index else { return Ok(()) };
    stream.put_marker(TABLE_BYTES as u64 / SECTOR_BYTES, TABLE)?;
    let sector = stream.sector()?;
    // At most the number of tables, which the size limits.
    directory.resize(usize::try_from(index).unwrap_or(usize::MAX), 0);
    directory.push(sector);
    stream.put(table)
}

/// A compressor of grains. Each comes out behind its marker, up to the end of its last sector.
struct Deflate(Compress);

impl Squeeze for Deflate {
    fn new() -> io::Result<Self> {
        Ok(Self(Compress::new(Compression::new(LEVEL), true)))
    }

    fn squeeze(&mut self, unit: &Unit<'_>, packed: &mut Vec<u8>) -> io::Result<()> {
        packed.reserve(unit.bytes.len() + GROWTH);
        packed.extend((unit.number * GRAIN_SECTORS).to_le_bytes());
        packed.extend([0; 4]);
        self.0.reset();
        let status = self.0.compress_vec(unit.bytes, packed, FlushCompress::Finish)?;
        if status != Status::StreamEnd {
            return Err(io::Error::other("a grain did not fit its buffer"));
        }
        let len = u32::try_from(self.0.total_out()).map_err(io::Error::other)?;
        if let Some(place) = packed.get_mut(8..12) {
            place.copy_from_slice(&len.to_le_bytes());
        }
        packed.resize(packed.len().next_multiple_of(SECTOR), 0);
        Ok(())
    }
}
