//! The second half of a snapshot's pipeline: which chunks of a batch are new? Those are encoded and go into the session's
//! packs, all of them into the block map.

use super::buffers::GiveBack;
use super::context::Context;
use super::cutting::Batch;
use super::encode::{Encoder, NewChunk, features_of};
use super::error::OpsError;
use super::stage::{check_whole, join_all, spawn};
use crate::chunk::features::Features;
use crate::chunk::frame::Frame;
use crate::disk::AlignedBuffer;
use crate::model::blockmap::{BlockMapBuilder, ChunkRef};
use crate::model::ids::ChunkId;
use crate::region::session::Session;
use crossbeam_channel::{Receiver, Sender, bounded};
use std::collections::VecDeque;
use std::sync::Arc;
use std::thread;

/// Pieces of work that are encoded or wait for it while the next is looked up: one whose features are taken, one that is encoded,
/// and one between any two of the stages.
const ENCODED_AHEAD: usize = 4;

/// Threads that encode where no chunk depends on another: when one has only a few left, the other has work for all.
const PLAIN_ENCODERS: usize = 2;

/// The last stage, and what it counted.
pub(super) struct Put {
    pub(super) map: BlockMapBuilder,
    pub(super) volume_bytes: u64,
    /// What of it has come, as chunks or zero runs, in whole blocks.
    pub(super) passed_bytes: u64,
    pub(super) read_bytes: u64,
    pub(super) new_chunks: u64,
    pub(super) new_bytes: u64,
    /// Batches that are looked up and encoded together at most.
    at_once: usize,
}

impl Put {
    /// For batches of so many bytes at most.
    pub(super) fn new(
        volume_bytes: u64,
        batch_bytes: usize,
        context: &Context<'_>,
    ) -> Result<Self, OpsError> {
        let map = BlockMapBuilder::new(volume_bytes).map_err(OpsError::Volume)?;
        let at_once = (context.piece_bytes() / batch_bytes).max(1);
        Ok(Self { map, volume_bytes, passed_bytes: 0, read_bytes: 0, new_chunks: 0, new_bytes: 0, at_once })
    }

    /// How many batches it has at a time at most.
    pub(super) fn batches_max(&self) -> usize {
        (ENCODED_AHEAD + 1) * self.at_once
    }

    /// Asks the session, lets the encoder work on up to [`ENCODED_AHEAD`] pieces of work, and puts what comes back.
    pub(super) fn run(
        &mut self,
        session: &mut Session,
        encoder: &mut Encoder,
        context: &Context<'_>,
        batches: impl Iterator<Item = Batch>,
        back: &GiveBack<AlignedBuffer>,
    ) -> Result<(), OpsError> {
        thread::scope(|scope| {
            let (work_in, work_out) = bounded(ENCODED_AHEAD);
            let mut stages = Vec::new();
            if encoder.takes_features() {
                let (described_in, described_out) = bounded(1);
                let describe = move || describe(context, &work_out, &described_in);
                stages.push(spawn(scope, "features", describe)?);
                stages.push(spawn(scope, "encode", move || encode(encoder, context, &described_out))?);
            } else {
                let encoder = &*encoder;
                for _ in 0..PLAIN_ENCODERS {
                    let work = work_out.clone();
                    stages.push(spawn(scope, "encode", move || encode_plain(encoder, context, &work))?);
                }
                drop(work_out);
            }
            let stored = self.put_all(session, context, &mut batches.fuse(), &work_in, back);
            drop(work_in);
            join_all(stages, stored)
        })
    }

    /// Hands on what is new, and puts what comes back, in order.
    fn put_all(
        &mut self,
        session: &mut Session,
        context: &Context<'_>,
        batches: &mut impl Iterator<Item = Batch>,
        encoders: &Sender<Task>,
        back: &GiveBack<AlignedBuffer>,
    ) -> Result<(), OpsError> {
        let mut under_way: VecDeque<Receiver<Encoded>> = VecDeque::new();
        while let Some(work) = self.next_work(session, batches, context)? {
            while let Some(done) = under_way.front().and_then(|done| done.try_recv().ok()) {
                under_way.pop_front();
                self.put(session, done, context, back)?;
            }
            if under_way.is_empty() && !work.is_new.contains(&true) {
                // The usual case of a disk that hardly changed: no thread need be woken.
                self.put(session, Encoded { work, frames: Vec::new() }, context, back)?;
                continue;
            }
            let (done, to_put) = bounded(1);
            if encoders.send(Task { work, done }).is_err() {
                break;
            }
            under_way.push_back(to_put);
            if under_way.len() == ENCODED_AHEAD {
                // Whoever gave it up has the reason.
                let Some(Ok(done)) = under_way.pop_front().map(|done| done.recv()) else { return Ok(()) };
                self.put(session, done, context, back)?;
            }
        }
        let mut done = under_way.iter().map_while(|done| done.recv().ok());
        done.try_for_each(|done| self.put(session, done, context, back))
    }

    /// The next batches, and what is new in them; none after the last.
    fn next_work(
        &self,
        session: &mut Session,
        batches: &mut impl Iterator<Item = Batch>,
        context: &Context<'_>,
    ) -> Result<Option<Work>, OpsError> {
        context.check_cancelled()?;
        let mut work = Work::default();
        for mut batch in batches.take(self.at_once) {
            match batch.packs.take() {
                Some(packs) => {
                    session.use_packs(packs);
                    work.passed += batch.kept.len();
                }
                None => check_kept(session, &batch.kept)?,
            }
            let ids: Vec<ChunkId> = batch.chunks().map(|(id, _)| id).collect();
            work.is_new.extend(session.reserve(&ids)?);
            work.batches.push(batch);
        }
        Ok((!work.batches.is_empty()).then_some(work))
    }

    /// Puts the frames of what is new, and all chunks into the block map.
    fn put(
        &mut self,
        session: &mut Session,
        done: Encoded,
        context: &Context<'_>,
        back: &GiveBack<AlignedBuffer>,
    ) -> Result<(), OpsError> {
        context.check_cancelled()?;
        check_whole("encoded", done.work.new_chunks().count() as u64, done.frames.len() as u64)?;
        for (chunk, frame) in done.work.new_chunks().zip(&done.frames) {
            session.put(chunk.id, frame)?;
            self.new_chunks += 1;
            self.new_bytes += chunk.raw.len() as u64;
        }
        for batch in done.work.batches {
            for chunk in batch.refs() {
                self.map.push(chunk).map_err(OpsError::Volume)?;
            }
            self.read_bytes += batch.read_bytes;
            self.passed_bytes += batch.passed_bytes;
            context.progress.advance(batch.passed_bytes);
            if let Some(buffer) = batch.buffer {
                back.give_back(buffer);
            }
        }
        Ok(())
    }
}

/// Makes the session count on chunks whose bytes were not read. They were there when it was decided not to read them.
fn check_kept(session: &mut Session, kept: &[ChunkRef]) -> Result<(), OpsError> {
    let ids: Vec<ChunkId> = kept.iter().map(|chunk| chunk.id).collect();
    match session.reserve(&ids)?.iter().position(|is_new| *is_new) {
        Some(gone) => Err(OpsError::ContentGone { what: format!("the pack of chunk {}", ids[gone]) }),
        None => Ok(()),
    }
}

/// Batches of which the session has said what is new.
#[derive(Default)]
struct Work {
    batches: Vec<Batch>,
    is_new: Vec<bool>,
    /// Chunks that are not among those, since they are where they were.
    passed: usize,
    /// Of what is new, where there are to be deltas.
    features: Vec<Option<Features>>,
}

impl Work {
    /// The chunks that were cut, with their bytes.
    fn chunks(&self) -> impl Iterator<Item = (ChunkId, &[u8])> {
        self.batches.iter().flat_map(Batch::chunks)
    }

    fn new_chunks(&self) -> impl Iterator<Item = NewChunk<'_>> {
        let new = self.chunks().zip(&self.is_new).filter(|(_, new)| **new);
        new.map(|((id, raw), _)| NewChunk { id, raw, stored: None, is_base: false })
    }
}

/// The frames of what is new, in its order.
struct Encoded {
    work: Work,
    frames: Vec<Arc<Frame>>,
}

/// Work on its way to whoever waits for it. Given up, it says that nothing comes: to who waits in the order in which it was
/// handed on. One that nobody took is only given up when the channel is, behind one that somebody did.
struct Task {
    work: Work,
    done: Sender<Encoded>,
}

/// Second stage: what the new chunks resemble. It has a thread of its own so that there is something to compute while the
/// next stage looks for bases.
fn describe(context: &Context<'_>, tasks: &Receiver<Task>, described: &Sender<Task>) -> Result<(), OpsError> {
    for mut task in tasks {
        let chunks: Vec<NewChunk<'_>> = task.work.new_chunks().collect();
        let features = features_of(&chunks, context);
        task.work.features = features;
        if described.send(task).is_err() {
            break;
        }
    }
    Ok(())
}

/// Third stage: compresses what is new, also against what it resembles, and proves it.
fn encode(encoder: &mut Encoder, context: &Context<'_>, tasks: &Receiver<Task>) -> Result<(), OpsError> {
    for Task { work, done } in tasks {
        let new: Vec<NewChunk<'_>> = work.new_chunks().collect();
        encoder.pace(new.len(), work.is_new.len() + work.passed);
        let frames = encoder.encode(&new, &work.features, &|_| true, context)?;
        if done.send(Encoded { work, frames }).is_err() {
            break;
        }
    }
    Ok(())
}

/// In the place of both where there are to be no deltas.
fn encode_plain(encoder: &Encoder, context: &Context<'_>, tasks: &Receiver<Task>) -> Result<(), OpsError> {
    for Task { work, done } in tasks {
        let new: Vec<NewChunk<'_>> = work.new_chunks().collect();
        let frames = encoder.encode_plain(&new, context)?;
        if done.send(Encoded { work, frames }).is_err() {
            break;
        }
    }
    Ok(())
}
