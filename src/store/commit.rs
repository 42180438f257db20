//! Commit: every changed document of a batch in one `update` command per collection, each guarded by its `version`.

use std::collections::HashSet;

use bson::raw::{CStr, CString, cstr};
use bson::{Bson, Document, RawArrayBuf, RawBson, RawDocumentBuf, doc, rawdoc};
use chrono::{DateTime, NaiveDate, Utc};
use serde::Serialize;

use crate::domain::fold::{Added, Changed, ChangedAccount, ChangedSubscription, World};
use crate::domain::subscription::{Details, Status, Subscription};

use super::documents::{
    AppliedDocument, CancellationDocument, CardNoticeDocument, HistoryDocument, NotificationDocument,
    PaymentFailureDocument, RequestDocument,
};
use super::outbox::{self, Identify, Kind, Lease, Leased, OutboxEntry};
use super::{Collection, Store, StoreError};

/// How many commands a document remembers.
const APPLIED_MAX: i32 = 200;
/// How many failed payments a document keeps.
const PAYMENT_FAILURES_MAX: i32 = 20;
/// How many card notices a document keeps.
const CARD_NOTICES_MAX: i32 = 200;
/// How many documents that cannot take the records of their emails are written with one command.
const UNRECORDED_MAX: usize = 16;
/// The fields that stay when a subscription is removed (contract §4).
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

/// An update of one document, provided that it still has the version that was read.
#[derive(Debug)]
pub struct GuardedUpdate {
    /// Where the document is.
    pub collection: Collection,
    /// Its `_id`.
    pub id: String,
    /// The version that was read; absent: the document had none.
    pub version: Option<i64>,
    /// How many entries its `history` must still have, where new ones are set by their places.
    pub history_length: Option<u32>,
    /// The statement's `u`: update operators, or a pipeline.
    pub update: RawBson,
    /// The same update without its records in `notifications`, for a document that cannot take them: an unusual
    /// `notifications` must not keep a decision from being written. Absent: there are no records in it.
    pub unrecorded: Option<RawBson>,
    /// What it entails, under the lease whose `holder` tells afterwards whether the update is ours. (One that entails
    /// nothing cannot be told: it counts as lost in doubt, and is found done when it is tried again.)
    pub entries: Vec<OutboxEntry>,
}

/// What became of a guarded update.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Committed {
    /// Written, and on a majority of the servers.
    Written,
    /// Somebody else changed the document first.
    Lost,
    /// A field of the document is not what it should be (a list that is none), so nothing can be written to it.
    Corrupt(String),
    /// The server refuses this update; the others are not affected.
    Refused(String),
}

impl GuardedUpdate {
    /// What it entails, ready for the dispatcher.
    #[must_use]
    pub fn into_leased(self) -> Vec<Leased> {
        let Self { collection, id, entries, .. } = self;
        let emails = entries.iter().any(|entry| entry.kind() == Kind::Email);
        let leased = entries.into_iter().map(|entry| Leased {
            collection,
            document_id: id.clone(),
            has_emails: emails && entry.kind() == Kind::Event,
            entry,
        });
        leased.collect()
    }

    /// Finds the document as it was read.
    fn find(&self) -> RawDocumentBuf {
        // Null finds a version that is null and one that is missing.
        let version = self.version.map_or(RawBson::Null, RawBson::Int64);
        let mut find = rawdoc! { "_id": self.id.as_str(), "version": version };
        if let Some(length) = self.history_length {
            find.append(cstr!("history"), rawdoc! { "$size": i64::from(length) });
        }
        find
    }

    fn statement(&self) -> RawDocumentBuf {
        statement(&self.find(), &self.update)
    }

    /// What is tried when the update was refused: at most one of the last two finds the document.
    fn fallback(&self) -> Option<[RawDocumentBuf; 3]> {
        let mut without_list = self.find();
        without_list.append(cstr!("notifications"), rawdoc! { "$type": "null" });
        let empty_list = rawdoc! { "$set": { "notifications": RawArrayBuf::new() } };
        Some([
            statement(&without_list, &empty_list.into()),
            self.statement(),
            statement(&self.find(), self.unrecorded.as_ref()?),
        ])
    }

    fn holder(&self) -> Option<&str> {
        self.entries.first().map(|entry| entry.holder.as_str())
    }
}

fn statement(find: &RawDocumentBuf, update: &RawBson) -> RawDocumentBuf {
    let mut statement = rawdoc! { "q": find.clone() };
    statement.append(cstr!("u"), update.as_raw_bson_ref());
    statement
}

/// The updates of all documents that a batch has changed. `identify` tells what emails are recorded with.
///
/// # Errors
/// When a change cannot be written as BSON, which would be a mistake in the types.
pub fn updates(
    world: World,
    lease: &Lease,
    source: &str,
    identify: Identify<'_>,
    now: DateTime<Utc>,
) -> Result<Vec<GuardedUpdate>, StoreError> {
    let (subscriptions, accounts) = world.into_changed();
    let subscriptions =
        subscriptions.into_iter().map(|changed| update_subscription(changed, lease, source, identify, now));
    let accounts = accounts.into_iter().map(|changed| update_account(changed, lease, source, identify, now));
    subscriptions.chain(accounts).collect()
}

impl Store {
    /// Writes guarded updates; the answers are in their order.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when the server does not answer: then it is unknown which of them were written, and
    /// reading the documents again tells (their `applied`).
    pub async fn commit(&self, updates: &[GuardedUpdate]) -> Result<Vec<Committed>, StoreError> {
        let mut results = vec![Committed::Written; updates.len()];
        for collection in Collection::ALL {
            let of_collection: Vec<usize> =
                (0..updates.len()).filter(|&index| updates[index].collection == collection).collect();
            if !of_collection.is_empty() {
                self.commit_to(collection, updates, &of_collection, &mut results).await?;
            }
        }
        Ok(results)
    }

    async fn commit_to(
        &self,
        collection: Collection,
        updates: &[GuardedUpdate],
        indexes: &[usize],
        results: &mut [Committed],
    ) -> Result<(), StoreError> {
        let statements = indexes.iter().map(|&index| updates[index].statement());
        let reply = match self.update_many(collection, statements).await {
            Ok(reply) => reply,
            // The command as a whole was refused (too large, not BSON): one by one, so that one cannot spoil the others.
            Err(StoreError::Refused(_)) if indexes.len() > 1 => {
                for index in indexes {
                    Box::pin(self.commit_to(collection, updates, &[*index], results)).await?;
                }
                return Ok(());
            }
            Err(StoreError::Refused(error)) => {
                results[indexes[0]] = Committed::Refused(error);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let mut unrecorded = Vec::new();
        for refusal in &reply.refused {
            let Some(&index) = indexes.get(refusal.position) else { continue };
            results[index] = refusal.as_committed();
            if updates[index].unrecorded.is_some() {
                unrecorded.push(index);
            }
        }
        self.commit_unrecorded(collection, updates, &unrecorded, results).await?;
        if reply.matched + reply.refused.len() < indexes.len() || !unrecorded.is_empty() {
            self.find_losers(collection, updates, indexes, results).await?;
        }
        Ok(())
    }

    /// Writes updates that were refused without their records, where the records may be the reason.
    async fn commit_unrecorded(
        &self,
        collection: Collection,
        updates: &[GuardedUpdate],
        indexes: &[usize],
        results: &mut [Committed],
    ) -> Result<(), StoreError> {
        // Not all at once: there are three statements for each, and a command has a limit.
        for some in indexes.chunks(UNRECORDED_MAX) {
            let fallbacks: Vec<(usize, [RawDocumentBuf; 3])> =
                some.iter().filter_map(|&index| Some((index, updates[index].fallback()?))).collect();
            let statements = fallbacks.iter().flat_map(|(_, statements)| statements.clone());
            let refused = match self.update_many(collection, statements.collect::<Vec<_>>()).await {
                Ok(reply) => reply.refused,
                // Each stays refused for the first reason.
                Err(StoreError::Refused(_)) => continue,
                Err(error) => return Err(error),
            };
            // Whether it was written is asked of the document, unless the last way was refused, too.
            for (place, (index, statements)) in fallbacks.iter().enumerate() {
                let last = (place + 1) * statements.len() - 1;
                let refusal = refused.iter().find(|refusal| refusal.position == last);
                results[*index] = refusal.map_or(Committed::Written, Refusal::as_committed);
            }
        }
        Ok(())
    }

    /// The reply says how many statements matched, not which. A document in which our lease stands is ours.
    async fn find_losers(
        &self,
        collection: Collection,
        updates: &[GuardedUpdate],
        indexes: &[usize],
        results: &mut [Committed],
    ) -> Result<(), StoreError> {
        let ids: Vec<&str> = indexes.iter().map(|&index| updates[index].id.as_str()).collect();
        let holders: HashSet<&str> = indexes.iter().filter_map(|&index| updates[index].holder()).collect();
        let holders: Vec<&str> = holders.into_iter().collect();
        let ours = self
            .find(
                collection,
                doc! { "_id": { "$in": ids }, "outbox.holder": { "$in": holders } },
                doc! { "_id": 1 },
                None,
            )
            .await?;
        let ours: HashSet<&str> = ours.iter().filter_map(|raw| raw.get_str("_id").ok()).collect();
        for &index in indexes {
            if results[index] == Committed::Written && !ours.contains(updates[index].id.as_str()) {
                results[index] = Committed::Lost;
            }
        }
        Ok(())
    }

    /// One `update` command of many statements, on a majority of the servers before it is answered. Trouble with any of them
    /// is trouble with all.
    pub(super) async fn update_many(
        &self,
        collection: Collection,
        statements: impl IntoIterator<Item = RawDocumentBuf>,
    ) -> Result<Updated, StoreError> {
        let updated = self.update_each(collection, statements).await?;
        match updated.troubled.first() {
            Some(trouble) => Err(StoreError::Unavailable(trouble.message.clone())),
            None => Ok(updated),
        }
    }

    /// The same, telling which statements had trouble.
    pub(super) async fn update_each(
        &self,
        collection: Collection,
        statements: impl IntoIterator<Item = RawDocumentBuf>,
    ) -> Result<Updated, StoreError> {
        let reply = self
            .raw_command(rawdoc! {
                "update": collection.as_str(),
                "updates": RawArrayBuf::from_iter(statements),
                "ordered": false,
                "writeConcern": { "w": "majority" },
            })
            .await?;
        if let Ok(error) = reply.get_document("writeConcernError") {
            return Err(StoreError::Unavailable(format!("not on a majority of the servers: {error}")));
        }
        let matched = number(reply.get("n")).unwrap_or(0);
        let errors: Vec<Refusal> = reply
            .get_array("writeErrors")
            .map(|errors| errors.iter().filter_map(Bson::as_document).filter_map(Refusal::read).collect())
            .unwrap_or_default();
        // A router passes the troubles of a shard on as if they were the statements'.
        let (troubled, refused) = errors.into_iter().partition(|error| TROUBLES.contains(&error.code));
        Ok(Updated { matched, refused, troubled })
    }

    /// Waits until everything that this process has read is on a majority of the servers: a command that was found done, or
    /// was refused, for what another server may not know yet must not be acked.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn wait_for_majority(&self) -> Result<(), StoreError> {
        self.update_many(Collection::Subscriptions, [nothing()]).await.map(drop)
    }

    /// Finds out whether a majority of the servers takes writes to the collections that decisions are written to.
    ///
    /// # Errors
    /// When it does not.
    pub async fn check_writes(&self) -> Result<(), StoreError> {
        for collection in [Collection::Subscriptions, Collection::Accounts] {
            self.update_many(collection, [nothing()]).await?;
        }
        Ok(())
    }

    /// Finds out whether these documents can be written, and changes none of them.
    ///
    /// # Errors
    /// When the server does not answer, or does not take the write.
    pub async fn rehearse(&self, documents: &HashSet<(Collection, String)>) -> Result<(), StoreError> {
        for collection in Collection::ALL {
            let nothing = documents
                .iter()
                .filter(|(of, _)| *of == collection)
                // Each by its id, so that a router asks the shard that has it; with no version at all, so that none is found.
                .map(|(_, id)| {
                    rawdoc! { "q": { "_id": id.as_str(), "version": { "$in": [] } }, "u": { "$set": { "version": 0 } } }
                });
            let nothing: Vec<RawDocumentBuf> = nothing.collect();
            if !nothing.is_empty() {
                self.update_many(collection, nothing).await?;
            }
        }
        Ok(())
    }
}

/// A write that finds nothing. It waits, as any other, for the newest change that its server knows.
fn nothing() -> RawDocumentBuf {
    rawdoc! { "q": { "_id": { "$in": [] } }, "u": { "$set": { "version": 0 } } }
}

/// The code of a value that does not go with the update, such as `$push` to a field that is no list.
const BAD_VALUE: i32 = 2;
/// Codes of troubles that pass: host unreachable, not found or timed out, lock timeout, network timeout, shutdown in
/// progress, write conflict, no primary found, primary stepped down, time limit exceeded, socket error, not primary (4).
const TROUBLES: [i32; 15] = [6, 7, 24, 46, 89, 91, 112, 133, 189, 262, 9001, 10107, 11600, 11602, 13435];

/// A statement that was refused.
pub(super) struct Refusal {
    /// Which, from 0.
    pub(super) position: usize,
    /// The server's code for the reason.
    pub(super) code: i32,
    /// Why.
    pub(super) message: String,
}

impl Refusal {
    fn read(error: &Document) -> Option<Self> {
        Some(Self {
            position: number(error.get("index"))?,
            code: error.get_i32("code").unwrap_or(0),
            message: error.get_str("errmsg").unwrap_or("no message").to_owned(),
        })
    }

    fn as_committed(&self) -> Committed {
        let error = self.message.clone();
        if self.code == BAD_VALUE { Committed::Corrupt(error) } else { Committed::Refused(error) }
    }
}

/// The reply to an `update` command.
pub(super) struct Updated {
    /// How many documents the statements found.
    pub(super) matched: usize,
    /// Which statements the server refused, and why.
    pub(super) refused: Vec<Refusal>,
    /// Which statements could not be tried now, and why.
    pub(super) troubled: Vec<Refusal>,
}

fn number(value: Option<&Bson>) -> Option<usize> {
    match value? {
        Bson::Int32(number) => usize::try_from(*number).ok(),
        Bson::Int64(number) => usize::try_from(*number).ok(),
        _ => None,
    }
}

fn update_subscription(
    changed: ChangedSubscription,
    lease: &Lease,
    source: &str,
    identify: Identify<'_>,
    now: DateTime<Utc>,
) -> Result<GuardedUpdate, StoreError> {
    let Changed { before, after, added } = changed;
    let records = records(&added, identify, now);
    let history = added.iter().filter_map(|added| added.record.history.as_ref()).map(Into::into).collect();
    let failures: Vec<PaymentFailureDocument> =
        added.iter().filter_map(|added| added.record.payment_failure.as_ref()).map(Into::into).collect();
    let applied = applied(&added, now);
    let entries = entries(added, lease, source, now);
    let lists = Lists { history, applied, entries: &entries };
    // To append to a long list takes the server many times as long as to set its next place. In an empty one, or where there
    // is none, a place would be a field of that name.
    let history_length = before.history_length.filter(|length| *length > 0 && after.details.is_some());
    let (update, unrecorded) = match &after.details {
        Some(details) => {
            with_records(set_changed(&before, &after, details, &lists, history_length, &failures)?, &records)?
        }
        None => (tombstone(&after, &lists, &records)?, Some(tombstone(&after, &lists, &[])?)),
    };
    Ok(GuardedUpdate {
        collection: Collection::Subscriptions,
        id: after.id.to_string(),
        version: before.version,
        history_length,
        update,
        unrecorded,
        entries,
    })
}

/// What a change adds to the lists that every document has.
struct Lists<'a> {
    history: Vec<HistoryDocument>,
    applied: Vec<AppliedDocument>,
    entries: &'a [OutboxEntry],
}

/// Sets the fields that changed, and only those.
fn set_changed(
    before: &Subscription,
    after: &Subscription,
    details: &Details,
    lists: &Lists<'_>,
    history_length: Option<u32>,
    failures: &[PaymentFailureDocument],
) -> Result<RawDocumentBuf, StoreError> {
    let mut set = rawdoc! { "version": next(before.version) };
    let mut unset = RawDocumentBuf::new();
    let old = before.details.as_ref();

    if before.status != after.status {
        set.append(cstr!("status"), after.status.as_str());
    }
    if before.ended_on != after.ended_on {
        set.append(cstr!("ended_on"), day(after.ended_on));
    }
    if let Some(end) = details.end.filter(|_| old.and_then(|old| old.end) != details.end) {
        set.append(cstr!("ends_on"), end.ends_on.to_string());
        set.append(cstr!("ends_at"), bson::DateTime::from(end.ends_at));
        set.append(cstr!("final_billing_on"), day(end.final_billing_on));
    }
    if let Some(request) =
        details.request.as_ref().filter(|_| old.and_then(|old| old.request.as_ref()) != details.request.as_ref())
    {
        set.append(cstr!("cancellation_request"), raw(&RequestDocument::from(request))?);
    }
    if let Some(record) = details
        .cancellation
        .as_ref()
        .filter(|_| old.and_then(|old| old.cancellation.as_ref()) != details.cancellation.as_ref())
    {
        set.append(cstr!("cancellation"), raw(&CancellationDocument::from(record))?);
    }
    if old.is_some_and(|old| old.activities != details.activities) {
        set.append(cstr!("activities"), raw_array(&details.activities)?);
    }
    if details.billing.next_on.is_none() && old.is_some_and(|old| old.billing.next_on.is_some()) {
        unset.append(cstr!("billing.next_on"), "");
    }

    let mut push = RawDocumentBuf::new();
    match history_length {
        Some(length) => {
            for (place, entry) in (length..).zip(&lists.history) {
                set.append(
                    CString::try_from(format!("history.{place}")).map_err(|error| not_bson(&error))?,
                    raw(entry)?,
                );
            }
        }
        None => append_each(&mut push, cstr!("history"), &lists.history, None)?,
    }
    append_each(&mut push, cstr!("payment_failures"), failures, Some(PAYMENT_FAILURES_MAX))?;
    append_each(&mut push, cstr!("applied"), &lists.applied, Some(APPLIED_MAX))?;
    append_each(&mut push, cstr!("outbox"), lists.entries, None)?;
    let mut update = rawdoc! { "$set": set, "$push": push };
    if !unset.is_empty() {
        update.append(cstr!("$unset"), unset);
    }
    Ok(update)
}

/// The update that also adds `records`, and the one without where there are any.
fn with_records(
    update: RawDocumentBuf,
    records: &[NotificationDocument],
) -> Result<(RawBson, Option<RawBson>), StoreError> {
    if records.is_empty() {
        return Ok((update.into(), None));
    }
    let mut recorded = RawDocumentBuf::new();
    for element in &update {
        let (operator, fields) = element.map_err(|error| not_bson(&error))?;
        match fields.as_document() {
            Some(pushes) if operator == cstr!("$push") => {
                let mut pushes = pushes.to_owned();
                append_each(&mut pushes, cstr!("notifications"), records, None)?;
                recorded.append(operator, pushes);
            }
            _ => recorded.append(operator, fields),
        }
    }
    Ok((recorded.into(), Some(update.into())))
}

/// Leaves the fields of a tombstone and nothing else, whoever wrote it: the rest may be personal. So may be parts of the
/// entries of two of its lists.
fn tombstone(after: &Subscription, lists: &Lists<'_>, records: &[NotificationDocument]) -> Result<RawBson, StoreError> {
    let mut keep = RawDocumentBuf::new();
    for field in TOMBSTONE_FIELDS {
        keep.append(field, 1);
    }
    let append = |field: &str, added: RawArrayBuf| {
        let field = format!("${field}");
        rawdoc! { "$concatArrays": [{ "$ifNull": [field, []] }, { "$literal": added }] }
    };
    let applied = append("applied", raw_array(&lists.applied)?);
    let is_list = rawdoc! { "$isArray": "$notifications" };
    let notifications = if records.is_empty() {
        rawdoc! { "$cond": [is_list, "$notifications", "$$REMOVE"] }
    } else {
        let recorded = rawdoc! { "$cond": [is_list, "$notifications", []] };
        rawdoc! { "$concatArrays": [recorded, { "$literal": raw_array(records)? }] }
    };
    let set = rawdoc! {
        "status": Status::Removed.as_str(),
        "ended_on": day(after.ended_on),
        "version": next(after.version),
        "history": append("history", raw_array(&lists.history)?),
        "applied": { "$slice": [applied, -APPLIED_MAX] },
        "outbox": append("outbox", raw_array(lists.entries)?),
        "notifications": notifications,
    };
    let personal = rawdoc! { "$unset": ["notifications.to", "history.reason", "history.note"] };
    Ok(RawArrayBuf::from_iter([rawdoc! { "$project": keep }, rawdoc! { "$set": set }, personal]).into())
}

fn update_account(
    changed: ChangedAccount,
    lease: &Lease,
    source: &str,
    identify: Identify<'_>,
    now: DateTime<Utc>,
) -> Result<GuardedUpdate, StoreError> {
    let Changed { before: account, added, .. } = changed;
    let records = records(&added, identify, now);
    let notices: Vec<CardNoticeDocument> =
        added.iter().filter_map(|added| added.record.as_ref()).map(Into::into).collect();
    let applied = applied(&added, now);
    let entries = entries(added, lease, source, now);
    let mut push = RawDocumentBuf::new();
    append_each(&mut push, cstr!("card_notices"), &notices, Some(CARD_NOTICES_MAX))?;
    append_each(&mut push, cstr!("applied"), &applied, Some(APPLIED_MAX))?;
    append_each(&mut push, cstr!("outbox"), &entries, None)?;
    let update = rawdoc! { "$set": { "version": next(account.version) }, "$push": push };
    let (update, unrecorded) = with_records(update, &records)?;
    Ok(GuardedUpdate {
        collection: Collection::Accounts,
        id: account.id.to_string(),
        version: account.version,
        history_length: None,
        update,
        unrecorded,
        entries,
    })
}

fn entries<R>(added: Vec<Added<R>>, lease: &Lease, source: &str, now: DateTime<Utc>) -> Vec<OutboxEntry> {
    added.into_iter().flat_map(|added| outbox::entries(added, lease, source, now)).collect()
}

fn records<R>(added: &[Added<R>], identify: Identify<'_>, now: DateTime<Utc>) -> Vec<NotificationDocument> {
    added.iter().flat_map(|added| outbox::records(added, identify, now)).collect()
}

fn applied<R>(added: &[Added<R>], now: DateTime<Utc>) -> Vec<AppliedDocument> {
    added
        .iter()
        .filter_map(|added| {
            let key = added.command.as_ref()?.key.clone();
            // Whatever changes something is told to somebody.
            let unchanged = added.notifications.is_empty() && added.events.is_empty();
            Some(AppliedDocument { key, at: now.into(), unchanged, settled_at: None })
        })
        .collect()
}

/// The version after `version`.
pub(super) fn next(version: Option<i64>) -> i64 {
    version.unwrap_or(0).saturating_add(1)
}

/// Adds `{field: {$each: items, $slice: -newest}}` where there are items.
fn append_each<T: Serialize>(
    push: &mut RawDocumentBuf,
    field: &CStr,
    items: &[T],
    newest: Option<i32>,
) -> Result<(), StoreError> {
    if !items.is_empty() {
        let mut each = rawdoc! { "$each": raw_array(items)? };
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

fn raw_array<T: Serialize>(items: &[T]) -> Result<RawArrayBuf, StoreError> {
    items.iter().map(raw).collect()
}

/// A value as it is sent: written once, and from there on only copied.
pub(super) fn raw<T: Serialize>(value: &T) -> Result<RawDocumentBuf, StoreError> {
    bson::serialize_to_raw_document_buf(value).map_err(|error| not_bson(&error))
}

pub(super) fn bson<T: Serialize + ?Sized>(value: &T) -> Result<Bson, StoreError> {
    bson::serialize_to_bson(value).map_err(|error| not_bson(&error))
}

fn not_bson(error: &bson::error::Error) -> StoreError {
    StoreError::Refused(format!("not BSON: {error}"))
}
