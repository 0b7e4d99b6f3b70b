//! The pipeline of a copy: chunks of one region become chunks of another, as they are stored.
//!
//! ```text
//! plan      ids of all manifests; those that the target lacks; where they lie in the source's packs
//! fetch     frames in pack order, near ones together
//! prove     decompress and hash: the source's word is not taken for anything
//! put       into the target's packs as they are; a delta whose base does not go along is encoded anew
//! ```

use super::context::Context;
use super::encode::base_blocks_max;
use super::error::OpsError;
use super::owned::Trusted;
use super::source::{Asked, Contents, Found, Frames, Source};
use super::stage::spawn;
use crate::chunk::CHUNKS_AT_ONCE;
use crate::chunk::frame::Frame;
use crate::model::blockmap::{BlockMap, distinct_chunks};
use crate::model::ids::ChunkId;
use crate::model::units::{CHUNK_BLOCKS_MAX, block_offset};
use crate::region::Region;
use crate::region::session::Session;
use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use rayon::prelude::*;
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Batches that are fetched ahead.
const FETCHED_AHEAD: usize = 2;
/// How often who waits for a batch looks whether what came before was written.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Bytes of bases, and of what is stored against them, that are in memory at once: a source may name any, however little it
/// said that a chunk takes.
const BASES_BYTES: u64 = 32 << 20;
/// Ids that are asked about at once.
pub(super) const ASKED_AT_ONCE: usize = 64 << 10;

/// Chunks that the target lacks.
#[derive(Debug, Clone, Default)]
pub struct Missing {
    /// The chunks, plain ones first and then in the order in which they lie in the source's packs.
    asked: Vec<Asked>,
    /// Stored bytes of all, as they are moved.
    pub stored_bytes: u64,
    /// About what they take at the target: more, where deltas find no base there.
    pub expected_bytes: u64,
    /// Raw bytes of all.
    pub raw_bytes: u64,
    /// Different chunks that were looked for, those that the target has among them.
    pub distinct_chunks: u64,
}

impl Missing {
    /// Number of chunks.
    pub fn chunks(&self) -> u64 {
        self.asked.len() as u64
    }
}

/// Which chunks of the given maps `target` lacks, exactly; and those that it has and that the caller may not count on,
/// if `trusted` says so.
pub fn find_missing(
    source: &dyn Source,
    target: &Region,
    maps: &[BlockMap],
    trusted: Option<&Trusted>,
    context: &Context<'_>,
) -> Result<Missing, OpsError> {
    let ids = distinct_chunks(maps);
    let mut absent = Vec::new();
    for ids in ids.chunks(ASKED_AT_ONCE) {
        context.check_cancelled()?;
        let present = ids.iter().zip(target.has_chunks(ids)?);
        let lacks = |(&id, has): (&ChunkId, bool)| !(has && trusted.is_none_or(|trusted| trusted.has(id)));
        absent.extend(present.filter_map(|(id, has)| lacks((id, has)).then_some(*id)));
    }
    let distinct_chunks = ids.len() as u64;
    drop(ids);
    let mut found = source.locate(&absent, context)?;
    if found.len() != absent.len() || found.iter().zip(&absent).any(|(found, id)| found.id != *id) {
        return Err(OpsError::Offer { why: "other chunks than it was asked for".into() });
    }
    drop(absent);
    // A delta can be put once its base is.
    found.sort_unstable_by_key(|found| (found.is_delta, found.pack, found.offset));
    if context.dry_run && !source.is_far() {
        add_bases(source, &mut found, context)?;
    }
    Ok(Missing { distinct_chunks, ..arrange(source, target, &found, trusted)? })
}

/// Finds out what deltas are stored against, of one pack after the other: which will find no base is for a plan to say. A copy
/// between regions of one host finds it out while it is made.
fn add_bases(source: &dyn Source, found: &mut [Found], context: &Context<'_>) -> Result<(), OpsError> {
    let (mut pack, mut bases) = (None, HashMap::new());
    for found in found.iter_mut().filter(|found| found.is_delta) {
        if pack != Some(found.pack) {
            context.check_cancelled()?;
            // What a damaged pack does not tell makes the plan less exact, and nothing else.
            bases = source.bases_in(found.pack).unwrap_or_default();
            pack = Some(found.pack);
        }
        found.base = bases.get(&found.id).copied();
    }
    Ok(())
}

/// What plain frames take of what is in them; where there are none, half.
fn plain_ratio(found: &[Found]) -> f64 {
    let plain = found.iter().filter(|found| !found.is_delta);
    let (stored, raw) = plain.fold((0_u64, 0_u64), |(stored, raw), found| {
        (stored + u64::from(found.stored_bytes), raw + block_offset(u64::from(found.raw_blocks)))
    });
    if raw == 0 { 0.5 } else { share(stored, raw) }
}

#[expect(clippy::cast_precision_loss, reason = "an estimate")]
fn share(stored: u64, raw: u64) -> f64 {
    stored as f64 / raw.max(1) as f64
}

/// What is asked for of what was found: of a delta the whole chunk, if it will find no base.
fn arrange(
    source: &dyn Source,
    target: &Region,
    found: &[Found],
    trusted: Option<&Trusted>,
) -> Result<Missing, OpsError> {
    let coming: HashSet<u64> =
        found.iter().take_while(|found| !found.is_delta).map(|found| found.id.leading()).collect();
    let mut missing = Missing::default();
    let ratio = plain_ratio(found);
    for found in found {
        let (mut stored_bytes, raw_bytes) =
            (u64::from(found.stored_bytes), block_offset(u64::from(found.raw_blocks)));
        // Of what is no delta a base says nothing, and would only ask what is here.
        let base = found.base.filter(|_| found.is_delta);
        let plain = match base {
            Some(base) if coming.contains(&base) => false,
            Some(base) => match target.find_base(base)? {
                Some((id, _)) => trusted.is_some_and(|trusted| !trusted.has(id)),
                None => true,
            },
            None => false,
        };
        let mut expected_bytes = stored_bytes;
        if let Some(base) = base.filter(|_| plain) {
            let of_base = source.base_bytes(base)?.map(|(stored, raw)| share(stored, raw));
            #[expect(
                clippy::cast_precision_loss,
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "an estimate"
            )]
            let alone = (raw_bytes as f64 * of_base.unwrap_or(ratio)) as u64;
            expected_bytes = alone.clamp(stored_bytes, raw_bytes.max(stored_bytes));
            if source.is_far() {
                stored_bytes = expected_bytes;
            }
        }
        missing.stored_bytes += stored_bytes;
        missing.expected_bytes += expected_bytes;
        missing.raw_bytes += raw_bytes;
        let is_delta = found.is_delta;
        missing.asked.push(Asked { id: found.id, stored_bytes, raw_bytes, is_delta, plain });
    }
    Ok(missing)
}

/// Carries missing chunks over. What others store meanwhile is not stored again. Gives the bytes moved. What came
/// before an error is kept, so that the next try need not fetch it again; what was proved is `trusted`.
pub fn transfer(
    source: &dyn Source,
    session: &mut Session,
    missing: &Missing,
    trusted: &mut Option<Trusted>,
    bytes_per_second: Option<u64>,
    context: &Context<'_>,
) -> Result<u64, OpsError> {
    let mut putter = Putter { session, trusted, context, moved: 0, baseless: Vec::new() };
    let carried = carry(source, &mut putter, &missing.asked, bytes_per_second).and_then(|()| {
        // Bases that went meanwhile, or that were named wrongly.
        let baseless = std::mem::take(&mut putter.baseless);
        carry(source, &mut putter, &baseless, bytes_per_second)
    });
    let Putter { session, moved, .. } = putter;
    match carried {
        Ok(()) => Ok(moved),
        Err(error) => {
            // The error is what counts, whatever becomes of this.
            let _ = session.flush();
            Err(error)
        }
    }
}

fn carry(
    source: &dyn Source,
    putter: &mut Putter<'_>,
    asked: &[Asked],
    bytes_per_second: Option<u64>,
) -> Result<(), OpsError> {
    let (context, is_over) = (putter.context, &AtomicBool::new(false));
    thread::scope(|scope| {
        let (fetched_in, fetched_out) = bounded(FETCHED_AHEAD);
        let fetcher = spawn(scope, "fetch", move || {
            fetch(source, asked, bytes_per_second, is_over, context, &fetched_in)
        })?;
        let put = (|| {
            loop {
                context.check_cancelled()?;
                match fetched_out.recv_timeout(LOOK_EVERY) {
                    Ok(frames) => putter.put(&*frames)?,
                    // What was put may turn out not to be written while nothing comes for a long time.
                    Err(RecvTimeoutError::Timeout) => putter.session.check_writer()?,
                    Err(RecvTimeoutError::Disconnected) => return Ok(()),
                }
            }
        })();
        is_over.store(true, Ordering::Relaxed);
        drop(fetched_out);
        let fetched = fetcher.join().unwrap_or(Err(OpsError::WorkerGone));
        // That nobody takes any more is no error of the fetcher; what it was taken for is.
        put.and(fetched)
    })
}

fn fetch<'s>(
    source: &'s dyn Source,
    asked: &[Asked],
    bytes_per_second: Option<u64>,
    is_over: &AtomicBool,
    context: &Context<'_>,
    fetched: &Sender<Box<dyn Frames + 's>>,
) -> Result<(), OpsError> {
    if asked.is_empty() {
        return Ok(());
    }
    let (started, mut bytes, mut rest) = (Instant::now(), 0, asked.iter());
    source.fetch(asked, context, &mut |frames| {
        let count = frames.ids().len();
        let is_taken = fetched.send(frames).is_ok();
        bytes += rest.by_ref().take(count).map(|asked| asked.stored_bytes).sum::<u64>();
        // Where what takes it has failed, nobody waits.
        let goes_on = || !is_over.load(Ordering::Relaxed);
        context.keep_pace_while(started, bytes, bytes_per_second, goes_on)?;
        Ok(is_taken)
    })
}

/// Puts frames that were fetched into the target.
struct Putter<'a> {
    session: &'a mut Session,
    /// What the caller may count on, if that is not everything.
    trusted: &'a mut Option<Trusted>,
    context: &'a Context<'a>,
    moved: u64,
    /// Deltas that came without a base to decode them with.
    baseless: Vec<Asked>,
}

impl Putter<'_> {
    fn put(&mut self, frames: &dyn Frames) -> Result<(), OpsError> {
        let (ids, mut from) = (frames.ids(), 0);
        let deltas: Vec<Option<(ChunkId, u16)>> = (0..ids.len()).map(|at| frames.delta(at)).collect();
        let here = self.find_bases(deltas.iter().flatten().map(|(base, _)| *base).collect())?;
        while from < ids.len() {
            let (mut bytes, mut named) = (0, Vec::new());
            let fits = |delta: &&Option<(ChunkId, u16)>| {
                let Some((base, raw_blocks)) = delta else { return true };
                let Some(&base_bytes) = here.get(base) else { return true };
                bytes += base_bytes + block_offset(u64::from(*raw_blocks));
                let fits = named.is_empty() || bytes <= BASES_BYTES;
                if fits {
                    named.push(*base);
                }
                fits
            };
            let to = from + deltas[from..].iter().take_while(fits).count();
            let bases = self.contents(named);
            self.put_some(frames, from..to, &bases)?;
            from = to;
        }
        Ok(())
    }

    fn put_some(
        &mut self,
        frames: &dyn Frames,
        some: Range<usize>,
        bases: &Contents,
    ) -> Result<(), OpsError> {
        let ids = frames.ids();
        let prove = |at: usize| match frames.prove(some.start + at, bases) {
            Ok(frame) => Ok(Some(frame)),
            Err(OpsError::BaseMissing) => Ok(None),
            Err(error) => Err(error),
        };
        let proved: Vec<Option<Frame>> = self.context.for_each_chunk(some.len(), prove)?;
        let mut sound = Vec::with_capacity(some.len());
        for (at, frame) in some.zip(proved) {
            if let Some(frame) = frame {
                sound.push((at, frame));
                continue;
            }
            let bytes = block_offset(u64::from(CHUNK_BLOCKS_MAX));
            let asked =
                Asked { id: ids[at], stored_bytes: bytes, raw_bytes: bytes, is_delta: false, plain: true };
            self.baseless.push(asked);
        }
        self.store(frames, bases, &ids, &sound)
    }

    /// Stores what was proved and is new.
    fn store(
        &mut self,
        frames: &dyn Frames,
        bases: &Contents,
        ids: &[ChunkId],
        proved: &[(usize, Frame)],
    ) -> Result<(), OpsError> {
        let is_new = self.session.reserve(&proved.iter().map(|(at, _)| ids[*at]).collect::<Vec<_>>())?;
        let mut without_base = Vec::new();
        for ((at, frame), is_new) in proved.iter().zip(is_new) {
            let at = *at;
            self.moved += frame.stored_bytes();
            self.context.progress.advance(frame.stored_bytes());
            if let Some(trusted) = self.trusted.as_mut() {
                trusted.add(ids[at]);
            }
            if !is_new {
                continue;
            }
            // Whoever reads the chunk reads its base, too: one that is many times as long is for the sender to pay for, not for them.
            let is_bulky = frames.delta(at).is_some_and(|(base, raw_blocks)| {
                let most = block_offset(u64::from(base_blocks_max(usize::from(raw_blocks))));
                bases.get(&base).is_some_and(|content| content.len() as u64 > most)
            });
            match frame.base() {
                Some(base) if is_bulky || self.session.base_pack(base)?.is_none() => without_base.push(at),
                _ => self.session.put(ids[at], frame)?,
            }
        }
        let encode = |number: usize| {
            let at = without_base[number];
            Ok((ids[at], frames.plain(at, bases)?))
        };
        let encoded: Vec<(ChunkId, Frame)> = self.context.for_each_chunk(without_base.len(), encode)?;
        for (id, frame) in &encoded {
            self.session.put(*id, frame)?;
        }
        Ok(())
    }

    /// Those of some bases that are at the target and that the caller may count on, with their lengths.
    fn find_bases(&mut self, mut named: Vec<ChunkId>) -> Result<HashMap<ChunkId, u64>, OpsError> {
        named.retain(|id| self.trusted.as_ref().is_none_or(|trusted| trusted.has(*id)));
        named.sort_unstable();
        named.dedup();
        if named.is_empty() {
            return Ok(HashMap::new());
        }
        let region = self.session.region().clone();
        if region.has_chunks(&named)?.contains(&false) {
            // They may be in a pack that is not sealed yet.
            self.session.flush()?;
        }
        let has = region.has_chunks(&named)?;
        let here: Vec<ChunkId> =
            named.into_iter().zip(has).filter_map(|(id, has)| has.then_some(id)).collect();
        // What is gone by now is no base.
        let Ok(places) = region.locate(&here) else { return Ok(HashMap::new()) };
        Ok(places.into_iter().map(|(id, place)| (id, place.raw_bytes())).collect())
    }

    /// The content of bases that are here.
    fn contents(&self, mut here: Vec<ChunkId>) -> Contents {
        here.sort_unstable();
        here.dedup();
        let region = self.session.region().clone();
        // What cannot be read or is damaged is no base: the chunk is asked for as a whole then.
        let Ok(fetched) = region.fetch(&here) else { return Contents::new() };
        let decode = |frame| {
            let mut raw = vec![0; fetched.raw_bytes(frame)];
            fetched.decode_here(&region, frame, &mut raw).ok()?;
            Some((fetched.id(frame), raw))
        };
        let frames = fetched.frames();
        self.context
            .pool
            .install(|| frames.into_par_iter().with_max_len(CHUNKS_AT_ONCE).filter_map(decode).collect())
    }
}
