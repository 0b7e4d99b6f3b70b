//! Tables by names and ids, quickly: ids are hashes, and names are random and counted, so their words need little mixing.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

/// A set of names or ids.
pub type QuickSet<K> = HashSet<K, BuildHasherDefault<QuickHasher>>;
/// A map by names or ids.
pub type QuickMap<K, V> = HashMap<K, V, BuildHasherDefault<QuickHasher>>;

/// A multiplication for each word of eight bytes.
#[derive(Debug, Clone, Copy, Default)]
pub struct QuickHasher(u64);

impl Hasher for QuickHasher {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        words.iter().for_each(|word| self.write_u64(u64::from_le_bytes(*word)));
        rest.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }

    fn finish(&self) -> u64 {
        // A table takes its bucket from the low bits, which are mixed least.
        self.0 ^ (self.0 >> 32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ids::SessionId;
    use crate::model::objects::PackName;
    use std::hash::Hash;

    #[test]
    fn names_that_count_up_spread() {
        let mut buckets = vec![0; 1 << 12];
        for (session, number) in (0..8_u8).flat_map(|session| (0..512).map(move |number| (session, number))) {
            let mut hasher = QuickHasher::default();
            PackName { session: SessionId([session; 16]), number }.hash(&mut hasher);
            buckets[hasher.finish() as usize % (1 << 12)] += 1;
        }
        let most = buckets.iter().max().copied();
        assert!(most < Some(9), "{most:?} of 4096 in one of 4096 buckets");
    }
}
