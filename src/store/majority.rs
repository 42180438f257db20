//! Empty writes, which change nothing and wait for a majority of the servers.

use std::collections::HashMap;

use bson::{RawDocumentBuf, rawdoc};

use super::client::Store;
use super::collection::Collection;
use super::error::StoreError;

/// How many empty writes are sent in one command.
const EMPTY_WRITES_MAX: usize = 256;

/// The id of no document: what an empty write that is about none names.
const NOBODY: &str = "offramp:nobody";

impl Store {
    /// Waits until what these documents were read as is on a majority of the servers: a command that was found done, or was
    /// rejected, for what another server may not know yet must not be acknowledged.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn wait_for_majority<'a>(
        &self,
        documents: impl IntoIterator<Item = &'a (Collection, String)>,
    ) -> Result<(), StoreError> {
        let mut statements: HashMap<Collection, Vec<RawDocumentBuf>> = HashMap::new();
        for (collection, id) in documents {
            statements.entry(*collection).or_default().push(empty_write(id));
        }
        for (collection, statements) in statements {
            for statements in statements.chunks(EMPTY_WRITES_MAX) {
                self.update_many(collection, statements.iter().cloned()).await?;
            }
        }
        Ok(())
    }

    /// Finds out whether a majority of the servers takes writes.
    ///
    /// # Errors
    /// When it does not.
    pub async fn check_majority(&self) -> Result<(), StoreError> {
        self.update_many(Collection::Subscriptions, [empty_write(NOBODY)]).await.map(drop)
    }

    /// Finds out whether a majority of the servers takes writes to the collections that decisions are written to.
    ///
    /// # Errors
    /// When it does not.
    pub async fn check_writable(&self) -> Result<(), StoreError> {
        for collection in [Collection::Subscriptions, Collection::Accounts] {
            self.update_many(collection, [empty_write(NOBODY)]).await?;
        }
        Ok(())
    }
}

/// A write that changes nothing, because no version is negative. It waits, as any other, for the newest change that its
/// server knows. It names a document, so that a router asks the shard that has it; a condition that nothing can meet, such
/// as an empty `$in`, it may send to any shard.
fn empty_write(id: &str) -> RawDocumentBuf {
    rawdoc! { "q": { "_id": id, "version": -1_i64 }, "u": { "$set": { "version": 0 } } }
}
