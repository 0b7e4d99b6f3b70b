//! repack.

use super::Session;
use crate::cli::args::RepackArgs;
use crate::cli::error::CliError;
use crate::cli::text::{bytes, counted};
use imgstore::ops::context::Progress;
use imgstore::ops::repack::{RepackOptions, Repacked, repack_into};
use serde_json::{Value, json};
use std::time::Instant;

pub fn repack(session: &Session<'_>, args: &RepackArgs) -> Result<(), CliError> {
    let started = Instant::now();
    let options = RepackOptions { level: args.level, limit_bytes: args.limit.unwrap_or(u64::MAX) };
    let region = session.home.open_region()?;
    let mut repacked = Repacked::default();
    let ended = repack_into(&mut repacked, &region, &options, &session.timed(&region)?);
    if let Err(error) = ended {
        if repacked.emptied.count > 0 || repacked.stored_bytes > 0 {
            session.output.so_far(|| document(session, &repacked, started), || text(&repacked, false));
        }
        return Err(error.into());
    }
    session
        .output
        .answer(|| document(session, &repacked, started), || text(&repacked, session.context.dry_run));
    if session.context.dry_run {
        session.watcher.note("nothing was changed");
    }
    Ok(())
}

fn document(session: &Session<'_>, repacked: &Repacked, started: Instant) -> Value {
    json!({
        "region": session.home.region_name(),
        "dry_run": session.context.dry_run,
        "emptied_packs": repacked.emptied.count,
        "emptied_bytes": repacked.emptied.bytes,
        "moved_chunks": repacked.moved.count,
        "moved_bytes": repacked.moved.bytes,
        "stored_bytes": repacked.stored_bytes,
        "left_packs": repacked.left.count,
        "left_bytes": repacked.left.bytes,
        "in_progress_packs": repacked.in_progress.count,
        "in_progress_bytes": repacked.in_progress.bytes,
        "elapsed_seconds": started.elapsed().as_secs_f64(),
    })
}

fn text(repacked: &Repacked, dry_run: bool) -> String {
    let Repacked { emptied, moved, stored_bytes, left, in_progress } = repacked;
    let mut lines = Vec::new();
    if emptied.count == 0 && *stored_bytes > 0 {
        let size = bytes(*stored_bytes);
        lines.push(format!("{size} were made anew, and nothing is let go: others count on the old packs"));
    } else if emptied.count == 0 {
        lines.push("nothing to repack".to_owned());
    } else if dry_run {
        let needed = bytes(moved.bytes);
        lines.push(format!(
            "would rewrite  {}, {}, {needed} of it needed",
            counted(emptied.count, "pack"),
            bytes(emptied.bytes)
        ));
    } else {
        let (packs, chunks) = (counted(emptied.count, "pack"), counted(moved.count, "chunk"));
        lines.push(format!("rewritten  {packs}, {chunks}"));
        lines.push(format!("before     {}", bytes(emptied.bytes)));
        lines.push(format!("now        {}", bytes(*stored_bytes)));
        lines.push("`imgstore gc` frees the old packs, after its grace".to_owned());
    }
    if left.count > 0 {
        lines.push(format!("left       {}, {}", counted(left.count, "pack"), bytes(left.bytes)));
    }
    if in_progress.count > 0 {
        let size = bytes(in_progress.bytes);
        lines.push(format!("in use     {} of running commands, {size}", counted(in_progress.count, "pack")));
    }
    lines.join("\n") + "\n"
}
