//! Documents of `organizations`.

use bson::DateTime as Instant;
use chrono::NaiveDate;
use chrono_tz::Tz;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use offramp_domain::contact::{Brand, Mailbox};
use offramp_domain::field::Malformed;
use offramp_domain::ids::OrganizationId;
use offramp_domain::link::Links;
use offramp_domain::organization::{ClientCancellation, LastReminder, Organization};

use super::fields::{date, missing, required, utc};
use super::records::NotificationDocument;
use super::stored::{Fault, Stored, list};
use crate::store::bson::{ExtendedJsonDate, Integer};
use crate::store::outbox::entry::OutboxEntry;

/// The longest lead time of a card notice, and the longest time before a reminder: two years. Cards are valid for few years more.
pub(in crate::store) const LEAD_DAYS_MAX: u32 = 731;

/// After how many days organizations that say nothing else are reminded of undecided requests.
const REQUEST_REMINDER_DAYS: [u32; 2] = [3, 7];

/// A document of `organizations`. Offramp writes the fields from `version` on.
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
    #[serde(default = "missing::<ContactDocument>")]
    #[schemars(with = "ContactDocument")]
    pub contact: Stored<ContactDocument>,
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
    /// After how many days without a decision the organization is reminded of its clients' requests; absent: `[3, 7]`, empty: never.
    #[serde(default)]
    #[schemars(with = "Option<Vec<u32>>")]
    pub request_reminder_days: Stored<Option<Vec<Integer>>>,
    /// Where administrators see a subscription: an http or https URL with `{subscription_id}`. Only the organization's emails link to
    /// it.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub admin_url: Stored<Option<String>>,
    /// Where administrators see an account: an http or https URL with `{account_id}`. Only the organization's emails link to it.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub admin_account_url: Stored<Option<String>>,
    /// Where clients see their account or subscription: an http or https URL with `{account_id}` and `{subscription_id}`. Emails about
    /// a card have no subscription, so they leave out a URL with `{subscription_id}`. Only the client's emails link to it.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub account_url: Stored<Option<String>>,
    /// Where clients change their card: an http or https URL with `{account_id}` and `{card_id}`. Without it emails link to
    /// `account_url`. Only the client's emails link to it.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub payment_method_url: Stored<Option<String>>,
    /// How its emails look.
    #[serde(default)]
    #[schemars(with = "Option<Brand>")]
    pub brand: Stored<Option<BrandDocument>>,
    /// Incremented by every writer.
    #[serde(default)]
    #[schemars(with = "Option<i64>")]
    pub version: Stored<Option<Integer>>,
    /// Emails that have not been sent yet.
    #[serde(default, deserialize_with = "list")]
    #[schemars(with = "Vec<OutboxEntry>")]
    pub outbox: Vec<Stored<OutboxEntry>>,
    /// The record of each email about no single account: of the decision, and of what became of it; the newest 1,000.
    #[serde(default, deserialize_with = "list")]
    #[schemars(with = "Vec<NotificationDocument>")]
    pub notifications: Vec<Stored<NotificationDocument>>,
    /// The newest reminder of undecided requests.
    #[serde(default)]
    #[schemars(with = "Option<RemindersDocument>")]
    pub reminders: Stored<Option<RemindersDocument>>,
}

/// The newest reminder of undecided requests. It prevents a second one on the same day, and a further one that tells nothing new.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Reminders")]
pub struct RemindersDocument {
    /// Its day, in the organization's calendar.
    #[schemars(with = "NaiveDate")]
    pub last_on: String,
    /// When it was decided.
    #[schemars(with = "ExtendedJsonDate")]
    pub last_at: Instant,
}

impl From<LastReminder> for RemindersDocument {
    fn from(LastReminder { on, at }: LastReminder) -> Self {
        Self { last_on: on.to_string(), last_at: at.into() }
    }
}

/// Its main contact. A phone number, postal address or website that cannot be read is left out.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "Contact")]
pub struct ContactDocument {
    /// The name.
    pub name: Option<String>,
    /// The address that receives the organization's emails and the replies of its clients.
    pub email: String,
    /// A phone number, as emails show it.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub phone: Stored<Option<String>>,
    /// A postal address, in one line or several.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub address: Stored<Option<String>>,
    /// A website: an http or https URL.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub website: Stored<Option<String>>,
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

impl TryFrom<OrganizationDocument> for Organization {
    type Error = Malformed;

    fn try_from(document: OrganizationDocument) -> Result<Self, Malformed> {
        let of = format!("organizations {}", document.id);
        let timezone =
            |name: String| name.parse::<Tz>().map_err(|_| Fault::new(format!("`{name}` is not an IANA time zone")));
        let days = |days: Vec<Integer>| {
            days.into_iter()
                .map(|Integer(days)| {
                    u32::try_from(days)
                        .ok()
                        .filter(|days| *days <= LEAD_DAYS_MAX)
                        .ok_or_else(|| Fault::new(format!("{days} is not a number of days, 0 to {LEAD_DAYS_MAX}")))
                })
                .collect::<Result<Vec<_>, _>>()
        };
        let card_notice_days = |given: Option<Vec<Integer>>| days(given.unwrap_or_default());
        let request_reminder_days =
            |given: Option<Vec<Integer>>| given.map_or_else(|| Ok(REQUEST_REMINDER_DAYS.to_vec()), days);
        let last_reminder = |reminders: Option<RemindersDocument>| {
            let Some(RemindersDocument { last_on, last_at }) = reminders else { return Ok(None) };
            Ok(Some(LastReminder { on: required(date(Some(last_on))?)?, at: utc(last_at)? }))
        };
        let brand = document.brand.ok().flatten().unwrap_or_default();
        let (contact, phone, address, website) = match document.contact.read(&of, "contact") {
            Ok(ContactDocument { name, email, phone, address, website }) => {
                (Ok(Mailbox { name, email }), optional(phone), optional(address), optional(website))
            }
            Err(malformed) => (Err(malformed), None, None, None),
        };
        Ok(Self {
            name: document.name.read(&of, "name"),
            locale: document.locale.ok().unwrap_or_default(),
            timezone: document.timezone.and_then(timezone).read(&of, "timezone"),
            contact,
            phone,
            address,
            website,
            client_cancellation: document.client_cancellation.read(&of, "client_cancellation"),
            notify_client_of_own_actions: document
                .notify_client_of_own_actions
                .read(&of, "notify_client_of_own_actions")
                .map(Option::unwrap_or_default),
            card_notice_days: document.card_notice_days.and_then(card_notice_days).read(&of, "card_notice_days"),
            request_reminder_days: document
                .request_reminder_days
                .and_then(request_reminder_days)
                .read(&of, "request_reminder_days"),
            links: Links {
                admin_url: optional(document.admin_url),
                admin_account_url: optional(document.admin_account_url),
                account_url: optional(document.account_url),
                payment_method_url: optional(document.payment_method_url),
            },
            brand: Brand { color: optional(brand.color), logo_url: optional(brand.logo_url) },
            version: document.version.read(&of, "version").map(|version| version.map(|Integer(version)| version)),
            last_reminder: document.reminders.and_then(last_reminder).read(&of, "reminders"),
            id: document.id,
        })
    }
}

/// A text that no decision depends on: absent if it cannot be read, or is empty.
fn optional(text: Stored<Option<String>>) -> Option<String> {
    text.ok().flatten().filter(|text| !text.trim().is_empty())
}
