//! The commands: one file each, named as on the wire, with its wire form, schema, rule and tests. The enums here are the registry.

pub mod cancellation;
pub mod cancellation_confirmation;
pub mod cancellation_request;
pub mod card_expiry;
mod envelope;
pub mod payment_failure;
#[cfg(any(test, fuzzing))]
pub mod properties;
#[cfg(test)]
mod rule_table;
#[cfg(test)]
mod tests;

use chrono::{DateTime, Utc};

pub use cancellation::{Cancellation, CancellationVia};
pub use cancellation_confirmation::{CancellationConfirmation, ConfirmationDecision};
pub use cancellation_request::CancellationRequest;
pub use card_expiry::CardExpiry;
pub use envelope::{COMMAND_BYTES_MAX, InvalidCommand};
pub use payment_failure::PaymentFailure;

use self::envelope::{Envelope, read_json};
use crate::actor::Actor;
use crate::command_ref::{CommandKey, CommandRef, CommandType};
use crate::decision::{Change, Context, Decision, Obstacle};
use crate::ids::{OrganizationId, SubscriptionId, Target};
use crate::subscription::Subscription;
use crate::trace_context::TraceContext;

/// A command that was read and checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Command {
    pub reference: CommandRef,
    /// When the upstream system says that it happened.
    pub time: DateTime<Utc>,
    /// The trace that everything it causes belongs to.
    pub trace: TraceContext,
    pub body: CommandBody,
}

/// The data of a command, by the kind of document that it is about.
#[derive(Clone, Debug, PartialEq)]
pub enum CommandBody {
    Subscription(SubscriptionCommand),
    CardExpiry(CardExpiry),
}

/// The data of a command about a subscription.
#[derive(Clone, Debug, PartialEq)]
pub enum SubscriptionCommand {
    Cancellation(Cancellation),
    CancellationRequest(CancellationRequest),
    CancellationConfirmation(CancellationConfirmation),
    PaymentFailure(PaymentFailure),
}

/// What compressed data begins with.
const GZIP: &[u8] = &[0x1f, 0x8b];
/// What some programs begin UTF-8 with.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

impl Command {
    /// Reads a command from the bytes of a message.
    ///
    /// # Errors
    /// [`InvalidCommand`] if they are too many, not JSON, not the envelope, or of an unknown type, or if a field of `data` is missing,
    /// unknown or wrong.
    pub fn parse(bytes: &[u8]) -> Result<Self, InvalidCommand> {
        if bytes.len() > COMMAND_BYTES_MAX {
            return Err(InvalidCommand::TooLarge { bytes: bytes.len() });
        }
        if bytes.starts_with(GZIP) {
            return Err(InvalidCommand::malformed("the body is compressed (gzip): send plain JSON"));
        }
        if bytes.starts_with(BYTE_ORDER_MARK) {
            return Err(InvalidCommand::malformed("the body begins with a byte order mark: send UTF-8 without one"));
        }
        // Before the JSON: the parser does not look into attributes that are ignored.
        let text = str::from_utf8(bytes).map_err(|error| InvalidCommand::malformed(&format!("not JSON: {error}")))?;
        let envelope: Envelope = read_json(text, "")?;
        let data = envelope.data.get();
        let body = match envelope.kind {
            CommandType::CardExpiry => CommandBody::CardExpiry(read_json(data, "data")?),
            CommandType::Cancellation => {
                CommandBody::Subscription(SubscriptionCommand::Cancellation(read_json(data, "data")?))
            }
            CommandType::CancellationRequest => {
                CommandBody::Subscription(SubscriptionCommand::CancellationRequest(read_json(data, "data")?))
            }
            CommandType::CancellationConfirmation => {
                CommandBody::Subscription(SubscriptionCommand::CancellationConfirmation(read_json(data, "data")?))
            }
            CommandType::PaymentFailure => {
                CommandBody::Subscription(SubscriptionCommand::PaymentFailure(read_json(data, "data")?))
            }
        };
        Ok(Self {
            reference: CommandRef { key: CommandKey { source: envelope.source, id: envelope.id }, kind: envelope.kind },
            time: envelope.time,
            trace: TraceContext::of_envelope(bytes),
            body,
        })
    }

    /// The organization in whose name it was sent.
    #[must_use]
    pub fn organization_id(&self) -> &OrganizationId {
        match &self.body {
            CommandBody::Subscription(data) => data.organization_id(),
            CommandBody::CardExpiry(data) => &data.organization_id,
        }
    }

    /// Who acts; absent where a payment system does.
    #[must_use]
    pub fn actor(&self) -> Option<&Actor> {
        match &self.body {
            CommandBody::Subscription(SubscriptionCommand::Cancellation(data)) => Some(&data.actor),
            CommandBody::Subscription(SubscriptionCommand::CancellationRequest(data)) => Some(&data.actor),
            CommandBody::Subscription(SubscriptionCommand::CancellationConfirmation(data)) => Some(&data.actor),
            CommandBody::Subscription(SubscriptionCommand::PaymentFailure(_)) | CommandBody::CardExpiry(_) => None,
        }
    }

    /// The document that it is about.
    #[must_use]
    pub fn target(&self) -> Target<'_> {
        match &self.body {
            CommandBody::Subscription(data) => Target::Subscription(data.subscription_id()),
            CommandBody::CardExpiry(data) => Target::Account(&data.account_id),
        }
    }
}

impl SubscriptionCommand {
    /// Decides the command, which was sent as `command` at `sent_at`, about a subscription of the same organization.
    ///
    /// # Errors
    /// The first check that fails, or the first field that is needed and cannot be read.
    pub fn decide(
        &self,
        subscription: &Subscription,
        command: &CommandRef,
        sent_at: DateTime<Utc>,
        context: &Context<'_>,
    ) -> Result<Decision<Change>, Obstacle> {
        match self {
            Self::Cancellation(data) => cancellation::decide(subscription, command, data, context),
            Self::CancellationRequest(data) => {
                cancellation_request::decide(subscription, command, sent_at, data, context)
            }
            Self::CancellationConfirmation(data) => {
                cancellation_confirmation::decide(subscription, command, data, context)
            }
            Self::PaymentFailure(data) => payment_failure::decide(subscription, command, data, context),
        }
    }

    /// The organization in whose name it was sent.
    #[must_use]
    pub fn organization_id(&self) -> &OrganizationId {
        match self {
            Self::Cancellation(data) => &data.organization_id,
            Self::CancellationRequest(data) => &data.organization_id,
            Self::CancellationConfirmation(data) => &data.organization_id,
            Self::PaymentFailure(data) => &data.organization_id,
        }
    }

    /// The subscription that it is about.
    #[must_use]
    pub fn subscription_id(&self) -> &SubscriptionId {
        match self {
            Self::Cancellation(data) => &data.subscription_id,
            Self::CancellationRequest(data) => &data.subscription_id,
            Self::CancellationConfirmation(data) => &data.subscription_id,
            Self::PaymentFailure(data) => &data.subscription_id,
        }
    }
}
