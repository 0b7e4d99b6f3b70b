//! Opening disks to read and targets to write.

use super::detect::{HEAD_BYTES, foreign_signature};
use crate::io::disk::{DiskError, DiskRead, DiskWrite};
use crate::io::outfile::{BlockDevice, NewFile, Stream, is_block_device};
use crate::io::rawdisk::RawDisk;

pub use crate::io::outfile::{absolute, make_dirs, remove_dir_with, remove_made_file, utf8};

use std::io::Write;
use std::path::Path;

/// What the user says of a disk's format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Declared {
    /// Nothing: the disk's bytes must not say that it is anything but raw.
    Nothing,
    /// It is raw, whatever its bytes look like.
    Raw,
}

/// Opens a disk for reading.
pub fn open_disk(path: &Path, declared: Declared) -> Result<Box<dyn DiskRead>, DiskError> {
    let disk = RawDisk::open(path)?;
    if declared == Declared::Nothing {
        let len = usize::try_from(disk.len_bytes()).unwrap_or(usize::MAX).min(HEAD_BYTES);
        let mut head = vec![0; len];
        disk.read_at(0, &mut head)?;
        if let Some(found) = foreign_signature(&head) {
            let cure = "convert it to raw first (qemu-img convert -O raw), or say --format raw if it is one";
            return Err(DiskError::WrongFormat { path: path.to_owned(), found: found.as_str(), cure });
        }
    }
    Ok(Box::new(disk))
}

/// What may be done to a target.
#[derive(Debug, Clone, Copy, Default)]
pub struct TargetOptions {
    /// Replace a regular file that stands there.
    pub force: bool,
    /// Overwrite a block device.
    pub write_device: bool,
}

/// Opens a file or block device to write a volume of `len` bytes to.
pub fn open_target(path: &Path, len: u64, options: TargetOptions) -> Result<Box<dyn DiskWrite>, DiskError> {
    if is_block_device(path) {
        if !options.write_device {
            return Err(DiskError::IsDevice { path: path.to_owned() });
        }
        return Ok(Box::new(BlockDevice::open(path, len)?));
    }
    Ok(Box::new(NewFile::create(path, len, options.force)?))
}

/// A stream as a target: zeros are written, too.
pub fn stream_target(out: impl Write + Send + 'static, name: &'static str) -> Box<dyn DiskWrite> {
    Box::new(Stream::new(out, name))
}
