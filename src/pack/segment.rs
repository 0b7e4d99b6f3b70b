//! A stored index segment: a sorted table, mapped, searched by interpolation.

use super::checked::Checked;
use super::error::PackError;
use crate::format::entry::{ENTRY_BYTES, Entry, entry_id};
use crate::format::error::FormatError;
use crate::format::filter;
use crate::format::segment::{self, PAGE_BYTES, PAGE_ENTRIES, SegmentHeader};
use crate::io::map::Bytes;
use crate::io::storage::Storage;
use crate::model::ids::{ChunkId, RegionId};
use crate::model::objects::{PackName, SegmentRecord};
use std::ops::Range;

/// Guesses by interpolation before bisection.
const INTERPOLATIONS_MAX: u32 = 6;

/// Look-ups whose memory is read at once.
pub(super) const READ_AHEAD: usize = 32;
/// Entries on both sides of where one should be that are read with it.
const NEAR_ENTRIES: usize = 4;
/// Pages that are brought into memory at once where one follows the other.
const LOADED_PAGES: u32 = 64;
/// Bytes, the same.
const LOADED_BYTES: usize = LOADED_PAGES as usize * PAGE_BYTES;
/// Bytes that a processor reads at once.
const LINE_BYTES: usize = 64;

/// An open segment. Pages are checked when they are first touched.
#[derive(Debug)]
pub struct Segment {
    record: SegmentRecord,
    header: SegmentHeader,
    bytes: Bytes,
    /// Pages whose checksum was found good.
    checked: Checked,
    /// And those of the filter.
    filter_checked: Checked,
    /// Pages of the filter that could not be read, or are damaged.
    filter_bad: Checked,
}

impl Segment {
    /// Opens the segment of region `region` that the log names.
    pub fn open(storage: &dyn Storage, region: RegionId, record: &SegmentRecord) -> Result<Self, PackError> {
        let bytes = storage.open(&record.name.to_string())?.bytes()?;
        Self::from_bytes(bytes, region, record)
    }

    /// As [`Segment::open`], from the bytes.
    pub fn from_bytes(bytes: Bytes, region: RegionId, record: &SegmentRecord) -> Result<Self, PackError> {
        let damaged = |source| PackError::damaged(record.name, source);
        load(&bytes, 0..PAGE_BYTES).map_err(damaged)?;
        let len = bytes.as_ref().len();
        load(&bytes, len.saturating_sub(segment::table_bytes(bytes.as_ref()))..len).map_err(damaged)?;
        let header = segment::decode_header(bytes.as_ref()).map_err(damaged)?;
        if header.region != region
            || header.entries != record.entries
            || bytes.as_ref().len() as u64 != record.len
        {
            let why = format!("it has {} entries of region {}", header.entries, header.region);
            return Err(damaged(FormatError::invalid("index segment", why)));
        }
        let checked = Checked::none_of(header.pages);
        let filter_checked = Checked::none_of(header.filter_pages);
        let filter_bad = Checked::none_of(header.filter_pages);
        Ok(Self { record: record.clone(), header, bytes, checked, filter_checked, filter_bad })
    }

    /// What the log says of it.
    pub fn record(&self) -> &SegmentRecord {
        &self.record
    }

    /// The packs whose chunks it lists, ascending.
    pub fn packs(&self) -> &[PackName] {
        &self.header.packs
    }

    /// Number of entries.
    pub fn entries(&self) -> u64 {
        self.header.entries
    }

    /// Whether a chunk whose id begins with these bytes may be here, as the filter says; always true if there is none,
    /// or if what it says is damaged. That it is not is worth a checksum and no more: who would call a chunk lost for
    /// it looks it up as well.
    pub fn may_hold(&self, leading: u64) -> bool {
        self.filter_page(leading).is_none_or(|(page, place)| filter::may_hold(page, place, leading))
    }

    /// The page of the filter that an id's block is on, if it is sound, and the block's place there.
    fn filter_page(&self, leading: u64) -> Option<(&[u8; PAGE_BYTES], usize)> {
        let (number, place) = filter::place(leading, self.header.filter_pages);
        let (page, as_page) = segment::filter_page(self.bytes.as_ref(), &self.header, number)?;
        if self.filter_bad.has(number) {
            return None;
        }
        if !self.filter_checked.has(number) {
            let is_sound = load(&self.bytes, bytes_of(as_page..as_page + 1)).is_ok()
                && filter::check_page(page, as_page).is_ok();
            // A read that fails takes long: once is enough.
            (if is_sound { &self.filter_checked } else { &self.filter_bad }).set(number);
            if !is_sound {
                return None;
            }
        }
        Some((page, place))
    }

    /// Whether the filter denies none of the chunks that are here.
    pub fn check_filter(&self) -> Result<(), PackError> {
        for entry in self.iter() {
            let (entry, _) = entry?;
            if !self.may_hold(entry.id.leading()) {
                let why = format!("it denies chunk {}, which is there", entry.id);
                return Err(PackError::damaged(self.record.name, FormatError::invalid("index filter", why)));
            }
        }
        Ok(())
    }

    /// A chunk's entry and its pack.
    pub fn lookup(&self, id: ChunkId) -> Result<Option<(Entry, PackName)>, PackError> {
        self.search(id, id).map_err(|source| PackError::damaged(self.record.name, source))
    }

    /// The entry and pack of some chunk whose id begins with these bytes.
    pub fn lookup_leading(&self, leading: u64) -> Result<Option<(Entry, PackName)>, PackError> {
        let (first, last) = ids_with_leading(leading);
        self.search(first, last).map_err(|source| PackError::damaged(self.record.name, source))
    }

    /// An entry between two ids, which are equal or next to each other. The filter says about where it is. Without one,
    /// and where that was wrong, the page is guessed by interpolation between what is known of the bracket's ends, since
    /// ids are uniform: two or three pages are touched as a rule. Ids that are not uniform end in bisection.
    fn search(&self, from: ChunkId, to: ChunkId) -> Result<Option<(Entry, PackName)>, FormatError> {
        let answer = |entry: Option<&[u8; ENTRY_BYTES]>| {
            let found = entry.filter(|entry| (from..=to).contains(&entry_id(entry)));
            found.map(|entry| self.resolve(Entry::decode(entry)?)).transpose()
        };
        if let Some((page, near)) = self.hint(from.leading()) {
            let page = self.page(page)?;
            let at = partition_near(page, near, from);
            // Between two entries of the page, or its first one: there is no other place for it.
            if page.get(at).is_some_and(|entry| at > 0 || entry_id(entry) <= to) {
                return answer(page.get(at));
            }
        }
        let (mut low, mut high) = (0, self.header.pages);
        let (mut low_key, mut high_key) = (0, u64::MAX);
        let mut interpolations = 0..INTERPOLATIONS_MAX;
        while low < high {
            let guess = match interpolations.next() {
                Some(_) => low + interpolate(from.leading(), low_key, high_key, high - low),
                None => low + (high - low) / 2,
            };
            let page = self.page(guess)?;
            let (first, last) = (entry_id(&page[0]), entry_id(&page[page.len() - 1]));
            if to < first {
                (high, high_key) = (guess, first.leading());
            } else if from > last {
                (low, low_key) = (guess + 1, last.leading());
            } else {
                return answer(page.get(page.partition_point(|entry| entry_id(entry) < from)));
            }
        }
        Ok(None)
    }

    /// Reads what look-ups of at most [`READ_AHEAD`] ids are going to read, and gives nothing. The reads do not wait for
    /// each other, as those of one look-up after the other do.
    pub(super) fn read_ahead(&self, ids: &[ChunkId]) {
        let mut read = 0;
        for id in ids {
            let line =
                self.filter_page(id.leading()).map(|(page, place)| &page.as_chunks::<LINE_BYTES>().0[place]);
            read = line.map_or(0, |line| line[0]).max(read);
        }
        let mut hints = [None; READ_AHEAD];
        for (hint, id) in hints.iter_mut().zip(ids) {
            *hint = self.may_hold(id.leading()).then(|| self.hint(id.leading())).flatten();
        }
        let bytes = self.bytes.as_ref();
        for (page, at) in hints.into_iter().flatten() {
            if !self.checked.has(page) && load(&self.bytes, bytes_of(page..page + 1)).is_err() {
                continue;
            }
            for line in near(page, at).step_by(LINE_BYTES) {
                read = bytes.get(line).copied().unwrap_or(0).max(read);
            }
        }
        std::hint::black_box(read);
    }

    /// The page, and the place there, at which the filter says that an id should be.
    fn hint(&self, leading: u64) -> Option<(u32, usize)> {
        let (page, place) = self.filter_page(leading)?;
        let position = filter::position(page, place, leading, self.header.filter_pages, self.header.entries);
        let page =
            u32::try_from(position / PAGE_ENTRIES as u64).ok().filter(|page| *page < self.header.pages)?;
        Some((page, usize::try_from(position % PAGE_ENTRIES as u64).ok()?))
    }

    fn resolve(&self, entry: Entry) -> Result<(Entry, PackName), FormatError> {
        let pack = self.header.packs.get(entry.pack as usize);
        let pack = pack.ok_or_else(|| FormatError::invalid("index entry", "its pack is not in the table"))?;
        Ok((entry, *pack))
    }

    /// Every entry, ascending; an entry out of order is an error.
    pub fn iter(&self) -> impl Iterator<Item = Result<(Entry, PackName), PackError>> + '_ {
        let mut last = None;
        let mut loaded = 0..0;
        let entries =
            (0..self.header.pages).flat_map(move |number| match self.page_in(number, &mut loaded) {
                Ok(page) => page.iter().map(|bytes| self.resolve(Entry::decode(bytes)?)).collect(),
                Err(e) => vec![Err(e)],
            });
        let mut in_order = move |(entry, pack): (Entry, PackName)| {
            if last.replace(entry.id).is_some_and(|last| last >= entry.id) {
                return Err(FormatError::invalid("index segment", "ids do not ascend"));
            }
            Ok((entry, pack))
        };
        entries.map(move |entry| {
            entry.and_then(&mut in_order).map_err(|source| PackError::damaged(self.record.name, source))
        })
    }

    /// Checks the whole segment against the hash in the log.
    pub fn check_hash(&self) -> Result<(), PackError> {
        let damaged = |source| PackError::damaged(self.record.name, source);
        for start in (0..self.bytes.as_ref().len()).step_by(LOADED_BYTES) {
            load(&self.bytes, start..start + LOADED_BYTES).map_err(damaged)?;
        }
        let found = segment::check_hash(self.bytes.as_ref()).map_err(damaged)?;
        if found != self.record.hash {
            let expected = self.record.hash;
            return Err(damaged(FormatError::Identity { what: "index segment", expected, found }));
        }
        Ok(())
    }

    /// The page that follows others, which are brought into memory some at a time.
    fn page_in(&self, number: u32, loaded: &mut Range<u32>) -> Result<&[[u8; 48]], FormatError> {
        if !loaded.contains(&number) {
            let some = number..number.saturating_add(LOADED_PAGES);
            // If one of them cannot be read, each tells for itself.
            *loaded = load(&self.bytes, bytes_of(some.clone())).map_or(0..0, |()| some);
        }
        self.checked_page(number, loaded.contains(&number))
    }

    fn page(&self, number: u32) -> Result<&[[u8; 48]], FormatError> {
        self.checked_page(number, false)
    }

    fn checked_page(&self, number: u32, is_loaded: bool) -> Result<&[[u8; 48]], FormatError> {
        let is_checked = self.checked.has(number);
        if !is_checked && !is_loaded {
            load(&self.bytes, bytes_of(number..number.saturating_add(1)))?;
        }
        let page = segment::page(self.bytes.as_ref(), &self.header, number, !is_checked)?;
        if !is_checked {
            self.checked.set(number);
        }
        if page.is_empty() {
            return Err(FormatError::invalid("index page", "it is empty"));
        }
        Ok(page)
    }
}

/// Where pages are.
fn bytes_of(pages: Range<u32>) -> Range<usize> {
    let at = |page: u32| (page as usize + 1) * PAGE_BYTES;
    at(pages.start)..at(pages.end)
}

/// What the device does not give is as bad as what it gives wrongly: all of it is in the packs, too.
fn load(bytes: &Bytes, range: Range<usize>) -> Result<(), FormatError> {
    let unreadable = |e| FormatError::invalid("index segment", format!("it cannot be read: {e}"));
    bytes.load(range).map_err(unreadable)
}

/// The bytes of a segment around the entry at a place of a page.
fn near(page: u32, at: usize) -> Range<usize> {
    let page = (page as usize + 1) * PAGE_BYTES;
    // The page behind it may be one that the device does not give.
    let (start, end) = (at.saturating_sub(NEAR_ENTRIES), (at + NEAR_ENTRIES).min(PAGE_ENTRIES));
    page + start * ENTRY_BYTES..page + end * ENTRY_BYTES
}

/// How many entries of a page are below an id, looked for from a place on in steps that grow.
fn partition_near(page: &[[u8; ENTRY_BYTES]], near: usize, id: ChunkId) -> usize {
    let is_below = |entry: &[u8; ENTRY_BYTES]| entry_id(entry) < id;
    let near = near.min(page.len());
    let (mut low, mut high, mut step) = (near, near, 1);
    while low > 0 && !is_below(&page[low - 1]) {
        (low, high) = (low.saturating_sub(step), low);
        step *= 2;
    }
    while high < page.len() && low == near && is_below(&page[high]) {
        high = (high + step).min(page.len());
        step *= 2;
    }
    low + page[low..high].partition_point(is_below)
}

/// The first and the last id that begin with these bytes.
fn ids_with_leading(leading: u64) -> (ChunkId, ChunkId) {
    let (mut first, mut last) = ([0; 32], [0xff; 32]);
    first[..8].copy_from_slice(&leading.to_be_bytes());
    last[..8].copy_from_slice(&leading.to_be_bytes());
    (ChunkId(first), ChunkId(last))
}

/// Which of `pages` pages between two keys a key lies in if keys are spread evenly.
fn interpolate(key: u64, low_key: u64, high_key: u64, pages: u32) -> u32 {
    let above = u128::from(key.saturating_sub(low_key));
    let span = u128::from(high_key.saturating_sub(low_key)) + 1;
    let page = above * u128::from(pages) / span;
    u32::try_from(page).unwrap_or(u32::MAX).min(pages.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::fingerprint::mix;
    use crate::chunk::frame::Codec;
    use crate::format::segment::SegmentWriter;
    use crate::model::ids::SessionId;
    use crate::model::objects::SegmentName;
    use std::sync::Arc;

    #[test]
    fn the_place_of_an_id_is_found_from_wherever_one_begins() {
        for count in 0..40_u8 {
            let page: Vec<[u8; ENTRY_BYTES]> = (0..count).map(|n| [2 * n + 1; ENTRY_BYTES]).collect();
            for id in 0..=2 * count {
                let expected = page.partition_point(|entry| entry[0] < id);
                for near in 0..=page.len() + 2 {
                    assert_eq!(partition_near(&page, near, ChunkId([id; 32])), expected, "{id} of {count}");
                }
            }
        }
    }

    /// A segment of ids that lie as hashes do, with a filter.
    fn segment(ids: &[u64]) -> Segment {
        let mut writer = SegmentWriter::new(ids.len());
        for id in ids {
            let (id, _) = ids_with_leading(*id);
            let codec = Codec::Zstd;
            writer.push(Entry { id, pack: 0, offset: 64, stored_len: 88, raw_blocks: 1, codec }).unwrap();
        }
        let (region, session) = (RegionId([3; 16]), SessionId([7; 16]));
        let (bytes, hash, entries) = writer.finish(region, &[PackName { session, number: 1 }]).unwrap();
        let (name, len) = (SegmentName { session, number: 2 }, bytes.len() as u64);
        let record = SegmentRecord { name, len, entries, hash, replaces: vec![], partial: vec![] };
        Segment::from_bytes(Bytes::Owned(Arc::new(bytes)), region, &record).unwrap()
    }

    #[test]
    fn the_filter_says_where_an_entry_is_and_that_is_read_ahead() {
        let mut ids: Vec<u64> = (1..=10_000).map(mix).collect();
        ids.sort_unstable();
        let segment = segment(&ids);
        let (mut off, mut ahead) = (0, 0);
        for (number, id) in ids.iter().enumerate() {
            let (page, at) = segment.hint(*id).unwrap();
            assert!(at < PAGE_ENTRIES);
            let hinted = page as usize * PAGE_ENTRIES + at;
            off += number.abs_diff(hinted);
            let entry = (number / PAGE_ENTRIES + 1) * PAGE_BYTES + number % PAGE_ENTRIES * ENTRY_BYTES;
            ahead += usize::from(near(page, at).contains(&entry));
        }
        assert!(off < 5 * ids.len(), "{off} entries off in all");
        assert!(ahead > ids.len() / 2, "of {ahead} entries only");
        // What is read stays around the place, and in front of a page's first entry there is none.
        assert_eq!(near(0, 0), 4096..4096 + 4 * 48);
        assert_eq!(near(2, 10), 3 * 4096 + 6 * 48..3 * 4096 + 14 * 48);
        assert!(near(0, PAGE_ENTRIES - 1).end <= 2 * 4096, "not into the page behind it");
    }

    #[test]
    fn a_look_up_touches_one_page_as_a_rule() {
        let mut ids: Vec<u64> = (1..=10_000).map(mix).collect();
        ids.sort_unstable();
        let (record, bytes) = (segment(&ids).record, segment(&ids).bytes);
        let (mut pages, mut look_ups) = (0, 0);
        for id in ids.iter().step_by(10) {
            for (looked_for, is_there) in [(*id, true), (id + 1, false)] {
                let fresh = Segment::from_bytes(bytes.clone(), RegionId([3; 16]), &record).unwrap();
                let found = fresh.lookup(ids_with_leading(looked_for).0).unwrap();
                assert_eq!(found.is_some(), is_there);
                pages += (0..fresh.header.pages).filter(|page| fresh.checked.has(*page)).count();
                look_ups += 1;
            }
        }
        assert!(pages >= look_ups, "what was checked is noted, and not checked again");
        assert!(pages * 10 < look_ups * 12, "{pages} pages in {look_ups} look-ups");
        // And of the filter those that are read ahead.
        let fresh = Segment::from_bytes(bytes, RegionId([3; 16]), &record).unwrap();
        fresh.read_ahead(&[1, u64::MAX].map(|leading| ids_with_leading(leading).0));
        let last = fresh.header.filter_pages - 1;
        assert!([0, last].iter().all(|page| fresh.filter_checked.has(*page)));
        assert!(last > 1 && !fresh.filter_checked.has(1));
    }

    #[test]
    fn a_guess_is_where_even_keys_would_be_and_never_outside() {
        assert_eq!(interpolate(1 << 63, 0, u64::MAX, 100), 50);
        assert_eq!(interpolate(1300, 1000, 1999, 10), 3);
        assert_eq!((interpolate(0, 0, u64::MAX, 100), interpolate(u64::MAX, 0, u64::MAX, 100)), (0, 99));
        // Keys beyond both ends, and a bracket of one key.
        assert_eq!((interpolate(5, 10, 20, 7), interpolate(50, 10, 20, 7)), (0, 6));
        assert_eq!((interpolate(5, 5, 5, 7), interpolate(9, 5, 5, 7)), (0, 6));
    }
}
