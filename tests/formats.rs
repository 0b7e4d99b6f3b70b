//! Disk formats through the program: the same disk in any format is the same to the store, what a file says is
//! checked against what it is, and a hostile one is refused at once, without a byte of another file.
//! The formats' own tests are in `formats_*.rs`.

mod common;

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Instant;

struct Place(tempfile::TempDir);

impl Place {
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_imgstore"))
            .env_clear()
            .env("IMGSTORE_HOME", self.path("home"))
            .current_dir(self.0.path())
            .args(args)
            .output()
            .unwrap()
    }

    fn json(&self, args: &[&str]) -> Value {
        let output = self.run(&[args, &["--json"]].concat());
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stdout));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The sentence with which a disk is refused.
    fn refused(&self, args: &[&str]) -> String {
        let start = Instant::now();
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(6), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(start.elapsed().as_secs() < 5, "{args:?}");
        String::from_utf8(output.stderr).unwrap()
    }
}

fn qemu_img(folder: &Path, args: &[&str]) -> bool {
    let run = Command::new("qemu-img").current_dir(folder).args(args).output();
    let Ok(output) = run else {
        return false;
    };
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    true
}

#[test]
fn the_same_disk_in_any_format_gives_the_same_chunks() {
    let place = Place(tempfile::tempdir().unwrap());
    // A whole MiB, so that every format can say its size.
    let bytes = common::volume(48 << 20, 1);
    fs::write(place.path("h.raw"), &bytes).unwrap();
    place.json(&["snapshot", "h.raw"]);
    let formats = [
        ("qcow2", "h.qcow2", &[][..]),
        ("qcow2", "z.qcow2", &["-c", "-o", "compression_type=zstd"]),
        ("vmdk", "h.vmdk", &[]),
        ("vmdk", "s.vmdk", &["-o", "subformat=streamOptimized"]),
        ("vhdx", "h.vhdx", &[]),
        ("vpc", "h.vhd", &["-o", "force_size=on"]),
        ("vpc", "f.vhd", &["-o", "subformat=fixed,force_size=on"]),
    ];
    for (format, name, options) in formats {
        let args = [&["convert", "-f", "raw", "-O", format], options, &["h.raw", name]].concat();
        if !qemu_img(place.0.path(), &args) {
            return;
        }
        let again = place.json(&["snapshot", name]);
        assert_eq!(again["volume_bytes"], bytes.len(), "{name}");
        assert_eq!(again["new_bytes"], 0, "{name}: no chunk is new");
        assert_eq!(again["stored_bytes"], 0, "{name}: nothing is stored");
        let id = again["snapshot_id"].as_str().unwrap();
        let output = place.run(&["export", id, "-"]);
        assert!(output.stdout == bytes, "{name} comes out as it is");
    }
}

#[test]
fn what_is_declared_must_be_what_is_found() {
    let place = Place(tempfile::tempdir().unwrap());
    fs::write(place.path("a.raw"), common::volume(1 << 20, 1)).unwrap();
    assert!(place.refused(&["snapshot", "a.raw", "--format", "qcow2"]).contains("do not say"));
    let convert = |to: &str, name: &str| qemu_img(place.0.path(), &["convert", "-O", to, "a.raw", name]);
    if !convert("qcow2", "a.qcow2") {
        return;
    }
    let fixed = ["convert", "-O", "vpc", "-o", "subformat=fixed,force_size=on", "a.raw", "a.vhd"];
    qemu_img(place.0.path(), &fixed);
    place.json(&["snapshot", "a.qcow2", "--format", "qcow2"]);
    let message = place.refused(&["snapshot", "a.qcow2", "--format", "vmdk"]);
    assert!(message.contains("VMDK") && message.contains("qcow2"), "{message}");
    // Raw is what the user says it is: the file's own bytes.
    let raw = place.json(&["snapshot", "a.qcow2", "--format", "raw"]);
    assert_eq!(raw["volume_bytes"], fs::metadata(place.path("a.qcow2")).unwrap().len());
    // A qcow2 file that ends like a VHD is neither.
    let mut both = fs::read(place.path("a.qcow2")).unwrap();
    let vhd = fs::read(place.path("a.vhd")).unwrap();
    both.extend(&vhd[vhd.len() - 512..]);
    fs::write(place.path("both.img"), both).unwrap();
    let message = place.refused(&["snapshot", "both.img"]);
    assert!(message.contains("qcow2") && message.contains("VHD"), "{message}");
}

#[test]
fn hostile_files_are_refused_and_nothing_that_they_name_is_read() {
    let place = Place(tempfile::tempdir().unwrap());
    let secret = "the secret of this host, in a file that is nobody's business";
    fs::write(place.path("secret"), secret.repeat(2000)).unwrap();
    let folder = place.0.path();
    let make = |args: &[&str]| qemu_img(folder, args);
    if !make(&["create", "-f", "qcow2", "-b", "secret", "-F", "raw", "backing.qcow2"]) {
        return;
    }
    make(&["create", "-f", "qcow2", "-o", "data_file=data.raw,data_file_raw=on", "data.qcow2", "1M"]);
    make(&["create", "-f", "vmdk", "-o", "subformat=monolithicFlat", "flat.vmdk", "1M"]);
    make(&["create", "-f", "qcow2", "huge.qcow2", "65T"]);
    let descriptor = "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n\
                      createType=\"monolithicFlat\"\nRW 200 FLAT \"secret\" 0\n";
    fs::write(place.path("named.vmdk"), descriptor).unwrap();
    let cases = [
        ("backing.qcow2", "backing"),
        ("data.qcow2", "another file"),
        ("flat.vmdk", "descriptor"),
        ("named.vmdk", "descriptor"),
        ("huge.qcow2", "--max-size"),
    ];
    for (name, why) in cases {
        let message = place.refused(&["import", name, "--name", "hostile"]);
        assert!(message.contains(why) && message.contains(name), "{name}: {message}");
    }
    assert!(place.json(&["snapshots"])["snapshots"].as_array().unwrap().is_empty());
    // No byte of what they name is anywhere in the store.
    let stored =
        Command::new("grep").args(["-r", "-l", "nobody's business", "home"]).current_dir(folder).output();
    assert!(stored.unwrap().stdout.is_empty());
    // A smaller limit is the user's to set.
    fs::write(place.path("a.raw"), common::volume(1 << 20, 1)).unwrap();
    make(&["convert", "-O", "qcow2", "a.raw", "a.qcow2"]);
    assert!(place.refused(&["snapshot", "a.qcow2", "--max-size", "512KiB"]).contains("limit"));
}
