//! One command on one document: what the contract (§4) says becomes of it.
//!
//! One command, one file. Every rule checks in the contract's order — actor, status, invoice or dates — and the first
//! check that fails is the answer. That the document exists and belongs to the organization is checked by
//! [`unit_of_work`](super::unit_of_work), before anything else is looked at.

mod cancel;
mod card_expiry;
mod confirm;
mod lapse;
mod payment_failure;
mod request;
#[cfg(test)]
mod tests;

use std::fmt;

use chrono::{DateTime, NaiveDate, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use card_expiry::{decide as decide_card_expiry, notice_due};
pub use lapse::{end, expire};

use super::account::{Account, CardNotice};
use super::billing::{End, day_before, end_of_day};
use super::command::{Actor, CommandRef, SubscriptionCommand};
use super::event::{About, CancellationScheduled, Event};
use super::field::{Field, Malformed};
use super::ids::FreeText;
use super::notification::{Facts, Notification, Recipient, Template, notify};
use super::organization::Organization;
use super::subscription::{
    CancellationRecord, Details, HistoryEntry, Initiator, PaymentFailureRecord, Request, RequestDecision, ScheduledEnd,
    Status, Subscription,
};

/// What a decision is made with, besides the document itself.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The instant of the decision, to the millisecond.
    pub now: DateTime<Utc>,
    /// The organization of the document.
    pub organization: &'a Organization,
    /// The account of the document.
    pub account: &'a Account,
}

impl Context<'_> {
    /// Facts for emails about the subscription.
    fn facts(&self, subscription: &Subscription, details: &Details) -> Field<Facts> {
        Facts::about(self.organization, self.account, subscription, details)
    }

    /// An email of this organization.
    fn notify(&self, template: Template, recipient: Recipient, facts: &Facts) -> Field<Notification> {
        notify(template, recipient, self.organization, self.account, facts)
    }

    /// The emails about what a client did: to the organization, and to the client where the organization wants that.
    fn notify_of_client_action(&self, template: Template, facts: &Facts) -> Field<Vec<Notification>> {
        let mut emails = vec![self.notify(template, Recipient::OrganizationContact, facts)?];
        if self.organization.notify_client_of_own_actions.clone()? {
            emails.push(self.notify(template, Recipient::AccountManager, facts)?);
        }
        Ok(emails)
    }

    /// The emails that go to both.
    fn notify_both(&self, template: Template, facts: &Facts) -> Field<Vec<Notification>> {
        [Recipient::OrganizationContact, Recipient::AccountManager]
            .into_iter()
            .map(|recipient| self.notify(template, recipient, facts))
            .collect()
    }
}

/// What a command does.
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "a `Change` is what almost every command gives")]
pub enum Decision<C> {
    /// It changes the document.
    Applied(C),
    /// It asks for what is already so: nothing changes and nobody is told.
    Unchanged,
}

/// A change of a subscription, with everything that it entails.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The subscription after it.
    pub subscription: Subscription,
    /// The entry of the audit trail, where the status or the last day changed.
    pub history: Option<HistoryEntry>,
    /// The failed payment, where there was one.
    pub payment_failure: Option<PaymentFailureRecord>,
    /// The mails.
    pub notifications: Vec<Notification>,
    /// The events.
    pub events: Vec<Event>,
}

/// A notice given about a card of an account, with everything that it entails.
#[derive(Clone, Debug, PartialEq)]
pub struct NoticeGiven {
    /// The record that keeps it from being given again.
    pub notice: CardNotice,
    /// The mails.
    pub notifications: Vec<Notification>,
}

/// Why a command is refused. The refusal is an answer, not a fault: it is published and the command is done with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {detail}")]
pub struct Rejection {
    /// For a machine.
    pub reason: RejectionReason,
    /// For a person: a sentence.
    pub detail: String,
}

/// Why a command is not decided, or not as it asks.
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

/// The reasons of the contract (§4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum RejectionReason {
    /// There is no such subscription.
    SubscriptionNotFound,
    /// There is no such account.
    AccountNotFound,
    /// It belongs to another organization.
    WrongOrganization,
    /// This actor may not do that.
    Forbidden,
    /// This organization wants clients to ask.
    RequestRequired,
    /// It is over already.
    AlreadyEnded,
    /// It is cancelled already.
    AlreadyScheduled,
    /// Nothing was asked.
    NoPendingRequest,
    /// Only the newest invoice can be cancelled.
    NotLastInvoice,
    /// The chosen month's invoice exists already.
    MonthAlreadyInvoiced,
    /// No invoice can have this date.
    NotABillingDate,
    /// It is before the billing date that precedes the next invoice.
    FinalBillingDatePassed,
    /// It expires by itself before that.
    ExpiresEarlier,
    /// A scheduled end is never moved later.
    LaterThanScheduled,
}

impl RejectionReason {
    /// As events write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SubscriptionNotFound => "subscription_not_found",
            Self::AccountNotFound => "account_not_found",
            Self::WrongOrganization => "wrong_organization",
            Self::Forbidden => "forbidden",
            Self::RequestRequired => "request_required",
            Self::AlreadyEnded => "already_ended",
            Self::AlreadyScheduled => "already_scheduled",
            Self::NoPendingRequest => "no_pending_request",
            Self::NotLastInvoice => "not_last_invoice",
            Self::MonthAlreadyInvoiced => "month_already_invoiced",
            Self::NotABillingDate => "not_a_billing_date",
            Self::FinalBillingDatePassed => "final_billing_date_passed",
            Self::ExpiresEarlier => "expires_earlier",
            Self::LaterThanScheduled => "later_than_scheduled",
        }
    }

    /// Whether something still on its way may change the answer: such a command waits in the retry queues before the
    /// refusal stands.
    #[must_use]
    pub fn may_pass(self) -> bool {
        matches!(self, Self::SubscriptionNotFound | Self::AccountNotFound | Self::NoPendingRequest)
    }

    /// Refuses, with a sentence that says why.
    #[must_use]
    pub fn because(self, detail: impl Into<String>) -> Rejection {
        Rejection { reason: self, detail: detail.into() }
    }
}

impl fmt::Display for RejectionReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Decides `data`, which the client or an administrator sent at `sent_at` as `command`, about a subscription of the same
/// organization.
///
/// # Errors
/// The first of the contract's checks that fails, or the first field that cannot be read where it is needed.
pub fn decide(
    subscription: &Subscription,
    command: &CommandRef,
    sent_at: DateTime<Utc>,
    data: &SubscriptionCommand,
    context: &Context<'_>,
) -> Result<Decision<Change>, Obstacle> {
    match data {
        SubscriptionCommand::Cancellation(data) => cancel::decide(subscription, command, data, context),
        SubscriptionCommand::CancellationRequest(data) => {
            request::decide(subscription, command, sent_at, data, context)
        }
        SubscriptionCommand::CancellationConfirmation(data) => confirm::decide(subscription, command, data, context),
        SubscriptionCommand::PaymentFailure(data) => payment_failure::decide(subscription, data, context),
    }
}

/// The name that an actor was given.
fn name_of(actor: &Actor) -> Option<String> {
    match actor {
        Actor::Admin { name, .. } | Actor::Client { name, .. } => name.as_ref().map(|name| name.as_str().to_owned()),
    }
}

/// Checks that an administrator acts.
fn require_admin(actor: &Actor, what: &str) -> Result<(), Rejection> {
    match actor {
        Actor::Admin { .. } => Ok(()),
        Actor::Client { .. } => Err(RejectionReason::Forbidden.because(format!("Only an administrator can {what}."))),
    }
}

/// Checks that the client acts to whose account the subscription belongs.
fn require_owner(actor: &Actor, subscription: &Subscription, what: &str) -> Result<(), Rejection> {
    match actor {
        Actor::Client { account_id, .. } if *account_id == subscription.account_id => Ok(()),
        Actor::Client { account_id, .. } => Err(RejectionReason::Forbidden
            .because(format!("The subscription does not belong to the account {account_id}, so it cannot {what}."))),
        Actor::Admin { .. } => Err(RejectionReason::Forbidden.because(format!("Only the client can {what}."))),
    }
}

/// A subscription that is not over.
#[derive(Clone, Copy)]
struct Live<'a> {
    details: &'a Details,
    /// The first invoice not yet generated.
    next_on: NaiveDate,
}

/// Checks that the subscription is not over.
fn require_live(subscription: &Subscription) -> Result<Live<'_>, Obstacle> {
    let details = subscription
        .details
        .as_ref()
        .filter(|_| subscription.status.is_live())
        .ok_or_else(|| already_ended(subscription))?;
    // A live one without a next invoice is never decided on: see `Subscription::require_next_invoice`.
    let next_on = details.next_on.clone()?.ok_or_else(|| already_ended(subscription))?;
    Ok(Live { details, next_on })
}

/// The rejection of what needs a subscription that is not cancelled yet.
fn already_scheduled(details: &Details) -> Rejection {
    RejectionReason::AlreadyScheduled.because(match &details.end {
        Ok(Some(end)) => format!("The subscription is cancelled already; its last day of access is {}.", end.ends_on),
        _ => "The subscription is cancelled already.".to_owned(),
    })
}

/// The last day of access, and the last invoice of those that exist or will.
#[derive(Clone, Copy)]
struct Ending {
    ends_on: NaiveDate,
    /// Absent where there has never been an invoice and will be none.
    final_billing_on: Option<NaiveDate>,
}

/// The ending where no month and no date was chosen: the period already invoiced is the last.
fn ending_before(details: &Details, next_on: NaiveDate) -> Field<Ending> {
    Ok(Ending { ends_on: day_before(next_on), final_billing_on: newest_invoice_date(details, next_on)? })
}

/// The ending that the calendar computed. A last invoice before the next one exists already: it is the newest that was made,
/// whatever the calendar says, and there may be none.
fn ending(details: &Details, computed: End, next_on: NaiveDate) -> Field<Ending> {
    let End { ends_on, final_billing_on } = computed;
    let final_billing_on =
        if final_billing_on >= next_on { Some(final_billing_on) } else { newest_invoice_date(details, next_on)? };
    Ok(Ending { ends_on, final_billing_on })
}

/// The date of the newest invoice that exists. The calendar is asked only where the document does not say.
fn newest_invoice_date(details: &Details, next_on: NaiveDate) -> Field<Option<NaiveDate>> {
    if let Some(last_on) = details.last_on.clone()? {
        return Ok(Some(last_on));
    }
    match details.last_invoice_id.clone()? {
        Some(_) => Ok(Some(details.billing_day.clone()?.date_before(next_on))),
        None => Ok(None),
    }
}

/// Rejects an end that would come after the natural end.
fn require_before_natural_end(details: &Details, ends_on: NaiveDate) -> Result<(), Obstacle> {
    let Some(expires_on) = details.expires_on.clone()? else { return Ok(()) };
    let natural_end = details.billing_day.clone()?.natural_end(expires_on);
    if ends_on > natural_end {
        return Err(RejectionReason::ExpiresEarlier
            .because(format!("The subscription expires by itself: its last day is {natural_end}, before {ends_on}."))
            .into());
    }
    Ok(())
}

/// The request that is still open.
fn open_request(subscription: &Subscription, details: &Details) -> Field<Option<Request>> {
    let request = match subscription.status {
        Status::CancellationRequested => details.request.clone()?,
        // In any other status it is closed, unless another system wrote it.
        _ => details.request.clone().unwrap_or_default(),
    };
    Ok(request.filter(|request| request.closed.is_none()))
}

fn already_ended(subscription: &Subscription) -> Rejection {
    let status = subscription.status.as_str();
    RejectionReason::AlreadyEnded.because(match subscription.ended_on {
        Some(day) => format!("The subscription is over: {status} on {day}."),
        None => format!("The subscription is over: {status}."),
    })
}

/// Gives a subscription its last day, and tells everybody.
struct Schedule<'a> {
    command: &'a CommandRef,
    ending: Ending,
    record: CancellationRecord,
    /// What becomes of a request that is still open.
    request_decision: RequestDecision,
    /// What the administrator says about that request.
    note: Option<FreeText>,
    template: Template,
}

impl Schedule<'_> {
    fn change(self, subscription: &Subscription, details: &Details, context: &Context<'_>) -> Field<Change> {
        let previous_ends_on = details.end.clone()?.map(|end| end.ends_on);
        let reason = self.record.reason.clone();
        let Ending { ends_on, final_billing_on } = self.ending;
        let ends_at = end_of_day(ends_on, context.organization.timezone.clone()?);
        let open = open_request(subscription, details)?;

        let facts = Facts {
            actor: name_of(&self.record.actor),
            ends_on: Some(ends_on),
            previous_ends_on,
            final_billing_on,
            reason: reason.as_ref().map(|reason| reason.as_str().to_owned()),
            note: self.note.as_ref().map(|note| note.as_str().to_owned()),
            requested_on: open
                .as_ref()
                .map(|request| context.organization.date_at(request.requested_at))
                .transpose()?,
            ..context.facts(subscription, details)?
        };
        let notifications = match self.record.by {
            Initiator::Admin => vec![context.notify(self.template, Recipient::AccountManager, &facts)?],
            Initiator::Client => context.notify_of_client_action(self.template, &facts)?,
        };
        let event = Event::CancellationScheduled(about(
            subscription,
            CancellationScheduled {
                by: self.record.by,
                via: self.record.via,
                ends_on,
                ends_at,
                final_billing_on,
                previous_ends_on,
                reason: reason.clone(),
            },
        ));
        let history = HistoryEntry {
            at: context.now,
            command: Some(self.command.clone()),
            actor: Some(self.record.actor.clone()),
            from: subscription.status,
            to: Status::CancellationScheduled,
            ends_on: Some(ends_on),
            via: Some(self.record.via),
            reason,
            note: self.note.clone(),
        };

        let mut details = details.clone();
        if let Some(request) = open {
            details.request = Ok(Some(request.close(context.now, self.request_decision, self.note)));
        }
        details.end = Ok(Some(ScheduledEnd { ends_on, ends_at, final_billing_on }));
        details.cancellation = Some(self.record);
        Ok(Change {
            subscription: Subscription {
                status: Status::CancellationScheduled,
                details: Some(details),
                ..subscription.clone()
            },
            history: Some(history),
            payment_failure: None,
            notifications,
            events: vec![event],
        })
    }
}

/// An event's data, with the subscription that it is about.
fn about<T>(subscription: &Subscription, data: T) -> About<T> {
    About {
        organization_id: subscription.organization_id.clone(),
        subscription_id: subscription.id.clone(),
        account_id: subscription.account_id.clone(),
        data,
    }
}
