//! The last things that were read, so that the next read need not read them again.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

/// At most so many things by number; the oldest goes first. The lock is held for a look-up alone: two who
/// miss the same thing both read it.
pub(super) struct Cache<T> {
    most: usize,
    kept: Mutex<Kept<T>>,
}

struct Kept<T> {
    things: HashMap<u64, Arc<T>>,
    order: VecDeque<u64>,
}

impl<T> Cache<T> {
    /// A cache of at least one thing.
    pub(super) fn new(most: u64) -> Self {
        let most = usize::try_from(most).unwrap_or(usize::MAX).max(1);
        Self { most, kept: Mutex::new(Kept { things: HashMap::new(), order: VecDeque::new() }) }
    }

    pub(super) fn get(&self, number: u64) -> Option<Arc<T>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.things.get(&number).cloned()
    }

    pub(super) fn put(&self, number: u64, thing: Arc<T>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.things.insert(number, thing).is_some() {
            return;
        }
        kept.order.push_back(number);
        if kept.order.len() > self.most
            && let Some(oldest) = kept.order.pop_front()
        {
            kept.things.remove(&oldest);
        }
    }
}
