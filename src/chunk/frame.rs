//! A frame: a chunk as it is stored. Encoding proves itself, decoding trusts nothing.

use super::delta::can_be_base;
use crate::model::ids::ChunkId;
use crate::model::units::{BLOCK_BYTES, CHUNK_BLOCKS_MAX};
use std::sync::{Mutex, PoisonError};
use zstd::zstd_safe;

/// How a frame's body is coded. The numbers stand in the format; 3 is reserved by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Codec {
    /// The chunk's bytes.
    Raw = 0,
    /// One zstd frame with its content size.
    Zstd = 1,
    /// The id of a base chunk, then one zstd frame made with the base's bytes as prefix.
    Delta = 2,
}

impl Codec {
    /// The codec with this number, if this version decodes it.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Raw),
            1 => Some(Self::Zstd),
            2 => Some(Self::Delta),
            _ => None,
        }
    }

    /// Its number in the format.
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// Whether a frame needs no other: only such a one can be a base.
    pub const fn is_plain(self) -> bool {
        !matches!(self, Self::Delta)
    }
}

/// Lowest and highest zstd level for new frames: above 12, encoders have corrupted data (zstd#3517).
pub const ZSTD_LEVELS: std::ops::RangeInclusive<i32> = 1..=12;

/// A chunk as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// How `body` is coded.
    pub codec: Codec,
    /// Length of the chunk in blocks, 1 to 256.
    pub raw_blocks: u16,
    /// The stored bytes.
    pub body: Vec<u8>,
}

/// A frame that nobody has proved yet: it can be measured, and not stored.
#[derive(Debug, Clone)]
pub struct Draft(pub(super) Frame);

impl Draft {
    /// Bytes of its body.
    pub fn body_bytes(&self) -> usize {
        self.0.body.len()
    }
}

/// Bytes of the header that stands before a frame's body in a pack.
pub const FRAME_HEADER_BYTES: usize = 12;

impl Frame {
    /// Bytes that the frame takes in a pack, header and body.
    pub fn stored_bytes(&self) -> u64 {
        (FRAME_HEADER_BYTES + self.body.len()) as u64
    }

    /// The chunk that is needed to decode it.
    pub fn base(&self) -> Option<ChunkId> {
        base_of(self.codec, &self.body)
    }
}

/// Bytes of the base's id at the start of a delta's body.
pub const BASE_ID_BYTES: usize = 32;

/// The chunk that is needed to decode a body, if one is and the body is long enough to name it.
pub fn base_of(codec: Codec, body: &[u8]) -> Option<ChunkId> {
    let id = body.first_chunk::<BASE_ID_BYTES>().filter(|_| !codec.is_plain())?;
    Some(ChunkId(*id))
}

/// Why a frame is not the chunk that it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The raw length is not 1 to 256 blocks, or a raw body does not have it.
    #[error("the frame says {blocks} blocks but holds {stored} stored bytes")]
    Length {
        /// Blocks that the frame declares.
        blocks: u16,
        /// Length of its body.
        stored: usize,
    },
    /// The body is not exactly one zstd frame of the declared content size.
    #[error("the frame's body is not one zstd frame of {expected} bytes: {why}")]
    Zstd {
        /// Raw bytes that the frame declares.
        expected: usize,
        /// What zstd says.
        why: String,
    },
    /// A delta's base is not at hand, or none that could be its base.
    #[error("the frame needs chunk {base}, which {why}")]
    Base {
        /// The base.
        base: ChunkId,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The content has another hash.
    #[error("the content's hash is {found}, expected {expected}")]
    Content {
        /// The chunk's id.
        expected: ChunkId,
        /// BLAKE3 of what was decoded.
        found: ChunkId,
    },
}

/// The id of a chunk: BLAKE3 of its raw bytes, a whole number of blocks (the volume's last block is padded
/// with zeros).
pub fn chunk_id(raw: &[u8]) -> ChunkId {
    ChunkId(*blake3::hash(raw).as_bytes())
}

/// Compression contexts for reuse by many threads: making one costs more than compressing a chunk.
#[derive(Default)]
pub struct CodecPool {
    idle: Mutex<Vec<Contexts>>,
}

pub(super) struct Contexts {
    pub(super) compressor: zstd_safe::CCtx<'static>,
    pub(super) decompressor: zstd_safe::DCtx<'static>,
    pub(super) scratch: Vec<u8>,
    /// A base and a chunk behind it.
    pub(super) joined: Vec<u8>,
}

impl CodecPool {
    /// An empty pool.
    pub fn new() -> Self {
        Self::default()
    }

    /// Encodes `raw`, the content of chunk `id`, at zstd `level`, and proves by decoding and hashing that
    /// the frame gives it back. Content that compression saves less than 1/32 of is stored raw.
    pub fn encode(&self, raw: &[u8], id: ChunkId, level: i32) -> Result<Frame, FrameError> {
        self.prove(self.compress(raw, level)?, id, None)
    }

    /// The plain frame of a chunk's content, as [`CodecPool::encode`] makes it, not yet proved.
    pub fn compress(&self, raw: &[u8], level: i32) -> Result<Draft, FrameError> {
        let raw_blocks = u16::try_from(raw.len() / BLOCK_BYTES).unwrap_or(u16::MAX);
        check_length(raw_blocks, raw.len(), raw.len())?;
        self.with(|contexts| {
            let Contexts { compressor, scratch, .. } = contexts;
            scratch.clear();
            scratch.reserve(zstd_safe::compress_bound(raw.len()));
            compressor.compress(scratch, raw, clamped(level)).map_err(|code| zstd_error(raw.len(), code))?;
            let is_worth_it = scratch.len() + raw.len() / 32 < raw.len();
            let (codec, body) = if is_worth_it { (Codec::Zstd, &scratch[..]) } else { (Codec::Raw, raw) };
            Ok(Draft(Frame { codec, raw_blocks, body: body.to_vec() }))
        })
    }

    /// The plain frame of a chunk's content, uncompressed, not yet proved.
    pub fn store(&self, raw: &[u8]) -> Result<Draft, FrameError> {
        let raw_blocks = u16::try_from(raw.len() / BLOCK_BYTES).unwrap_or(u16::MAX);
        check_length(raw_blocks, raw.len(), raw.len())?;
        Ok(Draft(Frame { codec: Codec::Raw, raw_blocks, body: raw.to_vec() }))
    }

    /// The frame, if it gives chunk `id` back. `base` is the base's bytes, for a delta.
    pub fn prove(&self, draft: Draft, id: ChunkId, base: Option<&[u8]>) -> Result<Frame, FrameError> {
        let Draft(frame) = draft;
        let raw_len = usize::from(frame.raw_blocks) * BLOCK_BYTES;
        let found = match frame.codec {
            Codec::Raw => chunk_id(&frame.body),
            codec => self.with(|Contexts { decompressor, scratch, .. }| {
                scratch.clear();
                scratch.reserve(raw_len);
                decode_compressed(decompressor, codec, &frame.body, base, raw_len, scratch)?;
                Ok(chunk_id(scratch))
            })?,
        };
        if found == id { Ok(frame) } else { Err(FrameError::Content { expected: id, found }) }
    }

    /// The content of a frame from nowhere in particular, and the chunk that it is. `base` is the base's bytes, for a
    /// delta.
    pub fn identify(&self, frame: &Frame, base: Option<&[u8]>) -> Result<(ChunkId, Vec<u8>), FrameError> {
        let mut raw = vec![0; usize::from(frame.raw_blocks) * BLOCK_BYTES];
        self.decode_bytes(frame.codec, &frame.body, base, &mut raw)?;
        Ok((chunk_id(&raw), raw))
    }

    /// Decodes a frame of chunk `id` into `raw`, which is exactly as long as the chunk. `base` is the base's bytes, for
    /// a delta.
    pub fn decode(
        &self,
        codec: Codec,
        body: &[u8],
        id: ChunkId,
        base: Option<&[u8]>,
        raw: &mut [u8],
    ) -> Result<(), FrameError> {
        self.decode_bytes(codec, body, base, raw)?;
        let found = chunk_id(raw);
        if found == id { Ok(()) } else { Err(FrameError::Content { expected: id, found }) }
    }

    fn decode_bytes(
        &self,
        codec: Codec,
        body: &[u8],
        base: Option<&[u8]>,
        raw: &mut [u8],
    ) -> Result<(), FrameError> {
        let blocks = u16::try_from(raw.len() / BLOCK_BYTES).unwrap_or(u16::MAX);
        check_length(blocks, raw.len(), body.len())?;
        match codec {
            Codec::Raw if body.len() == raw.len() => raw.copy_from_slice(body),
            Codec::Raw => return Err(FrameError::Length { blocks, stored: body.len() }),
            _ => self.with(|contexts| {
                decode_compressed(&mut contexts.decompressor, codec, body, base, raw.len(), raw)
            })?,
        }
        Ok(())
    }

    pub(super) fn with<T>(&self, work: impl FnOnce(&mut Contexts) -> T) -> T {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut contexts = idle.unwrap_or_else(|| Contexts {
            compressor: zstd_safe::CCtx::create(),
            decompressor: zstd_safe::DCtx::create(),
            scratch: Vec::new(),
            joined: Vec::new(),
        });
        let result = work(&mut contexts);
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(contexts);
        result
    }
}

pub(super) fn check_length(blocks: u16, raw_len: usize, stored: usize) -> Result<(), FrameError> {
    let whole = raw_len.is_multiple_of(BLOCK_BYTES);
    if blocks == 0 || blocks > CHUNK_BLOCKS_MAX || !whole {
        return Err(FrameError::Length { blocks, stored });
    }
    Ok(())
}

pub(super) fn clamped(level: i32) -> i32 {
    level.clamp(*ZSTD_LEVELS.start(), *ZSTD_LEVELS.end())
}

/// The content of a body that is a zstd frame, behind its base's id if it is a delta.
fn decode_compressed<C: zstd_safe::WriteBuf + ?Sized>(
    decompressor: &mut zstd_safe::DCtx<'static>,
    codec: Codec,
    body: &[u8],
    base: Option<&[u8]>,
    raw_len: usize,
    raw: &mut C,
) -> Result<(), FrameError> {
    if codec.is_plain() {
        return decode_zstd(decompressor, body, raw_len, None, raw);
    }
    let Some(id) = base_of(codec, body) else {
        let blocks = u16::try_from(raw_len / BLOCK_BYTES).unwrap_or(u16::MAX);
        return Err(FrameError::Length { blocks, stored: body.len() });
    };
    let base = base.ok_or(FrameError::Base { base: id, why: "is not at hand" })?;
    if !can_be_base(base) {
        return Err(FrameError::Base { base: id, why: "cannot be a base" });
    }
    decode_zstd(decompressor, &body[BASE_ID_BYTES..], raw_len, Some(base), raw)
}

/// Exactly one zstd frame with its declared size: zstd itself would accept several, and skippable ones.
fn decode_zstd<C: zstd_safe::WriteBuf + ?Sized>(
    decompressor: &mut zstd_safe::DCtx<'static>,
    body: &[u8],
    raw_len: usize,
    prefix: Option<&[u8]>,
    raw: &mut C,
) -> Result<(), FrameError> {
    let refuse = |why: &str| FrameError::Zstd { expected: raw_len, why: why.to_owned() };
    match zstd_safe::get_frame_content_size(body) {
        Ok(Some(size)) if size == raw_len as u64 => {}
        Ok(_) => return Err(refuse("another or no content size is declared")),
        Err(_) => return Err(refuse("its header is damaged")),
    }
    let frame_len = zstd_safe::find_frame_compressed_size(body).map_err(|code| zstd_error(raw_len, code))?;
    if frame_len != body.len() {
        return Err(refuse("bytes follow the frame"));
    }
    let decoded = match prefix {
        None => decompressor.decompress(raw, body),
        Some(prefix) => decompressor.decompress_using_dict(raw, body, prefix),
    };
    let decoded = decoded.map_err(|code| zstd_error(raw_len, code))?;
    if decoded == raw_len { Ok(()) } else { Err(refuse("it decodes to another length")) }
}

pub(super) fn zstd_error(expected: usize, code: zstd_safe::ErrorCode) -> FrameError {
    FrameError::Zstd { expected, why: zstd_safe::get_error_name(code).to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(blocks: usize) -> Vec<u8> {
        b"all work and no play ".iter().copied().cycle().take(blocks * BLOCK_BYTES).collect()
    }

    fn noise(blocks: usize) -> Vec<u8> {
        let mut state = 1u64;
        std::iter::repeat_with(|| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 56) as u8
        })
        .take(blocks * BLOCK_BYTES)
        .collect()
    }

    fn decode(pool: &CodecPool, frame: &Frame, id: ChunkId) -> Result<Vec<u8>, FrameError> {
        let mut raw = vec![0; usize::from(frame.raw_blocks) * BLOCK_BYTES];
        pool.decode(frame.codec, &frame.body, id, None, &mut raw).map(|()| raw)
    }

    #[test]
    fn chunks_come_back_and_only_compressible_ones_are_compressed() {
        let pool = CodecPool::new();
        for (raw, codec) in [(text(3), Codec::Zstd), (noise(3), Codec::Raw), (text(256), Codec::Zstd)] {
            let frame = pool.encode(&raw, chunk_id(&raw), 3).unwrap();
            assert_eq!(frame.codec, codec);
            assert_eq!(decode(&pool, &frame, chunk_id(&raw)).unwrap(), raw);
        }
    }

    #[test]
    fn what_is_not_whole_blocks_is_refused() {
        let pool = CodecPool::new();
        for len in [0, 1, 4095, 4097, 257 * BLOCK_BYTES] {
            let raw = vec![1; len];
            assert!(matches!(pool.encode(&raw, chunk_id(&raw), 3), Err(FrameError::Length { .. })), "{len}");
        }
    }

    #[test]
    fn encoding_against_another_id_is_refused() {
        let pool = CodecPool::new();
        for raw in [text(2), noise(2)] {
            let error = pool.encode(&raw, ChunkId([9; 32]), 3).unwrap_err();
            assert!(matches!(error, FrameError::Content { .. }));
        }
    }

    /// What an encoder or the memory made of it that is not the chunk any more never becomes a frame.
    #[test]
    fn what_an_encoder_spoils_is_not_proved() {
        let pool = CodecPool::new();
        for (raw, codec) in [(text(2), Codec::Zstd), (noise(1), Codec::Raw)] {
            let id = chunk_id(&raw);
            let good = pool.compress(&raw, 3).unwrap();
            assert_eq!(good.0.codec, codec);
            let mut refused = 0;
            for bit in 0..good.0.body.len() * 8 {
                let mut body = good.0.body.clone();
                body[bit / 8] ^= 1 << (bit % 8);
                let spoiled = Draft(Frame { body, ..good.0.clone() });
                match pool.prove(spoiled, id, None) {
                    Ok(frame) => assert_eq!(decode(&pool, &frame, id).unwrap(), raw, "bit {bit}"),
                    Err(_) => refused += 1,
                }
            }
            // Some bits of zstd's header stand for nothing.
            assert!(refused * 10 > good.0.body.len() * 8 * 9, "{refused} refused");
            assert_eq!(pool.prove(good, id, None).unwrap().codec, codec);
        }
    }

    #[test]
    fn every_flipped_bit_of_a_frame_is_noticed() {
        let pool = CodecPool::new();
        for raw in [text(2), noise(1)] {
            let id = chunk_id(&raw);
            let good = pool.encode(&raw, id, 3).unwrap();
            for bit in 0..good.body.len() * 8 {
                let mut frame = good.clone();
                frame.body[bit / 8] ^= 1 << (bit % 8);
                if let Ok(decoded) = decode(&pool, &frame, id) {
                    assert_eq!(decoded, raw, "bit {bit} gave other content");
                }
            }
        }
    }

    #[test]
    fn several_zstd_frames_or_skippable_ones_are_refused() {
        let pool = CodecPool::new();
        let raw = text(2);
        let id = chunk_id(&raw);
        let one = pool.encode(&raw[..BLOCK_BYTES], chunk_id(&raw[..BLOCK_BYTES]), 3).unwrap().body;
        let two = Frame { codec: Codec::Zstd, raw_blocks: 2, body: [one.clone(), one].concat() };
        assert!(matches!(decode(&pool, &two, id), Err(FrameError::Zstd { .. })));
        let mut skippable = vec![0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0];
        skippable.extend(pool.encode(&raw, id, 3).unwrap().body);
        let skippable = Frame { codec: Codec::Zstd, raw_blocks: 2, body: skippable };
        assert!(matches!(decode(&pool, &skippable, id), Err(FrameError::Zstd { .. })));
    }

    #[test]
    fn what_declares_another_size_is_refused_before_it_is_decoded() {
        let pool = CodecPool::new();
        for (blocks, claimed) in [(3, 2), (2, 3)] {
            let raw = text(blocks);
            let good = pool.encode(&raw, chunk_id(&raw), 3).unwrap();
            let frame = Frame { raw_blocks: claimed, ..good };
            let Err(FrameError::Zstd { expected, why }) = decode(&pool, &frame, chunk_id(&raw)) else {
                panic!("{blocks} blocks are taken for {claimed}")
            };
            assert_eq!(expected, usize::from(claimed) * BLOCK_BYTES);
            assert!(why.contains("declared"), "{why}");
        }
    }
}
