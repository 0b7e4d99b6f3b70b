//! What is on a part of a disk, by its signatures. Several of them are a reason for doubt: one is left over from
//! what was there before, and which one that is nothing tells.

use super::bytes::{View, le32};
use super::{Found, doubt};
use crate::io::disk::DiskError;

/// A file system that is looked into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum System {
    Ext,
    Xfs,
    Btrfs,
}

/// A system that was suspended to the disk: it goes on with all file systems as it had them in memory.
pub(super) const SUSPENDED: &str = "a suspended system";
/// Hashes of all blocks of another part, also of free ones.
pub(super) const VERITY: &str = "dm-verity";

/// Name, place, and bytes there (util-linux, libblkid/src/superblocks and libblkid/src/partitions).
const FOREIGN: [(&str, u64, &[u8]); 64] = [
    ("LUKS", 0, b"LUKS\xba\xbe"),
    ("LUKS", 16 << 10, b"SKUL\xba\xbe"),
    ("LVM2", 512 + 24, b"LVM2 001"),
    ("LVM2", 24, b"LVM2 001"),
    ("LVM2", 1024 + 24, b"LVM2 001"),
    ("LVM2", 1536 + 24, b"LVM2 001"),
    ("RAID", 0, b"\xfc\x4e\x2b\xa9"),
    ("RAID", 4096, b"\xfc\x4e\x2b\xa9"),
    ("bcache", 4096 + 24, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81"),
    ("bcachefs", 4096 + 24, b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef"),
    ("swap", 4096 - 10, b"SWAPSPACE2"),
    ("swap", 8192 - 10, b"SWAPSPACE2"),
    ("swap", 16384 - 10, b"SWAPSPACE2"),
    ("swap", 65536 - 10, b"SWAPSPACE2"),
    ("swap", 4096 - 10, b"SWAP-SPACE"),
    (SUSPENDED, 4096 - 10, b"S1SUSPEND\0"),
    (SUSPENDED, 4096 - 10, b"S2SUSPEND\0"),
    (SUSPENDED, 4096 - 10, b"ULSUSPEND\0"),
    (SUSPENDED, 4096 - 10, b"LINHIB0001"),
    (SUSPENDED, 16384 - 10, b"S1SUSPEND\0"),
    (SUSPENDED, 65536 - 10, b"S1SUSPEND\0"),
    (VERITY, 0, b"verity\0\0"),
    ("a Sun disklabel", 508, b"\xda\xbe"),
    ("an Amiga partition table", 0, b"RDSK"),
    ("an AIX volume", 0, b"\xc9\xc2\xd4\xc1"),
    ("FAT", 54, b"FAT12   "),
    ("FAT", 54, b"FAT16   "),
    ("FAT", 82, b"FAT32   "),
    ("exFAT", 3, b"EXFAT   "),
    ("NTFS", 3, b"NTFS    "),
    ("ReFS", 3, b"ReFS\0\0\0\0"),
    ("BitLocker", 3, b"-FVE-FS-"),
    ("F2FS", 1024, b"\x10\x20\xf5\xf2"),
    ("EROFS", 1024, b"\xe2\xe1\xf5\xe0"),
    ("squashfs", 0, b"hsqs"),
    ("HFS+", 1024, b"H+"),
    ("HFS+", 1024, b"HX"),
    ("HFS", 1024, b"BD"),
    ("UDF", 32769, b"BEA01"),
    ("UDF", 32769 + 2048, b"NSR0"),
    ("UDF", 32769 + 4096, b"NSR0"),
    // By its magic number in both orders of bytes, at each place of its first superblock.
    ("UFS", (8 << 10) + 1372, b"\x54\x19\x01\x00"),
    ("UFS", (8 << 10) + 1372, b"\x00\x01\x19\x54"),
    ("UFS", (64 << 10) + 1372, b"\x19\x01\x54\x19"),
    ("UFS", (64 << 10) + 1372, b"\x19\x54\x01\x19"),
    ("UFS", (256 << 10) + 1372, b"\x19\x01\x54\x19"),
    ("UFS", 1372, b"\x19\x01\x54\x19"),
    ("Stratis", 512 + 4, b"!Stra0tis\x86\xff\x02^\x41rh"),
    ("APFS", 32, b"NXSB"),
    ("NILFS2", 1024 + 6, b"\x34\x34"),
    ("an Apple partition map", 512, b"PM\0\0"),
    ("a BSD disklabel", 512, b"\x57\x45\x56\x82"),
    ("an SGI volume header", 0, b"\x0b\xe5\xa9\x41"),
    ("ISO 9660", 32769, b"CD001"),
    ("JFS", 32768, b"JFS1"),
    ("ReiserFS", 65536 + 52, b"ReIsEr"),
    ("ReiserFS", 8192 + 52, b"ReIsEr"),
    ("GFS2", 65536, b"\x01\x16\x19\x70"),
    ("OCFS2", 8192, b"OCFSV2"),
    ("OCFS2", 4096, b"OCFSV2"),
    ("VMFS", 1 << 20, b"\x0d\xd0\x01\xc0"),
    ("VDO", 0, b"dmvdo001"),
    ("dm-integrity", 0, b"integrt\0"),
    ("BlueStore", 0, b"bluestore block device"),
];

/// What is looked into, and what stands in its way.
pub(super) struct Signs {
    pub known: Vec<System>,
    pub foreign: Option<&'static str>,
}

/// Looks for all signatures that are known.
pub(super) fn look_for(view: View<'_>) -> Result<Signs, DiskError> {
    let mut known = Vec::new();
    if view.has(1024 + 0x38, &[0x53, 0xef])? {
        known.push(System::Ext);
    }
    if view.has(0, b"XFSB")? {
        known.push(System::Xfs);
    }
    if view.has(65536 + 64, b"_BHRfS_M")? {
        known.push(System::Btrfs);
    }
    let mut foreign = None;
    for (name, at, bytes) in FOREIGN {
        if foreign.is_none() && view.has(at, bytes)? {
            foreign = Some(name);
        }
    }
    if foreign.is_none() && is_zfs(view)? {
        foreign = Some("ZFS");
    }
    if foreign.is_none() && is_raid_by_its_end(view)? {
        foreign = Some("RAID");
    }
    Ok(Signs { known, foreign })
}

/// Whether something is on a part, whatever else is, for which free blocks of other parts are not free.
pub(super) fn guard_of(view: View<'_>) -> Result<Option<&'static str>, DiskError> {
    for (name, at, bytes) in FOREIGN.into_iter().filter(|(name, ..)| [SUSPENDED, VERITY].contains(name)) {
        if view.has(at, bytes)? {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// What dm-verity's superblock begins with, at any sector (cryptsetup, lib/verity/verity.c).
const VERITY_MAGIC: &[u8] = b"verity\0\0";
/// The footer of Android's verified boot, which ends a partition (external/avb/libavb/avb_footer.h).
const AVB_MAGIC: &[u8] = b"AVBf";
const AVB_FOOTER_BYTES: u64 = 64;

/// Doubts a file system with something behind its `end` that may be hashes of all of its blocks: of dm-verity, of
/// Android's verified boot, or without a mark of their own.
pub(super) fn check_no_hashes(view: View<'_>, end: u64) -> Found<()> {
    const LOOKED_AT: u64 = 1 << 20;
    const SECTOR: usize = 512;
    /// How much less than what they hash hashes are at least: 16 bytes for 4 KiB. A file system that fills its partition leaves
    /// over less, with what was there before it.
    const OF_HASHES: u64 = 256;
    let has_footer = match view.len.checked_sub(AVB_FOOTER_BYTES) {
        Some(at) => view.has(at, AVB_MAGIC)?,
        None => false,
    };
    let left_over = view.len.saturating_sub(end);
    let behind = view.part(end, usize::try_from(left_over.min(LOOKED_AT)).unwrap_or(0))?.unwrap_or_default();
    if has_footer || behind.chunks(SECTOR).any(|sector| sector.starts_with(VERITY_MAGIC)) {
        return doubt("dm-verity has hashes of its free blocks, too");
    }
    if left_over >= end / OF_HASHES && behind.iter().any(|&byte| byte != 0) {
        return doubt("something lies behind its end in the partition, hashes of its free blocks perhaps");
    }
    Ok(())
}

/// Whether a ring of ZFS's uberblocks is there, which fills the second half of its label.
fn is_zfs(view: View<'_>) -> Result<bool, DiskError> {
    const MAGIC: u32 = 0x00ba_b10c;
    let ring = view.part(128 << 10, 128 << 10)?.unwrap_or_default();
    Ok(ring.chunks(1024).any(|block| [le32(block, 0), le32(block, 4).swap_bytes()].contains(&MAGIC)))
}

/// RAIDs whose superblock is at the end, so that the start looks like what is on them: Linux's versions 0.90 and
/// 1.0 (drivers/md/md.c), Intel's and DDF's.
fn is_raid_by_its_end(view: View<'_>) -> Result<bool, DiskError> {
    let sectors = view.len / 512;
    let old = (view.len / 65536 * 65536).checked_sub(65536);
    let one = sectors.checked_sub(16).map(|sector| sector / 8 * 8 * 512);
    for (place, magic) in [
        (old, &b"\xfc\x4e\x2b\xa9"[..]),
        (old, b"\xa9\x2b\x4e\xfc"),
        (one, b"\xfc\x4e\x2b\xa9"),
        (sectors.checked_sub(2).map(|sector| sector * 512), b"Intel Raid ISM Cfg Sig."),
        (sectors.checked_sub(1).map(|sector| sector * 512), b"\xde\x11\xde\x11"),
    ] {
        if let Some(at) = place
            && view.has(at, magic)?
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What is on a part: its name, and the file system if that can be looked into.
pub(super) fn identify(view: View<'_>) -> Result<(Option<&'static str>, Found<System>), DiskError> {
    const OTHERS: &str = "only ext4, XFS and btrfs are looked into";
    let signs = look_for(view)?;
    Ok(match (signs.known.as_slice(), signs.foreign) {
        ([], None) => (None, doubt("no file system is known on it")),
        ([], Some(name)) => (Some(name), doubt(OTHERS)),
        ([System::Xfs], None) => (Some("XFS"), Ok(System::Xfs)),
        ([System::Btrfs], None) => (Some("btrfs"), Ok(System::Btrfs)),
        ([System::Ext], None) => (Some(name_of_ext(view)?), Ok(System::Ext)),
        (_, Some(name)) => (None, doubt(format!("it bears the signature of {name}, too"))),
        (_, None) => (None, doubt("it bears the signatures of several file systems")),
    })
}

fn name_of_ext(view: View<'_>) -> Result<&'static str, DiskError> {
    let features = view.part(1024 + 0x5c, 12)?.unwrap_or_default();
    let (compat, incompat, ro_compat) = (le32(&features, 0), le32(&features, 4), le32(&features, 8));
    // Extents, 64bit, flex_bg; group checksums, huge files, extra inode size.
    Ok(if incompat & 0x2c0 != 0 || ro_compat & 0x478 != 0 {
        "ext4"
    } else if compat & 4 != 0 {
        "ext3"
    } else {
        "ext2"
    })
}
