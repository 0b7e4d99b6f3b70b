//! From bytes of the disk to bytes of the file: the L1 table, the L2 tables, subclusters.

use super::header::Header;
use super::source::{Cache, Source};
use crate::disk::formats::Limits;
use crate::io::disk::DiskError;
use std::sync::Arc;

const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
/// Where a table or cluster is, in bits 9 to 55.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Bits of an L1 entry that must be unset.
const L1_RESERVED: u64 = 0x7f00_0000_0000_01ff;
/// Bits of an entry of a cluster that is not compressed that must be unset, besides its [`ZERO`].
const L2_RESERVED: u64 = 0x3f00_0000_0000_01fe;
/// Parts of a cluster that an extended entry tells apart.
const SUBCLUSTERS: u64 = 32;
const SECTOR_BYTES: u64 = 512;

/// Where bytes of the disk are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Nowhere: they are zeros.
    Zero,
    /// From this byte of the file on.
    Data(u64),
    /// In a cluster that is compressed.
    Compressed(Stored),
}

/// The sectors that hold a compressed cluster, and the start of another one perhaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stored {
    /// First byte in the file.
    pub(super) host: u64,
    /// How many at most.
    pub(super) bytes: u64,
    /// No other cluster has the same.
    pub(super) key: u64,
}

/// Bytes of the disk, up to `end`, that are in one place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    /// One after the last byte.
    pub(super) end: u64,
    pub(super) place: Place,
}

/// All that is needed to find a byte.
pub(super) struct Map {
    header: Header,
    l1: Vec<u64>,
    /// L2 tables by where they are.
    tables: Cache<[u64]>,
}

impl Map {
    /// Reads the L1 table and checks where the L2 tables are.
    pub(super) fn read(source: &Source, header: Header, limits: &Limits) -> Result<Self, DiskError> {
        let cluster_bytes = 1_u64 << header.cluster_bits;
        let l1_bytes = header.l1_entries.saturating_mul(8);
        let l1 = words(source, header.l1_offset, l1_bytes)?;
        for &entry in &l1 {
            let offset = entry & OFFSET;
            if entry & L1_RESERVED != 0 {
                return Err(
                    source.damaged(format!("an entry of its L1 table has reserved bits ({entry:#x})"))
                );
            }
            if offset != 0 {
                let end = offset.checked_add(cluster_bytes);
                let fits = offset.is_multiple_of(cluster_bytes) && end.is_some_and(|end| end <= source.bytes);
                if !fits {
                    let why = format!(
                        "its L1 table names an L2 table at byte {offset:#x}: not a cluster of the file"
                    );
                    return Err(source.damaged(why));
                }
            }
        }
        let mut named: Vec<u64> =
            l1.iter().map(|entry| entry & OFFSET).filter(|&offset| offset != 0).collect();
        named.sort_unstable();
        if let Some(twice) = named.windows(2).find(|pair| pair[0] == pair[1]) {
            // A small file would be a disk of any size.
            return Err(
                source.damaged(format!("its L1 table names the L2 table at byte {:#x} twice", twice[0]))
            );
        }
        let budget = limits.metadata_bytes.saturating_sub(l1_bytes as u64);
        let tables = usize::try_from(budget / cluster_bytes).unwrap_or(usize::MAX);
        Ok(Self { header, l1, tables: Cache::new(tables) })
    }

    pub(super) fn header(&self) -> &Header {
        &self.header
    }

    pub(super) fn cluster_bytes(&self) -> u64 {
        1 << self.header.cluster_bits
    }

    /// A walk over the disk, which keeps the last L2 table at hand.
    pub(super) fn walk<'a>(&'a self, source: &'a Source) -> Walk<'a> {
        Walk { map: self, source, held: None }
    }
}

fn words(source: &Source, host: u64, bytes: usize) -> Result<Vec<u64>, DiskError> {
    let mut table = vec![0; bytes];
    source.read(host, &mut table)?;
    Ok(table.as_chunks::<8>().0.iter().map(|&word| u64::from_be_bytes(word)).collect())
}

/// See [`Map::walk`].
pub(super) struct Walk<'a> {
    map: &'a Map,
    source: &'a Source,
    held: Option<(u64, Arc<[u64]>)>,
}

impl Walk<'_> {
    /// Where the byte `at` is, which must be less than the virtual size, and those after it that are in the
    /// same cluster. A file that ends before them was cut off: whoever allocates a cluster writes all of it.
    pub(super) fn piece_at(&mut self, at: u64) -> Result<Piece, DiskError> {
        let piece = self.named_piece_at(at)?;
        if let Place::Data(host) = piece.place {
            let end = host.saturating_add(piece.end.saturating_sub(at));
            if end > self.source.bytes {
                return Err(self.wrong(at, format!("it ends at {end:#x}, after the file's end")));
            }
        }
        Ok(piece)
    }

    fn named_piece_at(&mut self, at: u64) -> Result<Piece, DiskError> {
        let header = &self.map.header;
        let entry_words = if header.is_extended { 2 } else { 1 };
        let cluster = at >> header.cluster_bits;
        // Between 2^6 and 2^18; the cluster has at least 2^9 bytes.
        let table_clusters = self.map.cluster_bytes() / (8 * entry_words);
        let l1_index = usize::try_from(cluster / table_clusters).unwrap_or(usize::MAX);
        let l2_offset = self.map.l1.get(l1_index).map_or(0, |entry| entry & OFFSET);
        let end_of = |clusters: u64| {
            clusters
                .checked_mul(self.map.cluster_bytes())
                .map_or(header.virtual_bytes, |end| end.min(header.virtual_bytes))
        };
        if l2_offset == 0 {
            let end = end_of((cluster / table_clusters).saturating_add(1).saturating_mul(table_clusters));
            return Ok(Piece { end, place: Place::Zero });
        }
        let table = self.table(l2_offset)?;
        let index = usize::try_from(cluster % table_clusters * entry_words).unwrap_or(usize::MAX);
        let word = |index: usize| table.get(index).copied().unwrap_or(0);
        let (entry, end) = (word(index), end_of(cluster.saturating_add(1)));
        let parts = if header.is_extended { word(index.saturating_add(1)) } else { 0 };
        if entry & COMPRESSED != 0 {
            return Ok(Piece { end, place: self.compressed(at, entry, parts)? });
        }
        let is_zero = entry & ZERO != 0;
        let host = entry & OFFSET;
        if entry & L2_RESERVED != 0 || (is_zero && !header.has_zero_flag) {
            return Err(self.wrong(at, format!("its table has reserved bits ({entry:#x})")));
        }
        let outside = host < self.map.cluster_bytes() || host >= self.source.bytes;
        if host != 0 && (outside || !host.is_multiple_of(self.map.cluster_bytes())) {
            return Err(self.wrong(at, format!("it lies at {host:#x}, where the file has no cluster")));
        }
        if header.is_extended {
            return self.part(at, host, parts).map(|piece| Piece { end: piece.end.min(end), ..piece });
        }
        let within = at % self.map.cluster_bytes();
        let place = if is_zero || host == 0 { Place::Zero } else { Place::Data(host.saturating_add(within)) };
        Ok(Piece { end, place })
    }

    /// As [`Self::piece_at`]; data goes on over clusters that follow each other in the file, up to `until`.
    pub(super) fn run_at(&mut self, at: u64, until: u64) -> Result<Piece, DiskError> {
        let mut piece = self.piece_at(at)?;
        let Place::Data(host) = piece.place else { return Ok(piece) };
        while piece.end < until {
            let next = self.piece_at(piece.end)?;
            if next.place != Place::Data(host.saturating_add(piece.end.saturating_sub(at))) {
                break;
            }
            piece.end = next.end;
        }
        Ok(piece)
    }

    fn table(&mut self, offset: u64) -> Result<Arc<[u64]>, DiskError> {
        if let Some((held, table)) = &self.held
            && *held == offset
        {
            return Ok(table.clone());
        }
        let table = match self.map.tables.get(offset) {
            Some(table) => table,
            None => {
                let bytes = usize::try_from(self.map.cluster_bytes()).unwrap_or(0);
                let table: Arc<[u64]> = words(self.source, offset, bytes)?.into();
                self.map.tables.put(offset, table.clone());
                table
            }
        };
        self.held = Some((offset, table.clone()));
        Ok(table)
    }

    /// The subclusters from `at` on that are alike: the low half of `parts` has a bit for each that is there,
    /// the high half one for each that is zeros.
    fn part(&self, at: u64, host: u64, parts: u64) -> Result<Piece, DiskError> {
        let (there, zero) = (parts & u64::from(u32::MAX), parts >> SUBCLUSTERS);
        if there & zero != 0 || (host == 0 && there != 0) {
            return Err(self.wrong(at, format!("its subclusters contradict each other ({parts:#x})")));
        }
        let within = at % self.map.cluster_bytes();
        let part_bytes = self.map.cluster_bytes() / SUBCLUSTERS;
        let first = within / part_bytes;
        let is_there = |part: u64| there >> part & 1 != 0;
        let alike = (first..SUBCLUSTERS).take_while(|&part| is_there(part) == is_there(first)).count() as u64;
        let end = first.saturating_add(alike).saturating_mul(part_bytes);
        let place = if is_there(first) { Place::Data(host.saturating_add(within)) } else { Place::Zero };
        Ok(Piece { end: at.saturating_add(end.saturating_sub(within)), place })
    }

    fn compressed(&self, at: u64, entry: u64, parts: u64) -> Result<Place, DiskError> {
        if parts != 0 {
            return Err(self.wrong(at, format!("it is compressed and has subclusters ({parts:#x})")));
        }
        // The larger the clusters, the more bits count sectors and the fewer are left for where they are.
        let sector_bits = self.map.header.cluster_bits.saturating_sub(8);
        let offset_bits = 62_u32.saturating_sub(sector_bits);
        let host = entry & ((1 << offset_bits) - 1);
        let sectors = (entry & (COMPRESSED - 1)) >> offset_bits;
        if host < self.map.cluster_bytes() || host >= self.source.bytes {
            return Err(
                self.wrong(at, format!("it lies compressed at {host:#x}, outside of the file's clusters"))
            );
        }
        let bytes = (sectors.saturating_add(1)).saturating_mul(SECTOR_BYTES) - host % SECTOR_BYTES;
        let bytes = bytes.min(self.source.bytes - host);
        Ok(Place::Compressed(Stored { host, bytes, key: entry & (COMPRESSED - 1) }))
    }

    fn wrong(&self, at: u64, what: String) -> DiskError {
        self.source.damaged(format!("of its cluster at byte {at} of the disk: {what}"))
    }
}
