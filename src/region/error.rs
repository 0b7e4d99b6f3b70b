//! What can go wrong with a region.

use crate::chunk::frame::FrameError;
use crate::format::error::FormatError;
use crate::io::storage::StorageError;
use crate::model::catalog::Rejection;
use crate::model::ids::ChunkId;
use crate::pack::error::{FrameFault, PackError};

/// What can go wrong with a region.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegionError {
    /// The storage did not do what it was asked.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A pack or segment.
    #[error(transparent)]
    Pack(PackError),
    /// Another object's bytes are not what they should be.
    #[error("{name}: {source}")]
    Damaged {
        /// The object.
        name: String,
        /// What is wrong.
        source: FormatError,
    },
    /// A record's place or predecessor is not what the log says, or it does not apply.
    #[error("log record {sequence} does not continue the log: {why}; `imgstore repair` mends it if it can")]
    BrokenLog {
        /// The record.
        sequence: u64,
        /// What is wrong.
        why: String,
    },
    /// What the log held when it was read is not in it any more.
    #[error(
        "log record {sequence} is not the one that was read before: the region was put back to an older state, or another is in its \
         place; run the command again"
    )]
    Replaced {
        /// The record; 0 for the region's own file.
        sequence: u64,
    },
    /// No pack holds the chunk.
    #[error(
        "chunk {chunk} is in no readable pack ({damaged} packs are damaged or gone, {out_of_reach} cannot be \
         read now{}); {}",
        first.as_ref().map(|why| format!(": {why}")).unwrap_or_default(),
        if *out_of_reach == 0 {
            "`imgstore verify` says what is affected"
        } else {
            "make those readable, or take their files away: then `imgstore repair` says what is lost"
        }
    )]
    MissingChunk {
        /// The chunk.
        chunk: ChunkId,
        /// Packs that are damaged or gone.
        damaged: usize,
        /// Packs that the storage could not read: they may hold it.
        out_of_reach: usize,
        /// What the storage said of the first of those.
        first: Option<String>,
    },
    /// A chunk that others were stored against is not there any more.
    #[error("chunk {base}, which others were stored against, was collected meanwhile; run the command again")]
    BaseGone {
        /// The chunk.
        base: ChunkId,
    },
    /// It is not known for sure what is needed, so nothing is removed.
    #[error(
        "nothing was removed, since {why}; `imgstore verify` says what is affected, `imgstore repair` mends it"
    )]
    Uncollectable {
        /// What stands in the way.
        why: String,
    },
    /// It is not known what a snapshot needs, so nothing is removed.
    #[error(
        "nothing was removed, since nobody knows what {root} needs: {source}; run `imgstore repair`, and if it stays \
         lost, {cure}"
    )]
    LostMap {
        /// The snapshot or template.
        root: String,
        /// How to let go of it.
        cure: String,
        /// What is wrong with its block map.
        source: Box<Self>,
    },
    /// There is no region file.
    #[error("there is no region here; if there was one, `imgstore repair` may bring its file `region` back")]
    NotARegion,
    /// A region is there already.
    #[error("there is a region here already")]
    Exists,
    /// A name that must be new was taken: another writer uses this writer's session.
    #[error("{0} was written by somebody else under this session's name; run the command again")]
    NameReused(String),
    /// The operations do not apply to the region's state.
    #[error("{0}")]
    Rejected(Rejection),
    /// A record stands where this one was to be, and whether it is this one cannot be told now.
    #[error(
        "log record {sequence} may or may not be this command's: {source}; run the command again to find out"
    )]
    Undecided {
        /// The record.
        sequence: u64,
        /// What stands in the way of knowing.
        source: Box<Self>,
    },
    /// The operating system gives no random bytes.
    #[error("no random bytes from the operating system: {0}")]
    Random(std::io::Error),
    /// The thread that writes packs is gone.
    #[error("the pack writer stopped unexpectedly")]
    WriterGone,
}

impl From<PackError> for RegionError {
    fn from(error: PackError) -> Self {
        match error {
            PackError::Storage(error) => Self::Storage(error),
            error => Self::Pack(error),
        }
    }
}

impl RegionError {
    /// The fault of a frame that did not decode to its chunk; else the error itself.
    pub fn into_frame_error(self) -> Result<FrameError, Self> {
        match self {
            Self::Pack(PackError::DamagedFrame { source: FrameFault::Decoded(fault), .. }) => Ok(fault),
            error => Err(error),
        }
    }

    pub(crate) fn damaged(name: &str, source: FormatError) -> Self {
        Self::Damaged { name: name.to_owned(), source }
    }

    /// Whether what was to be made may exist in spite of the error.
    pub const fn is_unknown_outcome(&self) -> bool {
        match self {
            Self::Storage(error) => error.is_unknown_outcome(),
            Self::Undecided { .. } => true,
            _ => false,
        }
    }

    /// Whether an object is not there.
    pub const fn is_not_found(&self) -> bool {
        matches!(self, Self::Storage(error) if error.is_not_found())
    }

    /// Whether a device failed to give bytes that it has.
    pub fn is_failed_read(&self) -> bool {
        matches!(self, Self::Storage(StorageError::Io { action: "read", source, .. })
            if source.kind() != std::io::ErrorKind::PermissionDenied)
    }

    /// Whether stored bytes are wrong or missing, or a device does not give them: those that are elsewhere are to be used.
    pub fn is_loss(&self) -> bool {
        self.is_damage() || self.is_failed_read()
    }

    /// Whether this user may not do what was tried with the storage.
    pub fn is_denied(&self) -> bool {
        matches!(self, Self::Storage(StorageError::Io { source, .. })
            if source.kind() == std::io::ErrorKind::PermissionDenied)
    }

    /// Whether the storage is full.
    pub const fn is_no_space(&self) -> bool {
        matches!(self, Self::Storage(error) if error.is_no_space())
    }

    /// Whether a newer version has written what could not be read.
    pub const fn is_newer(&self) -> bool {
        match self {
            Self::Pack(error) => error.is_newer(),
            Self::Damaged { source, .. } => matches!(source, FormatError::Newer { .. }),
            _ => false,
        }
    }

    /// Whether stored bytes were found to be wrong or missing, rather than out of reach.
    pub fn is_damage(&self) -> bool {
        let damage = |source: &FormatError| !matches!(source, FormatError::Newer { .. });
        match self {
            Self::Pack(PackError::Damaged { source, .. }) | Self::Damaged { source, .. } => damage(source),
            Self::Pack(PackError::DamagedFrame { .. }) | Self::BrokenLog { .. } => true,
            // A pack that cannot be read now may hold it: an I/O error is never absence.
            Self::MissingChunk { out_of_reach, .. } => *out_of_reach == 0,
            Self::Storage(StorageError::NotFound { .. } | StorageError::Short { .. }) => true,
            Self::Uncollectable { .. } | Self::LostMap { .. } => true,
            _ => false,
        }
    }
}
