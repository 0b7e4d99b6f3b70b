//! log: the region's history.

use super::Session;
use crate::cli::error::{CliError, DAMAGE};
use crate::cli::progress::warn;
use crate::cli::text::{bytes, counted, printable, time_millis};
use imgstore::model::account::Permission;
use imgstore::model::ids::{ImageId, SnapshotId};
use imgstore::model::image::DeregistrationProtection;
use imgstore::model::objects::PackName;
use imgstore::model::op::{
    AccountChange, BinStay, ImageChange, InstanceChange, LogRecord, Op, SnapshotChange, VolumeChange,
};
use imgstore::ops::context::Progress;
use imgstore::ops::error::OpsError;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::time::Duration;

/// How often `--follow` looks for more.
const POLL: Duration = Duration::from_millis(200);

pub fn log(session: &Session<'_>, follow: bool) -> Result<u8, CliError> {
    let region = session.home.open_region()?;
    let mut sequence = 1;
    let (mut documents, mut lost) = (Vec::new(), Vec::new());
    let mut own = Own::default();
    loop {
        // A record that is lost behind a checkpoint is not the end.
        let tail = region.catalog()?.sequence;
        while sequence <= tail {
            let read = region.record(sequence);
            sequence += 1;
            let mut record = match read {
                Ok(Some(record)) => record,
                Err(error) if !error.is_loss() => return Err(error.into()),
                Ok(None) | Err(_) => {
                    lost.push(sequence - 1);
                    warn(&format!(
                        "log record {} is lost; `imgstore repair` brings it back if its twin is there",
                        sequence - 1
                    ));
                    continue;
                }
            };
            // What a caller may not see does not exist for it.
            if record.author.account != session.context.account {
                continue;
            }
            own.note(&record);
            // What a collection, or whoever used a snapshot last, has ended for others is theirs to know.
            record.ops.retain(|op| !own.is_others(op));
            if record.ops.is_empty() {
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
        session.output.answer(|| json!({ "records": documents, "lost": lost }), String::new);
    }
    Ok(if lost.is_empty() { 0 } else { DAMAGE })
}

/// What the caller has made, of what may be in the bin.
#[derive(Default)]
struct Own {
    images: HashSet<ImageId>,
    snapshots: HashSet<SnapshotId>,
}

impl Own {
    fn note(&mut self, record: &LogRecord) {
        for op in &record.ops {
            match op {
                Op::RegisterImage(image) => _ = self.images.insert(image.id),
                Op::CreateSnapshot { snapshot, .. } => _ = self.snapshots.insert(snapshot.id),
                _ => {}
            }
        }
    }

    fn is_others(&self, op: &Op) -> bool {
        match op {
            Op::ExpireImage { id } => !self.images.contains(id),
            Op::ExpireSnapshot { id } => !self.snapshots.contains(id),
            _ => false,
        }
    }
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
        Op::DeleteSnapshot { id, bin } => {
            json!({ "operation": "delete-snapshot", "snapshot_id": id, "restorable_until": until(*bin) })
        }
        Op::RegisterImage(image) => json!({
            "operation": "register-image",
            "image_id": image.id,
            "name": image.name,
            "source_image_id": image.source.as_ref().map(|source| source.image_id),
        }),
        Op::DeregisterImage { id, bin } => {
            json!({ "operation": "deregister-image", "image_id": id, "restorable_until": until(*bin) })
        }
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
        Op::CreateTemplate { template, .. } => json!({
            "operation": "create-template",
            "template_id": template.id,
            "volume_bytes": template.volume_bytes,
        }),
        Op::RestoreImage { id } => json!({ "operation": "restore-image", "image_id": id }),
        Op::RestoreSnapshot { id } => json!({ "operation": "restore-snapshot", "snapshot_id": id }),
        Op::ExpireImage { id } => json!({ "operation": "expire-image", "image_id": id }),
        Op::ExpireSnapshot { id } => json!({ "operation": "expire-snapshot", "snapshot_id": id }),
        Op::ModifyAccount { account, change } => {
            json!({ "operation": "modify-account", "account_id": account, "change": account_change(change) })
        }
        Op::CreateVolume(volume) => json!({
            "operation": "create-volume",
            "volume_id": volume.id,
            "volume_bytes": volume.volume_bytes,
            "snapshot_id": volume.snapshot_id,
        }),
        Op::DeleteVolume { id } => json!({ "operation": "delete-volume", "volume_id": id }),
        Op::ModifyVolume { id, change } => {
            json!({ "operation": "modify-volume", "volume_id": id, "change": volume_change(change) })
        }
        Op::ModifyInstance { id, change } => {
            json!({ "operation": "modify-instance", "instance_id": id, "change": instance_change(change) })
        }
        Op::TerminateInstance { id, .. } => json!({ "operation": "terminate-instance", "instance_id": id }),
        Op::ForgetInstance { id } => json!({ "operation": "forget-instance", "instance_id": id }),
        Op::CondemnPacks { packs, .. } => json!({ "operation": "condemn-packs", "objects": names(packs) }),
        Op::SweepPacks { packs } => json!({ "operation": "sweep-packs", "objects": names(packs) }),
        Op::ForgetPacks { packs } => json!({ "operation": "forget-packs", "objects": names(packs) }),
        Op::QuarantinePacks { packs, .. } => {
            json!({ "operation": "quarantine-packs", "objects": names(packs) })
        }
        Op::FenceSessions { sessions } => json!({ "operation": "fence-sessions", "session_ids": sessions }),
        Op::ReplaceManifest { lost, by } => {
            json!({ "operation": "replace-manifest", "lost": lost.to_string(), "object": by.name.to_string() })
        }
        Op::RebasePack { pack, bases } => {
            json!({ "operation": "rebase-pack", "object": pack.to_string(), "bases": names(bases) })
        }
    }
}

fn names(packs: &[PackName]) -> Vec<String> {
    packs.iter().map(ToString::to_string).collect()
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
        Op::RegisterSegment(segment) => {
            format!("indexed {} ({})", counted(segment.entries, "chunk"), segment.name)
        }
        Op::CreateSnapshot { snapshot, .. } => match &snapshot.source {
            Some(source) => format!(
                "copied snapshot {} from {} in {}",
                snapshot.id,
                source.snapshot_id,
                printable(&source.region)
            ),
            None => format!("took snapshot {} of {}", snapshot.id, bytes(snapshot.volume_bytes)),
        },
        Op::DeleteSnapshot { id, bin } => format!("deleted snapshot {id}{}", to_bin(*bin)),
        Op::RegisterImage(image) if let Some(instance) = image.source_instance => {
            format!("made image {} ({}) of {instance}", image.id, printable(&image.name))
        }
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
        Op::DeregisterImage { id, bin } => format!("deregistered image {id}{}", to_bin(*bin)),
        Op::RunInstance { instance, .. } => format!("launched {} from {}", instance.id, instance.image_id),
        Op::ModifyImage { id, change } => format!("{id}: {}", image_change(change)),
        Op::ModifySnapshot { id, change } => format!("{id}: {}", snapshot_change(change)),
        Op::CreateTemplate { template, .. } => {
            format!("made template {} of {}", template.id, bytes(template.volume_bytes))
        }
        Op::RestoreImage { id } => format!("restored image {id}"),
        Op::RestoreSnapshot { id } => format!("restored snapshot {id}"),
        Op::ExpireImage { id } => format!("the time of image {id} in the bin ended"),
        Op::ExpireSnapshot { id } => format!("the time of snapshot {id} in the bin ended"),
        Op::ModifyAccount { account, change } => format!("account {account}: {}", account_change(change)),
        Op::CreateVolume(volume) => format!("made volume {} of {}", volume.id, bytes(volume.volume_bytes)),
        Op::DeleteVolume { id } => format!("deleted volume {id}"),
        Op::ModifyVolume { id, change } => format!("{id}: {}", volume_change(change)),
        Op::ModifyInstance { id, change } => format!("{id}: {}", instance_change(change)),
        Op::TerminateInstance { id, .. } => format!("terminated {id}"),
        Op::ForgetInstance { id } => format!("forgot {id}, terminated long ago"),
        Op::CondemnPacks { packs, .. } => {
            format!("condemned {} not needed by anything", counted(packs.len() as u64, "pack"))
        }
        Op::SweepPacks { packs } => {
            format!("began to remove {}", counted(packs.len() as u64, "condemned pack"))
        }
        Op::ForgetPacks { packs } => format!("removed {}", counted(packs.len() as u64, "pack")),
        Op::QuarantinePacks { packs, .. } => {
            format!("quarantined {}", counted(packs.len() as u64, "damaged pack"))
        }
        Op::FenceSessions { sessions } => {
            format!("fenced {}", counted(sessions.len() as u64, "dead session"))
        }
        Op::ReplaceManifest { lost, by } => format!("replaced block map {lost} by its like, {}", by.name),
        Op::RebasePack { pack, bases } => {
            format!("{pack} has its bases in {} now", counted(bases.len() as u64, "other pack"))
        }
    }
}

fn until(bin: Option<BinStay>) -> Option<String> {
    bin.map(|stay| time_millis(stay.until_ms))
}

fn to_bin(bin: Option<BinStay>) -> String {
    until(bin).map_or_else(String::new, |until| format!(", restorable until {until}"))
}

fn account_change(change: &AccountChange) -> String {
    match change {
        AccountChange::Alias(Some(alias)) => format!("called {alias}"),
        AccountChange::Alias(None) => "called nothing".into(),
        AccountChange::BlockPublicImages(true) => "its images cannot be made public".into(),
        AccountChange::BlockPublicImages(false) => "its images can be made public".into(),
        AccountChange::BlockPublicSnapshots(true) => "its snapshots cannot be made public".into(),
        AccountChange::BlockPublicSnapshots(false) => "its snapshots can be made public".into(),
        AccountChange::AddRule(rule) => format!("{} keeps what it removes for {} days", rule.id, rule.days),
        AccountChange::RemoveRule(id) => format!("without {id}"),
    }
}

fn volume_change(change: &VolumeChange) -> String {
    match change {
        VolumeChange::Attachment(Some(at)) => format!("attached to {} as {}", at.instance_id, at.device_name),
        VolumeChange::Attachment(None) => "detached".into(),
        VolumeChange::Tags(tags) => format!("{} tags", tags.len()),
    }
}

fn instance_change(change: &InstanceChange) -> String {
    match change {
        InstanceChange::Start => "running".into(),
        InstanceChange::Stop => "stopped".into(),
        InstanceChange::Tags(tags) => format!("{} tags", tags.len()),
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
        ImageChange::Protection(DeregistrationProtection::Disabled) => "no longer protected".into(),
        ImageChange::Protection(DeregistrationProtection::CoolingDown { until_ms }) => {
            format!("protected until {}", time_millis(*until_ms))
        }
        ImageChange::Protection(_) => "protected against deregistration".into(),
        ImageChange::Description(_) => "described anew".into(),
        ImageChange::ProductCodes(codes) => format!("product codes {}", codes.join(", ")),
    }
}

fn snapshot_change(change: &SnapshotChange) -> String {
    match change {
        SnapshotChange::CreateVolumePermissions(permissions) => format!("readable by {}", whom(permissions)),
        SnapshotChange::Tags(tags) => format!("{} tags", tags.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_ended_of_others_is_told_apart() {
        let (own_id, foreign) = (ImageId::from_random(1), ImageId::from_random(2));
        let mut own = Own::default();
        assert!(own.is_others(&Op::ExpireImage { id: own_id }));
        own.images.insert(own_id);
        assert!(
            !own.is_others(&Op::ExpireImage { id: own_id })
                && own.is_others(&Op::ExpireImage { id: foreign })
        );
        let snapshot = SnapshotId::from_random(3);
        assert!(
            own.is_others(&Op::ExpireSnapshot { id: snapshot })
                && !own.is_others(&Op::DeleteSnapshot { id: snapshot, bin: None })
        );
    }
}
