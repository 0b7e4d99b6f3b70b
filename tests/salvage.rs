//! Packs whose own index is lost: what is in them is found frame by frame, and they stay until it was moved.

mod common;

use common::{Caller, MemoryDisk, alike, memory_region, pass_on, session, small_packs};
use imgstore::io::map::Bytes;
use imgstore::io::memory::Memory;
use imgstore::io::storage::{Created, Listed, Object, Storage, StorageError};
use imgstore::model::ids::SnapshotId;
use imgstore::model::objects::{PackName, PackState};
use imgstore::model::region::ChunkerParams;
use imgstore::ops::delete::delete_snapshot;
use imgstore::ops::gc::{Collected, GcOptions, collect};
use imgstore::ops::repair::{RepairSources, Repaired, repair};
use imgstore::region::{Region, RegionOptions};
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, Mutex};

const NOW: GcOptions = GcOptions { grace_ms: 0, repack_percent: 50 };

/// Bytes of objects that the device does not give.
type Bad = Arc<Mutex<Vec<(String, Range<u64>)>>>;

struct Worn {
    inner: Memory,
    bad: Bad,
}

impl Storage for Worn {
    fn open(&self, name: &str) -> Result<Arc<dyn Object>, StorageError> {
        let inner = self.inner.open(name)?;
        Ok(Arc::new(WornObject { inner, name: name.to_owned(), bad: self.bad.clone() }))
    }

    pass_on!(create list restore delete persist admit_writer admit_collector is_writer_gone);
}

struct WornObject {
    inner: Arc<dyn Object>,
    name: String,
    bad: Bad,
}

impl Object for WornObject {
    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), StorageError> {
        let end = offset + buffer.len() as u64;
        let is_bad =
            |(name, bad): &(String, Range<u64>)| *name == self.name && offset < bad.end && bad.start < end;
        if self.bad.lock().unwrap().iter().any(is_bad) {
            let source = std::io::Error::from_raw_os_error(5);
            return Err(StorageError::Io { action: "read", name: self.name.clone(), source });
        }
        self.inner.read_at(offset, buffer)
    }

    fn bytes(&self) -> Result<Bytes, StorageError> {
        self.read_at(0, &mut vec![0; self.len() as usize])?;
        self.inner.bytes()
    }
}

/// A region on such a device, with large packs, and a snapshot of each of these disks, each by a writer of its own.
struct Place {
    memory: Memory,
    bad: Bad,
    caller: Caller,
    taken: Vec<(SnapshotId, Vec<u8>)>,
}

impl Place {
    fn new(disks: &[Vec<u8>]) -> Self {
        let memory = Memory::new();
        memory.take_all_for_gone(true);
        // Chunks so small that a pack's own index has sectors of its own.
        let chunker = ChunkerParams { min_blocks: 1, avg_blocks: 2, max_blocks: 4, zero_tail_bytes: 0 };
        memory_region(&memory, &RegionOptions { pack_bytes: 8 << 20, chunker, ..small_packs() });
        let mut place = Self { memory, bad: Bad::default(), caller: Caller::new(1), taken: Vec::new() };
        disks.iter().for_each(|disk| place.take(disk));
        place
    }

    fn take(&mut self, disk: &[u8]) {
        let taken = self.caller.snapshot(&self.open(), &MemoryDisk::new(disk.to_vec())).unwrap();
        self.taken.push((taken.snapshot.id, disk.to_vec()));
    }

    fn delete_first(&mut self) {
        let (id, _) = self.taken.remove(0);
        delete_snapshot(&self.open(), id, &self.caller.context()).unwrap();
    }

    fn open(&self) -> Region {
        let storage = Worn { inner: self.memory.clone(), bad: self.bad.clone() };
        Region::open(Arc::new(storage), session()).unwrap()
    }

    /// How many chunks the last snapshot has, each once.
    fn chunks(&self) -> u64 {
        let region = self.open();
        let manifest = region.catalog().unwrap().snapshots[&self.taken.last().unwrap().0].manifest.clone();
        let map = region.load_map(&manifest).unwrap();
        map.chunks().iter().map(|chunk| chunk.id).collect::<BTreeSet<_>>().len() as u64
    }

    fn packs(&self) -> Vec<PackName> {
        self.open().catalog().unwrap().packs.keys().copied().collect()
    }

    fn len(&self, pack: &PackName) -> u64 {
        self.memory.open(&pack.to_string()).unwrap().len()
    }

    fn wear(&self, pack: &PackName, range: Range<u64>) {
        self.bad.lock().unwrap().push((pack.to_string(), range));
    }

    fn repair(&self) -> Repaired {
        repair(&self.open(), &RepairSources::default(), &self.caller.context()).unwrap()
    }

    fn collect(&self) -> Collected {
        collect(&self.open(), &NOW, &self.caller.context()).unwrap()
    }

    /// All reads as it was taken, also when what is in quarantine has gone.
    fn assert_whole(&self) {
        for _ in 0..2 {
            for (id, bytes) in &self.taken {
                assert!(self.caller.read_back(&self.open(), *id).unwrap() == *bytes, "{id}");
            }
            self.collect();
        }
        let catalog = self.open().catalog().unwrap();
        assert!(catalog.packs.values().all(|pack| pack.state == PackState::Live));
    }
}

/// The trailer's sector cannot be read: all else of the pack can, and is moved.
#[test]
fn a_pack_with_a_bad_sector_in_its_own_index_is_emptied_and_goes() {
    let [disk, _] = alike(1_500_000);
    let place = Place::new(&[disk]);
    let [pack] = place.packs()[..] else { panic!("more than one pack") };
    place.wear(&pack, place.len(&pack) - 100..place.len(&pack));
    let repaired = place.repair();
    assert!(repaired.lost.is_empty() && repaired.moved > 100, "{repaired:?}");
    place.assert_whole();
}

/// A bad sector among the frames, too: what is in it may be read later, so the pack stays, and it is said.
#[test]
fn a_pack_that_cannot_be_read_whole_stays_and_is_told_of() {
    let [disk, other] = alike(1_500_000);
    let mut place = Place::new(&[disk]);
    let [pack] = place.packs()[..] else { panic!("more than one pack") };
    let len = place.len(&pack);
    place.wear(&pack, len - 100..len);
    place.wear(&pack, len / 2..len / 2 + 1);
    let repaired = place.repair();
    assert!(repaired.lost.len() == 1 && repaired.moved > 100, "{repaired:?}");
    // Nothing refers to what is lost any more, but nobody knows that.
    place.take(&other);
    place.delete_first();
    let collected = place.collect();
    assert_eq!((collected.unsaved.count, collected.unsaved.bytes), (1, len), "{collected:?}");
    assert!(collected.lost.is_empty() && collected.waiting.count == 0, "{collected:?}");
    place.bad.lock().unwrap().clear();
    assert_eq!(place.collect().unsaved.count, 0);
    place.assert_whole();
}

/// Deltas in one pack, their bases in another, neither of which says what it holds; nothing refers to the bases themselves.
#[test]
fn deltas_are_salvaged_whose_bases_nobody_knows_of() {
    for is_stored_again in [false, true] {
        let mut place = Place::new(&alike(300_000));
        let packs = place.packs();
        assert_eq!(packs.len(), 2);
        place.delete_first();
        for pack in &packs {
            let mut bytes = vec![0; place.len(pack) as usize];
            place.memory.open(&pack.to_string()).unwrap().read_at(0, &mut bytes).unwrap();
            let at = bytes.len() - 60;
            bytes[at] ^= 1;
            place.memory.restore(&pack.to_string(), &bytes).unwrap();
        }
        if is_stored_again {
            let damaged = packs.iter().copied().collect();
            place.open().quarantine(&damaged, place.caller.account, place.caller.now_ms).unwrap();
            let (_, bytes) = place.taken[0].clone();
            place.take(&bytes);
            // What the deltas are nobody knows, who has not looked at both.
            let collected = place.collect();
            assert_eq!((collected.unsaved.count, collected.freed.count), (2, 0), "{collected:?}");
        }
        let repaired = place.repair();
        assert!(repaired.lost.is_empty() && repaired.moved > 1, "{repaired:?}");
        // Nothing was stored twice.
        let stored = place
            .open()
            .catalog()
            .unwrap()
            .packs
            .values()
            .filter(|pack| pack.state == PackState::Live)
            .map(|pack| u64::from(pack.record.frames))
            .sum::<u64>();
        let again = if is_stored_again { place.chunks() } else { 0 };
        assert_eq!(stored, repaired.moved + again);
        place.assert_whole();
    }
}

/// As before, and the pack of the bases has a bad sector: it may hold any base, so the deltas stay, too.
#[test]
fn deltas_stay_while_their_bases_may_be_in_what_cannot_be_read() {
    let disks = alike(1_500_000);
    let mut place = Place::new(&disks);
    let catalog = place.open().catalog().unwrap();
    let bases: Vec<PackName> = catalog.packs.values().flat_map(|pack| pack.record.bases.clone()).collect();
    let [base] = bases[..] else { panic!("{bases:?}") };
    let deltas = place.packs().into_iter().find(|pack| *pack != base).unwrap();
    place.delete_first();
    for pack in [base, deltas] {
        place.wear(&pack, place.len(&pack) - 100..place.len(&pack));
    }
    place.wear(&base, 70_000..70_001);
    let damaged = [base, deltas].into_iter().collect();
    place.open().quarantine(&damaged, place.caller.account, place.caller.now_ms).unwrap();
    let (_, bytes) = place.taken[0].clone();
    place.take(&bytes);
    let collected = place.collect();
    assert_eq!((collected.unsaved.count, collected.freed.count), (2, 0), "{collected:?}");
    place.bad.lock().unwrap().clear();
    assert_eq!(place.collect().freed.count, 2);
    place.assert_whole();
}
