//! File systems in files, mounted while a test uses them, and the programs that make and check them.

use super::skipped;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs a program: whether it succeeded, and what it printed. `None` if there is no such program.
pub fn run(program: &str, args: &[&str]) -> Option<(bool, String)> {
    let output = Command::new(program).args(args).env("LC_ALL", "C").output().ok()?;
    let said = [output.stdout, output.stderr].concat();
    Some((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
}

pub fn must(program: &str, args: &[&str]) -> String {
    let (ok, said) = run(program, args).unwrap_or_else(|| panic!("no {program}"));
    assert!(ok, "{program} {args:?}: {said}");
    said
}

/// Whether all of these programs are there; else says that a test is skipped.
pub fn have(programs: &[&str]) -> bool {
    let missing = programs.iter().find(|program| run(program, &["-V"]).is_none());
    if let Some(program) = missing {
        skipped(format_args!("there is no {program}"));
    }
    missing.is_none()
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A mounted file system, unmounted in the end.
pub struct Mounted(pub PathBuf);

impl Mounted {
    /// A fresh file system of so many MiB, in an image that is made. XFS needs 300.
    pub fn fresh(image: &Path, kind: &str, mib: u64, options: &str) -> Option<Self> {
        let mkfs = format!("mkfs.{kind}");
        if !have(&[&mkfs]) {
            return None;
        }
        File::create(image).unwrap().set_len(mib << 20).unwrap();
        // Files that share blocks are what XFS had only when asked, in its first years.
        let with: &[&str] = if kind == "xfs" { &["-q", "-m", "reflink=1"] } else { &["-q"] };
        must(&mkfs, &[with, &[text(image)]].concat());
        Self::new(image, options)
    }

    pub fn new(image: &Path, options: &str) -> Option<Self> {
        let folder = image.with_extension("mnt");
        fs::create_dir_all(&folder).unwrap();
        let options = format!("loop{options}");
        let mounted = run("mount", &["-o", &options, text(image), text(&folder)]);
        let (ok, said) = mounted.unwrap_or_else(|| (false, "there is no mount".to_owned()));
        if !ok {
            skipped(format_args!("cannot mount: {}", said.trim()));
        }
        ok.then_some(Self(folder))
    }
}

impl Drop for Mounted {
    #[allow(clippy::print_stdout, reason = "a word to whoever looks for it")]
    fn drop(&mut self) {
        // For a moment something else may look into what was mounted; and the last writes are done when the
        // device is gone.
        let image = self.0.with_extension("");
        for _ in 0..100 {
            run("umount", &[text(&self.0)]);
            if run("losetup", &["-j", text(&image)]).is_none_or(|found| found.1.is_empty()) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        println!("{} stays mounted", self.0.display());
    }
}
