//! Every place of every chunk, in the order of chunks: a merge of sorted segments and trailers.

use super::error::PackError;
use super::index::Index;
use super::segment::Segment;
use crate::format::entry::Entry;
use crate::model::ids::ChunkId;
use crate::model::objects::PackName;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

type Source<'a> = Box<dyn Iterator<Item = Result<(Entry, PackName), PackError>> + 'a>;

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
        let rank = |(entry, pack): &(Entry, PackName)| (index.rank(pack), !entry.codec.is_plain(), *pack);
        self.places.iter().copied().min_by_key(rank)
    }
}

/// Goes through the places of chunks, ascending by chunk. Memory: a page of each segment.
pub struct Places<'a> {
    index: &'a Index,
    sources: Vec<Source<'a>>,
    heap: BinaryHeap<Reverse<(ChunkId, usize, Entry, PackName)>>,
}

impl<'a> Places<'a> {
    /// Those in some segments and in all loose packs of an index. What is in packs that are gone is left out.
    pub fn new(index: &'a Index, segments: &'a [Arc<Segment>]) -> Result<Self, PackError> {
        let mut sources: Vec<Source<'a>> = Vec::new();
        for (&pack, trailer) in index.loose() {
            sources.push(Box::new(trailer.iter().map(move |entry| Ok((*entry, pack)))));
        }
        for segment in segments {
            sources.push(Box::new(segment.iter()));
        }
        let mut places = Self { index, sources, heap: BinaryHeap::new() };
        for number in 0..places.sources.len() {
            places.refill(number)?;
        }
        Ok(places)
    }

    fn refill(&mut self, number: usize) -> Result<(), PackError> {
        for next in self.sources[number].by_ref() {
            let (entry, pack) = next?;
            if self.index.is_known(&pack) {
                self.heap.push(Reverse((entry.id, number, entry, pack)));
                break;
            }
        }
        Ok(())
    }

    /// The next chunk's places; whether there was one.
    pub fn next_into(&mut self, group: &mut Group) -> Result<bool, PackError> {
        group.places.clear();
        while let Some(Reverse((id, ..))) = self.heap.peek()
            && group.places.first().is_none_or(|(first, _)| first.id == *id)
        {
            let Some(Reverse((_, number, entry, pack))) = self.heap.pop() else { break };
            // A pack that a segment lists in part comes from its trailer, too.
            if !group.places.iter().any(|(_, known)| *known == pack) {
                group.places.push((entry, pack));
            }
            self.refill(number)?;
        }
        Ok(!group.places.is_empty())
    }
}
