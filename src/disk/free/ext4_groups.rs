//! The block groups of ext4: descriptors, where the metadata lies, bitmaps.

use super::bytes::{Ranges, View, crc16, crc32c_plain, le16, le32, slice};
use super::ext4::{Sums, Super};
use super::{Found, doubt};

/// Flags of a group: no bitmap was written yet for inodes, for blocks; the inode table is zeroed.
const BLOCK_UNINIT: u16 = 2;
const FLAGS: u16 = 1 | BLOCK_UNINIT | 4;

/// All groups of a file system.
pub(super) struct Groups {
    fs: Super,
    descs: Vec<u8>,
    /// Blocks of superblocks, descriptors, bitmaps and inode tables: sorted, none overlaps another.
    metadata: Vec<(u64, u64)>,
}

struct Group {
    number: u64,
    bitmap: u64,
    inode_bitmap: u64,
    inode_table: u64,
    free: u64,
    flags: u16,
    bitmap_sum: u32,
}

impl Groups {
    /// Reads the descriptors and checks them, each for itself and that no metadata lies over other metadata.
    pub fn read(view: View<'_>, fs: Super) -> Found<Self> {
        let len = usize::try_from(fs.groups * fs.desc_bytes as u64).unwrap_or(usize::MAX);
        let descs = view.read((fs.first + 1) * fs.block_bytes, len)?;
        let mut groups = Self { fs, descs, metadata: Vec::new() };
        let mut metadata = Vec::new();
        for number in 0..fs.groups {
            let group = groups.group(number)?;
            let start = groups.start(number);
            if has_super(&fs, number) {
                metadata.push((start, start + 1 + fs.desc_blocks() + fs.reserved_blocks));
            }
            metadata.push((group.bitmap, group.bitmap.saturating_add(1)));
            metadata.push((group.inode_bitmap, group.inode_bitmap.saturating_add(1)));
            metadata.push((group.inode_table, group.inode_table.saturating_add(fs.table_blocks)));
        }
        metadata.sort_unstable();
        let overlap = metadata.iter().zip(metadata.iter().skip(1)).any(|(one, two)| one.1 > two.0);
        let is_outside = metadata.iter().any(|&(start, end)| start < fs.first || end > fs.blocks);
        if overlap || is_outside {
            return doubt("its metadata lies where it cannot be");
        }
        metadata.dedup_by(|later, kept| {
            let joins = later.0 == kept.1;
            if joins {
                kept.1 = later.1;
            }
            joins
        });
        groups.metadata = metadata;
        Ok(groups)
    }

    fn start(&self, group: u64) -> u64 {
        self.fs.first + group * self.fs.per_group
    }

    /// The first block of a group's inodes.
    pub fn inode_table(&self, group: u64) -> Found<u64> {
        Ok(self.group(group)?.inode_table)
    }

    fn group(&self, number: u64) -> Found<Group> {
        let size = self.fs.desc_bytes;
        let at = usize::try_from(number).ok().and_then(|number| number.checked_mul(size));
        let Some(bytes) = at.and_then(|at| self.descs.get(at..at.checked_add(size)?)) else {
            return doubt(format!("it names block group {number}, which it does not have"));
        };
        if !self.sum_fits(bytes, number) {
            return doubt(format!("the checksum of its block group {number} does not fit"));
        }
        let flags = le16(bytes, 18);
        if flags & !FLAGS != 0 || matches!(self.fs.sums, Sums::None) && flags & BLOCK_UNINIT != 0 {
            return doubt(format!("its block group {number} has unknown flags"));
        }
        let is_wide = size >= 64;
        let block = |low, high| {
            u64::from(le32(bytes, low)) | if is_wide { u64::from(le32(bytes, high)) << 32 } else { 0 }
        };
        let half = |low, high| {
            u32::from(le16(bytes, low)) | if is_wide { u32::from(le16(bytes, high)) << 16 } else { 0 }
        };
        Ok(Group {
            number,
            bitmap: block(0, 0x20),
            inode_bitmap: block(4, 0x24),
            inode_table: block(8, 0x28),
            free: u64::from(half(12, 0x2c)),
            flags,
            bitmap_sum: half(24, 0x38),
        })
    }

    /// As ext4_group_desc_csum of fs/ext4/super.c.
    fn sum_fits(&self, desc: &[u8], number: u64) -> bool {
        let number = u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes();
        let (before, behind) = (slice(desc, 0, 30), desc.get(32..).unwrap_or_default());
        let found = match self.fs.sums {
            Sums::None => return true,
            Sums::Crc16 { seed } => crc16(crc16(crc16(seed, &number), before), behind),
            Sums::Crc32c { seed } => {
                let pieces = [&number, before, &[0; 2], behind];
                let sum = pieces.iter().fold(seed, |state, piece| crc32c_plain(state, piece));
                (sum & 0xffff) as u16
            }
        };
        found == le16(desc, 30)
    }

    /// Collects what the bitmaps say is free. The counts of each group and of the whole must agree.
    pub fn find_free(&self, view: View<'_>, free: &mut Ranges) -> Found<()> {
        let fs = &self.fs;
        let mut total = 0;
        for number in 0..fs.groups {
            let group = self.group(number)?;
            let start = self.start(number);
            let len = fs.per_group.min(fs.blocks - start);
            let bitmap = self.bitmap(view, &group, start, len)?;
            let mut found = 0;
            zero_runs(&bitmap, len, |from, to| {
                found += to - from;
                free.push((start + from) * fs.block_bytes, (start + to) * fs.block_bytes);
            });
            if found != group.free {
                let why = format!(
                    "its block group {number} has {found} free blocks but counts {}; run e2fsck",
                    group.free
                );
                return doubt(why);
            }
            total += found;
        }
        if total != fs.free {
            return doubt(format!("it has {total} free blocks but counts {}; run e2fsck", fs.free));
        }
        Ok(())
    }

    /// The bitmap of a group. All metadata in the group is marked in it.
    fn bitmap(&self, view: View<'_>, group: &Group, start: u64, len: u64) -> Found<Vec<u8>> {
        let is_written = group.flags & BLOCK_UNINIT == 0;
        let mut bitmap = if is_written {
            let bitmap = self.fs.block(view, group.bitmap)?;
            if !self.bitmap_sum_fits(&bitmap, group) {
                return doubt(format!(
                    "the bitmap's checksum of its block group {} does not fit",
                    group.number
                ));
            }
            bitmap
        } else {
            vec![0; usize::try_from(self.fs.block_bytes).unwrap_or(0)]
        };
        let from = self.metadata.partition_point(|range| range.1 <= start);
        for &(first, last) in self.metadata.get(from..).unwrap_or_default() {
            if first >= start + len {
                break;
            }
            for bit in first.max(start) - start..last.min(start + len) - start {
                if mark(&mut bitmap, bit) && is_written {
                    return doubt(format!("its block group {} has metadata marked as free", group.number));
                }
            }
        }
        Ok(bitmap)
    }

    fn bitmap_sum_fits(&self, bitmap: &[u8], group: &Group) -> bool {
        let Sums::Crc32c { seed } = self.fs.sums else { return true };
        let covered = slice(bitmap, 0, usize::try_from(self.fs.per_group / 8).unwrap_or(0));
        let sum = crc32c_plain(seed, covered);
        let mask = if self.fs.desc_bytes >= 64 { u32::MAX } else { 0xffff };
        sum & mask == group.bitmap_sum
    }
}

/// Whether a group has a copy of the superblock (ext4_bg_has_super of fs/ext4/balloc.c).
fn has_super(fs: &Super, group: u64) -> bool {
    let is_power = |base: u64| {
        let mut power = base;
        while power < group {
            power = power.saturating_mul(base);
        }
        power == group
    };
    group <= 1 || !fs.is_sparse || is_power(3) || is_power(5) || is_power(7)
}

/// Sets a bit; whether it was clear.
fn mark(bitmap: &mut [u8], bit: u64) -> bool {
    let Some(byte) = usize::try_from(bit / 8).ok().and_then(|at| bitmap.get_mut(at)) else { return true };
    let mask = 1 << (bit % 8);
    let was_clear = *byte & mask == 0;
    *byte |= mask;
    was_clear
}

/// Calls with each run of clear bits among the first `len`.
fn zero_runs(bitmap: &[u8], len: u64, mut run: impl FnMut(u64, u64)) {
    let mut start = None;
    for (&byte, at) in bitmap.iter().zip((0..len).step_by(8)) {
        match (byte, start) {
            (0, Some(_)) | (0xff, None) => continue,
            _ => {}
        }
        for bit in at..(at + 8).min(len) {
            match (byte >> (bit - at) & 1, start) {
                (0, None) => start = Some(bit),
                (1, Some(from)) => {
                    run(from, bit);
                    start = None;
                }
                _ => {}
            }
        }
    }
    if let Some(from) = start {
        run(from, len.min(bitmap.len() as u64 * 8));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_clear_bits_are_found() {
        let runs = |bitmap: &[u8], len| {
            let mut found = Vec::new();
            zero_runs(bitmap, len, |from, to| found.push((from, to)));
            found
        };
        assert_eq!(runs(&[0xff, 0, 0, 0xff], 32), [(8, 24)]);
        assert_eq!(runs(&[0b1000_0001, 0], 12), [(1, 7), (8, 12)]);
        assert_eq!(runs(&[0, 0xff, 0], 24), [(0, 8), (16, 24)]);
        assert_eq!(runs(&[0], 24), [(0, 8)]);
        assert_eq!(runs(&[0, 0xff], 5), [(0, 5)]);
        assert_eq!(runs(&[0xff], 8), []);
    }

    #[test]
    fn bits_are_marked_once() {
        let mut bitmap = [0, 0];
        assert!(mark(&mut bitmap, 9) && !mark(&mut bitmap, 9));
        assert_eq!(bitmap, [0, 2]);
    }
}
