//! Cutting what was read: where chunks end, and their ids.

use super::expected::Same;
use super::pieces::{Part, Piece};
use crate::chunk::cut::{Cutter, Span};
use crate::chunk::fingerprint::BlockFacts;
use crate::chunk::frame::chunk_id;
use crate::disk::AlignedBuffer;
use crate::model::blockmap::ChunkRef;
use crate::model::ids::ChunkId;
use crate::model::objects::PackName;
use crate::model::region::ChunkerParams;
use crate::model::units::{BLOCK_BYTES, block_offset};
use std::collections::BTreeSet;

/// A buffer with the chunks that were cut in it.
#[derive(Default)]
pub(super) struct Batch {
    /// None if it holds no chunk that anybody needs the bytes of.
    pub(super) buffer: Option<AlignedBuffer>,
    /// Chunks before those that were cut, which are stored: their bytes are not here.
    pub(super) kept: Vec<ChunkRef>,
    /// The packs that those are in, if they were looked up.
    pub(super) packs: Option<BTreeSet<PackName>>,
    chunks: Vec<Cut>,
    /// Bytes of the disk that were read for this.
    pub(super) read_bytes: u64,
    /// Bytes of the disk that this finished: as chunks or zero runs. Those of all batches are the disk's.
    pub(super) passed_bytes: u64,
}

impl Batch {
    /// All of its chunks, by position.
    pub(super) fn refs(&self) -> impl Iterator<Item = ChunkRef> + '_ {
        let cut =
            |cut: &Cut| ChunkRef { start_block: cut.span.start_block, blocks: cut.span.blocks, id: cut.id };
        self.kept.iter().copied().chain(self.chunks.iter().map(cut))
    }

    /// The chunks that were cut, with their bytes.
    pub(super) fn chunks(&self) -> impl Iterator<Item = (ChunkId, &[u8])> {
        let bytes = self.buffer.as_ref().map_or(&[][..], AlignedBuffer::bytes);
        self.chunks.iter().map(|cut| (cut.id, cut.bytes(bytes)))
    }
}

struct Cut {
    span: Span,
    offset: usize,
    id: ChunkId,
}

impl Cut {
    fn bytes<'a>(&self, buffer: &'a [u8]) -> &'a [u8] {
        bytes_of(self.span, self.offset, buffer)
    }
}

fn bytes_of(span: Span, offset: usize, buffer: &[u8]) -> &[u8] {
    &buffer[offset..offset + usize::from(span.blocks) * BLOCK_BYTES]
}

/// A batch whose chunks have no ids yet.
pub(super) struct Unhashed {
    buffer: AlignedBuffer,
    /// Chunks with the offsets of their bytes in the buffer.
    chunks: Vec<(Span, usize)>,
    read_bytes: u64,
    passed_bytes: u64,
}

impl Unhashed {
    /// The last chunk, with its bytes.
    pub(super) fn last(&self) -> Option<(Span, &[u8])> {
        let (span, offset) = *self.chunks.last()?;
        Some((span, bytes_of(span, offset, self.buffer.bytes())))
    }

    pub(super) fn hashed(self) -> Batch {
        let Self { buffer, chunks, read_bytes, passed_bytes } = self;
        let hashed = |(span, offset)| {
            let mut cut = Cut { span, offset, id: ChunkId([0; 32]) };
            cut.id = chunk_id(cut.bytes(buffer.bytes()));
            cut
        };
        let chunks = chunks.into_iter().map(hashed).collect();
        Batch { buffer: Some(buffer), chunks, read_bytes, passed_bytes, ..Batch::default() }
    }
}

/// A cutter, and the bytes of the chunk that is open in it: what one piece leaves for the next.
pub(super) struct Cutting {
    pub(super) cutter: Cutter,
    tail: Vec<u8>,
    /// Whether it is in the state in which the one that made an expected map was at the same block.
    pub(super) is_as_expected: bool,
}

impl Cutting {
    /// Goes on where a cutter stands; nothing is open in it.
    pub(super) fn new(cutter: Cutter) -> Self {
        Self { cutter, tail: Vec::new(), is_as_expected: false }
    }

    /// At the start of a volume, where every cutter is in the same state.
    pub(super) fn at_start(params: ChunkerParams) -> Self {
        Self { is_as_expected: true, ..Self::new(Cutter::new(params)) }
    }

    /// The headroom that the next piece needs at least.
    pub(super) fn tail_bytes(&self) -> usize {
        self.tail.len()
    }

    /// The chunks of a piece that holds what was expected, to which it came as expected: nothing is open in it.
    pub(super) fn pass(&mut self, read_bytes: u64, same: Same) -> Batch {
        debug_assert!(self.is_as_expected && self.tail.is_empty());
        let before = self.cutter.pending_from();
        self.cutter = same.cutter;
        let passed_bytes = block_offset(self.cutter.pending_from() - before);
        Batch { kept: same.chunks, packs: Some(same.packs), read_bytes, passed_bytes, ..Batch::default() }
    }

    /// The chunks that end in a piece.
    pub(super) fn take(&mut self, piece: Piece) -> Unhashed {
        let Piece { mut buffer, headroom, parts, facts } = piece;
        let start = headroom - self.tail.len();
        buffer.bytes_mut()[start..headroom].copy_from_slice(&self.tail);
        let before = self.cutter.pending_from();
        let read_bytes = (buffer.bytes().len() - headroom) as u64;
        let tail_max = bytes_behind_zeros(&parts).unwrap_or(buffer.bytes().len() - start);
        let chunks = cut_piece(&mut self.cutter, &parts, &facts, headroom);
        let pending = self.cutter.position() - self.cutter.pending_from();
        let pending = usize::try_from(block_offset(pending)).unwrap_or(0);
        // Else bytes of another place would be stored: better to end here.
        assert!(pending <= tail_max, "what is open is in the buffer, without a hole");
        self.tail.clear();
        self.tail.extend_from_slice(&buffer.bytes()[buffer.bytes().len() - pending..]);
        let passed_bytes = block_offset(self.cutter.pending_from() - before);
        Unhashed { buffer, chunks, read_bytes, passed_bytes }
    }

    /// The chunk that the end of the volume ends.
    pub(super) fn finish(mut self) -> Unhashed {
        let mut chunks = Vec::new();
        let first = self.cutter.pending_from();
        let passed_bytes = block_offset(self.cutter.position() - first);
        self.cutter.finish(&mut |span| {
            let offset = usize::try_from(block_offset(span.start_block - first)).unwrap_or(0);
            chunks.push((span, offset));
        });
        let mut buffer = AlignedBuffer::default();
        buffer.resize(self.tail.len());
        buffer.bytes_mut().copy_from_slice(&self.tail);
        Unhashed { buffer, chunks, read_bytes: 0, passed_bytes }
    }
}

/// Bytes of data behind the last hole, if there is one.
fn bytes_behind_zeros(parts: &[Part]) -> Option<usize> {
    let last = parts.iter().rposition(|part| matches!(part, Part::Zeros(_)))?;
    let blocks = parts[last..].iter().map(|part| if let Part::Data(blocks) = part { *blocks } else { 0 });
    usize::try_from(block_offset(blocks.sum())).ok()
}

/// The chunks that end in a piece, with the offsets of their bytes in its buffer.
fn cut_piece(
    cutter: &mut Cutter,
    parts: &[Part],
    facts: &[BlockFacts],
    headroom: usize,
) -> Vec<(Span, usize)> {
    let mut chunks = Vec::new();
    let mut facts = facts.iter();
    // The byte at `anchor_offset` of the buffer is that of block `anchor`; a chunk never spans a hole.
    let (mut anchor, mut anchor_offset) = (cutter.position(), headroom);
    let mut filled = headroom;
    for part in parts {
        let mut emit = |span: Span| {
            let back = usize::try_from(block_offset(anchor.saturating_sub(span.start_block))).unwrap_or(0);
            let ahead = usize::try_from(block_offset(span.start_block.saturating_sub(anchor))).unwrap_or(0);
            chunks.push((span, anchor_offset + ahead - back));
        };
        match *part {
            Part::Zeros(blocks) => {
                cutter.push_zeros(blocks, &mut emit);
                (anchor, anchor_offset) = (cutter.position(), filled);
            }
            Part::Data(blocks) => {
                for facts in facts.by_ref().take(usize::try_from(blocks).unwrap_or(usize::MAX)) {
                    cutter.push(*facts, &mut emit);
                    filled += BLOCK_BYTES;
                }
            }
        }
    }
    chunks
}
