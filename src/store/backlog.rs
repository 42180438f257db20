//! How much waits in the database: outbox entries and undecided requests. Each answer costs one aggregation per collection and kind,
//! on an index that has only what waits, and is bounded.

use bson::{Bson, DateTime as Instant, Document, doc};
use chrono::{DateTime, Utc};

use offramp_domain::subscription::Status;

use super::client::Store;
use super::collection::Collection;
use super::error::StoreError;
use super::indexes::{DUE, FAILED, PENDING_REQUESTS};
use super::outbox::entry::{Kind, OUTBOXES};

/// The number of documents of one collection that are counted, or whose outbox entries are.
const DOCUMENTS_MAX: i64 = 10_000;

/// Things that wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    pub count: i64,
    /// Whether there may be more than were counted.
    pub has_more: bool,
    /// Since when the oldest has waited.
    pub oldest: Option<DateTime<Utc>>,
}

impl Backlog {
    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            count: self.count + other.count,
            has_more: self.has_more || other.has_more,
            oldest: [self.oldest, other.oldest].into_iter().flatten().min(),
        }
    }
}

impl Store {
    /// The outbox entries of a kind that will be sent or retried. Entries of earlier versions do not know when they were committed;
    /// they count from their next attempt on.
    ///
    /// # Errors
    /// When the server does not answer, or the index is missing.
    pub async fn pending_entries(&self, kind: Kind) -> Result<Backlog, StoreError> {
        let any = doc! { "$gte": Instant::MIN };
        let filter = doc! {
            "outbox.due": any.clone(),
            "outbox": { "$elemMatch": { "kind": kind.as_str(), "due": any } },
        };
        let is_counted = doc! { "$and": [
            { "$eq": ["$$entry.kind", kind.as_str()] },
            { "$eq": [{ "$type": "$$entry.due" }, "date"] },
        ] };
        self.entries(DUE, &filter, &is_counted).await
    }

    /// The outbox entries of a kind that failed permanently.
    ///
    /// # Errors
    /// When the server does not answer, or the index is missing.
    pub async fn failed_entries(&self, kind: Kind) -> Result<Backlog, StoreError> {
        // Entries of earlier versions have no kind.
        let is_event = doc! { "$eq": [{ "$type": "$$entry.event" }, "object"] };
        let is_of_kind = match kind {
            Kind::Event => is_event,
            Kind::Email => doc! { "$not": is_event },
        };
        let is_counted = doc! { "$and": [is_of_kind, { "$eq": [{ "$type": "$$entry.failed_at" }, "date"] }] };
        self.entries(FAILED, &doc! { "outbox.failed_at": { "$gte": Instant::MIN } }, &is_counted).await
    }

    async fn entries(
        &self,
        index: &'static str,
        filter: &Document,
        is_counted: &Document,
    ) -> Result<Backlog, StoreError> {
        let outbox = doc! { "$cond": [{ "$isArray": "$outbox" }, "$outbox", []] };
        let counted = doc! { "$filter": { "input": outbox, "as": "entry", "cond": is_counted } };
        let since = doc! { "$ifNull": ["$$entry.committed_at", "$$entry.due"] };
        let stages = vec![
            doc! { "$match": filter },
            doc! { "$limit": DOCUMENTS_MAX },
            doc! { "$project": { "entries": counted } },
            doc! { "$group": {
                "_id": Bson::Null,
                "documents": { "$sum": 1 },
                "count": { "$sum": { "$size": "$entries" } },
                "oldest": { "$min": { "$min": { "$map": { "input": "$entries", "as": "entry", "in": since } } } },
            } },
        ];
        let mut all = Backlog::default();
        for collection in OUTBOXES {
            all = all.plus(self.backlog(collection, index, &stages).await?);
        }
        Ok(all)
    }

    /// The undecided cancellation requests.
    ///
    /// # Errors
    /// When the server does not answer, or the index is missing.
    pub async fn undecided_requests(&self) -> Result<Backlog, StoreError> {
        let requested_at = "$cancellation_request.requested_at";
        let since = doc! { "$cond": [{ "$eq": [{ "$type": requested_at }, "date"] }, requested_at, Bson::Null] };
        let stages = vec![
            doc! { "$match": { "status": Status::CancellationRequested.as_str() } },
            doc! { "$limit": DOCUMENTS_MAX },
            doc! { "$group": {
                "_id": Bson::Null,
                "documents": { "$sum": 1 },
                "count": { "$sum": 1 },
                "oldest": { "$min": since },
            } },
        ];
        self.backlog(Collection::Subscriptions, PENDING_REQUESTS, &stages).await
    }

    async fn backlog(
        &self,
        collection: Collection,
        index: &'static str,
        stages: &[Document],
    ) -> Result<Backlog, StoreError> {
        let reply = self
            .command(doc! { "aggregate": collection.as_str(), "pipeline": stages, "cursor": {}, "hint": index })
            .await?;
        let batch = reply.get_document("cursor").and_then(|cursor| cursor.get_array("firstBatch"));
        let found = batch.ok().and_then(|batch| batch.first()).and_then(Bson::as_document);
        let number = |found: &Document, field| found.get_i32(field).map(i64::from).or_else(|_| found.get_i64(field));
        Ok(found.map_or_else(Backlog::default, |found| Backlog {
            count: number(found, "count").unwrap_or(0),
            has_more: number(found, "documents").is_ok_and(|documents| documents >= DOCUMENTS_MAX),
            oldest: found.get_datetime("oldest").ok().map(|oldest| oldest.to_chrono()),
        }))
    }
}
