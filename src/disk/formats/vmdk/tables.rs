//! Grain directory and grain tables: where each grain is. The directory is read when the file is opened,
//! tables when they are asked for.

use super::cache::Cache;
use super::header::{HEADER_BYTES, Header, TABLE_ENTRIES, range};
use super::{Fault, SECTOR_BYTES, Source};
use crate::disk::formats::Limits;
use crate::io::disk::DiskError;
use std::sync::Arc;

const TABLE_BYTES: u64 = TABLE_ENTRIES * 4;
/// What a table in the cache costs, its places in map and queue with it.
const CACHED_TABLE_BYTES: u64 = TABLE_BYTES + 128;
/// What stands before a compressed grain: its first sector and its length.
pub(super) const GRAIN_MARKER_BYTES: u64 = 12;
/// The entry of a grain of zeros.
const ZEROED: u32 = 1;

type Table = Box<[u32]>;

/// Where all grains are.
pub(super) struct Tables {
    /// Bytes of the virtual disk.
    pub(super) len: u64,
    /// Bytes of a grain.
    pub(super) grain_bytes: u64,
    /// Grains of the virtual disk.
    pub(super) grains: u64,
    /// Whether grains are compressed, behind markers.
    pub(super) compressed: bool,
    zeroed_grains: bool,
    /// The sector of each table, or 0.
    directory: Vec<u32>,
    taken: Taken,
    cache: Cache<Table>,
}

/// The bytes of the file that no grain may lie in.
struct Taken {
    /// Where grains may be at most.
    end: u64,
    /// Header, descriptor, directories.
    fixed: Vec<(u64, u64)>,
    /// The sectors of all tables, ascending.
    tables: Vec<u32>,
}

impl Taken {
    fn in_fixed(&self, (start, end): (u64, u64)) -> bool {
        self.fixed.iter().any(|&(from, to)| start < to && from < end)
    }

    fn in_tables(&self, (start, end): (u64, u64)) -> bool {
        let first = |&sector: &u32| u64::from(sector).saturating_mul(SECTOR_BYTES);
        let at = self.tables.partition_point(|sector| first(sector).saturating_add(TABLE_BYTES) <= start);
        self.tables.get(at).is_some_and(|sector| first(sector) < end)
    }

    /// A grain's bytes, if they are where grains may be.
    fn grain(&self, sector: u32, bytes: u64) -> Option<(u64, u64)> {
        let place = range(sector.into(), bytes, self.end)?;
        (!self.in_fixed(place) && !self.in_tables(place)).then_some(place)
    }

    /// Takes the bytes of the tables, which must be in the file, and apart from all else.
    fn take_tables(&mut self, directory: &[u32]) -> Result<(), Fault> {
        self.tables = directory.iter().copied().filter(|&sector| sector != 0).collect();
        self.tables.sort_unstable();
        let is_free = |&sector: &u32| {
            range(sector.into(), TABLE_BYTES, self.end).is_some_and(|place| !self.in_fixed(place))
        };
        if !self.tables.iter().all(is_free) {
            return Err(Fault::damaged("a grain table is outside the file, or in its header or descriptor"));
        }
        let apart = |pair: &[u32]| match pair {
            [one, next] => u64::from(next.abs_diff(*one)) >= TABLE_BYTES / SECTOR_BYTES,
            _ => true,
        };
        if !self.tables.windows(2).all(apart) {
            return Err(Fault::damaged("grain tables overlap"));
        }
        Ok(())
    }
}

/// Where a grain's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Grain {
    /// Nowhere: it is zeros.
    Zeros,
    /// From this byte of the file on.
    At(u64),
}

impl Tables {
    /// Reads the directory of a disk of `len` bytes; everything but the footer ends at `end` or before.
    pub(super) fn open(
        source: &Source,
        header: &Header,
        len: u64,
        end: u64,
        limits: &Limits,
    ) -> Result<Self, DiskError> {
        let grain_bytes = header.grain_sectors.saturating_mul(SECTOR_BYTES);
        let grains = len.div_ceil(grain_bytes);
        let directory_bytes = grains.div_ceil(TABLE_ENTRIES).saturating_mul(4);
        // As bytes, as numbers, and as sorted numbers; what is left is for the tables.
        let held = directory_bytes.saturating_mul(4);
        if held > limits.metadata_bytes {
            let why = format!("its grain directory has {directory_bytes} bytes, too many to hold");
            return Err(source.refuse(Fault::variant(why)));
        }
        let fault = |why| source.refuse(Fault::damaged(why));
        let descriptor = header.descriptor_sectors.saturating_mul(SECTOR_BYTES);
        let mut taken = Taken { end, fixed: vec![(0, HEADER_BYTES as u64)], tables: Vec::new() };
        taken.fixed.extend(range(header.descriptor_offset, descriptor, end));
        let place = range(header.directory_offset, directory_bytes, end).filter(|&at| !taken.in_fixed(at));
        let place =
            place.ok_or_else(|| fault("its grain directory is outside the file, or in its header"))?;
        taken.fixed.push(place);
        if let Some(sector) = header.redundant_offset {
            let spare =
                range(sector, directory_bytes, end).filter(|&(start, _)| start >= HEADER_BYTES as u64);
            let why = "its redundant grain directory is outside the file, or in its header";
            taken.fixed.push(spare.ok_or_else(|| fault(why))?);
        }
        let directory = entries(&source.read(place.0, directory_bytes)?);
        taken.take_tables(&directory).map_err(|fault| source.refuse(fault))?;
        let cache = Cache::new(limits.metadata_bytes.saturating_sub(held) / CACHED_TABLE_BYTES);
        let Header { zeroed_grains, compressed, .. } = *header;
        Ok(Self { len, grain_bytes, grains, compressed, zeroed_grains, directory, taken, cache })
    }

    /// A table, all of its entries checked; or nothing, if it and all of its grains are not there.
    fn table(&self, source: &Source, number: u64) -> Result<Option<Arc<Table>>, DiskError> {
        let sector = usize::try_from(number).ok().and_then(|number| self.directory.get(number)).copied();
        let Some(sector) = sector.filter(|&sector| sector != 0) else { return Ok(None) };
        if let Some(table) = self.cache.get(number) {
            return Ok(Some(table));
        }
        let bytes = source.read(u64::from(sector).saturating_mul(SECTOR_BYTES), TABLE_BYTES)?;
        let table: Table = entries(&bytes).into();
        for (grain, &entry) in (number.saturating_mul(TABLE_ENTRIES)..self.grains).zip(table.iter()) {
            self.check_entry(grain, entry).map_err(|fault| source.refuse(fault))?;
        }
        let table = Arc::new(table);
        self.cache.put(number, table.clone());
        Ok(Some(table))
    }

    fn check_entry(&self, grain: u64, entry: u32) -> Result<(), Fault> {
        let stored = if self.compressed { GRAIN_MARKER_BYTES } else { self.bytes_of(grain) };
        if entry == 0 || entry == ZEROED && self.zeroed_grains {
            return Ok(());
        }
        if entry == ZEROED || self.taken.grain(entry, stored).is_none() {
            let why = format!("grain {grain} is outside the file, or in its header or tables");
            return Err(Fault::damaged(why));
        }
        Ok(())
    }

    /// Bytes of a grain that are bytes of the disk: the last one may have fewer.
    pub(super) fn bytes_of(&self, grain: u64) -> u64 {
        self.len.saturating_sub(grain.saturating_mul(self.grain_bytes)).min(self.grain_bytes)
    }

    /// Whether a range of the file, which a compressed grain claims, is where grains may be.
    pub(super) fn is_free(&self, start: u64, bytes: u64) -> bool {
        let place = start.checked_add(bytes).map(|end| (start, end));
        place.is_some_and(|place| {
            place.1 <= self.taken.end && !self.taken.in_fixed(place) && !self.taken.in_tables(place)
        })
    }

    fn grain_in(&self, table: Option<&Table>, grain: u64) -> Grain {
        let slot = usize::try_from(grain % TABLE_ENTRIES).ok();
        match table.zip(slot).and_then(|(table, slot)| table.get(slot)) {
            None | Some(&0) => Grain::Zeros,
            Some(&ZEROED) if self.zeroed_grains => Grain::Zeros,
            Some(&sector) => Grain::At(u64::from(sector).saturating_mul(SECTOR_BYTES)),
        }
    }

    /// Where a grain is.
    pub(super) fn grain(&self, source: &Source, grain: u64) -> Result<Grain, DiskError> {
        let table = self.table(source, grain / TABLE_ENTRIES)?;
        Ok(self.grain_in(table.as_deref(), grain))
    }

    /// Where the grain `first` is, and where the run that it begins ends: at `limit`, or before a grain that
    /// `goes_on`, which is given that grain's predecessor and the grain, denies.
    pub(super) fn run(
        &self,
        source: &Source,
        first: u64,
        limit: u64,
        goes_on: impl Fn(Grain, Grain) -> bool,
    ) -> Result<(Grain, u64), DiskError> {
        let start = self.grain(source, first)?;
        let (mut before, mut at) = (start, first.saturating_add(1));
        while at < limit {
            let number = at / TABLE_ENTRIES;
            let table = self.table(source, number)?;
            let end = number.saturating_add(1).saturating_mul(TABLE_ENTRIES).min(limit);
            for grain in at..end {
                let here = self.grain_in(table.as_deref(), grain);
                if !goes_on(before, here) {
                    return Ok((start, grain));
                }
                before = here;
            }
            at = end;
        }
        Ok((start, at))
    }
}

fn entries(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks().0.iter().map(|&entry| u32::from_le_bytes(entry)).collect()
}
