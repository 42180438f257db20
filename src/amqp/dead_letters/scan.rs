//! One scan of the dead letters, and those that it holds.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::SelectAll;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicGetOptions, BasicQosOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Acker, Channel};
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use super::dead_letter::{DeadLetter, headers_json};
use super::{DeadLetters, DeadLettersError, POLL_INTERVAL, WINDOW, short};
use crate::amqp::connection::explain;
use crate::amqp::message::{Delivery, Outgoing};
use crate::amqp::publisher::{PublishError, Publisher};

/// How long to wait for an outstanding dead letter before polling the queue.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the message count must stay unchanged before it is trusted, after a removal.
const STABLE_FOR: Duration = Duration::from_millis(500);
/// How long to wait until requeued dead letters are counted again.
const REQUEUE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long to wait between acks and closing the channel, so that the broker rarely drops an ack.
const ACK_PAUSE: Duration = Duration::from_millis(100);
/// The most rounds in which dead letters that came back are removed again.
const REMOVALS_MAX: usize = 10;

/// One scan. The broker requeues whatever was not removed when the scan ends, however it ends.
#[derive(Debug)]
pub struct DeadLetterScan<'a> {
    letters: &'a DeadLetters,
    channel: Channel,
    streams: SelectAll<lapin::Consumer>,
    /// The total prefetch of the open consumers.
    credit: u64,
    /// The number taken and not removed.
    held: u64,
    /// The number taken.
    seen: u64,
    /// The number in the queue at the beginning. The scan ends there: a dead letter that is replayed and fails again would
    /// otherwise keep it running without end.
    total: u64,
    /// The number removed for each id: one, except for identical dead letters.
    removed: HashMap<Uuid, u64>,
}

/// A dead letter held by a scan. Dropping it leaves it in the queue.
#[derive(Debug)]
pub struct HeldDeadLetter {
    pub letter: DeadLetter,
    delivery: Delivery,
    acker: Acker,
}

impl HeldDeadLetter {
    #[must_use]
    pub fn body(&self) -> &[u8] {
        &self.delivery.body
    }

    /// About how much memory its body and its headers need, in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.delivery.memory_bytes()
    }

    /// Its headers, as JSON.
    #[must_use]
    pub fn headers(&self) -> Value {
        headers_json(&self.delivery)
    }
}

impl<'a> DeadLetterScan<'a> {
    /// `channel` has a prefetch of [`WINDOW`].
    pub(super) fn new(letters: &'a DeadLetters, channel: Channel, total: u64) -> Self {
        let (streams, removed) = (SelectAll::new(), HashMap::new());
        Self { letters, channel, streams, credit: 0, held: 0, seen: 0, total, removed }
    }
}

impl DeadLetterScan<'_> {
    /// The number of dead letters at the beginning.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The next dead letter; `None` at the end.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn next(&mut self) -> Result<Option<HeldDeadLetter>, DeadLettersError> {
        if self.seen >= self.total {
            return Ok(None);
        }
        if self.held >= self.credit {
            self.open_consumer().await?;
        }
        let received = match timeout(DELIVERY_TIMEOUT, self.streams.next()).await {
            Ok(Some(Ok(received))) => received,
            Ok(Some(Err(error))) => return Err(lost(&error)),
            Ok(None) => {
                return Err(DeadLettersError::ConnectionLost(
                    "the consumer was cancelled, as when a queue is deleted".into(),
                ));
            }
            // Another consumer may have taken the rest. Only the broker knows.
            Err(_) => {
                let getting = self.channel.basic_get(short(&self.letters.queue), BasicGetOptions::default());
                match self.letters.link.ask("poll the dead letters", getting).await? {
                    Some(got) => got.delivery,
                    None => return Ok(None),
                }
            }
        };
        self.seen += 1;
        self.held += 1;
        let acker = received.acker.clone();
        let delivery = Delivery::from(received);
        Ok(Some(HeldDeadLetter { letter: DeadLetter::read(&delivery, &self.letters.topology), delivery, acker }))
    }

    /// Publishes copies to the work queues, and removes each dead letter whose copy is confirmed. Returns one result for
    /// each, in order: `None` without a known work queue. Everything but `Some(Ok)` stays in the queue.
    ///
    /// # Errors
    /// When the connection is lost. A replayed dead letter may then be in both queues: the command's `(source, id)`
    /// identifies the duplicate.
    pub async fn replay(
        &mut self,
        publisher: &Publisher,
        letters: Vec<HeldDeadLetter>,
    ) -> Result<Vec<Option<Result<(), PublishError>>>, DeadLettersError> {
        let copies: Vec<Outgoing> = letters
            .iter()
            .filter_map(|held| Some(held.delivery.replay_copy(&self.letters.topology.work_queue(held.letter.origin?))))
            .collect();
        let mut confirmed = publisher.publish_all(&copies).await.into_iter();
        let results: Vec<_> = letters.iter().map(|held| held.letter.origin.and_then(|_| confirmed.next())).collect();
        let done = letters.into_iter().zip(&results).filter(|(_, result)| matches!(result, Some(Ok(()))));
        self.remove(done.map(|(held, _)| held).collect()).await?;
        Ok(results)
    }

    /// Removes dead letters permanently, and waits until the broker has read the acks.
    ///
    /// # Errors
    /// When the connection is lost: some may still be in the queue.
    pub async fn remove(&mut self, letters: Vec<HeldDeadLetter>) -> Result<(), DeadLettersError> {
        if letters.is_empty() {
            return Ok(());
        }
        for held in letters {
            // One by one: dead letters between them stay.
            let acking = held.acker.ack(BasicAckOptions { multiple: false });
            match self.letters.link.ask("accept an ack", acking).await {
                Ok(true) => {
                    self.held -= 1;
                    *self.removed.entry(held.letter.id).or_default() += 1;
                }
                Ok(false) => return Err(DeadLettersError::ConnectionLost("the channel is closed".to_owned())),
                Err(error) => return Err(DeadLettersError::ConnectionLost(error.to_string())),
            }
        }
        // The broker processes a channel in order: once it replies, it has read every ack.
        self.letters.link.ask("accept acks", self.channel.basic_qos(WINDOW, BasicQosOptions::default())).await?;
        Ok(())
    }

    /// Requeues everything that was not removed, waits briefly until it is counted again, and removes again what came back
    /// although it was removed.
    ///
    /// # Errors
    /// When the broker is unavailable. It requeues the dead letters anyway, perhaps with some that were removed.
    pub async fn finish(self) -> Result<(), DeadLettersError> {
        let letters = self.letters;
        let mut removed = self.release().await?;
        for _ in 0..REMOVALS_MAX {
            if removed.is_empty() {
                break;
            }
            let mut scan = letters.scan().await?;
            while let Some(held) = scan.next().await? {
                // One that was never delivered before is another message, even with the same id.
                let came_back = held.delivery.redelivered && removed.contains_key(&held.letter.id);
                if came_back {
                    take_one(&mut removed, held.letter.id);
                    scan.remove(vec![held]).await?;
                }
            }
            removed = scan.release().await?;
        }
        Ok(())
    }

    /// Closes the channel. Returns what was removed and may have come back; empty if nothing can have.
    async fn release(self) -> Result<HashMap<Uuid, u64>, DeadLettersError> {
        let Self { letters, channel, streams, held, removed, .. } = self;
        if !removed.is_empty() {
            sleep(ACK_PAUSE).await;
        }
        letters.link.ask("close a channel", channel.close(200, ShortString::from("OK"))).await?;
        drop(streams);
        let end = Instant::now() + REQUEUE_TIMEOUT;
        let mut stable = (0, Instant::now());
        loop {
            let count = u64::from(letters.count().await?);
            if count != stable.0 {
                stable = (count, Instant::now());
            }
            // Requeuing takes a while, also for removed dead letters.
            let is_stable = removed.is_empty() || stable.1.elapsed() >= STABLE_FOR;
            if count >= held && is_stable || Instant::now() >= end {
                return Ok(if count > held { removed } else { HashMap::new() });
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    async fn open_consumer(&mut self) -> Result<(), DeadLettersError> {
        let queue = short(&self.letters.queue);
        // The broker requeues consumer by consumer, in the order of their tags: sorted tags keep a short queue in order.
        let tag = ShortString::try_new(format!("{:06}", self.credit / u64::from(WINDOW))).unwrap_or_default();
        let consuming = self.channel.basic_consume(queue, tag, BasicConsumeOptions::default(), FieldTable::default());
        self.streams.push(self.letters.link.ask("start a consumer", consuming).await?);
        self.credit += u64::from(WINDOW);
        Ok(())
    }
}

fn take_one(counts: &mut HashMap<Uuid, u64>, id: Uuid) {
    if let Some(count) = counts.get_mut(&id) {
        *count -= 1;
        if *count == 0 {
            counts.remove(&id);
        }
    }
}

fn lost(error: &lapin::Error) -> DeadLettersError {
    DeadLettersError::ConnectionLost(explain(error))
}
