//! Every place of every chunk, in the order of chunks: a merge of sorted segments and trailers.

use super::error::PackError;
use super::index::Index;
use super::segment::Segment;
use crate::format::entry::Entry;
use crate::model::ids::ChunkId;
use crate::model::objects::PackName;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::sync::Arc;

type Item = (Entry, PackName);

/// Entries in the order of chunks.
struct Source<'a> {
    items: Box<dyn Iterator<Item = Result<Item, PackError>> + 'a>,
    /// Of the packs that a segment's entries point to, which are there; a loose pack is.
    known: Option<Vec<bool>>,
    /// The next one.
    head: Option<Item>,
}

/// The places of one chunk, each pack once.
#[derive(Debug, Default)]
pub struct Group {
    /// The chunk's entries with their packs; never none.
    pub places: Vec<(Entry, PackName)>,
}

impl Group {
    /// The place to keep: in a live pack if there is one, then as a plain frame, and then in the pack that comes first
    /// by name, so that everybody who asks keeps the same.
    pub fn best(&self, index: &Index) -> Option<(Entry, PackName)> {
        if let [only] = self.places[..] {
            return Some(only);
        }
        let rank = |(entry, pack): &(Entry, PackName)| (index.rank(pack), !entry.codec.is_plain(), *pack);
        self.places.iter().copied().min_by_key(rank)
    }
}

/// Goes through the places of chunks, ascending by chunk. Memory: a page of each segment, and a byte for each pack.
pub struct Places<'a> {
    sources: Vec<Source<'a>>,
    /// The next chunk of each source that has one, its leading bytes before it: these are quickly compared.
    heap: BinaryHeap<Reverse<(u64, ChunkId, usize)>>,
}

impl<'a> Places<'a> {
    /// Those in some segments and, `with_loose`, in all loose packs of an index. What is in packs that are gone is left
    /// out.
    pub fn new(index: &'a Index, segments: &'a [Arc<Segment>], with_loose: bool) -> Result<Self, PackError> {
        let mut sources: Vec<Source<'a>> = Vec::new();
        for (&pack, trailer) in index.loose().iter().filter(|_| with_loose) {
            let items = Box::new(trailer.iter().map(move |entry| Ok((*entry, pack))));
            sources.push(Source { items, known: None, head: None });
        }
        for segment in segments {
            let known = segment.packs().iter().map(|pack| index.is_known(pack)).collect();
            sources.push(Source { items: Box::new(segment.iter()), known: Some(known), head: None });
        }
        let mut heap = BinaryHeap::with_capacity(sources.len());
        for (number, source) in sources.iter_mut().enumerate() {
            heap.extend(source.advance()?.map(|id| Reverse((id.leading(), id, number))));
        }
        Ok(Self { sources, heap })
    }

    /// The next chunk's places; whether there was one.
    pub fn next_into(&mut self, group: &mut Group) -> Result<bool, PackError> {
        group.places.clear();
        while let Some(mut first) = self.heap.peek_mut() {
            let Reverse((_, id, number)) = *first;
            if group.places.first().is_some_and(|(first, _)| first.id != id) {
                break;
            }
            let source = &mut self.sources[number];
            if let Some((entry, pack)) = source.head
                // A pack that a segment lists in part comes from its trailer, too.
                && !group.places.iter().any(|(_, known)| *known == pack)
            {
                group.places.push((entry, pack));
            }
            match source.advance()? {
                Some(next) => *first = Reverse((next.leading(), next, number)),
                None => drop(PeekMut::pop(first)),
            }
        }
        Ok(!group.places.is_empty())
    }
}

impl Source<'_> {
    /// Goes on to the next entry in a pack that is there; its chunk.
    fn advance(&mut self) -> Result<Option<ChunkId>, PackError> {
        self.head = None;
        for next in self.items.by_ref() {
            let (entry, pack) = next?;
            if self.known.as_ref().is_none_or(|known| known.get(entry.pack as usize) == Some(&true)) {
                self.head = Some((entry, pack));
                return Ok(Some(entry.id));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::frame::Codec;
    use crate::model::ids::SessionId;

    #[test]
    fn the_best_place_is_live_then_plain_then_the_first_by_name() {
        let place = |number, codec| {
            let entry =
                Entry { id: ChunkId([1; 32]), pack: 0, offset: 64, stored_len: 88, raw_blocks: 1, codec };
            (entry, PackName { session: SessionId([7; 16]), number })
        };
        let [delta, plain, second] = [(1, Codec::Delta), (2, Codec::Zstd), (3, Codec::Raw)]
            .map(|(number, codec)| place(number, codec));
        let live =
            |places: &[Item]| Index::of(vec![], places.iter().map(|(_, pack)| (*pack, vec![])).collect());
        let best = |index: &Index| Group { places: vec![second, delta, plain] }.best(index);
        assert_eq!(best(&live(&[delta, plain, second])), Some(plain), "nothing else is needed for it");
        assert_eq!(best(&live(&[delta, second])), Some(second));
        assert_eq!(best(&live(&[delta])), Some(delta));
    }
}
