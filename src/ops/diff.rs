//! Diff: where two volumes hold different bytes. Chunks that stand at the same place in both block maps are not read.
//!
//! EC2 has this for two snapshots of one volume (ListChangedBlocks, blocks of 512 KiB, what was written). Here any two volumes
//! are compared, by blocks of 4 KiB, and what was written and is the same is no difference.

use super::context::Context;
use super::error::{Code, OpsError};
use super::export::{load, select, volume_bytes};
use super::export_image::{ImageDisk, image_disks};
use super::find::AnyId;
use super::restore::unless_deleted;
use crate::chunk::fingerprint::is_zero;
use crate::model::blockmap::{BlockMap, ChunkRef};
use crate::model::catalog::{Catalog, RootId};
use crate::model::ids::ChunkId;
use crate::model::image::is_same_device;
use crate::model::units::{BLOCK_BYTES, block_offset};
use crate::region::Region;
use std::ops::Range;

/// How a range differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Each block has data in both.
    Changed,
    /// Zeros in the first only, or behind its end.
    Added,
    /// Zeros in the second only, or behind its end.
    Removed,
}

impl Change {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Changed => "changed",
            Self::Added => "added",
            Self::Removed => "removed",
        }
    }
}

/// A disk of the two that are compared.
#[derive(Debug)]
pub struct Side {
    /// Its length in bytes.
    pub volume_bytes: u64,
    /// What is on it; nothing on a device that begins empty.
    pub content: Option<(RootId, BlockMap)>,
}

impl From<ImageDisk> for Side {
    fn from(disk: ImageDisk) -> Self {
        Self { volume_bytes: disk.volume_bytes, content: disk.content }
    }
}

/// Two disks of the same name. One of them may be missing.
#[derive(Debug)]
pub struct Pair {
    /// The device that it is in the first image, or else in the second; none where both are snapshots.
    pub device_name: Option<String>,
    /// In the first.
    pub first: Option<Side>,
    /// In the second.
    pub second: Option<Side>,
}

/// The disks of two images or snapshots that are compared with each other. Of two images all devices, by their names, and the
/// root devices whatever they are called, or the one that is named; else one disk of each.
pub fn pairs(
    region: &Region,
    catalog: &Catalog,
    ids: [AnyId; 2],
    device: Option<&str>,
    context: &Context<'_>,
) -> Result<Vec<Pair>, OpsError> {
    match (ids, device) {
        ([AnyId::Image(first), AnyId::Image(second)], device) => {
            let disks = image_disks(region, catalog, first, context)?;
            let mut pairs = paired(disks, image_disks(region, catalog, second, context)?);
            if let Some(device) = device {
                let is_it =
                    |pair: &Pair| pair.device_name.as_ref().is_some_and(|name| is_same_device(name, device));
                pairs.retain(is_it);
                if pairs.is_empty() {
                    let why = format!("neither {first} nor {second} has a device {device} that is a volume");
                    return Err(OpsError::rule(Code::InvalidParameterValue, why));
                }
            }
            Ok(pairs)
        }
        ([AnyId::Snapshot(_), AnyId::Snapshot(_)], Some(_)) => {
            let why = "snapshots are one disk each; a device is an image's";
            Err(OpsError::rule(Code::InvalidParameterCombination, why))
        }
        ([first, second], device) => {
            let (name, first) = one(region, catalog, first, device, context)?;
            let (other_name, second) = one(region, catalog, second, device, context)?;
            Ok(vec![Pair { device_name: name.or(other_name), first: Some(first), second: Some(second) }])
        }
    }
}

/// One disk, and the device that it is.
fn one(
    region: &Region,
    catalog: &Catalog,
    id: AnyId,
    device: Option<&str>,
    context: &Context<'_>,
) -> Result<(Option<String>, Side), OpsError> {
    let device = device.filter(|_| matches!(id, AnyId::Image(_)));
    let root = select(catalog, id, device, context)?;
    let volume_bytes = volume_bytes(catalog, id, device, &root);
    let name = match id {
        AnyId::Image(id) => {
            let root_device = || catalog.images.get(&id).map(|image| image.root_device_name.clone());
            device.map(str::to_owned).or_else(root_device)
        }
        _ => None,
    };
    let map = load(region, &root)?;
    Ok((name, Side { volume_bytes, content: Some((root.id, map)) }))
}

/// Roots are first in both lists, and are a pair.
fn paired(first: Vec<ImageDisk>, second: Vec<ImageDisk>) -> Vec<Pair> {
    let mut others: Vec<Option<ImageDisk>> = second.into_iter().map(Some).collect();
    let mut pairs = Vec::new();
    for (at, disk) in first.into_iter().enumerate() {
        let is_same = |other: &&mut Option<ImageDisk>| {
            other.as_ref().is_some_and(|other| is_same_device(&other.device_name, &disk.device_name))
        };
        let other = if at == 0 { others.first_mut() } else { others.iter_mut().skip(1).find(is_same) };
        let second = other.and_then(Option::take).map(Side::from);
        pairs.push(Pair { device_name: Some(disk.device_name.clone()), first: Some(disk.into()), second });
    }
    for disk in others.into_iter().flatten() {
        pairs.push(Pair {
            device_name: Some(disk.device_name.clone()),
            first: None,
            second: Some(disk.into()),
        });
    }
    pairs
}

/// Tells of each range of bytes at which the disks of a pair differ, ascending; ranges of one kind do not touch. They begin at
/// a block, and end at one or at the end of the longer disk. A disk that is missing, and what is behind the end of the shorter
/// one, counts as zeros.
///
/// Content that is lost or damaged is an error, if it has to be read.
pub fn differences(
    region: &Region,
    pair: &Pair,
    found: &mut dyn FnMut(Range<u64>, Change),
    context: &Context<'_>,
) -> Result<(), OpsError> {
    let sides = [&pair.first, &pair.second].map(Option::as_ref);
    let len = sides.iter().flatten().map(|side| side.volume_bytes).max().unwrap_or(0);
    let [first, second] = sides.map(|side| side.and_then(|side| side.content.as_ref()));
    let unlike = unlike([first, second].map(chunks_of));
    let blocks: u64 = unlike.iter().map(|span| span.end - span.start).sum();
    context.progress.begin("compare", block_offset(blocks));
    let mut joined = Joined { last: None, len, found };
    let window_blocks = (context.buffer_bytes() / BLOCK_BYTES) as u64;
    for span in unlike {
        let mut start = span.start;
        while start < span.end {
            context.check_cancelled()?;
            let window = start..span.end.min(start + window_blocks);
            let first = read(region, first, &window, context)?;
            let second = read(region, second, &window, context)?;
            let pairs = first.chunks(BLOCK_BYTES).zip(second.chunks(BLOCK_BYTES));
            for (block, (first, second)) in window.clone().zip(pairs) {
                if let Some(change) = change(first, second) {
                    joined.push(block, change);
                }
            }
            context.progress.advance(block_offset(window.end - window.start));
            start = window.end;
        }
    }
    joined.tell();
    Ok(())
}

fn change(first: &[u8], second: &[u8]) -> Option<Change> {
    match () {
        () if first == second => None,
        () if is_zero(first) => Some(Change::Added),
        () if is_zero(second) => Some(Change::Removed),
        () => Some(Change::Changed),
    }
}

/// Makes ranges of blocks, and tells of each once it ends.
struct Joined<'a> {
    last: Option<(Range<u64>, Change)>,
    len: u64,
    found: &'a mut dyn FnMut(Range<u64>, Change),
}

impl Joined<'_> {
    fn push(&mut self, block: u64, change: Change) {
        if let Some((range, kind)) = &mut self.last
            && range.end == block
            && *kind == change
        {
            range.end = block + 1;
            return;
        }
        self.tell();
        self.last = Some((block..block + 1, change));
    }

    fn tell(&mut self) {
        if let Some((range, change)) = self.last.take() {
            (self.found)(block_offset(range.start)..block_offset(range.end).min(self.len), change);
        }
    }
}

/// The blocks at which two volumes do not have the same chunk at the same place: ascending, none next to another.
fn unlike(sides: [&[ChunkRef]; 2]) -> Vec<Range<u64>> {
    let mut spans: Vec<Range<u64>> = Vec::new();
    let [mut first, mut second] = sides.map(|chunks| chunks.iter().peekable());
    let mut push = |chunk: &ChunkRef| match spans.last_mut() {
        Some(last) if chunk.start_block <= last.end => last.end = last.end.max(chunk.end_block()),
        _ => spans.push(chunk.start_block..chunk.end_block()),
    };
    // By where they begin, so that spans are ascending, too.
    loop {
        match (first.peek(), second.peek()) {
            (Some(one), Some(other)) if one == other => {
                first.next();
                second.next();
            }
            (Some(one), Some(other)) if other.start_block < one.start_block => {
                push(other);
                second.next();
            }
            (Some(one), _) => {
                push(one);
                first.next();
            }
            (None, Some(other)) => {
                push(other);
                second.next();
            }
            (None, None) => return spans,
        }
    }
}

fn chunks_of(content: Option<&(RootId, BlockMap)>) -> &[ChunkRef] {
    content.map_or(&[], |(_, map)| map.chunks())
}

/// What a volume has in some blocks.
fn read(
    region: &Region,
    content: Option<&(RootId, BlockMap)>,
    window: &Range<u64>,
    context: &Context<'_>,
) -> Result<Vec<u8>, OpsError> {
    let mut bytes = vec![0; padded_bytes(window)];
    let Some((root, map)) = content else { return Ok(bytes) };
    let unless_deleted = |error| unless_deleted(region, *root, error);
    let from = map.chunks().partition_point(|chunk| chunk.end_block() <= window.start);
    let chunks: Vec<&ChunkRef> =
        map.chunks()[from..].iter().take_while(|chunk| chunk.start_block < window.end).collect();
    let ids: Vec<ChunkId> = chunks.iter().map(|chunk| chunk.id).collect();
    let fetched = region.fetch(&ids).map_err(OpsError::from).map_err(unless_deleted)?;
    let frames = fetched.frames();
    let decoded = context.for_each_chunk(frames.len(), |at| {
        let (frame, chunk) = (frames[at], chunks[frames[at].wanted]);
        let expected = block_offset(u64::from(chunk.blocks));
        let mut raw = vec![0; fetched.raw_bytes(frame)];
        if raw.len() as u64 != expected {
            return Err(OpsError::ChunkLength { root: *root, expected, found: raw.len() as u64 });
        }
        fetched.decode(region, frame, &mut raw).map_err(OpsError::from).map_err(unless_deleted)?;
        Ok((chunk, raw))
    })?;
    for (chunk, raw) in decoded {
        let (start, end) = (chunk.start_block.max(window.start), chunk.end_block().min(window.end));
        let place = |origin| padded_bytes(&(origin..start))..padded_bytes(&(origin..end));
        bytes[place(window.start)].copy_from_slice(&raw[place(chunk.start_block)]);
    }
    // What a chunk has behind the volume's end is nobody's.
    let end = map.volume_bytes().saturating_sub(block_offset(window.start));
    bytes.iter_mut().skip(usize::try_from(end).unwrap_or(usize::MAX)).for_each(|byte| *byte = 0);
    Ok(bytes)
}

/// Bytes of some blocks, which are in memory.
fn padded_bytes(blocks: &Range<u64>) -> usize {
    usize::try_from(block_offset(blocks.end - blocks.start)).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(start_block: u64, blocks: u16, id: u8) -> ChunkRef {
        ChunkRef { start_block, blocks, id: ChunkId([id; 32]) }
    }

    #[test]
    fn only_what_stands_otherwise_is_looked_at() {
        let first = [chunk(0, 4, 1), chunk(4, 4, 2), chunk(10, 2, 3), chunk(20, 4, 4)];
        assert_eq!(unlike([&first, &first]), []);
        assert_eq!(unlike([&first, &[]]), [0..8, 10..12, 20..24]);
        let second = [chunk(0, 4, 1), chunk(4, 2, 5), chunk(6, 3, 6), chunk(10, 2, 3), chunk(21, 4, 4)];
        assert_eq!(unlike([&first, &second]), [4..9, 20..25]);
        assert_eq!(unlike([&second, &first]), [4..9, 20..25]);
    }

    #[test]
    fn ranges_of_one_kind_are_joined_and_end_with_the_disk() {
        let mut told = Vec::new();
        let mut found = |range, change| told.push((range, change));
        let mut joined = Joined { last: None, len: 5 * 4096 + 7, found: &mut found };
        for (block, change) in [
            (0, Change::Changed),
            (1, Change::Changed),
            (2, Change::Added),
            (4, Change::Added),
            (5, Change::Added),
        ] {
            joined.push(block, change);
        }
        joined.tell();
        let expected = [
            (0..8192, Change::Changed),
            (8192..3 * 4096, Change::Added),
            (4 * 4096..5 * 4096 + 7, Change::Added),
        ];
        assert_eq!(told, expected);
    }
}
