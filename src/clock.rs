//! The program's only clock. The domain never reads it: callers pass the time.

use chrono::{DateTime, SubsecRound, Utc};

/// Now, truncated to the precision of MongoDB's dates (1 ms), so that events and documents state the same instant.
#[must_use]
pub fn now() -> DateTime<Utc> {
    Utc::now().trunc_subsecs(3)
}
