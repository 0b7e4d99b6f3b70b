//! Snapshots: a volume's content at one time, immutable.

use super::account::{AccountId, Permission, Tag};
use super::ids::{RegionId, SnapshotId, VolumeId};
use super::objects::ManifestRecord;
use super::units::TimeMs;
use serde::{Deserialize, Serialize};

/// A snapshot's state, with EC2's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SnapshotState {
    /// Still being written.
    Pending,
    /// Whole and readable.
    Completed,
    /// Damage was found.
    Error,
}

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
    pub client_token: Option<String>,
    /// Its block map.
    pub manifest: ManifestRecord,
}

impl Snapshot {
    /// Whether `account` may know of it and read it: its owner, or whom its permissions admit.
    pub fn readable_by(&self, account: AccountId) -> bool {
        self.owner == account || self.create_volume_permissions.iter().any(|p| p.admits(account))
    }
}
