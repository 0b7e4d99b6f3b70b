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
        common::clean(Command::new(env!("CARGO_BIN_EXE_imgstore")))
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
        ("vdi", "h.vdi", &[]),
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
    // Whoever knows which it is says so; it is told what else it looks like.
    let mut both = fs::read(place.path("a.qcow2")).unwrap();
    both.resize(both.len().next_multiple_of(65536) + 65536 - 512, 0);
    both.extend(&vhd[vhd.len() - 512..]);
    fs::write(place.path("both.img"), both).unwrap();
    assert!(place.refused(&["snapshot", "both.img"]).contains("say which it is with --format"));
    let message = place.refused(&["snapshot", "both.img", "--format", "vmdk"]);
    assert!(message.contains("qcow2"), "{message}");
    let told = place.run(&["snapshot", "both.img", "--format", "qcow2"]);
    assert!(told.status.success() && String::from_utf8_lossy(&told.stderr).contains("VHD, too"), "{told:?}");
    let [one, other] =
        ["a.qcow2", "both.img"].map(|disk| place.json(&["snapshot", disk, "--format", "qcow2"]));
    assert_eq!((&one["chunks"], &one["volume_bytes"]), (&other["chunks"], &other["volume_bytes"]));
    assert_eq!(other["new_chunks"], 0);
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

#[test]
fn a_disk_comes_out_in_every_format_and_goes_in_again() {
    let place = Place(tempfile::tempdir().unwrap());
    // Not a whole number of sectors.
    let mut bytes = common::volume((24 << 20) - 100, 5);
    fs::write(place.path("h.raw"), &bytes).unwrap();
    let id = place.json(&["snapshot", "h.raw"])["snapshot_id"].as_str().unwrap().to_owned();
    bytes.resize(24 << 20, 0);
    fs::write(place.path("padded.raw"), &bytes).unwrap();
    let formats = [
        ("raw", "a.raw", "raw", &[][..]),
        ("qcow2", "a.qcow2", "qcow2", &[]),
        ("qcow2", "c.qcow2", "qcow2", &["--compress"]),
        ("vmdk", "a.vmdk", "vmdk", &[]),
        ("vhd", "a.vhd", "vpc", &[]),
        ("vhd-fixed", "f.vhd", "vpc", &[]),
        ("vhdx", "a.vhdx", "vhdx", &[]),
    ];
    let mut has_qemu = true;
    for (format, name, qemu, options) in formats {
        let answer = place.json(&[&["export", &id, name, "--format", format], options].concat());
        assert_eq!(answer["volume_bytes"], (24 << 20) - 100, "{format}");
        let again = place.json(&["snapshot", name]);
        let whole = (24 << 20) - u64::from(format == "raw") * 100;
        assert_eq!(again["volume_bytes"], whole, "{name}");
        has_qemu &= qemu_img(place.0.path(), &["compare", "-f", qemu, "-F", "raw", name, "padded.raw"]);
        if has_qemu && !matches!(qemu, "raw" | "vpc") {
            qemu_img(place.0.path(), &["check", "-f", qemu, name]);
        }
        // What stands is not replaced, unless that is asked for.
        let output = place.run(&["export", &id, name, "--format", format]);
        assert_eq!(output.status.code(), Some(6), "{}", String::from_utf8_lossy(&output.stderr));
        place.json(&[&["export", &id, name, "--force", "--format", format], options].concat());
    }
    for wrong in [
        &["export", &id, "-", "--format", "qcow2"][..],
        &["export", &id, "x.raw", "--compress"],
        &["export", &id, "x.ova", "--format", "ova"],
        &["export", &id, "x", "--all"],
        &["export", &id, "x.qcow2"],
        &["export", &id, "x.VHDX"],
    ] {
        assert_eq!(place.run(wrong).status.code(), Some(2), "{wrong:?}");
    }
    place.json(&["export", &id, "a.vmdk", "--force", "--format", "raw"]);
    let dry = place.run(&["export", &id, "dry.qcow2", "--format", "qcow2", "--dry-run"]);
    assert!(String::from_utf8_lossy(&dry.stderr).contains("nothing was changed"), "{dry:?}");
    let left: Vec<_> =
        fs::read_dir(place.0.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().starts_with(['x', 'd', '.'])), "{left:?}");
}

#[test]
fn a_whole_machine_goes_out_and_comes_in_elsewhere() {
    let place = Place(tempfile::tempdir().unwrap());
    let (root, data) = (common::volume(6 << 20, 1), common::volume(2 << 20, 2));
    fs::write(place.path("root.raw"), &root).unwrap();
    fs::write(place.path("data.raw"), &data).unwrap();
    let imported = place.json(&[
        "import",
        "root.raw",
        "data.raw",
        "--name",
        "db-1",
        "--root-device",
        "/dev/sda1",
        "--boot-mode",
        "uefi",
        "--device",
        "/dev/sdf=:size=3GiB",
        "--device",
        "/dev/sdg=ephemeral0",
        "--architecture",
        "x86_64",
    ]);
    let id = imported["image_id"].as_str().unwrap();
    let answer = place.json(&["export", id, "db.ova", "--format", "ova", "--cpus", "4", "--ram", "8GiB"]);
    assert_eq!(answer["devices"].as_array().unwrap().len(), 3);
    // In the same region nothing is new, elsewhere it is the same machine.
    let again = place.json(&["import", "db.ova", "--name", "db-again"]);
    assert_eq!((&again["new_bytes"], &again["stored_bytes"]), (&0.into(), &0.into()));
    place.json(&["region", "add", "other", "there"]);
    let there = place.json(&["--region", "other", "import", "db.ova", "--name", "db-1"]);
    for image in [&again, &there] {
        assert_eq!((&image["boot_mode"], &image["architecture"]), (&"uefi".into(), &"x86_64".into()));
        assert_eq!(image["root_device_name"], "/dev/sda1");
        let devices = image["devices"].as_array().unwrap();
        let names: Vec<_> = devices.iter().map(|device| device["device_name"].as_str().unwrap()).collect();
        assert_eq!(names, ["/dev/sda1", "/dev/sdb", "/dev/sdf"]);
    }
    let id = there["image_id"].as_str().unwrap();
    let all = place.json(&["--region", "other", "export", id, "disks/db", "--all", "--format", "qcow2"]);
    assert_eq!(all["files"].as_array().unwrap().len(), 3);
    for (name, expected) in [("sda1", &root), ("sdb", &data)] {
        let path = format!("disks/db/{name}.qcow2");
        let id = place.json(&["snapshot", &path])["snapshot_id"].as_str().unwrap().to_owned();
        assert!(place.run(&["export", &id, "-"]).stdout == *expected, "{name}");
    }
    // A disk whose checksum does not fit: nothing is stored.
    let mut bytes = fs::read(place.path("db.ova")).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(place.path("bad.ova"), bytes).unwrap();
    let message = place.refused(&["import", "bad.ova", "--name", "bad"]);
    assert!(message.contains("checksum"), "{message}");
    // An archive is no disk.
    let message = place.refused(&["snapshot", "db.ova"]);
    assert!(message.contains("import takes an OVA"), "{message}");
    assert_eq!(place.run(&["import", "db.ova", "root.raw", "--name", "two"]).status.code(), Some(6));
}
