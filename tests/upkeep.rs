//! Checks, repairs and collections by their options and answers: what they look at, what they tell, and to whom.

mod common;

use common::{Caller, MemoryDisk, Rules, code, pass_on, session, small_packs, volume};
use imgstore::io::directory::DirectoryOptions;
use imgstore::io::memory::Memory;
use imgstore::io::storage::{Created, Listed, Object, Storage, StorageError, read_whole};
use imgstore::model::account::{Permission, Resource, Tag};
use imgstore::model::catalog::RootId;
use imgstore::model::ids::{InstanceId, SnapshotId, TemplateId, VolumeId};
use imgstore::model::objects::{PackName, PackRecord};
use imgstore::model::words::Architecture;
use imgstore::ops::bin;
use imgstore::ops::context::Context;
use imgstore::ops::delete::{delete_snapshot, deregister, preview_deregister};
use imgstore::ops::devices::DeviceSpec;
use imgstore::ops::error::OpsError;
use imgstore::ops::find::AnyId;
use imgstore::ops::gc::{GcOptions, collect};
use imgstore::ops::instance::terminate;
use imgstore::ops::launch::{LaunchOptions, launch};
use imgstore::ops::modify::{self, Target};
use imgstore::ops::register::{ImageOptions, register};
use imgstore::ops::repair::{RepairSources, repair};
use imgstore::ops::verify::{Report, VerifyOptions, verify};
use imgstore::ops::volume::delete_volume;
use imgstore::region::error::RegionError;
use imgstore::region::{Region, RegionOptions};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A region with small packs whose objects can be damaged.
struct Place {
    storage: Memory,
    caller: Caller,
}

impl Place {
    fn new() -> Self {
        let storage = Memory::new();
        let options = RegionOptions { pack_bytes: 16 << 10, ..small_packs() };
        common::memory_region(&storage, &options);
        Self { storage, caller: Caller::new(2) }
    }

    fn open(&self) -> Region {
        Region::open(Arc::new(self.storage.clone()), session()).unwrap()
    }

    fn snapshot(&self, seed: u64) -> SnapshotId {
        let disk = MemoryDisk::new(volume(1_200_000, seed));
        self.caller.snapshot(&self.open(), &disk).unwrap().snapshot.id
    }

    fn damage(&self, name: &str, at_from_end: usize) {
        let mut bytes = read_whole(&self.storage, name, 1 << 30).unwrap();
        let at = bytes.len() - at_from_end;
        bytes[at] ^= 1;
        self.storage.restore(name, &bytes).unwrap();
    }

    fn verify(&self, options: &VerifyOptions<'_>) -> Report {
        verify(&self.open(), options, &self.caller.context()).unwrap()
    }

    /// The packs that a snapshot's chunks are in.
    fn packs_of(&self, id: SnapshotId) -> Vec<PackRecord> {
        let catalog = self.open().catalog().unwrap();
        let map = self.open().load_map(&catalog.snapshots[&id].manifest).unwrap();
        let ids: Vec<_> = map.chunks().iter().map(|chunk| chunk.id).collect();
        let places = self.open().locate(&ids).unwrap();
        let names: BTreeSet<_> = places.iter().map(|(_, place)| place.pack).collect();
        names.iter().map(|name| catalog.packs[name].record.clone()).collect()
    }
}

#[test]
fn a_check_of_one_snapshot_reads_its_packs_and_no_other() {
    let place = Place::new();
    let (one, two) = (place.snapshot(1), place.snapshot(2));
    let [of_one, of_two] = [one, two].map(|id| place.packs_of(id));
    assert!(of_one.len() > 2 && of_two.len() > 2);
    place.damage(&of_two[0].name.to_string(), of_two[0].len as usize - 200);
    let of = |ids: &[AnyId]| VerifyOptions { ids: ids.to_vec(), ..VerifyOptions::default() };
    assert_eq!(place.verify(&of(&[AnyId::Snapshot(one)])).findings.len(), 0);
    let report = place.verify(&of(&[AnyId::Snapshot(two)]));
    assert_eq!(report.findings.len(), 1);
    assert_eq!(report.findings[0].affected, [two.to_string()]);
    assert_eq!(place.verify(&of(&[AnyId::Snapshot(one), AnyId::Snapshot(two)])).findings.len(), 1);
    let region = place.open();
    for other in [AnyId::Volume(VolumeId::from_random(1)), AnyId::Instance(InstanceId::from_random(1))] {
        let refused = verify(&region, &of(&[other]), &place.caller.context());
        assert_eq!(code(refused), Err("InvalidParameterValue"), "{other}");
    }
    let image = register(
        &region,
        &ImageOptions::named("of two", Architecture::X86_64),
        &[DeviceSpec::of_snapshot("/dev/xvda", two)],
        &place.caller.context(),
    );
    let image = image.unwrap().id;
    let report = place.verify(&of(&[AnyId::Image(image)]));
    assert_eq!(report.findings[0].affected, [two.to_string(), image.to_string()]);
    let missing = of(&[AnyId::Snapshot(SnapshotId::from_random(3))]);
    assert_eq!(code(verify(&region, &missing, &place.caller.context())), Err("InvalidSnapshot.NotFound"));
}

#[test]
fn a_sample_reads_a_part_and_every_trailer() {
    let place = Place::new();
    place.snapshot(1);
    let packs: Vec<PackRecord> =
        place.open().catalog().unwrap().packs.values().map(|pack| pack.record.clone()).collect();
    assert!(packs.len() >= 4);
    let checked = Mutex::new(BTreeSet::new());
    let note = |name: &PackName| {
        checked.lock().unwrap().insert(*name);
    };
    let half = VerifyOptions { sample_percent: 50.0, on_checked: Some(&note), ..VerifyOptions::default() };
    assert!(place.verify(&half).findings.is_empty());
    assert_eq!(checked.lock().unwrap().len(), packs.len().div_ceil(2));
    let none = VerifyOptions { sample_percent: 0.0, ..VerifyOptions::default() };
    assert!(place.verify(&none).findings.is_empty());
    // A frame is only found by reading, a trailer always.
    place.damage(&packs[0].name.to_string(), packs[0].len as usize - 200);
    assert!(place.verify(&none).findings.is_empty());
    place.damage(&packs[1].name.to_string(), 10);
    let report = place.verify(&none);
    let found: Vec<_> = report.findings.iter().map(|finding| finding.object.clone()).collect();
    assert!(found.contains(&packs[1].name.to_string()) && !found.contains(&packs[0].name.to_string()));
    assert!(report.findings.iter().any(|finding| !finding.affected.is_empty()));
    // What was read already is left out; what was checked longest ago comes first, and is noted in that order.
    let skip: BTreeSet<_> = packs[..2].iter().map(|record| record.name).collect();
    let order = Mutex::new(Vec::new());
    let note = |name: &PackName| order.lock().unwrap().push(*name);
    let ages: BTreeMap<_, _> = packs.iter().rev().zip(1..).map(|(record, age)| (record.name, age)).collect();
    let rest = VerifyOptions { skip, checked_ms: ages, on_checked: Some(&note), ..VerifyOptions::default() };
    let one_thread = Caller::new(1);
    verify(&place.open(), &rest, &one_thread.context()).unwrap();
    let expected: Vec<_> = packs[2..].iter().rev().map(|record| record.name).collect();
    assert_eq!(*order.lock().unwrap(), expected);
}

/// However many packs were never checked, those that were come to it again.
#[test]
fn a_sample_comes_to_old_packs_beside_new_ones() {
    let place = Place::new();
    for seed in 1..4 {
        place.snapshot(seed);
    }
    let packs: Vec<PackName> = place.open().catalog().unwrap().packs.keys().copied().collect();
    let old: BTreeMap<_, _> = packs[..2].iter().zip(1..).map(|(name, at)| (*name, at)).collect();
    let percent = 200.0 / packs.len() as f64;
    assert!(packs.len() >= 6 && percent < 50.0);
    let (mut again, mut new) = (0, 0);
    for _ in 0..20 {
        let read = Mutex::new(Vec::new());
        let note = |name: &PackName| read.lock().unwrap().push(*name);
        let some = VerifyOptions {
            sample_percent: percent,
            checked_ms: old.clone(),
            on_checked: Some(&note),
            ..VerifyOptions::default()
        };
        assert!(place.verify(&some).findings.is_empty());
        let read = read.into_inner().unwrap();
        assert_eq!(read.len(), 2);
        again += read.iter().filter(|name| old.contains_key(name)).count();
        new += read.iter().filter(|name| !old.contains_key(name)).count();
    }
    assert!(again >= 10 && new >= 10, "{again} {new}");
}

#[test]
fn stored_checksums_find_rot_and_the_rate_is_kept() {
    let place = Place::new();
    place.snapshot(1);
    let stored: u64 = place.open().catalog().unwrap().packs.values().map(|pack| pack.record.len).sum();
    let quick = VerifyOptions { content: false, ..VerifyOptions::default() };
    assert!(place.verify(&quick).findings.is_empty());
    let slow = VerifyOptions { bytes_per_second: Some(stored * 4), ..quick.clone() };
    let started = Instant::now();
    assert!(place.verify(&slow).findings.is_empty());
    let took = started.elapsed();
    assert!(
        took > Duration::from_millis(200) && took < Duration::from_secs(20),
        "{took:?} for a quarter second"
    );
    let pack = place.open().catalog().unwrap().packs.values().next().unwrap().record.clone();
    place.damage(&pack.name.to_string(), pack.len as usize - 200);
    let report = place.verify(&quick);
    assert_eq!(report.findings.len(), 1, "{report:?}");
}

#[test]
fn a_finding_names_what_the_caller_may_see() {
    let rules = Rules::new();
    let storage_of = |region: &Region| region.objects().unwrap();
    let own = rules.image("own");
    let shared = rules.import("shared", &[volume(30_000, 8)]);
    rules.share(shared.id, Permission::Account(rules.friend.account), true).unwrap();
    let template = rules.template("template");
    assert!(storage_of(&rules.region).len() > 5);
    // Everything is damaged: the packs go.
    let packs: Vec<PackRecord> = rules.catalog().packs.values().map(|pack| pack.record.clone()).collect();
    for record in &packs {
        rules.storage.delete(&record.name.to_string()).unwrap();
    }
    let affected = |caller: &Caller| {
        let region = Region::open(Arc::new(rules.storage.clone()), session()).unwrap();
        let report = verify(&region, &VerifyOptions::default(), &caller.context()).unwrap();
        let names: BTreeSet<String> = report.findings.iter().flat_map(|f| f.affected.clone()).collect();
        let others: u64 = report.findings.iter().map(|f| f.affected_of_others).sum();
        (names, others)
    };
    let snapshot = |image: &imgstore::model::image::Image| image.snapshot_ids().next().unwrap().to_string();
    let (of_owner, hidden) = affected(&rules.owner);
    for name in [own.id, shared.id, template.id].map(|id| id.to_string()) {
        assert!(of_owner.contains(&name), "{of_owner:?}");
    }
    assert!(of_owner.contains(&template.template.unwrap().to_string()) && hidden == 0);
    let (of_friend, hidden) = affected(&rules.friend);
    assert_eq!(of_friend, [shared.id.to_string(), snapshot(&shared)].into());
    assert!(hidden > 0);
    let (of_stranger, hidden) = affected(&rules.stranger);
    assert!(of_stranger.is_empty() && hidden > 0);
    // Repair says what is lost by image and device.
    let region = Region::open(Arc::new(rules.storage.clone()), session()).unwrap();
    let sources = RepairSources { force: true, ..RepairSources::default() };
    let repaired = repair(&region, &sources, &rules.owner.context()).unwrap();
    let lost: BTreeMap<String, Vec<_>> =
        repaired.lost.iter().map(|lost| (lost.root.to_string(), lost.images.clone())).collect();
    assert_eq!(lost[&snapshot(&own)], [(own.id, "/dev/xvda".to_owned())]);
    let of_template = &lost[&template.template.unwrap().to_string()];
    assert_eq!(*of_template, [(template.id, template.root_device_name.clone())]);
}

#[test]
fn what_a_session_stores_is_counted_to_the_byte() {
    let place = Place::new();
    let region = place.open();
    let added = |before: &[imgstore::io::storage::Listed]| -> u64 {
        let is_content = |name: &str| name.starts_with("packs/") || name.starts_with("manifests/");
        let all = region.objects().unwrap().into_iter();
        all.filter(|o| is_content(&o.name) && !before.contains(o)).map(|o| o.len).sum()
    };
    let mut session = region.begin(place.caller.account).unwrap();
    let raw = vec![7; 4096];
    let id = imgstore::chunk::frame::chunk_id(&raw);
    let frame = region.encode(&raw, id, 3).unwrap();
    assert_eq!((session.reserve(&[id]).unwrap(), session.stored_bytes()), (vec![true], 0));
    session.put(id, &frame).unwrap();
    let unsealed = session.stored_bytes();
    session.flush().unwrap();
    assert!(frame.body.len() as u64 <= unsealed && unsealed < session.stored_bytes(), "{unsealed}");
    assert_eq!(session.stored_bytes(), added(&[]));
    drop(session);
    let before = region.objects().unwrap();
    let taken = place.caller.snapshot(&region, &MemoryDisk::new(volume(1_200_000, 1))).unwrap();
    assert!(taken.ingested.packs.len() > 2);
    assert_eq!(taken.ingested.stored_bytes, added(&before), "packs and the block map");
}

#[test]
fn with_a_broken_log_nothing_else_is_done() {
    let place = Place::new();
    place.snapshot(1);
    let region = place.open();
    let first = place.storage.list("log").unwrap().remove(0).name;
    place.damage(&first, 20);
    let repaired = repair(&region, &RepairSources::default(), &place.caller.context()).unwrap();
    assert!(repaired.is_log_broken && repaired.findings.len() == 1 && repaired.quarantined.is_empty());
}

#[test]
fn a_preview_tells_of_worn_packs_and_of_the_grace() {
    let place = Place::new();
    // Snapshots that share a little: of their packs most is garbage when one of them goes.
    let keeper = volume(700_000, 5);
    let mixed = [keeper.clone(), volume(900_000, 6)].concat();
    let whole = place.caller.snapshot(&place.open(), &MemoryDisk::new(mixed)).unwrap().snapshot.id;
    place.caller.snapshot(&place.open(), &MemoryDisk::new(keeper)).unwrap();
    delete_snapshot(&place.open(), whole, &place.caller.context()).unwrap();
    place.storage.take_all_for_gone(true);
    let dry = Context { dry_run: true, ..place.caller.context() };
    let now = GcOptions { grace_ms: 0, repack_percent: 90 };
    let later = GcOptions { grace_ms: 60_000, ..now };
    let said = collect(&place.open(), &now, &dry).unwrap();
    assert!(said.repacked.count > 0 && said.moved.count > 0 && said.moved.bytes > 0, "{said:?}");
    assert_eq!(said.freed.count, said.condemned.count + said.repacked.count);
    let said_later = collect(&place.open(), &later, &dry).unwrap();
    assert_eq!(said_later.freed.count, 0);
    assert_eq!(said_later.waiting.count, said.freed.count, "{said_later:?}");
    // The same once they are condemned, before the grace is over and after it.
    let done = collect(&place.open(), &later, &place.caller.context()).unwrap();
    assert_eq!((done.freed.count, done.condemned.count), (0, said.condemned.count));
    let waits = collect(&place.open(), &later, &dry).unwrap();
    assert!(waits.freed.count == 0 && waits.waiting.count >= done.condemned.count, "{waits:?}");
    let after = Caller { now_ms: place.caller.now_ms + 60_001, ..Caller::new(1) };
    let due = collect(&place.open(), &later, &Context { dry_run: true, ..after.context() }).unwrap();
    assert!(due.freed.count >= done.condemned.count && due.waiting.count == 0, "{due:?}");
    let freed = collect(&place.open(), &later, &after.context()).unwrap();
    assert_eq!(freed.freed, due.freed);
    assert!(place.verify(&VerifyOptions::default()).findings.is_empty());
    assert_eq!(GcOptions::default().repack_percent, 50);
}

#[test]
fn an_object_that_cannot_be_removed_keeps_nothing_else() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("region");
    let options = DirectoryOptions { reserve_bytes: 0, ..DirectoryOptions::default() };
    Region::create_directory(&root, &small_packs(), options).unwrap();
    let caller = Caller::new(1);
    let open = || Region::open_directory(&root, options).unwrap();
    let id = caller.snapshot(&open(), &MemoryDisk::new(volume(300_000, 1))).unwrap().snapshot.id;
    delete_snapshot(&open(), id, &caller.context()).unwrap();
    // A directory in the place of its manifest cannot be removed as a file.
    let manifest = open().objects().unwrap().into_iter().find(|o| o.name.starts_with("manifests/")).unwrap();
    let path = root.join(&manifest.name);
    let kept = std::fs::read(&path).unwrap();
    let parent = path.parent().unwrap().to_owned();
    let now = GcOptions { grace_ms: 0, repack_percent: 50 };
    if std::fs::metadata("/root").is_ok_and(|_| std::fs::read_dir("/root").is_ok()) {
        // Root is stopped by nothing but the immutable flag; others by the mode of the folder.
        let set = |flag: &str| std::process::Command::new("chattr").arg(flag).arg(&path).status();
        if !set("+i").is_ok_and(|status| status.success()) {
            return;
        }
        let error = collect(&open(), &now, &caller.context()).unwrap_err();
        assert!(error.to_string().contains("remove"), "{error}");
        set("-i").unwrap();
    } else {
        std::fs::set_permissions(&parent, std::fs::Permissions::from_mode(0o500)).unwrap();
        let error = collect(&open(), &now, &caller.context()).unwrap_err();
        assert!(error.to_string().contains("remove"), "{error}");
        std::fs::set_permissions(&parent, std::fs::Permissions::from_mode(0o700)).unwrap();
    }
    assert!(open().catalog().unwrap().packs.is_empty(), "the packs went all the same");
    assert!(std::fs::read(&path).unwrap() == kept);
    assert_eq!(collect(&open(), &now, &caller.context()).unwrap().orphans.count, 1);
}

/// Limits of tags, descriptions and product codes, and tags on everything that has some.
#[test]
fn what_may_be_said_of_things_has_limits() {
    let rules = Rules::new();
    let image = rules.image("web");
    let launched = rules.launch(image.id, &rules.owner).unwrap();
    let snapshot = image.snapshot_ids().next().unwrap();
    let volume = rules.catalog().volumes.values().next().unwrap().id;
    let context = rules.owner.context();
    let pair = |key: &str, value: &str| Tag { key: key.into(), value: value.into() };
    let targets = [
        Target::Image(image.id),
        Target::Snapshot(snapshot),
        Target::Volume(volume),
        Target::Instance(launched.instance.id),
    ];
    for target in targets {
        let set =
            |tags: &[Tag], remove: &[String]| modify::tag(&rules.region, target, tags, remove, &context);
        assert_eq!(set(&[pair("b", "2"), pair("a", "1")], &[]).unwrap(), [pair("a", "1"), pair("b", "2")]);
        assert_eq!(set(&[pair("a", "3")], &["b".into()]).unwrap(), [pair("a", "3")]);
        let many: Vec<Tag> = (0..50).map(|n| pair(&format!("k{n}"), "")).collect();
        assert_eq!(code(set(&many, &[])), Err("TagLimitExceeded"), "with the one that is there");
        assert_eq!(set(&many, &["a".into()]).unwrap().len(), 50);
        let refused = |tag: Tag| code(set(&[tag], &[]));
        let invalid = Err("InvalidParameterValue");
        assert_eq!(refused(pair("", "x")), invalid);
        assert_eq!(refused(pair(&"k".repeat(129), "x")), invalid);
        assert_eq!(refused(pair("k", &"v".repeat(257))), invalid);
        assert_eq!(refused(pair("k\n", "x")), invalid);
        assert_eq!(refused(pair("k", "\u{7}")), invalid);
        assert_eq!(code(set(&[pair("x", "1"), pair("x", "2")], &[])), invalid);
        assert!(set(&[pair(&"k".repeat(128), &"v".repeat(256))], &["k0".into()]).is_ok());
        let stranger = modify::tag(&rules.region, target, &[pair("a", "9")], &[], &rules.stranger.context());
        assert!(stranger.is_err());
    }
    let describe = |text: &str| code(modify::describe_image(&rules.region, image.id, text, &context));
    assert_eq!(describe(&"d".repeat(256)), Err("InvalidParameterValue"));
    assert_eq!(describe("line\nline"), Err("InvalidParameterValue"));
    assert_eq!(describe(&"d".repeat(255)), Ok(()));
    let sell = |codes: &[String]| code(modify::add_product_codes(&rules.region, image.id, codes, &context));
    for bad in ["", "with space", &"c".repeat(65)] {
        assert_eq!(sell(&[bad.to_owned()]), Err("InvalidAMIAttributeItemValue"), "{bad:?}");
    }
    assert_eq!(sell(&["c".repeat(64), "a-1".into()]), Ok(()));
    let many: Vec<String> = (0..1000).map(|n| format!("code{n}")).collect();
    assert_eq!(sell(&many), Err("InvalidAMIAttributeItemValue"));
}

#[test]
fn ids_are_read_and_written_by_their_kind() {
    for (text, prefix) in [
        ("ami-0123456789abcdef0", "ami-"),
        ("snap-0123456789abcdef0", "snap-"),
        ("vol-0123456789abcdef0", "vol-"),
        ("i-0123456789abcdef0", "i-"),
    ] {
        let id: AnyId = text.parse().unwrap();
        assert_eq!((id.to_string().as_str(), id.prefix()), (text, prefix));
    }
    let error = "eni-0123456789abcdef0".parse::<AnyId>().unwrap_err();
    assert!(error.to_string().contains("ami-"), "{error}");
    assert_eq!(Permission::All.to_string(), "all");
    let account = imgstore::model::account::AccountId::from_random(5);
    assert_eq!(Permission::Account(account).to_string(), account.to_string());
    let template = TemplateId::from_random(4);
    assert_eq!(RootId::Template(template).to_string(), template.to_string());
}

/// What the log refuses is said in a sentence.
#[test]
fn what_does_not_apply_is_told() {
    use imgstore::model::op::Op;
    let rules = Rules::new();
    let image = rules.image("web");
    let snapshot = image.snapshot_ids().next().unwrap();
    let refused = |op: Op| {
        let done = rules.region.commit::<_, RegionError>(rules.owner.account, |_| Ok((vec![op.clone()], ())));
        OpsError::from(done.unwrap_err()).to_string()
    };
    let pack = rules.catalog().packs.values().next().unwrap().record.clone();
    let unknown = PackName { number: 99, ..pack.name };
    let cases = [
        (Op::RegisterPack(pack.clone()), "exists already"),
        (Op::DeleteSnapshot { id: snapshot, bin: None }, "currently in use by"),
        (Op::DeleteSnapshot { id: SnapshotId::from_random(9), bin: None }, "does not exist"),
        (Op::SweepPacks { packs: vec![pack.name] }, "is live"),
        (
            Op::RegisterPack(PackRecord { name: unknown, bases: vec![unknown], ..pack }),
            "was removed meanwhile",
        ),
    ];
    for (op, expected) in cases {
        let said = refused(op);
        assert!(said.contains(expected), "{said} / {expected}");
    }
    let twin = imgstore::model::image::Image {
        id: imgstore::model::ids::ImageId::from_random(77),
        ..rules.catalog().images[&image.id].clone()
    };
    let said = refused(Op::RegisterImage(Box::new(twin)));
    assert!(said.contains("is already in use by AMI"), "{said}");
    // The bin, the rules of which decide what a deletion frees.
    bin::add_rule(&rules.region, Resource::Image, 3, &[], &rules.owner.context()).unwrap();
    let done = deregister(&rules.region, image.id, false, &rules.owner.context()).unwrap();
    assert!(done.restorable_until_ms.is_some());
}

/// Two disks of an image that are the same have one block map.
#[test]
fn equal_disks_of_one_image_share_their_block_map() {
    let rules = Rules::new();
    let disk = volume(50_000, 3);
    let image = rules.import("pair", &[disk.clone(), disk]);
    let catalog = rules.catalog();
    let manifests: BTreeSet<_> =
        image.snapshot_ids().map(|id| catalog.snapshots[&id].manifest.name).collect();
    assert_eq!((image.snapshot_ids().count(), manifests.len()), (2, 1));
}

/// What a live instance stands on is not given back by deregistering its image.
#[test]
fn a_template_under_an_instance_frees_nothing() {
    let rules = Rules::new();
    let template = rules.template("template");
    let context = rules.owner.context();
    let freed = || preview_deregister(&rules.region, template.id, true, &context).unwrap().freed_bytes;
    assert!(freed().unwrap() > 0);
    let launched = rules.launch(template.id, &rules.owner).unwrap();
    assert_eq!(freed(), Some(0));
    imgstore::ops::instance::terminate(&rules.region, &[launched.instance.id], &context).unwrap();
    assert!(freed().unwrap() > 0);
}

/// On a full disk a collection deletes, and says what it left unwritten.
#[test]
fn on_a_full_disk_worn_packs_are_left() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("region");
    let room = DirectoryOptions { reserve_bytes: 0, ..DirectoryOptions::default() };
    let options = RegionOptions { pack_bytes: 256 << 10, ..small_packs() };
    Region::create_directory(&root, &options, room).unwrap();
    let caller = Caller::new(1);
    let keeper = volume(700_000, 5);
    let mixed = [keeper.clone(), volume(900_000, 6)].concat();
    let [whole, kept] = [mixed, keeper.clone()].map(|bytes| {
        let region = Region::open_directory(&root, room).unwrap();
        caller.snapshot(&region, &MemoryDisk::new(bytes)).unwrap().snapshot.id
    });
    delete_snapshot(&Region::open_directory(&root, room).unwrap(), whole, &caller.context()).unwrap();
    let full = DirectoryOptions { reserve_bytes: u64::MAX / 2, ..room };
    let now = GcOptions { grace_ms: 0, repack_percent: 90 };
    let region = Region::open_directory(&root, full).unwrap();
    let done = collect(&region, &now, &caller.context()).unwrap();
    assert!(done.freed.count > 0 && done.left_worn.count > 0 && done.repacked.count == 0, "{done:?}");
    let done = collect(&Region::open_directory(&root, room).unwrap(), &now, &caller.context()).unwrap();
    assert!(done.repacked.count > 0 && done.left_worn.count == 0, "{done:?}");
    assert!(caller.read_back(&Region::open_directory(&root, room).unwrap(), kept).unwrap() == keeper);
}

/// A storage that counts how often it is asked for room for a removal.
struct Asked {
    inner: Memory,
    count: Arc<AtomicU64>,
}

impl Storage for Asked {
    fn admit_collector(&self) -> Result<bool, StorageError> {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.inner.admit_collector()
    }

    fn open(&self, name: &str) -> Result<Arc<dyn Object>, StorageError> {
        self.inner.open(name)
    }

    pass_on!(create list restore delete persist admit_writer is_writer_gone);
}

/// What frees space must go on a full disk: each asks for the room that is kept back for it.
#[test]
fn whatever_removes_something_asks_for_room() {
    let rules = Rules::new();
    let count = Arc::new(AtomicU64::new(0));
    let storage = Asked { inner: rules.storage.clone(), count: count.clone() };
    let region = Region::open(Arc::new(storage), session()).unwrap();
    let context = rules.owner.context();
    let asks = |what: &str, remove: &dyn Fn()| {
        let before = count.load(Ordering::Relaxed);
        remove();
        assert!(count.load(Ordering::Relaxed) > before, "{what}");
    };
    let image = rules.image("web");
    let snapshot = image.snapshot_ids().next().unwrap();
    let keep = DeviceSpec {
        device_name: "/dev/xvda".into(),
        delete_on_termination: Some(false),
        ..DeviceSpec::default()
    };
    let options = LaunchOptions { devices: vec![keep], ..LaunchOptions::one(rules.disks.path()) };
    let launched = launch(&region, image.id, &options, &context).unwrap().remove(0);
    asks("terminate", &|| drop(terminate(&region, &[launched.instance.id], &context).unwrap()));
    asks("delete-volume", &|| drop(delete_volume(&region, launched.volumes[0].id, &context).unwrap()));
    asks("deregister", &|| drop(deregister(&region, image.id, false, &context).unwrap()));
    asks("delete-snapshot", &|| {
        delete_snapshot(&region, snapshot, &context).unwrap();
    });
    asks("gc", &|| drop(collect(&region, &GcOptions::default(), &context).unwrap()));
}
