//! remote: this home's region for somebody on another host; and commands for a region on another host.

use super::Session;
use super::bundle::is_of_stored;
use crate::cli::args::{Cli, Command};
use crate::cli::error::CliError;
use crate::cli::far::Far;
use crate::cli::home::NewRegions;
use crate::cli::output::plain_json;
use crate::cli::text::without_controls;
use crate::cli::{given_arguments, this_program};
use clap::Parser;
use imgstore::ops::context::Progress;
use imgstore::ops::error::{Class, Code, OpsError};
use imgstore::region::Region;
use imgstore::serve::error::LinkError;
use imgstore::serve::host::{Doors, serve};
use imgstore::serve::link::Link;
use imgstore::serve::message::{Message, NewRegion, PIECE_BYTES};
use serde_json::Value;
use std::ffi::OsString;
use std::io::{IsTerminal, Read, Write};
use std::process::{Child, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// How often a command that runs for a caller is looked at.
const WATCH: Duration = Duration::from_millis(20);
/// How long a caller may say nothing while it is asked: of a line that died sshd may hear nothing for hours, and the copy would
/// keep its memory, and its packs from being collected.
const PATIENCE: Duration = Duration::from_secs(15 * 60);
/// Options that are the other side's own, with a value each: where, as whom, and how much of that host.
const OWN_OPTIONS: [&str; 6] = ["--home", "--region", "--account", "--ssh", "--threads", "--memory"];

/// Serves the caller at the other end of standard input and output.
pub fn remote(session: &Session<'_>) -> Result<(), CliError> {
    let (reader, writer) = (std::io::stdin(), std::io::stdout());
    if reader.is_terminal() || writer.is_terminal() {
        let why = "this is for the other end of an ssh connection: `imgstore region add NAME ssh://HOST/PATH` there";
        return Err(CliError::Usage(why.into()));
    }
    let link = Link::new(Box::new(reader), Box::new(writer), None).map_err(OpsError::from)?;
    let watcher = session.watcher.clone();
    let link = link.giving_up_after(PATIENCE, move || watcher.is_cancelled());
    let is_guest = session.home.is_account_given();
    let program = Program { session, is_guest, refused: Mutex::default() };
    let served = serve(&link, &program, is_guest, &session.context);
    // The line is given up then, as one that was lost.
    session.context.check_cancelled()?;
    served.map_err(|error| {
        let refused = program.refused.into_inner().unwrap_or_else(PoisonError::into_inner);
        refused.unwrap_or_else(|| error.into())
    })
}

struct Program<'a> {
    session: &'a Session<'a>,
    is_guest: bool,
    /// Why there is no region for the caller, in this side's words.
    refused: Mutex<Option<CliError>>,
}

impl Doors for Program<'_> {
    fn open(&self, create: Option<&NewRegion>) -> Result<Region, OpsError> {
        let home = &self.session.home;
        let name = home.region_name();
        let opened = match create {
            Some(new) if !self.is_guest && name.contains('/') => {
                let settings = NewRegions { chunker: new.chunker, zstd_level: new.zstd_level };
                if !new.chunker.is_valid() || !(1..=12).contains(&new.zstd_level) {
                    return Err(OpsError::Protocol { why: "a region cannot be made so".into() });
                }
                home.open_or_create_path(name, &new.name, &settings)
            }
            _ => home.open_named(name),
        };
        opened.map_err(|error| match error {
            CliError::Ops(error) | CliError::Region { source: error, .. } => error,
            error => {
                // This host's configuration is not the caller's mistake.
                let is_config = matches!(error, CliError::Config { .. });
                let class = if is_config { Class::Failed } else { error.class() };
                let heard = OpsError::Peer { class, message: error.to_string() };
                *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                heard
            }
        })
    }

    fn run(&self, arguments: &[String], link: &Link) -> Result<u8, OpsError> {
        check_arguments(arguments, self.is_guest)?;
        let program = this_program().map_err(|e| failed(&e))?;
        let home = &self.session.home;
        let mut command = std::process::Command::new(program);
        command.arg("--home").arg(home.path()).arg("--region").arg(home.region_name());
        // How much of this host a caller has is said to `remote`.
        let context = &self.session.context;
        command.arg("--memory").arg(context.memory_bytes.to_string());
        command.arg("--threads").arg(context.pool.current_num_threads().to_string());
        if !home.maps() {
            command.arg("--no-mmap");
        }
        if self.is_guest {
            command.arg("--account").arg(home.account().to_string());
        }
        command.args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|e| failed(&e))?;
        let (out, error) = (child.stdout.take(), child.stderr.take());
        thread::scope(|scope| {
            for (stream, is_error) in [
                (out.map(|s| Box::new(s) as Box<dyn Read + Send>), false),
                (error.map(|s| Box::new(s) as Box<dyn Read + Send>), true),
            ] {
                if let Some(stream) = stream {
                    let forward = move || forward(stream, is_error, link);
                    if let Err(error) = thread::Builder::new().spawn_scoped(scope, forward) {
                        // Nobody would hear what it says.
                        let _ = child.kill();
                        let _ = child.wait();
                        return Err(failed(&error));
                    }
                }
            }
            wait(&mut child, link)
        })
    }
}

fn failed(error: &std::io::Error) -> OpsError {
    OpsError::Protocol { why: format!("the command cannot be run there: {error}") }
}

fn forward(mut stream: impl Read, is_error: bool, link: &Link) {
    let mut piece = vec![0; PIECE_BYTES];
    while let Ok(len @ 1..) = stream.read(&mut piece) {
        if link.send_with(&Message::Output { is_error }, &piece[..len]).is_err() {
            return;
        }
    }
}

/// Waits for a command, and ends it if the caller goes.
fn wait(child: &mut Child, link: &Link) -> Result<u8, OpsError> {
    loop {
        if let Some(status) = child.try_wait().map_err(|e| failed(&e))? {
            return Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1));
        }
        if link.watch().recv_timeout(WATCH).is_ok() {
            // Whatever it is that came, the caller does not wait any more.
            let _ = child.kill();
            let _ = child.wait();
            return Err(OpsError::ConnectionLost { why: "the caller went".into() });
        }
    }
}

/// Refuses what a caller may not have done here: commands that are about files, or of another region or account.
fn check_arguments(arguments: &[String], is_guest: bool) -> Result<(), OpsError> {
    let usage = |message| OpsError::Rule { code: Code::InvalidParameterValue, message };
    let is_own = |argument: &String| {
        OWN_OPTIONS.iter().any(|own| {
            argument.strip_prefix(own).is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
        })
    };
    if arguments.iter().any(is_own) {
        return Err(usage("region, home and account are the other side's to say".into()));
    }
    let words = std::iter::once("imgstore").chain(arguments.iter().map(String::as_str));
    let cli = Cli::try_parse_from(words).map_err(|e| usage(e.render().to_string()))?;
    let previews = matches!(cli.command, Command::Deregister(_) | Command::DeleteSnapshot { .. });
    match is_for_others(&cli.command) {
        ForOthers::Everybody if is_guest && cli.global.dry_run && previews => {
            let message = "a preview says what others have: guests delete without one".into();
            Err(OpsError::Rule { code: Code::OperationNotPermitted, message })
        }
        ForOthers::Everybody => Ok(()),
        ForOthers::Operators if !is_guest => Ok(()),
        ForOthers::Operators => {
            let message = "this is for those who run the region, not for its guests".into();
            Err(OpsError::Rule { code: Code::OperationNotPermitted, message })
        }
        ForOthers::Nobody => Err(usage(NOT_FAR.into())),
    }
}

const NOT_FAR: &str = "this command works on files of the host that it runs on: run it there, or copy the image to a region here first";

enum ForOthers {
    Everybody,
    Operators,
    Nobody,
}

/// Who may run a command in a region on another host.
fn is_for_others(command: &Command) -> ForOthers {
    match command {
        // A bundle is files.
        Command::Register(args) if args.bundle.is_some() => ForOthers::Nobody,
        Command::Register(_)
        | Command::Images(_)
        | Command::Snapshots(_)
        | Command::Volumes(_)
        | Command::Instances(_)
        | Command::Show { .. }
        | Command::Deregister(_)
        | Command::DeleteSnapshot { .. }
        | Command::Share(_)
        | Command::Tag { .. }
        | Command::Untag { .. }
        | Command::Deprecate { .. }
        | Command::Disable { .. }
        | Command::Enable { .. }
        | Command::Protect(_)
        | Command::Modify(_)
        | Command::Bin(_)
        | Command::Account(_) => ForOthers::Everybody,
        // Within the region. The names of others are the other side's.
        Command::Copy(args) if args.from.is_none() && args.to == "." => ForOthers::Everybody,
        // What deleting gives back, and what a copy had to store, says what others have.
        Command::Stats { .. }
        | Command::Log { follow: false }
        | Command::Gc(_)
        | Command::Repack(_)
        | Command::Verify(_) => ForOthers::Operators,
        Command::Repair(args) if args.from.is_empty() && args.disks.is_empty() => ForOthers::Operators,
        _ => ForOthers::Nobody,
    }
}

/// Whether a command is about the region in use, so that it is run where that is.
pub fn follows_region(command: &Command) -> bool {
    match command {
        // Disks and files here are bundled and unbundled here.
        Command::Bundle(args) => is_of_stored(args),
        Command::Unbundle(_) => false,
        _ => !matches!(command, Command::Copy(_) | Command::Region(_) | Command::Bench(_) | Command::Remote),
    }
}

/// Runs the command that this program was called with where the region is.
pub fn run_there(session: &Session<'_>, command: &Command, far: &Far) -> Result<u8, CliError> {
    if matches!(is_for_others(command), ForOthers::Nobody) {
        return Err(CliError::Usage(format!("region {} is on another host. {NOT_FAR}", far.name)));
    }
    let arguments = arguments_for_there(given_arguments())?;
    run_arguments_there(session, far, arguments)
}

/// Runs a command with these arguments where the region is.
pub fn run_arguments_there(session: &Session<'_>, far: &Far, arguments: Vec<String>) -> Result<u8, CliError> {
    if session.home.is_account_given() {
        let why = "over ssh the account is the one that the other side lets you in with: leave out --account, or run the command on that host";
        return Err(CliError::Usage(why.into()));
    }
    let mut document = session.output.is_json().then(|| Document::of(far));
    let connection = session.connect(far, None, None)?;
    let link = connection.link()?;
    link.send(&Message::Run(arguments)).map_err(OpsError::from)?;
    loop {
        match link.receive() {
            Ok((Message::Output { is_error }, bytes)) => match document.as_mut().filter(|_| !is_error) {
                Some(document) => show(session, false, &document.take(bytes))?,
                None => show(session, is_error, &bytes)?,
            },
            Ok((Message::Exit(code), _)) => {
                show(session, false, &document.map(Document::finish).unwrap_or_default())?;
                return Ok(code);
            }
            ended => {
                // What it had said already is not to be lost.
                show(session, true, &document.map(Document::finish).unwrap_or_default())?;
                return Err(unanswered(session, ended));
            }
        }
    }
}

/// Why a command that ran on another host has no end.
fn unanswered(session: &Session<'_>, ended: Result<(Message, Vec<u8>), LinkError>) -> CliError {
    match ended {
        Ok((Message::Refused(refusal), _)) => refusal.into_error().into(),
        Ok(_) => OpsError::Protocol { why: "another answer than a command's".into() }.into(),
        Err(_) if session.watcher.is_cancelled() => OpsError::Unheard.into(),
        Err(LinkError::Lost { .. }) => {
            let why = "the connection was lost before the end of the command was heard of: look whether it was done \
                       before you run it again";
            OpsError::Protocol { why: why.into() }.into()
        }
        Err(error) => OpsError::from(error).into(),
    }
}

/// Bytes of a document that are held at most. A longer one is shown as it comes.
const DOCUMENT_BYTES_MAX: usize = 64 << 20;

/// The document that a command prints there. In it the region has the name that it has here: there it may have that of another region
/// of this home.
struct Document<'a> {
    region: &'a str,
    bytes: Vec<u8>,
    is_too_long: bool,
}

impl<'a> Document<'a> {
    const fn of(far: &'a Far) -> Self {
        Self { region: far.name.as_str(), bytes: Vec::new(), is_too_long: false }
    }

    /// Takes more of it. Gives what is to be shown at once.
    fn take(&mut self, bytes: Vec<u8>) -> Vec<u8> {
        if self.is_too_long {
            return bytes;
        }
        self.bytes.extend(bytes);
        self.is_too_long = self.bytes.len() > DOCUMENT_BYTES_MAX;
        if self.is_too_long { std::mem::take(&mut self.bytes) } else { Vec::new() }
    }

    /// Gives what has not been shown yet.
    fn finish(self) -> Vec<u8> {
        let mut document: Value = serde_json::from_slice(&self.bytes).unwrap_or_default();
        match document.get_mut("region") {
            Some(region) if region.is_string() => {
                *region = self.region.into();
                format!("{}\n", plain_json(&document)).into_bytes()
            }
            _ => self.bytes,
        }
    }
}

/// What the other side printed. A terminal is not for it to control.
fn show(session: &Session<'_>, is_error: bool, bytes: &[u8]) -> Result<(), CliError> {
    let is_terminal =
        if is_error { std::io::stderr().is_terminal() } else { std::io::stdout().is_terminal() };
    let harmless = if is_terminal { without_controls(bytes) } else { bytes.to_vec() };
    if is_error {
        // Nothing more can be done if the terminal is gone.
        let _ = std::io::stderr().write_all(&harmless);
        return Ok(());
    }
    session.output.print(&harmless).map_err(|e| match e.kind() {
        std::io::ErrorKind::BrokenPipe => CliError::ReaderGone,
        _ => CliError::Output(e),
    })
}

/// This call's arguments without those that are about this side.
fn arguments_for_there(given: impl Iterator<Item = OsString>) -> Result<Vec<String>, CliError> {
    let (mut kept, mut given) = (Vec::new(), given.peekable());
    while let Some(argument) = given.next() {
        let text = argument
            .into_string()
            .map_err(|_| CliError::Usage("arguments for another host have to be UTF-8".into()))?;
        if OWN_OPTIONS.contains(&text.as_str()) {
            given.next();
        } else if !OWN_OPTIONS
            .iter()
            .any(|own| text.strip_prefix(own).is_some_and(|rest| rest.starts_with('=')))
        {
            kept.push(text);
        }
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn what_is_about_this_side_stays_here() {
        let given = "--region far images --home /x --json --account=000000000001 --owner all";
        let kept = arguments_for_there(given.split(' ').map(OsString::from)).unwrap();
        assert_eq!(kept, words("images --json --owner all"));
    }

    #[test]
    fn what_is_printed_there_does_not_control_a_terminal_here() {
        let hostile = "a\u{1b}[2J\u{9b}1mb\r\tü\n".as_bytes();
        assert_eq!(String::from_utf8(without_controls(hostile)).unwrap(), "a?[2J?1mb?\tü\n");
        assert!(!without_controls(&[0x9b, b'm']).contains(&0x9b));
    }

    #[test]
    fn guests_and_callers_run_what_they_may() {
        for good in ["images", "show ami-0123456789abcdef0", "bin list"] {
            assert!(check_arguments(&words(good), true).is_ok(), "{good}");
        }
        for operators in
            ["gc", "gc --dry-run", "verify", "log", "stats ami-0123456789abcdef0", "repack", "repair"]
        {
            assert!(check_arguments(&words(operators), false).is_ok(), "{operators}");
            assert!(check_arguments(&words(operators), true).is_err(), "{operators}");
        }
        for bad in [
            "snapshot /etc/passwd",
            "register --name web --bundle /etc/passwd",
            "export ami-0123456789abcdef0 /root/.ssh/authorized_keys",
            "launch ami-0123456789abcdef0",
            "images --account 000000000001",
            "images --region=/etc",
            "--home /root images",
            "region add x /y",
            "repair --disk /etc/passwd",
            "remote",
            "log --follow",
            "nonsense",
        ] {
            assert!(check_arguments(&words(bad), false).is_err(), "{bad}");
        }
    }
}
