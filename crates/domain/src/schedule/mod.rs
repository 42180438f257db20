//! What the calendar decides, with no command: a subscription ends, a notice about a saved card is due, or a reminder of undecided
//! requests.

pub mod card_notice;
pub mod lapse;
pub mod pending_requests;
