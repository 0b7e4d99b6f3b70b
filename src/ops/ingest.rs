//! The pipeline of a snapshot: a disk's bytes become chunks of a region.
//!
//! ```text
//! plan      extents; holes are only counted
//! read      the bytes, zero test, fingerprints: on several threads (`ops/pieces.rs`)
//! cut       chunk ends, BLAKE3
//! features  what new chunks resemble
//! encode    compress what is new, and prove it
//! put       which are new? put those into packs, all into the block map (`ops/put.rs`, as the two before)
//! (packs)   the session's own thread writes full packs
//! ```
//!
//! A fixed number of buffers goes round from the last stage back to the first: that bounds the memory. Where a hint says
//! what may have changed, one stage (`ops/changed.rs`) takes the place of the first three.

use super::changed::{Changed, cut_changed};
use super::context::Context;
use super::encode::{Compression, Encoder};
use super::error::OpsError;
use super::pieces::{Part, Piece, plan, read};
use super::put::{ENCODED_AHEAD, Put};
use super::stage::{join_all, spawn};
use crate::chunk::cut::{Cutter, Span};
use crate::chunk::fingerprint::BlockFacts;
use crate::chunk::frame::chunk_id;
use crate::disk::DiskRead;
use crate::model::blockmap::ChunkRef;
use crate::model::ids::ChunkId;
use crate::model::objects::{ManifestRecord, PackName};
use crate::model::region::ChunkerParams;
use crate::model::units::{BLOCK_BYTES, block_offset};

use crate::region::session::Session;
use crossbeam_channel::{Receiver, Sender, bounded};
use rayon::prelude::*;
use std::thread;

/// Buffers that go round: those that are encoded, those that are read, and some that wait.
const BUFFERS: usize = ENCODED_AHEAD + READERS_MAX + 4;
/// Threads that read: one copies from the page cache more slowly than two hash.
const READERS_MAX: usize = 4;

/// What bringing a volume in has given.
#[derive(Debug, Clone)]
pub struct Ingested {
    /// Its stored block map.
    pub manifest: ManifestRecord,
    /// Packs that a record about it must name.
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

/// A buffer with the chunks that were cut in it.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) buffer: Vec<u8>,
    /// Chunks before those that were cut, which are stored: their bytes were not read.
    pub(super) kept: Vec<ChunkRef>,
    chunks: Vec<Cut>,
    /// Bytes of the disk that were read for this.
    pub(super) read_bytes: u64,
    /// Bytes of the disk that this finished, for progress.
    pub(super) passed_bytes: u64,
}

impl Batch {
    /// All of its chunks, by position.
    pub(super) fn refs(&self) -> impl Iterator<Item = ChunkRef> + '_ {
        let cut =
            |cut: &Cut| ChunkRef { start_block: cut.span.start_block, blocks: cut.span.blocks, id: cut.id };
        self.kept.iter().copied().chain(self.chunks.iter().map(cut))
    }

    /// The chunks that were cut, with their bytes.
    pub(super) fn chunks(&self) -> impl Iterator<Item = (ChunkId, &[u8])> {
        self.chunks.iter().map(|cut| (cut.id, cut.bytes(&self.buffer)))
    }

    /// Their ids.
    pub(super) fn ids(&self) -> Vec<ChunkId> {
        self.chunks.iter().map(|cut| cut.id).collect()
    }
}

struct Cut {
    span: Span,
    offset: usize,
    id: ChunkId,
}

impl Cut {
    fn bytes<'a>(&self, buffer: &'a [u8]) -> &'a [u8] {
        &buffer[self.offset..self.offset + usize::from(self.span.blocks) * BLOCK_BYTES]
    }
}

/// Brings a disk into the session's region. The manifest is durable when this returns; the caller makes it
/// part of the catalogue, if [`check_manifests`](super::find::check_manifests) agrees.
pub fn ingest(
    session: &mut Session,
    disk: &dyn DiskRead,
    how: &Compression,
    context: &Context<'_>,
) -> Result<Ingested, OpsError> {
    ingest_what(session, disk, None, how, context)
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
    ingest_what(session, disk, Some(changed), how, context)
}

fn ingest_what(
    session: &mut Session,
    disk: &dyn DiskRead,
    changed: Option<Changed<'_>>,
    how: &Compression,
    context: &Context<'_>,
) -> Result<Ingested, OpsError> {
    let params = session.region().header().chunker;
    let before = session.stored_bytes();
    let mut put = Put::new(disk.len_bytes())?;
    let mut encoder = Encoder::new(session.region(), how, context);
    session.set_effort(encoder.effort());
    thread::scope(|scope| {
        let (free_in, free_out) = bounded(BUFFERS);
        for _ in 0..BUFFERS {
            let _ = free_in.send(Vec::new());
        }
        let (batches_in, batches_out) = bounded(BUFFERS);
        let stages = if let Some(changed) = changed {
            let mut take = move || free_out.recv().ok();
            let mut send = move |batch| batches_in.send(batch).is_ok();
            vec![spawn(scope, "cut", move || {
                cut_changed(disk, params, changed, context, &mut take, &mut send)
            })?]
        } else {
            let (plans_in, plans_out) = bounded(1);
            let (order_in, order_out) = bounded(BUFFERS);
            let mut stages = vec![spawn(scope, "plan", move || plan(disk, context, &plans_in, &order_in))?];
            for _ in 0..context.pool.current_num_threads().clamp(1, READERS_MAX) {
                let (plans, free) = (plans_out.clone(), free_out.clone());
                stages.push(spawn(scope, "read", move || read(disk, params, context, &plans, &free))?);
            }
            stages.push(spawn(scope, "cut", move || cut(params, context, &order_out, &batches_in))?);
            stages
        };
        let stored = put.run(session, &mut encoder, context, &batches_out, &free_in);
        drop((batches_out, free_in));
        join_all(stages, stored)
    })?;
    let map = put.map.finish();
    let manifest = session.place_manifest(&map)?;
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

/// Third stage: finds where chunks end, and their ids.
fn cut(
    params: ChunkerParams,
    context: &Context<'_>,
    pieces: &Receiver<Receiver<Piece>>,
    batches: &Sender<Batch>,
) -> Result<(), OpsError> {
    let mut cutting = Cutting::new(Cutter::new(params));
    for piece in pieces {
        // Whoever gave it up has the reason.
        let Ok(piece) = piece.recv() else { return Ok(()) };
        if batches.send(cutting.take(piece, context)).is_err() {
            return Ok(());
        }
    }
    // Nobody may want it any more; who went has the reason.
    let _ = batches.send(cutting.finish(context));
    Ok(())
}

/// A cutter, and the bytes of the chunk that is open in it.
pub(super) struct Cutting {
    pub(super) cutter: Cutter,
    tail: Vec<u8>,
}

impl Cutting {
    /// Goes on where a cutter stands; nothing is open in it.
    pub(super) fn new(cutter: Cutter) -> Self {
        Self { cutter, tail: Vec::new() }
    }

    /// The headroom that the next piece needs at least.
    pub(super) fn tail_bytes(&self) -> usize {
        self.tail.len()
    }

    /// The chunks that end in a piece.
    pub(super) fn take(&mut self, piece: Piece, context: &Context<'_>) -> Batch {
        let Piece { mut buffer, headroom, parts, facts } = piece;
        let start = headroom - self.tail.len();
        buffer[start..headroom].copy_from_slice(&self.tail);
        let before = self.cutter.position();
        let read_bytes = (buffer.len() - headroom) as u64;
        let chunks = cut_piece(&mut self.cutter, &parts, &facts, headroom);
        let pending = self.cutter.position() - self.cutter.pending_from();
        let pending = usize::try_from(block_offset(pending)).unwrap_or(0);
        self.tail.clear();
        self.tail.extend_from_slice(&buffer[buffer.len() - pending..]);
        let passed_bytes = block_offset(self.cutter.position() - before);
        Batch { read_bytes, passed_bytes, ..hashed(buffer, chunks, context) }
    }

    /// The chunk that the end of the volume ends.
    pub(super) fn finish(mut self, context: &Context<'_>) -> Batch {
        let mut last = Vec::new();
        let first = self.cutter.pending_from();
        self.cutter.finish(&mut |span| {
            let offset = usize::try_from(block_offset(span.start_block - first)).unwrap_or(0);
            last.push((span, offset));
        });
        hashed(self.tail, last, context)
    }
}

/// The chunks that end in a piece, with the offsets of their bytes in its buffer.
fn cut_piece(
    cutter: &mut Cutter,
    parts: &[Part],
    facts: &[BlockFacts],
    headroom: usize,
) -> Vec<(Span, usize)> {
    let mut chunks = Vec::new();
    let mut facts = facts.iter();
    // The byte at `anchor_offset` of the buffer is that of block `anchor`; a chunk never spans a hole.
    let (mut anchor, mut anchor_offset) = (cutter.position(), headroom);
    let mut filled = headroom;
    for part in parts {
        let mut emit = |span: Span| {
            let back = usize::try_from(block_offset(anchor.saturating_sub(span.start_block))).unwrap_or(0);
            let ahead = usize::try_from(block_offset(span.start_block.saturating_sub(anchor))).unwrap_or(0);
            chunks.push((span, anchor_offset + ahead - back));
        };
        match *part {
            Part::Zeros(blocks) => {
                cutter.push_zeros(blocks, &mut emit);
                (anchor, anchor_offset) = (cutter.position(), filled);
            }
            Part::Data(blocks) => {
                for facts in facts.by_ref().take(usize::try_from(blocks).unwrap_or(usize::MAX)) {
                    cutter.push(*facts, &mut emit);
                    filled += BLOCK_BYTES;
                }
            }
        }
    }
    chunks
}

/// A batch of chunks at offsets in a buffer, hashed.
fn hashed(buffer: Vec<u8>, chunks: Vec<(Span, usize)>, context: &Context<'_>) -> Batch {
    let hashed = |(span, offset): (Span, usize)| {
        let mut cut = Cut { span, offset, id: ChunkId([0; 32]) };
        cut.id = chunk_id(cut.bytes(&buffer));
        cut
    };
    let chunks = context.pool.install(|| chunks.into_par_iter().map(hashed).collect());
    Batch { buffer, chunks, ..Batch::default() }
}
