//! What a repair takes from a disk: the chunks that are missing, and the block map if it is one that is. Whatever else is on
//! the disk is not stored: it may be any disk.
//!
//! The disk may be what is left of a failing one: places that cannot be read are stepped over.

use super::context::Context;
use super::cutting::{Batch, Cutting};
use super::error::OpsError;
use super::pieces::fill;
use crate::chunk::cut::Cutter;
use crate::chunk::frame::Frame;
use crate::disk::{AlignedBuffer, DiskError, DiskRead};
use crate::model::blockmap::{BlockMap, BlockMapBuilder};
use crate::model::ids::ChunkId;
use crate::model::units::{block_offset, blocks_for_bytes};
use crate::region::session::Session;
use std::collections::BTreeSet;

/// Blocks that are read at once, and left out, at a place that cannot be read: 64 KiB, a usual cluster.
const STEP_BLOCKS: u64 = 16;
/// Blocks that are left out at once at most, where more and more of them could not be read: 16 MiB. A disk that fails everywhere
/// comes to its end.
const STEP_BLOCKS_MAX: u64 = 4096;

/// What a disk gave.
pub(super) struct Reread {
    /// Chunks of it that were stored.
    pub(super) stored: u64,
    /// Its block map, or the first error of those places that could not be read.
    pub(super) map: Result<BlockMap, OpsError>,
}

/// Reads a disk as far as it can be read and stores what is `wanted` of it, each chunk plain and proved. What was stored is
/// not wanted any more.
pub(super) fn reread(
    session: &mut Session,
    disk: &dyn DiskRead,
    wanted: &mut BTreeSet<ChunkId>,
    context: &Context<'_>,
) -> Result<Reread, OpsError> {
    let params = session.region().header().chunker;
    let total = blocks_for_bytes(disk.len_bytes());
    let mut map = Ok(BlockMapBuilder::new(disk.len_bytes()).map_err(OpsError::Volume)?);
    let mut cutting = Cutting::new(Cutter::new(params));
    let (mut position, mut buffer, mut stored) = (0, AlignedBuffer::default(), 0);
    let mut take = |batch: Batch, map: &mut Result<BlockMapBuilder, OpsError>| {
        stored += store(session, &batch, wanted, context)?;
        if let Ok(map) = map {
            batch.refs().try_for_each(|chunk| map.push(chunk)).map_err(OpsError::Volume)?;
        }
        context.progress.advance(batch.passed_bytes);
        Ok::<_, OpsError>(batch.buffer.unwrap_or_default())
    };
    let (mut ahead, mut step) = (total, STEP_BLOCKS);
    while position < total {
        context.check_cancelled()?;
        let range = position..total.min(position.saturating_add(ahead));
        match fill(disk, range, buffer, cutting.tail_bytes(), params, context) {
            Ok((piece, reached)) => {
                position = reached;
                buffer = take(cutting.take(piece).hashed(), &mut map)?;
                (ahead, step) = (ahead.saturating_mul(2), STEP_BLOCKS);
            }
            Err(error) if is_of_disk(&error) => {
                buffer = AlignedBuffer::default();
                map = map.and(Err(error));
                if ahead > STEP_BLOCKS {
                    // The place is somewhere in what was asked for.
                    ahead = STEP_BLOCKS;
                    continue;
                }
                // What is open ends here, and nobody knows how what follows was cut: that is known again after a few chunks.
                let open = std::mem::replace(&mut cutting, Cutting::new(Cutter::new(params)));
                take(open.finish().hashed(), &mut map)?;
                let left_out = step.min(total - position);
                context.progress.advance(block_offset(left_out));
                position += left_out;
                step = STEP_BLOCKS_MAX.min(step * 2);
            }
            Err(error) => return Err(error),
        }
    }
    take(cutting.finish().hashed(), &mut map)?;
    Ok(Reread { stored, map: map.map(BlockMapBuilder::finish) })
}

/// Whether a place of a disk cannot be read.
const fn is_of_disk(error: &OpsError) -> bool {
    matches!(error, OpsError::Disk(error) if !matches!(error, DiskError::Interrupted))
}

/// Not against anything, so that what damages one frame reaches no further.
fn store(
    session: &mut Session,
    batch: &Batch,
    wanted: &mut BTreeSet<ChunkId>,
    context: &Context<'_>,
) -> Result<u64, OpsError> {
    let new: Vec<(ChunkId, &[u8])> = batch.chunks().filter(|(id, _)| wanted.remove(id)).collect();
    let region = session.region();
    let level = i32::from(region.header().zstd_level);
    let encode = |at: usize| {
        let (chunk, raw) = new[at];
        region.encode(raw, chunk, level).map_err(|source| OpsError::Proof { chunk, source })
    };
    let frames: Vec<Frame> = context.for_each_chunk(new.len(), encode)?;
    for ((id, _), frame) in new.iter().zip(&frames) {
        session.put(*id, frame)?;
    }
    Ok(frames.len() as u64)
}
