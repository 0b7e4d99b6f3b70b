//! Arguments of what makes and changes images and snapshots.

use super::Format;
use crate::cli::text::{parse_tag, parse_volume_bytes};
use clap::{ArgGroup, Args, Subcommand};
use imgstore::model::account::{Permission, Tag};
use imgstore::model::ids::{ImageId, SnapshotId};
use imgstore::model::words::{Architecture, BootMode, VirtualizationType};
use imgstore::ops::error::{Code, OpsError};
use imgstore::ops::find::AnyId;
use std::fmt;
use std::path::PathBuf;

/// How disks are read.
#[derive(Debug, Args)]
pub struct DiskArgs {
    /// The disk's format; its bytes must agree, except for raw [default: what its bytes say]
    #[arg(long, value_enum)]
    pub format: Option<Format>,
    /// Refuse a disk that says that it is larger
    #[arg(long, value_name = "BYTES", value_parser = parse_volume_bytes, default_value = "64TiB")]
    pub max_size: u64,
    /// Take as zero what ext4, XFS and btrfs on the disk mark as free. Not for a disk that is in use
    #[arg(long)]
    pub skip_free: bool,
}

#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// What deduplication would give on these disks: nothing is stored
    Dedup(DedupArgs),
}

#[derive(Debug, Args)]
#[command(
    after_help = "Each disk is read front to back, and pieces of it again where deltas are tried. For several ways to cut: what all take, compressed, with the index; what each disk adds to those before it; what a read of 4 KiB decodes. For imgstore's own: levels, deltas, and a map of each disk.\n\nExamples:\n  imgstore bench dedup web-1.qcow2 web-2.qcow2 db.raw\n  imgstore bench dedup /dev/vg0/* --html disks.html"
)]
pub struct DedupArgs {
    /// Disk files or block devices, in the order in which they would be stored
    #[arg(value_name = "DISK", required = true)]
    pub disks: Vec<PathBuf>,
    #[command(flatten)]
    pub reading: DiskArgs,
    /// Write a page with plots and a map of each disk
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "A hint says what changed since the parent snapshot; only that is read. It comes from a dirty bitmap (--changed), or from a clone of the disk file that is kept from one snapshot to the next (--clone), on XFS and btrfs.\n\nExamples:\n  imgstore snapshot disk.raw\n  imgstore snapshot /dev/vg0/web --description 'before the upgrade' --tag env=prod\n  imgstore snapshot web.raw --clone web.clone\n  nbdinfo --map=qemu:dirty-bitmap:b0 --json nbd://localhost/web > web.json\n  imgstore snapshot web.raw --parent snap-0123… --changed web.json --verify-hints"
)]
#[command(group = ArgGroup::new("hint").args(["changed", "clone"]))]
pub struct SnapshotArgs {
    /// A disk file (raw, qcow2, VMDK, VHD, VHDX, VDI) or a block device
    #[arg(value_name = "DISK")]
    pub disk: PathBuf,
    #[command(flatten)]
    pub reading: DiskArgs,
    /// The snapshot that this one follows [default: with --clone, the one that the clone is of]
    #[arg(long, value_name = "SNAP")]
    pub parent: Option<SnapshotId>,
    /// What changed on the disk since its parent was taken, as nbdinfo tells a dirty bitmap: the rest is not read
    #[arg(long, value_name = "FILE", requires = "parent", conflicts_with = "skip_free")]
    pub changed: Option<PathBuf>,
    /// Read a clone of the disk file that shares its blocks, and keep it here; with one from the snapshot before, only what
    /// does not lie where it lay is read
    #[arg(long, value_name = "FILE", conflicts_with = "skip_free")]
    pub clone: Option<PathBuf>,
    /// Read everything, and compare with what the hint gives; exit code 5 if it is wrong
    #[arg(long, requires = "hint")]
    pub verify_hints: bool,
    /// Read the disk once more when it is stored, whole and also where it says that it has holes; exit code 5 if it is other
    #[arg(long, conflicts_with = "skip_free")]
    pub verify: bool,
    /// What to say of it
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub description: String,
    /// A tag; may be repeated
    #[arg(long = "tag", value_name = "K=V", value_parser = parse_tag)]
    pub tags: Vec<Tag>,
    #[command(flatten)]
    pub storing: StoringArgs,
}

/// How new chunks are stored.
#[derive(Debug, Clone, Copy, Args)]
pub struct StoringArgs {
    /// zstd level of new chunks, 1 to 12 [default: the region's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..=12))]
    pub level: Option<i32>,
    /// Do not store chunks against stored chunks that they resemble: faster, and larger
    #[arg(long)]
    pub no_delta: bool,
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
    /// The guest's platform: windows, or nothing
    #[arg(long, value_name = "NAME")]
    pub platform: Option<String>,
    /// How the guest is virtualized: hvm, paravirtual [default: hvm]
    #[arg(long, value_name = "TYPE")]
    pub virtualization_type: Option<VirtualizationType>,
    /// The firmware that boots it: legacy-bios, uefi, uefi-preferred
    #[arg(long, value_name = "MODE")]
    pub boot_mode: Option<BootMode>,
    /// TPM: v2.0
    #[arg(long, value_name = "VERSION")]
    pub tpm_support: Option<String>,
    /// Enhanced networking
    #[arg(long)]
    pub ena_support: bool,
    /// Instance metadata service: v2.0
    #[arg(long, value_name = "VERSION")]
    pub imds_support: Option<String>,
    /// Kernel of a paravirtual guest: aki-…
    #[arg(long, value_name = "ID")]
    pub kernel: Option<String>,
    /// Ramdisk of a paravirtual guest: ari-…
    #[arg(long, value_name = "ID")]
    pub ramdisk: Option<String>,
    /// The image that this one is the next version of
    #[arg(long, value_name = "IMAGE")]
    pub predecessor: Option<ImageId>,
    /// The name of the device that the guest boots from [default: /dev/xvda]
    #[arg(long, value_name = "DEVICE")]
    pub root_device: Option<String>,
    /// A tag; may be repeated
    #[arg(long = "tag", value_name = "K=V", value_parser = parse_tag)]
    pub tags: Vec<Tag>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "The first disk becomes the root device, the others /dev/xvdb, /dev/xvdc, … An OVA says itself what its disks, processor, platform and firmware are; options overrule it.\n\nExamples:\n  imgstore import web.qcow2 --name web-1\n  imgstore import root.raw data.vmdk --name db-1 --tag team=data\n  imgstore import appliance.ova --name appliance-1"
)]
pub struct ImportArgs {
    /// Disk files (raw, qcow2, VMDK, VHD, VHDX, VDI) or block devices; or one OVA
    #[arg(value_name = "DISK", required = true)]
    pub disks: Vec<PathBuf>,
    #[command(flatten)]
    pub reading: DiskArgs,
    #[command(flatten)]
    pub storing: StoringArgs,
    /// Make an instance-store-backed image: the one disk becomes a template, each instance has its own copy
    #[arg(long)]
    pub instance_store: bool,
    /// Another device: NAME=:size=BYTES for an empty volume, NAME=ephemeralN; with --instance-store also NAME=SNAP[:OPTS]
    #[arg(long = "device", value_name = "NAME=OPTS")]
    pub devices: Vec<String>,
    #[command(flatten)]
    pub image: ImageArgs,
}

#[derive(Debug, Args)]
#[command(
    group = ArgGroup::new("content").args(["root", "bundle"]).required(true),
    after_help = "Examples:\n  imgstore register --name web-2 --root snap-0123… --device /dev/xvdb=snap-0456…:size=20G,keep --device /dev/xvdc=:size=8G\n  imgstore register --name web-3 --root snap-0789… --predecessor ami-0123…\n  imgstore register --name web-s3 --bundle bundles/web.manifest.json"
)]
pub struct RegisterArgs {
    #[command(flatten)]
    pub image: ImageArgs,
    /// The root device's snapshot; OPTS as for --device: size=BYTES, type=T, iops=N, keep
    #[arg(long, value_name = "SNAP[:OPTS]")]
    pub root: Option<String>,
    /// Instead, a bundle's manifest: the image is instance-store-backed, and for the machine that the manifest names, unless options
    /// say otherwise
    #[arg(long, value_name = "MANIFEST")]
    pub bundle: Option<PathBuf>,
    /// zstd level of new chunks of a bundle, 1 to 12 [default: the region's]
    #[arg(long, value_name = "N", requires = "bundle", value_parser = clap::value_parser!(i32).range(1..=12))]
    pub level: Option<i32>,
    /// Do not store chunks of a bundle against stored chunks that they resemble
    #[arg(long, requires = "bundle")]
    pub no_delta: bool,
    /// Another device: NAME=SNAP[:OPTS], NAME=:size=BYTES[,OPTS] for an empty volume, or NAME=ephemeralN.
    /// OPTS: size=BYTES, type=gp3…, iops=N, keep (not deleted on termination), comma-separated
    #[arg(long = "device", value_name = "NAME=SNAP[:OPTS]")]
    pub devices: Vec<String>,
}

#[derive(Debug, Args)]
#[command(
    group = ArgGroup::new("whom").args(["add", "remove"]).required(true).multiple(true),
    after_help = "Sharing an image lets others launch it; copying it needs its snapshots, too (--snapshots).\n\nExamples:\n  imgstore share ami-0123… --add 123456789012 --snapshots\n  imgstore share ami-0123… --add all\n  imgstore share snap-0123… --remove 123456789012"
)]
pub struct ShareArgs {
    /// The image or snapshot
    #[arg(value_name = "ID")]
    pub id: AnyId,
    /// Whom to let in: an account, or all; may be repeated
    #[arg(long, value_name = "ACCOUNT|all", num_args = 1.., value_parser = parse_permission)]
    pub add: Vec<Permission>,
    /// Whom to let in no longer; may be repeated
    #[arg(long, value_name = "ACCOUNT|all", num_args = 1.., value_parser = parse_permission)]
    pub remove: Vec<Permission>,
    /// The same for the image's own snapshots
    #[arg(long)]
    pub snapshots: bool,
}

pub(super) fn parse_permission(text: &str) -> Result<Permission, MalformedGrantee> {
    match text {
        "all" => Ok(Permission::All),
        id => id.parse().map(Permission::Account).map_err(|_| MalformedGrantee(text.to_owned())),
    }
}

/// Whom nothing can be shared with.
#[derive(Debug, Clone)]
pub struct MalformedGrantee(String);

impl fmt::Display for MalformedGrantee {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("write an account's 12 digits, or all")
    }
}

impl std::error::Error for MalformedGrantee {}

impl From<MalformedGrantee> for OpsError {
    fn from(MalformedGrantee(text): MalformedGrantee) -> Self {
        let message = format!("'{text}' is no account: write its 12 digits, or all");
        Self::Rule { code: Code::InvalidAttributeItem, message }
    }
}

#[derive(Debug, Args)]
#[command(
    after_help = "With a cooldown, protection holds 24 hours longer than it is switched on.\n\nExamples:\n  imgstore protect ami-0123…\n  imgstore protect ami-0123… --cooldown\n  imgstore protect ami-0123… --off"
)]
pub struct ProtectArgs {
    /// The image
    #[arg(value_name = "IMAGE")]
    pub image: ImageId,
    /// Once switched off, hold for another 24 hours
    #[arg(long)]
    pub cooldown: bool,
    /// Allow deregistering again
    #[arg(long, conflicts_with = "cooldown")]
    pub off: bool,
}

#[derive(Debug, Args)]
#[command(
    group = ArgGroup::new("attribute").args(["description", "product_codes"]).required(true),
    after_help = "Examples:\n  imgstore modify ami-0123… --description 'with the May patches'\n  imgstore modify ami-0123… --product-code 7zx41vl2j5"
)]
pub struct ModifyArgs {
    /// The image
    #[arg(value_name = "IMAGE")]
    pub image: ImageId,
    /// What to say of it
    #[arg(long, value_name = "TEXT")]
    pub description: Option<String>,
    /// A code under which it is sold; it stays, and the image can never be public. May be repeated
    #[arg(long = "product-code", value_name = "CODE")]
    pub product_codes: Vec<String>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "With --dry-run, tells how many bytes that would free. With a retention rule (imgstore bin), the image can be restored for a time.\n\nExamples:\n  imgstore deregister ami-0123… --delete-snapshots --dry-run\n  imgstore deregister ami-0123… --delete-snapshots"
)]
pub struct DeregisterArgs {
    /// The image
    #[arg(value_name = "IMAGE")]
    pub image: ImageId,
    /// Delete its snapshots, too, except those that other images use
    #[arg(long)]
    pub delete_snapshots: bool,
}
