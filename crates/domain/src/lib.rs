//! The rules of the contract (§4), pure.
//!
//! Nothing here does I/O, reads a clock, draws a random number, logs or awaits; so nothing here can fail for a reason
//! other than the rules. Dates are values: text becomes a date, a month or an id at the edge and is never text again.
//!
//! Reading order: [`billing`] (the calendar), [`command`] (what may be asked), [`field`] (what documents say), [`subscription`]
//! and [`account`] (what is known), [`decide`] (one command on one document), [`unit_of_work`] (many commands, in order, on the newest state),
//! [`notification`] and [`event`] (what is told to whom).

pub mod account;
pub mod billing;
pub mod cloud_event;
pub mod command;
pub mod dead_letter;
pub mod decide;
pub mod event;
pub mod field;
pub mod ids;
pub mod notification;
pub mod organization;
pub mod subscription;
pub mod unit_of_work;

#[cfg(test)]
mod purity;
#[cfg(test)]
mod testing;
