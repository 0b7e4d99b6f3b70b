//! Reading block devices past the page cache.
//!
//! A mounted file system writes files to its device, and not to the pages in which others have read the device before.
//! Those can be forgotten, but not pages in which the file system has blocks of its own: with blocks shorter than a page,
//! such a page has what a file beside them was when the page was read. What is on the device itself is never older than what
//! was made durable.

use super::aligned::{ALIGN, AlignedBuffer};
use rustix::fs::{Advice, OFlags, fadvise, fcntl_getfl, fcntl_setfl};
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes that are read at once where they cannot be read to their place: they are still in the processor's cache then.
const MOVED_BYTES: usize = 1 << 20;

/// How a block device is read.
#[derive(Debug)]
pub(super) struct DeviceReads {
    /// Bytes of the device: a multiple of what can be read of it at least.
    len: u64,
    /// Whether its file is in that mode. It is left for good where the system refuses a read.
    is_direct: AtomicBool,
}

impl DeviceReads {
    /// Puts the file of a device, whose length is given, into that mode. One that has none is read through memory, of which
    /// the system is asked to forget what it can.
    pub fn new(file: &File, len: u64) -> Self {
        let _ = fadvise(file, 0, None, Advice::DontNeed);
        Self { len, is_direct: AtomicBool::new(set_direct(file, true).is_ok()) }
    }

    /// As [`FileExt::read_at`], of bytes inside the device. If some of them cannot be read, those before them are.
    pub fn read_at(&self, file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        if !self.is_direct.load(Ordering::Relaxed) {
            return file.read_at(buffer, offset);
        }
        let read = |bytes: &mut [u8], at| file.read_at(bytes, at);
        match read_part(self.len, offset, buffer, read) {
            // Not with this alignment, or not at all.
            Err(e) if matches!(e.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => {
                set_direct(file, false)?;
                self.is_direct.store(false, Ordering::Relaxed);
                file.read_at(buffer, offset)
            }
            Err(e) if e.kind() != ErrorKind::Interrupted => read_to_failure(self.len, offset, buffer, read),
            done => done,
        }
    }
}

fn set_direct(file: &File, on: bool) -> io::Result<()> {
    let mut flags = fcntl_getfl(file)?;
    flags.set(OFlags::DIRECT, on);
    Ok(fcntl_setfl(file, flags)?)
}

/// One read whose address, place and length are aligned, but for the device's end.
fn read_part(
    device_len: u64,
    offset: u64,
    buffer: &mut [u8],
    read: impl Fn(&mut [u8], u64) -> io::Result<usize>,
) -> io::Result<usize> {
    let skipped = usize::try_from(offset % ALIGN as u64).unwrap_or(0);
    let whole = buffer.len() - buffer.len() % ALIGN;
    if skipped == 0 && whole > 0 && buffer.as_ptr().align_offset(ALIGN) == 0 {
        return read(&mut buffer[..whole], offset);
    }
    let start = offset - skipped as u64;
    let room = usize::try_from(device_len - start).unwrap_or(usize::MAX);
    let mut moved = AlignedBuffer::default();
    moved.resize((skipped + buffer.len()).next_multiple_of(ALIGN).min(MOVED_BYTES).min(room));
    let got = read(moved.bytes_mut(), start)?.saturating_sub(skipped).min(buffer.len());
    buffer[..got].copy_from_slice(&moved.bytes()[skipped..skipped + got]);
    Ok(got)
}

/// Page by page, up to the one that cannot be read.
fn read_to_failure(
    device_len: u64,
    offset: u64,
    buffer: &mut [u8],
    read: impl Fn(&mut [u8], u64) -> io::Result<usize>,
) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        let step = buffer.len().min(done + ALIGN);
        match read_part(device_len, offset + done as u64, &mut buffer[done..step], &read) {
            Ok(0) => break,
            Ok(got) => done += got,
            Err(e) if done == 0 => return Err(e),
            // Who reads on hears of it.
            Err(_) => break,
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    const SECTOR: usize = 512;

    /// A device that takes only what is aligned, and of which a page cannot be read.
    struct Device {
        bytes: Vec<u8>,
        bad_page: Option<usize>,
        reads: RefCell<Vec<usize>>,
    }

    impl Device {
        fn new(sectors: usize) -> Self {
            let bytes = (0..sectors * SECTOR).map(|at| (at / 7 % 251) as u8).collect();
            Self { bytes, bad_page: None, reads: RefCell::default() }
        }

        fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
            let start = offset as usize;
            assert_eq!(start % ALIGN, 0);
            assert_eq!(buffer.as_ptr().align_offset(ALIGN), 0);
            assert!(buffer.len().is_multiple_of(ALIGN) || start + buffer.len() == self.bytes.len());
            self.reads.borrow_mut().push(buffer.len());
            let end = start + buffer.len();
            if self.bad_page.is_some_and(|page| start < (page + 1) * ALIGN && end > page * ALIGN) {
                return Err(io::Error::from_raw_os_error(5));
            }
            buffer.copy_from_slice(&self.bytes[start..end]);
            Ok(buffer.len())
        }

        fn fill(&self, offset: usize, buffer: &mut [u8]) -> Result<(), usize> {
            let (len, mut done) = (self.bytes.len() as u64, 0);
            let read = |bytes: &mut [u8], at| self.read(bytes, at);
            while done < buffer.len() {
                let (at, rest) = ((offset + done) as u64, &mut buffer[done..]);
                let got = read_part(len, at, rest, read).or_else(|_| read_to_failure(len, at, rest, read));
                done += got.map_err(|_| offset + done)?;
            }
            Ok(())
        }
    }

    #[test]
    fn whatever_is_asked_for_is_read_by_aligned_reads() {
        // 4 MiB and a piece of a page.
        let device = Device::new(8 * 1024 + 3);
        let len = device.bytes.len();
        let mut buffer = AlignedBuffer::default();
        for (offset, end) in
            [(0, len), (1, len), (0, 1), (511, 4097), (4096, 8192), (4096, 8193), (len - 1, len)]
        {
            // In its place and beside it.
            for shift in [0, 1, 512] {
                buffer.resize(shift + end - offset);
                buffer.bytes_mut().fill(255);
                device.fill(offset, &mut buffer.bytes_mut()[shift..]).unwrap();
                assert!(buffer.bytes()[shift..] == device.bytes[offset..end], "{offset}..{end}, {shift}");
            }
        }
    }

    #[test]
    fn what_is_aligned_is_one_read_to_its_place() {
        let device = Device::new(64 * 1024);
        let mut buffer = AlignedBuffer::default();
        buffer.resize(device.bytes.len() - ALIGN);
        device.fill(ALIGN, buffer.bytes_mut()).unwrap();
        assert_eq!(*device.reads.borrow(), [device.bytes.len() - ALIGN]);
    }

    #[test]
    fn what_cannot_be_read_is_named_to_the_page_and_tried_few_times() {
        let mut device = Device::new(16 * 1024);
        device.bad_page = Some(700);
        let mut buffer = AlignedBuffer::default();
        buffer.resize(device.bytes.len());
        assert_eq!(device.fill(0, buffer.bytes_mut()), Err(700 * ALIGN));
        assert!(buffer.bytes()[..700 * ALIGN] == device.bytes[..700 * ALIGN]);
        // All, the pages before, the page, the rest, and the page again.
        assert_eq!(device.reads.borrow().len(), 1 + 700 + 1 + 1 + 1);
        assert_eq!(device.fill(701 * ALIGN, &mut buffer.bytes_mut()[701 * ALIGN..]), Ok(()));
    }
}
