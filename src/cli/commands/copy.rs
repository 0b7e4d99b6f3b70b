//! copy.

use super::Session;
use super::remote::run_arguments_there;
use crate::cli::args::CopyArgs;
use crate::cli::error::CliError;
use crate::cli::far::{Connection, Far};
use crate::cli::json;
use crate::cli::text::bytes;
use imgstore::io::clock::random_u64;
use imgstore::model::catalog::Catalog;
use imgstore::ops::context::{Context, Progress};
use imgstore::ops::copy::{CopyOptions, CopyWhat, apply, plan};
use imgstore::ops::error::OpsError;
use imgstore::ops::find::AnyId;
use imgstore::ops::source::Source;
use imgstore::region::Region;
use imgstore::serve::message::{Planned, Pulled};
use imgstore::serve::peer::Peer;
use imgstore::serve::push::{Pushed, push};
use serde_json::{Value, json};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// How often a connection that was lost is made anew, as long as nothing comes of it.
const TRIES: u32 = 5;

/// Bytes that a try has to have less to move than all before, for the count to begin anew.
const KEPT_ENOUGH: u64 = 1 << 20;

/// One side of a copy.
enum Place {
    Here(Region),
    Far(Far),
}

pub fn copy(session: &Session<'_>, args: &CopyArgs) -> Result<u8, CliError> {
    let started = Instant::now();
    let what = match args.id {
        AnyId::Image(id) => CopyWhat::Image(id),
        AnyId::Snapshot(id) => CopyWhat::Snapshot(id),
        AnyId::Volume(_) | AnyId::Instance(_) => {
            return Err(CliError::Usage("copy takes an image or a snapshot".into()));
        }
    };
    if let (CopyWhat::Snapshot(_), Some(_)) = (what, &args.name) {
        return Err(CliError::Usage("a snapshot has no name: --name goes with an image".into()));
    }
    let source_name = args.from.as_deref().unwrap_or(session.home.region_name());
    let target_name = if args.to == "." { session.home.region_name() } else { &args.to };
    let source = place(session, source_name)?;
    if target_name == source_name
        && let Place::Far(far) = &source
    {
        return run_arguments_there(session, far, within_arguments(session, args));
    }
    let target = match &source {
        Place::Here(region) if target_name == source_name => Place::Here(region.clone()),
        _ => place(session, target_name)?,
    };
    let mut options = CopyOptions {
        source_region: source_name.to_owned(),
        name: args.name.clone(),
        description: args.description.clone(),
        copy_tags: args.copy_tags,
        client_token: args.client_token.clone(),
        is_guest: false,
        bytes_per_second: None,
    };
    let is_far = matches!((&source, &target), (Place::Far(_), _) | (_, Place::Far(_)));
    if is_far && options.client_token.is_none() {
        // A copy whose answer was lost with the connection is not made twice.
        let random = random_u64().map_err(|e| CliError::Usage(format!("no random bytes: {e}")))?;
        options.client_token = Some(format!("imgstore-{random:016x}"));
    }
    // Of a copy that is made there, it may be the answer that was lost.
    let is_open = matches!(target, Place::Far(_)) && !session.context.dry_run;
    let stopped = || if is_open { OpsError::Unheard } else { OpsError::Interrupted };
    let made = again_if_lost(session, stopped, || {
        let way = Way { session, source: &source, target: &target, limit: args.limit_rate };
        way.copy(what, &options)
    });
    let made = made.inspect_err(|error| note_token(session, &options, args, error))?;
    if made.pulled.as_ref().is_some_and(|pulled| pulled.was_made_before) {
        let why = match args.client_token {
            Some(_) => "this token was used before: nothing was copied again",
            None => "the copy had been made: only its answer was lost with the connection",
        };
        session.watcher.note(why);
    }
    show(session, target_name, &made, started);
    Ok(0)
}

fn place(session: &Session<'_>, name: &str) -> Result<Place, CliError> {
    Ok(match session.home.far(name)? {
        Some(far) => Place::Far(far),
        None => Place::Here(session.home.open_named(name)?),
    })
}

/// The arguments of a copy within a region on another host, for imgstore there.
fn within_arguments(session: &Session<'_>, args: &CopyArgs) -> Vec<String> {
    let mut words = vec!["copy".to_owned(), args.id.to_string(), "--to=.".to_owned()];
    let valued =
        [("name", &args.name), ("description", &args.description), ("client-token", &args.client_token)];
    words.extend(
        valued.iter().filter_map(|(name, value)| value.as_ref().map(|value| format!("--{name}={value}"))),
    );
    let flags = [
        ("copy-tags", args.copy_tags),
        ("json", session.output.is_json()),
        ("quiet", session.watcher.is_quiet()),
        ("dry-run", session.context.dry_run),
    ];
    words.extend(flags.iter().filter(|(_, is_set)| *is_set).map(|(name, _)| format!("--{name}")));
    words
}

/// The copy may have been made where its answer did not come: the next command can ask for that one.
fn note_token(session: &Session<'_>, options: &CopyOptions, args: &CopyArgs, error: &CliError) {
    let is_open = matches!(
        error,
        CliError::Ops(OpsError::ConnectionLost { .. } | OpsError::Unheard | OpsError::Protocol { .. })
            | CliError::NoConnection { .. }
    );
    if let Some(token) = options.client_token.as_deref().filter(|_| is_open && args.client_token.is_none()) {
        session.watcher.note(&format!("the next try makes no second copy with --client-token {token}"));
    }
}

/// Tries anew what ended because a connection did: what came before stays, and is not sent again.
fn again_if_lost(
    session: &Session<'_>,
    stopped: impl Fn() -> OpsError,
    mut attempt: impl FnMut() -> Result<Made, CliError>,
) -> Result<Made, CliError> {
    let (mut failed, mut is_known, mut least) = (0, false, None);
    loop {
        session.watcher.finish();
        let error = match attempt() {
            Err(error @ CliError::Ops(OpsError::ConnectionLost { .. })) => error,
            // By then the one before may have been done.
            Err(CliError::Ops(OpsError::Interrupted)) if is_known => return Err(stopped().into()),
            // That it cannot be made at all is an answer at the first try only.
            Err(error @ CliError::NoConnection { .. }) if is_known => error,
            ended => return ended,
        };
        if session.watcher.is_cancelled() {
            return Err(stopped().into());
        }
        is_known = true;
        // Not what was sent counts, but what the other side kept of it.
        let planned = session.watcher.planned_bytes();
        let is_less =
            |least: u64| planned.is_some_and(|planned| planned.saturating_add(KEPT_ENOUGH) <= least);
        failed = if least.is_some_and(is_less) { 1 } else { failed + 1 };
        least = least.into_iter().chain(planned).min();
        if failed >= TRIES {
            return Err(error);
        }
        let pause = 1 << (failed - 1);
        session.watcher.note(&format!("{error}; trying again in {pause} s"));
        let until = Instant::now() + Duration::from_secs(pause);
        while Instant::now() < until && !session.watcher.is_cancelled() {
            thread::sleep(Duration::from_millis(50));
        }
        if session.watcher.is_cancelled() {
            return Err(stopped().into());
        }
    }
}

/// What became of a copy.
struct Made {
    planned: Planned,
    /// None in a dry run.
    pulled: Option<Pulled>,
    /// What tells of it.
    catalog: Catalog,
}

/// From where to where.
struct Way<'a> {
    session: &'a Session<'a>,
    source: &'a Place,
    target: &'a Place,
    limit: Option<u64>,
}

impl Way<'_> {
    fn copy(&self, what: CopyWhat, options: &CopyOptions) -> Result<Made, CliError> {
        match (self.source, self.target) {
            (Place::Here(source), Place::Here(target)) => {
                let options = CopyOptions { bytes_per_second: self.limit, ..options.clone() };
                self.here(source, target, what, &options)
            }
            (Place::Far(far), Place::Here(target)) => {
                let connection = self.session.connect(far, None, self.limit)?;
                let source = peer(&connection)?;
                self.here(&source, target, what, options)
            }
            (Place::Here(source), Place::Far(far)) => self.there(source, far, what, options),
            (Place::Far(from), Place::Far(to)) => {
                let connection = self.session.connect(from, None, self.limit)?;
                self.there(&peer(&connection)?, to, what, options)
            }
        }
    }

    fn here(
        &self,
        source: &dyn Source,
        target: &Region,
        what: CopyWhat,
        options: &CopyOptions,
    ) -> Result<Made, CliError> {
        let context = &self.session.context;
        let plan = plan(source, target, what, options, context)?;
        let planned = Planned::of(&plan);
        if context.dry_run {
            return Ok(Made { planned, pulled: None, catalog: target.catalog()? });
        }
        let copied = apply(source, target, &plan, options, context)?;
        let pulled = Pulled::of(copied, target, false);
        Ok(Made { planned, pulled: Some(pulled), catalog: target.known_catalog() })
    }

    fn there(
        &self,
        source: &dyn Source,
        far: &Far,
        what: CopyWhat,
        options: &CopyOptions,
    ) -> Result<Made, CliError> {
        let connection = self.session.connect(far, None, self.limit)?;
        let Pushed { planned, pulled } =
            push(connection.link()?, source, what, options, &self.session.context).map_err(|error| {
                match error {
                    // Its end may be on its way here.
                    OpsError::Interrupted if !self.session.context.dry_run => OpsError::Unheard,
                    error => error,
                }
            })?;
        let mut catalog = Catalog::default();
        let template = pulled.as_ref().and_then(|pulled| pulled.template.clone());
        catalog.templates = Arc::new(template.into_iter().map(|template| (template.id, template)).collect());
        Ok(Made { planned, pulled, catalog })
    }
}

fn peer(connection: &Connection) -> Result<Peer<'_>, CliError> {
    let welcome = &connection.welcome;
    Ok(Peer::new(connection.link()?, welcome.region, &welcome.name).asking_as(welcome.account))
}

fn show(session: &Session<'_>, target: &str, made: &Made, started: Instant) {
    let Context { account, .. } = session.context;
    let planned = &made.planned;
    let Some(pulled) = &made.pulled else {
        // What deltas take by themselves is only known once they are.
        let expected = match planned.stored_bytes > planned.transfer_bytes {
            true => format!("; there they take about {}", bytes(planned.stored_bytes)),
            false => String::new(),
        };
        let summary = format!(
            "would move {} to {target}: {} of {} chunks, {} when unpacked{expected}\n",
            bytes(planned.transfer_bytes),
            planned.new_chunks,
            planned.distinct_chunks,
            bytes(planned.new_bytes)
        );
        let document = || {
            let stored_bytes = planned.stored_bytes;
            let mut document = json!({ "dry_run": true, "region": target, "stored_bytes": stored_bytes });
            add_plan(&mut document, planned, planned.transfer_bytes, started);
            document
        };
        return session.output.answer(document, || summary);
    };
    if !pulled.was_made_before {
        session.watcher.note(&format!(
            "{} moved, {} of {} chunks were missing, {:.1} s",
            bytes(pulled.transferred_bytes),
            planned.new_chunks,
            planned.distinct_chunks,
            started.elapsed().as_secs_f64()
        ));
    }
    session.output.answer(
        || {
            // Its owner is who the other side says that we are.
            let mut document = match (&pulled.image, pulled.snapshots.first()) {
                (Some(image), _) => json::image(&made.catalog, image.owner, session.context.now_ms, image),
                (None, Some(snapshot)) => json::snapshot(&made.catalog, snapshot.owner, snapshot),
                (None, None) => json!({ "owner_id": account }),
            };
            document["region"] = target.into();
            document["stored_bytes"] = pulled.stored_bytes.into();
            add_plan(&mut document, planned, pulled.transferred_bytes, started);
            if pulled.was_made_before {
                add_made(&mut document, pulled);
            }
            document
        },
        || match (&pulled.image, pulled.snapshots.first()) {
            (Some(image), _) => format!("{}\n", image.id),
            (None, snapshot) => snapshot.map_or_else(String::new, |snapshot| format!("{}\n", snapshot.id)),
        },
    );
}

/// What is there already was not planned.
fn add_made(document: &mut Value, pulled: &Pulled) {
    let template = pulled.template.as_ref().map(|t| (t.volume_bytes, t.data_bytes, t.manifest.chunks));
    let made = pulled.snapshots.iter().map(|s| (s.volume_bytes, s.data_bytes, s.manifest.chunks));
    let (mut volume_bytes, mut data_bytes, mut chunks) = (0, 0, 0);
    for made in made.chain(template) {
        volume_bytes += made.0;
        data_bytes += made.1;
        chunks += made.2;
    }
    document["volume_bytes"] = volume_bytes.into();
    document["data_bytes"] = data_bytes.into();
    document["chunks"] = chunks.into();
}

fn add_plan(document: &mut Value, planned: &Planned, transferred_bytes: u64, started: Instant) {
    document["volume_bytes"] = planned.volume_bytes.into();
    document["data_bytes"] = planned.data_bytes.into();
    document["new_bytes"] = planned.new_bytes.into();
    document["chunks"] = planned.chunks.into();
    document["new_chunks"] = planned.new_chunks.into();
    document["transferred_bytes"] = transferred_bytes.into();
    document["elapsed_seconds"] = started.elapsed().as_secs_f64().into();
}
