//! Log records, and the lists that long ones spill into.

use super::codec;
use super::envelope::Kind;
use super::error::FormatError;
use crate::model::ids::ObjectHash;
use crate::model::objects::ListName;
use crate::model::op::{Author, LogRecord, Op};
use crate::model::units::TimeMs;
use serde::{Deserialize, Serialize};

/// A log record's kind.
pub const RECORD: Kind =
    Kind { what: "log record", magic: *b"IMGSRECD", context: "imgstore 2026-11 log record v1" };

/// The kind of a list that was too long for its record.
pub const LIST: Kind = Kind { what: "list", magic: *b"IMGSLIST", context: "imgstore 2026-11 list v1" };

/// Bytes of operations from which on they spill into a list of their own.
pub const INLINE_BYTES_MAX: usize = 256 << 10;

/// Where a record's operations stand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    /// In the record.
    Inline(Vec<Op>),
    /// In a list.
    Spilled {
        /// The list.
        name: ListName,
        /// Its hash.
        hash: ObjectHash,
    },
}

/// A log record as it is written: its operations may stand elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredRecord {
    /// As in [`LogRecord`].
    pub sequence: u64,
    /// As in [`LogRecord`].
    pub previous: ObjectHash,
    /// As in [`LogRecord`].
    pub nonce: [u8; 16],
    /// As in [`LogRecord`].
    pub time_ms: TimeMs,
    /// As in [`LogRecord`].
    pub author: Author,
    /// The operations, or where they are.
    pub body: Body,
}

impl StoredRecord {
    /// The record with its operations.
    pub fn with_ops(self, ops: Vec<Op>) -> LogRecord {
        let Self { sequence, previous, nonce, time_ms, author, body: _ } = self;
        LogRecord { sequence, previous, nonce, time_ms, author, ops }
    }
}

/// The bytes of a record, and its hash.
pub fn encode(record: &StoredRecord) -> Result<(Vec<u8>, ObjectHash), FormatError> {
    RECORD.seal(&codec::encode(RECORD.what, record)?)
}

/// A record and its hash.
pub fn decode(bytes: &[u8]) -> Result<(StoredRecord, ObjectHash), FormatError> {
    let (body, hash) = RECORD.open(bytes)?;
    Ok((codec::decode(RECORD.what, body)?, hash))
}

/// The bytes of a list of operations, and its hash.
pub fn encode_list(ops: &[Op]) -> Result<(Vec<u8>, ObjectHash), FormatError> {
    LIST.seal(&codec::encode(LIST.what, &ops)?)
}

/// A list of operations and its hash.
pub fn decode_list(bytes: &[u8]) -> Result<(Vec<Op>, ObjectHash), FormatError> {
    let (body, hash) = LIST.open(bytes)?;
    Ok((codec::decode(LIST.what, body)?, hash))
}
