//! Export of a whole image: all of its disks as files in a folder, or the machine as an OVA.

use super::context::Context;
use super::error::{Code, OpsError};
use super::export::load;
use super::find::{content, image as find_image, template as find_template};
use super::gaps::Gaps;
use super::restore::restore;
use crate::disk::create::{DiskFormat, Together, check_file, create_disk_of};
use crate::disk::formats::vmdk;
use crate::disk::open::{self, NewDirs, TargetOptions};
use crate::disk::ova::DISKS_MAX as OVA_DISKS_MAX;
use crate::disk::ova::describe::{Machine, MachineDisk};
use crate::disk::ova::write::OvaWriter;
use crate::disk::{DiskError, FileWrite};
use crate::model::blockmap::BlockMap;
use crate::model::catalog::{Catalog, Root, RootId};
use crate::model::ids::ImageId;
use crate::model::image::{DeviceTarget, Image, is_same_device};
use crate::region::Region;
use std::path::{Path, PathBuf};

/// A device of an image that is to be written.
pub struct ImageDisk {
    /// Its name.
    pub device_name: String,
    /// Its length in bytes.
    pub volume_bytes: u64,
    /// What is on it; nothing on an empty one.
    pub content: Option<(RootId, BlockMap)>,
}

/// The disks of an image that the caller may launch, the root device first. Ephemeral disks are none.
pub fn image_disks(
    region: &Region,
    catalog: &Catalog,
    id: ImageId,
    context: &Context<'_>,
) -> Result<Vec<ImageDisk>, OpsError> {
    let image = find_image(catalog, context.account, id)?;
    let mut disks = Vec::new();
    let loaded = |root: &Root<'_>| Ok::<_, OpsError>((root.id, load(region, root)?));
    if let Some(template) = find_template(catalog, image) {
        let root = Root::from(template);
        let (device_name, volume_bytes) = (image.root_device_name.clone(), template.volume_bytes);
        disks.push(ImageDisk { device_name, volume_bytes, content: Some(loaded(&root)?) });
    }
    for mapping in &image.devices {
        let DeviceTarget::Ebs(ebs) = &mapping.target else { continue };
        let root = ebs
            .snapshot_id
            .map(|id| content(catalog, image, id, context.account).map(Root::from))
            .transpose()?;
        disks.push(ImageDisk {
            device_name: mapping.device_name.clone(),
            volume_bytes: ebs.volume_bytes,
            content: root.as_ref().map(loaded).transpose()?,
        });
    }
    let is_data = |disk: &ImageDisk| !is_same_device(&disk.device_name, &image.root_device_name);
    disks.sort_by_key(is_data);
    Ok(disks)
}

/// Writes each disk to a file of its own in `folder`, called after its device: `xvda.qcow2`. No file gets its name
/// before all are written. With `gaps` what is lost becomes zeros. Gives their paths.
pub fn export_disks(
    region: &Region,
    disks: &[ImageDisk],
    gaps: Option<&Gaps>,
    folder: &Path,
    format: DiskFormat,
    options: TargetOptions,
    context: &Context<'_>,
) -> Result<Vec<PathBuf>, OpsError> {
    check_folder(disks, folder, format, options)?;
    context.end_dry_run()?;
    // Nothing half-made stays. What is in it, if anything, is whole.
    let _made = make_folder(folder)?;
    write_disks(region, disks, gaps, folder, format, options, context)
}

fn path_of(disk: &ImageDisk, folder: &Path, format: DiskFormat) -> PathBuf {
    let name = disk.device_name.trim_start_matches("/dev/").replace('/', "-");
    folder.join(format!("{name}.{}", format.extension()))
}

/// Refuses what stands in the way, of the last disk as of the first.
fn check_folder(
    disks: &[ImageDisk],
    folder: &Path,
    format: DiskFormat,
    options: TargetOptions,
) -> Result<(), OpsError> {
    match folder.metadata() {
        Ok(found) if !found.is_dir() => return Err(no_folder(folder)),
        Ok(_) => {}
        Err(_) => open::check_folder(folder)?,
    }
    let is_there = folder.is_dir();
    for disk in disks {
        let path = path_of(disk, folder, format);
        format.check_len(&path, disk.volume_bytes)?;
        if is_there {
            check_file(&path, options)?;
        }
    }
    Ok(())
}

fn no_folder(path: &Path) -> OpsError {
    DiskError::BadTarget { path: path.to_owned(), why: "is no folder; all disks go to one" }.into()
}

fn make_folder(folder: &Path) -> Result<NewDirs, OpsError> {
    match folder.metadata() {
        Ok(found) if !found.is_dir() => Err(no_folder(folder)),
        Ok(_) => Ok(NewDirs::default()),
        Err(_) => Ok(NewDirs::make(folder)?),
    }
}

fn write_disks(
    region: &Region,
    disks: &[ImageDisk],
    gaps: Option<&Gaps>,
    folder: &Path,
    format: DiskFormat,
    options: TargetOptions,
    context: &Context<'_>,
) -> Result<Vec<PathBuf>, OpsError> {
    begin(disks, context);
    let (several, mut paths) = (Together::default(), Vec::new());
    for disk in disks {
        let path = path_of(disk, folder, format);
        let id = u128::from(region.random_id()?) << 64 | u128::from(region.random_id()?);
        let mut target =
            create_disk_of(&several, &path, disk.volume_bytes, format, options, id, context.pool)?;
        if let Some((root, map)) = &disk.content {
            restore(region, *root, map, gaps, &mut *target, context)?;
        }
        target.finish()?;
        paths.push(path);
    }
    context.check_cancelled()?;
    several.publish()?;
    Ok(paths)
}

/// What an OVA says beside what the image does.
#[derive(Debug, Clone, Copy)]
pub struct MachineSize {
    /// Processors.
    pub processors: u32,
    /// Bytes of memory.
    pub memory_bytes: u64,
}

/// Refuses an image that cannot be an OVA: for who makes the file, before that.
pub fn check_ova(image: &Image, disks: &[ImageDisk], path: &Path) -> Result<(), OpsError> {
    let refuse = |why: String| Err(OpsError::rule(Code::InvalidParameterValue, why));
    if disks.first().is_none_or(|disk| disk.content.is_none()) {
        return refuse(format!("the root device of {} has no content", image.id));
    }
    if disks.len() > OVA_DISKS_MAX {
        return refuse(format!(
            "{} has {} disks, and an OVA at most {OVA_DISKS_MAX}; export them with --all",
            image.id,
            disks.len()
        ));
    }
    let mut with_content = disks.iter().filter(|disk| disk.content.is_some());
    Ok(with_content.try_for_each(|disk| DiskFormat::Vmdk.check_len(path, disk.volume_bytes))?)
}

/// Writes an image as an OVA: description, disks as streamOptimized VMDK, checksums.
pub fn export_ova(
    region: &Region,
    image: &Image,
    disks: &[ImageDisk],
    file: Box<dyn FileWrite + '_>,
    path: &Path,
    size: MachineSize,
    context: &Context<'_>,
) -> Result<(), OpsError> {
    check_ova(image, disks, path)?;
    context.end_dry_run()?;
    begin(disks, context);
    let machine = Machine {
        name: image.name.clone(),
        architecture: image.machine.architecture,
        is_windows: image.machine.platform.is_some(),
        boot_mode: image.machine.boot_mode,
        processors: size.processors,
        memory_bytes: size.memory_bytes,
        disks: disks.iter().map(described).collect(),
    };
    let mut ova = OvaWriter::create(file, path, machine);
    for disk in disks {
        let Some((root, map)) = &disk.content else { continue };
        let (member, name) = ova.disk();
        let mut target = vmdk::write::create(member, Path::new(&name), disk.volume_bytes, context.pool)?;
        restore(region, *root, map, None, &mut *target, context)?;
        target.finish()?;
    }
    context.check_cancelled()?;
    Ok(ova.finish()?)
}

fn described(disk: &ImageDisk) -> MachineDisk {
    MachineDisk {
        device_name: disk.device_name.clone(),
        volume_bytes: disk.volume_bytes,
        has_content: disk.content.is_some(),
    }
}

fn begin(disks: &[ImageDisk], context: &Context<'_>) {
    let maps = disks.iter().filter_map(|disk| disk.content.as_ref());
    context.progress.begin("export", maps.map(|(_, map)| map.volume_bytes()).sum());
}
