//! A file in memory, for tests of writers. Only sectors that are not zeros take room, so it may be large.

use crate::disk::is_zero;
use crate::io::disk::{DiskError, DiskRead, DiskWrite, Extent, FileWrite};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};

const SECTOR: u64 = 512;

/// The file: written by one, read by another.
#[derive(Clone, Default)]
pub(super) struct MemoryFile(Arc<Mutex<Content>>);

#[derive(Default)]
struct Content {
    sectors: HashMap<u64, [u8; SECTOR as usize]>,
    len: u64,
    puts: Vec<Range<u64>>,
    is_closed: bool,
    puts_left: Option<usize>,
}

impl MemoryFile {
    /// A file that takes so many writes and no more.
    pub(super) fn failing_after(puts: usize) -> Self {
        let file = Self::default();
        file.0.lock().unwrap().puts_left = Some(puts);
        file
    }

    /// Where it was written, in order.
    pub(super) fn puts(&self) -> Vec<Range<u64>> {
        self.0.lock().unwrap().puts.clone()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.0.lock().unwrap().is_closed
    }

    /// Bytes of it.
    pub(super) fn bytes(&self, at: u64, len: u64) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(len).unwrap()];
        self.read_at(at, &mut bytes).unwrap();
        bytes
    }
}

/// The pieces of a range that are each in one sector: the sector, where in it, where in the range.
fn pieces(start: u64, len: usize) -> impl Iterator<Item = (u64, Range<usize>, Range<usize>)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let position = start + at as u64;
        let within = (position % SECTOR) as usize;
        let count = (len - at).min(SECTOR as usize - within);
        at += count;
        (count > 0).then_some((position / SECTOR, within..within + count, at - count..at))
    })
}

impl FileWrite for MemoryFile {
    fn put_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        let mut content = self.0.lock().unwrap();
        if let Some(left) = content.puts_left {
            let full = DiskError::NoSpace { path: "memory".into(), offset };
            content.puts_left = Some(left.checked_sub(1).ok_or(full)?);
        }
        for (sector, within, part) in pieces(offset, bytes.len()) {
            if !is_zero(&bytes[part.clone()]) || content.sectors.contains_key(&sector) {
                let place = content.sectors.entry(sector).or_insert([0; SECTOR as usize]);
                place[within].copy_from_slice(&bytes[part]);
            }
        }
        let end = offset + bytes.len() as u64;
        content.len = content.len.max(end);
        content.puts.push(offset..end);
        Ok(())
    }

    fn close(self: Box<Self>) -> Result<(), DiskError> {
        self.0.lock().unwrap().is_closed = true;
        Ok(())
    }
}

impl DiskRead for MemoryFile {
    fn len_bytes(&self) -> u64 {
        self.0.lock().unwrap().len
    }

    fn extent_at(&self, offset: u64) -> Result<Extent, DiskError> {
        Ok(Extent { start: offset, end: self.len_bytes(), is_zero: false })
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        let content = self.0.lock().unwrap();
        assert!(offset + buffer.len() as u64 <= content.len, "read outside of the file");
        buffer.fill(0);
        for (sector, within, part) in pieces(offset, buffer.len()) {
            if let Some(bytes) = content.sectors.get(&sector) {
                buffer[part].copy_from_slice(&bytes[within]);
            }
        }
        Ok(())
    }
}

/// Numbers that are the same for the same seed.
pub(super) struct Draw(pub(super) u64);

impl Draw {
    pub(super) fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        ((self.0 >> 33) as usize) % bound
    }
}

/// A disk with noise, words and zeros, in runs of up to half a MiB.
pub(super) fn disk(len: usize, draw: &mut Draw) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < len {
        let end = bytes.len() + 1 + draw.below(1 << 19);
        match draw.below(3) {
            0 => bytes.resize(end, 0),
            1 => bytes.resize_with(end, || draw.below(256) as u8),
            _ => bytes.extend((bytes.len()..end).map(|at| b"some words, again and again "[at * at % 28])),
        }
    }
    bytes.truncate(len);
    bytes
}

/// Writes a disk in pieces as a restore does: from blocks of 4 KiB on, of any length, zeros by writes, by
/// ranges or as gaps.
pub(super) fn write_in_pieces(target: &mut dyn DiskWrite, bytes: &[u8], draw: &mut Draw) {
    let mut at = 0;
    while at < bytes.len() {
        let most = [1, 20, 300, 2048][draw.below(4)];
        let end = bytes.len().min(at + 4096 * (1 + draw.below(most)));
        let piece = &bytes[at..end];
        match draw.below(3) {
            0 if is_zero(piece) => {}
            1 if is_zero(piece) => target.zero_at(at as u64, piece.len() as u64).unwrap(),
            _ => target.write_at(at as u64, piece).unwrap(),
        }
        at = end;
    }
}

/// All of a disk.
pub(super) fn read_whole(disk: &dyn DiskRead) -> Vec<u8> {
    let mut bytes = vec![0xee; usize::try_from(disk.len_bytes()).unwrap()];
    disk.read_at(0, &mut bytes).unwrap();
    bytes
}
