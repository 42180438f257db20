//! Load many → fold → commit many: how tasks become changes, whether they come from a queue or from the calendar.

use std::collections::{HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::backoff::Backoff;
use crate::clock;
use crate::http::ReadyHandle;
use crate::store::changes;
use crate::store::commit::Committed;
use crate::store::inspect::ClockOffset;
use crate::store::outbox::entry::Lease;
use crate::store::{Collection, Need, Store, StoreError};
use crate::worker::composer::Composer;
use crate::worker::handover::Handover;
use offramp_domain::command::CommandBody;
use offramp_domain::fold::{Task, Verdict, World};

/// How often a document that others keep changing is read again before its tasks count as failed.
const ROUNDS_MAX: usize = 20;
/// Which part of a lease clocks may differ by: a quarter, as half of it is left when sending begins.
const CLOCK_TOLERANCE_LEASE_PART: u32 = 4;
/// How long to wait before the database is tried again: from the first to the longest, see [`Backoff`].
const RETRY_EVERY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(1));
/// How often to look whether the database takes writes, at least.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Decides tasks and writes what they change.
#[derive(Clone, Debug)]
pub struct Engine {
    store: Store,
    handover: Handover,
    composer: Arc<Composer>,
    source: Arc<str>,
    lease: Duration,
    hold: Duration,
    ready: Arc<ReadyHandle>,
    /// Held by the one that looks whether the database is back.
    probe: Arc<Mutex<()>>,
    /// By how much this machine's clock is wrong, while it is wrong: leases and ends that are decided by it would be wrong,
    /// too.
    clock_offset: Arc<watch::Sender<Option<ClockOffset>>>,
    /// When the database was last found unavailable.
    unavailable_at: Arc<watch::Sender<Option<Instant>>>,
}

/// What became of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settled {
    /// It was decided, and what it changes, or was decided on, is on a majority of the servers.
    Decided(Verdict),
    /// It could not be decided or written, and the others are not affected. The sentence says why.
    Failed(String),
}

/// Why tasks were given up before they were settled. Whether they were applied is unknown; deciding them again is safe.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Interrupted {
    /// The program is stopping.
    #[error("stopping")]
    Stopping,
    /// The database has been away for longer than tasks are held.
    #[error("MongoDB is away: {0}")]
    Away(String),
}

impl Engine {
    /// `composer` tells how emails are recorded; `source` is the `source` of events; an outbox entry belongs to this process for `lease`; tasks are held for `hold`
    /// while the database is away; `ready` is told whether it answers.
    #[must_use]
    pub fn new(
        store: Store,
        handover: Handover,
        composer: Arc<Composer>,
        source: &str,
        lease: Duration,
        hold: Duration,
        ready: ReadyHandle,
    ) -> Self {
        Self {
            store,
            handover,
            composer,
            source: source.into(),
            lease,
            hold,
            ready: Arc::new(ready),
            probe: Arc::default(),
            clock_offset: Arc::new(watch::Sender::new(None)),
            unavailable_at: Arc::new(watch::Sender::new(None)),
        }
    }

    /// Decides tasks in order and writes what they change, holding them while the database is away. The answers are in the
    /// tasks' order.
    ///
    /// # Errors
    /// [`Interrupted`] when the program stops, or the database stays away.
    pub async fn run(&self, tasks: &[&Task], shutdown: &CancellationToken) -> Result<Vec<Settled>, Interrupted> {
        if tasks.is_empty() {
            // Nobody is asked, so nothing is known.
            return Ok(Vec::new());
        }
        let hold_until = Instant::now() + self.hold;
        let mut backoff = Backoff::new(RETRY_EVERY);
        loop {
            let error = match self.clock_offset() {
                Some(offset) => offset.to_string(),
                None => match self.try_run(tasks).await {
                    Ok(settled) => {
                        self.answered();
                        return Ok(settled);
                    }
                    Err(StoreError::Refused(error)) => return Ok(vec![Settled::Failed(error); tasks.len()]),
                    Err(error) => {
                        self.report(&error);
                        error.reason()
                    }
                },
            };
            let waiting = async {
                tokio::select! {
                    () = sleep(backoff.next_delay()) => {}
                    () = shutdown.cancelled() => return Err(Interrupted::Stopping),
                }
                self.wait_for_database(shutdown).await
            };
            timeout_at(hold_until, waiting).await.unwrap_or(Err(Interrupted::Away(error)))?;
        }
    }

    /// Looks, again and again until `shutdown`: every `every`, at least every two seconds. The database may be there for
    /// reads only, and no batch may come that would find out.
    pub async fn keep_looking(self, every: Duration, shutdown: CancellationToken) {
        let looking = async {
            loop {
                sleep(every.min(LOOK_EVERY)).await;
                self.look().await;
            }
        };
        // Never ends by itself.
        shutdown.run_until_cancelled(looking).await;
    }

    /// Looks whether the database takes writes, wherever decisions are written, and whether its clock agrees with ours; and
    /// tells.
    pub async fn look(&self) {
        let looking = async {
            self.store.check_writes().await?;
            self.check_clock().await
        };
        match looking.await {
            Ok(_) => self.answered(),
            // A missing right or shard is reported as well, but not all is unavailable then.
            Err(error) if !self.is_unavailable().await => self.report(&error),
            Err(_) => {}
        }
    }

    /// By how much this machine's clock is wrong, while it is wrong. Nothing is decided or claimed by such a clock.
    #[must_use]
    pub fn clock_offset(&self) -> Option<ClockOffset> {
        *self.clock_offset.borrow()
    }

    /// Waits until this machine's clock is right.
    pub async fn wait_for_clock(&self) {
        // It is dropped with us.
        drop(self.clock_offset.subscribe().wait_for(Option::is_none).await);
    }

    /// Compares our clock with the database's. Workers with clocks that differ by a part of a lease could hold an outbox entry
    /// at the same time.
    async fn check_clock(&self) -> Result<Option<ClockOffset>, StoreError> {
        let offset = self.store.clock_offset(self.lease / CLOCK_TOLERANCE_LEASE_PART).await?;
        match (self.clock_offset.send_replace(offset), offset) {
            (None, Some(offset)) => tracing::error!("processing is paused: {offset}"),
            (Some(_), None) => tracing::info!("this machine's clock agrees with MongoDB's again"),
            _ => {}
        }
        Ok(offset)
    }

    /// Tells that the database answers: something was written, or found written, on a majority of its servers.
    fn answered(&self) {
        match self.clock_offset() {
            None => self.ready.ready(),
            Some(offset) => self.ready.not_ready(&offset.to_string()),
        }
    }

    /// Tells that an operation failed: to whoever asks for this worker's health, if the database is away.
    pub fn report(&self, error: &StoreError) {
        let reason = error.reason();
        // A server that ends a slow operation answers.
        if *error == StoreError::TimedOut {
            tracing::warn!(error = reason, "the database is slow; trying again");
        } else {
            tracing::warn!(error = reason, "the database is away");
            self.ready.not_ready(&reason);
        }
    }

    fn report_unavailable(&self, error: &StoreError) {
        self.report(error);
        if matches!(error, StoreError::Unavailable(_)) {
            self.unavailable_at.send_replace(Some(Instant::now()));
        }
    }

    /// Finds out, after an operation failed, whether the database takes no writes at all; and tells.
    pub async fn is_unavailable(&self) -> bool {
        match self.store.check_majority().await {
            Ok(()) => false,
            Err(error) => {
                self.report_unavailable(&error);
                true
            }
        }
    }

    /// Whether the database was found unavailable less than so long ago.
    #[must_use]
    pub fn was_unavailable_within(&self, time: Duration) -> bool {
        self.unavailable_at.borrow().is_some_and(|at| at.elapsed() < time)
    }

    /// Waits until the database answers. One lane at a time asks; the others wait for what it hears.
    ///
    /// # Errors
    /// [`Interrupted::Stopping`].
    pub async fn wait_for_database(&self, shutdown: &CancellationToken) -> Result<(), Interrupted> {
        let waiting = async {
            let _asking = self.probe.lock().await;
            let mut backoff = Backoff::new(RETRY_EVERY);
            // Not only a server that answers, but one that takes writes: otherwise the wait would end at once, and
            // each time the messages in hand would go back and come again, which the broker counts.
            loop {
                let looking = async {
                    self.store.check_majority().await?;
                    self.check_clock().await
                };
                match looking.await {
                    Ok(None) => break,
                    Ok(Some(_)) => self.answered(),
                    Err(error) => self.report_unavailable(&error),
                }
                sleep(backoff.next_delay()).await;
            }
        };
        tokio::select! {
            () = waiting => Ok(()),
            () = shutdown.cancelled() => Err(Interrupted::Stopping),
        }
    }

    /// Waits until it seems that tasks can be decided: not only does the database answer, the documents that they need can be
    /// read, and those that they change be written. For tasks that were given up because they could not.
    ///
    /// # Errors
    /// [`Interrupted::Stopping`].
    pub async fn wait_for_documents(&self, tasks: &[Task], shutdown: &CancellationToken) -> Result<(), Interrupted> {
        let documents: HashSet<_> = tasks.iter().map(document).collect();
        let mut backoff = Backoff::new(RETRY_EVERY);
        loop {
            self.wait_for_database(shutdown).await?;
            let rehearsed = async {
                self.store.load(&need(tasks.iter())).await?;
                self.store.wait_for_majority(&documents).await
            };
            match rehearsed.await {
                Ok(()) | Err(StoreError::Refused(_)) => return Ok(()),
                Err(error) => self.report(&error),
            }
            tokio::select! {
                () = sleep(backoff.next_delay()) => {}
                () = shutdown.cancelled() => return Err(Interrupted::Stopping),
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
                settled[index] = fold(&mut world, tasks[index], now);
            }

            let lease = Lease { holder: Uuid::new_v4(), until: now + self.lease };
            let updates =
                changes::updates(world, &lease, &self.source, &|id, email| self.composer.identify(id, email), now)?;
            let committed = self.store.commit(&updates).await?;

            let mut lost = HashSet::new();
            let mut spoilt = HashMap::new();
            let mut leased = Vec::new();
            for (update, committed) in updates.into_iter().zip(committed) {
                let document = (update.collection, update.id.clone());
                match committed {
                    Committed::Written => leased.extend(update.into_leased()),
                    Committed::Lost => drop(lost.insert(document)),
                    Committed::Corrupt(error) => {
                        let error = format!("{} {}: {error}", document.0.as_str(), document.1);
                        spoilt.insert(document, Settled::Decided(Verdict::Corrupt(error)));
                    }
                    Committed::Refused(error) => {
                        let error = format!("{} {}: {error}", document.0.as_str(), document.1);
                        spoilt.insert(document, Settled::Failed(error));
                    }
                }
            }
            self.store.release(&self.handover.offer(leased).await).await;
            for &index in &pending {
                if let Some(spoilt) = spoilt.get(&document(tasks[index])) {
                    settled[index] = spoilt.clone();
                }
            }
            // Whatever was decided about a document that somebody else has changed meanwhile is decided again.
            pending.retain(|&index| lost.contains(&document(tasks[index])));
        }
        for index in pending {
            settled[index] = Settled::Failed("others kept changing the document".to_owned());
        }
        // What was written is on a majority. A task that needed no write may depend on a change that has not reached one yet.
        let unwritten =
            tasks.iter().zip(&settled).filter(|(_, settled)| !matches!(settled, Settled::Decided(Verdict::Applied)));
        let unwritten: HashSet<_> = unwritten.map(|(task, _)| document(task)).collect();
        self.store.wait_for_majority(&unwritten).await?;
        Ok(settled)
    }
}

/// Decides one task. Should a rule break on it, that is this task's failure, and not the end of the worker.
fn fold(world: &mut World, task: &Task, now: DateTime<Utc>) -> Settled {
    // A fold changes a document in memory only after everything about it is decided, so nothing is left half-done.
    match std::panic::catch_unwind(AssertUnwindSafe(|| world.fold(task, now))) {
        Ok(verdict) => Settled::Decided(verdict),
        Err(_) => Settled::Failed("the rules broke on this; it is a mistake in the program".to_owned()),
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
            Task::Lapse(id) => drop(need.ending.insert(id.clone())),
            Task::CardNotice(id, _) => drop(need.accounts.insert(id.clone())),
        }
    }
    need
}

/// The document that a task is about.
fn document(task: &Task) -> (Collection, String) {
    match task {
        Task::Command(command) => match &command.body {
            CommandBody::Subscription(data) => (Collection::Subscriptions, data.subscription_id().to_string()),
            CommandBody::CardExpiry(data) => (Collection::Accounts, data.account_id.to_string()),
        },
        Task::Lapse(id) => (Collection::Subscriptions, id.to_string()),
        Task::CardNotice(id, _) => (Collection::Accounts, id.to_string()),
    }
}
