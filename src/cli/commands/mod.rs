//! The commands: arguments to a verb, its answer to text or JSON.

mod account;
mod bench;
mod bundle;
mod copy;
mod describe;
mod devices;
mod diff;
mod export;
mod gc;
mod history;
mod ingest;
mod instances;
mod modify;
mod region;
mod remote;
mod remove;
mod repack;
mod repair;
mod snapshot;
mod upkeep;
mod volumes;

use super::args::{AccountCommand, BenchCommand, Cli, Command, RegionCommand};
use super::error::CliError;
use super::far::{Connection, Far};
use super::home::Home;
use super::output::Output;
use super::progress::{Watcher, warn};
use super::text::time;
use clap::CommandFactory;
use imgstore::model::ids::MalformedId;
use imgstore::ops::context::{Context, Progress};
use imgstore::ops::error::{Class, OpsError};
use imgstore::region::Region;
use imgstore::serve::message::NewRegion;
use serde_json::{Value, json};
use std::str::FromStr;
use std::sync::{Arc, Mutex};

/// What every command works with.
pub struct Session<'a> {
    pub home: Home,
    pub context: Context<'a>,
    pub output: &'a Output,
    pub watcher: &'a Arc<Watcher>,
    /// What connects to other hosts.
    pub ssh: &'a str,
    /// What became of the parts of disks with `--skip-free`.
    pub free_space: Mutex<Vec<Value>>,
}

impl Session<'_> {
    /// The context for what puts times on record by which things go: a clock that is surely behind must not make them go at once.
    pub fn timed(&self, region: &Region) -> Result<Context<'_>, CliError> {
        let now_ms = region.time_on_record(self.context.now_ms)?;
        if now_ms != self.context.now_ms {
            warn(&format!(
                "this machine's clock says {}, before the region was made: the time of its newest record is taken, {}. Set the clock",
                time(self.context.now_ms),
                time(now_ms)
            ));
        }
        Ok(Context { now_ms, ..self.context })
    }

    /// What a command tells; nothing, if that is all that there is to tell to who wants quiet.
    fn told(&self, text: String) -> String {
        let is_nothing = ["no damage found\n", "nothing to collect\n"].contains(&text.as_str());
        if is_nothing && self.watcher.is_quiet() { String::new() } else { text }
    }

    /// Connects to a region on another host.
    pub fn connect(
        &self,
        far: &Far,
        create: Option<NewRegion>,
        bytes_per_second: Option<u64>,
    ) -> Result<Connection, CliError> {
        far.connect(self.ssh, create, bytes_per_second, self.watcher)
    }
}

/// Runs a command; gives the exit code.
pub fn run(cli: &Cli, output: &Output, watcher: &Arc<Watcher>) -> Result<u8, CliError> {
    match &cli.command {
        Command::Completions { shell } => return print_completions(*shell, output),
        Command::Man { command } => return print_manual(command, output),
        _ => {}
    }
    let threads = cli.global.threads.map_or(0, usize::from);
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|number| format!("compute-{number}"))
        .build()
        .map_err(|e| CliError::Usage(format!("threads cannot be started: {e}")))?;
    let home = Home::open(&cli.global, makes_a_home(cli), matches!(cli.command, Command::Repair(_)))?;
    let context = Context {
        account: home.account(),
        now_ms: imgstore::io::clock::now_ms(),
        dry_run: cli.global.dry_run,
        pool: &pool,
        memory_bytes: cli.global.memory.max(16 << 20),
        progress: &**watcher,
    };
    let ssh = cli.global.ssh.as_str();
    let mut session = Session { home, context, output, watcher, ssh, free_space: Mutex::default() };
    if remote::follows_region(&cli.command)
        && let Some(far) = session.home.far(session.home.region_name())?
    {
        return remote::run_there(&session, &cli.command, &far);
    }
    let result = dispatch(&mut session, &cli.command);
    if cli.global.dry_run { end_dry_run(&session, result) } else { result }
}

/// Whether a command makes something new each time: an id that is lost with its answer is not told again.
pub const fn makes_something(command: &Command) -> bool {
    matches!(
        command,
        Command::Snapshot(_)
            | Command::Import(_)
            | Command::Bundle(_)
            | Command::Unbundle(_)
            | Command::Register(_)
            | Command::Copy(_)
            | Command::CreateImage(_)
            | Command::CreateSnapshot(_)
            | Command::CreateVolume(_)
            | Command::Launch(_)
    )
}

/// Whether a command is of use where nothing is yet: it makes something, or is about a region that it names by its path.
fn makes_a_home(cli: &Cli) -> bool {
    let is_path = |name: &Option<String>| name.as_ref().is_some_and(|name| name.contains('/'));
    match &cli.command {
        _ if is_path(&cli.global.region) => true,
        Command::Region(command) => matches!(command, RegionCommand::Add { .. }),
        Command::Account(command) => !matches!(command, AccountCommand::Show),
        Command::Copy(args) => is_path(&args.from),
        Command::Snapshot(_)
        | Command::Import(_)
        | Command::Bundle(_)
        | Command::Unbundle(_)
        | Command::Register(_)
        | Command::CreateVolume(_)
        | Command::Bench(_)
        | Command::Remote => true,
        _ => false,
    }
}

/// What a dry run ends with: that it would have succeeded is the answer, not an error.
fn end_dry_run(session: &Session<'_>, result: Result<u8, CliError>) -> Result<u8, CliError> {
    let error = match result {
        Err(CliError::Ops(error)) => error.in_dry_run(),
        other => return other,
    };
    if error.class() != Class::DryRun {
        return Err(error.into());
    }
    session.watcher.note("the request would succeed; nothing was changed");
    session.output.answer(|| json!({ "dry_run": true, "code": error.code() }), String::new);
    Ok(0)
}

fn dispatch(session: &mut Session<'_>, command: &Command) -> Result<u8, CliError> {
    match command {
        Command::Snapshot(args) => return snapshot::snapshot(session, args),
        Command::Import(args) => ingest::import(session, args),
        Command::Register(args) => ingest::register(session, args),
        Command::Images(args) => describe::images(session, args),
        Command::Snapshots(args) => describe::snapshots(session, args),
        Command::Volumes(args) => describe::volumes(session, args),
        Command::Instances(args) => describe::instances(session, args),
        Command::Show { id } => describe::show(session, *id),
        Command::Copy(args) => return copy::copy(session, args),
        Command::Export(args) => return export::export(session, args),
        Command::Bundle(args) => bundle::bundle(session, args),
        Command::Unbundle(args) => bundle::unbundle(session, args),
        Command::Launch(args) => instances::launch(session, args),
        Command::CreateImage(args) => instances::create_image(session, args),
        Command::Stop { instances } => instances::stop(session, instances),
        Command::Start { instances } => instances::start(session, instances),
        Command::Terminate { instances } => instances::terminate(session, instances),
        Command::CreateSnapshot(args) => volumes::create_snapshot(session, args),
        Command::CreateVolume(args) => volumes::create(session, args),
        Command::DeleteVolume { volume } => volumes::delete(session, *volume),
        Command::AttachVolume { volume, instance, device } => {
            volumes::attach(session, *volume, *instance, device)
        }
        Command::DetachVolume { volume } => volumes::detach(session, *volume),
        Command::Share(args) => modify::share(session, args),
        Command::Tag { id, tags } => modify::tag(session, *id, tags, &[]),
        Command::Untag { id, keys } => modify::tag(session, *id, &[], keys),
        Command::Deprecate { image, at, cancel: _ } => modify::deprecate(session, *image, *at),
        Command::Disable { image } => modify::disable(session, *image),
        Command::Enable { image } => modify::enable(session, *image),
        Command::Protect(args) => modify::protect(session, args),
        Command::Modify(args) => modify::modify(session, args),
        Command::Deregister(args) => remove::deregister(session, args),
        Command::DeleteSnapshot { snapshot } => remove::delete_snapshot(session, *snapshot),
        Command::Bin(command) => remove::bin(session, command),
        Command::Account(command) => account::account(session, command),
        Command::Diff(args) => diff::diff(session, args),
        Command::Stats { ids } => upkeep::stats(session, ids),
        Command::Gc(args) => gc::gc(session, args),
        Command::Repack(args) => repack::repack(session, args),
        Command::Bench(BenchCommand::Dedup(args)) => bench::dedup(session, args),
        Command::Verify(args) => return upkeep::verify(session, args),
        Command::Repair(args) => return repair::repair(session, args),
        Command::Region(command) => region::region(session, command),
        Command::Remote => remote::remote(session),
        Command::Log { follow } => return history::log(session, *follow),
        Command::Completions { .. } | Command::Man { .. } => Ok(()),
    }?;
    Ok(0)
}

fn print_completions(shell: clap_complete::Shell, output: &Output) -> Result<u8, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "imgstore", &mut script);
    output.answer(
        || json!({ "script": String::from_utf8_lossy(&script) }),
        || String::from_utf8_lossy(&script).into_owned(),
    );
    Ok(0)
}

fn print_manual(names: &[String], output: &Output) -> Result<u8, CliError> {
    let mut all = Cli::command().disable_help_subcommand(true);
    // Gives each the options of those above it, and its whole name.
    all.build();
    let mut command = &all;
    for name in names {
        let missing = || format!("`{} {name}` is no command", command.get_bin_name().unwrap_or("imgstore"));
        command = command.find_subcommand(name).ok_or_else(|| CliError::Usage(missing()))?;
    }
    let mut page = Vec::new();
    let source = concat!("imgstore ", env!("CARGO_PKG_VERSION"));
    clap_mangen::Man::new(command.clone()).source(source).render(&mut page).map_err(CliError::Output)?;
    output.answer(
        || json!({ "page": String::from_utf8_lossy(&page) }),
        || String::from_utf8_lossy(&page).into_owned(),
    );
    Ok(0)
}

/// Reads an id that stands inside another argument.
fn parse_id<T: FromStr<Err = MalformedId>>(text: &str) -> Result<T, CliError> {
    text.parse().map_err(|error: MalformedId| OpsError::from(error).into())
}
