//! import, register; and what they share with snapshot.

use super::devices::parse_device;
use super::{Session, parse_id};
use crate::cli::args::{DiskArgs, Format, ImageArgs, ImportArgs, RegisterArgs, StoringArgs};
use crate::cli::error::CliError;
use crate::cli::json;
use crate::cli::text::{bytes, lossy};
use imgstore::disk::DiskRead;
use imgstore::disk::detect::Foreign;
use imgstore::disk::formats::Limits;
use imgstore::disk::free::{self, Outcome, Part, skip_free};
use imgstore::disk::open::{Declared, Opened, is_ova, open_disk, open_unused_disk};
use imgstore::disk::ova::{Ova, open_ova};
use imgstore::model::catalog::Catalog;
use imgstore::model::image::Machine;
use imgstore::model::words::{Architecture, VirtualizationType};
use imgstore::ops::bundle::{Given, take_attributes};
use imgstore::ops::context::Progress;
use imgstore::ops::devices::{DeviceSpec, device_name};
use imgstore::ops::encode::Compression;
use imgstore::ops::import::{ImportDisk, Imported, import as run_import, import_ova, import_template};
use imgstore::ops::ingest::Ingested;
use imgstore::ops::register::{ImageOptions, register as run_register};
use imgstore::region::Region;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::PoisonError;
use std::time::Instant;

pub(super) fn declared(format: Option<Format>) -> Declared {
    match format {
        Some(Format::Raw) => Declared::Raw,
        Some(Format::Qcow2) => Declared::As(Foreign::Qcow2),
        Some(Format::Vmdk) => Declared::As(Foreign::Vmdk),
        Some(Format::Vhd) => Declared::As(Foreign::Vhd),
        Some(Format::Vhdx) => Declared::As(Foreign::Vhdx),
        Some(Format::Vdi) => Declared::As(Foreign::Vdi),
        Some(Format::Ova) => Declared::As(Foreign::Ova),
        None => Declared::Nothing,
    }
}

pub(super) fn limits(args: &DiskArgs) -> Limits {
    Limits { virtual_bytes: args.max_size, ..Limits::default() }
}

/// Opens a disk and tells what of its file is not on it.
pub(super) fn open(
    session: &Session<'_>,
    path: &Path,
    args: &DiskArgs,
) -> Result<Box<dyn DiskRead>, CliError> {
    let open = if args.skip_free { open_unused_disk } else { open_disk };
    let opened = open(path, declared(args.format), &limits(args))?;
    tell(session, path, &opened);
    if args.skip_free { skip(session, path, opened.disk) } else { Ok(opened.disk) }
}

/// The disks of a file: one, or those of a whole machine.
pub(super) fn open_all(
    session: &Session<'_>,
    path: &Path,
    args: &DiskArgs,
) -> Result<Vec<Box<dyn DiskRead>>, CliError> {
    if !is_machine(path, args)? {
        return Ok(vec![open(session, path, args)?]);
    }
    let disks = open_machine(session, path, args)?.disks;
    Ok(disks.into_iter().filter_map(|disk| disk.content).collect())
}

/// Whether a file is, or is to be taken as, a whole machine.
fn is_machine(path: &Path, args: &DiskArgs) -> Result<bool, CliError> {
    Ok(matches!(args.format, Some(Format::Ova) | None) && is_ova(path)?)
}

/// A machine, which is told of.
fn open_machine(session: &Session<'_>, path: &Path, args: &DiskArgs) -> Result<Ova, CliError> {
    let mut ova = open_ova(path, &limits(args))?;
    let name = ova.name.as_deref().unwrap_or("a machine without a name");
    let name: String = name.chars().filter(|c| !c.is_control()).take(80).collect();
    session.watcher.note(&format!("{}: OVA, {name}, disks: {}", path.display(), ova.disks.len()));
    for note in &ova.notes {
        session.watcher.note(&format!("{}: {note}", path.display()));
    }
    for disk in ova.disks.iter_mut().filter(|_| args.skip_free) {
        disk.content = disk.content.take().map(|disk| skip(session, path, disk)).transpose()?;
    }
    Ok(ova)
}

/// Tells what format a disk has, and what of its file is not on it.
pub(super) fn tell(session: &Session<'_>, path: &Path, opened: &Opened) {
    if opened.format != "raw" {
        session.watcher.note(&format!("{}: {}", path.display(), opened.format));
    }
    for note in &opened.notes {
        session.watcher.note(&format!("{}: {note}", path.display()));
    }
}

/// Takes what file systems on a disk mark as free as zero, and tells of each.
fn skip(session: &Session<'_>, path: &Path, disk: Box<dyn DiskRead>) -> Result<Box<dyn DiskRead>, CliError> {
    let (disk, parts) = skip_free(disk, &free::Limits::default(), &|| session.watcher.is_cancelled())?;
    let (mut free_sum, mut data_sum) = (0, 0);
    for part in &parts {
        session.watcher.note(&format!("{}: {part}", path.display()));
        session.free_space.lock().unwrap_or_else(PoisonError::into_inner).push(free_space(path, part));
        if let Outcome::Skipped { free_bytes, data_bytes } = part.outcome {
            free_sum += free_bytes;
            data_sum += data_bytes;
        }
    }
    session.watcher.note(&format!(
        "{}: --skip-free: {} of free blocks were taken as zero, {} of them were not holes",
        path.display(),
        bytes(free_sum),
        bytes(data_sum)
    ));
    Ok(disk)
}

/// What became of a part of a disk with `--skip-free`, for machines.
fn free_space(path: &Path, part: &Part) -> Value {
    let (free_bytes, data_bytes, left_alone) = match &part.outcome {
        Outcome::Skipped { free_bytes, data_bytes } => (*free_bytes, *data_bytes, None),
        Outcome::LeftAlone { why } => (0, 0, Some(why)),
    };
    json!({
        "disk": lossy(path),
        "place": part.place.to_string(),
        "file_system": part.kind,
        "free_bytes": free_bytes,
        "free_data_bytes": data_bytes,
        "left_alone": left_alone,
    })
}

pub(super) fn add_free_space(session: &Session<'_>, document: &mut Value) {
    let parts = session.free_space.lock().unwrap_or_else(PoisonError::into_inner);
    if !parts.is_empty() {
        document["free_space"] = parts.iter().cloned().collect();
    }
}

/// What bringing volumes in has cost, for people.
pub(super) fn cost(volumes: &[&Ingested], started: Instant) -> String {
    let sum = |of: fn(&Ingested) -> u64| volumes.iter().map(|volume| of(volume)).sum::<u64>();
    format!(
        "{} volume, {} data, {} new, {} stored, {:.1} s",
        bytes(sum(|v| v.volume_bytes)),
        bytes(sum(|v| v.data_bytes)),
        bytes(sum(|v| v.new_bytes)),
        bytes(sum(|v| v.stored_bytes)),
        started.elapsed().as_secs_f64()
    )
}

/// What bringing volumes in has cost, for machines.
pub(super) fn add_cost(document: &mut Value, volumes: &[&Ingested], started: Instant) {
    let sum = |of: fn(&Ingested) -> u64| volumes.iter().map(|volume| of(volume)).sum::<u64>();
    document["volume_bytes"] = sum(|v| v.volume_bytes).into();
    document["data_bytes"] = sum(|v| v.data_bytes).into();
    document["read_bytes"] = sum(|v| v.read_bytes).into();
    document["new_bytes"] = sum(|v| v.new_bytes).into();
    document["stored_bytes"] = sum(|v| v.stored_bytes).into();
    document["chunks"] = sum(|v| v.chunks).into();
    document["new_chunks"] = sum(|v| v.new_chunks).into();
    document["elapsed_seconds"] = started.elapsed().as_secs_f64().into();
}

/// How new chunks are stored, as the options say.
pub(super) fn compression(args: StoringArgs) -> Compression {
    Compression { level: args.level, delta: !args.no_delta }
}

pub fn import(session: &Session<'_>, args: &ImportArgs) -> Result<(), CliError> {
    let started = Instant::now();
    if let [path] = args.disks.as_slice()
        && is_machine(path, &args.reading)?
    {
        return import_machine(session, path, args);
    }
    let options = image_options(&args.image);
    let mut disks = Vec::new();
    for (number, path) in args.disks.iter().enumerate() {
        let device_name = device_name(&options.root_device_name, number).ok_or_else(|| {
            let root = &options.root_device_name;
            CliError::Usage(format!("no device name is left for disk {} after {root}", number + 1))
        })?;
        disks.push(ImportDisk { device_name, disk: open(session, path, &args.reading)? });
    }
    let region = session.home.open_region()?;
    let devices = args.devices.iter().map(|text| parse_device(text)).collect::<Result<Vec<_>, _>>()?;
    if args.instance_store {
        let [_] = args.disks.as_slice() else {
            let why = "an instance-store-backed image has one disk with content; give the others as --device";
            return Err(CliError::Usage(why.into()));
        };
        let Some(disk) = disks.pop() else { return Ok(()) };
        return import_as_template(
            session,
            &region,
            &*disk.disk,
            &devices,
            &options,
            compression(args.storing),
        );
    }
    let imported =
        run_import(&region, &disks, &devices, &options, compression(args.storing), &session.context)?;
    answer_import(session, &region.known_catalog(), &imported, started);
    Ok(())
}

/// Imports a whole machine. What it says of itself counts where no option says otherwise.
fn import_machine(session: &Session<'_>, path: &Path, args: &ImportArgs) -> Result<(), CliError> {
    let started = Instant::now();
    if args.instance_store || !args.devices.is_empty() {
        let why = "an OVA says itself what its devices are: --instance-store and --device do not go with it";
        return Err(CliError::Usage(why.into()));
    }
    let ova = open_machine(session, path, &args.reading)?;
    let mut options = image_options(&args.image);
    if args.image.architecture.is_none() {
        match ova.architecture {
            Some(architecture) => options.machine.architecture = architecture,
            None => session.watcher.note(&format!(
                "{}: does not say which processor it is for; {} is taken, --architecture says otherwise",
                path.display(),
                options.machine.architecture.as_str()
            )),
        }
    }
    if ova.is_windows && args.image.platform.is_none() {
        options.machine.platform = Some("windows".to_owned());
    }
    options.machine.boot_mode = options.machine.boot_mode.or(ova.boot_mode);
    if let (None, Some(first)) = (&args.image.root_device, ova.disks.first())
        && let Some(name) = &first.device_name
    {
        options.root_device_name.clone_from(name);
    }
    let region = session.home.open_region()?;
    let imported = import_ova(&region, ova, &options, compression(args.storing), &session.context)?;
    answer_import(session, &region.known_catalog(), &imported, started);
    Ok(())
}

fn image_options(args: &ImageArgs) -> ImageOptions {
    let host = if cfg!(target_arch = "aarch64") { Architecture::Arm64 } else { Architecture::X86_64 };
    ImageOptions {
        name: args.name.clone(),
        description: args.description.clone(),
        machine: Machine {
            architecture: args.architecture.unwrap_or(host),
            platform: args.platform.clone(),
            virtualization_type: args.virtualization_type.unwrap_or(VirtualizationType::Hvm),
            boot_mode: args.boot_mode,
            tpm_support: args.tpm_support.clone(),
            ena_support: args.ena_support,
            imds_support: args.imds_support.clone(),
            kernel_id: args.kernel.clone(),
            ramdisk_id: args.ramdisk.clone(),
        },
        root_device_name: args.root_device.clone().unwrap_or_else(|| "/dev/xvda".to_owned()),
        predecessor: args.predecessor,
        tags: args.tags.clone(),
    }
}

pub fn register(session: &Session<'_>, args: &RegisterArgs) -> Result<(), CliError> {
    let mut options = image_options(&args.image);
    let mut devices = args.devices.iter().map(|text| parse_device(text)).collect::<Result<Vec<_>, _>>()?;
    let region = session.home.open_region()?;
    if let Some(manifest) = &args.bundle {
        let disk = super::bundle::open(manifest)?;
        let given = Given {
            architecture: args.image.architecture.is_some(),
            virtualization_type: args.image.virtualization_type.is_some(),
            root_device: args.image.root_device.is_some(),
        };
        take_attributes(disk.attributes(), &mut options, given);
        let how = Compression { level: args.level, delta: !args.no_delta };
        return import_as_template(session, &region, &disk, &devices, &options, how);
    }
    if let Some(root) = &args.root {
        let mut spec = parse_device(&format!("{}={root}", options.root_device_name))?;
        if spec.snapshot_id.is_none() {
            // Such as `:size=8G` or `ephemeral0`.
            spec.snapshot_id = Some(parse_id(root)?);
        }
        devices.insert(0, spec);
    }
    let image = run_register(&region, &options, &devices, &session.context)?;
    let catalog = region.known_catalog();
    session.output.answer(
        || {
            let mut document = json::image(&catalog, session.context.account, session.context.now_ms, &image);
            document["region"] = session.home.region_name().into();
            document
        },
        || format!("{}\n", image.id),
    );
    Ok(())
}

/// Imports a disk as an instance-store-backed image.
fn import_as_template(
    session: &Session<'_>,
    region: &Region,
    disk: &dyn DiskRead,
    devices: &[DeviceSpec],
    options: &ImageOptions,
    how: Compression,
) -> Result<(), CliError> {
    let started = Instant::now();
    let imported = import_template(region, disk, devices, options, how, &session.context)?;
    answer_import(session, &region.known_catalog(), &imported, started);
    Ok(())
}

fn answer_import(session: &Session<'_>, catalog: &Catalog, imported: &Imported, started: Instant) {
    let volumes: Vec<&Ingested> = imported.ingested.iter().collect();
    session.watcher.note(&cost(&volumes, started));
    session.output.answer(
        || {
            let mut document =
                json::image(catalog, session.context.account, session.context.now_ms, &imported.image);
            document["region"] = session.home.region_name().into();
            document["snapshots"] = imported
                .snapshots
                .iter()
                .map(|s| json::snapshot(catalog, session.context.account, s))
                .collect();
            add_cost(&mut document, &volumes, started);
            add_free_space(session, &mut document);
            document
        },
        || format!("{}\n", imported.image.id),
    );
}
