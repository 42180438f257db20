//! The outbox entries (contract §3 `outbox`): what a change entails and has not left yet, kept in the document that
//! caused it.

use bson::DateTime as Instant;
use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::domain::event::{CloudEvent, Event};
use crate::domain::fold::Added;
use crate::domain::notification::{Notification, conversation_id};

use super::Collection;
use super::documents::ExtendedJsonDate;

/// A mail or an event that has not left yet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OutboxEntry {
    /// The same for the same effect of the same command, so that a repeat is recognised: the mail's `Message-ID` is made
    /// from it, and it is the event's id.
    pub id: String,
    /// Until then it belongs to `holder`; after it, to whoever claims it. Absent: refused for good, kept for an operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<ExtendedJsonDate>")]
    pub due: Option<Instant>,
    /// Who holds it: made anew for each lease.
    #[serde(default)]
    pub holder: String,
    /// How often it was tried in vain.
    #[serde(default)]
    pub attempts: i32,
    /// Why the newest try was in vain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// When it was refused for good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<ExtendedJsonDate>")]
    pub failed_at: Option<Instant>,
    /// The mail, or the event.
    #[serde(flatten)]
    pub content: Content,
}

/// What leaves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::large_enum_variant, reason = "most entries are mails")]
pub enum Content {
    /// To a person.
    Mail(Notification),
    /// To other systems.
    Event(CloudEvent),
}

/// An entry that this process holds until its lease runs out.
#[derive(Clone, Debug, PartialEq)]
pub struct Leased {
    /// Where its document is.
    pub collection: Collection,
    /// Its document.
    pub document_id: String,
    /// The entry.
    pub entry: OutboxEntry,
}

impl Leased {
    /// The conversation that its mail belongs to: that of all mails about its document.
    #[must_use]
    pub fn conversation_id(&self) -> Uuid {
        conversation_id(self.collection.as_str(), &self.document_id)
    }
}

/// The right to send entries until an instant.
#[derive(Clone, Debug)]
pub struct Lease {
    /// Made anew for each lease, so that two holders cannot be mistaken for one another.
    pub holder: Uuid,
    /// Until when.
    pub until: DateTime<Utc>,
}

/// The entries of one change, under `lease`.
pub fn entries<R>(added: Added<R>, lease: &Lease, source: &str, at: DateTime<Utc>) -> Vec<OutboxEntry> {
    let entry = |id: Uuid, content: Content| OutboxEntry {
        id: id.to_string(),
        due: Some(lease.until.into()),
        holder: lease.holder.to_string(),
        attempts: 0,
        error: None,
        failed_at: None,
        content,
    };
    let Added { command, ids, notifications, events, record: _ } = added;
    let mails = notifications.into_iter().map(|mail| entry(ids.of_mail(&mail), Content::Mail(mail)));
    let events = events.iter().filter_map(|event| {
        let id = ids.of_event(event);
        let causation = command.as_ref().map(|command| command.key.id.to_string());
        Some(entry(id, Content::Event(cloud_event(event, id, causation, source, at)?)))
    });
    mails.chain(events).collect()
}

fn cloud_event(
    event: &Event,
    id: Uuid,
    causationid: Option<String>,
    source: &str,
    time: DateTime<Utc>,
) -> Option<CloudEvent> {
    // An event is plain data, so its serialization cannot fail; a `None` would only be an event fewer.
    let mut parts = serde_json::to_value(event).ok()?;
    let data = parts.get_mut("data")?.take();
    let subject = data.get("subscription_id").and_then(|id| id.as_str()).map(str::to_owned);
    Some(CloudEvent {
        specversion: "1.0".to_owned(),
        id: id.to_string(),
        source: source.to_owned(),
        kind: event.kind().to_owned(),
        time,
        subject,
        causationid,
        datacontenttype: "application/json".to_owned(),
        data,
    })
}
