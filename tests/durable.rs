//! What is told is durable, and what a record names was durable before the record: the order of the system calls of the real
//! program, as strace sees it. A crash is nowhere near: the page cache hides from every other test what was not synced.
//! Without strace it is skipped, and says so.

mod common;

use common::Draw;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What a program did, in its order.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Event {
    /// The bytes of a file, or the names in a folder, are durable.
    Sync(PathBuf),
    /// A name is given: of what, and which.
    Name(PathBuf, PathBuf),
    /// Something was printed.
    Told,
}

struct Place(tempfile::TempDir);

impl Place {
    /// With a home; none where there is no strace.
    fn new() -> Option<Self> {
        let works = Command::new("strace").args(["-o", "/dev/null", "true"]).output();
        if !works.is_ok_and(|done| done.status.success()) {
            common::skipped("strace is not there, or may not trace");
            return None;
        }
        let place = Self(tempfile::tempdir().unwrap());
        let mut draw = Draw::new(3);
        let bytes: Vec<u8> = (0..1 << 16).flat_map(|_| draw.next().to_le_bytes()).collect();
        fs::write(place.0.path().join("disk.raw"), bytes).unwrap();
        Some(place)
    }

    fn command(&self, program: &str, before: &[&str], args: &[&str]) -> Command {
        let mut command = common::clean(Command::new(program));
        command.args(before).args(args).current_dir(self.0.path());
        command.env("IMGSTORE_HOME", self.0.path().join("home"));
        command
    }

    fn ok(&self, args: &[&str]) -> String {
        let done = self.command(env!("CARGO_BIN_EXE_imgstore"), &["--quiet"], args).output().unwrap();
        assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap().trim().to_owned()
    }

    fn traced(&self, args: &[&str]) -> Vec<Event> {
        const CALLS: &str = "trace=fsync,fdatasync,rename,renameat,renameat2,link,linkat,write";
        let log = self.0.path().join("trace");
        let log = log.to_str().unwrap();
        let strace = ["-f", "-y", "-qq", "-s", "0", "-e", CALLS, "-e", "signal=none", "-o", log];
        let program = [&strace[..], &[env!("CARGO_BIN_EXE_imgstore"), "--quiet"]].concat();
        let done = self.command("strace", &program, args).output().unwrap();
        assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
        events(&fs::read_to_string(log).unwrap(), self.0.path())
    }
}

/// The calls of a log that succeeded. A sync is done when it returns, a name may be there as soon as the call begins.
fn events(log: &str, folder: &Path) -> Vec<Event> {
    let mut begun = std::collections::HashMap::<&str, &str>::new();
    let mut events = Vec::new();
    for line in log.lines() {
        let (thread, call) = line.split_once(' ').unwrap();
        let call = call.trim_start();
        let (call, returns) = match (call.strip_suffix(" <unfinished ...>"), call.starts_with("<... ")) {
            (Some(start), _) => {
                begun.insert(thread, start);
                (start, false)
            }
            (None, true) => (begun.remove(thread).unwrap(), true),
            (None, false) => (call, true),
        };
        let is_sync = call.starts_with("fsync(") || call.starts_with("fdatasync(");
        if line.contains(") = -1 ") || is_sync != (is_sync && returns) {
            continue;
        }
        // `5</a/b>` and `"/a/b"`.
        let described = || call.split_once('<').and_then(|(_, rest)| rest.split_once('>')).unwrap().0;
        let quoted: Vec<PathBuf> = call.split('"').skip(1).step_by(2).map(|path| folder.join(path)).collect();
        if is_sync {
            events.push(Event::Sync(described().into()));
        } else if call.starts_with("write(1<") {
            events.push(Event::Told);
        } else if (call.starts_with("rename") || call.starts_with("link"))
            && !line.contains("<... ")
            && let [from, to] = &quoted[..]
        {
            events.push(Event::Name(from.clone(), to.clone()));
        }
    }
    events
}

fn is_record(path: &Path) -> bool {
    let text = path.to_str().unwrap();
    text.contains("/log/") && !text.contains("/twins/")
}

/// Where something comes first from a place on.
fn first(events: &[Event], from: usize, is_it: impl Fn(&Event) -> bool) -> Option<usize> {
    events[from..].iter().position(is_it).map(|at| at + from)
}

/// By when a file is durable under its name.
fn durable_at(events: &[Event], file: &Path) -> usize {
    let sync = |path: &Path| Event::Sync(path.to_owned());
    let named = first(events, 0, |event| matches!(event, Event::Name(_, to) if to == file));
    let written = match named {
        Some(at) => {
            let Event::Name(from, _) = &events[at] else { unreachable!() };
            let synced = first(events, 0, |event| *event == sync(from));
            assert!(
                synced.is_some_and(|synced| synced < at),
                "{}: named before its bytes are there",
                file.display()
            );
            at
        }
        None => first(events, 0, |event| *event == sync(file))
            .unwrap_or_else(|| panic!("{} is never synced: {events:#?}", file.display())),
    };
    let folder = file.parent().unwrap();
    let known = first(events, written, |event| *event == sync(folder));
    known.unwrap_or_else(|| panic!("{}: its name is never durable: {events:#?}", file.display()))
}

/// Everything that was made is durable before a record names it, and the record before anything is told.
fn assert_order(what: &str, events: &[Event], made: &[PathBuf], has_record: bool) {
    assert!(!made.is_empty() || has_record, "{what} made nothing");
    let durable = made.iter().map(|file| durable_at(events, file)).max().unwrap_or(0);
    let told = first(events, 0, |event| *event == Event::Told).unwrap_or(events.len());
    assert!(durable < told, "{what}: told before it is durable: {events:#?}");
    if has_record {
        let named = |event: &Event| matches!(event, Event::Name(_, to) if is_record(to));
        let record = first(events, 0, named).unwrap_or_else(|| panic!("{what}: no record: {events:#?}"));
        assert!(durable < record, "{what}: on record before it is durable: {events:#?}");
        let Event::Name(_, to) = &events[record] else { unreachable!() };
        assert!(durable_at(events, to) < told, "{what}: told before its record is durable: {events:#?}");
    }
}

/// All files in a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let (mut folders, mut files) = (vec![folder.to_owned()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap()) {
            if entry.path().is_dir() { folders.push(entry.path()) } else { files.push(entry.path()) }
        }
    }
    files
}

#[test]
fn what_is_told_or_on_record_is_durable() {
    let Some(place) = Place::new() else { return };
    let at = |name: &str| place.0.path().join(name);
    let image = place.ok(&["import", "disk.raw", "--name", "machine"]);
    place.ok(&["import", "disk.raw", "--name", "store", "--instance-store"]);
    let snapshot = place.traced(&["snapshot", "disk.raw"]);
    assert_order("snapshot", &snapshot, &[], true);
    let shown = place.ok(&["show", &image, "--json"]);
    let id = shown.split("snap-").nth(1).unwrap()[..17].to_owned();
    let id = format!("snap-{id}");
    for format in ["raw", "qcow2"] {
        let out = format!("out.{format}");
        let events = place.traced(&["export", &id, &out, "--format", format]);
        assert_order("export", &events, &[at(&out)], false);
    }
    let events = place.traced(&["launch", &image, "--count", "2", "--output", "vms"]);
    let disks = files(&at("vms"));
    assert_eq!(disks.len(), 2);
    assert_order("launch", &events, &disks, true);
    // The folders of the instances, too.
    let record = first(&events, 0, |event| matches!(event, Event::Name(_, to) if is_record(to))).unwrap();
    assert!(events[..record].contains(&Event::Sync(at("vms"))));
    let events = place.traced(&["create-volume", "--snapshot", &id, "--output", "volumes"]);
    assert_order("create-volume", &events, &files(&at("volumes")), true);
    let events = place.traced(&["bundle", "disk.raw", "parts", "--name", "parts"]);
    assert_order("bundle", &events, &files(&at("parts")), false);
    let manifest = at("parts/parts.manifest.json");
    let events = place.traced(&["unbundle", manifest.to_str().unwrap(), "whole.raw"]);
    assert_order("unbundle", &events, &[at("whole.raw")], false);
    let events = place.traced(&["region", "add", "backup", "backup"]);
    assert_order("region add", &events, &[at("home/config.toml"), at("backup/region")], false);
    let events = place.traced(&["copy", &image, "--to", "backup"]);
    assert_order("copy", &events, &[], true);
}

/// The harness sees what it is there for.
#[test]
fn a_name_before_its_bytes_is_seen() {
    let (from, to, folder) = (PathBuf::from("/a/.new"), PathBuf::from("/a/disk"), PathBuf::from("/a"));
    let name = Event::Name(from.clone(), to.clone());
    let whole = vec![Event::Sync(from.clone()), name.clone(), Event::Sync(folder.clone()), Event::Told];
    assert_order("right", &whole, std::slice::from_ref(&to), false);
    for wrong in [
        vec![name.clone(), Event::Sync(from.clone()), Event::Sync(folder.clone()), Event::Told],
        vec![Event::Sync(from.clone()), Event::Sync(folder.clone()), name.clone(), Event::Told],
        vec![Event::Sync(from), name, Event::Told, Event::Sync(folder)],
    ] {
        let found =
            std::panic::catch_unwind(|| assert_order("wrong", &wrong, std::slice::from_ref(&to), false));
        assert!(found.is_err(), "{wrong:?}");
    }
    let log = "7 fsync(3</a/.new> <unfinished ...>\n8 write(2</dev/null>, \"\"..., 3) = 3\n7 <... fsync resumed>) = 0\n\
               7 renameat2(AT_FDCWD</a>, \".new\", AT_FDCWD</a>, \"disk\", RENAME_NOREPLACE) = 0\n\
               7 fsync(3</a>) = -1 EIO (Input/output error)\n7 write(1</dev/null>, \"\"..., 3) = 3\n";
    let seen = events(log, Path::new("/a"));
    assert_eq!(seen, [whole[0].clone(), whole[1].clone(), Event::Told]);
}
