//! What a session can store new chunks against: chunks of the region that resemble them, and their content.

use super::Region;
use super::bases::Bases;
use super::error::RegionError;
use super::fetch::Located;
use crate::chunk::features::Features;
use crate::chunk::frame::Frame;
use crate::io::storage::StorageError;
use crate::model::ids::ChunkId;
use crate::model::objects::FeatureTableName;
use crate::pack::index::{Filters, Index, Location};
use crate::pack::similar::{Fresh, Table, candidates, choose, choose_worn, merge, open_tables, store};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Chunks whose features are kept in memory before a table of them is written.
const FRESH_MAX: usize = 64 << 10;
/// Candidates that are looked up before a chunk counts as like no other.
const LOOKED_UP_MAX: usize = 4;

/// A chunk to store another against, and where its content is.
#[derive(Debug, Clone)]
pub enum Base {
    /// It is among those that are being stored right now: the caller has it.
    Pending(ChunkId),
    /// This session stored it a little while ago.
    Recent(ChunkId, Arc<Frame>),
    /// It is in a pack.
    Stored(ChunkId, Location),
}

impl Base {
    /// The chunk.
    pub const fn id(&self) -> ChunkId {
        match self {
            Self::Pending(id) | Self::Recent(id, _) | Self::Stored(id, _) => *id,
        }
    }
}

/// What a base must be like.
pub struct Wanted<'a> {
    /// How long it may be, in blocks.
    pub blocks_max: u16,
    /// How many are looked for.
    pub tried: usize,
    /// Features that it has in common at least.
    pub common_min: u32,
    /// Whether a chunk that is in a pack can be one.
    pub is_usable: &'a dyn Fn(ChunkId) -> bool,
}

/// What a chunk resembles.
pub struct Found {
    /// Chunks to store it against, the most alike first.
    pub bases: Vec<Base>,
    /// Whether the tables, or this session, have the chunk itself.
    pub is_known: bool,
}

/// Finds bases for one session's new chunks.
pub struct Similar {
    region: Region,
    tables: Vec<Table>,
    fresh: Fresh,
    /// Where chunks are, for the batch under way.
    index: Arc<Index>,
    /// Chunks of the batch under way that are stored as plain frames, with their lengths in blocks.
    pending: HashMap<ChunkId, usize>,
    /// Frames that were stored last: they may be in no pack yet.
    recent: HashMap<ChunkId, Arc<Frame>>,
    order: VecDeque<ChunkId>,
    recent_bytes: usize,
    recent_bytes_max: usize,
}

impl Region {
    /// For storing new chunks against those that resemble them. Keeps up to `recent_bytes` of new frames in memory.
    pub fn similar(&self, recent_bytes: usize) -> Similar {
        Similar {
            region: self.clone(),
            tables: open_tables(&*self.0.storage, self.0.header.id),
            fresh: Fresh::default(),
            index: Arc::default(),
            pending: HashMap::new(),
            recent: HashMap::new(),
            order: VecDeque::new(),
            recent_bytes: 0,
            recent_bytes_max: recent_bytes,
        }
    }

    /// Makes feature tables anew more than an eighth of whose bases are gone. `watch` is asked now and then whether to go on.
    pub fn prune_features<E: From<RegionError>>(
        &self,
        mut watch: impl FnMut() -> Result<(), E>,
    ) -> Result<(), E> {
        let index = self.index()?;
        // What cannot be told stays.
        let is_there = |leading| !matches!(index.find_leading(leading, Filters::Doubted), Ok(None));
        let (storage, region) = (&*self.0.storage, self.0.header.id);
        let mut worn = Vec::new();
        for table in open_tables(storage, region) {
            watch()?;
            let wanted = table.count_wanted(is_there);
            if 8 * wanted < 7 * table.bases() {
                worn.push((table, wanted));
            }
        }
        while !worn.is_empty() {
            watch()?;
            let (some, rest) = choose_worn(worn);
            worn = rest;
            match self.renew(&some, is_there) {
                // They stay as they are.
                Err(error) if error.is_no_space() => return Ok(()),
                renewed => renewed.map_err(RegionError::from)?,
            }
        }
        Ok(())
    }

    /// One table in the place of some, with what is wanted of them. If one of them is damaged, each by itself: that one is no
    /// loss.
    fn renew(&self, tables: &[Table], is_there: impl Fn(u64) -> bool + Copy) -> Result<(), StorageError> {
        let merged = merge(self.0.header.id, tables, &Fresh::default(), is_there);
        if merged.is_err() && tables.len() > 1 {
            return tables.chunks(1).try_for_each(|one| self.renew(one, is_there));
        }
        let name = FeatureTableName { session: self.0.session, number: self.next_number() };
        store(&*self.0.storage, merged.as_deref().ok().map(|bytes| (name, bytes)), tables)
    }
}

impl Similar {
    /// Begins a batch of new chunks.
    pub fn begin(&mut self) -> Result<(), RegionError> {
        self.index = self.region.index()?;
        self.pending.clear();
        Ok(())
    }

    /// Chunks that one with this id and these features may be stored against, the most alike first.
    pub fn find(&self, id: ChunkId, features: &Features, wanted: &Wanted<'_>) -> Found {
        let mut candidates = candidates(features, &self.fresh, &self.tables);
        let before = candidates.len();
        candidates.retain(|(leading, _)| *leading != id.leading());
        let is_known = candidates.len() < before;
        let mut bases = Vec::new();
        for (leading, common) in candidates.into_iter().take(LOOKED_UP_MAX) {
            if bases.len() == wanted.tried || common < wanted.common_min {
                break;
            }
            bases.extend(self.base(leading, wanted));
        }
        Found { bases, is_known }
    }

    /// The chunk whose id begins so, if it can be what is wanted.
    pub fn base(&self, leading: u64, wanted: &Wanted<'_>) -> Option<Base> {
        let blocks_max = wanted.blocks_max;
        let near = |id: ChunkId| {
            if let Some(&blocks) = self.pending.get(&id) {
                return Some((Base::Pending(id), blocks));
            }
            let frame = self.recent.get(&id)?;
            Some((Base::Recent(id, frame.clone()), usize::from(frame.raw_blocks)))
        };
        if let Some((base, blocks)) = self.fresh.id(leading).and_then(near) {
            return (blocks <= usize::from(blocks_max)).then_some(base);
        }
        // A damaged segment, and what was collected, lead nowhere.
        let (id, location) = self.index.find_leading(leading, Filters::Trusted).ok()??;
        if location.raw_blocks > blocks_max {
            return None;
        }
        match near(id) {
            Some((base, _)) => Some(base),
            None => {
                // Nothing can be put on a pack whose own bases are lost.
                let is_there = || self.region.is_there(location.pack).unwrap_or(false);
                ((wanted.is_usable)(id) && is_there()).then_some(Base::Stored(id, location))
            }
        }
    }

    /// A chunk of this batch that is going to be stored as a plain frame, and that the tables know.
    pub fn add_known(&mut self, id: ChunkId, blocks: usize) {
        self.pending.insert(id, blocks);
    }

    /// A chunk of this batch that is going to be stored as a plain frame: those after it may be stored against it.
    pub fn add(&mut self, id: ChunkId, features: &Features, blocks: usize) {
        self.fresh.add(id, features);
        self.pending.insert(id, blocks);
    }

    /// Keeps a plain frame of this batch at hand until others have come after it.
    pub fn remember(&mut self, id: ChunkId, frame: &Arc<Frame>) {
        self.recent_bytes += frame.body.len();
        self.recent.insert(id, frame.clone());
        self.order.push_back(id);
        while self.recent_bytes > self.recent_bytes_max
            && let Some(oldest) = self.order.pop_front()
        {
            self.recent_bytes -= self.recent.remove(&oldest).map_or(0, |frame| frame.body.len());
        }
    }

    /// Reads stored bases. What cannot be read is left out: then a chunk is stored without it.
    pub fn read(&self, wanted: &[Located]) -> Bases {
        self.region.read_bases(wanted).unwrap_or_default()
    }

    /// Writes a feature table if there are many new features.
    pub fn save_some(&mut self) -> Result<(), RegionError> {
        if self.fresh.len() < FRESH_MAX { Ok(()) } else { self.save() }
    }

    /// Writes a table of what is new alone, if it can: who was stopped does not wait for more.
    pub fn keep_new(&mut self) {
        if self.fresh.is_empty() {
            return;
        }
        let Ok(index) = self.region.index() else { return };
        // What was under way in a pack that was not finished is stored anew.
        let is_there = |leading| !matches!(index.find_leading(leading, Filters::Doubted), Ok(None));
        let fresh = std::mem::take(&mut self.fresh).of(is_there);
        let (storage, region) = (&*self.region.0.storage, self.region.0.header.id);
        let name = FeatureTableName { session: self.region.0.session, number: self.region.next_number() };
        if let Ok(bytes) = merge(region, &[], &fresh, |_| true) {
            let _ = store(storage, Some((name, &bytes)), &[]);
        }
    }

    /// Writes a feature table of what is new, so that later sessions find it.
    pub fn save(&mut self) -> Result<(), RegionError> {
        if self.fresh.is_empty() {
            return Ok(());
        }
        let (storage, header) = (&*self.region.0.storage, &self.region.0.header);
        let index = self.region.index()?;
        let is_there = |leading| !matches!(index.find_leading(leading, Filters::Doubted), Ok(None));
        let name = FeatureTableName { session: self.region.0.session, number: self.region.next_number() };
        // Others may have taken in some of them meanwhile.
        self.tables = open_tables(storage, header.id);
        let chosen = choose(&self.tables, self.fresh.len());
        let merged = merge(header.id, chosen, &self.fresh, is_there);
        let stored = match &merged {
            Ok(bytes) => store(storage, Some((name, bytes)), chosen),
            // Some are damaged: those go, the others stay as they are.
            Err(_) => {
                let bytes = merge(header.id, &[], &self.fresh, is_there)
                    .map_err(|error| RegionError::damaged(&name.to_string(), error))?;
                let is_damaged = |one: &&[Table]| merge(header.id, one, &Fresh::default(), is_there).is_err();
                let dropped =
                    chosen.chunks(1).filter(is_damaged).try_for_each(|one| store(storage, None, one));
                dropped.and_then(|()| store(storage, Some((name, &bytes)), &[]))
            }
        };
        match stored {
            // What is stored later does without it.
            Err(error) if error.is_no_space() => {}
            stored => stored?,
        }
        self.fresh = Fresh::default();
        self.tables = open_tables(storage, header.id);
        Ok(())
    }
}
