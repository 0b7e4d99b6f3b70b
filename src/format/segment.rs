//! Index segments: sorted entries in pages that carry their own checksum, and the packs that they name.
//!
//! ```text
//! header page  0  8 magic "IMGSSEGM"    page  0 85 x 48 entries, ascending; unused ones are zero
//!              8  2 version                4080  4 number of entries, 1 to 85
//!             10  1 suite, 0               4084  4 number of this page, the first is 0
//!             11  1 flags, 0               4088  4 0
//!             12  4 number of packs        4092  4 crc32c over bytes 0-4091
//!             16  8 number of entries
//!             24  4 number of pages      then the pack table: 24 bytes each, ascending (session, number);
//!             28  4 crc32c of the packs  then 32 BLAKE3 over everything before
//!             32 16 region id
//!             48  . zeros
//!           4092  4 crc32c over bytes 0-4091
//! ```
//!
//! A look-up touches one or two pages and checks them; opening a segment reads the header page and the pack
//! table only, however large it is. All pages but the last are full.

use super::entry::{ENTRY_BYTES, Entry, entry_arrays, entry_id};
use super::envelope::{HASH_BYTES, Kind, VERSION, check_magic, check_preamble};
use super::error::FormatError;
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

/// A segment being written: entries go in ascending, pages come out.
#[derive(Debug)]
pub struct SegmentWriter {
    bytes: Vec<u8>,
    entries: u64,
    last: Option<ChunkId>,
    open: Vec<Entry>,
}

impl SegmentWriter {
    /// For about `entries` entries.
    pub fn new(entries: usize) -> Self {
        let mut bytes = Vec::with_capacity((entries / PAGE_ENTRIES + 3) * PAGE_BYTES);
        bytes.resize(PAGE_BYTES, 0);
        Self { bytes, entries: 0, last: None, open: Vec::with_capacity(PAGE_ENTRIES) }
    }

    /// Adds the next entry. Its id must be larger than the one before.
    pub fn push(&mut self, entry: Entry) -> Result<(), FormatError> {
        if self.last.is_some_and(|last| last >= entry.id) {
            return Err(FormatError::invalid(SEGMENT.what, "ids do not ascend"));
        }
        self.last = Some(entry.id);
        self.entries += 1;
        self.open.push(entry);
        if self.open.len() == PAGE_ENTRIES {
            self.close_page()?;
        }
        Ok(())
    }

    /// The segment's bytes, hash and number of entries. `packs` is the table that entries point into.
    pub fn finish(
        mut self,
        region: RegionId,
        packs: &[PackName],
    ) -> Result<(Vec<u8>, ObjectHash, u64), FormatError> {
        if !self.open.is_empty() {
            self.close_page()?;
        }
        let too_many = |_| FormatError::invalid(SEGMENT.what, "too many packs or pages");
        let pages = u32::try_from(self.bytes.len() / PAGE_BYTES - 1).map_err(too_many)?;
        let pack_count = u32::try_from(packs.len()).map_err(too_many)?;
        let table: Vec<u8> =
            packs.iter().flat_map(|p| p.session.0.into_iter().chain(p.number.to_le_bytes())).collect();
        let header = &mut self.bytes[..PAGE_BYTES];
        header[..8].copy_from_slice(&SEGMENT.magic);
        header[8..10].copy_from_slice(&VERSION.to_le_bytes());
        header[12..16].copy_from_slice(&pack_count.to_le_bytes());
        header[16..24].copy_from_slice(&self.entries.to_le_bytes());
        header[24..28].copy_from_slice(&pages.to_le_bytes());
        header[28..32].copy_from_slice(&crc32c::crc32c(&table).to_le_bytes());
        header[32..48].copy_from_slice(&region.0);
        seal_page(header);
        self.bytes.extend(table);
        let hash = SEGMENT.hash(&[&self.bytes]);
        self.bytes.extend(hash.0);
        Ok((self.bytes, hash, self.entries))
    }

    fn close_page(&mut self) -> Result<(), FormatError> {
        let start = self.bytes.len();
        let number = u32::try_from(start / PAGE_BYTES - 1)
            .map_err(|_| FormatError::invalid(SEGMENT.what, "too many pages"))?;
        #[expect(clippy::cast_possible_truncation, reason = "at most 85")]
        let count = self.open.len() as u32;
        for entry in self.open.drain(..) {
            self.bytes.extend(entry.encode());
        }
        self.bytes.resize(start + PAGE_BYTES, 0);
        let page = &mut self.bytes[start..];
        page[TABLE_END..TABLE_END + 4].copy_from_slice(&count.to_le_bytes());
        page[TABLE_END + 4..TABLE_END + 8].copy_from_slice(&number.to_le_bytes());
        seal_page(page);
        Ok(())
    }
}

fn seal_page(page: &mut [u8]) {
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
    /// Pages after the header page.
    pub pages: u32,
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
    let (pack_count, pages) = (u32_at(12), u32_at(24));
    let entries = u64::from(u32_at(16)) | u64::from(u32_at(20)) << 32;
    let table_start = (u64::from(pages) + 1) * PAGE_BYTES as u64;
    let table_end = table_start + u64::from(pack_count) * PACK_NAME_BYTES as u64;
    let expected = table_end + HASH_BYTES as u64;
    if bytes.len() as u64 != expected {
        return Err(FormatError::Length { what, expected, found: bytes.len() as u64 });
    }
    if entries.div_ceil(PAGE_ENTRIES as u64) != u64::from(pages) {
        return Err(FormatError::invalid(what, "its pages do not hold its number of entries"));
    }
    if header[48..PAGE_BYTES - 4].iter().any(|&byte| byte != 0) {
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
    Ok(SegmentHeader { region: RegionId(region), entries, pages, packs })
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

fn check_page(page: &[u8], number: u32, count: usize) -> Result<(), FormatError> {
    if crc32c::crc32c(&page[..PAGE_BYTES - 4]).to_le_bytes() != page[PAGE_BYTES - 4..] {
        return Err(FormatError::Hash { what: PAGE });
    }
    let tail = &page[TABLE_END..PAGE_BYTES - 4];
    #[expect(clippy::cast_possible_truncation, reason = "at most 85")]
    let fits = tail[..4] == (count as u32).to_le_bytes() && tail[4..8] == number.to_le_bytes();
    let entries = &entry_arrays(page)[..count];
    let unused = &page[count * ENTRY_BYTES..TABLE_END];
    let sound = fits && tail[8..] == [0; 4] && unused.iter().all(|&byte| byte == 0);
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
