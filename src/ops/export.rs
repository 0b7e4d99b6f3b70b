//! Export: a snapshot, or a device of an image, becomes a disk file, a device's content, or a stream.

use super::context::Context;
use super::error::{Code, OpsError};
use super::find::{AnyId, image as find_image, snapshot as find_snapshot};
use super::restore::restore;
use crate::disk::DiskWrite;
use crate::model::blockmap::BlockMap;
use crate::model::catalog::Catalog;
use crate::model::image::{DeviceTarget, Image};
use crate::model::snapshot::Snapshot;
use crate::region::Region;

/// The snapshot that an id, and for an image a device, stands for.
pub fn select<'a>(
    catalog: &'a Catalog,
    id: AnyId,
    device: Option<&str>,
    context: &Context<'_>,
) -> Result<&'a Snapshot, OpsError> {
    match id {
        AnyId::Snapshot(id) => find_snapshot(catalog, context.account, id),
        AnyId::Image(id) => {
            let image = find_image(catalog, context.account, id)?;
            // Who may launch an image may have its volumes' content: no snapshot permission is needed.
            let snapshot = device_snapshot(image, device)?;
            catalog.snapshots.get(&snapshot).ok_or_else(|| OpsError::snapshot_not_found(snapshot))
        }
        AnyId::Volume(_) | AnyId::Instance(_) => {
            Err(OpsError::rule(Code::InvalidParameterValue, "export takes an image or a snapshot"))
        }
    }
}

fn device_snapshot(image: &Image, device: Option<&str>) -> Result<crate::model::ids::SnapshotId, OpsError> {
    let name = device.unwrap_or(&image.root_device_name);
    let found = image.devices.iter().find(|mapping| mapping.device_name == name);
    match found.map(|mapping| &mapping.target) {
        Some(DeviceTarget::Ebs(ebs)) if let Some(id) = ebs.snapshot_id => Ok(id),
        Some(_) => {
            Err(OpsError::rule(Code::InvalidParameterValue, format!("{name} of {} has no content", image.id)))
        }
        None => {
            let names: Vec<&str> = image.devices.iter().map(|mapping| mapping.device_name.as_str()).collect();
            let why = format!("{} has no device {name}; it has {}", image.id, names.join(", "));
            Err(OpsError::rule(Code::InvalidParameterValue, why))
        }
    }
}

/// A snapshot's block map, for exporting.
pub fn load(region: &Region, snapshot: &Snapshot) -> Result<BlockMap, OpsError> {
    Ok(region.load_map(&snapshot.manifest)?)
}

/// Writes a snapshot to a target and finishes it.
pub fn export(
    region: &Region,
    snapshot: &Snapshot,
    map: &BlockMap,
    mut target: Box<dyn DiskWrite>,
    context: &Context<'_>,
) -> Result<(), OpsError> {
    context.progress.begin("export", map.volume_bytes());
    restore(region, snapshot.id, map, &mut *target, context)?;
    context.check_cancelled()?;
    Ok(target.finish()?)
}
