//! What file systems on a disk say is free, taken as zeros: for `--skip-free`, never otherwise.
//!
//! ext2, ext3, ext4, XFS and btrfs are looked into, on a whole disk or in partitions of an MBR or a GPT. A block
//! that holds anything must never be taken as free. So each reader knows a list of features and leaves all else
//! alone; checks the checksums on its way; wants a file system that says that it was unmounted cleanly (which btrfs, and XFS
//! in the first seconds of a mount, do not tell: nobody may have it mounted, or in a suspended machine's memory); and
//! counts: what is free must be as much as the file system's own counters say. Whatever does not fit leaves the
//! whole file system as it is, with the reason. Only that the disk cannot be read is an error.

mod btrfs;
mod btrfs_tree;
mod bytes;
mod ext4;
mod ext4_groups;
mod kinds;
mod partitions;
mod signatures;
mod xfs;
mod xfs_log;

use crate::io::disk::{DiskError, DiskRead, Extent};
use crate::model::units::{BLOCK_BYTES, display_bytes};
use bytes::{Ranges, View};
use partitions::Layout;
use signatures::System;
use std::fmt;
use std::sync::{Mutex, PoisonError};

/// What is held in memory at most.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Free ranges of the disk, of 16 bytes each. Of a disk that has more, the smallest stay as they are.
    pub ranges: usize,
    /// Bytes of a file system's tables. One with larger tables is left alone.
    pub table_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { ranges: 4 << 20, table_bytes: 32 << 20 }
    }
}

/// A part of a disk that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Which one it is.
    pub place: Place,
    /// Its first byte.
    pub start: u64,
    /// Its length in bytes.
    pub len: u64,
    /// What is on it, if that is known.
    pub kind: Option<&'static str>,
    /// What became of it.
    pub outcome: Outcome,
}

/// Where a part lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// There are no partitions, or they are not known.
    WholeDisk,
    /// A partition of this number.
    Partition(u32),
}

/// What became of a part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// What it says is free reads as zeros.
    Skipped {
        /// Bytes that are taken as zero.
        free_bytes: u64,
        /// Bytes of them that were not holes of the disk already.
        data_bytes: u64,
    },
    /// It is as it was.
    LeftAlone {
        /// The reason.
        why: String,
    },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WholeDisk => f.write_str("whole disk"),
            Self::Partition(number) => write!(f, "partition {number}"),
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.place)?;
        if let Some(kind) = self.kind {
            write!(f, " ({kind})")?;
        }
        match &self.outcome {
            Outcome::Skipped { free_bytes, data_bytes } => write!(
                f,
                ": {} of free blocks are taken as zero, {} of them were not holes",
                display_bytes(*free_bytes),
                display_bytes(*data_bytes)
            ),
            Outcome::LeftAlone { why } => write!(f, ": left alone: {why}"),
        }
    }
}

/// Why a part is not read to its end.
#[derive(Debug)]
enum Stop {
    /// The disk cannot be read.
    Disk(DiskError),
    /// It is left alone, for this reason.
    Doubt(String),
}

type Found<T> = Result<T, Stop>;

fn doubt<T>(why: impl Into<String>) -> Found<T> {
    Err(Stop::Doubt(why.into()))
}

/// Reads what the file systems of a disk say is free. Gives the disk with that as zeros, and what was found. Ends with
/// [`DiskError::Interrupted`] once `is_cancelled` says so, which is asked before each read.
pub fn skip_free(
    disk: Box<dyn DiskRead>,
    limits: &Limits,
    is_cancelled: &dyn Fn() -> bool,
) -> Result<(Box<dyn DiskRead>, Vec<Part>), DiskError> {
    let len = disk.len_bytes();
    let (parts, free) = look(View { disk: &*disk, start: 0, len, is_cancelled }, limits)?;
    if free.is_empty() {
        return Ok((disk, parts));
    }
    let known = Mutex::new(Extent { start: 0, end: 0, is_zero: false });
    Ok((Box::new(Skipping { disk, len, free, known }), parts))
}

type Looked = (Vec<Part>, Vec<(u64, u64)>);

fn look(whole: View<'_>, limits: &Limits) -> Result<Looked, DiskError> {
    let (areas, is_table) = match partitions::find(whole)? {
        Layout::WholeDisk => (vec![partitions::whole_disk(whole.len)], false),
        Layout::Partitions(areas) => (areas, true),
        Layout::Doubtful(why) => {
            let outcome = Outcome::LeftAlone { why };
            let part = Part { place: Place::WholeDisk, start: 0, len: whole.len, kind: None, outcome };
            return Ok((vec![part], Vec::new()));
        }
    };
    let (mut parts, mut all) = (Vec::new(), Vec::new());
    for area in &areas {
        let view = View { start: area.start, len: area.len, ..whole };
        let overlaps = areas.iter().any(|other| other.number != area.number && other.overlaps(area));
        let is_outside = area.end().is_none_or(|end| end > whole.len);
        let left = limits.ranges.saturating_sub(all.len());
        let (kind, found) = if overlaps {
            (None, doubt("it overlaps another partition"))
        } else if is_outside {
            (None, doubt("it ends after the disk's end"))
        } else if is_table && partitions::is_divided(view)? {
            (None, doubt("it has a partition table of its own"))
        } else {
            let (kind, system) = signatures::identify(view)?;
            let system = system.and_then(|system| match area.foreign {
                Some(name) => doubt(format!("its type says that it is {name}")),
                None => Ok(system),
            });
            (kind, system.and_then(|system| free_of(view, system, &Limits { ranges: left, ..*limits })))
        };
        let outcome = match found {
            Err(Stop::Disk(error)) => return Err(error),
            Err(Stop::Doubt(why)) => Outcome::LeftAlone { why },
            Ok(free) => {
                let free = whole_blocks(view, free);
                let free_bytes = free.iter().map(|(start, end)| end - start).sum();
                let data_bytes = data_in(whole, &free)?;
                all.extend(free);
                Outcome::Skipped { free_bytes, data_bytes }
            }
        };
        let place = if is_table { Place::Partition(area.number) } else { Place::WholeDisk };
        parts.push(Part { place, start: area.start, len: area.len, kind, outcome });
    }
    for area in areas.iter().filter(|area| area.end().is_some_and(|end| end <= whole.len)) {
        let view = View { start: area.start, len: area.len, ..whole };
        if let Some(guard) = signatures::guard_of(view)? {
            leave_all(&mut parts, reason_of(guard));
            all.clear();
        }
    }
    all.sort_unstable();
    Ok((parts, all))
}

/// Why what one part is keeps the free blocks of the others from being free.
fn reason_of(guard: &str) -> &'static str {
    if guard == signatures::SUSPENDED {
        "a suspended system is on the disk, which goes on with what it has in memory"
    } else {
        "dm-verity on the disk has hashes of free blocks, too"
    }
}

fn leave_all(parts: &mut [Part], why: &str) {
    for part in parts {
        if let Outcome::Skipped { .. } = part.outcome {
            part.outcome = Outcome::LeftAlone { why: why.into() };
        }
    }
}

fn free_of(view: View<'_>, system: System, limits: &Limits) -> Found<Vec<(u64, u64)>> {
    let mut free = Ranges::new(limits.ranges);
    let end = match system {
        System::Ext => ext4::find_free(view, limits, &mut free)?,
        System::Xfs => xfs::find_free(view, limits, &mut free)?,
        System::Btrfs => btrfs::find_free(view, limits, &mut free)?,
    };
    signatures::check_no_hashes(view, end)?;
    Ok(free.into_sorted())
}

/// Ranges of a part as places of the disk, cut to the blocks that the store has.
fn whole_blocks(view: View<'_>, free: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    const BLOCK: u64 = BLOCK_BYTES as u64;
    let cut = |(start, end): (u64, u64)| {
        let first = view.start.checked_add(start)?.checked_next_multiple_of(BLOCK)?;
        let last = view.start.checked_add(end.min(view.len))? / BLOCK * BLOCK;
        (first < last).then_some((first, last))
    };
    free.into_iter().filter_map(cut).collect()
}

/// How many bytes of the ranges are not holes already.
fn data_in(whole: View<'_>, ranges: &[(u64, u64)]) -> Result<u64, DiskError> {
    let (mut data, mut known) = (0, Extent { start: 0, end: 0, is_zero: true });
    for &(start, end) in ranges {
        let mut at = start;
        while at < end {
            if at >= known.end {
                whole.check_cancelled()?;
                known = whole.disk.extent_at(at)?;
            }
            let upto = known.end.clamp(at + 1, end);
            data += if known.is_zero { 0 } else { upto - at };
            at = upto;
        }
    }
    Ok(data)
}

/// A disk of which some ranges read as zeros.
struct Skipping {
    disk: Box<dyn DiskRead>,
    len: u64,
    /// Sorted, none touches another.
    free: Vec<(u64, u64)>,
    /// What the disk answered last: behind each free range it is asked again, and an answer may be long in the making.
    known: Mutex<Extent>,
}

impl Skipping {
    /// What the disk says of a place.
    fn inner_at(&self, offset: u64) -> Result<Extent, DiskError> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if !(known.start..known.end).contains(&offset) {
            *known = self.disk.extent_at(offset)?;
        }
        Ok(Extent { start: offset, ..*known })
    }

    /// The first range that ends after a place.
    fn after(&self, offset: u64) -> Option<(u64, u64)> {
        self.free.get(self.free.partition_point(|range| range.1 <= offset)).copied()
    }
}

impl DiskRead for Skipping {
    fn len_bytes(&self) -> u64 {
        self.len
    }

    fn extent_at(&self, offset: u64) -> Result<Extent, DiskError> {
        let next = self.after(offset);
        if let Some((start, end)) = next
            && start <= offset
        {
            return Ok(Extent { start: offset, end, is_zero: true });
        }
        let found = self.inner_at(offset)?;
        Ok(Extent { end: next.map_or(found.end, |next| found.end.min(next.0)), ..found })
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        if offset.checked_add(buffer.len() as u64).is_none_or(|end| end > self.len) {
            return self.disk.read_at(offset, buffer);
        }
        let (mut at, mut rest) = (offset, buffer);
        while !rest.is_empty() {
            let (border, is_free) = match self.after(at) {
                Some((start, end)) if start <= at => (end, true),
                Some((start, _)) => (start, false),
                None => (self.len, false),
            };
            let here = usize::try_from(border.saturating_sub(at)).unwrap_or(usize::MAX).min(rest.len());
            let (piece, behind) = rest.split_at_mut(here.max(1));
            if is_free {
                piece.fill(0);
            } else {
                self.disk.read_at(at, piece)?;
            }
            at = at.saturating_add(piece.len() as u64);
            rest = behind;
        }
        Ok(())
    }

    fn is_computed(&self) -> bool {
        self.disk.is_computed()
    }
}
