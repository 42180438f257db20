//! Documents read by sweeps: while nothing is due, and when many subscriptions are, by one worker and by several.
//!
//! The server's counters include all clients, so the bench itself reads no documents meanwhile: it polls RabbitMQ, or an index of its
//! own.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use bson::{Bson, Document, doc};
use chrono::{Datelike, Months, TimeDelta, Utc};
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use mongodb::IndexModel;
use mongodb::options::IndexOptions;
use tokio::time::sleep;

use crate::Bench;
use crate::fixtures;
use crate::table::{goal, head, number, row, whole};
use crate::usage::{Moment, watch};
use offramp_testkit::say;
use offramp_testkit::test_bed::TestBed;
use offramp_testkit::worker_process::{WorkerProcess, build, program};

/// The interval between sweeps, in seconds.
const SWEEP_SECONDS: u64 = 5;
/// How long to observe sweeps that find nothing.
const WINDOW: Duration = Duration::from_secs(40);
/// The numbers of workers that share due subscriptions.
const WORKERS: [usize; 2] = [1, 4];
/// How often to poll the workers' progress.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// The timeout of a measurement.
const PATIENCE: Duration = Duration::from_secs(300);

/// Counters of the server.
struct Counts {
    documents: i64,
    deletions: i64,
}

impl Counts {
    async fn of(bed: &TestBed) -> Self {
        let status = bed.database.run_command(doc! { "serverStatus": 1 }).await.unwrap();
        let executor = status.get_document("metrics").unwrap().get_document("queryExecutor").unwrap();
        let count = |document: &Document, name: &str| match document.get(name) {
            Some(Bson::Int32(count)) => i64::from(*count),
            Some(Bson::Int64(count)) => *count,
            other => panic!("serverStatus has {name} = {other:?}"),
        };
        let operations = status.get_document("opcounters").unwrap();
        Self { documents: count(executor, "scannedObjects"), deletions: count(operations, "delete") }
    }

    /// Documents read and deletions between two moments.
    fn until(&self, later: &Self) -> [f64; 2] {
        [later.documents - self.documents, later.deletions - self.deletions]
            .map(|count| number(usize::try_from(count).unwrap()))
    }
}

/// Both measurements, with this build and the other, if any.
pub async fn measure(bench: &Bench) {
    let mut programs = vec![("this build", program())];
    programs.extend(bench.beside.as_deref().map(|other| ("the other", other)));
    for (when, days) in [("in ten days", 10), ("tonight", 1)] {
        let count = bench.count(20_000);
        head(
            &format!("{} past expires_on, ending {when}; per sweep:", whole(number(count))),
            &["documents", "own CPU", "MongoDB's"],
        );
        let mut read = Vec::new();
        for (name, program) in &programs {
            let (documents, cells) = nothing_due(bench, program, count, days).await;
            row(name, cells);
            read.push(documents);
        }
        ratio(&read);
        goal("documents read by a sweep", &whole(read[0]), "at most 100");
    }

    let count = bench.count(10_000);
    head(
        &format!("{} scheduled ends are due", whole(number(count))),
        &["documents", "each", "seconds", "own CPU", "MongoDB's"],
    );
    let mut read = [Vec::new(), Vec::new()];
    for (name, program) in &programs {
        for (workers, read) in WORKERS.into_iter().zip(&mut read) {
            let (documents, cells) = ends_due(bench, program, count, workers).await;
            row(&format!("{name}, {workers} workers").replace(" 1 workers", " 1 worker"), cells);
            read.push(documents);
        }
    }
    for read in &read {
        ratio(read);
    }
    goal("documents: 4 workers ÷ 1", &format!("{:.2}", read[1][0] / read[0][0]), "at most 1.5");
}

/// The ratio of two builds, if there are two.
fn ratio(read: &[f64]) {
    if let [this, other] = read {
        row("this ÷ the other", [format!("{:.4}", this / other)]);
    }
}

/// Subscriptions past `expires_on` whose natural end comes later: documents read by a sweep.
async fn nothing_due(bench: &Bench, program: &Path, count: usize, days: i64) -> (f64, Vec<String>) {
    say!("sweep: {count} subscriptions whose natural end is {days} days away");
    let bed = fixtures::test_bed_for("sweep", program).await;
    fixtures::add_organizations(&bed, |organization| drop(organization.insert("timezone", "UTC"))).await;
    // The day of the next invoice. The natural end is the day before, because there is no billing date since `expires_on`.
    let next_on = Utc::now().date_naive() + TimeDelta::days(days);
    let expires_on = next_on - Months::new(1) + TimeDelta::days(3);
    fixtures::add_clients(&bed, 0..count, |_, document| {
        document.insert("expires_on", expires_on.to_string());
        document.insert(
            "billing",
            doc! { "mode": "anniversary", "day": next_on.day(), "next_on": next_on.to_string(), "last_invoice_id": "inv-5" },
        );
    })
    .await;
    fixtures::flush_database(&bed).await;
    let worker = start(bench, program, &bed).ready().await;
    // The first sweep creates state that later sweeps do not.
    after_sweeps(&bed, 1).await;
    let (begun, before) = (Moment::of(worker.id()), Counts::of(&bed).await);
    sleep(WINDOW).await;
    let (ended, after) = (Moment::of(worker.id()), Counts::of(&bed).await);
    // Each sweep ends with one deletion of tombstones.
    let [documents, sweeps] = before.until(&after);
    assert!(sweeps > 0.0, "no sweep in {} s", WINDOW.as_secs());
    let live = bed.collection("subscriptions").count_documents(doc! { "status": { "$exists": false } }).await.unwrap();
    assert_eq!(live, count as u64, "unchanged subscriptions");
    assert!(worker.stop().await.success());
    bed.remove().await;
    let milliseconds = |cpu: Duration| format!("{:.1} ms", cpu.as_secs_f64() * 1e3 / sweeps);
    let database = begun.servers_until(&ended)[0];
    let cells = vec![
        whole(documents / sweeps),
        milliseconds(begun.cpu_until(&ended)),
        database.map_or_else(|| "?".to_owned(), milliseconds),
    ];
    (documents / sweeps, cells)
}

/// Scheduled ends that are due at once: documents read until all have ended and all outboxes are empty.
async fn ends_due(bench: &Bench, program: &Path, count: usize, workers: usize) -> (f64, Vec<String>) {
    say!("sweep: {count} scheduled ends, {workers} workers");
    let bed = fixtures::test_bed_for("sweep", program).await;
    fixtures::add_organizations(&bed, |organization| drop(organization.insert("timezone", "UTC"))).await;
    let ends_at = Utc::now() - TimeDelta::hours(1);
    fixtures::add_clients(&bed, 0..count, |_, document| {
        document.extend(doc! {
            "status": "cancellation_scheduled", "ends_on": ends_at.date_naive().to_string(),
            "ends_at": bson::DateTime::from(ends_at), "final_billing_on": "2020-01-15",
        });
    })
    .await;
    // This index counts entries without reading documents.
    let options = IndexOptions::builder().name("bench_outbox".to_owned()).sparse(true).build();
    let index = IndexModel::builder().keys(doc! { "outbox.id": 1 }).options(options).build();
    bed.collection("subscriptions").create_index(index).await.unwrap();
    drop(bed.watch_events().await);
    fixtures::flush_database(&bed).await;

    let before = Counts::of(&bed).await;
    let workers: Vec<WorkerProcess> = (0..workers).map(|_| start(bench, program, &bed)).collect();
    let begun: Vec<Moment> = workers.iter().map(|worker| Moment::of(worker.id())).collect();
    let since = Instant::now();
    while events(&bed).await < count || waiting(&bed).await > 0 {
        assert!(since.elapsed() < PATIENCE, "{} events of {count}", events(&bed).await);
        sleep(LOOK_EVERY).await;
    }
    let ended: Vec<Moment> = workers.iter().map(|worker| Moment::of(worker.id())).collect();
    let [documents, _] = before.until(&Counts::of(&bed).await);
    let took = since.elapsed();
    for worker in workers {
        assert!(worker.stop().await.success());
    }
    let done = doc! { "status": "cancelled", "outbox.0": { "$exists": false } };
    assert_eq!(bed.collection("subscriptions").count_documents(done).await.unwrap(), count as u64);
    assert_eq!(events(&bed).await, count, "events");
    bed.remove().await;
    let seconds = |cpu: Duration| format!("{:.1} s", cpu.as_secs_f64());
    let own = begun.iter().zip(&ended).map(|(begun, ended)| begun.cpu_until(ended)).sum();
    let database = begun[0].servers_until(&ended[0])[0];
    let cells = vec![
        whole(documents),
        format!("{:.1}", documents / number(count)),
        seconds(took),
        seconds(own),
        database.map_or_else(|| "?".to_owned(), seconds),
    ];
    (documents, cells)
}

fn start(bench: &Bench, program: &Path, bed: &TestBed) -> WorkerProcess {
    let mut command = build(program, bed);
    command.env("OFFRAMP_SMTP_URL", bench.sink.url()).env("OFFRAMP_SWEEP_SECONDS", SWEEP_SECONDS.to_string());
    let mut worker = WorkerProcess::of(&mut command, Stdio::piped());
    let [_] = watch(worker.take_log(), worker.id(), &bench.logs.join("sweep.log"), [Box::new(|_| false)]);
    worker
}

/// Waits until `sweeps` more sweeps have ended.
async fn after_sweeps(bed: &TestBed, sweeps: i64) {
    let begin = Instant::now();
    let wanted = Counts::of(bed).await.deletions + sweeps;
    while Counts::of(bed).await.deletions < wanted {
        assert!(begin.elapsed() < PATIENCE, "no sweep ends");
        sleep(LOOK_EVERY).await;
    }
}

/// The number of arrived events.
async fn events(bed: &TestBed) -> usize {
    let queue = format!("{}.test-events", bed.prefix);
    let options = QueueDeclareOptions { passive: true, ..Default::default() };
    let queue = bed.channel.queue_declare(queue.as_str().into(), options, FieldTable::default()).await.unwrap();
    queue.message_count() as usize
}

/// The number of entries in outboxes.
async fn waiting(bed: &TestBed) -> i32 {
    let count = doc! { "count": "subscriptions", "query": { "outbox.id": { "$gte": "" } }, "hint": "bench_outbox" };
    bed.database.run_command(count).await.unwrap().get_i32("n").unwrap()
}
