//! The claimer: takes outbox entries whose lease has expired, whichever worker held them, and hands them to the dispatcher.
//!
//! Emails and events are claimed apart, each as many as there is room for: an unavailable mail server delays no event.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use metrics::counter;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::clock;
use crate::store::outbox::claim::{Claimed, DueQueue};
use crate::store::outbox::entry::{Kind, Lease};
use crate::store::sweep::DUE;
use crate::store::{Collection, Store, StoreError};
use crate::worker::composer::Composer;
use crate::worker::engine::Engine;
use crate::worker::handover::Handover;
use crate::worker::indexes::Indexes;
use offramp_domain::notification::Notification;

/// How often to look for due entries, at least.
const CLAIM_EVERY: Duration = Duration::from_secs(2);
/// How often to look for room for them.
const ROOM_EVERY: Duration = Duration::from_millis(100);
/// From how many documents entries are claimed at once.
const CLAIM_DOCUMENTS_MAX: usize = 256;
/// How long no emails are claimed after the database was unavailable: whoever has sent them before has marked them by then.
const EMAILS_WAIT_FOR_MARKS: Duration = Duration::from_secs(10);
/// How often documents are tried again that nothing can be claimed from.
const RETRY_UNCLAIMABLE_EVERY: Duration = Duration::from_secs(60);
/// How many unclaimable documents are remembered as reported.
const REPORTED_MAX: usize = 10_000;

/// Claims due entries until it is told to stop.
#[derive(Debug)]
pub struct Claimer {
    /// Where to look.
    pub store: Store,
    /// Is told whether the database answers.
    pub engine: Engine,
    /// Where claimed entries go.
    pub handover: Handover,
    /// Tells how emails of earlier versions are recorded.
    pub composer: Arc<Composer>,
    /// The time between two looks, at most two seconds.
    pub every: Duration,
    /// How long claimed entries belong to this process.
    pub lease: Duration,
    /// Which indexes exist.
    pub indexes: Indexes,
}

/// A queue, and why MongoDB refused the newest search in it, if it did.
struct Watched {
    queue: DueQueue,
    refusal: Option<String>,
}

impl Watched {
    fn new(queue: DueQueue) -> Self {
        Self { queue, refusal: None }
    }

    /// Logs a refusal, unless the newest search was refused for the same reason.
    fn report_refusal(&mut self, kind: Kind, error: String) {
        if self.refusal.as_ref() != Some(&error) {
            let collection = self.queue.collection.as_str();
            tracing::error!(kind = kind.as_str(), collection, error, "cannot search for due outbox entries; retrying");
            self.refusal = Some(error);
        }
    }
}

/// What is claimed of one kind.
struct Claims {
    kind: Kind,
    queues: Vec<Watched>,
    /// The documents that nothing can be claimed from and that were reported.
    reported: HashSet<(Collection, String)>,
}

impl Claims {
    fn of(kind: Kind) -> Self {
        let queues = DueQueue::of(kind).into_iter().map(Watched::new).collect();
        Self { kind, queues, reported: HashSet::new() }
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
                for watched in &mut claims.queues {
                    watched.queue.rewind();
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

    /// Claims from each queue once: a backlog or a failure in one does not hold up the others. Whether there is more.
    async fn claim_round(&self, claims: &mut Claims, shutdown: &CancellationToken) -> bool {
        let mut goes_on = false;
        for index in 0..claims.queues.len() {
            let Some(room) = self.room(claims.kind, shutdown).await else { return false };
            if !self.is_able(claims.kind, claims.queues[index].queue.collection) {
                continue;
            }
            match self.claim(claims, index, room).await {
                Ok(has_more) => {
                    claims.queues[index].refusal = None;
                    goes_on |= has_more;
                }
                Err(error @ StoreError::TimedOut) => self.engine.report(&error),
                Err(StoreError::Unavailable(_)) if self.engine.is_unavailable().await => return false,
                // A shard, or a right that is missing.
                Err(StoreError::Unavailable(error)) => claims.queues[index].report_refusal(claims.kind, error),
                Err(StoreError::Refused(error)) => {
                    self.indexes.check_again();
                    claims.queues[index].report_refusal(claims.kind, error);
                }
            }
        }
        goes_on
    }

    /// Claims from one queue, and hands over what it got. Whether there is more.
    async fn claim(&self, claims: &mut Claims, index: usize, room: usize) -> Result<bool, StoreError> {
        let now = clock::now();
        let lease = Lease { holder: Uuid::new_v4(), until: now + self.lease };
        let queue = &mut claims.queues[index].queue;
        let identify = |id, email: &Notification| self.composer.identify(id, email);
        let claimed = self.store.claim(queue, room.min(CLAIM_DOCUMENTS_MAX), &lease, now, &identify).await?;
        report(queue.collection, &claimed, &mut claims.reported);
        counter!("offramp_claimed_total").increment(claimed.entries.len() as u64);
        self.store.release(&self.handover.offer(claimed.entries).await).await;
        Ok(claimed.goes_on)
    }

    /// Whether entries can be looked for without reading everything, and leased by a clock that is right; and no email that
    /// was sent before an outage of the database still waits for its mark. An event that is sent twice is recognized.
    fn is_able(&self, kind: Kind, collection: Collection) -> bool {
        self.indexes.has(collection, DUE)
            && self.engine.clock_offset().is_none()
            && !(kind == Kind::Email && self.engine.was_unavailable_within(EMAILS_WAIT_FOR_MARKS))
    }

    /// Waits for room in the dispatcher. None: the program is stopping.
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

/// Reports what an operator should know: each document once.
fn report(collection: Collection, claimed: &Claimed, reported: &mut HashSet<(Collection, String)>) {
    if claimed.unreadable > 0 {
        tracing::error!(
            collection = collection.as_str(),
            entries = claimed.unreadable,
            "outbox entries cannot be read; they are kept for an operator (`offramp outbox list`)"
        );
    }
    for document in &claimed.unclaimable {
        if reported.len() >= REPORTED_MAX {
            reported.clear();
        }
        if reported.insert((collection, document.document_id.clone())) {
            let error = document.error;
            tracing::error!(
                collection = collection.as_str(),
                document = document.document_id,
                error,
                "due outbox entries cannot be claimed; trying again every minute"
            );
        }
    }
}
