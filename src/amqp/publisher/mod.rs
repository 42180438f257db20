//! Publishes persistent messages with publisher confirms, under one deadline. Composes no message.
//!
//! The publisher has its own connection: a broker low on memory stops reading from publishers, and acks on the same
//! connection would stop too.

mod attempt;
mod confirms;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Mutex as AsyncMutex, Semaphore};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

pub use self::attempt::PublishError;
use self::attempt::{Results, SILENT_SECONDS_MAX, Sent, Slot, is_any_nacked, is_object_missing, open, send};
use self::confirms::Confirms;
use super::connection::{Broker, BrokerError, Link, RECONNECT_DELAYS, count_connection};
use super::message::Outgoing;
use super::reply_code::ACCESS_REFUSED;
use super::rights;
use super::topology::Topology;
use crate::backoff::Backoff;
use crate::metrics::labels::ConnectionPurpose;
use crate::outage::{Outage, seconds};

/// The time from a call to its last confirm, in seconds, including reconnects.
pub const PUBLISH_SECONDS_MAX: u64 = 10;
/// The most concurrent calls. Each uses its own channel.
pub const CHANNELS_MAX: u32 = 16;
/// How long after the last silence the log says that messages are confirmed again. While one queue is silent, others are not.
const SILENCE_ENDS_AFTER: Duration = Duration::from_secs(30);
/// The problem of an open connection on which the broker does not read.
const BLOCKED: &str = "RabbitMQ blocks publishers: it is low on memory or disk";
/// The routing key of [`Publisher::status`]'s probe. No queue is bound to it, so the broker confirms and drops the probe.
const PROBE_KEY: &str = "offramp.probe.nobody-is-bound-to-this";

/// Publishes messages and waits for the broker's confirms. Cheap to clone. All clones share one connection, which is
/// opened by the first call and again, after any loss, by the next.
#[derive(Clone)]
pub struct Publisher(Arc<Inner>);

struct Inner {
    broker: Broker,
    /// Declared again if an object is missing.
    topology: Option<Topology>,
    calls: Semaphore,
    idle: Mutex<Vec<Slot>>,
    current: AsyncMutex<Current>,
    problem: Mutex<Option<String>>,
    confirms: Confirms,
    /// What the log was told of connections, of missing confirms, and of objects that are missing.
    outage: Outage,
    silence: Outage,
    undeclared: Outage,
    /// The exchanges that the user may not publish to, with RabbitMQ's words. Publishing to one again finds out whether that has changed.
    denied: Mutex<BTreeMap<String, String>>,
}

/// The connection, and the backoff after an attempt that has not led to a channel.
#[derive(Default)]
struct Current {
    link: Option<Arc<Link>>,
    backoff: Option<Backoff>,
}

impl Publisher {
    /// A publisher that is not connected yet.
    #[must_use]
    pub fn new(broker: Broker) -> Self {
        Self::build(broker, None)
    }

    /// A publisher for messages to objects of `topology`. If one is missing, it declares the whole topology again and
    /// republishes, within the same call. A queue deleted at run time therefore loses no message and stops nothing.
    #[must_use]
    pub fn declaring(broker: Broker, topology: Topology) -> Self {
        Self::build(broker, Some(topology))
    }

    /// A connected publisher, for callers that want to fail at once instead of retrying until the deadline of a call.
    ///
    /// # Errors
    /// As [`Broker::connect`].
    pub async fn connect(broker: Broker) -> Result<Self, BrokerError> {
        let link = broker.connect("publisher").await?;
        count_connection(ConnectionPurpose::Publisher);
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
            confirms: Confirms::default(),
            outage: Outage::default(),
            silence: Outage::default(),
            undeclared: Outage::default(),
            denied: Mutex::default(),
        }))
    }

    /// Publishes all messages, then waits for all confirms, for at most 10 seconds in total. Returns one result for each
    /// message, in order.
    ///
    /// A connection over which nothing is confirmed for 5 seconds is given up: the next call uses the next address. If all were tried, or
    /// there is only one, that happens when the time is up.
    ///
    /// `Ok` means that the broker has stored the message in every queue it is routed to (possibly none, unless it is
    /// mandatory). After [`PublishError::Unavailable`], the broker may have the message or not.
    pub async fn publish_all(&self, messages: &[Outgoing]) -> Vec<Result<(), PublishError>> {
        let deadline = Instant::now() + Duration::from_secs(PUBLISH_SECONDS_MAX);
        let mut results = Results(vec![None; messages.len()]);
        let problem = self.publish_until(deadline, messages, &mut results).await.err();
        if !messages.is_empty() {
            self.set_problem(problem.clone());
        }
        let problem = problem.unwrap_or_default();
        results
            .0
            .into_iter()
            .map(|result| result.unwrap_or_else(|| Err(PublishError::Unavailable(problem.clone()))))
            .collect()
    }

    /// Whether messages are being confirmed, for readiness.
    ///
    /// An idle publisher would never notice that a problem is over. While there is one, each call therefore publishes an
    /// empty message to no queue (in the background, within a Tokio runtime), and a later call returns the new status.
    ///
    /// # Errors
    /// Why the last call failed, or that the broker blocks publishers. Never contains a password.
    pub fn status(&self) -> Result<(), String> {
        // Locked while another call connects: then the recorded problem is all that is known.
        let blocked = self
            .0
            .current
            .try_lock()
            .is_ok_and(|current| current.link.as_ref().is_some_and(|link| link.is_live() && link.is_blocked()));
        let denied = self.denied().values().next().cloned();
        let problem = if blocked { Some(BLOCKED.to_owned()) } else { self.problem().or(denied) };
        if problem.is_some()
            && self.0.calls.available_permits() == CHANNELS_MAX as usize
            && let Ok(runtime) = Handle::try_current()
        {
            let publisher = self.clone();
            runtime.spawn(async move { publisher.publish_all(&[Outgoing::new("", PROBE_KEY, Vec::new())]).await });
        }
        problem.map_or(Ok(()), Err)
    }

    /// Checks every `every`, until `shutdown`, that the exchanges and bindings for other systems exist, and declares
    /// missing ones again.
    pub async fn keep_declared(self, every: Duration, shutdown: CancellationToken) {
        let Some(topology) = self.0.topology.clone() else {
            return shutdown.cancelled().await;
        };
        let mut may_bind = true;
        // Finds out at once whether the user may publish to the default exchange: dead letters, which are rare, need it.
        let probe = [Outgoing::new("", PROBE_KEY, Vec::new())];
        shutdown.run_until_cancelled(self.publish_all(&probe)).await;
        let unchecked = Outage::default();
        while shutdown.run_until_cancelled(sleep(every)).await.is_some() {
            let deadline = Instant::now() + Duration::from_secs(PUBLISH_SECONDS_MAX);
            let restoring = async {
                let link = self.link().await;
                // A blocked broker does not reply.
                if link.is_blocked() {
                    return Ok(Vec::new());
                }
                self.try_denied_exchanges(&link).await;
                topology.restore_on(&link, &mut may_bind).await
            };
            let restored = shutdown.run_until_cancelled(timeout_at(deadline, restoring)).await;
            match restored {
                Some(Ok(Ok(created))) if created.is_empty() => {
                    if unchecked.ended().is_some() {
                        tracing::info!("exchanges and bindings can be checked again");
                    }
                }
                Some(Ok(Ok(created))) => {
                    unchecked.ended();
                    tracing::warn!(?created, "exchanges were missing; declared again, with their bindings");
                }
                Some(Ok(Err(error))) => {
                    if unchecked.failed(&error.to_string()) {
                        tracing::warn!(%error, "cannot check exchanges and bindings; retrying");
                    }
                }
                // The broker is unavailable, which every call reports, or the process is shutting down.
                Some(Err(_)) | None => {}
            }
        }
    }

    /// Closes the connection once all calls in flight have ended. Later calls on clones fail.
    pub async fn close(self) {
        // All permits: no call is in flight. Calls end by their own deadlines.
        let _all = self.0.calls.acquire_many(CHANNELS_MAX).await;
        self.0.calls.close();
        self.idle().clear();
        if let Some(link) = self.0.current.lock().await.link.take() {
            link.close().await;
        }
    }

    /// Fills in the results it obtains. The error applies to all others.
    async fn publish_until(
        &self,
        deadline: Instant,
        messages: &[Outgoing],
        results: &mut Results,
    ) -> Result<(), String> {
        let late = || format!("no confirm within {PUBLISH_SECONDS_MAX} s");
        // At most one declaration per call: whatever is still missing after it is reported to the caller.
        let mut topology = self.0.topology.as_ref();
        let mut groups = VecDeque::from([(0..messages.len()).collect::<Vec<_>>()]);
        while let Some(group) = groups.pop_front().filter(|group| !group.is_empty()) {
            let acquiring = async {
                let permit = self.0.calls.acquire().await.map_err(|_| "this publisher is closed".to_owned())?;
                Ok::<_, String>((permit, self.slot().await?))
            };
            let (_permit, slot) =
                timeout_at(deadline, acquiring).await.map_err(|_| self.problem().unwrap_or_else(late))??;
            let sent = send(&slot, deadline, &self.0.confirms, messages, &group, results).await;
            if let Some(missing) =
                topology.take_if(|topology| is_object_missing(topology, &sent, messages, &group, results))
            {
                let declared = timeout_at(deadline, missing.declare_on(&slot.link)).await.map_err(|_| late())?;
                match declared {
                    Ok(declared) => {
                        self.0.undeclared.ended();
                        tracing::warn!(created = ?declared.created, "queues or exchanges were missing; declared again");
                        let unsent =
                            |index: &usize| matches!(results.0[*index], None | Some(Err(PublishError::Unroutable)));
                        let again: Vec<_> = group.iter().copied().filter(unsent).collect();
                        for &index in &again {
                            results.0[index] = None;
                        }
                        groups.push_front(again);
                        continue;
                    }
                    Err(error) => {
                        if self.0.undeclared.failed(&error.to_string()) {
                            tracing::error!(%error, "queues or exchanges are missing and cannot be declared; retrying");
                        }
                    }
                }
            }
            let is_confirmed = |index: &&usize| results.0[**index] == Some(Ok(()));
            self.confirmed(group.iter().filter(is_confirmed).map(|&index| &messages[index]));
            match sent {
                // RabbitMQ 3.10 keeps rejecting on a channel that once hit a full queue, even when the queue has room
                // again: the next attempt must use a new channel.
                Sent::Answered if is_any_nacked(&group, results) => self.idle().clear(),
                Sent::Answered => self.idle().push(slot),
                // One message may have closed the channel for all: publish each alone.
                Sent::ChannelClosed { .. } if group.len() > 1 => {
                    groups
                        .extend(group.into_iter().filter(|&index| results.0[index].is_none()).map(|index| vec![index]));
                }
                Sent::ChannelClosed { why, code } => {
                    if code == Some(ACCESS_REFUSED) {
                        let exchange = messages[group[0]].exchange.clone();
                        if self.denied().insert(exchange, why.clone()).is_none() {
                            tracing::error!(error = why, "RabbitMQ denies a right to publish; retrying");
                        }
                    }
                    results.0[group[0]] = Some(Err(PublishError::Nacked(why)));
                }
                Sent::Lost(why) => return Err(why),
                // Frames buffered on a blocked connection would be sent once it is unblocked, long after this call has
                // reported a failure.
                Sent::TimedOut | Sent::Silent if slot.link.is_blocked() => {
                    self.leave(&slot.link);
                    return Err(BLOCKED.to_owned());
                }
                Sent::TimedOut => return Err(late()),
                Sent::Silent => {
                    self.0.confirms.record_silence(slot.link.address_index());
                    if self.0.silence.failed(&slot.link.url()) {
                        let address = slot.link.url();
                        tracing::warn!(
                            address,
                            seconds = SILENT_SECONDS_MAX,
                            "RabbitMQ confirms nothing; reconnecting"
                        );
                    }
                    self.leave(&slot.link);
                    let is_late = Instant::now() >= deadline;
                    return Err(if is_late { late() } else { format!("no confirm for {SILENT_SECONDS_MAX} s") });
                }
            }
        }
        Ok(())
    }

    /// An idle channel, or a new one. Waits for a connection without a deadline.
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
                    self.set_problem(Some(error.to_string()));
                }
            }
        }
    }

    /// The connection. Connects if necessary, and retries without a deadline.
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
                    count_connection(ConnectionPurpose::Publisher);
                    if let Some(duration) = self.0.outage.ended() {
                        tracing::info!(unavailable_seconds = seconds(duration), "publisher connected again");
                    }
                    return current.link.insert(Arc::new(link)).clone();
                }
                Err(error) => {
                    if self.0.outage.failed(&error.to_string()) {
                        tracing::warn!(%error, "publisher not connected; retrying");
                    }
                    self.set_problem(Some(error.to_string()));
                }
            }
        }
    }

    fn denied(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.0.denied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds out whether the user may publish to denied exchanges by now: there may be nothing to publish to them for days.
    async fn try_denied_exchanges(&self, link: &Link) {
        let exchanges: Vec<String> = self.denied().keys().filter(|exchange| !exchange.is_empty()).cloned().collect();
        for exchange in exchanges {
            if rights::may_write(link, &exchange, PROBE_KEY).await == Ok(true)
                && self.denied().remove(&exchange).is_some()
            {
                tracing::info!(exchange, "RabbitMQ permits publishing again");
            }
        }
    }

    /// Ends a connection whose node does not serve, or not now. The next call begins with another address.
    fn leave(&self, link: &Link) {
        link.cut();
        self.idle().clear();
    }

    /// Records that messages were confirmed, so that the node serves, and the user may publish to their exchanges.
    fn confirmed<'a>(&self, messages: impl Iterator<Item = &'a Outgoing> + Clone) {
        if messages.clone().any(Confirms::prove)
            && let Some(duration) = self.0.silence.ended_after(SILENCE_ENDS_AFTER)
        {
            tracing::info!(unavailable_seconds = seconds(duration), "RabbitMQ confirms messages again");
        }
        let mut denied = self.denied();
        if denied.is_empty() {
            return;
        }
        for message in messages {
            if denied.remove(&message.exchange).is_some() {
                tracing::info!(exchange = message.exchange, "RabbitMQ permits publishing again");
            }
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Slot>> {
        self.0.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pop_idle(&self) -> Option<Slot> {
        self.idle().pop()
    }

    /// Records why the last call or attempt to connect failed; `None` after a success.
    fn set_problem(&self, problem: Option<String>) {
        *self.0.problem.lock().unwrap_or_else(PoisonError::into_inner) = problem;
    }

    fn problem(&self) -> Option<String> {
        self.0.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").field("broker", &self.0.broker).finish_non_exhaustive()
    }
}
