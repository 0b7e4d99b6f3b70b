//! What several tests share: disks that look like file systems, contexts, regions in memory.
#![allow(dead_code, reason = "every test uses a part of it")]

use imgstore::disk::{DiskError, DiskRead, DiskWrite, Extent};
use imgstore::io::memory::Memory;
use imgstore::model::account::AccountId;
use imgstore::model::ids::{SessionId, SnapshotId};
use imgstore::ops::context::{Context, Unwatched};
use imgstore::ops::error::OpsError;
use imgstore::ops::snapshot::{SnapshotOptions, Taken, snapshot};
use imgstore::ops::{export, find};
use imgstore::region::{Region, RegionOptions};
use rayon::ThreadPool;
use std::sync::{Arc, Mutex};

/// A generator whose draws are the same for the same seed.
#[derive(Clone)]
pub struct Draw(u64);

impl Draw {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 16) as usize % bound.max(1)
    }
}

/// Bytes that look like a file system's: files of words or noise that end in zeros up to the block's end,
/// short and long runs of zeros between them.
pub fn volume(len: usize, seed: u64) -> Vec<u8> {
    let mut draw = Draw::new(seed);
    let mut bytes = Vec::with_capacity(len + (1 << 17));
    while bytes.len() < len {
        match draw.below(10) {
            0 => bytes.resize(bytes.len() + 4096 * (1 + draw.below(3)), 0),
            1 => bytes.resize(bytes.len() + 4096 * (4 + draw.below(60)), 0),
            kind => {
                let file_len = 1 + draw.below(200_000);
                let end = bytes.len() + file_len;
                let mut words = Draw::new(draw.next());
                while bytes.len() < end {
                    let word = words.next();
                    if kind < 4 {
                        bytes.extend(word.to_le_bytes());
                    } else {
                        bytes.extend(WORDS[word as usize % WORDS.len()].as_bytes());
                    }
                }
                bytes.truncate(end);
                bytes.resize(bytes.len().div_ceil(4096) * 4096, 0);
            }
        }
    }
    bytes.truncate(len);
    bytes
}

const WORDS: [&str; 12] = [
    "volume ",
    "snapshot ",
    "image ",
    "region ",
    "chunk ",
    "pack\n",
    "block ",
    "root=/dev/xvda ",
    "#!/bin/sh\n",
    "0x7f454c46 ",
    "GET /index.html 200 ",
    "lib",
];

/// A disk in memory. Its holes are runs of zeros of at least `hole_blocks` blocks.
pub struct MemoryDisk {
    pub bytes: Vec<u8>,
    pub hole_blocks: usize,
}

impl MemoryDisk {
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, hole_blocks: 1 }
    }
}

impl DiskRead for MemoryDisk {
    fn len_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn extent_at(&self, offset: u64) -> Result<Extent, DiskError> {
        let at = offset as usize;
        let is_zero = |block: &[u8]| block.iter().all(|&byte| byte == 0);
        let mut blocks = self.bytes[at..].chunks(4096);
        let zeros = blocks.by_ref().take_while(|block| is_zero(block)).count();
        let len = self.bytes.len();
        if zeros >= self.hole_blocks && self.hole_blocks > 0 {
            return Ok(Extent { start: offset, end: (at + zeros * 4096).min(len) as u64, is_zero: true });
        }
        let data = self.bytes[at..].chunks(4096).skip(zeros).take_while(|block| !is_zero(block)).count();
        Ok(Extent { start: offset, end: (at + (zeros + data.max(1)) * 4096).min(len) as u64, is_zero: false })
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        buffer.copy_from_slice(&self.bytes[offset as usize..offset as usize + buffer.len()]);
        Ok(())
    }
}

/// A target that keeps what it was given. It is filled with `0xAA`, so that what nobody wrote is seen.
#[derive(Clone)]
pub struct MemoryTarget(pub Arc<Mutex<Vec<u8>>>);

impl MemoryTarget {
    pub fn new(len: u64) -> Self {
        Self(Arc::new(Mutex::new(vec![0xaa; len as usize])))
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().clone()
    }
}

impl DiskWrite for MemoryTarget {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.0.lock().unwrap()[offset as usize..offset as usize + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn zero_at(&mut self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.0.lock().unwrap()[offset as usize..(offset + len) as usize].fill(0);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<(), DiskError> {
        Ok(())
    }
}

/// Who asks, and with which means.
pub struct Caller {
    pub account: AccountId,
    pub pool: ThreadPool,
    pub memory_bytes: u64,
}

impl Caller {
    pub fn new(threads: usize) -> Self {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        Self { account: AccountId::from_random(1), pool, memory_bytes: 64 << 20 }
    }

    pub fn context(&self) -> Context<'_> {
        Context {
            account: self.account,
            pool: &self.pool,
            memory_bytes: self.memory_bytes,
            progress: &Unwatched,
        }
    }

    pub fn snapshot(&self, region: &Region, disk: &dyn DiskRead) -> Result<Taken, OpsError> {
        snapshot(region, disk, &SnapshotOptions::default(), &self.context())
    }

    /// The bytes of a snapshot.
    pub fn read_back(&self, region: &Region, id: SnapshotId) -> Result<Vec<u8>, OpsError> {
        let catalog = region.catalog()?;
        let snapshot = find::snapshot(&catalog, self.account, id)?;
        let map = export::load(region, snapshot)?;
        let target = MemoryTarget::new(map.volume_bytes());
        export::export(region, snapshot, &map, Box::new(target.clone()), &self.context())?;
        Ok(target.bytes())
    }
}

/// A session name that is used once.
pub fn session() -> SessionId {
    SessionId(imgstore::io::clock::random_bytes().unwrap())
}

/// Options of a region whose packs are small, so that small disks fill several.
pub fn small_packs() -> RegionOptions {
    RegionOptions { pack_bytes: 64 << 10, ..RegionOptions::named("test") }
}

/// A region in memory.
pub fn memory_region(storage: &Memory, options: &RegionOptions) -> Region {
    Region::create(Arc::new(storage.clone()), session(), options).unwrap()
}
