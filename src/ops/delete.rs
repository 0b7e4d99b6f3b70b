//! Removing: delete a snapshot, deregister an image. Only roots change; bytes are freed by collection. Rules:
//! EC2's DeleteSnapshot, DeregisterImage.

use super::bin::{binned_users, expire, expire_users, stay_of};
use super::context::Context;
use super::error::{Code, OpsError};
use super::find::{own_image, own_snapshot};
use super::stats::freed_bytes;
use crate::model::account::Resource;
use crate::model::catalog::Catalog;
use crate::model::ids::{ImageId, SnapshotId};
use crate::model::image::{DeregistrationProtection, Image};
use crate::model::op::{BinStay, Op};
use crate::model::units::TimeMs;
use crate::region::Region;
use std::collections::BTreeSet;

const HOUR_MS: u64 = 3_600_000;

/// What became of a snapshot of a deregistered image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotOutcome {
    /// It was deleted, or is in the bin.
    Success,
    /// Another image uses it.
    Skipped,
    /// It belongs to somebody else.
    MissingPermissions,
}

impl SnapshotOutcome {
    /// EC2's word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Skipped => "skipped",
            Self::MissingPermissions => "missing-permissions",
        }
    }
}

/// A snapshot of an image that is deregistered, to be deleted with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotDeletion {
    /// Which.
    pub id: SnapshotId,
    /// What becomes of it.
    pub outcome: SnapshotOutcome,
    /// Until when it can be restored; none if it stays, or cannot.
    pub restorable_until_ms: Option<TimeMs>,
}

/// What deregistering an image does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deregistration {
    /// Its snapshots, if they were to be deleted, and what becomes of each.
    pub snapshots: Vec<SnapshotDeletion>,
    /// Until when the image can be restored; none if it cannot.
    pub restorable_until_ms: Option<TimeMs>,
    /// Bytes that this gives back after collection and repacking, once nothing is in the bin any more.
    pub freed_bytes: Option<u64>,
    /// Snapshots of the image that nothing else uses and that stay.
    pub snapshots_left: Vec<SnapshotId>,
}

/// What deleting a snapshot does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deletion {
    /// Until when it can be restored; none if it cannot.
    pub restorable_until_ms: Option<TimeMs>,
    /// Bytes that this gives back after collection and repacking, once it is in the bin no more.
    pub freed_bytes: Option<u64>,
}

/// What removes something must go on a full disk, too: its record has room that is kept back for this.
pub(super) fn make_room(region: &Region, context: &Context<'_>) -> Result<(), OpsError> {
    if !context.dry_run {
        region.admit_collector()?;
    }
    Ok(())
}

/// Deletes a snapshot that the caller owns and no image uses.
pub fn delete_snapshot(region: &Region, id: SnapshotId, context: &Context<'_>) -> Result<Deletion, OpsError> {
    // Room is not given up for what is refused.
    plan_snapshot(&region.catalog()?, id, context)?;
    make_room(region, context)?;
    context.commit(region, |catalog| {
        let (mut ops, deletion) = plan_snapshot(catalog, id, context)?;
        let bin = deletion.restorable_until_ms.map(|until_ms| BinStay { since_ms: context.now_ms, until_ms });
        ops.push(Op::DeleteSnapshot { id, bin });
        Ok((ops, deletion))
    })
}

/// What deleting a snapshot would do.
pub fn preview_delete(region: &Region, id: SnapshotId, context: &Context<'_>) -> Result<Deletion, OpsError> {
    region.check_appendable()?;
    let catalog = region.catalog()?;
    let (_, deletion) = plan_snapshot(&catalog, id, context)?;
    Ok(Deletion { freed_bytes: Some(freed_bytes(region, &catalog, &[id], &[], context)?), ..deletion })
}

fn plan_snapshot(
    catalog: &Catalog,
    id: SnapshotId,
    context: &Context<'_>,
) -> Result<(Vec<Op>, Deletion), OpsError> {
    let snapshot = own_snapshot(catalog, context.account, id)?;
    let ops = expire_all(catalog, [id], context);
    let user = catalog.images_using(id).next();
    if let Some(image) = user.or_else(|| binned_users(catalog, id, context).next()) {
        return Err(in_use(catalog, id, image, context));
    }
    let bin = stay_of(catalog, Resource::Snapshot, &snapshot.tags, context);
    let deletion = Deletion { restorable_until_ms: bin.map(|bin| bin.until_ms), freed_bytes: None };
    Ok((ops, deletion))
}

/// Ends the stay of what is overdue: the caller's own, and whatever of anybody's uses these snapshots.
fn expire_all(
    catalog: &Catalog,
    snapshots: impl IntoIterator<Item = SnapshotId>,
    context: &Context<'_>,
) -> Vec<Op> {
    let mut ops = Vec::new();
    for op in snapshots.into_iter().flat_map(|id| expire_users(catalog, id, context)) {
        if !ops.contains(&op) {
            ops.push(op);
        }
    }
    let own = expire(catalog, context);
    let more: Vec<Op> = own.into_iter().filter(|op| !ops.contains(op)).collect();
    ops.extend(more);
    ops
}

/// EC2's sentence, where the caller may know the image.
fn in_use(catalog: &Catalog, id: SnapshotId, image: ImageId, context: &Context<'_>) -> OpsError {
    let is_visible = |image: &Image| image.visible_to(context.account);
    let binned = catalog.binned_images.get(&image).is_some_and(|binned| binned.item.owner == context.account);
    let why = match (catalog.images.get(&image).is_some_and(is_visible), binned) {
        (true, _) => return OpsError::snapshot_in_use(id, image),
        (_, true) => format!("The snapshot {id} is currently in use by {image}, which is in the recycle bin"),
        _ => format!("The snapshot {id} is currently in use by an image of another account"),
    };
    OpsError::rule(Code::SnapshotInUse, why)
}

/// Deregisters an image that the caller owns, and on request deletes its snapshots that nothing else uses.
/// Instances keep what they have.
pub fn deregister(
    region: &Region,
    id: ImageId,
    delete_snapshots: bool,
    context: &Context<'_>,
) -> Result<Deregistration, OpsError> {
    plan(&region.catalog()?, id, delete_snapshots, context)?;
    make_room(region, context)?;
    context.commit(region, |catalog| {
        let (image, plan) = plan(catalog, id, delete_snapshots, context)?;
        let stay =
            |until: Option<TimeMs>| until.map(|until_ms| BinStay { since_ms: context.now_ms, until_ms });
        let mut ops = expire_all(catalog, image.snapshot_ids(), context);
        ops.push(Op::DeregisterImage { id, bin: stay(plan.restorable_until_ms) });
        let deleted = plan.snapshots.iter().filter(|snapshot| snapshot.outcome == SnapshotOutcome::Success);
        ops.extend(
            deleted.map(|snapshot| Op::DeleteSnapshot {
                id: snapshot.id,
                bin: stay(snapshot.restorable_until_ms),
            }),
        );
        Ok((ops, plan))
    })
}

/// What deregistering an image would do, and give back.
pub fn preview_deregister(
    region: &Region,
    id: ImageId,
    delete_snapshots: bool,
    context: &Context<'_>,
) -> Result<Deregistration, OpsError> {
    region.check_appendable()?;
    let catalog = region.catalog()?;
    let (image, plan) = plan(&catalog, id, delete_snapshots, context)?;
    let deleted = plan.snapshots.iter().filter(|snapshot| snapshot.outcome == SnapshotOutcome::Success);
    let deleted: Vec<SnapshotId> = deleted.map(|snapshot| snapshot.id).collect();
    let templates: Vec<_> = image.template.into_iter().collect();
    let freed = freed_bytes(region, &catalog, &deleted, &templates, context)?;
    Ok(Deregistration { freed_bytes: Some(freed), ..plan })
}

fn plan<'a>(
    catalog: &'a Catalog,
    id: ImageId,
    delete_snapshots: bool,
    context: &Context<'_>,
) -> Result<(&'a Image, Deregistration), OpsError> {
    let image = own_image(catalog, context.account, id)?;
    check_unprotected(image, context)?;
    let of_image = stay_of(catalog, Resource::Image, &image.tags, context);
    let distinct: BTreeSet<SnapshotId> = image.snapshot_ids().collect();
    let is_own = |s: &SnapshotId| catalog.snapshots.get(s).is_some_and(|s| s.owner == context.account);
    let others = |s: &SnapshotId| {
        catalog.images_using(*s).any(|user| user != id) || binned_users(catalog, *s, context).next().is_some()
    };
    let outcome = |snapshot: &SnapshotId| match (is_own(snapshot), others(snapshot)) {
        (false, _) => SnapshotOutcome::MissingPermissions,
        (true, true) => SnapshotOutcome::Skipped,
        (true, false) => SnapshotOutcome::Success,
    };
    let (mut snapshots, mut snapshots_left) = (Vec::new(), Vec::new());
    if delete_snapshots {
        let deletion = |id: &SnapshotId| {
            let outcome = outcome(id);
            let stay = snapshot_stay(catalog, *id, of_image, context);
            let restorable_until_ms =
                stay.filter(|_| outcome == SnapshotOutcome::Success).map(|stay| stay.until_ms);
            SnapshotDeletion { id: *id, outcome, restorable_until_ms }
        };
        snapshots = distinct.iter().map(deletion).collect();
    } else {
        let left = distinct.iter().filter(|snapshot| outcome(snapshot) == SnapshotOutcome::Success);
        snapshots_left = left.copied().collect();
    }
    let restorable_until_ms = of_image.map(|stay| stay.until_ms);
    Ok((image, Deregistration { snapshots, restorable_until_ms, freed_bytes: None, snapshots_left }))
}

fn check_unprotected(image: &Image, context: &Context<'_>) -> Result<(), OpsError> {
    if !image.deregistration_protection.holds_at(context.now_ms) {
        return Ok(());
    }
    let id = image.id;
    let until = match image.deregistration_protection {
        DeregistrationProtection::CoolingDown { until_ms } => {
            format!("for {} hours yet", until_ms.saturating_sub(context.now_ms).div_ceil(HOUR_MS))
        }
        _ => format!("until `imgstore protect {id} --off`"),
    };
    let why = format!("{id} is protected against deregistration {until}");
    Err(OpsError::rule(Code::OperationNotPermitted, why))
}

/// A snapshot that goes with its image stays in the bin as long as the image, or as its own rules say.
fn snapshot_stay(
    catalog: &Catalog,
    id: SnapshotId,
    with_image: Option<BinStay>,
    context: &Context<'_>,
) -> Option<BinStay> {
    let tags = catalog.snapshots.get(&id).map(|snapshot| snapshot.tags.as_slice()).unwrap_or_default();
    let own = stay_of(catalog, Resource::Snapshot, tags, context);
    [own, with_image].into_iter().flatten().max_by_key(|stay| stay.until_ms)
}
