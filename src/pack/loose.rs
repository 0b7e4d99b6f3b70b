//! The trailers of packs that no segment lists, and where in them a chunk is.

use super::index::{Location, Standing};
use super::quick::QuickMap;
use crate::format::entry::Entry;
use crate::model::ids::ChunkId;
use crate::model::objects::PackName;
use std::collections::HashMap;
use std::sync::Arc;

/// The entries of a pack by id, and what the pack is good for.
#[derive(Debug)]
struct Trailer {
    pack: PackName,
    standing: Standing,
    entries: Arc<Vec<Entry>>,
}

/// Which trailer, and which of its entries.
#[derive(Debug, Clone, Copy)]
struct Place {
    trailer: u32,
    entry: u32,
}

/// Packs whose chunks are looked up in memory. The table has no ids, which the trailers have, and is made as large as it
/// must be: it is made anew whenever the log has changed.
#[derive(Debug, Default)]
pub(super) struct Loose {
    trailers: Vec<Trailer>,
    by_name: HashMap<PackName, Arc<Vec<Entry>>>,
    /// By the first bytes of an id: a place of what begins so.
    table: QuickMap<u64, Place>,
    /// Further places: of chunks in several packs, and of other chunks that begin alike.
    more: HashMap<u64, Vec<Place>>,
}

impl Loose {
    /// Of packs that are good for that, each with its trailer's entries.
    pub(super) fn new(packs: Vec<(PackName, Standing, Arc<Vec<Entry>>)>) -> Self {
        let count = packs.iter().map(|(_, _, entries)| entries.len()).sum();
        let mut loose = Self::default();
        loose.table.reserve(count);
        for (trailer, (pack, standing, entries)) in (0..).zip(packs) {
            for (entry, found) in (0..).zip(entries.iter()) {
                let leading = found.id.leading();
                if let Some(other) = loose.table.insert(leading, Place { trailer, entry }) {
                    loose.more.entry(leading).or_default().push(other);
                }
            }
            loose.by_name.insert(pack, entries.clone());
            loose.trailers.push(Trailer { pack, standing, entries });
        }
        loose
    }

    /// Every place of a chunk, and what its pack is good for.
    pub(super) fn places(&self, id: ChunkId) -> impl Iterator<Item = (Standing, Location)> {
        let of_it = move |(found, standing, location)| (found == id).then_some((standing, location));
        self.places_leading(id.leading()).filter_map(of_it)
    }

    /// Every place of the chunks whose ids begin with some bytes.
    pub(super) fn places_leading(&self, leading: u64) -> impl Iterator<Item = (ChunkId, Standing, Location)> {
        let first = self.table.get(&leading);
        let more = first.and_then(|_| self.more.get(&leading)).into_iter().flatten();
        first.into_iter().chain(more).map(|place| {
            let trailer = &self.trailers[place.trailer as usize];
            let entry = &trailer.entries[place.entry as usize];
            (entry.id, trailer.standing, Location::new(entry, trailer.pack))
        })
    }

    /// The packs, with their entries by id.
    pub(super) const fn by_name(&self) -> &HashMap<PackName, Arc<Vec<Entry>>> {
        &self.by_name
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::frame::Codec;
    use crate::model::ids::SessionId;

    /// Two packs with chunks in common, and chunks whose ids begin alike.
    #[test]
    fn each_place_of_a_chunk_and_of_no_other_is_found() {
        let id = |first: u8, last: u8| {
            let mut id = [first; 32];
            id[31] = last;
            ChunkId(id)
        };
        let entry =
            |id, offset| Entry { id, pack: 0, offset, stored_len: 9, raw_blocks: 1, codec: Codec::Zstd };
        let name = |number| PackName { session: SessionId([7; 16]), number };
        let one = Arc::new(vec![entry(id(1, 0), 64), entry(id(1, 1), 128), entry(id(2, 0), 192)]);
        let two = Arc::new(vec![entry(id(1, 1), 64), entry(id(3, 0), 128)]);
        let packs = vec![(name(0), Standing::Condemned, one.clone()), (name(1), Standing::Live, two)];
        let loose = Loose::new(packs);
        let places = |id| -> Vec<(Standing, u64, u32)> {
            let mut places: Vec<_> =
                loose.places(id).map(|(standing, at)| (standing, at.pack.number, at.offset)).collect();
            places.sort_by_key(|place| place.1);
            places
        };
        assert_eq!(places(id(1, 0)), [(Standing::Condemned, 0, 64)]);
        assert_eq!(places(id(1, 1)), [(Standing::Condemned, 0, 128), (Standing::Live, 1, 64)]);
        assert_eq!(places(id(2, 0)), [(Standing::Condemned, 0, 192)]);
        assert_eq!(places(id(3, 0)), [(Standing::Live, 1, 128)]);
        assert!(places(id(1, 2)).is_empty() && places(id(4, 0)).is_empty());
        assert!(loose.by_name().len() == 2 && loose.by_name()[&name(0)] == one);
        let leading: Vec<ChunkId> = loose.places_leading(id(1, 0).leading()).map(|(id, ..)| id).collect();
        assert!(leading.len() == 3 && leading.contains(&id(1, 0)) && leading.contains(&id(1, 1)));
    }
}
