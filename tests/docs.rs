//! The documents say what the program does: their commands run, every command and option stands in them, every
//! error code, every filter; and what they link to exists.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const PROGRAM: &str = env!("CARGO_BIN_EXE_imgstore");

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// The README and the pages under docs.
fn pages() -> Vec<PathBuf> {
    let all = fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let pages = all.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    pages.chain([root().join("README.md")]).collect()
}

/// The shell commands of a page, as one script. What has a `!` before it must fail.
fn script(page: &str) -> String {
    let mut script = String::from("set -euo pipefail\n");
    let mut inside = false;
    for line in page.lines() {
        match line {
            "```sh" => inside = true,
            "```" => inside = false,
            _ if !inside => {}
            line => match line.strip_prefix("! ") {
                // A `!` alone would not end the script if the command succeeds.
                Some(command) => {
                    let why = format!("echo 'succeeds: {}' >&2", command.replace('\'', ""));
                    script += &format!("if {command}\nthen {why}; exit 97; fi\n");
                }
                None => script += &format!("{line}\n"),
            },
        }
    }
    script
}

#[test]
fn the_commands_of_the_page_on_images_run() {
    let folder = tempfile::tempdir().unwrap();
    let programs = folder.path().join("programs");
    let work = folder.path().join("work");
    fs::create_dir(&programs).unwrap();
    fs::create_dir(&work).unwrap();
    std::os::unix::fs::symlink(PROGRAM, programs.join("imgstore")).unwrap();
    let script = script(&read("docs/IMAGES.md"));
    assert!(script.lines().count() > 50, "the page has lost its commands");
    let mut paths = vec![programs];
    paths.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    let output = common::clean(Command::new("bash"))
        .args(["-x", "-c", &script])
        .env("PATH", std::env::join_paths(paths).unwrap())
        .env("IMGSTORE_HOME", folder.path().join("home"))
        .env("HOME", folder.path())
        .current_dir(&work)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{said}", output.status);
    // A command that fails for a reason of its own is not one that is refused.
    for wrong in ["Usage:", "panicked", "command not found"] {
        assert!(!said.contains(wrong), "{wrong}\n{said}");
    }
}

/// What `imgstore COMMAND… --help` prints.
fn help(command: &[&str]) -> String {
    let output = Command::new(PROGRAM).args(command).arg("--help").output().unwrap();
    assert!(output.status.success(), "{command:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The names in the list of commands.
fn commands(help: &str) -> Vec<String> {
    let list = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let list = list.take_while(|line| !line.is_empty());
    // A line of a description that goes on is indented further.
    let entries = list.filter_map(|line| line.strip_prefix("  ").filter(|rest| !rest.starts_with(' ')));
    let names = entries.filter_map(|entry| entry.split_whitespace().next());
    names.filter(|name| *name != "help").map(ToOwned::to_owned).collect()
}

/// The long options in the list of options, but those that every program has.
fn options(help: &str) -> BTreeSet<String> {
    let lines = help.lines().map(str::trim_start).filter(|line| line.starts_with('-'));
    let name = |line: &str| {
        let (_, rest) = line.split_once("--")?;
        let end = rest.find(|c: char| !c.is_ascii_lowercase() && c != '-').unwrap_or(rest.len());
        Some(format!("--{}", &rest[..end]))
    };
    let names = lines.filter_map(name);
    names.filter(|name| !["--help", "--version", "--"].contains(&name.as_str())).collect()
}

/// Whether a text has an option, and not only a longer one that begins alike.
fn mentions(text: &str, option: &str) -> bool {
    let follows = |c: char| c.is_ascii_lowercase() || c == '-';
    text.match_indices(option).any(|(at, _)| !text[at + option.len()..].starts_with(follows))
}

/// The rows of a page's tables whose first cell names a command.
fn rows<'a>(page: &'a str, command: &str) -> Vec<&'a str> {
    let names = [format!("`{command}`"), format!("`{command} ")];
    let is_its = |row: &&str| {
        let cell = row.split(" | ").next().unwrap_or("");
        row.starts_with('|') && names.iter().any(|name| cell.contains(name))
    };
    page.lines().filter(is_its).collect()
}

/// The part of a page under a heading.
fn section<'a>(page: &'a str, heading: &str) -> &'a str {
    let (_, rest) = page.split_once(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("{heading}"));
    rest.split("\n## ").next().unwrap_or(rest)
}

#[test]
fn every_command_and_option_stands_in_the_reference() {
    let page = read("docs/CLI.md");
    let (reference, globals) = (section(&page, "Commands"), section(&page, "Global options"));
    let top = help(&[]);
    let global = options(&top);
    let mut faults: Vec<String> =
        global.iter().filter(|option| !mentions(globals, option)).map(|o| format!("global {o}")).collect();
    let mut todo: Vec<Vec<String>> = commands(&top).into_iter().map(|name| vec![name]).collect();
    assert!(todo.len() > 30, "{todo:?}");
    while let Some(command) = todo.pop() {
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        let (name, help) = (words.join(" "), help(&words));
        let below = commands(&help);
        if !below.is_empty() {
            todo.extend(below.into_iter().map(|sub| [command.clone(), vec![sub]].concat()));
            continue;
        }
        let rows = rows(reference, &name).join("\n");
        if rows.is_empty() {
            faults.push(format!("no row for {name}"));
        }
        let missing = options(&help).into_iter().filter(|o| !global.contains(o) && !mentions(&rows, o));
        faults.extend(missing.map(|option| format!("{name} {option}")));
    }
    assert!(faults.is_empty(), "docs/CLI.md lacks: {faults:#?}");
}

#[test]
fn every_error_code_stands_in_the_documents() {
    let source = read("src/ops/error.rs");
    let (_, table) = source.split_once("\ncodes! {").unwrap();
    let (table, _) = table.split_once("\n}").unwrap();
    let codes: Vec<&str> = table.split('"').skip(1).step_by(2).collect();
    assert!(codes.len() > 20, "{codes:?}");
    let pages = read("docs/CLI.md") + &read("docs/IMAGES.md");
    let missing: Vec<_> = codes.iter().filter(|code| !pages.contains(&format!("`{code}`"))).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn every_filter_stands_in_the_reference() {
    let source = read("src/ops/described.rs");
    let page = read("docs/CLI.md");
    let filters = section(&page, "Filters");
    let lists: Vec<&str> = source.split("const FILTERS: &'static [&'static str] = &[").skip(1).collect();
    assert_eq!(lists.len(), 4);
    for (list, kind) in lists.iter().zip(["images", "snapshots", "volumes", "instances"]) {
        let (names, _) = list.split_once("];").unwrap();
        let row = rows(filters, kind).join("\n");
        let missing: Vec<_> =
            names.split('"').skip(1).step_by(2).filter(|name| !row.contains(&format!("`{name}`"))).collect();
        assert!(missing.is_empty(), "{kind}: {missing:?}");
    }
}

/// Tests that the documents name are there.
#[test]
fn every_test_that_is_named_exists() {
    let mut sources = String::new();
    let mut folders = vec![root().join("src"), root().join("tests")];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                sources += &fs::read_to_string(path).unwrap();
            }
        }
    }
    let (mut named, mut faults) = (0, Vec::new());
    for page in ["TESTING.md", "SECURITY.md"] {
        let text = read(&format!("docs/{page}"));
        for row in text.lines().filter(|line| line.starts_with('|')) {
            let words = row.split('`').skip(1).step_by(2);
            let is_test = |word: &&str| {
                word.matches('_').count() > 3
                    && word.chars().all(|c| c == '_' || c.is_ascii_lowercase() || c.is_ascii_digit())
            };
            for name in words.filter(is_test) {
                named += 1;
                if !sources.contains(&format!("fn {name}(")) {
                    faults.push(format!("{page}: {name}"));
                }
            }
        }
    }
    assert!(named > 30, "{named} tests are named");
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn every_link_leads_to_a_file() {
    let mut faults = Vec::new();
    let mut links = 0;
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = target.split('#').next().unwrap_or("");
            if path.is_empty() || path.contains("://") || path.starts_with("mailto:") {
                continue;
            }
            links += 1;
            if !page.parent().unwrap().join(path).exists() {
                faults.push(format!("{}: {target}", page.display()));
            }
        }
    }
    assert!(links > 5, "{links} links");
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn the_protocols_version_is_told() {
    let heading = format!("## The protocol, version {}\n", imgstore::serve::message::VERSION);
    assert!(read("docs/REMOTE.md").contains(&heading), "{heading}");
}
