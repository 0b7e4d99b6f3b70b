//! The pipeline of a copy: chunks of one region become chunks of another, as they are stored.
//!
//! ```text
//! plan      ids of all manifests; those that the target lacks; where they lie in the source's packs
//! fetch     frames in pack order, near ones together
//! prove     decompress and hash: the source's word is not taken for anything
//! put       into the target's packs as they are; a delta whose base does not go along is encoded anew
//! ```

use super::context::Context;
use super::error::OpsError;
use crate::chunk::frame::Frame;
use crate::model::blockmap::BlockMap;
use crate::model::ids::ChunkId;
use crate::region::Region;
use crate::region::error::RegionError;
use crate::region::fetch::{Fetched, FetchedFrame};
use crate::region::session::Session;
use crossbeam_channel::{Sender, bounded};
use rayon::prelude::*;
use std::thread;

/// Batches that are fetched ahead.
const FETCHED_AHEAD: usize = 2;
/// Ids that are asked about at once.
const ASKED_AT_ONCE: usize = 64 << 10;

/// Chunks that the target lacks.
#[derive(Debug, Clone, Default)]
pub struct Missing {
    /// The chunks, plain ones first and then in the order in which they lie in the source's packs, with the bytes of
    /// memory that each takes.
    chunks: Vec<(ChunkId, u64)>,
    /// Stored bytes of all.
    pub stored_bytes: u64,
    /// Raw bytes of all.
    pub raw_bytes: u64,
}

impl Missing {
    /// Number of chunks.
    pub fn chunks(&self) -> u64 {
        self.chunks.len() as u64
    }
}

/// Which chunks of the given maps `target` lacks, exactly.
pub fn find_missing(
    source: &Region,
    target: &Region,
    maps: &[BlockMap],
    context: &Context<'_>,
) -> Result<Missing, OpsError> {
    let mut ids: Vec<ChunkId> = maps.iter().flat_map(|map| map.chunks()).map(|chunk| chunk.id).collect();
    ids.sort_unstable();
    ids.dedup();
    let mut located = Vec::new();
    for ids in ids.chunks(ASKED_AT_ONCE) {
        context.check_cancelled()?;
        let present = target.has_chunks(ids)?;
        let absent: Vec<ChunkId> =
            ids.iter().zip(present).filter_map(|(&id, has)| (!has).then_some(id)).collect();
        located.extend(source.locate(&absent)?);
    }
    // A delta can be put once its base is.
    located.sort_unstable_by_key(|(_, place)| (!place.codec.is_plain(), place.pack, place.offset));
    let mut missing = Missing::default();
    for (id, location) in located {
        let stored = location.frame_bytes();
        missing.stored_bytes += stored;
        missing.raw_bytes += location.raw_bytes();
        // With a delta comes its base.
        let held = if location.codec.is_plain() { stored } else { stored + location.raw_bytes() };
        missing.chunks.push((id, held));
    }
    Ok(missing)
}

/// Carries missing chunks over. What others store meanwhile is not stored again. Gives the bytes moved.
pub fn transfer(
    source: &Region,
    session: &mut Session,
    missing: &Missing,
    context: &Context<'_>,
) -> Result<u64, OpsError> {
    thread::scope(|scope| {
        let (fetched_in, fetched_out) = bounded(FETCHED_AHEAD);
        let fetcher = scope.spawn(move || fetch(source, missing, context, &fetched_in));
        let put = (|| {
            let mut moved = 0;
            for fetched in &fetched_out {
                context.check_cancelled()?;
                moved += put(source, session, &fetched, context)?;
            }
            Ok(moved)
        })();
        drop(fetched_out);
        let fetched = fetcher.join().unwrap_or(Err(OpsError::WorkerGone));
        fetched.and(put)
    })
}

fn fetch(
    source: &Region,
    missing: &Missing,
    context: &Context<'_>,
    fetched: &Sender<Fetched>,
) -> Result<(), OpsError> {
    let limit = context.buffer_bytes() as u64;
    let mut rest = missing.chunks.as_slice();
    while !rest.is_empty() {
        context.check_cancelled()?;
        let mut bytes = 0;
        let fits = |(_, held): &&(ChunkId, u64)| {
            bytes += held;
            bytes <= limit
        };
        let count = rest.iter().take_while(fits).count().max(1);
        let ids: Vec<ChunkId> = rest[..count].iter().map(|(id, _)| *id).collect();
        rest = &rest[count..];
        if fetched.send(source.fetch(&ids)?).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

fn put(
    source: &Region,
    session: &mut Session,
    fetched: &Fetched,
    context: &Context<'_>,
) -> Result<u64, OpsError> {
    let prove = |frame: FetchedFrame| {
        let mut raw = vec![0; fetched.raw_bytes(frame)];
        fetched.decode_here(source, frame, &mut raw).map_err(of_source)?;
        Ok(fetched.stored(frame)?)
    };
    let frames = fetched.frames();
    let proved: Vec<(ChunkId, Frame)> = context
        .pool
        .install(|| frames.par_iter().map(|&frame| prove(frame)).collect::<Result<_, OpsError>>())?;
    let ids: Vec<ChunkId> = proved.iter().map(|(id, _)| *id).collect();
    let is_new = session.reserve(&ids)?;
    let (mut moved, mut without_base) = (0, Vec::new());
    for (((id, stored), is_new), &frame) in proved.iter().zip(is_new).zip(&frames) {
        let stored_bytes = stored.stored_bytes();
        moved += stored_bytes;
        context.progress.advance(stored_bytes);
        if !is_new {
            continue;
        }
        match stored.base() {
            Some(base) if session.base_pack(base)?.is_none() => without_base.push((*id, frame)),
            _ => session.put(*id, stored)?,
        }
    }
    let region = session.region().clone();
    let level = i32::from(region.header().zstd_level);
    let encode = |(id, frame): (ChunkId, FetchedFrame)| {
        let mut raw = vec![0; fetched.raw_bytes(frame)];
        fetched.decode_here(source, frame, &mut raw)?;
        Ok((id, region.encode(&raw, id, level).map_err(OpsError::SourceFrame)?))
    };
    let encoded: Vec<(ChunkId, Frame)> =
        context.pool.install(|| without_base.into_par_iter().map(encode).collect::<Result<_, OpsError>>())?;
    for (id, frame) in &encoded {
        session.put(*id, frame)?;
    }
    Ok(moved)
}

/// What decodes to something else is the source's fault.
fn of_source(error: RegionError) -> OpsError {
    error.into_frame_error().map_or_else(OpsError::from, OpsError::SourceFrame)
}
