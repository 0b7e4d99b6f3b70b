//! The first stage of a snapshot's pipeline: a disk is read in pieces, each of which is looked at, cut and hashed while it
//! is in the processor's cache.

use super::buffers::Take;
use super::context::Context;
use super::cutting::Batch;
use super::error::OpsError;
use super::expected::{Expected, Same};
use super::turns::{Found, Turns};
use crate::chunk::fingerprint::{BlockFacts, block_facts};
use crate::disk::{AlignedBuffer, DiskRead};
use crate::model::ids::ChunkId;
use crate::model::region::ChunkerParams;
use crate::model::units::{BLOCK_BYTES, ZERO_RUN_BLOCKS_MIN, block_offset, blocks_for_bytes};
use crate::region::fetch::Stored;
use crossbeam_channel::{Receiver, Sender, bounded};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Mutex;
use std::thread;

/// Bytes of a disk that are read at once and then looked at, cut and hashed: a usual processor's own cache. With less there
/// are more chunks that lie in two pieces, and are copied from one to the other.
pub(super) const READ_BYTES: usize = 1 << 20;
/// Bytes of a computed disk that a thread reads at once: whole clusters or grains of usual formats.
const COMPUTED_BYTES: usize = 512 << 10;
/// Pieces without a change that are handed on together at most.
const PASSED_AT_ONCE: usize = 16;
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
    /// Chunks of what is expected that end in it.
    expected: Range<usize>,
}

impl Plan {
    /// So many blocks less at its end. What is left of a hole there is read if it is too short to be a zero run by itself.
    fn leave_out(&mut self, mut blocks: u64) {
        while let Some(last) = self.parts.pop() {
            let (Part::Data(len) | Part::Zeros(len)) = last;
            let left_out = blocks.min(len);
            let rest = len - left_out;
            blocks -= left_out;
            let is_data = matches!(last, Part::Data(_));
            self.data_blocks -= if is_data { left_out } else { 0 };
            match rest {
                0 => continue,
                _ if is_data => self.parts.push(Part::Data(rest)),
                ZERO_RUN_BLOCKS_MIN.. => self.parts.push(Part::Zeros(rest)),
                _ => {
                    self.parts.push(Part::Data(rest));
                    self.data_blocks += rest;
                }
            }
            return;
        }
    }
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

/// A part of a disk as it was read, of which nothing is known yet.
pub(super) struct Loaded {
    plan: Plan,
    buffer: AlignedBuffer,
    headroom: usize,
}

impl Loaded {
    /// Where on the disk it is.
    pub(super) fn blocks(&self) -> Range<u64> {
        let blocks = |part: &Part| match *part {
            Part::Data(blocks) | Part::Zeros(blocks) => blocks,
        };
        let start = self.plan.start_block;
        start..start + self.plan.parts.iter().map(blocks).sum::<u64>()
    }

    /// Which chunks of what is expected end in it.
    pub(super) fn expected(&self) -> Range<usize> {
        self.plan.expected.clone()
    }

    /// All bytes, behind the headroom.
    pub(super) fn bytes(&self) -> &[u8] {
        self.buffer.bytes()
    }

    /// The blocks that are data, each range with the offset of its bytes: as long as they can be.
    pub(super) fn data(&self) -> impl Iterator<Item = (Range<u64>, usize)> + '_ {
        let mut parts = self.plan.parts.iter().peekable();
        let (mut position, mut offset) = (self.plan.start_block, self.headroom);
        std::iter::from_fn(move || {
            while let Some(Part::Zeros(blocks)) = parts.next_if(|part| matches!(part, Part::Zeros(_))) {
                position += blocks;
            }
            let (start, start_offset) = (position, offset);
            while let Some(Part::Data(blocks)) = parts.next_if(|part| matches!(part, Part::Data(_))) {
                position += blocks;
                offset += usize::try_from(block_offset(*blocks)).unwrap_or(0);
            }
            (position > start).then_some((start..position, start_offset))
        })
    }

    pub(super) fn into_buffer(self) -> AlignedBuffer {
        self.buffer
    }

    /// Bytes that were read.
    pub(super) fn read_bytes(&self) -> u64 {
        (self.buffer.bytes().len() - self.headroom) as u64
    }

    /// Looks at each block.
    pub(super) fn described(self, params: ChunkerParams) -> Piece {
        let Self { plan, buffer, headroom } = self;
        let blocks = buffer.bytes()[headroom..].chunks_exact(BLOCK_BYTES);
        let facts = blocks.map(|block| block_facts(block, params.zero_tail_bytes)).collect();
        Piece { buffer, headroom, parts: plan.parts, facts }
    }
}

/// What one thread does with one piece.
struct Task {
    number: u64,
    plan: Plan,
    /// There is nothing in it: it only ends what is open.
    is_end: bool,
    /// To whoever waits for it. Given up, it says that nothing comes.
    batch: Sender<Batch>,
}

/// Divides a disk among threads that ask for one piece after the other.
pub(super) struct Planner<'a> {
    disk: &'a dyn DiskRead,
    params: ChunkerParams,
    context: &'a Context<'a>,
    total_blocks: u64,
    /// What the disk may hold.
    expected: Option<(&'a Expected, &'a Stored)>,
    /// Bytes of a piece, the same from the first to the last: so many have the buffers.
    piece_bytes: usize,
    /// Who waits for the batches, in the order of the disk.
    order: Sender<Receiver<Batch>>,
    next: Mutex<Next>,
    turns: Turns<'a>,
}

/// The piece that is asked for next.
struct Next {
    number: u64,
    block: u64,
    /// Chunks of what is expected that end there or before it.
    ended: usize,
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
        expected: Option<(&'a Expected, &'a Stored)>,
        piece_bytes: usize,
        context: &'a Context<'a>,
        order: Sender<Receiver<Batch>>,
    ) -> Self {
        let total_blocks = blocks_for_bytes(disk.len_bytes());
        // Nobody who asks for a piece may wait for room behind pieces that are not handed on yet.
        let passed_at_once = order.capacity().map_or(1, |room| (room / 2).clamp(1, PASSED_AT_ONCE));
        Self {
            disk,
            params,
            context,
            total_blocks,
            expected,
            piece_bytes,
            order,
            next: Mutex::new(Next { number: 0, block: 0, ended: 0, is_over: false }),
            turns: Turns::new(params, expected.map(|(expected, _)| expected), passed_at_once),
        }
    }

    /// On several threads, each with one piece from the disk to ids: what was read is still in the processor's
    /// cache when it is hashed. Ends when there are no more pieces, or when nobody takes them.
    pub(super) fn read(&self, buffers: &Take<AlignedBuffer>) -> Result<(), OpsError> {
        let mut watch = Watch { turns: &self.turns, buffers, is_through: false };
        // First the buffer: the piece that is wanted next must not be what waits for one.
        while let Some(buffer) = buffers.take() {
            let Some(Task { number, plan, is_end, batch }) = self.next_task()? else {
                // Another may wait for it, and has to see that there is no more to do.
                buffers.put_back(buffer, thread::current().id());
                watch.is_through = true;
                return Ok(());
            };
            let found = if is_end {
                buffers.put_back(buffer, thread::current().id());
                Found::End
            } else {
                self.look_at(self.load(plan, buffer)?)?
            };
            let Some(to_hash) = self.turns.settle(number, found, batch, buffers) else { return Ok(()) };
            for (unhashed, batch) in to_hash {
                if batch.send(unhashed.hashed()).is_err() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn expected(&self) -> Option<&'a Expected> {
        self.expected.map(|(expected, _)| expected)
    }

    fn load(&self, plan: Plan, buffer: AlignedBuffer) -> Result<Loaded, OpsError> {
        load(self.disk, plan, buffer, headroom(self.params), self.context)
    }

    /// All that can be done with a piece without the one before it.
    fn look_at(&self, loaded: Loaded) -> Result<Found, OpsError> {
        if let Some((expected, stored)) = self.expected
            && let Some(same) = expected.find_in(&loaded)
        {
            let ids: Vec<ChunkId> = same.chunks.iter().map(|chunk| chunk.id).collect();
            // What was lost is stored again, and needs its bytes.
            if let Some(packs) = stored.packs_of(&ids)? {
                return Ok(Found::Same(loaded, Same { packs, ..same }));
            }
        }
        Ok(Found::Other(loaded.described(self.params)))
    }

    fn next_task(&self) -> Result<Option<Task>, OpsError> {
        self.context.check_cancelled()?;
        // Whoever panicked with it has the reason.
        let Ok(mut next) = self.next.lock() else { return Ok(None) };
        if std::mem::replace(&mut next.is_over, true) {
            return Ok(None);
        }
        let is_end = next.block == self.total_blocks;
        let range = next.block..self.total_blocks;
        let expected = self.expected().map(|expected| (expected, next.ended));
        let (plan, reached) = plan_expected(self.disk, range, self.piece_bytes, expected, self.context)?;
        let (batch, batch_out) = bounded(1);
        if self.order.send(batch_out).is_err() {
            return Ok(None);
        }
        let number = next.number;
        *next = Next { number: number + 1, block: reached, ended: plan.expected.end, is_over: is_end };
        Ok(Some(Task { number, plan, is_end, batch }))
    }
}

/// Makes a thread that ends before its time, for whatever reason, end the others: those that wait for its piece, and those
/// that wait for a buffer.
struct Watch<'a> {
    turns: &'a Turns<'a>,
    buffers: &'a Take<AlignedBuffer>,
    is_through: bool,
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if !self.is_through {
            self.turns.give_up();
            self.buffers.end();
        }
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
    Ok((load(disk, plan, buffer, headroom, context)?.described(params), reached))
}

/// As [`plan_piece`], ending where the state of a cutter is known if the disk holds what is expected, of which so many
/// chunks have ended before.
fn plan_expected(
    disk: &dyn DiskRead,
    range: Range<u64>,
    room_bytes: usize,
    expected: Option<(&Expected, usize)>,
    context: &Context<'_>,
) -> Result<(Plan, u64), OpsError> {
    let (mut plan, reached) = plan_piece(disk, range.clone(), room_bytes, context)?;
    let Some((expected, before)) = expected else { return Ok((plan, reached)) };
    let (end, ended) = expected.end_of_piece(range.start..reached, before);
    plan.leave_out(reached - end);
    plan.expected = before..ended;
    Ok((plan, end))
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
    let mut plan = Plan { start_block: range.start, data_blocks: 0, parts: Vec::new(), expected: 0..0 };
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
        // One read for what lies between two holes that are long enough.
        match plan.parts.last_mut() {
            Some(Part::Data(before)) => *before += blocks,
            _ => plan.parts.push(Part::Data(blocks)),
        }
        plan.data_blocks += blocks;
        position += blocks;
    }
    Ok((plan, position))
}

/// Reads what was planned.
fn load(
    disk: &dyn DiskRead,
    plan: Plan,
    mut buffer: AlignedBuffer,
    headroom: usize,
    context: &Context<'_>,
) -> Result<Loaded, OpsError> {
    let data_bytes = usize::try_from(block_offset(plan.data_blocks)).unwrap_or(usize::MAX);
    buffer.resize(headroom + data_bytes);
    let (mut position, mut rest) = (plan.start_block, &mut buffer.bytes_mut()[headroom..]);
    for part in &plan.parts {
        let blocks = match *part {
            Part::Data(blocks) => {
                let (data, after) = rest.split_at_mut(usize::try_from(block_offset(blocks)).unwrap_or(0));
                read_blocks(disk, position, data, context)?;
                rest = after;
                blocks
            }
            Part::Zeros(blocks) => blocks,
        };
        position += blocks;
    }
    Ok(Loaded { plan, buffer, headroom })
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
    let there =
        usize::try_from(disk.len_bytes().saturating_sub(offset)).unwrap_or(usize::MAX).min(buffer.len());
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{DiskError, Extent};
    use crate::model::account::AccountId;
    use crate::model::blockmap::{BlockMap, BlockMapBuilder};
    use crate::ops::buffers::buffers;
    use crate::ops::context::Unwatched;
    use proptest::prelude::*;
    use rayon::{ThreadPool, ThreadPoolBuilder};
    use std::sync::LazyLock;

    /// Blocks that are more than a disk has.
    const WHOLE: u64 = 1000;

    static POOL: LazyLock<ThreadPool> =
        LazyLock::new(|| ThreadPoolBuilder::new().num_threads(1).build().unwrap());

    struct Blocks(Vec<u8>);

    impl DiskRead for Blocks {
        fn len_bytes(&self) -> u64 {
            self.0.len() as u64
        }

        /// Zero blocks are a hole.
        fn extent_at(&self, offset: u64) -> Result<Extent, DiskError> {
            let blocks = self.0[usize::try_from(offset).unwrap()..].chunks(BLOCK_BYTES);
            let is_zero = |block: &[u8]| block.iter().all(|byte| *byte == 0);
            let is_hole = is_zero(&self.0[usize::try_from(offset).unwrap()..][..BLOCK_BYTES]);
            let alike = blocks.take_while(|block| is_zero(block) == is_hole).count() as u64;
            Ok(Extent { start: offset, end: offset + block_offset(alike), is_zero: is_hole })
        }

        fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
            let start = usize::try_from(offset).unwrap();
            buffer.copy_from_slice(&self.0[start..start + buffer.len()]);
            Ok(())
        }
    }

    /// Blocks of few kinds: 0 is zeros, every third of the others ends in zeros.
    fn disk(kinds: &[u8]) -> Blocks {
        let block = |kind: &u8| {
            let filled = if kind.is_multiple_of(3) { BLOCK_BYTES / 2 } else { BLOCK_BYTES };
            let byte = |at: usize| if at < filled { kind.wrapping_mul((at % 251) as u8 | 1) } else { 0 };
            (0..BLOCK_BYTES).map(byte).collect::<Vec<_>>()
        };
        Blocks(kinds.iter().flat_map(block).collect())
    }

    /// The block map that pieces of so many blocks give, and how many of them were as expected.
    fn cut(
        disk: &Blocks,
        params: ChunkerParams,
        expected: Option<&Expected>,
        room_blocks: u64,
        context: &Context<'_>,
    ) -> (BlockMap, usize) {
        let (turns, total) = (Turns::new(params, expected, 3), blocks_for_bytes(disk.len_bytes()));
        let (_back, take) = buffers(1);
        let (mut batches, mut position, mut ended, mut is_end) = (Vec::new(), 0, 0, false);
        while !is_end {
            let room = usize::try_from(room_blocks).unwrap() * BLOCK_BYTES;
            let known = expected.map(|expected| (expected, ended));
            let (plan, reached) = plan_expected(disk, position..total, room, known, context).unwrap();
            ended = plan.expected.end;
            is_end = position == total;
            let found = if is_end {
                Found::End
            } else {
                let loaded = load(disk, plan, AlignedBuffer::default(), headroom(params), context).unwrap();
                match expected.and_then(|expected| expected.find_in(&loaded)) {
                    Some(same) => Found::Same(loaded, same),
                    None => Found::Other(loaded.described(params)),
                }
            };
            let (batch_in, batch) = bounded(1);
            for (unhashed, batch) in turns.settle(batches.len() as u64, found, batch_in, &take).unwrap() {
                batch.send(unhashed.hashed()).unwrap();
            }
            batches.push(batch);
            position = reached;
        }
        let mut map = BlockMapBuilder::new(disk.len_bytes()).unwrap();
        let batches: Vec<Batch> = batches.into_iter().map(|batch| batch.try_recv().unwrap()).collect();
        batches.iter().flat_map(Batch::refs).for_each(|chunk| map.push(chunk).unwrap());
        (map.finish(), batches.iter().filter(|batch| batch.packs.is_some()).count())
    }

    fn any_kinds() -> impl Strategy<Value = Vec<u8>> {
        let run = prop_oneof![
            2 => (1..9_usize).prop_map(|len| vec![0; len]),
            1 => (14..30_usize).prop_map(|len| vec![0; len]),
            2 => prop::collection::vec(0..3_u8, 1..9),
            3 => prop::collection::vec(1..9_u8, 1..20),
        ];
        prop::collection::vec(run, 1..8).prop_map(|runs| runs.concat())
    }

    fn any_params() -> impl Strategy<Value = ChunkerParams> {
        let of = |(min_blocks, avg_blocks, max_blocks, zero_tail_bytes)| ChunkerParams {
            min_blocks,
            avg_blocks,
            max_blocks,
            zero_tail_bytes,
        };
        prop::sample::select(vec![(1, 1, 1, 0), (1, 2, 3, 0), (1, 4, 8, 256), (2, 4, 16, 0), (3, 8, 12, 256)])
            .prop_map(of)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(3000) })]
        #[test]
        fn pieces_of_any_length_give_the_map_of_the_whole(
            kinds in any_kinds(),
            edits in prop::collection::vec((any::<prop::sample::Index>(), prop_oneof![3 => 1..3_usize, 1 => 3..25_usize], 0..5_u8),
                0..4,
            ),
            params in any_params(),
            room_blocks in 1..40_u64,
        ) {
            let context = Context {
                account: AccountId::from_random(1),
                now_ms: 0,
                dry_run: false,
                pool: &POOL,
                memory_bytes: 1 << 30,
                progress: &Unwatched,
            };
            let before = disk(&kinds);
            let (map, _) = cut(&before, params, None, WHOLE, &context);
            prop_assert_eq!(&cut(&before, params, None, room_blocks, &context).0, &map);
            let expected = Expected::of(map.clone(), params);
            let (again, same) = cut(&before, params, Some(&expected), room_blocks, &context);
            prop_assert_eq!(&again, &map);
            prop_assert!(same > 0 || room_blocks < kinds.len() as u64);
            prop_assert_eq!(cut(&before, params, Some(&expected), WHOLE, &context).1, 1);

            let gone = disk(&vec![0; kinds.len()]);
            let (map, _) = cut(&gone, params, Some(&expected), room_blocks, &context);
            prop_assert_eq!(map.chunks().is_empty(), kinds.len() >= 4);

            let mut kinds = kinds;
            for (at, len, kind) in edits {
                let at = at.index(kinds.len());
                let end = kinds.len().min(at + len);
                kinds[at..end].fill(kind);
            }
            let after = disk(&kinds);
            let (map, _) = cut(&after, params, None, WHOLE, &context);
            prop_assert_eq!(cut(&after, params, Some(&expected), room_blocks, &context).0, map);
        }
    }
}
