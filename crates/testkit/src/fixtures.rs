//! Documents and commands to start tests with.

use bson::{Document, doc};
use offramp::store::outbox::record::EmailIdentity;
use offramp_domain::notification::Notification;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::test_bed::TestBed;

/// The fields of a tombstone, sorted.
pub const TOMBSTONE_FIELDS: [&str; 10] = [
    "_id",
    "account_id",
    "applied",
    "ended_on",
    "history",
    "notifications",
    "organization_id",
    "outbox",
    "status",
    "version",
];

/// The identity of an email that a test records without composing it.
pub fn identify(id: Uuid, email: &Notification) -> EmailIdentity {
    EmailIdentity { message_id: format!("<{id}@offramp.example>"), locale: email.locale.clone() }
}

/// Inserts the organization `org`, the account `acc` and the subscription `sub`.
pub async fn populate(bed: &TestBed) {
    bed.collection("organizations").insert_one(organization("org")).await.unwrap();
    bed.collection("accounts").insert_one(account("acc", "org")).await.unwrap();
    bed.collection("subscriptions").insert_one(subscription("sub", "org", "acc")).await.unwrap();
}

/// An organization where clients may cancel at once.
pub fn organization(id: &str) -> Document {
    doc! {
        "_id": id, "name": "Club de natation", "locale": "fr-CA", "timezone": "America/Toronto",
        "contact": { "name": "Accueil", "email": format!("desk@{id}.example") },
        "client_cancellation": "immediate",
    }
}

/// An account whose manager reads English.
pub fn account(id: &str, organization: &str) -> Document {
    doc! {
        "_id": id, "organization_id": organization,
        "manager": { "name": "Ada Roy", "email": format!("{id}@home.example"), "locale": "en-CA" },
    }
}

/// An active subscription that is billed on the 15th, next on 15 June 2199.
pub fn subscription(id: &str, organization: &str, account: &str) -> Document {
    doc! {
        "_id": id, "organization_id": organization, "account_id": account,
        "participant": { "id": "p", "name": "Zoé Roy" }, "plan": { "id": "plan", "name": "Unlimited" },
        "billing": { "mode": "anniversary", "day": 15, "next_on": "2199-06-15", "last_invoice_id": "inv-5" },
        "activities": [{ "id": "a", "name": "Aquafit" }],
    }
}

#[allow(clippy::needless_pass_by_value, reason = "data is written in place")]
pub fn command(id: &str, kind: &str, data: Value) -> Value {
    json!({
        "specversion": "1.0", "id": id, "source": "tests", "type": kind, "time": "2199-05-20T12:00:00Z", "data": data,
    })
}

/// An admin cancels the subscription from the purchases tab, with no month.
pub fn cancellation(id: &str, subscription: &str) -> Value {
    command(
        id,
        "subscription.cancellation",
        json!({
            "organization_id": "org", "subscription_id": subscription, "via": "purchases",
            "actor": { "role": "admin", "id": "admin-1", "name": "Paul" },
        }),
    )
}

/// The command with a field of `data` added or replaced.
pub fn with(mut command: Value, field: &str, value: Value) -> Value {
    command["data"][field] = value;
    command
}
