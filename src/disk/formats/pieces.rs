//! What the readers of VHD and VHDX share: fields of headers, areas of a file, extents and reads that are made of
//! the pieces in which the disk lies in the file.

use crate::io::disk::{DiskError, DiskRead, Extent};
use std::io;
use std::path::Path;

/// How far from its start an extent is extended by further pieces.
const COALESCED_BYTES: u64 = 64 << 20;

/// `N` bytes from a place; zeros where there are none.
pub(super) fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}

/// A part of the file, if all of it is there.
pub(super) fn part_of(file: &dyn DiskRead, at: u64, len: usize) -> Result<Option<Vec<u8>>, DiskError> {
    if at.checked_add(len as u64).is_none_or(|end| end > file.len_bytes()) {
        return Ok(None);
    }
    let mut part = vec![0; len];
    file.read_at(at, &mut part)?;
    Ok(Some(part))
}

/// A range of the file's bytes that something occupies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Area {
    /// What lies there.
    pub what: &'static str,
    /// First byte.
    pub start: u64,
    /// One after the last byte.
    pub end: u64,
}

impl Area {
    /// An area; one whose end has no number is none.
    pub fn new(what: &'static str, start: u64, len: u64) -> Option<Self> {
        Some(Self { what, start, end: start.checked_add(len)? })
    }

    /// Whether the two have a byte in common.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.start < other.end && other.start < self.end
    }
}

/// Whether any two of some blocks have a byte in common, all being `len` long; if so, where the second begins.
pub(super) fn shared_block(mut starts: Vec<u32>, len: u64) -> Option<u32> {
    starts.sort_unstable();
    let mut pairs = starts.iter().zip(starts.iter().skip(1));
    pairs.find(|&(&before, &after)| u64::from(after.saturating_sub(before)) < len).map(|(_, &after)| after)
}

/// Where a piece of the disk lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    /// Where in the file; nowhere if it reads as zeros.
    pub at: Option<u64>,
    /// Its length on the disk, from the place that was asked for.
    pub len: u64,
}

/// The extent from `offset` on of a disk of `len` bytes. Holes of the file are zeros, too.
pub(super) fn extent_of(
    file: &dyn DiskRead,
    len: u64,
    offset: u64,
    piece_at: impl Fn(u64) -> Piece,
) -> Result<Extent, DiskError> {
    let horizon = offset.saturating_add(COALESCED_BYTES).min(len);
    let mut extent: Option<Extent> = None;
    let mut at = offset;
    while at < horizon {
        let piece = piece_at(at);
        let mut end = at.saturating_add(piece.len).min(len);
        let is_zero = match piece.at {
            None => true,
            Some(place) => {
                let found = file.extent_at(place)?;
                end = end.min(at.saturating_add(found.end.saturating_sub(place)));
                found.is_zero
            }
        };
        // A piece of nothing would be looked at for ever.
        if end <= at || extent.is_some_and(|extent| extent.is_zero != is_zero) {
            break;
        }
        extent = Some(Extent { start: offset, end, is_zero });
        at = end;
    }
    Ok(extent.unwrap_or(Extent { start: offset, end: len, is_zero: false }))
}

/// Takes a read apart by the pieces that it meets, and has each of them filled.
pub(super) fn read_pieces(
    path: &Path,
    len: u64,
    offset: u64,
    buffer: &mut [u8],
    mut fill: impl FnMut(u64, &mut [u8]) -> Result<(), DiskError>,
    piece_len: impl Fn(u64) -> u64,
) -> Result<(), DiskError> {
    let outside = || DiskError::io("read", path, offset, io::ErrorKind::InvalidInput.into());
    if offset.checked_add(buffer.len() as u64).is_none_or(|end| end > len) {
        return Err(outside());
    }
    let (mut at, mut rest) = (offset, buffer);
    while !rest.is_empty() {
        let here = usize::try_from(piece_len(at)).unwrap_or(usize::MAX).min(rest.len());
        if here == 0 {
            return Err(outside());
        }
        let (piece, behind) = rest.split_at_mut(here);
        fill(at, piece)?;
        at = at.saturating_add(here as u64);
        rest = behind;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_outside_of_the_bytes_are_zeros() {
        assert_eq!(field(&[1, 2, 3], 1), [2, 3]);
        assert_eq!(field(&[1, 2, 3], 2), [0, 0]);
        assert_eq!(field(&[1, 2, 3], 9), [0]);
    }

    #[test]
    fn areas_that_touch_do_not_overlap() {
        let area = |start, len| Area::new("it", start, len).unwrap();
        assert!(!area(0, 5).overlaps(&area(5, 5)) && area(0, 6).overlaps(&area(5, 5)));
        assert!(area(5, 1).overlaps(&area(0, 9)) && Area::new("it", u64::MAX, 1).is_none());
        assert_eq!(shared_block(vec![9, 0, 4], 4), None);
        assert_eq!(shared_block(vec![9, 0, 4], 5), Some(4));
        assert_eq!(shared_block(vec![7, 7], 1), Some(7));
    }
}
