//! The verbs from end to end, through the library: a disk of 256 MiB, directory regions, all threads, and as
//! durable as the command makes it.
//!
//! The parts by themselves are in `engine.rs`; the same verbs against other tools, with real disks, are in
//! `peers/run`. Where the regions lie decides what durability costs: `TMPDIR` says where.

mod common;

use common::file_system;
use criterion::{BatchSize, BenchmarkGroup, Criterion, SamplingMode, Throughput, measurement::WallTime};
use imgstore::chunk::fingerprint::is_zero;
use imgstore::disk::open::{TargetOptions, open_raw, open_target};
use imgstore::io::directory::DirectoryOptions;
use imgstore::model::account::AccountId;
use imgstore::model::catalog::Root;
use imgstore::model::snapshot::Snapshot;
use imgstore::model::units::BLOCK_BYTES;
use imgstore::ops::context::{Context, MEMORY_BYTES_DEFAULT, Unwatched};
use imgstore::ops::copy::{CopyOptions, CopyWhat, apply, plan};
use imgstore::ops::export::{export, load};
use imgstore::ops::snapshot::{SnapshotOptions, snapshot};
use imgstore::region::{Region, RegionOptions};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

/// The disk: 256 MiB.
const DISK_BLOCKS: usize = 64 << 10;

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(5))
        .configure_from_args();
    let work = tempfile::tempdir().expect("a temporary directory");
    let disk = work.path().join("disk.raw");
    write_disk(&disk, &file_system(DISK_BLOCKS, 1));
    let pool = rayon::ThreadPoolBuilder::new().build().expect("threads");
    let account = AccountId::from_random(1);
    let bench = Bench {
        disk,
        context: Context {
            account,
            now_ms: 0,
            dry_run: false,
            pool: &pool,
            memory_bytes: MEMORY_BYTES_DEFAULT,
            progress: &Unwatched,
        },
        work: work.path(),
    };

    let mut group = criterion.benchmark_group("256 MiB disk");
    // One run for each sample, and no more of them for the later samples.
    group.sampling_mode(SamplingMode::Flat).throughput(Throughput::Bytes((DISK_BLOCKS * BLOCK_BYTES) as u64));
    bench.snapshot_first(&mut group);
    let source = bench.region();
    let snapshot = bench.snapshot(&source.region);
    bench.snapshot_again(&mut group, &source.region);
    bench.copy(&mut group, &source.region, &snapshot);
    bench.export(&mut group, &source.region, &snapshot);
    group.finish();
    criterion.final_summary();
}

/// Writes a disk file that is sparse where the content is zero, as disk images are.
fn write_disk(path: &Path, content: &[u8]) {
    let file = File::create(path).expect("a new file");
    file.set_len(content.len() as u64).expect("its length");
    for (block, number) in content.chunks_exact(BLOCK_BYTES).zip(0u64..) {
        if !is_zero(block) {
            file.write_all_at(block, number * BLOCK_BYTES as u64).expect("writes");
        }
    }
    file.sync_all().expect("syncs");
}

/// What all benchmarks work with.
struct Bench<'a> {
    disk: PathBuf,
    context: Context<'a>,
    work: &'a Path,
}

/// A region that goes with its directory.
struct TempRegion {
    region: Region,
    _directory: TempDir,
}

type Group<'a> = BenchmarkGroup<'a, WallTime>;

impl Bench<'_> {
    fn region(&self) -> TempRegion {
        let directory = tempfile::tempdir_in(self.work).expect("a temporary directory");
        let options = RegionOptions::named("bench", AccountId::from_random(1));
        let region =
            Region::create_directory(&directory.path().join("region"), &options, DirectoryOptions::default());
        TempRegion { region: region.expect("a new region"), _directory: directory }
    }

    fn snapshot(&self, region: &Region) -> Snapshot {
        let disk = open_raw(&self.disk).expect("a disk");
        snapshot(region, &*disk, &SnapshotOptions::default(), &self.context).expect("a snapshot").snapshot
    }

    /// Everything is new: compression and its proof decide.
    fn snapshot_first(&self, group: &mut Group<'_>) {
        group.bench_function("snapshot first", |bencher| {
            let run = |target: &mut TempRegion| self.snapshot(&target.region);
            bencher.iter_batched_ref(|| self.region(), run, BatchSize::PerIteration);
        });
    }

    /// Nothing is new: reading, fingerprints, hashes and look-ups decide.
    fn snapshot_again(&self, group: &mut Group<'_>, region: &Region) {
        group.bench_function("snapshot again", |bencher| bencher.iter(|| self.snapshot(region)));
    }

    /// Everything is missing at the target: reading, proving and writing frames decide.
    fn copy(&self, group: &mut Group<'_>, source: &Region, snapshot: &Snapshot) {
        let options = CopyOptions { source_region: "source".into(), ..CopyOptions::default() };
        let run = |target: &mut TempRegion| {
            let what = CopyWhat::Snapshot(snapshot.id);
            let plan = plan(source, &target.region, what, &options, &self.context).expect("a plan");
            apply(source, &target.region, &plan, &options, &self.context).expect("a copy")
        };
        group.bench_function("copy", |bencher| {
            bencher.iter_batched_ref(|| self.region(), run, BatchSize::PerIteration);
        });
    }

    /// To a new raw file, each time.
    fn export(&self, group: &mut Group<'_>, source: &Region, snapshot: &Snapshot) {
        let path = self.work.join("export.raw");
        let remove = || {
            // It is not there before the first time.
            let _ = fs::remove_file(&path);
        };
        let run = |()| {
            let map = load(source, &Root::from(snapshot)).expect("a block map");
            let target = open_target(&path, map.volume_bytes(), TargetOptions::default()).expect("a target");
            export(source, &Root::from(snapshot), &map, map.volume_bytes(), None, target, &self.context)
                .expect("an export");
        };
        group.bench_function("export", |bencher| bencher.iter_batched(remove, run, BatchSize::PerIteration));
        remove();
    }
}
