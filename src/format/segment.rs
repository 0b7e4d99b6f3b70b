//! Index segments: sorted entries in pages that carry their own checksum, and the packs that they name.
//!
//! ```text
//! header page  0  8 magic "IMGSSEGM"    page  0 85 x 48 entries, ascending; unused ones are zero
//!              8  2 version                4080  4 number of entries, 1 to 85
//!             10  1 suite, 0               4084  4 number of this page, the first is 0
//!             11  1 flags, 0               4088  4 0
//!             12  4 number of packs        4092  4 crc32c over bytes 0-4091
//!             16  8 number of entries
//!             24  4 number of pages      then the pages of the filter, see [`super::filter`],
//!             28  4 crc32c of the packs  then the pack table: 24 bytes each, ascending (session, number);
//!             32 16 region id            then 32 BLAKE3 over everything before
//!             48  4 number of filter pages, 0 without a filter
//!             52  . zeros
//!           4092  4 crc32c over bytes 0-4091
//! ```
//!
//! A look-up touches one or two pages and checks them; opening a segment reads the header page and the pack
//! table only, however large it is. All pages but the last are full.

use super::entry::{ENTRY_BYTES, Entry, entry_arrays, entry_id};
use super::envelope::{HASH_BYTES, Kind, VERSION, check_magic, check_preamble};
use super::error::FormatError;
use super::filter::{self, FilterWriter};
use crate::model::ids::{ChunkId, ObjectHash, RegionId, SessionId};
use crate::model::objects::PackName;

/// A segment's kind.
pub const SEGMENT: Kind =
    Kind { what: "index segment", magic: *b"IMGSSEGM", context: "imgstore 2026-11 index segment v1" };

/// Bytes of a page.
pub const PAGE_BYTES: usize = 4096;
/// Entries in a full page.
pub const PAGE_ENTRIES: usize = 85;
/// Bytes of a pack's name in the table.
const PACK_NAME_BYTES: usize = 24;
const TABLE_END: usize = PAGE_ENTRIES * ENTRY_BYTES;
const PAGE: &str = "index page";
/// What is reserved or unused is compared with it, which is quicker than byte by byte.
static ZEROS: [u8; PAGE_BYTES] = [0; PAGE_BYTES];

/// What must be known of a segment before its first byte is written.
#[derive(Debug, Clone, Copy)]
pub struct SegmentPlan<'a> {
    /// The region that it belongs to.
    pub region: RegionId,
    /// The table that entries point into, ascending.
    pub packs: &'a [PackName],
    /// How many entries come.
    pub entries: u64,
    /// Pages of its filter; none without one.
    pub filter_pages: u32,
}

/// A segment being written front to back: first every entry, ascending, then, if it has a filter, every id again. It
/// keeps what was not taken yet, and a page.
#[derive(Debug)]
pub struct SegmentEncoder<'a> {
    plan: SegmentPlan<'a>,
    out: Vec<u8>,
    hasher: blake3::Hasher,
    /// Entries, and ids, that came.
    come: [u64; 2],
    last: [Option<ChunkId>; 2],
    open: Vec<u8>,
    filter: FilterWriter,
}

impl<'a> SegmentEncoder<'a> {
    /// Begins with the header.
    pub fn begin(plan: SegmentPlan<'a>) -> Result<Self, FormatError> {
        let too_many = |_| FormatError::invalid(SEGMENT.what, "too many packs or pages");
        let pages = u32::try_from(plan.entries.div_ceil(PAGE_ENTRIES as u64)).map_err(too_many)?;
        let pack_count = u32::try_from(plan.packs.len()).map_err(too_many)?;
        if pages.checked_add(plan.filter_pages).is_none() {
            return Err(FormatError::invalid(SEGMENT.what, "too many pages"));
        }
        let mut header = vec![0; PAGE_BYTES];
        header[..8].copy_from_slice(&SEGMENT.magic);
        header[8..10].copy_from_slice(&VERSION.to_le_bytes());
        header[12..16].copy_from_slice(&pack_count.to_le_bytes());
        header[16..24].copy_from_slice(&plan.entries.to_le_bytes());
        header[24..28].copy_from_slice(&pages.to_le_bytes());
        header[28..32].copy_from_slice(&crc32c::crc32c(&pack_table(plan.packs)).to_le_bytes());
        header[32..48].copy_from_slice(&plan.region.0);
        header[48..52].copy_from_slice(&plan.filter_pages.to_le_bytes());
        seal_page(&mut header);
        let filter = FilterWriter::new(plan.filter_pages, pages);
        let open = Vec::with_capacity(PAGE_BYTES);
        Ok(Self { plan, out: header, hasher: SEGMENT.hasher(), come: [0; 2], last: [None; 2], open, filter })
    }

    /// Adds the next entry. Its id must be larger than the one before.
    pub fn push(&mut self, entry: &Entry) -> Result<(), FormatError> {
        self.count(0, entry.id)?;
        self.open.extend(entry.encode());
        if self.open.len() == TABLE_END || self.come[0] == self.plan.entries {
            self.close_page();
        }
        Ok(())
    }

    /// Adds the next id to the filter, after all entries.
    pub fn push_filter(&mut self, id: ChunkId) -> Result<(), FormatError> {
        self.count(1, id)?;
        self.filter.add(id.leading(), &mut self.out);
        Ok(())
    }

    fn count(&mut self, part: usize, id: ChunkId) -> Result<(), FormatError> {
        if self.last[part].is_some_and(|last| last >= id) {
            return Err(FormatError::invalid(SEGMENT.what, "ids do not ascend"));
        }
        self.last[part] = Some(id);
        self.come[part] += 1;
        if self.come[part] > self.plan.entries || (part == 1 && self.come[0] != self.plan.entries) {
            return Err(FormatError::invalid(SEGMENT.what, "not as many entries as were announced"));
        }
        Ok(())
    }

    /// Whether it has a filter, to which every id is to be added after the entries.
    pub const fn has_filter(&self) -> bool {
        self.plan.filter_pages > 0
    }

    /// Bytes that can be taken.
    pub fn ready(&self) -> usize {
        self.out.len()
    }

    /// Takes the bytes that are complete, to be written behind those that were taken before.
    pub fn take(&mut self) -> Vec<u8> {
        self.hasher.update(&self.out);
        let len = self.out.len();
        std::mem::replace(&mut self.out, Vec::with_capacity(len))
    }

    /// The last bytes, and the whole segment's hash. Nothing comes after it.
    pub fn finish(&mut self) -> Result<(Vec<u8>, ObjectHash), FormatError> {
        let ids = if self.has_filter() { self.plan.entries } else { 0 };
        if self.come != [self.plan.entries, ids] {
            return Err(FormatError::invalid(SEGMENT.what, "not as many entries as were announced"));
        }
        self.filter.finish(&mut self.out);
        self.out.extend(pack_table(self.plan.packs));
        self.hasher.update(&self.out);
        let hash = ObjectHash(*self.hasher.finalize().as_bytes());
        self.out.extend(hash.0);
        Ok((std::mem::take(&mut self.out), hash))
    }

    fn close_page(&mut self) {
        #[expect(clippy::cast_possible_truncation, reason = "at most 85; pages were counted before")]
        let (count, number) =
            ((self.open.len() / ENTRY_BYTES) as u32, ((self.come[0] - 1) / PAGE_ENTRIES as u64) as u32);
        self.open.resize(PAGE_BYTES, 0);
        self.open[TABLE_END..TABLE_END + 4].copy_from_slice(&count.to_le_bytes());
        self.open[TABLE_END + 4..TABLE_END + 8].copy_from_slice(&number.to_le_bytes());
        seal_page(&mut self.open);
        self.out.append(&mut self.open);
    }
}

fn pack_table(packs: &[PackName]) -> Vec<u8> {
    packs.iter().flat_map(|p| p.session.0.into_iter().chain(p.number.to_le_bytes())).collect()
}

/// A segment being made in memory: for few entries.
#[derive(Debug)]
pub struct SegmentWriter {
    entries: Vec<Entry>,
    filter_pages: Option<u32>,
}

impl SegmentWriter {
    /// For about `entries` entries.
    pub fn new(entries: usize) -> Self {
        Self { entries: Vec::with_capacity(entries), filter_pages: None }
    }

    /// Gives it a filter of so many pages in place of the usual number.
    #[must_use]
    pub const fn with_filter_pages(mut self, pages: u32) -> Self {
        self.filter_pages = Some(pages);
        self
    }

    /// Adds the next entry. Its id must be larger than the one before.
    pub fn push(&mut self, entry: Entry) -> Result<(), FormatError> {
        if self.entries.last().is_some_and(|last| last.id >= entry.id) {
            return Err(FormatError::invalid(SEGMENT.what, "ids do not ascend"));
        }
        self.entries.push(entry);
        Ok(())
    }

    /// The segment's bytes, hash and number of entries. `packs` is the table that entries point into.
    pub fn finish(
        self,
        region: RegionId,
        packs: &[PackName],
    ) -> Result<(Vec<u8>, ObjectHash, u64), FormatError> {
        let entries = self.entries.len() as u64;
        let usual = u32::try_from(filter::pages_for(entries)).unwrap_or(0);
        let filter_pages = self.filter_pages.unwrap_or(usual);
        let mut encoder = SegmentEncoder::begin(SegmentPlan { region, packs, entries, filter_pages })?;
        self.entries.iter().try_for_each(|entry| encoder.push(entry))?;
        if filter_pages > 0 {
            self.entries.iter().try_for_each(|entry| encoder.push_filter(entry.id))?;
        }
        let (bytes, hash) = encoder.finish()?;
        Ok((bytes, hash, entries))
    }
}

pub(super) fn seal_page(page: &mut [u8]) {
    let crc = crc32c::crc32c(&page[..PAGE_BYTES - 4]);
    page[PAGE_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
}

/// What a segment's header page and pack table say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The region that it belongs to.
    pub region: RegionId,
    /// Entries in all pages.
    pub entries: u64,
    /// Pages of entries, after the header page.
    pub pages: u32,
    /// Pages of the filter, after those; none without one.
    pub filter_pages: u32,
    /// The packs that entries point to, ascending.
    pub packs: Vec<PackName>,
}

/// A segment's header, after a check of header page, pack table and length; pages are checked as they are
/// used, by [`page`].
pub fn decode_header(bytes: &[u8]) -> Result<SegmentHeader, FormatError> {
    let what = SEGMENT.what;
    check_magic(&SEGMENT, bytes)?;
    let header = bytes.get(..PAGE_BYTES).ok_or_else(|| FormatError::length(what, PAGE_BYTES, bytes.len()))?;
    if crc32c::crc32c(&header[..PAGE_BYTES - 4]).to_le_bytes() != header[PAGE_BYTES - 4..] {
        return Err(FormatError::Hash { what: "index segment header" });
    }
    check_preamble(&SEGMENT, bytes)?;
    let u32_at = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let (pack_count, pages, filter_pages) = (u32_at(12), u32_at(24), u32_at(48));
    let entries = u64::from(u32_at(16)) | u64::from(u32_at(20)) << 32;
    let table_start = (u64::from(pages) + 1 + u64::from(filter_pages)) * PAGE_BYTES as u64;
    let table_end = table_start + u64::from(pack_count) * PACK_NAME_BYTES as u64;
    let expected = table_end + HASH_BYTES as u64;
    if bytes.len() as u64 != expected {
        return Err(FormatError::Length { what, expected, found: bytes.len() as u64 });
    }
    if entries.div_ceil(PAGE_ENTRIES as u64) != u64::from(pages) {
        return Err(FormatError::invalid(what, "its pages do not hold its number of entries"));
    }
    if header[52..PAGE_BYTES - 4] != ZEROS[52..PAGE_BYTES - 4] {
        return Err(FormatError::Newer { what, feature: "a reserved field that is not 0".into() });
    }
    let table =
        &bytes[bytes.len() - HASH_BYTES - pack_count as usize * PACK_NAME_BYTES..bytes.len() - HASH_BYTES];
    if crc32c::crc32c(table) != u32_at(28) {
        return Err(FormatError::Hash { what: "index segment pack table" });
    }
    let packs: Vec<PackName> = table.as_chunks::<PACK_NAME_BYTES>().0.iter().map(decode_pack_name).collect();
    if !packs.is_sorted_by(|a, b| a < b) {
        return Err(FormatError::invalid(what, "its packs do not ascend"));
    }
    let mut region = [0; 16];
    region.copy_from_slice(&header[32..48]);
    Ok(SegmentHeader { region: RegionId(region), entries, pages, filter_pages, packs })
}

/// Bytes behind the pages of a segment, its table of packs and its hash, as its header says; nothing is checked here.
pub fn table_bytes(header: &[u8]) -> usize {
    let count =
        header.get(12..).and_then(|rest| rest.first_chunk()).map_or(0, |count| u32::from_le_bytes(*count));
    (count as usize).saturating_mul(PACK_NAME_BYTES).saturating_add(HASH_BYTES)
}

fn decode_pack_name(bytes: &[u8; PACK_NAME_BYTES]) -> PackName {
    let (session, number) = bytes.split_at(16);
    PackName {
        session: SessionId(session.try_into().unwrap_or_default()),
        number: u64::from_le_bytes(number.try_into().unwrap_or_default()),
    }
}

/// The entries of page `number`, as bytes to search; `check` is whether the page's checksum is to be
/// computed, which a reader does once.
pub fn page<'a>(
    bytes: &'a [u8],
    header: &SegmentHeader,
    number: u32,
    check: bool,
) -> Result<&'a [[u8; ENTRY_BYTES]], FormatError> {
    let start = (number as usize + 1) * PAGE_BYTES;
    let page = bytes.get(start..start + PAGE_BYTES).filter(|_| number < header.pages);
    let page = page.ok_or_else(|| FormatError::length(PAGE, start + PAGE_BYTES, bytes.len()))?;
    let last = number + 1 == header.pages;
    #[expect(clippy::cast_possible_truncation, reason = "at most 85")]
    let count =
        if last { (header.entries - u64::from(number) * PAGE_ENTRIES as u64) as usize } else { PAGE_ENTRIES };
    if check {
        check_page(page, number, count)?;
    }
    Ok(&entry_arrays(page)[..count])
}

/// A page of the filter, and the number that it must have.
pub fn filter_page<'a>(
    bytes: &'a [u8],
    header: &SegmentHeader,
    page: u32,
) -> Option<(&'a [u8; PAGE_BYTES], u32)> {
    let number = header.pages.checked_add(page).filter(|_| page < header.filter_pages)?;
    let start = (number as usize + 1) * PAGE_BYTES;
    Some((bytes.get(start..)?.first_chunk()?, number))
}

fn check_page(page: &[u8], number: u32, count: usize) -> Result<(), FormatError> {
    if crc32c::crc32c(&page[..PAGE_BYTES - 4]).to_le_bytes() != page[PAGE_BYTES - 4..] {
        return Err(FormatError::Hash { what: PAGE });
    }
    let tail = &page[TABLE_END..PAGE_BYTES - 4];
    #[expect(clippy::cast_possible_truncation, reason = "at most 85")]
    let fits = tail[..4] == (count as u32).to_le_bytes() && tail[4..8] == number.to_le_bytes();
    let entries = &entry_arrays(page)[..count];
    let unused = &page[count * ENTRY_BYTES..TABLE_END];
    let sound = fits && tail[8..] == [0; 4] && *unused == ZEROS[..unused.len()];
    if !sound || !entries.is_sorted_by(|a, b| entry_id(a) < entry_id(b)) {
        return Err(FormatError::invalid(PAGE, "its count, number or order is wrong"));
    }
    Ok(())
}

/// The whole segment's hash, checked against its last bytes.
pub fn check_hash(bytes: &[u8]) -> Result<ObjectHash, FormatError> {
    let Some((covered, stored)) = bytes.split_last_chunk::<HASH_BYTES>() else {
        return Err(FormatError::length(SEGMENT.what, HASH_BYTES, bytes.len()));
    };
    let hash = SEGMENT.hash(&[covered]);
    if hash.0 == *stored { Ok(hash) } else { Err(FormatError::Hash { what: SEGMENT.what }) }
}
