//! The commands that were rejected, of the last 30 days: information for support staff, not a record to rely on.
//!
//! Nothing is decided on it. A worker writes it in the background, if it may.

use bson::raw::RawArrayBuf;
use bson::{Bson, DateTime as Instant, Document, RawDocumentBuf, doc, rawdoc};
use serde::{Deserialize, Serialize};

use offramp_domain::actor::Actor;
use offramp_domain::command_ref::CommandRef;

use super::bson::to_raw;
use super::client::Store;
use super::collection::REJECTED_COMMANDS;
use super::error::StoreError;
use super::indexes::{REJECTED_BY_COMMAND, REJECTED_OF_ACCOUNT, REJECTED_OF_SUBSCRIPTION};
use super::search::{Search, SearchError};

/// The error code of a document whose `_id` exists.
const DUPLICATE_KEY: i32 = 11_000;

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
    /// Adds rejected commands, in one request. Those that are there already stay as they are.
    ///
    /// # Errors
    /// When the server does not answer, or rejects the request or one of the documents; the others may have been added.
    pub async fn add_rejected_commands(&self, rejected: &[RejectedCommandDocument]) -> Result<(), StoreError> {
        let documents: RawArrayBuf = rejected.iter().map(to_raw).collect::<Result<_, _>>()?;
        let command = rawdoc! { "insert": REJECTED_COMMANDS, "documents": documents, "ordered": false };
        let reply = self.raw_command(command).await?;
        let errors = reply.get_array("writeErrors").into_iter().flatten().filter_map(Bson::as_document);
        let mut codes = errors.map(|error| error.get_i32("code").unwrap_or_default());
        match codes.find(|code| *code != DUPLICATE_KEY) {
            // The message may quote the document.
            Some(code) => Err(StoreError::Permanent(format!("a rejected command cannot be recorded (code {code})"))),
            None => Ok(()),
        }
    }

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
