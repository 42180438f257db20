//! Claiming due entries: the first worker to write its lease gets them.

use std::collections::HashSet;

use bson::{Bson, DateTime as Instant, Document, RawArrayBuf, RawBsonRef, RawDocument, RawDocumentBuf, doc};
use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde::de::Error;
use uuid::Uuid;

use super::delivery::Mark;
use super::due_queue::{Candidate, DueQueue, key};
use super::entry::{Content, Kind, Lease, LeasedEntry, OutboxEntry};
use super::record::{Identify, record};
use crate::store::bson::integer;
use crate::store::client::Store;
use crate::store::collection::DocumentId;
use crate::store::commit::WriteResult;
use crate::store::error::StoreError;
use crate::store::guarded_update::GuardedUpdate;
use offramp_domain::unit_of_work::next_version;

/// The limits of the number of candidates from which the documents to claim are drawn at random. Workers that all took the oldest
/// documents would compete for the same ones.
const CANDIDATES_MAX: usize = 1_024;

/// See [`CANDIDATES_MAX`].
const CANDIDATES_MIN: usize = 64;

/// The format of the entries that this version writes, which have no `format`. A later version gives entries that this one may be
/// unable to read a higher `format`; only its workers claim them.
const ENTRY_FORMAT: i64 = 1;

/// The result of a claim.
#[derive(Debug, Default)]
pub struct Claim {
    /// The claimed entries.
    pub entries: Vec<LeasedEntry>,
    /// The documents that are skipped until [`DueQueue::rewind`].
    pub unclaimable: Vec<UnclaimableDocument>,
    /// The number of entries that failed because they cannot be read.
    pub unreadable: usize,
    /// Whether there may be more due entries.
    pub goes_on: bool,
}

/// A claim that failed, maybe after it had leased entries.
#[derive(Debug)]
pub struct FailedClaim {
    /// Why.
    pub error: StoreError,
    /// Releases the entries that it may have leased. They belong to nobody, so they would wait for the end of the lease.
    pub stranded: Vec<Mark>,
}

impl From<StoreError> for FailedClaim {
    fn from(error: StoreError) -> Self {
        Self { error, stranded: Vec::new() }
    }
}

/// A document that nothing can be claimed from, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnclaimableDocument {
    /// The document's id.
    pub document_id: String,
    /// A sentence.
    pub error: &'static str,
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

/// What a claim does with a document.
enum Plan {
    /// Leases the entries that can be read, or gives them a kind.
    Update(GuardedUpdate),
    /// Marks entries that cannot be read as failed: the statement, and the number of entries.
    Fail(RawDocumentBuf, usize),
    /// Nothing can be done with its entries: they are a later version's.
    PassOver,
    /// Nothing is due any more: another worker claimed it.
    Nothing,
}

impl Store {
    /// Claims the entries that are due at `now` in at most `documents` documents of a queue, drawn from the oldest ones, for
    /// `lease`. `identify` tells what emails of earlier versions are recorded with.
    ///
    /// # Errors
    /// When the server does not answer or rejects the claim.
    pub async fn claim(
        &self,
        queue: &mut DueQueue,
        documents: usize,
        lease: &Lease,
        now: DateTime<Utc>,
        identify: Identify<'_>,
    ) -> Result<Claim, FailedClaim> {
        let page_max = (4 * documents).clamp(CANDIDATES_MIN, CANDIDATES_MAX);
        let page = self.candidates(queue, page_max, now.into()).await?;
        let mut open: Vec<&Candidate> =
            page.iter().filter(|candidate| !queue.passed_over.contains(&candidate.key)).collect();
        if open.is_empty() {
            let goes_on = page.len() >= page_max;
            if goes_on {
                queue.advance(&page);
            }
            return Ok(Claim { goes_on, ..Claim::default() });
        }
        fastrand::shuffle(&mut open);
        open.truncate(documents);
        let ids: Vec<Bson> = open.iter().map(|candidate| candidate.id.clone()).collect();
        let raw = self
            .find(
                queue.collection,
                doc! { "_id": { "$in": ids } },
                doc! { "version": 1, "outbox": 1 },
                i64::try_from(documents).ok(),
            )
            .await?;
        let plans = raw.iter().map(|raw| {
            let id = raw.get("_id").ok().flatten().map(key).unwrap_or_default();
            (id, plan(queue, raw, lease, now, identify))
        });
        let plans: Vec<_> = plans.collect();
        // If other workers were faster everywhere, they are working on the queue.
        let goes_on = plans.iter().any(|(_, plan)| !matches!(plan, Ok(Plan::Nothing)));
        let mut claimed = Claim { goes_on, ..Claim::default() };
        self.carry_out(queue, plans, &mut claimed, now).await?;
        queue.passed_over.extend(claimed.unclaimable.iter().map(|document| document.document_id.clone()));
        Ok(claimed)
    }

    async fn carry_out(
        &self,
        queue: &mut DueQueue,
        plans: Vec<(String, Result<Plan, bson::error::Error>)>,
        claimed: &mut Claim,
        now: DateTime<Utc>,
    ) -> Result<(), FailedClaim> {
        let (mut updates, mut failures) = (Vec::new(), Vec::new());
        for (id, plan) in plans {
            match plan {
                Ok(Plan::Update(update)) => updates.push(update),
                Ok(Plan::Fail(statement, entries)) => failures.push((id, statement, entries)),
                Ok(Plan::PassOver) => drop(queue.passed_over.insert(id)),
                Ok(Plan::Nothing) => {}
                // Not the error's message: it may quote the document.
                Err(_) => claimed.unclaimable.push(UnclaimableDocument {
                    document_id: id,
                    error: "its `_id` is not text of 1 to 128 characters, its `version` not an integer, or its `outbox` not a list",
                }),
            }
        }
        if !failures.is_empty() {
            let statements = failures.iter().map(|(_, statement, _)| statement.clone());
            let reply = self.update_many(queue.collection, statements).await?;
            let refused: HashSet<usize> = reply.rejected.iter().map(|refusal| refusal.position).collect();
            for (position, (document_id, _, entries)) in failures.into_iter().enumerate() {
                if refused.contains(&position) {
                    let error =
                        "an outbox entry cannot be read, and MongoDB rejects the update that marks it as failed";
                    claimed.unclaimable.push(UnclaimableDocument { document_id, error });
                } else {
                    claimed.unreadable += entries;
                }
            }
        }
        let committed = match self.commit(&updates).await {
            Ok(committed) => committed,
            Err(error) => return Err(FailedClaim { stranded: Mark::stranded(updates, &error, now), error }),
        };
        for (update, committed) in updates.into_iter().zip(committed) {
            match committed {
                WriteResult::Written => {
                    // Which other entries were committed with these is unknown.
                    let entries =
                        update.into_leased().into_iter().map(|leased| LeasedEntry { has_companions: false, ..leased });
                    claimed.entries.extend(entries);
                }
                WriteResult::Conflict => {}
                WriteResult::Permanent(_) | WriteResult::Corrupt(_) => {
                    let error = "MongoDB rejects updates of its `outbox`";
                    claimed
                        .unclaimable
                        .push(UnclaimableDocument { document_id: update.document.as_str().to_owned(), error });
                }
            }
        }
        Ok(())
    }
}

/// What a claim does with a document that was found on a queue.
fn plan(
    queue: &DueQueue,
    raw: &RawDocumentBuf,
    lease: &Lease,
    now: DateTime<Utc>,
    identify: Identify<'_>,
) -> Result<Plan, bson::error::Error> {
    let document: Claimable = bson::deserialize_from_slice(raw.as_bytes())?;
    let document_id =
        DocumentId::parse(queue.collection, &document.id).ok_or_else(|| bson::error::Error::custom("no such id"))?;
    let mut set = doc! { "version": next_version(document.version) };
    let (mut failing, mut not_due) = (Document::new(), Document::new());
    let mut find = doc! { "_id": &document.id, "version": document.version };
    let (mut leased, mut records) = (Vec::new(), Vec::new());
    let (mut failed, mut of_later_version) = (0, 0);
    for (place, entry) in document.outbox.into_iter().enumerate() {
        // An element that is not a document has no `due`.
        let Some(entry) = entry?.as_document() else { continue };
        let Some(due) = entry.get_datetime("due").ok().filter(|due| due.to_chrono() <= now) else { continue };
        let kind = entry.get_str("kind").ok();
        if kind != queue.kind.map(Kind::as_str) {
            continue;
        }
        // Fields are set by the entry's place, which cannot change while the version does not.
        let field = |name: &str| format!("outbox.{place}.{name}");
        match (bson::deserialize_from_slice::<OutboxEntry>(entry.as_bytes()), queue.kind) {
            (Ok(mut entry), Some(_)) => {
                entry.due = Some(lease.until.into());
                entry.holder = lease.holder.to_string();
                set.insert(field("due"), Instant::from(lease.until));
                set.insert(field("holder"), &entry.holder);
                leased.push(entry.up_to_date(now.date_naive()));
            }
            (Ok(entry), None) => {
                set.insert(field("kind"), entry.kind().as_str());
                if let (Content::Mail(email), Ok(id)) = (&entry.content, Uuid::parse_str(&entry.id)) {
                    records.push(bson::serialize_to_bson(&record(id, email, identify, now))?);
                }
            }
            (Err(_), _) if is_of_later_version(entry) => of_later_version += 1,
            (Err(_), _) => {
                failed += 1;
                find.insert(field("due"), due);
                failing.insert(field("failed_at"), Instant::from(now));
                failing.insert(field("error"), unreadable(entry));
                not_due.insert(field("due"), "");
            }
        }
    }
    if failed > 0 {
        // Readable entries of the same document are leased the next time.
        failing.insert("version", next_version(document.version));
        let statement = doc! { "q": find, "u": { "$set": failing, "$unset": not_due } };
        let statement = bson::serialize_to_raw_document_buf(&statement)?;
        return Ok(Plan::Fail(statement, failed));
    }
    if set.len() == 1 {
        return Ok(if of_later_version > 0 { Plan::PassOver } else { Plan::Nothing });
    }
    let mut update = doc! { "$set": set };
    if !records.is_empty() {
        update.insert("$push", doc! { "notifications": { "$each": records } });
    }
    Ok(Plan::Update(GuardedUpdate {
        document: document_id,
        version: document.version,
        history_length: None,
        update: bson::serialize_to_raw_document_buf(&update)?.into(),
        entries: leased,
    }))
}

fn is_of_later_version(entry: &RawDocument) -> bool {
    match entry.get("format") {
        Ok(Some(RawBsonRef::Int32(format))) => i64::from(format) > ENTRY_FORMAT,
        Ok(Some(RawBsonRef::Int64(format))) => format > ENTRY_FORMAT,
        _ => false,
    }
}

/// Why an entry cannot be read, without quoting it.
fn unreadable(entry: &RawDocument) -> String {
    let readable = |field| matches!(entry.get(field), Ok(Some(RawBsonRef::Document(_))));
    let id = entry.get_str("id").is_ok_and(|id| Uuid::parse_str(id).is_ok());
    match (id, readable("mail"), readable("event")) {
        (false, ..) => "this version cannot read the entry: its `id` is not a UUID".to_owned(),
        (_, true, _) => {
            "this version cannot read the entry: something in `mail` is missing or of another type".to_owned()
        }
        (_, _, true) => {
            "this version cannot read the entry: something in `event` is missing or of another type".to_owned()
        }
        _ => "this version cannot read the entry: it has neither `mail` nor `event`".to_owned(),
    }
}
