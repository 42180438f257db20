//! The indexes of a running worker: which are missing, and the task that builds them in the background.
//!
//! Each search checks whether its own index exists ([`Indexes::has`]). So an index that is missing, or cannot be built, stops
//! only the searches that need it. Which indexes there should be is in the store.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::advice;
use crate::backoff::Backoff;
use crate::health::ReadyHandle;
use crate::outage::Outage;
use crate::store::indexes::Index;
use crate::store::{Collection, Store, StoreError};

/// The delays, minimum and maximum, before missing indexes are built again.
const RETRY_DELAYS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How often to check that all indexes still exist. Some searches have no hint: without their index, MongoDB silently reads the
/// whole collection.
const CHECK_EVERY: Duration = Duration::from_secs(3_600);

/// How soon to build an index again that only people search with.
const SUPPORT_RETRY: Duration = Duration::from_secs(60);

/// Which indexes are missing. Clones share one list.
#[derive(Clone, Debug)]
pub struct Indexes(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    missing: watch::Sender<Vec<Index>>,
    check: Notify,
    /// Of building the indexes that only people search with: a worker works without them, and is ready.
    support_outage: Outage,
}

/// What could not be built.
#[derive(Debug, Default)]
struct Built {
    /// Why the first index that searches of the worker need could not be built.
    problem: Option<String>,
    /// Whether one that only people search with could not be built, for another reason than a missing right.
    support_failed: bool,
}

impl Indexes {
    /// All exist except `missing`.
    #[must_use]
    pub fn new(missing: Vec<Index>) -> Self {
        Self(Arc::new(Shared {
            missing: watch::Sender::new(missing),
            check: Notify::new(),
            support_outage: Outage::default(),
        }))
    }

    /// Whether an index exists, as of the last check.
    #[must_use]
    pub fn has(&self, collection: Collection, name: &str) -> bool {
        !self.0.missing.borrow().iter().any(|index| index.collection == collection.as_str() && index.name() == name)
    }

    /// Waits until an index exists, as of the last check.
    pub async fn wait_for(&self, collection: &str, name: &str) {
        let is_missing = |index: &Index| index.collection == collection && index.name() == name;
        // Fails only if this is dropped.
        drop(self.changes().wait_for(|missing| !missing.iter().any(is_missing)).await);
    }

    /// A receiver that is notified whenever the list of missing indexes changes.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Vec<Index>> {
        self.0.missing.subscribe()
    }

    /// Requests a check, because MongoDB rejected a search: its index may have been dropped.
    pub fn check_again(&self) {
        self.0.check.notify_one();
    }

    /// Builds missing indexes until `stop`, however long that takes, and checks again on request. While an index cannot be
    /// built, `ready` is not ready and says why. An index that is being built does not affect it.
    pub async fn keep(self, store: Store, ready: ReadyHandle, stop: CancellationToken) {
        let keeping = async {
            ready.ready();
            loop {
                let pause = self.build(&store, &ready).await;
                ready.ready();
                tokio::select! {
                    () = self.0.check.notified() => {}
                    () = sleep(pause) => {}
                }
            }
        };
        // Never ends by itself.
        stop.run_until_cancelled(keeping).await;
    }

    /// Builds indexes until none is missing but, at most, some that only people search with. Returns when to check again.
    async fn build(&self, store: &Store, ready: &ReadyHandle) -> Duration {
        let mut backoff = Backoff::new(RETRY_DELAYS);
        let mut reported = None;
        loop {
            let problem = match self.try_build(store).await {
                Ok(Built { problem: None, support_failed: true }) => return SUPPORT_RETRY,
                Ok(Built { problem: None, support_failed: false }) => return CHECK_EVERY,
                Ok(Built { problem: Some(problem), .. }) => problem,
                // `/readyz` reports that as `mongodb`.
                Err(StoreError::Unavailable(_) | StoreError::Denied(_) | StoreError::TimedOut) => {
                    sleep(Backoff::new(RETRY_DELAYS).next_delay()).await;
                    continue;
                }
                Err(StoreError::Permanent(error)) => error,
            };
            let problem = format!("indexes are missing and cannot be built: {problem}");
            ready.not_ready(&problem);
            if reported.as_ref() != Some(&problem) {
                tracing::warn!("{problem}; retrying; searches that need them are paused ({})", advice::MISSING_INDEXES);
                reported = Some(problem);
            }
            sleep(backoff.next_delay()).await;
        }
    }

    /// Tries to build each missing index.
    ///
    /// # Errors
    /// When the missing indexes cannot be determined.
    async fn try_build(&self, store: &Store) -> Result<Built, StoreError> {
        let missing = store.missing_indexes().await?;
        self.0.missing.send_if_modified(|known| {
            let is_changed = *known != missing;
            known.clone_from(&missing);
            is_changed
        });
        let mut built = Built::default();
        let mut support_outage = false;
        for index in missing {
            tracing::info!(%index, "building an index");
            match store.create_index(&index).await {
                Ok(()) => {
                    tracing::info!(%index, "built an index");
                    self.0.missing.send_modify(|missing| missing.retain(|other| *other != index));
                }
                Err(error) if index.is_for_support => {
                    support_outage = true;
                    // A right does not come by itself, and each attempt is in MongoDB's log.
                    built.support_failed |= !matches!(error, StoreError::Denied(_));
                    let error = error.reason();
                    if self.0.support_outage.failed(&error) {
                        tracing::warn!(%index, error, "cannot build an index that only `offramp find` and `offramp show` need");
                    }
                }
                Err(error) => {
                    built.problem.get_or_insert_with(|| format!("{index}: {}", error.reason()));
                }
            }
        }
        if !support_outage {
            self.0.support_outage.ended();
        }
        Ok(built)
    }
}
