//! A lane's supply of deliveries: one queue, one connection, in batches, rebuilt after any loss.
//!
//! A consumer never gives up: connection refused or cut, a silent peer (heartbeat), channel closed, consumer cancelled
//! by the broker, queue deleted — it tries again, with growing pauses, until it is told to stop. What was delivered and
//! not acknowledged by then comes again, from the broker.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use lapin::message::Delivery as Received;
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Acker, Channel};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::connection::{Broker, BrokerError, Link, RECONNECT_EVERY, ask, count_connection, explain};
use super::health::LaneHealth;
use super::message::{Delivery, delivery_count};
use super::topology::{Topology, TopologyError};
use crate::backoff::Backoff;

/// The most deliveries that the broker may send ahead of our acks: quorum queues take no more.
pub const PREFETCH_MAX: u16 = 2_000;
/// Handing an ack to the network, in seconds.
const ACK_SECONDS_MAX: u64 = 5;
/// How often a message may have come back before it is suspected of ending the processes that take it.
const SUSPICIOUS_RETURNS: u64 = 5;
/// How often a suspect must have come back to be held for a moment.
const SUSPENSE_RETURNS: u64 = 2 * SUSPICIOUS_RETURNS;
/// How long to wait for as many messages as may be sent ahead, while these are few. See [`Open::widen`].
const SENT_AHEAD_PATIENCE: Duration = Duration::from_millis(100);
/// How long to hold a suspect that comes first, at most, in milliseconds. See [`Consumer::begin`].
const SUSPENSE_MILLISECONDS_MAX: u64 = 500;
/// What a lane says of a channel that ended without a word.
pub(super) const GONE: &str = "its channel is gone";
/// What a lane says when the broker ended its consumer, and not the channel.
const CANCELLED: &str =
    "RabbitMQ cancelled its consumer, as it does when a queue is deleted or a message is not acknowledged in time";
/// AMQP's code for an object that does not exist.
const NOT_FOUND: u16 = 404;

/// Consumes one queue. See the module's description.
pub struct Consumer {
    broker: Broker,
    topology: Topology,
    queue: String,
    prefetch: u16,
    health: LaneHealth,
    link: Option<Arc<Link>>,
    open: Option<Open>,
    backoff: Backoff,
    /// How long to wait before the next attempt; none before the first.
    pause: Option<Duration>,
}

/// A consumer that the broker knows.
struct Open {
    session: Arc<Session>,
    tag: ShortString,
    /// Where further consumers go.
    consumers: UnboundedSender<lapin::Consumer>,
    deliveries: UnboundedReceiver<lapin::Result<Received>>,
    /// How many messages are sent ahead. See [`Consumer::begin`].
    window: u16,
    /// The last delivery tag that was passed when this consumer began: what was kept up to there takes no room in its
    /// window.
    began_after: u64,
}

/// A channel with a consumer on it. Deliveries can only be acknowledged on the one they came over.
pub(super) struct Session {
    channel: Channel,
    link: Arc<Link>,
    /// Something on it went wrong; nothing is taken from it or acknowledged on it any more.
    doubtful: AtomicBool,
    /// The last delivery tag that is settled or kept, and all before it with it.
    settled: AtomicU64,
    ends: Arc<Ends>,
    /// The delivery tags that are kept: neither acknowledged nor given back. See [`Batch::ack_but`].
    kept: Mutex<BTreeSet<u64>>,
}

/// How consumers on a channel end.
#[derive(Default)]
struct Ends {
    /// How many are about to end because we cancel them.
    expected: AtomicU32,
    /// The broker ended one by itself. The channel may stand all the same.
    cancelled: AtomicBool,
}

impl Ends {
    fn expect(&self) {
        self.expected.fetch_add(1, Ordering::AcqRel);
    }

    /// Whether this end was expected.
    fn ended(&self) -> bool {
        let one_less = |expected: u32| expected.checked_sub(1);
        let is_expected = self.expected.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_less).is_ok();
        if !is_expected {
            self.cancelled.store(true, Ordering::Release);
        }
        is_expected
    }
}

/// Passes on what is delivered, at once: so the end of a consumer is noticed while its lane is busy. One consumer after
/// the other; lapin's must not be polled again after its end, or it waits for ever.
async fn pass_on(
    mut consumers: UnboundedReceiver<lapin::Consumer>,
    deliveries: UnboundedSender<lapin::Result<Received>>,
    ends: Arc<Ends>,
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
                    if deliveries.send(delivered).is_err() {
                        return;
                    }
                }
                None if ends.ended() => break,
                None => return,
            }
        }
    }
}

impl Session {
    pub(super) fn is_live(&self) -> bool {
        self.problem().is_none()
    }

    /// Why nothing can be acknowledged on it any more.
    pub(super) fn problem(&self) -> Option<&'static str> {
        let is_gone =
            self.doubtful.load(Ordering::Acquire) || !self.channel.status().connected() || !self.link.is_live();
        let is_cancelled = || self.ends.cancelled.load(Ordering::Acquire);
        if is_gone { Some(GONE) } else { is_cancelled().then_some(CANCELLED) }
    }

    fn doubt(&self) {
        self.doubtful.store(true, Ordering::Release);
    }

    /// The delivery with this tag, and all before it, take no room here any more.
    fn forget(&self, tag: u64) {
        self.link.in_hand().forget(tag);
    }

    fn kept(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands acks to the network, under a deadline.
    async fn send(&self, acks: impl Future<Output = lapin::Result<bool>>) -> Result<(), Lost> {
        if let Some(problem) = self.problem() {
            return Err(Lost(problem.to_owned()));
        }
        let handed_over = tokio::select! {
            biased;
            done = timeout(Duration::from_secs(ACK_SECONDS_MAX), acks) => done,
            () = self.link.gone() => return Err(Lost("the connection is gone".to_owned())),
        };
        match handed_over {
            Ok(Ok(true)) => Ok(()),
            Ok(Ok(false)) => {
                self.doubt();
                Err(Lost("the channel is gone".to_owned()))
            }
            Ok(Err(error)) => {
                self.doubt();
                Err(Lost(explain(&error)))
            }
            Err(_) => {
                self.link.cut();
                Err(Lost(format!("not sent within {ACK_SECONDS_MAX} s")))
            }
        }
    }
}

impl Consumer {
    /// A consumer of `queue` that is not connected yet. `prefetch` is how many deliveries the broker may send ahead of our
    /// acks (1 to [`PREFETCH_MAX`]). Should the queue be missing, everything in `topology` is declared again.
    #[must_use]
    pub fn new(
        broker: Broker,
        topology: Topology,
        queue: impl Into<String>,
        prefetch: u16,
        health: LaneHealth,
    ) -> Self {
        Self {
            broker,
            topology,
            queue: queue.into(),
            prefetch: prefetch.clamp(1, PREFETCH_MAX),
            health,
            link: None,
            open: None,
            backoff: Backoff::new(RECONNECT_EVERY),
            pause: None,
        }
    }

    /// What it says of itself.
    #[must_use]
    pub fn health(&self) -> &LaneHealth {
        &self.health
    }

    /// Waits for the first delivery, for as long as it takes, then takes what is waiting besides, up to `max`: never empty,
    /// and no timer. Settle each batch before asking for the next; one that is dropped unsettled comes again.
    ///
    /// `None` only once `shutdown` is cancelled; the broker delivers no more then, and what it had sent ahead goes back to
    /// the queue with [`Self::close`].
    pub async fn next_batch(&mut self, max: usize, shutdown: &CancellationToken) -> Option<Batch> {
        loop {
            if self.open.as_ref().is_none_or(|open| !open.session.is_live()) {
                self.open = None;
                tokio::select! {
                    biased;
                    () = shutdown.cancelled() => {
                        self.health.stopped();
                        return None;
                    }
                    open = self.reopen() => self.open = Some(open),
                }
            }
            let open = self.open.as_mut()?;
            self.health.consuming(&open.session);
            let first = tokio::select! {
                biased;
                () = shutdown.cancelled() => {
                    self.cancel().await;
                    return None;
                }
                first = open.next(&self.queue) => first,
            };
            let problem = match first {
                Some(Ok(first)) => match self.begin(first, max).await {
                    Ok(batch) => {
                        self.backoff = Backoff::new(RECONNECT_EVERY);
                        return Some(batch);
                    }
                    Err(problem) => problem,
                },
                Some(Err(problem)) => problem,
                None => CANCELLED.to_owned(),
            };
            tracing::warn!(queue = self.queue, problem, "consumer lost");
            self.open = None;
            self.health.connecting(Some(problem));
            self.pause = Some(self.backoff.next_delay());
        }
    }

    /// The batch that begins with `first`; an error when the channel is gone, so that nothing of it could be acknowledged.
    ///
    /// When a process ends, each message that was sent ahead to it comes back, and counts as returned once more. A
    /// message that ends every process that takes it would so drag hundreds of others to the broker's delivery limit,
    /// where all become dead letters. Therefore each consumer begins with one message at a time. While the messages
    /// that come first have come back often, the window doubles, and no more are sent ahead than were settled since
    /// then, and one: whatever ends the process, it has then settled half of what came before the culprit, which is
    /// soon the first, and alone. At the first message that has not come back often, the window opens.
    ///
    /// Lanes of one process are in the same boat: a message of another lane could come back as often, if the culprit were
    /// always the faster. So one that comes first and has come back more often still is held for a moment, not the same
    /// each time.
    async fn begin(&mut self, first: Received, max: usize) -> Result<Batch, String> {
        let Some(open) = self.open.as_mut() else { return Err(GONE.to_owned()) };
        let settled = open.session.settled.load(Ordering::Acquire);
        let returns = delivery_count(&first);
        let is_suspect = returns >= SUSPICIOUS_RETURNS;
        if is_suspect {
            let message_id = first.properties.message_id().as_ref().map(ShortString::as_str);
            tracing::warn!(queue = self.queue, message_id, returns, "a message has come back often");
            if settled == 0 && returns >= SUSPENSE_RETURNS {
                sleep(Duration::from_millis(fastrand::u64(..=SUSPENSE_MILLISECONDS_MAX))).await;
            }
        }
        let is_narrow = open.window < self.prefetch;
        let batch = open.collect(first, max, is_narrow).await.ok_or_else(|| GONE.to_owned())?;
        if is_narrow && !open.session.link.in_hand().is_full() {
            // While it is narrow, a batch takes all of it: it never exceeds `max`.
            let doubled = open.window.saturating_mul(2);
            let step = if usize::from(doubled) <= max { doubled.min(self.prefetch) } else { self.prefetch };
            let wider = if is_suspect { step } else { self.prefetch };
            if !is_suspect || settled + 1 >= u64::from(wider) {
                open.widen(&self.queue, wider).await.map_err(|error| error.to_string())?;
            }
        }
        Ok(batch)
    }

    /// Gives everything back that is not acknowledged, a batch in flight included, and stops consuming: for when something
    /// else is away for longer (`why`). The next call of [`Self::next_batch`] begins again.
    pub async fn suspend(&mut self, why: &str) {
        self.open = None;
        if let Some(link) = self.link.take() {
            link.close().await;
        }
        self.health.paused(why);
    }

    /// Closes channel and connection; the broker takes back what is not acknowledged.
    pub async fn close(mut self) {
        self.open = None;
        if let Some(link) = self.link.take() {
            link.close().await;
        }
    }

    /// Tells the broker to deliver no more. On failure there is nothing left to do: the connection is about to be closed.
    async fn cancel(&mut self) {
        if let Some(open) = self.open.take() {
            let Open { session, tag, consumers, mut deliveries, .. } = open;
            drop(consumers);
            session.ends.expect();
            let cancelling = session.channel.basic_cancel(tag, BasicCancelOptions::default());
            // The answer may be behind deliveries that are not read while there is too much in hand.
            let throwing_away = async {
                while let Some(delivered) = deliveries.recv().await {
                    session.forget(delivered.map_or(0, |delivery| delivery.delivery_tag));
                }
            };
            let cancelled = tokio::select! {
                cancelled = ask("cancel a consumer", cancelling) => cancelled,
                () = throwing_away => Ok(()),
            };
            if let Err(error) = cancelled {
                tracing::debug!(queue = self.queue, %error, "consumer not cancelled");
            }
        }
        self.health.stopped();
    }

    /// Consumes again, however long that takes.
    async fn reopen(&mut self) -> Open {
        loop {
            if let Some(pause) = self.pause.take() {
                sleep(pause).await;
            }
            match self.try_open().await {
                Ok(open) => {
                    tracing::info!(queue = self.queue, prefetch = self.prefetch, "consuming");
                    return open;
                }
                Err(error) => {
                    let problem = error.to_string();
                    tracing::warn!(queue = self.queue, problem, "not consuming, trying again");
                    self.health.connecting(Some(problem));
                    self.pause = Some(self.backoff.next_delay());
                }
            }
        }
    }

    /// Always over a new connection: what a channel had sent that was thrown away would count as being in our hands for
    /// as long as its connection lives.
    async fn try_open(&mut self) -> Result<Open, TopologyError> {
        if let Some(link) = self.link.take() {
            link.cut();
        }
        let link = Arc::new(self.broker.connect(&self.queue).await?);
        link.in_hand().bound();
        count_connection(&self.queue);
        let opened = match self.consume(&link).await {
            Err(error) if error.code() == Some(NOT_FOUND) => {
                self.topology.declare_on(&link).await?;
                self.consume(&link).await
            }
            opened => opened,
        };
        let open = opened?;
        // Kept only now: one on which anything failed is dropped, and with it cut.
        self.link = Some(link);
        Ok(open)
    }

    async fn consume(&self, link: &Arc<Link>) -> Result<Open, BrokerError> {
        let channel = link.channel().await?;
        let consumer = consume(link, &channel, &self.queue, 1).await?;
        let tag = consumer.tag();
        let (consumers, receiver) = unbounded_channel();
        let (sender, deliveries) = unbounded_channel();
        let ends = Arc::new(Ends::default());
        tokio::spawn(pass_on(receiver, sender, ends.clone()));
        // The receiver is there for as long as there are deliveries to wait for.
        let _ = consumers.send(consumer);
        let session = Session {
            channel,
            link: link.clone(),
            doubtful: AtomicBool::new(false),
            settled: AtomicU64::new(0),
            ends,
            kept: Mutex::default(),
        };
        Ok(Open { session: Arc::new(session), tag, consumers, deliveries, window: 1, began_after: 0 })
    }
}

/// Has a queue delivered on a channel, so many messages ahead of our acks.
async fn consume(link: &Link, channel: &Channel, queue: &str, prefetch: u16) -> Result<lapin::Consumer, BrokerError> {
    link.ask("limit deliveries", channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
    let queue = ShortString::try_new(queue).unwrap_or_default();
    let (tag, none) = (ShortString::default(), FieldTable::default());
    let consuming = channel.basic_consume(queue, tag, BasicConsumeOptions::default(), none);
    link.ask("deliver from the queue", consuming).await
}

impl Open {
    /// The next delivery. The cancellation of this future loses none.
    async fn next(&mut self, queue: &str) -> Option<Result<Received, String>> {
        let kept = self.session.kept().range(self.began_after + 1..).count();
        // Nothing more would come: kept deliveries count as sent ahead, for the consumer that they came to.
        if kept >= usize::from(self.window)
            && let Err(error) = self.widen(queue, self.window).await
        {
            return Some(Err(error.to_string()));
        }
        self.deliveries.recv().await.map(|delivered| delivered.map_err(|error| explain(&error)))
    }

    /// Has more sent ahead, on the same channel: what it has delivered can still be acknowledged, and what it had not
    /// handed over yet comes first. What the broker is about to send to a consumer that is cancelled goes back to the
    /// queue, and *counts as returned*: tried with RabbitMQ 3.10. So this is for when nothing is under way: as many are
    /// in our hands as may be sent ahead, or nothing more came for a while.
    async fn widen(&mut self, queue: &str, window: u16) -> Result<(), BrokerError> {
        let Session { link, channel, settled, ends, .. } = &*self.session;
        let began_after = settled.load(Ordering::Acquire);
        ends.expect();
        let cancelling = channel.basic_cancel(self.tag.clone(), BasicCancelOptions::default());
        link.ask("cancel a consumer", cancelling).await?;
        let consumer = consume(link, channel, queue, window).await?;
        (self.tag, self.window, self.began_after) = (consumer.tag(), window, began_after);
        // Without a receiver, the deliveries end, and that is noticed.
        let _ = self.consumers.send(consumer);
        Ok(())
    }

    /// The batch that begins with `first`; `None` when the channel is gone, so that nothing of it could be acknowledged.
    /// `patiently`: as many as may be sent ahead are waited for, for a moment.
    async fn collect(&mut self, first: Received, max: usize, patiently: bool) -> Option<Batch> {
        let mut ackers = vec![(first.delivery_tag, first.acker.clone())];
        let mut deliveries = vec![Delivery::from(first)];
        let patience_end = Instant::now() + SENT_AHEAD_PATIENCE;
        while deliveries.len() < max {
            let next = if patiently && deliveries.len() < usize::from(self.window) {
                timeout_at(patience_end, self.deliveries.recv()).await.ok().flatten()
            } else {
                self.deliveries.try_recv().ok()
            };
            match next {
                Some(Ok(next)) => {
                    ackers.push((next.delivery_tag, next.acker.clone()));
                    deliveries.push(Delivery::from(next));
                }
                Some(Err(_)) => self.session.doubt(),
                None => break,
            }
        }
        self.session
            .is_live()
            .then(|| Batch { deliveries, receipt: Receipt { session: self.session.clone(), ackers, settled: false } })
    }
}

impl Drop for Consumer {
    // A lane that panicked must not look alive.
    fn drop(&mut self) {
        self.health.stopped();
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").field("queue", &self.queue).field("health", &self.health).finish_non_exhaustive()
    }
}

/// Deliveries taken together, in the queue's order, and settled together. Dropped unsettled, its connection is thrown
/// away with the next batch, and the broker delivers all of it again.
#[derive(Debug)]
pub struct Batch {
    /// What was delivered; at least one.
    pub deliveries: Vec<Delivery>,
    receipt: Receipt,
}

impl Batch {
    /// Acknowledges every delivery: all effects are stored, every copy is confirmed.
    ///
    /// # Errors
    /// [`Lost`] when the channel is gone, or the ack did not leave within 5 seconds: the broker will deliver these
    /// messages again, to this worker or another.
    pub async fn ack(self) -> Result<(), Lost> {
        self.ack_but(&[]).await.map(drop)
    }

    /// Acknowledges every delivery but those at these indexes, which are kept: the broker still counts them as in our
    /// hands, and later batches can be settled all the same. One [`Kept`] for each, in the order of the deliveries.
    ///
    /// # Errors
    /// As [`Self::ack`]; then nothing is kept.
    pub async fn ack_but(mut self, kept: &[usize]) -> Result<Vec<Kept>, Lost> {
        self.receipt.ack_but(kept).await
    }

    /// Gives every delivery back to the queue, to be delivered again at once. The broker counts that against its delivery
    /// limit: while something is away, hold the batch, or [`Consumer::suspend`].
    pub async fn release(mut self) {
        if let Err(lost) = self.receipt.release().await {
            tracing::debug!(%lost, "nothing to release");
        }
    }

    /// Whether it can still be acknowledged, as far as anybody can know before the next heartbeat. If not, it comes again.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.receipt.session.is_live()
    }
}

/// The right to settle a batch, once.
struct Receipt {
    session: Arc<Session>,
    /// One for each delivery, with its tag; never empty.
    ackers: Vec<(u64, Acker)>,
    settled: bool,
}

impl Receipt {
    /// Acknowledges what is not kept: with one frame, which covers everything up to the last delivery. That is exactly this
    /// batch, because every delivery before it is settled: it is checked, since otherwise an ack would lose messages. Where
    /// anything is kept, from this batch or an earlier one, each delivery has a frame of its own.
    async fn ack_but(&mut self, kept: &[usize]) -> Result<Vec<Kept>, Lost> {
        let is_one_frame = self.check()? && kept.is_empty();
        let acks = async {
            if is_one_frame {
                return self.last().1.ack(BasicAckOptions { multiple: true }).await;
            }
            for (index, (_, acker)) in self.ackers.iter().enumerate() {
                if !kept.contains(&index) && !acker.ack(BasicAckOptions { multiple: false }).await? {
                    return Ok(false);
                }
            }
            Ok(true)
        };
        self.session.send(acks).await?;
        let kept = kept.iter().map(|&index| {
            let (tag, acker) = self.ackers[index].clone();
            self.session.kept().insert(tag);
            Kept { session: self.session.clone(), acker, tag, settled: false }
        });
        let kept = kept.collect();
        self.passed();
        Ok(kept)
    }

    async fn release(&mut self) -> Result<(), Lost> {
        let is_one_frame = self.check()?;
        let released = async {
            if is_one_frame {
                return self.last().1.nack(BasicNackOptions { multiple: true, requeue: true }).await;
            }
            for (_, acker) in &self.ackers {
                if !acker.nack(BasicNackOptions { multiple: false, requeue: true }).await? {
                    return Ok(false);
                }
            }
            Ok(true)
        };
        self.session.send(released).await?;
        self.passed();
        Ok(())
    }

    /// Whether one frame for everything up to the last delivery would cover this batch alone.
    fn check(&self) -> Result<bool, Lost> {
        if self.session.settled.load(Ordering::Acquire) + 1 != self.ackers[0].0 {
            return Err(Lost("an earlier batch is not settled".to_owned()));
        }
        Ok(self.session.kept().is_empty())
    }

    fn last(&self) -> &(u64, Acker) {
        &self.ackers[self.ackers.len() - 1]
    }

    fn passed(&mut self) {
        self.settled = true;
        self.session.settled.store(self.last().0, Ordering::Release);
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        if !self.settled {
            self.session.doubt();
        }
        self.session.forget(self.last().0);
    }
}

/// A delivery that is neither acknowledged nor given back, while others after it are settled. Dropped unsettled, its
/// connection is thrown away, and the broker delivers again whatever was not acknowledged on it.
pub struct Kept {
    session: Arc<Session>,
    acker: Acker,
    tag: u64,
    settled: bool,
}

impl Kept {
    /// Whether it can still be acknowledged. If not, it comes again.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.session.is_live()
    }

    /// Acknowledges it.
    ///
    /// # Errors
    /// As [`Batch::ack`].
    pub async fn ack(mut self) -> Result<(), Lost> {
        self.session.send(self.acker.ack(BasicAckOptions { multiple: false })).await?;
        self.settled = true;
        // Only now: before, an ack of a whole batch would have covered this one.
        self.session.kept().remove(&self.tag);
        Ok(())
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if !self.settled {
            self.session.doubt();
            // Otherwise a consumer that waits for its next delivery would not notice.
            self.session.link.cut();
        }
    }
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kept").field("live", &self.is_live()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receipt").field("live", &self.session.is_live()).finish_non_exhaustive()
    }
}

/// A batch could not be settled: its messages come again. Whatever was stored for them stays stored, and is recognised
/// by the command's `(source, id)`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not acknowledged, these messages will be delivered again: {0}")]
pub struct Lost(String);
