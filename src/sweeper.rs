//! What time does: last days that are over, natural ends, cards about to expire, tombstones.
//!
//! The sweeper only looks for what may be due and hands it to the same [`Engine`] as every command; whether it is due is
//! decided there, under the same version guard, so any number of workers may sweep at the same time.

use std::collections::BTreeSet;
use std::time::Duration;

use chrono::Days;
use futures_util::future::join_all;
use metrics::counter;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::domain::account::NoticeKind;
use crate::domain::billing::YearMonth;
use crate::domain::field::Field;
use crate::domain::fold::{Loaded, Task, Verdict};
use crate::domain::organization::Organization;
use crate::engine::{Engine, Interrupted, Settled};
use crate::store::sweep::Ids;
use crate::store::{Store, StoreError};

/// How many batches are decided at once. The database goes through one batch on one processor, and time has all its work to
/// do at midnight.
const BATCHES_AT_ONCE: usize = 2;
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

impl Sweeper {
    /// Sweeps until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        self.repeat(self.every, &shutdown, || self.sweep_dates(&shutdown)).await;
    }

    /// Does `sweep` now and then every `pause`; an error ends one sweep, not the next.
    async fn repeat<F: Future<Output = Result<(), Cut>>>(
        &self,
        pause: Duration,
        shutdown: &CancellationToken,
        sweep: impl Fn() -> F,
    ) {
        loop {
            match sweep().await {
                // It may only have read.
                Ok(()) => self.engine.look().await,
                Err(Cut::Stopped) => return,
                Err(Cut::Store(StoreError::Unavailable(error))) => self.engine.report(&error),
                Err(Cut::Store(error)) => tracing::warn!(%error, "a sweep was cut short; the next one goes on"),
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    async fn sweep_dates(&self, shutdown: &CancellationToken) -> Result<(), Cut> {
        let now = clock::now();
        self.lapse(self.store.ended(now).await?, shutdown).await?;
        self.lapse(self.store.expired(now).await?, shutdown).await?;
        for organization in self.store.organizations_with_card_notices().await? {
            match organization {
                Loaded::Read(organization) => match self.give_card_notices(&organization, shutdown).await {
                    Err(Cut::Store(StoreError::Refused(error))) => {
                        tracing::error!(organization = %organization.id, error, "no card notices for this organization");
                    }
                    result => result?,
                },
                Loaded::Corrupt { error, .. } => tracing::error!(%error, "no card notices for a corrupt organization"),
            }
        }
        let deleted = self.store.delete_tombstones(now).await?;
        if deleted > 0 {
            tracing::info!(deleted, "deleted tombstones of removed subscriptions");
        }
        Ok(())
    }

    async fn lapse(&self, mut ids: Ids, shutdown: &CancellationToken) -> Result<(), Cut> {
        loop {
            let ids = ids.next(self.batch_max * BATCHES_AT_ONCE).await?;
            let tasks: Vec<Task> = ids.into_iter().map(Task::Lapse).collect();
            if tasks.is_empty() {
                return Ok(());
            }
            self.decide("lapse", &tasks, shutdown).await?;
        }
    }

    async fn give_card_notices(&self, organization: &Organization, shutdown: &CancellationToken) -> Result<(), Cut> {
        for (expires, kind) in notices_due(organization).unwrap_or_default() {
            let mut after = None;
            loop {
                let page_max = i64::try_from(self.batch_max * BATCHES_AT_ONCE).unwrap_or(i64::MAX);
                let page =
                    self.store.cards_without_notice(&organization.id, expires, kind, after.as_ref(), page_max).await?;
                let tasks: Vec<Task> =
                    page.due.into_iter().map(|(account, card)| Task::CardNotice(account, card)).collect();
                if !tasks.is_empty() {
                    self.decide("card_notice", &tasks, shutdown).await?;
                }
                match page.last {
                    Some(last) => after = Some(last),
                    None => break,
                }
            }
        }
        Ok(())
    }

    /// Decides tasks, in batches, some of them at once. Each is brought to its end, whatever becomes of the others.
    async fn decide(&self, what: &'static str, tasks: &[Task], shutdown: &CancellationToken) -> Result<(), Cut> {
        let batches = tasks.chunks(self.batch_max).map(|batch| self.decide_batch(what, batch, shutdown));
        join_all(batches).await.into_iter().collect()
    }

    async fn decide_batch(&self, what: &'static str, tasks: &[Task], shutdown: &CancellationToken) -> Result<(), Cut> {
        let tasks: Vec<&Task> = tasks.iter().collect();
        for (task, settled) in tasks.iter().zip(self.engine.run(&tasks, shutdown).await?) {
            match settled {
                Settled::Decided(Verdict::Applied) => counter!("offramp_swept_total", "what" => what).increment(1),
                Settled::Decided(Verdict::Unchanged | Verdict::Rejected(_)) => {}
                Settled::Decided(Verdict::Missing(missing)) => {
                    tracing::error!(
                        ?task,
                        ?missing,
                        "time cannot do its work: something behind the document is missing"
                    );
                }
                Settled::Decided(Verdict::Corrupt(error)) | Settled::Failed(error) => {
                    tracing::error!(?task, %error, "time cannot do its work; the next sweep tries again");
                }
            }
        }
        if shutdown.is_cancelled() { Err(Cut::Stopped) } else { Ok(()) }
    }
}

/// The expiry months that are within a lead time of the organization today, each with the notice that is due.
fn notices_due(organization: &Organization) -> Field<BTreeSet<(YearMonth, NoticeKind)>> {
    let today = organization.date_at(clock::now())?;
    let lead_days = organization.card_notice_days.clone()?;
    let Some(longest) = lead_days.iter().copied().max() else { return Ok(BTreeSet::new()) };
    let Some(last_day) = today.checked_add_days(Days::new(longest.into())) else { return Ok(BTreeSet::new()) };
    Ok(std::iter::successors(Some(YearMonth::of(today)), |month| Some(month.next()))
        .take_while(|month| month.last_day() <= last_day)
        .map(|month| (month, NoticeKind::due(month, today, &lead_days)))
        .collect())
}
