//! Whether `verify` keeps up with what it has to do: stored checksums against a plain read of the packs, the full check
//! against decompression alone, in turn in one run. Prints medians and ratios.
//!
//!     IMGSTORE_BENCH_REGION=~/.imgstore/regions/local cargo bench --bench check     # else a made-up 512 MiB disk
//!     IMGSTORE_BENCH_COLD=1 …      # as root: nothing is in the page cache when a step begins
#![allow(clippy::print_stdout, clippy::cast_precision_loss, reason = "a program that reports")]

mod common;
#[path = "common/packs.rs"]
mod packs;

use imgstore::disk::open::open_raw;
use imgstore::io::directory::DirectoryOptions;
use imgstore::model::account::AccountId;
use imgstore::ops::context::{Context, MEMORY_BYTES_DEFAULT, Unwatched};
use imgstore::ops::snapshot::{SnapshotOptions, snapshot};
use imgstore::ops::verify::{VerifyOptions, verify};
use imgstore::region::{Region, RegionOptions};
use packs::{Pack, bases, decompress_all, packs, raw_bytes};
use rayon::prelude::*;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Instant;

const ROUNDS: usize = 5;
const MIB: f64 = (1 << 20) as f64;

/// Reads packs as `cat` does, on all threads.
fn read_all(packs: &[Pack]) {
    packs.par_iter().for_each(|pack| {
        let mut file = File::open(&pack.path).expect("a pack");
        let mut buffer = vec![0; 1 << 20];
        while file.read(&mut buffer).expect("its bytes") > 0 {}
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
    let raw = raw_bytes(&packs);
    // What a delta needs is decoded beforehand, so that only decompression is timed; `full` decodes it itself.
    let read_pack = |pack: &Pack| fs::read(&pack.path).expect("a pack");
    let contents = || packs.iter().map(read_pack).collect::<Vec<_>>();
    let bases = bases(&packs, &contents());
    let check = |content| {
        let options = VerifyOptions { content, ..VerifyOptions::default() };
        let report = verify(&region, &options, &context).expect("a check");
        assert!(report.findings.is_empty(), "{:?}", report.findings);
    };
    let read = || read_all(&packs);
    let decompress = || decompress_all(&packs, &contents(), &bases);
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
