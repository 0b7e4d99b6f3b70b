//! Register: an image from snapshots. Rules: EC2's RegisterImage.

use super::context::Context;
use super::devices::{DeviceSpec, Purpose, check_device_name, check_specs, lay_over, refuse};
use super::error::{Code, OpsError};
use super::find::{backing, check_contents, check_description, check_tags, own_image};
use crate::model::account::{AccountId, Tag};
use crate::model::catalog::Catalog;
use crate::model::ids::{ImageId, TemplateId};
use crate::model::image::is_same_device;
use crate::model::image::{BlockDeviceMapping, DeregistrationProtection, Image, Machine, is_image_name};
use crate::model::op::Op;
use crate::model::words::{Architecture, BootMode, ImageState, VirtualizationType};
use crate::region::Region;
use serde::Serialize;

/// What is said of a new image.
#[derive(Debug, Clone, Serialize)]
pub struct ImageOptions {
    /// Its name, unique for its owner.
    pub name: String,
    /// What its owner says of it.
    pub description: String,
    /// The machine it is for.
    pub machine: Machine,
    /// The name of the device that the guest boots from.
    pub root_device_name: String,
    /// The image that it is the next version of, one of the caller's.
    pub predecessor: Option<ImageId>,
    /// Its tags.
    pub tags: Vec<Tag>,
}

impl ImageOptions {
    /// The command line's defaults: a hardware virtual machine.
    pub fn named(name: &str, architecture: Architecture) -> Self {
        let machine = Machine {
            architecture,
            platform: None,
            virtualization_type: VirtualizationType::Hvm,
            boot_mode: None,
            tpm_support: None,
            ena_support: false,
            imds_support: None,
            kernel_id: None,
            ramdisk_id: None,
        };
        Self {
            name: name.to_owned(),
            description: String::new(),
            machine,
            root_device_name: "/dev/xvda".to_owned(),
            predecessor: None,
            tags: Vec::new(),
        }
    }
}

/// Registers an image on snapshots that the caller may read.
pub fn register(
    region: &Region,
    options: &ImageOptions,
    devices: &[DeviceSpec],
    context: &Context<'_>,
) -> Result<Image, OpsError> {
    check(options)?;
    check_specs(devices)?;
    check_root(&options.root_device_name, devices)?;
    let id = ImageId::from_random(region.random_id()?);
    context.commit(region, |catalog| {
        check_placeable(catalog, options, context.account)?;
        check_contents(catalog, context.account, devices)?;
        let size_of = |id| backing(catalog, id).map(|snapshot| snapshot.volume_bytes);
        let devices = lay_over(&[], devices, &options.root_device_name, Purpose::New, size_of)?;
        let image = build(id, options, devices, None, context);
        Ok((vec![Op::RegisterImage(Box::new(image.clone()))], image))
    })
}

/// Refuses what EC2 refuses whatever exists.
pub(super) fn check(options: &ImageOptions) -> Result<(), OpsError> {
    check_image_name(&options.name)?;
    check_description(&options.description)?;
    check_tags(&options.tags)?;
    check_device_name(&options.root_device_name)?;
    check_machine(&options.machine)
}

pub(super) fn check_image_name(name: &str) -> Result<(), OpsError> {
    if is_image_name(name) {
        return Ok(());
    }
    let why = format!(
        "AMI name '{name}' is not allowed: 3 to 128 letters, digits, parentheses, brackets, spaces, and . / - ' @ _"
    );
    Err(OpsError::rule(Code::ImageNameMalformed, why))
}

pub(super) fn check_machine(machine: &Machine) -> Result<(), OpsError> {
    let invalid = |why: String| Err(OpsError::rule(Code::InvalidParameterValue, why));
    let combination = |why: &str| Err(OpsError::rule(Code::InvalidParameterCombination, why));
    for (what, value) in [("tpm-support", &machine.tpm_support), ("imds-support", &machine.imds_support)] {
        if let Some(value) = value.as_deref().filter(|value| *value != "v2.0") {
            return invalid(format!("'{value}' is no value of {what}; the only one is v2.0"));
        }
    }
    if let Some(platform) = machine.platform.as_deref().filter(|platform| *platform != "windows") {
        return invalid(format!("'{platform}' is no platform; the only one is windows, others have none"));
    }
    for (what, prefix, value) in
        [("kernel", "aki-", &machine.kernel_id), ("ramdisk", "ari-", &machine.ramdisk_id)]
    {
        let good = |id: &str| {
            id.strip_prefix(prefix).is_some_and(|rest| {
                (8..=17).contains(&rest.len()) && rest.bytes().all(|b| b.is_ascii_hexdigit())
            })
        };
        if let Some(value) = value.as_deref().filter(|value| !good(value)) {
            return invalid(format!("'{value}' is no {what} id; one looks like {prefix}1a2b3c4d"));
        }
    }
    let is_uefi = machine.boot_mode == Some(BootMode::Uefi);
    if machine.tpm_support.is_some() && !is_uefi {
        return combination("tpm-support needs boot mode uefi");
    }
    let is_arm = matches!(machine.architecture, Architecture::Arm64 | Architecture::Arm64Mac);
    if is_arm && machine.boot_mode.is_some_and(|mode| mode != BootMode::Uefi) {
        return combination("an arm64 image has boot mode uefi");
    }
    if is_arm && machine.virtualization_type == VirtualizationType::Paravirtual {
        return combination("an arm64 image has virtualization type hvm");
    }
    Ok(())
}

/// The root device of an image backed by EBS has a snapshot.
fn check_root(root_device_name: &str, devices: &[DeviceSpec]) -> Result<(), OpsError> {
    let neither = |device: &&DeviceSpec| {
        device.snapshot_id.is_none() && device.volume_bytes.is_none() && device.ephemeral.is_none()
    };
    if let Some(device) = devices.iter().filter(|device| !device.no_device).find(neither) {
        let name = &device.device_name;
        return refuse(format!("Either snapshot ID or volume size must be provided for: {name}"));
    }
    let root = devices.iter().find(|device| is_same_device(&device.device_name, root_device_name));
    if root.is_none_or(|root| root.snapshot_id.is_none()) {
        return refuse(format!("The root device '{root_device_name}' needs a mapping with a snapshot"));
    }
    Ok(())
}

/// Refuses a name that another image of the caller has, and a predecessor that is not the caller's.
pub(super) fn check_placeable(
    catalog: &Catalog,
    options: &ImageOptions,
    account: AccountId,
) -> Result<(), OpsError> {
    check_name_free(catalog, account, &options.name)?;
    options.predecessor.map_or(Ok(()), |id| own_image(catalog, account, id).map(drop))
}

pub(super) fn check_name_free(catalog: &Catalog, owner: AccountId, name: &str) -> Result<(), OpsError> {
    match catalog.image_named(owner, name) {
        Some(other) => Err(OpsError::name_taken(name, other)),
        None => Ok(()),
    }
}

/// The image that checked options describe.
pub(super) fn build(
    id: ImageId,
    options: &ImageOptions,
    mut devices: Vec<BlockDeviceMapping>,
    template: Option<TemplateId>,
    context: &Context<'_>,
) -> Image {
    // The root's mapping bears exactly the root's name.
    for device in &mut devices {
        if is_same_device(&device.device_name, &options.root_device_name) {
            device.device_name.clone_from(&options.root_device_name);
        }
    }
    Image {
        id,
        name: options.name.clone(),
        description: options.description.clone(),
        owner: context.account,
        state: ImageState::Available,
        machine: options.machine.clone(),
        root_device_name: options.root_device_name.clone(),
        template,
        devices,
        launch_permissions: Vec::new(),
        product_codes: Vec::new(),
        tags: options.tags.clone(),
        created_ms: context.now_ms,
        deprecation_ms: None,
        deregistration_protection: DeregistrationProtection::Disabled,
        source: None,
        source_instance: None,
        predecessor: options.predecessor,
        client_token: None,
    }
}
