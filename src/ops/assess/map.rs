//! What is where on each disk.

use super::layout::Layout;
use super::{DISKS_MAX, Window};
use crate::disk::DiskRead;
use crate::model::units::blocks_for_bytes;

/// Parts that a disk is shown in.
const CELLS: u64 = 256;
/// Chunks of a part that are looked at.
const LOOKED_AT: usize = 256;

/// A part of a disk, as shares of its blocks from 0 to 1 that add up to 1.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    /// Zero.
    pub zero: f64,
    /// On no other disk, and once only.
    pub unique: f64,
    /// On no other disk, several times.
    pub repeated: f64,
    /// On other disks, by the number of the first that has it, this one left out.
    pub shared: Vec<(usize, f64)>,
}

#[derive(Clone, Default)]
struct Part {
    zero_blocks: u64,
    data_blocks: u64,
    /// Keys of chunks that begin here, with their lengths in blocks.
    chunks: Vec<(u64, u32)>,
}

impl Part {
    /// Keeps those that a sample keeps longest: they are from everywhere in the part.
    fn thin(&mut self) {
        self.chunks.sort_unstable_by_key(|(key, _)| key.reverse_bits());
        self.chunks.truncate(LOOKED_AT);
    }
}

/// Gathers what is where.
pub(super) struct Mapper {
    disks: Vec<(u64, Vec<Part>)>,
}

impl Mapper {
    pub(super) fn new(disks: &[&dyn DiskRead]) -> Self {
        let parts = |disk: &&dyn DiskRead| {
            let blocks = blocks_for_bytes(disk.len_bytes()).max(1);
            let each = blocks.div_ceil(CELLS);
            (each, vec![Part::default(); usize::try_from(blocks.div_ceil(each)).unwrap_or(1)])
        };
        Self { disks: disks.iter().map(parts).collect() }
    }

    pub(super) fn take(&mut self, window: &Window<'_>, chunks: Vec<(u64, u32, u64)>) {
        let (each, parts) = &mut self.disks[window.disk];
        let part_of = |block: u64| usize::try_from(block / *each).unwrap_or(usize::MAX);
        for (block, facts) in (window.first..).zip(window.facts) {
            let Some(part) = parts.get_mut(part_of(block)) else { continue };
            *(if facts.is_zero { &mut part.zero_blocks } else { &mut part.data_blocks }) += 1;
        }
        for (start, blocks, key) in chunks {
            // In each part that it reaches into.
            let end = start + u64::from(blocks);
            let mut at = start;
            while at < end {
                let next = end.min((at / *each + 1) * *each);
                if let Some(part) = parts.get_mut(part_of(at)) {
                    part.chunks.push((key, u32::try_from(next - at).unwrap_or(blocks)));
                    if part.chunks.len() == 2 * LOOKED_AT {
                        part.thin();
                    }
                }
                at = next;
            }
        }
    }

    /// Blocks that are all zero.
    pub(super) fn skip(&mut self, disk: usize, first: u64, blocks: u64) {
        let (each, parts) = &mut self.disks[disk];
        let (mut at, end) = (first, first + blocks);
        while at < end {
            let next = end.min((at / *each + 1) * *each);
            if let Some(part) = parts.get_mut(usize::try_from(at / *each).unwrap_or(usize::MAX)) {
                part.zero_blocks += next - at;
            }
            at = next;
        }
    }

    /// The map of each disk and its blocks that are not zero, by what a layout knows of the chunks.
    pub(super) fn finish(self, layout: &Layout) -> Vec<(Vec<Cell>, u64)> {
        let of_disk = |(number, (_, mut parts)): (usize, (u64, Vec<Part>))| {
            // Else those that came last would count for more than those before them.
            parts.iter_mut().for_each(Part::thin);
            let data = parts.iter().map(|part| part.data_blocks).sum();
            (parts.iter().map(|part| cell(number, part, layout)).collect(), data)
        };
        self.disks.into_iter().enumerate().map(of_disk).collect()
    }
}

fn cell(disk: usize, part: &Part, layout: &Layout) -> Cell {
    let mut shared = vec![0_u64; DISKS_MAX];
    let (mut unique, mut repeated) = (0, 0);
    for (key, blocks) in &part.chunks {
        let Some(chunk) = layout.chunk(*key) else { continue };
        let others = chunk.disks & !(1 << disk);
        let blocks = u64::from(*blocks);
        match others.trailing_zeros() as usize {
            other if other < DISKS_MAX => shared[other] += blocks,
            _ if chunk.count > 1 => repeated += blocks,
            _ => unique += blocks,
        }
    }
    let all = (part.zero_blocks + part.data_blocks).max(1) as f64;
    let data = part.data_blocks as f64 / all;
    let looked_at = unique + repeated + shared.iter().sum::<u64>();
    // Where none was looked at, all is taken as unique.
    let share = |blocks: u64| if looked_at == 0 { 0.0 } else { data * blocks as f64 / looked_at as f64 };
    Cell {
        zero: 1.0 - data,
        unique: if looked_at == 0 { data } else { share(unique) },
        repeated: share(repeated),
        shared: shared
            .iter()
            .enumerate()
            .filter(|(_, n)| **n > 0)
            .map(|(n, blocks)| (n, share(*blocks)))
            .collect(),
    }
}
