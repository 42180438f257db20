//! Records something for support staff, such as rejected commands: when it is done, in the background, and without a promise.
//!
//! Nobody waits for it. What finds no room, or cannot be written, is dropped, and the log says so once.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::indexes::Indexes;
use crate::advice;
use crate::outage::Outage;
use crate::store::support_records::SupportRecord;
use crate::store::{Store, StoreError};

/// How many records wait in memory to be written. Each has some kilobytes, an email with long texts some 20.
const WAITING_MAX: usize = 1_000;
/// How many are written at once.
const BATCH_MAX: usize = 200;
/// How long to wait for the index by which MongoDB deletes them: without it they would never be deleted.
const INDEX_PATIENCE: Duration = Duration::from_secs(60);
/// How long to drop them after MongoDB has denied access: it logs each attempt.
const DENIED_PAUSE: Duration = Duration::from_secs(60);
/// How long a write may take after the worker was asked to stop.
const FINISH_TIME_MAX: Duration = Duration::from_secs(1);

/// Takes records. Clones share one queue.
#[derive(Debug)]
pub struct SupportLog<R> {
    queue: mpsc::Sender<R>,
    overflow: Arc<Outage>,
}

impl<R> Clone for SupportLog<R> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone(), overflow: Arc::clone(&self.overflow) }
    }
}

/// Writes what a [`SupportLog`] takes.
#[derive(Debug)]
pub struct SupportWriter<R> {
    queue: mpsc::Receiver<R>,
    outage: Outage,
    /// Until then everything is dropped.
    paused_until: Option<Instant>,
}

impl<R: SupportRecord> SupportLog<R> {
    /// A log, and what writes it.
    #[must_use]
    pub fn new() -> (Self, SupportWriter<R>) {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        let writer = SupportWriter { queue: receiver, outage: Outage::default(), paused_until: None };
        (Self { queue: sender, overflow: Arc::default() }, writer)
    }

    /// Records something, or drops it if too many are waiting.
    pub(super) fn add(&self, record: R) {
        if self.queue.try_send(record).is_ok() {
            self.overflow.ended();
        } else if self.overflow.failed("") {
            tracing::warn!("too many {} at once: support staff do not see all of them", R::PLURAL);
        }
    }
}

impl<R: SupportRecord> SupportWriter<R> {
    /// Writes until every log is dropped. After `stop` it hurries.
    pub async fn run(mut self, store: Store, indexes: Indexes, stop: CancellationToken) {
        let mut batch = Vec::with_capacity(BATCH_MAX);
        while self.queue.recv_many(&mut batch, BATCH_MAX).await > 0 {
            if self.paused_until.is_none_or(|until| until <= Instant::now()) {
                let writing = write(&store, &indexes, &batch);
                let hurrying = async {
                    stop.cancelled().await;
                    sleep(FINISH_TIME_MAX).await;
                };
                tokio::select! {
                    written = writing => self.report(written),
                    () = hurrying => {}
                }
            }
            batch.clear();
        }
    }

    fn report(&mut self, written: Result<(), StoreError>) {
        self.paused_until = matches!(written, Err(StoreError::Denied(_))).then(|| Instant::now() + DENIED_PAUSE);
        match written {
            Ok(()) => drop(self.outage.ended()),
            Err(error) => {
                let error = error.reason();
                if self.outage.failed(&error) {
                    tracing::warn!(
                        error,
                        "cannot record {}: support staff do not see them ({})",
                        R::PLURAL,
                        advice::SUPPORT_RECORDS
                    );
                }
            }
        }
    }
}

async fn write<R: SupportRecord>(store: &Store, indexes: &Indexes, batch: &[R]) -> Result<(), StoreError> {
    if timeout(INDEX_PATIENCE, indexes.wait_for(R::COLLECTION, R::EXPIRY)).await.is_err() {
        return Err(StoreError::Denied(format!("the index {}.{} is missing", R::COLLECTION, R::EXPIRY)));
    }
    store.add_support_records(batch).await
}

#[cfg(test)]
mod tests {
    use offramp_domain::command_ref::{CommandKey, CommandRef, CommandType};

    use super::*;
    use crate::store::rejected_commands::RejectedCommandDocument;

    #[tokio::test]
    async fn a_full_queue_drops_what_comes_and_blocks_nobody() {
        let key = CommandKey { source: "tests".try_into().unwrap(), id: "c-1".try_into().unwrap() };
        let rejected = RejectedCommandDocument {
            id: "event".to_owned(),
            command: CommandRef { key, kind: CommandType::Cancellation },
            organization_id: "org".to_owned(),
            subscription_id: None,
            account_id: None,
            reason: "forbidden".to_owned(),
            detail: String::new(),
            actor: None,
            at: chrono::DateTime::UNIX_EPOCH.into(),
        };
        let (log, mut writer) = SupportLog::new();
        for _ in 0..WAITING_MAX + 500 {
            log.add(rejected.clone());
        }
        drop(log);
        let mut kept = 0;
        while writer.queue.recv().await.is_some() {
            kept += 1;
        }
        assert_eq!(kept, WAITING_MAX);
    }
}
