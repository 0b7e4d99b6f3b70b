//! New segments from trailers and old segments, made front to back: no segment is in memory as a whole.

use super::error::PackError;
use super::index::Index;
use super::places::{Group, Places};
use super::quick::QuickMap;
use super::segment::Segment;
use crate::format::entry::Entry;
use crate::format::filter;
use crate::format::segment::{SegmentEncoder, SegmentPlan};
use crate::model::ids::{ObjectHash, RegionId};
use crate::model::objects::{PackName, SegmentName, SegmentRecord};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Segments of so many entries are left to collections: what a writer merges beside its work stays quick, and the two
/// never take in the same segment.
const LARGE_ENTRIES: u64 = 2 << 20;
/// The most entries that a writer merges.
const WRITER_ENTRIES_MAX: u64 = 4 << 20;
/// Bytes that are written at once.
const PIECE_BYTES: usize = 1 << 20;
/// Chunks that are gone through between two looks at whether to go on.
const WATCH_CHUNKS: u64 = 1 << 16;

/// What a new segment takes in.
#[derive(Debug, Clone, Default)]
pub struct Choice {
    /// Segments, which it replaces.
    pub segments: Vec<Arc<Segment>>,
    /// Whether the loose packs, too.
    pub with_loose: bool,
}

/// Which segments a new one over the loose packs takes in: from the smallest up, as long as each is at most
/// twice what is already in, so that each entry is rewritten a logarithmic number of times; and those of which half
/// of the packs are gone. No large ones.
pub fn choose(index: &Index) -> Choice {
    let mut total = index.unlisted().1 as u64;
    let mut segments = Vec::new();
    let mut is_growing = true;
    for segment in by_size(index, false) {
        is_growing &= segment.entries() <= 2 * total;
        if (is_growing || is_worn(index, &segment)) && segment.entries() + total <= WRITER_ENTRIES_MAX {
            total += segment.entries();
            segments.push(segment);
        } else {
            is_growing = false;
        }
    }
    Choice { segments, with_loose: true }
}

/// Which large segments become one, so that each is more than twice as large as all smaller ones together. If they are,
/// one of which half of the packs are gone. None if all is well.
pub fn choose_large(index: &Index) -> Option<Choice> {
    let large = by_size(index, true);
    let sizes: Vec<u64> = large.iter().map(|segment| segment.entries()).collect();
    let count = growing(&sizes);
    let segments = if count > 0 {
        large[..count].to_vec()
    } else {
        vec![large.into_iter().find(|segment| is_worn(index, segment))?]
    };
    Some(Choice { segments, with_loose: false })
}

/// How many of some sizes, which ascend, must become one so that each of what is left is more than twice as large as all
/// smaller ones together. What that makes is half as large again as the largest that goes into it.
fn growing(sizes: &[u64]) -> usize {
    let is_too_near = |&at: &usize| sizes[at] <= 2 * sizes[..at].iter().sum::<u64>();
    (1..sizes.len()).rev().find(is_too_near).map_or(0, |at| at + 1)
}

/// The segments that are large, or those that are not, the smallest first.
fn by_size(index: &Index, are_large: bool) -> Vec<Arc<Segment>> {
    let wanted = |segment: &&Arc<Segment>| is_large(segment) == are_large;
    let mut by_size: Vec<_> = index.segments().iter().filter(wanted).cloned().collect();
    by_size.sort_by_key(|segment| (segment.entries(), segment.record().name));
    by_size
}

fn is_large(segment: &Segment) -> bool {
    segment.entries() >= LARGE_ENTRIES
}

/// Whether half of the packs that a segment lists are gone.
fn is_worn(index: &Index, segment: &Segment) -> bool {
    let gone = segment.packs().iter().filter(|pack| !index.is_known(pack)).count();
    gone > 0 && 2 * gone >= segment.packs().len()
}

/// Whether a segment that a writer merges is worn.
pub fn has_worn(index: &Index) -> bool {
    index.segments().iter().any(|segment| !is_large(segment) && is_worn(index, segment))
}

/// A segment that is known as to what will be in it, and not yet made. Of a chunk's places it lists the best;
/// packs of which it leaves something out stand in its record as partial, and packs that are gone not at all.
pub struct Merge<'a> {
    index: &'a Index,
    choice: &'a Choice,
    region: RegionId,
    packs: Vec<PackName>,
    /// Where each stands in the table.
    places: QuickMap<PackName, u32>,
    partial: BTreeSet<PackName>,
    entries: u64,
}

impl<'a> Merge<'a> {
    /// Goes through all that it takes in once, to know how much it is. `watch` is asked now and then whether to go on.
    pub fn plan<E: From<PackError>>(
        index: &'a Index,
        choice: &'a Choice,
        region: RegionId,
        mut watch: impl FnMut() -> Result<(), E>,
    ) -> Result<Self, E> {
        let segments = &choice.segments;
        let listed = segments.iter().flat_map(|s| s.packs()).filter(|pack| index.is_known(pack));
        let loose = index.loose().keys().filter(|_| choice.with_loose);
        let packs: BTreeSet<PackName> = loose.chain(listed).copied().collect();
        let packs: Vec<PackName> = packs.into_iter().collect();
        let places = packs.iter().copied().zip(0..).collect();
        // What is listed in part, and is not taken in as a whole now, stays listed in part.
        let is_whole = |pack: &PackName| choice.with_loose && index.loose().contains_key(pack);
        let mut partial: BTreeSet<PackName> = segments
            .iter()
            .flat_map(|segment| &segment.record().partial)
            .filter(|pack| index.is_known(pack) && !is_whole(pack))
            .copied()
            .collect();
        let (mut all, mut group) = (Places::new(index, segments, choice.with_loose)?, Group::default());
        let mut entries = 0_u64;
        while all.next_into(&mut group)? {
            let Some((_, pack)) = group.best(index) else { continue };
            partial.extend(group.places.iter().map(|(_, other)| *other).filter(|other| *other != pack));
            entries += 1;
            if entries.is_multiple_of(WATCH_CHUNKS) {
                watch()?;
            }
        }
        Ok(Self { index, choice, region, packs, places, partial, entries })
    }

    /// Begins to make it.
    pub fn pieces(&self) -> Result<Pieces<'_>, PackError> {
        let filter_pages = u32::try_from(filter::pages_for(self.entries)).unwrap_or(0);
        let (region, packs, entries) = (self.region, &self.packs[..], self.entries);
        let encoder = SegmentEncoder::begin(SegmentPlan { region, packs, entries, filter_pages });
        let encoder = encoder.map_err(|source| PackError::damaged("a new index segment", source))?;
        let (all, group) = (self.all()?, Group::default());
        Ok(Pieces {
            merge: self,
            encoder,
            all,
            group,
            phase: Phase::Entries,
            len: 0,
            hash: ObjectHash([0; 32]),
        })
    }

    /// What the log says of it under a name, once all pieces were taken.
    pub fn record(&self, name: SegmentName, made: &Pieces<'_>) -> SegmentRecord {
        let replaces = self.choice.segments.iter().map(|segment| segment.record().name).collect();
        let partial = self.partial.iter().copied().collect();
        SegmentRecord { name, len: made.len, entries: self.entries, hash: made.hash, replaces, partial }
    }

    fn all(&self) -> Result<Places<'_>, PackError> {
        Places::new(self.index, &self.choice.segments, self.choice.with_loose)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Entries,
    Filter,
    Done,
}

/// The bytes of a segment, piece by piece. Memory: a piece, and a page of each segment that is taken in.
pub struct Pieces<'a> {
    merge: &'a Merge<'a>,
    encoder: SegmentEncoder<'a>,
    all: Places<'a>,
    group: Group,
    phase: Phase,
    len: u64,
    hash: ObjectHash,
}

impl Pieces<'_> {
    /// The next piece; none at the end.
    pub fn next_piece(&mut self) -> Result<Option<Vec<u8>>, PackError> {
        let broken = |source| PackError::damaged("a new index segment", source);
        while self.phase != Phase::Done && self.encoder.ready() < PIECE_BYTES {
            let best =
                if self.all.next_into(&mut self.group)? { self.group.best(self.merge.index) } else { None };
            match (best, self.phase) {
                (Some((entry, pack)), Phase::Entries) => {
                    let pack = self.merge.places.get(&pack).copied().unwrap_or(u32::MAX);
                    self.encoder.push(&Entry { pack, ..entry }).map_err(broken)?;
                }
                (Some((entry, _)), _) => self.encoder.push_filter(entry.id).map_err(broken)?,
                // Once more, for the filter.
                (None, Phase::Entries) if self.encoder.has_filter() => {
                    self.phase = Phase::Filter;
                    self.all = self.merge.all()?;
                }
                (None, _) => {
                    let (bytes, hash) = self.encoder.finish().map_err(broken)?;
                    (self.phase, self.hash) = (Phase::Done, hash);
                    self.len += bytes.len() as u64;
                    return Ok(Some(bytes));
                }
            }
        }
        if self.phase == Phase::Done {
            return Ok(None);
        }
        let bytes = self.encoder.take();
        self.len += bytes.len() as u64;
        Ok(Some(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::frame::Codec;
    use crate::format::segment::{PAGE_BYTES, PAGE_ENTRIES, SegmentWriter};
    use crate::io::map::Bytes;
    use crate::model::ids::{ChunkId, SessionId};

    const REGION: RegionId = RegionId([3; 16]);

    fn pack(number: u64) -> PackName {
        PackName { session: SessionId([7; 16]), number }
    }

    /// Entries of a pack, the nth with n at the beginning of its id.
    fn entries(numbers: impl Iterator<Item = u32>) -> Vec<Entry> {
        let id = |number: u32| {
            let mut id = [9; 32];
            id[..4].copy_from_slice(&number.to_be_bytes());
            ChunkId(id)
        };
        let codec = Codec::Zstd;
        let entry =
            |number| Entry { id: id(number), pack: 0, offset: 64, stored_len: 88, raw_blocks: 1, codec };
        numbers.map(entry).collect()
    }

    /// What the log says of a segment.
    fn record(len: usize, entries: u64, hash: ObjectHash) -> SegmentRecord {
        let name = SegmentName { session: SessionId([7; 16]), number: entries };
        SegmentRecord { name, len: len as u64, entries, hash, replaces: vec![], partial: vec![] }
    }

    /// A segment that says it has so many entries, however many: none of its pages is ever read. If it is worn, it lists
    /// a pack, which is gone.
    fn sized(count: u64, is_worn: bool) -> Arc<Segment> {
        let packs = if is_worn { vec![pack(99)] } else { vec![] };
        let plan = SegmentPlan { region: REGION, packs: &packs, entries: count, filter_pages: 0 };
        let header = SegmentEncoder::begin(plan).unwrap().take();
        let pages = 1 + count.div_ceil(PAGE_ENTRIES as u64) as usize;
        let mut bytes = vec![0; pages * PAGE_BYTES];
        bytes[..PAGE_BYTES].copy_from_slice(&header);
        for pack in &packs {
            bytes.extend(pack.session.0);
            bytes.extend(pack.number.to_le_bytes());
        }
        bytes.extend([0; 32]);
        let record = record(bytes.len(), count, ObjectHash([0; 32]));
        Arc::new(Segment::from_bytes(Bytes::Owned(Arc::new(bytes)), REGION, &record).unwrap())
    }

    fn sizes(choice: &Choice) -> Vec<u64> {
        choice.segments.iter().map(|segment| segment.entries()).collect()
    }

    #[test]
    fn a_writer_merges_what_is_not_much_larger_than_what_is_new() {
        let chosen = |segments: &[(u64, bool)]| {
            let segments = segments.iter().map(|&(count, is_worn)| sized(count, is_worn)).collect();
            let choice = choose(&Index::of(segments, vec![(pack(1), entries(0..100))]));
            assert!(choice.with_loose);
            sizes(&choice)
        };
        assert_eq!(chosen(&[(9000, false), (400, false), (5000, false), (150, false)]), [150, 400]);
        assert_eq!(chosen(&[(201, false), (400, false)]), [0; 0]);
        // What is worn comes in whatever its size, and is no reason for larger ones.
        assert_eq!(chosen(&[(9000, false), (400, false), (5000, true), (150, false)]), [150, 400, 5000]);
        assert_eq!(chosen(&[(201, false), (9000, true)]), [9000]);
        // It does not take in more than 4 Mi entries, and no segment of 2 Mi.
        let large = 2 << 20;
        assert_eq!(
            chosen(&[(1_500_000, true), (1_600_000, true), (1_700_000, true)]),
            [1_500_000, 1_600_000]
        );
        assert_eq!(chosen(&[(large - 1, true), (large, true)]), [large - 1]);
    }

    #[test]
    fn a_collection_merges_large_segments_that_are_near_each_other_or_worn() {
        let chosen = |segments: &[(u64, bool)]| {
            let segments = segments.iter().map(|&(count, is_worn)| sized(count, is_worn)).collect();
            let choice = choose_large(&Index::of(segments, vec![]));
            assert!(choice.as_ref().is_none_or(|choice| !choice.with_loose));
            choice.map(|choice| sizes(&choice))
        };
        let large = 2 << 20;
        assert_eq!(chosen(&[]), None);
        assert_eq!(chosen(&[(large - 1, false), (large - 2, true)]), None, "these are a writer's");
        assert_eq!(chosen(&[(3 * large, false), (large, false)]), None, "all is well");
        assert_eq!(chosen(&[(2 * large, false), (large, false)]), Some(vec![large, 2 * large]));
        assert_eq!(chosen(&[(3 * large, true), (large, false)]), Some(vec![3 * large]));
    }

    /// A segment in memory, which the log says lists some packs in part.
    fn stored(ids: &[Entry], packs: &[PackName], partial: Vec<PackName>) -> Arc<Segment> {
        let mut writer = SegmentWriter::new(ids.len());
        ids.iter().for_each(|entry| writer.push(*entry).unwrap());
        let (bytes, hash, count) = writer.finish(REGION, packs).unwrap();
        let record = SegmentRecord { partial, ..record(bytes.len(), count, hash) };
        Arc::new(Segment::from_bytes(Bytes::Owned(Arc::new(bytes)), REGION, &record).unwrap())
    }

    #[test]
    fn what_was_listed_in_part_is_whole_again_once_all_of_it_is_taken_in() {
        let (here, gone) = (pack(1), pack(2));
        let segment = stored(&entries(5..6), &[here, gone], vec![here, gone]);
        let index = Index::of(vec![segment.clone()], vec![(here, entries(4..7))]);
        let partial = |with_loose| {
            let choice = Choice { segments: vec![segment.clone()], with_loose };
            let watch = || Ok::<(), PackError>(());
            let merge = Merge::plan(&index, &choice, REGION, watch).unwrap();
            let made = merge.pieces().unwrap();
            let record = merge.record(segment.record().name, &made);
            (record.partial, record.entries)
        };
        assert_eq!(partial(true), (vec![], 3), "its trailer was taken in, and what is gone stays out");
        assert_eq!(partial(false), (vec![here], 1));
    }

    #[test]
    fn a_segment_is_made_in_pieces_with_every_entry_and_a_filter() {
        for count in [4095, 30_000] {
            let index = Index::of(vec![], vec![(pack(1), entries((0..count).map(|n| n << 16)))]);
            let choice = Choice { segments: vec![], with_loose: true };
            let watch = || Ok::<(), PackError>(());
            let merge = Merge::plan(&index, &choice, REGION, watch).unwrap();
            let mut made = merge.pieces().unwrap();
            let mut pieces = Vec::new();
            while let Some(piece) = made.next_piece().unwrap() {
                pieces.push(piece);
            }
            let record = merge.record(SegmentName { session: SessionId([7; 16]), number: 1 }, &made);
            let (last, others) = pieces.split_last().unwrap();
            assert!(others.iter().all(|piece| piece.len() == PIECE_BYTES), "no more is in memory");
            assert!(last.len() < PIECE_BYTES + 2 * PAGE_BYTES);
            let bytes = pieces.concat();
            assert_eq!(pieces.len() > 1, bytes.len() > PIECE_BYTES, "{} pieces", pieces.len());
            let segment = Segment::from_bytes(Bytes::Owned(Arc::new(bytes)), REGION, &record).unwrap();
            segment.check_hash().unwrap();
            segment.check_filter().unwrap();
            assert_eq!(segment.iter().count(), count as usize);
            assert_eq!(segment.may_hold(u64::MAX - 1), count < 4096, "a large one has a filter");
        }
    }

    #[test]
    fn merging_leaves_few_and_rewrites_an_entry_a_few_times() {
        let (mut sizes, mut rewritten, mut most) = (Vec::<u64>::new(), 0, 0);
        for number in 0..5000_u64 {
            sizes.push(2 + number % 3);
            sizes.sort_unstable();
            // As often as a collection comes, and not after each.
            while number % 3 == 0 && growing(&sizes) > 1 {
                let merged = sizes.drain(..growing(&sizes)).sum();
                rewritten += merged;
                sizes.push(merged);
                sizes.sort_unstable();
            }
            if number % 3 == 0 {
                let larger = |at: usize| sizes[at] > 2 * sizes[..at].iter().sum::<u64>();
                assert!((1..sizes.len()).all(larger), "{sizes:?}");
                most = most.max(sizes.len());
            }
        }
        let total: u64 = sizes.iter().sum();
        assert!(most <= 8 && rewritten < 10 * total, "{most} segments, {rewritten} of {total} rewritten");
        assert_eq!((growing(&[]), growing(&[5]), growing(&[5, 11]), growing(&[5, 10, 31])), (0, 0, 0, 2));
        assert_eq!((growing(&[5, 11, 12]), growing(&[5, 11, 33])), (3, 0));
    }
}
