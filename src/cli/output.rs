//! Standard output: ids a line each, tables, or one JSON document.

use super::error::CliError;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::io::{self, Write};

/// Where answers go. What a command prints is held back until it is done: a command that fails half-way
/// leaves no half answer.
pub struct Output {
    json: bool,
    text: RefCell<String>,
}

impl Output {
    /// For people, or for machines.
    pub fn new(json: bool) -> Self {
        Self { json, text: RefCell::default() }
    }

    /// Whether machines read it.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// The answer for machines, or the one for people.
    pub fn answer(&self, document: impl FnOnce() -> Value, text: impl FnOnce() -> String) {
        let answer = if self.json { format!("{:#}\n", document()) } else { text() };
        self.text.borrow_mut().push_str(&answer);
    }

    /// Prints what was held back.
    pub fn finish(&self) -> Result<(), CliError> {
        let text = self.text.take();
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| match e.kind() {
            io::ErrorKind::BrokenPipe => CliError::ReaderGone,
            _ => CliError::Output(e),
        })
    }

    /// An error: a document on standard output, or a sentence on standard error.
    pub fn error(&self, error: &CliError) {
        let message = super::text::printable(&error.to_string());
        if self.json {
            let document = json!({ "error": { "code": error.code(), "message": message } });
            // Nothing more can be done if standard output is closed, too.
            let _ = writeln!(io::stdout(), "{document:#}");
        } else {
            let _ = writeln!(io::stderr(), "imgstore: {message}");
        }
    }
}
