//! Targets to write a volume to: a new file, a block device, a stream.

use super::disk::{DiskError, DiskWrite, FileWrite};
use super::folder::{folder_of, keep_to_owner, sync_folder_of, temporary_name};
use super::os::{check_access, check_file_limit, may_replace, no_follow};
use super::reflink::share_all;
use super::write_behind::WriteBehind;
use crate::model::ids::{InstanceId, VolumeId};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Access, CWD, FallocateFlags, Mode, OFlags, RenameFlags, fcntl_getfl, renameat_with};
use rustix::io::Errno;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A new file that gets its name only when it is whole and durable.
#[derive(Debug)]
pub struct NewFile {
    out: WriteBehind,
    path: PathBuf,
    temporary: Option<PathBuf>,
    replace: bool,
}

impl NewFile {
    /// Refuses what stands in the way of a file.
    pub fn check(path: &Path, replace: bool) -> Result<(), DiskError> {
        match fs::symlink_metadata(path) {
            Ok(metadata) if !metadata.is_file() => {
                let kind = metadata.file_type();
                let why = match kind {
                    kind if kind.is_dir() => "is a folder; name a file in it",
                    kind if kind.is_symlink() => "is a link, which is not followed; name what it leads to",
                    kind if kind.is_block_device() => "is a block device, which takes a raw disk only",
                    _ => "is no regular file",
                };
                Err(DiskError::BadTarget { path: path.to_owned(), why })
            }
            Ok(_) if !replace => Err(DiskError::Exists { path: path.to_owned() }),
            Err(e) if !is_no_place(&e) => Err(DiskError::io("look at", path, 0, e)),
            _ => Self::check_place(path),
        }
    }

    /// Refuses a name under which no file can be made.
    fn check_place(path: &Path) -> Result<(), DiskError> {
        let bad = |why| Err(DiskError::BadTarget { path: path.to_owned(), why });
        if path.as_os_str().as_bytes().ends_with(b"/") {
            return bad("is named like a folder; name a file");
        }
        let folder = folder_of(path);
        match fs::metadata(folder) {
            Ok(found) if found.is_dir() => check_access(folder, Access::WRITE_OK | Access::EXEC_OK)
                .map_err(|e| DiskError::io("create", path, 0, e)),
            Err(e) if !is_no_place(&e) => Err(DiskError::io("look for the folder of", path, 0, e)),
            _ => bad("cannot be made: its folder is not there; make it, or name another"),
        }
    }

    /// A sparse file of `len` bytes, to be called `path`. It is written beside it under a temporary name.
    /// What stands at `path` is refused, or replaced at the end if `replace` and if it is a regular file.
    pub fn create(path: &Path, len: u64, replace: bool) -> Result<Self, DiskError> {
        Self::check(path, replace)?;
        let failed = |e| DiskError::io("create", path, 0, e);
        check_file_limit(len).map_err(failed)?;
        let temporary = temporary_name(path).map_err(failed)?;
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(no_follow())
            .open(&temporary)
            .map_err(failed)?;
        let out = WriteBehind::new(file);
        let new = Self { out, path: path.to_owned(), temporary: Some(temporary), replace };
        keep_to_owner(new.out.file()).map_err(failed)?;
        new.out.file().set_len(len).map_err(|e| DiskError::io("set the length of", path, len, e))?;
        Ok(new)
    }

    fn publish(&mut self) -> Result<(), DiskError> {
        self.give_name().map_err(|e| match e.kind() {
            io::ErrorKind::AlreadyExists => DiskError::Exists { path: self.path.clone() },
            _ => DiskError::io("finish", &self.path, 0, e),
        })?;
        let named = sync_folder_of(&self.path);
        named.map_err(|e| DiskError::io("make durable the name, which stands now, of", &self.path, 0, e))
    }

    fn give_name(&mut self) -> io::Result<()> {
        self.out.sync_all()?;
        let Some(temporary) = &self.temporary else { return Ok(()) };
        if self.replace {
            fs::rename(temporary, &self.path)?;
        } else if may_replace(temporary) {
            publish_without_flags(temporary, &self.path)?;
        } else {
            match renameat_with(CWD, temporary, CWD, &self.path, RenameFlags::NOREPLACE) {
                Err(Errno::INVAL | Errno::NOSYS) => publish_without_flags(temporary, &self.path)?,
                done => done?,
            }
        }
        self.temporary = None;
        Ok(())
    }
}

/// Whether a path leads nowhere, or through what is no folder.
fn is_no_place(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Files that get their names together, once all of them are whole and durable. Those that are not given one go again.
#[derive(Debug, Clone, Default)]
pub struct Together(Arc<Mutex<Vec<NewFile>>>);

impl Together {
    /// One of them; as [`NewFile::create`].
    pub fn create(&self, path: &Path, len: u64, replace: bool) -> Result<OneOf, DiskError> {
        Ok(OneOf { file: NewFile::create(path, len, replace)?, ready: self.clone() })
    }

    /// Gives those that are finished their names.
    pub fn publish(self) -> Result<(), DiskError> {
        let files = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        files.into_iter().try_for_each(|file| DiskWrite::finish(Box::new(file)))
    }
}

/// A file that waits for others.
#[derive(Debug)]
pub struct OneOf {
    file: NewFile,
    ready: Together,
}

impl OneOf {
    fn finish_writing(mut self) -> Result<(), DiskError> {
        self.file.out.sync_all().map_err(|e| DiskError::io("finish", &self.file.path, 0, e))?;
        self.ready.0.lock().unwrap_or_else(PoisonError::into_inner).push(self.file);
        Ok(())
    }
}

impl FileWrite for OneOf {
    fn put_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.file.put_at(offset, bytes)
    }

    fn close(self: Box<Self>) -> Result<(), DiskError> {
        self.finish_writing()
    }
}

impl DiskWrite for OneOf {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.file.write_at(offset, bytes)
    }

    fn write_parts_at(&mut self, offset: u64, parts: &[&[u8]]) -> Result<(), DiskError> {
        self.file.write_parts_at(offset, parts)
    }

    fn zero_at(&mut self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.file.zero_at(offset, len)
    }

    fn finish(self: Box<Self>) -> Result<(), DiskError> {
        self.finish_writing()
    }
}

/// Gives a file its name where renaming knows no flags: by a link, and where there are none, if nothing has the name.
fn publish_without_flags(temporary: &Path, path: &Path) -> io::Result<()> {
    match rustix::fs::link(temporary, path) {
        Ok(()) => {
            // The name stands; if the old one does, too, that says what it is.
            let _ = fs::remove_file(temporary);
            Ok(())
        }
        Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS) => match fs::symlink_metadata(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => fs::rename(temporary, path),
            found => found.and(Err(io::ErrorKind::AlreadyExists.into())),
        },
        Err(error) => Err(error.into()),
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // Nothing half-made stays; if this fails, the name says what it is.
            let _ = fs::remove_file(temporary);
        }
    }
}

impl FileWrite for NewFile {
    fn put_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.write_parts_at(offset, &[bytes])
    }

    fn close(self: Box<Self>) -> Result<(), DiskError> {
        self.finish()
    }
}

impl DiskWrite for NewFile {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.put_at(offset, bytes)
    }

    fn write_parts_at(&mut self, offset: u64, parts: &[&[u8]]) -> Result<(), DiskError> {
        let failed = |e| DiskError::io("write", &self.path, offset, e);
        let len: usize = parts.iter().map(|part| part.len()).sum();
        check_file_limit(offset.saturating_add(len as u64)).map_err(failed)?;
        self.out.write_parts_at(offset, parts).map_err(failed)
    }

    fn share_all_of(&mut self, file: &File) -> Result<bool, DiskError> {
        share_all(self.out.file(), file).map_err(|e| DiskError::io("clone to", &self.path, 0, e))
    }

    /// A new file reads as zeros where nothing was written.
    fn zero_at(&mut self, _offset: u64, _len: u64) -> Result<(), DiskError> {
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<(), DiskError> {
        self.publish()
    }
}

/// A block device that is overwritten.
#[derive(Debug)]
pub struct BlockDevice {
    out: WriteBehind,
    path: PathBuf,
}

impl BlockDevice {
    /// Opens a block device of at least `len` bytes for writing, exclusively: one that is mounted is refused.
    pub fn open(path: &Path, len: u64) -> Result<Self, DiskError> {
        let file = Self::open_exclusively(path, len, OpenOptions::new().write(true))?;
        Ok(Self { out: WriteBehind::new(file), path: path.to_owned() })
    }

    /// Refuses what [`BlockDevice::open`] refuses. Nothing is opened for writing: who closes such a device makes the system look at it anew.
    pub fn check(path: &Path, len: u64) -> Result<(), DiskError> {
        check_access(path, Access::WRITE_OK).map_err(|e| DiskError::io("open", path, 0, e))?;
        Self::open_exclusively(path, len, OpenOptions::new().read(true)).map(drop)
    }

    fn open_exclusively(path: &Path, len: u64, options: &mut OpenOptions) -> Result<File, DiskError> {
        let failed = |e| DiskError::io("open", path, 0, e);
        let exclusive = i32::from_ne_bytes(rustix::fs::OFlags::EXCL.bits().to_ne_bytes());
        let mut file = options.custom_flags(exclusive).open(path).map_err(failed)?;
        if !file.metadata().map_err(failed)?.file_type().is_block_device() {
            return Err(DiskError::NotADisk { path: path.to_owned(), found: "no block device any more" });
        }
        let found = file.seek(io::SeekFrom::End(0)).map_err(failed)?;
        if found < len {
            return Err(DiskError::TooSmall { path: path.to_owned(), expected: len, found });
        }
        Ok(file)
    }
}

impl DiskWrite for BlockDevice {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.write_parts_at(offset, &[bytes])
    }

    fn write_parts_at(&mut self, offset: u64, parts: &[&[u8]]) -> Result<(), DiskError> {
        self.out.write_parts_at(offset, parts).map_err(|e| DiskError::io("write", &self.path, offset, e))
    }

    /// Old content stands on a device: zeros are made, by the device if it can, by writing them otherwise.
    fn zero_at(&mut self, offset: u64, len: u64) -> Result<(), DiskError> {
        let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        if rustix::fs::fallocate(self.out.file(), flags, offset, len).is_ok() {
            return Ok(());
        }
        let zeros = vec![0; ZERO_BYTES.min(usize::try_from(len).unwrap_or(ZERO_BYTES))];
        let mut at = offset;
        while at < offset + len {
            let count = zeros.len().min(usize::try_from(offset + len - at).unwrap_or(usize::MAX));
            self.write_at(at, &zeros[..count])?;
            at += count as u64;
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<(), DiskError> {
        self.out.sync_all().map_err(|e| DiskError::io("sync", &self.path, 0, e))
    }
}

const ZERO_BYTES: usize = 1 << 20;

/// How often it is asked whether to go on while a reader takes nothing.
const ASKED_EACH: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };

/// A stream, such as standard output: everything is written, zeros too, front to back.
pub struct Stream {
    out: File,
    name: &'static str,
    position: u64,
    /// Where in a regular file it begins.
    begins_at: Option<u64>,
    cancelled: Arc<AtomicBool>,
}

impl Stream {
    /// Standard output, of which nobody else writes anything meanwhile. Written to directly: the standard library takes an
    /// output that cannot be written to for one that wants nothing. A reader of a pipe may stand still: what waits for it ends
    /// with [`DiskError::Interrupted`] once it is `cancelled`.
    pub fn stdout(cancelled: Arc<AtomicBool>) -> Result<Self, DiskError> {
        let name = "standard output";
        let owned = io::stdout().as_fd().try_clone_to_owned();
        let failed = |e| DiskError::io("open", name, 0, e);
        let mut out = File::from(owned.map_err(failed)?);
        let begins_at = place_in_file(&mut out).map_err(failed)?;
        if out.metadata().is_ok_and(|found| found.file_type().is_fifo()) {
            // Opened anew, so that not waiting is not for all who have this pipe. Who may not do that waits.
            let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let anew = rustix::fs::open(format!("/proc/self/fd/{}", out.as_raw_fd()), flags, Mode::empty());
            out = anew.map_or(out, File::from);
        }
        Ok(Self { out, name, position: 0, begins_at, cancelled })
    }

    fn write_all(&mut self, mut bytes: &[u8]) -> Result<(), DiskError> {
        let (name, position) = (self.name, self.position);
        let failed = |e| DiskError::io("write", name, position, e);
        while !bytes.is_empty() {
            match self.out.write(bytes) {
                Ok(0) => return Err(failed(io::ErrorKind::WriteZero.into())),
                Ok(count) => bytes = &bytes[count..],
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if self.cancelled.load(Ordering::SeqCst) {
                        return Err(DiskError::Interrupted);
                    }
                    let mut waited_for = [PollFd::new(&self.out, PollFlags::OUT)];
                    match poll(&mut waited_for, Some(&ASKED_EACH)) {
                        Ok(_) | Err(Errno::INTR) => {}
                        Err(e) => return Err(failed(e.into())),
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(failed(e)),
            }
        }
        Ok(())
    }
}

/// Where in a file the next byte goes; none for what is no regular file.
fn place_in_file(out: &mut File) -> io::Result<Option<u64>> {
    let found = out.metadata()?;
    if !found.is_file() {
        return Ok(None);
    }
    match fcntl_getfl(&*out).is_ok_and(|flags| flags.contains(OFlags::APPEND)) {
        true => Ok(Some(found.len())),
        false => out.stream_position().map(Some),
    }
}

/// Refuses what a limit of the file size keeps from standard output, if that is a file: the system would end the program.
pub fn check_stdout_limit(len: usize) -> io::Result<()> {
    let mut out = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    place_in_file(&mut out)?.map_or(Ok(()), |begin| check_file_limit(begin.saturating_add(len as u64)))
}

impl DiskWrite for Stream {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        debug_assert_eq!(offset, self.position);
        let end = self.position + bytes.len() as u64;
        let limited = self.begins_at.map_or(Ok(()), |begin| check_file_limit(begin + end));
        limited.map_err(|e| DiskError::io("write", self.name, offset, e))?;
        self.write_all(bytes)?;
        self.position = end;
        Ok(())
    }

    fn zero_at(&mut self, offset: u64, len: u64) -> Result<(), DiskError> {
        let zeros = vec![0; ZERO_BYTES];
        let mut left = len;
        while left > 0 {
            let count = zeros.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            self.write_at(offset + (len - left), &zeros[..count])?;
            left -= count as u64;
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<(), DiskError> {
        // A file or a device is durable then; pipes and terminals cannot be.
        match self.out.sync_all() {
            Err(e)
                if !matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::ReadOnlyFilesystem) =>
            {
                Err(DiskError::io("sync", self.name, self.position, e))
            }
            _ => Ok(()),
        }
    }
}

/// Whether a path is a block device.
pub fn is_block_device(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|m| m.file_type().is_block_device())
}

/// Removes a disk file that this program made under a name with an id of its own: `vol-….raw`, or any file in a
/// folder that is called like an instance. Anything else, and what is no regular file, is refused. Whether there was one: that it
/// is gone is no error.
pub fn remove_made_file(path: &Path) -> Result<bool, DiskError> {
    let refuse = |found| Err(DiskError::NotADisk { path: path.to_owned(), found });
    let name = path.file_stem().and_then(|name| name.to_str());
    let folder = path.parent().and_then(|folder| folder.file_name()?.to_str());
    let is_volume = name.is_some_and(|name| name.parse::<VolumeId>().is_ok());
    let in_instance = folder.is_some_and(|name| name.parse::<InstanceId>().is_ok());
    if !is_volume && !in_instance {
        return refuse("not in a place where imgstore makes disks; remove it yourself if nothing uses it");
    }
    match fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.is_file() => refuse("no regular file any more"),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        found => {
            found.and_then(|_| fs::remove_file(path)).map_err(|e| DiskError::io("remove", path, 0, e))?;
            Ok(true)
        }
    }
}

/// Removes the folder of an instance, if nothing is in it. Any other folder stays. That it is gone, or something is in it, is no
/// error.
pub fn remove_instance_folder(folder: &Path) -> Result<(), DiskError> {
    let name = folder.file_name().and_then(|name| name.to_str());
    if name.is_none_or(|name| name.parse::<InstanceId>().is_err()) {
        return Ok(());
    }
    match fs::remove_dir(folder) {
        Err(e) if !matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => {
            Err(DiskError::io("remove", folder, 0, e))
        }
        _ => Ok(()),
    }
}

/// A path as a record keeps it.
pub fn utf8(path: &Path) -> Result<String, DiskError> {
    let not_utf8 = || DiskError::NotADisk { path: path.to_owned(), found: "not named in UTF-8" };
    Ok(path.to_str().ok_or_else(not_utf8)?.to_owned())
}

/// Where something is or would be, links followed: the part of its path that exists, and what is to be made in there. None if
/// that cannot be told.
pub fn physical(path: &Path) -> Option<PathBuf> {
    let path = std::path::absolute(path).ok()?;
    let mut names = Vec::new();
    for folder in path.ancestors() {
        match folder.canonicalize() {
            Ok(mut found) => {
                found.extend(names.iter().rev());
                return Some(found);
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => names.push(folder.file_name()?),
            Err(_) => return None,
        }
    }
    None
}

/// A path made absolute, without following links.
pub fn absolute(path: &Path) -> Result<PathBuf, DiskError> {
    std::path::absolute(path).map_err(|e| DiskError::io("resolve", path, 0, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// None of several files has its name before all are whole; those that are not named go.
    #[test]
    fn files_are_named_together() {
        let folder = tempfile::tempdir().unwrap();
        let names = || {
            let all = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
            let mut all: Vec<_> = all.filter(|name| !name.as_bytes().starts_with(b".")).collect();
            all.sort();
            all
        };
        let make = |several: &Together, name: &str| {
            let mut file = several.create(&folder.path().join(name), 5, false).unwrap();
            file.write_at(0, b"whole").unwrap();
            file
        };
        let several = Together::default();
        DiskWrite::finish(Box::new(make(&several, "a"))).unwrap();
        let second = make(&several, "b");
        assert!(names().is_empty());
        drop((second, several));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "one failed");
        let several = Together::default();
        for name in ["a", "b"] {
            DiskWrite::finish(Box::new(make(&several, name))).unwrap();
        }
        assert!(names().is_empty());
        several.publish().unwrap();
        assert_eq!(names(), ["a", "b"]);
        assert_eq!(fs::read(folder.path().join("b")).unwrap(), b"whole");
    }
}
