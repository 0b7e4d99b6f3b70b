//! Where chunks end: block-aligned content-defined chunking.
//!
//! Short answer: a chunk ends after a block whose fingerprint, together with the one before it, falls below
//! a threshold; or after a block that ends in zeros, because that is most often the end of a file; or at the
//! longest length; or before a run of four or more zero blocks, which belongs to no chunk.
//!
//! File systems move files by whole blocks, so cutting at block boundaries finds the same files again at
//! other places, for a fraction of the cost of a byte-wise rolling hash, and every chunk is aligned for
//! direct I/O. Measured in docs/LAYOUT.md.

use super::fingerprint::{BlockFacts, mix};
use crate::model::region::ChunkerParams;
use crate::model::units::ZERO_RUN_BLOCKS_MIN;

/// A chunk's position: where a cut left it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// First block.
    pub start_block: u64,
    /// Length in blocks.
    pub blocks: u16,
}

/// Cuts one volume, block by block from its first. The result depends on the blocks alone, not on how they
/// were handed over; a hole is so many zero blocks.
#[derive(Debug)]
pub struct Cutter {
    params: ChunkerParams,
    threshold: u64,
    /// Position of the block that comes next.
    position: u64,
    /// First block of the open chunk.
    start_block: u64,
    /// Blocks in the open chunk.
    open_blocks: u16,
    /// Zero blocks after the open chunk that are not yet known to be content or a zero run.
    zeros: u64,
    /// Fingerprint of the block before.
    previous: u64,
}

impl Cutter {
    /// A cutter at block 0. `params` must be valid.
    pub fn new(params: ChunkerParams) -> Self {
        debug_assert!(params.is_valid());
        Self {
            params,
            threshold: u64::MAX / u64::from(params.avg_blocks.max(1)),
            position: 0,
            start_block: 0,
            open_blocks: 0,
            zeros: 0,
            previous: 0,
        }
    }

    /// A cutter that goes on behind a chunk that ends at `position` and is followed by no zero run, or behind which
    /// the caller pushes one. `previous` is the fingerprint of the last block before. It cuts as one that began at
    /// block 0 and came here.
    pub fn resume(params: ChunkerParams, position: u64, previous: u64) -> Self {
        Self { position, previous, ..Self::new(params) }
    }

    /// Whether it stands right behind a chunk: what comes next depends on nothing before but the last block's
    /// fingerprint.
    pub fn is_behind_chunk(&self) -> bool {
        self.open_blocks == 0 && self.zeros == 0
    }

    /// Whether it stands in a zero run: what comes next depends on nothing before.
    pub fn is_in_zero_run(&self) -> bool {
        self.open_blocks == 0 && self.zeros >= ZERO_RUN_BLOCKS_MIN
    }

    /// Position of the block that comes next.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The first block whose chunk is not yet cut: from here on the caller must keep the bytes.
    pub fn pending_from(&self) -> u64 {
        if self.open_blocks > 0 {
            self.start_block
        } else if self.zeros < ZERO_RUN_BLOCKS_MIN {
            self.position - self.zeros
        } else {
            self.position
        }
    }

    /// Takes the next block; a chunk that it ends goes to `emit`.
    pub fn push(&mut self, facts: BlockFacts, emit: &mut impl FnMut(Span)) {
        if facts.is_zero {
            self.push_zeros(1, emit);
            return;
        }
        self.settle_zeros(emit);
        self.push_content(facts, emit);
    }

    /// Takes `blocks` zero blocks at once: a hole.
    pub fn push_zeros(&mut self, blocks: u64, emit: &mut impl FnMut(Span)) {
        self.zeros += blocks;
        self.position += blocks;
        if self.zeros >= ZERO_RUN_BLOCKS_MIN {
            self.close(emit);
            self.previous = 0;
        }
    }

    /// The volume ends: what is open is cut.
    pub fn finish(&mut self, emit: &mut impl FnMut(Span)) {
        self.settle_zeros(emit);
        self.close(emit);
    }

    /// Fewer zero blocks than a run are content.
    fn settle_zeros(&mut self, emit: &mut impl FnMut(Span)) {
        if self.zeros < ZERO_RUN_BLOCKS_MIN {
            let zero =
                BlockFacts { fingerprint: 0, is_zero: true, has_zero_tail: self.params.zero_tail_bytes > 0 };
            let (zeros, position) = (self.zeros, self.position);
            self.position -= zeros;
            for _ in 0..zeros {
                self.push_content(zero, emit);
            }
            debug_assert_eq!(self.position, position);
        }
        self.zeros = 0;
    }

    fn push_content(&mut self, facts: BlockFacts, emit: &mut impl FnMut(Span)) {
        if self.open_blocks == 0 {
            self.start_block = self.position;
        }
        self.position += 1;
        self.open_blocks += 1;
        let pair = mix(self.previous.rotate_left(23) ^ facts.fingerprint);
        self.previous = facts.fingerprint;
        let content_cut = pair <= self.threshold || facts.has_zero_tail;
        if self.open_blocks >= self.params.max_blocks
            || (self.open_blocks >= self.params.min_blocks && content_cut)
        {
            self.close(emit);
        }
    }

    fn close(&mut self, emit: &mut impl FnMut(Span)) {
        if self.open_blocks > 0 {
            emit(Span { start_block: self.start_block, blocks: self.open_blocks });
            self.open_blocks = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PARAMS: ChunkerParams = ChunkerParams::DEFAULT;

    fn content(fingerprint: u64) -> BlockFacts {
        BlockFacts { fingerprint: mix(fingerprint + 1), is_zero: false, has_zero_tail: false }
    }

    const ZERO: BlockFacts = BlockFacts { fingerprint: 0, is_zero: true, has_zero_tail: true };

    fn cut(blocks: &[BlockFacts]) -> Vec<Span> {
        let mut spans = vec![];
        let mut cutter = Cutter::new(PARAMS);
        for &block in blocks {
            cutter.push(block, &mut |span| spans.push(span));
        }
        cutter.finish(&mut |span| spans.push(span));
        spans
    }

    #[test]
    fn runs_of_four_zeros_are_no_content_shorter_ones_are() {
        let one = content(5);
        assert_eq!(
            cut(&[one, ZERO, ZERO, ZERO, ZERO, one]),
            [Span { start_block: 0, blocks: 1 }, Span { start_block: 5, blocks: 1 }]
        );
        assert_eq!(cut(&[one, ZERO, ZERO, ZERO]), [Span { start_block: 0, blocks: 4 }]);
        assert_eq!(cut(&[ZERO, ZERO]), [Span { start_block: 0, blocks: 2 }], "a short volume of zeros");
        assert_eq!(cut(&[ZERO; 9]), []);
    }

    #[test]
    fn a_zero_tail_ends_a_chunk_that_is_long_enough() {
        let tail = BlockFacts { has_zero_tail: true, ..content(3) };
        let spans = cut(&[content(1), tail, content(2), tail, content(4)]);
        assert_eq!(spans, [Span { start_block: 0, blocks: 4 }, Span { start_block: 4, blocks: 1 }]);
    }

    fn any_blocks() -> impl Strategy<Value = Vec<BlockFacts>> {
        let block = prop_oneof![
            6 => any::<u64>().prop_map(|f| content(f >> 1)),
            1 => any::<u64>().prop_map(|f| BlockFacts { has_zero_tail: true, ..content(f >> 1) }),
            3 => Just(ZERO),
        ];
        prop::collection::vec(block, 1..400)
    }

    proptest! {
        #[test]
        fn spans_cover_all_content_in_order_within_the_lengths(blocks in any_blocks()) {
            let spans = cut(&blocks);
            let mut covered = vec![false; blocks.len()];
            let mut end = 0;
            for span in &spans {
                prop_assert!(span.start_block >= end);
                prop_assert!(span.blocks >= 1 && span.blocks <= PARAMS.max_blocks);
                end = span.start_block + u64::from(span.blocks);
                covered[span.start_block as usize..end as usize].fill(true);
            }
            for (at, block) in blocks.iter().enumerate() {
                prop_assert!(covered[at] || block.is_zero, "content block {at} is in no chunk");
            }
            // What no chunk covers is runs of at least four zeros.
            let mut gap = 0;
            for (at, covered) in covered.iter().chain([&true]).enumerate() {
                if *covered {
                    prop_assert!(gap == 0 || gap >= ZERO_RUN_BLOCKS_MIN, "gap of {gap} before {at}");
                    gap = 0;
                } else {
                    gap += 1;
                }
            }
        }

        #[test]
        fn holes_and_zero_blocks_cut_alike(blocks in any_blocks()) {
            let mut spans = vec![];
            let mut cutter = Cutter::new(PARAMS);
            for same in blocks.chunk_by(|a, b| a.is_zero && b.is_zero) {
                if same[0].is_zero {
                    cutter.push_zeros(same.len() as u64, &mut |span| spans.push(span));
                } else {
                    cutter.push(same[0], &mut |span| spans.push(span));
                }
            }
            cutter.finish(&mut |span| spans.push(span));
            prop_assert_eq!(spans, cut(&blocks));
        }

        #[test]
        fn pending_bytes_are_never_behind_a_later_span(blocks in any_blocks()) {
            let mut cutter = Cutter::new(PARAMS);
            let mut kept = 0;
            for &block in &blocks {
                let mut first = None;
                cutter.push(block, &mut |span| { first.get_or_insert(span.start_block); });
                if let Some(first) = first {
                    prop_assert!(first >= kept);
                }
                kept = cutter.pending_from();
            }
        }

        #[test]
        fn an_insertion_changes_only_chunks_near_it(
            blocks in prop::collection::vec(any::<u64>(), 3000..3300), at in 0usize..300
        ) {
            let before: Vec<_> = blocks.iter().map(|f| content(f >> 1)).collect();
            let mut after = before.clone();
            after.insert(at, content(77));
            // As they are behind the insertion, in the blocks' numbers before it.
            let ends = |blocks: &[BlockFacts], inserted: u64| -> Vec<u64> {
                let ends = cut(blocks).into_iter().map(|s| s.start_block + u64::from(s.blocks) - inserted);
                ends.filter(|&end| end > at as u64).collect()
            };
            let (before, after) = (ends(&before, 0), ends(&after, 1));
            let meet = before.iter().find(|end| after.contains(end)).copied();
            let meet = meet.expect("the disk's end is common");
            prop_assert!(meet < blocks.len() as u64 / 2, "cuts meet again only at {meet}");
            let from = |ends: &[u64]| ends.iter().filter(|&&end| end >= meet).copied().collect::<Vec<_>>();
            prop_assert_eq!(from(&before), from(&after));
        }
    }
}
