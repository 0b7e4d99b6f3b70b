//! Manifests: a volume's block map. Zero runs are what lies between the chunks.
//!
//! ```text
//! header  0  8 magic "IMGSMANI"     chunk  0  6 first block
//!         8  2 version                     6  2 length in blocks
//!        10  1 suite, 0                    8 32 chunk id
//!        11  1 flags, 0
//!        12  4 0                    after the chunks: 32 BLAKE3 over everything before
//!        16  8 volume length in bytes
//!        24  8 number of chunks
//!        32  8 key id, 0
//! ```

use super::envelope::{HASH_BYTES, Kind, VERSION, check_magic, check_preamble};
use super::error::FormatError;
use crate::model::blockmap::{BlockMap, ChunkRef};
use crate::model::ids::{ChunkId, ObjectHash};
use crate::model::units::MAP_CHUNKS_MAX;

/// A manifest's kind.
pub const MANIFEST: Kind =
    Kind { what: "manifest", magic: *b"IMGSMANI", context: "imgstore 2026-11 manifest v1" };

/// Bytes of a manifest's header.
pub const HEADER_BYTES: usize = 40;
/// Bytes of a chunk reference.
pub const CHUNK_REF_BYTES: usize = 40;
/// Bytes of the largest manifest.
pub const BYTES_MAX: u64 = (HEADER_BYTES + MAP_CHUNKS_MAX * CHUNK_REF_BYTES + HASH_BYTES) as u64;
/// Bits of a chunk reference's first word that hold the first block.
const POSITION_BITS: u32 = 48;

/// The bytes of a manifest, and its hash.
pub fn encode(map: &BlockMap) -> (Vec<u8>, ObjectHash) {
    let chunks = map.chunks();
    let mut bytes = Vec::with_capacity(HEADER_BYTES + chunks.len() * CHUNK_REF_BYTES + HASH_BYTES);
    bytes.extend(MANIFEST.magic);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend([0; 6]);
    bytes.extend(map.volume_bytes().to_le_bytes());
    bytes.extend((chunks.len() as u64).to_le_bytes());
    bytes.extend([0; 8]);
    for chunk in chunks {
        let word = chunk.start_block | u64::from(chunk.blocks) << POSITION_BITS;
        bytes.extend(word.to_le_bytes());
        bytes.extend(chunk.id.0);
    }
    let hash = MANIFEST.hash(&[&bytes]);
    bytes.extend(hash.0);
    (bytes, hash)
}

/// A manifest's block map and hash.
pub fn decode(bytes: &[u8]) -> Result<(BlockMap, ObjectHash), FormatError> {
    let what = MANIFEST.what;
    let Some(table_len) = bytes.len().checked_sub(HEADER_BYTES + HASH_BYTES) else {
        return Err(FormatError::length(what, HEADER_BYTES + HASH_BYTES, bytes.len()));
    };
    check_magic(&MANIFEST, bytes)?;
    let (covered, stored_hash) = bytes.split_at(HEADER_BYTES + table_len);
    let hash = MANIFEST.hash(&[covered]);
    if hash.0 != stored_hash {
        return Err(FormatError::Hash { what });
    }
    check_preamble(&MANIFEST, bytes)?;
    let (header, table) = covered.split_at(HEADER_BYTES);
    let u64_at = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().unwrap_or_default());
    if header[12..16] != [0; 4] || u64_at(32) != 0 {
        return Err(FormatError::Newer { what, feature: "a reserved field that is not 0".into() });
    }
    let (references, rest) = table.as_chunks::<CHUNK_REF_BYTES>();
    if !rest.is_empty() || references.len() as u64 != u64_at(24) {
        let expected = u64_at(24).saturating_mul(CHUNK_REF_BYTES as u64);
        return Err(FormatError::Length { what, expected, found: table.len() as u64 });
    }
    let chunks = references.iter().map(decode_reference).collect();
    let map =
        BlockMap::new(u64_at(16), chunks).map_err(|fault| FormatError::invalid(what, fault.to_string()))?;
    Ok((map, hash))
}

fn decode_reference(bytes: &[u8; CHUNK_REF_BYTES]) -> ChunkRef {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[..8]);
    let mut id = [0; 32];
    id.copy_from_slice(&bytes[8..]);
    let word = u64::from_le_bytes(word);
    let blocks = (word >> POSITION_BITS) as u16;
    ChunkRef { start_block: word & ((1 << POSITION_BITS) - 1), blocks, id: ChunkId(id) }
}
