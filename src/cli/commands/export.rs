//! export.

use super::Session;
use super::instances::note_cure;
use super::repair::{range_lines, ranges_document};
use crate::cli::args::{ExportArgs, Format, OutFormat};
use crate::cli::error::{CliError, DAMAGE};
use crate::cli::progress::warn;
use crate::cli::text::{bytes, lossy};
use clap::ValueEnum as _;
use imgstore::disk::create::{DiskFormat, check_disk, check_file, create_disk, create_file};
use imgstore::disk::open::{TargetOptions, is_block_device, open_raw, stdout_target};
use imgstore::model::catalog::RootId;
use imgstore::model::ids::ImageId;
use imgstore::model::image::{DeviceTarget, Image};
use imgstore::model::words::{BootMode, VirtualizationType, VolumeType};
use imgstore::ops::context::Progress;
use imgstore::ops::error::{Class, OpsError};
use imgstore::ops::export;
use imgstore::ops::export_image::{ImageDisk, MachineSize, check_ova, export_disks, export_ova, image_disks};
use imgstore::ops::find::{self, AnyId};
use imgstore::ops::gaps::Gaps;
use serde_json::json;
use std::ops::Range;
use std::path::Path;
use std::time::Instant;

/// Processors and bytes of memory of an OVA if nothing else is said.
const CPUS_DEFAULT: u32 = 2;
const RAM_BYTES_DEFAULT: u64 = 2 << 30;

/// What was asked for. A raw disk with the name of another format is asked for by name: who opens the file would take it for
/// what it is not.
fn out_format(args: &ExportArgs) -> Result<OutFormat, CliError> {
    if let Some(format) = args.format {
        return Ok(format);
    }
    let ending = args.file.extension().filter(|_| !args.all).and_then(|ending| ending.to_str());
    let Some(ending) = ending.map(str::to_ascii_lowercase) else { return Ok(OutFormat::Raw) };
    let cure = match (OutFormat::from_str(&ending, false), Format::from_str(&ending, false)) {
        (Ok(OutFormat::Raw), _) | (Err(_), Err(_)) => return Ok(OutFormat::Raw),
        (Ok(_), _) => format!("say --format {ending}, or --format raw"),
        (Err(_), Ok(_)) => "such are not written; say --format raw".to_owned(),
    };
    Err(CliError::Usage(format!("{} would be a raw disk: {cure}", args.file.display())))
}

/// The format of a disk; none for a whole machine.
fn disk_format(args: &ExportArgs) -> Result<Option<DiskFormat>, CliError> {
    let format = out_format(args)?;
    if args.compress && format != OutFormat::Qcow2 {
        let why = "--compress goes with --format qcow2; VMDK and OVA are always compressed";
        return Err(CliError::Usage(why.into()));
    }
    Ok(match format {
        OutFormat::Raw => Some(DiskFormat::Raw),
        OutFormat::Qcow2 => Some(DiskFormat::Qcow2 { is_compressed: args.compress }),
        OutFormat::Vmdk => Some(DiskFormat::Vmdk),
        OutFormat::Vhd => Some(DiskFormat::Vhd),
        OutFormat::VhdFixed => Some(DiskFormat::VhdFixed),
        OutFormat::Vhdx => Some(DiskFormat::Vhdx),
        OutFormat::Ova => None,
    })
}

/// Exports; gives the exit code.
pub fn export(session: &Session<'_>, args: &ExportArgs) -> Result<u8, CliError> {
    let format = disk_format(args)?;
    if format.is_some() && (args.cpus.is_some() || args.ram.is_some()) {
        return Err(CliError::Usage("--cpus and --ram go with --format ova".into()));
    }
    if args.write_device && (args.all || format != Some(DiskFormat::Raw)) {
        return Err(CliError::Usage("--write-device goes with one raw disk".into()));
    }
    if let (AnyId::Snapshot(id), Some(_)) = (args.id, &args.device) {
        return Err(CliError::Usage(format!("{id} is one disk: leave --device out")));
    }
    match (format, args.all) {
        (Some(format), false) => export_disk(session, args, format),
        (None, _) if args.zero_lost => {
            let why = "--zero-lost goes with disks, not with --format ova: write them with --all";
            Err(CliError::Usage(why.into()))
        }
        (format, all) => {
            let AnyId::Image(id) = args.id else {
                let what = if all { "--all" } else { "--format ova" };
                return Err(CliError::Usage(format!("{what} takes an image: a snapshot is one disk")));
            };
            if let (None, true) = (format, all) {
                return Err(CliError::Usage("an OVA has all disks: leave --all out".into()));
            }
            if let (None, Some(_)) = (format, &args.device) {
                return Err(CliError::Usage("an OVA has all disks: leave --device out".into()));
            }
            export_whole(session, args, id, format)
        }
    }
}

/// The error of a target that keeps what was written to it before: a device, or what reads standard output.
pub fn left_by(error: OpsError, file: &Path) -> CliError {
    let to_stdout = file == Path::new("-");
    let path = || if to_stdout { "standard output".into() } else { file.to_owned() };
    match error.class() {
        Class::Interrupted if to_stdout || is_block_device(file) => CliError::HalfWritten { path: path() },
        _ if !to_stdout && is_block_device(file) => CliError::LeftHalf { path: path(), error },
        _ => error.into(),
    }
}

/// Tells that a disk is longer than its volume, as it is where a format has whole sectors.
fn note_padding(session: &Session<'_>, volume_bytes: u64, format: DiskFormat) {
    let more = format.disk_bytes(volume_bytes) - volume_bytes;
    if more > 0 {
        session
            .watcher
            .note(&format!("the disk has {more} bytes of zeros after the volume's {volume_bytes}"));
    }
}

/// Tells that a device is longer than what was written to it.
fn note_rest(session: &Session<'_>, path: &Path, volume_bytes: u64) {
    let device = Some(path).filter(|path| is_block_device(path)).and_then(|path| open_raw(path).ok());
    let rest = device.map_or(0, |device| device.len_bytes().saturating_sub(volume_bytes));
    if rest > 0 {
        session.watcher.note(&format!(
            "{}: what is behind the volume, {} to the device's end, is as it was",
            path.display(),
            bytes(rest)
        ));
    }
}

/// Tells of what was lost, also those who want quiet. Gives the exit code.
fn tell_lost(disks: &[(&str, Vec<Range<u64>>)]) -> u8 {
    let mut code = 0;
    // What reads packs here does not search them as repair does.
    const FIRST: &str =
        "If `imgstore repair` was not run since the damage, run it first: it finds more than this does";
    for (what, lost) in disks.iter().filter(|(_, lost)| !lost.is_empty()) {
        let sum: u64 = lost.iter().map(|range| range.end - range.start).sum();
        warn(&format!("LOST {} of {what}, written as zeros: {}", bytes(sum), range_lines(lost).join(", ")));
        code = DAMAGE;
    }
    if code != 0 {
        warn(FIRST);
    }
    code
}

/// What an OVA has no words for, and whoever imports it gets otherwise.
fn note_left_out(session: &Session<'_>, image: &Image) {
    let has = |wanted: fn(&DeviceTarget) -> bool| image.devices.iter().any(|device| wanted(&device.target));
    let left_out: Vec<&str> = [
        ("ephemeral disks", has(|target| matches!(target, DeviceTarget::Ephemeral(_)))),
        ("which volumes are kept on termination", has(|t| matches!(t, DeviceTarget::Ebs(ebs) if !ebs.delete_on_termination))),
        (
            "types and iops of volumes",
            has(|t| matches!(t, DeviceTarget::Ebs(ebs) if ebs.iops.is_some() || ebs.volume_type != VolumeType::Gp3)),
        ),
        ("support of a TPM", image.machine.tpm_support.is_some()),
        ("IMDS support", image.machine.imds_support.is_some()),
        ("ENA support", image.machine.ena_support),
        ("that it is paravirtual", image.machine.virtualization_type == VirtualizationType::Paravirtual),
        ("kernel and ramdisk", image.machine.kernel_id.is_some() || image.machine.ramdisk_id.is_some()),
        ("that UEFI is only preferred", image.machine.boot_mode == Some(BootMode::UefiPreferred)),
        ("product codes", !image.product_codes.is_empty()),
        ("the description", !image.description.is_empty()),
        ("tags", !image.tags.is_empty()),
    ]
    .into_iter()
    .filter_map(|(what, is_there)| is_there.then_some(what))
    .collect();
    if !left_out.is_empty() {
        session.watcher.note(&format!("an OVA does not say: {}", left_out.join(", ")));
    }
}

/// An error, with what can be had all the same if content is lost.
fn with_cure(session: &Session<'_>, error: OpsError, args: &ExportArgs) -> OpsError {
    let is_loss = matches!(&error, OpsError::Region(error) if error.is_loss());
    if (is_loss || error.class() == Class::Damage) && !args.zero_lost {
        let cure = "`imgstore repair` mends what it can; what is left can be written with --zero-lost then";
        session.watcher.note(cure);
    }
    error
}

/// The error of a block map, without which nothing is left, with what may bring it back.
fn without_map(session: &Session<'_>, error: OpsError) -> OpsError {
    if error.class() == Class::Damage {
        let cure = "without its block map nothing of a disk can be told: `imgstore repair`, with --from REGION or --disk DISK, may bring it back";
        session.watcher.note(cure);
    }
    error
}

fn export_disk(session: &Session<'_>, args: &ExportArgs, format: DiskFormat) -> Result<u8, CliError> {
    let started = Instant::now();
    let region = session.home.open_region()?;
    let catalog = region.catalog()?;
    let root = export::select(&catalog, args.id, args.device.as_deref(), &session.context)?;
    let map = export::load(&region, &root).map_err(|error| without_map(session, error))?;
    let snapshot_id = match root.id {
        RootId::Snapshot(id) => Some(id),
        RootId::Template(_) => None,
    };
    let to_stdout = args.file == Path::new("-");
    if to_stdout && session.output.is_json() {
        return Err(CliError::Usage("standard output carries the disk; --json has no place there".into()));
    }
    if to_stdout && format != DiskFormat::Raw {
        let why = "standard output takes a raw disk: parts of the other formats are written last";
        return Err(CliError::Usage(why.into()));
    }
    let volume_bytes = export::volume_bytes(&catalog, args.id, args.device.as_deref(), &root);
    if !to_stdout {
        check_disk(&args.file, volume_bytes, format, options(args))?;
    }
    // Before anything is made: a dry run leaves no file.
    session.context.end_dry_run()?;
    let target = if to_stdout {
        stdout_target(session.watcher.cancelled())?
    } else {
        let id = u128::from(region.random_id()?) << 64 | u128::from(region.random_id()?);
        create_disk(&args.file, volume_bytes, format, options(args), id, session.context.pool)?
    };
    let gaps = args.zero_lost.then(Gaps::default);
    export::export(&region, &root, &map, volume_bytes, gaps.as_ref(), target, &session.context)
        .map_err(|error| left_by(with_cure(session, error, args), &args.file))?;
    let lost = lost_of(gaps.as_ref(), Some(root.id));
    note_rest(session, &args.file, volume_bytes);
    session.watcher.note(&format!(
        "{} volume, {} data, {:.1} s",
        bytes(volume_bytes),
        bytes(map.data_bytes()),
        started.elapsed().as_secs_f64()
    ));
    note_padding(session, volume_bytes, format);
    if !to_stdout {
        session.output.answer(
            || {
                json!({
                    "id": root.id.to_string(),
                    "snapshot_id": snapshot_id,
                    "region": session.home.region_name(),
                    "path": lossy(&args.file),
                    "volume_bytes": volume_bytes,
                    "data_bytes": map.data_bytes(),
                    "chunks": map.chunks().len(),
                    "lost": ranges_document(&lost),
                    "elapsed_seconds": started.elapsed().as_secs_f64(),
                })
            },
            String::new,
        );
    }
    session.watcher.finish();
    Ok(tell_lost(&[(&root.id.to_string(), lost)]))
}

/// What of some content was lost.
fn lost_of(gaps: Option<&Gaps>, root: Option<RootId>) -> Vec<Range<u64>> {
    gaps.zip(root).map(|(gaps, root)| gaps.of(root)).unwrap_or_default()
}

const fn options(args: &ExportArgs) -> TargetOptions {
    TargetOptions { force: args.force, write_device: args.write_device }
}

/// Exports all disks of an image: to files in a folder, or as an OVA.
fn export_whole(
    session: &Session<'_>,
    args: &ExportArgs,
    id: ImageId,
    format: Option<DiskFormat>,
) -> Result<u8, CliError> {
    let started = Instant::now();
    if args.file == Path::new("-") {
        let why = "several disks go to a folder, and an OVA to a file: standard output takes one raw disk";
        return Err(CliError::Usage(why.into()));
    }
    let region = session.home.open_region()?;
    let catalog = region.catalog()?;
    let image = find::image(&catalog, session.context.account, id)?;
    let disks =
        image_disks(&region, &catalog, id, &session.context).map_err(|error| without_map(session, error))?;
    let gaps = args.zero_lost.then(Gaps::default);
    let paths = match format {
        Some(format) => {
            let (file, options) = (&args.file, options(args));
            let paths = export_disks(&region, &disks, gaps.as_ref(), file, format, options, &session.context)
                .map_err(|error| with_cure(session, error, args))?;
            for disk in &disks {
                note_padding(session, disk.volume_bytes, format);
            }
            paths
        }
        None => {
            check_ova(image, &disks, &args.file)?;
            check_file(&args.file, options(args))?;
            session.context.end_dry_run()?;
            let file = create_file(&args.file, options(args))?;
            let size = MachineSize {
                processors: args.cpus.unwrap_or(CPUS_DEFAULT),
                memory_bytes: args.ram.unwrap_or(RAM_BYTES_DEFAULT),
            };
            export_ova(&region, image, &disks, file, &args.file, size, &session.context)
                .inspect_err(|error| note_cure(session, error))?;
            note_left_out(session, image);
            vec![args.file.clone()]
        }
    };
    let volume_bytes: u64 = disks.iter().map(|disk| disk.volume_bytes).sum();
    session.watcher.note(&format!(
        "disks: {}, {} volumes, {:.1} s",
        disks.len(),
        bytes(volume_bytes),
        started.elapsed().as_secs_f64()
    ));
    let lost = |disk: &ImageDisk| lost_of(gaps.as_ref(), disk.content.as_ref().map(|(root, _)| *root));
    let device = |disk: &ImageDisk| {
        json!({
            "device_name": disk.device_name,
            "id": disk.content.as_ref().map(|(root, _)| root.to_string()),
            "volume_bytes": disk.volume_bytes,
            "lost": ranges_document(&lost(disk)),
        })
    };
    session.output.answer(
        || {
            json!({
                "id": id.to_string(),
                "region": session.home.region_name(),
                "path": lossy(&args.file),
                "files": paths.iter().map(|path| lossy(path)).collect::<Vec<_>>(),
                "devices": disks.iter().map(device).collect::<Vec<_>>(),
                "volume_bytes": volume_bytes,
                "elapsed_seconds": started.elapsed().as_secs_f64(),
            })
        },
        String::new,
    );
    session.watcher.finish();
    let lost: Vec<_> = disks.iter().map(|disk| (disk.device_name.as_str(), lost(disk))).collect();
    Ok(tell_lost(&lost))
}
