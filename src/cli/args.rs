//! The arguments (docs/CLI.md).

use super::text::{parse_bytes, parse_tag, parse_time};
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use imgstore::model::account::{AccountId, Permission, Tag};
use imgstore::model::ids::{ImageId, SnapshotId};
use imgstore::model::image::{Architecture, BootMode, VirtualizationType};
use imgstore::ops::describe::Owner;
use imgstore::ops::filter::Filter;
use imgstore::ops::find::AnyId;
use std::path::PathBuf;

/// Amazon Machine Images for your own machines: snapshot disks, deduplicated; copy images between regions;
/// launch instances from them.
#[derive(Debug, Parser)]
#[command(name = "imgstore", version, max_term_width = 100, after_help = EXAMPLES)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  imgstore import disk.raw --name web-1        a disk becomes an image
  imgstore images                              what there is
  imgstore launch ami-0123… --count 2          two instances with disks of their own
  imgstore region add backup /mnt/backup       a second place
  imgstore copy ami-0123… --to backup          only what is missing there is moved

Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 permission denied, 5 damage found,
6 refused input, 7 no space, 8 interrupted.";

#[derive(Debug, Args)]
pub struct Global {
    /// The home: configuration and first region [default: the user's data directory]
    #[arg(long, global = true, env = "IMGSTORE_HOME", value_name = "DIR", hide_env_values = true)]
    pub home: Option<PathBuf>,
    /// The region to use [default: the home's]
    #[arg(long, global = true, value_name = "NAME")]
    pub region: Option<String>,
    /// The account to act for [default: the home's]
    #[arg(long, global = true, value_name = "ID")]
    pub account: Option<AccountId>,
    /// One JSON document on standard output
    #[arg(long, global = true)]
    pub json: bool,
    /// No progress and no notes
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// Threads for computing [default: one for each processor]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Memory budget of the pipelines, for example 512MiB
    #[arg(long, global = true, value_name = "BYTES", value_parser = parse_bytes, default_value = "512MiB")]
    pub memory: u64,
    /// Read index segments instead of mapping them
    #[arg(long, global = true)]
    pub no_mmap: bool,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Bring a disk in as a snapshot; print its id
    Snapshot(SnapshotArgs),
    /// Bring disks in as snapshots and register an image, in one step; print its id
    Import(ImportArgs),
    /// Register an image from snapshots; print its id
    Register(RegisterArgs),
    /// List images
    Images(ImagesArgs),
    /// List snapshots
    Snapshots(ListArgs),
    /// List volumes
    Volumes(ListArgs),
    /// List instances
    Instances(ListArgs),
    /// Show an image, snapshot, volume or instance whole
    Show {
        /// What to show
        #[arg(value_name = "ID")]
        id: AnyId,
    },
    /// Copy an image or a snapshot to another region, or the same; print the new id
    Copy(CopyArgs),
    /// Deregister an image; its snapshots stay
    Deregister {
        /// The image
        #[arg(value_name = "IMAGE")]
        image: ImageId,
    },
    /// Delete a snapshot that no image uses
    DeleteSnapshot {
        /// The snapshot
        #[arg(value_name = "SNAP")]
        snapshot: SnapshotId,
    },
    /// Let others use an image or a snapshot, or no longer
    Share(ShareArgs),
    /// Set tags of an image or a snapshot
    Tag {
        /// The image or snapshot
        #[arg(value_name = "ID")]
        id: AnyId,
        /// The tags
        #[arg(value_name = "K=V", required = true, value_parser = parse_tag)]
        tags: Vec<Tag>,
    },
    /// Remove tags of an image or a snapshot
    Untag {
        /// The image or snapshot
        #[arg(value_name = "ID")]
        id: AnyId,
        /// The tags' keys
        #[arg(value_name = "KEY", required = true)]
        keys: Vec<String>,
    },
    /// Mark an image as outdated from a time on: it can still be launched, others' lists hide it
    Deprecate {
        /// The image
        #[arg(value_name = "IMAGE")]
        image: ImageId,
        /// From when on, for example 2027-01-31T12:00:00Z; rounded to the minute
        #[arg(long, value_name = "TIME", value_parser = parse_time, required_unless_present = "cancel")]
        at: Option<u64>,
        /// Take it back
        #[arg(long, conflicts_with = "at")]
        cancel: bool,
    },
    /// Switch an image off: nobody launches it, and its launch permissions are gone
    Disable {
        /// The image
        #[arg(value_name = "IMAGE")]
        image: ImageId,
    },
    /// Switch a disabled image on again
    Enable {
        /// The image
        #[arg(value_name = "IMAGE")]
        image: ImageId,
    },
    /// Forbid deregistering an image, or allow it again
    Protect {
        /// The image
        #[arg(value_name = "IMAGE")]
        image: ImageId,
        /// Allow it again
        #[arg(long)]
        off: bool,
    },
    /// Launch instances of an image: write their volumes as disk files; print their ids
    Launch(LaunchArgs),
    /// Write a snapshot, or a device of an image, to a disk file, a block device, or standard output
    Export(ExportArgs),
    /// What the region holds, or what images and snapshots cost
    Stats {
        /// Images and snapshots; none for the whole region
        #[arg(value_name = "ID")]
        ids: Vec<AnyId>,
    },
    /// Check that everything stored is there and intact; exit code 5 if it is not
    Verify(VerifyArgs),
    /// Regions: add, list, show, remove
    #[command(subcommand)]
    Region(RegionCommand),
    /// The region's history: who did what, when
    Log {
        /// Wait for what comes
        #[arg(long, short)]
        follow: bool,
    },
    /// Print a completion script
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    Man,
}

/// A disk's format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Raw, whatever its first bytes look like
    Raw,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  imgstore snapshot disk.raw\n  imgstore snapshot /dev/vg0/web --description 'before the upgrade' --tag env=prod"
)]
pub struct SnapshotArgs {
    /// A raw disk file or a block device
    #[arg(value_name = "DISK")]
    pub disk: PathBuf,
    /// The disk's format [default: raw, if its first bytes agree]
    #[arg(long, value_enum)]
    pub format: Option<Format>,
    /// The snapshot that this one follows
    #[arg(long, value_name = "SNAP")]
    pub parent: Option<SnapshotId>,
    /// What to say of it
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub description: String,
    /// A tag; may be repeated
    #[arg(long = "tag", value_name = "K=V", value_parser = parse_tag)]
    pub tags: Vec<Tag>,
    /// zstd level of new chunks, 1 to 12 [default: the region's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..=12))]
    pub level: Option<i32>,
}

/// What is said of a new image.
#[derive(Debug, Args)]
pub struct ImageArgs {
    /// The image's name, unique in the account
    #[arg(long)]
    pub name: String,
    /// What to say of it
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub description: String,
    /// The processor it is for [default: this machine's]
    #[arg(long, value_name = "A")]
    pub architecture: Option<Architecture>,
    /// How the guest is virtualized
    #[arg(long, value_name = "TYPE", default_value = "hvm")]
    pub virtualization_type: VirtualizationType,
    /// The firmware that boots it: legacy-bios, uefi, uefi-preferred
    #[arg(long, value_name = "MODE")]
    pub boot_mode: Option<BootMode>,
    /// The name of the device that the guest boots from
    #[arg(long, value_name = "DEVICE", default_value = "/dev/xvda")]
    pub root_device: String,
    /// A tag; may be repeated
    #[arg(long = "tag", value_name = "K=V", value_parser = parse_tag)]
    pub tags: Vec<Tag>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "The first disk becomes the root device, the others /dev/xvdb, /dev/xvdc, …\n\nExamples:\n  imgstore import web.raw --name web-1\n  imgstore import root.raw data.raw --name db-1 --tag team=data"
)]
pub struct ImportArgs {
    /// Raw disk files or block devices
    #[arg(value_name = "DISK", required = true)]
    pub disks: Vec<PathBuf>,
    /// The disks' format [default: raw, if their first bytes agree]
    #[arg(long, value_enum)]
    pub format: Option<Format>,
    /// zstd level of new chunks, 1 to 12 [default: the region's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..=12))]
    pub level: Option<i32>,
    #[command(flatten)]
    pub image: ImageArgs,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  imgstore register --name web-2 --root snap-0123… --device /dev/xvdb=snap-0456…:size=20G,keep --device /dev/xvdc=:size=8G"
)]
pub struct RegisterArgs {
    #[command(flatten)]
    pub image: ImageArgs,
    /// The root device's snapshot
    #[arg(long, value_name = "SNAP")]
    pub root: SnapshotId,
    /// Another device: NAME=SNAP[:size=BYTES][,keep], or NAME=:size=BYTES for an empty volume. keep: not
    /// deleted on termination
    #[arg(long = "device", value_name = "NAME=SNAP[:OPTS]")]
    pub devices: Vec<String>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Sharing an image lets others launch it; copying it needs its snapshots, too (--snapshots).\n\nExamples:\n  imgstore share ami-0123… --add 123456789012 --snapshots\n  imgstore share ami-0123… --add all\n  imgstore share snap-0123… --remove 123456789012"
)]
pub struct ShareArgs {
    /// The image or snapshot
    #[arg(value_name = "ID")]
    pub id: AnyId,
    /// Whom to let in: an account, or all; may be repeated
    #[arg(long, value_name = "ACCOUNT|all", num_args = 1.., value_parser = parse_permission, required_unless_present = "remove")]
    pub add: Vec<Permission>,
    /// Whom to let in no longer; may be repeated
    #[arg(long, value_name = "ACCOUNT|all", num_args = 1.., value_parser = parse_permission)]
    pub remove: Vec<Permission>,
    /// The same for the image's own snapshots
    #[arg(long)]
    pub snapshots: bool,
}

fn parse_permission(text: &str) -> Result<Permission, String> {
    match text {
        "all" => Ok(Permission::All),
        id => id.parse().map(Permission::Account).map_err(|_| "write an account's 12 digits, or all".into()),
    }
}

#[derive(Debug, Args)]
pub struct ListArgs {
    /// Whose: self, all that the account may see, or an account
    #[arg(long, value_name = "self|all|ID", default_value = "self", value_parser = parse_owner)]
    pub owner: Owner,
    /// Only what has one of the values; * and ? are wildcards; may be repeated, then all must fit
    #[arg(long = "filter", value_name = "NAME=V[,V]", value_parser = Filter::parse)]
    pub filters: Vec<Filter>,
    /// At most so many
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_results: Option<u32>,
    /// The page after the one that gave this token
    #[arg(long, value_name = "TOKEN")]
    pub next_token: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = LIST_EXAMPLES)]
pub struct ImagesArgs {
    #[command(flatten)]
    pub list: ListArgs,
    /// Only what was shared by name with everybody (all), or with an account (self, or its id)
    #[arg(long, value_name = "self|all|ID", value_parser = parse_owner)]
    pub executable_by: Option<Owner>,
    /// Others' deprecated images, too
    #[arg(long)]
    pub include_deprecated: bool,
    /// Only the newest available image whose name fits
    #[arg(long, value_name = "NAME-PATTERN")]
    pub latest: Option<String>,
}

const LIST_EXAMPLES: &str = "\
Examples:
  imgstore images --filter 'name=web-*' --filter architecture=arm64,x86_64
  imgstore images --filter tag:env=prod --max-results 20
  imgstore images --latest 'web-*'";

fn parse_owner(text: &str) -> Result<Owner, String> {
    match text {
        "self" => Ok(Owner::Caller),
        "all" => Ok(Owner::All),
        id => id.parse().map(Owner::Account).map_err(|_| "write self, all, or an account's 12 digits".into()),
    }
}

#[derive(Debug, Args)]
#[command(
    after_help = "Interrupted? The same command goes on where it was.\n\nExamples:\n  imgstore copy ami-0123… --to backup --dry-run\n  imgstore copy ami-0123… --to backup --copy-tags"
)]
pub struct CopyArgs {
    /// An image or a snapshot
    #[arg(value_name = "ID")]
    pub id: AnyId,
    /// The region that it goes to
    #[arg(long, value_name = "REGION")]
    pub to: String,
    /// The region that it comes from [default: the one in use]
    #[arg(long, value_name = "REGION")]
    pub from: Option<String>,
    /// The copy's name [default: the image's]
    #[arg(long)]
    pub name: Option<String>,
    /// The copy's description [default: the original's]
    #[arg(long, value_name = "TEXT")]
    pub description: Option<String>,
    /// Copy the tags, too
    #[arg(long)]
    pub copy_tags: bool,
    /// The same command with the same token makes no second copy
    #[arg(long, value_name = "T")]
    pub client_token: Option<String>,
    /// Say what would be moved, and move nothing
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Each instance gets a folder with a sparse raw file for each volume.\n\nExamples:\n  imgstore launch ami-0123… --output /srv/vms\n  imgstore launch ami-0123… --count 3 --device /dev/xvda:size=20G --device /dev/xvdb:none"
)]
pub struct LaunchArgs {
    /// The image
    #[arg(value_name = "IMAGE")]
    pub image: ImageId,
    /// How many instances
    #[arg(long, default_value_t = 1)]
    pub count: u32,
    /// Where the instances' folders go [default: instances/ in the home]
    #[arg(long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// Change a device: size=BYTES, keep or delete on termination, or none to leave it out
    #[arg(long = "device", value_name = "NAME:OPTS")]
    pub devices: Vec<String>,
    /// A tag; may be repeated
    #[arg(long = "tag", value_name = "K=V", value_parser = parse_tag)]
    pub tags: Vec<Tag>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  imgstore export ami-0123… web.raw\n  imgstore export ami-0123… data.raw --device /dev/xvdb\n  imgstore export snap-0123… - | ssh host 'cat > disk.raw'\n  imgstore export snap-0123… /dev/vg0/web --write-device"
)]
pub struct ExportArgs {
    /// An image or a snapshot
    #[arg(value_name = "ID")]
    pub id: AnyId,
    /// The file, or - for standard output
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The output's format
    #[arg(long, value_enum, default_value = "raw")]
    pub format: Format,
    /// Which device of an image [default: the root device]
    #[arg(long, value_name = "NAME")]
    pub device: Option<String>,
    /// Replace the file if it is there
    #[arg(long, action = ArgAction::SetTrue)]
    pub force: bool,
    /// FILE may be a block device; all of it is overwritten
    #[arg(long)]
    pub write_device: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  imgstore verify\n  imgstore verify ami-0123…\n  imgstore verify --sample 5"
)]
pub struct VerifyArgs {
    /// Images and snapshots; none for the whole region
    #[arg(value_name = "ID")]
    pub ids: Vec<AnyId>,
    /// Read only so many percent of the packs, chosen anew each time
    #[arg(long, value_name = "P", default_value_t = 100.0)]
    pub sample: f64,
    /// Compare stored checksums only, without decompressing and hashing
    #[arg(long)]
    pub checksums: bool,
}

#[derive(Debug, Subcommand)]
pub enum RegionCommand {
    /// Make a region known; one that is not there is made
    Add {
        /// The name that this home gives it
        name: String,
        /// Where it is: the path of a directory
        url: String,
    },
    /// List the regions that this home knows
    List,
    /// Show a region
    Show {
        /// The region [default: the one in use]
        name: Option<String>,
    },
    /// Forget a region; its data stay
    Remove {
        /// The region
        name: String,
    },
}
