//! What must be published for a message before it can be acknowledged: retry copies, dead letters, `command.rejected`; and the
//! replies that follow.

use std::mem;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::settlement::Settlement;
use crate::amqp::message::REDELIVERIES_MAX;
use crate::amqp::publisher::CHANNELS_MAX;
use crate::amqp::{Delivery, Outgoing, PublishError, Publisher};
use crate::metrics;
use crate::metrics::labels::CommandOutcome;
use crate::store::rejected_commands::RejectedCommandDocument;
use offramp_domain::command_ref::CommandType;
use offramp_domain::unit_of_work::Task;

/// How long all replies of a batch together may take to be confirmed.
const REPLY_TIME_MAX: Duration = Duration::from_secs(2);
/// How long a lane waits for that.
const REPLY_PATIENCE: Duration = Duration::from_millis(100);
/// The batches of all lanes whose replies may be in flight: half of the publisher's channels, so that copies find one.
static REPLYING: Semaphore = Semaphore::const_new(CHANNELS_MAX as usize / 2);
/// From this many redeliveries on, a message that cannot be processed now is replaced by a copy, whose count starts at zero:
/// the broker counts redeliveries, and at [`REDELIVERIES_MAX`] the message would be taken for one that crashes workers.
const REDELIVERIES_BEFORE_COPY: u64 = REDELIVERIES_MAX / 2;

/// The messages to publish for one delivery.
#[derive(Debug)]
pub(super) struct Publication {
    /// `None`: it settles no command.
    outcome: Option<CommandOutcome>,
    /// Must be confirmed before the delivery is acknowledged. Confirmed ones are removed.
    copies: Vec<Outgoing>,
    /// Published once, when all copies are confirmed.
    replies: Vec<Outgoing>,
    /// The record of a rejected command, for support staff.
    rejected: Option<Box<RejectedCommandDocument>>,
    /// Why the last copy was not confirmed.
    problem: Option<String>,
}

impl Publication {
    pub(super) fn new(outcome: CommandOutcome, copies: Vec<Outgoing>, replies: Vec<Outgoing>) -> Self {
        Self { outcome: Some(outcome), copies, replies, rejected: None, problem: None }
    }

    /// With the record of a rejected command.
    pub(super) fn rejecting(self, rejected: Option<RejectedCommandDocument>) -> Self {
        Self { rejected: rejected.map(Box::new), ..self }
    }

    /// The publication that replaces a message by a copy at the end of its work queue. It settles no command, so it must not be
    /// counted.
    pub(super) fn replacement(delivery: &Delivery, work_queue: &str) -> Self {
        let copies = vec![delivery.fresh_copy(work_queue)];
        Self { outcome: None, copies, replies: Vec::new(), rejected: None, problem: None }
    }

    /// Whether the delivery can be acknowledged.
    pub(super) fn is_confirmed(&self) -> bool {
        self.copies.is_empty()
    }

    /// The number of messages that are not confirmed.
    pub(super) fn copies(&self) -> usize {
        self.copies.len()
    }

    pub(super) fn problem(&self) -> &str {
        self.problem.as_deref().unwrap_or_default()
    }

    pub(super) fn take_replies(&mut self) -> Vec<Outgoing> {
        mem::take(&mut self.replies)
    }

    /// Records that the message is settled. Called after the acknowledgement, so that no redelivered message counts twice.
    pub(super) fn settled(self, settlement: &Settlement<'_>, delivery: &Delivery, task: Option<&Task>) {
        if let Some(outcome) = self.outcome {
            settlement.record(delivery, task, outcome);
        }
        if let Some(rejected) = self.rejected {
            settlement.rejections.add(*rejected);
        }
    }

    /// The approximate memory of its messages.
    pub(super) fn bytes(&self) -> usize {
        let messages = self.copies.iter().chain(&self.replies);
        let rejected = self.rejected.as_ref().map_or(0, |rejected| size_of_val(&**rejected) + rejected.detail.len());
        messages.map(Outgoing::memory_bytes).sum::<usize>() + rejected
    }
}

/// Whether a message that cannot be processed now must be replaced by a copy instead of being released.
pub(super) fn needs_replacement(delivery: &Delivery) -> bool {
    delivery.delivery_count >= REDELIVERIES_BEFORE_COPY
}

/// The indexes of the publications that are not confirmed.
pub(super) fn unconfirmed(publications: &[Publication]) -> Vec<usize> {
    publications
        .iter()
        .enumerate()
        .filter(|(_, publication)| !publication.is_confirmed())
        .map(|(index, _)| index)
        .collect()
}

/// Publishes each unconfirmed copy once. Returns why copies were not confirmed.
pub(super) async fn publish_copies<'a>(
    lane: CommandType,
    publisher: &Publisher,
    publications: impl Iterator<Item = &'a mut Publication>,
) -> Vec<PublishError> {
    let mut publications: Vec<_> = publications.filter(|publication| !publication.is_confirmed()).collect();
    if publications.is_empty() {
        return Vec::new();
    }
    let (mut owners, mut copies) = (Vec::new(), Vec::new());
    for (index, publication) in publications.iter_mut().enumerate() {
        for copy in mem::take(&mut publication.copies) {
            owners.push(index);
            copies.push(copy);
        }
    }
    let results = publisher.publish_all(&copies).await;
    let mut errors = Vec::new();
    for ((owner, copy), result) in owners.into_iter().zip(copies).zip(results) {
        let Err(error) = result else { continue };
        if error == PublishError::Unroutable {
            metrics::current().unroutable.of((lane,)).increment(1);
        }
        // On the default exchange the routing key is the queue. Other exchanges are named after their queues.
        let target = if copy.exchange.is_empty() { &copy.routing_key } else { &copy.exchange };
        publications[owner].problem = Some(format!("a message to '{target}': {error}"));
        publications[owner].copies.push(copy);
        errors.push(error);
    }
    errors
}

/// Publishes replies, once. Their queues belong to the senders of the commands: one that is full, gone or silent must not
/// block the lane. So a lane that has waited for a moment goes on, and if too many queues are silent, replies are dropped.
pub(super) async fn publish_replies(lane: CommandType, publisher: &Publisher, replies: Vec<Outgoing>) {
    if replies.is_empty() {
        return;
    }
    let Ok(Ok(permit)) = timeout(REPLY_PATIENCE, REPLYING.acquire()).await else {
        tracing::warn!(%lane, replies = replies.len(), "too many replies are unconfirmed; these are dropped");
        return;
    };
    let publisher = publisher.clone();
    let publishing = tokio::spawn(async move {
        let _permit = permit;
        let Ok(results) = timeout(REPLY_TIME_MAX, publisher.publish_all(&replies)).await else {
            tracing::warn!(%lane, replies = replies.len(), "replies timed out without a confirm; they are not repeated");
            return;
        };
        for error in results.into_iter().filter_map(Result::err) {
            tracing::warn!(%lane, %error, "cannot deliver a reply; it is not repeated");
        }
    });
    // Without a confirm so far, it goes on in the background.
    drop(timeout(REPLY_PATIENCE, publishing).await);
}
