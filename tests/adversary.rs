//! Who lies, and what it gets: a region that serves other content than it names, links and special files in a region's
//! folders, a source that was put back to an older state. docs/SECURITY.md names each of these tests.

mod common;

use common::{Caller, MemoryDisk, memory_region, session, small_packs, volume};
use imgstore::chunk::frame::{CodecPool, chunk_id};
use imgstore::format::manifest;
use imgstore::io::directory::DirectoryOptions;
use imgstore::io::memory::Memory;
use imgstore::io::storage::Storage;
use imgstore::model::blockmap::{BlockMap, ChunkRef};
use imgstore::model::ids::{ChunkId, SnapshotId};
use imgstore::model::objects::{ManifestName, ManifestRecord, PackName};
use imgstore::model::op::Op;
use imgstore::ops::context::{Context, Progress};
use imgstore::ops::copy::{CopyOptions, CopyWhat, apply, plan};
use imgstore::ops::error::{Class, OpsError};
use imgstore::pack::build::PackBuilder;
use imgstore::region::Region;
use std::path::Path;
use std::sync::Mutex;

/// A region that an adversary has made whole, log and hashes included: it may say anything that can be encoded.
struct Liar {
    storage: Memory,
    region: Region,
    caller: Caller,
    id: SnapshotId,
}

/// One chunk of content that the liar names, and what it serves instead.
struct Lie {
    named: Vec<u8>,
    served: Vec<u8>,
    /// Blocks that its block map says the chunk has.
    blocks: u16,
    /// Bytes that its log says the volume has.
    volume_bytes: u64,
}

impl Liar {
    fn new(lie: &Lie) -> Self {
        let (storage, caller) = (Memory::new(), Caller::new(1));
        let region = memory_region(&storage, &small_packs());
        let like = caller.snapshot(&region, &MemoryDisk::new(vec![5; 4096])).unwrap().snapshot;
        let id = chunk_id(&lie.named);
        let frame = CodecPool::new().encode(&lie.served, chunk_id(&lie.served), 3).unwrap();
        let name = PackName { session: session(), number: 0 };
        let mut pack = PackBuilder::new(region.header().id, name, 1 << 20, Vec::new());
        pack.push(id, &frame, None).unwrap();
        let sealed = pack.seal(0).unwrap();
        storage.create(&name.to_string(), &[&sealed.bytes]).unwrap();
        let map = Self::map(id, lie.blocks);
        let (bytes, hash) = manifest::encode(&map);
        let manifest = ManifestRecord {
            name: ManifestName { session: name.session, number: 1 },
            len: bytes.len() as u64,
            hash,
            chunks: 1,
        };
        storage.create(&manifest.name.to_string(), &[&bytes]).unwrap();
        let mut snapshot = like;
        snapshot.id = SnapshotId::from_random(77);
        (snapshot.volume_bytes, snapshot.data_bytes) = (lie.volume_bytes, map.data_bytes());
        snapshot.manifest = manifest;
        let id = snapshot.id;
        let ops = vec![
            Op::RegisterPack(sealed.record),
            Op::CreateSnapshot { snapshot: Box::new(snapshot), packs: vec![name] },
        ];
        region.commit::<_, OpsError>(caller.account, |_| Ok((ops.clone(), ()))).unwrap();
        Self { storage, region, caller, id }
    }

    fn map(id: ChunkId, blocks: u16) -> BlockMap {
        let chunk = ChunkRef { start_block: 0, blocks, id };
        BlockMap::new(u64::from(blocks) * 4096, vec![chunk]).unwrap()
    }

    /// What an honest region says when it is to copy from it; nothing of it may be there afterwards.
    fn refused(&self) -> OpsError {
        let target = memory_region(&Memory::new(), &small_packs());
        let (options, context) = (CopyOptions::default(), self.caller.context());
        let what = CopyWhat::Snapshot(self.id);
        let copied = plan(&self.region, &target, what, &options, &context)
            .and_then(|plan| apply(&self.region, &target, &plan, &options, &context));
        let error = copied.map(|_| ()).unwrap_err();
        assert!(target.catalog().unwrap().snapshots.is_empty(), "a lie was taken over");
        error
    }
}

fn blocks(count: usize, seed: u64) -> Vec<u8> {
    volume(count * 4096, seed)
}

#[test]
fn content_under_another_name_is_not_taken_over() {
    let lie = Lie { named: blocks(4, 1), served: blocks(4, 2), blocks: 4, volume_bytes: 4 * 4096 };
    let liar = Liar::new(&lie);
    let error = liar.refused();
    assert_eq!(error.class(), Class::Damage, "{error}");
    assert!(liar.caller.read_back(&liar.region, liar.id).is_err(), "nor is it handed out there");
    drop(liar.storage);
}

#[test]
fn a_block_map_with_other_lengths_than_its_chunks_is_refused() {
    let content = blocks(4, 3);
    for blocks in [1, 3, 5, 200] {
        let volume_bytes = u64::from(blocks) * 4096;
        let lie = Lie { named: content.clone(), served: content.clone(), blocks, volume_bytes };
        let error = Liar::new(&lie).refused();
        assert_eq!(error.class(), Class::Damage, "{error}");
    }
}

#[test]
fn a_volume_of_another_length_than_its_block_map_is_refused() {
    let content = blocks(4, 4);
    for volume_bytes in [1, 4095, 4 * 4096 + 1, 1 << 60] {
        let lie = Lie { named: content.clone(), served: content.clone(), blocks: 4, volume_bytes };
        let error = Liar::new(&lie).refused();
        assert_eq!(error.class(), Class::Damage, "{error}");
    }
}

struct Notes(Mutex<Vec<String>>);

impl Progress for Notes {
    fn begin(&self, _phase: &'static str, _total_bytes: u64) {}
    fn advance(&self, _bytes: u64) {}
    fn note(&self, message: &str) {
        self.0.lock().unwrap().push(message.to_owned());
    }
    fn is_cancelled(&self) -> bool {
        false
    }
}

#[test]
fn a_copy_tells_that_its_source_is_older_than_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let options = DirectoryOptions { reserve_bytes: 0, ..DirectoryOptions::default() };
    let path = |name: &str| folder.path().join(name);
    for name in ["source", "target"] {
        Region::create_directory(&path(name), &small_packs(), options).unwrap();
    }
    let open = |name: &str| Region::open_directory(&path(name), options).unwrap();
    let caller = Caller::new(1);
    let first = caller.snapshot(&open("source"), &MemoryDisk::new(blocks(9, 7))).unwrap().snapshot.id;
    copy_dir(&path("source"), &path("old"));
    let second = caller.snapshot(&open("source"), &MemoryDisk::new(blocks(9, 8))).unwrap().snapshot.id;
    let notes = Notes(Mutex::default());
    let context = Context { progress: &notes, ..caller.context() };
    let copies = CopyOptions::default();
    let copy = |source: &str, id| {
        let (source, target) = (open(source), open("target"));
        let plan = plan(&source, &target, CopyWhat::Snapshot(id), &copies, &context).unwrap();
        apply(&source, &target, &plan, &copies, &context).unwrap();
    };
    copy("source", first);
    copy("source", second);
    assert!(notes.0.lock().unwrap().is_empty());
    copy("old", first);
    let notes = notes.0.into_inner().unwrap();
    assert!(notes.len() == 1 && notes[0].contains("put back to an older state"), "{notes:?}");
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Links and FIFOs in the place of objects: never followed, never waited for, never taken for absent.
#[test]
fn links_and_special_files_in_a_region_are_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let options = DirectoryOptions { reserve_bytes: 0, ..DirectoryOptions::default() };
    let root = folder.path().join("region");
    Region::create_directory(&root, &small_packs(), options).unwrap();
    let open = || Region::open_directory(&root, options);
    let caller = Caller::new(1);
    let bytes = blocks(60, 9);
    let id = caller.snapshot(&open().unwrap(), &MemoryDisk::new(bytes.clone())).unwrap().snapshot.id;
    let catalog = open().unwrap().catalog().unwrap();
    let pack = root.join(catalog.packs.keys().next().unwrap().to_string());
    let manifest = root.join(catalog.snapshots[&id].manifest.name.to_string());
    let record = root.join("log/00000000000000000/00000000000000000001");
    for path in [&pack, &manifest, &record] {
        let aside = folder.path().join("aside");
        for kind in ["link", "fifo", "folder"] {
            std::fs::rename(path, &aside).unwrap();
            match kind {
                "link" => std::os::unix::fs::symlink(&aside, path).unwrap(),
                "fifo" => assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success()),
                _ => std::fs::create_dir(path).unwrap(),
            }
            let read = open().map_err(OpsError::from).and_then(|region| caller.read_directly(&region, id));
            assert!(read.is_err(), "{kind} at {}", path.display());
            // And nothing is written in a record's place.
            if path == &record {
                assert!(open().is_err());
            }
            if kind == "folder" {
                std::fs::remove_dir(path).unwrap()
            } else {
                std::fs::remove_file(path).unwrap()
            }
            std::fs::rename(&aside, path).unwrap();
        }
    }
    assert!(caller.read_directly(&open().unwrap(), id).unwrap() == bytes);
}
