//! The pipeline of a copy: chunks of one region become chunks of another, as they are stored.
//!
//! ```text
//! plan      ids of all manifests; those that the target lacks; where they lie in the source's packs
//! fetch     frames in pack order, near ones together
//! prove     decompress and hash: the source's word is not taken for anything
//! put       into the target's packs, never recompressed
//! ```

use super::context::Context;
use super::error::OpsError;
use crate::model::blockmap::BlockMap;
use crate::model::ids::ChunkId;
use crate::region::Region;
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
    /// The chunks, in the order in which they lie in the source's packs, with the stored bytes of each.
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
    located.sort_unstable_by_key(|(_, location)| (location.pack, location.offset));
    let mut missing = Missing::default();
    for (id, location) in located {
        let stored = location.frame_bytes();
        missing.stored_bytes += stored;
        missing.raw_bytes += location.raw_bytes();
        missing.chunks.push((id, stored));
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
                moved += put(session, &fetched, context)?;
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
        let fits = |(_, stored): &&(ChunkId, u64)| {
            bytes += stored;
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

fn put(session: &mut Session, fetched: &Fetched, context: &Context<'_>) -> Result<u64, OpsError> {
    let region = session.region().clone();
    let prove = |frame: FetchedFrame| {
        let (id, frame) = fetched.stored(frame)?;
        region.prove(id, &frame).map_err(OpsError::SourceFrame)?;
        Ok((id, frame))
    };
    let frames = fetched.frames();
    let proved: Vec<_> =
        context.pool.install(|| frames.into_par_iter().map(prove).collect::<Result<_, OpsError>>())?;
    let ids: Vec<ChunkId> = proved.iter().map(|(id, _)| *id).collect();
    let is_new = session.reserve(&ids)?;
    let mut moved = 0;
    for ((id, frame), is_new) in proved.iter().zip(is_new) {
        let stored = frame.stored_bytes();
        if is_new {
            session.put(*id, frame)?;
        }
        moved += stored;
        context.progress.advance(stored);
    }
    Ok(moved)
}
