//! The seam under a directory region: the file system calls that durability hangs on, one by one, so that a
//! simulator can lose power between any two of them.

use super::map::Bytes;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// The last part of the path.
    pub name: String,
    /// Whether it is a directory.
    pub is_dir: bool,
    /// Length in bytes of a file.
    pub len: u64,
}

/// Bytes of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// All.
    pub total: u64,
    /// Those that may still be used.
    pub available: u64,
}

/// File system calls. Nothing is durable before a call that says so returned well.
pub trait Files: Send + Sync {
    /// Makes a directory, readable by its owner only; one that is there is no error. Not durable.
    fn make_dir(&self, path: &Path) -> io::Result<()>;

    /// Makes a new, empty file, readable by its owner only, and follows no link. Not durable.
    fn create(&self, path: &Path) -> io::Result<Box<dyn WriteFile>>;

    /// Moves a file to a name that must be free: `AlreadyExists` if it is not, and then nothing changed.
    /// Not durable.
    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Whether another host may still do what failed here.
    fn is_remote(&self, _path: &Path) -> bool {
        false
    }

    /// Moves a file to a name, in the place of what may have that. Not durable. For repair only.
    fn rename_over(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Makes the names in a directory durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    /// Opens a sealed file for reading, and follows no link.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn ReadFile>>;

    /// The names in a directory, in any order.
    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>>;

    /// Removes a file. Not durable.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Removes a directory if nothing is in it. Not durable.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;

    /// The file system's space.
    fn space(&self, path: &Path) -> io::Result<Space>;

    /// Makes and locks a file until what is returned is dropped or the process ends.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>>;

    /// Whether somebody holds the lock on a file; one that is not there is not locked.
    fn is_locked(&self, path: &Path) -> io::Result<bool>;
}

/// A file being written, front to back.
pub trait WriteFile: Send {
    /// Appends all of the bytes. Not durable.
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Makes the file read-only. Not durable.
    fn close_up(&mut self) -> io::Result<()>;

    /// Makes the file read-only and its content durable. After an error the file is garbage.
    fn seal(&mut self) -> io::Result<()>;
}

/// A file open for reading.
pub trait ReadFile: Send + Sync {
    /// Its length in bytes when it was opened.
    fn len_bytes(&self) -> u64;

    /// Fills the buffer from `offset`; `UnexpectedEof` if the file ends before.
    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// All bytes: a map, if `map` and where that is possible.
    fn bytes(&self, map: bool) -> io::Result<Bytes>;
}
