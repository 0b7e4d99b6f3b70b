//! What the writers of VHD and VHDX share: a disk in the making whose blocks get a place in the file when they
//! first hold something else than zeros, one behind the other.

use crate::disk::is_zero;
use crate::io::disk::{DiskError, FileWrite};
use std::io;
use std::path::{Path, PathBuf};

/// Bytes of a table that are put at once.
const BATCH_BYTES: usize = 64 << 10;

/// How blocks lie in the file.
pub(super) struct Shape {
    /// Length of the volume; nothing is written behind it.
    pub volume_bytes: u64,
    /// Bytes in a block.
    pub block_bytes: u64,
    /// Where the file ends, or goes on, if it has no block.
    pub head_end: u64,
    /// Where the first block begins, not before `head_end` with what leads it.
    pub first_at: u64,
    /// From the start of a block to that of the next one; at least a block with what leads it.
    pub stride_bytes: u64,
    /// What stands right before each block.
    pub lead: Vec<u8>,
}

/// A disk in the making. Since offsets ascend, zeros never lie over data, and so need not be put.
pub(super) struct Growing<'a> {
    file: Box<dyn FileWrite + 'a>,
    path: PathBuf,
    shape: Shape,
    /// Of each block how many are in the file once it is, so 1 for the first; 0 if it is absent.
    ordinals: Vec<u32>,
    placed: u32,
    /// One after the last byte of a block that was put.
    put_end: u64,
}

/// The range must lie in a volume.
pub(super) fn check_inside(path: &Path, volume_bytes: u64, offset: u64, len: u64) -> Result<(), DiskError> {
    match offset.checked_add(len) {
        Some(end) if end <= volume_bytes => Ok(()),
        _ => Err(DiskError::io("write", path, offset, io::ErrorKind::InvalidInput.into())),
    }
}

impl<'a> Growing<'a> {
    /// A disk without blocks.
    pub fn new(file: Box<dyn FileWrite + 'a>, path: &Path, shape: Shape) -> Self {
        let blocks = usize::try_from(shape.volume_bytes.div_ceil(shape.block_bytes)).unwrap_or(usize::MAX);
        Self { file, path: path.to_owned(), shape, ordinals: vec![0; blocks], placed: 0, put_end: 0 }
    }

    /// Refuses a range outside of the volume.
    pub fn check_inside(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        check_inside(&self.path, self.shape.volume_bytes, offset, len)
    }

    /// Writes bytes of the volume. What of them is all zeros in a block is left out.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.check_inside(offset, bytes.len() as u64)?;
        let (mut at, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let (number, start) = (at / self.shape.block_bytes, at % self.shape.block_bytes);
            let left = usize::try_from(self.shape.block_bytes - start).unwrap_or(usize::MAX);
            let (piece, behind) = rest.split_at(left.min(rest.len()));
            if !is_zero(piece) {
                let place = self.place_for(number)? + start;
                self.file.put_at(place, piece)?;
                self.put_end = self.put_end.max(place + piece.len() as u64);
            }
            at += piece.len() as u64;
            rest = behind;
        }
        Ok(())
    }

    /// Where a block lies, which gets a place if it has none.
    fn place_for(&mut self, number: u64) -> Result<u64, DiskError> {
        let ordinal = usize::try_from(number).ok().and_then(|number| self.ordinals.get_mut(number));
        let Some(ordinal) = ordinal else {
            return Err(DiskError::io("write", &self.path, number, io::ErrorKind::InvalidInput.into()));
        };
        if let Some(before) = ordinal.checked_sub(1) {
            return Ok(self.shape.place(before));
        }
        let place = self.shape.place(self.placed);
        self.placed += 1;
        *ordinal = self.placed;
        if !self.shape.lead.is_empty() {
            self.file.put_at(place - self.shape.lead.len() as u64, &self.shape.lead)?;
        }
        Ok(place)
    }

    /// Where the last block ends, or the head if there is no block.
    pub fn end(&self) -> u64 {
        match self.placed.checked_sub(1) {
            Some(before) => self.shape.place(before) + self.shape.block_bytes,
            None => self.shape.head_end,
        }
    }

    /// Makes the file reach to the end of its last block, which may be less than filled.
    pub fn fill_end(&mut self) -> Result<(), DiskError> {
        match self.end() {
            end if end > self.put_end => self.file.put_at(end - 1, &[0]),
            _ => Ok(()),
        }
    }

    /// Puts a table with an entry of each block, made of its number and its place if it has one, and perhaps
    /// another entry before it.
    pub fn put_table<const N: usize>(
        &mut self,
        table_at: u64,
        entries_of: impl Fn(u64, Option<u64>) -> (Option<[u8; N]>, [u8; N]),
    ) -> Result<(), DiskError> {
        let mut batch = Vec::with_capacity(BATCH_BYTES + 2 * N);
        let mut at = table_at;
        for (number, &ordinal) in (0u64..).zip(&self.ordinals) {
            let place = ordinal.checked_sub(1).map(|before| self.shape.place(before));
            let (between, entry) = entries_of(number, place);
            batch.extend(between.into_iter().flatten().chain(entry));
            if batch.len() >= BATCH_BYTES {
                self.file.put_at(at, &batch)?;
                at += batch.len() as u64;
                batch.clear();
            }
        }
        self.file.put_at(at, &batch)
    }

    /// Puts bytes elsewhere than in a block.
    pub fn put(&mut self, at: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.file.put_at(at, bytes)
    }

    /// Ends the file.
    pub fn close(self) -> Result<(), DiskError> {
        self.file.close()
    }
}

impl Shape {
    /// Where the block begins that has so many before it in the file. That is at most a little more than what
    /// the formats hold, and has a number.
    fn place(&self, before: u32) -> u64 {
        self.first_at + u64::from(before) * self.stride_bytes
    }
}
