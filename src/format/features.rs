//! Feature tables: which stored chunks have a feature, so that what resembles a new chunk is found without reading any.
//!
//! ```text
//! header   0  8 magic "IMGSFEAT"       bases     8 leading bytes of each base's id
//!          8  2 version                buckets   4 each, 2^bits + 1 of them: place of the
//!         10  1 suite, 0                         bucket's first slot; the last: number of slots
//!         11  1 flags, 0               slots     4 each, ascending by feature
//!         12  4 crc32c of bytes 16-63
//!         16 16 region id
//!         32  4 number of bases, 1 or more
//!         36  4 number of slots
//!         40  1 bits
//!         41  1 algorithm, 1
//!         42 22 0
//! ```
//!
//! A table is *quotiented*: the top `bits` bits of a 31-bit feature say which bucket its slot is in, the others stand in
//! the slot, above `bits + 1` bits with the number of the base. So a slot has 32 bits however large the table is, a base
//! with twelve features takes under 64 bytes in all, and tables merge without the chunks.
//!
//! It is a cache that may be wrong: what it leads to is compared and proved. So nothing checks it as a whole.

use super::envelope::{Kind, VERSION, check_preamble};
use super::error::FormatError;
use crate::chunk::features::{FEATURE_BITS, FEATURES, Features};
use crate::model::ids::RegionId;

/// A feature table's kind. It is not hashed.
pub const FEATURE_TABLE: Kind =
    Kind { what: "feature table", magic: *b"IMGSFEAT", context: "imgstore 2026-11 feature table v1" };

/// Bytes of the header.
pub const HEADER_BYTES: usize = 64;
/// Most bases of a table.
pub const BASES_MAX: usize = 1 << 24;
/// Slots of a bucket that are looked at: more have the same feature, and any of them will do.
const LOOKED_AT_MAX: usize = 64;
const BASE_BYTES: usize = 8;
const WORD_BYTES: usize = 4;
/// How features are computed: see [`crate::chunk::features`].
const ALGORITHM: u8 = 1;

/// Where the parts of a table are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FeatureTable {
    /// The region that it belongs to.
    pub region: RegionId,
    /// Number of bases.
    pub bases: u32,
    slots: u32,
    bits: u32,
}

/// A feature with the number of a base that has it.
pub type Slot = (u32, u32);

/// Bits of a bucket's number in a table of so many bases: half as many buckets as bases, or up to all.
const fn bits_for(bases: u32) -> u32 {
    bases.ilog2()
}

/// A table of `bases`, given by the leading bytes of their ids, and `slots`, which ascend. At most [`BASES_MAX`] bases.
pub fn encode(
    region: RegionId,
    bases: &[u64],
    slots: impl Iterator<Item = Slot>,
) -> Result<Vec<u8>, FormatError> {
    let count = u32::try_from(bases.len()).ok().filter(|_| (1..=BASES_MAX).contains(&bases.len()));
    let count = count.ok_or_else(|| FormatError::length(FEATURE_TABLE.what, BASES_MAX, bases.len()))?;
    let bits = bits_for(count);
    let buckets_start = HEADER_BYTES + bases.len() * BASE_BYTES;
    let slots_start = buckets_start + ((1 << bits) + 1) * WORD_BYTES;
    let mut bytes = Vec::with_capacity(slots_start + bases.len() * FEATURES * WORD_BYTES);
    bytes.resize(HEADER_BYTES, 0);
    bytes.extend(bases.iter().flat_map(|base| base.to_be_bytes()));
    bytes.resize(slots_start, 0);
    let (mut bucket, mut written) = (0, 0_u32);
    let mut open = |bytes: &mut Vec<u8>, up_to: u32, written: u32| {
        while bucket <= up_to {
            let at = buckets_start + bucket as usize * WORD_BYTES;
            bytes[at..at + WORD_BYTES].copy_from_slice(&written.to_le_bytes());
            bucket += 1;
        }
    };
    let low_bits = FEATURE_BITS - bits;
    let mut last = (0, 0);
    for (feature, base) in slots {
        if (feature, base) < last || feature >> FEATURE_BITS != 0 || base >= count {
            return Err(FormatError::invalid(FEATURE_TABLE.what, "slots do not ascend or have no base"));
        }
        last = (feature, base);
        open(&mut bytes, feature >> low_bits, written);
        let low = feature & ((1 << low_bits) - 1);
        bytes.extend((low << (bits + 1) | base).to_le_bytes());
        written += 1;
    }
    open(&mut bytes, 1 << bits, written);
    bytes[..8].copy_from_slice(&FEATURE_TABLE.magic);
    bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
    bytes[16..32].copy_from_slice(&region.0);
    bytes[32..36].copy_from_slice(&count.to_le_bytes());
    bytes[36..40].copy_from_slice(&written.to_le_bytes());
    bytes[40] = u8::try_from(bits).unwrap_or(u8::MAX);
    bytes[41] = ALGORITHM;
    let crc = crc32c::crc32c(&bytes[16..HEADER_BYTES]);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    Ok(bytes)
}

/// The table that these bytes are, after a check of its header and length.
pub fn decode_header(bytes: &[u8]) -> Result<FeatureTable, FormatError> {
    let what = FEATURE_TABLE.what;
    let header: &[u8; HEADER_BYTES] =
        bytes.first_chunk().ok_or_else(|| FormatError::length(what, HEADER_BYTES, bytes.len()))?;
    check_preamble(&FEATURE_TABLE, header)?;
    let u32_at = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    if crc32c::crc32c(&header[16..]) != u32_at(12) {
        return Err(FormatError::Hash { what: "feature table header" });
    }
    let (bases, slots, bits) = (u32_at(32), u32_at(36), u32::from(header[40]));
    if header[41] != ALGORITHM || header[42..].iter().any(|&byte| byte != 0) {
        return Err(FormatError::Newer { what, feature: "an algorithm or field that is not known".into() });
    }
    if bases == 0 || bases as usize > BASES_MAX || bits != bits_for(bases) {
        return Err(FormatError::invalid(what, format!("{bases} bases and {bits} bits")));
    }
    let mut region = [0; 16];
    region.copy_from_slice(&header[16..32]);
    let table = FeatureTable { region: RegionId(region), bases, slots, bits };
    let expected = table.slots_start() as u64 + u64::from(slots) * WORD_BYTES as u64;
    if bytes.len() as u64 != expected {
        return Err(FormatError::Length { what, expected, found: bytes.len() as u64 });
    }
    Ok(table)
}

impl FeatureTable {
    const fn buckets_start(&self) -> usize {
        HEADER_BYTES + self.bases as usize * BASE_BYTES
    }

    const fn slots_start(&self) -> usize {
        self.buckets_start() + ((1 << self.bits) + 1) * WORD_BYTES
    }

    /// The leading bytes of a base's id. None if the table is damaged.
    pub fn base(&self, bytes: &[u8], number: u32) -> Option<u64> {
        let at = HEADER_BYTES + number as usize * BASE_BYTES;
        let base = bytes.get(at..)?.first_chunk::<BASE_BYTES>().filter(|_| number < self.bases)?;
        Some(u64::from_be_bytes(*base))
    }

    /// The bases that have a feature, the newest first as far as numbers tell; some of them if they are many.
    pub fn with_feature<'a>(&self, bytes: &'a [u8], feature: u32) -> impl Iterator<Item = u32> + use<'a> {
        let (bits, low_bits) = (self.bits, FEATURE_BITS - self.bits);
        let slots = self.bucket(bytes, (feature & ((1 << FEATURE_BITS) - 1)) >> low_bits).unwrap_or_default();
        let low = u64::from(feature & ((1 << low_bits) - 1));
        // All 32 bits are taken if the table has but one base.
        let low_of = move |slot: &[u8; WORD_BYTES]| u64::from(u32::from_le_bytes(*slot)) >> (bits + 1);
        // Other features' may be many. They ascend; in a table in which they do not, some are overlooked.
        let start = slots.partition_point(|slot| low_of(slot) < low);
        let slots = &slots[start..];
        let slots = &slots[..slots.partition_point(|slot| low_of(slot) == low)];
        let wanted = move |slot: &[u8; WORD_BYTES]| {
            (low_of(slot) == low).then_some(u32::from_le_bytes(*slot) & ((2 << bits) - 1))
        };
        slots.iter().rev().filter_map(wanted).take(LOOKED_AT_MAX)
    }

    fn bucket<'a>(&self, bytes: &'a [u8], bucket: u32) -> Option<&'a [[u8; WORD_BYTES]]> {
        let (start, end) = (self.bucket_start(bytes, bucket)?, self.bucket_start(bytes, bucket + 1)?);
        bytes.get(self.slots_start()..)?.as_chunks().0.get(start as usize..end as usize)
    }

    /// Every slot, ascending if the table is sound.
    pub fn slots<'a>(&self, bytes: &'a [u8]) -> impl Iterator<Item = Slot> + use<'a> {
        let (table, low_bits, mut bucket) = (*self, FEATURE_BITS - self.bits, 0_u32);
        let slots = bytes.get(table.slots_start()..).unwrap_or_default().as_chunks::<WORD_BYTES>().0;
        slots.iter().zip(0_u32..).map(move |(slot, at)| {
            // The bucket is the last that begins at or before the slot.
            while bucket + 1 < 1 << table.bits
                && table.bucket_start(bytes, bucket + 1).is_some_and(|start| start <= at)
            {
                bucket += 1;
            }
            let slot = u32::from_le_bytes(*slot);
            let low = u32::try_from(u64::from(slot) >> (table.bits + 1)).unwrap_or(0);
            (bucket << low_bits | low, slot & ((2 << table.bits) - 1))
        })
    }

    fn bucket_start(&self, bytes: &[u8], bucket: u32) -> Option<u32> {
        let at = self.buckets_start() + bucket as usize * WORD_BYTES;
        bytes.get(at..)?.first_chunk().map(|word| u32::from_le_bytes(*word))
    }
}

/// The slots of bases with these features, ascending; numbers begin at `first`.
pub fn slots_of(features: &[Features], first: u32) -> Vec<Slot> {
    let numbered = features.iter().zip(first..);
    let mut slots: Vec<Slot> =
        numbered.flat_map(|(features, number)| features.map(|feature| (feature, number))).collect();
    slots.sort_unstable();
    slots
}

#[cfg(test)]
mod tests {
    use super::*;

    const REGION: RegionId = RegionId([7; 16]);

    fn random_features(count: usize) -> Vec<Features> {
        let mut state = 9_u64;
        let mut next = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as u32
        };
        (0..count).map(|_| std::array::from_fn(|_| next())).collect()
    }

    fn table(features: &[Features]) -> Vec<u8> {
        let bases: Vec<u64> = (0..features.len() as u64).map(|n| n * 1000).collect();
        encode(REGION, &bases, slots_of(features, 0).into_iter()).unwrap()
    }

    #[test]
    fn every_feature_leads_to_its_bases_in_tables_of_all_sizes() {
        for count in [1, 2, 3, 4, 5, 7, 8, 100, 1023, 1024, 1025, 20_000] {
            let features = random_features(count);
            let bytes = table(&features);
            let table = decode_header(&bytes).unwrap();
            assert_eq!((table.region, table.bases as usize), (REGION, count));
            for (number, of_base) in features.iter().enumerate() {
                for &feature in of_base {
                    assert!(
                        table.with_feature(&bytes, feature).any(|base| base as usize == number),
                        "{count}"
                    );
                }
            }
            assert!(table.slots(&bytes).eq(slots_of(&features, 0)));
            assert_eq!(table.base(&bytes, count as u32 - 1), Some((count as u64 - 1) * 1000));
            assert_eq!(table.base(&bytes, count as u32), None);
            let per_base = bytes.len() / count;
            assert!(count < 100 || per_base < 64, "{per_base} bytes a base of {count}");
        }
    }

    #[test]
    fn what_is_not_there_is_hardly_ever_found() {
        let bytes = table(&random_features(20_000));
        let table = decode_header(&bytes).unwrap();
        let strange = random_features(40_000);
        let found =
            strange[20_000..].iter().flatten().filter(|&&f| table.with_feature(&bytes, f).next().is_some());
        // 240,000 of 2^31 features are taken.
        assert!(found.count() < 100);
    }

    #[test]
    fn a_feature_of_very_many_bases_gives_the_newest_few() {
        let features = vec![[5; FEATURES]; 3000];
        let bytes = table(&features);
        let found: Vec<u32> = decode_header(&bytes).unwrap().with_feature(&bytes, 5).collect();
        assert_eq!(found.len(), LOOKED_AT_MAX);
        assert_eq!(found[0], 2999);
    }

    #[test]
    fn damage_is_noticed_or_leads_nowhere() {
        let features = random_features(50);
        let good = table(&features);
        for bit in 0..good.len() * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            match decode_header(&bytes) {
                Ok(table) => {
                    assert!(bit / 8 >= HEADER_BYTES, "bit {bit} of the header was not noticed");
                    for feature in features.iter().flatten() {
                        table
                            .with_feature(&bytes, *feature)
                            .for_each(|base| assert!(table.base(&bytes, base).is_some() || base >= 50));
                    }
                    assert!(table.slots(&bytes).count() <= 50 * FEATURES * 50);
                }
                Err(_) => assert!(bit / 8 < HEADER_BYTES, "bit {bit}"),
            }
        }
        for len in 0..good.len() {
            assert!(decode_header(&good[..len]).is_err());
        }
    }

    /// Where tables merge, a feature that is none would be refused, and nothing be merged.
    #[test]
    fn a_damaged_bucket_gives_no_feature_that_is_none() {
        let features = random_features(50);
        let good = table(&features);
        let sound = decode_header(&good).unwrap();
        for bucket in 0..=1 << sound.bits {
            let mut bytes = good.clone();
            let at = sound.buckets_start() + bucket * WORD_BYTES;
            bytes[at..at + WORD_BYTES].fill(0);
            let slots = decode_header(&bytes).unwrap().slots(&bytes);
            assert!(slots.into_iter().all(|(feature, _)| feature >> FEATURE_BITS == 0), "bucket {bucket}");
        }
    }

    #[test]
    fn slots_that_do_not_ascend_or_have_no_base_are_refused() {
        assert!(encode(REGION, &[1, 2], [(5, 0), (4, 1)].into_iter()).is_err());
        assert!(encode(REGION, &[1, 2], [(5, 2)].into_iter()).is_err());
        assert!(encode(REGION, &[1], [(1 << 31, 0)].into_iter()).is_err());
        assert!(encode(REGION, &[], std::iter::empty()).is_err());
    }
}
