//! What the calendar decides, with no command: a subscription ends, or a notice about a saved card is due.

pub mod card_notice;
pub mod lapse;
