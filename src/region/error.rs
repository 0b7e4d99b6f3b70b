//! What can go wrong with a region.

use crate::format::error::FormatError;
use crate::io::storage::StorageError;
use crate::model::catalog::Rejection;
use crate::model::ids::ChunkId;
use crate::pack::error::PackError;

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
    #[error(
        "log record {sequence} does not continue the log: {why}; `imgstore verify` says how much is affected"
    )]
    BrokenLog {
        /// The record.
        sequence: u64,
        /// What is wrong.
        why: String,
    },
    /// No pack holds the chunk.
    #[error(
        "chunk {chunk} is in no readable pack ({unreadable} packs cannot be read); `imgstore verify` says what is affected"
    )]
    MissingChunk {
        /// The chunk.
        chunk: ChunkId,
        /// Packs whose trailers could not be read.
        unreadable: usize,
    },
    /// There is no region file.
    #[error("there is no region here")]
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
    pub(crate) fn damaged(name: &str, source: FormatError) -> Self {
        Self::Damaged { name: name.to_owned(), source }
    }

    /// Whether the storage is full.
    pub const fn is_no_space(&self) -> bool {
        matches!(self, Self::Storage(StorageError::NoSpace { .. }))
    }

    /// Whether stored bytes were found to be wrong or missing, rather than out of reach.
    pub fn is_damage(&self) -> bool {
        let damage = |source: &FormatError| !matches!(source, FormatError::Newer { .. });
        match self {
            Self::Pack(PackError::Damaged { source, .. }) | Self::Damaged { source, .. } => damage(source),
            Self::Pack(PackError::DamagedFrame { .. })
            | Self::BrokenLog { .. }
            | Self::MissingChunk { .. } => true,
            Self::Storage(StorageError::NotFound { .. } | StorageError::Short { .. }) => true,
            _ => false,
        }
    }
}
