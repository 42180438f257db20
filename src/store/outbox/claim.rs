//! The outbox as the worker sees it: due entries are claimed, and entries are marked as sent, put off or failed.
//!
//! A sent entry must never be sent again because a record could not be written. So marking has a fast way for many documents
//! and, for those that it did not find as expected, a careful one ([`Store::settle`]).

use std::collections::{BTreeMap, HashSet};

use bson::{Bson, DateTime as Instant, Document, RawArrayBuf, RawBsonRef, RawDocumentBuf, doc, rawdoc};
use chrono::{DateTime, Utc};
use futures_util::future::try_join_all;
use mongodb::options::Hint;
use serde::Deserialize;
use uuid::Uuid;

use crate::clock;

use super::entry::{self, Content, Identify, Kind, Lease, Leased, OUTBOXES, OutboxEntry};
use crate::store::changes::next;
use crate::store::commit::{Committed, GuardedUpdate};
use crate::store::documents::integer;
use crate::store::sweep::DUE;
use crate::store::update::{Refusal, raw};
use crate::store::{Collection, Store, StoreError};

/// From how many candidates the documents to claim are drawn, at most and at least. Several workers that took the oldest
/// ones would all want the same.
const CANDIDATES_MAX: usize = 1_024;
/// See [`CANDIDATES_MAX`].
const CANDIDATES_MIN: usize = 64;
/// The format of the entries that this version writes; absent in them. A later version whose entries this one may be unable to read
/// gives them a higher `format`: then they are left to its workers.
const ENTRY_FORMAT: i64 = 1;

/// What is to be marked of an entry.
#[derive(Clone, Debug)]
pub struct Mark {
    /// Where its document is.
    pub collection: Collection,
    /// Its document.
    pub document_id: String,
    /// Its id.
    pub entry_id: String,
    /// What it is.
    pub kind: Kind,
    /// The lease under which it was tried.
    pub holder: String,
    /// How often it was tried in vain before.
    pub attempts: i32,
    /// How it went.
    pub result: DeliveryResult,
}

impl Mark {
    /// The mark of a leased entry.
    #[must_use]
    pub fn new(leased: &Leased, result: DeliveryResult) -> Self {
        Self {
            collection: leased.collection,
            document_id: leased.document_id.clone(),
            kind: leased.entry.kind(),
            entry_id: leased.entry.id.clone(),
            holder: leased.entry.holder.clone(),
            attempts: leased.entry.attempts,
            result,
        }
    }

    fn is_sent(&self) -> bool {
        matches!(self.result, DeliveryResult::Sent { .. })
    }
}

/// The result of trying to send an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeliveryResult {
    /// The mail server has accepted the email, or the broker has confirmed the event.
    Sent {
        /// When.
        at: DateTime<Utc>,
    },
    /// Not sent: any worker may claim it at once.
    Released {
        /// When.
        at: DateTime<Utc>,
    },
    /// To be retried later.
    Deferred {
        /// When it may be tried again.
        until: DateTime<Utc>,
        /// Why.
        error: String,
        /// What is counted besides `attempts`.
        cause: DeferralCause,
    },
    /// Never.
    Failed {
        /// When that was found out.
        at: DateTime<Utc>,
        /// Why.
        error: String,
    },
}

/// Why an entry was deferred, where more than `attempts` is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeferralCause {
    /// None of those below: it is retried without limit.
    Ordinary,
    /// It may have been delivered.
    InDoubt,
    /// The mail server rejected it because of the sender.
    SenderRejected {
        /// When.
        at: DateTime<Utc>,
    },
}

/// Where claims look: a collection, and the `kind` that entries have there.
#[derive(Clone, Debug)]
pub struct DueQueue {
    /// The collection.
    pub collection: Collection,
    /// The kind; absent for entries of earlier versions, which have none. These are not claimed: they get a kind, and are claimed by
    /// it then.
    kind: Option<Kind>,
    /// The place in the index from which on candidates are taken.
    from: Instant,
    /// How many candidates at that place are passed over.
    skip: u64,
    /// Candidates after it that are passed over.
    passed_over: HashSet<String>,
}

impl DueQueue {
    /// Where entries of a kind are. Those of earlier versions are looked for with events, which never wait for a mail server.
    #[must_use]
    pub fn of(kind: Kind) -> Vec<Self> {
        let kinds: &[Option<Kind>] = match kind {
            Kind::Email => &[Some(Kind::Email)],
            Kind::Event => &[Some(Kind::Event), None],
        };
        let queues = kinds.iter().flat_map(|&kind| {
            OUTBOXES.map(|collection| Self {
                collection,
                kind,
                from: Instant::MIN,
                skip: 0,
                passed_over: HashSet::new(),
            })
        });
        queues.collect()
    }

    /// Looks from the beginning again, also at what was passed over.
    pub fn rewind(&mut self) {
        (self.from, self.skip) = (Instant::MIN, 0);
        self.passed_over.clear();
    }

    /// Passes over a whole page.
    fn advance(&mut self, page: &[Candidate]) {
        let Some(last) = page.last().map(|candidate| candidate.due) else { return };
        let at_last = page.iter().rev().take_while(|candidate| candidate.due == last).count() as u64;
        self.skip = if last == self.from { self.skip + at_last } else { at_last };
        self.from = last;
        self.passed_over.clear();
    }

    fn kind(&self) -> Bson {
        self.kind.map_or(Bson::Null, |kind| kind.as_str().into())
    }
}

/// A document with an entry that is due.
struct Candidate {
    /// Its `_id` as text, also where it is none.
    key: String,
    /// Its `_id`.
    id: Bson,
    /// The oldest `due` that the index finds it by.
    due: Instant,
}

impl Candidate {
    fn read(raw: &RawDocumentBuf, queue: &DueQueue, now: Instant) -> Option<Self> {
        let id = raw.get("_id").ok()??;
        let is_of_queue = |entry: &bson::RawDocument| match (entry.get("kind"), queue.kind) {
            (Ok(Some(RawBsonRef::String(kind))), Some(wanted)) => kind == wanted.as_str(),
            (Ok(None | Some(RawBsonRef::Null)), None) => true,
            _ => false,
        };
        let entries = raw.get_array("outbox").ok()?.into_iter().flatten().filter_map(RawBsonRef::as_document);
        let due = entries
            .filter(|entry| is_of_queue(entry))
            .filter_map(|entry| entry.get_datetime("due").ok())
            .filter(|due| (queue.from..=now).contains(due))
            .min()?;
        Some(Self { key: key(id), id: Bson::try_from(id).ok()?, due })
    }
}

fn key(id: RawBsonRef<'_>) -> String {
    id.as_str().map_or_else(|| format!("{id:?}"), str::to_owned)
}

/// A document that nothing can be claimed from, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unclaimable {
    /// The document's id.
    pub document_id: String,
    /// A sentence.
    pub error: &'static str,
}

/// What a claim found.
#[derive(Debug, Default)]
pub struct Claimed {
    /// The entries that are ours now.
    pub entries: Vec<Leased>,
    /// The documents that will be passed over until [`DueQueue::rewind`].
    pub unclaimable: Vec<Unclaimable>,
    /// How many entries have failed because they cannot be read.
    pub unreadable: usize,
    /// Whether there is more to look at.
    pub goes_on: bool,
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
    /// Fails so many entries that cannot be read, with this statement.
    Fail(RawDocumentBuf, usize),
    /// Nothing can be done with its entries: they are a later version's.
    PassOver,
    /// Nothing is due any more: somebody else was faster.
    Nothing,
}

impl Store {
    /// Takes the entries that are due at `now` from at most `documents` documents of a queue, drawn from the oldest ones, for
    /// `lease`. `identify` tells what emails of earlier versions are recorded with.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn claim(
        &self,
        queue: &mut DueQueue,
        documents: usize,
        lease: &Lease,
        now: DateTime<Utc>,
        identify: Identify<'_>,
    ) -> Result<Claimed, StoreError> {
        let page_max = (4 * documents).clamp(CANDIDATES_MIN, CANDIDATES_MAX);
        let page = self.candidates(queue, page_max, now.into()).await?;
        let mut open: Vec<&Candidate> =
            page.iter().filter(|candidate| !queue.passed_over.contains(&candidate.key)).collect();
        if open.is_empty() {
            let goes_on = page.len() >= page_max;
            if goes_on {
                queue.advance(&page);
            }
            return Ok(Claimed { goes_on, ..Claimed::default() });
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
        // Where others were faster everywhere, they are at work.
        let goes_on = plans.iter().any(|(_, plan)| !matches!(plan, Ok(Plan::Nothing)));
        let mut claimed = Claimed { goes_on, ..Claimed::default() };
        self.carry_out(queue, plans, &mut claimed).await?;
        queue.passed_over.extend(claimed.unclaimable.iter().map(|document| document.document_id.clone()));
        Ok(claimed)
    }

    /// The documents of a queue that have due entries, oldest first (the order of the index).
    async fn candidates(&self, queue: &DueQueue, max: usize, now: Instant) -> Result<Vec<Candidate>, StoreError> {
        let filter = doc! {
            // For the planner: what the partial index holds.
            "outbox.due": { "$lte": now },
            "outbox": { "$elemMatch": { "kind": queue.kind(), "due": { "$gte": queue.from, "$lte": now } } },
        };
        let collection = self.database.collection::<RawDocumentBuf>(queue.collection.as_str());
        let projection = doc! { "outbox.kind": 1, "outbox.due": 1 };
        let (skip, limit) = (queue.skip, i64::try_from(max).unwrap_or(i64::MAX));
        let found: Vec<RawDocumentBuf> = crate::store::within_deadline(async move {
            use futures_util::TryStreamExt;
            let find = collection.find(filter).projection(projection).skip(skip).limit(limit);
            // The index of earlier versions, which may still be there, has another order.
            let find = find.hint(Hint::Name(DUE.to_owned())).max_time(crate::store::COMMAND_TIME_MAX);
            find.batch_size(u32::try_from(limit).unwrap_or(u32::MAX)).await?.try_collect().await
        })
        .await?;
        Ok(found.iter().filter_map(|raw| Candidate::read(raw, queue, now)).collect())
    }

    async fn carry_out(
        &self,
        queue: &mut DueQueue,
        plans: Vec<(String, Result<Plan, bson::error::Error>)>,
        claimed: &mut Claimed,
    ) -> Result<(), StoreError> {
        let (mut updates, mut failures) = (Vec::new(), Vec::new());
        for (id, plan) in plans {
            match plan {
                Ok(Plan::Update(update)) => updates.push(update),
                Ok(Plan::Fail(statement, entries)) => failures.push((id, statement, entries)),
                Ok(Plan::PassOver) => drop(queue.passed_over.insert(id)),
                Ok(Plan::Nothing) => {}
                // Not the words of the error: they may quote the document.
                Err(_) => claimed.unclaimable.push(Unclaimable {
                    document_id: id,
                    error: "its `_id` is not text, its `version` not an integer, or its `outbox` not a list",
                }),
            }
        }
        if !failures.is_empty() {
            let statements = failures.iter().map(|(_, statement, _)| statement.clone());
            let reply = self.update_many(queue.collection, statements).await?;
            let refused: HashSet<usize> = reply.refused.iter().map(|refusal| refusal.position).collect();
            for (position, (document_id, _, entries)) in failures.into_iter().enumerate() {
                if refused.contains(&position) {
                    let error = "an outbox entry cannot be read, and MongoDB refuses to mark it as failed";
                    claimed.unclaimable.push(Unclaimable { document_id, error });
                } else {
                    claimed.unreadable += entries;
                }
            }
        }
        let committed = self.commit(&updates).await?;
        for (update, committed) in updates.into_iter().zip(committed) {
            match committed {
                Committed::Written => {
                    // What else the commit of these entries sent is unknown.
                    let entries =
                        update.into_leased().into_iter().map(|leased| Leased { has_companions: false, ..leased });
                    claimed.entries.extend(entries);
                }
                Committed::Lost => {}
                Committed::Refused(_) | Committed::Corrupt(_) => {
                    let error = "MongoDB refuses updates of its `outbox`";
                    claimed.unclaimable.push(Unclaimable { document_id: update.id, error });
                }
            }
        }
        Ok(())
    }

    /// Writes what became of entries. Returns the positions of marks that could not be tried now (a shard that is
    /// unavailable); they are to be repeated. Entries that are not there any more are passed over.
    ///
    /// Sent entries of all documents of a collection are marked by two statements. Where these do not find what they should, each
    /// document is marked by itself: with its record, then, if the entry is still there, without.
    ///
    /// # Errors
    /// When the server does not answer: the same again is then safe.
    pub async fn settle(&self, marks: &[Mark]) -> Result<Vec<usize>, StoreError> {
        let of_collections = OUTBOXES.map(|collection| {
            let indexes: Vec<usize> = (0..marks.len()).filter(|&index| marks[index].collection == collection).collect();
            async move {
                if indexes.is_empty() { Ok(Vec::new()) } else { self.settle_in(collection, marks, &indexes).await }
            }
        });
        let mut troubled = try_join_all(of_collections).await?.concat();
        troubled.sort_unstable();
        Ok(troubled)
    }

    /// Extends the lease of one entry, which takes long to send. Returns whether it is still ours.
    ///
    /// # Errors
    /// When the server does not answer: the same again is then safe.
    pub async fn extend(&self, leased: &Leased, until: DateTime<Utc>) -> Result<bool, StoreError> {
        let (id, holder) = (&leased.entry.id, &leased.entry.holder);
        // An entry that failed or was retried by an operator has no holder of ours, or no `due`.
        let ours = doc! { "id": id, "holder": holder, "due": { "$exists": true } };
        let statement = doc! {
            "q": { "_id": &leased.document_id, "outbox": { "$elemMatch": ours } },
            "u": { "$set": { "outbox.$[entry].due": Instant::from(until) }, "$inc": { "version": 1_i64 } },
            "arrayFilters": [{ "entry.id": id, "entry.holder": holder }],
        };
        let updated = self.update_each(leased.collection, vec![raw(&statement)?]).await?;
        if !updated.troubled.is_empty() {
            return Err(StoreError::TimedOut);
        }
        Ok(updated.matched > 0)
    }

    /// Releases entries before their lease expires. If that fails, they are claimed after it has expired.
    pub async fn release(&self, entries: &[Mark]) {
        if let Err(error) = self.settle(entries).await {
            tracing::warn!(%error, entries = entries.len(), "cannot release outbox entries; they wait until their lease expires");
        }
    }

    async fn settle_in(
        &self,
        collection: Collection,
        marks: &[Mark],
        indexes: &[usize],
    ) -> Result<Vec<usize>, StoreError> {
        let (sent, others): (Vec<usize>, Vec<usize>) = indexes.iter().partition(|&&index| marks[index].is_sent());
        let documents = by_document(marks, &sent);
        let (with_emails, events_only): (Vec<&Sent<'_>>, Vec<&Sent<'_>>) =
            documents.iter().partition(|document| !document.emails.is_empty());

        let mut statements = Vec::with_capacity(2 + others.len());
        // Which marks each statement is for.
        let mut owners: Vec<Vec<usize>> = Vec::new();
        for group in [&with_emails, &events_only] {
            if !group.is_empty() {
                statements.push(together(group));
                owners.push(group.iter().flat_map(|document| document.indexes.iter().copied()).collect());
            }
        }
        for &index in &others {
            for statement in others_statements(&marks[index]) {
                statements.push(raw(&statement)?);
                owners.push(vec![index]);
            }
        }
        let expected = documents.len() + others.len();
        let updated = match self.update_each(collection, statements).await {
            Ok(updated) => updated,
            Err(StoreError::Refused(error)) => {
                tracing::warn!(
                    error,
                    "MongoDB refused to mark many entries at once; marking them document by document"
                );
                let mut troubled = self.settle_without_error(collection, marks, &others).await?;
                troubled.extend(self.settle_with_care(collection, &documents).await?);
                return Ok(troubled);
            }
            Err(error) => return Err(error),
        };
        let marks_of = |refusals: &[Refusal]| -> HashSet<usize> {
            refusals.iter().filter_map(|refusal| owners.get(refusal.position)).flatten().copied().collect()
        };
        let mut troubled = marks_of(&updated.troubled);
        if updated.matched < expected || !updated.refused.is_empty() {
            let refused = marks_of(&updated.refused);
            let others: Vec<usize> = others.into_iter().filter(|index| refused.contains(index)).collect();
            troubled.extend(self.settle_without_error(collection, marks, &others).await?);
            let untroubled: Vec<Sent<'_>> = documents
                .into_iter()
                .filter(|document| !document.indexes.iter().any(|index| troubled.contains(index)))
                .collect();
            troubled.extend(self.settle_with_care(collection, &untroubled).await?);
        }
        Ok(troubled.into_iter().collect())
    }

    /// Marks entries that were not sent, without saying why: a validator may forbid that. What failed must not be tried again.
    /// Returns those to be repeated.
    async fn settle_without_error(
        &self,
        collection: Collection,
        marks: &[Mark],
        indexes: &[usize],
    ) -> Result<Vec<usize>, StoreError> {
        let statements =
            indexes.iter().map(|&index| raw(&not_sent(&marks[index], false))).collect::<Result<Vec<_>, _>>()?;
        let updated = self.update_each(collection, statements).await?;
        for refusal in updated.refused {
            let document = indexes.get(refusal.position).map(|&index| &marks[index].document_id);
            tracing::error!(
                collection = collection.as_str(),
                document,
                code = refusal.code,
                "MongoDB refuses to change outbox entries that could not be sent; they are tried again when their lease expires"
            );
        }
        Ok(updated.troubled.iter().filter_map(|trouble| indexes.get(trouble.position)).copied().collect())
    }

    /// Marks sent entries document by document. Each statement is harmless after the others, because it finds the document only
    /// while the entries are there.
    async fn settle_with_care(&self, collection: Collection, documents: &[Sent<'_>]) -> Result<Vec<usize>, StoreError> {
        let mut troubled = Vec::new();
        let mut left: Vec<&Sent<'_>> = documents.iter().collect();
        for ways in [&[Way::Recorded, Way::RecordedTombstone][..], &[Way::Tombstone, Way::Bare][..]] {
            if left.is_empty() {
                break;
            }
            let statements = left.iter().flat_map(|document| ways.iter().map(|way| alone(document, *way)));
            let updated = self.update_each(collection, statements.collect::<Vec<_>>()).await?;
            let of = |position: usize| position / ways.len();
            let in_trouble: HashSet<usize> = updated.troubled.iter().map(|trouble| of(trouble.position)).collect();
            if ways.contains(&Way::Bare) {
                let refused = updated.refused.iter().filter(|refusal| ways[refusal.position % ways.len()] == Way::Bare);
                for refusal in refused {
                    let document = left.get(of(refusal.position)).map(|document| document.id);
                    tracing::error!(
                        collection = collection.as_str(),
                        document,
                        code = refusal.code,
                        "MongoDB refuses to remove sent entries from an outbox; they may be sent again"
                    );
                }
            }
            troubled.extend(in_trouble.iter().flat_map(|&place| left[place].indexes.iter().copied()));
            let mut place = 0..;
            left.retain(|_| place.next().is_some_and(|place| !in_trouble.contains(&place)));
        }
        Ok(troubled)
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
    let mut set = doc! { "version": next(document.version) };
    let (mut failing, mut not_due) = (Document::new(), Document::new());
    let mut find = doc! { "_id": &document.id, "version": document.version };
    let (mut leased, mut records) = (Vec::new(), Vec::new());
    let (mut failed, mut of_later_version) = (0, 0);
    for (place, entry) in document.outbox.into_iter().enumerate() {
        // What is no document has no `due`, so it is nobody's.
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
                leased.push(entry);
            }
            (Ok(entry), None) => {
                set.insert(field("kind"), entry.kind().as_str());
                if let (Content::Mail(email), Ok(id)) = (&entry.content, Uuid::parse_str(&entry.id)) {
                    records.push(bson::serialize_to_bson(&entry::record(id, email, identify, now))?);
                }
            }
            (Err(_), _) if is_of_later_version(entry) => of_later_version += 1,
            (Err(_), _) => {
                failed += 1;
                find.insert(field("due"), due);
                failing.insert(field("failed_at"), Instant::from(clock::now()));
                failing.insert(field("error"), unreadable(entry));
                not_due.insert(field("due"), "");
            }
        }
    }
    if failed > 0 {
        // Readable entries of the same document are leased the next time.
        failing.insert("version", next(document.version));
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
        collection: queue.collection,
        id: document.id,
        version: document.version,
        history_length: None,
        update: bson::serialize_to_raw_document_buf(&update)?.into(),
        entries: leased,
    }))
}

fn is_of_later_version(entry: &bson::RawDocument) -> bool {
    match entry.get("format") {
        Ok(Some(RawBsonRef::Int32(format))) => i64::from(format) > ENTRY_FORMAT,
        Ok(Some(RawBsonRef::Int64(format))) => format > ENTRY_FORMAT,
        _ => false,
    }
}

/// Why an entry cannot be read, as far as that can be told without quoting it.
fn unreadable(entry: &bson::RawDocument) -> String {
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

/// The sent entries of one document.
struct Sent<'a> {
    id: &'a str,
    entries: Vec<&'a str>,
    /// Those that are emails.
    emails: Vec<&'a str>,
    /// When the newest of them was sent.
    at: DateTime<Utc>,
    /// Whether an email was tried before, so that its record may tell of a failure.
    was_tried: bool,
    /// The places of the marks.
    indexes: Vec<usize>,
}

fn by_document<'a>(marks: &'a [Mark], indexes: &[usize]) -> Vec<Sent<'a>> {
    let mut documents: BTreeMap<&str, Sent<'a>> = BTreeMap::new();
    for &index in indexes {
        let mark = &marks[index];
        let DeliveryResult::Sent { at } = mark.result else { continue };
        let id = mark.document_id.as_str();
        let sent = documents.entry(id).or_insert_with(|| Sent {
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

/// One statement for sent entries of many documents: all of them with emails, or all without.
fn together(documents: &[&Sent<'_>]) -> RawDocumentBuf {
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
        find.append(bson::raw::cstr!("notifications"), rawdoc! { "$type": "array" });
    }
    let mut statement = sent_statement(find, &entries, &emails, at, was_tried, false);
    statement.append(bson::raw::cstr!("multi"), true);
    statement
}

/// How one document is marked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// A live document, with the records.
    Recorded,
    /// A tombstone, with the records, and when its newest entry was sent.
    RecordedTombstone,
    /// A tombstone, only with the latter.
    Tombstone,
    /// Nothing is written; the entries are removed.
    Bare,
}

fn alone(document: &Sent<'_>, way: Way) -> RawDocumentBuf {
    let mut find = rawdoc! { "_id": document.id, "outbox.id": { "$in": list(&document.entries) } };
    let mut emails = document.emails.as_slice();
    match way {
        Way::Recorded => find.append(bson::raw::cstr!("status"), rawdoc! { "$ne": "removed" }),
        Way::RecordedTombstone | Way::Tombstone => {
            find.append(bson::raw::cstr!("status"), "removed");
            find.append(bson::raw::cstr!("applied.0"), rawdoc! { "$exists": true });
        }
        Way::Bare => {}
    }
    match way {
        Way::Recorded | Way::RecordedTombstone => {
            find.append(bson::raw::cstr!("notifications"), rawdoc! { "$type": "array" });
        }
        Way::Tombstone | Way::Bare => emails = &[],
    }
    let settles = matches!(way, Way::RecordedTombstone | Way::Tombstone);
    sent_statement(find, &document.entries, emails, document.at, document.was_tried, settles)
}

/// Removes sent entries, and records when: in the records of `emails`, and of a tombstone in its oldest command.
fn sent_statement(
    find: RawDocumentBuf,
    entries: &[&str],
    emails: &[&str],
    at: DateTime<Utc>,
    was_tried: bool,
    settles: bool,
) -> RawDocumentBuf {
    let at = Instant::from(at);
    let mut update = rawdoc! {
        "$pull": { "outbox": { "id": { "$in": list(entries) } } },
        "$inc": { "version": 1_i64 },
    };
    let mut set = RawDocumentBuf::new();
    if settles {
        set.append(bson::raw::cstr!("applied.0.settled_at"), at);
    }
    if !emails.is_empty() {
        set.append(bson::raw::cstr!("notifications.$[record].sent_at"), at);
        if was_tried {
            let earlier = rawdoc! { "notifications.$[record].failed_at": "", "notifications.$[record].error": "" };
            update.append(bson::raw::cstr!("$unset"), earlier);
        }
    }
    if !set.is_empty() {
        update.append(bson::raw::cstr!("$set"), set);
    }
    let mut statement = rawdoc! { "q": find, "u": update };
    if !emails.is_empty() {
        let filter = rawdoc! { "record.id": { "$in": list(emails) } };
        statement.append(bson::raw::cstr!("arrayFilters"), RawArrayBuf::from_iter([filter]));
    }
    statement
}

fn list(ids: &[&str]) -> RawArrayBuf {
    ids.iter().copied().collect()
}

/// The statements for an entry that was not sent: of the first that finds it, the others find nothing.
fn others_statements(mark: &Mark) -> Vec<Document> {
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

/// The statement for an entry that was not sent, without its record. It names the error only `with_error`.
fn not_sent(mark: &Mark, with_error: bool) -> Document {
    let id = mark.entry_id.as_str();
    // Only while it is ours: it is not for us to put off what somebody else is sending.
    let mut ours = doc! { "id": id, "holder": &mark.holder };
    let (mut set, mut unset) = (Document::new(), Document::new());
    let (mut increments, mut earliest) = (doc! { "version": 1_i64 }, Document::new());
    // What is written again, because the first answer was lost, must not count twice.
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
            // An operator who has it tried again gives it all its tries again.
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
        "q": { "_id": &mark.document_id, "outbox": { "$elemMatch": ours } },
        "u": update,
        "arrayFilters": [{ "entry.id": id, "entry.holder": &mark.holder }],
    }
}
