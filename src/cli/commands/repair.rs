//! repair.

use super::Session;
use super::ingest::open_all;
use super::upkeep::{finding_document, findings_text};
use crate::cli::args::RepairArgs;
use crate::cli::error::{self, CliError};
use crate::cli::text::{bytes, counted, lossy};
use imgstore::disk::DiskRead;
use imgstore::ops::context::Progress;
use imgstore::ops::error::OpsError;
use imgstore::ops::repair::{Lost, RepairSources, Repaired, repair_into};
use imgstore::region::mend::Mended;
use serde_json::{Value, json};
use std::ops::Range;
use std::path::PathBuf;
use std::time::Instant;

pub fn repair(session: &Session<'_>, args: &RepairArgs) -> Result<u8, CliError> {
    let started = Instant::now();
    let regions =
        args.from.iter().map(|name| session.home.open_named(name)).collect::<Result<Vec<_>, _>>()?;
    let disks = Disks::open(session, args)?;
    // Without its log a region cannot even be opened.
    let mended = session.home.mend_region(&session.context)?;
    if session.context.dry_run && !mended.restored.is_empty() {
        let repaired = Repaired { is_log_broken: true, ..Repaired::default() };
        session
            .output
            .answer(|| document(session, &mended, &repaired, started), || mended_text(&mended, true));
        session.watcher.note("nothing was changed; what else is damaged can be told once the log is mended");
        return Ok(error::DAMAGE);
    }
    let region = session.home.open_mended().inspect_err(|_| {
        // What was done before it failed.
        for line in mended_text(&mended, false).lines() {
            session.watcher.note(line);
        }
    })?;
    let sources = RepairSources { regions: &regions, disks: &disks.opened, force: args.force };
    let mut repaired = Repaired::default();
    let ended = repair_into(&mut repaired, &region, &sources, &session.timed(&region)?);
    if let Err(error) = ended {
        // What was found and done before it; but a disk that is not mounted has lost nothing.
        if matches!(error, OpsError::MostlyMissing { .. }) {
            repaired = Repaired::default();
        }
        let has_found = !repaired.findings.is_empty();
        if has_found || !mended.restored.is_empty() || mended.twins > 0 {
            let dry_run = session.context.dry_run;
            let found = || if has_found { text(&repaired, &mended, dry_run) } else { String::new() };
            session.output.so_far(
                || document(session, &mended, &repaired, started),
                || mended_text(&mended, dry_run) + &found(),
            );
        }
        return Err(error.into());
    }
    let (foreign, unread) = (disks.without_use(&repaired), disks.unread(&repaired));
    tell_of_disks(session, &foreign, &unread, args.reading.skip_free);
    session.output.answer(
        || {
            let mut document = document(session, &mended, &repaired, started);
            document["foreign_disks"] = foreign.iter().map(|path| json!(lossy(path))).collect();
            document["unread_disks"] =
                unread.iter().map(|(path, error)| json!({ "path": lossy(path), "error": error })).collect();
            document
        },
        || {
            let dry_run = session.context.dry_run;
            session.told(mended_text(&mended, dry_run) + &text(&repaired, &mended, dry_run))
        },
    );
    if session.context.dry_run {
        session.watcher.note("nothing was changed");
    }
    let is_well = repaired.lost.is_empty()
        && repaired.out_of_reach.is_empty()
        && repaired.lost_records == 0
        && !repaired.is_log_broken
        && (!session.context.dry_run || repaired.findings.is_empty());
    Ok(if is_well { 0 } else { error::DAMAGE })
}

/// The disks that are named, each with its file: of a machine there are several.
struct Disks<'a> {
    opened: Vec<Box<dyn DiskRead>>,
    paths: Vec<&'a PathBuf>,
}

impl<'a> Disks<'a> {
    fn open(session: &Session<'_>, args: &'a RepairArgs) -> Result<Self, CliError> {
        let mut disks = Self { opened: Vec::new(), paths: Vec::new() };
        for path in &args.disks {
            let opened = open_all(session, path, &args.reading)?;
            disks.paths.extend(opened.iter().map(|_| path));
            disks.opened.extend(opened);
        }
        Ok(disks)
    }

    /// Files none of whose disks had anything.
    fn without_use(&self, repaired: &Repaired) -> Vec<&'a PathBuf> {
        let has_nothing = |path: &&PathBuf| {
            let mut of_it = self.paths.iter().enumerate().filter(|(_, of)| *of == path);
            of_it.all(|(number, _)| repaired.foreign_disks.contains(&number))
        };
        let mut files = self.paths.clone();
        files.dedup();
        files.retain(has_nothing);
        files
    }

    /// Files that could not be read everywhere, and why not.
    fn unread<'r>(&self, repaired: &'r Repaired) -> Vec<(&'a PathBuf, &'r str)> {
        let named = |(number, why): &'r (usize, String)| Some((*self.paths.get(*number)?, why.as_str()));
        repaired.unread_disks.iter().filter_map(named).collect()
    }
}

fn tell_of_disks(session: &Session<'_>, foreign: &[&PathBuf], unread: &[(&PathBuf, &str)], skip_free: bool) {
    let how = if skip_free { "" } else { "; if it was stored with --skip-free, read it so here, too" };
    for path in foreign {
        session.watcher.note(&format!("{}: nothing of what is missing is on it{how}", path.display()));
    }
    for (path, why) in unread {
        session.watcher.note(&format!("{}: it could not be read everywhere: {why}", path.display()));
    }
}

fn document(session: &Session<'_>, mended: &Mended, repaired: &Repaired, started: Instant) -> Value {
    let lost = |lost: &Lost| {
        json!({
            "id": lost.root.to_string(),
            "devices": lost.images.iter().map(|(image, device)| {
                json!({ "image_id": image, "device_name": device })
            }).collect::<Value>(),
            "ranges": ranges_document(&lost.ranges),
        })
    };
    json!({
        "region": session.home.region_name(),
        "dry_run": session.context.dry_run,
        "findings": repaired.findings.iter().map(finding_document).collect::<Value>(),
        "restored": mended.restored,
        "twins": mended.twins,
        "conflicts": mended.conflicts,
        "foreign_disks": [],
        "unread_disks": [],
        "quarantined": repaired.quarantined.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "moved_chunks": repaired.moved,
        "fetched_chunks": repaired.fetched,
        "reread_chunks": repaired.reread,
        "manifests": repaired.manifests,
        "caches": repaired.caches,
        "stored_bytes": repaired.stored_bytes,
        "lost": repaired.lost.iter().map(lost).collect::<Value>(),
        "out_of_reach": repaired.out_of_reach.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "lost_records": repaired.lost_records,
        "elapsed_seconds": started.elapsed().as_secs_f64(),
    })
}

/// What was brought back of the log.
fn mended_text(mended: &Mended, dry_run: bool) -> String {
    let would = if dry_run { "can be " } else { "" };
    let restored = mended.restored.iter().map(|name| format!("{would}restored      {name}, from its twin\n"));
    let conflict = |name: &String| format!("left alone    {name}: its twin is whole, too, and another\n");
    let mut text: String = restored.chain(mended.conflicts.iter().map(conflict)).collect();
    if mended.twins > 0 {
        text += &format!("{would}made anew     {} of region file or log\n", counted(mended.twins, "twin"));
    }
    text
}

fn text(repaired: &Repaired, mended: &Mended, dry_run: bool) -> String {
    let mut text = if repaired.findings.is_empty() {
        if mended.restored.is_empty() { "no damage found\n" } else { "no other damage found\n" }.to_owned()
    } else {
        findings_text(&repaired.findings)
    };
    if repaired.is_log_broken {
        return text
            + "the log is broken: nothing was changed; bring back the record that is missing or damaged\n";
    }
    let would = if dry_run { "would be " } else { "" };
    let Repaired { quarantined, moved, fetched, reread, manifests, caches, stored_bytes, lost, .. } =
        repaired;
    if !quarantined.is_empty() {
        text += &format!("{would}quarantined   {}\n", counted(quarantined.len() as u64, "pack"));
    }
    if moved + fetched + reread > 0 {
        text += &format!(
            "stored again  {} from here, {fetched} from other regions, {reread} from disks; {}\n",
            counted(*moved, "chunk"),
            bytes(*stored_bytes)
        );
    }
    if manifests + caches > 0 {
        let maps = counted(*manifests, "block map");
        text += &format!("made anew     {maps}; segments and checkpoints: {caches}\n");
    }
    for Lost { root, images, ranges } in lost {
        let sum: u64 = ranges.iter().map(|range| range.end - range.start).sum();
        text += &format!("LOST          {} of {root}\n", bytes(sum));
        for (image, device) in images {
            text += &format!("              it is {device} of {image}\n");
        }
        for line in range_lines(ranges) {
            text += &format!("              {line}\n");
        }
    }
    for pack in &repaired.out_of_reach {
        text += &format!("out of reach  {pack}: make it readable, or take its file away, and repair again\n");
    }
    if repaired.lost_records > 0 {
        text += &format!(
            "LOST          {} of the log, with twins: only the history lacks them; a copy of the region's folder may have them\n",
            counted(repaired.lost_records, "record")
        );
    }
    if !lost.is_empty() {
        text += "try again with --from REGION or --disk DISK; `imgstore export --zero-lost` writes what is left where the block map is there; then delete the \
                 snapshots that are affected (of an image in the recycle bin: restore it, remove the rule that keeps it, and \
                 deregister it with --delete-snapshots)\n";
    }
    text
}

/// Ranges of a volume, for people.
pub(super) fn range_lines(ranges: &[Range<u64>]) -> Vec<String> {
    let mut lines: Vec<String> = ranges
        .iter()
        .take(RANGES_SHOWN)
        .map(|range| format!("bytes {} to {}", range.start, range.end))
        .collect();
    if ranges.len() > RANGES_SHOWN {
        lines.push(format!("and {} more ranges: --json", ranges.len() - RANGES_SHOWN));
    }
    lines
}

/// Ranges of a volume, for machines.
pub(super) fn ranges_document(ranges: &[Range<u64>]) -> Value {
    ranges.iter().map(|range| json!({ "start_byte": range.start, "end_byte": range.end })).collect()
}

/// Ranges of a volume that are printed.
const RANGES_SHOWN: usize = 20;
