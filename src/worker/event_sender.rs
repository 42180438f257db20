//! The event sender: publishes the events in the queue, as many at once as there are, and waits for RabbitMQ's confirms.

use std::time::Duration;

use chrono::TimeDelta;
use tokio_util::sync::CancellationToken;

use super::database_clock::DatabaseClock;
use super::lease;
use super::marker::TriedEvent;
use crate::amqp::{Outgoing, Publisher, Topology};
use crate::backoff::Backoff;
use crate::metrics;
use crate::metrics::labels::EventOutcome;
use crate::store::outbox::delivery::{DeferralCause, DeliveryResult, Mark};
use crate::store::outbox::entry::{Content, LeasedEntry};
use crate::traces::Span;
use crate::traces::span::SentEvent;

/// How many events are published at once.
pub const PUBLISH_MAX: usize = 512;
/// How long an event is deferred after a failed attempt, minimum and maximum. Short, because there is one broker: it returns
/// for all events at once and takes thousands a second.
const DEFERRAL_DELAYS: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(8));

/// Publishes events.
pub(super) struct EventSender {
    pub(super) events: async_channel::Receiver<LeasedEntry>,
    pub(super) marks: async_channel::Sender<TriedEvent>,
    /// Cancelled when events that are not confirmed are to be released.
    pub(super) release: CancellationToken,
    pub(super) publisher: Publisher,
    pub(super) topology: Topology,
    pub(super) clock: DatabaseClock,
    /// How much of its lease must remain when an event is published.
    pub(super) reserve: Duration,
}

impl EventSender {
    /// Publishes events until the queue is closed and empty, or its rest is to be released.
    pub(super) async fn run(self) {
        let exchange = self.topology.event_exchange();
        while let Some(Some(bulk)) = self.release.run_until_cancelled(take_bulk(&self.events)).await {
            // What could not be sent because the worker stops is released below.
            let usable = self.release.run_until_cancelled(self.clock.wait_until_usable()).await.is_some();
            let bulk: Vec<LeasedEntry> = bulk
                .into_iter()
                .filter(|leased| !usable || lease::suffices(leased, self.reserve, &self.clock))
                .collect();
            let (messages, spans): (Vec<_>, Vec<_>) =
                bulk.iter().filter_map(|leased| message(&exchange, leased)).unzip();
            let results = self.release.run_until_cancelled(self.publisher.publish_all(&messages)).await;
            let mut results = results.into_iter().flatten();
            for (leased, mut span) in bulk.into_iter().zip(spans) {
                let result = match results.next() {
                    Some(Ok(())) => {
                        count(EventOutcome::Published);
                        DeliveryResult::Sent { at: self.clock.now() }
                    }
                    Some(Err(error)) => {
                        count(EventOutcome::Deferred);
                        span.fail("deferred");
                        let delay = Backoff::delay_after(leased.entry.attempts, DEFERRAL_DELAYS);
                        let until = self.clock.now() + TimeDelta::from_std(delay).unwrap_or(TimeDelta::MAX);
                        DeliveryResult::Deferred { until, error: error.to_string(), cause: DeferralCause::Ordinary }
                    }
                    // The worker stops.
                    None => DeliveryResult::Released { at: self.clock.now() },
                };
                drop(span);
                let has_emails = leased.has_companions && matches!(result, DeliveryResult::Sent { .. });
                // An error means that the marker is gone: no result could be recorded.
                if self.marks.send(TriedEvent { mark: Mark::new(&leased, result), has_emails }).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// The message of an event, and the span of its publication. The headers name the span, the envelope what caused the event.
fn message(exchange: &str, leased: &LeasedEntry) -> Option<(Outgoing, Span)> {
    let Content::Event(event) = &leased.entry.content else { return None };
    let sent = SentEvent {
        exchange,
        kind: &event.kind,
        id: &event.id,
        source: &event.source,
        attempts: leased.entry.attempts,
    };
    let span = Span::send_event(sent, &event.trace);
    let message = Outgoing::event(exchange, event.kind.as_str(), event).trace(&span.context(&event.trace));
    Some((message, span))
}

fn count(outcome: EventOutcome) {
    metrics::current().events.of((outcome,)).increment(1);
}

/// Waits for one item, then takes what else is there. `None`: the queue is closed and empty.
async fn take_bulk<T>(queue: &async_channel::Receiver<T>) -> Option<Vec<T>> {
    let mut bulk = vec![queue.recv().await.ok()?];
    while bulk.len() < PUBLISH_MAX {
        match queue.try_recv() {
            Ok(item) => bulk.push(item),
            Err(_) => break,
        }
    }
    Some(bulk)
}
