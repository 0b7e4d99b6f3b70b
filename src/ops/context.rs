//! What every verb is told besides its own arguments.

use super::error::{Code, OpsError};
use crate::chunk::CHUNKS_AT_ONCE;
use crate::model::account::AccountId;
use crate::model::catalog::Catalog;
use crate::model::op::Op;
use crate::model::units::{BLOCK_BYTES, TimeMs};
use crate::region::Region;
use rayon::ThreadPool;
use rayon::prelude::*;
use std::time::{Duration, Instant};

/// Default budget of a pipeline's memory, in bytes.
pub const MEMORY_BYTES_DEFAULT: u64 = 512 << 20;

/// Who asks, with which means, and who watches.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// On whose behalf.
    pub account: AccountId,
    /// When: the time that the request's decisions are made by and that what it makes bears (but for what a long operation does at its
    /// end, as condemning packs: then that time).
    pub now_ms: TimeMs,
    /// Whether only to say if the request would succeed: it then ends in EC2's `DryRunOperation`, or in the
    /// error that it would end in, and changes nothing.
    pub dry_run: bool,
    /// Threads for pure computation. Nothing blocks in it.
    pub pool: &'a ThreadPool,
    /// Budget of the pipelines' memory in bytes.
    pub memory_bytes: u64,
    /// Who watches.
    pub progress: &'a dyn Progress,
}

impl Context<'_> {
    /// Bytes that are fetched or looked for at a time: a whole number of blocks, 1 to 8 MiB.
    pub fn buffer_bytes(&self) -> usize {
        let bytes = (self.memory_bytes / 64).clamp(1 << 20, 8 << 20);
        usize::try_from(bytes).unwrap_or(1 << 20) / BLOCK_BYTES * BLOCK_BYTES
    }

    /// Bytes that are looked up and encoded, or fetched, together, at most [`Context::buffer_bytes`]: so few that what is under
    /// way fits the processor's cache, or each stage waits for memory; so many that each thread of the pool has some chunks.
    pub fn piece_bytes(&self) -> usize {
        const MIN: usize = 2 << 20;
        const OF_THREAD: usize = 256 << 10;
        self.buffer_bytes().min((OF_THREAD * self.pool.current_num_threads()).max(MIN))
    }

    /// The same later by the whole minutes since something `began`: what a long operation does at its end is not on record with
    /// the time at which it was asked for.
    pub(super) fn after(&self, began: Instant) -> Self {
        const MINUTE_MS: u64 = 60_000;
        let minutes = began.elapsed().as_secs() / 60;
        Self { now_ms: self.now_ms.saturating_add(minutes.saturating_mul(MINUTE_MS)), ..*self }
    }

    /// What `work` gives for each of so many chunks, in their order, on all threads of the pool. The first error ends it.
    pub fn for_each_chunk<T: Send>(
        &self,
        count: usize,
        work: impl Fn(usize) -> Result<T, OpsError> + Sync + Send,
    ) -> Result<Vec<T>, OpsError> {
        let chunks = (0..count).into_par_iter().with_max_len(CHUNKS_AT_ONCE);
        self.pool.install(|| chunks.map(work).collect())
    }

    /// Ends a dry run, once everything was checked that can be checked beforehand.
    pub fn end_dry_run(&self) -> Result<(), OpsError> {
        let why = "Request would have succeeded, but DryRun flag is set.";
        if self.dry_run { Err(OpsError::rule(Code::DryRun, why)) } else { Ok(()) }
    }

    /// The same of what puts something on record in a region: refused where that would be, for the log's sake.
    pub(super) fn end_dry_run_in(&self, region: &Region) -> Result<(), OpsError> {
        if self.dry_run {
            region.check_appendable()?;
        }
        self.end_dry_run()
    }

    /// [`Region::commit`] for the caller. A dry run makes the operations, and ends there.
    pub(super) fn commit<T>(
        &self,
        region: &Region,
        mut build: impl FnMut(&Catalog) -> Result<(Vec<Op>, T), OpsError>,
    ) -> Result<T, OpsError> {
        if self.dry_run {
            build(&region.catalog()?)?;
            self.end_dry_run_in(region)?;
        }
        region.commit(self.account, build)
    }

    /// Waits until so many bytes since `started` are no more than so many a second.
    pub(super) fn keep_pace(
        &self,
        started: Instant,
        done_bytes: u64,
        bytes_per_second: Option<u64>,
    ) -> Result<(), OpsError> {
        self.keep_pace_while(started, done_bytes, bytes_per_second, || true)
    }

    /// The same, as long as it is asked for.
    pub(super) fn keep_pace_while(
        &self,
        started: Instant,
        done_bytes: u64,
        bytes_per_second: Option<u64>,
        goes_on: impl Fn() -> bool,
    ) -> Result<(), OpsError> {
        const NAP: Duration = Duration::from_millis(100);
        let Some(rate) = bytes_per_second else { return Ok(()) };
        #[expect(clippy::cast_precision_loss, reason = "a waiting time")]
        let due =
            Duration::try_from_secs_f64(done_bytes as f64 / rate.max(1) as f64).unwrap_or(Duration::MAX);
        while let Some(left) = due.checked_sub(started.elapsed()).filter(|left| !left.is_zero() && goes_on())
        {
            self.check_cancelled()?;
            std::thread::sleep(left.min(NAP));
        }
        Ok(())
    }

    /// An error if the watcher wants the operation to stop.
    pub fn check_cancelled(&self) -> Result<(), OpsError> {
        if self.progress.is_cancelled() { Err(OpsError::Interrupted) } else { Ok(()) }
    }
}

/// Who watches an operation. Called from several threads.
pub trait Progress: Send + Sync {
    /// A phase of `total_bytes` begins.
    fn begin(&self, phase: &'static str, total_bytes: u64);

    /// So many bytes more of the phase are done.
    fn advance(&self, bytes: u64);

    /// Something that the user should know and that is no error.
    fn note(&self, message: &str);

    /// As [`Progress::note`], of what nobody else will tell of: also for those who want quiet.
    fn warn(&self, message: &str) {
        self.note(message);
    }

    /// Whether the operation shall stop as soon as it can, leaving nothing half-made.
    fn is_cancelled(&self) -> bool;
}

/// Watches nothing and never stops anything.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unwatched;

impl Progress for Unwatched {
    fn begin(&self, _phase: &'static str, _total_bytes: u64) {}
    fn advance(&self, _bytes: u64) {}
    fn note(&self, _message: &str) {}
    fn is_cancelled(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_done_later_is_on_record_as_later() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let context = Context {
            account: "000000000001".parse().unwrap(),
            now_ms: 1_000_000,
            dry_run: false,
            pool: &pool,
            memory_bytes: 0,
            progress: &Unwatched,
        };
        let now = Instant::now();
        assert_eq!(context.after(now).now_ms, 1_000_000);
        let ago = now.checked_sub(Duration::from_secs(3 * 60 + 5)).unwrap();
        assert_eq!(context.after(ago).now_ms, 1_000_000 + 3 * 60_000);
    }
}
