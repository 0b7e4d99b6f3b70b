//! The file's own clusters: which is next, and how often each is used.

use super::{CLUSTER, GUEST_BYTES_MAX};
use crate::io::disk::{DiskError, FileWrite};
use std::io;
use std::path::{Path, PathBuf};

/// Clusters that a refcount block counts, which has 16 bits for each. The first cluster of each such group is
/// the block itself; in the first group it is the second, behind the header.
const GROUP: u64 = CLUSTER / 2;
/// QEMU accepts no larger refcount table.
const TABLE_CLUSTERS_MAX: u64 = 128;
/// Of a header with a compression type.
const HEADER_BYTES: usize = 112;
const VERSION: u32 = 3;
const CLUSTER_BITS: u32 = 16;
/// The refcounts' bits are two to the power of this.
const REFCOUNT_ORDER: u32 = 4;
/// The incompatible feature of another compression than zlib.
const COMPRESSION: u64 = 1 << 3;
const ZSTD: u8 = 1;

/// The file, filled cluster by cluster. Header, first refcount block, refcount table and L1 table come first;
/// of the tables only what is not zero is ever written.
pub(super) struct Host<'a> {
    file: Box<dyn FileWrite + 'a>,
    path: PathBuf,
    /// The first cluster that nobody has.
    next: u64,
    /// Where the last byte was written.
    written: u64,
    /// The group of the cluster before `next`.
    group: u64,
    /// How often each cluster of the group is used.
    counts: Vec<u16>,
    table_clusters: u64,
    l1_entries: u64,
    /// Where the last compressed cluster ended, if there is room in its last host cluster.
    open: Option<u64>,
}

impl<'a> Host<'a> {
    /// The file of a disk of so many clusters.
    pub(super) fn new(file: Box<dyn FileWrite + 'a>, path: &Path, clusters: u64, l1_entries: u64) -> Self {
        // Twice the disk is far more than a file ever has, and costs a hole alone.
        let groups = clusters.saturating_mul(2) / GROUP + 1;
        let table_clusters = groups.div_ceil(CLUSTER / 8).min(TABLE_CLUSTERS_MAX);
        let l1_clusters = l1_entries.div_ceil(CLUSTER / 8);
        let next = 2 + table_clusters + l1_clusters;
        let counts = (0..GROUP).map(|cluster| u16::from(cluster < next)).collect();
        let path = path.to_owned();
        Self { file, path, next, written: 0, group: 0, counts, table_clusters, l1_entries, open: None }
    }

    fn table_start() -> u64 {
        2 * CLUSTER
    }

    fn l1_start(&self) -> u64 {
        Self::table_start() + self.table_clusters * CLUSTER
    }

    fn put(&mut self, at: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.file.put_at(at, bytes)?;
        self.written = self.written.max(at + bytes.len() as u64);
        Ok(())
    }

    /// The next cluster that nobody has; it is not counted yet.
    fn reserve(&mut self) -> Result<u64, DiskError> {
        let group = self.next / GROUP;
        if group != self.group {
            if group >= self.table_clusters * (CLUSTER / 8) {
                return Err(self.failed(io::ErrorKind::FileTooLarge.into()));
            }
            self.put_counts()?;
            self.group = group;
            self.counts.fill(0);
            self.count(self.next)?;
            self.next += 1;
            self.open = None;
        }
        self.next += 1;
        Ok(self.next - 1)
    }

    /// Counts one more use of a cluster of the group.
    fn count(&mut self, cluster: u64) -> Result<(), DiskError> {
        let slot = usize::try_from(cluster % GROUP).ok().and_then(|slot| self.counts.get_mut(slot));
        match slot.and_then(|count| Some((count.checked_add(1)?, count))) {
            Some((more, count)) => *count = more,
            None => return Err(self.failed(io::Error::other("a cluster is used too often"))),
        }
        Ok(())
    }

    /// Writes the group's refcount block, and where it is.
    fn put_counts(&mut self) -> Result<(), DiskError> {
        let block = if self.group == 0 { CLUSTER } else { self.group * GROUP * CLUSTER };
        let bytes: Vec<u8> = self.counts.iter().flat_map(|count| count.to_be_bytes()).collect();
        self.put(block, &bytes)?;
        self.put(Self::table_start() + self.group * 8, &block.to_be_bytes())
    }

    /// Writes a cluster; returns where it is.
    pub(super) fn put_cluster(&mut self, bytes: &[u8]) -> Result<u64, DiskError> {
        let cluster = self.reserve()?;
        self.count(cluster)?;
        self.put(cluster * CLUSTER, bytes)?;
        Ok(cluster * CLUSTER)
    }

    /// Writes what a cluster was compressed to, which is shorter than a cluster, right behind the one before
    /// where that can be; returns where it is.
    pub(super) fn put_packed(&mut self, packed: &[u8]) -> Result<u64, DiskError> {
        let len = packed.len() as u64;
        let room = self.open.map_or(0, |open| CLUSTER - open % CLUSTER);
        let mut at = self.open;
        if room < len {
            let fresh = self.reserve()? * CLUSTER;
            // Over the border of two host clusters, if they are neighbours.
            at = self.open.filter(|open| open + room == fresh).or(Some(fresh));
        }
        let at = at.unwrap_or(0);
        let end = at + len;
        for cluster in at / CLUSTER..end.div_ceil(CLUSTER) {
            self.count(cluster)?;
        }
        self.put(at, packed)?;
        self.open = (!end.is_multiple_of(CLUSTER)).then_some(end);
        Ok(at)
    }

    /// Writes an entry of the L1 table.
    pub(super) fn put_l1(&mut self, index: u64, entry: u64) -> Result<(), DiskError> {
        self.put(self.l1_start() + index * 8, &entry.to_be_bytes())
    }

    /// Writes what is known at the end alone, and closes the file.
    pub(super) fn close(mut self, virtual_bytes: u64, is_zstd: bool) -> Result<(), DiskError> {
        self.put_counts()?;
        let header = self.header(virtual_bytes, is_zstd)?;
        self.put(0, &header)?;
        let end = self.next * CLUSTER;
        if self.written < end {
            self.put(end - 1, &[0])?;
        }
        self.file.close()
    }

    fn header(&self, virtual_bytes: u64, is_zstd: bool) -> Result<[u8; HEADER_BYTES], DiskError> {
        let count = |count: u64| {
            let too_many = || DiskError::TooLong {
                path: self.path.clone(),
                format: super::FORMAT,
                expected: virtual_bytes,
                limit: GUEST_BYTES_MAX,
            };
            u32::try_from(count).map_err(|_| too_many())
        };
        let mut header = [0; HEADER_BYTES];
        let mut put = |at: usize, field: &[u8]| {
            if let Some(place) = header.get_mut(at..at + field.len()) {
                place.copy_from_slice(field);
            }
        };
        put(0, b"QFI\xfb");
        put(4, &VERSION.to_be_bytes());
        put(20, &CLUSTER_BITS.to_be_bytes());
        put(24, &virtual_bytes.to_be_bytes());
        put(36, &count(self.l1_entries)?.to_be_bytes());
        put(40, &self.l1_start().to_be_bytes());
        put(48, &Self::table_start().to_be_bytes());
        put(56, &count(self.table_clusters)?.to_be_bytes());
        put(96, &REFCOUNT_ORDER.to_be_bytes());
        put(100, &count(HEADER_BYTES as u64)?.to_be_bytes());
        if is_zstd {
            put(72, &COMPRESSION.to_be_bytes());
            put(104, &[ZSTD]);
        }
        Ok(header)
    }

    /// The failure of a write at the file's end.
    pub(super) fn failed(&self, source: io::Error) -> DiskError {
        DiskError::io("write", &self.path, self.next.saturating_mul(CLUSTER), source)
    }
}
