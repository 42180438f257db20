//! Commit: every changed document of a batch in one `update` command per collection, each guarded by its `version`.

use std::collections::{HashMap, HashSet};

use bson::raw::{CString, cstr};
use bson::{Document, RawArrayBuf, RawBson, RawDocumentBuf, doc, rawdoc};

use super::outbox::entry::{Kind, Leased, OutboxEntry};
use super::update::{Refusal, STATEMENTS_BYTES_MAX, raw};
use super::{Collection, Store, StoreError};

/// The lists that the worker writes.
const LISTS: [&str; 6] = ["applied", "card_notices", "history", "notifications", "outbox", "payment_failures"];
/// Codes of a field that does not go with the update: bad value (`$push` to what is no list), type mismatch, path not viable
/// (a field within what is no object), and `$concatArrays` of what is no list.
const MALFORMED: [i32; 4] = [2, 14, 28, 28664];

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

impl From<&Refusal> for Committed {
    fn from(refusal: &Refusal) -> Self {
        let error = refusal.message.clone();
        if MALFORMED.contains(&refusal.code) { Self::Corrupt(error) } else { Self::Refused(error) }
    }
}

impl GuardedUpdate {
    /// What it entails, ready for the dispatcher.
    #[must_use]
    pub fn into_leased(self) -> Vec<Leased> {
        let Self { collection, id, entries, .. } = self;
        let has = |kind| entries.iter().any(|entry| entry.kind() == kind);
        let has_companions = has(Kind::Email) && has(Kind::Event);
        let leased =
            entries.into_iter().map(|entry| Leased { collection, document_id: id.clone(), has_companions, entry });
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
                            // MongoDB 4.4 refuses an empty one.
                            if !pushes.is_empty() {
                                without.append(operator, pushes);
                            }
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
                self.commit_to(collection, updates, &of_collection, false, &mut results).await?;
            }
        }
        Ok(results)
    }

    /// With few statements for updates that are alike, unless one `each` is asked for.
    async fn commit_to(
        &self,
        collection: Collection,
        updates: &[GuardedUpdate],
        indexes: &[usize],
        each: bool,
        results: &mut [Committed],
    ) -> Result<(), StoreError> {
        let (mut statements, alone) = if each { (Vec::new(), indexes.to_vec()) } else { together(updates, indexes) };
        let shared = statements.len();
        statements.extend(alone.iter().map(|&index| updates[index].statement()));
        let sent = self.update_many(collection, statements).await;
        let is_unclear = match &sent {
            // A statement about many documents stops at the first that it does not suit, and does not say which. What it has
            // written has our lease in it, and is found below.
            Ok(reply) => reply.refused.iter().any(|refusal| refusal.position < shared),
            Err(error) => matches!(error, StoreError::Refused(_)) && shared > 0,
        };
        if is_unclear {
            return Box::pin(self.commit_to(collection, updates, indexes, true, results)).await;
        }
        let reply = match sent {
            Ok(reply) => reply,
            // The command as a whole was refused (too large, not BSON): one by one, so that one cannot spoil the others.
            Err(StoreError::Refused(_)) if indexes.len() > 1 => {
                for index in indexes {
                    Box::pin(self.commit_to(collection, updates, &[*index], true, results)).await?;
                }
                return Ok(());
            }
            Err(StoreError::Refused(error)) => {
                results[indexes[0]] = Committed::Refused(error);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let refused = reply.refused.into_iter().map(|it| Refusal { position: it.position - shared, ..it }).collect();
        self.sort_out(collection, updates, indexes, (&alone, refused, reply.modified), results).await
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
            results[index] = Committed::from(refusal);
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
                results[*index] = Committed::from(refusal);
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
