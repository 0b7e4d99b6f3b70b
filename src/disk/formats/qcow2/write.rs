//! Writing qcow2: version 3, clusters of 64 KiB, plain or compressed with zstd as QEMU does it. Clusters of zeros
//! are not there, and neither are L2 tables of none but such.
//!
//! Compressed clusters lie one behind the other, byte by byte; a host cluster is counted once for each of them
//! that it holds a part of. A plain cluster cannot begin inside one, so those of a batch come after its
//! compressed ones. Memory: a batch and what becomes of it, one L2 table, one refcount block.

mod host;
#[cfg(test)]
mod tests;

use crate::disk::formats::VolumeLimit;
use crate::disk::formats::units::{Squeeze, Squeezers, UNIT_BYTES, Unit, Units};
use crate::io::disk::{DiskError, DiskWrite, FileWrite};
use host::Host;
use rayon::ThreadPool;
use std::io;
use std::path::Path;
use zstd::bulk::Compressor;

const FORMAT: &str = "qcow2";
const SECTOR: u64 = 512;
const CLUSTER_BYTES: usize = UNIT_BYTES;
const CLUSTER: u64 = CLUSTER_BYTES as u64;
/// Entries of an L2 table.
const ENTRIES: u64 = CLUSTER / 8;
/// What an L1 table of 32 MiB reaches, the largest that QEMU reads: 2 PiB.
const GUEST_BYTES_MAX: u64 = (32 << 20) / 8 * ENTRIES * CLUSTER;
/// Of an entry: the cluster or table is used by nobody else.
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
/// In an entry of a compressed cluster of 64 KiB the count of sectors is from this bit on.
const SECTORS_BIT: u32 = 54;
/// As QEMU has it.
const ZSTD_LEVEL: i32 = 3;

/// What a new file is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Whether clusters are compressed, with zstd, where that makes them shorter. QEMU reads them from version
    /// 5.1 on.
    pub is_compressed: bool,
}

/// The volumes that the format holds.
pub const LIMIT: VolumeLimit = VolumeLimit { format: FORMAT, bytes: GUEST_BYTES_MAX };

/// A new qcow2 disk in `file`, which `path` is the name of in messages. The virtual disk has `volume_bytes`
/// rounded up to whole sectors of 512 bytes; what is not written reads as zeros. Compression runs on `pool`.
///
/// A volume of no bytes is refused as [`DiskError::Empty`], one over 2 PiB as [`DiskError::TooLong`].
pub fn create<'a>(
    file: Box<dyn FileWrite + 'a>,
    path: &Path,
    volume_bytes: u64,
    options: Options,
    pool: &'a ThreadPool,
) -> Result<Box<dyn DiskWrite + 'a>, DiskError> {
    LIMIT.check(path, volume_bytes)?;
    let clusters = volume_bytes.div_ceil(CLUSTER);
    let host = Host::new(file, path, clusters, clusters.div_ceil(ENTRIES));
    let squeezers = options.is_compressed.then(|| Squeezers::new(pool));
    let content = Content { host, squeezers, table: vec![0; CLUSTER_BYTES], table_index: None };
    Ok(Box::new(Writer { units: Units::new(path, volume_bytes), content, volume_bytes }))
}

/// A disk being written, front to back.
struct Writer<'a> {
    units: Units,
    content: Content<'a>,
    volume_bytes: u64,
}

impl DiskWrite for Writer<'_> {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.units.write(offset, bytes, &mut |batch| self.content.put(batch))
    }

    fn zero_at(&mut self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.units.zero(offset, len, &mut |batch| self.content.put(batch))
    }

    fn finish(self: Box<Self>) -> Result<(), DiskError> {
        let Self { mut units, mut content, volume_bytes } = *self;
        units.finish(&mut |batch| content.put(batch))?;
        content.put_table()?;
        let is_zstd = content.squeezers.is_some();
        content.host.close(volume_bytes.next_multiple_of(SECTOR), is_zstd)
    }
}

/// Clusters and the tables that they are found by.
struct Content<'a> {
    host: Host<'a>,
    squeezers: Option<Squeezers<'a, Zstd>>,
    /// The L2 table at hand.
    table: Vec<u8>,
    /// Its entry in the L1 table; nothing before the first cluster.
    table_index: Option<u64>,
}

impl Content<'_> {
    fn put(&mut self, batch: &[Unit<'_>]) -> Result<(), DiskError> {
        let mut entries = vec![None; batch.len()];
        if let Some(squeezers) = &mut self.squeezers {
            let all_packed = squeezers.squeeze(batch).map_err(|error| self.host.failed(error))?;
            for (entry, packed) in entries.iter_mut().zip(all_packed) {
                let len = packed.len() as u64;
                if len + SECTOR <= CLUSTER {
                    let at = self.host.put_packed(packed)?;
                    // Those besides the first that it has bytes in.
                    let sectors = (at + len - 1) / SECTOR - at / SECTOR;
                    *entry = Some(COMPRESSED | sectors << SECTORS_BIT | at);
                }
            }
        }
        for (unit, entry) in batch.iter().zip(entries) {
            let entry = match entry {
                Some(entry) => entry,
                None => self.host.put_cluster(unit.bytes)? | COPIED,
            };
            self.set(unit.number, entry)?;
        }
        Ok(())
    }

    /// Sets the entry of a cluster of the disk. A table that is left behind is written.
    fn set(&mut self, number: u64, entry: u64) -> Result<(), DiskError> {
        let index = number / ENTRIES;
        if self.table_index != Some(index) {
            self.put_table()?;
            self.table.fill(0);
            self.table_index = Some(index);
        }
        let slot = usize::try_from(number % ENTRIES).unwrap_or(usize::MAX);
        if let Some(place) = self.table.as_chunks_mut().0.get_mut(slot) {
            *place = entry.to_be_bytes();
        }
        Ok(())
    }

    fn put_table(&mut self) -> Result<(), DiskError> {
        let Some(index) = self.table_index.take() else { return Ok(()) };
        let at = self.host.put_cluster(&self.table)?;
        self.host.put_l1(index, at | COPIED)
    }
}

/// A compressor of clusters.
struct Zstd(Compressor<'static>);

impl Squeeze for Zstd {
    fn new() -> io::Result<Self> {
        Compressor::new(ZSTD_LEVEL).map(Self)
    }

    fn squeeze(&mut self, unit: &Unit<'_>, packed: &mut Vec<u8>) -> io::Result<()> {
        packed.reserve(zstd::zstd_safe::compress_bound(unit.bytes.len()));
        self.0.compress_to_buffer(unit.bytes, packed).map(drop)
    }
}
