//! copy.

use super::Session;
use crate::cli::args::CopyArgs;
use crate::cli::error::CliError;
use crate::cli::json;
use crate::cli::text::bytes;
use imgstore::ops::context::Progress;
use imgstore::ops::copy::{CopyOptions, CopyPlan, CopyWhat, apply, plan};
use imgstore::ops::find::AnyId;
use serde_json::{Value, json};
use std::time::Instant;

pub fn copy(session: &Session<'_>, args: &CopyArgs) -> Result<(), CliError> {
    let started = Instant::now();
    let what = match args.id {
        AnyId::Image(id) => CopyWhat::Image(id),
        AnyId::Snapshot(id) => CopyWhat::Snapshot(id),
        AnyId::Volume(_) | AnyId::Instance(_) => {
            return Err(CliError::Usage("copy takes an image or a snapshot".into()));
        }
    };
    let source_name = args.from.as_deref().unwrap_or(session.home.region_name());
    let source = session.home.open_named(source_name)?;
    let target = if args.to == source_name { source.clone() } else { session.home.open_named(&args.to)? };
    let options = CopyOptions {
        source_region: source_name.to_owned(),
        name: args.name.clone(),
        description: args.description.clone(),
        copy_tags: args.copy_tags,
        client_token: args.client_token.clone(),
        is_guest: false,
    };
    let plan = plan(&source, &target, what, &options, &session.context)?;
    if session.context.dry_run {
        let summary = format!(
            "would move {} to {}: {} of {} chunks, {} when unpacked\n",
            bytes(plan.transfer_bytes()),
            args.to,
            plan.new_chunks(),
            plan.chunks(),
            bytes(plan.new_bytes())
        );
        session.output.answer(
            || {
                let mut document = json!({ "dry_run": true, "region": args.to, "stored_bytes": 0 });
                add_plan(&mut document, &plan, plan.transfer_bytes(), started);
                document
            },
            || summary,
        );
        return Ok(());
    }
    let copied = apply(&source, &target, &plan, &options, &session.context)?;
    if copied.was_made_before {
        session.watcher.note("this token was used before: nothing was copied again");
    } else {
        session.watcher.note(&format!(
            "{} moved, {} of {} chunks were missing, {:.1} s",
            bytes(copied.transferred_bytes),
            plan.new_chunks(),
            plan.chunks(),
            started.elapsed().as_secs_f64()
        ));
    }
    let catalog = target.catalog()?;
    session.output.answer(
        || {
            let mut document = match (&copied.image, copied.snapshots.first()) {
                (Some(image), _) => json::image(&catalog, session.context.account, image),
                (None, Some(snapshot)) => json::snapshot(&catalog, session.context.account, snapshot),
                (None, None) => json!({}),
            };
            document["region"] = args.to.clone().into();
            document["stored_bytes"] = copied.stored_bytes.into();
            add_plan(&mut document, &plan, copied.transferred_bytes, started);
            document
        },
        || match (&copied.image, copied.snapshots.first()) {
            (Some(image), _) => format!("{}\n", image.id),
            (None, snapshot) => snapshot.map_or_else(String::new, |snapshot| format!("{}\n", snapshot.id)),
        },
    );
    Ok(())
}

fn add_plan(document: &mut Value, plan: &CopyPlan, transferred_bytes: u64, started: Instant) {
    document["volume_bytes"] = plan.volume_bytes().into();
    document["data_bytes"] = plan.data_bytes().into();
    document["new_bytes"] = plan.new_bytes().into();
    document["chunks"] = plan.chunks().into();
    document["new_chunks"] = plan.new_chunks().into();
    document["transferred_bytes"] = transferred_bytes.into();
    document["elapsed_seconds"] = started.elapsed().as_secs_f64().into();
}
