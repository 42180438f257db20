//! Importing documents from a file, for set-ups and tests. In production, upstream systems write them.

use bson::{Bson, Document, doc};

use super::bson::to_raw;
use super::client::Store;
use super::collection::Collection;
use super::error::StoreError;

/// The maximum number of documents in one command.
pub const IMPORT_DOCUMENTS_MAX: usize = 500;

impl Store {
    /// Creates the documents, or sets the given fields of those that exist; other fields stay. Like every writer, it increments
    /// `version` of existing documents.
    ///
    /// # Errors
    /// When the server does not answer, or rejects a document; the others may have been written.
    pub async fn upsert(&self, collection: Collection, documents: &[Document]) -> Result<(), StoreError> {
        let statements: Result<Vec<_>, _> =
            documents.iter().map(|document| to_raw(&upsert_statement(document))).collect();
        let updated = self.update_many(collection, statements?).await?;
        match updated.rejected.first() {
            None => Ok(()),
            Some(refusal) => {
                let document = documents.get(refusal.position);
                let id = document.and_then(|document| document.get_str("_id").ok()).unwrap_or_default();
                Err(StoreError::Permanent(format!("{} {id}: {}", collection.as_str(), refusal.message)))
            }
        }
    }
}

fn upsert_statement(document: &Document) -> Document {
    let id = document.get("_id").cloned().unwrap_or(Bson::Null);
    let mut fields = document.clone();
    // In a new document, `$$ROOT` has only the `_id` of the filter.
    let is_new = doc! { "$eq": [{ "$size": { "$objectToArray": "$$ROOT" } }, 1] };
    let given = fields.remove("version");
    let incremented = doc! { "$add": [{ "$ifNull": ["$version", 0] }, 1] };
    let (first, next) = match given {
        Some(version) => {
            let version = doc! { "$literal": version };
            (doc! { "version": version.clone() }, doc! { "version": { "$max": [version, incremented] } })
        }
        None => (doc! {}, doc! { "version": incremented }),
    };
    doc! {
        "q": { "_id": id },
        "u": [{ "$replaceWith": { "$mergeObjects": [
            "$$ROOT",
            // Data, even where it looks like an expression.
            { "$literal": fields },
            { "$cond": [is_new, first, next] },
        ] } }],
        "upsert": true,
    }
}
