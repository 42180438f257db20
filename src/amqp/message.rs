//! One message: as it came in, and what is made of it to go out again .
//!
//! Copies keep everything the publisher set, except what would change their way through the broker: see
//! `STRIPPED_HEADERS` and `copied`.

use std::fmt;

use chrono::{DateTime, SecondsFormat, Utc};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};

use super::field_value::text;
use super::topology::{RetryDelay, Topology};
use offramp_domain::cloud_event::CloudEvent;
use offramp_domain::dead_letter::DeadLetterReason;

/// How often a message has been through a retry queue; absent means 0.
pub const ATTEMPT_HEADER: &str = "offramp-attempt";
/// Why a message is a dead letter, as one word: see [`DeadLetterReason`].
pub const REASON_HEADER: &str = "offramp-reason";
/// Why a message is a dead letter, as a sentence.
pub const ERROR_HEADER: &str = "offramp-error";
/// The work queue that a dead letter came from.
pub const QUEUE_HEADER: &str = "offramp-queue";
/// When a message became a dead letter, RFC 3339.
pub const DIED_AT_HEADER: &str = "offramp-died-at";

/// How often a message may come back. See [`Delivery::exceeded_redeliveries`].
pub const REDELIVERIES_MAX: u64 = 20;
/// The longest `offramp-error`, in bytes: AMQP sends all headers in one frame, and the broker hangs up on a larger one.
const ERROR_BYTES_MAX: usize = 2_000;
/// The most that a copy's headers may weigh, in bytes, of the frame's usual 128 KiB. Above it, a copy leaves the
/// publisher's own headers behind: a message that cannot be sent on could never leave its queue.
const HEADERS_BYTES_MAX: usize = 96 * 1024;
/// `delivery_mode` of a message that survives a restart of the broker.
const PERSISTENT: u8 = 2;

/// Headers that the broker or we put on a message on its way, and that must not come back with its copy. With `x-death`
/// on it, RabbitMQ 3.10 takes the second trip through a retry queue for a cycle and drops the message; `CC` and `BCC`
/// send the copy to further queues.
const STRIPPED_HEADERS: [&str; 7] =
    ["x-death", "x-delivery-count", "x-acquired-count", "x-opt-deaths", "CC", "BCC", "x-delivery-limit"];
/// The same, by how they begin: `x-first-death-queue`, `x-last-death-reason` and so on.
const STRIPPED_PREFIXES: [&str; 2] = ["x-first-death-", "x-last-death-"];
/// What we say about a dead letter. A copy that goes back to work carries none of it.
const DEATH_HEADERS: [&str; 4] = [REASON_HEADER, ERROR_HEADER, QUEUE_HEADER, DIED_AT_HEADER];

/// A message as it came in.
#[derive(Clone, PartialEq)]
pub struct Delivery {
    /// What was sent, byte for byte. Unchecked: up to the broker's own limit.
    pub body: Vec<u8>,
    /// How often it has been through a retry queue: header `offramp-attempt`, 0 where it is absent or nonsense.
    pub attempt: u32,
    /// Whether the broker has delivered it before, so its effects may be stored already.
    pub redelivered: bool,
    /// How often the broker took it back because a process ended or a channel closed, where it says so: quorum queues do.
    /// What was given back with `basic.nack` counts up to RabbitMQ 4.2, and no more from 4.3 on.
    pub delivery_count: u64,
    /// Where the sender wants the answer: a queue's name, for the default exchange.
    pub reply_to: Option<String>,
    /// The routing key it was published with; after a retry queue, the work queue's name.
    pub routing_key: String,
    /// Everything that came with the body.
    properties: BasicProperties,
}

impl Delivery {
    /// A message made of its parts; what the broker delivers is made with [`From`].
    #[must_use]
    pub fn new(body: Vec<u8>, properties: BasicProperties) -> Self {
        Self {
            body,
            attempt: number(&properties, ATTEMPT_HEADER).and_then(|count| u32::try_from(count).ok()).unwrap_or(0),
            redelivered: false,
            delivery_count: 0,
            reply_to: properties.reply_to().as_ref().map(ToString::to_string).filter(|name| !name.is_empty()),
            routing_key: String::new(),
            properties,
        }
    }

    /// Whether it came back so often that it must be what ends the processes that take it: a message that others were sent
    /// ahead with is not that unlucky, since suspects are delivered alone. Better made a dead letter, which says why, than
    /// processed once more; left alone, the broker would do it, later and without a reason.
    #[must_use]
    pub fn exceeded_redeliveries(&self) -> bool {
        self.delivery_count >= REDELIVERIES_MAX
    }

    /// The correlation id that the publisher set.
    #[must_use]
    pub fn correlation_id(&self) -> Option<&str> {
        self.properties.correlation_id().as_ref().map(ShortString::as_str)
    }

    /// The size of body and headers in memory, in bytes, approximately.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.body.len() + weight(&self.properties)
    }

    /// Everything that came with the body, for this adapter and for tests.
    #[doc(hidden)]
    #[must_use]
    pub fn properties(&self) -> &BasicProperties {
        &self.properties
    }

    /// The text of a header. `None` if it is absent or not text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        text(self.properties.headers().as_ref()?.inner().get(name)?)
    }

    /// The copy that waits in the retry queue of `delay` and comes back to the work queue `queue`, with its attempt
    /// counted. Acknowledge the original only once this copy is confirmed.
    #[must_use]
    pub fn retry_copy(&self, topology: &Topology, queue: &str, delay: RetryDelay) -> Outgoing {
        let attempt = AMQPValue::LongInt(i32::try_from(self.attempt.saturating_add(1)).unwrap_or(i32::MAX));
        let properties = copied(&self.properties, &[(ATTEMPT_HEADER, attempt)]);
        self.copy(topology.retry_exchange(delay), queue.to_owned(), properties)
    }

    /// The copy that goes to the end of its work queue `queue`, with the same attempt, and as if it had never come back. For
    /// what was in hand through no fault of its own whenever something else was away. Acknowledge the original only once this
    /// copy is confirmed.
    #[must_use]
    pub fn fresh_copy(&self, queue: &str) -> Outgoing {
        let attempt = AMQPValue::LongInt(i32::try_from(self.attempt).unwrap_or(i32::MAX));
        self.copy(String::new(), queue.to_owned(), copied(&self.properties, &[(ATTEMPT_HEADER, attempt)]))
    }

    /// The copy for the dead letters, with headers that say why: `error` is a sentence
    /// that says which field, `queue` the work queue it came from. Acknowledge the original only once this copy is confirmed.
    #[must_use]
    pub fn dead_letter(
        &self,
        topology: &Topology,
        reason: DeadLetterReason,
        error: &str,
        queue: &str,
        died_at: DateTime<Utc>,
    ) -> Outgoing {
        let attempt = AMQPValue::LongInt(i32::try_from(self.attempt).unwrap_or(i32::MAX));
        let properties = copied(
            &self.properties,
            &[
                (ATTEMPT_HEADER, attempt),
                (REASON_HEADER, long(reason.as_str())),
                (ERROR_HEADER, long(shortened(error, ERROR_BYTES_MAX))),
                (QUEUE_HEADER, long(queue)),
                (DIED_AT_HEADER, long(&died_at.to_rfc3339_opts(SecondsFormat::Millis, true))),
            ],
        );
        self.copy(String::new(), topology.dead_letter_queue(), properties)
    }

    /// The copy that sends a dead letter back to its work queue `queue`: attempt count reset, what we said about it removed.
    #[must_use]
    pub fn replay_copy(&self, queue: &str) -> Outgoing {
        self.copy(String::new(), queue.to_owned(), copied(&self.properties, &[]))
    }

    fn copy(&self, exchange: String, routing_key: String, properties: BasicProperties) -> Outgoing {
        Outgoing { exchange, routing_key, mandatory: true, properties, body: self.body.clone() }
    }
}

// Bodies and headers hold names and reasons that people wrote: they belong in no log.
impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("message_id", self.properties.message_id())
            .field("attempt", &self.attempt)
            .field("redelivered", &self.redelivered)
            .field("body_bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

impl From<lapin::message::Delivery> for Delivery {
    fn from(delivery: lapin::message::Delivery) -> Self {
        Self {
            redelivered: delivery.redelivered,
            delivery_count: delivery_count(&delivery),
            routing_key: delivery.routing_key.to_string(),
            ..Self::new(delivery.data, delivery.properties)
        }
    }
}

/// A message to send. Always persistent.
#[derive(Clone, PartialEq)]
pub struct Outgoing {
    /// The exchange; empty for the default one, which takes a queue's name as routing key.
    pub exchange: String,
    /// The routing key.
    pub routing_key: String,
    /// Whether it is an error when no queue takes it. Without it, such a message is confirmed and gone.
    pub mandatory: bool,
    /// Everything that goes with the body.
    properties: BasicProperties,
    /// What is sent, byte for byte.
    pub body: Vec<u8>,
}

impl Outgoing {
    /// A new message, not mandatory, persistent, with nothing else set.
    #[must_use]
    pub fn new(exchange: impl Into<String>, routing_key: impl Into<String>, body: Vec<u8>) -> Self {
        Self {
            exchange: exchange.into(),
            routing_key: routing_key.into(),
            mandatory: false,
            properties: BasicProperties::default().with_delivery_mode(PERSISTENT),
            body,
        }
    }

    /// An event, to an exchange or, through the default one, to a queue.
    #[must_use]
    pub fn event(exchange: impl Into<String>, routing_key: impl Into<String>, event: &CloudEvent) -> Self {
        // Plain data: it cannot fail to be written.
        let body = serde_json::to_vec(event).unwrap_or_default();
        Self::new(exchange, routing_key, body).content_type("application/cloudevents+json").message_id(&event.id)
    }

    /// With `mandatory`: when no queue takes it, publishing is an error.
    #[must_use]
    pub fn mandatory(self) -> Self {
        Self { mandatory: true, ..self }
    }

    /// With a content type. One that is too long for AMQP (255 bytes) is left out, as in the two that follow.
    #[must_use]
    pub fn content_type(self, value: &str) -> Self {
        self.with(value, BasicProperties::with_content_type)
    }

    /// With a message id.
    #[must_use]
    pub fn message_id(self, value: &str) -> Self {
        self.with(value, BasicProperties::with_message_id)
    }

    /// With a correlation id.
    #[must_use]
    pub fn correlation_id(self, value: &str) -> Self {
        self.with(value, BasicProperties::with_correlation_id)
    }

    /// With one more text header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        let mut headers = self.properties.headers().clone().unwrap_or_default();
        if let Ok(name) = ShortString::try_new(name) {
            headers.insert(name, long(value));
        }
        self.properties = self.properties.with_headers(headers);
        self
    }

    /// The size of body and headers in memory, in bytes, approximately.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.body.len() + weight(&self.properties)
    }

    /// Everything that goes with the body, for this adapter and for tests.
    #[doc(hidden)]
    #[must_use]
    pub fn properties(&self) -> &BasicProperties {
        &self.properties
    }

    /// For tests, which send what the program never does.
    #[doc(hidden)]
    #[must_use]
    pub fn with_properties(self, change: impl FnOnce(BasicProperties) -> BasicProperties) -> Self {
        Self { properties: change(self.properties), ..self }
    }

    fn with(mut self, value: &str, set: fn(BasicProperties, ShortString) -> BasicProperties) -> Self {
        if let Ok(value) = ShortString::try_new(value) {
            self.properties = set(self.properties, value);
        }
        self
    }
}

impl fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outgoing")
            .field("exchange", &self.exchange)
            .field("routing_key", &self.routing_key)
            .field("message_id", self.properties.message_id())
            .field("body_bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

/// The properties of a copy: the original's, with `own` headers instead of earlier ones of ours, and without
/// - the headers named above,
/// - `expiration`: it would bring a message back early, or let a dead letter expire,
/// - `priority`: a copy would overtake messages that wait, or be overtaken by all of them,
/// - `user_id`: the broker closes the channel when it is not our own user's name.
fn copied(original: &BasicProperties, own: &[(&'static str, AMQPValue)]) -> BasicProperties {
    let mut headers = FieldTable::default();
    for (name, value) in original.headers().iter().flat_map(FieldTable::inner) {
        let name = name.as_str();
        let stripped = STRIPPED_HEADERS.contains(&name)
            || STRIPPED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
            || DEATH_HEADERS.contains(&name)
            || name == ATTEMPT_HEADER;
        if !stripped {
            headers.insert(ShortString::from(name), value.clone());
        }
    }
    if table_bytes(&headers) > HEADERS_BYTES_MAX {
        headers = FieldTable::default();
    }
    for (name, value) in own {
        headers.insert(ShortString::from(*name), value.clone());
    }
    let mut copy = BasicProperties::default().with_delivery_mode(PERSISTENT).with_headers(headers);
    if let Some(value) = original.content_type() {
        copy = copy.with_content_type(value.clone());
    }
    if let Some(value) = original.content_encoding() {
        copy = copy.with_content_encoding(value.clone());
    }
    if let Some(value) = original.correlation_id() {
        copy = copy.with_correlation_id(value.clone());
    }
    if let Some(value) = original.reply_to() {
        copy = copy.with_reply_to(value.clone());
    }
    if let Some(value) = original.message_id() {
        copy = copy.with_message_id(value.clone());
    }
    if let Some(value) = original.timestamp() {
        copy = copy.with_timestamp(*value);
    }
    if let Some(value) = original.kind() {
        copy = copy.with_type(value.clone());
    }
    if let Some(value) = original.app_id() {
        copy = copy.with_app_id(value.clone());
    }
    copy
}

/// The size of a message's headers in memory, in bytes, approximately.
fn weight(properties: &BasicProperties) -> usize {
    fn of(value: &AMQPValue) -> usize {
        size_of::<AMQPValue>()
            + match value {
                AMQPValue::LongString(text) => text.as_bytes().len(),
                AMQPValue::ByteArray(bytes) => bytes.len(),
                AMQPValue::FieldArray(array) => array.as_slice().iter().map(of).sum(),
                AMQPValue::FieldTable(table) => of_table(table),
                _ => 0,
            }
    }
    fn of_table(table: &FieldTable) -> usize {
        table.inner().iter().map(|(name, value)| size_of::<ShortString>() + name.as_str().len() + of(value)).sum()
    }
    properties.headers().as_ref().map_or(0, of_table)
}

/// How often the broker took it back, as it says in a header of its own. RabbitMQ 4 leaves a header of that name as its publisher
/// wrote it until it has something to count; in another, which is always its own on a redelivery, it counts a little more.
pub(super) fn delivery_count(delivery: &lapin::message::Delivery) -> u64 {
    if !delivery.redelivered {
        return 0;
    }
    let count = number(&delivery.properties, "x-delivery-count").unwrap_or(0);
    number(&delivery.properties, "x-acquired-count").map_or(count, |acquired| count.min(acquired))
}

/// A header as a count: any of AMQP's integer types, or digits as text (some clients send those).
fn number(properties: &BasicProperties, name: &str) -> Option<u64> {
    match properties.headers().as_ref()?.inner().get(name)? {
        AMQPValue::ShortShortInt(value) => u64::try_from(*value).ok(),
        AMQPValue::ShortShortUInt(value) => Some(u64::from(*value)),
        AMQPValue::ShortInt(value) => u64::try_from(*value).ok(),
        AMQPValue::ShortUInt(value) => Some(u64::from(*value)),
        AMQPValue::LongInt(value) => u64::try_from(*value).ok(),
        AMQPValue::LongUInt(value) => Some(u64::from(*value)),
        AMQPValue::LongLongInt(value) => u64::try_from(*value).ok(),
        value => text(value)?.parse().ok(),
    }
}

fn long(text: &str) -> AMQPValue {
    AMQPValue::LongString(LongString::from(text))
}

/// The longest beginning of `text` that fits into `bytes`.
fn shortened(text: &str, bytes: usize) -> &str {
    let end = (0..=bytes.min(text.len())).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
    &text[..end]
}

/// What a table weighs on the wire, at least.
fn table_bytes(table: &FieldTable) -> usize {
    table.inner().iter().map(|(name, value)| 2 + name.as_str().len() + value_bytes(value)).sum()
}

fn value_bytes(value: &AMQPValue) -> usize {
    match value {
        AMQPValue::LongString(text) => 4 + text.as_bytes().len(),
        AMQPValue::ShortString(text) => 1 + text.as_str().len(),
        AMQPValue::ByteArray(bytes) => 4 + bytes.len(),
        AMQPValue::FieldTable(table) => 4 + table_bytes(table),
        AMQPValue::FieldArray(values) => {
            4 + values.as_slice().iter().map(|value| 1 + value_bytes(value)).sum::<usize>()
        }
        _ => 8,
    }
}
