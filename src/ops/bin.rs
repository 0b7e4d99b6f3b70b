//! The recycle bin: retention rules let what is removed stay restorable for a time. Rules: EC2's Recycle Bin.

use super::context::Context;
use super::error::{Code, OpsError};
use super::find::{TAGS_MAX, check_tags, own_image};
use super::modify::check_publishable;
use super::register::check_name_free;
use crate::model::account::{AccountId, Resource, RetentionRule, Tag};
use crate::model::catalog::{Binned, Catalog};
use crate::model::ids::{ImageId, RuleId, SnapshotId};
use crate::model::image::Image;
use crate::model::op::{AccountChange, BinStay, Op};
use crate::model::snapshot::Snapshot;
use crate::region::Region;
use std::collections::BTreeSet;

/// Days that a rule may keep things.
pub const RETENTION_DAYS: std::ops::RangeInclusive<u16> = 1..=365;
/// Rules that an account has at most.
pub const RULES_MAX: usize = 250;
const DAY_MS: u64 = 86_400_000;

/// Adds a retention rule for what the caller removes from now on.
pub fn add_rule(
    region: &Region,
    resource: Resource,
    days: u16,
    tags: &[Tag],
    context: &Context<'_>,
) -> Result<RetentionRule, OpsError> {
    // A thing with any of them falls under it: a key may have several values.
    tags.iter().try_for_each(|tag| check_tags(std::slice::from_ref(tag)))?;
    if tags.len() > TAGS_MAX || (1..tags.len()).any(|at| tags[..at].contains(&tags[at])) {
        let why = format!("a rule has at most {TAGS_MAX} tags, each once");
        return Err(OpsError::rule(Code::InvalidParameterValue, why));
    }
    if !RETENTION_DAYS.contains(&days) {
        let why = format!("a rule keeps things 1 to 365 days, not {days}");
        return Err(OpsError::rule(Code::InvalidParameterValue, why));
    }
    let rule =
        RetentionRule { id: RuleId::from_random(region.random_id()?), resource, days, tags: tags.to_vec() };
    context.commit(region, |catalog| {
        if catalog.settings(context.account).retention_rules.len() >= RULES_MAX {
            let why = format!("an account has at most {RULES_MAX} retention rules");
            return Err(OpsError::rule(Code::InvalidParameterValue, why));
        }
        let change = AccountChange::AddRule(rule.clone());
        Ok((vec![Op::ModifyAccount { account: context.account, change }], rule.clone()))
    })
}

/// Removes a retention rule of the caller's. What is in the bin stays there for its time.
pub fn remove_rule(region: &Region, id: RuleId, context: &Context<'_>) -> Result<(), OpsError> {
    context.commit(region, |catalog| {
        if !rules(catalog, context).iter().any(|rule| rule.id == id) {
            return Err(OpsError::rule(Code::RuleNotFound, format!("The rule '{id}' does not exist")));
        }
        let change = AccountChange::RemoveRule(id);
        Ok((vec![Op::ModifyAccount { account: context.account, change }], ()))
    })
}

/// The caller's retention rules.
pub fn rules(catalog: &Catalog, context: &Context<'_>) -> Vec<RetentionRule> {
    catalog.settings(context.account).retention_rules
}

/// The caller's images in the bin that can still be restored, by the end of their stay.
pub fn images<'a>(catalog: &'a Catalog, context: &Context<'_>) -> Vec<&'a Binned<Image>> {
    let own = |binned: &&Binned<Image>| binned.item.owner == context.account && is_kept(binned.stay, context);
    let mut images: Vec<_> = catalog.binned_images.values().filter(own).collect();
    images.sort_by_key(|binned| (binned.stay.until_ms, binned.item.id));
    images
}

/// The caller's snapshots in the bin that can still be restored, by the end of their stay.
pub fn snapshots<'a>(catalog: &'a Catalog, context: &Context<'_>) -> Vec<&'a Binned<Snapshot>> {
    let own =
        |binned: &&Binned<Snapshot>| binned.item.owner == context.account && is_kept(binned.stay, context);
    let mut snapshots: Vec<_> = catalog.binned_snapshots.values().filter(own).collect();
    snapshots.sort_by_key(|binned| (binned.stay.until_ms, binned.item.id));
    snapshots
}

/// Takes an image out of the bin, and with it those of its snapshots that are there.
pub fn restore_image(region: &Region, id: ImageId, context: &Context<'_>) -> Result<Image, OpsError> {
    context.commit(region, |catalog| {
        let binned = images(catalog, context).into_iter().find(|binned| binned.item.id == id);
        let Some(binned) = binned else {
            let is_over = |binned: &Binned<Image>| binned.item.owner == context.account;
            if catalog.binned_images.get(&id).is_some_and(is_over) {
                let why = "deregistered, and its time in the recycle bin is over";
                return Err(OpsError::image_unavailable(id, why));
            }
            // One that is registered is not in the bin; what a caller may not see does not exist for it.
            own_image(catalog, context.account, id)?;
            let why = format!("The image ID '{id}' is not in the recycle bin");
            return Err(OpsError::rule(Code::IncorrectState, why));
        };
        let image = &binned.item;
        check_name_free(catalog, image.owner, &image.name)?;
        let settings = catalog.settings(context.account);
        check_publishable(image.is_public() && settings.block_public_images, "images")?;
        let mut ops = Vec::new();
        for id in image.snapshot_ids().filter(|id| catalog.binned_snapshots.contains_key(id)) {
            let is_public = catalog.binned_snapshots.get(&id).is_some_and(|binned| binned.item.is_public());
            check_publishable(is_public && settings.block_public_snapshots, "snapshots")?;
            let op = Op::RestoreSnapshot { id };
            if !ops.contains(&op) {
                ops.push(op);
            }
        }
        ops.push(Op::RestoreImage { id });
        Ok((ops, image.clone()))
    })
}

/// Takes a snapshot out of the bin.
pub fn restore_snapshot(
    region: &Region,
    id: SnapshotId,
    context: &Context<'_>,
) -> Result<Snapshot, OpsError> {
    context.commit(region, |catalog| {
        match snapshots(catalog, context).into_iter().find(|binned| binned.item.id == id) {
            Some(binned) => {
                let is_blocked = catalog.settings(context.account).block_public_snapshots;
                check_publishable(binned.item.is_public() && is_blocked, "snapshots")?;
                Ok((vec![Op::RestoreSnapshot { id }], binned.item.clone()))
            }
            None => {
                super::find::own_snapshot(catalog, context.account, id)?;
                let why = format!("The snapshot '{id}' is not in the recycle bin");
                Err(OpsError::rule(Code::IncorrectState, why))
            }
        }
    })
}

/// How long a thing that the caller removes now stays in the bin: as long as the longest rule says.
pub(super) fn stay_of(
    catalog: &Catalog,
    resource: Resource,
    tags: &[Tag],
    context: &Context<'_>,
) -> Option<BinStay> {
    let rules = rules(catalog, context);
    let days = rules.iter().filter(|rule| rule.applies(resource, tags)).map(|rule| rule.days).max()?;
    let until_ms = context.now_ms.saturating_add(u64::from(days) * DAY_MS);
    Some(BinStay { since_ms: context.now_ms, until_ms })
}

/// The operations that end the stay of what the caller's time is up for. Whoever changes the bin makes them.
pub(super) fn expire(catalog: &Catalog, context: &Context<'_>) -> Vec<Op> {
    expire_of(catalog, |owner| owner == context.account, context)
}

fn expire_of(catalog: &Catalog, is_own: impl Fn(AccountId) -> bool, context: &Context<'_>) -> Vec<Op> {
    let images = catalog.binned_images.values().filter(|b| is_own(b.item.owner) && !is_kept(b.stay, context));
    let expired: BTreeSet<ImageId> = images.map(|binned| binned.item.id).collect();
    let still_used = |id| catalog.binned_images_using(id).any(|image| !expired.contains(&image));
    let snapshots = catalog.binned_snapshots.values();
    let snapshots = snapshots.filter(|b| is_own(b.item.owner) && !is_kept(b.stay, context));
    let snapshots = snapshots.map(|binned| binned.item.id).filter(|id| !still_used(*id));
    let images = expired.iter().map(|&id| Op::ExpireImage { id });
    images.chain(snapshots.map(|id| Op::ExpireSnapshot { id })).collect()
}

/// The operations that end the stay of whatever is overdue, whosever it is.
pub(super) fn expire_all(catalog: &Catalog, context: &Context<'_>) -> Vec<Op> {
    expire_of(catalog, |_| true, context)
}

/// The operations that end the stay of anybody's images whose time is up and that use a snapshot: what nobody can
/// restore any more keeps nobody from deleting it.
pub(super) fn expire_users(catalog: &Catalog, snapshot: SnapshotId, context: &Context<'_>) -> Vec<Op> {
    let overdue = catalog.binned_images_using(snapshot).filter(|id| is_overdue(catalog, *id, context));
    overdue.map(|id| Op::ExpireImage { id }).collect()
}

fn is_overdue(catalog: &Catalog, id: ImageId, context: &Context<'_>) -> bool {
    catalog.binned_images.get(&id).is_some_and(|binned| !is_kept(binned.stay, context))
}

/// The images in the bin that use a snapshot and can still be restored.
pub(super) fn binned_users<'a>(
    catalog: &'a Catalog,
    snapshot: SnapshotId,
    context: &'a Context<'_>,
) -> impl Iterator<Item = ImageId> + 'a {
    catalog.binned_images_using(snapshot).filter(|id| !is_overdue(catalog, *id, context))
}

const fn is_kept(stay: BinStay, context: &Context<'_>) -> bool {
    context.now_ms < stay.until_ms
}
