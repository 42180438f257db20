//! When the broker last confirmed messages: how a publisher recognises a node that accepts them and serves nobody.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use crate::amqp::message::Outgoing;

/// When messages were last confirmed, over any connection of a publisher.
#[derive(Debug, Default)]
pub(super) struct LastConfirms(Mutex<Instants>);

#[derive(Clone, Copy, Debug, Default)]
struct Instants {
    any: Option<Instant>,
    mandatory: Option<Instant>,
}

impl LastConfirms {
    /// Records that `message` was confirmed.
    pub(super) fn confirmed(&self, message: &Outgoing, at: Instant) {
        let mut last = self.lock();
        last.any = Some(at);
        if message.mandatory {
            last.mandatory = Some(at);
        }
    }

    /// When a message was last confirmed that counts for those in `waiting`, which were sent at `sent`; `sent` if none was since.
    ///
    /// While mandatory messages wait, only mandatory ones count. A node that is cut off from its cluster confirms others by itself if no
    /// queue takes them.
    pub(super) fn since<'a>(&self, sent: Instant, mut waiting: impl Iterator<Item = &'a Outgoing>) -> Instant {
        let last = *self.lock();
        let counts = if waiting.any(|message| message.mandatory) { last.mandatory } else { last.any };
        counts.map_or(sent, |last| last.max(sent))
    }

    fn lock(&self) -> MutexGuard<'_, Instants> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_mandatory_messages_count_while_one_waits() {
        let event = &Outgoing::new("events", "subscription.ended", Vec::new());
        let copy = &Outgoing::new("", "queue", Vec::new()).mandatory();
        let last = LastConfirms::default();
        let begin = Instant::now();
        let after = |seconds| begin + Duration::from_secs(seconds);
        assert_eq!(last.since(begin, [event].into_iter()), begin);

        last.confirmed(event, after(1));
        assert_eq!(last.since(begin, [event].into_iter()), after(1));
        assert_eq!(last.since(begin, [event, copy].into_iter()), begin);

        last.confirmed(copy, after(2));
        assert_eq!(last.since(begin, [event].into_iter()), after(2));
        assert_eq!(last.since(begin, [event, copy].into_iter()), after(2));
        assert_eq!(last.since(after(3), [copy].into_iter()), after(3), "it was sent later");
    }
}
