//! Latency at a steady rate, lane by lane: the time from publishing a message until its document is committed, and until the mail
//! server has accepted its email.
//!
//! *Committed* is when another system can see the change: a change stream, which reports majority-committed changes, reports the first
//! change of the document. *Accepted* is when the mail server has received the whole email to the account manager. Publishing does not
//! wait, so that a slow moment of the worker affects all messages published during it.

use std::collections::{HashMap, VecDeque};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bson::{Document, doc};
use futures_util::TryStreamExt;
use hdrhistogram::Histogram;
use offramp_domain::command_ref::CommandType;
use serde_json::Value;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::Bench;
use crate::fixtures::{self, account_id, subscription_id, test_bed};
use crate::table::{head, line, number, row, whole};
use crate::usage::watch;
use offramp_testkit::say;
use offramp_testkit::test_bed::TestBed;
use offramp_testkit::worker_process::WorkerProcess;

/// Messages per second, and their number.
const PACES: [(usize, usize); 2] = [(100, 2_000), (1_000, 10_000)];
/// The first messages are not counted, because connections are opened and pages read: this fraction of a second.
const WARM_UP_SHARE: usize = 2;
/// How often to poll for arrivals.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// The longest time without an arrival before the measurement fails.
const SILENCE_MAX: Duration = Duration::from_secs(60);

const COLUMNS: [&str; 6] = ["commit p50", "p99", "p99.9", "email p50", "p99", "p99.9"];
const QUANTILES: [f64; 3] = [0.5, 0.99, 0.999];

/// The time of the first change, by document id.
type Commits = Arc<Mutex<HashMap<String, Instant>>>;

/// One lane at one rate.
struct Case {
    kind: CommandType,
    pace: usize,
    /// The indexes of its documents.
    first: usize,
    count: usize,
}

impl Case {
    /// The id of a message's document.
    fn document_id(&self, index: usize) -> String {
        match self.kind {
            CommandType::CardExpiry => account_id(index),
            _ => subscription_id(index),
        }
    }
}

/// Measures each lane at each rate.
pub async fn measure(bench: &Bench) {
    let mut cases = Vec::new();
    let mut first = 0;
    for (pace, count) in PACES {
        let count = bench.count(count);
        for kind in CommandType::ALL {
            cases.push(Case { kind, pace, first, count });
            first += count;
        }
    }
    say!("latency: {first} messages");
    let bed = test_bed("latency").await;
    // Every command then sends an email to the account manager.
    fixtures::add_organizations(&bed, |organization| drop(organization.insert("notify_client_of_own_actions", true)))
        .await;
    for case in &cases {
        let change = |_: usize, document: &mut Document| {
            if case.kind == CommandType::CancellationConfirmation {
                document.extend(requested(document));
            }
        };
        fixtures::add_clients(&bed, case.first..case.first + case.count, change).await;
    }
    fixtures::flush_database(&bed).await;
    let commits = Commits::default();
    let watching = tokio::spawn(watch_commits(bed.database.clone(), Arc::clone(&commits)));
    bench.sink.watch();
    let mut worker = WorkerProcess::spawn(&bed, &bench.sink.url(), &[("OFFRAMP_SWEEP_SECONDS", "60")], Stdio::piped());
    let [_] = watch(worker.take_log(), worker.id(), &bench.logs.join("latency.log"), [Box::new(|_| false)]);
    let worker = worker.ready().await;

    for (pace, _) in PACES {
        head(&format!("{} messages a second, ms", whole(number(pace))), &COLUMNS);
        for case in cases.iter().filter(|case| case.pace == pace) {
            let (committed, accepted) = run(bench, &bed, case, &commits).await;
            let cells =
                [&committed, &accepted].into_iter().flat_map(|times| QUANTILES.map(|at| milliseconds(times, at)));
            row(case.kind.as_str(), cells);
        }
        if pace == PACES[0].0 {
            line("  target: committed p50 at most 8, p99 at most 40; accepted p99 at most 80");
        }
    }
    drop(worker);
    watching.abort();
    bed.remove().await;
}

/// Publishes the messages of a case at its rate, and waits for all commits and emails.
async fn run(bench: &Bench, bed: &TestBed, case: &Case, commits: &Commits) -> (Histogram<u64>, Histogram<u64>) {
    let commands: Vec<Value> =
        (case.first..case.first + case.count).map(|index| fixtures::command_of(case.kind, index)).collect();
    let mut published = Vec::with_capacity(case.count);
    let mut confirms = VecDeque::new();
    let mut ticks = interval(Duration::from_secs(1) / u32::try_from(case.pace).unwrap());
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    drop(bench.sink.arrivals());
    for command in &commands {
        ticks.tick().await;
        published.push(Instant::now());
        confirms.push_back(fixtures::send(&bed.channel, &bed.prefix, command).await);
    }
    for confirm in confirms {
        fixtures::confirmed(confirm).await;
    }

    let mut accepted = HashMap::new();
    let mut newest = Instant::now();
    let mut seen = 0;
    let managers: Vec<String> =
        (case.first..case.first + case.count).map(|index| format!("{}@home.example", account_id(index))).collect();
    loop {
        for (recipient, at) in bench.sink.arrivals() {
            accepted.entry(recipient).or_insert(at);
        }
        let all_accepted = managers.iter().all(|manager| accepted.contains_key(manager));
        let committed = {
            let commits = commits.lock().unwrap();
            (0..case.count).all(|index| commits.contains_key(&case.document_id(case.first + index)))
        };
        if all_accepted && committed {
            break;
        }
        if accepted.len() != seen {
            (seen, newest) = (accepted.len(), Instant::now());
        }
        assert!(newest.elapsed() < SILENCE_MAX, "no more arrivals");
        sleep(LOOK_EVERY).await;
    }

    let mut times = (histogram(), histogram());
    let commits = commits.lock().unwrap();
    let warm_up = (case.pace / WARM_UP_SHARE).min(case.count / 2);
    for index in warm_up..case.count {
        let since = |at: Instant| u64::try_from(at.saturating_duration_since(published[index]).as_micros()).unwrap();
        times.0.record(since(commits[&case.document_id(case.first + index)])).unwrap();
        times.1.record(since(accepted[&managers[index]])).unwrap();
    }
    times
}

/// Records the first change of each document until aborted.
async fn watch_commits(database: mongodb::Database, commits: Commits) {
    let changes = [
        doc! { "$match": { "operationType": "update" } },
        doc! { "$project": { "documentKey": 1, "operationType": 1, "ns": 1 } },
    ];
    let mut changes = database.watch().pipeline(changes).await.unwrap().with_type::<Document>();
    while let Some(change) = changes.try_next().await.unwrap() {
        let id = change.get_document("documentKey").unwrap().get_str("_id").unwrap().to_owned();
        commits.lock().unwrap().entry(id).or_insert_with(Instant::now);
    }
}

/// The fields of a subscription with a pending request.
fn requested(subscription: &Document) -> Document {
    let account = subscription.get_str("account_id").unwrap();
    doc! {
        "status": "cancellation_requested",
        "cancellation_request": {
            "requested_at": bson::DateTime::now(),
            "actor": { "role": "client", "account_id": account, "name": "Ada Roy" },
        },
    }
}

/// Microseconds.
fn histogram() -> Histogram<u64> {
    Histogram::new(3).unwrap()
}

#[allow(clippy::cast_precision_loss, reason = "figures of a table")]
fn milliseconds(times: &Histogram<u64>, quantile: f64) -> String {
    format!("{:.1}", times.value_at_quantile(quantile) as f64 / 1e3)
}
