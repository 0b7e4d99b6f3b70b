//! Stages of a pipeline: threads with names, and how they end.

use super::error::OpsError;
use std::thread::{self, Scope, ScopedJoinHandle};

/// A stage that runs.
pub(super) type Stage<'scope> = ScopedJoinHandle<'scope, Result<(), OpsError>>;

/// Starts a stage.
pub(super) fn spawn<'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &str,
    run: impl FnOnce() -> Result<(), OpsError> + Send + 'scope,
) -> Result<Stage<'scope>, OpsError> {
    thread::Builder::new().name(name.into()).spawn_scoped(scope, run).map_err(|_| OpsError::WorkerGone)
}

/// Waits for all stages, the first of the pipeline first. The first that ended badly has the reason; the others, and then the
/// last stage's own `result`, only saw their neighbour go.
pub(super) fn join_all(stages: Vec<Stage<'_>>, result: Result<(), OpsError>) -> Result<(), OpsError> {
    let join = |stage: Stage<'_>| stage.join().unwrap_or(Err(OpsError::WorkerGone));
    let ended: Vec<_> = stages.into_iter().map(join).collect();
    ended.into_iter().chain([result]).collect()
}

/// The end of a pipeline whose stages all say that they are done: whether everything came to the last one. A stage that
/// ended early without a reason must not make a short disk.
pub(super) fn check_whole(what: &'static str, expected: u64, found: u64) -> Result<(), OpsError> {
    if found == expected { Ok(()) } else { Err(OpsError::NotWhole { what, expected, found }) }
}
