//! Gives notice of saved cards about to expire, organization by organization.

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::findings::Findings;
use super::task_runner::{SweepError, TaskRunner};
use crate::metrics::labels::ScheduledChange;
use crate::store::due::{CardOrganization, CardOrganizationsPage, UnprocessableDocument};
use crate::store::{Collection, Store, StoreError};
use crate::worker::indexes::Indexes;
use offramp_domain::account::CARD_NOTICES_MAX;
use offramp_domain::unit_of_work::{Task, TaskOutcome};

/// How many organizations are processed concurrently. A slow one does not delay the others.
const CONCURRENT_ORGANIZATIONS: usize = 4;

/// Gives the card notices that are due.
pub(super) struct CardNotices<'a> {
    pub(super) store: &'a Store,
    pub(super) indexes: &'a Indexes,
    pub(super) runner: &'a TaskRunner,
}

impl CardNotices<'_> {
    /// Goes through all organizations that want card notices.
    pub(super) async fn give_due(&self, findings: &mut Findings) -> Result<(), SweepError> {
        let mut in_flight = FuturesUnordered::new();
        let mut page = Vec::new();
        let mut organizations_count = 0;
        // `None`: there is no further page.
        let mut after = Some(None);
        // After an error, the organizations in flight are still completed: otherwise the emails that they committed would wait
        // until their lease expires.
        let mut result = Ok(());
        loop {
            while result.is_ok() && in_flight.len() < CONCURRENT_ORGANIZATIONS {
                if page.is_empty()
                    && let Some(after_id) = after.take()
                {
                    match self.store.card_organizations(Option::as_deref(&after_id)).await {
                        Ok(CardOrganizationsPage { organizations, last }) => {
                            page = organizations;
                            // So that several workers do not go through them in the same order.
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
                        in_flight.push(self.give_to_organization(organization));
                    }
                    Some(Err(corrupt)) => findings.add_unworkable([corrupt]),
                    None => break,
                }
            }
            match in_flight.next().await {
                Some(Ok(of_organization)) => findings.extend(of_organization),
                Some(Err(error)) => result = Err(error),
                None => break,
            }
        }
        tracing::debug!(organizations = organizations_count, "looked for cards");
        result
    }

    /// Gives the notices of one organization. Its failure does not affect the others, unless the database is unavailable.
    async fn give_to_organization(&self, organization: CardOrganization) -> Result<Findings, SweepError> {
        let mut findings = Findings::default();
        match self.try_give_to_organization(&organization, &mut findings).await {
            Err(SweepError::Store(error @ (StoreError::Permanent(_) | StoreError::TimedOut))) => {
                if matches!(error, StoreError::Permanent(_)) {
                    self.indexes.check_again();
                }
                let organization = &organization.id;
                tracing::warn!(%organization, %error, "card notices of this organization failed; retrying at the next sweep; others are not affected");
            }
            result => result?,
        }
        Ok(findings)
    }

    async fn try_give_to_organization(
        &self,
        organization: &CardOrganization,
        findings: &mut Findings,
    ) -> Result<(), SweepError> {
        let page_max = self.runner.concurrent_tasks();
        for (expires, kind) in organization.notices_due(self.runner.now()) {
            let mut after: Option<String> = None;
            loop {
                let page = self
                    .store
                    .cards_without_notice(&organization.id, expires, kind, after.as_deref(), page_max)
                    .await?;
                findings.add_unworkable(page.unworkable);
                let tasks: Vec<Task> =
                    page.due.iter().map(|due| Task::CardNotice(due.account.clone(), due.card.clone())).collect();
                for (due, processed) in page.due.iter().zip(self.runner.run(ScheduledChange::CardNotice, &tasks).await?)
                {
                    let outcome = findings.check(Collection::Accounts, due.account.as_str(), processed);
                    if due.is_full && outcome == Some(TaskOutcome::Unchanged) {
                        findings.add_unworkable([UnprocessableDocument {
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
}
