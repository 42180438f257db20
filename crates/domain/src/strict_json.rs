//! How commands are read from JSON where serde by itself is too lenient: objects only from objects, names only from strings, dates
//! only from plausible years.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use chrono::{DateTime, Datelike, NaiveDate, NaiveDateTime, Utc};
use serde::de::{self, IntoDeserializer};
use serde::{Deserialize, Deserializer};

use crate::calendar::{YearMonth, parse_date};

/// The years in which every date, month and instant of a command lies. Some systems send the year 1 for a time that was never set.
/// The upper end leaves room below the largest date, which other systems use as "never".
pub const COMMAND_YEARS: std::ops::RangeInclusive<i32> = 2000..=2998;

/// A structure that is read from an object only. Serde also accepts an array of its values.
pub(crate) struct Object<T>(pub(crate) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> de::Visitor<'de> for Fields<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                T::deserialize(de::value::MapAccessDeserializer::new(map)).map(Object)
            }
        }

        deserializer.deserialize_map(Fields(PhantomData))
    }
}

/// `#[serde(deserialize_with = "object")]`: a field that is an [`Object`].
pub(crate) fn object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Object::deserialize(deserializer).map(|Object(value)| value)
}

/// `#[serde(deserialize_with = "name")]`: an enum that is read from a string only. Serde also accepts `{"name": null}`.
pub(crate) fn name<'de, D: Deserializer<'de>, T: de::DeserializeOwned>(deserializer: D) -> Result<T, D::Error> {
    let text = Cow::<str>::deserialize(deserializer)?;
    T::deserialize(text.as_ref().into_deserializer())
}

/// `#[serde(deserialize_with = "rfc3339")]`: an instant of [`COMMAND_YEARS`], cut to the millisecond. The database keeps no more, and
/// what is read back must be what was decided with.
pub(crate) fn rfc3339<'de, D: Deserializer<'de>>(deserializer: D) -> Result<DateTime<Utc>, D::Error> {
    let text = Cow::<str>::deserialize(deserializer)?;
    let time = DateTime::parse_from_rfc3339(&text)
        .ok()
        .and_then(|time| DateTime::from_timestamp_millis(time.timestamp_millis()))
        .ok_or_else(|| {
            let is_local = text.parse::<NaiveDateTime>().is_ok();
            de::Error::custom(if is_local {
                "it lacks a time zone: end it with `Z` or an offset, such as \"2026-06-15T10:00:00Z\""
            } else {
                "not a time of RFC 3339 such as \"2026-06-15T10:00:00Z\""
            })
        })?;
    within_years(time.year(), time)
}

/// `#[serde(deserialize_with = "date_option")]`: a date such as `"2026-06-15"`, of [`COMMAND_YEARS`]; or absent.
pub(crate) fn date_option<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<NaiveDate>, D::Error> {
    let Some(text) = Option::<Cow<str>>::deserialize(deserializer)? else { return Ok(None) };
    let date = parse_date(&text).map_err(de::Error::custom)?;
    within_years(date.year(), Some(date))
}

/// `#[serde(deserialize_with = "month")]`: a month such as `"2026-06"`, of [`COMMAND_YEARS`].
pub(crate) fn month<'de, D: Deserializer<'de>>(deserializer: D) -> Result<YearMonth, D::Error> {
    let month = YearMonth::deserialize(deserializer)?;
    within_years(month.first_day().year(), month)
}

/// The same for a month that may be absent.
pub(crate) fn month_option<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<YearMonth>, D::Error> {
    let Some(month) = Option::<YearMonth>::deserialize(deserializer)? else { return Ok(None) };
    within_years(month.first_day().year(), Some(month))
}

fn within_years<T, E: de::Error>(year: i32, value: T) -> Result<T, E> {
    if COMMAND_YEARS.contains(&year) {
        Ok(value)
    } else {
        let (first, last) = (COMMAND_YEARS.start(), COMMAND_YEARS.end());
        Err(E::custom(format!("the year {year:04} is outside {first} to {last}; is it a date that was never set?")))
    }
}
