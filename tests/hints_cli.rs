//! Change hints on the command line: dirty bitmaps as `--changed`, kept clones as `--clone` on real file systems.
//!
//! Parts are skipped, saying so, where loop mounts, mkfs, QEMU or nbdinfo are missing.

mod common;

use common::Draw;
use common::mounted::Mounted;
use serde_json::Value;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

const MIB: usize = 1 << 20;

struct Place {
    folder: tempfile::TempDir,
    /// Where the disks are.
    disks: PathBuf,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let disks = folder.path().to_owned();
        Self { folder, disks }
    }

    /// Puts the disks onto a file system of their own, unmounted with what is returned; the home is elsewhere.
    fn mount(&mut self, kind: &str, options: &str) -> Option<Mounted> {
        let mounted = Mounted::fresh(&self.folder.path().join("image"), kind, 512, options)?;
        self.disks.clone_from(&mounted.0);
        Some(mounted)
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = common::clean(Command::new(env!("CARGO_BIN_EXE_imgstore")));
        command.env("IMGSTORE_HOME", self.folder.path().join("home")).current_dir(&self.disks);
        command.args(args).output().unwrap()
    }

    /// The document of a command that ends with a code.
    fn json(&self, code: i32, args: &[&str]) -> Value {
        let output = self.run(&[args, &["--json"]].concat());
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// What a command that fails says on standard error. Its dry run fails alike.
    fn fails(&self, code: i32, args: &[&str]) -> String {
        let dry = self.run(&[&["--dry-run"], args].concat());
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stdout.is_empty());
        // The first command tells of the home that it makes, too.
        assert!(dry.status == output.status && dry.stderr.ends_with(&output.stderr), "{args:?}: {dry:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    fn snapshot(&self, args: &[&str]) -> Value {
        self.json(0, &[&["snapshot"], args].concat())
    }

    /// Whether a snapshot holds the bytes of a file.
    fn holds(&self, taken: &Value, disk: &str) -> bool {
        let output = self.run(&["export", taken["snapshot_id"].as_str().unwrap(), "-"]);
        assert!(output.status.success());
        output.stdout == fs::read(self.disks.join(disk)).unwrap()
    }

    fn write(&self, disk: &str, offset: usize, bytes: &[u8]) {
        let file = OpenOptions::new().write(true).open(self.disks.join(disk)).unwrap();
        file.write_all_at(bytes, offset as u64).unwrap();
    }
}

#[test]
fn a_dirty_bitmap_says_what_is_read() {
    let place = Place::new();
    fs::write(place.disks.join("a.raw"), common::volume(8 * MIB, 1)).unwrap();
    let first = place.snapshot(&["a.raw"]);
    assert!(first["hint"].is_null());
    assert!(first["read_bytes"].as_u64().unwrap() > 4 << 20);
    let parent = first["snapshot_id"].as_str().unwrap();
    place.write("a.raw", 3 * MIB + 100, b"changed");
    let extents = |dirty: usize| {
        let (end, rest) = (dirty + 65_536, 8 * MIB - dirty - 65_536);
        format!(
            r#"[{{"offset":0,"length":{dirty},"type":0,"description":"clean"}},
{{"offset":{dirty},"length":65536,"type":1,"description":"dirty"}},
{{"offset":{end},"length":{rest},"type":0,"description":"clean"}}]"#
        )
    };
    fs::write(place.disks.join("right.json"), extents(3 * MIB)).unwrap();
    fs::write(place.disks.join("wrong.json"), extents(5 * MIB)).unwrap();
    fs::write(place.disks.join("short.json"), "[]").unwrap();
    let taken = place.snapshot(&["a.raw", "--parent", parent, "--changed", "right.json"]);
    let hint = &taken["hint"];
    assert_eq!((&hint["source"], &hint["parent_snapshot_id"]), (&"changed".into(), &parent.into()));
    assert_eq!(
        (&hint["used"], &hint["ranges"], &hint["changed_bytes"]),
        (&true.into(), &1.into(), &65_536.into())
    );
    assert!(hint["why_not"].is_null() && hint["wrong"].is_null());
    assert!((65_536..1 << 20).contains(&taken["read_bytes"].as_u64().unwrap()), "{taken}");
    assert!(place.holds(&taken, "a.raw"));

    let verified = ["a.raw", "--parent", parent, "--changed", "right.json", "--verify-hints"];
    let verified = place.snapshot(&verified);
    assert_eq!(
        (&verified["hint"]["used"], &verified["hint"]["wrong"]),
        (&false.into(), &Value::Array(vec![]))
    );
    let args = ["snapshot", "a.raw", "--parent", parent, "--changed", "wrong.json", "--verify-hints"];
    let wrong = place.json(5, &args);
    let range = &wrong["hint"]["wrong"][0];
    let at = (3 * MIB + 100) as u64;
    assert!(range["start_byte"].as_u64().unwrap() <= at && at < range["end_byte"].as_u64().unwrap());
    assert!(place.holds(&wrong, "a.raw"), "what was read counts");
    let output = place.run(&args);
    assert_eq!(output.status.code(), Some(5));
    assert!(String::from_utf8_lossy(&output.stderr).contains("the hint is wrong"), "{output:?}");
    assert!(output.stdout.starts_with(b"snap-"));

    let said = place.fails(6, &["snapshot", "a.raw", "--parent", parent, "--changed", "short.json"]);
    assert!(said.contains("its extents end at byte 0, the disk at 8388608"), "{said}");
    place.fails(3, &["snapshot", "a.raw", "--parent", parent, "--changed", "none.json"]);
    place.fails(2, &["snapshot", "a.raw", "--changed", "right.json"]);
    place.fails(2, &["snapshot", "a.raw", "--verify-hints"]);
    place.fails(2, &["snapshot", "a.raw", "--parent", parent, "--changed", "right.json", "--skip-free"]);
    place.fails(2, &["snapshot", "a.raw", "--parent", parent, "--changed", "right.json", "--clone", "c"]);
}

/// A program that goes with the test.
struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_dirty_bitmap_of_qemu_is_believed() {
    let place = Place::new();
    let run = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).current_dir(&place.disks).output().ok()?;
        output.status.success().then_some(output.stdout)
    };
    if ["qemu-img", "qemu-io", "qemu-nbd", "nbdinfo"]
        .iter()
        .any(|program| run(program, &["--version"]).is_none())
    {
        common::skipped("there is no QEMU, or no nbdinfo");
        return;
    }
    fs::write(place.disks.join("a.raw"), common::volume(16 * MIB, 2)).unwrap();
    run("qemu-img", &["convert", "-O", "qcow2", "a.raw", "a.qcow2"]).unwrap();
    run("qemu-img", &["bitmap", "--add", "a.qcow2", "b0"]).unwrap();
    let first = place.snapshot(&["a.qcow2"]);
    let parent = first["snapshot_id"].as_str().unwrap();
    let writes = ["-c", "write -P 7 1000000 5000", "-c", "write -z 4M 1M", "-c", "discard 9M 64k", "a.qcow2"];
    run("qemu-io", &writes).unwrap();
    let socket = place.disks.join("socket");
    let server = Command::new("qemu-nbd")
        .args(["-r", "-t", "-f", "qcow2", "-B", "b0", "-k", socket.to_str().unwrap(), "a.qcow2"])
        .current_dir(&place.disks)
        .stderr(Stdio::null())
        .spawn();
    let server = Running(server.unwrap());
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    let list = (0..100).find_map(|_| {
        std::thread::sleep(Duration::from_millis(100));
        run("nbdinfo", &["--map=qemu:dirty-bitmap:b0", "--json", &uri])
    });
    drop(server);
    fs::write(place.disks.join("b0.json"), list.expect("nbdinfo")).unwrap();
    let taken = place.snapshot(&["a.qcow2", "--parent", parent, "--changed", "b0.json"]);
    assert_eq!(taken["hint"]["used"], true);
    assert!(taken["hint"]["changed_bytes"].as_u64().unwrap() < 2 << 20);
    assert!(taken["read_bytes"].as_u64().unwrap() < 4 << 20, "{taken}");
    run("qemu-img", &["convert", "-O", "raw", "a.qcow2", "b.raw"]).unwrap();
    assert!(place.holds(&taken, "b.raw"));
    let args = ["a.qcow2", "--parent", parent, "--changed", "b0.json", "--verify-hints"];
    assert_eq!(place.snapshot(&args)["hint"]["wrong"], Value::Array(vec![]));
}

/// Writes over a disk file here and there, as a guest does: blocks, parts of them, zeros, holes; never synced.
fn scribble(path: &Path, len: usize, draw: &mut Draw) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    let modified = file.metadata().unwrap().modified().unwrap();
    for _ in 0..draw.below(12) {
        let at = draw.below(len - 70_000);
        let bytes: Vec<u8> = (0..1 + draw.below(60_000)).map(|_| draw.next() as u8).collect();
        match draw.below(4) {
            0 => {
                let (at, end) = (at.next_multiple_of(4096), (at + bytes.len()).next_multiple_of(4096) + 4096);
                let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(&file, flags, at as u64, (end - at) as u64).unwrap();
            }
            1 => file.write_all_at(&vec![0; bytes.len()], at as u64).unwrap(),
            _ => file.write_all_at(&bytes, at as u64).unwrap(),
        }
    }
    // Times do not count.
    file.set_modified(modified).unwrap();
}

#[test]
fn a_kept_clone_says_what_is_read() {
    for kind in ["xfs", "btrfs"] {
        let mut place = Place::new();
        let Some(_mounted) = place.mount(kind, "") else { continue };
        let len = 24 * MIB - 100;
        fs::write(place.disks.join("a.raw"), common::volume(len, 9)).unwrap();
        let first = place.snapshot(&["a.raw", "--clone", "a.clone"]);
        assert!(first["hint"].is_null(), "{kind}: there is none yet");
        let clone = place.disks.join("a.clone");
        assert!(fs::read(&clone).unwrap() == fs::read(place.disks.join("a.raw")).unwrap());
        assert_eq!(fs::metadata(&clone).unwrap().permissions().mode() & 0o777, 0o400);

        let same = place.snapshot(&["a.raw", "--clone", "a.clone"]);
        assert_eq!((&same["hint"]["used"], &same["read_bytes"]), (&true.into(), &0.into()), "{kind}: {same}");
        assert_eq!(same["parent_snapshot_id"], first["snapshot_id"]);
        assert_eq!(same["stored_bytes"], 0);

        let mut draw = Draw::new(77);
        let mut before = same;
        for round in 0..12 {
            scribble(&place.disks.join("a.raw"), len, &mut draw);
            let verify = if round % 3 == 2 { "--verify-hints" } else { "--no-delta" };
            let taken = place.snapshot(&["a.raw", "--clone", "a.clone", verify]);
            assert!(place.holds(&taken, "a.raw"), "{kind}, round {round}");
            assert_eq!(taken["hint"]["parent_snapshot_id"], before["snapshot_id"]);
            assert!(taken["hint"]["why_not"].is_null(), "{kind}: {taken}");
            if round % 3 != 2 {
                assert!(taken["read_bytes"].as_u64().unwrap() < 12 << 20, "{kind}: {taken}");
            }
            before = taken;
        }
        let mut names: Vec<_> =
            fs::read_dir(&place.disks).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        let names: Vec<_> =
            names.iter().filter_map(|name| name.to_str()).filter(|n| n.contains('a')).collect();
        assert_eq!(names, ["a.clone", "a.raw"], "{kind}: nothing else is left");
    }
}

/// Who is not root may set no attribute of a file that is read-only.
#[test]
fn a_clone_is_kept_for_whoever_takes_the_snapshot() {
    let mut place = Place::new();
    let Some(_mounted) = place.mount("xfs", "") else { return };
    let (uid, home) = ("65534", place.disks.join("home"));
    fs::write(place.disks.join("a.raw"), common::volume(4 * MIB, 9)).unwrap();
    for path in [&place.disks, &place.disks.join("a.raw")] {
        std::os::unix::fs::chown(path, Some(65534), Some(65534)).unwrap();
    }
    fs::set_permissions(place.folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = place.disks.join("imgstore");
    fs::copy(env!("CARGO_BIN_EXE_imgstore"), &program).unwrap();
    for used in [None, Some(true)] {
        let mut command = common::clean(Command::new("setpriv"));
        command.env("IMGSTORE_HOME", &home).current_dir(&place.disks);
        command.args(["--reuid", uid, "--regid", uid, "--clear-groups"]).arg(&program);
        let output = command.args(["snapshot", "a.raw", "--clone", "a.clone", "--json"]).output();
        let Ok(output) = output else {
            common::skipped("there is no setpriv");
            return;
        };
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !said.contains("may not be kept"), "{said}");
        let taken: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(taken["hint"]["used"].as_bool(), used, "{taken}");
    }
}

#[test]
fn a_wrong_clone_is_refused_or_not_believed() {
    let mut place = Place::new();
    let Some(_mounted) = place.mount("xfs", "") else { return };
    fs::write(place.disks.join("a.raw"), common::volume(4 * MIB, 9)).unwrap();
    fs::write(place.disks.join("b.raw"), common::volume(4 * MIB, 10)).unwrap();
    fs::write(place.disks.join("precious"), "precious").unwrap();
    let args = ["a.raw", "--clone", "a.clone"];
    let first = place.snapshot(&args);
    let id = first["snapshot_id"].as_str().unwrap();

    // Another file, the disk itself, a link, another snapshot.
    let said = place.fails(6, &["snapshot", "a.raw", "--clone", "precious"]);
    assert!(said.contains("no clone that a snapshot has kept"), "{said}");
    assert_eq!(fs::read(place.disks.join("precious")).unwrap(), b"precious");
    place.fails(6, &["snapshot", "a.raw", "--clone", "a.raw"]);
    let said = place.fails(6, &["snapshot", "a.clone", "--clone", "a.clone"]);
    assert!(said.contains("is the disk itself"), "{said}");
    std::os::unix::fs::symlink("a.clone", place.disks.join("link")).unwrap();
    place.fails(6, &["snapshot", "a.raw", "--clone", "link"]);
    let other = place.snapshot(&["b.raw"]);
    let other = other["snapshot_id"].as_str().unwrap();
    let said = place.fails(2, &["snapshot", "a.raw", "--clone", "a.clone", "--parent", other]);
    assert!(said.contains(&format!("is the clone of {id}, not of {other}")), "{said}");
    assert_eq!(place.snapshot(&["a.raw", "--clone", "a.clone", "--parent", id])["hint"]["used"], true);

    // Another disk than the clone's: everything differs, and is read.
    let swapped = place.snapshot(&["b.raw", "--clone", "a.clone"]);
    assert!(place.holds(&swapped, "b.raw"));
    let back = place.snapshot(&args);
    assert!(place.holds(&back, "a.raw"));

    // The disk grew.
    OpenOptions::new().write(true).open(place.disks.join("a.raw")).unwrap().set_len(5 << 20).unwrap();
    let grown = place.snapshot(&args);
    assert_eq!(grown["hint"]["why_not"], "the disk has another length than it had");
    assert!(place.holds(&grown, "a.raw"));

    // The snapshot is gone.
    assert_eq!(
        place.run(&["delete-snapshot", grown["snapshot_id"].as_str().unwrap()]).status.code(),
        Some(0)
    );
    let alone = place.snapshot(&args);
    assert!(alone["hint"]["why_not"].as_str().unwrap().contains("is gone"), "{alone}");
    assert!(alone["parent_snapshot_id"].is_null() && place.holds(&alone, "a.raw"));

    // Another region.
    assert!(place.run(&["region", "add", "other", "../other"]).status.success());
    let away = place.json(0, &["--region", "other", "snapshot", "a.raw", "--clone", "a.clone"]);
    assert_eq!(away["hint"]["why_not"], "the clone is of a snapshot in another region");

    // Nothing is made by a dry run, nor by a snapshot that fails.
    let clone = place.disks.join("a.clone");
    let before = fs::metadata(&clone).unwrap().modified().unwrap();
    assert!(place.run(&["--dry-run", "snapshot", "a.raw", "--clone", "a.clone"]).status.success());
    let long = "x".repeat(300);
    place.fails(2, &["snapshot", "a.raw", "--clone", "a.clone", "--description", &long]);
    assert_eq!(fs::metadata(&clone).unwrap().modified().unwrap(), before);

    // A clone that was written to.
    fs::set_permissions(&clone, fs::Permissions::from_mode(0o600)).unwrap();
    place.write("a.clone", 4096, b"x");
    let said = place.fails(6, &["snapshot", "a.raw", "--clone", "a.clone"]);
    assert!(said.contains("is not as it was when its snapshot was taken"), "{said}");
    fs::remove_file(&clone).unwrap();
    assert!(place.snapshot(&args)["hint"].is_null());

    // A disk of another format is not its file's bytes.
    fs::write(place.disks.join("c.qcow2"), [&b"QFI\xfb\0\0\0\x03"[..], &[0; 9000]].concat()).unwrap();
    place.fails(6, &["snapshot", "c.qcow2", "--clone", "c.clone"]);
    place.snapshot(&["c.qcow2", "--format", "raw", "--clone", "c.clone"]);
    assert!(
        !fs::read_dir(&place.disks)
            .unwrap()
            .any(|e| { e.unwrap().file_name().to_string_lossy().contains("imgstore-") })
    );
}

#[test]
fn compressed_files_tell_nothing_and_others_cannot_be_cloned() {
    let mut place = Place::new();
    if let Some(_mounted) = place.mount("btrfs", ",compress-force=zstd") {
        fs::write(place.disks.join("a.raw"), common::volume(4 * MIB, 9)).unwrap();
        place.snapshot(&["a.raw", "--clone", "a.clone"]);
        let again = place.snapshot(&["a.raw", "--clone", "a.clone"]);
        assert!(again["hint"]["changed_bytes"].as_u64().unwrap() > 1 << 20, "{again}");
        assert!(place.holds(&again, "a.raw"));
    }
    let mut place = Place::new();
    if let Some(_mounted) = place.mount("ext4", "") {
        fs::write(place.disks.join("a.raw"), common::volume(MIB, 9)).unwrap();
        let said = place.fails(6, &["snapshot", "a.raw", "--clone", "a.clone"]);
        assert!(said.contains("cannot share blocks with the disk"), "{said}");
        assert!(!place.disks.join("a.clone").exists());
    }
    place.fails(6, &["snapshot", "/dev/null", "--clone", "a.clone"]);
}
