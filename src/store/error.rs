//! Errors of the database: what is retried, and what is not.

use std::time::Duration;

use mongodb::error::{CommandError, ErrorKind};

use crate::tls::TlsFault;

/// Why an operation failed. Each variant leads to one reaction.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The database is unavailable, or it is unknown whether it performed the operation. Retry: no command is at fault.
    #[error("MongoDB does not answer: {0}")]
    Unavailable(String),
    /// The server ended the operation because it took too long. How much of it was performed is unknown. Retry.
    #[error("MongoDB ended an operation that took more than {} s", COMMAND_TIME_MAX.as_secs())]
    TimedOut,
    /// The database rejects the operation, and would reject it again. Do not retry.
    #[error("MongoDB refused: {0}")]
    Permanent(String),
}

impl StoreError {
    /// The reason, for sentences that already name MongoDB.
    #[must_use]
    pub fn reason(&self) -> String {
        match self {
            Self::Unavailable(reason) | Self::Permanent(reason) => reason.clone(),
            Self::TimedOut => self.to_string(),
        }
    }
}

/// How long the server may work on one command before it ends it by itself: less than the deadline of an operation, so that the
/// server never works on an abandoned command.
pub(in crate::store) const COMMAND_TIME_MAX: Duration = Duration::from_secs(9);

/// The error code of an operation that exceeded its `maxTimeMS`.
pub(in crate::store) const TIME_EXCEEDED: i32 = 50;

/// Decides whether the same operation could succeed later.
pub(super) fn classify(error: &mongodb::error::Error) -> StoreError {
    /// Codes with which a healthy server rejects the operation itself: bad value, failed to parse, type mismatch,
    /// index options conflict, index key specs conflict, document validation failure, and the two codes of an object that
    /// is too large.
    const PERMANENT_CODES: [i32; 8] = [2, 9, 14, 85, 86, 121, 10334, 17419];
    match error.kind.as_ref() {
        ErrorKind::Command(command) if command.code == TIME_EXCEEDED => StoreError::TimedOut,
        ErrorKind::Command(command) if PERMANENT_CODES.contains(&command.code) => {
            StoreError::Permanent(describe(command))
        }
        ErrorKind::Command(command) => StoreError::Unavailable(describe(command)),
        // Its text contains the server's message.
        ErrorKind::Write(_) => StoreError::Unavailable("it did not take a write".to_owned()),
        kind @ (ErrorKind::Bson(_) | ErrorKind::InvalidArgument { .. }) => StoreError::Permanent(kind.to_string()),
        kind => {
            let is_handshake = matches!(kind, ErrorKind::ServerSelection { .. });
            // The kind alone: the whole error contains the server's reply.
            let reason = plain(&kind.to_string());
            StoreError::Unavailable(TlsFault::explain(reason, is_handshake))
        }
    }
}

/// The error code and its name. Never the server's message, except about an index: it may quote the whole command ("not
/// authorized to execute command …"), and with it personal data.
fn describe(rejection: &CommandError) -> String {
    /// Index options conflict, index key specs conflict.
    const OF_INDEXES: [i32; 2] = [85, 86];
    let CommandError { code, code_name, message, .. } = rejection;
    match code {
        13 => format!("the database user lacks a right ({code_name}, code {code})"),
        _ if OF_INDEXES.contains(code) => format!("{message} ({code_name}, code {code})"),
        _ => format!("{code_name}, code {code}"),
    }
}

/// The driver's message without the labels, the server's reply and the absent values that it appends to each error.
fn plain(error: &str) -> String {
    let text = without(error, ", labels: {", '}');
    let text = without(&text, ", server response: Some(", ')');
    text.replace(", source: None", "").replace(", server response: None", "")
}

/// `error` without each part from `begin` to `end`, inclusive.
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
    fn labels_and_replies_are_removed_from_driver_errors() {
        let error = "Kind: No servers. Error: Kind: I/O error: refused, labels: {\"A\", \"B\"}, source: None, server response: \
                     None } ] }, labels: {}, source: None, server response: None";
        assert_eq!(plain(error), "Kind: No servers. Error: Kind: I/O error: refused } ] }");
        let error = "Error: Kind: unavailable, labels: {}, source: None, server response: Some(RawDocumentBuf { data: \"16\" }) }";
        assert_eq!(plain(error), "Error: Kind: unavailable }");
        assert_eq!(plain("as it is"), "as it is");
    }

    #[track_caller]
    fn check(code: i32, code_name: &str, message: &str, expected: &StoreError) {
        let refusal = serde_json::json!({ "code": code, "codeName": code_name, "errmsg": message });
        let refusal: CommandError = serde_json::from_value(refusal).unwrap();
        assert_eq!(&classify(&ErrorKind::Command(refusal).into()), expected);
    }

    #[test]
    fn server_errors_never_quote_documents() {
        let quoting = "not authorized on offramp to execute command { update: \"accounts\", updates: [ { q: { _id: \"acc\" }, \
                       u: { $push: { outbox: { $each: [ { mail: { to: { email: \"ada@example.org\" } } } ] } } } } ] }";
        let lacks = "the database user lacks a right (Unauthorized, code 13)";
        check(13, "Unauthorized", quoting, &StoreError::Unavailable(lacks.to_owned()));
        check(166, "NotOnView", quoting, &StoreError::Unavailable("NotOnView, code 166".to_owned()));
        check(50, "MaxTimeMSExpired", quoting, &StoreError::TimedOut);
        check(2, "BadValue", quoting, &StoreError::Permanent("BadValue, code 2".to_owned()));
        let index = "Index already exists with a different name: due";
        let conflict = format!("{index} (IndexOptionsConflict, code 85)");
        check(85, "IndexOptionsConflict", index, &StoreError::Permanent(conflict));
    }
}
