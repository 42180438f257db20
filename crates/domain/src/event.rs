//! The events that Offramp publishes: their types and their data. The envelope is in [`cloud_event`](crate::cloud_event).

use chrono::{DateTime, NaiveDate, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::calendar::instant;
use crate::card::Card;
use crate::command_ref::CommandRef;
use crate::ids::{AccountId, FreeText, InvoiceId, OrganizationId, SubscriptionId};
use crate::notification::{Recipient, Template};
use crate::rejection::RejectionReason;
use crate::subscription::{Channel, Initiator, NamedRef, Subscription};

/// Something that happened to a subscription or an account. The names of the variants are the types of the events.
#[derive(Clone, Debug, PartialEq, strum::IntoStaticStr)]
pub enum Event {
    /// A client asked to cancel.
    #[strum(serialize = "subscription.cancellation-requested")]
    CancellationRequested(About<CancellationRequested>),
    /// A subscription got a last day, or an earlier one.
    #[strum(serialize = "subscription.cancellation-scheduled")]
    CancellationScheduled(About<CancellationScheduled>),
    /// An administrator declined a client's request.
    #[strum(serialize = "subscription.cancellation-declined")]
    CancellationDeclined(About<CancellationDeclined>),
    /// The last day of access is over.
    #[strum(serialize = "subscription.ended")]
    Ended(About<Ended>),
    /// A subscription bought by mistake was removed.
    #[strum(serialize = "subscription.removed")]
    Removed(About<Removed>),
    /// An automatic payment failed; it is recorded.
    #[strum(serialize = "payment.failure-recorded")]
    PaymentFailureRecorded(About<PaymentFailureRecorded>),
    /// A saved card is about to expire, or has expired, and both sides are told.
    #[strum(serialize = "card.expiring")]
    CardExpiring(CardExpiring),
}

impl Event {
    /// The event's `type`, which is also its routing key.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        self.into()
    }

    /// The id of the subscription that the event is about, or of the account.
    #[must_use]
    pub fn subject(&self) -> &str {
        match self {
            Self::CancellationRequested(about) => about.subscription_id.as_str(),
            Self::CancellationScheduled(about) => about.subscription_id.as_str(),
            Self::CancellationDeclined(about) => about.subscription_id.as_str(),
            Self::Ended(about) => about.subscription_id.as_str(),
            Self::Removed(about) => about.subscription_id.as_str(),
            Self::PaymentFailureRecorded(about) => about.subscription_id.as_str(),
            Self::CardExpiring(event) => event.account_id.as_str(),
        }
    }

    /// The event's data, as its envelope carries it.
    #[must_use]
    pub fn data(&self) -> serde_json::Value {
        match self {
            Self::CancellationRequested(about) => to_json(about),
            Self::CancellationScheduled(about) => to_json(about),
            Self::CancellationDeclined(about) => to_json(about),
            Self::Ended(about) => to_json(about),
            Self::Removed(about) => to_json(about),
            Self::PaymentFailureRecorded(about) => to_json(about),
            Self::CardExpiring(event) => to_json(event),
        }
    }
}

#[expect(
    clippy::expect_used,
    reason = "the data of events is structs of texts, dates and booleans: they always serialize"
)]
pub(crate) fn to_json(data: &impl Serialize) -> serde_json::Value {
    serde_json::to_value(data).expect("plain data serializes")
}

/// The subscription that an event is about, and what the event says.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct About<T> {
    /// The organization that sells it.
    pub organization_id: OrganizationId,
    /// The subscription.
    pub subscription_id: SubscriptionId,
    /// The account that pays for it.
    pub account_id: AccountId,
    /// What the event says.
    #[serde(flatten)]
    pub data: T,
}

impl<T> About<T> {
    #[must_use]
    pub fn new(subscription: &Subscription, data: T) -> Self {
        Self {
            organization_id: subscription.organization_id.clone(),
            subscription_id: subscription.id.clone(),
            account_id: subscription.account_id.clone(),
            data,
        }
    }
}

/// Data of `subscription.cancellation-requested`.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct CancellationRequested {
    /// When the client sent it.
    #[serde(with = "instant")]
    #[schemars(with = "DateTime<Utc>")]
    pub requested_at: DateTime<Utc>,
    /// Their reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<FreeText>,
}

/// Data of `subscription.cancellation-scheduled`.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct CancellationScheduled {
    /// Who decided.
    pub by: Initiator,
    /// How the cancellation was made.
    pub via: Channel,
    /// The last day of access.
    pub ends_on: NaiveDate,
    /// The instant at which that day is over.
    #[serde(with = "instant")]
    #[schemars(with = "DateTime<Utc>")]
    pub ends_at: DateTime<Utc>,
    /// The date of the last invoice; absent if there was never one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub final_billing_on: Option<NaiveDate>,
    /// The last day of access announced before, if it was moved earlier.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous_ends_on: Option<NaiveDate>,
    /// The reason that was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<FreeText>,
}

/// Data of `subscription.cancellation-declined`.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct CancellationDeclined {
    /// The administrator's note.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<FreeText>,
}

/// Data of `subscription.ended`.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Ended {
    /// Why it ended.
    pub cause: Cause,
    /// The last day of access.
    pub ended_on: NaiveDate,
    /// The activities to take the participant out of.
    pub activities: Vec<NamedRef>,
}

/// Why a subscription ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum Cause {
    /// It was cancelled.
    Cancelled,
    /// It reached its natural end.
    Expired,
}

/// Data of `subscription.removed`.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Removed {
    /// The invoice that it was removed from.
    pub invoice_id: InvoiceId,
    /// Whether the invoice is refunded; absent if that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refund: Option<bool>,
    /// The activities to take the participant out of.
    pub activities: Vec<NamedRef>,
}

/// Data of `payment.failure-recorded`.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct PaymentFailureRecorded {
    /// The invoice that is not paid.
    pub invoice_id: InvoiceId,
    /// The number of the payment attempt.
    #[schemars(range(min = 1))]
    pub attempt: u32,
    /// Whether no further attempt was announced.
    #[serde(rename = "final")]
    pub is_final: bool,
}

/// Data of `card.expiring`.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct CardExpiring {
    /// The organization that the account belongs to.
    pub organization_id: OrganizationId,
    /// The account that holds the card.
    pub account_id: AccountId,
    /// The card.
    pub card: Card,
    /// Whether it has expired.
    pub expired: bool,
    /// The lead time of the notice, of the organization's `card_notice_days`; absent if a command gave it before all of them, or after
    /// the card expired.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lead_days: Option<u32>,
}

/// Data of `notification.failed`.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct NotificationFailed {
    /// The organization in whose name the email was to be sent.
    pub organization_id: OrganizationId,
    /// The subscription that the email is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subscription_id: Option<SubscriptionId>,
    /// The account that the email is about, or that the subscription belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account_id: Option<AccountId>,
    /// The email's id in `notifications`.
    pub notification_id: Uuid,
    /// Which email.
    pub template: Template,
    /// Whose address it was written to.
    pub role: Recipient,
    /// Why, without the address.
    pub error: String,
}

impl NotificationFailed {
    /// The event's `type`, which is also its routing key.
    pub const KIND: &'static str = "notification.failed";
}

/// Data of `command.rejected`.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct CommandRejected {
    /// The organization that the command was sent for.
    pub organization_id: OrganizationId,
    /// The subscription that the command is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subscription_id: Option<SubscriptionId>,
    /// The account that the command is about, or that the subscription belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account_id: Option<AccountId>,
    /// The command.
    pub command: CommandRef,
    /// Why, for programs.
    pub reason: RejectionReason,
    /// Why, as a sentence for people.
    pub detail: String,
}

impl CommandRejected {
    /// The event's `type`, which is also its routing key.
    pub const KIND: &'static str = "command.rejected";
}
