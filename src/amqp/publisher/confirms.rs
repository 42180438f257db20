//! When the broker last confirmed messages: how a publisher recognises a node that accepts messages and serves nobody.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use crate::amqp::message::Outgoing;

/// The confirms of a publisher, over all its connections.
#[derive(Debug, Default)]
pub(super) struct Confirms {
    hasher: RandomState,
    last: Mutex<Last>,
}

#[derive(Debug, Default)]
struct Last {
    /// When a mandatory message was last confirmed.
    mandatory: Option<Instant>,
    /// When a message was last confirmed, by the hash of its exchange and routing key. Few: the types of events, and Offramp's queues.
    by_route: HashMap<u64, Instant>,
    /// The indexes of the addresses that were given up since, because nothing was confirmed over connections to them.
    silent_addresses: BTreeSet<usize>,
}

impl Confirms {
    /// Whether a confirm of this message can show that the node serves. A probe reaches no queue, and the queue of a reply may exist on one
    /// node alone.
    pub(super) fn prove(message: &Outgoing) -> bool {
        message.mandatory || !message.exchange.is_empty()
    }

    /// Records that `message` was confirmed, and not returned.
    pub(super) fn record(&self, message: &Outgoing, at: Instant) {
        if !Self::prove(message) {
            return;
        }
        let mut last = self.last();
        last.silent_addresses.clear();
        last.by_route.insert(self.route(message), at);
        if message.mandatory {
            last.mandatory = Some(at);
        }
    }

    /// Since when nothing is confirmed that shows that the node takes one of `waiting`, all sent at `sent`.
    ///
    /// A mandatory message shows it for all. Others do only for those with the same exchange and routing key: a node that is cut off from
    /// its cluster confirms by itself what no queue takes.
    pub(super) fn missing_since<'a>(&self, sent: Instant, waiting: impl Iterator<Item = &'a Outgoing>) -> Instant {
        let last = self.last();
        let since = |message| last.by_route.get(&self.route(message)).copied().max(last.mandatory).max(Some(sent));
        waiting.filter_map(since).min().unwrap_or(sent)
    }

    /// Records that a connection is given up because nothing was confirmed over it.
    pub(super) fn record_silence(&self, address: usize) {
        self.last().silent_addresses.insert(address);
    }

    /// How many addresses would have been silent since the last confirm, if `address` were, too.
    pub(super) fn silent_addresses_with(&self, address: usize) -> usize {
        let silent = &self.last().silent_addresses;
        silent.len() + usize::from(!silent.contains(&address))
    }

    fn route(&self, message: &Outgoing) -> u64 {
        self.hasher.hash_one((&message.exchange, &message.routing_key))
    }

    fn last(&self) -> MutexGuard<'_, Last> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_confirm_counts_for_its_route_and_a_mandatory_one_for_all() {
        let ended = &Outgoing::new("events", "subscription.ended", Vec::new());
        let rejected = &Outgoing::new("events", "command.rejected", Vec::new());
        let copy = &Outgoing::new("retry", "queue", Vec::new()).mandatory();
        let reply = &Outgoing::new("", "somebody's queue", Vec::new());
        let confirms = Confirms::default();
        let begin = Instant::now();
        let after = |seconds| begin + Duration::from_secs(seconds);
        let missing = |waiting: &[&Outgoing]| confirms.missing_since(begin, waiting.iter().copied());

        confirms.record(ended, after(1));
        assert_eq!(missing(&[ended]), after(1));
        assert_eq!(missing(&[ended, rejected]), begin);
        assert_eq!(missing(&[copy]), begin);

        confirms.record(reply, after(2));
        assert_eq!(missing(&[reply]), begin);

        confirms.record(copy, after(3));
        assert_eq!(missing(&[ended, rejected, copy]), after(3));
        assert_eq!(confirms.missing_since(after(4), [copy].into_iter()), after(4), "it was sent later");
    }

    #[test]
    fn addresses_are_silent_until_a_confirm_that_proves_something() {
        let confirms = Confirms::default();
        confirms.record_silence(1);
        confirms.record_silence(1);
        assert_eq!([0, 1, 2].map(|address| confirms.silent_addresses_with(address)), [2, 1, 2]);
        confirms.record(&Outgoing::new("", "probe", Vec::new()), Instant::now());
        assert_eq!(confirms.silent_addresses_with(0), 2);
        confirms.record(&Outgoing::new("", "queue", Vec::new()).mandatory(), Instant::now());
        assert_eq!(confirms.silent_addresses_with(0), 1);
    }
}
