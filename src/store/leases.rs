//! The outbox as its dispatcher sees it: claim what is due, mark what has left, put off what could not, keep what was
//! refused.

use bson::{Bson, DateTime as Instant, Document, RawDocumentBuf, doc};
use chrono::{DateTime, Utc};
use serde::Deserialize;

use super::commit::{Committed, GuardedUpdate, bson, next};
use super::documents::SentDocument;
use super::outbox::{Lease, Leased, OutboxEntry};
use super::{Collection, Store, StoreError};

/// What became of an entry.
#[derive(Clone, Debug)]
pub struct Settled {
    /// Where its document is.
    pub collection: Collection,
    /// Its document.
    pub document_id: String,
    /// Its id.
    pub entry_id: String,
    /// How it went.
    pub fate: Fate,
}

/// How the sending of an entry went.
#[derive(Clone, Debug)]
pub enum Fate {
    /// The mail server has accepted the mail.
    Sent(SentDocument),
    /// The broker has confirmed the event.
    Published,
    /// Not now.
    PutOff {
        /// When it may be tried again.
        until: DateTime<Utc>,
        /// Why.
        error: String,
    },
    /// Never.
    Refused {
        /// When that was found out.
        at: DateTime<Utc>,
        /// Why.
        error: String,
    },
}

/// What a claim reads of a document.
#[derive(Deserialize)]
struct Claimable {
    #[serde(rename = "_id")]
    id: String,
    version: Option<i64>,
    outbox: Vec<OutboxEntry>,
}

impl Store {
    /// Takes entries whose lease has run out, of at most `documents` documents of `collection`, for `lease`.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn claim(
        &self,
        collection: Collection,
        documents: i64,
        lease: &Lease,
        now: DateTime<Utc>,
    ) -> Result<Vec<Leased>, StoreError> {
        let now: Instant = now.into();
        let due = self
            .find(
                collection,
                doc! { "outbox.due": { "$lte": now } },
                doc! { "version": 1, "outbox": 1 },
                Some(documents),
            )
            .await?;
        let updates: Vec<GuardedUpdate> =
            due.iter().filter_map(|raw| claim_update(collection, raw, lease, now)).collect();
        let committed = self.commit(&updates).await?;
        Ok(updates
            .into_iter()
            .zip(committed)
            .filter(|(_, committed)| *committed == Committed::Written)
            .flat_map(|(update, _)| update.into_leased())
            .collect())
    }

    /// Writes what became of entries. Entries that are not there any more (somebody else was faster) are passed over.
    ///
    /// # Errors
    /// When the server does not answer: the same again is then safe.
    pub async fn settle(&self, settled: &[Settled]) -> Result<(), StoreError> {
        for collection in [Collection::Subscriptions, Collection::Accounts] {
            let of_collection: Vec<&Settled> =
                settled.iter().filter(|settled| settled.collection == collection).collect();
            if of_collection.is_empty() {
                continue;
            }
            let statements =
                |keeps| of_collection.iter().map(|settled| statement(settled, keeps)).collect::<Result<_, _>>();
            let updated = self.update_many(collection, statements(Keeps::Notifications)?).await?;
            for (index, error) in &updated.refused {
                let entry = of_collection.get(*index).map(|settled| settled.entry_id.as_str());
                tracing::error!(entry, %error, "an outbox entry could not be marked; it will be sent again");
            }
            if updated.matched < of_collection.len() && collection == Collection::Subscriptions {
                // Some of them may be in tombstones.
                self.update_many(collection, statements(Keeps::Nothing)?).await?;
            }
        }
        Ok(())
    }
}

fn claim_update(collection: Collection, raw: &RawDocumentBuf, lease: &Lease, now: Instant) -> Option<GuardedUpdate> {
    let mut document: Claimable = match bson::deserialize_from_slice(raw.as_bytes()) {
        Ok(document) => document,
        Err(error) => {
            let id = raw.get_str("_id").unwrap_or("?");
            tracing::error!(collection = collection.as_str(), id, %error, "an outbox cannot be read; it is left as it is");
            return None;
        }
    };
    document.outbox.retain(|entry| entry.due.is_some_and(|due| due <= now));
    for entry in &mut document.outbox {
        entry.due = Some(lease.until.into());
        entry.holder = lease.holder.to_string();
    }
    Some(GuardedUpdate {
        collection,
        id: document.id,
        version: document.version,
        update: doc! { "$set": {
            "outbox.$[due].due": Instant::from(lease.until),
            "outbox.$[due].holder": lease.holder.to_string(),
            "version": next(document.version),
        } }
        .into(),
        array_filters: Some(vec![doc! { "due.due": { "$lte": now } }]),
        entries: document.outbox,
    })
}

/// What a document keeps of an entry that has left.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keeps {
    /// A record of the mail.
    Notifications,
    /// Nothing but when its newest entry has left: a tombstone is deleted 30 days after that.
    Nothing,
}

/// The statement that finds the entry in its document, so that marking twice marks once.
fn statement(settled: &Settled, keeps: Keeps) -> Result<Document, StoreError> {
    let removed = "removed";
    let status = match keeps {
        Keeps::Notifications => doc! { "$ne": removed }.into(),
        Keeps::Nothing => Bson::from(removed),
    };
    let id = settled.entry_id.as_str();
    let pull = doc! { "outbox": { "id": id } };
    let mut filters: Vec<Document> = Vec::new();
    let mut update = match (&settled.fate, keeps) {
        (Fate::Sent(sent), Keeps::Notifications) => doc! { "$pull": pull, "$push": { "notifications": bson(sent)? } },
        (Fate::Published, Keeps::Notifications) => doc! { "$pull": pull },
        (Fate::Sent(_) | Fate::Published, Keeps::Nothing) => {
            doc! { "$pull": pull, "$set": { "applied.$[].settled_at": Instant::now() } }
        }
        (Fate::PutOff { until, error }, _) => {
            filters.push(doc! { "entry.id": id });
            doc! {
                "$set": { "outbox.$[entry].due": Instant::from(*until), "outbox.$[entry].error": error },
                "$inc": { "outbox.$[entry].attempts": 1 },
            }
        }
        (Fate::Refused { at, error }, _) => {
            filters.push(doc! { "entry.id": id });
            doc! {
                "$unset": { "outbox.$[entry].due": "" },
                "$set": { "outbox.$[entry].failed_at": Instant::from(*at), "outbox.$[entry].error": error },
                "$inc": { "outbox.$[entry].attempts": 1 },
            }
        }
    };
    let mut increments = update.get_document("$inc").cloned().unwrap_or_default();
    increments.insert("version", 1_i64);
    update.insert("$inc", increments);
    let mut statement = doc! { "q": { "_id": &settled.document_id, "outbox.id": id, "status": status }, "u": update };
    if !filters.is_empty() {
        statement.insert("arrayFilters", filters);
    }
    Ok(statement)
}
