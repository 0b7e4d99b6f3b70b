//! What a repair takes from a disk: the chunks that are missing, and the block map if it is one that is. Whatever else is on
//! the disk is not stored: it may be any disk.

use super::context::Context;
use super::cutting::{Batch, Cutting};
use super::error::OpsError;
use super::pieces::fill;
use crate::chunk::cut::Cutter;
use crate::chunk::frame::Frame;
use crate::disk::{AlignedBuffer, DiskRead};
use crate::model::blockmap::{BlockMap, BlockMapBuilder};
use crate::model::ids::ChunkId;
use crate::model::units::blocks_for_bytes;
use crate::region::session::Session;
use std::collections::BTreeSet;

/// Reads a disk whole and stores what is `wanted` of it, each chunk plain and proved. Gives how many those were, and the
/// disk's block map. What was stored is not wanted any more.
pub(super) fn reread(
    session: &mut Session,
    disk: &dyn DiskRead,
    wanted: &mut BTreeSet<ChunkId>,
    context: &Context<'_>,
) -> Result<(u64, BlockMap), OpsError> {
    let params = session.region().header().chunker;
    let total = blocks_for_bytes(disk.len_bytes());
    let mut map = BlockMapBuilder::new(disk.len_bytes()).map_err(OpsError::Volume)?;
    let mut cutting = Cutting::new(Cutter::new(params));
    let (mut position, mut buffer, mut stored) = (0, AlignedBuffer::default(), 0);
    let mut take = |batch: Batch| {
        stored += store(session, &batch, wanted, context)?;
        batch.refs().try_for_each(|chunk| map.push(chunk)).map_err(OpsError::Volume)?;
        context.progress.advance(batch.passed_bytes);
        Ok::<_, OpsError>(batch.buffer.unwrap_or_default())
    };
    while position < total {
        context.check_cancelled()?;
        let headroom = cutting.tail_bytes();
        let (piece, reached) = fill(disk, position..total, buffer, headroom, params, context)?;
        position = reached;
        buffer = take(cutting.take(piece).hashed())?;
    }
    take(cutting.finish().hashed())?;
    Ok((stored, map.finish()))
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
