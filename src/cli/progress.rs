//! Progress: a bar on a terminal, plain lines elsewhere, nothing with `--quiet` or in the first second.

use super::text;
use imgstore::io::os::is_ignored;
use imgstore::ops::context::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What is faster than this needs no progress.
const QUIET_FIRST: Duration = Duration::from_secs(1);
/// Between plain lines.
const LINE_INTERVAL: Duration = Duration::from_secs(5);
const BAR: &str = "{prefix:>9} [{wide_bar}] {bytes} of {total_bytes}  {bytes_per_sec}  {eta} left";

/// Watches a command.
pub struct Watcher {
    quiet: bool,
    is_terminal: bool,
    cancelled: Arc<AtomicBool>,
    phase: Mutex<Option<Phase>>,
}

struct Phase {
    name: &'static str,
    total: u64,
    done: u64,
    started: Instant,
    last_line: Instant,
    bar: Option<ProgressBar>,
}

impl Watcher {
    /// A watcher that shows nothing if `quiet`.
    pub fn new(quiet: bool) -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        Self { quiet, is_terminal, cancelled: Arc::default(), phase: Mutex::default() }
    }

    /// Lets Ctrl-C, SIGTERM and SIGHUP stop the command in an orderly way; the second one ends it at once. What whoever started it
    /// has it ignore, as `nohup` does, it ignores.
    pub fn stop_on_signals(&self) {
        let end = |signal| {
            // In this order: the first one finds the flag unset.
            flag::register_conditional_shutdown(
                signal,
                super::error::INTERRUPTED.into(),
                self.cancelled.clone(),
            )?;
            flag::register(signal, self.cancelled.clone())
        };
        let mut ours = [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|signal| !is_ignored(*signal));
        if ours.any(|signal| end(signal).is_err()) {
            self.note("signals cannot be handled here; Ctrl-C ends the command at once");
        }
    }

    /// Becomes true once the command is to stop.
    pub fn cancelled(&self) -> Arc<AtomicBool> {
        self.cancelled.clone()
    }

    /// Whether only what matters is to be told.
    pub fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = self.phase().take().and_then(|phase| phase.bar) {
            bar.finish_and_clear();
        }
    }

    /// Bytes of the phase under way, if there is one.
    pub fn planned_bytes(&self) -> Option<u64> {
        self.phase().as_ref().map(|phase| phase.total)
    }

    fn phase(&self) -> MutexGuard<'_, Option<Phase>> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Phase {
    fn show_bar(&mut self) {
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::with_draw_target(Some(self.total), ProgressDrawTarget::stderr_with_hz(10));
            if let Ok(style) = ProgressStyle::with_template(BAR) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.set_prefix(self.name);
            bar.with_elapsed(self.started.elapsed())
        });
        bar.set_position(self.done);
    }

    fn show_line(&mut self) {
        if self.last_line.elapsed() < LINE_INTERVAL {
            return;
        }
        self.last_line = Instant::now();
        let seconds = self.started.elapsed().as_secs_f64();
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "for display"
        )]
        let (rate, eta) = {
            let rate = self.done as f64 / seconds;
            (rate as u64, (self.total.saturating_sub(self.done) as f64 / rate.max(1.0)) as u64)
        };
        let line = format!(
            "{}: {} of {}, {}, {}/s, {eta} s left\n",
            self.name,
            text::bytes(self.done),
            text::bytes(self.total),
            text::percent(self.done, self.total),
            text::bytes(rate)
        );
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
}

/// Tells, even those who want quiet, of what nobody should miss.
pub fn warn(message: &str) {
    let line = format!("imgstore: {}\n", text::printable(message));
    let _ = std::io::stderr().write_all(line.as_bytes());
}

impl Progress for Watcher {
    fn begin(&self, phase: &'static str, total_bytes: u64) {
        self.finish();
        let now = Instant::now();
        let phase =
            Phase { name: phase, total: total_bytes, done: 0, started: now, last_line: now, bar: None };
        *self.phase() = Some(phase);
    }

    fn advance(&self, bytes: u64) {
        let mut phase = self.phase();
        let Some(phase) = phase.as_mut() else { return };
        phase.done += bytes;
        if self.quiet || phase.started.elapsed() < QUIET_FIRST {
            return;
        }
        if self.is_terminal { phase.show_bar() } else { phase.show_line() }
    }

    fn note(&self, message: &str) {
        if !self.quiet {
            self.warn(message);
        }
    }

    fn warn(&self, message: &str) {
        // A line of its own; what goes on is shown again after it.
        if let Some(bar) = self.phase().as_mut().and_then(|phase| phase.bar.take()) {
            bar.finish_and_clear();
        }
        warn(message);
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst)
    }
}
