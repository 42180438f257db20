//! MongoDB: documents in, one guarded update per changed document out, and the outbox that lives in them.
//!
//! Nothing here makes a decision, names a setting or names a subcommand. Every write of a decision is a single-document update,
//! guarded by the document's `version` and sent in one `update` command per collection with write concern `majority`. State, audit
//! entry, idempotency record and outbox entries change together or not at all. Sharded clusters are not tested.
//!
//! A batch is read in [`load`](Store::load), its changes become updates in [`updates`], and [`commit`](Store::commit) sends them.
//! Every write goes through `update_many`.

pub mod backlog;
mod bson;
mod client;
mod collection;
pub mod commit;
pub mod documents;
pub mod due;
mod error;
pub mod guarded_update;
pub mod import;
pub mod indexes;
mod load;
mod majority;
pub mod outbox;
pub mod pages;
pub mod rejected_commands;
pub mod rights;
pub mod search;
pub mod sent_emails;
pub mod server;
pub mod support_records;
mod update_many;
pub mod updates;

pub use client::Store;
pub use collection::{Collection, DocumentId, REJECTED_COMMANDS, SENT_EMAILS, SUPPORT_COLLECTIONS};
pub use error::StoreError;
pub use load::DocumentKeys;
