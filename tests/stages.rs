//! Stages of the pipelines when one is late, fails or panics: nothing is out of order, nothing hangs, nothing is made.

mod common;

use common::{Caller, Draw, MemoryDisk, memory_region, small_packs, volume};
use imgstore::disk::{DiskError, DiskRead, DiskWrite, Extent};
use imgstore::io::memory::Memory;
use imgstore::model::catalog::Root;
use imgstore::ops::error::OpsError;
use imgstore::ops::export;
use imgstore::region::Region;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// What a disk or a target does from a certain call on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// Each call takes another time.
    Late,
    FailsToRead,
    FailsToTell,
    Panics,
}

struct Faulty {
    inner: MemoryDisk,
    is_computed: bool,
    fault: Fault,
    /// Calls until it happens.
    good: AtomicUsize,
}

impl Faulty {
    fn new(bytes: &[u8], is_computed: bool, fault: Fault, good: usize) -> Self {
        let inner = MemoryDisk { bytes: bytes.to_vec(), hole_blocks: 17 };
        Self { inner, is_computed, fault, good: AtomicUsize::new(good) }
    }

    fn is_due(&self) -> bool {
        self.good.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |good| good.checked_sub(1)).is_err()
    }
}

fn broken() -> DiskError {
    DiskError::NotADisk { path: "disk".into(), found: "broken" }
}

impl DiskRead for Faulty {
    fn len_bytes(&self) -> u64 {
        self.inner.len_bytes()
    }

    fn is_computed(&self) -> bool {
        self.is_computed
    }

    fn extent_at(&self, offset: u64) -> Result<Extent, DiskError> {
        if self.fault == Fault::FailsToTell && self.is_due() {
            return Err(broken());
        }
        self.inner.extent_at(offset)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        match self.fault {
            Fault::Late => std::thread::sleep(Duration::from_micros(Draw::new(offset).next() % 4000)),
            Fault::FailsToRead if self.is_due() => return Err(broken()),
            Fault::Panics => assert!(!self.is_due(), "a panic that was ordered"),
            _ => {}
        }
        self.inner.read_at(offset, buffer)
    }
}

/// Noise, text and holes, in lengths that fit no piece.
fn disk(len: usize) -> Vec<u8> {
    let mut bytes = volume(len, 5);
    for (hole, place) in [(20, 100), (300, 700), (17, 1300), (90, 1900)] {
        if (place + hole) * 4096 < len {
            bytes[place * 4096..(place + hole) * 4096].fill(0);
        }
    }
    bytes
}

#[test]
fn pieces_that_come_out_of_order_make_the_same_map() {
    let caller = Caller::new(4);
    let region = memory_region(&Memory::new(), &small_packs());
    let bytes = disk((11 << 20) + 777);
    let expected = caller.snapshot(&region, &MemoryDisk::new(bytes.clone())).unwrap().snapshot;
    for is_computed in [false, true] {
        let taken = caller.snapshot(&region, &Faulty::new(&bytes, is_computed, Fault::Late, 0)).unwrap();
        assert_eq!(taken.snapshot.manifest.hash, expected.manifest.hash);
        assert_eq!(taken.ingested.new_chunks, 0);
        let empty = memory_region(&Memory::new(), &small_packs());
        let taken = caller.snapshot(&empty, &Faulty::new(&bytes, is_computed, Fault::Late, 0)).unwrap();
        assert!(caller.read_back(&empty, taken.snapshot.id).unwrap() == bytes);
    }
}

#[test]
fn a_reader_that_fails_or_panics_ends_the_snapshot() {
    let bytes = disk(24 << 20);
    for threads in [1, 4] {
        let caller = Caller::new(threads);
        let region = memory_region(&Memory::new(), &small_packs());
        for is_computed in [false, true] {
            for fault in [Fault::FailsToRead, Fault::FailsToTell, Fault::Panics] {
                // The fifth look at extents is behind the first hole; the 21st read is when buffers are used again.
                let good = if fault == Fault::FailsToTell { 4 } else { 20 };
                let error =
                    caller.snapshot(&region, &Faulty::new(&bytes, is_computed, fault, good)).unwrap_err();
                let is_expected = match fault {
                    Fault::Panics => matches!(error, OpsError::WorkerGone),
                    _ => matches!(error, OpsError::Disk(DiskError::NotADisk { .. })),
                };
                assert!(is_expected, "{fault:?}: {error}");
                assert!(region.catalog().unwrap().snapshots.is_empty());
            }
        }
        // What was stored on the way is found again.
        let taken = caller.snapshot(&region, &MemoryDisk::new(bytes.clone())).unwrap();
        assert!(caller.read_back(&region, taken.snapshot.id).unwrap() == bytes);
    }
}

/// A target that takes so many writes.
struct Target {
    left: usize,
    panics: bool,
}

impl DiskWrite for Target {
    fn write_at(&mut self, _offset: u64, _bytes: &[u8]) -> Result<(), DiskError> {
        match self.left.checked_sub(1) {
            Some(left) => self.left = left,
            None => {
                // The stages before run full meanwhile: who ends them must wake them.
                std::thread::sleep(Duration::from_millis(30));
                assert!(!self.panics, "a panic that was ordered");
                return Err(broken());
            }
        }
        Ok(())
    }

    fn zero_at(&mut self, _offset: u64, _len: u64) -> Result<(), DiskError> {
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<(), DiskError> {
        panic!("what was not written must not be finished");
    }
}

fn export_to(region: &Region, root: &Root<'_>, target: Target, caller: &Caller) -> Result<(), OpsError> {
    let map = export::load(region, root)?;
    export::export(region, root, &map, map.volume_bytes(), None, Box::new(target), &caller.context())
}

#[test]
fn a_target_that_fails_or_panics_ends_the_export() {
    let region = memory_region(&Memory::new(), &small_packs());
    let taken = Caller::new(2).snapshot(&region, &MemoryDisk::new(disk(48 << 20))).unwrap();
    let root = Root::from(&taken.snapshot);
    for (threads, left) in [(1, 0), (4, 0), (1, 3), (4, 3), (1, 17), (4, 17)] {
        let caller = Caller::new(threads);
        let error = export_to(&region, &root, Target { left, panics: false }, &caller).unwrap_err();
        assert!(matches!(error, OpsError::Disk(DiskError::NotADisk { .. })), "{error}");
        let target = Target { left, panics: true };
        catch_unwind(AssertUnwindSafe(|| export_to(&region, &root, target, &caller))).unwrap_err();
    }
}

/// A disk that has another length when it is asked again: what is made is all of it, or nothing.
#[test]
fn a_disk_that_shrinks_unseen_makes_no_short_snapshot() {
    struct Shrinking {
        inner: MemoryDisk,
        asked: AtomicUsize,
        good: usize,
    }
    impl DiskRead for Shrinking {
        fn len_bytes(&self) -> u64 {
            let is_good = self.asked.fetch_add(1, Ordering::SeqCst) < self.good;
            if is_good { self.inner.len_bytes() } else { self.inner.len_bytes() / 2 }
        }

        fn extent_at(&self, offset: u64) -> Result<Extent, DiskError> {
            self.inner.extent_at(offset)
        }

        fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
            self.inner.read_at(offset, buffer)
        }
    }
    let caller = Caller::new(2);
    let bytes = volume(2 << 20, 8);
    let mut refused = 0;
    // One that shrinks before its length is first asked for is taken as it is then.
    for good in 0..3 {
        let region = memory_region(&Memory::new(), &small_packs());
        let inner = MemoryDisk::new(bytes.clone());
        let disk = Shrinking { inner, asked: AtomicUsize::new(0), good };
        match caller.snapshot(&region, &disk) {
            Ok(taken) => {
                let read = caller.read_back(&region, taken.snapshot.id).unwrap();
                let shrunk = bytes.len() as u64 / 2;
                let is_legal = read.len() == bytes.len() || read.len() as u64 == shrunk;
                assert!(is_legal && read == bytes[..read.len()], "after {good}: {} bytes", read.len());
            }
            Err(OpsError::NotWhole { .. }) => refused += 1,
            Err(error) => panic!("after {good}: {error}"),
        }
    }
    assert!(refused > 0);
}
