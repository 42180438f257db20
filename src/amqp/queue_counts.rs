//! Asks how many messages wait in queues, over a connection of its own: RabbitMQ blocks a connection that publishes while it is low
//! on memory, and one that consumes answers late while its lane is busy. Nothing else depends on the answers.

use std::fmt;

use lapin::Channel;
use lapin::options::QueueDeclareOptions;
use lapin::types::{FieldTable, ShortString};

use super::connection::{Broker, BrokerError, Link, count_connection};
use crate::metrics::Label as _;
use crate::metrics::labels::ConnectionPurpose;

/// What the broker says about a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueCount {
    /// The number of messages ready for delivery.
    pub messages: u32,
    pub consumers: u32,
}

/// Counts the messages of queues.
pub struct QueueCounts {
    broker: Broker,
    link: Option<Link>,
    /// Replaced after every error: the broker closes the channel then.
    channel: Option<Channel>,
}

impl QueueCounts {
    #[must_use]
    pub fn new(broker: Broker) -> Self {
        Self { broker, link: None, channel: None }
    }

    /// The messages and consumers of each queue. `None` where they are unknown: the queue is missing, this user may not ask, or the
    /// broker is unavailable.
    pub async fn read(&mut self, queues: &[String]) -> Vec<Option<QueueCount>> {
        let mut counts = Vec::with_capacity(queues.len());
        for queue in queues {
            match self.count(queue).await {
                Ok(count) => counts.push(Some(count)),
                Err(error) => {
                    tracing::debug!(queue, %error, "cannot count the messages of a queue");
                    counts.push(None);
                    // With a reply code, the broker has answered about this queue.
                    if error.code().is_none() {
                        self.link = None;
                        break;
                    }
                }
            }
        }
        counts.resize(queues.len(), None);
        counts
    }

    async fn count(&mut self, queue: &str) -> Result<QueueCount, BrokerError> {
        let channel = self.channel.take().filter(|channel| channel.status().connected());
        let live = self.link.take().filter(Link::is_live);
        let link = if let Some(link) = live {
            self.link.insert(link)
        } else {
            let link = self.broker.connect(ConnectionPurpose::Queues.as_str()).await?;
            count_connection(ConnectionPurpose::Queues);
            self.link.insert(link)
        };
        let channel = match channel {
            Some(channel) => channel,
            None => link.channel().await?,
        };
        let name = ShortString::try_new(queue).unwrap_or_default();
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let asking = channel.queue_declare(name, passive, FieldTable::default());
        let queue = link.ask("count the messages of a queue", asking).await?;
        self.channel = Some(channel);
        Ok(QueueCount { messages: queue.message_count(), consumers: queue.consumer_count() })
    }

    /// Closes the connection.
    pub async fn close(self) {
        if let Some(link) = self.link {
            link.close().await;
        }
    }
}

impl fmt::Debug for QueueCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueCounts").field("broker", &self.broker).finish_non_exhaustive()
    }
}
