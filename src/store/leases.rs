//! The outbox as its dispatcher sees it: claim what is due, mark what has left, put off what could not, keep what was
//! refused.

use std::collections::HashMap;

use bson::{Bson, DateTime as Instant, Document, RawArrayBuf, RawBsonRef, RawDocumentBuf, doc, rawdoc};
use chrono::{DateTime, Utc};
use serde::Deserialize;

use super::commit::{Committed, GuardedUpdate, bson, next, raw};
use super::documents::{SentDocument, integer};
use super::outbox::{Lease, Leased, OutboxEntry};
use super::{Collection, Store, StoreError};

/// What is to be marked of an entry.
#[derive(Clone, Debug)]
pub struct Mark {
    /// Where its document is.
    pub collection: Collection,
    /// Its document.
    pub document_id: String,
    /// Its id.
    pub entry_id: String,
    /// The lease under which it was sent.
    pub holder: String,
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
    /// Not by this process, which has no room for it: whoever has some may take it at once.
    GivenBack,
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

impl Fate {
    /// Whether the entry is out, so that nothing more is to be done about it.
    fn has_left(&self) -> bool {
        matches!(self, Self::Sent(_) | Self::Published)
    }
}

/// What a claim reads of a document.
#[derive(Deserialize)]
struct Claimable {
    #[serde(rename = "_id")]
    id: String,
    #[serde(default, deserialize_with = "integer")]
    version: Option<i64>,
    outbox: RawArrayBuf,
}

/// What a claim got.
#[derive(Debug, Default)]
pub struct Claimed {
    /// The entries that are ours now.
    pub entries: Vec<Leased>,
    /// The documents that cannot be claimed from, for the next claim to pass over.
    pub unclaimable: Vec<Bson>,
    /// Whether there was anything to claim.
    pub found: bool,
}

impl Store {
    /// Takes entries whose lease has run out, of at most `documents` documents of `collection` other than `passing_over`, for
    /// `lease`.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn claim(
        &self,
        collection: Collection,
        documents: i64,
        passing_over: &[Bson],
        lease: &Lease,
        now: DateTime<Utc>,
    ) -> Result<Claimed, StoreError> {
        let now: Instant = now.into();
        let mut filter = doc! { "outbox.due": { "$lte": now } };
        if !passing_over.is_empty() {
            filter.insert("_id", doc! { "$nin": passing_over });
        }
        let due = self.find(collection, filter, doc! { "version": 1, "outbox": 1 }, Some(documents)).await?;
        let mut claimed = Claimed { found: !due.is_empty(), ..Claimed::default() };
        let mut updates = Vec::new();
        for raw in &due {
            match claim_update(collection, raw, lease, now) {
                Ok(update) => updates.push(update),
                Err(error) => claimed.pass_over(collection, raw.get("_id").ok().flatten(), &error.to_string()),
            }
        }
        let committed = self.commit(&updates).await?;
        for (update, committed) in updates.into_iter().zip(committed) {
            match committed {
                Committed::Written => claimed.entries.extend(update.into_leased()),
                Committed::Lost => {}
                Committed::Refused(error) | Committed::Corrupt(error) => {
                    claimed.pass_over(collection, Some(RawBsonRef::String(&update.id)), &error);
                }
            }
        }
        Ok(claimed)
    }

    /// Writes what became of entries. Entries that are not there any more (somebody else was faster) are passed over.
    ///
    /// # Errors
    /// When the server does not answer: the same again is then safe.
    pub async fn settle(&self, marks: &[Mark]) -> Result<(), StoreError> {
        for collection in [Collection::Subscriptions, Collection::Accounts] {
            let (left, mut others): (Vec<&Mark>, Vec<&Mark>) =
                marks.iter().filter(|mark| mark.collection == collection).partition(|mark| mark.fate.has_left());
            if !self.settle_together(collection, &left).await? {
                others.extend(left);
            }
            self.settle_each(collection, &others).await?;
        }
        Ok(())
    }

    /// Gives entries back before their lease runs out. Should that fail, the lease still does.
    pub async fn give_back(&self, entries: &[Mark]) {
        if let Err(error) = self.settle(entries).await {
            tracing::warn!(%error, entries = entries.len(), "there is no room for what was committed; it waits for its lease");
        }
    }

    /// Marks what has left, everything of a document at once. Tells whether everything was found where it should be; if
    /// not, nothing is known of any.
    async fn settle_together(&self, collection: Collection, left: &[&Mark]) -> Result<bool, StoreError> {
        if left.is_empty() {
            return Ok(true);
        }
        let mut documents: HashMap<&str, Vec<&Mark>> = HashMap::new();
        for mark in left {
            documents.entry(mark.document_id.as_str()).or_default().push(mark);
        }
        let (with_mails, events_only): (Vec<_>, Vec<_>) =
            documents.iter().partition(|(_, marks)| marks.iter().any(|mark| matches!(mark.fate, Fate::Sent(_))));
        let mut statements = Vec::with_capacity(with_mails.len() + 1);
        for (id, marks) in with_mails {
            statements.push(left_of_document(id, marks)?);
        }
        if !events_only.is_empty() {
            statements.push(published(&events_only));
        }
        let updated = self.update_many(collection, statements).await?;
        Ok(updated.refused.is_empty() && updated.matched == documents.len())
    }

    async fn settle_each(&self, collection: Collection, marks: &[&Mark]) -> Result<(), StoreError> {
        if marks.is_empty() {
            return Ok(());
        }
        let statements = |keeps| marks.iter().map(|mark| statement(mark, keeps)).collect::<Result<Vec<_>, _>>();
        let updated = self.update_many(collection, statements(Keeps::Notifications)?).await?;
        for refusal in &updated.refused {
            let entry = marks.get(refusal.position).map(|mark| mark.entry_id.as_str());
            tracing::error!(
                entry,
                error = refusal.message,
                "an outbox entry could not be marked; it will be sent again"
            );
        }
        if updated.matched < marks.len() && collection == Collection::Subscriptions {
            // Some of them may be in tombstones.
            self.update_many(collection, statements(Keeps::Nothing)?).await?;
        }
        Ok(())
    }
}

impl Claimed {
    fn pass_over(&mut self, collection: Collection, id: Option<RawBsonRef<'_>>, error: &str) {
        tracing::error!(
            collection = collection.as_str(),
            ?id,
            error,
            "an outbox cannot be claimed; it is left as it is"
        );
        self.unclaimable.extend(id.and_then(|id| Bson::try_from(id).ok()));
    }
}

fn claim_update(
    collection: Collection,
    raw: &RawDocumentBuf,
    lease: &Lease,
    now: Instant,
) -> Result<GuardedUpdate, bson::error::Error> {
    let document: Claimable = bson::deserialize_from_slice(raw.as_bytes())?;
    let mut entries: Vec<OutboxEntry> = Vec::new();
    for entry in &document.outbox {
        // One that cannot be read is leased with the others, so that it does not stand in their way until the next time.
        match entry?.as_document().map(|entry| bson::deserialize_from_slice::<OutboxEntry>(entry.as_bytes())) {
            Some(Ok(entry)) => entries.push(entry),
            Some(Err(error)) => {
                tracing::error!(document = document.id, %error, "an outbox entry cannot be read; it is left as it is");
            }
            None => tracing::error!(document = document.id, "an outbox entry is no document; it is left as it is"),
        }
    }
    entries.retain(|entry| entry.due.is_some_and(|due| due <= now));
    for entry in &mut entries {
        entry.due = Some(lease.until.into());
        entry.holder = lease.holder.to_string();
    }
    let due = rawdoc! { "due.due": { "$lte": now } };
    Ok(GuardedUpdate {
        collection,
        id: document.id,
        version: document.version,
        history_length: None,
        update: rawdoc! { "$set": {
            "outbox.$[due].due": Instant::from(lease.until),
            "outbox.$[due].holder": lease.holder.to_string(),
            "version": next(document.version),
        } }
        .into(),
        array_filters: Some(RawArrayBuf::from_iter([due])),
        entries,
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

/// The statement for what has left of one document, mails among it. It finds the document only where all of it is there,
/// so that nothing is recorded twice.
fn left_of_document(id: &str, marks: &[&Mark]) -> Result<RawDocumentBuf, StoreError> {
    let ids: RawArrayBuf = marks.iter().map(|mark| mark.entry_id.as_str()).collect();
    let sent = marks.iter().filter_map(|mark| match &mark.fate {
        Fate::Sent(sent) => Some(raw(sent)),
        _ => None,
    });
    let sent: RawArrayBuf = sent.collect::<Result<_, _>>()?;
    Ok(rawdoc! {
        "q": { "_id": id, "outbox.id": { "$all": ids.clone() }, "status": { "$ne": "removed" } },
        "u": {
            "$pull": { "outbox": { "id": { "$in": ids } } },
            "$push": { "notifications": { "$each": sent } },
            "$inc": { "version": 1_i64 },
        },
    })
}

/// The statement for events that have left, of many documents, in which nothing is recorded of them.
fn published(documents: &[(&&str, &Vec<&Mark>)]) -> RawDocumentBuf {
    let ids: RawArrayBuf = documents.iter().map(|(id, _)| **id).collect();
    let entry_ids: RawArrayBuf =
        documents.iter().flat_map(|(_, marks)| marks.iter().map(|mark| mark.entry_id.as_str())).collect();
    rawdoc! {
        "q": { "_id": { "$in": ids }, "outbox.id": { "$in": entry_ids.clone() }, "status": { "$ne": "removed" } },
        "u": { "$pull": { "outbox": { "id": { "$in": entry_ids } } }, "$inc": { "version": 1_i64 } },
        "multi": true,
    }
}

/// The statement that finds the entry in its document, so that marking twice marks once.
fn statement(mark: &Mark, keeps: Keeps) -> Result<RawDocumentBuf, StoreError> {
    let id = mark.entry_id.as_str();
    let mut find = doc! { "_id": &mark.document_id, "outbox.id": id };
    match keeps {
        Keeps::Notifications => find.insert("status", doc! { "$ne": "removed" }),
        Keeps::Nothing => find.insert("status", "removed"),
    };
    // What has left has left, whoever holds it now; but it is not for us to put off what somebody else is sending.
    let ours = doc! { "id": id, "holder": &mark.holder };
    let pull = doc! { "outbox": { "id": id } };
    let mut filters: Vec<Document> = Vec::new();
    let mut increments = doc! { "version": 1_i64 };
    let mut update = match (&mark.fate, keeps) {
        (Fate::Sent(sent), Keeps::Notifications) => doc! { "$pull": pull, "$push": { "notifications": bson(sent)? } },
        (Fate::Published, Keeps::Notifications) => doc! { "$pull": pull },
        (Fate::Sent(_) | Fate::Published, Keeps::Nothing) => {
            doc! { "$pull": pull, "$set": { "applied.$[].settled_at": Instant::now() } }
        }
        (Fate::GivenBack, _) => doc! { "$set": { "outbox.$[entry].due": Instant::now() } },
        (Fate::PutOff { until, error }, _) => {
            increments.insert("outbox.$[entry].attempts", 1);
            doc! { "$set": { "outbox.$[entry].due": Instant::from(*until), "outbox.$[entry].error": error } }
        }
        (Fate::Refused { at, error }, _) => {
            increments.insert("outbox.$[entry].attempts", 1);
            doc! {
                "$unset": { "outbox.$[entry].due": "" },
                "$set": { "outbox.$[entry].failed_at": Instant::from(*at), "outbox.$[entry].error": error },
            }
        }
    };
    update.insert("$inc", increments);
    if !mark.fate.has_left() {
        find.insert("outbox", doc! { "$elemMatch": &ours });
        filters.push(doc! { "entry.id": id, "entry.holder": &mark.holder });
    }
    let mut statement = doc! { "q": find, "u": update };
    if !filters.is_empty() {
        statement.insert("arrayFilters", filters);
    }
    raw(&statement)
}
