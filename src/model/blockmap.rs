//! The block map of a volume: which chunk stands at which blocks.
//!
//! Chunks are listed by position; whatever lies between them is a *zero run* and reads as zeros. So a map
//! costs what its content costs, whatever the volume's size, and no position has two spellings.

use super::ids::ChunkId;
use super::units::{CHUNK_BLOCKS_MAX, MAP_CHUNKS_MAX, VOLUME_BLOCKS_MAX, block_offset, blocks_for_bytes};
use std::fmt;

/// A chunk at a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkRef {
    /// First block.
    pub start_block: u64,
    /// Length in blocks, 1 to 256. The last block of the volume may be partly filled.
    pub blocks: u16,
    /// Its content.
    pub id: ChunkId,
}

impl ChunkRef {
    /// The block after the last one.
    pub const fn end_block(&self) -> u64 {
        self.start_block + self.blocks as u64
    }
}

/// A piece of a volume that is either one chunk or a zero run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Run {
    /// One chunk.
    Chunk(ChunkRef),
    /// Blocks that read as zeros.
    Zero {
        /// First block.
        start_block: u64,
        /// Length in blocks, at least 1.
        blocks: u64,
    },
}

/// Why a list of chunk references is not a block map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockMapFault {
    /// An empty volume has no map.
    EmptyVolume,
    /// More than 2^48 blocks.
    VolumeTooLarge,
    /// A reference is empty or longer than 256 blocks.
    Length,
    /// A reference starts before the end of the one before it.
    Order,
    /// A reference ends after the volume does.
    PastEnd,
    /// More than 2^27 chunks.
    TooManyChunks,
}

impl fmt::Display for BlockMapFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EmptyVolume => "the volume is empty",
            Self::VolumeTooLarge => "the volume has more than 2^48 blocks",
            Self::Length => "a chunk is not 1 to 256 blocks long",
            Self::Order => "chunks overlap or are out of order",
            Self::PastEnd => "a chunk ends after the volume",
            Self::TooManyChunks => "the volume has more than 2^27 chunks of data; split it",
        })
    }
}

/// A valid block map: chunks ascending, disjoint, inside the volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockMap {
    volume_bytes: u64,
    chunks: Vec<ChunkRef>,
}

/// The chunks of some maps, ascending and each once.
pub fn distinct_chunks(maps: &[BlockMap]) -> Vec<ChunkId> {
    let mut ids: Vec<ChunkId> = maps.iter().flat_map(BlockMap::chunks).map(|chunk| chunk.id).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

impl BlockMap {
    /// A map of a volume of `volume_bytes` bytes; every invariant is checked.
    pub fn new(volume_bytes: u64, chunks: Vec<ChunkRef>) -> Result<Self, BlockMapFault> {
        let mut builder = BlockMapBuilder::new(volume_bytes)?;
        if chunks.len() > MAP_CHUNKS_MAX {
            return Err(BlockMapFault::TooManyChunks);
        }
        for chunk in &chunks {
            builder.check(chunk)?;
        }
        builder.chunks = chunks;
        Ok(builder.finish())
    }

    /// Length of the volume in bytes; need not be a multiple of the block.
    pub const fn volume_bytes(&self) -> u64 {
        self.volume_bytes
    }

    /// Blocks of the volume, the last perhaps partly filled.
    pub const fn volume_blocks(&self) -> u64 {
        blocks_for_bytes(self.volume_bytes)
    }

    /// The chunks by position.
    pub fn chunks(&self) -> &[ChunkRef] {
        &self.chunks
    }

    /// Bytes of the volume that chunks cover; the rest are zero runs.
    pub fn data_bytes(&self) -> u64 {
        let covered: u64 = self.chunks.iter().map(|c| block_offset(u64::from(c.blocks))).sum();
        let over =
            self.chunks.last().map_or(0, |c| block_offset(c.end_block()).saturating_sub(self.volume_bytes));
        covered - over
    }

    /// Chunks and zero runs from the volume's first block to its last, without a gap.
    pub fn runs(&self) -> impl Iterator<Item = Run> + '_ {
        let mut position = 0;
        let mut chunks = self.chunks.iter().copied().peekable();
        std::iter::from_fn(move || {
            let next_start = chunks.peek().map_or(self.volume_blocks(), |c| c.start_block);
            if position < next_start {
                let run = Run::Zero { start_block: position, blocks: next_start - position };
                position = next_start;
                return Some(run);
            }
            let chunk = chunks.next()?;
            position = chunk.end_block();
            Some(Run::Chunk(chunk))
        })
    }
}

/// Builds a map chunk by chunk, refusing whatever breaks an invariant.
#[derive(Debug)]
pub struct BlockMapBuilder {
    volume_bytes: u64,
    next_block: u64,
    chunks: Vec<ChunkRef>,
}

impl BlockMapBuilder {
    /// For a volume of `volume_bytes` bytes, at least 1.
    pub fn new(volume_bytes: u64) -> Result<Self, BlockMapFault> {
        if volume_bytes == 0 {
            return Err(BlockMapFault::EmptyVolume);
        }
        if blocks_for_bytes(volume_bytes) > VOLUME_BLOCKS_MAX {
            return Err(BlockMapFault::VolumeTooLarge);
        }
        Ok(Self { volume_bytes, next_block: 0, chunks: Vec::new() })
    }

    /// Adds the chunk that follows, perhaps after a zero run.
    pub fn push(&mut self, chunk: ChunkRef) -> Result<(), BlockMapFault> {
        self.check(&chunk)?;
        if self.chunks.len() >= MAP_CHUNKS_MAX {
            return Err(BlockMapFault::TooManyChunks);
        }
        self.chunks.push(chunk);
        Ok(())
    }

    /// The map.
    pub fn finish(self) -> BlockMap {
        BlockMap { volume_bytes: self.volume_bytes, chunks: self.chunks }
    }

    fn check(&mut self, chunk: &ChunkRef) -> Result<(), BlockMapFault> {
        if chunk.blocks == 0 || chunk.blocks > CHUNK_BLOCKS_MAX {
            return Err(BlockMapFault::Length);
        }
        if chunk.start_block < self.next_block {
            return Err(BlockMapFault::Order);
        }
        let end = chunk.start_block.checked_add(u64::from(chunk.blocks)).ok_or(BlockMapFault::PastEnd)?;
        if end > blocks_for_bytes(self.volume_bytes) {
            return Err(BlockMapFault::PastEnd);
        }
        self.next_block = end;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(start_block: u64, blocks: u16) -> ChunkRef {
        ChunkRef { start_block, blocks, id: ChunkId([1; 32]) }
    }

    #[test]
    fn runs_cover_the_volume_without_a_gap() {
        let map = BlockMap::new(10 * 4096 + 1, vec![chunk(2, 3), chunk(5, 1), chunk(8, 3)]).unwrap();
        let runs: Vec<_> = map.runs().collect();
        assert_eq!(
            runs,
            [
                Run::Zero { start_block: 0, blocks: 2 },
                Run::Chunk(chunk(2, 3)),
                Run::Chunk(chunk(5, 1)),
                Run::Zero { start_block: 6, blocks: 2 },
                Run::Chunk(chunk(8, 3)),
            ]
        );
        assert_eq!(map.data_bytes(), 6 * 4096 + 1, "the last block holds one byte");
    }

    #[test]
    fn an_all_zero_volume_is_one_run() {
        let map = BlockMap::new(1, vec![]).unwrap();
        assert_eq!(map.runs().collect::<Vec<_>>(), [Run::Zero { start_block: 0, blocks: 1 }]);
        assert_eq!(map.data_bytes(), 0);
    }

    #[test]
    fn what_is_not_a_map_is_refused() {
        let of = |bytes, chunks| BlockMap::new(bytes, chunks).unwrap_err();
        assert_eq!(of(0, vec![]), BlockMapFault::EmptyVolume);
        assert_eq!(of(u64::MAX, vec![]), BlockMapFault::VolumeTooLarge);
        assert_eq!(of(4096, vec![chunk(0, 0)]), BlockMapFault::Length);
        assert_eq!(of(1 << 30, vec![chunk(0, 257)]), BlockMapFault::Length);
        assert_eq!(of(1 << 30, vec![chunk(4, 2), chunk(5, 1)]), BlockMapFault::Order);
        assert_eq!(of(4096, vec![chunk(0, 2)]), BlockMapFault::PastEnd);
        assert_eq!(of(4096, vec![chunk(u64::MAX, 2)]), BlockMapFault::PastEnd);
    }
}
