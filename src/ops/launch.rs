//! Launch: instances of an image, each with its volumes as disk files. Rules: EC2's RunInstances.

use super::context::Context;
use super::error::{Code, OpsError};
use super::find::image as find_image;
use super::register::too_small;
use super::restore::restore;
use crate::disk::open::{TargetOptions, absolute, make_dirs, open_target, remove_dir_with};
use crate::disk::{DiskError, DiskWrite};
use crate::model::account::Tag;
use crate::model::blockmap::BlockMap;
use crate::model::ids::{ImageId, InstanceId, SnapshotId, VolumeId};
use crate::model::image::{DeviceTarget, EbsBlockDevice, Image};
use crate::model::instance::{Attachment, Instance, InstanceState, Volume, VolumeState};
use crate::model::op::Op;
use crate::model::units::TimeMs;
use crate::region::Region;
use std::path::{Path, PathBuf};

/// A change of an image's mapping for one launch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceOverride {
    /// The device.
    pub device_name: String,
    /// Another size in bytes.
    pub volume_bytes: Option<u64>,
    /// Whether terminating the instance deletes the volume.
    pub delete_on_termination: Option<bool>,
    /// Leave the device out.
    pub no_device: bool,
}

/// What is said of a launch.
#[derive(Debug, Clone)]
pub struct LaunchOptions {
    /// How many instances.
    pub count: u32,
    /// The folder in which each instance gets a folder of its own.
    pub output: PathBuf,
    /// Changes of the mapping.
    pub overrides: Vec<DeviceOverride>,
    /// Tags of the instances.
    pub tags: Vec<Tag>,
}

/// An instance that was launched.
#[derive(Debug, Clone)]
pub struct Launched {
    /// The instance.
    pub instance: Instance,
    /// Its volumes, in the order of the mapping.
    pub volumes: Vec<Volume>,
}

/// Most instances that one launch makes.
pub const INSTANCES_MAX: u32 = 1000;

/// Launches instances: their volumes are written whole, then they are put on record. What was written for an
/// instance that does not come about is removed.
pub fn launch(
    region: &Region,
    id: ImageId,
    options: &LaunchOptions,
    context: &Context<'_>,
) -> Result<Vec<Launched>, OpsError> {
    if options.count == 0 || options.count > INSTANCES_MAX {
        let why =
            format!("count is {}; 1 to {INSTANCES_MAX} instances can be launched at once", options.count);
        return Err(OpsError::rule(Code::InvalidParameterValue, why));
    }
    super::find::check_tags(&options.tags)?;
    let catalog = region.catalog()?;
    let image = find_image(&catalog, context.account, id)?;
    let devices = resolve(image, &options.overrides)?;
    let mut contents: Vec<Content> = Vec::new();
    for (name, ebs) in devices {
        contents.push(Content::load(region, &catalog, name, ebs)?);
    }
    let output = absolute(&options.output)?;
    make_dirs(&output)?;
    let bytes: u64 = contents.iter().map(Content::restored_bytes).sum();
    context.progress.begin("launch", bytes * u64::from(options.count));
    let mut launched = Vec::new();
    for _ in 0..options.count {
        let made = launch_one(region, image, &contents, &output, options, context)?;
        launched.push(made);
    }
    Ok(launched)
}

/// The image's volumes with the overrides applied.
fn resolve(image: &Image, overrides: &[DeviceOverride]) -> Result<Vec<(String, EbsBlockDevice)>, OpsError> {
    let refuse = |why: String| Err(OpsError::rule(Code::BlockDeviceMapping, why));
    for change in overrides {
        if !image.devices.iter().any(|device| device.device_name == change.device_name) {
            return refuse(format!("{} has no device {}", image.id, change.device_name));
        }
        if change.no_device && change.device_name == image.root_device_name {
            return refuse(format!("the root device {} cannot be left out", change.device_name));
        }
    }
    let mut devices = Vec::new();
    for device in &image.devices {
        let DeviceTarget::Ebs(ebs) = &device.target else { continue };
        let mut ebs = ebs.clone();
        if let Some(change) = overrides.iter().find(|change| change.device_name == device.device_name) {
            if change.no_device {
                continue;
            }
            ebs.volume_bytes = change.volume_bytes.unwrap_or(ebs.volume_bytes);
            ebs.delete_on_termination = change.delete_on_termination.unwrap_or(ebs.delete_on_termination);
        }
        devices.push((device.device_name.clone(), ebs));
    }
    Ok(devices)
}

/// A volume's content, loaded once for all instances.
struct Content {
    device_name: String,
    ebs: EbsBlockDevice,
    map: Option<(SnapshotId, BlockMap)>,
}

impl Content {
    fn load(
        region: &Region,
        catalog: &crate::model::catalog::Catalog,
        device_name: String,
        ebs: EbsBlockDevice,
    ) -> Result<Self, OpsError> {
        let Some(id) = ebs.snapshot_id else { return Ok(Self { device_name, ebs, map: None }) };
        // Who may launch the image may have its content: no snapshot permission is needed.
        let snapshot = catalog.snapshots.get(&id).ok_or_else(|| OpsError::snapshot_not_found(id))?;
        if ebs.volume_bytes < snapshot.volume_bytes {
            return Err(too_small(ebs.volume_bytes, Some(id), snapshot.volume_bytes));
        }
        let map = region.load_map(&snapshot.manifest)?;
        Ok(Self { device_name, ebs, map: Some((id, map)) })
    }

    fn restored_bytes(&self) -> u64 {
        self.map.as_ref().map_or(0, |(_, map)| map.volume_bytes())
    }

    /// `xvda.raw` for `/dev/xvda`.
    fn file_name(&self) -> String {
        format!("{}.raw", self.device_name.trim_start_matches("/dev/"))
    }

    fn write(&self, region: &Region, path: &Path, context: &Context<'_>) -> Result<(), OpsError> {
        let mut target: Box<dyn DiskWrite> =
            open_target(path, self.ebs.volume_bytes, TargetOptions::default())?;
        if let Some((snapshot, map)) = &self.map {
            restore(region, *snapshot, map, &mut *target, context)?;
        }
        context.check_cancelled()?;
        Ok(target.finish()?)
    }
}

fn launch_one(
    region: &Region,
    image: &Image,
    contents: &[Content],
    output: &Path,
    options: &LaunchOptions,
    context: &Context<'_>,
) -> Result<Launched, OpsError> {
    let id = InstanceId::from_random(region.random_id()?);
    let folder = output.join(id.to_string());
    make_dirs(&folder)?;
    let mut written = Vec::new();
    let result = (|| {
        let now = region.now_ms();
        let mut volumes = Vec::new();
        for content in contents {
            let path = folder.join(content.file_name());
            content.write(region, &path, context)?;
            written.push(path.clone());
            volumes.push(volume(region, id, content, &path, now, context)?);
        }
        let instance = Instance {
            id,
            owner: context.account,
            image_id: image.id,
            state: InstanceState::Stopped,
            launched_ms: now,
            root_device_name: image.root_device_name.clone(),
            path: text(&folder)?,
            tags: options.tags.clone(),
        };
        region.commit::<_, OpsError>(context.account, |catalog| {
            find_image(catalog, context.account, image.id)?;
            let op = Op::RunInstance { instance: Box::new(instance.clone()), volumes: volumes.clone() };
            Ok((vec![op], ()))
        })?;
        Ok(Launched { instance, volumes })
    })();
    if result.is_err() {
        remove_dir_with(&folder, &written);
    }
    result
}

fn volume(
    region: &Region,
    instance_id: InstanceId,
    content: &Content,
    path: &Path,
    now: TimeMs,
    context: &Context<'_>,
) -> Result<Volume, OpsError> {
    Ok(Volume {
        id: VolumeId::from_random(region.random_id()?),
        owner: context.account,
        volume_bytes: content.ebs.volume_bytes,
        volume_type: content.ebs.volume_type,
        snapshot_id: content.ebs.snapshot_id,
        state: VolumeState::InUse,
        created_ms: now,
        attachment: Some(Attachment {
            instance_id,
            device_name: content.device_name.clone(),
            delete_on_termination: content.ebs.delete_on_termination,
        }),
        path: text(path)?,
        tags: Vec::new(),
    })
}

/// A path as the record keeps it.
fn text(path: &Path) -> Result<String, OpsError> {
    let not_utf8 = || DiskError::NotADisk { path: path.to_owned(), found: "not named in UTF-8" };
    Ok(path.to_str().ok_or_else(not_utf8)?.to_owned())
}
