//! Importing documents from a file. What Offramp decided about existing documents is kept, unless the caller wants it replaced.

use std::collections::{BTreeSet, HashMap};

use bson::{Bson, Document, RawDocumentBuf, doc};
use offramp_domain::subscription::Status;

use super::bson::to_raw;
use super::client::Store;
use super::collection::Collection;
use super::error::StoreError;

/// The maximum number of documents in one command.
pub const IMPORT_DOCUMENTS_MAX: usize = 500;

/// How often a batch is read and written again because other writers changed its documents meanwhile.
const ROUNDS_MAX: usize = 10;

/// How documents are imported.
#[derive(Clone, Copy, Debug, Default)]
pub struct ImportOptions {
    /// Replaces the fields that Offramp writes, too, also in existing documents.
    pub overwrite_state: bool,
    /// Only counts; nothing is written.
    pub dry_run: bool,
}

/// What an import did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImportCounts {
    pub created: usize,
    pub changed: usize,
    /// Existing documents that have the content of the file already.
    pub unchanged: usize,
    /// Subscriptions that an administrator removed: the file would bring their data back, so they are left alone.
    pub removed: usize,
    /// Existing documents, changed or not, of which some fields differ from the file and are kept, because Offramp writes them.
    pub kept: usize,
    /// The names of those fields.
    pub kept_fields: BTreeSet<&'static str>,
}

impl ImportCounts {
    /// Adds the counts of another batch.
    pub fn add(&mut self, other: Self) {
        self.created += other.created;
        self.changed += other.changed;
        self.unchanged += other.unchanged;
        self.removed += other.removed;
        self.kept += other.kept;
        self.kept_fields.extend(other.kept_fields);
    }
}

/// What an import does with one document.
#[derive(Debug, PartialEq)]
enum Plan {
    Create,
    /// Sets these fields.
    Change {
        set: Document,
        kept: Vec<&'static str>,
    },
    Unchanged {
        kept: Vec<&'static str>,
    },
    /// An administrator removed the subscription.
    Removed,
}

impl Store {
    /// Creates the documents, or sets the given fields of those that exist; other fields stay. Like every writer, it increments
    /// `version` of existing documents that it changes. Each `_id` may be given once.
    ///
    /// # Errors
    /// When the server does not answer, or rejects a document; the others may have been written.
    pub async fn import(
        &self,
        collection: Collection,
        documents: &[Document],
        options: ImportOptions,
    ) -> Result<ImportCounts, StoreError> {
        let mut counts = ImportCounts::default();
        let mut pending: Vec<&Document> = documents.iter().collect();
        for round in 0..ROUNDS_MAX {
            let existing = self.existing(collection, pending.iter().map(|document| id(document))).await?;
            let (mut open, mut statements) = (Vec::new(), Vec::new());
            for document in pending {
                let stored = existing.get(id(document));
                let plan = plan(collection, stored, document, options.overwrite_state);
                let statement = match &plan {
                    Plan::Create => Some(create_statement(document)),
                    Plan::Change { set, .. } => Some(change_statement(id(document), stored, set)),
                    Plan::Unchanged { .. } | Plan::Removed => None,
                };
                // What the first round wrote is unchanged in the second, which finds what other writers prevented.
                if round == 0 {
                    counts.count(plan);
                }
                if let Some(statement) = statement {
                    open.push(document);
                    statements.push(to_raw(&statement)?);
                }
            }
            if open.is_empty() || options.dry_run {
                return Ok(counts);
            }
            let updated = self.update_many(collection, statements).await?;
            if let Some(refusal) = updated.rejected.first() {
                let id = open.get(refusal.position).map(|document| id(document)).unwrap_or_default();
                return Err(StoreError::Permanent(format!("{} {id}: {}", collection.as_str(), refusal.message)));
            }
            pending = open;
        }
        Err(StoreError::Permanent(format!("other writers change documents of {} all the time", collection.as_str())))
    }

    /// For each of these documents that exists, the organization that it belongs to, if it names one.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn organizations_of(
        &self,
        collection: Collection,
        ids: &[&str],
    ) -> Result<HashMap<String, Option<String>>, StoreError> {
        let found = self.find_by_id(collection, ids.iter().copied(), doc! { "organization_id": 1 }).await?;
        let pair = |raw: &RawDocumentBuf| {
            Some((raw.get_str("_id").ok()?.to_owned(), raw.get_str("organization_id").ok().map(str::to_owned)))
        };
        Ok(found.iter().filter_map(pair).collect())
    }

    async fn existing(
        &self,
        collection: Collection,
        ids: impl Iterator<Item = &str>,
    ) -> Result<HashMap<String, Document>, StoreError> {
        let found = self.find_by_id(collection, ids, doc! {}).await?;
        found
            .iter()
            .map(|raw| {
                let document = Document::try_from(raw.as_ref())
                    .map_err(|error| StoreError::Permanent(format!("{}: {error}", collection.as_str())))?;
                Ok((id(&document).to_owned(), document))
            })
            .collect()
    }
}

impl ImportCounts {
    fn count(&mut self, plan: Plan) {
        let kept = match plan {
            Plan::Create => {
                self.created += 1;
                Vec::new()
            }
            Plan::Change { kept, .. } => {
                self.changed += 1;
                kept
            }
            Plan::Unchanged { kept } => {
                self.unchanged += 1;
                kept
            }
            Plan::Removed => {
                self.removed += 1;
                Vec::new()
            }
        };
        self.kept += usize::from(!kept.is_empty());
        self.kept_fields.extend(kept);
    }
}

fn id(document: &Document) -> &str {
    document.get_str("_id").unwrap_or_default()
}

/// What an import does with `given`, if `stored` is what the database has.
fn plan(collection: Collection, stored: Option<&Document>, given: &Document, overwrite_state: bool) -> Plan {
    let Some(stored) = stored else { return Plan::Create };
    let mut kept = Vec::new();
    let mut wanted = given.clone();
    wanted.remove("_id");
    if !overwrite_state {
        let status = match collection {
            Collection::Subscriptions => stored.get_str("status").unwrap_or_default(),
            Collection::Accounts | Collection::Organizations => "",
        };
        if status == Status::Removed.as_str() {
            return Plan::Removed;
        }
        for &field in collection.worker_fields() {
            if wanted.remove(field).is_some_and(|value| is_other(stored.get(field), &value)) {
                kept.push(field);
            }
        }
        wanted.remove("version");
        if [Status::Cancelled, Status::Expired].iter().any(|ended| ended.as_str() == status) {
            keep_the_end(stored, &mut wanted, &mut kept);
        }
    }
    let set: Document = wanted.into_iter().filter(|(field, value)| is_other(stored.get(field), value)).collect();
    // A version alone changes nothing.
    if set.keys().all(|field| field == "version") { Plan::Unchanged { kept } } else { Plan::Change { set, kept } }
}

/// Keeps what Offramp wrote when the subscription ended: no activities, and no next invoice.
fn keep_the_end(stored: &Document, wanted: &mut Document, kept: &mut Vec<&'static str>) {
    if wanted.remove("activities").is_some_and(|value| is_other(stored.get("activities"), &value)) {
        kept.push("activities");
    }
    let next_on = stored.get_document("billing").ok().and_then(|billing| billing.get("next_on"));
    if let Ok(billing) = wanted.get_document_mut("billing")
        && billing.get("next_on").unwrap_or(&Bson::Null) != next_on.unwrap_or(&Bson::Null)
    {
        kept.push("billing.next_on");
        match next_on {
            Some(next_on) => drop(billing.insert("next_on", next_on.clone())),
            None => drop(billing.remove("next_on")),
        }
    }
}

/// Whether a stored value is another than the given one. A missing one equals null.
fn is_other(stored: Option<&Bson>, given: &Bson) -> bool {
    stored.unwrap_or(&Bson::Null) != given
}

/// Creates the document, unless it exists by now.
fn create_statement(document: &Document) -> Document {
    let mut fields = document.clone();
    let id = fields.remove("_id").unwrap_or(Bson::Null);
    // In a new document, `$$ROOT` has only the `_id` of the filter.
    let is_new = doc! { "$eq": [{ "$size": { "$objectToArray": "$$ROOT" } }, 1] };
    // Data, even where it looks like an expression.
    let created = doc! { "$mergeObjects": ["$$ROOT", { "$literal": fields }] };
    doc! {
        "q": { "_id": id },
        "u": [{ "$replaceWith": { "$cond": [is_new, created, "$$ROOT"] } }],
        "upsert": true,
    }
}

/// Sets the fields, unless another writer has changed the document.
fn change_statement(id: &str, stored: Option<&Document>, set: &Document) -> Document {
    let mut fields = set.clone();
    let given = fields.remove("version").unwrap_or(Bson::Null);
    let next = doc! { "$add": [{ "$ifNull": ["$version", 0] }, 1] };
    let version = stored.and_then(|stored| stored.get("version")).cloned().unwrap_or(Bson::Null);
    doc! {
        "q": { "_id": id, "version": version },
        "u": [{ "$replaceWith": { "$mergeObjects": [
            "$$ROOT",
            // Data, even where it looks like an expression.
            { "$literal": fields },
            { "version": { "$max": [{ "$literal": given }, next] } },
        ] } }],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUBSCRIPTIONS: Collection = Collection::Subscriptions;

    fn stored(status: &str) -> Document {
        doc! {
            "_id": "sub-1", "plan": { "name": "Yoga" }, "billing": { "day": 15 }, "activities": [], "crm": 1,
            "status": status, "ends_on": "2026-06-14", "version": 7,
        }
    }

    #[test]
    fn what_offramp_decided_is_kept() {
        let given = doc! {
            "_id": "sub-1", "plan": { "name": "Natation" }, "status": "active", "ends_on": "2026-06-14", "version": 1,
            "cancellation": { "by": "admin" },
        };
        let planned = plan(SUBSCRIPTIONS, Some(&stored("cancellation_scheduled")), &given, false);
        let set = doc! { "plan": { "name": "Natation" } };
        assert_eq!(planned, Plan::Change { set, kept: vec!["cancellation", "status"] });
        let planned = plan(SUBSCRIPTIONS, Some(&stored("cancellation_scheduled")), &given, true);
        let Plan::Change { set, kept } = planned else { panic!("{planned:?}") };
        assert_eq!((set.get_str("status").unwrap(), kept), ("active", vec![]));
    }

    #[test]
    fn an_end_stays_an_end() {
        let given = doc! {
            "_id": "sub-1", "billing": { "day": 20, "next_on": "2026-06-20" }, "activities": [{ "id": "a", "name": "A" }],
        };
        for status in ["cancelled", "expired"] {
            let planned = plan(SUBSCRIPTIONS, Some(&stored(status)), &given, false);
            let set = doc! { "billing": { "day": 20 } };
            assert_eq!(planned, Plan::Change { set, kept: vec!["activities", "billing.next_on"] });
        }
        let planned = plan(SUBSCRIPTIONS, Some(&stored("active")), &given, false);
        assert!(matches!(planned, Plan::Change { kept, .. } if kept.is_empty()));
        assert_eq!(plan(SUBSCRIPTIONS, Some(&stored("removed")), &given, false), Plan::Removed);
    }

    #[test]
    fn the_same_content_changes_nothing() {
        let given = doc! { "_id": "sub-1", "plan": { "name": "Yoga" }, "note": Bson::Null, "version": 9 };
        for overwrite_state in [false, true] {
            let planned = plan(SUBSCRIPTIONS, Some(&stored("active")), &given, overwrite_state);
            assert_eq!(planned, Plan::Unchanged { kept: vec![] });
        }
        assert_eq!(plan(SUBSCRIPTIONS, None, &given, false), Plan::Create);
    }
}
