//! The date rules, a row per case; and the same rules a second time, found by walking the calendar day by day.

use chrono::{Datelike, Days, NaiveDate, TimeDelta};
use proptest::prelude::*;

use super::BillingMode::{Anniversary, FixedDay};
use super::*;
use crate::testing::{billing_day as day, date, month};

#[test]
fn billing_dates() {
    #[track_caller]
    fn check(billing_day: i64, in_month: &str, expected: &str) {
        assert_eq!(day(billing_day).date_in(month(in_month)), date(expected));
    }
    check(1, "2026-02", "2026-02-01");
    check(28, "2026-02", "2026-02-28");
    check(29, "2026-02", "2026-02-28");
    check(30, "2026-02", "2026-02-28");
    check(31, "2026-02", "2026-02-28");
    check(29, "2028-02", "2028-02-29"); // a leap year
    check(31, "2028-02", "2028-02-29");
    check(29, "2000-02", "2000-02-29"); // divisible by 400: a leap year
    check(29, "2100-02", "2100-02-28"); // divisible by 100: none
    check(31, "2026-04", "2026-04-30");
    check(31, "2026-12", "2026-12-31");
    check(30, "2026-12", "2026-12-30");
}

#[test]
fn the_newest_billing_date() {
    #[track_caller]
    fn check(billing_day: i64, until: &str, expected: &str) {
        assert_eq!(day(billing_day).newest_date(date(until)), date(expected));
    }
    check(15, "2026-06-14", "2026-05-15");
    check(15, "2026-06-15", "2026-06-15");
    check(15, "2026-06-30", "2026-06-15");
    check(31, "2026-06-29", "2026-05-31");
    check(31, "2026-06-30", "2026-06-30"); // June has no 31st
    check(31, "2026-07-30", "2026-06-30");
    check(30, "2026-02-28", "2026-02-28");
    check(30, "2028-02-28", "2028-01-30"); // a leap year
    check(30, "2026-03-01", "2026-02-28");
    check(1, "2026-01-01", "2026-01-01");
    check(2, "2026-01-01", "2025-12-02");
}

proptest! {
    /// The sweep's question: a natural end is over once there is a billing date after `expires_on`.
    #[test]
    fn a_natural_end_is_over_when_it_expired_before_the_newest_billing_date(
        billing_day in 1_i64..=31, expires in 0_u64..1_500, later in -40_i64..80,
    ) {
        let expires_on = date("2026-01-01") + Days::new(expires);
        let today = expires_on + TimeDelta::days(later);
        let billing_day = day(billing_day);
        prop_assert_eq!(billing_day.natural_end(expires_on) < today, expires_on < billing_day.newest_date(today));
    }
}

#[test]
fn billing_dates_around_a_date() {
    #[track_caller]
    fn check(billing_day: i64, around: &str, before: &str, after: &str) {
        let found = (day(billing_day).date_before(date(around)), day(billing_day).date_after(date(around)));
        assert_eq!(found, (date(before), date(after)));
    }
    check(15, "2026-06-14", "2026-05-15", "2026-06-15");
    check(15, "2026-06-15", "2026-05-15", "2026-07-15");
    check(15, "2026-06-16", "2026-06-15", "2026-07-15");
    check(15, "2026-12-20", "2026-12-15", "2027-01-15"); // over the new year
    check(15, "2026-01-10", "2025-12-15", "2026-01-15");
    check(31, "2026-02-28", "2026-01-31", "2026-03-31"); // from the 31st, not from the 28th
    check(31, "2026-03-01", "2026-02-28", "2026-03-31");
    check(31, "2026-03-31", "2026-02-28", "2026-04-30");
    check(30, "2028-02-29", "2028-01-30", "2028-03-30");
    check(29, "2026-03-29", "2026-02-28", "2026-04-29");
    check(1, "2026-01-01", "2025-12-01", "2026-02-01");
}

#[test]
fn what_is_a_billing_date() {
    #[track_caller]
    fn check(billing_day: i64, of: &str, expected: bool) {
        assert_eq!(day(billing_day).is_billing_date(date(of)), expected);
    }
    check(15, "2026-06-15", true);
    check(15, "2026-06-16", false);
    check(31, "2026-02-28", true);
    check(31, "2028-02-28", false);
    check(31, "2028-02-29", true);
    check(31, "2026-03-30", false);
    check(28, "2028-02-29", false);
}

#[test]
fn cancelled_with_a_month() {
    #[track_caller]
    fn check(mode: BillingMode, billing_day: i64, chosen: &str, ends_on: &str, final_billing_on: &str) {
        let end = day(billing_day).end_in_month(mode, month(chosen));
        assert_eq!(end, End { ends_on: date(ends_on), final_billing_on: date(final_billing_on) });
    }
    check(Anniversary, 15, "2026-06", "2026-06-14", "2026-05-15");
    check(FixedDay, 15, "2026-06", "2026-06-30", "2026-05-15");
    // The first of the month: the whole month before it is the last one paid.
    check(Anniversary, 1, "2026-06", "2026-05-31", "2026-05-01");
    check(FixedDay, 1, "2026-06", "2026-06-30", "2026-05-01");
    // Short months.
    check(Anniversary, 31, "2026-02", "2026-02-27", "2026-01-31");
    check(Anniversary, 31, "2026-03", "2026-03-30", "2026-02-28");
    check(Anniversary, 31, "2026-05", "2026-05-30", "2026-04-30");
    check(Anniversary, 29, "2028-02", "2028-02-28", "2028-01-29");
    check(Anniversary, 30, "2028-03", "2028-03-29", "2028-02-29");
    check(FixedDay, 31, "2026-02", "2026-02-28", "2026-01-31");
    check(FixedDay, 31, "2028-02", "2028-02-29", "2028-01-31");
    check(FixedDay, 30, "2026-03", "2026-03-31", "2026-02-28");
    // Over the new year.
    check(Anniversary, 15, "2027-01", "2027-01-14", "2026-12-15");
    check(FixedDay, 15, "2026-12", "2026-12-31", "2026-11-15");
    check(FixedDay, 31, "2027-01", "2027-01-31", "2026-12-31");
}

/// With no month, by the client, or accepted with no date.
#[test]
fn cancelled_before_the_next_invoice() {
    #[track_caller]
    fn check(billing_day: i64, next_on: &str, ends_on: &str, final_billing_on: &str) {
        let found = (day_before(date(next_on)), day(billing_day).date_before(date(next_on)));
        assert_eq!(found, (date(ends_on), date(final_billing_on)));
    }
    check(15, "2026-06-15", "2026-06-14", "2026-05-15");
    check(1, "2026-03-01", "2026-02-28", "2026-02-01");
    check(1, "2026-01-01", "2025-12-31", "2025-12-01");
    check(31, "2026-02-28", "2026-02-27", "2026-01-31");
    check(31, "2026-03-31", "2026-03-30", "2026-02-28");
    check(31, "2026-04-30", "2026-04-29", "2026-03-31");
    check(29, "2028-02-29", "2028-02-28", "2028-01-29");
    // The next invoice is not dated on the billing day: it was moved once, or the day was changed since.
    check(15, "2026-06-10", "2026-06-09", "2026-05-15");
    check(15, "2026-06-20", "2026-06-19", "2026-06-15");
    check(31, "2026-03-28", "2026-03-27", "2026-02-28");
}

/// Accepted with a date.
#[test]
fn cancelled_after_an_invoice() {
    #[track_caller]
    fn check(billing_day: i64, final_billing_on: &str, ends_on: &str) {
        let end = day(billing_day).end_after_invoice(date(final_billing_on));
        assert_eq!(end, End { ends_on: date(ends_on), final_billing_on: date(final_billing_on) });
    }
    check(15, "2026-06-15", "2026-07-14");
    check(1, "2026-06-01", "2026-06-30");
    check(31, "2026-01-31", "2026-02-27");
    check(31, "2026-02-28", "2026-03-30"); // back to the 31st
    check(31, "2028-02-29", "2028-03-30");
    check(30, "2026-02-28", "2026-03-29");
    check(29, "2028-01-29", "2028-02-28");
    check(15, "2026-12-15", "2027-01-14");
}

#[test]
fn natural_ends() {
    #[track_caller]
    fn check(billing_day: i64, expires_on: &str, expected: &str) {
        assert_eq!(day(billing_day).natural_end(date(expires_on)), date(expected));
    }
    check(15, "2026-06-14", "2026-06-14");
    check(15, "2026-06-15", "2026-07-14"); // billed once more on the day itself
    check(15, "2026-06-16", "2026-07-14");
    check(31, "2026-02-27", "2026-02-27");
    check(31, "2026-02-28", "2026-03-30");
    check(31, "2026-01-31", "2026-02-27");
    check(29, "2028-02-28", "2028-02-28");
    check(15, "2026-12-31", "2027-01-14");
    check(1, "2026-12-31", "2026-12-31");
}

/// The rules again, in other words: nothing is computed, every answer is met on a walk from day to day.
mod walk {
    use super::*;

    fn next(date: NaiveDate) -> NaiveDate {
        date.succ_opt().unwrap()
    }

    fn previous(date: NaiveDate) -> NaiveDate {
        date.pred_opt().unwrap()
    }

    fn forward(from: NaiveDate, found: impl Fn(NaiveDate) -> bool) -> NaiveDate {
        std::iter::successors(Some(from), |date| Some(next(*date))).find(|date| found(*date)).unwrap()
    }

    fn back(from: NaiveDate, found: impl Fn(NaiveDate) -> bool) -> NaiveDate {
        std::iter::successors(Some(from), |date| Some(previous(*date))).find(|date| found(*date)).unwrap()
    }

    /// An invoice is dated on its day; where the month ends before that day comes, on the day on which it ends.
    fn is_billed(day: u32, date: NaiveDate) -> bool {
        date.day() == day || (next(date).day() == 1 && date.day() < day)
    }

    pub fn with_month(mode: BillingMode, day: u32, first_of_month: NaiveDate) -> (NaiveDate, NaiveDate) {
        let last_invoice = back(previous(first_of_month), |date| is_billed(day, date));
        let last_day = match mode {
            // Access is paid up to the invoice that will not come.
            Anniversary => previous(forward(first_of_month, |date| is_billed(day, date))),
            FixedDay => forward(first_of_month, |date| next(date).day() == 1),
        };
        (last_day, last_invoice)
    }

    pub fn with_no_month(day: u32, next_on: NaiveDate) -> (NaiveDate, NaiveDate) {
        (previous(next_on), back(previous(next_on), |date| is_billed(day, date)))
    }

    pub fn accepted(day: u32, last_invoice: NaiveDate) -> NaiveDate {
        previous(forward(next(last_invoice), |date| is_billed(day, date)))
    }

    pub fn natural_end(day: u32, expires_on: NaiveDate) -> NaiveDate {
        forward(expires_on, |date| is_billed(day, next(date)))
    }

    pub fn is_billing_date(day: u32, date: NaiveDate) -> bool {
        is_billed(day, date)
    }
}

/// Any date of two centuries, leap years and their exceptions included.
fn any_date() -> impl Strategy<Value = NaiveDate> {
    (0..73_048_u64).prop_map(|days| date("1950-01-01") + Days::new(days))
}

fn any_mode() -> impl Strategy<Value = BillingMode> {
    prop_oneof![Just(Anniversary), Just(FixedDay)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn computed_is_walked(mode in any_mode(), day in 1..=31_u32, on in any_date()) {
        let billing_day = BillingDay(day);
        let pair = |end: End| (end.ends_on, end.final_billing_on);
        let of_month = YearMonth::of(on);
        prop_assert_eq!(pair(billing_day.end_in_month(mode, of_month)), walk::with_month(mode, day, of_month.first_day()));
        prop_assert_eq!((day_before(on), billing_day.date_before(on)), walk::with_no_month(day, on));
        prop_assert_eq!(billing_day.natural_end(on), walk::natural_end(day, on));
        prop_assert_eq!(billing_day.is_billing_date(on), walk::is_billing_date(day, on));
        let invoice = billing_day.date_in(of_month);
        prop_assert_eq!(pair(billing_day.end_after_invoice(invoice)), (walk::accepted(day, invoice), invoice));
    }

    /// What is paid with an invoice is one cycle: from its date to the day before the next. A month of a fixed day
    /// gives the rest of that calendar month on top.
    #[test]
    fn every_end_lies_in_its_cycle(mode in any_mode(), day in 1..=31_u32, on in any_date()) {
        let billing_day = BillingDay(day);
        let cycle = |invoice: NaiveDate| (invoice, billing_day.date_after(invoice));
        let of_month = YearMonth::of(on);
        let invoice = billing_day.date_in(of_month);

        let with_month = billing_day.end_in_month(mode, of_month);
        let (from, until) = cycle(with_month.final_billing_on);
        prop_assert!(billing_day.is_billing_date(from) && YearMonth::of(from) == of_month.previous());
        prop_assert_eq!(YearMonth::of(until), of_month);
        match mode {
            Anniversary => prop_assert_eq!(with_month.ends_on + Days::new(1), until),
            FixedDay => prop_assert_eq!(with_month.ends_on, of_month.last_day()),
        }

        let accepted = billing_day.end_after_invoice(invoice);
        let next_on = cycle(invoice).1;
        prop_assert_eq!(accepted.ends_on + Days::new(1), next_on);
        // To accept with the newest invoice is to accept with no date.
        let End { ends_on, final_billing_on } = accepted;
        prop_assert_eq!((day_before(next_on), billing_day.date_before(next_on)), (ends_on, final_billing_on));

        // Even where the next invoice is not dated on the billing day, the last day is in the last invoice's cycle.
        let (from, until) = cycle(billing_day.date_before(on));
        prop_assert!(from <= day_before(on) && day_before(on) < until);
        let natural_end = billing_day.natural_end(on);
        prop_assert!(natural_end >= on && billing_day.is_billing_date(natural_end + Days::new(1)));
    }
}

#[test]
fn a_billing_day_is_a_day_of_the_month() {
    for day in [i64::MIN, -1, 0, 32, i64::MAX] {
        assert_eq!(BillingDay::try_from(day).unwrap_err(), format!("{day} is not a day of the month (1 to 31)"));
    }
}
