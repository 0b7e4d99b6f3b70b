//! The side that gives: answers what a [`Peer`](super::peer::Peer) asks, of one offer and nothing else.

use super::error::{LinkError, Refusal};
use super::link::Link;
use super::message::{FETCH_MAX, LOCATE_MAX, Message, PIECE_BYTES};
use crate::chunk::frame::Frame;
use crate::format::manifest;
use crate::model::blockmap::distinct_chunks;
use crate::model::ids::{ChunkId, SessionId};
use crate::model::objects::{ManifestName, ManifestRecord, PackName};
use crate::model::units::{BLOCK_BYTES, CHUNK_BLOCKS_MAX};
use crate::ops::context::Context;
use crate::ops::copy::CopyWhat;
use crate::ops::error::{Class, Code, OpsError};
use crate::ops::offer::Offer;
use crate::ops::source::{Asked, Contents, Found, Frames, Source};
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

/// Whose manifest it was at first says that somebody else has the very same volume.
pub(super) fn hide_name(manifest: &mut ManifestRecord) {
    manifest.name = ManifestName { session: SessionId([0; 16]), number: 0 };
}

/// What a frame is taken for before it is read, for a batch's memory.
const FRAME_BYTES_GUESS: u64 = 64 << 10;

/// Most that a chunk has.
const CHUNK_BYTES_MAX: u64 = CHUNK_BLOCKS_MAX as u64 * BLOCK_BYTES as u64;

/// To whom something is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GivenTo {
    /// Who may have here whatever its account may.
    Owner,
    /// The same, but only let in: it does not hear where content is, nor of content that it was not offered.
    Guest,
    /// A host that was told to copy something: that, and of its description what the copy has.
    Host {
        /// All that it may ask for.
        what: CopyWhat,
        /// Whether the copy has tags.
        with_tags: bool,
    },
}

/// Answers for one source. Whoever asks gets what it was offered, and learns of no other chunk.
pub struct Giver<'a> {
    source: &'a dyn Source,
    to: GivenTo,
    offer: Option<(CopyWhat, Offer)>,
    /// The chunks of its maps, ascending.
    offered: Vec<ChunkId>,
    /// For each pack that was asked about the bases of its deltas.
    bases: HashMap<PackName, HashMap<ChunkId, u64>>,
}

impl<'a> Giver<'a> {
    /// Gives of a source what somebody may have.
    pub fn new(source: &'a dyn Source, to: GivenTo) -> Self {
        Self { source, to, offer: None, offered: Vec::new(), bases: HashMap::new() }
    }

    /// Answers one request. What cannot be given is refused; only what ends the connection is an error.
    pub fn answer(&mut self, link: &Link, request: &Message, context: &Context<'_>) -> Result<(), OpsError> {
        let given = match request {
            Message::Offer(what) => self.give_offer(link, *what, context),
            Message::Maps => self.give_maps(link, context),
            Message::Locate(ids) => self.give_places(link, ids, context),
            Message::Fetch(asked) => self.give_frames(link, asked, context),
            _ => Err(LinkError::protocol("a message that asks for nothing").into()),
        };
        match given {
            Err(error @ (OpsError::ConnectionLost { .. } | OpsError::Protocol { .. })) => Err(error),
            Err(error) => Ok(link.send(&Message::Refused(Refusal::of(&error)))?),
            Ok(()) => Ok(()),
        }
    }

    fn give_offer(&mut self, link: &Link, what: CopyWhat, context: &Context<'_>) -> Result<(), OpsError> {
        if matches!(self.to, GivenTo::Host { what: only, .. } if only != what) {
            return Err(LinkError::protocol("it asks for another image than it is given").into());
        }
        let offer =
            self.source.offer(what, context).map_err(|error| self.told_again(what, error, context))?;
        // Who asks again at the end of a copy may have to go on with it.
        let hashes = |offer: &Offer| offer.manifests().map(|manifest| manifest.hash).collect::<Vec<_>>();
        // A block map that was made anew has the same hash under another name.
        let has_same =
            |(before, known): &(CopyWhat, Offer)| *before == what && hashes(known) == hashes(&offer);
        if !self.offer.as_ref().is_some_and(has_same) {
            self.offered.clear();
            self.bases.clear();
        }
        let mut told = offer.clone();
        match self.to {
            GivenTo::Owner => {}
            GivenTo::Guest => told.manifests_mut().for_each(hide_name),
            GivenTo::Host { with_tags, .. } => told = told.only_what_is_copied(with_tags),
        }
        link.send(&Message::Offered(Box::new(told)))?;
        self.offer = Some((what, offer));
        Ok(())
    }

    /// What was offered, and is not there any more to be given: others' was taken back, which the host cannot tell from one's own.
    fn told_again(&self, what: CopyWhat, error: OpsError, context: &Context<'_>) -> OpsError {
        let account = self.source.asked_as(context);
        let is_others = |offer: &Offer| account.is_some_and(|account| offer.is_of_others(account));
        let was_others = self.offer.as_ref().is_some_and(|(of, offer)| *of == what && is_others(offer));
        match error.class() {
            Class::NotFound | Class::Refused if was_others => {
                OpsError::rule(Code::OperationNotPermitted, format!("it was taken back meanwhile: {error}"))
            }
            _ => error,
        }
    }

    /// A guest keeps a connection for as long as it likes, and what it was offered may be no longer its to have.
    fn check_still_offered(&self, context: &Context<'_>) -> Result<(), OpsError> {
        match &self.offer {
            Some((what, _)) if self.to == GivenTo::Guest => self.source.offer(*what, context).map(drop),
            _ => Ok(()),
        }
    }

    fn give_maps(&mut self, link: &Link, context: &Context<'_>) -> Result<(), OpsError> {
        let Some((_, offer)) = &self.offer else {
            return Err(LinkError::protocol("it asks for block maps of nothing").into());
        };
        self.check_still_offered(context)?;
        let maps = self.source.maps(offer, context)?;
        for map in &maps {
            let (bytes, _) = manifest::encode(map);
            let mut pieces = bytes.chunks(PIECE_BYTES).peekable();
            while let Some(piece) = pieces.next() {
                context.check_cancelled()?;
                let is_last = pieces.peek().is_none();
                link.send_with(&Message::MapPiece { is_last }, piece)?;
            }
        }
        self.offered = distinct_chunks(&maps);
        Ok(())
    }

    fn check_offered<'i>(&self, ids: impl Iterator<Item = &'i ChunkId>) -> Result<(), OpsError> {
        for id in ids {
            if self.offered.binary_search(id).is_err() {
                return Err(LinkError::protocol("it asks for a chunk that it was not offered").into());
            }
        }
        Ok(())
    }

    fn give_places(&mut self, link: &Link, ids: &[ChunkId], context: &Context<'_>) -> Result<(), OpsError> {
        if ids.len() > LOCATE_MAX {
            return Err(LinkError::protocol("it asks for too many places at once").into());
        }
        self.check_offered(ids.iter())?;
        self.check_still_offered(context)?;
        let mut found = self.source.locate(ids, context)?;
        for delta in found.iter_mut().filter(|found| found.is_delta && found.base.is_none()) {
            let bases = match self.bases.entry(delta.pack) {
                Entry::Occupied(known) => known.into_mut(),
                // Without it the frame is asked for, and then asked for anew.
                Entry::Vacant(new) => {
                    let mut bases = self.source.bases_in(delta.pack).unwrap_or_default();
                    bases.retain(|id, _| self.offered.binary_search(id).is_ok());
                    bases.shrink_to_fit();
                    new.insert(bases)
                }
            };
            delta.base = bases.get(&delta.id).copied();
        }
        if self.to == GivenTo::Guest {
            found.iter_mut().for_each(|found| self.hide(found));
        }
        Ok(link.send(&Message::Located(found))?)
    }

    fn give_frames(
        &self,
        link: &Link,
        wanted: &[(ChunkId, bool)],
        context: &Context<'_>,
    ) -> Result<(), OpsError> {
        if wanted.len() > FETCH_MAX {
            return Err(LinkError::protocol("it asks for too many frames at once").into());
        }
        self.check_offered(wanted.iter().map(|(id, _)| id))?;
        self.check_still_offered(context)?;
        let plain: HashSet<ChunkId> = wanted.iter().filter(|(_, plain)| *plain).map(|(id, _)| *id).collect();
        let ask = |&(id, plain): &(ChunkId, bool)| Asked {
            id,
            stored_bytes: FRAME_BYTES_GUESS,
            raw_bytes: CHUNK_BYTES_MAX,
            is_delta: false,
            plain,
        };
        let asked: Vec<Asked> = wanted.iter().map(ask).collect();
        self.source.fetch(&asked, context, &mut |frames| {
            let ids = frames.ids();
            let give = |at: usize| self.as_asked(&*frames, at, plain.contains(&ids[at]));
            let given: Vec<Frame> = context.for_each_chunk(ids.len(), give)?;
            for (id, frame) in ids.iter().zip(given) {
                let (codec, raw_blocks) = (frame.codec.number(), frame.raw_blocks);
                link.queue(&Message::Frame { id: *id, codec, raw_blocks }, &frame.body)?;
            }
            Ok(true)
        })?;
        Ok(link.flush()?)
    }

    fn as_asked(&self, frames: &dyn Frames, at: usize, plain: bool) -> Result<Frame, OpsError> {
        let frame = frames.stored(at)?;
        let is_secret =
            |base: &ChunkId| self.to == GivenTo::Guest && self.offered.binary_search(base).is_err();
        match frame.base() {
            Some(base) if plain || is_secret(&base) => frames.plain(at, &Contents::new()),
            _ => Ok(frame),
        }
    }

    /// Where a chunk is says whether it came from somebody else, and its base what others have.
    fn hide(&self, found: &mut Found) {
        (found.pack, found.offset) = (PackName { session: SessionId([0; 16]), number: 0 }, 0);
        let is_offered = |leading: u64| {
            let at = self.offered.partition_point(|id| id.leading() < leading);
            self.offered.get(at).is_some_and(|id| id.leading() == leading)
        };
        if !found.base.is_some_and(is_offered) {
            if found.is_delta {
                // How little it takes says how much of it the base has. It comes whole, and that is as much at most.
                let raw_bytes = u64::from(found.raw_blocks) * BLOCK_BYTES as u64;
                found.stored_bytes = u32::try_from(raw_bytes).unwrap_or(u32::MAX);
            }
            (found.is_delta, found.base) = (false, None);
        }
    }
}
