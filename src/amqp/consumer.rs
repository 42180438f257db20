//! Consumes one queue over a connection of its own, in batches, and reconnects after any loss.
//!
//! A consumer never gives up. After a refused or lost connection, a missed heartbeat, a closed channel, a consumer cancelled by the broker
//! or a deleted queue, it retries with backoff until shutdown. The broker redelivers what was not acknowledged.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::Channel;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicGetOptions, BasicNackOptions, BasicQosOptions};
use lapin::types::{FieldTable, ShortString};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::batch::Batch;
use super::connection::{Broker, BrokerError, Link, RECONNECT_DELAYS, ask, count_connection, explain};
use super::lane_health::LaneHealth;
use super::message::{Received, delivery_count};
use super::reply_code;
use super::session::{CHANNEL_GONE, CONSUMER_CANCELLED, ConsumerEnds, Session};
use super::topology::{Topology, TopologyError};
use crate::backoff::Backoff;
use crate::metrics::labels::ConnectionPurpose;
use crate::outage::{Outage, seconds};
use offramp_domain::command_ref::CommandType;

/// The largest prefetch. Quorum queues allow no more.
pub const PREFETCH_MAX: u16 = 2_000;
/// From this many redeliveries on, a message is suspected of crashing the workers that take it.
const SUSPICIOUS_REDELIVERIES: u64 = 5;
/// From this many redeliveries on, a suspect is held briefly.
const HELD_REDELIVERIES: u64 = 2 * SUSPICIOUS_REDELIVERIES;
/// How long to wait for a full prefetch window while the window is narrow. See [`Subscription::widen`].
const WINDOW_TIMEOUT: Duration = Duration::from_millis(100);
/// After how many seconds without a delivery a consumer asks whether its queue works. See [`Subscription::try_queue`].
const QUIET_SECONDS_MAX: u64 = 5;
/// The problem of a consumer whose queue has messages that it does not receive.
const PASSED_OVER: &str = "its queue has messages, but none is delivered";
/// The longest time for which a suspect is held, in milliseconds. See [`Consumer::begin`].
const HOLD_MILLISECONDS_MAX: u64 = 500;

/// Consumes one queue. See the module documentation.
pub struct Consumer {
    broker: Broker,
    topology: Topology,
    kind: CommandType,
    queue: String,
    prefetch: u16,
    health: LaneHealth,
    link: Option<Arc<Link>>,
    subscription: Option<Subscription>,
    backoff: Backoff,
    outage: Outage,
    /// The delay before the next attempt; none before the first.
    pause: Option<Duration>,
}

/// A consumer that the broker has registered.
struct Subscription {
    session: Arc<Session>,
    tag: ShortString,
    /// Takes the consumers that replace this one on the same channel.
    consumers: UnboundedSender<lapin::Consumer>,
    deliveries: UnboundedReceiver<lapin::Result<Received>>,
    /// The current prefetch. See [`Consumer::begin`].
    window: u16,
    /// The last settled delivery tag when this consumer began. Deliveries set aside up to there take no room in its window.
    began_after: u64,
    /// For [`Self::try_queue`]; none before the first time.
    trial_channel: Option<Channel>,
    /// The last trial got a message, and nothing was delivered since.
    is_passed_over: bool,
}

/// Forwards deliveries at once, so that the end of a consumer is noticed while its lane is busy. It reads one consumer after another:
/// lapin's must not be polled after its end, or it never wakes.
async fn forward(
    mut consumers: UnboundedReceiver<lapin::Consumer>,
    deliveries: UnboundedSender<lapin::Result<Received>>,
    ends: Arc<ConsumerEnds>,
) {
    while let Some(mut consumer) = consumers.recv().await {
        loop {
            let next = tokio::select! {
                biased;
                () = deliveries.closed() => return,
                next = consumer.next() => next,
            };
            match next {
                Some(delivered) => {
                    if deliveries.send(delivered.map(Received::now)).is_err() {
                        return;
                    }
                }
                None if ends.ended() => break,
                None => return,
            }
        }
    }
}

impl Consumer {
    /// A consumer of the work queue of `kind` that is not connected yet. `prefetch` is 1 to [`PREFETCH_MAX`]. If the queue is missing,
    /// everything in `topology` is declared again.
    #[must_use]
    pub fn new(broker: Broker, topology: Topology, kind: CommandType, prefetch: u16, health: LaneHealth) -> Self {
        Self {
            broker,
            queue: topology.work_queue(kind),
            topology,
            kind,
            prefetch: prefetch.clamp(1, PREFETCH_MAX),
            health,
            link: None,
            subscription: None,
            backoff: Backoff::new(RECONNECT_DELAYS),
            outage: Outage::default(),
            pause: None,
        }
    }

    /// The queue that it consumes.
    #[must_use]
    pub fn queue(&self) -> &str {
        &self.queue
    }

    #[must_use]
    pub fn health(&self) -> &LaneHealth {
        &self.health
    }

    /// Waits for a delivery, then takes whatever else is waiting, up to `max`. Never empty, and no timer. Settle each batch before asking
    /// for the next; a batch that is dropped unsettled is redelivered.
    ///
    /// Returns `None` only once `shutdown` is cancelled. The broker then delivers no more, and [`Self::close`] returns prefetched messages
    /// to the queue.
    pub async fn next_batch(&mut self, max: usize, shutdown: &CancellationToken) -> Option<Batch> {
        loop {
            if self.subscription.as_ref().is_none_or(|subscription| !subscription.session.is_live()) {
                self.subscription = None;
                tokio::select! {
                    biased;
                    () = shutdown.cancelled() => {
                        self.health.stopped();
                        return None;
                    }
                    subscription = self.subscribe() => self.subscription = Some(subscription),
                }
            }
            let subscription = self.subscription.as_mut()?;
            self.health.consuming(&subscription.session);
            let first = tokio::select! {
                biased;
                () = shutdown.cancelled() => {
                    self.cancel().await;
                    return None;
                }
                first = subscription.next(&self.queue) => first,
            };
            let problem = match first {
                Some(Ok(first)) => match self.begin(first, max).await {
                    Ok(batch) => {
                        self.backoff = Backoff::new(RECONNECT_DELAYS);
                        return Some(batch);
                    }
                    Err(problem) => problem,
                },
                Some(Err(problem)) => problem,
                None => CONSUMER_CANCELLED.to_owned(),
            };
            if self.outage.failed(&problem) {
                tracing::warn!(lane = %self.kind, queue = self.queue, error = problem, "consumer lost; reconnecting");
            }
            self.subscription = None;
            self.health.connecting(Some(problem));
            self.pause = Some(self.backoff.next_delay());
        }
    }

    /// The batch that begins with `first`. Fails when the channel is closed, because nothing could be acknowledged.
    ///
    /// When a process crashes, every prefetched message is redelivered and its delivery count grows. A message that crashes every worker
    /// would drag hundreds of others to the delivery limit, where all become dead letters. A consumer therefore starts with prefetch 1. While
    /// the first message of a batch has been redelivered often, the window doubles, but never exceeds the number of messages settled so far
    /// plus one: the culprit soon comes first, and alone. At the first message that has not been redelivered often, the window opens fully.
    ///
    /// The lanes of a process crash together: a message of another lane could be redelivered as often, if the culprit always came sooner. A
    /// first message with even more redeliveries is therefore held for a short random time.
    async fn begin(&mut self, first: Received, max: usize) -> Result<Batch, String> {
        let Some(subscription) = self.subscription.as_mut() else { return Err(CHANNEL_GONE.to_owned()) };
        let settled = subscription.session.settled_tag();
        let redeliveries = delivery_count(&first);
        let is_suspect = redeliveries >= SUSPICIOUS_REDELIVERIES;
        if is_suspect {
            let message_id = first.properties.message_id().as_ref().map(ShortString::as_str);
            tracing::warn!(lane = %self.kind, message_id, redeliveries, "message redelivered often");
            if settled == 0 && redeliveries >= HELD_REDELIVERIES {
                sleep(Duration::from_millis(fastrand::u64(..=HOLD_MILLISECONDS_MAX))).await;
            }
        }
        let is_narrow = subscription.window < self.prefetch;
        let batch = subscription.collect(first, max, is_narrow).await.ok_or_else(|| CHANNEL_GONE.to_owned())?;
        if is_narrow && !subscription.session.link.in_flight().is_full() {
            // A batch takes the whole narrow window, which never exceeds `max`.
            let doubled = subscription.window.saturating_mul(2);
            let step = if usize::from(doubled) <= max { doubled.min(self.prefetch) } else { self.prefetch };
            let wider = if is_suspect { step } else { self.prefetch };
            if !is_suspect || settled + 1 >= u64::from(wider) {
                subscription.widen(&self.queue, wider).await.map_err(|error| error.to_string())?;
            }
        }
        Ok(batch)
    }

    /// Returns everything that is not acknowledged, including a batch in flight, and stops consuming, because another server stays
    /// unavailable (`why`). The next call of [`Self::next_batch`] consumes again.
    pub async fn suspend(&mut self, why: &str) {
        self.subscription = None;
        if let Some(link) = self.link.take() {
            link.close().await;
        }
        self.health.paused(why);
    }

    /// Closes channel and connection. The broker requeues what is not acknowledged.
    pub async fn close(mut self) {
        self.subscription = None;
        if let Some(link) = self.link.take() {
            link.close().await;
        }
    }

    /// Cancels the consumer at the broker. A failure needs no action: the connection is about to be closed.
    async fn cancel(&mut self) {
        if let Some(subscription) = self.subscription.take() {
            let Subscription { session, tag, consumers, mut deliveries, .. } = subscription;
            drop(consumers);
            session.ends.expect();
            let cancelling = session.channel.basic_cancel(tag, BasicCancelOptions::default());
            // The reply may be behind deliveries that are not read while the in-flight budget is used up.
            let discarding = async {
                while let Some(delivered) = deliveries.recv().await {
                    session.release_budget(delivered.map_or(0, |delivery| delivery.delivery_tag));
                }
            };
            let cancelled = tokio::select! {
                cancelled = ask("cancel a consumer", cancelling) => cancelled,
                () = discarding => Ok(()),
            };
            if let Err(error) = cancelled {
                tracing::debug!(lane = %self.kind, %error, "consumer not cancelled");
            }
        }
        self.health.stopped();
    }

    /// Connects and consumes, however long that takes.
    async fn subscribe(&mut self) -> Subscription {
        loop {
            if let Some(pause) = self.pause.take() {
                sleep(pause).await;
            }
            match self.try_subscribe().await {
                Ok(subscription) => {
                    let unavailable_seconds = self.outage.ended().map(seconds);
                    tracing::info!(lane = %self.kind, queue = self.queue, prefetch = self.prefetch, unavailable_seconds, "consuming");
                    return subscription;
                }
                Err(error) => {
                    let problem = error.to_string();
                    if self.outage.failed(&problem) {
                        tracing::warn!(lane = %self.kind, queue = self.queue, error = problem, "cannot consume; retrying");
                    }
                    self.health.connecting(Some(problem));
                    self.pause = Some(self.backoff.next_delay());
                }
            }
        }
    }

    /// Always over a new connection: deliveries of a discarded channel would count as in flight for as long as its connection lives.
    async fn try_subscribe(&mut self) -> Result<Subscription, TopologyError> {
        if let Some(link) = self.link.take() {
            link.cut();
        }
        let link = Arc::new(self.broker.connect(&self.queue).await?);
        link.in_flight().limit();
        count_connection(ConnectionPurpose::Lane(self.kind));
        let subscribed = self.consume_or_declare(&link).await;
        match &subscribed {
            Ok(_) => self.link = Some(link),
            // The next attempt begins with another node, if there is one.
            Err(_) => link.cut(),
        }
        subscribed
    }

    async fn consume_or_declare(&self, link: &Arc<Link>) -> Result<Subscription, TopologyError> {
        match self.consume(link).await {
            Err(error) if error.code() == Some(reply_code::NOT_FOUND) => {
                self.topology.declare_on(link).await?;
                Ok(self.consume(link).await?)
            }
            subscribed => Ok(subscribed?),
        }
    }

    async fn consume(&self, link: &Arc<Link>) -> Result<Subscription, BrokerError> {
        let channel = link.channel().await?;
        let consumer = consume(link, &channel, &self.queue, 1).await?;
        let tag = consumer.tag();
        let (consumers, receiver) = unbounded_channel();
        let (sender, deliveries) = unbounded_channel();
        let ends = Arc::new(ConsumerEnds::default());
        tokio::spawn(forward(receiver, sender, ends.clone()));
        // The receiver lives for as long as `deliveries` does.
        let _ = consumers.send(consumer);
        let session = Session::new(channel, link.clone(), ends);
        Ok(Subscription {
            session: Arc::new(session),
            tag,
            consumers,
            deliveries,
            window: 1,
            began_after: 0,
            trial_channel: None,
            is_passed_over: false,
        })
    }
}

/// Starts consuming `queue` on `channel` with the given prefetch.
async fn consume(link: &Link, channel: &Channel, queue: &str, prefetch: u16) -> Result<lapin::Consumer, BrokerError> {
    link.ask("set the prefetch", channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
    let queue = ShortString::try_new(queue).unwrap_or_default();
    let (tag, none) = (ShortString::default(), FieldTable::default());
    let consuming = channel.basic_consume(queue, tag, BasicConsumeOptions::default(), none);
    link.ask("start a consumer", consuming).await
}

impl Subscription {
    /// The next delivery. This future is cancellation-safe.
    async fn next(&mut self, queue: &str) -> Option<Result<Received, String>> {
        let set_aside = self.session.set_aside().range(self.began_after + 1..).count();
        // Nothing more would be delivered: deliveries set aside count against the prefetch of their consumer.
        if set_aside >= usize::from(self.window)
            && let Err(error) = self.widen(queue, self.window).await
        {
            return Some(Err(error.to_string()));
        }
        loop {
            if let Ok(delivered) = timeout(Duration::from_secs(QUIET_SECONDS_MAX), self.deliveries.recv()).await {
                self.is_passed_over = false;
                return delivered.map(|delivered| delivered.map_err(|error| explain(&error)));
            }
            // The deliveries should have ended with the channel. A lane whose deliveries did not would wait forever.
            if let Some(problem) = self.session.problem() {
                return Some(Err(problem.to_owned()));
            }
            let link = &self.session.link;
            // Without such metadata, a question fails at nodes whose consumers are served. With a full budget, a reply would not be read.
            if !link.has_majority_metadata() || link.in_flight().is_full() {
                continue;
            }
            match self.try_queue(queue).await {
                Ok(is_empty) if is_empty || !self.is_passed_over => self.is_passed_over = !is_empty,
                Ok(_) => return Some(Err(PASSED_OVER.to_owned())),
                Err(error) => return Some(Err(error.to_string())),
            }
        }
    }

    /// Finds out whether the queue works at this node, by trying to take a message: no node grants that without a majority of the queue's
    /// members, not even to say that there is none. A node that is cut off from its cluster goes on sending heartbeats, so nothing else
    /// tells a consumer there that it will receive nothing. A message that is taken goes back at once. Returns whether the queue is empty.
    async fn try_queue(&mut self, queue: &str) -> Result<bool, BrokerError> {
        let link = &self.session.link;
        let channel = match &self.trial_channel {
            Some(channel) => channel,
            None => self.trial_channel.insert(link.channel().await?),
        };
        let queue = ShortString::try_new(queue).unwrap_or_default();
        let Some(message) =
            link.ask("get a message from the queue", channel.basic_get(queue, BasicGetOptions::default())).await?
        else {
            return Ok(true);
        };
        let options = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
        link.ask("requeue a message", message.nack(options)).await?;
        Ok(false)
    }

    /// Raises the prefetch. It is fixed per consumer, so the consumer is cancelled and another started on the same channel, where earlier
    /// deliveries can still be acknowledged. Messages on their way to a cancelled consumer go back to the queue and *count as redelivered*
    /// (tried with RabbitMQ 3.10). Call this only when nothing is on its way: the window is full, or nothing came for a while.
    async fn widen(&mut self, queue: &str, window: u16) -> Result<(), BrokerError> {
        let Session { link, channel, ends, .. } = &*self.session;
        let began_after = self.session.settled_tag();
        ends.expect();
        let cancelling = channel.basic_cancel(self.tag.clone(), BasicCancelOptions::default());
        link.ask("cancel a consumer", cancelling).await?;
        let consumer = consume(link, channel, queue, window).await?;
        (self.tag, self.window, self.began_after) = (consumer.tag(), window, began_after);
        // Without a receiver, the deliveries end, which the next batch notices.
        let _ = self.consumers.send(consumer);
        Ok(())
    }

    /// The batch that begins with `first`; `None` when the channel is closed, because nothing could be acknowledged. With `patiently`, waits
    /// briefly for a full window.
    async fn collect(&mut self, first: Received, max: usize, patiently: bool) -> Option<Batch> {
        let mut received = vec![first];
        let deadline = Instant::now() + WINDOW_TIMEOUT;
        while received.len() < max {
            let next = if patiently && received.len() < usize::from(self.window) {
                timeout_at(deadline, self.deliveries.recv()).await.ok().flatten()
            } else {
                self.deliveries.try_recv().ok()
            };
            match next {
                Some(Ok(next)) => received.push(next),
                Some(Err(_)) => self.session.fail(),
                None => break,
            }
        }
        self.session.is_live().then(|| Batch::new(self.session.clone(), received))
    }
}

impl Drop for Consumer {
    // A lane that panicked must not look ready.
    fn drop(&mut self) {
        self.health.stopped();
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").field("queue", &self.queue).field("health", &self.health).finish_non_exhaustive()
    }
}
