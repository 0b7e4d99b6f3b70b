//! What is stored is compressed anew: harder, and against more that it resembles. No chunk's id changes.
//!
//! It takes nobody's lock, goes round by round, and may be interrupted anywhere: what was done stays done, but
//! for the round under way. The packs that it empties are condemned, and freed by a collection like any others.

use super::context::Context;
use super::encode::{Compression, Encoder, NewChunk, features_of};
use super::error::{Class, OpsError};
use super::gc::Amount;
use super::rewrite::{Keep, despite_removals, mark, rewrite};
use crate::model::objects::{PackName, PackState};
use crate::region::Region;
use crate::region::collect::Mark;
use crate::region::fetch::Located;
use crate::region::losses::Losses;
use crate::region::moving::StoredChunk;
use crate::region::session::Session;
use std::collections::HashSet;
use std::time::Instant;

/// The zstd level if nothing else is said.
pub const LEVEL_DEFAULT: i32 = 12;
/// Bytes of packs that are emptied before what came of it is on record: what an interruption loses.
const ROUND_BYTES: u64 = 1 << 30;
/// Rounds at most: where there are very many packs, each is larger.
const ROUNDS_MAX: u64 = 32;

/// How to repack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RepackOptions {
    /// zstd level. Packs that were made at this level or a higher one stay.
    pub level: i32,
    /// Bytes of packs to rewrite at most: those that come first by name.
    pub limit_bytes: u64,
}

impl Default for RepackOptions {
    fn default() -> Self {
        Self { level: LEVEL_DEFAULT, limit_bytes: u64::MAX }
    }
}

/// What repacking did, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Repacked {
    /// Packs that were emptied and are condemned.
    pub emptied: Amount,
    /// Frames that were needed of them, with their bytes before.
    pub moved: Amount,
    /// Bytes of the new packs.
    pub stored_bytes: u64,
    /// Packs that are left: beyond the limit, or since others use them, or since packs in quarantine may need them.
    pub left: Amount,
    /// Packs of commands that are running.
    pub in_progress: Amount,
}

/// Packs that are worth rewriting, those of commands that are running, and how large they are.
struct Candidates {
    cold: Vec<(PackName, u64)>,
    in_progress: Amount,
}

/// Compresses anew what is needed of every pack that had less effort. With a dry run nothing is changed.
pub fn repack(region: &Region, options: &RepackOptions, context: &Context<'_>) -> Result<Repacked, OpsError> {
    let mut repacked = Repacked::default();
    repack_into(&mut repacked, region, options, context)?;
    Ok(repacked)
}

/// Repacks as [`repack`] does, and says what was done also where it ends with an error.
pub fn repack_into(
    repacked: &mut Repacked,
    region: &Region,
    options: &RepackOptions,
    context: &Context<'_>,
) -> Result<(), OpsError> {
    region.check_appendable()?;
    let Candidates { cold, in_progress } = candidates(region, options.level)?;
    *repacked = Repacked { in_progress, ..Repacked::default() };
    // A limit below the first pack's length is no reason never to begin.
    let at_least = cold.len().min(usize::from(options.limit_bytes > 0));
    let (mut rest, beyond) = cold.split_at(fitting(&cold, options.limit_bytes).max(at_least));
    beyond.iter().for_each(|(_, len)| repacked.left.add(*len));
    if !context.dry_run {
        context.progress.begin("repack", bytes_of(rest));
    }
    let (all, began) = (rest.iter().map(|(name, _)| *name).collect(), Instant::now());
    let mut rounds = Rounds { region, options, all, mark: None, began, context };
    // Each looks at what is needed of the whole region.
    let round_bytes = if context.dry_run { u64::MAX } else { ROUND_BYTES.max(bytes_of(rest) / ROUNDS_MAX) };
    while !rest.is_empty() {
        let (round, after) = rest.split_at(fitting(rest, round_bytes).max(1));
        rounds.run(round, repacked)?;
        rest = after;
    }
    if context.dry_run {
        return Ok(());
    }
    match region.compact_index(context.account).map_err(OpsError::from) {
        // What was made anew is there.
        Err(error) if error.class() == Class::NoSpace => {
            context.progress.note(&not_merged(&error));
            Ok(())
        }
        compacted => compacted,
    }
}

/// Says that there was no space for a cache.
pub(super) fn not_merged(error: &OpsError) -> String {
    format!("index segments were not merged, which only makes look-ups slower: {error}")
}

fn bytes_of(packs: &[(PackName, u64)]) -> u64 {
    packs.iter().map(|(_, len)| len).sum()
}

/// How many of some packs have so many bytes together.
fn fitting(packs: &[(PackName, u64)], limit: u64) -> usize {
    let mut bytes = 0_u64;
    let fits = |(_, len): &&(PackName, u64)| {
        bytes = bytes.saturating_add(*len);
        bytes <= limit
    };
    packs.iter().take_while(fits).count()
}

fn candidates(region: &Region, level: i32) -> Result<Candidates, OpsError> {
    let catalog = region.catalog()?;
    let sessions = region.others_at_work(&catalog)?;
    let of_these = catalog.packs.keys().copied().filter(|name| sessions.contains(&name.session));
    let at_work = catalog.with_bases(of_these);
    let mut candidates = Candidates { cold: Vec::new(), in_progress: Amount::default() };
    for (&name, pack) in catalog.packs.iter().filter(|(_, pack)| pack.state == PackState::Live) {
        if at_work.contains(&name) {
            candidates.in_progress.add(pack.record.len);
            continue;
        }
        match region.effort_of(&pack.record) {
            Ok(effort) if i32::from(effort) < level => candidates.cold.push((name, pack.record.len)),
            Ok(_) => {}
            // Others took it since.
            Err(error) if error.is_not_found() && region.catalog()?.sequence != catalog.sequence => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(candidates)
}

/// What goes from round to round.
struct Rounds<'a> {
    region: &'a Region,
    options: &'a RepackOptions,
    /// All packs that are to be emptied.
    all: HashSet<PackName>,
    /// What is needed; none if others may have changed it.
    mark: Option<Mark>,
    began: Instant,
    context: &'a Context<'a>,
}

impl Rounds<'_> {
    fn run(&mut self, round: &[(PackName, u64)], repacked: &mut Repacked) -> Result<(), OpsError> {
        let Self { region, options, .. } = *self;
        let context = &self.context.after(self.began);
        context.check_cancelled()?;
        // What an interrupted run has moved already is not moved again: the mark keeps it where it is now.
        let mark = match self.mark.take() {
            Some(mark) => mark,
            None => despite_removals(region, || {
                let mark = mark(region, Losses::Refused, Keep::Outside(&self.all), context)?;
                region.check_kept(&mark, || context.check_cancelled())?;
                Ok(mark)
            })?,
        };
        // What would stay all the same is not stored twice.
        let stuck = mark.stuck();
        let (stuck, round): (Vec<_>, Vec<_>) = round.iter().partition(|(name, _)| stuck.contains(name));
        stuck.iter().for_each(|(_, len)| repacked.left.add(*len));
        let packs: &HashSet<PackName> = &round.iter().map(|(name, _)| *name).collect();
        if context.dry_run {
            for (name, len) in &round {
                let usage = mark.usage(name);
                repacked.emptied.add(*len);
                repacked.moved.count += usage.frames;
                repacked.moved.bytes += usage.bytes;
            }
            return Ok(());
        }
        let (mut moved, mut stored_bytes) = (Amount::default(), 0);
        let rewritten = rewrite(region, packs, &self.all, context, || {
            (moved, stored_bytes) = move_needed(region, &mark, packs, options.level, context)?;
            Ok(())
        })?;
        // What was not needed of them is done, too.
        context.progress.advance(bytes_of(&round).saturating_sub(moved.bytes) + bytes_of(&stuck));
        let emptied = rewritten.as_ref().map_or(&[][..], |rewritten| &rewritten.emptied);
        for (name, len) in &round {
            let is_emptied = emptied.contains(name);
            let amount = if is_emptied { &mut repacked.emptied } else { &mut repacked.left };
            amount.add(*len);
        }
        repacked.moved.count += moved.count;
        repacked.moved.bytes += moved.bytes;
        repacked.stored_bytes += stored_bytes;
        self.mark = rewritten.map(|rewritten| rewritten.mark);
        Ok(())
    }
}

/// Puts what is needed of packs into new ones. Gives what that was, and the bytes of the new packs.
fn move_needed(
    region: &Region,
    mark: &Mark,
    packs: &HashSet<PackName>,
    level: i32,
    context: &Context<'_>,
) -> Result<(Amount, u64), OpsError> {
    let frames = region.kept_frames(mark, packs, || context.check_cancelled())?;
    let mut session = region.begin(context.account)?;
    session.avoid(packs);
    let how = Compression { level: Some(level), delta: true };
    let encoder = Encoder::new(region, &how, context).thorough();
    session.set_effort(encoder.effort());
    let mut mover = Mover { region, mark, session, encoder, moved: Amount::default(), context };
    // Bases first: then they are there for every delta on them, and for whatever else resembles them.
    let is_base = |(id, place): &Located| place.codec.is_plain() && mark.is_base(id.leading());
    let (mut bases, mut others) = (Vec::new(), Vec::new());
    for frames in frames.into_values() {
        let (of_pack, rest): (Vec<Located>, Vec<Located>) = frames.into_iter().partition(is_base);
        bases.extend(of_pack);
        others.extend(rest);
    }
    mover.put(&bases)?;
    mover.put(&others)?;
    mover.encoder.finish()?;
    mover.session.flush()?;
    Ok((mover.moved, mover.session.stored_bytes()))
}

struct Mover<'a> {
    region: &'a Region,
    mark: &'a Mark,
    session: Session,
    encoder: Encoder,
    moved: Amount,
    context: &'a Context<'a>,
}

impl Mover<'_> {
    /// Encodes chunks anew and puts them into the session's packs.
    fn put(&mut self, mut frames: &[Located]) -> Result<(), OpsError> {
        while !frames.is_empty() {
            self.context.check_cancelled()?;
            let (batch, rest) = frames.split_at(batch_len(frames, self.context.buffer_bytes() as u64));
            frames = rest;
            let chunks = self.region.stored_chunks(batch, self.context.pool)?;
            self.put_batch(&chunks)?;
            let bytes = batch.iter().map(|(_, place)| place.frame_bytes()).sum();
            self.moved.count += batch.len() as u64;
            self.moved.bytes += bytes;
            self.context.progress.advance(bytes);
        }
        Ok(())
    }

    fn put_batch(&mut self, chunks: &[StoredChunk]) -> Result<(), OpsError> {
        let mut new = Vec::with_capacity(chunks.len());
        for StoredChunk { id, frame, raw } in chunks {
            let is_base = self.mark.is_base(id.leading());
            new.push(NewChunk { id: *id, raw, stored: Some(frame), is_base });
        }
        let session = &self.session;
        let is_usable = |id| session.base_pack(id).is_ok_and(|pack| pack.is_some());
        let features = features_of(&new, self.context);
        let frames = self.encoder.encode(&new, &features, &is_usable, self.context)?;
        for (chunk, frame) in chunks.iter().zip(frames) {
            self.session.put(chunk.id, &frame)?;
        }
        Ok(())
    }
}

/// How many chunks, one at least, have so many raw bytes together.
fn batch_len(frames: &[Located], limit: u64) -> usize {
    let mut bytes = 0;
    let fits = |(_, place): &&Located| {
        bytes += place.raw_bytes();
        bytes <= limit
    };
    frames.iter().take_while(fits).count().max(1)
}
