//! Reading a whole collection in pages, in the order of `_id`, with bounded memory.

use bson::{Bson, Document, RawDocumentBuf, doc};
use futures_util::TryStreamExt;
use mongodb::options::Hint;

use super::client::{Store, within_deadline};
use super::collection::Collection;
use super::documents::decision_projection;
use super::error::{COMMAND_TIME_MAX, StoreError};

/// The field in which [`Store::page`] has the names of a document's fields.
pub const FIELD_NAMES: &str = "offramp_fields";

impl Store {
    /// The next `size` documents after the `_id` `after`, whatever type their ids have: what decisions read of them, and the names of all
    /// their fields ([`FIELD_NAMES`]). Empty at the end.
    ///
    /// # Errors
    /// When the server does not answer, or rejects the query.
    pub async fn page(
        &self,
        collection: Collection,
        after: Option<&Bson>,
        size: usize,
    ) -> Result<Vec<RawDocumentBuf>, StoreError> {
        let mut fields = decision_projection(collection);
        let names = doc! { "$map": { "input": { "$objectToArray": "$$ROOT" }, "as": "field", "in": "$$field.k" } };
        fields.insert(FIELD_NAMES, names);
        let documents = self.database.collection::<RawDocumentBuf>(collection.as_str());
        // A minimum, unlike `$gt`, has no type: ids of other types follow those that are text. It includes `after` itself.
        let minimum = after.map(|id| doc! { "_id": id.clone() });
        let limit = size + usize::from(after.is_some());
        let page: Vec<RawDocumentBuf> = within_deadline(async move {
            let mut find = documents.find(Document::new()).projection(fields).sort(doc! { "_id": 1 });
            find = find.hint(Hint::Keys(doc! { "_id": 1 })).max_time(COMMAND_TIME_MAX);
            find = find
                .limit(i64::try_from(limit).unwrap_or(i64::MAX))
                .batch_size(u32::try_from(limit).unwrap_or(u32::MAX));
            if let Some(minimum) = minimum {
                find = find.min(minimum);
            }
            find.await?.try_collect().await
        })
        .await?;
        let is_after = |raw: &RawDocumentBuf| !after.zip(id(raw)).is_some_and(|(after, id)| is_same(after, &id));
        Ok(page.into_iter().filter(is_after).take(size).collect())
    }

    /// How many documents a collection has, approximately.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn estimated_count(&self, collection: Collection) -> Result<u64, StoreError> {
        let documents = self.database.collection::<RawDocumentBuf>(collection.as_str());
        within_deadline(async move { documents.estimated_document_count().max_time(COMMAND_TIME_MAX).await }).await
    }
}

/// The `_id` of a document.
#[must_use]
pub fn id(raw: &RawDocumentBuf) -> Option<Bson> {
    raw.get("_id").ok().flatten().and_then(|id| Bson::try_from(id).ok())
}

/// Whether two ids are the same. Unlike `==`, also for ids that are not a number (NaN): one would otherwise follow itself for ever.
fn is_same(one: &Bson, other: &Bson) -> bool {
    one == other || matches!((one, other), (Bson::Double(one), Bson::Double(other)) if one.is_nan() && other.is_nan())
}
