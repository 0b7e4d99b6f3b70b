//! The log on a storage whose answers get lost, and a log, checkpoints and index that do not say the same.

mod common;

use common::{Caller, MemoryDisk, memory_region, pass_on, session, small_packs, volume};
use imgstore::chunk::frame::{Codec, Frame, chunk_id};
use imgstore::format::checkpoint::{self, Checkpoint};
use imgstore::format::entry::Entry;
use imgstore::format::record::{self, Body, StoredRecord};
use imgstore::format::segment::SegmentWriter;
use imgstore::io::map::Bytes;
use imgstore::io::memory::Memory;
use imgstore::io::storage::{Created, Listed, Object, Storage, StorageError, read_whole, twin_of};
use imgstore::model::ids::{ChunkId, ObjectHash, SessionId};
use imgstore::model::objects::{PackName, SegmentName, SegmentRecord};
use imgstore::model::op::{Author, Op};
use imgstore::ops::error::OpsError;
use imgstore::ops::repair::{RepairSources, repair};
use imgstore::ops::verify::{VerifyOptions, verify};
use imgstore::pack::trailer::read_trailer;
use imgstore::region::audit::CheckBuffers;
use imgstore::region::error::RegionError;
use imgstore::region::session::Session;
use imgstore::region::{Region, RegionOptions};
use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

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
    /// Objects whose names begin so cannot be opened, and nobody knows why.
    out_of_reach: Arc<Mutex<Option<String>>>,
    /// Checkpoints are listed and then gone, as if newer ones had been made meanwhile.
    vanished: bool,
    /// Whether somebody appends a record just before the log is listed, for each time that it is.
    beside: Arc<Mutex<VecDeque<bool>>>,
    /// It keeps twins.
    twins: bool,
    gate: Arc<Gate>,
    /// The lengths of what was read of packs.
    reads: Arc<Mutex<Vec<usize>>>,
}

/// Holds up those who create an object whose name begins so.
#[derive(Default)]
struct Gate(Mutex<Held>, Condvar);

#[derive(Default)]
struct Held {
    before: Option<&'static str>,
    has_come: bool,
}

impl Gate {
    fn close(&self, before: &'static str) {
        *self.0.lock().unwrap() = Held { before: Some(before), has_come: false };
    }

    /// Waits until somebody stands before it.
    fn wait_for_one(&self) {
        drop(self.1.wait_while(self.0.lock().unwrap(), |held| !held.has_come).unwrap());
    }

    fn open(&self) {
        self.0.lock().unwrap().before = None;
        self.1.notify_all();
    }

    fn pass(&self, name: &str) {
        let is_held = |held: &mut Held| held.before.is_some_and(|before| name.starts_with(before));
        let mut held = self.0.lock().unwrap();
        if is_held(&mut held) {
            held.has_come = true;
            self.1.notify_all();
            drop(self.1.wait_while(held, is_held).unwrap());
        }
    }
}

/// An object of which it is noted how much of it is read at once.
struct CountedObject(Arc<dyn Object>, Arc<Mutex<Vec<usize>>>);

impl Object for CountedObject {
    fn len(&self) -> u64 {
        self.0.len()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), StorageError> {
        self.1.lock().unwrap().push(buffer.len());
        self.0.read_at(offset, buffer)
    }

    fn bytes(&self) -> Result<Bytes, StorageError> {
        self.0.bytes()
    }
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
        Self { answers: Arc::new(Mutex::new(answers.iter().copied().collect())), ..Self::over(inner) }
    }

    /// A good line so far.
    fn over(inner: Memory) -> Self {
        Self {
            inner,
            answers: Arc::default(),
            unpersisted: false,
            swollen: None,
            out_of_reach: Arc::default(),
            vanished: false,
            beside: Arc::default(),
            twins: false,
            gate: Arc::default(),
            reads: Arc::default(),
        }
    }

    /// From now on objects whose names begin so are out of reach; or none is.
    fn put_out_of_reach(&self, names: Option<&str>) {
        *self.out_of_reach.lock().unwrap() = names.map(str::to_owned);
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
            self.gate.pass(name);
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

    fn open(&self, name: &str) -> Result<Arc<dyn Object>, StorageError> {
        if self.out_of_reach.lock().unwrap().as_ref().is_some_and(|names| name.starts_with(names)) {
            let source = std::io::Error::other("no answer");
            return Err(StorageError::Io { action: "open", name: name.to_owned(), source });
        }
        match &self.swollen {
            Some(swollen) if name.starts_with("checkpoints/") => Ok(Arc::new(SwollenObject(swollen.clone()))),
            _ if self.vanished && name.starts_with("checkpoints/") => {
                Err(StorageError::NotFound { name: name.to_owned() })
            }
            _ if name.starts_with("packs/") => {
                Ok(Arc::new(CountedObject(self.inner.open(name)?, self.reads.clone())))
            }
            _ => self.inner.open(name),
        }
    }

    fn list(&self, folder: &str) -> Result<Vec<Listed>, StorageError> {
        if folder == "log" && self.beside.lock().unwrap().pop_front() == Some(true) {
            append(&Region::open(Arc::new(self.inner.clone()), session()).unwrap()).unwrap();
        }
        self.inner.list(folder)
    }

    fn has_twins(&self) -> bool {
        self.twins
    }

    fn persist(&self, folder: &str) -> Result<(), StorageError> {
        if self.unpersisted { Err(lost(folder)) } else { self.inner.persist(folder) }
    }

    pass_on!(restore delete admit_writer admit_collector is_writer_gone);
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

/// The name of a record.
fn record_name(sequence: u64) -> String {
    format!("log/{:017}/{sequence:020}", sequence / 1000)
}

/// A storage that does not answer is not one that has no more records: whoever took it for that would append in the
/// place of one that is there.
#[test]
fn a_record_that_is_out_of_reach_is_not_the_end_of_the_log() {
    let line = BadLine::new(&[]);
    let (region, other) = (line.region(), line.region());
    for _ in 0..3 {
        append(&other).unwrap();
    }
    line.put_out_of_reach(Some(&record_name(2)));
    assert!(region.catalog().is_err() && append(&region).is_err());
    assert!(Region::open(Arc::new(line.clone()), session()).is_err());
    line.put_out_of_reach(None);
    assert_eq!(line.region().catalog().unwrap().sequence, 3);
}

/// On a directory a record can be seen before it is durable, and its checkpoint with it.
#[test]
fn what_was_seen_through_a_checkpoint_is_made_durable_before_anything_follows() {
    let line = BadLine::new(&[]);
    let region = line.region();
    for _ in 0..64 {
        append(&region).unwrap();
    }
    assert_eq!(line.inner.list("checkpoints").unwrap().len(), 1, "it is of the last record");
    let unpersisted = BadLine { unpersisted: true, ..line.clone() }.region();
    assert_eq!(unpersisted.catalog().unwrap().sequence, 64);
    assert!(append(&unpersisted).is_err());
    assert_eq!(line.sequence(), 64);
}

#[test]
fn there_is_a_checkpoint_every_64_records() {
    let line = BadLine::new(&[]);
    let region = line.region();
    let checkpoints = || line.inner.list("checkpoints").unwrap().into_iter().map(|listed| listed.name);
    for (records, expected) in
        [(63, &[][..]), (64, &[64]), (127, &[64]), (128, &[64, 128]), (192, &[128, 192])]
    {
        while region.catalog().unwrap().sequence < records {
            append(&region).unwrap();
        }
        let expected = expected.iter().map(|sequence| format!("checkpoints/{sequence:020}"));
        assert!(checkpoints().eq(expected), "after {records}: {:?}", checkpoints().collect::<Vec<_>>());
    }
}

/// One that was made since a handle was opened is not made again by that.
#[test]
fn another_writers_checkpoint_counts() {
    let line = BadLine::new(&[]);
    let (region, other) = (line.region(), line.region());
    let sequences = || -> Vec<u64> {
        let listed = line.inner.list("checkpoints").unwrap();
        listed.iter().map(|listed| listed.name.rsplit('/').next().unwrap().parse().unwrap()).collect()
    };
    for _ in 0..64 {
        append(&region).unwrap();
    }
    append(&other).unwrap();
    assert_eq!(sequences(), [64]);
    while other.catalog().unwrap().sequence < 128 {
        append(&other).unwrap();
    }
    append(&region).unwrap();
    assert_eq!(sequences(), [64, 128]);
}

/// Records lie in folders of a thousand: a gap is noticed by what lies in the next folder, too.
#[test]
fn a_gap_at_the_border_of_two_folders_is_no_end() {
    let line = BadLine::new(&[]);
    let region = line.region();
    let gap = || match Region::open(Arc::new(line.inner.clone()), session()) {
        Err(RegionError::BrokenLog { sequence, .. }) => Some(sequence),
        Err(error) => panic!("{error}"),
        Ok(_) => None,
    };
    for _ in 0..999 {
        append(&region).unwrap();
    }
    assert_eq!(gap(), None);
    // A whole folder is lost, and the next one has a record.
    line.inner.restore(&record_name(2000), b"any").unwrap();
    assert_eq!(gap(), Some(1000));
    line.inner.delete(&record_name(2000)).unwrap();
    append(&region).unwrap();
    append(&region).unwrap();
    for lost in [999, 1000] {
        let bytes = read_whole(&line.inner, &record_name(lost), 1 << 16).unwrap();
        line.inner.delete(&record_name(lost)).unwrap();
        assert_eq!(gap(), Some(lost));
        line.inner.restore(&record_name(lost), &bytes).unwrap();
    }
    assert_eq!(gap(), None);
}

/// A record of which only the twin is left is lost, and not to be written over. A twin of another history says nothing.
#[test]
fn a_twin_tells_that_the_next_record_is_lost_if_it_continues_the_log() {
    let line = BadLine { twins: true, ..BadLine::new(&[]) };
    for _ in 0..3 {
        append(&line.region()).unwrap();
    }
    let last = read_whole(&line.inner, &record_name(3), 1 << 16).unwrap();
    let (honest, _) = record::decode(&last).unwrap();
    line.inner.create(&twin_of(&record_name(3)), &[&last]).unwrap();
    append(&line.region()).expect("it is not lost");
    let of_another_history = StoredRecord { sequence: 5, ..honest.clone() };
    let (_, next) = record::decode(&read_whole(&line.inner, &record_name(4), 1 << 16).unwrap()).unwrap();
    let of_another_place = StoredRecord { sequence: 6, previous: next, ..honest };
    for foreign in [of_another_history, of_another_place] {
        line.inner.restore(&twin_of(&record_name(5)), &record::encode(&foreign).unwrap().0).unwrap();
        assert_eq!(line.region().audit_log().unwrap().catalog.sequence, 4);
    }
    append(&line.region()).expect("nothing continues record 4");
    let bytes = read_whole(&line.inner, &record_name(5), 1 << 16).unwrap();
    line.inner.restore(&twin_of(&record_name(5)), &bytes).unwrap();
    line.inner.delete(&record_name(5)).unwrap();
    let is_lost =
        |done: Result<(), RegionError>| matches!(done, Err(RegionError::BrokenLog { sequence: 5, .. }));
    assert!(is_lost(append(&line.region())) && is_lost(line.region().audit_log().map(drop)));
    assert_eq!(line.sequence(), 4, "it can be read");
}

/// A check beside writers takes nothing for missing that has only come since, or was replaced.
#[test]
fn a_check_of_the_log_can_run_beside_writers() {
    for (appended, expected) in [(&[true][..], 71), (&[false, true], 70), (&[true, true, false], 72)] {
        let (inner, _, _) = with_checkpoint();
        let line = BadLine { vanished: true, ..BadLine::over(inner) };
        let region = line.region();
        line.beside.lock().unwrap().extend(appended);
        let audit = region.audit_log().unwrap();
        let findings = audit.caches.len() + audit.lost.len();
        assert_eq!((audit.catalog.sequence, findings), (expected, 0), "{appended:?}: {audit:?}");
    }
}

/// A chunk of noise, 1 MiB, so that its frame is as long.
fn mebibyte(seed: u64) -> Vec<u8> {
    (0..256).flat_map(|block| block_of_noise(seed * 256 + block)).collect()
}

#[test]
fn a_check_reads_a_pack_in_pieces_of_up_to_4_mib() {
    let inner = Memory::new();
    memory_region(&inner, &RegionOptions { pack_bytes: 32 << 20, ..options() });
    let line = BadLine::over(inner);
    let region = line.region();
    let mut session = region.begin(common::provider()).unwrap();
    for seed in 0..10 {
        let raw = mebibyte(seed);
        put(&mut session, chunk_id(&raw), &region.encode(&raw, chunk_id(&raw), 1).unwrap());
    }
    session.flush().unwrap();
    let pack = region.catalog().unwrap().packs.values().next().unwrap().record.clone();
    for content in [false, true] {
        line.reads.lock().unwrap().clear();
        let checked = region.check_pack(&pack, content, &mut CheckBuffers::default()).unwrap();
        assert_eq!((checked.frames, checked.damaged.len()), (10, 0));
        // Three frames of a MiB and a little each.
        let reads = line.reads.lock().unwrap();
        let long: Vec<usize> = reads.iter().map(|len| len >> 20).filter(|mib| *mib > 0).collect();
        assert_eq!(long, [3, 3, 3, 1]);
    }
}

/// Puts a new chunk.
fn put(session: &mut Session, id: ChunkId, frame: &Frame) {
    assert_eq!(session.reserve(&[id]).unwrap(), [true], "{id}");
    session.put(id, frame).unwrap();
}

/// An id that no content has, and a frame that could be its chunk's: what stores them does not look.
fn fake(number: u32) -> (ChunkId, Frame) {
    let mut id = [0; 32];
    id[..4].copy_from_slice(&number.wrapping_mul(0x9e37_79b1).to_be_bytes());
    id[28..].copy_from_slice(&number.to_be_bytes());
    (ChunkId(id), Frame { codec: Codec::Zstd, raw_blocks: 1, body: vec![0; 5] })
}

/// As [`fake`], of the length of a pack of these tests.
fn fake_pack(number: u32) -> (ChunkId, Frame) {
    (fake(number).0, Frame { codec: Codec::Raw, raw_blocks: 4, body: vec![0; 16 << 10] })
}

fn packs_of(region: &Region) -> Vec<PackName> {
    region.catalog().unwrap().packs.keys().copied().collect()
}

#[test]
fn what_a_session_puts_comes_into_one_pack_that_says_its_effort() {
    for effort in [0, 9] {
        let line = BadLine::new(&[]);
        let region = line.region();
        let mut session = region.begin(common::provider()).unwrap();
        session.set_effort(effort);
        for (id, frame) in (0..3).map(fake) {
            put(&mut session, id, &frame);
        }
        session.flush().unwrap();
        let packs = region.catalog().unwrap().packs;
        let [pack] = &packs.values().collect::<Vec<_>>()[..] else { panic!("{packs:?}") };
        let trailer = read_trailer(&line.inner, region.header().id, &pack.record).unwrap();
        assert_eq!((trailer.entries.len(), i32::from(trailer.effort)), (3, effort));
    }
}

/// A delta is put only on what stays: not on a pack that is emptied, on its way out, or gone.
#[test]
fn a_base_is_in_a_pack_that_stays() {
    let line = BadLine::new(&[]);
    let region = line.region();
    let account = common::provider();
    let (id, frame) = fake_pack(1);
    let mut session = region.begin(account).unwrap();
    put(&mut session, id, &frame);
    let base = session.base_pack(id).unwrap().unwrap();
    session.flush().unwrap();
    assert_eq!(packs_of(&region), [base]);
    assert_eq!(session.base_pack(id).unwrap(), Some(base));
    session.avoid(&[base].into());
    assert_eq!(session.base_pack(id).unwrap(), None, "it is being emptied");

    let gone = BadLine::over(line.inner.clone()).region();
    assert_eq!(gone.begin(account).unwrap().base_pack(id).unwrap(), Some(base));
    let op = Op::CondemnPacks { packs: vec![base], at_ms: 5 };
    region.commit::<_, RegionError>(account, |_| Ok((vec![op.clone()], ()))).unwrap();
    assert_eq!(region.begin(account).unwrap().base_pack(id).unwrap(), None, "it is condemned");

    let line = BadLine::new(&[]);
    let region = line.region();
    let mut session = region.begin(account).unwrap();
    put(&mut session, id, &frame);
    session.flush().unwrap();
    // Its own index was read before it was lost.
    let elsewhere = line.region().begin(account).unwrap();
    line.inner.delete(&packs_of(&region)[0].to_string()).unwrap();
    assert_eq!(elsewhere.base_pack(id).unwrap(), None, "it is lost");
}

/// What a session has put is forgotten by it once it is very much, and then is in packs that the index knows.
#[test]
fn a_session_that_puts_very_many_chunks_leaves_them_to_the_index() {
    let inner = Memory::new();
    memory_region(&inner, &RegionOptions { pack_bytes: 32 << 20, ..options() });
    let region = Region::open(Arc::new(inner), session()).unwrap();
    let mut session = region.begin(common::provider()).unwrap();
    let most = 256 << 10;
    for (id, frame) in (0..=most).map(fake) {
        put(&mut session, id, &frame);
    }
    assert!(packs_of(&region).is_empty(), "it still knows all of them");
    let (first, last, new) = (fake(0).0, fake(most).0, fake(most + 1).0);
    assert_eq!(session.reserve(&[first, last, new]).unwrap(), [false, false, true]);
    assert_eq!(packs_of(&region).len(), 1, "the pack is not full");
    drop(session);
    let index = region.catalog().unwrap().segments;
    assert_eq!(index.values().map(|segment| segment.entries).collect::<Vec<_>>(), [u64::from(most) + 1]);
}

/// An interrupted command's work is not lost: the next one finds it.
#[test]
fn what_is_written_when_a_session_ends_is_registered_first() {
    let line = BadLine::new(&[]);
    let region = line.region();
    let mut session = region.begin(common::provider()).unwrap();
    line.gate.close("packs/");
    let (id, frame) = fake_pack(1);
    put(&mut session, id, &frame);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(100));
            line.gate.open();
        });
        drop(session);
    });
    assert_eq!(packs_of(&region).len(), 1);
    assert_eq!(region.has_chunks(&[id]).unwrap(), [true]);
}

#[test]
fn a_session_goes_on_while_its_packs_get_a_segment() {
    let line = BadLine::new(&[]);
    let region = line.region();
    let mut session = region.begin(common::provider()).unwrap();
    line.gate.close("index/");
    for (id, frame) in (0..65).map(fake_pack) {
        put(&mut session, id, &frame);
    }
    session.flush().unwrap();
    line.gate.wait_for_one();
    // Would it wait for the segment, it would wait for ever.
    let (id, frame) = fake_pack(65);
    put(&mut session, id, &frame);
    session.flush().unwrap();
    assert_eq!((packs_of(&region).len(), region.catalog().unwrap().segments.len()), (66, 0));
    // Whoever ends waits for it: what has begun is not begun again by the next.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(100));
            line.gate.open();
        });
        drop(session);
    });
    let segments = region.catalog().unwrap().segments;
    assert_eq!(segments.values().map(|segment| segment.entries).collect::<Vec<_>>(), [65]);
}

/// A page of a segment rots, and the first to read it is who merges the segment: its packs' own indexes say the same.
#[test]
fn a_damaged_segment_is_replaced_when_it_would_be_merged() {
    let line = BadLine::new(&[]);
    let store = |chunks: &[(ChunkId, Frame)]| {
        let region = line.region();
        let mut session = region.begin(common::provider()).unwrap();
        chunks.iter().for_each(|(id, frame)| put(&mut session, *id, frame));
        session.flush().unwrap();
        drop(session);
        let segments = region.catalog().unwrap().segments;
        segments.values().map(|segment| (segment.name, segment.entries)).collect::<Vec<_>>()
    };
    // Two in each pack, and two pages in all.
    let frame = Frame { codec: Codec::Raw, raw_blocks: 2, body: vec![0; 8 << 10] };
    let first: Vec<_> = (0..130).map(|number| (fake(number).0, frame.clone())).collect();
    let [(damaged, 130)] = store(&first)[..] else { panic!("there is one segment") };
    let mut bytes = read_whole(&line.inner, &damaged.to_string(), 1 << 20).unwrap();
    bytes[2 * 4096 + 50] ^= 1;
    line.inner.restore(&damaged.to_string(), &bytes).unwrap();
    // Whoever looks for these looks at the first page only.
    let low = |number: u32| {
        let mut id = [0; 32];
        id[28..].copy_from_slice(&(1000 + number).to_be_bytes());
        (ChunkId(id), fake_pack(0).1)
    };
    let second: Vec<_> = (0..70).map(low).collect();
    let [(whole, 200)] = store(&second)[..] else { panic!("there is one segment") };
    assert_ne!(whole, damaged);
    let region = line.region();
    region.audit_segment(&region.catalog().unwrap(), whole).unwrap();
    let ids: Vec<ChunkId> = first.iter().chain(&second).map(|(id, _)| *id).collect();
    assert_eq!(region.has_chunks(&ids).unwrap(), [true; 200]);
}

/// A pack that is shorter than the log says is of no use; of one that is out of reach nothing is known.
#[test]
fn what_is_cut_off_is_stored_anew_and_what_is_out_of_reach_is_not() {
    let line = BadLine::new(&[]);
    let (id, frame) = fake_pack(1);
    let mut session = line.region().begin(common::provider()).unwrap();
    put(&mut session, id, &frame);
    session.flush().unwrap();
    let pack = packs_of(&line.region())[0].to_string();
    let region = line.region();
    // Its trailer is known before.
    assert!(region.locate(&[id]).is_ok());
    line.put_out_of_reach(Some("packs/"));
    assert!(region.has_chunks(&[id]).is_err());
    line.put_out_of_reach(None);
    assert_eq!(region.has_chunks(&[id]).unwrap(), [true]);

    let region = line.region();
    assert!(region.locate(&[id]).is_ok());
    let bytes = read_whole(&line.inner, &pack, 1 << 20).unwrap();
    line.inner.restore(&pack, &bytes[..bytes.len() - 1]).unwrap();
    assert_eq!(region.has_chunks(&[id]).unwrap(), [false]);
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

/// Nobody goes on with a state that a whole replay has just contradicted.
#[test]
fn repair_goes_on_with_what_the_log_says() {
    let (storage, _, name) = with_checkpoint();
    let mut forged = checkpoint::decode(&read_whole(&storage, &name, 1 << 20).unwrap()).unwrap();
    forged.catalog.fenced_sessions = Arc::new([SessionId([1; 16])].into());
    storage.restore(&name, &checkpoint::encode(&forged).unwrap()).unwrap();
    let fenced = |region: &Region| region.catalog().unwrap().fenced_sessions.len();
    let opened = Region::open(Arc::new(storage.clone()), session()).unwrap();
    assert_eq!(fenced(&opened), 1);
    let repaired = repair(&opened, &RepairSources::default(), &Caller::new(1).context()).unwrap();
    assert!(repaired.caches == 1 && repaired.lost.is_empty(), "{repaired:?}");
    assert_eq!(fenced(&opened), 0);
    // Nor is that made a checkpoint again.
    for _ in 0..70 {
        append(&opened).unwrap();
    }
    assert!(!storage.list("checkpoints").unwrap().is_empty());
    assert_eq!(findings(&storage), [""; 0]);
    assert_eq!(fenced(&Region::open(Arc::new(storage.clone()), session()).unwrap()), 0);
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
        let line = BadLine { swollen: Some(swollen.clone()), ..BadLine::over(inner.clone()) };
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

/// A clock that is before the making of the region, and before what was on record, is wrong: also if it was on record since.
#[test]
fn a_clock_that_is_surely_behind_is_not_put_on_record() {
    let (storage, caller) = (Memory::new(), Caller::new(1));
    let region = memory_region(&storage, &options());
    let made_ms = region.header().created_ms;
    assert_eq!(region.time_on_record(0).unwrap(), 0, "nothing says that it is wrong");
    region.commit::<_, RegionError>(caller.account, |_| Ok((vec![Op::NoOp], ()))).unwrap();
    let newest = region.record(1).unwrap().unwrap().time_ms;
    assert!(newest >= made_ms);
    assert_eq!(region.time_on_record(0).unwrap(), newest);
    for now_ms in [made_ms + 5, newest - 1000] {
        assert_eq!(region.time_on_record(now_ms).unwrap(), now_ms, "another may be ahead");
    }
    // A record of the wrong clock.
    let bytes = read_whole(&storage, &record_name(1), 1 << 16).unwrap();
    let (first, hash) = record::decode(&bytes).unwrap();
    let wrong = StoredRecord { sequence: 2, previous: hash, time_ms: 7, ..first };
    storage.create(&record_name(2), &[&record::encode(&wrong).unwrap().0]).unwrap();
    assert_eq!(region.catalog().unwrap().sequence, 2);
    assert_eq!(region.time_on_record(60_000).unwrap(), newest);
    // Where most records say the same it is right, and was ahead when the region was made.
    let third = StoredRecord { sequence: 3, previous: record::encode(&wrong).unwrap().1, ..wrong };
    storage.create(&record_name(3), &[&record::encode(&third).unwrap().0]).unwrap();
    assert_eq!(region.catalog().unwrap().sequence, 3);
    assert_eq!(region.time_on_record(60_000).unwrap(), 60_000);
}

/// While a command is at work, somebody puts an older state of its region back, or another region in its place: a record
/// that continues what was there would be a gap for ever.
#[test]
fn nothing_is_appended_to_another_log_than_the_one_that_was_read() {
    let (storage, other, caller) = (Memory::new(), Memory::new(), Caller::new(1));
    let region = memory_region(&storage, &options());
    let append =
        |region: &Region| region.commit::<_, RegionError>(caller.account, |_| Ok((vec![Op::NoOp], ())));
    let is_replaced = |region: &Region, sequence| matches!(append(region), Err(RegionError::Replaced { sequence: found }) if found == sequence);
    let record = |number: u64| format!("log/{:017}/{number:020}", 0);
    let bytes_of = |storage: &Memory, name: &str| read_whole(storage, name, 1 << 16).unwrap();
    // Another region's file, and no record yet.
    let foreign = memory_region(&other, &options());
    let own = bytes_of(&storage, "region");
    storage.restore("region", &bytes_of(&other, "region")).unwrap();
    assert!(is_replaced(&region, 0));
    storage.restore("region", &own).unwrap();

    append(&region).unwrap();
    append(&foreign).unwrap();
    let ours = bytes_of(&storage, &record(1));
    // Another log, and none that goes so far.
    storage.restore(&record(1), &bytes_of(&other, &record(1))).unwrap();
    assert!(is_replaced(&region, 1));
    // Nor is anything deleted by what is known of the one that was there.
    let nothing = region.commit::<_, RegionError>(caller.account, |_| Ok((vec![], ())));
    assert!(matches!(nothing, Err(RegionError::Replaced { sequence: 1 })), "{nothing:?}");
    storage.delete(&record(1)).unwrap();
    assert!(is_replaced(&region, 1));
    let end = || Region::open(Arc::new(storage.clone()), session()).unwrap().catalog().unwrap().sequence;
    assert_eq!(end(), 0, "nothing was written");
    // Damage is another matter.
    let mut damaged = ours.clone();
    damaged[40] ^= 1;
    storage.restore(&record(1), &damaged).unwrap();
    append(&region).unwrap();
    storage.restore(&record(1), &ours).unwrap();
    assert_eq!(end(), 2);
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

/// A segment that is whole and lies about a chunk's length: what it is read for has no room for the chunk, and whatever
/// place it is then taken from cannot change that.
#[test]
fn a_chunk_of_another_length_than_the_index_says_is_not_given() {
    let storage = Memory::new();
    let region = memory_region(&storage, &options());
    let raw = block_of_noise(1);
    let (id, frame) = (chunk_id(&raw), region.encode(&raw, chunk_id(&raw), 3).unwrap());
    // Two who store it at once.
    let open = || Region::open(Arc::new(storage.clone()), session()).unwrap();
    let mut sessions = [open(), open()].map(|region| region.begin(common::provider()).unwrap());
    sessions.iter_mut().for_each(|session| put(session, id, &frame));
    sessions.iter_mut().for_each(|session| session.flush().unwrap());
    for ((number, pack), blocks) in (1..).zip(packs_of(&region)).zip([2, 1]) {
        let record = region.catalog().unwrap().packs[&pack].record.clone();
        let entry = read_trailer(&storage, region.header().id, &record).unwrap().entries[0];
        let mut writer = SegmentWriter::new(1);
        writer.push(Entry { raw_blocks: blocks, ..entry }).unwrap();
        let (bytes, hash, entries) = writer.finish(region.header().id, &[pack]).unwrap();
        let name = SegmentName { session: SessionId([9; 16]), number };
        storage.create(&name.to_string(), &[&bytes]).unwrap();
        let len = bytes.len() as u64;
        let record = SegmentRecord { name, len, entries, hash, replaces: vec![], partial: vec![] };
        let op = Op::RegisterSegment(record);
        region.commit::<_, RegionError>(common::provider(), |_| Ok((vec![op.clone()], ()))).unwrap();
    }
    let region = open();
    let fetched = region.fetch(&[id]).unwrap();
    let frame = fetched.frames()[0];
    let mut room = vec![0; fetched.raw_bytes(frame)];
    assert_eq!(room.len(), 2 * raw.len());
    assert!(fetched.decode(&region, frame, &mut room).unwrap_err().is_damage());
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
