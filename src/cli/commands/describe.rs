//! images, snapshots, volumes, instances, show.

use super::Session;
use crate::cli::args::{ListArgs, Owner};
use crate::cli::error::CliError;
use crate::cli::json;
use crate::cli::text::{bytes, printable, table, time};
use imgstore::model::account::{AccountId, Tag};
use imgstore::model::image::{DeviceTarget, Image};
use imgstore::ops::find::{self, AnyId};
use serde_json::{Value, json};

/// Whether something of `owner` is asked for.
fn wanted(session: &Session<'_>, args: &ListArgs, owner: AccountId) -> bool {
    match args.owner {
        Owner::All => true,
        Owner::Caller => owner == session.context.account,
        Owner::Account(id) => owner == id,
    }
}

pub fn images(session: &Session<'_>, args: &ListArgs) -> Result<(), CliError> {
    let catalog = session.home.open_region()?.catalog()?;
    let account = session.context.account;
    let mut images: Vec<_> =
        catalog.images.values().filter(|i| i.visible_to(account) && wanted(session, args, i.owner)).collect();
    images.sort_by_key(|image| (image.created_ms, image.id));
    let size = |image: &Image| volumes_bytes(image);
    session.output.answer(
        || json!({ "images": images.iter().map(|image| json::image(image)).collect::<Value>() }),
        || {
            let row = |image: &&Image| {
                vec![
                    image.id.to_string(),
                    printable(&image.name),
                    image.state.to_string(),
                    image.architecture.to_string(),
                    bytes(size(image)),
                    time(image.created_ms),
                ]
            };
            let header = ["IMAGE", "NAME", "STATE", "ARCHITECTURE", ">VOLUMES", "CREATED"];
            table(&header, &images.iter().map(row).collect::<Vec<_>>())
        },
    );
    Ok(())
}

/// Length of an image's volumes together.
fn volumes_bytes(image: &Image) -> u64 {
    let length = |target: &DeviceTarget| match target {
        DeviceTarget::Ebs(ebs) => ebs.volume_bytes,
        DeviceTarget::Ephemeral(_) => 0,
    };
    image.devices.iter().map(|device| length(&device.target)).fold(0, u64::saturating_add)
}

pub fn snapshots(session: &Session<'_>, args: &ListArgs) -> Result<(), CliError> {
    let catalog = session.home.open_region()?.catalog()?;
    let account = session.context.account;
    let mut snapshots: Vec<_> = catalog
        .snapshots
        .values()
        .filter(|s| s.readable_by(account) && wanted(session, args, s.owner))
        .collect();
    snapshots.sort_by_key(|snapshot| (snapshot.created_ms, snapshot.id));
    session.output.answer(
        || json!({ "snapshots": snapshots.iter().map(|snapshot| json::snapshot(snapshot)).collect::<Value>() }),
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
            table(&["SNAPSHOT", ">VOLUME", ">DATA", "CREATED", "DESCRIPTION"], &rows)
        },
    );
    Ok(())
}

pub fn volumes(session: &Session<'_>, args: &ListArgs) -> Result<(), CliError> {
    let catalog = session.home.open_region()?.catalog()?;
    let own = |owner| owner == session.context.account && wanted(session, args, owner);
    let mut volumes: Vec<_> = catalog.volumes.values().filter(|volume| own(volume.owner)).collect();
    volumes.sort_by_key(|volume| (volume.created_ms, volume.id));
    session.output.answer(
        || json!({ "volumes": volumes.iter().map(|volume| json::volume(volume)).collect::<Value>() }),
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
                        printable(&volume.path),
                    ]
                })
                .collect();
            table(&["VOLUME", ">SIZE", "INSTANCE", "DEVICE", "PATH"], &rows)
        },
    );
    Ok(())
}

pub fn instances(session: &Session<'_>, args: &ListArgs) -> Result<(), CliError> {
    let catalog = session.home.open_region()?.catalog()?;
    let own = |owner| owner == session.context.account && wanted(session, args, owner);
    let mut instances: Vec<_> = catalog.instances.values().filter(|instance| own(instance.owner)).collect();
    instances.sort_by_key(|instance| (instance.launched_ms, instance.id));
    session.output.answer(
        || {
            let one = |i: &&imgstore::model::instance::Instance| {
                json::instance(i, find::volumes_of(&catalog, i.id))
            };
            json!({ "instances": instances.iter().map(one).collect::<Value>() })
        },
        || {
            let rows: Vec<_> = instances
                .iter()
                .map(|instance| {
                    let state = json!(instance.state);
                    vec![
                        instance.id.to_string(),
                        instance.image_id.to_string(),
                        state.as_str().unwrap_or_default().to_owned(),
                        time(instance.launched_ms),
                        printable(&instance.path),
                    ]
                })
                .collect();
            table(&["INSTANCE", "IMAGE", "STATE", "LAUNCHED", "PATH"], &rows)
        },
    );
    Ok(())
}

pub fn show(session: &Session<'_>, id: AnyId) -> Result<(), CliError> {
    let catalog = session.home.open_region()?.catalog()?;
    let account = session.context.account;
    let mut document = match id {
        AnyId::Image(id) => json::image(find::image(&catalog, account, id)?),
        AnyId::Snapshot(id) => json::snapshot(find::snapshot(&catalog, account, id)?),
        AnyId::Volume(id) => json::volume(find::volume(&catalog, account, id)?),
        AnyId::Instance(id) => {
            json::instance(find::instance(&catalog, account, id)?, find::volumes_of(&catalog, id))
        }
    };
    document["region"] = session.home.region_name().into();
    let text = fields(&document, 0);
    session.output.answer(|| document, || text);
    Ok(())
}

/// A document as lines for people: the same keys, sizes in units, what is empty left out.
fn fields(document: &Value, depth: usize) -> String {
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
