//! Documents that cannot be processed as they are, and how their faults are described.

use bson::{RawBsonRef, RawDocument};

use crate::store::collection::Collection;

/// A document that cannot be processed as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnprocessableDocument {
    pub collection: Collection,
    /// Its `_id`.
    pub id: String,
    /// Which field is invalid, and what is expected. It quotes nothing of the document.
    pub reason: String,
}

/// The maximum number of documents that are listed for one fault; the metric counts no further.
pub(super) const UNWORKABLE_OF_ONE_FAULT_MAX: usize = 1_000;

/// The type of a value, for messages.
pub(super) fn kind(value: Option<RawBsonRef<'_>>) -> &'static str {
    match value {
        None => "missing",
        Some(RawBsonRef::Null | RawBsonRef::Undefined) => "null",
        Some(RawBsonRef::String(_)) => "text",
        Some(RawBsonRef::DateTime(_)) => "a date",
        Some(RawBsonRef::Timestamp(_)) => "a timestamp",
        Some(RawBsonRef::Boolean(_)) => "true or false",
        Some(RawBsonRef::ObjectId(_)) => "an ObjectId",
        Some(RawBsonRef::Document(_)) => "an object",
        Some(RawBsonRef::Array(_)) => "a list",
        Some(RawBsonRef::Double(_) | RawBsonRef::Int32(_) | RawBsonRef::Int64(_) | RawBsonRef::Decimal128(_)) => {
            "a number"
        }
        Some(_) => "a value of another type",
    }
}

/// The `_id` of a document, for messages.
pub(super) fn shown_id(raw: &RawDocument) -> String {
    match raw.get("_id") {
        Ok(Some(RawBsonRef::String(id))) => id.to_owned(),
        Ok(Some(RawBsonRef::ObjectId(id))) => id.to_hex(),
        Ok(id) => format!("with an _id that is {}", kind(id)),
        Err(_) => "that cannot be read".to_owned(),
    }
}
