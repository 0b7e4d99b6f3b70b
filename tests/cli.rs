//! The command line as a contract (docs/CLI.md): ids, JSON, exit codes, refusals, what is left behind.

mod common;

use common::place::{Place, one_line};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// The files below a folder.
fn files_in(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() { files.extend(files_in(&entry)) } else { files.push(entry) }
    }
    files
}

#[test]
fn from_nothing_to_an_instance() {
    let place = Place::new();
    let bytes = place.disk("web.raw", 3 << 20, 1);
    let image = one_line(&place.ok(&["import", "web.raw", "--name", "web-1"]), "ami-");
    let instance = one_line(&place.ok(&["launch", &image, "--output", "vms"]), "i-");
    assert!(fs::read(place.path(&format!("vms/{instance}/xvda.raw"))).unwrap() == bytes);
    place.ok(&["export", &image, "out.raw"]);
    assert!(fs::read(place.path("out.raw")).unwrap() == bytes);
    let streamed = place.run(&["export", &image, "-"]);
    assert!(streamed.stdout == bytes);
    for list in ["images", "snapshots", "volumes", "instances"] {
        let items = place.json(&[list])[list].as_array().unwrap().len();
        assert_eq!(items, 1, "{list}");
        assert_eq!(place.ok(&[list]).lines().count(), 2, "{list}: a header and a row");
    }
    assert!(place.ok(&["show", &image]).contains("web-1"));
    assert!(place.ok(&["show", &instance]).contains(&image));
    assert_eq!(place.ok(&["verify"]), "no damage found\n");
    assert!(place.ok(&["log"]).contains("registered image"));
}

#[test]
fn json_has_the_keys_that_programs_rely_on() {
    let place = Place::new();
    let bytes = place.disk("a.raw", 2 << 20, 1);
    let taken = place.json(&["snapshot", "a.raw", "--tag", "k=v", "--description", "text"]);
    for key in [
        "snapshot_id",
        "region",
        "owner_id",
        "volume_bytes",
        "data_bytes",
        "new_bytes",
        "stored_bytes",
        "chunks",
        "new_chunks",
        "elapsed_seconds",
    ] {
        assert!(!taken[key].is_null(), "{key}");
    }
    assert_eq!(taken["volume_bytes"], bytes.len());
    assert_eq!(taken["tags"][0]["value"], "v");
    let id = taken["snapshot_id"].as_str().unwrap();
    let stats = place.json(&["stats"]);
    for key in [
        "volume_bytes",
        "data_bytes",
        "unique_bytes",
        "store_bytes",
        "index_bytes",
        "images",
        "snapshots",
        "chunks",
        "packs",
    ] {
        assert!(stats[key].is_u64(), "{key}");
    }
    let items = place.json(&["stats", id]);
    for key in ["id", "unique_stored_bytes", "shared_stored_bytes", "freed_bytes"] {
        assert!(!items["items"][0][key].is_null(), "{key}");
    }
    place.ok(&["region", "add", "backup", "away"]);
    let planned = place.json(&["copy", id, "--to", "backup", "--dry-run"]);
    let copied = place.json(&["copy", id, "--to", "backup"]);
    assert_eq!(planned["transferred_bytes"], copied["transferred_bytes"]);
    assert!(copied["transferred_bytes"].as_u64().unwrap() > 0);
    assert_ne!(copied["snapshot_id"], id);
    let again = place.json(&["copy", id, "--to", "backup"]);
    assert_eq!(again["transferred_bytes"], 0);
    assert_eq!(place.json(&["--region", "backup", "snapshots"])["snapshots"].as_array().unwrap().len(), 2);
}

#[test]
fn errors_have_their_exit_codes_and_json_documents() {
    let place = Place::new();
    place.disk("a.raw", 1 << 20, 1);
    let ghost = "ami-00000000000000000";
    let (code, message) = place.fails(&["verify"]);
    assert!(code == 3 && message.contains("is its disk mounted?"), "nothing is there: {message}");
    assert!(!place.path("home").exists());
    place.ok(&["snapshot", "a.raw"]);
    let cases: [(&[&str], i32, &str); 15] = [
        (&["nonsense"], 2, ""),
        (&["show", "x"], 2, ""),
        (&["show", ghost], 3, "InvalidAMIID.NotFound"),
        (&["export", "snap-00000000000000000", "x"], 3, "InvalidSnapshot.NotFound"),
        (&["snapshot", "missing.raw"], 3, "NotFound"),
        (&["snapshot", "."], 6, "InputRefused"),
        (&["snapshot", "/dev/null"], 6, "InputRefused"),
        (&["import", "a.raw", "--name", "a"], 2, "InvalidAMIName.Malformed"),
        (&["--region", "moon", "images"], 3, "InvalidRegion.NotFound"),
        (&["region", "add", "Bad Name", "x"], 2, "InvalidParameterValue"),
        (&["region", "remove", "local"], 2, "InvalidParameterValue"),
        (&["launch", ghost, "--count", "0"], 2, "InvalidParameterValue"),
        (&["region", "add", "far", "root@host:/srv"], 2, "InvalidParameterValue"),
        (&["region", "add", "deep", "none/deeper"], 2, "InvalidParameterValue"),
        (&["export", "snap-00000000000000000", "x", "--write-device"], 3, "InvalidSnapshot.NotFound"),
    ];
    for (args, code, name) in cases {
        let (found, message) = place.fails(args);
        assert_eq!(found, code, "{args:?}: {message}");
        assert!(!message.is_empty());
        if name.is_empty() {
            continue;
        }
        let output = place.command(args).arg("--json").output().unwrap();
        assert_eq!(output.status.code(), Some(code));
        let document: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(document["error"]["code"], name, "{args:?}");
        assert!(document["error"]["message"].as_str().is_some_and(|text| !text.is_empty()));
    }
}

#[test]
fn a_file_that_begins_like_another_format_and_is_not_one_is_refused_unless_declared_raw() {
    let place = Place::new();
    let mut qcow2 = b"QFI\xfb\0\0\0\x03".to_vec();
    qcow2.resize(1 << 16, 0);
    fs::write(place.path("x.img"), &qcow2).unwrap();
    let (code, message) = place.fails(&["snapshot", "x.img"]);
    assert_eq!(code, 6);
    assert!(message.contains("refused as qcow2"), "{message}");
    let id = one_line(&place.ok(&["snapshot", "x.img", "--format", "raw"]), "snap-");
    place.ok(&["export", &id, "y.img"]);
    assert!(fs::read(place.path("y.img")).unwrap() == qcow2);
    fs::write(place.path("empty"), b"").unwrap();
    let (code, message) = place.fails(&["snapshot", "empty"]);
    assert_eq!(code, 6);
    assert!(message.contains("empty"), "{message}");
}

#[test]
fn outputs_are_not_overwritten_and_links_not_followed() {
    let place = Place::new();
    let bytes = place.disk("a.raw", 1 << 20, 1);
    let id = one_line(&place.ok(&["snapshot", "a.raw"]), "snap-");
    fs::write(place.path("precious"), b"precious").unwrap();
    let (code, message) = place.fails(&["export", &id, "precious"]);
    assert_eq!(code, 6);
    assert!(message.contains("--force"), "{message}");
    std::os::unix::fs::symlink("precious", place.path("link")).unwrap();
    assert_eq!(place.fails(&["export", &id, "link"]).0, 6);
    assert_eq!(place.fails(&["export", &id, "link", "--force"]).0, 6);
    assert_eq!(fs::read(place.path("precious")).unwrap(), b"precious");
    place.ok(&["export", &id, "precious", "--force"]);
    assert!(fs::read(place.path("precious")).unwrap() == bytes);
    let left: Vec<_> = fs::read_dir(place.folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().contains("imgstore-")), "{left:?}");
}

#[test]
fn everything_is_private_whatever_the_umask() {
    for umask in ["0", "0277", "0777"] {
        everything_is_private_with(umask);
    }
}

fn everything_is_private_with(umask: &str) {
    let place = Place::new();
    place.disk("a.raw", 1 << 20, 1);
    let script = r#"
        umask "$UMASK" && mkdir -m 700 made && i="$BINARY -q" && image=$($i import a.raw --name one)
        $i launch $image --output made/vms && $i export $image made/out.raw && $i bundle $image made/bundles
        $i export $image made/out.qcow2 --format qcow2 && $i export $image made/out.ova --format ova
        $i export $image made/all --all && $i verify && $i region add back made/back && $i copy $image --to back
        $i repair && $i gc --grace 0s"#;
    let output = Command::new("sh")
        .args(["-e", "-c", script])
        .env("IMGSTORE_HOME", place.path("made/home"))
        .envs([("BINARY", env!("CARGO_BIN_EXE_imgstore")), ("UMASK", umask)])
        .current_dir(place.folder.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{umask}: {}", String::from_utf8_lossy(&output.stderr));
    fn walk(path: &Path, seen: &mut usize) {
        let metadata = fs::symlink_metadata(path).unwrap();
        let mode = metadata.permissions().mode() & 0o7777;
        *seen += 1;
        if metadata.is_dir() {
            assert_eq!(mode, 0o700, "{}", path.display());
            for entry in fs::read_dir(path).unwrap() {
                walk(&entry.unwrap().path(), seen);
            }
        } else {
            assert!(mode == 0o400 || mode == 0o600, "{} has mode {mode:o}", path.display());
        }
    }
    let mut seen = 0;
    walk(&place.path("made"), &mut seen);
    assert!(seen > 60, "{seen} with {umask}");
}

#[test]
fn four_processes_at_once_from_nothing_all_succeed() {
    let place = Place::new();
    let disks: Vec<_> = (0..4).map(|n| place.disk(&format!("{n}.raw"), 2 << 20, n)).collect();
    let start = |n: usize| {
        let name = format!("{n}.raw");
        place.command(&["snapshot", &name]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let processes: Vec<_> = (0..4).map(start).collect();
    for (process, bytes) in processes.into_iter().zip(disks) {
        let output = process.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let id = one_line(&String::from_utf8(output.stdout).unwrap(), "snap-");
        assert!(place.run(&["export", &id, "-"]).stdout == bytes);
    }
    assert_eq!(place.ok(&["verify"]), "no damage found\n");
}

#[test]
fn ctrl_c_leaves_no_half_result() {
    let place = Place::new();
    place.disk("a.raw", 48 << 20, 1);
    let id = one_line(&place.ok(&["snapshot", "a.raw"]), "snap-");
    let mut interrupted = 0;
    for delay_ms in [5, 15, 30, 60, 90, 120, 200, 350, 600, 1000] {
        let mut child = place
            .in_foreground(&["export", &id, "out.raw", "--threads", "1", "--memory", "16MiB"])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(delay_ms));
        let _ = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
        match child.wait().unwrap().code() {
            Some(8) => {
                interrupted += 1;
                assert!(!place.path("out.raw").exists());
            }
            // Too early, before signals are handled, or too late, when it was done.
            None | Some(0) => {
                let _ = fs::remove_file(place.path("out.raw"));
            }
            other => panic!("exit code {other:?}"),
        }
        let left: Vec<_> =
            fs::read_dir(place.folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        let half = left.iter().find(|name| name.to_string_lossy().contains("imgstore-"));
        if interrupted > 0 {
            assert!(half.is_none(), "{left:?}");
        }
    }
    assert!(interrupted > 0, "no export was caught in the middle");
}

/// Makes a file one that nobody can remove, or one like any other again. Whether that could be done.
fn set_immovable(path: &Path, is_immovable: bool) -> bool {
    // Root is stopped by nothing but the immutable flag; others by the mode of the folder.
    if fs::read_dir("/root").is_ok() {
        let flag = if is_immovable { "+i" } else { "-i" };
        return Command::new("chattr").arg(flag).arg(path).status().is_ok_and(|status| status.success());
    }
    let mode = if is_immovable { 0o500 } else { 0o700 };
    fs::set_permissions(path.parent().unwrap(), fs::Permissions::from_mode(mode)).is_ok()
}

#[test]
fn a_collection_that_cannot_remove_something_says_what_it_did() {
    for as_json in [false, true] {
        let place = Place::new();
        place.disk("a.raw", 1 << 20, 1);
        let id = one_line(&place.ok(&["snapshot", "a.raw"]), "snap-");
        place.ok(&["delete-snapshot", &id]);
        let mut folders = vec![place.path("home")];
        let mut manifest = None;
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
                if entry.is_dir() {
                    folders.push(entry);
                } else if entry.to_string_lossy().contains("/manifests/") {
                    manifest = Some(entry);
                }
            }
        }
        let manifest = manifest.unwrap();
        if !set_immovable(&manifest, true) {
            return;
        }
        let mut args = vec!["gc", "--grace", "0s"];
        args.extend(as_json.then_some("--json"));
        let output = place.run(&args);
        set_immovable(&manifest, false);
        let (told, error) =
            (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        assert_eq!(output.status.code(), Some(4), "{told}{error}");
        if as_json {
            let document: Value = serde_json::from_str(&told).unwrap();
            assert_eq!((&document["freed_packs"], &document["orphans"]), (&1.into(), &0.into()), "{told}");
            assert_eq!(document["error"]["code"], "UnauthorizedOperation");
            assert!(document["error"]["message"].as_str().unwrap().contains("remove manifests/"), "{told}");
        } else {
            assert!(told.contains("condemned   1 pack") && told.contains("freed       1 pack"), "{told}");
            assert!(error.contains("remove manifests/"), "{error}");
        }
        assert!(place.ok(&["gc", "--grace", "0s"]).contains("removed     1 object"));
    }
}

#[test]
fn copies_between_regions_survive_the_loss_of_the_source() {
    let place = Place::new();
    let bytes = place.disk("a.raw", 3 << 20, 1);
    let image = one_line(&place.ok(&["import", "a.raw", "--name", "one", "--tag", "env=prod"]), "ami-");
    place.ok(&["region", "add", "backup", "away"]);
    let copy = one_line(&place.ok(&["copy", &image, "--to", "backup", "--copy-tags"]), "ami-");
    fs::remove_dir_all(place.path("home/regions/local")).unwrap();
    let shown = place.json(&["--region", "backup", "show", &copy]);
    assert_eq!(shown["source_image_id"], image);
    assert_eq!(shown["tags"][0]["key"], "env");
    place.ok(&["--region", "backup", "export", &copy, "out.raw"]);
    assert!(fs::read(place.path("out.raw")).unwrap() == bytes);
}

#[test]
fn damage_is_reported_with_exit_code_5_and_never_exported() {
    let place = Place::new();
    place.disk("a.raw", 1 << 20, 1);
    let id = one_line(&place.ok(&["snapshot", "a.raw"]), "snap-");
    let packs = place.path("home/regions/local/packs");
    let session = fs::read_dir(packs).unwrap().next().unwrap().unwrap().path();
    let pack = fs::read_dir(session).unwrap().next().unwrap().unwrap().path();
    fs::set_permissions(&pack, fs::Permissions::from_mode(0o600)).unwrap();
    let mut bytes = fs::read(&pack).unwrap();
    bytes[200] ^= 1;
    fs::write(&pack, &bytes).unwrap();
    let report = place.run(&["verify"]);
    assert_eq!(report.status.code(), Some(5));
    assert!(String::from_utf8_lossy(&report.stdout).contains(&format!("affects {id}")));
    assert_eq!(place.fails(&["export", &id, "out.raw"]).0, 5);
    assert!(!place.path("out.raw").exists());
    fs::remove_file(&pack).unwrap();
    assert_eq!(place.run(&["verify"]).status.code(), Some(5));
    assert_eq!(place.fails(&["export", &id, "out.raw"]).0, 5);
}

#[test]
fn help_completions_and_manual_are_there() {
    let place = Place::new();
    assert!(place.ok(&["--help"]).contains("Examples:"));
    assert!(place.ok(&["completions", "bash"]).contains("imgstore"));
    let page = place.ok(&["man"]);
    assert!(page.contains(".TH"));
    // Each page that it names can be had.
    let named: Vec<&str> = page.lines().filter_map(|line| line.strip_suffix("(1)")).collect();
    assert!(named.len() > 40, "{named:?}");
    for name in named {
        let command = name.replace('\\', "").replacen("imgstore-", "", 1);
        let page = place.ok(&["man", &command]);
        assert!(page.contains(&format!(".TH imgstore-{command} 1")), "{command}: {page}");
    }
    assert!(place.ok(&["man", "region", "add"]).contains("ssh://"));
    assert_eq!(place.fails(&["man", "region", "none"]).0, 2);
    assert!(!place.path("home").exists(), "these make no home");
}

#[test]
fn regions_are_added_listed_and_forgotten() {
    let place = Place::new();
    place.ok(&["region", "add", "backup", "away"]);
    assert_eq!(place.json(&["region", "list"])["regions"].as_array().unwrap().len(), 2);
    let (local, backup) = (place.json(&["region", "show"]), place.json(&["region", "show", "backup"]));
    assert_eq!(local["chunker"], backup["chunker"], "regions deduplicate with each other");
    assert_ne!(local["region_id"], backup["region_id"]);
    assert!(place.ok(&["region", "remove", "backup"]).contains("still"));
    assert!(place.path("away/region").exists());
    place.ok(&["region", "add", "again", "away"]);
}

#[test]
fn wrong_calls_are_documents_too_if_a_program_asks() {
    let place = Place::new();
    for (args, code) in [
        (["show", "ami-12"], "InvalidAMIID.Malformed"),
        (["delete-snapshot", "x"], "InvalidSnapshotID.Malformed"),
        (["nonsense", "x"], "InvalidParameterValue"),
    ] {
        let output = place.command(&args).arg("--json").output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        let document: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(document["error"]["code"], code, "{args:?}");
    }
}

#[test]
fn a_fifo_is_refused_at_once() {
    let place = Place::new();
    assert!(Command::new("mkfifo").arg(place.path("fifo")).status().unwrap().success());
    let (code, message) = place.fails(&["snapshot", "fifo"]);
    assert_eq!(code, 6);
    assert!(message.contains("special file"), "{message}");
}

#[test]
fn a_home_can_be_moved_and_copied() {
    let place = Place::new();
    let bytes = place.disk("a.raw", 1 << 20, 1);
    let id = one_line(&place.ok(&["snapshot", "a.raw"]), "snap-");
    fs::rename(place.path("home"), place.path("moved")).unwrap();
    let moved = place.command(&["export", &id, "-"]).arg("--home").arg(place.path("moved")).output().unwrap();
    assert!(moved.stdout == bytes, "{}", String::from_utf8_lossy(&moved.stderr));
}

/// What is done in a copy of a home is done to its own disks, and a home that was moved still finds its.
#[test]
fn a_copied_home_has_disks_of_its_own() {
    let place = Place::new();
    let bytes = place.disk("a.raw", 1 << 20, 1);
    let image = one_line(&place.ok(&["import", "a.raw", "--name", "first"]), "ami-");
    let inside = one_line(&place.ok(&["launch", &image]), "i-");
    let outside = one_line(&place.ok(&["launch", &image, "--output", "vms"]), "i-");
    let volume = one_line(&place.ok(&["create-volume", "--size", "1M"]), "vol-");
    let copied = Command::new("cp").arg("-a").args([place.path("home"), place.path("copy")]).status();
    assert!(copied.unwrap().success());
    let in_copy = |args: &[&str]| {
        let output = place.command(args).arg("--home").arg(place.path("copy")).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let disk = |home: &str| place.path(home).join("instances").join(&inside).join("xvda.raw");
    fs::write(disk("copy"), vec![7; 1 << 20]).unwrap();
    let captured = one_line(&in_copy(&["create-image", &inside, "--name", "second"]), "ami-");
    in_copy(&["export", &captured, "b.raw"]);
    assert!(fs::read(place.path("b.raw")).unwrap() == vec![7; 1 << 20], "not of the copy's own disk");
    assert!(in_copy(&["show", &inside]).contains(&*disk("copy").to_string_lossy()));
    in_copy(&["terminate", &inside]);
    in_copy(&["delete-volume", &volume]);
    assert!(!disk("copy").parent().unwrap().exists());
    let raw = format!("{volume}.raw");
    assert!(!place.path("copy/volumes").join(&raw).exists());

    assert!(fs::read(disk("home")).unwrap() == bytes);
    fs::rename(place.path("home"), place.path("moved")).unwrap();
    let moved = ["--home", place.path("moved").to_str().unwrap()].map(str::to_owned);
    let moved = moved.each_ref().map(String::as_str);
    place.ok(&[&["delete-volume", &volume], &moved[..]].concat());
    assert!(!place.path("moved/volumes").join(&raw).exists());
    let shown = place.json(&[&["show", &inside], &moved[..]].concat());
    assert_eq!(shown["path"], disk("moved").parent().unwrap().to_str().unwrap());
    assert_eq!(shown["volumes"][0]["path"], disk("moved").to_str().unwrap());
    // What is elsewhere stays where it is.
    let shown = place.json(&[&["show", &outside], &moved[..]].concat());
    assert_eq!(shown["path"], place.path("vms").join(&outside).to_str().unwrap());
    place.ok(&[&["terminate", &inside, &outside], &moved[..]].concat());
    assert!(!disk("moved").exists() && !place.path("vms").join(&outside).exists());
}

#[test]
fn a_damaged_region_file_or_record_is_a_finding() {
    let place = Place::new();
    place.disk("a.raw", 1 << 20, 1);
    place.ok(&["snapshot", "a.raw"]);
    let local = place.path("home/regions/local");
    for (file, at) in [("region", 8), ("region", 40), ("log/00000000000000000/00000000000000000001", 9)] {
        let path = local.join(file);
        let good = fs::read(&path).unwrap();
        let mut bad = good.clone();
        bad[at] ^= 4;
        fs::remove_file(&path).unwrap();
        fs::write(&path, &bad).unwrap();
        let output = place.command(&["verify", "--json"]).output().unwrap();
        assert_eq!(output.status.code(), Some(5), "{file} at {at}");
        let document: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(document["findings"].as_array().unwrap().len(), 1);
        fs::write(&path, &good).unwrap();
    }
    assert_eq!(place.ok(&["verify"]), "no damage found\n");
}

#[test]
fn lists_are_filtered_and_paged() {
    let place = Place::new();
    place.disk("a.raw", 200_000, 1);
    for number in 1..=5 {
        let (name, tag) = (format!("web-{number}"), format!("n={number}"));
        place.ok(&["import", "a.raw", "--name", &name, "--tag", &tag]);
    }
    let names = |document: &Value| -> Vec<String> {
        document["images"]
            .as_array()
            .unwrap()
            .iter()
            .map(|i| i["name"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(names(&place.json(&["images", "--filter", "tag:n=2,4"])), ["web-2", "web-4"]);
    let first = place.json(&["images", "--max-results", "3"]);
    assert_eq!(names(&first), ["web-1", "web-2", "web-3"]);
    let token = first["next_token"].as_str().unwrap();
    let second = place.json(&["images", "--max-results", "3", "--next-token", token]);
    assert_eq!(names(&second), ["web-4", "web-5"]);
    assert!(second["next_token"].is_null());
    assert_eq!(names(&place.json(&["images", "--latest", "web-?"])), ["web-5"]);
    assert_eq!(names(&place.json(&["images", "--executable-by", "self"])), [""; 0]);
    assert_eq!(
        place.json(&["snapshots", "--filter", "volume-size=1"])["snapshots"].as_array().unwrap().len(),
        5
    );
    assert_eq!(place.fails(&["images", "--filter", "colour=red"]).0, 2);
    assert_eq!(place.fails(&["images", "--max-results", "0"]).0, 2);
}

#[test]
fn images_are_shared_tagged_and_switched_off_by_ec2s_rules() {
    let place = Place::new();
    place.disk("a.raw", 300_000, 1);
    let image = one_line(&place.ok(&["import", "a.raw", "--name", "one", "--tag", "a=1"]), "ami-");
    let friend = "210987654321";
    let as_friend = |args: &[&str]| place.run(&[&["--account", friend], args].concat());
    assert_eq!(as_friend(&["show", &image]).status.code(), Some(3), "private to begin with");

    let shared = place.run(&["share", &image, "--add", friend]);
    assert!(String::from_utf8_lossy(&shared.stderr).contains("--snapshots"), "it says what is missing");
    assert!(as_friend(&["launch", &image, "--output", "vms"]).status.success());
    place.ok(&["region", "add", "backup", "away"]);
    let refused = as_friend(&["copy", &image, "--to", "backup"]);
    assert_eq!(refused.status.code(), Some(4));
    let sentence = "You do not have permission to access the storage of this ami";
    assert!(String::from_utf8_lossy(&refused.stderr).contains(sentence));
    place.ok(&["share", &image, "--add", friend, "--snapshots"]);
    assert!(as_friend(&["copy", &image, "--to", "backup"]).status.success());
    for args in [&["deregister", &image][..], &["tag", &image, "x=y"], &["share", &image, "--add", "all"]] {
        assert_eq!(as_friend(args).status.code(), Some(4), "{args:?} is the owner's");
    }
    place.ok(&["share", &image, "--remove", friend]);
    assert_eq!(as_friend(&["show", &image]).status.code(), Some(3));

    place.ok(&["tag", &image, "a=2", "b=3"]);
    let shown = place.json(&["untag", &image, "b"]);
    assert_eq!(shown["tags"].as_array().unwrap().len(), 1);
    assert_eq!(shown["tags"][0]["value"], "2");

    let shown = place.json(&["deprecate", &image, "--at", "2027-01-31T12:00:31Z"]);
    assert_eq!(shown["deprecation_time"], "2027-01-31T12:01:00.000Z", "to the minute");
    place.ok(&["deprecate", &image, "--cancel"]);
    place.ok(&["protect", &image]);
    assert_eq!(place.fails(&["deregister", &image]).0, 4);
    place.ok(&["protect", &image, "--off"]);

    place.ok(&["share", &image, "--add", "all"]);
    place.ok(&["disable", &image]);
    assert_eq!(as_friend(&["show", &image]).status.code(), Some(3), "its permissions are gone");
    for args in
        [&["launch", &image][..], &["share", &image, "--add", "all"], &["copy", &image, "--to", "backup"]]
    {
        let output = place.command(args).arg("--json").output().unwrap();
        assert_eq!(output.status.code(), Some(6), "{args:?}");
        let document: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(document["error"]["code"], "InvalidAMIID.Unavailable", "{args:?}");
    }
    place.ok(&["enable", &image]);
    place.ok(&["launch", &image, "--output", "vms"]);
    assert_eq!(as_friend(&["show", &image]).status.code(), Some(3), "for good");
    assert_eq!(place.fails(&["share", &image, "--add", "12"]).0, 2);
    assert!(place.ok(&["log"]).contains("launchable by everybody"));
    place.ok(&["deregister", &image]);
}

#[test]
fn on_the_command_line_an_image_is_for_this_host_and_hvm() {
    let place = Place::new();
    place.disk("web.raw", 1 << 20, 1);
    let image = place.json(&["import", "web.raw", "--name", "web-1"]);
    let host = if cfg!(target_arch = "aarch64") { "arm64" } else { "x86_64" };
    assert_eq!((&image["architecture"], &image["virtualization_type"]), (&host.into(), &"hvm".into()));
}

#[test]
fn a_dry_run_changes_nothing_and_says_how_it_would_end() {
    let place = Place::new();
    place.disk("web.raw", 1 << 20, 1);
    let image = one_line(&place.ok(&["import", "web.raw", "--name", "web-1"]), "ami-");
    let instance = one_line(&place.ok(&["launch", &image, "--output", "vms"]), "i-");
    place.ok(&["share", &image, "--add", "all"]);
    let before = place.json(&["region", "show"])["log_records"].clone();
    let would: [&[&str]; 12] = [
        &["snapshot", "web.raw"],
        &["import", "web.raw", "--name", "web-2"],
        &["launch", &image, "--output", "vms"],
        &["create-image", &instance, "--name", "web-2"],
        &["create-snapshot", &instance],
        &["create-volume", "--size", "1M"],
        &["terminate", &instance],
        &["share", &image, "--remove", "all"],
        &["protect", &image],
        &["disable", &image],
        &["bin", "add-rule", "images", "--days", "1"],
        &["account", "block-public", "images"],
    ];
    for args in would {
        let answer = place.json(&[args, &["--dry-run"]].concat());
        assert_eq!(answer["code"], "DryRunOperation", "{args:?}");
    }
    for args in [&["deregister", &image][..], &["copy", &image, "--to", "local", "--name", "web-3"]] {
        assert_eq!(place.json(&[args, &["--dry-run"]].concat())["dry_run"], true, "{args:?}");
    }
    let denied = ["share", &image, "--add", "all", "--account", "111122223333", "--dry-run", "--json"];
    let output = place.run(&denied);
    assert_eq!(output.status.code(), Some(4));
    assert!(String::from_utf8(output.stdout).unwrap().contains("UnauthorizedOperation"));
    assert_eq!(place.fails(&["import", "web.raw", "--name", "web-1", "--dry-run"]).0, 6, "the name is taken");
    // What stands where something would be written.
    place.ok(&["export", &image, "there.raw"]);
    place.ok(&["bundle", &image, "bundles"]);
    place.ok(&["export", &image, "disks", "--all"]);
    for args in [
        &["export", &image, "there.raw"][..],
        &["export", &image, "there.raw", "--format", "qcow2"],
        &["export", &image, "there.raw", "--format", "ova"],
        &["export", &image, "disks", "--all"],
        &["bundle", &image, "bundles"],
        &["bundle", "web.raw", "bundles", "--name", "web-1"],
        &["unbundle", "bundles/web-1.manifest.json", "there.raw"],
    ] {
        assert_eq!(place.fails(args).0, 6, "{args:?}");
        assert_eq!(place.fails(&[args, &["--dry-run"]].concat()).0, 6, "{args:?}");
    }
    assert_eq!(place.json(&["region", "show"])["log_records"], before);
    assert_eq!(fs::read_dir(place.path("vms")).unwrap().count(), 1);
}

/// A device that is larger than its snapshot is so however it is written.
#[test]
fn a_device_has_one_length() {
    let place = Place::new();
    place.disk("data.raw", 1 << 20, 1);
    let snapshot = one_line(&place.ok(&["snapshot", "data.raw"]), "snap-");
    let device = format!("/dev/xvdb={snapshot}:size=2M");
    let image = one_line(
        &place.ok(&["register", "--name", "large", "--root", &snapshot, "--device", &device]),
        "ami-",
    );
    place.ok(&["export", &image, "one.raw", "--device", "/dev/xvdb"]);
    place.ok(&["export", &image, "all", "--all"]);
    let one = fs::read(place.path("one.raw")).unwrap();
    assert_eq!((one.len(), &one), (2 << 20, &fs::read(place.path("all/xvdb.raw")).unwrap()));
    assert!(one[1 << 20..].iter().all(|byte| *byte == 0));
    assert_eq!(place.json(&["export", &image, "two.raw", "--device", "/dev/xvdb"])["volume_bytes"], 2 << 20);
}

/// A guest may have written it.
#[test]
fn a_disk_that_looks_like_another_format_is_bundled_only_as_what_is_said() {
    let place = Place::new();
    place.disk("web.raw", 1 << 20, 1);
    let snapshot = one_line(&place.ok(&["snapshot", "web.raw"]), "snap-");
    place.ok(&["export", &snapshot, "web.qcow2", "--format", "qcow2"]);
    let (code, said) = place.fails(&["bundle", "web.qcow2", "bundles"]);
    assert!(code == 2 && said.contains("--format raw") && said.contains("--format qcow2"), "{said}");
    for (format, like) in [("raw", "web.qcow2"), ("qcow2", "web.raw")] {
        place.ok(&["bundle", "web.qcow2", "bundles", "--name", format, "--format", format]);
        place.ok(&["unbundle", &format!("bundles/{format}.manifest.json"), format]);
        assert!(fs::read(place.path(format)).unwrap() == fs::read(place.path(like)).unwrap(), "{format}");
    }
}

/// The machine is what the bundle says, unless options say otherwise.
#[test]
fn an_image_on_a_bundle_is_for_the_machine_that_it_says() {
    let place = Place::new();
    place.disk("web.raw", 1 << 20, 1);
    let machine = ["--architecture", "arm64", "--boot-mode", "uefi", "--root-device", "/dev/sda1"];
    let image =
        one_line(&place.ok(&[&["import", "web.raw", "--name", "web-1"], &machine[..]].concat()), "ami-");
    place.ok(&["bundle", &image, "bundles", "--name", "web"]);
    let register = |name: &str, options: &[&str]| {
        let words = ["register", "--name", name, "--bundle", "bundles/web.manifest.json"];
        place.json(&[&words, options].concat())
    };
    let same = register("web-2", &[]);
    let told = [&same["architecture"], &same["boot_mode"], &same["root_device_name"]];
    assert_eq!(told, ["arm64", "uefi", "/dev/sda1"]);
    let other = register("web-3", &["--architecture", "x86_64", "--root-device", "/dev/xvda"]);
    let told = [&other["architecture"], &other["boot_mode"], &other["root_device_name"]];
    assert_eq!(told, ["x86_64", "uefi", "/dev/xvda"]);
}

#[test]
fn options_that_go_with_nothing_are_refused() {
    let place = Place::new();
    place.disk("web.raw", 1 << 20, 1);
    let image = one_line(&place.ok(&["import", "web.raw", "--name", "web-1"]), "ami-");
    for words in [
        &["verify", &image, "--resume"] as &[&str],
        &["verify", "--sample", "5", "--resume"],
        &["bundle", &image, "bundles", "--max-size", "1MiB"],
        &["repair", "--format", "raw"],
        &["repair", "--max-size", "1GiB"],
        &["repair", "--skip-free"],
        &["import", "web.raw", "--name", "web-2", "--max-size", "65TiB"],
        &["images", "--memory", "15MiB"],
        &["launch", &image, "--count", "5:2"],
    ] {
        let (code, said) = place.fails(words);
        assert_eq!(code, 2, "{words:?}: {said}");
    }
    place.ok(&["repair", "--disk", "web.raw", "--format", "raw"]);
    place.ok(&["verify", "--resume"]);
    // Its folder is gone.
    let instance = one_line(&place.ok(&["launch", &image, "--output", "vms"]), "i-");
    assert!(place.ok(&["instances"]).contains("vms"));
    place.ok(&["terminate", &instance]);
    assert!(!place.ok(&["instances"]).contains("vms"));
}

#[test]
fn a_copy_that_was_made_before_has_its_own_size() {
    let place = Place::new();
    place.disk("web.raw", 1 << 20, 1);
    let snapshot = one_line(&place.ok(&["snapshot", "web.raw"]), "snap-");
    place.ok(&["region", "add", "backup", "backup"]);
    let copy = || place.json(&["copy", &snapshot, "--to", "backup", "--client-token", "t"]);
    let (first, second) = (copy(), copy());
    for key in ["snapshot_id", "volume_bytes", "data_bytes", "chunks"] {
        assert_eq!(first[key], second[key], "{key}");
    }
    assert_eq!(second["transferred_bytes"], 0);
    // Two devices on one snapshot are one snapshot.
    let data = format!("/dev/xvdb={snapshot}");
    let register = ["register", "--name", "two-devices", "--root", &snapshot, "--device", &data];
    let image = one_line(&place.ok(&register), "ami-");
    let copy = || place.json(&["copy", &image, "--to", "backup", "--client-token", "u"]);
    let (first, second) = (copy(), copy());
    for key in ["image_id", "volume_bytes", "data_bytes", "chunks"] {
        assert_eq!(first[key], second[key], "{key}");
    }
}

/// A path was mistyped: no home is made among what is there.
#[test]
fn no_home_is_made_in_a_folder_with_other_things() {
    let place = Place::new();
    place.disk("web.raw", 4096, 1);
    let documents = place.path("documents");
    fs::create_dir(&documents).unwrap();
    fs::write(documents.join("letter.txt"), "dear").unwrap();
    let home = documents.to_str().unwrap();
    let output = place.run(&["--home", home, "snapshot", "web.raw"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && said.contains("letter.txt"), "{said}");
    assert_eq!(files_in(&documents), [documents.join("letter.txt")]);
    // What a file system has by itself is in nobody's way.
    fs::remove_file(documents.join("letter.txt")).unwrap();
    fs::create_dir(documents.join("lost+found")).unwrap();
    place.ok(&["--home", home, "snapshot", "web.raw"]);
}

/// A pack that cannot be opened is told of until it can be, or was taken away.
#[test]
fn a_repair_is_not_done_while_a_pack_cannot_be_opened() {
    let place = Place::new();
    place.disk("web.raw", 1 << 20, 1);
    let snapshot = one_line(&place.ok(&["snapshot", "web.raw"]), "snap-");
    let backup = place.path("backup");
    place.ok(&["region", "add", "backup", backup.to_str().unwrap()]);
    place.ok(&["copy", &snapshot, "--to", "backup"]);
    let packs = files_in(&place.path("home/regions/local/packs"));
    let [pack] = &packs[..] else { panic!("{packs:?}") };
    fs::remove_file(pack).unwrap();
    fs::create_dir(pack).unwrap();
    for _ in 0..2 {
        let output = place.run(&["repair", "--from", "backup"]);
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(5), "{said}");
        assert!(said.contains("out of reach  packs/") && said.contains("take its file away"), "{said}");
        let refused = place.run(&["gc"]);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(refused.status.code() == Some(5) && said.contains("take their files away"), "{said}");
    }
    // What it says is the way out.
    fs::remove_dir(pack).unwrap();
    place.ok(&["repair", "--from", "backup"]);
    place.ok(&["verify"]);
    place.ok(&["gc", "--grace", "0s"]);
    assert!(place.run(&["export", &snapshot, "-"]).stdout == fs::read(place.path("web.raw")).unwrap());
}

/// Whoever copied a folder and left out all that is called `log` has no empty region that a collection may clear.
#[test]
fn a_region_without_its_log_is_not_an_empty_one() {
    for bytes in [100_000, 0] {
        let place = Place::new();
        place.disk("web.raw", bytes, 1);
        if bytes == 0 {
            fs::write(place.path("web.raw"), vec![0; 1 << 20]).unwrap();
        }
        place.ok(&["snapshot", "web.raw"]);
        let region = place.path("home/regions/local");
        for lost in ["log", "twins/log"] {
            fs::rename(region.join(lost), place.path(&lost.replace('/', "-"))).unwrap();
        }
        for words in ["images", "stats", "verify", "gc", "repair", "snapshot web.raw", "gc --dry-run"] {
            let output = place.run(&words.split(' ').collect::<Vec<_>>());
            let said = String::from_utf8_lossy(&output.stderr).into_owned()
                + &String::from_utf8_lossy(&output.stdout);
            assert_eq!(output.status.code(), Some(5), "{words}: {said}");
            assert!(said.contains("log record 1"), "{words}: {said}");
        }
        for lost in ["log", "twins/log"] {
            fs::rename(place.path(&lost.replace('/', "-")), region.join(lost)).unwrap();
        }
        place.ok(&["verify"]);
        place.ok(&["gc"]);
        assert_eq!(place.json(&["snapshots"])["snapshots"].as_array().unwrap().len(), 1);
    }
}

/// What is said about the snapshots that stay can be done.
#[test]
fn what_becomes_of_the_snapshots_of_an_image_that_went_is_said() {
    let place = Place::new();
    place.disk("web.raw", 1 << 20, 1);
    let import = |name: &str| {
        let image = one_line(&place.ok(&["import", "web.raw", "--name", name]), "ami-");
        let snapshot = place.json(&["show", &image])["devices"][0]["snapshot_id"].clone();
        (image, snapshot.as_str().unwrap().to_owned())
    };
    let said = |args: &[&str]| String::from_utf8(place.run(args).stderr).unwrap();
    let (image, snapshot) = import("web-1");
    let dry = said(&["deregister", &image, "--dry-run"]);
    assert!(dry.contains("--delete-snapshots"), "{dry}");
    let done = said(&["deregister", &image]);
    assert!(done.contains(&snapshot) && done.contains("imgstore delete-snapshot ID"), "{done}");
    place.ok(&["delete-snapshot", &snapshot]);
    // In the bin it keeps its snapshots.
    place.ok(&["bin", "add-rule", "images", "--days", "1"]);
    let (image, snapshot) = import("web-2");
    let done = said(&["deregister", &image]);
    assert!(done.contains(&format!("{snapshot} stays with the image")), "{done}");
    assert!(!place.run(&["delete-snapshot", &snapshot]).status.success());
    place.ok(&["bin", "restore", &image]);
    place.ok(&["deregister", &image, "--delete-snapshots"]);
}

#[test]
fn whom_nothing_can_be_shared_with_has_ec2s_code() {
    let place = Place::new();
    place.disk("web.raw", 1 << 20, 1);
    let image = one_line(&place.ok(&["import", "web.raw", "--name", "web-1"]), "ami-");
    let output = place.run(&["share", &image, "--add", "123", "--json"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stdout).unwrap().contains("InvalidAMIAttributeItemValue"));
}

/// A disk that nothing came from mends nothing: it is named, nothing of it is stored, and what is lost stays so.
#[test]
fn a_disk_that_has_nothing_of_what_is_lost_is_named() {
    let place = Place::new();
    place.disk("a.raw", 1 << 20, 1);
    place.disk("b.raw", 1 << 20, 2);
    place.ok(&["snapshot", "a.raw"]);
    for pack in files_in(&place.path("home/regions/local/packs")) {
        fs::remove_file(pack).unwrap();
    }
    let output = place.run(&["repair", "--disk", "b.raw", "--json"]);
    assert_eq!(output.status.code(), Some(5));
    assert!(String::from_utf8_lossy(&output.stderr).contains("b.raw: nothing of what is missing is on it"));
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&document["stored_bytes"], document["lost"].as_array().unwrap().len()), (&0.into(), 1));
    assert_eq!(document["foreign_disks"], serde_json::json!(["b.raw"]));
    let document: Value = place.json(&["repair", "--disk", "b.raw", "--disk", "a.raw"]);
    assert_eq!(document["foreign_disks"], serde_json::json!(["b.raw"]));
    assert_eq!(place.ok(&["verify"]), "no damage found\n");
}

/// A machine's file is as good as its disks, of which one may have nothing of what is missing.
#[test]
fn a_machine_mends_what_its_disks_do() {
    let place = Place::new();
    place.disk("a.raw", 2 << 20, 1);
    place.disk("b.raw", 1 << 20, 2);
    let image = one_line(&place.ok(&["import", "a.raw", "b.raw", "--name", "machine"]), "ami-");
    place.ok(&["export", &image, "machine.ova", "--format", "ova"]);
    let lose = || {
        files_in(&place.path("home/regions/local/packs"))
            .iter()
            .for_each(|pack| fs::remove_file(pack).unwrap())
    };
    lose();
    let repair = |disks: &[&str]| place.json(&[&["repair", "--force"][..], disks].concat());
    let document = repair(&["--disk", "machine.ova"]);
    assert_eq!(
        (&document["lost"], &document["foreign_disks"]),
        (&serde_json::json!([]), &serde_json::json!([]))
    );
    assert_eq!(place.ok(&["verify"]), "no damage found\n");
    // Once one disk has given what it has, the other is what is named, and not the machine with both.
    lose();
    let document = repair(&["--disk", "a.raw", "--disk", "machine.ova"]);
    assert_eq!(
        (&document["lost"], &document["foreign_disks"]),
        (&serde_json::json!([]), &serde_json::json!([]))
    );
    place.disk("c.raw", 1 << 20, 3);
    place.ok(&["snapshot", "c.raw"]);
    lose();
    let document =
        repair(&["--disk", "a.raw", "--disk", "b.raw", "--disk", "machine.ova", "--disk", "c.raw"]);
    assert_eq!(document["foreign_disks"], serde_json::json!(["machine.ova"]));
    assert_eq!(place.ok(&["verify"]), "no damage found\n");
}

/// Codes and words that programs and people who know EC2 rely on.
#[test]
fn what_is_missing_does_not_fit_or_is_in_the_bin_is_said_in_ec2s_words() {
    let place = Place::new();
    place.disk("a.raw", 1 << 20, 1);
    let code = |args: &[&str]| {
        let output = place.run(&[args, &["--json"]].concat());
        let document: Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.code().unwrap(), document["error"]["code"].as_str().unwrap_or("none").to_owned())
    };
    let image = one_line(&place.ok(&["import", "a.raw", "--name", "web-1"]), "ami-");
    assert_eq!(code(&["create-volume"]), (2, "MissingParameter".into()));
    let both = ["protect", &image, "--off", "--cooldown"];
    assert_eq!(code(&both), (2, "InvalidParameterCombination".into()));
    // A matter of state, not of rights.
    place.ok(&["protect", &image]);
    assert_eq!(code(&["deregister", &image, "--dry-run"]), (4, "OperationNotPermitted".into()));
    place.ok(&["protect", &image, "--off"]);
    let snapshot = place.json(&["show", &image])["devices"][0]["snapshot_id"].as_str().unwrap().to_owned();
    let shown = place.json(&["show", &snapshot]);
    assert_eq!((&shown["encrypted"], &shown["progress"]), (&false.into(), &"100%".into()));
    // The root device can be larger, and kept.
    let root = format!("{snapshot}:size=2MiB,keep");
    let larger = place.json(&["register", "--name", "web-2", "--root", &root]);
    assert_eq!(larger["devices"][0]["volume_bytes"], 2 << 20);
    assert_eq!(larger["devices"][0]["delete_on_termination"], false);
    for wrong in ["ephemeral0", ":size=8G", "snap-x"] {
        assert_eq!(code(&["register", "--name", "web-3", "--root", wrong]).0, 2, "{wrong}");
    }
    for kind in ["images", "snapshots"] {
        place.ok(&["bin", "add-rule", kind, "--days", "3"]);
    }
    place.ok(&["deregister", larger["image_id"].as_str().unwrap()]);
    place.ok(&["deregister", &image]);
    let output = place.run(&["delete-snapshot", &snapshot, "--dry-run"]);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("in use") || told.contains("it would stay in the bin"), "{told}");
    let binned = place.json(&["bin", "list"]);
    assert_eq!(binned["images"][0]["state"], "deregistered");
}

/// A record that is gone: dry runs end as the commands would, and the history goes on past one that a checkpoint stands behind.
#[test]
fn what_a_lost_record_keeps_from_being_done_dry_runs_say() {
    let place = Place::new();
    place.disk("a.raw", 1 << 16, 1);
    let image = one_line(&place.ok(&["import", "a.raw", "--name", "web-1"]), "ami-");
    let snapshot = one_line(&place.ok(&["snapshot", "a.raw"]), "snap-");
    for _ in 0..66 {
        place.ok(&["tag", &image, "k=v"]);
    }
    let log = |number: u64| place.path(&format!("home/regions/local/log/{:017}/{number:020}", 0));
    let all = place.json(&["log"])["records"].as_array().unwrap().len();
    let last = (1..).take_while(|number| log(*number).exists()).last().unwrap();
    let bytes = fs::read(log(last)).unwrap();
    fs::remove_file(log(last)).unwrap();
    for args in [
        &["gc", "--grace", "0s"][..],
        &["repack"],
        &["deregister", &image, "--delete-snapshots"],
        &["delete-snapshot", &snapshot],
        &["tag", &image, "a=b"],
        &["snapshot", "a.raw"],
        &["import", "a.raw", "--name", "web-2"],
        &["launch", &image],
        &["create-volume", "--snapshot", &snapshot],
        &["copy", &image, "--to", ".", "--name", "web-3"],
    ] {
        for more in [&["--dry-run"][..], &[]] {
            let output = place.run(&[args, more].concat());
            assert_eq!(output.status.code(), Some(5), "{args:?} {more:?}");
        }
    }
    fs::write(log(last), bytes).unwrap();
    fs::remove_file(log(4)).unwrap();
    let output = place.run(&["log", "--json"]);
    assert_eq!(output.status.code(), Some(5));
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["lost"], serde_json::json!([4]));
    assert_eq!(document["records"].as_array().unwrap().len(), all - 1);
    assert!(place.ok(&["repair"]).contains("restored"));
    assert_eq!(place.json(&["log"])["records"].as_array().unwrap().len(), all);
}

#[test]
fn a_disk_is_read_again_if_that_is_asked_for() {
    let place = Place::new();
    place.disk("a.raw", 3 << 20, 1);
    assert_eq!(place.json(&["snapshot", "a.raw"])["differs"], Value::Null);
    let again = place.run(&["snapshot", "a.raw", "--verify", "--json"]);
    assert!(String::from_utf8_lossy(&again.stderr).contains("the snapshot is what the disk holds"));
    let document: Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!(document["differs"], serde_json::json!([]));
}

/// An interrupted check goes on where it was, also one that was killed, and only in the folder in which it was.
#[test]
fn a_check_goes_on_where_it_was_and_nowhere_else() {
    let place = Place::new();
    for seed in 1..5 {
        place.disk("a.raw", 1 << 18, seed);
        place.ok(&["snapshot", "a.raw"]);
    }
    let read = |args: &[&str]| place.json(args)["packs"].as_u64().unwrap();
    let all = read(&["verify"]);
    assert!(all >= 4);
    assert_eq!(read(&["verify", "--resume"]), all, "nothing was interrupted");
    let files = files_in(&place.path("home/checks"));
    let [file] = files.as_slice() else { panic!("{files:?}") };
    // As a check leaves it that was killed when it had one pack to go.
    let mut known: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    known["content_since"] = 1.into();
    let packs = known["content"].as_object_mut().unwrap();
    let last = packs.keys().next().unwrap().clone();
    packs.remove(&last);
    fs::write(file, known.to_string()).unwrap();
    assert_eq!(read(&["verify", "--resume"]), 1);
    assert_eq!(read(&["verify", "--checksums", "--resume"]), all, "of another kind");
    // A copy of the folder was never looked at.
    known["content_since"] = 1.into();
    fs::write(file, known.to_string()).unwrap();
    let from = place.path("home/regions/local");
    for file in files_in(&from) {
        let to = place.path("copy").join(file.strip_prefix(&from).unwrap());
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(file, to).unwrap();
    }
    place.ok(&["region", "add", "copy", "copy"]);
    assert_eq!(read(&["--region", "copy", "verify", "--resume"]), all);
    assert_eq!(read(&["verify", "--resume"]), 1, "what is remembered of the first is as it was");
    assert_eq!(read(&["verify", "--sample", "50"]), all.div_ceil(2));
    assert_eq!(read(&["verify", "--limit-rate", "100MiB"]), all);
}

/// What is left of a disk of which content is lost: zeros for what is not, told of, and an exit code that says so.
#[test]
fn what_is_left_of_a_damaged_disk_is_exported() {
    let place = Place::new();
    let bytes = place.disk("a.raw", 1 << 20, 1);
    let image = one_line(&place.ok(&["import", "a.raw", "--name", "web-1"]), "ami-");
    let whole: Value = place.json(&["export", &image, "whole.raw", "--zero-lost"]);
    assert_eq!(whole["lost"], serde_json::json!([]));
    for pack in files_in(&place.path("home/regions/local/packs")) {
        let mut bytes = fs::read(&pack).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        // The file is read-only.
        fs::remove_file(&pack).unwrap();
        fs::write(&pack, bytes).unwrap();
    }
    let failed = place.run(&["export", &image, "some.raw"]);
    assert_eq!(failed.status.code(), Some(5));
    assert!(String::from_utf8_lossy(&failed.stderr).contains("--zero-lost"));
    assert!(!place.path("some.raw").exists());
    for args in [&["some.raw", "--quiet"][..], &["-"], &["all", "--all"]] {
        let output = place.run(&[&["export", &image, "--zero-lost"], args].concat());
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(5), "{told}");
        assert!(told.contains("LOST ") && told.contains("bytes "), "{told}");
    }
    let output = place.run(&["export", &image, "some.raw", "--force", "--zero-lost", "--json"]);
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    let range = document["lost"][0].as_object().unwrap();
    let [start, end] = ["start_byte", "end_byte"].map(|key| range[key].as_u64().unwrap() as usize);
    assert_eq!(document["lost"].as_array().unwrap().len(), 1);
    let mut expected = bytes;
    assert!(expected[start..end].iter().any(|byte| *byte != 0));
    expected[start..end].fill(0);
    assert!(fs::read(place.path("some.raw")).unwrap() == expected);
    assert!(fs::read(place.path("all/xvda.raw")).unwrap() == expected);
    assert_eq!(place.run(&["export", &image, "a.ova", "--zero-lost"]).status.code(), Some(2));
}

/// A home without its configuration, and a region without its file `region`, which is needed to make that anew.
#[test]
fn a_home_without_configuration_is_that_of_its_regions_maker() {
    let home = Place::new();
    home.disk("a.raw", 1 << 20, 1);
    let image = one_line(&home.ok(&["import", "a.raw", "--name", "web-1"]), "ami-");
    let (config, region) = (home.path("home/config.toml"), home.path("home/regions/local"));
    let account = || {
        let text = fs::read_to_string(&config).unwrap();
        text.lines().find(|line| line.starts_with("account")).unwrap().to_owned()
    };
    let (before, file) = (account(), fs::read(region.join("region")).unwrap());
    let is_told = |output: &Output| {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("it was missing and is made anew"), "{said}");
        assert!(output.status.success(), "{said}");
    };
    fs::remove_file(&config).unwrap();
    let images = home.run(&["--quiet", "images"]);
    is_told(&images);
    assert!(String::from_utf8_lossy(&images.stdout).contains(&image) && account() == before);
    // The region's own file is gone, too, or a record of its log.
    for name in ["region", "log/00000000000000000/00000000000000000001"] {
        fs::remove_file(&config).unwrap();
        fs::remove_file(region.join(name)).unwrap();
        let (code, said) = home.fails(&["images"]);
        assert!(code != 0 && said.contains("imgstore repair"), "{said}");
        home.fails(&["repair", "--dry-run"]);
        assert!(!region.join(name).exists() && !config.exists(), "{name}");
        let repaired = home.run(&["repair", "--json"]);
        is_told(&repaired);
        let document: Value = serde_json::from_slice(&repaired.stdout).unwrap();
        assert_eq!(document["restored"], serde_json::json!([name]));
        assert!(home.ok(&["images"]).contains("web-1") && account() == before);
        assert!(fs::read(region.join("region")).unwrap() == file);
    }
    // Named by its path.
    fs::remove_file(region.join("region")).unwrap();
    assert!(home.ok(&["repair", "--region", region.to_str().unwrap()]).contains("restored      region"));
    // Without any copy of that file nothing is made in its place: with a configuration and without.
    fs::remove_file(region.join("region")).unwrap();
    fs::remove_file(region.join("twins/region")).unwrap();
    for _ in 0..2 {
        let (code, said) = home.fails(&["repair"]);
        assert!(code == 3 && said.contains("put the file `region` back from a backup"), "{code} {said}");
        let _ = fs::remove_file(&config);
    }
    assert!(!region.join("region").exists() && !config.exists());
    // What is no region stays what it is.
    fs::remove_dir_all(&region).unwrap();
    fs::create_dir(&region).unwrap();
    fs::write(region.join("letter"), "dear").unwrap();
    for command in ["images", "repair"] {
        assert!(home.fails(&[command]).0 != 0);
        assert_eq!(fs::read_dir(&region).unwrap().count(), 1);
    }
}

/// A record of the log that is damaged or lost: what each command says, and that `repair` brings it back.
#[test]
fn a_damaged_log_is_told_and_mended() {
    let home = Place::new();
    home.disk("a.raw", 1 << 20, 1);
    home.ok(&["import", "a.raw", "--name", "web-1"]);
    let region = home.path("home/regions/local");
    let shard = region.join("log/00000000000000000");
    let mut records: Vec<_> = fs::read_dir(&shard).unwrap().map(|entry| entry.unwrap().path()).collect();
    records.sort();
    let last = records.pop().unwrap();
    let bytes = fs::read(&last).unwrap();
    fs::remove_file(&last).unwrap();
    fs::write(&last, &bytes[..60]).unwrap();
    let refused = home.run(&["images"]);
    assert_eq!(refused.status.code(), Some(5));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("imgstore repair"));
    let dry = home.run(&["repair", "--dry-run"]);
    assert_eq!(dry.status.code(), Some(5));
    assert!(String::from_utf8_lossy(&dry.stdout).contains("can be restored"));
    let said = home.ok(&["repair"]);
    assert!(said.contains("restored") && said.contains("no other damage found"), "{said}");
    assert!(home.ok(&["images"]).contains("web-1"));
    // Gone without a trace but its twin: shown is what is left, with a warning that quiet does not silence.
    fs::remove_file(&last).unwrap();
    let short = home.run(&["--quiet", "images"]);
    assert_eq!(short.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&short.stderr).contains("is lost"));
    assert_eq!(home.run(&["verify"]).status.code(), Some(5));
    assert_eq!(home.run(&["import", "a.raw", "--name", "web-2"]).status.code(), Some(5));
    let document: serde_json::Value = serde_json::from_str(&home.ok(&["repair", "--json"])).unwrap();
    assert_eq!(document["restored"].as_array().unwrap().len(), 1);
    assert!(home.ok(&["images"]).contains("web-1"));
    fs::remove_file(region.join("region")).unwrap();
    let gone = home.run(&["images"]);
    assert!(String::from_utf8_lossy(&gone.stderr).contains("imgstore repair"));
    home.ok(&["repair"]);
    assert_eq!(home.ok(&["verify"]), "no damage found\n");
}

/// What was found to be taken without a word, or to be told wrongly.
#[test]
fn what_an_option_does_not_go_with_is_said() {
    let place = Place::new();
    place.disk("a.raw", 300_000, 1);
    let image = one_line(&place.ok(&["import", "a.raw", "--name", "web"]), "ami-");
    let snapshot = place.json(&["snapshots"])["snapshots"][0]["snapshot_id"].as_str().unwrap().to_owned();
    for (args, part) in [
        (&["export", &snapshot, "x.raw", "--device", "/dev/xvda"][..], "leave --device out"),
        (&["export", &image, "x.raw", "--cpus", "4"], "--format ova"),
        (&["export", &image, "x.qcow2", "--format", "qcow2", "--write-device"], "one raw disk"),
        (&["share", &snapshot, "--add", "all", "--snapshots"], "goes with an image"),
        (&["images", "--latest", "web*", "--max-results", "3"], "--max-results"),
        (&["copy", &image, "--from", "local", "--limit-rate", "0"], "0 bytes in a second"),
        (&["images", "nonsense"], "\"nonsense\" (expecting \"ami-...\")"),
        (&["snapshots", &image], "(expecting \"snap-...\")"),
    ] {
        let (code, why) = place.fails(args);
        assert!(code == 2 && why.contains(part), "{args:?}: {code}, {why}");
    }
    let malformed = place.run(&["--json", "volumes", "nonsense"]);
    assert!(
        String::from_utf8_lossy(&malformed.stdout).contains("InvalidVolumeID.Malformed"),
        "{malformed:?}"
    );
    for target in ["nowhere/x.raw", "folder/"] {
        for dry_run in [true, false] {
            let mut args = vec!["export", &image, target];
            args.extend(dry_run.then_some("--dry-run"));
            assert_eq!(place.fails(&args).0, 6, "{args:?}");
        }
    }
    let (code, why) = place.fails(&["export", &image, "a.raw", "--all"]);
    assert!(code == 6 && why.contains("no folder"), "{why}");
    place.ok(&["export", &image, &format!("{}.raw", "n".repeat(240))]);
    place.ok(&["bench", "dedup", "a.raw", "--html", "page.html", "--dry-run"]);
    assert!(!place.path("page.html").exists());
    place.ok(&["bin", "add-rule", "images", "--days", "3", "--tag", "e=1", "--tag", "e=2"]);
    assert_eq!(
        place.fails(&["bin", "add-rule", "images", "--days", "3", "--tag", "e=1", "--tag", "e=1"]).0,
        2
    );
    place.ok(&["region", "add", "backup", "backup"]);
    let regions = place.json(&["--region", "backup", "region", "list"]);
    for region in regions["regions"].as_array().unwrap() {
        assert_eq!(region["default"], region["region"] != "backup", "{regions}");
    }
}

/// The folder of an instance goes with the last of its disks, whenever that is.
#[test]
fn nothing_is_left_of_an_instance_whose_last_volume_is_deleted() {
    let place = Place::new();
    place.disk("a.raw", 4096, 1);
    let image = one_line(&place.ok(&["import", "a.raw", "--name", "web"]), "ami-");
    let instance =
        one_line(&place.ok(&["launch", &image, "--output", "vms", "--device", "/dev/xvda:keep"]), "i-");
    let volume = place.json(&["volumes"])["volumes"][0]["volume_id"].as_str().unwrap().to_owned();
    place.ok(&["terminate", &instance]);
    assert!(place.path("vms").join(&instance).exists());
    place.ok(&["delete-volume", &volume]);
    assert_eq!(fs::read_dir(place.path("vms")).unwrap().count(), 0);
}

/// A disk file that cannot be removed is told of, also to those who want quiet, and so is one that is not where it was.
#[test]
fn disk_files_that_stay_are_told_of() {
    let place = Place::new();
    place.disk("a.raw", 4096, 1);
    let image = one_line(&place.ok(&["import", "a.raw", "--name", "web"]), "ami-");
    let instance = one_line(&place.ok(&["launch", &image, "--output", "vms"]), "i-");
    let file = place.path("vms").join(&instance).join("xvda.raw");
    fs::rename(&file, place.path("moved.raw")).unwrap();
    let output = place.run(&["-q", "--json", "terminate", &instance]);
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    let left = document["instances"][0]["left_files"][0].as_str().unwrap().to_owned();
    assert!(left.contains("xvda.raw: it is not there"), "{left}");
    assert!(String::from_utf8_lossy(&output.stderr).contains(&left));
}

#[test]
fn paths_of_any_bytes_are_told_as_well_as_can_be() {
    use std::os::unix::ffi::OsStrExt;
    let place = Place::new();
    place.disk("a.raw", 4096, 1);
    let snapshot = one_line(&place.ok(&["snapshot", "a.raw"]), "snap-");
    let mut command = place.command(&["--json", "export", &snapshot]);
    let output = command.arg(std::ffi::OsStr::from_bytes(b"o\xffut.raw")).output().unwrap();
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["path"], "o\u{fffd}ut.raw");
}

/// A record and its twin are gone: repair cannot bring it back, and does not send anybody to repair.
#[test]
fn a_repair_that_cannot_mend_the_log_says_what_can() {
    let place = Place::new();
    place.disk("a.raw", 4096, 1);
    (0..3).for_each(|_| drop(place.ok(&["snapshot", "a.raw"])));
    let region = place.path("home/regions/local");
    let record = format!("log/{:017}/{:020}", 0, 2);
    fs::remove_file(region.join(&record)).unwrap();
    fs::remove_file(region.join("twins").join(&record)).unwrap();
    let (code, why) = place.fails(&["repair"]);
    assert!(
        code == 5 && why.contains("Put the missing file back") && !why.contains("repair` mends"),
        "{why}"
    );
}

#[test]
fn what_differs_is_told_in_bytes_and_by_ranges() {
    let place = Place::new();
    let mut bytes = place.disk("a.raw", 1 << 20, 1);
    let image = one_line(&place.ok(&["import", "a.raw", "--name", "web-1"]), "ami-");
    bytes[10_000] ^= 1;
    bytes[200_000..300_000].fill(0);
    fs::write(place.path("b.raw"), &bytes).unwrap();
    let other = one_line(&place.ok(&["import", "b.raw", "--name", "web-2"]), "ami-");
    let document = place.json(&["diff", &image, &other, "--blocks"]);
    let [device] = document["devices"].as_array().unwrap().as_slice() else { panic!("{document}") };
    assert_eq!(device["device_name"], "/dev/xvda");
    assert_eq!(device["first_volume_bytes"], 1 << 20);
    let [ranges, removed] = [&device["blocks"], &device["removed_bytes"]];
    let range = |start: u64, end: u64, change| serde_json::json!({ "start_byte": start, "end_byte": end, "change": change });
    assert_eq!(ranges[0], range(8192, 12_288, "changed"));
    let whole = range(200_704, 299_008, "removed");
    assert!(ranges.as_array().unwrap().contains(&whole), "{ranges}");
    assert!(removed.as_u64().unwrap() >= 98_304);
    let text = place.ok(&["diff", &image, &other]);
    assert!(text.starts_with("DEVICE") && text.contains("/dev/xvda"), "{text}");
    let lines = place.ok(&["diff", &image, &other, "--blocks"]);
    assert!(lines.contains("200704") && lines.contains("removed"), "{lines}");
    assert_eq!(place.fails(&["diff", &image, "ami-0123456789abcdef0"]).0, 3);
    assert_eq!(place.fails(&["diff", &image, "vol-0123456789abcdef0"]).0, 2);
}

/// A name for a device that is not there gets no file, and a page of a server no image.
#[test]
fn what_something_is_called_is_not_believed_against_what_it_is() {
    let place = Place::new();
    place.disk("a.raw", 1 << 16, 1);
    let snapshot = one_line(&place.ok(&["snapshot", "a.raw"]), "snap-");
    let (code, message) = place.fails(&["export", &snapshot, "sdz", "--write-device"]);
    assert!(code == 6 && message.contains("is no block device"), "{code} {message}");
    assert!(!place.path("sdz").exists());
    fs::write(place.path("404.qcow2"), "not found").unwrap();
    let (code, message) = place.fails(&["import", "404.qcow2", "--name", "web"]);
    assert!(code == 6 && message.contains("--format raw"), "{code} {message}");
    place.ok(&["import", "404.qcow2", "--name", "web", "--format", "raw"]);
    // A region that is not where it was.
    place.ok(&["region", "add", "backup", "backup"]);
    fs::rename(place.path("backup"), place.path("moved")).unwrap();
    let (code, message) = place.fails(&["--region", "backup", "images"]);
    assert!(code == 3 && message.contains("region remove backup"), "{code} {message}");
    // As it says; of the default region, too.
    place.ok(&["region", "add", "moved", "moved"]);
    place.ok(&["region", "remove", "backup"]);
    place.ok(&["region", "default", "moved"]);
    fs::rename(place.path("moved"), place.path("again")).unwrap();
    let (code, message) = place.fails(&["images"]);
    assert!(
        code == 3 && message.contains("`imgstore region default OTHER-NAME` between"),
        "{code} {message}"
    );
    place.ok(&["region", "add", "again", "again"]);
    place.ok(&["region", "default", "again"]);
    place.ok(&["region", "remove", "moved"]);
}

/// Standard output that is a file is durable, and one that cannot be written to is an error.
#[test]
fn standard_output_is_written_to_or_that_is_an_error() {
    let place = Place::new();
    let bytes = place.disk("a.raw", 1 << 20, 1);
    let snapshot = one_line(&place.ok(&["snapshot", "a.raw"]), "snap-");
    let out = |file: fs::File| place.command(&["export", &snapshot, "-"]).stdout(file).status().unwrap();
    assert!(out(fs::File::create(place.path("out.raw")).unwrap()).success());
    assert!(fs::read(place.path("out.raw")).unwrap() == bytes);
    assert!(!out(fs::File::open(place.path("a.raw")).unwrap()).success(), "opened for reading");
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    assert_eq!(place.command(&["images"]).stdout(full).status().unwrap().code(), Some(7), "no space");
    // What was made is told all the same.
    for words in [&["snapshot", "a.raw"] as &[&str], &["snapshot", "a.raw", "--json", "-q"]] {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut command = place.command(words);
        let output = command.stdout(full).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(
            output.status.code() == Some(7) && said.contains("snap-") && said.contains("No space"),
            "{said}"
        );
    }
}

/// What grows beyond the limit of a process ends it by a signal: that is refused, whatever is written.
#[test]
fn a_limit_of_the_file_size_is_an_error_that_leaves_nothing() {
    let place = Place::new();
    let mut draw = common::Draw::new(1);
    let noise: Vec<u8> = (0..4 << 17).flat_map(|_| draw.next().to_le_bytes()).collect();
    fs::write(place.path("a.raw"), noise).unwrap();
    let snapshot = one_line(&place.ok(&["snapshot", "a.raw"]), "snap-");
    let limited_to = |blocks: u32, args: &[&str], out: Stdio| {
        let command = place.command(args);
        let mut shell = common::clean(Command::new("sh"));
        shell.env("IMGSTORE_HOME", place.path("home")).stdout(out).current_dir(place.path(""));
        shell.args(["-c", &format!("ulimit -f {blocks}; exec \"$@\""), "sh"]);
        let output = shell.arg(command.get_program()).args(command.get_args()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
        assert!(said.contains("too large"), "{args:?}: {said}");
    };
    let limited = |args: &[&str], out: Stdio| limited_to(1000, args, out);
    for format in ["raw", "qcow2", "vmdk", "vhd"] {
        let name = &*format!("out.{format}");
        limited(&["export", &snapshot, name, "--format", format], Stdio::null());
        let left: Vec<_> = fs::read_dir(place.path("")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(!left.iter().any(|left| left.to_string_lossy().contains("out.")), "{name}: {left:?}");
    }
    for is_appended in [false, true] {
        let stream =
            fs::OpenOptions::new().write(true).create(true).append(is_appended).open(place.path("stream"));
        limited(&["export", &snapshot, "-"], stream.unwrap().into());
    }
    // Pages, and answers in files.
    limited_to(1, &["bench", "dedup", "a.raw", "--html", "page.html"], Stdio::null());
    assert!(!place.path("page.html").exists());
    let answer = fs::File::create(place.path("answer")).unwrap();
    limited_to(1, &["completions", "bash"], answer.into());
    limited(&["bundle", &snapshot, "bundles", "--name", "a"], Stdio::null());
    assert!(!place.path("bundles").exists());
    let before = place.ok(&["images", "--json"]) + &place.ok(&["snapshots", "--json"]);
    let noise: Vec<u8> = (0..4 << 17).flat_map(|_| draw.next().to_le_bytes()).collect();
    fs::write(place.path("b.raw"), noise).unwrap();
    limited(&["snapshot", "b.raw"], Stdio::null());
    assert_eq!(place.ok(&["images", "--json"]) + &place.ok(&["snapshots", "--json"]), before);
    place.ok(&["verify"]);
}

/// Who terminates again has removed, or is told of, what the first command did not come to.
#[test]
fn a_second_terminate_does_what_the_first_did_not_come_to() {
    let place = Place::new();
    place.disk("a.raw", 4096, 1);
    let image = one_line(&place.ok(&["import", "a.raw", "--name", "web"]), "ami-");
    let instance = one_line(&place.ok(&["launch", &image, "--output", "vms"]), "i-");
    let folder = place.path("vms").join(&instance);
    fs::copy(folder.join("xvda.raw"), place.path("kept.raw")).unwrap();
    place.ok(&["terminate", &instance]);
    assert!(!folder.exists());
    // As it would be if the first had been killed behind its record.
    fs::create_dir(&folder).unwrap();
    fs::rename(place.path("kept.raw"), folder.join("xvda.raw")).unwrap();
    let left = place.json(&["terminate", &instance])["instances"][0]["left_files"].clone();
    assert!(left[0].as_str().unwrap().contains("nothing in it is on record"), "{left}");
    fs::remove_file(folder.join("xvda.raw")).unwrap();
    assert_eq!(place.json(&["terminate", &instance])["instances"][0]["left_files"], serde_json::json!([]));
    assert!(!folder.exists());
}

/// The folder is part of a request with a token, however it is spelled.
#[test]
fn a_token_knows_the_folder_and_not_its_spelling() {
    let place = Place::new();
    place.disk("a.raw", 4096, 1);
    let image = one_line(&place.ok(&["import", "a.raw", "--name", "web"]), "ami-");
    let launch = |output: &str| place.run(&["launch", &image, "--output", output, "--client-token", "t"]);
    let first = launch("vms").stdout;
    assert_eq!(launch("./vms").stdout, first);
    assert_eq!(launch(place.path("vms").to_str().unwrap()).stdout, first);
    assert_eq!(launch("others").status.code(), Some(6));
}

/// Who wants quiet hears nothing where there is nothing to tell.
#[test]
fn quiet_is_quiet_where_all_is_well() {
    let place = Place::new();
    place.disk("a.raw", 1 << 16, 1);
    place.ok(&["snapshot", "a.raw"]);
    for command in ["verify", "gc", "repair"] {
        assert!(!place.ok(&[command]).is_empty());
        assert_eq!(place.ok(&["-q", command]), "");
    }
}

/// A home of another account sees that a region is not empty, and whose it is.
#[test]
fn a_region_of_another_account_says_whose_it_is() {
    let place = Place::new();
    place.disk("a.raw", 1 << 16, 1);
    place.ok(&["import", "a.raw", "--name", "web"]);
    let account = place.json(&["account", "show"])["account_id"].as_str().unwrap().to_owned();
    let other = |args: &[&str]| {
        let home = place.path("other");
        place.run(&[&["--home", home.to_str().unwrap()], args].concat())
    };
    let added = other(&["region", "add", "old", "home/regions/local"]);
    let told = String::from_utf8_lossy(&added.stderr).into_owned();
    assert!(told.contains(&format!("the region of account {account}, with 1 image")), "{told}");
    let listed = String::from_utf8_lossy(&other(&["--region", "old", "images"]).stderr).into_owned();
    assert!(listed.contains(&format!("--account {account}")), "{listed}");
    let shown = other(&["region", "show", "old", "--json"]);
    assert_eq!(serde_json::from_slice::<Value>(&shown.stdout).unwrap()["provider_id"], account);
}

/// Disks of one image get their names together, and what stands in the way of the last is said before the first is written.
#[test]
fn all_disks_are_exported_or_none() {
    let place = Place::new();
    let disks = [place.disk("a.raw", 1 << 20, 1), place.disk("b.raw", 1 << 20, 2)];
    let image = one_line(&place.ok(&["import", "a.raw", "b.raw", "--name", "web"]), "ami-");
    fs::create_dir_all(place.path("out/xvdb.qcow2")).unwrap();
    let args = ["export", &image, "out", "--all", "--force", "--format", "qcow2"];
    for dry_run in [&["--dry-run"][..], &[]] {
        assert_eq!(place.fails(&[&args, dry_run].concat()).0, 6);
    }
    fs::remove_dir(place.path("out/xvdb.qcow2")).unwrap();
    assert_eq!(fs::read_dir(place.path("out")).unwrap().count(), 0);
    for format in ["raw", "qcow2", "vhdx"] {
        place.ok(&["export", &image, "out", "--all", "--format", format]);
        for (name, bytes) in ["xvda", "xvdb"].iter().zip(&disks) {
            let file = format!("out/{name}.{format}");
            let snapshot = one_line(&place.ok(&["snapshot", &file]), "snap-");
            assert!(place.run(&["export", &snapshot, "-"]).stdout == *bytes, "{file}");
        }
    }
}
