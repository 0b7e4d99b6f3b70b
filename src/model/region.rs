//! What a region says of itself.

use super::account::AccountId;
use super::ids::RegionId;
use super::units::{CHUNK_BLOCKS_MAX, TimeMs};
use serde::{Deserialize, Serialize};

/// Where the chunker cuts, in blocks. Regions with equal parameters deduplicate with each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkerParams {
    /// No cut before so many blocks, except where a zero run or the volume ends.
    pub min_blocks: u16,
    /// A fingerprint cuts after a block with a chance of one in so many.
    pub avg_blocks: u16,
    /// Always a cut after so many blocks.
    pub max_blocks: u16,
    /// A block whose last so many bytes are zero is taken for the end of a file and cut after.
    /// 0 switches that off.
    pub zero_tail_bytes: u16,
}

impl ChunkerParams {
    /// The parameters of new regions; measured in docs/LAYOUT.md.
    pub const DEFAULT: Self = Self { min_blocks: 4, avg_blocks: 32, max_blocks: 64, zero_tail_bytes: 256 };

    /// Whether these can be cut with: 1 <= min <= avg <= max <= 256 blocks, a tail within a block.
    pub const fn is_valid(&self) -> bool {
        self.min_blocks >= 1
            && self.min_blocks <= self.avg_blocks
            && self.avg_blocks <= self.max_blocks
            && self.max_blocks <= CHUNK_BLOCKS_MAX
            && self.zero_tail_bytes as usize <= super::units::BLOCK_BYTES
    }
}

/// The region's own file: written once when the region is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionHeader {
    /// Identity, drawn at creation.
    pub id: RegionId,
    /// The name it was given at creation; a home may know it by another.
    pub name: String,
    /// The account that made it: its *provider*, which alone gives accounts their aliases.
    pub provider: AccountId,
    /// When it was made.
    pub created_ms: TimeMs,
    /// Where its chunker cuts.
    pub chunker: ChunkerParams,
    /// Default zstd level for new frames, 1 to 12.
    pub zstd_level: u8,
    /// Bytes from which on a pack is sealed.
    pub pack_bytes: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_out_of_order_or_over_the_limit_are_invalid() {
        let good = ChunkerParams::DEFAULT;
        assert!(good.is_valid());
        assert!(!ChunkerParams { min_blocks: 0, ..good }.is_valid());
        assert!(!ChunkerParams { avg_blocks: 2, ..good }.is_valid());
        assert!(!ChunkerParams { max_blocks: 16, ..good }.is_valid());
        assert!(!ChunkerParams { max_blocks: 257, ..good }.is_valid());
        assert!(!ChunkerParams { zero_tail_bytes: 4097, ..good }.is_valid());
    }
}
