//! What deduplication would give on disks, without storing anything: for several ways to cut, what is stored, what each disk
//! adds, what a small read costs; what levels and deltas change.
//!
//! One pass over each disk. Every block is hashed once, and what a layout calls a chunk is known by the hashes of its
//! blocks. Memory is bounded by sampling: beyond so many chunks only those are kept whose key ends in so many zero bits
//! (Gibbons, "Distinct sampling", 2001). What
//! compresses how well is tried on the first 64 MiB of each disk, and then on one chunk in eight.

mod layout;
mod map;
mod sample;

use super::context::Context;
use super::error::{Code, OpsError};
use crate::chunk::fingerprint::{BlockFacts, block_facts};
use crate::chunk::frame::CodecPool;
use crate::disk::DiskRead;
use crate::model::region::ChunkerParams;
use crate::model::units::{BLOCK_BYTES, block_offset, blocks_for_bytes};
use layout::{Cut, Layout, Step};
pub use map::Cell;
use map::Mapper;
use rayon::prelude::*;

/// Most disks that are compared at once.
pub const DISKS_MAX: usize = 64;
/// Levels that are compared.
pub const LEVELS: [i32; 5] = [1, 3, 6, 9, 12];
/// Blocks that are read together.
const WINDOW_BLOCKS: usize = 2048;
/// Blocks before them that are still at hand: the longest chunk.
const CARRY_BLOCKS: usize = 1024;

/// A hash of a block, long enough to tell blocks apart.
type BlockHash = [u8; 16];

/// A way to cut, and what it gives.
#[derive(Debug, Clone, PartialEq)]
pub struct LayoutFigures {
    /// What it is called.
    pub name: String,
    /// Whether it is imgstore's own.
    pub is_own: bool,
    /// Different chunks.
    pub chunks: u64,
    /// Bytes of all of them, compressed at level 3, with their index.
    pub stored_bytes: u64,
    /// Bytes of the index alone.
    pub index_bytes: u64,
    /// Mean bytes that are decoded for a read of 4 KiB.
    pub read_bytes: u64,
    /// What each disk adds after those before it, in bytes.
    pub added_bytes: Vec<u64>,
}

/// A disk.
#[derive(Debug, Clone, PartialEq)]
pub struct DiskFigures {
    /// Its length in bytes.
    pub volume_bytes: u64,
    /// Bytes in blocks that are not zero.
    pub data_bytes: u64,
    /// What it adds after those before it, in imgstore's layout, compressed.
    pub added_bytes: u64,
    /// What of it no other disk has: what would be freed without it.
    pub unique_bytes: u64,
    /// What is where on it, front to back.
    pub map: Vec<Cell>,
}

/// A zstd level.
#[derive(Debug, Clone, PartialEq)]
pub struct LevelFigures {
    /// The level.
    pub level: i32,
    /// Bytes of everything at this level.
    pub stored_bytes: u64,
    /// Raw bytes compressed in a second by one thread.
    pub bytes_per_second: u64,
}

/// What deduplication would give.
#[derive(Debug, Clone, PartialEq)]
pub struct Assessment {
    /// The disks, in the order given.
    pub disks: Vec<DiskFigures>,
    /// Ways to cut; imgstore's own is among them.
    pub layouts: Vec<LayoutFigures>,
    /// Levels.
    pub levels: Vec<LevelFigures>,
    /// Bytes of everything if chunks are stored against what they resemble, at level 3.
    pub delta_bytes: u64,
    /// One in so many chunks was kept in mind, in the layout where it was fewest.
    pub sampled: u64,
}

/// Part of a disk, with what came before it.
struct Window<'a> {
    /// Number of the disk.
    disk: usize,
    /// First block of the part.
    first: u64,
    /// The bytes of [`CARRY_BLOCKS`] blocks before it, and its own.
    bytes: &'a [u8],
    /// Of the same blocks.
    hashes: &'a [BlockHash],
    /// Of its own blocks.
    facts: &'a [BlockFacts],
}

impl Window<'_> {
    /// The bytes of blocks, as far as they are at hand.
    fn blocks(&self, start: u64, blocks: usize) -> Option<&[u8]> {
        let at = self.index(start)?;
        self.bytes.get(at * BLOCK_BYTES..(at + blocks) * BLOCK_BYTES)
    }

    fn hashes(&self, start: u64, blocks: usize) -> Option<&[BlockHash]> {
        let at = self.index(start)?;
        self.hashes.get(at..at + blocks)
    }

    fn index(&self, block: u64) -> Option<usize> {
        usize::try_from((block + CARRY_BLOCKS as u64).checked_sub(self.first)?).ok()
    }
}

/// Finds out what deduplication would give on some disks, in this order. Nothing is written.
///
/// # Errors
/// More than [`DISKS_MAX`] disks, a disk that cannot be read, or being cancelled.
pub fn assess(disks: &[&dyn DiskRead], context: &Context<'_>) -> Result<Assessment, OpsError> {
    if disks.len() > DISKS_MAX {
        let why = format!("{} disks were given; at most {DISKS_MAX} are compared", disks.len());
        return Err(OpsError::rule(Code::InvalidParameterValue, why));
    }
    let codecs = CodecPool::new();
    let mut layouts = layouts();
    let mut mapper = Mapper::new(disks);
    context.progress.begin("assess", disks.iter().map(|disk| disk.len_bytes()).sum());
    for number in 0..disks.len() {
        pass(disks, number, &mut layouts, &mut mapper, &codecs, context)?;
    }
    let own = layouts.iter().position(|layout| layout.is_own()).unwrap_or(0);
    let maps = mapper.finish(&layouts[own]);
    let figures: Vec<LayoutFigures> = layouts.iter().map(|layout| layout.figures(disks.len())).collect();
    let unique = layouts[own].unique(disks.len());
    let each = maps.into_iter().zip(disks).zip(&figures[own].added_bytes).zip(unique);
    let disks = each.map(|((((map, data_blocks), disk), added), unique_bytes)| DiskFigures {
        volume_bytes: disk.len_bytes(),
        data_bytes: block_offset(data_blocks),
        added_bytes: *added,
        unique_bytes,
        map,
    });
    let (levels, delta_bytes) = layouts[own].trials(figures[own].stored_bytes, figures[own].index_bytes);
    Ok(Assessment {
        disks: disks.collect(),
        levels,
        delta_bytes,
        sampled: layouts.iter().map(Layout::sampled).max().unwrap_or(1),
        layouts: figures,
    })
}

fn layouts() -> Vec<Layout> {
    let own = ChunkerParams::DEFAULT;
    let fixed = [("fixed 4 KiB", 1), ("fixed 64 KiB", 16), ("fixed 512 KiB", 128), ("fixed 4 MiB", 1024)];
    let mut layouts: Vec<Layout> =
        fixed.iter().map(|(name, blocks)| Layout::new(name, Cut::Fixed { blocks: *blocks })).collect();
    let finer = ChunkerParams { min_blocks: 1, avg_blocks: 16, max_blocks: 64, ..own };
    let coarser = ChunkerParams { min_blocks: 8, avg_blocks: 64, max_blocks: 256, ..own };
    layouts.push(Layout::new("content-defined, finer", Cut::by_content(finer)));
    layouts.push(Layout::own("content-defined, imgstore's", own));
    layouts.push(Layout::new("content-defined, coarser", Cut::by_content(coarser)));
    layouts
}

/// What of a disk is at hand.
struct AtHand {
    /// First block of the last window.
    first: u64,
    bytes: Vec<u8>,
    hashes: Vec<BlockHash>,
    facts: Vec<BlockFacts>,
    zero_hash: BlockHash,
}

impl AtHand {
    fn new() -> Self {
        let zero_hash = hash_of(&[0; BLOCK_BYTES]);
        let blocks = CARRY_BLOCKS + WINDOW_BLOCKS;
        let (bytes, hashes) = (vec![0; blocks * BLOCK_BYTES], vec![zero_hash; blocks]);
        Self { first: 0, bytes, hashes, facts: Vec::new(), zero_hash }
    }

    fn window(&self, disk: usize) -> Window<'_> {
        Window { disk, first: self.first, bytes: &self.bytes, hashes: &self.hashes, facts: &self.facts }
    }

    /// Reads the next window; what was the last becomes what came before it.
    fn read(
        &mut self,
        disk: &dyn DiskRead,
        first: u64,
        blocks: usize,
        context: &Context<'_>,
    ) -> Result<(), OpsError> {
        self.first = first;
        self.bytes.copy_within(WINDOW_BLOCKS * BLOCK_BYTES.., 0);
        self.hashes.copy_within(WINDOW_BLOCKS.., 0);
        let own = &mut self.bytes[CARRY_BLOCKS * BLOCK_BYTES..];
        read_window(disk, first, &mut own[..blocks * BLOCK_BYTES])?;
        own[blocks * BLOCK_BYTES..].fill(0);
        let zero_hash = self.zero_hash;
        let known = |block: &[u8]| {
            let facts = block_facts(block, ChunkerParams::DEFAULT.zero_tail_bytes);
            (facts, if facts.is_zero { zero_hash } else { hash_of(block) })
        };
        let known: Vec<(BlockFacts, BlockHash)> =
            context.pool.install(|| own.par_chunks(BLOCK_BYTES).map(known).collect());
        self.facts = known[..blocks].iter().map(|(facts, _)| *facts).collect();
        let hashes = self.hashes[CARRY_BLOCKS..].iter_mut();
        hashes.zip(known).for_each(|(hash, (_, known))| *hash = known);
        Ok(())
    }

    /// What was read last is zeros.
    fn forget(&mut self) {
        self.bytes.fill(0);
        self.hashes.fill(self.zero_hash);
        self.facts.clear();
    }
}

/// One pass over a disk.
fn pass(
    disks: &[&dyn DiskRead],
    number: usize,
    layouts: &mut [Layout],
    mapper: &mut Mapper,
    codecs: &CodecPool,
    context: &Context<'_>,
) -> Result<(), OpsError> {
    let disk = disks[number];
    let total = blocks_for_bytes(disk.len_bytes());
    let mut at_hand = AtHand::new();
    layouts.iter_mut().for_each(Layout::begin);
    let mut first = 0;
    while first < total {
        context.check_cancelled()?;
        let hole = whole_windows(disk, first, total)?;
        if hole > 0 {
            let window = at_hand.window(number);
            layouts
                .iter_mut()
                .try_for_each(|layout| layout.take(Step::Zeros(hole), &window, disks, codecs))?;
            take_map(layouts, mapper, &Window { facts: &[], ..window });
            mapper.skip(number, first, hole);
            at_hand.forget();
            first += hole;
            context.progress.advance(block_offset(hole));
            continue;
        }
        let blocks = usize::try_from(total - first).unwrap_or(usize::MAX).min(WINDOW_BLOCKS);
        at_hand.read(disk, first, blocks, context)?;
        let window = at_hand.window(number);
        let take = |layout: &mut Layout| layout.take(Step::Window, &window, disks, codecs);
        context.pool.install(|| layouts.par_iter_mut().try_for_each(take))?;
        take_map(layouts, mapper, &window);
        first += blocks as u64;
        context.progress.advance(block_offset(blocks as u64));
    }
    let window = Window { facts: &[], ..at_hand.window(number) };
    layouts.iter_mut().try_for_each(|layout| layout.take(Step::End, &window, disks, codecs))?;
    take_map(layouts, mapper, &window);
    Ok(())
}

fn take_map(layouts: &mut [Layout], mapper: &mut Mapper, window: &Window<'_>) {
    let own = layouts.iter_mut().find(|layout| layout.is_own());
    mapper.take(window, own.map(Layout::taken).unwrap_or_default());
}

/// How many blocks from here on are in whole windows that are holes.
fn whole_windows(disk: &dyn DiskRead, first: u64, total: u64) -> Result<u64, OpsError> {
    let extent = disk.extent_at(block_offset(first))?;
    let end = if extent.end >= disk.len_bytes() { total } else { extent.end / BLOCK_BYTES as u64 };
    let blocks = if extent.is_zero { end.saturating_sub(first) } else { 0 };
    Ok(blocks / WINDOW_BLOCKS as u64 * WINDOW_BLOCKS as u64)
}

/// Reads blocks; holes, and what is behind the end, are zero.
fn read_window(disk: &dyn DiskRead, first: u64, buffer: &mut [u8]) -> Result<(), OpsError> {
    let start = block_offset(first);
    let end = (start + buffer.len() as u64).min(disk.len_bytes());
    buffer.fill(0);
    let mut offset = start;
    while offset < end {
        let extent = disk.extent_at(offset)?;
        let until = extent.end.clamp(offset + 1, end);
        if !extent.is_zero {
            let [from, to] = [offset, until].map(|at| usize::try_from(at - start).unwrap_or(usize::MAX));
            disk.read_at(offset, &mut buffer[from..to])?;
        }
        offset = until;
    }
    Ok(())
}

fn hash_of(block: &[u8]) -> BlockHash {
    let mut short = [0; 16];
    short.copy_from_slice(&blake3::hash(block).as_bytes()[..16]);
    short
}
