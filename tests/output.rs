//! Where content leaves the store: devices, pipes, folders that were made for it, and signals meanwhile.

mod common;

use common::mounted::{have, must, text};
use common::place::{Place, one_line};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A file as a device, until it is dropped.
struct Loop(String);

impl Loop {
    fn new(file: &Path) -> Option<Self> {
        if !have(&["losetup"]) {
            return None;
        }
        match common::mounted::run("losetup", &["-f", "--show", text(file)]) {
            Some((true, said)) => Some(Self(said.trim().to_owned())),
            said => {
                common::skipped(format_args!("no loop device: {said:?}"));
                None
            }
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        must("losetup", &["-d", &self.0]);
    }
}

/// What was on it is overwritten as far as the volume reaches, with zeros, too, and no byte further.
#[test]
fn a_device_has_the_volume_and_behind_it_what_it_had() {
    let place = Place::new();
    let old = vec![0xa5; 4 << 20];
    // Data, a hole, data; the last sector is not whole.
    let mut bytes = place.disk("disk.raw", 3_000_001, 1);
    bytes[800_000..2_000_000].fill(0);
    fs::write(place.path("disk.raw"), &bytes).unwrap();
    let id = one_line(&place.ok(&["snapshot", "disk.raw"]), "snap-");
    fs::write(place.path("old"), &old).unwrap();
    let Some(device) = Loop::new(&place.path("old")) else { return };
    let (code, said) = place.fails(&["export", &id, &device.0]);
    assert!(code == 6 && said.contains("--write-device"), "{code} {said}");
    place.ok(&["export", &id, &device.0, "--write-device"]);
    let mut found = vec![0; old.len()];
    File::open(&device.0).unwrap().read_exact(&mut found).unwrap();
    assert!(found[..bytes.len()] == bytes, "the volume");
    assert!(found[bytes.len()..] == old[bytes.len()..], "what is behind it");
    // One that is too small is refused before anything is written.
    place.disk("long.raw", (4 << 20) + 512, 2);
    let long = one_line(&place.ok(&["snapshot", "long.raw"]), "snap-");
    let (code, said) = place.fails(&["export", &long, &device.0, "--write-device"]);
    assert!(code == 6 && said.contains("4194304 bytes"), "{code} {said}");
    let mut again = vec![0; old.len()];
    File::open(&device.0).unwrap().read_exact(&mut again).unwrap();
    assert!(again == found);
}

/// A program that is killed if it is still there in the end.
struct Running(Child);

impl Running {
    fn signal(&self, signal: &str) {
        must("kill", &[signal, &self.0.id().to_string()]);
    }

    /// Its exit code once it has ended; none if it has not, after so long.
    fn code_within(&mut self, patience: Duration) -> Option<i32> {
        let until = Instant::now() + patience;
        loop {
            match self.0.try_wait().unwrap() {
                Some(status) => return Some(status.code().unwrap_or(-1)),
                None if Instant::now() > until => return None,
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const SOON: Duration = Duration::from_secs(20);

/// An export to a reader that has taken some bytes, and then takes nothing more. Signals are handled by then.
fn to_standing_reader(place: &Place, ignored: &[&str]) -> Running {
    place.disk("a.raw", 4 << 20, 1);
    let id = one_line(&place.ok(&["snapshot", "a.raw"]), "snap-");
    let program = place.in_foreground(&["export", &id, "-"]);
    let mut command = Command::new(program.get_program());
    command.env_clear().envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut args = program.get_args();
    // Before the program's name.
    command.args(args.next()).args(ignored).args(args).current_dir(place.folder.path());
    let mut running = Running(command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
    running.0.stdout.as_mut().unwrap().read_exact(&mut [0; 4096]).unwrap();
    running
}

#[test]
fn a_signal_ends_what_waits_for_its_reader() {
    for signal in ["-INT", "-TERM", "-HUP"] {
        let place = Place::new();
        let mut running = to_standing_reader(&place, &[]);
        assert_eq!(running.code_within(Duration::from_millis(300)), None, "it waits");
        running.signal(signal);
        assert_eq!(running.code_within(SOON), Some(8), "{signal}");
    }
}

/// As `nohup` has it, and a shell for what it starts in the background.
#[test]
fn what_is_ignored_from_the_start_stays_ignored() {
    let place = Place::new();
    let mut running = to_standing_reader(&place, &["--ignore-signal=INT,HUP"]);
    running.signal("-HUP");
    running.signal("-INT");
    assert_eq!(running.code_within(Duration::from_secs(1)), None, "it goes on");
    let mut rest = Vec::new();
    running.0.stdout.take().unwrap().read_to_end(&mut rest).unwrap();
    assert!(rest == fs::read(place.path("a.raw")).unwrap()[4096..]);
    assert_eq!(running.code_within(SOON), Some(0));
    // The other one is not.
    let mut running = to_standing_reader(&place, &["--ignore-signal=INT,HUP"]);
    running.signal("-TERM");
    assert_eq!(running.code_within(SOON), Some(8));
}

/// Of the folders that were made for what failed none stays; of those that were there each.
#[test]
fn folders_of_what_failed_go_again() {
    let place = Place::new();
    place.disk("a.raw", 2 << 20, 1);
    let image = one_line(&place.ok(&["import", "a.raw", "--name", "golden"]), "ami-");
    fs::create_dir(place.path("there")).unwrap();
    let packs = place.path("home/regions/local/packs");
    fs::rename(&packs, place.path("away")).unwrap();
    for args in [
        &["export", &image, "there/x/y", "--all"][..],
        &["launch", &image, "--output", "there/x/y"],
        &["bundle", &image, "there/x/y"],
    ] {
        let (code, said) = place.fails(args);
        assert!(code == 5 && said.contains("imgstore repair"), "{args:?}: {code} {said}");
        assert_eq!(fs::read_dir(place.path("there")).unwrap().count(), 0, "{args:?}");
    }
    fs::rename(place.path("away"), &packs).unwrap();
    place.ok(&["export", &image, "there/x/y", "--all"]);
    assert!(place.path("there/x/y/xvda.raw").exists());
    assert_eq!(fs::metadata(place.path("there/x")).unwrap().permissions().mode() & 0o777, 0o700);
}

/// A file is no folder, wherever on the way it is.
#[test]
fn what_is_below_a_file_is_refused() {
    let place = Place::new();
    place.disk("a.raw", 1 << 20, 1);
    let image = one_line(&place.ok(&["import", "a.raw", "--name", "golden"]), "ami-");
    for args in [
        &["export", &image, "a.raw/x"][..],
        &["export", &image, "a.raw/x/y", "--all"],
        &["launch", &image, "--output", "a.raw/x"],
        &["bundle", &image, "a.raw"],
    ] {
        let (code, said) = place.fails(args);
        assert!(code == 6 && said.contains("folder"), "{args:?}: {code} {said}");
    }
    assert_eq!(fs::metadata(place.path("a.raw")).unwrap().size(), 1 << 20);
    let file = File::open(place.path("a.raw")).unwrap();
    let mut first = [0; 512];
    file.read_exact_at(&mut first, 0).unwrap();
    assert!(first[..] == common::volume(1 << 20, 1)[..512]);
}
