//! Documents as other systems and drivers write them.

use bson::oid::ObjectId;
use bson::{Bson, DateTime, Document, doc};
use offramp::store::commit::WriteResult;
use offramp::store::outbox::entry::Lease;
use offramp::store::updates;
use offramp::store::{DocumentKeys, Store};
use offramp::tls::Tls;
use offramp_domain::command::Command;
use offramp_domain::unit_of_work::{Task, TaskOutcome};
use serde_json::{Value, json};

use super::id;
use offramp_testkit::eventually;
use offramp_testkit::fixtures::{account, cancellation, command, identify, organization, populate, subscription, with};
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

/// Another writer may append to `history` between Offramp's read and write without changing `version`.
#[tokio::test(flavor = "multi_thread")]
async fn history_entries_of_other_writers_are_kept() {
    let bed = TestBed::new("trail").await;
    populate(&bed).await;
    let subscriptions = bed.collection("subscriptions");
    let push = |number: i32| doc! { "$push": { "history": { "number": number } } };
    // Long enough for new entries to be written by index.
    let long: Vec<Document> = (0..60).map(|number| doc! { "number": number }).collect();
    subscriptions.update_one(doc! { "_id": "sub" }, doc! { "$set": { "history": long } }).await.unwrap();

    let store = Store::open(&bed.mongodb_url, &Tls::default()).await.unwrap();
    let command = Command::parse(cancellation("ours", "sub").to_string().as_bytes()).unwrap();
    let need = DocumentKeys {
        subscriptions: ["sub".try_into().unwrap()].into(),
        organizations: ["org".try_into().unwrap()].into(),
        ..DocumentKeys::default()
    };
    let now = chrono::Utc::now();
    let lease = Lease { holder: uuid::Uuid::new_v4(), until: now };
    let decide = async || {
        let mut read = store.load(&need).await.unwrap();
        assert_eq!(read.apply(&Task::Command(command.clone()), now), TaskOutcome::Applied);
        updates::build(read, &lease, "tests", &identify, now).unwrap()
    };
    let too_late = decide().await;
    subscriptions.update_one(doc! { "_id": "sub" }, push(60)).await.unwrap();
    assert_eq!(store.commit(&too_late).await.unwrap(), [WriteResult::Conflict]);
    assert_eq!(store.commit(&decide().await).await.unwrap(), [WriteResult::Written]);

    let document = bed.document("subscriptions", "sub").await.unwrap();
    let history: Vec<_> =
        document.get_array("history").unwrap().iter().map(|entry| entry.as_document().unwrap()).collect();
    let numbers: Vec<_> = history.iter().map(|entry| entry.get_i32("number").ok()).collect();
    assert_eq!(numbers, (0..=60).map(Some).chain([None]).collect::<Vec<_>>());
    assert_eq!(history[61].get_document("command").unwrap().get_str("id").unwrap(), "ours");
    bed.remove().await;
}

/// Other systems write these documents too, with the number types of their drivers.
#[tokio::test(flavor = "multi_thread")]
async fn numbers_and_nulls_of_other_systems_are_accepted() {
    let bed = TestBed::new("forms").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    let subscriptions = bed.collection("subscriptions");
    let versions =
        [("missing", None), ("null", Some(Bson::Null)), ("double", Some(7.0.into())), ("long", Some(7_i64.into()))];
    for (id, version) in &versions {
        let mut document = subscription(id, "org", "acc");
        document.get_document_mut("billing").unwrap().insert("day", 15.0);
        if let Some(version) = version {
            document.insert("version", version.clone());
        }
        subscriptions.insert_one(document).await.unwrap();
    }
    // Text in place of a list, and a date beyond any calendar.
    let spoilt: [(&str, Bson); 3] = [
        ("history", "x".into()),
        ("outbox", "x".into()),
        (
            "cancellation_request",
            doc! {
                "requested_at": DateTime::MIN, "actor": { "role": "client", "account_id": "acc" },
            }
            .into(),
        ),
    ];
    for (field, value) in &spoilt {
        let mut document = subscription(field, "org", "acc");
        document.insert(*field, value.clone());
        document.insert("status", "cancellation_requested");
        subscriptions.insert_one(document).await.unwrap();
    }

    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    for (id, _) in &versions {
        bed.command(&cancellation(id, id)).await;
    }
    for (field, _) in &spoilt {
        bed.command(&cancellation(field, field)).await;
    }
    for (id, version) in &versions {
        bed.status_becomes(id, "cancellation_scheduled").await;
        let document = bed.document("subscriptions", id).await.unwrap();
        let before = if matches!(version, None | Some(Bson::Null)) { 0 } else { 7 };
        assert!(document.get_i64("version").unwrap() > before, "{document}");
    }
    let mut fields = Vec::new();
    for _ in &spoilt {
        let letter = bed.dead_letter().await;
        assert_eq!(letter.header("offramp-reason"), "corrupt_document", "{}", letter.header("offramp-error"));
        let field = serde_json::from_slice::<Value>(&letter.body).unwrap()["id"].as_str().unwrap().to_owned();
        assert!(letter.header("offramp-error").contains(&field), "{}", letter.header("offramp-error"));
        fields.push(field);
    }
    fields.sort();
    assert_eq!(fields, ["cancellation_request", "history", "outbox"]);
    // A removal appends with a pipeline, which the server rejects with another code.
    let removal = with(cancellation("removal", "history"), "via", json!("invoice"));
    bed.command(&with(removal, "invoice_id", json!("inv-5"))).await;
    let letter = bed.dead_letter().await;
    assert_eq!(letter.header("offramp-reason"), "corrupt_document");
    assert_eq!(letter.header("offramp-error"), "subscriptions history: history: expected a list, found text");
    subscriptions.delete_one(doc! { "_id": "outbox" }).await.unwrap();
    bed.outboxes_empty().await;
    assert_eq!(sink.emails().len(), versions.len());
    assert!(worker.stop().await.success());
    bed.remove().await;
}
