//! One update of one document, guarded by the version that was read; as a statement of its own, or together with others.

use std::collections::HashMap;

use bson::raw::{CString, cstr};
use bson::{RawArrayBuf, RawBson, RawDocumentBuf, rawdoc};

use super::collection::DocumentId;
use super::outbox::entry::{Kind, LeasedEntry, OutboxEntry};
use super::update_many::STATEMENTS_BYTES_MAX;

/// An update of one document, applied only if the document still has the version that was read.
#[derive(Debug)]
pub struct GuardedUpdate {
    pub document: DocumentId,
    /// The version that was read; `None` if the document had none.
    pub version: Option<i64>,
    /// The length that `history` must still have, where new entries are set by index.
    pub history_length: Option<u32>,
    /// The statement's `u`: update operators, or a pipeline.
    pub update: RawBson,
    /// The entries that it adds to the outbox. Their `holder` shows afterwards whether the update was written. (An update without
    /// entries leaves no such trace: in doubt it counts as a conflict, and the retry finds the command applied.)
    pub entries: Vec<OutboxEntry>,
}

impl GuardedUpdate {
    /// Its outbox entries, ready for the dispatcher.
    #[must_use]
    pub fn into_leased(self) -> Vec<LeasedEntry> {
        let Self { document, entries, .. } = self;
        let has = |kind| entries.iter().any(|entry| entry.kind() == kind);
        let has_companions = has(Kind::Email) && has(Kind::Event);
        let leased = entries.into_iter().map(|entry| LeasedEntry { document: document.clone(), has_companions, entry });
        leased.collect()
    }

    /// Finds the document as it was read.
    fn find(&self) -> RawDocumentBuf {
        // Null matches a null version and a missing one.
        let version = self.version.map_or(RawBson::Null, RawBson::Int64);
        let mut find = rawdoc! { "_id": self.document.as_str(), "version": version };
        if let Some(length) = self.history_length {
            find.append(cstr!("history"), rawdoc! { "$size": i64::from(length) });
        }
        find
    }

    pub(super) fn statement(&self) -> RawDocumentBuf {
        statement(&self.find(), &self.update)
    }

    /// The statement without the records of emails, if it has any: for a document that cannot take them.
    pub(super) fn statement_without_records(&self) -> Option<RawDocumentBuf> {
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
                            // MongoDB 4.4 rejects an empty `$push`.
                            if !pushes.is_empty() {
                                without.append(operator, pushes);
                            }
                        }
                        None => without.append(operator, fields),
                    }
                }
                without.into()
            }
            // A tombstone needs no records.
            RawBson::Array(stages) => {
                let mut stages = stages.clone();
                stages.push(rawdoc! { "$unset": "notifications" });
                stages.into()
            }
            _ => return None,
        };
        Some(statement(&self.find(), &update))
    }

    /// The lists that it appends to, each with the number of newest elements to keep (negative; 0: all). `None` if the update does
    /// more than append and set whole fields.
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

    pub(super) fn holder(&self) -> Option<&str> {
        self.entries.first().map(|entry| entry.holder.as_str())
    }
}

fn statement(find: &RawDocumentBuf, update: &RawBson) -> RawDocumentBuf {
    let mut statement = rawdoc! { "q": find.clone() };
    statement.append(cstr!("u"), update.as_raw_bson_ref());
    statement
}

/// Combines the updates of `indexes` into few statements, one for all documents whose updates set whole fields and append to the same
/// lists. The changes are a literal list, from which each document takes its own. Also returns the indexes of the updates that cannot
/// be combined. (A statement costs the server more than its changes do: combining them halves the time.)
pub(super) fn together(updates: &[GuardedUpdate], indexes: &[usize]) -> (Vec<RawDocumentBuf>, Vec<usize>) {
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

/// One statement for all updates that append to these lists.
fn together_statement(updates: &[GuardedUpdate], group: &[usize], lists: &[(&str, i32)]) -> Option<RawDocumentBuf> {
    let (mut ids, mut changes) = (RawArrayBuf::new(), RawArrayBuf::new());
    for &index in group {
        let GuardedUpdate { document, version, update, .. } = &updates[index];
        let operators = update.as_document()?;
        let version = version.map_or(RawBson::Null, RawBson::Int64);
        let mut change = rawdoc! { "version": version, "set": operators.get_document("$set").ok()?.to_owned() };
        for (field, push) in operators.get_document("$push").ok()?.iter().flatten() {
            change.append(field, push.as_document()?.get_array("$each").ok()?.to_owned());
        }
        ids.push(document.as_str());
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
