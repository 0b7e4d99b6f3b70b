//! The arguments (docs/CLI.md).

mod images;
mod instances;
mod lists;
mod places;

pub use images::{
    BenchCommand, DedupArgs, DeregisterArgs, DiskArgs, ImageArgs, ImportArgs, MalformedGrantee, ModifyArgs,
    ProtectArgs, RegisterArgs, ShareArgs, SnapshotArgs, StoringArgs,
};
pub use instances::{
    BundleArgs, CreateImageArgs, CreateSnapshotArgs, CreateVolumeArgs, ExportArgs, LaunchArgs, UnbundleArgs,
};
pub use lists::{DiffArgs, ImagesArgs, ListArgs, Whom};
pub use places::{
    AccountCommand, BinCommand, CopyArgs, GcArgs, Kind, RegionCommand, RepackArgs, RepairArgs, RuleArgs,
    VerifyArgs,
};

use super::text::{parse_memory, parse_tag, parse_time};
use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use imgstore::model::account::{AccountId, Tag};
use imgstore::model::ids::{ImageId, InstanceId, SnapshotId, VolumeId};
use imgstore::ops::find::AnyId;
use std::path::PathBuf;

/// Amazon Machine Images for your own machines: snapshot disks, deduplicated; copy images between regions;
/// launch instances from them.
#[derive(Debug, Parser)]
#[command(name = "imgstore", version, max_term_width = 100, after_help = EXAMPLES)]
pub struct Cli {
    #[command(flatten, next_help_heading = "Options of every command")]
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

const REMOTE_HELP: &str = "\
`imgstore region add NAME ssh://HOST/PATH` makes ssh run this on HOST. Whoever has a shell there needs no more.
For somebody who shall have no shell, and be one account of one region, put in that user's ~/.ssh/authorized_keys:

  restrict,command=\"imgstore remote --account 123456789012 --region local\" ssh-ed25519 AAAA…

What the caller says of region and account then counts for nothing (docs/REMOTE.md).

Example:
  imgstore remote --account 123456789012 --region local";

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
    /// Check and say what would be done, and change nothing
    #[arg(long, global = true)]
    pub dry_run: bool,
    /// Threads for computing [default: one for each processor]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Memory budget of the pipelines, for example 512MiB; 16MiB at least
    #[arg(long, global = true, value_name = "BYTES", value_parser = parse_memory, default_value = "512MiB")]
    pub memory: u64,
    /// The command that connects to other hosts
    #[arg(
        long,
        global = true,
        env = "IMGSTORE_SSH",
        value_name = "COMMAND",
        default_value = "ssh",
        hide_env_values = true
    )]
    pub ssh: String,
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
    #[command(
        after_help = "Examples:\n  imgstore snapshots --filter tag:env=prod\n  imgstore snapshots --owner all        also what others share"
    )]
    Snapshots(ListArgs),
    /// List volumes
    #[command(
        after_help = "Example:\n  imgstore volumes --filter status=available        attached to nothing"
    )]
    Volumes(ListArgs),
    /// List instances
    #[command(after_help = "Example:\n  imgstore instances --filter 'image-id=ami-0123…'")]
    Instances(ListArgs),
    /// Show an image, snapshot, volume or instance whole
    #[command(
        after_help = "Examples:\n  imgstore show ami-0123…        with its ancestry\n  imgstore show vol-0123… --json"
    )]
    Show {
        /// What to show
        #[arg(value_name = "ID")]
        id: AnyId,
    },
    /// Copy an image or a snapshot to another region, or the same; print the new id
    Copy(CopyArgs),
    /// Make an image of an instance: a snapshot of each of its volumes, at one point; print its id
    CreateImage(CreateImageArgs),
    /// Take snapshots of a volume, or of all volumes of an instance at one point; print their ids
    CreateSnapshot(CreateSnapshotArgs),
    /// Deregister an image; its snapshots stay unless --delete-snapshots
    Deregister(DeregisterArgs),
    /// Delete a snapshot that no image uses
    #[command(
        after_help = "Examples:\n  imgstore delete-snapshot snap-0123… --dry-run        how many bytes that would free\n  imgstore delete-snapshot snap-0123…"
    )]
    DeleteSnapshot {
        /// The snapshot
        #[arg(value_name = "SNAP")]
        snapshot: SnapshotId,
    },
    /// Let others use an image or a snapshot, or no longer
    Share(ShareArgs),
    /// Set tags of an image, snapshot, volume or instance
    #[command(after_help = "Example:\n  imgstore tag ami-0123… env=prod team=web")]
    Tag {
        /// The image, snapshot, volume or instance
        #[arg(value_name = "ID")]
        id: AnyId,
        /// The tags
        #[arg(value_name = "K=V", required = true, value_parser = parse_tag)]
        tags: Vec<Tag>,
    },
    /// Remove tags of an image, snapshot, volume or instance
    #[command(after_help = "Example:\n  imgstore untag ami-0123… env team")]
    Untag {
        /// The image, snapshot, volume or instance
        #[arg(value_name = "ID")]
        id: AnyId,
        /// The tags' keys
        #[arg(value_name = "KEY", required = true)]
        keys: Vec<String>,
    },
    /// Mark an image as outdated from a time on: it can still be launched, others' lists hide it
    #[command(group = ArgGroup::new("when").args(["at", "cancel"]).required(true))]
    #[command(
        after_help = "Examples:\n  imgstore deprecate ami-0123… --at 2027-01-31T12:00:00Z\n  imgstore deprecate ami-0123… --cancel"
    )]
    Deprecate {
        /// The image
        #[arg(value_name = "IMAGE")]
        image: ImageId,
        /// From when on, for example 2027-01-31T12:00:00Z; rounded to the minute
        #[arg(long, value_name = "TIME", value_parser = parse_time)]
        at: Option<u64>,
        /// Take it back
        #[arg(long)]
        cancel: bool,
    },
    /// Switch an image off: nobody launches it, and its launch permissions are gone
    #[command(after_help = "Example:\n  imgstore disable ami-0123…")]
    Disable {
        /// The image
        #[arg(value_name = "IMAGE")]
        image: ImageId,
    },
    /// Switch a disabled image on again
    #[command(after_help = "Example:\n  imgstore enable ami-0123…")]
    Enable {
        /// The image
        #[arg(value_name = "IMAGE")]
        image: ImageId,
    },
    /// Forbid deregistering an image, or allow it again
    Protect(ProtectArgs),
    /// Change an image's description, or add product codes to it
    Modify(ModifyArgs),
    /// The recycle bin: what was removed and can be restored, and for how long things go there
    #[command(subcommand)]
    Bin(BinCommand),
    /// The account: what the region knows of it, blocking public sharing, aliases
    #[command(subcommand)]
    Account(AccountCommand),
    /// Launch instances of an image: write their disks as files; print their ids
    Launch(LaunchArgs),
    /// Mark instances as stopped: their machines are shut down, nothing writes to their disks
    #[command(after_help = "Example:\n  imgstore stop i-0123… i-0456…")]
    Stop {
        /// The instances
        #[arg(value_name = "INSTANCE", required = true)]
        instances: Vec<InstanceId>,
    },
    /// Mark instances as running: machines may write to their disks
    #[command(after_help = "Example:\n  imgstore start i-0123…")]
    Start {
        /// The instances
        #[arg(value_name = "INSTANCE", required = true)]
        instances: Vec<InstanceId>,
    },
    /// Terminate instances: their own disks and the volumes marked for it are deleted, others detached
    #[command(
        after_help = "Examples:\n  imgstore terminate i-0123… --dry-run\n  imgstore terminate i-0123… i-0456…"
    )]
    Terminate {
        /// The instances
        #[arg(value_name = "INSTANCE", required = true)]
        instances: Vec<InstanceId>,
    },
    /// Make a volume, empty or of a snapshot; print its id
    CreateVolume(CreateVolumeArgs),
    /// Delete a volume that is attached to nothing, and its disk file
    #[command(after_help = "Example:\n  imgstore delete-volume vol-0123…")]
    DeleteVolume {
        /// The volume
        #[arg(value_name = "VOLUME")]
        volume: VolumeId,
    },
    /// Attach a volume to an instance
    #[command(after_help = "Example:\n  imgstore attach-volume vol-0123… i-0123… /dev/xvdf")]
    AttachVolume {
        /// The volume
        #[arg(value_name = "VOLUME")]
        volume: VolumeId,
        /// The instance
        #[arg(value_name = "INSTANCE")]
        instance: InstanceId,
        /// The device's name in the guest, for example /dev/xvdf
        #[arg(value_name = "DEVICE")]
        device: String,
    },
    /// Detach a volume from its instance
    #[command(after_help = "Example:\n  imgstore detach-volume vol-0123…")]
    DetachVolume {
        /// The volume
        #[arg(value_name = "VOLUME")]
        volume: VolumeId,
    },
    /// Bundle a disk or the root of an image into a folder: a manifest and parts
    Bundle(BundleArgs),
    /// Make a disk of a bundle again
    Unbundle(UnbundleArgs),
    /// Write a snapshot, or a device of an image, to a disk file, a block device, or standard output
    Export(ExportArgs),
    /// Where two images or snapshots hold different bytes
    Diff(DiffArgs),
    /// What the region holds, or what images and snapshots cost
    #[command(after_help = "Examples:\n  imgstore stats\n  imgstore stats ami-0123… snap-0123…")]
    Stats {
        /// Images and snapshots; none for the whole region
        #[arg(value_name = "ID")]
        ids: Vec<AnyId>,
    },
    /// Remove what nothing refers to any more, and free its space
    Gc(GcArgs),
    /// Compress what is stored anew and harder, so that it takes less space
    Repack(RepackArgs),
    /// Check that everything stored is there and intact; exit code 5 if it is not
    Verify(VerifyArgs),
    /// Mend what is damaged, from intact copies here, in other regions, or on the disks that it came from
    Repair(RepairArgs),
    /// Measurements on your own disks
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Regions: add, list, show, remove
    #[command(subcommand)]
    Region(RegionCommand),
    /// Give somebody on another host this region, over standard input and output: for ssh to start
    #[command(after_help = REMOTE_HELP)]
    Remote,
    /// The region's history: who did what, when
    #[command(after_help = "Examples:\n  imgstore log\n  imgstore log --follow")]
    Log {
        /// Wait for what comes
        #[arg(long, short)]
        follow: bool,
    },
    /// Print a completion script
    #[command(
        after_help = "Example:\n  imgstore completions bash > ~/.local/share/bash-completion/completions/imgstore"
    )]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or that of a command
    #[command(
        after_help = "Examples:\n  imgstore man | man -l -\n  imgstore man copy | man -l -\n  imgstore man region add > imgstore-region-add.1"
    )]
    Man {
        /// The command
        command: Vec<String>,
    },
}

/// A disk's format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Raw, whatever its first bytes look like
    Raw,
    /// QEMU's
    Qcow2,
    /// VMware's: monolithicSparse or streamOptimized
    Vmdk,
    /// Hyper-V's first, and Azure's
    Vhd,
    /// Hyper-V's
    Vhdx,
    /// VirtualBox's
    Vdi,
    /// A whole machine in one file: import only
    Ova,
}

/// A format that disks are written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutFormat {
    /// Raw
    Raw,
    /// QEMU's; see --compress
    Qcow2,
    /// VMware's, streamOptimized: compressed
    Vmdk,
    /// Hyper-V's first, dynamic
    Vhd,
    /// The same, fixed and of whole MiB: for Azure
    VhdFixed,
    /// Hyper-V's, dynamic
    Vhdx,
    /// A whole machine in one file: description, all disks, checksums
    Ova,
}

#[cfg(test)]
mod tests {
    use super::Cli;
    use clap::{CommandFactory, Parser};

    /// The words of an example as a shell reads them, up to a pipe, a redirection or a remark; ids made whole.
    fn words(example: &str) -> Vec<String> {
        let command = example.split(" | ").next().unwrap_or("").split(" > ").next().unwrap_or("");
        let command = command.split("      ").next().unwrap_or("");
        let (mut words, mut is_quoted) = (vec![String::new()], false);
        for c in command.trim().chars() {
            match c {
                '\'' => is_quoted = !is_quoted,
                ' ' if !is_quoted => words.push(String::new()),
                '…' => {
                    let word = words.last_mut().unwrap();
                    let digits = word.len() - word.rfind('-').unwrap() - 1;
                    word.push_str(&"0".repeat(17 - digits));
                }
                _ => words.last_mut().unwrap().push(c),
            }
        }
        words
    }

    fn check(command: &clap::Command, path: &str) {
        if command.has_subcommands() {
            command.get_subcommands().for_each(|below| check(below, &format!("{path} {}", below.get_name())));
            return;
        }
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let examples: Vec<_> = help.lines().filter(|line| line.starts_with("  imgstore ")).collect();
        assert!(
            examples.iter().any(|example| example.contains(&path[8..])),
            "{path} has no example of its own"
        );
        for example in examples {
            if let Err(error) = Cli::try_parse_from(words(example)) {
                panic!("{example}: {error}");
            }
        }
    }

    #[test]
    fn every_command_has_examples_and_they_parse() {
        let command = Cli::command();
        for below in command.get_subcommands() {
            check(below, &format!("imgstore {}", below.get_name()));
        }
    }
}
