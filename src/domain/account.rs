//! What the rules need to know of an account, and the record of card notices.

use chrono::{DateTime, NaiveDate, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::billing::YearMonth;
use super::command::{Card, CommandKey};
use super::notification::Mailbox;
use super::text::{AccountId, CardId, OrganizationId};

/// A client's account.
#[derive(Clone, Debug, PartialEq)]
pub struct Account {
    /// `_id`
    pub id: AccountId,
    /// The organization that it belongs to.
    pub organization_id: OrganizationId,
    /// The account manager.
    pub manager: Mailbox,
    /// The account manager's language, a BCP 47 tag.
    pub manager_locale: Option<String>,
    /// The saved cards.
    pub cards: Vec<Card>,
    /// The document's version; absent in one that no one has changed yet.
    pub version: Option<i64>,
    /// The newest commands that were applied.
    pub applied: Vec<CommandKey>,
    /// The newest notices that were given.
    pub card_notices: Vec<CardNotice>,
}

/// A notice that was given: one per card, expiry month and kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CardNotice {
    /// The card.
    pub card_id: CardId,
    /// Its expiry month.
    pub expires: YearMonth,
    /// Which of the notices.
    pub kind: NoticeKind,
    /// When it was decided.
    pub at: DateTime<Utc>,
}

impl CardNotice {
    /// Whether both are the same notice, whenever they were given.
    #[must_use]
    pub fn repeats(&self, other: &Self) -> bool {
        self.card_id == other.card_id && self.expires == other.expires && self.kind == other.kind
    }
}

/// Which of a card's notices: one per lead time of the organization, one for the time before the longest, one for the
/// time after the card's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum NoticeKind {
    /// Earlier than every lead time, or the organization has none.
    Early,
    /// Within this many days of the end.
    Days(u32),
    /// The card has expired.
    Expired,
}

impl NoticeKind {
    /// The notice that is due `today` for a card of this expiry month: of the lead times that have begun, the shortest.
    #[must_use]
    pub fn due(expires: YearMonth, today: NaiveDate, lead_days: &[u32]) -> Self {
        let days_left = (expires.last_day() - today).num_days();
        if days_left < 0 {
            return Self::Expired;
        }
        lead_days
            .iter()
            .filter(|&&lead| i64::from(lead) >= days_left)
            .min()
            .map_or(Self::Early, |&lead| Self::Days(lead))
    }
}
