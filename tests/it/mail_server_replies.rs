//! How emails and the worker react to the replies of a mail server.

use std::io::Read;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bson::{Bson, DateTime, Document, doc};
use chrono::{TimeDelta, Utc};
use mail_parser::MessageParser;

use offramp_testkit::fixtures::{cancellation, populate, subscription};
use offramp_testkit::smtp_sink::{Action, SmtpSink, Step, Tls};
use offramp_testkit::test_bed::TestBed;
use offramp_testkit::worker_process::{WorkerProcess, metrics_of};
use offramp_testkit::{eventually, eventually_within};

/// The outbox entry of the email of `sub`, once `is_wanted` accepts it.
pub async fn email(bed: &TestBed, what: &str, is_wanted: impl Fn(&Document) -> bool) -> Document {
    eventually(what, || async {
        let document = bed.document("subscriptions", "sub").await?;
        let entries = document.get_array("outbox").ok()?.iter().filter_map(Bson::as_document);
        entries.clone().find(|entry| entry.contains_key("mail") && is_wanted(entry)).cloned()
    })
    .await
}

/// Makes waiting emails of `sub` due now.
pub async fn make_due(bed: &TestBed, and: Document) {
    let mut set = doc! { "outbox.$[email].due": DateTime::now() };
    set.extend(and);
    let update = doc! { "$set": set, "$inc": { "version": 1_i64 } };
    let filters = vec![doc! { "email.kind": "email", "email.due": { "$exists": true } }];
    let subscriptions = bed.collection("subscriptions");
    let updating = subscriptions.update_one(doc! { "_id": "sub" }, update).array_filters(filters);
    assert_eq!(updating.await.unwrap().matched_count, 1);
}

pub async fn outcomes(worker: &WorkerProcess, outcome: &str) -> u64 {
    let metrics = metrics_of(worker.port()).await.unwrap_or_default();
    let is_this =
        |line: &&str| line.starts_with("offramp_emails_total{") && line.contains(&format!("outcome=\"{outcome}\""));
    metrics.lines().filter(is_this).map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_email_in_doubt_is_retried_three_times_with_long_delays() {
    let bed = TestBed::new("in-doubt").await;
    let script = |step, _| if step == Step::Content { Action::TakeAndDrop } else { Action::Ok };
    let sink = SmtpSink::scripted(Tls::No, script).await;
    populate(&bed).await;
    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    bed.command(&cancellation("c-1", "sub")).await;
    for times in 1..=3 {
        let entry = email(&bed, "an email in doubt", |entry| entry.get_i32("in_doubt").ok() == Some(times)).await;
        assert_eq!(entry.get_i32("attempts").unwrap(), times);
        let pause = entry.get_datetime("due").unwrap().to_chrono() - Utc::now();
        assert!(pause > TimeDelta::minutes(13) && pause < TimeDelta::minutes(20), "{pause}");
        make_due(&bed, doc! {}).await;
    }
    let entry = email(&bed, "an email for an operator", |entry| entry.contains_key("failed_at")).await;
    assert!(entry.get_str("error").unwrap().contains("may have been delivered"), "{entry}");
    // A retry by an operator starts with a fresh count.
    assert!(!entry.contains_key("in_doubt") && !entry.contains_key("due"), "{entry}");
    let ids: Vec<_> = sink
        .emails()
        .iter()
        .map(|taken| MessageParser::default().parse(&taken.bytes).unwrap().message_id().unwrap().to_owned())
        .collect();
    assert_eq!(ids.len(), 4);
    assert!(ids.iter().all(|id| *id == ids[0]), "recipients can recognise duplicates: {ids:?}");
    assert_eq!((outcomes(&worker, "in_doubt").await, outcomes(&worker, "rejected").await), (4, 0));
    assert!(worker.stop().await.success());
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_sender_is_retried_for_a_day_and_logged_once() {
    let bed = TestBed::new("sender").await;
    let is_mended = Arc::new(AtomicBool::new(false));
    let sink = SmtpSink::scripted(Tls::No, {
        let is_mended = Arc::clone(&is_mended);
        move |step, _| match step {
            Step::Rcpt if !is_mended.load(Ordering::Relaxed) => {
                Action::Answer("504 5.5.2 <acc@home.example>: Helo command rejected: need fully-qualified hostname")
            }
            _ => Action::Ok,
        }
    })
    .await;
    populate(&bed).await;
    let settings = [("OFFRAMP_SMTP_NAME", "worker.example.com")];
    let mut worker = WorkerProcess::spawn(&bed, &sink.url(), &settings, Stdio::piped());
    let mut stderr = worker.take_log();
    let log = tokio::task::spawn_blocking(move || {
        let mut log = String::new();
        stderr.read_to_string(&mut log).map(|_| log)
    });
    let worker = worker.ready().await;
    bed.command(&cancellation("c-1", "sub")).await;
    let tried =
        |times| move |entry: &Document| entry.get_i32("attempts").ok() == Some(times) && entry.contains_key("due");
    let first = email(&bed, "a rejected email", tried(1)).await;
    let pause = first.get_datetime("due").unwrap().to_chrono() - Utc::now();
    assert!(pause > TimeDelta::seconds(40) && pause < TimeDelta::seconds(80), "{pause}");
    make_due(&bed, doc! {}).await;
    let second = email(&bed, "an email that was rejected again", tried(2)).await;
    assert_eq!(
        second.get("sender_rejected_at"),
        first.get("sender_rejected_at"),
        "the day starts with the first rejection"
    );
    assert!(outcomes(&worker, "sender_rejected").await >= 2);
    assert!(worker.readyz().await.unwrap().status == 200);

    let a_day_ago = DateTime::from(Utc::now() - TimeDelta::hours(25));
    make_due(&bed, doc! { "outbox.$[email].sender_rejected_at": a_day_ago }).await;
    let failed = email(&bed, "an email for an operator", |entry| entry.contains_key("failed_at")).await;
    assert!(failed.get_str("error").unwrap().contains("Helo command rejected"), "{failed}");

    is_mended.store(true, Ordering::Relaxed);
    let retry = doc! {
        "$set": { "outbox.$[email].due": DateTime::now() },
        "$unset": { "outbox.$[email].failed_at": "" },
        "$inc": { "version": 1_i64 },
    };
    let subscriptions = bed.collection("subscriptions");
    subscriptions
        .update_one(doc! { "_id": "sub" }, retry)
        .array_filters(vec![doc! { "email.kind": "email" }])
        .await
        .unwrap();
    bed.outboxes_empty().await;
    assert_eq!(sink.emails().len(), 1);
    assert!(sink.commands().contains(&"EHLO worker.example.com".to_owned()));
    assert!(worker.stop().await.success());
    let log = log.await.unwrap().unwrap();
    assert_eq!(log.matches("set OFFRAMP_SMTP_NAME").count(), 1, "{log}");
    assert!(log.contains("504 5.5.2") && !log.contains("home.example"), "no addresses in logs: {log}");
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_throttled_email_is_retried_from_memory() {
    let bed = TestBed::new("throttled").await;
    let script = |step, nth| match step {
        Step::Content if nth < 3 => Action::Answer("454 4.7.0 Throttling failure: Maximum sending rate exceeded."),
        _ => Action::Ok,
    };
    let sink = SmtpSink::scripted(Tls::No, script).await;
    populate(&bed).await;
    let version = async || bed.document("subscriptions", "sub").await.unwrap().get_i64("version").unwrap();
    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    bed.command(&cancellation("c-1", "sub")).await;
    eventually("the decision", || async {
        let document = bed.document("subscriptions", "sub").await?;
        document.contains_key("notifications").then_some(())
    })
    .await;
    bed.outboxes_empty().await;
    // The commit, the mark of the event and the mark of the email: a retry from memory writes nothing.
    assert!(version().await <= 4, "{}", version().await);
    assert_eq!(sink.emails().len(), 1);
    assert_eq!((outcomes(&worker, "throttled").await, outcomes(&worker, "sent").await), (2, 1));
    assert!(worker.stop().await.success());
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_email_that_outlasts_its_lease_is_sent_once() {
    let bed = TestBed::new("slow").await;
    // Longer than the shortest allowed lease.
    let script = |step, _| if step == Step::Content { Action::Late(Duration::from_secs(25)) } else { Action::Ok };
    let (sink, other_sink) = (SmtpSink::scripted(Tls::No, script).await, SmtpSink::start().await);
    populate(&bed).await;
    let settings = [("OFFRAMP_LEASE_SECONDS", "20")];
    let worker = WorkerProcess::start_with(&bed, &sink.url(), &settings).await;
    bed.command(&cancellation("c-1", "sub")).await;
    eventually("an email in flight", || async { (!sink.emails().is_empty()).then_some(()) }).await;
    let other = WorkerProcess::start_with(&bed, &other_sink.url(), &settings).await;
    bed.outboxes_empty().await;
    assert_eq!((sink.emails().len(), other_sink.emails().len()), (1, 0));
    assert_eq!((outcomes(&worker, "sent").await, outcomes(&other, "sent").await), (1, 0));
    for worker in [worker, other] {
        assert!(worker.stop().await.success());
    }
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn emails_are_sent_no_faster_than_the_rate_limit() {
    const COUNT: usize = 31;
    let bed = TestBed::new("pace").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    let ids: Vec<String> = (0..COUNT).map(|index| format!("sub-{index}")).collect();
    let subscriptions = bed.collection("subscriptions");
    subscriptions.insert_many(ids.iter().map(|id| subscription(id, "org", "acc"))).await.unwrap();
    let worker = WorkerProcess::start_with(&bed, &sink.url(), &[("OFFRAMP_MAIL_PER_SECOND", "10")]).await;
    for id in &ids {
        bed.command(&cancellation(&format!("c-{id}"), id)).await;
    }
    eventually("every email", || async { (sink.emails().len() == COUNT).then_some(()) }).await;
    let mut taken: Vec<Instant> = sink.emails().iter().map(|taken| taken.at).collect();
    taken.sort_unstable();
    let lasted = taken[COUNT - 1] - taken[0];
    assert!(lasted > Duration::from_millis(2_800), "{lasted:?}");
    assert!(worker.stop().await.success());
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_a_low_rate_limit_no_waiting_email_outlasts_its_lease() {
    // More than the number of connections.
    const COUNT: usize = 12;
    let bed = TestBed::new("slow-pace").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    let ids: Vec<String> = (0..COUNT).map(|index| format!("sub-{index}")).collect();
    let subscriptions = bed.collection("subscriptions");
    subscriptions.insert_many(ids.iter().map(|id| subscription(id, "org", "acc"))).await.unwrap();
    // An email may be sent in the first half of its lease. At this rate, fewer are sent in that time than there are connections.
    let settings = [("OFFRAMP_LEASE_SECONDS", "20"), ("OFFRAMP_MAIL_PER_SECOND", "0.5")];
    let worker = WorkerProcess::start_with(&bed, &sink.url(), &settings).await;
    for id in &ids {
        bed.command(&cancellation(&format!("c-{id}"), id)).await;
    }
    eventually_within(Duration::from_secs(120), "every email", || async {
        (sink.emails().len() >= COUNT).then_some(())
    })
    .await;
    bed.outboxes_empty().await;
    assert_eq!(sink.emails().len(), COUNT);
    let metrics = metrics_of(worker.port()).await.unwrap();
    let claimed = metrics.lines().find_map(|line| line.strip_prefix("offramp_claimed_total ")).unwrap_or("0");
    assert!(claimed.parse::<usize>().unwrap() <= COUNT, "{claimed} claimed");
    assert!(worker.stop().await.success());
    bed.remove().await;
}
