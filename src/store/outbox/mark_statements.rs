//! The statements that mark entries. They are sent in `mark`.

use std::collections::BTreeMap;

use bson::raw::cstr;
use bson::{DateTime as Instant, Document, RawArrayBuf, RawDocumentBuf, doc, rawdoc};
use chrono::{DateTime, Utc};

use super::delivery::{DeferralCause, DeliveryResult, Mark};
use super::entry::{Kind, OutboxEntry};
use crate::store::bson::to_bson;
use crate::store::collection::Collection;
use crate::store::error::StoreError;

/// The sent entries of one document.
pub(super) struct SentEntries<'a> {
    pub(super) id: &'a str,
    pub(super) entries: Vec<&'a str>,
    /// Those that are emails.
    pub(super) emails: Vec<&'a str>,
    /// When the newest of them was sent.
    pub(super) at: DateTime<Utc>,
    /// Whether an email was tried before, so that its record may tell of a failure.
    pub(super) was_tried: bool,
    /// The places of the marks.
    pub(super) indexes: Vec<usize>,
}

pub(super) fn by_document<'a>(marks: &'a [Mark], indexes: &[usize]) -> Vec<SentEntries<'a>> {
    let mut documents: BTreeMap<&str, SentEntries<'a>> = BTreeMap::new();
    for &index in indexes {
        let mark = &marks[index];
        let DeliveryResult::Sent { at } = mark.result else { continue };
        let id = mark.document.as_str();
        let sent = documents.entry(id).or_insert_with(|| SentEntries {
            id,
            entries: Vec::new(),
            emails: Vec::new(),
            at,
            was_tried: false,
            indexes: Vec::new(),
        });
        sent.entries.push(&mark.entry_id);
        if mark.kind == Kind::Email {
            sent.emails.push(&mark.entry_id);
            sent.was_tried |= mark.attempts > 0;
        }
        sent.at = sent.at.max(at);
        sent.indexes.push(index);
    }
    documents.into_values().collect()
}

/// How one document is marked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum MarkForm {
    /// A live document, with the records.
    Recorded,
    /// A tombstone, with the records, and when its newest entry was sent.
    RecordedTombstone,
    /// A tombstone, only with the latter.
    Tombstone,
    /// The entries are removed, and nothing is recorded.
    Bare,
}

/// One statement for sent entries of many documents: all of them with emails, or all without.
pub(super) fn together(documents: &[&SentEntries<'_>]) -> RawDocumentBuf {
    let ids: RawArrayBuf = documents.iter().map(|document| document.id).collect();
    let entries: Vec<&str> = documents.iter().flat_map(|document| document.entries.iter().copied()).collect();
    let emails: Vec<&str> = documents.iter().flat_map(|document| document.emails.iter().copied()).collect();
    let at = documents.iter().map(|document| document.at).max().unwrap_or_default();
    let was_tried = documents.iter().any(|document| document.was_tried);
    let mut find = rawdoc! {
        "_id": { "$in": ids },
        "outbox.id": { "$in": list(&entries) },
        "status": { "$ne": "removed" },
    };
    if !emails.is_empty() {
        find.append(cstr!("notifications"), rawdoc! { "$type": "array" });
    }
    let mut statement = sent_statement(find, &entries, &emails, at, was_tried, false);
    statement.append(cstr!("multi"), true);
    statement
}

pub(super) fn alone(document: &SentEntries<'_>, way: MarkForm) -> RawDocumentBuf {
    let mut find = rawdoc! { "_id": document.id, "outbox.id": { "$in": list(&document.entries) } };
    let mut emails = document.emails.as_slice();
    match way {
        MarkForm::Recorded => find.append(cstr!("status"), rawdoc! { "$ne": "removed" }),
        MarkForm::RecordedTombstone | MarkForm::Tombstone => {
            find.append(cstr!("status"), "removed");
            find.append(cstr!("applied.0"), rawdoc! { "$exists": true });
        }
        MarkForm::Bare => {}
    }
    match way {
        MarkForm::Recorded | MarkForm::RecordedTombstone => {
            find.append(cstr!("notifications"), rawdoc! { "$type": "array" });
        }
        MarkForm::Tombstone | MarkForm::Bare => emails = &[],
    }
    let completes = matches!(way, MarkForm::RecordedTombstone | MarkForm::Tombstone);
    sent_statement(find, &document.entries, emails, document.at, document.was_tried, completes)
}

/// Removes sent entries, and records when: in the records of `emails`, and of a tombstone in its oldest command.
fn sent_statement(
    find: RawDocumentBuf,
    entries: &[&str],
    emails: &[&str],
    at: DateTime<Utc>,
    was_tried: bool,
    completes: bool,
) -> RawDocumentBuf {
    let at = Instant::from(at);
    let mut update = rawdoc! {
        "$pull": { "outbox": { "id": { "$in": list(entries) } } },
        "$inc": { "version": 1_i64 },
    };
    let mut set = RawDocumentBuf::new();
    if completes {
        set.append(cstr!("applied.0.settled_at"), at);
    }
    if !emails.is_empty() {
        set.append(cstr!("notifications.$[record].sent_at"), at);
        if was_tried {
            let earlier = rawdoc! { "notifications.$[record].failed_at": "", "notifications.$[record].error": "" };
            update.append(cstr!("$unset"), earlier);
        }
    }
    if !set.is_empty() {
        update.append(cstr!("$set"), set);
    }
    let mut statement = rawdoc! { "q": find, "u": update };
    if !emails.is_empty() {
        let filter = rawdoc! { "record.id": { "$in": list(emails) } };
        statement.append(cstr!("arrayFilters"), RawArrayBuf::from_iter([filter]));
    }
    statement
}

fn list(ids: &[&str]) -> RawArrayBuf {
    ids.iter().copied().collect()
}

/// The statements for an entry that was not sent: of the first that finds it, the others find nothing.
pub(super) fn others_statements(mark: &Mark) -> Vec<Document> {
    let without_record = not_sent(mark, true);
    let mut statements = Vec::new();
    if let (DeliveryResult::Failed { at, error }, Kind::Email) = (&mark.result, mark.kind) {
        // The error may name the address, which the record of a tombstone has lost.
        for (status, error) in [(doc! { "$ne": "removed" }, Some(error)), (doc! { "$eq": "removed" }, None)] {
            let mut statement = without_record.clone();
            if let Ok(find) = statement.get_document_mut("q") {
                find.extend(doc! { "status": status, "notifications": { "$type": "array" } });
            }
            if let Ok(set) = statement.get_document_mut("u").and_then(|update| update.get_document_mut("$set")) {
                set.insert("notifications.$[record].failed_at", Instant::from(*at));
                set.extend(error.map(|error| ("notifications.$[record].error".to_owned(), error.into())));
            }
            if let Ok(filters) = statement.get_array_mut("arrayFilters") {
                filters.push(doc! { "record.id": &mark.entry_id }.into());
            }
            statements.push(statement);
        }
    }
    statements.push(without_record);
    statements
}

/// The statement that adds the event of a failed email to the outbox, unless it is there. Only a pipeline can add to a list by its
/// own fields and those of the document.
///
/// # Errors
/// When the event cannot be written as BSON, which is a bug.
pub(super) fn announcement(mark: &Mark) -> Result<Option<Document>, StoreError> {
    let (DeliveryResult::Failed { at, .. }, Some(event)) = (&mark.result, &mark.announcement) else { return Ok(None) };
    let entry = to_bson(&OutboxEntry::of_event(event.clone(), *at))?;
    let data = to_bson(&event.data)?;
    let owner = match mark.document.collection() {
        Collection::Subscriptions => {
            doc! { "organization_id": "$organization_id", "subscription_id": "$_id", "account_id": "$account_id" }
        }
        Collection::Accounts => doc! { "organization_id": "$organization_id", "account_id": "$_id" },
        Collection::Organizations => doc! { "organization_id": "$_id" },
    };
    let data = doc! { "$mergeObjects": [owner, { "$literal": data }] };
    let event_with_owner = doc! { "$mergeObjects": [{ "$literal": to_bson(event)? }, { "data": data }] };
    let entry = doc! { "$mergeObjects": [{ "$literal": entry }, { "event": event_with_owner }] };
    let ours = doc! { "id": &mark.entry_id, "holder": &mark.holder, "failed_at": { "$exists": false } };
    Ok(Some(doc! {
        "q": {
            "_id": mark.document.as_str(),
            "outbox": { "$elemMatch": ours },
            "outbox.id": { "$ne": &event.id },
        },
        "u": [{ "$set": {
            "outbox": { "$concatArrays": ["$outbox", [entry]] },
            "version": { "$add": [{ "$ifNull": ["$version", 0_i64] }, 1_i64] },
        } }],
    }))
}

/// The statement for an entry that was not sent, without its record. It names the error only `with_error`.
pub(super) fn not_sent(mark: &Mark, with_error: bool) -> Document {
    let id = mark.entry_id.as_str();
    // Only while it is ours: another worker may be sending it.
    let mut ours = doc! { "id": id, "holder": &mark.holder };
    let (mut set, mut unset) = (Document::new(), Document::new());
    let (mut increments, mut earliest) = (doc! { "version": 1_i64 }, Document::new());
    // A repeated write, after a lost reply, must not count twice.
    let error = match &mark.result {
        // Those that were sent are marked elsewhere.
        DeliveryResult::Sent { at } | DeliveryResult::Released { at } => {
            set.insert("outbox.$[entry].due", Instant::from(*at));
            None
        }
        DeliveryResult::Deferred { until, error, cause } => {
            ours.insert("due", doc! { "$ne": Instant::from(*until) });
            set.insert("outbox.$[entry].due", Instant::from(*until));
            match cause {
                DeferralCause::Ordinary => {}
                DeferralCause::InDoubt => drop(increments.insert("outbox.$[entry].in_doubt", 1)),
                DeferralCause::SenderRejected { at } => {
                    drop(earliest.insert("outbox.$[entry].sender_rejected_at", Instant::from(*at)));
                }
            }
            Some(error)
        }
        DeliveryResult::Failed { at, error } => {
            ours.insert("failed_at", doc! { "$exists": false });
            // A retry by an operator starts with all attempts again.
            for field in ["due", "in_doubt", "sender_rejected_at"] {
                unset.insert(format!("outbox.$[entry].{field}"), "");
            }
            set.insert("outbox.$[entry].failed_at", Instant::from(*at));
            Some(error)
        }
    };
    if let Some(error) = error {
        increments.insert("outbox.$[entry].attempts", 1);
        if with_error {
            set.insert("outbox.$[entry].error", error);
        }
    }
    let mut update = doc! { "$set": set, "$inc": increments };
    if !unset.is_empty() {
        update.insert("$unset", unset);
    }
    if !earliest.is_empty() {
        update.insert("$min", earliest);
    }
    doc! {
        "q": { "_id": mark.document.as_str(), "outbox": { "$elemMatch": ours } },
        "u": update,
        "arrayFilters": [{ "entry.id": id, "entry.holder": &mark.holder }],
    }
}
