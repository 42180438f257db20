//! Messages that cannot be settled, because RabbitMQ rejects what must be confirmed first. They are kept unacknowledged and
//! tried again, while their lane goes on with all others; the lane is not ready meanwhile, and says why.
//!
//! A kept message is safe: the broker has it, and gives it to somebody else when this process ends. See "Rejected copies"
//! in ARCHITECTURE.md for why it is not handed back.

use std::mem;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use metrics::counter;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::lane::RETURNS_WORN;
use crate::amqp::message::weight;
use crate::amqp::{Delivery, Kept, LaneHealth, Outgoing, PublishError, Publisher};
use crate::backoff::Backoff;
use offramp_domain::command::CommandType;

/// How long to wait before rejected copies are published again: from the first to the longest, see [`Backoff`].
const TRY_EVERY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
/// How long a message is kept before a copy of it takes its place. RabbitMQ takes everything back from a consumer that has
/// not acknowledged a message within 30 minutes.
const KEPT_MAX: Duration = Duration::from_secs(10 * 60);
/// How many messages a lane sets aside before it takes no more.
const MESSAGES_MAX: usize = 200;
/// How much those may weigh in memory, in bytes. A single one may weigh more.
const BYTES_MAX: usize = 32 * 1024 * 1024;
/// How long the queues that senders want their answers in may take to confirm them, all together.
const ANSWER_PATIENCE: Duration = Duration::from_secs(2);

/// What is left to do for a message before it can be acknowledged.
#[derive(Debug)]
pub(super) struct Errand {
    /// How the message is counted once it is settled.
    outcome: &'static str,
    /// What must be confirmed.
    copies: Vec<Outgoing>,
    /// What is sent once when everything is confirmed.
    answers: Vec<Outgoing>,
    /// Why the newest copy was not taken.
    problem: Option<String>,
}

impl Errand {
    pub(super) fn new(outcome: &'static str, copies: Vec<Outgoing>, answers: Vec<Outgoing>) -> Self {
        Self { outcome, copies, answers, problem: None }
    }

    /// The errand of a message that a copy takes the place of. It is not settled by that, so it is not to be counted.
    pub(super) fn copy(copy: Outgoing) -> Self {
        Self::new("", vec![copy], Vec::new())
    }

    /// Whether its message may be acknowledged.
    pub(super) fn is_done(&self) -> bool {
        self.copies.is_empty()
    }

    pub(super) fn take_answers(&mut self) -> Vec<Outgoing> {
        mem::take(&mut self.answers)
    }

    /// Counts its message as settled: after the ack, so that nothing counts twice that comes again.
    pub(super) fn count(&self, lane: CommandType) {
        counter!("offramp_commands_total", "lane" => lane.as_str(), "outcome" => self.outcome).increment(1);
    }
}

/// Publishes every copy once. What was confirmed is removed from its errand. The answer is why the others were not.
pub(super) async fn publish<'a>(
    lane: CommandType,
    publisher: &Publisher,
    errands: impl Iterator<Item = &'a mut Errand>,
) -> Vec<PublishError> {
    let mut errands: Vec<_> = errands.filter(|errand| !errand.is_done()).collect();
    if errands.is_empty() {
        return Vec::new();
    }
    let (mut owners, mut copies) = (Vec::new(), Vec::new());
    for (index, errand) in errands.iter_mut().enumerate() {
        for copy in mem::take(&mut errand.copies) {
            owners.push(index);
            copies.push(copy);
        }
    }
    let results = publisher.publish_all(&copies).await;
    let mut errors = Vec::new();
    for ((owner, copy), result) in owners.into_iter().zip(copies).zip(results) {
        let Err(error) = result else { continue };
        if error == PublishError::Unroutable {
            counter!("offramp_unroutable_total", "lane" => lane.as_str()).increment(1);
        }
        // The default exchange takes a queue's name for its key; the other exchanges have the names of what they lead to.
        let target = if copy.exchange.is_empty() { &copy.routing_key } else { &copy.exchange };
        errands[owner].problem = Some(format!("a message to '{target}': {error}"));
        errands[owner].copies.push(copy);
        errors.push(error);
    }
    errors
}

/// Publishes the answers to `reply_to`, once, when all else is confirmed. The queue for the answer is the sender's own
/// affair: full, gone or silent, it must not hold up the lane.
pub(super) async fn answer(lane: CommandType, publisher: &Publisher, answers: Vec<Outgoing>) {
    if answers.is_empty() {
        return;
    }
    let Ok(results) = timeout(ANSWER_PATIENCE, publisher.publish_all(&answers)).await else {
        tracing::warn!(%lane, answers = answers.len(), "some answers to reply_to were not confirmed; they are not repeated");
        return;
    };
    for error in results.into_iter().filter_map(Result::err) {
        tracing::warn!(%lane, %error, "an answer to reply_to was not delivered; it is not repeated");
    }
}

/// The messages of one lane that are set aside.
#[derive(Debug)]
pub(super) struct SetAside {
    lane: CommandType,
    work_queue: String,
    publisher: Publisher,
    health: LaneHealth,
    held: Mutex<Held>,
    /// Something was added, or removed.
    changed: Notify,
}

#[derive(Debug, Default)]
struct Held {
    messages: Vec<Message>,
    /// How many there are, those included that are tried at this moment.
    count: usize,
    /// What these weigh.
    bytes: usize,
}

/// One message that is set aside.
#[derive(Debug)]
struct Message {
    kept: Kept,
    delivery: Delivery,
    errand: Errand,
    since: Instant,
}

impl SetAside {
    pub(super) fn new(lane: CommandType, work_queue: String, publisher: Publisher, health: LaneHealth) -> Self {
        // So that the first increment can be seen.
        counter!("offramp_copies_rejected_total", "lane" => lane.as_str()).increment(0);
        let (held, changed) = (Mutex::default(), Notify::new());
        Self { lane, work_queue, publisher, health, held, changed }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.held().count == 0
    }

    /// Sets a message aside whose copies were rejected.
    pub(super) fn add(&self, kept: Kept, delivery: Delivery, errand: Errand) {
        let problem = errand.problem.as_deref().unwrap_or_default();
        tracing::error!(lane = %self.lane, problem, "a message is set aside: RabbitMQ rejects what must be published before it is settled");
        counter!("offramp_copies_rejected_total", "lane" => self.lane.as_str()).increment(1);
        let message = Message { kept, delivery, errand, since: Instant::now() };
        let mut held = self.held();
        held.count += 1;
        held.bytes += message.bytes();
        held.messages.push(message);
        drop(held);
        self.changed.notify_waiters();
        self.report();
    }

    /// Waits until one more message could be set aside.
    pub(super) async fn wait_for_room(&self) {
        loop {
            let changed = self.changed.notified();
            let Held { count, bytes, .. } = *self.held();
            if count < MESSAGES_MAX && (bytes < BYTES_MAX || count <= 1) {
                return;
            }
            changed.await;
        }
    }

    /// Tries again and again until `end`, and then no more: what is left comes again from the broker.
    pub(super) async fn keep_trying(&self, end: &CancellationToken) {
        loop {
            let changed = self.changed.notified();
            let mut backoff = Backoff::new(TRY_EVERY);
            while !self.is_empty() {
                if end.run_until_cancelled(tokio::time::sleep(backoff.next_delay())).await.is_none() {
                    return;
                }
                // Never broken off: a copy that is confirmed unseen would be published once more.
                self.try_again().await;
            }
            if end.run_until_cancelled(changed).await.is_none() {
                return;
            }
        }
    }

    async fn try_again(&self) {
        let mut messages = mem::take(&mut self.held().messages);
        // These have come again already, or will.
        messages.retain(|message| message.kept.is_live());
        publish(self.lane, &self.publisher, messages.iter_mut().map(|message| &mut message.errand)).await;
        let (mut done, mut rejected): (Vec<_>, Vec<_>) =
            messages.into_iter().partition(|message| message.errand.is_done());
        let answers = done.iter_mut().flat_map(|message| message.errand.take_answers()).collect();
        answer(self.lane, &self.publisher, answers).await;
        for Message { kept, errand, .. } in done {
            match kept.ack().await {
                Ok(()) => {
                    errand.count(self.lane);
                    tracing::info!(lane = %self.lane, "a message that was set aside is settled");
                }
                Err(lost) => {
                    tracing::warn!(lane = %self.lane, %lost, "a message that was set aside is done but could not be acked");
                }
            }
        }
        self.replace(&mut rejected).await;

        let mut held = self.held();
        held.messages.append(&mut rejected);
        held.count = held.messages.len();
        held.bytes = held.messages.iter().map(Message::bytes).sum();
        drop(held);
        self.changed.notify_waiters();
        self.report();
    }

    /// Has copies at the end of the work queue take the place of messages that cannot be kept for much longer, or have come
    /// back often: nothing is counted of a copy.
    async fn replace(&self, messages: &mut Vec<Message>) {
        let (old, young): (Vec<_>, Vec<_>) = mem::take(messages).into_iter().partition(Message::is_old);
        *messages = young;
        let mut copies: Vec<_> =
            old.iter().map(|message| Errand::copy(message.delivery.fresh_copy(&self.work_queue))).collect();
        publish(self.lane, &self.publisher, copies.iter_mut()).await;
        for (mut message, copy) in old.into_iter().zip(copies) {
            if copy.is_done() {
                if let Err(lost) = message.kept.ack().await {
                    tracing::debug!(lane = %self.lane, %lost, "copied, and not acked");
                }
            } else {
                message.since = Instant::now();
                messages.push(message);
            }
        }
    }

    /// Tells whoever asks for the lane's health.
    fn report(&self) {
        let held = self.held();
        let newest = held.messages.last().map(|message| message.errand.problem.clone().unwrap_or_default());
        let count = held.count;
        drop(held);
        self.health.holds_back(newest.map(|problem| {
            let them = if count == 1 { "1 message is".to_owned() } else { format!("{count} messages are") };
            format!("{them} held back and retried, because a copy is rejected: {problem}")
        }));
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Message {
    fn bytes(&self) -> usize {
        let copies = self.errand.copies.iter().chain(&self.errand.answers);
        let of_copies: usize = copies.map(|copy| copy.body.len() + weight(&copy.properties)).sum();
        self.delivery.body.len() + weight(&self.delivery.properties) + of_copies
    }

    /// Whether a copy should take its place. Not of one that may end the process: it would begin anew.
    fn is_old(&self) -> bool {
        let is_worn = self.delivery.delivery_count >= RETURNS_WORN;
        (is_worn || self.since.elapsed() >= KEPT_MAX) && !self.delivery.is_worn_out()
    }
}
