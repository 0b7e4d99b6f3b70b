//! Images (AMIs): the template of an instance. Rules: EC2's RegisterImage and DescribeImages.

use super::account::{AccountId, Permission, Tag};
use super::ids::{ImageId, InstanceId, RegionId, SnapshotId};
use super::units::TimeMs;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $word)] $variant,)+ }

        impl $name {
            /// Every value's word, as EC2 spells it.
            pub const WORDS: &'static [&'static str] = &[$($word),+];

            /// EC2's word.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(format!("expected one of: {}", Self::WORDS.join(", "))),
                }
            }
        }
    };
}

words!(
    /// The processor that an image is for.
    Architecture {
        /// 32-bit x86.
        I386 = "i386",
        /// 64-bit x86.
        X86_64 = "x86_64",
        /// 64-bit ARM.
        Arm64 = "arm64",
        /// macOS on 64-bit x86.
        X86_64Mac = "x86_64_mac",
        /// macOS on 64-bit ARM.
        Arm64Mac = "arm64_mac",
    }
);
words!(
    /// How the guest is virtualized.
    VirtualizationType {
        /// Hardware virtual machine.
        Hvm = "hvm",
        /// Paravirtual.
        Paravirtual = "paravirtual",
    }
);
words!(
    /// The firmware that boots the image.
    BootMode {
        /// BIOS.
        LegacyBios = "legacy-bios",
        /// UEFI.
        Uefi = "uefi",
        /// UEFI where the machine has it, BIOS otherwise.
        UefiPreferred = "uefi-preferred",
    }
);
words!(
    /// What holds the root device.
    RootDeviceType {
        /// A volume made from a snapshot.
        Ebs = "ebs",
        /// A template copied to the instance's own disk.
        InstanceStore = "instance-store",
    }
);
words!(
    /// An image's state.
    ImageState {
        /// Being made.
        Pending = "pending",
        /// Usable.
        Available = "available",
        /// Its registration was refused.
        Invalid = "invalid",
        /// Removed.
        Deregistered = "deregistered",
        /// Not usable for now.
        Transient = "transient",
        /// Could not be made.
        Failed = "failed",
        /// Making it met an error.
        Error = "error",
        /// Switched off by its owner.
        Disabled = "disabled",
    }
);
words!(
    /// The kind of an EBS volume.
    VolumeType {
        /// General purpose, third generation.
        Gp3 = "gp3",
        /// General purpose, second generation.
        Gp2 = "gp2",
        /// Provisioned operations.
        Io1 = "io1",
        /// Provisioned operations, second generation.
        Io2 = "io2",
        /// Throughput optimised.
        St1 = "st1",
        /// Cold.
        Sc1 = "sc1",
        /// Magnetic.
        Standard = "standard",
    }
);

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
    /// The processor it is for.
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
    /// For paravirtual guests.
    pub kernel_id: Option<String>,
    /// For paravirtual guests.
    pub ramdisk_id: Option<String>,
    /// The name of the device that the guest boots from.
    pub root_device_name: String,
    /// What holds the root device.
    pub root_device_type: RootDeviceType,
    /// The devices; the root's is the one with the root device name.
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
    /// Whether it may not be deregistered.
    pub deregistration_protected: bool,
    /// Where it was copied from.
    pub source: Option<ImageSource>,
    /// The instance that it was made of.
    pub source_instance: Option<InstanceId>,
    /// The image that it is the next version of.
    pub predecessor: Option<ImageId>,
    /// The token of the request that made it: the same request again gives the same image.
    pub client_token: Option<String>,
}

impl Image {
    /// Whether `account` may know of it, launch it and copy it: its owner, or whom its permissions admit.
    pub fn visible_to(&self, account: AccountId) -> bool {
        self.owner == account || self.launch_permissions.iter().any(|p| p.admits(account))
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

    #[test]
    fn words_parse_back() {
        for word in Architecture::WORDS {
            assert_eq!(word.parse::<Architecture>().unwrap().as_str(), *word);
        }
        assert!("amd64".parse::<Architecture>().unwrap_err().contains("x86_64"));
    }
}
