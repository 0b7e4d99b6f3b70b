//! share, tag, untag, deprecate, disable, enable, protect, modify.

use super::Session;
use crate::cli::args::{ModifyArgs, ProtectArgs, ShareArgs};
use crate::cli::error::CliError;
use crate::cli::json;
use crate::cli::text::time;
use imgstore::model::account::{Permission, Tag};
use imgstore::model::ids::ImageId;
use imgstore::model::image::DeregistrationProtection;
use imgstore::ops::context::Progress;
use imgstore::ops::find::{self, AnyId};
use imgstore::ops::modify::{self, PermissionChange, Protect, Target};
use imgstore::region::Region;

/// Answers with the thing as it is now: its id, or the document of `show`.
fn answer(session: &Session<'_>, region: &Region, id: AnyId) -> Result<(), CliError> {
    let catalog = region.known_catalog();
    let account = session.context.account;
    let mut document = match id {
        AnyId::Image(id) => json::image(
            &catalog,
            session.context.account,
            session.context.now_ms,
            find::image(&catalog, account, id)?,
        ),
        AnyId::Snapshot(id) => {
            json::snapshot(&catalog, session.context.account, find::snapshot(&catalog, account, id)?)
        }
        AnyId::Volume(id) => json::volume(region, find::volume(&catalog, account, id)?),
        AnyId::Instance(id) => {
            json::instance(region, find::instance(&catalog, &session.context, id)?, catalog.volumes_of(id))
        }
    };
    document["region"] = session.home.region_name().into();
    session.output.answer(|| document, || format!("{id}\n"));
    Ok(())
}

pub fn share(session: &Session<'_>, args: &ShareArgs) -> Result<(), CliError> {
    let region = session.home.open_region()?;
    let change = PermissionChange { add: args.add.clone(), remove: args.remove.clone() };
    match args.id {
        AnyId::Image(id) => {
            let shared = modify::share_image(&region, id, &change, args.snapshots, &session.context)?;
            let own = Permission::Account(session.context.account);
            if !shared.unreadable_snapshots.is_empty() && args.add.iter().any(|whom| *whom != own) {
                let ids: Vec<String> = shared.unreadable_snapshots.iter().map(ToString::to_string).collect();
                let cure = if args.snapshots {
                    "and belongs to another account; copy the image, and share the copy"
                } else {
                    "add --snapshots for that"
                };
                session.watcher.note(&format!(
                    "they can launch it, but not copy it: {} is not shared with them; {cure}",
                    ids.join(", ")
                ));
            }
        }
        AnyId::Snapshot(_) if args.snapshots => {
            return Err(CliError::Usage("--snapshots goes with an image".into()));
        }
        AnyId::Snapshot(id) => drop(modify::share_snapshot(&region, id, &change, &session.context)?),
        AnyId::Volume(_) | AnyId::Instance(_) => {
            return Err(CliError::Usage("share takes an image or a snapshot".into()));
        }
    }
    answer(session, &region, args.id)
}

pub fn tag(session: &Session<'_>, id: AnyId, set: &[Tag], remove: &[String]) -> Result<(), CliError> {
    let region = session.home.open_region()?;
    let target = match id {
        AnyId::Image(id) => Target::Image(id),
        AnyId::Snapshot(id) => Target::Snapshot(id),
        AnyId::Volume(id) => Target::Volume(id),
        AnyId::Instance(id) => Target::Instance(id),
    };
    modify::tag(&region, target, set, remove, &session.context)?;
    answer(session, &region, id)
}

pub fn deprecate(session: &Session<'_>, id: ImageId, at: Option<u64>) -> Result<(), CliError> {
    let region = session.home.open_region()?;
    if let Some(at) = modify::deprecate(&region, id, at, &session.context)? {
        session.watcher.note(&format!("{id} is deprecated from {}", time(at)));
    }
    answer(session, &region, AnyId::Image(id))
}

pub fn disable(session: &Session<'_>, id: ImageId) -> Result<(), CliError> {
    let region = session.home.open_region()?;
    modify::disable(&region, id, &session.context)?;
    answer(session, &region, AnyId::Image(id))
}

pub fn enable(session: &Session<'_>, id: ImageId) -> Result<(), CliError> {
    let region = session.home.open_region()?;
    modify::enable(&region, id, &session.context)?;
    answer(session, &region, AnyId::Image(id))
}

pub fn protect(session: &Session<'_>, args: &ProtectArgs) -> Result<(), CliError> {
    let region = session.home.open_region()?;
    let wanted = match (args.off, args.cooldown) {
        (true, _) => Protect::Off,
        (false, true) => Protect::OnWithCooldown,
        (false, false) => Protect::On,
    };
    let protection = modify::protect(&region, args.image, wanted, &session.timed(&region)?)?;
    if let DeregistrationProtection::CoolingDown { until_ms } = protection {
        session.watcher.note(&format!("{} stays protected until {}", args.image, time(until_ms)));
    }
    answer(session, &region, AnyId::Image(args.image))
}

pub fn modify(session: &Session<'_>, args: &ModifyArgs) -> Result<(), CliError> {
    let region = session.home.open_region()?;
    match &args.description {
        Some(description) => modify::describe_image(&region, args.image, description, &session.context)?,
        None => drop(modify::add_product_codes(&region, args.image, &args.product_codes, &session.context)?),
    }
    answer(session, &region, AnyId::Image(args.image))
}
