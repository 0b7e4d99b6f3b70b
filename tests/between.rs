//! What others do between two steps of a command, at one after another of its steps: the command ends well, tells of no
//! damage, and nothing is lost.

mod common;

use common::{
    Caller, Draw, MemoryDisk, alike, import_disks, memory_region, pass_on, session, small_packs, volume,
};
use imgstore::disk::DiskRead;
use imgstore::format::record::{self, Body};
use imgstore::io::memory::Memory;
use imgstore::io::storage::{Created, Listed, Object, Storage, StorageError, read_whole};
use imgstore::model::catalog::Pack;
use imgstore::model::changes::Changes;
use imgstore::model::ids::{SessionId, SnapshotId, VolumeId};
use imgstore::model::objects::{ManifestRecord, PackName, PackState};
use imgstore::model::op::Op;
use imgstore::model::words::{Architecture, VolumeType};
use imgstore::ops::capture::{CaptureOptions, CaptureWhat, create_snapshots};
use imgstore::ops::context::Context;
use imgstore::ops::copy::{CopyOptions, CopyWhat, apply, plan};
use imgstore::ops::delete::{delete_snapshot, deregister};
use imgstore::ops::encode::Compression;
use imgstore::ops::error::{Class, OpsError};
use imgstore::ops::find::AnyId;
use imgstore::ops::gaps::Gaps;
use imgstore::ops::gc::{GcOptions, collect, preview};
use imgstore::ops::import::{ImportDisk, import, import_template};
use imgstore::ops::ingest::ingest;
use imgstore::ops::register::ImageOptions;
use imgstore::ops::repack::{RepackOptions, repack};
use imgstore::ops::repair::{RepairSources, Repaired, repair, repair_into};
use imgstore::ops::snapshot::{Hint, SnapshotOptions, snapshot};
use imgstore::ops::stats::region_stats;
use imgstore::ops::verify::{Finding, VerifyOptions, verify};
use imgstore::ops::volume::{VolumeOptions, create_volume};
use imgstore::region::error::RegionError;
use imgstore::region::{Region, RegionOptions};
use std::sync::{Arc, Mutex};

const NOW: GcOptions = GcOptions { grace_ms: 0, repack_percent: 50 };

/// What happens before an object is opened whose name begins so, after so many that do; with `create ` before the
/// name, before it is created.
struct Event {
    prefix: String,
    skip: usize,
    act: Act,
}

type Act = Box<dyn FnMut(&Stage) + Send>;

/// The beginning of names, as in an event, what the storage says of such steps, and of how many.
type Refusal = (&'static str, fn(String) -> StorageError, usize);

/// A storage on which something happens between. Only the writer under test counts as alive.
#[derive(Clone)]
struct Stage {
    inner: Memory,
    event: Arc<Mutex<Option<Event>>>,
    refused: Arc<Mutex<Option<Refusal>>>,
    alive: SessionId,
}

impl Stage {
    fn new(inner: Memory) -> Self {
        Self { inner, event: Arc::default(), refused: Arc::default(), alive: session() }
    }

    /// On a copy of a storage.
    fn copy_of(storage: &Memory) -> Self {
        let copy = Memory::new();
        for listed in storage.list("").unwrap() {
            copy.restore(&listed.name, &read_whole(storage, &listed.name, 1 << 24).unwrap()).unwrap();
        }
        Self::new(copy)
    }

    /// The region as the writer under test has it.
    fn region(&self) -> Region {
        Region::open(Arc::new(self.clone()), self.alive).unwrap()
    }

    /// As others have it.
    fn other(&self) -> Region {
        Region::open(Arc::new(self.clone()), session()).unwrap()
    }

    /// Something that happens once.
    fn plan(&self, prefix: &str, skip: usize, act: impl FnMut(&Self) + Send + 'static) {
        *self.event.lock().unwrap() = Some(Event { prefix: prefix.into(), skip, act: Box::new(act) });
    }

    /// Whether it has happened. It does not happen any more.
    fn has_happened(&self) -> bool {
        self.event.lock().unwrap().take().is_none()
    }

    /// From now on these steps fail.
    fn refuse(&self, prefix: &'static str, error: fn(String) -> StorageError) {
        *self.refused.lock().unwrap() = Some((prefix, error, usize::MAX));
    }

    /// The next of these steps fails.
    fn refuse_once(&self, prefix: &'static str, error: fn(String) -> StorageError) {
        *self.refused.lock().unwrap() = Some((prefix, error, 1));
    }

    fn step(&self, name: &str) -> Result<(), StorageError> {
        if let Some((prefix, error, left)) = self.refused.lock().unwrap().as_mut()
            && *left > 0
            && name.starts_with(*prefix)
        {
            *left -= 1;
            return Err(error(name.to_owned()));
        }
        let mut planned = self.event.lock().unwrap();
        let Some(event) = planned.as_mut().filter(|event| name.starts_with(&event.prefix)) else {
            return Ok(());
        };
        if event.skip > 0 {
            event.skip -= 1;
            return Ok(());
        }
        let mut event = planned.take().unwrap();
        drop(planned);
        (event.act)(self);
        Ok(())
    }
}

impl Storage for Stage {
    fn create(&self, name: &str, parts: &[&[u8]]) -> Result<Created, StorageError> {
        self.step(&format!("create {name}"))?;
        self.inner.create(name, parts)
    }

    fn open(&self, name: &str) -> Result<Arc<dyn Object>, StorageError> {
        self.step(name)?;
        self.inner.open(name)
    }

    fn is_writer_gone(&self, writer: &str) -> Result<bool, StorageError> {
        Ok(writer != self.alive.to_string())
    }

    pass_on!(list restore delete persist admit_writer admit_collector);
}

/// A region with a segment, packs that are worn, garbage, and snapshots that somebody is about to delete.
struct World {
    storage: Memory,
    kept: Vec<(SnapshotId, Vec<u8>)>,
    /// Most of the packs in the segment are theirs.
    going: Vec<SnapshotId>,
}

impl World {
    fn new() -> Self {
        let (storage, caller) = (Memory::new(), Caller::new(1));
        memory_region(&storage, &small_packs());
        let region = Stage::new(storage.clone()).other();
        let take =
            |bytes: &[u8]| caller.snapshot(&region, &MemoryDisk::new(bytes.to_vec())).unwrap().snapshot.id;
        let small = |number: u64| number.to_le_bytes().repeat(1024);
        let part = volume(20_000, 1);
        let whole = take(&[part.clone(), volume(100_000, 2)].concat());
        let mut kept = vec![(take(&part), part)];
        kept.extend((1..20).map(|number| (take(&small(number)), small(number))));
        let going = (20..70).map(|number| take(&small(number))).collect();
        let garbage = take(&volume(100_000, 3));
        for id in [whole, garbage] {
            delete_snapshot(&region, id, &caller.context()).unwrap();
        }
        assert_eq!(region.catalog().unwrap().segments.len(), 1);
        Self { storage, kept, going }
    }

    /// A copy of it, on which nothing has happened yet.
    fn stage(&self) -> Stage {
        Stage::copy_of(&self.storage)
    }

    /// Deletes what is going and collects it: packs go, others are rewritten, and the segment is made anew.
    fn delete_and_collect(&self) -> impl Fn(&Stage) + Send + 'static {
        let going = self.going.clone();
        move |stage| {
            let (region, caller) = (stage.other(), Caller::new(1));
            for id in &going {
                delete_snapshot(&region, *id, &caller.context()).unwrap();
            }
            let collected = collect(&region, &NOW, &caller.context()).unwrap();
            assert!(collected.freed.count >= going.len() as u64, "{collected:?}");
        }
    }

    fn assert_whole(&self, stage: &Stage, what: &str) {
        let (region, caller) = (stage.other(), Caller::new(1));
        let report = verify(&region, &VerifyOptions::default(), &caller.context()).unwrap();
        assert!(report.findings.is_empty(), "{what}: {:?}", report.findings);
        for (id, bytes) in &self.kept {
            assert!(caller.read_directly(&region, *id).unwrap() == *bytes, "{what}: {id}");
        }
    }
}

fn copy(from: &Region, to: &Region, id: SnapshotId, caller: &Caller) -> Result<SnapshotId, OpsError> {
    let options = CopyOptions::default();
    let plan = plan(from, to, CopyWhat::Snapshot(id), &options, &caller.context())?;
    Ok(apply(from, to, &plan, &options, &caller.context())?.snapshots[0].id)
}

type Command = fn(&World, &Region, &Caller, &str);

/// Commands, each of which must end well.
const COMMANDS: [(&str, Command); 9] = [
    ("verify", |_, region, caller, what| {
        let report = verify(region, &VerifyOptions::default(), &caller.context()).unwrap();
        assert!(report.findings.is_empty(), "{what}: {:?}", report.findings);
    }),
    ("verify of trailers", |_, region, caller, what| {
        let none = VerifyOptions { sample_percent: 0.0, ..VerifyOptions::default() };
        let report = verify(region, &none, &caller.context()).unwrap();
        assert!(report.findings.is_empty(), "{what}: {:?}", report.findings);
    }),
    ("repair", |_, region, caller, what| {
        let done = repair(region, &RepairSources::default(), &caller.context()).unwrap();
        assert!(done.findings.is_empty() && done.lost.is_empty(), "{what}: {done:?}");
    }),
    ("collect", |_, region, caller, what| {
        let done = collect(region, &NOW, &caller.context());
        assert!(done.is_ok(), "{what}: {done:?}");
    }),
    ("collect, dry run", |_, region, caller, what| {
        let done = preview(region, &NOW, &caller.context());
        assert!(done.is_ok(), "{what}: {done:?}");
    }),
    ("repack", |_, region, caller, what| {
        let done = repack(region, &RepackOptions::default(), &caller.context());
        assert!(done.is_ok(), "{what}: {done:?}");
    }),
    ("copy", |world, region, caller, what| {
        let (id, bytes) = &world.kept[0];
        let target = memory_region(&Memory::new(), &small_packs());
        let copy = copy(region, &target, *id, caller).unwrap();
        assert!(caller.read_back(&target, copy).unwrap() == *bytes, "{what}");
    }),
    ("export", |world, region, caller, what| {
        let (id, bytes) = &world.kept[0];
        assert!(caller.read_back(region, *id).unwrap() == *bytes, "{what}");
    }),
    ("snapshot", |world, region, caller, what| {
        let bytes = &world.kept[0].1;
        let id = caller.snapshot(region, &MemoryDisk::new(bytes.clone())).unwrap().snapshot.id;
        assert!(caller.read_back(region, id).unwrap() == *bytes, "{what}");
    }),
];

/// The same, with what is at hand.
type AnyCommand<'a> = &'a dyn Fn(&World, &Region, &Caller, &str);

/// What happens to a copy of the world after some steps of a command.
type Between<'a> = &'a dyn Fn() -> Act;

/// Runs a command with an event at one after another of its steps. Gives how often it happened.
fn run_with(
    world: &World,
    (name, command): (&str, AnyCommand<'_>),
    prefixes: &[&str],
    event: Between<'_>,
) -> usize {
    let (caller, mut happened) = (Caller::new(1), 0);
    for prefix in prefixes {
        for skip in [0, 1, 2, 3, 4, 5, 10, 20, 40, 60, 80, 120, 160] {
            let stage = world.stage();
            let region = stage.region();
            stage.plan(prefix, skip, event());
            let what = format!("{name}, {prefix} {skip}");
            command(world, &region, &caller, &what);
            if !stage.has_happened() {
                break;
            }
            happened += 1;
            world.assert_whole(&stage, &what);
        }
    }
    happened
}

/// The pack that has the first chunk of the first snapshot.
fn worn_pack(world: &World) -> String {
    let region = world.stage().region();
    let kept = &region.catalog().unwrap().snapshots[&world.kept[0].0];
    let chunk = region.load_map(&kept.manifest).unwrap().chunks()[0].id;
    region.locate(&[chunk]).unwrap()[0].1.pack.to_string()
}

#[test]
fn a_collection_between_any_two_steps_harms_no_command() {
    let world = World::new();
    let worn = worn_pack(&world);
    for (name, command) in COMMANDS {
        let prefixes = [&*worn, "packs/", "manifests/", "index/", "log/"];
        let happened =
            run_with(&world, (name, &command), &prefixes, &|| Box::new(world.delete_and_collect()));
        assert!(happened > 3, "{name}: {happened}");
    }
}

/// A pack rots and a repair puts it into quarantine, having stored anew what was in it: commands read that.
#[test]
fn a_repair_between_any_two_steps_harms_no_command() {
    let world = World::new();
    let (worn, disk) = (worn_pack(&world), world.kept[0].1.clone());
    let event = || -> Act {
        let (worn, disk) = (worn.clone(), disk.clone());
        Box::new(move |stage| {
            let mut bytes = read_whole(&stage.inner, &worn, 1 << 24).unwrap();
            bytes[200..300].iter_mut().for_each(|byte| *byte ^= 0x55);
            stage.inner.delete(&worn).unwrap();
            stage.inner.restore(&worn, &bytes).unwrap();
            let disks: [Box<dyn DiskRead>; 1] = [Box::new(MemoryDisk::new(disk.clone()))];
            let sources = RepairSources { disks: &disks, ..RepairSources::default() };
            let repaired = repair(&stage.other(), &sources, &Caller::new(1).context()).unwrap();
            assert!(repaired.lost.is_empty() && repaired.quarantined.len() == 1, "{repaired:?}");
        })
    };
    // Those tell of what they met themselves, and of nothing else.
    let check = |_: &World, region: &Region, caller: &Caller, what: &str| {
        let report = verify(region, &VerifyOptions::default(), &caller.context()).unwrap();
        assert!(report.findings.iter().all(|found| found.object == worn), "{what}: {:?}", report.findings);
    };
    let mend = |_: &World, region: &Region, caller: &Caller, what: &str| {
        let done = repair(region, &RepairSources::default(), &caller.context()).unwrap();
        assert!(done.lost.is_empty() && done.quarantined.len() < 2, "{what}: {done:?}");
    };
    let others = COMMANDS.iter().filter(|(name, _)| !name.starts_with("verify") && *name != "repair");
    let others = others.map(|(name, command)| (*name, command as AnyCommand<'_>));
    for (name, command) in others.chain([("verify", &check as _), ("repair", &mend as _)]) {
        let happened = run_with(&world, (name, command), &[&*worn, "packs/", "manifests/", "log/"], &event);
        assert!(happened > 3, "{name}: {happened}");
    }
}

/// A snapshot that is about to be deleted, and a disk that is like it but for its end: whoever stores that counts on
/// content which nothing else needs then.
struct Lent {
    storage: Memory,
    parent: SnapshotId,
    disk: Vec<u8>,
    /// The disk as a volume.
    volume: VolumeId,
    /// The disk as a snapshot in another region.
    source: Region,
    far: SnapshotId,
    _files: tempfile::TempDir,
}

impl Lent {
    const END: std::ops::Range<usize> = 160 << 10..200 << 10;

    fn new() -> Self {
        let (storage, caller, files) = (Memory::new(), Caller::new(1), tempfile::tempdir().unwrap());
        let options = RegionOptions { pack_bytes: 16 << 10, ..small_packs() };
        let (region, source) =
            (memory_region(&storage, &options), memory_region(&Memory::new(), &small_packs()));
        let before = volume(200 << 10, 7);
        let mut disk = before.clone();
        let mut draw = Draw::new(8);
        disk[Self::END].fill_with(|| draw.next() as u8);
        let parent = caller.snapshot(&region, &MemoryDisk::new(before)).unwrap().snapshot.id;
        let far = caller.snapshot(&source, &MemoryDisk::new(disk.clone())).unwrap().snapshot.id;
        let options = VolumeOptions {
            snapshot_id: None,
            volume_bytes: Some(disk.len() as u64),
            volume_type: VolumeType::Gp3,
            iops: None,
            output: files.path().into(),
            tags: vec![],
            client_token: None,
        };
        let made = create_volume(&region, &options, &caller.context()).unwrap();
        std::fs::write(&made.path, &disk).unwrap();
        Self { storage, parent, disk, volume: made.id, source, far, _files: files }
    }

    /// The parent is deleted and collected, with a grace or at once.
    fn take_away(&self, grace_ms: u64) -> impl Fn(&Stage) + Send + 'static {
        let parent = self.parent;
        move |stage| {
            let (region, caller) = (stage.other(), Caller::new(1));
            delete_snapshot(&region, parent, &caller.context()).unwrap();
            let options = GcOptions { grace_ms, repack_percent: 0 };
            collect(&region, &options, &caller.context()).unwrap();
        }
    }

    /// Whatever is condemned goes, needed or not; then a snapshot or template has all of its content.
    fn assert_whole(&self, stage: &Stage, manifest: &ManifestRecord, what: &str) {
        let (region, caller) = (stage.other(), Caller::new(1));
        let is_condemned = |pack: &&Pack| matches!(pack.state, PackState::Condemned { .. });
        let catalog = region.catalog().unwrap();
        let condemned = catalog.packs.values().filter(is_condemned);
        let packs = condemned.map(|pack| pack.record.name).collect();
        let sweep = |_: &_| Ok((vec![Op::SweepPacks { packs: Vec::clone(&packs) }], ()));
        region.commit::<_, RegionError>(caller.account, sweep).unwrap();
        region.remove_swept::<RegionError>(caller.account, || Ok(())).unwrap();
        let report = verify(&region, &VerifyOptions::default(), &caller.context()).unwrap();
        assert!(report.findings.is_empty(), "{what}: {:?}", report.findings);
        assert!(caller.read_content(&region, manifest).unwrap() == self.disk, "{what}");
    }
}

/// The packs that the record of a snapshot or template with this block map names.
fn named_packs(stage: &Stage, manifest: &ManifestRecord) -> Vec<PackName> {
    let last = stage.other().catalog().unwrap().sequence;
    let ops = (1..=last).flat_map(|sequence| {
        let name = format!("log/{:017}/{sequence:020}", sequence / 1000);
        let bytes = read_whole(&stage.inner, &name, 1 << 20).unwrap();
        let Body::Inline(ops) = record::decode(&bytes).unwrap().0.body else { panic!("{name} is long") };
        ops
    });
    let mut named = ops.filter_map(|op| match op {
        Op::CreateSnapshot { snapshot, packs } if snapshot.manifest == *manifest => Some(packs),
        Op::CreateTemplate { template, packs } if template.manifest == *manifest => Some(packs),
        _ => None,
    });
    named.next().unwrap()
}

/// Everything that makes a snapshot or template, while what it counts on is condemned or goes: its record names what it
/// has to rescue, or is not written before the content is stored again. Alone it names nothing.
#[test]
fn what_a_new_snapshot_counts_on_is_condemned_or_goes_between_any_two_steps() {
    type Command = fn(&Lent, &Region, &Caller) -> Result<ManifestRecord, OpsError>;
    fn hint(lent: &Lent) -> SnapshotOptions {
        let mut changes = Changes::default();
        changes.add_bytes(Lent::END.start as u64..Lent::END.end as u64);
        let hint = Some(Hint { changes, verify: false });
        SnapshotOptions { parent: Some(lent.parent), hint, ..SnapshotOptions::default() }
    }
    let commands: [(&str, Command); 6] = [
        ("snapshot", |lent, region, caller| {
            Ok(caller.snapshot(region, &MemoryDisk::new(lent.disk.clone()))?.snapshot.manifest)
        }),
        ("snapshot with a hint", |lent, region, caller| {
            let disk = MemoryDisk::new(lent.disk.clone());
            Ok(snapshot(region, &disk, &hint(lent), &caller.context())?.snapshot.manifest)
        }),
        ("import", |lent, region, caller| {
            let disk = Box::new(MemoryDisk::new(lent.disk.clone()));
            let disks = [ImportDisk { device_name: "/dev/xvda".into(), disk }];
            let options = ImageOptions::named("image", Architecture::X86_64);
            let made = import(region, &disks, &[], &options, Compression::default(), &caller.context())?;
            Ok(made.snapshots[0].manifest.clone())
        }),
        ("import of a template", |lent, region, caller| {
            let (disk, options) =
                (MemoryDisk::new(lent.disk.clone()), ImageOptions::named("image", Architecture::X86_64));
            let image =
                import_template(region, &disk, &[], &options, Compression::default(), &caller.context())?
                    .image;
            Ok(region.catalog()?.templates[&image.template.unwrap()].manifest.clone())
        }),
        ("snapshot of a volume", |lent, region, caller| {
            let (what, options) = (CaptureWhat::Volume(lent.volume), CaptureOptions::default());
            Ok(create_snapshots(region, what, &options, &caller.context())?.snapshots[0].manifest.clone())
        }),
        ("copy", |lent, region, caller| {
            let (what, options) = (CopyWhat::Snapshot(lent.far), CopyOptions::default());
            let plan = plan(&lent.source, region, what, &options, &caller.context())?;
            let copied = apply(&lent.source, region, &plan, &options, &caller.context())?;
            Ok(copied.snapshots[0].manifest.clone())
        }),
    ];
    let (lent, caller) = (Lent::new(), Caller::new(1));
    for (name, command) in commands {
        let alone = Stage::copy_of(&lent.storage);
        let manifest = command(&lent, &alone.region(), &caller).unwrap();
        assert_eq!(named_packs(&alone, &manifest), [], "{name}");
        for grace_ms in [0, 1000] {
            let (mut happened, mut rescuing) = (0, 0);
            for prefix in ["packs/", "log/", "create packs/", "create manifests/", "create log/"] {
                for skip in [0, 1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 40] {
                    let stage = Stage::copy_of(&lent.storage);
                    let region = stage.region();
                    stage.plan(prefix, skip, lent.take_away(grace_ms));
                    let what = format!("{name}, {prefix} {skip}, grace {grace_ms}");
                    let made = command(&lent, &region, &caller);
                    if !stage.has_happened() {
                        break;
                    }
                    happened += 1;
                    match made {
                        Ok(manifest) => {
                            lent.assert_whole(&stage, &manifest, &what);
                            rescuing += usize::from(!named_packs(&stage, &manifest).is_empty());
                        }
                        // The parent is gone before the command has begun.
                        Err(error) => {
                            assert!(error.class() == Class::NotFound && skip == 0, "{what}: {error}")
                        }
                    }
                }
            }
            assert!(happened > 10, "{name}: {happened}");
            assert_eq!(rescuing > 0, grace_ms > 0, "{name}: {rescuing} of {happened}");
        }
    }
}

/// A collection that finds damage each time says so, however often the log goes on meanwhile.
#[test]
fn damage_is_told_although_others_commit() {
    let (world, caller) = (World::new(), Caller::new(1));
    let stage = world.stage();
    let catalog = stage.other().catalog().unwrap();
    let lost = catalog.snapshots[&world.kept[3].0].manifest.name.to_string();
    stage.inner.delete(&lost).unwrap();
    let region = stage.region();
    fn append(stage: &Stage, lost: &str) {
        let again = lost.to_owned();
        stage.plan(lost, 0, move |stage| {
            let commit = |_: &_| Ok((vec![Op::NoOp], ()));
            stage.other().commit::<_, RegionError>(common::provider(), commit).unwrap();
            append(stage, &again);
        });
    }
    append(&stage, &lost);
    let error = collect(&region, &NOW, &caller.context()).unwrap_err();
    assert_eq!(error.class(), Class::Damage, "{error}");
    assert!(region.catalog().unwrap().sequence > catalog.sequence + 1, "it has tried again");
}

/// Who knows that a pack is lost, finds what is stored anew while it looks.
#[test]
fn what_is_repaired_between_is_read() {
    let (world, caller) = (World::new(), Caller::new(1));
    let stage = world.stage();
    let region = stage.region();
    let (id, bytes) = world.kept[5].clone();
    let map = region.load_map(&region.catalog().unwrap().snapshots[&id].manifest).unwrap();
    let chunks: Vec<_> = map.chunks().iter().map(|chunk| chunk.id).collect();
    let pack = region.locate(&chunks).unwrap()[0].1.pack.to_string();
    stage.inner.delete(&pack).unwrap();
    assert!(region.fetch(&chunks).is_err());
    let disk = bytes.clone();
    stage.plan(&pack, 0, move |stage| {
        let disks: [Box<dyn DiskRead>; 1] = [Box::new(MemoryDisk::new(disk.clone()))];
        let sources = RepairSources { disks: &disks, ..RepairSources::default() };
        let repaired = repair(&stage.other(), &sources, &Caller::new(1).context()).unwrap();
        assert!(repaired.lost.is_empty() && repaired.reread > 0, "{repaired:?}");
    });
    assert!(region.fetch(&chunks).is_ok());
    assert!(stage.has_happened() && caller.read_back(&region, id).unwrap() == bytes);
}

/// A chunk is in two packs, of which the one where it was found goes before it is read.
#[test]
fn a_chunk_is_read_from_its_other_pack() {
    let (storage, caller) = (Memory::new(), Caller::new(1));
    memory_region(&storage, &small_packs());
    let stage = Stage::new(storage);
    let bytes = volume(20_000, 1);
    // Both look before either has stored.
    let writers = [stage.other(), stage.other()];
    let mut sessions = writers.each_ref().map(|region| region.begin(caller.account).unwrap());
    let [stored, _] = sessions.each_mut().map(|session| {
        let disk = MemoryDisk::new(bytes.clone());
        ingest(session, &disk, &Compression::default(), &caller.context()).unwrap()
    });
    let region = stage.region();
    let map = region.load_map(&stored.manifest).unwrap();
    let chunks: Vec<_> = map.chunks().iter().map(|chunk| chunk.id).collect();
    let pack = |region: &Region| region.locate(&chunks).unwrap()[0].1.pack;
    let first = pack(&region);
    stage.inner.delete(&first.to_string()).unwrap();
    let fetched = region.fetch(&chunks).unwrap();
    for frame in fetched.frames() {
        let mut raw = vec![0; fetched.raw_bytes(frame)];
        fetched.decode_here(&region, frame, &mut raw).unwrap();
    }
    assert_ne!(pack(&region), first);
}

/// A region of some snapshots, and one of these that is deleted and collected beside another command.
fn going(others: u64) -> (Stage, SnapshotId, Vec<u8>, impl Fn(&Stage) + Send + Clone + 'static) {
    let caller = Caller::new(1);
    let stage = Stage::new(Memory::new());
    memory_region(&stage.inner, &small_packs());
    let region = stage.other();
    for number in 0..others {
        caller.snapshot(&region, &MemoryDisk::new(number.to_le_bytes().repeat(512))).unwrap();
    }
    let bytes = volume(20_000, 1);
    let id = caller.snapshot(&region, &MemoryDisk::new(bytes.clone())).unwrap().snapshot.id;
    let delete_and_collect = move |stage: &Stage| {
        let (region, caller) = (stage.other(), Caller::new(1));
        delete_snapshot(&region, id, &caller.context()).unwrap();
        let collected = collect(&region, &NOW, &caller.context()).unwrap();
        assert!(collected.freed.count == 1 && collected.orphans.count == 1, "{collected:?}");
    };
    (stage, id, bytes, delete_and_collect)
}

#[test]
fn what_goes_while_it_is_checked_is_no_damage() {
    for prefix in ["packs/", "manifests/"] {
        let (stage, _, _, delete_and_collect) = going(3);
        let region = stage.region();
        stage.plan(prefix, 0, delete_and_collect);
        let report = verify(&region, &VerifyOptions::default(), &Caller::new(1).context()).unwrap();
        assert!(stage.has_happened());
        assert!(report.findings.is_empty(), "{prefix}: {:?}", report.findings);
    }
}

#[test]
fn what_goes_while_it_is_copied_does_not_exist() {
    let caller = Caller::new(1);
    for (prefix, skip) in [("manifests/", 0), ("packs/", 0), ("packs/", 1), ("packs/", 2)] {
        let (stage, id, _, delete_and_collect) = going(3);
        let (region, target) = (stage.region(), memory_region(&Memory::new(), &small_packs()));
        stage.plan(prefix, skip, delete_and_collect);
        let error = copy(&region, &target, id, &caller).unwrap_err();
        assert!(stage.has_happened());
        assert_eq!(error.code(), "InvalidSnapshot.NotFound", "{prefix} {skip}: {error}");
    }
}

/// Its owner is told that an image was deregistered, as where it was before.
#[test]
fn an_image_that_goes_while_it_is_copied_is_not_available() {
    let (stage, caller) = (Stage::new(Memory::new()), Caller::new(1));
    memory_region(&stage.inner, &small_packs());
    let image = import_disks(&stage.other(), &caller, "web", vec![volume(20_000, 1)]);
    stage.plan("manifests/", 0, move |stage| {
        let (region, caller) = (stage.other(), Caller::new(1));
        deregister(&region, image.id, true, &caller.context()).unwrap();
        collect(&region, &NOW, &caller.context()).unwrap();
    });
    let (region, target) = (stage.region(), memory_region(&Memory::new(), &small_packs()));
    let what = CopyWhat::Image(image.id);
    let error =
        plan(&region, &target, what, &CopyOptions::default(), &caller.context()).map(drop).unwrap_err();
    assert!(stage.has_happened());
    assert_eq!(error.code(), "InvalidAMIID.Unavailable", "{error}");
}

/// A snapshot has found its block map in the region, and just before it is on record that goes: its packs are only condemned,
/// and could be rescued.
#[test]
fn a_block_map_that_goes_before_it_is_named_is_written_again() {
    let (stage, id, bytes, _) = going(0);
    let (region, caller) = (stage.region(), Caller::new(1));
    stage.plan("create log/", 0, move |stage| {
        let (other, caller) = (stage.other(), Caller::new(1));
        delete_snapshot(&other, id, &caller.context()).unwrap();
        let options = GcOptions { grace_ms: 1000, ..NOW };
        assert_eq!(collect(&other, &options, &caller.context()).unwrap().orphans.count, 1);
    });
    let taken = caller.snapshot(&region, &MemoryDisk::new(bytes.clone())).unwrap();
    assert!(stage.has_happened());
    assert!(caller.read_directly(&stage.other(), taken.snapshot.id).unwrap() == bytes);
}

/// What a collection has to remove waited long enough; nothing else is to be done. A snapshot between mark and sweep has it look again.
#[test]
fn what_is_due_goes_although_others_commit() {
    let (stage, mut caller) = (World::new().stage(), Caller::new(1));
    let options = GcOptions { grace_ms: 10_000, repack_percent: 0 };
    assert!(collect(&stage.other(), &options, &caller.context()).unwrap().condemned.count > 0);
    caller.now_ms += 10_000;
    stage.plan("manifests/", 2, |stage| {
        Caller::new(1).snapshot(&stage.other(), &MemoryDisk::new(vec![7; 9000])).unwrap();
    });
    let collected = collect(&stage.region(), &options, &caller.context()).unwrap();
    assert!(stage.has_happened() && collected.freed.count > 0, "{collected:?}");
}

/// That segments are not merged since the disk is full keeps no collection from being one. Any other error is told.
#[test]
fn a_collection_on_a_full_disk_leaves_segments_as_they_are() {
    let full = |name| StorageError::NoSpace { name, available: 0, needed: 1 };
    let broken =
        |name| StorageError::Io { action: "create", name, source: std::io::Error::other("it is broken") };
    for (error, is_told) in [(full as fn(String) -> StorageError, false), (broken, true)] {
        let (stage, id, _, _) = going(0);
        let caller = Caller::new(1);
        stage.refuse("create index/", error);
        // Whoever stores leaves it to a collection, too.
        for number in 0..70_u64 {
            caller.snapshot(&stage.other(), &MemoryDisk::new(number.to_le_bytes().repeat(512))).unwrap();
        }
        delete_snapshot(&stage.other(), id, &caller.context()).unwrap();
        let before = stage.other().catalog().unwrap().packs.len();
        let done = collect(&stage.other(), &NOW, &caller.context());
        assert_eq!(done.is_err(), is_told, "{done:?}");
        let catalog = stage.other().catalog().unwrap();
        assert!(catalog.packs.len() < before && catalog.segments.is_empty());
    }
}

fn no_answer(name: String) -> StorageError {
    StorageError::Io { action: "read", name, source: std::io::Error::other("the device does not answer") }
}

/// A device that failed once is asked again before anything is told to be lost, or put in quarantine.
#[test]
fn what_could_not_be_read_once_is_not_called_lost() {
    let (stage, ..) = going(3);
    for prefix in ["packs/", "manifests/", "log/"] {
        let (mut happened, mut whole) = (0, 0);
        for skip in 0..100 {
            let region = stage.region();
            stage.plan(prefix, skip, move |stage| stage.refuse_once(prefix, no_answer));
            let repaired = repair(&region, &RepairSources::default(), &Caller::new(1).context());
            let has_happened = stage.has_happened();
            happened += usize::from(has_happened);
            stage.refuse("none", no_answer);
            let what = format!("{prefix} {skip}: {repaired:?}");
            let Ok(repaired) = repaired else {
                assert_eq!(repaired.unwrap_err().class(), Class::Failed, "{what}");
                continue;
            };
            assert!(repaired.lost.is_empty() && repaired.quarantined.is_empty(), "{what}");
            assert!(!repaired.is_log_broken, "{what}");
            let is_of_object = |finding: &Finding| finding.problem.contains("does not answer");
            assert!(repaired.findings.iter().all(is_of_object), "{what}");
            whole += usize::from(has_happened && repaired.findings.is_empty());
        }
        assert!(whole > 0, "{prefix}: nothing was asked for again");
        assert!(happened > 3 && happened < 100, "{prefix}: {happened}");
    }
}

/// Nor are zeros written for it.
#[test]
fn what_could_not_be_read_once_is_no_gap() {
    let (stage, id, bytes, _) = going(3);
    let (mut happened, mut whole) = (0, 0);
    for skip in 0..60 {
        let region = stage.region();
        stage.plan("packs/", skip, |stage| stage.refuse_once("packs/", no_answer));
        let gaps = Gaps::default();
        let read = Caller::new(1).read_with(&region, id, Some(&gaps));
        let has_happened = stage.has_happened();
        happened += usize::from(has_happened);
        stage.refuse("none", no_answer);
        match read {
            Ok(read) => {
                assert!(gaps.is_empty() && read == bytes, "{skip}: zeros were written");
                whole += usize::from(has_happened);
            }
            Err(error) => assert_eq!(error.class(), Class::Failed, "{skip}: {error}"),
        }
    }
    assert!(happened > 3 && happened < 60 && whole > 0, "{happened}, {whole}");
}

/// A pack that could not be found the first time is read all the same.
#[test]
fn what_is_checked_by_its_id_is_read_although_a_device_failed_once() {
    let (stage, id, ..) = going(3);
    let (mut happened, mut whole) = (0, 0);
    for skip in 0..30 {
        let region = stage.region();
        stage.plan("packs/", skip, |stage| stage.refuse_once("packs/", no_answer));
        let options = VerifyOptions { ids: vec![AnyId::Snapshot(id)], ..VerifyOptions::default() };
        let report = verify(&region, &options, &Caller::new(1).context());
        let has_happened = stage.has_happened();
        happened += usize::from(has_happened);
        stage.refuse("none", no_answer);
        match report {
            Ok(report) => {
                assert!(report.packs == 1 || !report.findings.is_empty(), "{skip}: {report:?}");
                whole += usize::from(has_happened && report.findings.is_empty());
            }
            Err(error) => assert_eq!(error.class(), Class::Failed, "{skip}: {error}"),
        }
    }
    assert!(happened > 3 && happened < 30 && whole > 0, "{happened}, {whole}");
}

/// A delta is not damaged since the pack of its base cannot be read now.
#[test]
fn a_delta_whose_base_is_out_of_reach_is_not_damaged() {
    let (stage, caller) = (Stage::new(Memory::new()), Caller::new(1));
    memory_region(&stage.inner, &small_packs());
    let [_, id] = alike(200_000)
        .map(|bytes| caller.snapshot(&stage.other(), &MemoryDisk::new(bytes)).unwrap().snapshot.id);
    let catalog = stage.other().catalog().unwrap();
    let base = catalog.packs.values().find_map(|pack| pack.record.bases.first()).expect("deltas");
    stage.refuse(Box::leak(base.to_string().into_boxed_str()), no_answer);
    let error = caller.read_back(&stage.region(), id).unwrap_err();
    assert_eq!(error.class(), Class::Failed, "{error}");
    let target = memory_region(&Memory::new(), &small_packs());
    let error = copy(&stage.region(), &target, id, &caller).unwrap_err();
    assert_eq!(error.class(), Class::Failed, "{error}");
}

/// While nothing can be read, the log neither, nobody knows whether a chunk is anywhere.
#[test]
fn out_of_reach_with_the_log_is_not_missing() {
    let (stage, id, ..) = going(0);
    let region = stage.region();
    let manifest = region.catalog().unwrap().snapshots[&id].manifest.clone();
    let map = region.load_map(&manifest).unwrap();
    stage.plan("packs/", 0, |stage| stage.refuse("", no_answer));
    let ids: Vec<_> = map.chunks().iter().map(|chunk| chunk.id).collect();
    let error = OpsError::from(region.fetch(&ids).map(drop).unwrap_err());
    assert!(stage.has_happened());
    assert_eq!(error.class(), Class::Failed, "{error}");
}

/// Of a block map that cannot be read now nobody knows what is lost: that is no loss to tell of.
#[test]
fn what_cannot_be_read_now_is_not_called_lost() {
    let (stage, ..) = going(0);
    stage.refuse("manifests/", |name| StorageError::Io {
        action: "open",
        name,
        source: std::io::Error::other("the line is down"),
    });
    let repaired = repair(&stage.region(), &RepairSources::default(), &Caller::new(1).context());
    assert!(repaired.as_ref().is_err_and(|error| error.to_string().contains("line is down")), "{repaired:?}");
}

/// Nor are chunks in a pack that cannot be opened, which no segment lists.
#[test]
fn what_is_in_a_pack_that_cannot_be_opened_is_not_called_lost() {
    let (stage, ..) = going(0);
    stage.refuse("packs/", |name| StorageError::Io {
        action: "open",
        name,
        source: std::io::ErrorKind::PermissionDenied.into(),
    });
    let report = verify(&stage.region(), &VerifyOptions::default(), &Caller::new(1).context()).unwrap();
    let problems: Vec<_> = report.findings.iter().map(|finding| &*finding.problem).collect();
    assert!(problems.iter().any(|problem| problem.contains("permission denied")), "{problems:?}");
    assert!(!problems.iter().any(|problem| problem.contains("sound")), "{problems:?}");
    let error = repair(&stage.region(), &RepairSources::default(), &Caller::new(1).context()).unwrap_err();
    assert_eq!(error.class(), Class::Failed, "{error}");
}

/// Whatever pack a device does not give: a base that is damaged where it can be read is damage, and one that the device does not
/// give leaves a gap.
#[test]
fn a_damaged_base_is_damage_whatever_else_is_out_of_reach() {
    let (stage, caller) = (Stage::new(Memory::new()), Caller::new(1));
    memory_region(&stage.inner, &small_packs());
    let [_, id] = alike(200_000)
        .map(|bytes| caller.snapshot(&stage.other(), &MemoryDisk::new(bytes)).unwrap().snapshot.id);
    let other = caller.snapshot(&stage.other(), &MemoryDisk::new(vec![7; 4096])).unwrap().snapshot;
    let region = stage.other();
    let catalog = region.catalog().unwrap();
    let base = catalog.packs.values().find_map(|pack| pack.record.bases.first()).expect("deltas").to_string();
    let chunk = region.load_map(&other.manifest).unwrap().chunks()[0].id;
    let unrelated = region.locate(&[chunk]).unwrap()[0].1.pack.to_string();
    assert_ne!(base, unrelated);
    let gaps = |stage: &Stage| {
        let gaps = Gaps::default();
        caller.read_with(&stage.region(), id, Some(&gaps)).map(|_| !gaps.is_empty())
    };
    let damaged = Stage::copy_of(&stage.inner);
    let mut bytes = read_whole(&damaged.inner, &base, 1 << 24).unwrap();
    let middle = bytes.len() / 3;
    bytes[middle..middle + 64].fill(0x55);
    damaged.inner.delete(&base).unwrap();
    damaged.inner.restore(&base, &bytes).unwrap();
    damaged.refuse(Box::leak(unrelated.into_boxed_str()), no_answer);
    let error = caller.read_back(&damaged.region(), id).unwrap_err();
    assert_eq!(error.class(), Class::Damage, "{error}");
    assert!(gaps(&damaged).unwrap());
    // The device does not give the base at all.
    stage.refuse(Box::leak(base.into_boxed_str()), no_answer);
    assert!(gaps(&stage).unwrap());
}

/// A block map that a device did not give once is neither made anew nor a reason to leave what is wanted.
#[test]
fn a_block_map_that_was_not_given_once_is_asked_for_again() {
    let caller = Caller::new(1);
    let (from, bytes) = (Memory::new(), volume(60_000, 4));
    let source = memory_region(&from, &small_packs());
    let id = caller.snapshot(&source, &MemoryDisk::new(bytes.clone())).unwrap().snapshot.id;
    let world = Stage::new(Memory::new());
    let copied = copy(&source, &memory_region(&world.inner, &small_packs()), id, &caller).unwrap();
    let pack = *world.other().catalog().unwrap().packs.keys().next().unwrap();
    world.inner.delete(&pack.to_string()).unwrap();
    let mut happened = 0;
    for skip in 0..100 {
        let stage = Stage::copy_of(&world.inner);
        stage.plan("manifests/", skip, |stage| stage.refuse_once("manifests/", no_answer));
        let sources =
            RepairSources { regions: std::slice::from_ref(&source), force: true, ..RepairSources::default() };
        let repaired = repair(&stage.region(), &sources, &caller.context()).unwrap();
        stage.refuse("none", no_answer);
        assert!(repaired.lost.is_empty() && repaired.manifests == 0, "{skip}: {repaired:?}");
        assert!(caller.read_directly(&stage.other(), copied).unwrap() == bytes, "{skip}");
        if !stage.has_happened() {
            break;
        }
        happened += 1;
    }
    assert!(happened > 3 && happened < 100, "{happened}");
}

/// A repair has put another block map in the place of one that is gone, since the state was read that is looked at.
#[test]
fn a_block_map_with_a_new_name_is_found_there() {
    let caller = Caller::new(1);
    let (from, bytes) = (Memory::new(), volume(60_000, 4));
    let source = memory_region(&from, &small_packs());
    let id = caller.snapshot(&source, &MemoryDisk::new(bytes.clone())).unwrap().snapshot.id;
    let world = Stage::new(Memory::new());
    let copied = copy(&source, &memory_region(&world.inner, &small_packs()), id, &caller).unwrap();
    let stage = || {
        let (stage, from) = (Stage::copy_of(&world.inner), from.clone());
        let region = stage.region();
        let name = region.catalog().unwrap().snapshots[&copied].manifest.name.to_string();
        stage.plan("manifests/", 0, move |stage| {
            stage.inner.delete(&name).unwrap();
            let regions = [Region::open(Arc::new(from.clone()), session()).unwrap()];
            let sources = RepairSources { regions: &regions, ..RepairSources::default() };
            let repaired = repair(&stage.other(), &sources, &Caller::new(1).context()).unwrap();
            assert_eq!(repaired.manifests, 1);
        });
        (stage, region)
    };
    let (planned, region) = stage();
    let report = verify(&region, &VerifyOptions::default(), &caller.context()).unwrap();
    assert!(planned.has_happened() && report.findings.is_empty(), "{:?}", report.findings);
    let (planned, region) = stage();
    assert!(caller.read_back(&region, copied).unwrap() == bytes);
    assert!(planned.has_happened());
    let (planned, region) = stage();
    let stats = region_stats(&region, &caller.context()).unwrap();
    assert!(planned.has_happened() && stats.unread.is_empty(), "{:?}", stats.unread);
}

/// A collection that refuses, since a pack is gone that is needed, refuses as a dry run, too; and `repack` before it stores anything.
#[test]
fn what_a_collection_refuses_its_dry_run_refuses() {
    let (world, caller) = (World::new(), Caller::new(1));
    let stage = world.stage();
    let region = stage.other();
    let kept = &region.catalog().unwrap().snapshots[&world.kept[5].0];
    let chunk = region.load_map(&kept.manifest).unwrap().chunks()[0].id;
    let pack = region.locate(&[chunk]).unwrap()[0].1.pack.to_string();
    stage.inner.delete(&pack).unwrap();
    let packs = || stage.inner.list("packs").unwrap().len();
    let before = packs();
    let refused = collect(&stage.region(), &NOW, &caller.context()).unwrap_err().to_string();
    assert!(refused.contains(&pack), "{refused}");
    assert_eq!(preview(&stage.region(), &NOW, &caller.context()).unwrap_err().to_string(), refused);
    let options = RepackOptions { level: 12, ..RepackOptions::default() };
    let asked = Context { dry_run: true, ..caller.context() };
    let asked = repack(&stage.region(), &options, &asked).unwrap_err().to_string();
    let refused = repack(&stage.region(), &options, &caller.context()).unwrap_err().to_string();
    assert_eq!(asked, refused);
    assert_eq!(packs(), before, "nothing was stored");
}

/// What a collection moved while everything is checked is checked where it is now.
#[test]
fn what_is_moved_while_all_is_checked_is_checked_too() {
    let (world, caller) = (World::new(), Caller::new(1));
    for skip in [0, 3, 10, 30] {
        let stage = world.stage();
        let region = stage.region();
        let before: Vec<PackName> = stage.other().catalog().unwrap().packs.keys().copied().collect();
        let others = world.delete_and_collect();
        stage.plan("packs/", skip, move |stage| {
            others(stage);
            let catalog = stage.other().catalog().unwrap();
            let new: Vec<_> = catalog.packs.keys().filter(|name| !before.contains(name)).collect();
            assert!(!new.is_empty());
            for name in new.iter().map(ToString::to_string) {
                let mut bytes = read_whole(&stage.inner, &name, 1 << 24).unwrap();
                bytes[100] ^= 1;
                stage.inner.delete(&name).unwrap();
                stage.inner.restore(&name, &bytes).unwrap();
            }
        });
        let report = verify(&region, &VerifyOptions::default(), &caller.context()).unwrap();
        assert!(stage.has_happened() && !report.findings.is_empty(), "{skip}");
    }
}

/// Nobody waits for the pace of what is not wanted any more.
#[test]
fn a_copy_at_a_low_rate_that_fails_ends_at_once() {
    let caller = Caller::new(1);
    let source = memory_region(&Memory::new(), &small_packs());
    let mut draw = Draw::new(4);
    let noise: Vec<u8> = (0..500_000).map(|_| draw.next() as u8).collect();
    let id = caller.snapshot(&source, &MemoryDisk::new(noise)).unwrap().snapshot.id;
    let stage = Stage::new(Memory::new());
    memory_region(&stage.inner, &small_packs());
    stage.refuse("create packs/", |name| StorageError::NoSpace { name, available: 0, needed: 1 });
    let options = CopyOptions { bytes_per_second: Some(4000), ..CopyOptions::default() };
    let (target, context) = (stage.region(), caller.context());
    let planned = plan(&source, &target, CopyWhat::Snapshot(id), &options, &context).unwrap();
    assert!(planned.transfer_bytes() > 400_000, "more than a minute and a half");
    let started = std::time::Instant::now();
    let error = apply(&source, &target, &planned, &options, &context).unwrap_err();
    assert_eq!(error.class(), Class::NoSpace, "{error}");
    assert!(started.elapsed().as_secs() < 30);
}

/// A pack is damaged, and another one out of reach: what was found and done is told all the same.
#[test]
fn a_repair_that_cannot_tell_everything_tells_what_it_did() {
    let (stage, caller) = (Stage::new(Memory::new()), Caller::new(1));
    memory_region(&stage.inner, &small_packs());
    let [lost, away] =
        [3, 4].map(|seed| caller.snapshot(&stage.other(), &MemoryDisk::new(volume(20_000, seed))).unwrap());
    let pack_of = |taken: &imgstore::ops::snapshot::Taken| {
        let region = stage.other();
        let chunk = region.load_map(&taken.snapshot.manifest).unwrap().chunks()[0].id;
        region.locate(&[chunk]).unwrap()[0].1.pack.to_string()
    };
    let (damaged, away) = (pack_of(&lost), pack_of(&away));
    let mut bytes = read_whole(&stage.inner, &damaged, 1 << 24).unwrap();
    bytes[200..300].fill(0x55);
    stage.inner.delete(&damaged).unwrap();
    stage.inner.restore(&damaged, &bytes).unwrap();
    stage.refuse(Box::leak(away.into_boxed_str()), |name| StorageError::Io {
        action: "open",
        name,
        source: std::io::ErrorKind::PermissionDenied.into(),
    });
    let mut repaired = Repaired::default();
    let error = repair_into(&mut repaired, &stage.region(), &RepairSources::default(), &caller.context())
        .unwrap_err();
    assert_eq!(error.class(), Class::Failed, "{error}");
    assert!(repaired.findings.len() > 1 && repaired.quarantined.len() == 1, "{repaired:?}");
}
