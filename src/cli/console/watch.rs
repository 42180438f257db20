//! What changes by itself: queues, the outbox, requests and workers, read every ten seconds and kept for an hour.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use offramp::amqp::{Broker, QueueCount, QueueCounts, RetryDelay, Topology};
use offramp::clock;
use offramp::store::Store;
use offramp::store::backlog::Backlog;
use offramp::store::outbox::entry::Kind;
use offramp_domain::command_ref::CommandType;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::workers::{Worker, Workers};

const EVERY: Duration = Duration::from_secs(10);
/// The number of samples in an hour.
pub const SAMPLES_MAX: usize = 360;

/// The samples of the last hour.
#[derive(Default)]
pub struct Watch(Mutex<Seen>);

#[derive(Clone, Default)]
pub struct Seen {
    /// Oldest first.
    pub samples: VecDeque<Sample>,
    /// As they were when the last sample was taken.
    pub workers: Vec<Worker>,
}

/// What was seen at one time. `None`: a server did not answer.
#[derive(Clone, Debug)]
pub struct Sample {
    pub at: DateTime<Utc>,
    /// The work queues, in the order of [`CommandType::ALL`].
    pub work: Vec<Option<QueueCount>>,
    /// The retry queues, in the order of [`RetryDelay::ALL`].
    pub retry: Vec<Option<QueueCount>>,
    pub dead_letters: Option<QueueCount>,
    pub pending_emails: Option<Backlog>,
    pub failed_emails: Option<Backlog>,
    pub pending_events: Option<Backlog>,
    pub failed_events: Option<Backlog>,
    pub requests: Option<Backlog>,
    /// Settled commands and sent emails of all workers per second, since the sample before.
    pub commands_per_second: Option<f64>,
    pub emails_per_second: Option<f64>,
    /// Why MongoDB could not be read.
    pub database_problem: Option<String>,
}

impl Watch {
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn seen(&self) -> Seen {
        self.lock().clone()
    }

    /// The number of dead letters in their queue when it was last counted.
    pub fn dead_letters(&self) -> Option<u32> {
        self.lock().samples.back()?.dead_letters.map(|count| count.messages)
    }
}

/// Reads until `stop`. While the console itself holds dead letters, their number stays what it was.
pub async fn keep_watching(
    watch: Arc<Watch>,
    store: Store,
    (broker, topology): (Broker, Topology),
    workers: Vec<String>,
    holds_dead_letters: impl Fn() -> bool,
    stop: CancellationToken,
) {
    let mut workers = Workers::new(workers);
    let mut queues = QueueCounts::new(broker);
    let names = queue_names(&topology);
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        let held_before = holds_dead_letters();
        let (mut sample, seen) = sample(&store, &mut queues, &names, &mut workers).await;
        let mut state = watch.lock();
        if held_before || holds_dead_letters() {
            sample.dead_letters = state.samples.back().and_then(|last| last.dead_letters);
        }
        state.samples.push_back(sample);
        while state.samples.len() > SAMPLES_MAX {
            state.samples.pop_front();
        }
        state.workers = seen;
    }
    queues.close().await;
}

fn queue_names(topology: &Topology) -> Vec<String> {
    let work = CommandType::ALL.map(|kind| topology.work_queue(kind));
    let retry = RetryDelay::ALL.map(|delay| topology.retry_queue(delay));
    work.into_iter().chain(retry).chain([topology.dead_letter_queue()]).collect()
}

async fn sample(
    store: &Store,
    queues: &mut QueueCounts,
    names: &[String],
    workers: &mut Workers,
) -> (Sample, Vec<Worker>) {
    let reading_database = async {
        let mut problem = None;
        let mut known = |answer: Result<Backlog, _>| {
            answer.map_err(|error: offramp::store::StoreError| problem = Some(error.reason())).ok()
        };
        let backlogs = [
            known(store.pending_entries(Kind::Email).await),
            known(store.failed_entries(Kind::Email).await),
            known(store.pending_entries(Kind::Event).await),
            known(store.failed_entries(Kind::Event).await),
            known(store.undecided_requests().await),
        ];
        (backlogs, problem)
    };
    let (counts, (backlogs, database_problem), (seen, rates)) =
        tokio::join!(queues.read(names), reading_database, workers.read());
    let mut counts = counts.into_iter();
    let work = counts.by_ref().take(CommandType::ALL.len()).collect();
    let retry = counts.by_ref().take(RetryDelay::ALL.len()).collect();
    let [pending_emails, failed_emails, pending_events, failed_events, requests] = backlogs;
    let sample = Sample {
        at: clock::now(),
        work,
        retry,
        dead_letters: counts.next().flatten(),
        pending_emails,
        failed_emails,
        pending_events,
        failed_events,
        requests,
        commands_per_second: rates.map(|rates| rates.commands),
        emails_per_second: rates.map(|rates| rates.emails),
        database_problem,
    };
    (sample, seen)
}
