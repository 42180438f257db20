//! `make chaos`: are commands lost, or done twice, when everything around the workers breaks?
//!
//! Thousands of confirmed commands go to three worker processes, while these are killed, RabbitMQ is restarted, MongoDB
//! is killed and frozen, connections are cut and stalled, and mail servers refuse, stall, and break off. Afterwards every
//! document, email and event is held against what a fold in one thread makes of the same commands.
//!
//! Reading order: [`plan`] — what is asked, and what must come of it; [`upstream`] publishes it; [`fleet`] — the workers;
//! [`faults`] — what goes wrong; [`observer`] — who is told; [`verdict`] — the comparison, and the table.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bson::doc;
use clap::Parser;
use fastrand::Rng;
use tokio::task::JoinHandle;
use tokio::time::sleep;

mod faults;
mod fleet;
mod observer;
mod plan;
mod upstream;
mod verdict;

use faults::Chaos;
use fleet::Fleet;
use observer::Observer;
use offramp_testkit::proxy::Proxy;
use offramp_testkit::test_bed::TestBed;
use offramp_testkit::worker_process::program;
use offramp_testkit::{progress, say, setting};
use plan::Plan;
use upstream::Upstream;

/// How many commands a second, besides the pulse. With the 300 seconds of `make chaos` more than 20,000 in all.
const COMMANDS_PER_SECOND: u64 = 65;
/// Longer than a lease, and shorter than the pause of an email to which a mail server gave no reply.
const IN_DOUBT_PAUSE_MIN_MILLISECONDS: i64 = 5 * 60 * 1_000;
/// How long nothing may arrive, and nothing be due, before whatever is missing counts as lost: longer than any lease.
const SILENCE_MAX: Duration = Duration::from_secs(90);
/// How long to wait for emails that had bad luck often and are put off: longer than any is.
const PUT_OFF_MAX: Duration = Duration::from_secs(20 * 60);
/// The address that emails come from, as the workers of tests have it.
const SENDER: &str = "no-reply@offramp.example";

/// Are commands lost, or done twice, when everything around the workers breaks? Run it with `make chaos`.
#[derive(Parser)]
struct Arguments {
    /// How long things go wrong, at least 30; without it nothing is done
    #[arg(long, value_parser = clap::value_parser!(u64).range(30..=3600))]
    seconds: Option<u64>,
    /// What makes the run: the same commands, and the same faults at about the same times
    #[arg(long)]
    seed: Option<u64>,
    /// The program that the workers run; by default the one that was built with this test
    #[arg(long, value_name = "PATH", default_value_os = program().as_os_str())]
    program: PathBuf,
    /// Where the workers' logs go
    #[arg(long, default_value = "target/chaos")]
    logs: PathBuf,
    /// What `cargo test` passes on; it does not matter here
    #[arg(hide = true, allow_hyphen_values = true, trailing_var_arg = true)]
    _ignored: Vec<String>,
}

fn main() -> ExitCode {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let code = runtime.block_on(run());
    // If the driver's tasks ended with the runtime, some would panic.
    std::mem::forget(runtime);
    code
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
    say!("seed {seed}: {} commands in {} stories", plan.commands.len(), plan.stories.len());

    let bed = TestBed::new("chaos").await;
    for collection in ["organizations", "accounts", "subscriptions"] {
        let documents = plan.documents.iter().filter(|(name, _)| *name == collection).map(|(_, document)| document);
        bed.collection(collection).insert_many(documents).await.unwrap();
    }
    // Bound before the workers publish anything, and read by a connection that outlives restarts.
    let events = format!("{}.test-events", bed.prefix);
    drop(bed.watch_events().await);
    let bed = Arc::new(bed);

    let (broker_line, amqp_url) = Proxy::in_front_of(&setting("OFFRAMP_AMQP_URL", "")).await;
    let (database_line, mongodb_url) = Proxy::in_front_of_mongodb(&bed.mongodb_url).await;

    let fleet = Fleet::start(Arc::clone(&bed), arguments.program, amqp_url.clone(), mongodb_url, arguments.logs).await;
    let observer = Observer::new(Arc::clone(&plan), SENDER);
    let receiving = Arc::clone(&fleet);
    let mut background = vec![
        tokio::spawn(observer.clone().receive_events(events)),
        tokio::spawn(observer.clone().receive_emails(move || receiving.emails())),
        tokio::spawn(Arc::clone(&fleet).watch()),
    ];
    fleet.ready().await;
    say!("three workers are ready; faults begin now");

    let chaos = Arc::new(Chaos::new(Arc::clone(&fleet), observer.clone(), broker_line, database_line));
    let upstream = Arc::new(Upstream::new(Arc::clone(&plan), observer.clone(), amqp_url, bed.prefix.clone()));
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut rng = Rng::with_seed(seed);
    let publishing = tokio::spawn(Arc::clone(&upstream).run());
    let killing = tokio::spawn(Arc::clone(&fleet).keep_killing(rng.fork()));
    let failing = tokio::spawn(Arc::clone(&chaos).servers(rng.fork(), until));
    let refusing = tokio::spawn(Arc::clone(&chaos).mail_servers(rng.fork(), until));
    background.push(tokio::spawn(tell_how_it_goes(Arc::clone(&plan), observer.clone())));
    for faults in [failing, refusing] {
        faults.await.unwrap();
    }
    killing.abort();
    drop(killing.await);
    say!("faults are over; waiting for the remaining work");
    settle(&plan, &observer, &bed, &publishing).await;
    fleet.stop().await;
    background.iter().for_each(JoinHandle::abort);

    let run = verdict::Run { seed, seconds, plan, observer, upstream, fleet, chaos };
    let bed = bed.reopened().await;
    let verdict = run.judge(&bed).await;
    println!("\n{verdict}");
    if verdict.is_good() {
        bed.remove().await;
        ExitCode::SUCCESS
    } else {
        println!("the database and the queues are kept under the name {}", bed.prefix);
        ExitCode::FAILURE
    }
}

async fn tell_how_it_goes(plan: Arc<Plan>, observer: Observer) {
    loop {
        sleep(Duration::from_secs(10)).await;
        say!("{} of {} emails and events have arrived", observer.effects(), plan.effects.len());
    }
}

/// Waits until everything is published, everything has arrived, and nothing waits anywhere; or until nothing happens any
/// more.
async fn settle(plan: &Plan, observer: &Observer, bed: &TestBed, publishing: &JoinHandle<()>) {
    let begin = Instant::now();
    let (mut effects, mut newest) = (0, begin);
    loop {
        make_doubtful_emails_due(bed).await;
        let put_off = match waiting(bed).await {
            Waiting::Nothing if publishing.is_finished() && observer.effects() == plan.effects.len() => return,
            Waiting::PutOff => begin.elapsed() < PUT_OFF_MAX,
            Waiting::Nothing | Waiting::Due => false,
        };
        if observer.effects() > effects || put_off {
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

/// Lets a quarter of an hour pass: that long emails wait to which a mail server gave no reply.
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

/// What is in the outboxes.
enum Waiting {
    Nothing,
    /// Something that should leave.
    Due,
    /// Something that could not leave before, and whose time has not come.
    PutOff,
}

async fn waiting(bed: &TestBed) -> Waiting {
    let put_off = doc! { "due": { "$gt": bson::DateTime::now() }, "attempts": { "$gt": 0 } };
    let mut waiting = Waiting::Nothing;
    for collection in ["subscriptions", "accounts"] {
        let count = async |filter| bed.collection(collection).count_documents(filter).await.unwrap();
        if count(doc! { "outbox": { "$elemMatch": put_off.clone() } }).await > 0 {
            return Waiting::PutOff;
        }
        if count(doc! { "outbox.0": { "$exists": true } }).await > 0 {
            waiting = Waiting::Due;
        }
    }
    waiting
}
