//! The JSON documents of the model (docs/CLI.md, "JSON").

use super::text::time_millis;
use imgstore::model::account::{Permission, Tag};
use imgstore::model::image::{BlockDeviceMapping, DeviceTarget, Image};
use imgstore::model::instance::{Instance, Volume};
use imgstore::model::snapshot::Snapshot;
use serde_json::{Value, json};

fn tags(tags: &[Tag]) -> Value {
    tags.iter().map(|tag| json!({ "key": tag.key, "value": tag.value })).collect()
}

fn permissions(permissions: &[Permission]) -> Value {
    let one = |permission: &Permission| match permission {
        Permission::All => json!({ "group": "all" }),
        Permission::Account(id) => json!({ "account_id": id }),
    };
    permissions.iter().map(one).collect()
}

/// A snapshot.
pub fn snapshot(snapshot: &Snapshot) -> Value {
    json!({
        "snapshot_id": snapshot.id,
        "owner_id": snapshot.owner,
        "description": snapshot.description,
        "state": snapshot.state,
        "volume_bytes": snapshot.volume_bytes,
        "data_bytes": snapshot.data_bytes,
        "chunks": snapshot.manifest.chunks,
        "created": time_millis(snapshot.created_ms),
        "tags": tags(&snapshot.tags),
        "parent_snapshot_id": snapshot.parent,
        "source_region": snapshot.source.as_ref().map(|source| &source.region),
        "source_snapshot_id": snapshot.source.as_ref().map(|source| source.snapshot_id),
        "create_volume_permissions": permissions(&snapshot.create_volume_permissions),
    })
}

fn device(mapping: &BlockDeviceMapping) -> Value {
    match &mapping.target {
        DeviceTarget::Ebs(ebs) => json!({
            "device_name": mapping.device_name,
            "snapshot_id": ebs.snapshot_id,
            "volume_bytes": ebs.volume_bytes,
            "volume_type": ebs.volume_type,
            "delete_on_termination": ebs.delete_on_termination,
        }),
        DeviceTarget::Ephemeral(number) => {
            json!({ "device_name": mapping.device_name, "virtual_name": format!("ephemeral{number}") })
        }
    }
}

/// An image.
pub fn image(image: &Image) -> Value {
    json!({
        "image_id": image.id,
        "name": image.name,
        "description": image.description,
        "owner_id": image.owner,
        "state": image.state,
        "architecture": image.architecture,
        "virtualization_type": image.virtualization_type,
        "boot_mode": image.boot_mode,
        "root_device_name": image.root_device_name,
        "root_device_type": image.root_device_type,
        "devices": image.devices.iter().map(device).collect::<Value>(),
        "launch_permissions": permissions(&image.launch_permissions),
        "created": time_millis(image.created_ms),
        "deprecation_time": image.deprecation_ms.map(time_millis),
        "deregistration_protected": image.deregistration_protected,
        "tags": tags(&image.tags),
        "source_region": image.source.as_ref().map(|source| &source.region),
        "source_image_id": image.source.as_ref().map(|source| source.image_id),
    })
}

/// A volume.
pub fn volume(volume: &Volume) -> Value {
    let attachment = volume.attachment.as_ref();
    json!({
        "volume_id": volume.id,
        "owner_id": volume.owner,
        "volume_bytes": volume.volume_bytes,
        "volume_type": volume.volume_type,
        "snapshot_id": volume.snapshot_id,
        "state": volume.state,
        "created": time_millis(volume.created_ms),
        "instance_id": attachment.map(|at| at.instance_id),
        "device_name": attachment.map(|at| &at.device_name),
        "delete_on_termination": attachment.map(|at| at.delete_on_termination),
        "path": volume.path,
        "tags": tags(&volume.tags),
    })
}

/// An instance with its volumes.
pub fn instance<'a>(instance: &Instance, volumes: impl IntoIterator<Item = &'a Volume>) -> Value {
    json!({
        "instance_id": instance.id,
        "owner_id": instance.owner,
        "image_id": instance.image_id,
        "state": instance.state,
        "launched": time_millis(instance.launched_ms),
        "root_device_name": instance.root_device_name,
        "path": instance.path,
        "tags": tags(&instance.tags),
        "volumes": volumes.into_iter().map(self::volume).collect::<Value>(),
    })
}
