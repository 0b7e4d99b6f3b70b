//! Deltas: a chunk stored as what differs from a base chunk that resembles it.
//!
//! A delta is one zstd frame for which the base's bytes are the prefix, behind the base's id. The base is a plain chunk
//! (depth 1), so that one more frame is ever read.

use super::frame::{
    BASE_ID_BYTES, Codec, CodecPool, Contexts, Draft, Frame, FrameError, check_length, clamped, zstd_error,
};
use crate::model::ids::ChunkId;
use crate::model::units::BLOCK_BYTES;
use zstd::zstd_safe;

/// How a zstd dictionary begins: libraries take what begins so for one, and not for content.
const DICTIONARY_MAGIC: [u8; 4] = 0xEC30_A437_u32.to_le_bytes();

/// Whether a chunk can be the base of others: everything but what begins like a zstd dictionary.
pub fn can_be_base(raw: &[u8]) -> bool {
    !raw.starts_with(&DICTIONARY_MAGIC)
}

impl CodecPool {
    /// Encodes `raw`, the content of chunk `id`, against `base`, and proves by decoding and hashing that the frame gives
    /// it back. None if the body would have more than `limit` bytes, or that cannot be a base.
    pub fn encode_delta(
        &self,
        raw: &[u8],
        id: ChunkId,
        (base_id, base): (ChunkId, &[u8]),
        level: i32,
        limit: usize,
    ) -> Result<Option<Frame>, FrameError> {
        if base_id == id {
            return Ok(None);
        }
        let draft = self.compress_delta(raw, (base_id, base), level, limit)?;
        draft.map(|draft| self.prove(draft, id, Some(base))).transpose()
    }

    /// As [`CodecPool::encode_delta`], not yet proved.
    pub fn compress_delta(
        &self,
        raw: &[u8],
        (base_id, base): (ChunkId, &[u8]),
        level: i32,
        limit: usize,
    ) -> Result<Option<Draft>, FrameError> {
        let raw_blocks = u16::try_from(raw.len() / BLOCK_BYTES).unwrap_or(u16::MAX);
        check_length(raw_blocks, raw.len(), raw.len())?;
        if !can_be_base(base) {
            return Ok(None);
        }
        self.with(|contexts| {
            let Contexts { compressor, scratch, joined, .. } = contexts;
            scratch.clear();
            scratch.reserve(zstd_safe::compress_bound(raw.len()));
            // zstd is much faster if the prefix lies right before the content.
            joined.clear();
            joined.extend_from_slice(base);
            joined.extend_from_slice(raw);
            let (base, raw) = joined.split_at(base.len());
            compressor
                .compress_using_dict(scratch, raw, base, clamped(level))
                .map_err(|code| zstd_error(raw.len(), code))?;
            if BASE_ID_BYTES + scratch.len() > limit {
                return Ok(None);
            }
            let body = [&base_id.0[..], scratch].concat();
            Ok(Some(Draft(Frame { codec: Codec::Delta, raw_blocks, body })))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame::chunk_id;
    use super::*;

    /// Text-like bytes: words of a small vocabulary, another order for each seed.
    fn text(blocks: usize, seed: u64) -> Vec<u8> {
        let mut state = seed;
        let mut raw = Vec::new();
        while raw.len() < blocks * BLOCK_BYTES {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            raw.extend(format!("{} ", state >> 50).bytes());
        }
        raw.truncate(blocks * BLOCK_BYTES);
        raw
    }

    fn changed(raw: &[u8]) -> Vec<u8> {
        let mut changed = raw.to_vec();
        changed[5000..5021].copy_from_slice(b"something was changed");
        changed
    }

    #[test]
    fn a_small_change_is_a_small_frame_that_its_base_decodes() {
        let pool = CodecPool::new();
        for blocks in [2, 17, 256] {
            let base = text(blocks, 1);
            let raw = changed(&base);
            let (id, base_id) = (chunk_id(&raw), chunk_id(&base));
            let frame = pool.encode_delta(&raw, id, (base_id, &base), 3, usize::MAX).unwrap().unwrap();
            assert_eq!((frame.codec, frame.base()), (Codec::Delta, Some(base_id)));
            assert!(frame.body.len() < 300, "{}", frame.body.len());
            let mut decoded = vec![0; raw.len()];
            pool.decode(frame.codec, &frame.body, id, Some(&base), &mut decoded).unwrap();
            assert!(decoded == raw);
            assert_eq!(pool.identify(&frame, Some(&base)).unwrap(), (id, raw));
        }
    }

    #[test]
    fn without_its_base_a_delta_is_refused() {
        let pool = CodecPool::new();
        let (base, other) = (text(4, 1), text(4, 2));
        let raw = changed(&base);
        let id = chunk_id(&raw);
        let frame = pool.encode_delta(&raw, id, (chunk_id(&base), &base), 3, usize::MAX).unwrap().unwrap();
        let mut decoded = vec![0; raw.len()];
        let mut decode = |base: Option<&[u8]>| pool.decode(frame.codec, &frame.body, id, base, &mut decoded);
        assert!(
            matches!(decode(None), Err(FrameError::Base { base: named, .. }) if named == chunk_id(&base))
        );
        assert!(matches!(decode(Some(&other)), Err(FrameError::Content { .. } | FrameError::Zstd { .. })));
        assert!(decode(Some(&base[..BLOCK_BYTES])).is_err());
        let short = Frame { body: frame.body[..31].to_vec(), ..frame.clone() };
        assert!(matches!(pool.identify(&short, Some(&base)), Err(FrameError::Length { .. })));
        let empty = Frame { body: frame.body[..32].to_vec(), ..frame };
        assert!(matches!(pool.identify(&empty, Some(&base)), Err(FrameError::Zstd { .. })));
    }

    #[test]
    fn every_flipped_bit_of_a_delta_is_noticed() {
        let pool = CodecPool::new();
        let base = text(2, 1);
        let raw = changed(&base);
        let id = chunk_id(&raw);
        let good = pool.encode_delta(&raw, id, (chunk_id(&base), &base), 3, usize::MAX).unwrap().unwrap();
        for bit in BASE_ID_BYTES * 8..good.body.len() * 8 {
            let mut body = good.body.clone();
            body[bit / 8] ^= 1 << (bit % 8);
            let mut decoded = vec![0; raw.len()];
            if pool.decode(Codec::Delta, &body, id, Some(&base), &mut decoded).is_ok() {
                assert!(decoded == raw, "bit {bit} gave other content");
            }
        }
    }

    #[test]
    fn what_is_too_long_or_cannot_be_a_base_makes_no_delta() {
        let pool = CodecPool::new();
        let (base, raw) = (text(4, 1), text(4, 2));
        let (id, base_id) = (chunk_id(&raw), chunk_id(&base));
        let encode = |base: (ChunkId, &[u8]), limit| pool.encode_delta(&raw, id, base, 3, limit).unwrap();
        let body = encode((base_id, &base), usize::MAX).unwrap().body.len();
        assert!(encode((base_id, &base), body).is_some());
        assert!(encode((base_id, &base), body - 1).is_none());
        assert!(encode((id, &raw), usize::MAX).is_none(), "of itself");
        // A real dictionary's magic: a reader might take it for one.
        let mut dictionary = base;
        dictionary[..4].copy_from_slice(&[0x37, 0xA4, 0x30, 0xEC]);
        assert!(encode((chunk_id(&dictionary), &dictionary), usize::MAX).is_none());
        let body = [&chunk_id(&dictionary).0[..], b"whatever"].concat();
        let mut decoded = vec![0; raw.len()];
        let refused = pool.decode(Codec::Delta, &body, id, Some(&dictionary), &mut decoded).unwrap_err();
        assert!(refused.to_string().contains("cannot be a base"), "{refused}");
    }
}
