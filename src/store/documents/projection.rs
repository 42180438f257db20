//! Projections: which fields of a document are read.

use bson::{Bson, Document, doc};

use crate::store::collection::Collection;

/// The name under which [`decision_projection`] has the length of `history`.
pub(super) const HISTORY_LENGTH: &str = "offramp_history_length";

/// The projection for decisions: all known fields except the lists that only grow, and the length of `history`. It names the
/// fields to include: excluding a list of a thousand entries takes the server twenty times as long.
#[must_use]
pub fn decision_projection(collection: Collection) -> Document {
    let fields: &[&str] = match collection {
        Collection::Organizations => &[
            "name",
            "locale",
            "timezone",
            "contact",
            "client_cancellation",
            "notify_client_of_own_actions",
            "card_notice_days",
            "request_reminder_days",
            "admin_url",
            "admin_account_url",
            "account_url",
            "payment_method_url",
            "brand",
            "version",
            "reminders",
        ],
        Collection::Accounts => &["organization_id", "manager", "cards", "version", "applied", "card_notices"],
        Collection::Subscriptions => &[
            "organization_id",
            "account_id",
            "participant",
            "plan",
            "billing",
            "expires_on",
            "activities",
            "version",
            "status",
            "ends_on",
            "ends_at",
            "final_billing_on",
            "ended_on",
            "cancellation_request",
            "cancellation",
            "applied",
        ],
    };
    let mut projection: Document = fields.iter().map(|field| ((*field).to_owned(), Bson::Int32(1))).collect();
    if collection == Collection::Subscriptions {
        let length = doc! { "$cond": [{ "$isArray": "$history" }, { "$size": "$history" }, Bson::Null] };
        projection.insert(HISTORY_LENGTH, length);
    }
    projection
}

/// The projection of an account that a decision about its subscription needs.
#[must_use]
pub fn reference_projection() -> Document {
    doc! { "organization_id": 1, "manager": 1, "version": 1 }
}
