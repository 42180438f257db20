//! A channel with a consumer on it: whether it is usable, and which deliveries on it are settled.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lapin::Channel;
use tokio::time::timeout;

use super::connection::{Link, explain};

/// How long an ack may take to reach the network, in seconds.
const ACK_SECONDS_MAX: u64 = 5;
/// The problem of a channel that ended without an error.
pub(super) const CHANNEL_GONE: &str = "its channel is gone";
/// The problem of a channel whose consumer the broker ended.
pub(super) const CONSUMER_CANCELLED: &str =
    "RabbitMQ cancelled its consumer, as it does when a queue is deleted or a message is not acknowledged in time";

/// A channel with a consumer on it. A delivery can be acknowledged only on the channel that it came over.
pub(super) struct Session {
    pub(super) channel: Channel,
    pub(super) link: Arc<Link>,
    /// Something failed on it: nothing more is taken from it or acknowledged on it.
    failed: AtomicBool,
    /// Every delivery up to this tag is settled or set aside.
    settled_tag: AtomicU64,
    pub(super) ends: Arc<ConsumerEnds>,
    /// The tags of deliveries set aside: neither acknowledged nor returned, while later ones are settled.
    set_aside: Mutex<BTreeSet<u64>>,
}

/// How the consumers on a channel end.
#[derive(Default)]
pub(super) struct ConsumerEnds {
    /// How many consumers are about to end because we cancel them.
    expected: AtomicU32,
    /// The broker ended a consumer. The channel may still be open.
    cancelled: AtomicBool,
}

impl ConsumerEnds {
    pub(super) fn expect(&self) {
        self.expected.fetch_add(1, Ordering::AcqRel);
    }

    /// Records the end of a consumer. Returns whether it was expected.
    pub(super) fn ended(&self) -> bool {
        let one_less = |expected: u32| expected.checked_sub(1);
        let is_expected = self.expected.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_less).is_ok();
        if !is_expected {
            self.cancelled.store(true, Ordering::Release);
        }
        is_expected
    }
}

impl Session {
    pub(super) fn new(channel: Channel, link: Arc<Link>, ends: Arc<ConsumerEnds>) -> Self {
        let (failed, settled_tag) = (AtomicBool::new(false), AtomicU64::new(0));
        Self { channel, link, failed, settled_tag, ends, set_aside: Mutex::default() }
    }

    pub(super) fn is_live(&self) -> bool {
        self.problem().is_none()
    }

    /// Why nothing more can be acknowledged on it.
    pub(super) fn problem(&self) -> Option<&'static str> {
        let is_gone = self.failed.load(Ordering::Acquire) || !self.channel.status().connected() || !self.link.is_live();
        let is_cancelled = || self.ends.cancelled.load(Ordering::Acquire);
        if is_gone { Some(CHANNEL_GONE) } else { is_cancelled().then_some(CONSUMER_CANCELLED) }
    }

    /// Marks it as failed.
    pub(super) fn fail(&self) {
        self.failed.store(true, Ordering::Release);
    }

    /// Every delivery up to this tag is settled or set aside.
    pub(super) fn settled_tag(&self) -> u64 {
        self.settled_tag.load(Ordering::Acquire)
    }

    pub(super) fn set_settled_tag(&self, tag: u64) {
        self.settled_tag.store(tag, Ordering::Release);
    }

    /// Deliveries up to this tag no longer count as in flight.
    pub(super) fn release_budget(&self, tag: u64) {
        self.link.in_flight().release(tag);
    }

    /// The tags of deliveries set aside.
    pub(super) fn set_aside(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.set_aside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends acks, under a deadline.
    pub(super) async fn send(&self, acks: impl Future<Output = lapin::Result<bool>>) -> Result<(), AckLost> {
        if let Some(problem) = self.problem() {
            return Err(AckLost(problem.to_owned()));
        }
        let sent = tokio::select! {
            biased;
            done = timeout(Duration::from_secs(ACK_SECONDS_MAX), acks) => done,
            () = self.link.lost() => return Err(AckLost("the connection was lost".to_owned())),
        };
        match sent {
            Ok(Ok(true)) => Ok(()),
            Ok(Ok(false)) => {
                self.fail();
                Err(AckLost(CHANNEL_GONE.to_owned()))
            }
            Ok(Err(error)) => {
                self.fail();
                Err(AckLost(explain(&error)))
            }
            Err(_) => {
                self.link.cut();
                Err(AckLost(format!("not sent within {ACK_SECONDS_MAX} s")))
            }
        }
    }
}

/// Why deliveries could not be acknowledged. The broker will deliver them again. Effects that are stored stay stored: the repeat is
/// recognised by the command's `(source, id)`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not acknowledged, these messages will be delivered again: {0}")]
pub struct AckLost(pub(super) String);
