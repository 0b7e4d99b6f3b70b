//! Made-up disks of few kinds of blocks, and changes of them: what cutting is compared on.

use super::{Draw, MemoryDisk};
use imgstore::disk::{DiskError, DiskRead, Extent};
use imgstore::model::region::ChunkerParams;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

pub const BLOCK: usize = 4096;

/// A disk that keeps in mind which blocks of it were read, and how many bytes, and is asked before each reading.
pub struct Watched<'a> {
    pub disk: &'a MemoryDisk,
    pub read: Mutex<BTreeSet<usize>>,
    pub read_bytes: AtomicUsize,
    pub then: &'a (dyn Fn(Range<u64>) -> Result<(), DiskError> + Sync),
}

impl<'a> Watched<'a> {
    pub fn new(disk: &'a MemoryDisk) -> Self {
        Self { disk, read: Mutex::default(), read_bytes: AtomicUsize::new(0), then: &|_| Ok(()) }
    }
}

impl DiskRead for Watched<'_> {
    fn len_bytes(&self) -> u64 {
        self.disk.len_bytes()
    }

    fn extent_at(&self, offset: u64) -> Result<Extent, DiskError> {
        self.disk.extent_at(offset)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        (self.then)(offset..offset + buffer.len() as u64)?;
        let first = offset as usize / BLOCK;
        self.read.lock().unwrap().extend(first..first + buffer.len().div_ceil(BLOCK));
        self.read_bytes.fetch_add(buffer.len(), Ordering::Relaxed);
        self.disk.read_at(offset, buffer)
    }
}

/// What a block of a made-up disk holds: 0 is zeros; of the others every third ends in zeros. There are few, so that
/// the same fingerprints come again and stretches have no cut but at the longest length.
pub fn put_block(bytes: &mut [u8], at: usize, kind: u8) {
    let end = bytes.len().min((at + 1) * BLOCK);
    let block = &mut bytes[at * BLOCK..end];
    let mut draw = Draw::new(u64::from(kind) + 1);
    let filled = match kind {
        0 => 0,
        kind if kind % 3 == 0 => block.len().min(1000),
        _ => block.len(),
    };
    block.fill(0);
    block[..filled].iter_mut().for_each(|byte| *byte = draw.next() as u8 | 1);
}

/// Runs of blocks: long and short runs of zeros, of one content, and of many.
pub fn any_kinds() -> impl Strategy<Value = Vec<u8>> {
    let run = prop_oneof![
        3 => (1..12_usize).prop_map(|len| vec![0; len]),
        1 => (12..90_usize).prop_map(|len| vec![0; len]),
        2 => (1..80_usize, 1..9_u8).prop_map(|(len, kind)| vec![kind; len]),
        4 => prop::collection::vec(any::<u8>(), 1..60),
        2 => prop::collection::vec(0..4_u8, 1..40),
    ];
    prop::collection::vec(run, 1..9).prop_map(|runs| runs.concat())
}

/// A change: from a block on, so many blocks, to zeros, one content, or many; and whether only the hint says so.
pub type Edit = (prop::sample::Index, usize, u8, u8, bool);

pub fn any_edits() -> impl Strategy<Value = Vec<Edit>> {
    let edit = (
        any::<prop::sample::Index>(),
        prop_oneof![4 => 1..7_usize, 1 => 16..70_usize],
        0..3_u8,
        any::<u8>(),
        prop::bool::weighted(0.2),
    );
    prop::collection::vec(edit, 0..6)
}

pub fn any_params() -> impl Strategy<Value = ChunkerParams> {
    let of = |min_blocks, avg_blocks, max_blocks, zero_tail_bytes| ChunkerParams {
        min_blocks,
        avg_blocks,
        max_blocks,
        zero_tail_bytes,
    };
    prop_oneof![
        Just(ChunkerParams::DEFAULT),
        Just(of(1, 1, 1, 0)),
        Just(of(1, 2, 3, 0)),
        Just(of(1, 4, 8, 256)),
        Just(of(2, 4, 64, 0)),
        Just(of(4, 200, 256, 256)),
        Just(of(7, 16, 32, 4096)),
    ]
}

/// Makes the edits; gives the blocks that a hint names.
pub fn edit(bytes: &mut [u8], edits: &[Edit]) -> BTreeSet<usize> {
    let blocks = bytes.len().div_ceil(BLOCK);
    let mut named = BTreeSet::new();
    for (at, len, manner, kind, only_said) in edits {
        let at = at.index(blocks);
        for block in at..blocks.min(at + len) {
            named.insert(block);
            match manner {
                _ if *only_said => {}
                0 => put_block(bytes, block, 0),
                1 => put_block(bytes, block, *kind),
                _ => put_block(bytes, block, kind.wrapping_add(block as u8)),
            }
        }
    }
    named
}
