//! The parts that every byte goes through, each by itself and on one thread: chunker, hash, codec, index.
//!
//! When a pipeline becomes slower these say which part did. `benches/README.md` tells how to read them.

mod common;

use common::{Random, Text, file_system, fill_noise};
use criterion::{BatchSize, Criterion, SamplingMode, Throughput};
use imgstore::chunk::cut::Cutter;
use imgstore::chunk::fingerprint::{BlockFacts, block_facts};
use imgstore::chunk::frame::{Codec, CodecPool, chunk_id};
use imgstore::format::entry::Entry;
use imgstore::format::segment::SegmentWriter;
use imgstore::io::map::Bytes;
use imgstore::model::ids::{ChunkId, RegionId, SessionId};
use imgstore::model::objects::{PackName, SegmentName, SegmentRecord};
use imgstore::model::region::ChunkerParams;
use imgstore::model::units::BLOCK_BYTES;
use imgstore::pack::segment::Segment;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

/// What the chunker is shown: 64 MiB.
const DISK_BLOCKS: usize = 16 << 10;
/// A chunk of the usual size, 44 KiB.
const CHUNK_BYTES: usize = 11 * BLOCK_BYTES;
/// Different chunks that are hashed and coded: 11 MiB, more than a core's own caches hold.
const CHUNKS: usize = 256;
/// The level of new regions.
const ZSTD_LEVEL: i32 = 3;
/// Entries of the index: 440 GB of chunks of the usual size.
const INDEX_ENTRIES: usize = 10_000_000;
/// Packs that those would fill.
const INDEX_PACKS: u32 = 5_000;
/// Ids that are looked up in one iteration: enough to touch another page nearly every time.
const LOOK_UPS: usize = 16 << 10;

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(3))
        .configure_from_args();
    chunker(&mut criterion);
    hash(&mut criterion);
    codec(&mut criterion);
    index(&mut criterion);
    criterion.final_summary();
}

fn facts_of(disk: &[u8], params: ChunkerParams) -> Vec<BlockFacts> {
    disk.chunks_exact(BLOCK_BYTES).map(|block| block_facts(block, params.zero_tail_bytes)).collect()
}

/// Cuts a disk of these blocks; gives the number of chunks.
fn cut(facts: &[BlockFacts], params: ChunkerParams) -> u64 {
    let mut chunks = 0;
    let mut count = |_| chunks += 1;
    let mut cutter = Cutter::new(params);
    for &facts in facts {
        cutter.push(facts, &mut count);
    }
    cutter.finish(&mut count);
    chunks
}

/// What finding chunks costs for a byte of disk: nearly all of it is the fingerprints.
fn chunker(criterion: &mut Criterion) {
    let params = ChunkerParams::DEFAULT;
    let disk = file_system(DISK_BLOCKS, 1);
    let facts = facts_of(&disk, params);
    let mut group = criterion.benchmark_group("chunker");
    group.throughput(Throughput::Bytes(disk.len() as u64));
    group.bench_function("facts", |bencher| bencher.iter(|| facts_of(black_box(&disk), params)));
    group.bench_function("cut", |bencher| bencher.iter(|| cut(black_box(&facts), params)));
    group.bench_function("facts and cut", |bencher| {
        bencher.iter(|| cut(&facts_of(black_box(&disk), params), params))
    });
    group.finish();
}

/// Chunks of one kind; `fill` makes their content.
fn chunks(mut fill: impl FnMut(&mut [u8])) -> Vec<Vec<u8>> {
    let chunk = |_| {
        let mut chunk = vec![0; CHUNK_BYTES];
        fill(&mut chunk);
        chunk
    };
    (0..CHUNKS).map(chunk).collect()
}

fn noise_chunks() -> Vec<Vec<u8>> {
    let mut random = Random::new(2);
    chunks(|bytes| fill_noise(bytes, &mut random))
}

fn text_chunks() -> Vec<Vec<u8>> {
    let (text, mut random) = (Text::new(), Random::new(3));
    chunks(|bytes| text.fill(bytes, &mut random))
}

/// BLAKE3 of one chunk after the other, as the pipelines do it.
fn hash(criterion: &mut Criterion) {
    let chunks = noise_chunks();
    let mut group = criterion.benchmark_group("hash");
    group.throughput(Throughput::Bytes((CHUNKS * CHUNK_BYTES) as u64));
    group.bench_function("44 KiB chunks", |bencher| {
        bencher.iter(|| {
            for chunk in &chunks {
                black_box(chunk_id(chunk));
            }
        });
    });
    group.finish();
}

/// Throughput is in raw bytes. Encoding includes the proof: decode and hash what was encoded.
fn codec(criterion: &mut Criterion) {
    let pool = CodecPool::new();
    let mut group = criterion.benchmark_group("codec");
    group.throughput(Throughput::Bytes((CHUNKS * CHUNK_BYTES) as u64));
    for (kind, chunks, codec) in
        [("compressible", text_chunks(), Codec::Zstd), ("incompressible", noise_chunks(), Codec::Raw)]
    {
        let ids: Vec<ChunkId> = chunks.iter().map(|chunk| chunk_id(chunk)).collect();
        let encode =
            |(chunk, id): (&Vec<u8>, &ChunkId)| pool.encode(chunk, *id, ZSTD_LEVEL).expect("encodes");
        let frames: Vec<_> = chunks.iter().zip(&ids).map(encode).collect();
        assert!(frames.iter().all(|frame| frame.codec == codec), "the content is not {kind}");
        group.bench_function(format!("encode {kind}"), |bencher| {
            bencher.iter(|| chunks.iter().zip(&ids).for_each(|chunk| drop(black_box(encode(chunk)))));
        });
        let mut raw = vec![0; CHUNK_BYTES];
        group.bench_function(format!("decode {kind}"), |bencher| {
            bencher.iter(|| {
                for (frame, id) in frames.iter().zip(&ids) {
                    pool.decode(frame.codec, &frame.body, *id, None, &mut raw).expect("decodes");
                }
            });
        });
    }
    group.finish();
}

/// An id that begins with these bits. The order of ids is that of their first bits.
fn id_with(bits: u64) -> ChunkId {
    let mut id = [0; 32];
    fill_noise(&mut id, &mut Random::new(bits));
    id[..8].copy_from_slice(&bits.to_be_bytes());
    ChunkId(id)
}

/// The first bits of so many random ids, ascending. They must be as uneven as hashes are: evenly spaced ones
/// would make every guess by interpolation right.
fn random_ids(count: usize) -> Vec<u64> {
    let mut random = Random::new(4);
    let mut ids: Vec<u64> = (0..count).map(|_| random.bits()).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

fn build_segment(ids: &[u64], region: RegionId) -> (Bytes, SegmentRecord) {
    let session = SessionId([5; 16]);
    let packs: Vec<PackName> = (0..INDEX_PACKS).map(|n| PackName { session, number: n.into() }).collect();
    let mut writer = SegmentWriter::new(ids.len());
    for (&bits, pack) in ids.iter().zip((0..INDEX_PACKS).cycle()) {
        let (offset, stored_len) = (64, 16 << 10);
        let entry = Entry { id: id_with(bits), pack, offset, stored_len, raw_blocks: 11, codec: Codec::Zstd };
        writer.push(entry).expect("ids ascend");
    }
    let (bytes, hash, entries) = writer.finish(region, &packs).expect("packs ascend");
    let name = SegmentName { session, number: 0 };
    let record = SegmentRecord {
        name,
        len: bytes.len() as u64,
        entries,
        hash,
        replaces: Vec::new(),
        partial: Vec::new(),
    };
    (Bytes::Owned(Arc::new(bytes)), record)
}

/// Look-ups among ten million entries. "opened" is a segment whose pages were touched before; "new" is one
/// just opened, whose pages are checked when they are first touched, as a command finds it.
fn index(criterion: &mut Criterion) {
    let region = RegionId([6; 16]);
    let stored = random_ids(INDEX_ENTRIES);
    let (bytes, record) = build_segment(&stored, region);
    let open = || Segment::from_bytes(bytes.clone(), region, &record).expect("a good segment");
    let mut random = Random::new(7);
    let hits: Vec<ChunkId> = (0..LOOK_UPS).map(|_| id_with(stored[random.below(stored.len())])).collect();
    let misses: Vec<ChunkId> = (0..LOOK_UPS).map(|_| id_with(random.bits())).collect();
    drop(stored);
    let found = |segment: &Segment, ids: &[ChunkId]| {
        ids.iter().filter(|id| segment.lookup(**id).expect("a good page").is_some()).count()
    };
    let opened = open();
    assert_eq!((found(&opened, &hits), found(&opened, &misses)), (LOOK_UPS, 0));

    let mut group = criterion.benchmark_group("index of 10 million");
    group.sampling_mode(SamplingMode::Flat).throughput(Throughput::Elements(LOOK_UPS as u64));
    for (kind, ids) in [("hits", &hits), ("misses", &misses)] {
        group.bench_function(format!("{kind}, opened"), |bencher| {
            bencher.iter(|| found(&opened, black_box(ids)))
        });
        group.bench_function(format!("{kind}, new"), |bencher| {
            bencher.iter_batched_ref(open, |segment| found(segment, black_box(ids)), BatchSize::PerIteration);
        });
    }
    group.finish();
}
