//! The indexes of a running worker: which are missing, and the task that builds them in the background.
//!
//! Each question asks whether its own index exists ([`Indexes::has`]). So a missing index, or one that cannot be built, stops
//! the questions that use it and nothing else.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::http::ReadyHandle;
use crate::store::inspect::Index;
use crate::store::{Collection, Store, StoreError};

/// How long to wait before missing indexes are tried again: from the first to the longest, see [`Backoff`].
const RETRY_EVERY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How often to check that all indexes still exist. Some questions have no hint, so MongoDB answers them without their index
/// too, by reading the whole collection.
const CHECK_EVERY: Duration = Duration::from_secs(3_600);

/// Which indexes are missing. Clones share one list.
#[derive(Clone, Debug)]
pub struct Indexes(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    missing: watch::Sender<Vec<Index>>,
    check: Notify,
}

impl Indexes {
    /// All exist, except for `missing`.
    #[must_use]
    pub fn new(missing: Vec<Index>) -> Self {
        Self(Arc::new(Shared { missing: watch::Sender::new(missing), check: Notify::new() }))
    }

    /// Whether an index exists, as far as is known.
    #[must_use]
    pub fn has(&self, collection: Collection, name: &str) -> bool {
        !self.0.missing.borrow().iter().any(|index| index.collection == collection && index.name() == name)
    }

    /// Is told whenever the list of missing indexes changes.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Vec<Index>> {
        self.0.missing.subscribe()
    }

    /// Asks for a check: MongoDB has refused a question, perhaps because its index was dropped.
    pub fn check_again(&self) {
        self.0.check.notify_one();
    }

    /// Builds what is missing, however long that takes, and checks again when it is asked to. `ready` says why an index cannot
    /// be built, from the first failed attempt to the success. An index that is being built makes nobody unready.
    pub async fn keep(self, store: Store, ready: ReadyHandle, stop: CancellationToken) {
        let keeping = async {
            ready.ready();
            loop {
                self.build(&store, &ready).await;
                ready.ready();
                tokio::select! {
                    () = self.0.check.notified() => {}
                    () = sleep(CHECK_EVERY) => {}
                }
            }
        };
        // Never ends by itself.
        stop.run_until_cancelled(keeping).await;
    }

    /// Returns when no index is missing.
    async fn build(&self, store: &Store, ready: &ReadyHandle) {
        let mut backoff = Backoff::new(RETRY_EVERY);
        let mut reported = None;
        loop {
            let problem = match self.try_build(store).await {
                Ok(None) => return,
                Ok(Some(problem)) => problem,
                // The component "mongodb" of `/readyz` says so.
                Err(StoreError::Unavailable(_) | StoreError::TimedOut) => {
                    sleep(Backoff::new(RETRY_EVERY).next_delay()).await;
                    continue;
                }
                Err(StoreError::Refused(error)) => error,
            };
            let problem = format!("indexes are missing and cannot be built: {problem}");
            ready.not_ready(&problem);
            if reported.as_ref() != Some(&problem) {
                tracing::warn!(
                    "{problem}; retrying; what needs them is not processed until then (`offramp init` builds them)"
                );
                reported = Some(problem);
            }
            sleep(backoff.next_delay()).await;
        }
    }

    /// Tries to build each missing index. Returns why the first of those that cannot be built cannot.
    ///
    /// # Errors
    /// When it cannot be found out which are missing.
    async fn try_build(&self, store: &Store) -> Result<Option<String>, StoreError> {
        let missing = store.missing_indexes().await?;
        self.0.missing.send_if_modified(|known| {
            let is_other = *known != missing;
            known.clone_from(&missing);
            is_other
        });
        let mut problem = None;
        for index in missing {
            tracing::info!(%index, "building an index");
            match store.create_index(&index).await {
                Ok(()) => {
                    tracing::info!(%index, "built an index");
                    self.0.missing.send_modify(|missing| missing.retain(|other| *other != index));
                }
                Err(error) => {
                    problem.get_or_insert_with(|| format!("{index}: {}", error.reason()));
                }
            }
        }
        Ok(problem)
    }
}
