//! Random operations of three accounts in two regions, with restarts and power failures between and within
//! them, against a reference in memory (`tests/reference`): same answers, same lists, same content.
//!
//! `IMGSTORE_MODEL_OPERATIONS=1000000 cargo test --release --test model` is the long run.

mod common;
mod reference;

use common::{Caller, Draw, MemoryDisk, NOW_MS, session};
use imgstore::io::directory::{Directory, DirectoryOptions};
use imgstore::io::sim::{CrashMode, Hook, SimFiles, SimOp, Verdict};
use imgstore::model::account::{AccountId, Permission, Resource, Tag};
use imgstore::model::catalog::Catalog;
use imgstore::model::ids::{ImageId, InstanceId, SnapshotId, VolumeId};
use imgstore::model::image::{BlockDeviceMapping, DeregistrationProtection, DeviceTarget};
use imgstore::model::words::{Architecture, ImageState, InstanceState, VolumeType};
use imgstore::ops::capture::{self, CaptureOptions, CaptureWhat, CreateImageOptions};
use imgstore::ops::copy::{CopyOptions, CopyWhat, apply, plan};
use imgstore::ops::devices::DeviceSpec;
use imgstore::ops::encode::Compression;
use imgstore::ops::error::OpsError;
use imgstore::ops::find;
use imgstore::ops::gc::{self, GcOptions};
use imgstore::ops::import::import_template;
use imgstore::ops::launch::{LaunchOptions, Launched, launch};
use imgstore::ops::modify::{self, PermissionChange, Protect, Target};
use imgstore::ops::register::{ImageOptions, register};
use imgstore::ops::repack::{RepackOptions, repack};
use imgstore::ops::volume::{self, VolumeOptions};
use imgstore::ops::{account, bin, delete, instance};
use imgstore::region::{Region, RegionOptions};
use reference::{
    Account, Answer, Bytes, DAY, HOUR, Image, Instance, Protection, Reference, Snapshot, Volume, Whom,
};
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

const ACCOUNTS: usize = 3;
/// Operations of the run that always is made.
const LONG_RUN: usize = 10_000;
/// Operations of each further one.
const SHORT_RUN: usize = 2000;
const ROOTS: [&str; 2] = ["/a", "/b"];
const NAMES: [&str; 20] = [
    "web", "web-2", "data", "base", "cache", "queue", "mail", "dns", "build", "test", "edge", "auth", "logs",
    "shop", "wiki", "chat", "maps", "jobs", "docs", "api",
];

/// What both sides are asked and how both are kept.
struct Both {
    files: SimFiles,
    regions: Vec<Region>,
    references: Vec<Reference>,
    disks: tempfile::TempDir,
    draw: Draw,
    now: u64,
    done: BTreeMap<&'static str, [usize; 2]>,
    /// Operations on which power fails, and on which it turned out to have come too late.
    power_failures: [usize; 2],
    /// How often each fault happened.
    faults: BTreeMap<Fault, usize>,
    /// The same on copies of the disk; and how often what failed was done there.
    faults_on_copies: BTreeMap<Fault, usize>,
    done_on_copies: usize,
}

/// What happens to an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    /// Power fails in any call.
    PowerAnywhere,
    /// Power fails when a record is to get its name.
    PowerBeforeName,
    /// Power fails when a record has got its name; it may be lost.
    PowerAfterName,
    /// Power fails when the name of a record is to become durable.
    PowerBeforeSync,
    /// A record gets its name, and the answer is an error.
    LostAnswer,
}

const FAULTS: [Fault; 5] = [
    Fault::PowerAnywhere,
    Fault::PowerBeforeName,
    Fault::PowerAfterName,
    Fault::PowerBeforeSync,
    Fault::LostAnswer,
];
/// Calls of an operation in any of which power may fail: an operation with its record makes some 20 at least.
const CALLS: usize = 32;

/// Makes a fault happen once it is armed.
#[derive(Clone)]
struct Trouble(Arc<Mutex<TroubleState>>);

struct TroubleState {
    fault: Fault,
    /// Calls until power fails anywhere.
    left: usize,
    is_armed: bool,
    has_happened: bool,
    is_off: bool,
}

impl Trouble {
    fn new(fault: Fault, left: usize) -> Self {
        let (is_armed, has_happened, is_off) = (false, false, false);
        Self(Arc::new(Mutex::new(TroubleState { fault, left, is_armed, has_happened, is_off })))
    }

    fn arm(&self) {
        self.0.lock().unwrap().is_armed = true;
    }

    /// Whether it happened; it does not any more.
    fn end(&self) -> bool {
        let mut state = self.0.lock().unwrap();
        (state.is_armed, state.is_off) = (false, false);
        state.has_happened
    }

    fn hook(&self) -> Hook {
        let trouble = self.clone();
        Arc::new(move |op: &SimOp| trouble.0.lock().unwrap().verdict(op))
    }
}

impl TroubleState {
    fn verdict(&mut self, op: &SimOp) -> Verdict {
        const OFF: Verdict = Verdict::Fail(ErrorKind::Other);
        let in_log = |path: &Path| path.components().nth(2).is_some_and(|part| part.as_os_str() == "log");
        let is_name = matches!(op, SimOp::Rename(_, to) if in_log(to));
        if !self.is_armed {
            return Verdict::Proceed;
        }
        if self.is_off {
            return OFF;
        }
        let (is_due, verdict) = match self.fault {
            Fault::PowerAnywhere => {
                let is_due = self.left == 0;
                self.left = self.left.saturating_sub(1);
                (is_due, OFF)
            }
            Fault::PowerBeforeName => (is_name, OFF),
            Fault::PowerAfterName | Fault::LostAnswer => (is_name, Verdict::FailAfter(ErrorKind::TimedOut)),
            // The first one after a name.
            Fault::PowerBeforeSync => {
                self.left = if is_name { 0 } else { self.left };
                (self.left == 0 && matches!(op, SimOp::SyncDir(path) if in_log(path)), OFF)
            }
        };
        if !is_due || self.has_happened {
            return Verdict::Proceed;
        }
        self.has_happened = true;
        self.is_off = self.fault != Fault::LostAnswer;
        verdict
    }
}

/// What the library answered, as far as the reference can know it.
fn code<T>(result: Result<T, OpsError>) -> Result<T, String> {
    result.map_err(|error| error.code().to_owned())
}

fn open(files: &SimFiles, root: &str) -> Region {
    let session = session();
    let options = DirectoryOptions { reserve_bytes: 0, ..DirectoryOptions::default() };
    let storage = Directory::new(files.clone(), Path::new(root), session.to_string(), options);
    Region::open(Arc::new(storage), session).unwrap()
}

fn create(files: &SimFiles, root: &str) -> Region {
    let session = session();
    let options = DirectoryOptions { reserve_bytes: 0, ..DirectoryOptions::default() };
    let storage = Directory::new(files.clone(), Path::new(root), session.to_string(), options);
    storage.initialize().unwrap();
    let options = RegionOptions { pack_bytes: 16 << 10, ..RegionOptions::named("model", common::provider()) };
    Region::create(Arc::new(storage), session, &options).unwrap()
}

impl Both {
    fn new(seed: u64) -> Self {
        let files = SimFiles::new();
        Self {
            regions: ROOTS.map(|root| create(&files, root)).to_vec(),
            files,
            references: vec![Reference::default(); ROOTS.len()],
            disks: tempfile::tempdir().unwrap(),
            draw: Draw::new(seed),
            now: NOW_MS,
            done: BTreeMap::new(),
            power_failures: [0, 0],
            faults: BTreeMap::new(),
            faults_on_copies: BTreeMap::new(),
            done_on_copies: 0,
        }
    }

    fn pick<K: Copy>(&mut self, keys: &[K]) -> Option<K> {
        (!keys.is_empty()).then(|| keys[self.draw.below(keys.len())])
    }

    fn is(&mut self, one_in: usize) -> bool {
        self.draw.below(one_in) == 0
    }

    fn image(&mut self, at: usize) -> ImageId {
        let known = &self.references[at];
        let mut ids: Vec<_> = known.images.keys().chain(known.binned_images.keys()).copied().collect();
        ids.extend(known.deregistered.iter().map(|(id, _)| *id).take(3));
        self.pick(&ids).unwrap_or(ImageId::from_random(7))
    }

    fn snapshot(&mut self, at: usize) -> SnapshotId {
        let known = &self.references[at];
        let ids: Vec<_> = known.snapshots.keys().chain(known.binned_snapshots.keys()).copied().collect();
        self.pick(&ids).unwrap_or(SnapshotId::from_random(7))
    }

    fn volume(&mut self, at: usize) -> VolumeId {
        let ids: Vec<_> = self.references[at].volumes.keys().copied().collect();
        self.pick(&ids).unwrap_or(VolumeId::from_random(7))
    }

    fn instance(&mut self, at: usize) -> InstanceId {
        // Few of those that are gone.
        let known = self.references[at].instances.iter();
        let (gone, live): (Vec<_>, Vec<_>) = known.partition(|(_, instance)| instance.terminated.is_some());
        let ids: Vec<_> = live.iter().chain(gone.iter().take(3)).map(|(id, _)| **id).collect();
        self.pick(&ids).unwrap_or(InstanceId::from_random(7))
    }

    fn content(&mut self) -> Bytes {
        let len = 1 + self.draw.below(20_000);
        let seed = self.draw.below(40) as u64;
        Arc::new(common::volume(len, seed))
    }

    fn whom(&mut self) -> Whom {
        let number = self.draw.below(ACCOUNTS + 1);
        (number < ACCOUNTS).then_some(number)
    }

    /// Who does it: mostly the owner, or nearly everything would be refused.
    fn mostly(&mut self, owner: Option<Account>, who: Account) -> Account {
        if self.is(4) { who } else { owner.unwrap_or(who) }
    }

    fn note(&mut self, what: &'static str, succeeded: bool) {
        self.done.entry(what).or_default()[usize::from(!succeeded)] += 1;
    }

    /// An operation whose effect the reference can foretell whole. Power may fail in it: then it happened, or it
    /// did not, and nothing in between.
    fn both<T: PartialEq + std::fmt::Debug>(
        &mut self,
        what: &'static str,
        at: usize,
        real: impl Fn(&Region) -> Result<T, OpsError>,
        foretell: impl FnOnce(&mut Reference) -> Answer<T>,
    ) {
        let before = self.references[at].clone();
        let expected = foretell(&mut self.references[at]).map_err(ToOwned::to_owned);
        if expected.is_err() {
            self.references[at] = before.clone();
        }
        if self.is(20) {
            self.fail_power_in(at, &real, before, expected);
            return;
        }
        let found = code(real(&self.regions[at]));
        assert_eq!(found, expected, "{what}");
        self.note(what, found.is_ok());
    }

    /// Sometimes power fails while something is done, before its record has a name: then nothing was done. Or it fails later, or
    /// an answer is lost: then it may have been, which the reference cannot know, so that is tried on a copy of the disk.
    fn fail_before<T>(&mut self, at: usize, real: impl Fn(&Region) -> Result<T, OpsError>) {
        if !self.is(45) {
            return;
        }
        let fault = FAULTS[self.draw.below(FAULTS.len())];
        if fault != Fault::PowerBeforeName {
            return self.fail_on_a_copy(fault, at, real);
        }
        let trouble = Trouble::new(fault, CALLS);
        let region = open(&self.files.with_hook(trouble.hook()), ROOTS[at]);
        trouble.arm();
        let answer = real(&region);
        if trouble.end() {
            assert!(answer.is_err(), "acknowledged without a record");
            *self.faults.entry(fault).or_default() += 1;
        }
        let seed = self.draw.next();
        self.restart(CrashMode::Mixed(seed));
        let found = differences(&self.references[at], &self.regions[at].catalog().unwrap(), self.now);
        assert!(found.is_empty() || answer.is_ok(), "done without a record: {found:#?}");
    }

    fn fail_on_a_copy<T>(&mut self, fault: Fault, at: usize, real: impl Fn(&Region) -> Result<T, OpsError>) {
        let left = if fault == Fault::PowerAnywhere { self.draw.below(CALLS) } else { CALLS };
        let files = self.files.crash(self.files.operations(), CrashMode::KeepAll).settled();
        let trouble = Trouble::new(fault, left);
        let region = open(&files.with_hook(trouble.hook()), ROOTS[at]);
        trouble.arm();
        let answer = real(&region).map(drop);
        if !trouble.end() {
            return;
        }
        *self.faults_on_copies.entry(fault).or_default() += 1;
        let files = match fault {
            Fault::LostAnswer => files,
            _ => files.crash(files.operations(), CrashMode::Mixed(self.draw.next())),
        };
        let region = open(&files, ROOTS[at]);
        let (catalog, known) = (region.catalog().unwrap(), &self.references[at]);
        let is_done = !differences(known, &catalog, self.now).is_empty();
        assert!(is_done || answer.is_err(), "{fault:?}: acknowledged and gone");
        // What is on record is there, whole, with its disks.
        for id in catalog.snapshots.keys().filter(|id| !known.snapshots.contains_key(id)) {
            assert!(Caller::new(1).read_directly(&region, *id).is_ok(), "{fault:?}: {id}, {answer:?}");
        }
        for volume in catalog.volumes.values().filter(|volume| !known.volumes.contains_key(&volume.id)) {
            assert!(Path::new(&volume.path).exists(), "{fault:?}: {} without a disk, {answer:?}", volume.id);
        }
        let new = catalog.instances.values().filter(|instance| !known.instances.contains_key(&instance.id));
        for disk in new.flat_map(|instance| &instance.local_disks) {
            assert!(Path::new(&disk.path).exists(), "{fault:?}: {} is gone, {answer:?}", disk.path);
        }
        self.done_on_copies += usize::from(is_done);
    }

    fn fail_power_in<T: PartialEq + std::fmt::Debug>(
        &mut self,
        at: usize,
        real: &impl Fn(&Region) -> Result<T, OpsError>,
        before: Reference,
        expected: Result<T, String>,
    ) {
        let fault = FAULTS[self.draw.below(FAULTS.len())];
        let left = if fault == Fault::PowerAnywhere { self.draw.below(CALLS) } else { CALLS };
        let trouble = Trouble::new(fault, left);
        let region = open(&self.files.with_hook(trouble.hook()), ROOTS[at]);
        trouble.arm();
        let answer = code(real(&region));
        let is_disturbed = trouble.end();
        if is_disturbed {
            *self.faults.entry(fault).or_default() += 1;
        } else {
            assert_eq!(answer, expected, "nothing disturbed it");
        }
        if fault == Fault::LostAnswer {
            // The power stays on, and the record is there; nobody was told, so nobody has made it durable.
            self.files = self.files.settled();
            self.regions[at] = open(&self.files, ROOTS[at]);
        } else {
            let seed = self.draw.next();
            self.restart(CrashMode::Mixed(seed));
        }
        let after = self.references[at].clone();
        let is_like = |reference: &Reference, region: &Region| {
            differences(reference, &region.catalog().unwrap(), self.now).is_empty()
        };
        let happened = is_like(&after, &self.regions[at]);
        if answer.is_ok() {
            assert!(happened, "acknowledged, and gone after a power failure");
        } else if !happened {
            let catalog = self.regions[at].catalog().unwrap();
            let found = [&before, &after].map(|reference| differences(reference, &catalog, self.now));
            let log = found[0].first().map(|first| history(&self.regions[at], first)).unwrap_or_default();
            assert!(found[0].is_empty(), "neither before nor after: {found:#?}\n{log}");
            assert!(fault != Fault::LostAnswer || !is_disturbed, "the record is not there");
            self.references[at] = before;
        }
        self.power_failures[usize::from(happened)] += 1;
    }

    /// Power fails, and everything is opened again.
    fn restart(&mut self, mode: CrashMode) {
        self.files = self.files.crash(self.files.operations(), mode).settled();
        self.regions = ROOTS.map(|root| open(&self.files, root)).to_vec();
    }

    fn context(&self, who: Account) -> Caller {
        let account = account_id(who);
        Caller { account, now_ms: self.now, ..Caller::new(1) }
    }
}

fn account_number(account: AccountId) -> Account {
    (0..ACCOUNTS).find(|n| account_id(*n) == account).unwrap()
}

fn account_id(number: Account) -> AccountId {
    AccountId::from_random(number as u64 + 1)
}

fn whom(permissions: &[Permission]) -> BTreeSet<Whom> {
    let one = |permission: &Permission| match permission {
        Permission::All => None,
        Permission::Account(id) => Some(account_number(*id)),
    };
    permissions.iter().map(one).collect()
}

fn permission(whom: Whom) -> Permission {
    whom.map_or(Permission::All, |number| Permission::Account(account_id(number)))
}

/// Whether a volume of this mapping stays when its instance is terminated.
fn stays(device: &BlockDeviceMapping) -> bool {
    matches!(&device.target, DeviceTarget::Ebs(ebs) if !ebs.delete_on_termination)
}

/// An image as the reference would have it, but for what only it knows.
fn as_reference(image: &imgstore::model::image::Image, like: &Image) -> Image {
    Image {
        owner: account_number(image.owner),
        name: image.name.clone(),
        shared: whom(&image.launch_permissions),
        snapshots: image.snapshot_ids().collect(),
        kept: image.devices.iter().filter(|device| stays(device)).map(|d| d.device_name.clone()).collect(),
        disabled: image.state == ImageState::Disabled,
        deprecated: image.deprecation_ms,
        protection: match image.deregistration_protection {
            DeregistrationProtection::Disabled => Protection::Off,
            DeregistrationProtection::Enabled => Protection::On,
            DeregistrationProtection::EnabledWithCooldown => Protection::Cooldown,
            DeregistrationProtection::CoolingDown { until_ms } => Protection::Until(until_ms),
        },
        codes: !image.product_codes.is_empty(),
        kept_tag: !image.tags.is_empty(),
        predecessor: image.predecessor,
        source: image.source.as_ref().map(|source| source.image_id),
        template: image.template.and(like.template.clone()),
        token: like.token.clone(),
    }
}

fn same_ids<'a, T: Ord + std::fmt::Debug + 'a>(
    what: &str,
    real: impl Iterator<Item = &'a T>,
    known: impl Iterator<Item = &'a T>,
    found: &mut Vec<String>,
) {
    let (real, known): (BTreeSet<_>, BTreeSet<_>) = (real.collect(), known.collect());
    let (more, less) =
        (real.difference(&known).collect::<Vec<_>>(), known.difference(&real).collect::<Vec<_>>());
    if real != known {
        found.push(format!("{what}: {more:?} too many, {less:?} missing"));
    }
}

/// What the log says of the ids in a sentence: for finding out what went wrong.
fn history(region: &Region, sentence: &str) -> String {
    let is_id = |word: &&str| ["ami-", "snap-", "vol-", "i-"].iter().any(|prefix| word.starts_with(prefix));
    let ids: Vec<&str> = sentence.split(|c: char| !c.is_alphanumeric() && c != '-').filter(is_id).collect();
    let mut lines = String::new();
    for record in (1..).map_while(|sequence| region.record(sequence).unwrap()) {
        for op in
            record.ops.iter().map(|op| format!("{op:?}")).filter(|op| ids.iter().any(|id| op.contains(id)))
        {
            let op: String = op.chars().take(300).collect();
            lines += &format!("{} {}: {op}\n", record.sequence, record.author.account);
        }
    }
    lines
}

/// What is not the same in a region and in its reference.
fn differences(reference: &Reference, catalog: &Catalog, now: u64) -> Vec<String> {
    let mut found = Vec::new();
    same_ids("images", catalog.images.keys(), reference.images.keys(), &mut found);
    same_ids("snapshots", catalog.snapshots.keys(), reference.snapshots.keys(), &mut found);
    same_ids("volumes", catalog.volumes.keys(), reference.volumes.keys(), &mut found);
    same_ids("binned images", catalog.binned_images.keys(), reference.binned_images.keys(), &mut found);
    let binned = reference.binned_snapshots.keys();
    same_ids("binned snapshots", catalog.binned_snapshots.keys(), binned, &mut found);
    let shown = |at: Option<u64>| at.is_none_or(|at| now < at + HOUR);
    let live = |id: &&InstanceId| shown(reference.instances[*id].terminated);
    let listed = catalog.instances.values().filter(|i| shown(i.terminated_ms)).map(|i| &i.id);
    same_ids("instances", listed, reference.instances.keys().filter(live), &mut found);
    if !found.is_empty() {
        return found;
    }
    let binned = reference.binned_images.iter().map(|(id, (image, _))| (id, image));
    for (id, image) in reference.images.iter().chain(binned) {
        let real = catalog.images.get(id).or_else(|| Some(&catalog.binned_images.get(id)?.item)).unwrap();
        if as_reference(real, image) != *image {
            found.push(format!("{id}: {real:?} instead of {image:?}"));
        }
    }
    for (id, snapshot) in &reference.snapshots {
        let real = &catalog.snapshots[id];
        let same = account_number(real.owner) == snapshot.owner
            && whom(&real.create_volume_permissions) == snapshot.shared
            && real.volume_bytes == snapshot.content.len() as u64;
        if !same {
            found.push(format!("{id}: {real:?} instead of {snapshot:?}"));
        }
    }
    for (id, volume) in &reference.volumes {
        let at = catalog.volumes[id].attachment.as_ref();
        let at = at.map(|at| (at.instance_id, at.device_name.clone(), at.delete_on_termination));
        if at != volume.attached {
            found.push(format!("{id} is attached {at:?}"));
        }
    }
    for (id, instance) in reference.instances.iter().filter(|(_, i)| shown(i.terminated)) {
        let real = &catalog.instances[id];
        let running = real.state == InstanceState::Running;
        let same = real.terminated_ms == instance.terminated
            && (running == instance.running || instance.terminated.is_some())
            && real.image_id == instance.image;
        if !same {
            found.push(format!("{id}: {real:?} instead of {instance:?}"));
        }
    }
    for who in 0..ACCOUNTS {
        let (real, known) = (catalog.settings(account_id(who)), reference.settings(who));
        let blocks = (real.block_public_images, real.block_public_snapshots);
        if blocks != (known.block_images, known.block_snapshots) {
            found.push(format!("account {who}: {real:?} instead of {known:?}"));
        }
    }
    if catalog.clone().with_derived() != *catalog {
        found.push("what is derived is not what follows from the tables".into());
    }
    found
}

// The operations ------------------------------------------------------------------------------------------

impl Both {
    fn step(&mut self) {
        let (who, at) = (self.draw.below(ACCOUNTS), self.draw.below(ROOTS.len()));
        self.now += self.draw.below(120_000) as u64;
        if self.is(40) {
            self.now += self.draw.below(3 * DAY as usize) as u64;
        }
        if self.is(100) {
            let modes = [CrashMode::DropUnsynced, CrashMode::KeepAll, CrashMode::Mixed(self.now)];
            let mode = modes[self.draw.below(3)];
            self.restart(mode);
        }
        match self.draw.below(100) {
            0..12 => self.take_snapshot(who, at),
            12..20 => self.register(who, at),
            20..23 => self.register_template(who, at),
            23..33 => self.share(who, at),
            33..48 => self.modify(who, at),
            48..53 => self.remove(who, at),
            53..55 => self.collect(who, at),
            55..64 => self.bin(who, at),
            64..70 => self.copy(who, at),
            70..78 => self.launch(who, at),
            78..86 => self.run(who, at),
            86..93 => self.volumes(who, at),
            _ => self.capture(who, at),
        }
    }

    fn take_snapshot(&mut self, who: Account, at: usize) {
        let (caller, content) = (self.context(who), self.content());
        let disk = MemoryDisk::new(content.to_vec());
        self.fail_before(at, |region| caller.snapshot(region, &disk));
        let id = caller.snapshot(&self.regions[at], &disk).unwrap().snapshot.id;
        self.add_snapshot(at, id, Snapshot { owner: who, shared: BTreeSet::new(), content });
        self.note("snapshot", true);
    }

    /// A new snapshot has the content that it should have.
    fn add_snapshot(&mut self, at: usize, id: SnapshotId, snapshot: Snapshot) {
        let found = self.context(snapshot.owner).read_back(&self.regions[at], id).unwrap();
        assert!(found == *snapshot.content, "{id} has other content");
        self.references[at].snapshots.insert(id, snapshot);
    }

    fn new_image(&self, owner: Account, name: &str, snapshots: Vec<SnapshotId>) -> Image {
        Image {
            owner,
            name: name.to_owned(),
            shared: BTreeSet::new(),
            snapshots,
            kept: BTreeSet::new(),
            template: None,
            disabled: false,
            deprecated: None,
            protection: Protection::Off,
            codes: false,
            kept_tag: false,
            predecessor: None,
            source: None,
            token: None,
        }
    }

    fn register(&mut self, who: Account, at: usize) {
        let (caller, name) = (self.context(who), NAMES[self.draw.below(NAMES.len())]);
        let snapshot = self.snapshot(at);
        let predecessor = if self.is(3) { Some(self.image(at)) } else { None };
        let expected = self.references[at].may_register(who, name, snapshot, predecessor);
        let options = ImageOptions { predecessor, ..ImageOptions::named(name, Architecture::X86_64) };
        let devices = [DeviceSpec::of_snapshot("/dev/xvda", snapshot)];
        self.fail_before(at, |region| register(region, &options, &devices, &caller.context()));
        let made = code(register(&self.regions[at], &options, &devices, &caller.context()));
        assert_eq!(made.as_ref().map(drop), expected.map_err(str::to_owned).as_ref().map(drop), "register");
        self.note("register", made.is_ok());
        if let Ok(image) = made {
            let known = Image { predecessor, ..self.new_image(who, name, vec![snapshot]) };
            self.references[at].images.insert(image.id, known);
        }
    }

    fn register_template(&mut self, who: Account, at: usize) {
        let (caller, name) = (self.context(who), NAMES[self.draw.below(NAMES.len())]);
        let content = self.content();
        let expected = self.references[at].name_free(who, name);
        let disk = MemoryDisk::new(content.to_vec());
        let options = ImageOptions::named(name, Architecture::X86_64);
        let real = |region: &Region| {
            import_template(region, &disk, &[], &options, Compression::default(), &caller.context())
        };
        self.fail_before(at, real);
        let made = real(&self.regions[at]);
        let made = code(made.map(|imported| imported.image));
        assert_eq!(made.as_ref().map(drop), expected.map_err(str::to_owned).as_ref().map(drop), "template");
        self.note("import_template", made.is_ok());
        if let Ok(image) = made {
            let known = Image { template: Some(content), ..self.new_image(who, name, vec![]) };
            self.references[at].images.insert(image.id, known);
        }
    }

    fn share(&mut self, who: Account, at: usize) {
        let (caller, add, with) = (self.context(who), !self.is(3), self.whom());
        let change = PermissionChange {
            add: if add { vec![permission(with)] } else { vec![] },
            remove: if add { vec![] } else { vec![permission(with)] },
        };
        if self.is(3) {
            let id = self.snapshot(at);
            let real =
                |region: &Region| modify::share_snapshot(region, id, &change, &caller.context()).map(drop);
            self.both("share_snapshot", at, real, |known| known.share_snapshot(who, id, add, with));
        } else {
            let (id, snapshots) = (self.image(at), self.is(2));
            let real = |region: &Region| {
                modify::share_image(region, id, &change, snapshots, &caller.context()).map(drop)
            };
            self.both("share_image", at, real, |known| known.share_image(who, id, add, with, snapshots));
        }
    }

    fn modify(&mut self, who: Account, at: usize) {
        let (caller, id, now) = (self.context(who), self.image(at), self.now);
        match self.draw.below(9) {
            0 | 1 => {
                let tag = [Tag { key: "keep".into(), value: "yes".into() }];
                let real = |region: &Region| {
                    modify::tag(region, Target::Image(id), &tag, &[], &caller.context()).map(drop)
                };
                self.both("tag", at, real, |known| known.tag_image(who, id));
            }
            2 => {
                let when = (!self.is(3)).then(|| now + 12_345);
                let real = |region: &Region| modify::deprecate(region, id, when, &caller.context()).map(drop);
                self.both("deprecate", at, real, |known| known.deprecate(who, id, when));
            }
            3 => {
                let real = |region: &Region| modify::disable(region, id, &caller.context());
                self.both("disable", at, real, |known| known.disable(who, id));
            }
            4 | 5 => {
                let real = |region: &Region| modify::enable(region, id, &caller.context());
                self.both("enable", at, real, |known| known.enable(who, id));
            }
            6 | 7 => {
                let kinds = [
                    (Protect::On, Protection::On),
                    (Protect::OnWithCooldown, Protection::Cooldown),
                    (Protect::Off, Protection::Off),
                    (Protect::Off, Protection::Off),
                ];
                let (real_kind, kind) = kinds[self.draw.below(4)];
                let real =
                    |region: &Region| modify::protect(region, id, real_kind, &caller.context()).map(drop);
                self.both("protect", at, real, |known| known.protect(who, id, kind, now));
            }
            _ => {
                let codes = ["7zx41vl2j5".to_owned()];
                let real = |region: &Region| {
                    modify::add_product_codes(region, id, &codes, &caller.context()).map(drop)
                };
                self.both("product code", at, real, |known| known.add_code(who, id));
            }
        }
    }

    fn remove(&mut self, who: Account, at: usize) {
        let (caller, now) = (self.context(who), self.now);
        if self.is(3) {
            let id = self.snapshot(at);
            let real = |region: &Region| delete::delete_snapshot(region, id, &caller.context()).map(drop);
            self.both("delete_snapshot", at, real, |known| known.delete_snapshot(who, id, now));
        } else {
            let (id, with) = (self.image(at), self.is(2));
            let real = |region: &Region| {
                let done = delete::deregister(region, id, with, &caller.context())?;
                Ok(done.snapshots.iter().map(|snapshot| snapshot.outcome.as_str()).collect::<Vec<_>>())
            };
            self.both("deregister", at, real, |known| known.deregister(who, id, with, now));
        }
    }

    /// Collection, often without any grace, sometimes after repacking. What it may take is what the reference does not have.
    fn collect(&mut self, who: Account, at: usize) {
        let (caller, now) = (self.context(who), self.now);
        // Whoever wrote so far is gone: a living session's packs are left alone.
        self.regions[at] = open(&self.files, ROOTS[at]);
        let grace_ms = [0, 0, HOUR, DAY][self.draw.below(4)];
        let options = GcOptions { grace_ms, repack_percent: [0, 50, 100][self.draw.below(3)] };
        let before = (self.draw.below(4) == 0).then(|| RepackOptions {
            level: [3, 9, 12][self.draw.below(3)],
            limit_bytes: [1, 100 << 10, u64::MAX][self.draw.below(3)],
        });
        let real = |region: &Region| {
            if let Some(options) = &before {
                repack(region, options, &caller.context())?;
            }
            gc::collect(region, &options, &caller.context()).map(drop)
        };
        self.both("collect", at, real, |known| {
            known.expire_all(now);
            Ok(())
        });
        self.read_one(at);
    }

    /// A snapshot reads as it was taken.
    fn read_one(&mut self, at: usize) {
        let known: Vec<SnapshotId> = self.references[at].snapshots.keys().copied().collect();
        let Some(id) = self.pick(&known) else { return };
        let read = Caller::new(1).read_directly(&self.regions[at], id).unwrap();
        assert!(read == *self.references[at].snapshots[&id].content, "{id} has other bytes");
    }

    fn bin(&mut self, who: Account, at: usize) {
        let (caller, now) = (self.context(who), self.now);
        let known = self.references[at].settings(who);
        match self.draw.below(8) {
            0 if known.rules.len() < 3 => {
                let (images, days, tagged) = (self.is(2), 1 + self.draw.below(3) as u16, self.is(2));
                let resource = if images { Resource::Image } else { Resource::Snapshot };
                let tag = Tag { key: "keep".into(), value: "yes".into() };
                let tags = if tagged { vec![tag] } else { vec![] };
                bin::add_rule(&self.regions[at], resource, days, &tags, &caller.context()).unwrap();
                let rules = &mut self.references[at].settings.entry(who).or_default().rules;
                rules.push((images, u64::from(days), tagged));
            }
            1 => {
                let rules = bin::rules(&self.regions[at].catalog().unwrap(), &caller.context());
                if let Some(rule) = rules.first() {
                    bin::remove_rule(&self.regions[at], rule.id, &caller.context()).unwrap();
                    self.references[at].settings.entry(who).or_default().rules.remove(0);
                }
            }
            2 | 3 => {
                let (block, images) = (self.is(3), self.is(2));
                let resource = if images { Resource::Image } else { Resource::Snapshot };
                let real = |region: &Region| {
                    account::block_public_access(region, resource, block, &caller.context())
                };
                self.both("block public", at, real, |known| {
                    let settings = known.settings.entry(who).or_default();
                    *(if images { &mut settings.block_images } else { &mut settings.block_snapshots }) =
                        block;
                    Ok(())
                });
            }
            4 | 5 => {
                let binned: Vec<_> = self.references[at].binned_snapshots.keys().copied().collect();
                let id = self.pick(&binned).unwrap_or(SnapshotId::from_random(7));
                let owner = self.references[at].binned_snapshots.get(&id).map(|(snapshot, _)| snapshot.owner);
                let who = self.mostly(owner, who);
                let caller = self.context(who);
                let real = |region: &Region| bin::restore_snapshot(region, id, &caller.context()).map(drop);
                self.both("restore_snapshot", at, real, |known| known.restore_snapshot(who, id, now));
            }
            _ => {
                let binned: Vec<_> = self.references[at].binned_images.keys().copied().collect();
                let id = self.pick(&binned).unwrap_or(ImageId::from_random(7));
                let owner = self.references[at].binned_images.get(&id).map(|(image, _)| image.owner);
                let who = self.mostly(owner, who);
                let caller = self.context(who);
                let real = |region: &Region| bin::restore_image(region, id, &caller.context()).map(drop);
                self.both("restore_image", at, real, |known| known.restore_image(who, id, now));
            }
        }
    }

    fn copy(&mut self, who: Account, at: usize) {
        let (caller, to, id) = (self.context(who), self.draw.below(ROOTS.len()), self.image(at));
        let name = NAMES[self.draw.below(NAMES.len())].to_owned();
        let token = self.is(3).then(|| format!("copy-{}", self.draw.below(4)));
        let asked = token.clone().map(|token| (token, format!("{id} from {at} as {name}")));
        let expected: Answer<Option<ImageId>> = (|| {
            let made =
                |image: &Image| image.owner == who && image.token.as_ref().map(|t| &t.0) == token.as_ref();
            let there = &self.references[to];
            if let Some((made, image)) = there.images.iter().find(|(_, i)| token.is_some() && made(i)) {
                return if image.token == asked {
                    Ok(Some(*made))
                } else {
                    Err("IdempotentParameterMismatch")
                };
            }
            self.references[at].may_copy_from(who, id)?;
            there.name_free(who, &name).map(|()| None)
        })();
        let options = CopyOptions {
            source_region: ROOTS[at].into(),
            name: Some(name.clone()),
            client_token: token,
            ..CopyOptions::default()
        };
        let source = self.regions[at].clone();
        let real = |target: &Region| {
            let plan = plan(&source, target, CopyWhat::Image(id), &options, &caller.context())?;
            apply(&source, target, &plan, &options, &caller.context())
        };
        self.fail_before(to, real);
        // What was read before the power failed is another disk's.
        let source = self.regions[at].clone();
        let real = |target: &Region| {
            let plan = plan(&source, target, CopyWhat::Image(id), &options, &caller.context())?;
            apply(&source, target, &plan, &options, &caller.context())
        };
        let copied = code(real(&self.regions[to]));
        let found = copied.as_ref().map(|c| c.was_made_before.then(|| c.image.as_ref().unwrap().id));
        assert_eq!(found.map_err(Clone::clone), expected.map_err(str::to_owned), "copy");
        self.note("copy", copied.is_ok());
        if let Ok(copied) = copied.as_ref()
            && !copied.was_made_before
        {
            self.add_copy(who, (at, id), to, copied.image.as_ref().unwrap(), asked);
        }
    }

    fn add_copy(
        &mut self,
        who: Account,
        (at, id): (usize, ImageId),
        to: usize,
        copy: &imgstore::model::image::Image,
        asked: Option<(String, String)>,
    ) {
        let original = self.references[at].images[&id].clone();
        let snapshots: Vec<_> = copy.snapshot_ids().collect();
        assert_eq!(snapshots.len(), original.snapshots.len());
        for (copied, from) in snapshots.iter().zip(&original.snapshots) {
            let content = self.references[at].snapshots[from].content.clone();
            self.add_snapshot(to, *copied, Snapshot { owner: who, shared: BTreeSet::new(), content });
        }
        let before = original.predecessor;
        let is_there = |image: &ImageId| self.references[to].images[image].owner == who;
        match copy.predecessor {
            Some(found) if at == to => assert_eq!(Some(found), before),
            Some(found) => assert_eq!(self.references[to].images[&found].source, before),
            None => {
                let own = self.references[to].images.iter().filter(|(_, image)| image.owner == who);
                let is_it = |(there, image): (&ImageId, &Image)| {
                    if at == to { Some(*there) == before } else { image.source == before && before.is_some() }
                };
                assert!(!own.into_iter().any(is_it), "the version before is there");
            }
        }
        assert!(copy.predecessor.is_none_or(|found| is_there(&found)));
        let known = Image {
            template: original.template.clone(),
            kept: original.kept.clone(),
            codes: original.codes,
            source: Some(id),
            predecessor: copy.predecessor,
            token: asked,
            ..self.new_image(who, &copy.name, snapshots)
        };
        self.references[to].images.insert(copy.id, known);
    }

    fn launch(&mut self, who: Account, at: usize) {
        let (caller, id, count) = (self.context(who), self.image(at), 1 + self.draw.below(2) as u32);
        let token = self.is(3).then(|| format!("launch-{}", self.draw.below(4)));
        let asked = token.clone().map(|token| (token, format!("{id} {count}")));
        let now = self.now;
        let known = &self.references[at];
        let expected: Answer<Vec<InstanceId>> = (|| {
            let with_token = known.instances.iter().filter(|(_, i)| {
                let shown = i.terminated.is_none_or(|at| now < at + HOUR);
                shown && i.owner == who && token.is_some() && i.token.as_ref().map(|t| &t.0) == token.as_ref()
            });
            let made: Vec<_> = with_token.collect();
            if let Some((_, instance)) = made.first() {
                let same = instance.token == asked;
                let ids = made.iter().map(|(id, _)| **id).collect();
                return if same { Ok(ids) } else { Err("IdempotentParameterMismatch") };
            }
            known.may_launch(who, id).map(|_| vec![])
        })();
        let options = LaunchOptions {
            count_min: count,
            count_max: count,
            client_token: token,
            ..LaunchOptions::one(self.disks.path())
        };
        self.fail_before(at, |region| launch(region, id, &options, &caller.context()));
        let launched = code(launch(&self.regions[at], id, &options, &caller.context()));
        self.note("launch", launched.is_ok());
        match (&launched, &expected) {
            (Ok(launched), Ok(made)) if made.is_empty() => {
                assert_eq!(launched.len(), count as usize);
                for one in launched {
                    self.add_instance(who, at, one, asked.clone());
                }
            }
            (Ok(launched), Ok(made)) => {
                let found: BTreeSet<_> = launched.iter().map(|one| one.instance.id).collect();
                assert_eq!(found, made.iter().copied().collect(), "the same request again");
            }
            (Err(found), Err(expected)) => assert_eq!(found, expected),
            _ => panic!("launch: {launched:?} instead of {expected:?}"),
        }
    }

    fn add_instance(&mut self, who: Account, at: usize, made: &Launched, asked: Option<(String, String)>) {
        let image = self.references[at].images[&made.instance.image_id].clone();
        if let Some(content) = &image.template {
            let disk = &made.instance.local_disks[0];
            assert!(std::fs::read(&disk.path).unwrap() == **content, "the instance's own disk");
        }
        for (volume, snapshot) in made.volumes.iter().zip(&image.snapshots) {
            let content = self.references[at].snapshots[snapshot].content.clone();
            assert!(std::fs::read(&volume.path).unwrap() == *content, "the volume's content");
            let attachment = volume.attachment.as_ref().unwrap();
            let deleted = !image.kept.contains(&attachment.device_name);
            let attached = Some((made.instance.id, attachment.device_name.clone(), deleted));
            self.references[at].volumes.insert(volume.id, Volume { owner: who, content, attached });
        }
        let instance = Instance {
            owner: who,
            image: made.instance.image_id,
            running: true,
            local: image.template.is_some(),
            codes: image.codes,
            terminated: None,
            token: asked,
        };
        self.references[at].instances.insert(made.instance.id, instance);
    }

    fn run(&mut self, who: Account, at: usize) {
        let (id, now) = (self.instance(at), self.now);
        let owner = self.references[at].instances.get(&id).map(|instance| instance.owner);
        let who = self.mostly(owner, who);
        let caller = self.context(who);
        match self.draw.below(7) {
            0..3 => {
                let real = |region: &Region| instance::stop(region, &[id], &caller.context());
                self.both("stop", at, real, |known| known.set_running(who, id, false, now));
            }
            3 | 4 => {
                let real = |region: &Region| instance::start(region, &[id], &caller.context());
                self.both("start", at, real, |known| known.set_running(who, id, true, now));
            }
            _ => {
                let real = |region: &Region| instance::terminate(region, &[id], &caller.context()).map(drop);
                self.both("terminate", at, real, |known| known.terminate(who, id, now));
                self.forget_dead_disks(at);
            }
        }
    }

    /// Where power failed after the record, the disks of what is gone may be left: as after a real one.
    fn forget_dead_disks(&self, at: usize) {
        for volume in self.regions[at].catalog().unwrap().volumes.values() {
            assert!(Path::new(&volume.path).exists(), "{} has lost its disk", volume.id);
        }
    }

    fn volumes(&mut self, who: Account, at: usize) {
        let (id, now) = (self.volume(at), self.now);
        let owner = self.references[at].volumes.get(&id).map(|volume| volume.owner);
        let who = self.mostly(owner, who);
        let caller = self.context(who);
        match self.draw.below(8) {
            0 | 1 => self.create_volume(who, at),
            2 => {
                let real = |region: &Region| volume::delete_volume(region, id, &caller.context()).map(drop);
                self.both("delete_volume", at, real, |known| known.delete_volume(who, id));
            }
            3..6 => {
                let known = self.references[at].instances.iter();
                let own: Vec<_> =
                    known.filter(|(_, i)| i.owner == who).map(|(id, _)| *id).rev().take(6).collect();
                let to = if self.is(4) {
                    self.instance(at)
                } else {
                    self.pick(&own).unwrap_or(InstanceId::from_random(7))
                };
                let device = ["/dev/xvda", "/dev/xvdf", "/dev/xvdg"][self.draw.below(3)];
                let real = |region: &Region| volume::attach_volume(region, id, to, device, &caller.context());
                self.both("attach", at, real, |known| known.attach(who, id, to, device, now));
            }
            6 => {
                let real = |region: &Region| volume::detach_volume(region, id, &caller.context());
                self.both("detach", at, real, |known| known.detach(who, id));
            }
            _ => self.write_as_guest(at, id),
        }
    }

    fn create_volume(&mut self, who: Account, at: usize) {
        let (caller, snapshot) = (self.context(who), self.snapshot(at));
        let snapshot_id = (!self.is(3)).then_some(snapshot);
        let options = VolumeOptions {
            snapshot_id,
            volume_bytes: snapshot_id.is_none().then_some(5000),
            volume_type: VolumeType::Gp3,
            iops: None,
            output: self.disks.path().to_owned(),
            tags: vec![],
            client_token: None,
        };
        self.fail_before(at, |region| volume::create_volume(region, &options, &caller.context()));
        let made = code(volume::create_volume(&self.regions[at], &options, &caller.context()));
        let known = &self.references[at];
        let expected = match snapshot_id {
            Some(id) => known.see_snapshot(who, id).map(|snapshot| snapshot.content.clone()),
            None => Ok(Arc::new(vec![0; 5000])),
        };
        self.note("create_volume", made.is_ok());
        match (made, expected) {
            (Ok(made), Ok(content)) => {
                assert!(std::fs::read(&made.path).unwrap() == *content);
                let volume = Volume { owner: who, content, attached: None };
                self.references[at].volumes.insert(made.id, volume);
            }
            (Err(found), Err(expected)) => assert_eq!(found, expected),
            (made, expected) => panic!("create_volume: {made:?} instead of {expected:?}"),
        }
    }

    fn write_as_guest(&mut self, at: usize, id: VolumeId) {
        let Some(volume) = self.references[at].volumes.get(&id) else { return };
        let mut content = volume.content.to_vec();
        let (start, byte) = (self.draw.below(content.len()), self.draw.next() as u8);
        let end = content.len().min(start + 3000);
        content[start..end].fill(byte);
        let path = self.regions[at].catalog().unwrap().volumes[&id].path.clone();
        std::fs::write(path, &content).unwrap();
        self.references[at].volumes.get_mut(&id).unwrap().content = Arc::new(content);
    }

    fn capture(&mut self, who: Account, at: usize) {
        let id = self.instance(at);
        let owner = self.references[at].instances.get(&id).map(|instance| instance.owner);
        let who = self.mostly(owner, who);
        let caller = self.context(who);
        if self.is(3) {
            let id = self.volume(at);
            let options = CaptureOptions::default();
            let what = CaptureWhat::Volume(id);
            let real = |region: &Region| capture::create_snapshots(region, what, &options, &caller.context());
            self.fail_before(at, real);
            let made = code(real(&self.regions[at]));
            let expected = self.references[at].see_volume(who, id).map(|volume| volume.content.clone());
            assert_eq!(made.as_ref().map(drop), expected.clone().map_err(str::to_owned).as_ref().map(drop));
            self.note("create_snapshot", made.is_ok());
            if let (Ok(made), Ok(content)) = (made, expected) {
                let snapshot = Snapshot { owner: who, shared: BTreeSet::new(), content };
                self.add_snapshot(at, made.snapshots[0].id, snapshot);
            }
            return;
        }
        let name = NAMES[self.draw.below(NAMES.len())];
        let options = CreateImageOptions { name: name.into(), ..CreateImageOptions::default() };
        let expected = self.references[at].may_image(who, id, name, self.now);
        let real = |region: &Region| capture::create_image(region, id, &options, &caller.context());
        self.fail_before(at, real);
        let made = code(real(&self.regions[at]));
        assert_eq!(
            made.as_ref().map(drop),
            expected.map_err(str::to_owned).as_ref().map(drop),
            "create_image"
        );
        self.note("create_image", made.is_ok());
        let Ok((image, _)) = made else { return };
        assert_eq!(image.source_instance, Some(id));
        let volumes = self.references[at].volumes_of(id);
        assert_eq!(image.devices.len(), volumes.len(), "every volume is in it");
        for device in &image.devices {
            let DeviceTarget::Ebs(ebs) = &device.target else { panic!("{device:?}") };
            let content = self.references[at].volumes[&volumes[&device.device_name]].content.clone();
            let snapshot = Snapshot { owner: who, shared: BTreeSet::new(), content };
            self.add_snapshot(at, ebs.snapshot_id.unwrap(), snapshot);
        }
        let known = &self.references[at];
        let instance = &known.instances[&id];
        let own = known.images.get(&instance.image).is_some_and(|image| image.owner == who);
        let stays = |(device, volume): (&String, &VolumeId)| {
            let deleted = known.volumes[volume].attached.as_ref().is_some_and(|at| at.2);
            (!deleted).then(|| device.clone())
        };
        let image_known = Image {
            kept: volumes.iter().filter_map(stays).collect(),
            codes: instance.codes,
            predecessor: own.then_some(instance.image),
            source: Some(instance.image),
            ..self.new_image(who, name, image.snapshot_ids().collect())
        };
        self.references[at].images.insert(image.id, image_known);
    }

    /// Everything is as the reference says, for the catalogue and for each account's eyes.
    fn check(&self) {
        for (region, known) in self.regions.iter().zip(&self.references) {
            let catalog = region.catalog().unwrap();
            let found = differences(known, &catalog, self.now);
            assert!(found.is_empty(), "{found:#?}\n{}", history(region, &found[0]));
            for who in 0..ACCOUNTS {
                let account = account_id(who);
                for id in known.images.keys().chain(known.binned_images.keys()) {
                    let seen = find::image(&catalog, account, *id).map(drop).map_err(|e| e.code());
                    assert_eq!(seen, known.see_image(who, *id).map(drop));
                }
                for id in known.snapshots.keys().chain(known.binned_snapshots.keys()) {
                    let seen = find::snapshot(&catalog, account, *id).map(drop).map_err(|e| e.code());
                    assert_eq!(seen, known.see_snapshot(who, *id).map(drop));
                }
            }
        }
    }
}

/// A run with its own draws.
fn run(seed: u64, operations: usize) -> Both {
    let mut both = Both::new(seed);
    for number in 0..operations {
        both.step();
        if number % 100 == 0 {
            both.check();
        }
    }
    both.restart(CrashMode::DropUnsynced);
    both.check();
    for (at, region) in both.regions.iter().enumerate() {
        let caller = Caller::new(1);
        let report = imgstore::ops::verify::verify(region, &Default::default(), &caller.context()).unwrap();
        assert_eq!(report.findings, [], "draws of {seed}");
        for (id, snapshot) in &both.references[at].snapshots {
            let owner = Caller { account: account_id(snapshot.owner), ..Caller::new(1) };
            assert!(owner.read_back(region, *id).unwrap() == *snapshot.content, "draws of {seed}: {id}");
        }
    }
    both
}

#[test]
fn the_library_does_what_the_reference_says() {
    let operations = std::env::var("IMGSTORE_MODEL_OPERATIONS").ok().and_then(|text| text.parse().ok());
    let operations: usize = operations.unwrap_or(LONG_RUN);
    let both = run(1, operations.min(LONG_RUN));
    println!("[succeeded, refused] of each: {:#?}", both.done);
    println!("faults that happened: {:?}", both.faults);
    println!("on copies: {:?}, done all the same: {}", both.faults_on_copies, both.done_on_copies);
    println!("power failed in {:?} operations: [did not happen, happened]", both.power_failures);
    if operations >= LONG_RUN {
        // A test whose operations are all refused would test nothing.
        for (what, [succeeded, refused]) in &both.done {
            assert!(
                *succeeded >= 3 && (*refused >= 1 || ["snapshot", "block public", "collect"].contains(what)),
                "{what}"
            );
        }
        assert!(both.done_on_copies >= 8, "{}", both.done_on_copies);
        assert!(both.power_failures.iter().all(|count| *count >= 20), "{:?}", both.power_failures);
        for fault in FAULTS {
            assert!(both.faults.get(&fault).is_some_and(|count| *count >= 5), "{fault:?}: {:?}", both.faults);
            let on_copies = both.faults_on_copies.get(&fault).is_some_and(|count| *count >= 5);
            assert!(on_copies || fault == Fault::PowerBeforeName, "{fault:?}: {:?}", both.faults_on_copies);
        }
    }
    // More is had by other draws: what a long history makes slow, it does not make likelier.
    let more = operations.saturating_sub(LONG_RUN).div_ceil(SHORT_RUN);
    let (next, failures) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let number = next.fetch_add(1, Ordering::Relaxed)
                    && number < more
                {
                    let both = run(2 + number as u64, SHORT_RUN);
                    failures.fetch_add(both.power_failures.iter().sum(), Ordering::Relaxed);
                }
            });
        }
    });
    println!(
        "{} operations, {} of them with power failures",
        operations.min(LONG_RUN) + more * SHORT_RUN,
        both.power_failures.iter().sum::<usize>() + failures.into_inner()
    );
}
