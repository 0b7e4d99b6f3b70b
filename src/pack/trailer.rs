//! A stored pack's own index.

use super::error::PackError;
use crate::format::error::FormatError;
use crate::format::pack::{
    FOOTER_BYTES, HEADER_BYTES, PACK_BYTES_MAX, Trailer, decode_header, decode_trailer, effort_in,
    trailer_offset,
};
use crate::io::storage::{Object, Storage};
use crate::model::ids::RegionId;
use crate::model::objects::PackRecord;

/// Reads a pack's header and trailer, and checks that it is the pack of region `region` that the log names.
pub fn read_trailer(
    storage: &dyn Storage,
    region: RegionId,
    record: &PackRecord,
) -> Result<Trailer, PackError> {
    let object = storage.open(&record.name.to_string())?;
    read_trailer_of(&*object, region, record)
}

/// As [`read_trailer`], from the open object.
pub fn read_trailer_of(
    object: &dyn Object,
    region: RegionId,
    record: &PackRecord,
) -> Result<Trailer, PackError> {
    let damaged = |source| PackError::damaged(record.name, source);
    let len = object.len();
    if len != record.len || !((HEADER_BYTES + FOOTER_BYTES) as u64..=PACK_BYTES_MAX).contains(&len) {
        return Err(damaged(FormatError::Length { what: "pack", expected: record.len, found: len }));
    }
    let (mut header, mut footer) = ([0; HEADER_BYTES], [0; FOOTER_BYTES]);
    object.read_at(0, &mut header)?;
    object.read_at(len - FOOTER_BYTES as u64, &mut footer)?;
    let start = u64::from(trailer_offset(&footer, len).map_err(damaged)?);
    let mut bytes = vec![0; usize::try_from(len - start).unwrap_or(usize::MAX)];
    object.read_at(start, &mut bytes)?;
    let trailer = decode_trailer(&header, &bytes).map_err(damaged)?;
    // The trailer's hash covers the header, too: what that says is only now worth reading.
    let (of_region, name) = decode_header(&header).map_err(damaged)?;
    if of_region != region || name != record.name {
        return Err(damaged(FormatError::invalid("pack", format!("it is {name} of region {of_region}"))));
    }
    if trailer.hash != record.trailer_hash {
        let (expected, found) = (record.trailer_hash, trailer.hash);
        return Err(damaged(FormatError::Identity { what: "pack", expected, found }));
    }
    Ok(trailer)
}

/// What effort went into a pack, as it says itself, unchecked: what hangs on it is only whether it is made anew.
pub fn read_effort(storage: &dyn Storage, record: &PackRecord) -> Result<u8, PackError> {
    let object = storage.open(&record.name.to_string())?;
    let mut footer = [0; FOOTER_BYTES];
    object.read_at(record.len.saturating_sub(FOOTER_BYTES as u64), &mut footer)?;
    Ok(effort_in(&footer))
}
