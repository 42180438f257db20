//! Reminders of undecided requests: one per organization and day, whoever looks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bson::{Bson, DateTime as Instant, Document, doc};
use chrono::{NaiveDate, TimeDelta, Utc};
use mail_parser::MessageParser;

use super::{logging, notes, start_noting, store_of};
use offramp_testkit::eventually;
use offramp_testkit::fixtures::{account, cancellation, organization, populate, subscription};
use offramp_testkit::smtp_sink::{Action, SmtpSink, Step, Tls};
use offramp_testkit::test_bed::TestBed;
use offramp_testkit::worker_process::{WorkerProcess, metrics_of, offramp};

fn days_ago(days: i64) -> Instant {
    Instant::from(Utc::now() - TimeDelta::days(days))
}

fn today() -> NaiveDate {
    Utc::now().date_naive()
}

/// A subscription with a request that was sent so many days ago.
fn requested(id: &str, organization: &str, days: i64) -> Document {
    let mut document = subscription(id, organization, "acc");
    let actor = doc! { "role": "client", "account_id": "acc", "name": "Ada Roy" };
    document.extend(doc! {
        "status": "cancellation_requested",
        "cancellation_request": { "requested_at": days_ago(days), "actor": actor, "reason": "moving" },
    });
    document
}

/// An organization with a calendar in UTC.
fn in_utc(id: &str, more: Document) -> Document {
    let mut document = organization(id);
    document.insert("timezone", "UTC");
    document.extend(more);
    document
}

/// A reminder that was given so many days ago.
fn reminded(days: i64) -> Document {
    let last_on = (today() - TimeDelta::days(days)).to_string();
    doc! { "reminders": { "last_on": last_on, "last_at": days_ago(days) }, "version": 7 }
}

/// How many emails each organization got, by its `_id`.
fn received(sink: &SmtpSink) -> BTreeMap<String, usize> {
    let mut received = BTreeMap::new();
    for email in sink.emails() {
        let mail = MessageParser::default().parse(&email.bytes).unwrap();
        assert_eq!(mail.header("X-Offramp-Template").unwrap().as_text(), Some("requests-pending"));
        assert!(mail.reply_to().is_none(), "there is no other party");
        let id = email.to[0].strip_prefix("desk@").and_then(|rest| rest.strip_suffix(".example")).unwrap();
        *received.entry(id.to_owned()).or_default() += 1;
    }
    received
}

/// Waits until each worker has looked again: an organization that becomes due now is reminded.
async fn another_look(bed: &TestBed, sink: &SmtpSink, marker: &str) {
    bed.collection("organizations").insert_one(in_utc(marker, doc! {})).await.unwrap();
    bed.collection("subscriptions").insert_one(requested(&format!("sub-{marker}"), marker, 5)).await.unwrap();
    eventually("another look", || async { received(sink).contains_key(marker).then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_organization_gets_one_reminder_however_many_workers_look() {
    let bed = TestBed::new("reminders").await;
    let sink = SmtpSink::start().await;
    let events = bed.watch_events().await;
    let organizations = bed.collection("organizations");
    let subscriptions = bed.collection("subscriptions");
    bed.collection("accounts").insert_one(account("acc", "first")).await.unwrap();
    // The organizations, how many days ago their requests were sent, and whether a reminder is due.
    let cases: Vec<(Document, &[i64], bool)> = vec![
        (in_utc("first", doc! {}), &[4, 5, 1], true),
        (in_utc("later", reminded(3)), &[7], true),
        (in_utc("weeks", doc! { "request_reminder_days": [1, 20] }), &[21], true),
        (in_utc("null", doc! { "request_reminder_days": Bson::Null, "reminders": Bson::Null }), &[3], true),
        (in_utc("told", reminded(1)), &[6, 4], false),
        (in_utc("today", reminded(0)), &[7, 3], false),
        (in_utc("fresh", doc! {}), &[2, 1, 0], false),
        (in_utc("off", doc! { "request_reminder_days": [] }), &[30], false),
        (in_utc("none", doc! {}), &[], false),
    ];
    for (document, requests, _) in &cases {
        organizations.insert_one(document).await.unwrap();
        let id = document.get_str("_id").unwrap();
        for (number, days) in requests.iter().enumerate() {
            subscriptions.insert_one(requested(&format!("{id}-{number}"), id, *days)).await.unwrap();
        }
    }
    // A request that was declined days ago is not pending.
    let mut declined = requested("declined", "none", 9);
    declined.insert("status", "active");
    subscriptions.insert_one(declined).await.unwrap();

    let workers = [WorkerProcess::start(&bed, &sink.url()).await, WorkerProcess::start(&bed, &sink.url()).await];
    let mut expected: BTreeMap<String, usize> = cases
        .iter()
        .filter(|(_, _, is_due)| *is_due)
        .map(|(document, ..)| (document.get_str("_id").unwrap().to_owned(), 1))
        .collect();
    eventually("every reminder", || async { (received(&sink).len() >= expected.len()).then_some(()) }).await;
    another_look(&bed, &sink, "marker-1").await;
    another_look(&bed, &sink, "marker-2").await;
    bed.outboxes_empty().await;
    expected.extend(["marker-1", "marker-2"].map(|marker| (marker.to_owned(), 1)));
    assert_eq!(received(&sink), expected);

    let first = bed.document("organizations", "first").await.unwrap();
    assert_eq!(first.get_document("reminders").unwrap().get_str("last_on").unwrap(), today().to_string());
    let [record] = first.get_array("notifications").unwrap().as_slice() else { panic!("{first}") };
    let record = record.as_document().unwrap();
    assert_eq!(record.get_str("role").unwrap(), "organization_contact");
    assert!(record.contains_key("at") && record.contains_key("sent_at"), "{record}");
    let later = bed.document("organizations", "later").await.unwrap();
    assert!(later.get_i64("version").unwrap() >= 9, "the decision and the mark: {later}");
    assert!(!bed.document("organizations", "told").await.unwrap().contains_key("notifications"));

    let mut count = 0;
    for worker in &workers {
        let metrics = metrics_of(worker.port()).await.unwrap();
        let name = "offramp_scheduled_changes_total{kind=\"reminder\"} ";
        count += metrics.lines().find_map(|line| line.strip_prefix(name)?.parse::<usize>().ok()).unwrap_or(0);
    }
    assert_eq!(count, expected.len());
    for worker in workers {
        assert!(worker.stop().await.success());
    }
    assert!(events.take(&bed).await.is_empty(), "a reminder is no event");
    let of_first = sink.emails().into_iter().find(|email| email.to[0] == "desk@first.example").unwrap();
    let mail = MessageParser::default().parse(&of_first.bytes).unwrap();
    assert!(mail.subject().unwrap().contains('3'), "{:?}", mail.subject());
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_reminder_of_a_killed_worker_is_sent_by_another() {
    let bed = TestBed::new("reminder-lease").await;
    let sink = SmtpSink::start().await;
    bed.collection("organizations").insert_one(in_utc("org", doc! {})).await.unwrap();
    bed.collection("subscriptions").insert_one(requested("sub", "org", 4)).await.unwrap();
    let lease = [("OFFRAMP_LEASE_SECONDS", "20")];
    let mut first = WorkerProcess::start_with(&bed, "smtp://127.0.0.1:9", &lease).await;
    let waiting = eventually("the decision", || async {
        bed.document("organizations", "org").await.unwrap().get_array("outbox").ok().cloned()
    })
    .await;
    first.kill();
    assert_eq!(waiting.len(), 1);
    let second = WorkerProcess::start_with(&bed, &sink.url(), &lease).await;
    another_look(&bed, &sink, "marker").await;
    bed.outboxes_empty().await;
    assert!(second.stop().await.success());
    assert_eq!(received(&sink), BTreeMap::from([("marker".to_owned(), 1), ("org".to_owned(), 1)]));
    let id = waiting[0].as_document().unwrap().get_str("id").unwrap();
    let organization = bed.document("organizations", "org").await.unwrap();
    let record = organization.get_array("notifications").unwrap()[0].as_document().unwrap();
    assert_eq!(record.get_str("id").unwrap(), id);
    assert!(record.contains_key("sent_at"), "{record}");
    bed.remove().await;
}

/// Each fault is reported once and stops only the reminders of its organization.
#[tokio::test(flavor = "multi_thread")]
async fn malformed_settings_affect_only_the_reminder() {
    let bed = TestBed::new("reminder-faults").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    let faults = [
        ("days-text", doc! { "request_reminder_days": "3" }, "request_reminder_days: expected a list, found text"),
        ("days-negative", doc! { "request_reminder_days": [-1] }, "request_reminder_days: -1 is not a number of days"),
        ("zone", doc! { "timezone": "Mars/Olympus" }, "timezone: `Mars/Olympus` is not an IANA time zone"),
        ("contact", doc! { "contact": 5 }, "contact: expected an object, found an integer"),
        ("reminders", doc! { "reminders": "x" }, "reminders: expected an object, found text"),
        ("version", doc! { "version": "x" }, "version: expected an integer, found text"),
        ("outbox", doc! { "outbox": "x" }, "outbox: expected a list, found text"),
    ];
    let organizations = bed.collection("organizations");
    let subscriptions = bed.collection("subscriptions");
    for (id, fault, _) in &faults {
        organizations.insert_one(in_utc(id, fault.clone())).await.unwrap();
        subscriptions.insert_one(requested(&format!("sub-{id}"), id, 4)).await.unwrap();
    }
    subscriptions.insert_one(requested("sub-missing", "missing", 4)).await.unwrap();
    let mut dateless = requested("dateless", "org", 4);
    dateless.get_document_mut("cancellation_request").unwrap().insert("requested_at", "2026-01-01");
    subscriptions.insert_one(dateless).await.unwrap();
    let malformed = doc! { "$set": { "request_reminder_days": { "first": 3 } }, "$inc": { "version": 1 } };
    organizations.update_one(doc! { "_id": "org" }, malformed).await.unwrap();

    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let worker = logging(&bed, &sink, &log).await;
    another_look(&bed, &sink, "fine").await;
    another_look(&bed, &sink, "fine-2").await;
    let metrics = metrics_of(worker.port()).await.unwrap();
    let count = faults.len() + 1;
    let gauge = format!("offramp_unworkable_documents{{collection=\"organizations\"}} {count}\n");
    assert!(metrics.contains(&gauge), "{metrics}");
    // The malformed setting stops no command.
    sink.drain();
    bed.command(&cancellation("c-1", "sub")).await;
    eventually("the cancellation", || async { (sink.emails().len() == 1).then_some(()) }).await;
    assert!(worker.stop().await.success());

    let log = std::fs::read_to_string(log).unwrap();
    let reports: Vec<&str> = log.lines().filter(|line| line.contains("cannot be processed")).collect();
    let missing = ("missing", doc! {}, "does not exist, but subscriptions sub-missing refers to it");
    let dateless = ("dateless", doc! {}, "cancellation_request.requested_at is text, where a date belongs");
    for (id, _, sentence) in faults.iter().chain([&missing, &dateless]) {
        let of_it = reports.iter().filter(|line| line.contains(sentence) && line.contains(id));
        assert_eq!(of_it.count(), 1, "{id}: {reports:#?}");
    }
    assert_eq!(reports.len(), faults.len() + 2, "{reports:#?}");
    bed.remove().await;
}

/// A rejected reminder is kept in its organization's document, and operators find it there.
#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_reminder_is_listed_and_retried() {
    let bed = TestBed::new("reminder-rejected").await;
    let unwilling = Arc::new(AtomicBool::new(true));
    let sink = SmtpSink::scripted(Tls::No, {
        let unwilling = Arc::clone(&unwilling);
        move |step, _| match step {
            Step::Rcpt if unwilling.load(Ordering::Relaxed) => Action::Answer("550 5.1.1 no such user"),
            _ => Action::Ok,
        }
    })
    .await;
    bed.collection("organizations").insert_one(in_utc("org", doc! {})).await.unwrap();
    bed.collection("subscriptions").insert_one(requested("sub", "org", 4)).await.unwrap();
    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    let listed = eventually("the rejection", || async {
        let listed = offramp(&bed).args(["outbox", "list", "--json"]).output().unwrap().stdout;
        serde_json::from_slice::<serde_json::Value>(&listed).ok()
    })
    .await;
    assert_eq!((&listed["collection"], &listed["document"]), (&"organizations".into(), &"org".into()), "{listed}");
    assert_eq!((&listed["type"], &listed["to"]), (&"requests-pending".into(), &"desk@org.example".into()));
    unwilling.store(false, Ordering::Relaxed);
    assert!(offramp(&bed).args(["outbox", "retry", "--document", "org"]).status().unwrap().success());
    eventually("the email", || async { (received(&sink).len() == 1).then_some(()) }).await;
    bed.outboxes_empty().await;
    assert!(worker.stop().await.success());
    bed.remove().await;
}

/// The search reads keys of an index: as many as there are undecided requests, and no document of a subscription.
#[tokio::test(flavor = "multi_thread")]
async fn the_search_for_undecided_requests_reads_an_index_alone() {
    const ORGANIZATIONS: usize = 30;
    const REQUESTS: usize = 400;
    let bed = TestBed::new("reminder-reads").await;
    let store = store_of(&bed).await;
    let id = |number: usize| format!("org-{number:02}");
    let organizations = (0..ORGANIZATIONS).map(|number| in_utc(&id(number), doc! {}));
    bed.collection("organizations").insert_many(organizations).await.unwrap();
    let requests = (0..REQUESTS).map(|number| {
        let days = i64::try_from(number / ORGANIZATIONS).unwrap();
        requested(&format!("sub-{number:03}"), &id(number % ORGANIZATIONS), days)
    });
    let others = (0..1_000).map(|number| subscription(&format!("other-{number}"), &id(0), "acc"));
    bed.collection("subscriptions").insert_many(requests.chain(others)).await.unwrap();

    start_noting(&bed).await;
    let page = store.organizations_with_pending_requests(None).await.unwrap();
    let second = store.organizations_with_pending_requests(Some(&id(ORGANIZATIONS - 1))).await.unwrap();
    assert_eq!((page.organizations.len(), page.last), (ORGANIZATIONS, None));
    assert!(second.organizations.is_empty());
    let oldest = &page.organizations[0];
    assert_eq!((oldest.id.as_str(), oldest.subscription.as_str()), ("org-00", "sub-390"));
    let notes = notes(&bed).await;
    let of_subscriptions = notes.iter().filter(|note| note.get_str("ns").unwrap().ends_with(".subscriptions"));
    let sum = |field: &str| of_subscriptions.clone().map(|note| note.get_i32(field).unwrap()).sum::<i32>();
    assert_eq!(sum("docsExamined"), 0);
    assert!((400..=402).contains(&sum("keysExamined")), "{}", sum("keysExamined"));
    assert!(!of_subscriptions.clone().any(|note| note.get_bool("hasSortStage").unwrap_or(false)));
    bed.remove().await;
}
