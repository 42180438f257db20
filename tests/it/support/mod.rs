//! What support staff see: `offramp show`, `offramp find`, and the rejected commands behind them.

mod find;
mod rejected_commands;
mod show;

use bson::{Document, doc};
use futures_util::TryStreamExt;
use offramp::store::Store;
use offramp::tls::Tls;
use serde_json::{Value, json};

use crate::cli::{fails, run, succeeds};
use offramp_testkit::eventually;
use offramp_testkit::fixtures::command;
use offramp_testkit::test_bed::TestBed;
use offramp_testkit::worker_process::offramp;

/// A store whose indexes are built.
async fn store_of(bed: &TestBed) -> Store {
    let store = Store::open(&bed.mongodb_url, &Tls::default()).await.unwrap();
    store.create_indexes().await.unwrap();
    store
}

/// The text that `offramp show` prints.
#[track_caller]
fn shown(bed: &TestBed, id: &str) -> String {
    succeeds(&mut offramp(bed), &["show", id], "").stdout
}

/// The JSON that `offramp show` prints.
#[track_caller]
fn view(bed: &TestBed, id: &str) -> Value {
    serde_json::from_str(&succeeds(&mut offramp(bed), &["show", id, "--json"], "").stdout).unwrap()
}

/// What a timeline has of one kind.
fn of_kind(view: &Value, kind: &str) -> Vec<Value> {
    view["timeline"].as_array().unwrap().iter().filter(|entry| entry["kind"] == kind).cloned().collect()
}

/// A client's request to cancel.
fn request(id: &str, subscription: &str) -> Value {
    command(
        id,
        "subscription.cancellation-request",
        json!({
            "organization_id": "org", "subscription_id": subscription, "reason": "Moving\nto Laval",
            "actor": { "role": "client", "account_id": "acc", "name": "Ada" },
        }),
    )
}

/// An administrator's decision.
fn confirmation(id: &str, subscription: &str, decision: &str) -> Value {
    command(
        id,
        "subscription.cancellation-confirmation",
        json!({
            "organization_id": "org", "subscription_id": subscription, "decision": decision, "note": "Sorry to see you go",
            "actor": { "role": "admin", "id": "admin-1", "name": "Paul" },
        }),
    )
}

/// A failed payment.
fn payment_failure(id: &str, subscription: &str) -> Value {
    command(
        id,
        "payment.failure",
        json!({
            "organization_id": "org", "subscription_id": subscription, "invoice_id": "inv-5",
            "amount": { "value": "49.99", "currency": "CAD" }, "card": { "brand": "Visa", "last4": "4242" },
            "attempt": 1, "next_attempt_on": "2199-06-20", "failure_message": "Do not honor",
            "failure_code": "insufficient_funds",
        }),
    )
}

/// Waits until a rejected command is recorded.
async fn recorded(bed: &TestBed, command_id: &str) -> Document {
    eventually("a recorded rejection", || async {
        bed.collection("rejected_commands").find_one(doc! { "command.id": command_id }).await.unwrap()
    })
    .await
}
