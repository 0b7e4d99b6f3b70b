//! New segments from trailers and old segments.

use super::error::PackError;
use super::index::Index;
use super::places::{Group, Places};
use super::segment::Segment;
use crate::format::entry::Entry;
use crate::format::segment::SegmentWriter;
use crate::model::ids::RegionId;
use crate::model::objects::{PackName, SegmentName, SegmentRecord};
use std::collections::BTreeSet;
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
/// twice what is already in, so that each entry is rewritten a logarithmic number of times; and those of which half
/// of the packs are gone.
pub fn choose(index: &Index) -> Vec<Arc<Segment>> {
    let mut by_size: Vec<_> = index.segments().to_vec();
    by_size.sort_by_key(|segment| segment.entries());
    let mut total = index.unlisted().1 as u64;
    let mut chosen = Vec::new();
    let mut is_growing = true;
    for segment in by_size {
        is_growing &= segment.entries() <= 2 * total;
        if (is_growing || is_worn(index, &segment)) && segment.entries() + total <= MERGED_ENTRIES_MAX {
            total += segment.entries();
            chosen.push(segment);
        } else {
            is_growing = false;
        }
    }
    chosen
}

/// Whether half of the packs that a segment lists are gone, and it can be merged again.
pub fn is_worn(index: &Index, segment: &Segment) -> bool {
    if segment.entries() > MERGED_ENTRIES_MAX {
        return false;
    }
    let gone = segment.packs().iter().filter(|pack| !index.is_known(pack)).count();
    gone > 0 && 2 * gone >= segment.packs().len()
}

/// A segment `name` over the loose packs of an index and the given segments. Of a chunk's places it lists the best;
/// packs of which it leaves something out stand in its record as partial, and packs that are gone not at all.
pub fn merge(
    index: &Index,
    segments: &[Arc<Segment>],
    region: RegionId,
    name: SegmentName,
) -> Result<MergedSegment, PackError> {
    let damaged = |source| PackError::damaged(name, source);
    let listed = segments.iter().flat_map(|s| s.packs()).filter(|pack| index.is_known(pack));
    let packs: BTreeSet<PackName> = index.loose().keys().chain(listed).copied().collect();
    let packs: Vec<PackName> = packs.into_iter().collect();
    let place = |pack: PackName| u32::try_from(packs.partition_point(|&p| p < pack)).unwrap_or(u32::MAX);

    let entries = index.unlisted().1
        + segments.iter().map(|s| usize::try_from(s.entries()).unwrap_or(0)).sum::<usize>();
    let mut writer = SegmentWriter::new(entries);
    // What is listed in part, and cannot be read now to list the rest, stays listed in part.
    let mut partial: BTreeSet<PackName> = segments
        .iter()
        .flat_map(|segment| &segment.record().partial)
        .filter(|pack| index.is_known(pack) && !index.loose().contains_key(pack))
        .copied()
        .collect();
    let (mut places, mut group) = (Places::new(index, segments)?, Group::default());
    while places.next_into(&mut group)? {
        let Some((entry, pack)) = group.best(index) else { continue };
        partial.extend(group.places.iter().map(|(_, other)| *other).filter(|other| *other != pack));
        writer.push(Entry { pack: place(pack), ..entry }).map_err(damaged)?;
    }
    let (bytes, hash, entries) = writer.finish(region, &packs).map_err(damaged)?;
    let replaces = segments.iter().map(|segment| segment.record().name).collect();
    let partial = partial.into_iter().collect();
    let record = SegmentRecord { name, len: bytes.len() as u64, entries, hash, replaces, partial };
    Ok(MergedSegment { bytes, record })
}
