//! `Store::update_many`, the primitive of every write: `update` commands, packed and sent, and the reply to them.

use bson::{Bson, Document, RawArrayBuf, RawDocumentBuf, rawdoc};

use super::client::{Store, WRITE_CONCERN_TIME_MAX, milliseconds};
use super::collection::Collection;
use super::error::{StoreError, TIME_EXCEEDED};

/// The size of the statements of one `update` command, in bytes. A command is a document, and so at most 16 MiB.
pub(super) const STATEMENTS_BYTES_MAX: usize = 12 * 1024 * 1024;

/// Codes of transient errors: host unreachable, not found or timed out, lock timeout, network timeout, shutdown in
/// progress, write conflict, no primary found, primary stepped down, time limit exceeded, socket error, not primary (4).
const TRANSIENT_CODES: [i32; 15] = [6, 7, 24, 46, 89, 91, 112, 133, 189, 262, 9001, 10107, 11600, 11602, 13435];

impl Store {
    /// Runs statements with write concern `majority`: in one `update` command, or in more if they are too large for one. A transient
    /// error of any statement fails the call.
    pub(in crate::store) async fn update_many(
        &self,
        collection: Collection,
        statements: impl IntoIterator<Item = RawDocumentBuf>,
    ) -> Result<UpdateReply, StoreError> {
        let updated = self.update_each(collection, statements).await?;
        match updated.transient.first() {
            Some(error) => Err(StoreError::Unavailable(error.message.clone())),
            None => Ok(updated),
        }
    }

    /// Like `update_many`, but returns which statements had transient errors.
    pub(in crate::store) async fn update_each(
        &self,
        collection: Collection,
        statements: impl IntoIterator<Item = RawDocumentBuf>,
    ) -> Result<UpdateReply, StoreError> {
        let mut updated = UpdateReply { matched: 0, modified: 0, rejected: Vec::new(), transient: Vec::new() };
        let mut sent = 0;
        for (statements, count) in pack(statements) {
            let one = self.update_command(collection, statements).await?;
            let moved = |refusal: WriteError| WriteError { position: refusal.position + sent, ..refusal };
            updated.matched += one.matched;
            updated.modified += one.modified;
            updated.rejected.extend(one.rejected.into_iter().map(moved));
            updated.transient.extend(one.transient.into_iter().map(moved));
            sent += count;
        }
        Ok(updated)
    }

    async fn update_command(&self, collection: Collection, statements: RawArrayBuf) -> Result<UpdateReply, StoreError> {
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
        let errors: Vec<WriteError> = reply
            .get_array("writeErrors")
            .map(|errors| errors.iter().filter_map(Bson::as_document).filter_map(WriteError::read).collect())
            .unwrap_or_default();
        if errors.iter().any(|error| error.code == TIME_EXCEEDED) {
            return Err(StoreError::TimedOut);
        }
        // A router reports a shard's transient errors as errors of the statements.
        let (transient, rejected) = errors.into_iter().partition(|error| TRANSIENT_CODES.contains(&error.code));
        Ok(UpdateReply { matched, modified, rejected, transient })
    }
}

/// Statements in chunks that fit an `update` command, each with its number of statements.
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

/// The reply to an `update` command.
pub(in crate::store) struct UpdateReply {
    /// The number of documents that the statements matched.
    pub(in crate::store) matched: usize,
    /// The number of documents that they changed.
    pub(in crate::store) modified: usize,
    /// Statements that the server rejected.
    pub(in crate::store) rejected: Vec<WriteError>,
    /// Statements to be retried.
    pub(in crate::store) transient: Vec<WriteError>,
}

/// The error of one statement.
pub(in crate::store) struct WriteError {
    /// The statement's index.
    pub(in crate::store) position: usize,
    /// The server's error code.
    pub(in crate::store) code: i32,
    /// The server's message. It may quote the document.
    pub(in crate::store) message: String,
}

impl WriteError {
    fn read(error: &Document) -> Option<Self> {
        Some(Self {
            position: number(error.get("index"))?,
            code: error.get_i32("code").unwrap_or(0),
            message: error.get_str("errmsg").unwrap_or("no message").to_owned(),
        })
    }
}

fn number(value: Option<&Bson>) -> Option<usize> {
    match value? {
        Bson::Int32(number) => usize::try_from(*number).ok(),
        Bson::Int64(number) => usize::try_from(*number).ok(),
        _ => None,
    }
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
        // Too large: the server rejects it.
        check(&[1, 17, 1], &[1, 1, 1]);
    }
}
