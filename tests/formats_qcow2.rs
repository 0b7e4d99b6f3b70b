//! The qcow2 reader against QEMU: what `qemu-img` and `qemu-io` write reads back as the bytes that it was
//! made of, whatever the options; and files with flipped bytes end in errors.
//!
//! `IMGSTORE_FORMAT_IMAGES` sets how many images are made. Without `qemu-img` there is nothing to ask.

#![allow(clippy::print_stdout, reason = "a word to whoever looks for it")]

mod common;

use common::{Draw, MemoryDisk, volume, write_in_pieces};
use imgstore::disk::formats::Limits;
use imgstore::disk::formats::qcow2::{Qcow2, open, write};
use imgstore::disk::{DiskError, DiskRead};
use imgstore::io::outfile::NewFile;
use imgstore::io::rawdisk::RawDisk;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

const SECTOR: usize = 512;

fn has_qemu() -> bool {
    let found =
        ["qemu-img", "qemu-io"].iter().all(|tool| Command::new(tool).arg("--version").output().is_ok());
    if !found {
        common::skipped("there is no qemu-img or no qemu-io");
    }
    found
}

fn images() -> u64 {
    std::env::var("IMGSTORE_FORMAT_IMAGES").ok().map_or(60, |n| n.parse().expect("a number"))
}

fn run(dir: &Path, tool: &str, arguments: &[&str]) {
    let output = Command::new(tool).current_dir(dir).args(arguments).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{tool} {arguments:?}: {}", String::from_utf8_lossy(&text));
}

/// Options of a new image, the size of its clusters, and whether they are to be compressed.
fn options(draw: &mut Draw) -> (String, usize, bool) {
    let is_new = draw.below(4) > 0;
    let cluster_bits = [9, 10, 12, 14, 16, 16, 18, 21][draw.below(8)];
    let mut options =
        format!("compat={},cluster_size={}", if is_new { "1.1" } else { "0.10" }, 1 << cluster_bits);
    let is_compressed = draw.below(2) == 0;
    if is_new && draw.below(2) == 0 {
        options += ",compression_type=zstd";
    }
    if is_new && cluster_bits >= 14 && draw.below(2) == 0 {
        options += ",extended_l2=on";
    }
    if is_new && draw.below(4) == 0 {
        options += ",lazy_refcounts=on,refcount_bits=64";
    }
    if !is_compressed && draw.below(3) == 0 {
        options += ",preallocation=metadata";
    }
    (options, 1 << cluster_bits, is_compressed)
}

/// A size of one byte to a few MiB: odd, or a round number.
fn size(draw: &mut Draw) -> usize {
    match draw.below(4) {
        0 => 1 + draw.below(5000),
        1 => 65536 * (1 + draw.below(48)),
        2 => 4096 * (1 + draw.below(700)),
        _ => 1 + draw.below(4 << 20),
    }
}

/// Bytes with noise, words, and holes of all lengths.
fn sparse(len: usize, draw: &mut Draw) -> Vec<u8> {
    let mut bytes = volume(len, draw.next());
    for _ in 0..draw.below(6) {
        let start = draw.below(len) / 4096 * 4096;
        let end = (start + draw.below(len)).min(len);
        bytes[start..end].fill(0);
    }
    bytes
}

/// An image made of raw bytes in one go, and the bytes: a whole number of sectors, since QEMU's disks are.
fn converted(dir: &Path, draw: &mut Draw) -> (Vec<u8>, Vec<u8>, String) {
    let mut raw = sparse(size(draw), draw);
    raw.resize(raw.len().next_multiple_of(SECTOR), 0);
    fs::write(dir.join("raw"), &raw).unwrap();
    let (options, _, is_compressed) = options(draw);
    let mut arguments = vec!["convert", "-f", "raw", "-O", "qcow2", "-o", &options];
    if is_compressed {
        arguments.push("-c");
    }
    arguments.extend(["raw", "disk"]);
    run(dir, "qemu-img", &arguments);
    (fs::read(dir.join("disk")).unwrap(), raw, format!("converted, {is_compressed}, {options}"))
}

/// An image that was written, zeroed, discarded, grown and kept in snapshots, and what QEMU reads of it.
fn worn(dir: &Path, draw: &mut Draw) -> (Vec<u8>, Vec<u8>, String) {
    let (options, cluster, is_compressed) = options(draw);
    let mut len = size(draw).next_multiple_of(SECTOR);
    run(dir, "qemu-img", &["create", "-q", "-f", "qcow2", "-o", &options, "disk", &len.to_string()]);
    for round in 0..1 + draw.below(3) {
        let mut commands = Vec::new();
        for _ in 0..draw.below(20) {
            let start = draw.below(len / SECTOR) * SECTOR;
            let long = if draw.below(2) == 0 { 8 << 10 } else { 1 << 20 };
            let bytes = (draw.below(long.min(len - start) / SECTOR) + 1) * SECTOR;
            let pattern = 1 + draw.below(255);
            let whole = start / cluster * cluster;
            commands.push(match draw.below(8) {
                0 => format!("write -z {start} {bytes}"),
                1 => format!("write -z -u {start} {bytes}"),
                2 => format!("discard {start} {bytes}"),
                3 if is_compressed && whole + cluster <= len => {
                    format!("write -c -P {pattern} {whole} {cluster}")
                }
                _ => format!("write -P {pattern} {start} {bytes}"),
            });
        }
        let mut arguments = vec!["-f", "qcow2", "-d", "unmap"];
        for command in &commands {
            arguments.extend(["-c", command]);
        }
        arguments.push("disk");
        if !commands.is_empty() {
            // It fails where a cluster that is there already is to be compressed: the disk is what it then is.
            let output = Command::new("qemu-io").current_dir(dir).args(&arguments).output().unwrap();
            if fs::read(dir.join("disk")).unwrap()[79] & 2 != 0 {
                println!("QEMU corrupted its own image: {}", String::from_utf8_lossy(&output.stderr));
                return worn(dir, draw);
            }
        }
        match draw.below(4) {
            0 => run(dir, "qemu-img", &["snapshot", "-c", &format!("s{round}"), "disk"]),
            1 if !options.contains("0.10") => {
                len += SECTOR * draw.below(9000);
                run(dir, "qemu-img", &["resize", "-q", "-f", "qcow2", "disk", &len.to_string()]);
            }
            _ => {}
        }
    }
    run(dir, "qemu-img", &["convert", "-f", "qcow2", "-O", "raw", "disk", "raw"]);
    let file = fs::read(dir.join("disk")).unwrap();
    (file, fs::read(dir.join("raw")).unwrap(), format!("worn, {is_compressed}, {options}"))
}

fn opened(file: Vec<u8>, limits: &Limits) -> Result<Qcow2, DiskError> {
    open(Arc::new(MemoryDisk::new(file)), Path::new("disk.qcow2"), limits)
}

/// Reads all of a disk by its extents, in pieces of random lengths.
fn read_whole(disk: &Qcow2, draw: &mut Draw) -> Result<Vec<u8>, DiskError> {
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < disk.len_bytes() {
        let at = bytes.len();
        let extent = disk.extent_at(at as u64)?;
        assert!(extent.start == at as u64 && extent.end > extent.start && extent.end <= disk.len_bytes());
        let end = extent.end as usize;
        bytes.resize(end, 0);
        if extent.is_zero {
            continue;
        }
        bytes[at..].fill(0xaa);
        let mut rest = &mut bytes[at..];
        let mut offset = at;
        while !rest.is_empty() {
            let most = [1000, 65536, 1 << 20, 8 << 20][draw.below(4)];
            let (piece, behind) = rest.split_at_mut((1 + draw.below(most)).min(rest.len()));
            disk.read_at(offset as u64, piece)?;
            offset += piece.len();
            rest = behind;
        }
    }
    Ok(bytes)
}

fn read_anywhere(disk: &Qcow2, raw: &[u8], draw: &mut Draw) {
    for _ in 0..20 {
        let start = draw.below(raw.len());
        let mut piece = vec![0xaa; draw.below(raw.len() - start) + 1];
        disk.read_at(start as u64, &mut piece).unwrap();
        assert!(piece == raw[start..start + piece.len()], "{} bytes at {start}", piece.len());
    }
}

#[test]
fn what_qemu_writes_is_read() {
    if !has_qemu() {
        return;
    }
    for seed in 0..images() {
        let dir = tempfile::tempdir().unwrap();
        let mut draw = Draw::new(seed);
        let made = if seed % 2 == 0 { converted } else { worn };
        let (file, raw, how) = made(dir.path(), &mut draw);
        // In small memory every table is read again and again.
        let metadata_bytes = if seed % 3 == 0 { 1 << 20 } else { 64 << 20 };
        let limits = Limits { metadata_bytes, ..Limits::default() };
        let disk = opened(file, &limits).unwrap_or_else(|error| panic!("image {seed}, {how}: {error}"));
        assert_eq!(disk.len_bytes(), raw.len() as u64, "image {seed}, {how}");
        let read =
            read_whole(&disk, &mut draw).unwrap_or_else(|error| panic!("image {seed}, {how}: {error}"));
        if let Some(at) = read.iter().zip(&raw).position(|(read, raw)| read != raw) {
            panic!("image {seed}, {how}: byte {at} differs");
        }
        std::thread::scope(|scope| {
            for thread in 0..2 {
                let (disk, raw) = (&disk, &raw);
                scope.spawn(move || read_anywhere(disk, raw, &mut Draw::new(seed * 2 + thread)));
            }
        });
    }
}

#[test]
fn holes_are_passed_over_and_snapshots_noted() {
    if !has_qemu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), "qemu-img", &["create", "-q", "-f", "qcow2", "disk", "60T"]);
    let write = ["-f", "qcow2", "-c", "write -P 7 59T 64k", "disk"];
    run(dir.path(), "qemu-io", &write);
    run(dir.path(), "qemu-img", &["snapshot", "-c", "before", "disk"]);
    let disk = opened(fs::read(dir.path().join("disk")).unwrap(), &Limits::default()).unwrap();
    assert_eq!(disk.len_bytes(), 60 << 40);
    assert_eq!(disk.notes().len(), 1);
    let (mut at, mut steps, mut data) = (0, 0, 0);
    while at < disk.len_bytes() {
        let extent = disk.extent_at(at).unwrap();
        if !extent.is_zero {
            data += extent.end - extent.start;
            let mut bytes = vec![0; 65536];
            disk.read_at(extent.start, &mut bytes).unwrap();
            assert_eq!((extent.start, bytes), (59 << 40, vec![7; 65536]));
        }
        (at, steps) = (extent.end, steps + 1);
    }
    assert_eq!(data, 65536);
    assert!(steps < 130_000, "{steps} extents");
}

/// What was only made room for is a hole of the file, and of the disk.
#[test]
fn clusters_in_holes_of_the_file_are_holes() {
    if !has_qemu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let create = ["create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", "disk", "200M"];
    run(dir.path(), "qemu-img", &create);
    run(dir.path(), "qemu-io", &["-f", "qcow2", "-c", "write -P 7 100M 1M", "disk"]);
    let file = RawDisk::open(&dir.path().join("disk")).unwrap();
    let disk = open(Arc::new(file), Path::new("disk"), &Limits::default()).unwrap();
    let (mut at, mut data) = (0, Vec::new());
    while at < disk.len_bytes() {
        let extent = disk.extent_at(at).unwrap();
        if !extent.is_zero {
            data.push((extent.start >> 20, extent.end.div_ceil(1 << 20)));
        }
        at = extent.end;
    }
    assert_eq!(data, [(100, 101)]);
    assert_eq!(read_whole(&disk, &mut Draw::new(1)).unwrap()[100 << 20..101 << 20], [7; 1 << 20]);
}

#[test]
fn what_names_another_file_or_needs_a_key_is_refused() {
    if !has_qemu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let create = |arguments: &[&str]| {
        let _ = fs::remove_file(dir.path().join("disk"));
        run(dir.path(), "qemu-img", &[&["create", "-q", "-f", "qcow2"], arguments, &["disk", "1M"]].concat());
        opened(fs::read(dir.path().join("disk")).unwrap(), &Limits::default())
    };
    assert!(create(&[]).is_ok());
    fs::write(dir.path().join("secret"), [1; 1 << 20]).unwrap();
    let secret = [
        "--object",
        "secret,id=s,data=abc",
        "-o",
        "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
    ];
    let hostile: [(&[&str], &str); 4] = [
        (&["-b", "secret", "-F", "raw"], "backing file"),
        (&["-o", "data_file=other"], "another file"),
        (&["-o", "data_file=other,data_file_raw=on"], "another file"),
        (&secret, "LUKS"),
    ];
    for (arguments, expected) in hostile {
        match create(arguments) {
            Err(DiskError::Refused { why, .. }) => assert!(why.contains(expected), "{arguments:?}: {why}"),
            other => panic!("{arguments:?}: {:?}", other.map(|disk| disk.len_bytes())),
        }
    }
}

/// A disk's extents and bytes up to some length, in a bounded number of steps.
fn read_some(disk: &Qcow2) -> Result<(), DiskError> {
    let mut buffer = vec![0; 100_000];
    let mut at = 0;
    while at < disk.len_bytes() {
        let extent = disk.extent_at(at)?;
        assert!(extent.start == at && extent.end > at && extent.end <= disk.len_bytes());
        if !extent.is_zero {
            for offset in (at..extent.end).step_by(buffer.len()) {
                let len = buffer.len().min((extent.end - offset) as usize);
                // One damaged cluster must not hide the others.
                let _ = disk.read_at(offset, &mut buffer[..len]);
            }
        }
        at = extent.end;
    }
    Ok(())
}

#[test]
fn flipped_bytes_end_in_errors_at_worst() {
    if !has_qemu() {
        return;
    }
    let limits = Limits { virtual_bytes: 8 << 20, metadata_bytes: 1 << 20 };
    let (mut refused, mut read) = (0, 0);
    for seed in 0..images().min(12) {
        let dir = tempfile::tempdir().unwrap();
        let mut draw = Draw::new(1000 + seed);
        let made = if seed % 2 == 0 { converted } else { worn };
        let (file, ..) = made(dir.path(), &mut draw);
        // Half of the flips fall into tables: clusters of which a word is like an offset.
        let words = file.chunks(8).enumerate().filter(|(_, word)| word.iter().any(|&byte| byte != 0));
        let in_tables: Vec<usize> = words
            .filter(|(_, word)| matches!(word[0], 0 | 0x40..=0x43 | 0x80))
            .map(|(at, _)| at * 8)
            .collect();
        for _ in 0..80 {
            let mut bytes = file.clone();
            for _ in 0..=draw.below(4) {
                let at = match draw.below(3) {
                    0 => draw.below(128),
                    1 => in_tables[draw.below(in_tables.len())] + draw.below(8),
                    _ => draw.below(bytes.len()),
                };
                let at = at.min(bytes.len() - 1);
                bytes[at] =
                    if draw.below(2) == 0 { bytes[at] ^ 1 << draw.below(8) } else { draw.below(256) as u8 };
            }
            if draw.below(8) == 0 {
                bytes.truncate(draw.below(file.len()));
            }
            match opened(bytes, &limits).and_then(|disk| read_some(&disk)) {
                Ok(()) => read += 1,
                Err(_) => refused += 1,
            }
        }
    }
    assert!(refused > 10 && read > 10, "{refused} refused, {read} read");
}

/// What qemu-img says of a file that must be without faults and hold the bytes of `raw` beside it.
fn ask_qemu(dir: &Path, raw: &[u8]) {
    fs::write(dir.join("raw"), raw).unwrap();
    run(dir, "qemu-img", &["check", "-q", "-f", "qcow2", "disk"]);
    run(dir, "qemu-img", &["compare", "-q", "-f", "qcow2", "-F", "raw", "disk", "raw"]);
}

#[test]
fn what_is_written_is_read_by_qemu() {
    if !has_qemu() {
        return;
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    for seed in 0..images() {
        let (dir, mut draw) = (tempfile::tempdir().unwrap(), Draw::new(seed + 5000));
        let mut raw = sparse(size(&mut draw), &mut draw);
        let path = dir.path().join("disk");
        let file = Box::new(NewFile::create(&path, 0, false).unwrap());
        let options = write::Options { is_compressed: seed % 2 == 0 };
        let target = write::create(file, &path, raw.len() as u64, options, &pool).unwrap();
        write_in_pieces(target, &raw, &mut draw);
        raw.resize(raw.len().next_multiple_of(SECTOR), 0);
        ask_qemu(dir.path(), &raw);
        let disk = opened(fs::read(&path).unwrap(), &Limits::default()).unwrap();
        assert!(read_whole(&disk, &mut draw).unwrap() == raw, "image {seed}");
    }
}

/// Nothing is there but what is not zeros, and QEMU can write to it.
#[test]
fn a_huge_disk_that_is_written_is_qemus_too() {
    if !has_qemu() {
        return;
    }
    let (dir, len) = (tempfile::tempdir().unwrap(), 64 << 40);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    let path = dir.path().join("disk");
    let file = Box::new(NewFile::create(&path, 0, false).unwrap());
    let options = write::Options { is_compressed: true };
    let mut target = write::create(file, &path, len, options, &pool).unwrap();
    for at in (0..len).step_by(256 << 20) {
        match at >> 40 << 40 == at {
            true => target.write_at(at, &[7; 4096]).unwrap(),
            false => target.zero_at(at, 256 << 20).unwrap(),
        }
    }
    target.finish().unwrap();
    assert!(fs::metadata(&path).unwrap().len() < 8 << 20);
    let check = ["check", "-q", "-f", "qcow2", "disk"];
    run(dir.path(), "qemu-img", &check);
    let commands = ["-f", "qcow2", "-c", "read -P 7 63T 4k", "-c", "write -P 9 63T 4k", "-c", "write 5G 3M"];
    run(dir.path(), "qemu-io", &[&commands[..], &["disk"]].concat());
    run(dir.path(), "qemu-img", &check);
}
