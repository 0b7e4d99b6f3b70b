//! What a source offers to a copy: chosen there by what the caller may have, and checked here.

use super::context::Context;
use super::copy::CopyWhat;
use super::devices::{EPHEMERAL_MAX, check_count, check_devices, check_iops};
use super::error::{Code, OpsError};
use super::find::{
    check_available, check_completed, check_description, check_tags, image as find_image,
    snapshot as find_snapshot, template,
};
use super::modify::check_product_codes;
use super::register::{check_image_name, check_machine};
use crate::model::account::AccountId;
use crate::model::catalog::Catalog;
use crate::model::ids::SnapshotId;
use crate::model::image::{BlockDeviceMapping, DeviceTarget, Image, is_device_name, is_same_device};
use crate::model::objects::ManifestRecord;
use crate::model::snapshot::{Snapshot, Template};
use crate::model::units::VOLUME_BYTES_MAX;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// What a source has of what is asked for, for somebody who may have it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// The last record of the log when it was made.
    pub sequence: u64,
    /// The image, if one was asked for.
    pub image: Option<Image>,
    /// The snapshot that was asked for, or those of the image, each once.
    pub snapshots: Vec<Snapshot>,
    /// The template of an instance-store-backed image.
    pub template: Option<Template>,
}

impl Offer {
    /// The manifests of it: of the snapshots, then of the template.
    pub fn manifests(&self) -> impl Iterator<Item = &ManifestRecord> {
        let snapshots = self.snapshots.iter().map(|snapshot| &snapshot.manifest);
        snapshots.chain(self.template.iter().map(|template| &template.manifest))
    }

    /// Whether anything of it is another account's.
    pub fn is_of_others(&self, account: AccountId) -> bool {
        let image = self.image.iter().map(|image| image.owner);
        image.chain(self.snapshots.iter().map(|snapshot| snapshot.owner)).any(|owner| owner != account)
    }

    /// The same, to change what is told of them.
    pub fn manifests_mut(&mut self) -> impl Iterator<Item = &mut ManifestRecord> {
        let snapshots = self.snapshots.iter_mut().map(|snapshot| &mut snapshot.manifest);
        snapshots.chain(self.template.iter_mut().map(|template| &mut template.manifest))
    }

    /// Leaves out what no copy has, and tags unless the copy has them: a region that is given something need not hear it.
    pub fn only_what_is_copied(mut self, with_tags: bool) -> Self {
        self.image.iter_mut().for_each(hide_image);
        self.snapshots.iter_mut().for_each(hide_snapshot);
        if !with_tags {
            self.image.iter_mut().for_each(|image| image.tags.clear());
            self.snapshots.iter_mut().for_each(|snapshot| snapshot.tags.clear());
        }
        self
    }
}

/// The image and its content, if the caller may have them.
pub(super) fn select(catalog: &Catalog, what: CopyWhat, context: &Context<'_>) -> Result<Offer, OpsError> {
    let sequence = catalog.sequence;
    let id = match what {
        CopyWhat::Snapshot(id) => {
            let snapshot = find_snapshot(catalog, context.account, id)?;
            check_completed(snapshot)?;
            let snapshots = vec![seen_by(snapshot, context.account)];
            return Ok(Offer { sequence, snapshots, ..Offer::default() });
        }
        CopyWhat::Image(id) => id,
    };
    let image = find_image(catalog, context.account, id)?;
    check_available(image)?;
    let is_own = image.owner == context.account;
    let denied = |_| {
        let why = "You do not have permission to access the storage of this ami";
        OpsError::rule(Code::StorageDenied, why)
    };
    if !is_own && !image.product_codes.is_empty() {
        let why = format!("{id} has product codes: only its owner copies it");
        return Err(OpsError::rule(Code::OperationNotPermitted, why));
    }
    let mut distinct = BTreeSet::new();
    let snapshots = image.snapshot_ids().filter(|id| distinct.insert(*id));
    let seen = |id| find_snapshot(catalog, context.account, id).map(|s| seen_by(s, context.account));
    let snapshots = snapshots.map(|id| seen(id).map_err(denied));
    let snapshots = snapshots.collect::<Result<_, _>>()?;
    let template = template(catalog, image).cloned();
    // A template has no permissions of its own: its storage is its owner's.
    if template.is_some() && !is_own {
        return Err(denied(OpsError::image_not_found(id)));
    }
    let mut image = image.clone();
    if !is_own {
        hide_image(&mut image);
        image.tags.clear();
    }
    Ok(Offer { sequence, image: Some(image), snapshots, template })
}

/// A snapshot as an account sees it: tags and permissions are its owner's. EC2 copies no tags of other accounts.
fn seen_by(snapshot: &Snapshot, account: AccountId) -> Snapshot {
    let mut seen = snapshot.clone();
    if seen.owner != account {
        hide_snapshot(&mut seen);
        seen.tags.clear();
    }
    seen
}

/// Whom else it is shared with, and what it was made by.
fn hide_image(image: &mut Image) {
    image.launch_permissions.clear();
    (image.client_token, image.source_instance) = (None, None);
}

/// The same of a snapshot.
fn hide_snapshot(snapshot: &mut Snapshot) {
    snapshot.create_volume_permissions.clear();
    (snapshot.client_token, snapshot.volume) = (None, None);
}

/// Refuses an offer that is not of what was asked for, or that holds what no region makes. Who has a region's files, or
/// stands behind a connection, can offer anything.
pub(super) fn check(offer: &Offer, what: CopyWhat) -> Result<(), OpsError> {
    let asked = match (what, &offer.image) {
        (CopyWhat::Image(id), Some(image)) => image.id == id,
        (CopyWhat::Snapshot(id), None) => offer.snapshots.len() == 1 && offer.snapshots[0].id == id,
        _ => false,
    };
    if !asked {
        return lie("something else than was asked for");
    }
    let distinct: BTreeSet<SnapshotId> = offer.snapshots.iter().map(|snapshot| snapshot.id).collect();
    if distinct.len() != offer.snapshots.len() {
        return lie("a snapshot twice");
    }
    let lens = offer.snapshots.iter().map(|snapshot| snapshot.volume_bytes);
    if lens
        .chain(offer.template.iter().map(|template| template.volume_bytes))
        .any(|len| len > VOLUME_BYTES_MAX)
    {
        return lie("a volume of an impossible size");
    }
    for snapshot in &offer.snapshots {
        check_text(check_description(&snapshot.description))?;
        check_text(check_tags(&snapshot.tags))?;
        check_text(check_completed(snapshot))?;
    }
    match &offer.image {
        Some(image) => check_image(offer, image, &distinct),
        None if offer.template.is_some() => lie("a template that belongs to no image"),
        None => Ok(()),
    }
}

/// Bytes of block maps that somebody who is only let in may bring at once: of 1.1 TB in chunks of the default length. They are held
/// in memory as long as the copy takes.
const GUEST_MAPS_BYTES: u64 = 1 << 30;

/// Refuses more block maps of a guest than a host has memory for.
pub(super) fn check_guests_maps(offer: &Offer) -> Result<(), OpsError> {
    let bytes = offer.manifests().fold(0_u64, |sum, manifest| sum.saturating_add(manifest.len));
    if bytes <= GUEST_MAPS_BYTES {
        return Ok(());
    }
    let why = format!(
        "its block maps have {bytes} bytes; {GUEST_MAPS_BYTES} is the most that a guest may bring at once: copy its snapshots one by one"
    );
    Err(OpsError::rule(Code::InvalidParameterValue, why))
}

fn check_image(offer: &Offer, image: &Image, snapshots: &BTreeSet<SnapshotId>) -> Result<(), OpsError> {
    let used: BTreeSet<SnapshotId> = image.snapshot_ids().collect();
    if used != *snapshots {
        return lie("other snapshots than those of its image");
    }
    if offer.template.as_ref().map(|template| template.id) != image.template {
        return lie("another template than that of its image");
    }
    check_text(check_available(image))?;
    check_text(check_image_name(&image.name))?;
    check_text(check_description(&image.description))?;
    check_text(check_tags(&image.tags))?;
    check_text(check_machine(&image.machine))?;
    check_text(check_product_codes(&image.product_codes))?;
    if !is_device_name(&image.root_device_name) {
        return lie("a root device that has no device's name");
    }
    check_text(check_devices(&image.devices))?;
    check_text(check_count(usize::from(image.template.is_some()) + image.devices.len()))?;
    let root =
        image.devices.iter().find(|device| is_same_device(&device.device_name, &image.root_device_name));
    let has_snapshot = |device: &BlockDeviceMapping| matches!(&device.target, DeviceTarget::Ebs(ebs) if ebs.snapshot_id.is_some());
    match (image.template, root) {
        (Some(_), Some(_)) => return lie("a root device that is a template and a volume"),
        (None, root) if !root.is_some_and(has_snapshot) => return lie("a root device without content"),
        _ => {}
    }
    for (at, device) in image.devices.iter().enumerate() {
        check_device(device, &image.devices[..at], &offer.snapshots)?;
    }
    Ok(())
}

/// A device's name becomes a file's: a path must not pass for one.
fn check_device(
    device: &BlockDeviceMapping,
    before: &[BlockDeviceMapping],
    snapshots: &[Snapshot],
) -> Result<(), OpsError> {
    if !is_device_name(&device.device_name) {
        return lie("a device that has no device's name");
    }
    if before.iter().any(|other| is_same_device(&other.device_name, &device.device_name)) {
        return lie("a device twice");
    }
    match &device.target {
        DeviceTarget::Ephemeral(number) if *number > EPHEMERAL_MAX => lie("an ephemeral disk that none is"),
        DeviceTarget::Ephemeral(_) => Ok(()),
        DeviceTarget::Ebs(ebs) => {
            let of = |id| snapshots.iter().find(|snapshot| snapshot.id == id).map_or(0, |s| s.volume_bytes);
            let least = ebs.snapshot_id.map_or(1, of);
            if !(least..=VOLUME_BYTES_MAX).contains(&ebs.volume_bytes) {
                return lie("a volume of an impossible size");
            }
            check_text(check_iops(ebs.volume_type, ebs.iops))
        }
    }
}

fn lie<T>(why: &str) -> Result<T, OpsError> {
    Err(OpsError::Offer { why: why.to_owned() })
}

/// What a rule says of text that a user gave is here said of the source.
fn check_text(checked: Result<(), OpsError>) -> Result<(), OpsError> {
    checked.or_else(|error| lie(&error.to_string()))
}
