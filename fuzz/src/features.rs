//! Feature tables: damaged ones lead nowhere or to wrong candidates, sound ones to every base.

use super::runs;
use imgstore::chunk::features::{FEATURE_BITS, FEATURES, Features, features as features_of_chunk};
use imgstore::format::features::{FEATURE_TABLE, HEADER_BYTES, decode_header, encode, slots_of};
use imgstore::model::ids::RegionId;
use imgstore::model::units::BLOCK_BYTES;

/// Feature tables as they are and with a header that fits; then the input as features that must be found.
pub fn features(data: &[u8]) {
    if runs(data, 8, [0]) {
        table_of(data);
    }
    let mut bytes = vec![0; HEADER_BYTES];
    bytes.extend(data);
    let bases = u32::try_from(data.len() / 64).unwrap_or(1).max(1);
    let buckets = (1_usize << bases.ilog2()) + 1;
    if runs(data, 8, 1..4)
        && let Some(left) = data.len().checked_sub(bases as usize * 8 + buckets * 4)
    {
        bytes.truncate(bytes.len() - left % 4);
        bytes[..8].copy_from_slice(&FEATURE_TABLE.magic);
        bytes[8] = 1;
        bytes[32..36].copy_from_slice(&bases.to_le_bytes());
        bytes[36..40].copy_from_slice(&u32::try_from(left / 4).unwrap_or(0).to_le_bytes());
        bytes[40] = u8::try_from(bases.ilog2()).unwrap_or(0);
        bytes[41] = 1;
        let crc = crc32c::crc32c(&bytes[16..HEADER_BYTES]);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        assert!(decode_header(&bytes).is_ok());
        table_of(&bytes);
    }
    if runs(data, 8, 4..7) {
        found_again(data);
    }
    if !runs(data, 8, [7]) {
        return;
    }
    let blocks = data.len() / BLOCK_BYTES * BLOCK_BYTES;
    if let Some(features) = features_of_chunk(&data[..blocks]) {
        assert!(features.iter().all(|feature| feature >> FEATURE_BITS == 0));
        assert_eq!(features_of_chunk(&data[..blocks]), Some(features));
    }
}

fn table_of(bytes: &[u8]) {
    let Ok(table) = decode_header(bytes) else { return };
    assert_eq!(table.base(bytes, table.bases), None);
    let words = bytes.as_chunks().0;
    for feature in words.iter().step_by(words.len() / 32 + 1).map(|word| u32::from_le_bytes(*word)) {
        assert!(table.with_feature(bytes, feature).take(1000).count() <= 64);
    }
    let slots: Vec<_> = table.slots(bytes).collect();
    assert!(slots.len() * 4 <= bytes.len());
    let bases: Vec<u64> = (0..table.bases).filter_map(|number| table.base(bytes, number)).collect();
    assert_eq!(bases.len(), table.bases as usize);
    if let Ok(again) = encode(table.region, &bases, slots.iter().copied()) {
        let table = decode_header(&again).expect("what was encoded decodes");
        assert!(table.slots(&again).eq(slots));
    }
}

/// The input as features of bases.
fn found_again(data: &[u8]) {
    let words: Vec<u32> = data.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word) >> 1).collect();
    let all: &[Features] = words.as_chunks().0;
    if all.is_empty() {
        return;
    }
    let bases: Vec<u64> = (0..all.len() as u64).collect();
    let slots = slots_of(all, 0);
    let bytes = encode(RegionId([1; 16]), &bases, slots.iter().copied()).expect("slots ascend");
    let table = decode_header(&bytes).expect("what was encoded decodes");
    assert!(table.slots(&bytes).eq(slots.iter().copied()));
    let step = slots.len() / 64 + 1;
    for (feature, number) in slots.into_iter().step_by(step) {
        // Of a feature that very many have, the newest few are given.
        let mut found = 0;
        let mut is_given = false;
        for given in table.with_feature(&bytes, feature) {
            found += 1;
            is_given |= given == number;
        }
        assert!(is_given || found == 64 || all.len() * FEATURES > 64 && found >= 64);
    }
}
