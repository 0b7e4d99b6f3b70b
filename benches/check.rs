//! Whether `verify` keeps up with what it has to do: stored checksums against a plain read of the packs, the full check
//! against decompression alone, in turn in one run. Prints medians and ratios.
//!
//!     IMGSTORE_BENCH_REGION=~/.imgstore/regions/local cargo bench --bench check     # else a made-up 512 MiB disk
//!     IMGSTORE_BENCH_COLD=1 …      # as root: nothing is in the page cache when a step begins
#![allow(clippy::print_stdout, clippy::cast_precision_loss, reason = "a program that reports")]

mod common;

use imgstore::chunk::frame::Codec;
use imgstore::disk::open::open_raw;
use imgstore::format::entry::Entry;
use imgstore::format::pack::FRAME_HEADER_BYTES;
use imgstore::io::directory::DirectoryOptions;
use imgstore::model::account::AccountId;
use imgstore::model::units::BLOCK_BYTES;
use imgstore::ops::context::{Context, MEMORY_BYTES_DEFAULT, Unwatched};
use imgstore::ops::snapshot::{SnapshotOptions, snapshot};
use imgstore::ops::verify::{VerifyOptions, verify};
use imgstore::pack::trailer::read_trailer;
use imgstore::region::{Region, RegionOptions, directory_storage};
use rayon::prelude::*;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Instant;

const ROUNDS: usize = 5;
const MIB: f64 = (1 << 20) as f64;

/// A pack with its frames.
struct Pack {
    path: PathBuf,
    entries: Vec<Entry>,
}

fn packs(root: &Path, region: &Region) -> Vec<Pack> {
    let (storage, _) = directory_storage(root, DirectoryOptions::default()).expect("storage");
    let catalog = region.catalog().expect("catalogue");
    let pack = |record| {
        let trailer = read_trailer(&storage, region.header().id, record).expect("a whole pack");
        Pack { path: root.join(record.name.to_string()), entries: trailer.entries }
    };
    catalog.packs.values().map(|pack_of| pack(&pack_of.record)).collect()
}

/// Reads packs as `cat` does, on all threads.
fn read_all(packs: &[Pack]) {
    packs.par_iter().for_each(|pack| {
        let mut file = File::open(&pack.path).expect("a pack");
        let mut buffer = vec![0; 1 << 20];
        while file.read(&mut buffer).expect("its bytes") > 0 {}
    });
}

/// Decompresses every frame, and nothing else: no checksums, no hashes.
fn decompress_all(packs: &[Pack]) {
    packs.par_iter().for_each(|pack| {
        let bytes = fs::read(&pack.path).expect("a pack");
        let mut decompressor = zstd::bulk::Decompressor::new().expect("memory");
        let mut raw = vec![0; 1 << 20];
        for entry in &pack.entries {
            let start = entry.offset as usize + FRAME_HEADER_BYTES;
            let body = &bytes[start..start + entry.stored_len as usize];
            let raw = &mut raw[..usize::from(entry.raw_blocks) * BLOCK_BYTES];
            match entry.codec {
                Codec::Raw => raw.copy_from_slice(body),
                _ => drop(decompressor.decompress_to_buffer(body, raw).expect("a whole frame")),
            }
        }
    });
}

fn main() {
    let work = tempfile::tempdir().expect("a temporary directory");
    let pool = rayon::ThreadPoolBuilder::new().build().expect("threads");
    let context = Context {
        account: AccountId::from_random(1),
        now_ms: 0,
        dry_run: false,
        pool: &pool,
        memory_bytes: MEMORY_BYTES_DEFAULT,
        progress: &Unwatched,
    };
    let root = std::env::var_os("IMGSTORE_BENCH_REGION")
        .map_or_else(|| made_up(work.path(), &context), PathBuf::from);
    let region = Region::open_directory(&root, DirectoryOptions::default()).expect("a region");
    let packs = packs(&root, &region);
    let stored: u64 = packs.iter().map(|pack| fs::metadata(&pack.path).expect("a pack").len()).sum();
    let raw: u64 = packs
        .iter()
        .flat_map(|pack| &pack.entries)
        .map(|e| u64::from(e.raw_blocks) * BLOCK_BYTES as u64)
        .sum();
    let check = |content| {
        let options = VerifyOptions { content, ..VerifyOptions::default() };
        let report = verify(&region, &options, &context).expect("a check");
        assert!(report.findings.is_empty(), "{:?}", report.findings);
    };
    let read = || read_all(&packs);
    let decompress = || decompress_all(&packs);
    let (checksums, full) = (|| check(false), || check(true));
    let steps: [(&str, &(dyn Fn() + Sync)); 4] =
        [("read", &read), ("checksums", &checksums), ("decompress", &decompress), ("full", &full)];
    let mut times = [(); 4].map(|()| Vec::new());
    let is_cold = std::env::var_os("IMGSTORE_BENCH_COLD").is_some();
    for _ in 0..ROUNDS {
        for ((_, step), times) in steps.iter().zip(&mut times) {
            if is_cold {
                fs::write("/proc/sys/vm/drop_caches", "3").expect("root may drop the caches");
            }
            let started = Instant::now();
            pool.install(step);
            times.push(started.elapsed().as_secs_f64());
        }
    }
    let medians = times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[ROUNDS / 2]
    });
    for ((name, _), median) in steps.iter().zip(medians) {
        println!(
            "{name:12} {median:7.3} s  {:6.0} MiB/s stored  {:6.0} MiB/s of content",
            stored as f64 / MIB / median,
            raw as f64 / MIB / median
        );
    }
    println!("checksums at {:.0} % of reading", 100.0 * medians[0] / medians[1]);
    println!("full check at {:.0} % of decompressing", 100.0 * medians[2] / medians[3]);
}

/// A region with a snapshot of a disk that looks like a file system.
fn made_up(work: &Path, context: &Context<'_>) -> PathBuf {
    let (disk, root) = (work.join("disk.raw"), work.join("region"));
    fs::write(&disk, common::file_system(128 << 10, 1)).expect("space for a disk");
    let options = RegionOptions::named("bench", context.account);
    let region = Region::create_directory(&root, &options, DirectoryOptions::default()).expect("a region");
    let disk = open_raw(&disk).expect("the disk");
    snapshot(&region, &*disk, &SnapshotOptions::default(), context).expect("a snapshot");
    root
}
