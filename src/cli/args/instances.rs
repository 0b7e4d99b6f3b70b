//! Arguments of what makes instances and volumes, and images of them.

use super::{Format, OutFormat};
use crate::cli::text::{parse_bytes, parse_tag, parse_volume_bytes};
use clap::{ArgAction, ArgGroup, Args};
use imgstore::model::account::Tag;
use imgstore::model::ids::{ImageId, InstanceId, SnapshotId};
use imgstore::model::words::VolumeType;
use imgstore::ops::find::AnyId;
use std::path::PathBuf;

#[derive(Debug, Args)]
#[command(
    after_help = "Each instance gets a folder with a sparse raw file for each disk. Where the file system can (such as XFS and btrfs), the second instance's and all later ones share their blocks with the first's until they are written to: they take hardly any time, and space only for what guests write.\n\nExamples:\n  imgstore launch ami-0123… --output /srv/vms\n  imgstore launch ami-0123… --count 3 --device /dev/xvda:size=20G --device /dev/xvdb:none\n  imgstore launch ami-0123… --count 2:10 --device /dev/xvdc:ephemeral0 --client-token nightly-1"
)]
pub struct LaunchArgs {
    /// The image
    #[arg(value_name = "IMAGE")]
    pub image: ImageId,
    /// How many instances; MIN:MAX for as many as there is space for (blocks that are shared need it once)
    #[arg(long, value_name = "N|MIN:MAX", default_value = "1", value_parser = parse_count)]
    pub count: (u32, u32),
    /// Where the instances' folders go [default: instances/ in the home]
    #[arg(long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// Change or add a device. OPTS: size=BYTES, type=gp3…, iops=N, keep or delete on termination,
    /// snapshot=SNAP, ephemeralN, or none to leave it out; comma-separated
    #[arg(long = "device", value_name = "NAME:OPTS")]
    pub devices: Vec<String>,
    /// Size of ephemeral disks
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, default_value = "8GiB")]
    pub ephemeral_size: u64,
    /// The same command with the same token launches nothing more
    #[arg(long, value_name = "T")]
    pub client_token: Option<String>,
    /// A tag; may be repeated
    #[arg(long = "tag", value_name = "K=V", value_parser = parse_tag)]
    pub tags: Vec<Tag>,
}

fn parse_ram(text: &str) -> Result<u64, String> {
    let bytes = parse_bytes(text)?;
    if bytes < 1 << 20 { Err("a machine has at least 1MiB".to_owned()) } else { Ok(bytes) }
}

fn parse_count(text: &str) -> Result<(u32, u32), String> {
    let number = |text: &str| text.parse().map_err(|_| "write a number, or MIN:MAX".to_owned());
    match text.split_once(':') {
        Some((min, max)) => Ok((number(min)?, number(max)?)),
        None => number(text).map(|count| (count, count)),
    }
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  imgstore export ami-0123… web.raw\n  imgstore export ami-0123… data.raw --device /dev/xvdb\n  imgstore export snap-0123… - | ssh host 'cat > disk.raw'\n  imgstore export snap-0123… /dev/vg0/web --write-device\n  imgstore export ami-0123… web.qcow2 --format qcow2 --compress\n  imgstore export ami-0123… db/ --all --format vhdx\n  imgstore export ami-0123… db.ova --format ova --cpus 4 --ram 8GiB\n  imgstore export snap-0123… rest.raw --zero-lost"
)]
pub struct ExportArgs {
    /// An image or a snapshot
    #[arg(value_name = "ID")]
    pub id: AnyId,
    /// The file, or - for standard output; with --all a folder
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The output's format [default: raw; needed if the file is named like another's]
    #[arg(long, value_enum)]
    pub format: Option<OutFormat>,
    /// Compress a qcow2 disk, with zstd
    #[arg(long)]
    pub compress: bool,
    /// Which device of an image [default: the root device]
    #[arg(long, value_name = "NAME", conflicts_with = "all")]
    pub device: Option<String>,
    /// Write every disk of an image, each to a file in the folder FILE
    #[arg(long)]
    pub all: bool,
    /// Processors of the machine that an OVA describes [default: 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub cpus: Option<u32>,
    /// Memory of the machine that an OVA describes [default: 2GiB]
    #[arg(long, value_name = "BYTES", value_parser = parse_ram)]
    pub ram: Option<u64>,
    /// Replace the file if it is there
    #[arg(long, action = ArgAction::SetTrue)]
    pub force: bool,
    /// FILE may be a block device; it is overwritten, as far as the volume is long
    #[arg(long)]
    pub write_device: bool,
    /// Write what is left of a disk that has lost content: zeros stand for what is lost, and are told of
    #[arg(long)]
    pub zero_lost: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Volumes are read as they are. For a clean image shut the machine down first.\n\nExamples:\n  imgstore create-image i-0123… --name web-2\n  imgstore create-image i-0123… --name web-2 --no-reboot --device /dev/xvdb:none --device /dev/xvda:keep"
)]
pub struct CreateImageArgs {
    /// The instance
    #[arg(value_name = "INSTANCE")]
    pub instance: InstanceId,
    /// The image's name, unique in the account
    #[arg(long)]
    pub name: String,
    /// What to say of it
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub description: String,
    /// Take a running instance as it is, and do not say so
    #[arg(long)]
    pub no_reboot: bool,
    /// Change the mapping: keep or delete on termination, none to leave a device out, or a new device.
    /// OPTS as for launch
    #[arg(long = "device", value_name = "NAME:OPTS")]
    pub devices: Vec<String>,
    /// A tag of the image and its snapshots; may be repeated
    #[arg(long = "tag", value_name = "K=V", value_parser = parse_tag)]
    pub tags: Vec<Tag>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  imgstore create-snapshot vol-0123… --description 'before the upgrade'\n  imgstore create-snapshot i-0123… --exclude-root"
)]
pub struct CreateSnapshotArgs {
    /// A volume, or an instance for all its volumes
    #[arg(value_name = "VOLUME|INSTANCE")]
    pub id: AnyId,
    /// What to say of them
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub description: String,
    /// Leave out an instance's root volume
    #[arg(long)]
    pub exclude_root: bool,
    /// A tag; may be repeated
    #[arg(long = "tag", value_name = "K=V", value_parser = parse_tag)]
    pub tags: Vec<Tag>,
}

#[derive(Debug, Args)]
#[command(
    group = ArgGroup::new("content or size").args(["snapshot", "size"]).required(true).multiple(true),
    after_help = "Examples:\n  imgstore create-volume --size 20G\n  imgstore create-volume --snapshot snap-0123… --output /srv/volumes"
)]
pub struct CreateVolumeArgs {
    /// Its content [default: empty]
    #[arg(long, value_name = "SNAP")]
    pub snapshot: Option<SnapshotId>,
    /// Its size [default: the snapshot's]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub size: Option<u64>,
    /// Its kind: gp3, gp2, io1, io2, st1, sc1, standard
    #[arg(long = "type", value_name = "TYPE", default_value = "gp3")]
    pub volume_type: VolumeType,
    /// Provisioned operations a second
    #[arg(long, value_name = "N")]
    pub iops: Option<u32>,
    /// The folder for its disk file [default: volumes/ in the home]
    #[arg(long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// A tag; may be repeated
    #[arg(long = "tag", value_name = "K=V", value_parser = parse_tag)]
    pub tags: Vec<Tag>,
    /// The same command with the same token makes no second volume
    #[arg(long, value_name = "T")]
    pub client_token: Option<String>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "The folder gets NAME.manifest.json and NAME.part.00000, …; `imgstore register --bundle` makes an image of them.\n\nExamples:\n  imgstore bundle ami-0123… bundles\n  imgstore bundle disk.raw bundles --name web"
)]
pub struct BundleArgs {
    /// An image or a snapshot, or a raw disk file; one that looks like another format only with --format
    #[arg(value_name = "ID|DISK")]
    pub what: String,
    /// The folder
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// The bundle's name: letters, digits, dots, dashes [default: the image's, or the disk's]
    #[arg(long)]
    pub name: Option<String>,
    /// The disk file's format; its bytes must agree, except for raw
    #[arg(long, value_enum)]
    pub format: Option<Format>,
    /// Refuse a disk that says that it is larger [default: 64TiB]
    #[arg(long, value_name = "BYTES", value_parser = parse_volume_bytes)]
    pub max_size: Option<u64>,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  imgstore unbundle bundles/web.manifest.json web.raw")]
pub struct UnbundleArgs {
    /// The bundle's manifest
    #[arg(value_name = "MANIFEST")]
    pub manifest: PathBuf,
    /// The disk file, or - for standard output
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Replace the file if it is there
    #[arg(long)]
    pub force: bool,
    /// FILE may be a block device; it is overwritten, as far as the volume is long
    #[arg(long)]
    pub write_device: bool,
}
