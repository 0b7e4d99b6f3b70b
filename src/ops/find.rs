//! Finding things by id, for a caller. What a caller may not see does not exist for it.

use super::context::Context;
use super::devices::DeviceSpec;
use super::error::{Code, OpsError};
use super::instance::is_shown;
use crate::model::account::{AccountId, Tag};
use crate::model::catalog::Catalog;
use crate::model::ids::{ImageId, InstanceId, MalformedId, SnapshotId, VolumeId};
use crate::model::image::Image;
use crate::model::instance::{Instance, Volume};
use crate::model::objects::PackName;
use crate::model::snapshot::{Snapshot, Template};
use crate::model::units::TimeMs;
use crate::model::words::{ImageState, SnapshotState};
use crate::region::error::RegionError;
use crate::region::session::Session;
use std::str::FromStr;

/// An id of any kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnyId {
    /// `ami-…`
    Image(ImageId),
    /// `snap-…`
    Snapshot(SnapshotId),
    /// `vol-…`
    Volume(VolumeId),
    /// `i-…`
    Instance(InstanceId),
}

impl AnyId {
    /// The prefix of ids of its kind.
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Image(_) => ImageId::PREFIX,
            Self::Snapshot(_) => SnapshotId::PREFIX,
            Self::Volume(_) => VolumeId::PREFIX,
            Self::Instance(_) => InstanceId::PREFIX,
        }
    }
}

impl std::fmt::Display for AnyId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Image(id) => id.fmt(f),
            Self::Snapshot(id) => id.fmt(f),
            Self::Volume(id) => id.fmt(f),
            Self::Instance(id) => id.fmt(f),
        }
    }
}

impl FromStr for AnyId {
    type Err = MalformedId;
    fn from_str(text: &str) -> Result<Self, MalformedId> {
        let known = |prefix| text.starts_with(prefix);
        if known(ImageId::PREFIX) {
            text.parse().map(Self::Image)
        } else if known(SnapshotId::PREFIX) {
            text.parse().map(Self::Snapshot)
        } else if known(VolumeId::PREFIX) {
            text.parse().map(Self::Volume)
        } else if known(InstanceId::PREFIX) {
            text.parse().map(Self::Instance)
        } else {
            Err(MalformedId {
                given: text.chars().take(64).collect(),
                expecting: "ami-..., snap-..., vol-... or i-...",
            })
        }
    }
}

/// An image that `account` may see.
pub fn image(catalog: &Catalog, account: AccountId, id: ImageId) -> Result<&Image, OpsError> {
    if let Some(image) = catalog.images.get(&id).filter(|image| image.visible_to(account)) {
        return Ok(image);
    }
    if catalog.was_deregistered(id, account) {
        let is_binned = catalog.binned_images.contains_key(&id);
        let cure = format!(
            "deregistered, and in the recycle bin: until its time there is over `imgstore bin restore {id}` brings it back"
        );
        return Err(OpsError::image_unavailable(id, if is_binned { &cure } else { "deregistered" }));
    }
    Err(OpsError::image_not_found(id))
}

/// EC2's answer for an image that is disabled.
pub fn check_available(image: &Image) -> Result<(), OpsError> {
    if image.state == ImageState::Available {
        return Ok(());
    }
    Err(OpsError::image_unavailable(image.id, image.state.as_str()))
}

/// The template of an instance-store-backed image.
pub fn template<'a>(catalog: &'a Catalog, image: &Image) -> Option<&'a Template> {
    catalog.templates.get(&image.template?)
}

/// An image that `account` owns. One that it only sees is AuthFailure.
pub fn own_image(catalog: &Catalog, account: AccountId, id: ImageId) -> Result<&Image, OpsError> {
    let image = image(catalog, account, id)?;
    if image.owner != account {
        return Err(OpsError::rule(Code::AuthFailure, format!("Not authorized for image:{id}")));
    }
    Ok(image)
}

/// A snapshot that `account` may see.
pub fn snapshot(catalog: &Catalog, account: AccountId, id: SnapshotId) -> Result<&Snapshot, OpsError> {
    catalog
        .snapshots
        .get(&id)
        .filter(|snapshot| snapshot.readable_by(account))
        .ok_or_else(|| OpsError::snapshot_not_found(id))
}

/// A snapshot that `account` owns. One that it only sees is AuthFailure.
pub fn own_snapshot(catalog: &Catalog, account: AccountId, id: SnapshotId) -> Result<&Snapshot, OpsError> {
    let snapshot = snapshot(catalog, account, id)?;
    if snapshot.owner != account {
        return Err(OpsError::rule(Code::AuthFailure, format!("Not authorized for snapshot:{id}")));
    }
    Ok(snapshot)
}

/// A snapshot under something that the caller may use, whoever may read the snapshot itself.
pub(super) fn backing(catalog: &Catalog, id: SnapshotId) -> Result<&Snapshot, OpsError> {
    catalog.snapshots.get(&id).ok_or_else(|| OpsError::snapshot_not_found(id))
}

/// The content of a snapshot under an image, for whoever may use that. Who uses it, or the image's owner, must be able to read the
/// snapshot still: a permission that was taken back ends what was built on it, too.
pub(super) fn content<'a>(
    catalog: &'a Catalog,
    image: &Image,
    id: SnapshotId,
    account: AccountId,
) -> Result<&'a Snapshot, OpsError> {
    let snapshot = backing(catalog, id)?;
    if snapshot.readable_by(image.owner) || snapshot.readable_by(account) {
        return Ok(snapshot);
    }
    let why = format!("the owner of {} may no longer read {id}, which it was made of", image.id);
    Err(OpsError::rule(Code::StorageDenied, why))
}

/// Refuses snapshots that devices are to be made of and that the caller may not read, or that are not whole.
pub(super) fn check_contents(
    catalog: &Catalog,
    account: AccountId,
    devices: &[DeviceSpec],
) -> Result<(), OpsError> {
    let mut named = devices.iter().filter_map(|device| device.snapshot_id);
    named.try_for_each(|id| check_completed(snapshot(catalog, account, id)?))
}

/// Refuses a snapshot that is not whole.
pub(super) fn check_completed(snapshot: &Snapshot) -> Result<(), OpsError> {
    if snapshot.state == SnapshotState::Completed {
        return Ok(());
    }
    let why =
        format!("Snapshot '{}' is {}; it can be used when it is completed", snapshot.id, snapshot.state);
    Err(OpsError::rule(Code::IncorrectState, why))
}

/// A volume that `account` owns.
pub fn volume(catalog: &Catalog, account: AccountId, id: VolumeId) -> Result<&Volume, OpsError> {
    let missing = || OpsError::rule(Code::VolumeNotFound, format!("The volume '{id}' does not exist."));
    catalog.volumes.get(&id).filter(|volume| volume.owner == account).ok_or_else(missing)
}

/// An instance that the caller owns. One that was terminated is there for an hour more.
pub fn instance<'a>(
    catalog: &'a Catalog,
    context: &Context<'_>,
    id: InstanceId,
) -> Result<&'a Instance, OpsError> {
    shown_instance(catalog, context.account, context.now_ms, id)
}

/// Refuses ids of instances that do not exist. EC2's answer names all of them.
pub(super) fn check_instances_exist(
    catalog: &Catalog,
    account: AccountId,
    now_ms: TimeMs,
    ids: impl IntoIterator<Item = InstanceId>,
) -> Result<(), OpsError> {
    let is_missing = |id: &InstanceId| shown_instance(catalog, account, now_ms, *id).is_err();
    let missing: Vec<InstanceId> = ids.into_iter().filter(is_missing).collect();
    match missing.as_slice() {
        [] => Ok(()),
        [one] => shown_instance(catalog, account, now_ms, *one).map(drop),
        several => {
            let ids = several.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            Err(OpsError::rule(Code::InstanceNotFound, format!("The instance IDs '{ids}' do not exist")))
        }
    }
}

pub(super) fn shown_instance(
    catalog: &Catalog,
    account: AccountId,
    now_ms: TimeMs,
    id: InstanceId,
) -> Result<&Instance, OpsError> {
    let missing = || OpsError::rule(Code::InstanceNotFound, format!("The instance ID '{id}' does not exist"));
    let own = catalog.instances.get(&id).filter(|instance| instance.owner == account);
    own.filter(|instance| is_shown(instance, now_ms)).ok_or_else(missing)
}

/// Tags that a resource or a rule has at most.
pub(super) const TAGS_MAX: usize = 50;

/// Refuses what is no set of tags: [`TAGS_MAX`] at most, keys unique, 1 to 128 characters, values at most 256.
pub fn check_tags(tags: &[Tag]) -> Result<(), OpsError> {
    let bad = |why: String| Err(OpsError::rule(Code::InvalidParameterValue, why));
    if tags.len() > TAGS_MAX {
        let why = format!("{} tags; a resource has at most {TAGS_MAX}", tags.len());
        return Err(OpsError::rule(Code::TagLimitExceeded, why));
    }
    for (at, tag) in tags.iter().enumerate() {
        if tag.key.is_empty() || tag.key.chars().count() > 128 || tag.value.chars().count() > 256 {
            return bad(format!("tag '{}': a key has 1 to 128 characters, a value at most 256", tag.key));
        }
        if tag.key.starts_with("aws:") {
            return bad(format!("tag key '{}': keys that begin with aws: are reserved, as in EC2", tag.key));
        }
        if tag.key.chars().chain(tag.value.chars()).any(char::is_control) {
            return bad("a tag has control characters".to_owned());
        }
        if tags[..at].iter().any(|other| other.key == tag.key) {
            return bad(format!("tag key '{}' is given twice", tag.key));
        }
    }
    Ok(())
}

/// Refuses a description of more than 255 characters, or with control characters.
pub fn check_description(text: &str) -> Result<(), OpsError> {
    if text.chars().count() > 255 {
        return Err(OpsError::rule(Code::InvalidParameterValue, "a description has at most 255 characters"));
    }
    if text.chars().any(char::is_control) {
        return Err(OpsError::rule(Code::InvalidParameterValue, "a description has control characters"));
    }
    Ok(())
}

/// Refuses if a manifest that the session found and took is no longer named by anything: it may be about to be
/// removed. The next try writes one of its own.
pub(super) fn check_manifests(catalog: &Catalog, session: &Session) -> Result<(), OpsError> {
    let Some(gone) = session.lost_manifest(catalog) else { return Ok(()) };
    Err(OpsError::ContentGone { what: gone.to_string() })
}

/// Refuses if one of the packs that a new snapshot or template counts on can be used no more; gives those that its
/// record, which follows this state, has to name.
pub(super) fn check_packs(catalog: &Catalog, packs: &[PackName]) -> Result<Vec<PackName>, OpsError> {
    catalog.packs_to_name(packs).map_err(|rejection| RegionError::Rejected(rejection).into())
}
