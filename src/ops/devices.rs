//! Block device mappings: what is asked for, checked, and laid over what an image has. Rules: EC2's
//! RegisterImage, RunInstances and CreateImage.

use super::error::{Code, OpsError};
use crate::model::ids::SnapshotId;
use crate::model::image::{BlockDeviceMapping, DeviceTarget, EbsBlockDevice, is_device_name, is_same_device};
use crate::model::units::VOLUME_BYTES_MAX;
use crate::model::words::VolumeType;
use serde::Serialize;
use std::collections::BTreeSet;

/// Ephemeral disks are `ephemeral0` to this one.
pub const EPHEMERAL_MAX: u8 = 23;
/// Most devices that an image maps: twice as many volumes as EC2 attaches to any instance.
pub const DEVICES_MAX: usize = 256;

/// Most provisioned operations a second that EC2 has for any volume.
pub const IOPS_MAX: u32 = 256_000;

/// A device as it is asked for. What is left out comes from the mapping that it is laid over, then from the
/// snapshot, then from EC2's defaults: `gp3`, deleted on termination.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct DeviceSpec {
    /// The device's name in the guest.
    pub device_name: String,
    /// Its content; none for an empty volume.
    pub snapshot_id: Option<SnapshotId>,
    /// Its size in bytes.
    pub volume_bytes: Option<u64>,
    /// Its kind.
    pub volume_type: Option<VolumeType>,
    /// Provisioned operations a second.
    pub iops: Option<u32>,
    /// Whether terminating an instance deletes it.
    pub delete_on_termination: Option<bool>,
    /// The instance's own empty disk of this number, instead of a volume.
    pub ephemeral: Option<u8>,
    /// No such device.
    pub no_device: bool,
}

impl DeviceSpec {
    /// A volume of a snapshot, as it is.
    pub fn of_snapshot(device_name: &str, snapshot_id: SnapshotId) -> Self {
        let device_name = device_name.to_owned();
        Self { device_name, snapshot_id: Some(snapshot_id), ..Self::default() }
    }

    fn is_volume(&self) -> bool {
        self.snapshot_id.is_some()
            || self.volume_bytes.is_some()
            || self.volume_type.is_some()
            || self.iops.is_some()
            || self.delete_on_termination.is_some()
    }
}

/// The name of an image's disk `number`: the root device's, then the letters after it, after `xvdz` those of `xvdaa` to `xvddz`, as
/// EC2 has them. None where they end.
pub fn device_name(root: &str, number: usize) -> Option<String> {
    if number == 0 {
        return Some(root.to_owned());
    }
    let before_digits = |text: &str| text.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    let stem = &root[..before_digits(root)];
    // `nvme0n1`: the disks are counted, and no letter is to be changed.
    if let Some(disk) = stem.strip_suffix('n').filter(|disk| before_digits(disk) < disk.len()) {
        let (kind, first) = disk.split_at(before_digits(disk));
        let next = first.parse::<usize>().ok()?.checked_add(number)?;
        return Some(format!("{kind}{next}{}", &root[disk.len()..]));
    }
    let last = stem.bytes().next_back().filter(u8::is_ascii_lowercase)?;
    let (stem, index) = (&stem[..stem.len() - 1], usize::from(last - b'a').checked_add(number)?);
    let letter = |index: usize| u8::try_from(index).map_or('a', |index| char::from(b'a' + index));
    match index {
        0..26 => Some(format!("{stem}{}", letter(index))),
        26..130 if stem.ends_with('d') => {
            Some(format!("{stem}{}{}", letter(index / 26 - 1), letter(index % 26)))
        }
        _ => None,
    }
}

/// What a mapping is laid over for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A new image, or instances of one: volumes may grow.
    New,
    /// An image of an instance: the content and size of what is attached are given.
    ImageOfInstance,
}

pub(super) fn refuse<T>(why: impl Into<String>) -> Result<T, OpsError> {
    Err(OpsError::rule(Code::BlockDeviceMapping, why))
}

/// Refuses what is no name of a device: disks are files that are called so.
pub(super) fn check_device_name(name: &str) -> Result<(), OpsError> {
    if is_device_name(name) {
        return Ok(());
    }
    refuse(format!("'{name}' is not a device name; one looks like /dev/xvda"))
}

/// Refuses what makes no sense whatever exists.
pub(super) fn check_specs(specs: &[DeviceSpec]) -> Result<(), OpsError> {
    for (at, spec) in specs.iter().enumerate() {
        let name = &spec.device_name;
        check_device_name(name)?;
        if specs[..at].iter().any(|other| is_same_device(&other.device_name, name)) {
            return refuse(format!("The device '{name}' is used in more than one block-device mapping"));
        }
        let kinds = [spec.is_volume(), spec.ephemeral.is_some(), spec.no_device];
        if kinds.iter().filter(|kind| **kind).count() > 1 {
            return refuse(format!(
                "{name} is a volume, an ephemeral disk, or no device, but not two of them"
            ));
        }
        if spec.ephemeral.is_some_and(|number| number > EPHEMERAL_MAX) {
            return refuse(format!("{name}: ephemeral disks are ephemeral0 to ephemeral{EPHEMERAL_MAX}"));
        }
        if spec.volume_bytes.is_some_and(|bytes| bytes > VOLUME_BYTES_MAX) {
            return refuse(too_large(name));
        }
    }
    check_ephemeral(specs.iter().filter_map(|spec| spec.ephemeral))
}

/// Refuses more devices than an image has. A template is one, too.
pub(super) fn check_count(devices: usize) -> Result<(), OpsError> {
    if devices > DEVICES_MAX {
        return refuse(format!("{devices} devices are too many: an image has {DEVICES_MAX} at most"));
    }
    Ok(())
}

/// Refuses more devices than an image has, and an ephemeral disk behind two of them.
pub(super) fn check_devices(devices: &[BlockDeviceMapping]) -> Result<(), OpsError> {
    check_count(devices.len())?;
    check_ephemeral(devices.iter().filter_map(|device| match device.target {
        DeviceTarget::Ephemeral(number) => Some(number),
        DeviceTarget::Ebs(_) => None,
    }))
}

/// Each ephemeral disk stands behind one device.
fn check_ephemeral(numbers: impl Iterator<Item = u8>) -> Result<(), OpsError> {
    let mut seen = BTreeSet::new();
    for number in numbers {
        if !seen.insert(number) {
            return refuse(format!("ephemeral{number} is used in more than one block-device mapping"));
        }
    }
    Ok(())
}

/// Lays checked specifications over a mapping. `size_of` tells the size of a snapshot.
pub(super) fn lay_over(
    base: &[BlockDeviceMapping],
    specs: &[DeviceSpec],
    root_device_name: &str,
    purpose: Purpose,
    size_of: impl Fn(SnapshotId) -> Result<u64, OpsError>,
) -> Result<Vec<BlockDeviceMapping>, OpsError> {
    let mut devices = Vec::new();
    let is_base = |spec: &DeviceSpec| base.iter().any(|b| is_same_device(&b.device_name, &spec.device_name));
    for mapping in base {
        let spec = specs.iter().find(|spec| is_same_device(&spec.device_name, &mapping.device_name));
        let Some(spec) = spec else {
            devices.push(mapping.clone());
            continue;
        };
        check_override(mapping, spec, root_device_name, purpose)?;
        if spec.no_device {
            continue;
        }
        let before = match &mapping.target {
            DeviceTarget::Ebs(ebs) => Some(ebs),
            DeviceTarget::Ephemeral(_) => None,
        };
        devices.push(resolve(&mapping.device_name, spec, before, &size_of)?);
    }
    for spec in specs.iter().filter(|spec| !is_base(spec) && !spec.no_device) {
        devices.push(resolve(&spec.device_name, spec, None, &size_of)?);
    }
    if let Some(spec) = specs.iter().find(|spec| spec.no_device && !is_base(spec)) {
        return refuse(format!("there is no device {} that could be left out", spec.device_name));
    }
    check_devices(&devices)?;
    Ok(devices)
}

fn check_override(
    mapping: &BlockDeviceMapping,
    spec: &DeviceSpec,
    root_device_name: &str,
    purpose: Purpose,
) -> Result<(), OpsError> {
    let name = &mapping.device_name;
    let is_root = is_same_device(name, root_device_name);
    if is_root && (spec.no_device || spec.ephemeral.is_some()) {
        return refuse(format!("the root device {name} cannot be left out or be an ephemeral disk"));
    }
    if is_root && spec.snapshot_id.is_some() {
        return refuse(format!("snapshotId cannot be modified on root device {name}"));
    }
    let is_attached = matches!(mapping.target, DeviceTarget::Ebs(_));
    let changes_volume = spec.volume_bytes.is_some()
        || spec.snapshot_id.is_some()
        || spec.ephemeral.is_some()
        || spec.volume_type.is_some()
        || spec.iops.is_some();
    if purpose == Purpose::ImageOfInstance && is_attached && changes_volume {
        return refuse(format!(
            "{name} is attached: only whether it is deleted on termination can be changed"
        ));
    }
    Ok(())
}

fn resolve(
    device_name: &str,
    spec: &DeviceSpec,
    before: Option<&EbsBlockDevice>,
    size_of: &impl Fn(SnapshotId) -> Result<u64, OpsError>,
) -> Result<BlockDeviceMapping, OpsError> {
    let device_name = device_name.to_owned();
    if let Some(number) = spec.ephemeral {
        return Ok(BlockDeviceMapping { device_name, target: DeviceTarget::Ephemeral(number) });
    }
    let snapshot_id = spec.snapshot_id.or(before.and_then(|ebs| ebs.snapshot_id));
    let given =
        spec.volume_bytes.or(before.filter(|_| spec.snapshot_id.is_none()).map(|ebs| ebs.volume_bytes));
    if snapshot_id.is_none() && given.is_none() {
        return refuse(format!("Either snapshot ID or volume size must be provided for: {device_name}"));
    }
    let least = snapshot_id.map_or(Ok(1), size_of)?;
    let volume_bytes = given.unwrap_or(least);
    if volume_bytes < least {
        return refuse(too_small(volume_bytes, snapshot_id, least));
    }
    if volume_bytes > VOLUME_BYTES_MAX {
        return refuse(too_large(&device_name));
    }
    let volume_type = spec.volume_type.or(before.map(|ebs| ebs.volume_type)).unwrap_or(VolumeType::Gp3);
    let kept = before.filter(|ebs| ebs.volume_type == volume_type).and_then(|ebs| ebs.iops);
    let iops = spec.iops.or(kept);
    check_iops(volume_type, iops)?;
    let delete_on_termination =
        spec.delete_on_termination.or(before.map(|ebs| ebs.delete_on_termination)).unwrap_or(true);
    let ebs = EbsBlockDevice { snapshot_id, volume_bytes, volume_type, iops, delete_on_termination };
    Ok(BlockDeviceMapping { device_name, target: DeviceTarget::Ebs(ebs) })
}

/// Provisioned operations: needed by io1 and io2, possible for gp3.
pub(super) fn check_iops(volume_type: VolumeType, iops: Option<u32>) -> Result<(), OpsError> {
    match (volume_type, iops) {
        (VolumeType::Io1 | VolumeType::Io2, None) => {
            let why = format!("The parameter iops must be specified for {volume_type} volumes.");
            Err(OpsError::rule(Code::MissingParameter, why))
        }
        (VolumeType::Gp2 | VolumeType::St1 | VolumeType::Sc1 | VolumeType::Standard, Some(_)) => {
            let why = format!("The parameter iops is not supported for {volume_type} volumes.");
            Err(OpsError::rule(Code::InvalidParameterCombination, why))
        }
        (_, Some(count)) if count == 0 || count > IOPS_MAX => {
            let why = format!("iops is {count}; a volume has 1 to {IOPS_MAX}");
            Err(OpsError::rule(Code::InvalidParameterValue, why))
        }
        _ => Ok(()),
    }
}

/// EC2's sentence for a volume that is smaller than its snapshot, in EC2's GB, which are GiB.
pub(super) fn too_small(volume_bytes: u64, snapshot: Option<SnapshotId>, least: u64) -> String {
    let (given, least) = (in_gib(volume_bytes), in_gib(least));
    match snapshot {
        // EC2's two blanks.
        Some(id) => {
            format!("Volume of size {given} is smaller than  snapshot '{id}', expect size >= {least}")
        }
        None => format!("Volume of size {given} is too small, expect size >= {least}"),
    }
}

fn too_large(device_name: &str) -> String {
    format!("{device_name} is larger than {}, the largest volume", in_gib(VOLUME_BYTES_MAX))
}

fn in_gib(bytes: u64) -> String {
    const GIB: u64 = 1 << 30;
    if bytes > 0 && bytes.is_multiple_of(GIB) {
        format!("{}GB", bytes / GIB)
    } else {
        format!("{bytes} bytes")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn further_disks_get_the_letters_after_the_root_device() {
        let name = |root, number| device_name(root, number).unwrap();
        assert_eq!(name("/dev/xvda", 0), "/dev/xvda");
        assert_eq!(name("/dev/xvda", 2), "/dev/xvdc");
        assert_eq!(name("/dev/sda1", 1), "/dev/sdb");
        assert_eq!((name("/dev/nvme0n1", 1), name("nvme9n1", 2)), ("/dev/nvme1n1".into(), "nvme11n1".into()));
        assert_eq!(name("/dev/xvdz", 1), "/dev/xvdaa");
        assert_eq!((name("/dev/sda1", 52), name("xvda", 129)), ("/dev/sdba".into(), "xvddz".into()));
        assert!(device_name("/dev/xvda", 130).is_none() && device_name("/dev/xvdaz", 1).is_none());
        assert!(device_name("/dev/xvda", usize::MAX).is_none());
    }
}
