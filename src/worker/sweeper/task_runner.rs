//! Runs the tasks of a sweep through the engine, in batches.

use chrono::{DateTime, Utc};
use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;

use crate::metrics;
use crate::metrics::labels::ScheduledChange;
use crate::store::StoreError;
use crate::traces::Span;
use crate::worker::engine::{Decided, Engine, Interruption, Processed};
use offramp_domain::unit_of_work::{Task, TaskOutcome};

/// How many batches are decided concurrently. The database processes one batch on one processor, and at midnight everything is
/// due at once.
const CONCURRENT_BATCHES: usize = 2;

/// Why a sweep ended early.
pub(super) enum SweepError {
    Stopping,
    Store(StoreError),
}

impl From<Interruption> for SweepError {
    fn from(interruption: Interruption) -> Self {
        match interruption {
            Interruption::Stopping => Self::Stopping,
            Interruption::DatabaseUnavailable(error) => Self::Store(StoreError::Unavailable(error)),
        }
    }
}

impl From<StoreError> for SweepError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Decides tasks through the engine.
#[derive(Debug)]
pub(super) struct TaskRunner {
    pub(super) engine: Engine,
    /// The largest batch, in tasks.
    pub(super) batch_max: usize,
    pub(super) shutdown: CancellationToken,
}

impl TaskRunner {
    /// MongoDB's time, by which tasks are decided.
    pub(super) fn now(&self) -> DateTime<Utc> {
        self.engine.availability.clock().now()
    }

    /// How many tasks one call of [`Self::run`] decides concurrently.
    pub(super) fn concurrent_tasks(&self) -> usize {
        self.batch_max * CONCURRENT_BATCHES
    }

    /// Decides tasks and returns their results in the same order. Each batch is completed, whatever happens to the others.
    pub(super) async fn run(&self, kind: ScheduledChange, tasks: &[Task]) -> Result<Vec<Processed>, SweepError> {
        let batches = tasks.chunks(self.batch_max).map(|batch| async move {
            let batch: Vec<&Task> = batch.iter().collect();
            self.engine.run(&batch, &Span::sweep(kind.into(), batch.len()), &self.shutdown).await
        });
        let decided: Result<Vec<Vec<Decided>>, Interruption> = join_all(batches).await.into_iter().collect();
        let processed: Vec<Processed> = decided?.into_iter().flatten().map(|decided| decided.processed).collect();
        let applied =
            processed.iter().filter(|processed| **processed == Processed::Decided(TaskOutcome::Applied)).count();
        metrics::current().scheduled_changes.of((kind,)).increment(applied as u64);
        if self.shutdown.is_cancelled() { Err(SweepError::Stopping) } else { Ok(processed) }
    }
}
