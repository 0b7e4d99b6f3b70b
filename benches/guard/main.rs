//! A guard against losses that noise would hide: instructions of the parts that every byte goes through, counted by
//! valgrind, beside the counts that were committed. `benches/README.md` says when they hold.
//!
//! ```text
//! cargo bench --bench guard               # compares; exit code 1 if a part takes more than it may
//! cargo bench --bench guard -- --bless    # keeps what is measured now
//! ```
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program that reports")]

mod cases;
#[path = "../common/mod.rs"]
mod common;
mod counts;
mod valgrind;

use counts::Counts;
use std::process::ExitCode;

/// By how much a part may take more than was committed, in per cent. Two runs of one build give the same counts to the
/// last digit; the room is for what a change elsewhere does to inlining. A loss of a tenth is far outside.
const TOLERANCE_PERCENT: f64 = 3.0;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.iter().any(|word| word == valgrind::INSIDE) {
        cases::run(valgrind::measured_by_the_guard);
        return ExitCode::SUCCESS;
    }
    if let Some(why) = valgrind::why_not() {
        println!("guard: not run: {why}");
        return ExitCode::SUCCESS;
    }
    let found = match valgrind::count() {
        Ok(found) => found,
        Err(why) => {
            eprintln!("guard: {why}");
            return ExitCode::from(2);
        }
    };
    if words.iter().any(|word| word == "--bless") {
        return match found.write() {
            Ok(path) => {
                found.cases.iter().for_each(|(name, count)| println!("{name:40} {count:>14}"));
                println!("kept in {}", path.display());
                ExitCode::SUCCESS
            }
            Err(why) => {
                eprintln!("guard: {why}");
                ExitCode::from(2)
            }
        };
    }
    compare(&found)
}

/// Prints both; a failure if one takes more, or is not in both.
fn compare(found: &Counts) -> ExitCode {
    let kept = match Counts::read() {
        Ok(kept) => kept,
        Err(why) => {
            eprintln!("guard: {why}");
            return ExitCode::from(2);
        }
    };
    let is_comparable = kept.tools == found.tools;
    let mut losses = 0;
    println!("{:40} {:>14} {:>14} {:>9}", "instructions", "committed", "now", "change");
    for (name, &now) in &found.cases {
        let Some(&before) = kept.cases.get(name) else {
            println!("{name:40} {:>14} {now:>14}            new", "");
            losses += 1;
            continue;
        };
        let percent = (now as f64 / before as f64 - 1.0) * 100.0;
        let verdict = match percent {
            p if p > TOLERANCE_PERCENT => "  MORE",
            p if p < -TOLERANCE_PERCENT => "  less",
            _ => "",
        };
        losses += usize::from(percent > TOLERANCE_PERCENT);
        println!("{name:40} {before:>14} {now:>14} {percent:>+8.2} %{verdict}");
    }
    for name in kept.cases.keys().filter(|name| !found.cases.contains_key(*name)) {
        println!("{name:40}                               gone");
        losses += 1;
    }
    if !is_comparable {
        println!("Shown only, not judged: the counts are of other tools.");
        println!("  committed: {}\n  here:      {}", kept.tools, found.tools);
        return ExitCode::SUCCESS;
    }
    if losses > 0 {
        println!(
            "{losses} beyond {TOLERANCE_PERCENT} %. If that is meant: cargo bench --bench guard -- --bless"
        );
        return ExitCode::FAILURE;
    }
    println!("all within {TOLERANCE_PERCENT} %");
    ExitCode::SUCCESS
}
