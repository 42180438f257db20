//! Documents as other systems and drivers write them.

use bson::oid::ObjectId;
use bson::{Bson, DateTime, Document, doc};
use serde_json::json;

use super::id;
use offramp_testkit::eventually;
use offramp_testkit::fixtures::{account, cancellation, command, organization, populate, subscription, with};
use offramp_testkit::smtp_sink::SmtpSink;
use offramp_testkit::test_bed::TestBed;
use offramp_testkit::worker_process::{WorkerProcess, metrics_of};

/// The value of `offramp_unworkable_documents` for a collection.
async fn unworkable(worker: &WorkerProcess, collection: &str) -> Option<f64> {
    let metrics = metrics_of(worker.port()).await?;
    let name = format!("offramp_unworkable_documents{{collection=\"{collection}\"}} ");
    metrics.lines().find_map(|line| line.strip_prefix(&name)?.trim().parse().ok())
}

/// The drivers of Node and Python write integers as int32, int64 or double, null for unset fields, and extra fields.
#[tokio::test(flavor = "multi_thread")]
async fn subscriptions_written_by_other_drivers_are_processed_and_preserved() {
    let bed = TestBed::new("drivers").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    let null_lists =
        ["history", "notifications", "applied", "outbox", "payment_failures", "cancellation", "cancellation_request"];
    let nulls: Document = null_lists.iter().map(|field| ((*field).to_owned(), Bson::Null)).collect();
    let mut documents = Vec::new();
    for (at, day) in [Bson::Int32(15), Bson::Int64(15), Bson::Double(15.0)].into_iter().enumerate() {
        let mut document = subscription(&format!("number-{at}"), "org", "acc");
        document.get_document_mut("billing").unwrap().insert("day", day.clone());
        document.insert("version", day);
        documents.push(document);
    }
    let mut every_null = subscription("nulls", "org", "acc");
    every_null.extend(nulls);
    every_null.extend(doc! { "version": null, "status": null, "expires_on": null, "ends_on": null, "ends_at": null });
    documents.push(every_null);
    for list in null_lists {
        let mut one_null = subscription(&format!("null-{list}"), "org", "acc");
        one_null.insert(list, Bson::Null);
        documents.push(one_null);
    }
    let mut unknown = subscription("unknown-fields", "org", "acc");
    unknown.extend(doc! { "__v": 0, "createdAt": DateTime::now(), "owner": ObjectId::new(), "crm": { "score": 0.5 } });
    unknown.get_document_mut("billing").unwrap().insert("createdAt", DateTime::now());
    documents.push(unknown.clone());
    let mut odd = subscription("odd-notifications", "org", "acc");
    odd.insert("notifications", "none");
    documents.push(odd);
    // Invalid cards and branding, which no cancellation needs.
    let accounts = bed.collection("accounts");
    let cards = doc! { "$set": { "cards": [{ "id": "bank", "brand": "", "last4": "", "expires": null }], "card_notices": "x" } };
    accounts.update_one(doc! { "_id": "acc" }, cards).await.unwrap();
    let brand = doc! { "$set": { "brand": { "color": 5, "logo_url": "data:image/png;base64,AAAA" }, "card_notice_days": "30" } };
    bed.collection("organizations").update_one(doc! { "_id": "org" }, brand).await.unwrap();
    bed.collection("subscriptions").insert_many(&documents).await.unwrap();

    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    for document in &documents {
        let id = document.get_str("_id").unwrap();
        bed.command(&cancellation(&format!("cancel-{id}"), id)).await;
    }
    eventually("every cancellation", || async {
        let cancelled = doc! { "status": "cancellation_scheduled", "outbox": { "$size": 0 } };
        let count = bed.collection("subscriptions").count_documents(cancelled).await.unwrap();
        (count == documents.len() as u64).then_some(())
    })
    .await;
    assert_eq!(sink.emails().len(), documents.len(), "one email each");
    assert!(bed.take("dead-letters").await.is_none());
    for id in ["nulls", "null-notifications", "number-2"] {
        let document = bed.document("subscriptions", id).await.unwrap();
        let records = document.get_array("notifications").unwrap();
        assert!(records[0].as_document().unwrap().get_datetime("sent_at").is_ok(), "{id}: {records:?}");
    }
    let found = bed.document("subscriptions", "unknown-fields").await.unwrap();
    for field in ["__v", "createdAt", "owner", "crm"] {
        assert_eq!(found.get(field), unknown.get(field), "{field}");
    }
    assert_eq!(
        bed.document("subscriptions", "odd-notifications").await.unwrap().get_str("notifications").unwrap(),
        "none"
    );
    assert!(worker.stop().await.success());
    bed.remove().await;
}

/// A card notice leaves the account's other fields unchanged.
#[tokio::test(flavor = "multi_thread")]
async fn accounts_written_by_other_drivers_are_processed_and_preserved() {
    let bed = TestBed::new("account-drivers").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    let null_lists = ["cards", "applied", "outbox", "card_notices", "notifications"];
    let with = |id: &str, fields: Document| {
        let mut document = account(id, "org");
        document.extend(fields);
        document
    };
    let mut documents: Vec<Document> = [Bson::Int32(3), Bson::Int64(3), Bson::Double(3.0), Bson::Null]
        .into_iter()
        .enumerate()
        .map(|(at, version)| with(&format!("version-{at}"), doc! { "version": version }))
        .collect();
    documents.push(with("nulls", null_lists.iter().map(|list| ((*list).to_owned(), Bson::Null)).collect()));
    documents.extend(null_lists.map(|list| with(&format!("null-{list}"), doc! { list: null })));
    let theirs = doc! { "__v": 0, "createdAt": DateTime::now(), "owner": ObjectId::new(), "score": 0.5, "tags": null };
    let mut unknown = with("unknown-fields", theirs.clone());
    let manager = unknown.get_document_mut("manager").unwrap();
    manager.extend(doc! { "locale": null, "phone": null, "born": DateTime::from_millis(0) });
    documents.push(unknown.clone());
    let given = doc! {
        "card_id": "other", "expires": "2199-06", "notice": { "days": 30 }, "at": DateTime::now(), "by": ObjectId::new(),
    };
    documents.push(with("notice-of-before", doc! { "card_notices": [given.clone()] }));
    documents.push(with("odd-notifications", doc! { "notifications": "none" }));
    documents.push(with("odd-cards", doc! { "cards": [{ "id": "bank", "brand": "", "last4": "", "expires": null }] }));
    bed.collection("accounts").insert_many(&documents).await.unwrap();

    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    for document in &documents {
        let card = json!({ "id": "card", "brand": "Visa", "last4": "4242", "expires": "2199-06" });
        let data = json!({ "organization_id": "org", "account_id": id(document), "card": card });
        bed.command(&command(&format!("expiry-{}", id(document)), "card.expiry", data)).await;
    }
    eventually("every notice", || async {
        let given = doc! { "card_notices.card_id": "card", "outbox": { "$size": 0 } };
        let count = bed.collection("accounts").count_documents(given).await.unwrap();
        (count == documents.len() as u64).then_some(())
    })
    .await;
    assert_eq!(sink.emails().len(), 2 * documents.len(), "one email to each side");
    assert!(bed.take("dead-letters").await.is_none());
    for id in ["version-2", "version-3", "nulls", "null-notifications"] {
        let document = bed.document("accounts", id).await.unwrap();
        assert!(document.get_i64("version").unwrap() > 0, "{id}");
        let records = document.get_array("notifications").unwrap();
        assert!(
            records.iter().all(|record| record.as_document().unwrap().get_datetime("sent_at").is_ok()),
            "{records:?}"
        );
    }
    let found = bed.document("accounts", "unknown-fields").await.unwrap();
    assert_eq!(found.get("manager"), unknown.get("manager"));
    for field in theirs.keys() {
        assert_eq!(found.get(field), unknown.get(field), "{field}");
    }
    let found = bed.document("accounts", "notice-of-before").await.unwrap();
    assert_eq!(found.get_array("card_notices").unwrap()[0], Bson::from(given));
    let found = bed.document("accounts", "odd-notifications").await.unwrap();
    assert_eq!(found.get_str("notifications").unwrap(), "none");
    assert!(worker.stop().await.success());
    bed.remove().await;
}

/// A command for such a document becomes a dead letter with the cause; a scheduled change of one is reported by the sweep.
#[tokio::test(flavor = "multi_thread")]
async fn unprocessable_documents_are_reported() {
    let bed = TestBed::new("unworkable").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    let long_ago = DateTime::from_millis(1_577_836_800_000);
    let set = |id: &str, fields: Document| {
        let mut document = subscription(id, "org", "acc");
        document.extend(fields);
        document
    };
    let mut bad_day = set("bad-day", doc! { "expires_on": "2020-01-01" });
    bad_day.get_document_mut("billing").unwrap().insert("day", "15");
    let documents = [
        set("date-as-expiry", doc! { "expires_on": long_ago }),
        set(
            "text-as-end",
            doc! { "status": "cancellation_scheduled", "ends_on": "2020-01-01", "ends_at": "2020-01-02T05:00:00Z" },
        ),
        set("no-organization", doc! { "organization_id": "gone", "expires_on": "2020-01-01" }),
        bad_day,
        set("good", doc! { "expires_on": "2020-01-01" }),
    ];
    bed.collection("subscriptions").insert_many(&documents).await.unwrap();
    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    eventually("the end of the valid subscription", || async {
        let good = bed.document("subscriptions", "good").await.unwrap();
        good.get_str("status").is_ok_and(|status| status == "expired").then_some(())
    })
    .await;
    eventually("the count of the others", || async {
        (unworkable(&worker, "subscriptions").await == Some(4.0)).then_some(())
    })
    .await;
    for document in &documents[..4] {
        let id = document.get_str("_id").unwrap();
        assert_eq!(bed.document("subscriptions", id).await.as_ref(), Some(document), "{id} is unchanged");
    }

    // An account of another organization.
    bed.collection("organizations").insert_one(organization("other")).await.unwrap();
    bed.collection("accounts").insert_one(account("foreign", "other")).await.unwrap();
    bed.collection("subscriptions").insert_one(subscription("stray", "org", "foreign")).await.unwrap();
    bed.command(&cancellation("stray", "stray")).await;
    let payment = json!({
        "organization_id": "org", "subscription_id": "bad-day", "invoice_id": "inv-5", "attempt": 1,
        "amount": { "value": "1.00", "currency": "CAD" }, "card": { "brand": "Visa", "last4": "4242" },
    });
    bed.command(&with(cancellation("bad-day", "bad-day"), "month", json!("2199-07"))).await;
    bed.command(&command("payment", "payment.failure", payment)).await;
    let letters =
        [bed.dead_letter().await, bed.dead_letter().await].map(|letter| letter.header("offramp-error")).join("; ");
    assert!(
        letters.contains("subscriptions stray: account_id: account foreign belongs to another organization"),
        "{letters}"
    );
    assert!(letters.contains("subscriptions bad-day: billing.day: expected an integer, found text"), "{letters}");
    assert!(!letters.contains("Kind:"), "{letters}");
    eventually("the failed payment to be recorded", || async {
        bed.document("subscriptions", "bad-day").await.unwrap().get_array("payment_failures").is_ok().then_some(())
    })
    .await;
    assert!(worker.stop().await.success());
    bed.remove().await;
}
