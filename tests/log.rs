//! The log on a storage whose answers get lost, and a log, checkpoints and index that do not say the same.

mod common;

use common::{Caller, MemoryDisk, memory_region, session, small_packs, volume};
use imgstore::chunk::frame::chunk_id;
use imgstore::format::checkpoint::{self, Checkpoint};
use imgstore::format::record::{self, Body, StoredRecord};
use imgstore::format::segment::SegmentWriter;
use imgstore::io::map::Bytes;
use imgstore::io::memory::Memory;
use imgstore::io::storage::{Created, Listed, Object, Storage, StorageError, read_whole};
use imgstore::model::ids::{ObjectHash, SessionId};
use imgstore::model::objects::{PackName, SegmentName, SegmentRecord};
use imgstore::model::op::{Author, Op};
use imgstore::ops::error::OpsError;
use imgstore::ops::verify::{VerifyOptions, verify};
use imgstore::pack::trailer::read_trailer;
use imgstore::region::error::RegionError;
use imgstore::region::{Region, RegionOptions};
use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// How a creation of a log record goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Answer {
    /// As it should.
    Good,
    /// The record lands, and nobody hears of it.
    LostAfter,
    /// It does not land, and nobody knows.
    LostBefore,
    /// It lands, and a retry inside the storage finds it: "existed".
    Retried,
    /// Another writer's record lands in its place, and nobody knows.
    Beaten,
    /// It surely does not land.
    Refused,
}

/// An object store over a bad line.
#[derive(Clone)]
struct BadLine {
    inner: Memory,
    answers: Arc<Mutex<VecDeque<Answer>>>,
    /// Calls of `persist` fail.
    unpersisted: bool,
    /// Checkpoints say that they have this length, and cannot be read; whether it was tried.
    swollen: Option<Arc<Swollen>>,
}

type Swollen = (u64, AtomicBool);

/// An object that says how long it is, and no more.
struct SwollenObject(Arc<Swollen>);

impl Object for SwollenObject {
    fn len(&self) -> u64 {
        self.0.0
    }

    fn read_at(&self, _: u64, _: &mut [u8]) -> Result<(), StorageError> {
        self.0.1.store(true, Ordering::SeqCst);
        Err(lost("checkpoints"))
    }

    fn bytes(&self) -> Result<Bytes, StorageError> {
        Err(lost("checkpoints"))
    }
}

impl BadLine {
    fn new(answers: &[Answer]) -> Self {
        let inner = Memory::new();
        memory_region(&inner, &options());
        let answers = Arc::new(Mutex::new(answers.iter().copied().collect()));
        Self { inner, answers, unpersisted: false, swollen: None }
    }

    fn region(&self) -> Region {
        Region::open(Arc::new(self.clone()), session()).unwrap()
    }

    /// What the log holds, over a good line.
    fn sequence(&self) -> u64 {
        Region::open(Arc::new(self.inner.clone()), session()).unwrap().catalog().unwrap().sequence
    }
}

fn options() -> RegionOptions {
    RegionOptions { pack_bytes: 16 << 10, ..small_packs() }
}

fn lost(name: &str) -> StorageError {
    let source = std::io::Error::other("no answer");
    StorageError::UnknownOutcome { action: "create", name: name.to_owned(), source }
}

impl Storage for BadLine {
    fn create(&self, name: &str, parts: &[&[u8]]) -> Result<Created, StorageError> {
        if !name.starts_with("log/") {
            return self.inner.create(name, parts);
        }
        let answer = self.answers.lock().unwrap().pop_front().unwrap_or(Answer::Good);
        match answer {
            Answer::Good => self.inner.create(name, parts),
            Answer::LostBefore => Err(lost(name)),
            Answer::LostAfter => {
                self.inner.create(name, parts)?;
                Err(lost(name))
            }
            Answer::Retried => {
                assert_eq!(self.inner.create(name, parts)?, Created::New);
                Ok(Created::Existed)
            }
            Answer::Beaten => {
                let other = Region::open(Arc::new(self.inner.clone()), session()).unwrap();
                append(&other).unwrap();
                Err(lost(name))
            }
            Answer::Refused => Err(StorageError::NoSpace { name: name.into(), available: 0, needed: 1 }),
        }
    }

    fn restore(&self, name: &str, bytes: &[u8]) -> Result<(), StorageError> {
        self.inner.restore(name, bytes)
    }

    fn open(&self, name: &str) -> Result<Arc<dyn Object>, StorageError> {
        match &self.swollen {
            Some(swollen) if name.starts_with("checkpoints/") => Ok(Arc::new(SwollenObject(swollen.clone()))),
            _ => self.inner.open(name),
        }
    }

    fn list(&self, folder: &str) -> Result<Vec<Listed>, StorageError> {
        self.inner.list(folder)
    }

    fn delete(&self, name: &str) -> Result<(), StorageError> {
        self.inner.delete(name)
    }

    fn persist(&self, folder: &str) -> Result<(), StorageError> {
        if self.unpersisted { Err(lost(folder)) } else { self.inner.persist(folder) }
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

/// Appends a record that does nothing.
fn append(region: &Region) -> Result<(), RegionError> {
    let account = common::provider();
    region.commit(account, |_| Ok((vec![Op::NoOp], ())))
}

/// After every lost answer either it is known what became of the record, or it is said that it is not; and the next
/// command goes on behind whatever is there.
#[test]
fn a_lost_answer_is_decided_before_anything_follows() {
    use Answer::*;
    // The answers, whether the append succeeds, and how many records there are afterwards.
    let cases: [(&[Answer], bool, u64); 9] = [
        (&[Good], true, 1),
        (&[LostAfter], true, 1),
        (&[LostBefore], false, 1),
        (&[LostBefore, LostBefore], false, 0),
        (&[LostBefore, LostAfter], false, 1),
        (&[LostAfter, LostBefore], false, 1),
        (&[Retried], true, 1),
        (&[Beaten], false, 1),
        (&[Refused], false, 0),
    ];
    for (answers, succeeds, records) in cases {
        let line = BadLine::new(answers);
        let region = line.region();
        let done = append(&region);
        assert_eq!(done.is_ok(), succeeds, "{answers:?}: {done:?}");
        assert_eq!(line.sequence(), records, "{answers:?}");
        let unknown = done.as_ref().err().is_some_and(RegionError::is_unknown_outcome);
        assert_eq!(unknown, !succeeds && answers.len() == 2 && answers[1] != Good, "{answers:?}: {done:?}");
        // The line is good again: both the same handle and another one go on.
        append(&region).unwrap();
        append(&line.region()).unwrap();
        assert_eq!(line.sequence(), records + 2, "{answers:?}");
    }
}

#[test]
fn a_record_that_cannot_be_made_durable_is_undecided() {
    let line = BadLine { unpersisted: true, ..BadLine::new(&[Answer::Retried]) };
    let good = BadLine { unpersisted: false, ..line.clone() };
    // Opened and brought to the tail over the good line; the storage's retry then finds the record, and cannot persist.
    let region = line.region();
    let error = append(&region).unwrap_err();
    assert!(matches!(error, RegionError::Undecided { sequence: 1, .. }), "{error}");
    assert!(error.is_unknown_outcome() && error.to_string().contains("run the command again"));
    append(&good.region()).unwrap();
    assert_eq!(good.sequence(), 2);
}

#[test]
fn a_region_is_made_once() {
    let storage = Memory::new();
    memory_region(&storage, &options());
    let again = Region::create(Arc::new(storage), session(), &options()).err().unwrap();
    assert!(matches!(again, RegionError::Exists), "{again}");
}

/// A session's name that somebody else used: nothing is written over, nothing is believed.
#[test]
fn a_name_that_was_used_stops_the_writer() {
    let (storage, caller) = (Memory::new(), Caller::new(1));
    memory_region(&storage, &options());
    let twice = session();
    let one = Region::open(Arc::new(storage.clone()), twice).unwrap();
    caller.snapshot(&one, &MemoryDisk::new(volume(30_000, 1))).unwrap();
    let two = Region::open(Arc::new(storage.clone()), twice).unwrap();
    let refused = caller.snapshot(&two, &MemoryDisk::new(volume(30_000, 2))).unwrap_err();
    assert!(refused.to_string().contains("somebody else"), "{refused}");
    // The same for a block map: each of these finds its content there, and has only that to write.
    let bytes = volume(30_000, 1);
    let twice = session();
    for (len, expected) in [(20_480, true), (24_576, false)] {
        let region = Region::open(Arc::new(storage.clone()), twice).unwrap();
        caller
            .snapshot(
                &Region::open(Arc::new(storage.clone()), session()).unwrap(),
                &MemoryDisk::new(bytes[..len].to_vec()),
            )
            .unwrap();
        let renamed = MemoryDisk::new([&bytes[..len], &[0; 65_536][..]].concat());
        let done = caller.snapshot(&region, &renamed);
        assert_eq!(done.is_ok(), expected, "{len}: {done:?}");
    }
    // The same for a list of operations, which is written before its record.
    let long =
        || Op::FenceSessions { sessions: (0..20_000_u128).map(|n| SessionId(n.to_be_bytes())).collect() };
    let twice = session();
    for (number, expected) in [(0, true), (1, false)] {
        let region = Region::open(Arc::new(storage.clone()), twice).unwrap();
        let done = region.commit::<_, RegionError>(caller.account, |_| Ok((vec![long()], ())));
        assert_eq!(done.is_ok(), expected, "{number}: {done:?}");
    }
}

fn findings(storage: &Memory) -> Vec<String> {
    let region = Region::open(Arc::new(storage.clone()), session()).unwrap();
    let report = verify(&region, &VerifyOptions::default(), &Caller::new(1).context()).unwrap();
    report.findings.into_iter().map(|finding| finding.problem).collect()
}

/// A region with more than a checkpoint's records.
fn with_checkpoint() -> (Memory, Region, String) {
    let storage = Memory::new();
    let region = memory_region(&storage, &options());
    for _ in 0..70 {
        append(&region).unwrap();
    }
    let name = storage.list("checkpoints").unwrap().pop().unwrap().name;
    assert_eq!(findings(&storage), [""; 0]);
    (storage, region, name)
}

#[test]
fn a_checkpoint_that_says_something_else_is_found() {
    let (storage, region, name) = with_checkpoint();
    let bytes = read_whole(&storage, &name, 1 << 20).unwrap();
    let honest = checkpoint::decode(&bytes).unwrap();
    // Well made, with the state of another moment, or on another record.
    let mut catalog = honest.catalog.clone();
    catalog.fenced_sessions = Arc::new([SessionId([1; 16])].into());
    let of_state = Checkpoint { catalog, ..honest.clone() };
    let of_record = Checkpoint { record_hash: ObjectHash([2; 32]), ..honest };
    let of_both = Checkpoint { record_hash: ObjectHash([2; 32]), ..of_state.clone() };
    for (forged, is_used) in [(of_state, true), (of_record, false), (of_both, false)] {
        storage.restore(&name, &checkpoint::encode(&forged).unwrap()).unwrap();
        let [problem] = findings(&storage).try_into().unwrap();
        assert!(problem.contains("checkpoint says something else"), "{problem}");
        // A cache: only a check compares it with the log. It cannot be on another record.
        let opened = Region::open(Arc::new(storage.clone()), session()).unwrap();
        assert_eq!(opened.catalog().unwrap().fenced_sessions.len(), usize::from(is_used));
    }
    assert!(region.catalog().unwrap().fenced_sessions.is_empty());
}

/// Files that are named by a number which no log comes to are no records and no checkpoints of it.
#[test]
fn a_number_that_no_log_comes_to_counts_for_nothing() {
    let (storage, region, name) = with_checkpoint();
    let end = 1_u64 << 62;
    let record = StoredRecord {
        sequence: end,
        previous: ObjectHash([3; 32]),
        nonce: [4; 16],
        time_ms: 5,
        author: Author { account: common::provider(), session: session() },
        body: Body::Inline(vec![Op::NoOp]),
    };
    let (bytes, record_hash) = record::encode(&record).unwrap();
    // Where the tail's records are, and where it would be.
    for shard in [0, end / 1000] {
        storage.create(&format!("log/{shard:017}/{end:020}"), &[&bytes]).unwrap();
    }
    let honest = checkpoint::decode(&read_whole(&storage, &name, 1 << 20).unwrap()).unwrap();
    let mut catalog = honest.catalog;
    catalog.sequence = end;
    let forged = checkpoint::encode(&Checkpoint { record_hash, catalog }).unwrap();
    storage.create(&format!("checkpoints/{end:020}"), &[&forged]).unwrap();
    let opened = Region::open(Arc::new(storage.clone()), session()).unwrap();
    assert_eq!(opened.catalog().unwrap().sequence, 70);
    append(&opened).unwrap();
    assert_eq!(region.catalog().unwrap().sequence, 71);
}

/// A checkpoint that says it is longer than any is not even read.
#[test]
fn a_checkpoint_has_a_largest_length() {
    let (inner, _, _) = with_checkpoint();
    for (len, expected) in [((1 << 30) + 64, true), ((1 << 30) + 65, false)] {
        let swollen = Arc::new((len, AtomicBool::new(false)));
        let line = BadLine {
            inner: inner.clone(),
            answers: Arc::default(),
            unpersisted: false,
            swollen: Some(swollen.clone()),
        };
        assert_eq!(line.region().catalog().unwrap().sequence, 70, "it opens without them");
        assert_eq!(swollen.1.load(Ordering::SeqCst), expected, "{len}");
    }
}

#[test]
fn records_that_are_gone_are_found_by_whoever_has_the_region_open() {
    for gone in [70, 66, 64] {
        let (storage, region, _) = with_checkpoint();
        storage.delete(&format!("log/{:017}/{gone:020}", 0)).unwrap();
        let report = verify(&region, &VerifyOptions::default(), &Caller::new(1).context()).unwrap();
        let problems: Vec<_> = report.findings.iter().map(|finding| finding.problem.clone()).collect();
        match gone {
            // The last record of all leaves no trace on a storage that has no twins.
            70 => assert_eq!(problems, [""; 0]),
            _ => assert!(problems.iter().all(|p| p.contains(&format!("record {gone}"))), "{problems:?}"),
        }
        assert_eq!(problems.is_empty(), gone == 70, "{problems:?}");
        let opened = Region::open(Arc::new(storage), session());
        assert_eq!(opened.is_err(), gone != 70, "a gap is no end");
    }
    // The log ends before a checkpoint.
    let (storage, region, name) = with_checkpoint();
    for sequence in 60..=70 {
        storage.delete(&format!("log/{:017}/{sequence:020}", 0)).unwrap();
    }
    let report = verify(&region, &VerifyOptions::default(), &Caller::new(1).context()).unwrap();
    assert!(report.findings.iter().any(|f| f.problem.contains("its checkpoint is there")), "{report:?}");
    assert!(Region::open(Arc::new(storage.clone()), session()).is_err(), "{name} says that there is more");
}

#[test]
fn another_region_in_the_place_of_the_first_is_noticed() {
    let (storage, other) = (Memory::new(), Memory::new());
    let region = memory_region(&storage, &options());
    memory_region(&other, &options());
    storage.restore("region", &read_whole(&other, "region", 1 << 16).unwrap()).unwrap();
    let report = verify(&region, &VerifyOptions::default(), &Caller::new(1).context()).unwrap();
    assert!(report.findings[0].problem.contains("region file changed"), "{report:?}");
}

/// What was put went with the pack that could not be written: nothing can be built on it.
#[test]
fn a_session_that_failed_does_nothing_more() {
    let (storage, caller) = (Memory::new(), Caller::new(1));
    memory_region(&storage, &options());
    let twice = session();
    let open = || Region::open(Arc::new(storage.clone()), twice).unwrap();
    caller.snapshot(&open(), &MemoryDisk::new(vec![1; 4096])).unwrap();
    let region = open();
    let manifest = region.catalog().unwrap().snapshots.values().next().unwrap().manifest.clone();
    let map = region.load_map(&manifest).unwrap();
    let raw = vec![2; 4096];
    let id = chunk_id(&raw);
    let frame = region.encode(&raw, id, 3).unwrap();
    let mut session = region.begin(caller.account).unwrap();
    assert_eq!(session.reserve(&[id]).unwrap(), [true]);
    session.put(id, &frame).unwrap();
    assert!(matches!(session.flush(), Err(RegionError::NameReused(_))), "its pack's name is taken");
    let is_over = |done: Result<(), RegionError>| matches!(done, Err(RegionError::WriterGone));
    assert!(is_over(session.flush()));
    assert!(is_over(session.put(id, &frame)));
    assert!(is_over(session.reserve(&[id]).map(drop)));
    assert!(is_over(session.place_manifest(&map).map(drop)));
}

/// A list whose bytes are another list's, well made.
#[test]
fn a_list_is_the_one_that_its_record_means() {
    let storage = Memory::new();
    let region = memory_region(&storage, &options());
    for first in [0, 50_000_u128] {
        let sessions = (first..first + 20_000).map(|number| SessionId(number.to_be_bytes())).collect();
        let op = Op::FenceSessions { sessions };
        region.commit::<_, RegionError>(common::provider(), |_| Ok((vec![op.clone()], ()))).unwrap();
    }
    let [one, two] = storage.list("lists").unwrap().try_into().unwrap();
    storage.restore(&one.name, &read_whole(&storage, &two.name, 1 << 24).unwrap()).unwrap();
    let error = Region::open(Arc::new(storage), session()).err().unwrap();
    assert!(error.is_damage() && error.to_string().contains("list"), "{error}");
}

#[test]
fn a_block_map_is_the_one_that_its_snapshot_means() {
    let (storage, caller) = (Memory::new(), Caller::new(1));
    let region = memory_region(&storage, &options());
    let [one, two] = [1, 2].map(|seed| {
        caller.snapshot(&region, &MemoryDisk::new(volume(20_000, seed))).unwrap().snapshot.manifest
    });
    let bytes = read_whole(&storage, &two.name.to_string(), 1 << 16).unwrap();
    storage.restore(&one.name.to_string(), &bytes).unwrap();
    let swapped = imgstore::model::objects::ManifestRecord { len: two.len, ..one };
    let error = region.load_map(&swapped).unwrap_err();
    assert!(error.is_damage(), "{error}");
    assert!(!findings(&storage).is_empty());
}

/// A segment that is whole and lies: about where a chunk is, or by leaving chunks out.
#[test]
fn a_segment_that_lies_is_found() {
    for leaves_out in [false, true] {
        let (storage, caller) = (Memory::new(), Caller::new(1));
        let region = memory_region(&storage, &options());
        caller.snapshot(&region, &MemoryDisk::new(volume(60_000, 1))).unwrap();
        let catalog = region.catalog().unwrap();
        let packs: Vec<PackName> = catalog.packs.keys().copied().collect();
        let id = region.header().id;
        let mut entries = Vec::new();
        for (at, pack) in (0_u32..).zip(catalog.packs.values()) {
            let trailer = read_trailer(&storage, id, &pack.record).unwrap();
            entries.extend(trailer.entries.into_iter().map(|mut entry| {
                entry.pack = at;
                entry
            }));
        }
        entries.sort_by_key(|entry| entry.id);
        if leaves_out {
            entries.truncate(entries.len() - 1);
        } else {
            entries[0].offset += 8;
        }
        let mut writer = SegmentWriter::new(entries.len());
        entries.iter().for_each(|entry| writer.push(*entry).unwrap());
        let (bytes, hash, entries) = writer.finish(id, &packs).unwrap();
        let name = SegmentName { session: SessionId([9; 16]), number: 1 };
        storage.create(&name.to_string(), &[&bytes]).unwrap();
        let len = bytes.len() as u64;
        let record = SegmentRecord { name, len, entries, hash, replaces: vec![], partial: vec![] };
        let op = Op::RegisterSegment(record);
        region.commit::<_, RegionError>(caller.account, |_| Ok((vec![op.clone()], ()))).unwrap();
        let found = findings(&storage).join("; ");
        assert!(found.contains(if leaves_out { "it lists" } else { "is not where it says" }), "{found}");
    }
}

/// A snapshot is refused while what it counts on is not there, and the reason says what to do.
#[test]
fn a_damaged_log_is_told_as_damage() {
    let (storage, region, _) = with_checkpoint();
    let name = format!("log/{:017}/{:020}", 0, 70);
    let mut bytes = read_whole(&storage, &name, 1 << 16).unwrap();
    bytes[40] ^= 1;
    storage.restore(&name, &bytes).unwrap();
    let error = Region::open(Arc::new(storage.clone()), session()).err().unwrap();
    assert!(error.is_damage(), "{error}");
    let report = verify(&region, &VerifyOptions::default(), &Caller::new(1).context()).unwrap();
    assert_eq!(report.findings.len(), 1);
    assert_eq!(report.findings[0].object, "log");
    let missing = OpsError::from(RegionError::BrokenLog { sequence: 3, why: "x".into() });
    assert!(missing.to_string().contains("imgstore repair"), "{missing}");
}

/// Each image of a chain has content in the packs of all that came before it. Its record does not name them.
#[test]
fn records_do_not_grow_with_the_chain() {
    let (storage, caller) = (Memory::new(), Caller::new(1));
    let region = memory_region(&storage, &options());
    let mut disk = vec![0; 60 * 8 * 4096];
    let mut lengths = Vec::new();
    for number in 0..60 {
        // A chunk more, with a zero run behind it.
        disk[number * 8 * 4096..][..4096].copy_from_slice(&block_of_noise(number as u64));
        caller.snapshot(&region, &MemoryDisk::new(disk.clone())).unwrap();
        let sequence = region.catalog().unwrap().sequence;
        let name = format!("log/{:017}/{sequence:020}", sequence / 1000);
        let bytes = read_whole(&storage, &name, 1 << 20).unwrap();
        let Body::Inline(ops) = record::decode(&bytes).unwrap().0.body else { panic!("it is short") };
        assert!(matches!(&ops[..], [Op::CreateSnapshot { packs, .. }] if packs.is_empty()), "{ops:?}");
        lengths.push(bytes.len());
    }
    let snapshots = region.catalog().unwrap().snapshots;
    let manifest = &snapshots.values().max_by_key(|snapshot| snapshot.manifest.chunks).unwrap().manifest;
    let chunks: Vec<_> = region.load_map(manifest).unwrap().chunks().iter().map(|chunk| chunk.id).collect();
    let packs: BTreeSet<PackName> = region.locate(&chunks).unwrap().iter().map(|(_, at)| at.pack).collect();
    assert_eq!((chunks.len(), packs.len()), (60, 60));
    assert_eq!(lengths, [lengths[0]; 60]);
}

/// A block that resembles no other.
fn block_of_noise(seed: u64) -> Vec<u8> {
    let mut draw = common::Draw::new(seed + 1);
    (0..512).flat_map(|_| draw.next().to_le_bytes()).collect()
}
