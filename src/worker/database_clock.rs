//! MongoDB's clock, as far as this worker knows it. Decisions and leases go by it, so that workers agree on the time although
//! the clocks of their machines differ.
//!
//! Between two comparisons it runs with the machine's monotonic clock, which nobody can set. Nothing is asked of the server
//! here: see [`Availability`](super::availability::Availability).

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::clock;
use crate::store::server::ServerTime;

/// The part of a lease by which this machine's clock may differ from MongoDB's: a quarter. Workers of earlier versions go
/// by their own clocks, and half of a lease must remain when they begin to send.
const TOLERANCE_LEASE_PART: u32 = 4;
/// By how much this machine's clock may run ahead of or behind the monotonic clock, from one comparison to the next. Beyond
/// that it was set, or the machine was suspended.
const STEP_MAX: TimeDelta = TimeDelta::seconds(1);
/// The precision of MongoDB's dates.
const PRECISION: TimeDelta = TimeDelta::milliseconds(1);

/// MongoDB's clock. Clones share what is known about it.
#[derive(Clone, Debug)]
pub struct DatabaseClock {
    tolerance: TimeDelta,
    compared: Arc<watch::Sender<Option<Comparison>>>,
    /// Held while two readings are compared.
    comparing: Arc<Mutex<()>>,
}

/// The newest comparison.
#[derive(Clone, Copy, Debug)]
struct Comparison {
    /// What MongoDB's clock showed at the instant `at`.
    time: DateTime<Utc>,
    /// What this machine's showed.
    own: DateTime<Utc>,
    at: Instant,
    /// By how much `time` may be wrong.
    uncertainty: TimeDelta,
}

/// Why nothing may be decided, claimed or sent by this clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClockFault {
    /// No server has answered yet.
    Unknown,
    /// This machine's clock has jumped by this much since the newest comparison. The monotonic clock may have stood still.
    Stepped(TimeDelta),
    /// This machine's clock is wrong by this much.
    Wrong(TimeDelta),
}

/// What a comparison has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Compared {
    /// The fault that the comparison before had found; `None` as well if there was none.
    pub(super) before: Option<ClockFault>,
    pub(super) now: Option<ClockFault>,
    /// By how much this machine's clock has jumped in between.
    pub(super) stepped: Option<TimeDelta>,
}

impl DatabaseClock {
    /// A clock that was not compared yet, for entries that belong to a process for `lease`.
    #[must_use]
    pub fn new(lease: Duration) -> Self {
        Self {
            tolerance: TimeDelta::from_std(lease / TOLERANCE_LEASE_PART).unwrap_or(TimeDelta::MAX),
            compared: Arc::new(watch::Sender::new(None)),
            comparing: Arc::default(),
        }
    }

    /// MongoDB's time, to the millisecond. Before the first comparison, this machine's.
    #[must_use]
    pub fn now(&self) -> DateTime<Utc> {
        self.compared.borrow().map_or_else(clock::now, |compared| compared.time_at(Instant::now()))
    }

    /// Why the clock must not be used now.
    #[must_use]
    pub fn fault(&self) -> Option<ClockFault> {
        self.fault_of(*self.compared.borrow(), clock::now(), Instant::now())
    }

    /// Waits until the clock may be used.
    pub async fn wait_until_usable(&self) {
        let mut compared = self.compared.subscribe();
        while self.fault().is_some() {
            // An error would mean that the sender is gone, and the sender is our own field.
            drop(compared.changed().await);
        }
    }

    /// Records what the server's clock showed.
    pub(super) fn compare(&self, reading: ServerTime) -> Compared {
        let _one_at_a_time = self.comparing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = *self.compared.borrow();
        // Comparisons may overlap.
        if let Some(newer) = before.filter(|before| reading.at < before.at) {
            let fault = self.fault_of(before, newer.own, newer.at);
            return Compared { before: fault, now: fault, stepped: None };
        }
        let mut new = Comparison {
            time: reading.time,
            own: reading.own,
            at: reading.at,
            uncertainty: TimeDelta::from_std(reading.uncertainty).unwrap_or(TimeDelta::MAX),
        };
        let stepped = before.map(|before| before.step(new.own, new.at)).filter(|step| step.abs() > STEP_MAX);
        if let Some(before) = before.filter(|_| stepped.is_none()) {
            // A slow reply says less than is known already: time must not jump to and fro with the delays of the network.
            let expected = before.time_at(new.at);
            if (new.time - expected).abs() <= new.uncertainty + PRECISION {
                (new.time, new.uncertainty) = (expected, new.uncertainty.min(before.uncertainty));
            }
        }
        self.compared.send_replace(Some(new));
        Compared {
            before: self.fault_of(before, before.map_or(new.own, |before| before.own), before.map_or(new.at, |b| b.at)),
            now: self.fault_of(Some(new), new.own, new.at),
            stepped,
        }
    }

    fn fault_of(&self, compared: Option<Comparison>, own: DateTime<Utc>, at: Instant) -> Option<ClockFault> {
        let Some(compared) = compared else { return Some(ClockFault::Unknown) };
        let step = compared.step(own, at);
        let offset = compared.own - compared.time;
        if step.abs() > STEP_MAX {
            Some(ClockFault::Stepped(step))
        } else if offset.abs() > self.tolerance.checked_add(&compared.uncertainty).unwrap_or(self.tolerance) {
            Some(ClockFault::Wrong(offset))
        } else {
            None
        }
    }
}

impl Comparison {
    fn time_at(&self, at: Instant) -> DateTime<Utc> {
        (self.time + between(self.at, at)).trunc_subsecs(3)
    }

    /// By how much this machine's clock has jumped, if it shows `own` at the instant `at`.
    fn step(&self, own: DateTime<Utc>, at: Instant) -> TimeDelta {
        (own - self.own) - between(self.at, at)
    }
}

fn between(from: Instant, to: Instant) -> TimeDelta {
    TimeDelta::from_std(to.saturating_duration_since(from)).unwrap_or(TimeDelta::MAX)
}

impl fmt::Display for ClockFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("this machine's clock is not compared with MongoDB's yet"),
            Self::Stepped(step) => write!(
                f,
                "this machine's clock has jumped by {:+} s: it was set, or the machine was suspended; comparing it with MongoDB's",
                step.num_seconds()
            ),
            Self::Wrong(offset) => {
                let side = if *offset < TimeDelta::zero() { "behind" } else { "ahead of" };
                write!(f, "this machine's clock is {} s {side} MongoDB's; correct it", offset.abs().num_seconds())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An instant, in seconds, on each of the three clocks: MongoDB's, this machine's, the monotonic one.
    #[derive(Clone, Copy)]
    struct At(i64, i64, u64);

    struct Bench {
        clock: DatabaseClock,
        origin: Instant,
    }

    impl Bench {
        fn new() -> Self {
            Self { clock: DatabaseClock::new(Duration::from_secs(180)), origin: Instant::now() }
        }

        fn compare(&self, At(server, own, monotonic): At, uncertainty: u64) -> Compared {
            let at = self.origin + Duration::from_secs(monotonic);
            let uncertainty = Duration::from_secs(uncertainty);
            self.clock.compare(ServerTime { time: second(server), own: second(own), at, uncertainty })
        }

        /// MongoDB's time at an instant of the monotonic clock, in seconds.
        fn time_at(&self, monotonic: u64) -> i64 {
            let compared = self.clock.compared.borrow().unwrap();
            compared.time_at(self.origin + Duration::from_secs(monotonic)).timestamp() - second(0).timestamp()
        }

        fn fault(&self, At(_, own, monotonic): At) -> Option<ClockFault> {
            let at = self.origin + Duration::from_secs(monotonic);
            self.clock.fault_of(*self.clock.compared.borrow(), second(own), at)
        }
    }

    fn second(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + second, 0).unwrap()
    }

    #[test]
    fn clocks_may_differ_by_a_quarter_of_a_lease_and_half_the_round_trip() {
        #[track_caller]
        fn check(own: i64, uncertainty: u64, expected: Option<&str>) {
            let fault = Bench::new().compare(At(0, own, 0), uncertainty).now;
            assert_eq!(fault.map(|fault| fault.to_string()).as_deref(), expected);
        }
        check(0, 0, None);
        check(45, 0, None);
        check(-45, 0, None);
        check(-46, 0, Some("this machine's clock is 46 s behind MongoDB's; correct it"));
        check(62, 0, Some("this machine's clock is 62 s ahead of MongoDB's; correct it"));
        // The server's clock may have been read at any moment of ten seconds.
        check(50, 5, None);
        check(51, 5, Some("this machine's clock is 51 s ahead of MongoDB's; correct it"));
    }

    #[test]
    fn a_clock_is_unusable_until_it_is_compared() {
        let bench = Bench::new();
        assert_eq!(bench.clock.fault(), Some(ClockFault::Unknown));
        bench.compare(At(0, 30, 0), 0);
        assert_eq!((bench.time_at(0), bench.time_at(7)), (0, 7), "not this machine's time");
    }

    #[test]
    fn a_clock_that_was_set_is_unusable_until_it_is_compared_again() {
        let bench = Bench::new();
        bench.compare(At(0, 0, 0), 0);
        assert_eq!(bench.fault(At(2, 3, 2)), None, "a second is no step");
        for set_to in [-598, 602, 4] {
            let step = TimeDelta::seconds(set_to - 2);
            assert_eq!(bench.fault(At(2, set_to, 2)), Some(ClockFault::Stepped(step)));
        }
        // Set by 30 s, which is tolerated, and then by ten minutes.
        assert_eq!(bench.compare(At(2, 32, 2), 0), compared(None, None, Some(30)));
        assert_eq!((bench.fault(At(3, 33, 3)), bench.time_at(3)), (None, 3));
        let wrong = Some(ClockFault::Wrong(TimeDelta::seconds(630)));
        assert_eq!(bench.compare(At(4, 634, 4), 0), compared(None, wrong, Some(600)));
        assert_eq!(bench.compare(At(6, 6, 6), 0), compared(wrong, None, Some(-630)));
    }

    fn compared(before: Option<ClockFault>, now: Option<ClockFault>, stepped: Option<i64>) -> Compared {
        Compared { before, now, stepped: stepped.map(TimeDelta::seconds) }
    }

    /// The monotonic clock stands still meanwhile.
    #[test]
    fn a_suspended_machine_compares_before_it_goes_on() {
        let bench = Bench::new();
        bench.compare(At(0, 0, 0), 0);
        assert_eq!(bench.fault(At(300, 300, 1)), Some(ClockFault::Stepped(TimeDelta::seconds(299))));
        bench.compare(At(300, 300, 1), 0);
        assert_eq!((bench.fault(At(301, 301, 2)), bench.time_at(2)), (None, 301));
    }

    #[test]
    fn a_slow_reply_does_not_move_the_time() {
        let bench = Bench::new();
        bench.compare(At(0, 0, 0), 0);
        bench.compare(At(6, 2, 2), 4);
        assert_eq!(bench.time_at(2), 2, "within what the reply may be wrong");
        bench.compare(At(7, 4, 4), 0);
        assert_eq!(bench.time_at(4), 7, "another server, or a clock that was set");
        bench.compare(At(12, 6, 6), 2);
        assert_eq!(bench.time_at(6), 12);
    }

    #[test]
    fn an_older_reading_changes_nothing() {
        let bench = Bench::new();
        bench.compare(At(8, 8, 8), 0);
        // Its reply was on the way for 8 s, from 0 to 8.
        assert_eq!(bench.compare(At(8, 4, 4), 4), compared(None, None, None));
        assert_eq!((bench.time_at(8), bench.fault(At(9, 9, 9))), (8, None));
    }
}
