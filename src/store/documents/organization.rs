//! Documents of `organizations`. Offramp only reads them.

use chrono_tz::Tz;
use schemars::JsonSchema;
use serde::Deserialize;

use offramp_domain::contact::{Brand, Mailbox};
use offramp_domain::field::Malformed;
use offramp_domain::ids::OrganizationId;
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
