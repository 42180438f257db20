//! MongoDB: documents in, one guarded update per changed document out, and the outbox that lives in them.
//!
//! Nothing here decides anything. Every write of a decision is a single-document update, guarded by the document's `version`, sent in one
//! `update` command per collection with write concern `majority`; state, audit entry, idempotency record and outbox entries
//! change together or not at all. Sharded clusters are not tested.

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
pub mod server;
mod update_many;
pub mod updates;

pub use client::Store;
pub use collection::Collection;
pub use error::StoreError;
pub use load::DocumentKeys;
