//! snapshot, with hints of what changed.

use super::Session;
use super::ingest::{add_cost, add_free_space, compression, cost, declared, limits, open, tell};
use super::repair::{range_lines, ranges_document};
use crate::cli::args::SnapshotArgs;
use crate::cli::error::{self, CliError};
use crate::cli::json;
use crate::cli::progress::warn;
use crate::cli::text::bytes;
use imgstore::disk::changes::read_changes;
use imgstore::disk::clone::{CloneOf, ClonedDisk};
use imgstore::disk::open::open_file;
use imgstore::disk::{DiskError, DiskRead};
use imgstore::model::changes::Changes;
use imgstore::model::ids::SnapshotId;
use imgstore::model::snapshot::Snapshot;
use imgstore::model::units::block_offset;
use imgstore::ops::context::Progress;
use imgstore::ops::recheck::differences;
use imgstore::ops::snapshot::{Hint, HintUse, SnapshotOptions, snapshot as run_snapshot};
use imgstore::region::Region;
use serde_json::{Value, json};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// Wrong ranges that people are told of.
const RANGES_TOLD: usize = 10;

/// A disk, and what is known of it before it is read.
struct Source {
    disk: Box<dyn DiskRead>,
    /// The clone that is read, to be kept.
    clone: Option<ClonedDisk>,
    parent: Option<SnapshotId>,
    /// What may have changed since the parent; or why that cannot be told.
    changes: Option<Result<Changes, String>>,
}

pub fn snapshot(session: &Session<'_>, args: &SnapshotArgs) -> Result<u8, CliError> {
    let started = Instant::now();
    let (region, source) = match &args.clone {
        // Of a dry run, too: whether the disk can be cloned is known by doing it. What is not kept goes.
        Some(path) => {
            let region = session.home.open_region()?;
            let source = cloned(session, &region, path, args)?;
            (region, source)
        }
        None => {
            let disk = open(session, &args.disk, &args.reading)?;
            let list = args.changed.as_ref();
            let changes = list.map(|list| read_changes(list, disk.len_bytes())).transpose()?.map(Ok);
            let source = Source { disk, clone: None, parent: args.parent, changes };
            (session.home.open_region()?, source)
        }
    };
    let hint = |changes: &Changes| Hint { changes: changes.clone(), verify: args.verify_hints };
    let options = SnapshotOptions {
        description: args.description.clone(),
        tags: args.tags.clone(),
        parent: source.parent,
        hint: source.changes.as_ref().and_then(|changes| changes.as_ref().ok()).map(hint),
        compression: compression(args.storing),
    };
    let taken = run_snapshot(&region, &*source.disk, &options, &session.context)?;
    session.watcher.note(&cost(&[&taken.ingested], started));
    let is_believed = matches!(taken.hint, Some(HintUse::Believed));
    let told = told(&source, taken.hint);
    if let Some(hint) = &told {
        tell_of_hint(session, hint, taken.ingested.read_bytes);
    }
    let catalog = region.known_catalog();
    let document = || {
        let mut document = json::snapshot(&catalog, session.context.account, &taken.snapshot);
        document["region"] = session.home.region_name().into();
        add_cost(&mut document, &[&taken.ingested], started);
        add_free_space(session, &mut document);
        document["hint"] = told.as_ref().map_or(Value::Null, |hint| hint_document(args, hint));
        document
    };
    let id = || format!("{}\n", taken.snapshot.id);
    let differs =
        match args.verify.then(|| verify(session, &region, &*source.disk, &taken.snapshot, is_believed)) {
            Some(Err(error)) => {
                // The snapshot is there.
                session.output.so_far(document, id);
                return Err(error);
            }
            Some(Ok(differs)) => Some(differs),
            None => None,
        };
    let is_other = differs.as_ref().is_some_and(|differs| !differs.is_empty());
    if let Some(clone) = source.clone.filter(|_| !is_other) {
        let (region, manifest) = (region.header().id, taken.snapshot.manifest.hash);
        let kept = clone.keep(CloneOf { region, snapshot: taken.snapshot.id, manifest });
        if let Err(error) = kept {
            // Also for who wants quiet: each snapshot after it reads the whole disk.
            warn(&format!("the clone may not be kept, and the next snapshot read more: {error}"));
        }
    }
    session.output.answer(
        || {
            let mut document = document();
            document["differs"] = differs.as_deref().map_or(Value::Null, ranges_document);
            document
        },
        id,
    );
    let is_wrong = told.is_some_and(|hint| hint.wrong.is_some_and(|wrong| !wrong.is_empty()));
    Ok(if is_wrong || is_other { error::DAMAGE } else { 0 })
}

/// Compares a disk with the snapshot that was taken of it, and tells where it is other, also those who want quiet.
fn verify(
    session: &Session<'_>,
    region: &Region,
    disk: &dyn DiskRead,
    taken: &Snapshot,
    is_hint_believed: bool,
) -> Result<Vec<Range<u64>>, CliError> {
    let differs = differences(disk, &region.load_map(&taken.manifest)?, &session.context)?;
    session.watcher.finish();
    if differs.is_empty() {
        session.watcher.note("read again: the snapshot is what the disk holds");
    } else {
        let sum = differs.iter().map(|range| range.end - range.start).sum();
        let id = taken.id;
        let why = if is_hint_believed {
            format!(
                "Most likely the hint is wrong, or something wrote to the disk meanwhile: delete {id}, and take it again without the hint"
            )
        } else {
            "Either something wrote to it meanwhile, or it is told wrongly where it has holes".to_owned()
        };
        let where_it_is = range_lines(&differs).join(", ");
        warn(&format!("the disk is other than {id} in {}: {where_it_is}. {why}", bytes(sum)));
    }
    Ok(differs)
}

/// Clones a disk file, and looks what changed since the clone from before.
fn cloned(
    session: &Session<'_>,
    region: &Region,
    path: &Path,
    args: &SnapshotArgs,
) -> Result<Source, CliError> {
    let clone = ClonedDisk::begin(&args.disk, path)?;
    let file: Arc<dyn DiskRead> = Arc::new(clone.open()?);
    let opened = open_file(file, &args.disk, declared(args.reading.format), &limits(&args.reading))?;
    tell(session, &args.disk, &opened);
    if opened.format != "raw" {
        let why = "holds another disk than its own bytes; --clone takes raw disk files, or say --format raw";
        return Err(DiskError::BadTarget { path: args.disk.clone(), why }.into());
    }
    let disk = opened.disk;
    let Some(base) = clone.base() else {
        return Ok(Source { disk, clone: Some(clone), parent: args.parent, changes: None });
    };
    let of = base.snapshot;
    let is_here = base.region == region.header().id;
    if let Some(parent) = args.parent.filter(|parent| is_here && *parent != of) {
        let why = format!("{} is the clone of {of}, not of {parent}; leave --parent out", path.display());
        return Err(CliError::Usage(why));
    }
    let catalog = region.catalog()?;
    let known = catalog.snapshots.get(&of).filter(|snapshot| snapshot.readable_by(session.context.account));
    let changes = match known {
        _ if !is_here => Err("the clone is of a snapshot in another region".to_owned()),
        None => Err(format!("{of}, which the clone is of, is gone")),
        Some(snapshot) if snapshot.manifest.hash != base.manifest => {
            Err(format!("{of} is not what the clone is of"))
        }
        // What cannot be told is read.
        Some(_) => match clone.changes() {
            Ok(known) => known.map_err(ToOwned::to_owned),
            Err(error) => Err(error.to_string()),
        },
    };
    let parent = args.parent.or(known.filter(|_| is_here).map(|snapshot| snapshot.id));
    Ok(Source { disk, clone: Some(clone), parent, changes: Some(changes) })
}

/// What became of a hint.
struct Told {
    parent: Option<SnapshotId>,
    /// Why it was of no use.
    why_not: Option<String>,
    ranges: usize,
    changed_bytes: u64,
    /// Where it is wrong, if that was looked for.
    wrong: Option<Vec<Range<u64>>>,
}

fn told(source: &Source, used: Option<HintUse>) -> Option<Told> {
    let changes = source.changes.as_ref()?;
    let known = changes.as_ref().ok();
    let (why_not, wrong) = match used {
        Some(HintUse::Unusable { why }) => (Some(why), None),
        Some(HintUse::Verified { wrong }) => (None, Some(wrong)),
        Some(HintUse::Believed) => (None, None),
        None => (changes.as_ref().err().cloned(), None),
    };
    Some(Told {
        parent: source.parent,
        why_not,
        ranges: known.map_or(0, |changes| changes.ranges().len()),
        changed_bytes: known.map_or(0, |changes| block_offset(changes.blocks())),
        wrong,
    })
}

fn tell_of_hint(session: &Session<'_>, hint: &Told, read_bytes: u64) {
    let Told { ranges, changed_bytes, .. } = hint;
    let changed = format!("{} in {ranges} ranges may have changed", bytes(*changed_bytes));
    let text = match (&hint.why_not, &hint.wrong) {
        (Some(why), _) => format!("no hint: {why}; everything was read"),
        (None, None) => format!("{changed}, {} were read", bytes(read_bytes)),
        (None, Some(wrong)) if wrong.is_empty() => {
            format!("{changed}; everything was read, the hint is right")
        }
        (None, Some(wrong)) => {
            let range = |range: &Range<u64>| format!("bytes {} to {}", range.start, range.end);
            let first: Vec<String> = wrong.iter().take(RANGES_TOLD).map(range).collect();
            format!(
                "the hint is wrong: what it leaves out changed, too, in {} ranges: {}{}; everything was read, so the snapshot is right",
                wrong.len(),
                first.join(", "),
                if wrong.len() > RANGES_TOLD { ", …" } else { "" }
            )
        }
    };
    session.watcher.note(&text);
}

/// What became of a hint, for machines.
fn hint_document(args: &SnapshotArgs, hint: &Told) -> Value {
    let range = |range: &Range<u64>| json!({ "start_byte": range.start, "end_byte": range.end });
    json!({
        "source": if args.clone.is_some() { "clone" } else { "changed" },
        "parent_snapshot_id": hint.parent,
        "used": hint.why_not.is_none() && hint.wrong.is_none(),
        "why_not": hint.why_not,
        "ranges": hint.ranges,
        "changed_bytes": hint.changed_bytes,
        "wrong": hint.wrong.as_ref().map(|wrong| wrong.iter().map(range).collect::<Value>()),
    })
}
