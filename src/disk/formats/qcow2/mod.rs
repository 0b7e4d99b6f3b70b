//! qcow2, versions 2 and 3: QEMU's format. The disk must be whole in its one file, unencrypted, and closed
//! properly; all that the file says is checked before it is believed.

mod decode;
mod header;
mod map;
mod source;
#[cfg(test)]
mod tests;
pub mod write;

use super::Limits;
use crate::io::disk::{DiskError, DiskRead, Extent};
use decode::Decoders;
use map::{Map, Place, Stored, Walk};
use source::{Cache, Source};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// How far [`DiskRead::extent_at`] looks ahead, so that it need not go through all of a disk's tables.
const LOOK_AHEAD: u64 = 64 << 20;
/// Data that is shorter is not looked for in the file's holes.
const HOLE_BYTES: u64 = 64 << 10;
/// Bytes of decompressed clusters that are kept for reads that asked for a part of them.
const DECODED_BYTES: u64 = 8 << 20;
/// Decompressed clusters that are kept at most, small as they may be.
const DECODED_MAX: usize = 64;

/// A qcow2 disk open for reading.
pub struct Qcow2 {
    source: Source,
    map: Map,
    decoders: Decoders,
    /// The last clusters of which a part was read.
    decoded: Cache<[u8]>,
    /// Whether a compressed cluster was met.
    has_compressed: AtomicBool,
}

/// Opens a qcow2 disk in `file`, which `path` is the name of in messages. Header and L1 table are checked;
/// L2 tables and compressed clusters are when they are needed. No other file is opened.
pub fn open(file: Arc<dyn DiskRead>, path: &Path, limits: &Limits) -> Result<Qcow2, DiskError> {
    let source = Source { bytes: file.len_bytes(), file, path: path.to_owned() };
    let header = header::read(&source, limits)?;
    let map = Map::read(&source, header, limits)?;
    let decoders = Decoders::new(map.header().is_zstd);
    let kept =
        usize::try_from(DECODED_BYTES / map.cluster_bytes()).map_or(DECODED_MAX, |n| n.min(DECODED_MAX));
    Ok(Qcow2 { source, map, decoders, decoded: Cache::new(kept), has_compressed: AtomicBool::new(false) })
}

impl Qcow2 {
    /// What is in the file and is left out, in sentences for people.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        match self.map.header().snapshots {
            0 => {}
            1 => notes
                .push("1 internal snapshot is left out: only the disk's current state is read".to_owned()),
            n => notes
                .push(format!("{n} internal snapshots are left out: only the disk's current state is read")),
        }
        if self.map.header().has_bitmaps {
            notes.push("its bitmaps of changed blocks are left out".to_owned());
        }
        notes
    }

    /// Where the bytes from `at` on that are alike end, and whether they are zeros. Clusters of a disk whose
    /// tables were made in advance (`preallocation=metadata`) are there, but in a hole of the file; `held` is
    /// the last extent of the file that was asked for.
    fn kind_at(
        &self,
        walk: &mut Walk,
        at: u64,
        until: u64,
        held: &mut Option<Extent>,
    ) -> Result<(u64, bool), DiskError> {
        let run = walk.run_at(at, until)?;
        let bytes = run.end.saturating_sub(at);
        match run.place {
            Place::Zero => Ok((run.end, true)),
            Place::Data(host) if host >= self.source.bytes => Ok((run.end, true)),
            Place::Data(host) if bytes >= HOLE_BYTES => {
                let extent = match held {
                    Some(extent) if (extent.start..extent.end).contains(&host) => *extent,
                    _ => self.source.file.extent_at(host)?,
                };
                *held = Some(extent);
                let alike = extent.end.saturating_sub(host).clamp(1, bytes);
                Ok((at.saturating_add(alike), extent.is_zero))
            }
            Place::Data(_) | Place::Compressed(_) => Ok((run.end, false)),
        }
    }

    /// Fills `buffer` from byte `at` of the disk, which is in a compressed cluster, as all of the buffer is.
    fn read_compressed(&self, stored: Stored, at: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        self.has_compressed.store(true, Ordering::Relaxed);
        let within = at % self.map.cluster_bytes();
        let start = at - within;
        if buffer.len() as u64 == self.map.cluster_bytes() {
            return self.decoders.decode(&self.source, stored, start, buffer);
        }
        let cluster = match self.decoded.get(stored.key) {
            Some(cluster) => cluster,
            None => {
                let mut cluster = vec![0; usize::try_from(self.map.cluster_bytes()).unwrap_or(0)];
                self.decoders.decode(&self.source, stored, start, &mut cluster)?;
                let cluster: Arc<[u8]> = cluster.into();
                self.decoded.put(stored.key, cluster.clone());
                cluster
            }
        };
        let part = usize::try_from(within).ok().and_then(|within| cluster.get(within..)?.get(..buffer.len()));
        buffer.copy_from_slice(part.ok_or_else(|| self.outside(at))?);
        Ok(())
    }

    fn outside(&self, offset: u64) -> DiskError {
        DiskError::io("read", &self.source.path, offset, io::ErrorKind::InvalidInput.into())
    }
}

impl DiskRead for Qcow2 {
    fn len_bytes(&self) -> u64 {
        self.map.header().virtual_bytes
    }

    fn extent_at(&self, offset: u64) -> Result<Extent, DiskError> {
        if offset >= self.len_bytes() {
            return Err(self.outside(offset));
        }
        let mut walk = self.map.walk(&self.source);
        let mut held = None;
        let until = offset.saturating_add(LOOK_AHEAD).min(self.len_bytes());
        let (mut end, is_zero) = self.kind_at(&mut walk, offset, until, &mut held)?;
        while end < until {
            let (next, next_is_zero) = self.kind_at(&mut walk, end, until, &mut held)?;
            if next_is_zero != is_zero {
                break;
            }
            end = next;
        }
        Ok(Extent { start: offset, end, is_zero })
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        let end = offset.checked_add(buffer.len() as u64).filter(|&end| end <= self.len_bytes());
        let end = end.ok_or_else(|| self.outside(offset))?;
        let mut walk = self.map.walk(&self.source);
        let (mut at, mut rest) = (offset, buffer);
        while at < end {
            let run = walk.run_at(at, end)?;
            let stop = run.end.min(end);
            let len = usize::try_from(stop.saturating_sub(at)).unwrap_or(usize::MAX).min(rest.len());
            let (piece, behind) = rest.split_at_mut(len);
            match run.place {
                Place::Zero => piece.fill(0),
                Place::Data(host) => self.source.read(host, piece)?,
                Place::Compressed(stored) => self.read_compressed(stored, at, piece)?,
            }
            (at, rest) = (stop, behind);
        }
        Ok(())
    }

    fn is_computed(&self) -> bool {
        self.has_compressed.load(Ordering::Relaxed)
    }
}
