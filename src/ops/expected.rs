//! What a disk may be expected to hold: the block map of an earlier snapshot. Everything is read and hashed all the same.
//! Saved is only to find out where chunks end: where the bytes of a piece are the chunks of that map, they are cut there.
//!
//! The result is the map that a cutter gives. Where chunks end depends on the blocks since the last one ended, and on the
//! block before (the header of `ops/changed.rs`). So a cutter that comes to a piece in the state in which the one that made
//! the map was, and finds the same blocks, leaves it in the same state, with the same chunks. Where that state is known,
//! a piece may begin and end: [`Expected::is_known`].

use super::changed::was_cut_with;
use super::context::Context;
use super::error::OpsError;
use super::pieces::{Loaded, read_blocks};
use crate::chunk::cut::{Cutter, Span};
use crate::chunk::fingerprint::{block_facts, is_zero};
use crate::chunk::frame::chunk_id;
use crate::disk::DiskRead;
use crate::model::blockmap::{BlockMap, ChunkRef};
use crate::model::ids::SnapshotId;
use crate::model::objects::PackName;
use crate::model::region::ChunkerParams;
use crate::model::snapshot::Snapshot;
use crate::model::units::{BLOCK_BYTES, ZERO_RUN_BLOCKS_MIN, block_offset};
use crate::region::Region;
use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::ops::Range;

/// Earlier snapshots that are looked at, the newest first.
const LOOKED_AT_MAX: usize = 8;
/// Chunks that are tried of each.
const TRIED_CHUNKS: usize = 8;
/// The part of the memory's budget that an expected map may take; there are two while others are looked at.
const MEMORY_SHARE: u64 = 16;

/// An earlier snapshot's map, for a disk of the same length.
pub(super) struct Expected {
    map: BlockMap,
    params: ChunkerParams,
}

/// A piece that holds what was expected.
pub(super) struct Same {
    /// Its chunks.
    pub(super) chunks: Vec<ChunkRef>,
    /// The packs that they are in, once those were looked up.
    pub(super) packs: BTreeSet<PackName>,
    /// A cutter in the state in which one leaves the piece.
    pub(super) cutter: Cutter,
}

impl Expected {
    #[cfg(test)]
    pub(super) fn of(map: BlockMap, params: ChunkerParams) -> Self {
        Self { map, params }
    }

    /// The map of the snapshot that is `named` as the disk's parent, if half of what is tried of it is the same; else of that
    /// among it and the caller's newest of the same length that resembles the disk most; none if nothing is the same.
    pub(super) fn find(
        region: &Region,
        disk: &dyn DiskRead,
        named: Option<SnapshotId>,
        context: &Context<'_>,
    ) -> Result<Option<Self>, OpsError> {
        let params = region.header().chunker;
        let chunks_max = context.memory_bytes / MEMORY_SHARE / size_of::<ChunkRef>() as u64;
        let serves = |snapshot: &&Snapshot| {
            let is_visible = snapshot.owner == context.account || named == Some(snapshot.id);
            // A copy may have been cut otherwise where it comes from.
            let is_ours = is_visible && snapshot.source.is_none();
            is_ours
                && snapshot.volume_bytes == disk.len_bytes()
                && (1..=chunks_max).contains(&snapshot.manifest.chunks)
        };
        let catalog = region.catalog()?;
        let mut candidates: Vec<&Snapshot> = catalog.snapshots.values().filter(serves).collect();
        candidates
            .sort_by_key(|snapshot| Reverse((named == Some(snapshot.id), snapshot.created_ms, snapshot.id)));
        let mut seen = BTreeSet::new();
        candidates.retain(|snapshot| seen.insert(snapshot.manifest.hash));
        let mut best = (0, None);
        for snapshot in candidates.into_iter().take(LOOKED_AT_MAX) {
            context.check_cancelled()?;
            // One that cannot be read is of no use here; whoever needs it says so.
            let Ok(map) = region.load_map(&snapshot.manifest) else { continue };
            if !was_cut_with(&map, params) {
                continue;
            }
            let (same, tried) = same_chunks(&map, disk, context)?;
            if same > best.0 {
                best = (same, Some(Self { map, params }));
            }
            let is_enough = if named == Some(snapshot.id) { same * 2 >= tried } else { same == tried };
            if is_enough {
                break;
            }
        }
        Ok(best.1)
    }

    /// The last place in a piece, but for its start, where it may end so that the state of a cutter is known there; if there
    /// is none, its end. And how many chunks end there or before it, if so many end at its start or before it.
    pub(super) fn end_of_piece(&self, piece: Range<u64>, before: usize) -> (u64, usize) {
        debug_assert_eq!(before, self.count_ended(piece.start), "else no piece passes any more");
        let ended = self.count_ended_in(&piece, before);
        if self.is_known(piece.end, ended) {
            return (piece.end, ended);
        }
        // The last that begins at the end or before it.
        let last = match self.map.chunks().get(ended) {
            Some(open) if open.start_block <= piece.end => Some(ended),
            _ => ended.checked_sub(1),
        };
        let start = last.map(|last| (self.map.chunks()[last].start_block, last));
        start.filter(|(start, _)| *start > piece.start).unwrap_or((piece.end, ended))
    }

    /// Whether a piece holds the chunks and zero runs that were expected there, and nothing else; then what a cutter
    /// makes of it that comes to it as expected.
    pub(super) fn find_in(&self, piece: &Loaded) -> Option<Same> {
        let blocks = piece.blocks();
        let Range { start: first, end: ended } = piece.expected();
        if !self.is_known(blocks.start, first) || !self.is_known(blocks.end, ended) {
            return None;
        }
        let mut expected = self.map.chunks()[first..ended].iter().peekable();
        let mut chunks = Vec::with_capacity(expected.len());
        for (range, range_offset) in piece.data() {
            let offset_of = |block: u64| {
                range_offset + usize::try_from(block_offset(block - range.start)).unwrap_or(usize::MAX)
            };
            let bytes_of = |from: u64, to: u64| &piece.bytes()[offset_of(from)..offset_of(to)];
            let mut position = range.start;
            while let Some(chunk) = expected.next_if(|chunk| chunk.start_block < range.end) {
                let (start, end) = (chunk.start_block, chunk.end_block());
                let is_inside = position <= start && end <= range.end;
                if !is_inside
                    || !is_zero(bytes_of(position, start))
                    || chunk_id(bytes_of(start, end)) != chunk.id
                {
                    return None;
                }
                chunks.push(*chunk);
                let goes_on = |next: &&ChunkRef| next.start_block == end && next.end_block() <= range.end;
                let next_follows = expected.peek().is_some_and(goes_on);
                let is_zero_block = |block: u64| is_zero(bytes_of(block, block + 1));
                if end < self.map.volume_blocks()
                    && may_hide_run(range.clone(), end, next_follows, is_zero_block)
                {
                    return None;
                }
                position = end;
            }
            if !is_zero(bytes_of(position, range.end)) {
                return None;
            }
        }
        if expected.peek().is_some() {
            return None;
        }
        Some(Same { chunks, packs: BTreeSet::new(), cutter: self.cutter_behind(piece, ended)? })
    }

    /// Whether a cutter that has just cut a piece is where the one that made the map was at the same block. `last` is the
    /// chunk that it cut last, with its bytes.
    pub(super) fn is_met(&self, cutter: &Cutter, last: Option<(Span, &[u8])>) -> bool {
        let position = cutter.position();
        let count = self.count_ended(position);
        if !self.is_known(position, count) {
            return false;
        }
        // In a zero run, or right behind it.
        if self.gap_behind(count).0 < position {
            return cutter.is_in_zero_run();
        }
        let Some((span, bytes)) = last.filter(|_| cutter.is_behind_chunk()) else { return false };
        let is_same = |chunk: &ChunkRef| {
            (chunk.start_block, chunk.blocks) == (span.start_block, span.blocks)
                && chunk.id == chunk_id(bytes)
        };
        count.checked_sub(1).is_some_and(|last| is_same(&self.map.chunks()[last]))
    }

    /// Whether the state of the cutter that made the map is known at a block, if the blocks before are given: at the volume's
    /// start and end; between two chunks; in a zero run that is long enough to be known for one, and behind it. So many
    /// chunks have ended there.
    fn is_known(&self, block: u64, ended: usize) -> bool {
        let (before, after) = self.gap_behind(ended);
        block == 0
            || block == self.map.volume_blocks()
            || (before == block && after == block)
            || before + ZERO_RUN_BLOCKS_MIN <= block && block <= after
    }

    /// Where the last of so many chunks ends, and where the next one begins.
    fn gap_behind(&self, count: usize) -> (u64, u64) {
        let before = count.checked_sub(1).map_or(0, |last| self.map.chunks()[last].end_block());
        (before, self.map.chunks().get(count).map_or(self.map.volume_blocks(), |next| next.start_block))
    }

    /// How many chunks end at a block or before it.
    fn count_ended(&self, block: u64) -> usize {
        self.map.chunks().partition_point(|chunk| chunk.end_block() <= block)
    }

    /// How many end at a range's end or before it, if so many end at its start or before it. Looks only at those near it.
    fn count_ended_in(&self, range: &Range<u64>, at_start: usize) -> usize {
        let behind = &self.map.chunks()[at_start..];
        let most =
            usize::try_from(range.end - range.start).map_or(behind.len(), |most| most.min(behind.len()));
        at_start + behind[..most].partition_point(|chunk| chunk.end_block() <= range.end)
    }

    /// A cutter as one leaves a piece in which everything is as expected. None if zero blocks at its end may yet turn out to
    /// be the start of a zero run.
    fn cutter_behind(&self, piece: &Loaded, ended: usize) -> Option<Cutter> {
        let end = piece.blocks().end;
        let (before, _) = self.gap_behind(ended);
        if before + ZERO_RUN_BLOCKS_MIN <= end {
            let mut cutter = Cutter::resume(self.params, before, 0);
            cutter.push_zeros(end - before, &mut |_| {});
            return Some(cutter);
        }
        let last = piece.bytes().last_chunk::<BLOCK_BYTES>()?;
        let facts = block_facts(last, self.params.zero_tail_bytes);
        let is_settled = !facts.is_zero || end == self.map.volume_blocks();
        is_settled.then(|| Cutter::resume(self.params, end, facts.fingerprint))
    }
}

/// Whether there may be a zero run around a chunk's end, which a cutter would have seen: a map that came by a wrong hint
/// can be such. `range` has the bytes that are known. (With chunks of one block there can be others, which cannot be told.)
fn may_hide_run(
    range: Range<u64>,
    end: u64,
    next_follows: bool,
    is_zero_block: impl Fn(u64) -> bool,
) -> bool {
    let first = range.start.max(end.saturating_sub(ZERO_RUN_BLOCKS_MIN));
    let before = (first..end).rev().take_while(|block| is_zero_block(*block)).count() as u64;
    if before == 0 {
        return false;
    }
    let last = range.end.min(end + ZERO_RUN_BLOCKS_MIN);
    let behind = (end..last).take_while(|block| is_zero_block(*block)).count() as u64;
    !next_follows || before + behind >= ZERO_RUN_BLOCKS_MIN
}

/// How many of some chunks, from all over a map, are where it says on a disk of its length; and of how many.
fn same_chunks(
    map: &BlockMap,
    disk: &dyn DiskRead,
    context: &Context<'_>,
) -> Result<(usize, usize), OpsError> {
    let step = map.chunks().len().div_ceil(TRIED_CHUNKS).max(1);
    let mut buffer = Vec::new();
    let (mut same, mut tried) = (0, 0);
    for chunk in map.chunks().iter().step_by(step) {
        buffer.resize(usize::from(chunk.blocks) * BLOCK_BYTES, 0);
        read_blocks(disk, chunk.start_block, &mut buffer, context)?;
        same += usize::from(chunk_id(&buffer) == chunk.id);
        tried += 1;
    }
    Ok((same, tried))
}
