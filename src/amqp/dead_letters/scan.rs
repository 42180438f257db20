//! One walk over the dead letters, and the letters that it holds meanwhile.

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
use super::{DeadLetters, DeadLettersError, LOOK_EVERY, WINDOW, short};
use crate::amqp::connection::explain;
use crate::amqp::message::{Delivery, Outgoing};
use crate::amqp::publisher::{PublishError, Publisher};

/// How long the broker may send nothing, with letters outstanding, before it is asked whether there are any.
const SILENCE: Duration = Duration::from_secs(2);
/// How long the number of letters must have stood still, where some were removed, before it is believed.
const STILL: Duration = Duration::from_millis(500);
/// How long to wait until what was held can be seen in the queue again.
const RETURN_PATIENCE: Duration = Duration::from_secs(3);
/// How long the broker gets to take acks before the channel closes, so that it seldom forgets one.
const ACK_PAUSE: Duration = Duration::from_millis(100);
/// How often those that came back are removed again.
const REMOVALS_MAX: usize = 10;

/// One walk over the letters. Those that were not removed go back when it ends, however it ends.
#[derive(Debug)]
pub struct DeadLetterScan<'a> {
    letters: &'a DeadLetters,
    channel: Channel,
    streams: SelectAll<lapin::Consumer>,
    /// How many letters the open consumers may hold altogether.
    credit: u64,
    /// How many were taken and not removed.
    held: u64,
    /// How many were taken.
    seen: u64,
    /// How many there were at the beginning. What comes later is left for later: a letter that was sent back and failed
    /// again would otherwise come round for ever.
    total: u64,
    /// How many letters of each id were removed: one, but for letters that are the same in everything.
    removed: HashMap<Uuid, u64>,
}

/// A letter that this walk holds. Dropping it leaves it where it is.
#[derive(Debug)]
pub struct HeldDeadLetter {
    /// What there is to know about it.
    pub letter: DeadLetter,
    delivery: Delivery,
    acker: Acker,
}

impl HeldDeadLetter {
    /// Its body, byte for byte.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        &self.delivery.body
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
    /// How many letters there were at the beginning.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The next letter; none at the end.
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
        let received = match timeout(SILENCE, self.streams.next()).await {
            Ok(Some(Ok(received))) => received,
            Ok(Some(Err(error))) => return Err(lost(&error)),
            Ok(None) => {
                return Err(DeadLettersError::ConnectionLost(
                    "the consumer was cancelled, as when a queue is deleted".into(),
                ));
            }
            // Somebody else may have taken some. Only the broker knows.
            Err(_) => {
                let getting = self.channel.basic_get(short(&self.letters.queue), BasicGetOptions::default());
                match self.letters.link.ask("look for further dead letters", getting).await? {
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

    /// Sends letters back to their work queues, and removes those whose copy the broker has confirmed. One result for each,
    /// in order: `None` for a letter that names no work queue of ours. What is not `Some(Ok)` stays.
    ///
    /// # Errors
    /// When the connection is lost: letters that were sent back may then be in both queues, which the command's
    /// `(source, id)` settles.
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

    /// Removes letters for good, and waits until the broker has heard it.
    ///
    /// # Errors
    /// When the connection is lost: some of them may then still be there.
    pub async fn remove(&mut self, letters: Vec<HeldDeadLetter>) -> Result<(), DeadLettersError> {
        if letters.is_empty() {
            return Ok(());
        }
        for held in letters {
            // One by one: those between them stay.
            let acking = held.acker.ack(BasicAckOptions { multiple: false });
            match self.letters.link.ask("take an ack", acking).await {
                Ok(true) => {
                    self.held -= 1;
                    *self.removed.entry(held.letter.id).or_default() += 1;
                }
                Ok(false) => return Err(DeadLettersError::ConnectionLost("the channel is gone".to_owned())),
                Err(error) => return Err(DeadLettersError::ConnectionLost(error.to_string())),
            }
        }
        // The broker answers in order: with this answer, it has read every ack.
        self.letters.link.ask("take acks", self.channel.basic_qos(WINDOW, BasicQosOptions::default())).await?;
        Ok(())
    }

    /// Gives everything back that was not removed, waits for a moment until it can be seen in the queue again, and makes
    /// sure that what was removed is not.
    ///
    /// # Errors
    /// When the broker does not answer. It gives the letters back all the same, and perhaps some that were removed.
    pub async fn finish(self) -> Result<(), DeadLettersError> {
        let letters = self.letters;
        let mut removed = self.release().await?;
        for _ in 0..REMOVALS_MAX {
            if removed.is_empty() {
                break;
            }
            let mut scan = letters.scan().await?;
            while let Some(held) = scan.next().await? {
                // One that was never delivered before is another one, whatever it looks like.
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

    /// Ends the channel. Returns what was removed and may have come back; nothing when that cannot be.
    async fn release(self) -> Result<HashMap<Uuid, u64>, DeadLettersError> {
        let Self { letters, channel, streams, held, removed, .. } = self;
        if !removed.is_empty() {
            sleep(ACK_PAUSE).await;
        }
        letters.link.ask("close a channel", channel.close(200, ShortString::from("OK"))).await?;
        drop(streams);
        let end = Instant::now() + RETURN_PATIENCE;
        let mut stands = (0, Instant::now());
        loop {
            let count = u64::from(letters.count().await?);
            if count != stands.0 {
                stands = (count, Instant::now());
            }
            // What was removed, and comes back, comes back as the rest does: not at once.
            let is_still = removed.is_empty() || stands.1.elapsed() >= STILL;
            if count >= held && is_still || Instant::now() >= end {
                return Ok(if count > held { removed } else { HashMap::new() });
            }
            sleep(LOOK_EVERY).await;
        }
    }

    async fn open_consumer(&mut self) -> Result<(), DeadLettersError> {
        let queue = short(&self.letters.queue);
        // The broker gives back what few consumers hold in the order of their tags, so a short queue keeps its order.
        let tag = ShortString::try_new(format!("{:06}", self.credit / u64::from(WINDOW))).unwrap_or_default();
        let consuming = self.channel.basic_consume(queue, tag, BasicConsumeOptions::default(), FieldTable::default());
        self.streams.push(self.letters.link.ask("deliver from the queue", consuming).await?);
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
