//! Marks: a sent or rejected email is never sent again because its mark cannot be written.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bson::{Bson, DateTime, Document, doc};
use chrono::TimeDelta;
use futures_util::TryStreamExt;
use mail_parser::MessageParser;
use offramp::clock;
use offramp::store::outbox::delivery::{DeferralCause, DeliveryResult, Mark};
use offramp::store::outbox::entry::Kind;
use serde_json::json;
use uuid::Uuid;

use super::{cancel_and_leave, entries, records, store};
use offramp_testkit::fixtures::{cancellation, command, populate, subscription};
use offramp_testkit::proxy::Proxy;
use offramp_testkit::smtp_sink::{Action, SmtpSink, Step, Tls};
use offramp_testkit::test_bed::TestBed;
use offramp_testkit::worker_process::WorkerProcess;
use offramp_testkit::{PATIENCE, eventually};

/// The shortest allowed lease, so that an unmarked email would soon be sent again.
const SHORT_LEASE: [(&str, &str); 1] = [("OFFRAMP_LEASE_SECONDS", "20")];

/// Whatever other systems write to `notifications`, commands are applied, and no email is sent twice.
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
    // A validator that rejects `notifications`.
    bed.set_validator("accounts", doc! { "notifications": { "$exists": false } }).await;

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
    // With all outboxes empty, nothing can be sent again.
    assert_eq!(sink.emails().len(), ids.len() + 2);
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
    // Events must be confirmed before their emails are accepted.
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
    // The commit, and one write that marks both.
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
    assert_eq!(sink.emails().len(), COUNT);
    assert!(worker.stop().await.success());
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn marks_are_idempotent() {
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
        assert!(store.mark(&marks).await.unwrap().is_empty());
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
    // Without a record to write to, the entry is still marked as failed.
    let refused = doc! { "$set": { "notifications": "x" }, "$unset": { "outbox.$[].failed_at": "" } };
    bed.collection("subscriptions").update_one(doc! { "_id": "sub" }, refused).await.unwrap();
    assert!(store.mark(&marks[1..]).await.unwrap().is_empty());
    assert!(entries(&document().await)[0].contains_key("failed_at"));

    // After a successful retry, the record no longer contains the failure.
    let record = doc! { "id": &email.entry.id, "failed_at": DateTime::now(), "error": "550 no" };
    let recorded = doc! { "$set": { "notifications": [record] } };
    bed.collection("subscriptions").update_one(doc! { "_id": "sub" }, recorded).await.unwrap();
    let mut retried = Mark::new(&email, DeliveryResult::Sent { at });
    retried.attempts = 1;
    let marks = [retried, Mark::new(&event, DeliveryResult::Sent { at })];
    for _ in 0..2 {
        assert!(store.mark(&marks).await.unwrap().is_empty());
        let document = document().await;
        assert!(entries(&document).is_empty());
        let expected = doc! { "id": &marks[0].entry_id, "sent_at": DateTime::from(at) };
        assert_eq!(records(&document), [&expected]);
    }
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_in_doubt_and_sender_rejections_are_counted_once() {
    let bed = TestBed::new("counted").await;
    populate(&bed).await;
    let store = store(&bed).await;
    let leased = cancel_and_leave(&store, "sub", clock::now() + TimeDelta::hours(1)).await;
    let email = leased.iter().find(|leased| leased.entry.kind() == Kind::Email).unwrap();
    let entry = async || {
        let document = bed.document("subscriptions", "sub").await.unwrap();
        entries(&document).into_iter().find(|entry| entry.contains_key("mail")).unwrap().clone()
    };
    // A new entry has neither field.
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
        deferred(1, DeferralCause::InDoubt { at: at(1) }),
        deferred(2, DeferralCause::SenderRejected { at: at(2) }),
        deferred(3, DeferralCause::InDoubt { at: at(3) }),
        deferred(4, DeferralCause::SenderRejected { at: at(4) }),
        deferred(5, DeferralCause::Ordinary),
    ] {
        for _ in 0..2 {
            assert!(store.mark(std::slice::from_ref(&mark)).await.unwrap().is_empty());
        }
    }
    let counted = entry().await;
    assert_eq!((counted.get_i32("attempts").unwrap(), counted.get_i32("in_doubt").unwrap()), (5, 2));
    assert_eq!(counted.get_datetime("sender_rejected_at").unwrap(), &DateTime::from(at(2)));

    // Only its holder can extend a lease.
    let until = clock::now() + TimeDelta::hours(2);
    assert!(store.extend(email, until).await.unwrap());
    assert_eq!(entry().await.get_datetime("due").unwrap(), &DateTime::from(until));
    let mut of_another = email.clone();
    of_another.entry.holder = Uuid::new_v4().to_string();
    assert!(!store.extend(&of_another, until).await.unwrap());
    let failed = Mark::new(email, DeliveryResult::Failed { at: now, error });
    assert!(store.mark(&[failed]).await.unwrap().is_empty());
    let failed = entry().await;
    assert!(!failed.contains_key("in_doubt") && !failed.contains_key("sender_rejected_at"), "{failed}");
    assert!(!store.extend(email, until).await.unwrap(), "a failed entry cannot be leased");
    bed.remove().await;
}

/// A validator rejects errors in entries and records.
#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_email_whose_error_cannot_be_written_is_not_sent_again() {
    let bed = TestBed::new("no-error").await;
    let sink = SmtpSink::scripted(Tls::No, |step, _| match step {
        Step::Rcpt => Action::Answer("550 5.1.1 No such user"),
        _ => Action::Ok,
    })
    .await;
    populate(&bed).await;
    let validator = doc! { "outbox.error": { "$exists": false }, "notifications.error": { "$exists": false } };
    bed.set_validator("subscriptions", validator).await;
    let subscriptions = bed.collection("subscriptions");
    let events = bed.watch_events().await;
    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    bed.command(&cancellation("cancel", "sub")).await;
    events.next(&bed, |event| event["type"] == "notification.failed").await;
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

/// If the process were killed before the database answers, every email sent meanwhile would be sent twice.
#[tokio::test(flavor = "multi_thread")]
async fn emails_wait_while_sent_ones_cannot_be_marked() {
    const EMAILS: usize = 150;
    const LEASE: Duration = Duration::from_secs(60);
    let bed = TestBed::new("late-marks").await;
    let (sink, is_back) = SmtpSink::unavailable().await;
    // Slow sending, so that few emails are sent before marks count as late.
    let (slow, smtp_url) = Proxy::in_front_of(&sink.url()).await;
    slow.delay_answers(Duration::from_millis(20));
    let (line, mongodb_url) = Proxy::in_front_of_mongodb(&bed.mongodb_url).await;
    populate(&bed).await;
    let subscriptions = bed.collection("subscriptions");
    let ids: Vec<String> = (0..EMAILS).map(|index| format!("sub-{index}")).collect();
    subscriptions.insert_many(ids.iter().map(|id| subscription(id, "org", "acc"))).await.unwrap();
    let lease = LEASE.as_secs().to_string();
    let settings = [("OFFRAMP_MONGODB_URL", &*mongodb_url), ("OFFRAMP_LEASE_SECONDS", &lease)];
    let worker = WorkerProcess::start_with(&bed, &smtp_url, &settings).await;
    for id in &ids {
        bed.command(&cancellation(&format!("c-{id}"), id)).await;
    }
    // Settled, not only written, so that no emails wait for the reply to their batch.
    eventually("the decisions", || async { worker.settled().await == EMAILS as u64 }).await;
    line.stall();
    is_back.store(true, Ordering::Relaxed);
    eventually("an unavailable database", || async { worker.readyz().await.filter(|answer| answer.status == 503) })
        .await;
    let sent = sink.emails().len();
    assert!(sent < EMAILS / 3, "{sent} emails were sent and could not be marked");
    line.resume();
    // A stalled claim may arrive after its release. Then its emails are claimed again once their lease has expired.
    bed.outboxes_empty_within(LEASE + PATIENCE).await;
    let ids: HashSet<String> = sink
        .emails()
        .iter()
        .map(|mail| MessageParser::default().parse(&mail.bytes).unwrap().message_id().unwrap().to_owned())
        .collect();
    assert_eq!((sink.emails().len(), ids.len()), (EMAILS, EMAILS));
    assert!(worker.stop().await.success());
    bed.remove().await;
}
