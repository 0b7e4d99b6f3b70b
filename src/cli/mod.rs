//! Layer 7, compiled into the program only: arguments, home, rendering, exit codes.

mod args;
mod checks;
mod commands;
mod error;
mod far;
mod home;
mod json;
mod output;
mod page;
mod progress;
mod text;

use args::{Cli, MalformedGrantee};
use clap::Parser;
use clap::error::ErrorKind;
use error::CliError;
use imgstore::model::ids::MalformedId;
use imgstore::ops::error::{Code, OpsError};
use output::Output;
use progress::Watcher;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

/// Help and version are answers, everything else is a wrong call. Arguments that cannot be read still say
/// whether a program asks.
fn wrong_call(error: &clap::Error) -> ExitCode {
    let asks_for_json = std::env::args_os().any(|argument| argument == "--json");
    if !error.use_stderr() || !asks_for_json {
        // Nothing more can be done if the terminal is gone.
        let _ = error.print();
        return ExitCode::from(if error.use_stderr() { error::USAGE } else { 0 });
    }
    let source = std::error::Error::source(error);
    let id = source.and_then(|source| source.downcast_ref::<MalformedId>());
    let grantee = source.and_then(|source| source.downcast_ref::<MalformedGrantee>());
    let error = match (id, grantee) {
        (Some(id), _) => CliError::Ops(id.clone().into()),
        (_, Some(grantee)) => CliError::Ops(grantee.clone().into()),
        _ => {
            let message = sentence(&error.render().to_string());
            match error.kind() {
                ErrorKind::MissingRequiredArgument => {
                    CliError::Ops(OpsError::Rule { code: Code::MissingParameter, message })
                }
                ErrorKind::ArgumentConflict => {
                    CliError::Ops(OpsError::Rule { code: Code::InvalidParameterCombination, message })
                }
                _ => CliError::Usage(message),
            }
        }
    };
    Output::new(true).error(&error);
    ExitCode::from(error.exit_code())
}

/// What is wrong with a call, in one line: without clap's frame around it.
fn sentence(rendered: &str) -> String {
    let paragraph = rendered.trim_start_matches("error: ").split("\n\n").next().unwrap_or_default();
    paragraph.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The arguments that this program was called with.
fn given_arguments() -> impl Iterator<Item = OsString> {
    std::env::args_os().skip(1)
}

/// Where this program is.
fn this_program() -> std::io::Result<PathBuf> {
    std::env::current_exe()
}

/// The program.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return wrong_call(&error),
    };
    let output = Output::new(cli.global.json).of_something_made(commands::makes_something(&cli.command));
    let watcher = Arc::new(Watcher::new(cli.global.quiet));
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
