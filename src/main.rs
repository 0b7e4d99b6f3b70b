//! The `imgstore` program: arguments in, a verb of the library, an answer out.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run()
}
