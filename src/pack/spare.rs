//! Memory that is used again for the next read. Fresh memory must be found, zeroed and mapped first, on a virtual machine even
//! by its host: of what reading stored frames cost that was most.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

/// Pieces of memory that wait at most.
const WAITING_MAX: usize = 16;
/// Longer pieces are given back to the system.
const WAITING_BYTES_MAX: usize = 2 << 20;
/// A piece is not used for much less than it has: what is asked for in little pieces must not hold large ones.
const LONGER_MAX: usize = 4;

/// Memory that waits to be used again.
#[derive(Debug, Default)]
pub struct Spare(Mutex<Vec<Vec<u8>>>);

/// Bytes in memory that goes back when they are dropped.
#[derive(Debug)]
pub struct Bytes {
    memory: Vec<u8>,
    len: usize,
    home: Arc<Spare>,
}

impl Spare {
    /// So many bytes, whose values are unspecified.
    pub fn take(self: &Arc<Self>, len: usize) -> Bytes {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |memory: &Vec<u8>| (len..=LONGER_MAX * len).contains(&memory.len());
        let fitting = (0..waiting.len()).rev().filter(|&at| fits(&waiting[at]));
        let memory = match fitting.min_by_key(|&at| waiting[at].len()) {
            Some(at) => waiting.remove(at),
            None => {
                if waiting.len() == WAITING_MAX {
                    // What has not been fitting for longest makes room for this.
                    waiting.remove(0);
                }
                drop(waiting);
                vec![0; len]
            }
        };
        Bytes { memory, len, home: self.clone() }
    }
}

impl Bytes {
    /// Bytes of memory that it takes: those that are in it, and those that fit.
    pub fn memory_bytes(&self) -> usize {
        self.memory.len()
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[..self.len]
    }
}

impl DerefMut for Bytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[..self.len]
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        let mut waiting = self.home.0.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() < WAITING_MAX && self.memory.len() <= WAITING_BYTES_MAX {
            waiting.push(std::mem::take(&mut self.memory));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again_and_no_more_waits_than_may() {
        let spare = Arc::new(Spare::default());
        let (mut one, two) = (spare.take(100), spare.take(50));
        one.fill(7);
        let place = one.as_ptr();
        drop((two, one));
        let again = spare.take(60);
        assert!(again.len() == 60 && again.as_ptr() == place, "what fits is used again");
        assert_eq!(spare.take(1000).len(), 1000);
        assert_eq!(spare.0.lock().unwrap().len(), 2, "what is too short is left");
        assert_eq!(spare.take(10).memory.len(), 10, "what is much longer, too");
        drop((0..WAITING_MAX + 5).map(|_| spare.take(10)).collect::<Vec<_>>());
        assert_eq!(spare.0.lock().unwrap().len(), WAITING_MAX);
        drop(spare.take(WAITING_BYTES_MAX + 1));
        assert_eq!(
            spare.0.lock().unwrap().len(),
            WAITING_MAX - 1,
            "one made room, the long one does not wait"
        );
    }
}
