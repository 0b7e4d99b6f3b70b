//! log: the region's history.

use super::Session;
use crate::cli::error::CliError;
use crate::cli::text::{bytes, printable, time_millis};
use imgstore::model::account::Permission;
use imgstore::model::op::{ImageChange, LogRecord, Op, SnapshotChange};
use imgstore::ops::context::Progress;
use imgstore::ops::error::OpsError;
use serde_json::{Value, json};
use std::time::Duration;

/// How often `--follow` looks for more.
const POLL: Duration = Duration::from_millis(200);

pub fn log(session: &Session<'_>, follow: bool) -> Result<(), CliError> {
    let region = session.home.open_region()?;
    let mut sequence = 1;
    let mut documents = Vec::new();
    loop {
        while let Some(record) = region.record(sequence)? {
            sequence += 1;
            // What a caller may not see does not exist for it.
            if record.author.account != session.context.account {
                continue;
            }
            if session.output.is_json() {
                documents.push(document(&record));
            } else {
                session.output.answer(|| Value::Null, || line(&record));
            }
        }
        if !follow {
            break;
        }
        if session.output.is_json() {
            return Err(CliError::Usage(
                "--follow never ends, and a JSON document must; leave one out".into(),
            ));
        }
        session.output.finish()?;
        if session.watcher.is_cancelled() {
            return Err(OpsError::Interrupted.into());
        }
        std::thread::sleep(POLL);
    }
    if session.output.is_json() {
        session.output.answer(|| json!({ "records": documents }), String::new);
    }
    Ok(())
}

fn document(record: &LogRecord) -> Value {
    json!({
        "sequence": record.sequence,
        "time": time_millis(record.time_ms),
        "account_id": record.author.account,
        "session_id": record.author.session,
        "operations": record.ops.iter().map(operation).collect::<Value>(),
    })
}

fn operation(op: &Op) -> Value {
    match op {
        Op::NoOp => json!({ "operation": "no-op" }),
        Op::RegisterPack(pack) => {
            json!({ "operation": "register-pack", "object": pack.name.to_string(), "bytes": pack.len })
        }
        Op::RegisterSegment(segment) => {
            json!({ "operation": "register-segment", "object": segment.name.to_string(), "bytes": segment.len })
        }
        Op::CreateSnapshot { snapshot, .. } => json!({
            "operation": "create-snapshot",
            "snapshot_id": snapshot.id,
            "volume_bytes": snapshot.volume_bytes,
            "source_snapshot_id": snapshot.source.as_ref().map(|source| source.snapshot_id),
        }),
        Op::DeleteSnapshot { id } => json!({ "operation": "delete-snapshot", "snapshot_id": id }),
        Op::RegisterImage(image) => json!({
            "operation": "register-image",
            "image_id": image.id,
            "name": image.name,
            "source_image_id": image.source.as_ref().map(|source| source.image_id),
        }),
        Op::DeregisterImage { id } => json!({ "operation": "deregister-image", "image_id": id }),
        Op::RunInstance { instance, volumes } => json!({
            "operation": "run-instance",
            "instance_id": instance.id,
            "image_id": instance.image_id,
            "volume_ids": volumes.iter().map(|volume| volume.id).collect::<Vec<_>>(),
        }),
        Op::ModifyImage { id, change } => {
            json!({ "operation": "modify-image", "image_id": id, "change": image_change(change) })
        }
        Op::ModifySnapshot { id, change } => {
            json!({ "operation": "modify-snapshot", "snapshot_id": id, "change": snapshot_change(change) })
        }
    }
}

fn line(record: &LogRecord) -> String {
    let words: Vec<String> = record.ops.iter().map(words).collect();
    let (time, account) = (time_millis(record.time_ms), record.author.account);
    format!("{:>6}  {time}  {account}  {}\n", record.sequence, words.join("; "))
}

fn words(op: &Op) -> String {
    match op {
        Op::NoOp => "nothing".into(),
        Op::RegisterPack(pack) => format!("stored a pack of {} ({})", bytes(pack.len), pack.name),
        Op::RegisterSegment(segment) => format!("indexed {} chunks ({})", segment.entries, segment.name),
        Op::CreateSnapshot { snapshot, .. } => match &snapshot.source {
            Some(source) => format!(
                "copied snapshot {} from {} in {}",
                snapshot.id,
                source.snapshot_id,
                printable(&source.region)
            ),
            None => format!("took snapshot {} of {}", snapshot.id, bytes(snapshot.volume_bytes)),
        },
        Op::DeleteSnapshot { id } => format!("deleted snapshot {id}"),
        Op::RegisterImage(image) => match &image.source {
            Some(source) => format!(
                "copied image {} ({}) from {} in {}",
                image.id,
                printable(&image.name),
                source.image_id,
                printable(&source.region)
            ),
            None => format!("registered image {} ({})", image.id, printable(&image.name)),
        },
        Op::DeregisterImage { id } => format!("deregistered image {id}"),
        Op::RunInstance { instance, .. } => format!("launched {} from {}", instance.id, instance.image_id),
        Op::ModifyImage { id, change } => format!("{id}: {}", image_change(change)),
        Op::ModifySnapshot { id, change } => format!("{id}: {}", snapshot_change(change)),
    }
}

fn whom(permissions: &[Permission]) -> String {
    let one = |permission: &Permission| match permission {
        Permission::All => "everybody".to_owned(),
        Permission::Account(id) => id.to_string(),
    };
    let all: Vec<String> = permissions.iter().map(one).collect();
    if all.is_empty() { "nobody else".into() } else { all.join(", ") }
}

fn image_change(change: &ImageChange) -> String {
    match change {
        ImageChange::LaunchPermissions(permissions) => format!("launchable by {}", whom(permissions)),
        ImageChange::Tags(tags) => format!("{} tags", tags.len()),
        ImageChange::Deprecation(Some(at)) => format!("deprecated from {}", time_millis(*at)),
        ImageChange::Deprecation(None) => "not deprecated".into(),
        ImageChange::Disable => "disabled".into(),
        ImageChange::Enable => "enabled".into(),
        ImageChange::Protection(true) => "protected against deregistration".into(),
        ImageChange::Protection(false) => "no longer protected".into(),
    }
}

fn snapshot_change(change: &SnapshotChange) -> String {
    match change {
        SnapshotChange::CreateVolumePermissions(permissions) => format!("readable by {}", whom(permissions)),
        SnapshotChange::Tags(tags) => format!("{} tags", tags.len()),
    }
}
