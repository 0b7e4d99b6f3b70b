//! Which mutant is on, and which places were reached: woven in by tests/measure/mutants.
#![allow(missing_docs)]

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

const MUTANTS: usize = 0;
const UNKNOWN: u32 = u32::MAX;
const NOTING: u32 = u32::MAX - 1;
const NONE: u32 = u32::MAX - 2;

static ACTIVE: AtomicU32 = AtomicU32::new(UNKNOWN);
static SEEN: [AtomicBool; MUTANTS] = [const { AtomicBool::new(false) }; MUTANTS];
static NOTES: OnceLock<File> = OnceLock::new();

/// Which of a place's mutants is on, counted from `first`; a large number is none.
#[inline]
pub fn at(first: u32) -> u32 {
    let active = ACTIVE.load(Relaxed);
    if active >= NOTING { slow(first, active) } else { active.wrapping_sub(first) }
}

#[cold]
fn slow(first: u32, mut active: u32) -> u32 {
    if active == UNKNOWN {
        active = begin();
        ACTIVE.store(active, Relaxed);
    }
    if active < NOTING {
        return active.wrapping_sub(first);
    }
    // A process may be killed at any time, so each place is noted at once.
    if !SEEN[first as usize].swap(true, Relaxed)
        && let Some(notes) = NOTES.get()
    {
        let _ = notes.write_all_at(b"x", u64::from(first));
    }
    NONE
}

fn begin() -> u32 {
    if let Some(folder) = std::env::var_os("IMGSTORE_MUTANTS_SEEN") {
        let name = std::path::Path::new(&folder).join(std::process::id().to_string());
        if let Ok(file) = OpenOptions::new().write(true).create(true).truncate(false).open(name) {
            let _ = NOTES.set(file);
        }
        return NOTING;
    }
    let id = std::env::var("IMGSTORE_MUTANT").ok();
    id.and_then(|id| id.parse().ok()).unwrap_or(NONE)
}

/// Either of two iterators, for functions that return one without a name.
pub enum Either<L, R> {
    Left(L),
    Right(R),
}

impl<T, L: Iterator<Item = T>, R: Iterator<Item = T>> Iterator for Either<L, R> {
    type Item = T;
    fn next(&mut self) -> Option<T> {
        match self {
            Self::Left(left) => left.next(),
            Self::Right(right) => right.next(),
        }
    }
}
