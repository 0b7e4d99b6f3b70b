//! How new chunks are stored: compressed, and against a chunk that they resemble where that is smaller.

use super::context::Context;
use super::error::OpsError;
use crate::chunk::CHUNKS_AT_ONCE;
use crate::chunk::features::{Features, features};
use crate::chunk::frame::{Codec, Draft, Frame, FrameError, ZSTD_LEVELS};
use crate::model::ids::ChunkId;
use crate::model::units::{BLOCK_BYTES, CHUNK_BLOCKS_MAX};
use crate::region::Region;
use crate::region::similar::{Base, Found, Similar, Wanted};
use rayon::prelude::*;
use std::cmp::Reverse;
use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;

/// How new chunks are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compression {
    /// zstd level, 1 to 12; none for the region's.
    pub level: Option<i32>,
    /// Whether chunks are stored against others that they resemble.
    pub delta: bool,
}

impl Default for Compression {
    fn default() -> Self {
        Self { level: None, delta: true }
    }
}

/// A delta is kept if it is under 8/10 of the plain frame: reading it costs a second one, and what is a delta cannot be a
/// base for what comes later. (9/10 makes rebuilt images larger, 7/10 first ones.)
pub(super) const KEPT_TENTHS: usize = 8;
/// A delta under 6/10 of what the plain frame probably has is kept without compressing that.
const SURE_TENTHS: usize = 6;
/// A delta under 5/10 of it is hardly made smaller by another base: half of the attempts for a tenth of what they save.
const SMALL_TENTHS: usize = 5;
/// How much smaller a plain frame is than a chunk, if nothing says more.
const USUAL_RATIO: usize = 2;
/// Bases that a chunk is tried against, the most alike first. The second saves 1 to 7 %.
const TRIED: usize = 2;
/// As many where time hardly matters.
const TRIED_LONG: usize = 4;
/// Features that a chunk and its base have in common at least where most is new: with one alone most of the time goes
/// for a quarter of what is saved.
const COMMON_MIN_QUICK: u32 = 2;
/// The share of a pipeline's memory that new frames are kept in for others to be stored against.
const RECENT_SHARE: u64 = 8;

/// A chunk that is not stored yet, or that is to be stored anew.
pub(super) struct NewChunk<'a> {
    pub(super) id: ChunkId,
    /// Its content.
    pub(super) raw: &'a [u8],
    /// How it is stored: what is not smaller does not take its place.
    pub(super) stored: Option<&'a Frame>,
    /// Whether others are stored against it: then it must be a plain frame.
    pub(super) is_base: bool,
}

impl NewChunk<'_> {
    fn blocks(&self) -> usize {
        self.raw.len() / BLOCK_BYTES
    }
}

/// Encodes a session's new chunks, batch by batch.
pub(super) struct Encoder {
    region: Region,
    level: i32,
    delta: bool,
    /// None before the first new chunk, and if there are to be no deltas.
    similar: Option<Similar>,
    recent_bytes: usize,
    /// Bases that each chunk is tried against.
    tried: usize,
    /// A delta so much smaller than the plain frame ends the search.
    small_tenths: usize,
    /// Features that a chunk and its base have in common at least.
    common_min: u32,
}

/// What a batch is stored against.
struct Bases<'a> {
    by_chunk: Vec<Found>,
    stored: crate::region::bases::Bases,
    pending: HashMap<ChunkId, &'a [u8]>,
}

/// A delta that is not proved yet.
struct Delta<'a> {
    draft: Draft,
    base: Content<'a>,
    /// Bytes of a plain frame, if that can be told.
    expected: Option<usize>,
}

/// The bytes of a base.
enum Content<'a> {
    Here(&'a [u8]),
    Decoded(Vec<u8>),
    Read(crate::region::bases::Content),
}

impl Deref for Content<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Here(bytes) => bytes,
            Self::Decoded(bytes) => bytes,
            Self::Read(bytes) => bytes,
        }
    }
}

impl Encoder {
    pub(super) fn new(region: &Region, how: &Compression, context: &Context<'_>) -> Self {
        Self {
            region: region.clone(),
            level: how
                .level
                .unwrap_or(i32::from(region.header().zstd_level))
                .clamp(*ZSTD_LEVELS.start(), *ZSTD_LEVELS.end()),
            delta: how.delta,
            similar: None,
            recent_bytes: usize::try_from(context.memory_bytes / RECENT_SHARE).unwrap_or(0),
            tried: TRIED,
            small_tenths: SMALL_TENTHS,
            common_min: 1,
        }
    }

    /// With time to look longer for what a chunk resembles.
    pub(super) fn thorough(self) -> Self {
        Self { tried: TRIED_LONG, small_tenths: 0, ..self }
    }

    /// How much is new says how much time there is for each chunk of it: where that is little, reading takes longer.
    pub(super) fn pace(&mut self, new: usize, of: usize) {
        self.common_min = if 2 * new <= of { 1 } else { COMMON_MIN_QUICK };
    }

    /// The zstd level of its frames, if they are tried with deltas, too.
    pub(super) const fn effort(&self) -> i32 {
        if self.delta { self.level } else { 0 }
    }

    /// Whether [`Encoder::encode`] wants features.
    pub(super) const fn takes_features(&self) -> bool {
        self.delta
    }

    /// The frames of some chunks, each proved to give its chunk back. Chunks in packs serve as bases if they are usable.
    /// `all` are their features, if there are to be deltas.
    pub(super) fn encode(
        &mut self,
        chunks: &[NewChunk<'_>],
        all: &[Option<Features>],
        is_usable: &dyn Fn(ChunkId) -> bool,
        context: &Context<'_>,
    ) -> Result<Vec<Arc<Frame>>, OpsError> {
        if !self.delta || chunks.is_empty() {
            return self.encode_plain(chunks, context);
        }
        let mut frames = Vec::with_capacity(chunks.len());
        while frames.len() < chunks.len() {
            let (chunks, all) = (&chunks[frames.len()..], &all[frames.len()..]);
            frames.extend(self.encode_some(chunks, all, is_usable, context)?);
        }
        self.similar.as_mut().map_or(Ok(()), Similar::save_some)?;
        Ok(frames)
    }

    /// The plain frames of some chunks, each proved to give its chunk back.
    pub(super) fn encode_plain(
        &self,
        chunks: &[NewChunk<'_>],
        context: &Context<'_>,
    ) -> Result<Vec<Arc<Frame>>, OpsError> {
        longest_first(chunks, context, |at| self.plain(&chunks[at]).map(Arc::new))
    }

    /// The frames of the first of some chunks: as many as there is memory for what they are stored against.
    fn encode_some(
        &mut self,
        chunks: &[NewChunk<'_>],
        all: &[Option<Features>],
        is_usable: &dyn Fn(ChunkId) -> bool,
        context: &Context<'_>,
    ) -> Result<Vec<Arc<Frame>>, OpsError> {
        let bases = self.choose(chunks, all, is_usable, context)?;
        // There may be bases for the first ones only.
        let chunks = &chunks[..bases.by_chunk.len()];
        let frames = longest_first(chunks, context, |at| {
            self.smallest(&chunks[at], &bases.by_chunk[at].bases, &bases).map(Arc::new)
        })?;
        let Some(similar) = &mut self.similar else { return Ok(frames) };
        for (((chunk, features), found), frame) in chunks.iter().zip(all).zip(&bases.by_chunk).zip(&frames) {
            let Some(features) = features.as_ref().filter(|_| frame.codec.is_plain()) else { continue };
            if !found.bases.is_empty() && !found.is_known {
                similar.add(chunk.id, features, chunk.blocks());
            }
            similar.remember(chunk.id, frame);
        }
        Ok(frames)
    }

    /// Remembers for later sessions what chunks stored by this one resemble.
    pub(super) fn finish(&mut self) -> Result<(), OpsError> {
        Ok(self.similar.as_mut().map_or(Ok(()), Similar::save)?)
    }

    /// The same as far as it can be done, where something failed.
    pub(super) fn keep_new(&mut self) {
        if let Some(similar) = &mut self.similar {
            similar.keep_new();
        }
    }

    /// What the first chunks are to be stored against, as many as there is memory for that. One that is like none before it
    /// is there for those after it.
    fn choose<'a>(
        &mut self,
        chunks: &[NewChunk<'a>],
        all: &[Option<Features>],
        is_usable: &dyn Fn(ChunkId) -> bool,
        context: &Context<'_>,
    ) -> Result<Bases<'a>, OpsError> {
        let (region, recent_bytes) = (&self.region, self.recent_bytes);
        let similar = self.similar.get_or_insert_with(|| region.similar(recent_bytes));
        similar.begin()?;
        let mut by_chunk = Vec::with_capacity(chunks.len());
        let (mut stored, mut room) = (Vec::new(), context.buffer_bytes() as u64);
        for (chunk, features) in chunks.iter().zip(all) {
            let tried = if chunk.is_base { 0 } else { self.tried };
            let (blocks_max, common_min) = (base_blocks_max(chunk.blocks()), self.common_min);
            let wanted = Wanted { blocks_max, tried, common_min, is_usable };
            let found = find(similar, chunk, features.as_ref(), &wanted);
            let of_stored = found.bases.iter().filter_map(|base| match base {
                Base::Stored(id, location) => Some((*id, *location)),
                Base::Pending(_) | Base::Recent(..) => None,
            });
            let bytes = of_stored.clone().map(|(_, location)| location.frame_bytes()).sum();
            match room.checked_sub(bytes) {
                Some(left) => room = left,
                None if by_chunk.is_empty() => room = 0,
                None => break,
            }
            stored.extend(of_stored);
            match features {
                Some(features) if found.bases.is_empty() && !found.is_known => {
                    similar.add(chunk.id, features, chunk.blocks());
                }
                Some(_) if found.bases.is_empty() => similar.add_known(chunk.id, chunk.blocks()),
                _ => {}
            }
            by_chunk.push(found);
        }
        stored.sort_unstable_by_key(|(id, _)| *id);
        stored.dedup_by_key(|(id, _)| *id);
        let pending = chunks.iter().map(|chunk| (chunk.id, chunk.raw)).collect();
        Ok(Bases { by_chunk, stored: similar.read(&stored), pending })
    }

    fn plain(&self, chunk: &NewChunk<'_>) -> Result<Frame, OpsError> {
        let draft = self.plain_draft(chunk)?;
        self.region.codecs().prove(draft, chunk.id, None).map_err(unproved(chunk))
    }

    fn plain_draft(&self, chunk: &NewChunk<'_>) -> Result<Draft, OpsError> {
        let codecs = self.region.codecs();
        let draft = match chunk.stored {
            // What does not compress does not at another level.
            Some(stored) if stored.codec == Codec::Raw => codecs.store(chunk.raw),
            _ => codecs.compress(chunk.raw, self.level),
        };
        draft.map_err(unproved(chunk))
    }

    /// The smallest of: a delta against one of some bases, if it saves enough; the plain frame; how it is stored.
    fn smallest(&self, chunk: &NewChunk<'_>, found: &[Base], bases: &Bases<'_>) -> Result<Frame, OpsError> {
        let frame = match self.smallest_delta(chunk, found, bases)? {
            Some(delta) => self.smaller(chunk, delta)?,
            None => self.plain(chunk)?,
        };
        let can_stay =
            |stored: &Frame| stored.base().is_none_or(|base| found.iter().any(|found| found.id() == base));
        match chunk.stored {
            Some(stored) if stored.body.len() <= frame.body.len() && can_stay(stored) => Ok(stored.clone()),
            _ => Ok(frame),
        }
    }

    fn smallest_delta<'a>(
        &self,
        chunk: &NewChunk<'_>,
        found: &[Base],
        bases: &Bases<'a>,
    ) -> Result<Option<Delta<'a>>, OpsError> {
        let mut smallest: Option<Delta<'a>> = None;
        let is_small = |delta: &Delta<'_>| {
            let expected = delta.expected.unwrap_or(chunk.raw.len() / USUAL_RATIO);
            delta.draft.body_bytes() * 10 < expected * self.small_tenths
        };
        for base in found.iter().filter(|base| base.id() != chunk.id) {
            if smallest.as_ref().is_some_and(is_small) {
                break;
            }
            let (content, base_stored) = self.content(base, bases);
            // One that cannot be read is no base.
            let Some(content) = content else { continue };
            let limit = smallest.as_ref().map_or(chunk.raw.len(), |delta| delta.draft.body_bytes() - 1);
            let codecs = self.region.codecs();
            let draft = codecs
                .compress_delta(chunk.raw, (base.id(), &content), self.level, limit)
                .map_err(unproved(chunk))?;
            let expected = base_stored.map(|stored| stored * chunk.raw.len() / content.len().max(1));
            smallest = draft.map(|draft| Delta { draft, base: content, expected }).or(smallest);
        }
        Ok(smallest)
    }

    /// The delta if it saves enough, else the plain frame; only what is taken is proved.
    fn smaller(&self, chunk: &NewChunk<'_>, delta: Delta<'_>) -> Result<Frame, OpsError> {
        let Delta { draft, base, expected } = delta;
        let codecs = self.region.codecs();
        let bytes = draft.body_bytes();
        if expected.is_some_and(|expected| bytes * 10 < expected * SURE_TENTHS) {
            return codecs.prove(draft, chunk.id, Some(&base)).map_err(unproved(chunk));
        }
        let plain = self.plain_draft(chunk)?;
        let proved = if bytes * 10 < plain.body_bytes() * KEPT_TENTHS {
            codecs.prove(draft, chunk.id, Some(&base))
        } else {
            codecs.prove(plain, chunk.id, None)
        };
        proved.map_err(unproved(chunk))
    }

    /// The bytes of a base, and how many its stored body has if that is known.
    fn content<'a>(&self, base: &Base, bases: &Bases<'a>) -> (Option<Content<'a>>, Option<usize>) {
        match base {
            Base::Pending(id) => (bases.pending.get(id).copied().map(Content::Here), None),
            Base::Recent(id, frame) => {
                let is_compressed = frame.codec == Codec::Zstd;
                (
                    self.region.decode(*id, frame).map(Content::Decoded),
                    is_compressed.then_some(frame.body.len()),
                )
            }
            Base::Stored(id, location) => {
                // What does not compress says nothing of what resembles it a little.
                let is_compressed = location.codec == Codec::Zstd;
                let stored = usize::try_from(location.stored_len).ok().filter(|_| is_compressed);
                (bases.stored.content(&self.region, *id).map(Content::Read), stored)
            }
        }
    }
}

/// What `work` gives for each of some chunks, in their order. The longest are begun first: then no thread has much left when
/// there is nothing more for the others.
fn longest_first<T: Send>(
    chunks: &[NewChunk<'_>],
    context: &Context<'_>,
    work: impl Fn(usize) -> Result<T, OpsError> + Sync,
) -> Result<Vec<T>, OpsError> {
    let mut order: Vec<usize> = (0..chunks.len()).collect();
    order.sort_by_key(|&at| Reverse(chunks[at].raw.len()));
    let work = |at| work(at).map(|done| (at, done));
    // A bridge gives each thread the next one in order; what is split beforehand is not begun in order.
    let mut done: Vec<(usize, T)> =
        context.pool.install(|| order.into_iter().par_bridge().map(work).collect::<Result<_, _>>())?;
    done.sort_unstable_by_key(|(at, _)| *at);
    Ok(done.into_iter().map(|(_, done)| done).collect())
}

/// What each of some chunks resembles.
pub(super) fn features_of(chunks: &[NewChunk<'_>], context: &Context<'_>) -> Vec<Option<Features>> {
    context
        .pool
        .install(|| chunks.par_iter().with_max_len(CHUNKS_AT_ONCE).map(|chunk| features(chunk.raw)).collect())
}

/// What a chunk may be stored against; what it is stored against now comes first.
fn find(similar: &Similar, chunk: &NewChunk<'_>, features: Option<&Features>, wanted: &Wanted<'_>) -> Found {
    let none = Found { bases: Vec::new(), is_known: false };
    let mut found = features.map_or(none, |features| similar.find(chunk.id, features, wanted));
    if let Some(base) = chunk.stored.and_then(Frame::base)
        && let Some(now) = similar.base(base.leading(), wanted).filter(|now| now.id() == base)
    {
        found.bases.retain(|other| other.id() != base);
        found.bases.insert(0, now);
    }
    found
}

fn unproved(chunk: &NewChunk<'_>) -> impl FnOnce(FrameError) -> OpsError + use<> {
    let chunk = chunk.id;
    move |source| OpsError::Proof { chunk, source }
}

/// How long a base may be: reading a chunk must not cost many times its length.
pub(super) fn base_blocks_max(blocks: usize) -> u16 {
    u16::try_from(4 * blocks + 16).unwrap_or(u16::MAX).min(CHUNK_BLOCKS_MAX)
}
