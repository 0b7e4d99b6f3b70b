//! qemu-img as the oracle of tests of disk formats, raw images to try, and how disks are compared with them.
#![allow(dead_code, reason = "every test uses a part of it")]

use crate::common::Draw;
use imgstore::disk::open::open_raw;
use imgstore::disk::{DiskError, DiskRead};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

/// How many random images a test tries.
pub fn images() -> u64 {
    std::env::var("IMGSTORE_FORMAT_IMAGES").map_or(60, |number| number.parse().unwrap())
}

/// Whether qemu-img is there; the tests that ask it have nothing to say otherwise.
pub fn has_qemu_img() -> bool {
    let found = Command::new("qemu-img").arg("--version").output().is_ok();
    if !found {
        crate::common::skipped("there is no qemu-img");
    }
    found
}

pub fn qemu_img(arguments: &[&str]) -> String {
    let output = Command::new("qemu-img").args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub fn utf8(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Writes a raw image of data between holes.
pub fn write_raw(path: &Path, len: u64, pieces: usize, draw: &mut Draw) {
    let file = File::create(path).unwrap();
    file.set_len(len).unwrap();
    for _ in 0..pieces {
        let at = draw.next() % len;
        let mut piece: Vec<u8> = (0..1 + draw.below(100_000)).map(|_| draw.next() as u8).collect();
        piece.truncate((len - at) as usize);
        file.write_all_at(&piece, at).unwrap();
    }
}

/// Compares a disk with a raw file wherever one of them has data, and small ones also by random reads.
pub fn assert_same(disk: &dyn DiskRead, raw: &Path, draw: &mut Draw, what: &str) {
    let expected = open_raw(raw).unwrap();
    let len = disk.len_bytes();
    assert_eq!(len, expected.len_bytes(), "{what}");
    let mut at = 0;
    while at < len {
        let (ours, theirs) = (disk.extent_at(at).unwrap(), expected.extent_at(at).unwrap());
        assert!(ours.start == at && ours.end > at && ours.end <= len, "{what}: {ours:?}");
        let mut end = ours.end.min(theirs.end);
        if !ours.is_zero || !theirs.is_zero {
            end = end.min(at + 1 + draw.next() % (3 << 20));
            let mut found = vec![0xaa; (end - at) as usize];
            let mut wanted = vec![0; found.len()];
            expected.read_at(at, &mut wanted).unwrap();
            assert!(!ours.is_zero || wanted.iter().all(|&byte| byte == 0), "{what}: {ours:?} is not zeros");
            disk.read_at(at, &mut found).unwrap();
            assert!(found == wanted, "{what}: {at}..{end}");
        }
        at = end;
    }
    for _ in 0..20 {
        let start = draw.next() % len;
        let mut found = vec![0xaa; (len - start).min(draw.next() % (5 << 20)) as usize];
        let mut wanted = vec![0; found.len()];
        disk.read_at(start, &mut found).unwrap();
        expected.read_at(start, &mut wanted).unwrap();
        assert!(found == wanted, "{what}: {start}");
    }
}

/// Flips bytes near some places, and opens the file: it may open or not, and reading may give anything, but in
/// the end.
pub fn flip_bytes(
    path: &Path,
    places: &[u64],
    open: impl Fn(&Path) -> Result<Box<dyn DiskRead>, DiskError>,
    draw: &mut Draw,
) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let len = file.metadata().unwrap().len();
    for _ in 0..10 {
        let at = (places[draw.below(places.len())] + draw.next() % 200) % len;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1 << draw.below(8)], at).unwrap();
        if let Ok(disk) = open(path) {
            let mut at = 0;
            for _ in 0..100 {
                let extent = disk.extent_at(at).unwrap();
                assert!(extent.start == at && extent.end > at && extent.end <= disk.len_bytes());
                disk.read_at(at, &mut vec![0; (extent.end - at).min(5000) as usize]).unwrap();
                at = extent.end;
                if at == disk.len_bytes() {
                    break;
                }
            }
        }
        file.write_all_at(&byte, at).unwrap();
    }
}
