//! share, tag, untag, deprecate, disable, enable, protect.

use super::Session;
use crate::cli::args::ShareArgs;
use crate::cli::error::CliError;
use crate::cli::json;
use crate::cli::text::time;
use imgstore::model::account::Tag;
use imgstore::model::ids::ImageId;
use imgstore::ops::context::Progress;
use imgstore::ops::find::{self, AnyId};
use imgstore::ops::modify::{self, PermissionChange, Target};
use imgstore::region::Region;
use serde_json::Value;

/// An image or a snapshot; other things have no such attributes.
fn target(id: AnyId) -> Result<Target, CliError> {
    match id {
        AnyId::Image(id) => Ok(Target::Image(id)),
        AnyId::Snapshot(id) => Ok(Target::Snapshot(id)),
        AnyId::Volume(_) | AnyId::Instance(_) => Err(CliError::Usage("name an image or a snapshot".into())),
    }
}

/// Answers with the thing as it is now: its id, or the document of `show`.
fn answer(session: &Session<'_>, region: &Region, target: Target) -> Result<(), CliError> {
    let catalog = region.catalog()?;
    let account = session.context.account;
    let (id, mut document): (String, Value) = match target {
        Target::Image(id) => (id.to_string(), json::image(find::image(&catalog, account, id)?)),
        Target::Snapshot(id) => (id.to_string(), json::snapshot(find::snapshot(&catalog, account, id)?)),
    };
    document["region"] = session.home.region_name().into();
    session.output.answer(|| document, || format!("{id}\n"));
    Ok(())
}

pub fn share(session: &Session<'_>, args: &ShareArgs) -> Result<(), CliError> {
    let region = session.home.open_region()?;
    let target = target(args.id)?;
    let change = PermissionChange { add: args.add.clone(), remove: args.remove.clone() };
    match target {
        Target::Image(id) => {
            let shared = modify::share_image(&region, id, &change, args.snapshots, &session.context)?;
            if !shared.unreadable_snapshots.is_empty() {
                let ids: Vec<String> = shared.unreadable_snapshots.iter().map(ToString::to_string).collect();
                session.watcher.note(&format!(
                    "they can launch it, but not copy it: {} is not shared with them; add --snapshots for that",
                    ids.join(", ")
                ));
            }
        }
        Target::Snapshot(id) => drop(modify::share_snapshot(&region, id, &change, &session.context)?),
    }
    answer(session, &region, target)
}

pub fn tag(session: &Session<'_>, id: AnyId, set: &[Tag], remove: &[String]) -> Result<(), CliError> {
    let region = session.home.open_region()?;
    let target = target(id)?;
    modify::tag(&region, target, set, remove, &session.context)?;
    answer(session, &region, target)
}

pub fn deprecate(session: &Session<'_>, id: ImageId, at: Option<u64>) -> Result<(), CliError> {
    let region = session.home.open_region()?;
    if let Some(at) = modify::deprecate(&region, id, at, &session.context)? {
        session.watcher.note(&format!("{id} is deprecated from {}", time(at)));
    }
    answer(session, &region, Target::Image(id))
}

pub fn disable(session: &Session<'_>, id: ImageId) -> Result<(), CliError> {
    let region = session.home.open_region()?;
    modify::disable(&region, id, &session.context)?;
    answer(session, &region, Target::Image(id))
}

pub fn enable(session: &Session<'_>, id: ImageId) -> Result<(), CliError> {
    let region = session.home.open_region()?;
    modify::enable(&region, id, &session.context)?;
    answer(session, &region, Target::Image(id))
}

pub fn protect(session: &Session<'_>, id: ImageId, off: bool) -> Result<(), CliError> {
    let region = session.home.open_region()?;
    modify::protect(&region, id, !off, &session.context)?;
    answer(session, &region, Target::Image(id))
}
