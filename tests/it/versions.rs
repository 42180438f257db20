//! Upgrade and downgrade: this release continues what the previous one left, and the previous one can read what this one writes.
//!
//! `tests/fixtures/previous-release` is what the previous release left, and its schemas. `make upgrade-trial` runs both programs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Stdio;

use bson::{Bson, Document, doc};
use jsonschema::Validator;
use mail_parser::MessageParser;
use serde_json::{Value, json};

use offramp_testkit::eventually;
use offramp_testkit::recording::{Message, Recording, becomes, list, publish, requests, take_all, waiting};
use offramp_testkit::repository;
use offramp_testkit::smtp_sink::SmtpSink;
use offramp_testkit::test_bed::TestBed;
use offramp_testkit::worker_process::{WorkerProcess, offramp, program};

fn folder() -> PathBuf {
    repository().join("tests/fixtures/previous-release")
}

/// The standard output of a subcommand that succeeds.
#[track_caller]
fn output(bed: &TestBed, arguments: &[&str]) -> String {
    let ran = offramp(bed).args(arguments).stdin(Stdio::null()).output().unwrap();
    assert!(ran.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&ran.stderr));
    String::from_utf8(ran.stdout).unwrap()
}

#[track_caller]
fn objects(bed: &TestBed, arguments: &[&str]) -> Vec<Value> {
    output(bed, arguments).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn text<'a>(document: &'a Document, name: &str) -> &'a str {
    document.get_str(name).unwrap_or_else(|_| panic!("no {name}: {document}"))
}

/// How often each email has arrived, by `Message-ID`.
fn arrived(sink: &SmtpSink) -> BTreeMap<String, usize> {
    let mut arrived = BTreeMap::new();
    for email in sink.emails() {
        let parsed = MessageParser::default().parse(&email.bytes).unwrap();
        *arrived.entry(format!("<{}>", parsed.message_id().unwrap())).or_default() += 1;
    }
    arrived
}

/// The `Message-ID` of the email of an entry, as recorded with the decision.
fn message_id(recording: &Recording, id: &str) -> String {
    let record = recording.notifications().into_iter().find(|record| text(record, "id") == id);
    text(&record.unwrap_or_else(|| panic!("no record of {id}")), "message_id").to_owned()
}

/// The fixture would prove little without one of each.
#[test]
fn the_previous_release_left_one_of_each() {
    let recording = Recording::read(&folder());
    let has = |list: &[Document], field: &str| list.iter().any(|it| it.contains_key(field));
    let (entries, emails) = (recording.outbox_entries(), recording.notifications());
    for field in ["due", "failed_at", "in_doubt", "sender_rejected_at", "error", "event", "mail", "command"] {
        assert!(has(&entries, field), "no outbox entry with {field}");
    }
    for field in ["sent_at", "failed_at", "error"] {
        assert!(has(&emails, field), "no record of an email with {field}");
    }
    assert!(entries.iter().any(|it| it.get_i32("attempts").is_ok_and(|attempts| attempts > 0)));
    assert!(entries.iter().any(|it| it.get_i32("attempts").is_ok_and(|attempts| attempts == 0)));
    let statuses: BTreeSet<&str> =
        recording.every_document().filter_map(|(_, document)| document.get_str("status").ok()).collect();
    let all = ["active", "cancellation_requested", "cancellation_scheduled", "cancelled", "expired", "removed"];
    assert_eq!(statuses, BTreeSet::from(all));
    for field in ["history", "applied", "payment_failures", "card_notices", "reminders", "cancellation_request", "crm"]
    {
        assert!(recording.every_document().any(|(_, document)| document.contains_key(field)), "no {field}");
    }
    let reasons: BTreeSet<&str> =
        recording.dead_letters.iter().filter_map(|it| it.headers["offramp-reason"]["longstr"].as_str()).collect();
    assert_eq!(reasons, BTreeSet::from(["corrupt_document", "invalid"]));
    let queues: BTreeSet<&str> = recording.retry_copies.iter().map(|it| it.queue.as_str()).collect();
    assert_eq!(queues, BTreeSet::from(["retry.30s", "retry.5s"]));
    let kinds: BTreeSet<String> = recording.events.iter().map(|event| kind(&event.body)).collect();
    assert_eq!(kinds.len(), 6, "{kinds:?}");
}

fn kind(body: &str) -> String {
    serde_json::from_str::<Value>(body).unwrap()["type"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_previous_release_left_is_continued() {
    let recording = Recording::read(&folder());
    let bed = TestBed::new("versions").await;
    let sink = SmtpSink::start().await;
    output(&bed, &["init"]);
    let events = bed.watch_events().await;
    recording.load(&bed).await;

    // Operators and support staff see all of it.
    let ran = offramp(&bed).args(["check", "--documents"]).stdin(Stdio::null()).output().unwrap();
    let checked = String::from_utf8_lossy(&ran.stdout);
    // `s-corrupt` and `s-foreign`.
    let count = recording.every_document().count();
    assert!(checked.contains(&format!("{count} documents: 2 errors, 0 warnings")), "{checked}");
    let (failed, open): (Vec<Document>, Vec<Document>) =
        recording.outbox_entries().into_iter().partition(|entry| entry.contains_key("failed_at"));
    let ids = |listed: Vec<Value>| -> BTreeSet<String> {
        listed.iter().map(|entry| entry["id"].as_str().unwrap().to_owned()).collect()
    };
    let expected = |entries: &[Document]| entries.iter().map(|it| text(it, "id").to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(ids(objects(&bed, &["outbox", "list", "--json"])), expected(&failed));
    assert_eq!(ids(objects(&bed, &["outbox", "list", "--waiting", "--json"])), expected(&open));
    for (collection, document) in recording.every_document().filter(|(name, _)| *name != "organizations") {
        let id = text(document, "_id");
        let shown = output(&bed, &["show", id]);
        assert!(!shown.contains("unreadable") && shown.contains(id), "{collection} {id}: {shown}");
        for record in list(document, "notifications") {
            assert!(shown.contains(text(&record, "template")), "{id}: {record} is not shown: {shown}");
        }
    }
    let listed = objects(&bed, &["dead-letters", "list", "--each", "--json"]);
    assert_eq!(listed.len(), recording.dead_letters.len());

    // What waits is sent once, with the ids that it had; what was sent is not sent again.
    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    eventually("no waiting entry", || async {
        output(&bed, &["outbox", "list", "--waiting"]).starts_with("nothing waits")
    })
    .await;
    let (emails, waiting_events): (Vec<&Document>, Vec<&Document>) =
        open.iter().partition(|entry| entry.contains_key("mail"));
    let found = arrived(&sink);
    for entry in &emails {
        assert_eq!(found.get(&message_id(&recording, text(entry, "id"))), Some(&1), "{entry}");
    }
    let sent_before = recording.notifications().into_iter().filter(|record| record.contains_key("sent_at"));
    for record in
        sent_before.chain(failed.iter().map(|it| doc! { "message_id": message_id(&recording, text(it, "id")) }))
    {
        assert_eq!(found.get(text(&record, "message_id")), None, "{record}");
    }
    assert!(!waiting_events.is_empty());
    let published = events.take(&bed).await;
    for entry in waiting_events {
        let stored: Value = Bson::Document(entry.get_document("event").unwrap().clone()).into_relaxed_extjson();
        let copies: Vec<_> = published.iter().filter(|event| event["id"] == stored["id"]).collect();
        assert_eq!(copies, [&stored]);
    }
    let before: BTreeSet<&str> =
        recording.events.iter().map(|event| event.properties["message_id"].as_str().unwrap()).collect();
    assert!(published.iter().all(|event| !before.contains(event["id"].as_str().unwrap())), "{published:?}");

    // Kept for an operator, then retried.
    assert_eq!(ids(objects(&bed, &["outbox", "list", "--json"])), expected(&failed));
    output(&bed, &["outbox", "retry", "--all"]);
    bed.outboxes_empty().await;
    for entry in &failed {
        assert_eq!(arrived(&sink).get(&message_id(&recording, text(entry, "id"))), Some(&1), "{entry}");
    }

    // A copy returns from its retry queue and waits in the next one; another returns after the request that it decides.
    let [early, late] =
        ["retry.5s", "retry.30s"].map(|queue| recording.retry_copies.iter().find(|copy| copy.queue == queue).unwrap());
    publish(&bed, &format!("{}.{}", bed.prefix, early.queue), &early.routing_key, early).await;
    eventually("the copy in retry.30s", || async { waiting(&bed, "retry.30s").await == 1 }).await;
    let copies = take_all(&bed, "retry.30s").await;
    let again = copies.iter().find(|copy| copy.id() == early.id()).unwrap();
    assert_eq!(again.headers["offramp-attempt"], json!({ "int": 2 }));
    for (name, value) in early.headers.iter().filter(|(name, _)| *name != "offramp-attempt") {
        assert_eq!(again.headers.get(name), Some(value), "{name}");
    }
    assert_eq!((&again.body, &again.properties), (&early.body, &early.properties));
    bed.command(&requests("c-late-request", "s-late")).await;
    becomes(&bed, "s-late", doc! { "status": "cancellation_requested" }).await;
    let returned = Message { routing_key: "subscription.cancellation-confirmation".to_owned(), ..late.clone() };
    publish(&bed, &bed.prefix, &returned.routing_key, &returned).await;
    becomes(&bed, "s-late", doc! { "status": "cancellation_scheduled" }).await;

    // A repeat of what the previous release applied changes nothing.
    let version = bed.document("subscriptions", "s-requested").await.unwrap().get_i64("version").unwrap();
    let settled = worker.settled().await;
    bed.command(&requests("c-requested", "s-requested")).await;
    eventually("the repeat to be processed", || async { worker.settled().await > settled }).await;
    assert_eq!(bed.document("subscriptions", "s-requested").await.unwrap().get_i64("version").unwrap(), version);

    // A dead letter is replayed after the repair.
    let set = doc! { "$set": { "billing.next_on": "2199-06-15" } };
    bed.collection("subscriptions").update_one(doc! { "_id": "s-corrupt" }, set).await.unwrap();
    output(&bed, &["dead-letters", "replay", "--subscription", "s-corrupt"]);
    becomes(&bed, "s-corrupt", doc! { "status": "cancellation_scheduled" }).await;
    bed.outboxes_empty().await;
    let found = arrived(&sink);
    assert!(found.values().all(|times| *times == 1), "{found:?}");
    assert!(worker.stop().await.success());
    bed.remove().await;
}

/// The schemas of the previous release say what its readers accept; the ids and headers are those that it would have given.
#[tokio::test(flavor = "multi_thread")]
async fn the_previous_release_can_read_what_this_one_writes() {
    let before = Recording::read(&folder());
    let bed = TestBed::new("versions-ours").await;
    let now = Recording::of(program(), &bed).await;
    bed.remove().await;

    let mut errors = Vec::new();
    for (collection, documents) in &now.documents {
        let schema = validator(&format!("documents/{collection}"));
        for document in documents.iter().filter(|it| !["s-corrupt"].contains(&text(it, "_id"))) {
            let value = Bson::Document(document.clone()).into_relaxed_extjson();
            let id = text(document, "_id");
            errors.extend(schema.iter_errors(&value).map(|error| format!("{id}{}: {error}", error.instance_path())));
        }
    }
    let known: BTreeSet<String> = before.events.iter().map(|event| kind(&event.body)).collect();
    for event in now.events.iter().filter(|event| known.contains(&kind(&event.body))) {
        let value: Value = serde_json::from_str(&event.body).unwrap();
        let schema = validator(&format!("events/{}", kind(&event.body)));
        errors.extend(schema.iter_errors(&value).map(|error| format!("{}: {error}", event.body)));
    }
    assert!(errors.is_empty(), "{errors:#?}");

    // A command that both releases decide has effects with the same ids, so that a repeat is recognised. (A reminder is one of its day.)
    let emails = |recording: &Recording| -> BTreeSet<(String, String)> {
        let by_command = recording.notifications().into_iter().filter(|it| text(it, "template") != "requests-pending");
        by_command.map(|it| (text(&it, "id").to_owned(), text(&it, "message_id").to_owned())).collect()
    };
    assert_eq!(emails(&now), emails(&before));
    let ids = |recording: &Recording| -> BTreeSet<String> {
        let published = recording.events.iter().map(Message::id);
        let entries = recording.outbox_entries();
        published
            .chain(entries.iter().filter(|it| it.contains_key("event")).map(|it| text(it, "id").to_owned()))
            .collect()
    };
    assert!(ids(&now).is_superset(&ids(&before)), "{:?}", ids(&before).difference(&ids(&now)));

    // Copies and dead letters have every header and property that the previous release gives them.
    let messages = |recording: &Recording| [recording.retry_copies.clone(), recording.dead_letters.clone()].concat();
    let ours = messages(&now);
    assert_eq!(ours.len(), messages(&before).len());
    for theirs in messages(&before) {
        let found = ours.iter().find(|it| it.body == theirs.body);
        let found = found.unwrap_or_else(|| panic!("no message like {theirs:?}"));
        assert_eq!((&found.queue, &found.routing_key), (&theirs.queue, &theirs.routing_key));
        assert_eq!(found.properties, theirs.properties);
        let differs = |name: &str| ["offramp-died-at", "offramp-error"].contains(&name);
        for (name, value) in &theirs.headers {
            let header = found.headers.get(name).unwrap_or_else(|| panic!("no header {name}: {found:?}"));
            assert!(header == value || differs(name) && header["longstr"].is_string(), "{name}: {header}, not {value}");
        }
    }
}

/// A schema of the previous release.
fn validator(name: &str) -> Validator {
    let path = folder().join("schemas").join(format!("{name}.schema.json"));
    let schema = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let schema: Value = serde_json::from_str(&schema).unwrap();
    jsonschema::draft202012::options().should_validate_formats(true).build(&schema).unwrap()
}
