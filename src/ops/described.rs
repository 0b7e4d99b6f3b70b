//! What lists and filters see of each kind of thing. Rules: the filters of EC2's Describe calls.

use crate::model::account::{AccountId, Tag};
use crate::model::catalog::Catalog;
use crate::model::ids::{ImageId, InstanceId, SnapshotId, VolumeId};
use crate::model::image::{BlockDeviceMapping, DeviceTarget, EbsBlockDevice, Image};
use crate::model::instance::{Instance, Volume};
use crate::model::snapshot::Snapshot;
use crate::model::units::TimeMs;
use std::time::{Duration, UNIX_EPOCH};

/// Something that can be listed.
pub(super) trait Described {
    /// The names of its own filters.
    const FILTERS: &'static [&'static str];
    /// The prefix of its ids.
    const PREFIX: &'static str;
    /// How an id of its kind looks, in EC2's words.
    const EXPECTING: &'static str;

    fn owner(&self) -> AccountId;
    fn visible_to(&self, account: AccountId) -> bool;
    fn order(&self) -> (TimeMs, String);
    /// Its tags. They are its owner's: others neither see them nor find it by them.
    fn tags(&self) -> &[Tag];
    /// The values that a filter of this name compares; none if there is no such filter.
    fn values(&self, catalog: &Catalog, name: &str) -> Option<Vec<String>>;
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

fn of_volumes(image: &Image, value: impl Fn(&EbsBlockDevice) -> Option<String>) -> Option<Vec<String>> {
    of_devices(image, |device| match &device.target {
        DeviceTarget::Ebs(ebs) => value(ebs),
        DeviceTarget::Ephemeral(_) => None,
    })
}

impl Described for Image {
    const PREFIX: &'static str = ImageId::PREFIX;
    const EXPECTING: &'static str = ImageId::EXPECTING;
    const FILTERS: &'static [&'static str] = &[
        "architecture",
        "block-device-mapping.delete-on-termination",
        "block-device-mapping.device-name",
        "block-device-mapping.encrypted",
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
        "owner-alias",
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

    fn visible_to(&self, account: AccountId) -> bool {
        Self::visible_to(self, account)
    }

    fn order(&self) -> (TimeMs, String) {
        (self.created_ms, self.id.to_string())
    }

    fn tags(&self) -> &[Tag] {
        &self.tags
    }

    fn values(&self, catalog: &Catalog, name: &str) -> Option<Vec<String>> {
        match name {
            "architecture" => text(self.machine.architecture),
            "block-device-mapping.delete-on-termination" => {
                of_volumes(self, |ebs| Some(ebs.delete_on_termination.to_string()))
            }
            "block-device-mapping.device-name" => of_devices(self, |device| Some(device.device_name.clone())),
            "block-device-mapping.encrypted" => of_volumes(self, |_| Some("false".to_owned())),
            "block-device-mapping.snapshot-id" => of_volumes(self, |ebs| Some(ebs.snapshot_id?.to_string())),
            "block-device-mapping.volume-size" => of_volumes(self, |ebs| Some(gib(ebs.volume_bytes))),
            "block-device-mapping.volume-type" => of_volumes(self, |ebs| Some(ebs.volume_type.to_string())),
            "boot-mode" => optional(self.machine.boot_mode),
            "creation-date" => time(self.created_ms),
            "description" => text(&self.description),
            "ena-support" => text(self.machine.ena_support),
            "image-id" => text(self.id),
            "image-type" => text("machine"),
            "imds-support" => optional(self.machine.imds_support.as_ref()),
            "is-public" => text(self.is_public()),
            "kernel-id" => optional(self.machine.kernel_id.as_ref()),
            "name" => text(&self.name),
            "owner-alias" => optional(catalog.alias_of(self.owner)),
            "platform" => optional(self.machine.platform.as_ref()),
            "product-code" => Some(self.product_codes.clone()),
            "ramdisk-id" => optional(self.machine.ramdisk_id.as_ref()),
            "root-device-name" => text(&self.root_device_name),
            "root-device-type" => text(self.root_device_type()),
            "source-image-id" => optional(self.source.as_ref().map(|source| source.image_id)),
            "source-image-region" => optional(self.source.as_ref().map(|source| &source.region)),
            "source-instance-id" => optional(self.source_instance),
            "state" => text(self.state),
            "tpm-support" => optional(self.machine.tpm_support.as_ref()),
            "virtualization-type" => text(self.machine.virtualization_type),
            _ => None,
        }
    }
}

impl Described for Snapshot {
    const PREFIX: &'static str = SnapshotId::PREFIX;
    const EXPECTING: &'static str = SnapshotId::EXPECTING;
    const FILTERS: &'static [&'static str] = &[
        "description",
        "encrypted",
        "owner-alias",
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

    fn visible_to(&self, account: AccountId) -> bool {
        self.readable_by(account)
    }

    fn order(&self) -> (TimeMs, String) {
        (self.created_ms, self.id.to_string())
    }

    fn tags(&self) -> &[Tag] {
        &self.tags
    }

    fn values(&self, catalog: &Catalog, name: &str) -> Option<Vec<String>> {
        match name {
            "description" => text(&self.description),
            "encrypted" => text(false),
            "owner-alias" => optional(catalog.alias_of(self.owner)),
            "progress" => text(self.progress()),
            "snapshot-id" => text(self.id),
            "start-time" => time(self.created_ms),
            "status" => text(self.state),
            "volume-id" => optional(self.volume),
            "volume-size" => text(gib(self.volume_bytes)),
            _ => None,
        }
    }
}

impl Described for Volume {
    const PREFIX: &'static str = VolumeId::PREFIX;
    const EXPECTING: &'static str = VolumeId::EXPECTING;
    const FILTERS: &'static [&'static str] = &[
        "attachment.delete-on-termination",
        "attachment.device",
        "attachment.instance-id",
        "attachment.attach-time",
        "attachment.status",
        "create-time",
        "encrypted",
        "size",
        "snapshot-id",
        "status",
        "volume-id",
        "volume-type",
    ];

    fn owner(&self) -> AccountId {
        self.owner
    }

    fn visible_to(&self, account: AccountId) -> bool {
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
            "attachment.attach-time" => attachment.map_or(Some(vec![]), |at| time(at.attached_ms)),
            "attachment.status" => optional(attachment.map(|_| "attached")),
            "create-time" => time(self.created_ms),
            "encrypted" => text(false),
            "size" => text(gib(self.volume_bytes)),
            "snapshot-id" => optional(self.snapshot_id),
            "status" => text(self.state()),
            "volume-id" => text(self.id),
            "volume-type" => text(self.volume_type),
            _ => None,
        }
    }
}

impl Described for Instance {
    const PREFIX: &'static str = InstanceId::PREFIX;
    const EXPECTING: &'static str = InstanceId::EXPECTING;
    const FILTERS: &'static [&'static str] = &[
        "architecture",
        "block-device-mapping.device-name",
        "block-device-mapping.volume-id",
        "client-token",
        "image-id",
        "instance-id",
        "instance-state-name",
        "launch-index",
        "launch-time",
        "platform",
        "product-code",
        "reservation-id",
        "root-device-name",
        "root-device-type",
    ];

    fn owner(&self) -> AccountId {
        self.owner
    }

    fn visible_to(&self, account: AccountId) -> bool {
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
            "architecture" => text(self.machine.architecture),
            "block-device-mapping.device-name" => {
                let volumes = catalog.volumes_of(self.id);
                let attached = volumes.iter().filter_map(|volume| volume.attachment.as_ref());
                Some(attached.map(|at| at.device_name.clone()).collect())
            }
            "block-device-mapping.volume-id" => {
                Some(catalog.volumes_of(self.id).iter().map(|volume| volume.id.to_string()).collect())
            }
            "client-token" => optional(self.client_token.as_ref().map(|token| &token.token)),
            "image-id" => text(self.image_id),
            "instance-id" => text(self.id),
            "instance-state-name" => text(self.state),
            "launch-index" => text(self.launch_index),
            "launch-time" => time(self.launched_ms),
            "platform" => optional(self.machine.platform.as_ref()),
            "product-code" => Some(self.product_codes.clone()),
            "reservation-id" => text(self.reservation_id),
            "root-device-name" => text(&self.root_device_name),
            "root-device-type" => text(self.root_device_type()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::words::VolumeType;

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
        let volume = Volume {
            id: VolumeId::from_random(1),
            owner: AccountId::from_random(1),
            volume_bytes: 1,
            volume_type: VolumeType::Gp3,
            iops: None,
            snapshot_id: None,
            created_ms: 0,
            attachment: None,
            path: "/".into(),
            tags: vec![],
            client_token: None,
        };
        check_filters(&volume, &Catalog::default());
    }
}
