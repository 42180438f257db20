//! The server itself: what kind it is, its clock, its indexes; and a document as it is, for people to look at.

use std::fmt;
use std::time::Duration;

use bson::{Bson, Document, RawDocumentBuf, doc};
use chrono::{DateTime, TimeDelta, Utc};
use mongodb::error::ErrorKind;

use crate::clock;

use super::{COMMAND_TIME_MAX, Collection, Store, StoreError, classify, milliseconds, sweep, within_deadline};

/// What `hello` and `buildInfo` tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerFacts {
    /// `"8.0.4"`
    pub version: String,
    /// The replica set's name.
    pub replica_set: Option<String>,
    /// Whether it is a router of a sharded cluster.
    pub is_router: bool,
}

impl Store {
    /// The document with this id.
    ///
    /// # Errors
    /// When the server does not answer, or refuses.
    pub async fn document(
        &self,
        collection: Collection,
        id: impl Into<Bson>,
    ) -> Result<Option<RawDocumentBuf>, StoreError> {
        Ok(self.find(collection, doc! { "_id": id.into() }, doc! {}, Some(1)).await?.pop())
    }

    /// What kind of server answers.
    ///
    /// # Errors
    /// When none does.
    pub async fn server_facts(&self) -> Result<ServerFacts, StoreError> {
        let hello = self.command(doc! { "hello": 1 }).await?;
        let build = self.command(doc! { "buildInfo": 1 }).await?;
        Ok(ServerFacts {
            version: build.get_str("version").unwrap_or("unknown").to_owned(),
            replica_set: hello.get_str("setName").ok().map(str::to_owned),
            is_router: is_router(&hello),
        })
    }

    /// The indexes that are missing, or that this user may not see.
    ///
    /// # Errors
    /// When the server does not answer; [`StoreError::Refused`] when there is one of that name with other keys.
    pub async fn missing_indexes(&self) -> Result<Vec<Index>, StoreError> {
        let existing = self.existing_indexes().await?;
        let mut missing = Vec::new();
        for index in sweep::indexes() {
            match existing
                .iter()
                .find(|(collection, found)| *collection == index.collection && name(found) == index.name())
            {
                None => missing.push(index),
                Some((_, found)) if has_same_keys(found, &index.specification) => {}
                Some(_) => {
                    let advice = "an index of that name exists with other keys; drop it and run `offramp init`";
                    return Err(StoreError::Refused(format!("the index {index}: {advice}")));
                }
            }
        }
        Ok(missing)
    }

    /// The indexes of earlier versions that nothing uses any more.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn superseded_indexes(&self) -> Result<Vec<Index>, StoreError> {
        let is_superseded = |(collection, found): &(Collection, Document)| {
            sweep::SUPERSEDED.iter().any(|(of, superseded)| of == collection && name(found) == *superseded)
        };
        let existing = self.existing_indexes().await?.into_iter().filter(is_superseded);
        Ok(existing.map(|(collection, specification)| Index { collection, specification }).collect())
    }

    /// Every index of our collections that is built, as far as this user may look.
    async fn existing_indexes(&self) -> Result<Vec<(Collection, Document)>, StoreError> {
        let mut indexes = Vec::new();
        for collection in Collection::ALL {
            let database = self.database.clone();
            // With `includeBuildUUIDs`, the server says which indexes are still being built.
            let command = doc! {
                "listIndexes": collection.as_str(),
                "includeBuildUUIDs": true,
                "maxTimeMS": milliseconds(COMMAND_TIME_MAX),
            };
            let reply = within_deadline(async move {
                match database.run_command(command).await {
                    Err(error) if is_nothing_to_list(&error) => Ok(Document::new()),
                    reply => reply,
                }
            });
            indexes.extend(
                first_batch(&reply.await?).filter(|index| is_built(index)).map(|index| (collection, index.clone())),
            );
        }
        Ok(indexes)
    }

    /// Builds an index, however long that takes.
    ///
    /// # Errors
    /// When the server does not answer, or refuses.
    pub async fn create_index(&self, index: &Index) -> Result<(), StoreError> {
        let hello = self.command(doc! { "hello": 1 }).await?;
        let mut command = doc! { "createIndexes": index.collection.as_str(), "indexes": [&index.specification] };
        if is_replicated(&hello) {
            // By default the build waits for every voting member, so one that hangs would hold it up without end.
            command.insert("commitQuorum", "majority");
        }
        self.long_command(command).await
    }

    /// Builds every index that is missing.
    ///
    /// # Errors
    /// When the server does not answer, or refuses.
    pub async fn create_indexes(&self) -> Result<(), StoreError> {
        for index in self.missing_indexes().await? {
            self.create_index(&index).await?;
        }
        Ok(())
    }

    /// Drops an index.
    ///
    /// # Errors
    /// When the server does not answer, or refuses.
    pub async fn drop_index(&self, index: &Index) -> Result<(), StoreError> {
        self.long_command(doc! { "dropIndexes": index.collection.as_str(), "index": index.name() }).await
    }

    /// How far the server is with building an index of a collection, in percent. None where it builds none, or does not say,
    /// or this user may not ask.
    pub async fn build_progress(&self, collection: Collection) -> Option<u64> {
        let admin = self.database.client().database("admin");
        let filter = doc! {
            "currentOp": true,
            "command.createIndexes": collection.as_str(),
            "command.$db": self.database.name(),
            "progress.total": { "$gt": 0 },
        };
        let reply = within_deadline(async move { admin.run_command(filter).await }).await.ok()?;
        let progress = reply.get_array("inprog").ok()?.first()?.as_document()?.get_document("progress").ok()?;
        let number = |field: &str| match progress.get(field)? {
            Bson::Int32(number) => u64::try_from(*number).ok(),
            Bson::Int64(number) => u64::try_from(*number).ok(),
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of documents")]
            Bson::Double(number) => Some(*number as u64),
            _ => None,
        };
        (number("done")?.min(number("total")?) * 100).checked_div(number("total")?)
    }

    /// Runs a command that may take hours. It is a task of its own: see [`within_deadline`].
    async fn long_command(&self, command: Document) -> Result<(), StoreError> {
        let database = self.database.clone();
        match tokio::spawn(async move { database.run_command(command).await }).await {
            Ok(result) => result.map(drop).map_err(|error| classify(&error)),
            Err(join) => Err(StoreError::Unavailable(format!("the operation was aborted: {join}"))),
        }
    }

    /// Compares this machine's clock with the server's.
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

/// An index, as `createIndexes` takes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Index {
    /// Where it is.
    pub collection: Collection,
    /// Its name, keys and options.
    pub specification: Document,
}

impl Index {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        name(&self.specification)
    }
}

impl fmt::Display for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.collection.as_str(), self.name())
    }
}

/// By how much this machine's clock differs from the server's, where that is too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockOffset(TimeDelta);

impl ClockOffset {
    /// The server read its clock at some moment between `before` and `after`, so half of that time is allowed for besides
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

/// Whether there is no such collection, or this user may not look. To build an index that exists does nothing, so who may build
/// indexes need not be allowed to list them.
fn is_nothing_to_list(error: &mongodb::error::Error) -> bool {
    /// Unauthorized, namespace not found.
    const CODES: [i32; 2] = [13, 26];
    matches!(error.kind.as_ref(), ErrorKind::Command(command) if CODES.contains(&command.code))
}

/// Whether the server that said `hello` is a router of a sharded cluster.
fn is_router(hello: &Document) -> bool {
    hello.get_str("msg").is_ok_and(|message| message == "isdbgrid")
}

/// Whether indexes are built by several servers together. A standalone server refuses `commitQuorum`.
fn is_replicated(hello: &Document) -> bool {
    hello.contains_key("setName") || is_router(hello)
}

fn first_batch(reply: &Document) -> impl Iterator<Item = &Document> {
    let batch = reply.get_document("cursor").and_then(|cursor| cursor.get_array("firstBatch"));
    batch.into_iter().flatten().filter_map(Bson::as_document)
}

fn is_built(index: &Document) -> bool {
    !index.contains_key("buildUUID")
}

fn name(document: &Document) -> &str {
    document.get_str("name").unwrap_or_default()
}

/// Whether two indexes have the same keys in the same order. The server gives the directions back as it pleases: `1` or `1.0`.
fn has_same_keys(one: &Document, other: &Document) -> bool {
    let direction = |value: &Bson| match value {
        Bson::Int32(number) => Some(f64::from(*number)),
        Bson::Double(number) => Some(*number),
        _ => None,
    };
    let keys = |index: &Document| -> Vec<(String, Option<f64>)> {
        let keys = index.get_document("key").cloned().unwrap_or_default();
        keys.iter().map(|(field, value)| (field.clone(), direction(value))).collect()
    };
    keys(one) == keys(other)
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

    #[test]
    fn directions_of_keys_may_be_any_number() {
        let ours = doc! { "key": { "a": 1, "b": 1 } };
        assert!(has_same_keys(&ours, &doc! { "key": { "a": 1.0, "b": 1 } }));
        assert!(!has_same_keys(&ours, &doc! { "key": { "b": 1, "a": 1 } }));
        assert!(!has_same_keys(&ours, &doc! { "key": { "a": 1, "b": -1 } }));
        assert!(!has_same_keys(&ours, &doc! { "key": { "a": 1 } }));
    }
}
