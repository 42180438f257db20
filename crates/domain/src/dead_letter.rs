//! The reasons for which a message becomes a dead letter. The headers, metrics and options that name a reason use these words.

use schemars::JsonSchema;
use serde::Serialize;

use crate::command::InvalidCommand;
use crate::unit_of_work::MissingReference;

/// Why a message becomes a dead letter, as the header `offramp-reason` says it.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    JsonSchema,
    strum::Display,
    strum::EnumString,
    strum::IntoStaticStr,
    strum::VariantArray,
)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
#[strum(serialize_all = "snake_case")]
pub enum DeadLetterReason {
    /// The message is not a command.
    Invalid,
    /// The message is larger than a command may be.
    TooLarge,
    /// Every attempt to process the command failed.
    Exhausted,
    /// The organization that a document refers to does not exist.
    MissingOrganization,
    /// The account that a document refers to does not exist.
    MissingAccount,
    /// A field that the decision needs cannot be read.
    CorruptDocument,
}

impl DeadLetterReason {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

impl From<&InvalidCommand> for DeadLetterReason {
    fn from(invalid: &InvalidCommand) -> Self {
        match invalid {
            InvalidCommand::TooLarge { .. } => Self::TooLarge,
            InvalidCommand::Malformed(_) => Self::Invalid,
        }
    }
}

impl From<&MissingReference> for DeadLetterReason {
    fn from(missing: &MissingReference) -> Self {
        match missing {
            MissingReference::Organization { .. } => Self::MissingOrganization,
            MissingReference::Account { .. } => Self::MissingAccount,
        }
    }
}
