//! What is not lost, but out of reach only: in packs that are there and cannot be opened here, or that a newer version has written.

use super::Region;
use super::error::RegionError;
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
        let (damaged, kept_away): (Vec<_>, Vec<_>) = unreadable.partition(|error| is_damage(error));
        // Of those in quarantine it is known that something is wrong with them: what a device does not give of them is lost.
        let silent = index.silent().filter(|error| error.is_kept_away());
        let mut kept_away: Vec<String> =
            kept_away.into_iter().chain(silent).map(ToString::to_string).collect();
        kept_away.extend(self.keeps_away(chunk));
        let (out_of_reach, first) = (kept_away.len(), kept_away.into_iter().next());
        RegionError::MissingChunk { chunk, damaged: damaged.len(), out_of_reach, first }
    }

    /// Why a chunk, or what it is stored against, may be intact in a pack that is listed and only cannot be opened; none if it
    /// is in no such pack.
    fn keeps_away(&self, chunk: ChunkId) -> Option<String> {
        let places = |id| self.with_index(|index| index.places_of(id));
        let found = match places(chunk) {
            Ok(found) => found,
            // Then nobody knows.
            Err(error) => return Some(error.to_string()),
        };
        for place in found {
            let why = self.why_closed(place.pack).or_else(|| {
                let bases = if place.codec.is_plain() {
                    Default::default()
                } else {
                    self.bases_named(&[(chunk, place)])
                };
                let packs = bases.into_iter().filter_map(|base| places(base).ok()).flatten();
                packs.into_iter().find_map(|place| self.why_closed(place.pack))
            });
            if why.is_some() {
                return why;
            }
        }
        None
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
