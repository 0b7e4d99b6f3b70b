//! What is written is read, and every cluster is counted as often as it is used. tests/formats_qcow2.rs asks
//! QEMU.

use super::*;
use crate::disk::formats::Limits;
use crate::disk::formats::memory::{Draw, MemoryFile, disk, read_whole, write_in_pieces};
use crate::disk::formats::qcow2::open;
use crate::io::disk::DiskRead;
use std::sync::Arc;

fn pool() -> ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap()
}

fn created<'a>(
    file: &MemoryFile,
    bytes: u64,
    is_compressed: bool,
    pool: &'a ThreadPool,
) -> Box<dyn DiskWrite + 'a> {
    create(Box::new(file.clone()), Path::new("x.qcow2"), bytes, Options { is_compressed }, pool).unwrap()
}

fn opened(file: &MemoryFile) -> impl DiskRead + use<> {
    let limits = Limits { virtual_bytes: u64::MAX, ..Limits::default() };
    open(Arc::new(file.clone()), Path::new("x.qcow2"), &limits).unwrap()
}

fn number(file: &MemoryFile, at: u64, bytes: u64) -> u64 {
    file.bytes(at, bytes).iter().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

fn words(file: &MemoryFile, at: u64, count: u64) -> Vec<u64> {
    file.bytes(at, count * 8).as_chunks().0.iter().map(|&word| u64::from_be_bytes(word)).collect()
}

/// What uses each cluster, counted by the tables; must be what the refcounts say. Returns how many clusters of
/// the disk are plain and compressed, and the highest count.
fn check_counts(file: &MemoryFile) -> (usize, usize, u16) {
    let clusters = file.len_bytes() / CLUSTER;
    assert_eq!(file.len_bytes() % CLUSTER, 0);
    let mut counts = vec![0_u16; usize::try_from(clusters).unwrap()];
    let mut use_once = |start: u64, bytes: u64| {
        for cluster in start / CLUSTER..(start + bytes).div_ceil(CLUSTER) {
            counts[cluster as usize] += 1;
        }
    };
    let offset = |entry: u64| entry & !COPIED;
    use_once(0, CLUSTER);
    let (l1_entries, l1, table) = (number(file, 36, 4), number(file, 40, 8), number(file, 48, 8));
    let table_clusters = number(file, 56, 4);
    use_once(l1, l1_entries * 8);
    use_once(table, table_clusters * CLUSTER);
    let blocks = words(file, table, table_clusters * ENTRIES);
    let (mut plain, mut compressed) = (0, 0);
    for &block in blocks.iter().filter(|&&block| block != 0) {
        use_once(block, CLUSTER);
    }
    for entry in words(file, l1, l1_entries).into_iter().filter(|&entry| entry != 0) {
        assert_eq!(entry & COPIED, COPIED);
        use_once(offset(entry), CLUSTER);
        for entry in words(file, offset(entry), ENTRIES).into_iter().filter(|&entry| entry != 0) {
            if entry & COMPRESSED == 0 {
                assert_eq!((entry & COPIED, offset(entry) % CLUSTER), (COPIED, 0));
                use_once(offset(entry), CLUSTER);
                plain += 1;
            } else {
                assert_eq!(entry & COPIED, 0);
                let start = entry & ((1 << SECTORS_BIT) - 1);
                let sectors = (entry & !COMPRESSED) >> SECTORS_BIT;
                use_once(start, (sectors + 1) * SECTOR - start % SECTOR);
                compressed += 1;
            }
        }
    }
    for (cluster, &count) in counts.iter().enumerate() {
        let (block, slot) = (blocks[cluster / (CLUSTER_BYTES / 2)], cluster as u64 % (CLUSTER / 2));
        assert_eq!(number(file, block + slot * 2, 2), u64::from(count), "cluster {cluster}");
    }
    assert!(blocks.iter().skip(counts.len().div_ceil(CLUSTER_BYTES / 2)).all(|&block| block == 0));
    (plain, compressed, counts.into_iter().max().unwrap())
}

#[test]
fn what_is_written_is_read() {
    let pool = pool();
    for seed in 0..40 {
        let mut draw = Draw(seed);
        let len = [1 + draw.below(5000), 65_536 * (1 + draw.below(100)), 1 + draw.below(9 << 20)]
            [seed as usize % 3];
        let mut expected = disk(len, &mut draw);
        let file = MemoryFile::default();
        let mut target = created(&file, len as u64, seed % 2 == 0, &pool);
        write_in_pieces(&mut *target, &expected, &mut draw);
        assert!(!file.is_closed());
        target.finish().unwrap();
        assert!(file.is_closed());
        expected.resize(len.next_multiple_of(512), 0);
        assert!(read_whole(&opened(&file)) == expected, "disk {seed}");
        let (plain, compressed, _) = check_counts(&file);
        let full = expected.chunks(CLUSTER_BYTES).filter(|cluster| cluster.iter().any(|&b| b != 0)).count();
        assert_eq!(plain + compressed, full);
        assert!(seed % 2 == 0 || compressed == 0);
    }
}

#[test]
fn compressed_clusters_share_host_clusters() {
    let (pool, file) = (pool(), MemoryFile::default());
    let mut target = created(&file, 1000 * CLUSTER, true, &pool);
    let mut draw = Draw(1);
    let noise: Vec<u8> = (0..2 << 20).map(|_| draw.below(256) as u8).collect();
    let mut expected = Vec::new();
    for number in 0..1000 {
        let mut cluster = vec![number as u8 | 1; CLUSTER_BYTES];
        let noisy = [0, 100, 30_000, 50_000, CLUSTER_BYTES][draw.below(5)];
        cluster[..noisy].copy_from_slice(&noise[number * 1000..][..noisy]);
        target.write_at(number as u64 * CLUSTER, &cluster).unwrap();
        expected.extend(cluster);
    }
    target.finish().unwrap();
    let (_, compressed, most) = check_counts(&file);
    assert!(compressed > 500 && most > 5, "{compressed} compressed, {most} in one");
    assert!(read_whole(&opened(&file)) == expected);
}

#[test]
fn a_file_has_more_than_one_refcount_block() {
    let (pool, file, clusters) = (pool(), MemoryFile::default(), 33_000);
    let mut target = created(&file, clusters * CLUSTER, false, &pool);
    // Of the file only these bytes take memory.
    let mut cluster = vec![0; CLUSTER_BYTES];
    for number in 0..clusters {
        cluster[..8].copy_from_slice(&(number + 1).to_be_bytes());
        target.write_at(number * CLUSTER, &cluster).unwrap();
    }
    target.finish().unwrap();
    assert_eq!(check_counts(&file), (33_000, 0, 1));
    let read = opened(&file);
    for at in [0, 32_000, 32_740, 32_770, 32_999] {
        let mut found = [0; 8];
        read.read_at(at * CLUSTER, &mut found).unwrap();
        assert_eq!(u64::from_be_bytes(found), at + 1);
    }
}

/// Compressed clusters up to the end of what one refcount block counts, and after it.
#[test]
fn packed_clusters_do_not_cross_into_another_refcount_block() {
    let file = MemoryFile::default();
    let mut host = Host::new(Box::new(file.clone()), Path::new("x"), 100_000, 13);
    let first = host.put_packed(&[1; 60_000]).unwrap();
    assert_eq!(host.put_packed(&[2; 60_000]).unwrap(), first + 60_000);
    while host.put_cluster(&[3; 512]).unwrap() < (32_768 - 3) * CLUSTER {}
    let places: Vec<u64> = (0..4).map(|_| host.put_packed(&[4; 50_000]).unwrap()).collect();
    let start = (32_768 - 2) * CLUSTER;
    let next = 32_769 * CLUSTER;
    assert_eq!(places, [start, start + 50_000, next, next + 50_000]);
    host.close(100_000 * CLUSTER, false).unwrap();
    let blocks = words(&file, 2 * CLUSTER, 3);
    assert_eq!(blocks, [CLUSTER, 32_768 * CLUSTER, 0]);
    let counts = |block: u64, from: u64| number(&file, block + from * 2, 8);
    assert_eq!(counts(CLUSTER, 32_764), 0x0001_0001_0002_0001);
    assert_eq!(counts(32_768 * CLUSTER, 0), 0x0001_0002_0001_0000);
    assert_eq!(file.len_bytes(), 32_771 * CLUSTER);
}

#[test]
fn the_largest_disks_cost_what_is_in_them() {
    let pool = pool();
    for (bytes, file_clusters) in [(64 << 40, 40), (GUEST_BYTES_MAX, 700)] {
        let file = MemoryFile::default();
        let mut target = created(&file, bytes, true, &pool);
        target.write_at(0, b"first").unwrap();
        for at in (4096..bytes - 4096).step_by(1 << 40) {
            target.zero_at(at, (bytes - 4096 - at).min(1 << 40)).unwrap();
        }
        target.write_at(bytes - 4096, b"last").unwrap();
        target.finish().unwrap();
        assert!(file.len_bytes() < file_clusters * CLUSTER, "{}", file.len_bytes());
        assert_eq!(check_counts(&file), (0, 2, 2));
        let mut found = [0; 4];
        opened(&file).read_at(bytes - 4096, &mut found).unwrap();
        assert_eq!(&found, b"last");
    }
}

#[test]
fn a_disk_of_zeros_is_whole() {
    let pool = pool();
    for bytes in [1, 512, CLUSTER, 1 << 40] {
        let file = MemoryFile::default();
        created(&file, bytes, false, &pool).finish().unwrap();
        assert_eq!(check_counts(&file), (0, 0, 1));
        assert_eq!(opened(&file).len_bytes(), bytes.max(512));
        assert!(opened(&file).extent_at(0).unwrap().is_zero);
    }
}

#[test]
fn what_cannot_be_held_is_refused_and_failures_are_told() {
    let pool = pool();
    let create = |bytes| {
        let options = Options { is_compressed: false };
        create(Box::new(MemoryFile::default()), Path::new("x"), bytes, options, &pool).map(drop)
    };
    assert!(matches!(create(0), Err(DiskError::Empty { .. })));
    create(2 << 50).unwrap();
    for bytes in [(2 << 50) + 1, u64::MAX] {
        assert!(matches!(create(bytes), Err(DiskError::TooLong { limit, .. }) if limit == 2 << 50));
    }
    let mut puts = 0;
    loop {
        let file = MemoryFile::failing_after(puts);
        let mut target = created(&file, 200 * CLUSTER, true, &pool);
        let written = (0..4).try_for_each(|at| target.write_at(at * 50 * CLUSTER, &vec![7; 40 << 16]));
        let finished = target.finish();
        assert_eq!(file.is_closed(), finished.is_ok());
        if finished.is_ok() {
            break;
        }
        assert!(written.is_ok() || puts < 160);
        puts += 1;
    }
    assert!(puts > 160);
}
