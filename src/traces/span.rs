//! A span, or nothing where traces are off. The names and attributes of all spans are here, after OpenTelemetry's semantic conventions for
//! messaging, RabbitMQ, databases and CloudEvents.

use std::borrow::Cow;
use std::str::FromStr;
use std::sync::OnceLock;

use opentelemetry::trace::{
    Link, Span as _, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId,
    TraceState, Tracer as _,
};
use opentelemetry::{Context, Key, KeyValue, Value};
use opentelemetry_sdk::trace::{SdkTracer, Span as SdkSpan};

use crate::store::DocumentId;
use offramp_domain::trace_context::TraceContext;

/// Set once, when traces are on.
static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// The flags of a span that travel: sampled, and random trace id.
const TRAVELLING_FLAGS: u8 = 0b11;

/// A span that is being recorded. It ends when it is dropped. The default is none.
#[derive(Debug, Default)]
pub struct Span(Option<Box<SdkSpan>>);

/// What a span says about one message from a queue.
#[derive(Clone, Copy, Debug)]
pub struct ReceivedMessage<'a> {
    pub queue: &'a str,
    /// The lane: the type of its commands.
    pub kind: &'static str,
    pub routing_key: &'a str,
    pub message_id: Option<&'a str>,
    pub correlation_id: Option<&'a str>,
    pub attempt: u32,
}

/// What a span says about an event that is published.
#[derive(Clone, Copy, Debug)]
pub struct SentEvent<'a> {
    pub exchange: &'a str,
    /// Its type, which is also the routing key.
    pub kind: &'a str,
    pub id: &'a str,
    pub source: &'a str,
    /// How often it was tried before.
    pub attempts: i32,
}

/// What a span says about an attempt to send an email.
#[derive(Clone, Copy, Debug)]
pub struct SentEmail<'a> {
    pub template: &'static str,
    pub role: &'static str,
    /// The id of its outbox entry.
    pub entry: &'a str,
    /// The document that holds it.
    pub document: &'a DocumentId,
    pub attempts: i32,
}

/// Whether traces are on.
#[must_use]
pub fn is_on() -> bool {
    TRACER.get().is_some()
}

/// Turns traces on for this process. Only the first call counts.
pub(super) fn turn_on(tracer: SdkTracer) {
    // A second call comes from nowhere but tests.
    let _ = TRACER.set(tracer);
}

impl Span {
    /// The processing of a batch: the root of a trace of its own, with a link to each message.
    #[must_use]
    pub fn process_batch<'a>(queue: &str, messages: impl ExactSizeIterator<Item = &'a TraceContext>) -> Self {
        let Some(tracer) = TRACER.get() else { return Self::default() };
        let count = messages.len();
        let links = messages.filter_map(span_context).map(Link::with_context).collect();
        let builder = SpanBuilder::from_name(format!("process {queue}"))
            .with_kind(SpanKind::Consumer)
            .with_links(links)
            .with_attributes([
                text("messaging.system", "rabbitmq"),
                text("messaging.operation.name", "process"),
                text("messaging.operation.type", "process"),
                text("messaging.destination.name", queue.to_owned()),
                number("messaging.batch.message_count", count),
            ]);
        Self::start(tracer, builder, &Context::new())
    }

    /// What becomes of one message of a batch: a child of the span that published it, with a link to the batch.
    #[must_use]
    pub fn decide(message: ReceivedMessage<'_>, trace: &TraceContext, batch: &Self) -> Self {
        let Some(tracer) = TRACER.get() else { return Self::default() };
        let mut attributes = vec![
            text("messaging.system", "rabbitmq"),
            text("messaging.operation.name", "decide"),
            text("messaging.operation.type", "process"),
            text("messaging.destination.name", message.queue.to_owned()),
            text("messaging.rabbitmq.destination.routing_key", message.routing_key.to_owned()),
            number("offramp.attempt", message.attempt),
        ];
        attributes.extend(message.message_id.map(|id| text("messaging.message.id", id.to_owned())));
        attributes.extend(message.correlation_id.map(|id| text("messaging.message.conversation_id", id.to_owned())));
        let builder = SpanBuilder::from_name(format!("decide {}", message.kind))
            .with_kind(SpanKind::Consumer)
            .with_links(batch.span_context().cloned().map(Link::with_context).into_iter().collect())
            .with_attributes(attributes);
        Self::start(tracer, builder, &parent(trace))
    }

    /// A sweep for one kind of scheduled change: the root of the trace of everything that it causes.
    #[must_use]
    pub fn sweep(kind: &'static str, documents: usize) -> Self {
        let Some(tracer) = TRACER.get() else { return Self::default() };
        let builder =
            SpanBuilder::from_name(format!("sweep {kind}")).with_attributes([number("offramp.documents", documents)]);
        Self::start(tracer, builder, &Context::new())
    }

    /// A command to MongoDB for a batch: `find` or `update`.
    #[must_use]
    pub fn mongodb(&self, name: &'static str, operation: &'static str, documents: usize) -> Self {
        self.child(name, SpanKind::Client, || {
            vec![
                text("db.system.name", "mongodb"),
                text("db.operation.name", operation),
                number("offramp.documents", documents),
            ]
        })
    }

    /// The publication of copies, rejections or replies of a batch.
    #[must_use]
    pub fn publish(&self, messages: usize) -> Self {
        self.child("publish", SpanKind::Client, || {
            vec![
                text("messaging.system", "rabbitmq"),
                text("messaging.operation.name", "publish"),
                text("messaging.operation.type", "send"),
                number("messaging.batch.message_count", messages),
            ]
        })
    }

    /// The acknowledgement of a batch.
    #[must_use]
    pub fn ack(&self, queue: &str, messages: usize) -> Self {
        if self.0.is_none() {
            return Self::default();
        }
        self.child(format!("ack {queue}"), SpanKind::Client, || {
            vec![
                text("messaging.system", "rabbitmq"),
                text("messaging.operation.name", "ack"),
                text("messaging.operation.type", "settle"),
                text("messaging.destination.name", queue.to_owned()),
                number("messaging.batch.message_count", messages),
            ]
        })
    }

    /// The publication of an event from the outbox, in the trace that it belongs to.
    #[must_use]
    pub fn send_event(event: SentEvent<'_>, trace: &TraceContext) -> Self {
        let Some(tracer) = TRACER.get() else { return Self::default() };
        let SentEvent { exchange, kind, id, source, attempts } = event;
        let builder =
            SpanBuilder::from_name(format!("send {exchange}:{kind}")).with_kind(SpanKind::Producer).with_attributes([
                text("messaging.system", "rabbitmq"),
                text("messaging.operation.name", "send"),
                text("messaging.operation.type", "send"),
                text("messaging.destination.name", format!("{exchange}:{kind}")),
                text("messaging.rabbitmq.destination.routing_key", kind.to_owned()),
                text("messaging.message.id", id.to_owned()),
                text("cloudevents.event_id", id.to_owned()),
                text("cloudevents.event_source", source.to_owned()),
                text("cloudevents.event_type", kind.to_owned()),
                number("offramp.attempt", attempts),
            ]);
        Self::start(tracer, builder, &parent(trace))
    }

    /// One attempt to send an email, in the trace that it belongs to.
    #[must_use]
    pub fn send_email(email: SentEmail<'_>, trace: &TraceContext) -> Self {
        let Some(tracer) = TRACER.get() else { return Self::default() };
        let SentEmail { template, role, entry, document, attempts } = email;
        let builder =
            SpanBuilder::from_name(format!("email {template}")).with_kind(SpanKind::Client).with_attributes([
                text("network.protocol.name", "smtp"),
                text("offramp.template", template),
                text("offramp.role", role),
                text("offramp.entry", entry.to_owned()),
                text("offramp.document", document.to_string()),
                number("offramp.attempt", attempts),
            ]);
        Self::start(tracer, builder, &parent(trace))
    }

    /// Sets an attribute.
    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        if let Some(span) = &mut self.0 {
            span.set_attribute(KeyValue::new(key, value));
        }
    }

    /// Adds an event: something that happened at this moment.
    pub fn happened(&mut self, name: &'static str) {
        if let Some(span) = &mut self.0 {
            span.add_event(name, Vec::new());
        }
    }

    /// Marks the span as failed. `error` is a word, never a sentence that could quote a document or an address.
    pub fn fail(&mut self, error: impl Into<Cow<'static, str>>) {
        if let Some(span) = &mut self.0 {
            let error = error.into();
            span.set_attribute(text("error.type", error.clone()));
            span.set_status(Status::error(error));
        }
    }

    /// The context of what this span causes; `trace` where there is no span. The correlation id stays.
    #[must_use]
    pub fn context(&self, trace: &TraceContext) -> TraceContext {
        let Some(span) = self.span_context() else { return trace.clone() };
        let flags = span.trace_flags().to_u8() & TRAVELLING_FLAGS;
        let traceparent = format!("00-{}-{}-{flags:02x}", span.trace_id(), span.span_id());
        trace.in_span(&traceparent, &span.trace_state().header())
    }

    fn start(tracer: &SdkTracer, builder: SpanBuilder, parent: &Context) -> Self {
        Self(Some(Box::new(tracer.build_with_context(builder, parent))))
    }

    fn child(
        &self,
        name: impl Into<Cow<'static, str>>,
        kind: SpanKind,
        attributes: impl FnOnce() -> Vec<KeyValue>,
    ) -> Self {
        let (Some(tracer), Some(parent)) = (TRACER.get(), self.span_context()) else { return Self::default() };
        let builder = SpanBuilder::from_name(name).with_kind(kind).with_attributes(attributes());
        Self::start(tracer, builder, &Context::new().with_remote_span_context(parent.clone()))
    }

    fn span_context(&self) -> Option<&SpanContext> {
        Some(self.0.as_ref()?.span_context())
    }
}

/// The parent of a span in this trace; none where the trace is unknown.
fn parent(trace: &TraceContext) -> Context {
    match span_context(trace) {
        Some(remote) => Context::new().with_remote_span_context(remote),
        None => Context::new(),
    }
}

fn span_context(trace: &TraceContext) -> Option<SpanContext> {
    let text = trace.traceparent()?;
    let flags = u8::from_str_radix(text.get(53..55)?, 16).ok()?;
    Some(SpanContext::new(
        TraceId::from_hex(text.get(3..35)?).ok()?,
        SpanId::from_hex(text.get(36..52)?).ok()?,
        TraceFlags::new(flags),
        true,
        trace.tracestate().and_then(|state| TraceState::from_str(state).ok()).unwrap_or_default(),
    ))
}

fn text(key: impl Into<Key>, value: impl Into<Cow<'static, str>>) -> KeyValue {
    KeyValue::new(key, value.into())
}

fn number(key: impl Into<Key>, count: impl TryInto<i64>) -> KeyValue {
    KeyValue::new(key, count.try_into().unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_read_for_the_sdk_as_it_was_written() {
        let trace = TraceContext::new(
            Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
            Some("rojo=00f067aa0cc902c7"),
            Some("order 42"),
        );
        let read = span_context(&trace).unwrap();
        assert_eq!(read.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(read.span_id().to_string(), "b7ad6b7169203331");
        assert!(read.is_sampled() && read.is_remote());
        assert_eq!(read.trace_state().header(), "rojo=00f067aa0cc902c7");
        assert_eq!(span_context(&TraceContext::default()), None);
    }

    #[test]
    fn without_a_collector_there_are_no_spans_and_traces_are_passed_on() {
        let trace =
            TraceContext::new(Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"), None, Some("order 42"));
        let batch = Span::process_batch("queue", [&trace].into_iter());
        let children =
            [batch.mongodb("load", "find", 1), batch.publish(1), batch.ack("queue", 1), Span::sweep("ended", 1)];
        assert!(!is_on() && children.iter().chain([&batch]).all(|span| span.0.is_none()));
        assert_eq!(batch.context(&trace), trace);
    }
}
