//! The seam under a region: whole immutable objects by name, as an object store keeps them.
//!
//! `tests/storage_conformance.rs` runs every contract below on every implementation.

use super::map::Bytes;
use crate::model::units::display_bytes;
use std::sync::Arc;

/// How [`Storage::create`] ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// The object is there, durable, with our bytes.
    New,
    /// An object of that name was there before; it was not touched.
    Existed,
}

/// An object's name and length in a listing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listed {
    /// The whole name.
    pub name: String,
    /// Its length in bytes.
    pub len: u64,
}

/// Hands an object's bytes piece by piece to what it is given.
pub type Fill<'a> = dyn FnMut(&mut dyn FnMut(&[u8]) -> std::io::Result<()>) -> std::io::Result<()> + 'a;

/// Whole immutable objects by name. Names are parts of lower-case letters, digits, dots and dashes joined by
/// `/`; no part starts with a dot.
pub trait Storage: Send + Sync {
    /// Makes an object of the concatenated parts, if none has that name. On `New` it is durable, under its
    /// name, whole. On an error it may or may not appear: see [`StorageError::is_unknown_outcome`].
    fn create(&self, name: &str, parts: &[&[u8]]) -> Result<Created, StorageError>;

    /// As [`Storage::create`], of bytes that are made piece by piece, where a storage can take them so: for objects
    /// that are too large for memory and can be made anew any time. If `fill` gives up by itself, or there is no space,
    /// there is no object, and that is no failed write.
    fn create_from(&self, name: &str, fill: &mut Fill<'_>) -> Result<Created, StorageError> {
        let mut bytes = Vec::new();
        fill(&mut |piece| {
            bytes.extend(piece);
            Ok(())
        })
        .map_err(|source| StorageError::Io { action: "make", name: name.to_owned(), source })?;
        self.create(name, &[&bytes])
    }

    /// An object for reading; [`StorageError::NotFound`] only if there is none of that name.
    fn open(&self, name: &str) -> Result<Arc<dyn Object>, StorageError>;

    /// All objects whose names start with `folder/`, ascending by name; an empty folder lists everything.
    /// An object that was durable before the call and is not deleted during it is in the list.
    fn list(&self, folder: &str) -> Result<Vec<Listed>, StorageError>;

    /// Leaves a second copy of an object that was just created, its *twin*: see [`twin_of`]. Nothing waits for it to be
    /// durable, and that it fails is no failure. A storage that loses no object by itself leaves none. Whether it did.
    fn leave_twin(&self, _name: &str, _parts: &[&[u8]]) -> bool {
        false
    }

    /// Whether it leaves any.
    fn has_twins(&self) -> bool {
        false
    }

    /// Puts an object's own bytes in the place of what damage has left of it; then it is there, durable and whole. For
    /// repair only: objects are immutable.
    fn restore(&self, name: &str, bytes: &[u8]) -> Result<(), StorageError>;

    /// Removes an object; one that is not there counts as removed.
    fn delete(&self, name: &str) -> Result<(), StorageError>;

    /// Makes durable whatever objects directly in `folder` this process has seen, whoever made them. After
    /// it, what was read from there survives a crash.
    fn persist(&self, folder: &str) -> Result<(), StorageError>;

    /// Asked before a writer stores anything large: refuses with [`StorageError::NoSpace`] where it would fill
    /// the storage up, and cleans up after writers that died.
    fn admit_writer(&self) -> Result<(), StorageError>;

    /// Asked before a removal or a collection, which frees space and must first write a little: shows that this writer lives, and
    /// on a storage that is nearly full gives up what was kept back for this. Whether it is nearly full; then
    /// nothing is written that can be left out. The next writer that is admitted keeps something back again.
    fn admit_collector(&self) -> Result<bool, StorageError>;

    /// Removes what writers that are gone have left of no use, as their empty folders: every listing looks into each. That it fails
    /// costs only that.
    fn tidy(&self) {}

    /// Whether the writer of that name is known to be gone. What it left half-made may be removed, once the log says
    /// that nothing it still does counts; so a wrong `true` costs that writer's work, and nothing else.
    fn is_writer_gone(&self, writer: &str) -> Result<bool, StorageError>;
}

/// An immutable object that was opened. It stays readable even if it is deleted, where the storage can do
/// that; else reads say `NotFound`.
#[expect(clippy::len_without_is_empty, reason = "no object is empty")]
pub trait Object: Send + Sync {
    /// Its length in bytes.
    fn len(&self) -> u64;

    /// Fills `buffer` with the bytes at `offset`, by a positioned read.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), StorageError>;

    /// All of its bytes, mapped where that is possible.
    fn bytes(&self) -> Result<Bytes, StorageError>;
}

/// What storage can answer instead of doing what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// There is no object of that name.
    #[error("{name} does not exist")]
    NotFound {
        /// The object.
        name: String,
    },
    /// The storage would be full.
    #[error(
        "no space for {name}: {} available, {} needed; free some space or use another region", display_bytes(*available), display_bytes(*needed)
    )]
    NoSpace {
        /// What was to be written.
        name: String,
        /// Bytes that may be used.
        available: u64,
        /// Bytes that must be available.
        needed: u64,
    },
    /// The storage, or what this user may have of it, is full: how much it lacks nobody knows.
    #[error("{action} {name}: {source}; free some space, with `imgstore gc` for one, or use another region")]
    Full {
        /// What was tried.
        action: &'static str,
        /// On what.
        name: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The operating system refused, before anything could appear under the name.
    #[error("{action} {name}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        name: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// It failed at a moment after which the object may exist, or may come to exist.
    #[error(
        "{action} {name} failed and may or may not have taken effect: {source}; run the command again to find out"
    )]
    UnknownOutcome {
        /// What was tried.
        action: &'static str,
        /// On what.
        name: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// An earlier write failed, so this handle writes no more.
    #[error(
        "not writing {name}: an earlier write failed{}, so nothing after it may count; run the command again",
        first.as_ref().map(|first| format!(" ({})", first.what)).unwrap_or_default()
    )]
    Latched {
        /// What was to be written.
        name: String,
        /// The write that failed first; none if that is not known.
        first: Option<FirstFailure>,
    },
    /// Fewer bytes than the object should have.
    #[error("{name} ends at byte {len}, but bytes {offset} to {end} were expected")]
    Short {
        /// The object.
        name: String,
        /// Its length.
        len: u64,
        /// First byte wanted.
        offset: u64,
        /// One after the last byte wanted.
        end: u64,
    },
    /// Not a name of an object.
    #[error("{name:?} is not a name that a region gives")]
    BadName {
        /// What was given.
        name: String,
    },
}

/// The write that failed first of those of a handle: whoever met it may have gone on without.
#[derive(Debug, Clone)]
pub struct FirstFailure {
    what: String,
    is_full: bool,
}

impl FirstFailure {
    pub(super) fn new(action: &str, name: &str, source: &std::io::Error) -> Self {
        Self { what: format!("{action} {name}: {source}"), is_full: is_full(source) }
    }
}

impl StorageError {
    /// Whether the object may exist in spite of the error.
    pub const fn is_unknown_outcome(&self) -> bool {
        matches!(self, Self::UnknownOutcome { .. })
    }

    /// Whether this says that there is no such object. Every other error leaves that open.
    pub const fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// Whether there is no space.
    pub const fn is_no_space(&self) -> bool {
        matches!(
            self,
            Self::NoSpace { .. }
                | Self::Full { .. }
                | Self::Latched { first: Some(FirstFailure { is_full: true, .. }), .. }
        )
    }

    pub(super) fn io(action: &'static str, name: &str, source: std::io::Error) -> Self {
        match source.kind() {
            std::io::ErrorKind::NotFound => Self::NotFound { name: name.to_owned() },
            _ if is_full(&source) => Self::Full { action, name: name.to_owned(), source },
            _ => Self::Io { action, name: name.to_owned(), source },
        }
    }
}

/// Whether there is no space, or no more for this user.
pub(super) fn is_full(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
}

/// The name of an object's twin.
pub fn twin_of(name: &str) -> String {
    format!("twins/{name}")
}

/// Whether a text can name an object.
pub fn is_object_name(name: &str) -> bool {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    name.len() <= 200
        && name.split('/').all(|part| !part.is_empty() && !part.starts_with('.') && part.bytes().all(good))
}

pub(super) fn check_name(name: &str) -> Result<(), StorageError> {
    if is_object_name(name) { Ok(()) } else { Err(StorageError::BadName { name: name.to_owned() }) }
}

/// Reads a whole object of at most `limit` bytes.
pub fn read_whole(storage: &dyn Storage, name: &str, limit: u64) -> Result<Vec<u8>, StorageError> {
    let object = storage.open(name)?;
    let len = object.len();
    if len > limit {
        return Err(StorageError::Short { name: name.to_owned(), len, offset: 0, end: limit });
    }
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
    object.read_at(0, &mut bytes)?;
    Ok(bytes)
}
