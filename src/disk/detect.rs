//! What format a disk file says that it has. Only bytes decide, never a name.

use super::formats::vhd::has_fixed_footer;
use crate::io::disk::{DiskError, DiskRead};

/// A format that a file can bear the signature of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Foreign {
    /// QEMU copy-on-write.
    Qcow2,
    /// VMware.
    Vmdk,
    /// Hyper-V, first generation, and Azure.
    Vhd,
    /// Hyper-V.
    Vhdx,
    /// VirtualBox.
    Vdi,
    /// A tar archive: a virtual machine, if it is one.
    Ova,
    /// QEMU's enhanced disk, which is known and not read.
    Qed,
}

impl Foreign {
    /// The format's usual name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "VMDK",
            Self::Vhd => "VHD",
            Self::Vhdx => "VHDX",
            Self::Vdi => "VDI",
            Self::Ova => "OVA",
            Self::Qed => "QED",
        }
    }
}

/// Bytes of a disk's start that detection looks at.
pub const HEAD_BYTES: usize = 512;

/// Every format whose signature a file bears, at its start or at its end.
pub fn signatures(file: &dyn DiskRead) -> Result<Vec<Foreign>, DiskError> {
    let len = usize::try_from(file.len_bytes()).unwrap_or(usize::MAX).min(HEAD_BYTES);
    let mut head = vec![0; len];
    file.read_at(0, &mut head)?;
    let mut found = head_signatures(&head);
    if has_fixed_footer(file)? && !found.contains(&Foreign::Vhd) {
        found.push(Foreign::Vhd);
    }
    Ok(found)
}

/// Where a signature stands in a disk's first bytes, and whose it is. They lie at different places, so that one file
/// can bear several.
const SIGNATURES: [(usize, &[u8], Foreign); 9] = [
    (0, b"QFI\xfb", Foreign::Qcow2),
    (0, b"QED\0", Foreign::Qed),
    (0, b"KDMV", Foreign::Vmdk),
    (0, b"COWD", Foreign::Vmdk),
    (0, b"# Disk DescriptorFile", Foreign::Vmdk),
    (0, b"vhdxfile", Foreign::Vhdx),
    (0, b"conectix", Foreign::Vhd),
    (64, &0xbeda_107f_u32.to_le_bytes(), Foreign::Vdi),
    (257, b"ustar", Foreign::Ova),
];

/// Every format whose signature stands in the first bytes of a disk. A fixed VHD has its own at its end.
pub fn head_signatures(head: &[u8]) -> Vec<Foreign> {
    let stands = |at: usize, signature: &[u8]| head.get(at..).is_some_and(|rest| rest.starts_with(signature));
    SIGNATURES
        .iter()
        .filter(|(at, signature, _)| stands(*at, signature))
        .map(|(_, _, format)| *format)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_signature_is_known_and_nothing_else() {
        for (at, signature, format) in SIGNATURES {
            let head = [&vec![b'<'; at], signature, &[0; 9]].concat();
            assert_eq!(head_signatures(&head), [format]);
            assert_eq!(head_signatures(&head[..at + signature.len() - 1]), []);
        }
        for raw in [&b""[..], b"QFI", b"\xeb\x63\x90", &[0; 512]] {
            assert_eq!(head_signatures(raw), []);
        }
    }

    #[test]
    fn all_that_a_file_bears_are_found() {
        let mut head = vec![0; 512];
        head[..4].copy_from_slice(b"QFI\xfb");
        head[64..68].copy_from_slice(&0xbeda_107f_u32.to_le_bytes());
        head[257..262].copy_from_slice(b"ustar");
        assert_eq!(head_signatures(&head), [Foreign::Qcow2, Foreign::Vdi, Foreign::Ova]);
    }
}
