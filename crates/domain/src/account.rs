//! A client's account, as far as the rules need it, and the record of card notices.

use std::fmt;

use chrono::{DateTime, Months, NaiveDate, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::calendar::YearMonth;
use crate::card::Card;
use crate::command_ref::AppliedCommand;
use crate::contact::Mailbox;
use crate::field::{Field, Malformed, fault};
use crate::ids::{AccountId, CardId, OrganizationId};

/// A client's account, which pays for subscriptions.
#[derive(Clone, Debug, PartialEq)]
pub struct Account {
    /// `_id`
    pub id: AccountId,
    pub organization_id: OrganizationId,
    /// The account manager.
    pub manager: Field<Mailbox>,
    /// The account manager's language, a BCP 47 tag.
    pub manager_locale: Option<String>,
    /// The saved cards.
    pub cards: Vec<Field<Card>>,
    /// The document's version; absent until Offramp has changed it.
    pub version: Option<i64>,
    /// The newest commands that were applied, oldest first.
    pub applied: Vec<AppliedCommand>,
    /// The notices that were given, until they can be forgotten.
    pub card_notices: Field<Vec<CardNotice>>,
}

/// A notice that was given. There is one per card, expiry month and kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CardNotice {
    pub card_id: CardId,
    /// Its expiry month.
    pub expires: YearMonth,
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

/// How many notices an account remembers: far more than it has cards. At the limit, no further notice is given until some can be
/// forgotten. Otherwise the forgotten ones would be given again.
pub const CARD_NOTICES_MAX: usize = 10_000;
/// How many months after a card's expiry month its notices are forgotten. After that, only the notice that it has expired can become
/// due.
const NOTICE_MEMORY_MONTHS: u32 = 2;
/// How many months after it was given the notice that a card has expired is forgotten.
const EXPIRED_NOTICE_MEMORY_MONTHS: u32 = 13;

impl CardNotice {
    /// Whether it no longer has to be remembered.
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

/// Which notice about a card: one per lead time of the organization, one for the time before the longest, and one for the time after the
/// card has expired.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum NoticeKind {
    /// Earlier than every lead time, or the organization has none.
    Early,
    /// At most this many days before the card expires.
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

/// The name in the ids of the notice's emails. It must never change, or the emails would be sent again.
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
    fn the_shortest_lead_time_that_has_begun_is_due() {
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
    fn days_left_are_counted_over_short_months_and_years() {
        let due = |expires: &str, today: &str| NoticeKind::due(month(expires), date(today), &[30, 5]);
        assert_eq!(due("2028-02", "2028-02-29"), NoticeKind::Days(5));
        assert_eq!(due("2028-02", "2028-02-23"), NoticeKind::Days(30)); // six days left in a leap year
        assert_eq!(due("2026-02", "2026-02-23"), NoticeKind::Days(5));
        assert_eq!(due("2026-12", "2027-01-01"), NoticeKind::Expired);
        assert_eq!(due("2027-01", "2026-12-31"), NoticeKind::Early);
    }
}
