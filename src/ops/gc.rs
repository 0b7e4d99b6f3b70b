//! Garbage collection: what nothing refers to is condemned, after a grace period swept, and then gone.
//!
//! It runs beside everything else, and beside other collectors. Each step is on record before the next begins, so
//! that a collection which is interrupted anywhere is gone on with by the next one. The steps that decide are in
//! [`crate::region::collect`].

use super::bin::expire_all;
use super::context::Context;
use super::error::{Class, OpsError};
use super::repack::not_merged;
use super::rewrite::{Held, Keep, Rewritten, despite_others, despite_removals, mark_after, rewrite};
use crate::model::catalog::{Catalog, Pack, RootId};
use crate::model::objects::{PackName, PackState};
use crate::model::units::TimeMs;
use crate::region::Region;
use crate::region::collect::{Mark, sweepable};
use crate::region::doubles::Proved;
use crate::region::error::RegionError;
use crate::region::losses::Losses;
use std::collections::{BTreeSet, HashSet};
use std::time::Instant;

/// How long a condemned pack stays at least if nothing else is said, in milliseconds: a day.
pub const GRACE_MS_DEFAULT: u64 = 86_400_000;

/// Of the memory budget, bytes for each frame that is moved in a round: some 220 are needed where a frame is, the rest is for
/// everything else.
const MEMORY_OF_MOVED: u64 = 512;

/// How to collect.
#[derive(Debug, Clone, Copy)]
pub struct GcOptions {
    /// How long a pack stays condemned before its bytes go, in milliseconds.
    pub grace_ms: u64,
    /// Packs of which less than so many percent are needed are repacked: what is needed moves to new packs.
    pub repack_percent: u8,
}

impl Default for GcOptions {
    fn default() -> Self {
        Self { grace_ms: GRACE_MS_DEFAULT, repack_percent: 50 }
    }
}

/// A number of packs or objects, and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amount {
    /// How many.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Amount {
    pub(super) fn add(&mut self, bytes: u64) {
        self.count += 1;
        self.bytes += bytes;
    }
}

/// What a collection did, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collected {
    /// Packs that were condemned since nothing refers to them.
    pub condemned: Amount,
    /// Packs that were condemned since what was needed of them was moved.
    pub repacked: Amount,
    /// Frames that were moved from those.
    pub moved: Amount,
    /// Packs whose grace was over, and that are gone.
    pub freed: Amount,
    /// Objects of dead sessions that nothing names, and that are gone.
    pub orphans: Amount,
    /// Packs that wait for the end of their grace, those condemned now among them.
    pub waiting: Amount,
    /// When the first of them has waited long enough.
    pub waiting_until_ms: Option<TimeMs>,
    /// Since when the longest of them has been condemned.
    pub waiting_since_ms: Option<TimeMs>,
    /// Images and snapshots whose time in the bin was over.
    pub expired: u64,
    /// Whether it ended early since others committed all the while: what it would have done is left to the next.
    pub given_up: bool,
    /// Packs that nothing refers to and that a running command may be about to use.
    pub in_progress: Amount,
    /// Packs that would be rewritten if there were space for it.
    pub left_worn: Amount,
    /// Other packs that stay with something that nothing needs, and the bytes of that.
    pub unneeded: Amount,
    /// Damaged packs that stay since they alone hold something that is needed: a repair moves it.
    pub unsaved: Amount,
    /// Snapshots and templates with lost content. What they still have stays, what is damaged, too, and nothing is
    /// rewritten as long as they are there.
    pub lost: Vec<RootId>,
}

/// The packs that a mark lets go of.
#[derive(Default)]
struct Candidates {
    dead: BTreeSet<PackName>,
    worn: BTreeSet<PackName>,
    in_progress: Amount,
    /// What nothing needs in live packs that stay as they are.
    unneeded: Amount,
}

/// Says what [`collect`] would do now. Changes nothing.
pub fn preview(region: &Region, options: &GcOptions, context: &Context<'_>) -> Result<Collected, OpsError> {
    // What ends its stay in the bin comes first in a collection, too.
    let expired = |catalog: &Catalog| expire_all(catalog, context);
    let keep = Keep::InFuller(options.repack_percent);
    let mark = despite_removals(region, || {
        let mark = mark_after(region, &expired, Losses::Accepted, keep, context)?;
        region.check_kept(&mark, || context.check_cancelled())?;
        Ok(mark)
    })?;
    let kept = mark.kept_packs();
    let candidates = candidates(region, &mark, &kept, options)?;
    let mut collected = Collected {
        expired: expired(&region.catalog()?).len() as u64,
        in_progress: candidates.in_progress,
        unneeded: candidates.unneeded,
        lost: mark.lost_roots().to_vec(),
        ..Collected::default()
    };
    let mut rebased = mark.rebased(&kept);
    // What something is put on is used again.
    let rescued = mark.catalog.with_bases(rebased.values().flatten().copied());
    let goes = sweepable(&mark.catalog, &rebased, |name, state| match options.grace_ms {
        0 if candidates.dead.contains(name) => true,
        _ => is_over(state, options, context) && !kept.contains(name),
    });
    let mut go_at_last = BTreeSet::new();
    if options.grace_ms == 0 {
        // What live packs have in those that are rewritten, moves. Those that are used again are live then, those that are
        // rewritten are not: if one stays, what it is on record with does, too.
        let stays_live = |(name, pack): &(&PackName, &Pack)| {
            let is_live =
                pack.state == PackState::Live || (rescued.contains(*name) && !is_damaged(pack.state));
            is_live && !candidates.worn.contains(*name)
        };
        for (name, pack) in mark.catalog.packs.iter().filter(stays_live) {
            let bases = rebased.get(name).unwrap_or(&pack.record.bases);
            let stay = bases.iter().copied().filter(|base| !candidates.worn.contains(base)).collect();
            rebased.insert(*name, stay);
        }
        go_at_last = sweepable(&mark.catalog, &rebased, |name, _| {
            goes.contains(name) || candidates.worn.contains(name)
        });
    }
    for (name, pack) in mark.catalog.packs.iter() {
        match closed_since(pack.state) {
            _ if pack.state == PackState::Sweeping => collected.freed.add(pack.record.len),
            Some(_) if goes.contains(name) => collected.freed.add(pack.record.len),
            Some(_) if rescued.contains(name) && !is_damaged(pack.state) => {}
            Some(_) if mark.unsaved().contains(name) || (kept.contains(name) && is_damaged(pack.state)) => {
                collected.unsaved.add(pack.record.len);
            }
            Some(since) => wait(&mut collected, pack.record.len, since, options),
            None => {}
        }
    }
    let condemned = candidates.dead.iter().map(|name| (name, false));
    for (name, is_worn) in condemned.chain(candidates.worn.iter().map(|name| (name, true))) {
        let len = len_of(&mark, name);
        if is_worn {
            let usage = mark.usage(name);
            collected.repacked.add(len);
            collected.moved.count += usage.frames;
            collected.moved.bytes += usage.bytes;
        } else {
            collected.condemned.add(len);
        }
        if go_at_last.contains(name) {
            collected.freed.add(len);
        } else {
            wait(&mut collected, len, context.now_ms, options);
        }
    }
    let orphans = region.find_orphans_after(&expired)?;
    collected.orphans = Amount { count: orphans.objects.len() as u64, bytes: orphans.bytes() };
    Ok(collected)
}

/// Collects. With a dry run it ends where [`preview`] does.
pub fn collect(region: &Region, options: &GcOptions, context: &Context<'_>) -> Result<Collected, OpsError> {
    let mut collected = Collected::default();
    collect_into(&mut collected, region, options, context)?;
    Ok(collected)
}

/// Collects as [`collect`] does, and says what was done also where it ends with an error.
///
/// An object that cannot be removed stays, and does not keep anything else: the error comes at the end.
pub fn collect_into(
    collected: &mut Collected,
    region: &Region,
    options: &GcOptions,
    context: &Context<'_>,
) -> Result<(), OpsError> {
    // Also if there turns out to be nothing to put on record.
    region.check_appendable()?;
    if context.dry_run {
        *collected = preview(region, options, context)?;
        return Ok(());
    }
    let (is_full, began) = (region.admit_collector()?, Instant::now());
    let account = context.account;
    let (mut failure, mut unsaved, mut is_marked) = (None, BTreeSet::new(), true);
    // What a collection before this one had on record as swept goes first: on a full disk it makes room.
    remove_swept(region, collected, &mut failure, context)?;
    collected.expired = region.commit(account, |catalog| {
        let ops = expire_all(catalog, context);
        let count = ops.len() as u64;
        Ok::<_, OpsError>((ops, count))
    })?;
    let keep = Keep::InFuller(options.repack_percent);
    let mut proved = Proved::new(context.memory_bytes / 2);
    if let Some((mut mark, Parted { mut kept, going })) =
        despite_others(region, keep, Losses::Accepted, context, |mark| {
            condemn_dead(region, mark, options, collected, &mut proved, &context.after(began))
        })?
    {
        // Others may have come between: else what is due is left to the next collection.
        Held { region, mark: &mut mark, kept: &mut kept, going: &going, context }
            .run(|mark, kept| region.still_holds(mark, kept))?;
        collected.lost = mark.lost_roots().to_vec();
        unsaved.clone_from(mark.unsaved());
        // What a damaged pack alone is said to hold keeps it, too.
        let is_damaged =
            |name: &&PackName| mark.catalog.packs.get(*name).is_some_and(|pack| is_damaged(pack.state));
        unsaved.extend(kept.iter().filter(is_damaged));
        // What others condemned since is for a collection that knows it.
        let is_due = |name: &PackName, state| going.contains(name) && is_over(state, options, context);
        region.sweep(&mark, &kept, account, is_due)?;
        remove_swept(region, collected, &mut failure, context)?;
        let Candidates { worn, unneeded, .. } = candidates(region, &mark, &kept, options)?;
        collected.unneeded = unneeded;
        let worn = Worn { packs: worn.into_iter().collect(), mark, is_full };
        worn.rewrite(region, options, collected, &mut failure, &context.after(began))?;
    } else {
        (collected.given_up, is_marked) = (true, false);
    }
    let removed = region.remove_orphans(&region.find_orphans()?, account)?;
    collected.orphans = Amount { count: removed.count, bytes: removed.bytes };
    failure = failure.or(removed.failure);
    region.tidy();
    if !is_full {
        let merged = region.compact_index(account).map_err(OpsError::from);
        let merged = merged.and_then(|()| region.merge_large_segments(account, || context.check_cancelled()));
        match merged {
            // What was collected is collected.
            Err(error) if error.class() == Class::NoSpace => {
                context.progress.note(&not_merged(&error));
            }
            merged => merged?,
        }
        if collected.freed.count > 0 {
            region.prune_features(|| context.check_cancelled())?;
        }
    }
    for (name, pack) in region.catalog()?.packs.iter() {
        match closed_since(pack.state) {
            Some(_) if unsaved.contains(name) => collected.unsaved.add(pack.record.len),
            // Nobody has come to find out which damaged packs are needed.
            Some(_) if !is_marked && is_damaged(pack.state) => {}
            Some(since) => wait(collected, pack.record.len, since, options),
            None => {}
        }
    }
    failure.map_or(Ok(()), |error| Err(error.into()))
}

fn remove_swept(
    region: &Region,
    collected: &mut Collected,
    failure: &mut Option<RegionError>,
    context: &Context<'_>,
) -> Result<(), OpsError> {
    let removed = region.remove_swept(context.account, || context.check_cancelled())?;
    collected.freed.count += removed.count;
    collected.freed.bytes += removed.bytes;
    if failure.is_none() {
        *failure = removed.failure;
    }
    Ok(())
}

const fn is_damaged(state: PackState) -> bool {
    matches!(state, PackState::Quarantined { .. })
}

const fn closed_since(state: PackState) -> Option<TimeMs> {
    match state {
        PackState::Condemned { since_ms } | PackState::Quarantined { since_ms } => Some(since_ms),
        PackState::Live | PackState::Sweeping => None,
    }
}

fn wait(collected: &mut Collected, len: u64, since: TimeMs, options: &GcOptions) {
    let until = since.saturating_add(options.grace_ms);
    collected.waiting.add(len);
    collected.waiting_until_ms = Some(collected.waiting_until_ms.map_or(until, |first| first.min(until)));
    collected.waiting_since_ms = Some(collected.waiting_since_ms.map_or(since, |first| first.min(since)));
}

/// Whether a pack in this state has waited long enough.
fn is_over(state: PackState, options: &GcOptions, context: &Context<'_>) -> bool {
    // Without grace the clock says nothing: it may have been far ahead.
    let is_over =
        |since: TimeMs| options.grace_ms == 0 || since.saturating_add(options.grace_ms) <= context.now_ms;
    closed_since(state).is_some_and(is_over)
}

fn len_of(mark: &Mark, name: &PackName) -> u64 {
    mark.catalog.packs.get(name).map_or(0, |pack| pack.record.len)
}

/// What a mark lets go of: live packs that nothing needs, and those that hardly anything is needed of. Packs of
/// sessions that may be at work are left to them.
fn candidates(
    region: &Region,
    mark: &Mark,
    kept: &BTreeSet<PackName>,
    options: &GcOptions,
) -> Result<Candidates, OpsError> {
    let mut candidates = Candidates::default();
    let live = || mark.catalog.packs.iter().filter(|(_, pack)| pack.state == PackState::Live);
    let others = region.others_at_work(&mark.catalog)?;
    let is_at_work = |name: &PackName| region.is_own(name) || others.contains(&name.session);
    let unkept = live().map(|(name, _)| *name).filter(|name| !kept.contains(name) && is_at_work(name));
    let in_progress = mark.catalog.with_bases(unkept);
    let stuck = mark.stuck();
    for (&name, pack) in live() {
        // It is kept for what came after the mark, which does not know how much of it is needed.
        let is_unknown = !mark.has_losses() && mark.usage(&name).frames == 0 && !stuck.contains(&name);
        if kept.contains(&name) && is_unknown {
            continue;
        }
        if kept.contains(&name) {
            let is_worn = mark.needed_percent(&pack.record) < u64::from(options.repack_percent);
            // Who is at work may be moving things into it. Nor is anything moved that may be lost, nor what would stay
            // all the same.
            if is_worn
                && !mark.has_losses()
                && !stuck.contains(&name)
                && !in_progress.contains(&name)
                && !others.contains(&name.session)
            {
                candidates.worn.insert(name);
            } else if mark.frames_bytes(&pack.record) > mark.usage(&name).bytes {
                candidates.unneeded.add(mark.frames_bytes(&pack.record) - mark.usage(&name).bytes);
            }
        } else if in_progress.contains(&name) {
            candidates.in_progress.add(pack.record.len);
        } else {
            candidates.dead.insert(name);
        }
    }
    Ok(candidates)
}

/// Packs, as a mark parts them.
struct Parted {
    /// Those that stay.
    kept: BTreeSet<PackName>,
    /// Those that go, now or once their grace is over.
    going: HashSet<PackName>,
}

/// Condemns packs that nothing needs. Gives the packs that stay and those that go, or nothing if the mark did not hold.
fn condemn_dead(
    region: &Region,
    mark: &mut Mark,
    options: &GcOptions,
    collected: &mut Collected,
    proved: &mut Proved,
    context: &Context<'_>,
) -> Result<Option<Parted>, OpsError> {
    let mut kept = mark.kept_packs();
    let began = Instant::now();
    let Candidates { dead, in_progress, .. } = candidates(region, mark, &kept, options)?;
    collected.in_progress = in_progress;
    // Copies go only if those that stay are good: also those that were condemned before and go now.
    let is_going = |(name, pack): &(&PackName, &Pack)| {
        dead.contains(name) || (!kept.contains(name) && is_over(pack.state, options, context))
    };
    let going: HashSet<PackName> =
        mark.catalog.packs.iter().filter(is_going).map(|(name, _)| *name).collect();
    region.prove_unwanted(mark, going.iter().copied(), || context.check_cancelled())?;
    region.prove_kept(mark, &going, proved, context.pool, || context.check_cancelled())?;
    // Before that a base on record may be the better copy.
    let mut held = Held { region, mark, kept: &mut kept, going: &going, context };
    if !held.run(|mark, kept| region.rebase(mark, kept, context.account))? {
        return Ok(None);
    }
    // With nothing to remove it need not hold.
    let now_ms = context.after(began).now_ms;
    let condemned: Vec<PackName> = dead.iter().copied().collect();
    let is_done = going.is_empty()
        || held.run(|mark, kept| match condemned.is_empty() {
            true => region.still_holds(mark, kept),
            false => region.condemn(mark, kept, &condemned, context.account, now_ms),
        })?;
    if !is_done {
        return Ok(None);
    }
    dead.iter().for_each(|name| collected.condemned.add(len_of(mark, name)));
    Ok(Some(Parted { kept, going }))
}

/// Worn packs that are to be rewritten.
struct Worn {
    packs: Vec<PackName>,
    /// Says what is needed of them.
    mark: Mark,
    /// Whether there is no space for it.
    is_full: bool,
}

impl Worn {
    /// Rewrites them, condemns them, and removes those whose grace is over: some at a time, so that memory does not grow with how
    /// many they are, and what was done stays done. Those that others touch meanwhile are left to the next collection.
    fn rewrite(
        self,
        region: &Region,
        options: &GcOptions,
        collected: &mut Collected,
        failure: &mut Option<RegionError>,
        context: &Context<'_>,
    ) -> Result<(), OpsError> {
        let Self { packs, mut mark, mut is_full } = self;
        let began = Instant::now();
        let avoided: HashSet<PackName> = packs.iter().copied().collect();
        let mut rest = &packs[..];
        if !rest.is_empty() && !is_full {
            let total = rest.iter().map(|name| mark.usage(name).bytes).sum();
            context.progress.begin("repack", total);
        }
        while !rest.is_empty() {
            let context = &context.after(began);
            // Rewriting needs space before it gives any back.
            if is_full {
                rest.iter().for_each(|name| collected.left_worn.add(len_of(&mark, name)));
                break;
            }
            let (round, after) = rest.split_at(round_len(&mark, rest, context));
            let round: HashSet<PackName> = round.iter().copied().collect();
            let mut moved = Amount::default();
            let rewritten = rewrite(region, &round, &avoided, context, || {
                moved = repack(region, &mark, &round, context)?;
                Ok(())
            })?;
            let Some(Rewritten { mark: now, kept, emptied }) = rewritten else {
                collected.given_up = true;
                break;
            };
            emptied.iter().for_each(|name| collected.repacked.add(len_of(&now, name)));
            collected.moved.count += moved.count;
            collected.moved.bytes += moved.bytes;
            // Only of these it was proved that what they hold is elsewhere, too.
            let is_due = |name: &PackName, state| emptied.contains(name) && is_over(state, options, context);
            region.sweep(&now, &kept, context.account, is_due)?;
            remove_swept(region, collected, failure, context)?;
            (mark, rest) = (now, after);
            is_full = !rest.is_empty() && region.admit_collector()?;
        }
        Ok(())
    }
}

/// How many of some packs are rewritten together: one at least, and so many that where their frames are fits a share of the memory.
fn round_len(mark: &Mark, packs: &[PackName], context: &Context<'_>) -> usize {
    let mut frames = 0;
    let fits = |name: &&PackName| {
        frames += mark.usage(name).frames;
        frames <= context.memory_bytes / MEMORY_OF_MOVED
    };
    packs.iter().take_while(fits).count().max(1)
}

/// Moves what is needed of packs into new ones. Gives what was moved.
fn repack(
    region: &Region,
    mark: &Mark,
    worn: &HashSet<PackName>,
    context: &Context<'_>,
) -> Result<Amount, OpsError> {
    let frames = region.kept_frames(mark, worn, || context.check_cancelled())?;
    let mut session = region.begin(context.account)?;
    session.avoid(worn);
    let mut moved = Amount::default();
    // Bases before the deltas on them.
    for is_plain in [true, false] {
        for frames in frames.values() {
            context.check_cancelled()?;
            let usage = region.move_frames(&mut session, frames, is_plain, context.pool)?;
            moved.count += usage.frames;
            moved.bytes += usage.bytes;
            context.progress.advance(usage.bytes);
        }
    }
    session.flush()?;
    Ok(moved)
}

/// Runs a verb again if a collection took a pack away that the verb had counted on: what was in it is stored anew.
pub(super) fn despite_collection<T>(mut verb: impl FnMut() -> Result<T, OpsError>) -> Result<T, OpsError> {
    for _ in 0..3 {
        match verb() {
            Err(OpsError::ContentGone { .. }) => {}
            done => return done,
        }
    }
    verb()
}
