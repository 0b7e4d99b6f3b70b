//! What is counted: the parts, on content that is the same at every run. Each works once beforehand, so that memory is
//! there, contexts are made and pages of the index were checked.

use super::common::{Random, Text, file_system, fill_noise};
use imgstore::chunk::cut::Cutter;
use imgstore::chunk::features::{Features, features};
use imgstore::chunk::fingerprint::{BlockFacts, block_facts};
use imgstore::chunk::frame::{Codec, CodecPool, Frame, chunk_id};
use imgstore::format::entry::Entry;
use imgstore::format::features::{decode_header, encode as encode_features, slots_of};
use imgstore::format::record::{Body, StoredRecord};
use imgstore::format::segment::SegmentWriter;
use imgstore::format::{manifest, record};
use imgstore::io::map::Bytes;
use imgstore::model::account::AccountId;
use imgstore::model::blockmap::{BlockMap, ChunkRef};
use imgstore::model::ids::{ChunkId, ObjectHash, RegionId, SessionId};
use imgstore::model::objects::{PackName, PackRecord, SegmentName, SegmentRecord};
use imgstore::model::op::{Author, Op};
use imgstore::model::region::ChunkerParams;
use imgstore::model::units::BLOCK_BYTES;
use imgstore::pack::segment::Segment;
use std::hint::black_box;
use std::sync::Arc;

/// What the chunker is shown: 16 MiB.
const DISK_BLOCKS: usize = 4 << 10;
/// A chunk of the usual size, 44 KiB.
const CHUNK_BYTES: usize = 11 * BLOCK_BYTES;
/// Chunks of each kind.
const CHUNKS: usize = 32;
/// The level of new regions.
const ZSTD_LEVEL: i32 = 3;
/// Entries of the index, and how many are looked up.
const INDEX_ENTRIES: usize = 200_000;
const LOOK_UPS: usize = 10_000;
/// Packs in a log record, chunks in a block map, bases in a feature table.
const RECORD_PACKS: u64 = 300;
const MAP_CHUNKS: u64 = 20_000;
const TABLE_BASES: usize = 20_000;
const SESSION: SessionId = SessionId([5; 16]);
const REGION: RegionId = RegionId([6; 16]);

/// What each case is called, in the order in which they run.
pub const NAMES: [&str; 16] = [
    "chunker: facts of blocks",
    "chunker: cut",
    "hash",
    "codec: encode text, with proof",
    "codec: encode noise, with proof",
    "codec: decode text",
    "codec: decode noise",
    "delta: encode, with proof",
    "delta: decode",
    "delta: features",
    "delta: look-up of features",
    "index: hit",
    "index: miss",
    "index: miss, by the filter",
    "log: decode a record",
    "block map: decode",
];

/// Runs all cases, each once by itself and once measured.
pub fn run(measured: impl Fn(&mut dyn FnMut())) {
    let mut done = 0;
    let mut case = |work: &mut dyn FnMut()| {
        work();
        measured(work);
        done += 1;
    };
    chunker(&mut case);
    codec(&mut case);
    delta(&mut case);
    index(&mut case);
    objects(&mut case);
    assert_eq!(done, NAMES.len(), "each case has a name");
}

type Case<'a> = &'a mut dyn FnMut(&mut dyn FnMut());

fn chunker(case: Case<'_>) {
    let params = ChunkerParams::DEFAULT;
    let disk = file_system(DISK_BLOCKS, 1);
    let facts_of = || -> Vec<BlockFacts> {
        disk.chunks_exact(BLOCK_BYTES).map(|block| block_facts(block, params.zero_tail_bytes)).collect()
    };
    let facts = facts_of();
    case(&mut || drop(black_box(facts_of())));
    case(&mut || {
        let mut chunks = 0;
        let mut count = |_| chunks += 1;
        let mut cutter = Cutter::new(params);
        facts.iter().for_each(|&facts| cutter.push(facts, &mut count));
        cutter.finish(&mut count);
        black_box(chunks);
    });
}

/// A chunk with its id.
type Chunk = (Vec<u8>, ChunkId);

/// Chunks of one kind.
struct Chunks(Vec<Chunk>);

impl Chunks {
    fn made(mut fill: impl FnMut(&mut [u8])) -> Self {
        let chunk = |_| {
            let mut chunk = vec![0; CHUNK_BYTES];
            fill(&mut chunk);
            let id = chunk_id(&chunk);
            (chunk, id)
        };
        Self((0..CHUNKS).map(chunk).collect())
    }

    fn text() -> Self {
        let (text, mut random) = (Text::new(), Random::new(3));
        Self::made(|bytes| text.fill(bytes, &mut random))
    }

    fn noise() -> Self {
        let mut random = Random::new(2);
        Self::made(|bytes| fill_noise(bytes, &mut random))
    }

    /// Each with 30 short pieces of other text in it.
    fn edited(&self) -> Self {
        let (text, mut random) = (Text::new(), Random::new(8));
        let edit = |(chunk, _): &Chunk| {
            let mut chunk = chunk.clone();
            for _ in 0..30 {
                let at = random.below(CHUNK_BYTES - 64);
                text.fill(&mut chunk[at..at + 48], &mut random);
            }
            let id = chunk_id(&chunk);
            (chunk, id)
        };
        Self(self.0.iter().map(edit).collect())
    }
}

fn codec(case: Case<'_>) {
    let pool = CodecPool::new();
    let (text, noise) = (Chunks::text(), Chunks::noise());
    case(&mut || text.0.iter().for_each(|(chunk, _)| _ = black_box(chunk_id(chunk))));
    let encode = |(chunk, id): &Chunk| pool.encode(chunk, *id, ZSTD_LEVEL).expect("encodes");
    for chunks in [&text, &noise] {
        case(&mut || chunks.0.iter().for_each(|chunk| drop(black_box(encode(chunk)))));
    }
    for (chunks, codec) in [(&text, Codec::Zstd), (&noise, Codec::Raw)] {
        let frames: Vec<Frame> = chunks.0.iter().map(encode).collect();
        assert!(frames.iter().all(|frame| frame.codec == codec), "the content is of another kind");
        let mut raw = vec![0; CHUNK_BYTES];
        case(&mut || {
            for (frame, (_, id)) in frames.iter().zip(&chunks.0) {
                pool.decode(frame.codec, &frame.body, *id, None, &mut raw).expect("decodes");
            }
        });
    }
}

fn delta(case: Case<'_>) {
    let pool = CodecPool::new();
    let bases = Chunks::text();
    let edited = bases.edited();
    let pairs = || edited.0.iter().zip(&bases.0);
    let encode = |((chunk, id), (base, base_id)): (&Chunk, &Chunk)| {
        let frame = pool.encode_delta(chunk, *id, (*base_id, base), ZSTD_LEVEL, CHUNK_BYTES);
        frame.expect("encodes").expect("is smaller")
    };
    case(&mut || pairs().for_each(|pair| drop(black_box(encode(pair)))));
    let frames: Vec<Frame> = pairs().map(encode).collect();
    let mut raw = vec![0; CHUNK_BYTES];
    case(&mut || {
        for (frame, ((_, id), (base, _))) in frames.iter().zip(pairs()) {
            pool.decode(frame.codec, &frame.body, *id, Some(base), &mut raw).expect("decodes");
        }
    });
    case(&mut || edited.0.iter().for_each(|(chunk, _)| _ = black_box(features(chunk))));
    let mut random = Random::new(9);
    let made_up: Vec<Features> =
        (0..TABLE_BASES).map(|_| std::array::from_fn(|_| (random.bits() >> 33) as u32)).collect();
    let leading: Vec<u64> = (0..TABLE_BASES).map(|_| random.bits()).collect();
    let table = encode_features(REGION, &leading, slots_of(&made_up, 0).into_iter()).expect("a table");
    let header = decode_header(&table).expect("a table");
    case(&mut || {
        let bases = made_up.iter().step_by(20).flatten().flat_map(|f| header.with_feature(&table, *f));
        black_box(bases.filter_map(|number| header.base(&table, number)).count());
    });
}

/// An id that begins with these bits. The order of ids is that of their first bits.
fn id_with(bits: u64) -> ChunkId {
    let mut id = [0; 32];
    fill_noise(&mut id, &mut Random::new(bits));
    id[..8].copy_from_slice(&bits.to_be_bytes());
    ChunkId(id)
}

const fn pack_name(number: u64) -> PackName {
    PackName { session: SESSION, number }
}

fn segment(ids: &[u64]) -> Segment {
    let packs: Vec<PackName> = (0..100).map(pack_name).collect();
    let mut writer = SegmentWriter::new(ids.len());
    for (&bits, pack) in ids.iter().zip((0..100).cycle()) {
        let (offset, stored_len) = (64, 16 << 10);
        let entry = Entry { id: id_with(bits), pack, offset, stored_len, raw_blocks: 11, codec: Codec::Zstd };
        writer.push(entry).expect("ids ascend");
    }
    let (bytes, hash, entries) = writer.finish(REGION, &packs).expect("packs ascend");
    let name = SegmentName { session: SESSION, number: 0 };
    let len = bytes.len() as u64;
    let record = SegmentRecord { name, len, entries, hash, replaces: Vec::new(), partial: Vec::new() };
    Segment::from_bytes(Bytes::Owned(Arc::new(bytes)), REGION, &record).expect("a good segment")
}

fn index(case: Case<'_>) {
    let mut random = Random::new(4);
    let mut stored: Vec<u64> = (0..INDEX_ENTRIES).map(|_| random.bits()).collect();
    stored.sort_unstable();
    let segment = segment(&stored);
    let hits: Vec<ChunkId> = (0..LOOK_UPS).map(|_| id_with(stored[random.below(stored.len())])).collect();
    let misses: Vec<ChunkId> = (0..LOOK_UPS).map(|_| id_with(random.bits())).collect();
    for (ids, expected) in [(&hits, LOOK_UPS), (&misses, 0)] {
        case(&mut || {
            let found = ids.iter().filter(|id| segment.lookup(**id).expect("a good page").is_some()).count();
            assert_eq!(found, expected);
        });
    }
    case(&mut || {
        let may_be = misses.iter().filter(|id| segment.may_hold(id.leading())).count();
        assert!(may_be < LOOK_UPS / 20);
    });
}

fn objects(case: Case<'_>) {
    let pack = |number| {
        let record = PackRecord {
            name: pack_name(number),
            len: 64 << 20,
            frames: 4000,
            raw_bytes: 180 << 20,
            trailer_hash: ObjectHash([7; 32]),
            bases: vec![pack_name(0), pack_name(1)],
        };
        Op::RegisterPack(record)
    };
    let author = Author { account: AccountId::from_random(1), session: SESSION };
    let body = Body::Inline((0..RECORD_PACKS).map(pack).collect());
    let stored = StoredRecord {
        sequence: 9,
        previous: ObjectHash([8; 32]),
        nonce: [9; 16],
        time_ms: 10,
        author,
        body,
    };
    let (bytes, _) = record::encode(&stored).expect("encodes");
    case(&mut || drop(black_box(record::decode(&bytes).expect("decodes"))));

    let chunk = |n| ChunkRef { start_block: n * 12, blocks: 11, id: id_with(n) };
    let map = BlockMap::new(MAP_CHUNKS * 12 * BLOCK_BYTES as u64, (0..MAP_CHUNKS).map(chunk).collect());
    let (bytes, _) = manifest::encode(&map.expect("a block map"));
    case(&mut || drop(black_box(manifest::decode(&bytes).expect("decodes"))));
}
