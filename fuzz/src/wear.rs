//! Sequences of operations on a region in memory whose medium wears out: bits rot, sectors cannot be read, packs go.
//!
//! Nothing that is done may lose more than the medium did. What can be read before an operation, can be read after it; and
//! what is intact anywhere in a pack that is on record, and be it without an index, is so after it, too. In the end a repair
//! saves all of that; and once it has the disks, all is whole again, and what was damaged goes.

use super::model::{BLOCK, OPERATIONS_MAX, VecDisk, context_at, session_of};
use imgstore::chunk::frame::chunk_id;
use imgstore::disk::DiskRead;
use imgstore::format::pack::HEADER_BYTES;
use imgstore::io::map::Bytes;
use imgstore::io::memory::Memory;
use imgstore::io::storage::{Created, Listed, Object, Storage, StorageError};
use imgstore::model::account::AccountId;
use imgstore::model::ids::{ChunkId, SessionId, SnapshotId};
use imgstore::model::objects::PackState;
use imgstore::model::region::ChunkerParams;
use imgstore::model::units::block_offset;
use imgstore::ops::context::Context;
use imgstore::ops::delete::delete_snapshot;
use imgstore::ops::encode::Compression;
use imgstore::ops::gc::{Collected, GcOptions, collect, preview};
use imgstore::ops::ingest::ingest;
use imgstore::ops::repack::{RepackOptions, repack};
use imgstore::ops::repair::{RepairSources, repair};
use imgstore::ops::snapshot::{SnapshotOptions, snapshot};
use imgstore::pack::scan::Scan;
use imgstore::region::session::Session;
use imgstore::region::{Region, RegionOptions};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

/// Objects that are damaged at once: docs/SHORTCOMINGS.md says what more can do.
const DAMAGED_MAX: usize = 2;
/// Packs from which on there is an index segment, with which a pack's trailer is not all that tells what it holds.
const MANY: u8 = 65;
/// Bytes that a device gives together or not at all.
const SECTOR: u64 = 512;

/// What is wrong now, beside what is rotten or gone.
#[derive(Default)]
struct Faults {
    /// Ranges of objects that cannot be read.
    bad: Vec<(String, Range<u64>)>,
    /// Changes after which whoever makes them is killed.
    left: Option<usize>,
}

type Shared = Arc<Mutex<Faults>>;

/// A medium with faults.
struct Worn {
    inner: Memory,
    faults: Shared,
}

struct WornObject {
    inner: Arc<dyn Object>,
    name: String,
    faults: Shared,
}

fn locked(faults: &Shared) -> MutexGuard<'_, Faults> {
    faults.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failed(action: &'static str, name: &str) -> StorageError {
    StorageError::Io { action, name: name.to_owned(), source: std::io::Error::from_raw_os_error(5) }
}

impl Worn {
    fn change(&self, name: &str) -> Result<(), StorageError> {
        match &mut locked(&self.faults).left {
            Some(0) => Err(failed("change", name)),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl Storage for Worn {
    fn open(&self, name: &str) -> Result<Arc<dyn Object>, StorageError> {
        let inner = self.inner.open(name)?;
        Ok(Arc::new(WornObject { inner, name: name.to_owned(), faults: self.faults.clone() }))
    }

    fn create(&self, name: &str, parts: &[&[u8]]) -> Result<Created, StorageError> {
        self.change(name)?;
        self.inner.create(name, parts)
    }

    fn list(&self, folder: &str) -> Result<Vec<Listed>, StorageError> {
        self.inner.list(folder)
    }

    fn restore(&self, name: &str, bytes: &[u8]) -> Result<(), StorageError> {
        self.change(name)?;
        self.inner.restore(name, bytes)
    }

    fn delete(&self, name: &str) -> Result<(), StorageError> {
        self.change(name)?;
        self.inner.delete(name)
    }

    fn persist(&self, folder: &str) -> Result<(), StorageError> {
        self.inner.persist(folder)
    }

    fn admit_writer(&self) -> Result<(), StorageError> {
        self.inner.admit_writer()
    }

    fn admit_collector(&self) -> Result<bool, StorageError> {
        self.inner.admit_collector()
    }

    fn is_writer_gone(&self, writer: &str) -> Result<bool, StorageError> {
        self.inner.is_writer_gone(writer)
    }
}

impl Object for WornObject {
    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), StorageError> {
        let end = offset + buffer.len() as u64;
        let is_hit =
            |(name, bad): &(String, Range<u64>)| *name == self.name && offset < bad.end && bad.start < end;
        if locked(&self.faults).bad.iter().any(is_hit) {
            return Err(failed("read", &self.name));
        }
        self.inner.read_at(offset, buffer)
    }

    fn bytes(&self) -> Result<Bytes, StorageError> {
        if locked(&self.faults).bad.iter().any(|(name, _)| *name == self.name) {
            return Err(failed("map", &self.name));
        }
        self.inner.bytes()
    }
}

/// A volume of up to 16 blocks, each of which is one of a few that resemble one another.
fn content(choice: u8) -> Vec<u8> {
    static CONTENTS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| (0..=u8::MAX).map(make).collect());
    CONTENTS[usize::from(choice)].clone()
}

fn make(choice: u8) -> Vec<u8> {
    let (kind, blocks) = (choice & 15, usize::from(choice >> 4) + 1);
    (0..blocks).flat_map(|at| block(at, kind)).collect()
}

/// Words, in which a kind has a few of its own.
fn block(at: usize, kind: u8) -> Vec<u8> {
    let mut state = (at as u64 / 2 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut text = Vec::new();
    while text.len() < BLOCK {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        text.extend(format!("{:x} ", state >> 20).bytes());
    }
    text.truncate(BLOCK);
    // Blocks that few kinds change, and blocks that most do.
    let own = if at.is_multiple_of(3) { kind / 6 } else { kind };
    if own > 0 {
        let word = format!("kind {own:02}");
        let place = 100 + 1500 * (at % 2) + 40 * usize::from(own);
        text[place..place + word.len()].copy_from_slice(word.as_bytes());
    }
    text
}

/// Of each snapshot the blocks that read as they were taken.
type Readable = BTreeMap<SnapshotId, Vec<bool>>;

struct World {
    memory: Memory,
    faults: Shared,
    sessions: u64,
    now_ms: u64,
    /// In the order in which they were taken, whatever their ids are.
    there: Vec<(SnapshotId, Vec<u8>)>,
    under_way: Vec<(Region, Session)>,
    damaged: Vec<String>,
    /// What [`World::both`] gave last, if nothing has changed since.
    known: Option<[Readable; 2]>,
    /// Whether a repair knows of all damage.
    is_known: bool,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            memory: Memory::new(),
            faults: Shared::default(),
            sessions: 0,
            now_ms: 1,
            there: Vec::new(),
            under_way: Vec::new(),
            damaged: Vec::new(),
            known: None,
            is_known: true,
        };
        let chunker = ChunkerParams { min_blocks: 1, avg_blocks: 2, max_blocks: 4, zero_tail_bytes: 32 };
        let account = AccountId::from_random(1);
        let options =
            RegionOptions { chunker, pack_bytes: 16 << 10, ..RegionOptions::named("fuzz", account) };
        // So that collections have something to do from the start.
        world.memory.take_all_for_gone(true);
        let session = world.session();
        Region::create(Arc::new(world.memory.clone()), session, &options).expect("an empty storage");
        world
    }

    fn session(&mut self) -> SessionId {
        self.sessions += 1;
        session_of(self.sessions)
    }

    fn open(&mut self) -> Region {
        let session = self.session();
        let storage = Worn { inner: self.memory.clone(), faults: self.faults.clone() };
        Region::open(Arc::new(storage), session).expect("the log is sound")
    }

    /// The medium as it would be without bad sectors, for itself.
    fn healthy(&mut self) -> Region {
        let copy = Memory::new();
        for listed in self.memory.list("").expect("it is in memory") {
            let bytes = whole(&self.memory, &listed.name);
            copy.restore(&listed.name, &bytes).expect("it is in memory");
        }
        Region::open(Arc::new(copy), self.session()).expect("the log is sound")
    }

    fn context(&self) -> Context<'static> {
        context_at(self.now_ms)
    }

    fn readable(&self, region: &Region) -> Readable {
        self.there.iter().map(|(id, bytes)| (*id, readable(region, *id, bytes))).collect()
    }

    /// What can be read now, and what is intact on the medium.
    fn both(&mut self) -> [Readable; 2] {
        let now = self.open();
        let healthy = Region::open(Arc::new(self.memory.clone()), self.session()).expect("the log is sound");
        let mut intact = self.readable(&healthy);
        let found = scanned(&self.memory, &healthy);
        let catalog = healthy.catalog().expect("the log is sound");
        for (id, blocks) in &mut intact {
            let Ok(map) = healthy.load_map(&catalog.snapshots[id].manifest) else { continue };
            for chunk in map.chunks().iter().filter(|chunk| found.contains_key(&chunk.id)) {
                let start = usize::try_from(chunk.start_block).expect("small");
                blocks[start..start + usize::from(chunk.blocks)].fill(true);
            }
        }
        [self.readable(&now), intact]
    }

    /// Runs what must not lose anything, also if it is killed once few changes are `left`.
    fn keeping(&mut self, what: &str, left: Option<usize>, run: impl FnOnce(&mut Self)) {
        let before = match self.known.take() {
            Some(known) => known,
            None => self.both(),
        };
        locked(&self.faults).left = left;
        run(self);
        locked(&self.faults).left = None;
        let after = self.both();
        for (kind, (before, after)) in ["read", "saved"].into_iter().zip(before.iter().zip(&after)) {
            for (id, blocks) in after {
                let Some(had) = before.get(id) else { continue };
                let lost: Vec<usize> =
                    (0..blocks.len()).filter(|&block| had[block] && !blocks[block]).collect();
                assert!(lost.is_empty(), "{what}: of {id} the blocks {lost:?} can no longer be {kind}");
            }
        }
        self.known = Some(after);
    }

    /// Whether nothing is in the way of anything.
    fn is_sound(&self) -> bool {
        let faults = locked(&self.faults);
        self.damaged.is_empty() && faults.bad.is_empty() && faults.left.is_none()
    }

    /// Damages an object: packs mostly, those that came last if there are many, block maps and index segments.
    fn damage(&mut self, op: u8, choice: u8) {
        let place = u64::from(choice >> 4);
        let folder = match (op, place) {
            (12, 4..7) => "manifests",
            (12, 7) => "index",
            _ => "packs",
        };
        let objects = self.memory.list(folder).expect("it is in memory");
        let picked = usize::from(choice & 15) % objects.len().max(1);
        let Some(object) = objects.iter().nth_back(picked) else { return };
        if !self.damaged.contains(&object.name) {
            if self.damaged.len() == DAMAGED_MAX {
                return;
            }
            self.damaged.push(object.name.clone());
        }
        (self.is_known, self.known) = (false, None);
        // Of 16 places half are where the frames are; the others in the trailer's entries and the footer.
        let at = match place {
            0 => 8,
            1..8 => object.len * place / 9,
            _ => object.len.saturating_sub(8 + 30 * (place - 8)),
        };
        match (op, place) {
            (10, _) | (12, 6 | 7) => {
                let mut bytes = whole(&self.memory, &object.name);
                bytes[usize::try_from(at).expect("inside")] ^= 1;
                self.memory.restore(&object.name, &bytes).expect("it is in memory");
            }
            (11, _) => {
                let sector = at / SECTOR * SECTOR;
                locked(&self.faults).bad.push((object.name.clone(), sector..sector + SECTOR));
            }
            (_, ..6) => self.memory.delete(&object.name).expect("it is in memory"),
            _ => locked(&self.faults).bad.push((object.name.clone(), 0..object.len)),
        }
    }

    /// Repairs. With all disks, and not killed, it leaves nothing to wish for.
    fn mend(&mut self, has_disks: bool) {
        let region = self.open();
        let disks: Vec<Box<dyn DiskRead>> = match has_disks {
            true => self.there.iter().map(|(_, bytes)| Box::new(VecDisk(bytes.clone())) as _).collect(),
            false => Vec::new(),
        };
        let repaired = repair(&region, &forced(&disks), &self.context());
        assert!(repaired.is_ok() || !self.is_sound(), "{repaired:?}");
        self.is_known |= repaired.is_ok();
        if has_disks && locked(&self.faults).left.is_none() {
            let repaired = repaired.as_ref().expect("nothing stands in its way");
            assert!(repaired.lost.is_empty(), "{:?}", repaired.lost);
            assert!(all_whole(&self.readable(&region)), "a repair with all disks lacks something");
            if locked(&self.faults).bad.is_empty() {
                // Now the medium may wear on.
                self.damaged.clear();
            }
        }
    }

    /// Stores many packs, of a chunk each that nothing refers to.
    fn store_many(&mut self) {
        for number in 0..MANY {
            let raw = vec![number + 1; BLOCK];
            let id = chunk_id(&raw);
            let region = self.open();
            let store = || {
                let mut session = region.begin(AccountId::from_random(1))?;
                session.put(id, &region.encode(&raw, id, 1).expect("it is encoded"))?;
                session.flush()
            };
            assert!(store().is_ok() || !self.is_sound());
        }
    }

    fn step(&mut self, op: u8, choice: u8) {
        let context = self.context();
        let left = (op >= 128).then_some(usize::from(op >> 4) % 8 * (1 + usize::from(choice) % 4));
        match op % 16 {
            0..=2 => self.keeping("snapshot", left, |world| world.take(&content(choice))),
            3 if !self.there.is_empty() => {
                let (id, _) = self.there.remove(usize::from(choice) % self.there.len());
                self.keeping("delete", None, |world| {
                    delete_snapshot(&world.open(), id, &context).expect("it is there");
                });
            }
            4 | 5 => {
                let grace_ms = [0, 0, 5000][usize::from(choice) % 3];
                let options = GcOptions { grace_ms, repack_percent: choice % 101 };
                self.keeping("gc", left, |world| world.collect(options));
            }
            6 if choice == u8::MAX => self.keeping("store", None, Self::store_many),
            6 => self.keeping("ingest", left, |world| {
                let region = world.open();
                if let Ok(mut session) = region.begin(context.account) {
                    let disk = VecDisk(content(choice));
                    let done = ingest(&mut session, &disk, &Compression::default(), &context);
                    assert!(done.is_ok() || !world.is_sound());
                    world.under_way.push((region, session));
                }
            }),
            7 if !self.under_way.is_empty() => drop(self.under_way.remove(0)),
            8 => self.memory.take_all_for_gone(choice & 1 == 1),
            9 => self.now_ms += u64::from(choice) * 100,
            10..=12 => self.damage(op % 16, choice),
            13 => {
                locked(&self.faults).bad.clear();
                self.known = None;
            }
            14 => self.keeping("repair", left, |world| world.mend(choice & 3 == 3)),
            15 => self.keeping("repack", left, |world| {
                let repacked = repack(&world.open(), &RepackOptions::default(), &context);
                assert!(repacked.is_ok() || !world.is_sound(), "{repacked:?}");
            }),
            _ => {}
        }
    }

    /// Takes a snapshot, which is whole if all damage is known.
    fn take(&mut self, bytes: &[u8]) {
        let region = self.open();
        let taken = snapshot(&region, &VecDisk(bytes.to_vec()), &SnapshotOptions::default(), &self.context());
        assert!(taken.is_ok() || !self.is_sound(), "{taken:?}");
        // One that was killed may have made it, and not said so.
        let snapshots = region.catalog().expect("the log is sound").snapshots;
        let new: Vec<SnapshotId> =
            snapshots.keys().copied().filter(|new| self.there.iter().all(|(id, _)| id != new)).collect();
        for id in new {
            let blocks = readable(&region, id, bytes);
            assert!(!self.is_known || blocks.iter().all(|is_whole| *is_whole), "not whole: {blocks:?}");
            self.there.push((id, bytes.to_vec()));
        }
    }

    /// Collects, and holds what a dry run says against it.
    fn collect(&mut self, options: GcOptions) {
        let context = self.context();
        let said = preview(&self.open(), &options, &context);
        let done = collect(&self.open(), &options, &context);
        assert!((said.is_ok() && done.is_ok()) || !self.is_sound(), "{said:?} {done:?}");
        let (Ok(said), Ok(done)) = (said, done) else { return };
        let packs = |of: &Collected| {
            [of.freed, of.condemned, of.repacked, of.moved, of.waiting, of.unsaved, of.in_progress]
        };
        assert_eq!(packs(&said), packs(&done), "{said:?} {done:?}");
        assert_eq!((said.lost, said.waiting_since_ms), (done.lost, done.waiting_since_ms));
    }

    /// With all disks at hand everything is whole in the end, and what is damaged goes.
    fn end(&mut self) {
        locked(&self.faults).bad.clear();
        self.under_way.clear();
        self.memory.take_all_for_gone(true);
        let [_, intact] = self.both();
        let healthy = self.healthy();
        repair(&healthy, &forced(&[]), &self.context()).expect("nothing stands in its way");
        for (id, blocks) in self.readable(&healthy) {
            let had = &intact[&id];
            assert!(
                (0..blocks.len()).all(|at| blocks[at] || !had[at]),
                "{id}: {had:?} is there, {blocks:?} saved"
            );
        }
        self.mend(true);
        for _ in 0..3 {
            self.now_ms += 1;
            let options = GcOptions { grace_ms: 0, repack_percent: 50 };
            let collected = collect(&self.open(), &options, &self.context()).expect("nothing is lost");
            assert!(collected.lost.is_empty(), "{collected:?}");
        }
        let region = self.open();
        let catalog = region.catalog().expect("it opens");
        let left: Vec<_> = catalog.packs.values().filter(|pack| pack.state != PackState::Live).collect();
        assert!(left.is_empty(), "stays for ever: {left:?}");
        let orphans = region.find_orphans().expect("it is in memory");
        assert!(orphans.objects.is_empty(), "{orphans:?}");
        let checked = repair(&region, &RepairSources::default(), &self.context()).expect("it can be checked");
        assert!(checked.findings.is_empty() && checked.lost.is_empty(), "{:?}", checked.findings);
        assert!(all_whole(&self.readable(&region)));
    }
}

fn forced<'a>(disks: &'a [Box<dyn DiskRead>]) -> RepairSources<'a> {
    RepairSources { disks, force: true, ..RepairSources::default() }
}

fn all_whole(readable: &Readable) -> bool {
    readable.values().flatten().all(|is_whole| *is_whole)
}

fn whole(memory: &Memory, name: &str) -> Vec<u8> {
    let object = memory.open(name).expect("it is listed");
    let mut bytes = vec![0; usize::try_from(object.len()).expect("it is in memory")];
    object.read_at(0, &mut bytes).expect("it is in memory");
    bytes
}

/// All that is intact in packs that are on record, found frame by frame.
fn scanned(memory: &Memory, region: &Region) -> HashMap<ChunkId, Vec<u8>> {
    let (mut found, mut deltas) = (HashMap::new(), Vec::new());
    let catalog = region.catalog().expect("the log is sound");
    let packs = catalog.packs.iter().filter(|(_, pack)| pack.state != PackState::Sweeping);
    for (name, _) in packs {
        if memory.open(&name.to_string()).is_err() {
            continue;
        }
        let bytes = whole(memory, &name.to_string());
        for frame in Scan::new(bytes.get(HEADER_BYTES..).unwrap_or_default()) {
            match frame.base() {
                Some(base) => deltas.push((base, frame)),
                None => found.extend(region.codecs().identify(&frame, None)),
            }
        }
    }
    loop {
        let before = deltas.len();
        deltas.retain(|(base, frame)| {
            let content = found.get(base).cloned();
            let is_known = content.is_some();
            found.extend(content.and_then(|base: Vec<u8>| region.codecs().identify(frame, Some(&base)).ok()));
            !is_known
        });
        if deltas.len() == before {
            return found;
        }
    }
}

/// Which blocks of a snapshot read as they were taken. Wrong bytes are never given.
fn readable(region: &Region, id: SnapshotId, bytes: &[u8]) -> Vec<bool> {
    let catalog = region.catalog().expect("the log is sound");
    let mut blocks = vec![false; bytes.len() / BLOCK];
    let Ok(map) = region.load_map(&catalog.snapshots[&id].manifest) else { return blocks };
    assert_eq!(map.volume_bytes(), bytes.len() as u64);
    for chunk in map.chunks() {
        let start = usize::try_from(block_offset(chunk.start_block)).expect("small");
        let mut raw = vec![0; usize::from(chunk.blocks) * BLOCK];
        let read = region.fetch(&[chunk.id]).and_then(|fetched| {
            fetched.frames().into_iter().try_for_each(|frame| fetched.decode(region, frame, &mut raw))
        });
        if read.is_ok() {
            assert!(raw == bytes[start..][..raw.len()], "{id} has other bytes at {start}");
            blocks[start / BLOCK..][..usize::from(chunk.blocks)].fill(true);
        }
    }
    blocks
}

/// The sequence that the input says: two bytes for each operation.
pub fn wear(data: &[u8]) {
    let mut world = World::new();
    for pair in data.chunks_exact(2).take(OPERATIONS_MAX) {
        world.step(pair[0], pair[1]);
    }
    world.end();
}
