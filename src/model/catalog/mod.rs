//! The catalogue: what exists in a region. It is the deterministic replay of the log and nothing else.
//!
//! [`Catalog::apply`] is the one place where operations are judged. A writer applies its operations to
//! exactly the state at the log's tail before it appends them; a reader that meets a record which does not
//! apply has met damage. Who may do what is not judged here but by the verbs.

mod accounts;
mod derived;
mod images;
mod instances;
mod packs;
mod snapshots;

use super::account::{AccountId, AccountSettings};
use super::ids::{ImageId, InstanceId, ObjectHash, SessionId, SnapshotId, TemplateId, VolumeId};
use super::image::Image;
use super::instance::{Instance, Volume};
use super::objects::{ManifestRecord, PackName, PackRecord, PackState, SegmentName, SegmentRecord};
use super::op::{BinStay, LogRecord, Op};
use super::snapshot::{Snapshot, Template};
use derived::Derived;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
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

/// A thing in the recycle bin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binned<T> {
    /// The thing as it was.
    pub item: T,
    /// How long it stays.
    pub stay: BinStay,
}

/// An image that was deregistered, for telling so to whoever asks for it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deregistered {
    /// The image.
    pub id: ImageId,
    /// Who owned it.
    pub owner: AccountId,
}

/// Deregistered images that are remembered: the newest so many.
pub const DEREGISTERED_KEPT: usize = 4096;

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
    /// Templates of instance-store-backed images by id.
    pub templates: Table<TemplateId, Template>,
    /// Images by id.
    pub images: Table<ImageId, Image>,
    /// Volumes by id.
    pub volumes: Table<VolumeId, Volume>,
    /// Instances by id.
    pub instances: Table<InstanceId, Instance>,
    /// What is known of accounts.
    pub accounts: Table<AccountId, AccountSettings>,
    /// Deregistered images in the recycle bin.
    pub binned_images: Table<ImageId, Binned<Image>>,
    /// Deleted snapshots in the recycle bin.
    pub binned_snapshots: Table<SnapshotId, Binned<Snapshot>>,
    /// Images that were deregistered last, the newest at the end; in the bin or not.
    pub deregistered: Arc<VecDeque<Deregistered>>,
    /// Deleted snapshots that volumes still stand on.
    pub retained_snapshots: Table<SnapshotId, Snapshot>,
    /// Sessions that may no longer commit.
    pub fenced_sessions: Arc<BTreeSet<SessionId>>,
    /// What follows from the rest.
    #[serde(skip)]
    derived: Derived,
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
    /// The state of the thing does not allow it.
    State(String),
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
            Self::State(why) => f.write_str(why),
        }
    }
}

/// The identity of something whose content must stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RootId {
    /// A snapshot: one that exists, is in the bin, or is deleted and under a volume.
    Snapshot(SnapshotId),
    /// A template.
    Template(TemplateId),
}

impl std::fmt::Display for RootId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Snapshot(id) => id.fmt(f),
            Self::Template(id) => id.fmt(f),
        }
    }
}

/// Something whose content must stay.
#[derive(Debug, Clone, Copy)]
pub struct Root<'a> {
    /// Which.
    pub id: RootId,
    /// Who owns it.
    pub owner: AccountId,
    /// Length in bytes.
    pub volume_bytes: u64,
    /// Bytes of it that are not in zero runs.
    pub data_bytes: u64,
    /// Its block map.
    pub manifest: &'a ManifestRecord,
}

impl<'a> From<&'a Snapshot> for Root<'a> {
    fn from(snapshot: &'a Snapshot) -> Self {
        let Snapshot { id, owner, volume_bytes, data_bytes, manifest, .. } = snapshot;
        let id = RootId::Snapshot(*id);
        Self { id, owner: *owner, volume_bytes: *volume_bytes, data_bytes: *data_bytes, manifest }
    }
}

impl<'a> From<&'a Template> for Root<'a> {
    fn from(template: &'a Template) -> Self {
        let Template { id, owner, volume_bytes, data_bytes, manifest, .. } = template;
        let id = RootId::Template(*id);
        Self { id, owner: *owner, volume_bytes: *volume_bytes, data_bytes: *data_bytes, manifest }
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

    /// Makes what follows from the rest anew, after the rest was decoded.
    #[must_use]
    pub fn with_derived(mut self) -> Self {
        self.derived = Derived::of(&self);
        self
    }

    /// Everything whose content must stay.
    pub fn roots(&self) -> impl Iterator<Item = Root<'_>> {
        let binned = self.binned_snapshots.values().map(|binned| &binned.item);
        let snapshots = self.snapshots.values().chain(binned).chain(self.retained_snapshots.values());
        snapshots.map(Root::from).chain(self.templates.values().map(Root::from))
    }

    /// The state that some operations would lead to.
    pub fn after(&self, ops: &[Op]) -> Result<Self, Rejection> {
        let mut after = self.clone();
        ops.iter().try_for_each(|op| after.apply_op(op))?;
        Ok(after)
    }

    fn apply_op(&mut self, op: &Op) -> Result<(), Rejection> {
        match op {
            Op::NoOp => Ok(()),
            Op::RegisterPack(record) => self.register_pack(record),
            Op::RegisterSegment(record) => self.register_segment(record),
            Op::CreateSnapshot { snapshot, packs } => self.create_snapshot(snapshot, packs),
            Op::DeleteSnapshot { id, bin } => self.delete_snapshot(*id, *bin),
            Op::RegisterImage(image) => self.register_image(image),
            Op::DeregisterImage { id, bin } => self.deregister_image(*id, *bin),
            Op::RunInstance { instance, volumes } => self.run_instance(instance, volumes),
            Op::ModifyImage { id, change } => self.modify_image(*id, change),
            Op::ModifySnapshot { id, change } => self.modify_snapshot(*id, change),
            Op::CreateTemplate { template, packs } => self.create_template(template, packs),
            Op::RestoreImage { id } => self.restore_image(*id),
            Op::RestoreSnapshot { id } => self.restore_snapshot(*id),
            Op::ExpireImage { id } => self.expire_image(*id),
            Op::ExpireSnapshot { id } => self.expire_snapshot(*id),
            Op::ModifyAccount { account, change } => self.modify_account(*account, change),
            Op::CreateVolume(volume) => self.create_volume(volume),
            Op::DeleteVolume { id } => self.delete_volume(*id),
            Op::ModifyVolume { id, change } => self.modify_volume(*id, change),
            Op::ModifyInstance { id, change } => self.modify_instance(*id, change),
            Op::TerminateInstance { id, at_ms } => self.terminate_instance(*id, *at_ms),
            Op::ForgetInstance { id } => self.forget_instance(*id),
            Op::CondemnPacks { packs, at_ms } => self.condemn_packs(packs, *at_ms),
            Op::SweepPacks { packs } => self.sweep_packs(packs),
            Op::ForgetPacks { packs } => self.forget_packs(packs),
            Op::QuarantinePacks { packs, at_ms } => self.quarantine_packs(packs, *at_ms),
            Op::FenceSessions { sessions } => {
                Arc::make_mut(&mut self.fenced_sessions).extend(sessions);
                Ok(())
            }
            Op::ReplaceManifest { lost, by } => self.replace_manifest(*lost, by),
            Op::RebasePack { pack, bases } => self.rebase_pack(*pack, bases),
        }
    }
}

/// Puts a thing into a table that has none of that name.
fn insert_new<K: Ord + Copy + std::fmt::Display, V: Clone>(
    table: &mut Table<K, V>,
    name: K,
    value: V,
) -> Result<(), Rejection> {
    match Arc::make_mut(table).insert(name, value) {
        None => Ok(()),
        Some(_) => Err(Rejection::Exists(name.to_string())),
    }
}

/// Takes a thing out of a table.
fn remove<K: Ord + Copy + std::fmt::Display, V: Clone>(
    table: &mut Table<K, V>,
    name: K,
) -> Result<V, Rejection> {
    Arc::make_mut(table).remove(&name).ok_or_else(|| Rejection::Missing(name.to_string()))
}

/// A thing in a table, to be changed.
fn modify<K: Ord + Copy + std::fmt::Display, V: Clone>(
    table: &mut Table<K, V>,
    name: K,
) -> Result<&mut V, Rejection> {
    Arc::make_mut(table).get_mut(&name).ok_or_else(|| Rejection::Missing(name.to_string()))
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
    use crate::model::words::SnapshotState;

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

    /// Three packs in all states that they can be in, with bases in each other or not; all choices of them.
    #[test]
    fn a_snapshot_that_names_what_it_must_is_as_one_that_names_all() {
        let name = |number| PackName { session: SESSION, number };
        let states = [
            None,
            Some(PackState::Live),
            Some(PackState::Condemned { since_ms: 1 }),
            Some(PackState::Sweeping),
            Some(PackState::Quarantined { since_ms: 1 }),
        ];
        let mut ends = [0, 0];
        for bases in
            [[None; 3], [None, Some(0), Some(1)], [None, Some(0), Some(0)], [Some(2), Some(0), Some(1)]]
        {
            for (case, choice) in (0..125).flat_map(|case| (0..8).map(move |choice| (case, choice))) {
                let mut catalog = Catalog::default();
                for (at, base) in (0..).zip(bases) {
                    let Some(state) = states[case / [1, 5, 25][at] % 5] else { continue };
                    let Op::RegisterPack(mut record) = pack(at as u64, vec![]) else { continue };
                    record.bases = base.map(name).into_iter().collect();
                    let pack = Pack { record, state };
                    Arc::make_mut(&mut catalog.packs).insert(pack.record.name, pack);
                }
                let counted_on: Vec<u64> = (0..3).filter(|at| choice >> at & 1 == 1).collect();
                let naming = |packs: &[PackName]| {
                    let mut after = catalog.clone();
                    let numbers: Vec<u64> = packs.iter().map(|pack| pack.number).collect();
                    after.apply(&record(1, vec![snapshot(1, &numbers)])).map(|()| after)
                };
                let all: Vec<PackName> = counted_on.iter().copied().map(name).collect();
                let to_name = catalog.packs_to_name(&all);
                let is_live = |pack: &PackName| catalog.packs[pack].state == PackState::Live;
                assert!(!to_name.iter().flatten().any(is_live), "{to_name:?}");
                match (naming(&all), to_name.and_then(|packs| naming(&packs))) {
                    (Ok(all), Ok(some)) => {
                        assert_eq!(all, some);
                        ends[0] += 1;
                    }
                    (Err(Rejection::PackUnavailable(_)), Err(Rejection::PackUnavailable(_))) => ends[1] += 1,
                    differing => panic!("{differing:?}"),
                }
            }
        }
        assert!(ends[0] > 500 && ends[1] > 500, "{ends:?}");
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
    fn a_live_pack_gets_other_bases_that_can_be_used() {
        let name = |number| PackName { session: SESSION, number };
        let rebase = |pack, base| Op::RebasePack { pack: name(pack), bases: vec![name(base)] };
        let condemn = |number| Op::CondemnPacks { packs: vec![name(number)], at_ms: 5 };
        let mut catalog = Catalog::default();
        let packs = vec![pack(0, vec![]), pack(1, vec![name(0)]), pack(2, vec![]), pack(3, vec![])];
        catalog.apply(&record(1, packs)).unwrap();
        let refused = |catalog: &Catalog, op| {
            catalog.clone().apply(&record(catalog.sequence + 1, vec![op])).unwrap_err()
        };
        assert!(matches!(refused(&catalog, condemn(0)), Rejection::State(_)));
        assert!(matches!(refused(&catalog, rebase(9, 2)), Rejection::Missing(_)));
        assert_eq!(refused(&catalog, rebase(1, 9)), Rejection::PackUnavailable(name(9)));
        // The new base is rescued, and the old one may go.
        catalog.apply(&record(2, vec![condemn(2), rebase(1, 2), condemn(0)])).unwrap();
        assert_eq!(catalog.packs[&name(1)].record.bases, [name(2)]);
        assert_eq!(catalog.packs[&name(2)].state, PackState::Live);
        assert_eq!(catalog.packs[&name(0)].state, PackState::Condemned { since_ms: 5 });
        // Not that of a pack which is not live, and no pack is its own base.
        catalog.apply(&record(3, vec![condemn(3)])).unwrap();
        assert!(matches!(refused(&catalog, rebase(3, 2)), Rejection::State(_)));
        assert!(matches!(refused(&catalog, rebase(1, 1)), Rejection::State(_)));
    }

    #[test]
    fn a_fenced_session_commits_nothing() {
        let mut catalog = Catalog::default();
        Arc::make_mut(&mut catalog.fenced_sessions).insert(SESSION);
        assert_eq!(catalog.apply(&record(1, vec![])), Err(Rejection::SessionFenced(SESSION)));
    }

    #[test]
    fn every_rejection_has_its_sentence() {
        let (pack, snapshot, image) =
            (PackName { session: SESSION, number: 9 }, SnapshotId::from_random(1), ImageId::from_random(2));
        let sentences = [
            (Rejection::OutOfSequence { expected: 7 }, "expected record 7".to_owned()),
            (Rejection::SessionFenced(SESSION), format!("session {SESSION} was fenced")),
            (Rejection::Exists("x".into()), "x exists already".to_owned()),
            (Rejection::Missing("x".into()), "x does not exist".to_owned()),
            (Rejection::PackUnavailable(pack), format!("{pack} is gone or being removed")),
            (
                Rejection::SnapshotInUse(snapshot, image),
                format!("The snapshot {snapshot} is currently in use by {image}"),
            ),
            (
                Rejection::NameTaken("web".into(), image),
                format!("AMI name web is already in use by AMI {image}"),
            ),
            (Rejection::State("it is so".into()), "it is so".to_owned()),
        ];
        for (rejection, sentence) in sentences {
            assert_eq!(rejection.to_string(), sentence);
        }
    }

    #[test]
    fn names_are_used_once() {
        let mut catalog = Catalog::default();
        catalog.apply(&record(1, vec![pack(0, vec![]), snapshot(1, &[])])).unwrap();
        assert!(matches!(catalog.apply(&record(2, vec![pack(0, vec![])])), Err(Rejection::Exists(_))));
        assert!(matches!(catalog.apply(&record(2, vec![snapshot(1, &[])])), Err(Rejection::Exists(_))));
    }
}
