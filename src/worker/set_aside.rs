//! Messages that cannot be acknowledged, because RabbitMQ rejects a copy that must be confirmed first. They are set aside:
//! unacknowledged and retried, while their lane goes on with all others. Meanwhile the lane is not ready, and says why.
//!
//! A message set aside is safe: the broker still has it, and redelivers it when this process ends. Releasing it instead would
//! only bring it back at once.

use std::mem;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::publication::{Publication, needs_replacement, publish_copies, publish_replies};
use super::settlement::Settlement;
use super::support_log::SupportLog;
use crate::amqp::{Delivery, DeliverySetAside, LaneHealth, Publisher};
use crate::backoff::Backoff;
use crate::metrics;
use crate::store::rejected_commands::RejectedCommandDocument;
use offramp_domain::command_ref::CommandType;
use offramp_domain::unit_of_work::Task;

/// The delays, minimum and maximum, before rejected copies are published again.
const RETRY_DELAYS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
/// How long a message is kept before a copy replaces it. RabbitMQ closes the channel of a consumer that has not acknowledged a
/// message within 30 minutes.
const KEPT_MAX: Duration = Duration::from_secs(10 * 60);
/// How many messages a lane sets aside before it takes no more.
const MESSAGES_MAX: usize = 200;
/// How much memory they may use. A single message may use more.
const BYTES_MAX: usize = 32 * 1024 * 1024;

/// The messages of one lane that are set aside.
#[derive(Debug)]
pub(super) struct SetAsideMessages {
    lane: CommandType,
    work_queue: String,
    publisher: Publisher,
    health: LaneHealth,
    rejections: SupportLog<RejectedCommandDocument>,
    contents: Mutex<Contents>,
    /// A message was added or removed.
    changed: Notify,
}

#[derive(Debug, Default)]
struct Contents {
    messages: Vec<Message>,
    /// The number of messages, including those that are being retried at this moment.
    count: usize,
    bytes: usize,
}

/// One message that is set aside.
#[derive(Debug)]
struct Message {
    kept: DeliverySetAside,
    delivery: Delivery,
    /// Absent if it is no command.
    task: Option<Task>,
    publication: Publication,
    since: Instant,
}

impl SetAsideMessages {
    pub(super) fn new(
        lane: CommandType,
        work_queue: String,
        publisher: Publisher,
        health: LaneHealth,
        rejections: SupportLog<RejectedCommandDocument>,
    ) -> Self {
        let (contents, changed) = (Mutex::default(), Notify::new());
        Self { lane, work_queue, publisher, health, rejections, contents, changed }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().count == 0
    }

    /// Sets aside a message whose copies were rejected.
    pub(super) fn add(&self, kept: DeliverySetAside, delivery: Delivery, task: Option<Task>, publication: Publication) {
        let problem = publication.problem();
        let command = match &task {
            Some(Task::Command(command)) => Some(&command.reference.key),
            _ => None,
        };
        tracing::error!(
            lane = %self.lane,
            source = command.map(|key| key.source.as_str()),
            command = command.map(|key| key.id.as_str()),
            message_id = delivery.message_id(),
            error = problem,
            "RabbitMQ rejects a copy; its message is set aside and retried"
        );
        metrics::current().copies_rejected.of((self.lane,)).increment(1);
        let message = Message { kept, delivery, task, publication, since: Instant::now() };
        let mut contents = self.lock();
        contents.count += 1;
        contents.bytes += message.bytes();
        contents.messages.push(message);
        drop(contents);
        self.changed.notify_waiters();
        self.report();
    }

    /// Waits until one more message can be set aside.
    pub(super) async fn wait_for_room(&self) {
        loop {
            let changed = self.changed.notified();
            let Contents { count, bytes, .. } = *self.lock();
            if count < MESSAGES_MAX && (bytes < BYTES_MAX || count <= 1) {
                return;
            }
            changed.await;
        }
    }

    /// Retries until `end`. Messages that are still set aside then are redelivered by the broker.
    pub(super) async fn keep_retrying(&self, end: &CancellationToken) {
        loop {
            let changed = self.changed.notified();
            let mut backoff = Backoff::new(RETRY_DELAYS);
            while !self.is_empty() {
                if end.run_until_cancelled(tokio::time::sleep(backoff.next_delay())).await.is_none() {
                    return;
                }
                // Not cancelled by `end`: a copy whose confirm is missed would be published twice.
                self.retry().await;
            }
            if end.run_until_cancelled(changed).await.is_none() {
                return;
            }
        }
    }

    async fn retry(&self) {
        let mut messages = mem::take(&mut self.lock().messages);
        // Without their channel they are redelivered anyway.
        messages.retain(|message| message.kept.is_live());
        publish_copies(self.lane, &self.publisher, messages.iter_mut().map(|message| &mut message.publication)).await;
        let (mut confirmed, mut rejected): (Vec<_>, Vec<_>) =
            messages.into_iter().partition(|message| message.publication.is_confirmed());
        let replies = confirmed.iter_mut().flat_map(|message| message.publication.take_replies()).collect();
        publish_replies(self.lane, &self.publisher, replies).await;
        for Message { kept, delivery, task, publication, .. } in confirmed {
            match kept.ack().await {
                Ok(()) => {
                    publication.settled(&Settlement::now(self.lane, &self.rejections), &delivery, task.as_ref());
                    tracing::info!(lane = %self.lane, message_id = delivery.message_id(), "a message that was set aside is acknowledged");
                }
                Err(lost) => {
                    tracing::warn!(
                        lane = %self.lane, message_id = delivery.message_id(), error = %lost,
                        "cannot acknowledge a processed message that was set aside; it will be redelivered, without effect"
                    );
                }
            }
        }
        self.replace(&mut rejected).await;

        let mut contents = self.lock();
        contents.messages.append(&mut rejected);
        contents.count = contents.messages.len();
        contents.bytes = contents.messages.iter().map(Message::bytes).sum();
        drop(contents);
        self.changed.notify_waiters();
        self.report();
    }

    /// Replaces messages by copies at the end of the work queue if they cannot be kept for much longer or were redelivered
    /// often: a copy's redelivery count starts at zero.
    async fn replace(&self, messages: &mut Vec<Message>) {
        let (old, young): (Vec<_>, Vec<_>) = mem::take(messages).into_iter().partition(Message::is_old);
        *messages = young;
        let mut replacements: Vec<_> =
            old.iter().map(|message| Publication::replacement(&message.delivery, &self.work_queue)).collect();
        publish_copies(self.lane, &self.publisher, replacements.iter_mut()).await;
        for (mut message, replacement) in old.into_iter().zip(replacements) {
            if replacement.is_confirmed() {
                if let Err(lost) = message.kept.ack().await {
                    tracing::debug!(lane = %self.lane, error = %lost, "cannot acknowledge a message that was replaced by a copy");
                }
            } else {
                message.since = Instant::now();
                messages.push(message);
            }
        }
    }

    /// Updates the health of the lane.
    fn report(&self) {
        let contents = self.lock();
        let newest = contents.messages.last().map(|message| message.publication.problem().to_owned());
        let count = contents.count;
        drop(contents);
        self.health.set_aside(newest.map(|problem| {
            let messages = if count == 1 { "1 message is".to_owned() } else { format!("{count} messages are") };
            format!("{messages} set aside and retried, because RabbitMQ rejects a copy: {problem}")
        }));
    }

    fn lock(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Message {
    /// The approximate memory that it uses.
    fn bytes(&self) -> usize {
        self.delivery.memory_bytes() + self.publication.bytes()
    }

    /// Whether a copy should replace it. Not if it may crash workers: its count would start at zero again.
    fn is_old(&self) -> bool {
        let is_old = needs_replacement(&self.delivery) || self.since.elapsed() >= KEPT_MAX;
        is_old && !self.delivery.exceeded_redeliveries()
    }
}
