//! Documents of `accounts`.

use bson::DateTime as Instant;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use offramp_domain::account::{Account, CardNotice, NoticeKind};
use offramp_domain::calendar::YearMonth;
use offramp_domain::card::{Card, Last4};
use offramp_domain::contact::Mailbox;
use offramp_domain::contact::names_language;
use offramp_domain::field::Malformed;
use offramp_domain::ids::{AccountId, CardBrand, CardId, OrganizationId};

use super::fields::{missing, null_as_default, utc};
use super::records::{AppliedDocument, NotificationDocument};
use super::stored::{Fault, Stored, list};
use crate::store::bson::{ExtendedJsonDate, integer};
use crate::store::outbox::entry::OutboxEntry;

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
    /// Emails and events that have not been sent yet.
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
            applied: document.applied.into_iter().map(Into::into).collect(),
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

impl From<&CardNotice> for CardNoticeDocument {
    fn from(notice: &CardNotice) -> Self {
        Self { card_id: notice.card_id.clone(), expires: notice.expires, notice: notice.kind, at: notice.at.into() }
    }
}
