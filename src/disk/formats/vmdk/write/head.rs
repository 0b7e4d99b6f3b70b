//! Header and descriptor of a new file.

use super::{GRAIN_SECTORS, HEAD_SECTORS, SECTOR, SECTOR_BYTES};
use crate::disk::formats::vmdk::header::{DIRECTORY_AT_END, TABLE_ENTRIES};
use std::path::Path;

const VERSION: u32 = 3;
/// Newlines can be checked; grains are compressed; there are markers.
const FLAGS: u32 = 1 | 1 << 16 | 1 << 17;
const DEFLATE: u16 = 1;
/// Where the descriptor is, and the room it has, in sectors.
const DESCRIPTOR: (u64, u64) = (1, 20);
/// The longest extent name in a descriptor.
const NAME_MAX: usize = 200;
/// Disks over 2 TiB came with version 10.
const HARDWARE_VERSION: u32 = 10;
const GIB: u64 = 1 << 30;

/// A header that says where the grain directory is: at the file's beginning this is not known yet, in its
/// footer it is.
pub(super) fn header(sectors: u64, directory_sector: Option<u64>) -> [u8; SECTOR] {
    let mut header = [0; SECTOR];
    let mut put = |at: usize, field: &[u8]| {
        if let Some(place) = header.get_mut(at..at + field.len()) {
            place.copy_from_slice(field);
        }
    };
    put(0, b"KDMV");
    put(4, &VERSION.to_le_bytes());
    put(8, &FLAGS.to_le_bytes());
    put(12, &sectors.to_le_bytes());
    put(20, &GRAIN_SECTORS.to_le_bytes());
    put(28, &DESCRIPTOR.0.to_le_bytes());
    put(36, &DESCRIPTOR.1.to_le_bytes());
    // A small number.
    put(44, &u32::try_from(TABLE_ENTRIES).unwrap_or(0).to_le_bytes());
    put(56, &directory_sector.unwrap_or(DIRECTORY_AT_END).to_le_bytes());
    put(64, &HEAD_SECTORS.to_le_bytes());
    put(73, b"\n \r\n");
    put(77, &DEFLATE.to_le_bytes());
    header
}

/// All sectors before the first grain.
pub(super) fn head(path: &Path, sectors: u64) -> Vec<u8> {
    let mut head = header(sectors, None).to_vec();
    // It is far shorter than the room that it has.
    head.extend_from_slice(descriptor(path, sectors).as_bytes());
    head.resize(SECTOR * usize::try_from(HEAD_SECTORS).unwrap_or(0), 0);
    head
}

fn descriptor(path: &Path, sectors: u64) -> String {
    let name = extent_name(path);
    let [cylinders, heads, per_track] = geometry(sectors);
    // All ones would mean no disk, or one less no content.
    let content_id = crc32c::crc32c(format!("{name} {sectors}").as_bytes()) >> 1;
    format!(
        "# Disk DescriptorFile\nversion=1\nCID={content_id:08x}\nparentCID=ffffffff\n\
         createType=\"streamOptimized\"\n\n\
         # Extent description\nRW {sectors} SPARSE \"{name}\"\n\n\
         # The Disk Data Base\n#DDB\n\n\
         ddb.adapterType = \"lsilogic\"\n\
         ddb.geometry.cylinders = \"{cylinders}\"\n\
         ddb.geometry.heads = \"{heads}\"\n\
         ddb.geometry.sectors = \"{per_track}\"\n\
         ddb.virtualHWVersion = \"{HARDWARE_VERSION}\"\n"
    )
}

/// The file's own name, without anything that would end the name or the line that it is in.
fn extent_name(path: &Path) -> String {
    let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.+".contains(c) { c } else { '_' };
    let name: String = name.chars().take(NAME_MAX).map(plain).collect();
    if name.is_empty() { "disk.vmdk".to_owned() } else { name }
}

/// Cylinders, heads, and sectors of a track, as VMware has them for SCSI disks.
fn geometry(sectors: u64) -> [u64; 3] {
    let bytes = sectors.saturating_mul(SECTOR_BYTES);
    let (heads, per_track) = match bytes {
        _ if bytes < GIB => (64, 32),
        _ if bytes < 2 * GIB => (128, 32),
        _ => (255, 63),
    };
    [(sectors / (heads * per_track)).max(1), heads, per_track]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_a_descriptor_are_harmless() {
        for (path, expected) in [
            ("/srv/disks/web-1.vmdk", "web-1.vmdk"),
            ("a\"\nparentCID=1", "a__parentCID_1"),
            ("/", "disk.vmdk"),
            ("gr\u{fc}n.vmdk", "gr_n.vmdk"),
        ] {
            assert_eq!(extent_name(Path::new(path)), expected);
        }
        let long = head(Path::new(&"x".repeat(9000)), u64::MAX / 512);
        assert_eq!(long.len(), SECTOR * 128);
        assert!(long[SECTOR * 21..].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn geometry_is_that_of_vmware() {
        assert_eq!(geometry(1), [1, 64, 32]);
        assert_eq!(geometry(2 << 20), [512, 128, 32]);
        assert_eq!(geometry(16 << 21), [2088, 255, 63]);
    }
}
