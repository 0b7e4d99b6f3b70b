//! The program, as people run it.

use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

/// A folder with a home and disks in it, and the program that is run there.
pub struct Place {
    pub folder: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = super::clean(Command::new(env!("CARGO_BIN_EXE_imgstore")));
        command.env("IMGSTORE_HOME", self.path("home")).current_dir(self.folder.path()).args(args);
        command
    }

    /// The same as on a terminal: whoever runs the tests in the background has them ignore Ctrl-C, and what they start.
    pub fn in_foreground(&self, args: &[&str]) -> Command {
        let inner = self.command(args);
        let mut command = Command::new("/usr/bin/env");
        command.env_clear().envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.arg("--default-signal=INT,HUP,TERM").arg(inner.get_program()).args(inner.get_args());
        command.current_dir(self.folder.path());
        command
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Standard output of a command that succeeds.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn json(&self, args: &[&str]) -> Value {
        let mut args = args.to_vec();
        args.push("--json");
        serde_json::from_str(&self.ok(&args)).unwrap()
    }

    /// Exit code and standard error of a command that fails.
    pub fn fails(&self, args: &[&str]) -> (i32, String) {
        let output = self.run(args);
        assert!(!output.status.success(), "{args:?} succeeds");
        assert!(output.stdout.is_empty(), "{args:?} prints {:?}", String::from_utf8_lossy(&output.stdout));
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    }

    pub fn disk(&self, name: &str, len: usize, seed: u64) -> Vec<u8> {
        let bytes = super::volume(len, seed);
        fs::write(self.path(name), &bytes).unwrap();
        bytes
    }
}

/// The one line that was printed, which begins so.
pub fn one_line(text: &str, prefix: &str) -> String {
    let line = text.strip_suffix('\n').unwrap();
    assert!(!line.contains('\n') && line.starts_with(prefix), "{text:?}");
    line.to_owned()
}
