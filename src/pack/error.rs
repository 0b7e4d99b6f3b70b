//! What can go wrong with packs and segments.

use crate::chunk::frame::FrameError;
use crate::format::error::FormatError;
use crate::io::storage::StorageError;
use crate::model::ids::ChunkId;
use crate::model::objects::PackName;
use std::io::ErrorKind;

/// What can go wrong with packs and segments.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PackError {
    /// The storage did not do what it was asked.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// An object's bytes are not what they should be.
    #[error("{name}: {source}")]
    Damaged {
        /// The object.
        name: String,
        /// What is wrong.
        source: FormatError,
    },
    /// A frame's bytes are not those of its chunk.
    #[error("{pack} at byte {offset}, chunk {chunk}: {source}")]
    DamagedFrame {
        /// The pack.
        pack: PackName,
        /// Where in it the frame starts.
        offset: u32,
        /// The chunk.
        chunk: ChunkId,
        /// What is wrong.
        source: FrameFault,
    },
}

/// What is wrong with a stored frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameFault {
    /// As it is stored.
    #[error(transparent)]
    Stored(#[from] FormatError),
    /// As it decodes.
    #[error(transparent)]
    Decoded(#[from] FrameError),
}

impl PackError {
    pub(crate) fn damaged(name: impl ToString, source: FormatError) -> Self {
        Self::Damaged { name: name.to_string(), source }
    }

    /// Whether a newer version has written it: it is no damage.
    pub const fn is_newer(&self) -> bool {
        matches!(self, Self::Damaged { source: FormatError::Newer { .. }, .. })
    }

    /// Whether what could not be read is out of reach only: it cannot be opened here, or a newer version has written it. What a
    /// device does not give is lost.
    pub fn is_kept_away(&self) -> bool {
        match self {
            Self::Storage(StorageError::Io { action, source, .. }) => {
                *action != "read"
                    || matches!(source.kind(), ErrorKind::PermissionDenied | ErrorKind::IsADirectory)
            }
            error => error.is_newer(),
        }
    }

    /// What to do about that, behind what is wrong; nothing if it is another kind of error.
    pub fn way_out(&self) -> &'static str {
        if self.is_kept_away() { "; make those readable, or take their files away" } else { "" }
    }

    /// Whether the storage failed, so that it may do what it was asked the next time.
    pub const fn is_io(&self) -> bool {
        matches!(self, Self::Storage(StorageError::Io { .. }))
    }
}
