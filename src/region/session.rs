//! A session: one writer's chunks on their way into packs.
//!
//! The caller asks which chunks are new, encodes those, and puts their frames; a thread writes full packs
//! and registers them, so that what is stored survives an interruption. Nothing refers to a chunk before its
//! pack is durable and registered: [`Session::flush`] waits for that.

use super::Region;
use super::compact::Compaction;
use super::error::RegionError;
use super::fetch::Used;
use crate::chunk::frame::Frame;
use crate::format::manifest;
use crate::io::storage::{Created, read_whole};
use crate::model::account::AccountId;
use crate::model::blockmap::BlockMap;
use crate::model::catalog::Catalog;
use crate::model::ids::{ChunkId, ObjectHash};
use crate::model::objects::{ManifestName, ManifestRecord, PackName};
use crate::model::op::Op;
use crate::pack::build::{PackBuilder, SealedPack};
use crate::pack::error::PackError;
use crate::pack::index::{Filters, Index, Location};
use crossbeam_channel::{Receiver, Sender, bounded};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::thread::JoinHandle;

/// Fresh chunks that are remembered by the session itself; beyond it, the index is asked for those whose
/// packs are registered.
const FRESH_CHUNKS_MAX: usize = 256 << 10;

/// One writer's chunks on their way into packs.
pub struct Session {
    region: Region,
    account: AccountId,
    /// Where chunks are, from when this was last asked for.
    index: Option<Arc<Index>>,
    /// Chunks that this session put or is about to put, beside those that `index` knows.
    fresh: HashMap<ChunkId, Placed>,
    /// Packs that are being emptied: no base is looked for in them.
    avoided: HashSet<PackName>,
    /// What its packs say of the effort that went into them.
    effort: u8,
    open: Option<PackBuilder>,
    writer: Option<PackWriter>,
    /// Packs that are written get a segment meanwhile.
    compaction: Option<Compaction>,
    /// Packs that the chunks asked about are in.
    used: Used,
    stored_bytes: u64,
    /// Manifests that this session wrote.
    written: Vec<ManifestRecord>,
    /// Manifests of others that it found and took.
    shared: Vec<ManifestRecord>,
    /// Chunks that `reserve` said are new and that were not put yet.
    awaited: HashSet<ChunkId>,
    /// A step failed: what was put may be lost, so nothing may be built on it.
    has_failed: bool,
    /// Buffers of packs that were written.
    spare: (Sender<Vec<u8>>, Receiver<Vec<u8>>),
}

/// Where a chunk is that this session puts.
#[derive(Debug, Clone, Copy)]
enum Placed {
    /// Nowhere yet.
    Awaited,
    /// As a delta.
    Delta,
    /// As a plain frame in this session's pack of that number.
    Plain(u64),
}

struct PackWriter {
    queue: Sender<SealedPack>,
    thread: JoinHandle<Result<(), RegionError>>,
}

impl Region {
    /// Opens a session for storing on behalf of `account`. Refused where the storage is nearly full.
    pub fn begin(&self, account: AccountId) -> Result<Session, RegionError> {
        let mut session = self.begin_unread(account)?;
        session.index()?;
        Ok(session)
    }

    /// As [`Region::begin`]. Where chunks are is read when it is first asked for, which can be meanwhile.
    pub fn begin_unread(&self, account: AccountId) -> Result<Session, RegionError> {
        self.0.storage.admit_writer()?;
        Ok(Session {
            region: self.clone(),
            account,
            index: None,
            fresh: HashMap::new(),
            avoided: HashSet::new(),
            effort: 0,
            open: None,
            writer: None,
            compaction: None,
            used: Used::default(),
            stored_bytes: 0,
            written: Vec::new(),
            shared: Vec::new(),
            awaited: HashSet::new(),
            has_failed: false,
            spare: bounded(2),
        })
    }

    /// The record of a manifest with these bytes, if something names it and it can be read.
    pub fn known_manifest(&self, catalog: &Catalog, hash: &ObjectHash) -> Option<ManifestRecord> {
        known_where(catalog, hash, |known| self.load_map(known).is_ok())
    }

    /// The same for bytes that are at hand.
    fn known_with(&self, catalog: &Catalog, hash: &ObjectHash, bytes: &[u8]) -> Option<ManifestRecord> {
        let limit = bytes.len() as u64;
        known_where(catalog, hash, |known| {
            read_whole(&*self.0.storage, &known.name.to_string(), limit).is_ok_and(|there| there == bytes)
        })
    }

    /// Writes and registers packs until the queue is closed.
    fn write_packs(
        &self,
        account: AccountId,
        queue: &Receiver<SealedPack>,
        spare: &Sender<Vec<u8>>,
    ) -> Result<(), RegionError> {
        for pack in queue {
            let SealedPack { bytes, record, entries } = pack;
            let name = record.name;
            if self.0.storage.create(&name.to_string(), &[&bytes])? == Created::Existed {
                return Err(RegionError::NameReused(name.to_string()));
            }
            // Fresh memory costs more than it seems: the next pack is filled where this one was.
            let _ = spare.try_send(bytes);
            self.remember_trailer(name, entries);
            self.commit::<(), RegionError>(account, |_| Ok((vec![Op::RegisterPack(record.clone())], ())))?;
        }
        Ok(())
    }
}

fn known_where(
    catalog: &Catalog,
    hash: &ObjectHash,
    is_whole: impl Fn(&ManifestRecord) -> bool,
) -> Option<ManifestRecord> {
    let same = catalog.roots().map(|root| root.manifest).filter(|known| known.hash == *hash);
    let mut seen = BTreeSet::new();
    let mut once = same.filter(|known| seen.insert(known.name));
    once.find(|known| is_whole(known)).cloned()
}

impl Session {
    /// The region that is written to.
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// For each chunk whether it is new. The caller puts the frames of exactly those; a chunk that occurs
    /// twice is new at most once.
    pub fn reserve(&mut self, ids: &[ChunkId]) -> Result<Vec<bool>, RegionError> {
        self.check_failed()?;
        self.forget_fresh()?;
        let index = self.index()?;
        index.for_each(ids, |id| {
            if self.fresh.contains_key(&id) {
                return Ok(false);
            }
            match self.find_usable(id)? {
                Some(location) => {
                    self.used.count_on(&self.region, &location);
                    Ok(false)
                }
                None => {
                    self.fresh.insert(id, Placed::Awaited);
                    self.awaited.insert(id);
                    Ok(true)
                }
            }
        })
    }

    /// Counts on these packs: chunks that were looked up elsewhere are in them.
    pub fn use_packs(&mut self, packs: BTreeSet<PackName>) {
        self.used.packs.extend(packs);
    }

    fn index(&mut self) -> Result<Arc<Index>, RegionError> {
        let index = self.index.take().map_or_else(|| self.region.index(), Ok)?;
        Ok(self.index.insert(index).clone())
    }

    /// Where a chunk is that can be counted on.
    fn find_usable(&mut self, id: ChunkId) -> Result<Option<Location>, RegionError> {
        let index = self.index()?;
        match self.region.locate_usable(&index, id, Filters::Trusted) {
            Ok(located) => Ok(located),
            // A damaged segment: the region leaves it out.
            Err(PackError::Damaged { .. }) => {
                let region = self.region.clone();
                let located = region.with_index(|index| region.locate_usable(index, id, Filters::Trusted))?;
                self.index = Some(region.index()?);
                Ok(located)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// No base is looked for in these packs from now on: they are being emptied.
    pub fn avoid(&mut self, packs: &HashSet<PackName>) {
        self.avoided.extend(packs);
    }

    /// All frames from now on are made or tried at this zstd level, with deltas: packs say so.
    pub fn set_effort(&mut self, level: i32) {
        self.effort = u8::try_from(level).unwrap_or(0);
    }

    /// The pack that holds a chunk such that a delta against it can be put: as a plain frame in a live pack that is
    /// there, or put as one by this session.
    pub fn base_pack(&self, base: ChunkId) -> Result<Option<PackName>, RegionError> {
        if let Some(Placed::Plain(number)) = self.fresh.get(&base) {
            return Ok(Some(PackName { session: self.region.0.session, number: *number }));
        }
        let locate = |index: &Index| {
            let is_there = |pack: &PackName| self.region.is_there(*pack).unwrap_or(false);
            let is_avoided =
                |pack: &PackName| index.rank(pack) > 0 || self.avoided.contains(pack) || !is_there(pack);
            index.locate_base(base, is_avoided)
        };
        let index = self.index.as_ref().map_or_else(|| self.region.index(), |index| Ok(index.clone()))?;
        let located = match locate(&index) {
            Ok(Some(location)) => Some(location),
            // Others may have stored it since this session looked.
            _ => self.region.with_index(locate)?,
        };
        Ok(located.map(|location| location.pack))
    }

    /// Stores the frame of a chunk that was new. The base of a delta must be there: see [`Session::base_pack`].
    pub fn put(&mut self, id: ChunkId, frame: &Frame) -> Result<(), RegionError> {
        self.check_failed()?;
        self.forget_fresh()?;
        let base = match frame.base() {
            Some(base) => Some(self.base_pack(base)?.ok_or(RegionError::BaseGone { base })?),
            None => None,
        };
        self.awaited.remove(&id);
        let header = self.region.header();
        let capacity = header.pack_bytes as usize;
        let open = match &mut self.open {
            Some(open) => open,
            none => {
                let name = PackName { session: self.region.0.session, number: self.region.next_number() };
                let spare = self.spare.1.try_recv().unwrap_or_default();
                none.insert(PackBuilder::new(header.id, name, capacity, spare))
            }
        };
        if let Err(error) = open.push(id, frame, base) {
            self.has_failed = true;
            return Err(RegionError::damaged("pack", error));
        }
        let placed = if frame.codec.is_plain() { Placed::Plain(open.name().number) } else { Placed::Delta };
        self.fresh.insert(id, placed);
        if open.len_bytes() >= capacity || open.is_full() {
            self.seal()?;
        }
        Ok(())
    }

    /// Bytes of packs and manifests that this session made so far.
    pub fn stored_bytes(&self) -> u64 {
        self.stored_bytes + self.open.as_ref().map_or(0, |open| open.len_bytes() as u64)
    }

    /// Waits until every chunk that was put is in a durable, registered pack. From then on the index answers
    /// for them.
    pub fn flush(&mut self) -> Result<(), RegionError> {
        self.write_all()?;
        self.index().map(drop)
    }

    /// The same, but that the index is read when it is asked for again.
    fn write_all(&mut self) -> Result<(), RegionError> {
        self.check_failed()?;
        if self.open.is_some() {
            self.seal()?;
        }
        self.join_writer()?;
        self.compact_beside()?;
        self.index = None;
        // What is still being encoded is in no pack yet.
        self.fresh = self.awaited.iter().map(|id| (*id, Placed::Awaited)).collect();
        Ok(())
    }

    /// The stored manifest of a block map whose chunks were all put or found, after they are flushed: one that
    /// the region has already, or a new one. Before a record names it, [`Session::lost_manifest`] must say that
    /// it is still there.
    pub fn place_manifest(&mut self, map: &BlockMap) -> Result<ManifestRecord, RegionError> {
        self.write_all()?;
        let (bytes, hash) = manifest::encode(map);
        if let Some(written) = self.written.iter().find(|written| written.hash == hash) {
            return Ok(written.clone());
        }
        if let Some(known) = self.region.known_with(&self.region.catalog()?, &hash, &bytes) {
            self.shared.push(known.clone());
            return Ok(known);
        }
        self.region.begin_log(self.account)?;
        let name = ManifestName { session: self.region.0.session, number: self.region.next_number() };
        if self.region.0.storage.create(&name.to_string(), &[&bytes])? == Created::Existed {
            return Err(RegionError::NameReused(name.to_string()));
        }
        self.stored_bytes += bytes.len() as u64;
        let chunks = map.chunks().len() as u64;
        let written = ManifestRecord { name, len: bytes.len() as u64, hash, chunks };
        self.written.push(written.clone());
        Ok(written)
    }

    /// A manifest that was there when it was placed and that nothing in the catalogue names any more: it may be
    /// about to be removed.
    pub fn lost_manifest(&self, catalog: &Catalog) -> Option<ManifestName> {
        if self.shared.is_empty() {
            return None;
        }
        let named: BTreeSet<ManifestName> = catalog.roots().map(|root| root.manifest.name).collect();
        self.shared.iter().map(|shared| shared.name).find(|name| !named.contains(name))
    }

    /// Bytes of the manifests that this session wrote.
    pub fn manifest_bytes(&self) -> u64 {
        self.written.iter().map(|written| written.len).sum()
    }

    /// Every pack that may hold a chunk that was put or found.
    pub fn used_packs(&self) -> Vec<PackName> {
        self.used.packs.iter().copied().collect()
    }

    /// Leaves chunks that this session put to the index, once they are many.
    fn forget_fresh(&mut self) -> Result<(), RegionError> {
        if self.fresh.len() > self.awaited.len() + FRESH_CHUNKS_MAX { self.flush() } else { Ok(()) }
    }

    fn seal(&mut self) -> Result<(), RegionError> {
        self.check_failed()?;
        let Some(open) = self.open.take() else { return Ok(()) };
        // Whatever goes wrong from here on loses what was put.
        self.has_failed = true;
        let sealed = open.seal(self.effort).map_err(|e| RegionError::damaged("pack", e))?;
        self.used.packs.insert(sealed.record.name);
        self.used.packs.extend(&sealed.record.bases);
        self.stored_bytes += sealed.record.len;
        let writer = match &mut self.writer {
            Some(writer) => writer,
            none => none.insert(start_writer(&self.region, self.account, self.spare.0.clone())?),
        };
        if writer.queue.send(sealed).is_err() {
            // The writer ended early, which it does only with an error.
            self.join_writer()?;
            return Err(RegionError::WriterGone);
        }
        self.has_failed = false;
        Ok(())
    }

    fn join_writer(&mut self) -> Result<(), RegionError> {
        let Some(PackWriter { queue, thread }) = self.writer.take() else { return Ok(()) };
        drop(queue);
        let result = thread.join().unwrap_or(Err(RegionError::WriterGone));
        self.has_failed |= result.is_err();
        result
    }

    /// Has a segment written if there is reason to. Nobody waits for it: the packs are found without.
    fn compact_beside(&mut self) -> Result<(), RegionError> {
        if self.compaction.as_ref().is_some_and(|under_way| !under_way.is_finished()) {
            return Ok(());
        }
        self.join_compaction();
        self.compaction = self.region.compact_beside(self.account)?;
        Ok(())
    }

    /// Whatever became of it: a segment is a cache, and whoever comes next makes one.
    fn join_compaction(&mut self) {
        if let Some(compaction) = self.compaction.take() {
            let _ = compaction.join();
        }
    }

    /// Whether what was put could be written so far: the error, if not, which would else be told by what is put next.
    pub fn check_writer(&mut self) -> Result<(), RegionError> {
        if self.writer.as_ref().is_some_and(|writer| writer.thread.is_finished()) {
            self.has_failed = true;
            self.join_writer()?;
            return Err(RegionError::WriterGone);
        }
        Ok(())
    }

    fn check_failed(&self) -> Result<(), RegionError> {
        if self.has_failed { Err(RegionError::WriterGone) } else { Ok(()) }
    }
}

fn start_writer(
    region: &Region,
    account: AccountId,
    spare: Sender<Vec<u8>>,
) -> Result<PackWriter, RegionError> {
    // One pack waits while one is written: with the one being filled, three are in memory.
    let (queue, packs) = bounded(1);
    let region = region.clone();
    let thread = std::thread::Builder::new()
        .name("packs".into())
        .spawn(move || region.write_packs(account, &packs, &spare))
        .map_err(|_| RegionError::WriterGone)?;
    Ok(PackWriter { queue, thread })
}

impl Drop for Session {
    fn drop(&mut self) {
        // An abandoned session: what is queued is still registered, so that the next try finds it. Its
        // outcome interests nobody any more.
        let _ = self.join_writer();
        self.join_compaction();
    }
}
