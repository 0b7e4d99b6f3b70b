//! The second half of a snapshot's pipeline: which chunks of a batch are new? Those are encoded and go into the session's
//! packs, all of them into the block map.

use super::context::Context;
use super::encode::{Encoder, NewChunk, features_of};
use super::error::OpsError;
use super::ingest::Batch;
use super::stage::{join_all, spawn};
use crate::chunk::features::Features;
use crate::chunk::frame::Frame;
use crate::model::blockmap::{BlockMapBuilder, ChunkRef};
use crate::model::ids::ChunkId;
use crate::region::session::Session;
use crossbeam_channel::{Receiver, Sender, bounded};
use std::sync::Arc;
use std::thread;

/// Batches that are encoded or wait for it while the next is looked up: one whose features are taken, one that is encoded,
/// and one between any two of the stages.
pub(super) const ENCODED_AHEAD: usize = 4;

/// The last stage, and what it counted.
pub(super) struct Put {
    pub(super) map: BlockMapBuilder,
    pub(super) read_bytes: u64,
    pub(super) new_chunks: u64,
    pub(super) new_bytes: u64,
}

impl Put {
    pub(super) fn new(volume_bytes: u64) -> Result<Self, OpsError> {
        let map = BlockMapBuilder::new(volume_bytes).map_err(OpsError::Volume)?;
        Ok(Self { map, read_bytes: 0, new_chunks: 0, new_bytes: 0 })
    }

    /// Asks the session, lets the encoder work on up to [`ENCODED_AHEAD`] batches, and puts what comes back.
    pub(super) fn run(
        &mut self,
        session: &mut Session,
        encoder: &mut Encoder,
        context: &Context<'_>,
        batches: &Receiver<Batch>,
        free: &Sender<Vec<u8>>,
    ) -> Result<(), OpsError> {
        thread::scope(|scope| {
            let (work_in, work_out) = bounded::<Work>(ENCODED_AHEAD);
            let (described_in, described_out) = bounded::<Work>(1);
            let (done_in, done_out) = bounded(ENCODED_AHEAD);
            let delta = encoder.takes_features();
            let describer =
                spawn(scope, "features", move || describe(delta, context, &work_out, &described_in))?;
            let encoder = spawn(scope, "encode", move || encode(encoder, context, &described_out, &done_in))?;
            let result = (|| {
                let mut under_way = 0;
                for batch in batches {
                    context.check_cancelled()?;
                    check_kept(session, &batch.kept)?;
                    let is_new = session.reserve(&batch.ids())?;
                    if work_in.send(Work { batch, is_new, features: Vec::new() }).is_err() {
                        break;
                    }
                    under_way += 1;
                    if under_way == ENCODED_AHEAD {
                        let Ok(done) = done_out.recv() else { break };
                        self.put(session, done, context, free)?;
                        under_way -= 1;
                    }
                }
                drop(work_in);
                done_out.iter().try_for_each(|done| self.put(session, done, context, free))
            })();
            drop(done_out);
            join_all(vec![describer, encoder], result)
        })
    }

    /// Puts the frames of a batch, and all of its chunks into the block map.
    fn put(
        &mut self,
        session: &mut Session,
        done: Encoded,
        context: &Context<'_>,
        free: &Sender<Vec<u8>>,
    ) -> Result<(), OpsError> {
        context.check_cancelled()?;
        for (chunk, frame) in done.work.new_chunks().zip(&done.frames) {
            session.put(chunk.id, frame)?;
            self.new_chunks += 1;
            self.new_bytes += chunk.raw.len() as u64;
        }
        let batch = done.work.batch;
        for chunk in batch.refs() {
            self.map.push(chunk).map_err(OpsError::Volume)?;
        }
        self.read_bytes += batch.read_bytes;
        context.progress.advance(batch.passed_bytes);
        // Nobody waits for buffers any more when the reader has reached the end.
        let _ = free.send(batch.buffer);
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

/// A batch of which the session has said what is new.
struct Work {
    batch: Batch,
    is_new: Vec<bool>,
    /// Of what is new, where there are to be deltas.
    features: Vec<Option<Features>>,
}

impl Work {
    fn new_chunks(&self) -> impl Iterator<Item = NewChunk<'_>> {
        let new = self.batch.chunks().zip(&self.is_new).filter(|(_, new)| **new);
        new.map(|((id, raw), _)| NewChunk { id, raw, stored: None, is_base: false })
    }
}

/// The frames of what is new in a batch, in its order.
struct Encoded {
    work: Work,
    frames: Vec<Arc<Frame>>,
}

/// Fourth stage: what the new chunks resemble. It has a thread of its own so that there is something to compute while the
/// next stage looks for bases.
fn describe(
    delta: bool,
    context: &Context<'_>,
    work: &Receiver<Work>,
    described: &Sender<Work>,
) -> Result<(), OpsError> {
    for mut work in work {
        if delta {
            let chunks: Vec<NewChunk<'_>> = work.new_chunks().collect();
            let features = features_of(&chunks, context);
            work.features = features;
        }
        if described.send(work).is_err() {
            break;
        }
    }
    Ok(())
}

/// Fifth stage: compresses what is new, and proves it.
fn encode(
    encoder: &mut Encoder,
    context: &Context<'_>,
    work: &Receiver<Work>,
    done: &Sender<Encoded>,
) -> Result<(), OpsError> {
    for work in work {
        let new: Vec<NewChunk<'_>> = work.new_chunks().collect();
        encoder.pace(new.len(), work.is_new.len());
        let frames = encoder.encode(&new, &work.features, &|_| true, context)?;
        if done.send(Encoded { work, frames }).is_err() {
            break;
        }
    }
    Ok(())
}
