//! Where two volumes differ: what a comparison of all their bytes says, whatever they are cut into and stored as.

mod common;

use common::{
    Caller, Draw, MemoryDisk, Rules, changed, code, import_disks, memory_region, small_packs, text,
};
use imgstore::io::memory::Memory;
use imgstore::model::account::Permission;
use imgstore::model::units::BLOCK_BYTES;
use imgstore::ops::diff::{Change, differences, pairs};
use imgstore::ops::error::OpsError;
use imgstore::ops::find::AnyId;
use imgstore::region::Region;
use std::ops::Range;

/// The ranges of each pair of disks, and the device that it is.
type Told = Vec<(Option<String>, Vec<(Range<u64>, Change)>)>;

fn diff(region: &Region, ids: [AnyId; 2], device: Option<&str>, caller: &Caller) -> Result<Told, OpsError> {
    let context = caller.context();
    let mut told = Vec::new();
    for pair in pairs(region, &region.catalog()?, ids, device, &context)? {
        let mut ranges = Vec::new();
        differences(region, &pair, &mut |range, change| ranges.push((range, change)), &context)?;
        told.push((pair.device_name, ranges));
    }
    Ok(told)
}

/// The same by the bytes, block after block.
fn by_bytes(first: &[u8], second: &[u8]) -> Vec<(Range<u64>, Change)> {
    let len = first.len().max(second.len());
    let [first, second] = [first, second].map(|bytes| {
        let mut padded = bytes.to_vec();
        padded.resize(len.next_multiple_of(BLOCK_BYTES), 0);
        padded
    });
    let mut ranges: Vec<(Range<u64>, Change)> = Vec::new();
    for start in (0..len).step_by(BLOCK_BYTES) {
        let end = (start + BLOCK_BYTES).min(len) as u64;
        let [one, other] = [&first, &second].map(|bytes| &bytes[start..start + BLOCK_BYTES]);
        let is_zero = |block: &[u8]| block.iter().all(|byte| *byte == 0);
        let change = match (is_zero(one), is_zero(other)) {
            _ if one == other => continue,
            (true, _) => Change::Added,
            (_, true) => Change::Removed,
            _ => Change::Changed,
        };
        match ranges.last_mut() {
            Some((last, kind)) if last.end == start as u64 && *kind == change => last.end = end,
            _ => ranges.push((start as u64..end, change)),
        }
    }
    ranges
}

/// A copy of a disk with some bytes, blocks, and longer ranges written, zeroed, moved, and another end.
fn edited(bytes: &[u8], draw: &mut Draw) -> Vec<u8> {
    let mut edited = bytes.to_vec();
    for _ in 0..draw.below(12) {
        let at = draw.below(edited.len());
        let longest = [1, 5_000, 300_000][draw.below(3)];
        let len = (1 + draw.below(longest)).min(edited.len() - at);
        match draw.below(4) {
            0 => edited[at..at + len].fill(0),
            1 => edited[at..at + len].copy_from_slice(&text(len, draw.next())[..len]),
            2 => {
                let from = draw.below(edited.len() - len + 1) / BLOCK_BYTES * BLOCK_BYTES;
                let moved = edited[from..from + len].to_vec();
                let to = at / BLOCK_BYTES * BLOCK_BYTES;
                edited[to..to + len].copy_from_slice(&moved);
            }
            _ => edited[at] ^= 1,
        }
    }
    match draw.below(4) {
        0 => edited.truncate(1 + draw.below(edited.len())),
        1 => edited.resize(edited.len() + draw.below(100_000), draw.below(2) as u8),
        _ => {}
    }
    edited
}

/// With little memory, so that there are many windows, and chunks across their ends.
#[test]
fn what_differs_is_what_all_bytes_say() {
    let region = memory_region(&Memory::new(), &small_packs());
    let caller = Caller::new(2);
    let mut draw = Draw::new(7);
    let mut disk = [text(2 << 20, 1), vec![0; 300_000], text(3_000_001, 2)].concat();
    let take = |bytes: &[u8]| {
        AnyId::Snapshot(caller.snapshot(&region, &MemoryDisk::new(bytes.to_vec())).unwrap().snapshot.id)
    };
    let mut before = take(&disk);
    for round in 0..40 {
        let next = if round % 8 == 0 { changed(&disk, 70_000) } else { edited(&disk, &mut draw) };
        let after = take(&next);
        for (ids, expected) in
            [([before, after], by_bytes(&disk, &next)), ([after, before], by_bytes(&next, &disk))]
        {
            assert_eq!(diff(&region, ids, None, &caller).unwrap(), [(None, expected)], "round {round}");
        }
        (disk, before) = (next, after);
        if disk.len() < 1 << 20 {
            disk = [text(2 << 20, round), vec![0; 70_000]].concat();
            before = take(&disk);
        }
    }
}

#[test]
fn images_are_compared_device_by_device() {
    let region = memory_region(&Memory::new(), &small_packs());
    let caller = Caller::new(2);
    let (root, data, more) = (text(300_000, 1), text(100_000, 2), text(50_000, 3));
    let other_root = changed(&root, 90_000);
    let first = import_disks(&region, &caller, "one", vec![root.clone(), data.clone(), more.clone()]);
    let second = import_disks(&region, &caller, "two", vec![other_root.clone(), data]);
    let names: Vec<_> = first.devices.iter().map(|device| Some(device.device_name.clone())).collect();
    let ids = [AnyId::Image(first.id), AnyId::Image(second.id)];
    let expected = |at: usize, ranges| (names[at].clone(), ranges);
    let roots = expected(0, by_bytes(&root, &other_root));
    assert!(!roots.1.is_empty());
    let all = [roots.clone(), expected(1, vec![]), expected(2, by_bytes(&more, &[]))];
    assert_eq!(diff(&region, ids, None, &caller).unwrap(), all);
    let [one, two] = ids;
    let turned = diff(&region, [two, one], None, &caller).unwrap();
    assert_eq!(turned[2], expected(2, by_bytes(&[], &more)));
    // One device of both, and an image beside a snapshot.
    assert_eq!(diff(&region, ids, names[1].as_deref(), &caller).unwrap(), [expected(1, vec![])]);
    let snapshot = AnyId::Snapshot(second.snapshot_ids().next().unwrap());
    assert_eq!(diff(&region, [one, snapshot], None, &caller).unwrap(), [roots]);
    let refused = |ids, device| code(diff(&region, ids, device, &caller).map(drop)).unwrap_err();
    assert_eq!(refused(ids, Some("/dev/none")), "InvalidParameterValue");
    assert_eq!(refused([snapshot, snapshot], Some("/dev/xvda")), "InvalidParameterCombination");
}

#[test]
fn what_a_caller_may_not_see_is_not_compared() {
    let rules = Rules::new();
    let image = rules.import("one", &[text(20_000, 1)]);
    let id = AnyId::Image(image.id);
    let other = &rules.friend;
    let refused = |id| code(diff(&rules.region, [id, id], None, other).map(drop));
    assert_eq!(refused(id), Err("InvalidAMIID.NotFound"));
    rules.share(image.id, Permission::Account(other.account), false).unwrap();
    // Who may launch an image may have its content; its snapshot is not shared.
    assert_eq!(refused(id), Ok(()));
    let snapshot = AnyId::Snapshot(image.snapshot_ids().next().unwrap());
    assert_eq!(refused(snapshot), Err("InvalidSnapshot.NotFound"));
}
