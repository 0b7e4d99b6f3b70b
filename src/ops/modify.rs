//! Changing images and snapshots: permissions, tags, deprecation, disabling, protection. Rules: EC2's
//! ModifyImageAttribute, ModifySnapshotAttribute, CreateTags, EnableImageDeprecation, DisableImage.

use super::context::Context;
use super::error::{Code, OpsError};
use super::find::{check_tags, own_image, own_snapshot};
use crate::model::account::{Permission, Tag};
use crate::model::catalog::Catalog;
use crate::model::ids::{ImageId, SnapshotId};
use crate::model::image::{Image, ImageState};
use crate::model::op::{ImageChange, Op, SnapshotChange};
use crate::model::units::TimeMs;
use crate::region::Region;
use std::collections::BTreeSet;

/// Times of deprecation are whole minutes, as in EC2.
const MINUTE_MS: u64 = 60_000;

/// Something that carries permissions and tags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// An image.
    Image(ImageId),
    /// A snapshot.
    Snapshot(SnapshotId),
}

/// Who is given a permission and who loses it.
#[derive(Debug, Clone, Default)]
pub struct PermissionChange {
    /// Given.
    pub add: Vec<Permission>,
    /// Taken away; who does not have it does not mind.
    pub remove: Vec<Permission>,
}

/// What sharing an image has left to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shared {
    /// Who else may use it now.
    pub permissions: Vec<Permission>,
    /// Its snapshots that those who were added may not read: they can launch it, and not copy it.
    pub unreadable_snapshots: Vec<SnapshotId>,
}

/// Changes an image's launch permissions, and with `with_snapshots` those of its caller's own snapshots
/// alike; all or nothing.
pub fn share_image(
    region: &Region,
    id: ImageId,
    change: &PermissionChange,
    with_snapshots: bool,
    context: &Context<'_>,
) -> Result<Shared, OpsError> {
    check_change(change)?;
    region.commit(context.account, |catalog| {
        let image = modifiable(catalog, id, context)?;
        let permissions = changed(&image.launch_permissions, change);
        let mut ops =
            vec![Op::ModifyImage { id, change: ImageChange::LaunchPermissions(permissions.clone()) }];
        let mut unreadable_snapshots = Vec::new();
        for snapshot in image.snapshot_ids().filter_map(|id| catalog.snapshots.get(&id)) {
            let after = changed(&snapshot.create_volume_permissions, change);
            if with_snapshots && snapshot.owner == context.account {
                let change = SnapshotChange::CreateVolumePermissions(after);
                ops.push(Op::ModifySnapshot { id: snapshot.id, change });
            } else if change.add.iter().any(|added| !admitted(&snapshot.create_volume_permissions, *added)) {
                unreadable_snapshots.push(snapshot.id);
            }
        }
        Ok((ops, Shared { permissions, unreadable_snapshots }))
    })
}

/// Changes who else may read a snapshot and make volumes of it.
pub fn share_snapshot(
    region: &Region,
    id: SnapshotId,
    change: &PermissionChange,
    context: &Context<'_>,
) -> Result<Shared, OpsError> {
    check_change(change)?;
    region.commit(context.account, |catalog| {
        let snapshot = own_snapshot(catalog, context.account, id)?;
        let permissions = changed(&snapshot.create_volume_permissions, change);
        let op = SnapshotChange::CreateVolumePermissions(permissions.clone());
        let shared = Shared { permissions, unreadable_snapshots: Vec::new() };
        Ok((vec![Op::ModifySnapshot { id, change: op }], shared))
    })
}

/// Sets tags, replacing those with the same keys, and removes those with the given keys.
pub fn tag(
    region: &Region,
    target: Target,
    set: &[Tag],
    remove: &[String],
    context: &Context<'_>,
) -> Result<Vec<Tag>, OpsError> {
    check_tags(set)?;
    region.commit(context.account, |catalog| {
        let before = match target {
            Target::Image(id) => &own_image(catalog, context.account, id)?.tags,
            Target::Snapshot(id) => &own_snapshot(catalog, context.account, id)?.tags,
        };
        let stays = |tag: &&Tag| !remove.contains(&tag.key) && !set.iter().any(|new| new.key == tag.key);
        let mut tags: Vec<Tag> = before.iter().filter(stays).cloned().collect();
        tags.extend(set.iter().cloned());
        tags.sort();
        check_tags(&tags)?;
        let op = match target {
            Target::Image(id) => Op::ModifyImage { id, change: ImageChange::Tags(tags.clone()) },
            Target::Snapshot(id) => Op::ModifySnapshot { id, change: SnapshotChange::Tags(tags.clone()) },
        };
        Ok((vec![op], tags))
    })
}

/// Deprecates an image from a time on, to the minute; none takes that back.
pub fn deprecate(
    region: &Region,
    id: ImageId,
    at: Option<TimeMs>,
    context: &Context<'_>,
) -> Result<Option<TimeMs>, OpsError> {
    let at = at.map(|at| at.saturating_add(MINUTE_MS / 2) / MINUTE_MS * MINUTE_MS);
    change_image(region, id, ImageChange::Deprecation(at), context)?;
    Ok(at)
}

/// Switches an image off: nobody launches it, others no longer see it. Its launch permissions are gone.
pub fn disable(region: &Region, id: ImageId, context: &Context<'_>) -> Result<(), OpsError> {
    change_image(region, id, ImageChange::Disable, context)
}

/// Switches a disabled image on again.
pub fn enable(region: &Region, id: ImageId, context: &Context<'_>) -> Result<(), OpsError> {
    region.commit(context.account, |catalog| {
        own_image(catalog, context.account, id)?;
        Ok((vec![Op::ModifyImage { id, change: ImageChange::Enable }], ()))
    })
}

/// Forbids deregistering an image, or allows it again.
pub fn protect(region: &Region, id: ImageId, protected: bool, context: &Context<'_>) -> Result<(), OpsError> {
    change_image(region, id, ImageChange::Protection(protected), context)
}

/// EC2's answer for an image that is disabled.
pub(super) fn check_available(image: &Image) -> Result<(), OpsError> {
    if image.state == ImageState::Available {
        return Ok(());
    }
    let why = format!("The image ID '{}' is not available: it is {}", image.id, image.state);
    Err(OpsError::rule(Code::ImageUnavailable, why))
}

fn change_image(
    region: &Region,
    id: ImageId,
    change: ImageChange,
    context: &Context<'_>,
) -> Result<(), OpsError> {
    region.commit(context.account, |catalog| {
        modifiable(catalog, id, context)?;
        Ok((vec![Op::ModifyImage { id, change: change.clone() }], ()))
    })
}

/// An image that the caller owns and that is not disabled.
fn modifiable<'a>(catalog: &'a Catalog, id: ImageId, context: &Context<'_>) -> Result<&'a Image, OpsError> {
    let image = own_image(catalog, context.account, id)?;
    check_available(image)?;
    Ok(image)
}

fn check_change(change: &PermissionChange) -> Result<(), OpsError> {
    if change.add.is_empty() && change.remove.is_empty() {
        return Err(OpsError::rule(Code::InvalidAttributeItem, "nobody is named: say whom to add or remove"));
    }
    if let Some(both) = change.add.iter().find(|permission| change.remove.contains(permission)) {
        let why = format!("{both:?} is to be added and removed at once");
        return Err(OpsError::rule(Code::InvalidAttributeItem, why));
    }
    Ok(())
}

fn changed(before: &[Permission], change: &PermissionChange) -> Vec<Permission> {
    let all: BTreeSet<Permission> = before.iter().chain(&change.add).copied().collect();
    all.into_iter().filter(|permission| !change.remove.contains(permission)).collect()
}

fn admitted(permissions: &[Permission], wanted: Permission) -> bool {
    permissions.contains(&Permission::All) || permissions.contains(&wanted)
}
