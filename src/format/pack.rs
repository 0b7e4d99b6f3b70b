//! Packs: frames, and a trailer that is their index.
//!
//! ```text
//! header   0  8 magic "IMGSPACK"        frame  0  4 stored length of the body
//!          8  2 version                        4  2 raw length in blocks
//!         10  1 suite, 0                       6  1 codec
//!         11  1 flags, 0                       7  1 flags, 0
//!         12  4 0                              8  4 crc32c over bytes 0-7 and the body
//!         16 16 region id                     12  . body
//!         32 16 session
//!         48  8 number                  footer 0  8 magic "IMGSPEND"
//!         56  8 key id, 0                      8  4 number of frames
//!                                             12  4 offset of the trailer
//! trailer: entries ascending by id,           16  8 raw bytes of all chunks
//! for each delta among them 8 bytes of        24  4 number of deltas
//! its base's id, then the footer              28  1 effort
//!                                             29  3 0
//!                                             32 32 BLAKE3 over header, entries, bases, footer 0-31
//! ```

use super::entry::{ENTRY_BYTES, Entry, entry_arrays};
use super::envelope::{Kind, VERSION, check_preamble};
use super::error::FormatError;
pub use crate::chunk::frame::FRAME_HEADER_BYTES;
use crate::chunk::frame::{BASE_ID_BYTES, Codec, Frame};
use crate::model::ids::{ChunkId, ObjectHash, RegionId, SessionId};
use crate::model::objects::PackName;
use crate::model::units::{BLOCK_BYTES, CHUNK_BLOCKS_MAX};

/// A pack's kind; the hash is the trailer's.
pub const PACK: Kind =
    Kind { what: "pack", magic: *b"IMGSPACK", context: "imgstore 2026-11 pack trailer v1" };

const FOOTER_MAGIC: [u8; 8] = *b"IMGSPEND";
const FRAME: &str = "frame";
/// Where the footer says what effort went into the pack.
const EFFORT_AT: usize = 28;

/// Bytes of a pack's header.
pub const HEADER_BYTES: usize = 64;
/// Bytes of a base in the trailer: the first of its id, which tell chunks apart but once in a very long time.
pub const BASE_BYTES: usize = 8;
/// Highest effort that a pack can say.
pub const EFFORT_MAX: u8 = 22;
/// Bytes of a pack's footer.
pub const FOOTER_BYTES: usize = 64;
/// Largest pack: the largest size from which on one is sealed, a last frame, and its trailer.
pub const PACK_BYTES_MAX: u64 = 128 << 20;
/// Whether a pack whose frames take so many bytes is full: one more, and its trailer would not fit the largest pack.
pub const fn is_full(frames_bytes: usize, frames: usize, deltas: usize) -> bool {
    let around = around_bytes(frames as u64 + 1, deltas as u64 + 1);
    (frames_bytes + FRAME_HEADER_BYTES + BODY_BYTES_MAX) as u64 + around > PACK_BYTES_MAX
}

/// Bytes of a pack beside its frames.
pub const fn around_bytes(frames: u64, deltas: u64) -> u64 {
    (HEADER_BYTES + FOOTER_BYTES) as u64 + frames * ENTRY_BYTES as u64 + deltas * BASE_BYTES as u64
}

/// Largest body of a frame: a chunk of the largest length, stored raw.
pub const BODY_BYTES_MAX: usize = CHUNK_BLOCKS_MAX as usize * BLOCK_BYTES;

/// The header of pack `name` of region `region`.
pub fn encode_header(region: RegionId, name: PackName) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[..8].copy_from_slice(&PACK.magic);
    bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
    bytes[16..32].copy_from_slice(&region.0);
    bytes[32..48].copy_from_slice(&name.session.0);
    bytes[48..56].copy_from_slice(&name.number.to_le_bytes());
    bytes
}

/// The region and name that a pack's header carries.
pub fn decode_header(bytes: &[u8; HEADER_BYTES]) -> Result<(RegionId, PackName), FormatError> {
    check_preamble(&PACK, bytes)?;
    let array = |at: usize| {
        let mut array = [0; 16];
        array.copy_from_slice(&bytes[at..at + 16]);
        array
    };
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[48..56]);
    let name = PackName { session: SessionId(array(32)), number: u64::from_le_bytes(number) };
    let region = RegionId(array(16));
    if encode_header(region, name) != *bytes {
        return Err(FormatError::Newer { what: PACK.what, feature: "a reserved field that is not 0".into() });
    }
    Ok((region, name))
}

/// The header of a frame, which stands before its body.
pub fn encode_frame_header(frame: &Frame) -> Result<[u8; FRAME_HEADER_BYTES], FormatError> {
    check_lengths(frame.codec, frame.raw_blocks, frame.body.len())?;
    let mut bytes = [0; FRAME_HEADER_BYTES];
    #[expect(clippy::cast_possible_truncation, reason = "at most 1 MiB, checked above")]
    bytes[..4].copy_from_slice(&(frame.body.len() as u32).to_le_bytes());
    bytes[4..6].copy_from_slice(&frame.raw_blocks.to_le_bytes());
    bytes[6] = frame.codec.number();
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..8]), &frame.body);
    bytes[8..].copy_from_slice(&crc.to_le_bytes());
    Ok(bytes)
}

/// The body of the frame at the start of `bytes`, after a check that header, entry and checksum agree.
pub fn frame_body<'a>(bytes: &'a [u8], entry: &Entry) -> Result<&'a [u8], FormatError> {
    let expected = FRAME_HEADER_BYTES + entry.stored_len as usize;
    if bytes.len() < expected {
        return Err(FormatError::length(FRAME, expected, bytes.len()));
    }
    let (header, body) = bytes[..expected].split_at(FRAME_HEADER_BYTES);
    let crc = crc32c::crc32c_append(crc32c::crc32c(&header[..8]), body);
    if header[8..] != crc.to_le_bytes() {
        return Err(FormatError::Hash { what: FRAME });
    }
    let agree = header[..4] == entry.stored_len.to_le_bytes()
        && header[4..6] == entry.raw_blocks.to_le_bytes()
        && header[6..8] == [entry.codec.number(), 0];
    if !agree {
        return Err(FormatError::invalid(FRAME, "its header is not what the index says of it"));
    }
    Ok(body)
}

/// A frame read without an index, for salvage: its header's fields and the length of the whole frame.
pub fn scan_frame(bytes: &[u8]) -> Result<(Frame, usize), FormatError> {
    let Some(header) = bytes.first_chunk::<FRAME_HEADER_BYTES>() else {
        return Err(FormatError::length(FRAME, FRAME_HEADER_BYTES, bytes.len()));
    };
    let stored_len = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
    if stored_len == 0 || stored_len > BODY_BYTES_MAX {
        return Err(FormatError::length(FRAME, BODY_BYTES_MAX, stored_len));
    }
    let len = FRAME_HEADER_BYTES + stored_len;
    let body =
        bytes.get(FRAME_HEADER_BYTES..len).ok_or_else(|| FormatError::length(FRAME, len, bytes.len()))?;
    let crc = crc32c::crc32c_append(crc32c::crc32c(&header[..8]), body);
    if header[8..] != crc.to_le_bytes() {
        return Err(FormatError::Hash { what: FRAME });
    }
    let codec = Codec::from_number(header[6])
        .ok_or_else(|| FormatError::Newer { what: FRAME, feature: format!("codec {}", header[6]) })?;
    if header[7] != 0 {
        return Err(FormatError::Newer { what: FRAME, feature: format!("flags {:#04x}", header[7]) });
    }
    let raw_blocks = u16::from_le_bytes([header[4], header[5]]);
    check_lengths(codec, raw_blocks, stored_len)?;
    Ok((Frame { codec, raw_blocks, body: body.to_vec() }, len))
}

/// How long a frame is, with its header, by what that says; none if no frame of this version says so. Of the bytes there may
/// be fewer.
pub fn claimed_len(bytes: &[u8]) -> Option<usize> {
    let header = bytes.first_chunk::<FRAME_HEADER_BYTES>()?;
    let stored_len = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
    // Cheap ones first: it is asked of any bytes.
    if stored_len > BODY_BYTES_MAX || header[7] != 0 {
        return None;
    }
    let (codec, raw_blocks) = (Codec::from_number(header[6])?, u16::from_le_bytes([header[4], header[5]]));
    let is_possible =
        (1..=CHUNK_BLOCKS_MAX).contains(&raw_blocks) && check_lengths(codec, raw_blocks, stored_len).is_ok();
    is_possible.then_some(FRAME_HEADER_BYTES + stored_len)
}

/// A chunk has 1 to 256 blocks, a body 1 byte to 1 MiB, a raw one exactly the chunk's, a delta's more than an id.
fn check_lengths(codec: Codec, raw_blocks: u16, stored_len: usize) -> Result<(), FormatError> {
    let raw_bytes = usize::from(raw_blocks) * BLOCK_BYTES;
    if raw_blocks == 0 || raw_blocks > CHUNK_BLOCKS_MAX {
        return Err(FormatError::invalid(FRAME, format!("a chunk of {raw_blocks} blocks")));
    }
    if stored_len == 0 || stored_len > BODY_BYTES_MAX || (codec == Codec::Raw && stored_len != raw_bytes) {
        return Err(FormatError::length(FRAME, raw_bytes, stored_len));
    }
    if codec == Codec::Delta && stored_len <= BASE_ID_BYTES {
        return Err(FormatError::length(FRAME, BASE_ID_BYTES + 1, stored_len));
    }
    Ok(())
}

/// A pack's trailer: the entries of its frames, ascending by id, and the hash that the log knows it by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trailer {
    /// The pack's frames, ascending by chunk id.
    pub entries: Vec<Entry>,
    /// For each delta among them the leading bytes of its base's id, as [`ChunkId::leading`] has them.
    pub bases: Vec<u64>,
    /// Raw bytes of all of its chunks.
    pub raw_bytes: u64,
    /// The zstd level at which each of its frames was made or tried, with deltas; 0 if that is not known.
    pub effort: u8,
    /// The trailer's hash.
    pub hash: ObjectHash,
}

impl Trailer {
    /// The deltas, each with its base.
    pub fn deltas(&self) -> impl Iterator<Item = (&Entry, u64)> {
        self.entries.iter().filter(|entry| !entry.codec.is_plain()).zip(self.bases.iter().copied())
    }
}

/// The trailer of a pack with this header whose frames end at `trailer_offset`: its bytes and its hash.
/// `deltas` are the deltas among the entries, each with its base. Sorts both. `effort` is [`Trailer::effort`].
pub fn encode_trailer(
    header: &[u8; HEADER_BYTES],
    entries: &mut [Entry],
    deltas: &mut [(ChunkId, ChunkId)],
    trailer_offset: u32,
    effort: u8,
) -> Result<(Vec<u8>, ObjectHash), FormatError> {
    check_effort(effort)?;
    entries.sort_unstable_by_key(|entry| entry.id);
    deltas.sort_unstable();
    check_entries(entries, trailer_offset)?;
    let of_deltas = entries.iter().filter(|entry| !entry.codec.is_plain()).map(|entry| entry.id);
    if !of_deltas.eq(deltas.iter().map(|(id, _)| *id)) {
        return Err(FormatError::invalid(PACK.what, "its deltas are not those that have a base"));
    }
    let frames =
        u32::try_from(entries.len()).map_err(|_| FormatError::invalid(PACK.what, "too many frames"))?;
    let deltas_count =
        u32::try_from(deltas.len()).map_err(|_| FormatError::invalid(PACK.what, "too many frames"))?;
    let mut bytes =
        Vec::with_capacity(entries.len() * ENTRY_BYTES + deltas.len() * BASE_BYTES + FOOTER_BYTES);
    for entry in entries.iter() {
        bytes.extend(entry.encode());
    }
    for (_, base) in deltas.iter() {
        bytes.extend(base.leading().to_be_bytes());
    }
    bytes.extend(FOOTER_MAGIC);
    bytes.extend(frames.to_le_bytes());
    bytes.extend(trailer_offset.to_le_bytes());
    bytes.extend(raw_bytes(entries).to_le_bytes());
    bytes.extend(deltas_count.to_le_bytes());
    bytes.extend([effort, 0, 0, 0]);
    let hash = PACK.hash(&[header, &bytes]);
    bytes.extend(hash.0);
    Ok((bytes, hash))
}

/// What a pack's last bytes say of the effort that went into it: see [`Trailer::effort`]. Nothing is checked here.
pub const fn effort_in(footer: &[u8; FOOTER_BYTES]) -> u8 {
    footer[EFFORT_AT]
}

fn check_effort(effort: u8) -> Result<(), FormatError> {
    if effort <= EFFORT_MAX {
        return Ok(());
    }
    Err(FormatError::Newer { what: PACK.what, feature: format!("effort {effort}") })
}

/// Where the trailer of a pack of `pack_len` bytes starts, from the pack's last bytes.
pub fn trailer_offset(footer: &[u8; FOOTER_BYTES], pack_len: u64) -> Result<u32, FormatError> {
    if footer[..8] != FOOTER_MAGIC {
        return Err(FormatError::Magic { what: "pack footer" });
    }
    let u32_at = |at: usize| u32::from_le_bytes([footer[at], footer[at + 1], footer[at + 2], footer[at + 3]]);
    let (frames, offset, deltas) = (u32_at(8), u32_at(12), u32_at(24));
    let tables = u64::from(frames) * ENTRY_BYTES as u64 + u64::from(deltas) * BASE_BYTES as u64;
    let expected = u64::from(offset) + tables + FOOTER_BYTES as u64;
    if pack_len > PACK_BYTES_MAX || expected != pack_len || (offset as usize) < HEADER_BYTES {
        return Err(FormatError::Length { what: PACK.what, expected, found: pack_len });
    }
    Ok(offset)
}

/// The trailer from its bytes (entries, bases and footer) and the pack's header.
pub fn decode_trailer(header: &[u8; HEADER_BYTES], trailer: &[u8]) -> Result<Trailer, FormatError> {
    let Some((table, footer)) = trailer.split_last_chunk::<FOOTER_BYTES>() else {
        return Err(FormatError::length("pack trailer", FOOTER_BYTES, trailer.len()));
    };
    let hash = PACK.hash(&[header, table, &footer[..32]]);
    if hash.0 != footer[32..] {
        return Err(FormatError::Hash { what: "pack trailer" });
    }
    let u32_at = |at: usize| u32::from_le_bytes([footer[at], footer[at + 1], footer[at + 2], footer[at + 3]]);
    let (frames, trailer_offset, deltas) = (u32_at(8) as usize, u32_at(12), u32_at(24) as usize);
    let entries_bytes = frames.saturating_mul(ENTRY_BYTES);
    let expected = entries_bytes.saturating_add(deltas.saturating_mul(BASE_BYTES));
    if footer[..8] != FOOTER_MAGIC || table.len() != expected {
        return Err(FormatError::invalid("pack trailer", "its footer does not fit it"));
    }
    let effort = footer[EFFORT_AT];
    check_effort(effort)?;
    if footer[EFFORT_AT + 1..32] != [0; 3] {
        return Err(FormatError::Newer { what: PACK.what, feature: "a reserved field that is not 0".into() });
    }
    let (table, bases) = table.split_at(entries_bytes);
    let entries = entry_arrays(table).iter().map(Entry::decode).collect::<Result<Vec<_>, _>>()?;
    check_entries(&entries, trailer_offset)?;
    let bases: Vec<u64> =
        bases.as_chunks::<BASE_BYTES>().0.iter().map(|base| u64::from_be_bytes(*base)).collect();
    if entries.iter().filter(|entry| !entry.codec.is_plain()).count() != bases.len() {
        return Err(FormatError::invalid("pack trailer", "it does not have a base for each delta"));
    }
    let raw_bytes = raw_bytes(&entries);
    if footer[16..24] != raw_bytes.to_le_bytes() {
        return Err(FormatError::invalid("pack trailer", "its raw length is not that of its chunks"));
    }
    Ok(Trailer { entries, bases, raw_bytes, effort, hash })
}

/// Ids ascend, and the frames lie end to end from the header to the trailer.
fn check_entries(entries: &[Entry], trailer_offset: u32) -> Result<(), FormatError> {
    if entries.is_empty() || !entries.is_sorted_by(|a, b| a.id < b.id) {
        return Err(FormatError::invalid("pack trailer", "it is empty or its ids do not ascend"));
    }
    for entry in entries {
        check_lengths(entry.codec, entry.raw_blocks, entry.stored_len as usize)?;
    }
    let mut places: Vec<(u64, u64)> = entries
        .iter()
        .map(|e| (u64::from(e.offset), FRAME_HEADER_BYTES as u64 + u64::from(e.stored_len)))
        .collect();
    places.sort_unstable();
    let end = places
        .iter()
        .try_fold(HEADER_BYTES as u64, |end, &(offset, len)| (offset == end).then_some(offset + len));
    if end != Some(u64::from(trailer_offset)) || entries.iter().any(|e| e.pack != 0) {
        return Err(FormatError::invalid("pack trailer", "its frames do not lie end to end"));
    }
    Ok(())
}

fn raw_bytes(entries: &[Entry]) -> u64 {
    entries.iter().map(|e| u64::from(e.raw_blocks) * BLOCK_BYTES as u64).sum()
}
