//! An outage as the log tells it: each reason once, and its end with its duration. Nothing is logged here.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How many different reasons of one outage are reported. An error that differs each time would fill the log.
const REASONS_MAX: usize = 20;

/// Whether something has failed since it last worked, and which reasons were reported.
#[derive(Debug, Default)]
pub struct Outage(Mutex<Option<Ongoing>>);

#[derive(Debug)]
struct Ongoing {
    since: Instant,
    /// When it failed last.
    last: Instant,
    reasons: HashSet<String>,
}

impl Outage {
    /// Records a failure. Returns whether it should be reported: nobody was told this reason since the outage began.
    pub fn failed(&self, reason: &str) -> bool {
        let mut ongoing = self.lock();
        let now = Instant::now();
        let outage = ongoing.get_or_insert_with(|| Ongoing { since: now, last: now, reasons: HashSet::new() });
        outage.last = now;
        outage.reasons.len() < REASONS_MAX && outage.reasons.insert(reason.to_owned())
    }

    /// Records that it works. Returns for how long it had failed, if it had.
    pub fn ended(&self) -> Option<Duration> {
        self.lock().take().map(|outage| outage.since.elapsed())
    }

    /// Records that something works. The outage ends if nothing has failed for `quiet`: where several operations share an outage,
    /// some may work while others fail. Returns for how long it had failed.
    pub fn ended_after(&self, quiet: Duration) -> Option<Duration> {
        let mut ongoing = self.lock();
        let outage = ongoing.take_if(|outage| outage.last.elapsed() >= quiet)?;
        Some(outage.last - outage.since)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Ongoing>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Seconds with one decimal, as log lines have them.
#[must_use]
pub fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_reported_once_and_the_end_says_how_long() {
        let outage = Outage::default();
        assert_eq!(outage.ended(), None);
        assert!(outage.failed("refused"));
        assert!(!outage.failed("refused"));
        assert!(outage.failed("no primary"));
        assert!(!outage.failed("refused"), "known, although it has alternated");
        assert!(outage.ended().is_some());
        assert_eq!(outage.ended(), None);
        assert!(outage.failed("refused"), "a new outage");
    }

    #[test]
    fn a_shared_outage_ends_when_nothing_has_failed_for_a_while() {
        const LONG: Duration = Duration::from_secs(3_600);
        let outage = Outage::default();
        assert_eq!(outage.ended_after(Duration::ZERO), None);
        assert!(outage.failed("denied"));
        assert_eq!(outage.ended_after(LONG), None, "it has just failed");
        assert!(!outage.failed("denied"), "still the same outage");
        assert!(outage.ended_after(Duration::ZERO).is_some());
        assert!(outage.failed("denied"), "a new outage");
    }

    #[test]
    fn seconds_have_one_decimal() {
        assert!((seconds(Duration::from_millis(90_149)) - 90.1).abs() < 1e-9);
    }

    #[test]
    fn changing_reasons_do_not_fill_the_log() {
        let outage = Outage::default();
        let reported = (0..1_000).filter(|attempt| outage.failed(&format!("attempt {attempt}"))).count();
        assert_eq!(reported, REASONS_MAX);
    }
}
