//! The byte budget for deliveries in flight on a consumer's connection: delivered and not released yet.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use futures_util::task::AtomicWaker;

/// The most that may be in flight on a consumer's connection, in bytes, before reading pauses. More than the commands of
/// any usual batch.
pub(super) const IN_FLIGHT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The deliveries in flight on one connection. Counted only after [`InFlight::limit`].
#[derive(Default)]
pub(in crate::amqp) struct InFlight {
    /// Delivery tags in order, with the size of each message in bytes.
    messages: Mutex<VecDeque<(u64, usize)>>,
    is_limited: AtomicBool,
    /// The reader that waits for a release.
    reader: AtomicWaker,
}

impl InFlight {
    /// Limits the bytes in flight from now on. For a connection with one consuming channel, whose owner
    /// [releases](Self::release) every delivery.
    pub(in crate::amqp) fn limit(&self) {
        self.is_limited.store(true, Ordering::Release);
    }

    /// This delivery and all earlier ones are no longer in flight.
    pub(in crate::amqp) fn release(&self, tag: u64) {
        let mut messages = self.messages();
        while messages.front().is_some_and(|(first, _)| *first <= tag) {
            messages.pop_front();
        }
        drop(messages);
        self.reader.wake();
    }

    /// Whether the budget is used up.
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
