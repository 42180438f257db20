//! Changed documents as guarded updates: which fields are set, and what is appended to which list. Nothing is sent here.

use bson::raw::{CStr, CString, cstr};
use bson::{RawArrayBuf, RawBson, RawDocumentBuf, rawdoc};
use chrono::{DateTime, NaiveDate, Utc};
use serde::Serialize;

use offramp_domain::account::Account;
use offramp_domain::subscription::SubscriptionRecord;
use offramp_domain::subscription::{Details, Request, Status, Subscription};
use offramp_domain::unit_of_work::{
    ChangedAccount, ChangedDocument, ChangedDocuments, ChangedOrganization, ChangedSubscription, Effects, UnitOfWork,
    next_version,
};

use super::bson::{not_bson, to_bson, to_raw, to_raw_array};
use super::collection::DocumentId;
use super::documents::{
    AppliedDocument, CancellationDocument, CardNoticeDocument, HistoryDocument, NotificationDocument,
    PaymentFailureDocument, RemindersDocument, RequestDocument,
};
use super::error::StoreError;
use super::guarded_update::GuardedUpdate;
use super::outbox::entry::{self, Lease, OutboxEntry};
use super::outbox::record::{self, Identify};

/// How many applied commands a document remembers.
const APPLIED_MAX: i32 = 200;

/// From this length on, new entries of `history` are set by index. Shorter lists are appended to, many documents at once.
const LONG_HISTORY_MIN: u32 = 50;

/// How many failed payments a document keeps.
const PAYMENT_FAILURES_MAX: i32 = 20;

/// How many emails an organization's document keeps the records of: they are about no single account, and would grow without end.
const ORGANIZATION_NOTIFICATIONS_MAX: i32 = 1_000;

/// The fields that a removed subscription keeps.
const TOMBSTONE_FIELDS: [&CStr; 10] = [
    cstr!("_id"),
    cstr!("organization_id"),
    cstr!("account_id"),
    cstr!("status"),
    cstr!("ended_on"),
    cstr!("version"),
    cstr!("history"),
    cstr!("applied"),
    cstr!("outbox"),
    cstr!("notifications"),
];

/// Builds the updates of all documents that a batch changed. `identify` provides what emails are recorded with.
///
/// # Errors
/// When a change cannot be written as BSON, which is a bug.
pub fn build(
    unit_of_work: UnitOfWork,
    lease: &Lease,
    source: &str,
    identify: Identify<'_>,
    now: DateTime<Utc>,
) -> Result<Vec<GuardedUpdate>, StoreError> {
    let ChangedDocuments { subscriptions, accounts, organizations } = unit_of_work.into_changed();
    let subscriptions =
        subscriptions.into_iter().map(|changed| update_subscription(changed, lease, source, identify, now));
    let accounts = accounts.into_iter().map(|changed| update_account(changed, lease, source, identify, now));
    let organizations =
        organizations.into_iter().map(|changed| update_organization(changed, lease, source, identify, now));
    subscriptions.chain(accounts).chain(organizations).collect()
}

fn update_subscription(
    changed: ChangedSubscription,
    lease: &Lease,
    source: &str,
    identify: Identify<'_>,
    now: DateTime<Utc>,
) -> Result<GuardedUpdate, StoreError> {
    let ChangedDocument { before, after, records, effects } = changed;
    let history = records.iter().filter_map(SubscriptionRecord::history).map(Into::into).collect();
    let failures: Vec<PaymentFailureDocument> =
        records.iter().filter_map(SubscriptionRecord::payment_failure).map(Into::into).collect();
    let records = email_records(&effects, identify, now);
    let applied = applied(&effects, now);
    let entries = entries(effects, lease, source, now);
    let lists = Lists { history, applied, records, entries: &entries };
    // Appending to a long list takes the server many times as long as setting its next element.
    let history_length = before.history_length.filter(|length| *length >= LONG_HISTORY_MIN && after.details.is_some());
    let update = match &after.details {
        Some(details) => set_changed(&before, &after, details, &lists, history_length, &failures)?,
        None => tombstone(&after, &lists)?,
    };
    Ok(GuardedUpdate {
        document: DocumentId::Subscription(after.id),
        version: before.version,
        history_length,
        update,
        entries,
    })
}

/// What a change adds to the lists that every document has.
struct Lists<'a> {
    history: Vec<HistoryDocument>,
    applied: Vec<AppliedDocument>,
    records: Vec<NotificationDocument>,
    entries: &'a [OutboxEntry],
}

/// Sets only the fields that changed.
fn set_changed(
    before: &Subscription,
    after: &Subscription,
    details: &Details,
    lists: &Lists<'_>,
    history_length: Option<u32>,
    failures: &[PaymentFailureDocument],
) -> Result<RawBson, StoreError> {
    let mut set = rawdoc! { "version": next_version(before.version) };
    let mut unset = RawDocumentBuf::new();
    let old = before.details.as_ref();

    if before.status != after.status {
        set.append(cstr!("status"), after.status.as_str());
    }
    if before.ended_on != after.ended_on {
        set.append(cstr!("ended_on"), day(after.ended_on));
    }
    if let Ok(Some(end)) = &details.end
        && old.is_none_or(|old| old.end != details.end)
    {
        set.append(cstr!("ends_on"), end.ends_on.to_string());
        set.append(cstr!("ends_at"), bson::DateTime::from(end.ends_at));
        match end.final_billing_on {
            Some(day) => set.append(cstr!("final_billing_on"), day.to_string()),
            None => unset.append(cstr!("final_billing_on"), ""),
        }
    }
    if let Ok(Some(request)) = &details.request
        && old.is_none_or(|old| old.request != details.request)
    {
        let earlier = old.and_then(|old| old.request.as_ref().ok()?.as_ref());
        set_request(&mut set, earlier, request)?;
    }
    if let Some(record) = &details.cancellation
        && old.is_none_or(|old| old.cancellation != details.cancellation)
    {
        set.append(cstr!("cancellation"), to_raw(&CancellationDocument::from(record))?);
    }
    if let Ok(activities) = &details.activities
        && old.is_some_and(|old| old.activities != details.activities)
    {
        set.append(cstr!("activities"), to_raw_array(activities)?);
    }
    if details.next_on == Ok(None) && old.is_some_and(|old| old.next_on != Ok(None)) {
        unset.append(cstr!("billing.next_on"), "");
    }

    let mut push = RawDocumentBuf::new();
    match history_length {
        Some(length) => {
            for (place, entry) in (length..).zip(&lists.history) {
                set.append(
                    CString::try_from(format!("history.{place}")).map_err(|error| not_bson(&error))?,
                    to_raw(entry)?,
                );
            }
        }
        None => append_each(&mut push, cstr!("history"), &lists.history, None)?,
    }
    append_each(&mut push, cstr!("payment_failures"), failures, Some(PAYMENT_FAILURES_MAX))?;
    append_each(&mut push, cstr!("applied"), &lists.applied, Some(APPLIED_MAX))?;
    append_each(&mut push, cstr!("notifications"), &lists.records, None)?;
    append_each(&mut push, cstr!("outbox"), lists.entries, None)?;
    let mut update = rawdoc! { "$set": set, "$push": push };
    if !unset.is_empty() {
        update.append(cstr!("$unset"), unset);
    }
    Ok(update.into())
}

/// Sets a new request as a whole. When a request is closed, its other fields stay.
fn set_request(set: &mut RawDocumentBuf, earlier: Option<&Request>, request: &Request) -> Result<(), StoreError> {
    let same = earlier.filter(|earlier| Request { closed: None, ..request.clone() } == **earlier);
    match (same, &request.closed) {
        (Some(_), Some(closed)) => {
            set.append(cstr!("cancellation_request.decided_at"), bson::DateTime::from(closed.decided_at));
            set.append(
                cstr!("cancellation_request.decision"),
                RawBson::try_from(to_bson(&closed.decision)?).map_err(|error| not_bson(&error))?,
            );
            if let Some(note) = &closed.note {
                set.append(cstr!("cancellation_request.note"), note.as_str());
            }
        }
        _ => set.append(cstr!("cancellation_request"), to_raw(&RequestDocument::from(request))?),
    }
    Ok(())
}

/// Removes all fields but those of a tombstone, whoever wrote them: the rest may be personal data. So may parts of the entries
/// in two of its lists.
fn tombstone(after: &Subscription, lists: &Lists<'_>) -> Result<RawBson, StoreError> {
    let mut keep = RawDocumentBuf::new();
    for field in TOMBSTONE_FIELDS {
        keep.append(field, 1);
    }
    let append = |field: &str, added: RawArrayBuf| {
        let field = format!("${field}");
        rawdoc! { "$concatArrays": [{ "$ifNull": [field, []] }, { "$literal": added }] }
    };
    let applied = append("applied", to_raw_array(&lists.applied)?);
    let recorded = rawdoc! { "$cond": [{ "$isArray": "$notifications" }, "$notifications", []] };
    let records = rawdoc! { "$literal": to_raw_array(&lists.records)? };
    let set = rawdoc! {
        "status": Status::Removed.as_str(),
        "ended_on": day(after.ended_on),
        "version": next_version(after.version),
        "history": append("history", to_raw_array(&lists.history)?),
        "applied": { "$slice": [applied, -APPLIED_MAX] },
        "outbox": append("outbox", to_raw_array(lists.entries)?),
        "notifications": { "$concatArrays": [recorded, records] },
    };
    let personal = rawdoc! { "$unset": ["notifications.to", "notifications.error", "history.reason", "history.note"] };
    Ok(RawArrayBuf::from_iter([rawdoc! { "$project": keep }, rawdoc! { "$set": set }, personal]).into())
}

fn update_account(
    changed: ChangedAccount,
    lease: &Lease,
    source: &str,
    identify: Identify<'_>,
    now: DateTime<Utc>,
) -> Result<GuardedUpdate, StoreError> {
    let ChangedDocument { before: account, after, records: notices, effects } = changed;
    let notices: Vec<CardNoticeDocument> = notices.iter().map(Into::into).collect();
    let records = email_records(&effects, identify, now);
    let applied = applied(&effects, now);
    let entries = entries(effects, lease, source, now);
    let mut set = rawdoc! { "version": next_version(account.version) };
    let mut push = RawDocumentBuf::new();
    let remembered = |account: &Account| account.card_notices.as_ref().map_or(0, Vec::len);
    if remembered(&after) == remembered(&account) + notices.len() {
        append_each(&mut push, cstr!("card_notices"), &notices, None)?;
    } else {
        // Old notices were dropped.
        let all: Vec<CardNoticeDocument> = after.card_notices.iter().flatten().map(Into::into).collect();
        set.append(cstr!("card_notices"), to_raw_array(&all)?);
    }
    append_each(&mut push, cstr!("applied"), &applied, Some(APPLIED_MAX))?;
    append_each(&mut push, cstr!("notifications"), &records, None)?;
    append_each(&mut push, cstr!("outbox"), &entries, None)?;
    Ok(GuardedUpdate {
        document: DocumentId::Account(account.id),
        version: account.version,
        history_length: None,
        update: rawdoc! { "$set": set, "$push": push }.into(),
        entries,
    })
}

fn update_organization(
    changed: ChangedOrganization,
    lease: &Lease,
    source: &str,
    identify: Identify<'_>,
    now: DateTime<Utc>,
) -> Result<GuardedUpdate, StoreError> {
    let ChangedDocument { before, after, effects, .. } = changed;
    // Always `Ok` here: an organization is changed only where its version can be read.
    let version = before.version.unwrap_or_default();
    let records = email_records(&effects, identify, now);
    let entries = entries(effects, lease, source, now);
    let mut set = rawdoc! { "version": next_version(version) };
    if let Ok(Some(reminder)) = after.last_reminder {
        set.append(cstr!("reminders"), to_raw(&RemindersDocument::from(reminder))?);
    }
    let mut push = RawDocumentBuf::new();
    append_each(&mut push, cstr!("notifications"), &records, Some(ORGANIZATION_NOTIFICATIONS_MAX))?;
    append_each(&mut push, cstr!("outbox"), &entries, None)?;
    Ok(GuardedUpdate {
        document: DocumentId::Organization(after.id),
        version,
        history_length: None,
        update: rawdoc! { "$set": set, "$push": push }.into(),
        entries,
    })
}

fn entries(effects: Vec<Effects>, lease: &Lease, source: &str, now: DateTime<Utc>) -> Vec<OutboxEntry> {
    effects.into_iter().flat_map(|effects| entry::entries(effects, lease, source, now)).collect()
}

fn email_records(effects: &[Effects], identify: Identify<'_>, now: DateTime<Utc>) -> Vec<NotificationDocument> {
    effects.iter().flat_map(|effects| record::records(effects, identify, now)).collect()
}

fn applied(effects: &[Effects], now: DateTime<Utc>) -> Vec<AppliedDocument> {
    effects
        .iter()
        .filter_map(|effects| {
            let key = effects.command.as_ref()?.key.clone();
            // Every change causes an email or an event.
            let unchanged = effects.notifications.is_empty() && effects.events.is_empty();
            Some(AppliedDocument { key, at: now.into(), unchanged, settled_at: None })
        })
        .collect()
}

/// Adds `{field: {$each: items, $slice: -newest}}` where there are items.
fn append_each<T: Serialize>(
    push: &mut RawDocumentBuf,
    field: &CStr,
    items: &[T],
    newest: Option<i32>,
) -> Result<(), StoreError> {
    if !items.is_empty() {
        let mut each = rawdoc! { "$each": to_raw_array(items)? };
        if let Some(newest) = newest {
            each.append(cstr!("$slice"), -newest);
        }
        push.append(field, each);
    }
    Ok(())
}

/// `"2026-06-15"`, or null.
fn day(day: Option<NaiveDate>) -> RawBson {
    day.map_or(RawBson::Null, |day| day.to_string().into())
}
