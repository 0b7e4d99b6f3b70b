//! The JSON documents of the model (docs/CLI.md, "JSON").

use super::text::time_millis;
use imgstore::model::account::{AccountId, Permission, RetentionRule, Tag};
use imgstore::model::catalog::Catalog;
use imgstore::model::image::{BlockDeviceMapping, DeregistrationProtection, DeviceTarget, Image, Machine};
use imgstore::model::instance::{Instance, LocalDisk, Volume};
use imgstore::model::snapshot::Snapshot;
use imgstore::model::units::TimeMs;
use imgstore::ops::find;
use imgstore::ops::lineage::{Ancestor, Relation};
use imgstore::region::Region;
use serde_json::{Value, json};

fn tags(tags: &[Tag]) -> Value {
    tags.iter().map(|tag| json!({ "key": tag.key, "value": tag.value })).collect()
}

/// What others than the owner see of tags and permissions.
fn nothing() -> Value {
    Value::Array(Vec::new())
}

fn permissions(permissions: &[Permission]) -> Value {
    let one = |permission: &Permission| match permission {
        Permission::All => json!({ "group": "all" }),
        Permission::Account(id) => json!({ "account_id": id }),
    };
    permissions.iter().map(one).collect()
}

/// A snapshot as `caller` sees it; `catalog` knows its owner's alias. Tags, permissions and what it was made of are its owner's.
pub fn snapshot(catalog: &Catalog, caller: AccountId, snapshot: &Snapshot) -> Value {
    let is_own = snapshot.owner == caller;
    json!({
        "snapshot_id": snapshot.id,
        "owner_id": snapshot.owner,
        "owner_alias": catalog.alias_of(snapshot.owner),
        "description": snapshot.description,
        "state": snapshot.state,
        "progress": snapshot.progress(),
        "encrypted": false,
        "volume_bytes": snapshot.volume_bytes,
        "data_bytes": snapshot.data_bytes,
        "chunks": snapshot.manifest.chunks,
        "created": time_millis(snapshot.created_ms),
        "tags": if is_own { tags(&snapshot.tags) } else { nothing() },
        "volume_id": snapshot.volume.filter(|_| is_own),
        "parent_snapshot_id": snapshot.parent,
        "source_region": snapshot.source.as_ref().map(|source| &source.region),
        "source_snapshot_id": snapshot.source.as_ref().map(|source| source.snapshot_id),
        "create_volume_permissions":
            if is_own { permissions(&snapshot.create_volume_permissions) } else { nothing() },
    })
}

fn device(mapping: &BlockDeviceMapping) -> Value {
    match &mapping.target {
        DeviceTarget::Ebs(ebs) => json!({
            "device_name": mapping.device_name,
            "snapshot_id": ebs.snapshot_id,
            "volume_bytes": ebs.volume_bytes,
            "volume_type": ebs.volume_type,
            "iops": ebs.iops,
            "encrypted": false,
            "delete_on_termination": ebs.delete_on_termination,
        }),
        DeviceTarget::Ephemeral(number) => {
            json!({ "device_name": mapping.device_name, "virtual_name": format!("ephemeral{number}") })
        }
    }
}

fn machine(document: &mut Value, machine: &Machine) {
    document["architecture"] = json!(machine.architecture);
    document["platform"] = json!(machine.platform);
    document["virtualization_type"] = json!(machine.virtualization_type);
    document["boot_mode"] = json!(machine.boot_mode);
    document["tpm_support"] = json!(machine.tpm_support);
    document["ena_support"] = json!(machine.ena_support);
    document["imds_support"] = json!(machine.imds_support);
    document["kernel_id"] = json!(machine.kernel_id);
    document["ramdisk_id"] = json!(machine.ramdisk_id);
}

/// EC2's words for the first three.
fn protection(protection: DeregistrationProtection, now_ms: TimeMs) -> String {
    match protection {
        _ if !protection.holds_at(now_ms) => "disabled".into(),
        DeregistrationProtection::Disabled => "disabled".into(),
        DeregistrationProtection::Enabled => "enabled-without-cooldown".into(),
        DeregistrationProtection::EnabledWithCooldown => "enabled-with-cooldown".into(),
        DeregistrationProtection::CoolingDown { until_ms } => {
            format!("disabling after cooldown on {}", time_millis(until_ms))
        }
    }
}

/// An image as `caller` sees it at a time; `catalog` knows its owner's alias and its template's size. Tags, permissions
/// and what it was made of are its owner's.
pub fn image(catalog: &Catalog, caller: AccountId, now_ms: TimeMs, image: &Image) -> Value {
    let is_own = image.owner == caller;
    let mut document = json!({
        "image_id": image.id,
        "name": image.name,
        "description": image.description,
        "owner_id": image.owner,
        "owner_alias": catalog.alias_of(image.owner),
        "state": image.state,
        "public": image.is_public(),
        "root_device_name": image.root_device_name,
        "root_device_type": image.root_device_type(),
        "template_id": image.template,
        "template_bytes": find::template(catalog, image).map(|template| template.volume_bytes),
        "devices": image.devices.iter().map(device).collect::<Value>(),
        "launch_permissions": if is_own { permissions(&image.launch_permissions) } else { nothing() },
        "product_codes": image.product_codes,
        "created": time_millis(image.created_ms),
        "deprecation_time": image.deprecation_ms.map(time_millis),
        "deregistration_protection": protection(image.deregistration_protection, now_ms),
        "tags": if is_own { tags(&image.tags) } else { nothing() },
        "source_region": image.source.as_ref().map(|source| &source.region),
        "source_image_id": image.source.as_ref().map(|source| source.image_id),
        "source_instance_id": image.source_instance.filter(|_| is_own),
        "predecessor_image_id": image.predecessor,
    });
    machine(&mut document, &image.machine);
    document
}

/// The images that an image comes from, the nearest first.
pub fn ancestry(ancestors: &[Ancestor]) -> Value {
    let one = |ancestor: &Ancestor| {
        let (relation, from) = match &ancestor.relation {
            Relation::Predecessor => ("predecessor", Value::Null),
            Relation::CopiedFrom { region, .. } => ("copied from", json!(region)),
            Relation::MadeOf(instance) => ("image of the instance", json!(instance)),
        };
        json!({ "image_id": ancestor.id, "name": ancestor.name, "relation": relation, "through": from })
    };
    ancestors.iter().map(one).collect()
}

/// A retention rule.
pub fn rule(rule: &RetentionRule) -> Value {
    json!({ "rule_id": rule.id, "resource": rule.resource, "days": rule.days, "tags": tags(&rule.tags) })
}

/// Where a disk or folder is now that is on record.
pub fn place(region: &Region, recorded: &str) -> String {
    region.path_of_record(recorded).map_or_else(|| recorded.into(), |path| path.display().to_string())
}

/// A volume.
pub fn volume(region: &Region, volume: &Volume) -> Value {
    let attachment = volume.attachment.as_ref();
    json!({
        "volume_id": volume.id,
        "owner_id": volume.owner,
        "volume_bytes": volume.volume_bytes,
        "volume_type": volume.volume_type,
        "iops": volume.iops,
        "encrypted": false,
        "snapshot_id": volume.snapshot_id,
        "state": volume.state(),
        "created": time_millis(volume.created_ms),
        "instance_id": attachment.map(|at| at.instance_id),
        "device_name": attachment.map(|at| &at.device_name),
        "attached": attachment.map(|at| time_millis(at.attached_ms)),
        "delete_on_termination": attachment.map(|at| at.delete_on_termination),
        "path": place(region, &volume.path),
        "tags": tags(&volume.tags),
    })
}

fn local_disk(region: &Region, instance: &Instance, disk: &LocalDisk) -> Value {
    json!({
        "device_name": disk.device_name,
        "volume_bytes": disk.volume_bytes,
        "virtual_name": disk.ephemeral.map(|number| format!("ephemeral{number}")),
        "template_id": disk.template_id,
        "path": instance.is_live().then(|| place(region, &disk.path)),
    })
}

/// An instance with its volumes.
pub fn instance<'a>(
    region: &Region,
    instance: &Instance,
    volumes: impl IntoIterator<Item = &'a Volume>,
) -> Value {
    let disks = instance.local_disks.iter();
    let mut document = json!({
        "instance_id": instance.id,
        "owner_id": instance.owner,
        "image_id": instance.image_id,
        "reservation_id": instance.reservation_id,
        "launch_index": instance.launch_index,
        "client_token": instance.client_token.as_ref().map(|token| &token.token),
        "state": instance.state,
        "launched": time_millis(instance.launched_ms),
        "terminated": instance.terminated_ms.map(time_millis),
        "root_device_name": instance.root_device_name,
        "root_device_type": instance.root_device_type(),
        "product_codes": instance.product_codes,
        "path": instance.is_live().then(|| place(region, &instance.path)),
        "tags": tags(&instance.tags),
        "local_disks": disks.map(|disk| local_disk(region, instance, disk)).collect::<Value>(),
        "volumes": volumes.into_iter().map(|volume| self::volume(region, volume)).collect::<Value>(),
    });
    machine(&mut document, &instance.machine);
    document
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cooldown_is_told_of_until_it_is_over() {
        let cooling = DeregistrationProtection::CoolingDown { until_ms: 1_000 };
        assert_eq!(protection(cooling, 999), "disabling after cooldown on 1970-01-01T00:00:01.000Z");
        assert_eq!(protection(cooling, 1_000), "disabled");
        assert_eq!(protection(DeregistrationProtection::EnabledWithCooldown, 0), "enabled-with-cooldown");
    }
}
