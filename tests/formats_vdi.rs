//! The reader of VDI: files made by hand for each refusal, and qemu-img as the oracle for what opens. Without
//! qemu-img those tests print a note and pass. `IMGSTORE_FORMAT_IMAGES` is the number of random images.

mod common;
#[path = "common/qemu.rs"]
mod qemu;
#[path = "../fuzz/src/sparse.rs"]
mod sparse;

use common::Draw;
use imgstore::disk::formats::{Limits, vdi};
use imgstore::disk::open::{Declared, open_disk, open_raw};
use imgstore::disk::{DiskError, DiskRead};
use qemu::*;
use sparse::{Sparse, vdi as small_vdi};
use std::fs;
use std::path::Path;
use std::sync::Arc;

fn open(file: &Sparse) -> Result<vdi::Vdi, DiskError> {
    vdi::open(Arc::new(file.clone()), Path::new("disk"), &Limits::default())
}

/// Changes the file that `small_vdi()` is, and expects a refusal.
fn refused(words: &str, change: impl Fn(&mut Sparse)) {
    let mut file = small_vdi();
    change(&mut file);
    let Err(error) = open(&file) else { panic!("opened, instead of: {words}") };
    let is_refusal = matches!(error, DiskError::Refused { .. });
    assert!(is_refusal && error.to_string().contains(words), "{error}, instead of: {words}");
}

/// Puts a word into the header.
fn put(at: u64, word: u32) -> impl Fn(&mut Sparse) {
    move |file| file.put(at, &word.to_le_bytes())
}

#[test]
fn a_vdi_reads_as_its_map_says() {
    let disk = open(&small_vdi()).unwrap();
    let mut expected = vec![0; 14848];
    expected[100..105].copy_from_slice(b"first");
    expected[14843..].copy_from_slice(b"third");
    let mut found = vec![0xaa; 14848];
    assert_eq!(disk.len_bytes(), 14848);
    disk.read_at(0, &mut found).unwrap();
    assert_eq!(found, expected);
    let mut found = vec![0xaa; 9000];
    disk.read_at(50, &mut found).unwrap();
    assert_eq!(found, expected[50..9050]);
    assert!(disk.read_at(14848, &mut [0]).is_err() && disk.read_at(u64::MAX, &mut [0]).is_err());
    let extent = disk.extent_at(105).unwrap();
    assert!(extent.is_zero && extent.end == 14843, "{extent:?}");
    // A size that is not whole sectors is rounded up.
    let mut file = small_vdi();
    file.put(0x170, &(14848u64 - 511).to_le_bytes());
    assert_eq!(open(&file).unwrap().len_bytes(), 14848);
    // A fixed disk differs by its type only.
    let mut file = small_vdi();
    file.put(0x4c, &[2]);
    assert!(open(&file).is_ok());
}

#[test]
fn a_vdi_with_a_bad_header_is_refused() {
    refused("shorter than a header", |file| file.len = 0x1c7);
    refused("does not have the signature", put(0x40, 0));
    refused("its version is 1.0", put(0x44, 0x1_0000));
    refused("its version is 2.1", put(0x44, 0x2_0001));
    refused("its header says that it has 383 bytes", put(0x48, 0x17f));
    refused("do not lie behind each other", put(0x48, 0x1c0));
    refused("the unknown type 0", put(0x4c, 0));
    refused("the unknown type 5", put(0x4c, 5));
    refused("it has a parent", put(0x4c, 4));
    refused("it has a parent", put(0x4c, 3));
    refused("it names a parent", put(0x1a8, 1));
    refused("it names a parent", put(0x1c4, 1));
    refused("the limit is", put(0x174, 0x4001));
    for block_bytes in [0, 256, 5000, 1 << 29, u32::MAX] {
        refused("are not a power of two", put(0x178, block_bytes));
    }
    refused("it has sectors of 4096 bytes", put(0x168, 4096));
    refused("8 more bytes a block", put(0x17c, 8));
    refused("block map lies after", put(0x154, 30_000));
    refused("block map lies after", put(0x180, u32::MAX));
    refused("do not lie behind each other", put(0x154, 0x100));
    refused("do not lie behind each other", put(0x158, 527));
    refused("has 4 entries; the disk has 5 blocks", put(0x171, 0x41));
    refused("larger than the 67108864 bytes allowed", |file| {
        file.put(0x170, &(1u64 << 40).to_le_bytes());
        put(0x158, (1 << 30) + 512)(file);
        put(0x180, 1 << 28)(file);
        file.len = 1 << 31;
    });
    let mut file = small_vdi();
    file.put(0x170, &[0; 8]);
    assert!(matches!(open(&file), Err(DiskError::Empty { .. })));
    let limits = Limits { virtual_bytes: 14847, ..Limits::default() };
    assert!(vdi::open(Arc::new(small_vdi()), Path::new("disk"), &limits).is_err());
}

#[test]
fn a_vdi_whose_blocks_lie_wrong_is_refused() {
    refused("block 1 is number 4 in the file, of 4", put(516, 4));
    refused("block 1 is number 4294967293 in the file", put(516, u32::MAX - 2));
    refused("block 1 lies after the file's end", put(516, 2));
    refused("block 0 of the file is used twice", put(516, 0));
    refused("block 0 lies after the file's end", |file| file.len -= 1);
    // The last block is as long as the disk has bytes in it.
    let mut file = small_vdi();
    put(524, 2)(&mut file);
    file.len = 1024 + 2 * 4096 + 2560;
    assert!(open(&file).is_ok());
}

fn open_file(path: &Path) -> Result<Box<dyn DiskRead>, DiskError> {
    vdi::open(Arc::from(open_raw(path)?), path, &Limits::default()).map(|disk| Box::new(disk) as _)
}

#[test]
fn random_images_read_as_qemu_img_reads_them() {
    if !has_qemu_img() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let [raw, made, back] = ["raw", "made", "back"].map(|name| dir.path().join(name));
    for seed in 0..images() {
        let mut draw = Draw::new(seed + 1);
        let len = match draw.below(4) {
            0 => 1 + draw.next() % 100_000,
            3 => 1 + draw.next() % (96 << 20),
            _ => 1 + draw.next() % (6 << 20),
        };
        let pieces = draw.below(12);
        write_raw(&raw, len, pieces, &mut draw);
        let kind = ["static=off", "static=on"][draw.below(2)];
        qemu_img(&["convert", "-f", "raw", "-O", "vdi", "-o", kind, utf8(&raw), utf8(&made)]);
        qemu_img(&["convert", "-f", "vdi", "-O", "raw", utf8(&made), utf8(&back)]);
        let disk = open_disk(&made, Declared::Nothing, &Limits::default()).unwrap();
        assert_eq!(disk.format, "VDI");
        assert_same(&*disk.disk, &back, &mut draw, &format!("{kind}, seed {seed}"));
        flip_bytes(&made, &[0x40, 0x100, 0x150, 0x150, 512], open_file, &mut draw);
    }
    assert!(fs::metadata(&back).is_ok());
}
