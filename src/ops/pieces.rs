//! The first stages of a snapshot's pipeline: a disk is read in pieces, and its blocks are looked at while they are in the
//! processor's own cache.

use super::context::Context;
use super::error::OpsError;
use crate::chunk::fingerprint::{BlockFacts, block_facts};
use crate::disk::DiskRead;
use crate::model::region::ChunkerParams;
use crate::model::units::{BLOCK_BYTES, ZERO_RUN_BLOCKS_MIN, block_offset, blocks_for_bytes};
use crossbeam_channel::{Receiver, Sender, bounded};
use rayon::prelude::*;
use std::ops::Range;

/// Bytes that are read at once and then looked at.
const READ_BYTES: usize = 256 << 10;
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
pub(super) struct Plan {
    start_block: u64,
    data_blocks: u64,
    parts: Vec<Part>,
}

/// A buffer as it was read: headroom, then the bytes of all data parts.
pub(super) struct Piece {
    pub(super) buffer: Vec<u8>,
    pub(super) headroom: usize,
    pub(super) parts: Vec<Part>,
    /// Of each block in the buffer.
    pub(super) facts: Vec<BlockFacts>,
}

/// A plan on its way to whoever carries it out, and on to whoever waits for the piece. Given up, it says that nothing comes.
pub(super) type Planned = (Plan, Sender<Piece>);

/// Room before a buffer's data for the bytes of a chunk that began in the buffer before.
pub(super) fn headroom(params: ChunkerParams) -> usize {
    (usize::from(params.max_blocks) + ZERO_BLOCKS_PENDING_MAX) * BLOCK_BYTES
}

/// First stage: divides the disk, and says in which order the pieces belong.
pub(super) fn plan(
    disk: &dyn DiskRead,
    context: &Context<'_>,
    plans: &Sender<Planned>,
    order: &Sender<Receiver<Piece>>,
) -> Result<(), OpsError> {
    let total_blocks = blocks_for_bytes(disk.len_bytes());
    let mut position = 0;
    while position < total_blocks {
        context.check_cancelled()?;
        let (plan, reached) = plan_piece(disk, position..total_blocks, context)?;
        position = reached;
        let (piece_in, piece_out) = bounded(1);
        if order.send(piece_out).is_err() || plans.send((plan, piece_in)).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// Second stage, on several threads: reads pieces. Ends when there are no more, or when nobody takes them.
pub(super) fn read(
    disk: &dyn DiskRead,
    params: ChunkerParams,
    context: &Context<'_>,
    plans: &Receiver<Planned>,
    free: &Receiver<Vec<u8>>,
) -> Result<(), OpsError> {
    // First the buffer: the piece that is wanted next must not be what waits for one.
    for buffer in free {
        let Ok((plan, piece)) = plans.recv() else { return Ok(()) };
        context.check_cancelled()?;
        if piece.send(read_piece(disk, plan, buffer, headroom(params), params, context)?).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// Fills a buffer with what lies in a range of blocks, behind some headroom, as far as there is room. Gives the block
/// that it came to.
pub(super) fn fill(
    disk: &dyn DiskRead,
    range: Range<u64>,
    buffer: Vec<u8>,
    headroom: usize,
    params: ChunkerParams,
    context: &Context<'_>,
) -> Result<(Piece, u64), OpsError> {
    let (plan, reached) = plan_piece(disk, range, context)?;
    Ok((read_piece(disk, plan, buffer, headroom, params, context)?, reached))
}

/// What fits one buffer from a range of blocks, and the block behind it.
fn plan_piece(
    disk: &dyn DiskRead,
    range: Range<u64>,
    context: &Context<'_>,
) -> Result<(Plan, u64), OpsError> {
    let len = disk.len_bytes();
    let room_blocks = (context.piece_bytes() / BLOCK_BYTES) as u64;
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
    mut buffer: Vec<u8>,
    headroom: usize,
    params: ChunkerParams,
    context: &Context<'_>,
) -> Result<Piece, OpsError> {
    let data_bytes = usize::try_from(block_offset(plan.data_blocks)).unwrap_or(usize::MAX);
    buffer.resize(headroom + data_bytes, 0);
    let mut facts = Vec::with_capacity(data_bytes / BLOCK_BYTES);
    let at_once = if disk.is_computed() { context.piece_bytes() } else { READ_BYTES };
    let (mut position, mut rest) = (plan.start_block, &mut buffer[headroom..]);
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
