//! Packs being filled: frames go in, one sealed object comes out.

use crate::chunk::frame::Frame;
use crate::format::entry::Entry;
use crate::format::error::FormatError;
use crate::format::pack::{HEADER_BYTES, encode_frame_header, encode_header, encode_trailer, is_full};
use crate::model::ids::{ChunkId, RegionId};
use crate::model::objects::{PackName, PackRecord};
use crate::model::units::BLOCK_BYTES;
use std::collections::BTreeSet;
use std::sync::Arc;

/// A pack in memory. It is written as one object, so that it appears whole or not at all.
pub struct PackBuilder {
    name: PackName,
    bytes: Vec<u8>,
    entries: Vec<Entry>,
    /// Deltas with their bases.
    deltas: Vec<(ChunkId, ChunkId)>,
    /// Other packs that hold bases.
    bases: BTreeSet<PackName>,
}

/// A pack that is complete, and not yet stored.
pub struct SealedPack {
    /// All of its bytes.
    pub bytes: Vec<u8>,
    /// What the log will say of it.
    pub record: PackRecord,
    /// Its frames, ascending by chunk.
    pub entries: Arc<Vec<Entry>>,
}

impl PackBuilder {
    /// An empty pack with room for about `capacity` bytes, in a buffer that may have served before.
    pub fn new(region: RegionId, name: PackName, capacity: usize, mut bytes: Vec<u8>) -> Self {
        bytes.clear();
        bytes.reserve(capacity + capacity / 32);
        bytes.extend(encode_header(region, name));
        Self { name, bytes, entries: Vec::new(), deltas: Vec::new(), bases: BTreeSet::new() }
    }

    /// Its name.
    pub const fn name(&self) -> PackName {
        self.name
    }

    /// Adds the frame of a chunk that is not yet in this pack. `base` is the pack that holds its base, for a delta.
    pub fn push(&mut self, id: ChunkId, frame: &Frame, base: Option<PackName>) -> Result<(), FormatError> {
        if frame.base().is_some() != base.is_some() {
            return Err(FormatError::invalid("pack", "a delta has a base, and nothing else does"));
        }
        let too_large = |_| FormatError::invalid("pack", "it is larger than positions in it can say");
        let offset = u32::try_from(self.bytes.len()).map_err(too_large)?;
        let stored_len = u32::try_from(frame.body.len()).map_err(too_large)?;
        self.bytes.extend(encode_frame_header(frame)?);
        self.bytes.extend(&frame.body);
        let (raw_blocks, codec) = (frame.raw_blocks, frame.codec);
        self.deltas.extend(frame.base().map(|base| (id, base)));
        self.bases.extend(base.filter(|base| *base != self.name));
        self.entries.push(Entry { id, pack: 0, offset, stored_len, raw_blocks, codec });
        Ok(())
    }

    /// Bytes so far, without the trailer.
    pub fn len_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing more fits: of very short frames the trailer is longer than they are.
    pub fn is_full(&self) -> bool {
        is_full(self.bytes.len(), self.entries.len(), self.deltas.len())
    }

    /// The finished pack; `effort` as [`Trailer::effort`](crate::format::pack::Trailer::effort) has it.
    pub fn seal(mut self, effort: u8) -> Result<SealedPack, FormatError> {
        let mut header = [0; HEADER_BYTES];
        header.copy_from_slice(&self.bytes[..HEADER_BYTES]);
        let end = u32::try_from(self.bytes.len())
            .map_err(|_| FormatError::invalid("pack", "it is larger than positions in it can say"))?;
        let (trailer, trailer_hash) =
            encode_trailer(&header, &mut self.entries, &mut self.deltas, end, effort)?;
        self.bytes.extend(trailer);
        let raw_bytes = self.entries.iter().map(|e| u64::from(e.raw_blocks) * BLOCK_BYTES as u64).sum();
        let record = PackRecord {
            name: self.name,
            len: self.bytes.len() as u64,
            frames: u32::try_from(self.entries.len()).unwrap_or(u32::MAX),
            raw_bytes,
            trailer_hash,
            bases: self.bases.into_iter().collect(),
        };
        Ok(SealedPack { bytes: self.bytes, record, entries: Arc::new(self.entries) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::frame::Codec;
    use crate::format::pack::{FOOTER_BYTES, trailer_offset};
    use crate::model::ids::SessionId;

    /// Frames of one byte: with their trailers they take several times what they take alone.
    #[test]
    fn a_pack_of_the_shortest_frames_is_full_before_nobody_reads_it() {
        let name = PackName { session: SessionId([1; 16]), number: 0 };
        let mut pack = PackBuilder::new(RegionId([7; 16]), name, 1 << 20, Vec::new());
        let frame = Frame { codec: Codec::Zstd, raw_blocks: 1, body: vec![5] };
        let mut number = 0_u64;
        while !pack.is_full() {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&number.to_be_bytes());
            pack.push(ChunkId(id), &frame, None).unwrap();
            number += 1;
        }
        let sealed = pack.seal(3).unwrap();
        let footer: &[u8; FOOTER_BYTES] = sealed.bytes.last_chunk().unwrap();
        assert!(sealed.record.len > 120 << 20, "{}", sealed.record.len);
        trailer_offset(footer, sealed.record.len).unwrap();
    }
}
