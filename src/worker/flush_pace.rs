//! When the marker may begin its next flush: soon after an email was sent, and seldom under load.
//!
//! An email whose mark has not reached the database is sent again if this process is killed, so its flush should begin at once. But small
//! flushes cost MongoDB much, so under load many entries must share one. Emails come in bursts: those of a batch of commands within a few
//! milliseconds. So a few flushes may follow each other closely after a quiet time.

use std::time::Duration;

use tokio::time::Instant;

/// The time from the beginning of one flush to the next under steady load.
const INTERVAL: Duration = Duration::from_millis(20);
/// The same in a burst.
const BURST_INTERVAL: Duration = Duration::from_millis(3);
/// How far ahead of one flush per [`INTERVAL`] a burst may get before it has to wait.
const AHEAD_MAX: Duration = Duration::from_millis(40);

/// When flushes began, as far as the next one depends on it.
pub(super) struct FlushPace {
    last_began_at: Instant,
    /// How far ahead of one flush per [`INTERVAL`] the marker was once the last one had begun.
    ahead: Duration,
}

impl FlushPace {
    pub(super) fn new(now: Instant) -> Self {
        Self { last_began_at: now, ahead: Duration::ZERO }
    }

    /// When the next flush may begin. One of events alone is never part of a burst: an event may be repeated, as it has the same id.
    pub(super) fn next(&self, has_emails: bool) -> Instant {
        let interval = if has_emails { BURST_INTERVAL.max(self.ahead.saturating_sub(AHEAD_MAX)) } else { INTERVAL };
        self.last_began_at + interval
    }

    /// Records that a flush begins.
    pub(super) fn begin(&mut self, now: Instant) {
        self.ahead = self.ahead.saturating_sub(now - self.last_began_at) + INTERVAL;
        self.last_began_at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When flushes begin, in milliseconds from the first on, if there is always an email to mark.
    fn beginnings(pace: &mut FlushPace, first: Instant, count: usize) -> Vec<u128> {
        let mut now = first;
        let beginning = |_| {
            now = now.max(pace.next(true));
            pace.begin(now);
            (now - first).as_millis()
        };
        (0..count).map(beginning).collect()
    }

    #[test]
    fn a_burst_of_emails_is_marked_in_small_flushes_and_steady_load_in_large_ones() {
        let start = Instant::now();
        let mut pace = FlushPace::new(start);
        assert_eq!(beginnings(&mut pace, start + INTERVAL, 6), [0, 3, 6, 20, 40, 60]);
        let after_a_pause = start + Duration::from_secs(1);
        assert_eq!(beginnings(&mut pace, after_a_pause, 6), [0, 3, 6, 20, 40, 60]);
    }

    #[test]
    fn a_flush_of_events_alone_waits_for_a_whole_interval() {
        let start = Instant::now();
        let mut pace = FlushPace::new(start);
        pace.begin(start);
        assert_eq!(pace.next(false), start + INTERVAL);
        assert_eq!(pace.next(true), start + BURST_INTERVAL);
    }
}
