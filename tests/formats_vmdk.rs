//! VMDK against qemu-img: what it writes reads as the disk that it was given, what names other files is
//! refused, and nothing that is flipped leads to a panic. Without qemu-img only a note is printed.

mod common;

use common::{Draw, MemoryDisk, volume, write_in_pieces};
use imgstore::disk::formats::{Limits, vmdk};
use imgstore::disk::{DiskError, DiskRead};
use imgstore::io::outfile::NewFile;
use imgstore::io::rawdisk::RawDisk;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

const READABLE: [&str; 2] = ["monolithicSparse", "streamOptimized"];

/// Whether qemu-img is here; says so if not.
fn has_qemu_img() -> bool {
    let found = Command::new("qemu-img").arg("--version").output().is_ok();
    if !found {
        common::skipped("there is no qemu-img");
    }
    found
}

/// The file that qemu-img makes of a raw disk.
fn convert(dir: &Path, raw: &Path, subformat: &str) -> PathBuf {
    let out = dir.join(format!("{subformat}.vmdk"));
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-q", "-f", "raw", "-O", "vmdk", "-o"]);
    let output = command.arg(format!("subformat={subformat}")).arg(raw).arg(&out).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    out
}

fn open(path: &Path) -> Result<vmdk::Vmdk, DiskError> {
    vmdk::open(Arc::new(RawDisk::open(path)?), path, &Limits::default())
}

/// A disk's bytes by its extents and in pieces of any length, of which some begin before the last ended.
fn read(disk: &dyn DiskRead, draw: &mut Draw) -> Result<Vec<u8>, DiskError> {
    let len = usize::try_from(disk.len_bytes()).unwrap();
    let mut bytes = vec![0xee; len];
    let mut at = 0;
    while at < len {
        let extent = disk.extent_at(at as u64)?;
        let end = usize::try_from(extent.end).unwrap();
        assert!(extent.start == at as u64 && end > at && end <= len, "{extent:?} at {at} of {len}");
        assert!(end - at <= 64 << 20);
        if extent.is_zero {
            bytes[at..end].fill(0);
        }
        // Zeros are read as well, some of them.
        let stop = if extent.is_zero { end.min(at + 10_000) } else { end };
        let mut from = at;
        while from < stop {
            let most = [600, 70_000, 1 << 20][draw.below(3)];
            let to = stop.min(from + 1 + draw.below(most));
            disk.read_at(from as u64, &mut bytes[from..to])?;
            from = if draw.below(4) == 0 { from + (to - from).div_ceil(2) } else { to };
        }
        at = end;
    }
    Ok(bytes)
}

fn images() -> u64 {
    std::env::var("IMGSTORE_FORMAT_IMAGES").map_or(60, |count| count.parse().unwrap())
}

/// From a sector to a few MiB, any count of sectors; with zeros that qemu-img leaves out and others.
fn random_disk(draw: &mut Draw) -> Vec<u8> {
    let sectors = match draw.below(4) {
        0 => 1 + draw.below(20),
        1 => 1 + draw.below(400),
        _ => 1 + draw.below(6000),
    };
    let mut bytes = volume(sectors * 512, draw.next());
    for _ in 0..draw.below(4) {
        let start = draw.below(bytes.len());
        let end = (start + draw.below(1 << 20)).min(bytes.len());
        bytes[start..end].fill(0);
    }
    bytes
}

#[test]
fn what_qemu_img_writes_reads_the_same() {
    if !has_qemu_img() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("disk.raw");
    for seed in 0..images() {
        let mut draw = Draw::new(seed + 1);
        let expected = random_disk(&mut draw);
        fs::write(&raw, &expected).unwrap();
        for subformat in READABLE {
            let disk = open(&convert(dir.path(), &raw, subformat)).unwrap();
            assert_eq!(disk.len_bytes(), expected.len() as u64);
            let found = read(&disk, &mut draw).unwrap();
            assert!(found == expected, "image {seed} as {subformat} differs");
        }
    }
}

/// Writes a disk, and asks qemu-img whether it has no faults and holds these bytes.
fn check_written(dir: &Path, expected: &mut Vec<u8>, draw: &mut Draw) {
    let (raw, path) = (dir.join("disk.raw"), dir.join("a disk.vmdk"));
    let _ = fs::remove_file(&path);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    let file = Box::new(NewFile::create(&path, 0, false).unwrap());
    let target = vmdk::write::create(file, &path, expected.len() as u64, &pool).unwrap();
    write_in_pieces(target, expected, draw);
    expected.resize(expected.len().next_multiple_of(512), 0);
    fs::write(&raw, &expected).unwrap();
    for arguments in [&["check", "-q", "-f", "vmdk"][..], &["compare", "-q", "-F", "raw", "-f", "vmdk"]] {
        let mut command = Command::new("qemu-img");
        command.args(arguments).arg(&path);
        if arguments[0] == "compare" {
            command.arg(&raw);
        }
        let output = command.output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&text));
    }
    assert!(read(&open(&path).unwrap(), draw).unwrap() == *expected);
}

#[test]
fn what_is_written_is_read_by_qemu_img() {
    if !has_qemu_img() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for seed in 0..images() {
        let mut draw = Draw::new(seed + 9000);
        let mut expected = random_disk(&mut draw);
        expected.truncate(expected.len() - draw.below(512));
        check_written(dir.path(), &mut expected, &mut draw);
    }
    // Of four grain tables one has no grain.
    let mut expected = vec![0; 120 << 20];
    for at in [0, (32 << 20) - 100_000, 40 << 20, 100 << 20] {
        expected[at..at + 200_000].copy_from_slice(&volume(200_000, at as u64 + 1));
    }
    check_written(dir.path(), &mut expected, &mut Draw::new(1));
}

#[test]
fn several_grain_tables_read_the_same() {
    if !has_qemu_img() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("disk.raw");
    // A table has 32 MiB; the third has no grain.
    let mut expected = vec![0; (150 << 20) + 512];
    for at in [0, (32 << 20) - 100_000, 40 << 20, 100 << 20, (150 << 20) - 100] {
        let piece = volume(200_000, at as u64 + 1);
        let end = expected.len().min(at + piece.len());
        expected[at..end].copy_from_slice(&piece[..end - at]);
    }
    fs::write(&raw, &expected).unwrap();
    for subformat in READABLE {
        let path = convert(dir.path(), &raw, subformat);
        let file = || Arc::new(RawDisk::open(&path).unwrap());
        // Little room, so that tables are dropped and read again.
        for metadata_bytes in [64, 3000, 64 << 20] {
            let limits = Limits { metadata_bytes, ..Limits::default() };
            let disk = vmdk::open(file(), &path, &limits);
            if metadata_bytes == 64 {
                assert!(disk.err().unwrap().to_string().contains("too many to hold"));
                continue;
            }
            assert!(read(&disk.unwrap(), &mut Draw::new(7)).unwrap() == expected, "{subformat} differs");
        }
    }
}

#[test]
fn what_names_other_files_is_refused() {
    if !has_qemu_img() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("disk.raw");
    fs::write(&raw, volume(300 * 512, 3)).unwrap();
    let refused = |path: &Path| match open(path).map(drop).unwrap_err() {
        DiskError::Refused { why, .. } => why,
        other => panic!("{other}"),
    };
    for subformat in ["monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat"] {
        let descriptor = convert(dir.path(), &raw, subformat);
        assert!(refused(&descriptor).contains("only a descriptor"), "{subformat}");
    }
    // One file of several has no descriptor.
    let part = dir.path().join("twoGbMaxExtentSparse-s001.vmdk");
    assert!(refused(&part).contains("one of several files"));
}

/// Whatever a descriptor names, the answer is the same whether that is there, is not there, or would block
/// whoever opens it: it is never touched.
#[test]
fn named_files_are_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let path = dir.path().join("flat.vmdk");
    for name in ["/etc/hostname", "/etc/not-there", pipe.to_str().unwrap()] {
        let text = format!(
            "# Disk DescriptorFile\nversion=1\nCID=88fd69b6\nparentCID=ffffffff\n\
             createType=\"monolithicFlat\"\nRW 1 FLAT \"{name}\" 0\n"
        );
        fs::write(&path, text).unwrap();
        let error = open(&path).map(drop).unwrap_err();
        assert!(matches!(&error, DiskError::Refused { why, .. } if why.contains("only a descriptor")));
        if !has_qemu_img() {
            continue;
        }
        // The same inside a sparse file: qemu-img's own descriptor is replaced.
        let raw = dir.path().join("disk.raw");
        fs::write(&raw, volume(300 * 512, 3)).unwrap();
        let sparse = convert(dir.path(), &raw, "monolithicSparse");
        let mut bytes = fs::read(&sparse).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        bytes[512..1536].fill(0);
        bytes[512..][..text.len()].copy_from_slice(text.as_bytes());
        fs::write(&sparse, bytes).unwrap();
        let error = open(&sparse).map(drop).unwrap_err().to_string();
        assert!(error.contains("FLAT") && !error.contains(name), "{error}");
    }
}

#[test]
fn no_flipped_byte_leads_to_a_panic() {
    if !has_qemu_img() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("disk.raw");
    let mut draw = Draw::new(11);
    fs::write(&raw, volume(700 * 512, 3)).unwrap();
    for subformat in READABLE {
        let good = fs::read(convert(dir.path(), &raw, subformat)).unwrap();
        for round in 0..1500 {
            let mut bytes = good.clone();
            for _ in 0..=draw.below(3) {
                // Header and descriptor, tables, anywhere.
                let reach = [80, 1024, 14_000, bytes.len()][draw.below(4)];
                let at = draw.below(reach);
                bytes[at] = if round % 3 == 0 { 0xff } else { bytes[at] ^ 1 << draw.below(8) };
            }
            if draw.below(8) == 0 {
                bytes.truncate(draw.below(good.len()));
            }
            // A read outside the file panics.
            let file = Arc::new(MemoryDisk::new(bytes));
            let limits = Limits { virtual_bytes: 64 << 20, ..Limits::default() };
            if let Ok(disk) = vmdk::open(file, Path::new("flipped.vmdk"), &limits) {
                let _ = read(&disk, &mut draw);
            }
        }
    }
}
