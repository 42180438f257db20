//! Every exchange, queue and binding of Offramp: its name, once, and its declaration.
//!
//! How a message returns from a retry queue: the copy is published to the exchange of that delay, with the *name of the
//! work queue* as routing key. That exchange is a fanout to one queue of the same name, so it ignores the key. When the
//! TTL expires, the queue dead-letters the copy to the default exchange, which takes the unchanged key for a queue's name.
//! Five retry queues therefore serve any number of work queues. There is one fanout exchange for each delay, not one
//! headers exchange for all: routing depends on no header, and the broker's list of exchanges explains itself.

use std::time::Duration;

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use lapin::{Channel, ExchangeKind};
use strum::IntoStaticStr;
use tokio::time::{Instant, sleep};

use super::connection::{Broker, BrokerError, Link, ask};
use super::reply_code::{ACCESS_REFUSED, NOT_FOUND, PRECONDITION_FAILED};
use super::rights::{self, DeniedRight};
use crate::backoff::Backoff;
use offramp_domain::command_ref::CommandType;
use offramp_domain::event::CommandRejected;

/// After this many redeliveries, the broker dead-letters a message by itself, without our headers. This catches only what
/// crashes the process before a lane sees it (see `Delivery::exceeded_redeliveries`): attempts have a header of their own.
/// High, because every crash of a worker counts for all messages in flight.
const WORK_DELIVERY_LIMIT: i32 = 100;
/// The delivery limit of dead letters. It must never be reached, and every listing requeues them. Without a limit, RabbitMQ
/// 4.x applies 20; with -1, 3.10 drops a message at its first requeue. Hence the largest number.
const DEAD_LETTER_DELIVERY_LIMIT: i32 = i32::MAX;
/// The delays, minimum and maximum, between the attempts of [`Topology::declare_patiently`].
const PATIENT_DELAYS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));
/// AMQP's limit for names, in bytes.
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

    /// Declares missing objects and checks existing ones, over its own connection. Never changes an existing object. Any
    /// number of processes may declare at once.
    ///
    /// For a worker that starts: if all queues and exchanges exist, bindings that the broker does not confirm in time are taken to
    /// exist, too. [`Publisher`](super::Publisher) goes on declaring those of the work queues, and reports copies for which the binding of
    /// a retry queue is missing.
    ///
    /// # Errors
    /// [`TopologyError::Different`] when an object exists with other arguments, [`TopologyError::Forbidden`] when one is
    /// missing and the user may not create it: both need an operator. [`TopologyError::Broker`] when the broker is
    /// unavailable: retry.
    pub async fn declare(&self, broker: &Broker) -> Result<Declaration, TopologyError> {
        let link = broker.connect("declare").await?;
        let mut declaring = Declarer { bindings: Bindings::Assumable, ..Declarer::new(&link) };
        let attempt = self.declare_with(&mut declaring).await;
        let bindings = declaring.bindings;
        if attempt.is_ok() && bindings == Bindings::Assumed {
            tracing::warn!(
                "RabbitMQ does not confirm bindings; starting anyway, because all queues and exchanges exist"
            );
        }
        if attempt.is_ok() && bindings == Bindings::Assumable {
            link.close().await;
        } else {
            // The next connection leads to another node, if there is one.
            link.cut();
        }
        attempt.map(|()| declaring.declared)
    }

    /// [`Self::declare`] for somebody who waits: tries again for `patience` while RabbitMQ does not answer, loses the connection or
    /// has no leader for a queue. Each failed attempt but the last is passed to `report`. A broker that refuses the first connection is
    /// not waited for.
    ///
    /// # Errors
    /// As [`Self::declare`]; the error of the last attempt.
    pub async fn declare_patiently(
        &self,
        broker: &Broker,
        patience: Duration,
        mut report: impl FnMut(&TopologyError),
    ) -> Result<Declaration, TopologyError> {
        let give_up_at = Instant::now() + patience;
        let mut backoff = Backoff::new(PATIENT_DELAYS);
        let mut created: Vec<String> = Vec::new();
        let mut is_first = true;
        loop {
            let mut declared = Declaration::default();
            let attempt = match broker.connect("declare").await {
                Ok(link) => {
                    let mut declaring = Declarer::new(&link);
                    let attempt = self.declare_with(&mut declaring).await;
                    declared = declaring.declared;
                    match &attempt {
                        Ok(()) => link.close().await,
                        // The next attempt begins with another node, if there is one.
                        Err(_) => link.cut(),
                    }
                    attempt
                }
                Err(error) => Err(error.into()),
            };
            declared.existing.retain(|object| !created.contains(object));
            created.append(&mut declared.created);
            let error = match attempt {
                Ok(()) => return Ok(Declaration { created, ..declared }),
                Err(error) => error,
            };
            let may_pass = match &error {
                TopologyError::Broker(BrokerError::Unreachable(_)) => !is_first,
                TopologyError::Broker(error) => error.may_pass(),
                _ => false,
            };
            if !may_pass || Instant::now() >= give_up_at {
                return Err(error);
            }
            report(&error);
            is_first = false;
            sleep(backoff.next_delay()).await;
        }
    }

    /// Checks all objects and the worker's rights over its own connection, and creates nothing. AMQP has no way to check a binding.
    ///
    /// # Errors
    /// As [`Self::declare`].
    pub async fn inspect(&self, broker: &Broker) -> Result<Inspection, TopologyError> {
        let link = broker.connect("inspect").await?;
        let mut declaring = Declarer::new(&link);
        let (mut missing, mut denied) = (Vec::new(), Vec::new());
        let mut result = Ok(());
        for object in self.objects().iter().filter(|object| !matches!(object, Object::Binding { .. })) {
            result = match declaring.exists(object).await {
                // Declaring an existing object changes nothing, and reports a difference.
                Ok(true) => declaring.object(object).await,
                Ok(false) => {
                    missing.push(object.label());
                    match object.may_be_declared(&link).await {
                        Ok(may) => {
                            denied.extend((!may).then(|| object.denied("configure", "to create it")));
                            Ok(())
                        }
                        Err(error) => Err(error.into()),
                    }
                }
                Err(error) => Err(error),
            };
            if result.is_err() {
                break;
            }
        }
        if result.is_ok() {
            result = self.denied_on(&link).await.map(|found| denied.extend(found)).map_err(TopologyError::from);
        }
        let Declaration { existing, unchecked, .. } = declaring.declared;
        link.close().await;
        let broker_version = link.broker_version().to_owned();
        result.map(|()| Inspection { existing, unchecked, missing, denied, broker_version })
    }

    /// The rights to consume and to publish that a worker needs and the user lacks.
    async fn denied_on(&self, link: &Link) -> Result<Vec<DeniedRight>, BrokerError> {
        let mut denied = Vec::new();
        for command in CommandType::ALL {
            let queue = self.work_queue(command);
            if !rights::may_read(link, &queue).await? {
                let object = format!("queue '{queue}'");
                denied.push(DeniedRight { permission: "read", object, purpose: "to receive commands" });
            }
        }
        let retry = RetryDelay::ALL.map(|delay| (self.retry_exchange(delay), "retry", "to retry commands"));
        let others = [
            (self.event_exchange(), CommandRejected::KIND, "to publish events"),
            (String::new(), "offramp.check", "dead letters and replies"),
        ];
        for (exchange, key, purpose) in retry.into_iter().chain(others) {
            if !rights::may_write(link, &exchange, key).await? {
                let name = if exchange.is_empty() { "amq.default" } else { &exchange };
                denied.push(DeniedRight { permission: "write", object: format!("exchange '{name}'"), purpose });
            }
        }
        Ok(denied)
    }

    pub(super) async fn declare_on(&self, link: &Link) -> Result<Declaration, TopologyError> {
        let mut declaring = Declarer::new(link);
        self.declare_with(&mut declaring).await?;
        Ok(declaring.declared)
    }

    async fn declare_with(&self, declaring: &mut Declarer<'_>) -> Result<(), TopologyError> {
        // Targets come before the objects that route to them, and the command exchange last: until it exists, publishers
        // get an error and lose no message.
        for object in self.objects() {
            declaring.object(&object).await?;
        }
        Ok(())
    }

    /// Declares both exchanges, if missing, and the bindings of the work queues. The worker would not notice that they are
    /// missing: the broker silently drops messages without a binding. `may_bind` becomes false when the user may not bind,
    /// so that the broker is not asked again. Returns the exchanges that were missing; a binding cannot be checked.
    pub(super) async fn restore_on(&self, link: &Link, may_bind: &mut bool) -> Result<Vec<String>, TopologyError> {
        let mut declaring = Declarer::new(link);
        for exchange in self.exchanges() {
            // An existing exchange is not declared: without the permission to configure, that would fail each time.
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

/// The delay before a retry. There is one queue for each; the names are the endings of the queues' names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, IntoStaticStr)]
pub enum RetryDelay {
    #[strum(serialize = "5s")]
    S5,
    #[strum(serialize = "30s")]
    S30,
    #[strum(serialize = "2m")]
    M2,
    #[strum(serialize = "10m")]
    M10,
    #[strum(serialize = "1h")]
    H1,
}

impl RetryDelay {
    /// Every delay, in the order of the attempts.
    pub const ALL: [Self; 5] = [Self::S5, Self::S30, Self::M2, Self::M10, Self::H1];

    /// The delay after the delivery with this `attempt`, counted from 0. `None` once all delays are used.
    #[must_use]
    pub fn for_attempt(attempt: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(attempt).ok()?).copied()
    }

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

    fn as_str(self) -> &'static str {
        self.into()
    }

    fn milliseconds(self) -> i32 {
        i32::try_from(self.duration().as_millis()).unwrap_or(i32::MAX)
    }
}

/// The result of [`Topology::declare`]. Objects are named as in its errors: `queue 'x'`, `exchange 'x'`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Declaration {
    pub created: Vec<String>,
    /// Existed with the right arguments.
    pub existing: Vec<String>,
    /// Exist, but could not be checked: the user lacks the permission to configure them.
    pub unchecked: Vec<String>,
}

/// The result of [`Topology::inspect`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inspection {
    /// Exist with the right arguments.
    pub existing: Vec<String>,
    /// Exist, but could not be checked: the user lacks the permission to configure them.
    pub unchecked: Vec<String>,
    pub missing: Vec<String>,
    /// The rights that a worker needs and this user lacks.
    pub denied: Vec<DeniedRight>,
    /// The version that the broker reports; empty if it reports none.
    pub broker_version: String,
}

/// Why an object could not be declared or checked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopologyError {
    /// An object exists with other arguments. Retrying does not help.
    #[error("{object} exists already with other arguments: {difference}. Nothing was changed")]
    Different {
        object: String,
        /// The difference, in the broker's words.
        difference: String,
    },
    /// An object is missing, and the user may not create it. Retrying does not help.
    #[error("{object} is missing, and this user lacks the permission to create it: {why}")]
    Forbidden { object: String, why: String },
    /// The prefix makes a name too long for AMQP.
    #[error("the name '{0}' exceeds AMQP's {NAME_BYTES_MAX} bytes")]
    Name(String),
    /// The broker is unavailable, or failed otherwise.
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

    fn denied(&self, permission: &'static str, purpose: &'static str) -> DeniedRight {
        DeniedRight { permission, object: self.label(), purpose }
    }

    /// Whether the user may declare this object, which is missing. (Bindings: not tried.)
    async fn may_be_declared(&self, link: &Link) -> Result<bool, BrokerError> {
        match self {
            Self::Queue(queue) => rights::may_declare_queue(link, &queue.name).await,
            Self::Exchange { name, .. } => rights::may_declare_exchange(link, name).await,
            Self::Binding { .. } => Ok(true),
        }
    }

    /// Declares the object; with `passive`, only checks that it exists, with any arguments.
    async fn declare(&self, channel: &Channel, passive: bool) -> Result<(), TopologyError> {
        let doing = format!("{} {}", if passive { "find" } else { "declare" }, self.label());
        match self {
            Self::Queue(queue) => {
                let mut arguments = FieldTable::default();
                arguments.insert(ShortString::from("x-queue-type"), long("quorum"));
                for (name, value) in &queue.arguments {
                    arguments.insert(ShortString::from(*name), value.clone());
                }
                let options = QueueDeclareOptions { passive, durable: true, ..QueueDeclareOptions::default() };
                ask(doing, channel.queue_declare(short(&queue.name)?, options, arguments)).await?;
            }
            Self::Exchange { name, kind } => {
                let options = ExchangeDeclareOptions { passive, durable: true, ..ExchangeDeclareOptions::default() };
                let none = FieldTable::default();
                ask(doing, channel.exchange_declare(short(name)?, kind.clone(), options, none)).await?;
            }
            Self::Binding { exchange, key, queue } => {
                let (queue, exchange, key) = (short(queue)?, short(exchange)?, short(key)?);
                let none = FieldTable::default();
                ask(doing, channel.queue_bind(queue, exchange, key, QueueBindOptions::default(), none)).await?;
            }
        }
        Ok(())
    }
}

/// What is done about bindings.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bindings {
    /// Each must be confirmed.
    Required,
    /// One that gets no reply is taken to exist, unless an object was missing. In a cluster of RabbitMQ 3, no binding can be declared for
    /// a minute after a node was cut off, although all queues work.
    Assumable,
    /// One got no reply, so the broker is not asked again.
    Assumed,
}

struct Declarer<'a> {
    link: &'a Link,
    bindings: Bindings,
    /// Replaced after every error: the broker closes the channel then.
    channel: Option<Channel>,
    declared: Declaration,
    /// The user was refused to declare an existing object. Others are not tried: the broker would log an error for each.
    may_not_configure: bool,
    /// No other address has what this node lacks.
    is_missing_everywhere: bool,
}

impl<'a> Declarer<'a> {
    fn new(link: &'a Link) -> Self {
        Self {
            link,
            bindings: Bindings::Required,
            channel: None,
            declared: Declaration::default(),
            may_not_configure: false,
            is_missing_everywhere: false,
        }
    }
}

impl Declarer<'_> {
    async fn object(&mut self, object: &Object) -> Result<(), TopologyError> {
        let label = object.label();
        if let Object::Binding { .. } = object {
            return self.binding(object).await;
        }
        let exists = self.exists(object).await?;
        if exists && self.may_not_configure {
            self.declared.unchecked.push(label);
            return Ok(());
        }
        if !exists && !self.is_missing_everywhere {
            self.expect_missing_everywhere(object).await?;
        }
        match self.attempt(object, false).await {
            Ok(()) if exists => self.declared.existing.push(label),
            Ok(()) => self.declared.created.push(label),
            Err(TopologyError::Broker(BrokerError::Failed { why, code: Some(PRECONDITION_FAILED), .. })) => {
                return Err(TopologyError::Different { object: label, difference: difference(&why) });
            }
            Err(error) if exists && code(&error) == Some(ACCESS_REFUSED) => {
                self.may_not_configure = true;
                self.declared.unchecked.push(label);
            }
            Err(TopologyError::Broker(BrokerError::Failed { why, code: Some(ACCESS_REFUSED), .. })) => {
                return Err(TopologyError::Forbidden { object: label, why });
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn binding(&mut self, binding: &Object) -> Result<(), TopologyError> {
        let nothing_was_missing = self.declared.created.is_empty();
        if self.bindings == Bindings::Assumed && nothing_was_missing {
            self.declared.unchecked.push(binding.label());
            return Ok(());
        }
        match self.attempt(binding, false).await {
            // A user who may not bind may still consume. Checking the binding is up to whoever declared it.
            Err(error) if code(&error) == Some(ACCESS_REFUSED) => {}
            Err(TopologyError::Broker(BrokerError::Deadline { .. }))
                if self.bindings == Bindings::Assumable && nothing_was_missing =>
            {
                self.bindings = Bindings::Assumed;
            }
            result => return result,
        }
        self.declared.unchecked.push(binding.label());
        Ok(())
    }

    /// Fails if another address has this object, which this node lacks. A node that has lost its data, or is new, accepts clients before it
    /// joins its cluster. What it confirms is lost when it does.
    async fn expect_missing_everywhere(&mut self, object: &Object) -> Result<(), TopologyError> {
        for other in self.link.to_other_addresses("compare").await {
            let exists = Declarer::new(&other).attempt(object, true).await.is_ok();
            other.close().await;
            if exists {
                self.link.cut();
                return Err(BrokerError::Stranger { object: object.label() }.into());
            }
        }
        self.is_missing_everywhere = true;
        Ok(())
    }

    async fn exists(&mut self, object: &Object) -> Result<bool, TopologyError> {
        match self.attempt(object, true).await {
            Ok(()) => Ok(true),
            Err(error) if code(&error) == Some(NOT_FOUND) => Ok(false),
            // RabbitMQ 4.3 asks for the right to configure even here. Whether the object exists stays unknown; its users find out.
            Err(error) if code(&error) == Some(ACCESS_REFUSED) => {
                self.may_not_configure = true;
                Ok(true)
            }
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

/// Shortens the broker's "… inequivalent arg 'x-message-ttl' for queue 'q' in vhost '/': received …" to the argument and
/// its values.
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

    #[test]
    fn each_attempt_has_a_longer_delay_until_the_last() {
        let seconds: Vec<_> =
            (0..7).map(|attempt| RetryDelay::for_attempt(attempt).map(|d| d.duration().as_secs())).collect();
        assert_eq!(seconds, [Some(5), Some(30), Some(120), Some(600), Some(3_600), None, None]);
    }

    #[test]
    fn differences_are_extracted_from_the_brokers_error() {
        let sentence = "PRECONDITION_FAILED - inequivalent arg 'x-message-ttl' for queue 'p.retry.5s' in vhost '/': \
                        received '5000' but current is '7000'";
        assert_eq!(difference(sentence), "'x-message-ttl', received '5000' but current is '7000'");
        assert_eq!(difference("PRECONDITION_FAILED - something"), "PRECONDITION_FAILED - something");
    }
}
