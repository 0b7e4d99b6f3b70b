//! The catalogue operations that log records carry. A record is one atomic list of them.
//!
//! The order of the variants is their number in the log: new ones go to the end, none is ever removed.

use super::account::{AccountId, Permission, RetentionRule, Tag};
use super::ids::{ImageId, InstanceId, ObjectHash, RuleId, SessionId, SnapshotId, VolumeId};
use super::image::{DeregistrationProtection, Image};
use super::instance::{Attachment, Instance, Volume};
use super::objects::{ManifestName, ManifestRecord, PackName, PackRecord, SegmentRecord};
use super::snapshot::{Snapshot, Template};
use super::units::TimeMs;
use serde::{Deserialize, Serialize};

/// One catalogue operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// Nothing: takes a place in the log so that a late write can never land there.
    NoOp,
    /// A sealed pack exists. It may be used from here on, by anybody.
    RegisterPack(PackRecord),
    /// A segment exists; those that it replaces do no longer.
    RegisterSegment(SegmentRecord),
    /// A snapshot exists.
    CreateSnapshot {
        /// The snapshot with its manifest.
        snapshot: Box<Snapshot>,
        /// Packs that hold chunks of it, ascending, at least those that are condemned in the state before this:
        /// see [`packs_to_name`](super::catalog::Catalog::packs_to_name). Each must be live or condemned.
        packs: Vec<PackName>,
    },
    /// A snapshot exists no longer, or is in the recycle bin.
    DeleteSnapshot {
        /// Which.
        id: SnapshotId,
        /// Its stay in the bin; none if it does not go there.
        bin: Option<BinStay>,
    },
    /// An image exists.
    RegisterImage(Box<Image>),
    /// An image exists no longer, or is in the recycle bin; its snapshots stay.
    DeregisterImage {
        /// Which.
        id: ImageId,
        /// Its stay in the bin; none if it does not go there.
        bin: Option<BinStay>,
    },
    /// An instance exists, with its volumes.
    RunInstance {
        /// The instance.
        instance: Box<Instance>,
        /// Its volumes.
        volumes: Vec<Volume>,
    },
    /// An attribute of an image changes.
    ModifyImage {
        /// Which.
        id: ImageId,
        /// To what.
        change: ImageChange,
    },
    /// An attribute of a snapshot changes.
    ModifySnapshot {
        /// Which.
        id: SnapshotId,
        /// To what.
        change: SnapshotChange,
    },
    /// A template exists. The image on it follows in the same record.
    CreateTemplate {
        /// The template with its manifest.
        template: Box<Template>,
        /// As in [`Op::CreateSnapshot`].
        packs: Vec<PackName>,
    },
    /// An image leaves the bin and is registered again. Its snapshots are there.
    RestoreImage {
        /// Which.
        id: ImageId,
    },
    /// A snapshot leaves the bin and exists again.
    RestoreSnapshot {
        /// Which.
        id: SnapshotId,
    },
    /// An image's time in the bin ended: it is gone.
    ExpireImage {
        /// Which.
        id: ImageId,
    },
    /// A snapshot's time in the bin ended: it is gone.
    ExpireSnapshot {
        /// Which.
        id: SnapshotId,
    },
    /// What the region knows of an account changes.
    ModifyAccount {
        /// Which.
        account: AccountId,
        /// To what.
        change: AccountChange,
    },
    /// A volume exists that no launch made.
    CreateVolume(Box<Volume>),
    /// A volume exists no longer.
    DeleteVolume {
        /// Which.
        id: VolumeId,
    },
    /// A volume's attachment or attribute changes.
    ModifyVolume {
        /// Which.
        id: VolumeId,
        /// To what.
        change: VolumeChange,
    },
    /// An instance's state or attribute changes.
    ModifyInstance {
        /// Which.
        id: InstanceId,
        /// To what.
        change: InstanceChange,
    },
    /// An instance is gone, and with it the volumes that are deleted on termination; the others are detached.
    TerminateInstance {
        /// Which.
        id: InstanceId,
        /// When.
        at_ms: TimeMs,
    },
    /// A terminated instance is forgotten.
    ForgetInstance {
        /// Which.
        id: InstanceId,
    },
    /// Live packs that nothing refers to: a use makes one live again, until it is swept.
    CondemnPacks {
        /// Which.
        packs: Vec<PackName>,
        /// When.
        at_ms: TimeMs,
    },
    /// Condemned or quarantined packs whose bytes are going to be removed: nothing may use them any more.
    SweepPacks {
        /// Which.
        packs: Vec<PackName>,
    },
    /// Swept packs whose bytes are removed.
    ForgetPacks {
        /// Which.
        packs: Vec<PackName>,
    },
    /// Packs that hold damage. What is intact in them is read where there is no other place; nothing uses them anew.
    QuarantinePacks {
        /// Which.
        packs: Vec<PackName>,
        /// When.
        at_ms: TimeMs,
    },
    /// Sessions that are gone, and that may commit nothing any more: what they left unregistered is removed.
    FenceSessions {
        /// Which.
        sessions: Vec<SessionId>,
    },
    /// The block map of snapshots or templates is another object with the same bytes: the first was lost.
    ReplaceManifest {
        /// The manifest that was lost.
        lost: ManifestName,
        /// Its like: length, hash and chunks are those of the lost one.
        by: ManifestRecord,
    },
    /// The bases of a live pack's deltas are in other packs now: they were moved, or are there, too.
    RebasePack {
        /// The pack with the deltas.
        pack: PackName,
        /// The packs that hold their bases, itself not among them.
        bases: Vec<PackName>,
    },
}

/// How long something stays in the recycle bin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BinStay {
    /// When it came there.
    pub since_ms: TimeMs,
    /// Until when it can be restored.
    pub until_ms: TimeMs,
}

/// A new value of what a region knows of an account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AccountChange {
    /// Its name; none for no name.
    Alias(Option<String>),
    /// Whether its images cannot be made public.
    BlockPublicImages(bool),
    /// Whether its snapshots cannot be made public.
    BlockPublicSnapshots(bool),
    /// A retention rule more.
    AddRule(RetentionRule),
    /// A retention rule less. What is in the bin stays there for its time.
    RemoveRule(RuleId),
}

/// A new value of a volume's attribute, whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum VolumeChange {
    /// Where it is attached; none for nowhere.
    Attachment(Option<Attachment>),
    /// Its tags.
    Tags(Vec<Tag>),
}

/// A new value of an instance's attribute, whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum InstanceChange {
    /// A machine may write to its disks.
    Start,
    /// Nothing writes to its disks.
    Stop,
    /// Its tags.
    Tags(Vec<Tag>),
}

/// A new value of an image's attribute, whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageChange {
    /// Who else may launch and copy it; each once, ascending.
    LaunchPermissions(Vec<Permission>),
    /// Its tags.
    Tags(Vec<Tag>),
    /// From when on it is deprecated; none for never.
    Deprecation(Option<TimeMs>),
    /// Switched off: nobody launches it, and its launch permissions are gone for good.
    Disable,
    /// Switched on again.
    Enable,
    /// Whether it may be deregistered.
    Protection(DeregistrationProtection),
    /// What its owner says of it.
    Description(String),
    /// Codes under which it is sold.
    ProductCodes(Vec<String>),
}

/// A new value of a snapshot's attribute, whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SnapshotChange {
    /// Who else may read it and make volumes of it; each once, ascending.
    CreateVolumePermissions(Vec<Permission>),
    /// Its tags.
    Tags(Vec<Tag>),
}

/// Who appends a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Author {
    /// The account on whose behalf.
    pub account: AccountId,
    /// The writer's session.
    pub session: SessionId,
}

/// A log record: one atomic transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRecord {
    /// Its place: 1 is the first.
    pub sequence: u64,
    /// Hash of record `sequence - 1`; for the first record the hash of the region file.
    pub previous: ObjectHash,
    /// Random: by it a writer knows its own record when an answer was lost.
    pub nonce: [u8; 16],
    /// The writer's clock. For people: nothing is decided by it.
    pub time_ms: TimeMs,
    /// Who.
    pub author: Author,
    /// What.
    pub ops: Vec<Op>,
}
