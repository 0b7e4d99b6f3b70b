//! The block map of a disk that is known to be as an earlier snapshot, but for some ranges: made from that snapshot's
//! map, with the disk read near the changes only. It is exactly the map that reading everything would give.
//!
//! Why it is the same. Where a chunk ends depends on the blocks since the chunk began, on the block before it, and on
//! up to three zero blocks behind it, which may turn out to be the start of a zero run. So, of two disks that are
//! alike from some block on, cut with the same parameters:
//!
//! - A change at block *a* leaves every chunk as it is that ends four blocks or more before *a*. Cutting is taken up
//!   at the start of the first other one ([`Recut::restart`]), where a cutter's state is known: what is open in it is
//!   nothing, and the block before was not changed.
//! - Behind the last changed block both cutters go the same way as soon as they are in the same state
//!   ([`Recut::is_met`]): both right behind a chunk, with the same block before it; or both in a zero run. From there
//!   on to the next change the chunks of the earlier map stand.

use super::context::Context;
use super::cutting::{Batch, Cutting};
use super::error::OpsError;
use super::pieces::{fill, read_blocks};
use crate::chunk::cut::Cutter;
use crate::chunk::fingerprint::{block_facts, is_zero};
use crate::chunk::frame::chunk_id;
use crate::disk::{AlignedBuffer, DiskError, DiskRead};
use crate::model::blockmap::{BlockMap, BlockMapBuilder, ChunkRef};
use crate::model::changes::Changes;
use crate::model::region::ChunkerParams;
use crate::model::units::{BLOCK_BYTES, ZERO_RUN_BLOCKS_MIN, block_offset};
use std::iter::Peekable;
use std::ops::Range;
use std::slice::Iter;

/// Chunks that are kept and handed on at once.
const KEPT_AT_ONCE: usize = 8 << 10;
/// Chunks, and gaps between them, that are looked at before a hint is believed.
const TRIED_PLACES: usize = 8;
/// Blocks of such a gap.
const TRIED_BLOCKS: u64 = 64;
/// Chunks of the earlier map that are read at once at most, while the cuts do not meet.
const STEP_CHUNKS_MAX: usize = 64;

/// What is known of a disk before it is read.
#[derive(Clone, Copy)]
pub(super) struct Changed<'a> {
    /// The block map of the earlier snapshot: [`was_cut_with`] the parameters at hand, and as long as the disk.
    pub(super) parent: &'a BlockMap,
    /// What may have changed since.
    pub(super) changes: &'a Changes,
}

impl Changed<'_> {
    fn is_outside(&self, blocks: &Range<u64>) -> bool {
        let ranges = self.changes.ranges();
        let next = ranges.partition_point(|range| range.end <= blocks.start);
        !blocks.is_empty() && ranges.get(next).is_none_or(|range| range.start >= blocks.end)
    }
}

/// Whether a block map can be one that was cut with these parameters, as far as lengths and gaps tell.
pub(super) fn was_cut_with(map: &BlockMap, params: ChunkerParams) -> bool {
    let is_gap = |blocks: u64| blocks == 0 || blocks >= ZERO_RUN_BLOCKS_MIN;
    let (mut end, mut is_short) = (0, false);
    for chunk in map.chunks() {
        let gap = chunk.start_block - end;
        if !is_gap(gap) || (gap == 0 && is_short) || chunk.blocks > params.max_blocks {
            return false;
        }
        end = chunk.end_block();
        is_short = chunk.blocks < params.min_blocks;
    }
    is_gap(map.volume_blocks() - end)
}

/// Whether a disk is as the parent where it is said not to have changed, as far as a few places tell: chunks, and what lies
/// between them that the disk does not say is a hole. So a hint that is of another disk or another snapshot is found, and a
/// parent in which free blocks were left out.
pub(super) fn is_as_parent(
    disk: &dyn DiskRead,
    changed: Changed<'_>,
    context: &Context<'_>,
) -> Result<bool, OpsError> {
    let chunks = changed.parent.chunks();
    let ends = std::iter::once(0).chain(chunks.iter().map(|chunk| chunk.end_block()));
    let starts = chunks.iter().map(|chunk| chunk.start_block).chain([changed.parent.volume_blocks()]);
    let gaps: Vec<Range<u64>> =
        ends.zip(starts).map(|(end, start)| end..start).filter(|gap| changed.is_outside(gap)).collect();
    let chunks: Vec<&ChunkRef> =
        chunks.iter().filter(|chunk| changed.is_outside(&(chunk.start_block..chunk.end_block()))).collect();
    let step = |count: usize| count.div_ceil(TRIED_PLACES).max(1);
    let mut buffer = Vec::new();
    for chunk in chunks.iter().step_by(step(chunks.len())) {
        buffer.resize(usize::from(chunk.blocks) * BLOCK_BYTES, 0);
        if was_read(read_blocks(disk, chunk.start_block, &mut buffer, context))?
            && chunk_id(&buffer) != chunk.id
        {
            return Ok(false);
        }
    }
    for gap in parts_of(&gaps) {
        let Some(start) = first_data(disk, &gap)? else { continue };
        buffer.resize(usize::try_from((gap.end - start).min(TRIED_BLOCKS)).unwrap_or(0) * BLOCK_BYTES, 0);
        if was_read(read_blocks(disk, start, &mut buffer, context))? && !is_zero(&buffer) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What the disk does not give tells nothing: with a hint it need not.
fn was_read(read: Result<(), OpsError>) -> Result<bool, OpsError> {
    match read {
        Err(OpsError::Disk(DiskError::Io { .. })) => Ok(false),
        read => read.map(|()| true),
    }
}

/// The rest of some of the gaps from some block on: the longer one is, the likelier.
fn parts_of(gaps: &[Range<u64>]) -> Vec<Range<u64>> {
    let blocks: u64 = gaps.iter().map(|gap| gap.end - gap.start).sum();
    let places = TRIED_PLACES as u64;
    let (mut rest, mut before) = (gaps.iter().peekable(), 0);
    let at = |place: u64| u64::try_from(u128::from(blocks) * u128::from(place) / u128::from(places));
    let mut parts = Vec::new();
    for target in (0..places).filter_map(|place| at(place).ok()) {
        while let Some(gap) = rest.next_if(|gap| before + (gap.end - gap.start) <= target) {
            before += gap.end - gap.start;
        }
        parts.extend(rest.peek().map(|gap| gap.start + (target - before)..gap.end));
    }
    parts
}

/// The first block of some that may not be zero.
fn first_data(disk: &dyn DiskRead, blocks: &Range<u64>) -> Result<Option<u64>, OpsError> {
    let mut position = blocks.start;
    while position < blocks.end {
        let extent = disk.extent_at(block_offset(position))?;
        if !extent.is_zero {
            return Ok(Some(position));
        }
        let is_last = extent.end >= disk.len_bytes();
        position = if is_last { blocks.end } else { (extent.end / BLOCK_BYTES as u64).max(position + 1) };
    }
    Ok(None)
}

/// Reads and cuts what is near changes, in the place of the first stage of [`ingest`](super::ingest::ingest).
/// `take` gives buffers, `send` takes batches; it ends when either does not.
pub(super) fn cut_changed(
    disk: &dyn DiskRead,
    params: ChunkerParams,
    changed: Changed<'_>,
    context: &Context<'_>,
    take: &mut dyn FnMut() -> Option<AlignedBuffer>,
    send: &mut dyn FnMut(Batch) -> bool,
) -> Result<(), OpsError> {
    let (chunks, total) = (changed.parent.chunks(), changed.parent.volume_blocks());
    let waiting = Batch::default();
    let mut recut = Recut { disk, params, chunks, total, context, take, send, waiting };
    let mut ranges = changed.changes.ranges().iter().peekable();
    let mut done = 0;
    while let Some(range) = ranges.next_if(|range| range.start < total) {
        let (cutter, start) = recut.restart(range.start)?;
        if !recut.keep(done..start) {
            return Ok(());
        }
        match recut.cut(cutter, start, range.end, &mut ranges)? {
            Some(met) => done = met,
            None => return Ok(()),
        }
    }
    if recut.keep(done..total) {
        recut.emit(Batch::default());
    }
    Ok(())
}

/// The block map that [`cut_changed`] makes, without storing anything.
pub(super) fn changed_map(
    disk: &dyn DiskRead,
    params: ChunkerParams,
    changed: Changed<'_>,
    context: &Context<'_>,
) -> Result<BlockMap, OpsError> {
    let mut map = BlockMapBuilder::new(changed.parent.volume_bytes()).map_err(OpsError::Volume)?;
    let mut pushed = Ok(());
    let mut send = |batch: Batch| {
        pushed = batch.refs().try_for_each(|chunk| map.push(chunk));
        pushed.is_ok()
    };
    cut_changed(disk, params, changed, context, &mut || Some(AlignedBuffer::default()), &mut send)?;
    pushed.map_err(OpsError::Volume)?;
    Ok(map.finish())
}

/// Where two block maps of equally long volumes differ, in bytes, ascending: ranges whose chunks are not the same.
pub(super) fn differences(one: &BlockMap, other: &BlockMap) -> Vec<Range<u64>> {
    let mut found = Changes::default();
    let (mut ones, mut others) = (one.chunks().iter().peekable(), other.chunks().iter().peekable());
    while let Some(start) = ones.peek().into_iter().chain(others.peek()).map(|chunk| chunk.start_block).min()
    {
        let one = ones.next_if(|chunk| chunk.start_block == start);
        let other = others.next_if(|chunk| chunk.start_block == start);
        if one != other {
            let unlike = one.into_iter().chain(other);
            unlike.for_each(|chunk| found.add_blocks(chunk.start_block..chunk.end_block()));
        }
    }
    let len = one.volume_bytes();
    found.ranges().iter().map(|range| block_offset(range.start)..block_offset(range.end).min(len)).collect()
}

struct Recut<'a> {
    disk: &'a dyn DiskRead,
    params: ChunkerParams,
    /// The earlier map.
    chunks: &'a [ChunkRef],
    /// Blocks of the volume.
    total: u64,
    context: &'a Context<'a>,
    take: &'a mut dyn FnMut() -> Option<AlignedBuffer>,
    send: &'a mut dyn FnMut(Batch) -> bool,
    /// What goes before the next batch.
    waiting: Batch,
}

impl Recut<'_> {
    /// How many chunks of the earlier map end at a block or before it, and where the last of them ends.
    fn ended(&self, block: u64) -> (usize, u64) {
        let count = self.chunks.partition_point(|chunk| chunk.end_block() <= block);
        (count, count.checked_sub(1).map_or(0, |last| self.chunks[last].end_block()))
    }

    /// Where cutting begins again so that a change at `changed` counts: a cutter in the state in which one is there that
    /// came from the volume's first block.
    fn restart(&mut self, changed: u64) -> Result<(Cutter, u64), OpsError> {
        let (count, before) = match changed.checked_sub(ZERO_RUN_BLOCKS_MIN) {
            Some(safe) => self.ended(safe),
            None => (0, 0),
        };
        let start = self.chunks.get(count).map_or(changed, |chunk| chunk.start_block.min(changed));
        if start >= before + ZERO_RUN_BLOCKS_MIN {
            // In a zero run, or at its end: what was before it does not matter.
            let mut cutter = Cutter::resume(self.params, before, 0);
            cutter.push_zeros(start - before, &mut |_| {});
            return Ok((cutter, start));
        }
        // Right behind a chunk, or at the volume's start, where blocks of a zero run that just begins are read again.
        let Some(last) = before.checked_sub(1) else { return Ok((Cutter::new(self.params), 0)) };
        let mut block = vec![0; BLOCK_BYTES];
        read_blocks(self.disk, last, &mut block, self.context)?;
        self.waiting.read_bytes += BLOCK_BYTES as u64;
        let previous = block_facts(&block, self.params.zero_tail_bytes).fingerprint;
        Ok((Cutter::resume(self.params, before, previous), before))
    }

    /// Cuts from `position` on, past the change that ends at `changed_end` and those that follow too closely, until the
    /// cuts meet those of the earlier map. Gives where; nothing if nobody takes what was cut.
    fn cut(
        &mut self,
        cutter: Cutter,
        mut position: u64,
        mut changed_end: u64,
        later: &mut Peekable<Iter<'_, Range<u64>>>,
    ) -> Result<Option<u64>, OpsError> {
        let mut cutting = Cutting::new(cutter);
        let mut step = 1;
        loop {
            let mut target = self.next_meeting(position.max(changed_end), step);
            while let Some(next) = later.next_if(|next| next.start < target + ZERO_RUN_BLOCKS_MIN) {
                changed_end = next.end;
                target = self.next_meeting(position.max(changed_end), step);
            }
            while position < target {
                self.context.check_cancelled()?;
                let Some(buffer) = (self.take)() else { return Ok(None) };
                let headroom = cutting.tail_bytes();
                let (piece, reached) =
                    fill(self.disk, position..target, buffer, headroom, self.params, self.context)?;
                position = reached;
                if !self.emit(cutting.take(piece).hashed()) {
                    return Ok(None);
                }
            }
            if position == self.total {
                let last = cutting.finish().hashed();
                return Ok(self.emit(last).then_some(position));
            }
            if self.is_met(&cutting.cutter, changed_end) {
                return Ok(Some(position));
            }
            step = (step * 2).min(STEP_CHUNKS_MAX);
        }
    }

    /// The first place from `from` on where the cuts may meet, or further away by some chunks: cuts that have met stay
    /// together. It is after `from`, unless that is the volume's end.
    fn next_meeting(&self, from: u64, step: usize) -> u64 {
        let (count, _) = self.ended(from);
        let gap_end = self.chunks.get(count).map_or(self.total, |chunk| chunk.start_block);
        if from < gap_end {
            return (from + ZERO_RUN_BLOCKS_MIN).min(gap_end);
        }
        let last = (count + step - 1).min(self.chunks.len().saturating_sub(1));
        self.chunks.get(count.max(last)).map_or(self.total, ChunkRef::end_block)
    }

    /// Whether a cutter is in the state in which the one that made the earlier map was at the same block, which lies
    /// behind the last change.
    fn is_met(&self, cutter: &Cutter, changed_end: u64) -> bool {
        let position = cutter.position();
        let (count, end) = self.ended(position);
        let gap_end = self.chunks.get(count).map_or(self.total, |chunk| chunk.start_block);
        let both_behind_chunk =
            cutter.is_behind_chunk() && count > 0 && end == position && position > changed_end;
        let both_in_zeros = cutter.is_in_zero_run()
            && position >= changed_end
            && (end + ZERO_RUN_BLOCKS_MIN..=gap_end).contains(&position);
        both_behind_chunk || both_in_zeros
    }

    /// Keeps the chunks of the earlier map in a range; false if nobody takes them.
    fn keep(&mut self, range: Range<u64>) -> bool {
        let first = self.chunks.partition_point(|chunk| chunk.start_block < range.start);
        let (end, _) = self.ended(range.end);
        self.waiting.passed_bytes += block_offset(range.end.saturating_sub(range.start));
        for kept in self.chunks[first.min(end)..end].chunks(KEPT_AT_ONCE) {
            self.waiting.kept.extend_from_slice(kept);
            if self.waiting.kept.len() >= KEPT_AT_ONCE {
                let Some(buffer) = (self.take)() else { return false };
                // Buffers go round, and bound how much waits.
                self.waiting.buffer = Some(buffer);
                if !(self.send)(std::mem::take(&mut self.waiting)) {
                    return false;
                }
            }
        }
        true
    }

    /// Hands a batch on, behind what waits; false if nobody takes it.
    fn emit(&mut self, mut batch: Batch) -> bool {
        let before = std::mem::take(&mut self.waiting);
        batch.kept = before.kept;
        batch.read_bytes += before.read_bytes;
        batch.passed_bytes += before.passed_bytes;
        (self.send)(batch)
    }
}
