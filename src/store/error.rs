//! Errors of the database: what is retried, and what is not.

use std::time::Duration;

use mongodb::error::{CommandError, ErrorKind};

use crate::advice;

/// Why an operation failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The database is away, or whether it has done the operation is unknown. Nobody's failure: try again.
    #[error("MongoDB does not answer: {0}")]
    Unavailable(String),
    /// The server was too slow with this operation, and ended it. How much of it is done is unknown: try again.
    #[error("MongoDB ended an operation that took more than {} s", COMMAND_TIME_MAX.as_secs())]
    TimedOut,
    /// The database has refused the operation; the same again would be refused again.
    #[error("MongoDB refused: {0}")]
    Permanent(String),
}

impl StoreError {
    /// Why, for sentences that name MongoDB already.
    #[must_use]
    pub fn reason(&self) -> String {
        match self {
            Self::Unavailable(reason) | Self::Permanent(reason) => reason.clone(),
            Self::TimedOut => self.to_string(),
        }
    }
}

/// How long the server may work on one command, before it ends it by itself: below [`OPERATION_DEADLINE`], so that nothing
/// goes on that nobody waits for.
pub(in crate::store) const COMMAND_TIME_MAX: Duration = Duration::from_secs(9);

/// The code of an operation that took longer than its `maxTimeMS`.
pub(in crate::store) const TIME_EXCEEDED: i32 = 50;

/// Whether the same operation could succeed later.
pub(super) fn classify(error: &mongodb::error::Error) -> StoreError {
    /// Codes with which a healthy server refuses an operation for what it is: bad value, failed to parse, type mismatch,
    /// index options conflict, index key specs conflict, document validation failure, and the two codes of an object that
    /// is too large.
    const REFUSALS: [i32; 8] = [2, 9, 14, 85, 86, 121, 10334, 17419];
    match error.kind.as_ref() {
        ErrorKind::Command(command) if command.code == TIME_EXCEEDED => StoreError::TimedOut,
        ErrorKind::Command(command) if REFUSALS.contains(&command.code) => StoreError::Permanent(told(command)),
        ErrorKind::Command(command) => StoreError::Unavailable(told(command)),
        // Has the server's words in it, too.
        ErrorKind::Write(_) => StoreError::Unavailable("it did not take a write".to_owned()),
        kind @ (ErrorKind::Bson(_) | ErrorKind::InvalidArgument { .. }) => StoreError::Permanent(kind.to_string()),
        kind => {
            let is_handshake = matches!(kind, ErrorKind::ServerSelection { .. });
            // The kind alone: the error as a whole has the server's reply in it.
            let reason = plain(&kind.to_string());
            StoreError::Unavailable(advice::append(&reason, advice::tls(&reason, is_handshake)))
        }
    }
}

/// What may be told of a server's refusal. Not its own words, but for an index: they may quote the whole command ("not
/// authorized to execute command …"), with everything that is to be written about somebody.
fn told(refusal: &CommandError) -> String {
    /// Index options conflict, index key specs conflict.
    const OF_INDEXES: [i32; 2] = [85, 86];
    let CommandError { code, code_name, message, .. } = refusal;
    match code {
        13 => format!("the user of OFFRAMP_MONGODB_URL lacks a right ({code_name}, code {code})"),
        _ if OF_INDEXES.contains(code) => format!("{message} ({code_name}, code {code})"),
        _ => format!("{code_name}, code {code}"),
    }
}

/// The driver's words, without the lists of labels, the server's reply, and what is not there, that it puts behind each
/// error.
fn plain(error: &str) -> String {
    let text = without(error, ", labels: {", '}');
    let text = without(&text, ", server response: Some(", ')');
    text.replace(", source: None", "").replace(", server response: None", "")
}

/// A text without what is between `begin` and `end`, and these two, wherever that is.
fn without(text: &str, begin: &str, end: char) -> String {
    let mut parts = text.split(begin);
    let mut kept = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        kept.push_str(part.split_once(end).map_or("", |(_, rest)| rest));
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_driver_adds_to_its_errors_is_left_out() {
        let error = "Kind: No servers. Error: Kind: I/O error: refused, labels: {\"A\", \"B\"}, source: None, server response: \
                     None } ] }, labels: {}, source: None, server response: None";
        assert_eq!(plain(error), "Kind: No servers. Error: Kind: I/O error: refused } ] }");
        let error =
            "Error: Kind: away, labels: {}, source: None, server response: Some(RawDocumentBuf { data: \"16\" }) }";
        assert_eq!(plain(error), "Error: Kind: away }");
        assert_eq!(plain("as it is"), "as it is");
    }

    #[track_caller]
    fn check(code: i32, code_name: &str, message: &str, expected: &StoreError) {
        let refusal = serde_json::json!({ "code": code, "codeName": code_name, "errmsg": message });
        let refusal: CommandError = serde_json::from_value(refusal).unwrap();
        assert_eq!(&classify(&ErrorKind::Command(refusal).into()), expected);
    }

    #[test]
    fn of_what_the_server_says_nothing_is_told_that_may_quote_a_document() {
        let quoting = "not authorized on offramp to execute command { update: \"accounts\", updates: [ { q: { _id: \"acc\" }, \
                       u: { $push: { outbox: { $each: [ { mail: { to: { email: \"ada@example.org\" } } } ] } } } } ] }";
        let lacks = "the user of OFFRAMP_MONGODB_URL lacks a right (Unauthorized, code 13)";
        check(13, "Unauthorized", quoting, &StoreError::Unavailable(lacks.to_owned()));
        check(166, "NotOnView", quoting, &StoreError::Unavailable("NotOnView, code 166".to_owned()));
        check(50, "MaxTimeMSExpired", quoting, &StoreError::TimedOut);
        check(2, "BadValue", quoting, &StoreError::Permanent("BadValue, code 2".to_owned()));
        let index = "Index already exists with a different name: due";
        let conflict = format!("{index} (IndexOptionsConflict, code 85)");
        check(85, "IndexOptionsConflict", index, &StoreError::Permanent(conflict));
    }
}
