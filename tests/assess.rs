//! `bench dedup`: what it says of disks is what storing them comes to, and its page is one that can be read.

mod common;

use common::{Caller, Draw, MemoryDisk};
use imgstore::disk::{DiskError, DiskRead, Extent};
use imgstore::io::directory::DirectoryOptions;
use imgstore::model::account::AccountId;
use imgstore::ops::assess::{Assessment, DISKS_MAX, assess};
use imgstore::ops::encode::Compression;
use imgstore::ops::snapshot::{SnapshotOptions, snapshot};
use imgstore::region::{Region, RegionOptions};
use std::process::Command;

const BLOCK: usize = 4096;

/// Files of text and noise, each from a block on, the last block of each padded.
fn files(count: usize, seed: u64) -> Vec<Vec<u8>> {
    let mut draw = Draw::new(seed);
    let file = |_| {
        let len = 2000 + draw.below(300_000);
        let is_text = draw.below(3) > 0;
        let mut bytes: Vec<u8> = Vec::new();
        while bytes.len() < len {
            let word = draw.next();
            if is_text {
                bytes.extend(format!("{} is a word, ", word % 100_000).bytes());
            } else {
                bytes.extend(word.to_le_bytes());
            }
        }
        bytes.truncate(len);
        bytes.resize(len.next_multiple_of(BLOCK), 0);
        bytes
    };
    (0..count).map(file).collect()
}

/// A disk with these files one after the other, then zeros.
fn disk(files: &[&Vec<u8>], len: usize) -> MemoryDisk {
    let mut bytes: Vec<u8> = files.iter().flat_map(|file| file.iter().copied()).collect();
    assert!(bytes.len() <= len);
    bytes.resize(len, 0);
    MemoryDisk::new(bytes)
}

/// Two disks with most files in common, in another order, and one that is alone.
fn disks() -> Vec<MemoryDisk> {
    let (common, only, alone) = (files(120, 1), files(30, 2), files(40, 3));
    let first: Vec<&Vec<u8>> = common.iter().collect();
    let second: Vec<&Vec<u8>> = only.iter().chain(common.iter().rev()).collect();
    let (len, third) = (64 << 20, alone.iter().collect::<Vec<_>>());
    vec![disk(&first, len), disk(&second, len), disk(&third, (16 << 20) + 5000)]
}

fn assessed(disks: &[MemoryDisk]) -> Assessment {
    let caller = Caller::new(2);
    let disks: Vec<&dyn DiskRead> = disks.iter().map(|disk| disk as &dyn DiskRead).collect();
    assess(&disks, &caller.context()).unwrap()
}

/// Whether two figures differ by less than so many percent.
fn near(found: u64, expected: u64, percent: u64) -> bool {
    found.abs_diff(expected) * 100 <= expected * percent
}

#[test]
fn it_says_what_storing_comes_to() {
    let disks = disks();
    let assessment = assessed(&disks);
    assert_eq!(assessment.sampled, 1, "nothing had to be left out");
    let (folder, caller) = (tempfile::tempdir().unwrap(), Caller::new(2));
    let options = RegionOptions::named("real", AccountId::from_random(1));
    let directory = DirectoryOptions { reserve_bytes: 0, ..DirectoryOptions::default() };
    let region = Region::create_directory(folder.path(), &options, directory).unwrap();
    let compression = Compression { level: Some(3), delta: false };
    let how = SnapshotOptions { compression, ..SnapshotOptions::default() };
    let own = assessment.layouts.iter().find(|layout| layout.is_own).unwrap();
    let mut chunks = 0;
    for ((disk, figures), added) in disks.iter().zip(&assessment.disks).zip(&own.added_bytes) {
        let taken = snapshot(&region, disk, &how, &caller.context()).unwrap().ingested;
        chunks += taken.new_chunks;
        assert_eq!(figures.volume_bytes, taken.volume_bytes);
        assert_eq!(figures.added_bytes, *added);
        assert!(near(figures.added_bytes, taken.stored_bytes, 3), "{added} and {}", taken.stored_bytes);
    }
    assert_eq!(own.chunks, chunks, "the same chunks");
    assert!(near(own.stored_bytes, region.objects().unwrap().iter().map(|o| o.len).sum(), 5));
}

#[test]
fn disks_layouts_and_levels_stand_to_each_other_as_they_must() {
    let disks = disks();
    let Assessment { disks: figures, layouts, levels, delta_bytes, .. } = assessed(&disks);
    // What is fixed at a block is exact: the files lie at whole blocks.
    let mut blocks: Vec<&[u8]> = disks.iter().flat_map(|disk| disk.bytes.chunks_exact(BLOCK)).collect();
    let data = disks[0].bytes.chunks_exact(BLOCK).filter(|block| block.iter().any(|b| *b != 0)).count();
    assert_eq!(figures[0].data_bytes, (data * BLOCK) as u64);
    blocks.retain(|block| block.iter().any(|byte| *byte != 0));
    blocks.sort_unstable();
    blocks.dedup();
    assert_eq!((layouts[0].name.as_str(), layouts[0].chunks), ("fixed 4 KiB", blocks.len() as u64));
    assert!(
        layouts.iter().zip(layouts.iter().skip(1)).take(3).all(|(a, b)| a.read_bytes * 4 <= b.read_bytes)
    );
    let own = layouts.iter().find(|layout| layout.is_own).unwrap();
    // The second disk's common files lie in another order: large fixed chunks find none of them.
    assert!(own.added_bytes[1] * 2 < own.added_bytes[0]);
    let coarse = layouts.iter().find(|layout| layout.name == "fixed 4 MiB").unwrap();
    assert!(coarse.added_bytes[1] > coarse.added_bytes[0]);
    assert!(figures[0].unique_bytes * 2 < figures[0].added_bytes, "most of it is on the second, too");
    assert!(near(figures[2].unique_bytes, figures[2].added_bytes, 1), "nobody else has it");
    assert!(delta_bytes <= own.stored_bytes);
    assert_eq!(levels[1].stored_bytes.abs_diff(own.stored_bytes) * 1000 / own.stored_bytes, 0, "level 3");
    assert!(levels[0].bytes_per_second > levels[4].bytes_per_second);
    for (number, disk) in figures.iter().enumerate() {
        for cell in &disk.map {
            let shared: f64 = cell.shared.iter().map(|(_, share)| share).sum();
            assert!((cell.zero + cell.unique + cell.repeated + shared - 1.0).abs() < 1e-9, "{cell:?}");
            assert!(cell.shared.iter().all(|(other, _)| *other != number));
        }
    }
    assert!(figures[0].map[0].shared.iter().any(|(other, share)| *other == 1 && *share > 0.5));
    assert!(figures[0].map.last().unwrap().zero > 0.99 && figures[2].map[0].shared.is_empty());
}

#[test]
fn nothing_and_too_many_are_told() {
    let empty = assessed(&[MemoryDisk::new(vec![0; 50_000])]);
    assert_eq!((empty.disks[0].data_bytes, empty.layouts[0].stored_bytes, empty.delta_bytes), (0, 0, 0));
    let one = MemoryDisk::new(vec![1; 4096]);
    let many: Vec<&dyn DiskRead> = vec![&one; DISKS_MAX + 1];
    let error = assess(&many, &Caller::new(1).context()).unwrap_err();
    assert!(error.to_string().contains("at most 64"), "{error}");
}

#[test]
fn the_page_is_well_formed_and_names_are_only_text() {
    let folder = tempfile::tempdir().unwrap();
    let names = ["one.raw", "<b>&\"two.raw"];
    for (name, disk) in names.iter().zip(disks()) {
        std::fs::write(folder.path().join(name), disk.bytes).unwrap();
    }
    let html = folder.path().join("page.html");
    let mut command = Command::new(env!("CARGO_BIN_EXE_imgstore"));
    command.args([
        "--home",
        "home",
        "--json",
        "--quiet",
        "bench",
        "dedup",
        names[0],
        names[1],
        "--html",
        "page.html",
    ]);
    let output = command.current_dir(folder.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["disks"][1]["name"], names[1]);
    assert_eq!(document["layouts"].as_array().unwrap().len(), 7);
    let page = std::fs::read_to_string(html).unwrap();
    let options = roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() };
    let parsed = roxmltree::Document::parse_with_options(&page, options).unwrap();
    let texts: Vec<&str> = parsed.descendants().filter_map(|node| node.text()).collect();
    assert!(texts.contains(&names[1]), "{texts:?}");
    assert!(!parsed.descendants().any(|node| node.has_tag_name("b") || node.has_tag_name("script")));
    assert_eq!(parsed.descendants().filter(|node| node.has_tag_name("svg")).count(), 3);
    // Again, in place of the page; what is no page stays.
    assert!(command.output().unwrap().status.success());
    std::fs::write(folder.path().join("page.html"), "something else").unwrap();
    let refused = command.output().unwrap();
    assert_eq!(refused.status.code(), Some(2), "{}", String::from_utf8_lossy(&refused.stdout));
    assert_eq!(std::fs::read(folder.path().join("page.html")).unwrap(), b"something else");
    // Nothing was stored, and nothing is fetched from anywhere.
    assert!(!page.contains("http") && !folder.path().join("home/regions/local/packs").exists());
}

#[test]
fn holes_are_zeros() {
    let files = files(60, 7);
    let bytes: Vec<u8> = files.iter().flatten().copied().collect();
    let (front, back) = bytes.split_at(bytes.len() / 2 / BLOCK * BLOCK);
    let hole = vec![0; 41 << 20];
    let whole = [front, &hole, back, &hole[..20 << 20]].concat();
    let told = assessed(&[MemoryDisk::new(whole.clone())]);
    let read = assessed(&[MemoryDisk { bytes: whole, hole_blocks: 0 }]);
    assert_eq!((&told.disks, &told.layouts), (&read.disks, &read.layouts));
    assert_eq!(told.delta_bytes, read.delta_bytes);
}

/// A disk of nothing.
struct Sparse;

impl DiskRead for Sparse {
    fn len_bytes(&self) -> u64 {
        64 << 40
    }

    fn extent_at(&self, offset: u64) -> Result<Extent, DiskError> {
        Ok(Extent { start: offset, end: self.len_bytes(), is_zero: true })
    }

    fn read_at(&self, _: u64, _: &mut [u8]) -> Result<(), DiskError> {
        panic!("holes are not read")
    }
}

#[test]
fn the_largest_disk_of_nothing_takes_no_time() {
    let found = assess(&[&Sparse as &dyn DiskRead], &Caller::new(1).context()).unwrap();
    assert_eq!((found.disks[0].data_bytes, found.disks[0].map.len()), (0, 256));
    assert!(found.disks[0].map.iter().all(|cell| cell.zero == 1.0));
}
