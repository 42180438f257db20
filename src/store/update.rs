//! `update` commands: packed, sent, and what the server says about them; empty writes, which wait for a majority.

use std::collections::HashMap;

use bson::{Bson, Document, RawArrayBuf, RawDocumentBuf, rawdoc};
use serde::Serialize;

use super::{Collection, Store, StoreError, TIME_EXCEEDED, WRITE_CONCERN_TIME_MAX, milliseconds};

/// How many bytes of statements one `update` command carries. A command is a document, which has at most 16 MiB.
pub(super) const STATEMENTS_BYTES_MAX: usize = 12 * 1024 * 1024;
/// How many empty writes are sent in one command.
const EMPTY_WRITES_MAX: usize = 256;
/// The id of no document: what an empty write that is about none names.
const NOBODY: &str = "offramp:nobody";
/// Codes of troubles that pass: host unreachable, not found or timed out, lock timeout, network timeout, shutdown in
/// progress, write conflict, no primary found, primary stepped down, time limit exceeded, socket error, not primary (4).
const TROUBLES: [i32; 15] = [6, 7, 24, 46, 89, 91, 112, 133, 189, 262, 9001, 10107, 11600, 11602, 13435];

impl Store {
    /// Many statements, on a majority of the servers before they are answered: one `update` command, or more where they are too
    /// large for one. Trouble with any of them is trouble with all.
    pub(super) async fn update_many(
        &self,
        collection: Collection,
        statements: impl IntoIterator<Item = RawDocumentBuf>,
    ) -> Result<Updated, StoreError> {
        let updated = self.update_each(collection, statements).await?;
        match updated.troubled.first() {
            Some(trouble) => Err(StoreError::Unavailable(trouble.message.clone())),
            None => Ok(updated),
        }
    }

    /// The same, telling which statements had trouble.
    pub(super) async fn update_each(
        &self,
        collection: Collection,
        statements: impl IntoIterator<Item = RawDocumentBuf>,
    ) -> Result<Updated, StoreError> {
        let mut updated = Updated { matched: 0, modified: 0, refused: Vec::new(), troubled: Vec::new() };
        let mut sent = 0;
        for (statements, count) in pack(statements) {
            let one = self.update_command(collection, statements).await?;
            let moved = |refusal: Refusal| Refusal { position: refusal.position + sent, ..refusal };
            updated.matched += one.matched;
            updated.modified += one.modified;
            updated.refused.extend(one.refused.into_iter().map(moved));
            updated.troubled.extend(one.troubled.into_iter().map(moved));
            sent += count;
        }
        Ok(updated)
    }

    async fn update_command(&self, collection: Collection, statements: RawArrayBuf) -> Result<Updated, StoreError> {
        let reply = self
            .raw_command(rawdoc! {
                "update": collection.as_str(),
                "updates": statements,
                "ordered": false,
                "writeConcern": { "w": "majority", "wtimeout": milliseconds(WRITE_CONCERN_TIME_MAX) },
            })
            .await?;
        if let Ok(error) = reply.get_document("writeConcernError") {
            let name = error.get_str("codeName").unwrap_or("no reason given");
            return Err(StoreError::Unavailable(format!("not on a majority of the servers ({name})")));
        }
        let matched = number(reply.get("n")).unwrap_or(0);
        let modified = number(reply.get("nModified")).unwrap_or(0);
        let errors: Vec<Refusal> = reply
            .get_array("writeErrors")
            .map(|errors| errors.iter().filter_map(Bson::as_document).filter_map(Refusal::read).collect())
            .unwrap_or_default();
        if errors.iter().any(|error| error.code == TIME_EXCEEDED) {
            return Err(StoreError::TimedOut);
        }
        // A router passes the troubles of a shard on as if they were the statements'.
        let (troubled, refused) = errors.into_iter().partition(|error| TROUBLES.contains(&error.code));
        Ok(Updated { matched, modified, refused, troubled })
    }

    /// Waits until what these documents were read as is on a majority of the servers: a command that was found done, or was
    /// rejected, for what another server may not know yet must not be acknowledged.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn wait_for_majority<'a>(
        &self,
        documents: impl IntoIterator<Item = &'a (Collection, String)>,
    ) -> Result<(), StoreError> {
        let mut statements: HashMap<Collection, Vec<RawDocumentBuf>> = HashMap::new();
        for (collection, id) in documents {
            statements.entry(*collection).or_default().push(empty_write(id));
        }
        for (collection, statements) in statements {
            for statements in statements.chunks(EMPTY_WRITES_MAX) {
                self.update_many(collection, statements.iter().cloned()).await?;
            }
        }
        Ok(())
    }

    /// Finds out whether a majority of the servers takes writes.
    ///
    /// # Errors
    /// When it does not.
    pub async fn check_majority(&self) -> Result<(), StoreError> {
        self.update_many(Collection::Subscriptions, [empty_write(NOBODY)]).await.map(drop)
    }

    /// Finds out whether a majority of the servers takes writes to the collections that decisions are written to.
    ///
    /// # Errors
    /// When it does not.
    pub async fn check_writes(&self) -> Result<(), StoreError> {
        for collection in [Collection::Subscriptions, Collection::Accounts] {
            self.update_many(collection, [empty_write(NOBODY)]).await?;
        }
        Ok(())
    }
}

/// Statements as `update` commands carry them, with how many each has.
fn pack(statements: impl IntoIterator<Item = RawDocumentBuf>) -> Vec<(RawArrayBuf, usize)> {
    let mut packed: Vec<(RawArrayBuf, usize)> = Vec::new();
    for statement in statements {
        let fits = |(together, _): &&mut (RawArrayBuf, usize)| {
            together.as_bytes().len() + statement.as_bytes().len() <= STATEMENTS_BYTES_MAX
        };
        match packed.last_mut().filter(fits) {
            Some((together, count)) => {
                together.push(statement);
                *count += 1;
            }
            None => packed.push((RawArrayBuf::from_iter([statement]), 1)),
        }
    }
    packed
}

/// A write that changes nothing, because no version is negative. It waits, as any other, for the newest change that its
/// server knows. It names a document, so that a router asks the shard that has it; a condition that nothing can meet, such
/// as an empty `$in`, it may send to any shard.
fn empty_write(id: &str) -> RawDocumentBuf {
    rawdoc! { "q": { "_id": id, "version": -1_i64 }, "u": { "$set": { "version": 0 } } }
}

/// A statement that was refused.
pub(super) struct Refusal {
    /// Which, from 0.
    pub(super) position: usize,
    /// The server's code for the reason.
    pub(super) code: i32,
    /// Why.
    pub(super) message: String,
}

impl Refusal {
    fn read(error: &Document) -> Option<Self> {
        Some(Self {
            position: number(error.get("index"))?,
            code: error.get_i32("code").unwrap_or(0),
            message: error.get_str("errmsg").unwrap_or("no message").to_owned(),
        })
    }
}

/// The reply to an `update` command.
pub(super) struct Updated {
    /// How many documents the statements found.
    pub(super) matched: usize,
    /// How many of them they changed.
    pub(super) modified: usize,
    /// Which statements the server refused, and why.
    pub(super) refused: Vec<Refusal>,
    /// Which statements could not be tried now, and why.
    pub(super) troubled: Vec<Refusal>,
}

fn number(value: Option<&Bson>) -> Option<usize> {
    match value? {
        Bson::Int32(number) => usize::try_from(*number).ok(),
        Bson::Int64(number) => usize::try_from(*number).ok(),
        _ => None,
    }
}

/// A value as it is sent: written once, and from there on only copied.
pub(super) fn raw<T: Serialize>(value: &T) -> Result<RawDocumentBuf, StoreError> {
    bson::serialize_to_raw_document_buf(value).map_err(|error| not_bson(&error))
}

pub(super) fn bson<T: Serialize + ?Sized>(value: &T) -> Result<Bson, StoreError> {
    bson::serialize_to_bson(value).map_err(|error| not_bson(&error))
}

pub(super) fn not_bson(error: &bson::error::Error) -> StoreError {
    StoreError::Refused(format!("not BSON: {error}"))
}

pub(super) fn raw_array<T: Serialize>(items: &[T]) -> Result<RawArrayBuf, StoreError> {
    items.iter().map(raw).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_are_packed_by_bytes() {
        #[track_caller]
        fn check(mebibytes: &[usize], expected: &[usize]) {
            let statements = mebibytes.iter().map(|size| rawdoc! { "q": {}, "u": "x".repeat(size * 1024 * 1024) });
            let packed = pack(statements);
            assert_eq!(packed.iter().map(|(_, count)| *count).collect::<Vec<_>>(), expected);
            assert!(packed.iter().all(|(together, count)| together.into_iter().count() == *count));
        }
        check(&[], &[]);
        check(&[0, 0, 0], &[3]);
        check(&[5, 5, 5, 1], &[2, 2]);
        // The server refuses it, and that is its own affair.
        check(&[1, 17, 1], &[1, 1, 1]);
    }
}
