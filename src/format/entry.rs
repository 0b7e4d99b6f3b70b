//! The 48-byte entry that pack trailers and index segments share: a chunk and where its frame is.
//!
//! ```text
//!  0 32 chunk id
//! 32  4 pack: place in the segment's pack table; 0 in a trailer
//! 36  4 offset of the frame's header in the pack
//! 40  4 stored length of the frame's body
//! 44  2 raw length in blocks, 1 to 256
//! 46  1 codec
//! 47  1 flags, 0
//! ```

use super::error::FormatError;
use super::pack::BODY_BYTES_MAX;
use crate::chunk::frame::Codec;
use crate::model::ids::ChunkId;
use crate::model::units::CHUNK_BLOCKS_MAX;

/// Bytes of an entry.
pub const ENTRY_BYTES: usize = 48;

/// A chunk and where its frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// The chunk.
    pub id: ChunkId,
    /// Which pack of a segment's table.
    pub pack: u32,
    /// Where the frame's header starts in the pack.
    pub offset: u32,
    /// Bytes of the frame's body.
    pub stored_len: u32,
    /// Length of the chunk in blocks.
    pub raw_blocks: u16,
    /// How the body is coded.
    pub codec: Codec,
}

impl Entry {
    /// Its bytes.
    pub fn encode(&self) -> [u8; ENTRY_BYTES] {
        let mut bytes = [0; ENTRY_BYTES];
        bytes[..32].copy_from_slice(&self.id.0);
        bytes[32..36].copy_from_slice(&self.pack.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.offset.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.stored_len.to_le_bytes());
        bytes[44..46].copy_from_slice(&self.raw_blocks.to_le_bytes());
        bytes[46] = self.codec.number();
        bytes
    }

    /// The entry that these bytes stand for.
    pub fn decode(bytes: &[u8; ENTRY_BYTES]) -> Result<Self, FormatError> {
        const WHAT: &str = "index entry";
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let raw_blocks = u16::from_le_bytes([bytes[44], bytes[45]]);
        if raw_blocks == 0 || raw_blocks > CHUNK_BLOCKS_MAX {
            return Err(FormatError::invalid(WHAT, format!("a chunk of {raw_blocks} blocks")));
        }
        if bytes[47] != 0 {
            return Err(FormatError::Newer { what: WHAT, feature: format!("flags {:#04x}", bytes[47]) });
        }
        let codec = Codec::from_number(bytes[46])
            .ok_or_else(|| FormatError::Newer { what: WHAT, feature: format!("codec {}", bytes[46]) })?;
        let stored_len = u32_at(40);
        // Memory is taken for frames by it, and pages of segments are not proved when they are read.
        let body_bytes = usize::try_from(stored_len).unwrap_or(usize::MAX);
        if body_bytes > BODY_BYTES_MAX {
            return Err(FormatError::length(WHAT, BODY_BYTES_MAX, body_bytes));
        }
        Ok(Self { id: entry_id(bytes), pack: u32_at(32), offset: u32_at(36), stored_len, raw_blocks, codec })
    }
}

/// The chunk id alone, for searching.
pub fn entry_id(bytes: &[u8; ENTRY_BYTES]) -> ChunkId {
    let mut id = [0; 32];
    id.copy_from_slice(&bytes[..32]);
    ChunkId(id)
}

/// A table's entries as byte arrays; what is left over at its end is not an entry.
pub fn entry_arrays(table: &[u8]) -> &[[u8; ENTRY_BYTES]] {
    table.as_chunks().0
}

#[cfg(test)]
mod tests {
    use super::Entry;
    use crate::chunk::frame::Codec;
    use crate::model::ids::ChunkId;

    #[test]
    fn lengths_that_no_frame_has_are_refused() {
        let entry = |codec, stored_len| Entry {
            id: ChunkId([1; 32]),
            pack: 0,
            offset: 0,
            stored_len,
            raw_blocks: 2,
            codec,
        };
        for (codec, stored_len, is_good) in [
            (Codec::Zstd, 1, true),
            (Codec::Zstd, 1 << 20, true),
            (Codec::Zstd, (1 << 20) + 1, false),
            (Codec::Raw, u32::MAX, false),
        ] {
            let decoded = Entry::decode(&entry(codec, stored_len).encode());
            assert_eq!(decoded.is_ok(), is_good, "{codec:?} {stored_len}");
        }
    }
}
