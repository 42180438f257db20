//! The validators that `offramp schemas --mongodb` prints: MongoDB accepts them, they accept what a worker writes and reject what it cannot read.

use bson::{Bson, DateTime, Document, doc};
use serde_json::Value;

use crate::cli::succeeds;
use offramp_testkit::eventually;
use offramp_testkit::fixtures::{cancellation, command, organization, populate, subscription, with};
use offramp_testkit::smtp_sink::SmtpSink;
use offramp_testkit::test_bed::TestBed;
use offramp_testkit::worker_process::{WorkerProcess, bare, offramp};

/// Creates the collections and sets their validators.
async fn validate(bed: &TestBed) {
    for command in succeeds(&mut bare(), &["schemas", "--mongodb", "--json"], "").json() {
        bed.database.create_collection(command["collMod"].as_str().unwrap()).await.unwrap();
        bed.database.run_command(bson::serialize_to_document(&command).unwrap()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn validators_accept_what_the_worker_writes_and_all_examples() {
    let bed = TestBed::new("validators").await;
    let sink = SmtpSink::start().await;
    validate(&bed).await;
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/schemas/examples/documents.jsonl");
    let ran = succeeds(&mut offramp(&bed), &["import", examples], "");
    assert!(ran.stdout.contains("imported 10 documents"), "{}", ran.stdout);

    populate(&bed).await;
    for id in ["request", "failure", "removed", "expiring"] {
        bed.collection("subscriptions").insert_one(subscription(id, "org", "acc")).await.unwrap();
    }
    let past = doc! { "$set": { "expires_on": "2020-01-01" } };
    bed.collection("subscriptions").update_one(doc! { "_id": "expiring" }, past).await.unwrap();
    bed.collection("organizations")
        .update_one(doc! {}, doc! { "$set": { "client_cancellation": "request" } })
        .await
        .unwrap();
    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    let client = serde_json::json!({ "role": "client", "account_id": "acc", "name": "Ada" });
    let data = serde_json::json!({ "organization_id": "org", "subscription_id": "request", "actor": client, "reason": "Moving" });
    let failure = serde_json::json!({
        "organization_id": "org", "subscription_id": "failure", "invoice_id": "inv-5", "attempt": 1,
        "amount": { "value": "49.99", "currency": "CAD" }, "card": { "brand": "Visa", "last4": "4242" },
    });
    let removal = with(with(cancellation("c-2", "removed"), "via", "invoice".into()), "invoice_id", "inv-5".into());
    let month = with(cancellation("c-1", "sub"), "month", "2199-07".into());
    for command in [
        month,
        removal,
        command("c-3", "subscription.cancellation-request", data),
        command("c-4", "payment.failure", failure),
    ] {
        bed.command(&command).await;
    }
    for (id, status) in [
        ("sub", "cancellation_scheduled"),
        ("removed", "removed"),
        ("request", "cancellation_requested"),
        ("expiring", "expired"),
    ] {
        eventually(id, || async {
            let document = bed.document("subscriptions", id).await?;
            document.get_str("status").is_ok_and(|found| found == status).then_some(())
        })
        .await;
    }
    eventually("a recorded failure", || async {
        let document = bed.document("subscriptions", "failure").await?;
        document.get_array("payment_failures").is_ok_and(|failures| failures.len() == 1).then_some(())
    })
    .await;
    bed.outboxes_empty().await;
    assert!(bed.take("dead-letters").await.is_none());
    assert!(worker.stop().await.success());
    // Everything that it wrote is valid, too, and not only left alone.
    for collection in ["organizations", "accounts", "subscriptions"] {
        let found = bed.database.run_command(doc! { "validate": collection }).await.unwrap();
        assert!(found.get_bool("valid").unwrap(), "{found}");
        let infos = doc! { "listCollections": 1, "filter": { "name": collection } };
        let infos = bed.database.run_command(infos).await.unwrap();
        let options = infos.get_document("cursor").unwrap().get_array("firstBatch").unwrap()[0].as_document().unwrap();
        let validator = options.get_document("options").unwrap().get_document("validator").unwrap();
        let invalid = bed.collection(collection).find_one(doc! { "$nor": [validator.clone()] }).await.unwrap();
        assert_eq!(invalid, None, "{collection}");
    }
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn validators_reject_what_the_worker_cannot_read() {
    let bed = TestBed::new("validators-reject").await;
    validate(&bed).await;
    populate(&bed).await;
    let date = Bson::from(DateTime::parse_rfc3339_str("2026-06-30T00:00:00Z").unwrap());
    let text = |text: &str| Bson::from(text);
    let wrong = [
        ("subscriptions", "expires_on", date.clone()),
        ("subscriptions", "expires_on", text("30/06/2026")),
        ("subscriptions", "expires_on", text("2026-06-30\n")),
        ("subscriptions", "ends_at", text("2026-06-30T00:00:00Z")),
        ("subscriptions", "billing.day", text("15")),
        ("subscriptions", "billing.day", Bson::Double(15.5)),
        ("subscriptions", "billing.day", Bson::Int32(32)),
        ("subscriptions", "billing.mode", text("weekly")),
        ("subscriptions", "billing.next_on", Bson::Null),
        ("subscriptions", "billing.next_on", date.clone()),
        ("subscriptions", "status", text("paused")),
        ("subscriptions", "status", text("cancellation_scheduled")),
        ("subscriptions", "participant.name", Bson::Int32(7)),
        ("subscriptions", "account_id", Bson::ObjectId(bson::oid::ObjectId::new())),
        ("subscriptions", "version", text("3")),
        ("subscriptions", "outbox", text("none")),
        ("accounts", "manager.email", Bson::Null),
        ("accounts", "cards", text("4242")),
        ("organizations", "client_cancellation", text("sometimes")),
        ("organizations", "card_notice_days", Bson::from(vec![-1])),
        ("organizations", "contact", text("desk@org.example")),
    ];
    for (collection, field, value) in wrong {
        let update = doc! { "$set": { field: value.clone() } };
        let result = bed.collection(collection).update_one(doc! {}, update).await;
        let error = result.expect_err(&format!("{collection}.{field} = {value}")).to_string();
        assert!(
            error.contains("121") || error.contains("failed validation"),
            "{collection}.{field} = {value}: {error}"
        );
    }
    let mut unnamed = organization("x");
    unnamed.insert("_id", bson::oid::ObjectId::new());
    assert!(bed.collection("organizations").insert_one(unnamed).await.is_err());

    // Null counts as absent, numbers have any type, and unknown fields are allowed.
    let fine = [
        (
            "subscriptions",
            doc! { "expires_on": Bson::Null, "outbox": Bson::Null, "crm": { "score": 3.5 }, "billing.crm": 1 },
        ),
        ("subscriptions", doc! { "billing.day": 15.0, "version": 3_i64 }),
        ("accounts", doc! { "manager.locale": Bson::Null, "manager.crm": "x" }),
        ("organizations", doc! { "card_notice_days": [30.0, 5], "website": "x" }),
    ];
    for (collection, fields) in fine {
        let update: Document = doc! { "$set": fields.clone() };
        bed.collection(collection)
            .update_one(doc! {}, update)
            .await
            .unwrap_or_else(|error| panic!("{fields}: {error}"));
    }
    bed.remove().await;
}

#[test]
fn the_script_contains_the_commands() {
    let script = succeeds(&mut bare(), &["schemas", "--mongodb"], "").stdout;
    let begin = script.find("of [").unwrap() + 3;
    let commands: Value = serde_json::from_str(&script[begin..=script.rfind("]) {").unwrap()]).unwrap();
    let lines = succeeds(&mut bare(), &["schemas", "--mongodb", "--json"], "").json();
    assert_eq!(commands, Value::Array(lines));
}
