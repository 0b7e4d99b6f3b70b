//! Finding things by id, for a caller. What a caller may not see does not exist for it.

use super::error::{Code, OpsError};
use crate::model::account::{AccountId, Tag};
use crate::model::catalog::Catalog;
use crate::model::ids::{ImageId, InstanceId, MalformedId, SnapshotId, VolumeId};
use crate::model::image::Image;
use crate::model::instance::{Instance, Volume};
use crate::model::snapshot::Snapshot;
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
    catalog
        .images
        .get(&id)
        .filter(|image| image.visible_to(account))
        .ok_or_else(|| OpsError::image_not_found(id))
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

/// A volume that `account` owns.
pub fn volume(catalog: &Catalog, account: AccountId, id: VolumeId) -> Result<&Volume, OpsError> {
    let missing = || OpsError::rule(Code::VolumeNotFound, format!("The volume '{id}' does not exist."));
    catalog.volumes.get(&id).filter(|volume| volume.owner == account).ok_or_else(missing)
}

/// An instance that `account` owns.
pub fn instance(catalog: &Catalog, account: AccountId, id: InstanceId) -> Result<&Instance, OpsError> {
    let missing = || OpsError::rule(Code::InstanceNotFound, format!("The instance ID '{id}' does not exist"));
    catalog.instances.get(&id).filter(|instance| instance.owner == account).ok_or_else(missing)
}

/// The volumes of an instance, in the order of their device names.
pub fn volumes_of(catalog: &Catalog, id: InstanceId) -> Vec<&Volume> {
    let device = |volume: &&Volume| {
        volume.attachment.as_ref().filter(|at| at.instance_id == id).map(|at| at.device_name.clone())
    };
    let mut volumes: Vec<_> = catalog.volumes.values().filter(|volume| device(volume).is_some()).collect();
    volumes.sort_by_key(|volume| device(volume));
    volumes
}

/// Refuses what is no set of tags: 50 at most, keys unique, 1 to 128 characters, values at most 256.
pub fn check_tags(tags: &[Tag]) -> Result<(), OpsError> {
    let bad = |why: String| Err(OpsError::rule(Code::InvalidParameterValue, why));
    if tags.len() > 50 {
        return bad(format!("{} tags; a resource has at most 50", tags.len()));
    }
    for (at, tag) in tags.iter().enumerate() {
        if tag.key.is_empty() || tag.key.chars().count() > 128 || tag.value.chars().count() > 256 {
            return bad(format!("tag '{}': a key has 1 to 128 characters, a value at most 256", tag.key));
        }
        if tags[..at].iter().any(|other| other.key == tag.key) {
            return bad(format!("tag key '{}' is given twice", tag.key));
        }
    }
    Ok(())
}

/// Refuses a description of more than 255 characters.
pub fn check_description(text: &str) -> Result<(), OpsError> {
    if text.chars().count() > 255 {
        return Err(OpsError::rule(Code::InvalidParameterValue, "a description has at most 255 characters"));
    }
    Ok(())
}
