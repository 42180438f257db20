//! Decides the tasks of a batch in order, each on the result of the one before.
//!
//! A [`UnitOfWork`] holds the loaded documents and tracks what the batch changes, so that each document is written once. It knows
//! nothing about databases: the store loads what it holds and writes what comes out.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

mod documents;
mod task;

pub use documents::{
    ChangedAccount, ChangedDocument, ChangedDocuments, ChangedOrganization, ChangedSubscription, Effects,
    LoadedDocument, Tracked, TrackedAccount, TrackedOrganization, TrackedSubscription, next_version,
};
pub use task::{MissingReference, RejectedTask, Standing, Task, TaskOutcome};

use crate::account::Account;
use crate::command::{CardExpiry, Command, CommandBody, SubscriptionCommand, card_expiry};
use crate::command_ref::{AppliedCommand, CommandKey};
use crate::decision::{Change, Context, Decision, NoticeGiven, Obstacle};
use crate::effect_id::EffectIds;
use crate::ids::{AccountId, CardId, OrganizationId, SubscriptionId, Target};
use crate::organization::Organization;
use crate::rejection::{Rejection, RejectionReason};
use crate::schedule::card_notice::notice_due;
use crate::schedule::lapse::{end, expire};
use crate::schedule::pending_requests::{PendingRequests, ReminderGiven, reminder_due};
use crate::subscription::{Status, Subscription};
use crate::trace_context::TraceContext;

/// The documents of a batch, and what its tasks have changed so far. A document that is not in it does not exist.
///
/// Everything is ordered by id, so that the same batch always gives the same changes in the same order.
#[derive(Clone, Debug, Default)]
pub struct UnitOfWork {
    subscriptions: BTreeMap<SubscriptionId, LoadedDocument<TrackedSubscription>>,
    accounts: BTreeMap<AccountId, LoadedDocument<TrackedAccount>>,
    organizations: BTreeMap<OrganizationId, LoadedDocument<TrackedOrganization>>,
    /// The undecided requests of organizations that may need a reminder.
    pending_requests: BTreeMap<OrganizationId, PendingRequests>,
}

impl UnitOfWork {
    pub fn add_subscription(&mut self, id: SubscriptionId, loaded: LoadedDocument<Subscription>) {
        self.subscriptions.insert(id, loaded.map(Tracked::new));
    }

    pub fn add_account(&mut self, id: AccountId, loaded: LoadedDocument<Account>) {
        self.accounts.insert(id, loaded.map(Tracked::new));
    }

    pub fn add_organization(&mut self, id: OrganizationId, loaded: LoadedDocument<Organization>) {
        self.organizations.insert(id, loaded.map(Tracked::new));
    }

    /// Adds the undecided requests of an organization.
    pub fn add_pending_requests(&mut self, id: OrganizationId, pending: PendingRequests) {
        self.pending_requests.insert(id, pending);
    }

    /// A readable subscription, after the tasks decided so far.
    #[must_use]
    pub fn subscription(&self, id: &SubscriptionId) -> Option<&Subscription> {
        self.tracked_subscription(id).map(|tracked| &tracked.after)
    }

    /// A readable subscription, and what the tasks decided so far have done to it.
    #[must_use]
    pub fn tracked_subscription(&self, id: &SubscriptionId) -> Option<&TrackedSubscription> {
        self.subscriptions.get(id)?.read().ok()
    }

    /// A readable account, and what the tasks decided so far have done to it.
    #[must_use]
    pub fn tracked_account(&self, id: &AccountId) -> Option<&TrackedAccount> {
        self.accounts.get(id)?.read().ok()
    }

    /// A readable organization.
    #[must_use]
    pub fn organization(&self, id: &OrganizationId) -> Option<&Organization> {
        self.organizations.get(id)?.read().ok().map(|tracked| &tracked.after)
    }

    /// How a readable document stands after the tasks decided so far.
    #[must_use]
    pub fn standing(&self, target: Target<'_>) -> Option<Standing> {
        match target {
            Target::Subscription(id) => {
                let tracked = self.tracked_subscription(id)?;
                let end = tracked.after.details.as_ref().and_then(|details| details.end.as_ref().ok()?.as_ref());
                Some(Standing {
                    status: Some(tracked.after.status),
                    ends_on: end.map(|end| end.ends_on),
                    final_billing_on: end.and_then(|end| end.final_billing_on),
                    version: tracked.version(tracked.after.version),
                })
            }
            Target::Account(id) => {
                let tracked = self.tracked_account(id)?;
                let version = tracked.version(tracked.after.version);
                Some(Standing { status: None, ends_on: None, final_billing_on: None, version })
            }
            // No command is about an organization.
            Target::Organization(_) => None,
        }
    }

    /// What the last task that changed the document caused.
    #[must_use]
    pub fn newest_effects(&self, target: Target<'_>) -> Option<&Effects> {
        match target {
            Target::Subscription(id) => self.tracked_subscription(id)?.effects.last(),
            Target::Account(id) => self.tracked_account(id)?.effects.last(),
            Target::Organization(id) => self.organizations.get(id)?.read().ok()?.effects.last(),
        }
    }

    /// Gives what the calendar causes a trace: no command has brought one.
    pub fn trace_scheduled(&mut self, trace: &TraceContext) {
        if trace.is_empty() {
            return;
        }
        let subscriptions =
            self.subscriptions.values_mut().filter_map(|it| it.read_mut().ok()).map(|it| &mut it.effects);
        let accounts = self.accounts.values_mut().filter_map(|it| it.read_mut().ok()).map(|it| &mut it.effects);
        let organizations =
            self.organizations.values_mut().filter_map(|it| it.read_mut().ok()).map(|it| &mut it.effects);
        let effects = subscriptions.chain(accounts).chain(organizations).flatten();
        for effects in effects.filter(|effects| effects.command.is_none()) {
            effects.trace = trace.clone();
        }
    }

    /// The documents that the batch has changed, each list ordered by id.
    #[must_use]
    pub fn into_changed(self) -> ChangedDocuments {
        ChangedDocuments {
            subscriptions: into_changed(self.subscriptions),
            accounts: into_changed(self.accounts),
            organizations: into_changed(self.organizations),
        }
    }

    /// The subscriptions that the batch has changed, ordered by id.
    pub fn changed_subscriptions(&self) -> impl Iterator<Item = &TrackedSubscription> {
        self.subscriptions.values().filter_map(|loaded| loaded.read().ok()).filter(|tracked| tracked.is_changed())
    }

    /// The accounts that the batch has changed, ordered by id.
    pub fn changed_accounts(&self) -> impl Iterator<Item = &TrackedAccount> {
        self.accounts.values().filter_map(|loaded| loaded.read().ok()).filter(|tracked| tracked.is_changed())
    }

    /// Decides a task on the documents as the tasks before it left them. A task that is not applied changes nothing.
    pub fn apply(&mut self, task: &Task, now: DateTime<Utc>) -> TaskOutcome {
        let outcome = match task {
            Task::Command(command) => match &command.body {
                CommandBody::Subscription(data) => self.subscription_command(command, data, now),
                CommandBody::CardExpiry(data) => self.account_command(command, data, now),
            },
            Task::Lapse(id) => self.lapse(id, now),
            Task::CardNotice(account_id, card_id) => self.card_notice(account_id, card_id, now),
            Task::RequestReminder(id) => self.request_reminder(id, now),
        };
        outcome.unwrap_or_else(|stopped| stopped)
    }

    /// `Err` is an outcome too: the one that ends the decision early.
    fn subscription_command(
        &mut self,
        command: &Command,
        data: &SubscriptionCommand,
        now: DateTime<Utc>,
    ) -> Result<TaskOutcome, TaskOutcome> {
        let id = data.subscription_id();
        let Some(loaded) = self.subscriptions.get_mut(id) else {
            return Err(rejected(
                RejectionReason::SubscriptionNotFound.because(format!("There is no subscription {id}.")),
                None,
            ));
        };
        let organization_id = data.organization_id();
        let tracked = require_owned(loaded, organization_id, |it| &it.after.organization_id, "subscription")?;
        if let Some(repeated) = repeated(&tracked.after.applied, &command.reference.key) {
            return Ok(repeated);
        }
        let account_id = tracked.after.account_id.clone();
        let by = || format!("subscriptions {id}");
        let organization = require_organization(&self.organizations, organization_id, by)?;
        let account = match self.accounts.get(&account_id) {
            Some(account) => account.read()?,
            None => return Err(TaskOutcome::Missing(MissingReference::Account { account_id, by: by() })),
        };
        if account.after.organization_id != tracked.after.organization_id {
            let sentence =
                format!("subscriptions {id}: account_id: account {account_id} belongs to another organization");
            return Err(TaskOutcome::Corrupt(sentence));
        }
        tracked.after.require_next_invoice()?;
        let context = Context { now, organization, account: &account.after };
        match data.decide(&tracked.after, &command.reference, command.time, &context) {
            Ok(Decision::Applied(change)) => {
                let ids = EffectIds::of_command(&command.reference, command.target());
                record_change(tracked, change, Some(command), ids);
                Ok(TaskOutcome::Applied)
            }
            Ok(Decision::Unchanged) => {
                tracked.change().applied.push(remembered(command, true));
                tracked.effects.push(Effects::none(command));
                Ok(TaskOutcome::Unchanged)
            }
            Err(Obstacle::Rejected(rejection)) => Err(rejected(rejection, Some(account_id))),
            Err(Obstacle::Malformed(malformed)) => Err(malformed.into()),
        }
    }

    fn account_command(
        &mut self,
        command: &Command,
        data: &CardExpiry,
        now: DateTime<Utc>,
    ) -> Result<TaskOutcome, TaskOutcome> {
        let id = &data.account_id;
        let Some(loaded) = self.accounts.get_mut(id) else {
            return Err(rejected(RejectionReason::AccountNotFound.because(format!("There is no account {id}.")), None));
        };
        let tracked = require_owned(loaded, &data.organization_id, |it| &it.after.organization_id, "account")?;
        if let Some(repeated) = repeated(&tracked.after.applied, &command.reference.key) {
            return Ok(repeated);
        }
        let by = || format!("accounts {id}");
        let organization = require_organization(&self.organizations, &data.organization_id, by)?;
        let context = Context { now, organization, account: &tracked.after };
        match card_expiry::decide(&tracked.after, &data.card, &context)? {
            Decision::Applied(given) => {
                let ids = EffectIds::of_command(&command.reference, command.target());
                record_notice(tracked, given, Some(command), ids, now);
                Ok(TaskOutcome::Applied)
            }
            Decision::Unchanged => {
                tracked.change().applied.push(remembered(command, true));
                tracked.effects.push(Effects::none(command));
                Ok(TaskOutcome::Unchanged)
            }
        }
    }

    fn lapse(&mut self, id: &SubscriptionId, now: DateTime<Utc>) -> Result<TaskOutcome, TaskOutcome> {
        let Some(loaded) = self.subscriptions.get_mut(id) else { return Ok(TaskOutcome::Unchanged) };
        let tracked = loaded.read_mut()?;
        let change = match tracked.after.status {
            Status::CancellationScheduled => end(&tracked.after, now)?,
            Status::Active | Status::CancellationRequested => {
                let by = || format!("subscriptions {id}");
                let organization = require_organization(&self.organizations, &tracked.after.organization_id, by)?;
                expire(&tracked.after, organization, now)?
            }
            Status::Cancelled | Status::Expired | Status::Removed => None,
        };
        let Some(change) = change else { return Ok(TaskOutcome::Unchanged) };
        let ended_on = change.subscription.ended_on.map(|day| day.to_string()).unwrap_or_default();
        let ids = EffectIds::of(&["ended", id.as_str(), &ended_on]);
        record_change(tracked, change, None, ids);
        Ok(TaskOutcome::Applied)
    }

    fn card_notice(
        &mut self,
        id: &AccountId,
        card_id: &CardId,
        now: DateTime<Utc>,
    ) -> Result<TaskOutcome, TaskOutcome> {
        let Some(loaded) = self.accounts.get_mut(id) else { return Ok(TaskOutcome::Unchanged) };
        let tracked = loaded.read_mut()?;
        let by = || format!("accounts {id}");
        let organization = require_organization(&self.organizations, &tracked.after.organization_id, by)?;
        let readable = tracked.after.cards.iter().flatten().find(|card| card.id == *card_id);
        let card = match (readable, tracked.after.cards.iter().find_map(|card| card.as_ref().err())) {
            (Some(card), _) => card,
            // The unreadable card may be this one.
            (None, Some(malformed)) => return Err(malformed.clone().into()),
            (None, None) => return Ok(TaskOutcome::Unchanged),
        };
        let context = Context { now, organization, account: &tracked.after };
        let Some(given) = notice_due(&tracked.after, card, &context)? else {
            return Ok(TaskOutcome::Unchanged);
        };
        let expires = card.expires.to_string();
        let kind = given.notice.kind.to_string();
        let ids = EffectIds::of(&["card-notice", id.as_str(), card_id.as_str(), &expires, &kind]);
        record_notice(tracked, given, None, ids, now);
        Ok(TaskOutcome::Applied)
    }

    fn request_reminder(&mut self, id: &OrganizationId, now: DateTime<Utc>) -> Result<TaskOutcome, TaskOutcome> {
        let Some(pending) = self.pending_requests.get(id) else { return Ok(TaskOutcome::Unchanged) };
        let Some(loaded) = self.organizations.get_mut(id) else {
            let Some(first) = pending.oldest.first() else { return Ok(TaskOutcome::Unchanged) };
            let by = format!("subscriptions {}", first.id);
            return Err(TaskOutcome::Missing(MissingReference::Organization { organization_id: id.clone(), by }));
        };
        let tracked = loaded.read_mut()?;
        tracked.after.version.clone()?;
        let Some(ReminderGiven { reminder, notification }) = reminder_due(&tracked.after, pending, now)? else {
            return Ok(TaskOutcome::Unchanged);
        };
        let ids = EffectIds::of(&["requests-pending", id.as_str(), &reminder.on.to_string()]);
        tracked.change().last_reminder = Ok(Some(reminder));
        tracked.effects.push(Effects::of(None, ids, vec![notification], vec![]));
        Ok(TaskOutcome::Applied)
    }
}

fn into_changed<K, T: Clone, R>(documents: BTreeMap<K, LoadedDocument<Tracked<T, R>>>) -> Vec<ChangedDocument<T, R>> {
    let changed = documents.into_values().filter_map(|loaded| match loaded {
        LoadedDocument::Read(tracked) => tracked.into_changed(),
        LoadedDocument::Corrupt { .. } => None,
    });
    changed.collect()
}

/// Requires that the document belongs to the organization, and only then that it can be read: another organization learns nothing
/// about it.
fn require_owned<'a, T>(
    loaded: &'a mut LoadedDocument<T>,
    organization_id: &OrganizationId,
    owner: impl Fn(&T) -> &OrganizationId,
    what: &str,
) -> Result<&'a mut T, TaskOutcome> {
    let is_foreign = match &*loaded {
        LoadedDocument::Read(document) => owner(document) != organization_id,
        LoadedDocument::Corrupt { organization_id: owner, .. } => {
            owner.as_ref().is_some_and(|owner| owner != organization_id)
        }
    };
    if is_foreign {
        let detail = format!("The {what} does not belong to the organization {organization_id}.");
        return Err(rejected(RejectionReason::WrongOrganization.because(detail), None));
    }
    loaded.read_mut()
}

/// The organization that the document `by` refers to.
fn require_organization<'a>(
    organizations: &'a BTreeMap<OrganizationId, LoadedDocument<TrackedOrganization>>,
    id: &OrganizationId,
    by: impl FnOnce() -> String,
) -> Result<&'a Organization, TaskOutcome> {
    match organizations.get(id) {
        Some(loaded) => loaded.read().map(|tracked| &tracked.after),
        None => Err(TaskOutcome::Missing(MissingReference::Organization { organization_id: id.clone(), by: by() })),
    }
}

fn rejected(rejection: Rejection, account_id: Option<AccountId>) -> TaskOutcome {
    TaskOutcome::Rejected(RejectedTask { rejection, account_id })
}

/// The outcome of a command that the document remembers.
fn repeated(applied: &[AppliedCommand], key: &CommandKey) -> Option<TaskOutcome> {
    // A redelivered command is usually among the newest.
    let earlier = applied.iter().rev().find(|earlier| earlier.key == *key)?;
    Some(if earlier.unchanged { TaskOutcome::Unchanged } else { TaskOutcome::Repeated })
}

fn remembered(command: &Command, unchanged: bool) -> AppliedCommand {
    AppliedCommand { key: command.reference.key.clone(), unchanged }
}

fn record_change(tracked: &mut TrackedSubscription, change: Change, command: Option<&Command>, ids: EffectIds) {
    let Change { subscription, record, notifications, events } = change;
    let earlier = std::mem::replace(&mut tracked.after, subscription);
    tracked.before.get_or_insert(earlier);
    tracked.after.applied.extend(command.map(|command| remembered(command, false)));
    tracked.records.push(record);
    tracked.effects.push(Effects::of(command, ids, notifications, events));
}

fn record_notice(
    tracked: &mut TrackedAccount,
    given: NoticeGiven,
    command: Option<&Command>,
    ids: EffectIds,
    now: DateTime<Utc>,
) {
    let NoticeGiven { notice, notifications, event } = given;
    let account = tracked.change();
    // Always `Ok` here: a notice is given only where the earlier ones can be read.
    if let Ok(notices) = &mut account.card_notices {
        notices.retain(|notice| !notice.is_forgotten(now.date_naive()));
        notices.push(notice.clone());
    }
    account.applied.extend(command.map(|command| remembered(command, false)));
    tracked.records.push(notice);
    tracked.effects.push(Effects::of(command, ids, notifications, vec![event]));
}

#[cfg(test)]
mod tests;
