//! A lane on one screen: receive → process → publish → acknowledge.
//!
//! A lane consumes one work queue, one batch at a time. A batch is whatever is waiting, so a quiet lane has batches of one
//! message and needs no timer. A batch is acknowledged with one ack, once each of its messages is processed. A batch that was
//! not acknowledged is redelivered; `applied` in the documents recognises repeats.

use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::batch_spans::BatchSpans;
use super::disposition::{Disposition, parse};
use super::engine::{Decided, Engine, Interruption};
use super::publication::{Publication, needs_replacement, publish_copies, publish_replies, unconfirmed};
use super::set_aside::SetAsideMessages;
use super::settlement::Settlement;
use super::support_log::SupportLog;
use crate::amqp::message::dead_letter_error;
use crate::amqp::{Batch, Consumer, Delivery, DeliverySetAside, Outgoing, PublishError, Publisher, Topology};
use crate::backoff::Backoff;
use crate::metrics;
use crate::outage::Outage;
use crate::store::DocumentId;
use crate::store::rejected_commands::RejectedCommandDocument;
use offramp_domain::cloud_event::CloudEvent;
use offramp_domain::command::Command;
use offramp_domain::command_ref::CommandType;
use offramp_domain::event::CommandRejected;
use offramp_domain::reply;
use offramp_domain::unit_of_work::{RejectedTask, Standing, Task};

/// The delays, minimum and maximum, before a copy that was not confirmed is published again.
const REPUBLISH_DELAYS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(1_500));
/// How often the broker may reject the copies of a batch before their messages are set aside.
const REJECTIONS_MAX: u32 = 3;
/// From when on a single rejection is enough. RabbitMQ 3 looks for the leader of a queue for 5 s before it rejects a message.
const SLOW_REJECTION: Duration = Duration::from_secs(3);
/// The delays, minimum and maximum, before a lane that released its messages takes some again.
const RESUME_DELAYS: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));

/// One work queue, and everything needed to process it.
#[derive(Debug)]
pub struct Lane {
    /// The type of its commands.
    pub kind: CommandType,
    pub topology: Topology,
    /// Consumes the work queue.
    pub consumer: Consumer,
    /// Publishes retry copies, dead letters, rejections and replies.
    pub publisher: Publisher,
    pub engine: Engine,
    /// Records rejected commands.
    pub rejections: SupportLog<RejectedCommandDocument>,
    /// `source` of the events.
    pub source: String,
    /// The largest batch, in messages.
    pub batch_max: usize,
}

impl Lane {
    /// Works until `shutdown`; then finishes the batch in flight.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let set_aside = SetAsideMessages::new(
            self.kind,
            self.topology.work_queue(self.kind),
            self.publisher.clone(),
            self.consumer.health().clone(),
            self.rejections.clone(),
        );
        let end = CancellationToken::new();
        let working = async {
            Box::pin(self.work(&set_aside, &shutdown)).await;
            end.cancel();
        };
        tokio::join!(working, set_aside.keep_retrying(&end));
        self.consumer.close().await;
    }

    async fn work(&mut self, set_aside: &SetAsideMessages, shutdown: &CancellationToken) {
        let mut backoff = Backoff::new(RESUME_DELAYS);
        loop {
            self.consumer.health().held_up(None);
            shutdown.run_until_cancelled(set_aside.wait_for_room()).await;
            let Some(batch) = self.consumer.next_batch(self.batch_max, shutdown).await else { break };
            let mut parsed: Vec<Result<Task, Disposition>> = batch.deliveries.iter().map(parse).collect();
            let mut spans = BatchSpans::start(self.kind, self.consumer.queue(), &batch.deliveries, &mut parsed);
            match self.process(&batch, &parsed, &mut spans, set_aside, shutdown).await {
                Ok(publications) => {
                    backoff = Backoff::new(RESUME_DELAYS);
                    self.acknowledge(batch, parsed, publications, &mut spans, set_aside).await;
                }
                Err(Interruption::Stopping) => {
                    spans.released("stopping");
                    batch.release().await;
                }
                Err(interruption @ Interruption::DatabaseUnavailable(_)) => {
                    spans.released("mongodb_unavailable");
                    drop(spans);
                    let tasks: Vec<Task> = parsed.into_iter().filter_map(Result::ok).collect();
                    let kept = self.replace(batch, shutdown).await;
                    self.consumer.suspend(&interruption.to_string()).await;
                    drop(kept);
                    let waiting = async {
                        tokio::time::sleep(backoff.next_delay()).await;
                        Box::pin(self.engine.wait_for_documents(&tasks)).await;
                    };
                    if shutdown.run_until_cancelled(waiting).await.is_none() {
                        break;
                    }
                }
            }
        }
    }

    /// Decides a batch, and publishes what must be confirmed before it is acknowledged. Returns one publication for each
    /// delivery; those whose copies were rejected are not confirmed.
    async fn process(
        &self,
        batch: &Batch,
        parsed: &[Result<Task, Disposition>],
        spans: &mut BatchSpans,
        set_aside: &SetAsideMessages,
        shutdown: &CancellationToken,
    ) -> Result<Vec<Publication>, Interruption> {
        metrics::current().batch_size.of((self.kind,)).record(batch_size(batch));
        let tasks: Vec<&Task> = parsed.iter().filter_map(|parsed| parsed.as_ref().ok()).collect();
        let mut decided = self.engine.run(&tasks, spans.batch(), shutdown).await?.into_iter();

        let mut publications = Vec::with_capacity(parsed.len());
        for (index, (delivery, parsed)) in batch.deliveries.iter().zip(parsed).enumerate() {
            publications.push(match parsed {
                Ok(task) => {
                    let Decided { processed, standing } = expect_result(decided.next());
                    let disposition = Disposition::of(processed, delivery.attempt, delivery.may_wait());
                    spans.decided(index, &disposition);
                    self.publication(delivery, Some(task), disposition, standing)
                }
                Err(disposition) => {
                    spans.decided(index, disposition);
                    self.publication(delivery, None, disposition.clone(), None)
                }
            });
        }
        // While messages are set aside, it is known that RabbitMQ rejects some copies.
        let rejections_max = if set_aside.is_empty() { REJECTIONS_MAX } else { 1 };
        let publishing = spans.publish(&publications);
        self.publish(&mut publications, rejections_max, batch, shutdown).await?;
        drop(publishing);
        let confirmed = publications.iter_mut().filter(|publication| publication.is_confirmed());
        let replies = confirmed.flat_map(Publication::take_replies).collect();
        publish_replies(self.kind, &self.publisher, replies).await;
        Ok(publications)
    }

    /// Acknowledges a batch. Messages whose copies were rejected are set aside instead.
    async fn acknowledge(
        &self,
        mut batch: Batch,
        parsed: Vec<Result<Task, Disposition>>,
        publications: Vec<Publication>,
        spans: &mut BatchSpans,
        set_aside: &SetAsideMessages,
    ) {
        let deliveries = std::mem::take(&mut batch.deliveries);
        let acknowledging = spans.batch().ack(self.consumer.queue(), deliveries.len());
        let acknowledged = batch.ack_except(&unconfirmed(&publications)).await;
        drop(acknowledging);
        match acknowledged {
            Ok(kept) => {
                let mut kept = kept.into_iter();
                let settlement = Settlement::now(self.kind, &self.rejections);
                let tasks = parsed.into_iter().map(Result::ok);
                for ((delivery, task), publication) in deliveries.into_iter().zip(tasks).zip(publications) {
                    if publication.is_confirmed() {
                        publication.settled(&settlement, &delivery, task.as_ref());
                    } else if let Some(kept) = kept.next() {
                        set_aside.add(kept, delivery, task, publication);
                    }
                }
            }
            Err(lost) => {
                spans.released("not_acknowledged");
                tracing::warn!(lane = %self.kind, error = %lost, "cannot acknowledge a processed batch; it will be redelivered, without effect");
            }
        }
    }

    /// Before a batch that cannot be decided now is released: replaces its messages by copies if one of them was redelivered
    /// often, because a copy's redelivery count starts at zero. Those that could not be copied are released when they are
    /// dropped.
    async fn replace(&self, batch: Batch, shutdown: &CancellationToken) -> Vec<DeliverySetAside> {
        if !batch.deliveries.iter().any(needs_replacement) {
            return Vec::new();
        }
        let queue = self.topology.work_queue(self.kind);
        let mut replacements: Vec<_> =
            batch.deliveries.iter().map(|delivery| Publication::replacement(delivery, &queue)).collect();
        // What is not copied or not acknowledged is redelivered unchanged.
        if self.publish(&mut replacements, REJECTIONS_MAX, &batch, shutdown).await.is_err() {
            return Vec::new();
        }
        batch.ack_except(&unconfirmed(&replacements)).await.unwrap_or_else(|lost| {
            tracing::debug!(lane = %self.kind, error = %lost, "cannot acknowledge messages that were replaced by copies");
            Vec::new()
        })
    }

    /// What a disposition requires to be published. `standing` is that of the command's document.
    fn publication(
        &self,
        delivery: &Delivery,
        task: Option<&Task>,
        disposition: Disposition,
        standing: Option<Standing>,
    ) -> Publication {
        let queue = self.topology.work_queue(self.kind);
        let outcome = disposition.outcome();
        let command = match task {
            Some(Task::Command(command)) => Some(command),
            _ => None,
        };
        let standing_reply = |kind| {
            let (command, standing) = command.zip(standing)?;
            self.reply(delivery, || CloudEvent::of_standing(kind, command, standing, &self.source, self.now()))
        };
        let mut record = None;
        let (copies, reply) = match disposition {
            Disposition::Applied | Disposition::Repeated => (vec![], standing_reply(reply::APPLIED)),
            Disposition::Unchanged => (vec![], standing_reply(reply::UNCHANGED)),
            Disposition::Retry(delay) => (vec![delivery.retry_copy(&self.topology, &queue, delay)], None),
            Disposition::DeadLetter { reason, error } => {
                tracing::warn!(
                    lane = %self.kind,
                    source = command.map(|command| command.reference.key.source.as_str()),
                    command = command.map(|command| command.reference.key.id.as_str()),
                    document = command.map(|command| tracing::field::display(DocumentId::from(command.target()))),
                    message_id = delivery.message_id(),
                    trace_id = command.and_then(|command| command.trace.trace_id()),
                    attempt = delivery.attempt,
                    %reason,
                    %error,
                    "message dead-lettered"
                );
                let died_at = self.now();
                let copy = delivery.dead_letter(&self.topology, reason, &error, &queue, died_at);
                let reply = self.reply(delivery, || {
                    let (id, trace) = (Uuid::new_v4(), delivery.trace_context());
                    let error = dead_letter_error(&error).to_owned();
                    CloudEvent::of_dead_letter(command, id, reason, error, trace, &self.source, died_at)
                });
                (vec![copy], reply)
            }
            Disposition::Reject(rejected) => match command {
                Some(command) => {
                    let event = self.rejection(command, &rejected);
                    record = Some(RejectedCommandDocument::new(&event, command, &rejected));
                    let published = Outgoing::event(self.topology.event_exchange(), CommandRejected::KIND, &event);
                    (vec![published], self.reply(delivery, || event))
                }
                // Only commands are rejected.
                None => (vec![], None),
            },
        };
        Publication::new(outcome, copies, reply.into_iter().collect()).rejecting(record)
    }

    /// The reply to a sender that asked for one.
    fn reply(&self, delivery: &Delivery, event: impl FnOnce() -> CloudEvent) -> Option<Outgoing> {
        let queue = delivery.reply_to.as_deref()?;
        if self.topology.owns_queue(queue) {
            tracing::warn!(lane = %self.kind, message_id = delivery.message_id(), queue, "ignoring reply_to: it names one of Offramp's own queues");
            return None;
        }
        // On the default exchange the routing key is the queue.
        let reply = Outgoing::event("", queue.to_owned(), &event());
        Some(match delivery.correlation_id() {
            Some(id) => reply.correlation_id(id),
            None => reply,
        })
    }

    /// MongoDB's time, as in the events of decisions.
    fn now(&self) -> DateTime<Utc> {
        self.engine.availability.clock().now()
    }

    fn rejection(&self, command: &Command, rejected: &RejectedTask) -> CloudEvent {
        let rejection = &rejected.rejection;
        tracing::info!(
            lane = %self.kind,
            source = command.reference.key.source.as_str(),
            command = command.reference.key.id.as_str(),
            document = %DocumentId::from(command.target()),
            trace_id = command.trace.trace_id(),
            %rejection,
            "command rejected"
        );
        CloudEvent::of_rejection(command, rejected, &self.source, self.now())
    }

    /// Publishes until the broker has confirmed all copies, or has rejected some of them `rejections_max` times, or once, but
    /// slowly, or the batch is lost. The lane is not ready until the batch is done with.
    async fn publish(
        &self,
        publications: &mut [Publication],
        rejections_max: u32,
        batch: &Batch,
        shutdown: &CancellationToken,
    ) -> Result<(), Interruption> {
        let mut backoff = Backoff::new(REPUBLISH_DELAYS);
        let mut rejections = 0;
        let outage = Outage::default();
        loop {
            let began = Instant::now();
            let errors = publish_copies(self.kind, &self.publisher, publications.iter_mut()).await;
            let Some(error) = errors.last() else { return Ok(()) };
            self.consumer.health().held_up(Some(error.to_string()));
            if outage.failed(&error.to_string()) {
                tracing::warn!(
                    lane = %self.kind, unconfirmed = errors.len(), %error,
                    "RabbitMQ did not confirm copies; retrying, their originals stay unacknowledged"
                );
            }
            // Without a confirm or a rejection nothing is known about a copy: that is an outage, and everything waits.
            let are_rejections = !errors.iter().any(|error| matches!(error, PublishError::Unavailable(_)));
            rejections += u32::from(are_rejections);
            if !batch.is_live() {
                // It is redelivered whatever is confirmed. The acknowledgement will fail, and report that.
                return Ok(());
            }
            if are_rejections && are_enough(rejections, rejections_max, began.elapsed()) {
                return Ok(());
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.next_delay()) => {}
                () = shutdown.cancelled() => return Err(Interruption::Stopping),
            }
        }
    }
}

/// Whether messages are set aside after so many rejections, the last of which took `time`.
fn are_enough(rejections: u32, max: u32, time: Duration) -> bool {
    rejections >= max || time >= SLOW_REJECTION
}

/// A result that is missing is a failure: its message must not be acknowledged.
fn expect_result(decided: Option<Decided>) -> Decided {
    decided.unwrap_or_else(|| Decided::failed("internal error: the engine returned no result (bug)".to_owned()))
}

#[allow(clippy::cast_precision_loss, reason = "a batch has a few hundred messages")]
fn batch_size(batch: &Batch) -> f64 {
    batch.deliveries.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amqp::RetryDelay;

    #[test]
    fn a_message_is_set_aside_after_three_rejections_or_a_slow_one() {
        let fast = Duration::from_millis(50);
        let slow = Duration::from_secs(5);
        for (rejections, max, time, expected) in [
            (2, REJECTIONS_MAX, fast, false),
            (1, REJECTIONS_MAX, fast, false),
            (1, REJECTIONS_MAX, slow, true),
            (3, REJECTIONS_MAX, fast, true),
            (1, 1, fast, true),
        ] {
            assert_eq!(are_enough(rejections, max, time), expected, "{rejections} of {max}, {time:?}");
        }
    }

    #[test]
    fn a_missing_result_is_a_failure() {
        let missing = expect_result(None).processed;
        assert_eq!(Disposition::of(missing, 0, true), Disposition::Retry(RetryDelay::S5));
    }
}
