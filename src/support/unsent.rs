//! Emails and events that are not sent yet.

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::fields::utc;
use crate::store::outbox::entry::{Content, OutboxEntry};

/// An email or event of a document's outbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unsent {
    /// Its id, as `offramp outbox` takes it.
    pub id: String,
    pub kind: UnsentKind,
    /// The email's template, or the event's type.
    #[serde(rename = "type")]
    pub what: String,
    /// The email's address.
    pub to: Option<String>,
    /// The number of failed attempts.
    pub attempts: i32,
    /// When it is tried next. Absent if it failed permanently and is kept for an operator.
    pub due: Option<DateTime<Utc>>,
    /// When it failed permanently.
    pub failed_at: Option<DateTime<Utc>>,
    /// Why the newest attempt failed.
    pub error: Option<String>,
}

/// What is not sent yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum UnsentKind {
    Email,
    Event,
}

impl From<OutboxEntry> for Unsent {
    fn from(entry: OutboxEntry) -> Self {
        let (kind, what, to) = match entry.content {
            Content::Mail(email) => (UnsentKind::Email, email.template.to_string(), Some(email.to.email)),
            Content::Event(event) => (UnsentKind::Event, event.kind, None),
        };
        Self {
            id: entry.id,
            kind,
            what,
            to,
            attempts: entry.attempts,
            due: entry.due.and_then(utc),
            failed_at: entry.failed_at.and_then(utc),
            error: entry.error,
        }
    }
}
