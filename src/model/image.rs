//! Images (AMIs): the template of an instance. Rules: EC2's RegisterImage and DescribeImages.

use super::account::{AccountId, ClientToken, Permission, Tag};
use super::ids::{ImageId, InstanceId, RegionId, SnapshotId, TemplateId};
use super::units::TimeMs;
use super::words::{Architecture, BootMode, ImageState, RootDeviceType, VirtualizationType, VolumeType};
use serde::{Deserialize, Serialize};

/// A volume that launching an image makes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EbsBlockDevice {
    /// Its content; none for an empty volume.
    pub snapshot_id: Option<SnapshotId>,
    /// Its size in bytes, at least the snapshot's.
    pub volume_bytes: u64,
    /// Its kind.
    pub volume_type: VolumeType,
    /// Provisioned operations a second.
    pub iops: Option<u32>,
    /// Whether terminating the instance deletes it.
    pub delete_on_termination: bool,
}

/// What stands behind a device name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceTarget {
    /// A volume.
    Ebs(EbsBlockDevice),
    /// The instance's own empty disk: `ephemeral0` to `ephemeral23`.
    Ephemeral(u8),
}

/// One line of an image's block device mapping.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockDeviceMapping {
    /// The device's name in the guest, for example `/dev/xvda`.
    pub device_name: String,
    /// What stands behind it.
    pub target: DeviceTarget,
}

/// Where a copied image came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSource {
    /// The region's identity.
    pub region_id: RegionId,
    /// The name by which the copier knew the region.
    pub region: String,
    /// The image there.
    pub image_id: ImageId,
    /// Its owner there.
    pub owner: AccountId,
}

/// The machine that an image is for. Instances keep it, so that an image can be made of them again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor.
    pub architecture: Architecture,
    /// `windows`, or none.
    pub platform: Option<String>,
    /// How the guest is virtualized.
    pub virtualization_type: VirtualizationType,
    /// The firmware that boots it.
    pub boot_mode: Option<BootMode>,
    /// TPM version, `v2.0`, or none.
    pub tpm_support: Option<String>,
    /// Enhanced networking.
    pub ena_support: bool,
    /// Instance metadata service, `v2.0`, or none.
    pub imds_support: Option<String>,
    /// For paravirtual guests: `aki-…`.
    pub kernel_id: Option<String>,
    /// For paravirtual guests: `ari-…`.
    pub ramdisk_id: Option<String>,
}

/// Whether an image may be deregistered. Rule: EC2's EnableImageDeregistrationProtection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeregistrationProtection {
    /// It may.
    Disabled,
    /// It may not.
    Enabled,
    /// It may not, nor for 24 hours after this was switched off.
    EnabledWithCooldown,
    /// It was switched off, and ends at this time.
    CoolingDown {
        /// From when on the image may be deregistered.
        until_ms: TimeMs,
    },
}

impl DeregistrationProtection {
    /// Whether it holds at a time.
    pub const fn holds_at(self, now_ms: TimeMs) -> bool {
        match self {
            Self::Disabled => false,
            Self::Enabled | Self::EnabledWithCooldown => true,
            Self::CoolingDown { until_ms } => now_ms < until_ms,
        }
    }
}

/// An image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Its id.
    pub id: ImageId,
    /// Unique among its owner's images in the region.
    pub name: String,
    /// What its owner says of it.
    pub description: String,
    /// Who owns it.
    pub owner: AccountId,
    /// Where it stands in its life.
    pub state: ImageState,
    /// The machine it is for.
    pub machine: Machine,
    /// The name of the device that the guest boots from.
    pub root_device_name: String,
    /// The template of the root device of an instance-store-backed image; none for one backed by EBS.
    pub template: Option<TemplateId>,
    /// The devices. The root's is the one with the root device name; an instance-store-backed image has its
    /// template in its place.
    pub devices: Vec<BlockDeviceMapping>,
    /// Who else may launch and copy it.
    pub launch_permissions: Vec<Permission>,
    /// Codes under which it is sold.
    pub product_codes: Vec<String>,
    /// Keys are unique.
    pub tags: Vec<Tag>,
    /// When it was registered.
    pub created_ms: TimeMs,
    /// From when on it is deprecated.
    pub deprecation_ms: Option<TimeMs>,
    /// Whether it may be deregistered.
    pub deregistration_protection: DeregistrationProtection,
    /// Where it was copied from.
    pub source: Option<ImageSource>,
    /// The instance that it was made of.
    pub source_instance: Option<InstanceId>,
    /// The image that it is the next version of.
    pub predecessor: Option<ImageId>,
    /// The token of the request that made it: the same request again gives the same image.
    pub client_token: Option<ClientToken>,
}

impl Image {
    /// Whether `account` may know of it, launch it and copy it: its owner, or whom its permissions admit.
    pub fn visible_to(&self, account: AccountId) -> bool {
        self.owner == account || self.launch_permissions.iter().any(|p| p.admits(account))
    }

    /// What holds the root device.
    pub const fn root_device_type(&self) -> RootDeviceType {
        if self.template.is_some() { RootDeviceType::InstanceStore } else { RootDeviceType::Ebs }
    }

    /// Whether everybody may launch it.
    pub fn is_public(&self) -> bool {
        self.launch_permissions.contains(&Permission::All)
    }

    /// The snapshots that its devices stand on, in the order of its mapping.
    pub fn snapshot_ids(&self) -> impl Iterator<Item = SnapshotId> + '_ {
        self.devices.iter().filter_map(|device| match &device.target {
            DeviceTarget::Ebs(ebs) => ebs.snapshot_id,
            DeviceTarget::Ephemeral(_) => None,
        })
    }
}

/// Whether a name is one that EC2 accepts for an image: 3 to 128 of letters, digits and `()[] ./-'@_`.
pub fn is_image_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "()[] ./-'@_".contains(c);
    (3..=128).contains(&name.chars().count()) && name.chars().all(allowed)
}

/// Whether a text can stand as a device name: `/dev/` and up to 27 lower-case letters or digits, or the
/// bare name (`xvda`, `sda1`).
pub fn is_device_name(name: &str) -> bool {
    let bare = name.strip_prefix("/dev/").unwrap_or(name);
    (2..=27).contains(&bare.len()) && bare.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
}

/// Whether two device names mean the same device: `/dev/` may be left out.
pub fn is_same_device(one: &str, other: &str) -> bool {
    one.strip_prefix("/dev/").unwrap_or(one) == other.strip_prefix("/dev/").unwrap_or(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_names_follow_ec2() {
        assert!(is_image_name("web (v2) [prod] a/b.c-d'e@f_g"));
        assert!(is_image_name("abc") && !is_image_name("ab"));
        assert!(is_image_name(&"a".repeat(128)) && !is_image_name(&"a".repeat(129)));
        assert!(!is_image_name("a:b") && !is_image_name("über") && !is_image_name("a\nb"));
    }

    #[test]
    fn device_names_cannot_be_paths() {
        assert!(is_device_name("/dev/xvda") && is_device_name("sda1") && is_device_name("/dev/nvme0n1"));
        for bad in ["", "/dev/", "/dev/../x", "/dev/a/b", "/etc/passwd", "xvd a", "XVDA", "/dev/.a"] {
            assert!(!is_device_name(bad), "{bad:?}");
        }
    }
}
