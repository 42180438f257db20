//! The dispatcher: sends the emails and events of committed changes, and marks them as sent.
//!
//! Nothing is sent except from the outbox entries in the documents. A commit hands its entries over in memory, under a lease;
//! whatever this process does not get done before the lease expires, any worker claims again ([`crate::worker::claimer`]). So the
//! queues here are bounded, and may be lost, without losing an email or an event.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::join;
use metrics::counter;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::advice;
use crate::amqp::{Outgoing, Publisher, Topology};
use crate::backoff::Backoff;
use crate::clock;
use crate::store::outbox::claim::{DeferralCause, DeliveryResult, Mark};
use crate::store::outbox::entry::{Content, EmailIdentity, Kind, Leased};
use crate::store::{Collection, Store, StoreError};
use crate::worker::pacer::{Pacer, Turn};
use offramp_domain::notification::Notification;
use offramp_mail::dkim::DkimSigner;
use offramp_mail::message::{ComposedEmail, Origin, Sender, compose};
use offramp_mail::smtp::{MailConnection, SendError, SenderProblem, Transport};
use offramp_mail::templates::Templates;

/// How many emails, and how many events, wait in memory: more than two full batches have. More wait in the database.
const QUEUE_MAX: usize = 512;
/// How long a lane waits for room in the queues, so that it does not run far ahead of a mail server that works.
const OFFER_PATIENCE: Duration = Duration::from_secs(1);
/// How long emails that wait for their turn may hold up a stop.
const CLOSING_PATIENCE: Duration = Duration::from_secs(5);
/// How many events are published at once.
const PUBLISH_MAX: usize = 512;
/// How many emails may be sent and not yet marked. When this process is killed, these are sent once more.
const UNMARKED_EMAILS_MAX: usize = 256;
/// How many published events may wait for the marker. A repeat is harmless: it has the same id.
const UNMARKED_EVENTS_MAX: usize = 512;
/// No email is sent while a statement that marks others takes longer than this: should this process be killed before the
/// database answers, each of them would be sent twice.
const MARKS_LATE_AFTER: Duration = Duration::from_millis(50);
/// How many entries are marked at once.
const FLUSH_MAX: usize = 256;
/// The shortest time from the end of one flush to the next, so that under load many entries share a statement. An entry after a
/// longer pause is marked at once.
const FLUSH_PAUSE: Duration = Duration::from_millis(10);
/// How long a published event waits for the emails of the same change, so that its document is written once for all of them.
const COMPANIONS_PATIENCE: Duration = Duration::from_millis(500);
/// How many events wait like that, and how many documents are remembered whose emails were faster.
const PARKED_MAX: usize = 1_024;
/// How many entries may wait to be marked because a part of the database (a shard) is unavailable.
const ASIDE_MAX: usize = 1_024;
/// How long a connection to the mail server is kept without an email.
const IDLE_MAX: Duration = Duration::from_secs(20);
/// How long to wait before an unavailable server is tried again: from the first to the longest, see [`Backoff`].
const RECONNECT_EVERY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(2));
/// How long an email that could not be sent is put off: the first time, and at most. See [`Backoff::delay_after`].
const EMAIL_PUT_OFF: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(15 * 60));
/// The same for an email that the mail server rejected because of the sender: an operator has to do something first.
const SENDER_PUT_OFF: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(60 * 60));
/// How long such an email is tried, from the first rejection on.
const SENDER_PATIENCE: TimeDelta = TimeDelta::hours(24);
/// How long an email is put off that may have been delivered; up to a quarter is added. A server that was only slow has
/// delivered it by then.
const IN_DOUBT_PUT_OFF: Duration = Duration::from_secs(15 * 60);
/// How often such an email is tried again.
const IN_DOUBT_RETRIES_MAX: i32 = 3;
/// How often a throttled email is tried before it is put off: until then, it costs the database nothing.
const THROTTLED_ATTEMPTS_MAX: u32 = 3;
/// How often a lease is tried to be extended while the database is unavailable.
const EXTEND_EVERY: Duration = Duration::from_secs(1);
/// How often the same reason is reported for which the mail server rejects this worker.
const REPORT_EVERY: Duration = Duration::from_secs(60 * 60);
/// How long an event is put off, likewise. There is one broker, which is back for all of them at once, and takes thousands a
/// second.
const EVENT_PUT_OFF: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(8));

/// Where committed changes leave their entries.
#[derive(Clone, Debug)]
pub struct Outbox {
    emails: async_channel::Sender<Leased>,
    events: async_channel::Sender<Leased>,
    mail_server: Arc<MailServer>,
    giving_back: GivingBack,
}

/// Tells senders to leave what is in the queues, which is given back then.
#[derive(Clone, Debug)]
struct GivingBack {
    all: CancellationToken,
    /// Cancelled with `all`, or before.
    emails: CancellationToken,
}

impl Default for GivingBack {
    fn default() -> Self {
        let all = CancellationToken::new();
        Self { emails: all.child_token(), all }
    }
}

/// What is known of the mail server.
#[derive(Debug)]
struct MailServer {
    is_unavailable: AtomicBool,
    /// How many emails are being sent to it, or wait because it was unavailable for them.
    in_hand: AtomicUsize,
    pacer: Pacer,
    /// How much of a lease emails may wait in memory.
    patience: Duration,
    /// What an operator was told, and when.
    reported: Mutex<HashMap<SenderProblem, Instant>>,
}

impl MailServer {
    fn is_unavailable(&self) -> bool {
        self.is_unavailable.load(Ordering::Relaxed)
    }

    /// How many emails may wait in memory: no more than can be sent before their lease is half over.
    fn queue_max(&self) -> usize {
        let allowance = self.pacer.allowance(self.patience);
        allowance.map_or(QUEUE_MAX, |allowance| allowance.clamp(1, QUEUE_MAX))
    }

    fn accepted(&self) {
        if self.pacer.accepted() {
            tracing::info!("the mail server accepts emails at the full rate again");
        }
    }

    fn throttled(&self, error: &SendError) {
        if self.pacer.throttled() {
            tracing::warn!(error = error.brief(), "the mail server throttles; this worker sends fewer emails");
        }
    }

    /// Says once what an operator has to do.
    fn report(&self, error: &SendError, problem: SenderProblem) {
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        if reported.get(&problem).is_none_or(|at| at.elapsed() >= REPORT_EVERY) {
            reported.insert(problem, Instant::now());
            let advice = advice::sender_problem(problem);
            tracing::error!(
                error = error.brief(),
                "the mail server rejects this worker: {advice}; its emails are retried for a day, then kept for an operator"
            );
        }
    }
}

/// Emails that were sent and are not marked yet: those that would be sent twice if this process were killed now.
#[derive(Debug)]
struct Unmarked {
    /// Their entries, so that one whose lease has expired meanwhile is not sent again by us.
    sent: Mutex<HashSet<String>>,
    permits: Arc<Semaphore>,
    /// How many flushes are late: see [`MARKS_LATE_AFTER`].
    late_flushes: watch::Sender<usize>,
}

impl Default for Unmarked {
    fn default() -> Self {
        Self {
            sent: Mutex::default(),
            permits: Arc::new(Semaphore::new(UNMARKED_EMAILS_MAX)),
            late_flushes: watch::Sender::new(0),
        }
    }
}

impl Unmarked {
    /// Waits until there is room for one more email.
    async fn permit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.permits).acquire_owned().await.ok()
    }

    /// Waits until no flush is late.
    async fn keep_up(&self) {
        // It is dropped with us.
        drop(self.late_flushes.subscribe().wait_for(|&late| late == 0).await);
    }

    fn forget(&self, marks: &[Mark]) {
        let mut sent = self.sent();
        for mark in marks {
            sent.remove(&mark.entry_id);
        }
    }

    fn sent(&self) -> MutexGuard<'_, HashSet<String>> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds new emails back until the guard is dropped.
    fn hold_back(&self) -> HeldBack<'_> {
        self.late_flushes.send_modify(|late| *late += 1);
        HeldBack(self)
    }
}

/// A flush that is late.
struct HeldBack<'a>(&'a Unmarked);

impl Drop for HeldBack<'_> {
    fn drop(&mut self) {
        self.0.late_flushes.send_modify(|late| *late -= 1);
    }
}

impl Outbox {
    /// Hands entries over. Returns those for which there is no room, to be given back for whoever has some: see
    /// [`Store::give_back`]. While the mail server is unavailable or throttles, nobody has: such emails wait for their lease to
    /// expire.
    #[must_use]
    pub async fn offer(&self, entries: Vec<Leased>) -> Vec<Mark> {
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
            let queue_max = self.mail_server.queue_max();
            if kind == Kind::Email && queue_max < QUEUE_MAX && self.emails.len() >= queue_max {
                continue;
            }
            let Err(full) = queue.try_send(leased) else { continue };
            let leased = full.into_inner();
            if kind == Kind::Email && self.mail_server.is_unavailable() {
                continue;
            }
            let mark = Mark::new(&leased, DeliveryResult::Released { at: clock::now() });
            if !matches!(timeout_at(patience, queue.send(leased)).await, Ok(Ok(()))) {
                no_room.push(mark);
            }
        }
        no_room
    }

    /// For how many entries of a kind there is room. While the mail server is unavailable: for one email at a time, which
    /// finds out whether it still is.
    #[must_use]
    pub fn room(&self, kind: Kind) -> usize {
        match kind {
            Kind::Email if self.mail_server.is_unavailable() => {
                usize::from(self.emails.is_empty() && self.mail_server.in_hand.load(Ordering::Relaxed) == 0)
            }
            Kind::Email => self.mail_server.queue_max().saturating_sub(self.emails.len()),
            Kind::Event => QUEUE_MAX.saturating_sub(self.events.len()),
        }
    }

    /// Takes no more: the dispatcher ends when it has sent what it has. Emails for which the mail server is unavailable or too
    /// slow are given back: another worker may have one that is not.
    pub fn close(&self) {
        self.emails.close();
        self.events.close();
        let allowance = self.mail_server.pacer.allowance(CLOSING_PATIENCE);
        let is_slow = allowance.is_some_and(|allowance| self.emails.len() > allowance);
        if self.mail_server.is_unavailable() || is_slow {
            self.giving_back.emails.cancel();
        }
    }

    /// Gives back what is not being sent yet.
    pub fn give_back(&self) {
        self.close();
        self.giving_back.all.cancel();
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
    /// What the email of an entry is recorded with before it is written.
    #[must_use]
    pub fn identify(&self, entry_id: Uuid, email: &Notification) -> EmailIdentity {
        EmailIdentity { message_id: self.sender.message_id(entry_id), locale: self.templates.language(email) }
    }

    /// The mail of an entry, in the reader's language.
    ///
    /// # Errors
    /// A sentence, when no later try can help: an address that is none, a template that does not go with the facts.
    pub fn write(&self, origin: Origin, mail: &Notification, at: DateTime<Utc>) -> Result<ComposedEmail, String> {
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
    emails: async_channel::Receiver<Leased>,
    events: async_channel::Receiver<Leased>,
    mail_server: Arc<MailServer>,
    giving_back: GivingBack,
    /// How long entries belong to this process.
    lease: Duration,
}

/// An outbox, and the dispatcher that empties it. Entries belong to this process for `lease`, and at most `mail_per_second`
/// emails are sent.
#[must_use]
pub fn outbox(lease: Duration, mail_per_second: Option<f64>) -> (Outbox, Dispatcher) {
    let (emails_in, emails) = async_channel::bounded(QUEUE_MAX);
    let (events_in, events) = async_channel::bounded(QUEUE_MAX);
    let mail_server = Arc::new(MailServer {
        is_unavailable: AtomicBool::new(false),
        in_hand: AtomicUsize::new(0),
        pacer: Pacer::new(mail_per_second),
        patience: lease / 4,
        reported: Mutex::default(),
    });
    let giving_back = GivingBack::default();
    let outbox = Outbox {
        emails: emails_in,
        events: events_in,
        mail_server: Arc::clone(&mail_server),
        giving_back: giving_back.clone(),
    };
    (outbox, Dispatcher { emails, events, mail_server, giving_back, lease })
}

/// An entry is sent only while this much of its lease is left.
fn reserve(lease: Duration) -> Duration {
    lease / 2
}

impl Dispatcher {
    /// Works with `connections` connections to the mail server until the outbox is closed and everything in it is sent or
    /// was tried, and marked, or is given back.
    pub async fn run(
        self,
        store: Store,
        publisher: Publisher,
        topology: Topology,
        writer: Arc<Writer>,
        transport: Arc<Transport>,
        connections: usize,
    ) {
        let (settle_email, settled_emails) = async_channel::bounded(UNMARKED_EMAILS_MAX);
        let (settle_event, settled_events) = async_channel::bounded(UNMARKED_EVENTS_MAX);
        let unmarked = Arc::new(Unmarked::default());
        let mut senders = JoinSet::new();
        for _ in 0..connections {
            let postman = Postman {
                emails: self.emails.clone(),
                settle: settle_email.clone(),
                mail_server: Arc::clone(&self.mail_server),
                giving_back: self.giving_back.emails.clone(),
                unmarked: Arc::clone(&unmarked),
                writer: Arc::clone(&writer),
                connection: MailConnection::new(Arc::clone(&transport)),
                store: store.clone(),
                lease: self.lease,
            };
            senders.spawn(postman.run());
        }
        drop(settle_email);
        let event_sender = EventSender {
            events: self.events.clone(),
            settle: settle_event,
            giving_back: self.giving_back.all.clone(),
            publisher,
            topology,
            reserve: reserve(self.lease),
        };
        senders.spawn(event_sender.run());
        let returning = tokio::spawn(join(
            give_back_rest(self.emails, self.giving_back.emails, store.clone(), Arc::clone(&unmarked)),
            give_back_rest(self.events, self.giving_back.all.clone(), store.clone(), Arc::clone(&unmarked)),
        ));
        let (put_aside, aside) = async_channel::bounded(ASIDE_MAX);
        let flusher = Flusher { store, unmarked, lease: self.lease };
        let marking_aside = tokio::spawn(flusher.clone().flush_aside(aside));
        let marker = Marker {
            emails: settled_emails,
            events: settled_events,
            aside: put_aside,
            flusher,
            mail_server: self.mail_server,
            parked: Parked::default(),
            emails_open: true,
            events_open: true,
        };
        let marking = tokio::spawn(marker.run());
        while let Some(ended) = senders.join_next().await {
            // One that broke has a mistake in it. The others must not go on as if nothing had happened: dropping them all
            // ends the worker.
            if ended.is_err() {
                return;
            }
        }
        self.giving_back.all.cancel();
        drop(returning.await);
        // All senders are gone, so these end when everything is marked.
        drop(marking.await);
        drop(marking_aside.await);
    }
}

/// Gives back what is left in a queue, once it is time to; but for what this process has sent already.
async fn give_back_rest(
    queue: async_channel::Receiver<Leased>,
    giving_back: CancellationToken,
    store: Store,
    unmarked: Arc<Unmarked>,
) {
    giving_back.cancelled().await;
    let at = clock::now();
    let rest = std::iter::from_fn(|| queue.try_recv().ok());
    let rest = rest.filter(|leased| !unmarked.sent().contains(&leased.entry.id));
    let marks: Vec<_> = rest.map(|leased| Mark::new(&leased, DeliveryResult::Released { at })).collect();
    if !marks.is_empty() {
        tracing::info!(entries = marks.len(), "releasing unsent entries; any worker may claim them");
        store.release(&marks).await;
    }
}

/// Sends emails over one connection.
struct Postman {
    emails: async_channel::Receiver<Leased>,
    settle: async_channel::Sender<Tried>,
    mail_server: Arc<MailServer>,
    giving_back: CancellationToken,
    unmarked: Arc<Unmarked>,
    writer: Arc<Writer>,
    connection: MailConnection,
    store: Store,
    lease: Duration,
}

/// How an attempt to send an email went.
struct Attempt {
    result: DeliveryResult,
    outcome: Outcome,
    /// Whether the server seems to be unavailable, if it was asked.
    is_unavailable: Option<bool>,
}

impl Postman {
    async fn run(mut self) {
        let (mail_server, giving_back) = (Arc::clone(&self.mail_server), self.giving_back.clone());
        let mut backoff = Backoff::new(RECONNECT_EVERY);
        while let Some(permit) = self.unmarked.permit().await {
            // The turn comes first, and nothing waits for it in hand: an email that waited could outlast its lease.
            let taking = timeout(IDLE_MAX, take_in_turn(&mail_server.pacer, &self.emails));
            let (turn, leased) = match giving_back.run_until_cancelled(taking).await {
                Some(Ok(Some(taken))) => taken,
                Some(Ok(None)) | None => break,
                Some(Err(_idle)) => {
                    self.connection.quit().await;
                    continue;
                }
            };
            self.unmarked.keep_up().await;
            let is_in_turn = if turn.is_valid() {
                let may_send = self.may_send(&leased);
                if may_send {
                    turn.take();
                }
                may_send
            } else {
                drop(turn);
                self.next_turn(&leased).await
            };
            if !is_in_turn {
                if !self.give_back(&leased, permit).await {
                    break;
                }
                continue;
            }
            mail_server.in_hand.fetch_add(1, Ordering::Relaxed);
            let is_marked = self.deliver(leased, permit, &mut backoff).await;
            mail_server.in_hand.fetch_sub(1, Ordering::Relaxed);
            if !is_marked {
                break;
            }
        }
        self.connection.quit().await;
    }

    fn may_send(&self, leased: &Leased) -> bool {
        may_send(leased, reserve(self.lease)) && !self.unmarked.sent().contains(&leased.entry.id)
    }

    /// Sends one email, or puts it off, and waits where the server is unavailable. Tells whether anybody still marks entries.
    async fn deliver(&mut self, leased: Leased, permit: OwnedSemaphorePermit, backoff: &mut Backoff) -> bool {
        let Content::Mail(email) = &leased.entry.content else { return true };
        let mut count_so_far = 1;
        let Attempt { result, is_unavailable, .. } = loop {
            let attempt = self.send(&leased, email).await;
            count(email, attempt.outcome);
            let is_last = attempt.outcome != Outcome::Throttled || count_so_far == THROTTLED_ATTEMPTS_MAX;
            if is_last || !self.next_turn(&leased).await {
                break attempt;
            }
            count_so_far += 1;
        };
        if matches!(result, DeliveryResult::Sent { .. }) {
            self.unmarked.sent().insert(leased.entry.id.clone());
        }
        let tried = Tried { mark: Mark::new(&leased, result), has_events: leased.has_companions, permit };
        if self.settle.send(tried).await.is_err() {
            return false;
        }
        let Some(is_unavailable) = is_unavailable else { return true };
        self.mail_server.is_unavailable.store(is_unavailable, Ordering::Relaxed);
        if is_unavailable {
            sleep(backoff.next_delay()).await;
        } else {
            *backoff = Backoff::new(RECONNECT_EVERY);
        }
        true
    }

    /// Leaves an email to whoever claims it, unless this process has sent it already. Tells whether anybody still marks entries.
    async fn give_back(&mut self, leased: &Leased, permit: OwnedSemaphorePermit) -> bool {
        if self.unmarked.sent().contains(&leased.entry.id) {
            return true;
        }
        let mark = Mark::new(leased, DeliveryResult::Released { at: clock::now() });
        self.settle.send(Tried { mark, has_events: false, permit }).await.is_ok()
    }

    /// Waits for one more turn for an email in hand. Returns whether it may be sent then.
    async fn next_turn(&mut self, leased: &Leased) -> bool {
        if self.emails.is_closed() {
            return false;
        }
        let patience = lease_left(leased).saturating_sub(reserve(self.lease));
        let turn = timeout(patience, self.mail_server.pacer.turn_aside());
        let Some(Ok(turn)) = self.giving_back.run_until_cancelled(turn).await else { return false };
        self.unmarked.keep_up().await;
        if !self.may_send(leased) {
            return false;
        }
        turn.take();
        true
    }

    async fn send(&mut self, leased: &Leased, email: &Notification) -> Attempt {
        let at = clock::now();
        let (entry, template) = (&leased.entry.id, email.template.as_str());
        let composed = match origin(leased).and_then(|origin| self.writer.write(origin, email, at)) {
            Ok(composed) => composed,
            Err(error) => {
                // Not the error: it may name an address.
                tracing::error!(
                    entry,
                    template,
                    "an email cannot be written; it is kept for an operator (`offramp outbox list` says why)"
                );
                return Attempt {
                    result: DeliveryResult::Failed { at, error },
                    outcome: Outcome::Refused,
                    is_unavailable: None,
                };
            }
        };
        match self.send_within_lease(leased, &composed).await {
            Ok(_) => {
                self.mail_server.accepted();
                Attempt {
                    result: DeliveryResult::Sent { at: clock::now() },
                    outcome: Outcome::Sent,
                    is_unavailable: Some(false),
                }
            }
            Err(error) => self.judge(leased, template, &error),
        }
    }

    /// Sends one email. When that takes long, its lease is extended, so that no other worker sends it meanwhile.
    async fn send_within_lease(&mut self, leased: &Leased, composed: &ComposedEmail) -> Result<String, SendError> {
        let lost = tokio::select! {
            biased;
            sent = self.connection.send(composed) => return sent,
            lost = lease_lost(&self.store, leased, self.lease) => lost,
        };
        Err(self.connection.interrupted(lost))
    }

    /// What becomes of an email that was not sent.
    fn judge(&self, leased: &Leased, template: &str, error: &SendError) -> Attempt {
        let entry = &leased.entry.id;
        let at = clock::now();
        let put_off = |pause: Duration, cause: DeferralCause| DeliveryResult::Deferred {
            until: at + TimeDelta::from_std(pause).unwrap_or(TimeDelta::MAX),
            error: advice::append(error, advice::send_error(error)),
            cause,
        };
        let put_off_as_usual =
            || put_off(Backoff::delay_after(leased.entry.attempts, EMAIL_PUT_OFF), DeferralCause::Ordinary);
        match error {
            SendError::Permanent(_) => {
                tracing::error!(
                    entry,
                    template,
                    error = error.brief(),
                    "the mail server rejected an email for good; it is kept for an operator"
                );
                let result = DeliveryResult::Failed { at, error: error.to_string() };
                Attempt { result, outcome: Outcome::Refused, is_unavailable: Some(false) }
            }
            SendError::Transient(_) => {
                self.mail_server.pacer.put_off();
                Attempt { result: put_off_as_usual(), outcome: Outcome::PutOff, is_unavailable: Some(false) }
            }
            SendError::Throttled(_) => {
                self.mail_server.throttled(error);
                Attempt { result: put_off_as_usual(), outcome: Outcome::Throttled, is_unavailable: Some(false) }
            }
            SendError::Unavailable(_) => {
                let error = advice::append(error.brief(), advice::send_error(error));
                tracing::warn!(error, "the mail server is unavailable; emails wait");
                Attempt { result: put_off_as_usual(), outcome: Outcome::PutOff, is_unavailable: Some(true) }
            }
            SendError::Sender { problem, rejects_connection, .. } => {
                self.mail_server.throttled(error);
                self.mail_server.report(error, *problem);
                let since = leased.entry.sender_rejected_at.map_or(at, bson::DateTime::to_chrono);
                let result = if at - since < SENDER_PATIENCE {
                    put_off(
                        Backoff::delay_after(leased.entry.attempts, SENDER_PUT_OFF),
                        DeferralCause::SenderRejected { at },
                    )
                } else {
                    tracing::error!(
                        entry,
                        template,
                        error = error.brief(),
                        "the mail server has rejected an email for a day because of the sender; it is kept for an operator"
                    );
                    DeliveryResult::Failed { at, error: error.to_string() }
                };
                Attempt { result, outcome: Outcome::SenderRejected, is_unavailable: Some(*rejects_connection) }
            }
            SendError::InDoubt(_) => {
                let result = if leased.entry.in_doubt < IN_DOUBT_RETRIES_MAX {
                    tracing::warn!(
                        entry,
                        template,
                        error = error.brief(),
                        "an email may have been delivered; it is retried later"
                    );
                    put_off(Backoff::delay_after(0, (IN_DOUBT_PUT_OFF, IN_DOUBT_PUT_OFF)), DeferralCause::InDoubt)
                } else {
                    tracing::error!(
                        entry,
                        template,
                        error = error.brief(),
                        "an email may have been delivered, several times; it is kept for an operator"
                    );
                    DeliveryResult::Failed { at, error: error.to_string() }
                };
                Attempt { result, outcome: Outcome::InDoubt, is_unavailable: Some(true) }
            }
        }
    }
}

/// Waits for a turn, then for an email. None: the queue is closed and empty.
async fn take_in_turn<'a>(pacer: &'a Pacer, emails: &async_channel::Receiver<Leased>) -> Option<(Turn<'a>, Leased)> {
    let turn = pacer.turn().await;
    Some((turn, emails.recv().await.ok()?))
}

fn count(email: &Notification, outcome: Outcome) {
    counter!("offramp_mails_total", "template" => email.template.as_str(), "outcome" => outcome.as_str()).increment(1);
}

/// How an attempt to send an email went, for the metric.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Sent,
    Refused,
    PutOff,
    Throttled,
    SenderRejected,
    InDoubt,
}

impl Outcome {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Refused => "refused",
            Self::PutOff => "put_off",
            Self::Throttled => "throttled",
            Self::SenderRejected => "sender_rejected",
            Self::InDoubt => "in_doubt",
        }
    }
}

/// Extends the lease of an entry whenever only the reserve is left of it. Ends, with a reason, when the lease is lost.
async fn lease_lost(store: &Store, leased: &Leased, lease: Duration) -> &'static str {
    let mut left = lease_left(leased);
    loop {
        sleep(left.saturating_sub(reserve(lease))).await;
        match timeout(left.min(reserve(lease)), extend(store, leased, lease)).await {
            Ok(Some(extended_at)) => left = lease.saturating_sub(extended_at.elapsed()),
            Ok(None) => return "it took longer than its lease, and another worker has the email",
            Err(_) => return "it took longer than its lease, which could not be extended",
        }
    }
}

/// Extends the lease of an entry, trying until the database answers. Returns from when on it lasts, if the entry is still ours.
async fn extend(store: &Store, leased: &Leased, lease: Duration) -> Option<Instant> {
    loop {
        let extended_at = Instant::now();
        let until = clock::now() + TimeDelta::from_std(lease).unwrap_or(TimeDelta::MAX);
        match store.extend(leased, until).await {
            Ok(is_ours) => return is_ours.then_some(extended_at),
            Err(_) => sleep(EXTEND_EVERY).await,
        }
    }
}

/// The mark of an email, and the room that it takes until it is written.
struct Tried {
    mark: Mark,
    /// Whether events of the same change are under way.
    has_events: bool,
    permit: OwnedSemaphorePermit,
}

/// Publishes events, as many at once as there are.
struct EventSender {
    events: async_channel::Receiver<Leased>,
    settle: async_channel::Sender<Published>,
    giving_back: CancellationToken,
    publisher: Publisher,
    topology: Topology,
    reserve: Duration,
}

impl EventSender {
    async fn run(self) {
        let exchange = self.topology.event_exchange();
        while let Some(Some(bulk)) = self.giving_back.run_until_cancelled(take_bulk(&self.events)).await {
            let bulk: Vec<Leased> = bulk.into_iter().filter(|leased| may_send(leased, self.reserve)).collect();
            let messages: Vec<_> = bulk
                .iter()
                .filter_map(|leased| match &leased.entry.content {
                    Content::Event(event) => Some(Outgoing::event(exchange.as_str(), event.kind.as_str(), event)),
                    Content::Mail(_) => None,
                })
                .collect();
            let results = self.giving_back.run_until_cancelled(self.publisher.publish_all(&messages)).await;
            let mut results = results.into_iter().flatten();
            for leased in bulk {
                let count = |outcome| counter!("offramp_events_total", "outcome" => outcome).increment(1);
                let result = match results.next() {
                    Some(Ok(())) => {
                        count("published");
                        DeliveryResult::Sent { at: clock::now() }
                    }
                    Some(Err(error)) => {
                        count("put_off");
                        let until = put_off_until(&leased, EVENT_PUT_OFF);
                        DeliveryResult::Deferred { until, error: error.to_string(), cause: DeferralCause::Ordinary }
                    }
                    None => DeliveryResult::Released { at: clock::now() },
                };
                let has_emails = leased.has_companions && matches!(result, DeliveryResult::Sent { .. });
                if self.settle.send(Published { mark: Mark::new(&leased, result), has_emails }).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// The mark of an event.
struct Published {
    mark: Mark,
    /// Whether emails of the same change are under way.
    has_emails: bool,
}

/// Marks entries, many at once: those of an email at once, unless others were marked just before.
struct Marker {
    emails: async_channel::Receiver<Tried>,
    events: async_channel::Receiver<Published>,
    flusher: Flusher,
    /// See [`Flusher::flush`].
    aside: async_channel::Sender<Mark>,
    mail_server: Arc<MailServer>,
    parked: Parked,
    emails_open: bool,
    events_open: bool,
}

impl Marker {
    async fn run(mut self) {
        let mut batch = Batch::default();
        let mut flushes = JoinSet::new();
        let mut flushed_at: Option<Instant> = None;
        loop {
            if !self.emails_open && !self.events_open {
                batch.marks.extend(self.parked.take_all());
                if batch.marks.is_empty() && flushes.is_empty() {
                    return;
                }
            }
            let has_room = batch.marks.len() < FLUSH_MAX;
            let flush_at = (!batch.marks.is_empty() && flushes.is_empty()).then(|| match flushed_at {
                Some(flushed_at) if has_room => flushed_at + FLUSH_PAUSE,
                _ => Instant::now(),
            });
            tokio::select! {
                received = self.emails.recv(), if self.emails_open && has_room => match received {
                    Ok(tried) => {
                        if tried.has_events {
                            batch.marks.extend(self.parked.take(&tried.mark));
                        }
                        batch.marks.push(tried.mark);
                        batch.permits.push(tried.permit);
                    }
                    Err(_closed) => self.emails_open = false,
                },
                received = self.events.recv(), if self.events_open && has_room => match received {
                    Ok(Published { mark, has_emails }) => {
                        let waits = has_emails && !self.mail_server.is_unavailable();
                        batch.marks.extend(if waits { self.parked.park(mark) } else { Some(mark) });
                    }
                    Err(_closed) => self.events_open = false,
                },
                () = wait_until(self.parked.next_deadline()), if has_room => {
                    batch.marks.extend(self.parked.take_overdue());
                }
                () = wait_until(flush_at) => {
                    let batch = std::mem::take(&mut batch);
                    flushes.spawn(self.flusher.clone().flush(batch, self.aside.clone()));
                }
                Some(ended) = flushes.join_next() => {
                    // One that broke has a mistake in it: see [`Dispatcher::run`].
                    if ended.is_err() {
                        return;
                    }
                    flushed_at = Some(Instant::now());
                }
            }
        }
    }
}

/// Marks that are written together.
#[derive(Default)]
struct Batch {
    marks: Vec<Mark>,
    permits: Vec<OwnedSemaphorePermit>,
}

/// Writes marks. While the database is unavailable they wait here, and senders wait with them.
#[derive(Clone)]
struct Flusher {
    store: Store,
    unmarked: Arc<Unmarked>,
    lease: Duration,
}

impl Flusher {
    /// Hands marks that only a part of the database cannot take now to `aside`.
    async fn flush(self, batch: Batch, aside: async_channel::Sender<Mark>) {
        let Batch { mut marks, permits } = batch;
        let began = Instant::now();
        let troubled = {
            let settling = self.settle(&marks);
            tokio::pin!(settling);
            match timeout(MARKS_LATE_AFTER, &mut settling).await {
                Ok(troubled) => troubled,
                Err(_late) => {
                    let _held_back = self.unmarked.hold_back();
                    settling.await
                }
            }
        };
        let again = take(&mut marks, troubled);
        if began.elapsed() < self.lease / 4 {
            self.unmarked.forget(&marks);
        } else {
            self.forget_after_lease(marks);
        }
        drop(permits);
        for mark in again {
            if aside.send(mark).await.is_err() {
                return;
            }
        }
    }

    /// Returns the positions of marks that are to be repeated, in ascending order.
    async fn settle(&self, marks: &[Mark]) -> Vec<usize> {
        let mut backoff = Backoff::new(RECONNECT_EVERY);
        loop {
            match self.store.settle(marks).await {
                Ok(troubled) => return troubled,
                Err(error @ (StoreError::Unavailable(_) | StoreError::TimedOut)) => {
                    tracing::warn!(%error, entries = marks.len(), "sent entries cannot be marked yet; retrying");
                    sleep(backoff.next_delay()).await;
                }
                Err(StoreError::Refused(error)) => {
                    tracing::error!(%error, entries = marks.len(), "MongoDB refuses to mark sent entries; they may be sent again");
                    return Vec::new();
                }
            }
        }
    }

    /// Marks entries again that a part of the database could not take, without holding up the marks of the others.
    async fn flush_aside(self, aside: async_channel::Receiver<Mark>) {
        while let Ok(first) = aside.recv().await {
            let mut marks = vec![first];
            let mut backoff = Backoff::new(RECONNECT_EVERY);
            while !marks.is_empty() {
                sleep(backoff.next_delay()).await;
                while marks.len() < ASIDE_MAX
                    && let Ok(mark) = aside.try_recv()
                {
                    marks.push(mark);
                }
                let troubled = self.settle(&marks).await;
                let again = take(&mut marks, troubled);
                self.forget_after_lease(marks);
                marks = again;
            }
        }
    }

    /// Forgets entries that were marked so late that this process may have claimed them again, and have them in its queue.
    fn forget_after_lease(&self, marks: Vec<Mark>) {
        let (unmarked, lease) = (Arc::clone(&self.unmarked), self.lease);
        tokio::spawn(async move {
            sleep(lease).await;
            unmarked.forget(&marks);
        });
    }
}

/// Takes the items at these positions, which ascend.
fn take<T>(items: &mut Vec<T>, positions: Vec<usize>) -> Vec<T> {
    positions.into_iter().rev().map(|position| items.swap_remove(position)).collect()
}

/// Waits until an instant; for ever where there is none.
async fn wait_until(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

/// Events that are published, and wait for the emails of the same document to be marked with them.
#[derive(Default)]
struct Parked {
    of_document: HashMap<(Collection, String), Vec<Mark>>,
    /// Until when, oldest first. A document may be marked and gone.
    deadlines: VecDeque<(Instant, (Collection, String))>,
    /// Documents whose emails were there before their events, which need not wait any more; and these in their order.
    early: HashSet<(Collection, String)>,
    early_order: VecDeque<(Collection, String)>,
}

impl Parked {
    /// Takes an event in, unless its email was there before it, or there is no room.
    fn park(&mut self, mark: Mark) -> Option<Mark> {
        if self.early.contains(&(mark.collection, mark.document_id.clone())) {
            return Some(mark);
        }
        if self.deadlines.len() >= 4 * PARKED_MAX {
            self.deadlines.retain(|(_, document)| self.of_document.contains_key(document));
        }
        if self.of_document.len() >= PARKED_MAX {
            return Some(mark);
        }
        let document = (mark.collection, mark.document_id.clone());
        self.deadlines.push_back((Instant::now() + COMPANIONS_PATIENCE, document.clone()));
        self.of_document.entry(document).or_default().push(mark);
        None
    }

    /// The events that have waited for an email's mark.
    fn take(&mut self, email: &Mark) -> Vec<Mark> {
        let document = (email.collection, email.document_id.clone());
        if let Some(events) = self.of_document.remove(&document) {
            return events;
        }
        if self.early.insert(document.clone()) {
            self.early_order.push_back(document);
        }
        if self.early_order.len() > PARKED_MAX
            && let Some(oldest) = self.early_order.pop_front()
        {
            self.early.remove(&oldest);
        }
        Vec::new()
    }

    fn take_overdue(&mut self) -> Vec<Mark> {
        let now = Instant::now();
        let mut overdue = Vec::new();
        while self.next_deadline().is_some_and(|deadline| deadline <= now) {
            let document = self.deadlines.pop_front().map(|(_, document)| document);
            overdue.extend(document.and_then(|document| self.of_document.remove(&document)).unwrap_or_default());
        }
        overdue
    }

    fn take_all(&mut self) -> Vec<Mark> {
        self.deadlines.clear();
        self.of_document.drain().flat_map(|(_, marks)| marks).collect()
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.front().map(|(deadline, _)| *deadline)
    }
}

/// Waits for one, then takes what is there. None: closed and empty.
async fn take_bulk<T>(queue: &async_channel::Receiver<T>) -> Option<Vec<T>> {
    let mut bulk = vec![queue.recv().await.ok()?];
    while bulk.len() < PUBLISH_MAX {
        match queue.try_recv() {
            Ok(item) => bulk.push(item),
            Err(_) => break,
        }
    }
    Some(bulk)
}

/// Whether enough of the lease is left: nobody else may take the entry before this process is done with it.
fn may_send(leased: &Leased, reserve: Duration) -> bool {
    lease_left(leased) >= reserve
}

fn lease_left(leased: &Leased) -> Duration {
    let due = leased.entry.due.map(bson::DateTime::to_chrono);
    due.and_then(|due| (due - clock::now()).to_std().ok()).unwrap_or_default()
}

/// When an entry that was tried in vain may be tried again.
fn put_off_until(leased: &Leased, backoff: (Duration, Duration)) -> DateTime<Utc> {
    clock::now() + TimeDelta::from_std(Backoff::delay_after(leased.entry.attempts, backoff)).unwrap_or(TimeDelta::MAX)
}
