//! Where claims look for due entries, and how far they have looked.

use std::collections::HashSet;

use bson::{Bson, DateTime as Instant, RawBsonRef, RawDocument, RawDocumentBuf, doc};
use futures_util::TryStreamExt;
use mongodb::options::Hint;

use super::entry::{Kind, OUTBOXES};
use crate::store::client::Store;
use crate::store::collection::Collection;
use crate::store::error::{COMMAND_TIME_MAX, StoreError};
use crate::store::indexes::DUE;

/// A queue of due entries: those of one collection and one kind, and how far claims have looked.
#[derive(Clone, Debug)]
pub struct DueQueue {
    /// The collection.
    pub collection: Collection,
    /// The kind; absent for entries of earlier versions, which have none. These are not claimed: they get a kind, and are claimed by
    /// it then.
    pub(super) kind: Option<Kind>,
    /// The place in the index from which on candidates are taken.
    pub(super) from: Instant,
    /// The number of candidates at that position that are skipped.
    pub(super) skip: u64,
    /// Candidates after it that are skipped.
    pub(super) passed_over: HashSet<String>,
}

impl DueQueue {
    /// Where entries of a kind are. Those of earlier versions are looked for with events, which never wait for a mail server.
    #[must_use]
    pub fn of(kind: Kind) -> Vec<Self> {
        let kinds: &[Option<Kind>] = match kind {
            Kind::Email => &[Some(Kind::Email)],
            Kind::Event => &[Some(Kind::Event), None],
        };
        let queues = kinds.iter().flat_map(|&kind| {
            OUTBOXES.map(|collection| Self {
                collection,
                kind,
                from: Instant::MIN,
                skip: 0,
                passed_over: HashSet::new(),
            })
        });
        queues.collect()
    }

    /// Starts from the beginning again, including skipped documents.
    pub fn rewind(&mut self) {
        (self.from, self.skip) = (Instant::MIN, 0);
        self.passed_over.clear();
    }

    /// Skips a whole page.
    pub(super) fn advance(&mut self, page: &[Candidate]) {
        let Some(last) = page.last().map(|candidate| candidate.due) else { return };
        let at_last = page.iter().rev().take_while(|candidate| candidate.due == last).count() as u64;
        self.skip = if last == self.from { self.skip + at_last } else { at_last };
        self.from = last;
        self.passed_over.clear();
    }

    fn kind(&self) -> Bson {
        self.kind.map_or(Bson::Null, |kind| kind.as_str().into())
    }
}

/// A document with an entry that is due.
pub(super) struct Candidate {
    /// Its `_id` as text, even if it is of another type.
    pub(super) key: String,
    /// Its `_id`.
    pub(super) id: Bson,
    /// The oldest `due` that the index finds it by.
    pub(super) due: Instant,
}

impl Candidate {
    fn read(raw: &RawDocumentBuf, queue: &DueQueue, now: Instant) -> Option<Self> {
        let id = raw.get("_id").ok()??;
        let is_of_queue = |entry: &RawDocument| match (entry.get("kind"), queue.kind) {
            (Ok(Some(RawBsonRef::String(kind))), Some(wanted)) => kind == wanted.as_str(),
            (Ok(None | Some(RawBsonRef::Null)), None) => true,
            _ => false,
        };
        let entries = raw.get_array("outbox").ok()?.into_iter().flatten().filter_map(RawBsonRef::as_document);
        let due = entries
            .filter(|entry| is_of_queue(entry))
            .filter_map(|entry| entry.get_datetime("due").ok())
            .filter(|due| (queue.from..=now).contains(due))
            .min()?;
        Some(Self { key: key(id), id: Bson::try_from(id).ok()?, due })
    }
}

impl Store {
    /// The documents of a queue that have due entries, oldest first (the order of the index).
    pub(super) async fn candidates(
        &self,
        queue: &DueQueue,
        max: usize,
        now: Instant,
    ) -> Result<Vec<Candidate>, StoreError> {
        let filter = doc! {
            // For the planner: what the partial index holds.
            "outbox.due": { "$lte": now },
            "outbox": { "$elemMatch": { "kind": queue.kind(), "due": { "$gte": queue.from, "$lte": now } } },
        };
        let collection = self.database.collection::<RawDocumentBuf>(queue.collection.as_str());
        let projection = doc! { "outbox.kind": 1, "outbox.due": 1 };
        let (skip, limit) = (queue.skip, i64::try_from(max).unwrap_or(i64::MAX));
        let measured = self.measured(async move {
            let find = collection.find(filter).projection(projection).skip(skip).limit(limit);
            // The index of earlier versions, which may still be there, has another order.
            let find = find.hint(Hint::Name(DUE.to_owned())).max_time(COMMAND_TIME_MAX);
            find.batch_size(u32::try_from(limit).unwrap_or(u32::MAX)).await?.try_collect().await
        });
        let found: Vec<RawDocumentBuf> = measured.await?;
        Ok(found.iter().filter_map(|raw| Candidate::read(raw, queue, now)).collect())
    }
}

pub(super) fn key(id: RawBsonRef<'_>) -> String {
    id.as_str().map_or_else(|| format!("{id:?}"), str::to_owned)
}
