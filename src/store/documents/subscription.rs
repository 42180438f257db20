//! Documents of `subscriptions`.

use bson::DateTime as Instant;
use chrono::NaiveDate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use offramp_domain::actor::Actor;
use offramp_domain::billing::{BillingDay, BillingMode};
use offramp_domain::calendar::{YearMonth, iso_date};
use offramp_domain::card::PaymentCard;
use offramp_domain::command_ref::CommandRef;
use offramp_domain::failure_code::FailureCode;
use offramp_domain::field::{Field, Malformed};
use offramp_domain::ids::{AccountId, FreeText, InvoiceId, OrganizationId, SubscriptionId};
use offramp_domain::money::Amount;
use offramp_domain::subscription::{
    CancellationRecord, Channel, Closed, Details, HistoryEntry, Initiator, NamedRef, PaymentFailureRecord, Request,
    RequestDecision, ScheduledEnd, Status, Subscription,
};

use super::fields::{date, null_as_default, readable, required, utc};
use super::records::{AppliedDocument, NotificationDocument};
use super::stored::{Fault, Stored, list};
use crate::store::bson::{ExtendedJsonDate, Integer, integer};
use crate::store::outbox::entry::OutboxEntry;

/// A document of `subscriptions`. Offramp writes the fields from `version` on; at the end also `activities` and
/// `billing.next_on`.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "Subscription")]
pub struct SubscriptionDocument {
    /// Its id.
    #[serde(rename = "_id")]
    pub id: SubscriptionId,
    /// The organization that sells it.
    pub organization_id: OrganizationId,
    /// The account that pays it.
    pub account_id: AccountId,
    /// Who takes part. (A removed subscription has this and the next four fields no more.)
    #[serde(default)]
    #[schemars(with = "Option<NamedRef>")]
    pub participant: Stored<Option<NameDocument>>,
    /// What was bought.
    #[serde(default)]
    #[schemars(with = "Option<NamedRef>")]
    pub plan: Stored<Option<NameDocument>>,
    /// How it is billed.
    #[serde(default)]
    #[schemars(with = "Option<BillingDocument>")]
    pub billing: Stored<Option<BillingDocument>>,
    /// From which day on it is not renewed, where the plan has an end. `2999-12-31` and later mean never.
    #[serde(default)]
    #[schemars(with = "Option<NaiveDate>")]
    pub expires_on: Stored<Option<String>>,
    /// What the participant is enrolled in.
    #[serde(default)]
    #[schemars(with = "Option<Vec<NamedRef>>")]
    pub activities: Stored<Option<Vec<NamedRef>>>,
    /// Incremented by every writer.
    #[serde(default, deserialize_with = "integer")]
    pub version: Option<i64>,
    /// Where it stands; absent: active.
    #[serde(default)]
    pub status: Option<Status>,
    /// The last day of access, inclusive, in the organization's calendar.
    #[serde(default)]
    #[schemars(with = "Option<NaiveDate>")]
    pub ends_on: Stored<Option<OwnDate>>,
    /// The instant at which that day is over there.
    #[serde(default)]
    #[schemars(with = "Option<ExtendedJsonDate>")]
    pub ends_at: Stored<Option<Instant>>,
    /// The date of the last invoice; absent where there has never been one.
    #[serde(default)]
    #[schemars(with = "Option<NaiveDate>")]
    pub final_billing_on: Stored<Option<OwnDate>>,
    /// The day on which it ended.
    #[serde(default)]
    #[schemars(with = "Option<NaiveDate>")]
    pub ended_on: Stored<Option<OwnDate>>,
    /// The newest request of the client.
    #[serde(default)]
    #[schemars(with = "Option<RequestDocument>")]
    pub cancellation_request: Stored<Option<RequestDocument>>,
    /// The cancellation.
    #[serde(default)]
    #[schemars(with = "Option<CancellationDocument>")]
    pub cancellation: Stored<Option<CancellationDocument>>,
    /// The newest 20 failed payments.
    #[serde(default, deserialize_with = "list")]
    #[schemars(with = "Vec<PaymentFailureDocument>")]
    pub payment_failures: Vec<Stored<PaymentFailureDocument>>,
    /// The audit trail.
    #[serde(default, deserialize_with = "list")]
    #[schemars(with = "Vec<HistoryDocument>")]
    pub history: Vec<Stored<HistoryDocument>>,
    /// How many entries that has, in what `decision_projection` reads.
    #[serde(default, rename = "offramp_history_length")]
    #[schemars(skip)]
    pub history_length: Option<u32>,
    /// The record of each email: of the decision, and of what became of it.
    #[serde(default, deserialize_with = "list")]
    #[schemars(with = "Vec<NotificationDocument>")]
    pub notifications: Vec<Stored<NotificationDocument>>,
    /// The newest 200 commands that were applied.
    #[serde(default, deserialize_with = "null_as_default")]
    pub applied: Vec<AppliedDocument>,
    /// Emails and events that have not been sent yet.
    #[serde(default, deserialize_with = "list")]
    #[schemars(with = "Vec<OutboxEntry>")]
    pub outbox: Vec<Stored<OutboxEntry>>,
}

/// A date that Offramp wrote itself: of any year of four digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct OwnDate(#[serde(with = "iso_date")] pub NaiveDate);

/// The part of a [`NamedRef`] that decisions need.
#[derive(Debug, Deserialize)]
pub struct NameDocument {
    /// What people call it.
    pub name: String,
}

/// `subscriptions.billing`, each field by itself.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub struct BillingDocument {
    /// Whose day it is: the purchase's or the organization's.
    #[serde(default)]
    #[schemars(with = "BillingMode", required)]
    pub mode: Stored<Option<BillingMode>>,
    /// The billing day, 1 to 31.
    #[serde(default)]
    #[schemars(with = "i64", required, range(min = 1, max = 31))]
    pub day: Stored<Option<Integer>>,
    /// The first invoice not yet generated. Every live subscription has one.
    #[serde(default)]
    #[schemars(with = "Option<NaiveDate>")]
    pub next_on: Stored<Option<String>>,
    /// The date of the newest invoice.
    #[serde(default)]
    #[schemars(with = "Option<NaiveDate>")]
    pub last_on: Stored<Option<String>>,
    /// The newest invoice.
    #[serde(default)]
    #[schemars(with = "Option<InvoiceId>")]
    pub last_invoice_id: Stored<Option<InvoiceId>>,
}

/// `subscriptions.cancellation_request`
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct RequestDocument {
    /// When the client sent it.
    #[schemars(with = "ExtendedJsonDate")]
    pub requested_at: Instant,
    /// Who asked. What cannot be read counts as absent: no decision needs it.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "readable")]
    pub actor: Option<Actor>,
    /// In their words.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "readable")]
    pub reason: Option<FreeText>,
    /// When it was closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<ExtendedJsonDate>")]
    pub decided_at: Option<Instant>,
    /// By what.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<RequestDecision>,
    /// What the administrator said about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<FreeText>,
}

/// `subscriptions.cancellation`
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct CancellationDocument {
    /// Whose decision.
    pub by: Initiator,
    /// How it came.
    pub via: Channel,
    /// When it was decided.
    #[schemars(with = "ExtendedJsonDate")]
    pub scheduled_at: Instant,
    /// Who acted.
    pub actor: Actor,
    /// In their words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<FreeText>,
    /// The month that was chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub month: Option<YearMonth>,
}

/// An entry of `subscriptions.payment_failures`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct PaymentFailureDocument {
    /// When it was recorded.
    #[schemars(with = "ExtendedJsonDate")]
    pub at: Instant,
    /// The invoice that is not paid.
    pub invoice_id: InvoiceId,
    /// What is due.
    pub amount: Amount,
    /// The card that was refused.
    pub card: PaymentCard,
    /// Which try it was, from 1.
    pub attempt: u32,
    /// What the payment system says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_message: Option<FreeText>,
    /// Its code, if it is one of the known ones. (Entries of earlier versions have neither this nor `command`.)
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "readable")]
    pub failure_code: Option<FailureCode>,
    /// The command that reported it.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "readable")]
    pub command: Option<CommandRef>,
    /// The day of the next try; absent: there is none.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "iso_date::option")]
    #[schemars(with = "Option<NaiveDate>")]
    pub next_attempt_on: Option<NaiveDate>,
}

/// An entry of `subscriptions.history`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct HistoryDocument {
    /// When it was decided.
    #[schemars(with = "ExtendedJsonDate")]
    pub at: Instant,
    /// The command that caused it; absent where time did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<CommandRef>,
    /// Who acted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<Actor>,
    /// The status before.
    pub from: Status,
    /// The status after.
    pub to: Status,
    /// The last day of access after it.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "iso_date::option")]
    #[schemars(with = "Option<NaiveDate>")]
    pub ends_on: Option<NaiveDate>,
    /// How a cancellation came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<Channel>,
    /// Why, in the words of who acted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<FreeText>,
    /// What the administrator says about a request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<FreeText>,
}

impl TryFrom<SubscriptionDocument> for Subscription {
    type Error = Malformed;

    fn try_from(mut document: SubscriptionDocument) -> Result<Self, Malformed> {
        let status = document.status.unwrap_or_default();
        Ok(Self {
            id: document.id.clone(),
            organization_id: document.organization_id.clone(),
            account_id: document.account_id.clone(),
            version: document.version,
            status,
            history_length: document.history_length,
            applied: std::mem::take(&mut document.applied).into_iter().map(Into::into).collect(),
            // Only messages use it.
            ended_on: std::mem::take(&mut document.ended_on).ok().flatten().map(|OwnDate(day)| day),
            details: (status != Status::Removed).then(|| details(document, status)),
        })
    }
}

fn details(document: SubscriptionDocument, status: Status) -> Details {
    let of = format!("subscriptions {}", document.id);
    let name = |stored: Stored<Option<NameDocument>>, field: &str| {
        stored.and_then(required).read(&of, field).map(|NameDocument { name }| name)
    };
    let participant = name(document.participant, "participant");
    let plan = name(document.plan, "plan");
    let end = end(document.ends_on, document.ends_at, document.final_billing_on, status, &of);
    let request = |request: Option<RequestDocument>| request.map(Request::try_from).transpose();
    let cancellation = |record: Option<CancellationDocument>| record.map(CancellationRecord::try_from).transpose();
    let billing = document.billing.and_then(required).read(&of, "billing");
    let (billing_mode, billing_day, next_on, last_on, last_invoice_id) = match billing {
        Ok(billing) => {
            let in_month = |Integer(day)| BillingDay::try_from(day).map_err(Fault::new);
            (
                billing.mode.and_then(required).read(&of, "billing.mode"),
                billing.day.and_then(required).and_then(in_month).read(&of, "billing.day"),
                billing.next_on.and_then(date).read(&of, "billing.next_on"),
                billing.last_on.and_then(date).read(&of, "billing.last_on"),
                billing.last_invoice_id.read(&of, "billing.last_invoice_id"),
            )
        }
        Err(it) => (Err(it.clone()), Err(it.clone()), Err(it.clone()), Err(it.clone()), Err(it)),
    };
    Details {
        participant,
        plan,
        billing_mode,
        billing_day,
        next_on,
        last_on,
        last_invoice_id,
        expires_on: document.expires_on.and_then(date).read(&of, "expires_on"),
        activities: document.activities.read(&of, "activities").map(Option::unwrap_or_default),
        end,
        request: document.cancellation_request.and_then(request).read(&of, "cancellation_request"),
        cancellation: document.cancellation.and_then(cancellation).ok().flatten(),
    }
}

/// The scheduled end. If the status is another, these fields belong to an earlier cancellation.
fn end(
    ends_on: Stored<Option<OwnDate>>,
    ends_at: Stored<Option<Instant>>,
    final_billing_on: Stored<Option<OwnDate>>,
    status: Status,
    of: &str,
) -> Field<Option<ScheduledEnd>> {
    if !matches!(status, Status::CancellationScheduled | Status::Cancelled) {
        return Ok(None);
    }
    let ends_on = ends_on.read(of, "ends_on")?;
    let ends_at = ends_at.and_then(|instant| instant.map(utc).transpose()).read(of, "ends_at")?;
    let missing =
        |field: &str| Malformed(format!("{of}: {field}: missing, though the subscription is {}", status.as_str()));
    match (ends_on, ends_at) {
        (Some(OwnDate(ends_on)), Some(ends_at)) => Ok(Some(ScheduledEnd {
            ends_on,
            ends_at,
            // No decision depends on it.
            final_billing_on: final_billing_on.ok().flatten().map(|OwnDate(day)| day),
        })),
        _ if status == Status::Cancelled => Ok(None),
        (None, _) => Err(missing("ends_on")),
        (_, None) => Err(missing("ends_at")),
    }
}

impl TryFrom<RequestDocument> for Request {
    type Error = Fault;

    fn try_from(document: RequestDocument) -> Result<Self, Fault> {
        let closed = match (document.decided_at, document.decision) {
            (Some(decided_at), Some(decision)) => {
                Some(Closed { decided_at: utc(decided_at)?, decision, note: document.note })
            }
            (None, None) => None,
            _ => return Err(Fault::new("decided_at and decision go together")),
        };
        Ok(Self { requested_at: utc(document.requested_at)?, actor: document.actor, reason: document.reason, closed })
    }
}

impl From<&Request> for RequestDocument {
    fn from(request: &Request) -> Self {
        let closed = request.closed.as_ref();
        Self {
            requested_at: request.requested_at.into(),
            actor: request.actor.clone(),
            reason: request.reason.clone(),
            decided_at: closed.map(|closed| closed.decided_at.into()),
            decision: closed.map(|closed| closed.decision),
            note: closed.and_then(|closed| closed.note.clone()),
        }
    }
}

impl TryFrom<CancellationDocument> for CancellationRecord {
    type Error = Fault;

    fn try_from(document: CancellationDocument) -> Result<Self, Fault> {
        Ok(Self {
            by: document.by,
            via: document.via,
            scheduled_at: utc(document.scheduled_at)?,
            actor: document.actor,
            reason: document.reason,
            month: document.month,
        })
    }
}

impl From<&CancellationRecord> for CancellationDocument {
    fn from(record: &CancellationRecord) -> Self {
        Self {
            by: record.by,
            via: record.via,
            scheduled_at: record.scheduled_at.into(),
            actor: record.actor.clone(),
            reason: record.reason.clone(),
            month: record.month,
        }
    }
}

impl From<&PaymentFailureRecord> for PaymentFailureDocument {
    fn from(record: &PaymentFailureRecord) -> Self {
        Self {
            at: record.at.into(),
            invoice_id: record.invoice_id.clone(),
            amount: record.amount.clone(),
            card: record.card.clone(),
            attempt: record.attempt,
            failure_message: record.failure_message.clone(),
            failure_code: record.failure_code,
            command: Some(record.command.clone()),
            next_attempt_on: record.next_attempt_on,
        }
    }
}

impl From<&HistoryEntry> for HistoryDocument {
    fn from(entry: &HistoryEntry) -> Self {
        Self {
            at: entry.at.into(),
            command: entry.command.clone(),
            actor: entry.actor.clone(),
            from: entry.from,
            to: entry.to,
            ends_on: entry.ends_on,
            via: entry.via,
            reason: entry.reason.clone(),
            note: entry.note.clone(),
        }
    }
}
