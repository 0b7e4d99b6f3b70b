//! Export: a snapshot, or a device of an image, becomes a disk file, a device's content, or a stream.

use super::context::Context;
use super::error::{Code, OpsError};
use super::find::{
    AnyId, content, image as find_image, snapshot as find_snapshot, template as find_template,
};
use super::gaps::Gaps;
use super::restore::{restore, unless_deleted, zero};
use crate::disk::DiskWrite;
use crate::model::account::AccountId;
use crate::model::blockmap::BlockMap;
use crate::model::catalog::{Catalog, Root};
use crate::model::image::{DeviceTarget, Image, is_same_device};
use crate::model::units::BLOCK_BYTES;
use crate::region::Region;

/// The content that an id, and for an image a device, stands for.
pub fn select<'a>(
    catalog: &'a Catalog,
    id: AnyId,
    device: Option<&str>,
    context: &Context<'_>,
) -> Result<Root<'a>, OpsError> {
    match id {
        AnyId::Snapshot(id) => Ok(find_snapshot(catalog, context.account, id)?.into()),
        // Who may launch an image may have its content: no snapshot permission is needed.
        AnyId::Image(id) => {
            of_device(catalog, find_image(catalog, context.account, id)?, device, context.account)
        }
        AnyId::Volume(_) | AnyId::Instance(_) => Err(OpsError::rule(
            Code::InvalidParameterValue,
            "an image or a snapshot is needed: ami-… or snap-…",
        )),
    }
}

fn of_device<'a>(
    catalog: &'a Catalog,
    image: &Image,
    device: Option<&str>,
    account: AccountId,
) -> Result<Root<'a>, OpsError> {
    let name = device.unwrap_or(&image.root_device_name);
    if is_same_device(name, &image.root_device_name)
        && let Some(template) = find_template(catalog, image)
    {
        return Ok(template.into());
    }
    let found = image.devices.iter().find(|mapping| is_same_device(&mapping.device_name, name));
    match found.map(|mapping| &mapping.target) {
        Some(DeviceTarget::Ebs(ebs)) if let Some(id) = ebs.snapshot_id => {
            Ok(content(catalog, image, id, account)?.into())
        }
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

/// How long the volume is that the content of [`select`] stands on: a device may be larger than its snapshot.
pub fn volume_bytes(catalog: &Catalog, id: AnyId, device: Option<&str>, root: &Root<'_>) -> u64 {
    let AnyId::Image(id) = id else { return root.volume_bytes };
    let Some(image) = catalog.images.get(&id) else { return root.volume_bytes };
    let name = device.unwrap_or(&image.root_device_name);
    let found = image.devices.iter().find(|mapping| is_same_device(&mapping.device_name, name));
    match found.map(|mapping| &mapping.target) {
        Some(DeviceTarget::Ebs(ebs)) => ebs.volume_bytes.max(root.volume_bytes),
        _ => root.volume_bytes,
    }
}

/// Its block map, for exporting.
pub fn load(region: &Region, root: &Root<'_>) -> Result<BlockMap, OpsError> {
    region.load_root(root).map_err(|error| unless_deleted(region, root.id, error.into()))
}

/// Writes content to a target of `volume_bytes`, which may be more than its own, and finishes it. With `gaps` what is lost
/// becomes zeros.
pub fn export(
    region: &Region,
    root: &Root<'_>,
    map: &BlockMap,
    volume_bytes: u64,
    gaps: Option<&Gaps>,
    mut target: Box<dyn DiskWrite + '_>,
    context: &Context<'_>,
) -> Result<(), OpsError> {
    context.end_dry_run()?;
    context.progress.begin("export", volume_bytes);
    restore(region, root.id, map, gaps, &mut *target, context)?;
    // Devices zero whole sectors at once.
    let end = map.volume_bytes();
    let aligned = end.next_multiple_of(BLOCK_BYTES as u64).min(volume_bytes);
    zero(&mut *target, end, aligned.saturating_sub(end), context)?;
    zero(&mut *target, aligned, volume_bytes.saturating_sub(aligned), context)?;
    context.check_cancelled()?;
    Ok(target.finish()?)
}
