//! Checkpoints: the catalogue as replayed up to a record. A cache that may be missing or wrong.

use super::codec;
use super::envelope::Kind;
use super::error::FormatError;
use crate::model::catalog::Catalog;
use crate::model::ids::ObjectHash;
use serde::{Deserialize, Serialize};

/// A checkpoint's kind.
pub const CHECKPOINT: Kind =
    Kind { what: "checkpoint", magic: *b"IMGSCKPT", context: "imgstore 2026-11 checkpoint v1" };

/// The catalogue after a record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Hash of the record that `catalog.sequence` numbers.
    pub record_hash: ObjectHash,
    /// The state after it.
    pub catalog: Catalog,
}

/// The bytes of a checkpoint.
pub fn encode(checkpoint: &Checkpoint) -> Result<Vec<u8>, FormatError> {
    CHECKPOINT.seal(&codec::encode(CHECKPOINT.what, checkpoint)?).map(|(bytes, _)| bytes)
}

/// A checkpoint.
pub fn decode(bytes: &[u8]) -> Result<Checkpoint, FormatError> {
    let (body, _) = CHECKPOINT.open(bytes)?;
    let checkpoint: Checkpoint = codec::decode(CHECKPOINT.what, body)?;
    Ok(Checkpoint { catalog: checkpoint.catalog.with_derived(), ..checkpoint })
}
