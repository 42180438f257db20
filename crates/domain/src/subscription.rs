//! What the rules need to know of a subscription, and the entries of its audit trail.

use chrono::{DateTime, NaiveDate, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::billing::{BillingDay, BillingMode, YearMonth};
use super::command::{Actor, Amount, CommandKey, CommandRef, PaymentCard};
use super::field::{Field, Malformed, fault};
use super::ids::{AccountId, FreeText, InvoiceId, OrganizationId, SubscriptionId};

/// Where a subscription stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Status {
    /// Runs and renews. A document without a status is active.
    #[default]
    Active,
    /// Runs; the client has asked to end it and no one has decided yet.
    CancellationRequested,
    /// Runs until `ends_on`, for good.
    CancellationScheduled,
    /// Over: cancelled.
    Cancelled,
    /// Over: reached its natural end.
    Expired,
    /// Bought by mistake; only a tombstone is left.
    Removed,
}

impl Status {
    /// Whether the client still has access.
    #[must_use]
    pub fn is_live(self) -> bool {
        matches!(self, Self::Active | Self::CancellationRequested | Self::CancellationScheduled)
    }

    /// As documents and messages write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::CancellationRequested => "cancellation_requested",
            Self::CancellationScheduled => "cancellation_scheduled",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
            Self::Removed => "removed",
        }
    }
}

/// A subscription.
#[derive(Clone, Debug, PartialEq)]
pub struct Subscription {
    /// `_id`
    pub id: SubscriptionId,
    /// The organization that sells it.
    pub organization_id: OrganizationId,
    /// The account that pays it.
    pub account_id: AccountId,
    /// The document's version; absent in one that no one has changed yet.
    pub version: Option<i64>,
    /// Where it stands.
    pub status: Status,
    /// How many entries its audit trail has; absent where it has none yet.
    pub history_length: Option<u32>,
    /// The newest commands that were applied, oldest first.
    pub applied: Vec<CommandKey>,
    /// Everything else; gone once it is removed.
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

    /// Checks that a live one has a next invoice: without it, no command can be decided (contract §4).
    ///
    /// # Errors
    /// When it has none, or it cannot be read.
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

/// All that a removed subscription has no more.
#[derive(Clone, Debug, PartialEq)]
pub struct Details {
    /// The name of who takes part.
    pub participant: Field<String>,
    /// The name of what was bought.
    pub plan: Field<String>,
    /// Whose day it is billed on (`billing.mode`). It matters only where a month of cancellation is chosen.
    pub billing_mode: Field<BillingMode>,
    /// On which day of the month it is billed (`billing.day`).
    pub billing_day: Field<BillingDay>,
    /// The first invoice not yet generated (`billing.next_on`). Every live subscription has one.
    pub next_on: Field<Option<NaiveDate>>,
    /// The date of the newest invoice (`billing.last_on`).
    pub last_on: Field<Option<NaiveDate>>,
    /// The newest invoice (`billing.last_invoice_id`): the only one from which a subscription bought by mistake can be removed.
    pub last_invoice_id: Field<Option<InvoiceId>>,
    /// From which day on it is not renewed, where the plan has an end.
    pub expires_on: Field<Option<NaiveDate>>,
    /// What the participant is enrolled in.
    pub activities: Field<Vec<NamedRef>>,
    /// The last day of access and the last invoice, once it is scheduled to end.
    pub end: Field<Option<ScheduledEnd>>,
    /// The newest request of the client.
    pub request: Field<Option<Request>>,
    /// The cancellation, once there is one. No rule reads it.
    pub cancellation: Option<CancellationRecord>,
}

/// Something with an id and a name: an activity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Named")]
pub struct NamedRef {
    /// Its id upstream.
    pub id: String,
    /// What people call it.
    pub name: String,
}

/// When a subscription ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScheduledEnd {
    /// The last day of access, inclusive, in the organization's calendar.
    pub ends_on: NaiveDate,
    /// The instant at which that day is over there.
    pub ends_at: DateTime<Utc>,
    /// The date of the last invoice; absent where there has never been one.
    pub final_billing_on: Option<NaiveDate>,
}

/// A client's request to cancel (`subscriptions.cancellation_request`).
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// When the client sent it.
    pub requested_at: DateTime<Utc>,
    /// Who asked, as far as that can be read. No rule needs it.
    pub actor: Option<Actor>,
    /// In their words.
    pub reason: Option<FreeText>,
    /// How it was closed; absent: it is open.
    pub closed: Option<Closed>,
}

impl Request {
    /// It, closed.
    #[must_use]
    pub fn close(self, decided_at: DateTime<Utc>, decision: RequestDecision, note: Option<FreeText>) -> Self {
        Self { closed: Some(Closed { decided_at, decision, note }), ..self }
    }
}

/// How a request was closed.
#[derive(Clone, Debug, PartialEq)]
pub struct Closed {
    /// When.
    pub decided_at: DateTime<Utc>,
    /// By what.
    pub decision: RequestDecision,
    /// What the administrator said about it.
    pub note: Option<FreeText>,
}

/// What became of a request; an administrator's decision is written as the command writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum RequestDecision {
    /// An administrator accepted it.
    Accept,
    /// An administrator declined it.
    Decline,
    /// The subscription was cancelled in another way first.
    Superseded,
}

/// Whose decision a cancellation was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum Initiator {
    /// The organization's.
    Admin,
    /// The client's.
    Client,
}

/// How a cancellation came.
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
    /// Whose decision.
    pub by: Initiator,
    /// How it came.
    pub via: Channel,
    /// When it was decided; of the newest decision where the end was moved.
    pub scheduled_at: DateTime<Utc>,
    /// Who acted.
    pub actor: Actor,
    /// In their words.
    pub reason: Option<FreeText>,
    /// The month that was chosen.
    pub month: Option<YearMonth>,
}

/// One change, for the audit trail (`subscriptions.history`).
#[derive(Clone, Debug, PartialEq)]
pub struct HistoryEntry {
    /// When it was decided.
    pub at: DateTime<Utc>,
    /// The command that caused it; absent where time did.
    pub command: Option<CommandRef>,
    /// Who acted.
    pub actor: Option<Actor>,
    /// The status before.
    pub from: Status,
    /// The status after.
    pub to: Status,
    /// The last day of access after it.
    pub ends_on: Option<NaiveDate>,
    /// How a cancellation came.
    pub via: Option<Channel>,
    /// Why, in the words of who acted.
    pub reason: Option<FreeText>,
    /// What the administrator says about a request.
    pub note: Option<FreeText>,
}

/// One failed payment (`subscriptions.payment_failures`).
#[derive(Clone, Debug, PartialEq)]
pub struct PaymentFailureRecord {
    /// When it was recorded.
    pub at: DateTime<Utc>,
    /// The invoice that is not paid.
    pub invoice_id: InvoiceId,
    /// What is due.
    pub amount: Amount,
    /// The card that was refused.
    pub card: PaymentCard,
    /// Which try it was, from 1.
    pub attempt: u32,
    /// What the payment system says.
    pub failure_message: Option<FreeText>,
    /// The day of the next try; absent: there is none.
    pub next_attempt_on: Option<NaiveDate>,
}
