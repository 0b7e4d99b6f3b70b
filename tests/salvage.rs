//! Packs whose own index is lost: what is in them is found frame by frame, and they stay until it was moved.

mod common;

use common::{
    Caller, Meanwhile, MemoryDisk, Told, alike, memory_region, pass_on, session, small_packs, text,
};
use imgstore::chunk::frame::{CodecPool, chunk_id};
use imgstore::format::pack::{FRAME_HEADER_BYTES, Trailer};
use imgstore::io::map::Bytes;
use imgstore::io::memory::Memory;
use imgstore::io::storage::{Created, Listed, Object, Storage, StorageError};
use imgstore::model::ids::{ChunkId, SnapshotId};
use imgstore::model::objects::{PackName, PackState};
use imgstore::model::op::Op;
use imgstore::model::region::ChunkerParams;
use imgstore::ops::context::Context;
use imgstore::ops::copy::{CopyOptions, CopyWhat, apply, plan};
use imgstore::ops::delete::delete_snapshot;
use imgstore::ops::encode::Compression;
use imgstore::ops::gaps::Gaps;
use imgstore::ops::gc::{Collected, GcOptions, collect, preview};
use imgstore::ops::ingest::ingest;
use imgstore::ops::repack::{RepackOptions, repack};
use imgstore::ops::repair::{RepairSources, Repaired, repair};
use imgstore::ops::snapshot::{SnapshotOptions, snapshot};
use imgstore::ops::verify::{VerifyOptions, verify};
use imgstore::pack::trailer::read_trailer;
use imgstore::region::error::RegionError;
use imgstore::region::session::Session;
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
    flaky: Flaky,
    rotting: Rotting,
    at_work: AtWork,
}

/// A frame that rots once it was read so often: the object, where in it, and how many reads are left.
type Rotting = Arc<Mutex<Option<(String, u64, usize)>>>;

/// Writers that are not taken for gone.
type AtWork = Arc<Mutex<Vec<String>>>;

/// An object of whose frames, which are there, the device gives the fourth of so many that it is asked for, and how often it was.
type Flaky = Arc<Mutex<Option<(String, Range<u64>, usize, usize)>>>;

impl Storage for Worn {
    fn open(&self, name: &str) -> Result<Arc<dyn Object>, StorageError> {
        let inner = self.inner.open(name)?;
        let (bad, flaky, rotting) = (self.bad.clone(), self.flaky.clone(), self.rotting.clone());
        Ok(Arc::new(WornObject { inner, name: name.to_owned(), bad, flaky, rotting }))
    }

    fn is_writer_gone(&self, writer: &str) -> Result<bool, StorageError> {
        let is_at_work = self.at_work.lock().unwrap().iter().any(|at_work| at_work == writer);
        Ok(!is_at_work && self.inner.is_writer_gone(writer)?)
    }

    pass_on!(create list restore delete persist admit_writer admit_collector);
}

struct WornObject {
    inner: Arc<dyn Object>,
    name: String,
    bad: Bad,
    flaky: Flaky,
    rotting: Rotting,
}

impl WornObject {
    fn fails(&self, offset: u64) -> bool {
        match &mut *self.flaky.lock().unwrap() {
            Some((name, frames, of, asked)) if *name == self.name && frames.contains(&offset) => {
                *asked += 1;
                *asked % *of != 4 % *of
            }
            _ => false,
        }
    }
}

impl Object for WornObject {
    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), StorageError> {
        let end = offset + buffer.len() as u64;
        let is_bad =
            |(name, bad): &(String, Range<u64>)| *name == self.name && offset < bad.end && bad.start < end;
        if self.bad.lock().unwrap().iter().any(is_bad) || self.fails(offset) {
            let source = std::io::Error::from_raw_os_error(5);
            return Err(StorageError::Io { action: "read", name: self.name.clone(), source });
        }
        self.inner.read_at(offset, buffer)?;
        match &mut *self.rotting.lock().unwrap() {
            Some((name, at, left))
                if *name == self.name && (offset..offset + buffer.len() as u64).contains(at) =>
            {
                buffer[(*at - offset) as usize] ^= u8::from(*left == 0);
                *left = left.saturating_sub(1);
            }
            _ => {}
        }
        Ok(())
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
    flaky: Flaky,
    rotting: Rotting,
    at_work: AtWork,
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
        let mut place = Self {
            memory,
            bad: Bad::default(),
            flaky: Flaky::default(),
            rotting: Rotting::default(),
            at_work: AtWork::default(),
            caller: Caller::new(1),
            taken: Vec::new(),
        };
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
        let storage = Worn {
            inner: self.memory.clone(),
            bad: self.bad.clone(),
            flaky: self.flaky.clone(),
            rotting: self.rotting.clone(),
            at_work: self.at_work.clone(),
        };
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

    fn trailer(&self, pack: &PackName) -> Trailer {
        let region = self.open();
        let record = region.catalog().unwrap().packs[pack].record.clone();
        read_trailer(&self.memory, region.header().id, &record).unwrap()
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

/// Nor are there zeros for it, if the device did not give that sector once only.
#[test]
fn what_a_pack_in_quarantine_has_is_asked_for_again_before_it_counts_as_lost() {
    let [disk, _] = alike(1_500_000);
    let place = Place::new(&[disk]);
    let [pack] = place.packs()[..] else { panic!("more than one pack") };
    place.quarantine(pack);
    place.wear(&pack, place.len(&pack) - 100..place.len(&pack));
    let (region, (id, bytes)) = (place.open(), &place.taken[0]);
    assert!(place.caller.read_back(&region, *id).is_err());
    place.bad.lock().unwrap().clear();
    let gaps = Gaps::default();
    let read = place.caller.read_with(&region, *id, Some(&gaps)).unwrap();
    assert!(read == *bytes && gaps.is_empty());
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
            place.damage(pack, &[place.len(pack) as usize - 60]);
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
    let (mut place, base, deltas) = with_deltas();
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

/// Little is needed of a pack that stays all the same, since one that cannot be read is stored against it: it is not rewritten
/// at each collection, and a dry run does not say that it goes.
#[test]
fn what_stays_for_a_pack_that_cannot_be_read_is_not_rewritten() {
    let (mut place, base, deltas) = with_deltas();
    let (_, first) = place.taken[0].clone();
    place.take(&first[..200_000]);
    place.delete_first();
    place.delete_first();
    let worn = place.packs();
    place.wear(&deltas, place.len(&deltas) - 100..place.len(&deltas));
    place.wear(&deltas, 70_000..70_001);
    let damaged = [deltas].into_iter().collect();
    place.open().quarantine(&damaged, place.caller.account, place.caller.now_ms).unwrap();
    for _ in 0..3 {
        let previewed = preview(&place.open(), &NOW, &place.caller.context()).unwrap();
        let collected = place.collect();
        for collected in [previewed, collected] {
            let counts = (collected.unsaved.count, collected.repacked.count, collected.freed.count);
            assert_eq!(counts, (1, 0, 0), "{collected:?}");
        }
        assert_eq!(place.packs(), worn);
    }
    // Nor by compressing anew.
    for dry_run in [true, false] {
        let context = Context { dry_run, ..place.caller.context() };
        let repacked = repack(&place.open(), &RepackOptions::default(), &context).unwrap();
        assert_eq!((repacked.left.count, repacked.left.bytes), (1, place.len(&base)), "{repacked:?}");
    }
    assert_eq!(place.open().catalog().unwrap().packs[&base].state, PackState::Live);
    place.bad.lock().unwrap().clear();
    let collected = place.collect();
    assert_eq!((collected.unsaved.count, collected.repacked.count), (0, 1), "{collected:?}");
    place.assert_whole();
}

/// Two snapshots, and the packs of both: the second has deltas on the first.
fn with_deltas() -> (Place, PackName, PackName) {
    let place = Place::new(&alike(1_500_000));
    let catalog = place.open().catalog().unwrap();
    let bases: Vec<PackName> = catalog.packs.values().flat_map(|pack| pack.record.bases.clone()).collect();
    let [base] = bases[..] else { panic!("{bases:?}") };
    let deltas = place.packs().into_iter().find(|pack| *pack != base).unwrap();
    (place, base, deltas)
}

impl Place {
    /// Flips bits of a pack at some offsets.
    fn damage(&self, pack: &PackName, at: &[usize]) {
        let mut bytes = vec![0; self.len(pack) as usize];
        self.memory.open(&pack.to_string()).unwrap().read_at(0, &mut bytes).unwrap();
        at.iter().for_each(|at| bytes[*at] ^= 1);
        self.memory.restore(&pack.to_string(), &bytes).unwrap();
    }

    /// Each of its frames is damaged.
    fn lose_frames(&self, pack: PackName) {
        let at: Vec<usize> =
            self.trailer(&pack).entries.iter().map(|entry| entry.offset as usize + 20).collect();
        self.damage(&pack, &at);
        self.quarantine(pack);
    }

    fn quarantine(&self, pack: PackName) {
        let damaged = [pack].into_iter().collect();
        self.open().quarantine(&damaged, self.caller.account, self.caller.now_ms).unwrap();
    }

    /// Its own index is damaged.
    fn lose_trailer(&self, pack: PackName) {
        self.damage(&pack, &[self.len(&pack) as usize - 60]);
        self.quarantine(pack);
    }

    /// The second disk is stored again, each chunk by itself, and what is a delta in a pack cannot be read there.
    fn store_again_in_vain(&self, deltas: &Trailer) {
        let before = self.packs();
        let how =
            SnapshotOptions { compression: Compression { level: None, delta: false }, ..Default::default() };
        let (_, bytes) = self.taken.last().unwrap().clone();
        snapshot(&self.open(), &MemoryDisk::new(bytes), &how, &self.caller.context()).unwrap();
        let copies: Vec<PackName> = self.packs().into_iter().filter(|pack| !before.contains(pack)).collect();
        let [copy] = copies[..] else { panic!("{copies:?}") };
        let is_here = |base: u64| deltas.entries.iter().any(|entry| entry.id.leading() == base);
        let ids: BTreeSet<ChunkId> =
            deltas.deltas().filter(|(_, base)| !is_here(*base)).map(|(entry, _)| entry.id).collect();
        assert!(ids.len() > 9);
        for entry in self.trailer(&copy).entries.iter().filter(|entry| ids.contains(&entry.id)) {
            self.wear(&copy, u64::from(entry.offset)..u64::from(entry.offset) + 1);
        }
    }
}

/// A bad sector of a base's pack that no delta needs, between bases that are read in one go.
#[test]
fn a_pack_is_not_called_damaged_for_a_sector_of_another() {
    let (place, base, deltas) = with_deltas();
    let needed: BTreeSet<u64> = place.trailer(&deltas).deltas().map(|(_, base)| base).collect();
    let mut entries = place.trailer(&base).entries;
    entries.sort_by_key(|entry| entry.offset);
    let is_base: Vec<bool> = entries.iter().map(|entry| needed.contains(&entry.id.leading())).collect();
    let between = (1..entries.len() - 1).find(|&at| is_base[at - 1] && !is_base[at] && is_base[at + 1]);
    let spare = u64::from(entries[between.expect("one that is no base")].offset);
    place.wear(&base, spare..spare + 1);
    let report = verify(&place.open(), &VerifyOptions::default(), &place.caller.context()).unwrap();
    let found = format!("{:?}", report.findings);
    assert!(found.contains(&base.to_string()) && !found.contains(&deltas.to_string()), "{found}");
}

/// That a base cannot be read for a while does not say that it is nowhere: what is stored against it may be the last copy. It
/// can be read when it is looked for in vain and then asked for itself, for good or that once.
#[test]
fn deltas_stay_while_their_bases_cannot_be_read() {
    for of in [4, 7] {
        let (place, base, deltas) = with_deltas();
        let trailer = place.trailer(&deltas);
        place.lose_trailer(deltas);
        place.store_again_in_vain(&trailer);
        let ends = place.trailer(&base).entries.iter().map(|entry| u64::from(entry.offset) + 1).max();
        *place.flaky.lock().unwrap() = Some((base.to_string(), 64..ends.unwrap(), of, 0));
        let collected = place.collect();
        assert_eq!((collected.unsaved.count, collected.freed.count), (1, 0), "{collected:?}");
        assert!(place.flaky.lock().unwrap().take().unwrap().3 > 4);
        place.bad.lock().unwrap().clear();
        assert_eq!(place.collect().freed.count, 1);
        place.assert_whole();
    }
}

/// Bases are damaged where the record of a pack says that they are. They were stored again elsewhere, where nothing needs them
/// but deltas of that pack, whose own index is lost by now; and what is a delta there is nowhere else, or cannot be read there.
#[test]
fn what_bases_are_in_stays_though_nothing_names_it() {
    for is_nowhere_else in [false, true] {
        let (mut place, base, deltas) = with_deltas();
        let trailer = place.trailer(&deltas);
        let (first, bytes) = place.taken[0].clone();
        place.lose_frames(base);
        place.delete_first();
        let before = place.packs();
        place.take(&bytes);
        let copies: Vec<PackName> = place.packs().into_iter().filter(|pack| !before.contains(pack)).collect();
        let (again, _) = place.taken.pop().unwrap();
        assert_ne!(first, again);
        delete_snapshot(&place.open(), again, &place.caller.context()).unwrap();
        place.lose_trailer(deltas);
        if !is_nowhere_else {
            place.store_again_in_vain(&trailer);
        }
        for _ in 0..2 {
            let collected = place.collect();
            assert_eq!(collected.lost.is_empty(), !is_nowhere_else, "{collected:?}");
            assert!(copies.iter().all(|copy| place.packs().contains(copy)), "{collected:?}");
        }
        let repaired = place.repair();
        assert!(repaired.lost.is_empty() && repaired.moved > 9, "{repaired:?}");
        place.assert_whole();
    }
}

/// A bit of a base rots, and a repair puts the packs of both in quarantine, base and sound delta. The base comes back with
/// another snapshot of the old disk, and that is deleted: what can be read stays readable.
#[test]
fn bases_stay_that_only_packs_in_quarantine_need() {
    for (is_trailer_lost, is_in_segment) in [(false, false), (true, false), (false, true), (true, true)] {
        let (mut place, base, deltas) = with_deltas();
        let entries = place.trailer(&base).entries;
        let leading = place.trailer(&deltas).deltas().map(|(_, base)| base).collect::<Vec<_>>();
        let rotten = entries.iter().find(|entry| leading.contains(&entry.id.leading())).unwrap();
        let (_, bytes) = place.taken[0].clone();
        place.delete_first();
        place.damage(&base, &[rotten.offset as usize + 20]);
        let repaired = place.repair();
        assert!(repaired.lost.len() == 1 && repaired.quarantined.len() == 2, "{repaired:?}");
        let before = place.packs();
        place.take(&bytes);
        let copies: Vec<PackName> = place.packs().into_iter().filter(|pack| !before.contains(pack)).collect();
        let (again, _) = place.taken.pop().unwrap();
        let (id, whole) = place.taken[0].clone();
        if is_in_segment {
            place.fill_index();
        }
        assert!(place.caller.read_back(&place.open(), id).unwrap() == whole);
        delete_snapshot(&place.open(), again, &place.caller.context()).unwrap();
        if is_trailer_lost {
            place.lose_trailer(deltas);
        }
        for _ in 0..2 {
            place.collect();
            let stay = copies.iter().all(|copy| place.packs().contains(copy));
            assert!(stay, "{is_trailer_lost} {is_in_segment}");
        }
        assert!(is_trailer_lost || place.caller.read_back(&place.open(), id).unwrap() == whole);
        let repaired = place.repair();
        assert!(repaired.lost.is_empty() && repaired.moved > 0, "{repaired:?}");
        place.assert_whole();
    }
}

/// A command has stored deltas that nothing refers to yet, and a base is found to be rotten: what it is in by now stays, and the
/// command ends with a snapshot that is whole.
#[test]
fn bases_stay_for_a_command_that_is_not_done() {
    for (is_over, is_worn) in [(false, false), (true, false), (false, true)] {
        let [first, second] = alike(1_500_000);
        let mut place = Place::new(std::slice::from_ref(&first));
        let [base] = place.packs()[..] else { panic!("more than one pack") };
        let region = place.open();
        let mut session = region.begin(place.caller.account).unwrap();
        let disk = MemoryDisk::new(second.clone());
        ingest(&mut session, &disk, &Compression::default(), &place.caller.context()).unwrap();
        let stored = place.packs().into_iter().find(|pack| *pack != base).unwrap();
        assert_eq!(place.open().catalog().unwrap().packs[&stored].record.bases, [base]);
        if !is_over {
            place.at_work.lock().unwrap().push(stored.session.to_string());
        }
        if is_worn {
            // A segment lists it, and its own index cannot be read for a while.
            place.fill_index();
            place.wear(&stored, place.len(&stored) - 100..place.len(&stored));
        }
        place.lose_frames(base);
        place.delete_first();
        let before = place.packs();
        place.take(&first);
        let copies: Vec<PackName> = place.packs().into_iter().filter(|pack| !before.contains(pack)).collect();
        let (again, _) = place.taken.pop().unwrap();
        delete_snapshot(&place.open(), again, &place.caller.context()).unwrap();
        (0..2).for_each(|_| drop(place.collect()));
        assert_eq!(copies.iter().all(|copy| place.packs().contains(copy)), !is_over);
        place.bad.lock().unwrap().clear();
        drop(session);
        place.take(&second);
        place.at_work.lock().unwrap().clear();
        place.assert_whole();
    }
}

/// A pack whose own index is lost holds the bases of deltas in one whose index is not: one repair is enough.
#[test]
fn deltas_are_moved_once_their_bases_were_salvaged() {
    let (place, base, _) = with_deltas();
    place.damage(&base, &[place.len(&base) as usize - 60]);
    let repaired = place.repair();
    assert!(repaired.lost.is_empty() && repaired.moved > 9, "{repaired:?}");
    place.assert_whole();
}

/// A base rots after a delta on it was proved, and before it is itself: the delta is not to be counted on, and it is told.
#[test]
fn a_delta_is_lost_with_a_base_that_rots_during_the_check() {
    let (mut place, base, deltas) = loop {
        let place = Place::new(&alike(300_000));
        let packs = place.packs();
        let base =
            place.open().catalog().unwrap().packs.values().find_map(|p| p.record.bases.first().copied());
        let deltas = *packs.iter().find(|pack| Some(**pack) != base).unwrap();
        // Packs are checked in the order of their names.
        if deltas < base.unwrap() {
            break (place, base.unwrap(), deltas);
        }
    };
    let needed: Vec<u64> = place.trailer(&deltas).deltas().map(|(_, base)| base).collect();
    let entries = place.trailer(&base).entries;
    let rotten = entries.iter().find(|entry| needed.contains(&entry.id.leading())).unwrap();
    place.delete_first();
    *place.rotting.lock().unwrap() = Some((base.to_string(), u64::from(rotten.offset) + 20, 1));
    let repaired = place.repair();
    assert_eq!(repaired.quarantined.iter().collect::<BTreeSet<_>>(), [&base, &deltas].into());
    assert_eq!(repaired.lost.len(), 1, "{repaired:?}");
    // The disk is still there, and is not taken for stored.
    let (id, bytes) = place.taken.remove(0);
    place.take(&bytes);
    delete_snapshot(&place.open(), id, &place.caller.context()).unwrap();
    place.assert_whole();
}

impl Place {
    /// So many packs that there is a segment, which lists all of them.
    fn fill_index(&mut self) {
        (0..70).for_each(|seed| self.take(&text(4096, 100 + seed)));
        assert!(!self.open().catalog().unwrap().segments.is_empty());
    }

    fn collect_after(&self, grace_ms: u64) -> Collected {
        collect(&self.open(), &GcOptions { grace_ms, ..NOW }, &self.caller.context()).unwrap()
    }

    /// A command that sees what is stored now, and nothing that is stored later.
    fn begin(&self) -> Session {
        self.open().begin(self.caller.account).unwrap()
    }

    /// Gives the pack in which a command has stored chunks that nothing refers to, each against another one, if that is given.
    fn store(&self, session: &mut Session, chunks: &[(&[u8], Option<&[u8]>)]) -> PackName {
        let (codecs, before) = (CodecPool::new(), self.packs());
        for (raw, base) in chunks {
            let id = chunk_id(raw);
            assert_eq!(session.reserve(&[id]).unwrap(), [true]);
            let frame = match base {
                Some(base) => codecs.encode_delta(raw, id, (chunk_id(base), base), 3, 4096).unwrap().unwrap(),
                None => codecs.encode(raw, id, 3).unwrap(),
            };
            session.put(id, &frame).unwrap();
        }
        session.flush().unwrap();
        let packs: Vec<PackName> = self.packs().into_iter().filter(|pack| !before.contains(pack)).collect();
        let [pack] = packs[..] else { panic!("{packs:?}") };
        pack
    }

    fn bases(&self, pack: &PackName) -> Vec<PackName> {
        self.open().catalog().unwrap().packs[pack].record.bases.clone()
    }
}

/// Blocks that resemble each other, each a disk of one chunk.
fn blocks<const N: usize>() -> [Vec<u8>; N] {
    let block = text(4096, 1);
    std::array::from_fn(|number| {
        let mut block = block.clone();
        block[100 * number..100 * number + 7].copy_from_slice(b"changed");
        block
    })
}

/// As long as a base is in a pack whose own index is lost, and nowhere else that is known, that pack is where it is on record,
/// though other bases are elsewhere.
#[test]
fn a_pack_is_not_put_on_others_while_a_base_is_nowhere() {
    let [first, second, third, fourth] = blocks();
    let mut place = Place::new(std::slice::from_ref(&first));
    let [base] = place.packs()[..] else { panic!("more than one pack") };
    let chunks = [(&second[..], Some(&first[..])), (&third, None), (&fourth, Some(&third))];
    let deltas = place.store(&mut place.begin(), &chunks);
    [&second, &fourth].into_iter().for_each(|disk| place.take(disk));
    assert_eq!(place.bases(&deltas), [base]);
    place.lose_trailer(base);
    assert!(!place.collect().lost.is_empty());
    assert_eq!(place.bases(&deltas), [base]);
    // Nothing refers to either any more, and only the damaged one has waited long enough.
    (0..3).for_each(|_| place.delete_first());
    place.caller.now_ms += 10_000;
    place.collect_after(10_000);
    assert!(matches!(place.open().catalog().unwrap().packs[&deltas].state, PackState::Condemned { .. }));
    place.take(&second);
    let repaired = place.repair();
    assert!(repaired.lost.is_empty(), "{repaired:?}");
    place.assert_whole();
}

/// A base is in another pack as a delta only, which is condemned: it is no base there, but a repair makes one of it.
#[test]
fn a_base_that_is_left_as_a_delta_stays() {
    for is_trailer_lost in [false, true] {
        let [first, second, third] = blocks();
        let mut place = Place::new(std::slice::from_ref(&first));
        let (mut plain, mut as_delta) = (place.begin(), place.begin());
        let base = place.store(&mut plain, &[(&second, None)]);
        let again = place.store(&mut as_delta, &[(&second, Some(&first))]);
        let on_it = place.store(&mut place.begin(), &[(&third, Some(&second))]);
        assert_eq!(place.bases(&on_it), [base]);
        place.take(&third);
        drop((plain, as_delta));
        place.collect_after(10_000);
        let state = |pack: &PackName| place.open().catalog().unwrap().packs[pack].state;
        assert!(matches!(state(&again), PackState::Condemned { .. }) && state(&base) == PackState::Live);
        place.lose_frames(base);
        if is_trailer_lost {
            place.lose_trailer(on_it);
        } else {
            place.quarantine(on_it);
        }
        place.caller.now_ms += 10_000;
        for _ in 0..2 {
            place.collect_after(10_000);
            assert!(place.packs().contains(&again));
        }
        let repaired = place.repair();
        assert!(repaired.lost.is_empty() && repaired.moved > 0, "{repaired:?}");
        place.assert_whole();
    }
}

/// A chunk is a delta in two packs, one of which is on a pack in quarantine and cannot be put elsewhere whole: the other stays,
/// whichever comes first by its name.
#[test]
fn a_delta_on_damage_is_not_kept_for_a_sound_one() {
    for _ in 0..8 {
        let [first, second, third, fourth] = blocks();
        let mut place = Place::new(&[]);
        let (mut old, mut new) = (place.begin(), place.begin());
        let damaged = place.store(&mut old, &[(&first, None), (&third, None)]);
        let on_damage = place.store(&mut old, &[(&second, Some(&first)), (&fourth, Some(&third))]);
        place.take(&second);
        place.take(&fourth);
        drop(old);
        place.quarantine(damaged);
        place.store(&mut new, &[(&first, None)]);
        let sound = place.store(&mut new, &[(&second, Some(&first))]);
        drop(new);
        (0..2).for_each(|_| drop(place.collect()));
        assert!(place.packs().contains(&sound) && place.packs().contains(&on_damage));
    }
}

/// What nothing needs of a condemned pack that is on damage is not had from elsewhere.
#[test]
fn nothing_is_stored_for_what_goes_anyway() {
    let [first, second, third, fourth] = blocks();
    let mut place = Place::new(std::slice::from_ref(&first));
    let [base] = place.packs()[..] else { panic!("more than one pack") };
    let mut writer = place.begin();
    let other = place.store(&mut writer, &[(&third, None)]);
    let on_it = place.store(&mut writer, &[(&second, Some(&first)), (&fourth, Some(&third))]);
    drop(writer);
    let condemned = Op::CondemnPacks { packs: vec![other, on_it], at_ms: place.caller.now_ms };
    let commit =
        || place.open().commit::<_, RegionError>(place.caller.account, |_| Ok((vec![condemned.clone()], ())));
    commit().unwrap();
    place.delete_first();
    place.quarantine(base);
    let repaired = place.repair();
    assert!(repaired.lost.is_empty() && repaired.stored_bytes == 0, "{repaired:?}");
}

/// A chunk is damaged as a plain frame, and good as a delta in a condemned pack on the same damage: what the base of that is in, too,
/// stays.
#[test]
fn bases_stay_of_a_delta_that_is_the_better_copy() {
    let [first, second] = blocks();
    let mut place = Place::new(&[]);
    let bases = [place.begin(), place.begin()].map(|mut writer| place.store(&mut writer, &[(&first, None)]));
    let mut writers = [place.begin(), place.begin()];
    let plain = place.store(&mut writers[0], &[(&second, None)]);
    let delta = place.store(&mut writers[1], &[(&second, Some(&first))]);
    drop(writers);
    let [base] = place.bases(&delta)[..] else { panic!("several bases") };
    let other = *bases.iter().find(|pack| **pack != base).unwrap();
    place.take(&second);
    let condemn = |pack: PackName, at_ms: u64| {
        let op = Op::CondemnPacks { packs: vec![pack], at_ms };
        place.open().commit::<_, RegionError>(place.caller.account, |_| Ok((vec![op.clone()], ()))).unwrap();
    };
    condemn(other, place.caller.now_ms);
    condemn(delta, place.caller.now_ms + 10_000);
    place.lose_frames(base);
    place.lose_frames(plain);
    place.caller.now_ms += 10_000;
    for _ in 0..2 {
        place.collect_after(10_000);
        assert!(place.packs().contains(&other) && place.packs().contains(&delta));
    }
    let repaired = place.repair();
    assert!(repaired.lost.is_empty() && repaired.moved > 0, "{repaired:?}");
    place.assert_whole();
}

/// Bases and deltas of two packs of dead writers lie in each other: neither keeps the other, and a live writer keeps both.
#[test]
fn packs_that_nothing_refers_to_do_not_keep_each_other() {
    for is_at_work in [false, true] {
        let [first, second, third] = blocks();
        let mut place = Place::new(std::slice::from_ref(&first));
        let [base] = place.packs()[..] else { panic!("more than one pack") };
        let one = place.store(&mut place.begin(), &[(&second, Some(&first)), (&third, None)]);
        place.lose_frames(base);
        let two = place.store(&mut place.begin(), &[(&first, Some(&third))]);
        assert_eq!((place.bases(&one), place.bases(&two)), (vec![base], vec![one]));
        place.delete_first();
        if is_at_work {
            place.at_work.lock().unwrap().push(two.session.to_string());
        }
        (0..2).for_each(|_| drop(place.collect()));
        assert_eq!(place.packs().len(), if is_at_work { 3 } else { 0 });
        place.at_work.lock().unwrap().clear();
        (0..2).for_each(|_| drop(place.collect()));
        assert!(place.packs().is_empty());
    }
}

/// As in [`a_base_that_is_left_as_a_delta_stays`], and what that delta is on is damaged and was stored again elsewhere.
#[test]
fn the_base_of_a_base_that_is_left_as_a_delta_stays() {
    for case in 0..8 {
        let [is_trailer_lost, is_condemned, is_in_segment] = [1, 2, 4].map(|bit| case & bit != 0);
        let [first, second, third] = blocks();
        let mut place = Place::new(std::slice::from_ref(&first));
        let [below] = place.packs()[..] else { panic!("more than one pack") };
        let (mut plain, mut as_delta) = (place.begin(), place.begin());
        let base = place.store(&mut plain, &[(&second, None)]);
        let again = place.store(&mut as_delta, &[(&second, Some(&first))]);
        let on_it = place.store(&mut place.begin(), &[(&third, Some(&second))]);
        place.take(&third);
        drop((plain, as_delta));
        if is_condemned {
            place.collect_after(10_000);
        }
        if is_in_segment {
            // Nor does the delta's pack say what it holds.
            place.fill_index();
            place.lose_trailer(again);
        }
        [below, base].into_iter().for_each(|pack| place.lose_frames(pack));
        if is_trailer_lost {
            place.lose_trailer(on_it);
        } else {
            place.quarantine(on_it);
        }
        place.delete_first();
        let before = place.packs();
        place.take(&first);
        let copy = place.packs().into_iter().find(|pack| !before.contains(pack)).unwrap();
        let (id, _) = place.taken.pop().unwrap();
        delete_snapshot(&place.open(), id, &place.caller.context()).unwrap();
        for _ in 0..3 {
            place.caller.now_ms += 10_000;
            place.collect_after(10_000);
            assert!([again, copy].iter().all(|pack| place.packs().contains(pack)), "{case}");
        }
        let repaired = place.repair();
        assert!(repaired.lost.is_empty() && repaired.moved > 0, "{repaired:?}");
        place.assert_whole();
    }
}

/// The packs of deltas and of their bases both have a bad sector and no index that can be read: nobody knows what may go, as long as
/// both are there.
#[test]
fn two_packs_that_cannot_be_read_end_a_collection_until_one_is_taken_away() {
    let (place, base, deltas) = with_deltas();
    for pack in [base, deltas] {
        place.wear(&pack, place.len(&pack) - 100..place.len(&pack));
        place.wear(&pack, 70_000..70_001);
        place.quarantine(pack);
    }
    let (_, bytes) = place.taken[1].clone();
    let mut place = place;
    place.take(&bytes);
    place.delete_first();
    place.delete_first();
    let refused = collect(&place.open(), &NOW, &place.caller.context()).unwrap_err().to_string();
    assert!(refused.contains(&base.to_string()) && refused.contains("take its file away"), "{refused}");
    place.memory.delete(&deltas.to_string()).unwrap();
    place.collect();
    place.bad.lock().unwrap().clear();
    place.assert_whole();
}

/// A sector of a delta cannot be read: that alone is lost, and not what other deltas are on that only a search finds.
#[test]
fn one_bad_sector_does_not_hide_the_bases_of_other_deltas() {
    let (mut place, base, deltas) = with_deltas();
    let trailer = place.trailer(&deltas);
    place.delete_first();
    place.damage(&base, &[place.len(&base) as usize - 60]);
    let (entry, _) = trailer.deltas().next().unwrap();
    place.wear(&deltas, u64::from(entry.offset)..u64::from(entry.offset) + 1);
    let repaired = place.repair();
    assert!(repaired.lost.len() == 1 && repaired.lost[0].ranges.len() == 1, "{repaired:?}");
    place.bad.lock().unwrap().clear();
    assert!(place.repair().lost.is_empty());
    place.assert_whole();
}

/// A pack stays since another one, one of whose bases is damaged, cannot be put elsewhere: it is not rewritten at each collection.
#[test]
fn what_stays_for_a_pack_that_cannot_be_put_on_others_is_not_rewritten() {
    let [first, second, third, fourth, fifth, sixth] = blocks();
    let mut place = Place::new(std::slice::from_ref(&first));
    let [base] = place.packs()[..] else { panic!("more than one pack") };
    let worn = place.store(&mut place.begin(), &[(&second, None), (&fifth, None), (&sixth, None)]);
    let deltas = place.store(&mut place.begin(), &[(&third, Some(&first)), (&fourth, Some(&second))]);
    [&third, &fourth].into_iter().for_each(|disk| place.take(disk));
    place.quarantine(base);
    let before = place.packs();
    assert_eq!(before.len(), 3);
    for _ in 0..2 {
        let collected = place.collect();
        assert_eq!((collected.repacked.count, place.packs()), (0, before.clone()), "{collected:?}");
    }
    assert!(place.repair().lost.is_empty());
    place.assert_whole();
    assert!(!place.packs().contains(&worn) || !place.packs().contains(&deltas));
}

/// A delta's frame names another base than the trailer of its pack, which is there, and that is not: a repair ends.
#[test]
fn a_frame_that_names_another_base_does_not_have_it_stored_for_ever() {
    let [first, second, third] = blocks();
    let mut place = Place::new(std::slice::from_ref(&first));
    let [base] = place.packs()[..] else { panic!("more than one pack") };
    place.store(&mut place.begin(), &[(&third, None)]);
    place.take(&third);
    let deltas = place.store(&mut place.begin(), &[(&second, Some(&first))]);
    place.take(&second);
    let at = place.trailer(&deltas).entries[0].offset as usize + FRAME_HEADER_BYTES;
    let mut bytes = vec![0; place.len(&deltas) as usize];
    place.memory.open(&deltas.to_string()).unwrap().read_at(0, &mut bytes).unwrap();
    bytes[at..at + 32].copy_from_slice(&chunk_id(&third).0);
    place.memory.restore(&deltas.to_string(), &bytes).unwrap();
    place.lose_frames(base);
    let repaired = place.repair();
    assert!(repaired.lost.len() == 2 && repaired.stored_bytes == 0, "{repaired:?}");
}

/// All frames of two packs without an index can be read, but not a base of theirs in a third one: nothing may go yet, and a
/// collection says so.
#[test]
fn a_base_that_cannot_be_read_does_not_end_a_collection() {
    let [first, second, third, fourth, fifth] = blocks();
    let place = Place::new(std::slice::from_ref(&first));
    let [below] = place.packs()[..] else { panic!("more than one pack") };
    let mut writer = place.begin();
    let between = place.store(&mut writer, &[(&third, None), (&second, Some(&first))]);
    let above = place.store(&mut writer, &[(&fourth, Some(&third)), (&fifth, Some(&first))]);
    let at = u64::from(place.trailer(&below).entries[0].offset);
    drop(writer);
    place.quarantine(below);
    place.wear(&below, at..at + 1);
    [between, above].into_iter().for_each(|pack| place.lose_trailer(pack));
    let mut place = place;
    place.delete_first();
    assert_eq!(place.collect().unsaved.count, 3);
    place.bad.lock().unwrap().clear();
    // It knows then what all of it is, and nobody needs that.
    assert!(place.repair().lost.is_empty());
    (0..2).for_each(|_| drop(place.collect()));
    assert!(place.packs().is_empty());
}

/// What a pack that goes later is on goes with it: a dry run says so, too.
#[test]
fn a_dry_run_counts_what_stays_for_what_goes_later() {
    let [first, second] = blocks();
    let mut place = Place::new(std::slice::from_ref(&first));
    let [base] = place.packs()[..] else { panic!("more than one pack") };
    place.store(&mut place.begin(), &[(&second, Some(&first))]);
    place.quarantine(base);
    place.delete_first();
    place.caller.now_ms += 10_000;
    let options = GcOptions { grace_ms: 10_000, ..NOW };
    let previewed = preview(&place.open(), &options, &place.caller.context()).unwrap();
    let collected = place.collect_after(10_000);
    for done in [previewed, collected] {
        let counts = (done.condemned.count, done.freed.count, done.waiting.count);
        assert_eq!(counts, (1, 0, 2), "{done:?}");
    }
    place.caller.now_ms += 10_000;
    assert_eq!(preview(&place.open(), &options, &place.caller.context()).unwrap().freed.count, 2);
    assert_eq!(place.collect_after(10_000).freed.count, 2);
}

/// A live pack stays for what a pack in quarantine has on it, and is on damage itself: whoever comes next counts on all that it
/// holds, so what its deltas are on stays, too, also where only a search finds it.
#[test]
fn what_stays_on_record_only_can_be_decoded() {
    for is_trailer_lost in [false, true] {
        let [first, second, third, fourth] = blocks();
        let mut place = Place::new(std::slice::from_ref(&first));
        let [damaged] = place.packs()[..] else { panic!("more than one pack") };
        place.store(&mut place.begin(), &[(&second, None), (&third, Some(&first))]);
        let above = place.store(&mut place.begin(), &[(&fourth, Some(&second))]);
        place.take(&fourth);
        place.lose_frames(damaged);
        let again = place.store(&mut place.begin(), &[(&first, None)]);
        place.delete_first();
        if is_trailer_lost {
            place.lose_trailer(again);
        }
        place.quarantine(above);
        (0..2).for_each(|_| drop(place.collect()));
        assert!(place.packs().contains(&again), "{is_trailer_lost}");
        place.take(&third);
        assert!(place.repair().lost.is_empty());
        place.assert_whole();
    }
}

/// A damaged pack goes once a collection has put what was on it elsewhere: a dry run says so, too.
#[test]
fn a_dry_run_counts_what_goes_once_others_are_put_elsewhere() {
    let [first, second] = blocks();
    let mut place = Place::new(std::slice::from_ref(&first));
    let [base] = place.packs()[..] else { panic!("more than one pack") };
    place.store(&mut place.begin(), &[(&second, Some(&first))]);
    place.take(&second);
    place.quarantine(base);
    assert!(place.repair().lost.is_empty());
    let previewed = preview(&place.open(), &NOW, &place.caller.context()).unwrap();
    for done in [previewed, place.collect()] {
        assert_eq!((done.freed.count, done.waiting.count), (1, 0), "{done:?}");
    }
}

/// What nothing needs but a pack in quarantine that stays is condemned, and does not go yet: a dry run says so, too.
#[test]
fn a_dry_run_counts_what_stays_for_what_is_in_quarantine() {
    let [first, second, third] = blocks();
    let mut place = Place::new(std::slice::from_ref(&first));
    let pack = place.store(&mut place.begin(), &[(&second, Some(&first)), (&third, None)]);
    place.take(&third);
    place.quarantine(pack);
    place.delete_first();
    let previewed = preview(&place.open(), &NOW, &place.caller.context()).unwrap();
    for done in [previewed, place.collect()] {
        assert_eq!((done.condemned.count, done.freed.count, done.waiting.count), (1, 0, 1), "{done:?}");
        assert_eq!(done.unsaved.count, 1, "the damaged one");
    }
}

/// A chunk and a base that are in two packs are read of either, whichever the device gives; what it gives of none is its failure.
#[test]
fn what_a_device_does_not_give_is_read_where_else_it_is() {
    let (mut place, base, _) = with_deltas();
    place.quarantine(base);
    let before = place.packs();
    let (_, bytes) = place.taken[0].clone();
    place.take(&bytes);
    let frames = |pack: &PackName| {
        let end =
            place.trailer(pack).entries.iter().map(|entry| entry.offset + entry.stored_len).max().unwrap();
        64..u64::from(end)
    };
    let new: Vec<PackName> = place.packs().into_iter().filter(|pack| !before.contains(pack)).collect();
    assert!(!new.is_empty());
    new.iter().for_each(|pack| place.wear(pack, frames(pack)));
    for (id, bytes) in &place.taken {
        assert!(place.caller.read_back(&place.open(), *id).unwrap() == *bytes, "{id}");
    }
    // Also where the other one is damaged: what the device does not give may be sound.
    place.lose_frames(base);
    for is_worn in [false, true] {
        for (id, _) in &place.taken {
            let error = place.caller.read_back(&place.open(), *id).unwrap_err();
            assert!(error.to_string().contains("Input/output error"), "{is_worn} {error}");
        }
        place.wear(&base, frames(&base));
    }
    place.bad.lock().unwrap().clear();
    for (id, bytes) in &place.taken {
        assert!(place.caller.read_back(&place.open(), *id).unwrap() == *bytes, "{id}");
    }
}

/// A device that was away while packs were checked, and is back: nothing was wrong with them.
#[test]
fn what_a_device_gives_again_is_not_put_in_quarantine() {
    let place = Place::new(&[text(60_000, 51)]);
    let packs = place.open().catalog().unwrap().packs;
    let (pack, known) = packs.iter().next().unwrap();
    place.bad.lock().unwrap().push((pack.to_string(), 0..known.record.len));
    // It comes back once the first pack was looked at.
    let back = Meanwhile(|told| {
        if told == Told::Advanced {
            place.bad.lock().unwrap().clear();
        }
    });
    let context = Context { progress: &back, ..place.caller.context() };
    let repaired = repair(&place.open(), &RepairSources::default(), &context).unwrap();
    assert_eq!((repaired.findings.is_empty(), repaired.quarantined.len()), (false, 0), "{repaired:?}");
    assert_eq!(place.open().catalog().unwrap().packs, packs);
    // One that is not back is.
    place.bad.lock().unwrap().push((pack.to_string(), 0..known.record.len));
    let repaired = repair(&place.open(), &RepairSources::default(), &place.caller.context()).unwrap();
    assert_eq!(repaired.quarantined, [*pack]);
}

/// A bad sector under a block map: a collection says whose it is and how to go on, and a repair makes it anew from another region.
#[test]
fn a_block_map_on_a_bad_sector_is_made_anew() {
    let place = Place::new(&[text(60_000, 52)]);
    let (id, bytes) = place.taken[0].clone();
    let other = memory_region(&Memory::new(), &small_packs());
    let (options, context) = (CopyOptions::default(), place.caller.context());
    let plan = plan(&place.open(), &other, CopyWhat::Snapshot(id), &options, &context).unwrap();
    apply(&place.open(), &other, &plan, &options, &context).unwrap();
    let name = place.open().catalog().unwrap().snapshots[&id].manifest.name.to_string();
    place.bad.lock().unwrap().push((name, 0..1 << 20));
    let collected = collect(&place.open(), &GcOptions { grace_ms: 0, repack_percent: 50 }, &context);
    let why = collected.unwrap_err().to_string();
    assert!(why.contains(&format!("imgstore delete-snapshot {id}")), "{why}");
    let without = repair(&place.open(), &RepairSources::default(), &context).unwrap();
    assert_eq!((without.manifests, without.lost.len()), (0, 1));
    let sources = RepairSources { regions: &[other], ..RepairSources::default() };
    let repaired = repair(&place.open(), &sources, &context).unwrap();
    assert_eq!((repaired.manifests, repaired.lost.len()), (1, 0), "{repaired:?}");
    assert!(place.caller.read_directly(&place.open(), id).unwrap() == bytes);
}
