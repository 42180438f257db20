//! One attempt to publish messages on a channel: which are confirmed, rejected or returned, and how it ended.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use lapin::message::BasicReturnMessage;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::ShortString;
use lapin::{Channel, Confirmation};
use tokio::time::{Instant, sleep_until};

use super::confirms::Confirms;
use crate::amqp::connection::{BrokerError, Link, REPLY_SECONDS_MAX, code, explain};
use crate::amqp::message::Outgoing;
use crate::amqp::reply_code::NOT_FOUND;
use crate::amqp::topology::Topology;

/// After how many seconds without a confirm a connection may be given up for one to another address, like a request without a reply.
pub(super) const SILENT_SECONDS_MAX: u64 = REPLY_SECONDS_MAX;

/// A channel in confirm mode. One call at a time uses it, so every confirm and every return on it belongs to that call.
pub(super) struct Slot {
    pub(super) channel: Channel,
    pub(super) link: Arc<Link>,
}

/// Opens a channel in confirm mode.
pub(super) async fn open(link: &Link) -> Result<Channel, BrokerError> {
    let channel = link.channel().await?;
    link.ask("enable confirms", channel.confirm_select(ConfirmSelectOptions::default())).await?;
    Ok(channel)
}

/// One result for each message; `None` while it is unknown.
pub(super) struct Results(pub(super) Vec<Option<Result<(), PublishError>>>);

/// How publishing one group ended. Known results are filled in.
pub(super) enum Sent {
    /// Every message has a result.
    Answered,
    /// The broker closed the channel, possibly because of one message.
    ChannelClosed { why: String, code: Option<u16> },
    /// The connection was lost.
    Lost(String),
    /// The deadline has passed, and it says nothing about the node.
    TimedOut,
    /// Nothing was confirmed for [`SILENT_SECONDS_MAX`] that shows that the node serves: it may be cut off from its cluster.
    Silent,
}

/// Publishes the messages of a group and waits for their confirms. Fills in the results it obtains.
///
/// It waits until the deadline if no address is left to try: there is only one, or nothing was confirmed over any of them.
pub(super) async fn send(
    Slot { channel, link }: &Slot,
    deadline: Instant,
    known: &Confirms,
    messages: &[Outgoing],
    group: &[usize],
    results: &mut Results,
) -> Sent {
    // The first poll of each future sends its message, and first polls happen in this order.
    let mut confirms: FuturesUnordered<_> =
        group.iter().map(|&index| async move { (index, publish(channel, &messages[index]).await) }).collect();
    let mut returned = Vec::new();
    let mut failure = None;
    let mut late = false;
    let sent = Instant::now();
    let silence_max = Duration::from_secs(SILENT_SECONDS_MAX);
    let is_any_left = known.silent_addresses_with(link.address_index()) < link.address_count();
    let mut check_at = if is_any_left { deadline.min(sent + silence_max) } else { deadline };
    loop {
        let next = if late {
            // lapin attaches a returned message to whichever confirm arrives first, so read every confirm that has arrived.
            confirms.next().now_or_never().flatten()
        } else {
            tokio::select! {
                biased;
                next = confirms.next() => next,
                () = sleep_until(check_at) => {
                    let waiting = group.iter().filter(|&&index| results.0[index].is_none()).map(|&index| &messages[index]);
                    let silent_at = known.missing_since(sent, waiting) + silence_max;
                    let now = Instant::now();
                    if now >= silent_at {
                        failure.get_or_insert(Sent::Silent);
                    }
                    check_at = silent_at.min(deadline);
                    late = now >= check_at;
                    None
                }
                () = link.lost() => {
                    late = true;
                    failure.get_or_insert(Sent::Lost("the connection was lost".to_owned()));
                    None
                }
            }
        };
        match next {
            Some((index, Ok(Confirmation::Ack(message)))) => {
                results.0[index] = Some(Ok(()));
                returned.extend(message);
                // A node that is cut off returns messages, and the confirm may be that of any of them.
                if returned.is_empty() {
                    known.record(&messages[index], Instant::now());
                }
            }
            Some((index, Ok(Confirmation::Nack(message)))) => {
                results.0[index] =
                    Some(Err(PublishError::Nacked("a queue it is routed to is full or unavailable".to_owned())));
                returned.extend(message);
            }
            Some((index, Err(Unsent::NameTooLong))) => {
                let why = "its exchange or routing key exceeds AMQP's 255 bytes".to_owned();
                results.0[index] = Some(Err(PublishError::Nacked(why)));
            }
            Some((_, Ok(Confirmation::NotRequested))) => {
                failure = Some(Sent::Lost("the channel is not in confirm mode".to_owned()));
            }
            Some((_, Err(Unsent::Broker(error)))) => {
                let why = explain(&error);
                failure.get_or_insert(if error.is_amqp_soft_error() {
                    Sent::ChannelClosed { why, code: code(&error) }
                } else {
                    Sent::Lost(why)
                });
            }
            None if late || confirms.is_empty() => break,
            None => {}
        }
    }
    for message in &returned {
        mark_unroutable(message, messages, group, results);
    }
    let is_answered = || group.iter().all(|&index| results.0[index].is_some());
    match failure {
        None | Some(Sent::Silent) if is_answered() => Sent::Answered,
        Some(failure) => failure,
        None => Sent::TimedOut,
    }
}

pub(super) fn is_any_nacked(group: &[usize], results: &Results) -> bool {
    group.iter().any(|&index| matches!(results.0[index], Some(Err(PublishError::Nacked(_)))))
}

/// Whether an object of the topology is missing: an exchange, or a queue or binding that should have routed a message.
pub(super) fn is_object_missing(
    topology: &Topology,
    sent: &Sent,
    messages: &[Outgoing],
    group: &[usize],
    results: &Results,
) -> bool {
    let is_ours = |message: &Outgoing| {
        // The default exchange takes a queue's name as routing key.
        topology.owns(if message.exchange.is_empty() { &message.routing_key } else { &message.exchange })
    };
    match sent {
        Sent::ChannelClosed { code, .. } => {
            *code == Some(NOT_FOUND) && group.iter().any(|&index| is_ours(&messages[index]))
        }
        Sent::Answered => group
            .iter()
            .any(|&index| matches!(results.0[index], Some(Err(PublishError::Unroutable))) && is_ours(&messages[index])),
        Sent::Lost(_) | Sent::TimedOut | Sent::Silent => false,
    }
}

/// Why a message got no confirm.
enum Unsent {
    NameTooLong,
    Broker(lapin::Error),
}

async fn publish(channel: &Channel, message: &Outgoing) -> Result<Confirmation, Unsent> {
    let exchange = ShortString::try_new(message.exchange.as_str()).map_err(|_| Unsent::NameTooLong)?;
    let routing_key = ShortString::try_new(message.routing_key.as_str()).map_err(|_| Unsent::NameTooLong)?;
    let options = BasicPublishOptions { mandatory: message.mandatory, immediate: false };
    let properties = message.properties().clone();
    let confirm = channel.basic_publish(exchange, routing_key, options, &message.body, properties).await;
    confirm.map_err(Unsent::Broker)?.await.map_err(Unsent::Broker)
}

/// Finds a returned message by its contents, not by the confirm it is attached to: with several in flight, `lapin` may
/// attach it to another.
fn mark_unroutable(returned: &BasicReturnMessage, messages: &[Outgoing], group: &[usize], results: &mut Results) {
    let is_returned = |message: &Outgoing| {
        message.mandatory
            && message.exchange == returned.exchange.as_str()
            && message.routing_key == returned.routing_key.as_str()
            && message.properties().message_id() == returned.properties.message_id()
            && message.body == returned.data
    };
    let unroutable = |result: &Option<_>| matches!(result, Some(Err(PublishError::Unroutable)));
    match group.iter().find(|&&index| is_returned(&messages[index]) && !unroutable(&results.0[index])) {
        Some(&index) => results.0[index] = Some(Err(PublishError::Unroutable)),
        // It can only be from this call. Publishing all again is better than reporting a lost message as confirmed.
        None => group.iter().for_each(|&index| results.0[index] = Some(Err(PublishError::Unroutable))),
    }
}

/// Why a message is not confirmed. Keep whatever it was made from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// It is mandatory and routed to no queue.
    #[error("unroutable: no queue takes this message")]
    Unroutable,
    /// The broker rejected it: a queue is full or unavailable, or the message itself is invalid.
    #[error("RabbitMQ rejected this message: {0}")]
    Nacked(String),
    /// The broker was unavailable or did not confirm in time. It may have the message or not.
    #[error("RabbitMQ did not confirm this message: {0}")]
    Unavailable(String),
}
