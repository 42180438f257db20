//! When the marker may begin its next flush: soon after an email was sent, and seldom under load.
//!
//! An email whose mark has not reached the database is sent again if this process is killed, so its flush should begin at once. But small
//! flushes cost MongoDB much, so under load many entries must share one. Emails come in bursts: those of a batch of commands within a few
//! milliseconds. So after a quiet time, a few flushes may follow each other closely.

use std::time::Duration;

use tokio::time::Instant;

/// The time from the beginning of one flush to the next under steady load, and always if the next one is of events alone: an event may be
/// repeated, as it has the same id.
const INTERVAL: Duration = Duration::from_millis(20);
/// The same in a burst of emails.
const BURST_INTERVAL: Duration = Duration::from_millis(3);
/// A flush with emails uses up one [`INTERVAL`]. This is how much the flushes of a burst may use in advance before the next one has to wait.
const ADVANCE: Duration = Duration::from_millis(40);

/// When flushes began, as far as the next one depends on it.
pub(super) struct FlushPace {
    last_began_at: Instant,
    /// How much of the time after the last beginning is used up.
    used: Duration,
}

impl FlushPace {
    pub(super) fn new(now: Instant) -> Self {
        Self { last_began_at: now, used: Duration::ZERO }
    }

    /// When the next flush may begin.
    pub(super) fn next(&self, has_emails: bool) -> Instant {
        let interval = if has_emails { BURST_INTERVAL.max(self.used.saturating_sub(ADVANCE)) } else { INTERVAL };
        self.last_began_at + interval
    }

    /// Records that a flush begins, not before [`Self::next`].
    pub(super) fn begin(&mut self, now: Instant, has_emails: bool) {
        self.used = self.used.saturating_sub(now - self.last_began_at);
        if has_emails {
            self.used += INTERVAL;
        }
        self.last_began_at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When flushes begin, in milliseconds from the first on, if there is always an email to mark.
    fn beginnings(pace: &mut FlushPace, first: Instant) -> [u128; 6] {
        let mut now = first;
        [(); 6].map(|()| {
            now = now.max(pace.next(true));
            pace.begin(now, true);
            (now - first).as_millis()
        })
    }

    #[test]
    fn a_burst_of_emails_is_marked_in_small_flushes_and_steady_load_in_large_ones() {
        let start = Instant::now();
        let mut pace = FlushPace::new(start);
        assert_eq!(beginnings(&mut pace, start + INTERVAL), [0, 3, 6, 20, 40, 60]);
        assert_eq!(beginnings(&mut pace, start + Duration::from_secs(1)), [0, 3, 6, 20, 40, 60]);
    }

    #[test]
    fn flushes_of_events_alone_are_an_interval_apart_and_leave_room_for_a_burst_of_emails() {
        let start = Instant::now();
        let mut pace = FlushPace::new(start);
        beginnings(&mut pace, start + INTERVAL);
        for _ in 0..5 {
            let next = pace.next(false);
            assert_eq!(next, pace.last_began_at + INTERVAL);
            pace.begin(next, false);
        }
        let next = pace.next(true);
        assert_eq!(beginnings(&mut pace, next), [0, 3, 6, 20, 40, 60]);
    }
}
