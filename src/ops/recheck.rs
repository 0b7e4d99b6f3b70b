//! Whether a disk holds what a block map says: it is read again, whole, also where it says that it has holes.

use super::context::Context;
use super::error::OpsError;
use super::gaps::join_ranges;
use crate::chunk::frame::chunk_id;
use crate::disk::DiskRead;
use crate::model::blockmap::{BlockMap, Run};
use crate::model::units::{BLOCK_BYTES, block_offset};
use rayon::prelude::*;
use std::ops::Range;

/// The bytes at which a disk is other than a block map of it says: ascending, whole chunks or pieces of zero runs.
///
/// A disk that was written to since is other; and one whose file system tells of holes that are none, which is what this is for.
pub fn differences(
    disk: &dyn DiskRead,
    map: &BlockMap,
    context: &Context<'_>,
) -> Result<Vec<Range<u64>>, OpsError> {
    let len = map.volume_bytes();
    if disk.len_bytes() != len {
        let (first, last) = (len.min(disk.len_bytes()), len.max(disk.len_bytes()));
        return Ok(std::iter::once(first..last).collect());
    }
    context.progress.begin("verify", len);
    let mut found = Vec::new();
    let mut buffer = vec![0; context.buffer_bytes()];
    let mut batch: Vec<Piece> = Vec::new();
    for piece in map.runs().flat_map(|run| pieces(run, context.buffer_bytes())) {
        let held: usize = batch.iter().map(Piece::padded_bytes).sum();
        if held + piece.padded_bytes() > buffer.len() {
            found.extend(check(disk, len, &batch, &mut buffer, context)?);
            batch.clear();
        }
        batch.push(piece);
    }
    found.extend(check(disk, len, &batch, &mut buffer, context)?);
    Ok(join_ranges(found))
}

/// A chunk, or some blocks of zeros, at a place.
struct Piece {
    start_block: u64,
    blocks: u64,
    expected: Option<crate::model::ids::ChunkId>,
}

impl Piece {
    fn padded_bytes(&self) -> usize {
        usize::try_from(block_offset(self.blocks)).unwrap_or(usize::MAX)
    }

    fn is_as_expected(&self, padded: &[u8]) -> bool {
        match self.expected {
            Some(id) => chunk_id(padded) == id,
            None => padded.iter().all(|byte| *byte == 0),
        }
    }
}

/// A chunk is one piece, a zero run as many as it takes.
fn pieces(run: Run, bytes_max: usize) -> impl Iterator<Item = Piece> {
    let (start, blocks, at_once, expected) = match run {
        Run::Chunk(chunk) => {
            let blocks = u64::from(chunk.blocks);
            (chunk.start_block, blocks, blocks, Some(chunk.id))
        }
        Run::Zero { start_block, blocks } => {
            (start_block, blocks, (bytes_max / BLOCK_BYTES).max(1) as u64, None)
        }
    };
    let end = start + blocks;
    let starts = (start..end).step_by(usize::try_from(at_once).unwrap_or(1));
    starts.map(move |start_block| Piece { start_block, blocks: at_once.min(end - start_block), expected })
}

/// Reads pieces that follow each other, and gives those that are other than expected.
fn check(
    disk: &dyn DiskRead,
    len: u64,
    batch: &[Piece],
    buffer: &mut [u8],
    context: &Context<'_>,
) -> Result<Vec<Range<u64>>, OpsError> {
    context.check_cancelled()?;
    let Some(first) = batch.first() else { return Ok(Vec::new()) };
    let padded: usize = batch.iter().map(Piece::padded_bytes).sum();
    let start = block_offset(first.start_block);
    let there = usize::try_from(len - start).unwrap_or(usize::MAX).min(padded);
    disk.read_at(start, &mut buffer[..there])?;
    // The last block may be partly filled.
    buffer[there..padded].fill(0);
    let mut rest = &buffer[..padded];
    let parts: Vec<(&Piece, &[u8])> = batch
        .iter()
        .map(|piece| {
            let (part, after) = rest.split_at(piece.padded_bytes());
            rest = after;
            (piece, part)
        })
        .collect();
    let differs = |(piece, part): &(&Piece, &[u8])| {
        let range = block_offset(piece.start_block)..block_offset(piece.start_block + piece.blocks).min(len);
        (!piece.is_as_expected(part)).then_some(range)
    };
    let found = context.pool.install(|| parts.par_iter().filter_map(differs).collect());
    context.progress.advance(there as u64);
    Ok(found)
}
