//! What the calendar makes due: which subscriptions are over, whose cards are about to expire, which requests are undecided, which
//! tombstones to delete; and which documents can never be processed.

mod cards;
mod ends;
mod faults;
mod hinted;
mod pending_requests;
mod tombstones;
mod unworkable;
mod window;

pub use cards::{CardOrganization, CardOrganizationsPage, CardsPage, DueCard};
pub use ends::TimeZones;
pub use faults::Fault;
pub use pending_requests::{PendingOrganization, PendingOrganizationsPage};
pub use unworkable::UnprocessableDocument;
pub use window::{DueWindow, TriedSubscriptions};
