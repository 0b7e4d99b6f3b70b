//! Raw disks: a regular file or a block device, as it is.

use super::device::DeviceReads;
use super::disk::{DiskError, DiskRead, Extent};
use super::filesystem::{BTRFS, EXT, NFS, OVERLAY, TMPFS, XFS, is_one_of};
use super::os::no_waiting;
use rustix::fs::SeekFrom;
use std::fs::File;
use std::io::{self, Seek};
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A raw disk open for reading.
#[derive(Debug)]
pub struct RawDisk {
    file: File,
    /// None for a regular file.
    device: Option<DeviceReads>,
    path: PathBuf,
    len: u64,
    /// Whether what it says of holes is what reading gives.
    tells_holes: bool,
    found: Mutex<Found>,
}

/// File systems of which that is so, also of what was only just written. OpenZFS up to 2.2.1 tells a hole where there is data
/// that is on its way to the disk, F2FS of Linux 5.6 to 6.8 one at the start of each compressed cluster, and what stands behind
/// FUSE does not know what has not come to it.
const TELLS_HOLES: [u64; 6] = [EXT, XFS, BTRFS, TMPFS, OVERLAY, NFS];

fn tells_holes(file: &File) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|found| is_one_of(&found, &TELLS_HOLES))
}

/// What was found last. To look for it again costs as much as the file has pieces behind it.
#[derive(Debug, Clone, Default)]
struct Found {
    data: Range<u64>,
    /// Where the last hole ended that ends in data.
    hole_end: Option<u64>,
}

impl RawDisk {
    /// Opens a regular file or block device; an empty one is refused.
    pub fn open(path: &Path) -> Result<Self, DiskError> {
        Self::open_with(path, no_waiting())
    }

    /// As [`RawDisk::open`]; a block device that something uses is refused, and nothing else can take it as long as
    /// this is open. Files are not looked at.
    pub fn open_unused(path: &Path) -> Result<Self, DiskError> {
        // Of files the system does not look at it.
        Self::open_with(path, no_waiting() | exclusive())
    }

    /// Whether it is a block device that something uses, such as a file system that is mounted.
    pub fn is_in_use(&self) -> bool {
        // That nobody uses it is found by taking it, and giving it back at once.
        let take = || {
            std::fs::OpenOptions::new().read(true).custom_flags(no_waiting() | exclusive()).open(&self.path)
        };
        self.device.is_some() && take().is_err_and(|e| e.kind() == io::ErrorKind::ResourceBusy)
    }

    fn open_with(path: &Path, flags: i32) -> Result<Self, DiskError> {
        let open = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path);
        let mut file = open.map_err(|e| DiskError::io("open", path, 0, e))?;
        let kind = file.metadata().map_err(|e| DiskError::io("open", path, 0, e))?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            let found = if kind.is_dir() { "a directory" } else { "a special file" };
            return Err(DiskError::NotADisk { path: path.to_owned(), found });
        }
        // The end of a block device is its length; metadata says 0.
        let len = file.seek(io::SeekFrom::End(0)).map_err(|e| DiskError::io("measure", path, 0, e))?;
        if len == 0 {
            return Err(DiskError::Empty { path: path.to_owned() });
        }
        // A hint only: readers beside each other go from front to back.
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Sequential);
        let device = kind.is_block_device().then(|| DeviceReads::new(&file, len));
        let tells_holes = device.is_none() && tells_holes(&file);
        Ok(Self { file, device, path: path.to_owned(), len, tells_holes, found: Mutex::default() })
    }

    /// Data or hole by SEEK_DATA and SEEK_HOLE. File systems that cannot tell say "all data".
    fn seek_extent(&self, offset: u64, is_behind_hole: bool) -> rustix::io::Result<Extent> {
        if is_behind_hole {
            let hole = rustix::fs::seek(&self.file, SeekFrom::Hole(offset))?;
            // Else there was data, and is none any more.
            if hole > offset {
                return Ok(Extent { start: offset, end: hole, is_zero: false });
            }
        }
        match rustix::fs::seek(&self.file, SeekFrom::Data(offset)) {
            Ok(data) if data > offset => Ok(Extent { start: offset, end: data, is_zero: true }),
            Ok(_) => {
                let hole = rustix::fs::seek(&self.file, SeekFrom::Hole(offset))?;
                Ok(Extent { start: offset, end: hole, is_zero: false })
            }
            // No data until the end; if the file shrank, reading would say so.
            Err(rustix::io::Errno::NXIO) if self.reaches_end() => {
                Ok(Extent { start: offset, end: self.len, is_zero: true })
            }
            Err(e) => Err(e),
        }
    }

    fn found(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_some_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        match &self.device {
            Some(device) => device.read_at(&self.file, offset, buffer),
            None => self.file.read_at(buffer, offset),
        }
    }

    fn reaches_end(&self) -> bool {
        self.file.metadata().is_ok_and(|m| m.len() >= self.len)
    }
}

/// `O_EXCL`: of a block device, for nobody else as long as it is open.
fn exclusive() -> i32 {
    i32::from_ne_bytes(rustix::fs::OFlags::EXCL.bits().to_ne_bytes())
}

impl DiskRead for RawDisk {
    fn len_bytes(&self) -> u64 {
        self.len
    }

    fn extent_at(&self, offset: u64) -> Result<Extent, DiskError> {
        let all_data = Extent { start: offset, end: self.len, is_zero: false };
        if !self.tells_holes {
            return Ok(all_data);
        }
        // What was data may have become a hole: it is read then, and is zeros all the same.
        let Found { data, hole_end } = self.found().clone();
        if data.contains(&offset) {
            return Ok(Extent { start: offset, end: data.end, is_zero: false });
        }
        let extent = match self.seek_extent(offset, hole_end == Some(offset)) {
            Ok(extent) => Extent { end: extent.end.min(self.len), ..extent },
            // Where the file system has no such call: read everything.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NXIO | rustix::io::Errno::OPNOTSUPP) => {
                all_data
            }
            Err(e) => return Err(DiskError::io("look for data in", &self.path, offset, e.into())),
        };
        // A hole that moved under us while we looked: take it as data, content decides.
        let extent = if extent.end > offset { extent } else { all_data };
        if extent.is_zero {
            self.found().hole_end = Some(extent.end);
        } else {
            self.found().data = extent.start..extent.end;
        }
        Ok(extent)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        let mut done = 0;
        while done < buffer.len() {
            match self.read_some_at(offset + done as u64, &mut buffer[done..]) {
                Ok(0) => {
                    return Err(DiskError::Shrank {
                        path: self.path.clone(),
                        expected: self.len,
                        found: offset + done as u64,
                    });
                }
                Ok(read) => done += read,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(DiskError::io("read", &self.path, offset + done as u64, e)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{FallocateFlags, fallocate};

    const STEP: u64 = 64 << 10;

    #[test]
    fn data_behind_a_hole_is_told_from_what_became_one() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(9 * STEP).unwrap();
        for step in [3, 4, 6] {
            file.as_file().write_all_at(&[1; STEP as usize], step * STEP).unwrap();
        }
        let disk = RawDisk::open(file.path()).unwrap();
        let extent = |at: u64, end, is_zero| Extent { start: at * STEP, end: end * STEP, is_zero };
        let expected = [extent(0, 3, true), extent(3, 5, false), extent(5, 6, true), extent(6, 7, false)];
        for expected in expected.into_iter().chain([extent(7, 9, true)]) {
            assert_eq!(disk.extent_at(expected.start).unwrap(), expected);
        }
        // Looked at from within, and again.
        assert_eq!(disk.extent_at(4 * STEP).unwrap(), extent(4, 5, false));
        assert_eq!(disk.extent_at(STEP).unwrap(), extent(1, 3, true));

        assert_eq!(disk.extent_at(0).unwrap(), extent(0, 3, true));
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(file.as_file(), punch, 3 * STEP, 2 * STEP).unwrap();
        assert_eq!(disk.extent_at(3 * STEP).unwrap(), extent(3, 6, true));
    }

    /// Where a file system may tell a hole although there is data, everything is read.
    #[test]
    fn holes_are_not_believed_everywhere() {
        let (zfs, fuse, smb, cifs, f2fs) = (0x2fc1_2fc1, 0x6573_5546, 0xfe53_4d42, 0xff53_4d42, 0xf2f5_2010);
        assert!([zfs, fuse, smb, cifs, f2fs].iter().all(|kind| !TELLS_HOLES.contains(kind)));
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(9 * STEP).unwrap();
        let mut disk = RawDisk::open(file.path()).unwrap();
        disk.tells_holes = false;
        let all = |start| Extent { start, end: 9 * STEP, is_zero: false };
        assert_eq!([0, STEP].map(|at| disk.extent_at(at).unwrap()), [0, STEP].map(all));
    }
}
