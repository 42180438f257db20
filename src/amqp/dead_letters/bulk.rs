//! Replays or drops many dead letters in one scan.

use std::collections::{BTreeMap, HashMap};

use uuid::Uuid;

use super::{DeadLetter, DeadLetters, DeadLettersError, HeldDeadLetter};
use crate::amqp::publisher::{PublishError, Publisher};

/// The largest batch: its number of dead letters, and the size of their bodies, in bytes.
const BATCH_MAX: usize = 100;
const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What became of the selected dead letters. Those that are counted nowhere were not in the queue any more, or were not reached.
#[derive(Debug, Default)]
pub struct BulkReport {
    /// The number of those that were replayed, per queue.
    pub replayed: BTreeMap<String, u64>,
    pub dropped: u64,
    /// The number of those that were kept because they name no work queue of this prefix.
    pub unroutable: u64,
    /// The number of those that were kept because their copy was not confirmed.
    pub failed: u64,
    /// Why, for the last of them.
    pub error: Option<PublishError>,
}

impl BulkReport {
    /// The number of those that are no longer in the queue of dead letters.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.dropped + self.replayed.values().sum::<u64>()
    }

    fn add(&mut self, queue: Option<String>, result: Option<Result<(), PublishError>>) {
        match result {
            Some(Ok(())) => *self.replayed.entry(queue.unwrap_or_default()).or_default() += 1,
            None => self.unroutable += 1,
            Some(Err(error)) => {
                self.failed += 1;
                self.error = Some(error);
            }
        }
    }

    fn is_interrupted(&self) -> bool {
        matches!(self.error, Some(PublishError::Unavailable(_)))
    }
}

impl DeadLetters {
    /// Sends the selected dead letters back to their work queues. `progress` learns the number of dead letters looked at so far, and
    /// their total. It ends early if the broker becomes unavailable to the publisher; `report` then says so. It has the results so
    /// far even if this fails.
    ///
    /// # Errors
    /// When the connection is lost. Some dead letters may then be in both queues, which does no harm.
    pub async fn replay(
        &self,
        publisher: &Publisher,
        is_selected: impl Fn(&DeadLetter) -> bool,
        progress: impl Fn(u64, u64),
        report: &mut BulkReport,
    ) -> Result<(), DeadLettersError> {
        let mut scan = self.scan().await?;
        let (total, mut looked_at) = (scan.total(), 0);
        let (mut batch, mut bytes) = (Vec::<HeldDeadLetter>::new(), 0);
        loop {
            let next = scan.next().await?;
            let is_last = next.is_none();
            if let Some(held) = next {
                if is_selected(&held.letter) {
                    bytes += held.letter.body_bytes;
                    batch.push(held);
                } else {
                    looked_at += 1;
                }
            }
            if is_last || batch.len() >= BATCH_MAX || bytes >= BATCH_BYTES_MAX {
                let queues: Vec<Option<String>> = batch.iter().map(|held| held.letter.queue.clone()).collect();
                let results = scan.replay(publisher, std::mem::take(&mut batch)).await?;
                looked_at += results.len() as u64;
                for (queue, result) in queues.into_iter().zip(results) {
                    report.add(queue, result);
                }
                bytes = 0;
            }
            progress(looked_at, total);
            if is_last || report.is_interrupted() {
                return scan.finish().await;
            }
        }
    }

    /// Deletes dead letters permanently: of each id at most the given number, which is more than 1 only for identical ones. The rest
    /// is as for [`DeadLetters::replay`].
    ///
    /// # Errors
    /// When the connection is lost. The last ones may then still be in the queue.
    pub async fn drop_selected(
        &self,
        mut selected: HashMap<Uuid, u64>,
        progress: impl Fn(u64, u64),
        report: &mut BulkReport,
    ) -> Result<(), DeadLettersError> {
        let mut scan = self.scan().await?;
        let (total, mut looked_at) = (scan.total(), 0);
        let mut batch = Vec::new();
        loop {
            let next = scan.next().await?;
            let is_last = next.is_none();
            if let Some(held) = next {
                looked_at += 1;
                if let Some(remaining) = selected.get_mut(&held.letter.id).filter(|remaining| **remaining > 0) {
                    *remaining -= 1;
                    batch.push(held);
                }
            }
            if is_last || batch.len() >= BATCH_MAX {
                let size = batch.len() as u64;
                scan.remove(std::mem::take(&mut batch)).await?;
                report.dropped += size;
            }
            progress(looked_at, total);
            if is_last {
                return scan.finish().await;
            }
        }
    }
}
