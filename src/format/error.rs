//! What can be wrong with bytes that should be one of our objects.

use crate::model::ids::ObjectHash;

/// Bytes that are not the object that they should be. Every variant but [`FormatError::Newer`] is damage.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// Too few or too many bytes.
    #[error("{what}: {found} bytes, expected {expected}")]
    Length {
        /// The part of the object.
        what: &'static str,
        /// Bytes that it should have.
        expected: u64,
        /// Bytes that are there.
        found: u64,
    },
    /// The first bytes are not those of this kind of object.
    #[error("{what}: its first bytes are not those of one")]
    Magic {
        /// The kind of object.
        what: &'static str,
    },
    /// Written by a newer version, or with a feature that this one does not have.
    #[error("{what}: {feature} needs a newer imgstore; update this one")]
    Newer {
        /// The kind of object.
        what: &'static str,
        /// What this version does not know.
        feature: String,
    },
    /// A hash or checksum does not fit its bytes.
    #[error("{what}: its bytes do not fit their hash")]
    Hash {
        /// The part of the object.
        what: &'static str,
    },
    /// The object is whole, but it is not the one that the log names.
    #[error("{what}: hash {found}, but the log says {expected}")]
    Identity {
        /// The kind of object.
        what: &'static str,
        /// The hash in the log.
        expected: ObjectHash,
        /// The object's.
        found: ObjectHash,
    },
    /// A field holds what it may not.
    #[error("{what}: {why}")]
    Invalid {
        /// The part of the object.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

impl FormatError {
    pub(crate) fn invalid(what: &'static str, why: impl Into<String>) -> Self {
        Self::Invalid { what, why: why.into() }
    }

    pub(crate) fn length(what: &'static str, expected: usize, found: usize) -> Self {
        Self::Length { what, expected: expected as u64, found: found as u64 }
    }
}
