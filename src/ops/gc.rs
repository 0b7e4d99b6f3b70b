//! Garbage collection: what nothing refers to is condemned, after a grace period swept, and then gone.
//!
//! It runs beside everything else, and beside other collectors. Each step is on record before the next begins, so
//! that a collection which is interrupted anywhere is gone on with by the next one. The steps that decide are in
//! [`crate::region::collect`].

use super::bin::expire_all;
use super::context::Context;
use super::error::OpsError;
use crate::model::catalog::Catalog;
use crate::model::objects::{PackName, PackState};
use crate::model::units::TimeMs;
use crate::region::Region;
use crate::region::collect::Mark;
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// How long a condemned pack stays at least if nothing else is said, in milliseconds: a day.
pub const GRACE_MS_DEFAULT: u64 = 86_400_000;
/// Attempts to condemn while others commit, before it is left to the next collection.
const ATTEMPTS: usize = 8;

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
    fn add(&mut self, bytes: u64) {
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
    /// Packs that nothing refers to and that a running command may be about to use.
    pub in_progress: Amount,
}

/// The packs that a mark lets go of.
#[derive(Default)]
struct Candidates {
    dead: Vec<PackName>,
    worn: Vec<PackName>,
    in_progress: Amount,
}

/// Says what [`collect`] would do now. Changes nothing.
pub fn preview(region: &Region, options: &GcOptions, context: &Context<'_>) -> Result<Collected, OpsError> {
    let mark = region.mark(|| context.check_cancelled())?;
    let kept = mark.kept_packs();
    let candidates = candidates(region, &mark, &kept, options)?;
    let mut collected = Collected { in_progress: candidates.in_progress, ..Collected::default() };
    collected.expired = expire_all(&mark.catalog, context).len() as u64;
    let due = due(options, context, &kept);
    for (name, pack) in mark.catalog.packs.iter() {
        match closed_since(pack.state) {
            _ if pack.state == PackState::Sweeping => collected.freed.add(pack.record.len),
            Some(_) if due(name, pack.state) => collected.freed.add(pack.record.len),
            Some(since) => wait(&mut collected, pack.record.len, since, options),
            None => {}
        }
    }
    let condemned = candidates.dead.iter().map(|name| (name, false));
    for (name, is_worn) in condemned.chain(candidates.worn.iter().map(|name| (name, true))) {
        let len = mark.catalog.packs.get(name).map_or(0, |pack| pack.record.len);
        if is_worn {
            let usage = mark.usage(name);
            collected.repacked.add(len);
            collected.moved.count += usage.frames;
            collected.moved.bytes += usage.bytes;
        } else {
            collected.condemned.add(len);
        }
        if options.grace_ms == 0 {
            collected.freed.add(len);
        } else {
            wait(&mut collected, len, context.now_ms, options);
        }
    }
    let orphans = region.find_orphans()?;
    collected.orphans = Amount { count: orphans.objects.len() as u64, bytes: orphans.bytes() };
    Ok(collected)
}

/// Collects. With a dry run it ends where [`preview`] does.
pub fn collect(region: &Region, options: &GcOptions, context: &Context<'_>) -> Result<Collected, OpsError> {
    if context.dry_run {
        return preview(region, options, context);
    }
    let is_full = region.admit_collector()?;
    let account = context.account;
    let mut collected = Collected::default();
    // What a collection before this one had on record as swept goes first: on a full disk it makes room.
    collected.freed.count += swept(&region.catalog()?);
    collected.freed.bytes += region.remove_swept(account, || context.check_cancelled())?;
    collected.expired = region.commit(account, |catalog| {
        let ops = expire_all(catalog, context);
        let count = ops.len() as u64;
        Ok::<_, OpsError>((ops, count))
    })?;
    let kept = condemn_what_goes(region, options, is_full, &mut collected, context)?;
    let freed = region.sweep(account, due(options, context, &kept))?;
    collected.freed.count += freed.len() as u64;
    collected.freed.bytes += region.remove_swept(account, || context.check_cancelled())?;
    let orphans = region.find_orphans()?;
    (collected.orphans.count, collected.orphans.bytes) = region.remove_orphans(&orphans, account)?;
    if !is_full {
        region.compact_index(account)?;
    }
    for pack in region.catalog()?.packs.values() {
        if let Some(since) = closed_since(pack.state) {
            wait(&mut collected, pack.record.len, since, options);
        }
    }
    Ok(collected)
}

fn swept(catalog: &Catalog) -> u64 {
    catalog.packs.values().filter(|pack| pack.state == PackState::Sweeping).count() as u64
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

/// Which packs have waited long enough. None that is kept, whatever its state: what is intact in a damaged pack may
/// be the only copy.
fn due<'a>(
    options: &'a GcOptions,
    context: &'a Context<'_>,
    kept: &'a BTreeSet<PackName>,
) -> impl Fn(&PackName, PackState) -> bool + 'a {
    move |name, state| {
        let is_over = |since: TimeMs| since.saturating_add(options.grace_ms) <= context.now_ms;
        closed_since(state).is_some_and(is_over) && !kept.contains(name)
    }
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
    let bases: HashSet<PackName> =
        mark.catalog.packs.values().flat_map(|pack| pack.record.bases.iter().copied()).collect();
    let mut at_work = BTreeMap::new();
    for (&name, pack) in mark.catalog.packs.iter().filter(|(_, pack)| pack.state == PackState::Live) {
        let usage = mark.usage(&name);
        if kept.contains(&name) {
            let is_worn = usage.bytes * 100 < pack.record.len * u64::from(options.repack_percent);
            if is_worn && !bases.contains(&name) {
                candidates.worn.push(name);
            }
            continue;
        }
        let is_at_work = match at_work.get(&name.session) {
            Some(&known) => known,
            None => *at_work.entry(name.session).or_insert(region.may_be_at_work(&name)?),
        };
        if is_at_work {
            candidates.in_progress.add(pack.record.len);
        } else {
            candidates.dead.push(name);
        }
    }
    Ok(candidates)
}

/// Marks and condemns, again if others commit meanwhile, but not for ever: what is left is left to the next
/// collection. Gives the packs that stay.
fn condemn_what_goes(
    region: &Region,
    options: &GcOptions,
    is_full: bool,
    collected: &mut Collected,
    context: &Context<'_>,
) -> Result<BTreeSet<PackName>, OpsError> {
    let mut mark = region.mark(|| context.check_cancelled())?;
    for _ in 1..ATTEMPTS {
        if let Some(kept) = condemn(region, &mark, options, is_full, collected, context)? {
            return Ok(kept);
        }
        context.check_cancelled()?;
        mark = region.mark(|| context.check_cancelled())?;
    }
    Ok(mark.kept_packs())
}

/// Condemns what a mark lets go of, and gives the packs that stay; or nothing if the mark did not hold.
fn condemn(
    region: &Region,
    mark: &Mark,
    options: &GcOptions,
    is_full: bool,
    collected: &mut Collected,
    context: &Context<'_>,
) -> Result<Option<BTreeSet<PackName>>, OpsError> {
    let mut kept = mark.kept_packs();
    let candidates = candidates(region, mark, &kept, options)?;
    let len = |name: &PackName| mark.catalog.packs.get(name).map_or(0, |pack| pack.record.len);
    collected.in_progress = candidates.in_progress;
    if !candidates.dead.is_empty() {
        if !region.condemn(mark, &kept, &candidates.dead, context.account, context.now_ms)? {
            return Ok(None);
        }
        candidates.dead.iter().for_each(|name| collected.condemned.add(len(name)));
    }
    // Repacking needs space before it gives any back.
    if candidates.worn.is_empty() || is_full {
        return Ok(Some(kept));
    }
    let (moved, new_packs) = repack(region, mark, &candidates.worn, context)?;
    kept.retain(|name| !candidates.worn.contains(name));
    kept.extend(new_packs);
    if !region.condemn(mark, &kept, &candidates.worn, context.account, context.now_ms)? {
        // What was moved is in two packs now; one of them nothing needs, as the next mark will find.
        return Ok(None);
    }
    candidates.worn.iter().for_each(|name| collected.repacked.add(len(name)));
    collected.moved.count += moved.count;
    collected.moved.bytes += moved.bytes;
    Ok(Some(kept))
}

/// Moves what is needed of packs into new ones. Gives what was moved, and the new packs.
fn repack(
    region: &Region,
    mark: &Mark,
    worn: &[PackName],
    context: &Context<'_>,
) -> Result<(Amount, Vec<PackName>), OpsError> {
    let worn: HashSet<PackName> = worn.iter().copied().collect();
    let frames = region.kept_frames(mark, &worn, || context.check_cancelled())?;
    let total = worn.iter().map(|name| mark.usage(name).bytes).sum();
    context.progress.begin("repack", total);
    let mut session = region.begin(context.account)?;
    let mut moved = Amount::default();
    for (pack, entries) in &frames {
        context.check_cancelled()?;
        region.move_frames(&mut session, *pack, entries, context.pool)?;
        let usage = mark.usage(pack);
        moved.count += usage.frames;
        moved.bytes += usage.bytes;
        context.progress.advance(usage.bytes);
    }
    session.flush()?;
    Ok((moved, session.used_packs()))
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
