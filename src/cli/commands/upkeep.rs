//! stats, verify.

use super::Session;
use crate::cli::args::VerifyArgs;
use crate::cli::error::{self, CliError};
use crate::cli::text::{bytes, percent, printable, table};
use imgstore::ops::context::Progress;
use imgstore::ops::error::OpsError;
use imgstore::ops::find::AnyId;
use imgstore::ops::stats::{RegionStats, item_stats, region_stats};
use imgstore::ops::verify::{Report, VerifyOptions, verify as run_verify};
use serde_json::{Value, json};
use std::time::Instant;

pub fn stats(session: &Session<'_>, ids: &[AnyId]) -> Result<(), CliError> {
    let region = session.home.open_region()?;
    if ids.is_empty() {
        let stats = region_stats(&region, &session.context)?;
        session.output.answer(|| region_document(session, &stats), || region_text(&stats));
        return Ok(());
    }
    let items = item_stats(&region, ids, &session.context)?;
    session.output.answer(
        || {
            let item = |item: &imgstore::ops::stats::ItemStats| {
                json!({
                    "id": item.id,
                    "unique_stored_bytes": item.unique_stored_bytes,
                    "shared_stored_bytes": item.shared_stored_bytes,
                    "freed_bytes": item.freed_bytes,
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
                    vec![item.id.clone(), unique, shared, freed]
                })
                .collect();
            table(&["ID", ">UNIQUE", ">SHARED", ">FREED IF DELETED"], &rows)
        },
    );
    Ok(())
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
    })
}

fn region_text(stats: &RegionStats) -> String {
    format!(
        "images      {}\n\
         snapshots   {}\n\
         volumes     {}\n\
         data        {}\n\
         unique      {} ({} of data), {} chunks\n\
         stored      {} ({} of data), {} packs, index {}\n",
        stats.images,
        stats.snapshots,
        bytes(stats.volume_bytes),
        bytes(stats.data_bytes),
        bytes(stats.unique_bytes),
        percent(stats.unique_bytes, stats.data_bytes),
        stats.chunks,
        bytes(stats.store_bytes),
        percent(stats.store_bytes, stats.data_bytes),
        stats.packs,
        bytes(stats.index_bytes),
    )
}

pub fn verify(session: &Session<'_>, args: &VerifyArgs) -> Result<u8, CliError> {
    if !(0.0..=100.0).contains(&args.sample) {
        return Err(CliError::Usage("--sample takes a percentage, 0 to 100".into()));
    }
    let started = Instant::now();
    let options =
        VerifyOptions { ids: args.ids.clone(), sample_percent: args.sample, content: !args.checksums };
    let report = match session.home.open_region() {
        Ok(region) => run_verify(&region, &options, &session.context)?,
        // Damage that keeps a region from being opened is a finding like any other.
        Err(CliError::Region { source: OpsError::Region(error), .. }) if error.is_damage() => {
            Report::unopenable(&error)
        }
        Err(error) => return Err(error),
    };
    session.watcher.note(&format!(
        "{} snapshots, {} packs, {} chunks, {} read, {:.1} s",
        report.snapshots,
        report.packs,
        report.chunks,
        bytes(report.pack_bytes),
        started.elapsed().as_secs_f64()
    ));
    session.output.answer(|| report_document(session, &report, started), || report_text(&report));
    Ok(if report.findings.is_empty() { 0 } else { error::DAMAGE })
}

fn report_document(session: &Session<'_>, report: &Report, started: Instant) -> Value {
    let finding = |finding: &imgstore::ops::verify::Finding| {
        json!({
            "object": finding.object,
            "problem": finding.problem,
            "affected": finding.affected,
            "affected_of_others": finding.affected_of_others,
        })
    };
    json!({
        "region": session.home.region_name(),
        "findings": report.findings.iter().map(finding).collect::<Value>(),
        "snapshots": report.snapshots,
        "packs": report.packs,
        "chunks": report.chunks,
        "pack_bytes": report.pack_bytes,
        "elapsed_seconds": started.elapsed().as_secs_f64(),
    })
}

fn report_text(report: &Report) -> String {
    if report.findings.is_empty() {
        return "no damage found\n".into();
    }
    let mut text = format!("{} findings:\n", report.findings.len());
    for finding in &report.findings {
        text += &format!("- {}: {}\n", finding.object, printable(&finding.problem));
        if finding.affected_of_others > 0 {
            text += &format!("  affects {} snapshots of others\n", finding.affected_of_others);
        }
        if !finding.affected.is_empty() {
            text += &format!("  affects {}\n", finding.affected.join(", "));
        }
    }
    text
}
