//! `make chaos`: are commands lost or duplicated while everything around the workers fails?
//!
//! Thousands of confirmed commands are sent to three worker processes. Meanwhile workers are killed, RabbitMQ is restarted, MongoDB is
//! killed and frozen, connections are cut and stalled, and mail servers reject, stall and hang up. Afterwards every document, email and
//! event is compared with the result of applying the same commands in a single thread.
//!
//! With `--cluster`, which `make chaos-cluster` gives, there are three servers of each kind.
//!
//! Reading order: [`plan`] (the commands and their expected effects), [`upstream`] (publishes them), [`fleet`] (the workers),
//! [`faults`] with [`single`] and [`cluster`], [`observer`] (receives emails and events), [`verdict`] (the comparison and the table).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bson::doc;
use clap::{Parser, ValueEnum};
use fastrand::Rng;
use serde_json::json;
use tokio::task::JoinHandle;
use tokio::time::sleep;

mod cluster;
mod faults;
mod fleet;
mod history;
mod observer;
mod plan;
mod single;
mod upstream;
mod verdict;

use cluster::{Cluster, Fault};
use faults::Chaos;
use fleet::{Fleet, Settings, Staffing};
use history::History;
use observer::Observer;
use offramp_testkit::machine_clock::MachineClock;
use offramp_testkit::proxy::Proxy;
use offramp_testkit::test_bed::TestBed;
use offramp_testkit::worker_process::program;
use offramp_testkit::{progress, run_program, say};
use plan::Plan;
use single::SingleServers;
use upstream::Upstream;

/// The rate of commands, without the probes. The 300 seconds of `make chaos` give more than 20,000.
const COMMANDS_PER_SECOND: u64 = 65;
/// Longer than a lease, and shorter than the delay of an email in doubt.
const IN_DOUBT_PAUSE_MIN_MILLISECONDS: i64 = 5 * 60 * 1_000;
/// After this time without progress, missing effects count as lost. Longer than any lease, and than the 180 s after which RabbitMQ
/// forwards an expired message again whose forwarding a restart interrupted.
const SILENCE_MAX: Duration = Duration::from_secs(240);
/// How long to wait for deferred emails. Longer than any delay.
const DEFERRED_MAX: Duration = Duration::from_secs(20 * 60);
/// The sender of emails, as the test support configures workers.
const SENDER: &str = "no-reply@offramp.example";

/// Are commands lost or duplicated while everything around the workers fails? Run it with `make chaos`
#[derive(Parser)]
struct Arguments {
    /// How long to inject faults, at least 30 seconds; without it, nothing is run
    #[arg(long, value_parser = clap::value_parser!(u64).range(30..=3600))]
    seconds: Option<u64>,
    /// The seed: the same seed gives the same commands, and the same faults at about the same times
    #[arg(long)]
    seed: Option<u64>,
    /// The program for the workers [default: the one built with this test]
    #[arg(long, value_name = "PATH", default_value_os = program().as_os_str())]
    program: PathBuf,
    /// Another program, which every other worker runs
    #[arg(long, value_name = "PATH")]
    beside: Option<PathBuf>,
    /// By how many seconds the clocks of two workers are wrong: one is behind, one ahead
    #[arg(long, value_name = "SECONDS")]
    clocks: Option<i64>,
    /// Start three MongoDB and three RabbitMQ servers in this directory; what it holds of an earlier run is deleted
    #[arg(long, value_name = "DIRECTORY")]
    cluster: Option<PathBuf>,
    /// What may happen to the cluster [default: all of these]
    #[arg(long, value_enum, requires = "cluster", hide_default_value = true, default_values_t = Fault::value_variants().iter().copied())]
    fault: Vec<Fault>,
    /// The directory for the workers' logs
    #[arg(long, default_value = "target/chaos")]
    logs: PathBuf,
    /// Arguments of `cargo test`, ignored
    #[arg(hide = true, allow_hyphen_values = true, trailing_var_arg = true)]
    _ignored: Vec<String>,
}

fn main() -> ExitCode {
    run_program(run())
}

async fn run() -> ExitCode {
    let arguments = Arguments::parse();
    let Some(seconds) = arguments.seconds else {
        println!("chaos: skipped, because it needs servers of its own; run `make chaos`");
        return ExitCode::SUCCESS;
    };
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..100_000));
    std::fs::create_dir_all(&arguments.logs).unwrap();
    progress::elapsed();

    let commands = usize::try_from(seconds * COMMANDS_PER_SECOND).unwrap();
    let plan = Arc::new(Plan::new(seed, commands, Duration::from_secs(seconds)));
    say!("the workers run {}", arguments.program.display());
    say!("seed {seed}: {} commands in {} scenarios", plan.commands.len(), plan.scenarios.len());

    let history_path = arguments.logs.join(format!("history-{seed}.jsonl"));
    let history = Arc::new(History::create(&history_path));
    record_plan(&history, &plan);
    let (bed, servers, settings) = match &arguments.cluster {
        None => behind_proxies().await,
        Some(directory) => with_cluster(directory, arguments.fault).await,
    };
    let programs = [Some(arguments.program), arguments.beside].into_iter().flatten().collect();
    let mut clocks = Vec::new();
    if let Some(seconds) = arguments.clocks {
        clocks.extend([-seconds, 0, seconds].map(MachineClock::ahead_by));
        say!("the clocks of two workers are wrong by {seconds} s, one in each direction");
    }
    let staffing = Staffing { programs, clocks, logs: arguments.logs, settings };
    for collection in ["organizations", "accounts", "subscriptions"] {
        let documents = plan.documents.iter().filter(|(name, _)| *name == collection).map(|(_, document)| document);
        bed.collection(collection).insert_many(documents).await.unwrap();
    }
    // Bind the queue before the workers publish. The observer reads it with a connection that survives restarts.
    let events = format!("{}.test-events", bed.prefix);
    drop(bed.watch_events().await);
    let bed = Arc::new(bed);
    // Through the proxy of a single server; a cluster's nodes are reached like by a load balancer.
    let upstream_url = match &servers {
        Servers::Single(_) => staffing.settings.amqp_urls[0].clone(),
        Servers::Cluster(_) => bed.amqp_url.clone(),
    };

    let fleet = Fleet::start(Arc::clone(&bed), Arc::clone(&history), staffing).await;
    let observer = Observer::new(Arc::clone(&plan), Arc::clone(&history), SENDER);
    let receiving = Arc::clone(&fleet);
    let mut background = vec![
        tokio::spawn(observer.clone().receive_events(bed.amqp_url.clone(), events)),
        tokio::spawn(observer.clone().receive_emails(move || receiving.emails())),
        tokio::spawn(Arc::clone(&fleet).watch()),
    ];
    fleet.ready().await;
    say!("three workers are ready; faults begin now");

    let chaos = Arc::new(Chaos::new(Arc::clone(&fleet), Arc::clone(&history), observer.clone()));
    let upstream =
        Upstream::new(Arc::clone(&plan), Arc::clone(&history), observer.clone(), upstream_url, bed.prefix.clone());
    let upstream = Arc::new(upstream);
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut rng = Rng::with_seed(seed);
    let publishing = tokio::spawn(Arc::clone(&upstream).run());
    let killing = tokio::spawn(Arc::clone(&fleet).keep_killing(rng.fork()));
    let failing = servers.attack(&chaos, &upstream, rng.fork(), until);
    let refusing = tokio::spawn(Arc::clone(&chaos).mail_servers(rng.fork(), until));
    background.push(tokio::spawn(report_progress(Arc::clone(&plan), observer.clone())));
    failing.await;
    refusing.await.unwrap();
    killing.abort();
    drop(killing.await);
    upstream.end_probes();
    say!("faults are over; waiting for the remaining work");
    wait_until_done(&upstream, &observer, &bed, &publishing).await;
    // A worker that is just starting would not stop in order.
    fleet.ready().await;
    fleet.stop().await;
    background.iter().for_each(JoinHandle::abort);

    let run = verdict::Run { seed, seconds, plan, history: Arc::clone(&history), observer, upstream, fleet, chaos };
    let bed = bed.reopened().await;
    let verdict = run.judge(&bed).await;
    println!("\n{verdict}");
    history.finish();
    println!("the history is in {}", history_path.display());
    if verdict.is_good() {
        bed.remove().await;
        ExitCode::SUCCESS
    } else {
        println!("the database and the queues are kept under the name {}", bed.prefix);
        ExitCode::FAILURE
    }
}

/// What the history is judged by.
fn record_plan(history: &History, plan: &Plan) {
    for command in &plan.commands {
        let about = json!({
            "command": command.id,
            "applied": command.is_applied,
            "dead_letter": command.dies,
            "effects": command.effects,
        });
        history.add("plan", "info", "expect", about);
    }
}

/// What the workers work with.
enum Servers {
    Single(SingleServers),
    Cluster(Cluster),
}

impl Servers {
    /// Injects faults until `until`.
    async fn attack(&self, chaos: &Chaos, upstream: &Upstream, rng: Rng, until: Instant) {
        match self {
            Self::Single(servers) => servers.attack(chaos, rng, until).await,
            Self::Cluster(cluster) => cluster.attack(chaos, upstream, rng, until).await,
        }
    }
}

/// The servers of `scripts/services`, behind proxies.
async fn behind_proxies() -> (TestBed, Servers, Settings) {
    let bed = TestBed::new("chaos").await;
    let (broker_line, amqp_url) = Proxy::in_front_of(&bed.amqp_url).await;
    let (database_line, mongodb_url) = Proxy::in_front_of_mongodb(&bed.mongodb_url).await;
    let settings = Settings { amqp_urls: vec![amqp_url], mongodb_url, lease: Duration::from_secs(20) };
    (bed, Servers::Single(SingleServers { broker_line, database_line }), settings)
}

/// Servers of our own.
async fn with_cluster(directory: &Path, faults: Vec<Fault>) -> (TestBed, Servers, Settings) {
    let cluster = Cluster::start(directory, faults).await;
    let bed = TestBed::of_servers("chaos", &cluster.mongodb_url().await, &cluster.front_url()).await;
    // An election takes 10 s and more.
    let lease = Duration::from_secs(60);
    let settings = Settings { amqp_urls: cluster.amqp_urls(), mongodb_url: bed.mongodb_url.clone(), lease };
    (bed, Servers::Cluster(cluster), settings)
}

async fn report_progress(plan: Arc<Plan>, observer: Observer) {
    loop {
        sleep(Duration::from_secs(10)).await;
        say!("{} of {} emails and events have arrived", observer.effects(), plan.effects.len());
    }
}

/// Waits until all commands are published, all effects have arrived and all outboxes are empty, or until there is no more progress.
async fn wait_until_done(upstream: &Upstream, observer: &Observer, bed: &TestBed, publishing: &JoinHandle<()>) {
    let begin = Instant::now();
    let (mut effects, mut newest) = (0, begin);
    loop {
        make_doubtful_emails_due(bed).await;
        let deferred = match waiting(bed).await {
            Waiting::Nothing if publishing.is_finished() && observer.effects() == upstream.effects() => return,
            Waiting::Deferred => begin.elapsed() < DEFERRED_MAX,
            Waiting::Nothing | Waiting::Due => false,
        };
        if observer.effects() > effects || deferred {
            (effects, newest) = (observer.effects(), Instant::now());
        }
        if newest.elapsed() > SILENCE_MAX {
            say!("no progress for {} s; giving up", SILENCE_MAX.as_secs());
            publishing.abort();
            return;
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// Makes emails in doubt due now. They would otherwise wait for a quarter of an hour.
async fn make_doubtful_emails_due(bed: &TestBed) {
    let later = bson::DateTime::from_millis(bson::DateTime::now().timestamp_millis() + IN_DOUBT_PAUSE_MIN_MILLISECONDS);
    let waits = doc! { "in_doubt": { "$gt": 0 }, "due": { "$gt": later } };
    let update = doc! { "$set": { "outbox.$[email].due": bson::DateTime::now() }, "$inc": { "version": 1_i64 } };
    let filter = doc! { "email.in_doubt": { "$gt": 0 }, "email.due": { "$gt": later } };
    for collection in ["subscriptions", "accounts"] {
        let collection = bed.collection(collection);
        let updating = collection.update_many(doc! { "outbox": { "$elemMatch": waits.clone() } }, update.clone());
        updating.array_filters([filter.clone()]).await.unwrap();
    }
}

/// The state of the outboxes.
enum Waiting {
    Nothing,
    /// Entries that should be sent.
    Due,
    /// Deferred entries that are not due yet.
    Deferred,
}

async fn waiting(bed: &TestBed) -> Waiting {
    let deferred = doc! { "due": { "$gt": bson::DateTime::now() }, "attempts": { "$gt": 0 } };
    let mut waiting = Waiting::Nothing;
    for collection in ["subscriptions", "accounts"] {
        let count = async |filter| bed.collection(collection).count_documents(filter).await.unwrap();
        if count(doc! { "outbox": { "$elemMatch": deferred.clone() } }).await > 0 {
            return Waiting::Deferred;
        }
        if count(doc! { "outbox.0": { "$exists": true } }).await > 0 {
            waiting = Waiting::Due;
        }
    }
    waiting
}
