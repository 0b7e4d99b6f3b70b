//! stats, verify.

use super::Session;
use crate::cli::args::VerifyArgs;
use crate::cli::checks::Checks;
use crate::cli::error::{self, CliError};
use crate::cli::progress::warn;
use crate::cli::text::{bytes, counted, percent, printable, table, time, time_millis};
use imgstore::model::objects::{PackName, PackState};
use imgstore::model::units::TimeMs;
use imgstore::ops::context::Progress;
use imgstore::ops::error::OpsError;
use imgstore::ops::find::AnyId;
use imgstore::ops::stats::{RegionStats, item_stats, region_stats, unread_sentence};
use imgstore::ops::verify::{Finding, Report, VerifyOptions, verify as run_verify};
use imgstore::region::Region;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

pub fn stats(session: &Session<'_>, ids: &[AnyId]) -> Result<(), CliError> {
    let region = session.home.open_region()?;
    if ids.is_empty() {
        let stats = region_stats(&region, &session.context)?;
        warn_unread(&stats.unread);
        session.output.answer(|| region_document(session, &stats), || region_text(&stats));
        return Ok(());
    }
    let items = item_stats(&region, ids, &session.context)?;
    warn_unread(&items.iter().flat_map(|item| item.unread.iter().cloned()).collect());
    session.output.answer(
        || {
            let item = |item: &imgstore::ops::stats::ItemStats| {
                json!({
                    "id": item.id,
                    "unique_stored_bytes": item.unique_stored_bytes,
                    "shared_stored_bytes": item.shared_stored_bytes,
                    "freed_bytes": item.freed_bytes,
                    "kept_by": item.kept_by.iter().map(|keeper| keeper.as_str()).collect::<Vec<_>>(),
                    "unread": item.unread,
                })
            };
            json!({ "region": session.home.region_name(), "items": items.iter().map(item).collect::<Value>() })
        },
        || {
            let rows: Vec<_> = items
                .iter()
                .map(|item| {
                    let [unique, shared, freed] =
                        [item.unique_stored_bytes, item.shared_stored_bytes, item.freed_bytes].map(bytes);
                    let kept_by: Vec<&str> = item.kept_by.iter().map(|keeper| keeper.as_str()).collect();
                    let kept_by = if kept_by.is_empty() { "-".into() } else { kept_by.join(", ") };
                    vec![item.id.clone(), unique, shared, freed, kept_by]
                })
                .collect();
            table(&["ID", ">UNIQUE", ">SHARED", ">FREED IF DELETED", "KEPT BY"], &rows)
        },
    );
    Ok(())
}

/// Tells that figures leave something out, also those who want quiet.
fn warn_unread(unread: &BTreeSet<String>) {
    if !unread.is_empty() {
        warn(&unread_sentence(unread));
    }
}

fn region_document(session: &Session<'_>, stats: &RegionStats) -> Value {
    json!({
        "region": session.home.region_name(),
        "volume_bytes": stats.volume_bytes,
        "data_bytes": stats.data_bytes,
        "unique_bytes": stats.unique_bytes,
        "store_bytes": stats.store_bytes,
        "index_bytes": stats.index_bytes,
        "images": stats.images,
        "snapshots": stats.snapshots,
        "chunks": stats.chunks,
        "packs": stats.packs,
        "unread": stats.unread,
    })
}

fn region_text(stats: &RegionStats) -> String {
    format!(
        "images      {}\n\
         snapshots   {}\n\
         volumes     {}\n\
         data        {}\n\
         unique      {} ({} of data), {}\n\
         stored      {} ({} of data), {}, index {}\n",
        stats.images,
        stats.snapshots,
        bytes(stats.volume_bytes),
        bytes(stats.data_bytes),
        bytes(stats.unique_bytes),
        percent(stats.unique_bytes, stats.data_bytes),
        counted(stats.chunks, "chunk"),
        bytes(stats.store_bytes),
        percent(stats.store_bytes, stats.data_bytes),
        counted(stats.packs, "pack"),
        bytes(stats.index_bytes),
    )
}

pub fn verify(session: &Session<'_>, args: &VerifyArgs) -> Result<u8, CliError> {
    if !(0.0..=100.0).contains(&args.sample) {
        return Err(CliError::Usage("--sample takes a percentage, 0 to 100".into()));
    }
    let started = Instant::now();
    let (report, age) = match session.home.open_region() {
        Ok(region) => check(session, &region, args)?,
        // Damage that keeps a region from being opened is a finding like any other.
        Err(CliError::Region { source: OpsError::Region(error), .. }) if error.is_damage() => {
            (Report::unopenable(&error), (None, 0))
        }
        Err(error) => return Err(error),
    };
    session.watcher.note(&format!(
        "{}, {}, {}, {} read, {:.1} s",
        counted(report.snapshots, "snapshot"),
        counted(report.packs, "pack"),
        counted(report.chunks, "chunk"),
        bytes(report.pack_bytes),
        started.elapsed().as_secs_f64()
    ));
    match age {
        (oldest, never) if never > 0 => {
            let since = oldest.map(|at| format!("; of the others one was last on {}", time(at)));
            let never = counted(never as u64, "pack");
            session.watcher.note(&format!("never found good: {never}{}", since.unwrap_or_default()));
        }
        (Some(oldest), _) => session.watcher.note(&format!("every pack was checked since {}", time(oldest))),
        (None, _) => {}
    }
    session
        .output
        .answer(|| report_document(session, &report, age, started), || session.told(report_text(&report)));
    Ok(if report.findings.is_empty() { 0 } else { error::DAMAGE })
}

/// Between two times at which what was found good is remembered.
const SAVE_EVERY: Duration = Duration::from_secs(30);

/// When the pack that was checked longest ago was, and how many never were.
type Age = (Option<TimeMs>, usize);

/// Runs the check, and remembers in the home what it found good, also if it is interrupted.
fn check(session: &Session<'_>, region: &Region, args: &VerifyArgs) -> Result<(Report, Age), CliError> {
    let (content, now_ms) = (!args.checksums, session.context.now_ms);
    let path = session.home.checks_file(region)?;
    let mut checks = Checks::load(&path);
    let is_whole = args.ids.is_empty() && args.sample >= 100.0;
    let skip = if is_whole { checks.begin(content, args.resume, now_ms) } else { BTreeSet::new() };
    if !skip.is_empty() {
        session
            .watcher
            .note(&format!("found good before the interruption: {}", counted(skip.len() as u64, "pack")));
    }
    let checked_ms = checks.times(content);
    // Now, and now and then: whoever is killed has not checked in vain.
    checks.save(&path);
    let noted = Mutex::new((checks, Instant::now()));
    let note = |pack: &PackName| {
        let mut noted = noted.lock().unwrap_or_else(PoisonError::into_inner);
        let (checks, saved) = &mut *noted;
        checks.note(pack, content, imgstore::io::clock::now_ms());
        if saved.elapsed() >= SAVE_EVERY {
            checks.save(&path);
            *saved = Instant::now();
        }
    };
    let options = VerifyOptions {
        ids: args.ids.clone(),
        sample_percent: args.sample,
        content,
        skip,
        checked_ms,
        on_checked: Some(&note),
        bytes_per_second: args.limit_rate,
    };
    let outcome = run_verify(region, &options, &session.context);
    let (mut checks, _) = noted.into_inner().unwrap_or_else(PoisonError::into_inner);
    // As the check has seen it: that the log cannot be read any more takes nothing from what was found. Packs in quarantine hold
    // nothing that counts.
    let catalog = region.known_catalog();
    let counts = |state| !matches!(state, PackState::Quarantined { .. });
    let there: BTreeSet<PackName> =
        catalog.packs.iter().filter(|(_, pack)| counts(pack.state)).map(|(name, _)| *name).collect();
    if outcome.is_ok() && is_whole {
        checks.end(content, &there);
    }
    checks.save(&path);
    Ok((outcome?, checks.oldest(content, &there)))
}

fn report_document(session: &Session<'_>, report: &Report, age: Age, started: Instant) -> Value {
    json!({
        "region": session.home.region_name(),
        "findings": report.findings.iter().map(finding_document).collect::<Value>(),
        "snapshots": report.snapshots,
        "packs": report.packs,
        "chunks": report.chunks,
        "pack_bytes": report.pack_bytes,
        "oldest_check": age.0.map(time_millis),
        "packs_never_checked": age.1,
        "elapsed_seconds": started.elapsed().as_secs_f64(),
    })
}

/// A finding, for machines.
pub(super) fn finding_document(finding: &Finding) -> Value {
    json!({
        "object": finding.object,
        "problem": finding.problem,
        "affected": finding.affected,
        "affected_of_others": finding.affected_of_others,
    })
}

fn report_text(report: &Report) -> String {
    if report.findings.is_empty() {
        return "no damage found\n".into();
    }
    findings_text(&report.findings)
        + "`imgstore repair` mends what it can, with --from REGION or --disk DISK also from there\n"
}

/// Findings, for people.
pub(super) fn findings_text(findings: &[Finding]) -> String {
    let mut text = format!("{}:\n", counted(findings.len() as u64, "finding"));
    for finding in findings {
        text += &format!("- {}: {}\n", finding.object, printable(&finding.problem));
        if finding.affected_of_others > 0 {
            text += &format!("  affects {} of others\n", counted(finding.affected_of_others, "snapshot"));
        }
        if !finding.affected.is_empty() {
            text += &format!("  affects {}\n", finding.affected.join(", "));
        }
    }
    text
}
