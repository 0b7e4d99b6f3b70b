//! Layer 7, compiled into the program only: arguments, home, rendering, exit codes.

mod args;
mod commands;
mod error;
mod home;
mod json;
mod output;
mod progress;
mod text;

use args::Cli;
use clap::Parser;
use error::CliError;
use output::Output;
use progress::Watcher;
use std::process::ExitCode;

/// The program.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers, everything else is a wrong call.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { error::USAGE } else { 0 });
        }
    };
    let output = Output::new(cli.global.json);
    let watcher = Watcher::new(cli.global.quiet);
    watcher.stop_on_signals();
    let result = commands::run(&cli, &output, &watcher);
    watcher.finish();
    match result.and_then(|code| output.finish().map(|()| code)) {
        Ok(code) => ExitCode::from(code),
        Err(CliError::ReaderGone) => ExitCode::from(error::FAILED),
        Err(error) => {
            output.error(&error);
            ExitCode::from(error.exit_code())
        }
    }
}
