//! What several tests share: disks that look like file systems, contexts, regions in memory.
#![allow(dead_code, unused_imports, unused_macros, reason = "every test uses a part of it")]

pub mod made;
pub mod mounted;
pub mod place;

use imgstore::disk::{DiskError, DiskRead, DiskWrite, Extent, FileWrite};
use imgstore::io::memory::Memory;
use imgstore::model::account::{AccountId, Permission};
use imgstore::model::catalog::Catalog;
use imgstore::model::ids::{ImageId, SessionId, SnapshotId};
use imgstore::model::image::Image;
use imgstore::model::objects::ManifestRecord;
use imgstore::model::words::Architecture;
use imgstore::ops::context::{Context, Unwatched};
use imgstore::ops::copy::{CopyOptions, CopyWhat, apply, plan};
use imgstore::ops::encode::Compression;
use imgstore::ops::error::OpsError;
use imgstore::ops::export;
use imgstore::ops::find::AnyId;
use imgstore::ops::gaps::Gaps;
use imgstore::ops::import::{ImportDisk, import, import_template};
use imgstore::ops::ingest::ingest;
use imgstore::ops::launch::{LaunchOptions, Launched, launch};
use imgstore::ops::modify::{PermissionChange, share_image};
use imgstore::ops::register::ImageOptions;
use imgstore::ops::snapshot::{SnapshotOptions, Taken, snapshot};
use imgstore::region::{Region, RegionOptions};
use rayon::ThreadPool;
use std::io::Write;
use std::sync::{Arc, Mutex};

/// Says that a test, or a part of it, is left out, and why. `cargo test` shows that of what fails only; so it is also
/// a line of the file that `IMGSTORE_SKIPPED` names, which `.ci/run` counts and shows.
#[allow(clippy::print_stdout, reason = "what is left out is said")]
pub fn skipped(why: impl std::fmt::Display) {
    let test = std::thread::current().name().unwrap_or("a thread").to_owned();
    println!("skipped: {test}: {why}");
    if let Some(file) = std::env::var_os("IMGSTORE_SKIPPED") {
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(file).unwrap();
        // In one piece: others write beside.
        file.write_all(format!("{test}: {why}\n").as_bytes()).unwrap();
    }
}

/// A generator whose draws are the same for the same seed.
#[derive(Clone)]
pub struct Draw(u64);

impl Draw {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 16) as usize % bound.max(1)
    }
}

/// Bytes that look like a file system's: files of words or noise that end in zeros up to the block's end,
/// short and long runs of zeros between them.
pub fn volume(len: usize, seed: u64) -> Vec<u8> {
    let mut draw = Draw::new(seed);
    let mut bytes = Vec::with_capacity(len + (1 << 17));
    while bytes.len() < len {
        match draw.below(10) {
            0 => bytes.resize(bytes.len() + 4096 * (1 + draw.below(3)), 0),
            1 => bytes.resize(bytes.len() + 4096 * (4 + draw.below(60)), 0),
            kind => {
                let file_len = 1 + draw.below(200_000);
                let end = bytes.len() + file_len;
                let mut words = Draw::new(draw.next());
                while bytes.len() < end {
                    let word = words.next();
                    if kind < 4 {
                        bytes.extend(word.to_le_bytes());
                    } else {
                        bytes.extend(WORDS[word as usize % WORDS.len()].as_bytes());
                    }
                }
                bytes.truncate(end);
                bytes.resize(bytes.len().div_ceil(4096) * 4096, 0);
            }
        }
    }
    bytes.truncate(len);
    bytes
}

const WORDS: [&str; 12] = [
    "volume ",
    "snapshot ",
    "image ",
    "region ",
    "chunk ",
    "pack\n",
    "block ",
    "root=/dev/xvda ",
    "#!/bin/sh\n",
    "0x7f454c46 ",
    "GET /index.html 200 ",
    "lib",
];

/// A disk in memory. Its holes are runs of zeros of at least `hole_blocks` blocks.
pub struct MemoryDisk {
    pub bytes: Vec<u8>,
    pub hole_blocks: usize,
}

impl MemoryDisk {
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, hole_blocks: 1 }
    }
}

impl DiskRead for MemoryDisk {
    fn len_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn extent_at(&self, offset: u64) -> Result<Extent, DiskError> {
        let at = offset as usize;
        let is_zero = |block: &[u8]| block.iter().all(|&byte| byte == 0);
        let mut blocks = self.bytes[at..].chunks(4096);
        let zeros = blocks.by_ref().take_while(|block| is_zero(block)).count();
        let len = self.bytes.len();
        if zeros >= self.hole_blocks && self.hole_blocks > 0 {
            return Ok(Extent { start: offset, end: (at + zeros * 4096).min(len) as u64, is_zero: true });
        }
        let data = self.bytes[at..].chunks(4096).skip(zeros).take_while(|block| !is_zero(block)).count();
        Ok(Extent { start: offset, end: (at + (zeros + data.max(1)) * 4096).min(len) as u64, is_zero: false })
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        buffer.copy_from_slice(&self.bytes[offset as usize..offset as usize + buffer.len()]);
        Ok(())
    }
}

/// A target that keeps what it was given. It is filled with `0xAA`, so that what nobody wrote is seen.
#[derive(Clone)]
pub struct MemoryTarget(pub Arc<Mutex<Vec<u8>>>);

impl MemoryTarget {
    pub fn new(len: u64) -> Self {
        Self(Arc::new(Mutex::new(vec![0xaa; len as usize])))
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().clone()
    }
}

impl DiskWrite for MemoryTarget {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.0.lock().unwrap()[offset as usize..offset as usize + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn zero_at(&mut self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.0.lock().unwrap()[offset as usize..(offset + len) as usize].fill(0);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<(), DiskError> {
        Ok(())
    }
}

/// A file in the making that lies in memory.
#[derive(Clone, Default)]
pub struct MemoryFile(pub Arc<Mutex<Vec<u8>>>);

impl MemoryFile {
    pub fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().clone()
    }
}

impl FileWrite for MemoryFile {
    fn put_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        let mut file = self.0.lock().unwrap();
        let start = offset as usize;
        let len = file.len().max(start + bytes.len());
        file.resize(len, 0);
        file[start..start + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn close(self: Box<Self>) -> Result<(), DiskError> {
        Ok(())
    }
}

/// Writes a disk as a restore does: from blocks of 4 KiB on, in pieces of any length, zeros as writes, as
/// ranges, or not at all.
pub fn write_in_pieces(mut target: Box<dyn DiskWrite + '_>, bytes: &[u8], draw: &mut Draw) {
    let mut at = 0;
    while at < bytes.len() {
        let most = [1, 20, 300, 2048][draw.below(4)];
        let end = bytes.len().min(at + 4096 * (1 + draw.below(most)));
        let piece = &bytes[at..end];
        match draw.below(3) {
            0 if piece.iter().all(|&byte| byte == 0) => {}
            1 if piece.iter().all(|&byte| byte == 0) => {
                target.zero_at(at as u64, piece.len() as u64).unwrap();
            }
            _ => target.write_at(at as u64, piece).unwrap(),
        }
        at = end;
    }
    target.finish().unwrap();
}

/// The time at which tests happen unless they say otherwise: 2026-11-21T00:00:00Z.
pub const NOW_MS: u64 = 1_795_219_200_000;

/// Who asks, and with which means.
pub struct Caller {
    pub account: AccountId,
    pub pool: ThreadPool,
    pub memory_bytes: u64,
    /// The time of requests.
    pub now_ms: u64,
}

impl Caller {
    pub fn new(threads: usize) -> Self {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        Self { account: AccountId::from_random(1), pool, memory_bytes: 64 << 20, now_ms: NOW_MS }
    }

    pub fn context(&self) -> Context<'_> {
        Context {
            account: self.account,
            now_ms: self.now_ms,
            dry_run: false,
            pool: &self.pool,
            memory_bytes: self.memory_bytes,
            progress: &Unwatched,
        }
    }

    pub fn snapshot(&self, region: &Region, disk: &dyn DiskRead) -> Result<Taken, OpsError> {
        snapshot(region, disk, &SnapshotOptions::default(), &self.context())
    }

    /// The bytes of a snapshot, without the pipeline and its threads: for tests that read back a million times.
    pub fn read_directly(&self, region: &Region, id: SnapshotId) -> Result<Vec<u8>, OpsError> {
        let catalog = region.catalog()?;
        let Some(snapshot) = catalog.snapshots.get(&id) else { panic!("{id} is not listed") };
        self.read_content(region, &snapshot.manifest)
    }

    /// The bytes that a block map stands for.
    pub fn read_content(&self, region: &Region, manifest: &ManifestRecord) -> Result<Vec<u8>, OpsError> {
        let map = region.load_map(manifest)?;
        let ids: Vec<_> = map.chunks().iter().map(|chunk| chunk.id).collect();
        let mut bytes = vec![0; map.volume_bytes() as usize];
        if ids.is_empty() {
            return Ok(bytes);
        }
        let fetched = region.fetch(&ids)?;
        for frame in fetched.frames() {
            let mut raw = vec![0; fetched.raw_bytes(frame)];
            fetched.decode(region, frame, &mut raw)?;
            let chunk = &map.chunks()[frame.wanted];
            assert_eq!(raw.len(), usize::from(chunk.blocks) * 4096, "{}: its length", manifest.name);
            let start = chunk.start_block as usize * 4096;
            let end = (start + raw.len()).min(bytes.len());
            bytes[start..end].copy_from_slice(&raw[..end - start]);
        }
        Ok(bytes)
    }

    /// The bytes of a snapshot.
    pub fn read_back(&self, region: &Region, id: SnapshotId) -> Result<Vec<u8>, OpsError> {
        self.read_with(region, id, None)
    }

    /// The bytes of a snapshot; with gaps, zeros where they are lost.
    pub fn read_with(
        &self,
        region: &Region,
        id: SnapshotId,
        gaps: Option<&Gaps>,
    ) -> Result<Vec<u8>, OpsError> {
        let catalog = region.catalog()?;
        let root = export::select(&catalog, AnyId::Snapshot(id), None, &self.context())?;
        let map = export::load(region, &root)?;
        let target = MemoryTarget::new(map.volume_bytes());
        export::export(
            region,
            &root,
            &map,
            map.volume_bytes(),
            gaps,
            Box::new(target.clone()),
            &self.context(),
        )?;
        Ok(target.bytes())
    }
}

/// An image of these disks, the first of which is its root.
pub fn import_disks(region: &Region, caller: &Caller, name: &str, disks: Vec<Vec<u8>>) -> Image {
    let disks: Vec<_> = disks
        .into_iter()
        .zip(["/dev/xvda", "/dev/xvdb", "/dev/xvdc"])
        .map(|(bytes, device)| ImportDisk {
            device_name: device.into(),
            disk: Box::new(MemoryDisk::new(bytes)),
        })
        .collect();
    import(
        region,
        &disks,
        &[],
        &ImageOptions::named(name, Architecture::X86_64),
        Compression::default(),
        &caller.context(),
    )
    .unwrap()
    .image
}

/// A command without the environment of whoever runs the tests, but for what `tests/measure/coverage` and
/// `tests/measure/mutants` tell the program through it.
pub fn clean(mut command: std::process::Command) -> std::process::Command {
    command.env_clear();
    for name in ["LLVM_PROFILE_FILE", "IMGSTORE_MUTANT", "IMGSTORE_MUTANTS_SEEN"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
}

/// The manifest of a disk as the cutter makes it that knows nothing of other snapshots.
pub fn read_whole(caller: &Caller, region: &Region, disk: &dyn DiskRead) -> ManifestRecord {
    let mut session = region.begin(provider()).unwrap();
    ingest(&mut session, disk, &Compression::default(), &caller.context()).unwrap().manifest
}

/// The account that makes the tests' regions.
pub fn provider() -> AccountId {
    AccountId::from_random(1)
}

/// A session name that is used once.
pub fn session() -> SessionId {
    SessionId(imgstore::io::clock::random_bytes().unwrap())
}

/// Methods of `Storage` that a wrapper leaves to the storage that is its `inner`.
macro_rules! pass_on {
    (@create) => {
        fn create(&self, name: &str, parts: &[&[u8]]) -> Result<Created, StorageError> {
            self.inner.create(name, parts)
        }
    };
    (@list) => {
        fn list(&self, folder: &str) -> Result<Vec<Listed>, StorageError> {
            self.inner.list(folder)
        }
    };
    (@restore) => {
        fn restore(&self, name: &str, bytes: &[u8]) -> Result<(), StorageError> {
            self.inner.restore(name, bytes)
        }
    };
    (@delete) => {
        fn delete(&self, name: &str) -> Result<(), StorageError> {
            self.inner.delete(name)
        }
    };
    (@persist) => {
        fn persist(&self, folder: &str) -> Result<(), StorageError> {
            self.inner.persist(folder)
        }
    };
    (@admit_writer) => {
        fn admit_writer(&self) -> Result<(), StorageError> {
            self.inner.admit_writer()
        }
    };
    (@admit_collector) => {
        fn admit_collector(&self) -> Result<bool, StorageError> {
            self.inner.admit_collector()
        }
    };
    (@is_writer_gone) => {
        fn is_writer_gone(&self, writer: &str) -> Result<bool, StorageError> {
            self.inner.is_writer_gone(writer)
        }
    };
    ($($method:ident)+) => {
        $($crate::common::pass_on!(@$method);)+
    };
}
pub(crate) use pass_on;

/// What an operation tells of itself.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Told {
    Begun,
    Advanced,
}

/// Does something whenever an operation tells that it begins or went on.
pub struct Meanwhile<F>(pub F);

impl<F: Fn(Told) + Send + Sync> imgstore::ops::context::Progress for Meanwhile<F> {
    fn begin(&self, _: &'static str, _: u64) {
        (self.0)(Told::Begun);
    }
    fn advance(&self, _: u64) {
        (self.0)(Told::Advanced);
    }
    fn note(&self, _: &str) {}
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// Text that compresses to about half, and the same with a word changed now and then, which is stored as deltas.
pub fn alike(len: usize) -> [Vec<u8>; 2] {
    let mut draw = Draw::new(5);
    let mut text: Vec<u8> = Vec::new();
    while text.len() < len {
        text.extend(format!("{:x} ", draw.next()).bytes());
    }
    text.truncate(len);
    let mut changed = text.clone();
    for at in (100..len - 10).step_by(3000) {
        changed[at..at + 7].copy_from_slice(b"changed");
    }
    [text, changed]
}

/// Options of a region whose packs are small, so that small disks fill several.
pub fn small_packs() -> RegionOptions {
    RegionOptions { pack_bytes: 64 << 10, ..RegionOptions::named("test", provider()) }
}

/// A region in memory.
pub fn memory_region(storage: &Memory, options: &RegionOptions) -> Region {
    Region::create(Arc::new(storage.clone()), session(), options).unwrap()
}

/// A region in memory, accounts, and a place for disks: for tests of rules.
pub struct Rules {
    pub region: Region,
    pub storage: Memory,
    pub owner: Caller,
    pub friend: Caller,
    pub stranger: Caller,
    pub disks: tempfile::TempDir,
}

impl Rules {
    pub fn new() -> Self {
        let caller = |number| Caller { account: AccountId::from_random(number), ..Caller::new(1) };
        let storage = Memory::new();
        Self {
            region: memory_region(&storage, &small_packs()),
            storage,
            owner: caller(1),
            friend: caller(2),
            stranger: caller(3),
            disks: tempfile::tempdir().unwrap(),
        }
    }

    /// An image of the owner's with these disks, `/dev/xvda` and the letters after it.
    pub fn import(&self, name: &str, disks: &[Vec<u8>]) -> Image {
        let disk = |(bytes, letter): (&Vec<u8>, char)| ImportDisk {
            device_name: format!("/dev/xvd{letter}"),
            disk: Box::new(MemoryDisk::new(bytes.clone())),
        };
        let disks: Vec<_> = disks.iter().zip('a'..).map(disk).collect();
        let options = ImageOptions::named(name, Architecture::X86_64);
        import(&self.region, &disks, &[], &options, Compression::default(), &self.owner.context())
            .unwrap()
            .image
    }

    /// An image of the owner's with one small disk.
    pub fn image(&self, name: &str) -> Image {
        self.import(name, &[volume(30_000, 1)])
    }

    /// An instance-store-backed image of the owner's.
    pub fn template(&self, name: &str) -> Image {
        let disk = MemoryDisk::new(volume(30_000, 5));
        let options = ImageOptions::named(name, Architecture::X86_64);
        import_template(&self.region, &disk, &[], &options, Compression::default(), &self.owner.context())
            .unwrap()
            .image
    }

    /// One instance of an image, as a caller launches it.
    pub fn launch(&self, id: ImageId, caller: &Caller) -> Result<Launched, OpsError> {
        let options = LaunchOptions::one(self.disks.path());
        launch(&self.region, id, &options, &caller.context()).map(|mut launched| launched.remove(0))
    }

    /// Shares an image, and on demand its snapshots, by its owner.
    pub fn share(&self, id: ImageId, whom: Permission, snapshots: bool) -> Result<(), OpsError> {
        let change = PermissionChange { add: vec![whom], remove: vec![] };
        share_image(&self.region, id, &change, snapshots, &self.owner.context()).map(drop)
    }

    /// Copies an image within the region.
    pub fn copy(&self, id: ImageId, name: &str, caller: &Caller) -> Result<Image, OpsError> {
        let options = CopyOptions { name: Some(name.into()), ..CopyOptions::default() };
        let what = CopyWhat::Image(id);
        let plan = plan(&self.region, &self.region, what, &options, &caller.context())?;
        let copied = apply(&self.region, &self.region, &plan, &options, &caller.context())?;
        Ok(copied.image.unwrap())
    }

    pub fn catalog(&self) -> Catalog {
        self.region.catalog().unwrap()
    }
}

/// EC2's code of an error, or nothing.
pub fn code<T>(result: Result<T, OpsError>) -> Result<(), &'static str> {
    result.map(drop).map_err(|error| error.code())
}

/// Text that compresses to about half, without zeros and without repetitions.
pub fn text(len: usize, seed: u64) -> Vec<u8> {
    let mut draw = Draw::new(seed);
    let mut bytes = Vec::with_capacity(len + 16);
    while bytes.len() < len {
        bytes.extend(format!("{:x} ", draw.next()).bytes());
    }
    bytes.truncate(len);
    bytes
}

/// The same with a word changed every so many bytes: no chunk is as it was.
pub fn changed(bytes: &[u8], every: usize) -> Vec<u8> {
    let mut changed = bytes.to_vec();
    for at in (100..bytes.len() - 10).step_by(every) {
        changed[at..at + 7].copy_from_slice(b"changed");
    }
    changed
}
