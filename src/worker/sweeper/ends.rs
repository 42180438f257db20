//! Ends subscriptions whose last day is over.
//!
//! Any number of workers do this at the same time, without communicating: each starts at a random place among what is due, and
//! whatever one has ended is gone from the index when another searches again.

use super::findings::Findings;
use super::search::EndKind;
use super::task_runner::{SweepError, TaskRunner};
use crate::metrics::labels::ScheduledChange;
use crate::store::due::{DueWindow, TimeZones, TriedSubscriptions};
use crate::store::{Collection, Store};
use offramp_domain::ids::SubscriptionId;
use offramp_domain::unit_of_work::{Task, TaskOutcome};

/// A chunk is a sixteenth of what is due: after each, a worker checks whether another one works at the same place.
const WINDOW_CHUNKS: usize = 16;
/// A quarter of what is due is processed before the worker searches again.
const WINDOW_PARTS: usize = 4;
/// The smallest chunk, if as much is due.
const CHUNK_MIN: usize = 32;

/// Ends subscriptions until none is due.
pub(super) async fn end_due(
    store: &Store,
    runner: &TaskRunner,
    kind: EndKind,
    findings: &mut Findings,
) -> Result<(), SweepError> {
    let mut zones = TimeZones::default();
    let mut passed = TriedSubscriptions::default();
    // Where this worker goes on: after this id. `None`: at a random place, because another worker was faster here.
    let mut place: Option<SubscriptionId> = None;
    loop {
        let now = runner.now();
        let DueWindow { mut due, unworkable } = match kind {
            EndKind::Scheduled => store.scheduled_ends(now, &mut passed).await?,
            EndKind::Natural => store.natural_ends(now, &mut passed, &mut zones).await?,
        };
        findings.add_unworkable(unworkable);
        if due.is_empty() {
            return Ok(());
        }
        if passed.is_full() {
            // From the beginning of the index, so that the subscriptions tried there can be passed over by their number.
            place = None;
        } else {
            due.sort_unstable();
            let begin = match &place {
                Some(last) => due.partition_point(|id| id <= last) % due.len(),
                None => fastrand::usize(..due.len()),
            };
            due.rotate_left(begin);
        }
        let chunk = (due.len() / WINDOW_CHUNKS).max(CHUNK_MIN).min(runner.concurrent_tasks());
        due.truncate((due.len() / WINDOW_PARTS).max(chunk));
        for chunk in due.chunks(chunk) {
            let tasks: Vec<Task> = chunk.iter().cloned().map(Task::Lapse).collect();
            place = chunk.last().cloned();
            for (id, processed) in chunk.iter().zip(runner.run(ScheduledChange::Lapse, &tasks).await?) {
                match findings.check(Collection::Subscriptions, id.as_str(), processed) {
                    Some(TaskOutcome::Applied) => continue,
                    // Another worker was faster.
                    Some(_) => place = None,
                    None => {}
                }
                passed.add(id.clone());
            }
            if place.is_none() {
                break;
            }
        }
    }
}
