//! When a subscription is invoiced: billing dates, and the last day of access that follows from the last invoice.

use chrono::{Datelike, Days, NaiveDate};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::calendar::{YearMonth, day_before};

/// How a subscription is billed (`subscriptions.billing.mode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum BillingMode {
    /// The day of the purchase date is the billing day.
    Anniversary,
    /// The organization has set one billing day for everybody.
    FixedDay,
}

/// A day of the month, 1 to 31.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BillingDay(u32);

impl TryFrom<i64> for BillingDay {
    type Error = String;

    fn try_from(day: i64) -> Result<Self, String> {
        match u32::try_from(day) {
            Ok(day @ 1..=31) => Ok(Self(day)),
            _ => Err(format!("{day} is not a day of the month (1 to 31)")),
        }
    }
}

impl BillingDay {
    /// This day of `month`, or the month's last day where it is shorter.
    #[must_use]
    pub fn date_in(self, month: YearMonth) -> NaiveDate {
        let last = month.last_day();
        month.first_day() + Days::new(u64::from(self.0.min(last.day()) - 1))
    }

    /// The newest billing date on or before `date`. A natural end is over on `date` when `expires_on` lies before it.
    #[must_use]
    pub fn newest_date(self, date: NaiveDate) -> NaiveDate {
        let month = YearMonth::of(date);
        let same_month = self.date_in(month);
        if same_month <= date { same_month } else { self.date_in(month.previous()) }
    }

    /// The first billing date after `date`.
    #[must_use]
    pub fn date_after(self, date: NaiveDate) -> NaiveDate {
        let month = YearMonth::of(date);
        let same_month = self.date_in(month);
        if same_month > date { same_month } else { self.date_in(month.next()) }
    }

    /// The newest billing date before `date`.
    #[must_use]
    pub fn date_before(self, date: NaiveDate) -> NaiveDate {
        self.newest_date(day_before(date))
    }

    /// Whether an invoice can be dated `date`.
    #[must_use]
    pub fn is_billing_date(self, date: NaiveDate) -> bool {
        self.date_in(YearMonth::of(date)) == date
    }

    /// The last day of access of a subscription that expires by itself.
    #[must_use]
    pub fn natural_end(self, expires_on: NaiveDate) -> NaiveDate {
        day_before(self.date_after(expires_on))
    }

    /// Cancelled with `month` chosen: May's invoice is the last when June is chosen. Only here the mode matters.
    #[must_use]
    pub fn end_in_month(self, mode: BillingMode, month: YearMonth) -> End {
        End {
            ends_on: match mode {
                BillingMode::Anniversary => day_before(self.date_in(month)),
                BillingMode::FixedDay => month.last_day(),
            },
            final_billing_on: self.date_in(month.previous()),
        }
    }

    /// Cancelled with `final_billing_on`, a billing date, as the last invoice.
    #[must_use]
    pub fn end_after_invoice(self, final_billing_on: NaiveDate) -> End {
        let following = self.date_in(YearMonth::of(final_billing_on).next());
        End { ends_on: day_before(following), final_billing_on }
    }
}

/// The last day of access and the last invoice of a cancelled subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// The last day of access, inclusive, in the organization's calendar.
    pub ends_on: NaiveDate,
    /// The date of the last invoice by the calendar, whether or not it was ever made.
    pub final_billing_on: NaiveDate,
}

#[cfg(test)]
mod tests;
