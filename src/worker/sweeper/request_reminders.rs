//! Reminds organizations of requests that no administrator has decided.

use chrono::{DateTime, Utc};

use super::findings::Findings;
use super::task_runner::{SweepError, TaskRunner};
use crate::metrics::labels::ScheduledChange;
use crate::store::due::{PendingOrganization, PendingOrganizationsPage, UnprocessableDocument};
use crate::store::{Collection, Store};
use offramp_domain::field::{Field, Malformed};
use offramp_domain::ids::OrganizationId;
use offramp_domain::schedule::pending_requests::may_be_due;
use offramp_domain::unit_of_work::{LoadedDocument, Task};

/// Gives the reminders that are due.
///
/// Any number of workers do this at the same time, without communicating: each takes the organizations in an order of its own, and
/// the organization's document says that it was reminded today.
pub(super) async fn remind_due(store: &Store, runner: &TaskRunner, findings: &mut Findings) -> Result<(), SweepError> {
    let mut after: Option<String> = None;
    loop {
        let PendingOrganizationsPage { organizations, last } =
            store.organizations_with_pending_requests(after.as_deref()).await?;
        let mut due: Vec<OrganizationId> = Vec::new();
        let now = runner.now();
        for organization in organizations {
            match is_due(&organization, now) {
                Ok(true) => due.push(organization.id),
                Ok(false) => {}
                Err(Malformed(reason)) => findings.add_unworkable([UnprocessableDocument {
                    collection: Collection::Organizations,
                    id: organization.id.to_string(),
                    reason,
                }]),
            }
        }
        fastrand::shuffle(&mut due);
        for chunk in due.chunks(runner.concurrent_tasks()) {
            let tasks: Vec<Task> = chunk.iter().cloned().map(Task::RequestReminder).collect();
            for (id, processed) in chunk.iter().zip(runner.run(ScheduledChange::Reminder, &tasks).await?) {
                findings.check(Collection::Organizations, id.as_str(), processed);
            }
        }
        match last {
            Some(last) => after = Some(last),
            None => return Ok(()),
        }
    }
}

/// Whether a reminder may be due. The rules decide it on all requests.
fn is_due(organization: &PendingOrganization, now: DateTime<Utc>) -> Field<bool> {
    match &organization.document {
        Some(LoadedDocument::Read(document)) => may_be_due(document, organization.oldest, now),
        Some(LoadedDocument::Corrupt { error, .. }) => Err(Malformed(error.clone())),
        None => Err(Malformed(format!("does not exist, but subscriptions {} refers to it", organization.subscription))),
    }
}
