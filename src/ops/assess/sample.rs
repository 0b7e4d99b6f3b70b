//! A bounded sample of different things: exact while they are few.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// Things by key, at most so many: beyond that only those whose keys end in so many zero bits, which is as good as chance.
pub(super) struct Sample<T> {
    kept: HashMap<u64, T>,
    most: usize,
    /// Zero bits that a key must end in.
    bits: u32,
}

impl<T> Sample<T> {
    pub(super) fn new(most: usize) -> Self {
        Self { kept: HashMap::new(), most, bits: 0 }
    }

    /// One in so many is kept.
    pub(super) fn one_in(&self) -> u64 {
        1 << self.bits
    }

    pub(super) fn wants(&self, key: u64) -> bool {
        key.trailing_zeros() >= self.bits
    }

    pub(super) fn get(&self, key: u64) -> Option<&T> {
        self.kept.get(&key)
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &T> {
        self.kept.values()
    }

    /// The thing with this key, made if it is new, and whether it is. Only for a key that is wanted.
    pub(super) fn entry(&mut self, key: u64, make: impl FnOnce() -> T) -> (&mut T, bool) {
        while self.kept.len() >= self.most && !self.kept.contains_key(&key) {
            self.bits += 1;
            let bits = self.bits;
            self.kept.retain(|key, _| key.trailing_zeros() >= bits);
        }
        match self.kept.entry(key) {
            Entry::Occupied(known) => (known.into_mut(), false),
            Entry::Vacant(new) => (new.insert(make()), true),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A number that looks like any other.
    fn key(number: u64) -> u64 {
        let hash = blake3::hash(&number.to_le_bytes());
        hash.as_bytes().iter().take(8).fold(0, |key, byte| key << 8 | u64::from(*byte))
    }

    #[test]
    fn few_are_counted_and_many_are_estimated() {
        for (count, exact) in [(900_u64, true), (100_000, false)] {
            let mut sample = Sample::new(1000);
            for number in (0..count).chain(0..count) {
                let key = key(number);
                if sample.wants(key) {
                    sample.entry(key, || 1_u64);
                }
            }
            assert!(sample.kept.len() <= 1000);
            let estimate = sample.values().sum::<u64>() * sample.one_in();
            let off = estimate.abs_diff(count);
            assert!(if exact { off == 0 } else { off < count / 8 }, "{estimate} of {count}");
        }
    }
}
