//! The server itself: its version, its kind, its clock.

use std::time::Duration;

use bson::{Document, doc};
use chrono::{DateTime, TimeDelta, Utc};
use tokio::time::Instant;

use crate::clock;

use super::client::{OPERATION_DEADLINE, Store};
use super::error::StoreError;

/// What `hello` and `buildInfo` report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerFacts {
    /// `"8.0.4"`
    pub version: String,
    pub replica_set: Option<String>,
    /// Whether it is a router of a sharded cluster.
    pub is_router: bool,
}

/// What the server's clock showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerTime {
    pub time: DateTime<Utc>,
    /// What this machine's clock showed at the same time.
    pub own: DateTime<Utc>,
    /// The same time, on the monotonic clock.
    pub at: Instant,
    /// By how much it may be wrong: half of the time that the reply took, 5 s at most.
    pub uncertainty: Duration,
}

impl Store {
    /// # Errors
    /// When the server does not answer.
    pub async fn server_facts(&self) -> Result<ServerFacts, StoreError> {
        let hello = self.command(doc! { "hello": 1 }).await?;
        let build = self.command(doc! { "buildInfo": 1 }).await?;
        Ok(ServerFacts {
            version: build.get_str("version").unwrap_or("unknown").to_owned(),
            replica_set: hello.get_str("setName").ok().map(str::to_owned),
            is_router: is_router(&hello),
        })
    }

    /// Reads the server's clock.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn server_time(&self) -> Result<ServerTime, StoreError> {
        loop {
            let read = self.read_clock().await?;
            // A reply that took longer has arrived while this process stood still: it says nothing.
            if read.uncertainty <= OPERATION_DEADLINE / 2 {
                return Ok(read);
            }
        }
    }

    async fn read_clock(&self) -> Result<ServerTime, StoreError> {
        let asked_at = Instant::now();
        let hello = self.command(doc! { "hello": 1 }).await?;
        // This machine's clock may have been set since the request.
        let (own, uncertainty) = (clock::now(), asked_at.elapsed() / 2);
        // The server read its clock at some moment in between.
        let own = own - TimeDelta::from_std(uncertainty).unwrap_or_default();
        let time = hello.get_datetime("localTime").map_or(own, |time| time.to_chrono());
        Ok(ServerTime { time, own, at: asked_at + uncertainty, uncertainty })
    }
}

/// Whether the server that said `hello` is a router of a sharded cluster.
fn is_router(hello: &Document) -> bool {
    hello.get_str("msg").is_ok_and(|message| message == "isdbgrid")
}

/// Whether indexes are built by several servers together. A standalone server rejects `commitQuorum`.
pub(super) fn is_replicated(hello: &Document) -> bool {
    hello.contains_key("setName") || is_router(hello)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replica_sets_and_routers_build_indexes_together() {
        assert!(is_replicated(&doc! { "setName": "rs0", "isWritablePrimary": true }));
        assert!(is_replicated(&doc! { "msg": "isdbgrid", "isWritablePrimary": true }));
        assert!(!is_replicated(&doc! { "isWritablePrimary": true }));
    }
}
