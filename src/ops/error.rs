//! What a verb can answer instead of doing what it was asked; and the one table of EC2's error codes.

use crate::chunk::frame::FrameError;
use crate::disk::DiskError;
use crate::model::blockmap::BlockMapFault;
use crate::model::catalog::{Rejection, RootId};
use crate::model::ids::{ChunkId, ImageId, MalformedId, SnapshotId};
use crate::region::error::RegionError;

/// What kind of answer an error is; each has its exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Something failed that should have worked.
    Failed,
    /// The request makes no sense.
    Usage,
    /// What was named does not exist, or not for this caller.
    NotFound,
    /// The caller may not do this.
    Denied,
    /// Stored bytes are wrong or missing.
    Damage,
    /// The input is not what it should be, or the state does not allow it.
    Refused,
    /// No space.
    NoSpace,
    /// Stopped on request.
    Interrupted,
    /// Nothing was done, because nothing was to be done: it would have succeeded.
    DryRun,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $code:literal, $class:ident;)+) => {
        /// EC2's error codes, as far as verbs use them.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum Code { $($(#[$doc])* $variant,)+ }

        impl Code {
            /// EC2's text.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $code,)+ }
            }

            /// The code that a text is.
            pub fn parse(text: &str) -> Option<Self> {
                [$(Self::$variant),+].into_iter().find(|code| code.as_str() == text)
            }

            /// What kind of answer it is.
            pub const fn class(self) -> Class {
                match self { $(Self::$variant => Class::$class,)+ }
            }
        }
    };
}

codes! {
    /// An image that is not there.
    ImageNotFound = "InvalidAMIID.NotFound", NotFound;
    /// Text that is no image id.
    ImageMalformed = "InvalidAMIID.Malformed", Usage;
    /// An image that is disabled or was deregistered.
    ImageUnavailable = "InvalidAMIID.Unavailable", Refused;
    /// A name that another image of the account has.
    ImageNameDuplicate = "InvalidAMIName.Duplicate", Refused;
    /// Text that is no image name.
    ImageNameMalformed = "InvalidAMIName.Malformed", Usage;
    /// An account or group that cannot be given a permission.
    InvalidAttributeItem = "InvalidAMIAttributeItemValue", Usage;
    /// A snapshot that is not there.
    SnapshotNotFound = "InvalidSnapshot.NotFound", NotFound;
    /// Text that is no snapshot id.
    SnapshotMalformed = "InvalidSnapshotID.Malformed", Usage;
    /// A snapshot that an image uses.
    SnapshotInUse = "InvalidSnapshot.InUse", Refused;
    /// A volume that is not there.
    VolumeNotFound = "InvalidVolume.NotFound", NotFound;
    /// Text that is no volume id.
    VolumeMalformed = "InvalidVolumeID.Malformed", Usage;
    /// A volume that is attached.
    VolumeInUse = "VolumeInUse", Refused;
    /// An instance with as many devices as it can have.
    AttachmentLimitExceeded = "AttachmentLimitExceeded", Refused;
    /// An instance that is not there.
    InstanceNotFound = "InvalidInstanceID.NotFound", NotFound;
    /// Text that is no instance id.
    InstanceMalformed = "InvalidInstanceID.Malformed", Usage;
    /// A volume, snapshot or image whose state does not allow it.
    IncorrectState = "IncorrectState", Refused;
    /// An instance whose state does not allow it.
    IncorrectInstanceState = "IncorrectInstanceState", Refused;
    /// Something that this kind of instance or image cannot do.
    UnsupportedOperation = "UnsupportedOperation", Refused;
    /// A retention rule that is not there.
    RuleNotFound = "ResourceNotFoundException", NotFound;
    /// Any other text that is no id.
    IdMalformed = "InvalidID", Usage;
    /// A mapping that makes no sense.
    BlockDeviceMapping = "InvalidBlockDeviceMapping", Refused;
    /// The same client token with other arguments.
    IdempotentParameterMismatch = "IdempotentParameterMismatch", Refused;
    /// Something visible that may not be used.
    AuthFailure = "AuthFailure", Denied;
    /// An image whose storage the caller may not read. EC2's documents name no code of its own for it.
    StorageDenied = "InvalidRequest", Denied;
    /// Something that is forbidden for now, or that only another account may do.
    OperationNotPermitted = "OperationNotPermitted", Denied;
    /// A dry run whose request would have been denied.
    Unauthorized = "UnauthorizedOperation", Denied;
    /// A dry run whose request would have succeeded.
    DryRun = "DryRunOperation", DryRun;
    /// A parameter that makes no sense.
    InvalidParameterValue = "InvalidParameterValue", Usage;
    /// Parameters that do not go together.
    InvalidParameterCombination = "InvalidParameterCombination", Usage;
    /// A parameter that is missing.
    MissingParameter = "MissingParameter", Usage;
    /// More tags than a resource has.
    TagLimitExceeded = "TagLimitExceeded", Refused;
}

/// What a verb can answer instead of doing what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpsError {
    /// A rule of EC2's forbids it.
    #[error("{message}")]
    Rule {
        /// EC2's code.
        code: Code,
        /// EC2's sentence where it has one.
        message: String,
    },
    /// The region.
    #[error(transparent)]
    Region(RegionError),
    /// The disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A chunk did not survive being compressed and decompressed: nothing refers to it.
    #[error(
        "chunk {chunk} failed its proof before it was stored: {source}. Memory or processor may be faulty; test them before you trust this machine"
    )]
    Proof {
        /// The chunk.
        chunk: ChunkId,
        /// What was wrong.
        source: FrameError,
    },
    /// A frame from another region is not the chunk that it should be.
    #[error("the source region sent damaged content for a chunk: {0}; run `imgstore verify` there")]
    SourceFrame(FrameError),
    /// The volume does not fit the format.
    #[error("{0}")]
    Volume(BlockMapFault),
    /// A manifest names a chunk with another length than it has.
    #[error("the manifest of {root} says {expected} bytes for a chunk that has {found}")]
    ChunkLength {
        /// What is being read.
        root: RootId,
        /// Bytes by the manifest.
        expected: u64,
        /// Bytes of the chunk.
        found: u64,
    },
    /// Most packs are not there: it is more likely that a disk is not, than that they are lost.
    #[error(
        "{missing} of {total} packs are not there, so nothing was stored anew or given up; is the disk that they are on mounted? If they are lost, say --force"
    )]
    MostlyMissing {
        /// Packs that are not there.
        missing: usize,
        /// All packs.
        total: usize,
    },
    /// A source says of a snapshot something else than its block map.
    #[error(
        "{root} has {expected} bytes by its region's log and {found} by its block map; the region is damaged, or lies"
    )]
    MapLength {
        /// The snapshot or template.
        root: RootId,
        /// What the log says.
        expected: u64,
        /// What the map says.
        found: u64,
    },
    /// What a source offers is not what was asked for, or is nothing that a region makes.
    #[error("the source region offers {why}; it is damaged, or lies. Run `imgstore verify` there")]
    Offer {
        /// What is wrong with it.
        why: String,
    },
    /// The connection to another host ended.
    #[error("{why}; what came before is kept: run the command again to go on")]
    ConnectionLost {
        /// How.
        why: String,
    },
    /// Another host does not keep to the protocol.
    #[error("{why}")]
    Protocol {
        /// What it did.
        why: String,
    },
    /// Another host's answer.
    #[error("the other side: {message}")]
    Peer {
        /// What kind of answer it is.
        class: Class,
        /// What it said.
        message: String,
    },
    /// A delta came whose base is not there; its chunk is asked for anew.
    #[error("a chunk came that needs another one, which is not there; run the command again")]
    BaseMissing,
    /// What was found stored was collected before anything referred to it.
    #[error("{what}, which holds some of the content, was removed meanwhile; run the command again")]
    ContentGone {
        /// The pack or manifest.
        what: String,
    },
    /// Stopped on request; what was stored so far is found again by the next try.
    #[error("interrupted; nothing was left half-done")]
    Interrupted,
    /// Stopped on request before another host's answer came.
    #[error(
        "interrupted before the end of the command was heard of: look whether it was done before you run it again"
    )]
    Unheard,
    /// A thread of a pipeline is gone.
    #[error("a worker thread stopped unexpectedly")]
    WorkerGone,
    /// A pipeline ended well, and did not do everything.
    #[error(
        "{found} of {expected} bytes were {what}, and no stage says why: nothing was made of it. This is an error in imgstore, or of a disk that changed its length; run the command again, and report it if it comes again"
    )]
    NotWhole {
        /// What was to be done with them.
        what: &'static str,
        /// Bytes of all of it.
        expected: u64,
        /// Bytes that were done.
        found: u64,
    },
}

impl From<RegionError> for OpsError {
    fn from(error: RegionError) -> Self {
        match error {
            RegionError::Rejected(Rejection::SnapshotInUse(snapshot, image)) => {
                Self::snapshot_in_use(snapshot, image)
            }
            RegionError::Rejected(Rejection::Missing(what)) => Self::missing(what),
            RegionError::Rejected(Rejection::PackUnavailable(pack)) => {
                Self::ContentGone { what: pack.to_string() }
            }
            RegionError::BaseGone { base } => Self::ContentGone { what: format!("the pack of chunk {base}") },
            RegionError::Rejected(Rejection::NameTaken(name, image)) => Self::name_taken(&name, image),
            error => Self::Region(error),
        }
    }
}

impl From<MalformedId> for OpsError {
    fn from(error: MalformedId) -> Self {
        let code = match error.expecting {
            "ami-..." => Code::ImageMalformed,
            "snap-..." => Code::SnapshotMalformed,
            "vol-..." => Code::VolumeMalformed,
            "i-..." => Code::InstanceMalformed,
            _ => Code::IdMalformed,
        };
        Self::rule(code, error.to_string())
    }
}

impl OpsError {
    pub(crate) fn rule(code: Code, message: impl Into<String>) -> Self {
        Self::Rule { code, message: message.into() }
    }

    pub(crate) fn image_not_found(id: ImageId) -> Self {
        Self::images_not_found(&[id])
    }

    /// EC2's sentence for one or several.
    pub(crate) fn images_not_found(ids: &[ImageId]) -> Self {
        let list: Vec<String> = ids.iter().map(ToString::to_string).collect();
        let (noun, verb) = if ids.len() == 1 { ("id", "does") } else { ("ids", "do") };
        let why = format!("The image {noun} '[{}]' {verb} not exist", list.join(", "));
        Self::rule(Code::ImageNotFound, why)
    }

    /// No image has a name that fits a pattern.
    pub fn no_image_fits(pattern: &str) -> Self {
        Self::rule(Code::ImageNotFound, format!("no available image has a name that fits '{pattern}'"))
    }

    /// What an operation needed was removed meanwhile.
    fn missing(what: String) -> Self {
        let code = match what.split('-').next() {
            Some("ami") => Code::ImageNotFound,
            Some("snap") => Code::SnapshotNotFound,
            Some("vol") => Code::VolumeNotFound,
            Some("i") => Code::InstanceNotFound,
            _ => return Self::Region(RegionError::Rejected(Rejection::Missing(what))),
        };
        Self::rule(code, format!("{what} does not exist any more"))
    }

    pub(crate) fn image_unavailable(id: ImageId, state: &str) -> Self {
        Self::rule(Code::ImageUnavailable, format!("The image ID '{id}' is not available: it is {state}"))
    }

    /// The answer of a dry run: one for which the caller lacks a right is told so by EC2's code for that.
    #[must_use]
    pub fn in_dry_run(self) -> Self {
        match self {
            Self::Rule { code: Code::AuthFailure | Code::StorageDenied, message } => {
                Self::rule(Code::Unauthorized, message)
            }
            other => other,
        }
    }

    pub(crate) fn snapshot_not_found(id: SnapshotId) -> Self {
        Self::rule(Code::SnapshotNotFound, format!("The snapshot '{id}' does not exist."))
    }

    pub(crate) fn snapshot_in_use(snapshot: SnapshotId, image: ImageId) -> Self {
        Self::rule(Code::SnapshotInUse, format!("The snapshot {snapshot} is currently in use by {image}"))
    }

    pub(crate) fn name_taken(name: &str, image: ImageId) -> Self {
        Self::rule(Code::ImageNameDuplicate, format!("AMI name {name} is already in use by AMI {image}"))
    }

    /// What kind of answer it is.
    pub fn class(&self) -> Class {
        match self {
            Self::Rule { code, .. } => code.class(),
            Self::Peer { class, .. } => *class,
            Self::Interrupted | Self::Unheard | Self::Disk(DiskError::Interrupted) => Class::Interrupted,
            Self::Region(error) if error.is_damage() => Class::Damage,
            Self::Region(error) if error.is_no_space() => Class::NoSpace,
            Self::Region(RegionError::NotARegion) => Class::NotFound,
            Self::Region(RegionError::Exists) => Class::Refused,
            Self::ChunkLength { .. }
            | Self::MapLength { .. }
            | Self::Offer { .. }
            | Self::MostlyMissing { .. }
            | Self::SourceFrame(_) => Class::Damage,
            Self::Disk(DiskError::NotFound { .. }) => Class::NotFound,
            Self::Disk(DiskError::NoSpace { .. }) => Class::NoSpace,
            Self::Region(error) if error.is_denied() => Class::Denied,
            Self::Disk(DiskError::Io { source, .. })
                if source.kind() == std::io::ErrorKind::PermissionDenied =>
            {
                Class::Denied
            }
            Self::Disk(DiskError::Io { .. }) => Class::Failed,
            Self::Disk(_) | Self::Volume(_) => Class::Refused,
            Self::ConnectionLost { .. }
            | Self::Protocol { .. }
            | Self::Region(_)
            | Self::Proof { .. }
            | Self::WorkerGone
            | Self::NotWhole { .. }
            | Self::BaseMissing
            | Self::ContentGone { .. } => Class::Failed,
        }
    }

    /// The code that programs see: EC2's where it has one.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Rule { code, .. } => code.as_str(),
            _ => match self.class() {
                Class::Failed => "InternalError",
                Class::Usage => "InvalidParameterValue",
                Class::NotFound => "NotFound",
                Class::Denied => "UnauthorizedOperation",
                Class::Damage => "DamageFound",
                Class::Refused => "InputRefused",
                Class::NoSpace => "NoSpace",
                Class::Interrupted => "Interrupted",
                Class::DryRun => Code::DryRun.as_str(),
            },
        }
    }
}
