//! [`Files`] on the real file system.

use super::direct::Direct;
use super::files::{DirEntry, Files, ReadFile, Space, WriteFile};
use super::filesystem::{AFS, CEPH, FUSE, NFS, PLAN9, SMB, is_one_of};
use super::map::{Bytes, map_sealed};
use rustix::fs::{Access, AtFlags, CWD, OFlags, RenameFlags, accessat, renameat_with, statfs};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

/// The operating system's files.
#[derive(Debug, Clone, Copy, Default)]
pub struct OsFiles;

/// `O_NOFOLLOW`, as std's options want it.
pub(super) fn no_follow() -> i32 {
    i32::from_ne_bytes(OFlags::NOFOLLOW.bits().to_ne_bytes())
}

/// `O_NONBLOCK`: opening a FIFO must not wait for somebody at its other end. Files do not mind.
pub(super) fn no_waiting() -> i32 {
    i32::from_ne_bytes(OFlags::NONBLOCK.bits().to_ne_bytes())
}

/// Whether this process was started with a signal ignored, as `nohup` does; or somebody has ignored it since.
pub fn is_ignored(signal: i32) -> bool {
    let ignored = |status: &str| {
        let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?;
        let mask = u64::from_str_radix(mask.trim(), 16).ok()?;
        Some(mask >> signal.checked_sub(1)? & 1 == 1)
    };
    fs::read_to_string("/proc/self/status").is_ok_and(|status| ignored(&status) == Some(true))
}

/// Refuses what makes a file longer than this process may make one: that would end it by a signal (SIGXFSZ), without a word.
pub(super) fn check_file_limit(end: u64) -> io::Result<()> {
    match getrlimit(Resource::Fsize).current {
        Some(limit) if end > limit => Err(io::ErrorKind::FileTooLarge.into()),
        _ => Ok(()),
    }
}

/// Refuses what this process may not do with a path, judged as the system judges its calls: by its effective user, with what
/// capabilities that has.
pub(super) fn check_access(path: &Path, access: Access) -> io::Result<()> {
    match accessat(CWD, path, access, AtFlags::EACCESS) {
        // Where nobody can tell, the call itself does.
        Err(Errno::NOSYS | Errno::INVAL | Errno::PERM) => Ok(()),
        answer => Ok(answer?),
    }
}

/// Whether a path is on one of these. That it cannot be told counts as yes: then more care is taken than need be.
fn is_on(path: &Path, file_systems: &[u64]) -> bool {
    statfs(path).map_or(true, |found| is_one_of(&found, file_systems))
}

/// Whether renaming may replace a file that another host has just put there, whatever is asked for. The client of SMB promises
/// not to, looks for a file, and then has the server replace it; what stands behind FUSE may not look at the flag.
pub(super) fn may_replace(path: &Path) -> bool {
    is_on(path, &SMB) || is_on(path, &[FUSE])
}

/// A hard link never replaces anything.
fn link_new(from: &Path, to: &Path) -> io::Result<()> {
    const WHY: &str = "this file system has no hard links, which a region needs here";
    let has_none = [Errno::PERM, Errno::NOSYS, Errno::OPNOTSUPP].map(|errno| Some(errno.raw_os_error()));
    fs::hard_link(from, to).map_err(|e| match has_none.contains(&e.raw_os_error()) {
        true => io::Error::new(io::ErrorKind::Unsupported, WHY),
        false => e,
    })?;
    // The new name stands; if the old one does, too, it is a leftover like any other.
    let _ = fs::remove_file(from);
    Ok(())
}

impl Files for OsFiles {
    fn make_dir(&self, path: &Path) -> io::Result<()> {
        match fs::DirBuilder::new().mode(0o700).create(path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
            // Whatever the umask.
            made => made.and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o700))),
        }
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn WriteFile>> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(no_follow())
            .open(path)?;
        Ok(Box::new(OsWriteFile { file, direct: Direct::default(), len: 0, unsynced: 0 }))
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        if may_replace(from) {
            return link_new(from, to);
        }
        match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            // A file system without it.
            Err(Errno::INVAL | Errno::NOSYS) => link_new(from, to),
            done => done.map_err(Into::into),
        }
    }

    fn is_remote(&self, path: &Path) -> bool {
        may_replace(path) || is_on(path, &[NFS, PLAN9, CEPH, AFS])
    }

    fn rename_over(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn ReadFile>> {
        let file = OpenOptions::new().read(true).custom_flags(no_follow() | no_waiting()).open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        Ok(Arc::new(OsReadFile { file, len: metadata.len() }))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            let metadata = match entry.metadata() {
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                metadata => metadata?,
            };
            // What is neither UTF-8 nor a file nor a directory is not ours.
            if let Ok(name) = entry.file_name().into_string()
                && (metadata.is_file() || metadata.is_dir())
            {
                entries.push(DirEntry { name, is_dir: metadata.is_dir(), len: metadata.len() });
            }
        }
        Ok(entries)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir(path)
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        Ok(Space { total: fs2::total_space(path)?, available: fs2::available_space(path)? })
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        // Under its name only once it is locked: who looks for dead writers must not take it for one.
        let new = path.with_extension("new");
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(no_follow())
            .open(&new)?;
        let named = file
            .set_permissions(fs::Permissions::from_mode(0o600))
            .and_then(|()| fs2::FileExt::try_lock_exclusive(&file))
            .and_then(|()| fs::rename(&new, path));
        if let Err(error) = named {
            // Nobody else would.
            let _ = fs::remove_file(&new);
            return Err(error);
        }
        Ok(Box::new(Lock { _file: file, path: path.to_owned() }))
    }

    fn is_locked(&self, path: &Path) -> io::Result<bool> {
        let file = match OpenOptions::new().read(true).custom_flags(no_follow() | no_waiting()).open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            file => file?,
        };
        match fs2::FileExt::try_lock_shared(&file) {
            Ok(()) => Ok(false),
            Err(e) if e.raw_os_error() == fs2::lock_contended_error().raw_os_error() => Ok(true),
            Err(e) => Err(e),
        }
    }
}

/// A sign of life: the lock goes with the process, the file with an orderly end.
struct Lock {
    _file: File,
    path: std::path::PathBuf,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // If it stays, its lock is gone all the same, and whoever looks for life removes it.
        let _ = fs::remove_file(&self.path);
    }
}

/// Bytes of one file that wait to reach the disk: whoever makes something else durable may have to wait for them.
const UNSYNCED_BYTES_MAX: u64 = 64 << 20;

struct OsWriteFile {
    file: File,
    direct: Direct,
    len: u64,
    unsynced: u64,
}

impl WriteFile for OsWriteFile {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        check_file_limit(self.len.saturating_add(bytes.len() as u64))?;
        // A pack: who put it there waits until it is durable, and it would push out what others have in the cache.
        self.unsynced += self.direct.move_all_at(&self.file, self.len, bytes)? as u64;
        self.len += bytes.len() as u64;
        if self.unsynced > UNSYNCED_BYTES_MAX {
            self.unsynced = 0;
            self.file.sync_data()?;
        }
        Ok(())
    }

    fn close_up(&mut self) -> io::Result<()> {
        self.file.set_permissions(fs::Permissions::from_mode(0o400))
    }

    fn seal(&mut self) -> io::Result<()> {
        self.close_up()?;
        self.file.sync_all()
    }
}

struct OsReadFile {
    file: File,
    len: u64,
}

impl ReadFile for OsReadFile {
    fn len_bytes(&self) -> u64 {
        self.len
    }

    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn bytes(&self, map: bool) -> io::Result<Bytes> {
        if map {
            match map_sealed(&self.file) {
                // A file system without maps, as FUSE may be.
                Err(e) if e.raw_os_error() == Some(Errno::NODEV.raw_os_error()) => {}
                mapped => return mapped,
            }
        }
        let len = usize::try_from(self.len).map_err(io::Error::other)?;
        let mut bytes = vec![0; len];
        self.read_exact_at(0, &mut bytes)?;
        Ok(Bytes::Owned(Arc::new(bytes)))
    }
}
