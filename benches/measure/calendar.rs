//! Scheduled changes: subscriptions that end at the same midnight, and card notices.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::{Duration, Instant};

use bson::{Document, doc};
use chrono::{Months, TimeDelta, Utc};
use futures_util::TryStreamExt;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use crate::Bench;
use crate::fixtures::{self, test_bed};
use crate::table::{goal, head, number, row, whole};
use crate::usage::{Moment, watch};
use offramp_testkit::say;
use offramp_testkit::test_bed::TestBed;
use offramp_testkit::worker_process::{WorkerProcess, metrics_of};

/// How often to poll the worker's progress.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// The timeout of a measurement.
const PATIENCE: Duration = Duration::from_secs(600);
/// One in this many accounts has a card that expires soon.
const ACCOUNTS_EACH_DUE: usize = 100;
/// The lead time of card notices, in days. The end of this month is never further away.
const NOTICE_DAYS: u32 = 31;
/// The size of the profiler's collection, in bytes.
const NOTES_BYTES_MAX: i64 = 64 * 1024 * 1024;

/// Ends 100,000 subscriptions whose last day is over.
pub async fn midnight(bench: &Bench) {
    let count = bench.count(100_000);
    say!("midnight: {count} subscriptions");
    let bed = test_bed("midnight").await;
    fixtures::add_organizations(&bed, |_| {}).await;
    let ends_at = Utc::now() - TimeDelta::hours(1);
    fixtures::add_clients(&bed, 0..count, |_, document| {
        document.extend(doc! {
            "status": "cancellation_scheduled", "ends_on": ends_at.date_naive().to_string(),
            "ends_at": bson::DateTime::from(ends_at), "final_billing_on": "2020-01-15",
        });
    })
    .await;
    fixtures::flush_database(&bed).await;
    let (worker, begun, _) = start(bench, &bed, "midnight").await;
    counted(&worker, r#"offramp_scheduled_changes_total{kind="lapse"}"#, count).await;
    let ended = begun.at.elapsed();
    counted(&worker, r#"offramp_events_total{outcome="published"}"#, count).await;
    fixtures::outboxes_empty(&bed, "subscriptions").await;
    let told = begun.at.elapsed();
    let end = Moment::of(worker.id());
    let changed = bed.collection("subscriptions").count_documents(doc! { "status": "cancelled" }).await.unwrap();
    assert_eq!(changed, count as u64);

    head(
        &format!("{} subscriptions end at midnight", whole(number(count))),
        &["seconds", "per second", "CPU each", "peak"],
    );
    let cpu = begun.cpu_until(&end).as_secs_f64() * 1e6 / number(count);
    for (name, took) in [("ended, events queued", ended), ("all events published and marked", told)] {
        let seconds = took.as_secs_f64();
        row(
            name,
            [
                format!("{seconds:.1} s"),
                whole(number(count) / seconds),
                format!("{} µs", whole(cpu)),
                format!("{} MB", whole(end.usage.peak)),
            ],
        );
    }
    goal("ended, events queued", &format!("{:.1} s", ended.as_secs_f64()), "at most 15 s");
    drop(worker);
    bed.remove().await;
}

/// Searches a million accounts, one in a hundred of which has a card that expires soon. The database profiler records the plan of each
/// query and the number of documents read.
pub async fn cards(bench: &Bench) {
    let count = bench.count(1_000_000);
    let due = count.div_ceil(ACCOUNTS_EACH_DUE);
    say!("cards: {count} accounts, {due} of them due");
    let bed = test_bed("cards").await;
    fixtures::add_organizations(&bed, |organization| {
        organization.extend(doc! { "card_notice_days": [NOTICE_DAYS], "timezone": "UTC" });
    })
    .await;
    let today = Utc::now().date_naive();
    let month = |months: usize| {
        let months = Months::new(u32::try_from(months).unwrap());
        (today + months).format("%Y-%m").to_string()
    };
    let with_card = |index: usize, account: &mut Document| {
        // Other cards expire three months from now or later.
        let expires = month(if index < due { 0 } else { 3 + index % 36 });
        account.insert("cards", [doc! { "id": "card-1", "brand": "Visa", "last4": "4242", "expires": expires }]);
    };
    fixtures::add_accounts(&bed, 0..count, with_card).await;
    fixtures::add_subscriptions(&bed, 0..due, |_, _| {}).await;
    fixtures::flush_database(&bed).await;

    head(
        &format!("Cards: {} of {} accounts are due", whole(number(due)), whole(number(count))),
        &["seconds", "keys read", "accounts", "CPU"],
    );
    for (name, told) in [("every notice sent", true), ("again, with none due", false)] {
        note_searches(&bed).await;
        let emails_before = bench.sink.count();
        let (worker, begun, looked) = start(bench, &bed, "cards").await;
        timeout(PATIENCE, looked).await.expect("a sweep that ends").unwrap();
        let took = begun.at.elapsed();
        let cpu = begun.cpu_until(&Moment::of(worker.id()));
        if told {
            while bench.sink.count() - emails_before < 2 * due {
                assert!(begun.at.elapsed() < PATIENCE, "the emails do not arrive");
                sleep(LOOK_EVERY).await;
            }
        }
        assert!(worker.stop().await.success());
        assert_eq!(bench.sink.count() - emails_before, if told { 2 * due } else { 0 });
        let searches = searches(&bed).await;
        row(
            name,
            [
                format!("{:.1} s", took.as_secs_f64()),
                whole(number(searches.keys)),
                whole(number(searches.documents)),
                format!("{:.1} s", cpu.as_secs_f64()),
            ],
        );
        row(&format!("  by {}", searches.plans.iter().map(String::as_str).collect::<Vec<_>>().join(", ")), []);
    }
    goal("accounts read", &whole(number(due)), "only those that are due");
    bed.remove().await;
}

/// Starts the profiler for queries of accounts.
async fn note_searches(bed: &TestBed) {
    let database = &bed.database;
    database.run_command(doc! { "profile": 0 }).await.unwrap();
    bed.collection("system.profile").drop().await.unwrap();
    let notes = doc! { "create": "system.profile", "capped": true, "size": NOTES_BYTES_MAX };
    database.run_command(notes).await.unwrap();
    let filter = doc! { "ns": format!("{}.accounts", bed.prefix) };
    database.run_command(doc! { "profile": 1, "filter": filter }).await.unwrap();
}

/// What the queries for cards have read.
#[derive(Default)]
struct Searches {
    keys: usize,
    documents: usize,
    plans: BTreeSet<String>,
}

async fn searches(bed: &TestBed) -> Searches {
    bed.database.run_command(doc! { "profile": 0 }).await.unwrap();
    // These queries filter by organization. A result may need several `getMore` commands.
    let filter = doc! { "$or": [
        { "command.filter.organization_id": { "$exists": true } },
        { "originatingCommand.filter.organization_id": { "$exists": true } },
    ] };
    let mut notes = bed.collection("system.profile").find(filter).await.unwrap();
    let mut searches = Searches::default();
    while let Some(note) = notes.try_next().await.unwrap() {
        let count = |name: &str| usize::try_from(note.get_i32(name).unwrap_or(0)).unwrap();
        searches.keys += count("keysExamined");
        searches.documents += count("docsExamined");
        searches.plans.extend(note.get_str("planSummary").ok().map(str::to_owned));
    }
    searches
}

/// Starts a worker. Its log shows when it starts to work, and when it has searched for cards.
async fn start(bench: &Bench, bed: &TestBed, name: &str) -> (WorkerProcess, Moment, oneshot::Receiver<Moment>) {
    let settings = [("OFFRAMP_SWEEP_SECONDS", "3600"), ("OFFRAMP_LOG", "info,offramp::worker::sweeper=debug")];
    let mut worker = WorkerProcess::spawn(bed, &bench.sink.url(), &settings, Stdio::piped());
    let log = bench.logs.join(format!("{name}.log"));
    let works = |line: &str| line.contains("worker started");
    let has_looked = |line: &str| line.contains("looked for cards");
    let [begins, looked] = watch(worker.take_log(), worker.id(), &log, [Box::new(works), Box::new(has_looked)]);
    (worker, begins.await.expect("a worker that works"), looked)
}

/// Waits until a counter of the worker reaches `wanted`.
async fn counted(worker: &WorkerProcess, counter: &str, wanted: usize) {
    let begin = Instant::now();
    loop {
        let metrics = metrics_of(worker.port()).await.unwrap_or_default();
        let count = metrics.lines().find_map(|line| line.strip_prefix(counter)?.trim().parse::<usize>().ok());
        if count.unwrap_or(0) >= wanted {
            return;
        }
        assert!(begin.elapsed() < PATIENCE, "{counter} is {count:?}");
        sleep(LOOK_EVERY).await;
    }
}
