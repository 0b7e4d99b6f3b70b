//! deregister, delete-snapshot, bin.

use super::Session;
use crate::cli::args::{BinCommand, DeregisterArgs, Kind, RuleArgs};
use crate::cli::error::CliError;
use crate::cli::json;
use crate::cli::text::{bytes, printable, table, time, time_millis};
use imgstore::model::account::Resource;
use imgstore::model::ids::SnapshotId;
use imgstore::ops::bin;
use imgstore::ops::context::Progress;
use imgstore::ops::delete::{self, Deregistration, SnapshotDeletion, SnapshotOutcome};
use imgstore::ops::find::AnyId;
use serde_json::{Value, json};

pub fn deregister(session: &Session<'_>, args: &DeregisterArgs) -> Result<(), CliError> {
    let region = session.home.open_region()?;
    let (id, context) = (args.image, &session.timed(&region)?);
    let verb = if context.dry_run { delete::preview_deregister } else { delete::deregister };
    let done = verb(&region, id, args.delete_snapshots, context)?;
    tell(session, &done);
    session.output.answer(
        || {
            let one = |snapshot: &SnapshotDeletion| {
                json!({
                    "snapshot_id": snapshot.id,
                    "result": snapshot.outcome.as_str(),
                    "restorable_until": snapshot.restorable_until_ms.map(time_millis),
                })
            };
            json!({
                "image_id": id,
                "region": session.home.region_name(),
                "dry_run": context.dry_run,
                "state": if context.dry_run { None } else { Some("deregistered") },
                "delete_snapshot_results": done.snapshots.iter().map(one).collect::<Value>(),
                "restorable_until": done.restorable_until_ms.map(time_millis),
                "freed_bytes": done.freed_bytes,
            })
        },
        || if context.dry_run { String::new() } else { format!("{id}\n") },
    );
    Ok(())
}

/// What becomes of the snapshots and of the space, for people.
fn tell(session: &Session<'_>, done: &Deregistration) {
    let note = |text: String| session.watcher.note(&text);
    let would = if session.context.dry_run { "would be " } else { "" };
    for snapshot in &done.snapshots {
        let id = snapshot.id;
        note(match (snapshot.outcome, snapshot.restorable_until_ms) {
            (SnapshotOutcome::Success, Some(until)) => {
                format!("{id}: {would}removed, restorable until {}", time(until))
            }
            (SnapshotOutcome::Success, None) => format!("{id}: {would}deleted"),
            (SnapshotOutcome::Skipped, _) => format!("{id}: skipped, another image uses it"),
            (SnapshotOutcome::MissingPermissions, _) => format!("{id}: kept, it belongs to another account"),
        });
    }
    if !done.snapshots_left.is_empty() {
        let ids: Vec<String> = done.snapshots_left.iter().map(ToString::to_string).collect();
        let (stays, ids) = (if ids.len() == 1 { "stays" } else { "stay" }, ids.join(", "));
        note(match done.restorable_until_ms {
            _ if session.context.dry_run => {
                format!("{ids} would stay; --delete-snapshots deletes what no other image uses")
            }
            Some(_) => format!("{ids} {stays} with the image"),
            None => {
                format!("{ids} {stays}; `imgstore delete-snapshot ID` removes one that no other image uses")
            }
        });
    }
    if let Some(until) = done.restorable_until_ms {
        let is = if session.context.dry_run { "would be" } else { "is" };
        note(format!("the image {is} restorable until {}", time(until)));
    }
    if let Some(freed) = done.freed_bytes {
        let binned = done.snapshots.iter().any(|snapshot| snapshot.restorable_until_ms.is_some());
        let is_binned = binned || done.restorable_until_ms.is_some();
        note(format!("nothing was changed; {}", would_free(freed, is_binned)));
    }
}

/// Packs of which more than half is needed stay as they are until somebody says otherwise.
fn would_free(freed_bytes: u64, is_binned: bool) -> String {
    let how = if freed_bytes > 0 {
        ", by `imgstore gc`; what lies beside more that is needed, by `gc --repack 100`, which may take two runs"
    } else {
        ""
    };
    let when = if is_binned { " once it has left the bin" } else { "" };
    format!("this would free {}{how}{when}", bytes(freed_bytes))
}

pub fn delete_snapshot(session: &Session<'_>, id: SnapshotId) -> Result<(), CliError> {
    let region = session.home.open_region()?;
    let context = &session.timed(&region)?;
    let verb = if context.dry_run { delete::preview_delete } else { delete::delete_snapshot };
    let done = verb(&region, id, context)?;
    if let Some(until) = done.restorable_until_ms {
        let stays = if context.dry_run { "would stay" } else { "stays" };
        session.watcher.note(&format!("it {stays} in the bin until {}", time(until)));
    }
    if let Some(freed) = done.freed_bytes {
        let is_binned = done.restorable_until_ms.is_some();
        session.watcher.note(&format!("nothing was changed; {}", would_free(freed, is_binned)));
    }
    session.output.answer(
        || {
            json!({
                "snapshot_id": id,
                "region": session.home.region_name(),
                "dry_run": context.dry_run,
                "state": if context.dry_run { None } else { Some("deleted") },
                "restorable_until": done.restorable_until_ms.map(time_millis),
                "freed_bytes": done.freed_bytes,
            })
        },
        || if context.dry_run { String::new() } else { format!("{id}\n") },
    );
    Ok(())
}

pub fn bin(session: &Session<'_>, command: &BinCommand) -> Result<(), CliError> {
    match command {
        BinCommand::List => list(session),
        BinCommand::Restore { id } => restore(session, *id),
        BinCommand::Rules => rules(session),
        BinCommand::AddRule(args) => add_rule(session, args),
        BinCommand::RemoveRule { rule } => {
            bin::remove_rule(&session.home.open_region()?, *rule, &session.context)?;
            session.output.answer(|| json!({ "rule_id": rule }), || format!("{rule}\n"));
            Ok(())
        }
    }
}

fn list(session: &Session<'_>) -> Result<(), CliError> {
    let catalog = session.home.open_region()?.catalog()?;
    let images = bin::images(&catalog, &session.context);
    let snapshots = bin::snapshots(&catalog, &session.context);
    session.output.answer(
        || {
            let stay = |mut document: Value, stay: imgstore::model::op::BinStay| {
                document["binned"] = time_millis(stay.since_ms).into();
                document["restorable_until"] = time_millis(stay.until_ms).into();
                document
            };
            // EC2's words for what is in the bin.
            let in_state = |mut document: Value, state: &str| {
                document["state"] = state.into();
                document
            };
            let (account, now_ms) = (session.context.account, session.context.now_ms);
            let images = images.iter().map(|binned| {
                let document = json::image(&catalog, account, now_ms, &binned.item);
                stay(in_state(document, "deregistered"), binned.stay)
            });
            let snapshots = snapshots.iter().map(|binned| {
                let document = json::snapshot(&catalog, account, &binned.item);
                stay(in_state(document, "recoverable"), binned.stay)
            });
            json!({ "images": images.collect::<Value>(), "snapshots": snapshots.collect::<Value>() })
        },
        || {
            let image = images.iter().map(|binned| {
                let (item, stay) = (&binned.item, binned.stay);
                vec![item.id.to_string(), printable(&item.name), time(stay.since_ms), time(stay.until_ms)]
            });
            let snapshot = snapshots.iter().map(|binned| {
                let (item, stay) = (&binned.item, binned.stay);
                let description = printable(&item.description);
                vec![item.id.to_string(), description, time(stay.since_ms), time(stay.until_ms)]
            });
            let rows: Vec<_> = image.chain(snapshot).collect();
            table(&["ID", "NAME", "REMOVED", "RESTORABLE UNTIL"], &rows)
        },
    );
    Ok(())
}

fn restore(session: &Session<'_>, id: AnyId) -> Result<(), CliError> {
    let region = session.home.open_region()?;
    let catalog = region.catalog()?;
    let mut document = match id {
        AnyId::Image(id) => json::image(
            &catalog,
            session.context.account,
            session.context.now_ms,
            &bin::restore_image(&region, id, &session.context)?,
        ),
        AnyId::Snapshot(id) => json::snapshot(
            &catalog,
            session.context.account,
            &bin::restore_snapshot(&region, id, &session.context)?,
        ),
        AnyId::Volume(_) | AnyId::Instance(_) => {
            return Err(CliError::Usage("the bin holds images and snapshots".into()));
        }
    };
    document["region"] = session.home.region_name().into();
    session.output.answer(|| document, || format!("{id}\n"));
    Ok(())
}

fn rules(session: &Session<'_>) -> Result<(), CliError> {
    let catalog = session.home.open_region()?.catalog()?;
    let rules = bin::rules(&catalog, &session.context);
    session.output.answer(
        || json!({ "rules": rules.iter().map(json::rule).collect::<Value>() }),
        || {
            let row = |rule: &imgstore::model::account::RetentionRule| {
                let tags: Vec<String> =
                    rule.tags.iter().map(|tag| format!("{}={}", tag.key, tag.value)).collect();
                let tags = if tags.is_empty() { "any".to_owned() } else { printable(&tags.join(", ")) };
                vec![rule.id.to_string(), plural(rule.resource).to_owned(), rule.days.to_string(), tags]
            };
            table(&["RULE", "KEEPS", ">DAYS", "TAGS"], &rules.iter().map(row).collect::<Vec<_>>())
        },
    );
    Ok(())
}

const fn plural(resource: Resource) -> &'static str {
    match resource {
        Resource::Image => "images",
        Resource::Snapshot => "snapshots",
    }
}

/// What is meant by images or snapshots.
pub(super) const fn resource(kind: Kind) -> Resource {
    match kind {
        Kind::Images => Resource::Image,
        Kind::Snapshots => Resource::Snapshot,
    }
}

fn add_rule(session: &Session<'_>, args: &RuleArgs) -> Result<(), CliError> {
    let region = session.home.open_region()?;
    let rule = bin::add_rule(&region, resource(args.kind), args.days, &args.tags, &session.context)?;
    session.output.answer(|| json::rule(&rule), || format!("{}\n", rule.id));
    Ok(())
}
