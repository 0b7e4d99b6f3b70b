//! snapshot, import, register.

use super::{Session, parse_id};
use crate::cli::args::{Format, ImageArgs, ImportArgs, RegisterArgs, SnapshotArgs};
use crate::cli::error::CliError;
use crate::cli::json;
use crate::cli::text::{bytes, parse_bytes};
use imgstore::disk::open::{Declared, open_disk};
use imgstore::model::image::{Architecture, VolumeType};
use imgstore::ops::context::Progress;
use imgstore::ops::import::{ImportDisk, import as run_import};
use imgstore::ops::ingest::Ingested;
use imgstore::ops::register::{DeviceSpec, ImageOptions, register as run_register};
use imgstore::ops::snapshot::{SnapshotOptions, snapshot as run_snapshot};
use serde_json::Value;
use std::time::Instant;

fn declared(format: Option<Format>) -> Declared {
    match format {
        Some(Format::Raw) => Declared::Raw,
        None => Declared::Nothing,
    }
}

/// What bringing volumes in has cost, for people.
fn cost(volumes: &[&Ingested], started: Instant) -> String {
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
fn add_cost(document: &mut Value, volumes: &[&Ingested], started: Instant) {
    let sum = |of: fn(&Ingested) -> u64| volumes.iter().map(|volume| of(volume)).sum::<u64>();
    document["volume_bytes"] = sum(|v| v.volume_bytes).into();
    document["data_bytes"] = sum(|v| v.data_bytes).into();
    document["new_bytes"] = sum(|v| v.new_bytes).into();
    document["stored_bytes"] = sum(|v| v.stored_bytes).into();
    document["chunks"] = sum(|v| v.chunks).into();
    document["new_chunks"] = sum(|v| v.new_chunks).into();
    document["elapsed_seconds"] = started.elapsed().as_secs_f64().into();
}

pub fn snapshot(session: &Session<'_>, args: &SnapshotArgs) -> Result<(), CliError> {
    let started = Instant::now();
    let disk = open_disk(&args.disk, declared(args.format))?;
    let region = session.home.open_region()?;
    let options = SnapshotOptions {
        description: args.description.clone(),
        tags: args.tags.clone(),
        parent: args.parent,
        zstd_level: args.level,
    };
    let taken = run_snapshot(&region, &*disk, &options, &session.context)?;
    session.watcher.note(&cost(&[&taken.ingested], started));
    session.output.answer(
        || {
            let mut document = json::snapshot(&taken.snapshot);
            document["region"] = session.home.region_name().into();
            add_cost(&mut document, &[&taken.ingested], started);
            document
        },
        || format!("{}\n", taken.snapshot.id),
    );
    Ok(())
}

pub fn import(session: &Session<'_>, args: &ImportArgs) -> Result<(), CliError> {
    let started = Instant::now();
    let options = image_options(&args.image);
    let mut disks = Vec::new();
    for (number, path) in args.disks.iter().enumerate() {
        let device_name = device_name(&options.root_device_name, number)?;
        disks.push(ImportDisk { device_name, disk: open_disk(path, declared(args.format))? });
    }
    let region = session.home.open_region()?;
    let imported = run_import(&region, &disks, &options, args.level, &session.context)?;
    let volumes: Vec<&Ingested> = imported.ingested.iter().collect();
    session.watcher.note(&cost(&volumes, started));
    session.output.answer(
        || {
            let mut document = json::image(&imported.image);
            document["region"] = session.home.region_name().into();
            document["snapshots"] = imported.snapshots.iter().map(json::snapshot).collect();
            add_cost(&mut document, &volumes, started);
            document
        },
        || format!("{}\n", imported.image.id),
    );
    Ok(())
}

/// The name of an image's disk `number`: the root device's, then the letters after it.
fn device_name(root: &str, number: usize) -> Result<String, CliError> {
    if number == 0 {
        return Ok(root.to_owned());
    }
    let too_many = || CliError::Usage(format!("no device name is left for disk {} after {root}", number + 1));
    let stem = root.trim_end_matches(|c: char| c.is_ascii_digit());
    let mut letters = stem.chars().rev();
    let last = letters.next().filter(char::is_ascii_lowercase).ok_or_else(too_many)?;
    let next = u8::try_from(number).ok().and_then(|n| u8::try_from(last).ok()?.checked_add(n));
    let next = next.filter(u8::is_ascii_lowercase).ok_or_else(too_many)?;
    Ok(format!("{}{}", &stem[..stem.len() - 1], char::from(next)))
}

fn image_options(args: &ImageArgs) -> ImageOptions {
    ImageOptions {
        name: args.name.clone(),
        description: args.description.clone(),
        architecture: args.architecture.unwrap_or(if cfg!(target_arch = "aarch64") {
            Architecture::Arm64
        } else {
            Architecture::X86_64
        }),
        virtualization_type: args.virtualization_type,
        boot_mode: args.boot_mode,
        root_device_name: args.root_device.clone(),
        tags: args.tags.clone(),
    }
}

pub fn register(session: &Session<'_>, args: &RegisterArgs) -> Result<(), CliError> {
    let options = image_options(&args.image);
    let mut devices = vec![DeviceSpec {
        device_name: options.root_device_name.clone(),
        snapshot_id: Some(args.root),
        volume_bytes: None,
        volume_type: VolumeType::Gp3,
        delete_on_termination: true,
    }];
    for text in &args.devices {
        devices.push(parse_device(text)?);
    }
    let region = session.home.open_region()?;
    let image = run_register(&region, &options, &devices, &session.context)?;
    session.output.answer(
        || {
            let mut document = json::image(&image);
            document["region"] = session.home.region_name().into();
            document
        },
        || format!("{}\n", image.id),
    );
    Ok(())
}

/// Reads `NAME=SNAP[:size=BYTES][,keep]`.
fn parse_device(text: &str) -> Result<DeviceSpec, CliError> {
    let usage =
        |why: &str| CliError::Usage(format!("--device {text}: {why}; write NAME=SNAP[:size=BYTES][,keep]"));
    let (name, rest) = text.split_once('=').ok_or_else(|| usage("no '=' after the device's name"))?;
    let (snapshot, options) = rest.split_once(':').unwrap_or((rest, ""));
    let mut spec = DeviceSpec {
        device_name: name.to_owned(),
        snapshot_id: (!snapshot.is_empty()).then(|| parse_id(snapshot)).transpose()?,
        volume_bytes: None,
        volume_type: VolumeType::Gp3,
        delete_on_termination: true,
    };
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some(("size", size)) => spec.volume_bytes = Some(parse_bytes(size).map_err(|why| usage(&why))?),
            Some(("type", kind)) => spec.volume_type = kind.parse().map_err(|why: String| usage(&why))?,
            None if option == "keep" => spec.delete_on_termination = false,
            _ => return Err(usage(&format!("'{option}' is no option"))),
        }
    }
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn further_disks_get_the_letters_after_the_root_device() {
        let name = |root, number| device_name(root, number).unwrap();
        assert_eq!(name("/dev/xvda", 0), "/dev/xvda");
        assert_eq!(name("/dev/xvda", 2), "/dev/xvdc");
        assert_eq!(name("/dev/sda1", 1), "/dev/sdb");
        assert!(device_name("/dev/xvdz", 1).is_err());
        assert!(device_name("/dev/xvda", 400).is_err());
    }

    #[test]
    fn devices_are_read_with_their_options() {
        let spec = parse_device("/dev/xvdb=:size=8G,keep").unwrap();
        assert_eq!((spec.snapshot_id, spec.volume_bytes), (None, Some(8 << 30)));
        assert!(!spec.delete_on_termination);
        assert!(parse_device("/dev/xvdb").is_err());
        assert!(parse_device("/dev/xvdb=vol-1").is_err());
        assert!(parse_device("/dev/xvdb=:speed=1").is_err());
    }
}
