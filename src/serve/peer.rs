//! The side that asks: a region on another host as the source of a copy.
//!
//! The steps that plan a copy take one way there and back each, whatever the image's size: lists of chunks go out while
//! the answers to the first ones come in. Frames are asked for so far ahead that the line is never idle.

use super::error::LinkError;
use super::link::Link;
use super::message::{FETCH_MAX, LOCATE_MAX, Message};
use crate::chunk::frame::{Codec, CodecPool, Frame, FrameError};
use crate::format::manifest;
use crate::model::account::AccountId;
use crate::model::blockmap::BlockMap;
use crate::model::ids::{ChunkId, RegionId};
use crate::model::objects::{ManifestRecord, PackName};
use crate::model::units::CHUNK_BLOCKS_MAX;
use crate::ops::context::Context;
use crate::ops::copy::CopyWhat;
use crate::ops::error::OpsError;
use crate::ops::offer::Offer;
use crate::ops::source::{Asked, Contents, Deliver, Found, Frames, Source};
use crossbeam_channel::unbounded;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

/// Stored bytes that are asked for in one message.
const FETCH_BYTES: u64 = 1 << 20;
/// Raw bytes of them.
const FETCH_RAW_BYTES: u64 = 8 << 20;
/// By how much a frame may be longer than its chunk.
const FRAME_SLACK: u64 = 1 << 10;
/// Messages that ask for frames and are not answered yet: 8 MiB on their way keep 1 Gbit/s busy over 60 ms.
const FETCHES_AHEAD: usize = 8;
/// zstd level of what is encoded anew.
const ZSTD_LEVEL: i32 = 3;

/// A region on the other side.
pub struct Peer<'a> {
    link: &'a Link,
    id: RegionId,
    name: String,
    /// As whom the other side gives, if that is known.
    account: Option<AccountId>,
    codecs: CodecPool,
    round_trips: AtomicU64,
}

impl<'a> Peer<'a> {
    /// The region of that id and name, which the other side gives of.
    pub fn new(link: &'a Link, id: RegionId, name: &str) -> Self {
        let (name, codecs) = (name.to_owned(), CodecPool::new());
        Self { link, id, name, account: None, codecs, round_trips: AtomicU64::new(0) }
    }

    /// The same, of what this account may have there.
    pub fn asking_as(self, account: AccountId) -> Self {
        Self { account: Some(account), ..self }
    }

    /// How often planning waited for an answer so far before it could go on.
    pub fn round_trips(&self) -> u64 {
        self.round_trips.load(Ordering::Relaxed)
    }

    fn waits(&self) {
        self.round_trips.fetch_add(1, Ordering::Relaxed);
    }

    fn receive(&self) -> Result<(Message, Vec<u8>), OpsError> {
        match self.link.receive()? {
            (Message::Refused(refusal), _) => Err(refusal.into_error()),
            other => Ok(other),
        }
    }

    fn receive_map(&self, expected: &ManifestRecord, context: &Context<'_>) -> Result<BlockMap, OpsError> {
        let lie = |why: String| OpsError::Offer { why };
        let mut bytes = Vec::new();
        loop {
            context.check_cancelled()?;
            let (Message::MapPiece { is_last }, piece) = self.receive()? else { return Err(unexpected()) };
            bytes.extend_from_slice(&piece);
            let is_too_long = bytes.len() as u64 > expected.len.min(manifest::BYTES_MAX);
            // One that has no end would be waited for.
            if is_too_long || is_last != (bytes.len() as u64 == expected.len) || piece.is_empty() {
                return Err(lie("a block map of another length than it said".into()));
            }
            if is_last {
                break;
            }
        }
        let (map, hash) =
            manifest::decode(&bytes).map_err(|e| lie(format!("a block map that is none: {e}")))?;
        if hash != expected.hash {
            return Err(lie("another block map than it said".into()));
        }
        Ok(map)
    }

    /// Sends requests from another thread, while this one takes the answers. Every request that was sent is answered
    /// before it returns, so that the next answer is to the next request.
    fn ask_all<T>(
        &self,
        requests: impl Iterator<Item = Message> + Send,
        mut take: impl FnMut() -> Result<T, OpsError>,
    ) -> Result<Vec<T>, OpsError> {
        self.waits();
        let link = self.link;
        let (asked_in, asked) = unbounded::<()>();
        let is_stopped = AtomicBool::new(false);
        thread::scope(|scope| {
            let is_stopped = &is_stopped;
            let ask = move || {
                for request in requests {
                    if is_stopped.load(Ordering::Relaxed) {
                        break;
                    }
                    link.send(&request)?;
                    // Somebody listens until this ends.
                    let _ = asked_in.send(());
                }
                Ok::<_, LinkError>(())
            };
            let asking = thread::Builder::new().name("ask".into()).spawn_scoped(scope, ask);
            let asking = asking.map_err(|_| OpsError::WorkerGone)?;
            let (mut taken, mut failure) = (Vec::new(), None);
            for () in &asked {
                match failure {
                    None => match take() {
                        Ok(answer) => taken.push(answer),
                        Err(error) => {
                            is_stopped.store(true, Ordering::Relaxed);
                            failure = Some(error);
                        }
                    },
                    // Nobody wants it any more.
                    Some(_) => drop(link.receive()),
                }
            }
            let asked = asking.join().unwrap_or_else(|_| Err(LinkError::protocol("a thread is gone")));
            match failure {
                Some(error) => Err(error),
                None => asked.map(|()| taken).map_err(OpsError::from),
            }
        })
    }

    /// Takes the answers to requests for so many frames each that nobody wants any more.
    fn forget_frames(&self, counts: impl Iterator<Item = usize>) {
        for count in counts {
            for _ in 0..count {
                match self.link.receive() {
                    Ok((Message::Refused(_), _)) => break,
                    Ok(_) => {}
                    Err(_) => return,
                }
            }
        }
    }

    fn receive_frame(&self, open: &mut HashMap<ChunkId, Asked>) -> Result<(ChunkId, Frame), OpsError> {
        let (Message::Frame { id, codec, raw_blocks }, body) = self.receive()? else {
            return Err(unexpected());
        };
        let Some(Asked { plain, raw_bytes, .. }) = open.remove(&id) else {
            return Err(LinkError::protocol("it sends a frame that it was not asked for").into());
        };
        if body.len() as u64 > raw_bytes + FRAME_SLACK {
            return Err(LinkError::protocol("it sends a longer frame than it said").into());
        }
        let codec = Codec::from_number(codec).filter(|_| (1..=CHUNK_BLOCKS_MAX).contains(&raw_blocks));
        let frame = codec.map(|codec| Frame { codec, raw_blocks, body });
        match frame {
            Some(frame) if frame.codec.is_plain() || (!plain && frame.base().is_some()) => Ok((id, frame)),
            _ => Err(LinkError::protocol("it sends a frame that is none").into()),
        }
    }
}

fn unexpected() -> OpsError {
    LinkError::protocol("another answer than was asked for").into()
}

impl Source for Peer<'_> {
    fn id(&self) -> RegionId {
        self.id
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn asked_as(&self, _: &Context<'_>) -> Option<AccountId> {
        self.account
    }

    fn offer(&self, what: CopyWhat, _: &Context<'_>) -> Result<Offer, OpsError> {
        self.waits();
        self.link.send(&Message::Offer(what))?;
        match self.receive()?.0 {
            Message::Offered(offer) => Ok(*offer),
            _ => Err(unexpected()),
        }
    }

    fn maps(&self, offer: &Offer, context: &Context<'_>) -> Result<Vec<BlockMap>, OpsError> {
        self.waits();
        self.link.send(&Message::Maps)?;
        offer.manifests().map(|manifest| self.receive_map(manifest, context)).collect()
    }

    fn is_far(&self) -> bool {
        true
    }

    fn locate(&self, ids: &[ChunkId], context: &Context<'_>) -> Result<Vec<Found>, OpsError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let mut pieces = ids.chunks(LOCATE_MAX);
        let requests = ids.chunks(LOCATE_MAX).map(|ids| Message::Locate(ids.to_vec()));
        let take = || {
            context.check_cancelled()?;
            let asked = pieces.next().unwrap_or_default();
            let Message::Located(found) = self.receive()?.0 else { return Err(unexpected()) };
            let is_sound = |(found, id): (&Found, &ChunkId)| {
                found.id == *id && (1..=CHUNK_BLOCKS_MAX).contains(&found.raw_blocks)
            };
            if found.len() != asked.len() || !found.iter().zip(asked).all(is_sound) {
                return Err(LinkError::protocol("places of other chunks than were asked for").into());
            }
            Ok(found)
        };
        Ok(self.ask_all(requests, take)?.concat())
    }

    /// [`Peer::locate`] told it.
    fn bases_in(&self, _: PackName) -> Result<HashMap<ChunkId, u64>, OpsError> {
        Ok(HashMap::new())
    }

    fn fetch<'s>(
        &'s self,
        asked: &[Asked],
        context: &Context<'_>,
        deliver: Deliver<'_, 's>,
    ) -> Result<(), OpsError> {
        let (mut rest, mut ahead) = (asked, VecDeque::new());
        loop {
            while ahead.len() < FETCHES_AHEAD && !rest.is_empty() {
                let (piece, behind) = rest.split_at(piece_len(rest));
                rest = behind;
                let wanted = piece.iter().map(|a| (a.id, a.plain)).collect();
                self.link.send(&Message::Fetch(wanted))?;
                ahead.push_back(piece);
            }
            let Some(piece) = ahead.pop_front() else { return Ok(()) };
            let (mut open, mut frames) = (piece.iter().map(|a| (a.id, *a)).collect(), Vec::new());
            let received = (0..piece.len()).try_for_each(|_| {
                frames.push(self.receive_frame(&mut open)?);
                Ok(())
            });
            let is_wanted = received.and_then(|()| {
                context.check_cancelled()?;
                deliver(Box::new(PeerFrames { codecs: &self.codecs, frames: std::mem::take(&mut frames) }))
            });
            match is_wanted {
                Ok(true) => {}
                // Nothing that comes from there can be counted on any more.
                Err(error @ (OpsError::Protocol { .. } | OpsError::ConnectionLost { .. })) => {
                    return Err(error);
                }
                is_wanted => {
                    self.forget_frames(ahead.iter().map(|piece| piece.len()));
                    return is_wanted.map(|_| ());
                }
            }
        }
    }
}

/// How many of the frames are asked for in one message. How much the other side says that they take is not believed.
fn piece_len(asked: &[Asked]) -> usize {
    let (mut stored, mut raw) = (0, 0);
    // Deltas come behind all others: their bases are put by then, and not in the same piece.
    let is_delta = asked.first().is_some_and(|asked| asked.is_delta);
    let fits = |asked: &&Asked| {
        stored += asked.stored_bytes;
        raw += asked.raw_bytes;
        asked.is_delta == is_delta && stored <= FETCH_BYTES && raw <= FETCH_RAW_BYTES
    };
    asked.iter().take(FETCH_MAX).take_while(fits).count().max(1)
}

/// Frames that came over a connection. The bases of its deltas did not: they are where the frames go.
struct PeerFrames<'a> {
    codecs: &'a CodecPool,
    frames: Vec<(ChunkId, Frame)>,
}

impl PeerFrames<'_> {
    fn content(&self, at: usize, bases: &Contents) -> Result<Vec<u8>, OpsError> {
        let (id, frame) = &self.frames[at];
        let base = match frame.base() {
            Some(base) => Some(bases.get(&base).ok_or(OpsError::BaseMissing)?.as_slice()),
            None => None,
        };
        let (found, raw) = self.codecs.identify(frame, base).map_err(OpsError::SourceFrame)?;
        if found != *id {
            return Err(OpsError::SourceFrame(FrameError::Content { expected: *id, found }));
        }
        Ok(raw)
    }
}

impl Frames for PeerFrames<'_> {
    fn ids(&self) -> Vec<ChunkId> {
        self.frames.iter().map(|(id, _)| *id).collect()
    }

    fn delta(&self, at: usize) -> Option<(ChunkId, u16)> {
        let (_, frame) = &self.frames[at];
        frame.base().map(|base| (base, frame.raw_blocks))
    }

    fn stored(&self, at: usize) -> Result<Frame, OpsError> {
        Ok(self.frames[at].1.clone())
    }

    fn prove(&self, at: usize, bases: &Contents) -> Result<Frame, OpsError> {
        self.content(at, bases)?;
        self.stored(at)
    }

    fn plain(&self, at: usize, bases: &Contents) -> Result<Frame, OpsError> {
        let raw = self.content(at, bases)?;
        self.codecs.encode(&raw, self.frames[at].0, ZSTD_LEVEL).map_err(OpsError::SourceFrame)
    }
}
