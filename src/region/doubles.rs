//! Chunks that are in several packs: stored by two writers at the same moment, or moved and not yet gone where they were.

use super::Region;
use super::collect::Mark;
use super::error::RegionError;
use super::fetch::Located;
use crate::format::entry::Entry;
use crate::model::ids::ChunkId;
use crate::model::objects::{PackName, PackState};
use crate::pack::index::Location;
use std::collections::{BTreeMap, HashSet};

/// Copies that are proved together.
const PROVED_AT_ONCE: usize = 64;
/// Bytes of memory that a proved copy is known by, with what a table has around it.
const PROVED_BYTES: u64 = 128;

/// A chunk in several packs: the place that is kept, and the other packs.
pub(super) struct Double {
    pub(super) entry: Entry,
    pub(super) pack: PackName,
    pub(super) others: Vec<PackName>,
}

impl Mark {
    /// Packs with chunks that are in others, too, and of which less than so many percent are needed even if the places there
    /// count. Of two places the one in a fuller pack is to be kept: what an interrupted collection has moved is then moved,
    /// whichever name comes first.
    pub fn sparse(&self, percent: u8) -> HashSet<PackName> {
        let is_live =
            |name: &PackName| self.catalog.packs.get(name).is_some_and(|pack| pack.state == PackState::Live);
        let mut others: BTreeMap<PackName, u64> = BTreeMap::new();
        for double in &self.doubles {
            // The frame there may be another one, made harder: about as long will do.
            let bytes = Location::new(&double.entry, double.pack).frame_bytes();
            for other in double.others.iter().filter(|other| is_live(other)) {
                others.entry(double.pack).or_default();
                *others.entry(*other).or_default() += bytes;
            }
        }
        let is_sparse = |(name, bytes): &(PackName, u64)| {
            self.catalog.packs.get(name).is_some_and(|pack| {
                let needed = self.usage(name).bytes.saturating_add(*bytes);
                needed.saturating_mul(100) / self.frames_bytes(&pack.record) < u64::from(percent)
            })
        };
        others.into_iter().filter(is_sparse).map(|(name, _)| name).collect()
    }
}

/// Copies that were proved to be good, so that the next try need not prove them again if others committed meanwhile.
#[derive(Debug)]
pub struct Proved {
    places: HashSet<(ChunkId, PackName, u32)>,
    places_max: usize,
}

impl Proved {
    /// None yet; so many bytes of memory for them at most.
    pub fn new(memory_bytes: u64) -> Self {
        let places_max = usize::try_from(memory_bytes / PROVED_BYTES).unwrap_or(usize::MAX);
        Self { places: HashSet::new(), places_max }
    }

    fn note(&mut self, (id, place): &Located) {
        if self.places.len() < self.places_max {
            self.places.insert((*id, place.pack, place.offset));
        }
    }
}

impl Region {
    /// Proves the kept copy of each chunk that is in one of `packs`, too, which are to go: the copies that stay must
    /// be good ones. They are read in the order in which they lie in packs.
    pub fn prove_kept<E: From<RegionError>>(
        &self,
        mark: &Mark,
        packs: &HashSet<PackName>,
        proved: &mut Proved,
        pool: &rayon::ThreadPool,
        mut watch: impl FnMut() -> Result<(), E>,
    ) -> Result<(), E> {
        let located = |double: &Double| (double.entry.id, Location::new(&double.entry, double.pack));
        let is_going = |double: &&Double| double.others.iter().any(|pack| packs.contains(pack));
        let is_known = |(id, place): &Located| proved.places.contains(&(*id, place.pack, place.offset));
        let mut going: Vec<&Double> =
            mark.doubles.iter().filter(is_going).filter(|double| !is_known(&located(double))).collect();
        going.sort_unstable_by_key(|double| (double.pack, double.entry.offset));
        for some in going.chunks(PROVED_AT_ONCE) {
            watch()?;
            let some: Vec<Located> = some.iter().map(|double| located(double)).collect();
            let mut good = self.proved(&some, pool, drop).map(drop);
            // What lies between them is read along, and may be what a device does not give.
            if good.as_ref().is_err_and(RegionError::is_failed_read) {
                good = some.iter().try_for_each(|located| self.prove_at(*located));
            }
            if let Err(error) = good {
                return Err(RegionError::Uncollectable { why: error.to_string() }.into());
            }
            some.iter().for_each(|located| proved.note(located));
        }
        Ok(())
    }
}
