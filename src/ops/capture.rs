//! Snapshots of volumes as they are now, all of an instance in one record; and an image of an instance.
//! Rules: EC2's CreateSnapshots and CreateImage.

use super::context::Context;
use super::devices::{DeviceSpec, Purpose, check_specs, lay_over};
use super::encode::Compression;
use super::error::{Code, OpsError};
use super::find::{
    backing, check_contents, check_description, check_manifests, check_tags, instance as find_instance,
    volume as find_volume,
};
use super::gc::despite_collection;
use super::ingest::{Ingested, ingest_like};
use super::instance::check_has_root;
use super::register::{ImageOptions, build, check, check_name_free};
use super::snapshot::{SnapshotOptions, create, describe};
use crate::disk::open::open_raw;
use crate::disk::{DiskError, DiskRead};
use crate::model::account::Tag;
use crate::model::catalog::Catalog;
use crate::model::ids::{ImageId, InstanceId, SnapshotId, VolumeId};
use crate::model::image::{
    BlockDeviceMapping, DeviceTarget, EbsBlockDevice, Image, ImageSource, is_same_device,
};
use crate::model::instance::{Instance, Volume};
use crate::model::op::Op;
use crate::model::snapshot::Snapshot;
use crate::model::words::{InstanceState, RootDeviceType};
use crate::region::Region;
use crate::region::session::Session;

/// What is snapshotted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CaptureWhat {
    /// A volume.
    Volume(VolumeId),
    /// All volumes of an instance.
    Instance(InstanceId),
}

/// What is said of the snapshots.
#[derive(Debug, Clone, Default)]
pub struct CaptureOptions {
    /// What their owner says of them.
    pub description: String,
    /// Their tags.
    pub tags: Vec<Tag>,
    /// Leave out an instance's root volume.
    pub exclude_root: bool,
}

/// What is said of an image of an instance.
#[derive(Debug, Clone, Default)]
pub struct CreateImageOptions {
    /// Its name, unique for its owner.
    pub name: String,
    /// What its owner says of it.
    pub description: String,
    /// Changes of the mapping: devices to leave out, to add, and what is deleted on termination.
    pub devices: Vec<DeviceSpec>,
    /// Leave the instance running.
    pub no_reboot: bool,
    /// Tags of the image and of its snapshots.
    pub tags: Vec<Tag>,
    /// The name by which the caller knows the region; if it is empty, the name that the region gives itself.
    pub region: String,
}

/// What was captured.
#[derive(Debug, Clone)]
pub struct Captured {
    /// The snapshots, in the order of the device names.
    pub snapshots: Vec<Snapshot>,
    /// What bringing each volume in has given.
    pub ingested: Vec<Ingested>,
}

/// Snapshots of a volume, or of all volumes of an instance: none exists before all do.
pub fn create_snapshots(
    region: &Region,
    what: CaptureWhat,
    options: &CaptureOptions,
    context: &Context<'_>,
) -> Result<Captured, OpsError> {
    check_description(&options.description)?;
    check_tags(&options.tags)?;
    let catalog = region.catalog()?;
    let volumes = match what {
        CaptureWhat::Volume(_) if options.exclude_root => {
            let why = "the root volume can be left out of an instance's snapshots, not of a volume's";
            return Err(OpsError::rule(Code::InvalidParameterCombination, why));
        }
        CaptureWhat::Volume(id) => vec![find_volume(&catalog, context.account, id)?],
        CaptureWhat::Instance(id) => {
            let instance = find_instance(&catalog, context, id)?;
            check_live(instance)?;
            let is_wanted = |volume: &&Volume| {
                !(options.exclude_root && is_same_device(device_name(volume), &instance.root_device_name))
            };
            catalog.volumes_of(id).into_iter().filter(is_wanted).collect()
        }
    };
    if volumes.is_empty() {
        return Err(OpsError::rule(Code::InvalidParameterValue, "there is no volume to take a snapshot of"));
    }
    let disks = open_all(region, &volumes)?;
    context.end_dry_run_in(region)?;
    let described = |_: &Volume| options.description.clone();
    despite_collection(|| {
        let mut session = region.begin_unread(context.account)?;
        let captured = read_all(&mut session, &volumes, &disks, &options.tags, &described, context)?;
        context.commit(region, |catalog| {
            still_there(catalog, &volumes, context)?;
            check_manifests(catalog, &session)?;
            Ok((captured.ops(catalog)?, ()))
        })?;
        Ok(captured)
    })
}

/// An image of an instance: a snapshot of each volume, and the image, in one record. Volumes are read as they
/// are: what a machine writes meanwhile may be in it or not.
pub fn create_image(
    region: &Region,
    id: InstanceId,
    options: &CreateImageOptions,
    context: &Context<'_>,
) -> Result<(Image, Captured), OpsError> {
    let catalog = region.catalog()?;
    let instance = find_instance(&catalog, context, id)?;
    check_imageable(instance)?;
    check_has_root(instance, &catalog)?;
    let said = ImageOptions {
        name: options.name.clone(),
        description: options.description.clone(),
        machine: instance.machine.clone(),
        root_device_name: instance.root_device_name.clone(),
        predecessor: catalog
            .images
            .get(&instance.image_id)
            .filter(|i| i.owner == context.account)
            .map(|i| i.id),
        tags: options.tags.clone(),
    };
    check(&said)?;
    check_specs(&options.devices)?;
    check_name_free(&catalog, context.account, &said.name)?;
    let attached = catalog.volumes_of(id);
    check_contents(&catalog, context.account, &options.devices)?;
    let size_of = |id| backing(&catalog, id).map(|snapshot| snapshot.volume_bytes);
    let base = mapping(instance, &attached);
    let devices =
        lay_over(&base, &options.devices, &said.root_device_name, Purpose::ImageOfInstance, size_of)?;
    let is_kept = |volume: &&Volume| {
        devices.iter().any(|device| is_same_device(&device.device_name, device_name(volume)))
    };
    let volumes: Vec<&Volume> = attached.into_iter().filter(is_kept).collect();
    let disks = open_all(region, &volumes)?;
    context.end_dry_run_in(region)?;
    if instance.state == InstanceState::Running && !options.no_reboot {
        context.progress.note(&format!(
            "{id} is on record as running: its volumes are read as they are; shut its machine down for a clean image"
        ));
    }

    let image_id = ImageId::from_random(region.random_id()?);
    let described =
        |volume: &Volume| format!("Created by CreateImage({id}) for {image_id} from {}", volume.id);
    let mut image = build(image_id, &said, devices, None, context);
    image.source_instance = Some(id);
    // As in EC2, its source is the instance's image.
    image.source = Some(ImageSource {
        region_id: region.header().id,
        region: match &*options.region {
            "" => region.header().name.clone(),
            known => known.to_owned(),
        },
        image_id: instance.image_id,
        owner: catalog.images.get(&instance.image_id).map_or(context.account, |image| image.owner),
    });
    image.product_codes.clone_from(&instance.product_codes);
    let captured = despite_collection(|| {
        let mut session = region.begin_unread(context.account)?;
        let captured = read_all(&mut session, &volumes, &disks, &options.tags, &described, context)?;
        captured.place(&volumes, &mut image.devices);
        context.commit(region, |catalog| {
            check_imageable(find_instance(catalog, context, id)?)?;
            check_name_free(catalog, context.account, &image.name)?;
            check_contents(catalog, context.account, &options.devices)?;
            still_there(catalog, &volumes, context)?;
            check_manifests(catalog, &session)?;
            // The predecessor may be gone by now: the name of a line is not its member.
            let mut ops = captured.ops(catalog)?;
            ops.push(Op::RegisterImage(Box::new(image.clone())));
            Ok((ops, ()))
        })?;
        Ok(captured)
    })?;
    Ok((image, captured))
}

impl Captured {
    fn ops(&self, catalog: &Catalog) -> Result<Vec<Op>, OpsError> {
        self.snapshots.iter().zip(&self.ingested).map(|(s, volume)| create(catalog, s, volume)).collect()
    }

    /// Puts the snapshots of volumes under the devices that these were.
    fn place(&self, volumes: &[&Volume], devices: &mut [BlockDeviceMapping]) {
        for device in devices {
            let of_device = |volume: &&Volume| is_same_device(device_name(volume), &device.device_name);
            let at = volumes.iter().position(of_device);
            if let (Some(at), DeviceTarget::Ebs(ebs)) = (at, &mut device.target) {
                ebs.snapshot_id = Some(self.snapshots[at].id);
            }
        }
    }
}

fn check_live(instance: &Instance) -> Result<(), OpsError> {
    if instance.is_live() {
        return Ok(());
    }
    let why = format!("The instance '{}' is terminated: its volumes are gone or detached", instance.id);
    Err(OpsError::rule(Code::IncorrectInstanceState, why))
}

/// EC2 makes images of running and stopped instances that are backed by EBS.
fn check_imageable(instance: &Instance) -> Result<(), OpsError> {
    check_live(instance)?;
    let id = instance.id;
    if instance.root_device_type() == RootDeviceType::InstanceStore {
        let why = format!(
            "The instance '{id}' does not have an 'ebs' root device type; bundle its disk instead (imgstore bundle)"
        );
        return Err(OpsError::rule(Code::UnsupportedOperation, why));
    }
    Ok(())
}

/// What the image's mapping is before overrides: the attached volumes, and the ephemeral disks.
fn mapping(instance: &Instance, volumes: &[&Volume]) -> Vec<BlockDeviceMapping> {
    let of_volume = |volume: &&Volume| {
        let at = volume.attachment.as_ref()?;
        let ebs = EbsBlockDevice {
            snapshot_id: None,
            volume_bytes: volume.volume_bytes,
            volume_type: volume.volume_type,
            iops: volume.iops,
            delete_on_termination: at.delete_on_termination,
        };
        Some(BlockDeviceMapping { device_name: at.device_name.clone(), target: DeviceTarget::Ebs(ebs) })
    };
    let of_disk = |disk: &crate::model::instance::LocalDisk| {
        let target = DeviceTarget::Ephemeral(disk.ephemeral?);
        Some(BlockDeviceMapping { device_name: disk.device_name.clone(), target })
    };
    let local = instance.local_disks.iter().filter_map(of_disk);
    volumes.iter().filter_map(of_volume).chain(local).collect()
}

fn device_name(volume: &Volume) -> &str {
    volume.attachment.as_ref().map_or("", |at| &at.device_name)
}

/// What a guest has written is never probed: it is raw, whatever it looks like.
fn open_all(region: &Region, volumes: &[&Volume]) -> Result<Vec<Box<dyn DiskRead>>, OpsError> {
    let open = |volume: &&Volume| {
        let nowhere = || {
            let why = format!(
                "nobody knows where the region is that the disk of {} is at {} of",
                volume.id, volume.path
            );
            OpsError::rule(Code::IncorrectState, why)
        };
        let path = region.path_of_record(&volume.path).ok_or_else(nowhere)?;
        let disk = open_raw(&path).map_err(|error| match error {
            DiskError::NotFound { path } => {
                let why = format!("the disk of {} is not at {} on this host", volume.id, path.display());
                OpsError::rule(Code::IncorrectState, why)
            }
            error => error.into(),
        })?;
        if disk.len_bytes() != volume.volume_bytes {
            let (id, found, expected) = (volume.id, disk.len_bytes(), volume.volume_bytes);
            let why = format!("{id} should have {expected} bytes, but {} has {found}", path.display());
            return Err(OpsError::rule(Code::IncorrectState, why));
        }
        Ok(disk)
    };
    volumes.iter().map(open).collect()
}

fn read_all(
    session: &mut Session,
    volumes: &[&Volume],
    disks: &[Box<dyn DiskRead>],
    tags: &[Tag],
    described: &dyn Fn(&Volume) -> String,
    context: &Context<'_>,
) -> Result<Captured, OpsError> {
    let region = session.region().clone();
    context.progress.begin("snapshot", disks.iter().map(|disk| disk.len_bytes()).sum());
    let catalog = region.catalog()?;
    let (mut snapshots, mut ingested) = (Vec::new(), Vec::new());
    for (volume, disk) in volumes.iter().zip(disks) {
        let like = last_snapshot(&catalog, volume).or(volume.snapshot_id);
        let content = ingest_like(session, &**disk, like, &Compression::default(), context)?;
        let said = SnapshotOptions {
            description: described(volume),
            tags: tags.to_vec(),
            parent: volume.snapshot_id,
            ..SnapshotOptions::default()
        };
        let snapshot = describe(&region, &content, &said, context)?;
        snapshots.push(Snapshot { volume: Some(volume.id), ..snapshot });
        ingested.push(content);
    }
    Ok(Captured { snapshots, ingested })
}

/// The newest snapshot of a volume.
fn last_snapshot(catalog: &Catalog, volume: &Volume) -> Option<SnapshotId> {
    let of_volume = catalog.snapshots.values().filter(|snapshot| snapshot.volume == Some(volume.id));
    of_volume.max_by_key(|snapshot| snapshot.created_ms).map(|snapshot| snapshot.id)
}

/// Refuses if one of the volumes was deleted while it was read.
fn still_there(catalog: &Catalog, volumes: &[&Volume], context: &Context<'_>) -> Result<(), OpsError> {
    volumes.iter().try_for_each(|volume| find_volume(catalog, context.account, volume.id).map(drop))
}
