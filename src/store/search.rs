//! What people search for: by account, address, email or command, and by what is to be decided or ends soon.
//!
//! Every search names its index, so none reads a whole collection: without the index it fails and says so.

use bson::{Bson, DateTime as Instant, Document, RawDocumentBuf, doc};
use chrono::{DateTime, NaiveDate, NaiveTime, TimeDelta, Utc};
use futures_util::TryStreamExt;
use mongodb::options::Hint;
use uuid::Uuid;

use super::client::{Store, within_deadline};
use super::collection::Collection;
use super::error::{COMMAND_TIME_MAX, StoreError};
use super::indexes::{
    ADDRESS, APPLIED, BAD_VALUE, EMAIL_IDS, OF_ACCOUNT, PENDING_REQUESTS, SCHEDULED_ENDS, code, without_case,
};

/// The largest difference of a time zone from UTC, in hours, to the west: a day begins there last.
const WEST_OF_UTC_HOURS_MAX: i64 = 12;

/// Why a search failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SearchError {
    /// An index is missing. Without it the search would read the whole collection.
    #[error("the index {0} is missing")]
    MissingIndex(String),
    /// The server does not answer, or rejects the query.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A query of one index.
#[derive(Debug)]
pub(super) struct Search {
    /// The name of the collection.
    pub(super) collection: &'static str,
    pub(super) index: &'static str,
    pub(super) filter: Document,
    pub(super) limit: usize,
    /// Absent: whole documents.
    pub(super) fields: Document,
    pub(super) order: Option<Document>,
    /// Whether the index ignores case.
    pub(super) is_without_case: bool,
}

impl Search {
    pub(super) fn new(collection: &'static str, index: &'static str, filter: Document, limit: usize) -> Self {
        Self { collection, index, filter, limit, fields: Document::new(), order: None, is_without_case: false }
    }
}

impl Store {
    /// At most `limit` documents that an index finds.
    pub(super) async fn search(&self, search: Search) -> Result<Vec<RawDocumentBuf>, SearchError> {
        let Search { collection, index, filter, limit, fields, order, is_without_case } = search;
        let documents = self.database.collection::<RawDocumentBuf>(collection);
        let (limit, batch_size) = (i64::try_from(limit).unwrap_or(i64::MAX), u32::try_from(limit).unwrap_or(u32::MAX));
        let found = within_deadline(async move {
            let mut find = documents.find(filter).projection(fields).limit(limit).batch_size(batch_size);
            find = find.max_time(COMMAND_TIME_MAX).hint(Hint::Name(index.to_owned()));
            if let Some(order) = order {
                find = find.sort(order);
            }
            if is_without_case {
                find = find.collation(without_case());
            }
            match find.await {
                Ok(found) => found.try_collect().await.map(Some),
                // The queries are correct, so it is the hint.
                Err(error) if code(&error) == Some(BAD_VALUE) => Ok(None),
                Err(error) => Err(error),
            }
        });
        found.await?.ok_or_else(|| SearchError::MissingIndex(format!("{collection}.{index}")))
    }

    /// At most `limit` subscriptions of an account, the newest first, with the fields that a list shows.
    ///
    /// # Errors
    /// [`SearchError`]
    pub async fn subscriptions_of_account(&self, id: &str, limit: usize) -> Result<Vec<RawDocumentBuf>, SearchError> {
        // Entries of one key are in the order in which their documents were inserted. MongoDB sorts nothing where there is only one
        // key, hence a second, which no document has.
        let filter = doc! { "account_id": { "$in": [Bson::from(id), Bson::MinKey] } };
        let order = Some(doc! { "account_id": -1 });
        let fields = listed(Collection::Subscriptions);
        let search = Search::new(Collection::Subscriptions.as_str(), OF_ACCOUNT, filter, limit);
        self.search(Search { fields, order, ..search }).await
    }

    /// How many subscriptions an account has.
    ///
    /// # Errors
    /// [`SearchError`]
    pub async fn count_subscriptions_of_account(&self, id: &str) -> Result<u64, SearchError> {
        let documents = self.database.collection::<RawDocumentBuf>(Collection::Subscriptions.as_str());
        let filter = doc! { "account_id": id };
        let counted = within_deadline(async move {
            let count = documents.count_documents(filter).hint(Hint::Name(OF_ACCOUNT.to_owned()));
            match count.max_time(COMMAND_TIME_MAX).await {
                Ok(count) => Ok(Some(count)),
                Err(error) if code(&error) == Some(BAD_VALUE) => Ok(None),
                Err(error) => Err(error),
            }
        });
        let missing = || SearchError::MissingIndex(format!("{}.{OF_ACCOUNT}", Collection::Subscriptions.as_str()));
        counted.await?.ok_or_else(missing)
    }

    /// The documents whose `notifications` have the email `id`, with its record alone. At most one has it.
    ///
    /// # Errors
    /// [`SearchError`]
    pub async fn documents_with_email(
        &self,
        collection: Collection,
        id: Uuid,
    ) -> Result<Vec<RawDocumentBuf>, SearchError> {
        let id = id.to_string();
        let mut fields = listed(collection);
        fields.insert("notifications", doc! { "$elemMatch": { "id": &id } });
        fields.insert("outbox", doc! { "$elemMatch": { "id": &id } });
        let search = Search::new(collection.as_str(), EMAIL_IDS, doc! { "notifications.id": id }, 1);
        self.search(Search { fields, ..search }).await
    }

    /// At most `limit` documents that applied a command of this id, whichever system sent it, with that entry of `applied` alone.
    /// `collection` is subscriptions or accounts.
    ///
    /// # Errors
    /// [`SearchError`]
    pub async fn documents_that_applied(
        &self,
        collection: Collection,
        command_id: &str,
        limit: usize,
    ) -> Result<Vec<RawDocumentBuf>, SearchError> {
        let mut fields = listed(collection);
        fields.insert("applied", doc! { "$elemMatch": { "id": command_id } });
        let search = Search::new(collection.as_str(), APPLIED, doc! { "applied.id": command_id }, limit);
        self.search(Search { fields, ..search }).await
    }

    /// At most `limit` accounts or organizations that have this email address now, without regard to case.
    ///
    /// # Errors
    /// [`SearchError`]
    pub async fn documents_with_address(
        &self,
        collection: Collection,
        address: &str,
        limit: usize,
    ) -> Result<Vec<RawDocumentBuf>, SearchError> {
        let field = match collection {
            Collection::Organizations => "contact.email",
            Collection::Accounts => "manager.email",
            Collection::Subscriptions => return Ok(Vec::new()),
        };
        let search = Search::new(collection.as_str(), ADDRESS, doc! { field: address }, limit);
        self.search(Search { fields: listed(collection), is_without_case: true, ..search }).await
    }

    /// At most `limit` subscriptions whose undecided request was sent at `since` or before, the oldest first; of one organization, if
    /// it is given.
    ///
    /// # Errors
    /// [`SearchError`]
    pub async fn requests_undecided_since(
        &self,
        since: DateTime<Utc>,
        organization_id: Option<&str>,
        limit: usize,
    ) -> Result<Vec<RawDocumentBuf>, SearchError> {
        let mut filter = doc! {
            "status": "cancellation_requested",
            "cancellation_request.requested_at": { "$lte": Instant::from(since) },
        };
        filter.extend(organization_id.map(|id| ("organization_id".to_owned(), id.into())));
        let order = Some(doc! { "cancellation_request.requested_at": 1, "_id": 1 });
        let fields = listed(Collection::Subscriptions);
        let search = Search::new(Collection::Subscriptions.as_str(), PENDING_REQUESTS, filter, limit);
        self.search(Search { fields, order, ..search }).await
    }

    /// At most `limit` subscriptions that are scheduled to end and whose last day is before `day`, the first to end first; of one
    /// organization, if it is given.
    ///
    /// # Errors
    /// [`SearchError`]
    pub async fn scheduled_to_end_before(
        &self,
        day: NaiveDate,
        organization_id: Option<&str>,
        limit: usize,
    ) -> Result<Vec<RawDocumentBuf>, SearchError> {
        // The index has instants. A last day before `day` is over when `day` begins, at the latest in the west.
        let begins = day.and_time(NaiveTime::MIN).and_utc();
        let latest = begins.checked_add_signed(TimeDelta::hours(WEST_OF_UTC_HOURS_MAX)).unwrap_or(begins);
        let mut filter = doc! {
            "status": "cancellation_scheduled",
            "ends_at": { "$lte": Instant::from(latest) },
            "ends_on": { "$lt": day.to_string() },
        };
        filter.extend(organization_id.map(|id| ("organization_id".to_owned(), id.into())));
        let order = Some(doc! { "ends_at": 1, "_id": 1 });
        let fields = listed(Collection::Subscriptions);
        let search = Search::new(Collection::Subscriptions.as_str(), SCHEDULED_ENDS, filter, limit);
        self.search(Search { fields, order, ..search }).await
    }

    /// The documents with these ids, with the fields that a list shows.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn listed_documents(
        &self,
        collection: Collection,
        ids: impl Iterator<Item = &str>,
    ) -> Result<Vec<RawDocumentBuf>, StoreError> {
        self.find_by_id(collection, ids, listed(collection)).await
    }
}

/// The fields that a list of documents shows.
fn listed(collection: Collection) -> Document {
    let fields: &[&str] = match collection {
        Collection::Organizations => &["name", "contact.email"],
        Collection::Accounts => &["organization_id", "manager.name", "manager.email"],
        Collection::Subscriptions => &[
            "organization_id",
            "account_id",
            "participant",
            "plan",
            "status",
            "billing.next_on",
            "ends_on",
            "ended_on",
            "cancellation_request",
        ],
    };
    fields.iter().map(|field| ((*field).to_owned(), 1.into())).collect()
}
