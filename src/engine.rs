//! Load many → fold → commit many: how tasks become changes, whether they come from a queue or from the calendar.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::clock;
use crate::domain::command::CommandBody;
use crate::domain::fold::{Task, Verdict};
use crate::http::ReadyHandle;
use crate::outbox::Outbox;
use crate::store::commit::{self, Committed};
use crate::store::outbox::Lease;
use crate::store::{Collection, Need, Store, StoreError};

/// How often a document that others keep changing is read again before its tasks count as failed.
const ROUNDS_MAX: usize = 20;
/// How long to wait between two looks whether the database is back: from the first to the longest.
const PROBE_EVERY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));

/// Decides tasks and writes what they change.
#[derive(Clone, Debug)]
pub struct Engine {
    store: Store,
    outbox: Outbox,
    source: Arc<str>,
    lease: Duration,
    /// Held by the one that looks whether the database is back.
    probe: Arc<Mutex<ReadyHandle>>,
}

/// What became of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settled {
    /// It was decided, and what it changes is on a majority of the servers.
    Decided(Verdict),
    /// It could not be written, and the others are not affected. The sentence says why.
    Failed(String),
}

/// The program is stopping, so the work was given up before it was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped;

impl Engine {
    /// `source` is the `source` of events; an outbox entry belongs to this process for `lease`; `ready` is told whether the
    /// database answers.
    #[must_use]
    pub fn new(store: Store, outbox: Outbox, source: &str, lease: Duration, ready: ReadyHandle) -> Self {
        Self { store, outbox, source: source.into(), lease, probe: Arc::new(Mutex::new(ready)) }
    }

    /// Decides tasks in order and writes what they change, waiting for the database where it is away. The answers are in the
    /// tasks' order.
    ///
    /// # Errors
    /// [`Stopped`] when the program stops while the database is away. Whether the tasks were applied is then unknown; deciding
    /// them again is safe.
    pub async fn run(&self, tasks: &[&Task], shutdown: &CancellationToken) -> Result<Vec<Settled>, Stopped> {
        loop {
            match self.try_run(tasks).await {
                Ok(settled) => return Ok(settled),
                Err(StoreError::Refused(error)) => return Ok(vec![Settled::Failed(error); tasks.len()]),
                Err(StoreError::Unavailable(error)) => self.wait_for_database(&error, shutdown).await?,
            }
        }
    }

    async fn try_run(&self, tasks: &[&Task]) -> Result<Vec<Settled>, StoreError> {
        let mut settled = vec![Settled::Failed("others kept changing the document".to_owned()); tasks.len()];
        let mut pending: Vec<usize> = (0..tasks.len()).collect();
        for _ in 0..ROUNDS_MAX {
            if pending.is_empty() {
                break;
            }
            let mut world = self.store.load(&need(pending.iter().map(|&index| tasks[index]))).await?;
            let now = clock::now();
            for &index in &pending {
                settled[index] = Settled::Decided(world.fold(tasks[index], now));
            }

            let lease = Lease { holder: Uuid::new_v4(), until: now + self.lease };
            let updates = commit::updates(&world, &lease, &self.source, now)?;
            let committed = self.store.commit(&updates).await?;

            let mut lost = HashSet::new();
            let mut leased = Vec::new();
            for (update, committed) in updates.into_iter().zip(committed) {
                match committed {
                    Committed::Written => leased.extend(update.into_leased()),
                    Committed::Lost => drop(lost.insert((update.collection, update.id))),
                    Committed::Refused(error) => {
                        let error = format!("{} {}: {error}", update.collection.as_str(), update.id);
                        for &index in
                            pending.iter().filter(|&&index| document(tasks[index]) == (update.collection, &update.id))
                        {
                            settled[index] = Settled::Failed(error.clone());
                        }
                    }
                }
            }
            self.outbox.offer(leased).await;
            // Whatever was decided about a document that somebody else has changed meanwhile is decided again.
            pending.retain(|&index| {
                let (collection, id) = document(tasks[index]);
                lost.contains(&(collection, id.to_owned()))
            });
        }
        for index in pending {
            settled[index] = Settled::Failed("others kept changing the document".to_owned());
        }
        Ok(settled)
    }

    /// Waits until the database answers. One lane at a time asks; the others wait for what it hears.
    async fn wait_for_database(&self, error: &str, shutdown: &CancellationToken) -> Result<(), Stopped> {
        let waiting = async {
            let ready = self.probe.lock().await;
            let (first, longest) = PROBE_EVERY;
            let delays = ExponentialBuilder::default()
                .with_min_delay(first)
                .with_max_delay(longest)
                .without_max_times()
                .with_jitter()
                .build();
            for delay in delays {
                match self.store.ping().await {
                    Ok(()) => break,
                    Err(probe) => {
                        tracing::warn!(%error, %probe, "the database is away; lanes are paused");
                        ready.not_ready(probe.to_string());
                    }
                }
                tokio::time::sleep(delay).await;
            }
            ready.ready();
        };
        tokio::select! {
            () = waiting => Ok(()),
            () = shutdown.cancelled() => Err(Stopped),
        }
    }
}

/// The documents that tasks need.
fn need<'a>(tasks: impl Iterator<Item = &'a Task>) -> Need {
    let mut need = Need::default();
    for task in tasks {
        match task {
            Task::Command(command) => {
                need.organizations.insert(command.organization_id().clone());
                match &command.body {
                    CommandBody::Subscription(data) => drop(need.subscriptions.insert(data.subscription_id().clone())),
                    CommandBody::CardExpiry(data) => drop(need.accounts.insert(data.account_id.clone())),
                }
            }
            Task::Lapse(id) => drop(need.subscriptions.insert(id.clone())),
            Task::CardNotice(id, _) => drop(need.accounts.insert(id.clone())),
        }
    }
    need
}

/// The document that a task is about.
fn document(task: &Task) -> (Collection, &str) {
    match task {
        Task::Command(command) => match &command.body {
            CommandBody::Subscription(data) => (Collection::Subscriptions, data.subscription_id().as_str()),
            CommandBody::CardExpiry(data) => (Collection::Accounts, data.account_id.as_str()),
        },
        Task::Lapse(id) => (Collection::Subscriptions, id.as_str()),
        Task::CardNotice(id, _) => (Collection::Accounts, id.as_str()),
    }
}
