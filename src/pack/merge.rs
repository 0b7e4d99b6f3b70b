//! New segments from trailers and old segments.

use super::error::PackError;
use super::index::Index;
use super::segment::Segment;
use crate::format::entry::Entry;
use crate::format::segment::SegmentWriter;
use crate::model::ids::RegionId;
use crate::model::objects::{PackName, SegmentName, SegmentRecord};
use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::sync::Arc;

/// Segments larger than this are not merged again: a merge builds the new segment in memory.
const MERGED_ENTRIES_MAX: u64 = 4 << 20;

/// A segment that is complete, and not yet stored.
pub struct MergedSegment {
    /// All of its bytes.
    pub bytes: Vec<u8>,
    /// What the log will say of it.
    pub record: SegmentRecord,
}

/// Which segments a new one over the loose packs takes in: from the smallest up, as long as each is at most
/// twice what is already in. So each entry is rewritten a logarithmic number of times.
pub fn choose(index: &Index) -> Vec<Arc<Segment>> {
    let mut by_size: Vec<_> = index.segments().to_vec();
    by_size.sort_by_key(|segment| segment.entries());
    let mut total = index.loose_entries() as u64;
    let mut chosen = Vec::new();
    for segment in by_size {
        if segment.entries() > 2 * total || segment.entries() + total > MERGED_ENTRIES_MAX {
            break;
        }
        total += segment.entries();
        chosen.push(segment);
    }
    chosen
}

/// A segment `name` over the loose packs of an index and the given segments.
pub fn merge(
    index: &Index,
    segments: &[Arc<Segment>],
    region: RegionId,
    name: SegmentName,
) -> Result<MergedSegment, PackError> {
    let damaged = |source| PackError::damaged(name, source);
    let packs: BTreeSet<PackName> =
        index.loose().keys().chain(segments.iter().flat_map(|s| s.packs())).copied().collect();
    let packs: Vec<PackName> = packs.into_iter().collect();
    let place = |pack: PackName| u32::try_from(packs.partition_point(|&p| p < pack)).unwrap_or(u32::MAX);

    let entries = index.loose_entries()
        + segments.iter().map(|s| usize::try_from(s.entries()).unwrap_or(0)).sum::<usize>();
    let mut writer = SegmentWriter::new(entries);
    let mut sources: Vec<Source<'_>> = Vec::new();
    for (&pack, trailer) in index.loose() {
        sources.push(Box::new(trailer.iter().map(move |entry| Ok((*entry, pack)))));
    }
    for segment in segments {
        sources.push(Box::new(segment.iter()));
    }
    let mut heap = BinaryHeap::new();
    for (number, source) in sources.iter_mut().enumerate() {
        if let Some(first) = source.next() {
            let (entry, pack) = first?;
            heap.push(Reverse((entry.id, number, entry, pack)));
        }
    }
    let mut last = None;
    while let Some(Reverse((_, number, entry, pack))) = heap.pop() {
        // A chunk can have several places: two writers stored it at once, or it was stored again because its
        // pack was lost. One is enough to find it, and the loose packs, which are newer, come first.
        if last != Some(entry.id) {
            last = Some(entry.id);
            writer.push(Entry { pack: place(pack), ..entry }).map_err(damaged)?;
        }
        if let Some(next) = sources[number].next() {
            let (entry, pack) = next?;
            heap.push(Reverse((entry.id, number, entry, pack)));
        }
    }
    let (bytes, hash, entries) = writer.finish(region, &packs).map_err(damaged)?;
    let replaces = segments.iter().map(|segment| segment.record().name).collect();
    let record = SegmentRecord { name, len: bytes.len() as u64, entries, hash, replaces };
    Ok(MergedSegment { bytes, record })
}

type Source<'a> = Box<dyn Iterator<Item = Result<(Entry, PackName), PackError>> + 'a>;
