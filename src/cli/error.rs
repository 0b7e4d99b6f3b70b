//! What the program answers when it cannot do what it was asked, and its exit codes (docs/CLI.md).

use imgstore::disk::DiskError;
use imgstore::model::ids::RegionId;
use imgstore::ops::error::{Class, OpsError};
use imgstore::region::error::RegionError;
use std::io::ErrorKind;
use std::path::PathBuf;

/// Something failed.
pub const FAILED: u8 = 1;
/// The call makes no sense.
pub const USAGE: u8 = 2;
/// What was named does not exist.
pub const NOT_FOUND: u8 = 3;
/// Permission denied.
pub const DENIED: u8 = 4;
/// Damage was found.
pub const DAMAGE: u8 = 5;
/// The input is refused.
pub const REFUSED: u8 = 6;
/// No space.
pub const NO_SPACE: u8 = 7;
/// Stopped by a signal.
pub const INTERRUPTED: u8 = 8;

/// Why the program did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// A verb's answer.
    #[error(transparent)]
    Ops(#[from] OpsError),
    /// A verb's answer, about a certain region.
    #[error("region {name} ({url}): {source}{}", cure(source))]
    Region {
        /// Its name in this home.
        name: String,
        /// Where it is.
        url: String,
        /// The answer.
        source: OpsError,
    },
    /// A region whose file and its twin are gone.
    #[error(
        "region {name} ({url}): neither its file `region` nor the twin of that is there, and without them nothing of a region can be told. Is its disk mounted? Else put the file `region` back from a backup; or move the folder away, and copy what another region has into a new one"
    )]
    Unmendable {
        /// Its name in this home.
        name: String,
        /// Where it is.
        url: String,
    },
    /// A region whose log cannot be mended by its twins.
    #[error(
        "region {name} ({url}): {}, and its twin is of no use either. Put the missing file back from a copy of the region's folder; or move the folder away, and copy what another region has into a new one",
        without_repair(source)
    )]
    StaysBroken {
        /// Its name in this home.
        name: String,
        /// Where it is.
        url: String,
        /// What is wrong.
        source: OpsError,
    },
    /// The call makes no sense.
    #[error("{0}")]
    Usage(String),
    /// Nothing is there.
    #[error(
        "{}: there is no home here; `imgstore import` and `imgstore snapshot` make one. If there was one, is its disk mounted?",
        path.display()
    )]
    NoHome {
        /// Where it would be.
        path: PathBuf,
    },
    /// The folder of a region is gone.
    #[error(
        "region {name}: there is no folder {}. If its disk is not mounted, mount it; if it was moved, \
         `imgstore region add OTHER-NAME PATH` and `imgstore region remove {name}` (if {name} is the default, \
         `imgstore region default OTHER-NAME` between the two)",
        path.display()
    )]
    NoFolder {
        /// The region's name.
        name: String,
        /// Where it was.
        path: PathBuf,
    },
    /// A name that the home does not know.
    #[error(
        "there is no region called {name} in this home; it has {known}. `imgstore region add {name} URL` makes it known"
    )]
    NoRegion {
        /// The name.
        name: String,
        /// The names that it knows.
        known: String,
    },
    /// The answer of a region on another host.
    #[error("region {name}: {source}")]
    Far {
        /// Its name in this home.
        name: String,
        /// The answer.
        source: OpsError,
    },
    /// Another region answers than the one that was added.
    #[error(
        "region {name}: at {destination} there is now another region, {found}; when it was added, it was {expected}. Nothing was asked of it. If that is as it should be: `imgstore region remove {name}`, and add it again (if {name} is the default, make another one that first: `imgstore region default OTHER-NAME`)"
    )]
    OtherRegion {
        /// Its name in this home.
        name: String,
        /// Host, perhaps with the user.
        destination: String,
        /// The region that it was.
        expected: RegionId,
        /// The region that it is.
        found: RegionId,
    },
    /// Nobody answers there.
    #[error("region {name}: no connection to {destination}: {why}")]
    NoConnection {
        /// Its name in this home.
        name: String,
        /// Host, perhaps with the user.
        destination: String,
        /// Why not.
        why: String,
    },
    /// What connects cannot be run.
    #[error("{command}: {why}. Install OpenSSH, or name what connects with --ssh or IMGSTORE_SSH")]
    Ssh {
        /// The command.
        command: String,
        /// The system's answer.
        why: String,
    },
    /// A device, or what reads a stream, has a part of what was written.
    #[error(
        "interrupted: {path} has a part of the disk, which is of no use; run the command again for the whole"
    )]
    HalfWritten {
        /// Where it was written to.
        path: PathBuf,
    },
    /// A device has a part of what was to be written to it.
    #[error(
        "{error}. {path} may have a part of the disk now, which is of no use: run the command again for the whole"
    )]
    LeftHalf {
        /// The device.
        path: PathBuf,
        /// Why it was not written whole.
        error: OpsError,
    },
    /// The home cannot be used.
    #[error("{action} {path}: {source}")]
    Home {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The home belongs to somebody else.
    #[error(
        "{path} belongs to user {owner}, but imgstore runs as user {user}, and would leave files in it that {owner} cannot use. Run it as that user, or choose another home with --home"
    )]
    ForeignHome {
        /// The home.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Who runs imgstore.
        user: u32,
    },
    /// The configuration file is not one.
    #[error("{path}: {why}. Correct it, or move it away and let imgstore make a new one")]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A page cannot be written.
    #[error("{path}: {source}. Name another file with --html")]
    Page {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Nobody reads standard output any more.
    #[error("standard output was closed")]
    ReaderGone,
    /// Standard output cannot be written.
    #[error("writing to standard output: {0}")]
    Output(std::io::Error),
}

impl From<RegionError> for CliError {
    fn from(error: RegionError) -> Self {
        Self::Ops(error.into())
    }
}

impl From<DiskError> for CliError {
    fn from(error: DiskError) -> Self {
        Self::Ops(error.into())
    }
}

/// What is wrong, without the advice that was followed.
fn without_repair(error: &OpsError) -> String {
    error.to_string().replace("; `imgstore repair` mends it if it can", "")
}

/// What to do about a region that cannot be opened, where its error does not say it.
fn cure(error: &OpsError) -> &'static str {
    match error {
        OpsError::Region(RegionError::Damaged { .. }) => "; `imgstore repair` mends it if it can",
        _ => "",
    }
}

/// What kind of answer one of the system is, and its code.
fn of_system(error: &std::io::Error) -> (Class, &'static str) {
    match error.kind() {
        ErrorKind::PermissionDenied => (Class::Denied, "UnauthorizedOperation"),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => (Class::NoSpace, "NoSpace"),
        _ => (Class::Failed, "InternalError"),
    }
}

impl CliError {
    /// The program's exit code.
    pub fn exit_code(&self) -> u8 {
        match self.class() {
            Class::Failed => FAILED,
            Class::Usage => USAGE,
            Class::NotFound => NOT_FOUND,
            Class::Denied => DENIED,
            Class::Damage => DAMAGE,
            Class::Refused => REFUSED,
            Class::NoSpace => NO_SPACE,
            Class::Interrupted => INTERRUPTED,
            Class::DryRun => 0,
        }
    }

    /// What kind of answer it is.
    pub fn class(&self) -> Class {
        match self {
            Self::Ops(error)
            | Self::LeftHalf { error, .. }
            | Self::StaysBroken { source: error, .. }
            | Self::Region { source: error, .. }
            | Self::Far { source: error, .. } => error.class(),
            Self::HalfWritten { .. } => Class::Interrupted,
            Self::Usage(_) | Self::Config { .. } => Class::Usage,
            Self::NoRegion { .. } | Self::NoHome { .. } | Self::NoFolder { .. } | Self::Unmendable { .. } => {
                Class::NotFound
            }
            Self::OtherRegion { .. } => Class::Refused,
            Self::ForeignHome { .. } => Class::Denied,
            Self::Page { source, .. } if source.kind() == ErrorKind::AlreadyExists => Class::Usage,
            Self::Page { source, .. } | Self::Home { source, .. } | Self::Output(source) => {
                of_system(source).0
            }
            Self::NoConnection { .. } | Self::Ssh { .. } | Self::ReaderGone => Class::Failed,
        }
    }

    /// The code in the JSON document of an error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Ops(error)
            | Self::LeftHalf { error, .. }
            | Self::StaysBroken { source: error, .. }
            | Self::Region { source: error, .. }
            | Self::Far { source: error, .. } => error.code(),
            Self::Usage(_) => "InvalidParameterValue",
            Self::NoRegion { .. } | Self::NoHome { .. } | Self::NoFolder { .. } | Self::Unmendable { .. } => {
                "InvalidRegion.NotFound"
            }
            Self::OtherRegion { .. } => "InvalidRegion.Changed",
            Self::ForeignHome { .. } => "UnauthorizedOperation",
            Self::HalfWritten { .. } => "Interrupted",
            Self::Config { .. } => "InvalidConfiguration",
            Self::Page { source, .. } if source.kind() == ErrorKind::AlreadyExists => "InvalidParameterValue",
            Self::Page { source, .. } | Self::Home { source, .. } | Self::Output(source) => {
                of_system(source).1
            }
            Self::NoConnection { .. } => "ConnectionFailed",
            Self::Ssh { .. } | Self::ReaderGone => "InternalError",
        }
    }
}
