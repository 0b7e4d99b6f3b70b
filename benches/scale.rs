//! What a collection needs at scale: a region of as many chunks as is asked for is made up (its index, block maps and
//! log; no content), half of it garbage, and marked. Prints time and memory.
//!
//!     IMGSTORE_SCALE_CHUNKS=100000000 cargo bench --bench scale     # 9 GB of disk, some minutes
//!
//! The part that grows is linear: bytes for a chunk and chunks for a second are what to compare.
#![allow(clippy::print_stdout, clippy::cast_precision_loss, reason = "a program that reports")]

use imgstore::chunk::frame::Codec;
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
use std::time::Instant;

const SEGMENT_CHUNKS: u64 = 4_000_000;
const PACK_CHUNKS: u64 = 1000;
const MAP_CHUNKS: u64 = 1_000_000;
const SESSION: SessionId = SessionId([7; 16]);

/// Chunk `number` of a segment: spread over all ids, ascending with the number.
fn id(segment: u64, number: u64) -> ChunkId {
    let mut id = [0; 32];
    let leading = (u64::MAX / SEGMENT_CHUNKS) * number + segment;
    id[..8].copy_from_slice(&leading.to_be_bytes());
    id[8..16].copy_from_slice(&segment.to_be_bytes());
    ChunkId(id)
}

fn pack(segment: u64, number: u64) -> PackName {
    PackName { session: SESSION, number: segment * (SEGMENT_CHUNKS / PACK_CHUNKS) + number }
}

fn commit(region: &Region, ops: Vec<Op>) {
    region
        .commit::<_, RegionError>(AccountId::from_random(1), |_| Ok((ops.clone(), ())))
        .expect("it applies");
}

fn add_segment(region: &Region, storage: &dyn Storage, segment: u64, chunks: u64) {
    let packs: Vec<PackName> =
        (0..chunks.div_ceil(PACK_CHUNKS)).map(|number| pack(segment, number)).collect();
    let mut writer = SegmentWriter::new(usize::try_from(chunks).expect("it fits"));
    for number in 0..chunks {
        let place = u32::try_from(number % packs.len() as u64).expect("it fits");
        let (offset, stored_len) = (64, 16 << 10);
        let entry = Entry {
            id: id(segment, number),
            pack: place,
            offset,
            stored_len,
            raw_blocks: 11,
            codec: Codec::Zstd,
        };
        writer.push(entry).expect("ids ascend");
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
}

/// A snapshot of chunks that lie all over a segment: of each pack half are needed.
fn add_snapshot(region: &Region, storage: &dyn Storage, segment: u64, from: u64, chunks: u64) {
    let chunk =
        |number: u64| ChunkRef { start_block: number * 11, blocks: 11, id: id(segment, from + number) };
    let map = BlockMap::new(chunks * 11 * 4096, (0..chunks).map(chunk).collect()).expect("a good map");
    let (bytes, hash) = manifest::encode(&map);
    let name = ManifestName { session: SESSION, number: segment * 16 + from / MAP_CHUNKS };
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

fn main() {
    let total: u64 =
        std::env::var("IMGSTORE_SCALE_CHUNKS").ok().and_then(|text| text.parse().ok()).unwrap_or(4_000_000);
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path().join("region");
    let options = RegionOptions::named("scale", AccountId::from_random(1));
    let directory = DirectoryOptions { reserve_bytes: 0, ..DirectoryOptions::default() };
    {
        let region = Region::create_directory(&root, &options, directory).expect("a new region");
        let (storage, _) = directory_storage(&root, directory).expect("a storage");
        for segment in 0..total.div_ceil(SEGMENT_CHUNKS) {
            let chunks = SEGMENT_CHUNKS.min(total - segment * SEGMENT_CHUNKS);
            add_segment(&region, &storage, segment, chunks);
            for from in (0..chunks).step_by(usize::try_from(MAP_CHUNKS).expect("it fits")) {
                add_snapshot(&region, &storage, segment, from, MAP_CHUNKS.min(chunks - from));
            }
        }
    }
    // What the maker held is not what the collection needs: a process of its own would begin like this.
    let before = memory_mb("RssAnon:");
    let region = Region::open_directory(&root, directory).expect("it opens");
    let (started, mut peak) = (Instant::now(), 0);
    let mark = region
        .mark::<RegionError>(&HashSet::new(), || {
            peak = peak.max(memory_mb("RssAnon:"));
            Ok(())
        })
        .expect("nothing is damaged");
    let seconds = started.elapsed().as_secs_f64();
    let kept = mark.kept_packs().len();
    println!(
        "{total} chunks in {kept} packs: marked in {seconds:.1} s, {:.1} million a second; \
         anonymous memory at most {peak} MB, {before} MB of them before",
        total as f64 / seconds / 1e6
    );
}
