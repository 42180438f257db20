//! A subscription.

use bson::{DateTime as Instant, RawDocument};
use chrono::{DateTime, NaiveDate, Utc};
use chrono_tz::Tz;
use serde::{Serialize, Serializer};

use offramp_domain::actor::Actor;
use offramp_domain::billing::BillingDay;
use offramp_domain::calendar::YearMonth;
use offramp_domain::subscription::{Channel, Initiator, NamedRef, Status, Subscription};
use offramp_domain::unit_of_work::LoadedDocument;

use super::fields::{Fields, utc};
use super::party::{self, Party};
use super::timeline::{self, TimelineEntry};
use super::unsent::Unsent;
use crate::store::documents::{
    self, BillingDocument, CancellationDocument, HistoryDocument, NotificationDocument, PaymentFailureDocument,
    RequestDocument, SubscriptionDocument,
};
use crate::store::outbox::entry::OutboxEntry;
use crate::store::rejected_commands::RejectedOf;
use crate::store::{Collection, Store, StoreError};

/// A subscription, and what happened to it. What the document does not have, or cannot be read, is absent.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SubscriptionView {
    /// Its id.
    pub id: String,
    pub organization: Party,
    pub account: Party,
    pub participant: Option<NamedRef>,
    pub plan: Option<NamedRef>,
    pub status: Option<Status>,
    /// The date of the first invoice that is not generated yet. Absent once the subscription is over.
    pub next_billing_on: Option<NaiveDate>,
    /// When the plan ends, if it does.
    pub expires_on: Option<NaiveDate>,
    /// The last day of access that follows from `expires_on`.
    pub natural_end_on: Option<NaiveDate>,
    /// The last day of access, once it is scheduled.
    pub ends_on: Option<NaiveDate>,
    /// The instant at which that day is over.
    pub ends_at: Option<DateTime<Utc>>,
    /// The date of the last invoice, once it is scheduled.
    pub final_billing_on: Option<NaiveDate>,
    /// The day on which it ended or was removed.
    pub ended_on: Option<NaiveDate>,
    /// The cancellation, if it was cancelled.
    pub cancellation: Option<Cancellation>,
    /// The client's undecided cancellation request.
    pub pending_request: Option<PendingRequest>,
    pub activities: Vec<NamedRef>,
    /// What happened, the oldest first.
    pub timeline: Vec<TimelineEntry>,
    /// Emails and events that are not sent yet.
    pub outbox: Vec<Unsent>,
    /// The first error that prevents a decision about the subscription, or that kept a part of it from being shown.
    pub problem: Option<String>,
    /// What could not be looked up, in sentences.
    pub notes: Vec<String>,
    /// The organization's, in which its dates are; UTC if that is unknown.
    #[serde(serialize_with = "zone_name")]
    pub timezone: Tz,
}

/// A cancellation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cancellation {
    /// Whose decision.
    pub by: Initiator,
    pub via: Channel,
    pub scheduled_at: Option<DateTime<Utc>>,
    pub actor: Actor,
    /// An administrator's reason is internal.
    pub reason: Option<String>,
    /// The month that was chosen.
    pub month: Option<YearMonth>,
}

/// An undecided cancellation request.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PendingRequest {
    pub requested_at: DateTime<Utc>,
    pub actor: Option<Actor>,
    pub reason: Option<String>,
}

/// A subscription in a list.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SubscriptionSummary {
    pub id: String,
    pub organization_id: Option<String>,
    pub account_id: Option<String>,
    pub status: Option<Status>,
    pub participant: Option<NamedRef>,
    pub plan: Option<NamedRef>,
    pub next_billing_on: Option<NaiveDate>,
    /// The last day of access, once it is scheduled.
    pub ends_on: Option<NaiveDate>,
    /// The day on which it ended.
    pub ended_on: Option<NaiveDate>,
}

/// `#[serde(serialize_with = "zone_name")]`: the IANA name of a time zone.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
pub(super) fn zone_name<S: Serializer>(zone: &Tz, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(zone.name())
}

/// Reads the subscription with this id, and what belongs to it; `None` if there is none.
///
/// # Errors
/// When the server does not answer, or a right is missing.
pub async fn subscription_view(store: &Store, id: &str) -> Result<Option<SubscriptionView>, StoreError> {
    let Some(raw) = store.document(Collection::Subscriptions, id).await? else { return Ok(None) };
    let mut fields = Fields::new(format!("{} {id}", Collection::Subscriptions.as_str()), &raw);
    let organization = party::organization(store, fields.read("organization_id")).await?;
    let account = party::account(store, fields.read("account_id")).await?;
    let (rejected, note) = timeline::rejected_commands(store, RejectedOf::Subscription(id)).await?;

    let status = status(&mut fields);
    let is_scheduled = matches!(status, Some(Status::CancellationScheduled | Status::Cancelled) | None);
    let is_removed = status == Some(Status::Removed);
    let expires_on = fields.date("expires_on");
    let billing_day = fields.read::<BillingDocument>("billing").and_then(|billing| billing.day.ok()?);
    let billing_day = billing_day.and_then(|day| BillingDay::try_from(day.0).ok());
    let request = fields.read::<RequestDocument>("cancellation_request");
    let outbox: Vec<Unsent> = fields.list::<OutboxEntry>("outbox").into_iter().map(Unsent::from).collect();

    let mut entries: Vec<TimelineEntry> = request.clone().into_iter().flat_map(timeline::request).collect();
    entries.extend(fields.list::<HistoryDocument>("history").into_iter().filter_map(timeline::change));
    let failures = fields.list::<PaymentFailureDocument>("payment_failures");
    entries.extend(failures.into_iter().filter_map(timeline::payment_failure));
    entries.extend(rejected);
    let emails = fields.list::<NotificationDocument>("notifications");
    entries.extend(emails.into_iter().filter_map(|record| timeline::email_entry(record, &outbox)));

    Ok(Some(SubscriptionView {
        id: id.to_owned(),
        participant: fields.read("participant"),
        plan: fields.read("plan"),
        status,
        next_billing_on: fields.date("billing.next_on"),
        expires_on,
        natural_end_on: expires_on.zip(billing_day).map(|(expires_on, day)| day.natural_end(expires_on)),
        ends_on: fields.date("ends_on").filter(|_| is_scheduled),
        ends_at: fields.read::<Instant>("ends_at").and_then(utc).filter(|_| is_scheduled),
        final_billing_on: fields.date("final_billing_on").filter(|_| is_scheduled),
        ended_on: fields.date("ended_on"),
        cancellation: fields.read::<CancellationDocument>("cancellation").filter(|_| is_scheduled).map(cancellation),
        pending_request: request.filter(|_| !is_removed).and_then(pending_request),
        activities: fields.list("activities"),
        timeline: timeline::sorted(entries),
        outbox,
        problem: first_problem(&raw).or_else(|| fields.problem()).or(organization.problem).or(account.problem),
        notes: note.into_iter().collect(),
        timezone: organization.timezone.unwrap_or(Tz::UTC),
        organization: organization.party,
        account: account.party,
    }))
}

/// A document without a status is active.
fn status(fields: &mut Fields<'_>) -> Option<Status> {
    fields.read_or("status", Status::Active)
}

/// What prevents decisions about a subscription.
fn first_problem(raw: &RawDocument) -> Option<String> {
    match documents::read::<SubscriptionDocument, Subscription>(Collection::Subscriptions.as_str(), raw) {
        LoadedDocument::Read(subscription) => {
            let next_invoice = subscription.require_next_invoice().err().map(|malformed| malformed.to_string());
            next_invoice.or_else(|| subscription.faults().first().map(ToString::to_string))
        }
        LoadedDocument::Corrupt { error, .. } => Some(error),
    }
}

fn cancellation(document: CancellationDocument) -> Cancellation {
    let CancellationDocument { by, via, scheduled_at, actor, reason, month } = document;
    let reason = reason.map(|reason| reason.to_string());
    Cancellation { by, via, scheduled_at: utc(scheduled_at), actor, reason, month }
}

fn pending_request(document: RequestDocument) -> Option<PendingRequest> {
    let RequestDocument { requested_at, actor, reason, decision, .. } = document;
    let reason = reason.map(|reason| reason.to_string());
    decision.is_none().then_some(PendingRequest { requested_at: utc(requested_at)?, actor, reason })
}

/// A subscription as a list shows it, read from at least these fields of its document.
pub(super) fn summary(raw: &RawDocument) -> Option<SubscriptionSummary> {
    let id = raw.get_str("_id").ok()?.to_owned();
    let mut fields = Fields::new(format!("{} {id}", Collection::Subscriptions.as_str()), raw);
    let status = status(&mut fields);
    let is_scheduled = matches!(status, Some(Status::CancellationScheduled | Status::Cancelled) | None);
    Some(SubscriptionSummary {
        id,
        organization_id: fields.read("organization_id"),
        account_id: fields.read("account_id"),
        status,
        participant: fields.read("participant"),
        plan: fields.read("plan"),
        next_billing_on: fields.date("billing.next_on"),
        ends_on: fields.date("ends_on").filter(|_| is_scheduled),
        ended_on: fields.date("ended_on"),
    })
}
