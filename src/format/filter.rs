//! A segment's filter: says of most chunks that are not in it that they are not, by one look at 64 bytes.
//!
//! ```text
//! filter page  0 63 x 64 blocks: 4 number of entries before those of the block, and 480 bits
//!           4032 48 zeros
//!           4080  4 0
//!           4084  4 number of this page: filter pages are counted on from the pages of entries
//!           4088  4 0
//!           4092  4 crc32c over bytes 0-4091
//! ```
//!
//! A blocked Bloom filter over the leading eight bytes of ids. Their highest bits say which block, so that blocks are
//! in the order of ids, a filter of any size is written front to back beside the entries, with one page in memory, and
//! a block can say as well where the entries begin that are its own: a hint that saves a search its first steps.

use super::error::FormatError;
use super::segment::{PAGE_BYTES, seal_page};
use crate::chunk::fingerprint::mix;

/// Bytes of a block: a line of a processor's cache.
const BLOCK_BYTES: usize = 64;
/// Blocks of a page.
const PAGE_BLOCKS: usize = 63;
/// Bytes of the number of entries before a block's; its bits come after.
const RANK_BYTES: usize = 4;
/// Bits of a block.
const BLOCK_BITS: u64 = 480;
/// Entries for which a page is written: 43 for each block.
const PAGE_ENTRIES: u64 = 2688;
/// Smaller segments are written without: they are as quickly searched.
const ENTRIES_MIN: u64 = 4096;
/// Bits that an id sets in its block.
const BITS: u32 = 6;
const BLOCKS_END: usize = PAGE_BLOCKS * BLOCK_BYTES;
const PAGE: &str = "filter page";

/// How many pages the filter of a segment of so many entries is written with.
pub const fn pages_for(entries: u64) -> u64 {
    if entries < ENTRIES_MIN { 0 } else { entries.div_ceil(PAGE_ENTRIES) }
}

/// Where in a filter of so many pages an id's block is: its page, and its place there.
pub fn place(leading: u64, pages: u32) -> (u32, usize) {
    let block = (u128::from(leading) * (u128::from(pages) * PAGE_BLOCKS as u128)) >> 64;
    let block = u64::try_from(block).unwrap_or(u64::MAX);
    let page = u32::try_from(block / PAGE_BLOCKS as u64).unwrap_or(u32::MAX);
    #[expect(clippy::cast_possible_truncation, reason = "below 63")]
    let place = (block % PAGE_BLOCKS as u64) as usize;
    (page, place)
}

/// The bits that an id sets in its block, as bytes with masks.
fn bits(leading: u64) -> impl Iterator<Item = (usize, u8)> {
    let mixed = mix(leading);
    (0..BITS).map(move |number| {
        let bit = (((mixed >> (10 * number)) & 1023) * BLOCK_BITS) >> 10;
        let byte = RANK_BYTES + (bit / 8) as usize;
        (byte, 1 << (bit % 8))
    })
}

/// Whether a page says that an id with these leading bytes, whose block is at `place`, may be there.
pub fn may_hold(page: &[u8; PAGE_BYTES], place: usize, leading: u64) -> bool {
    let block = block(page, place);
    bits(leading).all(|(byte, mask)| block[byte] & mask != 0)
}

/// Where among `entries` entries one with these leading bytes should be, whose block is at `place`; only a hint.
pub fn position(page: &[u8; PAGE_BYTES], place: usize, leading: u64, pages: u32, entries: u64) -> u64 {
    let rank = block(page, place).first_chunk().map_or(0, |rank| u64::from(u32::from_le_bytes(*rank)));
    let blocks = u64::from(pages) * PAGE_BLOCKS as u64;
    // How far into its block the id is, times the entries of a block.
    let inside = (u128::from(leading) * u128::from(blocks)) & u128::from(u64::MAX);
    let within = (inside * u128::from(entries / blocks.max(1))) >> 64;
    rank.saturating_add(u64::try_from(within).unwrap_or(0))
}

fn block(page: &[u8; PAGE_BYTES], place: usize) -> &[u8; BLOCK_BYTES] {
    &page[..BLOCKS_END].as_chunks().0[place % PAGE_BLOCKS]
}

/// Checks a page's checksum, and that it is the one of that number.
pub fn check_page(page: &[u8; PAGE_BYTES], number: u32) -> Result<(), FormatError> {
    if crc32c::crc32c(&page[..PAGE_BYTES - 4]).to_le_bytes() != page[PAGE_BYTES - 4..] {
        return Err(FormatError::Hash { what: PAGE });
    }
    let tail = &page[BLOCKS_END..PAGE_BYTES - 4];
    if tail[52..56] != number.to_le_bytes() || tail[..52].iter().chain(&tail[56..]).any(|&byte| byte != 0) {
        return Err(FormatError::invalid(PAGE, "its number or end is wrong"));
    }
    Ok(())
}

/// A filter being written: ids go in ascending, pages come out.
#[derive(Debug)]
pub(super) struct FilterWriter {
    pages: u32,
    /// The number of the first page.
    first: u32,
    open: u32,
    page: Box<[u8; PAGE_BYTES]>,
    /// Blocks of the open page that have their number, and the entries that came.
    numbered: usize,
    entries: u32,
}

impl FilterWriter {
    /// A filter of so many pages, behind `first` pages of entries.
    pub(super) fn new(pages: u32, first: u32) -> Self {
        Self { pages, first, open: 0, page: Box::new([0; PAGE_BYTES]), numbered: 0, entries: 0 }
    }

    /// Adds an id by its leading bytes, which are not below the last one's.
    pub(super) fn add(&mut self, leading: u64, out: &mut Vec<u8>) {
        let (page, place) = place(leading, self.pages);
        while self.open < page {
            self.close_page(out);
        }
        self.number_blocks(place + 1);
        self.entries = self.entries.saturating_add(1);
        let block = &mut self.page[..BLOCKS_END].as_chunks_mut::<BLOCK_BYTES>().0[place];
        bits(leading).for_each(|(byte, mask)| block[byte] |= mask);
    }

    /// Writes what is left.
    pub(super) fn finish(&mut self, out: &mut Vec<u8>) {
        while self.open < self.pages {
            self.close_page(out);
        }
    }

    fn number_blocks(&mut self, up_to: usize) {
        while self.numbered < up_to {
            let block = &mut self.page[..BLOCKS_END].as_chunks_mut::<BLOCK_BYTES>().0[self.numbered];
            block[..RANK_BYTES].copy_from_slice(&self.entries.to_le_bytes());
            self.numbered += 1;
        }
    }

    fn close_page(&mut self, out: &mut Vec<u8>) {
        self.number_blocks(PAGE_BLOCKS);
        self.numbered = 0;
        self.page[4084..4088].copy_from_slice(&(self.first + self.open).to_le_bytes());
        seal_page(&mut self.page[..]);
        out.extend(self.page.iter());
        self.page.fill(0);
        self.open += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ascending ids that lie as hashes do.
    fn ids(count: usize, seed: u64) -> Vec<u64> {
        let mut ids: Vec<u64> =
            (1..=count as u64).map(|n| mix(n.wrapping_mul(2).wrapping_add(seed))).collect();
        ids.sort_unstable();
        ids
    }

    fn write(ids: &[u64], pages: u32) -> Vec<u8> {
        let (mut out, mut writer) = (Vec::new(), FilterWriter::new(pages, 7));
        ids.iter().for_each(|id| writer.add(*id, &mut out));
        writer.finish(&mut out);
        assert_eq!(out.len(), pages as usize * PAGE_BYTES);
        out
    }

    fn holds(bytes: &[u8], pages: u32, id: u64) -> bool {
        let (page, place) = place(id, pages);
        may_hold(&bytes.as_chunks().0[page as usize], place, id)
    }

    #[test]
    fn what_is_there_is_never_denied_and_what_is_not_mostly_is() {
        for count in [1_usize, 85, 2688, 2689, 300_000] {
            let pages = u32::try_from(count.div_ceil(2688)).unwrap();
            let there = ids(count, 0);
            let bytes = write(&there, pages);
            for (number, page) in (7..).zip(bytes.as_chunks().0) {
                check_page(page, number).unwrap();
                assert!(check_page(page, number + 1).is_err());
            }
            assert!(there.iter().all(|id| holds(&bytes, pages, *id)), "{count}");
            for (number, id) in (0_u64..).zip(&there) {
                let (page, place) = place(*id, pages);
                let hint = position(&bytes.as_chunks().0[page as usize], place, *id, pages, count as u64);
                assert!(number.abs_diff(hint) < 60, "entry {number} of {count}, not {hint}");
            }
            let strange = ids(100_000, 1);
            let wrong = strange.iter().filter(|id| holds(&bytes, pages, **id)).count();
            assert!(wrong < 1000, "{wrong} of 100,000 for {count}");
        }
    }

    /// Ids that are no hashes make some blocks full: that costs time, and nothing is denied.
    #[test]
    fn ids_that_crowd_are_never_denied() {
        for there in [
            (0..5000).collect::<Vec<u64>>(),
            vec![0, u64::MAX],
            (0..5000).map(|n| u64::MAX - 4999 + n).collect(),
        ] {
            let bytes = write(&there, 3);
            assert!(there.iter().all(|id| holds(&bytes, 3, *id)));
        }
    }

    #[test]
    fn every_flipped_bit_of_a_page_is_noticed() {
        let good = write(&ids(100, 0), 1);
        for bit in 0..PAGE_BYTES * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(check_page(&bytes.as_chunks().0[0], 7).is_err(), "bit {bit}");
        }
        // With a checksum that fits, and an end that does not.
        for at in [4032, 4083, 4085, 4091] {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            seal_page(&mut bytes);
            assert!(check_page(&bytes.as_chunks().0[0], 7).is_err(), "byte {at}");
        }
    }

    #[test]
    fn places_are_in_the_order_of_ids_and_inside() {
        for pages in [1, 2, 1000, u32::MAX] {
            assert_eq!(place(0, pages), (0, 0));
            assert_eq!(place(u64::MAX, pages), (pages - 1, PAGE_BLOCKS - 1));
            assert!(ids(1000, 0).is_sorted_by_key(|id| place(*id, pages)));
        }
        assert_eq!((pages_for(0), pages_for(4095), pages_for(4096)), (0, 0, 2));
    }
}
