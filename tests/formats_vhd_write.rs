//! The writers of VHD and VHDX: what they write reads the same by our own readers and by qemu-img, which is also
//! the oracle for their structures. Without qemu-img those tests print a note and pass. `IMGSTORE_FORMAT_IMAGES`
//! is the number of random images.

mod common;
#[path = "common/qemu.rs"]
mod qemu;

use common::{Draw, MemoryDisk, MemoryFile, volume};
use imgstore::disk::formats::vhd::write::Kind;
use imgstore::disk::formats::{Limits, vhd, vhdx};
use imgstore::disk::open::open_raw;
use imgstore::disk::{DiskError, DiskRead, DiskWrite, FileWrite};
use imgstore::io::outfile::NewFile;
use qemu::*;
use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

const MIB: u64 = 1 << 20;
const ID: u128 = 0x0123_4567_89ab_4def_8123_4567_89ab_cdef;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Dynamic,
    Fixed,
    Vhdx,
}

use Format::*;

impl Format {
    fn create<'a>(
        self,
        file: Box<dyn FileWrite + 'a>,
        volume_bytes: u64,
    ) -> Result<Box<dyn DiskWrite + 'a>, DiskError> {
        let path = Path::new("disk");
        match self {
            Dynamic => vhd::write::create(file, path, volume_bytes, Kind::Dynamic, ID),
            Fixed => vhd::write::create(file, path, volume_bytes, Kind::Fixed, ID),
            Vhdx => vhdx::write::create(file, path, volume_bytes, ID),
        }
    }

    fn open(self, file: Arc<dyn DiskRead>) -> Box<dyn DiskRead> {
        let (path, limits) = (Path::new("disk"), Limits::default());
        match self {
            Vhdx => Box::new(vhdx::open(file, path, &limits).unwrap()),
            _ => Box::new(vhd::open(file, path, &limits).unwrap()),
        }
    }

    /// The size of the disk that a volume becomes.
    fn disk_bytes(self, volume_bytes: u64) -> u64 {
        volume_bytes.next_multiple_of(if self == Fixed { MIB } else { 512 })
    }

    /// What QEMU calls it.
    fn qemu(self) -> &'static str {
        if self == Vhdx { "vhdx" } else { "vpc" }
    }
}

/// Writes a volume as `restore` does, but with zeros in all ways that there are: as bytes, as a range, as a gap.
fn fill(target: &mut dyn DiskWrite, bytes: &[u8], draw: &mut Draw) {
    let mut at = 0;
    while at < bytes.len() {
        let is_zero = |block: &&[u8]| block.iter().all(|&byte| byte == 0);
        let zeros = bytes[at..].chunks(4096).take_while(is_zero).count();
        let blocks = if draw.below(4) == 0 { 2048 } else { 1 + draw.below(300) };
        let end = if zeros > 0 && draw.below(3) > 0 {
            let end = bytes.len().min(at + zeros * 4096);
            if draw.below(3) > 0 {
                target.zero_at(at as u64, (end - at) as u64).unwrap();
            }
            end
        } else {
            let end = bytes.len().min(at + blocks * 4096);
            target.write_at(at as u64, &bytes[at..end]).unwrap();
            end
        };
        at = end;
    }
}

/// The bytes of a file that holds some pieces of a volume.
fn written(format: Format, volume_bytes: u64, pieces: &[(u64, &[u8])]) -> Vec<u8> {
    let file = MemoryFile::default();
    let mut target = format.create(Box::new(file.clone()), volume_bytes).unwrap();
    for (at, bytes) in pieces {
        target.write_at(*at, bytes).unwrap();
    }
    target.finish().unwrap();
    file.bytes()
}

fn bytes_of(disk: &dyn DiskRead) -> Vec<u8> {
    let mut bytes = vec![0xaa; disk.len_bytes() as usize];
    disk.read_at(0, &mut bytes).unwrap();
    bytes
}

/// Fails if `bytes` are not those that were `written`, padded with zeros.
fn assert_padded(found: &[u8], written: &[u8]) {
    assert!(found[..written.len()] == *written && found[written.len()..].iter().all(|&byte| byte == 0));
}

#[test]
fn any_volume_comes_back() {
    for seed in 0..40 {
        let mut draw = Draw::new(seed);
        let len = 1 + draw.below(if seed % 4 == 0 { 9 << 20 } else { 300_000 });
        let mut bytes = volume(len, seed);
        for _ in 0..draw.below(4) {
            let start = draw.below(len);
            let end = len.min(start + draw.below(5 << 20));
            bytes[start..end].fill(0);
        }
        for format in [Dynamic, Fixed, Vhdx] {
            let file = MemoryFile::default();
            let mut target = format.create(Box::new(file.clone()), len as u64).unwrap();
            fill(&mut *target, &bytes, &mut draw);
            target.finish().unwrap();
            let disk = format.open(Arc::new(MemoryDisk::new(file.bytes())));
            assert_eq!(disk.len_bytes(), format.disk_bytes(len as u64), "{format:?} of {len}");
            assert_padded(&bytes_of(&*disk), &bytes);
        }
    }
}

#[test]
fn blocks_of_zeros_are_absent_however_they_were_written() {
    let len = 9 * MIB + 4096 + 5;
    // A fixed disk has the volume's length in whole MiB; dynamic ones have their tables.
    let empty = [(Dynamic, 2048 + 512), (Fixed, 10 * MIB + 512), (Vhdx, 4 * MIB)];
    for (format, bytes) in empty {
        assert_eq!(written(format, len, &[]).len() as u64, bytes, "{format:?}");
        let zeros = vec![0; len as usize];
        assert!(written(format, len, &[(0, &zeros)]) == written(format, len, &[]), "{format:?}");
    }
    // Two VHD blocks of 2 MiB, each behind 4 KiB that end in its bitmap; three VHDX blocks of 1 MiB.
    let pieces: [(u64, &[u8]); 4] =
        [(4096, &[0; 4096]), (2 * MIB - 4096, &[1; 8192]), (3 * MIB, &[0; 100]), (9 * MIB + 4096, &[2; 5])];
    let file = written(Dynamic, len, &pieces);
    assert_eq!(file.len() as u64, 4096 + 3 * (2 * MIB) + 2 * 4096 + 512);
    assert!(file[3584..4096] == [0xff; 512] && file[4096 + (2 << 20) - 4096] == 1);
    let file = written(Vhdx, len, &pieces);
    assert_eq!(file.len() as u64, 4 * MIB + 3 * MIB);
    let present = |number: u64| 6 | (4 + number) << 20;
    let entries = [2, present(0), present(1), 2, 2, 2, 2, 2, 2, present(2), 0];
    assert!(file[3 << 20..][..88] == entries.map(u64::to_le_bytes).concat());
    for format in [Dynamic, Vhdx] {
        let disk = format.open(Arc::new(MemoryDisk::new(written(format, len, &pieces))));
        let extent = disk.extent_at(4 * MIB).unwrap();
        assert!(extent.is_zero && extent.end >= 8 * MIB, "{format:?}: {extent:?}");
    }
}

#[test]
fn a_vhd_says_what_hyper_v_and_azure_want_to_know() {
    let file = written(Fixed, 5 * MIB + 1, &[(0, b"data")]);
    let footer = file.last_chunk::<512>().unwrap();
    let mut expected = vec![0; 512];
    for (at, bytes) in [
        (0, &b"conectix\0\0\0\x02\0\x01\0\0\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\0win \0\x0a\0\0Wi2k"[..]),
        (40, &(6 * MIB).to_be_bytes()),
        (48, &(6 * MIB).to_be_bytes()),
        // 12288 sectors as 180 cylinders of 4 heads and 17 sectors.
        (56, &[0, 180, 4, 17, 0, 0, 0, 2]),
        (68, &ID.to_be_bytes()),
    ] {
        expected[at..at + bytes.len()].copy_from_slice(bytes);
    }
    let sum: u32 = expected.iter().map(|&byte| u32::from(byte)).sum();
    expected[64..68].copy_from_slice(&(!sum).to_be_bytes());
    assert_eq!(footer[..], expected);
    let file = written(Dynamic, 5 * MIB + 1, &[(0, b"data")]);
    assert_eq!(file[..512], *file.last_chunk::<512>().unwrap());
    assert_eq!(file[48..56], (5 * MIB + 512).to_be_bytes());
}

#[test]
fn what_a_format_cannot_hold_is_refused() {
    for (format, limit) in [(Dynamic, 2040 << 30), (Fixed, 2040 << 30), (Vhdx, 64 << 40)] {
        let create = |len| format.create(Box::new(MemoryFile::default()), len).map(drop);
        assert!(create(limit).is_ok() && create(1).is_ok());
        assert!(matches!(create(0), Err(DiskError::Empty { .. })));
        for len in [limit + 1, u64::MAX] {
            let refused = create(len).unwrap_err();
            assert!(matches!(refused, DiskError::TooLong { limit: said, .. } if said == limit), "{refused}");
        }
        let mut target = format.create(Box::new(MemoryFile::default()), 5000).unwrap();
        target.write_at(4096, &[1; 904]).unwrap();
        assert!(target.write_at(4096, &[1; 905]).is_err() && target.write_at(u64::MAX, &[1]).is_err());
        assert!(target.zero_at(0, 5001).is_err() && target.zero_at(u64::MAX, 1).is_err());
    }
    // A guest does not get its own bytes taken for a dynamic VHD's headers.
    let mut target = Fixed.create(Box::new(MemoryFile::default()), MIB).unwrap();
    let refused = target.write_at(0, &b"conectix".repeat(512)).unwrap_err();
    assert!(refused.to_string().contains("choose another --format"), "{refused}");
}

/// The file of a large disk, of which four blocks of 4 KiB are not zeros; each says where it is.
fn large(format: Format, len: u64) -> Vec<u8> {
    let places = [0, (4 << 30) + 4096, len / 2 - 4096, len - 4096];
    let block_at = |place: u64| (place + 1).to_le_bytes().repeat(512);
    let file = MemoryFile::default();
    let mut target = format.create(Box::new(file.clone()), len).unwrap();
    let mut at = 0;
    for place in places {
        while at < place {
            let piece = (place - at).min(256 << 20);
            target.zero_at(at, piece).unwrap();
            at += piece;
        }
        target.write_at(place, &block_at(place)).unwrap();
        at += 4096;
    }
    target.finish().unwrap();
    let bytes = file.bytes();
    let disk = format.open(Arc::new(MemoryDisk::new(bytes.clone())));
    assert_eq!(disk.len_bytes(), len);
    for place in places {
        let mut found = vec![0; 4096];
        disk.read_at(place, &mut found).unwrap();
        assert_eq!(found, block_at(place));
    }
    bytes
}

#[test]
fn the_largest_disks_are_small_files() {
    let dir = tempfile::tempdir().unwrap();
    // A VHD has a footer, a header and 1044480 entries of 4 bytes before its blocks.
    let vhd_head_bytes = (1536u64 + 4 * 1_044_480 + 512).next_multiple_of(4096);
    for (format, len, file_bytes) in [
        (Dynamic, 2040 << 30, vhd_head_bytes + 4 * (2 * MIB + 4096) - 4096 + 512),
        (Vhdx, 64 << 40, 3 * MIB + 17 * MIB + 4 * 32 * MIB),
        (Vhdx, 3 << 40, 3 * MIB + 13 * MIB + 4 * 2 * MIB),
        (Vhdx, (10 << 30) + 8192, 4 * MIB + 4 * MIB),
    ] {
        let file = large(format, len);
        assert_eq!(file.len() as u64, file_bytes, "{format:?} of {len}");
        if has_qemu_img() {
            let path = dir.path().join("disk");
            fs::write(&path, file).unwrap();
            check(format, &path, len);
        }
    }
}

/// Has qemu-img check a file, and say its size.
fn check(format: Format, path: &Path, disk_bytes: u64) {
    if format == Vhdx {
        let said = qemu_img(&["check", "-f", "vhdx", utf8(path)]);
        assert!(said.contains("No errors were found"), "{said}");
    }
    let info = qemu_img(&["info", "-f", format.qemu(), "--output=json", utf8(path)]);
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    assert_eq!(info["virtual-size"], disk_bytes, "{format:?}");
}

#[test]
fn qemu_img_reads_what_is_written() {
    if !has_qemu_img() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (raw, made) = (dir.path().join("raw"), dir.path().join("made"));
    for seed in 0..images() {
        let mut draw = Draw::new(seed + 1);
        let len = match draw.below(4) {
            0 => 1 + draw.next() % 100_000,
            3 => 1 + draw.next() % (96 << 20),
            _ => 1 + draw.next() % (6 << 20),
        };
        let pieces = draw.below(12);
        write_raw(&raw, len, pieces, &mut draw);
        let bytes = fs::read(&raw).unwrap();
        for format in [Dynamic, Fixed, Vhdx] {
            let file = NewFile::create(&made, 0, true).unwrap();
            let mut target = format.create(Box::new(file), len).unwrap();
            fill(&mut *target, &bytes, &mut draw);
            target.finish().unwrap();
            let disk_bytes = format.disk_bytes(len);
            check(format, &made, disk_bytes);
            File::options().write(true).open(&raw).unwrap().set_len(disk_bytes).unwrap();
            let same = qemu_img(&["compare", "-f", format.qemu(), "-F", "raw", utf8(&made), utf8(&raw)]);
            assert_eq!(same.trim(), "Images are identical.", "{format:?} of {len} bytes, seed {seed}");
            let file: Arc<dyn DiskRead> = Arc::from(open_raw(&made).unwrap());
            assert_same(&*format.open(file), &raw, &mut draw, &format!("{format:?} of {len}, seed {seed}"));
        }
    }
}
