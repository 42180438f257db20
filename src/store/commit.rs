//! Commit: every changed document of a batch in one `update` command per collection, and which of the updates were written.

use std::collections::HashSet;

use bson::{Document, RawDocumentBuf, doc};

use super::bson::to_raw;
use super::client::Store;
use super::collection::Collection;
use super::error::StoreError;
use super::guarded_update::{GuardedUpdate, together};
use super::update_many::WriteError;

/// The result of a guarded update.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteResult {
    /// Written to a majority of the servers.
    Written,
    /// Another writer changed the document first.
    Conflict,
    /// The document cannot be updated: a field has the wrong type (not a list), or the document would become too large.
    Corrupt(String),
    /// The server rejects this update; the others are not affected.
    Permanent(String),
}

impl From<&WriteError> for WriteResult {
    fn from(refusal: &WriteError) -> Self {
        let error = refusal.message.clone();
        let is_corrupt = MALFORMED.contains(&refusal.code) || TOO_LARGE.contains(&refusal.code);
        if is_corrupt { Self::Corrupt(error) } else { Self::Permanent(error) }
    }
}

/// The name under which the size of a document is asked for.
const WHOLE: &str = "offramp_document_bytes";

/// The lists that Offramp writes.
const LISTS: [&str; 6] = ["applied", "card_notices", "history", "notifications", "outbox", "payment_failures"];

/// Codes of a field whose type does not fit the update: bad value (`$push` to a non-list), type mismatch, path not viable (a
/// field within a non-object), and `$concatArrays` of a non-list.
const MALFORMED: [i32; 4] = [2, 14, 28, 28664];

/// Codes of a document that would exceed MongoDB's limit: by up to 16 KiB, and by more.
const TOO_LARGE: [i32; 2] = [17419, 10334];
/// That limit, in bytes.
const DOCUMENT_BYTES_MAX: i32 = 16 * 1024 * 1024;

impl Store {
    /// Writes guarded updates; the results are in their order.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when the server does not answer. It is then unknown which updates were written; `applied`
    /// of the documents shows it when they are read again.
    pub async fn commit(&self, updates: &[GuardedUpdate]) -> Result<Vec<WriteResult>, StoreError> {
        let mut results = vec![WriteResult::Written; updates.len()];
        for collection in Collection::ALL {
            let of_collection: Vec<usize> =
                (0..updates.len()).filter(|&index| updates[index].document.collection() == collection).collect();
            if !of_collection.is_empty() {
                self.commit_to(collection, updates, &of_collection, false, &mut results).await?;
            }
        }
        Ok(results)
    }

    /// Combines similar updates into few statements, unless `each` asks for one statement per update.
    async fn commit_to(
        &self,
        collection: Collection,
        updates: &[GuardedUpdate],
        indexes: &[usize],
        each: bool,
        results: &mut [WriteResult],
    ) -> Result<(), StoreError> {
        let (mut statements, alone) = if each { (Vec::new(), indexes.to_vec()) } else { together(updates, indexes) };
        let shared = statements.len();
        statements.extend(alone.iter().map(|&index| updates[index].statement()));
        let sent = self.update_many(collection, statements).await;
        let is_unclear = match &sent {
            // A statement for many documents stops at the first that it does not fit, and does not say which. The documents that it
            // has written contain our lease, and are found below.
            Ok(reply) => reply.rejected.iter().any(|refusal| refusal.position < shared),
            Err(error) => matches!(error, StoreError::Permanent(_)) && shared > 0,
        };
        if is_unclear {
            return Box::pin(self.commit_to(collection, updates, indexes, true, results)).await;
        }
        let reply = match sent {
            Ok(reply) => reply,
            // The command as a whole was rejected (too large, not BSON). Retry one by one, so that one update cannot fail the others.
            Err(StoreError::Permanent(_)) if indexes.len() > 1 => {
                for index in indexes {
                    Box::pin(self.commit_to(collection, updates, &[*index], true, results)).await?;
                }
                return Ok(());
            }
            Err(StoreError::Permanent(error)) => {
                results[indexes[0]] = WriteResult::Permanent(error);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let refused =
            reply.rejected.into_iter().map(|it| WriteError { position: it.position - shared, ..it }).collect();
        self.resolve_results(collection, updates, indexes, (&alone, refused, reply.modified), results).await
    }

    /// Finds out which updates of `indexes` were written: `modified` of all; those in `alone` may have been rejected.
    async fn resolve_results(
        &self,
        collection: Collection,
        updates: &[GuardedUpdate],
        indexes: &[usize],
        (alone, refusals, modified): (&[usize], Vec<WriteError>, usize),
        results: &mut [WriteResult],
    ) -> Result<(), StoreError> {
        let (mut refused, mut too_large) = (Vec::new(), Vec::new());
        for refusal in &refusals {
            let Some(&index) = alone.get(refusal.position) else { continue };
            results[index] = WriteResult::from(refusal);
            refused.push(index);
            too_large.extend(TOO_LARGE.contains(&refusal.code).then_some(index));
        }
        let is_unsure = self.retry_rejected(collection, updates, &refused, results).await?;
        self.name_sizes(collection, updates, &too_large, results).await?;
        refused.retain(|index| !too_large.contains(index));
        self.name_faults(collection, updates, &refused, results).await?;
        if is_unsure || modified + refusals.len() < indexes.len() {
            self.find_conflicts(collection, updates, indexes, results).await?;
        }
        Ok(())
    }

    /// Removes lists that are null: they count as absent, but nothing can be pushed to them. Returns whether there were any; their
    /// documents then have a new version.
    async fn remove_nulls(&self, collection: Collection, ids: impl Iterator<Item = &str>) -> Result<bool, StoreError> {
        let is_null: Vec<Document> = LISTS.iter().map(|list| doc! { *list: { "$type": "null" } }).collect();
        let mut set: Document = LISTS
            .iter()
            .map(|list| {
                let field = format!("${list}");
                let kept = doc! { "$cond": [{ "$eq": [{ "$type": &field }, "null"] }, "$$REMOVE", &field] };
                ((*list).to_owned(), kept.into())
            })
            .collect();
        set.insert("version", doc! { "$add": [{ "$ifNull": ["$version", 0_i64] }, 1_i64] });
        let statement = |id: &str| to_raw(&doc! { "q": { "_id": id, "$or": &is_null }, "u": [{ "$set": &set }] });
        let statements = ids.map(statement).collect::<Result<Vec<_>, _>>()?;
        Ok(self.update_many(collection, statements).await?.matched > 0)
    }

    /// Retries rejected updates: after removing null lists, or without the records of emails, which the document may not accept.
    /// Returns whether the documents must be read to learn which updates were written.
    async fn retry_rejected(
        &self,
        collection: Collection,
        updates: &[GuardedUpdate],
        indexes: &[usize],
        results: &mut [WriteResult],
    ) -> Result<bool, StoreError> {
        let is_corrupt = |index: &usize| matches!(results[*index], WriteResult::Corrupt(_));
        let corrupt: Vec<usize> = indexes.iter().copied().filter(is_corrupt).collect();
        let ids = corrupt.iter().map(|&index| updates[index].document.as_str());
        if !corrupt.is_empty() && self.remove_nulls(collection, ids).await? {
            // They are decided again. If another field is malformed, the next attempt finds it.
            for &index in &corrupt {
                results[index] = WriteResult::Conflict;
            }
        }
        let unrecorded: Vec<(usize, RawDocumentBuf)> = indexes
            .iter()
            .filter(|&&index| results[index] != WriteResult::Conflict)
            .filter_map(|&index| Some((index, updates[index].statement_without_records()?)))
            .collect();
        if unrecorded.is_empty() {
            return Ok(false);
        }
        let reply = match self.update_many(collection, unrecorded.iter().map(|(_, it)| it.clone())).await {
            Ok(reply) => reply,
            // Each keeps its first reason.
            Err(StoreError::Permanent(_)) => return Ok(false),
            Err(error) => return Err(error),
        };
        for (index, _) in &unrecorded {
            results[*index] = WriteResult::Written;
        }
        for refusal in &reply.rejected {
            if let Some((index, _)) = unrecorded.get(refusal.position) {
                results[*index] = WriteResult::from(refusal);
            }
        }
        Ok(reply.matched + reply.rejected.len() < unrecorded.len())
    }

    /// Names the size of each document that would become too large, and what of it is ours.
    async fn name_sizes(
        &self,
        collection: Collection,
        updates: &[GuardedUpdate],
        indexes: &[usize],
        results: &mut [WriteResult],
    ) -> Result<(), StoreError> {
        let is_corrupt = |index: &&usize| matches!(results[**index], WriteResult::Corrupt(_));
        let too_large: Vec<usize> = indexes.iter().filter(is_corrupt).copied().collect();
        if too_large.is_empty() {
            return Ok(());
        }
        let ids: Vec<&str> = too_large.iter().map(|&index| updates[index].document.as_str()).collect();
        let of_list = |list: &str| doc! { "$bsonSize": { "list": format!("${list}") } };
        let mut sizes: Document = LISTS.iter().map(|list| ((*list).to_owned(), of_list(list).into())).collect();
        sizes.insert(WHOLE, doc! { "$bsonSize": "$$ROOT" });
        let found = self.find(collection, doc! { "_id": { "$in": ids } }, sizes, None).await?;
        for raw in &found {
            let size = |field: &str| raw.get_i32(field).unwrap_or(0);
            let largest = LISTS.iter().max_by_key(|list| size(list)).copied().unwrap_or_default();
            let error = format!(
                "with this change the document would exceed {DOCUMENT_BYTES_MAX} bytes, MongoDB's limit; it has {} bytes, {} of them in \
                 `{largest}`, the largest list of Offramp",
                size(WHOLE),
                size(largest)
            );
            let is_of_it = |index: &&usize| raw.get_str("_id").is_ok_and(|id| id == updates[**index].document.as_str());
            if let Some(&index) = too_large.iter().find(is_of_it) {
                results[index] = WriteResult::Corrupt(error);
            }
        }
        Ok(())
    }

    /// Names the malformed list of each corrupt document. The server's message may quote the document, so it is not used.
    async fn name_faults(
        &self,
        collection: Collection,
        updates: &[GuardedUpdate],
        indexes: &[usize],
        results: &mut [WriteResult],
    ) -> Result<(), StoreError> {
        let is_corrupt = |index: &&usize| matches!(results[**index], WriteResult::Corrupt(_));
        let corrupt: Vec<usize> = indexes.iter().filter(is_corrupt).copied().collect();
        if corrupt.is_empty() {
            return Ok(());
        }
        let ids: Vec<&str> = corrupt.iter().map(|&index| updates[index].document.as_str()).collect();
        let types =
            LISTS.iter().map(|list| ((*list).to_owned(), doc! { "$type": format!("${list}") }.into())).collect();
        let found = self.find(collection, doc! { "_id": { "$in": ids } }, types, None).await?;
        for raw in &found {
            let fault = LISTS.iter().find_map(|list| match raw.get_str(list).ok()? {
                "array" | "missing" | "null" => None,
                "string" => Some(format!("{list}: expected a list, found text")),
                "object" => Some(format!("{list}: expected a list, found an object")),
                other => Some(format!("{list}: expected a list, found a value of the type {other}")),
            });
            let Some(fault) = fault else { continue };
            let is_of_it = |index: &&usize| raw.get_str("_id").is_ok_and(|id| id == updates[**index].document.as_str());
            if let Some(&index) = corrupt.iter().find(is_of_it) {
                results[index] = WriteResult::Corrupt(fault);
            }
        }
        Ok(())
    }

    /// The reply has the number of matching statements, not which. An update was written if the document contains our lease.
    async fn find_conflicts(
        &self,
        collection: Collection,
        updates: &[GuardedUpdate],
        indexes: &[usize],
        results: &mut [WriteResult],
    ) -> Result<(), StoreError> {
        let ids: Vec<&str> = indexes.iter().map(|&index| updates[index].document.as_str()).collect();
        let holders: HashSet<&str> = indexes.iter().filter_map(|&index| updates[index].holder()).collect();
        let holders: Vec<&str> = holders.into_iter().collect();
        let ours = self
            .find(
                collection,
                doc! { "_id": { "$in": ids }, "outbox.holder": { "$in": holders } },
                doc! { "_id": 1 },
                None,
            )
            .await?;
        let ours: HashSet<&str> = ours.iter().filter_map(|raw| raw.get_str("_id").ok()).collect();
        for &index in indexes {
            if results[index] == WriteResult::Written && !ours.contains(updates[index].document.as_str()) {
                results[index] = WriteResult::Conflict;
            }
        }
        Ok(())
    }
}
