//! Records that a message is settled: in the metrics, and in one line of the log.

use chrono::{DateTime, Utc};
use tokio::time::Instant;

use super::support_log::SupportLog;
use crate::amqp::Delivery;
use crate::clock;
use crate::metrics::labels::CommandOutcome;
use crate::metrics::{self, Label as _};
use crate::store::DocumentId;
use crate::store::rejected_commands::RejectedCommandDocument;
use offramp_domain::command_ref::CommandType;
use offramp_domain::unit_of_work::Task;

/// When messages were acknowledged.
pub(super) struct Settlement<'a> {
    lane: CommandType,
    /// Where rejected commands are recorded.
    pub(super) rejections: &'a SupportLog<RejectedCommandDocument>,
    at: Instant,
    time: DateTime<Utc>,
}

impl<'a> Settlement<'a> {
    /// Messages that have just been acknowledged.
    pub(super) fn now(lane: CommandType, rejections: &'a SupportLog<RejectedCommandDocument>) -> Self {
        Self { lane, rejections, at: Instant::now(), time: clock::now() }
    }

    /// Records one of them. Its task is absent if it is no command.
    pub(super) fn record(&self, delivery: &Delivery, task: Option<&Task>, outcome: CommandOutcome) {
        let metrics = metrics::current();
        let lane = (self.lane,);
        metrics.commands.of((self.lane, outcome)).increment(1);
        let duration = self.at.saturating_duration_since(delivery.received_at);
        metrics.command_duration.of(lane).record(duration);
        let command = match task {
            Some(Task::Command(command)) => Some(command),
            _ => None,
        };
        if let Some(command) = command.filter(|_| outcome != CommandOutcome::Retry) {
            // Negative if the publisher's clock is ahead.
            let age = (self.time - command.time).to_std().unwrap_or_default();
            metrics.command_age.of(lane).record(age);
        }
        tracing::debug!(
            lane = %self.lane,
            source = command.map(|command| command.reference.key.source.as_str()),
            command = command.map(|command| command.reference.key.id.as_str()),
            "type" = command.map(|command| command.reference.kind.as_str()),
            document = command.map(|command| tracing::field::display(DocumentId::from(command.target()))),
            outcome = outcome.as_str(),
            attempt = delivery.attempt,
            ms = milliseconds(duration),
            message_id = delivery.message_id(),
            trace_id = command.and_then(|command| command.trace.trace_id()),
            "command settled"
        );
    }
}

/// Milliseconds with three decimals.
#[allow(clippy::cast_precision_loss, reason = "exact for 285 years")]
fn milliseconds(duration: std::time::Duration) -> f64 {
    duration.as_micros() as f64 / 1_000.0
}
