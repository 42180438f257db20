//! What is announced to other systems (contract §6).

use chrono::{DateTime, NaiveDate, SecondsFormat, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::command::CommandRef;
use super::decide::RejectionReason;
use super::ids::{AccountId, FreeText, InvoiceId, OrganizationId, SubscriptionId};
use super::notification::Notification;
use super::subscription::{Channel, Initiator, NamedRef};

/// What happened, with the data that the contract names.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(tag = "type", content = "data")]
pub enum Event {
    /// A client asked to cancel.
    #[serde(rename = "subscription.cancellation-requested")]
    CancellationRequested(About<CancellationRequested>),
    /// A subscription got a last day, or an earlier one.
    #[serde(rename = "subscription.cancellation-scheduled")]
    CancellationScheduled(About<CancellationScheduled>),
    /// An administrator declined a client's request.
    #[serde(rename = "subscription.cancellation-declined")]
    CancellationDeclined(About<CancellationDeclined>),
    /// The last day of access is over.
    #[serde(rename = "subscription.ended")]
    Ended(About<Ended>),
    /// A subscription bought by mistake was removed.
    #[serde(rename = "subscription.removed")]
    Removed(About<Removed>),
}

impl Event {
    /// The event's `type`, which is also its routing key.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::CancellationRequested(_) => "subscription.cancellation-requested",
            Self::CancellationScheduled(_) => "subscription.cancellation-scheduled",
            Self::CancellationDeclined(_) => "subscription.cancellation-declined",
            Self::Ended(_) => "subscription.ended",
            Self::Removed(_) => "subscription.removed",
        }
    }

    /// The subscription that the event is about.
    #[must_use]
    pub fn subscription_id(&self) -> &SubscriptionId {
        match self {
            Self::CancellationRequested(about) => &about.subscription_id,
            Self::CancellationScheduled(about) => &about.subscription_id,
            Self::CancellationDeclined(about) => &about.subscription_id,
            Self::Ended(about) => &about.subscription_id,
            Self::Removed(about) => &about.subscription_id,
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
        }
    }
}

#[expect(
    clippy::expect_used,
    reason = "the data of events is structs of texts, dates and booleans: they always serialize"
)]
fn to_json(data: &impl Serialize) -> serde_json::Value {
    serde_json::to_value(data).expect("plain data serializes")
}

/// The subscription that an event is about, and what the event says.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct About<T> {
    /// The organization that sells it.
    pub organization_id: OrganizationId,
    /// The subscription.
    pub subscription_id: SubscriptionId,
    /// The account that pays it.
    pub account_id: AccountId,
    /// What the event says.
    #[serde(flatten)]
    pub data: T,
}

/// Data of `subscription.cancellation-requested`.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct CancellationRequested {
    /// When the client sent it.
    #[serde(with = "instant")]
    #[schemars(with = "DateTime<Utc>")]
    pub requested_at: DateTime<Utc>,
    /// In their words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<FreeText>,
}

/// Data of `subscription.cancellation-scheduled`.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct CancellationScheduled {
    /// Whose decision.
    pub by: Initiator,
    /// How it came.
    pub via: Channel,
    /// The last day of access.
    pub ends_on: NaiveDate,
    /// The instant at which that day is over.
    #[serde(with = "instant")]
    #[schemars(with = "DateTime<Utc>")]
    pub ends_at: DateTime<Utc>,
    /// The date of the last invoice; absent where there has never been one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub final_billing_on: Option<NaiveDate>,
    /// The last day of access announced before, where it was moved earlier.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous_ends_on: Option<NaiveDate>,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<FreeText>,
}

/// Data of `subscription.cancellation-declined`.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct CancellationDeclined {
    /// What the administrator says about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<FreeText>,
}

/// Data of `subscription.ended`.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Ended {
    /// Why.
    pub cause: Cause,
    /// The last day of access.
    pub ended_on: NaiveDate,
    /// What the participant has to be taken out of.
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
    /// The invoice from which it was removed.
    pub invoice_id: InvoiceId,
    /// Whether that invoice is refunded.
    pub refund: bool,
    /// What the participant has to be taken out of.
    pub activities: Vec<NamedRef>,
}

/// Data of `command.rejected`, with what the command itself named.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct CommandRejected {
    /// In whose name it was sent.
    pub organization_id: OrganizationId,
    /// The subscription that it named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subscription_id: Option<SubscriptionId>,
    /// The account that it named, or that the subscription belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account_id: Option<AccountId>,
    /// The command.
    pub command: CommandRef,
    /// Why, for a machine.
    pub reason: RejectionReason,
    /// Why, in a sentence.
    pub detail: String,
}

impl CommandRejected {
    /// The event's `type`, which is also its routing key.
    pub const KIND: &'static str = "command.rejected";

    /// The data, as the envelope carries it.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        to_json(self)
    }
}

/// What names the effects of a command, or of time, so that a repeat is recognised: the same command on the same document
/// gives the same ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EffectIds(Uuid);

impl EffectIds {
    /// The name space of all ids made here.
    const NAMESPACE: Uuid = Uuid::from_u128(0x6f66_6672_616d_7000_8000_0000_0000_0001);

    /// The ids of what a command causes on the document with this id.
    #[must_use]
    pub fn of_command(command: &CommandRef, document: &str) -> Self {
        Self::of(&["command", command.key.source.as_str(), command.key.id.as_str(), document])
    }

    /// The ids of what `parts` name: what happened, to what, and which time.
    #[must_use]
    pub fn of(parts: &[&str]) -> Self {
        let mut name = Vec::new();
        for part in parts {
            // Length first: ("ab", "c") and ("a", "bc") must not meet.
            name.extend_from_slice(&part.len().to_be_bytes());
            name.extend_from_slice(part.as_bytes());
        }
        Self(Uuid::new_v5(&Self::NAMESPACE, &name))
    }

    /// The id of one effect, by its name.
    #[must_use]
    pub fn id(&self, effect: &str) -> Uuid {
        Uuid::new_v5(&self.0, effect.as_bytes())
    }

    /// The id of one of its mails: there is one per template and recipient.
    #[must_use]
    pub fn of_mail(&self, mail: &Notification) -> Uuid {
        self.id(&format!("{}/{}", mail.template, mail.recipient.as_str()))
    }

    /// The id of one of its events: there is one per type.
    #[must_use]
    pub fn of_event(&self, event: &Event) -> Uuid {
        self.id(event.kind())
    }
}

/// `#[serde(with = "instant")]`: an instant to the millisecond, as the database keeps it: `"2026-06-15T04:00:00.000Z"`.
pub mod instant {
    use super::{DateTime, Deserialize, SecondsFormat, Utc};
    use serde::{Deserializer, Serializer};

    /// Writes `"2026-06-15T04:00:00.000Z"`.
    ///
    /// # Errors
    /// Only the serializer's own.
    pub fn serialize<S: Serializer>(time: &DateTime<Utc>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&time.to_rfc3339_opts(SecondsFormat::Millis, true))
    }

    /// Reads RFC 3339.
    ///
    /// # Errors
    /// When the text is not such an instant.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<DateTime<Utc>, D::Error> {
        DateTime::<Utc>::deserialize(deserializer)
    }
}
