//! What file systems say is free: the target, and the checksums that fit what was changed.

use super::sparse::Sparse;
use super::{is_zeros, sparse_files};
use imgstore::disk::free::{Limits, Outcome, skip_free};

/// The input as a disk, and as places of one; then with the checksums that fit.
pub fn free(data: &[u8]) {
    sparse_files(data, Some(seal)).into_iter().for_each(check);
}

fn check(file: Sparse) {
    let limits = Limits { ranges: 64, table_bytes: 64 << 10 };
    let (disk, parts) = skip_free(Box::new(file.clone()), &limits, &|| false).expect("memory is read");
    assert!(disk.len_bytes() == file.len && !parts.is_empty());
    for part in &parts {
        assert!(!part.to_string().is_empty());
        let Outcome::Skipped { free_bytes, data_bytes } = part.outcome else { continue };
        assert!(data_bytes <= free_bytes && free_bytes < part.len && part.start + part.len <= file.len);
        // No file system calls its own superblock free.
        for at in [part.start, part.start + (64 << 10)] {
            let mut bytes = [0; 2048];
            if at + 2048 <= part.start + part.len && (at == part.start || part.kind == Some("btrfs")) {
                disk.read_at(at, &mut bytes).expect("it is inside");
                assert!(bytes[..] == file.get(at, 2048));
            }
        }
    }
    let mut at = 0;
    for _ in 0..64 {
        if at == file.len {
            break;
        }
        let extent = disk.extent_at(at).expect("memory is read");
        assert!(extent.start == at && extent.end > at && extent.end <= file.len);
        let mut bytes = vec![0xaa; (extent.end - at).min(3000) as usize];
        disk.read_at(at, &mut bytes).expect("it is inside");
        assert!(if extent.is_zero { is_zeros(&bytes) } else { bytes == file.get(at, bytes.len()) });
        at = extent.end;
    }
}

fn le(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]))
}

fn be(bytes: &[u8], at: usize) -> u64 {
    le(bytes, at).swap_bytes() >> 32
}

/// Puts the CRC32C of some bytes, with zeros in its own place, there.
fn sum_at(file: &mut Sparse, at: u64, len: u64, place: u64) {
    let mut bytes = file.get(at, len as usize);
    bytes[place as usize..place as usize + 4].fill(0);
    file.put(at + place, &crc32c::crc32c(&bytes).to_le_bytes());
}

fn seal(file: &mut Sparse) {
    if file.get(0, 4) == b"XFSB" {
        seal_xfs(file);
    }
    if file.get(65536 + 64, 8) == b"_BHRfS_M" {
        seal_btrfs(file);
    }
    if file.get(1080, 2) == [0x53, 0xef] {
        seal_ext(file);
    }
    if file.get(512, 8) == b"EFI PART" {
        seal_gpt(file);
    }
}

fn seal_xfs(file: &mut Sparse) {
    let bytes = file.get(0, 512);
    let sector = (be(&bytes, 100) & 0xffff).clamp(512, 4096);
    let block = be(&bytes, 4).clamp(512, 65536);
    sum_at(file, 0, sector, 224);
    for group in 0..be(&bytes, 88).min(8) {
        let start = group * be(&bytes, 84) * block;
        sum_at(file, start + sector, sector, 216);
        sum_at(file, start + 3 * sector, sector, 32);
    }
    let nodes: Vec<u64> = file.pieces.iter().filter(|it| it.1.starts_with(b"AB3B")).map(|it| it.0).collect();
    for at in nodes {
        sum_at(file, at, block, 52);
    }
}

fn seal_btrfs(file: &mut Sparse) {
    let bytes = file.get(65536, 4096);
    let fsid = &bytes[32..48];
    let node = le(&bytes, 148).clamp(4096, 65536);
    let is_node = |piece: &(u64, Vec<u8>)| piece.0 != 65536 && piece.1.get(32..48) == Some(fsid);
    let nodes: Vec<u64> = file.pieces.iter().filter(|piece| is_node(piece)).map(|piece| piece.0).collect();
    for (at, len) in nodes.into_iter().map(|at| (at, node)).chain([(65536, 4096)]) {
        let sum = crc32c::crc32c(&file.get(at, len as usize)[32..]);
        file.put(at, &sum.to_le_bytes());
    }
}

fn plain(state: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!state, bytes)
}

/// Only with metadata_csum, and for the first groups.
fn seal_ext(file: &mut Sparse) {
    let bytes = file.get(1024, 1024);
    let block = 1024 << (le(&bytes, 0x18) & 3);
    let wide = le(&bytes, 0x60) & 0x80 != 0;
    let size = if wide { (le(&bytes, 0xfe) & 0xffff).clamp(64, 1024) } else { 32 };
    let seed =
        if le(&bytes, 0x60) & 0x2000 != 0 { le(&bytes, 0x270) as u32 } else { plain(!0, &bytes[0x68..0x78]) };
    let covered = (le(&bytes, 0x20) / 8).min(block);
    for group in 0..4u32 {
        let at = (le(&bytes, 0x14) + 1) * block + u64::from(group) * size;
        let mut desc = file.get(at, size as usize);
        let high = if wide { le(&desc, 0x20) << 32 } else { 0 };
        let bitmap = file.get(((le(&desc, 0) | high) & 0xff_ffff_ffff) * block, covered as usize);
        let sum = plain(seed, &bitmap).to_le_bytes();
        desc[24..26].copy_from_slice(&sum[..2]);
        if wide {
            desc[56..58].copy_from_slice(&sum[2..]);
        }
        desc[30..32].fill(0);
        let sum = plain(plain(seed, &group.to_le_bytes()), &desc).to_le_bytes();
        desc[30..32].copy_from_slice(&sum[..2]);
        file.put(at, &desc);
    }
    file.put(1024 + 0x3fc, &plain(!0, &file.get(1024, 0x3fc)).to_le_bytes());
}

/// CRC32, bit by bit: little is summed up here.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |state, &byte| {
        (0..8).fold(state ^ u32::from(byte), |state, _| {
            (state >> 1) ^ if state & 1 == 1 { 0xedb8_8320 } else { 0 }
        })
    })
}

fn seal_gpt(file: &mut Sparse) {
    let mut header = file.get(512, 92);
    let len = (le(&header, 80) * le(&header, 84)).min(4096) as usize;
    let table = file.get((le(&header, 72)) * 512, len);
    header[88..92].copy_from_slice(&crc32(&table).to_le_bytes());
    header[12..16].copy_from_slice(&92u32.to_le_bytes());
    header[16..20].fill(0);
    let sum = crc32(&header);
    header[16..20].copy_from_slice(&sum.to_le_bytes());
    file.put(512, &header);
}
