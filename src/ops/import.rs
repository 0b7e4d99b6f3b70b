//! Import: disks become snapshots and a registered image, in one atomic step.

use super::context::Context;
use super::devices::{DeviceSpec, Purpose, check_count, check_specs, device_name, lay_over};
use super::encode::Compression;
use super::error::{Code, OpsError};
use super::find::{backing, check_contents, check_manifests, check_packs};
use super::gc::despite_collection;
use super::ingest::{Ingested, ingest_like};
use super::register::{ImageOptions, build, check, check_placeable};
use super::snapshot::{SnapshotOptions, create, describe};
use crate::disk::DiskRead;
use crate::disk::ova::Ova;
use crate::model::ids::{ImageId, SnapshotId, TemplateId};
use crate::model::image::{BlockDeviceMapping, Image, is_same_device};
use crate::model::op::Op;
use crate::model::snapshot::{Snapshot, Template};
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

/// Imports disks as an image backed by EBS. Nothing of it exists before all of it does. `others` are its devices
/// without content: empty volumes and ephemeral disks.
pub fn import(
    region: &Region,
    disks: &[ImportDisk],
    others: &[DeviceSpec],
    options: &ImageOptions,
    compression: Compression,
    context: &Context<'_>,
) -> Result<Imported, OpsError> {
    // Everything that can be refused is refused before the first byte is read.
    let placeholder = |number: usize| SnapshotId::from_random(number as u64);
    let with = |ids: &mut dyn Iterator<Item = SnapshotId>| {
        let content = disks.iter().zip(ids).map(|(disk, id)| DeviceSpec::of_snapshot(&disk.device_name, id));
        content.chain(others.iter().cloned()).collect::<Vec<_>>()
    };
    let specs = with(&mut (0..disks.len()).map(placeholder));
    check_specs(&specs)?;
    if others.iter().any(|other| other.snapshot_id.is_some()) {
        let why = "a device beside the imported disks is an empty volume or an ephemeral disk";
        return Err(OpsError::rule(Code::BlockDeviceMapping, why));
    }
    let size_of = |id| {
        let number = (0..disks.len()).find(|number| placeholder(*number) == id);
        number.map(|number| disks[number].disk.len_bytes()).ok_or_else(|| OpsError::snapshot_not_found(id))
    };
    lay_over(&[], &specs, &options.root_device_name, Purpose::New, size_of)?;
    check_new(region, options, context)?;
    despite_collection(|| store(region, disks, &with, options, compression, context))
}

/// The devices of an image whose disks become snapshots with these ids.
type WithIds<'a> = &'a dyn Fn(&mut dyn Iterator<Item = SnapshotId>) -> Vec<DeviceSpec>;

fn store(
    region: &Region,
    disks: &[ImportDisk],
    with: WithIds<'_>,
    options: &ImageOptions,
    compression: Compression,
    context: &Context<'_>,
) -> Result<Imported, OpsError> {
    let mut session = region.begin_unread(context.account)?;
    context.progress.begin("import", disks.iter().map(|disk| disk.disk.len_bytes()).sum());
    let (mut snapshots, mut ingested) = (Vec::new(), Vec::new());
    for disk in disks {
        let volume = ingest_like(&mut session, &*disk.disk, None, &compression, context)?;
        let description = format!("Imported as {} of {}", disk.device_name, options.name);
        let said = SnapshotOptions {
            description: description.chars().take(255).collect(),
            tags: options.tags.clone(),
            ..SnapshotOptions::default()
        };
        snapshots.push(describe(region, &volume, &said, context)?);
        ingested.push(volume);
    }
    let specs = with(&mut snapshots.iter().map(|snapshot| snapshot.id));
    let size_of = |id| {
        let snapshot = snapshots.iter().find(|snapshot| snapshot.id == id);
        snapshot.map(|snapshot| snapshot.volume_bytes).ok_or_else(|| OpsError::snapshot_not_found(id))
    };
    let devices = lay_over(&[], &specs, &options.root_device_name, Purpose::New, size_of)?;
    let image = build(ImageId::from_random(region.random_id()?), options, devices, None, context);
    context.commit(region, |catalog| {
        check_placeable(catalog, options, context.account)?;
        check_manifests(catalog, &session)?;
        let created = snapshots.iter().zip(&ingested).map(|(s, volume)| create(catalog, s, volume));
        let mut ops = created.collect::<Result<Vec<Op>, _>>()?;
        ops.push(Op::RegisterImage(Box::new(image.clone())));
        Ok((ops, ()))
    })?;
    Ok(Imported { image, snapshots, ingested })
}

/// Imports a whole machine as an image: its disks are devices by the names that imgstore gave them when it wrote
/// the machine, if the first is the image's root device, else by the letters after that. What the archive has
/// checksums of is compared with them before anything is stored.
pub fn import_ova(
    region: &Region,
    ova: Ova,
    options: &ImageOptions,
    compression: Compression,
    context: &Context<'_>,
) -> Result<Imported, OpsError> {
    check(options)?;
    check_placeable(&region.catalog()?, options, context.account)?;
    if !context.dry_run {
        context.progress.begin("check", ova.checked_bytes());
        ova.check(|bytes| {
            context.progress.advance(bytes);
            context.check_cancelled()
        })?;
    }
    let root = &options.root_device_name;
    let are_named = ova.disks.first().and_then(|disk| disk.device_name.as_ref()) == Some(root);
    let (mut disks, mut others) = (Vec::new(), Vec::new());
    for (number, disk) in ova.disks.into_iter().enumerate() {
        let name = disk.device_name.filter(|_| are_named).or_else(|| device_name(root, number));
        let device_name = name.ok_or_else(|| {
            let why = format!("no device name is left for disk {} after {root}", number + 1);
            OpsError::rule(Code::BlockDeviceMapping, why)
        })?;
        match disk.content {
            Some(disk) => disks.push(ImportDisk { device_name, disk }),
            None => others.push(DeviceSpec {
                device_name,
                volume_bytes: Some(disk.volume_bytes),
                ..DeviceSpec::default()
            }),
        }
    }
    if disks.first().is_none_or(|disk| !is_same_device(&disk.device_name, root)) {
        let why = "the first disk of the machine, which it boots from, is empty";
        return Err(OpsError::rule(Code::BlockDeviceMapping, why));
    }
    import(region, &disks, &others, options, compression, context)
}

/// Imports a disk as an instance-store-backed image: its content becomes a template, not a snapshot.
/// `devices` are its other devices: ephemeral disks and empty volumes.
pub fn import_template(
    region: &Region,
    disk: &dyn DiskRead,
    devices: &[DeviceSpec],
    options: &ImageOptions,
    compression: Compression,
    context: &Context<'_>,
) -> Result<Imported, OpsError> {
    check_specs(devices)?;
    let root = &options.root_device_name;
    if devices.iter().any(|device| is_same_device(&device.device_name, root)) {
        let why = format!("the root device {root} has the template as its content");
        return Err(OpsError::rule(Code::BlockDeviceMapping, why));
    }
    let catalog = region.catalog()?;
    check_contents(&catalog, context.account, devices)?;
    let size_of = |id| backing(&catalog, id).map(|snapshot| snapshot.volume_bytes);
    let mapping = lay_over(&[], devices, root, Purpose::New, size_of)?;
    check_count(1 + mapping.len())?;
    check_new(region, options, context)?;
    despite_collection(|| store_template(region, disk, devices, &mapping, options, compression, context))
}

fn store_template(
    region: &Region,
    disk: &dyn DiskRead,
    devices: &[DeviceSpec],
    mapping: &[BlockDeviceMapping],
    options: &ImageOptions,
    compression: Compression,
    context: &Context<'_>,
) -> Result<Imported, OpsError> {
    let mut session = region.begin_unread(context.account)?;
    context.progress.begin("import", disk.len_bytes());
    let ingested = ingest_like(&mut session, disk, None, &compression, context)?;
    let template = Template {
        id: TemplateId::from_random(region.random_id()?),
        owner: context.account,
        volume_bytes: ingested.volume_bytes,
        data_bytes: ingested.data_bytes,
        created_ms: context.now_ms,
        manifest: ingested.manifest.clone(),
    };
    let id = ImageId::from_random(region.random_id()?);
    let image = build(id, options, mapping.to_vec(), Some(template.id), context);
    context.commit(region, |catalog| {
        check_placeable(catalog, options, context.account)?;
        check_contents(catalog, context.account, devices)?;
        check_manifests(catalog, &session)?;
        let packs = check_packs(catalog, &ingested.packs)?;
        let template = Op::CreateTemplate { template: Box::new(template.clone()), packs };
        Ok((vec![template, Op::RegisterImage(Box::new(image.clone()))], ()))
    })?;
    Ok(Imported { image, snapshots: Vec::new(), ingested: vec![ingested] })
}

/// Refuses what can be refused before the first byte is read.
fn check_new(region: &Region, options: &ImageOptions, context: &Context<'_>) -> Result<(), OpsError> {
    check(options)?;
    check_placeable(&region.catalog()?, options, context.account)?;
    context.end_dry_run_in(region)
}
