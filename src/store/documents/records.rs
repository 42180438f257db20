//! What documents of several collections remember: the commands that were applied, and the emails.

use bson::DateTime as Instant;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use offramp_domain::command_ref::{AppliedCommand, CommandKey};

use crate::store::bson::ExtendedJsonDate;

/// A command that was applied.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct AppliedDocument {
    /// `(source, id)`.
    #[serde(flatten)]
    pub key: CommandKey,
    /// When.
    #[schemars(with = "ExtendedJsonDate")]
    pub at: Instant,
    /// Whether it asked for what was so already, and so changed nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unchanged: bool,
    /// In the first of a tombstone: when its newest email or event was sent. The tombstone is deleted 30 days later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<ExtendedJsonDate>")]
    pub settled_at: Option<Instant>,
}

impl From<AppliedDocument> for AppliedCommand {
    fn from(AppliedDocument { key, unchanged, .. }: AppliedDocument) -> Self {
        Self { key, unchanged }
    }
}

/// The record of an email, written with the decision that caused it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Notification")]
pub struct NotificationDocument {
    /// The id of its outbox entry.
    pub id: String,
    /// Which email.
    pub template: String,
    /// Its address; absent in a tombstone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Whose address: `organization_contact` or `account_manager`.
    pub role: String,
    /// Its language.
    pub locale: String,
    /// Its `Message-ID`.
    pub message_id: String,
    /// When it was decided. (Earlier versions recorded an email when it was sent, without this.)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<ExtendedJsonDate>")]
    pub at: Option<Instant>,
    /// When the mail server accepted it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<ExtendedJsonDate>")]
    pub sent_at: Option<Instant>,
    /// When it failed permanently.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<ExtendedJsonDate>")]
    pub failed_at: Option<Instant>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}
