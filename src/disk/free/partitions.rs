//! Where file systems may be: the whole disk, or the partitions of an MBR (with logical ones) or of a GPT.

use super::bytes::{View, byte, crc32, le32, le64, slice};
use super::kinds::{of_gpt, of_mbr};
use super::signatures::look_for;
use super::{Found, Stop, doubt};
use crate::io::disk::DiskError;

/// How a disk is divided.
pub(super) enum Layout {
    /// Not at all.
    WholeDisk,
    /// Into these.
    Partitions(Vec<Area>),
    /// That cannot be told, for this reason.
    Doubtful(String),
}

/// A partition: its number and its place in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Area {
    pub number: u32,
    pub start: u64,
    pub len: u64,
    /// What its table says that it is, if that is nothing that is looked into.
    pub foreign: Option<&'static str>,
}

impl Area {
    pub fn end(&self) -> Option<u64> {
        self.start.checked_add(self.len)
    }

    pub fn overlaps(&self, other: &Self) -> bool {
        self.start < other.end().unwrap_or(u64::MAX) && other.start < self.end().unwrap_or(u64::MAX)
    }
}

/// The whole disk as its only part.
pub(super) fn whole_disk(len: u64) -> Area {
    Area { number: 0, start: 0, len, foreign: None }
}

const MBR_SECTOR: u64 = 512;
/// Partitions of a table: Linux knows at most 256 minor numbers of a disk.
const PARTITIONS_MAX: usize = 256;
const GPT_MAGIC: &[u8] = b"EFI PART";

/// Finds out how a disk is divided.
pub(super) fn find(disk: View<'_>) -> Result<Layout, DiskError> {
    let found = match divide(disk) {
        Err(Stop::Disk(error)) => return Err(error),
        Err(Stop::Doubt(why)) => return Ok(Layout::Doubtful(why)),
        Ok(None) => return Ok(Layout::WholeDisk),
        Ok(Some(areas)) => areas,
    };
    // A table over a file system, or the other way round: one of them is left over.
    let signs = look_for(disk)?;
    if !signs.known.is_empty() || signs.foreign.is_some() {
        let other = signs.foreign.unwrap_or("a file system");
        return Ok(Layout::Doubtful(format!("it has a partition table and the signature of {other}")));
    }
    if found.is_empty() {
        return Ok(Layout::Doubtful("its partition table is empty".into()));
    }
    Ok(Layout::Partitions(found))
}

fn divide(disk: View<'_>) -> Found<Option<Vec<Area>>> {
    let mbr = disk.part(0, 512)?.filter(|sector| slice(sector, 510, 2) == [0x55, 0xaa]);
    let mut gpt_sector = None;
    for sector_bytes in [512, 4096] {
        if gpt_sector.is_none() && disk.has(sector_bytes, GPT_MAGIC)? {
            gpt_sector = Some(sector_bytes);
        }
    }
    let entries = mbr.as_deref().map(table_of).unwrap_or_default();
    let is_protective = entries.iter().any(|entry| entry.kind == 0xee);
    match (gpt_sector, mbr.is_some()) {
        (None, false) => Ok(None),
        (Some(sector_bytes), _) if is_protective => {
            if entries.iter().any(|entry| entry.kind != 0xee && entry.kind != 0) {
                return doubt("it has an MBR and a GPT that both name partitions");
            }
            read_gpt(disk, sector_bytes).map(Some)
        }
        (Some(_), _) => doubt("it has a GPT without the MBR that belongs to it"),
        (None, true) if is_protective => doubt("its GPT is damaged: its header is missing"),
        (None, true) if entries.iter().all(|entry| entry.kind == 0 && entry.sectors == 0) => {
            // A boot sector, as a file system on a whole disk may begin with.
            Ok(None)
        }
        (None, true) => read_mbr(disk, &entries).map(Some),
    }
}

/// Whether a partition bears a partition table of its own, as the disk of a machine does: then a file system whose signs are on it
/// is what was there before. Boot sectors of file systems end like an MBR, and have code where the table would be.
pub(super) fn is_divided(partition: View<'_>) -> Result<bool, DiskError> {
    for sector_bytes in [512, 4096] {
        if partition.has(sector_bytes, GPT_MAGIC)? {
            return Ok(true);
        }
    }
    let Some(sector) = partition.part(0, 512)?.filter(|sector| slice(sector, 510, 2) == [0x55, 0xaa]) else {
        return Ok(false);
    };
    let entries = table_of(&sector);
    let is_sound = |entry: &Entry| {
        let end = entry.start.saturating_add(entry.sectors).saturating_mul(MBR_SECTOR);
        entry.flag & 0x7f == 0 && (entry.is_none() || (entry.start > 0 && end <= partition.len))
    };
    Ok(entries.iter().all(is_sound) && entries.iter().any(|entry| !entry.is_none()))
}

/// An entry of an MBR or of one of its extended boot records.
#[derive(Debug, Clone, Copy)]
struct Entry {
    flag: u8,
    kind: u8,
    start: u64,
    sectors: u64,
}

impl Entry {
    fn is_extended(&self) -> bool {
        [0x05, 0x0f, 0x85].contains(&self.kind)
    }

    fn is_none(&self) -> bool {
        self.kind == 0 || self.sectors == 0
    }

    fn area(&self, number: u32, base: u64) -> Area {
        let start = base.saturating_add(self.start).saturating_mul(MBR_SECTOR);
        Area { number, start, len: self.sectors * MBR_SECTOR, foreign: of_mbr(self.kind) }
    }
}

fn table_of(sector: &[u8]) -> Vec<Entry> {
    let entry = |at| Entry {
        flag: byte(sector, at),
        kind: byte(sector, at + 4),
        start: u64::from(le32(sector, at + 8)),
        sectors: u64::from(le32(sector, at + 12)),
    };
    [446, 462, 478, 494].map(entry).into()
}

fn read_mbr(disk: View<'_>, entries: &[Entry]) -> Found<Vec<Area>> {
    if entries.iter().any(|entry| entry.flag & 0x7f != 0) {
        return doubt("its first sector ends like an MBR, but has no partition table");
    }
    let mut areas = Vec::new();
    let mut extended = None;
    for (entry, number) in entries.iter().zip(1..) {
        if entry.is_none() {
            continue;
        }
        if entry.is_extended() {
            if extended.replace(*entry).is_some() {
                return doubt("its MBR has two extended partitions");
            }
        } else {
            areas.push(entry.area(number, 0));
        }
    }
    if let Some(extended) = extended {
        let whole = extended.area(0, 0);
        if areas.iter().any(|area| area.overlaps(&whole)) {
            return doubt("a partition of its MBR overlaps the extended one");
        }
        read_logical(disk, &extended, &mut areas)?;
    }
    Ok(areas)
}

/// Follows the chain of the extended boot records. Each lies behind the one before.
fn read_logical(disk: View<'_>, extended: &Entry, areas: &mut Vec<Area>) -> Found<()> {
    let whole = extended.area(0, 0);
    let (mut record, mut number) = (extended.start, 5);
    for _ in 0..PARTITIONS_MAX {
        let sector = disk.read(record.saturating_mul(MBR_SECTOR), 512)?;
        if slice(&sector, 510, 2) != [0x55, 0xaa] {
            return doubt("an extended boot record of its MBR is damaged");
        }
        let entries = table_of(&sector);
        let mut data = entries.iter().filter(|entry| !entry.is_none() && !entry.is_extended());
        let mut links = entries.iter().filter(|entry| !entry.is_none() && entry.is_extended());
        if let Some(entry) = data.next() {
            let area = entry.area(number, record);
            let is_inside = area.start >= whole.start && area.end() <= whole.end();
            if !is_inside || area.start <= record.saturating_mul(MBR_SECTOR) {
                return doubt("a logical partition of its MBR lies outside of the extended one");
            }
            areas.push(area);
            number += 1;
        }
        let link = links.next();
        if data.next().is_some() || links.next().is_some() {
            return doubt("an extended boot record of its MBR has more than one partition");
        }
        let Some(link) = link else { return Ok(()) };
        let next = extended.start.saturating_add(link.start);
        if next <= record || next >= extended.start.saturating_add(extended.sectors) {
            return doubt("the chain of its MBR's logical partitions leads astray");
        }
        record = next;
    }
    doubt(format!("its MBR has more than {PARTITIONS_MAX} logical partitions"))
}

/// Reads a GPT by the UEFI Specification, chapter 5.3. A header and a table with sound checksums are believed.
fn read_gpt(disk: View<'_>, sector_bytes: u64) -> Found<Vec<Area>> {
    let damaged = |what: &str| doubt(format!("its GPT is damaged: {what}"));
    let header = disk.read(sector_bytes, 512)?;
    let header_bytes = le32(&header, 12) as usize;
    if !(92..=512).contains(&header_bytes) {
        return damaged("its header has an impossible length");
    }
    let (before, behind) = (slice(&header, 0, 16), slice(&header, 20, header_bytes - 20));
    if crc32(&[before, &[0; 4], behind]) != le32(&header, 16) {
        return damaged("its header's checksum does not fit");
    }
    let (table_at, count) = (le64(&header, 72), le32(&header, 80) as usize);
    let entry_bytes = le32(&header, 84) as usize;
    if le64(&header, 24) != 1 || !(128..=4096).contains(&entry_bytes) || !entry_bytes.is_power_of_two() {
        return damaged("its header says impossible things");
    }
    if count > 1024 {
        return damaged(&format!("it has {count} entries"));
    }
    let table = disk.read(table_at.saturating_mul(sector_bytes), count * entry_bytes)?;
    if crc32(&[&table]) != le32(&header, 88) {
        return damaged("its table's checksum does not fit");
    }
    let mut areas = Vec::new();
    for (entry, number) in table.chunks_exact(entry_bytes).zip(1..) {
        if slice(entry, 0, 16) == [0; 16] {
            continue;
        }
        let (first, last) = (le64(entry, 32), le64(entry, 40));
        let start = first.checked_mul(sector_bytes);
        let end = last.checked_add(1).and_then(|end| end.checked_mul(sector_bytes));
        let (Some(start), Some(end)) = (start, end) else {
            return damaged(&format!("partition {number} ends nowhere"));
        };
        if end <= start || first < le64(&header, 40) || last > le64(&header, 48) {
            return damaged(&format!("partition {number} lies where none may be"));
        }
        if areas.len() >= PARTITIONS_MAX {
            return doubt(format!("its GPT has more than {PARTITIONS_MAX} partitions"));
        }
        areas.push(Area { number, start, len: end - start, foreign: of_gpt(slice(entry, 0, 16)) });
    }
    Ok(areas)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_that_touch_do_not_overlap() {
        let area = |number, start, len| Area { number, start, len, foreign: None };
        assert!(!area(1, 0, 5).overlaps(&area(2, 5, 5)) && area(1, 0, 6).overlaps(&area(2, 5, 5)));
        assert!(area(1, u64::MAX, 5).end().is_none());
    }

    #[test]
    fn an_entry_is_read_as_it_is_stored() {
        let mut sector = vec![0; 512];
        sector[446..462].copy_from_slice(&[0x80, 0, 0, 0, 0x83, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0]);
        let [entry, empty, ..] = table_of(&sector)[..] else { panic!("four entries") };
        assert!(empty.is_none() && !entry.is_none() && !entry.is_extended());
        assert_eq!(entry.area(1, 7), Area { number: 1, start: 8 * 512, len: 1024, foreign: None });
    }
}
