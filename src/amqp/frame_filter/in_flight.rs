//! The budget of bytes for deliveries in flight: delivered on a consumer's connection, and not released yet.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use futures_util::task::AtomicWaker;

/// How much of what was delivered on a consumer's connection may be in our hands, in bytes, before no more is read:
/// more than the commands of any usual batch.
pub(super) const IN_FLIGHT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// What was delivered over a connection and is not out of our hands yet. Counted from [`InFlight::limit`] on.
#[derive(Default)]
pub(in crate::amqp) struct InFlight {
    /// Delivery tags, and what each message weighs in bytes, in order.
    messages: Mutex<VecDeque<(u64, usize)>>,
    is_limited: AtomicBool,
    /// Who reads, while there is too much to read on.
    reader: AtomicWaker,
}

impl InFlight {
    /// From now on, no more is read than may be in hand. For a connection with one channel that consumes, whose owner
    /// says of each delivery when it is to [forget](Self::forget) it.
    pub(in crate::amqp) fn limit(&self) {
        self.is_limited.store(true, Ordering::Release);
    }

    /// This delivery and all before it are out of our hands.
    pub(in crate::amqp) fn forget(&self, tag: u64) {
        let mut messages = self.messages();
        while messages.front().is_some_and(|(first, _)| *first <= tag) {
            messages.pop_front();
        }
        drop(messages);
        self.reader.wake();
    }

    /// Whether no further delivery is read now.
    pub(in crate::amqp) fn is_full(&self) -> bool {
        self.messages().iter().map(|(_, bytes)| bytes).sum::<usize>() >= IN_FLIGHT_BYTES_MAX
    }

    pub(super) fn delivered(&self, tag: u64, bytes: usize) {
        if self.is_limited.load(Ordering::Acquire) {
            self.messages().push_back((tag, bytes.min(IN_FLIGHT_BYTES_MAX)));
        }
    }

    /// Wakes the reader once a delivery is released.
    pub(super) fn wake_reader(&self, waker: &Waker) {
        self.reader.register(waker);
    }

    fn messages(&self) -> MutexGuard<'_, VecDeque<(u64, usize)>> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
