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

/// Most chunk references of one block map: about 6 TB of data. A map is held in memory, 48 bytes each.
pub const MAP_CHUNKS_MAX: usize = 1 << 27;

/// Largest volume that an image may ask for: 64 TiB, as in EC2.
pub const VOLUME_BYTES_MAX: u64 = 64 << 40;

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

const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// A number of bytes for people: `1.5 GiB`.
#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
pub fn display_bytes(count: u64) -> String {
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_read_well() {
        assert_eq!(display_bytes(0), "0 B");
        assert_eq!(display_bytes(1023), "1023 B");
        assert_eq!(display_bytes(1024), "1.0 KiB");
        assert_eq!(display_bytes((1 << 20) - 1), "1.0 MiB");
        assert_eq!(display_bytes(u64::MAX), "16.0 EiB");
    }
}
