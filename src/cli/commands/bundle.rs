//! bundle, unbundle; and opening a bundle to register it.

use super::export::left_by;
use super::ingest::{declared, tell};
use super::instances::note_cure;
use super::{Session, parse_id};
use crate::cli::args::{BundleArgs, UnbundleArgs};
use crate::cli::error::CliError;
use crate::cli::text::{bytes, lossy};
use imgstore::disk::bundle::{Bundle, BundleOptions, create_bundle, is_bundle_name, open_bundle};
use imgstore::disk::create::check_file;
use imgstore::disk::formats::Limits;
use imgstore::disk::open::{
    TargetOptions, check_folder, check_target, open_disk, open_target, stdout_target,
};
use imgstore::disk::{DiskError, DiskRead};
use imgstore::model::catalog::Catalog;
use imgstore::model::ids::{ImageId, SnapshotId};
use imgstore::ops::bundle::{attributes_of, copy_disk};
use imgstore::ops::context::Progress;
use imgstore::ops::export;
use imgstore::ops::find::{self, AnyId};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// zstd level of parts.
const LEVEL: i32 = 3;

/// Whether something in a region is bundled, and not a disk file.
pub fn is_of_stored(args: &BundleArgs) -> bool {
    let is_id = [ImageId::PREFIX, SnapshotId::PREFIX].iter().any(|prefix| args.what.starts_with(prefix));
    is_id && !Path::new(&args.what).exists()
}

pub fn bundle(session: &Session<'_>, args: &BundleArgs) -> Result<(), CliError> {
    let started = Instant::now();
    let (name, volume_bytes) =
        if is_of_stored(args) { bundle_stored(session, args)? } else { bundle_disk(session, args)? };
    let manifest = args.dir.join(format!("{name}.manifest.json"));
    session.watcher.note(&format!(
        "{} volume, {:.1} s",
        bytes(volume_bytes),
        started.elapsed().as_secs_f64()
    ));
    session.output.answer(
        || {
            json!({
                "manifest": lossy(&manifest),
                "volume_bytes": volume_bytes,
                "elapsed_seconds": started.elapsed().as_secs_f64(),
            })
        },
        || format!("{}\n", manifest.display()),
    );
    Ok(())
}

fn bundle_stored(session: &Session<'_>, args: &BundleArgs) -> Result<(String, u64), CliError> {
    if args.format.is_some() || args.max_size.is_some() {
        let why = "--format and --max-size are of a disk file: what is stored has a length, and no format";
        return Err(CliError::Usage(why.into()));
    }
    let region = session.home.open_region()?;
    let catalog: Catalog = region.catalog()?;
    let id: AnyId = parse_id(&args.what)?;
    let root = export::select(&catalog, id, None, &session.context)?;
    let (attributes, default) = match id {
        AnyId::Image(id) => {
            let image = find::image(&catalog, session.context.account, id)?;
            (attributes_of(image), image.name.clone())
        }
        _ => (BTreeMap::new(), root.id.to_string()),
    };
    let map = export::load(&region, &root).inspect_err(|error| note_cure(session, error))?;
    let volume_bytes = export::volume_bytes(&catalog, id, None, &root);
    let options = options(args, &default, attributes, volume_bytes)?;
    check_free(args, &options)?;
    session.context.end_dry_run()?;
    let target = create_bundle(&args.dir, &options)?;
    export::export(&region, &root, &map, volume_bytes, None, target, &session.context)
        .inspect_err(|error| note_cure(session, error))?;
    Ok((options.name, volume_bytes))
}

fn bundle_disk(session: &Session<'_>, args: &BundleArgs) -> Result<(String, u64), CliError> {
    let path = PathBuf::from(&args.what);
    let standard = Limits::default();
    let limits = Limits { virtual_bytes: args.max_size.unwrap_or(standard.virtual_bytes), ..standard };
    let opened = open_disk(&path, declared(args.format), &limits)?;
    if args.format.is_none() && opened.format != "raw" {
        // A guest may have written that.
        return Err(CliError::Usage(format!(
            "{} looks like {}: say --format {} to bundle the disk in it, or --format raw to bundle its bytes as they are",
            path.display(),
            opened.format,
            opened.format.to_lowercase()
        )));
    }
    tell(session, &path, &opened);
    let disk = opened.disk;
    let default = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let options = options(args, &default, BTreeMap::new(), disk.len_bytes())?;
    check_free(args, &options)?;
    session.context.end_dry_run()?;
    let target = create_bundle(&args.dir, &options)?;
    copy_disk(&*disk, target, "bundle", &session.context)?;
    Ok((options.name, disk.len_bytes()))
}

/// A name that was given is taken as it is; one that is derived has dashes for what no bundle's name has.
fn options(
    args: &BundleArgs,
    default: &str,
    attributes: BTreeMap<String, String>,
    volume_bytes: u64,
) -> Result<BundleOptions, CliError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let derived: String = default.chars().map(|c| if allowed(c) { c } else { '-' }).collect();
    let name = args.name.clone().unwrap_or_else(|| derived.trim_start_matches('.').to_owned());
    if !is_bundle_name(&name) {
        let why =
            format!("'{name}' cannot name a bundle: 1 to 128 letters, digits, dots, dashes; say --name");
        return Err(CliError::Usage(why));
    }
    Ok(BundleOptions { name, attributes, volume_bytes, zstd_level: LEVEL })
}

/// Refuses a bundle whose manifest is there already.
fn check_free(args: &BundleArgs, options: &BundleOptions) -> Result<(), CliError> {
    let manifest = args.dir.join(format!("{}.manifest.json", options.name));
    if args.dir.exists() {
        Ok(check_file(&manifest, TargetOptions::default()).map_err(|error| match error {
            DiskError::Exists { path } => DiskError::BundleExists { path },
            error => error,
        })?)
    } else {
        Ok(check_folder(&args.dir)?)
    }
}

/// A bundle as a disk.
pub fn open(manifest: &Path) -> Result<Bundle, CliError> {
    Ok(open_bundle(manifest)?)
}

pub fn unbundle(session: &Session<'_>, args: &UnbundleArgs) -> Result<(), CliError> {
    let started = Instant::now();
    let bundle = open_bundle(&args.manifest)?;
    let volume_bytes = bundle.len_bytes();
    let to_stdout = args.file == Path::new("-");
    if to_stdout && session.output.is_json() {
        return Err(CliError::Usage("standard output carries the disk; --json has no place there".into()));
    }
    let target_options = TargetOptions { force: args.force, write_device: args.write_device };
    if !to_stdout {
        check_target(&args.file, volume_bytes, target_options)?;
    }
    session.context.end_dry_run()?;
    let target = if to_stdout {
        stdout_target(session.watcher.cancelled())?
    } else {
        open_target(&args.file, volume_bytes, target_options)?
    };
    let copied = copy_disk(&bundle, target, "unbundle", &session.context);
    copied.map_err(|error| left_by(error, &args.file))?;
    let seconds = started.elapsed().as_secs_f64();
    session.watcher.note(&format!("{} volume, {seconds:.1} s", bytes(volume_bytes)));
    if !to_stdout {
        let document =
            || json!({ "path": lossy(&args.file), "volume_bytes": volume_bytes, "elapsed_seconds": seconds });
        session.output.answer(document, String::new);
    }
    Ok(())
}
