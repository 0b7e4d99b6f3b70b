//! What may have changed on a volume: a hint that saves reading the rest.

use super::units::{BLOCK_BYTES, blocks_for_bytes};
use std::ops::Range;

/// Ranges that are kept apart at most; with more, the gaps between them are taken for changed, the smallest first.
pub const RANGES_MAX: usize = 1 << 20;

/// The blocks that may have changed, as ranges: ascending, and none touches another. Whatever lies outside is known to
/// be as it was. To add more than changed costs time and is never wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    ranges: Vec<Range<u64>>,
    /// Blocks between two ranges that are taken for changed.
    gap_blocks: u64,
}

impl Changes {
    /// Adds all blocks that a range of bytes touches. Ranges are best added in their order: one that begins before the
    /// last one takes in everything from there on.
    pub fn add_bytes(&mut self, bytes: Range<u64>) {
        self.add_blocks(bytes.start / BLOCK_BYTES as u64..blocks_for_bytes(bytes.end));
    }

    /// Adds a range of blocks, in the same manner.
    pub fn add_blocks(&mut self, blocks: Range<u64>) {
        if blocks.is_empty() {
            return;
        }
        self.append(blocks);
        while self.ranges.len() > RANGES_MAX {
            self.gap_blocks = (self.gap_blocks * 2).max(16);
            for range in std::mem::take(&mut self.ranges) {
                self.append(range);
            }
        }
    }

    fn append(&mut self, mut blocks: Range<u64>) {
        while let Some(last) =
            self.ranges.pop_if(|last| last.end.saturating_add(self.gap_blocks) >= blocks.start)
        {
            blocks = blocks.start.min(last.start)..blocks.end.max(last.end);
        }
        self.ranges.push(blocks);
    }

    /// Everything that is in either.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        let mut ranges = self.ranges;
        ranges.extend(other.ranges);
        ranges.sort_by_key(|range| range.start);
        let mut both = Self::default();
        ranges.into_iter().for_each(|range| both.add_blocks(range));
        both
    }

    /// The ranges, ascending.
    pub fn ranges(&self) -> &[Range<u64>] {
        &self.ranges
    }

    /// Blocks in all ranges.
    pub fn blocks(&self) -> u64 {
        self.ranges.iter().map(|range| range.end - range.start).sum()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::single_range_in_vec_init, reason = "lists of ranges, not numbers")]
    use super::*;

    fn of(ranges: &[Range<u64>]) -> Changes {
        let mut changes = Changes::default();
        ranges.iter().for_each(|range| changes.add_blocks(range.clone()));
        changes
    }

    #[test]
    fn ranges_that_touch_are_one() {
        assert_eq!(of(&[0..2, 2..3, 5..5, 7..8]).ranges(), [0..3, 7..8]);
        assert_eq!(of(&[0..9, 2..3]).ranges(), [0..9]);
        assert_eq!(of(&[4..5, 8..9, 1..2]).ranges(), [1..9], "out of order: all from there on");
        assert_eq!(of(&[1..4, 8..9]).with(of(&[0..1, 5..6, 8..12])).ranges(), [0..4, 5..6, 8..12]);
        assert_eq!(of(&[1..4, 8..9]).blocks(), 4);
    }

    #[test]
    fn bytes_are_blocks_that_they_touch() {
        let mut changes = Changes::default();
        changes.add_bytes(0..1);
        changes.add_bytes(8191..8193);
        changes.add_bytes(20_480..20_480);
        assert_eq!(changes.ranges(), [0..3]);
    }

    #[test]
    fn too_many_ranges_grow_together() {
        let mut changes = Changes::default();
        for at in 0..2 * RANGES_MAX as u64 {
            changes.add_blocks(at * 9..at * 9 + 1);
        }
        assert!(changes.ranges().len() <= RANGES_MAX);
        let last = 2 * RANGES_MAX as u64 - 1;
        assert_eq!(changes.ranges().last().map(|range| range.end), Some(last * 9 + 1));
        assert_eq!(changes.ranges().first().map(|range| range.start), Some(0));
    }
}
