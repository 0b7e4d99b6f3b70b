//! Chunks that are in several packs: stored by two writers at the same moment, or moved and not yet gone where they were.

use super::Region;
use super::collect::Mark;
use super::error::RegionError;
use crate::format::entry::Entry;
use crate::model::objects::PackName;
use crate::pack::index::Location;
use std::collections::{BTreeMap, HashSet};

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
        let mut others: BTreeMap<PackName, u64> = BTreeMap::new();
        for double in &self.doubles {
            // The frame there may be another one, made harder: about as long will do.
            let bytes = Location::new(&double.entry, double.pack).frame_bytes();
            others.entry(double.pack).or_default();
            double.others.iter().for_each(|other| *others.entry(*other).or_default() += bytes);
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

impl Region {
    /// Proves the kept copy of each chunk that is in one of `packs`, too, which are to go: the copies that stay must
    /// be good ones.
    pub fn prove_kept<E: From<RegionError>>(
        &self,
        mark: &Mark,
        packs: &HashSet<PackName>,
        mut watch: impl FnMut() -> Result<(), E>,
    ) -> Result<(), E> {
        let going =
            mark.doubles.iter().filter(|double| double.others.iter().any(|pack| packs.contains(pack)));
        for double in going {
            watch()?;
            let located = (double.entry.id, Location::new(&double.entry, double.pack));
            if let Err(error) = self.prove_at(located) {
                return Err(RegionError::Uncollectable { why: error.to_string() }.into());
            }
        }
        Ok(())
    }
}
