//! Small files of the user's own, such as a home's configuration: read whole, replaced whole, changed by one
//! process at a time.

use super::clock::random_u64;
use super::os::{check_file_limit, no_follow};
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

/// Replaces a file's text, durably and at once; only its owner may read it.
pub fn replace(path: &Path, text: &str) -> io::Result<()> {
    put(path, text, true)
}

/// Writes a page for whom the umask lets read it, in place of another page at most: what is something else is not replaced.
pub fn replace_page(path: &Path, text: &str, begin: &str) -> io::Result<()> {
    check_page(path, begin)?;
    put(path, text, false)
}

/// Whether [`replace_page`] would write here: there is nothing, or a text that begins so.
pub fn check_page(path: &Path, begin: &str) -> io::Result<()> {
    let mut first = vec![0; begin.len()];
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return fs::metadata(parent_of(path)).map(drop);
        }
        Err(e) => return Err(e),
        Ok(found) if found.is_file() && found.len() >= begin.len() as u64 => {
            File::open(path)?.read_exact(&mut first)?;
        }
        Ok(_) => {}
    }
    if first == begin.as_bytes() {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::AlreadyExists, "it is there, and no page that could be written anew"))
}

fn parent_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn put(path: &Path, text: &str, is_private: bool) -> io::Result<()> {
    let temporary = path.with_extension(format!("new-{:016x}", random_u64()?));
    let written = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(if is_private { 0o600 } else { 0o666 })
            .custom_flags(no_follow())
            .open(&temporary)?;
        if is_private {
            file.set_permissions(fs::Permissions::from_mode(0o600))?;
        }
        check_file_limit(text.len() as u64)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written?;
    File::open(parent_of(path))?.sync_all()
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

/// What is in a folder, ascending; nothing if it is not there. What is no text is changed to be one.
pub fn names_in(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let name = |entry: io::Result<fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
    let mut names = entries.map(name).collect::<io::Result<Vec<_>>>()?;
    names.sort_unstable();
    Ok(names)
}

/// The user that this process acts as.
pub fn current_user() -> u32 {
    rustix::process::geteuid().as_raw()
}
