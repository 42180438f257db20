//! The pauses between attempts at what will succeed some day.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

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
}
