//! `--skip-free` against the file systems' own tools: images full of garbage are made into file systems, filled,
//! partly emptied, and their free blocks taken as zero. Then the checkers find nothing, every file is as it was,
//! and what was taken is what the tools say is free.
//!
//! Parts are skipped, saying so, where mkfs, debugfs, xfs_db, btrfs or loop mounts are missing.

#![allow(clippy::print_stdout, reason = "what was compared is said")]

mod common;
#[path = "../fuzz/src/sparse.rs"]
mod sparse;

use common::mounted::{Mounted, have, must, run, text};
use common::{Draw, MemoryDisk, volume};
use imgstore::disk::formats;
use imgstore::disk::free::{Limits, Outcome, Part, Place, skip_free};
use imgstore::disk::open::{Declared, open_disk, open_raw};
use imgstore::disk::{DiskError, DiskRead, Extent};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;

/// A disk that is a file.
struct FileDisk(File, u64);

impl FileDisk {
    fn open(path: &Path) -> Self {
        let file = File::open(path).unwrap();
        let len = file.metadata().unwrap().len();
        Self(file, len)
    }
}

impl DiskRead for FileDisk {
    fn len_bytes(&self) -> u64 {
        self.1
    }

    fn extent_at(&self, offset: u64) -> Result<Extent, DiskError> {
        assert!(offset < self.1);
        Ok(Extent { start: offset, end: self.1, is_zero: false })
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        self.0.read_exact_at(buffer, offset).unwrap();
        Ok(())
    }
}

/// A file full of noise, without a block of zeros.
fn garbage(path: &Path, len: u64, seed: u64) {
    let mut draw = Draw::new(seed);
    let file = File::create(path).unwrap();
    let noise: Vec<u8> = (0..MIB / 8).flat_map(|_| (draw.next() | 1).to_le_bytes()).collect();
    for at in (0..len).step_by(MIB as usize) {
        let here = (len - at).min(MIB) as usize;
        file.write_all_at(&noise[..here], at).unwrap();
    }
}

fn skip(path: &Path) -> (Box<dyn DiskRead>, Vec<Part>) {
    skip_free(Box::new(FileDisk::open(path)), &Limits::default(), &|| false).unwrap()
}

fn why(path: &Path) -> String {
    let (_, parts) = skip(path);
    match &parts[..] {
        [Part { outcome: Outcome::LeftAlone { why }, .. }] => why.clone(),
        other => panic!("{other:?}"),
    }
}

fn taken(parts: &[Part]) -> u64 {
    let bytes = |part: &Part| match &part.outcome {
        Outcome::Skipped { free_bytes, data_bytes } => {
            assert_eq!(free_bytes, data_bytes, "this disk has no holes");
            *free_bytes
        }
        Outcome::LeftAlone { .. } => panic!("{part}"),
    };
    parts.iter().map(bytes).sum()
}

/// The zero extents of a disk; reads agree with them, and are the file's own bytes elsewhere.
fn zeros(disk: &dyn DiskRead) -> Vec<(u64, u64)> {
    let (mut at, mut found) = (0, Vec::new());
    while at < disk.len_bytes() {
        let extent = disk.extent_at(at).unwrap();
        assert!(extent.start == at && extent.end > at);
        if extent.is_zero {
            assert!(at % BLOCK == 0 && extent.end % BLOCK == 0);
            found.push((at, extent.end));
        }
        at = extent.end;
    }
    found
}

/// Writes the disk out by reads that cross the borders of extents.
fn write_out(disk: &dyn DiskRead, from: &Path, to: &Path) {
    let free = zeros(disk);
    let (source, target) = (File::open(from).unwrap(), File::create(to).unwrap());
    let (mut at, mut buffer, mut own) = (0, vec![0xaa; 1_000_003], vec![0; 1_000_003]);
    while at < disk.len_bytes() {
        let here = (disk.len_bytes() - at).min(buffer.len() as u64) as usize;
        disk.read_at(at, &mut buffer[..here]).unwrap();
        source.read_exact_at(&mut own[..here], at).unwrap();
        let end = at + here as u64;
        for &(start, stop) in free.iter().filter(|range| range.0 < end && range.1 > at) {
            own[(start.max(at) - at) as usize..(stop.min(end) - at) as usize].fill(0);
        }
        assert!(own[..here] == buffer[..here], "something else than the free ranges is changed");
        target.write_all_at(&buffer[..here], at).unwrap();
        at = end;
    }
}

/// What lies in `ranges`, cut to whole blocks of the store.
fn whole_blocks(mut ranges: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    ranges.sort_unstable();
    let mut merged: Vec<(u64, u64)> = Vec::new();
    for (start, end) in ranges {
        match merged.last_mut() {
            Some(last) if last.1 == start => last.1 = end,
            _ => merged.push((start, end)),
        }
    }
    let cut = merged.into_iter().map(|(start, end)| (start.next_multiple_of(BLOCK), end / BLOCK * BLOCK));
    cut.filter(|(start, end)| start < end).collect()
}

/// Files of many sizes.
fn fill(folder: &Path, draw: &mut Draw, files: usize, large: usize) {
    for number in 0..files {
        let folder = folder.join(format!("d{}", number % 7));
        fs::create_dir_all(&folder).unwrap();
        let len = if number % 9 == 0 { draw.below(large) } else { draw.below(30_000) };
        let bytes: Vec<u8> = (0..len).map(|at| (at * 7 + number) as u8 | 1).collect();
        fs::write(folder.join(format!("f{number}")), bytes).unwrap();
    }
}

/// Removes about half of the files, some from the middle of the others.
fn empty(folder: &Path, draw: &mut Draw) {
    for path in contents(folder).into_keys() {
        if draw.below(2) == 0 {
            fs::remove_file(folder.join(path)).unwrap();
        }
    }
}

fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(path.strip_prefix(folder).unwrap().to_owned(), fs::read(&path).unwrap());
            }
        }
    }
    found
}

/// Fills a file system and empties it in part, twice, by the kernel.
fn use_it(image: &Path, seed: u64) -> Option<BTreeMap<PathBuf, Vec<u8>>> {
    let mut draw = Draw::new(seed);
    for round in 0..2 {
        let mounted = Mounted::new(image, "")?;
        // Many small ones make trees of several levels.
        let (files, large) = if seed.is_multiple_of(4) { (1500, 40_000) } else { (150, 900_000) };
        fill(&mounted.0.join(format!("round{round}")), &mut draw, files, large);
        run("sync", &["-f", text(&mounted.0)]);
        empty(&mounted.0.join(format!("round{round}")), &mut draw);
    }
    let mounted = Mounted::new(image, ",ro")?;
    Some(contents(&mounted.0))
}

struct Tried {
    folder: tempfile::TempDir,
    image: PathBuf,
}

impl Tried {
    fn new(len: u64, seed: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        garbage(&image, len, seed);
        Self { folder, image }
    }

    fn image(&self) -> &str {
        text(&self.image)
    }

    /// What is taken as zero is exactly this, and the copy with that as zeros is written.
    fn copy(&self, expected: &[(u64, u64)], kind: &str) -> PathBuf {
        let (disk, parts) = skip(&self.image);
        assert_eq!((parts.len(), parts[0].place, parts[0].kind), (1, Place::WholeDisk, Some(kind)));
        let total = taken(&parts);
        assert!(total > MIB, "{}", parts[0]);
        let found = zeros(&*disk);
        assert_eq!(found.iter().map(|(start, end)| end - start).sum::<u64>(), total);
        if found != expected {
            let wrong = found.iter().find(|range| !expected.contains(range));
            let missed = expected.iter().find(|range| !found.contains(range));
            panic!("{wrong:?} is too much, {missed:?} too little");
        }
        let copy = self.folder.path().join("copy");
        write_out(&*disk, &self.image, &copy);
        copy
    }
}

/// What dumpe2fs says is free.
fn ext_oracle(image: &str) -> Vec<(u64, u64)> {
    let said = must("dumpe2fs", &[image]);
    let number = |name: &str| -> u64 {
        let line = said.lines().find(|line| line.starts_with(name)).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    let size = number("Block size:");
    let mut free = Vec::new();
    for line in said.lines().filter_map(|line| line.strip_prefix("  Free blocks: ")) {
        for range in line.split(", ").filter(|range| !range.is_empty()) {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last): (u64, u64) = (first.parse().unwrap(), last.parse().unwrap());
            free.push((first * size, (last + 1) * size));
        }
    }
    whole_blocks(free)
}

const EXT: [&[&str]; 14] = [
    &[],
    &["-b", "1024"],
    &["-b", "2048"],
    &["-b", "4096"],
    &["-b", "1024", "-O", "^64bit"],
    &["-b", "1024", "-O", "^metadata_csum"],
    &["-O", "^metadata_csum,uninit_bg"],
    &["-b", "1024", "-O", "^metadata_csum,uninit_bg,^64bit"],
    &["-b", "1024", "-O", "^flex_bg,^metadata_csum,uninit_bg"],
    &["-b", "1024", "-O", "^flex_bg"],
    &["-b", "1024", "-O", "^sparse_super,^resize_inode,metadata_csum_seed"],
    &["-b", "1024", "-O", "orphan_file,fast_commit", "-g", "2048"],
    &["-t", "ext3"],
    &["-t", "ext2", "-b", "1024"],
];

fn mkfs_ext(image: &str, options: &[&str]) {
    let kind: &[&str] = if options.contains(&"-t") { &[] } else { &["-t", "ext4"] };
    let lazy = ["-F", "-q", "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1"];
    let options: Vec<&str> = [kind, &lazy, options, &[image]].concat();
    must("mke2fs", &options);
}

#[test]
fn ext4_is_taken_as_its_tools_say() {
    if !have(&["mke2fs", "dumpe2fs", "e2fsck"]) {
        return;
    }
    for (options, seed) in EXT.iter().zip(1..) {
        let tried = Tried::new(72 * MIB + 512 * seed, seed);
        mkfs_ext(tried.image(), options);
        let kind = if options.contains(&"ext3") {
            "ext3"
        } else if options.contains(&"ext2") {
            "ext2"
        } else {
            "ext4"
        };
        // As it was made, and after it was used.
        tried.copy(&ext_oracle(tried.image()), kind);
        let Some(files) = use_it(&tried.image, seed) else { return };
        let copy = tried.copy(&ext_oracle(tried.image()), kind);
        must("e2fsck", &["-fn", text(&copy)]);
        let mounted = Mounted::new(&copy, ",ro").unwrap();
        assert!(contents(&mounted.0) == files, "{options:?}");
        println!("{options:?}: {} files are as they were, {}", files.len(), skip(&tried.image).1[0]);
    }
}

#[test]
fn ext4_is_left_alone_when_in_doubt() {
    if !have(&["mke2fs", "debugfs"]) {
        return;
    }
    let tried = Tried::new(24 * MIB, 5);
    let cases: [(&str, &str); 10] = [
        ("feature needs_recovery", "journal has to be replayed"),
        ("ssv state 0", "not unmounted cleanly"),
        ("ssv state 3", "not unmounted cleanly"),
        ("ssv last_orphan 12", "deleted files"),
        ("ssv free_blocks_count 77", "counts 77"),
        ("feature FEATURE_I20", "unknown incompat features"),
        ("feature FEATURE_R20", "unknown ro_compat features"),
        ("feature FEATURE_C20", "unknown compat features"),
        ("set_bg 0 free_blocks_count 5", "block group 0 does not fit"),
        ("set_bg 0 flags 0x10", "unknown flags"),
    ];
    for (command, expected) in cases {
        let sums = if command.contains("flags") { "^metadata_csum" } else { "metadata_csum" };
        mkfs_ext(tried.image(), &["-b", "1024", "-O", sums]);
        must("debugfs", &["-w", "-R", command, tried.image()]);
        let found = why(&tried.image);
        assert!(found.contains(expected), "{command}: {found}");
    }
    for (options, expected) in [
        ("bigalloc", "bigalloc"),
        ("meta_bg,^resize_inode", "meta_bg"),
        ("mmp", "multiple mount"),
        ("sparse_super2,^resize_inode", "unknown compat"),
    ] {
        mkfs_ext(tried.image(), &["-O", options]);
        let found = why(&tried.image);
        assert!(found.contains(expected), "{options}: {found}");
    }
}

#[test]
fn a_mounted_file_system_is_left_alone() {
    if !have(&["mke2fs", "mkfs.xfs"]) {
        return;
    }
    for kind in ["ext4", "xfs"] {
        let tried = Tried::new(330 * MIB, 5);
        if kind == "ext4" {
            mkfs_ext(tried.image(), &[]);
        } else {
            mkfs_xfs(tried.image(), &[]);
        }
        let Some(mounted) = Mounted::new(&tried.image, "") else { return };
        fill(&mounted.0, &mut Draw::new(1), 20, 10_000);
        must("sync", &["-f", text(&mounted.0)]);
        let found = why(&tried.image);
        assert!(found.contains("mount and unmount it once"), "{kind}: {found}");
    }
}

/// What is read of a device is in memory afterwards, and a mounted file system writes past that. It keeps the pages with blocks
/// of its own there, with what else is in them: four blocks are a page here.
#[test]
fn a_device_is_read_as_its_file_system_has_written_it() {
    if !have(&["mke2fs", "losetup", "fsfreeze"]) {
        return;
    }
    let tried = Tried::new(64 * MIB, 5);
    mkfs_ext(tried.image(), &["-b", "1024"]);
    let Some(mounted) = Mounted::new(&tried.image, "") else { return };
    let device = must("losetup", &["-n", "-O", "NAME", "-j", tried.image()]);
    let folder = mounted.0.to_str().unwrap();
    let mut versions = BTreeSet::new();
    for seed in 1..4 {
        // In the place of what was there.
        let mut options = fs::OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).open(mounted.0.join("file")).unwrap();
        file.write_all_at(&volume(16 << 20, seed), 0).unwrap();
        must("fsfreeze", &["-f", folder]);
        // What the loop device has written.
        let there = fs::read(&tried.image);
        let mut read = vec![0; 64 << 20];
        let done = open_raw(Path::new(device.trim())).and_then(|disk| disk.read_at(0, &mut read));
        must("fsfreeze", &["-u", folder]);
        done.unwrap();
        let there = there.unwrap();
        let stale = there.chunks(1024).zip(read.chunks(1024)).filter(|(there, read)| there != read).count();
        assert_eq!(stale, 0, "blocks are read as they were");
        versions.insert(read);
    }
    assert_eq!(versions.len(), 3);
    let notes = |device: &str| {
        open_disk(Path::new(device.trim()), Declared::Nothing, &formats::Limits::default()).unwrap().notes
    };
    assert!(notes(&device).concat().contains("in use"));
    let unused = must("losetup", &["-f", "-r", "--show", tried.image()]);
    let said = notes(&unused);
    must("losetup", &["-d", unused.trim()]);
    assert!(said.is_empty(), "{said:?}");
}

/// What xfs_db says is free; without the lists of spare blocks.
fn xfs_oracle(image: &str) -> Vec<(u64, u64)> {
    let said = must("xfs_db", &["-r", "-c", "sb 0", "-c", "p blocksize agblocks agcount", image]);
    let number = |name: &str| -> u64 {
        let line = said.lines().find(|line| line.starts_with(name)).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    let (size, len) = (number("blocksize"), number("agblocks"));
    let said = must("xfs_db", &["-r", "-c", "freesp -d", image]);
    let spare: u64 = 4096;
    let mut lists = Vec::new();
    for group in 0..number("agcount") {
        let agf =
            must("xfs_db", &["-r", "-c", &format!("agf {group}"), "-c", "p flfirst fllast flcount", image]);
        let agfl = must("xfs_db", &["-r", "-c", &format!("agfl {group}"), "-c", "p bno", image]);
        let numbers: Vec<usize> =
            agf.lines().map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect();
        for place in agfl.split_whitespace().filter_map(|word| word.split_once(':')) {
            let (Ok(at), Ok(block)) = (place.0.parse::<usize>(), place.1.parse::<u64>()) else { continue };
            if (numbers[0]..=numbers[1]).contains(&at) && numbers[2] > 0 {
                lists.push((group, block));
            }
        }
    }
    assert!(lists.len() < spare as usize);
    let mut free = Vec::new();
    for line in said.lines() {
        let words: Vec<u64> = line.split_whitespace().map_while(|word| word.parse().ok()).collect();
        // The histogram behind the list has other columns.
        if let [group, start, count] = words[..] {
            if count == 1 && lists.contains(&(group, start)) {
                continue;
            }
            let at = (group * len + start) * size;
            free.push((at, at + count * size));
        }
    }
    whole_blocks(free)
}

const XFS: [&[&str]; 8] = [
    &[],
    &["-d", "agcount=2"],
    &["-d", "agcount=3"],
    &["-b", "size=1024"],
    &["-m", "rmapbt=1"],
    &["-m", "reflink=0,finobt=0", "-l", "su=32k"],
    &["-s", "size=4096", "-l", "su=256k,version=2"],
    &["-i", "nrext64=1", "-m", "bigtime=1,inobtcount=1"],
];

fn mkfs_xfs(image: &str, options: &[&str]) {
    must("mkfs.xfs", &[&["-q", "-f", "-K"], options, &[image]].concat());
}

#[test]
fn xfs_is_taken_as_its_tools_say() {
    if !have(&["mkfs.xfs", "xfs_db", "xfs_repair"]) {
        return;
    }
    for (options, seed) in XFS.iter().zip(1..) {
        let tried = Tried::new(330 * MIB + 512 * seed, seed);
        mkfs_xfs(tried.image(), options);
        tried.copy(&xfs_oracle(tried.image()), "XFS");
        let Some(files) = use_it(&tried.image, seed) else { return };
        let copy = tried.copy(&xfs_oracle(tried.image()), "XFS");
        must("xfs_repair", &["-n", text(&copy)]);
        let mounted = Mounted::new(&copy, ",ro,norecovery,nouuid").unwrap();
        assert!(contents(&mounted.0) == files, "{options:?}");
        println!("{options:?}: {} files are as they were, {}", files.len(), skip(&tried.image).1[0]);
    }
}

#[test]
fn xfs_is_left_alone_when_in_doubt() {
    if !have(&["mkfs.xfs", "xfs_db"]) {
        return;
    }
    let tried = Tried::new(330 * MIB, 3);
    for (command, expected) in [
        ("write -d features_incompat 0x10", "marked as damaged"),
        ("write -d features_incompat 0x80000001", "unknown incompat"),
        ("write -d features_ro_compat 0x80000001", "unknown ro_compat"),
        ("write -d fdblocks 77", "counts 77"),
        ("write -d rblocks 77", "realtime"),
    ] {
        mkfs_xfs(tried.image(), &[]);
        must("xfs_db", &["-x", "-c", "sb 0", "-c", command, tried.image()]);
        let found = why(&tried.image);
        assert!(found.contains(expected), "{command}: {found}");
    }
    mkfs_xfs(tried.image(), &["-m", "crc=0"]);
    assert!(why(&tried.image).contains("another version"));
    // A crash: the log has to be replayed.
    mkfs_xfs(tried.image(), &[]);
    if let Some(mounted) = Mounted::new(&tried.image, "") {
        fill(&mounted.0, &mut Draw::new(1), 30, 100_000);
        let (ok, _) = run("xfs_io", &["-x", "-c", "shutdown -f", text(&mounted.0)]).unwrap();
        drop(mounted);
        assert!(ok && why(&tried.image).contains("log is not clean"));
    }
}

const BTRFS: [&[&str]; 7] = [
    &[],
    &["-m", "single", "-d", "single"],
    &["-m", "dup", "-d", "dup"],
    &["-M"],
    &["-n", "4096"],
    &["-O", "^skinny-metadata,^no-holes", "-R", "^free-space-tree"],
    &["-O", "block-group-tree"],
];

fn mkfs_btrfs(image: &str, options: &[&str]) {
    must("mkfs.btrfs", &[&["-q", "-f", "-K"], options, &[image]].concat());
}

/// Ranges that no chunk covers, and that no extent covers of the chunks, by what btrfs itself prints.
fn btrfs_oracle(image: &str) -> Vec<(u64, u64)> {
    let total: u64 = {
        let said = must("btrfs", &["inspect-internal", "dump-super", image]);
        let line = said.lines().find(|line| line.starts_with("total_bytes")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let key = |line: &str| -> Option<(u64, String, u64)> {
        let inner = line.split_once("key (")?.1.split_once(')')?.0;
        let mut words = inner.split(' ');
        let id = words.next()?.parse().unwrap_or(256);
        let kind = words.next()?.to_owned();
        Some((id, kind, words.next()?.parse().ok()?))
    };
    let node: u64 = {
        let said = must("btrfs", &["inspect-internal", "dump-super", image]);
        let line = said.lines().find(|line| line.starts_with("nodesize")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let extents = must("btrfs", &["inspect-internal", "dump-tree", "-t", "extent", image]);
    let used: Vec<(u64, u64)> = extents
        .lines()
        .filter(|line| line.trim_start().starts_with("item "))
        .filter_map(key)
        .filter_map(|(id, kind, offset)| match kind.as_str() {
            "EXTENT_ITEM" => Some((id, id + offset)),
            "METADATA_ITEM" => Some((id, id + node)),
            _ => None,
        })
        .collect();
    let chunks = must("btrfs", &["inspect-internal", "dump-tree", "-t", "chunk", image]);
    let (mut covered, mut free, mut chunk) = (vec![], vec![], None);
    for line in chunks.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let Some((_, kind, start)) = key(line) {
            chunk = (kind == "CHUNK_ITEM").then_some((start, 0));
        } else if let (Some(chunk), ["length", len, ..]) = (&mut chunk, &words[..]) {
            chunk.1 = len.parse().unwrap();
        } else if let (Some((start, len)), ["stripe", _, "devid", _, "offset", offset]) = (chunk, &words[..])
        {
            let offset: u64 = offset.parse().unwrap();
            covered.push((offset, offset + len));
            let mut at = start;
            for &(from, to) in used.iter().filter(|range| range.0 >= start && range.1 <= start + len) {
                free.push((offset + at - start, offset + from - start));
                at = to;
            }
            free.push((offset + at - start, offset + len));
        }
    }
    covered.sort_unstable();
    let mut at = 0;
    for (start, end) in covered {
        free.push((at, start));
        at = end;
    }
    free.push((at, total));
    let reserved = [(0, MIB), (64 * MIB, 64 * MIB + 65536)];
    let apart = |(start, end): (u64, u64)| {
        let mut pieces = vec![(start, end)];
        for (from, to) in reserved {
            let cut =
                |(start, end): (u64, u64)| [(start, end.min(from).max(start)), (start.max(to).min(end), end)];
            pieces = pieces
                .into_iter()
                .flat_map(
                    |piece| if piece.0 < to && from < piece.1 { cut(piece).to_vec() } else { vec![piece] },
                )
                .collect();
        }
        pieces
    };
    whole_blocks(free.into_iter().flat_map(apart).filter(|(start, end)| start < end).collect())
}

#[test]
fn btrfs_is_taken_as_its_tools_say() {
    if !have(&["mkfs.btrfs", "btrfs"]) {
        return;
    }
    for (options, seed) in BTRFS.iter().zip(1..) {
        let tried = Tried::new(if seed == 1 { 600 } else { 270 } * MIB + 512 * seed, seed);
        if run("mkfs.btrfs", &[&["-q", "-f", "-K"], *options, &[tried.image()]].concat())
            .is_none_or(|made| !made.0)
        {
            common::skipped(format_args!("mkfs.btrfs does not know {options:?}"));
            continue;
        }
        tried.copy(&btrfs_oracle(tried.image()), "btrfs");
        let Some(files) = use_it(&tried.image, seed) else { return };
        let copy = tried.copy(&btrfs_oracle(tried.image()), "btrfs");
        must("btrfs", &["check", "--readonly", "--check-data-csum", text(&copy)]);
        let mounted = Mounted::new(&copy, ",ro").unwrap();
        assert!(contents(&mounted.0) == files, "{options:?}");
        println!("{options:?}: {} files are as they were, {}", files.len(), skip(&tried.image).1[0]);
    }
}

/// Changes the first superblock of a btrfs.
fn patch_btrfs(image: &Path, at: usize, bytes: &[u8]) {
    let file = fs::OpenOptions::new().read(true).write(true).open(image).unwrap();
    let mut block = vec![0; 4096];
    file.read_exact_at(&mut block, 65536).unwrap();
    block[at..at + bytes.len()].copy_from_slice(bytes);
    let sum = crc32c::crc32c(&block[32..]);
    block[..4].copy_from_slice(&sum.to_le_bytes());
    file.write_all_at(&block, 65536).unwrap();
}

#[test]
fn btrfs_is_left_alone_when_in_doubt() {
    if !have(&["mkfs.btrfs"]) {
        return;
    }
    let tried = Tried::new(270 * MIB, 3);
    let le = |number: u64| number.to_le_bytes();
    for (at, bytes, expected) in [
        (96, le(30 << 20), "log tree"),
        (136, le(2), "several devices"),
        (188, le(1 << 12 | 0x341), "incompat"),
        (188, le(1 << 40 | 0x341), "incompat"),
        (180, le(1 << 40), "compat_ro"),
        (56, le(1 | 1 << 34), "super flags"),
        (120, le(3 << 12), "damaged"),
        (120, le(77 << 20), "counts"),
        (72, le(1 << 30), "damaged"),
    ] {
        mkfs_btrfs(tried.image(), &[]);
        patch_btrfs(&tried.image, at, &bytes);
        let found = why(&tried.image);
        assert!(found.contains(expected), "{at}: {found}");
    }
    mkfs_btrfs(tried.image(), &["--csum", "xxhash"]);
    assert!(why(&tried.image).contains("CRC32C"));
    mkfs_btrfs(tried.image(), &[]);
    let file = fs::OpenOptions::new().read(true).write(true).open(&tried.image).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 65536 + 999).unwrap();
    file.write_all_at(&[!byte[0]], 65536 + 999).unwrap();
    assert!(why(&tried.image).contains("checksum"));
}

/// A disk that a table divides, made by sfdisk, with this file system in the first and the last partition.
const LINUX: &str = "0FC63DAF-8483-4772-8E79-3D69D8477DE4";

/// The first partition was the disk of a machine once: what a file system says that was there before is not believed.
fn partitions_with_tables_are_left_alone(path: &Path, image: &File) {
    let is_skipped = || matches!(skip(path).1[0].outcome, Outcome::Skipped { .. });
    let start = 2048 * 512;
    let mut sector = vec![0; 512];
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    image.write_all_at(&sector, start).unwrap();
    assert!(is_skipped(), "a boot sector without a table");
    sector[446..510].copy_from_slice(&"code and its text".repeat(4).as_bytes()[..64]);
    image.write_all_at(&sector, start).unwrap();
    assert!(is_skipped(), "a boot sector with code where the table would be");
    sector[446..510].fill(0);
    sector[446..462].copy_from_slice(&[0x80, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 32, 0, 0]);
    image.write_all_at(&sector, start).unwrap();
    assert!(!is_skipped() && skip(path).1[0].to_string().contains("partition table of its own"));
    image.write_all_at(&[0; 512], start).unwrap();
    image.write_all_at(b"EFI PART", start + 512).unwrap();
    assert!(!is_skipped());
    image.write_all_at(&[0; 8], start + 512).unwrap();
    assert!(is_skipped());
}

#[test]
fn partitions_are_found() {
    if !have(&["sfdisk", "mke2fs", "mkswap"]) {
        return;
    }
    let gpt = "label: gpt\nstart=2048,size=40960\nstart=43008,size=8192\nstart=51200,size=40960\n";
    let mbr = "label: dos\nstart=2048,size=40960,type=83\nstart=43008,size=2048,type=82\nstart=45056,type=5\n\
               start=47104,size=2048,type=83\nstart=51200,size=40960,type=83\n";
    for (table, first, last, count) in [(gpt, 1, 3, 3), (mbr, 1, 6, 4)] {
        let tried = Tried::new(64 * MIB, 9);
        let script = tried.folder.path().join("table");
        fs::write(&script, table).unwrap();
        let shell = format!("sfdisk -q --wipe never {} < {}", tried.image(), text(&script));
        must("sh", &["-c", &shell]);
        let system = tried.folder.path().join("system");
        let image = fs::OpenOptions::new().write(true).open(&tried.image).unwrap();
        for start in [2048, 51200] {
            garbage(&system, 20 * MIB, 4);
            mkfs_ext(text(&system), &["-b", "1024"]);
            image.write_all_at(&fs::read(&system).unwrap(), start * 512).unwrap();
        }
        garbage(&system, MIB, 4);
        must("mkswap", &[text(&system)]);
        image.write_all_at(&fs::read(&system).unwrap(), 43008 * 512).unwrap();

        let (disk, parts) = skip(&tried.image);
        let said: Vec<String> = parts.iter().map(Part::to_string).collect();
        assert_eq!(parts.len(), count, "{said:?}");
        for part in &parts {
            let is_system = [Place::Partition(first), Place::Partition(last)].contains(&part.place);
            assert_eq!(matches!(part.outcome, Outcome::Skipped { .. }), is_system, "{said:?}");
        }
        partitions_with_tables_are_left_alone(&tried.image, &image);
        assert!(said[0].starts_with("partition 1 (ext4): ") && said[0].contains("free blocks are taken"));
        assert_eq!(said[1], "partition 2 (swap): left alone: only ext4, XFS and btrfs are looked into");
        // A system that sleeps in the swap, and hashes of the others: all stays as it is.
        let swap = 43008 * 512;
        for (at, signature, reason) in
            [(4086, &b"S1SUSPEND\0"[..], "a suspended system"), (0, b"verity\0\0", "dm-verity on the disk")]
        {
            image.write_all_at(&[0; 10], swap + 4086).unwrap();
            image.write_all_at(signature, swap + at).unwrap();
            let (_, parts) = skip(&tried.image);
            for part in parts.iter().filter(|part| part.kind == Some("ext4")) {
                assert!(part.to_string().contains(&format!("left alone: {reason}")), "{part}");
            }
            assert!(parts.iter().all(|part| !matches!(part.outcome, Outcome::Skipped { .. })));
        }
        image.write_all_at(&[0; 8], swap).unwrap();
        image.write_all_at(b"SWAPSPACE2", swap + 4086).unwrap();
        // The footer of Android's verified boot ends the last partition: that one stays as it is, the other does not.
        let (end, mut before) = ((51200 + 40960) * 512, [0; 4]);
        fs::File::open(&tried.image).unwrap().read_exact_at(&mut before, end - 64).unwrap();
        image.write_all_at(b"AVBf", end - 64).unwrap();
        let (_, parts) = skip(&tried.image);
        let said = parts[count - 1].to_string();
        assert!(said.contains("left alone: dm-verity has hashes"), "{said}");
        assert!(matches!(parts[0].outcome, Outcome::Skipped { .. }), "{}", parts[0]);
        image.write_all_at(&before, end - 64).unwrap();
        let copy = tried.folder.path().join("copy");
        write_out(&*disk, &tried.image, &copy);
        let bytes = fs::read(&copy).unwrap();
        for start in [2048, 51200] {
            fs::write(&system, &bytes[start * 512..start * 512 + 20 * MIB as usize]).unwrap();
            must("e2fsck", &["-fn", text(&system)]);
        }

        // Of a type that is another system's, whatever is left of an older file system.
        let other = if table == gpt { "516E7CB6-6ECF-11D6-8FF8-00022D09712B" } else { "a5" };
        must("sfdisk", &["-q", "--part-type", tried.image(), &last.to_string(), other]);
        let kinds = skip(&tried.image).1;
        let said = kinds[count - 1].to_string();
        assert!(said.contains("left alone: its type says that it is"), "{said}");
        must(
            "sfdisk",
            &["-q", "--part-type", tried.image(), &last.to_string(), if table == gpt { LINUX } else { "83" }],
        );
        // And one that bears no such type, but another one's signature.
        let (magic_at, mut before) = (51200 * 512 + (64 << 10) + 1372, [0; 4]);
        let reader = fs::File::open(&tried.image).unwrap();
        reader.read_exact_at(&mut before, magic_at).unwrap();
        image.write_all_at(&0x1954_0119_u32.to_le_bytes(), magic_at).unwrap();
        let said = skip(&tried.image).1[count - 1].to_string();
        assert!(said.contains("signature of UFS, too"), "{said}");
        image.write_all_at(&before, magic_at).unwrap();

        // The table is damaged: nothing is looked into.
        if table == gpt {
            image.write_all_at(b"x", 1024 + 32).unwrap();
            let found = why(&tried.image);
            assert_eq!(found, "its GPT is damaged: its table's checksum does not fit");
        } else {
            // The first partition reaches into the second.
            image.write_all_at(&41000u32.to_le_bytes(), 446 + 12).unwrap();
            let (_, parts) = skip(&tried.image);
            let overlap = |part: &Part| part.to_string().ends_with("it overlaps another partition");
            assert_eq!(parts.iter().filter(|part| overlap(part)).count(), 2);
            assert!(matches!(parts[3].outcome, Outcome::Skipped { .. }));
            // A file system over the table.
            image.write_all_at(b"XFSB", 0).unwrap();
            assert!(why(&tried.image).contains("signature"));
        }
    }
}

/// Flatcar's partitions have a file system and behind it, in the same one, hashes of all of its blocks.
#[test]
fn a_file_system_with_hashes_behind_it_is_left_alone() {
    if !have(&["mke2fs", "mkfs.xfs", "mkfs.btrfs"]) {
        return;
    }
    // The smallest that all three make.
    let fs_bytes = 320 * MIB;
    for system in ["ext", "xfs", "btrfs"] {
        let tried = Tried::new(fs_bytes, 3);
        match system {
            "ext" => mkfs_ext(tried.image(), &[]),
            "xfs" => mkfs_xfs(tried.image(), &[]),
            _ => mkfs_btrfs(tried.image(), &[]),
        }
        let image = fs::OpenOptions::new().write(true).open(&tried.image).unwrap();
        let is_skipped = || matches!(skip(&tried.image).1[0].outcome, Outcome::Skipped { .. });
        assert!(is_skipped(), "{system}: {}", why(&tried.image));
        image.set_len(fs_bytes + 9 * MIB).unwrap();
        assert!(is_skipped(), "{system} in a larger partition: {}", why(&tried.image));
        for (at, bytes, expected) in [
            (0, &b"verity\0\0"[..], "dm-verity has hashes of its free blocks"),
            (4096, b"verity\0\0", "dm-verity has hashes of its free blocks"),
            (4096, b"hashes", "something lies behind its end"),
        ] {
            image.write_all_at(bytes, fs_bytes + at).unwrap();
            let found = why(&tried.image);
            assert!(found.contains(expected), "{system}, {at}: {found}");
            image.write_all_at(&[0; 8], fs_bytes + at).unwrap();
        }
        assert!(is_skipped(), "{system}: {}", why(&tried.image));
    }
}

#[test]
fn other_things_are_named_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    for (at, bytes, expected) in [
        (
            512 + 24,
            &b"LVM2 001"[..],
            "whole disk (LVM2): left alone: only ext4, XFS and btrfs are looked into",
        ),
        (0, b"LUKS\xba\xbe", "whole disk (LUKS): left alone: only ext4, XFS and btrfs are looked into"),
        (
            4096,
            b"\xfc\x4e\x2b\xa9",
            "whole disk (RAID): left alone: only ext4, XFS and btrfs are looked into",
        ),
        (
            MIB - 65536,
            b"\xfc\x4e\x2b\xa9",
            "whole disk (RAID): left alone: only ext4, XFS and btrfs are looked into",
        ),
        (99, b"nothing", "whole disk: left alone: no file system is known on it"),
    ] {
        File::create(&image).unwrap().set_len(MIB).unwrap();
        fs::OpenOptions::new().write(true).open(&image).unwrap().write_all_at(bytes, at).unwrap();
        let (disk, parts) = skip(&image);
        assert_eq!((disk.len_bytes(), parts.len(), parts[0].to_string().as_str()), (MIB, 1, expected));
    }
    for len in [0, 1, 511, 4097] {
        let (disk, parts) =
            skip_free(Box::new(MemoryDisk::new(vec![0; len])), &Limits::default(), &|| false).unwrap();
        assert_eq!((disk.len_bytes(), parts.len()), (len as u64, 1));
    }
}

/// An image in memory with some bytes changed. It says where it was read.
struct Changed {
    bytes: Arc<Vec<u8>>,
    changes: Vec<(u64, u8)>,
    read: Arc<std::sync::Mutex<Vec<(u64, u64)>>>,
}

impl DiskRead for Changed {
    fn len_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn extent_at(&self, offset: u64) -> Result<Extent, DiskError> {
        Ok(Extent { start: offset, end: self.len_bytes(), is_zero: false })
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        let end = offset + buffer.len() as u64;
        buffer.copy_from_slice(&self.bytes[offset as usize..end as usize]);
        for &(at, mask) in self.changes.iter().filter(|(at, _)| (offset..end).contains(at)) {
            buffer[(at - offset) as usize] ^= mask;
        }
        self.read.lock().unwrap().push((offset, end));
        Ok(())
    }
}

/// Flips bits of what is read. Where everything has a checksum, either the same is taken, or nothing.
#[test]
fn flipped_bits_take_nothing_that_is_used() {
    if !have(&["mke2fs", "mkfs.xfs", "mkfs.btrfs"]) {
        return;
    }
    for kind in ["ext4", "ext2", "xfs", "btrfs"] {
        let tried = Tried::new(if kind.starts_with("ext") { 24 } else { 330 } * MIB, 8);
        match kind {
            "ext4" => mkfs_ext(tried.image(), &["-b", "1024"]),
            "ext2" => mkfs_ext(tried.image(), &["-b", "1024", "-t", "ext2"]),
            "xfs" => mkfs_xfs(tried.image(), &[]),
            _ => mkfs_btrfs(tried.image(), &[]),
        }
        use_it(&tried.image, 9);
        let bytes = Arc::new(fs::read(&tried.image).unwrap());
        let open = |changes| {
            let read = Arc::new(std::sync::Mutex::new(Vec::new()));
            let disk = Changed { bytes: bytes.clone(), changes, read: read.clone() };
            let (disk, parts) = skip_free(Box::new(disk), &Limits::default(), &|| false).unwrap();
            let places = read.lock().unwrap().clone();
            (zeros(&*disk), parts, places)
        };
        let (sound, parts, mut places) = open(Vec::new());
        taken(&parts);
        places.sort_unstable();
        places.dedup();
        // Of the log every sector is read, but little of it matters.
        places.retain(|(start, end)| end - start < MIB);
        let mut draw = Draw::new(8);
        let (mut same, tries) = (0, if kind == "xfs" { 100 } else { 500 });
        for _ in 0..tries {
            let (start, end) = places[draw.below(places.len())];
            let at = start + draw.below((end - start) as usize) as u64;
            let (found, parts, _) = open(vec![(at, 1 << draw.below(8))]);
            if found == sound {
                same += 1;
            } else if !found.is_empty() {
                panic!("{kind}: a flip at {at} is not seen: {}", parts[0]);
            }
        }
        println!("{kind}: of {tries} flips {same} did not matter, the others were seen");
    }
}

/// The seeds of the fuzz target: of small file systems what is read of them.
#[test]
#[ignore = "writes the seeds anew"]
fn write_seeds() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/free");
    fs::create_dir_all(&folder).unwrap();
    for name in ["ext4", "ext4-1k", "ext2", "xfs", "btrfs", "gpt", "mbr"] {
        let tried = Tried::new(0, 1);
        let len = if ["xfs", "btrfs"].contains(&name) { 301 } else { 9 };
        File::create(&tried.image).unwrap().set_len(len * MIB).unwrap();
        match name {
            "xfs" => mkfs_xfs(tried.image(), &["-b", "size=1024", "-d", "agcount=2"]),
            "btrfs" => mkfs_btrfs(tried.image(), &["-n", "4096"]),
            "ext4" => mkfs_ext(tried.image(), &["-b", "4096", "-I", "256"]),
            "ext2" => mkfs_ext(tried.image(), &["-t", "ext2", "-b", "1024"]),
            _ => mkfs_ext(tried.image(), &["-b", "1024"]),
        }
        if name == "gpt" || name == "mbr" {
            let system = fs::read(&tried.image).unwrap();
            File::create(&tried.image).unwrap().set_len(12 * MIB).unwrap();
            let table = if name == "gpt" {
                "label: gpt\ntable-length: 4\nstart=2048,size=18432\n"
            } else {
                "label: dos\nstart=1024,type=5\nstart=2048,size=18432\n"
            };
            must("sh", &["-c", &format!("printf '{table}' | sfdisk -q {}", tried.image())]);
            let image = fs::OpenOptions::new().write(true).open(&tried.image).unwrap();
            image.write_all_at(&system, MIB).unwrap();
        }
        let bytes = Arc::new(fs::read(&tried.image).unwrap());
        let read = Arc::new(std::sync::Mutex::new(Vec::new()));
        let disk = Changed { bytes: bytes.clone(), changes: Vec::new(), read: read.clone() };
        let (_, parts) = skip_free(Box::new(disk), &Limits::default(), &|| false).unwrap();
        let mut seed = sparse::Sparse { len: bytes.len() as u64, pieces: Vec::new() };
        let mut places = read.lock().unwrap().clone();
        places.sort_unstable();
        let mut done = 0;
        for (start, end) in places {
            // Pieces without a long run of zeros.
            let (mut at, end) = (start.max(done) as usize, end as usize);
            while at < end {
                let zeros = bytes[at..end].iter().take_while(|&&byte| byte == 0).count();
                at += zeros;
                let mut stop = at;
                while stop < end && bytes[stop..end.min(stop + 40)].iter().any(|&byte| byte != 0) {
                    stop += 1;
                }
                for piece in bytes[at..stop].chunks(60_000) {
                    seed.put(at as u64, piece);
                    at += piece.len();
                }
            }
            done = done.max(end as u64);
        }
        println!("{name}: {}, {} bytes", parts[0], seed.encode().len());
        fs::write(folder.join(name), seed.encode()).unwrap();
    }
}

/// A disk that cannot be read is an error, not a file system to leave alone.
#[test]
fn a_disk_that_fails_is_an_error() {
    struct Failing(u64);
    impl DiskRead for Failing {
        fn len_bytes(&self) -> u64 {
            MIB
        }
        fn extent_at(&self, offset: u64) -> Result<Extent, DiskError> {
            Ok(Extent { start: offset, end: MIB, is_zero: false })
        }
        fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
            buffer.fill(0);
            if (offset..offset + buffer.len() as u64).contains(&self.0) {
                return Err(DiskError::NotFound { path: "disk".into() });
            }
            Ok(())
        }
    }
    for at in [0, 512, 1080, 4100, 65536 + 64, MIB - 65536] {
        assert!(skip_free(Box::new(Failing(at)), &Limits::default(), &|| false).is_err(), "{at}");
    }
}

/// Ctrl-C counts before each read, and before each look for holes: a large disk has many of both.
#[test]
fn reading_what_is_free_ends_when_nobody_waits() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    /// Counts what is asked of it.
    struct Counted(sparse::Sparse, Arc<AtomicUsize>);
    impl DiskRead for Counted {
        fn len_bytes(&self) -> u64 {
            self.0.len_bytes()
        }
        fn extent_at(&self, offset: u64) -> Result<Extent, DiskError> {
            self.1.fetch_add(1, Ordering::Relaxed);
            self.0.extent_at(offset)
        }
        fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
            self.1.fetch_add(1, Ordering::Relaxed);
            self.0.read_at(offset, buffer)
        }
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/free");
    for name in ["ext4", "ext4-1k", "ext2", "xfs", "btrfs", "gpt", "mbr"] {
        let seed = sparse::Sparse::parse(&fs::read(folder.join(name)).unwrap());
        let run = |last: usize| {
            let (calls, asked) = (Arc::new(AtomicUsize::new(0)), AtomicUsize::new(0));
            let disk = Box::new(Counted(seed.clone(), calls.clone()));
            let is_cancelled = || asked.fetch_add(1, Ordering::Relaxed) >= last;
            let outcome = skip_free(disk, &Limits::default(), &is_cancelled).map(|(_, parts)| parts);
            (outcome, calls.load(Ordering::Relaxed), asked.into_inner())
        };
        let (whole, calls, asked) = run(usize::MAX);
        let is_taken = |part: &Part| matches!(part.outcome, Outcome::Skipped { free_bytes: 1.., .. });
        assert!(whole.unwrap().iter().any(is_taken), "{name}");
        assert!(asked >= calls && calls > 50, "{name}: asked {asked} times for {calls} calls");
        for last in 0..asked {
            let (outcome, calls, _) = run(last);
            assert!(matches!(outcome, Err(DiskError::Interrupted)), "{name}: {last}");
            assert!(calls <= last, "{name}: {calls} calls after {last} answers");
        }
    }
}
