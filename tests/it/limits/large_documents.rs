//! Documents as large as MongoDB allows, and many large ones at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bson::spec::BinarySubtype;
use bson::{Binary, Bson, Document, doc};

use crate::mail_server_replies::email;
use offramp_testkit::eventually;
use offramp_testkit::fixtures::{cancellation, populate, subscription};
use offramp_testkit::smtp_sink::{Action, SmtpSink, Step, Tls};
use offramp_testkit::test_bed::TestBed;
use offramp_testkit::worker_process::WorkerProcess;

/// MongoDB's limit.
const DOCUMENT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// What another system has stored in a document.
fn attachment(bytes: usize) -> Bson {
    Bson::Binary(Binary { subtype: BinarySubtype::Generic, bytes: vec![0; bytes] })
}

/// Lets another system fill a document until only this many bytes are left.
async fn fill(bed: &TestBed, id: &str, left: usize) {
    let subscriptions = bed.collection("subscriptions");
    let empty = doc! { "$set": { "attachment": attachment(0), "scan": attachment(0) } };
    subscriptions.update_one(doc! { "_id": id }, empty).await.unwrap();
    let document = bed.document("subscriptions", id).await.unwrap();
    let missing = DOCUMENT_BYTES_MAX - left - bson::serialize_to_vec(&document).unwrap().len();
    // In two updates, because an update is limited, too.
    for (field, bytes) in [("attachment", missing / 2), ("scan", missing - missing / 2)] {
        subscriptions.update_one(doc! { "_id": id }, doc! { "$set": { field: attachment(bytes) } }).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_whose_document_would_become_too_large_is_a_dead_letter_and_blocks_no_other() {
    let bed = TestBed::new("too-large").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    let others = (0..5).map(|index| subscription(&format!("sub-{index}"), "org", "acc"));
    bed.collection("subscriptions").insert_many(others).await.unwrap();
    fill(&bed, "sub", 100).await;
    assert!(offramp_init(&bed));
    // All in one batch.
    bed.command(&cancellation("c-0", "sub-0")).await;
    bed.command(&cancellation("large", "sub")).await;
    for index in 1..5 {
        bed.command(&cancellation(&format!("c-{index}"), &format!("sub-{index}"))).await;
    }
    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    let letter = bed.dead_letter().await;
    assert!(String::from_utf8(letter.body.clone()).unwrap().contains("\"large\""));
    assert_eq!(
        (letter.header("offramp-reason").as_str(), letter.header("offramp-attempt").as_str()),
        ("corrupt_document", "0")
    );
    let error = letter.header("offramp-error");
    let sentence = "subscriptions sub: with this change the document would exceed 16777216 bytes, MongoDB's limit; it has 16777116 bytes";
    assert!(error.starts_with(sentence), "{error}");
    eventually("the other commands", || async {
        let cancelled = doc! { "status": "cancellation_scheduled" };
        bed.collection("subscriptions").count_documents(cancelled).await.unwrap() == 5
    })
    .await;
    bed.outboxes_empty().await;
    assert_eq!(sink.emails().len(), 5);
    let document = bed.document("subscriptions", "sub").await.unwrap();
    assert!(!document.contains_key("history") && !document.contains_key("outbox"));
    assert!(worker.readyz().await.unwrap().status == 200);
    assert!(worker.stop().await.success());
    bed.remove().await;
}

fn offramp_init(bed: &TestBed) -> bool {
    offramp_testkit::worker_process::offramp(bed).arg("init").output().unwrap().status.success()
}

/// Another system fills the document while its email is being sent.
#[tokio::test(flavor = "multi_thread")]
async fn a_sent_email_of_a_full_document_is_marked() {
    let bed = TestBed::new("full-sent").await;
    let script = |step, _| if step == Step::Content { Action::Late(Duration::from_secs(3)) } else { Action::Ok };
    let sink = SmtpSink::scripted(Tls::No, script).await;
    populate(&bed).await;
    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    bed.command(&cancellation("c-1", "sub")).await;
    eventually("an email in flight", || async { !sink.emails().is_empty() }).await;
    fill(&bed, "sub", 0).await;
    bed.outboxes_empty().await;
    let document = bed.document("subscriptions", "sub").await.unwrap();
    let record = document.get_array("notifications").unwrap()[0].as_document().unwrap();
    assert!(record.contains_key("sent_at"), "{record}");
    assert!(worker.stop().await.success());
    assert_eq!(sink.emails().len(), 1);
    bed.remove().await;
}

/// An email that may have been delivered is not sent again soon, however full its document is.
#[tokio::test(flavor = "multi_thread")]
async fn an_email_in_doubt_of_a_full_document_is_kept_for_an_operator() {
    let bed = TestBed::new("full-doubt").await;
    let is_full = Arc::new(AtomicBool::new(false));
    let sink = SmtpSink::scripted(Tls::No, {
        let is_full = Arc::clone(&is_full);
        move |step, _| match step {
            // The document is filled while the worker waits for the sink.
            Step::Data => Action::Late(Duration::from_secs(10)),
            Step::Content if is_full.load(Ordering::Relaxed) => Action::TakeAndDrop,
            _ => Action::Ok,
        }
    })
    .await;
    populate(&bed).await;
    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    bed.command(&cancellation("c-1", "sub")).await;
    eventually("a dialogue", || async { sink.commands().iter().any(|command| command == "DATA") }).await;
    // A published event leaves the outbox, and room.
    eventually("a published event", || async {
        bed.document("subscriptions", "sub").await.unwrap().get_array("outbox").unwrap().len() == 1
    })
    .await;
    fill(&bed, "sub", 0).await;
    is_full.store(true, Ordering::Relaxed);
    let entry: Document = email(&bed, "a kept email", |entry| entry.contains_key("failed_at")).await;
    assert!(!entry.contains_key("due") && !entry.contains_key("in_doubt"), "{entry}");
    assert!(worker.stop().await.success());
    assert_eq!(sink.emails().len(), 1);
    bed.remove().await;
}

/// The lists that only grow and the fields of other systems are not read, so a batch takes no more memory.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_large_documents_takes_little_memory() {
    const COUNT: usize = 60;
    const DOCUMENT_BYTES: usize = 8 * 1024 * 1024;
    const MEMORY_BYTES_MAX: u64 = 256 * 1024 * 1024;
    let bed = TestBed::new("large").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    let entries =
        vec![doc! { "at": bson::DateTime::now(), "from": "active", "to": "active", "note": "x".repeat(2_000) }; 500];
    for index in 0..COUNT {
        let mut document = subscription(&format!("sub-{index}"), "org", "acc");
        document.extend(doc! { "version": 1_i64, "history": &entries, "attachment": attachment(DOCUMENT_BYTES) });
        bed.collection("subscriptions").insert_one(document).await.unwrap();
    }
    assert!(offramp_init(&bed));
    for index in 0..COUNT {
        bed.command(&cancellation(&format!("c-{index}"), &format!("sub-{index}"))).await;
    }
    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    eventually("every email", || async { sink.emails().len() == COUNT }).await;
    bed.outboxes_empty().await;
    let peak = worker.peak_memory();
    println!("{} MiB for {COUNT} documents of {} MiB", peak >> 20, DOCUMENT_BYTES >> 20);
    assert!(peak < MEMORY_BYTES_MAX, "{peak}");
    assert!(worker.stop().await.success());
    bed.remove().await;
}
