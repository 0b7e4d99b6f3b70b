//! Layer 4: one place that holds images. A region is immutable objects and one create-only log.
//!
//! [`Region`] is a handle on it: opening replays the log, [`Region::commit`] appends to it. A [`session`]
//! stores chunks; [`fetch`] reads them. [`audit`] gives `verify` and `stats` the raw material. The protocol
//! is in docs/ARCHITECTURE.md; what the bytes are, in docs/FORMAT.md.

pub mod audit;
pub mod bases;
mod catch_up;
pub mod collect;
mod compact;
pub mod doubles;
pub mod error;
pub mod fetch;
mod gathered;
mod intact;
mod log;
pub mod losses;
pub mod mend;
pub mod moving;
pub mod orphans;
mod place;
mod reach;
mod rebase;
pub mod salvage;
pub mod session;
pub mod similar;

use crate::chunk::frame::CodecPool;
use crate::format::entry::Entry;
use crate::format::{manifest, record, region as region_file};
use crate::io::clock::{now_ms, random_bytes, random_u64};
use crate::io::directory::{Directory, DirectoryOptions};
use crate::io::os::OsFiles;
use crate::io::storage::{Created, Storage, read_whole};
use crate::model::account::AccountId;
use crate::model::blockmap::BlockMap;
use crate::model::catalog::{Catalog, Root};
use crate::model::ids::{ObjectHash, RegionId, SessionId};
use crate::model::objects::{ListName, ManifestRecord, PackName, SegmentName};
use crate::model::op::{Author, Op};
use crate::model::region::{ChunkerParams, RegionHeader};
use crate::pack::error::PackError;
use crate::pack::index::Index;
use crate::pack::read::PackReader;
use error::RegionError;
use log::{Head, Race};
use place::Place;
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The region file's name.
pub const REGION_FILE: &str = "region";
/// Largest region file.
const REGION_FILE_BYTES_MAX: u64 = 64 << 10;
/// What a new region shall be.
#[derive(Debug, Clone)]
pub struct RegionOptions {
    /// Its name.
    pub name: String,
    /// The account that makes it: its provider.
    pub provider: AccountId,
    /// Where its chunker cuts.
    pub chunker: ChunkerParams,
    /// Default zstd level.
    pub zstd_level: u8,
    /// Bytes from which on a pack is sealed.
    pub pack_bytes: u32,
}

impl RegionOptions {
    /// The defaults, under a name.
    pub fn named(name: &str, provider: AccountId) -> Self {
        let (name, chunker) = (name.to_owned(), ChunkerParams::DEFAULT);
        Self { name, provider, chunker, zstd_level: 3, pack_bytes: 32 << 20 }
    }
}

/// A handle on a region. Clones share it.
#[derive(Clone)]
pub struct Region(Arc<Inner>);

struct Inner {
    storage: Arc<dyn Storage>,
    header: RegionHeader,
    header_hash: ObjectHash,
    /// This handle as a writer.
    session: SessionId,
    /// Numbers of objects that this handle names, each used once.
    next_number: AtomicU64,
    head: Mutex<Head>,
    index: Mutex<CachedIndex>,
    reader: PackReader,
    codecs: CodecPool,
    presence: Mutex<Presence>,
    /// None if it is in no directory.
    place: Mutex<Option<Place>>,
}

/// Packs that were looked for: a segment still lists what was lost.
#[derive(Default)]
struct Presence {
    /// Those that were there.
    opened: HashSet<PackName>,
    /// Whether one was there with all that its deltas need.
    can_be_used: HashMap<PackName, bool>,
    /// Those of them that were not.
    lost: Arc<HashSet<PackName>>,
}

impl Presence {
    /// Notes whether a pack can be used; what was known before.
    fn note(&mut self, pack: PackName, can_be: bool) -> Option<bool> {
        if can_be == self.lost.contains(&pack) {
            let lost = Arc::make_mut(&mut self.lost);
            if can_be {
                lost.remove(&pack)
            } else {
                lost.insert(pack)
            };
        }
        self.can_be_used.insert(pack, can_be)
    }
}

#[derive(Default)]
struct CachedIndex {
    index: Arc<Index>,
    /// The log position that it is for; none before the first use.
    sequence: Option<u64>,
    /// Trailers of packs that this handle wrote, so that they need not be read back.
    written: HashMap<PackName, Arc<Vec<Entry>>>,
    bad_segments: HashSet<SegmentName>,
    /// Whether packs in quarantine that a device did not give are asked for again.
    asks_silent: bool,
}

/// The storage of a directory region at `root`, with a fresh writer's name; and that name.
pub fn directory_storage(
    root: &Path,
    options: DirectoryOptions,
) -> Result<(Directory<OsFiles>, SessionId), RegionError> {
    let session = SessionId(random_bytes().map_err(RegionError::Random)?);
    Ok((Directory::new(OsFiles, root, session.to_string(), options), session))
}

impl Region {
    /// Makes a region in a directory that has none; missing directories are made.
    pub fn create_directory(
        root: &Path,
        options: &RegionOptions,
        directory: DirectoryOptions,
    ) -> Result<Self, RegionError> {
        let (storage, session) = directory_storage(root, directory)?;
        storage.initialize()?;
        Ok(Self::create(Arc::new(storage), session, options)?.placed(root))
    }

    /// Opens the region in a directory.
    pub fn open_directory(root: &Path, directory: DirectoryOptions) -> Result<Self, RegionError> {
        let (storage, session) = directory_storage(root, directory)?;
        Ok(Self::open(Arc::new(storage), session)?.placed(root))
    }

    fn placed(self, root: &Path) -> Self {
        *self.place() = Place::new(root);
        self
    }

    fn place(&self) -> MutexGuard<'_, Option<Place>> {
        self.0.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a region in a storage that has none.
    pub fn create(
        storage: Arc<dyn Storage>,
        session: SessionId,
        options: &RegionOptions,
    ) -> Result<Self, RegionError> {
        let header = RegionHeader {
            id: RegionId(random_bytes().map_err(RegionError::Random)?),
            name: options.name.clone(),
            provider: options.provider,
            created_ms: now_ms(),
            chunker: options.chunker,
            zstd_level: options.zstd_level,
            pack_bytes: options.pack_bytes,
        };
        let (bytes, _) = region_file::encode(&header).map_err(|e| RegionError::damaged(REGION_FILE, e))?;
        match storage.create(REGION_FILE, &[&bytes])? {
            Created::New => {
                storage.leave_twin(REGION_FILE, &[&bytes]);
                Self::open(storage, session)
            }
            Created::Existed => Err(RegionError::Exists),
        }
    }

    /// Opens the region in a storage as writer `session`, which nobody else is.
    pub fn open(storage: Arc<dyn Storage>, session: SessionId) -> Result<Self, RegionError> {
        let bytes = read_whole(&*storage, REGION_FILE, REGION_FILE_BYTES_MAX)
            .map_err(|e| if e.is_not_found() { RegionError::NotARegion } else { e.into() })?;
        let (header, header_hash) =
            region_file::decode(&bytes).map_err(|e| RegionError::damaged(REGION_FILE, e))?;
        let head = Head::open(&*storage, header_hash)?;
        let reader = PackReader::new(storage.clone());
        Ok(Self(Arc::new(Inner {
            storage,
            header,
            header_hash,
            session,
            next_number: AtomicU64::new(0),
            head: Mutex::new(head),
            index: Mutex::default(),
            reader,
            codecs: CodecPool::new(),
            presence: Mutex::default(),
            place: Mutex::default(),
        })))
    }

    /// What the region says of itself.
    pub fn header(&self) -> &RegionHeader {
        &self.0.header
    }

    /// What exists now: the log replayed to its tail. Cheap to clone.
    pub fn catalog(&self) -> Result<Catalog, RegionError> {
        let mut head = self.head();
        head.advance(&*self.0.storage)?;
        Ok(head.catalog().clone())
    }

    /// The state that this handle knows, as of its last look at the log or its last commit. Reads nothing, so that what was done can
    /// be told whatever comes after it.
    pub fn known_catalog(&self) -> Catalog {
        self.head().catalog().clone()
    }

    /// The number of a record that was written behind the log's end and is lost, as its twin says; none as a rule. What is
    /// there can be read without it, and nothing can be written before repair has put it back.
    pub fn lost_record(&self) -> Option<u64> {
        let head = self.head();
        head.has_lost_next(&*self.0.storage).then(|| head.position().sequence + 1)
    }

    /// Refuses what would append a record, as that would, where the next one is lost: for who only asks.
    pub fn check_appendable(&self) -> Result<(), RegionError> {
        let head = self.head();
        if head.has_lost_next(&*self.0.storage) { Err(head.lost_next()) } else { Ok(()) }
    }

    /// 64 random bits for a new id.
    pub fn random_id(&self) -> Result<u64, RegionError> {
        random_u64().map_err(RegionError::Random)
    }

    /// Appends one record of what `build` makes of the state at the log's tail, and returns when it is
    /// durable. If another writer is faster, `build` sees the new state. If it gives no operations nothing
    /// is appended, and the state that it saw is durable, and that of the region that is in this place. `build` must not use
    /// this region: the log is held.
    pub fn commit<T, E: From<RegionError>>(
        &self,
        account: AccountId,
        mut build: impl FnMut(&Catalog) -> Result<(Vec<Op>, T), E>,
    ) -> Result<T, E> {
        let author = Author { account, session: self.0.session };
        let mut head = self.head();
        for attempt in 0.. {
            head.advance(&*self.0.storage)?;
            head.persist(&*self.0.storage).map_err(RegionError::from)?;
            let (ops, answer) = build(head.catalog())?;
            if ops.is_empty() {
                // Something may be deleted or answered by it: another region may be in the place of this one by now.
                head.check_place(&*self.0.storage)?;
                return Ok(answer);
            }
            match head.append(&*self.0.storage, author, ops, || self.list_name())? {
                Race::Won => return Ok(answer),
                Race::Lost => log::back_off(attempt),
            }
        }
        unreachable!("the loop ends by returning")
    }

    /// Sees to it that the log has a record: a log without one where block maps are is one that is lost.
    fn begin_log(&self, account: AccountId) -> Result<(), RegionError> {
        if self.catalog()?.sequence > 0 {
            return Ok(());
        }
        self.commit(account, |catalog| {
            let is_begun = catalog.sequence > 0;
            Ok((if is_begun { vec![] } else { vec![Op::NoOp] }, ()))
        })
    }

    /// A manifest's block map, checked against the log's hash.
    pub fn load_map(&self, manifest: &ManifestRecord) -> Result<BlockMap, RegionError> {
        let name = manifest.name.to_string();
        let damaged = |e| RegionError::damaged(&name, e);
        let bytes = read_whole(&*self.0.storage, &name, manifest.len.min(manifest::BYTES_MAX))?;
        let (map, hash) = manifest::decode(&bytes).map_err(damaged)?;
        if hash != manifest.hash {
            let (expected, found) = (manifest.hash, hash);
            return Err(damaged(crate::format::error::FormatError::Identity {
                what: "manifest",
                expected,
                found,
            }));
        }
        Ok(map)
    }

    /// The block map of something whose content must stay: asked for again where a device failed, and under the name that it has now
    /// where a repair has put another in its place since `root` was read.
    pub fn load_root(&self, root: &Root<'_>) -> Result<BlockMap, RegionError> {
        let gone = match self.load_map(root.manifest) {
            Err(error) if error.is_failed_read() => return self.load_map(root.manifest),
            Err(error) if error.is_not_found() => error,
            loaded => return loaded,
        };
        // What cannot be told of now is as it was known to be.
        let Ok(now) = self.catalog() else { return Err(gone) };
        match now.roots().find(|there| there.id == root.id) {
            Some(there) if there.manifest.name != root.manifest.name => self.load_map(there.manifest),
            _ => Err(gone),
        }
    }

    /// Where chunks are, for the state at the log's tail.
    pub(crate) fn index(&self) -> Result<Arc<Index>, RegionError> {
        let catalog = self.catalog()?;
        let mut cached = self.cached_index();
        // Another thread may have seen more meanwhile: what was replaced since is not there to go back to.
        if cached.sequence.is_none_or(|sequence| sequence < catalog.sequence) {
            self.rebuild_index(&mut cached, &catalog);
        }
        Ok(cached.index.clone())
    }

    /// Where chunks are, for a state of the log.
    fn index_of(&self, catalog: &Catalog) -> Arc<Index> {
        let mut cached = self.cached_index();
        if cached.sequence != Some(catalog.sequence) {
            self.rebuild_index(&mut cached, catalog);
        }
        cached.index.clone()
    }

    /// Runs a look-up; if a segment turns out damaged, leaves it out and runs it again.
    pub(crate) fn with_index<T>(
        &self,
        mut look_up: impl FnMut(&Index) -> Result<T, PackError>,
    ) -> Result<T, RegionError> {
        loop {
            let index = self.index()?;
            match look_up(&index) {
                // Another thread may have been faster.
                Err(PackError::Damaged { name, .. })
                    if self.leave_out_segment(&name) || !self.index()?.has_segment(&name) => {}
                result => return Ok(result?),
            }
        }
    }

    /// Leaves an index segment out if an error says that it is damaged, and it was not left out yet; whether it was that.
    pub(crate) fn leaves_out(&self, error: &RegionError) -> bool {
        matches!(error, RegionError::Pack(PackError::Damaged { name, .. }) if self.leave_out_segment(name))
    }

    fn leave_out_segment(&self, name: &str) -> bool {
        let Some(segment) = SegmentName::parse(name) else { return false };
        let mut cached = self.cached_index();
        let is_new = cached.bad_segments.insert(segment);
        if is_new {
            forget_index(&mut cached);
        }
        is_new
    }

    /// Asks again for packs that a device did not give when the index was made, if there are any: it may have failed once. For
    /// who is about to say that something is lost.
    pub fn look_again(&self) -> Result<(), RegionError> {
        let index = self.index()?;
        let asks_silent = index.asks_silent();
        if asks_silent || index.unreadable().iter().any(|pack| pack.error.is_io()) {
            // What could be read stays.
            let mut cached = self.cached_index();
            cached.sequence = None;
            cached.asks_silent |= asks_silent;
        }
        Ok(())
    }

    /// Makes the index anew from nothing: what could not be read a while ago may be there.
    fn forget_index(&self) {
        forget_index(&mut self.cached_index());
    }

    fn rebuild_index(&self, cached: &mut CachedIndex, catalog: &Catalog) {
        let index = Index::refresh(
            &cached.index,
            &cached.written,
            &*self.0.storage,
            self.0.header.id,
            catalog,
            &cached.bad_segments,
            std::mem::take(&mut cached.asks_silent),
        );
        cached.written.retain(|pack, _| index.loose().contains_key(pack));
        cached.index = Arc::new(index);
        cached.sequence = Some(catalog.sequence);
    }

    fn remember_trailer(&self, pack: PackName, entries: Arc<Vec<Entry>>) {
        self.cached_index().written.insert(pack, entries);
    }

    fn next_number(&self) -> u64 {
        self.0.next_number.fetch_add(1, Ordering::Relaxed)
    }

    fn list_name(&self) -> ListName {
        ListName { session: self.0.session, number: self.next_number() }
    }

    fn head(&self) -> MutexGuard<'_, Head> {
        self.0.head.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cached_index(&self) -> MutexGuard<'_, CachedIndex> {
        self.0.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Limits that readers of the log apply.
const RECORD_BYTES_MAX: u64 = (record::INLINE_BYTES_MAX as u64) + (64 << 10);

fn forget_index(cached: &mut CachedIndex) {
    cached.sequence = None;
    cached.index = Arc::default();
}
