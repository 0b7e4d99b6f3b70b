//! Describing: lists of what a caller may see, by owner, permission and filters. Rules: EC2's Describe calls.
//!
//! Lists are ordered by the time at which things were made, then by id, so that pages are stable.

use super::error::{Code, OpsError};
use super::filter::{Filter, fits};
use super::find::volumes_of;
use crate::model::account::{AccountId, Permission, Tag};
use crate::model::catalog::Catalog;
use crate::model::image::{BlockDeviceMapping, DeviceTarget, Image, ImageState};
use crate::model::instance::{Instance, InstanceState, Volume, VolumeState};
use crate::model::snapshot::{Snapshot, SnapshotState};
use crate::model::units::TimeMs;
use std::time::{Duration, UNIX_EPOCH};

/// Whose things are asked for, among those that the caller may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// The caller's own.
    Caller,
    /// Everybody's.
    All,
    /// One account's.
    Account(AccountId),
}

impl Owner {
    fn admits(self, caller: AccountId, owner: AccountId) -> bool {
        match self {
            Self::All => true,
            Self::Caller => owner == caller,
            Self::Account(id) => owner == id,
        }
    }
}

/// What a list is asked for.
#[derive(Debug, Clone)]
pub struct Query {
    /// Whose things.
    pub owner: Owner,
    /// Images only: those that were shared with everybody, or with one account, by name.
    pub executable_by: Option<Permission>,
    /// Images only: others' deprecated ones, too.
    pub include_deprecated: bool,
    /// Now: what is deprecated from a later time on is not deprecated yet.
    pub now_ms: TimeMs,
    /// All of these must admit a thing.
    pub filters: Vec<Filter>,
    /// At most so many, 1 or more.
    pub results_max: Option<usize>,
    /// Those after the page that gave this token.
    pub next_token: Option<String>,
}

/// A part of a list.
#[derive(Debug)]
pub struct Page<'a, T> {
    /// The things, in order.
    pub items: Vec<&'a T>,
    /// What to ask for the next page with, if there is one.
    pub next_token: Option<String>,
}

/// Something that can be listed.
trait Described {
    /// The names of its own filters.
    const FILTERS: &'static [&'static str];

    fn owner(&self) -> AccountId;
    fn visible_to(&self, catalog: &Catalog, account: AccountId) -> bool;
    fn order(&self) -> (TimeMs, String);
    fn tags(&self) -> &[Tag];
    /// The values that a filter of this name compares; none if there is no such filter.
    fn values(&self, catalog: &Catalog, name: &str) -> Option<Vec<String>>;
}

/// Images that the caller may see.
pub fn images<'a>(
    catalog: &'a Catalog,
    caller: AccountId,
    query: &Query,
) -> Result<Page<'a, Image>, OpsError> {
    let shared = |image: &&Image| query.executable_by.is_none_or(|by| image.launch_permissions.contains(&by));
    let hidden = |image: &&Image| {
        let is_deprecated = image.deprecation_ms.is_some_and(|at| at <= query.now_ms);
        is_deprecated && image.owner != caller && !query.include_deprecated
    };
    page(catalog, caller, query, catalog.images.values().filter(shared).filter(|image| !hidden(image)))
}

/// Snapshots that the caller may see.
pub fn snapshots<'a>(
    catalog: &'a Catalog,
    caller: AccountId,
    query: &Query,
) -> Result<Page<'a, Snapshot>, OpsError> {
    page(catalog, caller, query, catalog.snapshots.values())
}

/// The caller's volumes.
pub fn volumes<'a>(
    catalog: &'a Catalog,
    caller: AccountId,
    query: &Query,
) -> Result<Page<'a, Volume>, OpsError> {
    page(catalog, caller, query, catalog.volumes.values())
}

/// The caller's instances.
pub fn instances<'a>(
    catalog: &'a Catalog,
    caller: AccountId,
    query: &Query,
) -> Result<Page<'a, Instance>, OpsError> {
    page(catalog, caller, query, catalog.instances.values())
}

/// The newest available image whose name fits a pattern.
pub fn latest<'a>(
    catalog: &'a Catalog,
    caller: AccountId,
    query: &Query,
    name_pattern: &str,
) -> Result<Option<&'a Image>, OpsError> {
    let images = images(catalog, caller, &Query { results_max: None, next_token: None, ..query.clone() })?;
    let good = |image: &&&Image| image.state == ImageState::Available && fits(name_pattern, &image.name);
    Ok(images.items.iter().rfind(good).copied())
}

fn page<'a, T: Described + 'a>(
    catalog: &'a Catalog,
    caller: AccountId,
    query: &Query,
    all: impl Iterator<Item = &'a T>,
) -> Result<Page<'a, T>, OpsError> {
    let unknown =
        |name: &str| OpsError::rule(Code::InvalidParameterValue, format!("The filter '{name}' is invalid"));
    let is_known = |name: &str| {
        name.starts_with("tag:") || ["tag-key", "owner-id"].contains(&name) || T::FILTERS.contains(&name)
    };
    if let Some(filter) = query.filters.iter().find(|filter| !is_known(&filter.name)) {
        return Err(unknown(&filter.name));
    }
    let mut items = Vec::new();
    for item in all {
        if !item.visible_to(catalog, caller) || !query.owner.admits(caller, item.owner()) {
            continue;
        }
        let mut fits = true;
        for filter in &query.filters {
            let values = values_of(item, catalog, &filter.name).ok_or_else(|| unknown(&filter.name))?;
            fits &= filter.admits(&values);
        }
        if fits {
            items.push((item.order(), item));
        }
    }
    items.sort_by(|a, b| a.0.cmp(&b.0));
    cut_page(items, query)
}

fn values_of<T: Described>(item: &T, catalog: &Catalog, name: &str) -> Option<Vec<String>> {
    if let Some(key) = name.strip_prefix("tag:") {
        return Some(item.tags().iter().filter(|tag| tag.key == key).map(|tag| tag.value.clone()).collect());
    }
    match name {
        "tag-key" => Some(item.tags().iter().map(|tag| tag.key.clone()).collect()),
        "owner-id" => Some(vec![item.owner().to_string()]),
        name => item.values(catalog, name),
    }
}

/// The part of a sorted list that a query asks for. A token is the place of the last item before: it stays
/// good if that item is gone.
fn cut_page<'a, T>(
    mut items: Vec<((TimeMs, String), &'a T)>,
    query: &Query,
) -> Result<Page<'a, T>, OpsError> {
    let invalid = |why: &str| OpsError::rule(Code::InvalidParameterValue, why.to_owned());
    if let Some(token) = &query.next_token {
        let (time, id) = token.split_once('.').ok_or_else(|| invalid("The token is invalid"))?;
        let time: TimeMs = time.parse().map_err(|_| invalid("The token is invalid"))?;
        let after = (time, id.to_owned());
        items.retain(|(order, _)| *order > after);
    }
    let mut next_token = None;
    if let Some(most) = query.results_max {
        if most == 0 {
            return Err(invalid("at least one result must be asked for"));
        }
        if items.len() > most {
            items.truncate(most);
            next_token = items.last().map(|((time, id), _)| format!("{time}.{id}"));
        }
    }
    Ok(Page { items: items.into_iter().map(|(_, item)| item).collect(), next_token })
}

fn text<T: ToString>(value: T) -> Option<Vec<String>> {
    Some(vec![value.to_string()])
}

fn optional<T: ToString>(value: Option<T>) -> Option<Vec<String>> {
    Some(value.map(|value| value.to_string()).into_iter().collect())
}

/// A time as EC2 writes it.
fn time(time_ms: TimeMs) -> Option<Vec<String>> {
    let at = UNIX_EPOCH + Duration::from_millis(time_ms.min(253_402_300_799_999));
    text(humantime::format_rfc3339_millis(at))
}

/// A size in GiB, rounded up, as EC2 counts it.
fn gib(bytes: u64) -> String {
    bytes.div_ceil(1 << 30).to_string()
}

fn of_devices(image: &Image, value: impl Fn(&BlockDeviceMapping) -> Option<String>) -> Option<Vec<String>> {
    Some(image.devices.iter().filter_map(value).collect())
}

fn of_volumes(
    image: &Image,
    value: impl Fn(&crate::model::image::EbsBlockDevice) -> Option<String>,
) -> Option<Vec<String>> {
    of_devices(image, |device| match &device.target {
        DeviceTarget::Ebs(ebs) => value(ebs),
        DeviceTarget::Ephemeral(_) => None,
    })
}

impl Described for Image {
    const FILTERS: &'static [&'static str] = &[
        "architecture",
        "block-device-mapping.delete-on-termination",
        "block-device-mapping.device-name",
        "block-device-mapping.snapshot-id",
        "block-device-mapping.volume-size",
        "block-device-mapping.volume-type",
        "boot-mode",
        "creation-date",
        "description",
        "ena-support",
        "image-id",
        "image-type",
        "imds-support",
        "is-public",
        "kernel-id",
        "name",
        "platform",
        "product-code",
        "ramdisk-id",
        "root-device-name",
        "root-device-type",
        "source-image-id",
        "source-image-region",
        "source-instance-id",
        "state",
        "tpm-support",
        "virtualization-type",
    ];

    fn owner(&self) -> AccountId {
        self.owner
    }

    fn visible_to(&self, _catalog: &Catalog, account: AccountId) -> bool {
        self.visible_to(account)
    }

    fn order(&self) -> (TimeMs, String) {
        (self.created_ms, self.id.to_string())
    }

    fn tags(&self) -> &[Tag] {
        &self.tags
    }

    fn values(&self, _catalog: &Catalog, name: &str) -> Option<Vec<String>> {
        match name {
            "architecture" => text(self.architecture),
            "block-device-mapping.delete-on-termination" => {
                of_volumes(self, |ebs| Some(ebs.delete_on_termination.to_string()))
            }
            "block-device-mapping.device-name" => of_devices(self, |device| Some(device.device_name.clone())),
            "block-device-mapping.snapshot-id" => of_volumes(self, |ebs| Some(ebs.snapshot_id?.to_string())),
            "block-device-mapping.volume-size" => of_volumes(self, |ebs| Some(gib(ebs.volume_bytes))),
            "block-device-mapping.volume-type" => of_volumes(self, |ebs| Some(ebs.volume_type.to_string())),
            "boot-mode" => optional(self.boot_mode),
            "creation-date" => time(self.created_ms),
            "description" => text(&self.description),
            "ena-support" => text(self.ena_support),
            "image-id" => text(self.id),
            "image-type" => text("machine"),
            "imds-support" => optional(self.imds_support.as_ref()),
            "is-public" => text(self.launch_permissions.contains(&Permission::All)),
            "kernel-id" => optional(self.kernel_id.as_ref()),
            "name" => text(&self.name),
            "platform" => optional(self.platform.as_ref()),
            "product-code" => Some(self.product_codes.clone()),
            "ramdisk-id" => optional(self.ramdisk_id.as_ref()),
            "root-device-name" => text(&self.root_device_name),
            "root-device-type" => text(self.root_device_type),
            "source-image-id" => optional(self.source.as_ref().map(|source| source.image_id)),
            "source-image-region" => optional(self.source.as_ref().map(|source| &source.region)),
            "source-instance-id" => optional(self.source_instance),
            "state" => text(self.state),
            "tpm-support" => optional(self.tpm_support.as_ref()),
            "virtualization-type" => text(self.virtualization_type),
            _ => None,
        }
    }
}

impl Described for Snapshot {
    const FILTERS: &'static [&'static str] = &[
        "description",
        "encrypted",
        "progress",
        "snapshot-id",
        "start-time",
        "status",
        "volume-id",
        "volume-size",
    ];

    fn owner(&self) -> AccountId {
        self.owner
    }

    fn visible_to(&self, _catalog: &Catalog, account: AccountId) -> bool {
        self.readable_by(account)
    }

    fn order(&self) -> (TimeMs, String) {
        (self.created_ms, self.id.to_string())
    }

    fn tags(&self) -> &[Tag] {
        &self.tags
    }

    fn values(&self, _catalog: &Catalog, name: &str) -> Option<Vec<String>> {
        match name {
            "description" => text(&self.description),
            "encrypted" => text(false),
            "progress" => text(if self.state == SnapshotState::Completed { "100%" } else { "0%" }),
            "snapshot-id" => text(self.id),
            "start-time" => time(self.created_ms),
            "status" => text(match self.state {
                SnapshotState::Pending => "pending",
                SnapshotState::Completed => "completed",
                SnapshotState::Error => "error",
            }),
            "volume-id" => optional(self.volume),
            "volume-size" => text(gib(self.volume_bytes)),
            _ => None,
        }
    }
}

impl Described for Volume {
    const FILTERS: &'static [&'static str] = &[
        "attachment.delete-on-termination",
        "attachment.device",
        "attachment.instance-id",
        "create-time",
        "size",
        "snapshot-id",
        "status",
        "volume-id",
        "volume-type",
    ];

    fn owner(&self) -> AccountId {
        self.owner
    }

    fn visible_to(&self, _catalog: &Catalog, account: AccountId) -> bool {
        self.owner == account
    }

    fn order(&self) -> (TimeMs, String) {
        (self.created_ms, self.id.to_string())
    }

    fn tags(&self) -> &[Tag] {
        &self.tags
    }

    fn values(&self, _catalog: &Catalog, name: &str) -> Option<Vec<String>> {
        let attachment = self.attachment.as_ref();
        match name {
            "attachment.delete-on-termination" => optional(attachment.map(|at| at.delete_on_termination)),
            "attachment.device" => optional(attachment.map(|at| &at.device_name)),
            "attachment.instance-id" => optional(attachment.map(|at| at.instance_id)),
            "create-time" => time(self.created_ms),
            "size" => text(gib(self.volume_bytes)),
            "snapshot-id" => optional(self.snapshot_id),
            "status" => text(match self.state {
                VolumeState::Available => "available",
                VolumeState::InUse => "in-use",
            }),
            "volume-id" => text(self.id),
            "volume-type" => text(self.volume_type),
            _ => None,
        }
    }
}

impl Described for Instance {
    const FILTERS: &'static [&'static str] = &[
        "block-device-mapping.volume-id",
        "image-id",
        "instance-id",
        "instance-state-name",
        "launch-time",
        "root-device-name",
    ];

    fn owner(&self) -> AccountId {
        self.owner
    }

    fn visible_to(&self, _catalog: &Catalog, account: AccountId) -> bool {
        self.owner == account
    }

    fn order(&self) -> (TimeMs, String) {
        (self.launched_ms, self.id.to_string())
    }

    fn tags(&self) -> &[Tag] {
        &self.tags
    }

    fn values(&self, catalog: &Catalog, name: &str) -> Option<Vec<String>> {
        match name {
            "block-device-mapping.volume-id" => {
                Some(volumes_of(catalog, self.id).iter().map(|volume| volume.id.to_string()).collect())
            }
            "image-id" => text(self.image_id),
            "instance-id" => text(self.id),
            "instance-state-name" => text(match self.state {
                InstanceState::Stopped => "stopped",
                InstanceState::Running => "running",
                InstanceState::Terminated => "terminated",
            }),
            "launch-time" => time(self.launched_ms),
            "root-device-name" => text(&self.root_device_name),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every name in `FILTERS` has its arm in `values`, and no other text has.
    fn check_filters<T: Described>(item: &T, catalog: &Catalog) {
        assert!(T::FILTERS.len() > 5);
        for name in T::FILTERS {
            assert!(item.values(catalog, name).is_some(), "{name}");
        }
        assert!(item.values(catalog, "nonsense").is_none());
    }

    #[test]
    fn every_filter_has_its_values() {
        use crate::model::ids::{ImageId, InstanceId, VolumeId};
        let (owner, catalog) = (AccountId::from_random(1), Catalog::default());
        let instance = Instance {
            id: InstanceId::from_random(1),
            owner,
            image_id: ImageId::from_random(1),
            state: InstanceState::Stopped,
            launched_ms: 0,
            root_device_name: "/dev/xvda".into(),
            path: "/".into(),
            tags: vec![],
        };
        check_filters(&instance, &catalog);
        let volume = Volume {
            id: VolumeId::from_random(1),
            owner,
            volume_bytes: 1,
            volume_type: "gp3".parse().unwrap(),
            snapshot_id: None,
            state: VolumeState::Available,
            created_ms: 0,
            attachment: None,
            path: "/".into(),
            tags: vec![],
        };
        check_filters(&volume, &catalog);
    }
}
