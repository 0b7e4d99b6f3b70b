//! The pipeline of a snapshot: a disk's bytes become chunks of a region.
//!
//! ```text
//! read      extents, bytes, zero test, fingerprints, chunk ends, BLAKE3: on several threads (`ops/pieces.rs`)
//! features  what new chunks resemble
//! encode    compress what is new, and prove it
//! put       which are new? put those into packs, all into the block map (`ops/put.rs`, as the two before)
//! (packs)   the session's own thread writes full packs
//! ```
//!
//! A fixed number of buffers goes round from the last stage back to the first: that bounds the memory. Where a hint says
//! what may have changed, one stage (`ops/changed.rs`) takes the place of the first.

use super::buffers::buffers;
use super::changed::{Changed, cut_changed};
use super::context::Context;
use super::cutting::Batch;
use super::encode::{Compression, Encoder};
use super::error::OpsError;
use super::expected::Expected;
use super::pieces::{Planner, READ_BYTES};
use super::put::Put;
use super::stage::{check_whole, join_all, spawn};
use crate::disk::DiskRead;
use crate::model::ids::SnapshotId;
use crate::model::objects::{ManifestRecord, PackName};
use crate::model::units::{block_offset, blocks_for_bytes};
use crate::region::fetch::Stored;
use crate::region::session::Session;
use crossbeam_channel::{Receiver, bounded};
use std::sync::Arc;
use std::thread;

/// Threads that read: one copies from the page cache more slowly than two hash.
const READERS_MAX: usize = 4;

/// What bringing a volume in has given.
#[derive(Debug, Clone)]
pub struct Ingested {
    /// Its stored block map.
    pub manifest: ManifestRecord,
    /// Packs that hold its chunks: a record about it names those of them that it must.
    pub packs: Vec<PackName>,
    /// Length of the volume.
    pub volume_bytes: u64,
    /// Bytes of it outside zero runs.
    pub data_bytes: u64,
    /// Bytes of the disk that were read.
    pub read_bytes: u64,
    /// Chunk references.
    pub chunks: u64,
    /// Chunks that were not stored before.
    pub new_chunks: u64,
    /// Raw bytes of those.
    pub new_bytes: u64,
    /// Bytes that this added to the store.
    pub stored_bytes: u64,
}

/// Brings a disk into the session's region. The manifest is durable when this returns; the caller makes it
/// part of the catalogue, if [`check_manifests`](super::find::check_manifests) agrees.
pub fn ingest(
    session: &mut Session,
    disk: &dyn DiskRead,
    how: &Compression,
    context: &Context<'_>,
) -> Result<Ingested, OpsError> {
    ingest_what(session, disk, Known::Nothing, how, context)
}

/// As [`ingest`], and with the same result, of a disk that may be as an earlier snapshot: the one that is `named`, or one
/// of the caller's. Where it is, chunks need not be cut.
pub(super) fn ingest_like(
    session: &mut Session,
    disk: &dyn DiskRead,
    named: Option<SnapshotId>,
    how: &Compression,
    context: &Context<'_>,
) -> Result<Ingested, OpsError> {
    let region = session.region();
    let (expected, stored) = thread::scope(|scope| {
        // Both take their time where there is much in a region.
        let stored = spawn(scope, "index", || Ok(region.stored()?))?;
        let expected = Expected::find(region, disk, named, context);
        let stored = stored.join().unwrap_or(Err(OpsError::WorkerGone));
        Ok::<_, OpsError>((expected?, stored?))
    })?;
    let known = expected.as_ref().map_or(Known::Nothing, |expected| Known::Likely(expected, &stored));
    ingest_what(session, disk, known, how, context)
}

/// As [`ingest`], and with the same result, of a disk that is known to be as an earlier one but for some ranges: what
/// is far from those is not read.
pub(super) fn ingest_changed(
    session: &mut Session,
    disk: &dyn DiskRead,
    changed: Changed<'_>,
    how: &Compression,
    context: &Context<'_>,
) -> Result<Ingested, OpsError> {
    ingest_what(session, disk, Known::Changed(changed), how, context)
}

/// What is known of a disk before it is read.
#[derive(Clone, Copy)]
enum Known<'a> {
    Nothing,
    /// What it may hold, and what is stored.
    Likely(&'a Expected, &'a Stored),
    /// That it is as an earlier one but for some ranges.
    Changed(Changed<'a>),
}

fn ingest_what(
    session: &mut Session,
    disk: &dyn DiskRead,
    known: Known<'_>,
    how: &Compression,
    context: &Context<'_>,
) -> Result<Ingested, OpsError> {
    let params = session.region().header().chunker;
    let before = session.stored_bytes();
    let are_long = matches!(known, Known::Changed(_)) || disk.is_computed();
    let batch_bytes = if are_long { context.piece_bytes() } else { READ_BYTES };
    let mut put = Put::new(disk.len_bytes(), batch_bytes, context)?;
    let mut encoder = Encoder::new(session.region(), how, context);
    session.set_effort(encoder.effort());
    // One for each reader, and some that wait.
    let count = put.batches_max() + READERS_MAX + 2;
    let brought_in = thread::scope(|scope| {
        let (back, buffers) = buffers(count);
        let mut stages = Vec::new();
        let stored = if let Known::Changed(changed) = known {
            let (batches_in, batches_out) = bounded(count);
            let mut take = move || buffers.take();
            let mut send = move |batch| batches_in.send(batch).is_ok();
            let cut = move || cut_changed(disk, params, changed, context, &mut take, &mut send);
            stages.push(spawn(scope, "cut", cut)?);
            put.run(session, &mut encoder, context, batches_out.into_iter(), &back)
        } else {
            let (order_in, order_out) = bounded(count);
            let expected =
                if let Known::Likely(expected, stored) = known { Some((expected, stored)) } else { None };
            let planner = Arc::new(Planner::new(disk, params, expected, batch_bytes, context, order_in));
            for _ in 0..context.pool.current_num_threads().clamp(1, READERS_MAX) {
                let (planner, buffers) = (planner.clone(), buffers.clone());
                stages.push(spawn(scope, "read", move || planner.read(&buffers))?);
            }
            drop(planner);
            // Whoever gave a batch up has the reason.
            let batches = order_out.into_iter().map_while(|batch: Receiver<Batch>| batch.recv().ok());
            put.run(session, &mut encoder, context, batches, &back)
        };
        // Who waits for a buffer sees that none comes back any more.
        drop(back);
        join_all(stages, stored)
    });
    let placed = brought_in.and_then(|()| {
        check_whole("taken in", block_offset(blocks_for_bytes(put.volume_bytes)), put.passed_bytes)?;
        let map = put.map.finish();
        Ok((session.place_manifest(&map)?, map))
    });
    // What was stored is there for the next try, and so is what resembles it.
    let (manifest, map) = placed.inspect_err(|_| encoder.keep_new())?;
    encoder.finish()?;
    Ok(Ingested {
        manifest,
        packs: session.used_packs(),
        volume_bytes: map.volume_bytes(),
        data_bytes: map.data_bytes(),
        read_bytes: put.read_bytes,
        chunks: map.chunks().len() as u64,
        new_chunks: put.new_chunks,
        new_bytes: put.new_bytes,
        stored_bytes: session.stored_bytes() - before,
    })
}
