//! What the chunker sees of a block: is it zero, does it end in zeros, and a 64-bit fingerprint.
//!
//! The fingerprint decides where chunks end, so it is part of the format (docs/FORMAT.md, "Chunking"): two
//! regions deduplicate with each other only if both compute it alike. It is no hash for identity.

use crate::model::units::BLOCK_BYTES;

/// What the chunker knows of one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockFacts {
    /// Fingerprint of the whole block; 0 for a zero block.
    pub fingerprint: u64,
    /// Every byte is zero.
    pub is_zero: bool,
    /// The last `zero_tail_bytes` bytes are zero.
    pub has_zero_tail: bool,
}

/// Odd, and without structure: 2^64 divided by the golden ratio.
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
/// Independent lanes, so that the multiplications overlap.
const LANES: usize = 8;

/// The facts of `block`, which is [`BLOCK_BYTES`] long.
pub fn block_facts(block: &[u8], zero_tail_bytes: u16) -> BlockFacts {
    debug_assert_eq!(block.len(), BLOCK_BYTES);
    let tail = usize::from(zero_tail_bytes);
    let has_zero_tail = tail > 0 && is_zero(&block[BLOCK_BYTES - tail..]);
    if (has_zero_tail || tail == 0) && is_zero(block) {
        return BlockFacts { fingerprint: 0, is_zero: true, has_zero_tail };
    }
    BlockFacts { fingerprint: fingerprint(block), is_zero: false, has_zero_tail }
}

/// Whether every byte is zero; stops at the first that is not.
pub fn is_zero(bytes: &[u8]) -> bool {
    let mut stripes = bytes.chunks_exact(64);
    stripes.all(|stripe| stripe.iter().fold(0, |seen, byte| seen | byte) == 0)
        && bytes[bytes.len() - bytes.len() % 64..].iter().all(|&byte| byte == 0)
}

/// Eight lanes over the block's little-endian words: lane `i` takes words `i`, `i + 8`, …, each step
/// `lane = (lane XOR word) * M`, rotated by 29; then the lanes are folded and mixed.
fn fingerprint(block: &[u8]) -> u64 {
    let mut lanes = [0u64; LANES];
    for (lane, seed) in lanes.iter_mut().zip(1..) {
        *lane = MULTIPLIER.wrapping_mul(seed);
    }
    for stripe in block.chunks_exact(8 * LANES) {
        for (lane, word) in lanes.iter_mut().zip(stripe.chunks_exact(8)) {
            let word = u64::from_le_bytes(word.try_into().unwrap_or_default());
            *lane = (*lane ^ word).wrapping_mul(MULTIPLIER).rotate_left(29);
        }
    }
    lanes.into_iter().fold(0, |folded, lane| mix(folded ^ lane))
}

/// A bijection after which every output bit depends on every input bit (the finaliser of MurmurHash3).
pub(crate) fn mix(mut value: u64) -> u64 {
    value ^= value >> 33;
    value = value.wrapping_mul(0xff51_afd7_ed55_8ccd);
    value ^= value >> 33;
    value = value.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    value ^ value >> 33
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_every_byte() {
        for len in [0, 1, 63, 64, 65, 4096] {
            let mut bytes = vec![0; len];
            assert!(is_zero(&bytes));
            for at in 0..len {
                bytes[at] = 1;
                assert!(!is_zero(&bytes), "byte {at} of {len}");
                bytes[at] = 0;
            }
        }
    }

    #[test]
    fn facts_tell_zero_blocks_and_zero_tails_apart() {
        let mut block = vec![0; BLOCK_BYTES];
        assert!(block_facts(&block, 32).is_zero);
        assert!(block_facts(&block, 0).is_zero && !block_facts(&block, 0).has_zero_tail);
        block[0] = 1;
        let facts = block_facts(&block, 32);
        assert!(!facts.is_zero && facts.has_zero_tail);
        block[BLOCK_BYTES - 32] = 1;
        assert!(!block_facts(&block, 32).has_zero_tail);
    }

    #[test]
    fn every_byte_of_a_block_changes_its_fingerprint() {
        let mut block: Vec<u8> = (0..BLOCK_BYTES).map(|i| (i * 7 % 251) as u8).collect();
        let before = fingerprint(&block);
        for at in 0..BLOCK_BYTES {
            block[at] ^= 0x80;
            assert_ne!(fingerprint(&block), before, "byte {at}");
            block[at] ^= 0x80;
        }
    }

    #[test]
    fn the_fingerprint_is_the_formats() {
        // Golden, computed by an independent implementation in Python: a change of these values makes regions stop deduplicating with older ones.
        let counting: Vec<u8> = (0..BLOCK_BYTES).map(|i| (i % 256) as u8).collect();
        assert_eq!(fingerprint(&counting), GOLDEN_COUNTING);
        assert_eq!(fingerprint(&[0xff; BLOCK_BYTES]), GOLDEN_ONES);
    }

    const GOLDEN_COUNTING: u64 = 0x2ce9_12f2_bbde_3184;
    const GOLDEN_ONES: u64 = 0x4380_f43e_62f0_07aa;
}
