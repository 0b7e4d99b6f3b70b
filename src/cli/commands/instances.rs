//! launch, create-image, stop, start, terminate.

use super::Session;
use super::devices::parse_override;
use super::ingest::{add_cost, cost};
use crate::cli::args::{CreateImageArgs, LaunchArgs};
use crate::cli::error::CliError;
use crate::cli::json;
use crate::cli::progress::warn;
use imgstore::model::ids::InstanceId;
use imgstore::ops::capture::{self, CreateImageOptions};
use imgstore::ops::context::Progress;
use imgstore::ops::devices::DeviceSpec;
use imgstore::ops::error::{Class, OpsError};
use imgstore::ops::ingest::Ingested;
use imgstore::ops::instance;
use imgstore::ops::launch::{LaunchOptions, Launched, launch as run_launch};
use serde_json::{Value, json};
use std::time::Instant;

/// What mends damage that was met.
pub(super) fn note_cure(session: &Session<'_>, error: &OpsError) {
    if error.class() == Class::Damage {
        session.watcher.note(
            "`imgstore repair` mends what it can, with --from REGION or --disk DISK more than it has itself",
        );
    }
}

pub fn launch(session: &Session<'_>, args: &LaunchArgs) -> Result<(), CliError> {
    let region = session.home.open_region()?;
    let options = LaunchOptions {
        count_min: args.count.0,
        count_max: args.count.1,
        output: args.output.clone().unwrap_or_else(|| session.home.instances()),
        devices: overrides(&args.devices)?,
        ephemeral_bytes: args.ephemeral_size,
        tags: args.tags.clone(),
        client_token: args.client_token.clone(),
    };
    let launched = run_launch(&region, args.image, &options, &session.context);
    let launched = launched.inspect_err(|error| note_cure(session, error))?;
    if launched.iter().any(|made| made.instance.launched_ms < session.context.now_ms) {
        session.watcher.note("this token was used before: nothing was launched again");
    }
    for made in &launched {
        let (id, state) = (made.instance.id, made.instance.state.as_str());
        let folder = json::place(&region, &made.instance.path);
        session.watcher.note(&match made.instance.terminated_ms {
            Some(_) => format!("{id} is {state}"),
            None => format!("{id}: {folder}"),
        });
    }
    session.output.answer(
        || {
            let one = |made: &Launched| json::instance(&region, &made.instance, &made.volumes);
            let instances = launched.iter().map(one).collect::<Value>();
            json!({ "region": session.home.region_name(), "instances": instances })
        },
        || launched.iter().map(|made| format!("{}\n", made.instance.id)).collect(),
    );
    Ok(())
}

fn overrides(devices: &[String]) -> Result<Vec<DeviceSpec>, CliError> {
    devices.iter().map(|text| parse_override(text)).collect()
}

pub fn create_image(session: &Session<'_>, args: &CreateImageArgs) -> Result<(), CliError> {
    let started = Instant::now();
    let region = session.home.open_region()?;
    let options = CreateImageOptions {
        name: args.name.clone(),
        description: args.description.clone(),
        devices: overrides(&args.devices)?,
        no_reboot: args.no_reboot,
        tags: args.tags.clone(),
        region: session.home.region_name().to_owned(),
    };
    let (image, captured) = capture::create_image(&region, args.instance, &options, &session.context)?;
    let volumes: Vec<&Ingested> = captured.ingested.iter().collect();
    session.watcher.note(&cost(&volumes, started));
    let catalog = region.known_catalog();
    session.output.answer(
        || {
            let mut document = json::image(&catalog, session.context.account, session.context.now_ms, &image);
            document["region"] = session.home.region_name().into();
            document["snapshots"] = captured
                .snapshots
                .iter()
                .map(|s| json::snapshot(&catalog, session.context.account, s))
                .collect();
            add_cost(&mut document, &volumes, started);
            document
        },
        || format!("{}\n", image.id),
    );
    Ok(())
}

pub fn stop(session: &Session<'_>, ids: &[InstanceId]) -> Result<(), CliError> {
    instance::stop(&session.home.open_region()?, ids, &session.context)?;
    answer_state(session, ids, "stopped");
    Ok(())
}

pub fn start(session: &Session<'_>, ids: &[InstanceId]) -> Result<(), CliError> {
    instance::start(&session.home.open_region()?, ids, &session.context)?;
    answer_state(session, ids, "running");
    Ok(())
}

fn answer_state(session: &Session<'_>, ids: &[InstanceId], state: &str) {
    session.output.answer(
        || {
            let one = |id: &InstanceId| json!({ "instance_id": id, "state": state });
            let instances = ids.iter().map(one).collect::<Value>();
            json!({ "region": session.home.region_name(), "instances": instances })
        },
        || ids.iter().map(|id| format!("{id}\n")).collect(),
    );
}

pub fn terminate(session: &Session<'_>, ids: &[InstanceId]) -> Result<(), CliError> {
    let terminated = instance::terminate(&session.home.open_region()?, ids, &session.context)?;
    for done in terminated.iter().filter(|done| !done.kept.is_empty()) {
        let kept: Vec<String> = done.kept.iter().map(ToString::to_string).collect();
        session.watcher.note(&format!("{}: kept and detached: {}", done.id, kept.join(", ")));
    }
    for left in terminated.iter().flat_map(|done| &done.left) {
        warn(&format!("a disk file was not removed: {left}"));
    }
    session.output.answer(
        || {
            let one = |done: &instance::Terminated| {
                json!({
                    "instance_id": done.id,
                    "state": "terminated",
                    "deleted_volume_ids": done.deleted,
                    "kept_volume_ids": done.kept,
                    "left_files": done.left,
                })
            };
            let instances = terminated.iter().map(one).collect::<Value>();
            json!({ "region": session.home.region_name(), "instances": instances })
        },
        || ids.iter().map(|id| format!("{id}\n")).collect(),
    );
    Ok(())
}
