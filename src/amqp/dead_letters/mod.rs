//! The dead letters, as an operator sees them: read one by one, sent back to work, or thrown away.
//!
//! AMQP has no way to look at a message without taking it. So letters are taken and *not* acknowledged, on one channel: the
//! broker gives all of them back when that channel ends, whatever ended it, and a killed command loses nothing. A letter is
//! acknowledged only when its copy is confirmed in its work queue, or when an operator wants it gone.
//!
//! However many letters there are, few are in memory: each consumer is sent `WINDOW` of them at most, and once all of
//! those are held, another consumer is opened beside it.
//!
//! An acknowledgement is not answered, and RabbitMQ's channels keep back what a busy quorum queue has not taken yet, and forget
//! it when they close: of 250 letters that were acknowledged just before, 16 came back. So [`DeadLetterScan::finish`] looks again, and
//! removes those that came back.
//!
//! What one command holds, another would not find. So each takes a lock first, a queue that is *exclusive* to its
//! connection: the broker deletes it with the connection, whatever ended that.

mod dead_letter;
mod scan;

pub use dead_letter::DeadLetter;
pub use scan::{DeadLetterScan, HeldDeadLetter};

use std::time::Duration;

use lapin::options::{BasicQosOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use tokio::time::{Instant, sleep};

use super::connection::{Broker, BrokerError, Link};
use super::reply_code::{ACCESS_REFUSED, NOT_FOUND, RESOURCE_LOCKED};
use super::topology::Topology;

/// How many letters may be on their way to us at once: that many may be in memory, whatever they weigh.
const WINDOW: u16 = 100;
/// How long another operator's command is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
/// The pause between two looks at either.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Why dead letters could not be looked at or dealt with. None is lost by it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeadLettersError {
    /// Another operator's command holds them.
    #[error("another command holds the dead letters")]
    Busy,
    /// There is no such queue.
    #[error("there is no queue '{0}'")]
    Missing(String),
    /// The channel ended on the way. What it held is in the queue again.
    #[error("the connection was lost: {0}")]
    ConnectionLost(String),
    /// The broker is away, or said no.
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

/// The dead letters, locked against other commands like this one.
#[derive(Debug)]
pub struct DeadLetters {
    link: Link,
    topology: Topology,
    queue: String,
}

impl DeadLetters {
    /// Connects, and waits a little for other operators' commands.
    ///
    /// # Errors
    /// [`DeadLettersError::Busy`] when another command has them for longer, [`DeadLettersError::Missing`] when there is no
    /// such queue, else as [`Broker::connect`].
    pub async fn open(broker: &Broker, topology: &Topology) -> Result<Self, DeadLettersError> {
        let link = broker.connect("dead letters").await?;
        let letters = Self { link, topology: topology.clone(), queue: topology.dead_letter_queue() };
        letters.count().await?;
        letters.lock().await?;
        Ok(letters)
    }

    /// Looks at all letters that are there now, from the first.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn scan(&self) -> Result<DeadLetterScan<'_>, DeadLettersError> {
        let channel = self.link.channel().await?;
        self.link.ask("limit deliveries", channel.basic_qos(WINDOW, BasicQosOptions::default())).await?;
        let total = u64::from(self.count().await?);
        Ok(DeadLetterScan::new(self, channel, total))
    }

    /// Ends the connection, and the lock with it.
    pub async fn close(self) {
        self.link.close().await;
    }

    /// How many letters wait; not those that somebody holds.
    async fn count(&self) -> Result<u32, DeadLettersError> {
        // The broker answers "no such queue" by closing the channel, so it gets one to close.
        let channel = self.link.channel().await?;
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let declaring = channel.queue_declare(short(&self.queue), options, FieldTable::default());
        let queue = self.link.ask("count the dead letters", declaring).await.map_err(|error| match error.code() {
            Some(NOT_FOUND) => DeadLettersError::Missing(self.queue.clone()),
            _ => error.into(),
        })?;
        self.link.ask("close a channel", channel.close(200, ShortString::from("OK"))).await?;
        Ok(queue.message_count())
    }

    async fn lock(&self) -> Result<(), DeadLettersError> {
        let name = format!("{}.lock", self.queue);
        let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
        let mut arguments = FieldTable::default();
        // Whatever the virtual host's default is: only classic queues can be exclusive.
        arguments.insert("x-queue-type".into(), AMQPValue::LongString(LongString::from("classic")));
        let end = Instant::now() + LOCK_PATIENCE;
        loop {
            let channel = self.link.channel().await?;
            let declaring = channel.queue_declare(short(&name), options, arguments.clone());
            match self.link.ask("lock the dead letters", declaring).await {
                Ok(_) => return Ok(()),
                Err(error) if error.code() == Some(RESOURCE_LOCKED) => {
                    if Instant::now() >= end {
                        return Err(DeadLettersError::Busy);
                    }
                    sleep(LOOK_EVERY).await;
                }
                Err(error) if error.code() == Some(ACCESS_REFUSED) => {
                    tracing::warn!(
                        %error,
                        "this user may not declare the queue {name} that keeps operators apart; make sure that nobody else \
                         deals with dead letters now"
                    );
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn short(name: &str) -> ShortString {
    // A prefix has room to spare: see `config`.
    ShortString::try_new(name).unwrap_or_default()
}
