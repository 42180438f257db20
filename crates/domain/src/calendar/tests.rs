//! Dates and months as text, and days that end at unusual instants.

use chrono::Offset;
use proptest::prelude::*;

use super::*;
use crate::testing::{date, instant};

/// Any date of two centuries, leap years and their exceptions included.
fn any_date() -> impl Strategy<Value = NaiveDate> {
    (0..73_048_u64).prop_map(|days| date("1950-01-01") + Days::new(days))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn months(on in any_date()) {
        let month = YearMonth::of(on);
        prop_assert!(month.first_day() <= on && on <= month.last_day());
        prop_assert_eq!(month.next().previous(), month);
        prop_assert_eq!(month.next().first_day(), month.last_day() + Days::new(1));
        prop_assert_eq!(month.to_string().parse(), Ok(month));
        prop_assert_eq!(on.to_string(), parse_date(&on.to_string()).unwrap().to_string());
    }

    /// A day is over when the next one has begun, and stays over, wherever it is and whatever the clocks do there.
    #[test]
    fn a_day_that_is_over_stays_over(on in any_date(), zone in 0..chrono_tz::TZ_VARIANTS.len()) {
        check_end_of_day(on, chrono_tz::TZ_VARIANTS[zone]);
    }
}

#[track_caller]
fn check_end_of_day(on: NaiveDate, timezone: Tz) {
    let over_at = end_of_day(on, timezone);
    let date_at = |instant: DateTime<Utc>| instant.with_timezone(&timezone).date_naive();
    assert!(date_at(over_at - TimeDelta::milliseconds(1)) <= on, "{on} in {timezone} is over before {over_at}");
    // Clocks are set by half an hour or more, but for a change of a few minutes here and there long ago.
    for minutes in [0, 1, 2, 5, 10].into_iter().chain((20..26 * 60).step_by(20)) {
        let later = over_at + TimeDelta::minutes(minutes);
        assert!(date_at(later) > on, "{on} in {timezone} goes on at {later}, after {over_at}");
    }
}

/// Every midnight near which any clock of the world was ever set, since 1950 and as far as is known.
#[test]
fn midnights_at_which_clocks_are_set() {
    for timezone in chrono_tz::TZ_VARIANTS {
        let offset = |date: NaiveDate| timezone.offset_from_utc_datetime(&date.and_time(NaiveTime::MIN)).fix();
        let weeks = std::iter::successors(Some(date("1950-01-01")), |date| Some(*date + Days::new(7)));
        for week in weeks.take_while(|date| date.year() < 2040) {
            if offset(week) == offset(week + Days::new(7)) {
                continue;
            }
            for on in week.iter_days().take(7).filter(|date| offset(*date) != offset(*date + Days::new(1))) {
                check_end_of_day(on - Days::new(1), timezone);
                check_end_of_day(on, timezone);
            }
        }
    }
}

#[test]
fn when_a_day_is_over() {
    #[track_caller]
    fn check(timezone: &str, on: &str, expected: &str) {
        assert_eq!(end_of_day(date(on), timezone.parse().unwrap()), instant(expected));
    }
    check("America/Toronto", "2026-06-14", "2026-06-15T04:00:00Z");
    check("America/Toronto", "2026-01-14", "2026-01-15T05:00:00Z");
    check("America/Toronto", "2026-12-31", "2027-01-01T05:00:00Z");
    check("America/St_Johns", "2026-06-14", "2026-06-15T02:30:00Z");
    check("UTC", "2028-02-29", "2028-03-01T00:00:00Z");
    // The clocks are set in the night, after midnight: the day is over at midnight as always.
    check("America/Toronto", "2026-03-07", "2026-03-08T05:00:00Z");
    check("America/Toronto", "2026-10-31", "2026-11-01T04:00:00Z");
    // Midnight does not exist: the clocks go from 00:00 to 01:00, and the day is over when they do.
    check("America/Asuncion", "2023-09-30", "2023-10-01T04:00:00Z");
    check("Asia/Beirut", "2026-03-28", "2026-03-28T22:00:00Z");
    check("America/Havana", "2026-03-07", "2026-03-08T05:00:00Z");
    check("Africa/Cairo", "2026-04-23", "2026-04-23T22:00:00Z");
    check("America/Santiago", "2026-09-05", "2026-09-06T04:00:00Z");
    // Midnight comes twice, as 00:00 and when the clocks go back from 01:00: it is over at the first.
    check("America/Havana", "2026-10-31", "2026-11-01T04:00:00Z");
    check("Atlantic/Azores", "2026-10-24", "2026-10-25T00:00:00Z");
    // The clocks go back from 24:00 to 23:00: the day has an hour more.
    check("Asia/Beirut", "2026-10-24", "2026-10-24T22:00:00Z");
    check("Africa/Cairo", "2026-10-29", "2026-10-29T22:00:00Z");
    check("America/Santiago", "2026-04-04", "2026-04-05T04:00:00Z");
    // The clocks went back from 00:01 to 23:01: for a minute it was tomorrow, and then the day went on.
    check("America/St_Johns", "2010-11-06", "2010-11-07T03:30:00Z");
    // A day that never was: after the 29th came the 31st, at once.
    check("Pacific/Apia", "2011-12-29", "2011-12-30T10:00:00Z");
    check("Pacific/Apia", "2011-12-30", "2011-12-30T10:00:00Z");
    check("Pacific/Apia", "2011-12-31", "2011-12-31T10:00:00Z");
}

#[test]
fn dates_and_months_as_text() {
    for text in ["0000-01-01", "1899-12-31", "9999-12-31", "2028-02-29", "2026-06-15"] {
        assert_eq!(parse_date(text).unwrap().to_string(), text);
    }
    for text in [
        "",
        "2026-6-1",
        "2026-06-1",
        "2026-02-29",
        "2026-02-30",
        "2026-13-01",
        "2026-00-10",
        "2026-06-00",
        "10000-01-01",
        "02026-06-15",
        "+2026-06-15",
        "-2026-06-15",
        "2026/06/15",
        "20260615",
        "2026-06-15 ",
        " 2026-06-15",
        "2026-06-15T00:00:00Z",
        "2026-06-1５",
        "2026-W24-1",
        "15-06-2026",
    ] {
        assert!(parse_date(text).is_err(), "{text}");
    }
    for text in ["0000-01", "9999-12", "2026-06"] {
        assert_eq!(text.parse::<YearMonth>().unwrap().to_string(), text);
    }
    for text in ["", "2026-6", "2026-13", "2026-00", "10000-01", "2026-06-15", "202606", "2026-é", "é026-1", " 2026-6"]
    {
        assert!(text.parse::<YearMonth>().is_err(), "{text}");
    }
    assert_eq!(parse_date("2026-02-30").unwrap_err(), "`2026-02-30` is not a date such as \"2026-06-15\"");
    assert_eq!(parse_date(&"9".repeat(5_000)).unwrap_err().len(), 40 + "`` is not a date such as \"2026-06-15\"".len());
}
