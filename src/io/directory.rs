//! [`Storage`] in a directory: each object a file that appears whole, sealed and durable, or not at all.
//!
//! Create: write a new file in `staging/`, seal it (mode 0400, fsync), rename it to its name without
//! replacement, fsync the directory. A directory's own name is made durable in its parent before the first
//! object in it is. After any failed write, sync or rename the handle writes no more.

use super::files::{DirEntry, Files, ReadFile, Space};
use super::map::Bytes;
use super::storage::{
    Created, Fill, FirstFailure, Listed, Object, Storage, StorageError, check_name, is_full, twin_of,
};
use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

const STAGING: &str = "staging";
const SESSIONS: &str = "sessions";
/// Hex digits of a writer's name.
const WRITER_LEN: usize = 32;
/// Written once when the directory becomes a region's; also the proof that names are never replaced.
const PROBE: &str = "probe";
/// Files in staging that take space, so that removals and collections on a full disk have some to begin with: several, for what
/// one has begun others may fill again.
const RESERVES: [&str; 4] = ["reserve", "reserve1", "reserve2", "reserve3"];
/// The length of each in bytes, where writers leave more than all: as a rule what is written before anything is freed fits one.
const RESERVE_BYTES: u64 = 256 << 10;

/// Bytes that no file system makes smaller.
fn incompressible(len: u64) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.take(usize::try_from(len / 8).unwrap_or(0)).flatten().collect()
}

/// What stands behind the writer in the name of a staging file.
fn is_staged_number(text: &str) -> bool {
    text == PROBE || (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()))
}

/// Whether an error of giving a name says that it was not given. Of others only the answer may be lost: over a network the
/// name may be there, and a failing disk has its own ways.
fn is_refusal(error: &io::Error) -> bool {
    use io::ErrorKind::{
        CrossesDevices, InvalidFilename, InvalidInput, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem,
        StorageFull, TooManyLinks, Unsupported,
    };
    matches!(
        error.kind(),
        CrossesDevices
            | InvalidFilename
            | InvalidInput
            | PermissionDenied
            | QuotaExceeded
            | ReadOnlyFilesystem
            | StorageFull
            | TooManyLinks
            | Unsupported
    )
}

/// How a directory is used.
#[derive(Debug, Clone, Copy)]
pub struct DirectoryOptions {
    /// Whether [`Object::bytes`] maps files; else it reads them.
    pub map: bool,
    /// Bytes that must remain available for a writer to begin, beside 1 % of the file system.
    pub reserve_bytes: u64,
}

impl Default for DirectoryOptions {
    fn default() -> Self {
        Self { map: true, reserve_bytes: 2 * (64 << 20) }
    }
}

/// What an object is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    /// Something is built on it: if it cannot be written, nothing more is.
    Content,
    /// It can be made anew any time: that there is no space for it is no reason to write nothing more.
    Cache,
}

/// Objects in a directory.
pub struct Directory<F> {
    files: F,
    root: PathBuf,
    options: DirectoryOptions,
    /// Distinguishes this handle's staging files from every other's.
    writer: String,
    staged: AtomicU64,
    latched: OnceLock<FirstFailure>,
    /// Whether what is kept back may be given up for what this handle writes.
    may_use_reserves: AtomicBool,
    /// Directories whose own names this handle made durable.
    durable_dirs: Mutex<HashSet<PathBuf>>,
    sign: Mutex<Option<Box<dyn Send + Sync>>>,
}

impl<F: Files> Directory<F> {
    /// The directory `root`, which exists. `writer` is lower-case hex that no other handle uses.
    pub fn new(files: F, root: &Path, writer: String, options: DirectoryOptions) -> Self {
        Self {
            files,
            root: root.to_owned(),
            options,
            writer,
            staged: AtomicU64::new(0),
            latched: OnceLock::new(),
            may_use_reserves: AtomicBool::new(false),
            durable_dirs: Mutex::default(),
            sign: Mutex::new(None),
        }
    }

    /// Makes `root` and, where they are missing, the directories above it; then proves that the file system
    /// refuses to replace a file on rename, without which two writers could both win. A directory in which
    /// anything but a region's own folders stands is refused.
    pub fn initialize(&self) -> Result<(), StorageError> {
        self.refuse_foreign()?;
        let missing: Vec<_> = self.root.ancestors().take_while(|dir| self.files.list(dir).is_err()).collect();
        // The root's own name, too, if somebody else made it and did not come to make it durable.
        for dir in missing.into_iter().rev().chain([self.root.as_path()]) {
            self.writing("make directory", &dir.to_string_lossy(), || {
                self.files.make_dir(dir)?;
                match dir.parent().filter(|p| !p.as_os_str().is_empty()).map(|p| self.files.sync_dir(p)) {
                    // A folder that stood before, under one that the caller may not read.
                    Some(Err(e)) if e.kind() == io::ErrorKind::PermissionDenied && dir == self.root => Ok(()),
                    synced => synced.unwrap_or(Ok(())),
                }
            })?;
        }
        self.ensure_dir(&self.root.join(STAGING))?;
        let probes = [
            self.stage(PROBE, &mut |write| write(b"1"), Need::Content)?,
            self.stage(PROBE, &mut |write| write(b"2"), Need::Content)?,
        ];
        let target = self.root.join(STAGING).join(format!("{}-{PROBE}", self.writer));
        let first = self.files.rename_new(&probes[0], &target);
        let second = self.files.rename_new(&probes[1], &target);
        for path in [&probes[1], &target] {
            self.writing("remove", PROBE, || self.files.remove(path))?;
        }
        match (first, second) {
            (Ok(()), Err(e)) if e.kind() == io::ErrorKind::AlreadyExists => {
                self.keep_reserves();
                Ok(())
            }
            (Err(e), _) => Err(StorageError::io("prove renaming on", &self.root.to_string_lossy(), e)),
            (Ok(()), _) => Err(StorageError::Io {
                action: "prove that renaming never replaces a file on",
                name: self.root.to_string_lossy().into_owned(),
                source: io::Error::other("it does; a region cannot live on this file system"),
            }),
        }
    }

    /// A region is made in an empty directory, or where another process is just making one.
    fn refuse_foreign(&self) -> Result<(), StorageError> {
        let name = self.root.to_string_lossy().into_owned();
        let entries = match self.files.list(&self.root) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(|e| StorageError::io("list", &name, e))?,
        };
        let has = |name: &str| entries.iter().any(|entry| entry.name == name);
        if has("region") {
            return Ok(());
        }
        let why = if has("log") || has("packs") || has("twins") {
            "it holds a region whose file `region` is missing; imgstore repair may bring it back".to_owned()
        } else {
            let ours = |name: &str| [STAGING, SESSIONS, "lost+found"].contains(&name);
            let Some(found) = entries.iter().find(|entry| !ours(&entry.name)) else { return Ok(()) };
            format!("it holds other things, {} for one; choose an empty or a new directory", found.name)
        };
        Err(StorageError::Io { action: "make a region in", source: io::Error::other(why), name })
    }

    /// Removes staging files and signs of life of writers that are gone: those whose lock nobody holds. What
    /// cannot be told or removed stays, and costs space only.
    fn sweep_leftovers(&self) {
        for folder in [STAGING, SESSIONS] {
            for entry in self.entries(folder).unwrap_or_default() {
                let writer = match entry.name.split_once('-') {
                    Some((writer, number)) if folder == STAGING && is_staged_number(number) => writer,
                    None if folder == SESSIONS => entry.name.as_str(),
                    _ => continue,
                };
                if entry.is_dir || !is_writer(writer) || writer == self.writer {
                    continue;
                }
                let sign = self.root.join(SESSIONS).join(writer);
                if matches!(self.files.is_locked(&sign), Ok(false)) {
                    let _ = self.files.remove(&self.root.join(folder).join(&entry.name));
                }
            }
        }
    }

    /// Takes space that a collection can give up. That it fails costs only that.
    fn keep_reserves(&self) {
        if self.options.reserve_bytes < RESERVES.len() as u64 * RESERVE_BYTES {
            return;
        }
        for name in RESERVES {
            let path = self.root.join(STAGING).join(name);
            match self.files.open(&path) {
                Ok(file) if file.len_bytes() >= RESERVE_BYTES => continue,
                // Whoever made it has not come to its end, or never will.
                Ok(_) => drop(self.files.remove(&path)),
                Err(_) => {}
            }
            let Ok(mut file) = self.files.create(&path) else { return };
            if file.write_all(&incompressible(RESERVE_BYTES)).and_then(|()| file.seal()).is_err() {
                let _ = self.files.remove(&path);
                return;
            }
        }
    }

    /// Gives one back; false if there is none.
    fn give_up_reserve(&self) -> bool {
        let path = |name: &&str| self.root.join(STAGING).join(name);
        RESERVES.iter().rev().any(|name| self.files.remove(&path(name)).is_ok())
    }

    /// Whether so little as a collection begins with cannot be written, whatever the file system says of its space: this user's part
    /// of it, or its inodes, may be used up.
    fn has_no_room(&self) -> bool {
        let path = self.root.join(STAGING).join(self.staging_name());
        let tried = self.files.create(&path).and_then(|mut file| {
            file.write_all(&incompressible(RESERVE_BYTES))?;
            // Some file systems find out only then.
            file.seal()
        });
        let _ = self.files.remove(&path);
        tried.is_err_and(|error| is_full(&error))
    }

    /// The name of this writer's next file in staging.
    fn staging_name(&self) -> String {
        format!("{}-{}", self.writer, self.staged.fetch_add(1, Ordering::Relaxed))
    }

    /// What stands directly in a folder; nothing if there is no such folder.
    fn entries(&self, folder: &str) -> Result<Vec<DirEntry>, StorageError> {
        match self.files.list(&self.root.join(folder)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            entries => entries.map_err(|e| StorageError::io("list", folder, e)),
        }
    }

    fn check_latch(&self, name: &str) -> Result<(), StorageError> {
        let latched = |first| StorageError::Latched { name: name.to_owned(), first: Some(first) };
        self.latched.get().map_or(Ok(()), |first| Err(latched(first.clone())))
    }

    /// Runs a step of writing: its failure latches this handle.
    fn writing<T>(
        &self,
        action: &'static str,
        name: &str,
        step: impl FnOnce() -> io::Result<T>,
    ) -> Result<T, StorageError> {
        step().map_err(|e| {
            self.latched.get_or_init(|| FirstFailure::new(action, name, &e));
            StorageError::io(action, name, e)
        })
    }

    /// Makes a directory below the root, and its name durable in its parent; the second even if somebody
    /// else made it, who may not have come so far.
    fn ensure_dir(&self, dir: &Path) -> Result<(), StorageError> {
        if dir == self.root || self.durable_dirs().contains(dir) {
            return Ok(());
        }
        let parent = dir.parent().unwrap_or(&self.root);
        self.ensure_dir(parent)?;
        let name = dir.to_string_lossy();
        self.writing("make directory", &name, || self.files.make_dir(dir))?;
        self.writing("sync directory above", &name, || self.files.sync_dir(parent))?;
        self.durable_dirs().insert(dir.to_owned());
        Ok(())
    }

    fn durable_dirs(&self) -> std::sync::MutexGuard<'_, HashSet<PathBuf>> {
        self.durable_dirs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks this writer's sign of life, once, and keeps it: without it others take what it stages for the
    /// leftovers of a dead writer.
    fn show_life(&self) -> Result<(), StorageError> {
        let mut sign = self.sign.lock().unwrap_or_else(PoisonError::into_inner);
        if sign.is_none() {
            self.ensure_dir(&self.root.join(SESSIONS))?;
            let path = self.root.join(SESSIONS).join(&self.writer);
            let name = format!("{SESSIONS}/{}", self.writer);
            *sign = Some(self.writing("write", &name, || self.files.lock(&path))?);
        }
        Ok(())
    }

    /// A sealed file in staging.
    fn stage(&self, name: &str, fill: &mut Fill<'_>, need: Need) -> Result<PathBuf, StorageError> {
        self.show_life()?;
        let path = self.root.join(STAGING).join(self.staging_name());
        let mut is_refused = false;
        let written = self.files.create(&path).and_then(|mut file| {
            let mut failed = false;
            let filled = fill(&mut |piece| {
                let written = file.write_all(piece);
                failed |= written.is_err();
                written
            });
            is_refused = filled.is_err() && !failed;
            if filled.is_ok() && failed {
                return Err(io::Error::other("a piece of it could not be written"));
            }
            filled.and_then(|()| file.seal())
        });
        if written.is_err() {
            // Best effort: a leftover is removed by the next writer.
            let _ = self.files.remove(&path);
        }
        if need == Need::Content
            && self.may_use_reserves.load(Ordering::SeqCst)
            && written.as_ref().is_err_and(is_full)
        {
            // It was longer than what there was room for: the next try has more.
            self.give_up_reserve();
        }
        match written {
            // Nothing was lost that anybody counts on.
            Err(source) if is_refused => {
                Err(StorageError::Io { action: "make", name: name.to_owned(), source })
            }
            Err(source) if need == Need::Cache && is_full(&source) => {
                Err(StorageError::io("write", name, source))
            }
            written => self.writing("write", name, || written).map(|()| path),
        }
    }

    /// A sealed file in staging, the place that it is for, and that place's folder, which is durable.
    fn stage_for(
        &self,
        name: &str,
        fill: &mut Fill<'_>,
        need: Need,
    ) -> Result<(PathBuf, PathBuf, PathBuf), StorageError> {
        check_name(name)?;
        self.check_latch(name)?;
        // Before it has a folder: who tidies takes those of writers that show no life.
        self.show_life()?;
        let (target, staging) = (self.root.join(name), self.root.join(STAGING));
        let parent = target.parent().unwrap_or(&self.root).to_owned();
        [&staging, &parent].into_iter().try_for_each(|dir| self.ensure_dir(dir))?;
        Ok((self.stage(name, fill, need)?, target, parent))
    }

    /// An object under a name that is free, durable.
    fn make(&self, name: &str, fill: &mut Fill<'_>, need: Need) -> Result<Created, StorageError> {
        let (staged, target, parent) = self.stage_for(name, fill, need)?;
        match self.files.rename_new(&staged, &target) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                self.writing("remove staged", name, || self.files.remove(&staged))?;
                return Ok(Created::Existed);
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let why = "what was staged for it is gone: this command was taken for dead; run it again";
                return self.writing("name", name, || Err(io::Error::other(why)));
            }
            Err(e) => {
                // What is here is as it is seen; over a network it may still come to be done.
                let is_seen = |path: &Path| self.files.open(path).map_err(|e| e.kind());
                let is_undone = is_seen(&staged).is_ok()
                    && matches!(is_seen(&target), Err(io::ErrorKind::NotFound))
                    && !self.files.is_remote(&self.root);
                let _ = self.files.remove(&staged);
                if is_undone || is_refusal(&e) {
                    return self.writing("rename", name, || Err(e));
                }
                return Err(self.unknown("rename", name, e));
            }
        }
        self.files.sync_dir(&parent).map_err(|e| self.unknown("sync directory of", name, e))?;
        Ok(Created::New)
    }

    /// A failed write after which the object may be there.
    fn unknown(&self, action: &'static str, name: &str, source: io::Error) -> StorageError {
        self.latched.get_or_init(|| FirstFailure::new(action, name, &source));
        StorageError::UnknownOutcome { action, name: name.to_owned(), source }
    }

    /// Bytes that writers leave free.
    fn kept_free(&self, space: Space) -> u64 {
        self.options.reserve_bytes + space.total / 100
    }

    fn list_below(&self, folder: &str, found: &mut Vec<Listed>) -> Result<(), StorageError> {
        for entry in self.entries(folder)? {
            let name = if folder.is_empty() { entry.name } else { format!("{folder}/{}", entry.name) };
            if check_name(&name).is_err() {
                continue;
            }
            if entry.is_dir {
                self.list_below(&name, found)?;
            } else {
                found.push(Listed { name, len: entry.len });
            }
        }
        Ok(())
    }
}

impl<F: Files> Storage for Directory<F> {
    fn create(&self, name: &str, parts: &[&[u8]]) -> Result<Created, StorageError> {
        self.make(name, &mut |write| parts.iter().try_for_each(|part| write(part)), Need::Content)
    }

    fn create_from(&self, name: &str, fill: &mut Fill<'_>) -> Result<Created, StorageError> {
        self.make(name, fill, Need::Cache)
    }

    fn has_twins(&self) -> bool {
        true
    }

    fn leave_twin(&self, name: &str, parts: &[&[u8]]) -> bool {
        // What can be left out leaves its space to a collection.
        let is_full = |space: Space| space.available < self.kept_free(space);
        if self.files.space(&self.root).is_ok_and(is_full) {
            return false;
        }
        let staged = self.root.join(STAGING).join(self.staging_name());
        let target = self.root.join(twin_of(name));
        let folders: Vec<&Path> =
            target.ancestors().skip(1).take_while(|folder| *folder != self.root).collect();
        let left = folders.iter().rev().try_for_each(|folder| self.files.make_dir(folder)).and_then(|()| {
            let mut file = self.files.create(&staged)?;
            parts.iter().try_for_each(|part| file.write_all(part))?;
            file.close_up()?;
            self.files.rename_new(&staged, &target)
        });
        if left.is_err() {
            let _ = self.files.remove(&staged);
        }
        left.is_ok()
    }

    fn restore(&self, name: &str, bytes: &[u8]) -> Result<(), StorageError> {
        let (staged, target, parent) = self.stage_for(name, &mut |write| write(bytes), Need::Content)?;
        self.writing("put back", name, || {
            self.files.rename_over(&staged, &target)?;
            self.files.sync_dir(&parent)
        })
    }

    fn open(&self, name: &str) -> Result<Arc<dyn Object>, StorageError> {
        check_name(name)?;
        let file = self.files.open(&self.root.join(name)).map_err(|e| StorageError::io("open", name, e))?;
        Ok(Arc::new(FileObject { name: name.to_owned(), map: self.options.map, file }))
    }

    fn list(&self, folder: &str) -> Result<Vec<Listed>, StorageError> {
        if !folder.is_empty() {
            check_name(folder)?;
        }
        let mut found = Vec::new();
        self.list_below(folder, &mut found)?;
        found.sort_unstable();
        Ok(found)
    }

    fn delete(&self, name: &str) -> Result<(), StorageError> {
        check_name(name)?;
        self.check_latch(name)?;
        match self.files.remove(&self.root.join(name)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            // Nothing that was acknowledged hangs on it: no reason to stop writing.
            done => done.map_err(|e| StorageError::io("remove", name, e)),
        }
    }

    fn persist(&self, folder: &str) -> Result<(), StorageError> {
        check_name(folder)?;
        self.check_latch(folder)?;
        match self.files.list(&self.root.join(folder)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            listed => listed.map_err(|e| StorageError::io("list", folder, e))?,
        };
        self.ensure_dir(&self.root.join(folder))?;
        self.writing("sync directory", folder, || self.files.sync_dir(&self.root.join(folder)))
    }

    fn admit_writer(&self) -> Result<(), StorageError> {
        const WHAT: &str = "a new session";
        self.check_latch(WHAT)?;
        let space =
            self.files.space(&self.root).map_err(|e| StorageError::io("look at the space for", WHAT, e))?;
        let needed = self.kept_free(space);
        if space.available < needed {
            return Err(StorageError::NoSpace { name: WHAT.into(), available: space.available, needed });
        }
        self.show_life()?;
        self.sweep_leftovers();
        self.keep_reserves();
        Ok(())
    }

    fn admit_collector(&self) -> Result<bool, StorageError> {
        const WHAT: &str = "a collection";
        self.check_latch(WHAT)?;
        let space =
            self.files.space(&self.root).map_err(|e| StorageError::io("look at the space for", WHAT, e))?;
        let mut is_full = space.available < self.kept_free(space);
        if !is_full {
            self.keep_reserves();
        }
        self.may_use_reserves.store(true, Ordering::SeqCst);
        while self.has_no_room() {
            is_full = true;
            if !self.give_up_reserve() {
                break;
            }
        }
        self.show_life()?;
        self.sweep_leftovers();
        Ok(is_full)
    }

    fn tidy(&self) {
        for kind in self.entries("").unwrap_or_default() {
            for DirEntry { name, is_dir, .. } in self.entries(&kind.name).unwrap_or_default() {
                if is_dir && is_writer(&name) && matches!(self.is_writer_gone(&name), Ok(true)) {
                    // Fails, as it should, if anything is in it.
                    let _ = self.files.remove_dir(&self.root.join(&kind.name).join(name));
                }
            }
        }
    }

    fn is_writer_gone(&self, writer: &str) -> Result<bool, StorageError> {
        check_name(writer)?;
        if writer == self.writer {
            return Ok(false);
        }
        let locked = self.files.is_locked(&self.root.join(SESSIONS).join(writer));
        locked.map(|is_locked| !is_locked).map_err(|e| StorageError::io("look for life of", writer, e))
    }
}

/// Whether something may be called after a writer.
fn is_writer(name: &str) -> bool {
    name.len() == WRITER_LEN && name.bytes().all(|b| b.is_ascii_hexdigit())
}

struct FileObject {
    name: String,
    map: bool,
    file: Arc<dyn ReadFile>,
}

impl Object for FileObject {
    fn len(&self) -> u64 {
        self.file.len_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), StorageError> {
        self.file.read_exact_at(offset, buffer).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => StorageError::Short {
                name: self.name.clone(),
                len: self.len(),
                offset,
                end: offset.saturating_add(buffer.len() as u64),
            },
            // An open file that cannot be read is never "not found".
            _ => StorageError::Io { action: "read", name: self.name.clone(), source },
        })
    }

    fn bytes(&self) -> Result<Bytes, StorageError> {
        self.file.bytes(self.map).map_err(|source| StorageError::Io {
            action: "read",
            name: self.name.clone(),
            source,
        })
    }
}
