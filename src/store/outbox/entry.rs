//! The entries of the outbox: emails and events that are still to be sent, kept in the document whose change caused them.

use bson::DateTime as Instant;
use chrono::{DateTime, NaiveDate, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use offramp_domain::cloud_event::CloudEvent;
use offramp_domain::command_ref::CommandKey;
use offramp_domain::effect_id::conversation_id;
use offramp_domain::notification::Notification;
use offramp_domain::trace_context::TraceContext;
use offramp_domain::unit_of_work::Effects;

use crate::store::bson::ExtendedJsonDate;
use crate::store::collection::{Collection, DocumentId};

/// An email or an event that is still to be sent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OutboxEntry {
    /// The same for the same effect of the same command, so that a repeat is recognised: the mail's `Message-ID` is made
    /// from it, and it is the event's id.
    pub id: String,
    /// Absent in entries of earlier versions; use [`OutboxEntry::kind`].
    #[serde(default, rename = "kind", skip_serializing_if = "Option::is_none")]
    pub stored_kind: Option<Kind>,
    /// Until then it belongs to `holder`; after it, to whoever claims it. Absent: failed permanently, kept for an operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<ExtendedJsonDate>")]
    pub due: Option<Instant>,
    /// Who holds it: new for each lease.
    #[serde(default)]
    pub holder: String,
    /// The number of failed attempts.
    #[serde(default)]
    pub attempts: i32,
    /// How often it was sent as a whole and the mail server gave no reply: it may have been delivered.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub in_doubt: i32,
    /// When the mail server first rejected it because of the sender (name, rights, reputation, quota).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<ExtendedJsonDate>")]
    pub sender_rejected_at: Option<Instant>,
    /// Why the newest attempt failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The command that caused the email; absent if the calendar did, and in entries of earlier versions. (An event names its command
    /// itself.)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<CommandKey>,
    /// The trace of that command, whichever worker sends the entry.
    #[serde(default, skip_serializing_if = "TraceContext::is_empty")]
    pub trace: TraceContext,
    /// When the change that caused it was decided; absent in entries of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<ExtendedJsonDate>")]
    pub committed_at: Option<Instant>,
    /// When it failed permanently.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<ExtendedJsonDate>")]
    pub failed_at: Option<Instant>,
    /// The email, or the event.
    #[serde(flatten)]
    pub content: Content,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(count: &i32) -> bool {
    *count == 0
}

impl OutboxEntry {
    /// The entry of an event that no worker holds yet: any may claim it.
    #[must_use]
    pub(super) fn of_event(event: CloudEvent, at: DateTime<Utc>) -> Self {
        Self {
            id: event.id.clone(),
            stored_kind: Some(Kind::Event),
            due: Some(at.into()),
            holder: String::new(),
            attempts: 0,
            in_doubt: 0,
            sender_rejected_at: None,
            error: None,
            command: None,
            trace: event.trace.clone(),
            committed_at: Some(at.into()),
            failed_at: None,
            content: Content::Event(event),
        }
    }

    /// What it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self.content {
            Content::Mail(_) => Kind::Email,
            Content::Event(_) => Kind::Event,
        }
    }

    /// What an earlier version stored, as today's templates expect it: without facts that its recipient may no longer read, and with
    /// what is known today of facts that were not recorded then.
    #[must_use]
    pub(super) fn up_to_date(self, today: NaiveDate) -> Self {
        let Content::Mail(email) = self.content else { return self };
        // This version names the command in every email about a subscription.
        let email = if self.command.is_none() { email.completed(today) } else { email };
        Self { content: Content::Mail(email.for_its_reader()), ..self }
    }
}

/// What is sent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::large_enum_variant, reason = "most entries are emails")]
pub enum Content {
    /// To a person.
    Mail(Notification),
    /// To other systems.
    Event(CloudEvent),
}

/// The kind of an entry. Emails and events are claimed separately, so that an unavailable mail server delays no event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// To a person.
    Email,
    /// To other systems.
    Event,
}

impl Kind {
    /// As entries have it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Email => "email",
            Self::Event => "event",
        }
    }
}

/// An entry that this process holds until its lease runs out.
#[derive(Clone, Debug, PartialEq)]
pub struct LeasedEntry {
    /// The document that holds it.
    pub document: DocumentId,
    pub entry: OutboxEntry,
    /// Whether its commit also handed over entries of the other kind for this document: they are marked in one write, if they are
    /// sent soon after one another.
    pub has_companions: bool,
}

impl LeasedEntry {
    /// The conversation of its email: all emails about one document share it.
    #[must_use]
    pub fn conversation_id(&self) -> Uuid {
        conversation_id(self.document.collection().as_str(), self.document.as_str())
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

/// The collections whose documents have an outbox.
pub(in crate::store) const OUTBOXES: [Collection; 3] =
    [Collection::Subscriptions, Collection::Accounts, Collection::Organizations];

/// The entries of one change, under `lease`.
#[must_use]
pub fn entries(effects: Effects, lease: &Lease, source: &str, at: DateTime<Utc>) -> Vec<OutboxEntry> {
    let Effects { command, ids, trace, notifications, events } = effects;
    let entry = |id: Uuid, kind: Kind, content: Content| OutboxEntry {
        id: id.to_string(),
        stored_kind: Some(kind),
        due: Some(lease.until.into()),
        holder: lease.holder.to_string(),
        attempts: 0,
        in_doubt: 0,
        sender_rejected_at: None,
        error: None,
        command: None,
        trace: trace.clone(),
        committed_at: Some(at.into()),
        failed_at: None,
        content,
    };
    let mails = notifications.into_iter().map(|mail| OutboxEntry {
        command: command.as_ref().map(|command| command.key.clone()),
        ..entry(ids.of_email(&mail), Kind::Email, Content::Mail(mail))
    });
    let events = events.iter().map(|event| {
        let envelope = CloudEvent::of_event(event, &ids, command.as_ref(), &trace, source, at);
        entry(ids.of_event(event), Kind::Event, Content::Event(envelope))
    });
    mails.chain(events).collect()
}
