//! Months and dates, how they are written, and when a day is over in a time zone. Nothing here knows about invoices: see
//! [`billing`](crate::billing).

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use chrono::{
    DateTime, Datelike, Days, LocalResult, Months, NaiveDate, NaiveTime, SecondsFormat, TimeDelta, TimeZone, Utc,
};
use chrono_tz::{GapInfo, Tz};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The years of the dates that other systems write into documents. 9999-12-31 is a common way to say "never". Computed dates
/// may lie a month outside, so what the worker wrote itself is read back in any year of four digits.
pub const DOCUMENT_YEARS: std::ops::RangeInclusive<i32> = 1900..=9999;

/// A calendar month, written `"2026-06"`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct YearMonth {
    first_day: NaiveDate,
}

impl YearMonth {
    /// How it is written, as a regular expression.
    pub const PATTERN: &str = "^[0-9]{4}-(0[1-9]|1[0-2])$";

    /// The month in which `date` lies.
    #[must_use]
    pub fn of(date: NaiveDate) -> Self {
        Self { first_day: date - Days::new(u64::from(date.day0())) }
    }

    /// The month after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self { first_day: self.first_day + Months::new(1) }
    }

    /// The month before this one.
    #[must_use]
    pub fn previous(self) -> Self {
        Self { first_day: self.first_day - Months::new(1) }
    }

    /// Day one.
    #[must_use]
    pub fn first_day(self) -> NaiveDate {
        self.first_day
    }

    /// The last day of the month, the 28th to the 31st.
    #[must_use]
    pub fn last_day(self) -> NaiveDate {
        self.next().first_day - Days::new(1)
    }
}

impl FromStr for YearMonth {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        (text.len() == 7)
            .then(|| parse_date(&format!("{text}-01")).ok())
            .flatten()
            .map(Self::of)
            .ok_or_else(|| format!("`{}` is not a month such as \"2026-06\"", shorten(text)))
    }
}

impl fmt::Display for YearMonth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.first_day.format("%Y-%m"))
    }
}

impl fmt::Debug for YearMonth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for YearMonth {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for YearMonth {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for YearMonth {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "YearMonth".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^(19|2[0-9])[0-9]{2}-(0[1-9]|1[0-2])$", "examples": ["2026-06"] })
    }
}

/// Reads a date written exactly as `"2026-06-15"`, in any year of four digits.
///
/// # Errors
/// A sentence that quotes the text when it is anything else.
pub fn parse_date(text: &str) -> Result<NaiveDate, String> {
    let digits_and_dashes = text.bytes().enumerate().all(|(at, byte)| match at {
        4 | 7 => byte == b'-',
        _ => byte.is_ascii_digit(),
    });
    (text.len() == 10 && digits_and_dashes)
        .then(|| NaiveDate::from_str(text).ok())
        .flatten()
        .ok_or_else(|| format!("`{}` is not a date such as \"2026-06-15\"", shorten(text)))
}

/// Text from outside, cut to what an error sentence can carry.
fn shorten(text: &str) -> String {
    text.chars().take(40).collect()
}

/// `#[serde(with = "iso_date")]`: a date as [`parse_date`] reads it.
pub mod iso_date {
    use super::{Cow, Deserialize, Deserializer, NaiveDate, Serializer, de, parse_date};

    /// Writes `"2026-06-15"`.
    ///
    /// # Errors
    /// Only the serializer's own.
    pub fn serialize<S: Serializer>(date: &NaiveDate, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(date)
    }

    /// Reads `"2026-06-15"`.
    ///
    /// # Errors
    /// When the text is not such a date.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<NaiveDate, D::Error> {
        parse_date(&Cow::<str>::deserialize(deserializer)?).map_err(de::Error::custom)
    }

    /// The same for a field that may be absent or null.
    pub mod option {
        use super::{Cow, Deserialize, Deserializer, NaiveDate, Serializer, de, parse_date};

        /// Writes `"2026-06-15"` or null.
        ///
        /// # Errors
        /// Only the serializer's own.
        pub fn serialize<S: Serializer>(date: &Option<NaiveDate>, serializer: S) -> Result<S::Ok, S::Error> {
            match date {
                Some(date) => serializer.collect_str(date),
                None => serializer.serialize_none(),
            }
        }

        /// Reads `"2026-06-15"` or null.
        ///
        /// # Errors
        /// When the text is not such a date.
        pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<NaiveDate>, D::Error> {
            Option::<Cow<str>>::deserialize(deserializer)?
                .map(|text| parse_date(&text).map_err(de::Error::custom))
                .transpose()
        }
    }
}

/// The day before `date`. Before the first invoice not yet generated, it is the last day of what is paid for.
#[must_use]
pub fn day_before(date: NaiveDate) -> NaiveDate {
    date - Days::new(1)
}

/// The instant from which on it is later than `date` in `timezone`: the next day's midnight, or the first instant after
/// it where the clocks skip midnight.
#[must_use]
pub fn end_of_day(date: NaiveDate, timezone: Tz) -> DateTime<Utc> {
    let midnight = (date + Days::new(1)).and_time(NaiveTime::MIN);
    let start = match timezone.from_local_datetime(&midnight) {
        LocalResult::Single(start) => Some(start),
        // Set back from 01:00 to 00:00, the next day begins once; set back from 00:01 to 23:01, this one was not over.
        LocalResult::Ambiguous(first, second) => {
            let just_before = second.to_utc() - TimeDelta::seconds(1);
            Some(if just_before.with_timezone(&timezone).date_naive() == date { second } else { first })
        }
        LocalResult::None => GapInfo::new(&midnight, &timezone).and_then(|gap| gap.end),
    };
    // A gap without an end does not exist in the time zone database; should it, the day is over by UTC.
    start.map_or_else(|| midnight.and_utc(), |start| start.to_utc())
}

/// `#[serde(with = "instant")]`: an instant to the millisecond, as the database keeps it: `"2026-06-15T04:00:00.000Z"`.
pub mod instant {
    use super::{DateTime, Deserialize, Deserializer, SecondsFormat, Serializer, Utc};

    /// Writes `"2026-06-15T04:00:00.000Z"`.
    ///
    /// # Errors
    /// Only the serializer's own.
    pub fn serialize<S: Serializer>(time: &DateTime<Utc>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&time.to_rfc3339_opts(SecondsFormat::Millis, true))
    }

    /// Reads RFC 3339.
    ///
    /// # Errors
    /// When the text is not such an instant.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<DateTime<Utc>, D::Error> {
        DateTime::<Utc>::deserialize(deserializer)
    }
}

#[cfg(test)]
mod tests;
