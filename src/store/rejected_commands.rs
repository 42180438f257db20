//! The commands that were rejected, of the last 30 days.

use bson::{DateTime as Instant, Document, RawDocumentBuf, doc};
use serde::{Deserialize, Serialize};

use offramp_domain::actor::Actor;
use offramp_domain::cloud_event::CloudEvent;
use offramp_domain::command::Command;
use offramp_domain::command_ref::CommandRef;
use offramp_domain::ids::Target;
use offramp_domain::unit_of_work::RejectedTask;

use super::client::Store;
use super::collection::REJECTED_COMMANDS;
use super::indexes::{EXPIRY, REJECTED_BY_COMMAND, REJECTED_OF_ACCOUNT, REJECTED_OF_SUBSCRIPTION};
use super::search::{Search, SearchError};
use super::support_records::SupportRecord;

/// A document of `rejected_commands`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RejectedCommandDocument {
    /// The id of its event `command.rejected`, which is the same however often the command is rejected.
    #[serde(rename = "_id")]
    pub id: String,
    /// The command.
    pub command: CommandRef,
    /// The organization in whose name it was sent.
    pub organization_id: String,
    /// The subscription that it names, whether or not there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subscription_id: Option<String>,
    /// The account that it names, or that the subscription belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account_id: Option<String>,
    /// Why, for programs: such as `already_ended`.
    pub reason: String,
    /// Why, in a sentence. It may quote fields of the command.
    pub detail: String,
    /// Who acted; absent where a payment system did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<Actor>,
    /// When it was rejected. It is deleted 30 days later.
    pub at: Instant,
}

impl SupportRecord for RejectedCommandDocument {
    const COLLECTION: &'static str = REJECTED_COMMANDS;
    const EXPIRY: &'static str = EXPIRY;
    const PLURAL: &'static str = "rejected commands";
}

impl RejectedCommandDocument {
    /// The record of a rejected command, whose event `command.rejected` is `event`.
    #[must_use]
    pub fn new(event: &CloudEvent, command: &Command, rejected: &RejectedTask) -> Self {
        let (subscription_id, account_id) = match command.target() {
            Target::Subscription(id) => (Some(id.to_string()), rejected.account_id.as_ref().map(ToString::to_string)),
            Target::Account(id) => (None, Some(id.to_string())),
            // No command is about an organization.
            Target::Organization(_) => (None, None),
        };
        Self {
            id: event.id.clone(),
            command: command.reference.clone(),
            organization_id: command.organization_id().to_string(),
            subscription_id,
            account_id,
            reason: rejected.rejection.reason.to_string(),
            detail: rejected.rejection.detail.clone(),
            actor: command.actor().cloned(),
            at: event.time.into(),
        }
    }
}

/// Whose rejected commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RejectedOf<'a> {
    /// Those that name a subscription.
    Subscription(&'a str),
    /// Those that name an account, or one of its subscriptions.
    Account(&'a str),
    /// Those with an id, whichever system sent them.
    CommandId(&'a str),
}

impl Store {
    /// At most `limit` rejected commands, newest first. Those that cannot be read are left out.
    ///
    /// # Errors
    /// When the index that finds them is missing, or the server does not answer.
    pub async fn rejected_commands(
        &self,
        of: RejectedOf<'_>,
        limit: usize,
    ) -> Result<Vec<RejectedCommandDocument>, SearchError> {
        let newest_first = doc! { "at": -1 };
        let (index, filter, order): (_, Document, _) = match of {
            RejectedOf::Subscription(id) => {
                (REJECTED_OF_SUBSCRIPTION, doc! { "subscription_id": id }, Some(newest_first))
            }
            RejectedOf::Account(id) => (REJECTED_OF_ACCOUNT, doc! { "account_id": id }, Some(newest_first)),
            // Few have the same id.
            RejectedOf::CommandId(id) => (REJECTED_BY_COMMAND, doc! { "command.id": id }, None),
        };
        let found = self.search(Search { order, ..Search::new(REJECTED_COMMANDS, index, filter, limit) }).await?;
        let read = |raw: &RawDocumentBuf| bson::deserialize_from_slice(raw.as_bytes()).ok();
        Ok(found.iter().filter_map(read).collect())
    }
}
