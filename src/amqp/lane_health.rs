//! The state of each lane, for `/readyz`. A lane is ready only while its channel is open at the moment of asking.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use strum::IntoStaticStr;

use super::session::{CHANNEL_GONE, Session};

/// A lane's state, shared between the lane and its observers. Cheap to clone.
#[derive(Clone)]
pub struct LaneHealth(Arc<Inner>);

struct Inner {
    lane: String,
    state: Mutex<Recorded>,
}

struct Recorded {
    state: LaneState,
    since: Instant,
    problem: Option<String>,
    /// Why the batch in hand cannot be settled, although the lane consumes.
    held_up: Option<String>,
    /// Why some messages are set aside while the lane processes the others.
    set_aside: Option<String>,
    session: Weak<Session>,
}

/// What a lane is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum LaneState {
    /// Not consuming yet; connecting.
    Connecting,
    /// Consuming: the broker may deliver at any moment.
    Consuming,
    /// Not consuming on purpose, because another server is unavailable.
    Paused,
    /// Ended for good, in order or not.
    Stopped,
}

impl LaneState {
    /// The name, as `/readyz` shows it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// A lane at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneStatus {
    pub lane: String,
    pub state: LaneState,
    /// How long it has been in this state.
    pub since: Duration,
    /// Why it is not consuming, if known; or why it settles nothing or sets messages aside while it consumes. Never contains a password.
    pub problem: Option<String>,
}

impl LaneHealth {
    /// A lane that has not connected yet.
    #[must_use]
    pub fn new(lane: impl Into<String>) -> Self {
        let state = Recorded {
            state: LaneState::Connecting,
            since: Instant::now(),
            problem: None,
            held_up: None,
            set_aside: None,
            session: Weak::new(),
        };
        Self(Arc::new(Inner { lane: lane.into(), state: Mutex::new(state) }))
    }

    #[must_use]
    pub fn status(&self) -> LaneStatus {
        let recorded = self.lock();
        // A lane that is busy with a batch may not know yet that its channel is closed.
        let lost = match recorded.session.upgrade() {
            _ if recorded.state != LaneState::Consuming => None,
            Some(session) => session.problem(),
            None => Some(CHANNEL_GONE),
        };
        let problem = lost.map_or_else(|| recorded.problem.clone(), |why| Some(why.to_owned()));
        LaneStatus {
            lane: self.0.lane.clone(),
            state: if lost.is_some() { LaneState::Connecting } else { recorded.state },
            since: recorded.since.elapsed(),
            problem: problem.or_else(|| recorded.held_up.clone()).or_else(|| recorded.set_aside.clone()),
        }
    }

    /// `Ok` while the lane consumes, is not held up and sets nothing aside.
    ///
    /// # Errors
    /// Why it is not ready, without passwords.
    pub fn readiness(&self) -> Result<(), String> {
        let LaneStatus { state, problem, .. } = self.status();
        match (state, problem) {
            (LaneState::Consuming, None) => Ok(()),
            (state, problem) => Err(problem.unwrap_or_else(|| state.as_str().to_owned())),
        }
    }

    /// Whether [`Self::readiness`] is `Ok`.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.readiness().is_ok()
    }

    /// Records why the batch in hand cannot be settled; `None`: it can.
    pub fn held_up(&self, why: Option<String>) {
        self.lock().held_up = why;
    }

    /// Records that some messages are set aside (`why`), or no more.
    pub fn set_aside(&self, why: Option<String>) {
        self.lock().set_aside = why;
    }

    /// Records that the lane holds what it has and waits for another server (`why`). The consumer's next batch ends the pause.
    pub fn paused(&self, why: &str) {
        self.set(LaneState::Paused, Some(why.to_owned()), Weak::new());
    }

    pub(super) fn connecting(&self, problem: Option<String>) {
        self.set(LaneState::Connecting, problem, Weak::new());
    }

    pub(super) fn consuming(&self, session: &Arc<Session>) {
        self.set(LaneState::Consuming, None, Arc::downgrade(session));
    }

    pub(super) fn stopped(&self) {
        self.set(LaneState::Stopped, None, Weak::new());
    }

    fn set(&self, state: LaneState, problem: Option<String>, session: Weak<Session>) {
        let mut recorded = self.lock();
        if recorded.state != state {
            recorded.since = Instant::now();
        }
        recorded.state = state;
        recorded.problem = problem;
        recorded.session = session;
    }

    fn lock(&self) -> MutexGuard<'_, Recorded> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for LaneHealth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LaneHealth").field(&self.status()).finish()
    }
}
