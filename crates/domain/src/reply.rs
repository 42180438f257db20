//! What the sender of a command is told, in the queue that it named in `reply_to`: the types of replies and their data. A rejection is
//! answered with the event [`CommandRejected`](crate::event::CommandRejected) instead. The envelope is in
//! [`cloud_event`](crate::cloud_event).

use chrono::NaiveDate;
use schemars::JsonSchema;
use serde::Serialize;

use crate::command_ref::CommandRef;
use crate::dead_letter::DeadLetterReason;
use crate::ids::{AccountId, OrganizationId, SubscriptionId};
use crate::subscription::Status;

/// The type of the reply to a command that was applied, now or by an earlier delivery.
pub const APPLIED: &str = "command.applied";
/// The type of the reply to a command that asked for what was so already.
pub const UNCHANGED: &str = "command.unchanged";
/// The type of the reply to a message that became a dead letter.
pub const INVALID: &str = "command.invalid";

/// Data of `command.applied` and `command.unchanged`: how the document stands now.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct CommandSettled {
    /// The organization that the command was sent for.
    pub organization_id: OrganizationId,
    /// The subscription that the command is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subscription_id: Option<SubscriptionId>,
    /// The account that the command is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account_id: Option<AccountId>,
    /// The command.
    pub command: CommandRef,
    /// The subscription's status; absent for `card.expiry`, which is about an account.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
    /// The last day of access, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ends_on: Option<NaiveDate>,
    /// The date of the last invoice, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub final_billing_on: Option<NaiveDate>,
    /// The version of the document. A document with this version or a higher one contains what the command changed.
    pub version: i64,
}

/// Data of `command.invalid`: why the message became a dead letter.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct CommandInvalid {
    /// The command, if the message is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<CommandRef>,
    /// Why, for programs: the dead letter's `offramp-reason`.
    pub reason: DeadLetterReason,
    /// Why, as a sentence that names the field: the dead letter's `offramp-error`.
    pub error: String,
}
