//! Volumes and instances: what launching an image leaves on record.

use super::account::{AccountId, Tag};
use super::ids::{ImageId, InstanceId, SnapshotId, VolumeId};
use super::image::VolumeType;
use super::units::TimeMs;
use serde::{Deserialize, Serialize};

/// Where a volume is attached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The instance.
    pub instance_id: InstanceId,
    /// The device's name in the guest.
    pub device_name: String,
    /// Whether terminating the instance deletes the volume.
    pub delete_on_termination: bool,
}

/// A volume's state, with EC2's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeState {
    /// Not attached.
    Available,
    /// Attached.
    InUse,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its id.
    pub id: VolumeId,
    /// Who owns it.
    pub owner: AccountId,
    /// Its size in bytes.
    pub volume_bytes: u64,
    /// Its kind.
    pub volume_type: VolumeType,
    /// The snapshot that it was made from. As long as the volume exists, its content stays in the store.
    pub snapshot_id: Option<SnapshotId>,
    /// Where it stands in its life.
    pub state: VolumeState,
    /// When it was made.
    pub created_ms: TimeMs,
    /// Where it is attached.
    pub attachment: Option<Attachment>,
    /// The disk file on the host that launched it, as an absolute path.
    pub path: String,
    /// Keys are unique.
    pub tags: Vec<Tag>,
}

/// An instance's state, with EC2's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InstanceState {
    /// Its disks stand, no machine runs.
    Stopped,
    /// A machine runs.
    Running,
    /// Gone.
    Terminated,
}

/// An instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Its id.
    pub id: InstanceId,
    /// Who owns it.
    pub owner: AccountId,
    /// The image that it was launched from.
    pub image_id: ImageId,
    /// Where it stands in its life.
    pub state: InstanceState,
    /// When it was launched.
    pub launched_ms: TimeMs,
    /// The name of the device that it boots from.
    pub root_device_name: String,
    /// Its folder on the host that launched it, as an absolute path.
    pub path: String,
    /// Keys are unique.
    pub tags: Vec<Tag>,
}
