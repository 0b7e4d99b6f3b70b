//! Which pages were checked: a bit each, set by whoever checked it first, read by everybody without a lock.
//!
//! The only lock-free state in the program that more than one bit of must stay right; `tests/lock_free.rs` runs it in
//! all interleavings. `atomic` is the standard library's module here and loom's there.

use super::atomic::{AtomicU64, Ordering};

/// A bit for each page.
#[derive(Debug)]
pub struct Checked(Vec<AtomicU64>);

impl Checked {
    /// For so many pages, none of which was checked.
    pub fn none_of(pages: u32) -> Self {
        Self(std::iter::repeat_with(|| AtomicU64::new(0)).take(pages.div_ceil(64) as usize).collect())
    }

    /// Whether somebody checked a page and found it good. If not, the caller checks it: twice is no harm.
    pub fn has(&self, page: u32) -> bool {
        let (word, bit) = place(page);
        // What the page holds never changes, so nothing need be ordered after the bit.
        self.0.get(word).is_some_and(|word| word.load(Ordering::Relaxed) & bit != 0)
    }

    /// A page is good.
    pub fn set(&self, page: u32) {
        let (word, bit) = place(page);
        if let Some(word) = self.0.get(word) {
            word.fetch_or(bit, Ordering::Relaxed);
        }
    }
}

const fn place(page: u32) -> (usize, u64) {
    (page as usize / 64, 1 << (page % 64))
}
