//! Empty writes, which change nothing and wait for a majority of the servers.

use std::collections::HashMap;

use bson::{RawDocumentBuf, rawdoc};

use super::client::Store;
use super::collection::{Collection, DocumentId};
use super::error::StoreError;

/// The number of empty writes in one command.
const EMPTY_WRITES_MAX: usize = 256;

/// An id that no document has, for an empty write that concerns none.
const NOBODY: &str = "offramp:nobody";

impl Store {
    /// Waits until these documents can be written: an empty write to each is on a majority of the servers. It does not prove what was read
    /// before (`docs/decisions/0016-decisions-without-a-write.md`).
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn wait_for_majority<'a>(
        &self,
        documents: impl IntoIterator<Item = &'a DocumentId>,
    ) -> Result<(), StoreError> {
        let mut statements: HashMap<Collection, Vec<RawDocumentBuf>> = HashMap::new();
        for document in documents {
            statements.entry(document.collection()).or_default().push(empty_write(document.as_str()));
        }
        for (collection, statements) in statements {
            for statements in statements.chunks(EMPTY_WRITES_MAX) {
                self.update_many(collection, statements.iter().cloned()).await?;
            }
        }
        Ok(())
    }

    /// Checks that a majority of the servers accepts writes.
    ///
    /// # Errors
    /// When it does not.
    pub async fn check_majority(&self) -> Result<(), StoreError> {
        self.update_many(Collection::Subscriptions, [empty_write(NOBODY)]).await.map(drop)
    }

    /// Checks that a majority of the servers accepts writes to the collections that decisions are written to.
    ///
    /// # Errors
    /// When it does not.
    pub async fn check_writable(&self) -> Result<(), StoreError> {
        for collection in Collection::ALL {
            self.update_many(collection, [empty_write(NOBODY)]).await?;
        }
        Ok(())
    }
}

/// A write that changes nothing, because no version is negative. Like any other, it waits for the newest change that its server
/// knows. It names a document, so that a router sends it to the shard that has it. A condition that nothing matches, such as an
/// empty `$in`, could go to any shard.
fn empty_write(id: &str) -> RawDocumentBuf {
    rawdoc! { "q": { "_id": id, "version": -1_i64 }, "u": { "$set": { "version": 0 } } }
}
