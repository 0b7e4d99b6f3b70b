//! bench dedup.

use super::Session;
use super::ingest::open;
use crate::cli::args::DedupArgs;
use crate::cli::error::CliError;
use crate::cli::page::{BEGIN, page};
use crate::cli::text::{bytes, percent, printable, table};
use imgstore::disk::DiskRead;
use imgstore::io::config;
use imgstore::ops::assess::{Assessment, Cell, DiskFigures, assess};
use imgstore::ops::context::Progress;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

pub fn dedup(session: &Session<'_>, args: &DedupArgs) -> Result<(), CliError> {
    let started = Instant::now();
    // Before all is read.
    if let Some(path) = &args.html {
        config::check_page(path, BEGIN).map_err(|source| unwritten(path, source))?;
    }
    let mut names: Vec<String> = args.disks.iter().map(|path| name_of(path)).collect();
    if names.iter().collect::<BTreeSet<_>>().len() < names.len() {
        names = args.disks.iter().map(|path| path.display().to_string()).collect();
    }
    let opened =
        args.disks.iter().map(|path| open(session, path, &args.reading)).collect::<Result<Vec<_>, _>>()?;
    let disks: Vec<&dyn DiskRead> = opened.iter().map(|disk| &**disk).collect();
    let assessment = assess(&disks, &session.context)?;
    if let Some(path) = args.html.as_ref().filter(|_| !session.context.dry_run) {
        let page = page(&names, &assessment);
        if let Err(source) = config::replace_page(path, &page, BEGIN) {
            // Hours of reading may have gone into it.
            session.output.so_far(|| document(&names, &assessment, started), || text(&names, &assessment));
            return Err(unwritten(path, source));
        }
        session.watcher.note(&format!("{} was written", path.display()));
    }
    session.output.answer(|| document(&names, &assessment, started), || text(&names, &assessment));
    Ok(())
}

fn unwritten(path: &Path, source: std::io::Error) -> CliError {
    CliError::Page { path: path.to_owned(), source }
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

fn document(names: &[String], assessment: &Assessment, started: Instant) -> Value {
    let shared = |cell: &Cell| {
        let with = |(disk, share): &(usize, f64)| json!({ "disk": names[*disk], "share": share });
        cell.shared.iter().map(with).collect::<Value>()
    };
    let cell = |cell: &Cell| json!({ "zero": cell.zero, "unique": cell.unique, "repeated": cell.repeated, "shared": shared(cell) });
    let disk = |(name, disk): (&String, &DiskFigures)| {
        json!({
            "name": name,
            "volume_bytes": disk.volume_bytes,
            "data_bytes": disk.data_bytes,
            "added_bytes": disk.added_bytes,
            "unique_bytes": disk.unique_bytes,
            "map": disk.map.iter().map(cell).collect::<Value>(),
        })
    };
    json!({
        "disks": names.iter().zip(&assessment.disks).map(disk).collect::<Value>(),
        "layouts": assessment.layouts.iter().map(|layout| json!({
            "name": layout.name,
            "imgstore": layout.is_own,
            "chunks": layout.chunks,
            "stored_bytes": layout.stored_bytes,
            "index_bytes": layout.index_bytes,
            "read_bytes": layout.read_bytes,
            "added_bytes": layout.added_bytes,
        })).collect::<Value>(),
        "levels": assessment.levels.iter().map(|level| json!({
            "level": level.level,
            "stored_bytes": level.stored_bytes,
            "bytes_per_second": level.bytes_per_second,
        })).collect::<Value>(),
        "delta_bytes": assessment.delta_bytes,
        "sampled": assessment.sampled,
        "elapsed_seconds": started.elapsed().as_secs_f64(),
    })
}

fn text(names: &[String], assessment: &Assessment) -> String {
    let data: u64 = assessment.disks.iter().map(|disk| disk.data_bytes).sum();
    let row = |(name, disk): (&String, &DiskFigures)| {
        let [volume, data, added, unique] =
            [disk.volume_bytes, disk.data_bytes, disk.added_bytes, disk.unique_bytes].map(bytes);
        vec![printable(name), volume, data, added, unique]
    };
    let disks: Vec<_> = names.iter().zip(&assessment.disks).map(row).collect();
    let layouts: Vec<_> = assessment
        .layouts
        .iter()
        .map(|layout| {
            let [stored, index, read] =
                [layout.stored_bytes, layout.index_bytes, layout.read_bytes].map(bytes);
            vec![
                layout.name.clone(),
                stored,
                percent(layout.stored_bytes, data),
                index,
                layout.chunks.to_string(),
                read,
            ]
        })
        .collect();
    let level = |level: &imgstore::ops::assess::LevelFigures| {
        let speed = format!("{}/s", bytes(level.bytes_per_second));
        vec![level.level.to_string(), bytes(level.stored_bytes), percent(level.stored_bytes, data), speed]
    };
    let levels: Vec<_> = assessment.levels.iter().map(level).collect();
    let own = assessment.layouts.iter().find(|layout| layout.is_own).map_or(0, |layout| layout.stored_bytes);
    let mut text = table(&["DISK", ">SIZE", ">DATA", ">ADDS", ">IT ALONE HAS"], &disks);
    text += "\nAll disks, compressed at level 3, with the index:\n\n";
    text += &table(&["CUT", ">STORED", ">OF DATA", ">INDEX", ">CHUNKS", ">DECODED FOR 4 KiB"], &layouts);
    text += "\nimgstore's cut at other levels, one thread:\n\n";
    text += &table(&["LEVEL", ">STORED", ">OF DATA", ">SPEED"], &levels);
    text += &format!(
        "\nWith deltas, level 3, about {} in place of {}\n",
        bytes(assessment.delta_bytes),
        bytes(own)
    );
    if assessment.sampled > 1 {
        text +=
            &format!("Estimated: in the finest cut one chunk in {} was kept in mind\n", assessment.sampled);
    }
    text
}
