//! The dispatcher: sends the emails and events of committed changes, and has them marked.
//!
//! Nothing is sent except outbox entries, which are in the documents. The dispatcher starts the email senders (one for each
//! SMTP connection), the event sender and the marker, and stops them in that order.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::composer::Composer;
use super::database_clock::DatabaseClock;
use super::email_sender::{EmailSender, SentEmailLog};
use super::event_sender::EventSender;
use super::handover::{Handover, Queues};
use super::indexes::Indexes;
use super::lease;
use super::marker::{ASIDE_MAX, Flusher, Marker, UNMARKED_EVENTS_MAX};
use super::support_log::SupportLog;
use super::unmarked::{UNMARKED_EMAILS_MAX, UnmarkedEmails};
use crate::amqp::{Publisher, Topology};
use crate::store::Store;
use crate::store::outbox::delivery::{DeliveryResult, Mark};
use crate::store::outbox::entry::LeasedEntry;
use offramp_mail::{MailConnection, Transport};

/// How the dispatcher works.
#[derive(Clone, Copy, Debug)]
pub struct DispatcherOptions {
    /// How long entries belong to this process.
    pub lease: Duration,
    /// How many connections to the mail server are used at most.
    pub mail_connections: usize,
    /// `None` means unlimited.
    pub emails_per_second: Option<f64>,
}

/// What the dispatcher works with.
#[derive(Debug)]
pub struct DispatcherParts {
    pub store: Store,
    pub publisher: Publisher,
    pub topology: Topology,
    pub composer: Arc<Composer>,
    pub transport: Arc<Transport>,
    /// `source` of the events.
    pub source: Arc<str>,
    /// Absent: sent emails are not kept.
    pub keeping: Option<KeepingEmails>,
}

/// How sent emails are kept for support staff.
#[derive(Debug)]
pub struct KeepingEmails {
    /// For how long.
    pub kept: Duration,
    /// Tells when they may be written: not before MongoDB deletes old ones.
    pub indexes: Indexes,
}

/// Sends the entries that its [`Handover`] receives.
#[derive(Debug)]
pub struct Dispatcher {
    options: DispatcherOptions,
    clock: DatabaseClock,
    queues: Queues,
}

impl Dispatcher {
    /// A dispatcher, and the handover that feeds it.
    #[must_use]
    pub fn new(options: DispatcherOptions, clock: DatabaseClock) -> (Handover, Self) {
        let (handover, queues) = Handover::new(options.lease, options.emails_per_second, clock.clone());
        (handover, Self { options, clock, queues })
    }

    /// Sends entries until the handover is closed and each entry was tried and marked, or released.
    pub async fn run(self, parts: DispatcherParts) {
        let DispatcherOptions { lease, mail_connections, .. } = self.options;
        let clock = self.clock;
        let DispatcherParts { store, publisher, topology, composer, transport, source, keeping } = parts;
        let stopping = CancellationToken::new();
        let (sent_emails, writing) = match keeping {
            Some(KeepingEmails { kept, indexes }) => {
                let (log, writer) = SupportLog::new();
                let writing = tokio::spawn(writer.run(store.clone(), indexes, stopping.clone()));
                (Some(SentEmailLog { log, kept }), Some(writing))
            }
            None => (None, None),
        };
        let Queues { emails, events, mail_server, release } = self.queues;
        let (email_marks, tried_emails) = async_channel::bounded(UNMARKED_EMAILS_MAX);
        let (event_marks, tried_events) = async_channel::bounded(UNMARKED_EVENTS_MAX);
        let unmarked = Arc::new(UnmarkedEmails::default());
        let mut senders = JoinSet::new();
        for _ in 0..mail_connections {
            let sender = EmailSender {
                emails: emails.clone(),
                marks: email_marks.clone(),
                mail_server: Arc::clone(&mail_server),
                release: release.emails.clone(),
                unmarked: Arc::clone(&unmarked),
                composer: Arc::clone(&composer),
                connection: MailConnection::new(Arc::clone(&transport)),
                store: store.clone(),
                clock: clock.clone(),
                lease,
                source: Arc::clone(&source),
                sent_emails: sent_emails.clone(),
            };
            senders.spawn(sender.run());
        }
        drop(sent_emails);
        drop(email_marks);
        let event_sender = EventSender {
            events: events.clone(),
            marks: event_marks,
            release: release.all.clone(),
            publisher,
            topology,
            clock: clock.clone(),
            reserve: lease::reserve(lease),
        };
        senders.spawn(event_sender.run());
        let releasing = tokio::spawn(join(
            release_rest(emails, release.emails, store.clone(), Arc::clone(&unmarked), clock.clone()),
            release_rest(events, release.all.clone(), store.clone(), Arc::clone(&unmarked), clock),
        ));
        let (to_aside, aside) = async_channel::bounded(ASIDE_MAX);
        let flusher = Flusher { store, unmarked, lease };
        let marking_aside = tokio::spawn(flusher.clone().flush_aside(aside));
        let marking = tokio::spawn(Marker::new(tried_emails, tried_events, flusher, to_aside, mail_server).run());
        while let Some(ended) = senders.join_next().await {
            // A sender that panicked has a bug. Returning drops the other senders and ends the worker; a supervisor restarts it.
            if ended.is_err() {
                return;
            }
        }
        release.all.cancel();
        drop(releasing.await);
        // All senders have ended, so these end once everything is marked.
        drop(marking.await);
        drop(marking_aside.await);
        stopping.cancel();
        if let Some(writing) = writing {
            drop(writing.await);
        }
    }
}

/// Once `release` is cancelled, releases what remains in a queue, except for emails that this process has already sent.
async fn release_rest(
    queue: async_channel::Receiver<LeasedEntry>,
    release: CancellationToken,
    store: Store,
    unmarked: Arc<UnmarkedEmails>,
    clock: DatabaseClock,
) {
    release.cancelled().await;
    let at = clock.now();
    let rest = std::iter::from_fn(|| queue.try_recv().ok());
    let rest = rest.filter(|leased| !unmarked.contains(&leased.entry.id));
    let marks: Vec<_> = rest.map(|leased| Mark::new(&leased, DeliveryResult::Released { at })).collect();
    if !marks.is_empty() {
        tracing::info!(entries = marks.len(), "releasing unsent entries; any worker may claim them");
        store.release(&marks).await;
    }
}
