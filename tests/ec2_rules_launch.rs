//! A test for each rule of EC2's on snapshots, volumes and launching, named after it.

mod common;

use common::{Caller, Meanwhile, MemoryDisk, NOW_MS, Rules, code, volume};
use imgstore::io::storage::Storage;
use imgstore::model::account::{Permission, Resource};
use imgstore::model::catalog::Catalog;
use imgstore::model::ids::{ImageId, VolumeId};
use imgstore::model::image::Image;
use imgstore::model::op::Op;
use imgstore::model::words::{Architecture, InstanceState, SnapshotState, VolumeState, VolumeType};
use imgstore::ops::capture::{CaptureOptions, CaptureWhat, create_snapshots};
use imgstore::ops::context::Context;
use imgstore::ops::copy::{CopyOptions, CopyWhat, apply, plan};
use imgstore::ops::delete::delete_snapshot;
use imgstore::ops::devices::DeviceSpec;
use imgstore::ops::encode::Compression;
use imgstore::ops::find::{self, AnyId};
use imgstore::ops::gc::{GcOptions, collect, preview};
use imgstore::ops::import::import_template;
use imgstore::ops::launch::{LaunchOptions, Launched, launch};
use imgstore::ops::modify::{self, PermissionChange};
use imgstore::ops::register::{ImageOptions, register};
use imgstore::ops::stats::{Keeper, item_stats};
use imgstore::ops::volume::{VolumeOptions, attach_volume, create_volume, delete_volume, detach_volume};
use imgstore::ops::{account, bin, instance};
use imgstore::region::error::RegionError;
use std::path::Path;

const HOUR: u64 = 3_600_000;

fn of(
    rules: &Rules,
    snapshot: Option<imgstore::model::ids::SnapshotId>,
    bytes: Option<u64>,
) -> VolumeOptions {
    VolumeOptions {
        snapshot_id: snapshot,
        volume_bytes: bytes,
        volume_type: VolumeType::Gp3,
        iops: None,
        output: rules.disks.path().join("volumes"),
        tags: vec![],
        client_token: None,
    }
}

fn spec(name: &str) -> DeviceSpec {
    DeviceSpec { device_name: name.into(), ..DeviceSpec::default() }
}

fn with(rules: &Rules, devices: Vec<DeviceSpec>) -> LaunchOptions {
    LaunchOptions { devices, ephemeral_bytes: 1 << 20, ..LaunchOptions::one(rules.disks.path()) }
}

fn run(rules: &Rules, image: &Image, options: &LaunchOptions) -> Result<Vec<Launched>, &'static str> {
    launch(&rules.region, image.id, options, &rules.owner.context()).map_err(|error| error.code())
}

// Snapshots ------------------------------------------------------------------------------------------------

#[test]
fn snapshot_states_are_ec2s_and_progress_is_in_percent() {
    assert_eq!(SnapshotState::WORDS, ["pending", "completed", "error"]);
    let rules = Rules::new();
    rules.image("web");
    let query = |filter: &str| imgstore::ops::describe::Query {
        ids: vec![],
        owner: imgstore::ops::describe::Owner::Caller,
        executable_by: None,
        include_deprecated: false,
        include_disabled: false,
        now_ms: NOW_MS,
        filters: vec![imgstore::ops::filter::Filter::parse(filter).unwrap()],
        results_max: None,
        next_token: None,
    };
    let catalog = rules.catalog();
    let count = |filter: &str| {
        imgstore::ops::describe::snapshots(&catalog, rules.owner.account, &query(filter)).unwrap().items.len()
    };
    assert_eq!((count("progress=100%"), count("status=completed"), count("status=pending")), (1, 1, 0));
}

#[test]
fn every_filter_of_instances_volumes_and_snapshots_finds_what_it_names() {
    use imgstore::ops::describe::{Owner, Query, instances, snapshots, volumes};
    let rules = Rules::new();
    let (region, context) = (&rules.region, rules.owner.context());
    let image = rules.import("web", &[volume(30_000, 1), volume(30_000, 2)]);
    modify::add_product_codes(region, image.id, &["7zx41vl2j5".into()], &context).unwrap();
    account::set_alias(region, rules.owner.account, Some("provider"), &context).unwrap();
    let options =
        LaunchOptions { client_token: Some("token".into()), ..LaunchOptions::one(rules.disks.path()) };
    let made = launch(region, image.id, &options, &context).unwrap().remove(0);
    let instance = &made.instance;
    let free = VolumeOptions {
        snapshot_id: None,
        volume_bytes: Some(3 << 30),
        volume_type: VolumeType::Gp2,
        iops: None,
        output: rules.disks.path().into(),
        tags: vec![],
        client_token: None,
    };
    create_volume(region, &free, &context).unwrap();
    let root = rules.catalog().volumes.values().find_map(|volume| {
        volume.attachment.as_ref().filter(|to| to.device_name == "/dev/xvda").map(|_| volume.id)
    });
    let root = root.unwrap();
    let of_root = CaptureOptions { description: "of root".into(), ..CaptureOptions::default() };
    create_snapshots(region, CaptureWhat::Volume(root), &of_root, &context).unwrap();
    let (catalog, account) = (rules.catalog(), rules.owner.account);
    let count = |kind: &str, filter: String| {
        let query = Query {
            ids: vec![],
            owner: Owner::Caller,
            executable_by: None,
            include_deprecated: false,
            include_disabled: false,
            now_ms: NOW_MS,
            filters: vec![imgstore::ops::filter::Filter::parse(&filter).unwrap()],
            results_max: None,
            next_token: None,
        };
        match kind {
            "instance" => instances(&catalog, account, &query).unwrap().items.len(),
            "volume" => volumes(&catalog, account, &query).unwrap().items.len(),
            _ => snapshots(&catalog, account, &query).unwrap().items.len(),
        }
    };
    let (id, first) = (instance.id.to_string(), image.snapshot_ids().next().unwrap().to_string());
    let cases: &[(&str, &str, &str, usize)] = &[
        ("instance", "architecture", "x86_64", 1),
        ("instance", "block-device-mapping.device-name", "/dev/xvdb", 1),
        ("instance", "block-device-mapping.volume-id", &root.to_string(), 1),
        ("instance", "client-token", "token", 1),
        ("instance", "image-id", &image.id.to_string(), 1),
        ("instance", "instance-id", &id, 1),
        ("instance", "instance-state-name", "running", 1),
        ("instance", "launch-index", "0", 1),
        ("instance", "launch-time", "2026-11-2?T*", 1),
        ("instance", "platform", "windows", 0),
        ("instance", "product-code", "7zx41vl2j5", 1),
        ("instance", "reservation-id", &instance.reservation_id.to_string(), 1),
        ("instance", "root-device-name", "/dev/xvda", 1),
        ("instance", "root-device-type", "ebs", 1),
        ("volume", "attachment.delete-on-termination", "true", 2),
        ("volume", "attachment.device", "/dev/xvda", 1),
        ("volume", "attachment.instance-id", &id, 2),
        ("volume", "attachment.attach-time", "2026-11-2?T*", 2),
        ("volume", "attachment.status", "attached", 2),
        ("volume", "create-time", "2026-11-2?T*", 3),
        ("volume", "encrypted", "false", 3),
        ("volume", "size", "3", 1),
        ("volume", "snapshot-id", &first, 1),
        ("volume", "status", "available", 1),
        ("volume", "volume-id", &root.to_string(), 1),
        ("volume", "volume-type", "gp2", 1),
        ("snapshot", "description", "of root", 1),
        ("snapshot", "encrypted", "false", 3),
        ("snapshot", "owner-alias", "provider", 3),
        ("snapshot", "progress", "100%", 3),
        ("snapshot", "snapshot-id", &first, 1),
        ("snapshot", "start-time", "2026-11-2?T*", 3),
        ("snapshot", "status", "completed", 3),
        ("snapshot", "volume-id", &root.to_string(), 1),
        ("snapshot", "volume-size", "1", 3),
    ];
    for (kind, name, value, expected) in cases {
        assert_eq!(count(kind, format!("{name}={value}")), *expected, "{kind} {name}={value}");
        assert_eq!(count(kind, format!("{name}=no such value")), 0, "{kind} {name}");
    }
}

#[test]
fn a_snapshot_in_use_by_a_registered_image_cannot_be_deleted() {
    let rules = Rules::new();
    let image = rules.image("web");
    let snapshot = image.snapshot_ids().next().unwrap();
    let error = delete_snapshot(&rules.region, snapshot, &rules.owner.context()).unwrap_err();
    assert_eq!(error.code(), "InvalidSnapshot.InUse");
    assert_eq!(error.to_string(), format!("The snapshot {snapshot} is currently in use by {}", image.id));
}

#[test]
fn who_uses_anothers_snapshot_is_not_told_to_those_who_may_not_see_it() {
    let rules = Rules::new();
    let id = rules.owner.snapshot(&rules.region, &MemoryDisk::new(volume(30_000, 1))).unwrap().snapshot.id;
    let change = PermissionChange { add: vec![Permission::All], remove: vec![] };
    modify::share_snapshot(&rules.region, id, &change, &rules.owner.context()).unwrap();
    let options = imgstore::ops::register::ImageOptions::named("mine", "x86_64".parse().unwrap());
    let devices = [DeviceSpec::of_snapshot("/dev/xvda", id)];
    let image = imgstore::ops::register::register(&rules.region, &options, &devices, &rules.friend.context());
    let error = delete_snapshot(&rules.region, id, &rules.owner.context()).unwrap_err();
    assert_eq!(error.code(), "InvalidSnapshot.InUse");
    assert!(!error.to_string().contains(&image.unwrap().id.to_string()), "{error}");
}

#[test]
fn create_volume_permission_is_separate_from_launch_permission_and_may_be_blocked_from_all() {
    let rules = Rules::new();
    let image = rules.image("web");
    let (region, snapshot) = (&rules.region, image.snapshot_ids().next().unwrap());
    let made = create_volume(region, &of(&rules, Some(snapshot), None), &rules.friend.context());
    assert_eq!(code(made), Err("InvalidSnapshot.NotFound"));
    let share = |whom| {
        let change = PermissionChange { add: vec![whom], remove: vec![] };
        modify::share_snapshot(region, snapshot, &change, &rules.owner.context())
    };
    share(Permission::Account(rules.friend.account)).unwrap();
    let made = create_volume(region, &of(&rules, Some(snapshot), None), &rules.friend.context());
    assert_eq!(code(made), Ok(()));
    assert_eq!(code(rules.launch(image.id, &rules.friend)), Err("InvalidAMIID.NotFound"));
    account::block_public_access(region, Resource::Snapshot, true, &rules.owner.context()).unwrap();
    assert_eq!(code(share(Permission::All)), Err("OperationNotPermitted"));
}

#[test]
fn a_block_of_public_snapshots_forbids_sharing_with_all_and_nothing_else() {
    let rules = Rules::new();
    let (region, context) = (&rules.region, rules.owner.context());
    let [public, private] = [1, 2].map(|seed| {
        let disk = MemoryDisk::new(volume(30_000, seed));
        rules.owner.snapshot(region, &disk).unwrap().snapshot.id
    });
    let share = |snapshot, whom| {
        let change = PermissionChange { add: vec![whom], remove: vec![] };
        code(modify::share_snapshot(region, snapshot, &change, &context))
    };
    assert_eq!(share(public, Permission::All), Ok(()));
    account::block_public_access(region, Resource::Snapshot, true, &context).unwrap();
    assert_eq!(share(private, Permission::All), Err("OperationNotPermitted"));
    assert_eq!(share(private, Permission::Account(rules.friend.account)), Ok(()));
    assert_eq!(share(public, Permission::All), Ok(()), "it was public before, and stays so");
}

#[test]
fn create_snapshots_takes_all_volumes_of_an_instance_in_one_record() {
    let rules = Rules::new();
    let image = rules.import("data", &[volume(30_000, 1), volume(40_000, 2)]);
    let (region, context) = (&rules.region, rules.owner.context());
    let made = rules.launch(image.id, &rules.owner).unwrap();
    let what = CaptureWhat::Instance(made.instance.id);
    let all = create_snapshots(region, what, &CaptureOptions::default(), &context).unwrap();
    assert_eq!(all.snapshots.len(), 2);
    for (snapshot, made) in all.snapshots.iter().zip(&made.volumes) {
        assert_eq!((snapshot.volume, snapshot.parent), (Some(made.id), made.snapshot_id));
        assert!(rules.owner.read_back(region, snapshot.id).unwrap() == std::fs::read(&made.path).unwrap());
    }
    let sequence = rules.catalog().sequence;
    assert_eq!(region.record(sequence).unwrap().unwrap().ops.len(), 2, "in one record");
    let data = CaptureOptions { exclude_root: true, ..CaptureOptions::default() };
    assert_eq!(create_snapshots(region, what, &data, &context).unwrap().snapshots.len(), 1);
    let one = CaptureWhat::Volume(made.volumes[0].id);
    assert_eq!(code(create_snapshots(region, one, &data, &context)), Err("InvalidParameterCombination"));
    instance::terminate(region, &[made.instance.id], &context).unwrap();
    let gone = create_snapshots(region, what, &CaptureOptions::default(), &context);
    assert_eq!(code(gone), Err("IncorrectInstanceState"));
}

#[test]
fn a_deleted_snapshot_goes_to_the_bin_if_a_rule_says_so_and_comes_back_whole() {
    let rules = Rules::new();
    let (region, context) = (&rules.region, rules.owner.context());
    let bytes = volume(30_000, 1);
    let id = rules.owner.snapshot(region, &MemoryDisk::new(bytes.clone())).unwrap().snapshot.id;
    bin::add_rule(region, Resource::Snapshot, 1, &[], &context).unwrap();
    delete_snapshot(region, id, &context).unwrap();
    assert_eq!(code(rules.owner.read_back(region, id)), Err("InvalidSnapshot.NotFound"));
    bin::restore_snapshot(region, id, &context).unwrap();
    assert!(rules.owner.read_back(region, id).unwrap() == bytes);
    delete_snapshot(region, id, &context).unwrap();
    let late = Caller { now_ms: NOW_MS + 24 * HOUR, ..Caller::new(1) };
    assert_eq!(code(bin::restore_snapshot(region, id, &late.context())), Err("InvalidSnapshot.NotFound"));
}

// Volumes --------------------------------------------------------------------------------------------------

#[test]
fn a_volume_is_at_least_as_large_as_its_snapshot() {
    let rules = Rules::new();
    let snapshot = rules.image("web").snapshot_ids().next();
    let (region, context) = (&rules.region, rules.owner.context());
    let made = create_volume(region, &of(&rules, snapshot, None), &context).unwrap();
    assert_eq!((made.volume_bytes, made.state()), (30_000, VolumeState::Available));
    assert!(std::fs::read(&made.path).unwrap() == volume(30_000, 1));
    let larger = create_volume(region, &of(&rules, snapshot, Some(1 << 20)), &context).unwrap();
    assert_eq!(std::fs::metadata(&larger.path).unwrap().len(), 1 << 20);
    let error = create_volume(region, &of(&rules, snapshot, Some(4096)), &context).unwrap_err();
    assert_eq!(error.code(), "InvalidParameterValue");
    let neither = create_volume(region, &of(&rules, None, None), &context);
    assert_eq!(code(neither), Err("MissingParameter"));
}

#[test]
fn nothing_is_made_of_a_pending_snapshot() {
    let rules = Rules::new();
    let image = rules.image("web");
    let id = image.snapshot_ids().next().unwrap();
    // Nothing makes a pending snapshot yet, so one is put on record by hand.
    let pending = imgstore::model::ids::SnapshotId::from_random(77);
    let mut snapshot = rules.catalog().snapshots[&id].clone();
    (snapshot.id, snapshot.state) = (pending, SnapshotState::Pending);
    let op = imgstore::model::op::Op::CreateSnapshot { snapshot: Box::new(snapshot), packs: vec![] };
    let (region, context) = (&rules.region, rules.owner.context());
    let put = |_: &Catalog| Ok::<_, imgstore::region::error::RegionError>((vec![op.clone()], ()));
    region.commit(rules.owner.account, put).unwrap();
    assert_eq!(
        code(create_volume(region, &of(&rules, Some(pending), None), &context)),
        Err("IncorrectState")
    );
    let options = imgstore::ops::register::ImageOptions::named("early", "x86_64".parse().unwrap());
    let devices = [DeviceSpec::of_snapshot("/dev/xvda", pending)];
    let made = imgstore::ops::register::register(region, &options, &devices, &context);
    assert_eq!(code(made), Err("IncorrectState"));
}

#[test]
fn provisioned_operations_go_with_the_volumes_type() {
    let rules = Rules::new();
    let (region, context) = (&rules.region, rules.owner.context());
    let make = |volume_type, iops| {
        let options = VolumeOptions { volume_type, iops, ..of(&rules, None, Some(1 << 20)) };
        code(create_volume(region, &options, &context))
    };
    assert_eq!(make(VolumeType::Io2, None), Err("MissingParameter"));
    assert_eq!(make(VolumeType::Io2, Some(1000)), Ok(()));
    assert_eq!(make(VolumeType::Gp3, Some(3000)), Ok(()));
    assert_eq!(make(VolumeType::St1, Some(100)), Err("InvalidParameterCombination"));
    assert_eq!(make(VolumeType::Io2, Some(4_000_000_000)), Err("InvalidParameterValue"));
}

#[test]
fn a_volume_is_attached_once_and_deleted_only_when_it_is_detached() {
    let rules = Rules::new();
    let (region, context) = (&rules.region, rules.owner.context());
    let made = rules.launch(rules.image("web").id, &rules.owner).unwrap();
    let id = create_volume(region, &of(&rules, None, Some(1 << 20)), &context).unwrap().id;
    let to = made.instance.id;
    let taken = attach_volume(region, id, to, "xvda", &context);
    assert_eq!(code(taken), Err("InvalidParameterValue"), "xvda is /dev/xvda");
    assert_eq!(code(attach_volume(region, id, to, "/dev/../x", &context)), Err("InvalidParameterValue"));
    attach_volume(region, id, to, "/dev/xvdf", &context).unwrap();
    assert_eq!(code(attach_volume(region, id, to, "/dev/xvdg", &context)), Err("IncorrectState"));
    assert_eq!(code(delete_volume(region, id, &context)), Err("VolumeInUse"));
    detach_volume(region, id, &context).unwrap();
    assert_eq!(code(detach_volume(region, id, &context)), Err("IncorrectState"));
    let path = rules.catalog().volumes[&id].path.clone();
    delete_volume(region, id, &context).unwrap();
    assert!(!Path::new(&path).exists());
    assert_eq!(code(delete_volume(region, id, &context)), Err("InvalidVolume.NotFound"));
    let other = rules.catalog().volumes.keys().next().copied().unwrap();
    let theirs = delete_volume(region, other, &rules.friend.context());
    assert_eq!(code(theirs), Err("InvalidVolume.NotFound"));
}

#[test]
fn an_instance_has_as_many_devices_as_an_image_can_have() {
    let rules = Rules::new();
    let instance = run(&rules, &rules.image("web"), &with(&rules, vec![])).unwrap()[0].instance.id;
    let (region, context) = (&rules.region, rules.owner.context());
    let name = |number: usize| format!("/dev/xv{}", number + 100);
    let attach = |number| {
        let volume = create_volume(region, &of(&rules, None, Some(4096)), &context).unwrap();
        attach_volume(region, volume.id, instance, &name(number), &context)
    };
    (1..imgstore::ops::devices::DEVICES_MAX).for_each(|number| attach(number).unwrap());
    assert_eq!(code(attach(0)), Err("AttachmentLimitExceeded"));
}

#[test]
fn the_root_volume_is_detached_from_a_stopped_instance_only_and_needed_to_start() {
    let rules = Rules::new();
    let (region, context) = (&rules.region, rules.owner.context());
    let made = rules.launch(rules.image("web").id, &rules.owner).unwrap();
    let (id, root) = (made.instance.id, made.volumes[0].id);
    assert_eq!(code(detach_volume(region, root, &context)), Err("OperationNotPermitted"));
    instance::stop(region, &[id], &context).unwrap();
    detach_volume(region, root, &context).unwrap();
    assert_eq!(code(instance::start(region, &[id], &context)), Err("IncorrectState"));
    attach_volume(region, root, id, "xvda", &context).unwrap();
    assert_eq!(code(instance::start(region, &[id], &context)), Ok(()), "xvda is /dev/xvda");
}

// Launching ------------------------------------------------------------------------------------------------

#[test]
fn one_image_gives_one_or_many_instances_of_one_reservation() {
    let rules = Rules::new();
    let image = rules.image("web");
    let options = LaunchOptions { count_min: 1, count_max: 3, ..LaunchOptions::one(rules.disks.path()) };
    let made = run(&rules, &image, &options).unwrap();
    assert_eq!(made.len(), 3);
    let indexes: Vec<_> = made.iter().map(|one| one.instance.launch_index).collect();
    assert_eq!(indexes, [0, 1, 2]);
    assert!(made.iter().all(|one| one.instance.reservation_id == made[0].instance.reservation_id));
    assert!(made.iter().all(|one| one.instance.state == InstanceState::Running));
    for (min, max) in [(0, 1), (2, 1), (1, 1001)] {
        let options = LaunchOptions { count_min: min, count_max: max, ..options.clone() };
        assert_eq!(run(&rules, &image, &options).err(), Some("InvalidParameterValue"));
    }
}

#[test]
fn a_launchs_client_token_makes_its_instances_once() {
    let rules = Rules::new();
    let image = rules.image("web");
    let options = LaunchOptions {
        count_min: 2,
        count_max: 2,
        client_token: Some("night".into()),
        ..LaunchOptions::one(rules.disks.path())
    };
    let ids = |made: Vec<Launched>| made.iter().map(|one| one.instance.id).collect::<Vec<_>>();
    let first = ids(run(&rules, &image, &options).unwrap());
    assert_eq!(ids(run(&rules, &image, &options).unwrap()), first);
    let other = LaunchOptions { count_max: 3, ..options };
    assert_eq!(run(&rules, &image, &other).err(), Some("IdempotentParameterMismatch"));
    assert_eq!(rules.catalog().instances.len(), 2);
    assert_eq!(std::fs::read_dir(rules.disks.path()).unwrap().count(), 2);
}

#[test]
fn racing_launches_with_one_token_make_one_and_leave_no_disks() {
    let rules = Rules::new();
    let image = rules.image("web");
    let options = LaunchOptions { client_token: Some("t".into()), ..LaunchOptions::one(rules.disks.path()) };
    let (region, account) = (&rules.region, rules.owner.account);
    let ids: Vec<_> = std::thread::scope(|scope| {
        let one = || {
            let caller = Caller { account, ..Caller::new(1) };
            launch(region, image.id, &options, &caller.context()).unwrap()[0].instance.id
        };
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(one)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    assert_eq!(std::fs::read_dir(rules.disks.path()).unwrap().count(), 1);
}

#[test]
fn overrides_match_by_device_name() {
    let rules = Rules::new();
    let image = rules.import("data", &[volume(30_000, 1), volume(30_000, 2), volume(30_000, 3)]);
    let devices = vec![
        DeviceSpec { volume_bytes: Some(1 << 20), delete_on_termination: Some(false), ..spec("/dev/xvda") },
        DeviceSpec { volume_type: Some(VolumeType::Io2), iops: Some(500), ..spec("xvdb") },
        DeviceSpec { no_device: true, ..spec("/dev/xvdc") },
        DeviceSpec { volume_bytes: Some(8192), ..spec("/dev/xvdd") },
        DeviceSpec { snapshot_id: image.snapshot_ids().nth(2), ..spec("/dev/xvde") },
    ];
    let made = run(&rules, &image, &with(&rules, devices)).unwrap().remove(0);
    let found: Vec<_> = made
        .volumes
        .iter()
        .map(|v| {
            let at = v.attachment.as_ref().unwrap();
            (at.device_name.as_str(), v.volume_bytes, v.volume_type.as_str(), at.delete_on_termination)
        })
        .collect();
    let expected = [
        ("/dev/xvda", 1 << 20, "gp3", false),
        ("/dev/xvdb", 30_000, "io2", true),
        ("/dev/xvdd", 8192, "gp3", true),
        ("/dev/xvde", 30_000, "gp3", true),
    ];
    assert_eq!(found, expected);
    assert!(std::fs::read(&made.volumes[3].path).unwrap() == volume(30_000, 3));
    assert!(std::fs::read(&made.volumes[2].path).unwrap() == [0; 8192]);
}

#[test]
fn a_volume_smaller_than_its_snapshot_is_refused_in_ec2s_words() {
    let rules = Rules::new();
    let image = rules.image("web");
    let snapshot = image.snapshot_ids().next().unwrap();
    let small = vec![DeviceSpec { volume_bytes: Some(4096), ..spec("/dev/xvda") }];
    let error = launch(&rules.region, image.id, &with(&rules, small), &rules.owner.context()).unwrap_err();
    assert_eq!(error.code(), "InvalidBlockDeviceMapping");
    let expected = format!(
        "Volume of size 4096 bytes is smaller than  snapshot '{snapshot}', expect size >= 30000 bytes"
    );
    assert_eq!(error.to_string(), expected);
    let whole = rules.owner.snapshot(&rules.region, &MemoryDisk::new(vec![0; 2 << 30])).unwrap().snapshot.id;
    let error = create_volume(&rules.region, &of(&rules, Some(whole), Some(1 << 30)), &rules.owner.context());
    let expected = format!("Volume of size 1GB is smaller than  snapshot '{whole}', expect size >= 2GB");
    assert_eq!(error.unwrap_err().to_string(), expected);
}

/// Disks are files that are called after their devices: whoever makes an image must not choose where a launch writes.
#[test]
fn a_root_device_is_no_path() {
    let rules = Rules::new();
    for bad in ["/dev//tmp/x", "../../up", "", "/dev/a/b", "/dev/", "/dev//dev/xvda"] {
        let options =
            ImageOptions { root_device_name: bad.into(), ..ImageOptions::named("bad", Architecture::X86_64) };
        let (disk, context) = (MemoryDisk::new(volume(4096, 1)), rules.owner.context());
        let made = import_template(&rules.region, &disk, &[], &options, Compression::default(), &context);
        assert_eq!(code(made), Err("InvalidBlockDeviceMapping"), "{bad:?}");
    }
    // Regions may have such images from before that was refused.
    let image = rules.image("web");
    let target = rules.disks.path().join("target.raw");
    std::fs::write(&target, "precious").unwrap();
    for name in [format!("/dev/{}", target.with_extension("").display()), "../target".to_owned()] {
        let mut bad = Image {
            id: ImageId::from_random(77),
            name: "bad".into(),
            root_device_name: name,
            ..image.clone()
        };
        bad.devices[0].device_name.clone_from(&bad.root_device_name);
        let register =
            |_: &Catalog| Ok::<_, RegionError>((vec![Op::RegisterImage(Box::new(bad.clone()))], ()));
        rules.region.commit(rules.owner.account, register).unwrap();
        let launched = launch(&rules.region, bad.id, &with(&rules, vec![]), &rules.stranger.context());
        assert!(launched.is_err());
        assert_eq!(run(&rules, &bad, &with(&rules, vec![])).err(), Some("InvalidBlockDeviceMapping"));
        let forget =
            |_: &Catalog| Ok::<_, RegionError>((vec![Op::DeregisterImage { id: bad.id, bin: None }], ()));
        rules.region.commit(rules.owner.account, forget).unwrap();
    }
    assert_eq!(std::fs::read(&target).unwrap(), b"precious");
}

#[test]
fn product_codes_that_come_meanwhile_are_on_what_is_made() {
    let rules = Rules::new();
    for what in ["launch", "copy"] {
        let image = rules.image(what);
        let seller = Meanwhile(|_| {
            let codes = ["abc".into()];
            modify::add_product_codes(&rules.region, image.id, &codes, &rules.owner.context()).unwrap();
        });
        let context = Context { progress: &seller, ..rules.owner.context() };
        let codes = if what == "launch" {
            let options = with(&rules, vec![]);
            launch(&rules.region, image.id, &options, &context).unwrap()[0].instance.product_codes.clone()
        } else {
            let options = CopyOptions { name: Some("copied".into()), ..CopyOptions::default() };
            let plan =
                plan(&rules.region, &rules.region, CopyWhat::Image(image.id), &options, &context).unwrap();
            let copied = apply(&rules.region, &rules.region, &plan, &options, &context).unwrap();
            copied.image.unwrap().product_codes
        };
        assert_eq!(codes, ["abc"], "{what}");
    }
}

#[test]
fn what_makes_no_sense_in_a_mapping_is_refused() {
    let rules = Rules::new();
    let image = rules.image("web");
    let bad: Vec<Vec<DeviceSpec>> = vec![
        vec![DeviceSpec { no_device: true, ..spec("/dev/xvda") }],
        vec![DeviceSpec { ephemeral: Some(0), ..spec("/dev/xvda") }],
        vec![DeviceSpec { snapshot_id: image.snapshot_ids().next(), ..spec("/dev/xvda") }],
        vec![DeviceSpec { no_device: true, ..spec("/dev/xvdq") }],
        vec![DeviceSpec { delete_on_termination: Some(true), ..spec("/dev/xvdq") }],
        vec![DeviceSpec { ephemeral: Some(24), ..spec("/dev/xvdb") }],
        vec![DeviceSpec { ephemeral: Some(0), volume_bytes: Some(1), ..spec("/dev/xvdb") }],
        vec![DeviceSpec { volume_bytes: Some(1), ..spec("/dev/a/b") }],
        vec![
            DeviceSpec { volume_bytes: Some(1), ..spec("xvdb") },
            DeviceSpec { volume_bytes: Some(1), ..spec("/dev/xvdb") },
        ],
        vec![
            DeviceSpec { ephemeral: Some(1), ..spec("/dev/xvdb") },
            DeviceSpec { ephemeral: Some(1), ..spec("/dev/xvdc") },
        ],
        vec![DeviceSpec { volume_bytes: Some(65 << 40), ..spec("/dev/xvdb") }],
    ];
    for devices in bad {
        let refused = run(&rules, &image, &with(&rules, devices.clone()));
        assert_eq!(refused.err(), Some("InvalidBlockDeviceMapping"), "{devices:?}");
    }
    assert_eq!(std::fs::read_dir(rules.disks.path()).unwrap().count(), 0);
}

#[test]
fn ephemeral_disks_are_empty_local_and_go_with_their_instance() {
    let rules = Rules::new();
    let image = rules.image("web");
    let devices = vec![
        DeviceSpec { ephemeral: Some(0), ..spec("/dev/xvdb") },
        DeviceSpec { ephemeral: Some(23), ..spec("/dev/xvdc") },
    ];
    let made = run(&rules, &image, &with(&rules, devices)).unwrap().remove(0);
    assert_eq!((made.volumes.len(), made.instance.local_disks.len()), (1, 2));
    let disk = Path::new(&made.instance.local_disks[1].path);
    assert!(std::fs::read(disk).unwrap() == vec![0; 1 << 20]);
    let (region, context) = (&rules.region, rules.owner.context());
    instance::terminate(region, &[made.instance.id], &context).unwrap();
    assert!(!disk.exists() && !Path::new(&made.instance.path).exists());
}

#[test]
fn terminating_deletes_what_says_so_and_detaches_the_rest() {
    let rules = Rules::new();
    let image = rules.import("data", &[volume(30_000, 1), volume(30_000, 2)]);
    let kept = vec![DeviceSpec { delete_on_termination: Some(false), ..spec("/dev/xvdb") }];
    let made = run(&rules, &image, &with(&rules, kept)).unwrap().remove(0);
    let (region, context) = (&rules.region, rules.owner.context());
    let done = instance::terminate(region, &[made.instance.id], &context).unwrap().remove(0);
    let ids: Vec<VolumeId> = made.volumes.iter().map(|volume| volume.id).collect();
    assert_eq!((done.deleted, done.kept), (vec![ids[0]], vec![ids[1]]));
    assert!(!Path::new(&made.volumes[0].path).exists() && Path::new(&made.volumes[1].path).exists());
    let catalog = rules.catalog();
    assert_eq!(catalog.volumes[&ids[1]].state(), VolumeState::Available);
    let found = find::instance(&catalog, &context, made.instance.id).unwrap();
    assert_eq!(found.state, InstanceState::Terminated);
    assert_eq!(code(instance::start(region, &[made.instance.id], &context)), Err("IncorrectInstanceState"));
    assert_eq!(code(instance::terminate(region, &[made.instance.id], &context)), Ok(()), "again is no error");
    let late = Caller { now_ms: NOW_MS + HOUR, ..Caller::new(1) };
    let gone = find::instance(&catalog, &late.context(), made.instance.id);
    assert_eq!(code(gone), Err("InvalidInstanceID.NotFound"), "it is shown for an hour");
}

#[test]
fn the_content_of_a_deleted_snapshot_stays_under_its_volumes() {
    let rules = Rules::new();
    let image = rules.image("web");
    let (region, context) = (&rules.region, rules.owner.context());
    let made = rules.launch(image.id, &rules.owner).unwrap();
    imgstore::ops::delete::deregister(region, image.id, true, &context).unwrap();
    let catalog = rules.catalog();
    assert_eq!((catalog.snapshots.len(), catalog.retained_snapshots.len()), (0, 1));
    instance::terminate(region, &[made.instance.id], &context).unwrap();
    assert_eq!(rules.catalog().retained_snapshots.len(), 0);
}

#[test]
fn a_dry_run_answers_dry_run_operation_and_makes_nothing() {
    let rules = Rules::new();
    let image = rules.image("web");
    let dry = Context { dry_run: true, ..rules.owner.context() };
    let before = rules.catalog();
    let options = LaunchOptions::one(rules.disks.path());
    let error = launch(&rules.region, image.id, &options, &dry).unwrap_err();
    assert_eq!(error.code(), "DryRunOperation");
    assert_eq!(error.to_string(), "Request would have succeeded, but DryRun flag is set.");
    assert_eq!(code(modify::disable(&rules.region, image.id, &dry)), Err("DryRunOperation"));
    rules.share(image.id, Permission::All, false).unwrap();
    let shared = rules.catalog();
    let denied = Context { dry_run: true, ..rules.friend.context() };
    let error = modify::disable(&rules.region, image.id, &denied).unwrap_err();
    assert_eq!((error.code(), error.in_dry_run().code()), ("AuthFailure", "UnauthorizedOperation"));
    assert_eq!(rules.catalog(), shared);
    assert_ne!(before, shared);
    assert_eq!(std::fs::read_dir(rules.disks.path()).unwrap().count(), 0);
    // Nor does it say that disks would be made where none can be.
    let file = rules.disks.path().join("file");
    std::fs::write(&file, b"mine").unwrap();
    for output in [file.clone(), file.join("below")] {
        for context in [dry, rules.owner.context()] {
            let error = launch(&rules.region, image.id, &LaunchOptions::one(&output), &context).unwrap_err();
            assert!(error.to_string().contains("is no folder"), "{error}");
        }
    }
}

/// What is built on another's snapshot lasts as long as its owner may read that.
#[test]
fn a_permission_that_is_taken_back_ends_what_was_built_on_it() {
    let rules = Rules::new();
    let image = rules.image("web");
    let snapshot = image.snapshot_ids().next().unwrap();
    let share = |add: &[Permission], remove: &[Permission]| {
        let change = PermissionChange { add: add.to_vec(), remove: remove.to_vec() };
        modify::share_snapshot(&rules.region, snapshot, &change, &rules.owner.context()).unwrap();
    };
    let friend = Permission::Account(rules.friend.account);
    share(&[friend], &[]);
    let devices = [DeviceSpec::of_snapshot("/dev/xvda", snapshot)];
    let options = ImageOptions::named("built", Architecture::X86_64);
    let built = register(&rules.region, &options, &devices, &rules.friend.context()).unwrap();
    assert!(rules.launch(built.id, &rules.friend).is_ok());
    let cost =
        |caller: &Caller| item_stats(&rules.region, &[AnyId::Image(built.id)], &caller.context()).unwrap();
    assert_eq!(cost(&rules.friend)[0].freed_bytes, 0, "the snapshot is another's");
    assert!(cost(&rules.friend)[0].kept_by.contains(&Keeper::Owner));
    share(&[], &[friend]);
    assert_eq!(code(rules.launch(built.id, &rules.friend)), Err("InvalidRequest"));
    // Who may read the snapshot does not need the image's owner for it: neither its owner, nor who brings one along.
    modify::share_image(
        &rules.region,
        built.id,
        &PermissionChange { add: vec![Permission::All], remove: vec![] },
        false,
        &rules.friend.context(),
    )
    .unwrap();
    assert_eq!(code(rules.launch(built.id, &rules.owner)), Ok(()));
    rules.share(image.id, Permission::All, false).unwrap();
    let own = rules.stranger.snapshot(&rules.region, &MemoryDisk::new(volume(9000, 9))).unwrap().snapshot.id;
    let with_own = LaunchOptions {
        devices: vec![DeviceSpec::of_snapshot("/dev/xvdb", own)],
        ..LaunchOptions::one(rules.disks.path())
    };
    let launched = launch(&rules.region, image.id, &with_own, &rules.stranger.context());
    assert_eq!(launched.unwrap()[0].volumes.len(), 2);
}

/// What the end of a stay in the bin frees is in the preview of a collection, and keeps nothing in figures.
#[test]
fn a_preview_counts_what_leaves_the_bin() {
    let rules = Rules::new();
    let image = rules.image("web");
    let id = image.snapshot_ids().next().unwrap();
    let (region, context) = (&rules.region, rules.owner.context());
    bin::add_rule(region, Resource::Image, 1, &[], &context).unwrap();
    imgstore::ops::delete::deregister(region, image.id, false, &context).unwrap();
    let late = Caller { account: rules.owner.account, now_ms: NOW_MS + 3 * 86_400_000, ..Caller::new(1) };
    let cost =
        |caller: &Caller| item_stats(region, &[AnyId::Snapshot(id)], &caller.context()).unwrap().remove(0);
    assert!(cost(&late).freed_bytes > 0, "no image can be restored any more");
    delete_snapshot(region, id, &late.context()).unwrap();
    bin::add_rule(region, Resource::Snapshot, 1, &[], &context).unwrap();
    let other = rules.image("other");
    imgstore::ops::delete::deregister(region, other.id, true, &context).unwrap();
    let options = GcOptions { grace_ms: 0, repack_percent: 50 };
    let previewed = preview(region, &options, &late.context()).unwrap();
    // All of it is this command's own, which is still at work.
    assert!(previewed.expired > 0 && previewed.in_progress.bytes > 0, "{previewed:?}");
    let done = collect(region, &options, &late.context()).unwrap();
    assert_eq!((previewed.expired, previewed.in_progress), (done.expired, done.in_progress));
}

/// What was deleted and collected while it was read is gone, not damaged.
#[test]
fn what_is_deleted_while_it_is_exported_is_not_damaged() {
    let rules = Rules::new();
    let image = rules.image("web");
    let id = image.snapshot_ids().next().unwrap();
    let (region, context) = (&rules.region, rules.owner.context());
    let catalog = region.catalog().unwrap();
    let root = imgstore::ops::export::select(&catalog, AnyId::Snapshot(id), None, &context).unwrap();
    let map = imgstore::ops::export::load(region, &root).unwrap();
    imgstore::ops::delete::deregister(region, image.id, true, &context).unwrap();
    for object in region
        .objects()
        .unwrap()
        .iter()
        .filter(|o| ["packs/", "manifests/"].iter().any(|folder| o.name.starts_with(folder)))
    {
        rules.storage.delete(&object.name).unwrap();
    }
    let region =
        &imgstore::region::Region::open(std::sync::Arc::new(rules.storage.clone()), common::session())
            .unwrap();
    let target = Box::new(common::MemoryTarget::new(map.volume_bytes()));
    let exported =
        imgstore::ops::export::export(region, &root, &map, map.volume_bytes(), None, target, &context);
    let loaded = imgstore::ops::export::load(region, &root).map(drop);
    for result in [exported, loaded] {
        let error = result.unwrap_err();
        assert_eq!(error.code(), "InvalidSnapshot.NotFound", "{error}");
    }
}
