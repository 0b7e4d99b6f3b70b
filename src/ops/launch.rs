//! Launch: instances of an image, each with its volumes as disk files. Rules: EC2's RunInstances.

use super::context::Context;
use super::error::{Code, OpsError};
use super::find::image as find_image;
use super::modify::check_available;
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
use crate::model::units::{TimeMs, VOLUME_BYTES_MAX};
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

/// Launches instances: the volumes of all are written whole, then all are put on record at once. What was
/// written for a launch that does not come about is removed.
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
    check_available(image)?;
    let devices = resolve(image, &options.overrides)?;
    let mut contents: Vec<Content> = Vec::new();
    for (name, ebs) in devices {
        contents.push(Content::load(region, &catalog, name, ebs)?);
    }
    let output = absolute(&options.output)?;
    make_dirs(&output)?;
    let bytes = contents.iter().map(Content::restored_bytes).fold(0, u64::saturating_add);
    context.progress.begin("launch", bytes.saturating_mul(u64::from(options.count)));
    let mut written = Written::default();
    let result = launch_all(region, image, &contents, &output, options, context, &mut written);
    // Where nobody knows whether the record exists, the disks stay: the record may need them.
    match &result {
        Err(OpsError::Region(error)) if error.is_unknown_outcome() => {}
        Err(_) => written.remove(),
        Ok(_) => {}
    }
    result
}

/// What a launch has written so far.
#[derive(Default)]
struct Written(Vec<(PathBuf, Vec<PathBuf>)>);

impl Written {
    fn remove(&self) {
        for (folder, files) in &self.0 {
            remove_dir_with(folder, files);
        }
    }
}

/// Writes all volumes, then puts all instances on record at once.
fn launch_all(
    region: &Region,
    image: &Image,
    contents: &[Content],
    output: &Path,
    options: &LaunchOptions,
    context: &Context<'_>,
    written: &mut Written,
) -> Result<Vec<Launched>, OpsError> {
    let mut launched = Vec::new();
    for _ in 0..options.count {
        launched.push(write_one(region, image, contents, output, options, context, written)?);
    }
    context.check_cancelled()?;
    region.commit::<_, OpsError>(context.account, |catalog| {
        check_available(find_image(catalog, context.account, image.id)?)?;
        let run = |made: &Launched| Op::RunInstance {
            instance: Box::new(made.instance.clone()),
            volumes: made.volumes.clone(),
        };
        Ok((launched.iter().map(run).collect(), ()))
    })?;
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
            if change.volume_bytes.is_some_and(|bytes| bytes > VOLUME_BYTES_MAX) {
                return refuse(format!("{}: a volume has at most 64 TiB", change.device_name));
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

/// Writes the volumes of one instance.
fn write_one(
    region: &Region,
    image: &Image,
    contents: &[Content],
    output: &Path,
    options: &LaunchOptions,
    context: &Context<'_>,
    written: &mut Written,
) -> Result<Launched, OpsError> {
    let id = InstanceId::from_random(region.random_id()?);
    let folder = output.join(id.to_string());
    // Its name is new: whatever of it comes about is ours to remove.
    written.0.push((folder.clone(), Vec::new()));
    make_dirs(&folder)?;
    let now = region.now_ms();
    let mut volumes = Vec::new();
    for content in contents {
        let path = folder.join(content.file_name());
        if let Some((_, files)) = written.0.last_mut() {
            files.push(path.clone());
        }
        content.write(region, &path, context)?;
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
    Ok(Launched { instance, volumes })
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
