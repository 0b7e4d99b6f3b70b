//! Every sequence of three commands, with power loss after each operation of it: by the oracle of `crash_harness`.
//!
//! A sample of the sequences, unless `IMGSTORE_CRASH_SEQUENCES=all cargo test --release --test crash_sequences`.

mod common;
mod crash_harness;

use common::MemoryDisk;
use crash_harness::{AWAY, Ack, HOME, Player, World, contents, violation};
use imgstore::io::sim::{CrashMode, SimFiles, Verdict};
use imgstore::model::account::{self, Resource};
use imgstore::model::ids::{ImageId, SnapshotId, VolumeId};
use imgstore::model::instance::Volume;
use imgstore::model::words::{Architecture, VolumeType};
use imgstore::ops::bin::{add_rule, remove_rule, restore_snapshot};
use imgstore::ops::capture::{CreateImageOptions, create_image};
use imgstore::ops::copy::{CopyOptions, CopyWhat, apply, plan};
use imgstore::ops::delete::{SnapshotOutcome, delete_snapshot, deregister};
use imgstore::ops::devices::DeviceSpec;
use imgstore::ops::encode::Compression;
use imgstore::ops::error::OpsError;
use imgstore::ops::gc::{GcOptions, collect};
use imgstore::ops::import::{ImportDisk, import, import_template};
use imgstore::ops::instance::terminate;
use imgstore::ops::launch::{LaunchOptions, launch};
use imgstore::ops::modify::{Target, tag};
use imgstore::ops::register::{ImageOptions, register};
use imgstore::ops::repack::{RepackOptions, repack};
use imgstore::ops::repair::{RepairSources, repair};
use imgstore::ops::verify::{Finding, VerifyOptions, verify};
use imgstore::ops::volume::{VolumeOptions, create_volume, delete_volume};
use imgstore::region::Region;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The commands that write to a region. Those that change one record only do so in the same way: of them there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Command {
    Snapshot,
    SnapshotOfEdited,
    Copy,
    DeleteSnapshot,
    Collect,
    Repack,
    Repair,
    Verify,
    Register,
    Deregister,
    Launch,
    CreateImage,
    Terminate,
    Tag,
    /// A rule for the bin, a deletion into it, the rescue out of it.
    Bin,
    Import,
    ImportTemplate,
    CopyImage,
    /// With its snapshots.
    DeregisterAll,
    CreateVolume,
    DeleteVolume,
}

use Command::*;
const COMMANDS: [Command; 21] = [
    Snapshot,
    SnapshotOfEdited,
    Copy,
    DeleteSnapshot,
    Collect,
    Repack,
    Repair,
    Verify,
    Register,
    Deregister,
    Launch,
    CreateImage,
    Terminate,
    Tag,
    Bin,
    Import,
    ImportTemplate,
    CopyImage,
    DeregisterAll,
    CreateVolume,
    DeleteVolume,
];

/// How far the logs of both regions have come.
fn sequences(world: &World) -> [u64; 2] {
    [HOME, AWAY].map(|root| world.open(root).unwrap().catalog().unwrap().sequence)
}

/// A snapshot that nothing uses.
fn free_snapshot(region: &Region) -> Result<Option<SnapshotId>, OpsError> {
    let catalog = region.catalog()?;
    let used =
        |id: &SnapshotId| catalog.images.values().any(|image| image.snapshot_ids().any(|used| used == *id));
    Ok(catalog.snapshots.values().filter(|s| !used(&s.id)).map(|s| s.id).next())
}

fn image(region: &Region) -> Result<ImageId, OpsError> {
    let missing = ImageId::from_random(7);
    Ok(region.catalog()?.images.keys().next().copied().unwrap_or(missing))
}

/// Nothing is damaged: at most a medium did not answer.
fn is_sound(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.problem.contains(NO_ANSWER))
}

/// Does a command on whatever it finds.
fn run(command: Command, player: &mut Player<'_>, disks: &Path) -> Result<(), OpsError> {
    let region = player.world.open(HOME)?;
    let nothing = SnapshotId::from_random(7);
    let options = GcOptions { grace_ms: 0, repack_percent: 90 };
    let instance = region.catalog()?.instances.values().find(|i| i.is_live()).map(|i| i.id);
    match command {
        Snapshot => drop(player.take(&region, 0)?),
        SnapshotOfEdited => drop(player.take(&region, 1)?),
        Copy => {
            let away = player.world.open(AWAY)?;
            if let Some(id) = free_snapshot(&region)? {
                player.copy(&region, &away, id)?;
            }
        }
        DeleteSnapshot => {
            let id = free_snapshot(&region)?.unwrap_or(nothing);
            player.delete(&region, id)?;
        }
        Collect => collect(&region, &options, &player.caller.context()).map(|_| ())?,
        Repack => repack(&region, &RepackOptions::default(), &player.caller.context()).map(drop)?,
        Repair => {
            let sources = RepairSources::default();
            let repaired = repair(&region, &sources, &player.caller.context())?;
            assert!(repaired.lost.is_empty() && repaired.quarantined.is_empty(), "{repaired:?}");
            assert!(is_sound(&repaired.findings), "{:?}", repaired.findings);
        }
        Verify => {
            let report = verify(&region, &VerifyOptions::default(), &player.caller.context())?;
            assert!(is_sound(&report.findings), "{:?}", report.findings);
        }
        Register => {
            let name = format!("image {}", player.acks.len());
            let options = ImageOptions::named(&name, Architecture::X86_64);
            let device = DeviceSpec::of_snapshot("/dev/xvda", free_snapshot(&region)?.unwrap_or(nothing));
            register(&region, &options, &[device], &player.caller.context())?;
        }
        Deregister => drop(deregister(&region, image(&region)?, false, &player.caller.context())?),
        Launch => {
            let options = LaunchOptions::one(disks);
            launch(&region, image(&region)?, &options, &player.caller.context())?;
        }
        CreateImage => {
            let options = CreateImageOptions {
                name: format!("created {}", player.acks.len()),
                no_reboot: true,
                ..CreateImageOptions::default()
            };
            if let Some(id) = instance {
                let (_, captured) = create_image(&region, id, &options, &player.caller.context())?;
                // Images and instances come in a random order: which disk it is, its volume says.
                let is_of_it =
                    |volume: &&Volume| volume.attachment.as_ref().is_some_and(|to| to.instance_id == id);
                let disk =
                    region.catalog()?.volumes.values().find(is_of_it).map(|volume| volume.path.clone());
                let bytes = Arc::new(std::fs::read(disk.unwrap()).unwrap());
                player.say(Ack::Snapshot(HOME, captured.snapshots[0].id, bytes));
            }
        }
        Terminate => {
            if let Some(id) = instance {
                terminate(&region, &[id], &player.caller.context())?;
            }
        }
        Tag => {
            let tags = [account::Tag { key: "step".into(), value: player.acks.len().to_string() }];
            tag(&region, Target::Image(image(&region)?), &tags, &[], &player.caller.context())?;
        }
        Bin => {
            let id = free_snapshot(&region)?.unwrap_or(nothing);
            let rule = add_rule(&region, Resource::Snapshot, 7, &[], &player.caller.context())?;
            player.say(Ack::Deleting(HOME, id));
            delete_snapshot(&region, id, &player.caller.context())?;
            restore_snapshot(&region, id, &player.caller.context())?;
            remove_rule(&region, rule.id, &player.caller.context())?;
        }
        Import | ImportTemplate | CopyImage | DeregisterAll => of_images(command, player, &region)?,
        CreateVolume | DeleteVolume => of_volumes(command, player, &region, disks)?,
    }
    player.reached(HOME)
}

fn of_images(command: Command, player: &mut Player<'_>, region: &Region) -> Result<(), OpsError> {
    let name = format!("image {} of {command:?}", player.acks.len());
    let options = ImageOptions::named(&name, Architecture::X86_64);
    let disk = || Box::new(MemoryDisk::new(player.contents[1].to_vec()));
    let compression = Compression::default();
    match command {
        Import => {
            let disks = [ImportDisk { device_name: "/dev/xvda".into(), disk: disk() }];
            let made = import(region, &disks, &[], &options, compression, &player.caller.context())?;
            player.say(Ack::Snapshot(HOME, made.snapshots[0].id, player.contents[1].clone()));
        }
        ImportTemplate => {
            import_template(region, &*disk(), &[], &options, compression, &player.caller.context())?;
        }
        CopyImage => {
            let (away, id) = (player.world.open(AWAY)?, image(region)?);
            let options = CopyOptions { name: Some(name), ..CopyOptions::default() };
            let plan = plan(region, &away, CopyWhat::Image(id), &options, &player.caller.context())?;
            let copied = apply(region, &away, &plan, &options, &player.caller.context())?;
            let originals: Vec<_> = region.catalog()?.images[&id].snapshot_ids().collect();
            for (copy, original) in copied.image.unwrap().snapshot_ids().zip(originals) {
                let bytes = player.acks.iter().find_map(|(_, ack)| match ack {
                    Ack::Snapshot(HOME, of, bytes) if *of == original => Some(bytes.clone()),
                    _ => None,
                });
                player.say(Ack::Snapshot(AWAY, copy, bytes.expect("what is copied was acknowledged")));
            }
        }
        _ => {
            let id = image(region)?;
            let of_it: Vec<_> = match region.catalog()?.images.get(&id) {
                Some(image) => image.snapshot_ids().collect(),
                None => vec![],
            };
            of_it.iter().for_each(|id| player.say(Ack::Deleting(HOME, *id)));
            let done = deregister(region, id, true, &player.caller.context())?;
            let catalog = region.catalog()?;
            let gone = of_it.into_iter().filter(|id| !catalog.snapshots.contains_key(id));
            assert_eq!(
                gone.clone().count() > 0,
                done.snapshots.iter().any(|one| one.outcome == SnapshotOutcome::Success)
            );
            gone.for_each(|id| player.say(Ack::Deleted(HOME, id)));
        }
    }
    Ok(())
}

fn of_volumes(command: Command, player: &Player<'_>, region: &Region, disks: &Path) -> Result<(), OpsError> {
    let catalog = region.catalog()?;
    if command == DeleteVolume {
        let free = catalog.volumes.values().find(|volume| volume.attachment.is_none());
        let id = free.map_or(VolumeId::from_random(7), |volume| volume.id);
        return delete_volume(region, id, &player.caller.context()).map(drop);
    }
    let options = VolumeOptions {
        snapshot_id: catalog.snapshots.keys().next().copied(),
        volume_bytes: Some(1 << 20),
        volume_type: VolumeType::Gp3,
        iops: None,
        output: disks.into(),
        tags: vec![],
        client_token: None,
    };
    let made = create_volume(region, &options, &player.caller.context())?;
    assert_eq!(std::fs::metadata(made.path).unwrap().len(), 1 << 20);
    Ok(())
}

/// Where every sequence begins: two regions, something to collect, a snapshot, an image, an instance of it whose disk
/// lies in `disks`, as that of a free volume does.
struct Beginning {
    files: SimFiles,
    acks: Vec<Ack>,
    contents: Vec<Arc<Vec<u8>>>,
    disks: tempfile::TempDir,
    disk_files: Vec<(PathBuf, Vec<u8>)>,
}

impl Beginning {
    fn new() -> Self {
        let (files, mut acks, disks) = (SimFiles::new(), Vec::new(), tempfile::tempdir().unwrap());
        let world = World::honest(&files);
        let mut player = Player::new(world, contents(), &mut acks);
        let home = player.init(HOME).unwrap();
        player.init(AWAY).unwrap();
        player.take(&home, 2).unwrap();
        // While there is one snapshot only: ids are random, and so is which is the first.
        run(Command::Register, &mut player, disks.path()).unwrap();
        let garbage = player.take(&home, 0).unwrap();
        player.delete(&home, garbage).unwrap();
        player.take(&home, 1).unwrap();
        run(Command::Launch, &mut player, disks.path()).unwrap();
        let volume = home.catalog().unwrap().volumes.values().next().unwrap().clone();
        let path = PathBuf::from(volume.path);
        let bytes = std::fs::read(&path).unwrap();
        run(Command::CreateVolume, &mut player, disks.path()).unwrap();
        let paths = home
            .catalog()
            .unwrap()
            .volumes
            .values()
            .map(|volume| PathBuf::from(&volume.path))
            .collect::<Vec<_>>();
        let disk_files: Vec<_> =
            paths.into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect();
        assert_eq!(disk_files.len(), 2);
        let mut contents = contents();
        assert!(bytes.starts_with(&contents[2]));
        contents[2] = Arc::new(bytes.clone());
        contents.push(self::contents().remove(2));
        let acks = acks.into_iter().map(|(_, ack)| ack).collect();
        Self { files: files.settled(), acks, contents, disks, disk_files }
    }

    /// The beginning once more.
    fn again(&self) -> SimFiles {
        for (path, bytes) in &self.disk_files {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        self.files.crash(self.files.operations(), CrashMode::KeepAll).settled()
    }

    /// Runs a command of whose calls one fails; then what was acknowledged is there, whether the power fails, too, or not. Gives
    /// how many calls it made.
    fn fail(&self, command: Command, at: usize, fault: Fault) -> usize {
        let (files, calls) = (self.again(), Arc::new(AtomicUsize::new(0)));
        let count = calls.clone();
        let is_it = move || count.fetch_add(1, Ordering::SeqCst) == at;
        let seen = match fault {
            Fault::Call(verdict) => {
                files.with_hook(Arc::new(move |_| if is_it() { verdict } else { Verdict::Proceed }))
            }
            Fault::Read => files.with_read_hook(Arc::new(move |_| {
                if is_it() { Err(std::io::Error::other(NO_ANSWER)) } else { Ok(()) }
            })),
        };
        let mut acks: Vec<_> = self.acks.iter().map(|ack| (0, ack.clone())).collect();
        let mut player = Player::new(World::honest(&seen), self.contents.clone(), &mut acks);
        // It may fail, or do without.
        let done = run(command, &mut player, self.disks.path());
        let acks: Vec<_> = player.acks.iter().map(|(_, ack)| ack.clone()).collect();
        for mode in [CrashMode::DropUnsynced, CrashMode::KeepAll] {
            let files = files.crash(files.operations(), mode);
            let found = violation(&player.caller, &files, &acks, &self.contents, true);
            assert_eq!(found, None, "{command:?}: {fault:?} at call {at}, then {mode:?}; it was {done:?}");
            // What is on record has its disk, where nothing was deleted.
            let catalog = World::honest(&files).open(HOME).unwrap().catalog().unwrap();
            let stay = !matches!(command, Terminate | DeleteVolume);
            for volume in catalog.volumes.values().filter(|_| stay) {
                assert!(Path::new(&volume.path).exists(), "{command:?}: {fault:?} at {at}: {}", volume.id);
            }
        }
        calls.load(Ordering::SeqCst)
    }

    /// Runs a sequence and crashes it everywhere. Gives the number of states and the first violation; `acted` gets the commands
    /// that changed anything.
    fn crash(&self, commands: &[Command], acted: &Mutex<BTreeSet<Command>>) -> (usize, Option<String>) {
        let files = self.again();
        let begun = files.operations();
        let mut acks: Vec<_> = self.acks.iter().map(|ack| (0, ack.clone())).collect();
        let world = World::honest(&files);
        let mut player = Player::new(world, self.contents.clone(), &mut acks);
        for command in commands {
            let before = sequences(&player.world);
            match run(*command, &mut player, self.disks.path()) {
                // What is not there cannot be deregistered.
                Ok(()) | Err(OpsError::Rule { .. }) => {}
                Err(error) => return (0, Some(format!("{commands:?}: {command:?}: {error}"))),
            }
            if sequences(&player.world) != before {
                acted.lock().unwrap().insert(*command);
            }
        }
        let mut tried = 0;
        for at in begun..=files.operations() {
            let acks: Vec<Ack> =
                player.acks.iter().filter(|(when, _)| *when <= at).map(|(_, ack)| ack.clone()).collect();
            let seed =
                (at * 31 + commands.iter().fold(0, |sum, c| sum * COMMANDS.len() + *c as usize)) as u64;
            for mode in [CrashMode::DropUnsynced, CrashMode::KeepAll, CrashMode::Mixed(seed)] {
                tried += 1;
                let go_on = tried % 5 == 0;
                let fault = violation(&player.caller, &files.crash(at, mode), &acks, &self.contents, go_on);
                if let Some(fault) = fault {
                    return (tried, Some(format!("{commands:?}: operation {at}, {mode:?}: {fault}")));
                }
            }
        }
        (tried, None)
    }
}

#[test]
fn no_crash_in_a_sequence_of_three_commands_loses_anything() {
    let all: Vec<[Command; 3]> = COMMANDS
        .iter()
        .flat_map(|one| COMMANDS.map(|two| (*one, two)))
        .flat_map(|(one, two)| COMMANDS.map(|three| [one, two, three]))
        .collect();
    assert_eq!(all.len(), 21 * 21 * 21);
    // 151 shares no factor with 21: the sample has every command in every place.
    let is_sample = std::env::var("IMGSTORE_CRASH_SEQUENCES").is_err();
    let chosen: Vec<_> = all.iter().step_by(if is_sample { 151 } else { 1 }).collect();
    let (next, states, faults) = (AtomicUsize::new(0), AtomicUsize::new(0), Mutex::new(Vec::new()));
    let acted = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                let beginning = Beginning::new();
                while let Some(commands) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let (tried, fault) = beginning.crash(*commands, &acted);
                    states.fetch_add(tried, Ordering::Relaxed);
                    faults.lock().unwrap().extend(fault);
                }
            });
        }
    });
    let faults = faults.into_inner().unwrap();
    assert!(faults.is_empty(), "{} violations, the first: {}", faults.len(), faults[0]);
    let acted = acted.into_inner().unwrap();
    let idle: Vec<_> = COMMANDS.into_iter().filter(|command| !acted.contains(command)).collect();
    assert!(idle.iter().all(|command| matches!(command, Repair | Verify)), "these did nothing: {idle:?}");
    println!("{} sequences, {} crash states, no violation", chosen.len(), states.into_inner());
}

/// What a medium says that fails.
const NO_ANSWER: &str = "the medium does not answer";

/// What happens to a call.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// Of those that change something.
    Call(Verdict),
    /// Of those that read fails.
    Read,
}

/// Each call of each command fails once; or it is done, and the answer is lost.
#[test]
fn every_call_of_every_command_may_fail_once() {
    let beginning = Beginning::new();
    let step = if std::env::var_os("IMGSTORE_CRASH_SEQUENCES").is_some() { 1 } else { 5 };
    let fails = Fault::Call(Verdict::Fail(std::io::ErrorKind::Other));
    let is_lost = Fault::Call(Verdict::FailAfter(std::io::ErrorKind::TimedOut));
    let mut tried = 0;
    for command in COMMANDS {
        for fault in [fails, is_lost, Fault::Read] {
            let calls = beginning.fail(command, usize::MAX, fault);
            assert!(calls > 3 || matches!(command, Repair | Verify), "{command:?} makes {calls} calls");
            for at in (0..calls).step_by(step) {
                beginning.fail(command, at, fault);
                tried += 1;
            }
        }
    }
    println!("{tried} calls failed once, no violation");
}
