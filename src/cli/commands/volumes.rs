//! create-snapshot, create-volume, delete-volume, attach-volume, detach-volume.

use super::Session;
use super::ingest::{add_cost, cost};
use super::instances::note_cure;
use crate::cli::args::{CreateSnapshotArgs, CreateVolumeArgs};
use crate::cli::error::CliError;
use crate::cli::json;
use crate::cli::progress::warn;
use imgstore::model::ids::{InstanceId, VolumeId};
use imgstore::ops::capture::{self, CaptureOptions, CaptureWhat};
use imgstore::ops::context::Progress;
use imgstore::ops::find::{self, AnyId};
use imgstore::ops::ingest::Ingested;
use imgstore::ops::volume::{self, VolumeOptions};
use imgstore::region::Region;
use serde_json::{Value, json};
use std::time::Instant;

pub fn create_snapshot(session: &Session<'_>, args: &CreateSnapshotArgs) -> Result<(), CliError> {
    let started = Instant::now();
    let what = match args.id {
        AnyId::Volume(id) => CaptureWhat::Volume(id),
        AnyId::Instance(id) => CaptureWhat::Instance(id),
        AnyId::Image(_) | AnyId::Snapshot(_) => {
            return Err(CliError::Usage("create-snapshot takes a volume or an instance".into()));
        }
    };
    let options = CaptureOptions {
        description: args.description.clone(),
        tags: args.tags.clone(),
        exclude_root: args.exclude_root,
    };
    let region = session.home.open_region()?;
    let captured = capture::create_snapshots(&region, what, &options, &session.context)?;
    let volumes: Vec<&Ingested> = captured.ingested.iter().collect();
    session.watcher.note(&cost(&volumes, started));
    let catalog = region.known_catalog();
    session.output.answer(
        || {
            let snapshots = captured
                .snapshots
                .iter()
                .map(|s| json::snapshot(&catalog, session.context.account, s))
                .collect::<Value>();
            let mut document = json!({ "region": session.home.region_name(), "snapshots": snapshots });
            add_cost(&mut document, &volumes, started);
            document
        },
        || captured.snapshots.iter().map(|snapshot| format!("{}\n", snapshot.id)).collect(),
    );
    Ok(())
}

pub fn create(session: &Session<'_>, args: &CreateVolumeArgs) -> Result<(), CliError> {
    let options = VolumeOptions {
        snapshot_id: args.snapshot,
        volume_bytes: args.size,
        volume_type: args.volume_type,
        iops: args.iops,
        output: args.output.clone().unwrap_or_else(|| session.home.volumes()),
        tags: args.tags.clone(),
        client_token: args.client_token.clone(),
    };
    let region = session.home.open_region()?;
    let made = volume::create_volume(&region, &options, &session.context)
        .inspect_err(|error| note_cure(session, error))?;
    session.watcher.note(&format!("{}: {}", made.id, json::place(&region, &made.path)));
    answer(session, &region, made.id)
}

/// Answers with the volume as it is now.
fn answer(session: &Session<'_>, region: &Region, id: VolumeId) -> Result<(), CliError> {
    let catalog = region.known_catalog();
    let mut document = json::volume(region, find::volume(&catalog, session.context.account, id)?);
    document["region"] = session.home.region_name().into();
    session.output.answer(|| document, || format!("{id}\n"));
    Ok(())
}

pub fn delete(session: &Session<'_>, id: VolumeId) -> Result<(), CliError> {
    let left = volume::delete_volume(&session.home.open_region()?, id, &session.context)?;
    left.iter().for_each(|left| warn(&format!("a disk file was not removed: {left}")));
    let region = session.home.region_name();
    let document = || json!({ "volume_id": id, "region": region, "state": "deleted", "left_file": left });
    session.output.answer(document, || format!("{id}\n"));
    Ok(())
}

pub fn attach(
    session: &Session<'_>,
    id: VolumeId,
    instance: InstanceId,
    device: &str,
) -> Result<(), CliError> {
    let region = session.home.open_region()?;
    volume::attach_volume(&region, id, instance, device, &session.context)?;
    answer(session, &region, id)
}

pub fn detach(session: &Session<'_>, id: VolumeId) -> Result<(), CliError> {
    let region = session.home.open_region()?;
    volume::detach_volume(&region, id, &session.context)?;
    answer(session, &region, id)
}
