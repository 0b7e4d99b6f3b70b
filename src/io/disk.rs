//! What a disk is to the pipelines: a length, extents, positioned reads; and a target of positioned writes.

use super::storage::is_full;
use crate::model::units::display_bytes;
use std::fs::File;
use std::io;
use std::path::PathBuf;

/// A part of a disk that surely reads as zeros, or that must be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First byte.
    pub start: u64,
    /// One after the last byte.
    pub end: u64,
    /// Whether it reads as zeros without being read.
    pub is_zero: bool,
}

/// A disk to read.
pub trait DiskRead: Send + Sync {
    /// Its length in bytes.
    fn len_bytes(&self) -> u64;

    /// The extent that `offset`, which is less than the length, lies in, from `offset` on. Extents are hints:
    /// a data extent may hold zeros.
    fn extent_at(&self, offset: u64) -> Result<Extent, DiskError>;

    /// Fills `buffer` from `offset`; both inside the disk.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError>;

    /// Whether reading is mostly computing, such as decompressing, so that several threads read faster than one.
    fn is_computed(&self) -> bool {
        false
    }
}

/// A disk to write.
pub trait DiskWrite: Send {
    /// Writes bytes at an offset. Offsets ascend.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), DiskError>;

    /// Writes parts that follow each other, the first at an offset: in one go where the target can.
    fn write_parts_at(&mut self, offset: u64, parts: &[&[u8]]) -> Result<(), DiskError> {
        let mut at = offset;
        for part in parts {
            self.write_at(at, part)?;
            at += part.len() as u64;
        }
        Ok(())
    }

    /// Makes a range read as zeros. Offsets ascend together with those of `write_at`.
    fn zero_at(&mut self, offset: u64, len: u64) -> Result<(), DiskError>;

    /// Takes over a file of the same length with all that is to be written, by sharing its blocks, where that can be. Says
    /// whether it did; if not, nothing was done, and everything is to be written. After an error parts may be as in the file:
    /// the target is of no use then.
    fn share_all_of(&mut self, _file: &File) -> Result<bool, DiskError> {
        Ok(false)
    }

    /// Makes everything durable and gives the disk its name. Without it nothing is left behind.
    fn finish(self: Box<Self>) -> Result<(), DiskError>;
}

/// A file in the making that a writer of a disk format stands on. Unlike a disk's, its places are written in any
/// order, and its length is where the last byte was written.
pub trait FileWrite: Send {
    /// Puts bytes at an offset of the file. What is never written reads as zeros.
    fn put_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), DiskError>;

    /// Makes everything durable and gives the file its name. Without it nothing is left behind.
    fn close(self: Box<Self>) -> Result<(), DiskError>;
}

/// What can go wrong with a disk.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    /// There is no such file.
    #[error("{path}: no such file or device")]
    NotFound {
        /// The disk.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("{action} {path}{}: {source}", at_byte(*offset))]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Where on the disk.
        offset: u64,
        /// The system's answer.
        source: io::Error,
    },
    /// The target's file system is full.
    #[error("{path}: no space left at byte {offset}; free some space or choose another place")]
    NoSpace {
        /// The disk.
        path: PathBuf,
        /// Where.
        offset: u64,
    },
    /// The disk became shorter while it was read.
    #[error(
        "{path} ended at byte {found} while it was read; it had {expected} bytes when it was opened. Nothing uses it now? Then run the command again"
    )]
    Shrank {
        /// The disk.
        path: PathBuf,
        /// Its length when it was opened.
        expected: u64,
        /// Where it ended.
        found: u64,
    },
    /// Who asked for something of the disk does not want it any more.
    #[error("interrupted; nothing was left half-done")]
    Interrupted,
    /// Nothing to store.
    #[error("{path} is empty; a volume has at least one byte")]
    Empty {
        /// The disk.
        path: PathBuf,
    },
    /// Neither a file nor a block device.
    #[error("{path} is {found}; a disk is a regular file or a block device")]
    NotADisk {
        /// What was given.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// It cannot be written to, or not be used as is asked.
    #[error("{path} {why}")]
    BadTarget {
        /// What was given.
        path: PathBuf,
        /// What it is, and the cure.
        why: &'static str,
    },
    /// The file holds a disk in another format than it is taken for.
    #[error("{path} begins like a {found} disk, not a raw one; {cure}")]
    WrongFormat {
        /// The file.
        path: PathBuf,
        /// The format whose signature it bears.
        found: &'static str,
        /// What to do.
        cure: &'static str,
    },
    /// A file in a disk format is damaged, hostile, or in a variant that is not read.
    #[error("{path} is refused as {format}: {why}; {cure}")]
    Refused {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: &'static str,
        /// What is wrong with it.
        why: String,
        /// What to do.
        cure: &'static str,
    },
    /// A format cannot hold a volume.
    #[error("{path}: {format} holds at most {}, the volume has {}; choose another --format", display_bytes(*limit), display_bytes(*expected))]
    TooLong {
        /// The output.
        path: PathBuf,
        /// The format.
        format: &'static str,
        /// Bytes of the volume.
        expected: u64,
        /// Bytes that the format holds at most.
        limit: u64,
    },
    /// The output stands already.
    #[error("{path} exists; choose another name, or replace it with --force")]
    Exists {
        /// The output.
        path: PathBuf,
    },
    /// A file of a bundle stands already.
    #[error(
        "{path} exists; choose another name or folder, or remove the bundle's files if they are left from a run that was killed"
    )]
    BundleExists {
        /// The file.
        path: PathBuf,
    },
    /// A block device would be overwritten.
    #[error(
        "{path} is a block device; it would be overwritten, as far as the volume is long. If that is what you want, add --write-device"
    )]
    IsDevice {
        /// The device.
        path: PathBuf,
    },
    /// The target cannot hold the volume.
    #[error("{path} has {found} bytes, the volume {expected} ({}); choose a larger target", display_bytes(*expected))]
    TooSmall {
        /// The target.
        path: PathBuf,
        /// Bytes of the volume.
        expected: u64,
        /// Bytes of the target.
        found: u64,
    },
    /// A file that belongs to a bundle is damaged or hostile, or a bundle cannot be made as it was asked for.
    #[error("{path}: {why}; {cure}")]
    BadBundle {
        /// The file, or the directory of a bundle that is not made yet.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
        /// What to do.
        cure: &'static str,
    },
}

/// Where on a disk, unless it is its beginning, or nowhere in it.
fn at_byte(offset: u64) -> String {
    if offset == 0 { String::new() } else { format!(" at byte {offset}") }
}

impl DiskError {
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>, offset: u64, source: io::Error) -> Self {
        let path = path.into();
        match source.kind() {
            io::ErrorKind::NotFound => Self::NotFound { path },
            io::ErrorKind::ResourceBusy => {
                Self::BadTarget { path, why: "is in use; unmount what is on it first" }
            }
            _ if is_full(&source) => Self::NoSpace { path, offset },
            _ => Self::Io { action, path, offset, source },
        }
    }
}

impl<T: DiskRead + ?Sized> DiskRead for std::sync::Arc<T> {
    fn len_bytes(&self) -> u64 {
        (**self).len_bytes()
    }

    fn extent_at(&self, offset: u64) -> Result<Extent, DiskError> {
        (**self).extent_at(offset)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        (**self).read_at(offset, buffer)
    }

    fn is_computed(&self) -> bool {
        (**self).is_computed()
    }
}
