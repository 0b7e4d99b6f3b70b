//! The rules of docs/ARCHITECTURE.md that a compiler does not check: layers, `unsafe`, `std::fs`, printing,
//! lengths.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Which layers each layer may use, besides itself.
const MAY_USE: [(&str, &[&str]); 10] = [
    ("model", &[]),
    ("chunk", &["model"]),
    ("format", &["chunk", "model"]),
    ("io", &["model"]),
    ("pack", &["io", "format", "chunk", "model"]),
    ("disk", &["io", "model"]),
    ("region", &["pack", "io", "format", "chunk", "model"]),
    ("ops", &["region", "disk", "chunk", "model"]),
    ("serve", &["ops", "region", "format", "chunk", "model"]),
    ("cli", &["serve", "ops", "region", "disk", "pack", "io", "format", "chunk", "model"]),
];
const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 80;

fn sources() -> Vec<(PathBuf, String)> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    walk(&root, &mut paths);
    paths.sort();
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        (path.strip_prefix(&root).unwrap().to_owned(), text)
    };
    let sources: Vec<_> = paths.into_iter().map(read).collect();
    assert!(sources.len() > 50, "the sources were not found");
    sources
}

fn layer(path: &Path) -> String {
    path.components().next().unwrap().as_os_str().to_string_lossy().into_owned()
}

/// A source's lines of code, without its tests and comments, with their numbers.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let tests = text.find("#[cfg(test)]\nmod tests").unwrap_or(text.len());
    let lines = text[..tests].lines().enumerate().map(|(at, line)| (at + 1, line));
    lines.filter(|(_, line)| !line.trim_start().starts_with("//"))
}

#[test]
fn layers_use_only_what_stands_above_them() {
    let table: BTreeMap<&str, &[&str]> = MAY_USE.into_iter().collect();
    let mut faults = Vec::new();
    for (path, text) in sources() {
        let own = layer(&path);
        let Some(allowed) = table.get(own.as_str()) else { continue };
        let prefix = if own == "cli" { "imgstore::" } else { "crate::" };
        for (number, line) in code(&text) {
            for (at, _) in line.match_indices(prefix) {
                let rest = &line[at + prefix.len()..];
                let used: String = rest.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
                let known = table.contains_key(used.as_str());
                if known && used != own && !allowed.contains(&used.as_str()) {
                    faults.push(format!("{}:{number}: {own} uses {used}", path.display()));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_module_has_its_place_in_the_table() {
    for (path, _) in sources() {
        let own = layer(&path);
        let known = MAY_USE.iter().any(|(layer, _)| *layer == own);
        assert!(known || own == "lib.rs" || own == "main.rs", "{} is in no layer", path.display());
    }
}

#[test]
fn words_that_belong_to_one_place_stay_there() {
    let rules: [(&str, &[&str]); 6] = [
        ("unsafe {", &["io/map.rs"]),
        ("std::fs", &["io/"]),
        ("println!", &[]),
        ("std::env", &["cli/home.rs", "cli/mod.rs"]),
        ("process::exit", &["cli/progress.rs"]),
        ("bincode", &["format/codec.rs"]),
    ];
    let mut faults = Vec::new();
    for (path, text) in sources() {
        let path = path.to_string_lossy();
        for (word, places) in rules {
            for (number, line) in code(&text) {
                if line.contains(word) && !places.iter().any(|place| path.starts_with(place)) {
                    faults.push(format!("{path}:{number}: {word}"));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn files_have_one_idea_and_functions_fit_a_screen() {
    let mut faults = Vec::new();
    for (path, text) in sources() {
        let lines = text.lines().count();
        if lines > FILE_LINES_MAX {
            faults.push(format!("{}: {lines} lines", path.display()));
        }
        let mut open: Option<(usize, usize)> = None;
        for (number, line) in text.lines().enumerate() {
            let indent = line.len() - line.trim_start().len();
            let starts = line.trim_start();
            let is_fn = ["fn ", "pub fn ", "pub(super) fn ", "pub(crate) fn ", "const fn ", "pub const fn "]
                .iter()
                .any(|start| starts.starts_with(start));
            if is_fn && open.is_none() && !line.ends_with(';') && !line.ends_with('}') {
                open = Some((number, indent));
            } else if let Some((start, at)) = open
                && indent == at
                && starts.starts_with('}')
            {
                if number - start > FUNCTION_LINES_MAX {
                    faults.push(format!("{}:{}: {} lines", path.display(), start + 1, number - start));
                }
                open = None;
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_top_level_has_its_folders_and_no_others() {
    let is_ours = |name: &str| {
        let folders = ["benches", "docs", "fuzz", "src", "target", "tests"];
        folders.contains(&name) || name.starts_with('.')
    };
    let entries = fs::read_dir(env!("CARGO_MANIFEST_DIR")).unwrap().map(Result::unwrap);
    let folders = entries.filter(|entry| entry.path().is_dir());
    let names: Vec<String> = folders.map(|entry| entry.file_name().into_string().unwrap()).collect();
    assert!(names.contains(&"src".into()));
    let others: Vec<&String> = names.iter().filter(|name| !is_ours(name)).collect();
    assert!(others.is_empty(), "not at the top level: {others:?}");
}
