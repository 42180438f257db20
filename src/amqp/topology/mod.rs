//! Every exchange, queue and binding of Offramp: its name, once, and its arguments.
//!
//! How a message returns from a retry queue: the copy is published to the exchange of that delay, with the *name of the
//! work queue* as routing key. That exchange is a fanout to one queue of the same name, so it ignores the key. When the
//! TTL expires, the queue dead-letters the copy to the default exchange, which takes the unchanged key for a queue's name.
//! Five retry queues therefore serve any number of work queues. There is one fanout exchange for each delay, not one
//! headers exchange for all: routing depends on no header, and the broker's list of exchanges explains itself.

use lapin::ExchangeKind;
use lapin::types::AMQPValue;

mod declaration;
mod error;
mod inspection;
mod object;
mod retry_delay;

pub use declaration::Declaration;
pub use error::TopologyError;
pub use inspection::Inspection;
pub use retry_delay::RetryDelay;

use object::{Object, Queue, long};
use offramp_domain::command_ref::CommandType;

/// After this many redeliveries, the broker dead-letters a message by itself, without our headers. This catches only what
/// crashes the process before a lane sees it (see `Delivery::exceeded_redeliveries`): attempts have a header of their own.
/// High, because every crash of a worker counts for all messages in flight.
const WORK_DELIVERY_LIMIT: i32 = 100;
/// The delivery limit of dead letters. It must never be reached, and every listing requeues them. Without a limit, RabbitMQ
/// 4.x applies 20; with -1, 3.10 drops a message at its first requeue. Hence the largest number.
const DEAD_LETTER_DELIVERY_LIMIT: i32 = i32::MAX;

/// The names of all objects, under one prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    prefix: String,
}

impl Topology {
    /// All objects under `prefix`.
    #[must_use]
    pub fn new(prefix: impl Into<String>) -> Self {
        Self { prefix: prefix.into() }
    }

    /// The exchange for commands, with their type as routing key. Topic, durable, without arguments: publishers declare it
    /// too.
    #[must_use]
    pub fn command_exchange(&self) -> String {
        self.prefix.clone()
    }

    /// The exchange for events, with their type as routing key. Topic, durable, without arguments.
    #[must_use]
    pub fn event_exchange(&self) -> String {
        format!("{}.events", self.prefix)
    }

    /// The queue for one type of command.
    #[must_use]
    pub fn work_queue(&self, command: CommandType) -> String {
        let name = match command {
            CommandType::Cancellation => "cancellation",
            CommandType::CancellationRequest => "cancellation-request",
            CommandType::CancellationConfirmation => "cancellation-confirmation",
            CommandType::PaymentFailure => "payment-failure",
            CommandType::CardExpiry => "card-expiry",
        };
        format!("{}.{name}", self.prefix)
    }

    /// The queue in which messages wait for `delay`.
    #[must_use]
    pub fn retry_queue(&self, delay: RetryDelay) -> String {
        format!("{}.retry.{}", self.prefix, delay.as_str())
    }

    /// The exchange that leads to [`Self::retry_queue`], whatever the routing key.
    #[must_use]
    pub fn retry_exchange(&self, delay: RetryDelay) -> String {
        self.retry_queue(delay)
    }

    /// The queue for messages that cannot be processed. Nothing expires there.
    #[must_use]
    pub fn dead_letter_queue(&self) -> String {
        format!("{}.dead-letters", self.prefix)
    }

    /// Whether a name is under the prefix.
    pub(super) fn owns(&self, name: &str) -> bool {
        name.strip_prefix(&self.prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }

    /// Whether `name` is one of our queues. No reply may be sent there: a reply in a retry queue, for example, would be
    /// routed back to that queue without end.
    #[must_use]
    pub fn owns_queue(&self, name: &str) -> bool {
        name.starts_with(&self.prefix)
            && (name == self.dead_letter_queue()
                || CommandType::ALL.into_iter().any(|kind| name == self.work_queue(kind))
                || RetryDelay::ALL.into_iter().any(|delay| name == self.retry_queue(delay)))
    }

    /// The command exchange comes last. See [`Self::declare_on`].
    fn exchanges(&self) -> [Object; 2] {
        [self.event_exchange(), self.command_exchange()]
            .map(|name| Object::Exchange { name, kind: ExchangeKind::Topic })
    }

    /// The bindings from the command exchange to the work queues.
    fn bindings(&self) -> [Object; CommandType::ALL.len()] {
        CommandType::ALL.map(|command| Object::Binding {
            exchange: self.command_exchange(),
            key: command.as_str().to_owned(),
            queue: self.work_queue(command),
        })
    }

    fn objects(&self) -> Vec<Object> {
        let dead_letters = Object::Queue(Queue {
            name: self.dead_letter_queue(),
            arguments: vec![("x-delivery-limit", AMQPValue::LongInt(DEAD_LETTER_DELIVERY_LIMIT))],
        });
        let work = CommandType::ALL.map(|command| {
            Object::Queue(Queue {
                name: self.work_queue(command),
                arguments: vec![
                    ("x-delivery-limit", AMQPValue::LongInt(WORK_DELIVERY_LIMIT)),
                    ("x-dead-letter-exchange", long("")),
                    ("x-dead-letter-routing-key", long(&self.dead_letter_queue())),
                    ("x-dead-letter-strategy", long("at-least-once")),
                    // Without it, at-least-once silently becomes at-most-once.
                    ("x-overflow", long("reject-publish")),
                ],
            })
        });
        let retry = RetryDelay::ALL.into_iter().flat_map(|delay| {
            let queue = Queue {
                name: self.retry_queue(delay),
                arguments: vec![
                    ("x-message-ttl", AMQPValue::LongInt(delay.milliseconds())),
                    // No x-dead-letter-routing-key: the message's own key names its work queue.
                    ("x-dead-letter-exchange", long("")),
                    ("x-dead-letter-strategy", long("at-least-once")),
                    ("x-overflow", long("reject-publish")),
                ],
            };
            [
                Object::Queue(queue),
                Object::Exchange { name: self.retry_exchange(delay), kind: ExchangeKind::Fanout },
                Object::Binding {
                    exchange: self.retry_exchange(delay),
                    key: String::new(),
                    queue: self.retry_queue(delay),
                },
            ]
        });
        let queues = std::iter::once(dead_letters).chain(work).chain(retry);
        queues.chain(self.exchanges()).chain(self.bindings()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn object_names_never_change() {
        let topology = Topology::new("p");
        let queues = CommandType::ALL.map(|command| topology.work_queue(command));
        assert_eq!(
            queues,
            [
                "p.cancellation",
                "p.cancellation-request",
                "p.cancellation-confirmation",
                "p.payment-failure",
                "p.card-expiry"
            ]
        );
        let retry = RetryDelay::ALL.map(|delay| topology.retry_queue(delay));
        assert_eq!(retry, ["p.retry.5s", "p.retry.30s", "p.retry.2m", "p.retry.10m", "p.retry.1h"]);
        assert_eq!(topology.dead_letter_queue(), "p.dead-letters");
        assert_eq!((topology.command_exchange(), topology.event_exchange()), ("p".to_owned(), "p.events".to_owned()));
    }

    #[test]
    fn owned_queues_are_exactly_the_declared_ones() {
        let topology = Topology::new("p");
        for queue in ["p.cancellation", "p.payment-failure", "p.retry.5s", "p.retry.1h", "p.dead-letters"] {
            assert!(topology.owns_queue(queue), "{queue}");
        }
        for queue in ["", "p", "p.", "q.cancellation", "pp.retry.5s", "p.answers", "p.retry.6s"] {
            assert!(!topology.owns_queue(queue), "{queue}");
        }
    }
}
