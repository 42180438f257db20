//! The spans of a batch: one for the batch, in a trace of its own, and one for each message, in the trace of whoever published it. They refer
//! to each other by links. Without traces there are none.

use super::disposition::Disposition;
use super::publication::Publication;
use crate::amqp::Delivery;
use crate::metrics::Label;
use crate::traces::Span;
use crate::traces::span::{ReceivedMessage, is_on};
use offramp_domain::command_ref::CommandType;
use offramp_domain::trace_context::TraceContext;
use offramp_domain::unit_of_work::Task;

/// The spans of a batch. All that are left end when it is dropped.
#[derive(Debug, Default)]
pub(super) struct BatchSpans {
    batch: Span,
    /// In the order of the messages; empty without traces.
    messages: Vec<Span>,
}

impl BatchSpans {
    /// Begins the spans of a batch. What a command causes is then caused by its span.
    pub(super) fn start(
        lane: CommandType,
        queue: &str,
        deliveries: &[Delivery],
        parsed: &mut [Result<Task, Disposition>],
    ) -> Self {
        if !is_on() {
            return Self::default();
        }
        let traces: Vec<TraceContext> = deliveries.iter().map(Delivery::trace_context).collect();
        let batch = Span::process_batch(queue, traces.iter());
        let messages = deliveries.iter().zip(parsed).zip(&traces).map(|((delivery, parsed), trace)| {
            let received = ReceivedMessage {
                queue,
                kind: lane.as_str(),
                routing_key: &delivery.routing_key,
                message_id: delivery.message_id(),
                correlation_id: delivery.correlation_id(),
                attempt: delivery.attempt,
            };
            let mut span = Span::decide(received, trace, &batch);
            if let Ok(Task::Command(command)) = parsed {
                span.set("cloudevents.event_id", command.reference.key.id.to_string());
                span.set("cloudevents.event_source", command.reference.key.source.to_string());
                span.set("cloudevents.event_type", command.reference.kind.as_str());
                let document = crate::store::DocumentId::from(command.target());
                span.set("offramp.document", document.to_string());
                command.trace = span.context(&command.trace);
            }
            span
        });
        let messages = messages.collect();
        Self { batch, messages }
    }

    pub(super) fn batch(&self) -> &Span {
        &self.batch
    }

    /// A message was decided, and committed if it is applied.
    pub(super) fn decided(&mut self, index: usize, disposition: &Disposition) {
        let Some(span) = self.messages.get_mut(index) else { return };
        span.set("offramp.outcome", disposition.outcome().as_str());
        span.happened("decided");
        if let Disposition::DeadLetter { reason, .. } = disposition {
            span.fail(reason.as_str());
        }
    }

    /// The publication of what must be confirmed before the batch is acknowledged.
    pub(super) fn publish(&self, publications: &[Publication]) -> Span {
        match publications.iter().map(Publication::copies).sum() {
            0 => Span::default(),
            copies => self.batch.publish(copies),
        }
    }

    /// The batch is redelivered.
    pub(super) fn released(&mut self, why: &'static str) {
        for span in self.messages.iter_mut().chain([&mut self.batch]) {
            span.fail(why);
        }
    }
}
