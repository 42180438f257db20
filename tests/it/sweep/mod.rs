//! The sweep: what it reads, its indexes, its clock, and documents that it cannot process.

mod clock;
mod indexes;
mod reads;
mod request_reminders;
mod tombstones;
mod unprocessable_documents;

use std::path::Path;
use std::process::Stdio;

use bson::{Bson, DateTime as Instant, Document, doc};
use chrono::Utc;
use futures_util::TryStreamExt;
use offramp::store::Store;
use offramp::tls::Tls;

use offramp_testkit::fixtures::subscription;
use offramp_testkit::smtp_sink::SmtpSink;
use offramp_testkit::test_bed::TestBed;
use offramp_testkit::worker_process::WorkerProcess;

/// The size of the profiler's collection, in bytes.
const NOTES_BYTES_MAX: i64 = 64 * 1024 * 1024;

async fn store_of(bed: &TestBed) -> Store {
    let store = Store::open(&bed.mongodb_url, &Tls::default()).await.unwrap();
    store.create_indexes().await.unwrap();
    store
}

/// Starts the database profiler for the program's operations, with an empty profile.
async fn start_noting(bed: &TestBed) {
    bed.database.run_command(doc! { "profile": 0 }).await.unwrap();
    bed.collection("system.profile").drop().await.unwrap();
    let notes = doc! { "create": "system.profile", "capped": true, "size": NOTES_BYTES_MAX };
    bed.database.run_command(notes).await.unwrap();
    bed.database.run_command(doc! { "profile": 1, "filter": { "appName": "offramp" } }).await.unwrap();
}

/// Stops the profiler and returns its entries.
async fn notes(bed: &TestBed) -> Vec<Document> {
    bed.database.run_command(doc! { "profile": 0 }).await.unwrap();
    bed.collection("system.profile").find(doc! {}).await.unwrap().try_collect().await.unwrap()
}

/// The number of finished sweeps. Each sweep ends with the deletion of tombstones.
async fn sweeps(bed: &TestBed) -> u64 {
    bed.collection("system.profile").count_documents(doc! { "op": "remove" }).await.unwrap()
}

fn scheduled(id: &str, ends_at: chrono::DateTime<Utc>) -> Document {
    let mut document = subscription(id, "org", "acc");
    document.extend(doc! {
        "status": "cancellation_scheduled", "ends_on": ends_at.date_naive().to_string(), "ends_at": Instant::from(ends_at),
        "final_billing_on": "2020-01-15",
    });
    document
}

fn expiring(id: &str, day: impl Into<Bson>, expires_on: impl Into<Bson>) -> Document {
    let mut document = subscription(id, "org", "acc");
    document.get_document_mut("billing").unwrap().insert("day", day);
    document.insert("expires_on", expires_on);
    document
}

/// A worker that logs to a file.
async fn logging(bed: &TestBed, sink: &SmtpSink, log: &Path) -> WorkerProcess {
    let file = std::fs::File::create(log).unwrap();
    WorkerProcess::spawn(bed, &sink.url(), &[("OFFRAMP_HOLD_SECONDS", "1")], Stdio::from(file)).ready().await
}
