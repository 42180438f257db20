//! What time does: last days that are over, natural ends, cards about to expire, tombstones.
//!
//! The sweeper only looks for what may be due and hands it to the same [`Engine`] as every command; whether it is due is
//! decided there, under the same version guard, so any number of workers may sweep at the same time. They share the work
//! without communicating: each begins at a random place of what is due and goes on from there, and what one has done is gone from
//! the index when another asks again.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::{StreamExt, TryStreamExt, stream};
use metrics::{counter, describe_gauge, gauge};
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::domain::fold::{Task, Verdict};
use crate::domain::text::SubscriptionId;
use crate::engine::{Engine, Interrupted, Settled};
use crate::indexes::Indexes;
use crate::store::sweep::{CardOrganization, Unworkable, Window, Zones};
use crate::store::{Collection, Store, StoreError};

/// How many batches are decided at once. The database goes through one batch on one processor, and time has all its work to
/// do at midnight.
const BATCHES_AT_ONCE: usize = 2;
/// A sixteenth of what is due is decided before a worker looks whether another works at the same place.
const WINDOW_CHUNKS: usize = 16;
/// A quarter of what is due is decided before a worker asks again what is due.
const WINDOW_PARTS: usize = 4;
/// The fewest tasks that are decided together, if there are as many.
const CHUNK_MIN: usize = 32;
/// How many subscriptions that were found due and did not end are passed over in one sweep.
const SWEEP_PASSED_OVER_MAX: usize = 65_536;
/// How many organizations get their card notices at once. One that is slow holds up none of the others.
const ORGANIZATIONS_AT_ONCE: usize = 4;
/// How many documents that cannot be processed are remembered, so that each is reported once.
const UNWORKABLE_MAX: usize = 10_000;
/// The longest time between the start and the first sweep.
const FIRST_SWEEP_WITHIN: Duration = Duration::from_secs(1);
/// Card notices change by the day.
const CARDS_EVERY: Duration = Duration::from_secs(3_600);
/// With sweeps more frequent than this, each looks for cards as well: somebody is waiting for them.
const CARDS_EACH_SWEEP_BELOW: Duration = Duration::from_secs(60);
/// How many documents cannot be processed, by collection.
const UNWORKABLE_DOCUMENTS: &str = "offramp_unworkable_documents";

/// Looks, again and again, for what time has made due.
#[derive(Debug)]
pub struct Sweeper {
    /// Where to look.
    pub store: Store,
    /// Decides and writes.
    pub engine: Engine,
    /// The time between two looks at dates.
    pub every: Duration,
    /// How many tasks are decided together.
    pub batch_max: usize,
    /// Which indexes exist. Without them a look at what is due would be a look at everything.
    pub indexes: Indexes,
}

/// Why a sweep ended early.
enum Cut {
    Stopped,
    Store(StoreError),
}

impl From<Interrupted> for Cut {
    fn from(interrupted: Interrupted) -> Self {
        match interrupted {
            Interrupted::Stopping => Self::Stopped,
            Interrupted::Away(error) => Self::Store(StoreError::Unavailable(error)),
        }
    }
}

impl From<StoreError> for Cut {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Which ends a sweep looks for.
#[derive(Clone, Copy)]
enum Ends {
    Scheduled,
    Natural,
}

/// The documents that one loop has found unworkable.
struct Reported {
    collections: &'static [Collection],
    /// What is wrong with each, by collection and id.
    known: HashMap<(Collection, String), String>,
}

impl Reported {
    fn of(collections: &'static [Collection]) -> Self {
        let reported = Self { collections, known: HashMap::new() };
        for collection in collections {
            gauge!(UNWORKABLE_DOCUMENTS, "collection" => collection.as_str()).set(0.0);
        }
        reported
    }

    /// Takes what a whole sweep has found; tells of what is new.
    fn update(&mut self, found: Vec<Unworkable>) {
        let mut known = HashMap::new();
        for Unworkable { collection, id, reason } in found {
            if known.len() >= UNWORKABLE_MAX {
                break;
            }
            let key = (collection, id);
            if known.contains_key(&key) {
                continue;
            }
            if self.known.get(&key) != Some(&reason) {
                let (collection, id) = (collection.as_str(), &key.1);
                tracing::error!(collection, id, reason, "this document cannot be processed until it is corrected");
            }
            known.insert(key, reason);
        }
        for collection in self.collections {
            let count = u32::try_from(known.keys().filter(|(of, _)| of == collection).count()).unwrap_or(u32::MAX);
            gauge!(UNWORKABLE_DOCUMENTS, "collection" => collection.as_str()).set(f64::from(count));
        }
        self.known = known;
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
        let mut pause = random_below(self.every.min(FIRST_SWEEP_WITHIN));
        while self.wait(pause, shutdown).await {
            let mut unworkable = Vec::new();
            match self.sweep_dates(&mut unworkable, shutdown).await {
                Ok(()) => reported.update(unworkable),
                Err(Cut::Stopped) => return,
                Err(Cut::Store(error)) => self.cut_short(&error),
            }
            pause = around(self.every);
        }
    }

    async fn cards(&self, shutdown: &CancellationToken) {
        let mut reported = Reported::of(&[Collection::Organizations, Collection::Accounts]);
        let every = if self.every < CARDS_EACH_SWEEP_BELOW { self.every } else { CARDS_EVERY };
        let mut pause = random_below(every.min(FIRST_SWEEP_WITHIN));
        while self.wait(pause, shutdown).await {
            match self.sweep_cards(shutdown).await {
                Ok(unworkable) => {
                    reported.update(unworkable);
                    pause = around(every);
                }
                Err(Cut::Stopped) => return,
                Err(Cut::Store(error)) => {
                    self.cut_short(&error);
                    pause = around(self.every);
                }
            }
        }
    }

    fn cut_short(&self, error: &StoreError) {
        match error {
            StoreError::Unavailable(_) => self.engine.report(error),
            StoreError::TimedOut | StoreError::Refused(_) => {
                tracing::warn!(%error, "a sweep was cut short; the next one goes on");
            }
        }
    }

    /// Waits for `pause`, and until a sweep has what it needs: indexes, and a clock that is right. Whether to go on.
    async fn wait(&self, pause: Duration, shutdown: &CancellationToken) -> bool {
        let waiting = async {
            tokio::time::sleep(pause).await;
            // The sender is dropped only when the worker stops.
            let is_indexed = self.indexes.changes().wait_for(Vec::is_empty).await.is_ok();
            self.engine.wait_for_clock().await;
            is_indexed
        };
        shutdown.run_until_cancelled(waiting).await.unwrap_or(false)
    }

    async fn sweep_dates(&self, unworkable: &mut Vec<Unworkable>, shutdown: &CancellationToken) -> Result<(), Cut> {
        self.end(Ends::Scheduled, unworkable, shutdown).await?;
        self.end(Ends::Natural, unworkable, shutdown).await?;
        unworkable.extend(self.store.unworkable_subscriptions().await?);
        let deleted = self.store.delete_tombstones(clock::now()).await?;
        if deleted > 0 {
            tracing::info!(deleted, "deleted tombstones of removed subscriptions");
        }
        Ok(())
    }

    /// Ends subscriptions until none is due. A worker begins at a random id and goes on from there; where it finds that another
    /// was faster, it goes to another place.
    async fn end(&self, ends: Ends, unworkable: &mut Vec<Unworkable>, shutdown: &CancellationToken) -> Result<(), Cut> {
        let mut zones = Zones::default();
        let mut passing_over = HashSet::new();
        let mut place: Option<SubscriptionId> = None;
        loop {
            let now = clock::now();
            let Window { mut due, unworkable: unnamed } = match ends {
                Ends::Scheduled => self.store.scheduled_ends(now, &passing_over).await?,
                Ends::Natural => self.store.natural_ends(now, &passing_over, &mut zones).await?,
            };
            if due.is_empty() {
                unworkable.extend(unnamed);
                return Ok(());
            }
            if passing_over.len() >= SWEEP_PASSED_OVER_MAX {
                tracing::warn!(
                    passed_over = passing_over.len(),
                    "too many due subscriptions cannot be ended; the next sweep continues"
                );
                return Ok(());
            }
            due.sort_unstable();
            let begin = match &place {
                Some(last) => due.partition_point(|id| id <= last) % due.len(),
                None => fastrand::usize(..due.len()),
            };
            due.rotate_left(begin);
            let chunk = (due.len() / WINDOW_CHUNKS).max(CHUNK_MIN).min(self.batch_max * BATCHES_AT_ONCE);
            due.truncate((due.len() / WINDOW_PARTS).max(chunk));
            for chunk in due.chunks(chunk) {
                let tasks: Vec<Task> = chunk.iter().cloned().map(Task::Lapse).collect();
                place = chunk.last().cloned();
                for (id, settled) in chunk.iter().zip(self.decide("lapse", &tasks, shutdown).await?) {
                    match fault(settled) {
                        Ok(Verdict::Applied) => continue,
                        Ok(_) => place = None,
                        Err(_) if unworkable.len() >= UNWORKABLE_MAX => {}
                        Err(reason) => {
                            let (collection, id) = (Collection::Subscriptions, id.to_string());
                            unworkable.push(Unworkable { collection, id, reason });
                        }
                    }
                    passing_over.insert(id.clone());
                }
                if place.is_none() {
                    break;
                }
            }
        }
    }

    async fn sweep_cards(&self, shutdown: &CancellationToken) -> Result<Vec<Unworkable>, Cut> {
        let mut unworkable = Vec::new();
        let mut organizations = self.store.organizations_with_card_notices().await?;
        let mut organizations_count = 0;
        while let Some(mut page) = organizations.next().await? {
            organizations_count += page.len();
            // Not all workers in the same order.
            fastrand::shuffle(&mut page);
            let notices = stream::iter(page).map(|organization| async move {
                match organization {
                    Ok(organization) => self.give_card_notices_apart(&organization, shutdown).await,
                    Err(corrupt) => Ok(vec![corrupt]),
                }
            });
            let found: Vec<Vec<Unworkable>> = notices.buffer_unordered(ORGANIZATIONS_AT_ONCE).try_collect().await?;
            let room = UNWORKABLE_MAX.saturating_sub(unworkable.len());
            unworkable.extend(found.into_iter().flatten().take(room));
        }
        tracing::debug!(organizations = organizations_count, "looked for cards");
        Ok(unworkable)
    }

    /// Gives the card notices of one organization. What goes wrong with it is its own affair, unless the database is away.
    async fn give_card_notices_apart(
        &self,
        organization: &CardOrganization,
        shutdown: &CancellationToken,
    ) -> Result<Vec<Unworkable>, Cut> {
        let mut unworkable = Vec::new();
        match self.give_card_notices(organization, &mut unworkable, shutdown).await {
            Err(Cut::Store(error @ (StoreError::Refused(_) | StoreError::TimedOut))) => {
                let organization = &organization.id;
                tracing::warn!(%organization, %error, "card notices of this organization are skipped until the next look; others are not affected");
            }
            result => result?,
        }
        Ok(unworkable)
    }

    async fn give_card_notices(
        &self,
        organization: &CardOrganization,
        unworkable: &mut Vec<Unworkable>,
        shutdown: &CancellationToken,
    ) -> Result<(), Cut> {
        for (expires, kind) in organization.notices_due(clock::now()) {
            let mut after = None;
            loop {
                let page_max = i64::try_from(self.batch_max * BATCHES_AT_ONCE).unwrap_or(i64::MAX);
                let page =
                    self.store.cards_without_notice(&organization.id, expires, kind, after.as_ref(), page_max).await?;
                let tasks: Vec<Task> =
                    page.due.iter().map(|(account, card)| Task::CardNotice(account.clone(), card.clone())).collect();
                for ((account, _), settled) in page.due.iter().zip(self.decide("card_notice", &tasks, shutdown).await?)
                {
                    if let Err(reason) = fault(settled)
                        && unworkable.len() < UNWORKABLE_MAX
                    {
                        let (collection, id) = (Collection::Accounts, account.to_string());
                        unworkable.push(Unworkable { collection, id, reason });
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
    ) -> Result<Vec<Settled>, Cut> {
        let batches = tasks.chunks(self.batch_max).map(|batch| async move {
            let batch: Vec<&Task> = batch.iter().collect();
            self.engine.run(&batch, shutdown).await
        });
        let settled: Result<Vec<Vec<Settled>>, Interrupted> = join_all(batches).await.into_iter().collect();
        let settled = settled?.concat();
        let applied = settled.iter().filter(|settled| **settled == Settled::Decided(Verdict::Applied)).count();
        counter!("offramp_swept_total", "what" => what).increment(applied as u64);
        if shutdown.is_cancelled() { Err(Cut::Stopped) } else { Ok(settled) }
    }
}

/// What was decided; the error says why nothing could be.
fn fault(settled: Settled) -> Result<Verdict, String> {
    match settled {
        Settled::Decided(Verdict::Missing(missing)) => Err(missing.to_string()),
        Settled::Decided(Verdict::Corrupt(reason)) | Settled::Failed(reason) => Err(reason),
        Settled::Decided(verdict) => Ok(verdict),
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
