//! The documents as the database keeps them (contract §3), and how they become the domain's types.
//!
//! Other systems write these documents too. What Offramp does not know is neither read nor written; what it knows must have
//! the right type, or the document is corrupt: it is reported, and left as it is.

use bson::{Bson, DateTime as Instant, Document, RawDocument, doc};
use chrono::{DateTime, Datelike, NaiveDate, Utc};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};

use crate::domain::account::{Account, CardNotice, NoticeKind};
use crate::domain::billing::{Billing, BillingDay, BillingMode, YEARS, YearMonth, iso_date};
use crate::domain::command::{Actor, Amount, Card, CommandKey, CommandRef, PaymentCard};
use crate::domain::fold::Loaded;
use crate::domain::notification::{Brand, Mailbox};
use crate::domain::organization::{ClientCancellation, Organization};
use crate::domain::subscription::{
    By, CancellationRecord, Closed, Details, HistoryEntry, Named, PaymentFailureRecord, Request, RequestDecision,
    ScheduledEnd, Status, Subscription, Via,
};
use crate::domain::text::{AccountId, CardBrand, CardId, FreeText, InvoiceId, OrganizationId, SubscriptionId};

use super::Collection;
use super::outbox::OutboxEntry;

/// The longest lead time of a card notice: two years. Cards are valid for few years more.
const CARD_NOTICE_DAYS_MAX: u32 = 731;

/// A document of `organizations`. Offramp only reads it.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "Organization")]
pub struct OrganizationDocument {
    /// Its id.
    #[serde(rename = "_id")]
    pub id: OrganizationId,
    /// Its name, which is also the sender's name of its mails.
    pub name: String,
    /// The language of its mails, and of its clients' where they have none: a BCP 47 tag such as `fr-CA`.
    pub locale: String,
    /// An IANA time zone such as `America/Toronto`: whose midnight ends a day.
    pub timezone: String,
    /// Its main contact.
    pub contact: Mailbox,
    /// What clients may do who want to leave.
    pub client_cancellation: ClientCancellation,
    /// Whether clients get a mail about what they did themselves.
    #[serde(default)]
    pub notify_client_of_own_actions: Option<bool>,
    /// How many days before a card expires its holder is told, e.g. `[30, 5]`.
    #[serde(default, deserialize_with = "integers")]
    #[schemars(with = "Option<Vec<u32>>")]
    pub card_notice_days: Vec<i64>,
    /// Where administrators see a subscription, with `{subscription_id}` in its place.
    #[serde(default)]
    pub admin_url: Option<String>,
    /// How its mails look.
    #[serde(default)]
    pub brand: Option<Brand>,
}

/// A document of `accounts`. Offramp writes the fields from `version` on.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "Account")]
pub struct AccountDocument {
    /// Its id.
    #[serde(rename = "_id")]
    pub id: AccountId,
    /// The organization that it belongs to.
    pub organization_id: OrganizationId,
    /// The account manager: the customer who holds the account.
    pub manager: ManagerDocument,
    /// The saved cards.
    #[serde(default)]
    pub cards: Option<Vec<CardDocument>>,
    /// Incremented by every writer.
    #[serde(default, deserialize_with = "integer")]
    pub version: Option<i64>,
    /// The newest commands that were applied.
    #[serde(default)]
    pub applied: Vec<AppliedDocument>,
    /// Mails and events that have not left yet.
    #[serde(default)]
    pub outbox: Vec<OutboxEntry>,
    /// The newest notices that were given.
    #[serde(default)]
    pub card_notices: Vec<CardNoticeDocument>,
    /// The record of each email: of the decision, and of what became of it.
    #[serde(default, deserialize_with = "readable")]
    pub notifications: Vec<NotificationDocument>,
}

/// The account manager.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct ManagerDocument {
    /// Their name.
    pub name: String,
    /// Their address.
    pub email: String,
    /// Their language, a BCP 47 tag; absent: the organization's.
    #[serde(default)]
    pub locale: Option<String>,
}

/// A saved card.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct CardDocument {
    /// Its id in the payment system.
    pub id: CardId,
    /// `"Visa"`
    pub brand: CardBrand,
    /// `"4242"`
    pub last4: crate::domain::command::Last4,
    /// The month to whose end it is valid.
    pub expires: YearMonth,
}

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

/// A card notice that was given.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct CardNoticeDocument {
    /// The card.
    pub card_id: CardId,
    /// Its expiry month.
    pub expires: YearMonth,
    /// Which of the notices: `"early"`, `{"days": 30}`, `"expired"`.
    pub notice: NoticeKind,
    /// When.
    #[schemars(with = "ExtendedJsonDate")]
    pub at: Instant,
}

/// The record of an email, written with the decision that it tells about.
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
    /// When it failed for good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<ExtendedJsonDate>")]
    pub failed_at: Option<Instant>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

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
    pub participant: Option<Named>,
    /// What was bought.
    #[serde(default)]
    pub plan: Option<Named>,
    /// How it is billed.
    #[serde(default)]
    pub billing: Option<BillingDocument>,
    /// From which day on it is not renewed, where the plan has an end.
    #[serde(default, with = "iso_date::option")]
    #[schemars(with = "Option<NaiveDate>")]
    pub expires_on: Option<NaiveDate>,
    /// What the participant is enrolled in.
    #[serde(default)]
    pub activities: Option<Vec<Named>>,
    /// Incremented by every writer.
    #[serde(default, deserialize_with = "integer")]
    pub version: Option<i64>,
    /// Where it stands; absent: active.
    #[serde(default)]
    pub status: Option<Status>,
    /// The last day of access, inclusive, in the organization's calendar.
    #[serde(default, with = "iso_date::option")]
    #[schemars(with = "Option<NaiveDate>")]
    pub ends_on: Option<NaiveDate>,
    /// The instant at which that day is over there.
    #[serde(default)]
    #[schemars(with = "Option<ExtendedJsonDate>")]
    pub ends_at: Option<Instant>,
    /// The date of the last invoice.
    #[serde(default, with = "iso_date::option")]
    #[schemars(with = "Option<NaiveDate>")]
    pub final_billing_on: Option<NaiveDate>,
    /// The day on which it ended.
    #[serde(default, with = "iso_date::option")]
    #[schemars(with = "Option<NaiveDate>")]
    pub ended_on: Option<NaiveDate>,
    /// The newest request of the client.
    #[serde(default)]
    pub cancellation_request: Option<RequestDocument>,
    /// The cancellation.
    #[serde(default)]
    pub cancellation: Option<CancellationDocument>,
    /// The newest 20 failed payments.
    #[serde(default)]
    pub payment_failures: Vec<PaymentFailureDocument>,
    /// The audit trail.
    #[serde(default)]
    pub history: Vec<HistoryDocument>,
    /// How many entries that has, in what [`decisive`] reads.
    #[serde(default, rename = "offramp_history_length")]
    #[schemars(skip)]
    pub history_length: Option<u32>,
    /// The record of each email: of the decision, and of what became of it.
    #[serde(default, deserialize_with = "readable")]
    pub notifications: Vec<NotificationDocument>,
    /// The newest 200 commands that were applied.
    #[serde(default)]
    pub applied: Vec<AppliedDocument>,
    /// Mails and events that have not left yet.
    #[serde(default)]
    pub outbox: Vec<OutboxEntry>,
}

/// `subscriptions.billing`
#[derive(Debug, Deserialize, JsonSchema)]
pub struct BillingDocument {
    /// Whose day it is: the purchase's or the organization's.
    pub mode: BillingMode,
    /// The billing day, 1 to 31.
    #[serde(deserialize_with = "required_integer")]
    #[schemars(range(min = 1, max = 31))]
    pub day: i64,
    /// The first invoice not yet generated. Every live subscription has one.
    #[serde(default, with = "iso_date::option")]
    #[schemars(with = "Option<NaiveDate>")]
    pub next_on: Option<NaiveDate>,
    /// The date of the newest invoice.
    #[serde(default, with = "iso_date::option")]
    #[schemars(with = "Option<NaiveDate>")]
    pub last_on: Option<NaiveDate>,
    /// The newest invoice.
    #[serde(default)]
    pub last_invoice_id: Option<InvoiceId>,
}

/// `subscriptions.cancellation_request`
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct RequestDocument {
    /// When the client sent it.
    #[schemars(with = "ExtendedJsonDate")]
    pub requested_at: Instant,
    /// Who asked.
    pub actor: Actor,
    /// In their words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
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
    pub by: By,
    /// How it came.
    pub via: Via,
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
}

/// An instant as extended JSON writes a BSON date; used in JSON Schemas only.
#[derive(JsonSchema)]
#[schemars(inline)]
pub struct ExtendedJsonDate {
    /// RFC 3339, or milliseconds since 1970.
    #[serde(rename = "$date")]
    #[schemars(with = "DateTime<Utc>")]
    _date: (),
}

/// The name under which [`decisive`] has the length of `history`.
const HISTORY_LENGTH: &str = "offramp_history_length";

/// The projection to what is decided on: all that is known of a document but the lists that only grow, and of `history` how
/// long it is. It names what it takes: to leave out a list of a thousand entries takes the server twenty times as long.
#[must_use]
pub fn decisive(collection: Collection) -> Document {
    let fields: &[&str] = match collection {
        Collection::Organizations => &[],
        Collection::Accounts => &["organization_id", "manager", "cards", "version", "applied", "card_notices"],
        Collection::Subscriptions => &[
            "organization_id",
            "account_id",
            "participant",
            "plan",
            "billing",
            "expires_on",
            "activities",
            "version",
            "status",
            "ends_on",
            "ends_at",
            "final_billing_on",
            "ended_on",
            "cancellation_request",
            "cancellation",
            "applied",
        ],
    };
    let mut projection: Document = fields.iter().map(|field| ((*field).to_owned(), Bson::Int32(1))).collect();
    if collection == Collection::Subscriptions {
        let length = doc! { "$cond": [{ "$isArray": "$history" }, { "$size": "$history" }, Bson::Null] };
        projection.insert(HISTORY_LENGTH, length);
    }
    projection
}

/// Reads `raw` as a document of `collection`. What cannot be read is corrupt, with a sentence that names the document, the
/// field and the reason.
pub fn read<D: DeserializeOwned, T: TryFrom<D, Error = String>>(collection: &str, raw: &RawDocument) -> Loaded<T> {
    bson::deserialize_from_slice::<D>(raw.as_bytes())
        .map_err(|error| locate::<D>(raw).unwrap_or_else(|| error.to_string()))
        .and_then(T::try_from)
        .map_or_else(
            |error| Loaded::Corrupt {
                organization_id: raw.get_str("organization_id").ok().and_then(|id| id.try_into().ok()),
                error: format!("{collection} {}: {error}", id_of(raw)),
            },
            Loaded::Read,
        )
}

/// The `_id` of a document, for sentences.
fn id_of(raw: &RawDocument) -> String {
    match raw.get("_id") {
        Ok(Some(id)) => id.as_str().map_or_else(|| format!("{id:?}"), str::to_owned),
        _ => "without _id".to_owned(),
    }
}

/// Reads once more, more slowly, to learn which field is wrong.
fn locate<D: DeserializeOwned>(raw: &RawDocument) -> Option<String> {
    let document = Document::try_from(raw).ok()?;
    let error = serde_path_to_error::deserialize::<_, D>(bson::Deserializer::new(Bson::Document(document))).err()?;
    let reason = error.inner().to_string();
    let reason = reason.strip_prefix("BSON error: ").unwrap_or(&reason);
    Some(match error.path().to_string().as_str() {
        "." => reason.to_owned(),
        path => format!("{path}: {reason}"),
    })
}

/// An integer, in whichever of BSON's number types another system wrote it.
pub(super) fn integer<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    Option::<Integer>::deserialize(deserializer).map(|number| number.map(|Integer(number)| number))
}

/// The items of a list that can be read, for a list that nothing is decided on: what cannot be read is left out.
fn readable<'de, D: Deserializer<'de>, T: DeserializeOwned>(deserializer: D) -> Result<Vec<T>, D::Error> {
    let items = match Bson::deserialize(deserializer)? {
        Bson::Array(items) => items,
        _ => Vec::new(),
    };
    Ok(items.into_iter().filter_map(|item| bson::deserialize_from_bson(item).ok()).collect())
}

fn required_integer<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    Integer::deserialize(deserializer).map(|Integer(number)| number)
}

fn integers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<i64>, D::Error> {
    let numbers = Option::<Vec<Integer>>::deserialize(deserializer)?.unwrap_or_default();
    Ok(numbers.into_iter().map(|Integer(number)| number).collect())
}

struct Integer(i64);

impl<'de> Deserialize<'de> for Integer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl serde::de::Visitor<'_> for Visitor {
            type Value = Integer;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an integer")
            }

            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Integer, E> {
                Ok(Integer(number))
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Integer, E> {
                i64::try_from(number).map(Integer).map_err(E::custom)
            }

            fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Integer, E> {
                const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
                if number.fract() == 0.0 && number.abs() < EXACT_MAX {
                    #[allow(clippy::cast_possible_truncation, reason = "checked in the line above")]
                    Ok(Integer(number as i64))
                } else {
                    Err(E::custom(format!("{number} is not an integer")))
                }
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

/// A BSON date as an instant, of the years that dates may have: one at the end of the calendar has no date in some time
/// zones.
fn utc(field: &str, instant: Instant) -> Result<DateTime<Utc>, String> {
    let time = instant.to_chrono();
    if YEARS.contains(&time.year()) { Ok(time) } else { Err(format!("{field}: {time} is beyond the calendar")) }
}

impl TryFrom<OrganizationDocument> for Organization {
    type Error = String;

    fn try_from(document: OrganizationDocument) -> Result<Self, String> {
        let timezone = document
            .timezone
            .parse()
            .map_err(|_| format!("timezone: `{}` is not an IANA time zone", document.timezone))?;
        let card_notice_days = document
            .card_notice_days
            .into_iter()
            .map(|days| {
                u32::try_from(days).ok().filter(|days| *days <= CARD_NOTICE_DAYS_MAX).ok_or_else(|| {
                    format!("card_notice_days: {days} is not a number of days, 0 to {CARD_NOTICE_DAYS_MAX}")
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            id: document.id,
            name: document.name,
            locale: document.locale,
            timezone,
            contact: document.contact,
            client_cancellation: document.client_cancellation,
            notify_client_of_own_actions: document.notify_client_of_own_actions.unwrap_or(false),
            card_notice_days,
            admin_url: document.admin_url,
            brand: document.brand.unwrap_or_default(),
        })
    }
}

impl TryFrom<AccountDocument> for Account {
    type Error = String;

    fn try_from(document: AccountDocument) -> Result<Self, String> {
        Ok(Self {
            id: document.id,
            organization_id: document.organization_id,
            manager: Mailbox { name: Some(document.manager.name), email: document.manager.email },
            manager_locale: document.manager.locale,
            cards: document
                .cards
                .unwrap_or_default()
                .into_iter()
                .map(|card| Card { id: card.id, brand: card.brand, last4: card.last4, expires: card.expires })
                .collect(),
            version: document.version,
            applied: document.applied.into_iter().map(|applied| applied.key).collect(),
            card_notices: document
                .card_notices
                .into_iter()
                .map(|given| {
                    Ok(CardNotice {
                        card_id: given.card_id,
                        expires: given.expires,
                        kind: given.notice,
                        at: utc("card_notices.at", given.at)?,
                    })
                })
                .collect::<Result<_, String>>()?,
        })
    }
}

impl TryFrom<SubscriptionDocument> for Subscription {
    type Error = String;

    fn try_from(mut document: SubscriptionDocument) -> Result<Self, String> {
        let status = document.status.unwrap_or_default();
        let applied = std::mem::take(&mut document.applied).into_iter().map(|applied| applied.key).collect();
        Ok(Self {
            id: document.id.clone(),
            organization_id: document.organization_id.clone(),
            account_id: document.account_id.clone(),
            version: document.version,
            status,
            history_length: document.history_length,
            applied,
            ended_on: document.ended_on,
            details: match status {
                Status::Removed => None,
                _ => Some(details(document, status)?),
            },
        })
    }
}

fn details(document: SubscriptionDocument, status: Status) -> Result<Details, String> {
    let billing = document.billing.ok_or("billing: missing")?;
    let next_on = billing.next_on;
    if status.is_live() && next_on.is_none() {
        return Err(format!("billing.next_on: missing, though the subscription is {}", status.as_str()));
    }
    let end = match (document.ends_on, document.ends_at) {
        (Some(ends_on), Some(ends_at)) => Some(ScheduledEnd {
            ends_on,
            ends_at: utc("ends_at", ends_at)?,
            final_billing_on: document.final_billing_on,
        }),
        (None, _) if status == Status::CancellationScheduled => {
            return Err("ends_on: missing, though the subscription is cancellation_scheduled".to_owned());
        }
        (_, None) if status == Status::CancellationScheduled => {
            return Err("ends_at: missing, though the subscription is cancellation_scheduled".to_owned());
        }
        _ => None,
    };
    Ok(Details {
        participant: document.participant.ok_or("participant: missing")?,
        plan: document.plan.ok_or("plan: missing")?,
        billing: Billing {
            mode: billing.mode,
            day: BillingDay::try_from(billing.day).map_err(|error| format!("billing.day: {error}"))?,
            next_on,
            last_invoice_id: billing.last_invoice_id,
        },
        expires_on: document.expires_on,
        activities: document.activities.unwrap_or_default(),
        end,
        request: document.cancellation_request.map(Request::try_from).transpose()?,
        cancellation: document.cancellation.map(CancellationRecord::try_from).transpose()?,
    })
}

impl TryFrom<RequestDocument> for Request {
    type Error = String;

    fn try_from(document: RequestDocument) -> Result<Self, String> {
        let closed = match (document.decided_at, document.decision) {
            (Some(decided_at), Some(decision)) => Some(Closed {
                decided_at: utc("cancellation_request.decided_at", decided_at)?,
                decision,
                note: document.note,
            }),
            (None, None) => None,
            _ => return Err("cancellation_request: decided_at and decision go together".to_owned()),
        };
        Ok(Self {
            requested_at: utc("cancellation_request.requested_at", document.requested_at)?,
            actor: document.actor,
            reason: document.reason,
            closed,
        })
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
    type Error = String;

    fn try_from(document: CancellationDocument) -> Result<Self, String> {
        Ok(Self {
            by: document.by,
            via: document.via,
            scheduled_at: utc("cancellation.scheduled_at", document.scheduled_at)?,
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
        }
    }
}

impl From<&CardNotice> for CardNoticeDocument {
    fn from(notice: &CardNotice) -> Self {
        Self { card_id: notice.card_id.clone(), expires: notice.expires, notice: notice.kind, at: notice.at.into() }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn what_is_decided_on_is_all_but_the_lists_that_only_grow() {
        #[track_caller]
        fn check<D: JsonSchema>(collection: Collection, grow: &[&str]) {
            let schema = schemars::schema_for!(D);
            let known: BTreeSet<&str> =
                schema.get("properties").unwrap().as_object().unwrap().keys().map(String::as_str).collect();
            let decisive = decisive(collection);
            let mut named: BTreeSet<&str> = decisive.keys().map(String::as_str).collect();
            named.remove(HISTORY_LENGTH);
            named.extend(["_id"].iter().chain(grow));
            assert_eq!(named, known);
        }
        check::<AccountDocument>(Collection::Accounts, &["outbox", "notifications"]);
        let grow = ["outbox", "notifications", "history", "payment_failures"];
        check::<SubscriptionDocument>(Collection::Subscriptions, &grow);
    }
}
