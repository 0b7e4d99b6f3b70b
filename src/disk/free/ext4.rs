//! ext2, ext3 and ext4 (Linux, Documentation/filesystems/ext4): the superblock, and whether it and the journal
//! were left clean. What the block bitmaps say is in [`super::ext4_groups`].

use super::bytes::{Ranges, View, be32, byte, crc16, crc32c_plain, le16, le32, slice};
use super::{Found, Limits, doubt, ext4_groups};

const SUPER_AT: u64 = 1024;
const SUPER_BYTES: usize = 1024;

/// dir_prealloc, imagic_inodes, has_journal, ext_attr, resize_inode, dir_index, fast_commit, stable_inodes,
/// orphan_file.
const COMPAT: u32 = 0x1 | 0x2 | HAS_JOURNAL | 0x8 | 0x10 | 0x20 | 0x400 | 0x800 | 0x1000;
const HAS_JOURNAL: u32 = 0x4;
/// filetype, extents, 64bit, flex_bg, ea_inode, csum_seed, largedir, inline_data, encrypt, casefold.
const INCOMPAT: u32 = 0x2 | 0x40 | WIDE | 0x200 | 0x400 | CSUM_SEED | 0x4000 | 0x8000 | 0x10000 | 0x20000;
const WIDE: u32 = 0x80;
const CSUM_SEED: u32 = 0x2000;
/// sparse_super, large_file, huge_file, gdt_csum, dir_nlink, extra_isize, quota, metadata_csum, read-only,
/// project, verity.
const RO_COMPAT: u32 =
    SPARSE_SUPER | 0x2 | 0x8 | GDT_CSUM | 0x20 | 0x40 | 0x100 | METADATA_CSUM | 0x1000 | 0x2000 | 0x8000;
const SPARSE_SUPER: u32 = 0x1;
const GDT_CSUM: u32 = 0x10;
const METADATA_CSUM: u32 = 0x400;

/// Features that stand in the way, and what is said of them: place in the superblock, bit.
const REFUSED: [(usize, u32, &str); 6] = [
    (0x60, 0x4, "its journal has to be replayed; mount and unmount it once, or run e2fsck"),
    (0x64, 0x10000, "deleted files have to be cleaned up; mount and unmount it once, or run e2fsck"),
    (0x60, 0x8, "it is a journal of another file system"),
    (0x60, 0x10, "meta_bg is not handled"),
    (0x60, 0x100, "multiple mount protection is not handled"),
    (0x64, 0x200, "bigalloc is not handled"),
];

/// Which checksums there are.
#[derive(Debug, Clone, Copy)]
pub(super) enum Sums {
    None,
    Crc16 { seed: u16 },
    Crc32c { seed: u32 },
}

/// What matters of the superblock.
#[derive(Debug, Clone, Copy)]
pub(super) struct Super {
    pub block_bytes: u64,
    pub blocks: u64,
    /// The first block of the first group.
    pub first: u64,
    pub per_group: u64,
    pub groups: u64,
    pub desc_bytes: usize,
    pub inodes_per_group: u64,
    pub inode_bytes: u64,
    /// Blocks of a group's inode table.
    pub table_blocks: u64,
    pub reserved_blocks: u64,
    pub is_sparse: bool,
    pub free: u64,
    pub sums: Sums,
    /// The journal's inode.
    journal: Option<u64>,
}

impl Super {
    /// Blocks of the group descriptors.
    pub fn desc_blocks(&self) -> u64 {
        (self.groups * self.desc_bytes as u64).div_ceil(self.block_bytes)
    }

    /// Reads a block.
    pub fn block(&self, view: View<'_>, number: u64) -> Found<Vec<u8>> {
        if number >= self.blocks {
            return doubt(format!("it names block {number}, where it has ended"));
        }
        view.read(number.saturating_mul(self.block_bytes), usize::try_from(self.block_bytes).unwrap_or(0))
    }
}

/// Collects what is free; gives the file system's end.
pub(super) fn find_free(view: View<'_>, limits: &Limits, free: &mut Ranges) -> Found<u64> {
    let bytes = view.read(SUPER_AT, SUPER_BYTES)?;
    check_state(&bytes)?;
    let fs = parse(&bytes, view)?;
    if fs.groups.saturating_mul(fs.desc_bytes as u64) > limits.table_bytes {
        return doubt("its table of block groups is too large");
    }
    let groups = ext4_groups::Groups::read(view, fs)?;
    check_journal(view, &fs, &groups)?;
    groups.find_free(view, free)?;
    Ok(fs.blocks.saturating_mul(fs.block_bytes))
}

/// Features and flags that this code knows, and nothing left to do.
fn check_state(bytes: &[u8]) -> Found<()> {
    if le32(bytes, 0x4c) != 1 {
        return doubt("its revision is not the known one");
    }
    for (at, bit, why) in REFUSED {
        if le32(bytes, at) & bit != 0 {
            return doubt(why);
        }
    }
    for (name, at, known) in
        [("compat", 0x5c, COMPAT), ("incompat", 0x60, INCOMPAT), ("ro_compat", 0x64, RO_COMPAT)]
    {
        let unknown = le32(bytes, at) & !known;
        if unknown != 0 {
            return doubt(format!("it has unknown {name} features ({unknown:#x})"));
        }
    }
    if le16(bytes, 0x3a) != 1 {
        return doubt("it was not unmounted cleanly or has errors; run e2fsck");
    }
    if le32(bytes, 0x194) != 0 {
        return doubt("it has recorded errors; run e2fsck");
    }
    if le32(bytes, 0xe8) != 0 {
        return doubt("deleted files have to be cleaned up; mount and unmount it once, or run e2fsck");
    }
    Ok(())
}

fn parse(bytes: &[u8], view: View<'_>) -> Found<Super> {
    let ro_compat = le32(bytes, 0x64);
    let is_wide = le32(bytes, 0x60) & WIDE != 0;
    let uuid = slice(bytes, 0x68, 16);
    let sums = if ro_compat & METADATA_CSUM != 0 {
        if byte(bytes, 0x175) != 1 {
            return doubt("its checksums are of an unknown type");
        }
        if crc32c_plain(!0, slice(bytes, 0, 0x3fc)) != le32(bytes, 0x3fc) {
            return doubt("its superblock's checksum does not fit");
        }
        let is_stored = le32(bytes, 0x60) & CSUM_SEED != 0;
        Sums::Crc32c { seed: if is_stored { le32(bytes, 0x270) } else { crc32c_plain(!0, uuid) } }
    } else if ro_compat & GDT_CSUM != 0 {
        Sums::Crc16 { seed: crc16(!0, uuid) }
    } else {
        Sums::None
    };
    let joined = |low, high| {
        u64::from(le32(bytes, low)) | if is_wide { u64::from(le32(bytes, high)) << 32 } else { 0 }
    };
    let (blocks, free) = (joined(0x4, 0x150), joined(0xc, 0x158));
    let block_log = le32(bytes, 0x18);
    if block_log > 6 {
        return doubt("its blocks have an impossible size");
    }
    let block_bytes = 1024 << block_log;
    let first = u64::from(le32(bytes, 0x14));
    let per_group = u64::from(le32(bytes, 0x20));
    let inodes_per_group = u64::from(le32(bytes, 0x28));
    let inode_bytes = u64::from(le16(bytes, 0x58));
    let desc_bytes = if is_wide { usize::from(le16(bytes, 0xfe)) } else { 32 };
    let is_sound = first == u64::from(block_log == 0)
        && per_group.is_multiple_of(8)
        && (8..=8 * block_bytes).contains(&per_group)
        && (1..=8 * block_bytes).contains(&inodes_per_group)
        && inode_bytes.is_power_of_two()
        && (128..=block_bytes).contains(&inode_bytes)
        && desc_bytes.is_power_of_two()
        && (if is_wide { 64..=1024 } else { 32..=32 }).contains(&desc_bytes)
        && blocks > first + 1;
    if !is_sound {
        return doubt("its superblock says impossible things");
    }
    if blocks.checked_mul(block_bytes).is_none_or(|len| len > view.len) {
        return doubt("it is larger than what it lies on");
    }
    let groups = (blocks - first).div_ceil(per_group);
    if groups.saturating_mul(inodes_per_group) != u64::from(le32(bytes, 0)) {
        return doubt("its count of inodes is not that of its groups");
    }
    Ok(Super {
        block_bytes,
        blocks,
        first,
        per_group,
        groups,
        desc_bytes,
        inodes_per_group,
        inode_bytes,
        table_blocks: (inodes_per_group * inode_bytes).div_ceil(block_bytes),
        reserved_blocks: u64::from(le16(bytes, 0xce)),
        is_sparse: ro_compat & SPARSE_SUPER != 0,
        free,
        sums,
        journal: journal_of(bytes)?,
    })
}

fn journal_of(bytes: &[u8]) -> Found<Option<u64>> {
    if le32(bytes, 0x5c) & HAS_JOURNAL == 0 {
        return Ok(None);
    }
    match (le32(bytes, 0xe0), le32(bytes, 0xe4)) {
        (0, _) | (_, 1..) => doubt("its journal is on another device"),
        (inode, 0) => Ok(Some(u64::from(inode))),
    }
}

/// A journal may hold something although the superblock does not say so: e2fsck replays it then.
fn check_journal(view: View<'_>, fs: &Super, groups: &ext4_groups::Groups) -> Found<()> {
    let Some(number) = fs.journal else { return Ok(()) };
    let (group, index) = ((number - 1) / fs.inodes_per_group, (number - 1) % fs.inodes_per_group);
    let at = index * fs.inode_bytes;
    let table = groups.inode_table(group)?;
    let block = fs.block(view, table.saturating_add(at / fs.block_bytes))?;
    let inode = slice(&block, usize::try_from(at % fs.block_bytes).unwrap_or(0), 128);
    const EXTENTS: u32 = 0x80000;
    let first = if le32(inode, 0x20) & EXTENTS == 0 {
        u64::from(le32(inode, 0x28))
    } else {
        first_extent(view, fs, slice(inode, 0x28, 60))?
    };
    let journal = fs.block(view, first)?;
    const MAGIC: u32 = 0xc03b_3998;
    if first == 0 || be32(&journal, 0) != MAGIC || ![3, 4].contains(&be32(&journal, 4)) {
        return doubt("its journal is not found");
    }
    // s_start and s_errno of Documentation/filesystems/ext4/journal.rst.
    if be32(&journal, 0x1c) != 0 || be32(&journal, 0x20) != 0 {
        return doubt("its journal has to be replayed; mount and unmount it once, or run e2fsck");
    }
    Ok(())
}

/// The block that a file's first extent begins with, if the file begins there.
fn first_extent(view: View<'_>, fs: &Super, root: &[u8]) -> Found<u64> {
    let mut node = root.to_vec();
    for depth in (0..=5).rev() {
        let own = le16(&node, 6);
        if le16(&node, 0) != 0xf30a || le16(&node, 2) == 0 || own > depth || le32(&node, 12) != 0 {
            break;
        }
        if own == 0 {
            return Ok(u64::from(le32(&node, 20)) | u64::from(le16(&node, 18)) << 32);
        }
        node = fs.block(view, u64::from(le32(&node, 16)) | u64::from(le16(&node, 20)) << 32)?;
    }
    doubt("its journal is not found")
}
