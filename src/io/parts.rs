//! The files of a bundle: new ones, which go again unless all of them are kept, and foreign ones, which are
//! opened with distrust.

use super::disk::{DiskError, DiskWrite};
use super::folder::{NewDirs, keep_to_owner, sync_folder};
use super::os::{check_file_limit, no_follow, no_waiting};
use super::outfile::NewFile;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::ops::RangeInclusive;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Files being made in a directory. Unless [`NewParts::publish`] succeeds they are removed when this is
/// dropped, and with them the directories that were made for them.
#[derive(Debug)]
pub struct NewParts {
    dir: PathBuf,
    names: Vec<String>,
    kept: bool,
    /// Dropped last: what is in them goes first.
    _made_dirs: NewDirs,
}

impl NewParts {
    /// Makes the directory where it is missing. If anything with a name that `is_taken` recognises stands in
    /// it, that is refused as [`DiskError::BundleExists`].
    pub fn begin(dir: &Path, is_taken: impl Fn(&str) -> bool) -> Result<Self, DiskError> {
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        let _made_dirs = NewDirs::make(dir)?;
        let new = Self { dir: dir.to_owned(), names: Vec::new(), kept: false, _made_dirs };
        let failed = |e| DiskError::io("list", dir, 0, e);
        for entry in fs::read_dir(dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_name().to_str().is_some_and(&is_taken) {
                return Err(DiskError::BundleExists { path: entry.path() });
            }
        }
        Ok(new)
    }

    /// Makes a file with this name and these bytes, for its owner only. Its content is durable, its name not
    /// yet. What stands there already is refused as [`DiskError::BundleExists`].
    pub fn add(&mut self, name: String, bytes: &[u8]) -> Result<(), DiskError> {
        let path = self.dir.join(&name);
        let opened =
            OpenOptions::new().write(true).create_new(true).mode(0o600).custom_flags(no_follow()).open(&path);
        let mut file = opened.map_err(|e| match e.kind() {
            io::ErrorKind::AlreadyExists => DiskError::BundleExists { path: path.clone() },
            _ => DiskError::io("create", &path, 0, e),
        })?;
        // Ours from here on, so that a half-written file goes, too.
        self.names.push(name);
        let written = keep_to_owner(&file)
            .and_then(|()| check_file_limit(bytes.len() as u64))
            .and_then(|()| file.write_all(bytes))
            .and_then(|()| file.sync_all());
        written.map_err(|e| DiskError::io("write", path, 0, e))
    }

    /// Makes the names of all files durable, and then, whole or not at all, the file `name`, by which they
    /// count. From then on they stay.
    pub fn publish(mut self, name: &str, bytes: &[u8]) -> Result<(), DiskError> {
        sync_folder(&self.dir).map_err(|e| DiskError::io("sync", &self.dir, 0, e))?;
        let path = self.dir.join(name);
        let done = NewFile::create(&path, bytes.len() as u64, false).and_then(|mut file| {
            file.write_at(0, bytes)?;
            Box::new(file).finish()
        });
        let done = done.map_err(|error| match error {
            DiskError::Exists { path } => DiskError::BundleExists { path },
            error => error,
        });
        self.kept = match done {
            Ok(()) => true,
            // Somebody else's.
            Err(DiskError::BundleExists { .. }) => false,
            // Its name stands, but perhaps not for long: then it must not stand without what it names.
            Err(_) => !fs::symlink_metadata(&path).is_err_and(|e| e.kind() == io::ErrorKind::NotFound),
        };
        done
    }
}

impl Drop for NewParts {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        for name in &self.names {
            // Nothing half-made stays, as far as that is possible.
            let _ = fs::remove_file(self.dir.join(name));
        }
    }
}

const CURE: &str = "copy the bundle here again, or make it anew";

/// Looks whether a file is regular, no symbolic link, and as long as it may be.
pub fn check_file(path: &Path, lens: RangeInclusive<u64>) -> Result<(), DiskError> {
    open_file(path, &lens).map(|_| ())
}

/// Reads a whole file, of which [`check_file`] must hold. Nothing is allocated for one that is too long.
pub fn read_file(path: &Path, lens: RangeInclusive<u64>) -> Result<Vec<u8>, DiskError> {
    let (mut file, len) = open_file(path, &lens)?;
    let len = usize::try_from(len).map_err(|e| DiskError::io("read", path, 0, io::Error::other(e)))?;
    let mut bytes = vec![0; len];
    file.read_exact(&mut bytes).map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => bad(path, "it became shorter while it was read".into()),
        _ => DiskError::io("read", path, 0, e),
    })?;
    Ok(bytes)
}

fn open_file(path: &Path, lens: &RangeInclusive<u64>) -> Result<(File, u64), DiskError> {
    let opened = OpenOptions::new().read(true).custom_flags(no_follow() | no_waiting()).open(path);
    let file = opened.map_err(|e| {
        if e.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) {
            return bad(path, "it is a symbolic link".into());
        }
        DiskError::io("open", path, 0, e)
    })?;
    let metadata = file.metadata().map_err(|e| DiskError::io("open", path, 0, e))?;
    if !metadata.is_file() {
        return Err(bad(path, "it is no regular file".into()));
    }
    let (len, min, max) = (metadata.len(), lens.start(), lens.end());
    if !lens.contains(&len) {
        let may = if min == max { format!("{min}") } else { format!("{min} to {max}") };
        return Err(bad(path, format!("it has {len} bytes, not {may}")));
    }
    Ok((file, len))
}

fn bad(path: &Path, why: String) -> DiskError {
    DiskError::BadBundle { path: path.to_owned(), why, cure: CURE }
}
