//! The claimer: claims outbox entries whose lease has expired, whichever worker held them, and hands them to the dispatcher.
//!
//! Emails and events are claimed separately, each as many as the dispatcher has room for: an unavailable mail server delays no
//! event. Nothing is sent here.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::availability::Availability;
use super::composer::Composer;
use super::handover::Handover;
use super::indexes::Indexes;
use crate::advice;
use crate::metrics::{self, labels::MongodbOperation};
use crate::store::indexes::DUE;
use crate::store::outbox::claim::{Claim, FailedClaim};
use crate::store::outbox::delivery::Mark;
use crate::store::outbox::due_queue::DueQueue;
use crate::store::outbox::entry::{Kind, Lease};
use crate::store::{Collection, Store, StoreError};
use offramp_domain::notification::Notification;

/// The longest time between two searches for due entries.
const CLAIM_EVERY: Duration = Duration::from_secs(2);
/// How often to check for room in the dispatcher.
const ROOM_EVERY: Duration = Duration::from_millis(100);
/// How many documents one claim takes entries from.
const CLAIM_DOCUMENTS_MAX: usize = 256;
/// How long no emails are claimed after the database was unavailable. By then, the workers that sent emails during the outage
/// have marked them.
const EMAILS_WAIT_FOR_MARKS: Duration = Duration::from_secs(10);
/// How often documents are retried whose entries cannot be claimed.
const RETRY_UNCLAIMABLE_EVERY: Duration = Duration::from_secs(60);
/// How many unclaimable documents are remembered as reported.
const REPORTED_MAX: usize = 10_000;

/// Claims due entries.
#[derive(Debug)]
pub struct Claimer {
    pub store: Store,
    pub availability: Availability,
    /// Receives claimed entries.
    pub handover: Handover,
    /// Identifies emails of earlier versions, which are not recorded yet.
    pub composer: Arc<Composer>,
    /// The time between two searches; 2 s at most.
    pub every: Duration,
    /// How long claimed entries belong to this process.
    pub lease: Duration,
    pub indexes: Indexes,
}

/// A queue of due entries, and why the last search in it failed, if it did.
struct Source {
    queue: DueQueue,
    failure: Option<String>,
}

impl Source {
    fn new(queue: DueQueue) -> Self {
        Self { queue, failure: None }
    }

    /// Logs a failed search, unless the one before failed for the same reason.
    fn report(&mut self, kind: Kind, error: String) {
        if self.failure.as_ref() != Some(&error) {
            let collection = self.queue.collection.as_str();
            tracing::error!(kind = kind.as_str(), collection, error, "cannot search for due outbox entries; retrying");
            self.failure = Some(error);
        }
    }
}

/// The claims of one kind of entries.
struct Claims {
    kind: Kind,
    sources: Vec<Source>,
    /// Documents whose entries cannot be claimed, as far as they were reported.
    reported: HashSet<(Collection, String)>,
}

impl Claims {
    fn of(kind: Kind) -> Self {
        let sources = DueQueue::of(kind).into_iter().map(Source::new).collect();
        Self { kind, sources, reported: HashSet::new() }
    }
}

impl Claimer {
    /// Claims until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        tokio::join!(self.repeat(Kind::Event, &shutdown), self.repeat(Kind::Email, &shutdown));
    }

    async fn repeat(&self, kind: Kind, shutdown: &CancellationToken) {
        let mut claims = Claims::of(kind);
        let mut rewound_at = Instant::now();
        while !shutdown.is_cancelled() {
            if rewound_at.elapsed() >= RETRY_UNCLAIMABLE_EVERY {
                rewound_at = Instant::now();
                for source in &mut claims.sources {
                    source.queue.rewind();
                }
            }
            if self.claim_round(&mut claims, shutdown).await {
                continue;
            }
            tokio::select! {
                () = tokio::time::sleep(self.every.min(CLAIM_EVERY)) => {}
                () = shutdown.cancelled() => {}
            }
        }
    }

    /// Claims from each queue once: a backlog or a failure in one does not delay the others. Returns whether there is more.
    async fn claim_round(&self, claims: &mut Claims, shutdown: &CancellationToken) -> bool {
        let mut has_more = false;
        for index in 0..claims.sources.len() {
            let Some(room) = self.room(claims.kind, shutdown).await else { return false };
            if !self.can_claim(claims.kind, claims.sources[index].queue.collection) {
                continue;
            }
            match self.claim(claims, index, room).await {
                Ok(source_has_more) => {
                    claims.sources[index].failure = None;
                    has_more |= source_has_more;
                }
                Err(FailedClaim { error, stranded }) => {
                    let ends_round = self.report_failure(claims, index, error).await;
                    self.release_stranded(&stranded, shutdown).await;
                    if ends_round {
                        return false;
                    }
                }
            }
        }
        has_more
    }

    /// Releases what a failed claim may have leased, once that can succeed.
    async fn release_stranded(&self, stranded: &[Mark], shutdown: &CancellationToken) {
        if !stranded.is_empty()
            && shutdown.run_until_cancelled(self.availability.wait_until_available()).await.is_some()
        {
            self.store.measured_as(MongodbOperation::Mark).release(stranded).await;
        }
    }

    /// Reports why a claim failed. Returns whether the round ends, because the whole database is unavailable.
    async fn report_failure(&self, claims: &mut Claims, index: usize, error: StoreError) -> bool {
        match error {
            StoreError::TimedOut => self.availability.report(&error),
            StoreError::Unavailable(_) | StoreError::Denied(_) if self.availability.is_unavailable().await => {
                return true;
            }
            // A shard is unavailable, or a right is missing.
            StoreError::Unavailable(error) | StoreError::Denied(error) => {
                claims.sources[index].report(claims.kind, error);
            }
            StoreError::Permanent(error) => {
                self.indexes.check_again();
                claims.sources[index].report(claims.kind, error);
            }
        }
        false
    }

    /// Claims from one queue and hands the entries over. Returns whether there is more.
    async fn claim(&self, claims: &mut Claims, index: usize, room: usize) -> Result<bool, FailedClaim> {
        let now = self.availability.clock().now();
        let lease = Lease { holder: Uuid::new_v4(), until: now + self.lease };
        let queue = &mut claims.sources[index].queue;
        let identify = |id, email: &Notification| self.composer.identify(id, email);
        let claimed = self.store.claim(queue, room.min(CLAIM_DOCUMENTS_MAX), &lease, now, &identify).await?;
        report(queue.collection, &claimed, &mut claims.reported);
        metrics::current().claimed.increment(claimed.entries.len() as u64);
        let no_room = self.handover.offer(claimed.entries).await;
        self.store.measured_as(MongodbOperation::Mark).release(&no_room).await;
        Ok(claimed.goes_on)
    }

    /// Whether there is an index for the search and the clock may be used; and no email that was sent before an outage of the
    /// database may still wait for its mark. Events need not wait for that: a repeat has the same id.
    fn can_claim(&self, kind: Kind, collection: Collection) -> bool {
        self.indexes.has(collection, DUE)
            && self.availability.clock().fault().is_none()
            && !(kind == Kind::Email && self.availability.was_unavailable_within(EMAILS_WAIT_FOR_MARKS))
    }

    /// Waits for room in the dispatcher. `None`: the worker is stopping.
    async fn room(&self, kind: Kind, shutdown: &CancellationToken) -> Option<usize> {
        while !shutdown.is_cancelled() {
            match self.handover.room(kind) {
                0 => tokio::time::sleep(ROOM_EVERY).await,
                room => return Some(room),
            }
        }
        None
    }
}

/// Logs what an operator should know, each document once.
fn report(collection: Collection, claimed: &Claim, reported: &mut HashSet<(Collection, String)>) {
    if claimed.unreadable > 0 {
        tracing::error!(
            collection = collection.as_str(),
            entries = claimed.unreadable,
            "unreadable outbox entries are kept for an operator ({})",
            advice::KEPT_ENTRIES
        );
    }
    for document in &claimed.unclaimable {
        if reported.len() >= REPORTED_MAX {
            reported.clear();
        }
        if reported.insert((collection, document.document_id.clone())) {
            let error = document.error;
            tracing::error!(
                document = format_args!("{} {}", collection.as_str(), document.document_id),
                error,
                "cannot claim due outbox entries; retrying every minute"
            );
        }
    }
}
