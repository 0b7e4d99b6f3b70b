//! The pipeline of launch and export: chunks of a region become a disk's bytes.
//!
//! ```text
//! fetch     stored frames, near ones together
//! decode    decompress, and BLAKE3 equals the id: on several threads, each with its own piece of the disk at a time
//! write     ascending positions, as much at once as is ready; zero runs are left out or zeroed, as the target needs
//! ```

use super::buffers::{GiveBack, Take, buffers};
use super::context::Context;
use super::error::{Class, Code, OpsError};
use super::gaps::Gaps;
use super::stage::{check_whole, join_all, spawn};
use crate::disk::{AlignedBuffer, DiskWrite};
use crate::model::blockmap::{BlockMap, ChunkRef, Run};
use crate::model::catalog::RootId;
use crate::model::ids::ChunkId;
use crate::model::units::{BLOCK_BYTES, block_offset};
use crate::region::Region;
use crate::region::error::RegionError;
use crate::region::fetch::{Fetched, FetchedFrame};
use crossbeam_channel::{Receiver, Sender, bounded};
use std::iter::Peekable;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// Bytes of chunks that a thread decodes at a time at most: a huge page.
const PIECE_BYTES_MAX: usize = 2 << 20;
/// Pieces that are written at once at most: while all processors decode, who writes waits for one after each write, and the
/// disk with it.
const WRITTEN_AT_ONCE_MAX: usize = 8;
/// The same with little memory.
const WRITTEN_AT_ONCE_MIN: usize = 2;
/// Buffers for each that is written at once. Of some content decoding is the slower, of other the disk: where there are many,
/// each goes on while it waits for the other.
const BUFFERS_OF_WRITTEN: usize = 6;
/// Pieces that are fetched ahead of decoding, beside those of the batch that is fetched.
const FETCHED_AHEAD: usize = 2;
/// Threads that decode: more than one can write for. Each holds a batch of stored frames.
const DECODERS_MAX: usize = 16;
/// How often a batch is read that loses more each time, as from a disk that fails.
const ROUNDS: usize = 3;
/// Most zeros that a target is asked for at once.
const ZERO_BYTES_MAX: u64 = 256 << 20;

/// Consecutive runs whose chunks fit one buffer, and where their frames are.
struct Piece {
    runs: Vec<Run>,
    batch: Arc<Batch>,
    /// The first of its chunks in the batch.
    first: usize,
}

/// What was fetched at once.
struct Batch {
    fetched: Fetched,
    /// Of each chunk.
    frames: Vec<FetchedFrame>,
    /// Whether it was asked again for packs that a device did not give: on a bad sector that takes seconds.
    has_looked_again: AtomicBool,
}

/// A piece on its way to whoever writes it. Given up, it says that nothing comes: to who waits in the order in which it was
/// handed on. One that nobody took is only given up when the channel is, behind one that somebody did.
struct Task {
    piece: Piece,
    decoded: Sender<Decoded>,
}

struct Decoded {
    runs: Vec<Run>,
    buffer: AlignedBuffer,
}

/// What is read.
#[derive(Clone, Copy)]
struct Volume<'a> {
    region: &'a Region,
    root: RootId,
    map: &'a BlockMap,
    /// Where what is lost is noted, if it is no error.
    gaps: Option<&'a Gaps>,
}

/// Writes a volume to a target, which may be longer. The caller finishes the target. What is lost becomes zeros, and is
/// noted in `gaps`; without these it is an error.
pub fn restore(
    region: &Region,
    root: RootId,
    map: &BlockMap,
    gaps: Option<&Gaps>,
    target: &mut dyn DiskWrite,
    context: &Context<'_>,
) -> Result<(), OpsError> {
    let threads = context.pool.current_num_threads().min(DECODERS_MAX);
    let piece_bytes = context.buffer_bytes().min(PIECE_BYTES_MAX);
    let at_once = (2 * context.buffer_bytes() / piece_bytes).clamp(WRITTEN_AT_ONCE_MIN, WRITTEN_AT_ONCE_MAX);
    let count = threads + BUFFERS_OF_WRITTEN * at_once;
    let volume = Volume { region, root, map, gaps };
    let restored = thread::scope(|scope| {
        let (back, buffers) = buffers(count);
        let (tasks_in, tasks) = bounded(FETCHED_AHEAD);
        let (order_in, order) = bounded(FETCHED_AHEAD + count);
        let mut send = move |piece| {
            let (decoded, to_write) = bounded(1);
            order_in.send(to_write).is_ok() && tasks_in.send(Task { piece, decoded }).is_ok()
        };
        let mut stages = vec![spawn(scope, "fetch", move || fetch(volume, piece_bytes, context, &mut send))?];
        for _ in 0..threads {
            let (tasks, buffers) = (tasks.clone(), buffers.clone());
            stages.push(spawn(scope, "decode", move || decode_all(volume, &tasks, &buffers))?);
        }
        drop((tasks, buffers));
        let written = write_all(map, target, at_once, context, &order, &back);
        // Who waits for a buffer, or to hand something on, sees that nobody is there any more.
        drop((order, back));
        join_all(stages, written)
    });
    restored.map_err(|error| unless_deleted(region, root, error))?;
    if gaps.is_some_and(|gaps| !gaps.of(root).is_empty()) {
        check_named(region, root)?;
    }
    Ok(())
}

/// What was deleted and collected meanwhile is not damaged.
pub(super) fn unless_deleted(region: &Region, root: RootId, error: OpsError) -> OpsError {
    if error.class() != Class::Damage {
        return error;
    }
    match check_named(region, root) {
        Err(gone @ OpsError::Rule { .. }) => gone,
        _ => error,
    }
}

/// Refuses what is there no more.
pub(super) fn check_named(region: &Region, root: RootId) -> Result<(), OpsError> {
    if region.catalog()?.roots().any(|there| there.id == root) {
        return Ok(());
    }
    Err(match root {
        RootId::Snapshot(id) => OpsError::snapshot_not_found(id),
        RootId::Template(_) => {
            OpsError::rule(Code::ImageUnavailable, "The image was deregistered, and its content collected")
        }
    })
}

/// First stage: reads the stored frames of one batch after the other, and hands them on in pieces, until nobody takes them.
fn fetch(
    volume: Volume<'_>,
    piece_bytes: usize,
    context: &Context<'_>,
    send: &mut dyn FnMut(Piece) -> bool,
) -> Result<(), OpsError> {
    let mut runs = volume.map.runs().peekable();
    let at_once = (context.piece_bytes() / piece_bytes).max(1);
    while runs.peek().is_some() {
        context.check_cancelled()?;
        let mut pieces: Vec<Vec<Run>> =
            std::iter::repeat_with(|| take_runs(&mut runs, piece_bytes / BLOCK_BYTES))
                .take_while(|runs| !runs.is_empty())
                .take(at_once)
                .collect();
        let fetched = volume.fetch(&mut pieces)?;
        let mut frames = fetched.frames();
        frames.sort_unstable_by_key(|frame| frame.wanted);
        let (batch, mut first) =
            (Arc::new(Batch { fetched, frames, has_looked_again: AtomicBool::new(false) }), 0);
        for runs in pieces {
            let chunks = runs.iter().filter_map(chunk_of).count();
            if !send(Piece { runs, batch: batch.clone(), first }) {
                return Ok(());
            }
            first += chunks;
        }
    }
    Ok(())
}

impl Volume<'_> {
    /// Reads the chunks of some runs. Those that are lost become zero runs, where that is no error.
    fn fetch(&self, pieces: &mut [Vec<Run>]) -> Result<Fetched, OpsError> {
        let mut rounds = 0;
        loop {
            let ids: Vec<ChunkId> =
                pieces.iter().flatten().filter_map(chunk_of).map(|chunk| chunk.id).collect();
            match (self.region.fetch(&ids), self.gaps) {
                (Err(error), Some(gaps)) if may_be_lost(&error) && rounds < ROUNDS => {
                    rounds += 1;
                    self.leave_out_lost(pieces, gaps)?;
                }
                (fetched, _) => return Ok(fetched?),
            }
        }
    }

    fn leave_out_lost(&self, pieces: &mut [Vec<Run>], gaps: &Gaps) -> Result<(), RegionError> {
        // What is wrong with the log is no loss of content.
        self.region.catalog()?;
        self.region.look_again()?;
        for run in pieces.iter_mut().flatten() {
            let Run::Chunk(chunk) = *run else { continue };
            match self.region.fetch(&[chunk.id]) {
                Ok(_) => {}
                Err(error) if may_be_lost(&error) => {
                    self.region.check_in_reach(chunk.id)?;
                    gaps.note(self.root, &chunk, self.map.volume_bytes());
                    *run = Run::Zero { start_block: chunk.start_block, blocks: u64::from(chunk.blocks) };
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Decodes a chunk. One that is lost is zeros, where that is no error.
    fn decode(
        &self,
        piece: &Piece,
        frame: FetchedFrame,
        chunk: &ChunkRef,
        raw: &mut [u8],
    ) -> Result<(), OpsError> {
        let root = self.root;
        let Batch { fetched, .. } = &*piece.batch;
        let found = fetched.raw_bytes(frame);
        if found != raw.len() {
            let (expected, found) = (raw.len() as u64, found as u64);
            return Err(OpsError::ChunkLength { root, expected, found });
        }
        match (fetched.decode(self.region, frame, raw), self.gaps) {
            (Err(error), Some(gaps)) if may_be_lost(&error) => {
                if !piece.batch.has_looked_again.swap(true, Ordering::Relaxed) {
                    self.region.look_again()?;
                }
                self.region.check_in_reach(chunk.id)?;
                // What a device did not give once may be there.
                let again = self.region.fetch(&[chunk.id]);
                if again.is_ok_and(|again| {
                    again.frames().first().is_some_and(|frame| again.decode(self.region, *frame, raw).is_ok())
                }) {
                    return Ok(());
                }
                gaps.note(root, chunk, self.map.volume_bytes());
                raw.fill(0);
                Ok(())
            }
            (decoded, _) => Ok(decoded?),
        }
    }
}

/// Whether what failed may be for good: whether a chunk is lost of which nobody can tell where it is, [`Region::check_in_reach`] says.
fn may_be_lost(error: &RegionError) -> bool {
    matches!(error, RegionError::MissingChunk { .. }) || error.is_loss()
}

/// Runs whose chunks have so many blocks at most; one at least.
fn take_runs(runs: &mut Peekable<impl Iterator<Item = Run>>, blocks_max: usize) -> Vec<Run> {
    let (mut taken, mut blocks) = (Vec::new(), 0);
    while let Some(run) = runs.next_if(|run| taken.is_empty() || blocks + chunk_blocks(run) <= blocks_max) {
        blocks += chunk_blocks(&run);
        taken.push(run);
    }
    taken
}

const fn chunk_blocks(run: &Run) -> usize {
    match run {
        Run::Chunk(chunk) => chunk.blocks as usize,
        Run::Zero { .. } => 0,
    }
}

const fn chunk_of(run: &Run) -> Option<&ChunkRef> {
    match run {
        Run::Chunk(chunk) => Some(chunk),
        Run::Zero { .. } => None,
    }
}

/// Decodes a piece into a buffer, which is made as long as its chunks.
fn decode(volume: Volume<'_>, piece: &Piece, buffer: &mut AlignedBuffer) -> Result<(), OpsError> {
    buffer.resize(piece.runs.iter().map(chunk_blocks).sum::<usize>() * BLOCK_BYTES);
    let mut rest = buffer.bytes_mut();
    let expected = rest.len();
    let chunks = piece.runs.iter().filter_map(chunk_of);
    for (chunk, &frame) in chunks.zip(&piece.batch.frames[piece.first..]) {
        let (place, after) = rest.split_at_mut(usize::from(chunk.blocks) * BLOCK_BYTES);
        volume.decode(piece, frame, chunk, place)?;
        rest = after;
    }
    check_whole("decoded", expected as u64, (expected - rest.len()) as u64)
}

/// Second stage, on several threads: decodes pieces into buffers.
fn decode_all(
    volume: Volume<'_>,
    tasks: &Receiver<Task>,
    buffers: &Take<AlignedBuffer>,
) -> Result<(), OpsError> {
    // First the buffer: the piece that is to be written next must not be what waits for one.
    while let Some(mut buffer) = buffers.take() {
        let Ok(Task { piece, decoded }) = tasks.recv() else { return Ok(()) };
        decode(volume, &piece, &mut buffer)?;
        if decoded.send(Decoded { runs: piece.runs, buffer }).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// Last stage: writes the pieces, front to back. That not all came is an error, for which another stage may have a reason.
fn write_all(
    map: &BlockMap,
    target: &mut dyn DiskWrite,
    at_once: usize,
    context: &Context<'_>,
    order: &Receiver<Receiver<Decoded>>,
    back: &GiveBack<AlignedBuffer>,
) -> Result<(), OpsError> {
    let (mut done, mut next) = (0, None);
    // Whoever gave one up has the reason.
    while let Some(first) = next.take().or_else(|| order.recv().ok()).and_then(|first| first.recv().ok()) {
        context.check_cancelled()?;
        let mut pieces = vec![first];
        while next.is_none() && pieces.len() < at_once {
            let Ok(decoded) = order.try_recv() else { break };
            match decoded.try_recv() {
                Ok(piece) => pieces.push(piece),
                Err(_) => next = Some(decoded),
            }
        }
        done += write_pieces(map, &pieces, target, context)?;
        pieces.into_iter().for_each(|piece| back.give_back(piece.buffer));
    }
    check_whole("written", map.volume_bytes(), done)
}

/// Bytes that follow each other on the disk.
#[derive(Default)]
struct Adjacent<'a> {
    start: u64,
    len: u64,
    parts: Vec<&'a [u8]>,
}

impl Adjacent<'_> {
    /// Writes what there is, and forgets it.
    fn write(&mut self, target: &mut dyn DiskWrite, context: &Context<'_>) -> Result<(), OpsError> {
        let Self { start, len, parts } = std::mem::take(self);
        if !parts.is_empty() {
            target.write_parts_at(start, &parts)?;
            context.progress.advance(len);
        }
        Ok(())
    }
}

/// Writes the runs of pieces. Gives how many bytes of the volume that was.
fn write_pieces(
    map: &BlockMap,
    pieces: &[Decoded],
    target: &mut dyn DiskWrite,
    context: &Context<'_>,
) -> Result<u64, OpsError> {
    let (mut adjacent, mut done) = (Adjacent::default(), 0);
    for Decoded { runs, buffer } in pieces {
        let mut rest = buffer.bytes();
        for group in runs.chunk_by(|a, b| matches!((a, b), (Run::Chunk(_), Run::Chunk(_)))) {
            let (start_block, blocks) = extent_of(group);
            let start = block_offset(start_block);
            // The last block of the volume may be partly filled.
            let len = block_offset(start_block + blocks).min(map.volume_bytes()) - start;
            if let Run::Chunk(_) = group[0] {
                let (bytes, after) =
                    rest.split_at(usize::try_from(block_offset(blocks)).unwrap_or(usize::MAX));
                rest = after;
                if adjacent.start + adjacent.len != start {
                    adjacent.write(target, context)?;
                    adjacent.start = start;
                }
                adjacent.len += len;
                adjacent.parts.push(&bytes[..usize::try_from(len).unwrap_or(usize::MAX)]);
            } else {
                adjacent.write(target, context)?;
                zero(target, start, len, context)?;
            }
            done += len;
        }
    }
    adjacent.write(target, context)?;
    Ok(done)
}

/// Zeros a range in pieces, so that even a very long one can be watched and stopped.
pub(super) fn zero(
    target: &mut dyn DiskWrite,
    offset: u64,
    len: u64,
    context: &Context<'_>,
) -> Result<(), OpsError> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::DiskError;
    use crate::model::account::AccountId;
    use crate::model::blockmap::ChunkRef;
    use crate::ops::context::Unwatched;

    /// Notes what is written: where, and the parts' bytes.
    #[derive(Default)]
    struct Noted {
        writes: Vec<(u64, Vec<u64>)>,
        zeros: Vec<(u64, u64)>,
    }

    impl Noted {
        fn bytes(&self) -> u64 {
            let written = self.writes.iter().flat_map(|(_, parts)| parts);
            written.chain(self.zeros.iter().map(|(_, len)| len)).sum()
        }
    }

    impl DiskWrite for Noted {
        fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
            self.write_parts_at(offset, &[bytes])
        }

        fn write_parts_at(&mut self, offset: u64, parts: &[&[u8]]) -> Result<(), DiskError> {
            self.writes.push((offset, parts.iter().map(|part| part.len() as u64).collect()));
            Ok(())
        }

        fn zero_at(&mut self, offset: u64, len: u64) -> Result<(), DiskError> {
            self.zeros.push((offset, len));
            Ok(())
        }

        fn finish(self: Box<Self>) -> Result<(), DiskError> {
            Ok(())
        }
    }

    fn with_context<T>(work: impl FnOnce(&Context<'_>) -> T) -> T {
        let account: AccountId = "111122223333".parse().unwrap();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let (now_ms, dry_run, memory_bytes) = (0, false, 1 << 20);
        work(&Context { account, now_ms, dry_run, pool: &pool, memory_bytes, progress: &Unwatched })
    }

    fn chunk(start_block: u64) -> ChunkRef {
        ChunkRef { start_block, blocks: 2, id: ChunkId([1; 32]) }
    }

    fn decoded(runs: &[Run]) -> Decoded {
        let mut buffer = AlignedBuffer::default();
        buffer.resize(runs.iter().map(chunk_blocks).sum::<usize>() * BLOCK_BYTES);
        Decoded { runs: runs.to_vec(), buffer }
    }

    /// Chunks of two blocks; between the second and the third a hole. Each is a piece, the hole belongs to the second.
    #[test]
    fn what_is_ready_and_follows_is_written_at_once() {
        let block = BLOCK_BYTES as u64;
        let map =
            BlockMap::new(15 * block - 7, vec![chunk(0), chunk(2), chunk(9), chunk(11), chunk(13)]).unwrap();
        let runs: Vec<Run> = map.runs().collect();
        let pieces = [&runs[..1], &runs[1..3], &runs[3..4], &runs[4..5], &runs[5..]];
        // How many are ready, how many are written at once, and the writes.
        let whole = vec![(0, vec![2 * block; 2]), (9 * block, vec![2 * block, 2 * block, 2 * block - 7])];
        let by_two =
            vec![(0, vec![2 * block; 2]), (9 * block, vec![2 * block; 2]), (13 * block, vec![2 * block - 7])];
        let three = vec![(0, vec![2 * block; 2]), (9 * block, vec![2 * block])];
        for (ready, at_once, writes) in [(5, 8, whole), (5, 2, by_two), (3, 8, three)] {
            let (order_in, order) = bounded(pieces.len());
            for (number, runs) in pieces.iter().enumerate() {
                let (piece_in, piece) = bounded(1);
                order_in.send(piece).unwrap();
                // One that is given up stands before others that are ready: those must not be written.
                if number != ready {
                    piece_in.send(decoded(runs)).unwrap();
                }
            }
            drop(order_in);
            let mut target = Noted::default();
            let written =
                with_context(|context| write_all(&map, &mut target, at_once, context, &order, &buffers(1).0));
            assert_eq!(written.is_ok(), ready == pieces.len(), "{written:?}");
            assert_eq!((target.writes, target.zeros), (writes, vec![(4 * block, 5 * block)]));
        }
    }

    #[test]
    fn batches_that_never_come_are_an_error() {
        let map = BlockMap::new(9 * BLOCK_BYTES as u64 + 5, vec![chunk(1), chunk(3)]).unwrap();
        let runs: Vec<Run> = map.runs().collect();
        for count in 0..=runs.len() {
            let (order_in, order) = bounded(1);
            let (decoded_in, piece) = bounded(1);
            decoded_in.send(decoded(&runs[..count])).unwrap();
            order_in.send(piece).unwrap();
            drop(order_in);
            let mut target = Noted::default();
            let written =
                with_context(|context| write_all(&map, &mut target, 2, context, &order, &buffers(1).0));
            match written {
                Ok(()) => assert!(count == runs.len() && target.bytes() == map.volume_bytes(), "{count}"),
                Err(OpsError::NotWhole { expected, found, .. }) => {
                    assert!(count < runs.len() && (expected, found) == (map.volume_bytes(), target.bytes()));
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
}
