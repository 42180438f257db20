//! Every exchange, queue and binding of Offramp: its name, once, and its declaration.
//!
//! How a message gets back from a retry queue: its copy is published to the exchange of that delay with the *work
//! queue's name* as routing key. The exchange (fanout, of the same name as its one queue) passes it on whatever the key
//! is; when its time is up, the queue dead-letters it to the default exchange, which takes the key, still untouched, for
//! a queue's name. So five retry queues serve five work queues, and any that are added. A fanout exchange for each delay,
//! rather than one headers exchange for all: no header has to agree for a message to get home, and the broker's list of
//! exchanges explains itself.

use std::time::Duration;

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use lapin::{Channel, ExchangeKind};

use super::connection::{Broker, BrokerError, Link, ask};
use super::reply_code::{ACCESS_REFUSED, NOT_FOUND, PRECONDITION_FAILED};
use offramp_domain::command_ref::CommandType;

/// How often the broker may deliver one message without an answer before it makes it a dead letter, with no word of ours.
/// Only for what ends the process before a lane sees it (see `Delivery::exceeded_redeliveries`): our own header counts attempts.
/// High, because every kill of a worker counts for the messages in its hands.
const WORK_DELIVERY_LIMIT: i32 = 100;
/// The same for dead letters, where it must never be reached: listing them puts them back each time. Neither absent (4.x
/// then takes 20) nor -1 (3.10 then drops at the first return), but a number far away.
const DEAD_LETTER_DELIVERY_LIMIT: i32 = i32::MAX;
/// AMQP's limit on names, in bytes.
const NAME_BYTES_MAX: usize = 255;

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

    /// Where commands are published, with their type as routing key. Topic, durable, no arguments: upstream teams
    /// declare it too.
    #[must_use]
    pub fn command_exchange(&self) -> String {
        self.prefix.clone()
    }

    /// Where our events are published, with their type as routing key. Topic, durable, no arguments.
    #[must_use]
    pub fn event_exchange(&self) -> String {
        format!("{}.events", self.prefix)
    }

    /// The queue of one type of command.
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
        format!("{}.retry.{}", self.prefix, delay.suffix())
    }

    /// The exchange that leads to [`Self::retry_queue`], whatever the routing key.
    #[must_use]
    pub fn retry_exchange(&self, delay: RetryDelay) -> String {
        self.retry_queue(delay)
    }

    /// Where a message ends that cannot be processed. Nothing expires there.
    #[must_use]
    pub fn dead_letter_queue(&self) -> String {
        format!("{}.dead-letters", self.prefix)
    }

    /// Whether an exchange or queue of this name could be one of ours: at or under the prefix.
    pub(super) fn owns(&self, name: &str) -> bool {
        name.strip_prefix(&self.prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }

    /// Whether `name` is one of our queues. Nobody may have an answer sent there: a refusal in a retry queue, say, would lead to
    /// itself and never leave.
    #[must_use]
    pub fn owns_queue(&self, name: &str) -> bool {
        name.starts_with(&self.prefix)
            && (name == self.dead_letter_queue()
                || CommandType::ALL.into_iter().any(|kind| name == self.work_queue(kind))
                || RetryDelay::ALL.into_iter().any(|delay| name == self.retry_queue(delay)))
    }

    /// Declares every object that is missing and checks the others, over a connection of its own. What exists with
    /// other arguments is left as it is. Any number of processes may declare at once.
    ///
    /// # Errors
    /// [`TopologyError::Different`] when an object exists with other arguments, [`TopologyError::Forbidden`] when one is
    /// missing and the user may not create it: both are for the operator. [`TopologyError::Broker`] when the broker is
    /// away: try again.
    pub async fn declare(&self, broker: &Broker) -> Result<Declaration, TopologyError> {
        let link = broker.connect("declare").await?;
        let declared = self.declare_on(&link).await;
        link.close().await;
        declared
    }

    /// Looks which objects are missing, over a connection of its own; creates nothing. (Bindings cannot be looked at.)
    ///
    /// # Errors
    /// As [`Self::declare`].
    pub async fn inspect(&self, broker: &Broker) -> Result<Inspection, TopologyError> {
        let link = broker.connect("inspect").await?;
        let mut declaring = Declarer { link: &link, channel: None, declared: Declaration::default() };
        let mut missing = Vec::new();
        let mut result = Ok(());
        for object in self.objects().iter().filter(|object| !matches!(object, Object::Binding { .. })) {
            result = match declaring.exists(object).await {
                // Declaration as it should be, it is left alone, or the difference is told.
                Ok(true) => declaring.object(object).await,
                Ok(false) => {
                    missing.push(object.label());
                    Ok(())
                }
                Err(error) => Err(error),
            };
            if result.is_err() {
                break;
            }
        }
        let Declaration { existing, unchecked, .. } = declaring.declared;
        link.close().await;
        let broker_version = link.broker_version().to_owned();
        result.map(|()| Inspection { existing, unchecked, missing, broker_version })
    }

    pub(super) async fn declare_on(&self, link: &Link) -> Result<Declaration, TopologyError> {
        let mut declaring = Declarer { link, channel: None, declared: Declaration::default() };
        // Every target stands before anything that leads to it, and what publishers see, the command exchange, comes
        // last: until then their messages are an error to them, and not lost.
        for object in self.objects() {
            declaring.object(&object).await?;
        }
        Ok(declaring.declared)
    }

    /// Declares what publishers see, where it is missing: both exchanges and the bindings to the work queues. Nothing of ours
    /// would notice: messages without a binding are lost in silence. `may_bind` becomes false when the user has no right to
    /// bind, so that the broker is not asked for it again. The answer is what was missing, but for bindings, which cannot be
    /// looked at.
    pub(super) async fn restore_on(&self, link: &Link, may_bind: &mut bool) -> Result<Vec<String>, TopologyError> {
        let mut declaring = Declarer { link, channel: None, declared: Declaration::default() };
        for exchange in self.exchanges() {
            // One that exists is not declared: a user without the right to configure would be refused, each time.
            if !declaring.exists(&exchange).await? {
                declaring.object(&exchange).await?;
            }
        }
        for binding in self.bindings() {
            if !*may_bind {
                break;
            }
            match declaring.attempt(&binding, false).await {
                Err(error) if code(&error) == Some(ACCESS_REFUSED) => *may_bind = false,
                result => result?,
            }
        }
        Ok(declaring.declared.created)
    }

    /// Events, then commands: what publishers see comes last.
    fn exchanges(&self) -> [Object; 2] {
        [self.event_exchange(), self.command_exchange()]
            .map(|name| Object::Exchange { name, kind: ExchangeKind::Topic })
    }

    /// From the command exchange to the work queues.
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
                    // Without it, at-least-once is silently at-most-once.
                    ("x-overflow", long("reject-publish")),
                ],
            })
        });
        let retry = RetryDelay::ALL.into_iter().flat_map(|delay| {
            let queue = Queue {
                name: self.retry_queue(delay),
                arguments: vec![
                    ("x-message-ttl", AMQPValue::LongInt(delay.milliseconds())),
                    // No x-dead-letter-routing-key: the message's own key is the way home.
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

/// How long a message waits before it is tried again: one queue for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RetryDelay {
    /// 5 seconds.
    S5,
    /// 30 seconds.
    S30,
    /// 2 minutes.
    M2,
    /// 10 minutes.
    M10,
    /// 1 hour.
    H1,
}

impl RetryDelay {
    /// Every delay, in the order in which a message takes them.
    pub const ALL: [Self; 5] = [Self::S5, Self::S30, Self::M2, Self::M10, Self::H1];

    /// The delay after a delivery that carried `attempt` (0 for the first): 5 s, 30 s, 2 min, 10 min, 1 h, then none.
    #[must_use]
    pub fn for_attempt(attempt: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(attempt).ok()?).copied()
    }

    /// How long it is.
    #[must_use]
    pub fn duration(self) -> Duration {
        Duration::from_secs(match self {
            Self::S5 => 5,
            Self::S30 => 30,
            Self::M2 => 2 * 60,
            Self::M10 => 10 * 60,
            Self::H1 => 60 * 60,
        })
    }

    /// How its queue's name ends.
    #[must_use]
    pub fn suffix(self) -> &'static str {
        match self {
            Self::S5 => "5s",
            Self::S30 => "30s",
            Self::M2 => "2m",
            Self::M10 => "10m",
            Self::H1 => "1h",
        }
    }

    fn milliseconds(self) -> i32 {
        i32::try_from(self.duration().as_millis()).unwrap_or(i32::MAX)
    }
}

/// What [`Topology::declare`] found and did. Objects are named as in its errors: `queue 'x'`, `exchange 'x'`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Declaration {
    /// What was missing, and exists now.
    pub created: Vec<String>,
    /// What existed, as it should be.
    pub existing: Vec<String>,
    /// What exists, but could not be checked: the user may use it and not configure it.
    pub unchecked: Vec<String>,
}

/// What [`Topology::inspect`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inspection {
    /// What exists, as it should be.
    pub existing: Vec<String>,
    /// What exists, but could not be checked: the user may use it and not configure it.
    pub unchecked: Vec<String>,
    /// What does not exist.
    pub missing: Vec<String>,
    /// Which version of RabbitMQ has them, as it tells it.
    pub broker_version: String,
}

/// Why the objects at the broker are not as they should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopologyError {
    /// An object exists with other arguments. Trying again does not help.
    #[error("{object} exists already with other arguments: {difference}. Nothing was changed")]
    Different {
        /// Which one.
        object: String,
        /// What differs, in the broker's words.
        difference: String,
    },
    /// An object is missing, and the user may not create it. Trying again does not help.
    #[error("{object} is missing, and this user may not create it: {why}")]
    Forbidden {
        /// Which one.
        object: String,
        /// What the broker says.
        why: String,
    },
    /// The prefix makes a name that AMQP has no room for.
    #[error("the name '{0}' is longer than AMQP's {NAME_BYTES_MAX} bytes")]
    Name(String),
    /// The broker is away, or failed otherwise.
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

enum Object {
    Queue(Queue),
    Exchange { name: String, kind: ExchangeKind },
    Binding { exchange: String, key: String, queue: String },
}

/// A quorum queue.
struct Queue {
    name: String,
    arguments: Vec<(&'static str, AMQPValue)>,
}

impl Object {
    fn label(&self) -> String {
        match self {
            Self::Queue(queue) => format!("queue '{}'", queue.name),
            Self::Exchange { name, .. } => format!("exchange '{name}'"),
            Self::Binding { exchange, queue, .. } => {
                format!("the binding from exchange '{exchange}' to queue '{queue}'")
            }
        }
    }

    /// Asks for the object: whether it exists at all (`passive`), or for one that is exactly so.
    async fn declare(&self, channel: &Channel, passive: bool) -> Result<(), TopologyError> {
        match self {
            Self::Queue(queue) => {
                let mut arguments = FieldTable::default();
                arguments.insert(ShortString::from("x-queue-type"), long("quorum"));
                for (name, value) in &queue.arguments {
                    arguments.insert(ShortString::from(*name), value.clone());
                }
                let options = QueueDeclareOptions { passive, durable: true, ..QueueDeclareOptions::default() };
                ask("declare a queue", channel.queue_declare(short(&queue.name)?, options, arguments)).await?;
            }
            Self::Exchange { name, kind } => {
                let options = ExchangeDeclareOptions { passive, durable: true, ..ExchangeDeclareOptions::default() };
                let none = FieldTable::default();
                ask("declare an exchange", channel.exchange_declare(short(name)?, kind.clone(), options, none)).await?;
            }
            Self::Binding { exchange, key, queue } => {
                let (queue, exchange, key) = (short(queue)?, short(exchange)?, short(key)?);
                let none = FieldTable::default();
                ask("bind a queue", channel.queue_bind(queue, exchange, key, QueueBindOptions::default(), none))
                    .await?;
            }
        }
        Ok(())
    }
}

struct Declarer<'a> {
    link: &'a Link,
    /// The broker closes a channel at every "no", so it is replaced as often.
    channel: Option<Channel>,
    declared: Declaration,
}

impl Declarer<'_> {
    async fn object(&mut self, object: &Object) -> Result<(), TopologyError> {
        let label = object.label();
        if let Object::Binding { .. } = object {
            return self.attempt(object, false).await.or_else(|error| match code(&error) {
                // Who may not bind may still consume: whether it is bound is for whoever declared it to see.
                Some(ACCESS_REFUSED) => {
                    self.declared.unchecked.push(label);
                    Ok(())
                }
                _ => Err(error),
            });
        }
        let exists = self.exists(object).await?;
        match self.attempt(object, false).await {
            Ok(()) if exists => self.declared.existing.push(label),
            Ok(()) => self.declared.created.push(label),
            Err(TopologyError::Broker(BrokerError::Failed { why, code: Some(PRECONDITION_FAILED), .. })) => {
                return Err(TopologyError::Different { object: label, difference: difference(&why) });
            }
            Err(error) if exists && code(&error) == Some(ACCESS_REFUSED) => self.declared.unchecked.push(label),
            Err(TopologyError::Broker(BrokerError::Failed { why, code: Some(ACCESS_REFUSED), .. })) => {
                return Err(TopologyError::Forbidden { object: label, why });
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn exists(&mut self, object: &Object) -> Result<bool, TopologyError> {
        match self.attempt(object, true).await {
            Ok(()) => Ok(true),
            Err(error) if code(&error) == Some(NOT_FOUND) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn attempt(&mut self, object: &Object, passive: bool) -> Result<(), TopologyError> {
        let channel = match self.channel.take() {
            Some(channel) => channel,
            None => self.link.channel().await?,
        };
        object.declare(&channel, passive).await?;
        self.channel = Some(channel);
        Ok(())
    }
}

fn code(error: &TopologyError) -> Option<u16> {
    match error {
        TopologyError::Broker(error) => error.code(),
        _ => None,
    }
}

/// The broker's "… inequivalent arg 'x-message-ttl' for queue 'q' in vhost '/': received …", from the argument on.
fn difference(why: &str) -> String {
    let text = why.split_once("inequivalent arg ").map_or(why, |(_, rest)| rest);
    match (text.split_once(" for "), text.split_once(": ")) {
        (Some((argument, _)), Some((_, values))) if text != why => format!("{argument}, {values}"),
        _ => text.to_owned(),
    }
}

fn long(text: &str) -> AMQPValue {
    AMQPValue::LongString(LongString::from(text))
}

fn short(name: &str) -> Result<ShortString, TopologyError> {
    ShortString::try_new(name).map_err(|_| TopologyError::Name(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_contract() {
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
    fn ours_is_what_we_declare() {
        let topology = Topology::new("p");
        for queue in ["p.cancellation", "p.payment-failure", "p.retry.5s", "p.retry.1h", "p.dead-letters"] {
            assert!(topology.owns_queue(queue), "{queue}");
        }
        for queue in ["", "p", "p.", "q.cancellation", "pp.retry.5s", "p.answers", "p.retry.6s"] {
            assert!(!topology.owns_queue(queue), "{queue}");
        }
    }

    #[test]
    fn delays_follow_one_another_and_end() {
        let seconds: Vec<_> =
            (0..7).map(|attempt| RetryDelay::for_attempt(attempt).map(|d| d.duration().as_secs())).collect();
        assert_eq!(seconds, [Some(5), Some(30), Some(120), Some(600), Some(3_600), None, None]);
    }

    #[test]
    fn what_differs_is_told_from_the_brokers_sentence() {
        let sentence = "PRECONDITION_FAILED - inequivalent arg 'x-message-ttl' for queue 'p.retry.5s' in vhost '/': \
                        received '5000' but current is '7000'";
        assert_eq!(difference(sentence), "'x-message-ttl', received '5000' but current is '7000'");
        assert_eq!(difference("PRECONDITION_FAILED - something"), "PRECONDITION_FAILED - something");
    }
}
