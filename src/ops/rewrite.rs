//! Packs are emptied: what is needed of them moves into new ones, and then they are condemned.

use super::context::Context;
use super::error::{Class, OpsError};
use crate::model::catalog::Catalog;
use crate::model::objects::{PackName, PackState};
use crate::model::op::Op;
use crate::region::Region;
use crate::region::collect::Mark;
use crate::region::doubles::Proved;
use crate::region::error::RegionError;
use crate::region::losses::Losses;
use std::collections::{BTreeSet, HashSet};
use std::time::Instant;

/// Attempts to condemn while others commit, before it is left to the next collection.
const ATTEMPTS: usize = 8;

/// Which of several places of a chunk a mark keeps.
#[derive(Clone, Copy)]
pub(super) enum Keep<'a> {
    /// Best one in other packs than these, which are being emptied.
    Outside(&'a HashSet<PackName>),
    /// Best one in a pack of which at least so many percent are needed.
    InFuller(u8),
    /// Any.
    Any,
}

/// What came of emptying packs.
pub(super) struct Rewritten {
    /// A mark of the state after it.
    pub(super) mark: Mark,
    /// Packs that stay by it.
    pub(super) kept: BTreeSet<PackName>,
    /// Packs that were condemned.
    pub(super) emptied: Vec<PackName>,
}

/// Empties packs, which are among those that are `avoided`: `move_needed` puts what is needed of them into new ones. Nothing if
/// others were faster: then what was moved is in two packs, one of which nothing needs, as the next collection will find.
pub(super) fn rewrite(
    region: &Region,
    packs: &HashSet<PackName>,
    avoided: &HashSet<PackName>,
    context: &Context<'_>,
    move_needed: impl FnOnce() -> Result<(), OpsError>,
) -> Result<Option<Rewritten>, OpsError> {
    let began = Instant::now();
    match move_needed() {
        Err(error) if is_gone(&error) || error.class() == Class::Damage && !are_live(region, packs)? => {
            // Others took them, or deleted what they hold; or something is lost, which a new mark tells.
            despite_others(region, Keep::Any, Losses::Refused, context, |_| Ok(Some(())))?;
            return Ok(None);
        }
        moved => moved?,
    }
    let mut proved = Proved::new(context.memory_bytes / 2);
    let (mut emptied, account) = (Vec::new(), context.account);
    let condemned = despite_others(region, Keep::Outside(avoided), Losses::Refused, context, |mark| {
        let mut kept = mark.kept_packs();
        let live =
            || mark.catalog.packs.iter().filter(|(_, p)| p.state == PackState::Live).map(|(name, _)| *name);
        // A pack that nothing needs yet, or any more, still has its bases somewhere.
        let others = live().filter(|name| !kept.contains(name) && !packs.contains(name));
        let held = mark.catalog.with_bases(others);
        emptied = live()
            .filter(|name| packs.contains(name) && !kept.contains(name) && !held.contains(name))
            .collect();
        let going = emptied.iter().copied().collect();
        region.prove_kept(mark, &going, &mut proved, context.pool, || context.check_cancelled())?;
        let now_ms = context.after(began).now_ms;
        let mut held = Held { region, mark, kept: &mut kept, going: &going, context };
        let is_done = held.run(|mark, kept| region.rebase(mark, kept, account))?
            && (emptied.is_empty()
                || held.run(|mark, kept| region.condemn(mark, kept, &emptied, account, now_ms))?);
        Ok(is_done.then_some(kept))
    })?;
    Ok(condemned.map(|(mark, kept)| Rewritten { mark, kept, emptied }))
}

/// Whether some packs are all still live. Of one that is not, what deltas there are stored against may be gone.
fn are_live(region: &Region, packs: &HashSet<PackName>) -> Result<bool, OpsError> {
    let now = region.catalog()?;
    let is_live = |name| now.packs.get(name).is_some_and(|pack| pack.state == PackState::Live);
    Ok(packs.iter().all(is_live))
}

fn is_gone(error: &OpsError) -> bool {
    match error {
        OpsError::Region(error) => error.is_not_found(),
        OpsError::ContentGone { .. } => true,
        _ => false,
    }
}

/// Marks. An index segment that turns out damaged is left out, as by any look-up: its packs' own indexes say the same.
pub(super) fn mark(
    region: &Region,
    losses: Losses,
    keep: Keep<'_>,
    context: &Context<'_>,
) -> Result<Mark, OpsError> {
    mark_after(region, &|_| Vec::new(), losses, keep, context)
}

/// The same, as if the operations that a state asks for were on record, too.
pub(super) fn mark_after(
    region: &Region,
    ops: &dyn Fn(&Catalog) -> Vec<Op>,
    losses: Losses,
    keep: Keep<'_>,
    context: &Context<'_>,
) -> Result<Mark, OpsError> {
    let outside = |avoided: &HashSet<PackName>| loop {
        match region.mark_after(ops, losses, avoided, || context.check_cancelled()) {
            Err(OpsError::Region(error)) if region.leaves_out(&error) => {}
            marked => return marked,
        }
    };
    let percent = match keep {
        Keep::Outside(avoided) => return outside(avoided),
        Keep::InFuller(percent) => percent,
        Keep::Any => 0,
    };
    let mark = outside(&HashSet::new())?;
    let sparse = mark.sparse(percent);
    if sparse.is_empty() {
        return Ok(mark);
    }
    // Only one of the two is held at a time.
    drop(mark);
    outside(&sparse)
}

/// Reads what is there, again if what was not there may have been deleted and collected by others: then the log has moved.
pub(super) fn despite_removals<T>(
    region: &Region,
    mut read: impl FnMut() -> Result<T, OpsError>,
) -> Result<T, OpsError> {
    for _ in 1..ATTEMPTS {
        let before = region.catalog()?.sequence;
        match read() {
            Err(OpsError::Region(error)) if error.is_damage() && region.catalog()?.sequence != before => {}
            done => return done,
        }
    }
    read()
}

/// How often a mark is made to hold for what came since, before another is made.
const CATCHES_UP: usize = 100;

/// A mark, what it keeps, and packs that are to go by it.
pub(super) struct Held<'a, 'c> {
    pub(super) region: &'a Region,
    pub(super) mark: &'a mut Mark,
    pub(super) kept: &'a mut BTreeSet<PackName>,
    pub(super) going: &'a HashSet<PackName>,
    pub(super) context: &'a Context<'c>,
}

impl Held<'_, '_> {
    /// Runs a step that is done if the mark holds, also if it does not and can be made to; whether it is done.
    pub(super) fn run(
        &mut self,
        mut step: impl FnMut(&Mark, &BTreeSet<PackName>) -> Result<bool, RegionError>,
    ) -> Result<bool, OpsError> {
        for _ in 0..CATCHES_UP {
            if step(self.mark, self.kept)? {
                return Ok(true);
            }
            let context = self.context;
            if !self.region.catch_up(self.mark, self.kept, self.going, || context.check_cancelled())? {
                return Ok(false);
            }
        }
        Ok(false)
    }
}

/// Marks, and runs a step on the mark, again if others commit or collect meanwhile, but not for ever: then what is left
/// is left to the next collection. The step gives nothing if the mark did not hold.
pub(super) fn despite_others<T>(
    region: &Region,
    keep: Keep<'_>,
    losses: Losses,
    context: &Context<'_>,
    mut step: impl FnMut(&mut Mark) -> Result<Option<T>, OpsError>,
) -> Result<Option<(Mark, T)>, OpsError> {
    for attempt in 1..=ATTEMPTS {
        context.check_cancelled()?;
        let before = region.catalog()?.sequence;
        let done = mark(region, losses, keep, context).and_then(|mut mark| {
            region.check_kept(&mark, || context.check_cancelled())?;
            Ok(step(&mut mark)?.map(|done| (mark, done)))
        });
        match done {
            Ok(Some(done)) => return Ok(Some(done)),
            Ok(None) => {}
            // What was not there may have been deleted and collected by others: then the log has moved.
            Err(OpsError::Region(error))
                if error.is_damage() && attempt < ATTEMPTS && region.catalog()?.sequence != before => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}
