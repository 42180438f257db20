//! Values as BSON: numbers of any type, dates in schemas, and what is sent.

use bson::{Bson, RawArrayBuf, RawBsonRef, RawDocumentBuf};
use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use super::error::StoreError;

/// An integer that another system wrote as any of BSON's number types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Integer(pub i64);

impl<'de> Deserialize<'de> for Integer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl serde::de::Visitor<'_> for Visitor {
            type Value = Integer;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an integer")
            }

            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Integer, E> {
                Ok(Integer(number))
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Integer, E> {
                i64::try_from(number).map(Integer).map_err(E::custom)
            }

            fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Integer, E> {
                const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
                if number.fract() == 0.0 && number.abs() < EXACT_MAX {
                    #[allow(clippy::cast_possible_truncation, reason = "checked in the line above")]
                    Ok(Integer(number as i64))
                } else {
                    Err(E::custom(format!("{number} is not an integer")))
                }
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

/// An integer, in whichever of BSON's number types another system wrote it.
pub(super) fn integer<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    Option::<Integer>::deserialize(deserializer).map(|number| number.map(|Integer(number)| number))
}

/// A whole number, in whichever of BSON's number types another system wrote it.
pub(in crate::store) fn whole_number(value: RawBsonRef<'_>) -> Option<i64> {
    /// From here on not every whole number is a double.
    const DOUBLE_MAX: f64 = 9_007_199_254_740_992.0;
    match value {
        RawBsonRef::Int32(number) => Some(number.into()),
        RawBsonRef::Int64(number) => Some(number),
        #[allow(clippy::cast_possible_truncation, reason = "checked")]
        RawBsonRef::Double(number) if number.fract() == 0.0 && number.abs() < DOUBLE_MAX => Some(number as i64),
        _ => None,
    }
}

/// An instant as extended JSON writes a BSON date; used in JSON Schemas only.
#[derive(JsonSchema)]
#[schemars(inline)]
pub struct ExtendedJsonDate {
    /// RFC 3339, or milliseconds since 1970.
    #[serde(rename = "$date")]
    #[schemars(with = "DateTime<Utc>")]
    _date: (),
}

/// Serialises a value once; from then on it is only copied.
pub(in crate::store) fn to_raw<T: Serialize>(value: &T) -> Result<RawDocumentBuf, StoreError> {
    bson::serialize_to_raw_document_buf(value).map_err(|error| not_bson(&error))
}

pub(in crate::store) fn to_bson<T: Serialize + ?Sized>(value: &T) -> Result<Bson, StoreError> {
    bson::serialize_to_bson(value).map_err(|error| not_bson(&error))
}

pub(in crate::store) fn to_raw_array<T: Serialize>(items: &[T]) -> Result<RawArrayBuf, StoreError> {
    items.iter().map(to_raw).collect()
}

pub(in crate::store) fn not_bson(error: &bson::error::Error) -> StoreError {
    StoreError::Permanent(format!("not BSON: {error}"))
}
