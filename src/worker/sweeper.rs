//! What time does: last days that are over, natural ends, cards about to expire, tombstones.
//!
//! The sweeper only looks for what may be due and hands it to the same [`Engine`] as every command; whether it is due is
//! decided there, under the same version guard, so any number of workers may sweep at the same time. They share the work
//! without communicating: each begins at a random place of what is due and goes on from there, and what one has done is gone from
//! the index when another asks again.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use metrics::{counter, describe_gauge, gauge};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::store::inspect::Index;
use crate::store::sweep::{
    self, CardOrganization, CardOrganizationsPage, Fault, PassedOver, Unworkable, Window, Zones,
};
use crate::store::{Collection, Store, StoreError};
use crate::worker::availability::Availability;
use crate::worker::engine::{Engine, Interruption, Processed};
use crate::worker::indexes::Indexes;
use offramp_domain::account::CARD_NOTICES_MAX;
use offramp_domain::fold::{Task, Verdict};
use offramp_domain::text::SubscriptionId;

/// How many batches are decided at once. The database goes through one batch on one processor, and time has all its work to
/// do at midnight.
const BATCHES_AT_ONCE: usize = 2;
/// A sixteenth of what is due is decided before a worker looks whether another works at the same place.
const WINDOW_CHUNKS: usize = 16;
/// A quarter of what is due is decided before a worker asks again what is due.
const WINDOW_PARTS: usize = 4;
/// The fewest tasks that are decided together, if there are as many.
const CHUNK_MIN: usize = 32;
/// How many organizations get their card notices at once. One that is slow holds up none of the others.
const ORGANIZATIONS_AT_ONCE: usize = 4;
/// How many documents that cannot be processed are remembered, so that each is reported once. The same for those that could not
/// be changed.
const UNWORKABLE_MAX: usize = 10_000;
/// The longest time between the start and the first sweep.
const FIRST_SWEEP_WITHIN: Duration = Duration::from_secs(1);
/// How often to ask what changes by the day (card notices), or reads a whole index.
const RARELY: Duration = Duration::from_secs(3_600);
/// With sweeps more frequent than this, each asks that as well: somebody is waiting for the answer.
const RARELY_IS_ALWAYS_BELOW: Duration = Duration::from_secs(60);
/// How many documents cannot be processed, by collection.
const UNWORKABLE_DOCUMENTS: &str = "offramp_unworkable_documents";

/// Looks, again and again, for what time has made due.
#[derive(Debug)]
pub struct Sweeper {
    /// Where to look.
    pub store: Store,
    pub availability: Availability,
    /// Decides and writes.
    pub engine: Engine,
    /// The time between two looks at dates.
    pub every: Duration,
    /// How many tasks are decided together.
    pub batch_max: usize,
    /// Which indexes exist. Without its index a look at what is due would be a look at everything.
    pub indexes: Indexes,
}

/// Why a sweep ended early.
enum Cut {
    Stopped,
    Store(StoreError),
}

impl From<Interruption> for Cut {
    fn from(interrupted: Interruption) -> Self {
        match interrupted {
            Interruption::Stopping => Self::Stopped,
            Interruption::DatabaseUnavailable(error) => Self::Store(StoreError::Unavailable(error)),
        }
    }
}

impl From<StoreError> for Cut {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Which ends a sweep looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Ends {
    Scheduled,
    Natural,
}

/// What a sweep asks. Each question fails by itself, and waits for its own indexes only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Question {
    Ends(Ends),
    Faults(Fault),
    Tombstones,
    Cards,
}

impl Question {
    /// Those about dates, in their order.
    const OF_DATES: [Self; 8] = [
        Self::Ends(Ends::Scheduled),
        Self::Ends(Ends::Natural),
        Self::Faults(Fault::EndsAt),
        Self::Faults(Fault::ExpiryType),
        Self::Faults(Fault::ExpiryEmpty),
        Self::Faults(Fault::BillingDay),
        Self::Faults(Fault::ExpiryText),
        Self::Tombstones,
    ];

    /// The indexes that it uses.
    fn indexes(self) -> Vec<(Collection, &'static str)> {
        let of_subscriptions = match self {
            Self::Ends(Ends::Scheduled) => sweep::SCHEDULED_ENDS,
            Self::Ends(Ends::Natural) => sweep::NATURAL_ENDS,
            Self::Faults(fault) => fault.index(),
            Self::Tombstones => sweep::REMOVED,
            Self::Cards => {
                return vec![
                    (Collection::Organizations, sweep::CARD_ORGANIZATIONS),
                    (Collection::Accounts, sweep::CARD_EXPIRY),
                    (Collection::Subscriptions, sweep::OF_ACCOUNT),
                ];
            }
        };
        vec![(Collection::Subscriptions, of_subscriptions)]
    }

    /// What it looks for, for the log.
    fn as_str(self) -> &'static str {
        match self {
            Self::Ends(Ends::Scheduled) => "scheduled ends",
            Self::Ends(Ends::Natural) => "natural ends",
            Self::Faults(_) => "documents that are never due",
            Self::Tombstones => "tombstones to delete",
            Self::Cards => "cards that expire",
        }
    }
}

/// What is wrong with the documents that a question was about.
#[derive(Debug, Default)]
struct Found {
    /// Documents that cannot be processed until somebody corrects them.
    unworkable: Vec<Unworkable>,
    /// Documents that could not be changed this time. It is not known to be their own fault: others may have kept changing them,
    /// or a validator of the database may forbid the change.
    failed: Vec<Unworkable>,
}

impl Found {
    fn add_unworkable(&mut self, unworkable: impl IntoIterator<Item = Unworkable>) {
        let room = UNWORKABLE_MAX.saturating_sub(self.unworkable.len());
        self.unworkable.extend(unworkable.into_iter().take(room));
    }

    fn extend(&mut self, other: Self) {
        self.add_unworkable(other.unworkable);
        let room = UNWORKABLE_MAX.saturating_sub(self.failed.len());
        self.failed.extend(other.failed.into_iter().take(room));
    }

    /// Takes what became of a document. Returns the verdict, if it says that nothing is wrong.
    fn settle(&mut self, collection: Collection, id: &str, settled: Processed) -> Option<Verdict> {
        let unworkable = |reason| Unworkable { collection, id: id.to_owned(), reason };
        match settled {
            Processed::Decided(Verdict::Missing(missing)) => self.add_unworkable([unworkable(missing.to_string())]),
            Processed::Decided(Verdict::Corrupt(reason)) => self.add_unworkable([unworkable(reason)]),
            Processed::Failed(reason) => {
                self.extend(Self { failed: vec![unworkable(reason)], ..Self::default() });
            }
            Processed::Decided(verdict) => return Some(verdict),
        }
        None
    }
}

/// What one loop has reported: each trouble is logged when it begins, and not again while it lasts.
struct Reported {
    collections: &'static [Collection],
    /// What is wrong with each document that cannot be processed, and which question found it first.
    unworkable: HashMap<(Collection, String), (Question, String)>,
    /// The documents that could not be changed.
    failed: HashMap<Question, HashSet<(Collection, String)>>,
    /// Why questions failed.
    unanswered: HashMap<Question, String>,
}

impl Reported {
    fn of(collections: &'static [Collection]) -> Self {
        for collection in collections {
            gauge!(UNWORKABLE_DOCUMENTS, "collection" => collection.as_str()).set(0.0);
        }
        Self { collections, unworkable: HashMap::new(), failed: HashMap::new(), unanswered: HashMap::new() }
    }

    /// Takes all that a question has found; tells of what is new.
    fn answered(&mut self, question: Question, found: Found) {
        self.unanswered.remove(&question);
        self.update_unworkable(question, found.unworkable);
        self.update_failed(question, found.failed);
    }

    fn update_unworkable(&mut self, question: Question, unworkable: Vec<Unworkable>) {
        let is_of_it = |_: &(Collection, String), (by, _): &mut (Question, String)| *by == question;
        let before: HashMap<_, _> = self.unworkable.extract_if(is_of_it).collect();
        for Unworkable { collection, id, reason } in unworkable {
            let key = (collection, id);
            if self.unworkable.len() >= UNWORKABLE_MAX {
                break;
            }
            if self.unworkable.contains_key(&key) {
                continue;
            }
            if before.get(&key).is_none_or(|(_, known)| *known != reason) {
                let (collection, id) = (collection.as_str(), &key.1);
                tracing::error!(collection, id, reason, "this document cannot be processed until it is corrected");
            }
            self.unworkable.insert(key, (question, reason));
        }
        for collection in self.collections {
            let count = self.unworkable.keys().filter(|(of, _)| of == collection).count();
            let count = u32::try_from(count).unwrap_or(u32::MAX);
            gauge!(UNWORKABLE_DOCUMENTS, "collection" => collection.as_str()).set(f64::from(count));
        }
    }

    /// One line for all of them: a validator may refuse every document of a collection.
    fn update_failed(&mut self, question: Question, failed: Vec<Unworkable>) {
        let known = self.failed.remove(&question).unwrap_or_default();
        let is_new = |failed: &&Unworkable| !known.contains(&(failed.collection, failed.id.clone()));
        if let Some(example) = failed.iter().find(is_new) {
            let Unworkable { collection, id, reason } = example;
            let (documents, collection) = (failed.len(), collection.as_str());
            tracing::warn!(documents, collection, id, reason, "due documents could not be changed; retrying");
        }
        self.failed.insert(question, failed.into_iter().map(|failed| (failed.collection, failed.id)).collect());
    }

    /// Takes why a question failed.
    fn unanswered(&mut self, question: Question, error: &StoreError) {
        let (what, error) = (question.as_str(), error.reason());
        if self.unanswered.get(&question) != Some(&error) {
            tracing::warn!(error, "cannot search for {what}; retrying; other searches are not affected");
            self.unanswered.insert(question, error);
        }
    }
}

impl Sweeper {
    /// Sweeps until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        describe_gauge!(
            UNWORKABLE_DOCUMENTS,
            "Documents that the sweep cannot process until they are corrected; at most 10,000 are counted"
        );
        tokio::join!(self.dates(&shutdown), self.cards(&shutdown));
    }

    async fn dates(&self, shutdown: &CancellationToken) {
        let mut reported = Reported::of(&[Collection::Subscriptions]);
        let mut indexes = self.indexes.changes();
        let mut pause = random_below(self.every.min(FIRST_SWEEP_WITHIN));
        let mut asked_rarely: Option<Instant> = None;
        while self.wait(pause, &mut indexes, shutdown).await {
            for question in Question::OF_DATES {
                if !self.is_indexed(question) {
                    continue;
                }
                if question == Question::Faults(Fault::ExpiryText) {
                    if asked_rarely.is_some_and(|asked| asked.elapsed() < self.rarely()) {
                        continue;
                    }
                    asked_rarely = Some(Instant::now());
                }
                match self.ask(question, &mut reported, shutdown).await {
                    Ok(()) => {}
                    Err(Cut::Stopped) => return,
                    // The database is unavailable: the other questions would fail, too.
                    Err(Cut::Store(_)) => break,
                }
            }
            pause = around(self.every);
        }
    }

    async fn cards(&self, shutdown: &CancellationToken) {
        let mut reported = Reported::of(&[Collection::Organizations, Collection::Accounts]);
        let mut indexes = self.indexes.changes();
        let mut pause = random_below(self.rarely().min(FIRST_SWEEP_WITHIN));
        while self.wait(pause, &mut indexes, shutdown).await {
            pause = around(self.every);
            if self.is_indexed(Question::Cards) {
                match self.ask(Question::Cards, &mut reported, shutdown).await {
                    Ok(()) if reported.unanswered.is_empty() => pause = around(self.rarely()),
                    Ok(()) | Err(Cut::Store(_)) => {}
                    Err(Cut::Stopped) => return,
                }
            }
        }
    }

    /// The time between two questions that are asked rarely.
    fn rarely(&self) -> Duration {
        if self.every < RARELY_IS_ALWAYS_BELOW { self.every } else { RARELY }
    }

    /// Whether the indexes of a question exist.
    fn is_indexed(&self, question: Question) -> bool {
        question.indexes().into_iter().all(|(collection, name)| self.indexes.has(collection, name))
    }

    /// Waits for `pause`, or until there are other indexes, and then for a clock that is right. Whether to go on.
    async fn wait(
        &self,
        pause: Duration,
        indexes: &mut watch::Receiver<Vec<Index>>,
        shutdown: &CancellationToken,
    ) -> bool {
        let waiting = async {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                // The sender is our own.
                Ok(()) = indexes.changed() => {}
            }
            self.availability.wait_for_clock().await;
        };
        shutdown.run_until_cancelled(waiting).await.is_some()
    }

    /// Asks one question, and does what the answer calls for. A failure of its own is reported, and no error.
    ///
    /// # Errors
    /// When the program stops, or the database is unavailable.
    async fn ask(&self, question: Question, reported: &mut Reported, shutdown: &CancellationToken) -> Result<(), Cut> {
        let mut found = Found::default();
        match self.answer(question, &mut found, shutdown).await {
            Ok(()) => reported.answered(question, found),
            Err(Cut::Stopped) => return Err(Cut::Stopped),
            Err(Cut::Store(error)) => {
                if matches!(error, StoreError::Unavailable(_)) && self.availability.is_unavailable().await {
                    return Err(Cut::Store(error));
                }
                if matches!(error, StoreError::Refused(_)) {
                    self.indexes.check_again();
                }
                reported.unanswered(question, &error);
            }
        }
        Ok(())
    }

    async fn answer(&self, question: Question, found: &mut Found, shutdown: &CancellationToken) -> Result<(), Cut> {
        match question {
            Question::Ends(ends) => self.end(ends, found, shutdown).await?,
            Question::Faults(fault) => found.add_unworkable(self.store.faulty_subscriptions(fault).await?),
            Question::Tombstones => {
                let deleted = self.store.delete_tombstones(clock::now()).await?;
                if deleted > 0 {
                    tracing::info!(deleted, "deleted tombstones of removed subscriptions");
                }
            }
            Question::Cards => self.sweep_cards(found, shutdown).await?,
        }
        Ok(())
    }

    /// Ends subscriptions until none is due. A worker begins at a random id and goes on from there; where it finds that another
    /// was faster, it goes to another place.
    async fn end(&self, ends: Ends, found: &mut Found, shutdown: &CancellationToken) -> Result<(), Cut> {
        let mut zones = Zones::default();
        let mut passed = PassedOver::default();
        let mut place: Option<SubscriptionId> = None;
        loop {
            let now = clock::now();
            let Window { mut due, unworkable } = match ends {
                Ends::Scheduled => self.store.scheduled_ends(now, &mut passed).await?,
                Ends::Natural => self.store.natural_ends(now, &mut passed, &mut zones).await?,
            };
            found.add_unworkable(unworkable);
            if due.is_empty() {
                return Ok(());
            }
            if passed.is_full() {
                // From the beginning of the index, so that what was tried there is passed over by number.
                place = None;
            } else {
                due.sort_unstable();
                let begin = match &place {
                    Some(last) => due.partition_point(|id| id <= last) % due.len(),
                    None => fastrand::usize(..due.len()),
                };
                due.rotate_left(begin);
            }
            let chunk = (due.len() / WINDOW_CHUNKS).max(CHUNK_MIN).min(self.batch_max * BATCHES_AT_ONCE);
            due.truncate((due.len() / WINDOW_PARTS).max(chunk));
            for chunk in due.chunks(chunk) {
                let tasks: Vec<Task> = chunk.iter().cloned().map(Task::Lapse).collect();
                place = chunk.last().cloned();
                for (id, settled) in chunk.iter().zip(self.decide("lapse", &tasks, shutdown).await?) {
                    match found.settle(Collection::Subscriptions, id.as_str(), settled) {
                        Some(Verdict::Applied) => continue,
                        // Another worker was faster.
                        Some(_) => place = None,
                        None => {}
                    }
                    passed.add(id.clone());
                }
                if place.is_none() {
                    break;
                }
            }
        }
    }

    async fn sweep_cards(&self, found: &mut Found, shutdown: &CancellationToken) -> Result<(), Cut> {
        let mut at_work = FuturesUnordered::new();
        let mut page = Vec::new();
        let mut organizations_count = 0;
        // None: there is no further page.
        let mut after = Some(None);
        // Organizations that were begun are brought to their end, or what they have committed would wait for its lease to expire.
        let mut result = Ok(());
        loop {
            while result.is_ok() && at_work.len() < ORGANIZATIONS_AT_ONCE {
                if page.is_empty()
                    && let Some(after_id) = after.take()
                {
                    match self.store.card_organizations(Option::as_deref(&after_id)).await {
                        Ok(CardOrganizationsPage { organizations, last }) => {
                            page = organizations;
                            // Not all workers in the same order.
                            fastrand::shuffle(&mut page);
                            after = last.map(Some);
                        }
                        Err(error) => result = Err(error.into()),
                    }
                    continue;
                }
                match page.pop() {
                    Some(Ok(organization)) => {
                        organizations_count += 1;
                        at_work.push(self.give_card_notices_apart(organization, shutdown));
                    }
                    Some(Err(corrupt)) => found.add_unworkable([corrupt]),
                    None => break,
                }
            }
            match at_work.next().await {
                Some(Ok(of_organization)) => found.extend(of_organization),
                Some(Err(cut)) => result = Err(cut),
                None => break,
            }
        }
        tracing::debug!(organizations = organizations_count, "looked for cards");
        result
    }

    /// Gives the card notices of one organization. What goes wrong with it is its own affair, unless the database is unavailable.
    async fn give_card_notices_apart(
        &self,
        organization: CardOrganization,
        shutdown: &CancellationToken,
    ) -> Result<Found, Cut> {
        let mut found = Found::default();
        match self.give_card_notices(&organization, &mut found, shutdown).await {
            Err(Cut::Store(error @ (StoreError::Refused(_) | StoreError::TimedOut))) => {
                if matches!(error, StoreError::Refused(_)) {
                    self.indexes.check_again();
                }
                let organization = &organization.id;
                tracing::warn!(%organization, %error, "card notices of this organization are skipped until the next look; others are not affected");
            }
            result => result?,
        }
        Ok(found)
    }

    async fn give_card_notices(
        &self,
        organization: &CardOrganization,
        found: &mut Found,
        shutdown: &CancellationToken,
    ) -> Result<(), Cut> {
        let page_max = self.batch_max * BATCHES_AT_ONCE;
        for (expires, kind) in organization.notices_due(clock::now()) {
            let mut after: Option<String> = None;
            loop {
                let page = self
                    .store
                    .cards_without_notice(&organization.id, expires, kind, after.as_deref(), page_max)
                    .await?;
                found.add_unworkable(page.unworkable);
                let tasks: Vec<Task> =
                    page.due.iter().map(|due| Task::CardNotice(due.account.clone(), due.card.clone())).collect();
                for (due, settled) in page.due.iter().zip(self.decide("card_notice", &tasks, shutdown).await?) {
                    let verdict = found.settle(Collection::Accounts, due.account.as_str(), settled);
                    if due.is_full && verdict == Some(Verdict::Unchanged) {
                        found.add_unworkable([Unworkable {
                            collection: Collection::Accounts,
                            id: due.account.to_string(),
                            reason: format!(
                                "card_notices has {CARD_NOTICES_MAX} notices, the most that an account remembers; \
                                 it gets no further notice until the oldest are forgotten"
                            ),
                        }]);
                    }
                }
                match page.last {
                    Some(last) => after = Some(last),
                    None => break,
                }
            }
        }
        Ok(())
    }

    /// Decides tasks, in batches, some of them at once; the answers are in their order. Each batch is brought to its end,
    /// whatever becomes of the others.
    async fn decide(
        &self,
        what: &'static str,
        tasks: &[Task],
        shutdown: &CancellationToken,
    ) -> Result<Vec<Processed>, Cut> {
        let batches = tasks.chunks(self.batch_max).map(|batch| async move {
            let batch: Vec<&Task> = batch.iter().collect();
            self.engine.run(&batch, shutdown).await
        });
        let settled: Result<Vec<Vec<Processed>>, Interruption> = join_all(batches).await.into_iter().collect();
        let settled = settled?.concat();
        let applied = settled.iter().filter(|settled| **settled == Processed::Decided(Verdict::Applied)).count();
        counter!("offramp_swept_total", "what" => what).increment(applied as u64);
        if shutdown.is_cancelled() { Err(Cut::Stopped) } else { Ok(settled) }
    }
}

/// A random duration below `longest`.
fn random_below(longest: Duration) -> Duration {
    longest.mul_f64(fastrand::f64())
}

/// A random duration around `mean`, from half of it to half as much again: workers that were started together do not stay
/// together.
fn around(mean: Duration) -> Duration {
    mean / 2 + random_below(mean)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unworkable(id: &str) -> Unworkable {
        Unworkable { collection: Collection::Subscriptions, id: id.to_owned(), reason: "it is wrong".to_owned() }
    }

    fn found(ids: &[&str]) -> Found {
        Found { unworkable: ids.iter().map(|id| unworkable(id)).collect(), failed: vec![unworkable("busy")] }
    }

    /// A question that failed says nothing new about its documents, and nothing at all about those of the others.
    #[test]
    fn each_question_answers_for_its_own_documents() {
        let (first, second) = (Question::Ends(Ends::Natural), Question::Faults(Fault::ExpiryText));
        let mut reported = Reported::of(&[Collection::Subscriptions]);
        reported.answered(first, found(&["a", "b"]));
        reported.answered(second, found(&["b", "c"]));
        assert_eq!(reported.unworkable.len(), 3, "b counts once; what failed does not count");
        reported.unanswered(second, &StoreError::TimedOut);
        reported.answered(first, found(&["a"]));
        assert_eq!(reported.unworkable.len(), 2, "c is still known");
        reported.answered(second, found(&["b", "c"]));
        assert_eq!(reported.unworkable.len(), 3);
        assert!(reported.unanswered.is_empty());
        reported.answered(second, Found::default());
        assert_eq!(reported.unworkable.len(), 1);
        assert!(reported.failed[&second].is_empty());
    }

    #[test]
    fn what_is_wrong_with_a_document_is_no_passing_failure() {
        let settle = |settled| {
            let mut found = Found::default();
            let verdict = found.settle(Collection::Subscriptions, "sub", settled);
            (found.unworkable.len(), found.failed.len(), verdict)
        };
        assert_eq!(settle(Processed::Decided(Verdict::Corrupt("it is wrong".to_owned()))), (1, 0, None));
        assert_eq!(settle(Processed::Failed("others kept changing the document".to_owned())), (0, 1, None));
        assert_eq!(settle(Processed::Decided(Verdict::Applied)), (0, 0, Some(Verdict::Applied)));
    }
}
