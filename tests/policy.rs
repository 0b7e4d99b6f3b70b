//! The dependency policy of deny.toml and docs/DEPENDENCIES.md, enforced on Cargo.lock and the manifests.

use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Command;

fn read(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// Name, version and source of every locked package.
fn locked() -> Vec<(String, String, String)> {
    let field = |package: &str, name: &str| {
        let line = package.lines().find_map(|line| line.strip_prefix(&format!("{name} = \"")));
        line.map(|value| value.trim_end_matches('"').to_owned()).unwrap_or_default()
    };
    let lock = read("Cargo.lock");
    let packages = lock.split("[[package]]").skip(1);
    packages.map(|p| (field(p, "name"), field(p, "version"), field(p, "source"))).collect()
}

#[test]
fn everything_comes_from_the_one_registry() {
    let packages = locked();
    assert!(packages.len() > 30);
    for (name, _, source) in packages {
        let own = name == "imgstore" && source.is_empty();
        assert!(
            own || source == "registry+https://github.com/rust-lang/crates.io-index",
            "{name} from {source}"
        );
    }
}

#[test]
fn versions_that_are_known_to_be_bad_are_not_used() {
    let number =
        |version: &str| -> Vec<u64> { version.split('.').map(|part| part.parse().unwrap_or(0)).collect() };
    for (name, version, _) in locked() {
        match name.as_str() {
            "bincode" => assert_eq!(version, "2.0.1"),
            "crossbeam-channel" => assert!(number(&version) >= vec![0, 5, 15], "{version}"),
            "memmap2" => assert!(number(&version) >= vec![0, 9, 11], "{version}"),
            _ => {}
        }
    }
}

fn metadata() -> Value {
    // Only what this platform uses was downloaded.
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--offline", "--filter-platform", &platform])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn licences_are_on_the_list_and_dependencies_in_the_docs() {
    let metadata = metadata();
    let allowed = read("deny.toml");
    let docs = read("docs/DEPENDENCIES.md");
    for package in metadata["packages"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        let licence = package["license"].as_str().unwrap_or("");
        // An expression is good if one of its alternatives is; all are joined by OR or a slash.
        let good = |alternative: &str| {
            let all = alternative.trim().trim_matches(['(', ')']);
            all.split(" AND ")
                .all(|part| allowed.contains(&format!("\"{}\"", part.trim().trim_matches(['(', ')']))))
        };
        assert!(licence.replace('/', " OR ").split(" OR ").any(good), "{name}: {licence}");
        if name == "imgstore" {
            for dependency in package["dependencies"].as_array().unwrap() {
                let name = dependency["name"].as_str().unwrap();
                assert!(docs.contains(name), "{name} has no line in docs/DEPENDENCIES.md");
                assert_ne!(dependency["req"], "*", "{name} has a wildcard");
            }
        }
    }
}
