//! Snapshots: a volume's content at one time, immutable; and templates, which are that for instance stores.

use super::account::{AccountId, ClientToken, Permission, Tag};
use super::ids::{RegionId, SnapshotId, TemplateId, VolumeId};
use super::objects::ManifestRecord;
use super::units::TimeMs;
use super::words::SnapshotState;
use serde::{Deserialize, Serialize};

/// Where a copied snapshot came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotSource {
    /// The region's identity.
    pub region_id: RegionId,
    /// The name by which the copier knew the region.
    pub region: String,
    /// The snapshot there.
    pub snapshot_id: SnapshotId,
    /// The tail of the source's log when it was read.
    pub sequence: u64,
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its id.
    pub id: SnapshotId,
    /// Who owns it.
    pub owner: AccountId,
    /// What its owner says of it.
    pub description: String,
    /// Length of the volume in bytes.
    pub volume_bytes: u64,
    /// Bytes of it that are not in zero runs.
    pub data_bytes: u64,
    /// Where it stands in its life.
    pub state: SnapshotState,
    /// When it was taken.
    pub created_ms: TimeMs,
    /// Keys are unique.
    pub tags: Vec<Tag>,
    /// The snapshot that its taker named as predecessor.
    pub parent: Option<SnapshotId>,
    /// The volume that it was taken of, if that was one of ours.
    pub volume: Option<VolumeId>,
    /// Where it was copied from.
    pub source: Option<SnapshotSource>,
    /// Who else may read it and make volumes of it.
    pub create_volume_permissions: Vec<Permission>,
    /// The token of the request that made it: the same request again gives the same snapshot.
    pub client_token: Option<ClientToken>,
    /// Its block map.
    pub manifest: ManifestRecord,
}

impl Snapshot {
    /// How far it is, as EC2 says it.
    pub const fn progress(&self) -> &'static str {
        match self.state {
            SnapshotState::Completed => "100%",
            SnapshotState::Pending | SnapshotState::Error => "0%",
        }
    }

    /// Whether everybody may read it.
    pub fn is_public(&self) -> bool {
        self.create_volume_permissions.contains(&Permission::All)
    }

    /// Whether `account` may know of it and read it: its owner, or whom its permissions admit.
    pub fn readable_by(&self, account: AccountId) -> bool {
        self.owner == account || self.create_volume_permissions.iter().any(|p| p.admits(account))
    }
}

/// The root device of an instance-store-backed image: copied to each instance's own disk, never a volume.
/// It lives as long as its image is registered or in the bin, or an instance of it lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Template {
    /// Its id.
    pub id: TemplateId,
    /// Who owns it.
    pub owner: AccountId,
    /// Length in bytes.
    pub volume_bytes: u64,
    /// Bytes of it that are not in zero runs.
    pub data_bytes: u64,
    /// When it was made.
    pub created_ms: TimeMs,
    /// Its block map.
    pub manifest: ManifestRecord,
}
