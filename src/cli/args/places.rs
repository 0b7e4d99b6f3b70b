//! Arguments of what is about regions and accounts.

use super::DiskArgs;
use crate::cli::text::{parse_bytes, parse_duration, parse_tag};
use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use imgstore::model::account::{AccountId, Tag};
use imgstore::model::ids::RuleId;
use imgstore::ops::find::AnyId;
use imgstore::ops::repack::LEVEL_DEFAULT;
use std::path::PathBuf;

/// Bytes in a second: with none nothing would ever be done.
fn parse_rate(text: &str) -> Result<u64, String> {
    let rate = parse_bytes(text)?;
    if rate == 0 {
        Err("0 bytes in a second never end; leave the limit out, or give more".into())
    } else {
        Ok(rate)
    }
}

#[derive(Debug, Args)]
#[command(
    after_help = "Interrupted? The same command goes on where it was.\n\nExamples:\n  imgstore copy ami-0123… --to backup --dry-run\n  imgstore copy ami-0123… --to backup --copy-tags\n  imgstore copy ami-0123… --to far --limit-rate 5MiB      # far: on another host"
)]
pub struct CopyArgs {
    /// An image or a snapshot
    #[arg(value_name = "ID")]
    pub id: AnyId,
    /// The region that it goes to; a dot for the one in use
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
    /// Copy the tags, too, unless they are somebody else's
    #[arg(long)]
    pub copy_tags: bool,
    /// The same command with the same token makes no second copy
    #[arg(long, value_name = "T")]
    pub client_token: Option<String>,
    /// Move at most so many bytes in a second, for example 5MiB
    #[arg(long, value_name = "BYTES", value_parser = parse_rate)]
    pub limit_rate: Option<u64>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "What nothing refers to is first condemned, and gone when a collection finds that it has been so for the grace period. Until then a snapshot that has the same content takes it up again.\n\nExamples:\n  imgstore gc --dry-run\n  imgstore gc\n  imgstore gc --grace 0s      # now: commands that run meanwhile may have to store content again"
)]
pub struct GcArgs {
    /// How long what was condemned stays at least, for example 12h [default: the configuration's, a day]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub grace: Option<u64>,
    /// Rewrite packs of which less than so many percent are needed; 0 for none
    #[arg(long, value_name = "PERCENT", default_value_t = 50, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub repack: u8,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Packs are made anew, with all their chunks compressed harder and stored against what they resemble; ids stay. The old packs are freed by gc, after its grace: until then both take space. It may run beside everything else and be interrupted: what was done stays done, but for the last GiB. Packs that were made so already are not made again.\n\nExamples:\n  imgstore repack --dry-run\n  imgstore repack\n  imgstore repack --limit 50GiB --level 9      # a part each night, faster"
)]
pub struct RepackArgs {
    /// zstd level
    #[arg(long, value_name = "LEVEL", default_value_t = LEVEL_DEFAULT, value_parser = clap::value_parser!(i32).range(1..=12))]
    pub level: i32,
    /// Rewrite at most so many bytes of packs, for example 50GiB
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub limit: Option<u64>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  imgstore verify\n  imgstore verify ami-0123…\n  imgstore verify --sample 5"
)]
pub struct VerifyArgs {
    /// Images and snapshots; none for the whole region
    #[arg(value_name = "ID")]
    pub ids: Vec<AnyId>,
    /// Read only so many percent of the packs, those that were checked longest ago
    #[arg(long, value_name = "P", default_value_t = 100.0)]
    pub sample: f64,
    /// Compare stored checksums only, without decompressing and hashing
    #[arg(long)]
    pub checksums: bool,
    /// Go on with a check that was interrupted: packs that it found good are not read again
    #[arg(long, conflicts_with_all = ["ids", "sample"])]
    pub resume: bool,
    /// Read at most so many bytes in a second, for example 50MiB
    #[arg(long, value_name = "BYTES", value_parser = parse_rate)]
    pub limit_rate: Option<u64>,
}

#[derive(Debug, Args)]
#[command(
    mut_arg("format", |arg| arg.requires("disks")),
    mut_arg("max_size", |arg| arg.requires("disks")),
    mut_arg("skip_free", |arg| arg.requires("disks")),
    after_help = "Damaged packs are put in quarantine, and what was in them is stored again: what is intact in them, else from other regions, else from disks that the snapshots were taken of. What stays lost is listed; exit code 5.\n\nExamples:\n  imgstore repair --dry-run\n  imgstore repair --from backup\n  imgstore repair --disk web.raw"
)]
pub struct RepairArgs {
    /// A region that may have copies of what is damaged; may be repeated
    #[arg(long, value_name = "REGION")]
    pub from: Vec<String>,
    /// A disk that a damaged snapshot may have been taken of; may be repeated
    #[arg(long = "disk", value_name = "DISK")]
    pub disks: Vec<PathBuf>,
    #[command(flatten)]
    pub reading: DiskArgs,
    /// Go on even if most packs are not there
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Subcommand)]
pub enum RegionCommand {
    /// Make a region known; one that is not there is made
    #[command(
        after_help = "On another host imgstore is started by ssh. Copies go both ways, and lists, `show`, sharing, tags, deregistering and upkeep are done there: docs/REMOTE.md.\n\nExamples:\n  imgstore region add backup /mnt/backup\n  imgstore region add far ssh://ann@far.example/srv/images\n  imgstore --region far images"
    )]
    Add {
        /// The name that this home gives it
        name: String,
        /// Where it is: a directory's path, or ssh://[USER@]HOST[:PORT]/PATH
        url: String,
        /// Where imgstore is on the other host, if its shell does not find it
        #[arg(long, value_name = "PATH")]
        remote_path: Option<String>,
    },
    /// List the regions that this home knows
    #[command(after_help = "Example:\n  imgstore region list")]
    List,
    /// Show a region
    #[command(after_help = "Examples:\n  imgstore region show\n  imgstore region show backup")]
    Show {
        /// The region [default: the one in use]
        name: Option<String>,
    },
    /// Make a region the one that commands use if nothing else is said
    #[command(after_help = "Example:\n  imgstore region default backup")]
    Default {
        /// The region
        name: String,
    },
    /// Forget a region; its data stay
    #[command(after_help = "Example:\n  imgstore region remove backup")]
    Remove {
        /// The region
        name: String,
    },
}

/// Images or snapshots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Images
    Images,
    /// Snapshots
    Snapshots,
}

#[derive(Debug, Subcommand)]
pub enum BinCommand {
    /// List what can be restored
    #[command(after_help = "Example:\n  imgstore bin list")]
    List,
    /// Restore an image, with those of its snapshots that are in the bin, or a snapshot
    #[command(after_help = "Example:\n  imgstore bin restore ami-0123…")]
    Restore {
        /// The image or snapshot
        #[arg(value_name = "ID")]
        id: AnyId,
    },
    /// List the retention rules
    #[command(after_help = "Example:\n  imgstore bin rules")]
    Rules,
    /// Keep what is removed from now on for a time; print the rule's id
    AddRule(RuleArgs),
    /// Remove a retention rule; what is in the bin stays for its time
    #[command(after_help = "Example:\n  imgstore bin remove-rule rule-0123…")]
    RemoveRule {
        /// The rule
        #[arg(value_name = "RULE")]
        rule: RuleId,
    },
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  imgstore bin add-rule images --days 14\n  imgstore bin add-rule snapshots --days 90 --tag env=prod"
)]
pub struct RuleArgs {
    /// What is kept
    #[arg(value_enum)]
    pub kind: Kind,
    /// How many days: 1 to 365
    #[arg(long, value_name = "N")]
    pub days: u16,
    /// Only what has this tag, or another one given so
    #[arg(long = "tag", value_name = "K=V", value_parser = parse_tag)]
    pub tags: Vec<Tag>,
}

#[derive(Debug, Subcommand)]
pub enum AccountCommand {
    /// Show what the region knows of the account
    #[command(after_help = "Example:\n  imgstore account show")]
    Show,
    /// Forbid that images or snapshots of this account are made public; what is public stays so
    #[command(after_help = "Example:\n  imgstore account block-public images")]
    BlockPublic {
        /// What
        #[arg(value_enum)]
        kind: Kind,
    },
    /// Allow that images or snapshots of this account are made public
    #[command(after_help = "Example:\n  imgstore account allow-public images")]
    AllowPublic {
        /// What
        #[arg(value_enum)]
        kind: Kind,
    },
    /// Name an account: its images are found by `--owner ALIAS`. Only the region's provider does that
    #[command(group = ArgGroup::new("name").args(["alias", "remove"]).required(true))]
    #[command(
        after_help = "Examples:\n  imgstore account alias 123456789012 golden\n  imgstore account alias 123456789012 --remove"
    )]
    Alias {
        /// The account
        #[arg(value_name = "ID")]
        id: AccountId,
        /// The name
        #[arg(value_name = "ALIAS")]
        alias: Option<String>,
        /// Take it back
        #[arg(long)]
        remove: bool,
    },
}
