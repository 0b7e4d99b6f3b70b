//! Changing images and snapshots: permissions, tags, deprecation, disabling, protection. Rules: EC2's
//! ModifyImageAttribute, ModifySnapshotAttribute, CreateTags, EnableImageDeprecation, DisableImage.

use super::context::Context;
use super::error::{Code, OpsError};
use super::find::{check_available, check_description, check_tags, own_image, own_snapshot};
use crate::model::account::{Permission, Tag};
use crate::model::catalog::Catalog;
use crate::model::ids::{ImageId, InstanceId, SnapshotId, VolumeId};
use crate::model::image::{DeregistrationProtection, Image};
use crate::model::op::{ImageChange, InstanceChange, Op, SnapshotChange, VolumeChange};
use crate::model::snapshot::Snapshot;
use crate::model::units::TimeMs;
use crate::region::Region;
use std::collections::BTreeSet;

/// Times of deprecation are whole minutes, as in EC2.
const MINUTE_MS: u64 = 60_000;

/// How long an image stays protected after protection with a cooldown was switched off.
const COOLDOWN_MS: u64 = 24 * 3_600_000;
/// Product codes that an image has at most.
const PRODUCT_CODES_MAX: usize = 16;

/// Something that carries tags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// An image.
    Image(ImageId),
    /// A snapshot.
    Snapshot(SnapshotId),
    /// A volume.
    Volume(VolumeId),
    /// An instance.
    Instance(InstanceId),
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
    context.commit(region, |catalog| {
        let image = modifiable(catalog, id, context)?;
        let settings = catalog.settings(context.account);
        let is_new = |permission: &Permission| !image.launch_permissions.contains(permission);
        if change.add.iter().any(|added| *added == Permission::All && is_new(added)) {
            check_publishable(settings.block_public_images, "images")?;
            if !image.product_codes.is_empty() {
                let why = format!("{id} has product codes: it cannot be public");
                return Err(OpsError::rule(Code::OperationNotPermitted, why));
            }
        }
        let permissions = changed(&image.launch_permissions, change);
        let mut ops =
            vec![Op::ModifyImage { id, change: ImageChange::LaunchPermissions(permissions.clone()) }];
        let mut unreadable_snapshots = Vec::new();
        // Several devices may stand on one.
        let ids: BTreeSet<SnapshotId> = image.snapshot_ids().collect();
        for snapshot in ids.iter().filter_map(|id| catalog.snapshots.get(id)) {
            let after = changed(&snapshot.create_volume_permissions, change);
            if with_snapshots && snapshot.owner == context.account {
                check_snapshot_change(catalog, snapshot, change, context)?;
                let change = SnapshotChange::CreateVolumePermissions(after);
                ops.push(Op::ModifySnapshot { id: snapshot.id, change });
            } else if change.add.iter().any(|added| !can_read(snapshot, *added)) {
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
    context.commit(region, |catalog| {
        let snapshot = own_snapshot(catalog, context.account, id)?;
        check_snapshot_change(catalog, snapshot, change, context)?;
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
    context.commit(region, |catalog| {
        let before = match target {
            Target::Image(id) => &own_image(catalog, context.account, id)?.tags,
            Target::Snapshot(id) => &own_snapshot(catalog, context.account, id)?.tags,
            Target::Volume(id) => &super::find::volume(catalog, context.account, id)?.tags,
            Target::Instance(id) => &super::find::instance(catalog, context, id)?.tags,
        };
        let stays = |tag: &&Tag| !remove.contains(&tag.key) && !set.iter().any(|new| new.key == tag.key);
        let mut tags: Vec<Tag> = before.iter().filter(stays).cloned().collect();
        tags.extend(set.iter().cloned());
        tags.sort();
        check_tags(&tags)?;
        let op = match target {
            Target::Image(id) => Op::ModifyImage { id, change: ImageChange::Tags(tags.clone()) },
            Target::Snapshot(id) => Op::ModifySnapshot { id, change: SnapshotChange::Tags(tags.clone()) },
            Target::Volume(id) => Op::ModifyVolume { id, change: VolumeChange::Tags(tags.clone()) },
            Target::Instance(id) => Op::ModifyInstance { id, change: InstanceChange::Tags(tags.clone()) },
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
    if at.is_some_and(|at| at < context.now_ms) {
        let why = "the time of deprecation is in the past";
        return Err(OpsError::rule(Code::InvalidParameterValue, why));
    }
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
    context.commit(region, |catalog| {
        own_image(catalog, context.account, id)?;
        Ok((vec![Op::ModifyImage { id, change: ImageChange::Enable }], ()))
    })
}

/// How an image shall be protected against being deregistered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protect {
    /// Not at all; if protection has a cooldown, in 24 hours.
    Off,
    /// Until it is switched off.
    On,
    /// Until 24 hours after it is switched off.
    OnWithCooldown,
}

/// Forbids deregistering an image, or allows it again.
pub fn protect(
    region: &Region,
    id: ImageId,
    protect: Protect,
    context: &Context<'_>,
) -> Result<DeregistrationProtection, OpsError> {
    context.commit(region, |catalog| {
        let image = own_image(catalog, context.account, id)?;
        // What is disabled can still be made ready for being deregistered.
        if protect != Protect::Off {
            check_available(image)?;
        }
        let before = image.deregistration_protection;
        let protection = match (protect, before) {
            // A cooldown that was promised is not shed by switching protection on without one.
            (Protect::On, DeregistrationProtection::EnabledWithCooldown) => before,
            (Protect::On, DeregistrationProtection::CoolingDown { .. })
                if before.holds_at(context.now_ms) =>
            {
                DeregistrationProtection::EnabledWithCooldown
            }
            (Protect::On, _) => DeregistrationProtection::Enabled,
            (Protect::OnWithCooldown, _) => DeregistrationProtection::EnabledWithCooldown,
            (Protect::Off, DeregistrationProtection::EnabledWithCooldown) => {
                let until_ms = context.now_ms.saturating_add(COOLDOWN_MS);
                DeregistrationProtection::CoolingDown { until_ms }
            }
            (Protect::Off, DeregistrationProtection::CoolingDown { .. })
                if before.holds_at(context.now_ms) =>
            {
                before
            }
            (Protect::Off, _) => DeregistrationProtection::Disabled,
        };
        Ok((vec![Op::ModifyImage { id, change: ImageChange::Protection(protection) }], protection))
    })
}

/// Changes what an image's owner says of it.
pub fn describe_image(
    region: &Region,
    id: ImageId,
    description: &str,
    context: &Context<'_>,
) -> Result<(), OpsError> {
    check_description(description)?;
    change_image(region, id, ImageChange::Description(description.to_owned()), context)
}

/// Adds codes under which an image is sold. They stay, also on what is made of it, and it cannot be public.
pub fn add_product_codes(
    region: &Region,
    id: ImageId,
    codes: &[String],
    context: &Context<'_>,
) -> Result<Vec<String>, OpsError> {
    check_product_codes(codes)?;
    context.commit(region, |catalog| {
        let image = modifiable(catalog, id, context)?;
        if image.is_public() {
            let why = format!("{id} is public: an image with product codes cannot be");
            return Err(OpsError::rule(Code::OperationNotPermitted, why));
        }
        let all: BTreeSet<String> = image.product_codes.iter().chain(codes).cloned().collect();
        let codes: Vec<String> = all.into_iter().collect();
        check_product_codes(&codes)?;
        Ok((vec![Op::ModifyImage { id, change: ImageChange::ProductCodes(codes.clone()) }], codes))
    })
}

/// Refuses what is no product code, and more of them than an image has.
pub(super) fn check_product_codes(codes: &[String]) -> Result<(), OpsError> {
    let good = |code: &String| {
        (1..=64).contains(&code.len()) && code.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    if let Some(bad) = codes.iter().find(|code| !good(code)) {
        let why = format!("'{bad}' is no product code: 1 to 64 letters, digits and dashes");
        return Err(OpsError::rule(Code::InvalidAttributeItem, why));
    }
    if codes.len() > PRODUCT_CODES_MAX {
        let why = format!("an image has at most {PRODUCT_CODES_MAX} product codes");
        return Err(OpsError::rule(Code::InvalidAttributeItem, why));
    }
    Ok(())
}

/// Refuses to make something public where its owner's account blocks that.
pub(super) fn check_publishable(is_blocked: bool, what: &str) -> Result<(), OpsError> {
    if is_blocked {
        let why = format!(
            "You can't make {what} public because your account blocks public access; `imgstore account allow-public {what}` ends that"
        );
        return Err(OpsError::rule(Code::OperationNotPermitted, why));
    }
    Ok(())
}

/// Refuses to make a snapshot public where its owner blocks that.
fn check_snapshot_change(
    catalog: &Catalog,
    snapshot: &Snapshot,
    change: &PermissionChange,
    context: &Context<'_>,
) -> Result<(), OpsError> {
    let becomes_public = change.add.contains(&Permission::All) && !snapshot.is_public();
    check_publishable(becomes_public && catalog.settings(context.account).block_public_snapshots, "snapshots")
}

fn change_image(
    region: &Region,
    id: ImageId,
    change: ImageChange,
    context: &Context<'_>,
) -> Result<(), OpsError> {
    context.commit(region, |catalog| {
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
        let why = format!("{both} is to be added and removed at once");
        return Err(OpsError::rule(Code::InvalidAttributeItem, why));
    }
    Ok(())
}

fn changed(before: &[Permission], change: &PermissionChange) -> Vec<Permission> {
    let all: BTreeSet<Permission> = before.iter().chain(&change.add).copied().collect();
    all.into_iter().filter(|permission| !change.remove.contains(permission)).collect()
}

fn can_read(snapshot: &Snapshot, whom: Permission) -> bool {
    match whom {
        Permission::Account(account) => snapshot.readable_by(account),
        Permission::All => snapshot.is_public(),
    }
}
