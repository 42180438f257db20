//! The documents of a batch: as they were loaded, and what its tasks do to them.

use std::convert::Infallible;

use super::TaskOutcome;
use crate::account::{Account, CardNotice};
use crate::command::Command;
use crate::command_ref::CommandRef;
use crate::effect_id::EffectIds;
use crate::event::Event;
use crate::ids::OrganizationId;
use crate::notification::Notification;
use crate::organization::Organization;
use crate::subscription::{Subscription, SubscriptionRecord};
use crate::trace_context::TraceContext;

/// A document as the database holds it.
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "almost every document can be read")]
pub enum LoadedDocument<T> {
    Read(T),
    /// It cannot be read as a whole. Nothing is written to it.
    Corrupt {
        /// The organization that owns it, if that field can be read.
        organization_id: Option<OrganizationId>,
        /// The field and the reason.
        error: String,
    },
}

/// A document, and what the tasks of the batch have done to it so far.
#[derive(Clone, Debug, PartialEq)]
pub struct Tracked<T, R> {
    /// As it was loaded, once a task has changed it.
    pub(super) before: Option<T>,
    /// As it is now.
    pub after: T,
    /// New entries of its lists, oldest first.
    pub records: Vec<R>,
    /// What the tasks cause outside the document, oldest first.
    pub effects: Vec<Effects>,
}

/// A document that the batch has changed and that has to be written.
#[derive(Debug)]
pub struct ChangedDocument<T, R> {
    /// As it was loaded.
    pub before: T,
    /// As it will be.
    pub after: T,
    /// New entries of its lists, oldest first.
    pub records: Vec<R>,
    /// What the tasks cause outside the document, oldest first.
    pub effects: Vec<Effects>,
}

/// The documents that a batch has changed.
#[derive(Debug)]
pub struct ChangedDocuments {
    pub subscriptions: Vec<ChangedSubscription>,
    pub accounts: Vec<ChangedAccount>,
    pub organizations: Vec<ChangedOrganization>,
}

/// What one task causes outside its document.
#[derive(Clone, Debug, PartialEq)]
pub struct Effects {
    /// The command; absent where the calendar caused them.
    pub command: Option<CommandRef>,
    /// The ids of the emails and events. A repeat of the task gives the same ids.
    pub ids: EffectIds,
    /// The trace that they belong to.
    pub trace: TraceContext,
    pub notifications: Vec<Notification>,
    pub events: Vec<Event>,
}

pub type TrackedSubscription = Tracked<Subscription, SubscriptionRecord>;
pub type TrackedAccount = Tracked<Account, CardNotice>;
pub type TrackedOrganization = Tracked<Organization, Infallible>;
pub type ChangedSubscription = ChangedDocument<Subscription, SubscriptionRecord>;
pub type ChangedAccount = ChangedDocument<Account, CardNotice>;
pub type ChangedOrganization = ChangedDocument<Organization, Infallible>;

impl<T> LoadedDocument<T> {
    pub(super) fn map<U>(self, read: impl FnOnce(T) -> U) -> LoadedDocument<U> {
        match self {
            Self::Read(document) => LoadedDocument::Read(read(document)),
            Self::Corrupt { organization_id, error } => LoadedDocument::Corrupt { organization_id, error },
        }
    }

    pub(super) fn read(&self) -> Result<&T, TaskOutcome> {
        match self {
            Self::Read(document) => Ok(document),
            Self::Corrupt { error, .. } => Err(TaskOutcome::Corrupt(error.clone())),
        }
    }

    pub(super) fn read_mut(&mut self) -> Result<&mut T, TaskOutcome> {
        match self {
            Self::Read(document) => Ok(document),
            Self::Corrupt { error, .. } => Err(TaskOutcome::Corrupt(error.clone())),
        }
    }
}

impl<T: Clone, R> Tracked<T, R> {
    pub(super) fn new(document: T) -> Self {
        Self { before: None, after: document, records: Vec::new(), effects: Vec::new() }
    }

    /// As it was loaded.
    #[must_use]
    pub fn before(&self) -> &T {
        self.before.as_ref().unwrap_or(&self.after)
    }

    #[must_use]
    pub fn is_changed(&self) -> bool {
        self.before.is_some()
    }

    /// The current document, to be changed.
    pub(super) fn change(&mut self) -> &mut T {
        self.before.get_or_insert_with(|| self.after.clone());
        &mut self.after
    }

    /// The version that the document has once the batch is written. `read` is the version that it was read with.
    pub(super) fn version(&self, read: Option<i64>) -> i64 {
        if self.is_changed() { next_version(read) } else { read.unwrap_or(0) }
    }

    pub(super) fn into_changed(self) -> Option<ChangedDocument<T, R>> {
        let Self { before, after, records, effects } = self;
        before.map(|before| ChangedDocument { before, after, records, effects })
    }
}

impl Effects {
    pub(super) fn of(
        command: Option<&Command>,
        ids: EffectIds,
        notifications: Vec<Notification>,
        events: Vec<Event>,
    ) -> Self {
        Self {
            command: command.map(|command| command.reference.clone()),
            ids,
            trace: command.map(|command| command.trace.clone()).unwrap_or_default(),
            notifications,
            events,
        }
    }

    /// The effects of a command that changes nothing. It is remembered, so that it also changes nothing if it is redelivered when
    /// it would.
    pub(super) fn none(command: &Command) -> Self {
        Self::of(Some(command), EffectIds::of_command(&command.reference, command.target()), vec![], vec![])
    }
}

/// The version after a write. Every writer increments it.
#[must_use]
pub fn next_version(version: Option<i64>) -> i64 {
    version.unwrap_or(0).saturating_add(1)
}
