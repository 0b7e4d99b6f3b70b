//! images, snapshots, volumes, instances, show.

use super::Session;
use crate::cli::args::{ImagesArgs, ListArgs, Whom};
use crate::cli::error::CliError;
use crate::cli::json;
use crate::cli::text::{bytes, printable, table, time};
use imgstore::model::account::{Permission, Tag};
use imgstore::model::catalog::Catalog;
use imgstore::model::ids::{ImageId, InstanceId, MalformedId, SnapshotId, VolumeId};
use imgstore::model::image::{DeviceTarget, Image};
use imgstore::model::units::TimeMs;
use imgstore::ops::context::Progress;
use imgstore::ops::describe::{self, Owner, Query};
use imgstore::ops::error::OpsError;
use imgstore::ops::find::{self, AnyId};
use imgstore::ops::lineage::ancestry;
use imgstore::region::Region;
use serde_json::{Value, json};

/// What a list is asked for.
fn query(session: &Session<'_>, args: &ListArgs, expecting: &'static str) -> Result<Query, CliError> {
    let malformed = |error: MalformedId| OpsError::from(MalformedId { expecting, ..error });
    let ids = args.ids.iter().map(|id| id.parse().map_err(malformed)).collect::<Result<Vec<AnyId>, _>>()?;
    // Who names things does not ask whose they are.
    let default = if args.ids.is_empty() { Owner::Caller } else { Owner::All };
    Ok(Query {
        ids,
        owner: args.owner.clone().unwrap_or(default),
        executable_by: None,
        include_deprecated: !args.ids.is_empty(),
        include_disabled: !args.ids.is_empty(),
        now_ms: session.context.now_ms,
        filters: args.filters.clone(),
        results_max: args.max_results.and_then(|most| usize::try_from(most).ok()),
        next_token: args.next_token.clone(),
    })
}

/// A list for machines, with the token of its next page.
fn document(plural: &str, items: Value, next_token: Option<&String>) -> Value {
    let mut document = json!({ plural: items });
    document["next_token"] = json!(next_token);
    document
}

/// A list for people, with how to get the rest.
fn listing(session: &Session<'_>, table: String, next_token: Option<&String>) -> String {
    if let Some(token) = next_token {
        session.watcher.note(&format!("there is more: --next-token {token}"));
    }
    table
}

/// An account that has nothing in a region may be another than the one that the region is full of.
fn note_whose(session: &Session<'_>, region: &Region, catalog: &Catalog) {
    let (account, provider) = (session.context.account, region.header().provider);
    let has_own = catalog.images.values().map(|image| image.owner).any(|owner| owner == account)
        || catalog.snapshots.values().any(|snapshot| snapshot.owner == account);
    if !has_own && provider != account && !session.home.is_account_given() {
        session.watcher.note(&format!(
            "account {account} has nothing in region {}, which account {provider} made: --account {provider} shows what that has",
            session.home.region_name()
        ));
    }
}

pub fn images(session: &Session<'_>, args: &ImagesArgs) -> Result<(), CliError> {
    let region = session.home.open_region()?;
    let catalog = region.catalog()?;
    note_whose(session, &region, &catalog);
    let account = session.context.account;
    let mut query = query(session, &args.list, ImageId::EXPECTING)?;
    query.include_deprecated |= args.include_deprecated;
    query.include_disabled |= args.include_disabled;
    query.executable_by = args.executable_by.map(|by| match by {
        Whom::Caller => Permission::Account(account),
        Whom::Permission(permission) => permission,
    });
    if query.executable_by.is_some() && args.list.owner.is_none() {
        // Who asks for what was shared means everybody's.
        query.owner = Owner::All;
    }
    if let Some(pattern) = &args.latest {
        return latest(session, &catalog, &query, pattern);
    }
    let page = describe::images(&catalog, account, &query)?;
    let (images, next_token) = (page.items, page.next_token.as_ref());
    let size = |image: &Image| volumes_bytes(&catalog, image);
    session.output.answer(
        || {
            document(
                "images",
                images
                    .iter()
                    .map(|image| json::image(&catalog, account, session.context.now_ms, image))
                    .collect(),
                next_token,
            )
        },
        || {
            // Names are one owner's: of several it has to be said whose is whose.
            let with_owner = images.iter().any(|image| image.owner != account);
            let owner = |image: &Image| match catalog.alias_of(image.owner) {
                _ if image.owner == account => "self".into(),
                Some(alias) => alias.to_string(),
                None => image.owner.to_string(),
            };
            let row = |image: &&Image| {
                let mut row = vec![
                    image.id.to_string(),
                    printable(&image.name),
                    state(image, session.context.now_ms),
                    image.machine.architecture.to_string(),
                    bytes(size(image)),
                    time(image.created_ms),
                ];
                if with_owner {
                    row.push(owner(image));
                }
                row
            };
            let header = ["IMAGE", "NAME", "STATE", "ARCHITECTURE", ">VOLUMES", "CREATED", "OWNER"];
            let header = if with_owner { &header[..] } else { &header[..header.len() - 1] };
            listing(session, table(header, &images.iter().map(row).collect::<Vec<_>>()), next_token)
        },
    );
    Ok(())
}

/// The newest image whose name fits, for scripts: its id alone.
fn latest(session: &Session<'_>, catalog: &Catalog, query: &Query, pattern: &str) -> Result<(), CliError> {
    let account = session.context.account;
    let Some(image) = describe::latest(catalog, account, query, pattern)? else {
        return Err(OpsError::no_image_fits(pattern).into());
    };
    if image.owner != account {
        let named = printable(&image.name);
        session.watcher.note(&format!(
            "{} ({named}) belongs to account {}: anybody may use a name",
            image.id, image.owner
        ));
    }
    session.output.answer(
        || {
            document(
                "images",
                [json::image(catalog, account, session.context.now_ms, image)].into_iter().collect(),
                None,
            )
        },
        || format!("{}\n", image.id),
    );
    Ok(())
}

/// An image's state, and whether it is to be used no more.
fn state(image: &Image, now_ms: TimeMs) -> String {
    let is_deprecated = image.deprecation_ms.is_some_and(|from| from <= now_ms);
    format!("{}{}", image.state, if is_deprecated { ", deprecated" } else { "" })
}

/// Length of an image's volumes together.
fn volumes_bytes(catalog: &Catalog, image: &Image) -> u64 {
    let length = |target: &DeviceTarget| match target {
        DeviceTarget::Ebs(ebs) => ebs.volume_bytes,
        DeviceTarget::Ephemeral(_) => 0,
    };
    let template = find::template(catalog, image).map_or(0, |template| template.volume_bytes);
    image.devices.iter().map(|device| length(&device.target)).fold(template, u64::saturating_add)
}

pub fn snapshots(session: &Session<'_>, args: &ListArgs) -> Result<(), CliError> {
    let catalog = session.home.open_region()?.catalog()?;
    let page = describe::snapshots(
        &catalog,
        session.context.account,
        &query(session, args, SnapshotId::EXPECTING)?,
    )?;
    let (snapshots, next_token) = (page.items, page.next_token.as_ref());
    session.output.answer(
        || {
            document(
                "snapshots",
                snapshots
                    .iter()
                    .map(|snapshot| json::snapshot(&catalog, session.context.account, snapshot))
                    .collect(),
                next_token,
            )
        },
        || {
            let rows: Vec<_> = snapshots
                .iter()
                .map(|snapshot| {
                    vec![
                        snapshot.id.to_string(),
                        bytes(snapshot.volume_bytes),
                        bytes(snapshot.data_bytes),
                        time(snapshot.created_ms),
                        printable(&snapshot.description),
                    ]
                })
                .collect();
            listing(
                session,
                table(&["SNAPSHOT", ">VOLUME", ">DATA", "CREATED", "DESCRIPTION"], &rows),
                next_token,
            )
        },
    );
    Ok(())
}

pub fn volumes(session: &Session<'_>, args: &ListArgs) -> Result<(), CliError> {
    let region = session.home.open_region()?;
    let catalog = region.catalog()?;
    let page =
        describe::volumes(&catalog, session.context.account, &query(session, args, VolumeId::EXPECTING)?)?;
    let (volumes, next_token) = (page.items, page.next_token.as_ref());
    session.output.answer(
        || {
            document(
                "volumes",
                volumes.iter().map(|volume| json::volume(&region, volume)).collect(),
                next_token,
            )
        },
        || {
            let rows: Vec<_> = volumes
                .iter()
                .map(|volume| {
                    let at = volume.attachment.as_ref();
                    vec![
                        volume.id.to_string(),
                        bytes(volume.volume_bytes),
                        at.map_or("-".into(), |at| at.instance_id.to_string()),
                        at.map_or("-".into(), |at| at.device_name.clone()),
                        volume.state().to_string(),
                        printable(&json::place(&region, &volume.path)),
                    ]
                })
                .collect();
            listing(
                session,
                table(&["VOLUME", ">SIZE", "INSTANCE", "DEVICE", "STATE", "PATH"], &rows),
                next_token,
            )
        },
    );
    Ok(())
}

pub fn instances(session: &Session<'_>, args: &ListArgs) -> Result<(), CliError> {
    let region = session.home.open_region()?;
    let catalog = region.catalog()?;
    let page = describe::instances(
        &catalog,
        session.context.account,
        &query(session, args, InstanceId::EXPECTING)?,
    )?;
    let (instances, next_token) = (page.items, page.next_token.as_ref());
    session.output.answer(
        || {
            let one = |i: &&imgstore::model::instance::Instance| {
                json::instance(&region, i, catalog.volumes_of(i.id))
            };
            document("instances", instances.iter().map(one).collect(), next_token)
        },
        || {
            let rows: Vec<_> = instances
                .iter()
                .map(|instance| {
                    vec![
                        instance.id.to_string(),
                        instance.image_id.to_string(),
                        instance.state.to_string(),
                        time(instance.launched_ms),
                        match instance.is_live() {
                            true => printable(&json::place(&region, &instance.path)),
                            false => "-".into(),
                        },
                    ]
                })
                .collect();
            listing(session, table(&["INSTANCE", "IMAGE", "STATE", "LAUNCHED", "PATH"], &rows), next_token)
        },
    );
    Ok(())
}

pub fn show(session: &Session<'_>, id: AnyId) -> Result<(), CliError> {
    let region = session.home.open_region()?;
    let catalog = region.catalog()?;
    let account = session.context.account;
    let mut document = match id {
        AnyId::Image(id) => {
            let mut document =
                json::image(&catalog, account, session.context.now_ms, find::image(&catalog, account, id)?);
            document["ancestry"] = json::ancestry(&ancestry(&catalog, account, id)?);
            document
        }
        AnyId::Snapshot(id) => json::snapshot(&catalog, account, find::snapshot(&catalog, account, id)?),
        AnyId::Volume(id) => json::volume(&region, find::volume(&catalog, account, id)?),
        AnyId::Instance(id) => {
            json::instance(&region, find::instance(&catalog, &session.context, id)?, catalog.volumes_of(id))
        }
    };
    document["region"] = session.home.region_name().into();
    let text = fields(&document, 0);
    session.output.answer(|| document, || text);
    Ok(())
}

/// A document as lines for people: the same keys, sizes in units, what is empty left out.
pub(super) fn fields(document: &Value, depth: usize) -> String {
    let Value::Object(fields) = document else { return String::new() };
    let indent = "  ".repeat(depth);
    let mut text = String::new();
    for (key, value) in fields {
        let name = key.trim_end_matches("_bytes").replace('_', " ");
        match value {
            Value::Null => {}
            Value::Array(items) if items.is_empty() => {}
            Value::String(value) if value.is_empty() => {}
            Value::String(value) => text += &format!("{indent}{name}: {}\n", printable(value)),
            Value::Number(number) if key.ends_with("_bytes") => {
                let count = number.as_u64().unwrap_or(0);
                text += &format!("{indent}{name}: {} ({count} bytes)\n", bytes(count));
            }
            Value::Array(items) if items.iter().all(Value::is_string) => {
                let items: Vec<String> = items.iter().filter_map(Value::as_str).map(printable).collect();
                text += &format!("{indent}{name}: {}\n", items.join(", "));
            }
            Value::Array(items) => {
                text += &format!("{indent}{name}:\n");
                for item in items {
                    text += &item_lines(item, depth + 1);
                }
            }
            value => text += &format!("{indent}{name}: {value}\n"),
        }
    }
    text
}

fn item_lines(item: &Value, depth: usize) -> String {
    if let Ok(tag) = serde_json::from_value::<Tag>(item.clone()) {
        return format!("{}{} = {}\n", "  ".repeat(depth), printable(&tag.key), printable(&tag.value));
    }
    let mut lines = fields(item, depth + 1);
    // The first field of an item carries its dash.
    let at = 2 * depth;
    if lines.len() > at + 2 {
        lines.replace_range(at..at + 2, "- ");
    }
    lines
}
