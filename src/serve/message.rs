//! What two hosts say to each other.
//!
//! A message is a *head*, in the encoding of docs/FORMAT.md ("Values"), and a *body* of bytes behind it, which only some
//! have. Both have a largest length.

use super::error::{LinkError, Refusal};
use crate::format::codec;
use crate::format::error::FormatError;
use crate::model::account::AccountId;
use crate::model::ids::{ChunkId, RegionId};
use crate::model::image::Image;
use crate::model::region::ChunkerParams;
use crate::model::snapshot::{Snapshot, Template};
use crate::model::units::{BLOCK_BYTES, CHUNK_BLOCKS_MAX};
use crate::ops::copy::{CopyOptions, CopyWhat};
use crate::ops::offer::Offer;
use crate::ops::source::Found;
use serde::{Deserialize, Serialize};

/// The protocol's version: both sides have the same, or do not talk.
pub const VERSION: u32 = 2;
/// Largest head: an image with all the tags and devices that one can have, or a list of chunks.
pub const HEAD_BYTES_MAX: usize = 4 << 20;
/// Largest body: a frame, or a piece of something longer.
pub const BODY_BYTES_MAX: usize = CHUNK_BLOCKS_MAX as usize * BLOCK_BYTES + (64 << 10);
/// Bytes of a piece of something that is longer.
pub const PIECE_BYTES: usize = 256 << 10;
/// Most chunks that are asked about in one message.
pub const LOCATE_MAX: usize = 8 << 10;
/// Most frames that are asked for in one message.
pub const FETCH_MAX: usize = 1 << 10;

/// What two hosts say to each other, besides a body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// The first word: who calls.
    Hello {
        /// [`VERSION`] of the caller.
        version: u32,
        /// Make the region, so, if it is not there.
        create: Option<NewRegion>,
    },
    /// The answer: who is there.
    Welcome(Welcome),
    /// Not possible, and why. Ends whatever was asked for.
    Refused(Refusal),

    /// What have you of this?
    Offer(CopyWhat),
    /// This.
    Offered(Box<Offer>),
    /// The block maps of what you offered.
    Maps,
    /// The body is a piece of one.
    MapPiece {
        /// Whether it is the last of its map.
        is_last: bool,
    },
    /// Where are these chunks of it?
    Locate(Vec<ChunkId>),
    /// There, in the same order.
    Located(Vec<Found>),
    /// The frames of these chunks of it; with `true`, only one that needs no base is of use.
    Fetch(Vec<(ChunkId, bool)>),
    /// The body is one of them.
    Frame {
        /// The chunk.
        id: ChunkId,
        /// Its codec's number.
        codec: u8,
        /// Its length in blocks.
        raw_blocks: u16,
    },

    /// Copy this from me; from here on you ask.
    Pull {
        /// The region that it is in.
        region: RegionId,
        /// The name that this gives itself.
        name: String,
        /// What.
        what: CopyWhat,
        /// As what.
        options: CopyOptions,
        /// Only say what it would move.
        dry_run: bool,
    },
    /// What it will move, before it does.
    Planned(Planned),
    /// So many bytes more are done.
    Progress(u64),
    /// Something that the user should know.
    Note(String),
    /// Done; I ask no more. None for a dry run.
    Pulled(Option<Box<Pulled>>),

    /// Run a command there; these are its arguments.
    Run(Vec<String>),
    /// The body is a piece of what it printed.
    Output {
        /// Whether to standard error.
        is_error: bool,
    },
    /// It ended.
    Exit(u8),
}

/// What a new region shall be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewRegion {
    /// Its name.
    pub name: String,
    /// Where its chunker cuts.
    pub chunker: ChunkerParams,
    /// zstd level of new frames.
    pub zstd_level: u8,
}

/// Who is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// [`VERSION`] of the host.
    pub version: u32,
    /// The program's version.
    pub program: String,
    /// The region.
    pub region: RegionId,
    /// The name that it gives itself.
    pub name: String,
    /// Where its chunker cuts.
    pub chunker: ChunkerParams,
    /// Its zstd level.
    pub zstd_level: u8,
    /// Whom the caller is taken for.
    pub account: AccountId,
    /// Whether the caller is a guest: it was given this account, and sees no more than that may.
    pub is_guest: bool,
}

impl Welcome {
    /// The place of one that has not come yet.
    pub fn nobody() -> Self {
        Self {
            version: VERSION,
            program: String::new(),
            region: RegionId([0; 16]),
            name: String::new(),
            chunker: ChunkerParams::DEFAULT,
            zstd_level: 0,
            account: AccountId::from_random(0),
            is_guest: false,
        }
    }
}

/// What a copy will move.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Planned {
    /// Length of all volumes.
    pub volume_bytes: u64,
    /// Bytes of them outside zero runs.
    pub data_bytes: u64,
    /// Chunk references of all.
    pub chunks: u64,
    /// Different chunks of all.
    pub distinct_chunks: u64,
    /// Chunks that will be moved.
    pub new_chunks: u64,
    /// Raw bytes of those.
    pub new_bytes: u64,
    /// Stored bytes of those, and of manifests.
    pub transfer_bytes: u64,
    /// About what they take at the target: more, where deltas find no base there.
    pub stored_bytes: u64,
}

/// What a copy made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pulled {
    /// The image, if one was copied.
    pub image: Option<Image>,
    /// The snapshots.
    pub snapshots: Vec<Snapshot>,
    /// The template, if the image stands on one.
    pub template: Option<Template>,
    /// Bytes that were moved.
    pub transferred_bytes: u64,
    /// Bytes that this added to the target; what was moved, for a guest.
    pub stored_bytes: u64,
    /// Whether an earlier request with the same token had made it.
    pub was_made_before: bool,
}

impl Message {
    /// The head's bytes.
    pub fn encode(&self) -> Result<Vec<u8>, LinkError> {
        let head = codec::encode("message", self).map_err(|e| LinkError::protocol(e.to_string()))?;
        if head.len() > HEAD_BYTES_MAX {
            return Err(LinkError::protocol(format!(
                "a message of {} bytes is too long to send",
                head.len()
            )));
        }
        Ok(head)
    }

    /// The message that a head is. Only some have a body.
    pub fn decode(head: &[u8], body_len: usize) -> Result<Self, LinkError> {
        let message: Self =
            codec::decode("message", head).map_err(|e: FormatError| LinkError::protocol(e.to_string()))?;
        let has_body = matches!(message, Self::MapPiece { .. } | Self::Frame { .. } | Self::Output { .. });
        if body_len > 0 && !has_body {
            return Err(LinkError::protocol(format!("{} bytes behind a message that has none", body_len)));
        }
        Ok(message)
    }
}
