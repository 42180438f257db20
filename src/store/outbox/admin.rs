//! The outbox as operators see it: entries that failed permanently, and pending entries. Failed entries can be made due again, or
//! dropped.
//!
//! Both are found with an index (`offramp_failed`, `offramp_due`) that contains only such documents.

use bson::{Bson, DateTime as Instant, Document, RawBsonRef, RawDocument, RawDocumentBuf, doc};
use chrono::{DateTime, Utc};
use futures_util::TryStreamExt;
use mongodb::Cursor;
use offramp_domain::contact::Mailbox;
use serde::Deserialize;

use super::entry::{Kind, OUTBOXES, OutboxEntry};
use crate::clock;
use crate::store::bson::to_raw;
use crate::store::client::{Store, within_deadline};
use crate::store::collection::Collection;
use crate::store::error::StoreError;

/// The state of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryState {
    /// Failed permanently: it is not retried.
    Failed,
    /// It is sent when it is due.
    Pending,
}

/// An entry, as far as it can be read.
#[derive(Clone, Debug, PartialEq)]
pub struct EntrySummary {
    pub collection: Collection,
    /// Its document.
    pub document_id: String,
    /// Its id; empty where that is no text.
    pub entry_id: String,
    /// Its id as it is stored; null where it has none.
    pub stored_id: Bson,
    /// `mail` or `event`.
    pub kind: &'static str,
    /// The email's template, or the event's type.
    pub what: String,
    /// The email's address.
    pub recipient: Option<String>,
    /// The email's recipient: `account_manager` or `organization_contact`.
    pub role: Option<String>,
    /// The number of failed attempts.
    pub attempts: i64,
    /// Why the newest attempt failed.
    pub error: Option<String>,
    /// When it may be sent.
    pub due: Option<DateTime<Utc>>,
    /// When it failed permanently.
    pub failed_at: Option<DateTime<Utc>>,
}

/// A stream of entries, read as it is consumed.
#[derive(Debug)]
pub struct EntrySummaries {
    state: EntryState,
    /// The collections that are still to be read.
    left: Vec<(Collection, Cursor<RawDocumentBuf>)>,
}

impl EntrySummaries {
    /// The entries of the next document; `None` at the end.
    ///
    /// # Errors
    /// When the server does not answer; the stream is then at its end.
    pub async fn next(&mut self) -> Result<Option<Vec<EntrySummary>>, StoreError> {
        while let Some((collection, mut cursor)) = self.left.pop() {
            let (cursor, raw) = within_deadline(async move {
                let raw = cursor.try_next().await?;
                Ok((cursor, raw))
            })
            .await?;
            if let Some(raw) = raw {
                self.left.push((collection, cursor));
                return Ok(Some(entries(collection, &raw, self.state)));
            }
        }
        Ok(None)
    }
}

impl Store {
    /// The entries in this state, in all documents.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn outbox_entries(&self, state: EntryState) -> Result<EntrySummaries, StoreError> {
        // A range of instants: what these indexes can be asked for.
        let any = doc! { "$gte": Instant::MIN };
        let filter = match state {
            EntryState::Failed => doc! { "outbox.failed_at": any },
            EntryState::Pending => {
                let kinds = [Bson::Null, Kind::Email.as_str().into(), Kind::Event.as_str().into()];
                doc! { "outbox.due": any.clone(), "outbox": { "$elemMatch": { "kind": { "$in": kinds }, "due": any } } }
            }
        };
        let mut left = Vec::new();
        for collection in OUTBOXES.into_iter().rev() {
            let documents = self.database.collection::<RawDocumentBuf>(collection.as_str());
            let filter = filter.clone();
            let finding = async move { documents.find(filter).projection(doc! { "outbox": 1 }).await };
            left.push((collection, within_deadline(finding).await?));
        }
        Ok(EntrySummaries { state, left })
    }

    /// The entries of one document, as they are now; empty if there is no such document.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn outbox_of(&self, collection: Collection, id: &str) -> Result<Vec<EntrySummary>, StoreError> {
        let found = self.find_by_id(collection, std::iter::once(id), doc! { "outbox": 1 }).await?;
        let of = |state| found.iter().flat_map(move |raw| entries(collection, raw, state));
        Ok(of(EntryState::Failed).chain(of(EntryState::Pending)).collect())
    }

    /// What an entry sends; `None` if there is no such entry, or it cannot be read.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn outbox_entry(
        &self,
        collection: Collection,
        document_id: &str,
        entry_id: &str,
    ) -> Result<Option<OutboxEntry>, StoreError> {
        let found = self.find_by_id(collection, std::iter::once(document_id), doc! { "outbox": 1 }).await?;
        let outbox = found.iter().filter_map(|raw| raw.get_array("outbox").ok()).flatten().flatten();
        let is_meant = |entry: &&RawDocument| entry.get_str("id").is_ok_and(|id| id == entry_id);
        let entry = outbox.filter_map(RawBsonRef::as_document).find(is_meant);
        let entry = entry.and_then(|entry| bson::deserialize_from_slice::<OutboxEntry>(entry.as_bytes()).ok());
        Ok(entry.map(|entry| entry.up_to_date(clock::now().date_naive())))
    }

    /// Makes failed entries due at `now`, so that any worker claims them. Entries that are no longer failed, because somebody else was
    /// faster, are not changed. Returns the number of entries made due.
    ///
    /// # Errors
    /// When the server does not answer: the same again is then safe.
    pub async fn retry(&self, failed: &[EntrySummary], now: DateTime<Utc>) -> Result<usize, StoreError> {
        let entries = failed.iter().map(|entry| (entry, None));
        self.update_failed(entries, |entry, to, record| retry_statement(entry, to, now.into(), record)).await
    }

    /// The same, each to an address of its own. The email's record says where it goes now.
    ///
    /// # Errors
    /// When the server does not answer: the same again is then safe.
    pub async fn retry_to(&self, failed: &[(EntrySummary, Mailbox)], now: DateTime<Utc>) -> Result<usize, StoreError> {
        // Without an id of its own, an entry cannot be told from another one.
        let entries =
            failed.iter().filter(|(entry, _)| !entry.entry_id.is_empty()).map(|(entry, to)| (entry, Some(to)));
        self.update_failed(entries, |entry, to, record| retry_statement(entry, to, now.into(), record)).await
    }

    /// Drops failed entries: they will never be sent. The same update writes that to the email's record in `notifications`. Entries that
    /// are no longer failed, because somebody else was faster, are not changed. Returns the number of entries dropped.
    ///
    /// # Errors
    /// When the server does not answer: the same again is then safe.
    pub async fn drop_failed(&self, failed: &[EntrySummary]) -> Result<usize, StoreError> {
        let entries = failed.iter().map(|entry| (entry, None));
        self.update_failed(entries, |entry, _, record| drop_statement(entry, record)).await
    }

    /// Updates entries that are still failed, together with their records, if any. Returns the number of entries found.
    async fn update_failed<'a>(
        &self,
        failed: impl Iterator<Item = (&'a EntrySummary, Option<&'a Mailbox>)> + Clone,
        statement: impl Fn(&EntrySummary, Option<&Mailbox>, Record) -> Result<RawDocumentBuf, StoreError>,
    ) -> Result<usize, StoreError> {
        let mut found = 0;
        for collection in OUTBOXES {
            let of_collection: Vec<_> = failed.clone().filter(|(entry, _)| entry.collection == collection).collect();
            if of_collection.is_empty() {
                continue;
            }
            let statements = |records: &[Record]| {
                let pairs = of_collection.iter().flat_map(|entry| records.iter().map(move |record| (entry, *record)));
                pairs.map(|((entry, to), record)| statement(entry, *to, record)).collect::<Result<Vec<_>, _>>()
            };
            let recorded = self.update_many(collection, statements(&[Record::Live, Record::Tombstone])?).await?;
            // What could not be recorded, because `notifications` is no array or a validator forbids it, is still failed.
            let unrecorded = self.update_many(collection, statements(&[Record::None])?).await?;
            found += recorded.matched + unrecorded.matched;
            if let Some(refusal) = unrecorded.rejected.first() {
                return Err(StoreError::Permanent(refusal.message.clone()));
            }
        }
        Ok(found)
    }
}

/// Which record of an email a statement updates, and so which documents it finds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Record {
    Live,
    /// It must not contain personal data, such as an error that names the address.
    Tombstone,
    None,
}

/// Finds the entry only if it is still failed, and with its record only where there can be one.
fn find_failed(entry: &EntrySummary, record: Record) -> Document {
    let failed = doc! { "id": &entry.stored_id, "failed_at": { "$exists": true } };
    let mut find = doc! { "_id": &entry.document_id, "outbox": { "$elemMatch": failed } };
    let status = match record {
        Record::Live => doc! { "$ne": "removed" },
        Record::Tombstone => doc! { "$eq": "removed" },
        Record::None => return find,
    };
    find.extend(doc! { "status": status, "notifications": { "$type": "array" } });
    find
}

/// The new `version` makes a worker that has read the document read it again.
fn retry_statement(
    entry: &EntrySummary,
    to: Option<&Mailbox>,
    now: Instant,
    record: Record,
) -> Result<RawDocumentBuf, StoreError> {
    let mut unset = doc! { "outbox.$[entry].failed_at": "" };
    let mut filters = vec![doc! { "entry.id": &entry.stored_id, "entry.failed_at": { "$exists": true } }];
    if record != Record::None {
        unset.extend(doc! { "notifications.$[record].failed_at": "", "notifications.$[record].error": "" });
        filters.push(doc! { "record.id": &entry.stored_id });
    }
    // Without a holder, so that a worker that still wants to mark it as failed no longer finds it.
    let mut set = doc! { "outbox.$[entry].due": now, "outbox.$[entry].holder": "" };
    if let Some(to) = to {
        let mut mailbox = doc! { "email": &to.email };
        mailbox.extend(to.name.as_ref().map(|name| ("name".to_owned(), name.into())));
        set.insert("outbox.$[entry].mail.to", mailbox);
        filters[0].insert("entry.mail.role", entry.role.clone());
        if record == Record::Live {
            set.insert("notifications.$[record].to", &to.email);
        }
    }
    to_raw(&doc! {
        "q": find_failed(entry, record),
        "u": {
            "$unset": unset,
            "$set": set,
            "$inc": { "version": 1_i64 },
        },
        "arrayFilters": filters,
    })
}

fn drop_statement(entry: &EntrySummary, record: Record) -> Result<RawDocumentBuf, StoreError> {
    let failed = doc! { "id": &entry.stored_id, "failed_at": { "$exists": true } };
    let mut update = doc! { "$pull": { "outbox": failed }, "$inc": { "version": 1_i64 } };
    let mut filters = Vec::new();
    if record != Record::None {
        let mut set = doc! { "notifications.$[record].failed_at": entry.failed_at.map(Instant::from) };
        if record == Record::Live {
            let error = entry.error.as_ref().map_or_else(|| DROPPED.to_owned(), |error| format!("{error}; {DROPPED}"));
            set.insert("notifications.$[record].error", error);
        }
        update.insert("$set", set);
        filters.push(doc! { "record.id": &entry.entry_id });
    }
    to_raw(&doc! { "q": find_failed(entry, record), "u": update, "arrayFilters": filters })
}

/// What the record of a dropped email says.
const DROPPED: &str = "dropped by an operator";

/// The fields of an entry that a list shows, whoever wrote it.
#[derive(Default, Deserialize)]
struct Fields {
    id: Option<Bson>,
    due: Option<Bson>,
    failed_at: Option<Bson>,
    attempts: Option<Bson>,
    error: Option<Bson>,
    mail: Option<Bson>,
    event: Option<Bson>,
}

fn entries(collection: Collection, raw: &RawDocumentBuf, state: EntryState) -> Vec<EntrySummary> {
    let document_id = raw.get_str("_id").unwrap_or_default();
    let outbox = raw.get_array("outbox").into_iter().flatten().flatten().filter_map(RawBsonRef::as_document);
    outbox
        .map(|entry| {
            let fields: Fields = bson::deserialize_from_slice(entry.as_bytes()).unwrap_or_default();
            read(collection, document_id, fields)
        })
        .filter(|entry| match state {
            EntryState::Failed => entry.failed_at.is_some(),
            EntryState::Pending => entry.due.is_some(),
        })
        .collect()
}

fn read(collection: Collection, document_id: &str, fields: Fields) -> EntrySummary {
    let word = |value: Option<&Bson>| value.and_then(Bson::as_str).map(str::to_owned);
    let instant = |value: Option<Bson>| value.as_ref().and_then(Bson::as_datetime).map(|at| at.to_chrono());
    let [mail, event] = [&fields.mail, &fields.event].map(|content| content.as_ref().and_then(Bson::as_document));
    let (kind, what) = match (&fields.mail, event) {
        (None, Some(event)) => ("event", word(event.get("type"))),
        _ => ("mail", word(mail.and_then(|mail| mail.get("template")))),
    };
    let to = mail.and_then(|mail| mail.get_document("to").ok());
    EntrySummary {
        collection,
        document_id: document_id.to_owned(),
        entry_id: word(fields.id.as_ref()).unwrap_or_default(),
        stored_id: fields.id.unwrap_or(Bson::Null),
        kind,
        what: what.unwrap_or_default(),
        recipient: word(to.and_then(|to| to.get("email"))),
        role: word(mail.and_then(|mail| mail.get("role"))),
        attempts: match fields.attempts {
            Some(Bson::Int32(number)) => number.into(),
            Some(Bson::Int64(number)) => number,
            _ => 0,
        },
        error: word(fields.error.as_ref()),
        due: instant(fields.due),
        failed_at: instant(fields.failed_at),
    }
}
