//! Instances that are launched together share their disks' blocks where the file system can: XFS and btrfs, on loop
//! mounts, and ext4, which cannot. Skipped, saying so, where those cannot be made.
mod common;

use common::mounted::Mounted;
use common::{Caller, import_disks, memory_region, small_packs, volume};
use fiemap::{Fiemap, FiemapExtentFlags};
use imgstore::io::memory::Memory;
use imgstore::ops::devices::DeviceSpec;
use imgstore::ops::launch::{LaunchOptions, launch};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes of a file that lie where another file has them, too, and all that lie anywhere.
fn shared_of(path: &str) -> (u64, u64) {
    let extents = Fiemap::new_from_path(Path::new(path)).unwrap().map(Result::unwrap);
    extents.fold((0, 0), |(shared, all), extent| {
        let is_shared = extent.fe_flags.contains(FiemapExtentFlags::SHARED);
        (shared + if is_shared { extent.fe_length } else { 0 }, all + extent.fe_length)
    })
}

#[test]
fn the_disks_of_later_instances_are_clones_that_go_their_own_ways() {
    for kind in ["xfs", "btrfs"] {
        let folder = tempfile::tempdir().unwrap();
        let image_file = folder.path().join("fs");
        let Some(mounted) = Mounted::fresh(&image_file, kind, 512, "") else { continue };

        let caller = Caller::new(2);
        let region = memory_region(&Memory::new(), &small_packs());
        let (root, data) = (volume(6 << 20, 1), volume((1 << 20) + 700, 2));
        let image = import_disks(&region, &caller, "database", vec![root.clone(), data.clone()]);
        let larger = DeviceSpec {
            device_name: "/dev/xvda".into(),
            volume_bytes: Some(8 << 20),
            ..DeviceSpec::default()
        };
        let options = LaunchOptions {
            count_min: 3,
            count_max: 3,
            devices: vec![larger],
            ..LaunchOptions::one(&mounted.0.join("vms"))
        };
        let launched = launch(&region, image.id, &options, &caller.context()).unwrap();
        // What is compared comes from the disk, not from memory.
        drop(mounted);
        let _mounted = Mounted::new(&image_file, "").unwrap();

        let is_whole = |at: usize| {
            let [first, second] = [0, 1].map(|disk| fs::read(&launched[at].volumes[disk].path).unwrap());
            let is_root = first.len() == 8 << 20
                && first[..root.len()] == root
                && first[root.len()..].iter().all(|&byte| byte == 0);
            is_root && second == data
        };
        assert!((0..3).all(is_whole), "{kind}");
        for made in &launched[1..] {
            for volume in &made.volumes {
                let (shared, all) = shared_of(&volume.path);
                assert!(all > 0 && shared == all, "{kind}: of {all} bytes {shared} are shared");
            }
        }
        // Who writes to one writes to no other.
        let disk = OpenOptions::new().write(true).open(&launched[1].volumes[0].path).unwrap();
        disk.write_all_at(&[0xaa; 70_000], 1 << 20).unwrap();
        disk.sync_all().unwrap();
        assert_eq!((is_whole(0), is_whole(1), is_whole(2)), (true, false, true), "{kind}");
    }
}

/// Each instance takes space of its own on ext4; shared blocks count once.
#[test]
fn as_many_are_launched_as_there_is_space_for() {
    const COUNT: usize = 30;
    for (kind, mib) in [("ext4", 64), ("xfs", 320), ("btrfs", 320)] {
        let folder = tempfile::tempdir().unwrap();
        let Some(mounted) = Mounted::fresh(&folder.path().join("fs"), kind, mib, "") else { continue };
        let caller = Caller::new(2);
        let region = memory_region(&Memory::new(), &small_packs());
        let root = volume(20 << 20, 3);
        let image = import_disks(&region, &caller, "many", vec![root.clone()]);
        let vms = mounted.0.join("vms");
        let options = LaunchOptions { count_max: COUNT as u32, ..LaunchOptions::one(&vms) };
        let launched = launch(&region, image.id, &options, &caller.context()).unwrap();
        let expected = if kind == "ext4" { 1..4 } else { COUNT..COUNT + 1 };
        assert!(expected.contains(&launched.len()), "{kind}: {}", launched.len());
        for made in &launched {
            assert!(fs::read(&made.volumes[0].path).unwrap() == root, "{kind}");
        }
        assert_eq!(fs::read_dir(&vms).unwrap().count(), launched.len(), "{kind}: nothing else is left");
        assert_eq!(region.catalog().unwrap().instances.len(), launched.len());
    }
}
