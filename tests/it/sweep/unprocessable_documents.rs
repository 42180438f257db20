//! Documents that cannot be processed are counted, reported once, and do not delay others.

use std::collections::HashSet;

use bson::{Bson, DateTime as Instant, Document, doc};
use chrono::{TimeDelta, Utc};
use offramp::store::due::TriedSubscriptions;

use super::{expiring, logging, scheduled, start_noting, store_of, sweeps};
use offramp_testkit::eventually;
use offramp_testkit::fixtures::{organization, populate};
use offramp_testkit::smtp_sink::SmtpSink;
use offramp_testkit::test_bed::TestBed;
use offramp_testkit::worker_process::{WorkerProcess, metrics_of};

/// However many due subscriptions cannot be ended, one sweep tries each of them, with few ids in memory.
#[tokio::test(flavor = "multi_thread")]
async fn every_due_subscription_is_tried_however_many_fail() {
    const STUCK: usize = 40_000;
    const NAMELESS: usize = 3;
    // Up to two windows before entries are passed over by number, and less than one more while they are tried.
    const IDS_MAX: usize = 3 * 8_192;
    let bed = TestBed::new("stuck").await;
    let store = store_of(&bed).await;
    let now = Utc::now();
    let document = |id: Bson, index: usize| {
        let ends_at = now - TimeDelta::seconds(60 + i64::try_from(index % 1_000).unwrap());
        doc! { "_id": id, "status": "cancellation_scheduled", "ends_at": Instant::from(ends_at) }
    };
    let stuck = (0..STUCK).map(|index| document(format!("sub-{index:05}").into(), index));
    let nameless = (0..NAMELESS).map(|index| document(bson::oid::ObjectId::new().into(), 400 * index));
    bed.collection("subscriptions").insert_many(stuck.chain(nameless)).await.unwrap();

    let mut passed = TriedSubscriptions::default();
    let (mut tried, mut unworkable, mut ids_max) = (HashSet::new(), HashSet::new(), 0);
    loop {
        let window = store.scheduled_ends(now, &mut passed).await.unwrap();
        unworkable.extend(window.unworkable.into_iter().map(|document| document.id));
        if window.due.is_empty() {
            break;
        }
        // A quarter of the window, from a random start where a sweep may choose one.
        let mut due = window.due;
        if !passed.is_full() {
            let begin = fastrand::usize(..due.len());
            due.rotate_left(begin);
        }
        due.truncate(due.len().div_ceil(4));
        for id in due {
            assert!(tried.insert(id.clone()), "{id} was tried before");
            passed.add(id);
        }
        ids_max = ids_max.max(passed.ids_count());
    }
    assert_eq!(tried.len(), STUCK);
    assert_eq!(unworkable.len(), NAMELESS);
    assert_eq!(passed.ids_count(), 0, "all are passed over by number, none by id");
    println!("at most {ids_max} of {STUCK} ids in memory");
    assert!(ids_max <= IDS_MAX, "{ids_max}");
    bed.remove().await;
}

/// The value of `offramp_unworkable_documents` for a collection.
async fn unworkable(worker: &WorkerProcess, collection: &str) -> Option<u64> {
    let metrics = metrics_of(worker.port()).await?;
    let name = format!("offramp_unworkable_documents{{collection=\"{collection}\"}} ");
    metrics.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok())
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_that_cannot_be_processed_are_counted_and_reported_once() {
    let bed = TestBed::new("unworkable").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    let past = Utc::now() - TimeDelta::days(1);
    let mut documents = Vec::new();
    let mut expected = Vec::new();
    let mut add = |mut document: Document, change: Document, sentence: &'static str| {
        expected.push((document.get_str("_id").unwrap().to_owned(), sentence));
        document.extend(change);
        documents.push(document);
    };
    add(scheduled("ends-text", past), doc! { "ends_at": "2026-01-01" }, "ends_at is text, where a date belongs");
    add(scheduled("ends-null", past), doc! { "ends_at": Bson::Null }, "ends_at is null, where a date belongs");
    add(scheduled("ends-number", past), doc! { "ends_at": 5 }, "ends_at is a number, where a date belongs");
    let expires = "expires_on is a date, where text such as";
    add(expiring("expires-date", 15, Instant::from(past)), doc! {}, expires);
    add(expiring("expires-later", 15, Instant::MAX), doc! { "status": "active" }, expires);
    add(expiring("expires-never", 15, "never"), doc! {}, "expires_on is not a date such as");
    add(expiring("expires-slashes", 15, "01/02/2026"), doc! {}, "expires_on");
    add(expiring("expires-empty", 15, ""), doc! {}, "expires_on is not a date such as");
    add(expiring("expires-reversed", 15, "30/06/2026"), doc! {}, "expires_on is not a date such as");
    add(expiring("expires-time", 15, "2199-06-30T00:00:00Z"), doc! {}, "expires_on is not a date such as");
    add(expiring("expires-line", 15, "2199-06-30\n"), doc! { "status": "active" }, "expires_on is not a date such as");
    add(expiring("expires-month", 15, "2199-13-01"), doc! {}, "expires_on is not a date such as");
    add(expiring("expires-day", 15, "2199-06-31"), doc! {}, "expires_on is not a date such as");
    add(expiring("day-text", "15", "2026-01-01"), doc! {}, "billing.day is text, where a whole number");
    add(expiring("day-large", 32, "2026-01-01"), doc! {}, "billing.day is not a whole number");
    add(expiring("day-half", 1.5, "2199-01-01"), doc! {}, "billing.day is not a whole number");
    add(expiring("day-null", Bson::Null, "2026-01-01"), doc! {}, "billing.day is null, where a whole number");
    add(
        expiring("no-organization", 15, "2020-01-01"),
        doc! { "organization_id": "gone" },
        "organizations gone: does not exist",
    );
    add(scheduled("bad-activities", past), doc! { "activities": 5 }, "activities: expected a list, found an integer");
    let in_order: Vec<Document> = vec![
        expiring("fine", 15, "2199-01-01"),
        expiring("fine-31", 31, "2199-12-31"),
        expiring("fine-leap", 31, "2204-02-29"),
        expiring("fine-never", 31, "9999-12-31"),
        {
            let mut ended = expiring("ended-text", 15, "30/06/2026");
            ended.insert("status", "cancelled");
            ended
        },
        expiring("null", 15, Bson::Null),
        expiring("over", 15, "2020-01-01"),
        scheduled("scheduled", Utc::now() + TimeDelta::days(30)),
        {
            let mut ended = expiring("ended", "x", Instant::from(past));
            ended.insert("status", "expired");
            ended
        },
    ];
    let subscriptions = bed.collection("subscriptions");
    subscriptions.insert_many(documents.iter().chain(&in_order)).await.unwrap();
    let mut bad_days = organization("bad-days");
    bad_days.insert("card_notice_days", "30");
    let mut nameless = organization("nameless");
    nameless.extend(doc! { "_id": bson::oid::ObjectId::new(), "card_notice_days": [30] });
    bed.collection("organizations").insert_many([bad_days, nameless]).await.unwrap();

    store_of(&bed).await;
    start_noting(&bed).await;
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let worker = logging(&bed, &sink, &log).await;
    assert!(unworkable(&worker, "subscriptions").await.is_some(), "the metric exists from the start");
    assert_eq!(unworkable(&worker, "accounts").await, Some(0));
    let count = expected.len() as u64;
    eventually("the count", || async { (unworkable(&worker, "subscriptions").await == Some(count)).then_some(()) })
        .await;
    eventually("organizations", || async { (unworkable(&worker, "organizations").await == Some(2)).then_some(()) })
        .await;
    let so_far = sweeps(&bed).await;
    eventually("two more sweeps", || async { (sweeps(&bed).await >= so_far + 2).then_some(()) }).await;

    // A corrected document is processed and no longer counted.
    let corrected = doc! { "$set": { "expires_on": "2020-01-01" } };
    subscriptions.update_one(doc! { "_id": "expires-date" }, corrected).await.unwrap();
    eventually("one fewer", || async { (unworkable(&worker, "subscriptions").await == Some(count - 1)).then_some(()) })
        .await;
    assert_eq!(bed.document("subscriptions", "expires-date").await.unwrap().get_str("status").unwrap(), "expired");
    assert_eq!(bed.document("subscriptions", "over").await.unwrap().get_str("status").unwrap(), "expired");
    assert!(worker.stop().await.success());

    let log = std::fs::read_to_string(log).unwrap();
    let reports: Vec<&str> = log.lines().filter(|line| line.contains("cannot be processed")).collect();
    for (id, sentence) in &expected {
        let of_it: Vec<&&str> = reports.iter().filter(|line| line.contains(id)).collect();
        assert_eq!(of_it.len(), 1, "{id}: {reports:#?}");
        assert!(of_it[0].contains(sentence) && of_it[0].contains("ERROR"), "{sentence}: {}", of_it[0]);
    }
    assert_eq!(reports.len(), expected.len() + 2, "{reports:#?}");
    bed.remove().await;
}
