//! A stored index segment: a sorted table, mapped, searched by interpolation.

use super::checked::Checked;
use super::error::PackError;
use crate::format::entry::{Entry, entry_id};
use crate::format::error::FormatError;
use crate::format::segment::{self, PAGE_ENTRIES, SegmentHeader};
use crate::io::map::Bytes;
use crate::io::storage::Storage;
use crate::model::ids::{ChunkId, RegionId};
use crate::model::objects::{PackName, SegmentRecord};

/// Guesses by interpolation before bisection.
const INTERPOLATIONS_MAX: u32 = 6;

/// An open segment. Pages are checked when they are first touched.
#[derive(Debug)]
pub struct Segment {
    record: SegmentRecord,
    header: SegmentHeader,
    bytes: Bytes,
    /// Pages whose checksum was found good.
    checked: Checked,
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
        let header = segment::decode_header(bytes.as_ref()).map_err(damaged)?;
        if header.region != region
            || header.entries != record.entries
            || bytes.as_ref().len() as u64 != record.len
        {
            let why = format!("it has {} entries of region {}", header.entries, header.region);
            return Err(damaged(FormatError::invalid("index segment", why)));
        }
        let checked = Checked::none_of(header.pages);
        Ok(Self { record: record.clone(), header, bytes, checked })
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

    /// A chunk's entry and its pack.
    pub fn lookup(&self, id: ChunkId) -> Result<Option<(Entry, PackName)>, PackError> {
        self.search(id, id).map_err(|source| PackError::damaged(self.record.name, source))
    }

    /// The entry and pack of some chunk whose id begins with these bytes.
    pub fn lookup_leading(&self, leading: u64) -> Result<Option<(Entry, PackName)>, PackError> {
        let (first, last) = ids_with_leading(leading);
        self.search(first, last).map_err(|source| PackError::damaged(self.record.name, source))
    }

    /// An entry between two ids, which are equal or next to each other. Ids are uniform, so the page is guessed by
    /// interpolation between what is known of the bracket's ends: two or three pages are touched as a rule. Ids that are
    /// not uniform end in bisection.
    fn search(&self, from: ChunkId, to: ChunkId) -> Result<Option<(Entry, PackName)>, FormatError> {
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
                let at = page.partition_point(|entry| entry_id(entry) < from);
                let found = page.get(at).filter(|entry| entry_id(entry) <= to);
                return found.map(|entry| self.resolve(Entry::decode(entry)?)).transpose();
            }
        }
        Ok(None)
    }

    fn resolve(&self, entry: Entry) -> Result<(Entry, PackName), FormatError> {
        let pack = self.header.packs.get(entry.pack as usize);
        let pack = pack.ok_or_else(|| FormatError::invalid("index entry", "its pack is not in the table"))?;
        Ok((entry, *pack))
    }

    /// Every entry, ascending; an entry out of order is an error.
    pub fn iter(&self) -> impl Iterator<Item = Result<(Entry, PackName), PackError>> + '_ {
        let mut last = None;
        let entries = (0..self.header.pages).flat_map(move |number| match self.page(number) {
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
        let found = segment::check_hash(self.bytes.as_ref()).map_err(damaged)?;
        if found != self.record.hash {
            let expected = self.record.hash;
            return Err(damaged(FormatError::Identity { what: "index segment", expected, found }));
        }
        Ok(())
    }

    fn page(&self, number: u32) -> Result<&[[u8; 48]], FormatError> {
        let is_checked = self.checked.has(number);
        let page = segment::page(self.bytes.as_ref(), &self.header, number, !is_checked)?;
        if !is_checked {
            self.checked.set(number);
        }
        if page.is_empty() || page.len() > PAGE_ENTRIES {
            return Err(FormatError::invalid("index page", "it is empty"));
        }
        Ok(page)
    }
}

/// The first and the last id that begin with these bytes.
pub(super) fn ids_with_leading(leading: u64) -> (ChunkId, ChunkId) {
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
