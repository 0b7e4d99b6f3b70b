//! XFS, version 5 (Linux, fs/xfs/libxfs/xfs_format.h): the superblock, and of each allocation group the B+tree of
//! free space by block number. Whether the log is clean is told by [`super::xfs_log`].
//!
//! Blocks on the free lists of the groups (AGFL) are kept: they are spare, but not in the tree.

use super::bytes::{Ranges, View, be16, be32, be64, byte, crc32c_without, le32, slice};
use super::{Found, Limits, doubt, xfs_log};

/// finobt, rmapbt, reflink, inobtcount.
const RO_COMPAT: u32 = 0x1 | 0x2 | 0x4 | 0x8;
/// ftype, sparse inodes, meta_uuid, bigtime, nrext64, exchange-range, parent pointers.
const INCOMPAT: u32 = 0x1 | 0x2 | META_UUID | 0x8 | 0x20 | 0x40 | 0x80;
const META_UUID: u32 = 0x4;
const NEEDS_REPAIR: u32 = 0x10;
/// Flags of the superblock's version: attributes, alignment, stripes, quota, log version 2, sectors, directories,
/// features2, and those that every file system of version 5 has.
const VERSION: u16 = 0x10 | 0x20 | 0x40 | 0x80 | 0x100 | 0x400 | 0x800 | 0x1000 | 0x2000 | 0x8000 | 5;
const HEIGHT_MAX: u32 = 9;
const NODE_HEADER: usize = 56;

/// What matters of the superblock.
pub(super) struct Super {
    pub block_bytes: u64,
    pub sector_bytes: u64,
    pub log_block: u64,
    pub log_blocks: u64,
    pub uuid: Vec<u8>,
    blocks: u64,
    group_blocks: u64,
    groups: u64,
    group_log: u32,
    meta_uuid: Vec<u8>,
    free: u64,
}

impl Super {
    /// A block's place in bytes.
    fn at(&self, group: u64, block: u64) -> u64 {
        (group * self.group_blocks + block).saturating_mul(self.block_bytes)
    }

    /// Group and block there that the log begins with.
    fn log_place(&self) -> (u64, u64) {
        (self.log_block >> self.group_log, self.log_block & ((1 << self.group_log) - 1))
    }

    /// Where the log lies, in bytes.
    pub fn log_at(&self) -> u64 {
        let (group, block) = self.log_place();
        self.at(group, block)
    }

    fn group_len(&self, group: u64) -> u64 {
        self.group_blocks.min(self.blocks - group * self.group_blocks)
    }
}

/// Collects what is free; gives the file system's end.
pub(super) fn find_free(view: View<'_>, _limits: &Limits, free: &mut Ranges) -> Found<u64> {
    let fs = read_super(view)?;
    xfs_log::check(view, &fs)?;
    let mut counted = 0;
    for group in 0..fs.groups {
        counted += read_group(view, &fs, group, free)?;
    }
    if counted != fs.free {
        return doubt(format!("it has {counted} free blocks but counts {}; run xfs_repair", fs.free));
    }
    Ok(fs.blocks.saturating_mul(fs.block_bytes))
}

fn read_super(view: View<'_>) -> Found<Super> {
    let bytes = view.read(0, 512)?;
    let version = be16(&bytes, 100);
    if version & 0xf != 5 {
        return doubt("it is of another version than 5");
    }
    let sector_bytes = u64::from(be16(&bytes, 102));
    if !(512..=32768).contains(&sector_bytes) || !sector_bytes.is_power_of_two() {
        return doubt("its sectors have an impossible size");
    }
    let bytes = view.read(0, usize::try_from(sector_bytes).unwrap_or(512))?;
    if crc32c_without(&bytes, 224, 4) != le32(&bytes, 224) {
        return doubt("its superblock's checksum does not fit");
    }
    let (ro_compat, incompat) = (be32(&bytes, 212), be32(&bytes, 216));
    if incompat & NEEDS_REPAIR != 0 {
        return doubt("it is marked as damaged; run xfs_repair");
    }
    for (name, unknown) in [
        ("version", u32::from(version & !VERSION)),
        ("compat", be32(&bytes, 208)),
        ("ro_compat", ro_compat & !RO_COMPAT),
        ("incompat", incompat & !INCOMPAT),
        ("log_incompat", be32(&bytes, 220)),
    ] {
        if unknown != 0 {
            return doubt(format!("it has unknown {name} features ({unknown:#x})"));
        }
    }
    if byte(&bytes, 126) != 0 {
        return doubt("it was never finished");
    }
    if be64(&bytes, 16) != 0 || be64(&bytes, 24) != 0 {
        return doubt("it has a realtime section, which is not handled");
    }
    if be64(&bytes, 48) == 0 {
        return doubt("its log is on another device");
    }
    let uuid = slice(&bytes, 32, 16).to_vec();
    let meta_uuid = if incompat & META_UUID != 0 { slice(&bytes, 248, 16).to_vec() } else { uuid.clone() };
    let fs = Super {
        block_bytes: u64::from(be32(&bytes, 4)),
        sector_bytes,
        log_block: be64(&bytes, 48),
        log_blocks: u64::from(be32(&bytes, 96)),
        uuid,
        blocks: be64(&bytes, 8),
        group_blocks: u64::from(be32(&bytes, 84)),
        groups: u64::from(be32(&bytes, 88)),
        group_log: u32::from(byte(&bytes, 124)),
        meta_uuid,
        free: be64(&bytes, 144),
    };
    check_geometry(&fs, view)?;
    Ok(fs)
}

fn check_geometry(fs: &Super, view: View<'_>) -> Found<()> {
    let is_sound = fs.block_bytes.is_power_of_two()
        && (1024..=65536).contains(&fs.block_bytes)
        && fs.sector_bytes <= fs.block_bytes
        && fs.group_log <= 32
        && fs.groups > 0
        && (64..=1 << fs.group_log).contains(&fs.group_blocks)
        && fs.blocks.div_ceil(fs.group_blocks) == fs.groups
        && fs.log_blocks > 0;
    if !is_sound {
        return doubt("its superblock says impossible things");
    }
    if fs.blocks.checked_mul(fs.block_bytes).is_none_or(|len| len > view.len) {
        return doubt("it is larger than what it lies on");
    }
    let (group, block) = fs.log_place();
    if group >= fs.groups || block.saturating_add(fs.log_blocks) > fs.group_len(group) {
        return doubt("its log lies where it cannot be");
    }
    Ok(())
}

/// Reads a header of a group: one sector with a magic number, the group's number, a UUID and a checksum.
fn header(
    view: View<'_>,
    fs: &Super,
    group: u64,
    sector: u64,
    place: (&[u8; 4], usize, usize),
) -> Found<Vec<u8>> {
    let (magic, uuid_at, sum_at) = place;
    let at = fs.at(group, 0).saturating_add(sector * fs.sector_bytes);
    let bytes = view.read(at, usize::try_from(fs.sector_bytes).unwrap_or(512))?;
    let number_at = if magic == b"XAFL" { 4 } else { 8 };
    let is_sound = bytes.starts_with(magic)
        && crc32c_without(&bytes, sum_at, 4) == le32(&bytes, sum_at)
        && slice(&bytes, uuid_at, 16) == fs.meta_uuid
        && u64::from(be32(&bytes, number_at)) == group;
    if !is_sound {
        return doubt(format!("a header of its allocation group {group} is damaged; run xfs_repair"));
    }
    Ok(bytes)
}

/// Collects what is free in a group. Gives how many blocks of it the superblock counts as free, which are also
/// those of the free list and of the trees.
fn read_group(view: View<'_>, fs: &Super, group: u64, free: &mut Ranges) -> Found<u64> {
    let agf = header(view, fs, group, 1, (b"XAGF", 64, 216))?;
    let agfl = header(view, fs, group, 3, (b"XAFL", 8, 32))?;
    let len = fs.group_len(group);
    let height = be32(&agf, 28);
    if be32(&agf, 4) != 1 || u64::from(be32(&agf, 12)) != len || !(1..=HEIGHT_MAX).contains(&height) {
        return doubt(format!("the header of its allocation group {group} says impossible things"));
    }
    let tree_blocks = u64::from(be32(&agf, 60));
    let mut kept = spare_blocks(fs, &agf, &agfl, len)?;
    kept.extend([16, 20].map(|root| u64::from(be32(&agf, root))));
    kept.sort_unstable();
    let (log_group, log_block) = fs.log_place();
    let log = if log_group == group { (log_block, log_block + fs.log_blocks) } else { (0, 0) };
    // The headers of a group are its first four sectors.
    let end = (4 * fs.sector_bytes).div_ceil(fs.block_bytes);
    let nodes_left = tree_blocks.saturating_add(1);
    let mut walk = Walk { view, fs, group, len, nodes_left, kept, log, end, blocks: 0, longest: 0 };
    walk.node(u64::from(be32(&agf, 16)), height - 1, None, free)?;
    let (found, longest) = (walk.blocks, walk.longest);
    if found != u64::from(be32(&agf, 52)) || longest != u64::from(be32(&agf, 56)) {
        let why = format!(
            "its allocation group {group} has {found} free blocks but counts {}; run xfs_repair",
            be32(&agf, 52)
        );
        return doubt(why);
    }
    Ok(found + u64::from(be32(&agf, 48)) + tree_blocks)
}

/// The blocks on a group's free list, which is a ring.
fn spare_blocks(fs: &Super, agf: &[u8], agfl: &[u8], len: u64) -> Found<Vec<u64>> {
    const LIST_AT: usize = 36;
    let size = (usize::try_from(fs.sector_bytes).unwrap_or(512) - LIST_AT) / 4;
    let [first, last, count] = [40, 44, 48].map(|at| be32(agf, at) as usize);
    let fits = first < size && last < size && count <= size;
    let ring = if count == 0 { 0 } else { (last + size - first.min(size)) % size + 1 };
    if !fits || ring != count {
        return doubt("a free list of an allocation group says impossible things; run xfs_repair");
    }
    let block = |number| u64::from(be32(agfl, LIST_AT + (first + number) % size * 4));
    let blocks: Vec<u64> = (0..count).map(block).collect();
    if blocks.iter().any(|&block| block >= len) {
        return doubt("a free list of an allocation group leads out of it; run xfs_repair");
    }
    Ok(blocks)
}

/// A walk through a group's tree of free space.
struct Walk<'a> {
    view: View<'a>,
    fs: &'a Super,
    group: u64,
    /// Blocks of the group.
    len: u64,
    /// How many nodes there can still be.
    nodes_left: u64,
    /// Blocks that cannot be free, sorted.
    kept: Vec<u64>,
    /// Where the log lies.
    log: (u64, u64),
    /// Where the last free range has ended.
    end: u64,
    blocks: u64,
    longest: u64,
}

impl Walk<'_> {
    fn damaged<T>(&self) -> Found<T> {
        doubt(format!(
            "the free space tree of its allocation group {} is damaged; run xfs_repair",
            self.group
        ))
    }

    /// Walks through a node, which begins with a key, and all below it. Every level down is one less.
    fn node(&mut self, block: u64, level: u32, key: Option<(u32, u32)>, free: &mut Ranges) -> Found<()> {
        if self.nodes_left == 0 || block == 0 || block >= self.len {
            return self.damaged();
        }
        self.nodes_left -= 1;
        let at = self.fs.at(self.group, block);
        let size = usize::try_from(self.fs.block_bytes).unwrap_or(0);
        let bytes = self.view.read(at, size)?;
        let count = usize::from(be16(&bytes, 6));
        let record_bytes = if level == 0 { 8 } else { 12 };
        let most = (size - NODE_HEADER) / record_bytes;
        let is_sound = bytes.starts_with(b"AB3B")
            && crc32c_without(&bytes, 52, 4) == le32(&bytes, 52)
            && u32::from(be16(&bytes, 4)) == level
            && be64(&bytes, 16) == at / 512
            && slice(&bytes, 32, 16) == self.fs.meta_uuid
            && u64::from(be32(&bytes, 48)) == self.group
            && count <= most
            // Only a tree without a record has an empty node.
            && (count > 0 || level == 0 && key.is_none());
        let record = |number: usize| {
            (be32(&bytes, NODE_HEADER + number * 8), be32(&bytes, NODE_HEADER + 4 + number * 8))
        };
        if !is_sound || key.is_some_and(|key| key != record(0)) {
            return self.damaged();
        }
        for number in 0..count {
            if level == 0 {
                self.range(record(number), free)?;
            } else {
                let pointer = be32(&bytes, NODE_HEADER + most * 8 + number * 4);
                self.node(u64::from(pointer), level - 1, Some(record(number)), free)?;
            }
        }
        Ok(())
    }

    /// Takes a free range, which lies behind the one before and is not next to it.
    fn range(&mut self, (start, count): (u32, u32), free: &mut Ranges) -> Found<()> {
        let (start, end) = (u64::from(start), u64::from(start) + u64::from(count));
        let touches = self.blocks > 0 && start == self.end;
        if count == 0 || start < self.end || touches || end > self.len {
            return self.damaged();
        }
        let next_kept = self.kept.get(self.kept.partition_point(|&block| block < start));
        if next_kept.is_some_and(|&block| block < end) || start < self.log.1 && self.log.0 < end {
            return doubt(format!(
                "its allocation group {} has metadata marked as free; run xfs_repair",
                self.group
            ));
        }
        self.end = end;
        self.blocks += end - start;
        self.longest = self.longest.max(end - start);
        free.push(self.fs.at(self.group, start), self.fs.at(self.group, end));
        Ok(())
    }
}
