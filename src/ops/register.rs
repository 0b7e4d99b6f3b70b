//! Register: an image from snapshots. Rules: EC2's RegisterImage.

use super::context::Context;
use super::error::{Code, OpsError};
use super::find::{check_description, check_tags, snapshot as find_snapshot};
use crate::model::account::Tag;
use crate::model::catalog::Catalog;
use crate::model::ids::{ImageId, SnapshotId};
use crate::model::image::{
    Architecture, BlockDeviceMapping, BootMode, DeviceTarget, EbsBlockDevice, Image, ImageState,
    RootDeviceType, VirtualizationType, VolumeType, is_device_name, is_image_name,
};
use crate::model::op::Op;
use crate::model::units::VOLUME_BYTES_MAX;
use crate::region::Region;

/// A device of an image to be: sizes may be left out where a snapshot has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceSpec {
    /// The device's name in the guest.
    pub device_name: String,
    /// Its content; none for an empty volume.
    pub snapshot_id: Option<SnapshotId>,
    /// Its size; none for the snapshot's.
    pub volume_bytes: Option<u64>,
    /// Its kind.
    pub volume_type: VolumeType,
    /// Whether terminating an instance deletes it.
    pub delete_on_termination: bool,
}

/// What is said of a new image.
#[derive(Debug, Clone)]
pub struct ImageOptions {
    /// Its name, unique for its owner.
    pub name: String,
    /// What its owner says of it.
    pub description: String,
    /// The processor it is for.
    pub architecture: Architecture,
    /// How the guest is virtualized.
    pub virtualization_type: VirtualizationType,
    /// The firmware that boots it.
    pub boot_mode: Option<BootMode>,
    /// The name of the device that the guest boots from.
    pub root_device_name: String,
    /// Its tags.
    pub tags: Vec<Tag>,
}

/// Registers an image on snapshots that the caller may read.
pub fn register(
    region: &Region,
    options: &ImageOptions,
    devices: &[DeviceSpec],
    context: &Context<'_>,
) -> Result<Image, OpsError> {
    check(options, devices)?;
    let id = ImageId::from_random(region.random_id()?);
    region.commit(context.account, |catalog| {
        let size_of = |id| find_snapshot(catalog, context.account, id).map(|snapshot| snapshot.volume_bytes);
        let mut image = build(id, options, devices, context, size_of)?;
        image.created_ms = region.now_ms();
        check_name_free(catalog, &image)?;
        Ok((vec![Op::RegisterImage(Box::new(image.clone()))], image))
    })
}

/// Refuses what EC2 refuses whatever exists.
pub(super) fn check(options: &ImageOptions, devices: &[DeviceSpec]) -> Result<(), OpsError> {
    if !is_image_name(&options.name) {
        let why = format!(
            "AMI name '{}' is not allowed: 3 to 128 letters, digits, parentheses, brackets, spaces, and . / - ' @ _",
            options.name
        );
        return Err(OpsError::rule(Code::ImageNameMalformed, why));
    }
    check_description(&options.description)?;
    check_tags(&options.tags)?;
    let refuse = |why: String| Err(OpsError::rule(Code::BlockDeviceMapping, why));
    for (at, device) in devices.iter().enumerate() {
        let name = &device.device_name;
        if !is_device_name(name) {
            return refuse(format!("'{name}' is not a device name; one looks like /dev/xvda"));
        }
        let bare = |name: &str| name.trim_start_matches("/dev/").to_owned();
        if devices[..at].iter().any(|other| bare(&other.device_name) == bare(name)) {
            return refuse(format!("The device '{name}' is used in more than one block-device mapping"));
        }
        if device.volume_bytes.is_some_and(|bytes| bytes > VOLUME_BYTES_MAX) {
            return refuse(format!("{name} is larger than {}, the largest volume", in_gib(VOLUME_BYTES_MAX)));
        }
        if device.snapshot_id.is_none() && device.volume_bytes.is_none() {
            return refuse(format!("Either snapshot ID or volume size must be provided for: {name}"));
        }
    }
    let root = devices.iter().find(|device| device.device_name == options.root_device_name);
    if root.is_none_or(|root| root.snapshot_id.is_none()) {
        return refuse(format!(
            "The root device '{}' needs a mapping with a snapshot",
            options.root_device_name
        ));
    }
    Ok(())
}

/// The image that checked options describe; `size_of` tells the size of a snapshot.
pub(super) fn build(
    id: ImageId,
    options: &ImageOptions,
    devices: &[DeviceSpec],
    context: &Context<'_>,
    size_of: impl Fn(SnapshotId) -> Result<u64, OpsError>,
) -> Result<Image, OpsError> {
    let device = |spec: &DeviceSpec| {
        let least = spec.snapshot_id.map_or(Ok(0), &size_of)?;
        let volume_bytes = spec.volume_bytes.unwrap_or(least);
        if volume_bytes < least || volume_bytes == 0 {
            return Err(too_small(volume_bytes, spec.snapshot_id, least));
        }
        let target = DeviceTarget::Ebs(EbsBlockDevice {
            snapshot_id: spec.snapshot_id,
            volume_bytes,
            volume_type: spec.volume_type,
            iops: None,
            delete_on_termination: spec.delete_on_termination,
        });
        Ok(BlockDeviceMapping { device_name: spec.device_name.clone(), target })
    };
    Ok(Image {
        id,
        name: options.name.clone(),
        description: options.description.clone(),
        owner: context.account,
        state: ImageState::Available,
        architecture: options.architecture,
        platform: None,
        virtualization_type: options.virtualization_type,
        boot_mode: options.boot_mode,
        tpm_support: None,
        ena_support: false,
        imds_support: None,
        kernel_id: None,
        ramdisk_id: None,
        root_device_name: options.root_device_name.clone(),
        root_device_type: RootDeviceType::Ebs,
        devices: devices.iter().map(device).collect::<Result<_, _>>()?,
        launch_permissions: Vec::new(),
        product_codes: Vec::new(),
        tags: options.tags.clone(),
        created_ms: 0,
        deprecation_ms: None,
        deregistration_protected: false,
        source: None,
        source_instance: None,
        predecessor: None,
        client_token: None,
    })
}

/// EC2's sentence for a volume that is smaller than its snapshot, in the units that people gave.
pub(super) fn too_small(volume_bytes: u64, snapshot: Option<SnapshotId>, least: u64) -> OpsError {
    let snapshot = snapshot.map_or_else(String::new, |id| format!("'{id}'"));
    let why = format!(
        "Volume of size {} is smaller than snapshot {snapshot}, expect size >= {}",
        in_gib(volume_bytes),
        in_gib(least.max(1))
    );
    OpsError::rule(Code::BlockDeviceMapping, why)
}

fn in_gib(bytes: u64) -> String {
    const GIB: u64 = 1 << 30;
    if bytes.is_multiple_of(GIB) { format!("{}GB", bytes / GIB) } else { format!("{bytes} bytes") }
}

/// Refuses a name that another image of the owner has.
pub(super) fn check_name_free(catalog: &Catalog, image: &Image) -> Result<(), OpsError> {
    let same = |other: &&Image| other.owner == image.owner && other.name == image.name;
    match catalog.images.values().find(same) {
        Some(other) => Err(OpsError::name_taken(&image.name, other.id)),
        None => Ok(()),
    }
}
