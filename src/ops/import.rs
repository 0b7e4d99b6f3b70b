//! Import: disks become snapshots and a registered image, in one atomic step.

use super::context::Context;
use super::error::OpsError;
use super::ingest::{Ingested, ingest};
use super::register::{DeviceSpec, ImageOptions, build, check, check_name_free};
use super::snapshot::{SnapshotOptions, create, describe};
use crate::disk::DiskRead;
use crate::model::ids::{ImageId, SnapshotId};
use crate::model::image::{Image, VolumeType};
use crate::model::op::Op;
use crate::model::snapshot::Snapshot;
use crate::region::Region;

/// A disk to import and the device that it shall be.
pub struct ImportDisk {
    /// The device's name in the guest.
    pub device_name: String,
    /// The disk.
    pub disk: Box<dyn DiskRead>,
}

/// What importing has given.
#[derive(Debug, Clone)]
pub struct Imported {
    /// The image.
    pub image: Image,
    /// Its snapshots, in the order of the disks.
    pub snapshots: Vec<Snapshot>,
    /// What bringing each disk in has given.
    pub ingested: Vec<Ingested>,
}

/// Imports disks as an image. Nothing of it exists before all of it does.
pub fn import(
    region: &Region,
    disks: &[ImportDisk],
    options: &ImageOptions,
    zstd_level: Option<i32>,
    context: &Context<'_>,
) -> Result<Imported, OpsError> {
    let spec = |disk: &ImportDisk, snapshot_id| DeviceSpec {
        device_name: disk.device_name.clone(),
        snapshot_id: Some(snapshot_id),
        volume_bytes: None,
        volume_type: VolumeType::Gp3,
        delete_on_termination: true,
    };
    // Everything that can be refused is refused before the first byte is read.
    let placeholder = SnapshotId::from_random(0);
    let planned: Vec<_> = disks.iter().map(|disk| spec(disk, placeholder)).collect();
    check(options, &planned)?;
    let id = ImageId::from_random(region.random_id()?);
    let planned = build(id, options, &planned, context, |_| Ok(1))?;
    check_name_free(&region.catalog()?, &planned)?;

    let mut session = region.begin(context.account)?;
    context.progress.begin("import", disks.iter().map(|disk| disk.disk.len_bytes()).sum());
    let level = zstd_level.unwrap_or(i32::from(region.header().zstd_level));
    let (mut snapshots, mut ingested) = (Vec::new(), Vec::new());
    for disk in disks {
        let volume = ingest(&mut session, &*disk.disk, level, context)?;
        let description = format!("Imported as {} of {}", disk.device_name, options.name);
        let said = SnapshotOptions {
            description: description.chars().take(255).collect(),
            tags: options.tags.clone(),
            ..SnapshotOptions::default()
        };
        snapshots.push(describe(region, &volume, &said, context)?);
        ingested.push(volume);
    }
    let devices: Vec<_> =
        disks.iter().zip(&snapshots).map(|(disk, snapshot)| spec(disk, snapshot.id)).collect();
    let size_of = |id| {
        let snapshot = snapshots.iter().find(|snapshot| snapshot.id == id);
        snapshot.map(|snapshot| snapshot.volume_bytes).ok_or_else(|| OpsError::snapshot_not_found(id))
    };
    let mut image = build(id, options, &devices, context, size_of)?;
    image.created_ms = region.now_ms();
    region.commit::<_, OpsError>(context.account, |catalog| {
        check_name_free(catalog, &image)?;
        let mut ops: Vec<Op> = snapshots.iter().zip(&ingested).map(|(s, volume)| create(s, volume)).collect();
        ops.push(Op::RegisterImage(Box::new(image.clone())));
        Ok((ops, ()))
    })?;
    Ok(Imported { image, snapshots, ingested })
}
