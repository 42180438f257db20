//! What goes out: published persistent, confirmed by the broker, under one deadline, over a connection of its own
//! (a broker short of memory stops reading from publishers, and would stop their acks with it).

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use lapin::message::BasicReturnMessage;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::ShortString;
use lapin::{Channel, Confirmation};
use tokio::runtime::Handle;
use tokio::sync::{Mutex as AsyncMutex, Semaphore};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

use super::connection::{Broker, BrokerError, Link, RECONNECT_DELAYS, code, count_connection, explain};
use super::message::Outgoing;
use super::reply_code::NOT_FOUND;
use super::topology::Topology;
use crate::backoff::Backoff;

/// From the call to the last confirm, in seconds, reconnecting included.
pub const PUBLISH_SECONDS_MAX: u64 = 10;
/// How many calls may publish at once, each on a channel of its own.
const CHANNELS_MAX: u32 = 16;
/// Why nothing gets out over a connection that stands.
const BLOCKED: &str = "RabbitMQ takes no messages for now: it is short of memory or disk";
/// What [`Publisher::status`] sends: to no queue, so the broker confirms it and forgets it.
const PROBE_KEY: &str = "offramp.probe.nobody-is-bound-to-this";

/// Publishes messages and waits for the broker's confirms. Cheap to clone; all clones share one connection, which is
/// opened when first needed and again after any loss, while somebody wants to publish.
#[derive(Clone)]
pub struct Publisher(Arc<Inner>);

struct Inner {
    broker: Broker,
    /// What is declared again should it be missing.
    topology: Option<Topology>,
    calls: Semaphore,
    idle: Mutex<Vec<Slot>>,
    current: AsyncMutex<Current>,
    problem: Mutex<Option<String>>,
}

/// The connection; and, after an attempt that did not lead to a channel yet, how long to wait before the next.
#[derive(Default)]
struct Current {
    link: Option<Arc<Link>>,
    backoff: Option<Backoff>,
}

/// A channel in confirm mode, used by one call at a time: so every confirm and every return on it belongs to that call.
struct Slot {
    channel: Channel,
    link: Arc<Link>,
}

impl Publisher {
    /// A publisher that is not connected yet.
    #[must_use]
    pub fn new(broker: Broker) -> Self {
        Self::build(broker, None)
    }

    /// The same, for messages to objects of `topology`: should one be missing, everything in it is declared again and the
    /// messages are sent once more, within the same call. So a queue that somebody deleted at run time is no loss, and
    /// no standstill.
    #[must_use]
    pub fn declaring(broker: Broker, topology: Topology) -> Self {
        Self::build(broker, Some(topology))
    }

    /// A publisher that is connected already: for those who would rather be told at once why nothing gets out, than have
    /// it tried for as long as a publication may take.
    ///
    /// # Errors
    /// Those of [`Broker::connect`].
    pub async fn connect(broker: Broker) -> Result<Self, BrokerError> {
        let link = broker.connect("publisher").await?;
        count_connection("publisher");
        let publisher = Self::new(broker);
        publisher.0.current.lock().await.link = Some(Arc::new(link));
        Ok(publisher)
    }

    fn build(broker: Broker, topology: Option<Topology>) -> Self {
        Self(Arc::new(Inner {
            broker,
            topology,
            calls: Semaphore::new(CHANNELS_MAX as usize),
            idle: Mutex::default(),
            current: AsyncMutex::default(),
            problem: Mutex::default(),
        }))
    }

    /// Publishes all messages, then waits for all confirms, for at most 10 seconds altogether. One result for each
    /// message, in order.
    ///
    /// `Ok` means that the broker has stored the message in every queue that takes it (one that is not mandatory: perhaps
    /// in none). [`PublishError::Unavailable`] leaves open whether the broker has it.
    pub async fn publish_all(&self, messages: &[Outgoing]) -> Vec<Result<(), PublishError>> {
        let deadline = Instant::now() + Duration::from_secs(PUBLISH_SECONDS_MAX);
        let mut results = Results(vec![None; messages.len()]);
        let problem = self.publish_until(deadline, messages, &mut results).await.err();
        if !messages.is_empty() {
            self.note(problem.clone());
        }
        let problem = problem.unwrap_or_default();
        results
            .0
            .into_iter()
            .map(|result| result.unwrap_or_else(|| Err(PublishError::Unavailable(problem.clone()))))
            .collect()
    }

    /// Whether messages get out, as far as is known: what readiness asks. An error says why the newest call did not get
    /// through to the broker, or that it takes no messages for now.
    ///
    /// A publisher in error_pattern that nobody uses would never learn that the error_pattern is over, so asking has it send an empty
    /// message to nobody (within a Tokio runtime, in the background: the next answer may be a better one).
    ///
    /// # Errors
    /// Why not, as a sentence without passwords.
    pub fn status(&self) -> Result<(), String> {
        // HeldDeadLetter while somebody connects, which is no news.
        let blocked = self
            .0
            .current
            .try_lock()
            .is_ok_and(|current| current.link.as_ref().is_some_and(|link| link.is_live() && link.is_blocked()));
        let problem = if blocked { Some(BLOCKED.to_owned()) } else { self.problem() };
        if problem.is_some()
            && self.0.calls.available_permits() == CHANNELS_MAX as usize
            && let Ok(runtime) = Handle::try_current()
        {
            let publisher = self.clone();
            runtime.spawn(async move { publisher.publish_all(&[Outgoing::new("", PROBE_KEY, Vec::new())]).await });
        }
        problem.map_or(Ok(()), Err)
    }

    /// Declares the exchanges and bindings that publishers of commands and subscribers to events use, where they are missing:
    /// once every `every`, until `shutdown`.
    pub async fn keep_declared(self, every: Duration, shutdown: CancellationToken) {
        let Some(topology) = self.0.topology.clone() else {
            return shutdown.cancelled().await;
        };
        let mut may_bind = true;
        while shutdown.run_until_cancelled(sleep(every)).await.is_some() {
            let deadline = Instant::now() + Duration::from_secs(PUBLISH_SECONDS_MAX);
            let restoring = async {
                let link = self.link().await;
                // It would not answer.
                if link.is_blocked() {
                    return Ok(Vec::new());
                }
                topology.restore_on(&link, &mut may_bind).await
            };
            let restored = shutdown.run_until_cancelled(timeout_at(deadline, restoring)).await;
            match restored {
                Some(Ok(Ok(created))) if created.is_empty() => {}
                Some(Ok(Ok(created))) => {
                    tracing::warn!(
                        ?created,
                        "exchanges at the broker were missing; they are declared again, with their bindings"
                    );
                }
                Some(Ok(Err(error))) => {
                    tracing::warn!(%error, "exchanges and bindings at the broker could not be checked; retrying");
                }
                // The broker is away, which others report, or it is time to stop.
                Some(Err(_)) | None => {}
            }
        }
    }

    /// Closes the connection, after the calls under way. Clones can publish no more.
    pub async fn close(self) {
        // All permits: nobody publishes now. Calls under way end by their own deadlines.
        let _all = self.0.calls.acquire_many(CHANNELS_MAX).await;
        self.0.calls.close();
        self.idle().clear();
        if let Some(link) = self.0.current.lock().await.link.take() {
            link.close().await;
        }
    }

    /// Fills in the results that it gets to know; the error is what became of the others.
    async fn publish_until(
        &self,
        deadline: Instant,
        messages: &[Outgoing],
        results: &mut Results,
    ) -> Result<(), String> {
        let late = || format!("no confirm within {PUBLISH_SECONDS_MAX} s");
        // One declaration a call: what is missing still is for the caller to report, and for the operator to see.
        let mut topology = self.0.topology.as_ref();
        let mut groups = VecDeque::from([(0..messages.len()).collect::<Vec<_>>()]);
        while let Some(group) = groups.pop_front().filter(|group| !group.is_empty()) {
            let acquiring = async {
                let permit = self.0.calls.acquire().await.map_err(|_| "this publisher is closed".to_owned())?;
                Ok::<_, String>((permit, self.slot().await?))
            };
            let (_permit, slot) =
                timeout_at(deadline, acquiring).await.map_err(|_| self.problem().unwrap_or_else(late))??;
            let sent = send(&slot, deadline, messages, &group, results).await;
            if let Some(missing) =
                topology.take_if(|topology| is_ours_missing(topology, &sent, messages, &group, results))
            {
                let declared = timeout_at(deadline, missing.declare_on(&slot.link)).await.map_err(|_| late())?;
                match declared {
                    Ok(declared) => {
                        tracing::warn!(created = ?declared.created, "objects at the broker were missing; they are declared again");
                        let unsent =
                            |index: &usize| matches!(results.0[*index], None | Some(Err(PublishError::Unroutable)));
                        let again: Vec<_> = group.iter().copied().filter(unsent).collect();
                        for &index in &again {
                            results.0[index] = None;
                        }
                        groups.push_front(again);
                        continue;
                    }
                    Err(error) => tracing::error!(%error, "objects at the broker are missing and cannot be declared"),
                }
            }
            match sent {
                // RabbitMQ 3.10 goes on rejecting what comes over a channel that it has told of a full queue, also when
                // the queue is not full any more: the next attempt has to use a new one.
                Sent::Answered if is_any_rejected(&group, results) => self.idle().clear(),
                Sent::Answered => self.idle().push(slot),
                // One message of several may have closed the channel for all: each gets its own.
                Sent::ChannelClosed { .. } if group.len() > 1 => {
                    groups
                        .extend(group.into_iter().filter(|&index| results.0[index].is_none()).map(|index| vec![index]));
                }
                Sent::ChannelClosed { why, .. } => results.0[group[0]] = Some(Err(PublishError::Nacked(why))),
                Sent::Lost(why) => return Err(why),
                Sent::Late => {
                    // What a blocked connection has not sent yet would go out when it is unblocked, long after we said
                    // that it did not.
                    if slot.link.is_blocked() {
                        slot.link.cut();
                        return Err(BLOCKED.to_owned());
                    }
                    return Err(late());
                }
            }
        }
        Ok(())
    }

    /// An idle channel, or a new one; waits for as long as there is no connection.
    async fn slot(&self) -> Result<Slot, String> {
        loop {
            while let Some(slot) = self.pop_idle() {
                if slot.channel.status().connected() && slot.link.is_live() && !slot.link.is_blocked() {
                    return Ok(slot);
                }
            }
            let link = self.link().await;
            if link.is_blocked() {
                return Err(BLOCKED.to_owned());
            }
            match open(&link).await {
                Ok(channel) => {
                    let mut current = self.0.current.lock().await;
                    current.backoff = None;
                    drop(current);
                    return Ok(Slot { channel, link });
                }
                Err(error) => {
                    link.cut();
                    self.note(Some(error.to_string()));
                }
            }
        }
    }

    /// The connection; where there is none, the one that is made now, however long that takes.
    async fn link(&self) -> Arc<Link> {
        let mut current = self.0.current.lock().await;
        if let Some(link) = current.link.take_if(|link| link.is_live()) {
            return current.link.insert(link).clone();
        }
        loop {
            current.link = None;
            match &mut current.backoff {
                Some(backoff) => sleep(backoff.next_delay()).await,
                none => *none = Some(Backoff::new(RECONNECT_DELAYS)),
            }
            match self.0.broker.connect("publisher").await {
                Ok(link) => {
                    count_connection("publisher");
                    return current.link.insert(Arc::new(link)).clone();
                }
                Err(error) => {
                    tracing::warn!(%error, "publisher: not connected, trying again");
                    self.note(Some(error.to_string()));
                }
            }
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Slot>> {
        self.0.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pop_idle(&self) -> Option<Slot> {
        self.idle().pop()
    }

    /// Why the newest call did not get through, or the connection is not made; nothing once one has got through.
    fn note(&self, problem: Option<String>) {
        *self.0.problem.lock().unwrap_or_else(PoisonError::into_inner) = problem;
    }

    fn problem(&self) -> Option<String> {
        self.0.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn open(link: &Link) -> Result<Channel, BrokerError> {
    let channel = link.channel().await?;
    link.ask("switch to confirms", channel.confirm_select(ConfirmSelectOptions::default())).await?;
    Ok(channel)
}

/// One result for each message, as far as it is known.
struct Results(Vec<Option<Result<(), PublishError>>>);

/// How sending one group ended. Results that are known by then are filled in.
enum Sent {
    /// Every message has its answer.
    Answered,
    /// The broker closed the channel, for a reason that may lie in one of the messages.
    ChannelClosed { why: String, code: Option<u16> },
    /// The connection is gone.
    Lost(String),
    /// The deadline has passed.
    Late,
}

async fn send(
    Slot { channel, link }: &Slot,
    deadline: Instant,
    messages: &[Outgoing],
    group: &[usize],
    results: &mut Results,
) -> Sent {
    // Polled first in this order, and each is handed to the connection at its first poll: so they leave in this order.
    let mut answers: FuturesUnordered<_> =
        group.iter().map(|&index| async move { (index, publish(channel, &messages[index]).await) }).collect();
    let mut returned = Vec::new();
    let mut failure = None;
    let mut late = false;
    loop {
        let next = if late {
            // lapin hands a returned message to whichever confirm comes first: all that came must be seen.
            answers.next().now_or_never().flatten()
        } else {
            tokio::select! {
                biased;
                next = answers.next() => next,
                () = sleep_until(deadline) => {
                    late = true;
                    None
                }
                () = link.gone() => {
                    late = true;
                    failure.get_or_insert(Sent::Lost("the connection is gone".to_owned()));
                    None
                }
            }
        };
        match next {
            Some((index, Ok(Confirmation::Ack(message)))) => {
                results.0[index] = Some(Ok(()));
                returned.extend(message);
            }
            Some((index, Ok(Confirmation::Nack(message)))) => {
                results.0[index] =
                    Some(Err(PublishError::Nacked("a queue that should take it is full or down".to_owned())));
                returned.extend(message);
            }
            Some((index, Err(Unsent::Name))) => {
                let why = "its exchange or routing key is longer than AMQP's 255 bytes".to_owned();
                results.0[index] = Some(Err(PublishError::Nacked(why)));
            }
            Some((_, Ok(Confirmation::NotRequested))) => {
                failure = Some(Sent::Lost("the channel does not confirm".to_owned()));
            }
            Some((_, Err(Unsent::Broker(error)))) => {
                let why = explain(&error);
                failure.get_or_insert(if error.is_amqp_soft_error() {
                    Sent::ChannelClosed { why, code: code(&error) }
                } else {
                    Sent::Lost(why)
                });
            }
            None if late || answers.is_empty() => break,
            None => {}
        }
    }
    for message in &returned {
        mark_unroutable(message, messages, group, results);
    }
    match failure {
        Some(failure) => failure,
        None if group.iter().all(|&index| results.0[index].is_some()) => Sent::Answered,
        None => Sent::Late,
    }
}

fn is_any_rejected(group: &[usize], results: &Results) -> bool {
    group.iter().any(|&index| matches!(results.0[index], Some(Err(PublishError::Nacked(_)))))
}

/// Whether something of ours is missing at the broker: an exchange, or a queue or binding that a message should have taken.
fn is_ours_missing(
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
        Sent::Lost(_) | Sent::Late => false,
    }
}

/// Why a message got no answer.
enum Unsent {
    Name,
    Broker(lapin::Error),
}

async fn publish(channel: &Channel, message: &Outgoing) -> Result<Confirmation, Unsent> {
    let exchange = ShortString::try_new(message.exchange.as_str()).map_err(|_| Unsent::Name)?;
    let routing_key = ShortString::try_new(message.routing_key.as_str()).map_err(|_| Unsent::Name)?;
    let options = BasicPublishOptions { mandatory: message.mandatory, immediate: false };
    let properties = message.properties().clone();
    let confirm = channel.basic_publish(exchange, routing_key, options, &message.body, properties).await;
    confirm.map_err(Unsent::Broker)?.await.map_err(Unsent::Broker)
}

/// A returned message is told by what it is, not by the confirm it came with: with several under way lapin mixes them up.
fn mark_unroutable(returned: &BasicReturnMessage, messages: &[Outgoing], group: &[usize], results: &mut Results) {
    let is_it = |message: &Outgoing| {
        message.mandatory
            && message.exchange == returned.exchange.as_str()
            && message.routing_key == returned.routing_key.as_str()
            && message.properties().message_id() == returned.properties.message_id()
            && message.body == returned.data
    };
    let unroutable = |result: &Option<_>| matches!(result, Some(Err(PublishError::Unroutable)));
    match group.iter().find(|&&index| is_it(&messages[index]) && !unroutable(&results.0[index])) {
        Some(&index) => results.0[index] = Some(Err(PublishError::Unroutable)),
        // It cannot be any other call's. Rather send all of them again than count a lost one as sent.
        None => group.iter().for_each(|&index| results.0[index] = Some(Err(PublishError::Unroutable))),
    }
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").field("broker", &self.0.broker).finish_non_exhaustive()
    }
}

/// Why a message is not known to be with the broker. Whatever it was made from must be kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// It was mandatory, and no queue takes it.
    #[error("no queue takes this message")]
    Unroutable,
    /// The broker refused this message: a queue is full or down, or it cannot be sent as it is.
    #[error("RabbitMQ refused this message: {0}")]
    Nacked(String),
    /// The broker was away, or did not answer in time: it may have the message or not.
    #[error("RabbitMQ did not confirm this message: {0}")]
    Unavailable(String),
}
