//! Which parameters of the chunker are best on given disks: for each choice what is stored, what each disk adds after
//! those before it, what a small read costs, and how fast it is beside the default. What came of it: docs/LAYOUT.md.
//!
//!     cargo bench --bench sweep -- DISK…                            # in order; raw, qcow2, and what else import reads
//!     cargo bench --bench sweep -- --params 4/64/128/256,16 DISK…   # min/avg/max/tail; a power of two is a fixed size
//!     cargo bench --bench sweep -- --store --json FILE DISK…        # besides real regions, with deltas, in TMPDIR
//!
//! All choices see each part of a disk in turn, so that speeds compare on a busy machine. Every new chunk is compressed;
//! beyond 2 million different ones only those are kept whose ids end in so many zero bits, and stand for the others.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::cast_precision_loss,
    reason = "a program that reports"
)]

mod count;

use clap::Parser;
use count::{CHOICES_MAX, Choice, Chunks, LEVEL, NOWHERE, pass};
use imgstore::chunk::frame::FRAME_HEADER_BYTES;
use imgstore::disk::DiskRead;
use imgstore::disk::formats::Limits;
use imgstore::disk::open::{Declared, open_disk};
use imgstore::format::entry::ENTRY_BYTES;
use imgstore::format::envelope::HASH_BYTES;
use imgstore::format::manifest::{CHUNK_REF_BYTES, HEADER_BYTES};
use imgstore::io::directory::DirectoryOptions;
use imgstore::model::account::AccountId;
use imgstore::model::region::ChunkerParams;
use imgstore::model::units::block_offset;
use imgstore::ops::context::{Context, MEMORY_BYTES_DEFAULT, Unwatched};
use imgstore::ops::snapshot::{SnapshotOptions, snapshot};
use imgstore::ops::stats::region_stats;
use imgstore::region::{Region, RegionOptions};
use serde::Serialize;
use serde_json::json;
use std::error::Error;
use std::fs::File;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// What is swept if nothing is said: the default with one or two values changed, other scales, fixed sizes.
const CHOICES: &str = "4/32/64/0,4/32/64/32,4/32/64/1024,1/32/64/256,2/32/64/256,8/32/64/256,16/32/64/256,4/16/64/256,\
    4/24/64/256,4/48/64/256,4/64/64/256,4/32/32/256,4/32/128/256,4/32/256/256,1/16/64/256,2/16/32/256,4/64/128/256,\
    8/64/128/256,4/64/256/256,8/64/256/256,16/128/256/256,8/64/128/0,1,4,16,64,256";

/// Sweeps the chunker's parameters over disks.
#[derive(Parser)]
#[command(name = "sweep")]
struct Args {
    /// Disks, in the order in which they would be stored.
    disks: Vec<PathBuf>,
    /// Choices beside the default: min/avg/max/tail, blocks and bytes of zeros; or a power of two blocks: a fixed size.
    #[arg(long, value_delimiter = ',', value_parser = params, default_value = CHOICES)]
    params: Vec<ChunkerParams>,
    /// Stores the disks with each choice in a region, with deltas, in TMPDIR, and says what it takes.
    #[arg(long)]
    store: bool,
    /// Writes all figures to a file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Cargo says this to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

fn params(text: &str) -> Result<ChunkerParams, String> {
    let numbers: Result<Vec<u16>, _> = text.split('/').map(str::parse).collect();
    let (min_blocks, avg_blocks, max_blocks, zero_tail_bytes) = match numbers.as_deref() {
        Ok([min, avg, max, tail]) => (*min, *avg, *max, *tail),
        Ok([blocks]) if blocks.is_power_of_two() => (*blocks, *blocks, *blocks, 0),
        _ => return Err("write min/avg/max/tail, as 4/32/64/256, or a power of two".to_owned()),
    };
    let params = ChunkerParams { min_blocks, avg_blocks, max_blocks, zero_tail_bytes };
    let rule = "1 <= min <= avg <= max <= 256 blocks, and a tail of at most 4096 bytes, must hold";
    if params.is_valid() { Ok(params) } else { Err(rule.to_owned()) }
}

/// What a choice gives.
#[derive(Serialize)]
struct Figures {
    params: String,
    chunks: u64,
    unique_bytes: u64,
    stored_bytes: u64,
    /// Frames' headers, index entries, and manifests.
    metadata_bytes: u64,
    /// Stored bytes and metadata of each disk after those before it.
    added_bytes: Vec<u64>,
    total_bytes: u64,
    /// Mean bytes that are decoded for a read of 4 KiB.
    read_bytes: u64,
    /// Of cutting and hashing, beside the default.
    speed: f64,
    region_bytes: Option<u64>,
    region_seconds: Option<f64>,
}

impl Figures {
    fn of(at: usize, choices: &[Choice], chunks: &Chunks) -> Self {
        let (choice, scale) = (&choices[at], 1 << chunks.bits);
        let manifest = |count: &u64| (HEADER_BYTES + HASH_BYTES) as u64 + count * CHUNK_REF_BYTES as u64;
        let mut added_bytes: Vec<u64> = choice.references.iter().map(manifest).collect();
        let (mut chunks_seen, mut unique_bytes, mut stored_bytes) = (0, 0, 0);
        for seen in chunks.kept.values().filter(|seen| seen.first[at] != NOWHERE) {
            let stored = scale * u64::from(seen.stored);
            chunks_seen += scale;
            unique_bytes += scale * block_offset(u64::from(seen.blocks));
            stored_bytes += stored;
            added_bytes[usize::from(seen.first[at])] +=
                stored + scale * (FRAME_HEADER_BYTES + ENTRY_BYTES) as u64;
        }
        let total_bytes = added_bytes.iter().sum();
        let mut ratios: Vec<f64> =
            choices[0].seconds.iter().zip(&choice.seconds).map(|(default, own)| default / own).collect();
        ratios.sort_by(f64::total_cmp);
        Self {
            params: choice.name(),
            chunks: chunks_seen,
            unique_bytes,
            stored_bytes,
            metadata_bytes: total_bytes - stored_bytes,
            added_bytes,
            total_bytes,
            read_bytes: block_offset(choice.read.1) / choice.read.0.max(1),
            speed: ratios.get(ratios.len() / 2).copied().unwrap_or(1.0),
            region_bytes: None,
            region_seconds: None,
        }
    }

    /// Stores the disks in a region with these parameters.
    fn store(&mut self, params: ChunkerParams, disks: &[Box<dyn DiskRead>]) -> Outcome<()> {
        let (folder, pool) = (tempfile::tempdir()?, rayon::ThreadPoolBuilder::new().build()?);
        let (account, memory_bytes) = (AccountId::from_random(1), MEMORY_BYTES_DEFAULT);
        let context =
            Context { account, now_ms: 0, dry_run: false, pool: &pool, memory_bytes, progress: &Unwatched };
        let options = RegionOptions { chunker: params, ..RegionOptions::named("sweep", account) };
        let root = folder.path().join("region");
        let region = Region::create_directory(&root, &options, DirectoryOptions::default())?;
        let started = Instant::now();
        for disk in disks {
            snapshot(&region, &**disk, &SnapshotOptions::default(), &context)?;
        }
        self.region_seconds = Some(started.elapsed().as_secs_f64());
        self.region_bytes = Some(region_stats(&region, &context)?.store_bytes);
        Ok(())
    }
}

fn show(all: &[Figures]) {
    let mb = |bytes: u64| bytes as f64 / 1e6;
    let beside = |own: u64, default: u64| 100.0 * (own as f64 / default as f64 - 1.0);
    println!("                                     MB                               decoded         region");
    println!(
        "min/avg/max, tail   chunks  unique  stored  meta   total      %  mean  read  speed    MB      %     s"
    );
    for own in all {
        let mean = own.unique_bytes >> 10;
        print!("{:18} {:7} {:7.0}", own.params, own.chunks, mb(own.unique_bytes));
        print!(" {:7.1} {:5.1} {:7.1}", mb(own.stored_bytes), mb(own.metadata_bytes), mb(own.total_bytes));
        print!(" {:+6.2} {:5}", beside(own.total_bytes, all[0].total_bytes), mean / own.chunks.max(1));
        print!(" {:5} {:6.2}", own.read_bytes >> 10, own.speed);
        if let (Some(bytes), Some(seconds), Some(default)) =
            (own.region_bytes, own.region_seconds, all[0].region_bytes)
        {
            print!(" {:7.1} {:+6.2} {seconds:5.1}", mb(bytes), beside(bytes, default));
        }
        println!();
    }
    println!("\nMB that each disk adds");
    for own in all {
        let added: Vec<String> = own.added_bytes.iter().map(|bytes| format!("{:7.1}", mb(*bytes))).collect();
        println!("{:18} {}", own.params, added.join(" "));
    }
}

fn sweep(args: &Args) -> Outcome<()> {
    let mut all = vec![ChunkerParams::DEFAULT];
    for params in &args.params {
        if !all.contains(params) {
            all.push(*params);
        }
    }
    if all.len() > CHOICES_MAX || args.disks.len() > usize::from(NOWHERE) {
        return Err(format!("at most {CHOICES_MAX} choices and {NOWHERE} disks are compared").into());
    }
    let mut disks = Vec::new();
    for path in &args.disks {
        disks.push(open_disk(path, Declared::Nothing, &Limits::default())?.disk);
    }
    // Better to learn now that it cannot be written.
    let json = args.json.as_ref().map(File::create).transpose()?;
    let (mut choices, mut chunks): (Vec<_>, _) =
        (all.into_iter().map(Choice::new).collect(), Chunks::default());
    for (number, disk) in (0..).zip(&disks) {
        eprintln!("{}", args.disks[usize::from(number)].display());
        pass(&**disk, number, &mut choices, &mut chunks)?;
    }
    let mut figures: Vec<Figures> = (0..choices.len()).map(|at| Figures::of(at, &choices, &chunks)).collect();
    for (figures, choice) in
        figures.iter_mut().zip(&choices).filter(|(_, choice)| args.store && !choice.is_fixed())
    {
        eprintln!("a region with {}", figures.params);
        figures.store(choice.params, &disks)?;
    }
    println!("one chunk in {} kept and compressed, zstd level {LEVEL}", 1_u64 << chunks.bits);
    show(&figures);
    if let Some(file) = json {
        let sampled = 1_u64 << chunks.bits;
        let document = json!({ "disks": args.disks, "level": LEVEL, "sampled": sampled, "choices": figures });
        serde_json::to_writer_pretty(file, &document)?;
    }
    Ok(())
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.disks.is_empty() {
        println!("nothing to sweep over: cargo bench --bench sweep -- DISK…");
        return ExitCode::SUCCESS;
    }
    match sweep(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sweep: {error}");
            ExitCode::FAILURE
        }
    }
}
