//! What a batch decides, and the results.

use chrono::NaiveDate;

use crate::command::Command;
use crate::field::Malformed;
use crate::ids::{AccountId, CardId, OrganizationId, SubscriptionId, Target};
use crate::rejection::Rejection;
use crate::subscription::Status;

/// Something to decide.
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "almost every task is a command")]
pub enum Task {
    Command(Command),
    /// The last day of this subscription may be over.
    Lapse(SubscriptionId),
    /// A notice about this saved card may be due.
    CardNotice(AccountId, CardId),
    /// A reminder of this organization's undecided requests may be due.
    RequestReminder(OrganizationId),
}

impl Task {
    /// The document that it may change.
    #[must_use]
    pub fn target(&self) -> Target<'_> {
        match self {
            Self::Command(command) => command.target(),
            Self::Lapse(id) => Target::Subscription(id),
            Self::CardNotice(id, _) => Target::Account(id),
            Self::RequestReminder(id) => Target::Organization(id),
        }
    }
}

/// The result of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TaskOutcome {
    /// It changed a document and may have effects.
    Applied,
    /// It has no effect: it asks for the current state (which is remembered), or is not due.
    Unchanged,
    /// It is a repeat of a command that was applied, and has no effect.
    Repeated,
    /// A rule rejects it.
    Rejected(RejectedTask),
    /// A document that its document refers to does not exist, so nothing can be decided.
    Missing(MissingReference),
    /// A field that the decision needs cannot be read, or contradicts another. The sentence names the document, the field and the
    /// reason.
    Corrupt(String),
}

/// How a document stands after the tasks of a batch: what the replies to their senders say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The subscription's status. Accounts have none.
    pub status: Option<Status>,
    /// The last day of access, if there is one.
    pub ends_on: Option<NaiveDate>,
    /// The date of the last invoice, if there is one.
    pub final_billing_on: Option<NaiveDate>,
    /// The document's version, once the batch is written.
    pub version: i64,
}

/// A rejection, with what the command may know about its document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RejectedTask {
    pub rejection: Rejection,
    /// The account of the subscription; absent unless the subscription belongs to the organization of the command.
    pub account_id: Option<AccountId>,
}

/// A reference to a document that does not exist. `by` is the document that refers to it, such as `subscriptions sub-1`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MissingReference {
    #[error("organizations {organization_id}: does not exist, but {by} refers to it")]
    Organization { organization_id: OrganizationId, by: String },
    #[error("accounts {account_id}: does not exist, but {by} refers to it")]
    Account { account_id: AccountId, by: String },
}

impl From<Malformed> for TaskOutcome {
    fn from(Malformed(sentence): Malformed) -> Self {
        Self::Corrupt(sentence)
    }
}
