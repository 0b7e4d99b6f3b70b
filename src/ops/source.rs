//! What a copy takes from: a region here, or one on another host.
//!
//! A source answers in as few and as large steps as it can, because each may be a way around the world. Nothing that it
//! says is believed: what it offers is checked as anything from outside, and every frame is decoded and hashed.

use super::context::Context;
use super::copy::CopyWhat;
use super::error::OpsError;
use super::offer::{Offer, select};
use crate::chunk::frame::Frame;
use crate::model::account::AccountId;
use crate::model::blockmap::BlockMap;
use crate::model::catalog::Root;
use crate::model::ids::{ChunkId, RegionId};
use crate::model::objects::PackName;
use crate::region::Region;
use crate::region::error::RegionError;
use crate::region::fetch::{Fetched, FetchedFrame};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// Where a source has a chunk, and as what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// The chunk.
    pub id: ChunkId,
    /// Its pack there.
    pub pack: PackName,
    /// Where in that.
    pub offset: u32,
    /// Bytes of its frame, with its header.
    pub stored_bytes: u32,
    /// Its length in blocks.
    pub raw_blocks: u16,
    /// Whether it is a delta.
    pub is_delta: bool,
    /// Of a delta the leading bytes of its base's id; none where that is at hand when the frame is fetched.
    pub base: Option<u64>,
}

/// A frame that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// The chunk.
    pub id: ChunkId,
    /// Bytes of its frame, as the source said.
    pub stored_bytes: u64,
    /// Bytes of the chunk.
    pub raw_bytes: u64,
    /// Whether it comes as a delta.
    pub is_delta: bool,
    /// Whether a delta is of no use.
    pub plain: bool,
}

impl Asked {
    /// Bytes of memory that it takes until it is put: with a delta comes its base.
    pub const fn held_bytes(&self) -> u64 {
        if self.is_delta { self.stored_bytes + self.raw_bytes } else { self.stored_bytes }
    }
}

/// Some frames that a source gave.
pub trait Frames: Send + Sync {
    /// Their chunks. Frames are known by their place in this list from here on.
    fn ids(&self) -> Vec<ChunkId>;

    /// Of a delta the base whose content the other methods must be given, and its own length in blocks; none if the source has
    /// that base at hand itself.
    fn delta(&self, at: usize) -> Option<(ChunkId, u16)>;

    /// A frame as it is stored; only its checksum was looked at, if it has one.
    fn stored(&self, at: usize) -> Result<Frame, OpsError>;

    /// A frame as it is stored, once it has been decoded and hashed.
    fn prove(&self, at: usize, bases: &Contents) -> Result<Frame, OpsError>;

    /// The chunk of a frame encoded anew, so that it needs no base.
    fn plain(&self, at: usize, bases: &Contents) -> Result<Frame, OpsError>;
}

/// The content of some chunks.
pub type Contents = HashMap<ChunkId, Vec<u8>>;

/// Takes some frames; false if no more are wanted.
pub type Deliver<'a, 's> = &'a mut dyn FnMut(Box<dyn Frames + 's>) -> Result<bool, OpsError>;

/// What a copy takes from.
pub trait Source: Sync {
    /// The region's id.
    fn id(&self) -> RegionId;

    /// The name that it gives itself.
    fn name(&self) -> &str;

    /// The account that it takes the caller for, if that is known.
    fn asked_as(&self, context: &Context<'_>) -> Option<AccountId>;

    /// What it has of what is asked for, if the caller may have it.
    fn offer(&self, what: CopyWhat, context: &Context<'_>) -> Result<Offer, OpsError>;

    /// The block maps of an offer's manifests, in their order, each of the hash that the offer says.
    fn maps(&self, offer: &Offer, context: &Context<'_>) -> Result<Vec<BlockMap>, OpsError>;

    /// Where chunks of these maps are, one for each and in their order.
    fn locate(&self, ids: &[ChunkId], context: &Context<'_>) -> Result<Vec<Found>, OpsError>;

    /// Bytes of a chunk whose id begins so, as a plain frame and raw, if that can be told without asking another host. What is
    /// stored against it takes about as much by itself, for its length.
    fn base_bytes(&self, _leading: u64) -> Result<Option<(u64, u64)>, OpsError> {
        Ok(None)
    }

    /// Whether chunks that find no base at the target are sent whole.
    fn is_far(&self) -> bool {
        false
    }

    /// For each delta in a pack the leading bytes of its base's id.
    fn bases_in(&self, pack: PackName) -> Result<HashMap<ChunkId, u64>, OpsError>;

    /// Gives the frames of chunks, some at a time, none of which it was not asked for.
    fn fetch<'s>(
        &'s self,
        asked: &[Asked],
        context: &Context<'_>,
        deliver: Deliver<'_, 's>,
    ) -> Result<(), OpsError>;
}

impl Source for Region {
    fn id(&self) -> RegionId {
        self.header().id
    }

    fn name(&self) -> &str {
        &self.header().name
    }

    fn asked_as(&self, context: &Context<'_>) -> Option<AccountId> {
        Some(context.account)
    }

    fn offer(&self, what: CopyWhat, context: &Context<'_>) -> Result<Offer, OpsError> {
        select(&self.catalog()?, what, context)
    }

    fn maps(&self, offer: &Offer, _: &Context<'_>) -> Result<Vec<BlockMap>, OpsError> {
        let snapshots = offer.snapshots.iter().map(Root::from);
        let roots = snapshots.chain(offer.template.iter().map(Root::from));
        roots.map(|root| Ok(self.load_root(&root)?)).collect()
    }

    fn locate(&self, ids: &[ChunkId], _: &Context<'_>) -> Result<Vec<Found>, OpsError> {
        let found = |(id, place): crate::region::fetch::Located| Found {
            id,
            pack: place.pack,
            offset: place.offset,
            stored_bytes: u32::try_from(place.frame_bytes()).unwrap_or(u32::MAX),
            raw_blocks: place.raw_blocks,
            is_delta: !place.codec.is_plain(),
            base: None,
        };
        Ok(Region::locate(self, ids)?.into_iter().map(found).collect())
    }

    fn base_bytes(&self, leading: u64) -> Result<Option<(u64, u64)>, OpsError> {
        Ok(self.find_base(leading)?.map(|(_, place)| (place.frame_bytes(), place.raw_bytes())))
    }

    fn bases_in(&self, pack: PackName) -> Result<HashMap<ChunkId, u64>, OpsError> {
        Ok(Region::bases_in(self, &pack)?)
    }

    fn fetch<'s>(
        &'s self,
        asked: &[Asked],
        context: &Context<'_>,
        deliver: Deliver<'_, 's>,
    ) -> Result<(), OpsError> {
        let mut rest = asked;
        while !rest.is_empty() {
            context.check_cancelled()?;
            let (batch, behind) = rest.split_at(batch_len(rest, context.buffer_bytes() as u64));
            rest = behind;
            let ids: Vec<ChunkId> = batch.iter().map(|asked| asked.id).collect();
            let fetched = Region::fetch(self, &ids)?;
            let frames = fetched.frames();
            if !deliver(Box::new(LocalFrames { region: self, fetched, frames }))? {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// How many of the frames fit into so many bytes of memory, at least one.
pub fn batch_len(asked: &[Asked], limit: u64) -> usize {
    let mut bytes = 0;
    let fits = |asked: &&Asked| {
        bytes += asked.held_bytes();
        bytes <= limit
    };
    asked.iter().take_while(fits).count().max(1)
}

/// Frames of a region here: the bases of its deltas were read beside them.
struct LocalFrames<'s> {
    region: &'s Region,
    fetched: Fetched,
    frames: Vec<FetchedFrame>,
}

impl LocalFrames<'_> {
    fn raw(&self, at: usize) -> Vec<u8> {
        vec![0; self.fetched.raw_bytes(self.frames[at])]
    }

    /// The chunk from wherever it is intact as a plain frame, if it is not where it was read.
    fn elsewhere(&self, at: usize, error: RegionError) -> Result<Frame, OpsError> {
        let id = self.fetched.id(self.frames[at]);
        self.region.intact_frame(id).ok_or_else(|| of_source(self.region.unless_out_of_reach(error)))
    }
}

impl Frames for LocalFrames<'_> {
    fn ids(&self) -> Vec<ChunkId> {
        self.frames.iter().map(|&frame| self.fetched.id(frame)).collect()
    }

    fn delta(&self, _: usize) -> Option<(ChunkId, u16)> {
        None
    }

    fn stored(&self, at: usize) -> Result<Frame, OpsError> {
        self.fetched
            .stored(self.frames[at])
            .map(|(_, stored)| stored)
            .or_else(|error| self.elsewhere(at, error))
    }

    fn prove(&self, at: usize, _: &Contents) -> Result<Frame, OpsError> {
        match self.fetched.decode_here(self.region, self.frames[at], &mut self.raw(at)) {
            Ok(()) => Ok(self.fetched.stored(self.frames[at])?.1),
            Err(error) => self.elsewhere(at, error),
        }
    }

    fn plain(&self, at: usize, _: &Contents) -> Result<Frame, OpsError> {
        let (mut raw, id) = (self.raw(at), self.fetched.id(self.frames[at]));
        if let Err(error) = self.fetched.decode_here(self.region, self.frames[at], &mut raw) {
            return self.elsewhere(at, error);
        }
        let level = i32::from(self.region.header().zstd_level);
        self.region.encode(&raw, id, level).map_err(OpsError::SourceFrame)
    }
}

/// What decodes to something else is the source's fault.
fn of_source(error: RegionError) -> OpsError {
    error.into_frame_error().map_or_else(OpsError::from, OpsError::SourceFrame)
}
