//! A lane on one screen: receive → load → fold → commit → settle.
//!
//! A lane consumes one work queue, one batch at a time. A batch is whatever waits, so a quiet lane has batches of one
//! message and no timer. All messages of a batch are settled before it is acked with one ack; a batch that was not acked
//! comes again, and `applied` in the documents tells what was done already. A message whose copy RabbitMQ rejects is set
//! aside (`set_aside`), so that it holds up no other.

use std::time::Duration;

use metrics::histogram;
use tokio_util::sync::CancellationToken;

use super::set_aside::{self, Errand, SetAside};
use crate::amqp::message::RETURNS_MAX;
use crate::amqp::{Batch, Consumer, Delivery, Kept, Outgoing, PublishError, Publisher, RetryDelay, Topology};
use crate::backoff::Backoff;
use crate::clock;
use crate::worker::engine::{Engine, Interruption, Processed};
use offramp_domain::cloud_event::CloudEvent;
use offramp_domain::command::{Command, CommandType};
use offramp_domain::dead_letter::DeadLetterReason;
use offramp_domain::event::CommandRejected;
use offramp_domain::fold::{Rejected, Task, Verdict};

/// How often a command waits for something that may still be on its way (contract §4 *wait*: 5 s, 30 s, 2 min).
const WAITS_MAX: u32 = 3;
/// How often a failed command is tried again (contract §7).
const RETRIES_MAX: u32 = 5;
/// How long to wait before a copy that the broker did not take is published again: from the first to the longest,
/// see [`Backoff`].
const REPUBLISH_EVERY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(1_500));
/// How often the broker may reject the copies of a batch before their messages are set aside.
const REJECTIONS_MAX: u32 = 3;
/// How long to wait, at least, before a lane that gave its messages back takes some again: from the first to the longest,
/// when it gives them back each time. See [`Backoff`].
const RESUME_EVERY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));
/// How often a message may have come back before a lane that cannot decide it gives back a copy instead.
pub(super) const RETURNS_WORN: u64 = RETURNS_MAX / 2;

/// One work queue and what it takes to work it off.
#[derive(Debug)]
pub struct Lane {
    /// Which commands.
    pub kind: CommandType,
    /// Names of the broker's objects.
    pub topology: Topology,
    /// The work queue.
    pub consumer: Consumer,
    /// For retry copies, dead letters and refusals.
    pub publisher: Publisher,
    /// Decides and writes.
    pub engine: Engine,
    /// `source` of events.
    pub source: String,
    /// The largest batch, in messages.
    pub batch_max: usize,
}

/// What becomes of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Disposition {
    /// It is done with.
    Done,
    /// Its refusal is published, then it is done with.
    Reject(Rejected),
    /// It comes again.
    Retry(RetryDelay),
    /// It goes where an operator can see it.
    DeadLetter { reason: DeadLetterReason, error: String },
}

impl Lane {
    /// Works until `shutdown`; then finishes the batch in hand.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let set_aside = SetAside::new(
            self.kind,
            self.topology.work_queue(self.kind),
            self.publisher.clone(),
            self.consumer.health().clone(),
        );
        let end = CancellationToken::new();
        let working = async {
            self.work(&set_aside, &shutdown).await;
            end.cancel();
        };
        tokio::join!(working, set_aside.keep_trying(&end));
        self.consumer.close().await;
    }

    async fn work(&mut self, set_aside: &SetAside, shutdown: &CancellationToken) {
        let mut backoff = Backoff::new(RESUME_EVERY);
        loop {
            shutdown.run_until_cancelled(set_aside.wait_for_room()).await;
            let Some(batch) = self.consumer.next_batch(self.batch_max, shutdown).await else { break };
            match self.process(&batch, set_aside, shutdown).await {
                Ok(errands) => {
                    backoff = Backoff::new(RESUME_EVERY);
                    self.settle(batch, errands, set_aside).await;
                }
                Err(Interruption::Stopping) => batch.release().await,
                Err(interrupted @ Interruption::DatabaseUnavailable(_)) => {
                    let tasks: Vec<Task> = batch.deliveries.iter().filter_map(|delivery| read(delivery).ok()).collect();
                    let kept = self.give_back(batch, shutdown).await;
                    self.consumer.suspend(&interrupted.to_string()).await;
                    drop(kept);
                    let waiting = async {
                        tokio::time::sleep(backoff.next_delay()).await;
                        self.engine.wait_for_documents(&tasks).await
                    };
                    if shutdown.run_until_cancelled(waiting).await.is_none() {
                        break;
                    }
                }
            }
        }
    }

    /// Acknowledges a batch, but for the messages whose copies were rejected: these are set aside.
    async fn settle(&self, mut batch: Batch, errands: Vec<Errand>, set_aside: &SetAside) {
        let deliveries = std::mem::take(&mut batch.deliveries);
        match batch.ack_but(&rejected(&errands)).await {
            Ok(kept) => {
                let mut kept = kept.into_iter();
                for (delivery, errand) in deliveries.into_iter().zip(errands) {
                    if errand.is_done() {
                        errand.count(self.kind);
                    } else if let Some(kept) = kept.next() {
                        set_aside.add(kept, delivery, errand);
                    }
                }
            }
            Err(lost) => {
                tracing::warn!(lane = %self.kind, %lost, "the batch is done but could not be acked; it comes again, without effect");
            }
        }
    }

    /// Gives back a batch that cannot be decided now. The broker counts it, and a message that has come back often is taken
    /// for one that ends processes. So before that, copies go back, which nothing is counted of yet. Those that could not be
    /// copied go back when they are dropped.
    async fn give_back(&self, batch: Batch, shutdown: &CancellationToken) -> Vec<Kept> {
        if batch.deliveries.iter().all(|delivery| delivery.delivery_count < RETURNS_WORN) {
            return Vec::new();
        }
        let queue = self.topology.work_queue(self.kind);
        let mut errands: Vec<_> =
            batch.deliveries.iter().map(|delivery| Errand::copy(delivery.fresh_copy(&queue))).collect();
        // What is not copied or not acked comes again as it was.
        if self.publish(&mut errands, REJECTIONS_MAX, &batch, shutdown).await.is_err() {
            return Vec::new();
        }
        batch.ack_but(&rejected(&errands)).await.unwrap_or_else(|lost| {
            tracing::debug!(lane = %self.kind, %lost, "copied, and not acked");
            Vec::new()
        })
    }

    /// Decides a batch and publishes what must be confirmed before it is acknowledged. One errand for each delivery; those
    /// whose copies were rejected are not done.
    async fn process(
        &self,
        batch: &Batch,
        set_aside: &SetAside,
        shutdown: &CancellationToken,
    ) -> Result<Vec<Errand>, Interruption> {
        histogram!("offramp_batch_size", "lane" => self.kind.as_str()).record(batch_size(batch));
        let parsed: Vec<Result<Task, Disposition>> = batch.deliveries.iter().map(read).collect();
        let tasks: Vec<&Task> = parsed.iter().filter_map(|parsed| parsed.as_ref().ok()).collect();
        let mut settled = self.engine.run(&tasks, shutdown).await?.into_iter();

        let mut errands = Vec::with_capacity(parsed.len());
        for (delivery, parsed) in batch.deliveries.iter().zip(&parsed) {
            let disposition = match parsed {
                Ok(_) => dispose(answer(settled.next()), delivery.attempt),
                Err(disposition) => disposition.clone(),
            };
            let outcome = disposition.outcome();
            let (answers, copies) =
                self.messages(delivery, parsed.as_ref().ok(), disposition).into_iter().partition(is_answer);
            errands.push(Errand::new(outcome, copies, answers));
        }
        // While messages are set aside, it is known already that some copies are rejected.
        let rejections_max = if set_aside.is_empty() { REJECTIONS_MAX } else { 1 };
        self.publish(&mut errands, rejections_max, batch, shutdown).await?;
        let done = errands.iter_mut().filter(|errand| errand.is_done());
        set_aside::answer(self.kind, &self.publisher, done.flat_map(Errand::take_answers).collect()).await;
        Ok(errands)
    }

    /// The messages that a disposition entails.
    fn messages(&self, delivery: &Delivery, task: Option<&Task>, disposition: Disposition) -> Vec<Outgoing> {
        let queue = self.topology.work_queue(self.kind);
        match (disposition, task) {
            (Disposition::Retry(delay), _) => vec![delivery.retry_copy(&self.topology, &queue, delay)],
            (Disposition::DeadLetter { reason, error }, _) => {
                tracing::warn!(lane = %self.kind, %reason, %error, "a message goes to the dead letters");
                vec![delivery.dead_letter(&self.topology, reason, &error, &queue, clock::now())]
            }
            (Disposition::Reject(rejected), Some(Task::Command(command))) => {
                let event = self.rejection(command, &rejected);
                let key = CommandRejected::KIND;
                let mut messages = vec![Outgoing::event(self.topology.event_exchange(), key, &event)];
                messages.extend(self.reply(delivery, &event));
                messages
            }
            (Disposition::Done | Disposition::Reject(_), _) => vec![],
        }
    }

    /// The answer to whoever wants one.
    fn reply(&self, delivery: &Delivery, event: &CloudEvent) -> Option<Outgoing> {
        let queue = delivery.reply_to.as_deref()?;
        if self.topology.owns_queue(queue) {
            tracing::warn!(lane = %self.kind, queue, "no answer goes to a queue of ours: that is no place to wait for one");
            return None;
        }
        // The default exchange delivers to the queue of that name.
        let reply = Outgoing::event("", queue.to_owned(), event);
        Some(match delivery.properties.correlation_id() {
            Some(id) => reply.correlation_id(id.as_str()),
            None => reply,
        })
    }

    fn rejection(&self, command: &Command, rejected: &Rejected) -> CloudEvent {
        let rejection = &rejected.rejection;
        tracing::info!(command = %command.reference.key.id.as_str(), kind = %command.reference.kind, %rejection, "refused");
        CloudEvent::of_rejection(command, rejected, &self.source, clock::now())
    }

    /// Publishes until the broker has confirmed everything, or has rejected something `rejections_max` times: only what is
    /// confirmed may be acked.
    async fn publish(
        &self,
        errands: &mut [Errand],
        rejections_max: u32,
        batch: &Batch,
        shutdown: &CancellationToken,
    ) -> Result<(), Interruption> {
        let mut backoff = Backoff::new(REPUBLISH_EVERY);
        let mut rejections = 0;
        loop {
            let errors = set_aside::publish(self.kind, &self.publisher, errands.iter_mut()).await;
            let Some(error) = errors.last() else { return Ok(()) };
            tracing::warn!(lane = %self.kind, waiting = errors.len(), %error, "the broker did not take a message; the originals are kept until it does");
            // Without an answer nothing is known of the message: that is an outage, for which everything waits.
            if !errors.iter().any(|error| matches!(error, PublishError::Unavailable(_))) {
                rejections += 1;
            }
            if !batch.is_live() {
                // The messages come again anyway.
                return Err(Interruption::Stopping);
            }
            if rejections >= rejections_max {
                return Ok(());
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.next_delay()) => {}
                () = shutdown.cancelled() => return Err(Interruption::Stopping),
            }
        }
    }
}

impl Disposition {
    /// How it is counted.
    fn outcome(&self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Reject(rejected) => rejected.rejection.reason.as_str(),
            Self::Retry(_) => "retry",
            Self::DeadLetter { reason, .. } => reason.as_str(),
        }
    }
}

/// The indexes of those that are not done.
fn rejected(errands: &[Errand]) -> Vec<usize> {
    errands.iter().enumerate().filter(|(_, errand)| !errand.is_done()).map(|(index, _)| index).collect()
}

/// The task of a message, or what becomes of it without one.
fn read(delivery: &Delivery) -> Result<Task, Disposition> {
    if delivery.is_worn_out() {
        let error = format!("came back {} times without an answer; it may end the process", delivery.delivery_count);
        return Err(Disposition::DeadLetter { reason: DeadLetterReason::Exhausted, error });
    }
    Command::parse(&delivery.body).map(Task::Command).map_err(|invalid| Disposition::DeadLetter {
        reason: DeadLetterReason::from(&invalid),
        error: invalid.to_string(),
    })
}

/// Whether it is an answer to `reply_to`: of what a lane publishes, all else is an event, or mandatory.
fn is_answer(message: &Outgoing) -> bool {
    message.exchange.is_empty() && !message.mandatory
}

/// What was settled; a missing answer is a failure, never done.
fn answer(settled: Option<Processed>) -> Processed {
    settled.unwrap_or_else(|| Processed::Failed("the engine gave no answer; it is a mistake in the program".to_owned()))
}

/// What becomes of a decided or failed command that was tried `attempt` times before (contract §4 and §7).
fn dispose(settled: Processed, attempt: u32) -> Disposition {
    let again = |max: u32| if attempt < max { RetryDelay::for_attempt(attempt) } else { None };
    match settled {
        Processed::Decided(Verdict::Applied | Verdict::Unchanged) => Disposition::Done,
        Processed::Decided(Verdict::Rejected(rejected)) => {
            match again(WAITS_MAX).filter(|_| rejected.rejection.reason.may_pass()) {
                Some(delay) => Disposition::Retry(delay),
                None => Disposition::Reject(rejected),
            }
        }
        Processed::Decided(Verdict::Missing(missing)) => again(WAITS_MAX).map_or_else(
            || Disposition::DeadLetter { reason: DeadLetterReason::from(&missing), error: missing.to_string() },
            Disposition::Retry,
        ),
        Processed::Decided(Verdict::Corrupt(error)) => {
            Disposition::DeadLetter { reason: DeadLetterReason::CorruptDocument, error }
        }
        Processed::Failed(error) => again(RETRIES_MAX).map_or_else(
            || Disposition::DeadLetter { reason: DeadLetterReason::Exhausted, error: error.clone() },
            Disposition::Retry,
        ),
    }
}

#[allow(clippy::cast_precision_loss, reason = "a batch has a few hundred messages")]
fn batch_size(batch: &Batch) -> f64 {
    batch.deliveries.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use offramp_domain::decide::RejectionReason;
    use offramp_domain::fold::Missing;

    fn rejected(reason: RejectionReason) -> Processed {
        let rejection = reason.because("Because.");
        Processed::Decided(Verdict::Rejected(Rejected { rejection, account_id: None }))
    }

    /// What becomes of it at each attempt, until it comes to an end.
    #[track_caller]
    fn check(settled: &Processed, delays: &[RetryDelay], end: &Disposition) {
        for (attempt, delay) in (0..).zip(delays) {
            assert_eq!(dispose(settled.clone(), attempt), Disposition::Retry(*delay), "attempt {attempt}");
        }
        let attempts = u32::try_from(delays.len()).unwrap();
        for attempt in [attempts, attempts + 1, u32::MAX] {
            assert_eq!(&dispose(settled.clone(), attempt), end, "attempt {attempt}");
        }
    }

    #[test]
    fn what_is_decided_is_done() {
        check(&Processed::Decided(Verdict::Applied), &[], &Disposition::Done);
        check(&Processed::Decided(Verdict::Unchanged), &[], &Disposition::Done);
    }

    #[test]
    fn a_missing_answer_is_never_done() {
        assert_eq!(dispose(answer(None), 0), Disposition::Retry(RetryDelay::S5));
        assert_eq!(dispose(answer(Some(Processed::Decided(Verdict::Applied))), 0), Disposition::Done);
    }

    #[test]
    fn a_refusal_stands_at_once_unless_something_may_be_on_its_way() {
        use RejectionReason as Reason;
        let reject = |settled: &Processed| match settled {
            Processed::Decided(Verdict::Rejected(rejected)) => Disposition::Reject(rejected.clone()),
            _ => unreachable!(),
        };
        for reason in [Reason::Forbidden, Reason::WrongOrganization, Reason::AlreadyEnded, Reason::ExpiresEarlier] {
            let settled = rejected(reason);
            check(&settled, &[], &reject(&settled));
        }
        for reason in [Reason::NoPendingRequest, Reason::SubscriptionNotFound, Reason::AccountNotFound] {
            let settled = rejected(reason);
            check(&settled, &[RetryDelay::S5, RetryDelay::S30, RetryDelay::M2], &reject(&settled));
        }
    }

    #[test]
    fn what_is_missing_is_waited_for_and_then_an_operators_affair() {
        let by = || "subscriptions sub-1".to_owned();
        let organization = Missing::Organization { organization_id: "org-1".try_into().unwrap(), by: by() };
        let account = Missing::Account { account_id: "acc-1".try_into().unwrap(), by: by() };
        for (missing, reason) in
            [(organization, DeadLetterReason::MissingOrganization), (account, DeadLetterReason::MissingAccount)]
        {
            let settled = Processed::Decided(Verdict::Missing(missing));
            let Disposition::DeadLetter { error, .. } = dispose(settled.clone(), 3) else { panic!() };
            let end = Disposition::DeadLetter { reason, error };
            check(&settled, &[RetryDelay::S5, RetryDelay::S30, RetryDelay::M2], &end);
        }
    }

    #[test]
    fn a_failure_is_tried_five_times_more() {
        let settled = Processed::Failed("Because.".to_owned());
        let end = Disposition::DeadLetter { reason: DeadLetterReason::Exhausted, error: "Because.".to_owned() };
        check(&settled, &RetryDelay::ALL, &end);
    }

    #[test]
    fn a_corrupt_document_is_an_operators_affair_at_once() {
        let end = Disposition::DeadLetter { reason: DeadLetterReason::CorruptDocument, error: "Because.".to_owned() };
        check(&Processed::Decided(Verdict::Corrupt("Because.".to_owned())), &[], &end);
    }
}
