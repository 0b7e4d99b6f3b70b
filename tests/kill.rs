//! kill -9 in the middle of real commands on a real file system: nothing acknowledged is lost.
//!
//! `IMGSTORE_KILL_ROUNDS=10000 cargo test --release --test kill` is the long run.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn imgstore(home: &Path, args: &[&str]) -> Command {
    let mut command = common::clean(Command::new(env!("CARGO_BIN_EXE_imgstore")));
    command.env("IMGSTORE_HOME", home).arg("--quiet").args(args);
    command
}

fn output(home: &Path, args: &[&str]) -> Vec<u8> {
    let output = imgstore(home, args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Also those that nobody was told of.
fn snapshots(home: &Path) -> Vec<String> {
    let listed: serde_json::Value = serde_json::from_slice(&output(home, &["snapshots", "--json"])).unwrap();
    let ids =
        listed["snapshots"].as_array().unwrap().iter().map(|listed| listed["snapshot_id"].as_str().unwrap());
    ids.map(str::to_owned).collect()
}

/// Flips a bit of one pack. Whatever an imgstore has mapped stays as it was: the file is another one.
fn damage_a_pack(region: &Path, draw: &mut common::Draw) {
    let folders = fs::read_dir(region.join("packs")).unwrap().map(|folder| folder.unwrap().path());
    let mut packs: Vec<_> =
        folders.flat_map(|folder| fs::read_dir(folder).unwrap()).map(|file| file.unwrap().path()).collect();
    packs.sort();
    let pack = &packs[draw.below(packs.len())];
    let mut bytes = fs::read(pack).unwrap();
    let at = draw.below(bytes.len());
    bytes[at] ^= 1 << draw.below(8);
    fs::remove_file(pack).unwrap();
    fs::write(pack, bytes).unwrap();
}

#[test]
fn a_killed_process_loses_nothing_that_it_acknowledged() {
    let rounds: u64 = std::env::var("IMGSTORE_KILL_ROUNDS").ok().and_then(|t| t.parse().ok()).unwrap_or(100);
    // Another file system than that of temporary files, if that is asked for.
    let place = std::env::var_os("IMGSTORE_KILL_DIR");
    let folder = place.map_or_else(tempfile::tempdir, tempfile::tempdir_in).unwrap();
    let (home, disk) = (folder.path().join("home"), folder.path().join("disk.raw"));
    let disk_arg = disk.to_string_lossy().into_owned();
    let mut draw = common::Draw::new(11);
    let mut bytes = common::volume(6 << 20, 1);
    // Snapshots and images that are there, copies in the other region, and what was deleted for good.
    let mut kept: Vec<(String, Vec<u8>)> = Vec::new();
    let (mut copies, mut gone): (Vec<(String, Vec<u8>)>, Vec<String>) = (Vec::new(), Vec::new());
    let instances = folder.path().join("instances").to_string_lossy().into_owned();
    let (mut safe, mut mended) = (BTreeSet::<String>::new(), 0);
    let (mut killed, mut acknowledged, mut told) = (0, 0, BTreeMap::<String, u64>::new());
    fs::write(&disk, &bytes).unwrap();
    let started = Instant::now();
    output(&home, &["snapshot", &disk_arg]);
    // Follows how long commands take, so that about half are killed in time, on whatever machine this is.
    let mut limit_us = usize::try_from(started.elapsed().as_micros()).unwrap();
    output(&home, &["region", "add", "backup", &folder.path().join("away").to_string_lossy()]);
    for round in 0..rounds {
        // A few changed blocks, and sometimes more.
        for _ in 0..1 + draw.below(40) {
            let at = draw.below(bytes.len() / 4096) * 4096;
            let fresh = common::volume(4096, draw.next());
            bytes[at..at + 4096].copy_from_slice(&fresh);
        }
        fs::write(&disk, &bytes).unwrap();
        let copied = kept.last().cloned().filter(|_| round % 8 == 3);
        // One that is being deleted may be there afterwards or not.
        let oldest = kept.iter().position(|(id, _)| id.starts_with("snap-"));
        let deleted =
            (round % 4 == 1 && kept.len() > 8).then_some(oldest).flatten().map(|at| kept.remove(at).0);
        let image =
            kept.iter().rev().find(|(id, _)| id.starts_with("ami-")).cloned().filter(|_| round % 16 == 7);
        let name = format!("web-{round}");
        let args: Vec<&str> = match (&copied, &deleted, &image) {
            (Some((id, _)), _, _) if id.starts_with("ami-") => {
                vec!["copy", id, "--to", "backup", "--name", &name]
            }
            (Some((id, _)), _, _) => vec!["copy", id, "--to", "backup"],
            (_, Some(id), _) => vec!["delete-snapshot", id],
            (_, _, Some((id, _))) => vec!["launch", id, "--output", &instances],
            _ if round % 4 == 2 => vec!["gc", "--grace", "0s"],
            _ if round % 16 == 8 => vec!["repack", "--limit", "1MiB"],
            _ if round % 16 == 12 => {
                // All that is there is in the other region before something is damaged here.
                for id in snapshots(&home).into_iter().filter(|id| !safe.contains(id)).collect::<Vec<_>>() {
                    output(&home, &["copy", &id, "--to", "backup"]);
                    safe.insert(id);
                }
                damage_a_pack(&home.join("regions/local"), &mut draw);
                vec!["repair", "--from", "backup"]
            }
            _ if round % 4 == 0 && round % 3 == 0 => vec!["import", &disk_arg, "--name", &name],
            _ => vec!["snapshot", &disk_arg],
        };
        let mut child = imgstore(&home, &args).stdout(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(Duration::from_micros(draw.below(limit_us) as u64));
        child.kill().unwrap();
        let status = child.wait().unwrap();
        let in_time = status.signal() == Some(9);
        assert!(in_time || status.success(), "{args:?} by itself: {status}");
        killed += u64::from(in_time);
        limit_us = if in_time { limit_us * 9 / 8 } else { limit_us * 8 / 9 }.max(1000);
        let printed = child.wait_with_output().unwrap().stdout;
        let id = String::from_utf8(printed).unwrap().trim().to_owned();
        if args[0] == "repair" {
            // Wherever it was killed: another one comes to the end of it.
            output(&home, &args);
            assert_eq!(output(&home, &["verify"]), b"", "{args:?} in round {round}");
            mended += 1;
        }
        let is_acknowledged = !id.is_empty() && !["gc", "repack", "repair"].contains(&args[0]);
        *told.entry(args[0].to_owned()).or_default() += u64::from(is_acknowledged);
        acknowledged += u64::from(is_acknowledged);
        match (args[0], copied.clone()) {
            _ if !is_acknowledged => {}
            ("snapshot" | "import", _) => kept.push((id, bytes.clone())),
            ("copy", Some((_, content))) => copies.push((id, content)),
            ("delete-snapshot", _) => gone.push(id),
            ("launch", _) => {
                let (_, content) = image.clone().unwrap();
                let disk = Path::new(&instances).join(&id).join("xvda.raw");
                assert!(fs::read(disk).unwrap() == content, "{id} in round {round}");
                assert!(!output(&home, &["show", &id]).is_empty());
            }
            other => panic!("{other:?}"),
        }
        // The last ones each time, all of them at the end.
        if let Some((id, expected)) = kept.last().filter(|_| round % 5 == 0) {
            assert!(output(&home, &["export", id, "-"]) == *expected, "{id} after round {round}");
        }
    }
    for (id, expected) in &kept {
        assert!(output(&home, &["export", id, "-"]) == *expected, "{id} at the end");
    }
    for (id, expected) in &copies {
        assert!(output(&home, &["--region", "backup", "export", id, "-"]) == *expected, "{id}, a copy");
    }
    for id in &gone {
        let shown = imgstore(&home, &["show", id]).output().unwrap();
        assert_eq!(shown.status.code(), Some(3), "{id} was deleted");
    }
    // What was left of all that goes, and the rest stays.
    output(&home, &["gc", "--grace", "0s"]);
    for (id, expected) in &kept {
        assert!(output(&home, &["export", id, "-"]) == *expected, "{id} after the last collection");
    }
    for region in ["local", "backup"] {
        assert_eq!(output(&home, &["--region", region, "verify"]), b"", "quiet: no damage was found");
    }
    assert!(killed * 5 > rounds, "only {killed} of {rounds} were killed in time");
    assert!(acknowledged > 0, "none came to its end");
    assert!(rounds < 100 || (!copies.is_empty() && !gone.is_empty()), "{told:?}");
    println!(
        "{rounds} rounds, {killed} killed, {acknowledged} acknowledged ({told:?}), {mended} repaired, none lost"
    );
}
