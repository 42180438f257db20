//! Many tasks, in order, on the newest state: the second command on a subscription sees what the first one did.
//!
//! The fold reads a [`World`] of loaded documents and leaves in it one [`Draft`] per document that changed, so that a
//! batch writes each document once.

use std::collections::HashMap;

use chrono::{DateTime, Utc};

use super::account::{Account, CardNotice};
use super::command::{CardExpiry, Command, CommandBody, CommandKey, CommandRef, SubscriptionCommand};
use super::decide::{
    Change, Context, NoticeGiven, Obstacle, Outcome, Rejection, RejectionReason, decide, decide_card_expiry, end,
    expire, notice_due,
};
use super::event::{EffectIds, Event};
use super::field::Malformed;
use super::notification::Notification;
use super::organization::Organization;
use super::subscription::{HistoryEntry, PaymentFailureRecord, Status, Subscription};
use super::text::{AccountId, CardId, OrganizationId, SubscriptionId, Target};

/// What there is to decide.
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "almost every task is a command")]
pub enum Task {
    /// A command.
    Command(Command),
    /// Time: the last day of this subscription may be over.
    Lapse(SubscriptionId),
    /// Time: a notice about this saved card may be due.
    CardNotice(AccountId, CardId),
}

impl Task {
    /// The document that it is about.
    #[must_use]
    pub fn target(&self) -> Target<'_> {
        match self {
            Self::Command(command) => command.target(),
            Self::Lapse(id) => Target::Subscription(id),
            Self::CardNotice(id, _) => Target::Account(id),
        }
    }
}

/// What became of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It changed a document.
    Applied,
    /// It changed nothing: done before, already so (which is remembered), or not due.
    Unchanged,
    /// It is refused.
    Rejected(Rejected),
    /// Something behind the document is missing, so nothing can be decided.
    Missing(Missing),
    /// A field that the decision needs cannot be read, or contradicts another. The sentence says which, where and why.
    Corrupt(String),
}

/// A refusal, with what is known of the document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Why.
    pub rejection: Rejection,
    /// The account of the document, where the command was entitled to know it.
    pub account_id: Option<AccountId>,
}

/// What is missing behind a document that was found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    /// The organization.
    #[error("organizations {organization_id}: does not exist, but {by} refers to it")]
    Organization {
        /// The organization's id.
        organization_id: OrganizationId,
        /// The document that names it: `subscriptions sub-1`.
        by: String,
    },
    /// The account.
    #[error("accounts {account_id}: does not exist, but {by} refers to it")]
    Account {
        /// The account's id.
        account_id: AccountId,
        /// The document that names it: `subscriptions sub-1`.
        by: String,
    },
}

/// A document as it was found.
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "almost every document can be read")]
pub enum Loaded<T> {
    /// It can be read.
    Read(T),
    /// It cannot; nothing is written to it.
    Corrupt {
        /// Whose it is, where that much can be read.
        organization_id: Option<OrganizationId>,
        /// Which field, and why.
        error: String,
    },
}

/// A document and all that the batch does to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Draft<T, R> {
    /// As it was loaded, once anything has happened to it.
    before: Option<T>,
    /// As it will be.
    pub after: T,
    /// What is added to its lists, oldest first.
    pub added: Vec<R>,
}

/// A document that the batch has changed, to be written.
#[derive(Debug)]
pub struct Changed<T, R> {
    /// As it was loaded.
    pub before: T,
    /// As it will be.
    pub after: T,
    /// What is added to its lists, oldest first.
    pub added: Vec<R>,
}

/// What one task adds to a document's lists.
#[derive(Clone, Debug, PartialEq)]
pub struct Added<R> {
    /// The command; absent where time did it.
    pub command: Option<CommandRef>,
    /// The record of it.
    pub record: R,
    /// Names the effects, so that a repeat is recognised.
    pub ids: EffectIds,
    /// The mails.
    pub notifications: Vec<Notification>,
    /// The events.
    pub events: Vec<Event>,
}

/// The entries that a change adds to a subscription.
#[derive(Clone, Debug, PartialEq)]
pub struct SubscriptionRecord {
    /// For `history`.
    pub history: Option<HistoryEntry>,
    /// For `payment_failures`.
    pub payment_failure: Option<PaymentFailureRecord>,
}

/// A subscription and what the batch does to it.
pub type SubscriptionDraft = Draft<Subscription, Added<SubscriptionRecord>>;
/// An account and what the batch does to it.
pub type AccountDraft = Draft<Account, Added<Option<CardNotice>>>;
/// A subscription to be written.
pub type ChangedSubscription = Changed<Subscription, Added<SubscriptionRecord>>;
/// An account to be written.
pub type ChangedAccount = Changed<Account, Added<Option<CardNotice>>>;

impl<T: Clone, R> Draft<T, R> {
    fn new(document: T) -> Self {
        Self { before: None, after: document, added: Vec::new() }
    }

    /// As it was loaded.
    #[must_use]
    pub fn before(&self) -> &T {
        self.before.as_ref().unwrap_or(&self.after)
    }

    /// It as it is so far, to be changed.
    fn change(&mut self) -> &mut T {
        self.before.get_or_insert_with(|| self.after.clone());
        &mut self.after
    }

    /// Whether anything happened to it.
    #[must_use]
    pub fn is_changed(&self) -> bool {
        self.before.is_some()
    }

    fn into_changed(self) -> Option<Changed<T, R>> {
        let Self { before, after, added } = self;
        before.map(|before| Changed { before, after, added })
    }
}

/// All documents that a batch needs. What is not in it does not exist.
#[derive(Clone, Debug, Default)]
pub struct World {
    subscriptions: HashMap<SubscriptionId, Loaded<SubscriptionDraft>>,
    accounts: HashMap<AccountId, Loaded<AccountDraft>>,
    organizations: HashMap<OrganizationId, Loaded<Organization>>,
}

impl World {
    /// One with room for so many subscriptions and accounts.
    #[must_use]
    pub fn with_room(subscriptions: usize, accounts: usize) -> Self {
        Self {
            subscriptions: HashMap::with_capacity(subscriptions),
            accounts: HashMap::with_capacity(accounts),
            organizations: HashMap::new(),
        }
    }

    /// Adds a subscription.
    pub fn add_subscription(&mut self, id: SubscriptionId, loaded: Loaded<Subscription>) {
        self.subscriptions.insert(id, loaded.map(Draft::new));
    }

    /// Adds an account.
    pub fn add_account(&mut self, id: AccountId, loaded: Loaded<Account>) {
        self.accounts.insert(id, loaded.map(Draft::new));
    }

    /// Adds an organization.
    pub fn add_organization(&mut self, id: OrganizationId, loaded: Loaded<Organization>) {
        self.organizations.insert(id, loaded);
    }

    /// A subscription as it is after the tasks that were folded.
    #[must_use]
    pub fn subscription(&self, id: &SubscriptionId) -> Option<&Subscription> {
        self.subscription_draft(id).map(|draft| &draft.after)
    }

    /// A subscription and what the tasks that were folded did to it.
    #[must_use]
    pub fn subscription_draft(&self, id: &SubscriptionId) -> Option<&SubscriptionDraft> {
        self.subscriptions.get(id)?.read().ok()
    }

    /// An account and what the tasks that were folded did to it.
    #[must_use]
    pub fn account_draft(&self, id: &AccountId) -> Option<&AccountDraft> {
        self.accounts.get(id)?.read().ok()
    }

    /// The subscriptions and the accounts that changed.
    #[must_use]
    pub fn into_changed(self) -> (Vec<ChangedSubscription>, Vec<ChangedAccount>) {
        (into_changed(self.subscriptions), into_changed(self.accounts))
    }

    /// The subscriptions that changed.
    pub fn changed_subscriptions(&self) -> impl Iterator<Item = &SubscriptionDraft> {
        self.subscriptions.values().filter_map(|loaded| loaded.read().ok()).filter(|draft| draft.is_changed())
    }

    /// The accounts that changed.
    pub fn changed_accounts(&self) -> impl Iterator<Item = &AccountDraft> {
        self.accounts.values().filter_map(|loaded| loaded.read().ok()).filter(|draft| draft.is_changed())
    }

    /// Decides one task on the newest state.
    pub fn fold(&mut self, task: &Task, now: DateTime<Utc>) -> Verdict {
        let verdict = match task {
            Task::Command(command) => match &command.body {
                CommandBody::Subscription(data) => self.subscription_command(command, data, now),
                CommandBody::CardExpiry(data) => self.account_command(command, data, now),
            },
            Task::Lapse(id) => self.lapse(id, now),
            Task::CardNotice(account_id, card_id) => self.card_notice(account_id, card_id, now),
        };
        verdict.unwrap_or_else(|stop| stop)
    }

    fn subscription_command(
        &mut self,
        command: &Command,
        data: &SubscriptionCommand,
        now: DateTime<Utc>,
    ) -> Result<Verdict, Verdict> {
        let id = data.subscription_id();
        let draft = match self.subscriptions.get_mut(id) {
            None => {
                return Err(refuse(
                    RejectionReason::SubscriptionNotFound.because(format!("There is no subscription {id}.")),
                    None,
                ));
            }
            Some(loaded) => {
                readable(loaded, data.organization_id(), |draft| &draft.after.organization_id, "subscription")?
            }
        };
        if was_applied(&draft.after.applied, &command.reference.key) {
            return Ok(Verdict::Unchanged);
        }
        let account_id = draft.after.account_id.clone();
        let by = || format!("subscriptions {id}");
        let organization = require_organization(&self.organizations, data.organization_id(), by)?;
        let account = match self.accounts.get(&account_id) {
            Some(account) => account.read()?,
            None => return Err(Verdict::Missing(Missing::Account { account_id, by: by() })),
        };
        if account.after.organization_id != draft.after.organization_id {
            let sentence =
                format!("subscriptions {id}: account_id: account {account_id} belongs to another organization");
            return Err(Verdict::Corrupt(sentence));
        }
        draft.after.require_next_invoice()?;
        let context = Context { now, organization, account: &account.after };
        match decide(&draft.after, &command.reference, command.time, data, &context) {
            Ok(Outcome::Applied(change)) => {
                let ids = EffectIds::of_command(&command.reference, id.as_str());
                apply(draft, change, Some(command.reference.clone()), ids);
                Ok(Verdict::Applied)
            }
            Ok(Outcome::Unchanged) => {
                let record = SubscriptionRecord { history: None, payment_failure: None };
                draft.change().applied.push(command.reference.key.clone());
                draft.added.push(Added::nothing(command, record, id.as_str()));
                Ok(Verdict::Unchanged)
            }
            Err(Obstacle::Rejected(rejection)) => Err(refuse(rejection, Some(account_id))),
            Err(Obstacle::Malformed(malformed)) => Err(malformed.into()),
        }
    }

    fn account_command(
        &mut self,
        command: &Command,
        data: &CardExpiry,
        now: DateTime<Utc>,
    ) -> Result<Verdict, Verdict> {
        let id = &data.account_id;
        let draft = match self.accounts.get_mut(id) {
            None => {
                return Err(refuse(
                    RejectionReason::AccountNotFound.because(format!("There is no account {id}.")),
                    None,
                ));
            }
            Some(loaded) => readable(loaded, &data.organization_id, |draft| &draft.after.organization_id, "account")?,
        };
        if was_applied(&draft.after.applied, &command.reference.key) {
            return Ok(Verdict::Unchanged);
        }
        let by = || format!("accounts {id}");
        let organization = require_organization(&self.organizations, &data.organization_id, by)?;
        let context = Context { now, organization, account: &draft.after };
        match decide_card_expiry(&draft.after, &data.card, &context)? {
            Outcome::Applied(given) => {
                let ids = EffectIds::of_command(&command.reference, id.as_str());
                give(draft, given, Some(command.reference.clone()), ids, now);
                Ok(Verdict::Applied)
            }
            Outcome::Unchanged => {
                draft.change().applied.push(command.reference.key.clone());
                draft.added.push(Added::nothing(command, None, id.as_str()));
                Ok(Verdict::Unchanged)
            }
        }
    }

    fn lapse(&mut self, id: &SubscriptionId, now: DateTime<Utc>) -> Result<Verdict, Verdict> {
        let Some(loaded) = self.subscriptions.get_mut(id) else { return Ok(Verdict::Unchanged) };
        let draft = loaded.require()?;
        let change = match draft.after.status {
            Status::CancellationScheduled => end(&draft.after, now)?,
            Status::Active | Status::CancellationRequested => {
                let by = || format!("subscriptions {id}");
                let organization = require_organization(&self.organizations, &draft.after.organization_id, by)?;
                expire(&draft.after, organization, now)?
            }
            Status::Cancelled | Status::Expired | Status::Removed => None,
        };
        let Some(change) = change else { return Ok(Verdict::Unchanged) };
        let ended_on = change.subscription.ended_on.map(|day| day.to_string()).unwrap_or_default();
        let ids = EffectIds::of(&["ended", id.as_str(), &ended_on]);
        apply(draft, change, None, ids);
        Ok(Verdict::Applied)
    }

    fn card_notice(&mut self, id: &AccountId, card_id: &CardId, now: DateTime<Utc>) -> Result<Verdict, Verdict> {
        let Some(loaded) = self.accounts.get_mut(id) else { return Ok(Verdict::Unchanged) };
        let draft = loaded.require()?;
        let by = || format!("accounts {id}");
        let organization = require_organization(&self.organizations, &draft.after.organization_id, by)?;
        let readable = draft.after.cards.iter().flatten().find(|card| card.id == *card_id);
        let card = match (readable, draft.after.cards.iter().find_map(|card| card.as_ref().err())) {
            (Some(card), _) => card,
            // It may be the one.
            (None, Some(malformed)) => return Err(malformed.clone().into()),
            (None, None) => return Ok(Verdict::Unchanged),
        };
        let context = Context { now, organization, account: &draft.after };
        let Some(given) = notice_due(&draft.after, card, &context)? else {
            return Ok(Verdict::Unchanged);
        };
        let expires = card.expires.to_string();
        let kind = given.notice.kind.to_string();
        let ids = EffectIds::of(&["card-notice", id.as_str(), card_id.as_str(), &expires, &kind]);
        give(draft, given, None, ids, now);
        Ok(Verdict::Applied)
    }
}

fn into_changed<K, T: Clone, R>(documents: HashMap<K, Loaded<Draft<T, R>>>) -> Vec<Changed<T, R>> {
    let changed = documents.into_values().filter_map(|loaded| match loaded {
        Loaded::Read(draft) => draft.into_changed(),
        Loaded::Corrupt { .. } => None,
    });
    changed.collect()
}

impl<T> Loaded<T> {
    fn map<U>(self, read: impl FnOnce(T) -> U) -> Loaded<U> {
        match self {
            Self::Read(document) => Loaded::Read(read(document)),
            Self::Corrupt { organization_id, error } => Loaded::Corrupt { organization_id, error },
        }
    }

    fn read(&self) -> Result<&T, Verdict> {
        match self {
            Self::Read(document) => Ok(document),
            Self::Corrupt { error, .. } => Err(Verdict::Corrupt(error.clone())),
        }
    }

    fn require(&mut self) -> Result<&mut T, Verdict> {
        match self {
            Self::Read(document) => Ok(document),
            Self::Corrupt { error, .. } => Err(Verdict::Corrupt(error.clone())),
        }
    }
}

impl From<Malformed> for Verdict {
    fn from(Malformed(sentence): Malformed) -> Self {
        Self::Corrupt(sentence)
    }
}

/// Checks whose the document is, before anything else about it, and then that it can be read.
fn readable<'a, T>(
    loaded: &'a mut Loaded<T>,
    organization_id: &OrganizationId,
    owner: impl Fn(&T) -> &OrganizationId,
    what: &str,
) -> Result<&'a mut T, Verdict> {
    let is_foreign = match &*loaded {
        Loaded::Read(document) => owner(document) != organization_id,
        Loaded::Corrupt { organization_id: owner, .. } => owner.as_ref().is_some_and(|owner| owner != organization_id),
    };
    if is_foreign {
        let detail = format!("The {what} does not belong to the organization {organization_id}.");
        return Err(refuse(RejectionReason::WrongOrganization.because(detail), None));
    }
    loaded.require()
}

/// The organization behind the document `by`.
fn require_organization<'a>(
    organizations: &'a HashMap<OrganizationId, Loaded<Organization>>,
    id: &OrganizationId,
    by: impl FnOnce() -> String,
) -> Result<&'a Organization, Verdict> {
    match organizations.get(id) {
        Some(loaded) => loaded.read(),
        None => Err(Verdict::Missing(Missing::Organization { organization_id: id.clone(), by: by() })),
    }
}

fn refuse(rejection: Rejection, account_id: Option<AccountId>) -> Verdict {
    Verdict::Rejected(Rejected { rejection, account_id })
}

fn was_applied(applied: &[CommandKey], key: &CommandKey) -> bool {
    applied.iter().rev().any(|earlier| earlier == key)
}

fn apply(draft: &mut SubscriptionDraft, change: Change, command: Option<CommandRef>, ids: EffectIds) {
    let earlier = std::mem::replace(&mut draft.after, change.subscription);
    draft.before.get_or_insert(earlier);
    draft.after.applied.extend(command.as_ref().map(|command| command.key.clone()));
    draft.added.push(Added {
        command,
        record: SubscriptionRecord { history: change.history, payment_failure: change.payment_failure },
        ids,
        notifications: change.notifications,
        events: change.events,
    });
}

fn give(draft: &mut AccountDraft, given: NoticeGiven, command: Option<CommandRef>, ids: EffectIds, now: DateTime<Utc>) {
    let account = draft.change();
    // Readable, or there would be no notice.
    if let Ok(notices) = &mut account.card_notices {
        notices.retain(|notice| !notice.is_forgotten(now.date_naive()));
        notices.push(given.notice.clone());
    }
    account.applied.extend(command.as_ref().map(|command| command.key.clone()));
    draft.added.push(Added {
        command,
        record: Some(given.notice),
        ids,
        notifications: given.notifications,
        events: vec![],
    });
}

impl<R> Added<R> {
    /// What a command adds that changes nothing: it is remembered, so that it changes nothing should it come again when it
    /// would change something.
    fn nothing(command: &Command, record: R, document: &str) -> Self {
        Self {
            command: Some(command.reference.clone()),
            record,
            ids: EffectIds::of_command(&command.reference, document),
            notifications: vec![],
            events: vec![],
        }
    }
}

#[cfg(test)]
mod tests;
