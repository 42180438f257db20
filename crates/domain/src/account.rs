//! What the rules need to know of an account, and the record of card notices.

use std::fmt;

use chrono::{DateTime, Months, NaiveDate, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::billing::YearMonth;
use super::command::{Card, CommandKey};
use super::field::{Field, Malformed, fault};
use super::ids::{AccountId, CardId, OrganizationId};
use super::notification::Mailbox;

/// A client's account.
#[derive(Clone, Debug, PartialEq)]
pub struct Account {
    /// `_id`
    pub id: AccountId,
    /// The organization that it belongs to.
    pub organization_id: OrganizationId,
    /// The account manager.
    pub manager: Field<Mailbox>,
    /// The account manager's language, a BCP 47 tag.
    pub manager_locale: Option<String>,
    /// The saved cards.
    pub cards: Vec<Field<Card>>,
    /// The document's version; absent in one that no one has changed yet.
    pub version: Option<i64>,
    /// The newest commands that were applied.
    pub applied: Vec<CommandKey>,
    /// The notices that were given and are not yet forgotten.
    pub card_notices: Field<Vec<CardNotice>>,
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

impl Account {
    /// The fields that cannot be read.
    #[must_use]
    pub fn faults(&self) -> Vec<&Malformed> {
        let own = [fault(&self.manager), fault(&self.card_notices)];
        own.into_iter().chain(self.cards.iter().map(fault)).flatten().collect()
    }
}

/// How many notices an account remembers: far more than it has cards. One that has as many gets no further ones until some are
/// forgotten: it would otherwise get the forgotten ones again.
pub const CARD_NOTICES_MAX: usize = 10_000;
/// How many months after a card's expiry month its notices are forgotten. No notice but the one about its expiry can come up again.
const NOTICE_MEMORY_MONTHS: u32 = 2;
/// How many months after it was given the notice that a card has expired is forgotten.
const EXPIRED_NOTICE_MEMORY_MONTHS: u32 = 13;

impl CardNotice {
    /// Whether it need not be remembered on this day.
    #[must_use]
    pub fn is_forgotten(&self, today: NaiveDate) -> bool {
        let (since, months) = match self.kind {
            NoticeKind::Expired => (self.at.date_naive(), EXPIRED_NOTICE_MEMORY_MONTHS),
            NoticeKind::Early | NoticeKind::Days(_) => (self.expires.last_day(), NOTICE_MEMORY_MONTHS),
        };
        since.checked_add_months(Months::new(months)).is_some_and(|until| until < today)
    }

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

/// As the ids of a notice's effects name it: never to be changed, or a notice would be given again.
impl fmt::Display for NoticeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Early => f.write_str("early"),
            Self::Days(lead) => write!(f, "days-{lead}"),
            Self::Expired => f.write_str("expired"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{date, month};

    #[test]
    fn the_notice_that_is_due() {
        #[track_caller]
        fn check(today: &str, lead_days: &[u32], expected: NoticeKind) {
            assert_eq!(NoticeKind::due(month("2026-06"), date(today), lead_days), expected);
        }
        use NoticeKind::{Days, Early, Expired};
        // Valid to the end of 30 June.
        check("2026-05-30", &[30, 5], Early);
        check("2026-05-31", &[30, 5], Days(30));
        check("2026-06-24", &[30, 5], Days(30));
        check("2026-06-25", &[30, 5], Days(5));
        check("2026-06-30", &[30, 5], Days(5));
        check("2026-07-01", &[30, 5], Expired);
        check("2031-01-01", &[30, 5], Expired);
        check("1999-01-01", &[30, 5], Early);
        // Written in any order, or twice.
        check("2026-06-24", &[5, 30], Days(30));
        check("2026-06-25", &[5, 30, 5], Days(5));
        // On the last day itself.
        check("2026-06-29", &[0], Early);
        check("2026-06-30", &[0], Days(0));
        check("2026-06-30", &[], Early);
        check("2026-07-01", &[], Expired);
        check("2026-01-01", &[u32::MAX], Days(u32::MAX));
    }

    #[test]
    fn february_and_the_new_year() {
        let due = |expires: &str, today: &str| NoticeKind::due(month(expires), date(today), &[30, 5]);
        assert_eq!(due("2028-02", "2028-02-29"), NoticeKind::Days(5));
        assert_eq!(due("2028-02", "2028-02-23"), NoticeKind::Days(30)); // six days left in a leap year
        assert_eq!(due("2026-02", "2026-02-23"), NoticeKind::Days(5));
        assert_eq!(due("2026-12", "2027-01-01"), NoticeKind::Expired);
        assert_eq!(due("2027-01", "2026-12-31"), NoticeKind::Early);
    }
}
