//! Gaps: what of a volume is lost, where the rest of it is to be written all the same.

use crate::model::blockmap::ChunkRef;
use crate::model::catalog::RootId;
use crate::model::units::block_offset;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// The bytes that were written as zeros since they are lost. Noted by several threads, in any order.
#[derive(Debug, Default)]
pub struct Gaps {
    found: Mutex<BTreeMap<RootId, Vec<Range<u64>>>>,
}

impl Gaps {
    /// Notes that a chunk of a volume is lost.
    pub(super) fn note(&self, root: RootId, chunk: &ChunkRef, volume_bytes: u64) {
        let lost = block_offset(chunk.start_block)..block_offset(chunk.end_block()).min(volume_bytes);
        self.found.lock().unwrap_or_else(PoisonError::into_inner).entry(root).or_default().push(lost);
    }

    /// Bytes of a volume that are lost: ascending, none next to another.
    pub fn of(&self, root: RootId) -> Vec<Range<u64>> {
        let mut ranges =
            self.found.lock().unwrap_or_else(PoisonError::into_inner).get(&root).cloned().unwrap_or_default();
        ranges.sort_unstable_by_key(|range| range.start);
        join_ranges(ranges)
    }

    /// Whether nothing is.
    pub fn is_empty(&self) -> bool {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}

/// Makes one range of those that touch. They are ascending.
pub(super) fn join_ranges(ranges: impl IntoIterator<Item = Range<u64>>) -> Vec<Range<u64>> {
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ids::{ChunkId, SnapshotId};
    use crate::model::units::BLOCK_BYTES;

    #[test]
    fn gaps_are_told_in_order_and_joined() {
        let block = BLOCK_BYTES as u64;
        let root = |number| RootId::Snapshot(SnapshotId::from_random(number));
        let chunk = |start_block, blocks| ChunkRef { start_block, blocks, id: ChunkId([0; 32]) };
        let gaps = Gaps::default();
        assert!(gaps.is_empty());
        for lost in [chunk(9, 2), chunk(2, 1), chunk(3, 4), chunk(2, 1)] {
            gaps.note(root(1), &lost, 10 * block + 5);
        }
        assert_eq!(gaps.of(root(1)), [2 * block..7 * block, 9 * block..10 * block + 5]);
        assert_eq!(gaps.of(root(2)), []);
        assert!(!gaps.is_empty());
    }
}
