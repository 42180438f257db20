//! The pace at which a worker sends emails: one for all its connections.
//!
//! A server that says "slower" would otherwise be asked by every connection again and again. So the rate is halved when it
//! does, and grows with each accepted email, up to `OFFRAMP_MAIL_PER_SECOND`. (The crate `governor` limits to a rate that is
//! fixed when the limiter is made; this one changes with every reply.)

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// The lowest rate, in emails per second: someone must find out whether the server takes more again.
const RATE_MIN: f64 = 0.2;
/// A rate above this is no limit.
const RATE_MAX: f64 = 2_000.0;
/// How much an accepted email adds to the rate, as a part of it: well below the rate that was too high, and near or above it.
const GROWTH: (f64, f64) = (0.2, 0.005);
/// The rate is halved at most this often: replies to emails that were already under way say nothing new.
const CUT_EVERY: Duration = Duration::from_millis(250);
/// Over which time the rate is measured that a server found too high.
const MEASURE_OVER: Duration = Duration::from_secs(1);
/// How many emails in a row a server puts off, each for itself, before that counts as "slower".
const DEFERRED_IN_A_ROW_MAX: u32 = 5;

/// The shared pace.
#[derive(Debug)]
pub struct Pacer {
    state: Mutex<State>,
    /// Held by the one whose turn is next, while there is a limit.
    queue: tokio::sync::Mutex<()>,
}

/// The permission to send one email now. Dropped without [`Turn::take`], it is the next one's.
#[derive(Debug)]
pub struct Turn<'a> {
    pacer: &'a Pacer,
    next: Option<tokio::sync::MutexGuard<'a, ()>>,
}

impl Turn<'_> {
    /// Whether it is still one: it is not when it was had without a limit, and there is one now.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.next.is_some() || !self.pacer.is_limited()
    }

    /// An email is sent now.
    pub fn take(self) {
        self.pacer.state().take_turn(Instant::now());
    }
}

#[derive(Debug)]
struct State {
    ceiling: f64,
    /// In emails per second.
    rate: f64,
    /// When the next email may be sent.
    next: Instant,
    cut_at: Option<Instant>,
    /// The rate that was too high the last time.
    too_high: f64,
    deferred_in_a_row: u32,
    /// How many emails were sent since when.
    measured: (u32, Instant),
    /// The same of the time before: how many a second.
    before: f64,
}

impl Pacer {
    /// A pace of at most `per_second` emails.
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

    /// The same for an email in hand, beside those who wait for a turn and then for an email. Now and then one too many is
    /// sent therefore.
    pub async fn turn_aside(&self) -> Turn<'_> {
        self.wait().await;
        Turn { pacer: self, next: None }
    }

    async fn wait(&self) {
        // The pace may change meanwhile.
        loop {
            let until = self.state().wait_until(Instant::now());
            let Some(until) = until else { return };
            sleep_until(until).await;
        }
    }

    /// Whether there is a limit now.
    #[must_use]
    pub fn is_limited(&self) -> bool {
        self.state().rate.is_finite()
    }

    /// A server has accepted an email. Tells whether the rate is now the full one again.
    pub fn accepted(&self) -> bool {
        self.state().grow()
    }

    /// A server has put an email off that it may take at another time. Several in a row are a sign of too high a rate.
    pub fn deferred(&self) {
        self.state().deferred(Instant::now());
    }

    /// A server wants fewer emails. Tells whether the rate was the full one until now.
    pub fn throttled(&self) -> bool {
        self.state().cut(Instant::now())
    }

    /// How many emails may be sent in `time`, at the pace of now. None: there is no limit.
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
            next: now,
            cut_at: None,
            too_high: f64::INFINITY,
            deferred_in_a_row: 0,
            measured: (0, now),
            before: 0.0,
        }
    }

    fn grow(&mut self) -> bool {
        self.deferred_in_a_row = 0;
        if self.rate >= self.ceiling {
            return false;
        }
        let growth = if self.rate < 0.75 * self.too_high { GROWTH.0 } else { GROWTH.1 };
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

    /// Until when the next email has to wait, if it has to.
    fn wait_until(&self, now: Instant) -> Option<Instant> {
        (self.rate.is_finite() && self.next > now).then_some(self.next)
    }

    /// An email is sent.
    fn take_turn(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.measured.1);
        if elapsed >= MEASURE_OVER {
            self.before = f64::from(self.measured.0) / elapsed.as_secs_f64();
            self.measured = (0, now);
        }
        self.measured.0 += 1;
        if self.rate.is_finite() {
            self.next = self.next.max(now) + Duration::from_secs_f64(1.0 / self.rate);
        }
    }

    fn cut(&mut self, now: Instant) -> bool {
        self.deferred_in_a_row = 0;
        if self.cut_at.is_some_and(|at| now.saturating_duration_since(at) < CUT_EVERY) {
            return false;
        }
        self.cut_at = Some(now);
        let was_full = self.rate >= self.ceiling;
        let measured = self.before.max(f64::from(self.measured.0));
        let rate_min = RATE_MIN.min(self.ceiling);
        self.too_high = self.rate.min(measured.max(rate_min));
        self.rate = self.too_high / 2.0;
        if self.rate < rate_min {
            // The server accepts nothing, which says nothing about a rate.
            (self.rate, self.too_high) = (rate_min, f64::INFINITY);
        }
        self.next = self.next.max(now) + Duration::from_secs_f64(1.0 / self.rate);
        was_full
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    /// Asks a server for `seconds` at the pace; how many emails it accepted, and how many it did not.
    fn ask(state: &mut State, now: &mut Instant, seconds: u64, mut accepts: impl FnMut(Instant) -> bool) -> (u32, u32) {
        let end = *now + Duration::from_secs(seconds);
        let (mut accepted, mut throttled) = (0, 0);
        loop {
            // Eight connections and a server that replies in 5 ms can ask 1,600 times a second.
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
    fn without_a_limit_nobody_waits() {
        let mut now = Instant::now();
        let mut state = State::new(None, now);
        assert_eq!(ask(&mut state, &mut now, 1, |_| true), (1_599, 0));
    }

    #[test]
    fn the_ceiling_is_kept() {
        let mut now = Instant::now();
        let mut state = State::new(Some(10.0), now);
        let (accepted, _) = ask(&mut state, &mut now, 60, |_| true);
        assert!((595..=605).contains(&accepted), "{accepted}");
    }

    #[test]
    fn a_server_with_a_limit_is_asked_little_more_than_that() {
        let mut now = Instant::now();
        let mut state = State::new(None, now);
        let (mut second, mut in_second) = (now, 0);
        let (accepted, throttled) = ask(&mut state, &mut now, 120, |now| {
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
    fn a_server_that_accepts_nothing_is_asked_rarely_and_soon_used_again() {
        let mut now = Instant::now();
        let mut state = State::new(None, now);
        ask(&mut state, &mut now, 1, |_| true);
        let (_, throttled) = ask(&mut state, &mut now, 600, |_| false);
        assert!(throttled < 1_000, "{throttled}");
        ask(&mut state, &mut now, 60, |_| true);
        assert!(state.rate > 100.0, "{}", state.rate);
    }

    #[test]
    fn a_server_that_throttles_never_raises_the_rate_above_the_ceiling() {
        let mut now = Instant::now();
        let mut state = State::new(Some(0.05), now);
        ask(&mut state, &mut now, 600, |_| false);
        assert!(state.rate <= 0.05, "{}", state.rate);
    }

    #[tokio::test]
    async fn a_turn_that_nobody_took_is_the_next_ones() {
        // A second between two, so that a busy machine does not make one due.
        let pacer = Pacer::new(Some(1.0));
        pacer.turn().await.take();
        assert!(pacer.turn().now_or_never().is_none());
        drop(pacer.turn().await);
        pacer.turn().now_or_never().expect("a turn").take();
        assert!(pacer.turn().now_or_never().is_none());
    }

    #[tokio::test]
    async fn a_turn_without_a_limit_ends_with_the_first_one() {
        let pacer = Pacer::new(None);
        let turn = pacer.turn().await;
        assert!(turn.is_valid());
        pacer.throttled();
        assert!(!turn.is_valid());
    }

    #[tokio::test]
    async fn whoever_waits_for_an_email_holds_up_no_email_in_hand() {
        let pacer = Pacer::new(Some(100.0));
        let idle = pacer.turn().await;
        pacer.turn_aside().await.take();
        pacer.turn_aside().await.take();
        assert!(idle.is_valid());
    }

    #[test]
    fn emails_put_off_one_by_one_slow_nobody_down_unless_they_come_in_a_row() {
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
