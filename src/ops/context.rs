//! What every verb is told besides its own arguments.

use super::error::OpsError;
use crate::model::account::AccountId;
use crate::model::units::BLOCK_BYTES;
use rayon::ThreadPool;

/// Default budget of a pipeline's memory, in bytes.
pub const MEMORY_BYTES_DEFAULT: u64 = 512 << 20;

/// Who asks, with which means, and who watches.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// On whose behalf.
    pub account: AccountId,
    /// Threads for pure computation. Nothing blocks in it.
    pub pool: &'a ThreadPool,
    /// Budget of the pipelines' memory in bytes.
    pub memory_bytes: u64,
    /// Who watches.
    pub progress: &'a dyn Progress,
}

impl Context<'_> {
    /// Bytes of one buffer that goes through a pipeline: a whole number of blocks, 1 to 8 MiB.
    pub fn buffer_bytes(&self) -> usize {
        let bytes = (self.memory_bytes / 64).clamp(1 << 20, 8 << 20);
        usize::try_from(bytes).unwrap_or(1 << 20) / BLOCK_BYTES * BLOCK_BYTES
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
