//! A subscription, as far as the rules need it, and the entries of its lists.

use chrono::{DateTime, NaiveDate, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::actor::Actor;
use crate::billing::{BillingDay, BillingMode};
use crate::calendar::YearMonth;
use crate::card::PaymentCard;
use crate::command_ref::{AppliedCommand, CommandRef};
use crate::failure_code::FailureCode;
use crate::field::{Field, Malformed, fault};
use crate::ids::{AccountId, FreeText, InvoiceId, OrganizationId, SubscriptionId};
use crate::money::Amount;

/// The status of a subscription.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema, strum::IntoStaticStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
#[schemars(inline)]
pub enum Status {
    /// It renews every month. A document without a status is active.
    #[default]
    Active,
    /// It renews every month, but the client has asked to cancel and no administrator has decided yet.
    CancellationRequested,
    /// It runs until `ends_on`.
    CancellationScheduled,
    /// It was cancelled and has ended.
    Cancelled,
    /// It has reached its natural end.
    Expired,
    /// It was bought by mistake. Only a tombstone remains.
    Removed,
}

impl Status {
    /// Whether the client still has access.
    #[must_use]
    pub fn is_live(self) -> bool {
        matches!(self, Self::Active | Self::CancellationRequested | Self::CancellationScheduled)
    }

    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// A subscription.
#[derive(Clone, Debug, PartialEq)]
pub struct Subscription {
    /// `_id`
    pub id: SubscriptionId,
    /// The organization that sells it.
    pub organization_id: OrganizationId,
    /// The account that pays for it.
    pub account_id: AccountId,
    /// The document's version; absent until Offramp has changed it.
    pub version: Option<i64>,
    pub status: Status,
    /// The number of entries in its audit trail; absent if it has none yet.
    pub history_length: Option<u32>,
    /// The newest commands that were applied, oldest first.
    pub applied: Vec<AppliedCommand>,
    /// Everything that a removed subscription no longer has.
    pub details: Option<Details>,
    /// The day on which it ended.
    pub ended_on: Option<NaiveDate>,
}

impl Subscription {
    /// The fields that cannot be read.
    #[must_use]
    pub fn faults(&self) -> Vec<&Malformed> {
        let Some(it) = &self.details else { return Vec::new() };
        let names = [fault(&it.participant), fault(&it.plan)];
        let billing = [fault(&it.billing_mode), fault(&it.billing_day), fault(&it.next_on)];
        let invoices = [fault(&it.last_on), fault(&it.last_invoice_id)];
        let rest = [fault(&it.expires_on), fault(&it.activities), fault(&it.end), fault(&it.request)];
        names.into_iter().chain(billing).chain(invoices).chain(rest).flatten().collect()
    }

    /// Requires that a subscription that has not ended has a next invoice. Without it, no command can be decided.
    ///
    /// # Errors
    /// When it is missing or cannot be read.
    pub fn require_next_invoice(&self) -> Field<()> {
        match &self.details {
            Some(details) if self.status.is_live() && details.next_on.clone()?.is_none() => Err(Malformed(format!(
                "subscriptions {}: billing.next_on: missing, though the subscription is {}",
                self.id,
                self.status.as_str()
            ))),
            _ => Ok(()),
        }
    }
}

/// The part of a subscription that is dropped when it is removed.
#[derive(Clone, Debug, PartialEq)]
pub struct Details {
    /// The name of the participant.
    pub participant: Field<String>,
    /// The name of the plan.
    pub plan: Field<String>,
    /// How the billing day was chosen (`billing.mode`). It matters only if a month of cancellation is chosen.
    pub billing_mode: Field<BillingMode>,
    /// The day of the month on which it is billed (`billing.day`).
    pub billing_day: Field<BillingDay>,
    /// The date of the first invoice that does not exist yet (`billing.next_on`). Every subscription that has not ended has one.
    pub next_on: Field<Option<NaiveDate>>,
    /// The date of the newest invoice (`billing.last_on`).
    pub last_on: Field<Option<NaiveDate>>,
    /// The newest invoice (`billing.last_invoice_id`): the only one from which a subscription bought by mistake can be removed.
    pub last_invoice_id: Field<Option<InvoiceId>>,
    /// The day from which on it is not renewed, if the plan has an end.
    pub expires_on: Field<Option<NaiveDate>>,
    /// The activities in which the participant is enrolled.
    pub activities: Field<Vec<NamedRef>>,
    /// The last day of access and the last invoice, once it is scheduled to end.
    pub end: Field<Option<ScheduledEnd>>,
    /// The client's newest cancellation request.
    pub request: Field<Option<Request>>,
    /// The cancellation, if there is one. No rule reads it.
    pub cancellation: Option<CancellationRecord>,
}

/// Something with an id and a name: an activity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Named")]
pub struct NamedRef {
    /// Its id in the upstream system.
    pub id: String,
    /// Its name.
    pub name: String,
}

/// When a subscription ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScheduledEnd {
    /// The last day of access, inclusive, in the organization's calendar.
    pub ends_on: NaiveDate,
    /// The instant at which that day ends in the organization's time zone.
    pub ends_at: DateTime<Utc>,
    /// The date of the last invoice; absent if there was never one.
    pub final_billing_on: Option<NaiveDate>,
}

/// A client's request to cancel (`subscriptions.cancellation_request`).
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// When the client sent it.
    pub requested_at: DateTime<Utc>,
    /// Who sent it, if that can be read. No rule reads it.
    pub actor: Option<Actor>,
    /// The reason they gave.
    pub reason: Option<FreeText>,
    /// How it was closed; absent while it is open.
    pub closed: Option<Closed>,
}

impl Request {
    #[must_use]
    pub fn close(self, decided_at: DateTime<Utc>, decision: RequestDecision, note: Option<FreeText>) -> Self {
        Self { closed: Some(Closed { decided_at, decision, note }), ..self }
    }
}

/// How a request was closed.
#[derive(Clone, Debug, PartialEq)]
pub struct Closed {
    pub decided_at: DateTime<Utc>,
    pub decision: RequestDecision,
    /// The administrator's note.
    pub note: Option<FreeText>,
}

/// How a request was closed. The names of the first two are those of `subscription.cancellation-confirmation`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum RequestDecision {
    /// An administrator accepted it.
    Accept,
    /// An administrator declined it.
    Decline,
    /// The subscription was cancelled in another way, or expired, first.
    Superseded,
}

/// Who decided a cancellation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum Initiator {
    /// An administrator of the organization.
    Admin,
    /// The client.
    Client,
}

/// How a cancellation was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum Channel {
    /// The purchases tab.
    Purchases,
    /// The newest invoice.
    Invoice,
    /// The client's account.
    Account,
    /// A request that was accepted.
    Request,
}

/// The cancellation of a subscription (`subscriptions.cancellation`).
#[derive(Clone, Debug, PartialEq)]
pub struct CancellationRecord {
    pub by: Initiator,
    pub via: Channel,
    /// When it was decided. If the end was moved, the time of the newest decision.
    pub scheduled_at: DateTime<Utc>,
    pub actor: Actor,
    /// The reason they gave.
    pub reason: Option<FreeText>,
    /// The month of cancellation, if one was chosen.
    pub month: Option<YearMonth>,
}

/// An entry of the audit trail (`subscriptions.history`): a change of the status or of the last day.
#[derive(Clone, Debug, PartialEq)]
pub struct HistoryEntry {
    pub at: DateTime<Utc>,
    /// The command that caused it; absent if the calendar did.
    pub command: Option<CommandRef>,
    pub actor: Option<Actor>,
    pub from: Status,
    pub to: Status,
    /// The last day of access after it.
    pub ends_on: Option<NaiveDate>,
    /// How a cancellation was made.
    pub via: Option<Channel>,
    /// The reason given by the actor.
    pub reason: Option<FreeText>,
    /// The administrator's note about the request.
    pub note: Option<FreeText>,
}

/// A failed payment (`subscriptions.payment_failures`).
#[derive(Clone, Debug, PartialEq)]
pub struct PaymentFailureRecord {
    /// When it was recorded.
    pub at: DateTime<Utc>,
    /// The command that reported it.
    pub command: CommandRef,
    pub invoice_id: InvoiceId,
    /// The amount due.
    pub amount: Amount,
    /// The card that was refused.
    pub card: PaymentCard,
    /// The number of the attempt, from 1.
    pub attempt: u32,
    /// The payment system's message.
    pub failure_message: Option<FreeText>,
    /// Its code, if it is one of the known ones.
    pub failure_code: Option<FailureCode>,
    /// The day of the next attempt; absent if there is none.
    pub next_attempt_on: Option<NaiveDate>,
}

/// A new entry of one of a subscription's lists.
#[derive(Clone, Debug, PartialEq)]
pub enum SubscriptionRecord {
    /// An entry of `history`.
    History(HistoryEntry),
    /// An entry of `payment_failures`.
    PaymentFailure(PaymentFailureRecord),
}

impl SubscriptionRecord {
    #[must_use]
    pub fn history(&self) -> Option<&HistoryEntry> {
        match self {
            Self::History(entry) => Some(entry),
            Self::PaymentFailure(_) => None,
        }
    }

    #[must_use]
    pub fn payment_failure(&self) -> Option<&PaymentFailureRecord> {
        match self {
            Self::PaymentFailure(failure) => Some(failure),
            Self::History(_) => None,
        }
    }
}
