//! The pipeline of launch and export: chunks of a region become a disk's bytes.
//!
//! ```text
//! fetch     stored frames, near ones together
//! decode    decompress, and BLAKE3 equals the id
//! write     ascending positions; zero runs are left out or zeroed, as the target needs
//! ```

use super::context::Context;
use super::error::OpsError;
use crate::disk::DiskWrite;
use crate::model::blockmap::{BlockMap, ChunkRef, Run};
use crate::model::catalog::RootId;
use crate::model::ids::ChunkId;
use crate::model::units::{BLOCK_BYTES, block_offset};
use crate::region::Region;
use crate::region::fetch::{Fetched, FetchedFrame};
use crossbeam_channel::{Receiver, Sender, bounded};
use rayon::prelude::*;
use std::thread;

/// Buffers of decoded bytes that go round.
const BUFFERS: usize = 3;
/// Batches that are fetched ahead of decoding.
const FETCHED_AHEAD: usize = 2;

/// Most zeros that a target is asked for at once.
const ZERO_BYTES_MAX: u64 = 256 << 20;

/// Consecutive runs whose chunks fit one buffer.
struct Plan {
    runs: Vec<Run>,
}

struct Loaded {
    plan: Plan,
    fetched: Fetched,
}

struct Decoded {
    plan: Plan,
    buffer: Vec<u8>,
}

/// Writes a volume to a target, which may be longer. The caller finishes the target.
pub fn restore(
    region: &Region,
    root: RootId,
    map: &BlockMap,
    target: &mut dyn DiskWrite,
    context: &Context<'_>,
) -> Result<(), OpsError> {
    thread::scope(|scope| {
        let (free_in, free_out) = bounded(BUFFERS);
        for _ in 0..BUFFERS {
            let _ = free_in.send(Vec::new());
        }
        let (loaded_in, loaded_out) = bounded(FETCHED_AHEAD);
        let (decoded_in, decoded_out) = bounded(BUFFERS);
        let fetcher = scope.spawn(move || fetch(region, map, context, &loaded_in));
        let decoder = scope.spawn(move || decode(region, root, context, &loaded_out, &free_out, &decoded_in));
        let written = write(map, target, context, &decoded_out, &free_in);
        drop((decoded_out, free_in));
        let decoded = decoder.join().unwrap_or(Err(OpsError::WorkerGone));
        let fetched = fetcher.join().unwrap_or(Err(OpsError::WorkerGone));
        fetched.and(decoded).and(written)
    })
}

fn fetch(
    region: &Region,
    map: &BlockMap,
    context: &Context<'_>,
    loaded: &Sender<Loaded>,
) -> Result<(), OpsError> {
    let limit = context.buffer_bytes() / BLOCK_BYTES;
    let mut runs = map.runs().peekable();
    while runs.peek().is_some() {
        context.check_cancelled()?;
        let (mut plan, mut blocks) = (Plan { runs: Vec::new() }, 0);
        while let Some(run) = runs.next_if(|run| blocks + chunk_blocks(run) <= limit) {
            blocks += chunk_blocks(&run);
            plan.runs.push(run);
        }
        let ids: Vec<ChunkId> = plan.chunks().map(|chunk| chunk.id).collect();
        let fetched = region.fetch(&ids)?;
        if loaded.send(Loaded { plan, fetched }).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

const fn chunk_blocks(run: &Run) -> usize {
    match run {
        Run::Chunk(chunk) => chunk.blocks as usize,
        Run::Zero { .. } => 0,
    }
}

impl Plan {
    fn chunks(&self) -> impl Iterator<Item = ChunkRef> + '_ {
        self.runs.iter().filter_map(|run| match run {
            Run::Chunk(chunk) => Some(*chunk),
            Run::Zero { .. } => None,
        })
    }
}

fn decode(
    region: &Region,
    root: RootId,
    context: &Context<'_>,
    loaded: &Receiver<Loaded>,
    free: &Receiver<Vec<u8>>,
    decoded: &Sender<Decoded>,
) -> Result<(), OpsError> {
    for Loaded { plan, fetched } in loaded {
        let Ok(mut buffer) = free.recv() else { return Ok(()) };
        let chunks: Vec<ChunkRef> = plan.chunks().collect();
        let blocks: usize = chunks.iter().map(|chunk| usize::from(chunk.blocks)).sum();
        buffer.resize(blocks * BLOCK_BYTES, 0);
        let mut rest = buffer.as_mut_slice();
        let mut places: Vec<Option<&mut [u8]>> = Vec::with_capacity(chunks.len());
        for chunk in &chunks {
            let (place, after) = rest.split_at_mut(usize::from(chunk.blocks) * BLOCK_BYTES);
            places.push(Some(place));
            rest = after;
        }
        let work: Vec<(FetchedFrame, &mut [u8])> = fetched
            .frames()
            .into_iter()
            .filter_map(|frame| places.get_mut(frame.wanted)?.take().map(|place| (frame, place)))
            .collect();
        context.pool.install(|| {
            work.into_par_iter().try_for_each(|(frame, place)| {
                let found = fetched.raw_bytes(frame);
                if found != place.len() {
                    let (expected, found) = (place.len() as u64, found as u64);
                    return Err(OpsError::ChunkLength { root, expected, found });
                }
                Ok(fetched.decode(region, frame, place)?)
            })
        })?;
        if decoded.send(Decoded { plan, buffer }).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

fn write(
    map: &BlockMap,
    target: &mut dyn DiskWrite,
    context: &Context<'_>,
    decoded: &Receiver<Decoded>,
    free: &Sender<Vec<u8>>,
) -> Result<(), OpsError> {
    for Decoded { plan, buffer } in decoded {
        context.check_cancelled()?;
        let mut offset = 0;
        for group in plan.runs.chunk_by(|a, b| matches!((a, b), (Run::Chunk(_), Run::Chunk(_)))) {
            let (start, blocks) = extent_of(group);
            // The last block of the volume may be partly filled.
            let end = block_offset(start + blocks).min(map.volume_bytes());
            let len = end - block_offset(start);
            if let Run::Chunk(_) = group[0] {
                let len = usize::try_from(len).unwrap_or(usize::MAX);
                target.write_at(block_offset(start), &buffer[offset..offset + len])?;
                offset += usize::try_from(block_offset(blocks)).unwrap_or(usize::MAX);
                context.progress.advance(len as u64);
            } else {
                zero(target, block_offset(start), len, context)?;
            }
        }
        let _ = free.send(buffer);
    }
    Ok(())
}

/// Zeros a range in pieces, so that even a very long one can be watched and stopped.
fn zero(target: &mut dyn DiskWrite, offset: u64, len: u64, context: &Context<'_>) -> Result<(), OpsError> {
    let mut done = 0;
    while done < len {
        context.check_cancelled()?;
        let piece = (len - done).min(ZERO_BYTES_MAX);
        target.zero_at(offset + done, piece)?;
        context.progress.advance(piece);
        done += piece;
    }
    Ok(())
}

/// First block and number of blocks of adjacent runs.
fn extent_of(group: &[Run]) -> (u64, u64) {
    let start = |run: &Run| match run {
        Run::Chunk(chunk) => chunk.start_block,
        Run::Zero { start_block, .. } => *start_block,
    };
    let end = |run: &Run| match run {
        Run::Chunk(chunk) => chunk.end_block(),
        Run::Zero { start_block, blocks } => start_block + blocks,
    };
    let first = group.first().map_or(0, start);
    (first, group.last().map_or(0, end) - first)
}
