//! Subscriptions that no sweep finds due, because the field that says when has no usable value.

use bson::{Bson, Document, RawBsonRef, RawDocument, doc};

use super::ends::WITHOUT_NATURAL_END;
use super::unworkable::{UNWORKABLE_OF_ONE_FAULT_MAX, UnprocessableDocument, kind, shown_id};
use crate::store::client::Store;
use crate::store::collection::Collection;
use crate::store::error::StoreError;
use crate::store::indexes::{EXPIRY_EMPTY, EXPIRY_TYPES, NATURAL_ENDS, NO_TEXT, PENDING_REQUESTS, SCHEDULED_ENDS};

/// Why subscriptions may never be found due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// `ends_at` is not a date.
    EndsAt,
    /// `expires_on` is not text.
    ExpiryType,
    /// `expires_on` is empty text.
    ExpiryEmpty,
    /// `expires_on` is other text that is not a date. This search reads all keys of an index.
    ExpiryText,
    /// `billing.day` is not a day of the month.
    BillingDay,
    /// `cancellation_request.requested_at` of an undecided request is not a date. This search reads a key per organization.
    RequestedAt,
}

/// Text that is not a date: not a four-digit year, a month and a day of that month. (29 February of any year passes.) It is a
/// lookahead, because MongoDB evaluates that on the keys of an index, but reads the document for a `$not`.
const NO_DATE: &str =
    r"^(?!\d{4}-(((0[13578]|1[02])-(0[1-9]|[12]\d|3[01]))|((0[469]|11)-(0[1-9]|[12]\d|30))|(02-(0[1-9]|[12]\d)))\z)";

impl Fault {
    /// The index, in subscriptions, that finds it.
    #[must_use]
    pub fn index(self) -> &'static str {
        match self {
            Self::EndsAt => SCHEDULED_ENDS,
            Self::ExpiryType => EXPIRY_TYPES,
            Self::ExpiryEmpty => EXPIRY_EMPTY,
            Self::ExpiryText | Self::BillingDay => NATURAL_ENDS,
            Self::RequestedAt => PENDING_REQUESTS,
        }
    }

    /// The filters that find it, one query each.
    fn filters(self) -> Vec<Document> {
        let live = || doc! { "$nin": WITHOUT_NATURAL_END.as_slice() };
        let days = 1..=31;
        match self {
            Self::EndsAt => vec![no_date("cancellation_scheduled", "ends_at")],
            Self::RequestedAt => vec![no_date("cancellation_requested", "cancellation_request.requested_at")],
            Self::ExpiryType => vec![doc! { "status": live(), "expires_on": { "$type": NO_TEXT.as_slice() } }],
            Self::ExpiryEmpty => vec![doc! { "status": live(), "expires_on": "" }],
            // One query per day, so that each reads a small part of the index.
            Self::ExpiryText => days
                .map(
                    |day| doc! { "status": live(), "billing.day": day, "expires_on": { "$gt": "", "$regex": NO_DATE } },
                )
                .collect(),
            Self::BillingDay => {
                let days: Vec<i32> = days.collect();
                vec![doc! { "status": live(), "billing.day": { "$nin": days }, "expires_on": { "$gt": "" } }]
            }
        }
    }

    /// The field that is read for the reason.
    fn field(self) -> &'static str {
        match self {
            Self::EndsAt => "ends_at",
            Self::ExpiryType => "expires_on",
            Self::ExpiryEmpty | Self::ExpiryText => "_id",
            Self::BillingDay => "billing.day",
            Self::RequestedAt => "cancellation_request.requested_at",
        }
    }

    /// What is wrong with a document.
    fn reason(self, raw: &RawDocument) -> String {
        match self {
            Self::EndsAt => format!("ends_at is {}, where a date belongs", kind(raw.get("ends_at").ok().flatten())),
            Self::ExpiryType => {
                let what = kind(raw.get("expires_on").ok().flatten());
                format!("expires_on is {what}, where text such as \"2026-06-30\" belongs")
            }
            Self::ExpiryEmpty | Self::ExpiryText => "expires_on is not a date such as \"2026-06-30\"".to_owned(),
            Self::BillingDay => {
                let day = raw.get_document("billing").ok().and_then(|billing| billing.get("day").ok().flatten());
                match day {
                    Some(RawBsonRef::Double(_) | RawBsonRef::Int32(_) | RawBsonRef::Int64(_)) => {
                        "billing.day is not a whole number from 1 to 31".to_owned()
                    }
                    other => format!("billing.day is {}, where a whole number from 1 to 31 belongs", kind(other)),
                }
            }
            Self::RequestedAt => {
                let request = raw.get("cancellation_request").ok().flatten().and_then(RawBsonRef::as_document);
                let at = request.and_then(|request| request.get("requested_at").ok().flatten());
                format!("cancellation_request.requested_at is {}, where a date belongs", kind(at))
            }
        }
    }
}

/// Finds subscriptions with this status whose `field` is not a date.
fn no_date(status: &str, field: &str) -> Document {
    let types = NO_TEXT.into_iter().filter(|kind| *kind != "date" && *kind != "array");
    let types: Vec<&str> = types.chain(["string"]).collect();
    doc! { "$or": [{ "status": status, field: Bson::Null }, { "status": status, field: { "$type": types } }] }
}

impl Store {
    /// Subscriptions that no sweep will ever find due, because a field that says when has a value that says nothing.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn faulty_subscriptions(&self, fault: Fault) -> Result<Vec<UnprocessableDocument>, StoreError> {
        let mut found = Vec::new();
        for filter in fault.filters() {
            let room = UNWORKABLE_OF_ONE_FAULT_MAX.saturating_sub(found.len());
            if room == 0 {
                break;
            }
            let fields = doc! { fault.field(): 1 };
            let faulty = self.hinted(Collection::Subscriptions, fault.index(), filter, fields, None, room).await?;
            found.extend(faulty.iter().map(|raw| UnprocessableDocument {
                collection: Collection::Subscriptions,
                id: shown_id(raw),
                reason: fault.reason(raw),
            }));
        }
        Ok(found)
    }
}
