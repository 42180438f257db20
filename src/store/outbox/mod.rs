//! The outbox that lives in the documents: what an entry is, who may send it, and what operators do with it.

pub mod admin;
pub mod claim;
mod current_address;
pub mod delivery;
pub mod due_queue;
pub mod entry;
mod lease;
mod mark;
mod mark_statements;
pub mod record;
