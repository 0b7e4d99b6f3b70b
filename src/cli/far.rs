//! Regions on other hosts: their addresses, and ssh as the way there.

use super::error::CliError;
use super::progress::Watcher;
use super::text::printable;
use imgstore::model::ids::RegionId;
use imgstore::ops::context::Progress;
use imgstore::ops::error::OpsError;
use imgstore::serve::link::Link;
use imgstore::serve::message::{Message, NewRegion, VERSION, Welcome};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How often a waiting connection looks whether the user wants to stop.
const WATCH: Duration = Duration::from_millis(100);
/// How long ssh may take to end by itself.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest line of what ssh says that is shown as one, and most of it that is shown.
const LINE_BYTES_MAX: u64 = 4 << 10;
const STDERR_BYTES_MAX: u64 = 1 << 20;
/// What ssh answers if the other host's shell does not find the command.
const COMMAND_NOT_FOUND: i32 = 127;

/// Where a region on another host is: `ssh://[USER@]HOST[:PORT][/PATH]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Host, perhaps with the user.
    destination: String,
    port: Option<u16>,
    /// The region's directory; none for the region that imgstore uses there.
    path: Option<String>,
}

/// A region on another host.
#[derive(Debug, Clone)]
pub struct Far {
    /// What this home calls it.
    pub name: String,
    /// Where it is.
    pub address: Address,
    /// Where imgstore is there.
    pub remote_path: Option<String>,
    /// The region that it was when it was added.
    pub region_id: Option<RegionId>,
}

impl Address {
    /// The address in a URL; none if it is a directory's.
    pub fn parse(url: &str) -> Result<Option<Self>, CliError> {
        let Some(rest) = url.strip_prefix("ssh://") else { return Ok(None) };
        let wrong = |why: &str| {
            CliError::Usage(format!("'{url}' {why}; one looks like ssh://[USER@]HOST[:PORT]/PATH"))
        };
        let (destination, path) = match rest.split_once('/') {
            Some((destination, path)) => (destination, path),
            None => (rest, ""),
        };
        let path = match path {
            "" => None,
            home if home.starts_with("~/") => Some(home.to_owned()),
            path => Some(format!("/{path}")),
        };
        let (destination, port) = split_port(destination);
        let port = port.map(|port| port.parse::<u16>().map_err(|_| wrong("has no good port"))).transpose()?;
        // What begins with a dash would be an option of ssh's.
        let is_name = |text: &str| {
            // Nor may a shell be asked anything, which old versions of ssh do with what is in its configuration.
            const SHELL: &str = "'\"`$\\;&<>|(){}*?!#";
            let is_plain = |c: char| c.is_ascii_graphic() && !SHELL.contains(c);
            !text.is_empty() && !text.starts_with('-') && text.chars().all(is_plain)
        };
        let parts: Vec<&str> = destination.splitn(2, '@').collect();
        if !parts.iter().all(|part| is_name(part)) {
            return Err(wrong("has no good host or user"));
        }
        if path.as_ref().is_some_and(|path| path.chars().any(char::is_control)) {
            return Err(wrong("has control characters in its path"));
        }
        Ok(Some(Self { destination, port, path }))
    }
}

/// The port behind a host, which may be an IPv6 address in brackets; without those.
fn split_port(destination: &str) -> (String, Option<&str>) {
    let (user, host) = match destination.rsplit_once('@') {
        Some((user, host)) => (format!("{user}@"), host),
        None => (String::new(), destination),
    };
    if let Some((address, rest)) = host.strip_prefix('[').and_then(|host| host.split_once(']')) {
        return (format!("{user}{address}"), rest.strip_prefix(':'));
    }
    match host.split_once(':') {
        Some((host, port)) => (format!("{user}{host}"), Some(port)),
        None => (format!("{user}{host}"), None),
    }
}

/// A word for the other host's shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// A path for the other host's shell, which knows what `~/` is.
fn quoted_path(path: &str) -> String {
    path.strip_prefix("~/").map_or_else(|| quoted(path), |rest| format!("~/{}", quoted(rest)))
}

/// A connection to a region on another host. Dropping it ends it.
pub struct Connection {
    /// What goes over it.
    pub link: Option<Link>,
    /// Who is there.
    pub welcome: Welcome,
    ssh: Arc<Mutex<Child>>,
    is_done: Arc<AtomicBool>,
    watching: Option<JoinHandle<()>>,
}

impl Far {
    /// Connects, and greets.
    pub fn connect(
        &self,
        ssh: &str,
        create: Option<NewRegion>,
        bytes_per_second: Option<u64>,
        watcher: &Arc<Watcher>,
    ) -> Result<Connection, CliError> {
        let mut child = self
            .command(ssh)?
            .spawn()
            .map_err(|source| CliError::Ssh { command: ssh.to_owned(), why: source.to_string() })?;
        if let Some(said) = child.stderr.take() {
            // It ends when ssh does. ssh asks for passwords at the terminal itself.
            thread::spawn(move || tell(said));
        }
        let streams = child.stdout.take().zip(child.stdin.take());
        let Some((reader, writer)) = streams else {
            return Err(CliError::Ssh { command: ssh.to_owned(), why: "it has no streams".into() });
        };
        let (ssh, is_done) = (Arc::new(Mutex::new(child)), Arc::<AtomicBool>::default());
        let watching = watch(ssh.clone(), is_done.clone(), watcher.clone());
        let link = Link::new(Box::new(reader), Box::new(writer), bytes_per_second).map_err(OpsError::from)?;
        let greeted = greet(&link, create);
        let mut connection = Connection {
            link: Some(link),
            welcome: Welcome::nobody(),
            ssh,
            is_done,
            watching: Some(watching),
        };
        match greeted {
            Ok(welcome) => connection.welcome = self.expected(welcome)?,
            Err(error) => return Err(self.not_greeted(connection, error, watcher)),
        }
        Ok(connection)
    }

    /// Refuses another region than the one that was added: what is known of that does not hold for this.
    fn expected(&self, welcome: Welcome) -> Result<Welcome, CliError> {
        match self.region_id {
            Some(expected) if expected != welcome.region => Err(CliError::OtherRegion {
                name: self.name.clone(),
                destination: self.address.destination.clone(),
                expected,
                found: welcome.region,
            }),
            _ => Ok(welcome),
        }
    }

    fn command(&self, ssh: &str) -> Result<Command, CliError> {
        let mut words = ssh.split_whitespace();
        let program = words.next().ok_or_else(|| CliError::Usage("--ssh names no command".into()))?;
        let mut command = Command::new(program);
        command.args(words);
        // Frames are compressed already; a line that is dead is noticed after a minute.
        let options =
            ["Compression=no", "ConnectTimeout=30", "ServerAliveInterval=15", "ServerAliveCountMax=4"];
        for option in options {
            command.args(["-o", option]);
        }
        command.args(["-T", "-e", "none"]);
        if let Some(port) = self.address.port {
            command.args(["-p", &port.to_string()]);
        }
        let program = self.remote_path.as_deref().unwrap_or("imgstore");
        let mut remote = format!("{} remote", quoted_path(program));
        if let Some(path) = &self.address.path {
            remote.push_str(&format!(" --region {}", quoted(path)));
        }
        command.args(["--", &self.address.destination, &remote]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(command)
    }

    /// Why nobody said hello: ssh's own end tells more than that the stream ended.
    fn not_greeted(&self, mut connection: Connection, error: OpsError, watcher: &Watcher) -> CliError {
        if watcher.is_cancelled() {
            return OpsError::Interrupted.into();
        }
        if !matches!(error, OpsError::ConnectionLost { .. }) {
            return CliError::Far { name: self.name.clone(), source: error };
        }
        drop(connection.link.take());
        let why = match connection.wait() {
            Some(COMMAND_NOT_FOUND) => "imgstore was not found there; install it, or add the region with \
                                        --remote-path and the place where it is"
                .to_owned(),
            Some(code) => format!("ssh ended with exit code {code}; what it said stands above"),
            None => "ssh was ended".to_owned(),
        };
        CliError::NoConnection { name: self.name.clone(), destination: self.address.destination.clone(), why }
    }
}

/// Shows what ssh and the other side say, line by line, without what a terminal would obey.
fn tell(said: impl Read) {
    let mut lines = BufReader::new(said.take(STDERR_BYTES_MAX));
    let mut line = Vec::new();
    while matches!(lines.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line), Ok(1..)) {
        let text = String::from_utf8_lossy(&line);
        // Nothing more can be done if the terminal is gone.
        let _ = writeln!(std::io::stderr(), "{}", printable(text.trim_end()));
        line.clear();
    }
}

fn greet(link: &Link, create: Option<NewRegion>) -> Result<Welcome, OpsError> {
    link.send(&Message::Hello { version: VERSION, create })?;
    match link.receive()?.0 {
        Message::Welcome(welcome) if welcome.version == VERSION => Ok(welcome),
        Message::Welcome(welcome) => {
            let why = format!(
                "the other side speaks version {}, and this imgstore version {VERSION}: update the older one",
                welcome.version
            );
            Err(OpsError::Protocol { why })
        }
        Message::Refused(refusal) => Err(refusal.into_error()),
        _ => Err(OpsError::Protocol { why: "the other side does not answer as imgstore does".into() }),
    }
}

/// Ends ssh when the user wants to stop, since nothing else ends a read from it.
fn watch(ssh: Arc<Mutex<Child>>, is_done: Arc<AtomicBool>, watcher: Arc<Watcher>) -> JoinHandle<()> {
    thread::spawn(move || {
        while !is_done.load(Ordering::Relaxed) {
            if watcher.is_cancelled() {
                // It may have ended by itself.
                let _ = ssh.lock().unwrap_or_else(PoisonError::into_inner).kill();
                return;
            }
            thread::park_timeout(WATCH);
        }
    })
}

impl Connection {
    /// What goes over it.
    pub fn link(&self) -> Result<&Link, OpsError> {
        self.link.as_ref().ok_or_else(|| OpsError::ConnectionLost { why: "the connection is closed".into() })
    }

    /// Waits for ssh to end, and ends it if it does not; its exit code.
    fn wait(&mut self) -> Option<i32> {
        let until = Instant::now() + PATIENCE;
        let mut ssh = self.ssh.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match ssh.try_wait() {
                Ok(Some(status)) => return status.code(),
                Ok(None) if Instant::now() < until => thread::sleep(WATCH / 10),
                _ => {
                    let _ = ssh.kill();
                    let _ = ssh.wait();
                    return None;
                }
            }
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // ssh ends when nobody writes to it any more.
        drop(self.link.take());
        self.wait();
        self.is_done.store(true, Ordering::Relaxed);
        if let Some(watching) = self.watching.take() {
            watching.thread().unpark();
            // It ended with nothing to tell.
            let _ = watching.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(url: &str) -> (String, Option<u16>, Option<String>) {
        let address = Address::parse(url).unwrap().unwrap();
        (address.destination, address.port, address.path)
    }

    #[test]
    fn addresses_have_a_host_and_perhaps_more() {
        let path = |text: &str| Some(text.to_owned());
        assert_eq!(address("ssh://far/srv/images"), ("far".into(), None, path("/srv/images")));
        assert_eq!(address("ssh://ann@far:22/~/images"), ("ann@far".into(), Some(22), path("~/images")));
        assert_eq!(address("ssh://[::1]:2222/x"), ("::1".into(), Some(2222), path("/x")));
        assert_eq!(address("ssh://far"), ("far".into(), None, None));
        assert_eq!(address("ssh://far/"), ("far".into(), None, None));
        assert!(Address::parse("/srv/images").unwrap().is_none());
        for bad in [
            "ssh://",
            "ssh:///x",
            "ssh://-oProxyCommand=x/y",
            "ssh://a@-b/y",
            "ssh://@b/y",
            "ssh://a b/y",
            "ssh://a:b/y",
            "ssh://a/\n",
        ] {
            assert!(Address::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn words_for_a_shell_stay_words() {
        assert_eq!(quoted("/srv/a b"), "'/srv/a b'");
        assert_eq!(quoted_path("~/bin/img store"), "~/'bin/img store'");
        assert_eq!(quoted("a'; rm -rf /; '"), r"'a'\''; rm -rf /; '\'''");
    }
}
