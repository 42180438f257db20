//! An email that is kept for an operator is announced to other systems.

use std::collections::BTreeSet;
use std::fs::File;

use serde_json::{Value, json};

use super::entries;
use offramp_testkit::eventually;
use offramp_testkit::fixtures::{cancellation, command, populate, with};
use offramp_testkit::smtp_sink::{Action, SmtpSink, Step, Tls};
use offramp_testkit::test_bed::TestBed;
use offramp_testkit::worker_process::WorkerProcess;

async fn rejecting_recipients() -> SmtpSink {
    SmtpSink::scripted(Tls::No, |step, _| match step {
        Step::Rcpt => Action::Answer("550 5.1.1 <ann@home.example>: no such user"),
        _ => Action::Ok,
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_email_is_announced_without_its_address() {
    let bed = TestBed::new("announced").await;
    let sink = rejecting_recipients().await;
    populate(&bed).await;
    let events = bed.watch_events().await;
    let worker = WorkerProcess::start(&bed, &sink.url()).await;

    bed.command(&with(cancellation("cancel", "sub"), "month", json!("2199-08"))).await;
    let event = events.next(&bed, |event: &Value| event["type"] == "notification.failed").await;
    let document = bed.document("subscriptions", "sub").await.unwrap();
    let record = document.get_array("notifications").unwrap()[0].as_document().unwrap().clone();
    assert_eq!(event["subject"], "sub");
    assert_eq!(event["causationid"], "cancel");
    let data = &event["data"];
    let expected = json!({
        "organization_id": "org", "subscription_id": "sub", "account_id": "acc",
        "notification_id": record.get_str("id").unwrap(), "template": "cancelled-by-admin", "role": "account_manager",
        "error": data["error"],
    });
    assert_eq!(*data, expected);
    let error = data["error"].as_str().unwrap();
    assert!(error.contains("550 5.1.1") && !error.contains('@'), "{error}");

    // A removed subscription keeps what the event needs.
    bed.collection("subscriptions")
        .update_one(bson::doc! { "_id": "sub" }, bson::doc! { "$set": { "billing.last_invoice_id": "inv-5" } })
        .await
        .unwrap();
    let data = json!({
        "organization_id": "org", "subscription_id": "sub", "actor": { "role": "admin", "id": "staff" },
        "via": "invoice", "invoice_id": "inv-5",
    });
    bed.command(&command("remove", "subscription.cancellation", data)).await;
    let event = events
        .next(&bed, |event: &Value| event["type"] == "notification.failed" && event["causationid"] == "remove")
        .await;
    assert_eq!((&event["data"]["template"], &event["data"]["account_id"]), (&json!("removed-by-admin"), &json!("acc")));

    // The account's emails name no subscription.
    let data = json!({
        "organization_id": "org", "account_id": "acc",
        "card": { "id": "card", "brand": "Visa", "last4": "4242", "expires": "2199-06" },
    });
    bed.command(&command("card", "card.expiry", data)).await;
    let mut roles = BTreeSet::new();
    while roles.len() < 2 {
        let of_card = |event: &Value| event["type"] == "notification.failed" && event["causationid"] == "card";
        let event = events.next(&bed, of_card).await;
        assert_eq!(event["subject"], "acc");
        assert_eq!((event["data"].get("subscription_id"), &event["data"]["account_id"]), (None, &json!("acc")));
        let role = event["data"]["role"].as_str().unwrap().to_owned();
        assert!(roles.insert(role), "announced twice: {event}");
    }

    // Each failure is announced once, and the events have left the outbox.
    eventually("no event to wait", || async {
        let document = bed.document("subscriptions", "sub").await.unwrap();
        entries(&document).iter().all(|entry| entry.get_str("kind").unwrap() == "email")
    })
    .await;
    let document = bed.document("subscriptions", "sub").await.unwrap();
    assert_eq!(entries(&document).len(), 2, "the emails are kept");
    assert!(worker.stop().await.success());
    bed.remove().await;
}

/// A validator forbids the event.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_email_is_kept_even_if_it_cannot_be_announced() {
    let bed = TestBed::new("unannounced").await;
    let sink = rejecting_recipients().await;
    populate(&bed).await;
    let validator = bson::doc! { "outbox.event.type": { "$ne": "notification.failed" } };
    bed.set_validator("subscriptions", validator).await;
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let worker = WorkerProcess::spawn(&bed, &sink.url(), &[], File::create(&log).unwrap().into()).ready().await;
    bed.command(&cancellation("cancel", "sub")).await;
    eventually("the failure", || async {
        let failed = bson::doc! { "failed_at": { "$exists": true }, "due": { "$exists": false } };
        let filter = bson::doc! { "outbox": { "$elemMatch": failed } };
        bed.collection("subscriptions").count_documents(filter).await.unwrap() == 1
    })
    .await;
    assert!(worker.stop().await.success());
    let log = std::fs::read_to_string(log).unwrap();
    assert_eq!(log.matches("MongoDB rejects the event notification.failed").count(), 1, "{log}");
    let attempts = sink.commands().iter().filter(|command| command.starts_with("RCPT")).count();
    assert_eq!(attempts, 1, "the email is not tried again");
    bed.remove().await;
}
