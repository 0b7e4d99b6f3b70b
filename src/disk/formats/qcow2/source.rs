//! The file that a qcow2 disk lies in: bounded reads, refusals, and what is remembered of it.

use crate::disk::formats::refused;
use crate::io::disk::{DiskError, DiskRead};
use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// What to do with a file that contradicts itself.
pub(super) const DAMAGED: &str =
    "copy it here again, or if it was damaged at its origin mend it there with `qemu-img check -r all`";

/// The file's bytes.
pub(super) struct Source {
    pub(super) file: Arc<dyn DiskRead>,
    pub(super) path: PathBuf,
    /// The file's length when it was opened.
    pub(super) bytes: u64,
}

impl Source {
    pub(super) fn refused(&self, why: impl Into<String>, cure: &'static str) -> DiskError {
        refused(&self.path, "qcow2", why, cure)
    }

    pub(super) fn damaged(&self, why: impl Into<String>) -> DiskError {
        self.refused(why, DAMAGED)
    }

    /// Fills a buffer from the file; past the file's end are zeros.
    pub(super) fn read(&self, host: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        let there = usize::try_from(self.bytes.saturating_sub(host)).unwrap_or(usize::MAX);
        let (inside, past) = buffer.split_at_mut(there.min(buffer.len()));
        past.fill(0);
        if inside.is_empty() { Ok(()) } else { self.file.read_at(host, inside) }
    }
}

/// The big-endian number that a field holds; `field` must lie inside `bytes`, else it is zero.
pub(super) fn be32(bytes: &[u8], field: usize) -> u32 {
    bytes.get(field..).and_then(|rest| rest.first_chunk()).map_or(0, |&word| u32::from_be_bytes(word))
}

/// As [`be32`], of eight bytes.
pub(super) fn be64(bytes: &[u8], field: usize) -> u64 {
    bytes.get(field..).and_then(|rest| rest.first_chunk()).map_or(0, |&word| u64::from_be_bytes(word))
}

/// The last few things that were read or decoded. Its lock is held to look up and to put in, and no longer.
pub(super) struct Cache<T: ?Sized> {
    kept: Mutex<Kept<T>>,
    max: usize,
}

struct Kept<T: ?Sized> {
    by_key: HashMap<u64, Arc<T>>,
    /// The keys, the newest last.
    order: VecDeque<u64>,
}

impl<T: ?Sized> Cache<T> {
    /// A cache of so many things, of one at least.
    pub(super) fn new(max: usize) -> Self {
        let kept = Kept { by_key: HashMap::new(), order: VecDeque::new() };
        Self { kept: Mutex::new(kept), max: max.max(1) }
    }

    pub(super) fn get(&self, key: u64) -> Option<Arc<T>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.by_key.get(&key).cloned()
    }

    pub(super) fn put(&self, key: u64, value: Arc<T>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.by_key.insert(key, value).is_some() {
            return;
        }
        kept.order.push_back(key);
        if kept.order.len() > self.max
            && let Some(oldest) = kept.order.pop_front()
        {
            kept.by_key.remove(&oldest);
        }
    }
}
