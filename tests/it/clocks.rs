//! Workers on machines whose clocks are wrong: they go by MongoDB's time as far as their own may differ, and beyond that they do
//! nothing until it is corrected.

use std::collections::HashMap;
use std::io::Read;
use std::process::Stdio;
use std::time::{Duration, Instant};

use bson::{Bson, DateTime, Document, doc};
use chrono::{TimeDelta, Utc};
use futures_util::TryStreamExt;
use mail_parser::MessageParser;

use crate::mail_server_replies::outcomes;
use offramp_testkit::eventually;
use offramp_testkit::fixtures::{cancellation, populate, subscription};
use offramp_testkit::machine_clock::MachineClock;
use offramp_testkit::process::Signal;
use offramp_testkit::smtp_sink::{Action, ReceivedEmail, SmtpSink, Step, Tls};
use offramp_testkit::test_bed::TestBed;
use offramp_testkit::worker_process::{WorkerProcess, offramp};

/// A worker on a machine with this clock.
fn worker(
    bed: &TestBed,
    sink: &SmtpSink,
    clock: &MachineClock,
    settings: &[(&str, &str)],
    log: Stdio,
) -> WorkerProcess {
    let mut program = offramp(bed);
    program.env("OFFRAMP_SMTP_URL", sink.url()).envs(settings.iter().copied());
    WorkerProcess::of(clock.show(&mut program), log)
}

/// Inserts subscriptions `sub-0` to `sub-…`.
async fn insert_subscriptions(bed: &TestBed, count: usize) {
    populate(bed).await;
    let documents = (0..count).map(|index| subscription(&format!("sub-{index}"), "org", "acc"));
    bed.collection("subscriptions").insert_many(documents).await.unwrap();
}

async fn cancel(bed: &TestBed, indexes: std::ops::Range<usize>) {
    for index in indexes {
        bed.command(&cancellation(&format!("c-{index}"), &format!("sub-{index}"))).await;
    }
}

async fn cancelled(bed: &TestBed, count: usize) {
    eventually("every command to be applied", || async {
        let found = doc! { "status": "cancellation_scheduled" };
        bed.collection("subscriptions").count_documents(found).await.unwrap() == count as u64
    })
    .await;
}

/// The emails, by their Message-ID, in the order of their arrival.
fn by_id(sink: &SmtpSink) -> HashMap<String, Vec<ReceivedEmail>> {
    let mut emails: HashMap<String, Vec<ReceivedEmail>> = HashMap::new();
    for email in sink.emails() {
        let id = MessageParser::default().parse(&email.bytes).unwrap().message_id().unwrap().to_owned();
        emails.entry(id).or_default().push(email);
    }
    emails
}

/// Two workers whose clocks differ by a minute share the work, one of them is killed, and each email is sent once, except those that the
/// killed worker had just sent.
#[tokio::test(flavor = "multi_thread")]
async fn workers_whose_clocks_differ_by_a_minute_send_each_email_once() {
    const COUNT: usize = 120;
    /// As long as the mail server takes to accept an email, and some time to mark it.
    const KILLED_WITHIN: Duration = Duration::from_secs(2);
    let bed = TestBed::new("minute").await;
    let script = |step, _| if step == Step::Content { Action::Late(Duration::from_millis(300)) } else { Action::Ok };
    let sink = SmtpSink::scripted(Tls::No, script).await;
    insert_subscriptions(&bed, COUNT).await;
    let (behind, ahead) = (MachineClock::ahead_by(-30), MachineClock::ahead_by(30));
    let settings = [("OFFRAMP_BATCH_MAX", "10")];
    let began_at = Utc::now();
    let mut slow = worker(&bed, &sink, &behind, &settings, Stdio::null()).ready().await;
    let fast = worker(&bed, &sink, &ahead, &settings, Stdio::null()).ready().await;
    cancel(&bed, 0..COUNT).await;
    eventually("the first emails", || async { sink.emails().len() >= COUNT / 3 }).await;
    let killed_at = Instant::now();
    slow.kill();
    let next = worker(&bed, &sink, &behind, &settings, Stdio::null()).ready().await;
    cancelled(&bed, COUNT).await;
    for worker in [fast, next] {
        assert!(worker.stop().await.success());
    }

    // Both have written MongoDB's time. What the killed worker held waits for its lease.
    let documents: Vec<Document> = bed
        .collection("subscriptions")
        .find(doc! { "history.0.at": { "$exists": true } })
        .await
        .unwrap()
        .try_collect()
        .await
        .unwrap();
    let mut left = 0;
    for document in &documents {
        let first = |list: &str| document.get_array(list).unwrap().first().and_then(Bson::as_document);
        let at = first("history").unwrap().get_datetime("at").unwrap().to_chrono();
        assert!(at > began_at - TimeDelta::seconds(1) && at < Utc::now() + TimeDelta::seconds(1), "{at}");
        if let Some(due) = first("outbox").and_then(|entry| entry.get_datetime("due").ok()) {
            left += 1;
            let lease = due.to_chrono() - at;
            assert!(
                lease < TimeDelta::seconds(1) || (lease - TimeDelta::seconds(180)).abs() < TimeDelta::seconds(1),
                "{lease}"
            );
        }
    }
    assert!(left > 0, "the killed worker held some emails");
    let due = doc! { "$set": { "outbox.$[].due": DateTime::now() }, "$inc": { "version": 1_i64 } };
    bed.collection("subscriptions").update_many(doc! { "outbox.0": { "$exists": true } }, due).await.unwrap();
    let workers = [
        worker(&bed, &sink, &behind, &settings, Stdio::null()).ready().await,
        worker(&bed, &sink, &ahead, &settings, Stdio::null()).ready().await,
    ];
    bed.outboxes_empty().await;
    for worker in workers {
        assert!(worker.stop().await.success());
    }
    let emails = by_id(&sink);
    assert_eq!(emails.len(), COUNT);
    for (id, emails) in emails.iter().filter(|(_, emails)| emails.len() > 1) {
        let (first, killed) = (emails[0].at, killed_at.checked_sub(KILLED_WITHIN).unwrap());
        assert!(
            emails.len() == 2 && first > killed && first < killed_at + KILLED_WITHIN,
            "{id} was sent more than once"
        );
    }
    bed.remove().await;
}

/// Ten minutes are more than any lease tolerates.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_clock_is_wrong_by_ten_minutes_does_nothing_until_it_is_corrected() {
    for (seconds, sentence) in [(600, "s ahead of MongoDB's; correct it"), (-600, "s behind MongoDB's; correct it")] {
        let bed = TestBed::new("ten-minutes").await;
        let sink = SmtpSink::start().await;
        insert_subscriptions(&bed, 1).await;
        let clock = MachineClock::ahead_by(seconds);
        let mut worker = worker(&bed, &sink, &clock, &[("OFFRAMP_HOLD_SECONDS", "1")], Stdio::piped());
        let mut stderr = worker.take_log();
        let log = tokio::task::spawn_blocking(move || {
            let mut log = String::new();
            stderr.read_to_string(&mut log).map(|_| log)
        });
        eventually("a worker that is not ready because of its clock", || async {
            worker.readyz().await.is_some_and(|answer| answer.status == 503 && answer.body.contains(sentence))
        })
        .await;
        eventually("a lane", || async { crate::outages::waiting(&bed, "cancellation").await == (0, 1) }).await;
        cancel(&bed, 0..1).await;
        // The message is released, and the lane consumes nothing.
        eventually("a lane that has stopped consuming", || async {
            crate::outages::waiting(&bed, "cancellation").await == (1, 0)
        })
        .await;
        let document = bed.document("subscriptions", "sub-0").await.unwrap();
        assert!(!document.contains_key("history") && sink.connections() == 0, "{document}");

        clock.set(0);
        bed_settles(&bed, &sink, 1).await;
        let worker = worker.ready().await;
        assert!(worker.stop().await.success());
        let log = log.await.unwrap().unwrap();
        assert_eq!(log.matches("processing is paused: this machine's clock is").count(), 1, "{log}");
        assert_eq!(log.matches("agrees with MongoDB's again").count(), 1, "{log}");
        bed.remove().await;
    }
}

async fn bed_settles(bed: &TestBed, sink: &SmtpSink, emails: usize) {
    cancelled(bed, emails).await;
    bed.outboxes_empty().await;
    assert_eq!(sink.emails().len(), emails);
}

/// The clock is set back while emails wait in memory for a slow mail server: by this clock their leases would last ten minutes longer than
/// another worker believes.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_set_while_emails_wait_sends_none_of_them_twice() {
    const COUNT: usize = 60;
    for seconds in [-600, 600] {
        let bed = TestBed::new("step").await;
        // With its eight connections, the worker needs about 30 s. A lease lasts 20 s.
        let script = |step, _| if step == Step::Content { Action::Late(Duration::from_secs(4)) } else { Action::Ok };
        let slow = SmtpSink::scripted(Tls::No, script).await;
        let other = SmtpSink::start().await;
        insert_subscriptions(&bed, COUNT).await;
        let settings = [("OFFRAMP_LEASE_SECONDS", "20"), ("OFFRAMP_HOLD_SECONDS", "1")];
        let clock = MachineClock::ahead_by(0);
        let first = worker(&bed, &slow, &clock, &settings, Stdio::null()).ready().await;
        cancel(&bed, 0..COUNT).await;
        cancelled(&bed, COUNT).await;
        eventually("emails in flight", || async { !slow.emails().is_empty() }).await;
        clock.set(seconds);
        eventually("a worker that is not ready because of its clock", || async {
            first.readyz().await.is_some_and(|answer| answer.status == 503 && answer.body.contains("correct it"))
        })
        .await;
        // Emails in flight are finished, and none is begun.
        let second = WorkerProcess::start_with(&bed, &other.url(), &settings).await;
        bed.outboxes_empty().await;
        let sent = [by_id(&slow), by_id(&other)];
        for (id, emails) in sent.iter().flatten() {
            assert_eq!(emails.len(), 1, "{id}");
            assert!(sent.iter().filter(|emails| emails.contains_key(id)).count() == 1, "{id} was sent by both workers");
        }
        assert_eq!(sent[0].len() + sent[1].len(), COUNT);
        assert!(!sent[1].is_empty(), "the second worker has sent what the first one could not");

        clock.set(0);
        let first = first.ready().await;
        for worker in [first, second] {
            assert!(worker.stop().await.success());
        }
        assert_eq!(
            by_id(&slow).len() + by_id(&other).len(),
            COUNT,
            "what waited in the first worker's memory was released"
        );
        assert_eq!(slow.emails().len() + other.emails().len(), COUNT);
        bed.remove().await;
    }
}

/// A process that stands still for longer than its lease, within a dialogue, does not send the content that another worker has sent
/// meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_stood_still_does_not_send_an_email_that_was_claimed_meanwhile() {
    let bed = TestBed::new("still").await;
    let script = |step, nth| match step {
        Step::Data if nth == 1 => Action::Late(Duration::from_secs(10)),
        _ => Action::Ok,
    };
    let sink = SmtpSink::scripted(Tls::No, script).await;
    insert_subscriptions(&bed, 1).await;
    let settings = [("OFFRAMP_LEASE_SECONDS", "20")];
    let mut first = WorkerProcess::spawn(&bed, &sink.url(), &settings, Stdio::piped()).ready().await;
    let mut log = first.take_log();
    let log = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        log.read_to_string(&mut text).map(|_| text)
    });
    cancel(&bed, 0..1).await;
    eventually("a dialogue", || async { sink.commands().iter().any(|command| command == "DATA") }).await;
    first.signal(Signal::STOP);
    let second = WorkerProcess::start_with(&bed, &sink.url(), &settings).await;
    bed.outboxes_empty().await;
    assert_eq!((sink.emails().len(), outcomes(&second, "sent").await), (1, 1));

    first.signal(Signal::CONT);
    eventually("an email that was not sent", || async { outcomes(&first, "deferred").await == 1 }).await;
    for worker in [first, second] {
        assert!(worker.stop().await.success());
    }
    assert_eq!(sink.emails().len(), 1);
    let log = log.await.unwrap().unwrap();
    assert!(log.contains("its lease ran out") && !log.contains("the mail server is unavailable"), "{log}");
    bed.remove().await;
}
