//! The envelope of everything that Offramp publishes: `CloudEvents` 1.0, structured mode. Envelopes are built here and nowhere else.

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::calendar::instant;
use crate::command::Command;
use crate::command_ref::{CommandKey, CommandRef};
use crate::dead_letter::DeadLetterReason;
use crate::effect_id::EffectIds;
use crate::event::{self, CommandRejected, Event, NotificationFailed};
use crate::ids::{AccountId, SubscriptionId, Target};
use crate::notification::Notification;
use crate::reply::{self, CommandInvalid, CommandSettled};
use crate::trace_context::TraceContext;
use crate::unit_of_work::{RejectedTask, Standing};

/// An event ready to publish: `CloudEvents` 1.0, structured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CloudEvent {
    /// Always `"1.0"`.
    pub specversion: String,
    /// The id, which stays the same however often the event is sent.
    pub id: String,
    /// The name of this Offramp, as its operators set it.
    pub source: String,
    /// The type, which is also the routing key.
    #[serde(rename = "type")]
    pub kind: String,
    /// When the decision was made, or the email given up.
    #[serde(with = "instant")]
    #[schemars(with = "DateTime<Utc>")]
    pub time: DateTime<Utc>,
    /// The id of the subscription, or of the account for `card.expiring` and the emails of an account; absent otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// The id of the command that caused it; absent if the calendar did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub causationid: Option<String>,
    /// The trace and the business process of that command.
    #[serde(flatten)]
    pub trace: TraceContext,
    /// Always `application/json`.
    pub datacontenttype: String,
    /// The data, which depends on the type.
    pub data: serde_json::Value,
}

/// An email that will not be sent.
#[derive(Clone, Copy, Debug)]
pub struct FailedEmail<'a> {
    /// The id of its outbox entry and of its record.
    pub id: Uuid,
    pub email: &'a Notification,
    /// Why, without the address.
    pub error: &'a str,
    /// The document that holds it.
    pub target: Target<'a>,
    /// The command that caused it; absent if the calendar did.
    pub command: Option<&'a CommandKey>,
    pub trace: &'a TraceContext,
}

impl CloudEvent {
    /// The envelope of an event: one of the effects that `ids` identify, caused by `command`, or by the calendar if that is absent. It
    /// belongs to `trace`.
    #[must_use]
    pub fn of_event(
        event: &Event,
        ids: &EffectIds,
        command: Option<&CommandRef>,
        trace: &TraceContext,
        source: &str,
        now: DateTime<Utc>,
    ) -> Self {
        let subject = Some(event.subject().to_owned());
        let envelope = Self::new(ids.of_event(event), event.kind(), subject, command, event.data(), source, now);
        Self { trace: trace.clone(), ..envelope }
    }

    /// The `command.rejected` of a command. Its id stays the same however often the command is rejected.
    #[must_use]
    pub fn of_rejection(command: &Command, rejected: &RejectedTask, source: &str, now: DateTime<Utc>) -> Self {
        let (subscription_id, account_id) = named_ids(command);
        let data = CommandRejected {
            organization_id: command.organization_id().clone(),
            subscription_id,
            account_id: account_id.or_else(|| rejected.account_id.clone()),
            command: command.reference.clone(),
            reason: rejected.rejection.reason,
            detail: rejected.rejection.detail.clone(),
        };
        Self::about(command, CommandRejected::KIND, event::to_json(&data), source, now)
    }

    /// The `notification.failed` of an email that is kept for an operator since `at`. What owns the email is added by the document that
    /// holds it. The id differs if the email is retried and fails again.
    #[must_use]
    pub fn of_failed_email(failed: &FailedEmail<'_>, source: &str, at: DateTime<Utc>) -> Self {
        let FailedEmail { id, email, error, target, command, trace } = failed;
        let subject = match target {
            Target::Subscription(id) => Some(id.to_string()),
            Target::Account(id) => Some(id.to_string()),
            Target::Organization(_) => None,
        };
        let data = serde_json::json!({
            "notification_id": id, "template": email.template, "role": email.recipient, "error": error,
        });
        let failure = EffectIds::of(&[NotificationFailed::KIND, &id.to_string(), &at.timestamp_millis().to_string()]);
        let envelope =
            Self::new(failure.id(NotificationFailed::KIND), NotificationFailed::KIND, subject, None, data, source, at);
        Self { causationid: command.map(|command| command.id.to_string()), trace: (*trace).clone(), ..envelope }
    }

    /// The `command.applied` or `command.unchanged` of a command, whose document now stands like this. Its id stays the same however
    /// often the command is repeated.
    #[must_use]
    pub fn of_standing(
        kind: &'static str,
        command: &Command,
        standing: Standing,
        source: &str,
        now: DateTime<Utc>,
    ) -> Self {
        let Standing { status, ends_on, final_billing_on, version } = standing;
        let (subscription_id, account_id) = named_ids(command);
        let data = CommandSettled {
            organization_id: command.organization_id().clone(),
            subscription_id,
            account_id,
            command: command.reference.clone(),
            status,
            ends_on,
            final_billing_on,
            version,
        };
        Self::about(command, kind, event::to_json(&data), source, now)
    }

    /// The `command.invalid` of a message that became a dead letter. `id` is used if it is no command, which has none of its own. It
    /// belongs to `trace`.
    #[must_use]
    pub fn of_dead_letter(
        command: Option<&Command>,
        id: Uuid,
        reason: DeadLetterReason,
        error: String,
        trace: TraceContext,
        source: &str,
        now: DateTime<Utc>,
    ) -> Self {
        let data = CommandInvalid { command: command.map(|command| command.reference.clone()), reason, error };
        let data = event::to_json(&data);
        let envelope = match command {
            Some(command) => Self::about(command, reply::INVALID, data, source, now),
            None => Self::new(id, reply::INVALID, None, None, data, source, now),
        };
        Self { trace, ..envelope }
    }

    /// What became of a command. Its id is the same for the same command.
    fn about(command: &Command, kind: &str, data: serde_json::Value, source: &str, now: DateTime<Utc>) -> Self {
        let id = EffectIds::of_command(&command.reference, command.target()).id(kind);
        let subject = named_ids(command).0.map(|id| id.to_string());
        let envelope = Self::new(id, kind, subject, Some(&command.reference), data, source, now);
        Self { trace: command.trace.clone(), ..envelope }
    }

    fn new(
        id: Uuid,
        kind: &str,
        subject: Option<String>,
        command: Option<&CommandRef>,
        data: serde_json::Value,
        source: &str,
        now: DateTime<Utc>,
    ) -> Self {
        Self {
            specversion: "1.0".to_owned(),
            id: id.to_string(),
            source: source.to_owned(),
            kind: kind.to_owned(),
            time: now,
            subject,
            causationid: command.map(|command| command.key.id.to_string()),
            trace: TraceContext::default(),
            datacontenttype: "application/json".to_owned(),
            data,
        }
    }
}

/// The subscription or the account that a command names.
fn named_ids(command: &Command) -> (Option<SubscriptionId>, Option<AccountId>) {
    match command.target() {
        Target::Subscription(id) => (Some(id.clone()), None),
        Target::Account(id) => (None, Some(id.clone())),
        // No command is about an organization.
        Target::Organization(_) => (None, None),
    }
}
