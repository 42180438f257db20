//! The handover from commits and claims to the dispatcher: two bounded queues in memory, one for emails, one for events.
//!
//! An entry in these queues is under a lease of this process. If it is lost, for example because the process dies, its lease
//! expires and any worker claims it: so the queues may be small, and losing them loses no email or event.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::database_clock::DatabaseClock;
use super::mail_server::MailServer;
use crate::store::outbox::delivery::{DeliveryResult, Mark};
use crate::store::outbox::entry::{Kind, LeasedEntry};

/// How many emails, and how many events, wait in memory: more than two full batches produce. The others wait in the database.
pub const QUEUE_MAX: usize = 512;
/// How long a lane waits for room in the queues, so that it does not run far ahead of a mail server that works.
const OFFER_PATIENCE: Duration = Duration::from_secs(1);
/// How long emails that wait for their turn may delay a shutdown.
const CLOSING_PATIENCE: Duration = Duration::from_secs(5);

/// The sending half: where committed changes and claims leave their entries.
#[derive(Clone, Debug)]
pub struct Handover {
    emails: async_channel::Sender<LeasedEntry>,
    events: async_channel::Sender<LeasedEntry>,
    mail_server: Arc<MailServer>,
    /// How much of their lease emails may spend in the queue.
    patience: Duration,
    clock: DatabaseClock,
    release: Release,
}

/// The receiving half, for the dispatcher.
#[derive(Debug)]
pub(super) struct Queues {
    pub(super) emails: async_channel::Receiver<LeasedEntry>,
    pub(super) events: async_channel::Receiver<LeasedEntry>,
    pub(super) mail_server: Arc<MailServer>,
    pub(super) release: Release,
}

/// Asks the senders to stop: what they have not begun is released.
#[derive(Clone, Debug)]
pub(super) struct Release {
    /// Emails and events.
    pub(super) all: CancellationToken,
    /// Emails only. Cancelled together with `all`, or before it.
    pub(super) emails: CancellationToken,
}

impl Default for Release {
    fn default() -> Self {
        let all = CancellationToken::new();
        Self { emails: all.child_token(), all }
    }
}

impl Handover {
    /// Both halves. Entries belong to this process for `lease`.
    pub(super) fn new(lease: Duration, emails_per_second: Option<f64>, clock: DatabaseClock) -> (Self, Queues) {
        let (emails_in, emails) = async_channel::bounded(QUEUE_MAX);
        let (events_in, events) = async_channel::bounded(QUEUE_MAX);
        let mail_server = Arc::new(MailServer::new(emails_per_second));
        let release = Release::default();
        let handover = Self {
            emails: emails_in,
            events: events_in,
            mail_server: Arc::clone(&mail_server),
            patience: lease / 4,
            clock,
            release: release.clone(),
        };
        (handover, Queues { emails, events, mail_server, release })
    }

    /// Hands entries over. Returns those that found no room, to be passed to [`Store::release`](crate::store::Store::release)
    /// so that a worker with room can claim them. While the mail server is unavailable or throttles, no worker has room:
    /// such emails wait until their lease expires.
    #[must_use]
    pub async fn offer(&self, entries: Vec<LeasedEntry>) -> Vec<Mark> {
        // Events first: they do not wait for a mail server.
        let (events, emails): (Vec<_>, Vec<_>) =
            entries.into_iter().partition(|leased| leased.entry.kind() == Kind::Event);
        let patience = Instant::now() + OFFER_PATIENCE;
        let mut no_room = Vec::new();
        for leased in events.into_iter().chain(emails) {
            let kind = leased.entry.kind();
            let queue = match kind {
                Kind::Email => &self.emails,
                Kind::Event => &self.events,
            };
            let emails_max = self.emails_max();
            if kind == Kind::Email && emails_max < QUEUE_MAX && self.emails.len() >= emails_max {
                continue;
            }
            let Err(full) = queue.try_send(leased) else { continue };
            let leased = full.into_inner();
            if kind == Kind::Email && self.mail_server.is_unavailable() {
                continue;
            }
            let mark = Mark::new(&leased, DeliveryResult::Released { at: self.clock.now() });
            if !matches!(timeout_at(patience, queue.send(leased)).await, Ok(Ok(()))) {
                no_room.push(mark);
            }
        }
        no_room
    }

    /// How many entries of a kind the queue has room for. While the mail server is unavailable: one email at a time, which
    /// finds out whether the server is back.
    #[must_use]
    pub fn room(&self, kind: Kind) -> usize {
        match kind {
            Kind::Email if self.mail_server.is_unavailable() => {
                usize::from(self.emails.is_empty() && self.mail_server.is_idle())
            }
            Kind::Email => self.emails_max().saturating_sub(self.emails.len()),
            Kind::Event => QUEUE_MAX.saturating_sub(self.events.len()),
        }
    }

    /// How many emails may wait in memory: no more than can be sent while enough of their lease remains.
    fn emails_max(&self) -> usize {
        let allowance = self.mail_server.pacer.allowance(self.patience);
        allowance.map_or(QUEUE_MAX, |allowance| allowance.clamp(1, QUEUE_MAX))
    }

    /// Accepts no more entries: the dispatcher ends once it has sent what it has. Emails for which the mail server is
    /// unavailable or too slow are released: another worker may have one that is not.
    pub fn close(&self) {
        self.emails.close();
        self.events.close();
        let allowance = self.mail_server.pacer.allowance(CLOSING_PATIENCE);
        let is_slow = allowance.is_some_and(|allowance| self.emails.len() > allowance);
        if self.mail_server.is_unavailable() || is_slow {
            self.release.emails.cancel();
        }
    }

    /// Closes the queues and releases every entry whose sending has not begun.
    pub fn close_now(&self) {
        self.close();
        self.release.all.cancel();
    }
}
