//! What a chunk resembles: a few numbers that it shares, most likely, with any chunk that it has much content in common
//! with.
//!
//! A rolling hash goes over the bytes, one in [`SAMPLE`] positions is looked at, and each of twelve random linear maps
//! keeps its largest value (Zou et al., "The Dilemma between Deduplication and Locality", 2021: Odess; Shilane et al.,
//! "WAN optimized replication of backup datasets", 2012). Two chunks agree in one feature with about the probability
//! that a sampled position of both is in common. Features only find candidates: what a wrong one costs is an attempt.

use crate::chunk::fingerprint::mix;

/// Features of a chunk.
pub const FEATURES: usize = 12;
/// One in so many positions is looked at.
pub const SAMPLE: u32 = 128;
/// Bits of a feature.
pub const FEATURE_BITS: u32 = 31;

/// The features of a chunk, each below 2^31. Two features are only ever equal if they have the same place.
pub type Features = [u32; FEATURES];

/// Bytes that a rolling hash depends on.
const WINDOW: usize = 64;
/// Seven bits, none of which depends on the last 16 bytes only.
const SAMPLE_MASK: u64 = 0x0000_4103_4140_0000;
const _: () = assert!(1 << SAMPLE_MASK.count_ones() == SAMPLE);
/// Slices of a chunk that are hashed side by side, so that no step waits for the one before.
const LANES: usize = 4;

const GEAR: [u64; 256] = numbers(0x6765_6172);
const FACTORS: [u64; FEATURES] = numbers(0x6661_6374);
const TERMS: [u64; FEATURES] = numbers(0x7465_726d);

/// SplitMix64 from a seed.
const fn numbers<const N: usize>(seed: u64) -> [u64; N] {
    let mut numbers = [0; N];
    let mut at = 0;
    let mut state = seed;
    while at < N {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = state;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        numbers[at] = value ^ (value >> 31);
        at += 1;
    }
    numbers
}

/// The features of a chunk's raw bytes; none if no position was sampled, as in a chunk of one repeated byte.
pub fn features(raw: &[u8]) -> Option<Features> {
    let mut sampled = Sampled { largest: [0; FEATURES], is_any: false };
    let lane = raw.len() / LANES;
    if lane < WINDOW {
        return None;
    }
    let slices: [&[u8]; LANES] = std::array::from_fn(|n| &raw[n * lane..(n + 1) * lane]);
    // A lane goes on where the one before ends, so it begins with the hash that that ends with.
    let [mut p, mut q, mut r, mut s]: [u64; LANES] = std::array::from_fn(|n| {
        let before = &raw[(n * lane).saturating_sub(WINDOW)..n * lane];
        before.iter().fold(0, |hash, &byte| roll(hash, byte))
    });
    let [first, second, third, fourth] = slices;
    for (((&a, &b), &c), &d) in first.iter().zip(second).zip(third).zip(fourth) {
        (p, q, r, s) = (roll(p, a), roll(q, b), roll(r, c), roll(s, d));
        // One by one: a loop over them keeps them in memory, which takes twice as long.
        sampled.look_at(p);
        sampled.look_at(q);
        sampled.look_at(r);
        sampled.look_at(s);
    }
    sampled.finish()
}

fn roll(hash: u64, byte: u8) -> u64 {
    (hash << 1).wrapping_add(GEAR[usize::from(byte)])
}

struct Sampled {
    largest: Features,
    is_any: bool,
}

impl Sampled {
    #[inline]
    fn look_at(&mut self, hash: u64) {
        if hash & SAMPLE_MASK == 0 {
            self.take(hash);
        }
    }

    #[cold]
    fn take(&mut self, hash: u64) {
        self.is_any = true;
        for (largest, (factor, term)) in self.largest.iter_mut().zip(FACTORS.iter().zip(TERMS)) {
            let value = hash.wrapping_mul(*factor).wrapping_add(term);
            *largest = (*largest).max((value >> 32) as u32);
        }
    }

    fn finish(self) -> Option<Features> {
        // The largest of many values lies near the top of their range: mixed, they spread over all of it.
        let spread =
            |(place, value): (u64, u32)| (mix(place << 32 | u64::from(value)) >> (64 - FEATURE_BITS)) as u32;
        self.is_any.then(|| {
            let mut places = 0..;
            self.largest.map(|value| spread((places.next().unwrap_or(0), value)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::units::BLOCK_BYTES;

    fn noise(blocks: usize, seed: u64) -> Vec<u8> {
        let mut state = seed;
        std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        })
        .take(blocks * BLOCK_BYTES)
        .collect()
    }

    fn common(a: &[u8], b: &[u8]) -> usize {
        let (a, b) = (features(a).unwrap(), features(b).unwrap());
        a.iter().zip(b).filter(|(a, b)| **a == *b).count()
    }

    #[test]
    fn similar_chunks_share_features_and_others_do_not() {
        let raw = noise(16, 1);
        let mut changed = raw.clone();
        changed[20_000..22_000].copy_from_slice(&noise(1, 2)[..2000]);
        let moved = [&noise(1, 3)[..700], &raw[..raw.len() - 700]].concat();
        assert!(common(&raw, &changed) >= 8, "{}", common(&raw, &changed));
        assert!(common(&raw, &moved) >= 8, "{}", common(&raw, &moved));
        assert!((4..200).all(|seed| common(&raw, &noise(16, seed)) == 0));
    }

    #[test]
    fn a_quarter_in_common_is_mostly_found() {
        let found = (0..100).filter(|&n| {
            let (a, b) = (noise(8, 2 * n + 1), noise(8, 1000 + n));
            let mixed = [&b[..6 * BLOCK_BYTES], &a[..2 * BLOCK_BYTES]].concat();
            common(&a, &mixed) > 0
        });
        assert!(found.count() > 60);
    }

    #[test]
    fn what_is_uniform_has_no_features_or_one_sample() {
        // A byte whose hash is never sampled has none; whatever is sampled is the same everywhere.
        for byte in 0..=255 {
            assert_eq!(features(&[byte; BLOCK_BYTES]), features(&vec![byte; 5 * BLOCK_BYTES]), "{byte}");
        }
        assert_eq!(features(&[]), None);
    }

    #[test]
    fn lanes_give_what_one_pass_gives() {
        let raw = noise(5, 7);
        let mut sampled = Sampled { largest: [0; FEATURES], is_any: false };
        let mut hash = 0;
        for &byte in &raw {
            hash = roll(hash, byte);
            sampled.look_at(hash);
        }
        assert_eq!(features(&raw), sampled.finish());
        assert!(features(&raw).unwrap().iter().all(|feature| *feature < 1 << FEATURE_BITS));
    }
}
