//! Searches through a named index.

use bson::{Document, RawDocumentBuf};
use futures_util::TryStreamExt;
use mongodb::options::Hint;

use crate::store::client::Store;
use crate::store::collection::Collection;
use crate::store::error::{COMMAND_TIME_MAX, StoreError};

impl Store {
    /// At most `limit` documents that an index finds.
    pub(super) async fn hinted(
        &self,
        collection: Collection,
        index: &'static str,
        filter: Document,
        fields: Document,
        order: Option<Document>,
        limit: usize,
    ) -> Result<Vec<RawDocumentBuf>, StoreError> {
        let collection = self.database.collection::<RawDocumentBuf>(collection.as_str());
        let (limit, batch_size) = (i64::try_from(limit).unwrap_or(i64::MAX), u32::try_from(limit).unwrap_or(u32::MAX));
        self.measured(async move {
            let mut find = collection.find(filter).projection(fields).limit(limit).batch_size(batch_size);
            find = find.max_time(COMMAND_TIME_MAX);
            if let Some(order) = order {
                find = find.sort(order);
            }
            find.hint(Hint::Name(index.to_owned())).await?.try_collect().await
        })
        .await
    }
}
