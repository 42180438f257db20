//! The outbox: emails are recorded with the decision, marked with few writes, never sent again because a record cannot be
//! written, and no email holds up an event.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bson::{Bson, DateTime, Document, doc};
use chrono::{TimeDelta, Utc};
use futures_util::TryStreamExt;
use mail_parser::MessageParser;
use offramp::clock;
use offramp::store::commit::GuardedUpdate;
use offramp::store::outbox::claim::{DeferralCause, DeliveryResult, DueQueue, Mark};
use offramp::store::outbox::entry::{Kind, Lease, Leased};
use offramp::store::{Need, Store, changes};
use offramp::tls::Tls as StoreTls;
use offramp::worker::dispatcher::{Dispatcher, DispatcherOptions};
use offramp_domain::command::Command;
use offramp_domain::unit_of_work::{Task, TaskOutcome};
use serde_json::{Value, json};
use uuid::Uuid;

use offramp_testkit::eventually;
use offramp_testkit::fixtures::{account, cancellation, command, identify, populate, subscription, with};
use offramp_testkit::proxy::Proxy;
use offramp_testkit::smtp_sink::{Action, SmtpSink, Step, Tls};
use offramp_testkit::test_bed::TestBed;
use offramp_testkit::worker_process::{self, WorkerProcess};

/// The shortest lease that is allowed: an email that is not marked would soon be sent again.
const SHORT_LEASE: [(&str, &str); 1] = [("OFFRAMP_LEASE_SECONDS", "20")];

async fn store(bed: &TestBed) -> Store {
    Store::open(&bed.mongodb_url, &StoreTls::default()).await.unwrap()
}

/// Cancels a subscription as a worker does that ends right after the commit; its entries are due at `due`.
async fn cancel_and_leave(store: &Store, id: &str, due: chrono::DateTime<Utc>) -> Vec<Leased> {
    let command = Command::parse(cancellation(&format!("c-{id}"), id).to_string().as_bytes()).unwrap();
    let need = Need {
        subscriptions: [id.try_into().unwrap()].into(),
        organizations: ["org".try_into().unwrap()].into(),
        ..Need::default()
    };
    let mut read = store.load(&need).await.unwrap();
    let now = clock::now();
    assert_eq!(read.apply(&Task::Command(command), now), TaskOutcome::Applied);
    let lease = Lease { holder: Uuid::new_v4(), until: due };
    let updates = changes::updates(read, &lease, "tests", &identify, now).unwrap();
    store.commit(&updates).await.unwrap();
    updates.into_iter().flat_map(GuardedUpdate::into_leased).collect()
}

fn records(document: &Document) -> Vec<&Document> {
    document.get_array("notifications").unwrap().iter().map(|record| record.as_document().unwrap()).collect()
}

fn entries(document: &Document) -> Vec<&Document> {
    document.get_array("outbox").unwrap().iter().map(|entry| entry.as_document().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_email_is_recorded_with_the_decision_and_as_sent_once_it_is() {
    let bed = TestBed::new("recorded").await;
    let (sink, is_back) = SmtpSink::unavailable().await;
    populate(&bed).await;
    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    bed.command(&cancellation("cancel", "sub")).await;
    let before = eventually("the decision", || async {
        let document = bed.document("subscriptions", "sub").await.unwrap();
        document.contains_key("notifications").then_some(document)
    })
    .await;
    let [record] = records(&before)[..] else { panic!("{before}") };
    let decided_at = before.get_array("history").unwrap()[0].as_document().unwrap().get_datetime("at").unwrap();
    assert_eq!(record.get_datetime("at").unwrap(), decided_at);
    assert_eq!(record.get_str("template").unwrap(), "cancelled-by-admin");
    assert_eq!(record.get_str("to").unwrap(), "acc@home.example");
    assert_eq!(record.get_str("role").unwrap(), "account_manager");
    assert_eq!(record.get_str("locale").unwrap(), "en-CA");
    assert!(!record.contains_key("sent_at"), "{record}");
    let email = entries(&before).into_iter().find(|entry| entry.contains_key("mail")).unwrap();
    assert_eq!((email.get_str("kind").unwrap(), email.get("id")), ("email", record.get("id")));
    let shown =
        String::from_utf8(worker_process::offramp(&bed).args(["show", "sub"]).output().unwrap().stdout).unwrap();
    assert!(shown.contains("not sent yet"), "{shown}");

    is_back.store(true, Ordering::Relaxed);
    bed.outboxes_empty().await;
    let after = bed.document("subscriptions", "sub").await.unwrap();
    let [sent] = records(&after)[..] else { panic!("{after}") };
    let mut expected = record.clone();
    expected.insert("sent_at", sent.get_datetime("sent_at").unwrap());
    assert_eq!(*sent, expected);
    let mails = sink.mails();
    assert_eq!(mails.len(), 1);
    let mail = MessageParser::default().parse(&mails[0].bytes).unwrap();
    assert_eq!(format!("<{}>", mail.message_id().unwrap()), sent.get_str("message_id").unwrap());
    assert_eq!(mail.header("Content-Language").unwrap().as_text().unwrap(), sent.get_str("locale").unwrap());
    assert!(worker.stop().await.success());
    bed.remove().await;
}

/// Whatever other systems make of `notifications`, commands are applied, and no email is sent twice.
#[tokio::test(flavor = "multi_thread")]
async fn an_email_whose_record_cannot_be_written_is_sent_once() {
    let bed = TestBed::new("unrecorded").await;
    let (sink, is_back) = SmtpSink::unavailable().await;
    populate(&bed).await;
    let subscriptions = bed.collection("subscriptions");
    let at_commit = [("null", Bson::Null), ("text", "x".into()), ("list", Bson::Array(vec![]))];
    let later = [("later-null", Bson::Null), ("later-text", "x".into())];
    for (id, notifications) in &at_commit {
        let mut document = subscription(id, "org", "acc");
        document.insert("notifications", notifications.clone());
        subscriptions.insert_one(document).await.unwrap();
    }
    subscriptions.insert_many(later.iter().map(|(id, _)| subscription(id, "org", "acc"))).await.unwrap();
    // A collection whose validator knows no `notifications`.
    let validator = doc! { "collMod": "accounts", "validator": { "notifications": { "$exists": false } } };
    bed.database.run_command(validator).await.unwrap();

    let worker = WorkerProcess::start_with(&bed, &sink.url(), &SHORT_LEASE).await;
    let ids: Vec<&str> = at_commit.iter().chain(&later).map(|(id, _)| *id).collect();
    for id in &ids {
        bed.command(&cancellation(&format!("c-{id}"), id)).await;
    }
    let card = json!({ "organization_id": "org", "account_id": "acc",
        "card": { "id": "card", "brand": "Visa", "last4": "4242", "expires": "2199-06" } });
    bed.command(&command("card", "card.expiry", card)).await;
    eventually("every command to be applied", || async {
        let applied = doc! { "applied.0": { "$exists": true } };
        let on_subscriptions = subscriptions.count_documents(applied.clone()).await.unwrap();
        let on_accounts = bed.collection("accounts").count_documents(applied).await.unwrap();
        (on_subscriptions == ids.len() as u64 && on_accounts == 1).then_some(())
    })
    .await;
    for (id, notifications) in &later {
        let spoil = doc! { "$set": { "notifications": notifications } };
        subscriptions.update_one(doc! { "_id": id }, spoil).await.unwrap();
    }

    is_back.store(true, Ordering::Relaxed);
    bed.outboxes_empty().await;
    // With nothing in any outbox nothing can be sent again.
    assert_eq!(sink.mails().len(), ids.len() + 2);
    for id in ["null", "list"] {
        let document = bed.document("subscriptions", id).await.unwrap();
        assert!(records(&document)[0].contains_key("sent_at"), "{id}: null counts as absent");
    }
    for (id, expected) in [("text", "x".into()), ("later-text", "x".into()), ("later-null", Bson::Null)] {
        let document = bed.document("subscriptions", id).await.unwrap();
        assert_eq!(document.get("notifications"), Some(&expected), "{id}");
    }
    assert!(worker.stop().await.success());
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_email_and_its_event_are_marked_with_one_write() {
    const COUNT: usize = 20;
    let bed = TestBed::new("together").await;
    let sink = SmtpSink::start().await;
    // So that events are confirmed before their emails are accepted.
    let (slow, smtp_url) = Proxy::in_front_of(&sink.url()).await;
    slow.delay_answers(Duration::from_millis(25));
    populate(&bed).await;
    let subscriptions = bed.collection("subscriptions");
    let ids: Vec<String> = (0..COUNT).map(|index| format!("sub-{index}")).collect();
    subscriptions.insert_many(ids.iter().map(|id| subscription(id, "org", "acc"))).await.unwrap();
    let worker = WorkerProcess::start_with(&bed, &smtp_url, &[("OFFRAMP_MAIL_CONNECTIONS", "20")]).await;
    bed.database.run_command(doc! { "profile": 2 }).await.unwrap();
    for id in &ids {
        bed.command(&cancellation(&format!("c-{id}"), id)).await;
    }
    eventually("every email to be marked", || async {
        let sent = doc! { "notifications.sent_at": { "$exists": true }, "outbox": { "$size": 0 } };
        (subscriptions.count_documents(sent).await.unwrap() == COUNT as u64).then_some(())
    })
    .await;
    bed.database.run_command(doc! { "profile": 0 }).await.unwrap();
    // The commit, and one mark for both.
    let written = doc! { "version": 2 };
    assert_eq!(
        subscriptions.count_documents(written).await.unwrap(),
        COUNT as u64,
        "documents that were written twice"
    );
    let updates = doc! { "op": "update", "ns": format!("{}.subscriptions", bed.prefix), "nMatched": { "$gt": 0 } };
    let profile = bed.collection("system.profile");
    let updates: Vec<Document> = profile.find(updates).await.unwrap().try_collect().await.unwrap();
    let statements = updates.len();
    assert!(
        statements < 2 * COUNT,
        "{statements} statements to commit {COUNT} changes and mark {COUNT} emails and events"
    );
    assert_eq!(sink.mails().len(), COUNT);
    assert!(worker.stop().await.success());
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn marks_may_be_written_again() {
    let bed = TestBed::new("again").await;
    populate(&bed).await;
    let store = store(&bed).await;
    let leased = cancel_and_leave(&store, "sub", clock::now() + TimeDelta::hours(1)).await;
    let email = leased.iter().find(|leased| leased.entry.kind() == Kind::Email).unwrap().clone();
    let event = leased.iter().find(|leased| leased.entry.kind() == Kind::Event).unwrap().clone();
    assert!(event.has_companions && email.has_companions);
    let document = async || bed.document("subscriptions", "sub").await.unwrap();

    let until = clock::now() + TimeDelta::minutes(5);
    let deferred = Mark::new(
        &event,
        DeliveryResult::Deferred { until, error: "not now".to_owned(), cause: DeferralCause::Ordinary },
    );
    let at = clock::now();
    let failed = Mark::new(&email, DeliveryResult::Failed { at, error: "550 no".to_owned() });
    let marks = [deferred, failed];
    for _ in 0..2 {
        assert!(store.settle(&marks).await.unwrap().is_empty());
        let document = document().await;
        let [email, event] = entries(&document)[..] else { panic!("{document}") };
        assert_eq!(
            (event.get_i32("attempts").unwrap(), event.get_datetime("due").unwrap()),
            (1, &DateTime::from(until))
        );
        assert_eq!((email.get_i32("attempts").unwrap(), email.get("due")), (1, None));
        assert_eq!(email.get_str("error").unwrap(), "550 no");
        let [record] = records(&document)[..] else { panic!("{document}") };
        assert_eq!(record.get_datetime("failed_at").unwrap(), &DateTime::from(at));
        assert_eq!(record.get_str("error").unwrap(), "550 no");
    }
    // A failure that has no record to be written to is a failure all the same.
    let refused = doc! { "$set": { "notifications": "x" }, "$unset": { "outbox.$[].failed_at": "" } };
    bed.collection("subscriptions").update_one(doc! { "_id": "sub" }, refused).await.unwrap();
    assert!(store.settle(&marks[1..]).await.unwrap().is_empty());
    assert!(entries(&document().await)[0].contains_key("failed_at"));

    // Sent after all: the record tells of no failure any more.
    let record = doc! { "id": &email.entry.id, "failed_at": DateTime::now(), "error": "550 no" };
    let recorded = doc! { "$set": { "notifications": [record] } };
    bed.collection("subscriptions").update_one(doc! { "_id": "sub" }, recorded).await.unwrap();
    let mut retried = Mark::new(&email, DeliveryResult::Sent { at });
    retried.attempts = 1;
    let marks = [retried, Mark::new(&event, DeliveryResult::Sent { at })];
    for _ in 0..2 {
        assert!(store.settle(&marks).await.unwrap().is_empty());
        let document = document().await;
        assert!(entries(&document).is_empty());
        let expected = doc! { "id": &marks[0].entry_id, "sent_at": DateTime::from(at) };
        assert_eq!(records(&document), [&expected]);
    }
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tries_in_doubt_and_rejections_of_the_sender_are_counted_once_each() {
    let bed = TestBed::new("counted").await;
    populate(&bed).await;
    let store = store(&bed).await;
    let leased = cancel_and_leave(&store, "sub", clock::now() + TimeDelta::hours(1)).await;
    let email = leased.iter().find(|leased| leased.entry.kind() == Kind::Email).unwrap();
    let entry = async || {
        let document = bed.document("subscriptions", "sub").await.unwrap();
        entries(&document).into_iter().find(|entry| entry.contains_key("mail")).unwrap().clone()
    };
    // An entry has neither field before.
    assert!(!entry().await.contains_key("in_doubt") && !entry().await.contains_key("sender_rejected_at"));
    let (now, error) = (clock::now(), "maybe".to_owned());
    let deferred = |minutes, cause| {
        Mark::new(
            email,
            DeliveryResult::Deferred { until: now + TimeDelta::minutes(minutes), error: error.clone(), cause },
        )
    };
    let at = |minutes| now + TimeDelta::minutes(minutes);
    for mark in [
        deferred(1, DeferralCause::InDoubt),
        deferred(2, DeferralCause::SenderRejected { at: at(2) }),
        deferred(3, DeferralCause::InDoubt),
        deferred(4, DeferralCause::SenderRejected { at: at(4) }),
        deferred(5, DeferralCause::Ordinary),
    ] {
        for _ in 0..2 {
            assert!(store.settle(std::slice::from_ref(&mark)).await.unwrap().is_empty());
        }
    }
    let counted = entry().await;
    assert_eq!((counted.get_i32("attempts").unwrap(), counted.get_i32("in_doubt").unwrap()), (5, 2));
    assert_eq!(counted.get_datetime("sender_rejected_at").unwrap(), &DateTime::from(at(2)));

    // A lease is extended by its holder alone.
    let until = clock::now() + TimeDelta::hours(2);
    assert!(store.extend(email, until).await.unwrap());
    assert_eq!(entry().await.get_datetime("due").unwrap(), &DateTime::from(until));
    let mut of_another = email.clone();
    of_another.entry.holder = Uuid::new_v4().to_string();
    assert!(!store.extend(&of_another, until).await.unwrap());
    let failed = Mark::new(email, DeliveryResult::Failed { at: now, error });
    assert!(store.settle(&[failed]).await.unwrap().is_empty());
    let failed = entry().await;
    assert!(!failed.contains_key("in_doubt") && !failed.contains_key("sender_rejected_at"), "{failed}");
    assert!(!store.extend(email, until).await.unwrap(), "what has failed is not leased again");
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tombstone_keeps_its_records_without_addresses() {
    let bed = TestBed::new("tombstone").await;
    let (sink, is_back) = SmtpSink::unavailable().await;
    populate(&bed).await;
    let earlier = doc! { "$set": {
        "notifications": [{ "id": "old", "template": "payment-failed", "to": "old@home.example" }, 5],
        "history": [{ "at": DateTime::now(), "from": "active", "to": "active", "reason": "personal", "note": "personal" }],
    } };
    bed.collection("subscriptions").update_one(doc! { "_id": "sub" }, earlier).await.unwrap();
    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    let mut removal = with(cancellation("remove", "sub"), "invoice_id", json!("inv-5"));
    removal["data"]["via"] = json!("invoice");
    bed.command(&removal).await;
    let tombstone = eventually("the tombstone", || async {
        let document = bed.document("subscriptions", "sub").await.unwrap();
        document.get_str("status").is_ok_and(|status| status == "removed").then_some(document)
    })
    .await;
    // Only the entry that is still to be sent has the address.
    assert!(format!("{tombstone}").contains("acc@home.example"));
    is_back.store(true, Ordering::Relaxed);
    bed.outboxes_empty().await;
    let tombstone = bed.document("subscriptions", "sub").await.unwrap();
    let text = format!("{tombstone}");
    assert!(!text.contains("home.example") && !text.contains("personal"), "{text}");
    let notifications = tombstone.get_array("notifications").unwrap();
    assert_eq!(notifications.len(), 3, "{text}");
    let record = notifications[2].as_document().unwrap();
    assert_eq!(record.get_str("template").unwrap(), "removed-by-admin");
    assert!(
        record.contains_key("sent_at") && record.contains_key("message_id") && !record.contains_key("to"),
        "{text}"
    );
    let applied = tombstone.get_array("applied").unwrap()[0].as_document().unwrap();
    assert!(applied.contains_key("settled_at"), "{text}");
    assert_eq!(sink.mails().len(), 1);
    assert!(worker.stop().await.success());
    bed.remove().await;
}

/// Neither in its records nor, once an operator has dropped the email, anywhere else.
#[tokio::test(flavor = "multi_thread")]
async fn a_tombstone_does_not_keep_the_address_of_a_refused_email() {
    let bed = TestBed::new("refused").await;
    let sink = SmtpSink::scripted(Tls::No, |step, _| match step {
        Step::Rcpt => Action::Answer("550 5.1.1 acc@home.example is unknown"),
        _ => Action::Ok,
    })
    .await;
    populate(&bed).await;
    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    let mut removal = with(cancellation("remove", "sub"), "invoice_id", json!("inv-5"));
    removal["data"]["via"] = json!("invoice");
    bed.command(&removal).await;
    let tombstone = eventually("the failure", || async {
        let document = bed.document("subscriptions", "sub").await.unwrap();
        let records = document.get_array("notifications").ok()?;
        records.iter().any(|record| record.as_document().unwrap().contains_key("failed_at")).then_some(document)
    })
    .await;
    assert!(!format!("{:?}", records(&tombstone)).contains("home.example"), "{tombstone}");
    let entry = entries(&tombstone).into_iter().find(|entry| entry.contains_key("mail")).unwrap();
    assert!(entry.get_str("error").unwrap().contains("acc@home.example"), "an operator needs it: {tombstone}");
    let dropped = worker_process::offramp(&bed).args(["outbox", "drop", "--all", "--yes"]).output().unwrap();
    assert!(dropped.status.success(), "{dropped:?}");
    bed.outboxes_empty().await;
    let tombstone = bed.document("subscriptions", "sub").await.unwrap();
    assert!(!format!("{tombstone}").contains("home.example"), "{tombstone}");
    assert!(worker.stop().await.success());
    bed.remove().await;
}

/// With a validator that lets no entry say why.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_email_is_not_sent_again_because_its_error_cannot_be_written() {
    let bed = TestBed::new("no-error").await;
    let sink = SmtpSink::scripted(Tls::No, |step, _| match step {
        Step::Rcpt => Action::Answer("550 5.1.1 No such user"),
        _ => Action::Ok,
    })
    .await;
    populate(&bed).await;
    let validator = doc! { "outbox.error": { "$exists": false }, "notifications.error": { "$exists": false } };
    bed.database.run_command(doc! { "collMod": "subscriptions", "validator": validator }).await.unwrap();
    let subscriptions = bed.collection("subscriptions");
    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    bed.command(&cancellation("cancel", "sub")).await;
    let document = eventually("the failure", || async {
        subscriptions.find_one(doc! { "outbox.failed_at": { "$exists": true } }).await.unwrap()
    })
    .await;
    let entry = entries(&document)[0];
    assert!(!entry.contains_key("due") && !entry.contains_key("error"), "{entry}");
    assert_eq!(entry.get_i32("attempts").unwrap(), 1, "{entry}");
    assert!(worker.stop().await.success());
    bed.remove().await;
}

/// Should the process be killed before the database answers, each email that it has sent meanwhile would be sent twice.
#[tokio::test(flavor = "multi_thread")]
async fn emails_wait_while_sent_ones_cannot_be_marked() {
    const EMAILS: usize = 150;
    let bed = TestBed::new("late-marks").await;
    let (sink, is_back) = SmtpSink::unavailable().await;
    // Few emails are sent before marks count as late.
    let (slow, smtp_url) = Proxy::in_front_of(&sink.url()).await;
    slow.delay_answers(Duration::from_millis(20));
    let (line, mongodb_url) = Proxy::in_front_of_mongodb(&bed.mongodb_url).await;
    populate(&bed).await;
    let subscriptions = bed.collection("subscriptions");
    let ids: Vec<String> = (0..EMAILS).map(|index| format!("sub-{index}")).collect();
    subscriptions.insert_many(ids.iter().map(|id| subscription(id, "org", "acc"))).await.unwrap();
    let worker = WorkerProcess::start_with(&bed, &smtp_url, &[("OFFRAMP_MONGODB_URL", &mongodb_url)]).await;
    for id in &ids {
        bed.command(&cancellation(&format!("c-{id}"), id)).await;
    }
    eventually("the decisions", || async {
        let decided = subscriptions.count_documents(doc! { "status": "cancellation_scheduled" }).await.unwrap();
        (decided == EMAILS as u64).then_some(())
    })
    .await;
    line.stall();
    is_back.store(true, Ordering::Relaxed);
    eventually("a database that is away", || async {
        worker.readyz().await.filter(|answer| answer.starts_with("HTTP/1.1 503"))
    })
    .await;
    let sent = sink.mails().len();
    assert!(sent < EMAILS / 3, "{sent} emails were sent and could not be marked");
    line.resume();
    bed.outboxes_empty().await;
    let ids: HashSet<String> = sink
        .mails()
        .iter()
        .map(|mail| MessageParser::default().parse(&mail.bytes).unwrap().message_id().unwrap().to_owned())
        .collect();
    assert_eq!((sink.mails().len(), ids.len()), (EMAILS, EMAILS));
    assert!(worker.stop().await.success());
    bed.remove().await;
}

/// Also when the mail server is unavailable and many emails are due before the event.
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
    eventually("a try to send an email", || async { (sink.connections() > 0).then_some(()) }).await;
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
async fn an_unreadable_entry_is_kept_for_an_operator_and_holds_up_nothing() {
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
    // It says that it is of a later version, whose workers can read it.
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
    assert_eq!(sink.mails().len(), 1, "the other email of the document");
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
    let mails = sink.mails();
    assert_eq!(mails.len(), 1);
    let mail = MessageParser::default().parse(&mails[0].bytes).unwrap();
    let document = bed.document("subscriptions", "sub").await.unwrap();
    let [record] = records(&document)[..] else { panic!("{document}") };
    assert_eq!(record.get_str("message_id").unwrap(), format!("<{}>", mail.message_id().unwrap()));
    assert!(record.contains_key("sent_at"), "{document}");
    // Their records have no `at`, and are shown all the same.
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

/// However many documents cannot be written to, what is behind them is claimed; and they are not tried all the time.
#[tokio::test(flavor = "multi_thread")]
async fn documents_that_cannot_be_claimed_from_hold_up_nothing() {
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
    let validator = doc! { "collMod": "subscriptions", "validator": { "blocked": { "$exists": false } } };
    bed.database.run_command(validator).await.unwrap();

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
    assert_eq!((claimed[0].document_id.as_str(), claimed[0].entry.kind()), ("sub", Kind::Event), "only events");
    let (claimed, unclaimable) = claim_all(queue).await;
    assert_eq!((claimed.len(), unclaimable), (0, 0), "not tried again at once");
    // The documents become writable: the next look from the beginning finds them.
    bed.database.run_command(doc! { "collMod": "subscriptions", "validator": {} }).await.unwrap();
    queue.rewind();
    assert_eq!(claim_all(queue).await.0.len(), BLOCKED);
    bed.remove().await;
}

/// With a mail server that works, but is slower than the lanes.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_worker_has_no_room_for_does_not_wait_for_its_lease() {
    let bed = TestBed::new("room").await;
    populate(&bed).await;
    let store = store(&bed).await;
    let leased = cancel_and_leave(&store, "sub", clock::now() + TimeDelta::hours(1)).await;
    let email = leased.iter().find(|leased| leased.entry.kind() == Kind::Email).unwrap();
    let options = DispatcherOptions { lease: Duration::from_secs(3_600), mail_connections: 1, emails_per_second: None };
    let (handover, _dispatcher) = Dispatcher::new(options);
    let room = handover.room(Kind::Email);
    assert!(handover.offer(vec![email.clone(); room]).await.is_empty());
    assert_eq!(handover.room(Kind::Email), 0);
    assert_eq!(handover.room(Kind::Event), room, "events have their own");
    let no_room = handover.offer(leased.clone()).await;
    assert_eq!(no_room.iter().map(|mark| mark.kind).collect::<Vec<_>>(), [Kind::Email]);
    store.release(&no_room).await;
    let document = bed.document("subscriptions", "sub").await.unwrap();
    let due: Vec<bool> =
        entries(&document).iter().map(|entry| entry.get_datetime("due").unwrap().to_chrono() <= clock::now()).collect();
    assert_eq!(due, [true, false], "the email may be claimed at once");
    bed.remove().await;
}

/// Two kinds of entries, and those of earlier versions, each found within the bounds of one index.
#[tokio::test(flavor = "multi_thread")]
async fn claims_read_what_is_due_of_their_kind() {
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

/// Marks that an account's emails need, too.
#[tokio::test(flavor = "multi_thread")]
async fn emails_about_accounts_are_recorded_there() {
    let bed = TestBed::new("accounts").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    bed.collection("accounts").insert_one(account("other", "org")).await.unwrap();
    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    let card = json!({ "organization_id": "org", "account_id": "other",
        "card": { "id": "card", "brand": "Visa", "last4": "4242", "expires": "2199-06" } });
    bed.command(&command("card", "card.expiry", card)).await;
    let sent = eventually("both emails", || async {
        let document = bed.document("accounts", "other").await.unwrap();
        let sent = document.get_array("notifications").map_or(0, |records| {
            records.iter().filter(|record| record.as_document().unwrap().contains_key("sent_at")).count()
        });
        (sent == 2).then_some(document)
    })
    .await;
    let mut roles: Vec<&str> = records(&sent).iter().map(|record| record.get_str("role").unwrap()).collect();
    roles.sort_unstable();
    assert_eq!(roles, ["account_manager", "organization_contact"]);
    assert!(entries(&sent).is_empty());
    assert!(worker.stop().await.success());
    bed.remove().await;
}
