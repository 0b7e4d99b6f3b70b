//! What a machine can do with a disk, to hold against what imgstore does with it in the same minute. Not a benchmark of
//! imgstore; `benches/peers/run` calls it.
//!
//! ```text
//! limits read DISK          reads the parts that are data and hashes them with BLAKE3
//! limits decompress REGION  decompresses every frame of a region's packs, which are in memory before
//! limits write FILE BYTES   writes a new file past the page cache, and makes it durable: by one thread, by all, the better
//! ```
//!
//! Each on all processors, in the memory that imgstore uses for pieces of disks. Prints one JSON object: bytes, and seconds
//! without what was made ready.
#![allow(clippy::print_stdout, reason = "a program that reports")]

#[path = "common/packs.rs"]
mod packs;

use imgstore::disk::AlignedBuffer;
use imgstore::io::directory::DirectoryOptions;
use imgstore::region::Region;
use packs::{bases, decompress_all, packs, raw_bytes};
use rustix::fs::{Mode, OFlags, SeekFrom, open, seek};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::{available_parallelism, scope};
use std::time::Instant;

/// What is read and hashed at once: it stays in a processor's own cache.
const READ_BYTES: u64 = 1 << 20;
/// What is written at once, by one thread and by each of all.
const WRITE_BYTES: [usize; 2] = [16 << 20, 4 << 20];

fn main() {
    // `cargo bench` adds a flag of its own.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (bytes, seconds) = match words[..] {
        ["read", disk] => read(Path::new(disk)),
        ["decompress", region] => decompress(Path::new(region)),
        ["write", file, bytes] => write(Path::new(file), bytes.parse().expect("a number of bytes")),
        _ => {
            println!("usage: limits read DISK | decompress REGION | write FILE BYTES");
            return;
        }
    };
    println!("{{\"bytes\":{bytes},\"seconds\":{seconds:.6}}}");
}

fn threads() -> usize {
    available_parallelism().map_or(1, usize::from)
}

/// The pieces of a file that are data, none longer than [`READ_BYTES`].
fn pieces(file: &File) -> Vec<(u64, u64)> {
    let mut pieces = Vec::new();
    let mut at = 0;
    while let Ok(start) = seek(file, SeekFrom::Data(at)) {
        let end = seek(file, SeekFrom::Hole(start)).expect("an end of the data");
        let starts = (start..end).step_by(READ_BYTES as usize);
        pieces.extend(starts.map(|start| (start, READ_BYTES.min(end - start))));
        at = end;
    }
    pieces
}

fn read(disk: &Path) -> (u64, f64) {
    let started = Instant::now();
    let file = File::open(disk).expect("a disk");
    let pieces = pieces(&file);
    let next = AtomicUsize::new(0);
    let work = || {
        let mut buffer = AlignedBuffer::default();
        buffer.resize(READ_BYTES as usize);
        while let Some(&(offset, len)) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            let part = &mut buffer.bytes_mut()[..len as usize];
            file.read_exact_at(part, offset).expect("the disk's bytes");
            std::hint::black_box(blake3::hash(part));
        }
    };
    scope(|scope| (0..threads()).for_each(|_| drop(scope.spawn(work))));
    (pieces.iter().map(|(_, len)| len).sum(), started.elapsed().as_secs_f64())
}

fn decompress(root: &Path) -> (u64, f64) {
    let region = Region::open_directory(root, DirectoryOptions::default()).expect("a region");
    let packs = packs(root, &region);
    let contents: Vec<_> = packs.iter().map(|pack| fs::read(&pack.path).expect("a pack")).collect();
    let bases = bases(&packs, &contents);
    let started = Instant::now();
    decompress_all(&packs, &contents, &bases);
    (raw_bytes(&packs), started.elapsed().as_secs_f64())
}

fn write(path: &Path, bytes: u64) -> (u64, f64) {
    let [one, all] = WRITE_BYTES;
    let alone = write_by(1, one, path, bytes);
    fs::remove_file(path).expect("the file just written");
    let together = write_by(threads(), all, path, bytes);
    if alone.1 * together.0 as f64 <= together.1 * alone.0 as f64 { alone } else { together }
}

/// Writers that each take a part in turn, to space that is allocated as it is written.
fn write_by(threads: usize, part_bytes: usize, path: &Path, bytes: u64) -> (u64, f64) {
    let started = Instant::now();
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::DIRECT;
    let file = File::from(open(path, flags, Mode::RUSR | Mode::WUSR).expect("a new file"));
    let parts = bytes.div_ceil(part_bytes as u64);
    file.set_len(parts * part_bytes as u64).expect("a length");
    let next = AtomicU64::new(0);
    let work = || {
        let mut buffer = AlignedBuffer::default();
        buffer.resize(part_bytes);
        let part = buffer.bytes_mut();
        part.fill(0x5a);
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= parts {
                break;
            }
            part[..8].copy_from_slice(&number.to_le_bytes());
            file.write_all_at(part, number * part_bytes as u64).expect("space");
        }
    };
    scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    file.sync_all().expect("a durable file");
    (parts * part_bytes as u64, started.elapsed().as_secs_f64())
}
