//! The sweeper: scheduled changes. Ends subscriptions whose last day is over, gives notice of cards about to expire, reminds of
//! undecided requests, deletes tombstones, and reports documents that can never be processed.
//!
//! It only searches for what may be due, and hands it to the same [`Engine`] as commands; whether it is due is decided there,
//! under the same version guard. So any number of workers may sweep at the same time.

mod card_notices;
mod ends;
mod findings;
mod request_reminders;
mod search;
mod task_runner;

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::availability::Availability;
use super::engine::Engine;
use super::indexes::Indexes;
use crate::clock;
use crate::metrics;
use crate::store::indexes::Index;
use crate::store::{Collection, Store, StoreError};

use card_notices::CardNotices;
use ends::end_due;
use findings::{Findings, Reports};
use request_reminders::remind_due;
use search::Search;
use task_runner::{SweepError, TaskRunner};

/// The longest time between the start and the first sweep.
const FIRST_SWEEP_WITHIN: Duration = Duration::from_secs(1);
/// The time between two searches for what changes daily (card notices, reminders), or between two that read a whole index.
const RARELY: Duration = Duration::from_secs(3_600);
/// Below this sweep interval, each sweep makes these searches, too: somebody is waiting for the result.
const RARELY_IS_ALWAYS_BELOW: Duration = Duration::from_secs(60);

/// Searches for what is due, again and again.
#[derive(Debug)]
pub struct Sweeper {
    pub store: Store,
    pub availability: Availability,
    pub engine: Engine,
    /// The mean time between two sweeps.
    pub every: Duration,
    /// The largest batch, in tasks.
    pub batch_max: usize,
    /// Without its index, a search would read a whole collection.
    pub indexes: Indexes,
}

impl Sweeper {
    /// Sweeps until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let runner = TaskRunner { engine: self.engine.clone(), batch_max: self.batch_max, shutdown };
        tokio::join!(self.sweep_dates(&runner), self.sweep_daily(&runner));
    }

    #[allow(clippy::cast_precision_loss, reason = "exact for 285,000 years")]
    async fn sweep_dates(&self, runner: &TaskRunner) {
        let mut reports = Reports::new(&[Collection::Subscriptions]);
        let mut indexes = self.indexes.changes();
        let mut pause = random_below(self.every.min(FIRST_SWEEP_WITHIN));
        let mut expensive_at: HashMap<Search, Instant> = HashMap::new();
        while self.wait(pause, &mut indexes, &runner.shutdown).await {
            let mut is_complete = true;
            for search in Search::DATES {
                if !self.is_indexed(search) {
                    is_complete = false;
                    continue;
                }
                if search.is_expensive() {
                    if expensive_at.get(&search).is_some_and(|at| at.elapsed() < self.rarely()) {
                        continue;
                    }
                    expensive_at.insert(search, Instant::now());
                }
                match self.sweep(search, runner, &mut reports).await {
                    Ok(()) => {}
                    Err(SweepError::Stopping) => return,
                    // The database is unavailable: the other searches would fail, too.
                    Err(SweepError::Store(_)) => {
                        is_complete = false;
                        break;
                    }
                }
            }
            if is_complete && !reports.has_failed_search() {
                metrics::current().sweep_last_success.set(clock::now().timestamp_millis() as f64 / 1_000.0);
            }
            pause = around(self.every);
        }
    }

    async fn sweep_daily(&self, runner: &TaskRunner) {
        let mut reports = Reports::new(&[Collection::Organizations, Collection::Accounts]);
        let mut indexes = self.indexes.changes();
        let mut pause = random_below(self.rarely().min(FIRST_SWEEP_WITHIN));
        while self.wait(pause, &mut indexes, &runner.shutdown).await {
            let mut is_complete = true;
            for search in Search::DAILY {
                if !self.is_indexed(search) {
                    is_complete = false;
                    continue;
                }
                match self.sweep(search, runner, &mut reports).await {
                    Ok(()) => {}
                    Err(SweepError::Stopping) => return,
                    // The database is unavailable: the other search would fail, too.
                    Err(SweepError::Store(_)) => {
                        is_complete = false;
                        break;
                    }
                }
            }
            is_complete &= !reports.has_failed_search();
            pause = around(if is_complete { self.rarely() } else { self.every });
        }
    }

    /// The time between two searches that are made rarely.
    fn rarely(&self) -> Duration {
        if self.every < RARELY_IS_ALWAYS_BELOW { self.every } else { RARELY }
    }

    fn is_indexed(&self, search: Search) -> bool {
        search.indexes().into_iter().all(|(collection, name)| self.indexes.has(collection, name))
    }

    /// Waits for `pause` or until the missing indexes change, then until the clock may be used. Returns false on `shutdown`.
    async fn wait(
        &self,
        pause: Duration,
        indexes: &mut watch::Receiver<Vec<Index>>,
        shutdown: &CancellationToken,
    ) -> bool {
        let waiting = async {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                // It fails only without a sender, and the sender is in `self.indexes`.
                Ok(()) = indexes.changed() => {}
            }
            self.availability.clock().wait_until_usable().await;
        };
        shutdown.run_until_cancelled(waiting).await.is_some()
    }

    /// Makes one search and processes what it finds. A failure of its own is reported, and is not an error.
    ///
    /// # Errors
    /// When the worker stops, or the database is unavailable.
    async fn sweep(&self, search: Search, runner: &TaskRunner, reports: &mut Reports) -> Result<(), SweepError> {
        let mut findings = Findings::default();
        match self.try_sweep(search, runner, &mut findings).await {
            Ok(()) => reports.succeeded(search, findings),
            Err(SweepError::Stopping) => return Err(SweepError::Stopping),
            Err(SweepError::Store(error)) => {
                let may_affect_all = matches!(error, StoreError::Unavailable(_) | StoreError::Denied(_));
                if may_affect_all && self.availability.is_unavailable().await {
                    return Err(SweepError::Store(error));
                }
                if matches!(error, StoreError::Permanent(_)) {
                    self.indexes.check_again();
                }
                reports.failed(search, &error);
            }
        }
        Ok(())
    }

    async fn try_sweep(&self, search: Search, runner: &TaskRunner, findings: &mut Findings) -> Result<(), SweepError> {
        match search {
            Search::Ends(kind) => end_due(&self.store, runner, kind, findings).await?,
            Search::Faults(fault) => findings.add_unworkable(self.store.faulty_subscriptions(fault).await?),
            Search::Tombstones => {
                let deleted = self.store.delete_tombstones(runner.now()).await?;
                if deleted > 0 {
                    tracing::info!(deleted, "deleted tombstones of removed subscriptions");
                }
            }
            Search::Cards => {
                let notices = CardNotices { store: &self.store, indexes: &self.indexes, runner };
                notices.give_due(findings).await?;
            }
            Search::PendingRequests => remind_due(&self.store, runner, findings).await?,
        }
        Ok(())
    }
}

/// A random duration below `max`.
pub(super) fn random_below(max: Duration) -> Duration {
    max.mul_f64(fastrand::f64())
}

/// A random duration from 50 % to 150 % of `mean`: workers that started together do not stay in step.
fn around(mean: Duration) -> Duration {
    mean / 2 + random_below(mean)
}
