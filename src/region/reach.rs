//! What is not lost, but out of reach only: in packs that are there and cannot be opened here, or that a newer version has written.

use super::Region;
use super::error::RegionError;
use super::fetch::Located;
use crate::io::storage::StorageError;
use crate::model::ids::ChunkId;
use crate::model::objects::PackName;
use crate::pack::error::PackError;

impl Region {
    /// What to say of a chunk that no readable pack holds: that it is damaged, or that nobody knows, since packs are out of reach.
    pub(crate) fn missing(&self, chunk: ChunkId) -> RegionError {
        let index = match self.index() {
            Ok(index) => index,
            // Then nobody knows whether it is missing.
            Err(error) => return error,
        };
        let is_damage = |error: &PackError| {
            // What a newer version has written may have it.
            if error.is_newer() {
                return false;
            }
            let io = matches!(error, PackError::Storage(e) if !e.is_not_found());
            !io || matches!(error, PackError::Storage(StorageError::Short { .. }))
        };
        let unreadable = index.unreadable().iter().map(|pack| &*pack.error);
        let damaged = unreadable.clone().filter(|error| is_damage(error)).count();
        let unreadable = unreadable.filter(|error| !is_damage(error));
        // Of those in quarantine it is known that something is wrong with them: what a device does not give of them is lost.
        let kept_away = unreadable.chain(index.silent().filter(|error| error.is_kept_away()));
        let (count, first) = (kept_away.clone().count(), kept_away.map(ToString::to_string).next());
        let listed = self.keeps_away(chunk);
        let (out_of_reach, first) = (count + usize::from(listed.is_some()), first.or(listed));
        RegionError::MissingChunk { chunk, damaged, out_of_reach, first }
    }

    /// Why a chunk, or what it is stored against, may be intact in a pack that is listed and only cannot be opened; none if it
    /// is in no such pack.
    fn keeps_away(&self, chunk: ChunkId) -> Option<String> {
        let closed = |id: ChunkId| match self.with_index(|index| index.places_of(id)) {
            Ok(found) => (found.iter().find_map(|place| self.why_closed(place.pack)), found),
            // Then nobody knows.
            Err(error) => (Some(error.to_string()), Vec::new()),
        };
        let (why, mut found) = closed(chunk);
        found.retain(|place| why.is_none() && !place.codec.is_plain());
        let deltas: Vec<Located> = found.into_iter().map(|place| (chunk, place)).collect();
        why.or_else(|| self.bases_named(&deltas).into_iter().find_map(|base| closed(base).0))
    }

    /// Why a pack that is there cannot be opened; none if it can, or is not there.
    fn why_closed(&self, pack: PackName) -> Option<String> {
        let error = PackError::from(self.0.storage.open(&pack.to_string()).err()?);
        error.is_kept_away().then(|| error.to_string())
    }

    /// Refuses if a chunk that nobody could read may be somewhere that is out of reach only, or what it is stored against: such a
    /// one is not lost.
    pub fn check_in_reach(&self, id: ChunkId) -> Result<(), RegionError> {
        if self.index()?.keeps_away() {
            return Err(self.missing(id));
        }
        let out_of_reach = |error: RegionError| if error.is_loss() { Ok(()) } else { Err(error) };
        for place in self.with_index(|index| index.places_of(id))? {
            self.read_runs(&[(id, place)]).map(drop).map_err(RegionError::from).or_else(out_of_reach)?;
            for base in self.bases_named(&[(id, place)]) {
                for place in self.with_index(|index| index.places_of(base))? {
                    self.read_runs(&[(base, place)])
                        .map(drop)
                        .map_err(RegionError::from)
                        .or_else(out_of_reach)?;
                }
            }
        }
        Ok(())
    }

    /// Whether what deltas are stored against, and is nowhere where it can be counted on, may be in packs that are out of reach
    /// only: what is in none of the others may be in those.
    pub fn keeps_bases_away(&self, bases: impl IntoIterator<Item = ChunkId>) -> Result<bool, RegionError> {
        Ok(self.index()?.keeps_away() || bases.into_iter().any(|base| self.keeps_away(base).is_some()))
    }
}
