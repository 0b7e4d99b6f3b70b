//! A test for each rule of EC2's on images, named after it. Rules on snapshots, volumes and launching are in
//! `ec2_rules_launch.rs`; what is not followed stands in docs/SHORTCOMINGS.md.

mod common;

use common::{Caller, MemoryDisk, NOW_MS, Rules, code, memory_region, small_packs, volume};
use imgstore::disk::{DiskError, DiskRead, Extent};
use imgstore::io::memory::Memory;
use imgstore::model::account::{AccountId, Permission, Resource, Tag};
use imgstore::model::changes::Changes;
use imgstore::model::ids::{ImageId, InstanceId, SnapshotId};
use imgstore::model::image::{DeregistrationProtection, DeviceTarget, Image, Machine};
use imgstore::model::words::{
    Architecture, BootMode, ImageState, RootDeviceType, VirtualizationType, VolumeType,
};
use imgstore::ops::capture::{CreateImageOptions, create_image};
use imgstore::ops::context::{Context, Progress};
use imgstore::ops::copy::{CopyOptions, CopyWhat, apply, plan};
use imgstore::ops::delete::{SnapshotOutcome, deregister, preview_deregister};
use imgstore::ops::describe::{Owner, Query, images};
use imgstore::ops::devices::DeviceSpec;
use imgstore::ops::encode::Compression;
use imgstore::ops::error::OpsError;
use imgstore::ops::filter::Filter;
use imgstore::ops::find::{self, AnyId};
use imgstore::ops::import::{ImportDisk, import, import_template};
use imgstore::ops::modify::{self, PermissionChange, Protect, Target, share_image};
use imgstore::ops::register::{ImageOptions, register};
use imgstore::ops::snapshot::{Hint, HintUse, SnapshotOptions, snapshot};
use imgstore::ops::stats::{Keeper, item_stats};
use imgstore::ops::{account, bin, instance};
use imgstore::region::Region;

const HOUR: u64 = 3_600_000;

fn options(name: &str) -> ImageOptions {
    ImageOptions::named(name, Architecture::X86_64)
}

fn query(rules: &Rules, filters: &[&str]) -> Query {
    Query {
        ids: vec![],
        owner: Owner::All,
        executable_by: None,
        include_deprecated: false,
        include_disabled: false,
        now_ms: rules.owner.now_ms,
        filters: filters.iter().map(|text| Filter::parse(text).unwrap()).collect(),
        results_max: None,
        next_token: None,
    }
}

fn listed(rules: &Rules, caller: &Caller, query: &Query) -> Vec<String> {
    let catalog = rules.catalog();
    let page = images(&catalog, caller.account, query).unwrap();
    page.items.iter().map(|image| image.name.clone()).collect()
}

fn later(caller: &Caller, by_ms: u64) -> Caller {
    Caller { account: caller.account, now_ms: caller.now_ms + by_ms, ..Caller::new(1) }
}

fn root(snapshot: SnapshotId) -> [DeviceSpec; 1] {
    [DeviceSpec::of_snapshot("/dev/xvda", snapshot)]
}

fn first_snapshot(image: &Image) -> SnapshotId {
    image.snapshot_ids().next().unwrap()
}

#[test]
fn ids_are_a_prefix_and_17_lower_case_hex_digits_local_to_one_region() {
    let rules = Rules::new();
    let image = rules.image("web");
    let text = image.id.to_string();
    assert!(text.starts_with("ami-") && text.len() == 21);
    assert!(text[4..].bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)));
    let elsewhere = memory_region(&Memory::new(), &small_packs()).catalog().unwrap();
    let error = find::image(&elsewhere, rules.owner.account, image.id).unwrap_err();
    assert_eq!(error.code(), "InvalidAMIID.NotFound");
}

#[test]
fn an_unknown_id_is_not_found_and_several_are_named_together() {
    let rules = Rules::new();
    let [one, two] = [1, 2].map(ImageId::from_random);
    let error = find::image(&rules.catalog(), rules.owner.account, one).unwrap_err();
    assert_eq!(error.to_string(), format!("The image id '[{one}]' does not exist"));
    let both = Query { ids: vec![AnyId::Image(one), AnyId::Image(two)], ..query(&rules, &[]) };
    let error = images(&rules.catalog(), rules.owner.account, &both).unwrap_err();
    assert_eq!(error.code(), "InvalidAMIID.NotFound");
    assert_eq!(error.to_string(), format!("The image ids '[{one}, {two}]' do not exist"));
}

#[test]
fn a_malformed_id_is_named_with_what_was_expected() {
    let cases = [
        ("ami-1", "InvalidAMIID.Malformed", "ami-..."),
        ("snap-XYZ", "InvalidSnapshotID.Malformed", "snap-..."),
        ("vol-", "InvalidVolumeID.Malformed", "vol-..."),
        ("i-0", "InvalidInstanceID.Malformed", "i-..."),
    ];
    for (text, expected, form) in cases {
        let error = OpsError::from(text.parse::<AnyId>().unwrap_err());
        assert_eq!(error.code(), expected);
        assert_eq!(error.to_string(), format!("Invalid id: \"{text}\" (expecting \"{form}\")"));
    }
}

#[test]
fn states_are_ec2s() {
    let words =
        ["pending", "available", "invalid", "deregistered", "transient", "failed", "error", "disabled"];
    assert_eq!(ImageState::WORDS, words);
}

#[test]
fn a_name_is_3_to_128_allowed_characters() {
    let rules = Rules::new();
    let snapshot = first_snapshot(&rules.image("web"));
    let context = rules.owner.context();
    for bad in ["ab", "a:b:c", "naïve", &"x".repeat(129)] {
        let made = register(&rules.region, &options(bad), &root(snapshot), &context);
        assert_eq!(code(made), Err("InvalidAMIName.Malformed"), "{bad}");
    }
    for good in ["abc", "a (b) [c] d/e.f-g'h@i_j", &"x".repeat(128)] {
        assert_eq!(
            code(register(&rules.region, &options(good), &root(snapshot), &context)),
            Ok(()),
            "{good}"
        );
    }
}

#[test]
fn a_name_is_unique_for_its_owner_in_a_region() {
    let rules = Rules::new();
    let image = rules.image("web");
    let snapshot = first_snapshot(&image);
    let error =
        register(&rules.region, &options("web"), &root(snapshot), &rules.owner.context()).unwrap_err();
    assert_eq!(error.code(), "InvalidAMIName.Duplicate");
    assert_eq!(error.to_string(), format!("AMI name web is already in use by AMI {}", image.id));
    rules.share(image.id, Permission::Account(rules.friend.account), true).unwrap();
    assert_eq!(code(rules.copy(image.id, "web", &rules.friend)), Ok(()), "another owner's names are its own");
}

#[test]
fn an_image_holds_every_attribute_of_its_machine() {
    let rules = Rules::new();
    let snapshot = first_snapshot(&rules.image("web"));
    let machine = Machine {
        architecture: Architecture::X86_64,
        platform: Some("windows".into()),
        virtualization_type: VirtualizationType::Hvm,
        boot_mode: Some(BootMode::Uefi),
        tpm_support: Some("v2.0".into()),
        ena_support: true,
        imds_support: Some("v2.0".into()),
        kernel_id: Some("aki-1a2b3c4d".into()),
        ramdisk_id: Some("ari-1a2b3c4d".into()),
    };
    let said = ImageOptions { machine: machine.clone(), description: "all of it".into(), ..options("full") };
    let image = register(&rules.region, &said, &root(snapshot), &rules.owner.context()).unwrap();
    let catalog = rules.catalog();
    let found = find::image(&catalog, rules.owner.account, image.id).unwrap();
    assert_eq!((&found.machine, found.description.as_str()), (&machine, "all of it"));
    assert_eq!(found.root_device_type(), RootDeviceType::Ebs);
    let made = rules.launch(image.id, &rules.owner).unwrap();
    assert_eq!(made.instance.machine, machine, "its instances have them, too");
    let bad: [(&str, Machine); 5] = [
        ("InvalidParameterValue", Machine { tpm_support: Some("v1.2".into()), ..machine.clone() }),
        ("InvalidParameterValue", Machine { platform: Some("linux".into()), ..machine.clone() }),
        ("InvalidParameterValue", Machine { kernel_id: Some("vmlinuz".into()), ..machine.clone() }),
        ("InvalidParameterCombination", Machine { boot_mode: None, ..machine.clone() }),
        (
            "InvalidParameterCombination",
            Machine {
                architecture: Architecture::Arm64,
                boot_mode: Some(BootMode::LegacyBios),
                tpm_support: None,
                ..machine
            },
        ),
    ];
    for (expected, machine) in bad {
        let said = ImageOptions { machine, ..options("bad") };
        assert_eq!(
            code(register(&rules.region, &said, &root(snapshot), &rules.owner.context())),
            Err(expected)
        );
    }
}

#[test]
fn register_takes_the_root_volume_from_the_mapping_that_has_the_root_device_name() {
    let rules = Rules::new();
    let snapshot = first_snapshot(&rules.image("web"));
    let context = rules.owner.context();
    let elsewhere = [DeviceSpec::of_snapshot("/dev/xvdb", snapshot)];
    let made = register(&rules.region, &options("other"), &elsewhere, &context);
    assert_eq!(code(made), Err("InvalidBlockDeviceMapping"));
    let said = ImageOptions { root_device_name: "/dev/xvdb".into(), ..options("other") };
    assert_eq!(code(register(&rules.region, &said, &elsewhere, &context)), Ok(()));
    let no_snapshot = [DeviceSpec {
        device_name: "/dev/xvda".into(),
        volume_bytes: Some(1 << 20),
        ..DeviceSpec::default()
    }];
    let made = register(&rules.region, &options("third"), &no_snapshot, &context);
    assert_eq!(code(made), Err("InvalidBlockDeviceMapping"));
}

#[test]
fn register_needs_a_snapshot_or_a_size_for_each_device() {
    let rules = Rules::new();
    let snapshot = first_snapshot(&rules.image("web"));
    let neither = DeviceSpec { device_name: "/dev/sdb".into(), ..DeviceSpec::default() };
    let devices = [root(snapshot)[0].clone(), neither];
    let error = register(&rules.region, &options("other"), &devices, &rules.owner.context()).unwrap_err();
    assert_eq!(error.code(), "InvalidBlockDeviceMapping");
    assert_eq!(error.to_string(), "Either snapshot ID or volume size must be provided for: /dev/sdb");
}

#[test]
fn create_image_takes_a_snapshot_of_each_attached_volume_in_one_record() {
    let rules = Rules::new();
    let image = rules.import("data", &[volume(30_000, 1), volume(50_000, 2)]);
    let made = rules.launch(image.id, &rules.owner).unwrap();
    let data = std::fs::read(&made.volumes[1].path).unwrap();
    let before = rules.catalog().sequence;
    let said = CreateImageOptions { name: "data-2".into(), ..CreateImageOptions::default() };
    let (new, captured) =
        create_image(&rules.region, made.instance.id, &said, &rules.owner.context()).unwrap();
    assert_eq!(captured.snapshots.len(), 2);
    let records: Vec<_> = (before + 1..=rules.catalog().sequence)
        .filter_map(|sequence| rules.region.record(sequence).unwrap())
        .filter(|record| format!("{:?}", record.ops).contains("CreateSnapshot"))
        .collect();
    assert_eq!(records.len(), 1, "all snapshots and the image are one record");
    assert!(format!("{:?}", records[0].ops).contains("RegisterImage"));
    assert!(rules.owner.read_back(&rules.region, captured.snapshots[1].id).unwrap() == data);
    assert_eq!((new.source_instance, new.predecessor), (Some(made.instance.id), Some(image.id)));
    for snapshot in &captured.snapshots {
        let start = format!("Created by CreateImage({})", made.instance.id);
        assert!(snapshot.description.starts_with(&start), "{}", snapshot.description);
    }
}

#[test]
fn create_image_works_for_running_and_stopped_instances_and_not_for_terminated_ones() {
    let rules = Rules::new();
    let (region, context) = (&rules.region, rules.owner.context());
    let made = rules.launch(rules.image("web").id, &rules.owner).unwrap();
    let id = made.instance.id;
    let image = |name: &str| {
        let said = CreateImageOptions { name: name.into(), ..CreateImageOptions::default() };
        code(create_image(region, id, &said, &context))
    };
    assert_eq!(image("of a running one"), Ok(()));
    instance::stop(region, &[id], &context).unwrap();
    assert_eq!(image("of a stopped one"), Ok(()));
    instance::terminate(region, &[id], &context).unwrap();
    assert_eq!(image("of a terminated one"), Err("IncorrectInstanceState"));
}

#[test]
fn what_does_not_exist_is_named_together_and_what_is_wrong_is_said_before_anything_is_read() {
    let rules = Rules::new();
    let (region, context) = (&rules.region, rules.owner.context());
    let missing = [1, 2].map(InstanceId::from_random);
    for done in [
        instance::stop(region, &missing, &context),
        instance::start(region, &missing, &context),
        instance::terminate(region, &missing, &context).map(drop),
    ] {
        let said = done.unwrap_err().to_string();
        assert_eq!(said, format!("The instance IDs '{}, {}' do not exist", missing[0], missing[1]));
    }
    let disk = || ImportDisk { device_name: "/dev/xvda".into(), disk: Box::new(Unreadable) };
    let device = |name: &str| DeviceSpec { device_name: name.into(), ..DeviceSpec::default() };
    let without_iops =
        DeviceSpec { volume_bytes: Some(1 << 30), volume_type: Some(VolumeType::Io1), ..device("/dev/xvdb") };
    for (wrong, expected) in
        [(without_iops, "MissingParameter"), (device("/dev/xvdb"), "InvalidBlockDeviceMapping")]
    {
        let options = ImageOptions::named("web", Architecture::X86_64);
        let done = import(region, &[disk()], &[wrong], &options, Compression::default(), &context);
        assert_eq!(code(done), Err(expected));
    }
}

/// A disk that nobody is to read.
struct Unreadable;

impl DiskRead for Unreadable {
    fn len_bytes(&self) -> u64 {
        1 << 20
    }

    fn extent_at(&self, _: u64) -> Result<Extent, DiskError> {
        panic!("it is looked into")
    }

    fn read_at(&self, _: u64, _: &mut [u8]) -> Result<(), DiskError> {
        panic!("it is read")
    }
}

#[test]
fn create_image_carries_ephemeral_entries_over_and_takes_overrides_but_of_size_and_content() {
    let rules = Rules::new();
    let image = rules.import("data", &[volume(30_000, 1), volume(30_000, 2), volume(30_000, 3)]);
    let (region, context) = (&rules.region, rules.owner.context());
    let ephemeral =
        DeviceSpec { device_name: "/dev/xvdz".into(), ephemeral: Some(0), ..DeviceSpec::default() };
    let launch = imgstore::ops::launch::LaunchOptions {
        devices: vec![ephemeral],
        ephemeral_bytes: 1 << 20,
        ..imgstore::ops::launch::LaunchOptions::one(rules.disks.path())
    };
    let made = imgstore::ops::launch::launch(region, image.id, &launch, &context).unwrap().remove(0);
    let spec = |name: &str| DeviceSpec { device_name: name.into(), ..DeviceSpec::default() };
    let said =
        |devices| CreateImageOptions { name: "data-2".into(), devices, ..CreateImageOptions::default() };
    let resized = DeviceSpec { volume_bytes: Some(1 << 20), ..spec("/dev/xvdb") };
    let other = DeviceSpec { snapshot_id: image.snapshot_ids().next(), ..spec("/dev/xvdb") };
    let of_type = DeviceSpec { volume_type: Some(VolumeType::Io2), iops: Some(100), ..spec("/dev/xvdb") };
    for bad in [resized, other, of_type] {
        let refused = create_image(region, made.instance.id, &said(vec![bad]), &context);
        assert_eq!(code(refused), Err("InvalidBlockDeviceMapping"));
    }
    let changes = vec![
        DeviceSpec { no_device: true, ..spec("/dev/xvdb") },
        DeviceSpec { delete_on_termination: Some(false), ..spec("/dev/xvdc") },
        DeviceSpec { volume_bytes: Some(1 << 20), ..spec("/dev/xvdd") },
    ];
    let (new, captured) = create_image(region, made.instance.id, &said(changes), &context).unwrap();
    assert_eq!(captured.snapshots.len(), 2, "what is left out is not read");
    let devices: Vec<String> = new
        .devices
        .iter()
        .map(|device| match &device.target {
            DeviceTarget::Ephemeral(number) => format!("{} ephemeral{number}", device.device_name),
            DeviceTarget::Ebs(ebs) if ebs.snapshot_id.is_none() => format!("{} empty", device.device_name),
            DeviceTarget::Ebs(ebs) => format!("{} {}", device.device_name, ebs.delete_on_termination),
        })
        .collect();
    assert_eq!(devices, ["/dev/xvda true", "/dev/xvdc false", "/dev/xvdz ephemeral0", "/dev/xvdd empty"]);
}

#[test]
fn a_copy_belongs_to_the_caller_and_has_neither_permissions_nor_tags() {
    let rules = Rules::new();
    let image = rules.image("web");
    let tag = Tag { key: "env".into(), value: "prod".into() };
    modify::tag(&rules.region, Target::Image(image.id), &[tag], &[], &rules.owner.context()).unwrap();
    rules.share(image.id, Permission::All, true).unwrap();
    let copy = rules.copy(image.id, "mine", &rules.friend).unwrap();
    assert_eq!(copy.owner, rules.friend.account);
    assert_ne!(copy.id, image.id);
    assert!(copy.launch_permissions.is_empty() && copy.tags.is_empty());
    let tagged = CopyOptions { name: Some("tagged".into()), copy_tags: true, ..CopyOptions::default() };
    // CopyImageTags: "user-defined tags that are attached by other accounts" are not copied.
    for (caller, tags, why) in
        [(&rules.owner, 1, "unless that is asked for"), (&rules.friend, 0, "nobody else's tags")]
    {
        let context = caller.context();
        let what = CopyWhat::Image(image.id);
        let planned = plan(&rules.region, &rules.region, what, &tagged, &context).unwrap();
        let copy = apply(&rules.region, &rules.region, &planned, &tagged, &context).unwrap().image.unwrap();
        assert_eq!(copy.tags.len(), tags, "{why}");
    }
}

#[test]
fn a_copy_needs_the_launch_permission_and_every_snapshots() {
    let rules = Rules::new();
    let image = rules.import("data", &[volume(30_000, 1), volume(30_000, 2)]);
    assert_eq!(code(rules.copy(image.id, "copy", &rules.friend)), Err("InvalidAMIID.NotFound"));
    let friend = Permission::Account(rules.friend.account);
    rules.share(image.id, friend, false).unwrap();
    let error = rules.copy(image.id, "copy", &rules.friend).unwrap_err();
    assert_eq!(error.code(), "InvalidRequest");
    assert_eq!(error.to_string(), "You do not have permission to access the storage of this ami");
    let change = PermissionChange { add: vec![friend], remove: vec![] };
    modify::share_snapshot(&rules.region, first_snapshot(&image), &change, &rules.owner.context()).unwrap();
    assert_eq!(code(rules.copy(image.id, "copy", &rules.friend)), Err("InvalidRequest"), "one is not all");
    rules.share(image.id, friend, true).unwrap();
    assert_eq!(code(rules.copy(image.id, "copy", &rules.friend)), Ok(()));
}

#[test]
fn a_copys_client_token_makes_it_once() {
    let rules = Rules::new();
    let image = rules.image("web");
    let context = rules.owner.context();
    let copy = |token: &str, name: &str| {
        let said = CopyOptions {
            name: Some(name.into()),
            client_token: Some(token.into()),
            ..CopyOptions::default()
        };
        let plan = plan(&rules.region, &rules.region, CopyWhat::Image(image.id), &said, &context)?;
        apply(&rules.region, &rules.region, &plan, &said, &context).map(|copied| copied.image.unwrap().id)
    };
    let first = copy("t", "one").unwrap();
    assert_eq!(copy("t", "one").unwrap(), first);
    assert_eq!(code(copy("t", "two")), Err("IdempotentParameterMismatch"));
    assert_ne!(copy("u", "two").unwrap(), first);
    assert_eq!(code(copy("", "three")), Err("InvalidParameterValue"));
}

#[test]
fn a_copy_within_a_region_moves_no_data() {
    let rules = Rules::new();
    let image = rules.image("web");
    let said = CopyOptions { name: Some("again".into()), ..CopyOptions::default() };
    let what = CopyWhat::Image(image.id);
    let plan = plan(&rules.region, &rules.region, what, &said, &rules.owner.context()).unwrap();
    assert_eq!(plan.transfer_bytes(), 0);
}

#[test]
fn deregister_is_the_owners_alone_and_instances_keep_running() {
    let rules = Rules::new();
    let image = rules.image("web");
    rules.share(image.id, Permission::All, true).unwrap();
    let refused = deregister(&rules.region, image.id, false, &rules.friend.context());
    assert_eq!(code(refused), Err("AuthFailure"));
    let made = rules.launch(image.id, &rules.owner).unwrap();
    deregister(&rules.region, image.id, false, &rules.owner.context()).unwrap();
    let catalog = rules.catalog();
    assert!(find::instance(&catalog, &rules.owner.context(), made.instance.id).unwrap().is_live());
    assert!(std::path::Path::new(&made.volumes[0].path).exists());
}

#[test]
fn deregister_leaves_the_snapshots() {
    let rules = Rules::new();
    let image = rules.image("web");
    let snapshot = first_snapshot(&image);
    let done = deregister(&rules.region, image.id, false, &rules.owner.context()).unwrap();
    assert_eq!(done.snapshots_left, [snapshot]);
    assert!(rules.owner.read_back(&rules.region, snapshot).is_ok());
    assert_eq!(
        code(register(&rules.region, &options("web"), &root(snapshot), &rules.owner.context())),
        Ok(())
    );
}

#[test]
fn deregister_with_its_snapshots_answers_success_skipped_or_missing_permissions_for_each() {
    let rules = Rules::new();
    let theirs = rules.image("theirs");
    rules.share(theirs.id, Permission::All, true).unwrap();
    let context = rules.friend.context();
    let own = |seed| {
        let disk = MemoryDisk::new(volume(30_000, seed));
        rules.friend.snapshot(&rules.region, &disk).unwrap().snapshot.id
    };
    let (deleted, shared, foreign) = (own(7), own(8), first_snapshot(&theirs));
    register(&rules.region, &options("other"), &root(shared), &context).unwrap();
    let devices = [("/dev/xvda", deleted), ("/dev/xvdb", shared), ("/dev/xvdc", foreign)]
        .map(|(name, id)| DeviceSpec::of_snapshot(name, id));
    let image = register(&rules.region, &options("mixed"), &devices, &context).unwrap();
    let preview = preview_deregister(&rules.region, image.id, true, &context).unwrap();
    let done = deregister(&rules.region, image.id, true, &context).unwrap();
    assert_eq!(done.snapshots, preview.snapshots, "the preview is what comes");
    let outcome = |id| done.snapshots.iter().find(|s| s.id == id).unwrap().outcome;
    assert_eq!(outcome(deleted), SnapshotOutcome::Success);
    assert_eq!(outcome(shared), SnapshotOutcome::Skipped);
    assert_eq!(outcome(foreign), SnapshotOutcome::MissingPermissions);
    assert!(!rules.catalog().snapshots.contains_key(&deleted));
    assert!(
        rules.catalog().snapshots.contains_key(&shared) && rules.catalog().snapshots.contains_key(&foreign)
    );
}

#[test]
fn a_preview_tells_the_bytes_that_deregistering_frees() {
    let rules = Rules::new();
    let image = rules.import("web", &[volume(900_000, 1)]);
    let own = rules.import("data", &[[volume(900_000, 1), volume(900_000, 9)].concat()]);
    let context = rules.owner.context();
    let freed =
        |id, with| preview_deregister(&rules.region, id, with, &context).unwrap().freed_bytes.unwrap();
    assert_eq!(freed(own.id, false), 0, "the snapshots stay");
    let stats = |id| item_stats(&rules.region, &[AnyId::Image(id)], &context).unwrap().remove(0);
    assert_eq!(freed(own.id, true), stats(own.id).freed_bytes);
    assert!(stats(own.id).kept_by.is_empty());
    assert!(freed(own.id, true) > freed(image.id, true), "what both have is freed by neither");
    rules.launch(own.id, &rules.owner).unwrap();
    assert_eq!(freed(own.id, true), 0, "a volume stands on it");
    assert_eq!(stats(own.id).kept_by, [Keeper::Volumes].into());
}

#[test]
fn a_snapshot_frees_nothing_as_long_as_an_image_uses_it() {
    let rules = Rules::new();
    let (image, context) = (rules.image("web"), rules.owner.context());
    let id = AnyId::Snapshot(first_snapshot(&image));
    let stats = || item_stats(&rules.region, &[id], &context).unwrap().remove(0);
    let freed = || stats().freed_bytes;
    assert_eq!((freed(), stats().kept_by), (0, [Keeper::Images].into()));
    deregister(&rules.region, image.id, false, &context).unwrap();
    assert!(freed() > 0);
}

#[test]
fn a_deregistered_image_describes_as_nothing_and_deregistering_twice_is_unavailable() {
    let rules = Rules::new();
    let image = rules.image("web");
    let context = rules.owner.context();
    deregister(&rules.region, image.id, false, &context).unwrap();
    let by_id = Query { ids: vec![AnyId::Image(image.id)], ..query(&rules, &[]) };
    assert_eq!(listed(&rules, &rules.owner, &by_id), [""; 0]);
    assert_eq!(code(deregister(&rules.region, image.id, false, &context)), Err("InvalidAMIID.Unavailable"));
    let refused = deregister(&rules.region, image.id, false, &rules.friend.context());
    assert_eq!(code(refused), Err("InvalidAMIID.NotFound"), "others never knew it");
}

#[test]
fn a_cooldown_is_not_cut_short_and_leaves_nothing_behind() {
    let rules = Rules::new();
    let image = rules.image("web");
    let protect =
        |how, caller: &Caller| modify::protect(&rules.region, image.id, how, &caller.context()).unwrap();
    let (soon, then) = (later(&rules.owner, HOUR), later(&rules.owner, 24 * HOUR));
    protect(Protect::OnWithCooldown, &rules.owner);
    let cooling = protect(Protect::Off, &rules.owner);
    assert!(cooling.holds_at(soon.now_ms) && !cooling.holds_at(then.now_ms));
    assert_eq!(protect(Protect::Off, &soon), cooling, "asking twice does not end it");
    assert_eq!(protect(Protect::On, &then), DeregistrationProtection::Enabled, "it was over");
    protect(Protect::OnWithCooldown, &then);
    protect(Protect::Off, &then);
    assert_eq!(protect(Protect::On, &then), DeregistrationProtection::EnabledWithCooldown, "it was not");
}

#[test]
fn protection_is_off_once_the_cooldown_is_over() {
    let rules = Rules::new();
    let image = rules.image("web");
    let protect =
        |how, caller: &Caller| modify::protect(&rules.region, image.id, how, &caller.context()).unwrap();
    protect(Protect::OnWithCooldown, &rules.owner);
    protect(Protect::Off, &rules.owner);
    let then = later(&rules.owner, 24 * HOUR);
    assert_eq!(protect(Protect::Off, &then), DeregistrationProtection::Disabled);
}

#[test]
fn a_protected_image_is_not_deregistered_and_a_cooldown_lasts_24_hours() {
    let rules = Rules::new();
    let image = rules.image("web");
    let region = &rules.region;
    let remove = |caller: &Caller| code(deregister(region, image.id, false, &caller.context()));
    modify::protect(region, image.id, Protect::On, &rules.owner.context()).unwrap();
    assert_eq!(remove(&rules.owner), Err("OperationNotPermitted"));
    modify::protect(region, image.id, Protect::OnWithCooldown, &rules.owner.context()).unwrap();
    modify::protect(region, image.id, Protect::Off, &rules.owner.context()).unwrap();
    let (soon, then) = (later(&rules.owner, 24 * HOUR - 1), later(&rules.owner, 24 * HOUR));
    assert_eq!(remove(&soon), Err("OperationNotPermitted"));
    modify::protect(region, image.id, Protect::Off, &soon.context()).unwrap();
    assert_eq!(remove(&then), Ok(()), "switching it off again starts nothing anew");
}

#[test]
fn with_a_retention_rule_an_image_is_listed_in_the_bin_and_restored_until_the_rules_time_ends() {
    let rules = Rules::new();
    let image = rules.import("web", &[volume(30_000, 1), volume(30_000, 2)]);
    let (region, context) = (&rules.region, rules.owner.context());
    rules.share(image.id, Permission::All, false).unwrap();
    bin::add_rule(region, Resource::Image, 2, &[], &context).unwrap();
    deregister(region, image.id, true, &context).unwrap();
    assert_eq!(bin::images(&rules.catalog(), &context).len(), 1);
    assert_eq!(bin::images(&rules.catalog(), &rules.friend.context()).len(), 0, "others' bins are their own");
    assert_eq!(bin::snapshots(&rules.catalog(), &context).len(), 2, "what it needs stays with it");
    assert_eq!(
        code(bin::restore_image(region, image.id, &rules.friend.context())),
        Err("InvalidAMIID.NotFound")
    );
    bin::restore_image(region, image.id, &context).unwrap();
    let found = rules.catalog().images[&image.id].clone();
    assert!(found.is_public(), "with its permissions");
    assert_eq!(code(rules.launch(image.id, &rules.friend)), Ok(()));
    deregister(region, image.id, true, &context).unwrap();
    let late = later(&rules.owner, 48 * HOUR);
    assert_eq!(bin::images(&rules.catalog(), &late.context()).len(), 0);
    let refused = bin::restore_image(region, image.id, &late.context()).unwrap_err();
    assert_eq!(refused.code(), "InvalidAMIID.Unavailable");
    assert!(!refused.to_string().contains("bin restore"), "that leads nowhere: {refused}");
}

#[test]
fn a_retention_rule_may_be_for_what_has_a_tag_and_the_longest_counts() {
    let rules = Rules::new();
    let (plain, tagged) = (rules.image("plain"), rules.image("tagged"));
    let (region, context) = (&rules.region, rules.owner.context());
    let tag = Tag { key: "env".into(), value: "prod".into() };
    modify::tag(region, Target::Image(tagged.id), std::slice::from_ref(&tag), &[], &context).unwrap();
    bin::add_rule(region, Resource::Image, 3, std::slice::from_ref(&tag), &context).unwrap();
    bin::add_rule(region, Resource::Image, 9, &[tag], &context).unwrap();
    bin::add_rule(region, Resource::Snapshot, 30, &[], &context).unwrap();
    for image in [&plain, &tagged] {
        deregister(region, image.id, false, &context).unwrap();
    }
    let catalog = rules.catalog();
    let kept = bin::images(&catalog, &context);
    assert_eq!(kept.len(), 1);
    assert_eq!((kept[0].item.id, kept[0].stay.until_ms), (tagged.id, NOW_MS + 9 * 24 * HOUR));
    for days in [0, 366] {
        let refused = bin::add_rule(region, Resource::Image, days, &[], &context);
        assert_eq!(code(refused), Err("InvalidParameterValue"));
    }
}

#[test]
fn launch_permission_is_the_owners_alone_at_first_and_given_to_accounts_or_all() {
    let rules = Rules::new();
    let image = rules.image("web");
    assert_eq!(code(rules.launch(image.id, &rules.owner)), Ok(()));
    assert_eq!(code(rules.launch(image.id, &rules.friend)), Err("InvalidAMIID.NotFound"));
    rules.share(image.id, Permission::Account(rules.friend.account), false).unwrap();
    assert_eq!(code(rules.launch(image.id, &rules.friend)), Ok(()));
    assert_eq!(code(rules.launch(image.id, &rules.stranger)), Err("InvalidAMIID.NotFound"));
    rules.share(image.id, Permission::All, false).unwrap();
    assert_eq!(code(rules.launch(image.id, &rules.stranger)), Ok(()));
    let back = PermissionChange { add: vec![], remove: vec![Permission::All] };
    share_image(&rules.region, image.id, &back, false, &rules.owner.context()).unwrap();
    assert_eq!(code(rules.launch(image.id, &rules.stranger)), Err("InvalidAMIID.NotFound"));
}

#[test]
fn a_change_of_permissions_is_all_or_nothing() {
    let rules = Rules::new();
    let image = rules.image("web");
    let context = rules.owner.context();
    account::block_public_access(&rules.region, Resource::Snapshot, true, &context).unwrap();
    let before = rules.catalog();
    let both = vec![Permission::Account(rules.friend.account), Permission::All];
    let change = PermissionChange { add: both, remove: vec![] };
    let refused = share_image(&rules.region, image.id, &change, true, &context);
    assert_eq!(code(refused), Err("OperationNotPermitted"), "the snapshots may not become public");
    assert_eq!(rules.catalog(), before);
}

#[test]
fn a_bad_account_or_group_is_an_invalid_attribute_item() {
    let rules = Rules::new();
    let image = rules.image("web");
    let nobody = PermissionChange::default();
    let refused = share_image(&rules.region, image.id, &nobody, false, &rules.owner.context());
    assert_eq!(code(refused), Err("InvalidAMIAttributeItemValue"));
    let both = PermissionChange { add: vec![Permission::All], remove: vec![Permission::All] };
    let refused = share_image(&rules.region, image.id, &both, false, &rules.owner.context());
    assert_eq!(code(refused), Err("InvalidAMIAttributeItemValue"));
    for bad in ["12345678901", "1234567890123", "everybody", "-12345678901"] {
        assert!(bad.parse::<AccountId>().is_err(), "{bad}");
    }
}

#[test]
fn the_accounts_block_of_public_access_forbids_sharing_with_all() {
    let rules = Rules::new();
    let (image, public) = (rules.image("web"), rules.image("public"));
    rules.share(public.id, Permission::All, false).unwrap();
    account::block_public_access(&rules.region, Resource::Image, true, &rules.owner.context()).unwrap();
    assert_eq!(code(rules.share(image.id, Permission::All, false)), Err("OperationNotPermitted"));
    assert_eq!(code(rules.share(image.id, Permission::Account(rules.friend.account), false)), Ok(()));
    assert!(rules.catalog().images[&public.id].is_public(), "what is public stays so");
    account::block_public_access(&rules.region, Resource::Image, false, &rules.owner.context()).unwrap();
    assert_eq!(code(rules.share(image.id, Permission::All, false)), Ok(()));
}

#[test]
fn an_account_is_told_what_it_blocks() {
    let rules = Rules::new();
    account::block_public_access(&rules.region, Resource::Snapshot, true, &rules.owner.context()).unwrap();
    let blocked = |caller: &Caller| {
        let settings = account::settings(&rules.catalog(), &caller.context());
        (settings.block_public_images, settings.block_public_snapshots)
    };
    assert_eq!(blocked(&rules.owner), (false, true));
    assert_eq!(blocked(&rules.friend), (false, false));
}

#[test]
fn sharing_an_image_does_not_warn_of_snapshots_that_are_readable_already() {
    let rules = Rules::new();
    let friend = Permission::Account(rules.friend.account);
    let context = rules.owner.context();
    for (permission, is_friend_warned, are_all_warned) in
        [(None, true, true), (Some(friend), false, true), (Some(Permission::All), false, false)]
    {
        let image = rules.image(&format!("web-{is_friend_warned}-{are_all_warned}"));
        let snapshot = first_snapshot(&image);
        if let Some(permission) = permission {
            let change = PermissionChange { add: vec![permission], remove: vec![] };
            modify::share_snapshot(&rules.region, snapshot, &change, &context).unwrap();
        }
        for (whom, is_warned) in [(friend, is_friend_warned), (Permission::All, are_all_warned)] {
            let change = PermissionChange { add: vec![whom], remove: vec![] };
            let shared = share_image(&rules.region, image.id, &change, false, &context).unwrap();
            assert_eq!(!shared.unreadable_snapshots.is_empty(), is_warned, "{permission:?}, with {whom}");
        }
    }
    // What a friend made of it is shared with its owner, who needs no permission; of two devices it is named once.
    let snapshot = first_snapshot(&rules.image("shared"));
    let change = PermissionChange { add: vec![friend], remove: vec![] };
    modify::share_snapshot(&rules.region, snapshot, &change, &context).unwrap();
    let devices = [root(snapshot)[0].clone(), DeviceSpec::of_snapshot("/dev/xvdb", snapshot)];
    let made = register(&rules.region, &options("made"), &devices, &rules.friend.context()).unwrap();
    for (whom, unreadable) in [(rules.owner.account, vec![]), (rules.stranger.account, vec![snapshot])] {
        let change = PermissionChange { add: vec![Permission::Account(whom)], remove: vec![] };
        let shared = share_image(&rules.region, made.id, &change, false, &rules.friend.context()).unwrap();
        assert_eq!(shared.unreadable_snapshots, unreadable, "{whom}");
    }
}

#[test]
fn launch_permission_is_not_snapshot_permission_and_sharing_says_so() {
    let rules = Rules::new();
    let image = rules.image("web");
    let friend = Permission::Account(rules.friend.account);
    let change = PermissionChange { add: vec![friend], remove: vec![] };
    let shared = share_image(&rules.region, image.id, &change, false, &rules.owner.context()).unwrap();
    assert_eq!(shared.unreadable_snapshots, [first_snapshot(&image)]);
    let read = rules.friend.read_back(&rules.region, first_snapshot(&image));
    assert_eq!(code(read), Err("InvalidSnapshot.NotFound"));
    let shared = share_image(&rules.region, image.id, &change, true, &rules.owner.context()).unwrap();
    assert_eq!(shared.unreadable_snapshots, []);
    assert_eq!(code(rules.friend.read_back(&rules.region, first_snapshot(&image))), Ok(()));
}

#[test]
fn disabling_drops_all_launch_permissions_for_good() {
    let rules = Rules::new();
    let image = rules.image("web");
    let (region, context) = (&rules.region, rules.owner.context());
    rules.share(image.id, Permission::All, false).unwrap();
    modify::disable(region, image.id, &context).unwrap();
    assert_eq!(code(rules.launch(image.id, &rules.owner)), Err("InvalidAMIID.Unavailable"));
    assert_eq!(code(rules.launch(image.id, &rules.friend)), Err("InvalidAMIID.NotFound"), "the owner's only");
    assert_eq!(code(rules.share(image.id, Permission::All, false)), Err("InvalidAMIID.Unavailable"));
    modify::enable(region, image.id, &context).unwrap();
    assert_eq!(code(rules.launch(image.id, &rules.owner)), Ok(()));
    assert_eq!(
        code(rules.launch(image.id, &rules.friend)),
        Err("InvalidAMIID.NotFound"),
        "they do not come back"
    );
}

#[test]
fn deprecation_is_to_the_minute_launchable_and_hidden_from_others_lists() {
    let rules = Rules::new();
    let image = rules.image("web");
    let (region, context) = (&rules.region, rules.owner.context());
    rules.share(image.id, Permission::All, false).unwrap();
    let at = modify::deprecate(region, image.id, Some(NOW_MS + 89_999), &context).unwrap();
    assert_eq!(at, Some(NOW_MS + 60_000));
    let at = modify::deprecate(region, image.id, Some(NOW_MS + 90_000), &context).unwrap();
    assert_eq!(at, Some(NOW_MS + 120_000));
    let past = modify::deprecate(region, image.id, Some(NOW_MS - 1), &context);
    assert_eq!(code(past), Err("InvalidParameterValue"));
    let then = Query { now_ms: NOW_MS + 120_000, ..query(&rules, &[]) };
    assert_eq!(listed(&rules, &rules.friend, &query(&rules, &[])), ["web"], "not yet");
    assert_eq!(listed(&rules, &rules.friend, &then), [""; 0]);
    assert_eq!(listed(&rules, &rules.owner, &then), ["web"]);
    let asked = Query { include_deprecated: true, ..then };
    assert_eq!(listed(&rules, &rules.friend, &asked), ["web"]);
    assert_eq!(code(rules.launch(image.id, &later(&rules.friend, 200_000))), Ok(()));
}

#[test]
fn lists_are_by_owner_alias_and_executable_by() {
    let rules = Rules::new();
    let (private, named, public) = (rules.image("private"), rules.image("named"), rules.image("public"));
    rules.share(named.id, Permission::Account(rules.friend.account), false).unwrap();
    rules.share(public.id, Permission::All, false).unwrap();
    let _ = private;
    account::set_alias(&rules.region, rules.owner.account, Some("provider"), &rules.owner.context()).unwrap();
    let by = |caller: &Caller, owner, executable_by| {
        listed(&rules, caller, &Query { owner, executable_by, ..query(&rules, &[]) })
    };
    assert_eq!(by(&rules.owner, Owner::Caller, None).len(), 3);
    assert_eq!(by(&rules.friend, Owner::Caller, None), [""; 0]);
    assert_eq!(by(&rules.friend, Owner::Account(rules.owner.account), None).len(), 2);
    assert_eq!(by(&rules.friend, Owner::Alias("provider".into()), None).len(), 2);
    let own = Permission::Account(rules.friend.account);
    assert_eq!(by(&rules.friend, Owner::All, Some(own)), ["named"]);
    assert_eq!(by(&rules.friend, Owner::All, Some(Permission::All)), ["public"]);
    let unknown = Query { owner: Owner::Alias("nobody".into()), ..query(&rules, &[]) };
    let error = images(&rules.catalog(), rules.friend.account, &unknown).unwrap_err();
    assert_eq!(error.code(), "InvalidParameterValue");
}

#[test]
fn every_filter_of_images_finds_what_it_names() {
    let rules = Rules::new();
    let image = rules.import("web", &[volume(30_000, 1), volume(30_000, 2)]);
    let (region, context) = (&rules.region, rules.owner.context());
    let made = rules.launch(image.id, &rules.owner).unwrap();
    let said =
        CreateImageOptions { name: "web-2".into(), region: "known".into(), ..CreateImageOptions::default() };
    let captured = create_image(region, made.instance.id, &said, &context).unwrap().0;
    assert_eq!(captured.source.unwrap().region, "known", "as the caller knows it");
    let machine = Machine {
        boot_mode: Some(BootMode::Uefi),
        tpm_support: Some("v2.0".into()),
        imds_support: Some("v2.0".into()),
        platform: Some("windows".into()),
        kernel_id: Some("aki-1a2b3c4d".into()),
        ramdisk_id: Some("ari-1a2b3c4d".into()),
        ..options("x").machine
    };
    let full = ImageOptions { machine, description: "all".into(), ..options("full") };
    let full = register(region, &full, &root(first_snapshot(&image)), &context).unwrap();
    modify::add_product_codes(region, full.id, &["7zx41vl2j5".into()], &context).unwrap();
    account::set_alias(region, rules.owner.account, Some("provider"), &context).unwrap();
    let tag = Tag { key: "env".into(), value: "prod".into() };
    modify::tag(region, Target::Image(full.id), &[tag], &[], &context).unwrap();
    let instance = format!("source-instance-id={}", made.instance.id);
    let snapshot = format!("block-device-mapping.snapshot-id={}", image.snapshot_ids().nth(1).unwrap());
    let [id, source] = [format!("image-id={}", full.id), format!("source-image-id={}", image.id)];
    let owner = format!("owner-id={}", rules.owner.account);
    let cases: Vec<(&str, &[&str])> = vec![
        ("architecture=x86_64", &["web", "web-2", "full"]),
        ("block-device-mapping.delete-on-termination=true", &["web", "web-2", "full"]),
        ("block-device-mapping.device-name=/dev/xvdb", &["web", "web-2"]),
        ("block-device-mapping.encrypted=true", &[]),
        (&snapshot, &["web"]),
        ("block-device-mapping.volume-size=1", &["web", "web-2", "full"]),
        ("block-device-mapping.volume-type=io2", &[]),
        ("boot-mode=uefi", &["full"]),
        ("creation-date=2026-11-2?T*", &["web", "web-2", "full"]),
        ("description=all", &["full"]),
        ("ena-support=false", &["web", "web-2", "full"]),
        (&id, &["full"]),
        ("image-type=machine", &["web", "web-2", "full"]),
        ("imds-support=v2.0", &["full"]),
        ("is-public=true", &[]),
        ("kernel-id=aki-*", &["full"]),
        ("name=web*", &["web", "web-2"]),
        ("owner-alias=provider", &["web", "web-2", "full"]),
        (&owner, &["web", "web-2", "full"]),
        ("platform=windows", &["full"]),
        ("product-code=7zx41vl2j5", &["full"]),
        ("ramdisk-id=ari-*", &["full"]),
        ("root-device-name=/dev/xvda", &["web", "web-2", "full"]),
        ("root-device-type=instance-store", &[]),
        (&source, &["web-2"]),
        ("source-image-region=known", &["web-2"]),
        (&instance, &["web-2"]),
        ("state=available", &["web", "web-2", "full"]),
        ("tag:env=prod", &["full"]),
        ("tag-key=env", &["full"]),
        ("tpm-support=v2.0", &["full"]),
        ("virtualization-type=paravirtual", &[]),
    ];
    for (filter, expected) in cases {
        let mut found = listed(&rules, &rules.owner, &query(&rules, &[filter]));
        let mut expected = expected.to_vec();
        found.sort();
        expected.sort_unstable();
        assert_eq!(found, expected, "{filter}");
    }
    // Which instance it was made of is its owner's: not even letter by letter.
    let made = rules.catalog().images.values().find(|image| image.name == "web-2").unwrap().id;
    rules.share(made, Permission::All, false).unwrap();
    let all = Query { owner: Owner::All, ..query(&rules, &["source-instance-id=i-*"]) };
    let found = images(&rules.catalog(), rules.friend.account, &all).unwrap().items.len();
    assert_eq!(found, 0);
    let by_name = Query { owner: Owner::All, ..query(&rules, &["name=web-2"]) };
    assert_eq!(images(&rules.catalog(), rules.friend.account, &by_name).unwrap().items.len(), 1);
}

#[test]
fn lists_come_in_pages_by_a_token() {
    let rules = Rules::new();
    let names = ["one", "two", "three", "four", "five"];
    names.iter().for_each(|name| drop(rules.image(name)));
    let (mut found, mut next_token) = (Vec::new(), None);
    loop {
        let asked = Query { results_max: Some(2), next_token, ..query(&rules, &[]) };
        let catalog = rules.catalog();
        let page = images(&catalog, rules.owner.account, &asked).unwrap();
        assert!(page.items.len() <= 2);
        found.extend(page.items.iter().map(|image| image.name.clone()));
        next_token = page.next_token;
        if next_token.is_none() {
            break;
        }
    }
    found.sort();
    assert_eq!(found, ["five", "four", "one", "three", "two"]);
    let bad = Query { next_token: Some("nonsense".into()), ..query(&rules, &[]) };
    let error = images(&rules.catalog(), rules.owner.account, &bad).unwrap_err();
    assert_eq!(error.code(), "InvalidParameterValue");
}

#[test]
fn a_new_id_is_readable_at_once() {
    let storage = Memory::new();
    let region = memory_region(&storage, &small_packs());
    let reader = Region::open(std::sync::Arc::new(storage), common::session()).unwrap();
    let caller = Caller::new(1);
    let id = caller.snapshot(&region, &MemoryDisk::new(volume(30_000, 1))).unwrap().snapshot.id;
    let image = register(&region, &options("web"), &root(id), &caller.context()).unwrap();
    assert_eq!(code(find::image(&reader.catalog().unwrap(), caller.account, image.id)), Ok(()));
}

#[test]
fn an_instance_store_backed_image_has_a_template_and_no_snapshot() {
    let rules = Rules::new();
    let image = rules.template("store");
    assert_eq!(image.root_device_type(), RootDeviceType::InstanceStore);
    assert_eq!(image.snapshot_ids().count(), 0);
    assert!(rules.catalog().snapshots.is_empty() && rules.catalog().templates.len() == 1);
    let made = rules.launch(image.id, &rules.owner).unwrap();
    assert!(made.volumes.is_empty());
    let disk = &made.instance.local_disks[0];
    assert!(std::fs::read(&disk.path).unwrap() == volume(30_000, 5), "a copy on the instance's own disk");
    let (region, context) = (&rules.region, rules.owner.context());
    let id = made.instance.id;
    let error = instance::stop(region, &[id], &context).unwrap_err();
    assert_eq!(error.code(), "UnsupportedOperation");
    let expected =
        format!("The instance '{id}' does not have an 'ebs' root device type and cannot be stopped.");
    assert_eq!(error.to_string(), expected);
    assert_eq!(code(instance::start(region, &[id], &context)), Err("UnsupportedOperation"));
    let said = CreateImageOptions { name: "none".into(), ..CreateImageOptions::default() };
    assert_eq!(code(create_image(region, id, &said, &context)), Err("UnsupportedOperation"));
    deregister(region, image.id, false, &context).unwrap();
    assert_eq!(rules.catalog().templates.len(), 1, "an instance stands on it");
    instance::terminate(region, &[id], &context).unwrap();
    assert!(rules.catalog().templates.is_empty());
    assert!(!std::path::Path::new(&disk.path).exists());
}

#[test]
fn an_instance_store_backed_image_is_copied_with_its_template_by_its_owner_only() {
    let rules = Rules::new();
    let image = rules.template("store");
    rules.share(image.id, Permission::All, true).unwrap();
    assert_eq!(code(rules.copy(image.id, "mine", &rules.friend)), Err("InvalidRequest"));
    assert_eq!(code(rules.launch(image.id, &rules.friend)), Ok(()));
    let target = memory_region(&Memory::new(), &small_packs());
    let (said, context) = (CopyOptions::default(), rules.owner.context());
    let planned = plan(&rules.region, &target, CopyWhat::Image(image.id), &said, &context).unwrap();
    let copy = apply(&rules.region, &target, &planned, &said, &context).unwrap().image.unwrap();
    let options = imgstore::ops::launch::LaunchOptions::one(rules.disks.path());
    let made = imgstore::ops::launch::launch(&target, copy.id, &options, &context).unwrap().remove(0);
    assert!(std::fs::read(&made.instance.local_disks[0].path).unwrap() == volume(30_000, 5));
}

#[test]
fn a_template_takes_no_device_of_its_own_name() {
    let rules = Rules::new();
    let disk = MemoryDisk::new(volume(30_000, 5));
    let clash = DeviceSpec { device_name: "xvda".into(), ephemeral: Some(0), ..DeviceSpec::default() };
    let refused = import_template(
        &rules.region,
        &disk,
        &[clash],
        &options("store"),
        Compression::default(),
        &rules.owner.context(),
    );
    assert_eq!(code(refused), Err("InvalidBlockDeviceMapping"));
}

#[test]
fn an_owner_alias_is_given_by_the_provider_alone_and_is_unique() {
    let rules = Rules::new();
    let (region, friend) = (&rules.region, rules.friend.account);
    let by = |caller: &Caller, account, alias| account::set_alias(region, account, alias, &caller.context());
    assert_eq!(code(by(&rules.friend, friend, Some("amazon"))), Err("OperationNotPermitted"));
    assert_eq!(code(by(&rules.owner, friend, Some("amazon"))), Ok(()));
    let again = by(&rules.owner, rules.stranger.account, Some("amazon"));
    assert_eq!(code(again), Err("InvalidParameterValue"));
    for bad in ["self", "all", "123456789012", "A"] {
        assert_eq!(code(by(&rules.owner, friend, Some(bad))), Err("InvalidParameterValue"), "{bad}");
    }
    assert_eq!(rules.catalog().alias_of(friend), Some("amazon"));
    by(&rules.owner, friend, None).unwrap();
    assert_eq!(rules.catalog().alias_of(friend), None);
}

#[test]
fn an_image_has_at_most_16_product_codes() {
    let rules = Rules::new();
    let image = rules.image("sold");
    let codes: Vec<String> = (0..17).map(|number| format!("code-{number}")).collect();
    let add = |codes: &[String]| {
        code(modify::add_product_codes(&rules.region, image.id, codes, &rules.owner.context()))
    };
    assert_eq!(add(&codes), Err("InvalidAMIAttributeItemValue"));
    assert_eq!(add(&codes[..16]), Ok(()));
    assert_eq!(add(&codes[16..]), Err("InvalidAMIAttributeItemValue"), "with those that it has");
    assert_eq!(rules.catalog().images[&image.id].product_codes.len(), 16);
}

#[test]
fn an_image_with_product_codes_is_never_public_and_copied_by_its_owner_only() {
    let rules = Rules::new();
    let image = rules.image("sold");
    let (region, context) = (&rules.region, rules.owner.context());
    let codes = ["7zx41vl2j5".to_owned()];
    modify::add_product_codes(region, image.id, &codes, &context).unwrap();
    assert_eq!(code(rules.share(image.id, Permission::All, false)), Err("OperationNotPermitted"));
    rules.share(image.id, Permission::Account(rules.friend.account), true).unwrap();
    assert_eq!(code(rules.copy(image.id, "mine", &rules.friend)), Err("OperationNotPermitted"));
    assert_eq!(rules.copy(image.id, "own", &rules.owner).unwrap().product_codes, codes);
    let made = rules.launch(image.id, &rules.friend).unwrap();
    let said = CreateImageOptions { name: "of it".into(), ..CreateImageOptions::default() };
    let (new, _) = create_image(region, made.instance.id, &said, &rules.friend.context()).unwrap();
    assert_eq!(new.product_codes, codes, "they stay on what is made of it");
    let public = rules.image("public");
    rules.share(public.id, Permission::All, false).unwrap();
    let refused = modify::add_product_codes(region, public.id, &codes, &context);
    assert_eq!(code(refused), Err("OperationNotPermitted"));
}

// What a review found ----------------------------------------------------------------------------------------

#[test]
fn nothing_is_told_of_a_snapshot_that_the_caller_may_not_read() {
    let rules = Rules::new();
    let secret = first_snapshot(&rules.image("web"));
    let other = SnapshotId::from_random(7);
    let tell = |snapshot_id| {
        let device = DeviceSpec {
            device_name: "/dev/xvdb".into(),
            snapshot_id: Some(snapshot_id),
            volume_bytes: Some(4096),
            ..DeviceSpec::default()
        };
        let disk = MemoryDisk::new(volume(30_000, 5));
        let context = rules.friend.context();
        let made = import_template(
            &rules.region,
            &disk,
            &[device],
            &options("mine"),
            Compression::default(),
            &context,
        );
        made.unwrap_err().to_string().replace(&snapshot_id.to_string(), "ID")
    };
    assert_eq!(tell(secret), tell(other));
}

#[test]
fn a_cooldown_is_not_shed_by_switching_protection_on_again() {
    let rules = Rules::new();
    let image = rules.image("web");
    let region = &rules.region;
    let protect =
        |caller: &Caller, wanted| modify::protect(region, image.id, wanted, &caller.context()).unwrap();
    protect(&rules.owner, Protect::OnWithCooldown);
    for wanted in [Protect::On, Protect::Off, Protect::On, Protect::Off] {
        protect(&rules.owner, wanted);
    }
    let removed = deregister(region, image.id, false, &later(&rules.owner, HOUR).context());
    assert_eq!(code(removed), Err("OperationNotPermitted"));
    let removed = deregister(region, image.id, false, &later(&rules.owner, 25 * HOUR).context());
    assert_eq!(code(removed), Ok(()));
}

#[test]
fn restoring_from_the_bin_does_not_publish_past_the_block() {
    let rules = Rules::new();
    let image = rules.image("web");
    let (region, context) = (&rules.region, rules.owner.context());
    rules.share(image.id, Permission::All, true).unwrap();
    bin::add_rule(region, Resource::Image, 7, &[], &context).unwrap();
    deregister(region, image.id, true, &context).unwrap();
    account::block_public_access(region, Resource::Image, true, &context).unwrap();
    assert_eq!(code(bin::restore_image(region, image.id, &context)), Err("OperationNotPermitted"));
    account::block_public_access(region, Resource::Image, false, &context).unwrap();
    account::block_public_access(region, Resource::Snapshot, true, &context).unwrap();
    let snapshot = first_snapshot(&image);
    assert_eq!(code(bin::restore_snapshot(region, snapshot, &context)), Err("OperationNotPermitted"));
    account::block_public_access(region, Resource::Snapshot, false, &context).unwrap();
    assert_eq!(code(bin::restore_image(region, image.id, &context)), Ok(()));
}

#[test]
fn what_nobody_can_restore_any_more_keeps_no_snapshot() {
    let rules = Rules::new();
    let image = rules.image("web");
    let snapshot = first_snapshot(&image);
    rules.share(image.id, Permission::All, true).unwrap();
    let (region, friend) = (&rules.region, rules.friend.context());
    let theirs = register(region, &options("theirs"), &root(snapshot), &friend).unwrap();
    bin::add_rule(region, Resource::Image, 1, &[], &friend).unwrap();
    deregister(region, theirs.id, false, &friend).unwrap();
    deregister(region, image.id, false, &rules.owner.context()).unwrap();
    let delete =
        |caller: &Caller| code(imgstore::ops::delete::delete_snapshot(region, snapshot, &caller.context()));
    assert_eq!(delete(&rules.owner), Err("InvalidSnapshot.InUse"));
    assert_eq!(delete(&later(&rules.owner, 24 * HOUR)), Ok(()));
}

#[test]
fn an_ephemeral_disk_stands_behind_one_device_of_the_whole_mapping() {
    let rules = Rules::new();
    let snapshot = first_snapshot(&rules.image("web"));
    let ephemeral =
        |name: &str| DeviceSpec { device_name: name.into(), ephemeral: Some(0), ..DeviceSpec::default() };
    let devices = [root(snapshot)[0].clone(), ephemeral("/dev/xvdb")];
    let image = register(&rules.region, &options("scratch"), &devices, &rules.owner.context()).unwrap();
    let options = imgstore::ops::launch::LaunchOptions {
        devices: vec![ephemeral("/dev/xvdc")],
        ..imgstore::ops::launch::LaunchOptions::one(rules.disks.path())
    };
    let made = imgstore::ops::launch::launch(&rules.region, image.id, &options, &rules.owner.context());
    assert_eq!(code(made), Err("InvalidBlockDeviceMapping"));
}

#[test]
fn a_copys_token_answers_even_if_the_source_is_gone() {
    let rules = Rules::new();
    let image = rules.image("web");
    let context = rules.owner.context();
    let said =
        CopyOptions { name: Some("copy".into()), client_token: Some("t".into()), ..CopyOptions::default() };
    let copy = || {
        let plan = plan(&rules.region, &rules.region, CopyWhat::Image(image.id), &said, &context)?;
        apply(&rules.region, &rules.region, &plan, &said, &context).map(|copied| copied.image.unwrap().id)
    };
    let first = copy().unwrap();
    deregister(&rules.region, image.id, true, &context).unwrap();
    assert_eq!(copy().unwrap(), first);
}

/// Runs a thing once, when the work begins, or when some of it is done.
struct Meanwhile<F> {
    run: std::sync::Mutex<Option<F>>,
    is_later: bool,
}

impl<F: FnOnce() + Send> Meanwhile<F> {
    fn new(run: F) -> Self {
        Self { run: std::sync::Mutex::new(Some(run)), is_later: false }
    }

    fn later(run: F) -> Self {
        Self { is_later: true, ..Self::new(run) }
    }

    fn run(&self) {
        if let Some(run) = self.run.lock().unwrap().take() {
            run();
        }
    }

    fn of<'a>(&'a self, caller: &'a Caller) -> Context<'a> {
        Context { progress: self, ..caller.context() }
    }
}

impl<F: FnOnce() + Send> Progress for Meanwhile<F> {
    fn begin(&self, _phase: &'static str, _total_bytes: u64) {
        if !self.is_later {
            self.run();
        }
    }
    fn advance(&self, _bytes: u64) {
        self.run();
    }
    fn note(&self, _message: &str) {}
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// What is built on another's snapshot ends with the permission, also if that is taken back while it is made.
#[test]
fn a_permission_that_goes_while_a_command_works_is_gone_at_its_commit() {
    let rules = Rules::new();
    let mine = first_snapshot(&rules.image("mine"));
    let share = |add: bool| {
        let all = vec![Permission::All];
        let (add, remove) = if add { (all, vec![]) } else { (vec![], all) };
        let change = PermissionChange { add, remove };
        modify::share_snapshot(&rules.region, mine, &change, &rules.owner.context()).unwrap();
    };
    share(true);
    let friend = rules.friend.context();
    let image = register(&rules.region, &options("on mine"), &root(mine), &friend).unwrap();
    let watch = Meanwhile::new(|| share(false));
    let launch = imgstore::ops::launch::LaunchOptions::one(rules.disks.path());
    let launch = |context: &Context<'_>| {
        imgstore::ops::launch::launch(&rules.region, image.id, &launch, context).map(drop)
    };
    assert_eq!(code(launch(&watch.of(&rules.friend))), Err("InvalidRequest"));
    assert_eq!(std::fs::read_dir(rules.disks.path()).unwrap().count(), 0, "its disks are removed");
    // What a hint leaves unread is the parent's: then all is read.
    share(true);
    let hint = Some(Hint { changes: Changes::default(), verify: false });
    let said = SnapshotOptions { parent: Some(mine), hint, ..SnapshotOptions::default() };
    let disk = MemoryDisk::new(volume(30_000, 1));
    let take = |context: &Context<'_>| snapshot(&rules.region, &disk, &said, context).unwrap().hint.unwrap();
    let watch = Meanwhile::later(|| share(false));
    assert!(matches!(take(&watch.of(&rules.friend)), HintUse::Unusable { .. }));
    share(true);
    assert!(matches!(take(&friend), HintUse::Believed));
}

/// A copy to another region may take hours.
#[test]
fn a_copy_to_another_region_has_what_its_source_says_at_its_end() {
    let rules = Rules::new();
    let target = memory_region(&Memory::new(), &small_packs());
    let image = rules.image("web");
    let copy = |name: &str, context: &Context<'_>| {
        let said = CopyOptions { name: Some(name.into()), ..CopyOptions::default() };
        let plan = plan(&rules.region, &target, CopyWhat::Image(image.id), &said, context)?;
        apply(&rules.region, &target, &plan, &said, context).map(|copied| copied.image.unwrap())
    };
    rules.share(image.id, Permission::Account(rules.friend.account), true).unwrap();
    copy("theirs", &rules.friend.context()).unwrap();
    // Taken back, from somebody else.
    let change = PermissionChange { add: vec![], remove: vec![Permission::Account(rules.friend.account)] };
    let take_back = || {
        share_image(&rules.region, image.id, &change, true, &rules.owner.context()).unwrap();
    };
    let watch = Meanwhile::new(take_back);
    assert_eq!(code(copy("late", &watch.of(&rules.friend))), Err("InvalidAMIID.NotFound"));
    // Codes that were added.
    let codes = ["7zx41vl2j5".to_owned()];
    let add = || {
        modify::add_product_codes(&rules.region, image.id, &codes, &rules.owner.context()).unwrap();
    };
    let watch = Meanwhile::new(add);
    assert_eq!(copy("mine", &watch.of(&rules.owner)).unwrap().product_codes, codes);
    // One's own that was deregistered meanwhile: the content has come.
    let watch = Meanwhile::new(|| {
        deregister(&rules.region, image.id, true, &rules.owner.context()).unwrap();
    });
    assert_eq!(copy("last", &watch.of(&rules.owner)).unwrap().product_codes, codes);
}

#[test]
fn a_template_is_a_device_too() {
    let rules = Rules::new();
    let volume_of = |number: usize| DeviceSpec {
        device_name: format!("/dev/sd{number}"),
        volume_bytes: Some(1 << 20),
        ..DeviceSpec::default()
    };
    let devices: Vec<_> = (0..256).map(volume_of).collect();
    let disk = MemoryDisk::new(volume(30_000, 5));
    let made = |devices: &[DeviceSpec], name: &str| {
        let how = Compression::default();
        import_template(&rules.region, &disk, devices, &options(name), how, &rules.owner.context())
    };
    assert_eq!(code(made(&devices, "one too many")), Err("InvalidBlockDeviceMapping"));
    let image = made(&devices[1..], "all").unwrap().image;
    let launch = imgstore::ops::launch::LaunchOptions {
        devices: vec![devices[0].clone()],
        ..imgstore::ops::launch::LaunchOptions::one(rules.disks.path())
    };
    let made = imgstore::ops::launch::launch(&rules.region, image.id, &launch, &rules.owner.context());
    assert_eq!(code(made), Err("InvalidBlockDeviceMapping"));
}

#[test]
fn what_changes_while_a_command_works_is_seen_by_its_commit() {
    let rules = Rules::new();
    let (base, mine) = (rules.image("base"), first_snapshot(&rules.image("mine")));
    rules.share(base.id, Permission::All, true).unwrap();
    let own = rules.copy(base.id, "own", &rules.friend).unwrap();
    let made = rules.launch(own.id, &rules.friend).unwrap();
    let share = |add: bool| {
        let all = vec![Permission::All];
        let (add, remove) = if add { (all, vec![]) } else { (vec![], all) };
        let change = PermissionChange { add, remove };
        modify::share_snapshot(&rules.region, mine, &change, &rules.owner.context()).unwrap();
    };
    let devices = vec![DeviceSpec::of_snapshot("/dev/xvdf", mine)];
    share(true);
    let watch = Meanwhile::new(|| share(false));
    let context = watch.of(&rules.friend);
    let said = CreateImageOptions { name: "new".into(), devices: devices.clone(), ..Default::default() };
    let refused = create_image(&rules.region, made.instance.id, &said, &context);
    assert_eq!(code(refused), Err("InvalidSnapshot.NotFound"));
    share(true);
    let watch = Meanwhile::new(|| share(false));
    let context = watch.of(&rules.friend);
    let launch = imgstore::ops::launch::LaunchOptions {
        devices,
        ..imgstore::ops::launch::LaunchOptions::one(rules.disks.path())
    };
    let refused = imgstore::ops::launch::launch(&rules.region, own.id, &launch, &context);
    assert_eq!(code(refused), Err("InvalidSnapshot.NotFound"));
    let left = std::fs::read_dir(rules.disks.path()).unwrap().count();
    assert_eq!(left, 1, "its disks are removed");
}
