//! One way to cut, and what it has seen.

use super::sample::Sample;
use super::{BlockHash, DISKS_MAX, LEVELS, LayoutFigures, LevelFigures, Window};
use crate::chunk::cut::{Cutter, Span};
use crate::chunk::features::{Features, features};
use crate::chunk::frame::{CodecPool, FRAME_HEADER_BYTES};
use crate::disk::DiskRead;
use crate::model::ids::ChunkId;
use crate::model::region::ChunkerParams;
use crate::model::units::{BLOCK_BYTES, CHUNK_BLOCKS_MAX, block_offset};
use crate::ops::encode::{KEPT_TENTHS, base_blocks_max};
use crate::ops::error::OpsError;
use crate::region::fetch::ENTRY_BYTES;
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// Chunks that a layout keeps in mind.
const KEPT_MAX: usize = 1 << 19;
/// Features that are kept in mind for deltas.
const FEATURES_MAX: usize = 1 << 21;
/// Of each disk so many bytes are compressed at first, and of the rest one chunk in so many.
const MEASURED_BYTES: u64 = 64 << 20;
const MEASURED: u64 = 8;
/// The same for all levels.
const LEVELS_BYTES: u64 = 16 << 20;
const MEASURED_AT_LEVELS: u64 = 32;
const LEVEL: i32 = 3;

/// Where chunks end.
pub(super) enum Cut {
    Fixed { blocks: usize },
    ByContent { params: ChunkerParams, cutter: Cutter },
}

impl Cut {
    pub(super) fn by_content(params: ChunkerParams) -> Self {
        Self::ByContent { params, cutter: Cutter::new(params) }
    }
}

/// What comes next of a disk.
#[derive(Clone, Copy)]
pub(super) enum Step {
    /// The window.
    Window,
    /// So many blocks that are all zero, behind it.
    Zeros(u64),
    /// Nothing any more.
    End,
}

/// A chunk of a way to cut.
#[derive(Clone, Copy)]
pub(super) struct Chunk {
    blocks: u32,
    /// Bytes that it has compressed, if it was tried.
    stored: Option<u32>,
    /// Whether it stands for those that were not: it was chosen by its key, and not for coming early.
    is_chosen: bool,
    /// The disks that have it, a bit each.
    pub(super) disks: u64,
    /// The first of them.
    first: u8,
    /// How often it was seen.
    pub(super) count: u32,
}

/// Where on the disks a chunk is.
#[derive(Clone, Copy)]
struct Place {
    disk: usize,
    start: u64,
    blocks: usize,
}

/// What was tried on some chunks.
#[derive(Default)]
struct Trials {
    raw: u64,
    sizes: [u64; LEVELS.len()],
    times: [Duration; LEVELS.len()],
    /// Bytes of plain frames, and of what is stored instead with deltas.
    plain: u64,
    with_deltas: u64,
}

pub(super) struct Layout {
    name: &'static str,
    is_own: bool,
    cut: Cut,
    chunks: Sample<Chunk>,
    /// Blocks that were read as part of any chunk, and the sum of their chunks' lengths.
    read: (u64, u64),
    /// Chunks of the last window: where, how long, and their keys.
    taken: Vec<(u64, u32, u64)>,
    newest: HashMap<u32, Place>,
    /// The features in the order in which they came first.
    order: VecDeque<u32>,
    trials: Trials,
    /// Bytes of new chunks of this disk.
    seen: u64,
}

impl Layout {
    pub(super) fn new(name: &'static str, cut: Cut) -> Self {
        Self {
            name,
            is_own: false,
            cut,
            chunks: Sample::new(KEPT_MAX),
            read: (0, 0),
            taken: Vec::new(),
            newest: HashMap::new(),
            order: VecDeque::new(),
            trials: Trials::default(),
            seen: 0,
        }
    }

    /// imgstore's own: levels and deltas are tried on it.
    pub(super) fn own(name: &'static str, params: ChunkerParams) -> Self {
        Self { is_own: true, ..Self::new(name, Cut::by_content(params)) }
    }

    pub(super) const fn is_own(&self) -> bool {
        self.is_own
    }

    pub(super) fn sampled(&self) -> u64 {
        self.chunks.one_in()
    }

    pub(super) fn chunk(&self, key: u64) -> Option<&Chunk> {
        self.chunks.get(key)
    }

    /// Begins a disk.
    pub(super) fn begin(&mut self) {
        self.seen = 0;
        if let Cut::ByContent { params, cutter } = &mut self.cut {
            *cutter = Cutter::new(*params);
        }
    }

    /// Goes on with a disk, of which `window` is what was read last.
    pub(super) fn take(
        &mut self,
        step: Step,
        window: &Window<'_>,
        disks: &[&dyn DiskRead],
        codecs: &CodecPool,
    ) -> Result<(), OpsError> {
        let mut spans = Vec::new();
        match (&mut self.cut, step) {
            (Cut::Fixed { blocks }, Step::Window) => {
                for (number, facts) in (0_u64..).zip(window.facts.chunks(*blocks)) {
                    if facts.iter().any(|facts| !facts.is_zero) {
                        spans.push((window.first + number * *blocks as u64, facts.len()));
                    }
                }
            }
            (Cut::Fixed { .. }, Step::Zeros(_) | Step::End) => {}
            (Cut::ByContent { cutter, .. }, step) => {
                let mut emit = |span: Span| spans.push((span.start_block, usize::from(span.blocks)));
                match step {
                    Step::Window => window.facts.iter().for_each(|facts| cutter.push(*facts, &mut emit)),
                    Step::Zeros(blocks) => cutter.push_zeros(blocks, &mut emit),
                    Step::End => cutter.finish(&mut emit),
                }
            }
        }
        spans.into_iter().try_for_each(|(start, blocks)| self.chunk_at(window, start, blocks, disks, codecs))
    }

    /// The chunks since the last call: first block, length in blocks, key.
    pub(super) fn taken(&mut self) -> Vec<(u64, u32, u64)> {
        std::mem::take(&mut self.taken)
    }

    fn chunk_at(
        &mut self,
        window: &Window<'_>,
        start: u64,
        blocks: usize,
        disks: &[&dyn DiskRead],
        codecs: &CodecPool,
    ) -> Result<(), OpsError> {
        let (Some(raw), Some(hashes)) = (window.blocks(start, blocks), window.hashes(start, blocks)) else {
            return Ok(());
        };
        let key = key_of(hashes);
        self.read.0 += blocks as u64;
        self.read.1 += (blocks * blocks) as u64;
        if self.is_own {
            self.taken.push((start, u32::try_from(blocks).unwrap_or(u32::MAX), key));
        }
        if !self.chunks.wants(key) {
            return Ok(());
        }
        let make = || Chunk {
            blocks: u32::try_from(blocks).unwrap_or(u32::MAX),
            stored: None,
            is_chosen: false,
            disks: 0,
            first: u8::try_from(window.disk.min(DISKS_MAX)).unwrap_or(u8::MAX),
            count: 0,
        };
        let one_in = self.chunks.one_in();
        let (chunk, is_new) = self.chunks.entry(key, make);
        chunk.disks |= 1 << window.disk;
        chunk.count = chunk.count.saturating_add(1);
        if !is_new {
            return Ok(());
        }
        self.seen += raw.len() as u64;
        chunk.is_chosen = self.seen >= MEASURED_BYTES && (key >> 32).is_multiple_of(MEASURED);
        // One of those that are kept in mind stands for those that are not.
        let weight = one_in * if self.seen < MEASURED_BYTES { 1 } else { MEASURED };
        let mut measured = None;
        if chunk.is_chosen || self.seen < MEASURED_BYTES {
            let stored = compressed(raw, LEVEL, codecs)?;
            measured = Some((stored, weight));
            chunk.stored = u32::try_from(stored).ok();
            let is_early = self.seen < LEVELS_BYTES;
            if self.is_own && (is_early || (key >> 32).is_multiple_of(MEASURED_AT_LEVELS)) {
                self.trials.levels(raw, one_in * if is_early { 1 } else { MEASURED_AT_LEVELS }, codecs)?;
            }
        }
        if self.is_own {
            self.try_delta(raw, Place { disk: window.disk, start, blocks }, measured, disks, codecs)?;
        }
        Ok(())
    }

    /// Looks for what a new chunk resembles, and if it was `measured`, encodes it against that: with the bytes that it has
    /// compressed, and for how many it stands.
    fn try_delta(
        &mut self,
        raw: &[u8],
        place: Place,
        measured: Option<(u64, u64)>,
        disks: &[&dyn DiskRead],
        codecs: &CodecPool,
    ) -> Result<(), OpsError> {
        let Some(found) = features(raw) else { return Ok(()) };
        let base =
            self.most_alike(&found).filter(|base| base.blocks <= usize::from(base_blocks_max(place.blocks)));
        // What is stored as a delta is no base itself; of what is not tried it is taken as one if it resembles anything.
        let mut is_delta = base.is_some();
        if let Some((plain, weight)) = measured {
            let delta = match base {
                Some(base) => delta_bytes(raw, base, disks, codecs)?.unwrap_or(plain),
                None => plain,
            };
            is_delta = delta * 10 < plain * KEPT_TENTHS as u64;
            self.trials.plain += weight * plain;
            self.trials.with_deltas += weight * if is_delta { delta } else { plain };
        }
        if is_delta {
            return Ok(());
        }
        for feature in found {
            if self.newest.insert(feature, place).is_none() {
                self.order.push_back(feature);
            }
            // The oldest goes: what resembles another disk mostly comes soon after it.
            if self.newest.len() > FEATURES_MAX
                && let Some(oldest) = self.order.pop_front()
            {
                self.newest.remove(&oldest);
            }
        }
        Ok(())
    }

    /// The chunk with most features in common.
    fn most_alike(&self, features: &Features) -> Option<Place> {
        let places: Vec<Place> =
            features.iter().filter_map(|feature| self.newest.get(feature).copied()).collect();
        let same = |place: &Place| {
            places.iter().filter(|other| (other.disk, other.start) == (place.disk, place.start)).count()
        };
        places.iter().max_by_key(|place| same(place)).copied()
    }

    pub(super) fn figures(&self, disks: usize) -> LayoutFigures {
        let scale = self.chunks.one_in();
        let chunks = self.chunks.values().count() as u64 * scale;
        let mut added_bytes = vec![0; disks];
        let ratios = self.ratios();
        for chunk in self.chunks.values() {
            added_bytes[usize::from(chunk.first)] += self.stored(chunk, &ratios) * scale;
        }
        LayoutFigures {
            name: self.name.to_owned(),
            is_own: self.is_own,
            chunks,
            stored_bytes: added_bytes.iter().sum(),
            index_bytes: chunks * ENTRY_BYTES as u64,
            read_bytes: self.read.1 * BLOCK_BYTES as u64 / self.read.0.max(1),
            added_bytes,
        }
    }

    /// What of each disk no other has.
    pub(super) fn unique(&self, disks: usize) -> Vec<u64> {
        let ratios = self.ratios();
        let mut unique = vec![0; disks];
        for chunk in self.chunks.values().filter(|chunk| chunk.disks.is_power_of_two()) {
            unique[usize::from(chunk.first)] += self.stored(chunk, &ratios) * self.chunks.one_in();
        }
        unique
    }

    /// Of each disk, the raw and the stored bytes of chunks that were tried.
    fn ratios(&self) -> Vec<(u64, u64)> {
        let mut ratios = vec![(0, 0); DISKS_MAX + 1];
        for chunk in self.chunks.values().filter(|chunk| chunk.is_chosen) {
            let Some(stored) = chunk.stored else { continue };
            let all = ratios.len() - 1;
            for of in [usize::from(chunk.first), all] {
                ratios[of].0 += block_offset(u64::from(chunk.blocks));
                ratios[of].1 += u64::from(stored);
            }
        }
        ratios
    }

    /// Bytes of a chunk with its index entry; as others of the disk compress if it was not tried.
    fn stored(&self, chunk: &Chunk, ratios: &[(u64, u64)]) -> u64 {
        let of_disk = ratios[usize::from(chunk.first)];
        let all = ratios.last().copied().unwrap_or_default();
        let raw = block_offset(u64::from(chunk.blocks));
        let (tried, gave) = if of_disk.0 > 0 { of_disk } else { all };
        let body = chunk.stored.map_or_else(|| share(raw, gave, tried), u64::from);
        body + (FRAME_HEADER_BYTES + ENTRY_BYTES) as u64
    }

    /// What everything has at each level, and with deltas, if it has so much at level 3 without.
    pub(super) fn trials(&self, stored_bytes: u64, index_bytes: u64) -> (Vec<LevelFigures>, u64) {
        let trials = &self.trials;
        let bodies = stored_bytes.saturating_sub(index_bytes);
        let scaled = |part: u64, whole: u64| share(bodies, part, whole) + index_bytes;
        let at_default = LEVELS.iter().position(|level| *level == LEVEL).map_or(0, |at| trials.sizes[at]);
        let levels = LEVELS.iter().zip(trials.sizes).zip(trials.times).map(|((level, size), time)| {
            let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1);
            LevelFigures {
                level: *level,
                stored_bytes: scaled(size, at_default),
                bytes_per_second: trials.raw.saturating_mul(1_000_000) / micros,
            }
        });
        (levels.collect(), scaled(trials.with_deltas, trials.plain))
    }
}

impl Trials {
    /// Compresses content that stands for so much at each level.
    fn levels(&mut self, raw: &[u8], weight: u64, codecs: &CodecPool) -> Result<(), OpsError> {
        self.raw += raw.len() as u64;
        for (at, level) in LEVELS.iter().enumerate() {
            let started = Instant::now();
            let size = compressed(raw, *level, codecs)?;
            self.times[at] += started.elapsed();
            self.sizes[at] += weight * size;
        }
        Ok(())
    }
}

/// The leading bytes of a hash of blocks' hashes; of one block, its own.
fn key_of(hashes: &[BlockHash]) -> u64 {
    let leading = |bytes: &[u8]| bytes.iter().take(8).fold(0, |key, byte| key << 8 | u64::from(*byte));
    match hashes {
        [one] => leading(one),
        several => leading(blake3::hash(several.as_flattened()).as_bytes()),
    }
}

/// So much of `bytes` as `part` is of `whole`; all of it if that is nothing.
fn share(bytes: u64, part: u64, whole: u64) -> u64 {
    let share = (u128::from(bytes) * u128::from(part)).checked_div(u128::from(whole));
    share.map_or(bytes, |share| u64::try_from(share).unwrap_or(u64::MAX))
}

/// Bytes that content has compressed, in pieces that a frame can hold.
fn compressed(raw: &[u8], level: i32, codecs: &CodecPool) -> Result<u64, OpsError> {
    let pieces = raw.chunks(usize::from(CHUNK_BLOCKS_MAX) * BLOCK_BYTES);
    pieces
        .map(|piece| Ok(codecs.compress(piece, level).map_err(OpsError::SourceFrame)?.body_bytes() as u64))
        .sum()
}

fn delta_bytes(
    raw: &[u8],
    base: Place,
    disks: &[&dyn DiskRead],
    codecs: &CodecPool,
) -> Result<Option<u64>, OpsError> {
    let mut content = vec![0; base.blocks * BLOCK_BYTES];
    super::read_window(disks[base.disk], base.start, &mut content)?;
    let nobody = ChunkId([0; 32]);
    let delta =
        codecs.compress_delta(raw, (nobody, &content), LEVEL, raw.len()).map_err(OpsError::SourceFrame)?;
    Ok(delta.map(|delta| delta.body_bytes() as u64))
}
