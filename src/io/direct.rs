//! Writing large pieces past the page cache.
//!
//! Who writes a whole disk and waits until it is durable gains nothing from the cache: every byte is copied once more into
//! pages that must be found first, and what others have in the cache is pushed out. Small pieces do go through it, which
//! gathers them.
//!
//! Only on file systems where that is known to be so: on btrfs it goes around compression, or through the cache all the same
//! for the sake of checksums; over a network each piece would be made durable by itself.

use super::aligned::{ALIGN, AlignedBuffer};
use super::filesystem::{EXT, XFS, is_one_of};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl, fstatfs};
use rustix::io::pwritev;
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::unix::fs::{FileExt, FileTypeExt};

/// Shorter pieces are gathered by the page cache, which the device empties beside the direct ones: each of those is a round
/// trip to it.
const DIRECT_BYTES_MIN: usize = 256 << 10;

/// Parts that one write takes: what Linux calls UIO_MAXIOV.
const PARTS_MAX: usize = 1024;
/// Bytes that are copied to where they can be written from at once: they are still in the processor's cache then.
const MOVED_BYTES: usize = 1 << 20;

/// How one file is written to.
#[derive(Debug, Default)]
pub struct Direct {
    /// Whether the file is where that is good; none before the first try.
    is_known_good: Option<bool>,
    /// The file system refused.
    is_refused: bool,
    /// Whether the file is in that mode now.
    is_on: bool,
    /// What is copied goes through it.
    moved: AlignedBuffer,
}

impl Direct {
    /// Writes all bytes, and says how many of them wait in the page cache.
    pub fn write_all_at(&mut self, file: &File, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        let len = direct_len(offset, bytes);
        let done = self.direct(file, len, |done| file.write_at(&bytes[done..len], offset + done as u64))?;
        let rest = &bytes[done..];
        if !rest.is_empty() {
            self.switch(file, false)?;
            file.write_all_at(rest, offset + done as u64)?;
        }
        Ok(rest.len())
    }

    /// As [`Direct::write_all_at`], of parts that follow each other, in as few writes as can be: between any two
    /// the device has nothing to do until this thread runs again, which on busy processors takes longer than the write.
    pub fn write_parts_at(&mut self, file: &File, offset: u64, parts: &[&[u8]]) -> io::Result<usize> {
        let is_whole =
            |part: &&&[u8]| part.len().is_multiple_of(ALIGN) && part.as_ptr().align_offset(ALIGN) == 0;
        // The last one of a disk may end anywhere.
        let whole = &parts[..parts.iter().take_while(is_whole).count()];
        let len: usize = whole.iter().map(|part| part.len()).sum();
        let mut done = 0;
        if offset.is_multiple_of(ALIGN as u64) && len >= DIRECT_BYTES_MIN {
            done = self.direct(file, len, |done| {
                let rest = behind(whole, done).take(PARTS_MAX).map(IoSlice::new);
                Ok(pwritev(file, &rest.collect::<Vec<_>>(), offset + done as u64)?)
            })?;
        }
        let (mut at, mut cached) = (offset + done as u64, 0);
        for part in behind(parts, done) {
            cached += self.write_all_at(file, at, part)?;
            at += part.len() as u64;
        }
        Ok(cached)
    }

    /// As [`Direct::write_all_at`], of bytes that may begin anywhere in memory: they are copied first.
    pub fn move_all_at(&mut self, file: &File, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        let mut buffer = std::mem::take(&mut self.moved);
        let mut cached = 0;
        for (at, piece) in (offset..).step_by(MOVED_BYTES).zip(bytes.chunks(MOVED_BYTES)) {
            if piece.len() < DIRECT_BYTES_MIN || !self.is_good(file) {
                cached += self.write_all_at(file, at, piece)?;
            } else {
                buffer.resize(piece.len());
                buffer.bytes_mut().copy_from_slice(piece);
                cached += self.write_all_at(file, at, buffer.bytes())?;
            }
        }
        self.moved = buffer;
        Ok(cached)
    }

    /// Lets `write` write `len` bytes, aligned as they are, from the one on that it is given, as far as that is possible.
    /// Says how many it wrote.
    fn direct(
        &mut self,
        file: &File,
        len: usize,
        write: impl Fn(usize) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let mut done = 0;
        while done < len && self.is_good(file) {
            match self.switch(file, true).and_then(|()| write(done)) {
                // The rest is no longer aligned.
                Ok(count) if count == 0 || count % ALIGN != 0 => return Ok(done + count),
                Ok(count) => done += count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // No such thing on this file system, or not with this alignment.
                Err(e) if matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => {
                    self.is_refused = true;
                }
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    fn is_good(&mut self, file: &File) -> bool {
        !self.is_refused && *self.is_known_good.get_or_insert_with(|| is_good(file))
    }

    fn switch(&mut self, file: &File, on: bool) -> io::Result<()> {
        if self.is_on != on {
            let mut flags = fcntl_getfl(file)?;
            flags.set(OFlags::DIRECT, on);
            fcntl_setfl(file, flags)?;
            self.is_on = on;
        }
        Ok(())
    }
}

fn is_good(file: &File) -> bool {
    let is_device = file.metadata().is_ok_and(|metadata| metadata.file_type().is_block_device());
    is_device || fstatfs(file).is_ok_and(|found| is_one_of(&found, &[EXT, XFS]))
}

/// What is left of parts behind so many bytes.
fn behind<'a>(parts: &'a [&'a [u8]], bytes: usize) -> impl Iterator<Item = &'a [u8]> {
    let mut skip = bytes;
    parts.iter().filter_map(move |part| {
        let from = skip.min(part.len());
        skip -= from;
        Some(&part[from..]).filter(|rest| !rest.is_empty())
    })
}

/// How many bytes from the first on can be written directly.
fn direct_len(offset: u64, bytes: &[u8]) -> usize {
    let is_aligned = offset.is_multiple_of(ALIGN as u64) && bytes.as_ptr().align_offset(ALIGN) == 0;
    let len = bytes.len() / ALIGN * ALIGN;
    if is_aligned && len >= DIRECT_BYTES_MIN { len } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::clock::random_u64;
    use std::fs;
    use std::path::Path;

    fn pattern(len: usize) -> AlignedBuffer {
        let mut buffer = AlignedBuffer::default();
        buffer.resize(len);
        buffer
            .bytes_mut()
            .iter_mut()
            .zip(0_u32..)
            .for_each(|(byte, n)| *byte = (n.wrapping_mul(2_654_435_761) >> 24) as u8);
        buffer
    }

    /// Whole and partial pieces, large and small, aligned and not, on whatever file system a folder is.
    fn mixed_writes_read_back(folder: &Path) -> Option<usize> {
        let path = folder.join(format!("imgstore-direct-{:016x}", random_u64().unwrap()));
        let file = File::options().read(true).write(true).create_new(true).open(&path).ok()?;
        fs::remove_file(&path).unwrap();
        let (data, mut expected) = (pattern(3 << 20), vec![0; 3 << 20]);
        let (mut direct, mut cached) = (Direct::default(), 0);
        for (offset, len) in [
            (0, 1 << 20),
            (1 << 20, 4096),
            (1_052_672, 70_000),
            (1_200_000, 200_000),
            (1_400_832, (1 << 20) + 17),
            (4096, 128 << 10),
            (2_600_960, 544_768),
        ] {
            let bytes = &data.bytes()[offset..offset + len];
            cached += direct.write_all_at(&file, offset as u64, bytes).unwrap();
            expected[offset..offset + len].copy_from_slice(bytes);
        }
        file.sync_all().unwrap();
        direct.switch(&file, false).unwrap();
        let mut found = vec![0; expected.len()];
        file.read_exact_at(&mut found, 0).unwrap();
        assert!(found == expected);
        Some(cached)
    }

    #[test]
    fn whatever_is_written_reads_back() {
        let here = tempfile::tempdir().unwrap();
        let cached = mixed_writes_read_back(here.path()).unwrap();
        assert!(cached > 0, "small pieces are cached");
        mixed_writes_read_back(Path::new("/dev/shm"));
    }

    #[test]
    fn bytes_from_anywhere_are_written() {
        let here = tempfile::tempdir().unwrap();
        let data = pattern((3 << 20) + 5000);
        let file = File::options().write(true).create_new(true).open(here.path().join("pack")).unwrap();
        let mut direct = Direct::default();
        let bytes = &data.bytes()[3..];
        let cached = direct.move_all_at(&file, 0, bytes).unwrap();
        assert!(!direct.is_good(&file) || cached < 8192, "{cached}");
        assert!(fs::read(here.path().join("pack")).unwrap() == bytes);
    }

    #[test]
    fn parts_are_written_one_behind_the_other() {
        let here = tempfile::tempdir().unwrap();
        let (data, other) = (pattern(1 << 20), pattern((1 << 20) + 17));
        let (data, other) = (data.bytes(), other.bytes());
        let file = File::options().write(true).create_new(true).open(here.path().join("disk")).unwrap();
        let (mut direct, mut expected) = (Direct::default(), Vec::new());
        // All aligned; one that is not in memory; one whose end is not; small ones; none.
        let sets: [&[&[u8]]; 5] = [
            &[data, &other[..512 << 10], &data[4096..12_288]],
            &[data, &other[1..4097], data],
            &[data, other],
            &[&data[..4096]; 3],
            &[],
        ];
        for (set, is_aligned) in sets.into_iter().zip([true, false, false, false, false]) {
            let cached = direct.write_parts_at(&file, expected.len() as u64, set).unwrap();
            assert!(!direct.is_good(&file) || !is_aligned || cached == 0, "{cached}");
            expected.extend(set.concat());
        }
        assert!(fs::read(here.path().join("disk")).unwrap() == expected);
    }

    #[test]
    fn what_cannot_be_written_directly_is_left() {
        let file = tempfile::tempfile().unwrap();
        let answers = |answers: &[Result<usize, i32>]| {
            let mut direct = Direct { is_known_good: Some(true), ..Direct::default() };
            let mut answers = answers.iter();
            let answers = std::cell::RefCell::new(&mut answers);
            let write = |_| (*answers.borrow_mut().next().unwrap()).map_err(io::Error::from_raw_os_error);
            let done = direct.direct(&file, 5 * ALIGN, write).map_err(|e| e.kind());
            assert!(answers.borrow_mut().next().is_none(), "asked again");
            (done, direct.is_refused)
        };
        let (invalid, interrupted, full) = (22, 4, 28);
        assert_eq!(answers(&[Ok(5 * ALIGN)]), (Ok(5 * ALIGN), false));
        assert_eq!(answers(&[Ok(ALIGN), Err(interrupted), Ok(4 * ALIGN)]), (Ok(5 * ALIGN), false));
        assert_eq!(answers(&[Ok(2 * ALIGN), Ok(700)]), (Ok(2 * ALIGN + 700), false));
        assert_eq!(answers(&[Ok(ALIGN), Err(invalid)]), (Ok(ALIGN), true));
        assert_eq!(answers(&[Ok(ALIGN), Err(full)]), (Err(io::ErrorKind::StorageFull), false));
    }

    #[test]
    fn what_is_left_of_parts_begins_anywhere_in_them() {
        let parts: [&[u8]; 4] = [b"one", b"", b"two", b"three"];
        for skipped in 0..=11 {
            let left: Vec<&[u8]> = behind(&parts, skipped).collect();
            assert_eq!(left.concat(), parts.concat()[skipped..], "{skipped}");
            assert!(left.iter().all(|part| !part.is_empty()));
        }
    }

    #[test]
    fn only_large_aligned_pieces_are_direct() {
        let buffer = pattern(1 << 20);
        let bytes = buffer.bytes();
        assert_eq!(direct_len(0, bytes), 1 << 20);
        assert_eq!(direct_len(8192, &bytes[..300_000]), 73 * 4096);
        assert_eq!(direct_len(512, bytes), 0);
        assert_eq!(direct_len(0, &bytes[512..]), 0);
        assert_eq!(direct_len(0, &bytes[..DIRECT_BYTES_MIN - 1]), 0);
    }
}
