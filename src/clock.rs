//! The only clock. The domain is told the time; everything else asks here.

use chrono::{DateTime, SubsecRound, Utc};

/// Now, to the millisecond: as precisely as the database keeps instants, so that what an event says is what a document
/// says.
#[must_use]
pub fn now() -> DateTime<Utc> {
    Utc::now().trunc_subsecs(3)
}
