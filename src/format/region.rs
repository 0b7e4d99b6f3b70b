//! The region file.

use super::codec;
use super::envelope::Kind;
use super::error::FormatError;
use crate::chunk::frame::ZSTD_LEVELS;
use crate::model::ids::ObjectHash;
use crate::model::region::RegionHeader;

/// The region file's kind.
pub const REGION: Kind =
    Kind { what: "region file", magic: *b"IMGSREGN", context: "imgstore 2026-11 region file v1" };

/// Smallest and largest size from which on a pack is sealed. The largest is also what keeps every position
/// in a pack within 32 bits.
pub const PACK_BYTES: std::ops::RangeInclusive<u32> = (16 << 10)..=(64 << 20);

/// The bytes of a region file, and the hash that its first log record names.
pub fn encode(header: &RegionHeader) -> Result<(Vec<u8>, ObjectHash), FormatError> {
    check(header)?;
    REGION.seal(&codec::encode(REGION.what, header)?)
}

/// A region file's content and hash.
pub fn decode(bytes: &[u8]) -> Result<(RegionHeader, ObjectHash), FormatError> {
    let (body, hash) = REGION.open(bytes)?;
    let header: RegionHeader = codec::decode(REGION.what, body)?;
    check(&header)?;
    Ok((header, hash))
}

fn check(header: &RegionHeader) -> Result<(), FormatError> {
    let invalid = |why: &str| Err(FormatError::invalid(REGION.what, why));
    if !header.chunker.is_valid() {
        return invalid("its chunker parameters are out of order or over the limits");
    }
    if !ZSTD_LEVELS.contains(&i32::from(header.zstd_level)) {
        return invalid("its zstd level is not 1 to 12");
    }
    if !PACK_BYTES.contains(&header.pack_bytes) {
        return invalid("its pack size is not 16 KiB to 64 MiB");
    }
    if !is_region_name(&header.name) {
        return invalid("its name is not 1 to 63 lower-case letters, digits and dashes");
    }
    Ok(())
}

/// Whether a text can name a region: 1 to 63 lower-case letters, digits, dashes; a letter or digit first.
pub fn is_region_name(name: &str) -> bool {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&name.len()) && name.bytes().all(good) && !name.starts_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::account::AccountId;
    use crate::model::ids::RegionId;
    use crate::model::region::ChunkerParams;

    fn header() -> RegionHeader {
        RegionHeader {
            id: RegionId([1; 16]),
            name: "home".into(),
            provider: AccountId::from_random(1),
            created_ms: 5,
            chunker: ChunkerParams::DEFAULT,
            zstd_level: 3,
            pack_bytes: 32 << 20,
        }
    }

    #[test]
    fn headers_round_trip() {
        let (bytes, hash) = encode(&header()).unwrap();
        assert_eq!(decode(&bytes).unwrap(), (header(), hash));
    }

    #[test]
    fn what_no_region_may_say_is_refused_on_both_ways() {
        let bad = [
            RegionHeader { zstd_level: 13, ..header() },
            RegionHeader { pack_bytes: 0, ..header() },
            RegionHeader { pack_bytes: u32::MAX, ..header() },
            RegionHeader { name: "../x".into(), ..header() },
            RegionHeader { name: String::new(), ..header() },
            RegionHeader { chunker: ChunkerParams { min_blocks: 0, ..ChunkerParams::DEFAULT }, ..header() },
        ];
        for header in bad {
            assert!(encode(&header).is_err());
            let (bytes, _) = REGION.seal(&codec::encode("test", &header).unwrap()).unwrap();
            assert!(decode(&bytes).is_err());
        }
    }
}
