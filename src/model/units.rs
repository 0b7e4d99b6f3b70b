//! Units: blocks and their arithmetic. A *block* is a position in a volume, a *chunk* is content.

/// Bytes in a block, the unit of positions inside the store.
pub const BLOCK_BYTES: usize = 4096;

/// Blocks in the largest chunk that any region may cut (1 MiB). A limit of the format.
pub const CHUNK_BLOCKS_MAX: u16 = 256;

/// Zero blocks in a row from which on they are a *zero run*: neither stored nor named by a manifest.
/// Shorter runs are content. A constant of the format.
pub const ZERO_RUN_BLOCKS_MIN: u64 = 4;

/// Largest volume: 2^48 blocks of 4 KiB, because a manifest entry has 48 bits for a position.
pub const VOLUME_BLOCKS_MAX: u64 = 1 << 48;

/// Blocks that hold `bytes` bytes; the last one may be partly filled.
pub const fn blocks_for_bytes(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK_BYTES as u64)
}

/// Byte offset at which block `block` starts.
pub const fn block_offset(block: u64) -> u64 {
    block * BLOCK_BYTES as u64
}

/// A time: milliseconds since 1970-01-01T00:00:00Z.
pub type TimeMs = u64;
