//! File systems by the numbers that statfs(2) has for them. What is known of one of them stands where it matters.

use rustix::fs::StatFs;

pub(super) const EXT: u64 = 0xef53;
pub(super) const XFS: u64 = 0x5846_5342;
pub(super) const BTRFS: u64 = 0x9123_683e;
pub(super) const TMPFS: u64 = 0x0102_1994;
pub(super) const OVERLAY: u64 = 0x794c_7630;
pub(super) const NFS: u64 = 0x6969;
pub(super) const PLAN9: u64 = 0x0102_1997;
pub(super) const CEPH: u64 = 0x00c3_6400;
pub(super) const AFS: u64 = 0x5346_414f;
pub(super) const FUSE: u64 = 0x6573_5546;
/// SMB in versions 1 to 3, and the client before those.
pub(super) const SMB: [u64; 3] = [0xff53_4d42, 0xfe53_4d42, 0x517b];

/// Whether it is one of these. The number is a signed one of 32 bits on some machines.
pub(super) fn is_one_of(found: &StatFs, file_systems: &[u64]) -> bool {
    #[expect(clippy::cast_sign_loss, reason = "its bits are meant")]
    let kind = found.f_type as u64 & 0xffff_ffff;
    file_systems.contains(&kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_system_of_a_folder_is_told() {
        let found = rustix::fs::statfs("/proc").unwrap();
        assert!(is_one_of(&found, &[EXT, 0x9fa0]) && !is_one_of(&found, &[EXT, XFS]));
    }
}
