//! A session: one writer's chunks on their way into packs.
//!
//! The caller asks which chunks are new, encodes those, and puts their frames; a thread writes full packs
//! and registers them, so that what is stored survives an interruption. Nothing refers to a chunk before its
//! pack is durable and registered: [`Session::flush`] waits for that.

use super::Region;
use super::error::RegionError;
use crate::chunk::frame::Frame;
use crate::format::manifest;
use crate::io::storage::Created;
use crate::model::account::AccountId;
use crate::model::blockmap::BlockMap;
use crate::model::ids::ChunkId;
use crate::model::objects::{ManifestName, ManifestRecord, PackName};
use crate::model::op::Op;
use crate::pack::build::{PackBuilder, SealedPack};
use crate::pack::index::{Index, Location};
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
    index: Arc<Index>,
    /// Chunks that this session put or is about to put, beside those that `index` knows.
    fresh: HashSet<ChunkId>,
    open: Option<PackBuilder>,
    writer: Option<PackWriter>,
    /// Packs that the chunks asked about are in.
    used: BTreeSet<PackName>,
    stored_bytes: u64,
    /// Packs that were looked at before their chunks were counted on, and whether they are there.
    checked: HashMap<PackName, bool>,
    /// A step failed: what was put may be lost, so nothing may be built on it.
    has_failed: bool,
    /// Buffers of packs that were written.
    spare: (Sender<Vec<u8>>, Receiver<Vec<u8>>),
}

struct PackWriter {
    queue: Sender<SealedPack>,
    thread: JoinHandle<Result<(), RegionError>>,
}

impl Region {
    /// Opens a session for storing on behalf of `account`. Refused where the storage is nearly full.
    pub fn begin(&self, account: AccountId) -> Result<Session, RegionError> {
        self.0.storage.admit_writer()?;
        Ok(Session {
            region: self.clone(),
            account,
            index: self.index()?,
            fresh: HashSet::new(),
            open: None,
            writer: None,
            used: BTreeSet::new(),
            stored_bytes: 0,
            checked: HashMap::new(),
            has_failed: false,
            spare: bounded(2),
        })
    }

    /// Whether a registered pack is there in its length.
    fn pack_is_there(&self, name: PackName) -> Result<bool, RegionError> {
        let Some(len) = self.catalog()?.packs.get(&name).map(|pack| pack.record.len) else {
            return Ok(false);
        };
        match self.0.storage.open(&name.to_string()) {
            Ok(object) => Ok(object.len() == len),
            Err(e) if e.is_not_found() => Ok(false),
            Err(e) => Err(e.into()),
        }
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

impl Session {
    /// The region that is written to.
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// For each chunk whether it is new. The caller puts the frames of exactly those; a chunk that occurs
    /// twice is new at most once.
    pub fn reserve(&mut self, ids: &[ChunkId]) -> Result<Vec<bool>, RegionError> {
        if self.fresh.len() > FRESH_CHUNKS_MAX {
            self.flush()?;
        }
        let mut is_new = Vec::with_capacity(ids.len());
        for &id in ids {
            is_new.push(match self.find_usable(id)? {
                Some(location) if !self.fresh.contains(&id) => {
                    self.used.insert(location.pack);
                    false
                }
                _ => self.fresh.insert(id),
            });
        }
        Ok(is_new)
    }

    /// Where a chunk is, in a pack that was found to be there.
    fn find_usable(&mut self, id: ChunkId) -> Result<Option<Location>, RegionError> {
        loop {
            let is_lost = |pack: &PackName| self.checked.get(pack) == Some(&false);
            let located = match self.index.locate_for_use(id, is_lost) {
                Ok(located) => located,
                // A damaged segment: the region leaves it out.
                Err(_) => {
                    let located = self.region.with_index(|index| index.locate_for_use(id, is_lost))?;
                    self.index = self.region.index()?;
                    located
                }
            };
            match located {
                Some(location) if !self.is_there(location.pack)? => {}
                located => return Ok(located),
            }
        }
    }

    /// Whether a pack can be counted on: it is looked at once, before anything new refers to it. A segment
    /// still lists what was lost since.
    fn is_there(&mut self, pack: PackName) -> Result<bool, RegionError> {
        if let Some(&known) = self.checked.get(&pack) {
            return Ok(known);
        }
        let is_there = self.region.pack_is_there(pack)?;
        self.checked.insert(pack, is_there);
        Ok(is_there)
    }

    /// Stores the frame of a chunk that was new.
    pub fn put(&mut self, id: ChunkId, frame: &Frame) -> Result<(), RegionError> {
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
        open.push(id, frame).map_err(|e| RegionError::damaged("pack", e))?;
        if open.len_bytes() >= capacity {
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
        self.check_failed()?;
        if self.open.is_some() {
            self.seal()?;
        }
        self.join_writer()?;
        self.region.compact_index(self.account)?;
        self.index = self.region.index()?;
        self.fresh.clear();
        Ok(())
    }

    /// Stores a block map whose chunks were all put or found, after they are flushed.
    pub fn write_manifest(&mut self, map: &BlockMap) -> Result<ManifestRecord, RegionError> {
        self.flush()?;
        let name = ManifestName { session: self.region.0.session, number: self.region.next_number() };
        let (bytes, hash) = manifest::encode(map);
        if self.region.0.storage.create(&name.to_string(), &[&bytes])? == Created::Existed {
            return Err(RegionError::NameReused(name.to_string()));
        }
        self.stored_bytes += bytes.len() as u64;
        Ok(ManifestRecord { name, len: bytes.len() as u64, hash, chunks: map.chunks().len() as u64 })
    }

    /// Every pack that may hold a chunk that was put or found.
    pub fn used_packs(&self) -> Vec<PackName> {
        self.used.iter().copied().collect()
    }

    fn seal(&mut self) -> Result<(), RegionError> {
        self.check_failed()?;
        let Some(open) = self.open.take() else { return Ok(()) };
        let sealed = open.seal().map_err(|e| RegionError::damaged("pack", e))?;
        self.used.insert(sealed.record.name);
        self.stored_bytes += sealed.record.len;
        let (region, account) = (&self.region, self.account);
        let writer = self.writer.get_or_insert_with(|| {
            // One pack waits while one is written: with the one being filled, three are in memory.
            let (queue, packs) = bounded(1);
            let region = region.clone();
            let spare = self.spare.0.clone();
            let thread = std::thread::spawn(move || region.write_packs(account, &packs, &spare));
            PackWriter { queue, thread }
        });
        if writer.queue.send(sealed).is_err() {
            // The writer ended early, which it does only with an error.
            self.join_writer()?;
            return Err(RegionError::WriterGone);
        }
        Ok(())
    }

    fn join_writer(&mut self) -> Result<(), RegionError> {
        let Some(PackWriter { queue, thread }) = self.writer.take() else { return Ok(()) };
        drop(queue);
        let result = thread.join().unwrap_or(Err(RegionError::WriterGone));
        self.has_failed |= result.is_err();
        result
    }

    fn check_failed(&self) -> Result<(), RegionError> {
        if self.has_failed { Err(RegionError::WriterGone) } else { Ok(()) }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // An abandoned session: what is queued is still registered, so that the next try finds it. Its
        // outcome interests nobody any more.
        let _ = self.join_writer();
    }
}
