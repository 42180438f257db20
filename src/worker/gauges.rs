//! Reads the gauges that are on the servers: what waits in the outbox, in queues, and for a decision. Every worker reads them, so
//! that they are known while any worker runs.

use std::iter::{once, repeat};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::amqp::{Broker, QueueCounts, RetryDelay, Topology};
use crate::clock;
use crate::metrics::labels::{EntryKind, EntryState};
use crate::metrics::{self, Reading};
use crate::store::backlog::Backlog;
use crate::store::outbox::entry::Kind;
use crate::store::{Store, StoreError};
use crate::worker::sweeper::random_below;
use offramp_domain::command_ref::CommandType;

/// The longest time between two readings.
const READ_EVERY: Duration = Duration::from_secs(15);

/// Reads gauges until `shutdown`: each `every`, at least every 15 s.
pub(super) async fn keep_reading(
    store: Store,
    broker: Broker,
    topology: Topology,
    every: Duration,
    shutdown: CancellationToken,
) {
    let every = every.min(READ_EVERY);
    let mut queues = QueueGauges::new(broker, &topology);
    let reading_queues = async {
        for pause in pauses(every) {
            queues.read().await;
            sleep(pause).await;
        }
    };
    let reading_database = async {
        for pause in pauses(every) {
            read_database(&store).await;
            sleep(pause).await;
        }
    };
    // Neither ends by itself.
    shutdown.run_until_cancelled(futures_util::future::join(reading_queues, reading_database)).await;
    queues.counts.close().await;
}

/// The pauses after each reading, without end. The first is random: workers that started together do not ask the servers at the same moment.
fn pauses(every: Duration) -> impl Iterator<Item = Duration> {
    once(random_below(every)).chain(repeat(every))
}

/// The counts of messages.
struct QueueGauges {
    counts: QueueCounts,
    names: Vec<String>,
    /// One for each of `names` but the last, which is the queue of dead letters.
    readings: Vec<Reading>,
}

impl QueueGauges {
    fn new(broker: Broker, topology: &Topology) -> Self {
        let work = CommandType::ALL.map(|kind| topology.work_queue(kind));
        let retry = RetryDelay::ALL.map(|delay| topology.retry_queue(delay));
        let mut names: Vec<String> = work.into_iter().chain(retry).collect();
        let readings = names.iter().map(|name| metrics::current().queue_messages.register_queue(name)).collect();
        names.push(topology.dead_letter_queue());
        Self { counts: QueueCounts::new(broker), names, readings }
    }

    async fn read(&mut self) {
        let counts = self.counts.read(&self.names).await;
        let readings = self.readings.iter().chain([&*metrics::current().dead_letters]);
        for (reading, count) in readings.zip(counts) {
            reading.set(count.map(|count| f64::from(count.messages)));
        }
    }
}

async fn read_database(store: &Store) {
    let metrics = metrics::current();
    let kinds = [(Kind::Email, EntryKind::Email), (Kind::Event, EntryKind::Event)];
    for (kind, label) in kinds {
        let pending = known(store.pending_entries(kind).await);
        metrics.outbox_entries.of((label, EntryState::Pending)).set(pending.map(count));
        metrics.outbox_oldest_due.of((label,)).set(pending.map(|pending| age_seconds(pending.oldest)));
        let failed = known(store.failed_entries(kind).await);
        metrics.outbox_entries.of((label, EntryState::Failed)).set(failed.map(count));
    }
    let requests = known(store.undecided_requests().await);
    metrics.requests_pending.set(requests.map(count));
    metrics.requests_oldest.set(requests.map(|requests| age_seconds(requests.oldest)));
}

/// What is wrong with the database is reported by those who work with it.
fn known(answer: Result<Backlog, StoreError>) -> Option<Backlog> {
    answer.inspect_err(|error| tracing::debug!(%error, "cannot read gauges from MongoDB")).ok()
}

#[allow(clippy::cast_precision_loss, reason = "a count of documents")]
fn count(backlog: Backlog) -> f64 {
    backlog.count as f64
}

/// The time since an instant; 0 without one, or if it is still to come.
fn age_seconds(since: Option<DateTime<Utc>>) -> f64 {
    since.and_then(|since| (clock::now() - since).to_std().ok()).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_that_start_together_read_at_different_moments() {
        let workers: Vec<Vec<Duration>> = (0..20).map(|_| pauses(READ_EVERY).take(3).collect()).collect();
        let mut first: Vec<Duration> = workers.iter().map(|pauses| pauses[0]).collect();
        first.sort();
        first.dedup();
        assert!(first.len() > 10 && first.iter().all(|pause| *pause < READ_EVERY), "{first:?}");
        assert!(workers.iter().all(|pauses| pauses[1..] == [READ_EVERY; 2]));
    }
}
