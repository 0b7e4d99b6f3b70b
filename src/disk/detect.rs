//! What format a disk file says that it has. Only bytes decide, never a name.

use super::formats::vhd::has_footer;
use super::formats::vmdk::is_descriptor;
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
    /// A format that is known and not read, by its name.
    Other(&'static str),
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
            Self::Other(name) => name,
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
    if has_footer(file)? && !found.contains(&Foreign::Vhd) {
        found.push(Foreign::Vhd);
    }
    if ends_with_koly(file)? {
        found.push(Foreign::Other("DMG"));
    }
    Ok(found)
}

/// Whether a file ends with the block that Apple's disk images end with.
fn ends_with_koly(file: &dyn DiskRead) -> Result<bool, DiskError> {
    const BLOCK_BYTES: u64 = 512;
    let Some(at) = file.len_bytes().checked_sub(BLOCK_BYTES) else { return Ok(false) };
    let mut signature = [0; 12];
    file.read_at(at, &mut signature)?;
    // With its version, and its own length.
    Ok(signature == *b"koly\0\0\0\x04\0\0\x02\0")
}

/// Where a signature stands in a disk's first bytes, and whose it is. They lie at different places, so that one file
/// can bear several.
const SIGNATURES: [(usize, &[u8], Foreign); 21] = [
    (0, b"QFI\xfb", Foreign::Qcow2),
    (0, b"QED\0", Foreign::Other("QED")),
    (0, b"\xbe\xba\xfe\xca\0\0\0\0", Foreign::Other("VMware seSparse")),
    (0, b"Bochs Virtual HD Image", Foreign::Other("Bochs")),
    (0, b"\x3a\xff\x26\xed", Foreign::Other("Android sparse")),
    (0, b"WithoutFreeSpace", Foreign::Other("Parallels")),
    (0, b"WithouFreSpacExt", Foreign::Other("Parallels")),
    // Images are often handed out compressed.
    (0, b"\x1f\x8b\x08", Foreign::Other("gzip")),
    (0, b"\xfd7zXZ\0", Foreign::Other("xz")),
    (0, b"\x28\xb5\x2f\xfd", Foreign::Other("zstd")),
    (0, b"\x04\x22\x4d\x18", Foreign::Other("LZ4")),
    (0, b"BZh", Foreign::Other("bzip2")),
    (0, b"PK\x03\x04", Foreign::Other("zip")),
    (0, b"7z\xbc\xaf\x27\x1c", Foreign::Other("7z")),
    (0, b"KDMV", Foreign::Vmdk),
    (0, b"COWD", Foreign::Vmdk),
    (0, b"# Disk DescriptorFile", Foreign::Vmdk),
    (0, b"vhdxfile", Foreign::Vhdx),
    (0, b"conectix", Foreign::Vhd),
    (64, &0xbeda_107f_u32.to_le_bytes(), Foreign::Vdi),
    (257, b"ustar", Foreign::Ova),
];

/// Every format whose signature stands in the first [`HEAD_BYTES`] of a disk; what is behind them decides nothing. A fixed
/// VHD has its own at its end.
pub fn head_signatures(start: &[u8]) -> Vec<Foreign> {
    let head = &start[..start.len().min(HEAD_BYTES)];
    let stands = |at: usize, signature: &[u8]| head.get(at..).is_some_and(|rest| rest.starts_with(signature));
    let mut found: Vec<Foreign> = SIGNATURES
        .iter()
        .filter(|(at, signature, _)| stands(*at, signature))
        .map(|(_, _, format)| *format)
        .collect();
    if !found.contains(&Foreign::Vmdk) && is_descriptor(head) {
        found.push(Foreign::Vmdk);
    }
    if !found.contains(&Foreign::Ova) && is_old_tar(head) {
        found.push(Foreign::Ova);
    }
    found
}

/// Whether a first block is a tar header of before POSIX, which has no signature: its checksum fits, and it names a
/// file.
fn is_old_tar(head: &[u8]) -> bool {
    let Some(block) = head.first_chunk::<512>() else { return false };
    let (before, sum, behind) = (&block[..148], &block[148..156], &block[156..]);
    let digits = sum.trim_ascii_start().iter().take_while(|byte| (b'0'..=b'7').contains(byte));
    let said = digits.fold(0_u32, |value, digit| (value << 3) | u32::from(digit - b'0'));
    let counted: u32 = before.iter().chain(b"        ").chain(behind).map(|&byte| u32::from(byte)).sum();
    block[0] != 0 && said == counted
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
            assert!(!format.as_str().is_empty());
        }
        for raw in [&b"# a script\nversion=4\n"[..], b"version=1", b"", b"QFI", b"\xeb\x63\x90", &[0; 512]] {
            assert_eq!(head_signatures(raw), []);
        }
    }

    #[test]
    fn a_vmdk_descriptor_is_known_by_its_first_line_that_says_something() {
        for text in [
            "# Disk Descriptor File\n\n  \n# more\nversion=1\nCID=1",
            "version=3\r\n",
            "# Disk DescriptorFile",
        ] {
            assert_eq!(head_signatures(text.as_bytes()), [Foreign::Vmdk], "{text:?}");
        }
        // Not by a line that the head cuts, at whose end there may be more.
        let text = |comment: usize| format!("#{}\nversion=1\nCID=1\n", "-".repeat(comment));
        assert_eq!(head_signatures(text(HEAD_BYTES - 12).as_bytes()), [Foreign::Vmdk]);
        assert_eq!(head_signatures(text(HEAD_BYTES - 11).as_bytes()), []);
        assert_eq!(head_signatures(b"# a script\nversion=1"), []);
    }

    #[test]
    fn an_image_of_apples_is_known_by_its_end() {
        let mut bytes = vec![0; 4096];
        bytes[3584..3596].copy_from_slice(b"koly\0\0\0\x04\0\0\x02\0");
        let found = |bytes: &[u8]| {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), bytes).unwrap();
            signatures(&crate::io::rawdisk::RawDisk::open(file.path()).unwrap()).unwrap()
        };
        assert_eq!(found(&bytes), [Foreign::Other("DMG")]);
        assert_eq!(found(&bytes[..4095]), []);
        assert_eq!(found(&bytes[..100]), []);
    }

    #[test]
    fn a_tar_without_a_signature_is_known_by_its_checksum() {
        let mut head = [0; 512];
        head[..5].copy_from_slice(b"m.ovf");
        head[124..136].copy_from_slice(b"00000000123 ");
        let sum: u32 = head.iter().map(|&byte| u32::from(byte)).sum::<u32>() + 8 * 32;
        head[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        assert_eq!(head_signatures(&head), [Foreign::Ova]);
        head[3] ^= 1;
        assert_eq!(head_signatures(&head), []);
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
