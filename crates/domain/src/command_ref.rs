//! The identity of a command, as documents and events refer to it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::Text;

/// A command, as the audit trail and events name it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CommandRef {
    /// `(source, id)`.
    #[serde(flatten)]
    pub key: CommandKey,
    /// What was asked.
    #[serde(rename = "type")]
    pub kind: CommandType,
}

/// What identifies a command: the pair `(source, id)` of its envelope.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct CommandKey {
    /// The system that sent it.
    pub source: Text<1, 256>,
    /// Its id there.
    pub id: Text<1, 128>,
}

/// A command that a document remembers, so that a repeat changes nothing and is answered as the first was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppliedCommand {
    pub key: CommandKey,
    /// Whether it asked for what was so already, and changed nothing.
    pub unchanged: bool,
}

/// Declares [`CommandType`], so that each name is spelled once.
macro_rules! command_types {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// The type of a command: the `type` of its envelope, and its routing key.
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
            strum::Display, strum::IntoStaticStr,
        )]
        #[schemars(inline)]
        pub enum CommandType {
            $($(#[$doc])* #[serde(rename = $name)] #[strum(serialize = $name)] $variant,)*
        }

        impl CommandType {
            pub const ALL: [Self; [$($name),*].len()] = [$(Self::$variant),*];
        }
    };
}

command_types! {
    /// An administrator or a client cancels.
    Cancellation = "subscription.cancellation",
    /// A client asks to cancel.
    CancellationRequest = "subscription.cancellation-request",
    /// An administrator accepts or declines a client's request.
    CancellationConfirmation = "subscription.cancellation-confirmation",
    /// An automatic payment with a saved card was refused.
    PaymentFailure = "payment.failure",
    /// A saved card is about to expire, or has expired.
    CardExpiry = "card.expiry",
}

impl CommandType {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}
