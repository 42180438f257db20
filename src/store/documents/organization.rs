//! Documents of `organizations`. Offramp only reads them.

use chrono_tz::Tz;
use schemars::JsonSchema;
use serde::Deserialize;

use offramp_domain::contact::{Brand, Mailbox};
use offramp_domain::field::Malformed;
use offramp_domain::ids::OrganizationId;
use offramp_domain::link::Links;
use offramp_domain::organization::{ClientCancellation, Organization};

use super::fields::missing;
use super::stored::{Fault, Stored};
use crate::store::bson::Integer;

/// The longest lead time of a card notice: two years. Cards are valid for few years more.
pub(in crate::store) const CARD_NOTICE_DAYS_MAX: u32 = 731;

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
            links: Links {
                admin_url: optional(document.admin_url),
                admin_account_url: optional(document.admin_account_url),
                account_url: optional(document.account_url),
                payment_method_url: optional(document.payment_method_url),
            },
            brand: Brand { color: optional(brand.color), logo_url: optional(brand.logo_url) },
            id: document.id,
        })
    }
}

/// A text that no decision depends on: absent if it cannot be read, or is empty.
fn optional(text: Stored<Option<String>>) -> Option<String> {
    text.ok().flatten().filter(|text| !text.trim().is_empty())
}
