//! What is kept for support staff for some time: information, not a record to rely on.
//!
//! Nothing is decided on it. A worker writes it in the background, if it may, and MongoDB deletes it.

use bson::raw::RawArrayBuf;
use bson::{Bson, rawdoc};
use serde::Serialize;

use super::bson::to_raw;
use super::client::Store;
use super::error::StoreError;

/// The error code of a document whose `_id` exists.
const DUPLICATE_KEY: i32 = 11_000;

/// A document that is kept for support staff.
pub trait SupportRecord: Serialize + Send + Sync + 'static {
    /// The name of its collection.
    const COLLECTION: &'static str;
    /// The name of the index by which MongoDB deletes old ones.
    const EXPIRY: &'static str;
    /// What they are called in a sentence.
    const PLURAL: &'static str;
}

impl Store {
    /// Adds records, in one request. Those that are there already stay as they are.
    ///
    /// # Errors
    /// When the server does not answer, or rejects the request or one of the documents; the others may have been added.
    pub async fn add_support_records<R: SupportRecord>(&self, records: &[R]) -> Result<(), StoreError> {
        let documents: RawArrayBuf = records.iter().map(to_raw).collect::<Result<_, _>>()?;
        let command = rawdoc! { "insert": R::COLLECTION, "documents": documents, "ordered": false };
        let reply = self.raw_command(command).await?;
        let errors = reply.get_array("writeErrors").into_iter().flatten().filter_map(Bson::as_document);
        let mut codes = errors.map(|error| error.get_i32("code").unwrap_or_default());
        match codes.find(|code| *code != DUPLICATE_KEY) {
            // The message may quote the document.
            Some(code) => {
                Err(StoreError::Permanent(format!("MongoDB rejects a document of {} (code {code})", R::COLLECTION)))
            }
            None => Ok(()),
        }
    }
}
