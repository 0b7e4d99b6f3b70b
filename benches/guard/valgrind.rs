//! Counting with callgrind, which shows a program the same processor on every x86-64 machine that has AVX2: BLAKE3, zstd
//! and the C library then choose the same code everywhere.

use super::cases;
use super::counts::Counts;
use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::process::Command;

/// What tells the program that it runs inside valgrind.
pub const INSIDE: &str = "--inside-valgrind";

/// What callgrind calls the function below.
const MEASURED: &str = "guard::valgrind::measured_by_the_guard";

/// Counting is on in here and nowhere else; each return writes a file.
#[inline(never)]
pub fn measured_by_the_guard(work: &mut dyn FnMut()) {
    work();
    // Not the last thing, so that the call above comes back here.
    black_box(());
}

/// Why instructions cannot be counted here in the manner of the committed ones.
pub fn why_not() -> Option<String> {
    if !cfg!(target_arch = "x86_64") {
        return Some("the counts are those of x86-64".to_owned());
    }
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    if !processor.split_whitespace().any(|flag| flag == "avx2") {
        return Some("the counts are those of a processor with AVX2".to_owned());
    }
    said("valgrind", &["--version"]).is_none().then(|| "valgrind is not installed".to_owned())
}

/// Runs all cases under callgrind and adds up nothing: it wrote a file for each.
pub fn count() -> Result<Counts, String> {
    let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--collect-atstart=no"])
        .arg(format!("--toggle-collect={MEASURED}"))
        .arg(format!("--dump-after={MEASURED}"))
        .arg(format!("--callgrind-out-file={}", folder.path().join("out").display()))
        .arg(program)
        .arg(INSIDE)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .output()
        .map_err(|e| format!("valgrind: {e}"))?;
    if !output.status.success() {
        return Err(format!("valgrind: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr)));
    }
    let mut counts = Counts { tools: tools(), ..Counts::default() };
    for (number, name) in (1..).zip(cases::NAMES) {
        let count = total(&folder.path().join(format!("out.{number}")))?;
        counts.cases.insert(name.to_owned(), count);
    }
    Ok(counts)
}

/// The instructions of one file of callgrind's.
fn total(path: &Path) -> Result<u64, String> {
    let text = fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let totals =
        text.lines().find_map(|line| line.strip_prefix("totals: ")).ok_or("a file without totals")?;
    let count = totals.trim().parse().map_err(|_| format!("{totals} is no number"))?;
    if count == 0 { Err(format!("{}: nothing was counted", path.display())) } else { Ok(count) }
}

/// What counts depend on besides the source.
fn tools() -> String {
    let flags = std::env::var("RUSTFLAGS").unwrap_or_default();
    let asked = [
        said("rustc", &["--version"]),
        said("cc", &["--version"]),
        said("getconf", &["GNU_LIBC_VERSION"]),
        said("valgrind", &["--version"]),
        (!flags.is_empty()).then_some(flags),
    ];
    asked.into_iter().flatten().collect::<Vec<_>>().join("; ")
}

/// The first line that a program prints.
fn said(program: &str, words: &[&str]) -> Option<String> {
    let output = Command::new(program).args(words).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).lines().next()?.trim().to_owned())
}
