//! Volumes and instances: what launching an image leaves on record.

use super::account::{AccountId, ClientToken, Tag};
use super::ids::{ImageId, InstanceId, ReservationId, SnapshotId, TemplateId, VolumeId};
use super::image::{Machine, is_same_device};
use super::units::TimeMs;
use super::words::{InstanceState, RootDeviceType, VolumeState, VolumeType};
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
    /// When it was attached.
    pub attached_ms: TimeMs,
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
    /// Provisioned operations a second.
    pub iops: Option<u32>,
    /// The snapshot that it was made from. As long as the volume exists, its content stays in the store.
    pub snapshot_id: Option<SnapshotId>,
    /// When it was made.
    pub created_ms: TimeMs,
    /// Where it is attached.
    pub attachment: Option<Attachment>,
    /// The disk file on the host that made it, as an absolute path or from the region's directory on.
    pub path: String,
    /// Keys are unique.
    pub tags: Vec<Tag>,
    /// The token of the request that made it.
    pub client_token: Option<ClientToken>,
}

impl Volume {
    /// Where it stands in its life.
    pub const fn state(&self) -> VolumeState {
        if self.attachment.is_some() { VolumeState::InUse } else { VolumeState::Available }
    }
}

/// A disk that is an instance's own and goes with it: the copy of a template, or an empty ephemeral one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalDisk {
    /// The device's name in the guest.
    pub device_name: String,
    /// Its size in bytes.
    pub volume_bytes: u64,
    /// What it was copied from; none for an empty one.
    pub template_id: Option<TemplateId>,
    /// Which ephemeral disk it is; none for a root device.
    pub ephemeral: Option<u8>,
    /// The disk file on the host that launched it, as an absolute path or from the region's directory on.
    pub path: String,
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
    /// The launch that made it, perhaps with others.
    pub reservation_id: ReservationId,
    /// Its place among them, from 0 on.
    pub launch_index: u32,
    /// Where it stands in its life.
    pub state: InstanceState,
    /// When it was launched.
    pub launched_ms: TimeMs,
    /// When it was terminated.
    pub terminated_ms: Option<TimeMs>,
    /// The machine that its image is for.
    pub machine: Machine,
    /// Codes under which its image is sold.
    pub product_codes: Vec<String>,
    /// The name of the device that it boots from.
    pub root_device_name: String,
    /// Its own disks.
    pub local_disks: Vec<LocalDisk>,
    /// Its folder on the host that launched it, as an absolute path or from the region's directory on.
    pub path: String,
    /// Keys are unique.
    pub tags: Vec<Tag>,
    /// The token of the request that made it.
    pub client_token: Option<ClientToken>,
}

impl Instance {
    /// What holds its root device.
    pub fn root_device_type(&self) -> RootDeviceType {
        let is_local =
            self.local_disks.iter().any(|disk| is_same_device(&disk.device_name, &self.root_device_name));
        if is_local { RootDeviceType::InstanceStore } else { RootDeviceType::Ebs }
    }

    /// Whether it has not been terminated.
    pub fn is_live(&self) -> bool {
        self.state != InstanceState::Terminated
    }

    /// The templates that its disks are copies of.
    pub fn template_ids(&self) -> impl Iterator<Item = TemplateId> + '_ {
        self.local_disks.iter().filter_map(|disk| disk.template_id)
    }
}
