//! The pipeline of launch and export: chunks of a region become a disk's bytes.
//!
//! ```text
//! fetch     stored frames, near ones together
//! decode    decompress, and BLAKE3 equals the id
//! write     zero runs are left out or zeroed, as the target needs
//! ```
//!
//! Several threads write, if the target lets them; else one, front to back.

use super::buffers::{GiveBack, Take, buffers};
use super::context::Context;
use super::error::OpsError;
use super::stage::{join_all, spawn};
use crate::chunk::CHUNKS_AT_ONCE;
use crate::disk::{AlignedBuffer, DiskError, DiskWrite, SharedWrite};
use crate::model::blockmap::{BlockMap, ChunkRef, Run};
use crate::model::catalog::RootId;
use crate::model::ids::ChunkId;
use crate::model::units::{BLOCK_BYTES, block_offset};
use crate::region::Region;
use crate::region::fetch::{Fetched, FetchedFrame};
use crossbeam_channel::{Receiver, Sender, bounded};
use rayon::prelude::*;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::thread;

/// Batches that are decoded at a time: when one has only a few chunks left, the other has work for all threads.
const DECODERS: usize = 2;
/// Buffers of decoded bytes that go round: for them, for the one that is written, and as many that wait, since now the
/// disk is slower and now the decoders.
const BUFFERS: usize = 2 * (DECODERS + 1);
/// Threads that decode and write where several may write: while some wait for the disk, others decode.
const WRITERS: usize = 6;
/// Batches that are fetched ahead of decoding.
const FETCHED_AHEAD: usize = 4;

/// Most zeros that a target is asked for at once.
const ZERO_BYTES_MAX: u64 = 256 << 20;

/// Consecutive runs whose chunks fit one buffer.
struct Plan {
    runs: Vec<Run>,
}

struct Loaded {
    plan: Plan,
    fetched: Fetched,
    /// To whoever writes it. Given up, it says that nothing comes.
    decoded: Sender<Decoded>,
}

struct Decoded {
    plan: Plan,
    buffer: AlignedBuffer,
}

/// Writes a volume to a target, which may be longer. The caller finishes the target.
pub fn restore(
    region: &Region,
    root: RootId,
    map: &BlockMap,
    target: &mut dyn DiskWrite,
    context: &Context<'_>,
) -> Result<(), OpsError> {
    match target.shared() {
        Some(shared) => restore_shared(region, root, map, shared, context),
        None => restore_in_order(region, root, map, target, context),
    }
}

/// Into what several threads write at once: each with a batch from decoding to the disk, whichever is done first.
fn restore_shared(
    region: &Region,
    root: RootId,
    map: &BlockMap,
    target: &dyn SharedWrite,
    context: &Context<'_>,
) -> Result<(), OpsError> {
    // One that has failed stops the others.
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let (loaded_in, loaded_out) = bounded::<(Plan, Fetched)>(FETCHED_AHEAD);
        let mut send = move |plan, fetched| loaded_in.send((plan, fetched)).is_ok();
        let mut stages = vec![spawn(scope, "fetch", move || fetch(region, map, context, &mut send))?];
        for _ in 0..WRITERS {
            let (loaded, is_over) = (loaded_out.clone(), &is_over);
            let write = move || {
                let mut buffer = AlignedBuffer::default();
                let written =
                    loaded.iter().take_while(|_| !is_over.load(Relaxed)).try_for_each(|(plan, fetched)| {
                        context.check_cancelled()?;
                        decode_batch(region, root, &plan, &fetched, &mut buffer, context)?;
                        write_batch(map, &plan.runs, buffer.bytes(), target, context)
                    });
                is_over.fetch_or(written.is_err(), Relaxed);
                written
            };
            stages.push(spawn(scope, "write", write)?);
        }
        drop(loaded_out);
        join_all(stages, Ok(()))
    })
}

/// Into what takes its pieces one after the other.
fn restore_in_order(
    region: &Region,
    root: RootId,
    map: &BlockMap,
    target: &mut dyn DiskWrite,
    context: &Context<'_>,
) -> Result<(), OpsError> {
    thread::scope(|scope| {
        let (back, buffers) = buffers(BUFFERS);
        let (loaded_in, loaded_out) = bounded(FETCHED_AHEAD);
        let (order_in, order_out) = bounded(FETCHED_AHEAD + BUFFERS);
        let mut send = move |plan, fetched| {
            let (decoded, to_write) = bounded(1);
            order_in.send(to_write).is_ok() && loaded_in.send(Loaded { plan, fetched, decoded }).is_ok()
        };
        let mut stages = vec![spawn(scope, "fetch", move || fetch(region, map, context, &mut send))?];
        for _ in 0..DECODERS {
            let (loaded, buffers) = (loaded_out.clone(), buffers.clone());
            stages.push(spawn(scope, "decode", move || decode(region, root, context, &loaded, &buffers))?);
        }
        drop((loaded_out, buffers));
        let written = write(map, target, context, &order_out, &back);
        // Who waits for a buffer, or to hand something on, sees that nobody is there any more.
        drop((order_out, back));
        join_all(stages, written)
    })
}

/// First stage: reads the stored frames of one batch after the other, until nobody takes them.
fn fetch(
    region: &Region,
    map: &BlockMap,
    context: &Context<'_>,
    send: &mut dyn FnMut(Plan, Fetched) -> bool,
) -> Result<(), OpsError> {
    let limit = context.piece_bytes() / BLOCK_BYTES;
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
        if !send(plan, fetched) {
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

/// Second stage, on several threads: decodes batches into buffers.
fn decode(
    region: &Region,
    root: RootId,
    context: &Context<'_>,
    loaded: &Receiver<Loaded>,
    buffers: &Take<AlignedBuffer>,
) -> Result<(), OpsError> {
    // First the buffer: the batch that is to be written next must not be what waits for one.
    while let Some(mut buffer) = buffers.take() {
        let Ok(Loaded { plan, fetched, decoded }) = loaded.recv() else { return Ok(()) };
        decode_batch(region, root, &plan, &fetched, &mut buffer, context)?;
        if decoded.send(Decoded { plan, buffer }).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// Decodes a batch into a buffer, which is made as long as its chunks.
fn decode_batch(
    region: &Region,
    root: RootId,
    plan: &Plan,
    fetched: &Fetched,
    buffer: &mut AlignedBuffer,
    context: &Context<'_>,
) -> Result<(), OpsError> {
    let chunks: Vec<ChunkRef> = plan.chunks().collect();
    let blocks: usize = chunks.iter().map(|chunk| usize::from(chunk.blocks)).sum();
    buffer.resize(blocks * BLOCK_BYTES);
    let mut rest = buffer.bytes_mut();
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
        work.into_par_iter().with_max_len(CHUNKS_AT_ONCE).try_for_each(|(frame, place)| {
            let found = fetched.raw_bytes(frame);
            if found != place.len() {
                let (expected, found) = (place.len() as u64, found as u64);
                return Err(OpsError::ChunkLength { root, expected, found });
            }
            Ok(fetched.decode(region, frame, place)?)
        })
    })
}

/// Last stage: writes the batches, front to back.
fn write(
    map: &BlockMap,
    target: &mut dyn DiskWrite,
    context: &Context<'_>,
    order: &Receiver<Receiver<Decoded>>,
    back: &GiveBack<AlignedBuffer>,
) -> Result<(), OpsError> {
    let target = InTurn(Mutex::new(target));
    for decoded in order {
        // Whoever gave it up has the reason.
        let Ok(Decoded { plan, buffer }) = decoded.recv() else { return Ok(()) };
        context.check_cancelled()?;
        write_batch(map, &plan.runs, buffer.bytes(), &target, context)?;
        back.give_back(buffer);
    }
    Ok(())
}

/// A target that one thread writes, front to back.
struct InTurn<'a>(Mutex<&'a mut dyn DiskWrite>);

impl SharedWrite for InTurn<'_> {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write_at(offset, bytes)
    }

    fn zero_at(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).zero_at(offset, len)
    }
}

fn write_batch(
    map: &BlockMap,
    runs: &[Run],
    bytes: &[u8],
    target: &dyn SharedWrite,
    context: &Context<'_>,
) -> Result<(), OpsError> {
    let mut offset = 0;
    for group in runs.chunk_by(|a, b| matches!((a, b), (Run::Chunk(_), Run::Chunk(_)))) {
        let (start, blocks) = extent_of(group);
        // The last block of the volume may be partly filled.
        let end = block_offset(start + blocks).min(map.volume_bytes());
        let len = end - block_offset(start);
        if let Run::Chunk(_) = group[0] {
            let len = usize::try_from(len).unwrap_or(usize::MAX);
            target.write_at(block_offset(start), &bytes[offset..offset + len])?;
            offset += usize::try_from(block_offset(blocks)).unwrap_or(usize::MAX);
            context.progress.advance(len as u64);
        } else {
            zero(target, block_offset(start), len, context)?;
        }
    }
    Ok(())
}

/// Zeros a range in pieces, so that even a very long one can be watched and stopped.
fn zero(target: &dyn SharedWrite, offset: u64, len: u64, context: &Context<'_>) -> Result<(), OpsError> {
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
