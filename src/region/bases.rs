//! The bases of deltas: read beside them, and decoded where they are needed.

use super::Region;
use super::error::RegionError;
use super::fetch::{Located, MOVES, StoredRun};
use crate::io::storage::StorageError;
use crate::model::catalog::{Catalog, Pack};
use crate::model::ids::ChunkId;
use crate::model::objects::{PackName, PackState};
use crate::model::units::BLOCK_BYTES;
pub use crate::pack::decoded::Content;
use crate::pack::error::PackError;
use crate::pack::index::{Filters, Location};
use crate::pack::read::{ReadRun, base_in, decode_frame, stored_frame};
use crate::pack::trailer::read_trailer;
use std::collections::{BTreeSet, HashMap, HashSet};

/// Deltas that are read together for their bases' ids.
const READ_AT_ONCE: usize = 256;

/// Stored frames of bases.
#[derive(Default)]
pub struct Bases {
    runs: Vec<StoredRun>,
    /// Where each is, and in which run.
    places: HashMap<ChunkId, (Located, usize)>,
}

/// Bases that are nowhere where they can be counted on.
#[derive(Debug, Default)]
pub struct LostBases {
    /// The bases.
    pub chunks: BTreeSet<ChunkId>,
    /// Live packs with deltas on them.
    pub packs: BTreeSet<PackName>,
}

impl Region {
    /// Reads the frames of all bases that the deltas among some frames name. What is nowhere is left out: then a delta
    /// that needs it does not decode.
    pub(super) fn bases_of<'a>(
        &self,
        frames: impl Iterator<Item = (&'a ReadRun, &'a [u8], &'a Located)>,
    ) -> Result<Bases, RegionError> {
        let named = frames.filter_map(|(run, bytes, (_, location))| base_in(run, bytes, location));
        let mut ids: Vec<ChunkId> = named.collect();
        if ids.is_empty() {
            return Ok(Bases::default());
        }
        ids.sort_unstable();
        ids.dedup();
        loop {
            let lost = self.lost_packs();
            let places = self.with_index(|index| {
                let place = |id: &ChunkId| index.locate_base(*id, |pack| lost.contains(pack));
                ids.iter().map(place).collect::<Result<Vec<_>, _>>()
            })?;
            let located = ids.iter().zip(places).filter_map(|(id, place)| Some((*id, place?)));
            match self.read_bases(&located.collect::<Vec<_>>()) {
                // Another place may have it; that it is gone may have been noted by another thread meanwhile.
                Err(PackError::Storage(
                    StorageError::NotFound { name } | StorageError::Short { name, .. },
                )) if self.note_lost(&name) || !lost.iter().any(|pack| pack.to_string() == name) => {}
                read => return Ok(read?),
            }
        }
    }

    /// Reads the frames of bases where they are.
    pub(super) fn read_bases(&self, wanted: &[Located]) -> Result<Bases, PackError> {
        let runs = self.read_runs(wanted)?;
        let of_run = |(run, (read, _)): (usize, &StoredRun)| {
            read.members
                .iter()
                .map(move |&member| (wanted[member].0, (wanted[member], run)))
                .collect::<Vec<_>>()
        };
        let places = runs.iter().enumerate().flat_map(of_run).collect();
        Ok(Bases { runs, places })
    }
}

impl Region {
    /// For each delta in a pack the leading bytes of its base's id.
    pub fn bases_in(&self, pack: &PackName) -> Result<HashMap<ChunkId, u64>, RegionError> {
        let catalog = self.catalog()?;
        let Some(known) = catalog.packs.get(pack) else { return Ok(HashMap::new()) };
        let trailer = read_trailer(&*self.0.storage, self.0.header.id, &known.record)?;
        Ok(trailer.deltas().map(|(entry, base)| (entry.id, base)).collect())
    }

    /// What deltas in live or damaged packs are stored against, and is in no live pack as a plain frame. Of condemned packs the
    /// same, if what they are on record with is damaged, and something needs what is in them alone.
    pub fn lost_bases(&self) -> Result<LostBases, RegionError> {
        for _ in 1..MOVES {
            let before = self.catalog()?.packs.clone();
            let lost = self.find_lost_bases()?;
            if lost.chunks.is_empty() && lost.packs.is_empty() {
                return Ok(lost);
            }
            // What others condemned meanwhile has lost nothing.
            let now = self.catalog()?;
            let stays = |(name, was): (&PackName, &Pack)| now.packs.get(name) == Some(was);
            if before.iter().all(stays) {
                return Ok(lost);
            }
        }
        self.find_lost_bases()
    }

    fn find_lost_bases(&self) -> Result<LostBases, RegionError> {
        let mut lost = LostBases::default();
        let catalog = self.catalog()?;
        let (unusable, mut condemned) = (catalog.unusable_condemned(), Vec::<(Located, u64)>::new());
        for (name, pack) in catalog.packs.iter() {
            let counts = match pack.state {
                PackState::Live | PackState::Quarantined { .. } => true,
                PackState::Condemned { .. } => unusable.contains(name),
                PackState::Sweeping => false,
            };
            if !counts {
                continue;
            }
            // One whose trailer is damaged tells nothing.
            let Ok(trailer) = read_trailer(&*self.0.storage, self.0.header.id, &pack.record) else {
                continue;
            };
            // All at once: each look at the index is one at the log, too.
            let wanted: Vec<(Located, u64)> = self.with_index(|index| {
                let mut wanted = Vec::new();
                for (entry, base) in trailer.deltas() {
                    if index.find_leading(base, Filters::Doubted)?.is_none() {
                        wanted.push(((entry.id, Location::new(entry, *name)), base));
                    }
                }
                Ok(wanted)
            })?;
            if matches!(pack.state, PackState::Condemned { .. }) {
                condemned.extend(wanted);
                continue;
            }
            if pack.state == PackState::Live && !wanted.is_empty() {
                lost.packs.insert(*name);
            }
            self.add_bases(&wanted, &mut lost.chunks);
        }
        self.add_needed(&catalog, condemned, &mut lost.chunks)?;
        Ok(lost)
    }

    /// The same of those deltas that are in no live pack and that something needs: a root refers to them, or they are lost bases
    /// themselves.
    fn add_needed(
        &self,
        catalog: &Catalog,
        mut deltas: Vec<(Located, u64)>,
        lost: &mut BTreeSet<ChunkId>,
    ) -> Result<(), RegionError> {
        if deltas.is_empty() {
            return Ok(());
        }
        let ids: Vec<ChunkId> = deltas.iter().map(|((id, _), _)| *id).collect();
        let places = ids.iter().zip(self.has_live_chunks(&ids)?);
        let alone: HashSet<ChunkId> = places.filter(|(_, has)| !has).map(|(id, _)| *id).collect();
        let (mut referred, mut asked) = (HashSet::new(), HashSet::new());
        for root in catalog.roots().filter(|root| asked.insert(root.manifest.name)) {
            // One whose map is lost refers to nothing that is known.
            let Ok(map) = self.load_root(&root) else { continue };
            referred.extend(map.chunks().iter().map(|chunk| chunk.id).filter(|id| alone.contains(id)));
        }
        loop {
            let is_needed = |((id, _), _): &(Located, u64)| {
                alone.contains(id) && (referred.contains(id) || lost.contains(id))
            };
            let (needed, rest): (Vec<_>, Vec<_>) = deltas.into_iter().partition(is_needed);
            if needed.is_empty() {
                return Ok(());
            }
            self.add_bases(&needed, lost);
            deltas = rest;
        }
    }

    /// Adds what some deltas are stored against, of those that can be read, with the leading bytes of their bases' ids.
    fn add_bases(&self, deltas: &[(Located, u64)], bases: &mut BTreeSet<ChunkId>) {
        for deltas in deltas.chunks(READ_AT_ONCE) {
            let located: Vec<Located> = deltas.iter().map(|(located, _)| *located).collect();
            let leading: HashSet<u64> = deltas.iter().map(|(_, base)| *base).collect();
            // What a damaged frame names is not looked for.
            bases.extend(self.bases_named(&located).iter().filter(|id| leading.contains(&id.leading())));
        }
    }

    /// The bases that some deltas name, of those that can be read.
    pub(super) fn bases_named(&self, deltas: &[Located]) -> BTreeSet<ChunkId> {
        let named = |(run, bytes): &StoredRun| {
            run.members.iter().filter_map(|&at| base_in(run, bytes, &deltas[at].1)).collect::<Vec<_>>()
        };
        match self.read_runs(deltas) {
            Ok(runs) => runs.iter().flat_map(named).collect(),
            // Of many one may be to blame.
            Err(_) if deltas.len() > 1 => {
                deltas.chunks(1).flat_map(|delta| self.bases_named(delta)).collect()
            }
            Err(_) => BTreeSet::new(),
        }
    }

    /// The chunk whose id begins with these bytes and where it is as a plain frame.
    pub fn find_base(&self, leading: u64) -> Result<Option<Located>, RegionError> {
        self.with_index(|index| index.find_leading(leading, Filters::Doubted))
    }
}

impl Bases {
    /// Whether a base is among them.
    pub(super) fn has(&self, id: ChunkId) -> bool {
        self.places.contains_key(&id)
    }

    /// Whether a base's frame fits its checksum.
    pub(super) fn is_sound(&self, id: ChunkId) -> bool {
        let frame = self.places.get(&id).and_then(|(located, run)| Some((self.runs.get(*run)?, *located)));
        frame.is_some_and(|((read, bytes), located)| stored_frame(read, bytes, located).is_ok())
    }

    /// Takes others in.
    pub(super) fn add(&mut self, others: Self) {
        let before = self.runs.len();
        self.runs.extend(others.runs);
        self.places
            .extend(others.places.into_iter().map(|(id, (located, run))| (id, (located, before + run))));
    }

    /// The bytes of a base; none if it is not here or damaged here.
    pub fn content(&self, region: &Region, id: ChunkId) -> Option<Content> {
        let (located, run) = self.places.get(&id)?;
        let decoded = region.0.reader.decoded();
        if let Some(content) = decoded.get(located) {
            // It may have been damaged since: nothing new is stored against that.
            let (read, bytes) = self.runs.get(*run)?;
            return stored_frame(read, bytes, *located).is_ok().then_some(content);
        }
        let content = self.content_now(region, id)?;
        decoded.keep(located, &content);
        Some(content)
    }

    /// The same of what was read now, as proofs want it: what was good a while ago may be damaged.
    pub(super) fn content_now(&self, region: &Region, id: ChunkId) -> Option<Content> {
        let (located, run) = self.places.get(&id)?;
        let (read, bytes) = self.runs.get(*run)?;
        let mut raw = region.0.reader.spare().take(usize::from(located.1.raw_blocks) * BLOCK_BYTES);
        decode_frame(&region.0.codecs, read, bytes, *located, None, &mut raw).ok()?;
        Some(raw.into())
    }

    /// As it was read now, or from any other place that has it intact now.
    pub fn intact_content(&self, region: &Region, id: ChunkId) -> Option<Content> {
        self.content_now(region, id).or_else(|| region.intact_base(id))
    }
}
