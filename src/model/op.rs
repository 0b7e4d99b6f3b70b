//! The catalogue operations that log records carry. A record is one atomic list of them.
//!
//! The order of the variants is their number in the log: new ones go to the end, none is ever removed.

use super::account::{AccountId, Permission, Tag};
use super::ids::{ImageId, ObjectHash, SessionId, SnapshotId};
use super::image::Image;
use super::instance::{Instance, Volume};
use super::objects::{PackName, PackRecord, SegmentRecord};
use super::snapshot::Snapshot;
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
        /// Every pack that holds a chunk of it, ascending: each must be live or condemned.
        packs: Vec<PackName>,
    },
    /// A snapshot exists no longer.
    DeleteSnapshot {
        /// Which.
        id: SnapshotId,
    },
    /// An image exists.
    RegisterImage(Box<Image>),
    /// An image exists no longer; its snapshots stay.
    DeregisterImage {
        /// Which.
        id: ImageId,
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
    /// Whether it may not be deregistered.
    Protection(bool),
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
