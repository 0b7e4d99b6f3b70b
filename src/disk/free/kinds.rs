//! What partition tables say that a partition is, where that is nothing that is looked into. A file system that was
//! made before may still be there with all of its checksums, while another one has its bytes.

/// Types of an MBR's partitions (util-linux, include/pt-mbr-partnames.h).
const MBR: [(u8, &str); 16] = [
    (0x27, "a hidden NTFS"),
    (0x39, "Plan 9"),
    (0x42, "Windows' logical disk manager"),
    (0x63, "UNIX System V"),
    (0x82, "swap or Solaris"),
    (0x8e, "LVM"),
    (0xa5, "FreeBSD"),
    (0xa6, "OpenBSD"),
    (0xa8, "UFS"),
    (0xa9, "NetBSD"),
    (0xaf, "HFS"),
    (0xbe, "Solaris"),
    (0xbf, "Solaris"),
    (0xeb, "BeFS"),
    (0xfb, "VMFS"),
    (0xfd, "RAID"),
];

/// Types of a GPT's partitions (util-linux, include/pt-gpt-partnames.h).
const GPT: [(u128, &str); 33] = [
    (0x0657fd6d_a4ab_43c4_84e5_0933c84b4f4f, "swap"),
    (0xa19d880f_05fc_4d3b_a006_743f0f84911e, "RAID"),
    (0xe6d6d379_f507_44c2_a23c_238f2a3df928, "LVM"),
    (0xca7d7ccb_63ed_4c53_861c_1742536059cc, "LUKS"),
    (0x7ffec5c9_2d00_49b7_8941_3ea10a5586b7, "dm-crypt"),
    (0x5808c8aa_7e8f_42e0_85d2_e1e90434cfb3, "Windows' logical disk manager"),
    (0xaf9b60a0_1431_4f62_bc68_3311714a69ad, "Windows' logical disk manager"),
    (0xe75caf8f_f680_4cee_afa3_b001e56efc2d, "Windows' storage spaces"),
    (0x48465300_0000_11aa_aa11_00306543ecac, "HFS+"),
    (0x7c3457ef_0000_11aa_aa11_00306543ecac, "APFS"),
    (0x55465300_0000_11aa_aa11_00306543ecac, "UFS"),
    (0x52414944_0000_11aa_aa11_00306543ecac, "Apple's RAID"),
    (0x53746f72_6167_11aa_aa11_00306543ecac, "Core Storage"),
    (0x83bd6b9d_7f41_11dc_be0b_001560b84f0f, "FreeBSD"),
    (0x516e7cb4_6ecf_11d6_8ff8_00022d09712b, "FreeBSD"),
    (0x516e7cb5_6ecf_11d6_8ff8_00022d09712b, "FreeBSD swap"),
    (0x516e7cb6_6ecf_11d6_8ff8_00022d09712b, "UFS"),
    (0x516e7cb8_6ecf_11d6_8ff8_00022d09712b, "FreeBSD"),
    (0x516e7cba_6ecf_11d6_8ff8_00022d09712b, "ZFS"),
    (0x49f48d32_b10e_11dc_b99b_0019d1879648, "NetBSD swap"),
    (0x49f48d5a_b10e_11dc_b99b_0019d1879648, "FFS"),
    (0x49f48d82_b10e_11dc_b99b_0019d1879648, "LFS"),
    (0x49f48daa_b10e_11dc_b99b_0019d1879648, "NetBSD's RAID"),
    (0x2db519c4_b10f_11dc_b99b_0019d1879648, "NetBSD"),
    (0x2db519ec_b10f_11dc_b99b_0019d1879648, "NetBSD"),
    (0x824cc7a0_36a8_11e3_890a_952519ad3f61, "OpenBSD"),
    (0x6a82cb45_1dd2_11b2_99a6_080020736631, "Solaris"),
    (0x6a85cf4d_1dd2_11b2_99a6_080020736631, "Solaris"),
    (0x6a87c46f_1dd2_11b2_99a6_080020736631, "Solaris swap"),
    (0x6a898cc3_1dd2_11b2_99a6_080020736631, "ZFS"),
    (0x42465331_3ba3_10f1_802a_4861696b7521, "BeFS"),
    (0xaa31e02a_400f_11db_9590_000c2911d1b8, "VMFS"),
    (0x85d5e45e_237c_11e1_b4b3_e89a8f7fc3a7, "MidnightBSD"),
];

/// What an MBR's type stands for, if that is not looked into.
pub(super) fn of_mbr(kind: u8) -> Option<&'static str> {
    MBR.iter().find(|(known, _)| *known == kind).map(|(_, name)| *name)
}

/// What a GPT's type, as it is stored, stands for, if that is not looked into.
pub(super) fn of_gpt(stored: &[u8]) -> Option<&'static str> {
    let b: [u8; 16] = stored.try_into().ok()?;
    // Its first three fields are little-endian.
    let guid = u128::from_be_bytes([
        b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15],
    ]);
    GPT.iter().find(|(known, _)| *known == guid).map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_known_as_they_are_stored() {
        let zfs = *b"\xba\x7c\x6e\x51\xcf\x6e\xd6\x11\x8f\xf8\x00\x02\x2d\x09\x71\x2b";
        assert_eq!(of_gpt(&zfs), Some("ZFS"));
        // Linux's own.
        let linux = *b"\xaf\x3d\xc6\x0f\x83\x84\x72\x47\x8e\x79\x3d\x69\xd8\x47\x7d\xe4";
        assert_eq!(of_gpt(&linux), None);
        assert_eq!((of_mbr(0x83), of_mbr(0xa5)), (None, Some("FreeBSD")));
    }
}
