//! A disk that is full, on real file systems: what stores says so with exit code 7, and leaves all as it was; what deletes and
//! collects works, and makes room. Needs root and loop devices; without them it is skipped, and says so.

mod common;

use common::Draw;
use common::mounted::{Mounted, must, text};
use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output};

const MIB: usize = 1 << 20;

struct Place {
    folder: tempfile::TempDir,
    mounted: Mounted,
}

impl Place {
    fn new(kind: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mounted = Mounted::fresh(&folder.path().join("image"), kind, 700, "")?;
        Some(Self { folder, mounted })
    }

    /// A disk that does not get smaller, outside of the file system.
    fn disk(&self, name: &str, mib: usize, seed: u64) -> (PathBuf, Vec<u8>) {
        let mut draw = Draw::new(seed);
        let bytes: Vec<u8> = (0..mib * MIB / 8).flat_map(|_| draw.next().to_le_bytes()).collect();
        let path = self.folder.path().join(name);
        fs::write(&path, &bytes).unwrap();
        (path, bytes)
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = common::clean(Command::new(env!("CARGO_BIN_EXE_imgstore")));
        command.env("IMGSTORE_HOME", self.mounted.0.join("home")).arg("--quiet").args(args).output().unwrap()
    }

    fn code(&self, args: &[&str]) -> (i32, String) {
        let output = self.run(args);
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    fn ok(&self, args: &[&str]) -> Vec<u8> {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    fn free_bytes(&self) -> usize {
        let said = must("df", &["-B1", "--output=avail", text(&self.mounted.0)]);
        said.lines().last().unwrap().trim().parse().unwrap()
    }

    /// Writes zeros until so much is left, and with 0 until nothing more can be written.
    fn fill(&self, name: &str, left: usize) {
        // What XFS sets aside for a file that grows it gives back when that is closed.
        for piece in [MIB, 4096, 4096] {
            let mut file = File::options().append(true).create(true).open(self.mounted.0.join(name)).unwrap();
            while self.free_bytes() > left + piece || left == 0 {
                if file.write_all(&vec![0; piece]).and_then(|()| file.sync_all()).is_err() {
                    break;
                }
            }
        }
    }

    /// Waits until so much is free: some file systems give back what was deleted with their next transaction.
    fn wait_for_room(&self, bytes: usize) -> bool {
        (0..100).any(|_| {
            must("sync", &["-f", text(&self.mounted.0)]);
            std::thread::sleep(std::time::Duration::from_millis(100));
            self.free_bytes() > bytes
        })
    }
}

fn of(printed: Vec<u8>) -> String {
    String::from_utf8(printed).unwrap().trim().to_owned()
}

fn no_room_and_room_again(kind: &str) {
    let Some(place) = Place::new(kind) else { return };
    let (first, _) = place.disk("first.raw", 50, 1);
    let (second, bytes) = place.disk("second.raw", 30, 2);
    let (large, _) = place.disk("large.raw", 260, 3);
    let going = of(place.ok(&["snapshot", text(&first)]));
    let staying = of(place.ok(&["snapshot", text(&second)]));
    let is_whole = |what: &str| assert!(place.ok(&["export", &staying, "-"]) == bytes, "{kind}: {what}");

    // It begins, since there is room, and then there is none.
    place.fill("filler", 180 * MIB);
    let (code, said) = place.code(&["snapshot", text(&large)]);
    assert_eq!(code, 7, "{kind}: {said}");
    is_whole("in the middle of a write");
    // Nothing at all is left: not for a byte of anybody's.
    place.fill("rest", 0);
    let (code, said) = place.code(&["snapshot", text(&second)]);
    assert_eq!(code, 7, "{kind}, {} bytes are free: {said}", place.free_bytes());
    let (code, said) = place.code(&["launch", "ami-00000000000000001"]);
    assert_eq!(code, 3, "{kind}: {said}");
    is_whole("with nothing left");
    place.ok(&["delete-snapshot", &going]);
    place.ok(&["gc", "--grace", "0s"]);
    assert!(place.wait_for_room(45 * MIB), "{kind}: {} bytes are free", place.free_bytes());
    is_whole("after a collection");
    assert_eq!(of(place.ok(&["verify"])), "", "quiet: no damage was found");
    // With what others took given back, it goes on.
    fs::remove_file(place.mounted.0.join("filler")).unwrap();
    fs::remove_file(place.mounted.0.join("rest")).unwrap();
    assert!(place.wait_for_room(400 * MIB), "{kind}: {} bytes are free", place.free_bytes());
    let again = of(place.ok(&["snapshot", text(&large)]));
    assert!(place.ok(&["export", &again, "-"]) == fs::read(&large).unwrap(), "{kind}");
    assert_eq!(of(place.ok(&["verify"])), "", "quiet: no damage was found");
}

#[test]
fn a_full_ext4_is_said_to_be_full_and_gets_room_again() {
    no_room_and_room_again("ext4");
}

#[test]
fn a_full_xfs_is_said_to_be_full_and_gets_room_again() {
    no_room_and_room_again("xfs");
}

#[test]
fn a_full_btrfs_is_said_to_be_full_and_gets_room_again() {
    no_room_and_room_again("btrfs");
}
