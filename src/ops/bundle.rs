//! Bundles: what a disk's content is outside of a region, as EC2's bundling tools make it. The format is in
//! `disk::bundle`.

use super::context::Context;
use super::error::OpsError;
use super::register::ImageOptions;
use crate::disk::{DiskRead, DiskWrite};
use crate::model::image::{Image, is_device_name};
use std::collections::BTreeMap;

/// What a bundle says of the image that it was made of: for people, and for [`take_attributes`].
pub fn attributes_of(image: &Image) -> BTreeMap<String, String> {
    let machine = &image.machine;
    let mut attributes = BTreeMap::from([
        ("image-id".to_owned(), image.id.to_string()),
        ("name".to_owned(), image.name.clone()),
        ("architecture".to_owned(), machine.architecture.to_string()),
        ("virtualization-type".to_owned(), machine.virtualization_type.to_string()),
        ("root-device-name".to_owned(), image.root_device_name.clone()),
    ]);
    attributes.extend(machine.boot_mode.map(|mode| ("boot-mode".to_owned(), mode.to_string())));
    attributes
}

/// Takes over what a bundle says of the machine that it is for, as EC2 does when an image is registered on one. Anybody may have written
/// it: a value that does not exist here is passed over.
pub fn take_attributes(attributes: &BTreeMap<String, String>, options: &mut ImageOptions, given: Given) {
    let of = |name: &str| attributes.get(name).map(String::as_str);
    let machine = &mut options.machine;
    if let Some(architecture) =
        of("architecture").filter(|_| !given.architecture).and_then(|a| a.parse().ok())
    {
        machine.architecture = architecture;
    }
    if let Some(kind) =
        of("virtualization-type").filter(|_| !given.virtualization_type).and_then(|t| t.parse().ok())
    {
        machine.virtualization_type = kind;
    }
    machine.boot_mode = machine.boot_mode.or_else(|| of("boot-mode")?.parse().ok());
    if let Some(root) = of("root-device-name").filter(|root| !given.root_device && is_device_name(root)) {
        root.clone_into(&mut options.root_device_name);
    }
}

/// What the caller said: that counts.
#[derive(Debug, Clone, Copy)]
pub struct Given {
    /// The architecture.
    pub architecture: bool,
    /// The type of virtualization.
    pub virtualization_type: bool,
    /// The root device's name.
    pub root_device: bool,
}

/// Copies a disk to a target of the same length, extent by extent, and finishes it.
pub fn copy_disk(
    disk: &dyn DiskRead,
    mut target: Box<dyn DiskWrite>,
    phase: &'static str,
    context: &Context<'_>,
) -> Result<(), OpsError> {
    let len = disk.len_bytes();
    context.progress.begin(phase, len);
    let mut buffer = vec![0; context.buffer_bytes()];
    let mut at = 0;
    while at < len {
        context.check_cancelled()?;
        let extent = disk.extent_at(at)?;
        let end = extent.end.clamp(at + 1, len).min(at.saturating_add(buffer.len() as u64));
        let piece = usize::try_from(end - at).unwrap_or(buffer.len());
        if extent.is_zero {
            target.zero_at(at, end - at)?;
        } else {
            disk.read_at(at, &mut buffer[..piece])?;
            target.write_at(at, &buffer[..piece])?;
        }
        context.progress.advance(end - at);
        at = end;
    }
    Ok(target.finish()?)
}
