//! What rules decide with ([`Context`]) and what they decide ([`Decision`], [`Change`], [`NoticeGiven`]). The rules themselves are in
//! [`command`](crate::command) and [`schedule`](crate::schedule).

use chrono::{DateTime, NaiveDate, Utc};

use crate::account::{Account, CardNotice};
use crate::actor::Actor;
use crate::command_ref::CommandRef;
use crate::event::Event;
use crate::facts::Facts;
use crate::field::{Field, Malformed};
use crate::ids::FreeText;
use crate::notification::{Notification, Recipient, Template, notify};
use crate::organization::Organization;
use crate::rejection::Rejection;
use crate::subscription::{
    Channel, Details, HistoryEntry, PaymentFailureRecord, Status, Subscription, SubscriptionRecord,
};

/// What a rule decides with, besides the document itself.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The instant of the decision, to the millisecond.
    pub now: DateTime<Utc>,
    /// The organization of the document.
    pub organization: &'a Organization,
    /// The account of the document.
    pub account: &'a Account,
}

/// What a command does.
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "almost every decision is a `Change`")]
pub enum Decision<C> {
    /// It changes the document.
    Applied(C),
    /// It asks for the current state, so it has no effect.
    Unchanged,
}

/// Why a command is not applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// A rule rejects it.
    Rejected(Rejection),
    /// A field that a rule needs cannot be read.
    Malformed(Malformed),
}

impl From<Rejection> for Obstacle {
    fn from(rejection: Rejection) -> Self {
        Self::Rejected(rejection)
    }
}

impl From<Malformed> for Obstacle {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed)
    }
}

/// A change of a subscription, with its record and its effects.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The subscription after the change.
    pub subscription: Subscription,
    pub record: SubscriptionRecord,
    pub notifications: Vec<Notification>,
    pub events: Vec<Event>,
}

impl Change {
    /// A change to `status` (which may be the current one), recorded in `history`. The caller then adds who caused it, what the entry
    /// says, and the effects.
    #[must_use]
    pub fn to(status: Status, subscription: &Subscription, details: Option<Details>, now: DateTime<Utc>) -> Self {
        let entry = HistoryEntry {
            at: now,
            command: None,
            actor: None,
            from: subscription.status,
            to: status,
            ends_on: None,
            via: None,
            reason: None,
            note: None,
        };
        Self {
            subscription: Subscription { status, details, ..subscription.clone() },
            record: SubscriptionRecord::History(entry),
            notifications: vec![],
            events: vec![],
        }
    }

    /// A failed payment: recorded in `payment_failures`, and nothing else changes.
    #[must_use]
    pub fn record_failure(failure: PaymentFailureRecord, subscription: &Subscription) -> Self {
        Self {
            subscription: subscription.clone(),
            record: SubscriptionRecord::PaymentFailure(failure),
            notifications: vec![],
            events: vec![],
        }
    }

    #[must_use]
    pub fn by(self, actor: &Actor, command: &CommandRef) -> Self {
        self.entry(|entry| {
            entry.actor = Some(actor.clone());
            entry.command = Some(command.clone());
        })
    }

    #[must_use]
    pub fn via(self, channel: Channel) -> Self {
        self.entry(|entry| entry.via = Some(channel))
    }

    /// The last day of access after the change.
    #[must_use]
    pub fn ends_on(self, day: NaiveDate) -> Self {
        self.entry(|entry| entry.ends_on = Some(day))
    }

    #[must_use]
    pub fn reason(self, reason: Option<FreeText>) -> Self {
        self.entry(|entry| entry.reason = reason)
    }

    #[must_use]
    pub fn note(self, note: Option<FreeText>) -> Self {
        self.entry(|entry| entry.note = note)
    }

    /// The day on which the subscription ended.
    #[must_use]
    pub fn ended_on(mut self, day: NaiveDate) -> Self {
        self.subscription.ended_on = Some(day);
        self
    }

    #[must_use]
    pub fn notify(mut self, emails: impl IntoIterator<Item = Notification>) -> Self {
        self.notifications.extend(emails);
        self
    }

    #[must_use]
    pub fn event(mut self, event: Event) -> Self {
        self.events.push(event);
        self
    }

    fn entry(mut self, set: impl FnOnce(&mut HistoryEntry)) -> Self {
        if let SubscriptionRecord::History(entry) = &mut self.record {
            set(entry);
        }
        self
    }
}

/// A notice about a card of an account, with its emails.
#[derive(Clone, Debug, PartialEq)]
pub struct NoticeGiven {
    /// The record that prevents a second notice.
    pub notice: CardNotice,
    pub notifications: Vec<Notification>,
    pub event: Event,
}

impl Context<'_> {
    /// The facts of every email about the subscription.
    ///
    /// # Errors
    /// When a field that emails need cannot be read.
    pub fn facts(&self, subscription: &Subscription, details: &Details) -> Field<Facts> {
        Facts::about(self.organization, self.account, subscription, details)
    }

    /// An email of the organization.
    ///
    /// # Errors
    /// When a field that emails need cannot be read.
    pub fn email(&self, template: Template, recipient: Recipient, facts: &Facts) -> Field<Notification> {
        notify(template, recipient, self.organization, self.account, facts)
    }

    /// The emails about something that a client did: to the organization, and to the client if the organization wants that.
    ///
    /// # Errors
    /// When a field that emails need cannot be read.
    pub fn emails_about_client_action(&self, template: Template, facts: &Facts) -> Field<Vec<Notification>> {
        let mut emails = vec![self.email(template, Recipient::OrganizationContact, facts)?];
        if self.organization.notify_client_of_own_actions.clone()? {
            emails.push(self.email(template, Recipient::AccountManager, facts)?);
        }
        Ok(emails)
    }

    /// The emails to the organization and to the client.
    ///
    /// # Errors
    /// When a field that emails need cannot be read.
    pub fn emails_to_both(&self, template: Template, facts: &Facts) -> Field<Vec<Notification>> {
        [Recipient::OrganizationContact, Recipient::AccountManager]
            .into_iter()
            .map(|recipient| self.email(template, recipient, facts))
            .collect()
    }
}
