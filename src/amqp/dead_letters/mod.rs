//! Dead letters for operators: list, replay, remove. Nothing here decides which messages become dead letters.
//!
//! AMQP cannot read a message without taking it. A scan therefore consumes dead letters on one channel and does *not*
//! acknowledge them: the broker requeues all of them when the channel ends, so a killed command loses nothing. A dead
//! letter is acknowledged only once its copy is confirmed in its work queue, or when an operator removes it.
//!
//! Memory is bounded: each consumer has a prefetch of `WINDOW`. Once a whole window is held, another consumer is opened
//! on the same channel.
//!
//! The broker does not confirm acks. RabbitMQ's channels buffer acks that a busy quorum queue has not taken yet, and drop
//! them on close: of 250 dead letters acknowledged just before, 16 came back. [`DeadLetterScan::finish`] therefore scans
//! again and removes those that came back.
//!
//! Dead letters held by one command are invisible to another. Each command therefore takes a lock first: a queue that is
//! *exclusive* to its connection, which the broker deletes with the connection.

mod bulk;
mod dead_letter;
mod scan;

pub use bulk::BulkReport;
pub use dead_letter::DeadLetter;
pub use scan::{DeadLetterScan, HeldDeadLetter};

use std::time::Duration;

use lapin::options::{BasicQosOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use tokio::time::{Instant, sleep};

use super::connection::{Broker, BrokerError, Link};
use super::reply_code::{ACCESS_REFUSED, NOT_FOUND, RESOURCE_LOCKED};
use super::topology::Topology;

/// The prefetch of each consumer: the number of dead letters in memory, of any size.
const WINDOW: u16 = 100;
/// How long to wait for another operator's command.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
/// The interval between two polls of the lock or of the message count.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Why an operation on dead letters failed. No dead letter is lost.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeadLettersError {
    #[error("another command holds the dead letters")]
    Busy,
    /// The queue of dead letters does not exist.
    #[error("there is no queue '{0}'")]
    Missing(String),
    /// The channel ended. The broker has requeued the dead letters that it held.
    #[error("the connection was lost: {0}")]
    ConnectionLost(String),
    /// The broker is unavailable, or rejected the operation.
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

/// The queue of dead letters, locked against other operators' commands.
#[derive(Debug)]
pub struct DeadLetters {
    link: Link,
    topology: Topology,
    queue: String,
}

impl DeadLetters {
    /// Connects and takes the lock, for which it waits up to 10 seconds.
    ///
    /// # Errors
    /// [`DeadLettersError::Busy`] when another command keeps the lock, [`DeadLettersError::Missing`] when the queue does not
    /// exist, otherwise as [`Broker::connect`].
    pub async fn open(broker: &Broker, topology: &Topology) -> Result<Self, DeadLettersError> {
        let link = broker.connect("dead letters").await?;
        let letters = Self { link, topology: topology.clone(), queue: topology.dead_letter_queue() };
        letters.count().await?;
        letters.lock().await?;
        Ok(letters)
    }

    /// Scans all dead letters that are in the queue now, oldest first.
    ///
    /// # Errors
    /// When the broker is unavailable.
    pub async fn scan(&self) -> Result<DeadLetterScan<'_>, DeadLettersError> {
        let channel = self.link.channel().await?;
        self.link.ask("set the prefetch", channel.basic_qos(WINDOW, BasicQosOptions::default())).await?;
        let total = u64::from(self.count().await?);
        Ok(DeadLetterScan::new(self, channel, total))
    }

    /// Closes the connection, which releases the lock.
    pub async fn close(self) {
        self.link.close().await;
    }

    /// The number of dead letters in the queue, without those that a consumer holds.
    async fn count(&self) -> Result<u32, DeadLettersError> {
        // On a missing queue, the broker closes the channel: this one is used for nothing else.
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
        // Only classic queues can be exclusive, and the virtual host's default may be another type.
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
                    sleep(POLL_INTERVAL).await;
                }
                Err(error) if error.code() == Some(ACCESS_REFUSED) => {
                    tracing::warn!(
                        %error,
                        "no permission to declare the lock queue {name}; make sure that no other command works on dead \
                         letters now"
                    );
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn short(name: &str) -> ShortString {
    // The configuration limits the length of the prefix, so the name fits.
    ShortString::try_new(name).unwrap_or_default()
}
