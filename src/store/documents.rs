//! The documents as the database keeps them (contract §3), and how they become the domain's types.
//!
//! Other systems write these documents too. What Offramp does not know is neither read nor written. What it knows and cannot read
//! stops the decisions that need it and no others. Documents are read more leniently than they are written, so that a field that a
//! newer version adds does no harm.

mod stored;

use bson::{Bson, DateTime as Instant, Document, RawDocument, doc};
use chrono::{DateTime, Datelike, NaiveDate, Utc};
use chrono_tz::Tz;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};

use offramp_domain::account::{Account, CardNotice, NoticeKind};
use offramp_domain::billing::{BillingDay, BillingMode, DOCUMENT_YEARS, YearMonth, iso_date, parse_date};
use offramp_domain::command::{Actor, Amount, Card, CommandKey, CommandRef, Last4, PaymentCard};
use offramp_domain::field::{Field, Malformed};
use offramp_domain::ids::{
    AccountId, CardBrand, CardId, FreeText, InvoiceId, OrganizationId, SubscriptionId, names_language,
};
use offramp_domain::notification::{Brand, Mailbox};
use offramp_domain::organization::{ClientCancellation, Organization};
use offramp_domain::subscription::{
    CancellationRecord, Channel, Closed, Details, HistoryEntry, Initiator, NamedRef, PaymentFailureRecord, Request,
    RequestDecision, ScheduledEnd, Status, Subscription,
};
use offramp_domain::unit_of_work::LoadedDocument;

use super::Collection;
use super::outbox::entry::OutboxEntry;

use stored::{Fault, list};
pub use stored::{Stored, kind};

/// The longest lead time of a card notice: two years. Cards are valid for few years more.
pub(super) const CARD_NOTICE_DAYS_MAX: u32 = 731;

/// A document of `organizations`. Offramp only reads it.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(
    rename = "Organization",
    extend("required" = ["_id", "name", "locale", "timezone", "contact", "client_cancellation"])
)]
pub struct OrganizationDocument {
    /// Its id.
    #[serde(rename = "_id")]
    pub id: OrganizationId,
    /// Its name, which is also the sender's name of its emails.
    #[serde(default = "missing::<String>")]
    #[schemars(with = "String")]
    pub name: Stored<String>,
    /// The language of its emails, and of its clients' where they have none: a BCP 47 tag such as `fr-CA`.
    #[serde(default = "missing::<String>")]
    #[schemars(with = "String")]
    pub locale: Stored<String>,
    /// An IANA time zone such as `America/Toronto`: whose midnight ends a day.
    #[serde(default = "missing::<String>")]
    #[schemars(with = "String")]
    pub timezone: Stored<String>,
    /// Its main contact.
    #[serde(default = "missing::<Mailbox>")]
    #[schemars(with = "Mailbox")]
    pub contact: Stored<Mailbox>,
    /// What clients may do who want to leave.
    #[serde(default = "missing::<ClientCancellation>")]
    #[schemars(with = "ClientCancellation")]
    pub client_cancellation: Stored<ClientCancellation>,
    /// Whether clients get an email about what they did themselves.
    #[serde(default)]
    #[schemars(with = "Option<bool>")]
    pub notify_client_of_own_actions: Stored<Option<bool>>,
    /// How many days before a card expires its holder is told, e.g. `[30, 5]`.
    #[serde(default)]
    #[schemars(with = "Option<Vec<u32>>")]
    pub card_notice_days: Stored<Option<Vec<Integer>>>,
    /// Where administrators see a subscription, with `{subscription_id}` in its place.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub admin_url: Stored<Option<String>>,
    /// How its emails look.
    #[serde(default)]
    #[schemars(with = "Option<Brand>")]
    pub brand: Stored<Option<BrandDocument>>,
}

/// `organizations.brand`, each field by itself: what cannot be read is left out.
#[derive(Debug, Default, Deserialize)]
pub struct BrandDocument {
    /// A colour of CSS.
    #[serde(default)]
    pub color: Stored<Option<String>>,
    /// An image.
    #[serde(default)]
    pub logo_url: Stored<Option<String>>,
}

/// A document of `accounts`. Offramp writes the fields from `version` on.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "Account", extend("required" = ["_id", "organization_id", "manager"]))]
pub struct AccountDocument {
    /// Its id.
    #[serde(rename = "_id")]
    pub id: AccountId,
    /// The organization that it belongs to.
    pub organization_id: OrganizationId,
    /// The account manager: the customer who holds the account.
    #[serde(default = "missing::<ManagerDocument>")]
    #[schemars(with = "ManagerDocument")]
    pub manager: Stored<ManagerDocument>,
    /// The saved cards.
    #[serde(default, deserialize_with = "list")]
    #[schemars(with = "Option<Vec<CardDocument>>")]
    pub cards: Vec<Stored<CardDocument>>,
    /// Incremented by every writer.
    #[serde(default, deserialize_with = "integer")]
    pub version: Option<i64>,
    /// The newest commands that were applied.
    #[serde(default, deserialize_with = "null_as_default")]
    pub applied: Vec<AppliedDocument>,
    /// Mails and events that have not left yet.
    #[serde(default, deserialize_with = "list")]
    #[schemars(with = "Vec<OutboxEntry>")]
    pub outbox: Vec<Stored<OutboxEntry>>,
    /// The notices that were given, until two months after the card's expiry month.
    #[serde(default)]
    #[schemars(with = "Vec<CardNoticeDocument>")]
    pub card_notices: Stored<Option<Vec<CardNoticeDocument>>>,
    /// The record of each email: of the decision, and of what became of it.
    #[serde(default, deserialize_with = "list")]
    #[schemars(with = "Vec<NotificationDocument>")]
    pub notifications: Vec<Stored<NotificationDocument>>,
}

/// The account manager.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct ManagerDocument {
    /// Their name.
    pub name: String,
    /// Their address.
    pub email: String,
    /// Their language, a BCP 47 tag; absent, or not such a tag: the organization's.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub locale: Stored<Option<String>>,
}

/// A saved card.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct CardDocument {
    /// Its id in the payment system.
    pub id: CardId,
    /// `"Visa"`
    pub brand: CardBrand,
    /// `"4242"`
    pub last4: Last4,
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
    /// How many entries that has, in what [`decisive`] reads.
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
    /// Mails and events that have not left yet.
    #[serde(default, deserialize_with = "list")]
    #[schemars(with = "Vec<OutboxEntry>")]
    pub outbox: Vec<Stored<OutboxEntry>>,
}

/// A date that Offramp wrote itself: of any year of four digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct OwnDate(#[serde(with = "iso_date")] pub NaiveDate);

/// As much of a [`Named`] as decisions need.
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
        Collection::Organizations => &[
            "name",
            "locale",
            "timezone",
            "contact",
            "client_cancellation",
            "notify_client_of_own_actions",
            "card_notice_days",
            "admin_url",
            "brand",
        ],
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

/// The projection to what a decision about a subscription needs of its account.
#[must_use]
pub fn decisive_behind() -> Document {
    doc! { "organization_id": 1, "manager": 1, "version": 1 }
}

/// Reads `raw` as a document of `collection`. Where its id, its owner, its version, its status or the list of applied commands
/// cannot be read, all of it is corrupt; the sentence names the document, the field and the reason.
pub fn read<D: DeserializeOwned, T: TryFrom<D, Error = Malformed>>(
    collection: &str,
    raw: &RawDocument,
) -> LoadedDocument<T> {
    let document = stored::whole::<D>(raw).map_err(|fault| fault.of(&format!("{collection} {}", id_of(raw)), ""));
    match document.and_then(T::try_from) {
        Ok(document) => LoadedDocument::Read(document),
        Err(Malformed(error)) => LoadedDocument::Corrupt {
            organization_id: raw.get_str("organization_id").ok().and_then(|id| id.try_into().ok()),
            error,
        },
    }
}

/// The `_id` of a document, for sentences.
fn id_of(raw: &RawDocument) -> String {
    match raw.get("_id") {
        Ok(Some(id)) => id.as_str().map_or_else(|| format!("{id:?}"), str::to_owned),
        _ => "without _id".to_owned(),
    }
}

/// An integer, in whichever of BSON's number types another system wrote it.
pub(super) fn integer<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    Option::<Integer>::deserialize(deserializer).map(|number| number.map(|Integer(number)| number))
}

/// `#[serde(default = "missing")]`: a field that has to be there.
fn missing<T>() -> Stored<T> {
    Stored::missing()
}

/// `#[serde(deserialize_with = "readable")]`: what cannot be read counts as absent.
fn readable<'de, D: Deserializer<'de>, T: DeserializeOwned>(deserializer: D) -> Result<Option<T>, D::Error> {
    Stored::<Option<T>>::deserialize(deserializer).map(|stored| stored.ok().flatten())
}

/// `#[serde(deserialize_with = "null_as_default")]`: null counts as absent.
fn null_as_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// An integer, in whichever of BSON's number types another system wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Integer(pub i64);

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

/// A BSON date as an instant, of the years of four digits: beyond them a date has no form, and no time zone.
fn utc(instant: Instant) -> Result<DateTime<Utc>, Fault> {
    let time = instant.to_chrono();
    if (0..=9999).contains(&time.year()) { Ok(time) } else { Err(Fault::new("is outside the years 0 to 9999")) }
}

/// A date that another system wrote.
fn date(text: Option<String>) -> Result<Option<NaiveDate>, Fault> {
    let Some(text) = text else { return Ok(None) };
    let date = parse_date(&text).map_err(Fault::new)?;
    if DOCUMENT_YEARS.contains(&date.year()) {
        Ok(Some(date))
    } else {
        let (first, last) = (DOCUMENT_YEARS.start(), DOCUMENT_YEARS.end());
        Err(Fault::new(format!("`{text}` is not of the years {first} to {last}")))
    }
}

/// Checks that a field is there.
fn required<T>(value: Option<T>) -> Result<T, Fault> {
    value.ok_or_else(|| Fault::new("missing"))
}

impl TryFrom<OrganizationDocument> for Organization {
    type Error = Malformed;

    fn try_from(document: OrganizationDocument) -> Result<Self, Malformed> {
        let of = format!("organizations {}", document.id);
        let timezone =
            |name: String| name.parse::<Tz>().map_err(|_| Fault::new(format!("`{name}` is not an IANA time zone")));
        let card_notice_days = |days: Option<Vec<Integer>>| {
            let days = days.unwrap_or_default().into_iter();
            days.map(|Integer(days)| {
                u32::try_from(days)
                    .ok()
                    .filter(|days| *days <= CARD_NOTICE_DAYS_MAX)
                    .ok_or_else(|| Fault::new(format!("{days} is not a number of days, 0 to {CARD_NOTICE_DAYS_MAX}")))
            })
            .collect::<Result<Vec<_>, _>>()
        };
        let brand = document.brand.ok().flatten().unwrap_or_default();
        Ok(Self {
            name: document.name.read(&of, "name"),
            locale: document.locale.ok().unwrap_or_default(),
            timezone: document.timezone.and_then(timezone).read(&of, "timezone"),
            contact: document.contact.read(&of, "contact"),
            client_cancellation: document.client_cancellation.read(&of, "client_cancellation"),
            notify_client_of_own_actions: document
                .notify_client_of_own_actions
                .read(&of, "notify_client_of_own_actions")
                .map(Option::unwrap_or_default),
            card_notice_days: document.card_notice_days.and_then(card_notice_days).read(&of, "card_notice_days"),
            admin_url: document.admin_url.ok().flatten(),
            brand: Brand { color: brand.color.ok().flatten(), logo_url: brand.logo_url.ok().flatten() },
            id: document.id,
        })
    }
}

impl TryFrom<AccountDocument> for Account {
    type Error = Malformed;

    fn try_from(document: AccountDocument) -> Result<Self, Malformed> {
        let of = format!("accounts {}", document.id);
        let (manager, manager_locale) = match document.manager.read(&of, "manager") {
            Ok(ManagerDocument { name, email, locale }) => {
                (Ok(Mailbox { name: Some(name), email }), locale.ok().flatten())
            }
            Err(malformed) => (Err(malformed), None),
        };
        let notices = |notices: Option<Vec<CardNoticeDocument>>| {
            notices.unwrap_or_default().into_iter().map(CardNotice::try_from).collect::<Result<Vec<_>, _>>()
        };
        let card = |CardDocument { id, brand, last4, expires }| Card { id, brand, last4, expires };
        Ok(Self {
            organization_id: document.organization_id,
            manager,
            manager_locale: manager_locale.filter(|locale| names_language(locale)),
            cards: document.cards.into_iter().map(|stored| stored.read(&of, "cards").map(card)).collect(),
            version: document.version,
            applied: document.applied.into_iter().map(|applied| applied.key).collect(),
            card_notices: document.card_notices.and_then(notices).read(&of, "card_notices"),
            id: document.id,
        })
    }
}

impl TryFrom<CardNoticeDocument> for CardNotice {
    type Error = Fault;

    fn try_from(given: CardNoticeDocument) -> Result<Self, Fault> {
        let CardNoticeDocument { card_id, expires, notice, at } = given;
        Ok(Self { card_id, expires, kind: notice, at: utc(at)? })
    }
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
            applied: std::mem::take(&mut document.applied).into_iter().map(|applied| applied.key).collect(),
            // It is for a sentence only.
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

/// The scheduled end. What a document has of one while its status does not say so is left from an earlier life of it.
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

impl From<&CardNotice> for CardNoticeDocument {
    fn from(notice: &CardNotice) -> Self {
        Self { card_id: notice.card_id.clone(), expires: notice.expires, notice: notice.kind, at: notice.at.into() }
    }
}

#[cfg(test)]
mod tests;
