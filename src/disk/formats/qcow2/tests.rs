//! Files made by hand: what is read, and every refusal. tests/formats_qcow2.rs asks QEMU.

use super::*;
use flate2::{Compress, Compression, FlushCompress};

struct Bytes(Vec<u8>);

impl DiskRead for Bytes {
    fn len_bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn extent_at(&self, offset: u64) -> Result<Extent, DiskError> {
        Ok(Extent { start: offset, end: self.len_bytes(), is_zero: false })
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        let at = usize::try_from(offset).unwrap();
        buffer.copy_from_slice(&self.0[at..at + buffer.len()]);
        Ok(())
    }
}

const CLUSTER: usize = 512;
const LEN: usize = 7 * CLUSTER + 100;
const REFCOUNTS: usize = CLUSTER;
const L1: usize = 3 * CLUSTER;
const L2: usize = 4 * CLUSTER;
const COPIED: u64 = 1 << 63;

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn deflated(raw: &[u8]) -> Vec<u8> {
    let mut stored = Vec::with_capacity(1024);
    let mut deflate = Compress::new(Compression::best(), false);
    deflate.compress_vec(raw, &mut stored, FlushCompress::Finish).unwrap();
    stored
}

/// The entry of a compressed cluster of 512 bytes.
fn compressed(host: usize, sectors: u64) -> u64 {
    (1 << 62) | ((sectors - 1) << 61) | host as u64
}

/// A file of version 3 with one L2 table and a cluster of each kind, and its disk's bytes.
fn image() -> (Vec<u8>, Vec<u8>) {
    let mut file = vec![0; 8 * CLUSTER];
    put(&mut file, 0, b"QFI\xfb\0\0\0\x03");
    let numbers: [(usize, u64); 4] = [(24, LEN as u64), (40, L1 as u64), (48, REFCOUNTS as u64), (64, 0)];
    for (at, number) in numbers {
        put(&mut file, at, &number.to_be_bytes());
    }
    for (at, number) in [(20, 9_u32), (36, 1), (56, 1), (96, 4), (100, 104)] {
        put(&mut file, at, &number.to_be_bytes());
    }
    put(&mut file, L1, &(L2 as u64 | COPIED).to_be_bytes());
    let words: Vec<u8> = b"squeeze ".iter().copied().cycle().take(CLUSTER).collect();
    let stored = deflated(&words);
    let data = |fill: u8| vec![fill; CLUSTER];
    let clusters: [(u64, Vec<u8>); 8] = [
        ((5 * 512) | COPIED, data(5)),
        (6 * 512, data(6)),
        (1, data(0)),
        (0, data(0)),
        ((6 * 512) | 1, data(0)),
        (compressed(7 * 512 + 3, 1), words.clone()),
        (5 * 512, data(5)),
        (7 * 512, data(0)),
    ];
    let mut disk = Vec::new();
    for (at, (entry, bytes)) in clusters.into_iter().enumerate() {
        put(&mut file, L2 + 8 * at, &entry.to_be_bytes());
        disk.extend(bytes);
    }
    file[5 * CLUSTER..6 * CLUSTER].fill(5);
    file[6 * CLUSTER..7 * CLUSTER].fill(6);
    put(&mut file, 7 * CLUSTER + 3, &stored);
    let last = file[7 * CLUSTER..].to_vec();
    put(&mut disk, 7 * CLUSTER, &last);
    disk.truncate(LEN);
    (file, disk)
}

fn opened(file: Vec<u8>) -> Result<Qcow2, DiskError> {
    open(Arc::new(Bytes(file)), Path::new("disk.qcow2"), &Limits::default())
}

fn refusal(file: Vec<u8>) -> String {
    let whole = opened(file).and_then(|disk| {
        disk.extent_at(0)?;
        disk.read_at(0, &mut vec![0; usize::try_from(disk.len_bytes()).unwrap()])
    });
    match whole {
        Ok(()) => "it was read".to_owned(),
        Err(DiskError::Refused { why, cure, .. }) => {
            assert!(!cure.is_empty());
            why
        }
        Err(error) => error.to_string(),
    }
}

#[test]
fn every_kind_of_cluster_is_read() {
    let (file, disk) = image();
    let qcow2 = opened(file).unwrap();
    assert_eq!(qcow2.len_bytes(), LEN as u64);
    for start in [0, 1, 511, 512, 2560, 2561, 3000, LEN - 1, LEN] {
        for end in (start..=LEN).step_by(97).chain([LEN]) {
            let mut read = vec![0xaa; end - start];
            qcow2.read_at(start as u64, &mut read).unwrap();
            assert_eq!(read, disk[start..end], "{start}..{end}");
        }
    }
    let ends: Vec<_> = [0, 600, 1024, 1600, 2560].map(|at| qcow2.extent_at(at).unwrap()).to_vec();
    let expected =
        [(0, 1024, false), (600, 1024, false), (1024, 2560, true), (1600, 2560, true), (2560, 3684, false)];
    assert_eq!(ends, expected.map(|(start, end, is_zero)| Extent { start, end, is_zero }));
    assert!(qcow2.notes().is_empty());
    assert!(qcow2.extent_at(LEN as u64).is_err() && qcow2.read_at(LEN as u64, &mut [0]).is_err());
    assert!(qcow2.read_at(u64::MAX, &mut [0]).is_err());
}

#[test]
fn version_2_is_read_and_has_no_zero_clusters() {
    let (mut file, disk) = image();
    file[7] = 2;
    file[72..112].fill(0);
    assert!(refusal(file.clone()).contains("reserved bits"));
    for entry in [2, 4] {
        file[L2 + 8 * entry..][..8].fill(0);
    }
    let mut read = vec![1; LEN];
    opened(file).unwrap().read_at(0, &mut read).unwrap();
    assert_eq!(read, disk);
}

/// What is missing of a file is not taken for zeros; behind the end of the disk nothing need be there.
#[test]
fn a_cluster_that_is_cut_off_is_refused() {
    let (mut file, mut disk) = image();
    put(&mut file, L2 + 40, &[0; 8]);
    disk[5 * CLUSTER..6 * CLUSTER].fill(0);
    let used = 7 * CLUSTER + (LEN - 1) % CLUSTER + 1;
    file.truncate(used);
    let mut read = vec![1; LEN];
    opened(file.clone()).unwrap().read_at(0, &mut read).unwrap();
    assert_eq!(read, disk);
    file.truncate(used - 1);
    assert!(refusal(file.clone()).contains("after the file's end"));
    file.truncate(7 * CLUSTER);
    assert!(refusal(file).contains("no cluster"));
}

#[test]
fn snapshots_and_bitmaps_are_left_out_with_a_note() {
    let (mut file, _) = image();
    put(&mut file, 60, &2_u32.to_be_bytes());
    put(&mut file, 64, &(7 * 512_u64).to_be_bytes());
    file[95] = 1;
    let notes = opened(file).unwrap().notes();
    assert_eq!(notes.len(), 2);
    assert!(notes[0].starts_with("2 internal snapshots"));
}

#[test]
fn what_is_wrong_in_a_header_is_refused() {
    // Where, how many bytes, which number, and what is said.
    let faults: [(usize, usize, u64, &str); 49] = [
        (0, 1, 0, "signature"),
        (4, 4, 1, "version 1"),
        (4, 4, 4, "version 4"),
        (8, 8, 512, "backing file"),
        (16, 4, 7, "backing file"),
        (20, 4, 8, "2^8 bytes"),
        (20, 4, 22, "2^22 bytes"),
        (20, 4, u64::MAX, "bytes, not"),
        (24, 8, u64::MAX, "the limit is"),
        (24, 8, (64 << 40) + 1, "the limit is"),
        (24, 8, 0, "is empty"),
        (24, 8, 64 * 512 + 1, "its size needs 2"),
        (32, 4, 1, "AES"),
        (32, 4, 2, "LUKS"),
        (32, 4, 9, "method 9"),
        (36, 4, 0, "L1 table has 0"),
        (36, 4, 4_194_305, "more than are ever needed"),
        (36, 4, u64::MAX, "more than are ever needed"),
        (36, 4, 400, "L1 table at byte 0x600 reaches over"),
        (40, 8, 0, "L1 table is at byte 0x0"),
        (40, 8, 256, "not on a cluster"),
        (40, 8, 1540, "not on a cluster"),
        (40, 8, 4096, "reaches over"),
        (40, 8, u64::MAX - 511, "reaches over"),
        (40, 8, 512, "lie over each other"),
        (48, 8, 0, "refcount table is at byte 0x0"),
        (48, 8, 4096, "reaches over"),
        (48, 8, 520, "not on a cluster"),
        (56, 4, 0, "refcount table has 0"),
        (56, 4, 8, "reaches over"),
        (56, 4, 16385, "refcount table has 16385"),
        (56, 4, u64::MAX, "refcount table has"),
        (60, 4, 1, "snapshot table is at byte 0x0"),
        (60, 4, 65537, "65537 snapshots"),
        (72, 8, 1, "dirty"),
        (72, 8, 2, "corrupt"),
        (72, 8, 4, "another file"),
        (72, 8, 8, "contradict each other"),
        (72, 8, 16, "2^14 to 2^21"),
        (72, 8, 32, "bits 0x20"),
        (72, 8, 1 << 63, "not known here"),
        (88, 8, 2, "another file"),
        (96, 4, 7, "2^7 bits"),
        (100, 4, 72, "header has 72"),
        (100, 4, 108, "header has 108"),
        (100, 4, 520, "more than its first cluster"),
        (100, 4, 0xffff_fff8, "more than its first cluster"),
        (104, 4, 0x0537_be77, "encryption header"),
        (104, 4, 0x4441_5441, "names another file"),
    ];
    for (at, width, number, expected) in faults {
        let (mut file, _) = image();
        put(&mut file, at, &number.to_be_bytes()[8 - width..]);
        let why = refusal(file);
        assert!(why.contains(expected), "{at}: {number:#x}: {why}");
    }
    for (bytes, expected) in [(0, "signature"), (71, "inside its header"), (103, "inside its header")] {
        let (mut file, _) = image();
        file.truncate(bytes);
        assert!(refusal(file).contains(expected), "{bytes}");
    }
}

#[test]
fn header_extensions_and_compression_types() {
    let with = |length: u32, incompatible: u8, tail: &[u8]| {
        let (mut file, _) = image();
        put(&mut file, 100, &length.to_be_bytes());
        file[79] = incompatible;
        put(&mut file, 104, tail);
        refusal(file)
    };
    assert_eq!(with(112, 0, &[0]), "it was read");
    assert!(with(112, 8, &[1]).contains("does not decompress"), "deflate is not zstd");
    assert!(with(112, 0, &[1]).contains("contradict"));
    assert!(with(112, 8, &[0]).contains("contradict"));
    assert!(with(112, 8, &[2]).contains("compression type 2"));
    let known = [&b"\x68\x03\xf8\x57\0\0\0\x05abcdefgh"[..], &[0; 8]].concat();
    assert_eq!(with(104, 0, &known), "it was read");
    let second = [&b"\x68\x03\xf8\x57\0\0\0\x05abcdefgh"[..], b"DATA\0\0\0\x0b/etc/shadow"].concat();
    assert!(with(104, 0, &second).contains("names another file"));
    assert!(with(104, 0, b"abcd\0\0\x02\0").contains("reaches over"));
    assert!(with(104, 0, b"abcd\xff\xff\xff\xff").contains("reaches over"));
}

#[test]
fn what_is_wrong_in_a_table_is_refused() {
    let stored = compressed(7 * 512 + 3, 1);
    let faults: [(usize, u64, &str); 18] = [
        (L1, L2 as u64 | 1, "reserved bits"),
        (L1, L2 as u64 | (1 << 62), "reserved bits"),
        (L1, 8 * 512, "not a cluster of the file"),
        (L1, 0x00ff_ffff_ffff_fe00, "not a cluster of the file"),
        (L1, 1 << 56, "reserved bits"),
        (L2, (5 * 512) | 2, "reserved bits"),
        (L2, (5 * 512) | (1 << 56), "reserved bits"),
        (L2, (5 * 512) | (1 << 61), "reserved bits"),
        (L2, 8 * 512, "no cluster"),
        (L2, 0x00ff_ffff_ffff_fe00, "no cluster"),
        (L2 + 8, 0x00ff_ffff_ffff_fe00 | 1, "no cluster"),
        (L2 + 40, stored + 1, "whole cluster"),
        (L2 + 40, compressed(100, 1), "outside of the file"),
        (L2 + 40, compressed(8 * 512, 2), "outside of the file"),
        (L2 + 40, compressed(8 * 512 - 1, 2), "whole cluster"),
        (L2 + 40, (1 << 62) - 1 + (1 << 62), "outside of the file"),
        (L2 + 40, compressed(5 * 512, 2), "whole cluster"),
        (L2 + 8, 1 << 62, "outside of the file"),
    ];
    for (at, entry, expected) in faults {
        let (mut file, _) = image();
        put(&mut file, at, &entry.to_be_bytes());
        let why = refusal(file);
        assert!(why.contains(expected), "{at}: {entry:#x}: {why}");
    }
}

#[test]
fn a_compressed_cluster_has_exactly_a_clusters_bytes() {
    for (raw_bytes, expected) in [(511, "whole cluster"), (512, "it was read"), (513, "whole cluster")] {
        for is_zstd in [false, true] {
            let (mut file, _) = image();
            let raw = vec![7; raw_bytes];
            let stored = if is_zstd { zstd::bulk::compress(&raw, 3).unwrap() } else { deflated(&raw) };
            if is_zstd {
                file[103] = 112;
                file[79] = 8;
                file[104] = 1;
            }
            file[7 * CLUSTER + 3..].fill(0x55);
            put(&mut file, 7 * CLUSTER + 3, &stored);
            let why = refusal(file);
            assert!(why.contains(expected), "{raw_bytes} {is_zstd}: {why}");
        }
    }
}

/// A file with extended entries, its first cluster's entry and subclusters given.
fn extended(entry: u64, parts: u64) -> Vec<u8> {
    const CLUSTER: usize = 1 << 14;
    let (mut file, _) = image();
    file.resize(6 * CLUSTER, 0);
    file[512..].fill(0);
    file[79] = 16;
    put(&mut file, 20, &14_u32.to_be_bytes());
    put(&mut file, 24, &(CLUSTER as u64).to_be_bytes());
    put(&mut file, 40, &(3 * CLUSTER as u64).to_be_bytes());
    put(&mut file, 48, &(CLUSTER as u64).to_be_bytes());
    put(&mut file, 3 * CLUSTER, &(4 * CLUSTER as u64).to_be_bytes());
    put(&mut file, 4 * CLUSTER, &entry.to_be_bytes());
    put(&mut file, 4 * CLUSTER + 8, &parts.to_be_bytes());
    file[5 * CLUSTER..].fill(9);
    file
}

#[test]
fn subclusters_are_there_or_zeros() {
    let qcow2 = opened(extended(5 << 14, 0b101 | 1 << 33)).unwrap();
    let mut read = vec![1; 1 << 14];
    qcow2.read_at(0, &mut read).unwrap();
    let filled = |part: usize| if part == 0 || part == 2 { 9 } else { 0 };
    assert!(read.chunks(512).enumerate().all(|(at, part)| part.iter().all(|&byte| byte == filled(at))));
    let extents = [0, 512, 1024, 1600].map(|at| qcow2.extent_at(at).unwrap());
    assert_eq!(
        extents.map(|extent| (extent.end, extent.is_zero)),
        [(512, false), (1024, true), (1536, false), (1 << 14, true)]
    );
    for (entry, parts, expected) in [
        (5 << 14, 1 | 1 << 32, "contradict each other"),
        (0, 1, "contradict each other"),
        (5 << 14 | 1, 1, "reserved bits"),
        (1 << 62 | 5 << 14, 1, "has subclusters"),
        (6 << 14, 1, "no cluster"),
        (5 << 14 | 512, 1, "no cluster"),
        (0, 1 << 32, "it was read"),
    ] {
        let why = refusal(extended(entry, parts));
        assert!(why.contains(expected), "{entry:#x} {parts:#x}: {why}");
    }
}

#[test]
fn limits_are_kept() {
    let (file, disk) = image();
    let file = Arc::new(Bytes(file));
    let small = Limits { virtual_bytes: LEN as u64 - 1, metadata_bytes: 4096 };
    assert!(open(file.clone(), Path::new("x"), &small).is_err());
    let no_tables = Limits { virtual_bytes: LEN as u64, metadata_bytes: 7 };
    assert!(open(file.clone(), Path::new("x"), &no_tables).is_err());
    let one_table = Limits { virtual_bytes: LEN as u64, metadata_bytes: 8 };
    let mut read = vec![1; LEN];
    open(file, Path::new("x"), &one_table).unwrap().read_at(0, &mut read).unwrap();
    assert_eq!(read, disk);
}

/// Nothing but the L1 table is needed to pass over what is not there.
#[test]
fn what_has_no_l2_table_is_passed_over_at_once() {
    let (mut file, _) = image();
    let size: u64 = 60 * 64 * 512;
    put(&mut file, 24, &size.to_be_bytes());
    put(&mut file, 36, &60_u32.to_be_bytes());
    put(&mut file, L1, &[0; 8]);
    let qcow2 = opened(file.clone()).unwrap();
    assert_eq!(qcow2.extent_at(5).unwrap(), Extent { start: 5, end: size, is_zero: true });
    put(&mut file, L1 + 59 * 8, &(L2 as u64).to_be_bytes());
    let extent = opened(file).unwrap().extent_at(5).unwrap();
    assert_eq!(extent, Extent { start: 5, end: 59 * 64 * 512, is_zero: true });
}
