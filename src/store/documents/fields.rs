//! How fields are read that several documents have.

use bson::DateTime as Instant;
use chrono::{DateTime, Datelike, NaiveDate, Utc};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};

use offramp_domain::calendar::{DOCUMENT_YEARS, parse_date};

use super::stored::{Fault, Stored};

/// `#[serde(default = "missing")]`: a field that has to be there.
pub(super) fn missing<T>() -> Stored<T> {
    Stored::missing()
}

/// `#[serde(deserialize_with = "readable")]`: an unreadable value counts as absent.
pub(super) fn readable<'de, D: Deserializer<'de>, T: DeserializeOwned>(deserializer: D) -> Result<Option<T>, D::Error> {
    Stored::<Option<T>>::deserialize(deserializer).map(|stored| stored.ok().flatten())
}

/// `#[serde(deserialize_with = "null_as_default")]`: null counts as absent.
pub(super) fn null_as_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// A BSON date as an instant, of a year of four digits: other years have no ISO form and no time zone.
pub(super) fn utc(instant: Instant) -> Result<DateTime<Utc>, Fault> {
    let time = instant.to_chrono();
    if (0..=9999).contains(&time.year()) { Ok(time) } else { Err(Fault::new("is outside the years 0 to 9999")) }
}

/// A date that another system wrote.
pub(super) fn date(text: Option<String>) -> Result<Option<NaiveDate>, Fault> {
    let Some(text) = text else { return Ok(None) };
    let date = parse_date(&text).map_err(Fault::new)?;
    if DOCUMENT_YEARS.contains(&date.year()) {
        Ok(Some(date))
    } else {
        let (first, last) = (DOCUMENT_YEARS.start(), DOCUMENT_YEARS.end());
        Err(Fault::new(format!("`{text}` is not of the years {first} to {last}")))
    }
}

/// Checks that a field is there.
pub(super) fn required<T>(value: Option<T>) -> Result<T, Fault> {
    value.ok_or_else(|| Fault::new("missing"))
}
