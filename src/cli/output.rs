//! Standard output: ids a line each, tables, or one JSON document.

use super::error::CliError;
use super::text;
use imgstore::io::outfile::check_stdout_limit;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::io::{self, Write};

/// Where answers go. What a command prints is held back until it is done: a command that fails half-way
/// leaves no half answer.
pub struct Output {
    json: bool,
    text: RefCell<String>,
    so_far: RefCell<Option<SoFar>>,
    /// Whether the answer can be had again, by the same command.
    is_repeatable: bool,
}

/// What was done before an error.
enum SoFar {
    Document(Value),
    Text(String),
}

impl Output {
    /// For people, or for machines.
    pub fn new(json: bool) -> Self {
        Self { json, text: RefCell::default(), so_far: RefCell::default(), is_repeatable: true }
    }

    /// The same, of a command that makes something: ids that standard output does not take go to standard error.
    #[must_use]
    pub fn of_something_made(self, is_made: bool) -> Self {
        Self { is_repeatable: !is_made, ..self }
    }

    /// Whether machines read it.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// The answer for machines, or the one for people.
    pub fn answer(&self, document: impl FnOnce() -> Value, text: impl FnOnce() -> String) {
        let answer = if self.json { format!("{}\n", plain_json(&document())) } else { text() };
        self.text.borrow_mut().push_str(&answer);
    }

    /// What a command did, though it ends with an error: it is told with that.
    pub fn so_far(&self, document: impl FnOnce() -> Value, text: impl FnOnce() -> String) {
        let told = if self.json { SoFar::Document(document()) } else { SoFar::Text(text()) };
        *self.so_far.borrow_mut() = Some(told);
    }

    /// Prints what was held back.
    pub fn finish(&self) -> Result<(), CliError> {
        self.print(self.text.take().as_bytes()).map_err(|e| match e.kind() {
            io::ErrorKind::BrokenPipe => CliError::ReaderGone,
            _ => CliError::Output(e),
        })
    }

    /// Prints to standard output; what cannot be had again to standard error, if that takes nothing.
    pub fn print(&self, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let mut out = io::stdout().lock();
        let written = check_stdout_limit(bytes.len()).and_then(|()| out.write_all(bytes));
        written.and_then(|()| out.flush()).inspect_err(|_| {
            if !self.is_repeatable {
                // Another host may have written it, and this may be a terminal.
                let _ = io::stderr().write_all(&text::without_controls(bytes));
            }
        })
    }

    /// An error: a document on standard output, with what was done before it; or a sentence on standard error.
    pub fn error(&self, error: &CliError) {
        let message = super::text::printable(&error.to_string());
        let so_far = self.so_far.take();
        // Nothing more can be done if standard output is closed, too.
        if self.json {
            let mut document = if let Some(SoFar::Document(done)) = so_far { done } else { json!({}) };
            document["error"] = json!({ "code": error.code(), "message": message });
            let is_done = self.print(format!("{}\n", plain_json(&document)).as_bytes()).is_ok();
            if !is_done && self.is_repeatable {
                let _ = writeln!(io::stderr(), "imgstore: {message}");
            }
        } else {
            if let Some(SoFar::Text(done)) = so_far {
                let _ = self.print(done.as_bytes());
            }
            let _ = writeln!(io::stderr(), "imgstore: {message}");
        }
    }
}

/// A document in which nothing controls a terminal: JSON lets more through than it does itself. The only control character of
/// what is printed is the end of a line.
pub fn plain_json(document: &Value) -> String {
    let is_plain = |c: char| c == '\n' || !(c.is_control() || text::is_reordering(c));
    let printed = format!("{document:#}");
    if printed.chars().all(is_plain) {
        return printed;
    }
    let escape = |c: char| if is_plain(c) { c.to_string() } else { format!("\\u{:04x}", u32::from(c)) };
    printed.chars().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_controls_no_terminal() {
        let document = json!({ "name": "a\u{9b}2J\u{7f}\u{202e}b\u{1b}c\nd" });
        let printed = plain_json(&document);
        assert!(printed.chars().all(|c| c == '\n' || (' '..='~').contains(&c)), "{printed}");
        assert_eq!(serde_json::from_str::<Value>(&printed).unwrap(), document);
    }
}
