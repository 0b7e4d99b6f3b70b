//! The index and a collection's mark at scale: a region of as many chunks as is asked for is made up (its index, block
//! maps and log; no content), as 4-million-chunk segments, half of it garbage. Chunks are looked up, the segments are merged
//! while a writer works, chunks are looked up again, and the region is marked. Prints time and memory.
//!
//!     IMGSTORE_SCALE_CHUNKS=100000000 cargo bench --bench scale     # 12 GB of disk, some minutes
//!     IMGSTORE_SCALE_MARK=0 …                                       # without the block maps and the mark: 10 GB
//!
//! The parts that grow are linear: bytes for a chunk and chunks for a second are what to compare. Look-ups are in
//! processor time of one thread, since others may be at work on the machine.
#![allow(clippy::print_stdout, clippy::cast_precision_loss, reason = "a program that reports")]

use imgstore::chunk::frame::{Codec, Frame};
use imgstore::format::entry::Entry;
use imgstore::format::manifest;
use imgstore::format::segment::SegmentWriter;
use imgstore::io::directory::DirectoryOptions;
use imgstore::io::storage::Storage;
use imgstore::model::account::AccountId;
use imgstore::model::blockmap::{BlockMap, ChunkRef};
use imgstore::model::ids::{ChunkId, ObjectHash, SessionId, SnapshotId};
use imgstore::model::objects::{
    ManifestName, ManifestRecord, PackName, PackRecord, SegmentName, SegmentRecord,
};
use imgstore::model::op::Op;
use imgstore::model::snapshot::Snapshot;
use imgstore::model::words::SnapshotState;
use imgstore::region::error::RegionError;
use imgstore::region::{Region, RegionOptions, directory_storage};
use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

const SEGMENT_CHUNKS: u64 = 4_000_000;
const PACK_CHUNKS: u64 = 1000;
const MAP_CHUNKS: u64 = 1_000_000;
/// Ids of each segment that are remembered, and how many of all are looked up.
const SAMPLE_CHUNKS: u64 = 200_000;
const LOOK_UPS: usize = 1_000_000;
const SESSION: SessionId = SessionId([7; 16]);

/// Ids in ascending order that lie as hashes do: the gaps between them are those of so many random numbers.
struct Ids {
    random: Random,
    leading: f64,
    mean_gap: f64,
    last: u64,
}

impl Ids {
    fn new(seed: u64, count: u64) -> Self {
        // Some room at the end for chance.
        let mean_gap = 2f64.powi(64) / (count as f64 + 6.0 * (count as f64).sqrt() + 1.0);
        Self { random: Random(seed), leading: 0.0, mean_gap, last: 0 }
    }

    fn next(&mut self) -> ChunkId {
        self.leading -= (self.random.unit()).ln() * self.mean_gap;
        let mut id = self.random.id();
        // A float rounds.
        self.last = (self.leading as u64).max(self.last.saturating_add(1));
        id.0[..8].copy_from_slice(&self.last.to_be_bytes());
        id
    }
}

/// Random numbers (splitmix64), the same at every run.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// Above 0, at most 1.
    fn unit(&mut self) -> f64 {
        ((self.bits() >> 11) + 1) as f64 / 2f64.powi(53)
    }

    fn id(&mut self) -> ChunkId {
        let mut id = [0; 32];
        id.as_chunks_mut::<8>().0.iter_mut().for_each(|word| *word = self.bits().to_be_bytes());
        ChunkId(id)
    }
}

fn pack(segment: u64, number: u64) -> PackName {
    PackName { session: SESSION, number: segment * (SEGMENT_CHUNKS / PACK_CHUNKS) + number }
}

fn commit(region: &Region, ops: Vec<Op>) {
    region
        .commit::<_, RegionError>(AccountId::from_random(1), |_| Ok((ops.clone(), ())))
        .expect("it applies");
}

/// Adds a segment of `chunks` chunks in packs of its own. Gives some of the ids.
fn add_segment(region: &Region, storage: &dyn Storage, segment: u64, chunks: u64, map: bool) -> Vec<ChunkId> {
    let packs: Vec<PackName> =
        (0..chunks.div_ceil(PACK_CHUNKS)).map(|number| pack(segment, number)).collect();
    let mut writer = SegmentWriter::new(usize::try_from(chunks).expect("it fits"));
    let (mut ids, mut random) = (Ids::new(segment, chunks), Random(!segment));
    let (mut sample, mut needed) = (Vec::new(), Vec::new());
    let mut maps = 0;
    for number in 0..chunks {
        let id = ids.next();
        if random.bits() % chunks < SAMPLE_CHUNKS {
            sample.push(id);
        }
        if map && number % 2 == 0 {
            needed.push(id);
        }
        let place = u32::try_from(random.bits() % packs.len() as u64).expect("it fits");
        let (offset, stored_len) = (64, 16 << 10);
        let entry = Entry { id, pack: place, offset, stored_len, raw_blocks: 11, codec: Codec::Zstd };
        writer.push(entry).expect("ids ascend");
        if needed.len() as u64 == MAP_CHUNKS || (number + 1 == chunks && !needed.is_empty()) {
            add_snapshot(region, storage, segment * 16 + maps, &needed);
            maps += 1;
            needed.clear();
        }
    }
    let (bytes, hash, entries) = writer.finish(region.header().id, &packs).expect("packs ascend");
    let name = SegmentName { session: SESSION, number: segment };
    storage.create(&name.to_string(), &[&bytes]).expect("a new segment");
    let register = |&name: &PackName| {
        let (trailer_hash, bases) = (ObjectHash([1; 32]), vec![]);
        Op::RegisterPack(PackRecord {
            name,
            len: 20 << 20,
            frames: 1000,
            raw_bytes: 44 << 20,
            trailer_hash,
            bases,
        })
    };
    let mut ops: Vec<Op> = packs.iter().map(register).collect();
    let (len, replaces, partial) = (bytes.len() as u64, vec![], vec![]);
    ops.push(Op::RegisterSegment(SegmentRecord { name, len, entries, hash, replaces, partial }));
    commit(region, ops);
    sample
}

/// A snapshot of chunks that lie all over a segment: of each pack half are needed.
fn add_snapshot(region: &Region, storage: &dyn Storage, number: u64, ids: &[ChunkId]) {
    let chunks = ids.len() as u64;
    let chunk = |(at, &id): (u64, &ChunkId)| ChunkRef { start_block: at * 11, blocks: 11, id };
    let map = BlockMap::new(chunks * 11 * 4096, (0..).zip(ids).map(chunk).collect()).expect("a good map");
    let (bytes, hash) = manifest::encode(&map);
    let name = ManifestName { session: SESSION, number };
    storage.create(&name.to_string(), &[&bytes]).expect("a new manifest");
    let snapshot = Snapshot {
        id: SnapshotId::from_random(name.number + 1),
        owner: AccountId::from_random(1),
        description: String::new(),
        volume_bytes: map.volume_bytes(),
        data_bytes: map.data_bytes(),
        state: SnapshotState::Completed,
        created_ms: 1,
        tags: vec![],
        parent: None,
        volume: None,
        source: None,
        create_volume_permissions: vec![],
        client_token: None,
        manifest: ManifestRecord { name, len: bytes.len() as u64, hash, chunks },
    };
    commit(region, vec![Op::CreateSnapshot { snapshot: Box::new(snapshot), packs: vec![] }]);
}

/// A field of this process's status in MB, such as its anonymous memory.
fn memory_mb(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap_or("0");
    line.split_whitespace().find_map(|word| word.parse::<u64>().ok()).unwrap_or(0) / 1000
}

fn anonymous_mb() -> u64 {
    memory_mb("RssAnon:")
}

fn seconds<T>(run: impl FnOnce() -> T) -> (T, f64) {
    let started = Instant::now();
    let value = run();
    (value, started.elapsed().as_secs_f64())
}

/// Nanoseconds of processor time of this thread: others may be at work on the machine.
fn processor_nanos() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0)
}

fn nanos_each<T>(count: usize, run: impl FnOnce() -> T) -> (T, f64) {
    let before = processor_nanos();
    let value = run();
    (value, (processor_nanos() - before) as f64 / count as f64)
}

fn shuffle(ids: &mut [ChunkId]) {
    let mut random = Random(5);
    for at in (1..ids.len()).rev() {
        let other = usize::try_from(random.bits() % (at as u64 + 1)).expect("it fits");
        ids.swap(at, other);
    }
}

/// Look-ups by one thread. The second round meets pages that are in memory and were checked.
fn look_up(root: &Path, directory: DirectoryOptions, hits: &[ChunkId]) {
    let before = anonymous_mb();
    let (region, opening) = seconds(|| Region::open_directory(root, directory).expect("it opens"));
    let (_, first) = seconds(|| region.has_chunks(&[ChunkId([1; 32])]).expect("an answer"));
    let segments = region.catalog().expect("the log").segments.len();
    println!(
        "  opened in {:.0} ms, first look-up {:.0} ms, {segments} segments, {} MB of anonymous memory",
        opening * 1e3,
        first * 1e3,
        anonymous_mb().saturating_sub(before)
    );
    let mut random = Random(99);
    let misses: Vec<ChunkId> = hits.iter().map(|_| random.id()).collect();
    for round in ["new", "warm", "warm"] {
        let (found, miss) = nanos_each(misses.len(), || region.has_chunks(&misses).expect("an answer"));
        assert!(found.iter().all(|found| !found));
        let (found, hit) = nanos_each(hits.len(), || region.try_locate(hits).expect("an answer"));
        assert!(found.iter().all(Option::is_some));
        println!("  {round}: {hit:.0} ns a hit, {miss:.0} ns a miss");
    }
}

/// Rounds of a writer that stores 1000 chunks and makes them durable, until it is told to end: how long each took.
fn write(region: &Region, random: &mut Random, goes_on: impl Fn(usize) -> bool) -> Vec<f64> {
    let mut rounds = Vec::new();
    let mut session = region.begin(AccountId::from_random(1)).expect("a session");
    while goes_on(rounds.len()) {
        let ids: Vec<ChunkId> = (0..1000).map(|_| random.id()).collect();
        let frame = Frame { codec: Codec::Zstd, raw_blocks: 11, body: vec![1; 100] };
        let (_, round) = seconds(|| {
            let new = session.reserve(&ids).expect("an answer");
            for (id, _) in ids.iter().zip(new).filter(|(_, new)| *new) {
                session.put(*id, &frame).expect("it is put");
            }
            session.flush().expect("it is durable");
        });
        rounds.push(round);
        std::thread::sleep(Duration::from_millis(20));
    }
    let (_, end) = seconds(|| drop(session));
    println!("    {} rounds of a writer, its end {:.0} ms", rounds.len(), end * 1e3);
    rounds
}

fn show_rounds(what: &str, mut rounds: Vec<f64>) {
    rounds.sort_by(f64::total_cmp);
    let (median, most) = (rounds[rounds.len() / 2], rounds[rounds.len() - 1]);
    println!("    {what}: a round takes {:.0} ms, at most {:.0} ms", median * 1e3, most * 1e3);
}

/// Merges all large segments, while a writer works. What the writer does alone is measured before.
fn merge(root: &Path, directory: DirectoryOptions) {
    let region = Region::open_directory(root, directory).expect("it opens");
    region.has_chunks(&[ChunkId([1; 32])]).expect("an answer");
    let mut random = Random(77);
    println!("  merge");
    show_rounds("alone", write(&region, &mut random, |round| round < 150));
    let before = anonymous_mb();
    let (is_over, peak) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let started = processor_nanos();
            let watch = || {
                peak.fetch_max(anonymous_mb(), Relaxed);
                Ok::<_, RegionError>(())
            };
            let (merged, wall) = seconds(|| region.merge_large_segments(AccountId::from_random(1), watch));
            merged.expect("nothing is damaged");
            let busy = (processor_nanos() - started) as f64 / 1e9;
            println!("    merged in {wall:.1} s, {busy:.1} s of processor time");
            is_over.store(true, Relaxed);
        });
        show_rounds("beside it", write(&region, &mut random, |round| round < 150 || !is_over.load(Relaxed)));
    });
    println!("    anonymous memory at most {} MB, {before} MB of them before", peak.load(Relaxed));
}

fn mark(root: &Path, directory: DirectoryOptions, total: u64) {
    // What the maker held is not what the collection needs: a process of its own would begin like this.
    let before = anonymous_mb();
    let region = Region::open_directory(root, directory).expect("it opens");
    let mut peak = 0;
    let (mark, seconds) = seconds(|| {
        region.mark::<RegionError>(&HashSet::new(), || {
            peak = peak.max(anonymous_mb());
            Ok(())
        })
    });
    let kept = mark.expect("nothing is damaged").kept_packs().len();
    println!(
        "  {kept} packs kept: marked in {seconds:.1} s, {:.1} million a second; \
         anonymous memory at most {peak} MB, {before} MB of them before",
        total as f64 / seconds / 1e6
    );
}

fn main() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let total = number("IMGSTORE_SCALE_CHUNKS").unwrap_or(4_000_000);
    let with_mark = number("IMGSTORE_SCALE_MARK").unwrap_or(1) != 0;
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path().join("region");
    let options = RegionOptions::named("scale", AccountId::from_random(1));
    let directory = DirectoryOptions { reserve_bytes: 0, ..DirectoryOptions::default() };
    println!("{total} chunks");
    let mut hits = Vec::new();
    {
        let region = Region::create_directory(&root, &options, directory).expect("a new region");
        let (storage, _) = directory_storage(&root, directory).expect("a storage");
        for segment in 0..total.div_ceil(SEGMENT_CHUNKS) {
            let chunks = SEGMENT_CHUNKS.min(total - segment * SEGMENT_CHUNKS);
            hits.extend(add_segment(&region, &storage, segment, chunks, with_mark));
        }
    }
    shuffle(&mut hits);
    hits.truncate(LOOK_UPS);
    look_up(&root, directory, &hits);
    merge(&root, directory);
    look_up(&root, directory, &hits);
    if with_mark {
        mark(&root, directory, total);
    }
}
