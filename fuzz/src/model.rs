//! Sequences of operations on a region in memory: snapshot, delete, collect, leave half-done, be taken for gone.
//! What was acknowledged reads as it was taken, and a check finds nothing.

use super::runs;
use super::wear::wear;
use imgstore::disk::{DiskError, DiskRead, Extent};
use imgstore::io::memory::Memory;
use imgstore::model::account::AccountId;
use imgstore::model::ids::{SessionId, SnapshotId};
use imgstore::model::region::ChunkerParams;
use imgstore::ops::context::{Context, Unwatched};
use imgstore::ops::delete::delete_snapshot;
use imgstore::ops::encode::Compression;
use imgstore::ops::error::OpsError;
use imgstore::ops::gc::{GcOptions, collect};
use imgstore::ops::ingest::ingest;
use imgstore::ops::repair::{RepairSources, repair};
use imgstore::ops::snapshot::{SnapshotOptions, snapshot};
use imgstore::region::session::Session;
use imgstore::region::{Region, RegionOptions};
use rayon::ThreadPool;
use std::sync::{Arc, LazyLock};

/// Operations of a sequence at most.
pub const OPERATIONS_MAX: usize = 24;
/// Bytes of a content's block.
pub const BLOCK: usize = 4096;

/// A disk in memory.
pub struct VecDisk(pub Vec<u8>);

impl DiskRead for VecDisk {
    fn len_bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn extent_at(&self, offset: u64) -> Result<Extent, DiskError> {
        Ok(Extent { start: offset, end: self.len_bytes(), is_zero: false })
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        let at = usize::try_from(offset).expect("inside the disk");
        buffer.copy_from_slice(&self.0[at..][..buffer.len()]);
        Ok(())
    }
}

/// A volume of up to 16 blocks of few kinds, so that volumes share many.
fn content(choice: u8) -> Vec<u8> {
    static CONTENTS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| (0..=u8::MAX).map(make).collect());
    CONTENTS[usize::from(choice)].clone()
}

fn make(choice: u8) -> Vec<u8> {
    let (kind, blocks) = (choice & 15, usize::from(choice >> 4) + 1);
    let block = |at: usize| {
        let mut state = (at as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(kind / 3);
        (0..BLOCK).map(move |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        })
    };
    let mut bytes: Vec<u8> = (0..blocks).flat_map(block).collect();
    if kind == 7 {
        bytes.fill(0);
    }
    bytes
}

static POOL: LazyLock<ThreadPool> =
    LazyLock::new(|| rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread"));

/// The session of a number.
pub fn session_of(number: u64) -> SessionId {
    let mut name = [0; 16];
    name[..8].copy_from_slice(&number.to_be_bytes());
    SessionId(name)
}

/// What the provider does at a time.
pub fn context_at(now_ms: u64) -> Context<'static> {
    Context {
        account: AccountId::from_random(1),
        now_ms,
        dry_run: false,
        pool: &POOL,
        memory_bytes: 16 << 20,
        progress: &Unwatched,
    }
}

struct World {
    storage: Memory,
    sessions: u64,
    now_ms: u64,
    there: Vec<(SnapshotId, Vec<u8>)>,
    /// Writers that were left in the middle, with what they have stored.
    under_way: Vec<(Region, Session)>,
}

impl World {
    fn session(&mut self) -> SessionId {
        self.sessions += 1;
        session_of(self.sessions)
    }

    fn open(&mut self) -> Region {
        let session = self.session();
        Region::open(Arc::new(self.storage.clone()), session).expect("it opens")
    }

    fn context(&self) -> Context<'static> {
        context_at(self.now_ms)
    }

    fn read(&mut self, id: SnapshotId) -> Result<Vec<u8>, OpsError> {
        let region = self.open();
        let map = region.load_map(&region.catalog()?.snapshots[&id].manifest)?;
        let ids: Vec<_> = map.chunks().iter().map(|chunk| chunk.id).collect();
        let mut bytes = vec![0; usize::try_from(map.volume_bytes()).expect("it is small")];
        if !ids.is_empty() {
            let fetched = region.fetch(&ids)?;
            for frame in fetched.frames() {
                let start = usize::try_from(map.chunks()[frame.wanted].start_block).expect("small") * BLOCK;
                let len = fetched.raw_bytes(frame);
                fetched.decode(&region, frame, &mut bytes[start..start + len])?;
            }
        }
        Ok(bytes)
    }

    fn step(&mut self, op: u8, choice: u8) {
        let context = self.context();
        let picked = usize::from(choice) % self.there.len().max(1);
        match op % 10 {
            0..=2 => {
                let bytes = content(choice);
                let region = self.open();
                let taken = snapshot(&region, &VecDisk(bytes.clone()), &SnapshotOptions::default(), &context);
                self.there.push((taken.expect("nothing stands in its way").snapshot.id, bytes));
            }
            3 if !self.there.is_empty() => {
                let (id, _) = self.there.remove(picked);
                delete_snapshot(&self.open(), id, &context).expect("it is there");
            }
            4 | 5 => {
                let grace_ms = [0, 0, 5000][usize::from(choice) % 3];
                let options = GcOptions { grace_ms, repack_percent: choice % 101 };
                collect(&self.open(), &options, &context).expect("nothing is damaged");
            }
            6 => {
                let region = self.open();
                let mut session = region.begin(context.account).expect("there is space");
                ingest(&mut session, &VecDisk(content(choice)), &Compression::default(), &context)
                    .expect("nothing stands in its way");
                self.under_way.push((region, session));
            }
            7 if !self.under_way.is_empty() => drop(self.under_way.remove(0)),
            8 => self.storage.take_all_for_gone(choice & 1 == 1),
            9 => self.now_ms += u64::from(choice) * 100,
            _ if !self.there.is_empty() => {
                let (id, bytes) = self.there[picked].clone();
                assert!(self.read(id).expect("it is whole") == bytes, "{id} has other bytes");
            }
            _ => {}
        }
    }
}

/// The sequence that the input says, two bytes for each operation: on a sound medium, and on one that wears out.
pub fn model(data: &[u8]) {
    if runs(data, 2, [0]) {
        sound(data);
    }
    if runs(data, 2, [1]) {
        wear(data);
    }
}

fn sound(data: &[u8]) {
    let storage = Memory::new();
    let mut world = World { storage, sessions: 0, now_ms: 1, there: Vec::new(), under_way: Vec::new() };
    let chunker = ChunkerParams { min_blocks: 1, avg_blocks: 2, max_blocks: 4, zero_tail_bytes: 32 };
    let options = RegionOptions {
        chunker,
        pack_bytes: 16 << 10,
        ..RegionOptions::named("fuzz", AccountId::from_random(1))
    };
    let session = world.session();
    Region::create(Arc::new(world.storage.clone()), session, &options).expect("an empty storage");
    for pair in data.chunks_exact(2).take(OPERATIONS_MAX) {
        world.step(pair[0], pair[1]);
    }
    for (id, bytes) in world.there.clone() {
        assert!(world.read(id).expect("it is whole") == bytes, "{id} has other bytes");
    }
    let region = world.open();
    let listed = region.catalog().expect("it opens").snapshots.len();
    assert_eq!(listed, world.there.len());
    let checked = repair(&region, &RepairSources::default(), &world.context()).expect("it can be checked");
    assert!(checked.findings.is_empty() && checked.lost.is_empty(), "{:?}", checked.findings);
}
