//! A stored index segment: a sorted table, mapped, searched by interpolation.

use super::error::PackError;
use crate::format::entry::{Entry, entry_id};
use crate::format::error::FormatError;
use crate::format::segment::{self, PAGE_ENTRIES, SegmentHeader};
use crate::io::map::Bytes;
use crate::io::storage::Storage;
use crate::model::ids::{ChunkId, RegionId};
use crate::model::objects::{PackName, SegmentRecord};
use std::sync::atomic::{AtomicU64, Ordering};

/// An open segment. Pages are checked when they are first touched.
#[derive(Debug)]
pub struct Segment {
    record: SegmentRecord,
    header: SegmentHeader,
    bytes: Bytes,
    /// A bit for each page: its checksum was found good.
    checked: Vec<AtomicU64>,
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
        let words = header.pages.div_ceil(64) as usize;
        let checked = std::iter::repeat_with(|| AtomicU64::new(0)).take(words).collect();
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
        self.search(id).map_err(|source| PackError::damaged(self.record.name, source))
    }

    /// Ids are uniform, so the page is guessed by interpolation, and the guess corrected by neighbours whose
    /// distance doubles: one or two pages are touched as a rule.
    fn search(&self, id: ChunkId) -> Result<Option<(Entry, PackName)>, FormatError> {
        let (mut low, mut high) = (0, self.header.pages);
        let mut guess = interpolate(id, self.header.pages);
        let mut step = 1;
        while low < high {
            let page = self.page(guess)?;
            let (first, last) = (entry_id(&page[0]), entry_id(&page[page.len() - 1]));
            if id < first {
                high = guess;
                guess = guess.saturating_sub(step).max(low);
            } else if id > last {
                low = guess + 1;
                guess = (guess + step).min(high.saturating_sub(1));
            } else {
                let found = page.binary_search_by(|entry| entry_id(entry).cmp(&id));
                return found.ok().map(|at| self.resolve(Entry::decode(&page[at])?)).transpose();
            }
            step *= 2;
            if step > 64 {
                guess = low + (high - low) / 2;
            }
        }
        Ok(None)
    }

    fn resolve(&self, entry: Entry) -> Result<(Entry, PackName), FormatError> {
        let pack = self.header.packs.get(entry.pack as usize);
        let pack = pack.ok_or_else(|| FormatError::invalid("index entry", "its pack is not in the table"))?;
        Ok((entry, *pack))
    }

    /// Every entry, ascending.
    pub fn iter(&self) -> impl Iterator<Item = Result<(Entry, PackName), PackError>> + '_ {
        let entries = (0..self.header.pages).flat_map(move |number| match self.page(number) {
            Ok(page) => page.iter().map(|bytes| self.resolve(Entry::decode(bytes)?)).collect(),
            Err(e) => vec![Err(e)],
        });
        entries.map(|entry| entry.map_err(|source| PackError::damaged(self.record.name, source)))
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
        let (word, bit) = (number as usize / 64, 1 << (number % 64));
        let checked = self.checked.get(word).is_some_and(|word| word.load(Ordering::Relaxed) & bit != 0);
        let page = segment::page(self.bytes.as_ref(), &self.header, number, !checked)?;
        if !checked && let Some(word) = self.checked.get(word) {
            word.fetch_or(bit, Ordering::Relaxed);
        }
        if page.is_empty() || page.len() > PAGE_ENTRIES {
            return Err(FormatError::invalid("index page", "it is empty"));
        }
        Ok(page)
    }
}

/// The page in which an id lies if ids are spread evenly.
fn interpolate(id: ChunkId, pages: u32) -> u32 {
    let [a, b, c, d, e, f, g, h, ..] = id.0;
    let high = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
    let page = (u128::from(high) * u128::from(pages)) >> 64;
    u32::try_from(page).unwrap_or(0)
}
