//! The catalogue: what exists in a region. It is the deterministic replay of the log and nothing else.
//!
//! [`Catalog::apply`] is the one place where operations are judged. A writer applies its operations to
//! exactly the state at the log's tail before it appends them; a reader that meets a record which does not
//! apply has met damage.

use super::ids::{ImageId, InstanceId, ObjectHash, SessionId, SnapshotId, VolumeId};
use super::image::{Image, ImageState};
use super::instance::{Instance, Volume};
use super::objects::{PackName, PackRecord, PackState, SegmentName, SegmentRecord};
use super::op::{ImageChange, LogRecord, Op, SnapshotChange};
use super::snapshot::Snapshot;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A part of the catalogue. Cloning one is free: a writer tries its operations on a clone, and only the
/// parts that they change are copied.
pub type Table<K, V> = Arc<BTreeMap<K, V>>;

/// A pack with its state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pack {
    /// What its registration said.
    pub record: PackRecord,
    /// Whether it may be used.
    pub state: PackState,
}

/// The replayed state of a region's log.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Catalog {
    /// Sequence number of the last record applied; 0 before the first.
    pub sequence: u64,
    /// Packs by name.
    pub packs: Table<PackName, Pack>,
    /// Index segments by name.
    pub segments: Table<SegmentName, SegmentRecord>,
    /// Snapshots by id.
    pub snapshots: Table<SnapshotId, Snapshot>,
    /// Images by id.
    pub images: Table<ImageId, Image>,
    /// Volumes by id.
    pub volumes: Table<VolumeId, Volume>,
    /// Instances by id.
    pub instances: Table<InstanceId, Instance>,
    /// Manifests of deleted snapshots that volumes still stand on.
    pub retained_manifests: Table<SnapshotId, Snapshot>,
    /// Sessions that may no longer commit.
    pub fenced_sessions: BTreeSet<SessionId>,
}

/// Why an operation does not apply to a catalogue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rejection {
    /// The record's number is not the next one.
    OutOfSequence {
        /// The number that would be next.
        expected: u64,
    },
    /// The writer's session was fenced.
    SessionFenced(SessionId),
    /// The name or id exists already.
    Exists(String),
    /// The name or id does not exist.
    Missing(String),
    /// A pack that the operation depends on is being removed or is gone.
    PackUnavailable(PackName),
    /// An image uses the snapshot.
    SnapshotInUse(SnapshotId, ImageId),
    /// An image's name is taken in its owner's account.
    NameTaken(String, ImageId),
}

impl std::fmt::Display for Rejection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::OutOfSequence { expected } => write!(f, "expected record {expected}"),
            Self::SessionFenced(session) => write!(f, "session {session} was fenced"),
            Self::Exists(what) => write!(f, "{what} exists already"),
            Self::Missing(what) => write!(f, "{what} does not exist"),
            Self::PackUnavailable(pack) => write!(f, "{pack} is gone or being removed"),
            Self::SnapshotInUse(snapshot, image) => {
                write!(f, "The snapshot {snapshot} is currently in use by {image}")
            }
            Self::NameTaken(name, image) => write!(f, "AMI name {name} is already in use by AMI {image}"),
        }
    }
}

impl Catalog {
    /// Applies a record: all of its operations or, on a rejection, none (the catalogue is then unchanged
    /// only if the caller kept a copy: see `region::log`).
    pub fn apply(&mut self, record: &LogRecord) -> Result<(), Rejection> {
        let expected = self.sequence.saturating_add(1);
        if record.sequence != expected || record.sequence == self.sequence {
            return Err(Rejection::OutOfSequence { expected });
        }
        if self.fenced_sessions.contains(&record.author.session) {
            return Err(Rejection::SessionFenced(record.author.session));
        }
        for op in &record.ops {
            self.apply_op(op)?;
        }
        self.sequence = record.sequence;
        Ok(())
    }

    /// The first image that uses a snapshot.
    pub fn image_using(&self, snapshot: SnapshotId) -> Option<ImageId> {
        self.images.values().find(|image| image.snapshot_ids().any(|id| id == snapshot)).map(|image| image.id)
    }

    /// Every snapshot whose content must stay: those that exist, and deleted ones under a volume.
    pub fn roots(&self) -> impl Iterator<Item = &Snapshot> {
        self.snapshots.values().chain(self.retained_manifests.values())
    }

    fn apply_op(&mut self, op: &Op) -> Result<(), Rejection> {
        match op {
            Op::NoOp => Ok(()),
            Op::RegisterPack(record) => self.register_pack(record),
            Op::RegisterSegment(record) => self.register_segment(record),
            Op::CreateSnapshot { snapshot, packs } => self.create_snapshot(snapshot, packs),
            Op::DeleteSnapshot { id } => self.delete_snapshot(*id),
            Op::RegisterImage(image) => self.register_image(image),
            Op::DeregisterImage { id } => Arc::make_mut(&mut self.images)
                .remove(id)
                .map(drop)
                .ok_or_else(|| Rejection::Missing(id.to_string())),
            Op::RunInstance { instance, volumes } => self.run_instance(instance, volumes),
            Op::ModifyImage { id, change } => self.modify_image(*id, change),
            Op::ModifySnapshot { id, change } => self.modify_snapshot(*id, change),
        }
    }

    fn register_pack(&mut self, record: &PackRecord) -> Result<(), Rejection> {
        for base in &record.bases {
            self.use_pack(*base)?;
        }
        let pack = Pack { record: record.clone(), state: PackState::Live };
        match Arc::make_mut(&mut self.packs).insert(record.name, pack) {
            None => Ok(()),
            Some(_) => Err(Rejection::Exists(record.name.to_string())),
        }
    }

    fn register_segment(&mut self, record: &SegmentRecord) -> Result<(), Rejection> {
        for replaced in &record.replaces {
            if Arc::make_mut(&mut self.segments).remove(replaced).is_none() {
                return Err(Rejection::Missing(replaced.to_string()));
            }
        }
        match Arc::make_mut(&mut self.segments).insert(record.name, record.clone()) {
            None => Ok(()),
            Some(_) => Err(Rejection::Exists(record.name.to_string())),
        }
    }

    fn create_snapshot(&mut self, snapshot: &Snapshot, packs: &[PackName]) -> Result<(), Rejection> {
        for pack in packs {
            self.use_pack(*pack)?;
        }
        let known = self.retained_manifests.contains_key(&snapshot.id);
        if known || Arc::make_mut(&mut self.snapshots).insert(snapshot.id, snapshot.clone()).is_some() {
            return Err(Rejection::Exists(snapshot.id.to_string()));
        }
        Ok(())
    }

    /// A use makes a condemned pack live again; one that is being swept cannot be used.
    fn use_pack(&mut self, name: PackName) -> Result<(), Rejection> {
        let pack = Arc::make_mut(&mut self.packs).get_mut(&name).ok_or(Rejection::PackUnavailable(name))?;
        match pack.state {
            PackState::Live => Ok(()),
            PackState::Condemned { .. } => {
                pack.state = PackState::Live;
                Ok(())
            }
            PackState::Sweeping => Err(Rejection::PackUnavailable(name)),
        }
    }

    fn delete_snapshot(&mut self, id: SnapshotId) -> Result<(), Rejection> {
        if let Some(image) = self.image_using(id) {
            return Err(Rejection::SnapshotInUse(id, image));
        }
        let snapshot = Arc::make_mut(&mut self.snapshots)
            .remove(&id)
            .ok_or_else(|| Rejection::Missing(id.to_string()))?;
        if self.volumes.values().any(|volume| volume.snapshot_id == Some(id)) {
            Arc::make_mut(&mut self.retained_manifests).insert(id, snapshot);
        }
        Ok(())
    }

    fn register_image(&mut self, image: &Image) -> Result<(), Rejection> {
        for snapshot in image.snapshot_ids() {
            if !self.snapshots.contains_key(&snapshot) {
                return Err(Rejection::Missing(snapshot.to_string()));
            }
        }
        let same_name = |other: &&Image| other.owner == image.owner && other.name == image.name;
        if let Some(other) = self.images.values().find(same_name) {
            return Err(Rejection::NameTaken(image.name.clone(), other.id));
        }
        match Arc::make_mut(&mut self.images).insert(image.id, image.clone()) {
            None => Ok(()),
            Some(_) => Err(Rejection::Exists(image.id.to_string())),
        }
    }

    fn modify_image(&mut self, id: ImageId, change: &ImageChange) -> Result<(), Rejection> {
        let images = Arc::make_mut(&mut self.images);
        let image = images.get_mut(&id).ok_or_else(|| Rejection::Missing(id.to_string()))?;
        match change {
            ImageChange::LaunchPermissions(permissions) => image.launch_permissions = permissions.clone(),
            ImageChange::Tags(tags) => image.tags = tags.clone(),
            ImageChange::Deprecation(at) => image.deprecation_ms = *at,
            ImageChange::Disable => {
                image.state = ImageState::Disabled;
                image.launch_permissions.clear();
            }
            ImageChange::Enable => image.state = ImageState::Available,
            ImageChange::Protection(protected) => image.deregistration_protected = *protected,
        }
        Ok(())
    }

    fn modify_snapshot(&mut self, id: SnapshotId, change: &SnapshotChange) -> Result<(), Rejection> {
        let snapshots = Arc::make_mut(&mut self.snapshots);
        let snapshot = snapshots.get_mut(&id).ok_or_else(|| Rejection::Missing(id.to_string()))?;
        match change {
            SnapshotChange::CreateVolumePermissions(permissions) => {
                snapshot.create_volume_permissions = permissions.clone();
            }
            SnapshotChange::Tags(tags) => snapshot.tags = tags.clone(),
        }
        Ok(())
    }

    fn run_instance(&mut self, instance: &Instance, volumes: &[Volume]) -> Result<(), Rejection> {
        for volume in volumes {
            if let Some(snapshot) = volume.snapshot_id
                && !self.snapshots.contains_key(&snapshot)
            {
                return Err(Rejection::Missing(snapshot.to_string()));
            }
            if Arc::make_mut(&mut self.volumes).insert(volume.id, volume.clone()).is_some() {
                return Err(Rejection::Exists(volume.id.to_string()));
            }
        }
        match Arc::make_mut(&mut self.instances).insert(instance.id, instance.clone()) {
            None => Ok(()),
            Some(_) => Err(Rejection::Exists(instance.id.to_string())),
        }
    }
}

/// A position in a log: a sequence number and the hash of the record there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogPosition {
    /// The record's number; 0 stands for the region file.
    pub sequence: u64,
    /// Its hash.
    pub hash: ObjectHash,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::account::AccountId;
    use crate::model::objects::{ManifestName, ManifestRecord};
    use crate::model::op::Author;
    use crate::model::snapshot::SnapshotState;

    const SESSION: SessionId = SessionId([1; 16]);

    fn record(sequence: u64, ops: Vec<Op>) -> LogRecord {
        LogRecord {
            sequence,
            previous: ObjectHash([0; 32]),
            nonce: [0; 16],
            time_ms: 0,
            author: Author { account: AccountId::from_random(7), session: SESSION },
            ops,
        }
    }

    fn pack(number: u64, bases: Vec<PackName>) -> Op {
        let name = PackName { session: SESSION, number };
        Op::RegisterPack(PackRecord {
            name,
            len: 1,
            frames: 1,
            raw_bytes: 4096,
            trailer_hash: ObjectHash([0; 32]),
            bases,
        })
    }

    fn snapshot(id: u64, packs: &[u64]) -> Op {
        Op::CreateSnapshot {
            snapshot: Box::new(Snapshot {
                id: SnapshotId::from_random(id),
                owner: AccountId::from_random(7),
                description: String::new(),
                volume_bytes: 4096,
                data_bytes: 4096,
                state: SnapshotState::Completed,
                created_ms: 0,
                tags: vec![],
                parent: None,
                volume: None,
                source: None,
                create_volume_permissions: vec![],
                client_token: None,
                manifest: ManifestRecord {
                    name: ManifestName { session: SESSION, number: id },
                    len: 1,
                    hash: ObjectHash([0; 32]),
                    chunks: 1,
                },
            }),
            packs: packs.iter().map(|&number| PackName { session: SESSION, number }).collect(),
        }
    }

    #[test]
    fn a_record_must_be_the_next_one() {
        let mut catalog = Catalog::default();
        assert_eq!(catalog.apply(&record(2, vec![])), Err(Rejection::OutOfSequence { expected: 1 }));
        catalog.apply(&record(1, vec![Op::NoOp])).unwrap();
        assert_eq!(catalog.sequence, 1);
    }

    #[test]
    fn a_snapshot_needs_its_packs_and_rescues_condemned_ones() {
        let mut catalog = Catalog::default();
        let first = PackName { session: SESSION, number: 0 };
        assert_eq!(
            catalog.apply(&record(1, vec![snapshot(1, &[0])])),
            Err(Rejection::PackUnavailable(first))
        );
        catalog.apply(&record(1, vec![pack(0, vec![]), snapshot(2, &[0])])).unwrap();
        Arc::make_mut(&mut catalog.packs).get_mut(&first).unwrap().state =
            PackState::Condemned { since_ms: 1 };
        catalog.apply(&record(2, vec![snapshot(3, &[0])])).unwrap();
        assert_eq!(catalog.packs[&first].state, PackState::Live);
        Arc::make_mut(&mut catalog.packs).get_mut(&first).unwrap().state = PackState::Sweeping;
        assert_eq!(
            catalog.apply(&record(3, vec![snapshot(4, &[0])])),
            Err(Rejection::PackUnavailable(first))
        );
    }

    #[test]
    fn a_pack_needs_the_packs_of_its_bases() {
        let mut catalog = Catalog::default();
        let base = PackName { session: SESSION, number: 9 };
        assert_eq!(
            catalog.apply(&record(1, vec![pack(0, vec![base])])),
            Err(Rejection::PackUnavailable(base))
        );
    }

    #[test]
    fn a_fenced_session_commits_nothing() {
        let mut catalog = Catalog::default();
        catalog.fenced_sessions.insert(SESSION);
        assert_eq!(catalog.apply(&record(1, vec![])), Err(Rejection::SessionFenced(SESSION)));
    }

    #[test]
    fn names_are_used_once() {
        let mut catalog = Catalog::default();
        catalog.apply(&record(1, vec![pack(0, vec![]), snapshot(1, &[])])).unwrap();
        assert!(matches!(catalog.apply(&record(2, vec![pack(0, vec![])])), Err(Rejection::Exists(_))));
        assert!(matches!(catalog.apply(&record(2, vec![snapshot(1, &[])])), Err(Rejection::Exists(_))));
    }
}
