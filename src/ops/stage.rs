//! Stages of a pipeline: threads with names, and how they end.

use super::error::OpsError;
use std::thread::{self, Scope, ScopedJoinHandle};

/// A stage that runs.
pub(super) type Stage<'scope, T = ()> = ScopedJoinHandle<'scope, Result<T, OpsError>>;

/// Starts a stage.
pub(super) fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &str,
    run: impl FnOnce() -> Result<T, OpsError> + Send + 'scope,
) -> Result<Stage<'scope, T>, OpsError> {
    thread::Builder::new().name(name.into()).spawn_scoped(scope, run).map_err(|_| OpsError::WorkerGone)
}

/// Waits for all stages, the first of the pipeline first. If the last stage's own `result` is a failure, that is the reason:
/// the others may have met another while they came to their ends. Else the first that ended badly has it.
pub(super) fn join_all(stages: Vec<Stage<'_>>, result: Result<(), OpsError>) -> Result<(), OpsError> {
    let join = |stage: Stage<'_>| stage.join().unwrap_or(Err(OpsError::WorkerGone));
    let ended: Vec<_> = stages.into_iter().map(join).collect();
    match result {
        // It only saw that nothing more came.
        Ok(()) | Err(OpsError::NotWhole { .. } | OpsError::WorkerGone) => {
            ended.into_iter().chain([result]).collect()
        }
        Err(error) => Err(error),
    }
}

/// The end of a pipeline whose stages all say that they are done: whether everything came to the last one. A stage that
/// ended early without a reason must not make a short disk.
pub(super) fn check_whole(what: &'static str, expected: u64, found: u64) -> Result<(), OpsError> {
    if found == expected { Ok(()) } else { Err(OpsError::NotWhole { what, expected, found }) }
}
