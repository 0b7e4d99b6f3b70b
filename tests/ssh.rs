//! The program and a region on another host: over something that only looks like ssh, and over a real sshd behind a slow,
//! long line.

mod common;

use common::{Draw, clean};
use serde_json::Value;
use std::collections::VecDeque;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_imgstore");

/// Two homes: ours, and that of the other host.
struct Hosts {
    folder: tempfile::TempDir,
    ssh: String,
}

impl Hosts {
    /// Something that is called as ssh is and runs the last argument here, with the other host's home.
    fn new() -> Self {
        Self::with_script("exec sh -c \"$command\"")
    }

    fn with_script(run: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("ssh");
        let there = folder.path().join("there");
        let text = format!(
            "#!/bin/sh\nfor word; do command=$word; done\nexport IMGSTORE_HOME='{}'\n{run}\n",
            there.display()
        );
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        let ssh = script.to_str().unwrap().to_owned();
        Self { folder, ssh }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, home: &str, arguments: &[&str]) -> Command {
        let mut command = clean(Command::new(PROGRAM));
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("IMGSTORE_HOME", self.path(home)).env("IMGSTORE_SSH", &self.ssh);
        command.args(arguments).stdin(Stdio::null());
        command
    }

    fn try_run(&self, home: &str, arguments: &[&str]) -> Output {
        self.command(home, arguments).output().unwrap()
    }

    /// Standard output of a command that succeeds.
    fn run(&self, home: &str, arguments: &[&str]) -> String {
        let output = self.try_run(home, arguments);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {error}");
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    fn json(&self, home: &str, arguments: &[&str]) -> Value {
        let mut arguments = arguments.to_vec();
        arguments.push("--json");
        serde_json::from_str(&self.run(home, &arguments)).unwrap()
    }

    /// Exit code and standard error of a command that fails.
    fn fail(&self, home: &str, arguments: &[&str]) -> (i32, String) {
        let output = self.try_run(home, arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{arguments:?} succeeded");
        (output.status.code().unwrap(), said)
    }

    fn disk(&self, name: &str, len: usize, seed: u64) -> String {
        let path = self.path(name);
        fs::write(&path, common::volume(len, seed)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn add_far(&self) -> String {
        let url = format!("ssh://far.example{}", self.path("far-region").display());
        self.run("here", &["region", "add", "far", &url, "--remote-path", PROGRAM]);
        url
    }
}

#[test]
fn copies_go_both_ways_and_commands_are_run_there() {
    let hosts = Hosts::new();
    let disk = hosts.disk("disk.raw", 5_000_000, 1);
    let image = hosts.run("here", &["import", &disk, "--name", "web-1", "--tag", "env=prod"]);
    let url = hosts.add_far();
    assert!(hosts.run("here", &["region", "list"]).contains(&url));
    let planned = hosts.json("here", &["copy", &image, "--to", "far", "--dry-run"]);
    assert_eq!(planned["dry_run"], true);
    let copied = hosts.json("here", &["copy", &image, "--to", "far", "--copy-tags"]);
    assert_eq!(copied["transferred_bytes"], planned["transferred_bytes"]);
    assert_eq!(copied["region"], "far");
    assert_eq!(copied["tags"][0]["key"], "env");
    let far = copied["image_id"].as_str().unwrap().to_owned();
    let shown = hosts.json("here", &["region", "show", "far"]);
    assert_eq!((&shown["account_id"], &shown["guest"]), (&copied["owner_id"], &Value::from(false)));
    // What is there is seen from here.
    let listed = hosts.json("here", &["--region", "far", "images"]);
    assert_eq!(listed["images"][0]["image_id"], *far);
    hosts.run("here", &["--region", "far", "tag", &far, "seen=yes"]);
    let shown = hosts.json("here", &["show", &far, "--region=far"]);
    assert!(shown.to_string().contains("seen"));
    assert_eq!(shown["region"], "far", "as it is called here");
    // What is no document of a region's is as it was.
    assert_eq!(
        hosts.json("here", &["--region", "far", "snapshots"])["snapshots"].as_array().unwrap().len(),
        1
    );
    assert_eq!(hosts.run("here", &["--region", "far", "verify"]), "no damage found");
    assert_eq!(hosts.run("here", &["--region", "far", "repair"]), "no damage found");
    assert_eq!(hosts.json("here", &["--region", "far", "gc", "--dry-run"])["dry_run"], true);
    // Within it, and back, into a region that has nothing.
    let within = hosts.run("here", &["copy", &far, "--from", "far", "--to", "far", "--name", "web-again"]);
    assert!(within.starts_with("ami-") && within != far, "{within}");
    hosts.run("here", &["region", "add", "empty", hosts.path("empty").to_str().unwrap()]);
    let back = hosts.run("here", &["copy", &far, "--from", "far", "--to", "empty"]);
    let out = hosts.path("out.raw");
    hosts.run("here", &["--region", "empty", "export", &back, out.to_str().unwrap()]);
    assert!(fs::read(&out).unwrap() == fs::read(&disk).unwrap());
    // From one place that is far to another.
    let other = format!("ssh://other.example{}", hosts.path("other-region").display());
    hosts.run("here", &["region", "add", "other", &other, "--remote-path", PROGRAM]);
    let through = hosts.run("here", &["copy", &far, "--from", "far", "--to", "other"]);
    assert!(hosts.run("here", &["--region", "other", "images"]).contains(&through));
    assert_eq!(hosts.run("here", &["--region", "other", "verify"]), "no damage found");
}

/// Another region at the same address is not the one that was added, whoever made it.
#[test]
fn another_region_at_the_same_address_is_refused() {
    let hosts = Hosts::new();
    let disk = hosts.disk("disk.raw", 100_000, 1);
    let image = hosts.run("here", &["import", &disk, "--name", "web-1"]);
    let url = hosts.add_far();
    let config = hosts.path("here/config.toml");
    let id = hosts.json("here", &["region", "show", "far"])["region_id"].as_str().unwrap().to_owned();
    assert!(fs::read_to_string(&config).unwrap().contains(&format!("region_id = \"{id}\"")));
    hosts.run("here", &["copy", &image, "--to", "far"]);
    fs::rename(hosts.path("far-region"), hosts.path("aside")).unwrap();
    hosts.run("there", &["region", "add", "again", hosts.path("far-region").to_str().unwrap()]);
    let commands: [&[&str]; 5] = [
        &["region", "show", "far"],
        &["--region", "far", "images"],
        &["--region", "far", "gc"],
        &["copy", &image, "--to", "far"],
        &["copy", &image, "--from", "far", "--to", "local"],
    ];
    for words in commands {
        let (code, said) = hosts.fail("here", words);
        assert!(
            code == 6 && said.contains(&id) && said.contains("imgstore region remove far"),
            "{words:?}: {said}"
        );
    }
    let document = hosts.try_run("here", &["region", "show", "far", "--json"]).stdout;
    assert!(String::from_utf8_lossy(&document).contains("\"InvalidRegion.Changed\""));
    let listed = hosts.run("there", &["--region", hosts.path("far-region").to_str().unwrap(), "images"]);
    assert_eq!(listed.lines().count(), 1, "nothing came there: {listed}");
    // What was added before ids were remembered takes what is there.
    let text = fs::read_to_string(&config).unwrap();
    let without: Vec<&str> = text.lines().filter(|line| !line.starts_with("region_id")).collect();
    fs::write(&config, without.join("\n")).unwrap();
    hosts.run("here", &["region", "show", "far"]);
    fs::write(&config, text).unwrap();
    hosts.fail("here", &["region", "show", "far"]);
    hosts.run("here", &["region", "remove", "far"]);
    hosts.run("here", &["region", "add", "far", &url, "--remote-path", PROGRAM]);
    hosts.run("here", &["copy", &image, "--to", "far"]);
}

#[test]
fn what_cannot_be_done_there_is_said_so() {
    let hosts = Hosts::new();
    let disk = hosts.disk("disk.raw", 100_000, 1);
    let image = hosts.run("here", &["import", &disk, "--name", "web-1"]);
    hosts.add_far();
    let far = |words: &[&str]| {
        let mut arguments = vec!["--region", "far"];
        arguments.extend(words);
        hosts.fail("here", &arguments)
    };
    for words in [
        &["import", &disk, "--name", "x-1"] as &[&str],
        &["launch", &image],
        &["export", &image, "/tmp/never"],
        &["log", "--follow"],
    ] {
        let (code, said) = far(words);
        assert!(code == 2 && said.contains("another host"), "{code}: {said}");
    }
    let (code, said) = far(&["images", "--account", "000000000001"]);
    assert!(code == 2 && said.contains("account"), "{said}");
    let within = ["copy", &image, "--from", "far", "--to", "far", "--account", "000000000001"];
    let (code, said) = hosts.fail("here", &within);
    assert!(code == 2 && said.contains("account"), "{said}");
    let (code, said) = far(&["show", "ami-0123456789abcdef0"]);
    assert!(code == 3 && said.contains("ami-0123456789abcdef0"), "{said}");
    let missing = hosts.fail("here", &["copy", "ami-0123456789abcdef0", "--from", "far", "--to", "local"]);
    assert_eq!(missing.0, 3, "{}", missing.1);
    // A name that is taken there.
    hosts.run("here", &["copy", &image, "--to", "far"]);
    let (code, said) = hosts.fail("here", &["copy", &image, "--to", "far"]);
    assert!(code == 6 && said.contains("already in use"), "{said}");
    let json = hosts.try_run("here", &["copy", &image, "--to", "far", "--json"]);
    let document: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(document["error"]["code"], "InvalidAMIName.Duplicate");
    for bad in ["ssh://-oProxyCommand=x/y", "ssh://", "ssh://a b/c"] {
        assert_eq!(hosts.fail("here", &["region", "add", "bad", bad]).0, 2, "{bad}");
    }
}

#[test]
fn nobody_there_is_told_from_no_imgstore_there() {
    let hosts = Hosts::with_script("exit 255");
    let url = format!("ssh://far.example{}", hosts.path("far-region").display());
    let (code, said) = hosts.fail("here", &["region", "add", "far", &url]);
    assert!(code == 1 && said.contains("exit code 255"), "{code}: {said}");
    assert!(!hosts.run("here", &["region", "list"]).contains("far"), "it is known all the same");
    let hosts = Hosts::with_script("exec sh -c 'no-such-imgstore'");
    let (_, said) = hosts.fail("here", &["region", "add", "far", &url]);
    assert!(said.contains("--remote-path"), "{said}");
    // Somebody who says something else.
    let hosts = Hosts::with_script("echo Welcome to far; cat");
    let (code, said) = hosts.fail("here", &["region", "add", "far", &url]);
    assert!(code == 1 && said.contains("protocol"), "{said}");
    // And nothing at all to connect with.
    let mut hosts = Hosts::new();
    hosts.ssh = "/no/such/ssh".into();
    let (code, said) = hosts.fail("here", &["region", "add", "far", &url]);
    assert!(code == 1 && said.contains("OpenSSH"), "{said}");
}

/// Whoever stops a host does not wait for its callers.
#[test]
fn a_host_ends_on_sigterm_while_its_caller_says_nothing() {
    let hosts = Hosts::new();
    let disk = hosts.disk("disk.raw", 100_000, 1);
    hosts.run("there", &["snapshot", &disk]);
    let mut host = hosts.command("there", &["remote"]);
    let mut host = host.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    thread::sleep(Duration::from_millis(500));
    assert!(host.try_wait().unwrap().is_none(), "it waits for its caller");
    let kill = Command::new("kill").args(["-TERM", &host.id().to_string()]).status().unwrap();
    assert!(kill.success());
    let began = Instant::now();
    let status = loop {
        match host.try_wait().unwrap() {
            Some(status) => break status,
            None if began.elapsed() > Duration::from_secs(20) => panic!("it goes on"),
            None => thread::sleep(Duration::from_millis(20)),
        }
    };
    assert_eq!(status.code(), Some(8), "{status}");
}

/// What is wrong with the other host is not the caller's mistake.
#[test]
fn a_disk_that_is_not_mounted_there_has_the_same_code_here() {
    let hosts = Hosts::with_script(&format!("exec '{PROGRAM}' remote"));
    let disk = hosts.disk("disk.raw", 100_000, 1);
    hosts.run("there", &["import", &disk, "--name", "web-1"]);
    hosts.run("here", &["region", "add", "far", "ssh://far.example/"]);
    hosts.run("here", &["--region", "far", "images"]);
    let (folder, aside) = (hosts.path("there/regions/local"), hosts.path("aside"));
    fs::rename(&folder, &aside).unwrap();
    let copy = ["copy", "ami-0123456789abcdef0", "--from", "far", "--to", "local"];
    for words in [&["--region", "far", "images"] as &[&str], &copy] {
        let (code, said) = hosts.fail("here", words);
        assert!(code == 3 && said.contains("If its disk is not mounted"), "{code}: {said}");
        // That host says so in its own words, and so does this one.
        assert_eq!(said.matches("the other side:").count(), 1, "{said}");
    }
    fs::rename(&aside, &folder).unwrap();
    hosts.run("here", &["--region", "far", "images"]);
}

#[test]
fn a_forced_command_makes_a_guest_of_whoever_calls() {
    let forced = format!("exec '{PROGRAM}' remote --account 000000000042");
    let hosts = Hosts::with_script(&forced);
    let disk = hosts.disk("disk.raw", 1_000_000, 1);
    let secret = hosts.run("there", &["import", &disk, "--name", "secret"]);
    // What it says of the place counts for nothing.
    hosts.run("here", &["region", "add", "far", "ssh://far.example/somewhere/else"]);
    assert!(!Path::new("/somewhere/else").exists());
    let shown = hosts.json("here", &["region", "show", "far"]);
    assert_eq!((&shown["account_id"], &shown["guest"]), (&"000000000042".into(), &true.into()));
    assert_eq!(hosts.json("here", &["--region", "far", "images"])["images"], Value::Array(vec![]));
    assert_eq!(hosts.fail("here", &["copy", &secret, "--from", "far", "--to", "local"]).0, 3);
    for operators in [&["gc"] as &[&str], &["verify"], &["stats"], &["repack"], &["repair"]] {
        let arguments = [&["--region", "far"], operators].concat();
        let (code, said) = hosts.fail("here", &arguments);
        assert!(code == 4 && said.contains("guests"), "{operators:?}: {code} {said}");
    }
    // The same content from somebody else is theirs to bring.
    let image = hosts.run("here", &["import", &disk, "--name", "mine-1"]);
    let copied = hosts.json("here", &["copy", &image, "--to", "far"]);
    assert_eq!((&copied["owner_id"], &copied["new_chunks"]), (&"000000000042".into(), &copied["chunks"]));
    assert_eq!(hosts.run("there", &["verify"]), "no damage found");
}

#[test]
fn a_limit_of_the_rate_is_kept_there_and_here() {
    let hosts = Hosts::new();
    let disk = hosts.path("noise.raw");
    let mut draw = Draw::new(4);
    let noise: Vec<u8> = (0..1 << 18).flat_map(|_| draw.next().to_le_bytes()).collect();
    fs::write(&disk, noise).unwrap();
    let image = hosts.run("here", &["import", disk.to_str().unwrap(), "--name", "noise"]);
    hosts.add_far();
    hosts.run("here", &["region", "add", "near", hosts.path("near").to_str().unwrap()]);
    for place in ["far", "near"] {
        let started = Instant::now();
        hosts.run("here", &["copy", &image, "--to", place, "--limit-rate", "1MiB"]);
        let seconds = started.elapsed().as_secs_f64();
        assert!(seconds > 1.5, "2 MiB at 1 MiB/s to {place} took {seconds} s");
    }
}

/// A relay that makes a line long and narrow: what comes is passed on so much later, and at most so fast.
struct Relay {
    port: u16,
    passed: Arc<AtomicU64>,
    broken: Arc<AtomicBool>,
}

const ONE_WAY: Duration = Duration::from_millis(25);
const BYTES_PER_SECOND: u64 = 100_000_000 / 8;
/// What a router keeps before it lets the sender wait.
const QUEUE_BYTES: usize = 1 << 20;

impl Relay {
    fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let relay = Self {
            port: listener.local_addr().unwrap().port(),
            passed: Arc::default(),
            broken: Arc::default(),
        };
        let (passed, broken) = (relay.passed.clone(), relay.broken.clone());
        thread::spawn(move || {
            for incoming in listener.incoming() {
                let Ok(incoming) = incoming else { return };
                let Ok(outgoing) = TcpStream::connect(("127.0.0.1", port)) else { return };
                let ways =
                    [(incoming.try_clone().unwrap(), outgoing.try_clone().unwrap()), (outgoing, incoming)];
                for (from, to) in ways {
                    let (passed, broken) = (passed.clone(), broken.clone());
                    thread::spawn(move || pass(from, to, &passed, &broken));
                }
            }
        });
        relay
    }
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
    is_ended: bool,
}

fn pass(mut from: TcpStream, mut to: TcpStream, passed: &AtomicU64, broken: &AtomicBool) {
    let shared: Arc<(Mutex<Queue>, Condvar)> = Arc::default();
    let reading = shared.clone();
    let reader = thread::spawn(move || {
        let (queue, changed) = &*reading;
        let mut buffer = vec![0; 16 << 10];
        while let Ok(len @ 1..) = from.read(&mut buffer) {
            let mut queue = queue.lock().unwrap();
            while queue.bytes > QUEUE_BYTES && !queue.is_ended {
                queue = changed.wait(queue).unwrap();
            }
            if queue.is_ended {
                return;
            }
            queue.waiting.push_back((Instant::now() + ONE_WAY, buffer[..len].to_vec()));
            queue.bytes += len;
            changed.notify_all();
        }
        queue.lock().unwrap().is_ended = true;
        changed.notify_all();
    });
    let (queue, changed) = &*shared;
    let mut free = Instant::now();
    loop {
        let mut waiting = queue.lock().unwrap();
        while waiting.waiting.is_empty() && !waiting.is_ended {
            waiting = changed.wait(waiting).unwrap();
        }
        let Some((due, bytes)) = waiting.waiting.pop_front() else { break };
        waiting.bytes -= bytes.len();
        changed.notify_all();
        drop(waiting);
        free = free.max(due) + Duration::from_nanos(bytes.len() as u64 * 1_000_000_000 / BYTES_PER_SECOND);
        thread::sleep(free.saturating_duration_since(Instant::now()));
        if broken.load(Ordering::SeqCst) || to.write_all(&bytes).is_err() {
            break;
        }
        passed.fetch_add(bytes.len() as u64, Ordering::SeqCst);
    }
    queue.lock().unwrap().is_ended = true;
    changed.notify_all();
    let _ = to.shutdown(std::net::Shutdown::Both);
    drop(reader);
}

/// A real sshd with keys of its own.
struct Sshd {
    server: Child,
    port: u16,
    folder: tempfile::TempDir,
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

impl Sshd {
    /// None where there is none, or none that may be started so.
    fn start() -> Option<Self> {
        let program =
            ["/usr/sbin/sshd", "/usr/local/sbin/sshd"].into_iter().find(|p| Path::new(p).exists())?;
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for key in ["host", "user"] {
            let mut keygen = Command::new("ssh-keygen");
            keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(path(key));
            keygen.status().ok().filter(|status| status.success())?;
        }
        fs::copy(path("user.pub"), path("authorized")).unwrap();
        // Where it goes by itself to have fewer rights, if it is root's.
        let _ = fs::create_dir_all("/run/sshd");
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {host}\nAuthorizedKeysFile {authorized}\n\
             StrictModes no\nUsePAM no\nPidFile none\nAcceptEnv IMGSTORE_HOME\n",
            host = path("host").display(),
            authorized = path("authorized").display(),
        );
        fs::write(path("config"), config).unwrap();
        let mut command = Command::new(program);
        command.args(["-D", "-e", "-f"]).arg(path("config")).stderr(Stdio::null());
        let server = command.spawn().ok()?;
        let sshd = Self { server, port, folder };
        let is_up = (0..100).any(|_| {
            thread::sleep(Duration::from_millis(50));
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        is_up.then_some(sshd)
    }

    fn ssh(&self) -> String {
        let path = |name: &str| self.folder.path().join(name).display().to_string();
        format!(
            "ssh -F none -i {} -o UserKnownHostsFile={} -o StrictHostKeyChecking=no -o LogLevel=ERROR \
             -o IdentitiesOnly=yes -o SendEnv=IMGSTORE_HOME",
            path("user"),
            path("known")
        )
    }
}

/// What the line carries of a command that moves much, without its first and last seconds.
fn share_of_the_line(hosts: &Hosts, relay: &Relay, arguments: &[&str]) -> f64 {
    relay.passed.store(0, Ordering::SeqCst);
    let mut child = hosts.command("here", arguments).stdout(Stdio::null()).spawn().unwrap();
    let (mut seen, start) = (Vec::new(), Instant::now());
    while child.try_wait().unwrap().is_none() {
        seen.push((start.elapsed().as_secs_f64(), relay.passed.load(Ordering::SeqCst)));
        thread::sleep(Duration::from_millis(20));
    }
    assert!(child.wait().unwrap().success());
    let all = seen.last().unwrap().1;
    let at = |part: u64| seen.iter().find(|(_, bytes)| *bytes >= all * part / 10).unwrap();
    let (from, to) = (at(2), at(9));
    (to.1 - from.1) as f64 / (to.0 - from.0) / BYTES_PER_SECOND as f64
}

/// 50 ms there and back, 100 Mbit/s.
#[test]
fn a_copy_over_a_long_line_fills_it_and_a_line_that_breaks_costs_little() {
    let Some(sshd) = Sshd::start() else {
        common::skipped("there is no sshd");
        return;
    };
    let relay = Relay::to(sshd.port);
    let mut hosts = Hosts::new();
    hosts.ssh = sshd.ssh();
    let disk = hosts.path("noise.raw");
    let mut draw = Draw::new(4);
    let noise: Vec<u8> = (0..4 << 20).flat_map(|_| draw.next().to_le_bytes()).collect();
    fs::write(&disk, &noise).unwrap();
    let image = hosts.run("here", &["import", disk.to_str().unwrap(), "--name", "noise"]);
    let user = std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).unwrap_or_else(|_| "root".into());
    let url = format!("ssh://{user}@127.0.0.1:{}{}", relay.port, hosts.path("far-region").display());
    let added = hosts.try_run("here", &["region", "add", "far", &url, "--remote-path", PROGRAM]);
    if !added.status.success() {
        let said = String::from_utf8_lossy(&added.stderr);
        assert!(said.contains("ssh ended with"), "{said}");
        common::skipped("this sshd lets nobody in");
        return;
    }
    // A line that breaks in the middle: the command goes on by itself, and nothing but what was on its way comes twice.
    relay.passed.store(0, Ordering::SeqCst);
    let mut child = hosts.command("here", &["copy", &image, "--to", "far", "--name", "broken"]);
    let mut child = child.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    while relay.passed.load(Ordering::SeqCst) < 12 << 20 {
        assert!(child.try_wait().unwrap().is_none(), "it ended before the line broke");
        thread::sleep(Duration::from_millis(5));
    }
    relay.broken.store(true, Ordering::SeqCst);
    thread::sleep(Duration::from_millis(300));
    relay.broken.store(false, Ordering::SeqCst);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("trying again"), "{said}");
    let passed = relay.passed.load(Ordering::SeqCst);
    assert!(passed < noise.len() as u64 + (8 << 20), "{passed} bytes for {}", noise.len());
    let far = hosts.json("here", &["--region", "far", "images"])["images"].as_array().unwrap().clone();
    assert_eq!(far.len(), 1, "it was made twice");
    let far = far[0]["image_id"].as_str().unwrap().to_owned();
    // There and back, to places that have nothing.
    let other = format!("ssh://{user}@127.0.0.1:{}{}", relay.port, hosts.path("other-region").display());
    hosts.run("here", &["region", "add", "other", &other, "--remote-path", PROGRAM]);
    hosts.run("here", &["region", "add", "empty", hosts.path("empty").to_str().unwrap()]);
    for arguments in [
        ["copy", &image, "--to", "other", "--from", "local"],
        ["copy", &far, "--to", "empty", "--from", "far"],
    ] {
        let share = share_of_the_line(&hosts, &relay, &arguments);
        eprintln!("{arguments:?}: {:.0} % of the line", share * 100.0);
        assert!(share > 0.85, "{arguments:?}: {share}");
    }
}
