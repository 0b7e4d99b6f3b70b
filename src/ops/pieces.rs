//! The first stage of a snapshot's pipeline: a disk is read in pieces, each of which is looked at, cut and hashed while it
//! is in the processor's cache.

use super::buffers::Take;
use super::context::Context;
use super::cutting::{Batch, Cutting};
use super::error::OpsError;
use crate::chunk::cut::Cutter;
use crate::chunk::fingerprint::{BlockFacts, block_facts};
use crate::disk::{AlignedBuffer, DiskRead};
use crate::model::region::ChunkerParams;
use crate::model::units::{BLOCK_BYTES, ZERO_RUN_BLOCKS_MIN, block_offset, blocks_for_bytes};
use crossbeam_channel::{Receiver, Sender, bounded};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Mutex;

/// Bytes of a disk that are read at once and then looked at, cut and hashed: a usual processor's own cache. With less there
/// are more chunks that lie in two pieces, and are copied from one to the other.
pub(super) const READ_BYTES: usize = 1 << 20;
/// Bytes of a computed disk that a thread reads at once: whole clusters or grains of usual formats.
const COMPUTED_BYTES: usize = 512 << 10;
/// Holes shorter than this are read as data: a seek costs more.
const HOLE_BLOCKS_MIN: u64 = 16;
/// Zero blocks that may wait to be content or a zero run: one less than a run has.
const ZERO_BLOCKS_PENDING_MAX: usize = 3;
const _: () = assert!(ZERO_BLOCKS_PENDING_MAX as u64 + 1 == ZERO_RUN_BLOCKS_MIN);

/// Part of a disk, front to back.
#[derive(Clone, Copy)]
pub(super) enum Part {
    /// Blocks whose bytes follow in the buffer.
    Data(u64),
    /// Blocks that are known to be zero; more than a zero run's least.
    Zeros(u64),
}

/// A part of a disk whose data fits one buffer.
struct Plan {
    start_block: u64,
    data_blocks: u64,
    parts: Vec<Part>,
}

/// A buffer as it was read: headroom, then the bytes of all data parts. It is aligned because the system copies a third
/// faster to where a page begins.
pub(super) struct Piece {
    pub(super) buffer: AlignedBuffer,
    pub(super) headroom: usize,
    pub(super) parts: Vec<Part>,
    /// Of each block in the buffer.
    pub(super) facts: Vec<BlockFacts>,
}

/// What one thread does with one piece.
struct Task {
    /// Empty in the last task, which only ends what is open.
    plan: Plan,
    /// Gives the cutter as the piece before leaves it. Given up, like the others, it says that nothing comes.
    cutting: Receiver<Cutting>,
    /// Takes it to the next piece; none in the last task.
    next: Option<Sender<Cutting>>,
    /// To whoever waits for it.
    batch: Sender<Batch>,
}

/// Divides a disk among threads that ask for one piece after the other.
pub(super) struct Planner<'a> {
    disk: &'a dyn DiskRead,
    params: ChunkerParams,
    context: &'a Context<'a>,
    total_blocks: u64,
    /// Who waits for the batches, in the order of the disk. Never full if it has room for one of each buffer.
    order: Sender<Receiver<Batch>>,
    next: Mutex<Next>,
}

/// The piece that is asked for next.
struct Next {
    block: u64,
    cutting: Receiver<Cutting>,
    is_over: bool,
}

/// Room before a buffer's data for the bytes of a chunk that began in the buffer before.
fn headroom(params: ChunkerParams) -> usize {
    (usize::from(params.max_blocks) + ZERO_BLOCKS_PENDING_MAX) * BLOCK_BYTES
}

impl<'a> Planner<'a> {
    pub(super) fn new(
        disk: &'a dyn DiskRead,
        params: ChunkerParams,
        context: &'a Context<'a>,
        order: Sender<Receiver<Batch>>,
    ) -> Self {
        let (first, cutting) = bounded(1);
        let _ = first.send(Cutting::new(Cutter::new(params)));
        let total_blocks = blocks_for_bytes(disk.len_bytes());
        Self {
            disk,
            params,
            context,
            total_blocks,
            order,
            next: Mutex::new(Next { block: 0, cutting, is_over: false }),
        }
    }

    /// On several threads, each with one piece from the disk to ids: what was read is still in the processor's
    /// cache when it is hashed. Only cutting waits for the piece before, and takes no time. Ends when there are no more
    /// pieces, or when nobody takes them.
    pub(super) fn read(&self, buffers: &Take<AlignedBuffer>) -> Result<(), OpsError> {
        // First the buffer: the piece that is wanted next must not be what waits for one.
        while let Some(buffer) = buffers.take() {
            let Some(Task { plan, cutting, next, batch }) = self.next_task()? else { return Ok(()) };
            let piece =
                read_piece(self.disk, plan, buffer, headroom(self.params), self.params, self.context)?;
            // Whoever gave it up has the reason.
            let Ok(mut cutting) = cutting.recv() else { return Ok(()) };
            let unhashed = match next {
                Some(next) => {
                    let unhashed = cutting.take(piece);
                    // Nobody may want it any more; who went has the reason.
                    let _ = next.send(cutting);
                    unhashed
                }
                None => cutting.finish(),
            };
            if batch.send(unhashed.hashed()).is_err() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn next_task(&self) -> Result<Option<Task>, OpsError> {
        self.context.check_cancelled()?;
        // Whoever panicked with it has the reason.
        let Ok(mut next) = self.next.lock() else { return Ok(None) };
        if std::mem::replace(&mut next.is_over, true) {
            return Ok(None);
        }
        let is_last = next.block == self.total_blocks;
        let room = if self.disk.is_computed() { self.context.piece_bytes() } else { READ_BYTES };
        let (plan, reached) = plan_piece(self.disk, next.block..self.total_blocks, room, self.context)?;
        let (cutting_in, cutting_out) = bounded(1);
        let (batch, batch_out) = bounded(1);
        let cutting = std::mem::replace(&mut next.cutting, cutting_out);
        if self.order.send(batch_out).is_err() {
            return Ok(None);
        }
        (next.block, next.is_over) = (reached, is_last);
        Ok(Some(Task { plan, cutting, next: (!is_last).then_some(cutting_in), batch }))
    }
}

/// Fills a buffer with what lies in a range of blocks, behind some headroom, as far as there is room. Gives the block
/// that it came to.
pub(super) fn fill(
    disk: &dyn DiskRead,
    range: Range<u64>,
    buffer: AlignedBuffer,
    headroom: usize,
    params: ChunkerParams,
    context: &Context<'_>,
) -> Result<(Piece, u64), OpsError> {
    let (plan, reached) = plan_piece(disk, range, context.piece_bytes(), context)?;
    Ok((read_piece(disk, plan, buffer, headroom, params, context)?, reached))
}

/// What fits one buffer from a range of blocks, and the block behind it.
fn plan_piece(
    disk: &dyn DiskRead,
    range: Range<u64>,
    room_bytes: usize,
    context: &Context<'_>,
) -> Result<(Plan, u64), OpsError> {
    let len = disk.len_bytes();
    let room_blocks = (room_bytes / BLOCK_BYTES) as u64;
    let mut plan = Plan { start_block: range.start, data_blocks: 0, parts: Vec::new() };
    let mut position = range.start;
    while position < range.end && plan.data_blocks < room_blocks {
        context.check_cancelled()?;
        let extent = disk.extent_at(block_offset(position))?;
        let end = if extent.end >= len { range.end } else { range.end.min(extent.end / BLOCK_BYTES as u64) };
        if extent.is_zero && end.saturating_sub(position) >= HOLE_BLOCKS_MIN {
            match plan.parts.last_mut() {
                Some(Part::Zeros(before)) => *before += end - position,
                _ => plan.parts.push(Part::Zeros(end - position)),
            }
            position = end;
            continue;
        }
        let data_end = blocks_for_bytes(extent.end).min(range.end).max(position + 1);
        let blocks = (data_end - position).min(room_blocks - plan.data_blocks);
        plan.parts.push(Part::Data(blocks));
        plan.data_blocks += blocks;
        position += blocks;
    }
    Ok((plan, position))
}

/// Reads what was planned.
fn read_piece(
    disk: &dyn DiskRead,
    plan: Plan,
    mut buffer: AlignedBuffer,
    headroom: usize,
    params: ChunkerParams,
    context: &Context<'_>,
) -> Result<Piece, OpsError> {
    let data_bytes = usize::try_from(block_offset(plan.data_blocks)).unwrap_or(usize::MAX);
    buffer.resize(headroom + data_bytes);
    let mut facts = Vec::with_capacity(data_bytes / BLOCK_BYTES);
    let at_once = if disk.is_computed() { context.piece_bytes() } else { READ_BYTES };
    let (mut position, mut rest) = (plan.start_block, &mut buffer.bytes_mut()[headroom..]);
    for part in &plan.parts {
        let blocks = match *part {
            Part::Data(blocks) => {
                let (data, after) = rest.split_at_mut(usize::try_from(block_offset(blocks)).unwrap_or(0));
                for (step, bytes) in (0..).step_by(at_once / BLOCK_BYTES).zip(data.chunks_mut(at_once)) {
                    read_blocks(disk, position + step, bytes, context)?;
                    let blocks = bytes.chunks_exact(BLOCK_BYTES);
                    facts.extend(blocks.map(|block| block_facts(block, params.zero_tail_bytes)));
                }
                rest = after;
                blocks
            }
            Part::Zeros(blocks) => blocks,
        };
        position += blocks;
    }
    Ok(Piece { buffer, headroom, parts: plan.parts, facts })
}

/// Reads whole blocks; what is behind the disk's last byte is zero. Several threads read what is computed, each
/// pieces that no other needs a part of.
pub(super) fn read_blocks(
    disk: &dyn DiskRead,
    block: u64,
    buffer: &mut [u8],
    context: &Context<'_>,
) -> Result<(), OpsError> {
    let offset = block_offset(block);
    let there = usize::try_from(disk.len_bytes() - offset).unwrap_or(usize::MAX).min(buffer.len());
    let (there, behind) = buffer.split_at_mut(there);
    behind.fill(0);
    if !disk.is_computed() {
        return Ok(disk.read_at(offset, there)?);
    }
    let to_piece = COMPUTED_BYTES - usize::try_from(offset % COMPUTED_BYTES as u64).unwrap_or(0);
    let (first, rest) = there.split_at_mut(to_piece.min(there.len()));
    let rest_offset = offset + first.len() as u64;
    let mut pieces = vec![(offset, first)];
    pieces.extend(rest.chunks_mut(COMPUTED_BYTES).zip(0_u64..).map(|(piece, number)| {
        let at = rest_offset + number * COMPUTED_BYTES as u64;
        (at, piece)
    }));
    let read = |(at, piece): (u64, &mut [u8])| disk.read_at(at, piece);
    Ok(context.pool.install(|| pieces.into_par_iter().try_for_each(read))?)
}
