//! Claims: due entries are claimed, whatever else waits or cannot be read.

use std::time::{Duration, Instant};

use bson::{Bson, DateTime, Document, doc};
use chrono::{TimeDelta, Utc};
use futures_util::TryStreamExt;
use mail_parser::MessageParser;
use offramp::clock;
use offramp::store::outbox::due_queue::DueQueue;
use offramp::store::outbox::entry::{Kind, Lease};
use offramp::worker::database_clock::DatabaseClock;
use offramp::worker::dispatcher::{Dispatcher, DispatcherOptions};
use serde_json::Value;
use uuid::Uuid;

use super::{cancel_and_leave, entries, records, store};
use offramp_testkit::eventually;
use offramp_testkit::fixtures::{cancellation, identify, populate, subscription};
use offramp_testkit::proxy::Proxy;
use offramp_testkit::smtp_sink::SmtpSink;
use offramp_testkit::test_bed::TestBed;
use offramp_testkit::worker_process::{self, WorkerProcess};

/// Even while the mail server is unavailable and many emails are due before the event.
#[tokio::test(flavor = "multi_thread")]
async fn a_due_event_does_not_wait_for_emails() {
    let count: usize = std::env::var("EMAILS").map_or(4_000, |count| count.parse().unwrap());
    let bed = TestBed::new("kinds").await;
    let (sink, _is_back) = SmtpSink::unavailable().await;
    populate(&bed).await;
    let store = store(&bed).await;
    let events = bed.watch_events().await;
    let due = clock::now() - TimeDelta::hours(1);
    cancel_and_leave(&store, "sub", due).await;
    let subscriptions = bed.collection("subscriptions");
    let model = bed.document("subscriptions", "sub").await.unwrap();
    let backlog: Vec<Document> = (0..count)
        .map(|index| {
            let mut document = model.clone();
            document.insert("_id", format!("email-{index}"));
            let emails: Vec<Bson> =
                entries(&model).into_iter().filter(|entry| entry.contains_key("mail")).map(Bson::from).collect();
            document.insert("outbox", emails);
            document
        })
        .collect();
    subscriptions.delete_one(doc! { "_id": "sub" }).await.unwrap();
    subscriptions.insert_many(backlog).await.unwrap();
    subscriptions.insert_one(subscription("sub", "org", "acc")).await.unwrap();

    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    eventually("an attempt to send an email", || async { (sink.connections() > 0).then_some(()) }).await;
    let begin = Instant::now();
    cancel_and_leave(&store, "sub", clock::now()).await;
    events.next(&bed, |event| event["subject"] == "sub").await;
    let took = begin.elapsed();
    println!("{count} emails wait: a due event was published after {took:?}");
    assert!(took < Duration::from_secs(13), "{took:?}");
    eventually("the mark of the event", || async {
        let document = bed.document("subscriptions", "sub").await.unwrap();
        entries(&document).iter().all(|entry| entry.contains_key("mail")).then_some(())
    })
    .await;
    assert!(worker.stop().await.success());
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_entry_is_kept_for_an_operator_and_blocks_nothing() {
    let bed = TestBed::new("unreadable").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    let store = store(&bed).await;
    let subscriptions = bed.collection("subscriptions");
    subscriptions.insert_one(subscription("new", "org", "acc")).await.unwrap();
    let long_ago = clock::now() - TimeDelta::minutes(1);
    cancel_and_leave(&store, "sub", long_ago).await;
    let secret = doc! { "template": "of-a-newer-version", "to": { "email": "ada@home.example" } };
    let broken =
        |due| doc! { "id": Uuid::new_v4().to_string(), "kind": "email", "due": DateTime::from(due), "mail": &secret };
    let add = |due| doc! { "$push": { "outbox": { "$each": [broken(due)], "$position": 0 } } };
    subscriptions.update_one(doc! { "_id": "sub" }, add(long_ago)).await.unwrap();
    // This entry has the format of a later version, whose workers can read it.
    subscriptions.update_one(doc! { "_id": "new" }, add(long_ago)).await.unwrap();
    let later = doc! { "$set": { "outbox.0.format": 2 } };
    subscriptions.update_one(doc! { "_id": "new" }, later).await.unwrap();

    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    let failed = eventually("the failure", || async {
        let document = bed.document("subscriptions", "sub").await.unwrap();
        (entries(&document).len() == 1 && entries(&document)[0].contains_key("failed_at")).then_some(document)
    })
    .await;
    let entry = entries(&failed)[0];
    assert!(!entry.contains_key("due") && !entry.contains_key("holder"), "it is not leased: {entry}");
    let error = entry.get_str("error").unwrap();
    assert!(error.contains("cannot read") && !error.contains("newer-version"), "{error}");
    assert_eq!(sink.emails().len(), 1, "the other email of the document");
    let listed = worker_process::offramp(&bed).args(["outbox", "list", "--json"]).output().unwrap().stdout;
    let listed: Value = serde_json::from_slice(&listed).unwrap();
    assert_eq!(listed["document"], "sub", "{listed}");
    let untouched = bed.document("subscriptions", "new").await.unwrap();
    assert!(!untouched.contains_key("version") && entries(&untouched)[0].contains_key("due"), "{untouched}");
    assert!(worker.stop().await.success());
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_of_earlier_versions_are_sent() {
    let bed = TestBed::new("kindless").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    let events = bed.watch_events().await;
    cancel_and_leave(&store(&bed).await, "sub", clock::now()).await;
    // Earlier versions wrote no `kind` and no record; later ones may add fields.
    let earlier = doc! {
        "$unset": { "outbox.$[].kind": "", "notifications": "" },
        "$set": { "outbox.$[].of_a_later_version": 1 },
    };
    bed.collection("subscriptions").update_one(doc! { "_id": "sub" }, earlier).await.unwrap();
    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    events.next(&bed, |event| event["subject"] == "sub").await;
    bed.outboxes_empty().await;
    let emails = sink.emails();
    assert_eq!(emails.len(), 1);
    let mail = MessageParser::default().parse(&emails[0].bytes).unwrap();
    let document = bed.document("subscriptions", "sub").await.unwrap();
    let [record] = records(&document)[..] else { panic!("{document}") };
    assert_eq!(record.get_str("message_id").unwrap(), format!("<{}>", mail.message_id().unwrap()));
    assert!(record.contains_key("sent_at"), "{document}");
    // Records of earlier versions have no `at`, and are still shown.
    let record = doc! { "id": "x", "template": "payment-failed", "to": "then@home.example", "role": "account_manager",
    "locale": "fr", "sent_at": DateTime::now(), "message_id": "<x@y>" };
    let recorded = doc! { "$set": { "notifications": [record] } };
    bed.collection("subscriptions").update_one(doc! { "_id": "sub" }, recorded).await.unwrap();
    let shown =
        String::from_utf8(worker_process::offramp(&bed).args(["show", "sub"]).output().unwrap().stdout).unwrap();
    assert!(shown.contains("then@home.example"), "{shown}");
    assert!(worker.stop().await.success());
    bed.remove().await;
}

/// Earlier versions recorded neither `command` nor whether invoices are still to come, and an absent `refund` as `false`.
#[tokio::test(flavor = "multi_thread")]
async fn emails_of_earlier_versions_deny_no_invoice_and_no_refund() {
    let bed = TestBed::new("deny").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    let entry = |template: &str, more: Document| {
        let mut facts = doc! {
            "organization": { "name": "Club", "email": "club@sports.example" }, "manager": { "email": "ada@home.example" },
            "participant": "Zoé", "plan": "Yoga", "reason": "do not enrol again",
        };
        facts.extend(more);
        let mail = doc! {
            "template": template, "role": "account_manager", "to": { "email": "ada@home.example" }, "locale": "en-CA", "facts": facts,
        };
        doc! { "id": Uuid::new_v4().to_string(), "due": DateTime::now(), "holder": "", "attempts": 0, "mail": mail }
    };
    let outbox = [
        entry("cancelled-by-admin", doc! { "ends_on": "2126-09-14", "final_billing_on": "2126-08-15" }),
        entry("request-accepted", doc! { "ends_on": "2026-05-14", "final_billing_on": "2026-04-15" }),
        entry("removed-by-admin", doc! { "removed_on": "2026-05-14", "invoice_id": "inv-05", "refund": false }),
        entry("removed-by-admin", doc! { "removed_on": "2026-05-14", "invoice_id": "inv-06", "refund": true }),
    ];
    let add = doc! { "$push": { "outbox": { "$each": outbox.to_vec() } } };
    bed.collection("subscriptions").update_one(doc! { "_id": "sub" }, add).await.unwrap();
    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    bed.outboxes_empty().await;
    assert!(worker.stop().await.success());

    let emails = sink.emails();
    assert_eq!(emails.len(), 4);
    let texts: Vec<String> = emails
        .iter()
        .map(|email| MessageParser::default().parse(&email.bytes).unwrap().body_text(0).unwrap().replace("\r\n", "\n"))
        .collect();
    let with =
        |words: &str| texts.iter().find(|text| text.contains(words)).unwrap_or_else(|| panic!("{words}: {texts:#?}"));
    let [to_come, ended] = ["Last invoice: August 15, 2126", "Last invoice: April 15, 2026"].map(with);
    assert!(to_come.contains("Access continues through September 14, 2126."), "{to_come}");
    assert!(!ended.contains("Access continues"), "{ended}");
    for text in [to_come, ended] {
        assert!(text.contains("\nAny unpaid invoice is still due.\n") && !text.contains("o more invoices"), "{text}");
    }
    assert!(with("We’ve cancelled invoice inv-05.\n\nParticipant: Zoé\n").contains("no more invoices"), "{texts:#?}");
    with("We’ve cancelled invoice inv-06. You’ll get a refund for what you paid.");
    assert!(texts.iter().all(|text| !text.contains("No refund")), "{texts:#?}");
    let reasons = texts.iter().filter(|text| text.contains("do not enrol"));
    assert_eq!(reasons.collect::<Vec<_>>(), [ended], "only the client's own reason");
    bed.remove().await;
}

/// However many documents reject writes, later documents are claimed, and the failing ones are not retried constantly.
#[tokio::test(flavor = "multi_thread")]
async fn unwritable_documents_do_not_block_claims() {
    const BLOCKED: usize = 2_500;
    let bed = TestBed::new("blocked").await;
    populate(&bed).await;
    let store = store(&bed).await;
    store.create_indexes().await.unwrap();
    let subscriptions = bed.collection("subscriptions");
    cancel_and_leave(&store, "sub", clock::now() - TimeDelta::minutes(5)).await;
    let mut model = bed.document("subscriptions", "sub").await.unwrap();
    model.insert("blocked", true);
    let blocked: Vec<Document> = (0..BLOCKED)
        .map(|index| {
            let mut document = model.clone();
            document.insert("_id", format!("blocked-{index}"));
            document
        })
        .collect();
    subscriptions.insert_many(blocked).await.unwrap();
    let later = doc! { "$set": { "outbox.$[].due": DateTime::from(clock::now() - TimeDelta::minutes(1)) } };
    subscriptions.update_one(doc! { "_id": "sub" }, later).await.unwrap();
    bed.set_validator("subscriptions", doc! { "blocked": { "$exists": false } }).await;

    let mut queues = DueQueue::of(Kind::Event);
    let queue = &mut queues[0];
    let claim_all = async |queue: &mut DueQueue| {
        let (mut claimed, mut unclaimable) = (Vec::new(), 0);
        loop {
            let now = clock::now();
            let lease = Lease { holder: Uuid::new_v4(), until: now + TimeDelta::hours(1) };
            let round = store.claim(queue, 200, &lease, now, &identify).await.unwrap();
            claimed.extend(round.entries);
            unclaimable += round.unclaimable.len();
            if !round.goes_on {
                return (claimed, unclaimable);
            }
        }
    };
    let (claimed, unclaimable) = claim_all(queue).await;
    assert_eq!((claimed.len(), unclaimable), (1, BLOCKED));
    assert_eq!((claimed[0].document.as_str(), claimed[0].entry.kind()), ("sub", Kind::Event), "only events");
    let (claimed, unclaimable) = claim_all(queue).await;
    assert_eq!((claimed.len(), unclaimable), (0, 0), "not tried again at once");
    // Once the documents are writable, the next pass from the start claims them.
    bed.set_validator("subscriptions", doc! {}).await;
    queue.rewind();
    assert_eq!(claim_all(queue).await.0.len(), BLOCKED);
    bed.remove().await;
}

/// When the mail server is slower than the lanes.
#[tokio::test(flavor = "multi_thread")]
async fn entries_beyond_the_memory_limit_are_released_at_once() {
    let bed = TestBed::new("room").await;
    populate(&bed).await;
    let store = store(&bed).await;
    let leased = cancel_and_leave(&store, "sub", clock::now() + TimeDelta::hours(1)).await;
    let email = leased.iter().find(|leased| leased.entry.kind() == Kind::Email).unwrap();
    let options = DispatcherOptions { lease: Duration::from_secs(3_600), mail_connections: 1, emails_per_second: None };
    let (handover, _dispatcher) = Dispatcher::new(options, DatabaseClock::new(options.lease));
    let room = handover.room(Kind::Email);
    assert!(handover.offer(vec![email.clone(); room]).await.is_empty());
    assert_eq!(handover.room(Kind::Email), 0);
    assert_eq!(handover.room(Kind::Event), room, "events have their own limit");
    let no_room = handover.offer(leased.clone()).await;
    assert_eq!(no_room.iter().map(|mark| mark.kind).collect::<Vec<_>>(), [Kind::Email]);
    store.release(&no_room).await;
    let document = bed.document("subscriptions", "sub").await.unwrap();
    let due: Vec<bool> =
        entries(&document).iter().map(|entry| entry.get_datetime("due").unwrap().to_chrono() <= clock::now()).collect();
    assert_eq!(due, [true, false], "the email may be claimed at once");
    bed.remove().await;
}

/// Both kinds of entries, and those of earlier versions, are found within the bounds of one index.
#[tokio::test(flavor = "multi_thread")]
async fn claims_read_only_due_entries_of_their_kind() {
    let bed = TestBed::new("bounds").await;
    populate(&bed).await;
    let store = store(&bed).await;
    store.create_indexes().await.unwrap();
    let now = DateTime::now();
    let entry = |kind: &str, due: DateTime| doc! { "id": "x", "kind": kind, "due": due };
    let tomorrow = DateTime::from(Utc::now() + TimeDelta::days(1));
    let many: Vec<Document> = (0..5_000)
        .map(|index| doc! { "_id": format!("{index}"), "outbox": [entry("email", now), entry("event", tomorrow)] })
        .chain([
            doc! { "_id": "event", "outbox": [entry("event", now)] },
            doc! { "_id": "old", "outbox": [{ "id": "x", "due": now }] },
            doc! { "_id": "failed", "outbox": [{ "id": "x", "kind": "event", "failed_at": now }] },
        ])
        .collect();
    bed.collection("subscriptions").insert_many(many).await.unwrap();
    bed.database.run_command(doc! { "profile": 2 }).await.unwrap();
    for queue in DueQueue::of(Kind::Event).iter_mut().chain(&mut DueQueue::of(Kind::Email)) {
        let lease = Lease { holder: Uuid::new_v4(), until: clock::now() };
        store.claim(queue, 10, &lease, clock::now(), &identify).await.unwrap();
    }
    bed.database.run_command(doc! { "profile": 0 }).await.unwrap();
    let finds = doc! { "op": "query", "ns": format!("{}.subscriptions", bed.prefix), "command.filter.outbox": { "$exists": true } };
    let finds: Vec<Document> = bed.collection("system.profile").find(finds).await.unwrap().try_collect().await.unwrap();
    assert_eq!(finds.len(), 3, "{finds:?}");
    for find in finds {
        assert_eq!(find.get_str("planSummary").unwrap(), "IXSCAN { outbox.kind: 1, outbox.due: 1 }", "{find}");
        assert!(find.get_i32("keysExamined").unwrap() <= 64, "{find}");
    }
    bed.remove().await;
}

/// The document has the email under a lease of the worker, which does not know it.
/// Starts a worker whose leases outlast a test, behind a proxy of MongoDB.
async fn start_with_long_leases(bed: &TestBed, sink: &SmtpSink) -> (Proxy, WorkerProcess) {
    populate(bed).await;
    let (line, mongodb_url) = Proxy::in_front_of_mongodb(&bed.mongodb_url).await;
    let settings = [("OFFRAMP_MONGODB_URL", mongodb_url.as_str()), ("OFFRAMP_LEASE_SECONDS", "600")];
    let worker = WorkerProcess::start_with(bed, &sink.url(), &settings).await;
    (line, worker)
}

/// Waits until one email has been sent and everything is marked, and ends the test.
async fn sent_once(bed: TestBed, sink: &SmtpSink, worker: WorkerProcess) {
    bed.outboxes_empty().await;
    assert_eq!(sink.emails().len(), 1);
    assert!(worker.stop().await.success());
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_email_of_a_commit_without_a_reply_does_not_wait_for_its_lease() {
    let bed = TestBed::new("stranded").await;
    let sink = SmtpSink::start().await;
    let (line, worker) = start_with_long_leases(&bed, &sink).await;
    // Only the commit names the command.
    line.hold_requests("commit without reply");
    bed.command(&cancellation("commit without reply", "sub")).await;
    eventually("the commit", async || line.has_caught()).await;
    line.mute();
    line.hold_requests("");
    bed.status_becomes("sub", "cancellation_scheduled").await;
    line.cut();
    line.resume();
    sent_once(bed, &sink, worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_email_of_a_claim_without_a_reply_does_not_wait_for_its_lease() {
    let bed = TestBed::new("adrift").await;
    let sink = SmtpSink::start().await;
    let (line, worker) = start_with_long_leases(&bed, &sink).await;
    // The email alone is due. Of all the worker's requests, only its claim sets this field.
    cancel_and_leave(&store(&bed).await, "sub", clock::now() + TimeDelta::hours(1)).await;
    let subscriptions = bed.collection("subscriptions");
    let no_event = doc! { "$pull": { "outbox": { "kind": "event" } } };
    subscriptions.update_one(doc! { "_id": "sub" }, no_event).await.unwrap();
    line.hold_requests("outbox.0.holder");
    let due = doc! { "$set": { "outbox.0.due": DateTime::now() } };
    subscriptions.update_one(doc! { "_id": "sub" }, due).await.unwrap();
    eventually("the claim", async || line.has_caught()).await;
    line.mute();
    line.hold_requests("");
    eventually("a lease", async || {
        let document = bed.document("subscriptions", "sub").await?;
        let is_leased = |entry: &&Document| entry.get_datetime("due").is_ok_and(|due| due.to_chrono() > clock::now());
        entries(&document).into_iter().find(is_leased).map(drop)
    })
    .await;
    line.cut();
    line.resume();
    sent_once(bed, &sink, worker).await;
}
