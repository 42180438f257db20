//! The engine: load many documents, decide, commit many changes. Commands from a queue and tasks from the calendar take the
//! same way.
//!
//! No rule lives here. Each task is decided by the domain, on the newest state of its document, and written under the
//! document's `version`: whoever loses a race decides again.

use std::collections::{HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::availability::{Availability, RETRY_DELAYS};
use super::composer::Composer;
use super::handover::Handover;
use crate::backoff::Backoff;
use crate::metrics;
use crate::metrics::labels::MongodbOperation;
use crate::store::commit::WriteResult;
use crate::store::outbox::delivery::Mark;
use crate::store::outbox::entry::Lease;
use crate::store::updates;
use crate::store::{DocumentId, DocumentKeys, Store, StoreError};
use crate::traces::Span;
use offramp_domain::ids::Target;
use offramp_domain::notification::Notification;
use offramp_domain::trace_context::TraceContext;
use offramp_domain::unit_of_work::{Standing, Task, TaskOutcome, UnitOfWork};

/// How often a task is decided again because others changed its document meanwhile, before it counts as failed.
const ROUNDS_MAX: usize = 20;
const CONFLICT: &str = "other writers kept changing the document";

/// Decides tasks and writes their changes. Clones share everything.
#[derive(Clone, Debug)]
pub struct Engine {
    pub store: Store,
    pub availability: Availability,
    /// Receives the outbox entries of committed changes.
    pub handover: Handover,
    /// Identifies the emails that a change records.
    pub composer: Arc<Composer>,
    /// `source` of the events.
    pub source: Arc<str>,
    /// How long outbox entries belong to this process.
    pub lease: Duration,
    /// How long tasks are held while the database is unavailable.
    pub hold: Duration,
}

/// The result of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Processed {
    /// It was decided, and a majority of the servers has the change, or the state that it was decided on.
    Decided(TaskOutcome),
    /// It could not be decided or written; other tasks are not affected. The sentence says why.
    Failed(String),
}

/// The result of a task, and what the reply to its sender says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decided {
    pub processed: Processed,
    /// How the document of a command stands; absent if it was not found or cannot be read.
    pub standing: Option<Standing>,
}

impl Decided {
    pub(super) fn failed(error: String) -> Self {
        Self { processed: Processed::Failed(error), standing: None }
    }
}

/// Why tasks were abandoned. It is unknown whether they were applied; deciding them again is safe.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Interruption {
    /// The worker is stopping.
    #[error("stopping")]
    Stopping,
    /// The database was unavailable for longer than tasks are held.
    #[error("MongoDB is unavailable: {0}")]
    DatabaseUnavailable(String),
}

impl Engine {
    /// Decides tasks in order and writes their changes, holding them while the database is unavailable. The results are in
    /// the order of the tasks. `span` is that of the batch.
    ///
    /// # Errors
    /// [`Interruption`], when the worker stops or the database remains unavailable.
    pub async fn run(
        &self,
        tasks: &[&Task],
        span: &Span,
        shutdown: &CancellationToken,
    ) -> Result<Vec<Decided>, Interruption> {
        if tasks.is_empty() {
            // The database is not asked, so this says nothing about its availability.
            return Ok(Vec::new());
        }
        let hold_until = Instant::now() + self.hold;
        let mut backoff = Backoff::new(RETRY_DELAYS);
        let mut stranded = Vec::new();
        loop {
            if !stranded.is_empty() {
                self.store.measured_as(MongodbOperation::Mark).release(&stranded).await;
            }
            let mut attempt = BatchAttempt::new(self, tasks, span);
            let error = match self.availability.clock().fault() {
                Some(fault) => fault.to_string(),
                None => match attempt.run().await {
                    Ok(()) => {
                        self.availability.answered();
                        return Ok(attempt.decided);
                    }
                    Err(StoreError::Permanent(error)) => return Ok(vec![Decided::failed(error); tasks.len()]),
                    Err(error) => {
                        self.availability.report(&error);
                        error.reason()
                    }
                },
            };
            stranded = attempt.stranded;
            let waiting = async {
                sleep(backoff.next_delay()).await;
                self.availability.wait_until_available().await;
            };
            match timeout_at(hold_until, shutdown.run_until_cancelled(waiting)).await {
                Ok(Some(())) => {}
                Ok(None) => return Err(Interruption::Stopping),
                Err(_elapsed) => return Err(Interruption::DatabaseUnavailable(error)),
            }
        }
    }

    /// Waits until it seems possible to decide tasks that were abandoned: the database is available, the documents that they
    /// need can be read, and those that they change can be written.
    pub async fn wait_for_documents(&self, tasks: &[Task]) {
        let documents: HashSet<_> = tasks.iter().map(document).collect();
        let mut backoff = Backoff::new(RETRY_DELAYS);
        loop {
            self.availability.wait_until_available().await;
            let trying = async {
                self.store.load(&need(tasks.iter())).await?;
                self.store.wait_for_majority(&documents).await
            };
            match trying.await {
                Ok(()) | Err(StoreError::Permanent(_)) => return,
                Err(error) => self.availability.report(&error),
            }
            sleep(backoff.next_delay()).await;
        }
    }
}

/// One attempt to decide and commit all tasks of a batch.
struct BatchAttempt<'a> {
    engine: &'a Engine,
    tasks: &'a [&'a Task],
    span: &'a Span,
    /// The results so far.
    decided: Vec<Decided>,
    /// The documents that were written.
    written: HashSet<DocumentId>,
    /// The outbox entries of a commit without a reply, which may be in the documents, under a lease of this process.
    stranded: Vec<Mark>,
}

impl<'a> BatchAttempt<'a> {
    fn new(engine: &'a Engine, tasks: &'a [&'a Task], span: &'a Span) -> Self {
        let decided = vec![Decided::failed(CONFLICT.to_owned()); tasks.len()];
        Self { engine, tasks, span, decided, written: HashSet::new(), stranded: Vec::new() }
    }

    /// Decides and commits all tasks, and once more those that are not certain yet.
    async fn run(&mut self) -> Result<(), StoreError> {
        let store = self.engine.store.measured_as(MongodbOperation::Load);
        self.decide_and_commit(&store, (0..self.tasks.len()).collect()).await?;
        let uncertain = self.uncertain();
        self.decide_and_commit(&store.linearizable(), uncertain).await
    }

    /// The commands that must be decided once more, on what is certain: those whose document was not written. A write is guarded by the
    /// version that all decisions about its document rest on, and a majority has it. A decision that needed no write, such as a rejection or
    /// a repeat, may rest on what a primary returned that another has replaced, or on a change that will be undone because no majority has
    /// it. (Tasks of the calendar are found again.)
    fn uncertain(&self) -> Vec<usize> {
        let is_uncertain = |task| matches!(task, &Task::Command(_)) && !self.written.contains(&document(task));
        (0..self.tasks.len()).filter(|&index| is_uncertain(self.tasks[index])).collect()
    }

    /// Runs rounds until no task has lost its document to another writer.
    async fn decide_and_commit(&mut self, reads: &Store, mut pending: Vec<usize>) -> Result<(), StoreError> {
        for _ in 0..ROUNDS_MAX {
            if pending.is_empty() {
                return Ok(());
            }
            pending = self.round(reads, pending).await?;
        }
        for index in pending {
            self.decided[index] = Decided::failed(CONFLICT.to_owned());
        }
        Ok(())
    }

    /// Loads, decides and commits the pending tasks once, and hands their outbox entries over. Returns the tasks to decide
    /// again, because another writer changed their documents meanwhile.
    async fn round(&mut self, reads: &Store, mut pending: Vec<usize>) -> Result<Vec<usize>, StoreError> {
        let Self { engine, tasks, span, decided, .. } = self;
        let loading = span.mongodb("load", "find", pending.len());
        let loaded = reads.load(&need(pending.iter().map(|&index| tasks[index]))).await;
        let mut unit_of_work = ended(loading, loaded)?;
        let now = engine.availability.clock().now();
        for &index in &pending {
            decided[index] = Decided { processed: decide(&mut unit_of_work, tasks[index], now), standing: None };
        }
        // After all of them: the version of a document is that of one write, with one state.
        for &index in &pending {
            decided[index].standing = unit_of_work.standing(tasks[index].target());
        }

        unit_of_work.trace_scheduled(&span.context(&TraceContext::default()));

        let lease = Lease { holder: Uuid::new_v4(), until: now + engine.lease };
        let identify = |id, email: &Notification| engine.composer.identify(id, email);
        let updates = updates::build(unit_of_work, &lease, &engine.source, &identify, now)?;
        let committing = span.mongodb("commit", "update", updates.len());
        let committed = engine.store.measured_as(MongodbOperation::Commit).commit(&updates).await;
        let committed = match ended(committing, committed) {
            Ok(committed) => committed,
            Err(error) => {
                self.stranded = Mark::stranded(updates, &error, now);
                return Err(error);
            }
        };

        let mut lost = HashSet::new();
        let mut failed = HashMap::new();
        let mut leased = Vec::new();
        for (update, committed) in updates.into_iter().zip(committed) {
            let document = update.document.clone();
            let explain = |error| format!("{}: {error}", update.document);
            match committed {
                WriteResult::Written => {
                    leased.extend(update.into_leased());
                    self.written.insert(document);
                }
                WriteResult::Conflict => drop(lost.insert(document)),
                WriteResult::Corrupt(error) => {
                    failed.insert(document, Processed::Decided(TaskOutcome::Corrupt(explain(error))));
                }
                WriteResult::Permanent(error) => drop(failed.insert(document, Processed::Failed(explain(error)))),
            }
        }
        let no_room = engine.handover.offer(leased).await;
        engine.store.measured_as(MongodbOperation::Mark).release(&no_room).await;
        for &index in &pending {
            if let Some(failed) = failed.get(&document(tasks[index])) {
                decided[index] = Decided { processed: failed.clone(), standing: None };
            }
        }
        pending.retain(|&index| lost.contains(&document(tasks[index])));
        for &index in &pending {
            if let Task::Command(command) = tasks[index] {
                metrics::current().commit_conflicts.of((command.reference.kind,)).increment(1);
            }
        }
        Ok(pending)
    }
}

/// Ends the span of a request to the database.
fn ended<T>(mut span: Span, result: Result<T, StoreError>) -> Result<T, StoreError> {
    match &result {
        Ok(_) => {}
        Err(StoreError::TimedOut) => span.fail("timed_out"),
        Err(StoreError::Unavailable(_)) => span.fail("unavailable"),
        Err(StoreError::Denied(_)) => span.fail("denied"),
        Err(StoreError::Permanent(_)) => span.fail("permanent"),
    }
    result
}

/// Decides one task. If a rule panics on it, that task fails, and the worker goes on.
fn decide(unit_of_work: &mut UnitOfWork, task: &Task, now: DateTime<Utc>) -> Processed {
    // A task changes documents in memory only after it is decided, so a panic leaves nothing half-done.
    match std::panic::catch_unwind(AssertUnwindSafe(|| unit_of_work.apply(task, now))) {
        Ok(outcome) => Processed::Decided(outcome),
        Err(_) => Processed::Failed("internal error: rule evaluation panicked (bug)".to_owned()),
    }
}

/// The documents that tasks need.
fn need<'a>(tasks: impl Iterator<Item = &'a Task>) -> DocumentKeys {
    let mut need = DocumentKeys::default();
    for task in tasks {
        match task {
            Task::Command(command) => {
                need.organizations.insert(command.organization_id().clone());
                match command.target() {
                    Target::Subscription(id) => drop(need.subscriptions.insert(id.clone())),
                    Target::Account(id) => drop(need.accounts.insert(id.clone())),
                    // The organization of every command is loaded.
                    Target::Organization(_) => {}
                }
            }
            Task::Lapse(id) => drop(need.ending.insert(id.clone())),
            Task::CardNotice(id, _) => drop(need.accounts.insert(id.clone())),
            Task::RequestReminder(id) => {
                need.organizations.insert(id.clone());
                need.pending_requests.insert(id.clone());
            }
        }
    }
    need
}

/// The document that a task changes.
fn document(task: &Task) -> DocumentId {
    task.target().into()
}
