//! Commit: every changed document of a batch in one `update` command per collection, each guarded by its `version`.

use std::collections::{HashMap, HashSet};

use bson::raw::{CStr, CString, cstr};
use bson::{Bson, Document, RawArrayBuf, RawBson, RawDocumentBuf, doc, rawdoc};
use chrono::{DateTime, NaiveDate, Utc};
use serde::Serialize;

use crate::domain::account::Account;
use crate::domain::fold::{Added, Changed, ChangedAccount, ChangedSubscription, World};
use crate::domain::subscription::{Details, Request, Status, Subscription};

use super::documents::{
    AppliedDocument, CancellationDocument, CardNoticeDocument, HistoryDocument, NotificationDocument,
    PaymentFailureDocument, RequestDocument,
};
use super::outbox::{self, Identify, Kind, Lease, Leased, OutboxEntry};
use super::{Collection, Store, StoreError, TIME_EXCEEDED, WRITE_CONCERN_TIME_MAX, milliseconds};

/// How many commands a document remembers.
const APPLIED_MAX: i32 = 200;
/// From how many entries on those of `history` are set by their places. Shorter ones are appended to, many documents at once.
const LONG_HISTORY_MIN: u32 = 50;
/// How many failed payments a document keeps.
const PAYMENT_FAILURES_MAX: i32 = 20;
/// How many bytes of statements one `update` command carries. A command is a document, which has at most 16 MiB.
const STATEMENTS_BYTES_MAX: usize = 12 * 1024 * 1024;
/// The lists that the worker writes.
const LISTS: [&str; 6] = ["applied", "card_notices", "history", "notifications", "outbox", "payment_failures"];
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

    /// The same without the records of emails, where there are any: a document that cannot take them is decided on all the same.
    fn statement_without_records(&self) -> Option<RawDocumentBuf> {
        let update = match &self.update {
            RawBson::Document(update) => {
                update.get_document("$push").ok()?.get("notifications").ok()??;
                let mut without = RawDocumentBuf::new();
                for (operator, fields) in update.iter().flatten() {
                    match fields.as_document().filter(|_| operator == cstr!("$push")) {
                        Some(pushes) => {
                            let kept = pushes.iter().flatten().filter(|(field, _)| *field != cstr!("notifications"));
                            let mut pushes = RawDocumentBuf::new();
                            kept.for_each(|(field, value)| pushes.append(field, value));
                            without.append(operator, pushes);
                        }
                        None => without.append(operator, fields),
                    }
                }
                without.into()
            }
            // A removal keeps nothing that it need not keep.
            RawBson::Array(stages) => {
                let mut stages = stages.clone();
                stages.push(rawdoc! { "$unset": "notifications" });
                stages.into()
            }
            _ => return None,
        };
        Some(statement(&self.find(), &update))
    }

    /// The lists that it appends to, each with how many of the newest are kept (negative; 0: all), where that is all that it does
    /// besides setting whole fields.
    fn lists(&self) -> Option<Vec<(&str, i32)>> {
        let operators = self.update.as_document()?;
        let is_plain = self.history_length.is_none()
            && operators.iter().flatten().all(|(operator, _)| operator == cstr!("$set") || operator == cstr!("$push"))
            && operators.get_document("$set").ok()?.iter().flatten().all(|(field, _)| !field.as_str().contains('.'));
        let pushes = operators.get_document("$push").ok().filter(|_| is_plain)?;
        let mut lists = Vec::new();
        for (field, push) in pushes.iter().flatten() {
            lists.push((field.as_str(), push.as_document()?.get_i32("$slice").unwrap_or(0)));
        }
        Some(lists)
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
        let (mut statements, alone) = together(updates, indexes);
        let places = statements.len();
        statements.extend(alone.iter().map(|&index| updates[index].statement()));
        let reply = match self.update_many(collection, statements).await {
            // A statement about many documents stops at the first that it does not suit, and does not say which. What it has
            // written has our lease in it, and is found below.
            Ok(reply) if reply.refused.iter().any(|refusal| refusal.position < places) => {
                return self.commit_each(collection, updates, indexes, results).await;
            }
            Ok(reply) => reply,
            Err(StoreError::Refused(_)) if indexes.len() > 1 => {
                return self.commit_each(collection, updates, indexes, results).await;
            }
            Err(StoreError::Refused(error)) => {
                results[indexes[0]] = Committed::Refused(error);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let refused = reply.refused.into_iter().map(|it| Refusal { position: it.position - places, ..it }).collect();
        self.sort_out(collection, updates, indexes, (&alone, refused, reply.modified), results).await
    }

    /// The same with a statement for each document.
    async fn commit_each(
        &self,
        collection: Collection,
        updates: &[GuardedUpdate],
        indexes: &[usize],
        results: &mut [Committed],
    ) -> Result<(), StoreError> {
        let statements = indexes.iter().map(|&index| updates[index].statement());
        let reply = match self.update_many(collection, statements.collect::<Vec<_>>()).await {
            Ok(reply) => reply,
            // The command as a whole was refused (too large, not BSON): one by one, so that one cannot spoil the others.
            Err(StoreError::Refused(_)) if indexes.len() > 1 => {
                for index in indexes {
                    Box::pin(self.commit_each(collection, updates, &[*index], results)).await?;
                }
                return Ok(());
            }
            Err(StoreError::Refused(error)) => {
                results[indexes[0]] = Committed::Refused(error);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        self.sort_out(collection, updates, indexes, (indexes, reply.refused, reply.modified), results).await
    }

    /// Finds out which of the updates of `indexes` were written: of those in `alone` some may be refused, and of all together
    /// `modified` were written.
    async fn sort_out(
        &self,
        collection: Collection,
        updates: &[GuardedUpdate],
        indexes: &[usize],
        (alone, refusals, modified): (&[usize], Vec<Refusal>, usize),
        results: &mut [Committed],
    ) -> Result<(), StoreError> {
        let mut refused = Vec::new();
        for refusal in &refusals {
            let Some(&index) = alone.get(refusal.position) else { continue };
            results[index] = refusal.as_committed();
            refused.push(index);
        }
        let is_unsure = self.commit_refused(collection, updates, &refused, results).await?;
        self.name_faults(collection, updates, &refused, results).await?;
        if is_unsure || modified + refusals.len() < indexes.len() {
            self.find_losers(collection, updates, indexes, results).await?;
        }
        Ok(())
    }

    /// Lists of ours that are null count as absent, but nothing can be pushed to them: they are removed. Returns whether there were
    /// any. The documents then have a new version.
    async fn remove_nulls(&self, collection: Collection, ids: impl Iterator<Item = &str>) -> Result<bool, StoreError> {
        let is_null: Vec<Document> = LISTS.iter().map(|list| doc! { *list: { "$type": "null" } }).collect();
        let mut set: Document = LISTS
            .iter()
            .map(|list| {
                let field = format!("${list}");
                let kept = doc! { "$cond": [{ "$eq": [{ "$type": &field }, "null"] }, "$$REMOVE", &field] };
                ((*list).to_owned(), kept.into())
            })
            .collect();
        set.insert("version", doc! { "$add": [{ "$ifNull": ["$version", 0_i64] }, 1_i64] });
        let statement = |id: &str| raw(&doc! { "q": { "_id": id, "$or": &is_null }, "u": [{ "$set": &set }] });
        let statements = ids.map(statement).collect::<Result<Vec<_>, _>>()?;
        Ok(self.update_many(collection, statements).await?.matched > 0)
    }

    /// Tries again what was refused: after lists that are null were removed, or without the records of emails, which may be what
    /// the document cannot take. Returns whether it has to be asked which of the updates are ours.
    async fn commit_refused(
        &self,
        collection: Collection,
        updates: &[GuardedUpdate],
        indexes: &[usize],
        results: &mut [Committed],
    ) -> Result<bool, StoreError> {
        let is_corrupt = |index: &usize| matches!(results[*index], Committed::Corrupt(_));
        let corrupt: Vec<usize> = indexes.iter().copied().filter(is_corrupt).collect();
        let ids = corrupt.iter().map(|&index| updates[index].id.as_str());
        if !corrupt.is_empty() && self.remove_nulls(collection, ids).await? {
            // Decided again; what is corrupt in another way is so again.
            for &index in &corrupt {
                results[index] = Committed::Lost;
            }
        }
        let unrecorded: Vec<(usize, RawDocumentBuf)> = indexes
            .iter()
            .filter(|&&index| results[index] != Committed::Lost)
            .filter_map(|&index| Some((index, updates[index].statement_without_records()?)))
            .collect();
        if unrecorded.is_empty() {
            return Ok(false);
        }
        let reply = match self.update_many(collection, unrecorded.iter().map(|(_, it)| it.clone())).await {
            Ok(reply) => reply,
            // Each stays refused for the first reason.
            Err(StoreError::Refused(_)) => return Ok(false),
            Err(error) => return Err(error),
        };
        for (index, _) in &unrecorded {
            results[*index] = Committed::Written;
        }
        for refusal in &reply.refused {
            if let Some((index, _)) = unrecorded.get(refusal.position) {
                results[*index] = refusal.as_committed();
            }
        }
        Ok(reply.matched + reply.refused.len() < unrecorded.len())
    }

    /// Says of corrupt documents which list is not one. The server's own words may quote the document.
    async fn name_faults(
        &self,
        collection: Collection,
        updates: &[GuardedUpdate],
        indexes: &[usize],
        results: &mut [Committed],
    ) -> Result<(), StoreError> {
        let is_corrupt = |index: &&usize| matches!(results[**index], Committed::Corrupt(_));
        let corrupt: Vec<usize> = indexes.iter().filter(is_corrupt).copied().collect();
        if corrupt.is_empty() {
            return Ok(());
        }
        let ids: Vec<&str> = corrupt.iter().map(|&index| updates[index].id.as_str()).collect();
        let types =
            LISTS.iter().map(|list| ((*list).to_owned(), doc! { "$type": format!("${list}") }.into())).collect();
        let found = self.find(collection, doc! { "_id": { "$in": ids } }, types, None).await?;
        for raw in &found {
            let fault = LISTS.iter().find_map(|list| match raw.get_str(list).ok()? {
                "array" | "missing" | "null" => None,
                "string" => Some(format!("{list}: expected a list, found text")),
                "object" => Some(format!("{list}: expected a list, found an object")),
                other => Some(format!("{list}: expected a list, found a value of the type {other}")),
            });
            let Some(fault) = fault else { continue };
            let is_of_it = |index: &&usize| raw.get_str("_id").is_ok_and(|id| id == updates[**index].id);
            if let Some(&index) = corrupt.iter().find(is_of_it) {
                results[index] = Committed::Corrupt(fault);
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

    /// Many statements, on a majority of the servers before they are answered: one `update` command, or more where they are too
    /// large for one. Trouble with any of them is trouble with all.
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
        let mut updated = Updated { matched: 0, modified: 0, refused: Vec::new(), troubled: Vec::new() };
        let mut sent = 0;
        for (statements, count) in pack(statements) {
            let one = self.update_command(collection, statements).await?;
            let moved = |refusal: Refusal| Refusal { position: refusal.position + sent, ..refusal };
            updated.matched += one.matched;
            updated.modified += one.modified;
            updated.refused.extend(one.refused.into_iter().map(moved));
            updated.troubled.extend(one.troubled.into_iter().map(moved));
            sent += count;
        }
        Ok(updated)
    }

    async fn update_command(&self, collection: Collection, statements: RawArrayBuf) -> Result<Updated, StoreError> {
        let reply = self
            .raw_command(rawdoc! {
                "update": collection.as_str(),
                "updates": statements,
                "ordered": false,
                "writeConcern": { "w": "majority", "wtimeout": milliseconds(WRITE_CONCERN_TIME_MAX) },
            })
            .await?;
        if let Ok(error) = reply.get_document("writeConcernError") {
            let name = error.get_str("codeName").unwrap_or("no reason given");
            return Err(StoreError::Unavailable(format!("not on a majority of the servers ({name})")));
        }
        let matched = number(reply.get("n")).unwrap_or(0);
        let modified = number(reply.get("nModified")).unwrap_or(0);
        let errors: Vec<Refusal> = reply
            .get_array("writeErrors")
            .map(|errors| errors.iter().filter_map(Bson::as_document).filter_map(Refusal::read).collect())
            .unwrap_or_default();
        if errors.iter().any(|error| error.code == TIME_EXCEEDED) {
            return Err(StoreError::TimedOut);
        }
        // A router passes the troubles of a shard on as if they were the statements'.
        let (troubled, refused) = errors.into_iter().partition(|error| TROUBLES.contains(&error.code));
        Ok(Updated { matched, modified, refused, troubled })
    }

    /// Waits until what these documents were read as is on a majority of the servers: a command that was found done, or was
    /// rejected, for what another server may not know yet must not be acknowledged.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn wait_for_majority<'a>(
        &self,
        documents: impl IntoIterator<Item = &'a (Collection, String)>,
    ) -> Result<(), StoreError> {
        let mut statements: HashMap<Collection, Vec<RawDocumentBuf>> = HashMap::new();
        for (collection, id) in documents {
            statements.entry(*collection).or_default().push(empty_write(id));
        }
        for (collection, statements) in statements {
            for statements in statements.chunks(EMPTY_WRITES_MAX) {
                self.update_many(collection, statements.iter().cloned()).await?;
            }
        }
        Ok(())
    }

    /// Finds out whether a majority of the servers takes writes.
    ///
    /// # Errors
    /// When it does not.
    pub async fn check_majority(&self) -> Result<(), StoreError> {
        self.update_many(Collection::Subscriptions, [empty_write(NOBODY)]).await.map(drop)
    }

    /// Finds out whether a majority of the servers takes writes to the collections that decisions are written to.
    ///
    /// # Errors
    /// When it does not.
    pub async fn check_writes(&self) -> Result<(), StoreError> {
        for collection in [Collection::Subscriptions, Collection::Accounts] {
            self.update_many(collection, [empty_write(NOBODY)]).await?;
        }
        Ok(())
    }
}

/// The updates of `indexes` in few statements, each about all documents whose updates are alike: they set whole fields, and append to
/// the same lists. The changes are a literal list, of which each document takes its own. Also the indexes of the updates that are
/// like no other. (A statement costs the server more than what it changes: this takes half of its time away.)
fn together(updates: &[GuardedUpdate], indexes: &[usize]) -> (Vec<RawDocumentBuf>, Vec<usize>) {
    let mut groups: HashMap<Vec<(&str, i32)>, Vec<usize>> = HashMap::new();
    let mut alone = Vec::new();
    for &index in indexes {
        match updates[index].lists() {
            Some(lists) => groups.entry(lists).or_default().push(index),
            None => alone.push(index),
        }
    }
    let mut statements = Vec::new();
    for (lists, group) in groups {
        let mut chunk = Vec::new();
        let mut bytes = 0;
        for index in group {
            let size = updates[index].update.as_document().map_or(0, |update| update.as_bytes().len());
            if bytes + size > STATEMENTS_BYTES_MAX / 2 {
                statements.extend(together_statement(updates, &std::mem::take(&mut chunk), &lists));
                bytes = 0;
            }
            bytes += size;
            chunk.push(index);
        }
        if let [index] = chunk[..] {
            alone.push(index);
        } else {
            statements.extend(together_statement(updates, &chunk, &lists));
        }
    }
    (statements, alone)
}

/// One statement for updates that append to these lists.
fn together_statement(updates: &[GuardedUpdate], group: &[usize], lists: &[(&str, i32)]) -> Option<RawDocumentBuf> {
    let (mut ids, mut changes) = (RawArrayBuf::new(), RawArrayBuf::new());
    for &index in group {
        let GuardedUpdate { id, version, update, .. } = &updates[index];
        let operators = update.as_document()?;
        let version = version.map_or(RawBson::Null, RawBson::Int64);
        let mut change = rawdoc! { "version": version, "set": operators.get_document("$set").ok()?.to_owned() };
        for (field, push) in operators.get_document("$push").ok()?.iter().flatten() {
            change.append(field, push.as_document()?.get_array("$each").ok()?.to_owned());
        }
        ids.push(id.as_str());
        changes.push(change);
    }
    let mut appended = RawDocumentBuf::new();
    for (field, newest) in lists {
        let (own, added) = (format!("${field}"), format!("$$change.{field}"));
        let all = rawdoc! { "$concatArrays": [{ "$ifNull": [own, []] }, added] };
        let kept = if *newest < 0 {
            rawdoc! { "$slice": [all, *newest] }
        } else {
            all
        };
        appended.append(CString::try_from(*field).ok()?, kept);
    }
    let place = rawdoc! { "$indexOfArray": [{ "$literal": ids.clone() }, "$_id"] };
    let change = rawdoc! { "$arrayElemAt": [{ "$literal": changes }, place] };
    let is_as_read = rawdoc! { "$eq": [{ "$ifNull": ["$version", RawBson::Null] }, "$$change.version"] };
    let written = rawdoc! { "$mergeObjects": ["$$ROOT", "$$change.set", appended] };
    let document = rawdoc! { "$cond": [is_as_read, written, "$$ROOT"] };
    Some(rawdoc! {
        "q": { "_id": { "$in": ids } },
        "u": [{ "$replaceWith": { "$let": { "vars": { "change": change }, "in": document } } }],
        "multi": true,
    })
}

/// Statements as `update` commands carry them, with how many each has.
fn pack(statements: impl IntoIterator<Item = RawDocumentBuf>) -> Vec<(RawArrayBuf, usize)> {
    let mut packed: Vec<(RawArrayBuf, usize)> = Vec::new();
    for statement in statements {
        let fits = |(together, _): &&mut (RawArrayBuf, usize)| {
            together.as_bytes().len() + statement.as_bytes().len() <= STATEMENTS_BYTES_MAX
        };
        match packed.last_mut().filter(fits) {
            Some((together, count)) => {
                together.push(statement);
                *count += 1;
            }
            None => packed.push((RawArrayBuf::from_iter([statement]), 1)),
        }
    }
    packed
}

/// How many empty writes are sent in one command.
const EMPTY_WRITES_MAX: usize = 256;
/// The id of no document: what an empty write that is about none names.
const NOBODY: &str = "offramp:nobody";

/// A write that changes nothing, because no version is negative. It waits, as any other, for the newest change that its
/// server knows. It names a document, so that a router asks the shard that has it; a condition that nothing can meet, such
/// as an empty `$in`, it may send to any shard.
fn empty_write(id: &str) -> RawDocumentBuf {
    rawdoc! { "q": { "_id": id, "version": -1_i64 }, "u": { "$set": { "version": 0 } } }
}

/// Codes of a field that does not go with the update: bad value (`$push` to what is no list), type mismatch, path not viable
/// (a field within what is no object), and `$concatArrays` of what is no list.
const MALFORMED: [i32; 4] = [2, 14, 28, 28664];
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
        if MALFORMED.contains(&self.code) { Committed::Corrupt(error) } else { Committed::Refused(error) }
    }
}

/// The reply to an `update` command.
pub(super) struct Updated {
    /// How many documents the statements found.
    pub(super) matched: usize,
    /// How many of them they changed.
    pub(super) modified: usize,
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
    let lists = Lists { history, applied, records, entries: &entries };
    // To append to a long list takes the server many times as long as to set its next place.
    let history_length = before.history_length.filter(|length| *length >= LONG_HISTORY_MIN && after.details.is_some());
    let update = match &after.details {
        Some(details) => set_changed(&before, &after, details, &lists, history_length, &failures)?,
        None => tombstone(&after, &lists)?,
    };
    Ok(GuardedUpdate {
        collection: Collection::Subscriptions,
        id: after.id.to_string(),
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

/// Sets the fields that changed, and only those.
fn set_changed(
    before: &Subscription,
    after: &Subscription,
    details: &Details,
    lists: &Lists<'_>,
    history_length: Option<u32>,
    failures: &[PaymentFailureDocument],
) -> Result<RawBson, StoreError> {
    let mut set = rawdoc! { "version": next(before.version) };
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
        set.append(cstr!("cancellation"), raw(&CancellationDocument::from(record))?);
    }
    if let Ok(activities) = &details.activities
        && old.is_some_and(|old| old.activities != details.activities)
    {
        set.append(cstr!("activities"), raw_array(activities)?);
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
                    raw(entry)?,
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

/// Sets a new request as a whole. One that is only closed keeps what else it has.
fn set_request(set: &mut RawDocumentBuf, earlier: Option<&Request>, request: &Request) -> Result<(), StoreError> {
    let same = earlier.filter(|earlier| Request { closed: None, ..request.clone() } == **earlier);
    match (same, &request.closed) {
        (Some(_), Some(closed)) => {
            set.append(cstr!("cancellation_request.decided_at"), bson::DateTime::from(closed.decided_at));
            set.append(
                cstr!("cancellation_request.decision"),
                RawBson::try_from(bson(&closed.decision)?).map_err(|error| not_bson(&error))?,
            );
            if let Some(note) = &closed.note {
                set.append(cstr!("cancellation_request.note"), note.as_str());
            }
        }
        _ => set.append(cstr!("cancellation_request"), raw(&RequestDocument::from(request))?),
    }
    Ok(())
}

/// Leaves the fields of a tombstone and nothing else, whoever wrote it: the rest may be personal. So may be parts of the
/// entries of two of its lists.
fn tombstone(after: &Subscription, lists: &Lists<'_>) -> Result<RawBson, StoreError> {
    let mut keep = RawDocumentBuf::new();
    for field in TOMBSTONE_FIELDS {
        keep.append(field, 1);
    }
    let append = |field: &str, added: RawArrayBuf| {
        let field = format!("${field}");
        rawdoc! { "$concatArrays": [{ "$ifNull": [field, []] }, { "$literal": added }] }
    };
    let applied = append("applied", raw_array(&lists.applied)?);
    let recorded = rawdoc! { "$cond": [{ "$isArray": "$notifications" }, "$notifications", []] };
    let records = rawdoc! { "$literal": raw_array(&lists.records)? };
    let set = rawdoc! {
        "status": Status::Removed.as_str(),
        "ended_on": day(after.ended_on),
        "version": next(after.version),
        "history": append("history", raw_array(&lists.history)?),
        "applied": { "$slice": [applied, -APPLIED_MAX] },
        "outbox": append("outbox", raw_array(lists.entries)?),
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
    let Changed { before: account, after, added } = changed;
    let records = records(&added, identify, now);
    let notices: Vec<CardNoticeDocument> =
        added.iter().filter_map(|added| added.record.as_ref()).map(Into::into).collect();
    let applied = applied(&added, now);
    let entries = entries(added, lease, source, now);
    let mut set = rawdoc! { "version": next(account.version) };
    let mut push = RawDocumentBuf::new();
    let remembered = |account: &Account| account.card_notices.as_ref().map_or(0, Vec::len);
    if remembered(&after) == remembered(&account) + notices.len() {
        append_each(&mut push, cstr!("card_notices"), &notices, None)?;
    } else {
        // Some were forgotten.
        let all: Vec<CardNoticeDocument> = after.card_notices.iter().flatten().map(Into::into).collect();
        set.append(cstr!("card_notices"), raw_array(&all)?);
    }
    append_each(&mut push, cstr!("applied"), &applied, Some(APPLIED_MAX))?;
    append_each(&mut push, cstr!("notifications"), &records, None)?;
    append_each(&mut push, cstr!("outbox"), &entries, None)?;
    Ok(GuardedUpdate {
        collection: Collection::Accounts,
        id: account.id.to_string(),
        version: account.version,
        history_length: None,
        update: rawdoc! { "$set": set, "$push": push }.into(),
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
