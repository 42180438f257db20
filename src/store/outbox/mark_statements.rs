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
use offramp_domain::cloud_event::CloudEvent;

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

/// How much is written of an entry that was not sent. A validator may forbid a part of it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Detail {
    /// Everything.
    Full,
    /// Everything but the error.
    WithoutError,
    /// Nothing that makes the document larger: it may be as large as MongoDB allows. Neither the error nor the event of a failed
    /// email, nor its record. An email in doubt that cannot be counted fails, or it would be sent again without end.
    Bare,
}

/// The statement for an entry that was not sent. It finds the entry only while it is ours: another worker may be sending it. A
/// repeated write, after a lost reply, finds nothing.
///
/// # Errors
/// When the event of a failed email cannot be written as BSON, which is a bug.
pub(super) fn not_sent(mark: &Mark, detail: Detail) -> Result<Document, StoreError> {
    match &mark.result {
        // Those that were sent are marked elsewhere.
        DeliveryResult::Sent { at } | DeliveryResult::Released { at } => Ok(due_again(mark, *at, None, None)),
        DeliveryResult::Deferred { error, cause: DeferralCause::InDoubt { at }, .. } if detail == Detail::Bare => {
            failed(mark, *at, error, detail)
        }
        DeliveryResult::Deferred { until, error, cause } => {
            let cause = if detail == Detail::Bare { DeferralCause::Ordinary } else { *cause };
            Ok(due_again(mark, *until, (detail == Detail::Full).then_some(error), Some(cause)))
        }
        DeliveryResult::Failed { at, error } => failed(mark, *at, error, detail),
    }
}

/// The statement for an entry that is due again: released if it has no `cause`, else deferred after an attempt.
fn due_again(mark: &Mark, at: DateTime<Utc>, error: Option<&String>, cause: Option<DeferralCause>) -> Document {
    let id = mark.entry_id.as_str();
    let at = Instant::from(at);
    let mut ours = doc! { "id": id, "holder": &mark.holder };
    let mut set = doc! { "outbox.$[entry].due": at };
    let (mut increments, mut earliest) = (doc! { "version": 1_i64 }, Document::new());
    if let Some(cause) = cause {
        ours.insert("due", doc! { "$ne": at });
        increments.insert("outbox.$[entry].attempts", 1);
        match cause {
            DeferralCause::Ordinary => {}
            DeferralCause::InDoubt { .. } => drop(increments.insert("outbox.$[entry].in_doubt", 1)),
            DeferralCause::SenderRejected { at } => {
                drop(earliest.insert("outbox.$[entry].sender_rejected_at", Instant::from(at)));
            }
        }
    }
    if let Some(error) = error {
        set.insert("outbox.$[entry].error", error);
    }
    let mut update = doc! { "$set": set, "$inc": increments };
    if !earliest.is_empty() {
        update.insert("$min", earliest);
    }
    doc! {
        "q": { "_id": mark.document.as_str(), "outbox": { "$elemMatch": ours } },
        "u": update,
        "arrayFilters": [{ "entry.id": id, "entry.holder": &mark.holder }],
    }
}

/// The statement for an entry that is kept for an operator: marks it and its record, and adds the event that announces it. Only a
/// pipeline can change elements of a list and extend it in one update.
fn failed(mark: &Mark, at: DateTime<Utc>, error: &str, detail: Detail) -> Result<Document, StoreError> {
    let failed_at = Instant::from(at);
    let is = |element: &str, field: &str, text: &str| {
        doc! { "$eq": [format!("$${element}.{field}"), { "$literal": text }] }
    };
    let mut failure = doc! { "failed_at": failed_at };
    if detail == Detail::Full {
        failure.insert("error", doc! { "$literal": error });
    }
    let attempts = doc! { "attempts": { "$add": [{ "$ifNull": ["$$entry.attempts", 0] }, 1] } };
    // A retry by an operator starts with all attempts again.
    let mut dropped = vec!["due", "in_doubt", "sender_rejected_at"];
    if detail == Detail::Bare {
        // Makes room for the rest.
        dropped.push("holder");
    }
    let kept = doc! { "$not": { "$in": ["$$field.k", dropped] } };
    let kept = doc! { "$filter": { "input": { "$objectToArray": "$$entry" }, "as": "field", "cond": kept } };
    let entry = doc! { "$cond": [
        { "$and": [is("entry", "id", &mark.entry_id), is("entry", "holder", &mark.holder)] },
        { "$mergeObjects": [{ "$arrayToObject": kept }, attempts, failure.clone()] },
        "$$entry",
    ] };
    let entries = doc! { "$map": { "input": "$outbox", "as": "entry", "in": entry } };
    let event = mark.announcement.as_ref().filter(|_| detail != Detail::Bare);
    let event = event.map(|event| announcement(mark, event, at)).transpose()?;
    let mut set = doc! {
        "outbox": { "$concatArrays": [entries, Vec::from_iter(event)] },
        "version": { "$add": [{ "$ifNull": ["$version", 0_i64] }, 1_i64] },
    };
    if detail != Detail::Bare && mark.kind == Kind::Email {
        // The error may name the address, which the record of a tombstone has lost.
        let of_tombstone = doc! { "failed_at": failed_at };
        let failure = doc! { "$cond": [{ "$eq": ["$status", "removed"] }, of_tombstone, failure] };
        let record = doc! { "$cond": [
            is("record", "id", &mark.entry_id),
            { "$mergeObjects": ["$$record", failure] },
            "$$record",
        ] };
        let records = doc! { "$map": { "input": "$notifications", "as": "record", "in": record } };
        set.insert("notifications", doc! { "$cond": [{ "$isArray": "$notifications" }, records, "$notifications"] });
    }
    let ours = doc! { "id": &mark.entry_id, "holder": &mark.holder, "failed_at": { "$exists": false } };
    Ok(doc! { "q": { "_id": mark.document.as_str(), "outbox": { "$elemMatch": ours } }, "u": [{ "$set": set }] })
}

/// The outbox entry of the event that announces a failed email, as an expression: what owns the email comes from its document.
fn announcement(mark: &Mark, event: &CloudEvent, at: DateTime<Utc>) -> Result<Document, StoreError> {
    let owner = match mark.document.collection() {
        Collection::Subscriptions => {
            doc! { "organization_id": "$organization_id", "subscription_id": "$_id", "account_id": "$account_id" }
        }
        Collection::Accounts => doc! { "organization_id": "$organization_id", "account_id": "$_id" },
        Collection::Organizations => doc! { "organization_id": "$_id" },
    };
    let data = doc! { "$mergeObjects": [owner, { "$literal": to_bson(&event.data)? }] };
    let event_with_owner = doc! { "$mergeObjects": [{ "$literal": to_bson(event)? }, { "data": data }] };
    let entry = to_bson(&OutboxEntry::of_event(event.clone(), at))?;
    Ok(doc! { "$mergeObjects": [{ "$literal": entry }, { "event": event_with_owner }] })
}
