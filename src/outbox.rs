//! The dispatcher: sends what committed changes entail, and marks it done.
//!
//! Nothing is sent except from the outbox entries in the documents. A commit hands its entries over in memory, under a lease;
//! whatever this process does not get done before the lease runs out, any worker claims again ([`crate::sweeper`]), and what
//! it has no room for it gives back at once. So the queues here are bounded, and may be lost, without losing a mail or an
//! event.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use metrics::counter;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};
use uuid::Uuid;

use crate::broker::{Outgoing, Publisher, Topology};
use crate::clock;
use crate::domain::notification::Notification;
use crate::mail::dkim::DkimSigner;
use crate::mail::message::{Composed, Origin, Sender, compose};
use crate::mail::smtp::{MailConnection, SendError, Transport};
use crate::mail::templates::Templates;
use crate::pauses::Pauses;
use crate::store::documents::SentDocument;
use crate::store::leases::{Fate, Mark};
use crate::store::outbox::{Content, Leased};
use crate::store::{Store, StoreError};

/// How many mails, and how many events, wait in memory: what two full batches entail. More wait in the database.
const QUEUE_MAX: usize = 512;
/// How long a lane waits for room in the queues, so that it does not run far ahead of a mail server that works.
const OFFER_PATIENCE: Duration = Duration::from_secs(1);
/// How many events are published, and how many entries are marked, at once.
const BULK_MAX: usize = 512;
/// How many entries may have left while others are being marked. They leave once more when this process is killed before it
/// has marked them, so nothing leaves any more soon after the database has gone.
const UNMARKED_MAX: usize = 128;
/// How long a connection to the mail server is kept without a mail.
const IDLE_MAX: Duration = Duration::from_secs(20);
/// How long to wait before a server that is away is tried again: from the first to the longest. A random part up to the
/// same length is added.
const RECONNECT_EVERY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(2));
/// How long a mail that could not leave is put off: the first time, and at most, in seconds.
const MAIL_PUT_OFF_SECONDS: (i64, i64) = (5, 15 * 60);
/// The same for an event. There is one broker, which is back for all of them at once, and takes thousands a second.
const EVENT_PUT_OFF_SECONDS: (i64, i64) = (2, 8);

/// Where committed changes leave their entries.
#[derive(Clone, Debug)]
pub struct Outbox {
    mails: async_channel::Sender<Leased>,
    events: async_channel::Sender<Leased>,
    mail_server_is_away: Arc<AtomicBool>,
}

impl Outbox {
    /// Hands entries over, and gives back those for which there is no room, for whoever has some: see [`Store::give_back`].
    #[must_use]
    pub async fn offer(&self, entries: Vec<Leased>) -> Vec<Mark> {
        // Events first: they do not wait for a mail server.
        let (events, mails): (Vec<_>, Vec<_>) =
            entries.into_iter().partition(|leased| matches!(leased.entry.content, Content::Event(_)));
        let patience = Instant::now() + OFFER_PATIENCE;
        let mut no_room = Vec::new();
        for leased in events.into_iter().chain(mails) {
            let (queue, may_wait) = match &leased.entry.content {
                Content::Mail(_) => (&self.mails, !self.mail_server_is_away.load(Ordering::Relaxed)),
                Content::Event(_) => (&self.events, true),
            };
            let Err(full) = queue.try_send(leased) else { continue };
            let leased = full.into_inner();
            let given_back = Mark {
                collection: leased.collection,
                document_id: leased.document_id.clone(),
                entry_id: leased.entry.id.clone(),
                holder: leased.entry.holder.clone(),
                fate: Fate::GivenBack,
            };
            if !may_wait || !matches!(timeout_at(patience, queue.send(leased)).await, Ok(Ok(()))) {
                no_room.push(given_back);
            }
        }
        no_room
    }

    /// How many entries to claim now: as many as there is room for.
    #[must_use]
    pub fn room(&self) -> usize {
        let room = |queue: &async_channel::Sender<Leased>| QUEUE_MAX.saturating_sub(queue.len());
        room(&self.mails).min(room(&self.events))
    }

    /// Takes no more: the dispatcher ends when it has sent what it has.
    pub fn close(&self) {
        self.mails.close();
        self.events.close();
    }
}

/// What it takes to write a mail.
#[derive(Debug)]
pub struct Writer {
    /// The words.
    pub templates: Templates,
    /// The address that mails come from.
    pub sender: Sender,
    /// Who signs them.
    pub signer: Option<Arc<DkimSigner>>,
}

impl Writer {
    /// The mail of an entry, in the reader's language.
    ///
    /// # Errors
    /// A sentence, when no later try can help: an address that is none, a template that does not go with the facts.
    pub fn write(&self, origin: Origin, mail: &Notification, at: DateTime<Utc>) -> Result<Composed, String> {
        let rendered = self.templates.render(mail).map_err(|error| error.to_string())?;
        let composed = compose(&self.sender, origin, mail, rendered, at).map_err(|error| error.to_string())?;
        Ok(composed.signed_by(self.signer.clone()))
    }
}

/// What the ids of an entry's mail are made of.
///
/// # Errors
/// A sentence, when the entry's id is none of ours.
pub fn origin(leased: &Leased) -> Result<Origin, String> {
    let entry_id =
        Uuid::parse_str(&leased.entry.id).map_err(|error| format!("the entry's id is not a UUID: {error}"))?;
    Ok(Origin { entry_id, conversation_id: leased.conversation_id() })
}

/// Sends entries until the [`Outbox`] is closed.
#[derive(Debug)]
pub struct Dispatcher {
    mails: async_channel::Receiver<Leased>,
    events: async_channel::Receiver<Leased>,
    mail_server_is_away: Arc<AtomicBool>,
    settled: async_channel::Receiver<Mark>,
    settle: async_channel::Sender<Mark>,
    /// An entry is sent only while this much of its lease is left, and within it.
    reserve: Duration,
}

/// An outbox, and the dispatcher that empties it. Entries belong to this process for `lease`.
#[must_use]
pub fn outbox(lease: Duration) -> (Outbox, Dispatcher) {
    let (mails_in, mails) = async_channel::bounded(QUEUE_MAX);
    let (events_in, events) = async_channel::bounded(QUEUE_MAX);
    let (settle, settled) = async_channel::bounded(UNMARKED_MAX);
    let mail_server_is_away = Arc::new(AtomicBool::new(false));
    let outbox = Outbox { mails: mails_in, events: events_in, mail_server_is_away: Arc::clone(&mail_server_is_away) };
    (outbox, Dispatcher { mails, events, mail_server_is_away, settled, settle, reserve: lease / 2 })
}

impl Dispatcher {
    /// Works with `connections` connections to the mail server until the outbox is closed and everything in it is sent or
    /// was tried.
    pub async fn run(
        self,
        store: Store,
        publisher: Publisher,
        topology: Topology,
        writer: Arc<Writer>,
        transport: Arc<Transport>,
        connections: usize,
    ) {
        let mut senders = JoinSet::new();
        for _ in 0..connections {
            let postman = Postman {
                mails: self.mails.clone(),
                settle: self.settle.clone(),
                mail_server_is_away: Arc::clone(&self.mail_server_is_away),
                writer: Arc::clone(&writer),
                connection: MailConnection::new(Arc::clone(&transport)),
                reserve: self.reserve,
            };
            senders.spawn(postman.run());
        }
        senders.spawn(publish_events(self.events, self.settle, publisher, topology, self.reserve));
        let marking = tokio::spawn(mark(self.settled, store));
        while let Some(ended) = senders.join_next().await {
            // One that broke has a mistake in it. The others must not go on as if nothing had happened: dropping them all
            // ends the worker.
            if ended.is_err() {
                return;
            }
        }
        // All senders are gone, and with them the last ones who could add to what is to be marked.
        drop(marking.await);
    }
}

/// Sends mails over one connection.
struct Postman {
    mails: async_channel::Receiver<Leased>,
    settle: async_channel::Sender<Mark>,
    mail_server_is_away: Arc<AtomicBool>,
    writer: Arc<Writer>,
    connection: MailConnection,
    reserve: Duration,
}

impl Postman {
    async fn run(mut self) {
        let mut pauses = Pauses::between(RECONNECT_EVERY);
        loop {
            let leased = match timeout(IDLE_MAX, self.mails.recv()).await {
                Ok(Ok(leased)) => leased,
                Ok(Err(_closed)) => break,
                Err(_idle) => {
                    self.connection.quit().await;
                    continue;
                }
            };
            let Content::Mail(mail) = &leased.entry.content else { continue };
            if !may_send(&leased, self.reserve) {
                continue;
            }
            let (fate, is_away) = self.send(&leased, mail).await;
            count(mail, &fate);
            if self.settle.send(mark_of(leased, fate)).await.is_err() {
                break;
            }
            self.mail_server_is_away.store(is_away, Ordering::Relaxed);
            if is_away {
                tokio::time::sleep(pauses.next_pause()).await;
            } else {
                pauses = Pauses::between(RECONNECT_EVERY);
            }
        }
        self.connection.quit().await;
    }

    /// Sends one mail; also tells whether the server seems to be away.
    async fn send(&mut self, leased: &Leased, mail: &Notification) -> (Fate, bool) {
        let at = clock::now();
        let composed = match origin(leased).and_then(|origin| self.writer.write(origin, mail, at)) {
            Ok(composed) => composed,
            Err(error) => {
                tracing::error!(entry = leased.entry.id, template = %mail.template, %error, "a mail cannot be written; it is kept for an operator");
                return (Fate::Refused { at, error }, false);
            }
        };
        let sent = timeout(self.reserve, self.connection.send(&composed))
            .await
            .unwrap_or_else(|_| Err(SendError::Unavailable("took too long".to_owned())));
        let put_off = |error: String| Fate::PutOff {
            until: put_off_until(clock::now(), leased.entry.attempts, MAIL_PUT_OFF_SECONDS),
            error,
        };
        match sent {
            Ok(_) => {
                let sent = SentDocument {
                    id: leased.entry.id.clone(),
                    template: mail.template.to_string(),
                    to: mail.to.email.clone(),
                    role: mail.recipient.as_str().to_owned(),
                    locale: composed.language,
                    sent_at: clock::now().into(),
                    message_id: composed.message_id,
                };
                (Fate::Sent(sent), false)
            }
            Err(SendError::Permanent(error)) => {
                tracing::error!(entry = leased.entry.id, template = %mail.template, %error, "the mail server refuses a mail for good; it is kept for an operator");
                (Fate::Refused { at: clock::now(), error }, false)
            }
            Err(SendError::Transient(error)) => (put_off(error), false),
            Err(SendError::Unavailable(error)) => {
                tracing::warn!(%error, "the mail server is away; mails wait");
                (put_off(error), true)
            }
        }
    }
}

/// Publishes events, as many at once as there are.
async fn publish_events(
    events: async_channel::Receiver<Leased>,
    settle: async_channel::Sender<Mark>,
    publisher: Publisher,
    topology: Topology,
    reserve: Duration,
) {
    let exchange = topology.event_exchange();
    while let Some(bulk) = take_bulk(&events).await {
        let bulk: Vec<Leased> = bulk.into_iter().filter(|leased| may_send(leased, reserve)).collect();
        let messages: Vec<_> = bulk
            .iter()
            .filter_map(|leased| match &leased.entry.content {
                Content::Event(event) => Some(Outgoing::event(exchange.as_str(), event.kind.as_str(), event)),
                Content::Mail(_) => None,
            })
            .collect();
        let results = publisher.publish_all(&messages).await;
        for (leased, result) in bulk.into_iter().zip(results) {
            let fate = match result {
                Ok(()) => Fate::Published,
                Err(error) => {
                    let until = put_off_until(clock::now(), leased.entry.attempts, EVENT_PUT_OFF_SECONDS);
                    Fate::PutOff { until, error: error.to_string() }
                }
            };
            counter!("offramp_events_total", "outcome" => if matches!(fate, Fate::Published) { "published" } else { "put_off" })
                .increment(1);
            if settle.send(mark_of(leased, fate)).await.is_err() {
                return;
            }
        }
    }
}

/// Marks entries, as many at once as there are. While the database is away they wait here, and senders wait for room.
async fn mark(settled: async_channel::Receiver<Mark>, store: Store) {
    while let Some(bulk) = take_bulk(&settled).await {
        let mut pauses = Pauses::between(RECONNECT_EVERY);
        loop {
            match store.settle(&bulk).await {
                Ok(()) => break,
                Err(error @ (StoreError::Unavailable(_) | StoreError::TimedOut)) => {
                    tracing::warn!(%error, entries = bulk.len(), "what was sent cannot be marked yet");
                    tokio::time::sleep(pauses.next_pause()).await;
                }
                Err(StoreError::Refused(error)) => {
                    tracing::error!(%error, entries = bulk.len(), "what was sent cannot be marked; it will be sent again");
                    break;
                }
            }
        }
    }
}

/// Waits for one, then takes what is there. None: closed and empty.
async fn take_bulk<T>(queue: &async_channel::Receiver<T>) -> Option<Vec<T>> {
    let mut bulk = vec![queue.recv().await.ok()?];
    while bulk.len() < BULK_MAX {
        match queue.try_recv() {
            Ok(item) => bulk.push(item),
            Err(_) => break,
        }
    }
    Some(bulk)
}

/// Whether enough of the lease is left: nobody else may take the entry before this process is done with it.
fn may_send(leased: &Leased, reserve: Duration) -> bool {
    let reserve = TimeDelta::from_std(reserve).unwrap_or(TimeDelta::MAX);
    leased.entry.due.is_some_and(|due| due.to_chrono() - clock::now() >= reserve)
}

fn mark_of(leased: Leased, fate: Fate) -> Mark {
    Mark {
        collection: leased.collection,
        document_id: leased.document_id,
        entry_id: leased.entry.id,
        holder: leased.entry.holder,
        fate,
    }
}

/// When an entry that was tried in vain `attempts` times before may be tried again: later each time, and not all at once.
fn put_off_until(now: DateTime<Utc>, attempts: i32, (first, longest): (i64, i64)) -> DateTime<Utc> {
    let seconds = first.saturating_mul(1 << attempts.clamp(0, 20)).min(longest);
    let jitter = TimeDelta::milliseconds(i64::try_from(Uuid::new_v4().as_u128() % 1000).unwrap_or(0) * seconds / 4);
    now + TimeDelta::seconds(seconds) + jitter
}

fn count(mail: &Notification, fate: &Fate) {
    let outcome = match fate {
        Fate::Sent(_) => "sent",
        Fate::Refused { .. } => "refused",
        Fate::PutOff { .. } | Fate::GivenBack | Fate::Published => "put_off",
    };
    counter!("offramp_mails_total", "template" => mail.template.as_str(), "outcome" => outcome).increment(1);
}
