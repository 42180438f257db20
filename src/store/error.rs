//! Errors of the database: what is retried, and what is not.

use std::time::Duration;

use mongodb::error::{CommandError, ErrorKind};

use super::collection::{Collection, SUPPORT_COLLECTIONS};
use crate::tls::TlsFault;

/// Why an operation failed. Each variant leads to one reaction.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The database is unavailable, or it is unknown whether it performed the operation. Retry: no command is at fault.
    #[error("MongoDB does not answer: {0}")]
    Unavailable(String),
    /// The database answers and denies access: the login is wrong, or a right is missing. Retry: an administrator may change that.
    #[error("MongoDB denies access: {0}")]
    Denied(String),
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
            Self::Unavailable(reason) | Self::Denied(reason) | Self::Permanent(reason) => reason.clone(),
            Self::TimedOut => self.to_string(),
        }
    }
}

/// How long the server may work on one command before it ends it by itself: less than the deadline of an operation, so that the
/// server never works on an abandoned command.
pub(in crate::store) const COMMAND_TIME_MAX: Duration = Duration::from_secs(9);

/// The error code of an operation that exceeded its `maxTimeMS`.
pub(in crate::store) const TIME_EXCEEDED: i32 = 50;

/// The error code of an operation for which the user lacks a right.
pub(in crate::store) const UNAUTHORIZED: i32 = 13;

/// The server rejects the user, the password or the way of logging in.
const LOGIN_REJECTED: &str =
    "the login failed: see the user, the password and authSource in the URL; passwords are percent-encoded there";

/// Decides whether the same operation could succeed later.
pub(super) fn classify(error: &mongodb::error::Error) -> StoreError {
    /// Codes with which a healthy server rejects the operation itself: bad value, failed to parse, type mismatch,
    /// index options conflict, index key specs conflict, document validation failure, and the two codes of an object that
    /// is too large.
    const PERMANENT_CODES: [i32; 8] = [2, 9, 14, 85, 86, 121, 10334, 17419];
    /// Unauthorized, authentication failed.
    const DENIED_CODES: [i32; 2] = [UNAUTHORIZED, 18];
    match error.kind.as_ref() {
        ErrorKind::Command(command) if command.code == TIME_EXCEEDED => StoreError::TimedOut,
        ErrorKind::Command(command) if PERMANENT_CODES.contains(&command.code) => {
            StoreError::Permanent(describe(command))
        }
        ErrorKind::Command(command) if DENIED_CODES.contains(&command.code) => StoreError::Denied(denial(command)),
        ErrorKind::Command(command) => StoreError::Unavailable(describe(command)),
        ErrorKind::Authentication { .. } => StoreError::Denied(LOGIN_REJECTED.to_owned()),
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
        _ if OF_INDEXES.contains(code) => format!("{message} ({code_name}, code {code})"),
        _ => format!("{code_name}, code {code}"),
    }
}

/// Which right the user lacks. Of the server's message, only the name of the command and of the collection are used, where they are
/// known ones: the rest may quote documents.
fn denial(rejection: &CommandError) -> String {
    if rejection.code != UNAUTHORIZED {
        return LOGIN_REJECTED.to_owned();
    }
    let end = format!("({}, code {})", rejection.code_name, rejection.code);
    if rejection.message.contains("requires authentication") {
        return format!("the server requires a login, and the URL has no user {end}");
    }
    let command = rejection.message.split_once("to execute command { ").map_or("", |(_, command)| command);
    let right = COMMAND_ACTIONS.iter().find_map(|(name, action)| {
        let collection = command.strip_prefix(name)?.strip_prefix(": \"")?.split('"').next()?;
        let mut known = Collection::ALL.iter().map(|known| known.as_str()).chain(SUPPORT_COLLECTIONS);
        let collection = known.find(|known| *known == collection)?;
        Some(format!("the database user lacks the right `{action}` on `{collection}` {end}"))
    });
    right.unwrap_or_else(|| format!("the database user lacks a right {end}"))
}

/// The commands that are sent, and the action that MongoDB requires for each.
const COMMAND_ACTIONS: [(&str, &str); 8] = [
    ("find", "find"),
    ("distinct", "find"),
    ("insert", "insert"),
    ("update", "update"),
    ("delete", "remove"),
    ("createIndexes", "createIndex"),
    ("dropIndexes", "dropIndex"),
    ("listIndexes", "listIndexes"),
];

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
        let denied = |reason: &str| StoreError::Denied(format!("{reason} (Unauthorized, code 13)"));
        check(13, "Unauthorized", quoting, &denied("the database user lacks the right `update` on `accounts`"));
        let other = quoting.replace("update: \"accounts\"", "update: \"people\"");
        check(13, "Unauthorized", &other, &denied("the database user lacks a right"));
        let login = "command find requires authentication";
        check(13, "Unauthorized", login, &denied("the server requires a login, and the URL has no user"));
        check(166, "NotOnView", quoting, &StoreError::Unavailable("NotOnView, code 166".to_owned()));
        check(50, "MaxTimeMSExpired", quoting, &StoreError::TimedOut);
        check(2, "BadValue", quoting, &StoreError::Permanent("BadValue, code 2".to_owned()));
        let index = "Index already exists with a different name: due";
        let conflict = format!("{index} (IndexOptionsConflict, code 85)");
        check(85, "IndexOptionsConflict", index, &StoreError::Permanent(conflict));
    }
}
