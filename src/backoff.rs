//! The pauses between attempts at what will succeed some day.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

/// From here on [`Pauses::after`] does not grow any more.
const ATTEMPTS_MAX: usize = 20;

/// Pauses that grow, each with a random part, so that many workers do not come back at once. There is always a next one.
#[derive(Debug)]
pub struct Pauses {
    growing: ExponentialBackoff,
    longest: Duration,
}

impl Pauses {
    /// From the first to the longest, doubling; up to as much again is added to each.
    #[must_use]
    pub fn between((first, longest): (Duration, Duration)) -> Self {
        let builder = ExponentialBuilder::default().with_min_delay(first).with_max_delay(longest);
        Self { growing: builder.without_max_times().with_jitter().build(), longest }
    }

    /// The pause after the attempt number `attempts` (from 0), for attempts that are counted elsewhere: doubling from the first
    /// to the longest; up to a quarter is added.
    #[must_use]
    pub fn after(attempts: i32, (first, longest): (Duration, Duration)) -> Duration {
        let builder = ExponentialBuilder::default().with_min_delay(first).with_max_delay(longest);
        let attempts = usize::try_from(attempts).unwrap_or(0).min(ATTEMPTS_MAX);
        let pause = builder.without_max_times().build().nth(attempts).unwrap_or(longest);
        pause.mul_f64(1.0 + fastrand::f64() / 4.0)
    }

    /// How long to wait this time.
    pub fn next_pause(&mut self) -> Duration {
        self.growing.next().unwrap_or(self.longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_grow_and_never_end() {
        let (first, longest) = (Duration::from_millis(100), Duration::from_millis(1_500));
        let mut pauses = Pauses::between((first, longest));
        assert!(pauses.next_pause() <= 2 * first);
        for _ in 0..1_000 {
            let pause = pauses.next_pause();
            assert!(pause >= first && pause <= 2 * longest, "{pause:?}");
        }
        assert!(pauses.next_pause() >= longest);
    }

    #[test]
    fn counted_attempts_have_the_same_growth() {
        let (first, longest) = (Duration::from_secs(2), Duration::from_secs(8));
        for (attempts, seconds) in [(-1, 2), (0, 2), (1, 4), (2, 8), (3, 8), (1_000, 8), (i32::MAX, 8)] {
            let (pause, base) = (Pauses::after(attempts, (first, longest)), Duration::from_secs(seconds));
            assert!(pause >= base && pause <= base.mul_f64(1.25), "{attempts}: {pause:?}");
        }
    }
}
