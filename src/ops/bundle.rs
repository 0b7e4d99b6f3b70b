//! Bundles: what a disk's content is outside of a region, as EC2's bundling tools make it. The format is in
//! `disk::bundle`.

use super::context::Context;
use super::error::OpsError;
use crate::disk::{DiskRead, DiskWrite};
use crate::model::image::Image;
use std::collections::BTreeMap;

/// What a bundle says of the image that it was made of, for people.
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
