//! The readers of VHD and VHDX: files made by hand for each refusal, and qemu-img as the oracle for what opens.
//! Without qemu-img those tests print a note and pass. `IMGSTORE_FORMAT_IMAGES` is the number of random images.

mod common;
#[path = "common/qemu.rs"]
mod qemu;
#[path = "../fuzz/src/sparse.rs"]
mod sparse;

use common::Draw;
use imgstore::disk::detect::Foreign;
use imgstore::disk::formats::{Limits, vhd, vhdx};
use imgstore::disk::open::{Declared, open_disk, open_raw};
use imgstore::disk::{DiskError, DiskRead};
use qemu::*;
use sparse::*;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

const MIB: u64 = 1 << 20;

fn open_vhdx(file: &Sparse) -> Result<vhdx::Vhdx, DiskError> {
    vhdx::open(Arc::new(file.clone()), Path::new("disk"), &Limits::default())
}

fn open_vhd(file: &Sparse) -> Result<vhd::Vhd, DiskError> {
    vhd::open(Arc::new(file.clone()), Path::new("disk"), &Limits::default())
}

fn bytes_of(disk: &dyn DiskRead) -> Vec<u8> {
    let mut bytes = vec![0xaa; disk.len_bytes() as usize];
    disk.read_at(0, &mut bytes).unwrap();
    bytes
}

/// The refusal, which must say all of some words.
fn assert_refused<D>(opened: Result<D, DiskError>, words: &str) {
    let Err(error) = opened else { panic!("opened, instead of: {words}") };
    let refused = matches!(error, DiskError::Refused { .. });
    assert!(refused && error.to_string().contains(words), "{error}, instead of: {words}");
}

/// Changes the file that `vhdx()` is, seals it anew, and expects a refusal.
fn vhdx_refused(words: &str, change: impl Fn(&mut Sparse)) {
    let mut file = vhdx();
    change(&mut file);
    seal_vhdx(&mut file);
    assert_refused(open_vhdx(&file), words);
}

/// Puts bytes into both copies of a header or region table.
fn put_both(file: &mut Sparse, first: u64, at: u64, bytes: &[u8]) {
    file.put(first + at, bytes);
    file.put(first + (64 << 10) + at, bytes);
}

const HEADERS: u64 = 64 << 10;
const REGIONS: u64 = 192 << 10;

#[test]
fn a_vhdx_reads_as_its_blocks_say() {
    let disk = open_vhdx(&vhdx()).unwrap();
    let mut expected = vec![0; 7 << 19];
    expected[1000..1005].copy_from_slice(b"first");
    expected[(3 << 20) - 5..3 << 20].copy_from_slice(b"third");
    assert!(bytes_of(&disk) == expected);
    let extents: Vec<_> = extents(&disk);
    assert_eq!(extents[..2], [(0, 1000, true), (1000, 1005, false)]);
    assert_eq!(
        extents[2..],
        [(1005, (3 << 20) - 5, true), ((3 << 20) - 5, 3 << 20, false), (3 << 20, 7 << 19, true)]
    );
    assert!(disk.read_at(7 << 19, &mut [0]).is_err() && disk.read_at(u64::MAX, &mut [0]).is_err());
}

fn extents(disk: &dyn DiskRead) -> Vec<(u64, u64, bool)> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < disk.len_bytes() {
        let extent = disk.extent_at(at).unwrap();
        assert!(extent.start == at && extent.end > at && extent.end <= disk.len_bytes());
        found.push((at, extent.end, extent.is_zero));
        at = extent.end;
    }
    found
}

#[test]
fn every_state_of_a_block_without_bytes_is_zeros_and_unknown_ones_are_refused() {
    for state in 0..8u64 {
        // A place is of no account where the block has no bytes.
        let entry = (state | if state != 6 { 77 * MIB } else { 4 * MIB }).to_le_bytes();
        let mut file = vhdx();
        file.put(VHDX_TABLE_AT, &entry);
        match state {
            0..=3 | 5 => {
                assert!(bytes_of(&open_vhdx(&file).unwrap())[..1 << 20].iter().all(|&byte| byte == 0))
            }
            6 => assert!(open_vhdx(&file).is_ok()),
            7 => assert_refused(open_vhdx(&file), "block 0 is partly in another file"),
            _ => assert_refused(open_vhdx(&file), "block 0 is in the unknown state"),
        }
    }
}

#[test]
fn the_newer_sound_header_and_the_first_sound_region_table_count() {
    // The second header is newer: a log in the first is history, in the second it is a refusal.
    let mut file = vhdx();
    file.put(HEADERS + 48, &[9; 16]);
    seal_vhdx(&mut file);
    assert!(open_vhdx(&file).is_ok());
    file.put(2 * HEADERS + 4, b"torn");
    assert_refused(open_vhdx(&file), "the log holds changes that were not applied");
    file.put(HEADERS + 4, b"torn");
    assert_refused(open_vhdx(&file), "neither of its headers");
    let mut file = vhdx();
    file.put(REGIONS + 4, b"torn");
    assert!(open_vhdx(&file).is_ok());
    file.put(REGIONS + (64 << 10) + 4, b"torn");
    assert_refused(open_vhdx(&file), "neither of its region tables");
}

#[test]
fn a_vhdx_with_bad_headers_is_refused() {
    vhdx_refused("it does not begin with vhdxfile", |file| file.put(0, b"VHDX"));
    vhdx_refused("neither of its headers", |file| put_both(file, HEADERS, 0, b"HEAD"));
    vhdx_refused("its version is 2", |file| put_both(file, HEADERS, 66, &[2]));
    vhdx_refused("the log holds changes", |file| put_both(file, HEADERS, 63, &[1]));
    vhdx_refused("one sequence number", |file| file.put(HEADERS + 8, &[8, 0, 0, 0, 0, 0, 0, 0, 1]));
    vhdx_refused("its log does not lie at whole MiB", |file| put_both(file, HEADERS, 72, &[1]));
    vhdx_refused("its log does not lie at whole MiB", |file| put_both(file, HEADERS, 72, &[0xff; 8]));
    vhdx_refused("its log lies over its headers", |file| put_both(file, HEADERS, 72, &[0; 8]));
    vhdx_refused("lies over its log", |file| put_both(file, HEADERS, 72, &(2 * MIB).to_le_bytes()));
    vhdx_refused("it ends before", |file| file.len = 200 << 10);
    vhdx_refused("it ends before", |file| file.len = 7);
}

#[test]
fn a_vhdx_with_bad_regions_is_refused() {
    let entry = |number: u64, bytes: &[u8]| {
        let bytes = bytes.to_vec();
        move |file: &mut Sparse| put_both(file, REGIONS, 16 + 32 * number, &bytes)
    };
    let other = "12345678-0000-0000-0000-000000000000";
    vhdx_refused("2048 entries", |file| put_both(file, REGIONS, 8, &[0, 8]));
    vhdx_refused("names no block allocation table", |file| put_both(file, REGIONS, 8, &[0]));
    vhdx_refused("names no block allocation table", entry(0, &vhdx_region(other, 3 * MIB, 1 << 20, 0)));
    vhdx_refused("must be understood", entry(0, &vhdx_region(other, 3 * MIB, 1 << 20, 1)));
    vhdx_refused("lies over its block alloc", entry(1, &vhdx_region(VHDX_METADATA, 3 * MIB, 1 << 20, 1)));
    vhdx_refused("lies over its headers", entry(0, &vhdx_region(VHDX_TABLE, 0, 1 << 20, 1)));
    vhdx_refused("more than one metadata", entry(0, &vhdx_region(VHDX_METADATA, 3 * MIB, 1 << 20, 1)));
    for (start, len) in
        [(3 * MIB + 512, 1 << 20), (3 * MIB, 512), (3 * MIB, 0), (6 * MIB, 1 << 20), (!0 << 20, 1 << 20)]
    {
        vhdx_refused(
            "does not lie at whole MiB of the file",
            entry(0, &vhdx_region(VHDX_TABLE, start, len, 1)),
        );
    }
}

#[test]
fn a_vhdx_with_bad_metadata_is_refused() {
    let table = |at: u64, bytes: &[u8]| {
        let bytes = bytes.to_vec();
        move |file: &mut Sparse| file.put(VHDX_METADATA_AT + at, &bytes)
    };
    let item = |number: u64, bytes: Vec<u8>| table(32 + 32 * number, &bytes);
    let value = |at: u64, value: u32| table(65536 + at, &value.to_le_bytes());
    vhdx_refused("begin with their signature", table(0, b"METADATA"));
    vhdx_refused("2048 entries", table(10, &[0, 8]));
    vhdx_refused("do not say the block size", table(10, &[0]));
    vhdx_refused("do not say the disk's size", table(10, &[1]));
    vhdx_refused("do not say the size of sectors", table(10, &[2]));
    vhdx_refused("item twice", item(4, vhdx_item(VHDX_LOGICAL, 65568, 4, 6)));
    vhdx_refused("it names a parent", item(2, vhdx_item(VHDX_PARENT, 65552, 16, 4)));
    vhdx_refused("must be understood", item(2, vhdx_item(VHDX_TABLE, 65552, 16, 4)));
    // A user's item may have the id of a known one, and is another.
    vhdx_refused("must be understood", item(2, vhdx_item(VHDX_ID, 65552, 16, 5)));
    for (offset, len) in [(0, 8), (65535, 8), (65544, 4), ((1 << 20) - 7, 8), (u32::MAX, 8)] {
        vhdx_refused("out of its place", item(1, vhdx_item(VHDX_SIZE, offset, len, 6)));
    }
    vhdx_refused("it has a parent", value(4, 2));
    for block_bytes in [0, 1 << 19, 3 << 20, 1 << 29, u32::MAX] {
        vhdx_refused("from 1 to 256 MiB", value(0, block_bytes));
    }
    for sector_bytes in [0, 256, 1024, u32::MAX] {
        vhdx_refused("are not of 512 or 4096", value(32, sector_bytes));
        vhdx_refused("are not of 512 or 4096", value(36, sector_bytes));
    }
    vhdx_refused("not whole sectors", value(8, 513));
    vhdx_refused("VHDX ends at 64 TiB", value(12, 0x4001));
    vhdx_refused("no place for 262212 entries", value(12, 64));
    vhdx_refused("larger than the 67108864 bytes allowed", value(12, 0x3000));
    let mut file = vhdx();
    file.put(VHDX_METADATA_AT + 65536 + 8, &[0; 8]);
    assert!(matches!(open_vhdx(&file), Err(DiskError::Empty { .. })));
    let limits = Limits { virtual_bytes: 3 << 20, ..Limits::default() };
    assert_refused(vhdx::open(Arc::new(vhdx()), Path::new("disk"), &limits), "raise the limit");
}

#[test]
fn what_is_optional_in_a_vhdx_may_be_unknown() {
    let mut file = vhdx();
    file.put(VHDX_METADATA_AT + 32 + 64, &vhdx_item(VHDX_TABLE, 0, 0, 1));
    file.put(VHDX_METADATA_AT + 65536 + 4, &[1]);
    put_both(&mut file, REGIONS, 8, &[3]);
    put_both(&mut file, REGIONS, 16 + 64, &vhdx_region(VHDX_SIZE, 6 * MIB, 1 << 20, 0));
    file.len += MIB;
    seal_vhdx(&mut file);
    assert!(open_vhdx(&file).is_ok());
    file.put(VHDX_TABLE_AT, &((6 * MIB) | 6).to_le_bytes());
    assert_refused(open_vhdx(&file), "block 0 lies over its region that is not known");
}

#[test]
fn a_vhdx_whose_blocks_lie_wrong_is_refused() {
    let entry = |number: u64, mib: u64| {
        let entry = ((mib * MIB) | 6).to_le_bytes();
        move |file: &mut Sparse| file.put(VHDX_TABLE_AT + 8 * number, &entry)
    };
    vhdx_refused("block 0 lies at MiB 0", entry(0, 0));
    vhdx_refused("block 1 lies at MiB 8796093022208", entry(1, 1 << 43));
    vhdx_refused("block 0 lies over its log", entry(0, 1));
    vhdx_refused("block 0 lies over its metadata", entry(0, 2));
    vhdx_refused("block 0 lies over its block allocation table", entry(0, 3));
    vhdx_refused("two blocks lie over each other at MiB 5", entry(0, 5));
    vhdx_refused("block 0 lies after the file's end", entry(0, 6));
    vhdx_refused("block 2 lies after the file's end", |file| file.len -= 1);
    // Of the last block only what the disk has of it must be there.
    let mut file = vhdx();
    file.put(VHDX_TABLE_AT + 24, &((6 * MIB) | 6).to_le_bytes());
    file.len += MIB / 2;
    assert!(open_vhdx(&file).is_ok());
    file.len -= 1;
    assert_refused(open_vhdx(&file), "block 3 lies after");
}

#[test]
fn entries_of_sector_bitmaps_are_left_out() {
    // With sectors of 512 and blocks of 1 MiB every 4097th entry is a bitmap's.
    let mut file = vhdx();
    file.put(VHDX_METADATA_AT + 65536 + 8, &(4098 * MIB).to_le_bytes());
    let entries = [(6 * MIB) | 6, (9 * MIB) | 6, (7 * MIB) | 6, 0].map(u64::to_le_bytes);
    file.put(VHDX_TABLE_AT + 4095 * 8, &entries.concat());
    file.len = 8 * MIB;
    file.put(6 * MIB, b"before");
    file.put(7 * MIB, b"behind");
    let disk = open_vhdx(&file).unwrap();
    let mut found = [0; 6];
    disk.read_at(4095 * MIB, &mut found).unwrap();
    assert_eq!(&found, b"before");
    disk.read_at(4096 * MIB, &mut found).unwrap();
    assert_eq!(&found, b"behind");
    // With sectors of 4096 it would be every 32769th one.
    file.put(VHDX_METADATA_AT + 65536 + 32, &4096u32.to_le_bytes());
    assert_refused(open_vhdx(&file), "block 4096 lies after");
}

fn vhd_refused(words: &str, file: Sparse, change: impl Fn(&mut Sparse)) {
    let mut file = file;
    change(&mut file);
    seal_vhd(&mut file);
    assert_refused(open_vhd(&file), words);
}

/// Puts bytes into a dynamic file's footer and its copy.
fn put_footers(file: &mut Sparse, at: u64, bytes: &[u8]) {
    file.put(at, bytes);
    file.put(file.len - 512 + at, bytes);
}

#[test]
fn a_vhd_reads_as_its_bitmaps_say() {
    let disk = open_vhd(&vhd_dynamic()).unwrap();
    let mut expected = vec![0; 8704];
    expected[512..517].copy_from_slice(b"first");
    expected[8192..8197].copy_from_slice(b"third");
    assert_eq!(bytes_of(&disk), expected);
    for start in [0, 1, 511, 513, 1025, 4000, 8190] {
        for len in [0, 1, 3, 513, 5000] {
            let mut found = vec![0xaa; len.min(8704 - start)];
            disk.read_at(start as u64, &mut found).unwrap();
            assert_eq!(found, expected[start..start + found.len()]);
        }
    }
    assert!(disk.read_at(8704, &mut [0]).is_err());
    let fixed = vhd_fixed();
    assert!(vhd::has_footer(&fixed).unwrap() && vhd::has_footer(&vhd_dynamic()).unwrap());
    assert!(!vhd::has_footer(&Sparse { len: 511, pieces: vec![] }).unwrap());
    assert_eq!(bytes_of(&open_vhd(&fixed).unwrap()), fixed.get(0, 4096));
}

#[test]
fn a_dynamic_vhd_that_lost_its_end_opens_by_the_copy() {
    let mut file = vhd_dynamic();
    file.put(file.len - 512, &[0; 512]);
    assert!(open_vhd(&file).is_ok());
    file.put(100, b"!");
    assert_refused(open_vhd(&file), "does not begin with conectix");
    let mut file = vhd_dynamic();
    file.put(file.len - 512 + 100, b"!");
    assert!(open_vhd(&file).is_ok());
    file.put(100, b"!");
    assert_refused(open_vhd(&file), "checksum does not fit");
}

#[test]
fn a_vhd_with_bad_footers_is_refused() {
    let both = |at: u64, bytes: &'static [u8]| move |file: &mut Sparse| put_footers(file, at, bytes);
    vhd_refused("it is shorter than a footer", vhd_fixed(), |file| file.len = 511);
    vhd_refused("does not begin with conectix", vhd_fixed(), |file| file.put(4096, b"C"));
    vhd_refused("another version", vhd_fixed(), |file| file.put(4096 + 13, &[2]));
    vhd_refused("the unknown type 5", vhd_dynamic(), both(63, &[5]));
    vhd_refused("it has a parent", vhd_dynamic(), both(63, &[4]));
    vhd_refused("do not say the same", vhd_dynamic(), |file| file.put(63, &[4]));
    vhd_refused("do not say the same", vhd_dynamic(), |file| file.put(0, b"C"));
    vhd_refused("do not say the same", vhd_fixed(), |file| file.put(0, b"conectix"));
    vhd_refused("although it is fixed", vhd_dynamic(), both(63, &[2]));
    vhd_refused("it has 4608 bytes", vhd_fixed(), |file| file.put(4096 + 54, &[0x12]));
    vhd_refused("the limit is", vhd_fixed(), |file| file.put(4096 + 48, &[0xff; 8]));
    let mut empty = vhd_fixed();
    empty.put(4096 + 48, &[0; 8]);
    seal_vhd(&mut empty);
    assert!(matches!(open_vhd(&empty), Err(DiskError::Empty { .. })));
}

#[test]
fn a_vhd_with_a_bad_header_or_table_is_refused() {
    let put = |at: u64, bytes: &'static [u8]| move |file: &mut Sparse| file.put(at, bytes);
    vhd_refused("second header lies after", vhd_dynamic(), |file| put_footers(file, 16, &[0xff; 8]));
    vhd_refused("begin with cxsparse", vhd_dynamic(), put(512, b"C"));
    vhd_refused("begin with cxsparse", vhd_dynamic(), |file| put_footers(file, 22, &[0, 0]));
    vhd_refused("is of another version", vhd_dynamic(), put(512 + 25, &[2]));
    vhd_refused("power of two", vhd_dynamic(), put(512 + 32, &[0; 4]));
    vhd_refused("power of two", vhd_dynamic(), put(512 + 32, &[0, 0, 1, 0]));
    vhd_refused("power of two", vhd_dynamic(), put(512 + 32, &[0, 0x30, 0, 0]));
    vhd_refused("power of two", vhd_dynamic(), put(512 + 32, &[0x20, 0, 0, 0]));
    vhd_refused("has 2 entries; the disk has 3", vhd_dynamic(), put(512 + 31, &[2]));
    vhd_refused("allocation table lies after", vhd_dynamic(), put(512 + 28, &[1]));
    vhd_refused("allocation table lies after", vhd_dynamic(), put(512 + 16, &[0xff; 8]));
    vhd_refused("table lies over its second header", vhd_dynamic(), put(512 + 22, &[0x05, 0xfc]));
    vhd_refused("table lies over its footer's copy", vhd_dynamic(), put(512 + 22, &[0, 0]));
    vhd_refused("table lies over its footer", vhd_dynamic(), put(512 + 28, &[0, 0, 0x0a, 0]));
    let mut file = vhd_dynamic();
    file.put(512 + 40, b"!");
    assert_refused(open_vhd(&file), "second header's checksum");
    vhd_refused("bytes allowed", vhd_dynamic(), |file| {
        put_footers(file, 48, &(100u64 << 30).to_be_bytes());
        file.put(512 + 28, &[0xff; 4]);
    });
}

#[test]
fn a_vhd_whose_blocks_lie_wrong_is_refused() {
    let entry = |sector: u32| move |file: &mut Sparse| file.put(1536, &sector.to_be_bytes());
    vhd_refused("sector 0 lies over its footer's copy", vhd_dynamic(), entry(0));
    vhd_refused("sector 1 lies over its second header", vhd_dynamic(), entry(1));
    vhd_refused("sector 3 lies over its block allocation table", vhd_dynamic(), entry(3));
    vhd_refused("two blocks lie over each other at sector 13", vhd_dynamic(), entry(5));
    vhd_refused("two blocks lie over each other at sector 13", vhd_dynamic(), entry(13));
    vhd_refused("sector 14 lies over its footer", vhd_dynamic(), entry(14));
    vhd_refused("sector 15 ends after the file's end", vhd_dynamic(), entry(15));
    vhd_refused("ends after the file's end", vhd_dynamic(), entry(u32::MAX - 1));
}

fn open_file(path: &Path, format: &str) -> Result<Box<dyn DiskRead>, DiskError> {
    let file: Arc<dyn DiskRead> = Arc::from(open_raw(path)?);
    match format {
        "vpc" => vhd::open(file, path, &Limits::default()).map(|disk| Box::new(disk) as _),
        _ => vhdx::open(file, path, &Limits::default()).map(|disk| Box::new(disk) as _),
    }
}

/// Has qemu-img make a file of a raw one, and compares what we read of it with what it reads itself.
fn compare(dir: &Path, raw: &Path, format: &str, options: &str, draw: &mut Draw) {
    let (made, back) = (dir.join("made"), dir.join("back"));
    qemu_img(&["convert", "-f", "raw", "-O", format, "-o", options, utf8(raw), utf8(&made)]);
    qemu_img(&["convert", "-f", format, "-O", "raw", utf8(&made), utf8(&back)]);
    let what = format!("{format} {options}");
    let disk = open_file(&made, format).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_same(&*disk, &back, draw, &what);
    let end = fs::metadata(&made).unwrap().len().saturating_sub(512);
    let places = [0, 512, 1536, 64 << 10, 128 << 10, 192 << 10, 2 << 20, 3 << 20, end];
    flip_bytes(&made, &places, |path| open_file(path, format), draw);
}

#[test]
fn random_images_read_as_qemu_img_reads_them() {
    if !has_qemu_img() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("raw");
    for seed in 0..images() {
        let mut draw = Draw::new(seed + 1);
        let len = match draw.below(4) {
            0 => 512 * (1 + draw.next() % 200),
            3 => 512 * (1 + draw.next() % (96 << 11)),
            _ => 512 * (1 + draw.next() % (6 << 11)),
        };
        let pieces = draw.below(12);
        write_raw(&raw, len, pieces, &mut draw);
        let kind = ["dynamic", "fixed"][draw.below(2)];
        let block_mib = [1, 2, 8, 32, 256][draw.below(5)];
        let zero = ["on", "off"][draw.below(2)];
        let log_mib = 1 + draw.below(3);
        let options =
            format!("subformat={kind},block_size={block_mib}M,log_size={log_mib}M,block_state_zero={zero}");
        compare(dir.path(), &raw, "vhdx", &options, &mut draw);
        let force = ["on", "off"][draw.below(2)];
        compare(dir.path(), &raw, "vpc", &format!("subformat={kind},force_size={force}"), &mut draw);
    }
}

#[test]
fn data_behind_the_first_sector_bitmap_are_found() {
    if !has_qemu_img() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("raw");
    let mut draw = Draw::new(99);
    write_raw(&raw, 9 << 30, 40, &mut draw);
    compare(dir.path(), &raw, "vhdx", "block_size=1M", &mut draw);
    compare(dir.path(), &raw, "vhdx", "block_size=16M", &mut draw);
    compare(dir.path(), &raw, "vpc", "force_size=off", &mut draw);
}

/// The size that qemu-img sees in a VHD.
fn qemu_size(path: &Path) -> u64 {
    let info = qemu_img(&["info", "-f", "vpc", "--output=json", utf8(path)]);
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    info["virtual-size"].as_u64().unwrap()
}

#[test]
fn the_size_of_a_vhd_is_the_one_that_qemu_img_sees_unless_it_cuts_it() {
    if !has_qemu_img() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("made");
    let sizes = ["100M", "503M", "504M", "10G", "126G", "127G", "128G", "1000G", "2039G"];
    let (mut differing, mut not_believed) = (0, 0);
    for (size, force) in sizes.iter().flat_map(|size| [(size, "on"), (size, "off")]) {
        qemu_img(&["create", "-f", "vpc", "-o", &format!("force_size={force}"), utf8(&path), size]);
        let creators = [b"d2v ", b"qem2", b"win ", b"CTXS", b"tap\0", b"wa\0\0", b"vbox", b"????"];
        for creator in vhd::GEOMETRY_SIZED.iter().copied().chain(creators) {
            for case in 0..6 {
                let change = |footer: &mut [u8]| {
                    footer[28..32].copy_from_slice(creator);
                    match case {
                        // As it was made; with less bytes than its geometry has; with a geometry of a cylinder less.
                        0 => {}
                        1 => {
                            let bytes = current_bytes(footer) - (7 * 512 + 3);
                            footer[48..56].copy_from_slice(&bytes.to_be_bytes());
                        }
                        2 => {
                            let cylinders = u16::from_be_bytes([footer[56], footer[57]]) - 1;
                            footer[56..58].copy_from_slice(&cylinders.to_be_bytes());
                        }
                        // What others leave there when they make a disk larger, or write for "large", or for nothing.
                        3 => footer[56..60].copy_from_slice(&[0, 40, 16, 17]),
                        4 => footer[56..60].copy_from_slice(&[0x3f, 0xff, 16, 63]),
                        _ => footer[56..60].fill(0),
                    }
                };
                let was = change_footers(&path, change);
                let bytes = current_bytes(&was) / 512 * 512 - if case == 1 { 8 * 512 } else { 0 };
                // Not with a geometry larger than the disk, as that of all whose size is forced.
                let is_larger = case == 2 && force == "on" || case == 4 && bytes < 16383 * 16 * 63 * 512;
                if !is_larger {
                    let qemu = qemu_size(&path);
                    // A geometry that lacks more than a cylinder is not believed.
                    let is_cut = bytes.saturating_sub(qemu) > 16 * 255 * 512;
                    let expected = if is_cut { bytes } else { qemu };
                    let opened = open_disk(&path, Declared::As(Foreign::Vhd), &Limits::default()).unwrap();
                    let ours = opened.disk.len_bytes();
                    assert_eq!(ours, expected, "{size} {force} {creator:?} {case}");
                    // What is cut is said.
                    assert_eq!(opened.notes.is_empty(), ours >= bytes, "{size} {force} {creator:?} {case}");
                    differing += u32::from(ours != bytes);
                    not_believed += u32::from(is_cut);
                }
                change_footers(&path, |footer| footer.copy_from_slice(&was));
            }
        }
        fs::remove_file(&path).unwrap();
    }
    assert!(differing > 20 && not_believed > 20, "{differing} by geometry, {not_believed} against it");
}

fn current_bytes(footer: &[u8]) -> u64 {
    u64::from_be_bytes(*footer[48..].first_chunk().unwrap())
}

/// Changes the footer and its copy, and gives them the checksum that fits; returns what the footer was.
fn change_footers(path: &Path, change: impl Fn(&mut [u8])) -> [u8; 512] {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let end = file.metadata().unwrap().len() - 512;
    let mut was = [0; 512];
    file.read_exact_at(&mut was, end).unwrap();
    let mut footer = was;
    change(&mut footer);
    footer[64..68].fill(0);
    let sum: u32 = footer.iter().map(|&byte| u32::from(byte)).sum();
    footer[64..68].copy_from_slice(&(!sum).to_be_bytes());
    for at in [0, end] {
        file.write_all_at(&footer, at).unwrap();
    }
    was
}
