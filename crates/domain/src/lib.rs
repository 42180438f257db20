//! The rules: which day is the last, which invoice is the last, who is notified.
//!
//! Nothing here does I/O, reads a clock, draws random numbers, logs or awaits. `Cargo.toml` and `clippy.toml` hold this. So a decision
//! can fail only because of the rules or of the documents. Text becomes a date, a month or an id when it is parsed, and stays one.
//!
//! Reading order:
//!
//! 1. [`command`]: what upstream systems can ask. One file per command, with its wire form, its rule and its tests.
//! 2. [`schedule`]: what the calendar causes without a command.
//! 3. [`decision`]: what rules decide with, and what they decide.
//! 4. [`subscription`], [`account`], [`organization`]: the documents.
//! 5. [`calendar`] and [`billing`]: dates.
//! 6. [`unit_of_work`]: many tasks, in order, on loaded documents.
//! 7. [`notification`], [`facts`], [`event`], [`cloud_event`]: what is sent to people and to other systems;
//!    [`trace_context`]: which trace it belongs to.

pub mod account;
pub mod actor;
pub mod billing;
pub mod calendar;
pub mod card;
mod checks;
pub mod cloud_event;
pub mod command;
pub mod command_ref;
pub mod contact;
pub mod dead_letter;
pub mod decision;
pub mod effect_id;
mod ending;
pub mod event;
pub mod facts;
pub mod failure_code;
pub mod field;
mod formed_text;
pub mod ids;
pub mod link;
pub mod money;
pub mod notification;
pub mod organization;
pub mod rejection;
pub mod reply;
pub mod schedule;
mod strict_json;
pub mod subscription;
pub mod trace_context;
pub mod unit_of_work;

#[cfg(test)]
mod testing;
