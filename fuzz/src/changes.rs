//! Lists of changed extents: the target, and a second, slow reading of them.

use imgstore::disk::changes::parse;
use imgstore::model::changes::Changes;
use imgstore::model::units::BLOCK_BYTES;
use serde_json::Value;
use std::collections::BTreeSet;

const SECTOR_BYTES: u64 = 512;

/// The input as the length of a disk, eight bytes, and a list; then the list for disks that are as long as it says, and a
/// little shorter and longer.
pub fn changes(data: &[u8]) {
    let Some((len, text)) = data.split_first_chunk() else { return };
    let text = String::from_utf8_lossy(text);
    check(&text, u64::from_le_bytes(*len));
    let Some(end) = end_of(&text) else { return };
    let around =
        [end.checked_sub(SECTOR_BYTES), end.checked_sub(SECTOR_BYTES - 1), Some(end), end.checked_add(1)];
    let fits = around.map(|len| len.is_some_and(|len| check(&text, len)));
    assert!(!fits[0] && !fits[3] && (fits[2] || !fits[1]), "{fits:?} around {end}");
    assert!(
        !end.is_multiple_of(SECTOR_BYTES) || end < SECTOR_BYTES || fits[1] == fits[2],
        "{fits:?} around {end}"
    );
}

/// Where the last extent of a list ends.
fn end_of(text: &str) -> Option<u64> {
    let list: Value = serde_json::from_str(text).ok()?;
    let last = list.as_array()?.last()?;
    last["offset"].as_u64()?.checked_add(last["length"].as_u64()?)
}

/// Whether a list is taken. One that is speaks of the whole disk, and what it calls dirty has changed, and nothing else.
fn check(text: &str, len: u64) -> bool {
    let Ok(found) = parse(text, len) else { return false };
    let list: Value = serde_json::from_str(text).expect("it was read");
    let (mut end, mut dirty, mut ranges) = (0, BTreeSet::new(), Vec::new());
    for extent in list.as_array().expect("a list") {
        let (offset, length) = (extent["offset"].as_u64().unwrap(), extent["length"].as_u64().unwrap());
        assert!(offset == end && length > 0);
        end = offset + length;
        let is_dirty = extent["type"] == 1;
        assert_eq!(extent["description"], if is_dirty { "dirty" } else { "clean" });
        if is_dirty {
            let (first, last) = (offset / BLOCK_BYTES as u64, (end - 1) / BLOCK_BYTES as u64);
            ranges.push(first..last + 1);
            dirty.extend([first, last]);
        }
    }
    assert!(end >= len && end - len < SECTOR_BYTES, "it ends at {end} of {len}");
    let is_in =
        |block: u64, ranges: &[std::ops::Range<u64>]| ranges.iter().any(|range| range.contains(&block));
    let ends = found.ranges().iter().flat_map(|range| [range.start, range.end - 1]);
    assert!(ends.into_iter().all(|block| is_in(block, &ranges)), "more has changed than it says");
    assert!(dirty.iter().all(|block| is_in(*block, found.ranges())), "less has changed than it says");
    let is_apart = |pair: &[std::ops::Range<u64>]| pair[0].end < pair[1].start;
    assert!(
        found.ranges().windows(2).all(is_apart) && found.ranges().iter().all(|range| range.start < range.end)
    );
    let mut again = Changes::default();
    ranges.into_iter().for_each(|range| again.add_blocks(range));
    assert!(again == found);
    true
}
