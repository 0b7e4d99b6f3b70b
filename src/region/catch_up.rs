//! A mark that goes on although something new refers to content: whoever commits more often than all that is needed can be
//! looked through keeps nothing from being collected.

use super::Region;
use super::collect::Mark;
use super::error::RegionError;
use crate::model::ids::ChunkId;
use crate::model::objects::{PackName, PackRecord, PackState};
use crate::pack::index::{Index, Location};
use crate::pack::trailer::read_trailer;
use std::collections::{BTreeSet, HashSet};

/// Chunks that are looked up between two looks at whether to go on.
const WATCH_CHUNKS: usize = 1 << 12;

impl Region {
    /// Has a mark hold for what refers to content since, too: if all of that is needed by the mark, or lies in live packs, and
    /// nowhere in packs that are `going`, of which a copy may be the only good one, nor do bases of deltas there. Those packs are
    /// `kept` from then on, with what they are based on. Whether it did; if not, or if there is nothing new, it takes another mark.
    pub fn catch_up<E: From<RegionError>>(
        &self,
        mark: &mut Mark,
        kept: &mut BTreeSet<PackName>,
        going: &HashSet<PackName>,
        mut watch: impl FnMut() -> Result<(), E>,
    ) -> Result<bool, E> {
        // What is lost of it, a mark finds out.
        if mark.has_losses() {
            return Ok(false);
        }
        let catalog = self.catalog()?;
        let index = self.index()?;
        let is_live =
            |pack: &PackName| catalog.packs.get(pack).is_some_and(|pack| pack.state == PackState::Live);
        let (mut read, mut packs) = (BTreeSet::new(), BTreeSet::new());
        for root in catalog.roots().filter(|root| !mark.manifests.contains(&root.manifest.name)) {
            watch()?;
            // Why not, a mark says.
            let Ok(map) = self.load_root(&root) else { return Ok(false) };
            for (number, chunk) in map.chunks().iter().enumerate() {
                if number % WATCH_CHUNKS == WATCH_CHUNKS - 1 {
                    watch()?;
                }
                if mark.is_needed(chunk.id.leading()) {
                    continue;
                }
                let Ok(places) = index.places_of(chunk.id) else { return Ok(false) };
                if places.iter().any(|place| going.contains(&place.pack)) {
                    return Ok(false);
                }
                let Some(place) = places.iter().find(|place| is_live(&place.pack)) else { return Ok(false) };
                packs.insert(place.pack);
            }
            read.insert(root.manifest.name);
        }
        let stay = catalog.with_bases(packs);
        if read.is_empty() || stay.iter().any(|pack| going.contains(pack) || !is_live(pack)) {
            return Ok(false);
        }
        for pack in stay.iter().filter(|pack| !kept.contains(*pack)) {
            watch()?;
            let is_sound = catalog.packs.get(pack).is_some_and(|pack| {
                self.needs_nothing_of(&pack.record, mark, going, &index).unwrap_or(false)
            });
            if !is_sound {
                return Ok(false);
            }
        }
        kept.extend(stay);
        mark.manifests.extend(read);
        Ok(true)
    }

    /// Whether a pack is there, and no base of its deltas lies in packs that are going, but for those that the mark needs: of these a
    /// good copy stays.
    fn needs_nothing_of(
        &self,
        pack: &PackRecord,
        mark: &Mark,
        going: &HashSet<PackName>,
        index: &Index,
    ) -> Result<bool, RegionError> {
        if self.0.storage.open(&pack.name.to_string())?.len() != pack.len {
            return Ok(false);
        }
        if pack.bases.is_empty() {
            return Ok(true);
        }
        let trailer = read_trailer(&*self.0.storage, self.0.header.id, pack)?;
        for (_, base) in trailer.deltas() {
            let is_going = |(_, place): &(ChunkId, Location)| going.contains(&place.pack);
            if !mark.is_needed(base) && index.places_leading(base)?.iter().any(is_going) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
