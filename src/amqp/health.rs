//! What `/readyz` says about the lanes. A lane looks alive only while its channel stands at the moment of asking.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::consumer::{GONE, Session};

/// A lane's state, shared between the lane and whoever asks. Cheap to clone.
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
    /// Why some messages are held back, while the lane goes on with the others.
    held_back: Option<String>,
    session: Weak<Session>,
}

/// What a lane is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaneState {
    /// Not consuming; trying to.
    Connecting,
    /// Consuming: the broker may deliver at any moment.
    Consuming,
    /// Not consuming on purpose, because something else is away (contract §7: that is nobody's failure).
    Paused,
    /// Ended, in order or not. It does not come back.
    Stopped,
}

impl LaneState {
    /// The name, as `/readyz` shows it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Consuming => "consuming",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// A lane at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneStatus {
    /// Which lane.
    pub lane: String,
    /// What it is doing.
    pub state: LaneState,
    /// For how long it has been doing so.
    pub since: Duration,
    /// Why it is not consuming, where that is known; or why it holds messages back while it consumes. Never holds a
    /// password.
    pub problem: Option<String>,
}

impl LaneHealth {
    /// A lane that has not begun: [`LaneState::Connecting`].
    #[must_use]
    pub fn new(lane: impl Into<String>) -> Self {
        let state = Recorded {
            state: LaneState::Connecting,
            since: Instant::now(),
            problem: None,
            held_back: None,
            session: Weak::new(),
        };
        Self(Arc::new(Inner { lane: lane.into(), state: Mutex::new(state) }))
    }

    /// What the lane is doing now.
    #[must_use]
    pub fn status(&self) -> LaneStatus {
        let recorded = self.lock();
        // The lane may be busy with a batch, and not know yet that its channel is gone.
        let lost = match recorded.session.upgrade() {
            _ if recorded.state != LaneState::Consuming => None,
            Some(session) => session.problem(),
            None => Some(GONE),
        };
        let problem = lost.map_or_else(|| recorded.problem.clone(), |why| Some(why.to_owned()));
        LaneStatus {
            lane: self.0.lane.clone(),
            state: if lost.is_some() { LaneState::Connecting } else { recorded.state },
            since: recorded.since.elapsed(),
            problem: problem.or_else(|| recorded.held_back.clone()),
        }
    }

    /// Whether the lane consumes, and holds nothing back: what readiness asks. The error says why not.
    ///
    /// # Errors
    /// Why not, as a sentence without passwords.
    pub fn readiness(&self) -> Result<(), String> {
        let LaneStatus { state, problem, .. } = self.status();
        match (state, problem) {
            (LaneState::Consuming, None) => Ok(()),
            (state, problem) => Err(problem.unwrap_or_else(|| state.as_str().to_owned())),
        }
    }

    /// The same, without the reason.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.readiness().is_ok()
    }

    /// For the lane: some messages are held back (`why`), or none are any more. It goes on with the others.
    pub fn holds_back(&self, why: Option<String>) {
        self.lock().held_back = why;
    }

    /// For the lane: it holds what it has and waits for something else to come back (`why`), without consuming further.
    /// The consumer's next batch ends the pause.
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
