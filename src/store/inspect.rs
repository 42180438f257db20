//! What people look at: a document as it is, and the server's condition. Nothing here is the worker's job.

use std::collections::HashSet;

use bson::{Bson, Document, RawDocumentBuf, doc};

use super::{Collection, Store, StoreError, sweep};

/// What `hello` and `buildInfo` tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerFacts {
    /// `"8.0.4"`
    pub version: String,
    /// The replica set's name.
    pub replica_set: Option<String>,
    /// Whether it is a router of a sharded cluster.
    pub is_router: bool,
}

impl Store {
    /// The document with this id.
    ///
    /// # Errors
    /// When the server does not answer, or refuses.
    pub async fn document(
        &self,
        collection: Collection,
        id: impl Into<Bson>,
    ) -> Result<Option<RawDocumentBuf>, StoreError> {
        Ok(self.find(collection, doc! { "_id": id.into() }, doc! {}, Some(1)).await?.pop())
    }

    /// What kind of server answers.
    ///
    /// # Errors
    /// When none does.
    pub async fn server_facts(&self) -> Result<ServerFacts, StoreError> {
        let hello = self.command(doc! { "hello": 1 }).await?;
        let build = self.command(doc! { "buildInfo": 1 }).await?;
        Ok(ServerFacts {
            version: build.get_str("version").unwrap_or("unknown").to_owned(),
            replica_set: hello.get_str("setName").ok().map(str::to_owned),
            is_router: hello.get_str("msg").is_ok_and(|message| message == "isdbgrid"),
        })
    }

    /// The names of the indexes that [`Store::create_indexes`] would create.
    ///
    /// # Errors
    /// When the server does not answer, or does not let this user look.
    pub async fn missing_indexes(&self) -> Result<Vec<String>, StoreError> {
        let existing = self.command(doc! { "listCollections": 1, "nameOnly": true }).await?;
        let existing: HashSet<String> = first_batch(&existing).filter_map(name).collect();
        let mut missing = Vec::new();
        for (collection, indexes) in sweep::indexes() {
            let collection = collection.as_str();
            let found: HashSet<String> = if existing.contains(collection) {
                first_batch(&self.command(doc! { "listIndexes": collection }).await?).filter_map(name).collect()
            } else {
                HashSet::new()
            };
            let names = indexes.iter().filter_map(name).filter(|name| !found.contains(name));
            missing.extend(names.map(|name| format!("{collection}.{name}")));
        }
        Ok(missing)
    }
}

fn first_batch(reply: &Document) -> impl Iterator<Item = &Document> {
    let batch = reply.get_document("cursor").and_then(|cursor| cursor.get_array("firstBatch"));
    batch.into_iter().flatten().filter_map(Bson::as_document)
}

fn name(document: &Document) -> Option<String> {
    document.get_str("name").ok().map(str::to_owned)
}
