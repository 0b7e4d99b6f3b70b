//! Every sequence of three commands, with power loss after each operation of it: by the oracle of `crash_harness`.
//!
//! A sample of the sequences, unless `IMGSTORE_CRASH_SEQUENCES=all cargo test --release --test crash_sequences`.

mod common;
mod crash_harness;

use crash_harness::{AWAY, Ack, HOME, Player, World, contents, violation};
use imgstore::io::sim::{CrashMode, SimFiles};
use imgstore::model::account::{self, Resource};
use imgstore::model::ids::{ImageId, SnapshotId};
use imgstore::model::instance::Volume;
use imgstore::model::words::Architecture;
use imgstore::ops::bin::{add_rule, remove_rule, restore_snapshot};
use imgstore::ops::capture::{CreateImageOptions, create_image};
use imgstore::ops::delete::{delete_snapshot, deregister};
use imgstore::ops::devices::DeviceSpec;
use imgstore::ops::error::OpsError;
use imgstore::ops::gc::{GcOptions, collect};
use imgstore::ops::instance::terminate;
use imgstore::ops::launch::{LaunchOptions, launch};
use imgstore::ops::modify::{Target, tag};
use imgstore::ops::register::{ImageOptions, register};
use imgstore::ops::repack::{RepackOptions, repack};
use imgstore::ops::repair::{RepairSources, repair};
use imgstore::ops::verify::{VerifyOptions, verify};
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
}

use Command::*;
const COMMANDS: [Command; 15] = [
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
            assert!(repaired.findings.is_empty(), "{:?}", repaired.findings);
        }
        Verify => {
            let report = verify(&region, &VerifyOptions::default(), &player.caller.context())?;
            assert!(report.findings.is_empty(), "{:?}", report.findings);
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
    }
    player.reached(HOME)
}

/// Where every sequence begins: two regions, something to collect, a snapshot, an image, an instance of it whose disk
/// lies in `disks`.
struct Beginning {
    files: SimFiles,
    acks: Vec<Ack>,
    contents: Vec<Arc<Vec<u8>>>,
    disks: tempfile::TempDir,
    instance_disk: (PathBuf, Vec<u8>),
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
        let mut contents = contents();
        assert!(bytes.starts_with(&contents[2]));
        contents[2] = Arc::new(bytes.clone());
        contents.push(self::contents().remove(2));
        let acks = acks.into_iter().map(|(_, ack)| ack).collect();
        Self { files: files.settled(), acks, contents, disks, instance_disk: (path, bytes) }
    }

    /// Runs a sequence and crashes it everywhere. Gives the number of states and the first violation; `acted` gets the commands
    /// that changed anything.
    fn crash(&self, commands: &[Command], acted: &Mutex<BTreeSet<Command>>) -> (usize, Option<String>) {
        let (path, bytes) = &self.instance_disk;
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
        let start = self.files.operations();
        let files = self.files.crash(start, CrashMode::KeepAll).settled();
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
            let seed = (at * 31 + commands.iter().fold(0, |sum, c| sum * 15 + *c as usize)) as u64;
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
    assert_eq!(all.len(), 15 * 15 * 15);
    // 53 shares no factor with 15: the sample has every command in every place.
    let is_sample = std::env::var("IMGSTORE_CRASH_SEQUENCES").is_err();
    let chosen: Vec<_> = all.iter().step_by(if is_sample { 53 } else { 1 }).collect();
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
