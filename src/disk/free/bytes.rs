//! What the readers of file systems share: a part of a disk, numbers in it, checksums, and ranges.

use super::{Found, Stop, doubt};
use crate::io::disk::{DiskError, DiskRead, Extent};

/// A part of a disk, with places from its own start.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub disk: &'a dyn DiskRead,
    pub start: u64,
    pub len: u64,
    /// Whether to stop, asked before each read.
    pub is_cancelled: &'a dyn Fn() -> bool,
}

impl View<'_> {
    /// An error if nobody waits for the answer any more.
    pub fn check_cancelled(&self) -> Result<(), DiskError> {
        if (self.is_cancelled)() { Err(DiskError::Interrupted) } else { Ok(()) }
    }

    /// Reads bytes; in doubt if they lie outside.
    pub fn read(&self, at: u64, len: usize) -> Found<Vec<u8>> {
        match self.part(at, len)? {
            Some(bytes) => Ok(bytes),
            None => doubt(format!("it names byte {at}, where it has ended")),
        }
    }

    /// Reads bytes, or nothing if they are not all inside.
    pub fn part(&self, at: u64, len: usize) -> Result<Option<Vec<u8>>, DiskError> {
        let inside = at.checked_add(len as u64).is_some_and(|end| end <= self.len);
        let Some(place) = self.start.checked_add(at).filter(|_| inside) else { return Ok(None) };
        self.check_cancelled()?;
        let mut bytes = vec![0; len];
        self.disk.read_at(place, &mut bytes)?;
        Ok(Some(bytes))
    }

    /// Whether bytes stand at a place.
    pub fn has(&self, at: u64, bytes: &[u8]) -> Result<bool, DiskError> {
        Ok(self.part(at, bytes.len())?.is_some_and(|found| found == bytes))
    }

    /// How far from a place on, which lies inside, there are surely zeros.
    pub fn zeros_from(&self, at: u64) -> Result<u64, DiskError> {
        self.check_cancelled()?;
        let Extent { end, is_zero, .. } = self.disk.extent_at(self.start.saturating_add(at))?;
        let end = end.saturating_sub(self.start).min(self.len);
        Ok(if is_zero { end.saturating_sub(at) } else { 0 })
    }
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}

pub(super) fn byte(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or(0)
}

pub(super) fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(field(bytes, at))
}

pub(super) fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(field(bytes, at))
}

pub(super) fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(field(bytes, at))
}

pub(super) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(field(bytes, at))
}

pub(super) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(field(bytes, at))
}

pub(super) fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(field(bytes, at))
}

/// Some bytes; fewer where there are none.
pub(super) fn slice(bytes: &[u8], at: usize, len: usize) -> &[u8] {
    let rest = bytes.get(at..).unwrap_or_default();
    rest.get(..len).unwrap_or(rest)
}

/// CRC32C as ext4 keeps it: neither the start nor the end is inverted.
pub(super) fn crc32c_plain(state: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!state, bytes)
}

/// CRC32C of bytes with zeros instead of the `len` bytes at `at`, where it is stored.
pub(super) fn crc32c_without(bytes: &[u8], at: usize, len: usize) -> u32 {
    let before = crc32c::crc32c(slice(bytes, 0, at));
    let skipped = crc32c::crc32c_append(before, slice(&[0; 8], 0, len));
    crc32c::crc32c_append(skipped, bytes.get(at.saturating_add(len)..).unwrap_or_default())
}

/// CRC16 as ext4's group descriptors have it (lib/crc16.c of Linux).
pub(super) fn crc16(state: u16, bytes: &[u8]) -> u16 {
    bytes.iter().fold(state, |state, &byte| {
        (0..8)
            .fold(state ^ u16::from(byte), |state, _| (state >> 1) ^ if state & 1 == 1 { 0xa001 } else { 0 })
    })
}

/// CRC32 as GPT has it.
pub(super) fn crc32(pieces: &[&[u8]]) -> u32 {
    let mut sum = flate2::Crc::new();
    for piece in pieces {
        sum.update(piece);
    }
    sum.sum()
}

/// Ranges of bytes. At most so many are kept: when there are more, the smallest are forgotten.
pub(super) struct Ranges {
    list: Vec<(u64, u64)>,
    max: usize,
    least: u64,
}

impl Ranges {
    pub fn new(max: usize) -> Self {
        Self { list: Vec::new(), max: max.max(2), least: 1 }
    }

    /// Adds a range; one without a byte is none.
    pub fn push(&mut self, start: u64, end: u64) {
        if end <= start {
            return;
        }
        if let Some(last) = self.list.last_mut()
            && last.1 == start
        {
            last.1 = end;
            return;
        }
        if self.list.len() >= self.max {
            self.thin();
        }
        if end - start >= self.least {
            self.list.push((start, end));
        }
    }

    /// Forgets the smaller half. From now on only larger ranges are added.
    fn thin(&mut self) {
        let half = self.list.len() / 2;
        let mut lens: Vec<u64> = self.list.iter().map(|(start, end)| end - start).collect();
        let (_, &mut median, larger) = lens.select_nth_unstable(half);
        let mut equals = half.saturating_sub(larger.iter().filter(|&&len| len > median).count());
        self.list.retain(|&(start, end)| {
            let is_kept = end - start > median || end - start == median && equals > 0;
            if end - start == median {
                equals = equals.saturating_sub(1);
            }
            is_kept
        });
        self.least = median.saturating_add(1);
    }

    /// Sorted; those that touch or overlap are one.
    pub fn into_sorted(mut self) -> Vec<(u64, u64)> {
        self.list.sort_unstable();
        self.list.dedup_by(|later, kept| {
            let joins = later.0 <= kept.1;
            if joins {
                kept.1 = kept.1.max(later.1);
            }
            joins
        });
        self.list
    }
}

impl From<DiskError> for Stop {
    fn from(error: DiskError) -> Self {
        Self::Disk(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_the_books() {
        assert_eq!(crc16(0, b"123456789"), 0xbb3d);
        assert_eq!(crc32(&[b"1234", b"56789"]), 0xcbf4_3926);
        assert_eq!(!crc32c_plain(!0, b"123456789"), 0xe306_9283);
        assert_eq!(crc32c_without(b"12xxxx78", 2, 4), crc32c::crc32c(b"12\0\0\0\x0078"));
    }

    #[test]
    fn ranges_are_merged_and_the_smallest_forgotten() {
        let mut ranges = Ranges::new(4);
        for (start, end) in [(30, 40), (40, 50), (5, 5), (0, 10)] {
            ranges.push(start, end);
        }
        assert_eq!(ranges.into_sorted(), [(0, 10), (30, 50)]);
        let mut ranges = Ranges::new(4);
        for number in 1..100u64 {
            ranges.push(number << 32, (number << 32) + (number << 12));
        }
        let kept = ranges.into_sorted();
        assert!(!kept.is_empty() && kept.len() <= 4);
        assert!(kept.iter().all(|(start, end)| end - start == (start >> 32) << 12));
    }

    #[test]
    fn equal_ranges_are_bounded_too() {
        let mut ranges = Ranges::new(4);
        (1..100u64).for_each(|number| ranges.push(number << 32, (number << 32) + (1 << 20)));
        assert!((2..=4).contains(&ranges.into_sorted().len()));
    }
}
