//! One pass over each disk: every choice cuts it, and different chunks are counted and compressed.

use crate::Outcome;
use imgstore::chunk::cut::{Cutter, Span};
use imgstore::chunk::fingerprint::{block_facts, is_zero};
use imgstore::chunk::frame::{CodecPool, chunk_id};
use imgstore::disk::DiskRead;
use imgstore::model::region::ChunkerParams;
use imgstore::model::units::{
    BLOCK_BYTES, CHUNK_BLOCKS_MAX, ZERO_RUN_BLOCKS_MIN, block_offset, blocks_for_bytes,
};
use rayon::prelude::*;
use std::collections::HashMap;
use std::time::Instant;

/// Most choices that are compared at once.
pub(crate) const CHOICES_MAX: usize = 32;
/// Different chunks that are kept in mind, of all choices together: 150 MB.
const KEPT_MAX: usize = 1 << 21;
/// Blocks that are read together.
const WINDOW_BLOCKS: usize = 2048;
/// Blocks before them that are still at hand: the longest chunk, with zeros behind it that may turn out to be content.
const CARRY_BLOCKS: usize = CHUNK_BLOCKS_MAX as usize + ZERO_RUN_BLOCKS_MIN as usize;
pub(crate) const LEVEL: i32 = 3;

/// A choice of parameters, and what was counted with it.
pub(crate) struct Choice {
    pub(crate) params: ChunkerParams,
    cutter: Cutter,
    /// Chunks of each disk, repeated ones too.
    pub(crate) references: Vec<u64>,
    /// Blocks of all of them, and the sum of their squares: what is decoded if each block is read.
    pub(crate) read: (u64, u64),
    /// Seconds to cut and hash each part that is mostly data.
    pub(crate) seconds: Vec<f64>,
}

impl Choice {
    pub(crate) fn new(params: ChunkerParams) -> Self {
        Self { params, cutter: Cutter::new(params), references: vec![], read: (0, 0), seconds: vec![] }
    }

    /// Whether chunks end at multiples of one length, whatever the content: what the library's cutter does not do.
    pub(crate) const fn is_fixed(&self) -> bool {
        self.params.min_blocks == self.params.max_blocks
    }

    pub(crate) fn name(&self) -> String {
        let ChunkerParams { min_blocks, avg_blocks, max_blocks, zero_tail_bytes } = self.params;
        if self.is_fixed() {
            return format!("fixed {max_blocks}");
        }
        format!("{min_blocks}/{avg_blocks}/{max_blocks}, {zero_tail_bytes}")
    }

    /// Cuts a part, and hashes the chunks that end there: where each is, and the leading bytes of its id.
    fn cut(&mut self, part: &Part) -> Vec<(Span, u64)> {
        let spans = if self.is_fixed() { self.cut_fixed(part) } else { self.cut_by_content(part) };
        let key =
            |span: Span| u64::from_le_bytes(*chunk_id(part.chunk(span)).0.first_chunk().expect("32 bytes"));
        let chunks: Vec<(Span, u64)> = spans.into_iter().map(|span| (span, key(span))).collect();
        for blocks in chunks.iter().map(|(span, _)| u64::from(span.blocks)) {
            self.read = (self.read.0 + blocks, self.read.1 + blocks * blocks);
        }
        chunks
    }

    fn cut_by_content(&mut self, part: &Part) -> Vec<Span> {
        let mut spans = Vec::new();
        let mut emit = |span: Span| spans.push(span);
        for (block, is_zero) in part.own().chunks_exact(BLOCK_BYTES).zip(&part.zeros) {
            if *is_zero {
                self.cutter.push_zeros(1, &mut emit);
            } else {
                self.cutter.push(block_facts(block, self.params.zero_tail_bytes), &mut emit);
            }
        }
        if part.hole > 0 {
            self.cutter.push_zeros(part.hole, &mut emit);
        }
        if part.is_last {
            self.cutter.finish(&mut emit);
        }
        spans
    }

    /// Parts begin at multiples of [`WINDOW_BLOCKS`], so that no chunk begins in one and ends in another.
    fn cut_fixed(&self, part: &Part) -> Vec<Span> {
        let size = self.params.max_blocks;
        let starts = (part.first..).step_by(usize::from(size));
        let chunks = starts.zip(part.zeros.chunks(usize::from(size)));
        let content = chunks.filter(|(_, zeros)| zeros.contains(&false));
        let blocks = |zeros: &[bool]| u16::try_from(zeros.len()).unwrap_or(size);
        content.map(|(start_block, zeros)| Span { start_block, blocks: blocks(zeros) }).collect()
    }
}

/// Part of a disk, with what came before it.
struct Part {
    /// First block of the part.
    first: u64,
    blocks: usize,
    /// The bytes of [`CARRY_BLOCKS`] blocks before it, and its own.
    bytes: Vec<u8>,
    /// Which of its blocks are zero; none if all that comes is a hole.
    zeros: Vec<bool>,
    /// Blocks of a hole that come in place of it, whole windows.
    hole: u64,
    is_last: bool,
}

impl Part {
    fn new() -> Self {
        let bytes = vec![0; (CARRY_BLOCKS + WINDOW_BLOCKS) * BLOCK_BYTES];
        Self { first: 0, blocks: 0, bytes, zeros: vec![], hole: 0, is_last: false }
    }

    fn own(&self) -> &[u8] {
        &self.bytes[CARRY_BLOCKS * BLOCK_BYTES..][..self.blocks * BLOCK_BYTES]
    }

    fn chunk(&self, span: Span) -> &[u8] {
        let at = usize::try_from(span.start_block + CARRY_BLOCKS as u64 - self.first).expect("it is at hand");
        &self.bytes[at * BLOCK_BYTES..][..usize::from(span.blocks) * BLOCK_BYTES]
    }

    /// Goes on to what begins at a block: where the next part begins.
    fn next(&mut self, disk: &dyn DiskRead, first: u64) -> Outcome<u64> {
        let total = blocks_for_bytes(disk.len_bytes());
        let extent = disk.extent_at(block_offset(first))?;
        let end = if extent.end >= disk.len_bytes() { total } else { extent.end / BLOCK_BYTES as u64 };
        let hole = if extent.is_zero { end.saturating_sub(first) } else { 0 };
        self.hole = hole / WINDOW_BLOCKS as u64 * WINDOW_BLOCKS as u64;
        if self.hole > 0 {
            // What is still open is cut now, and its bytes stay where they are.
            self.zeros.clear();
        } else {
            self.read(disk, first, usize::try_from(total - first)?.min(WINDOW_BLOCKS))?;
        }
        let next = first + self.hole + self.zeros.len() as u64;
        self.is_last = next >= total;
        Ok(next)
    }

    fn read(&mut self, disk: &dyn DiskRead, first: u64, blocks: usize) -> Outcome<()> {
        let end = (CARRY_BLOCKS + self.blocks) * BLOCK_BYTES;
        self.bytes.copy_within(end - CARRY_BLOCKS * BLOCK_BYTES..end, 0);
        (self.first, self.blocks) = (first, blocks);
        let own = &mut self.bytes[CARRY_BLOCKS * BLOCK_BYTES..];
        own.fill(0);
        let len = (disk.len_bytes() - block_offset(first)).min(block_offset(blocks as u64));
        disk.read_at(block_offset(first), &mut own[..usize::try_from(len)?])?;
        self.zeros = self.own().chunks_exact(BLOCK_BYTES).map(is_zero).collect();
        Ok(())
    }
}

/// A chunk that some choices cut.
pub(crate) struct Seen {
    pub(crate) blocks: u16,
    pub(crate) stored: u32,
    /// The disk that had it first, for each choice.
    pub(crate) first: [u8; CHOICES_MAX],
}

pub(crate) const NOWHERE: u8 = u8::MAX;

/// Different chunks by the leading bytes of their ids: all of them, or those that end in so many zero bits.
#[derive(Default)]
pub(crate) struct Chunks {
    pub(crate) kept: HashMap<u64, Seen>,
    pub(crate) bits: u32,
    codecs: CodecPool,
}

impl Chunks {
    /// Takes what each choice has cut of a part.
    fn take(&mut self, cut: &[Vec<(Span, u64)>], part: &Part, disk: u8) -> Outcome<()> {
        let mut new = Vec::new();
        for (choice, chunks) in cut.iter().enumerate() {
            for (span, key) in chunks.iter().filter(|(_, key)| key.trailing_zeros() >= self.bits) {
                let seen = self.kept.entry(*key).or_insert_with(|| {
                    new.push((*span, *key));
                    Seen { blocks: span.blocks, stored: 0, first: [NOWHERE; CHOICES_MAX] }
                });
                seen.first[choice] = seen.first[choice].min(disk);
            }
        }
        let compress = |(span, key): (Span, u64)| {
            self.codecs.compress(part.chunk(span), LEVEL).map(|draft| (key, draft.body_bytes()))
        };
        let sizes: Result<Vec<_>, _> = new.into_par_iter().map(compress).collect();
        for (key, size) in sizes? {
            self.kept.entry(key).and_modify(|seen| seen.stored = u32::try_from(size).unwrap_or(u32::MAX));
        }
        while self.kept.len() > KEPT_MAX {
            self.bits += 1;
            self.kept.retain(|key, _| key.trailing_zeros() >= self.bits);
        }
        Ok(())
    }
}

/// One pass over a disk.
pub(crate) fn pass(
    disk: &dyn DiskRead,
    number: u8,
    choices: &mut [Choice],
    chunks: &mut Chunks,
) -> Outcome<()> {
    let (mut part, mut first) = (Part::new(), 0);
    for choice in &mut *choices {
        choice.cutter = Cutter::new(choice.params);
        choice.references.push(0);
    }
    while !part.is_last {
        first = part.next(disk, first)?;
        let is_data = part.zeros.iter().filter(|is_zero| !**is_zero).count() > WINDOW_BLOCKS / 2;
        let mut cut = vec![vec![]; choices.len()];
        // The first one finds less in the processor's caches: not always the same.
        let (turn, count) = (usize::try_from(first)? / WINDOW_BLOCKS, choices.len());
        for at in (0..count).map(|at| (at + turn) % count) {
            let started = Instant::now();
            cut[at] = choices[at].cut(&part);
            choices[at].seconds.extend(is_data.then(|| started.elapsed().as_secs_f64()));
            choices[at].references[usize::from(number)] += cut[at].len() as u64;
        }
        chunks.take(&cut, &part, number)?;
    }
    Ok(())
}
