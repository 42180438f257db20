//! Messages: deliveries, their copies, and other messages to publish. Nothing here talks to the broker.
//!
//! A copy keeps everything the publisher set, except what would change its routing: see `STRIPPED_HEADERS` and `copied`.

use std::fmt;
use std::ops::Deref;

use chrono::{DateTime, SecondsFormat, Utc};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use tokio::time::Instant;

use super::field_value::text;
use super::topology::{RetryDelay, Topology};
use offramp_domain::cloud_event::CloudEvent;
use offramp_domain::dead_letter::DeadLetterReason;
use offramp_domain::trace_context::TraceContext;

/// The number of times a message has been in a retry queue. Absent means 0.
pub const ATTEMPT_HEADER: &str = "offramp-attempt";
/// Whether a command may wait in retry queues for something that may still arrive. Absent means that it may.
pub const WAIT_HEADER: &str = "offramp-wait";
/// The [`DeadLetterReason`] of a dead letter.
pub const REASON_HEADER: &str = "offramp-reason";
/// The reason of a dead letter, as a sentence.
pub const ERROR_HEADER: &str = "offramp-error";
/// The work queue of a dead letter.
pub const QUEUE_HEADER: &str = "offramp-queue";
/// The time at which a message became a dead letter, RFC 3339.
pub const DIED_AT_HEADER: &str = "offramp-died-at";

/// The limit of redeliveries. See [`Delivery::exceeded_redeliveries`].
pub const REDELIVERIES_MAX: u64 = 20;
/// The longest `offramp-error`, in bytes. All headers share one frame, and the broker closes the connection at a larger
/// one.
const ERROR_BYTES_MAX: usize = 2_000;
/// The largest headers of a copy, in bytes, of the frame's usual 128 KiB. Above it, the copy drops the publisher's headers:
/// a message that cannot be copied could never leave its queue.
const HEADERS_BYTES_MAX: usize = 96 * 1024;
/// The `delivery_mode` of a message that survives a restart of the broker.
const PERSISTENT: u8 = 2;

/// Headers that a copy must not have. With `x-death`, RabbitMQ 3.10 takes a second pass through a retry queue for a cycle
/// and drops the message. `CC` and `BCC` route the copy to more queues. The others belong to the broker.
const STRIPPED_HEADERS: [&str; 7] =
    ["x-death", "x-delivery-count", "x-acquired-count", "x-opt-deaths", "CC", "BCC", "x-delivery-limit"];
/// Prefixes of more such headers: `x-first-death-queue`, `x-last-death-reason` and so on.
const STRIPPED_PREFIXES: [&str; 2] = ["x-first-death-", "x-last-death-"];
/// The header with the version of CloudEvents in binary mode; the AMQP binding allows both.
const BINARY_MODE_HEADERS: [&str; 2] = ["cloudEvents:specversion", "cloudEvents_specversion"];
/// Our headers on a dead letter. A replayed copy has none of them.
const DEATH_HEADERS: [&str; 4] = [REASON_HEADER, ERROR_HEADER, QUEUE_HEADER, DIED_AT_HEADER];

/// A message from the broker.
#[derive(Clone, PartialEq)]
pub struct Delivery {
    /// Unchecked, and of any size up to the broker's limit.
    pub body: Vec<u8>,
    /// The number of times it has been in a retry queue: header `offramp-attempt`, 0 if absent or invalid.
    pub attempt: u32,
    /// Whether the broker has delivered it before. Its effects may be stored already.
    pub redelivered: bool,
    /// The number of times the broker requeued it after a crash or a closed channel, as quorum queues report it. A requeue
    /// by `basic.nack` counts up to RabbitMQ 4.2, but not from 4.3 on.
    pub delivery_count: u64,
    /// When it arrived at this process.
    pub received_at: Instant,
    /// The queue for the reply, through the default exchange.
    pub reply_to: Option<String>,
    /// The routing key of the publisher; after a retry queue, the name of the work queue.
    pub routing_key: String,
    properties: BasicProperties,
}

impl Delivery {
    /// A message that the broker has not delivered. Deliveries are converted with [`From`].
    #[must_use]
    pub fn new(body: Vec<u8>, properties: BasicProperties) -> Self {
        Self {
            body,
            attempt: number(&properties, ATTEMPT_HEADER).and_then(|count| u32::try_from(count).ok()).unwrap_or(0),
            redelivered: false,
            delivery_count: 0,
            received_at: Instant::now(),
            reply_to: properties.reply_to().as_ref().map(ToString::to_string).filter(|name| !name.is_empty()),
            routing_key: String::new(),
            properties,
        }
    }

    /// Whether it was redelivered so often that it must be what crashes the workers: messages prefetched with it do not get
    /// this far, because suspects are delivered alone. Dead-letter it with a reason instead of processing it again. The
    /// broker would do so later, without a reason.
    #[must_use]
    pub fn exceeded_redeliveries(&self) -> bool {
        self.delivery_count >= REDELIVERIES_MAX
    }

    /// The message id that the publisher set.
    #[must_use]
    pub fn message_id(&self) -> Option<&str> {
        self.properties.message_id().as_ref().map(ShortString::as_str)
    }

    /// The correlation id that the publisher set.
    #[must_use]
    pub fn correlation_id(&self) -> Option<&str> {
        self.properties.correlation_id().as_ref().map(ShortString::as_str)
    }

    /// The size of body and headers in memory, in bytes, approximately.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.body.len() + headers_memory_bytes(&self.properties)
    }

    /// The AMQP properties, for this adapter and for tests.
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

    /// Whether its sender lets it wait in retry queues: unless the header `offramp-wait` is false, as a boolean or as text.
    #[must_use]
    pub fn may_wait(&self) -> bool {
        let value = self.properties.headers().as_ref().and_then(|headers| headers.inner().get(WAIT_HEADER));
        !value.is_some_and(|value| match value {
            AMQPValue::Boolean(may_wait) => !may_wait,
            value => text(value).is_some_and(|text| text.eq_ignore_ascii_case("false")),
        })
    }

    /// Whether the publisher used the binary mode of CloudEvents: the attributes are in headers, and the body is the data alone.
    #[must_use]
    pub fn is_binary_cloud_event(&self) -> bool {
        let mut names = self.properties.headers().iter().flat_map(|headers| headers.inner().keys());
        names.any(|name| BINARY_MODE_HEADERS.contains(&name.as_str()))
    }

    /// The trace that the message belongs to. Its headers come first, because they name the newest hop; then its envelope, even if the
    /// message is not a command.
    #[must_use]
    pub fn trace_context(&self) -> TraceContext {
        let [traceparent, tracestate, correlationid] = TraceContext::NAMES.map(|name| self.header(name));
        TraceContext::new(traceparent, tracestate, correlationid).over(TraceContext::of_envelope(&self.body))
    }

    /// The copy for the retry queue of `delay`, with the next attempt number. It returns to the work queue `queue` after
    /// that delay. Acknowledge the original only once this copy is confirmed.
    #[must_use]
    pub fn retry_copy(&self, topology: &Topology, queue: &str, delay: RetryDelay) -> Outgoing {
        let attempt = AMQPValue::LongInt(i32::try_from(self.attempt.saturating_add(1)).unwrap_or(i32::MAX));
        let properties = copied(&self.properties, &[(ATTEMPT_HEADER, attempt)]);
        self.copy(topology.retry_exchange(delay), queue.to_owned(), properties)
    }

    /// The copy for the end of its work queue `queue`, with the same attempt number and no redeliveries. For a message that
    /// was redelivered only because a server was unavailable. Acknowledge the original only once this copy is confirmed.
    #[must_use]
    pub fn fresh_copy(&self, queue: &str) -> Outgoing {
        let attempt = AMQPValue::LongInt(i32::try_from(self.attempt).unwrap_or(i32::MAX));
        self.copy(String::new(), queue.to_owned(), copied(&self.properties, &[(ATTEMPT_HEADER, attempt)]))
    }

    /// The copy for the queue of dead letters, with the reason in its headers. `error` is a sentence that names the field,
    /// `queue` the work queue. Acknowledge the original only once this copy is confirmed.
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
                (ERROR_HEADER, long(dead_letter_error(error))),
                (QUEUE_HEADER, long(queue)),
                (DIED_AT_HEADER, long(&died_at.to_rfc3339_opts(SecondsFormat::Millis, true))),
            ],
        );
        self.copy(String::new(), topology.dead_letter_queue(), properties)
    }

    /// The copy that replays a dead letter to its work queue `queue`, with attempt 0 and without our headers.
    #[must_use]
    pub fn replay_copy(&self, queue: &str) -> Outgoing {
        self.copy(String::new(), queue.to_owned(), copied(&self.properties, &[]))
    }

    fn copy(&self, exchange: String, routing_key: String, properties: BasicProperties) -> Outgoing {
        Outgoing { exchange, routing_key, mandatory: true, properties, body: self.body.clone() }
    }
}

// Bodies and headers contain personal data, which must not be logged.
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

/// A delivery of `lapin`, and when it arrived.
pub(super) struct Received {
    delivery: lapin::message::Delivery,
    at: Instant,
}

impl Received {
    pub(super) fn now(delivery: lapin::message::Delivery) -> Self {
        Self { delivery, at: Instant::now() }
    }
}

impl Deref for Received {
    type Target = lapin::message::Delivery;

    fn deref(&self) -> &Self::Target {
        &self.delivery
    }
}

impl From<Received> for Delivery {
    fn from(Received { delivery, at }: Received) -> Self {
        Self { received_at: at, ..Self::from(delivery) }
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

/// A message to publish. Always persistent.
#[derive(Clone, PartialEq)]
pub struct Outgoing {
    /// Empty for the default exchange, which takes a queue's name as routing key.
    pub exchange: String,
    pub routing_key: String,
    /// Whether being unroutable is an error. Otherwise the broker confirms and drops an unroutable message.
    pub mandatory: bool,
    properties: BasicProperties,
    pub body: Vec<u8>,
}

impl Outgoing {
    /// A persistent message, not mandatory, without other properties.
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

    /// An event for an exchange, or for a queue through the default exchange. Its trace is in its headers, too.
    #[must_use]
    pub fn event(exchange: impl Into<String>, routing_key: impl Into<String>, event: &CloudEvent) -> Self {
        // Plain data always serialises.
        let body = serde_json::to_vec(event).unwrap_or_default();
        Self::new(exchange, routing_key, body)
            .content_type("application/cloudevents+json")
            .message_id(&event.id)
            .trace(&event.trace)
    }

    /// Makes being unroutable an error.
    #[must_use]
    pub fn mandatory(self) -> Self {
        Self { mandatory: true, ..self }
    }

    /// Sets the content type. A value too long for AMQP (255 bytes) is ignored, also by the next two.
    #[must_use]
    pub fn content_type(self, value: &str) -> Self {
        self.with(value, BasicProperties::with_content_type)
    }

    #[must_use]
    pub fn message_id(self, value: &str) -> Self {
        self.with(value, BasicProperties::with_message_id)
    }

    #[must_use]
    pub fn correlation_id(self, value: &str) -> Self {
        self.with(value, BasicProperties::with_correlation_id)
    }

    /// Adds a text header. A name too long for AMQP (255 bytes) is ignored.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        let mut headers = self.properties.headers().clone().unwrap_or_default();
        if let Ok(name) = ShortString::try_new(name) {
            headers.insert(name, long(value));
        }
        self.properties = self.properties.with_headers(headers);
        self
    }

    /// Sets the headers of a trace: what receives the message continues it.
    #[must_use]
    pub fn trace(self, trace: &TraceContext) -> Self {
        trace.parts().fold(self, |message, (name, value)| message.header(name, value))
    }

    /// The size of body and headers in memory, in bytes, approximately.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.body.len() + headers_memory_bytes(&self.properties)
    }

    /// The AMQP properties, for this adapter and for tests.
    #[doc(hidden)]
    #[must_use]
    pub fn properties(&self) -> &BasicProperties {
        &self.properties
    }

    /// For tests, which publish messages that the program never does.
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

/// The properties of a copy: the original's, with `own` instead of our earlier headers, and without
/// - the stripped headers,
/// - `expiration`: it would end the retry delay early, or let a dead letter expire,
/// - `priority`: the copy would overtake waiting messages, or wait behind all of them,
/// - `user_id`: the broker closes the channel if it is not the name of our own user.
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
fn headers_memory_bytes(properties: &BasicProperties) -> usize {
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

/// The number of requeues, from the broker's header `x-delivery-count`. RabbitMQ 4 passes on a publisher's header of that
/// name until the first requeue. `x-acquired-count`, which is always the broker's own on a redelivery and never smaller, is
/// therefore an upper bound.
pub(super) fn delivery_count(delivery: &lapin::message::Delivery) -> u64 {
    if !delivery.redelivered {
        return 0;
    }
    let count = number(&delivery.properties, "x-delivery-count").unwrap_or(0);
    number(&delivery.properties, "x-acquired-count").map_or(count, |acquired| count.min(acquired))
}

/// A header as a count, from any of AMQP's integer types, or from text with digits, as some clients send it.
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

/// An error as a dead letter carries it: cut to 2,000 bytes, because all headers share one frame.
#[must_use]
pub fn dead_letter_error(error: &str) -> &str {
    let end = (0..=ERROR_BYTES_MAX.min(error.len())).rev().find(|&end| error.is_char_boundary(end)).unwrap_or(0);
    &error[..end]
}

/// The least size of a table on the wire, in bytes.
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
