//! The rate limiter for emails, shared by all connections of a worker to the mail server.
//!
//! The rate is halved when the server throttles, and grows with each accepted email, up to `OFFRAMP_MAIL_PER_SECOND`. Without
//! a shared rate, each connection would find out for itself, again and again. (The crate `governor` has a fixed rate; this one
//! changes with every reply.)

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// The lowest rate, in emails per second: some emails must find out whether the server accepts more again.
const RATE_MIN: f64 = 0.2;
/// A rate above this, in emails per second, counts as unlimited.
const RATE_MAX: f64 = 2_000.0;
/// The growth of the rate with each accepted email, while it is well below the rate that was too high.
const GROWTH_FAR: f64 = 0.2;
/// The same, near that rate or above it.
const GROWTH_NEAR: f64 = 0.005;
/// The shortest time between two cuts of the rate: replies to emails that were already in flight say nothing new.
const CUT_EVERY: Duration = Duration::from_millis(250);
/// The period over which the actual rate is measured: it is what a server found too high.
const MEASURE_OVER: Duration = Duration::from_secs(1);
/// How many emails in a row must be deferred, each for a reason of its own, to count as throttling.
const DEFERRED_IN_A_ROW_MAX: u32 = 5;

/// The shared rate limiter.
#[derive(Debug)]
pub struct Pacer {
    state: Mutex<State>,
    /// Held by the connection that waits for the next turn, while there is a limit.
    queue: tokio::sync::Mutex<()>,
}

/// The permission to send one email now. Dropped without [`Turn::take`], it passes to the next connection.
#[derive(Debug)]
pub struct Turn<'a> {
    pacer: &'a Pacer,
    next: Option<tokio::sync::MutexGuard<'a, ()>>,
}

impl Turn<'_> {
    /// Whether it is still a permission. It is not if it was given without a limit and there is one now.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.next.is_some() || !self.pacer.is_limited()
    }

    /// Uses the turn: an email is being sent.
    pub fn take(self) {
        self.pacer.state().take_turn(Instant::now());
    }
}

#[derive(Debug)]
struct State {
    /// The highest rate, in emails per second.
    ceiling: f64,
    /// The current rate, in emails per second. Infinite: unlimited.
    rate: f64,
    /// When the next email may be sent.
    next_at: Instant,
    cut_at: Option<Instant>,
    /// The last rate that was too high, in emails per second.
    too_high: f64,
    deferred_in_a_row: u32,
    /// The number of emails sent since an instant.
    measured: (u32, Instant),
    /// The rate measured in the period before that, in emails per second.
    measured_before: f64,
}

impl Pacer {
    /// At most `per_second` emails; `None` means unlimited.
    #[must_use]
    pub fn new(per_second: Option<f64>) -> Self {
        Self { state: Mutex::new(State::new(per_second, Instant::now())), queue: tokio::sync::Mutex::default() }
    }

    /// Waits until one more email may be sent.
    pub async fn turn(&self) -> Turn<'_> {
        if !self.is_limited() {
            return Turn { pacer: self, next: None };
        }
        let next = self.queue.lock().await;
        self.wait().await;
        Turn { pacer: self, next: Some(next) }
    }

    /// The same for an email that was already taken from the queue. It does not queue behind connections that wait for a turn
    /// first and an email second, so the rate may be exceeded by one email now and then.
    pub async fn turn_aside(&self) -> Turn<'_> {
        self.wait().await;
        Turn { pacer: self, next: None }
    }

    async fn wait(&self) {
        // The rate may change meanwhile.
        loop {
            let until = self.state().wait_until(Instant::now());
            let Some(until) = until else { return };
            sleep_until(until).await;
        }
    }

    /// Whether the rate is limited at the moment.
    #[must_use]
    pub fn is_limited(&self) -> bool {
        self.state().rate.is_finite()
    }

    /// Records that the server accepted an email. Returns whether the rate has just become the full one again.
    pub fn accepted(&self) -> bool {
        self.state().grow()
    }

    /// Records that the server deferred an email. Several in a row are a sign of too high a rate.
    pub fn deferred(&self) {
        self.state().deferred(Instant::now());
    }

    /// Records that the server throttles. Returns whether the rate was the full one until now.
    pub fn throttled(&self) -> bool {
        self.state().cut(Instant::now())
    }

    /// How many emails may be sent in `time` at the current rate; `None` means unlimited.
    #[must_use]
    pub fn allowance(&self, time: Duration) -> Option<usize> {
        let rate = self.state().rate;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small positive number")]
        rate.is_finite().then(|| (rate * time.as_secs_f64()).min(1e6) as usize)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn new(per_second: Option<f64>, now: Instant) -> Self {
        let ceiling = per_second.unwrap_or(f64::INFINITY);
        Self {
            ceiling,
            rate: ceiling,
            next_at: now,
            cut_at: None,
            too_high: f64::INFINITY,
            deferred_in_a_row: 0,
            measured: (0, now),
            measured_before: 0.0,
        }
    }

    fn grow(&mut self) -> bool {
        self.deferred_in_a_row = 0;
        if self.rate >= self.ceiling {
            return false;
        }
        let growth = if self.rate < 0.75 * self.too_high { GROWTH_FAR } else { GROWTH_NEAR };
        self.rate *= 1.0 + growth;
        let is_full = self.rate >= self.ceiling.min(RATE_MAX);
        if is_full {
            self.rate = self.ceiling;
        }
        is_full
    }

    fn deferred(&mut self, now: Instant) {
        self.deferred_in_a_row += 1;
        if self.deferred_in_a_row >= DEFERRED_IN_A_ROW_MAX {
            self.cut(now);
        }
    }

    /// The instant until which the next email must wait, if it must.
    fn wait_until(&self, now: Instant) -> Option<Instant> {
        (self.rate.is_finite() && self.next_at > now).then_some(self.next_at)
    }

    /// Records that an email is being sent.
    fn take_turn(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.measured.1);
        if elapsed >= MEASURE_OVER {
            self.measured_before = f64::from(self.measured.0) / elapsed.as_secs_f64();
            self.measured = (0, now);
        }
        self.measured.0 += 1;
        if self.rate.is_finite() {
            self.next_at = self.next_at.max(now) + Duration::from_secs_f64(1.0 / self.rate);
        }
    }

    fn cut(&mut self, now: Instant) -> bool {
        self.deferred_in_a_row = 0;
        if self.cut_at.is_some_and(|at| now.saturating_duration_since(at) < CUT_EVERY) {
            return false;
        }
        self.cut_at = Some(now);
        let was_full = self.rate >= self.ceiling;
        let measured = self.measured_before.max(f64::from(self.measured.0));
        let rate_min = RATE_MIN.min(self.ceiling);
        self.too_high = self.rate.min(measured.max(rate_min));
        self.rate = self.too_high / 2.0;
        if self.rate < rate_min {
            // The server accepts nothing: that says nothing about a rate.
            (self.rate, self.too_high) = (rate_min, f64::INFINITY);
        }
        self.next_at = self.next_at.max(now) + Duration::from_secs_f64(1.0 / self.rate);
        was_full
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    /// Sends emails to a simulated server for `seconds`. Returns how many it accepted, and how many it throttled.
    fn send_for(
        state: &mut State,
        now: &mut Instant,
        seconds: u64,
        mut accepts: impl FnMut(Instant) -> bool,
    ) -> (u32, u32) {
        let end = *now + Duration::from_secs(seconds);
        let (mut accepted, mut throttled) = (0, 0);
        loop {
            // Eight connections and a server that replies in 5 ms allow 1,600 emails a second.
            let earliest = *now + Duration::from_micros(625);
            *now = state.wait_until(*now).unwrap_or(*now).max(earliest);
            if *now >= end {
                return (accepted, throttled);
            }
            state.take_turn(*now);
            if accepts(*now) {
                accepted += 1;
                state.grow();
            } else {
                throttled += 1;
                state.cut(*now);
            }
        }
    }

    #[test]
    fn without_a_limit_no_email_waits() {
        let mut now = Instant::now();
        let mut state = State::new(None, now);
        assert_eq!(send_for(&mut state, &mut now, 1, |_| true), (1_599, 0));
    }

    #[test]
    fn rate_stays_below_the_ceiling() {
        let mut now = Instant::now();
        let mut state = State::new(Some(10.0), now);
        let (accepted, _) = send_for(&mut state, &mut now, 60, |_| true);
        assert!((595..=605).contains(&accepted), "{accepted}");
    }

    #[test]
    fn rate_approaches_the_limit_of_a_server() {
        let mut now = Instant::now();
        let mut state = State::new(None, now);
        let (mut second, mut in_second) = (now, 0);
        let (accepted, throttled) = send_for(&mut state, &mut now, 120, |now| {
            if now.duration_since(second) >= Duration::from_secs(1) {
                (second, in_second) = (now, 0);
            }
            in_second += 1;
            in_second <= 14
        });
        assert!(accepted > 120 * 14 * 6 / 10, "{accepted} accepted, {throttled} throttled");
        assert!(throttled < accepted / 20, "{accepted} accepted, {throttled} throttled");
    }

    #[test]
    fn rate_recovers_after_a_server_accepted_nothing() {
        let mut now = Instant::now();
        let mut state = State::new(None, now);
        send_for(&mut state, &mut now, 1, |_| true);
        let (_, throttled) = send_for(&mut state, &mut now, 600, |_| false);
        assert!(throttled < 1_000, "{throttled}");
        send_for(&mut state, &mut now, 60, |_| true);
        assert!(state.rate > 100.0, "{}", state.rate);
    }

    #[test]
    fn throttling_never_raises_the_rate_above_a_low_ceiling() {
        let mut now = Instant::now();
        let mut state = State::new(Some(0.05), now);
        send_for(&mut state, &mut now, 600, |_| false);
        assert!(state.rate <= 0.05, "{}", state.rate);
    }

    #[tokio::test]
    async fn unused_turn_passes_to_the_next_email() {
        // A second between two turns, so that a slow machine does not make one due.
        let pacer = Pacer::new(Some(1.0));
        pacer.turn().await.take();
        assert!(pacer.turn().now_or_never().is_none());
        drop(pacer.turn().await);
        pacer.turn().now_or_never().expect("a turn").take();
        assert!(pacer.turn().now_or_never().is_none());
    }

    #[tokio::test]
    async fn unlimited_turn_becomes_invalid_when_a_limit_begins() {
        let pacer = Pacer::new(None);
        let turn = pacer.turn().await;
        assert!(turn.is_valid());
        pacer.throttled();
        assert!(!turn.is_valid());
    }

    #[tokio::test]
    async fn turn_that_waits_for_an_email_does_not_delay_emails_already_taken() {
        let pacer = Pacer::new(Some(100.0));
        let idle = pacer.turn().await;
        pacer.turn_aside().await.take();
        pacer.turn_aside().await.take();
        assert!(idle.is_valid());
    }

    #[test]
    fn only_deferrals_in_a_row_count_as_throttling() {
        let now = Instant::now();
        let mut state = State::new(None, now);
        for _ in 0..100 {
            state.deferred(now);
            state.grow();
        }
        assert!(state.rate.is_infinite());
        for _ in 0..DEFERRED_IN_A_ROW_MAX {
            state.deferred(now);
        }
        assert!(state.rate.is_finite());
    }
}
