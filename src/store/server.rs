//! The server itself: its version, its kind, its clock.

use std::fmt;
use std::time::Duration;

use bson::{Document, doc};
use chrono::{DateTime, TimeDelta, Utc};

use crate::clock;

use super::client::Store;
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

/// The difference between this machine's clock and the server's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockOffset(TimeDelta);

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

    /// Compares this machine's clock with the server's. `None` if they differ by no more than `tolerance`.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn clock_offset(&self, tolerance: Duration) -> Result<Option<ClockOffset>, StoreError> {
        let before = clock::now();
        let hello = self.command(doc! { "hello": 1 }).await?;
        let after = clock::now();
        let server = hello.get_datetime("localTime").ok().map(|time| time.to_chrono());
        Ok(server.and_then(|server| ClockOffset::measure(before, server, after, tolerance)))
    }
}

impl ClockOffset {
    /// The server read its clock at some moment between `before` and `after`, so half of that time is added to
    /// the tolerance.
    fn measure(
        before: DateTime<Utc>,
        server: DateTime<Utc>,
        after: DateTime<Utc>,
        tolerance: Duration,
    ) -> Option<Self> {
        let half_way = (after - before) / 2;
        let offset = before + half_way - server;
        let tolerance = TimeDelta::from_std(tolerance).unwrap_or(TimeDelta::MAX);
        (offset.abs() > tolerance.checked_add(&half_way).unwrap_or(tolerance)).then_some(Self(offset))
    }
}

impl fmt::Display for ClockOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = if self.0 < TimeDelta::zero() { "behind" } else { "ahead of" };
        write!(f, "this machine's clock is {} s {side} MongoDB's; correct it", self.0.abs().num_seconds())
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
    fn clocks_differ_beyond_tolerance_and_half_the_round_trip() {
        #[track_caller]
        fn check(before: i64, server: i64, after: i64, expected: Option<&str>) {
            let at = |second: i64| DateTime::from_timestamp(1_800_000_000 + second, 0).unwrap();
            let offset = ClockOffset::measure(at(before), at(server), at(after), Duration::from_secs(45));
            assert_eq!(offset.map(|offset| offset.to_string()).as_deref(), expected);
        }
        check(0, 0, 0, None);
        check(0, 45, 0, None);
        check(0, -45, 0, None);
        check(0, 46, 0, Some("this machine's clock is 46 s behind MongoDB's; correct it"));
        check(0, -62, 0, Some("this machine's clock is 62 s ahead of MongoDB's; correct it"));
        // The answer took 10 s: the server's clock may have been read at any moment of these.
        check(0, 55, 10, None);
        check(0, 56, 10, Some("this machine's clock is 51 s behind MongoDB's; correct it"));
        check(0, -45, 10, None);
        check(0, -46, 10, Some("this machine's clock is 51 s ahead of MongoDB's; correct it"));
    }

    #[test]
    fn replica_sets_and_routers_build_indexes_together() {
        assert!(is_replicated(&doc! { "setName": "rs0", "isWritablePrimary": true }));
        assert!(is_replicated(&doc! { "msg": "isdbgrid", "isWritablePrimary": true }));
        assert!(!is_replicated(&doc! { "isWritablePrimary": true }));
    }
}
