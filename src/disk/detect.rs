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
    let mut found: Vec<Foreign> = foreign_signature(&head).into_iter().collect();
    if has_fixed_footer(file)? && !found.contains(&Foreign::Vhd) {
        found.push(Foreign::Vhd);
    }
    Ok(found)
}

/// The format whose signature stands in the first bytes of a disk, if any does. A fixed VHD has its own at its end.
pub fn foreign_signature(head: &[u8]) -> Option<Foreign> {
    let at =
        |offset: usize, signature: &[u8]| head.get(offset..).is_some_and(|rest| rest.starts_with(signature));
    if at(0, b"QFI\xfb") {
        Some(Foreign::Qcow2)
    } else if at(0, b"KDMV") || at(0, b"COWD") || at(0, b"# Disk DescriptorFile") {
        Some(Foreign::Vmdk)
    } else if at(0, b"vhdxfile") {
        Some(Foreign::Vhdx)
    } else if at(0, b"conectix") {
        Some(Foreign::Vhd)
    } else if at(64, &0xbeda_107f_u32.to_le_bytes()) {
        Some(Foreign::Vdi)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_signature_is_known_and_nothing_else() {
        assert_eq!(foreign_signature(b"QFI\xfb\0\0\0\x03"), Some(Foreign::Qcow2));
        assert_eq!(foreign_signature(b"KDMV\x01"), Some(Foreign::Vmdk));
        assert_eq!(foreign_signature(b"COWD"), Some(Foreign::Vmdk));
        assert_eq!(foreign_signature(b"# Disk DescriptorFile\n"), Some(Foreign::Vmdk));
        assert_eq!(foreign_signature(b"vhdxfile"), Some(Foreign::Vhdx));
        assert_eq!(foreign_signature(b"conectix"), Some(Foreign::Vhd));
        let mut vdi = vec![b'<'; 64];
        vdi.extend([0x7f, 0x10, 0xda, 0xbe]);
        assert_eq!(foreign_signature(&vdi), Some(Foreign::Vdi));
        for raw in [&b""[..], b"QFI", b"\xeb\x63\x90", &[0; 512]] {
            assert_eq!(foreign_signature(raw), None);
        }
    }
}
