//! References gathered while manifests and trailers are read, of which each is kept once.

use rayon::prelude::*;

/// References that are gathered before those that were seen twice are dropped.
const GATHERED_MIN: usize = 1 << 20;

/// Sorts and drops what occurs twice.
pub(super) fn settle(gathered: &mut Vec<u64>) {
    gathered.par_sort_unstable();
    gathered.dedup();
}

/// Chunk references. What occurs twice is dropped whenever there may be twice as many as there need be.
pub(super) struct Gathered {
    references: Vec<u64>,
    /// How many there may be before they are settled.
    limit: usize,
}

impl Gathered {
    pub(super) fn new() -> Self {
        Self { references: Vec::new(), limit: GATHERED_MIN }
    }

    pub(super) fn add(&mut self, references: impl Iterator<Item = u64>) {
        self.references.extend(references);
        if self.references.len() > self.limit {
            settle(&mut self.references);
            self.limit = self.limit.max(self.references.len() * 2);
        }
    }

    /// Ascending, each once.
    pub(super) fn into_settled(mut self) -> Vec<u64> {
        settle(&mut self.references);
        self.references
    }
}

#[cfg(test)]
mod tests {
    use super::Gathered;

    #[test]
    fn what_is_gathered_twice_is_dropped_in_time() {
        let mut gathered = Gathered { references: vec![], limit: 8 };
        for _ in 0..100 {
            gathered.add(0..5);
            assert!(gathered.references.len() <= 13);
        }
    }

    #[test]
    fn what_all_differs_is_sorted_a_few_times_only() {
        let (mut gathered, mut limits) = (Gathered { references: vec![], limit: 8 }, vec![8]);
        for number in 0..1000 {
            gathered.add([number].into_iter());
            limits.push(gathered.limit);
        }
        limits.dedup();
        assert!(limits.len() < 10, "{limits:?}");
        assert_eq!(gathered.references.len(), 1000);
    }
}
