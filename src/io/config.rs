//! Small files of the user's own, such as a home's configuration: read whole, replaced whole, changed by one
//! process at a time.

use super::clock::random_u64;
use super::os::no_follow;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Largest file that is read.
const BYTES_MAX: u64 = 1 << 20;

/// A file's text; none if it does not exist.
pub fn read(path: &Path) -> io::Result<Option<String>> {
    read_up_to(path, BYTES_MAX)
}

/// As [`read`], of a file of so many bytes at most; what is behind them is left out.
pub fn read_up_to(path: &Path, bytes_max: u64) -> io::Result<Option<String>> {
    let mut text = String::new();
    match File::open(path) {
        Ok(file) => file.take(bytes_max).read_to_string(&mut text)?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    Ok(Some(text))
}

/// Replaces a file's text, durably and at once.
pub fn replace(path: &Path, text: &str) -> io::Result<()> {
    let temporary = path.with_extension(format!("new-{:016x}", random_u64()?));
    let written = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(no_follow())
            .open(&temporary)?;
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written?;
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

/// Waits until no other process holds the lock, and holds it until what is returned is dropped. The lock goes
/// with its process, so it is never stale.
pub fn lock(path: &Path) -> io::Result<impl Sized + use<>> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(no_follow())
        .open(path)?;
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    fs2::FileExt::lock_exclusive(&file)?;
    Ok(file)
}

/// The user that a path belongs to; none if it does not exist.
pub fn owner(path: &Path) -> io::Result<Option<u32>> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(Some(metadata.uid())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// The user that this process acts as.
pub fn current_user() -> u32 {
    rustix::process::geteuid().as_raw()
}
