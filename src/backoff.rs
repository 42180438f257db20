//! Exponential backoff with jitter, for operations that are retried until they succeed.
//!
//! The jitter spreads retries, so that workers do not all return to a server at the same moment.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

/// The number of attempts after which [`Backoff::delay_after`] no longer grows, whatever its limits.
const ATTEMPTS_MAX: usize = 20;

/// The delays of one retry loop. They never run out.
#[derive(Debug)]
pub struct Backoff {
    delays: ExponentialBackoff,
    max: Duration,
}

impl Backoff {
    /// Delays that double from `min` up to `max`, plus up to 100 % jitter.
    #[must_use]
    pub fn new((min, max): (Duration, Duration)) -> Self {
        let builder = ExponentialBuilder::default().with_min_delay(min).with_max_delay(max);
        Self { delays: builder.without_max_times().with_jitter().build(), max }
    }

    /// The delay after attempt number `attempts`, counted from 0 by the caller: doubles from `min` up to `max`, plus up to
    /// 25 % jitter.
    #[must_use]
    pub fn delay_after(attempts: i32, (min, max): (Duration, Duration)) -> Duration {
        let builder = ExponentialBuilder::default().with_min_delay(min).with_max_delay(max);
        let attempts = usize::try_from(attempts).unwrap_or(0).min(ATTEMPTS_MAX);
        let delay = builder.without_max_times().build().nth(attempts).unwrap_or(max);
        delay.mul_f64(1.0 + fastrand::f64() / 4.0)
    }

    pub fn next_delay(&mut self) -> Duration {
        self.delays.next().unwrap_or(self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_and_never_run_out() {
        let (min, max) = (Duration::from_millis(100), Duration::from_millis(1_500));
        let mut backoff = Backoff::new((min, max));
        assert!(backoff.next_delay() <= 2 * min);
        for _ in 0..1_000 {
            let delay = backoff.next_delay();
            assert!(delay >= min && delay <= 2 * max, "{delay:?}");
        }
        assert!(backoff.next_delay() >= max);
    }

    #[test]
    fn delay_after_doubles_from_min_to_max() {
        let (min, max) = (Duration::from_secs(2), Duration::from_secs(8));
        for (attempts, seconds) in [(-1, 2), (0, 2), (1, 4), (2, 8), (3, 8), (1_000, 8), (i32::MAX, 8)] {
            let (delay, base) = (Backoff::delay_after(attempts, (min, max)), Duration::from_secs(seconds));
            assert!(delay >= base && delay <= base.mul_f64(1.25), "{attempts}: {delay:?}");
        }
    }
}
