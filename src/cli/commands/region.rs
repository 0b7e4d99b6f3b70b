//! region add, list, show, default, remove.

use super::Session;
use crate::cli::args::RegionCommand;
use crate::cli::error::CliError;
use crate::cli::far::{Address, Far};
use crate::cli::home::KnownRegion;
use crate::cli::text::{counted, printable, table, time, time_millis};
use imgstore::ops::context::Progress;
use imgstore::serve::message::NewRegion;
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
        RegionCommand::Add { name, url, remote_path } => add(session, name, url, remote_path.as_deref()),
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

fn add(session: &mut Session<'_>, name: &str, url: &str, remote_path: Option<&str>) -> Result<(), CliError> {
    if let Some(address) = Address::parse(url)? {
        let remote_path = remote_path.map(str::to_owned);
        return add_far(session, url, &Far { name: name.to_owned(), address, remote_path, region_id: None });
    }
    if remote_path.is_some() {
        return Err(CliError::Usage("--remote-path is for a region on another host".into()));
    }
    let (region, is_made) = session.home.add_region(name, url)?;
    let (id, provider) = (region.header().id, region.header().provider);
    let place = printable(&session.home.known(name)?.url);
    let images = region.known_catalog().images.len();
    session.watcher.note(&match is_made {
        true => format!("{place}: a new region"),
        false => {
            format!("{place}: the region of account {provider}, with {}", counted(images as u64, "image"))
        }
    });
    let account = session.home.account();
    if provider != account {
        session.watcher.note(&format!(
            "this home's account is {account}: what {provider} keeps to itself is shown to `--account {provider}`"
        ));
    }
    session.output.answer(
        || {
            json!({
                "region": name,
                "region_id": id,
                "url": url,
                "provider_id": provider,
                "made": is_made,
            })
        },
        || format!("{name}\n"),
    );
    Ok(())
}

/// A region on another host becomes known once somebody has answered there.
fn add_far(session: &mut Session<'_>, url: &str, far: &Far) -> Result<(), CliError> {
    session.home.check_new_region(&far.name)?;
    let new = session.home.new_regions();
    let (chunker, zstd_level) = (new.chunker, new.zstd_level);
    let create = NewRegion { name: far.name.clone(), chunker, zstd_level };
    let welcome = session.connect(far, Some(create), None)?.welcome.clone();
    if welcome.chunker != chunker {
        session.watcher.note(&format!(
            "region {} cuts its chunks otherwise than this home's regions: little will be found to be there already",
            far.name
        ));
    }
    let region_id = Some(welcome.region);
    let known = KnownRegion { url: url.to_owned(), remote_path: far.remote_path.clone(), region_id };
    session.home.add_known(&far.name, known, |_| Ok(()))?;
    session.output.answer(
        || {
            json!({
                "region": far.name,
                "region_id": welcome.region,
                "url": url,
                "account_id": welcome.account,
            })
        },
        || format!("{}\n", far.name),
    );
    Ok(())
}

fn show_far(session: &Session<'_>, far: &Far) -> Result<(), CliError> {
    let welcome = session.connect(far, None, None)?.welcome.clone();
    let url = session.home.known(&far.name)?.url.as_str();
    session.output.answer(
        || {
            json!({
                "region": far.name,
                "region_id": welcome.region,
                "url": url,
                "chunker": welcome.chunker,
                "zstd_level": welcome.zstd_level,
                "account_id": welcome.account,
                "guest": welcome.is_guest,
                "version": welcome.program,
            })
        },
        || {
            format!(
                "region      {}\n\
                 id          {}\n\
                 url         {}\n\
                 as account  {}{}\n\
                 imgstore    {}\n",
                far.name,
                welcome.region,
                printable(url),
                welcome.account,
                if welcome.is_guest { ", a guest" } else { "" },
                printable(&welcome.program),
            )
        },
    );
    Ok(())
}

fn list(session: &Session<'_>) -> Result<(), CliError> {
    let regions = session.home.regions();
    session.output.answer(
        || {
            let one = |(name, known): (&String, &KnownRegion)| {
                json!({ "region": name, "url": known.url, "default": name == session.home.default_region() })
            };
            json!({ "regions": regions.iter().map(one).collect::<Value>() })
        },
        || {
            let mark = |name: &String| if name == session.home.region_name() { "*" } else { "" };
            let row = |(name, known): (&String, &KnownRegion)| {
                vec![name.clone(), mark(name).to_owned(), printable(&known.url)]
            };
            table(&["REGION", "IN USE", "URL"], &regions.iter().map(row).collect::<Vec<_>>())
        },
    );
    Ok(())
}

fn show(session: &Session<'_>, name: &str) -> Result<(), CliError> {
    if let Some(far) = session.home.far(name)? {
        return show_far(session, &far);
    }
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
                "provider_id": header.provider,
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
                 made by     account {}\n\
                 created     {}\n\
                 chunks      {} to {} blocks of 4 KiB, a cut about every {}\n\
                 zstd level  {}\n\
                 log         {records} records\n",
                header.id,
                printable(url),
                header.provider,
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
