//! What the writers of qcow2 and VMDK share: ascending writes become whole units of the disk, without those that
//! are zeros, and units are compressed side by side.

use crate::disk::is_zero;
use crate::io::disk::DiskError;
use rayon::ThreadPool;
use rayon::prelude::*;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Bytes of a unit: a cluster, or a grain.
pub(super) const UNIT_BYTES: usize = 64 << 10;
/// Units from which on they are handed over, so that every thread has some.
const BATCH_MIN: usize = 64;
/// Units of one write that are handed over at once, besides those that are held.
const DIRECT_MAX: usize = 128;

/// A unit that is not all zeros.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unit<'a> {
    /// Units before it on the disk.
    pub(super) number: u64,
    /// [`UNIT_BYTES`] of them; past the disk's end they are zeros.
    pub(super) bytes: &'a [u8],
}

/// Who takes batches of units, numbers ascending, never none.
pub(super) type Sink<'s> = &'s mut dyn FnMut(&[Unit<'_>]) -> Result<(), DiskError>;

/// Makes units of writes. What was never written is zeros.
pub(super) struct Units {
    path: PathBuf,
    disk_bytes: u64,
    /// Where the last write ended.
    position: u64,
    /// Whole units, and behind them the bytes before `position` of the unit that it is in, if that has any
    /// that were written.
    held: Vec<u8>,
    /// The numbers of the whole units held.
    numbers: Vec<u64>,
    /// After a failure something is missing, which would read as zeros.
    is_failed: bool,
}

impl Units {
    /// The units of a disk of so many bytes.
    pub(super) fn new(path: &Path, disk_bytes: u64) -> Self {
        let (held, numbers) = (Vec::new(), Vec::new());
        Self { path: path.to_owned(), disk_bytes, position: 0, held, numbers, is_failed: false }
    }

    /// Takes bytes of the disk. Large writes are handed over without being copied.
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8], sink: Sink<'_>) -> Result<(), DiskError> {
        self.check(offset, bytes.len() as u64)?;
        self.pass(offset, sink)?;
        let mut rest = bytes;
        while !rest.is_empty() {
            let whole = rest.len() / UNIT_BYTES;
            let within = part_of_unit(self.position);
            if within == 0 && self.numbers.len() + whole >= BATCH_MIN {
                let (units, after) = rest.split_at(whole.min(DIRECT_MAX) * UNIT_BYTES);
                self.hand_over(units, sink)?;
                self.position += units.len() as u64;
                rest = after;
                continue;
            }
            let (piece, after) = rest.split_at(rest.len().min(UNIT_BYTES - within));
            if self.part_bytes() == 0 {
                self.held.resize(self.held.len() + within, 0);
            }
            self.held.extend_from_slice(piece);
            self.advance(piece.len() as u64, sink)?;
            rest = after;
        }
        Ok(())
    }

    /// Takes a range of zeros, however long.
    pub(super) fn zero(&mut self, offset: u64, len: u64, sink: Sink<'_>) -> Result<(), DiskError> {
        let end = self.check(offset, len)?;
        self.pass(end, sink)
    }

    /// Hands over what is left.
    pub(super) fn finish(&mut self, sink: Sink<'_>) -> Result<(), DiskError> {
        let end = self.check(self.disk_bytes, 0)?;
        self.pass(end, sink)?;
        let part = self.part_bytes();
        if part > 0 {
            self.held.resize(self.held.len() + UNIT_BYTES - part, 0);
            self.settle(end / UNIT_BYTES as u64);
        }
        if self.numbers.is_empty() { Ok(()) } else { self.hand_over(&[], sink) }
    }

    /// Where a range ends that may be written now.
    fn check(&self, offset: u64, len: u64) -> Result<u64, DiskError> {
        let end = offset.checked_add(len).filter(|&end| end <= self.disk_bytes);
        let wrong = |why: &str| DiskError::Io {
            action: "write",
            path: self.path.clone(),
            offset,
            source: io::Error::other(why),
        };
        match end {
            _ if self.is_failed => Err(wrong("an earlier write failed")),
            Some(end) if offset >= self.position => Ok(end),
            Some(_) => Err(wrong("it was passed already")),
            None => Err(wrong("it is outside the disk")),
        }
    }

    /// Bytes held of the unit that is being filled.
    fn part_bytes(&self) -> usize {
        self.held.len() % UNIT_BYTES
    }

    /// Goes on to `offset`; the bytes up to it are zeros.
    fn pass(&mut self, offset: u64, sink: Sink<'_>) -> Result<(), DiskError> {
        let part = self.part_bytes();
        let gap = offset.saturating_sub(self.position);
        if part > 0 && gap > 0 {
            let zeros = usize::try_from(gap).unwrap_or(usize::MAX).min(UNIT_BYTES - part);
            self.held.resize(self.held.len() + zeros, 0);
            self.advance(zeros as u64, sink)?;
        }
        self.position = offset.max(self.position);
        Ok(())
    }

    /// Counts bytes that were added to what is held.
    fn advance(&mut self, len: u64, sink: Sink<'_>) -> Result<(), DiskError> {
        let number = self.position / UNIT_BYTES as u64;
        self.position += len;
        if self.part_bytes() > 0 {
            return Ok(());
        }
        self.settle(number);
        if self.numbers.len() < BATCH_MIN { Ok(()) } else { self.hand_over(&[], sink) }
    }

    /// Keeps the last unit held, which is whole now, unless it is zeros.
    fn settle(&mut self, number: u64) {
        let start = self.held.len().saturating_sub(UNIT_BYTES);
        if self.held.get(start..).is_none_or(is_zero) {
            self.held.truncate(start);
        } else {
            self.numbers.push(number);
        }
    }

    /// Hands over the units held, which are all whole, and those that begin at the position.
    fn hand_over(&mut self, direct: &[u8], sink: Sink<'_>) -> Result<(), DiskError> {
        let first = self.position / UNIT_BYTES as u64;
        let held = self.numbers.iter().copied().zip(self.held.as_chunks::<UNIT_BYTES>().0);
        let units = held.map(|(number, bytes)| Unit { number, bytes });
        let direct = (first..).zip(direct.as_chunks::<UNIT_BYTES>().0);
        let direct = direct.map(|(number, bytes)| Unit { number, bytes }).filter(|unit| !is_zero(unit.bytes));
        let batch: Vec<Unit<'_>> = units.chain(direct).collect();
        if !batch.is_empty() {
            self.is_failed = true;
            sink(&batch)?;
            self.is_failed = false;
        }
        self.held.clear();
        self.numbers.clear();
        Ok(())
    }
}

/// Bytes from the start of the unit that a position is in.
fn part_of_unit(position: u64) -> usize {
    // Less than a unit.
    usize::try_from(position % UNIT_BYTES as u64).unwrap_or(0)
}

/// What compresses one unit after the other.
pub(super) trait Squeeze: Send + Sized {
    /// A new one.
    fn new() -> io::Result<Self>;

    /// Puts what becomes of a unit into `packed`, which is empty.
    fn squeeze(&mut self, unit: &Unit<'_>, packed: &mut Vec<u8>) -> io::Result<()>;
}

/// Compresses batches. Compressors and buffers are used again.
pub(super) struct Squeezers<'a, S> {
    pool: &'a ThreadPool,
    idle: Mutex<Vec<S>>,
    packed: Vec<Vec<u8>>,
}

impl<'a, S: Squeeze> Squeezers<'a, S> {
    /// Compressors that work on `pool`.
    pub(super) fn new(pool: &'a ThreadPool) -> Self {
        Self { pool, idle: Mutex::default(), packed: Vec::new() }
    }

    /// What becomes of each unit of a batch, in their order; more may follow, which means nothing.
    pub(super) fn squeeze(&mut self, batch: &[Unit<'_>]) -> io::Result<&[Vec<u8>]> {
        let (idle, packed) = (&self.idle, &mut self.packed);
        packed.resize_with(batch.len().max(packed.len()), Vec::new);
        let lock = || idle.lock().unwrap_or_else(PoisonError::into_inner);
        let squeeze_one = |(unit, packed): (&Unit<'_>, &mut Vec<u8>)| {
            let free = lock().pop();
            let mut squeezer = free.map_or_else(S::new, Ok)?;
            packed.clear();
            squeezer.squeeze(unit, packed)?;
            lock().push(squeezer);
            Ok(())
        };
        self.pool
            .install(|| batch.par_iter().zip(packed.par_iter_mut()).try_for_each(squeeze_one))
            .map(|()| self.packed.as_slice())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: u64 = 300 * UNIT_BYTES as u64 + 1000;

    /// What comes out when each range is written with bytes that are all its number, or is zeroed for none.
    fn units(ranges: &[(u64, u64, u8)]) -> (Vec<(u64, Vec<u8>)>, usize) {
        let (mut found, mut batches) = (Vec::new(), 0);
        let mut units = Units::new(Path::new("disk"), DISK);
        let mut sink = |batch: &[Unit<'_>]| {
            batches += 1;
            found.extend(batch.iter().map(|unit| (unit.number, unit.bytes.to_vec())));
            Ok(())
        };
        for &(start, end, fill) in ranges {
            let len = end - start;
            match fill {
                0 => units.zero(start, len, &mut sink).unwrap(),
                _ => units.write(start, &vec![fill; usize::try_from(len).unwrap()], &mut sink).unwrap(),
            }
        }
        units.finish(&mut sink).unwrap();
        (found, batches)
    }

    #[test]
    fn writes_of_any_length_become_the_same_units() {
        for step in [1000, 4096, 65_536, 70_000, 4 << 20, 8 << 20, DISK] {
            let pieces =
                (4096..DISK).step_by(usize::try_from(step).unwrap()).map(|at| (at, DISK.min(at + step), 7));
            let (found, batches) = units(&pieces.collect::<Vec<_>>());
            assert_eq!(found.len(), 301, "{step}");
            assert!(batches < 8, "{batches} batches of {step}");
            for (at, (number, bytes)) in found.iter().enumerate() {
                let range =
                    if at == 0 { 4096..UNIT_BYTES } else { 0..if at == 300 { 1000 } else { UNIT_BYTES } };
                assert_eq!(*number, at as u64);
                assert!(bytes.iter().enumerate().all(|(at, &byte)| (byte == 7) == range.contains(&at)));
                assert_eq!(bytes.len(), UNIT_BYTES);
            }
        }
    }

    #[test]
    fn gaps_and_zeros_make_no_units() {
        let unit = UNIT_BYTES as u64;
        assert!(units(&[]).0.is_empty());
        assert!(units(&[(0, DISK, 0)]).0.is_empty());
        let numbers = |ranges: &[_]| units(ranges).0.iter().map(|unit| unit.0).collect::<Vec<_>>();
        assert_eq!(numbers(&[(10, 20, 1), (20, 5 * unit, 0), (7 * unit + 1, 7 * unit + 2, 1)]), [0, 7]);
        assert_eq!(numbers(&[(10, 20, 1), (30, 40, 0), (50, 60, 1), (DISK - 1, DISK, 1)]), [0, 300]);
        let mut sink = |batch: &[Unit<'_>]| {
            assert_eq!((batch.len(), batch[0].number), (1, 100), "zeros that were written are left out");
            Ok(())
        };
        let mut written = Units::new(Path::new("disk"), DISK);
        let mut bytes = vec![0; 200 * UNIT_BYTES];
        bytes[100 * UNIT_BYTES] = 1;
        written.write(0, &bytes, &mut sink).unwrap();
        written.write(201 * unit, &bytes[..UNIT_BYTES], &mut sink).unwrap();
        written.finish(&mut sink).unwrap();
    }

    #[test]
    fn what_is_out_of_order_or_outside_is_refused_and_a_failure_stays() {
        let mut units = Units::new(Path::new("disk"), DISK);
        let mut sink = |_: &[Unit<'_>]| Err(DiskError::NotFound { path: "x".into() });
        assert!(units.write(DISK, &[1], &mut sink).is_err());
        assert!(units.zero(u64::MAX, 2, &mut sink).is_err());
        units.write(100, &[1], &mut sink).unwrap();
        assert!(units.write(100, &[1], &mut sink).is_err());
        assert!(units.zero(99, 5, &mut sink).is_err());
        units.zero(101, DISK - 101, &mut sink).unwrap();
        assert!(matches!(units.finish(&mut sink), Err(DiskError::NotFound { .. })));
        assert!(units.finish(&mut |_| Ok(())).is_err());
    }
}
