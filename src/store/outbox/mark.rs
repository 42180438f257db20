//! Marking entries: as sent, deferred or failed.
//!
//! A sent entry must never be sent again because a record could not be written. So marking has a fast way for many documents
//! and, for those that it did not find as expected, a careful one ([`Store::mark`]).

use std::collections::HashSet;

use futures_util::future::try_join_all;

use super::delivery::Mark;
use super::entry::OUTBOXES;
use super::mark_statements::{Detail, MarkForm, SentEntries, alone, by_document, not_sent, together};
use crate::store::bson::to_raw;
use crate::store::client::Store;
use crate::store::collection::Collection;
use crate::store::error::StoreError;
use crate::store::update_many::WriteError;

impl Store {
    /// Writes the results of deliveries. Returns the positions of marks to be retried, because a shard is unavailable. Entries that no
    /// longer exist are skipped.
    ///
    /// Sent entries of all documents of a collection are marked by two statements. If these do not match all documents, each
    /// document is marked by itself: with its record, and then, if the entry is still there, without.
    ///
    /// # Errors
    /// When the server does not answer: the same again is then safe.
    pub async fn mark(&self, marks: &[Mark]) -> Result<Vec<usize>, StoreError> {
        let of_collections =
            OUTBOXES.map(|collection| {
                let indexes: Vec<usize> =
                    (0..marks.len()).filter(|&index| marks[index].document.collection() == collection).collect();
                async move {
                    if indexes.is_empty() { Ok(Vec::new()) } else { self.mark_in(collection, marks, &indexes).await }
                }
            });
        let mut troubled = try_join_all(of_collections).await?.concat();
        troubled.sort_unstable();
        Ok(troubled)
    }

    async fn mark_in(
        &self,
        collection: Collection,
        marks: &[Mark],
        indexes: &[usize],
    ) -> Result<Vec<usize>, StoreError> {
        let (sent, others): (Vec<usize>, Vec<usize>) = indexes.iter().partition(|&&index| marks[index].is_sent());
        let documents = by_document(marks, &sent);
        let (with_emails, events_only): (Vec<&SentEntries<'_>>, Vec<&SentEntries<'_>>) =
            documents.iter().partition(|document| !document.emails.is_empty());

        let mut statements = Vec::with_capacity(2 + others.len());
        // Which marks each statement is for.
        let mut owners: Vec<Vec<usize>> = Vec::new();
        for group in [&with_emails, &events_only] {
            if !group.is_empty() {
                statements.push(together(group));
                owners.push(group.iter().flat_map(|document| document.indexes.iter().copied()).collect());
            }
        }
        for &index in &others {
            statements.push(to_raw(&not_sent(&marks[index], Detail::Full)?)?);
            owners.push(vec![index]);
        }
        let expected = documents.len() + others.len();
        let updated = match self.update_each(collection, statements).await {
            Ok(updated) => updated,
            Err(StoreError::Permanent(error)) => {
                tracing::warn!(
                    error,
                    "MongoDB rejected the update that marks many entries; marking them document by document"
                );
                let mut troubled = self.mark_with_less(collection, marks, &others).await?;
                troubled.extend(self.mark_each(collection, &documents).await?);
                return Ok(troubled);
            }
            Err(error) => return Err(error),
        };
        let marks_of = |refusals: &[WriteError]| -> HashSet<usize> {
            refusals.iter().filter_map(|refusal| owners.get(refusal.position)).flatten().copied().collect()
        };
        let mut troubled = marks_of(&updated.transient);
        if updated.matched < expected || !updated.rejected.is_empty() {
            let refused = marks_of(&updated.rejected);
            let others: Vec<usize> = others.into_iter().filter(|index| refused.contains(index)).collect();
            troubled.extend(self.mark_with_less(collection, marks, &others).await?);
            let untroubled: Vec<SentEntries<'_>> = documents
                .into_iter()
                .filter(|document| !document.indexes.iter().any(|index| troubled.contains(index)))
                .collect();
            troubled.extend(self.mark_each(collection, &untroubled).await?);
        }
        Ok(troubled.into_iter().collect())
    }

    /// Marks entries that were not sent with less and less, because a validator may forbid the error or the event: a failed entry must
    /// not be retried. Returns the marks to be retried.
    async fn mark_with_less(
        &self,
        collection: Collection,
        marks: &[Mark],
        indexes: &[usize],
    ) -> Result<Vec<usize>, StoreError> {
        let mut troubled = Vec::new();
        let mut left = indexes.to_vec();
        for detail in [Detail::WithoutError, Detail::Bare] {
            let statements = left.iter().map(|&index| to_raw(&not_sent(&marks[index], detail)?));
            let updated = self.update_each(collection, statements.collect::<Result<Vec<_>, _>>()?).await?;
            let indexes_of = |refusals: &[WriteError]| -> Vec<usize> {
                refusals.iter().filter_map(|refusal| left.get(refusal.position)).copied().collect()
            };
            let transient = indexes_of(&updated.transient);
            let rejected = indexes_of(&updated.rejected);
            if detail == Detail::Bare {
                for &index in left.iter().filter(|index| !transient.contains(index)) {
                    let document = &marks[index].document;
                    if rejected.contains(&index) {
                        tracing::error!(
                            %document,
                            "MongoDB rejects the update of an outbox entry that could not be sent; it is retried when its lease expires"
                        );
                    } else if marks[index].is_in_doubt() {
                        tracing::error!(
                            %document,
                            "MongoDB rejects the update that counts an email as in doubt; it may have been delivered, and is kept for an operator"
                        );
                    } else if marks[index].announcement.is_some() {
                        tracing::error!(
                            %document,
                            "MongoDB rejects the event notification.failed in an outbox; it is not published"
                        );
                    }
                }
            }
            troubled.extend(transient);
            left = rejected;
        }
        Ok(troubled)
    }

    /// Marks sent entries document by document. Each statement is harmless after the others, because it finds the document only
    /// while the entries are there.
    async fn mark_each(&self, collection: Collection, documents: &[SentEntries<'_>]) -> Result<Vec<usize>, StoreError> {
        let mut troubled = Vec::new();
        let mut left: Vec<&SentEntries<'_>> = documents.iter().collect();
        for ways in [&[MarkForm::Recorded, MarkForm::RecordedTombstone][..], &[MarkForm::Tombstone, MarkForm::Bare][..]]
        {
            if left.is_empty() {
                break;
            }
            let statements = left.iter().flat_map(|document| ways.iter().map(|way| alone(document, *way)));
            let updated = self.update_each(collection, statements.collect::<Vec<_>>()).await?;
            let of = |position: usize| position / ways.len();
            let in_trouble: HashSet<usize> = updated.transient.iter().map(|trouble| of(trouble.position)).collect();
            if ways.contains(&MarkForm::Bare) {
                let refused =
                    updated.rejected.iter().filter(|refusal| ways[refusal.position % ways.len()] == MarkForm::Bare);
                for refusal in refused {
                    let document = left.get(of(refusal.position)).map_or("", |document| document.id);
                    tracing::error!(
                        document = format_args!("{} {document}", collection.as_str()),
                        code = refusal.code,
                        "MongoDB rejects the removal of sent entries from an outbox; they may be sent again"
                    );
                }
            }
            troubled.extend(in_trouble.iter().flat_map(|&place| left[place].indexes.iter().copied()));
            let mut place = 0..;
            left.retain(|_| place.next().is_some_and(|place| !in_trouble.contains(&place)));
        }
        Ok(troubled)
    }
}
