//! Clones: files that share their blocks with another until one of them is written to (FICLONE); and what differs
//! between two of them, by where their blocks lie (FIEMAP).

use super::disk::{DiskError, DiskWrite};
use super::filesystem::{BTRFS, XFS, is_one_of};
use super::folder::temporary_name;
use super::os::{check_file_limit, no_follow, no_waiting};
use super::rawdisk::RawDisk;
use crate::model::changes::Changes;
use fiemap::{Fiemap, FiemapExtent, FiemapExtentFlags, FiemapFlags};
use rustix::fs::{CWD, RenameFlags, XattrFlags, fgetxattr, fsetxattr, fstatfs, ioctl_ficlone, renameat_with};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The attribute in which a kept clone says what it is of.
const ATTRIBUTE: &str = "user.imgstore.clone";
/// Longest text of it.
const NOTE_BYTES_MAX: usize = 4096;
/// Of these it is known that two files whose blocks lie at one place have the
/// same content there. Others tell places on several devices alike.
const KNOWN_FILE_SYSTEMS: [u64; 2] = [XFS, BTRFS];

/// What a file is told again by, and told from itself after a change. Not the device: its number is another one after
/// the file system was mounted again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    inode: u64,
    bytes: u64,
    modified_s: i64,
    modified_ns: i64,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified_s: metadata.mtime(),
            modified_ns: metadata.mtime_nsec(),
        }
    }
}

/// A clone that was kept.
#[derive(Debug)]
pub struct KeptClone {
    file: File,
    path: PathBuf,
    metadata: Metadata,
    note: String,
}

impl KeptClone {
    /// Opens a clone that [`NewClone::keep`] has made; none if there is no file. Any other file is refused.
    pub fn open(path: &Path) -> Result<Option<Self>, DiskError> {
        let flags = no_follow() | no_waiting();
        let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) if e.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => {
                return Err(bad(path, "is a link, which is not followed; name what it leads to"));
            }
            Err(e) => return Err(DiskError::io("open", path, 0, e)),
        };
        let metadata = file.metadata().map_err(|e| DiskError::io("look at", path, 0, e))?;
        let mut text = vec![0; NOTE_BYTES_MAX];
        match fgetxattr(&file, ATTRIBUTE, &mut text[..]) {
            Ok(len) => text.truncate(len),
            Err(_) => {
                return Err(bad(path, "is there, and no clone that a snapshot has kept; name another file"));
            }
        }
        let note = String::from_utf8_lossy(&text).into_owned();
        Ok(Some(Self { file, path: path.to_owned(), metadata, note }))
    }

    /// What was said of it when it was kept.
    pub fn note(&self) -> &str {
        &self.note
    }

    /// What it is like now.
    pub fn stamp(&self) -> Stamp {
        Stamp::of(&self.metadata)
    }
}

/// A clone in the making. Without [`NewClone::keep`] nothing is left behind.
#[derive(Debug)]
pub struct NewClone {
    file: File,
    path: PathBuf,
    temporary: Option<PathBuf>,
}

impl NewClone {
    /// Clones a disk file as it is at this moment, beside where the clone may be kept later.
    pub fn create(disk: &Path, path: &Path, base: Option<&KeptClone>) -> Result<Self, DiskError> {
        let open = OpenOptions::new().read(true).custom_flags(no_waiting()).open(disk);
        let source = open.map_err(|e| DiskError::io("open", disk, 0, e))?;
        let metadata = source.metadata().map_err(|e| DiskError::io("look at", disk, 0, e))?;
        if !metadata.is_file() {
            return Err(bad(disk, "is no regular file: only those can be cloned"));
        }
        let is_disk = |found: &Metadata| (found.dev(), found.ino()) == (metadata.dev(), metadata.ino());
        if base.is_some_and(|base| is_disk(&base.metadata)) {
            return Err(bad(path, "is the disk itself; name another file"));
        }
        let failed = |e| DiskError::io("create", path, 0, e);
        let temporary = temporary_name(path).map_err(failed)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(no_follow())
            .open(&temporary)
            .map_err(failed)?;
        let clone = Self { file, path: path.to_owned(), temporary: Some(temporary) };
        clone.share(&source)?;
        Ok(clone)
    }

    fn share(&self, with: &File) -> Result<(), DiskError> {
        const WHY: &str = "cannot share blocks with the disk: both must lie on one file system that can, such as XFS or btrfs";
        let is_shared = clone_blocks(&self.file, with);
        if is_shared.map_err(|e| DiskError::io("clone", &self.path, 0, e))? {
            Ok(())
        } else {
            Err(bad(&self.path, WHY))
        }
    }

    /// The clone as a disk.
    pub fn open(&self) -> Result<RawDisk, DiskError> {
        RawDisk::open(self.temporary.as_ref().unwrap_or(&self.path))
    }

    /// Puts it in its place, read-only and durably, with what is said of it. A clone that stands there is replaced, nothing
    /// else.
    pub fn keep(mut self, note: impl FnOnce(Stamp) -> String) -> Result<(), DiskError> {
        let failed = |e| DiskError::io("keep", self.path.clone(), 0, e);
        let note = note(Stamp::of(&self.file.metadata().map_err(failed)?));
        // Of what its owner may not write, only root sets attributes.
        fsetxattr(&self.file, ATTRIBUTE, note.as_bytes(), XattrFlags::empty())
            .map_err(|e| failed(e.into()))?;
        self.file.set_permissions(fs::Permissions::from_mode(0o400)).map_err(failed)?;
        self.file.sync_all().map_err(failed)?;
        if let Some(temporary) = &self.temporary {
            match renameat_with(CWD, temporary, CWD, &self.path, RenameFlags::NOREPLACE) {
                // Or a file system without it.
                Err(Errno::EXIST | Errno::INVAL | Errno::NOSYS) => {
                    KeptClone::open(&self.path)?;
                    fs::rename(temporary, &self.path).map_err(failed)?;
                }
                done => done.map_err(|e| failed(e.into()))?,
            }
        }
        let parent = self.path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(parent).and_then(|parent| parent.sync_all()).map_err(failed)?;
        self.temporary = None;
        Ok(())
    }
}

/// Lets a new file, in which nothing was written, share all blocks of another that has its length. Says whether it does; if not,
/// that cannot be here, and nothing was done.
pub fn share_all(new: &File, with: &File) -> io::Result<bool> {
    let len = new.metadata()?.len();
    if with.metadata()?.len() != len {
        return Ok(false);
    }
    new.set_len(0)?;
    let is_shared = clone_blocks(new, with)?;
    if !is_shared {
        new.set_len(len)?;
    }
    Ok(is_shared)
}

/// Lets an empty file share all blocks of another.
fn clone_blocks(empty: &File, with: &File) -> io::Result<bool> {
    // It may grow meanwhile.
    let len = with.metadata()?.len();
    check_file_limit(len)?;
    match ioctl_ficlone(empty, with) {
        // XFS before Linux 6.13 says the same when it stopped half-way, for want of space for one: the file is shorter then.
        Ok(()) if empty.metadata()?.len() < len => {
            Err(io::Error::other("only a part of its blocks could be shared"))
        }
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::INVAL | Errno::XDEV) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// A file that was written whole, and what it is told by from itself after a change.
#[derive(Debug, Clone)]
pub struct FinishedFile {
    path: PathBuf,
    seen: Seen,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    device: u64,
    stamp: Stamp,
    changed_s: i64,
    changed_ns: i64,
}

impl Seen {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            stamp: Stamp::of(metadata),
            changed_s: metadata.ctime(),
            changed_ns: metadata.ctime_nsec(),
        }
    }
}

impl FinishedFile {
    /// A regular file, as it is now.
    pub fn new(path: &Path) -> Result<Self, DiskError> {
        let metadata = fs::symlink_metadata(path).map_err(|e| DiskError::io("look at", path, 0, e))?;
        if !metadata.is_file() {
            return Err(bad(path, "is no regular file any more"));
        }
        Ok(Self { path: path.to_owned(), seen: Seen::of(&metadata) })
    }

    /// Lets a new disk be of its blocks, as [`DiskWrite::share_all_of`] says. That somebody has changed it is an error, too.
    pub fn share_with(&self, target: &mut dyn DiskWrite) -> Result<bool, DiskError> {
        let failed = |e| DiskError::io("look at", &self.path, 0, e);
        let opened = OpenOptions::new().read(true).custom_flags(no_follow() | no_waiting()).open(&self.path);
        let source = opened.map_err(failed)?;
        let check = || match source.metadata().map_err(failed)? {
            found if Seen::of(&found) == self.seen => Ok(()),
            _ => Err(bad(&self.path, "is not as it was written any more")),
        };
        check()?;
        let is_shared = target.share_all_of(&source)?;
        // What was written meanwhile may be in it.
        check().map(|()| is_shared)
    }
}

impl Drop for NewClone {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // If it was renamed already, there is nothing to remove.
            let _ = fs::remove_file(temporary);
        }
    }
}

/// Where a new clone differs from one that was kept; or why that cannot be told. Both are files that nobody writes to.
/// What lies at one place on the disk is the same; what lies elsewhere, or nowhere that is told, may differ.
pub fn changes_between(base: &KeptClone, new: &NewClone) -> Result<Result<Changes, &'static str>, DiskError> {
    let failed = |e| DiskError::io("look for the extents of", base.path.clone(), 0, e);
    let (before, now) = (fstatfs(&base.file), fstatfs(&new.file));
    let (before, now) = (before.map_err(|e| failed(e.into()))?, now.map_err(|e| failed(e.into()))?);
    if !is_one_of(&now, &KNOWN_FILE_SYSTEMS) {
        return Ok(Err("its file system is neither XFS nor btrfs"));
    }
    // XFS may have a second device, with places of its own; a file there has that device's size for its file system's.
    let is_one_device = (before.f_type, before.f_blocks) == (now.f_type, now.f_blocks);
    if !is_one_device || base.metadata.dev() != new.file.metadata().map_err(failed)?.dev() {
        return Ok(Err("it lies on another device than the clone"));
    }
    let len = base.metadata.len();
    if new.file.metadata().map_err(failed)?.len() != len {
        return Ok(Err("the disk has another length than it had"));
    }
    let look = || compare(pieces(&base.file, len), pieces(&new.file, len), len).map_err(failed);
    let changes = look()?;
    // The file system may move files (defragmentation, balancing) between the two answers.
    Ok(if look()? == changes { Ok(changes) } else { Err("the file system moves its extents") })
}

/// Where a piece of a file lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Nowhere: it reads as zeros.
    Hole,
    /// At a place on the disk, together with another file.
    At(u64),
    /// Not told, or not as plain blocks.
    Unknown,
}

/// A piece of a file, by bytes.
#[derive(Debug, Clone, Copy)]
struct Piece {
    start: u64,
    end: u64,
    place: Place,
}

/// The pieces of a file, from its first byte to its last without a gap.
fn pieces(file: &File, len: u64) -> impl Iterator<Item = io::Result<Piece>> {
    // SYNC: what was written and has no place yet gets one.
    let extents = Fiemap::with_flags(file, FiemapFlags::SYNC);
    cover(extents.map(|extent| extent.map(|extent| (piece(&extent), is_last(&extent)))), len)
}

/// Fills the gaps between pieces, each with whether it is said to be the file's last.
fn cover(
    extents: impl Iterator<Item = io::Result<(Piece, bool)>>,
    len: u64,
) -> impl Iterator<Item = io::Result<Piece>> {
    let mut extents = extents.peekable();
    let mut is_whole = false;
    let mut position = 0;
    std::iter::from_fn(move || {
        if position >= len {
            return None;
        }
        let piece = match extents.peek() {
            Some(Ok((next, _))) if next.start > position => {
                Ok(Piece { start: position, end: next.start.min(len), place: Place::Hole })
            }
            Some(Ok((next, _))) if next.start < position || next.end <= position => {
                Err(io::Error::other("the file system's list of extents is out of order"))
            }
            Some(_) => extents.next()?.map(|(next, is_last)| {
                is_whole = is_last;
                Piece { end: next.end.min(len), ..next }
            }),
            // Only behind what is marked as the last one is it known that nothing is there.
            None if is_whole => Ok(Piece { start: position, end: len, place: Place::Hole }),
            None => Ok(Piece { start: position, end: len, place: Place::Unknown }),
        };
        // An error is the last that comes.
        position = piece.as_ref().map_or(len, |piece| piece.end);
        Some(piece)
    })
}

fn is_last(extent: &FiemapExtent) -> bool {
    extent.fe_flags.contains(FiemapExtentFlags::LAST)
}

fn piece(extent: &FiemapExtent) -> Piece {
    // Not compressed, encrypted, inline, unwritten, delayed, or anything that is not known yet.
    let is_plain =
        extent.fe_flags.bits() & !FiemapExtentFlags::LAST.bits() == FiemapExtentFlags::SHARED.bits();
    let place =
        if is_plain && extent.fe_physical > 0 { Place::At(extent.fe_physical) } else { Place::Unknown };
    Piece { start: extent.fe_logical, end: extent.fe_logical.saturating_add(extent.fe_length), place }
}

/// The ranges in which two files of one length are not known to be the same.
fn compare(
    mut base: impl Iterator<Item = io::Result<Piece>>,
    mut new: impl Iterator<Item = io::Result<Piece>>,
    len: u64,
) -> io::Result<Changes> {
    let ended = || io::Error::other("the file system's list of extents ends early");
    let mut changes = Changes::default();
    let (mut one, mut other) = (
        Piece { start: 0, end: 0, place: Place::Unknown },
        Piece { start: 0, end: 0, place: Place::Unknown },
    );
    let mut position = 0;
    while position < len {
        if one.end <= position {
            one = base.next().ok_or_else(ended)??;
        }
        if other.end <= position {
            other = new.next().ok_or_else(ended)??;
        }
        let end = one.end.min(other.end);
        let is_same = match (one.place, other.place) {
            (Place::Hole, Place::Hole) => true,
            (Place::At(a), Place::At(b)) => {
                a.checked_add(position - one.start) == b.checked_add(position - other.start)
            }
            _ => false,
        };
        if !is_same {
            changes.add_bytes(position..end);
        }
        position = end;
    }
    Ok(changes)
}

fn bad(path: &Path, why: &'static str) -> DiskError {
    DiskError::BadTarget { path: path.to_owned(), why }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::single_range_in_vec_init, reason = "lists of ranges, not numbers")]
    use super::*;
    use crate::io::outfile::NewFile;

    const K: u64 = 4096;

    fn of(pieces: &[(u64, u64, Place)]) -> impl Iterator<Item = io::Result<Piece>> {
        pieces.iter().map(|&(start, end, place)| Ok(Piece { start: start * K, end: end * K, place }))
    }

    #[test]
    fn the_same_place_is_the_same_content_and_nothing_else_is() {
        use Place::{At, Hole, Unknown};
        let base =
            [(0, 4, At(K)), (4, 8, Hole), (8, 16, At(100 * K)), (16, 18, Unknown), (18, 20, At(7 * K))];
        let of_itself = compare(of(&base), of(&base), 20 * K).unwrap();
        assert_eq!(of_itself.ranges(), [16..18]);
        // Extents split otherwise, one block elsewhere, a hole filled, an extent that moved by a block.
        let new = [
            (0, 1, At(K)),
            (1, 2, At(50 * K)),
            (2, 4, At(3 * K)),
            (4, 5, Hole),
            (5, 6, At(60 * K)),
            (6, 8, Hole),
            (8, 16, At(101 * K)),
            (16, 18, At(5 * K)),
            (18, 20, Hole),
        ];
        assert_eq!(compare(of(&base), of(&new), 20 * K).unwrap().ranges(), [1..2, 5..6, 8..20]);
        assert!(compare(of(&base[..2]), of(&new), 20 * K).is_err(), "a list that ends early");
    }

    /// What came to its place while the snapshot was made.
    #[test]
    fn a_clone_replaces_a_clone_and_nothing_else() {
        let here = tempfile::tempdir().unwrap();
        let path = here.path().join("kept");
        let keep = |note: &str| {
            let temporary = here.path().join(".new");
            fs::write(&temporary, note).unwrap();
            let (file, temporary) = (File::open(&temporary).unwrap(), Some(temporary));
            NewClone { file, path: path.clone(), temporary }.keep(|_| note.to_owned())
        };
        for note in ["first", "second"] {
            keep(note).unwrap();
            assert_eq!(KeptClone::open(&path).unwrap().unwrap().note(), note);
        }
        fs::remove_file(&path).unwrap();
        fs::write(&path, "somebody's").unwrap();
        let error = keep("third").unwrap_err().to_string();
        assert!(error.contains("no clone that a snapshot has kept"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"somebody's");
        assert_eq!(fs::read_dir(here.path()).unwrap().count(), 1);
    }

    #[test]
    fn only_a_regular_file_that_is_as_it_was_is_shared() {
        let here = tempfile::tempdir().unwrap();
        let path = |name: &str| here.path().join(name);
        for name in ["longer", "same", "written", "moved"] {
            fs::write(path(name), vec![1; if name == "longer" { 8193 } else { 8192 }]).unwrap();
        }
        std::os::unix::fs::symlink(path("same"), path("link")).unwrap();
        for name in ["link", "nothing", "."] {
            FinishedFile::new(&path(name)).unwrap_err();
        }
        let [longer, same, written, moved] =
            ["longer", "same", "written", "moved"].map(|name| FinishedFile::new(&path(name)).unwrap());
        let mut new = NewFile::create(&path("new"), 8192, false).unwrap();
        assert!(!longer.share_with(&mut new).unwrap());
        // With the times that it had, but for the one that nobody can set.
        std::thread::sleep(std::time::Duration::from_millis(20));
        let modified = fs::metadata(path("written")).unwrap().modified().unwrap();
        fs::write(path("written"), [2; 8192]).unwrap();
        File::options().write(true).open(path("written")).unwrap().set_modified(modified).unwrap();
        let error = written.share_with(&mut new).unwrap_err();
        assert!(error.to_string().contains("is not as it was written any more"), "{error}");
        // Another file of its name, and a link to one.
        fs::copy(path("same"), path("copy")).unwrap();
        fs::rename(path("copy"), path("moved")).unwrap();
        moved.share_with(&mut new).unwrap_err();
        fs::remove_file(path("moved")).unwrap();
        std::os::unix::fs::symlink(path("same"), path("moved")).unwrap();
        moved.share_with(&mut new).unwrap_err();
        // Nothing was done for any of these; whether it can be depends on the file system.
        let mut another = NewFile::create(&path("another"), 8192, false).unwrap();
        let is_shared = same.share_with(&mut another).unwrap();
        for (new, name, byte) in [(new, "new", 0), (another, "another", u8::from(is_shared))] {
            Box::new(new).finish().unwrap();
            assert_eq!(fs::read(path(name)).unwrap(), [byte; 8192]);
        }
    }

    /// Somebody writes to the file while it is cloned.
    #[test]
    fn a_file_that_changes_while_it_is_cloned_is_an_error() {
        struct Late(PathBuf);
        impl DiskWrite for Late {
            fn write_at(&mut self, _offset: u64, _bytes: &[u8]) -> Result<(), DiskError> {
                unreachable!("it is only cloned to")
            }
            fn zero_at(&mut self, _offset: u64, _len: u64) -> Result<(), DiskError> {
                unreachable!("it is only cloned to")
            }
            fn share_all_of(&mut self, _file: &File) -> Result<bool, DiskError> {
                std::thread::sleep(std::time::Duration::from_millis(20));
                fs::write(&self.0, [2; 8192]).unwrap();
                Ok(true)
            }
            fn finish(self: Box<Self>) -> Result<(), DiskError> {
                unreachable!("it is only cloned to")
            }
        }
        let here = tempfile::tempdir().unwrap();
        let path = here.path().join("file");
        fs::write(&path, [1; 8192]).unwrap();
        let file = FinishedFile::new(&path).unwrap();
        file.share_with(&mut Late(path)).unwrap_err();
    }

    #[test]
    fn a_list_that_does_not_say_that_it_ends_tells_nothing_of_the_rest() {
        let list = |is_last: bool| {
            let piece = Piece { start: K, end: 2 * K, place: Place::At(K) };
            let covered: Vec<Piece> =
                cover([Ok((piece, is_last))].into_iter(), 9 * K).collect::<io::Result<_>>().unwrap();
            covered.into_iter().map(Ok)
        };
        let changes = |is_last| compare(list(is_last), list(is_last), 9 * K).unwrap();
        assert!(changes(true).ranges().is_empty());
        assert_eq!(changes(false).ranges(), [2..9]);
    }

    #[test]
    fn the_last_block_may_be_part_of_one() {
        let base = [(0, 2, Place::At(K))];
        let new = [(0, 1, Place::At(K)), (1, 2, Place::At(9 * K))];
        let cut = |pieces: &[(u64, u64, Place)]| {
            let of: Vec<_> =
                of(pieces).map(|piece| piece.map(|p| Piece { end: p.end.min(K + 5), ..p })).collect();
            of.into_iter()
        };
        assert_eq!(compare(cut(&base), cut(&new), K + 5).unwrap().ranges(), [1..2]);
    }

    #[test]
    fn a_real_file_is_covered_or_its_file_system_cannot_tell() {
        use std::os::unix::fs::FileExt;
        let folder = std::env::temp_dir()
            .join(format!("imgstore-reflink-{:016x}", crate::io::clock::random_u64().unwrap()));
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&folder).unwrap();
        file.set_len(1 << 20).unwrap();
        file.write_all_at(&[1; 8192], 65_536).unwrap();
        let found: io::Result<Vec<Piece>> = pieces(&file, 1 << 20).collect();
        fs::remove_file(&folder).unwrap();
        let Ok(found) = found else { return };
        assert_eq!(found.first().map(|piece| piece.start), Some(0));
        assert_eq!(found.last().map(|piece| piece.end), Some(1 << 20));
        assert!(found.windows(2).all(|pair| pair[0].end == pair[1].start));
        assert!(found.iter().all(|piece| !matches!(piece.place, Place::At(_))), "it shares nothing");
    }
}
