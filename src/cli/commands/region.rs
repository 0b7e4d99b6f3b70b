//! region add, list, show, default, remove.

use super::Session;
use crate::cli::args::RegionCommand;
use crate::cli::error::CliError;
use crate::cli::text::{printable, table, time, time_millis};
use serde_json::{Value, json};

pub fn region(session: &mut Session<'_>, command: &RegionCommand) -> Result<(), CliError> {
    if session.context.dry_run
        && matches!(
            command,
            RegionCommand::Add { .. } | RegionCommand::Default { .. } | RegionCommand::Remove { .. }
        )
    {
        return Err(CliError::Usage(
            "only the home's list of regions would change: no dry run of that".into(),
        ));
    }
    match command {
        RegionCommand::Add { name, url } => add(session, name, url),
        RegionCommand::List => list(session),
        RegionCommand::Show { name } => {
            let name = name.clone().unwrap_or_else(|| session.home.region_name().to_owned());
            show(session, &name)
        }
        RegionCommand::Default { name } => {
            session.home.set_default_region(name)?;
            session.output.answer(|| json!({ "region": name, "default": true }), || format!("{name}\n"));
            Ok(())
        }
        RegionCommand::Remove { name } => remove(session, name),
    }
}

fn add(session: &mut Session<'_>, name: &str, url: &str) -> Result<(), CliError> {
    let region = session.home.add_region(name, url)?;
    let id = region.header().id;
    session.output.answer(|| json!({ "region": name, "region_id": id, "url": url }), || format!("{name}\n"));
    Ok(())
}

fn list(session: &Session<'_>) -> Result<(), CliError> {
    let regions = session.home.regions();
    session.output.answer(
        || {
            let one = |(name, known): (&String, &crate::cli::home::KnownRegion)| {
                json!({ "region": name, "url": known.url, "default": name == session.home.region_name() })
            };
            json!({ "regions": regions.iter().map(one).collect::<Value>() })
        },
        || {
            let mark = |name: &String| if name == session.home.region_name() { "*" } else { "" };
            let row = |(name, known): (&String, &crate::cli::home::KnownRegion)| {
                vec![name.clone(), mark(name).to_owned(), printable(&known.url)]
            };
            table(&["REGION", "IN USE", "URL"], &regions.iter().map(row).collect::<Vec<_>>())
        },
    );
    Ok(())
}

fn show(session: &Session<'_>, name: &str) -> Result<(), CliError> {
    let region = session.home.open_named(name)?;
    let header = region.header();
    let url = session.home.regions().get(name).map_or("", |known| known.url.as_str());
    let records = region.catalog()?.sequence;
    let chunker = header.chunker;
    session.output.answer(
        || {
            json!({
                "region": name,
                "region_id": header.id,
                "url": url,
                "created": time_millis(header.created_ms),
                "chunker": chunker,
                "zstd_level": header.zstd_level,
                "pack_bytes": header.pack_bytes,
                "log_records": records,
            })
        },
        || {
            format!(
                "region      {name}\n\
                 id          {}\n\
                 url         {}\n\
                 created     {}\n\
                 chunks      {} to {} blocks of 4 KiB, a cut about every {}\n\
                 zstd level  {}\n\
                 log         {records} records\n",
                header.id,
                printable(url),
                time(header.created_ms),
                chunker.min_blocks,
                chunker.max_blocks,
                chunker.avg_blocks,
                header.zstd_level,
            )
        },
    );
    Ok(())
}

fn remove(session: &mut Session<'_>, name: &str) -> Result<(), CliError> {
    let known = session.home.remove_region(name)?;
    session.output.answer(
        || json!({ "region": name, "url": known.url }),
        || format!("{name} is forgotten; its data are still in {}\n", printable(&known.url)),
    );
    Ok(())
}
