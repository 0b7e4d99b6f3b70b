//! Folders that files are made in, and the names of files before they are whole.

use super::clock::random_u64;
use super::disk::DiskError;
use super::os::check_access;
use rustix::fs::Access;
use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Bytes of a file's name that its temporary name has, too.
const NAME_BYTES_SHOWN: usize = 200;

/// Folders that were made for what may yet fail: when this is dropped those go again that nothing is in.
#[derive(Debug, Default)]
pub struct NewDirs {
    /// Deepest last.
    made: Vec<PathBuf>,
}

impl NewDirs {
    /// Makes a directory, for its owner only, and those above it that are missing; their names are durable.
    pub fn make(path: &Path) -> Result<Self, DiskError> {
        let missing: Vec<&Path> =
            path.ancestors().take_while(|dir| !dir.as_os_str().is_empty() && !dir.exists()).collect();
        let mut new = Self::default();
        // The last one's name, too, if somebody else made it and did not come to make it durable.
        for dir in missing.into_iter().rev().chain([path]) {
            new.make_one(dir).map_err(|e| make_failed(dir, e))?;
        }
        Ok(new)
    }

    fn make_one(&mut self, dir: &Path) -> io::Result<()> {
        match DirBuilder::new().mode(0o700).create(dir) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => {}
            made => {
                made?;
                self.made.push(dir.to_owned());
                unless_fixed(fs::set_permissions(dir, Permissions::from_mode(0o700)))?;
            }
        }
        sync_folder_of(dir)
    }

    /// They stay, whatever is in them.
    pub fn keep(mut self) {
        self.made.clear();
    }
}

impl Drop for NewDirs {
    fn drop(&mut self) {
        for dir in self.made.iter().rev() {
            // Fails, as it should, if anything is in it by now.
            let _ = fs::remove_dir(dir);
        }
    }
}

/// As [`NewDirs::make`], of folders that stay.
pub fn make_dirs(path: &Path) -> Result<(), DiskError> {
    NewDirs::make(path).map(NewDirs::keep)
}

/// A folder that cannot be made is a failure, not a disk that is not there.
fn make_failed(dir: &Path, error: io::Error) -> DiskError {
    match error.kind() {
        io::ErrorKind::NotFound => {
            DiskError::Io { action: "make the folder", path: dir.to_owned(), offset: 0, source: error }
        }
        _ => DiskError::io("make the folder", dir, 0, error),
    }
}

/// Refuses a directory that could not be made or written to. Makes nothing.
pub fn check_folder(path: &Path) -> Result<(), DiskError> {
    let or_here = |dir: &Path| if dir.as_os_str().is_empty() { PathBuf::from(".") } else { dir.to_owned() };
    let Some(there) = path.ancestors().map(or_here).find(|dir| dir.exists()) else { return Ok(()) };
    if !there.is_dir() {
        return Err(DiskError::BadTarget { path: there, why: "is no folder; name another" });
    }
    let allowed = check_access(&there, Access::WRITE_OK | Access::EXEC_OK);
    allowed.map_err(|e| DiskError::io("write into", there, 0, e))
}

/// Removes a directory with the given files in it, and nothing else: what is left of a launch that failed.
pub fn remove_dir_with(dir: &Path, files: &[PathBuf]) {
    for file in files {
        let _ = fs::remove_file(file);
    }
    // Fails, as it should, if anything else is in it.
    let _ = fs::remove_dir(dir);
}

/// The folder that a file is in.
pub(super) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes the names in a folder durable, where folders can be synced.
pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    match File::open(folder)?.sync_all() {
        Err(e) if e.kind() == io::ErrorKind::InvalidInput => Ok(()),
        synced => synced,
    }
}

/// Makes the name of a file or folder durable, as far as the caller may: who may only write into the folder that it is in cannot
/// sync that. What is in the file itself is another matter.
pub(super) fn sync_folder_of(path: &Path) -> io::Result<()> {
    match sync_folder(folder_of(path)) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        synced => synced,
    }
}

/// Lets nobody else read or write a new file, whatever the umask.
pub(super) fn keep_to_owner(file: &File) -> io::Result<()> {
    unless_fixed(file.set_permissions(Permissions::from_mode(0o600)))
}

/// Where all files have the owner and mode that the file system was mounted with, as on FAT and SMB, only that owner may set
/// one, in vain.
fn unless_fixed(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(e) if matches!(e.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported) => Ok(()),
        done => done,
    }
}

/// A name beside a file, for its bytes until they are whole. No other has it.
pub(super) fn temporary_name(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let mut temporary = OsString::from(".");
    temporary.push(shown_of(name));
    temporary.push(format!(".imgstore-{:016x}", random_u64()?));
    Ok(path.with_file_name(temporary))
}

/// As much of a name as its temporary one has, too, so that this is not longer than names may be; cut between two characters.
fn shown_of(name: &OsStr) -> &OsStr {
    let bytes = name.as_bytes();
    let is_between = |at: &usize| bytes.get(*at).is_none_or(|byte| byte & 0xc0 != 0x80);
    let end = (0..=bytes.len().min(NAME_BYTES_SHOWN)).rev().find(is_between).unwrap_or(0);
    OsStr::from_bytes(&bytes[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_are_cut_between_characters() {
        assert_eq!(shown_of(OsStr::new("disk.raw")), "disk.raw");
        assert_eq!(shown_of(OsStr::new(&"n".repeat(255))), &*"n".repeat(200));
        assert_eq!(shown_of(OsStr::new(&format!("n{}", "ü".repeat(120)))), &*format!("n{}", "ü".repeat(99)));
    }

    /// What was there, and what something is in, stays.
    #[test]
    fn new_folders_go_unless_something_is_in_them() {
        let here = tempfile::tempdir().unwrap();
        let at = |name: &str| here.path().join(name);
        drop(NewDirs::make(&at("a/b/c")).unwrap());
        assert!(!at("a").exists());
        make_dirs(&at("a/b")).unwrap();
        let new = NewDirs::make(&at("a/b/c/d")).unwrap();
        assert_eq!(fs::metadata(at("a/b/c/d")).unwrap().permissions().mode() & 0o777, 0o700);
        drop(NewDirs::make(&at("a/b")).unwrap());
        fs::write(at("a/b/c/file"), b"").unwrap();
        drop(new);
        assert!(at("a/b/c/file").exists() && !at("a/b/c/d").exists());
        // Half-way up there is no folder.
        NewDirs::make(&at("a/x/y/../../b/c/file/z")).unwrap_err();
        assert!(!at("a/x").exists());
    }
}
