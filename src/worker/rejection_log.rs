//! Records rejected commands for support staff: after the acknowledgement, in the background, and without a promise.
//!
//! A lane never waits for it. What finds no room, or cannot be written, is dropped, and the log says so once. The event
//! `command.rejected` is what other systems rely on.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::indexes::Indexes;
use crate::advice;
use crate::outage::Outage;
use crate::store::indexes::REJECTED_EXPIRY;
use crate::store::rejected_commands::RejectedCommandDocument;
use crate::store::{Store, StoreError};
use offramp_domain::cloud_event::CloudEvent;
use offramp_domain::command::Command;
use offramp_domain::ids::Target;
use offramp_domain::unit_of_work::RejectedTask;

/// How many rejected commands wait in memory to be written. Each has some kilobytes at most.
const WAITING_MAX: usize = 1_000;
/// How many are written at once.
const BATCH_MAX: usize = 200;
/// How long to wait for the index by which MongoDB deletes them: without it they would be kept for ever.
const INDEX_PATIENCE: Duration = Duration::from_secs(60);
/// How long to drop them after MongoDB has denied access: it logs each attempt.
const DENIED_PAUSE: Duration = Duration::from_secs(60);
/// How long a write may take after the worker was asked to stop.
const FINISH_TIME_MAX: Duration = Duration::from_secs(1);

/// Takes the rejected commands of all lanes. Clones share one queue.
#[derive(Clone, Debug)]
pub struct RejectionLog {
    queue: mpsc::Sender<RejectedCommandDocument>,
    overflow: Arc<Outage>,
}

/// Writes what a [`RejectionLog`] takes.
#[derive(Debug)]
pub struct RejectionWriter {
    queue: mpsc::Receiver<RejectedCommandDocument>,
    outage: Outage,
    /// Until then everything is dropped.
    paused_until: Option<Instant>,
}

impl RejectionLog {
    /// A log, and what writes it.
    #[must_use]
    pub fn new() -> (Self, RejectionWriter) {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        let writer = RejectionWriter { queue: receiver, outage: Outage::default(), paused_until: None };
        (Self { queue: sender, overflow: Arc::default() }, writer)
    }

    /// Records a rejected command, or drops it if too many are waiting.
    pub(super) fn add(&self, rejected: RejectedCommandDocument) {
        if self.queue.try_send(rejected).is_err() && self.overflow.failed("") {
            tracing::warn!("too many rejected commands at once: `offramp show` and `offramp find` do not tell of all");
        }
    }
}

impl RejectionWriter {
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
                        "cannot record rejected commands: `offramp show` and `offramp find` do not tell of them ({})",
                        advice::REJECTED_COMMANDS
                    );
                }
            }
        }
    }
}

async fn write(store: &Store, indexes: &Indexes, batch: &[RejectedCommandDocument]) -> Result<(), StoreError> {
    if timeout(INDEX_PATIENCE, indexes.wait_for_rejected(REJECTED_EXPIRY)).await.is_err() {
        return Err(StoreError::Denied(format!("the index {REJECTED_EXPIRY} is missing")));
    }
    store.add_rejected_commands(batch).await
}

/// The record of a rejected command, whose event `command.rejected` is `event`.
pub(super) fn record(event: &CloudEvent, command: &Command, rejected: &RejectedTask) -> RejectedCommandDocument {
    let (subscription_id, account_id) = match command.target() {
        Target::Subscription(id) => (Some(id.to_string()), rejected.account_id.as_ref().map(ToString::to_string)),
        Target::Account(id) => (None, Some(id.to_string())),
        // No command is about an organization.
        Target::Organization(_) => (None, None),
    };
    RejectedCommandDocument {
        id: event.id.clone(),
        command: command.reference.clone(),
        organization_id: command.organization_id().to_string(),
        subscription_id,
        account_id,
        reason: rejected.rejection.reason.to_string(),
        detail: rejected.rejection.detail.clone(),
        actor: command.actor().cloned(),
        at: event.time.into(),
    }
}

#[cfg(test)]
mod tests {
    use offramp_domain::command_ref::{CommandKey, CommandRef, CommandType};

    use super::*;

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
        let (log, mut writer) = RejectionLog::new();
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
