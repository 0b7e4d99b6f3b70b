//! diff.

use super::Session;
use crate::cli::args::DiffArgs;
use crate::cli::error::CliError;
use crate::cli::text::{bytes, table};
use imgstore::model::catalog::RootId;
use imgstore::ops::diff::{Change, Pair, Side, differences, pairs};
use serde_json::{Value, json};
use std::ops::Range;

/// How two disks differ.
#[derive(Default)]
struct Found {
    changed_bytes: u64,
    added_bytes: u64,
    removed_bytes: u64,
    ranges: Vec<(Range<u64>, Change)>,
}

pub fn diff(session: &Session<'_>, args: &DiffArgs) -> Result<(), CliError> {
    let region = session.home.open_region()?;
    let catalog = region.catalog()?;
    let ids = [args.first, args.second];
    let pairs = pairs(&region, &catalog, ids, args.device.as_deref(), &session.context)?;
    let mut compared = Vec::new();
    for pair in &pairs {
        let mut found = Found::default();
        let mut note = |range: Range<u64>, change| {
            *match change {
                Change::Changed => &mut found.changed_bytes,
                Change::Added => &mut found.added_bytes,
                Change::Removed => &mut found.removed_bytes,
            } += range.end - range.start;
            if args.blocks {
                found.ranges.push((range, change));
            }
        };
        differences(&region, pair, &mut note, &session.context)?;
        compared.push((pair, found));
    }
    session.output.answer(
        || {
            let devices: Value =
                compared.iter().map(|(pair, found)| document(pair, found, args.blocks)).collect();
            json!({ "region": session.home.region_name(), "devices": devices })
        },
        || if args.blocks { ranges_text(&compared) } else { text(&compared) },
    );
    Ok(())
}

fn document(pair: &Pair, found: &Found, with_blocks: bool) -> Value {
    let bytes = |side: &Option<Side>| side.as_ref().map(|side| side.volume_bytes);
    let mut document = json!({
        "device_name": pair.device_name,
        "first_snapshot_id": snapshot(pair.first.as_ref()),
        "second_snapshot_id": snapshot(pair.second.as_ref()),
        "first_volume_bytes": bytes(&pair.first),
        "second_volume_bytes": bytes(&pair.second),
        "changed_bytes": found.changed_bytes,
        "added_bytes": found.added_bytes,
        "removed_bytes": found.removed_bytes,
    });
    if with_blocks {
        let range = |(range, change): &(Range<u64>, Change)| json!({ "start_byte": range.start, "end_byte": range.end, "change": change.as_str() });
        document["blocks"] = found.ranges.iter().map(range).collect();
    }
    document
}

fn snapshot(side: Option<&Side>) -> Option<String> {
    match side?.content.as_ref()?.0 {
        RootId::Snapshot(id) => Some(id.to_string()),
        RootId::Template(_) => None,
    }
}

fn name(pair: &Pair) -> String {
    pair.device_name.clone().unwrap_or_else(|| "-".into())
}

fn text(compared: &[(&Pair, Found)]) -> String {
    let side =
        |side: &Option<Side>| side.as_ref().map_or_else(|| "-".into(), |side| bytes(side.volume_bytes));
    let row = |(pair, found): &(&Pair, Found)| {
        let [changed, added, removed] =
            [found.changed_bytes, found.added_bytes, found.removed_bytes].map(bytes);
        vec![name(pair), side(&pair.first), side(&pair.second), changed, added, removed]
    };
    let rows: Vec<_> = compared.iter().map(row).collect();
    table(&["DEVICE", ">FIRST", ">SECOND", ">CHANGED", ">ADDED", ">REMOVED"], &rows)
}

fn ranges_text(compared: &[(&Pair, Found)]) -> String {
    let mut rows = Vec::new();
    for (pair, found) in compared {
        rows.extend(found.ranges.iter().map(|(range, change)| {
            vec![name(pair), range.start.to_string(), range.end.to_string(), change.as_str().to_owned()]
        }));
    }
    table(&["DEVICE", ">START BYTE", ">END BYTE", "CHANGE"], &rows)
}
