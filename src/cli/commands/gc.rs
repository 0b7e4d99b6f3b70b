//! gc.

use super::Session;
use crate::cli::args::GcArgs;
use crate::cli::error::CliError;
use crate::cli::text::{bytes, counted, time, time_millis};
use imgstore::ops::context::Progress;
use imgstore::ops::gc::{Amount, Collected, GcOptions, collect_into};
use serde_json::{Value, json};
use std::time::Instant;

pub fn gc(session: &Session<'_>, args: &GcArgs) -> Result<(), CliError> {
    let started = Instant::now();
    let grace_ms = args.grace.map_or_else(|| session.home.gc_grace_ms(), Ok)?;
    let options = GcOptions { grace_ms, repack_percent: args.repack };
    let region = session.home.open_region()?;
    if grace_ms > 0 && region.time_on_record(session.context.now_ms)? != session.context.now_ms {
        let why = format!(
            "this machine's clock says {}, before the region was made, so nobody knows whose grace is over: set the clock, or say --grace 0s",
            time(session.context.now_ms)
        );
        return Err(CliError::Usage(why));
    }
    let mut collected = Collected::default();
    if let Err(error) = collect_into(&mut collected, &region, &options, &session.context) {
        // What went is gone.
        if collected != Collected::default() {
            session.output.so_far(|| document(session, &collected, started), || text(&collected, false));
        }
        return Err(error.into());
    }
    session.output.answer(
        || document(session, &collected, started),
        || session.told(text(&collected, session.context.dry_run)),
    );
    if session.context.dry_run {
        session.watcher.note("nothing was changed");
    }
    Ok(())
}

fn document(session: &Session<'_>, collected: &Collected, started: Instant) -> Value {
    json!({
        "region": session.home.region_name(),
        "dry_run": session.context.dry_run,
        "condemned_packs": collected.condemned.count,
        "condemned_bytes": collected.condemned.bytes,
        "repacked_packs": collected.repacked.count,
        "repacked_bytes": collected.repacked.bytes,
        "moved_chunks": collected.moved.count,
        "moved_bytes": collected.moved.bytes,
        "freed_packs": collected.freed.count,
        "freed_bytes": collected.freed.bytes,
        "orphans": collected.orphans.count,
        "orphan_bytes": collected.orphans.bytes,
        "expired": collected.expired,
        "waiting_packs": collected.waiting.count,
        "waiting_bytes": collected.waiting.bytes,
        "waiting_since": collected.waiting_since_ms.map(time_millis),
        "waiting_until": collected.waiting_until_ms.map(time_millis),
        "unsaved_packs": collected.unsaved.count,
        "unsaved_bytes": collected.unsaved.bytes,
        "lost": collected.lost.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "unneeded_packs": collected.unneeded.count,
        "unneeded_bytes": collected.unneeded.bytes,
        "left_worn_packs": collected.left_worn.count,
        "left_worn_bytes": collected.left_worn.bytes,
        "given_up": collected.given_up,
        "in_progress_packs": collected.in_progress.count,
        "in_progress_bytes": collected.in_progress.bytes,
        "elapsed_seconds": started.elapsed().as_secs_f64(),
    })
}

fn amount(amount: Amount, what: &str) -> String {
    format!("{}, {}", counted(amount.count, what), bytes(amount.bytes))
}

fn text(collected: &Collected, dry_run: bool) -> String {
    let would = if dry_run { "would be " } else { "" };
    let mut text = String::new();
    let mut line = |has: bool, line: String| {
        if has {
            text += &line;
            text.push('\n');
        }
    };
    let Collected { condemned, repacked, moved, freed, orphans, waiting, expired, in_progress, .. } =
        collected;
    line(*expired > 0, format!("{expired} things whose time in the bin was over {would}let go"));
    line(condemned.count > 0, format!("{would}condemned   {}", amount(*condemned, "pack")));
    line(
        repacked.count > 0,
        format!("{would}rewritten   {}, of which {} moved", amount(*repacked, "pack"), bytes(moved.bytes)),
    );
    line(freed.count > 0, format!("{would}freed       {}", amount(*freed, "pack")));
    line(orphans.count > 0, format!("{would}removed     {} that nothing names", amount(*orphans, "object")));
    line(
        waiting.count > 0,
        format!(
            "{}     {}, all that are condemned, the first since {}, to be freed from {} on",
            if dry_run { "would wait" } else { "waiting" },
            amount(*waiting, "pack"),
            collected.waiting_since_ms.map(time).unwrap_or_default(),
            collected.waiting_until_ms.map(time).unwrap_or_default()
        ),
    );
    let unsaved = amount(collected.unsaved, "damaged pack");
    line(
        collected.unsaved.count > 0,
        format!(
            "kept        {unsaved}, which alone may hold something that is needed: run `imgstore repair`; for what stays lost then, \
             delete the snapshots that it names; one that cannot be read or searched whole stays until it can, or until its file is gone"
        ),
    );
    let lost: Vec<String> = collected.lost.iter().map(ToString::to_string).collect();
    line(
        !lost.is_empty(),
        format!(
            "kept        damaged packs and what is left of {}, of which content is lost; nothing is rewritten while it is there",
            lost.join(", ")
        ),
    );
    line(in_progress.count > 0, format!("in use      {} of running commands", amount(*in_progress, "pack")));
    line(
        collected.left_worn.count > 0,
        format!("not rewritten, since the disk is nearly full: {}", amount(collected.left_worn, "worn pack")),
    );
    if collected.given_up {
        text += "given up    others changed the region at each try: what is left is for the next `imgstore gc`, at a quieter time\n";
    }
    if text.is_empty() {
        text += "nothing to collect\n";
    }
    if collected.unneeded.bytes > 0 {
        text += &format!(
            "stays       {} or more that nothing needs, beside what is needed in {}: --repack 100 moves that where it may, and frees them\n",
            bytes(collected.unneeded.bytes),
            counted(collected.unneeded.count, "pack")
        );
    }
    text
}
