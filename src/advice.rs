//! Which setting to change for which fault.
//!
//! Adapters report facts in types of their own. This module turns them into a sentence for an operator, and so does the
//! command line: nothing else names a setting or a subcommand.

use std::fmt::Display;
use std::io;

use strum::IntoEnumIterator;

use crate::amqp::{DeadLettersError, PublishError, TopologyError};
use crate::tls::TlsFault;
use offramp_mail::{LoginProblem, MailConfigError, SendError, SenderProblem};

/// What an operator can do about emails and events that are kept for them.
pub const KEPT_ENTRIES: &str = "see `offramp outbox list`";
/// What an operator can do about missing indexes.
pub const MISSING_INDEXES: &str = "`offramp init` builds them";

/// What an operator can do about missing rights.
pub const RIGHTS: &str = "docs/operate/rights.md has the commands that grant what a worker needs";

/// What an operator can do where something cannot be recorded for support staff.
pub const SUPPORT_RECORDS: &str =
    "docs/operate/rights.md has the right to insert into that collection; `offramp init` builds its index";

/// What an operator can do about objects at the broker that are not as they should be.
#[must_use]
pub fn topology_error(error: &TopologyError) -> Option<&'static str> {
    match error {
        TopologyError::Different { .. } => {
            Some("delete it once it is empty and run `offramp init` again, or choose another OFFRAMP_PREFIX")
        }
        TopologyError::Forbidden { .. } => Some("run `offramp init` as a user who may"),
        TopologyError::Name(_) => Some("choose a shorter OFFRAMP_PREFIX"),
        TopologyError::Broker(_) => None,
    }
}

/// What an operator can do when dead letters cannot be read or changed. None is lost.
#[must_use]
pub fn dead_letters_error(error: &DeadLettersError) -> Option<&'static str> {
    match error {
        DeadLettersError::Busy => Some(
            "another `offramp dead-letters` is at work: try again when it is done; if its machine is gone, the broker \
             notices within half a minute",
        ),
        DeadLettersError::Missing(_) => Some("is OFFRAMP_PREFIX the worker's? `offramp init` declares the queue"),
        DeadLettersError::ConnectionLost(_) => {
            Some("the remaining dead letters are unchanged; run the same command again to continue")
        }
        DeadLettersError::Broker(_) => None,
    }
}

/// What an operator can do about dead letters that could not be sent back.
#[must_use]
pub fn replay_error(error: &PublishError) -> Option<&'static str> {
    match error {
        PublishError::Unroutable => Some("its work queue is missing: `offramp init` declares it"),
        PublishError::Unavailable(_) => {
            Some("some of them may be in both queues now, which does no harm; replay again to continue")
        }
        PublishError::Nacked(_) => None,
    }
}

/// What an operator can do about an address that the worker cannot listen on.
#[must_use]
pub fn listen_error(error: &io::Error) -> Option<&'static str> {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            Some("another program has this port, such as another worker: choose another, or 0 for any free one")
        }
        io::ErrorKind::AddrNotAvailable => Some("no network interface has this address; 0.0.0.0 listens on all"),
        io::ErrorKind::PermissionDenied => {
            Some("ports below 1024 need rights that a worker should not have: choose another")
        }
        _ => None,
    }
}

/// Appends advice to the text of an error, in parentheses.
#[must_use]
pub fn append(error: impl Display, advice: Option<&str>) -> String {
    match advice {
        Some(advice) => format!("{error} ({advice})"),
        None => error.to_string(),
    }
}

/// What an operator can do about an email that was not sent.
#[must_use]
pub fn send_error(error: &SendError) -> Option<&'static str> {
    match error {
        SendError::Sender { problem, .. } => Some(sender_problem(*problem)),
        SendError::Unavailable(cause) if cause.in_tls_handshake() => {
            TlsFault::classify(cause.brief(), true).map(tls_fault)
        }
        SendError::Permanent(_)
        | SendError::Transient(_)
        | SendError::Throttled(_)
        | SendError::Unavailable(_)
        | SendError::HeldBack(_)
        | SendError::InDoubt(_) => None,
    }
}

/// What an operator can do about a mail server that rejects this worker.
#[must_use]
pub fn sender_problem(problem: SenderProblem) -> &'static str {
    match problem {
        SenderProblem::EhloName => "it rejects the name in EHLO: set OFFRAMP_SMTP_NAME",
        SenderProblem::EncryptionRequired => "it requires encryption: add ?tls=required to OFFRAMP_SMTP_URL",
        SenderProblem::Login => {
            "it rejects the login: see the user and the password in OFFRAMP_SMTP_URL, or OFFRAMP_SMTP_TOKEN_FILE"
        }
        SenderProblem::SizeLimit => "an email exceeds its size limit: raise that limit",
        SenderProblem::SenderAddress => "it rejects the sender address: see OFFRAMP_MAIL_FROM",
        SenderProblem::Quota => "a quota is exhausted: see OFFRAMP_MAIL_PER_SECOND and the provider's limits",
        SenderProblem::Relay => {
            "it does not relay for this worker: allow this host there, or add a user to OFFRAMP_SMTP_URL"
        }
        SenderProblem::Other => "ask the operator of the mail server why it rejects this worker's emails",
    }
}

/// What an operator can do about settings for emails that cannot be used.
#[must_use]
pub fn mail_config_error(error: &MailConfigError) -> Option<&'static str> {
    match error {
        MailConfigError::Login(LoginProblem::SecretMissing) => {
            Some("add the password to OFFRAMP_SMTP_URL, or set OFFRAMP_SMTP_TOKEN_FILE")
        }
        MailConfigError::Login(LoginProblem::UserMissing) => Some("add the user to OFFRAMP_SMTP_URL: smtp://user@host"),
        MailConfigError::Login(LoginProblem::TwoSecrets) => {
            Some("remove the password from OFFRAMP_SMTP_URL, or unset OFFRAMP_SMTP_TOKEN_FILE")
        }
        MailConfigError::Url(_) | MailConfigError::Directory { .. } => None,
    }
}

/// What an operator can do about an error whose text names a fault of TLS. Errors of several addresses are one text, hence no type.
#[must_use]
pub fn tls(error: &str) -> Option<&'static str> {
    match TlsFault::iter().find(|fault| error.contains(fault.as_str()))? {
        TlsFault::UntrustedServer => Some("OFFRAMP_TLS_CA names a file of trusted authorities"),
        TlsFault::ClientRejected => Some("OFFRAMP_TLS_CERTIFICATE names the file of our certificate and its key"),
        TlsFault::WrongServerName | TlsFault::ExpiredServer | TlsFault::NotTls => None,
    }
}

/// The same for a fault that the error's text does not name.
fn tls_fault(fault: TlsFault) -> &'static str {
    match fault {
        TlsFault::UntrustedServer => {
            "no trusted authority signed the server's certificate; OFFRAMP_TLS_CA names a file of trusted authorities"
        }
        TlsFault::ClientRejected => {
            "the server may require a client certificate, or another one; OFFRAMP_TLS_CERTIFICATE names the file of ours"
        }
        TlsFault::WrongServerName | TlsFault::ExpiredServer | TlsFault::NotTls => fault.as_str(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_about_tls_names_the_setting() {
        let advice = |error: &str, in_handshake| tls(&TlsFault::explain(error.to_owned(), in_handshake));
        let names = |error, in_handshake, setting| advice(error, in_handshake).is_some_and(|it| it.contains(setting));
        assert!(names("invalid peer certificate: UnknownIssuer", false, "OFFRAMP_TLS_CA"));
        assert!(names("received fatal alert: CertificateRequired", false, "OFFRAMP_TLS_CERTIFICATE"));
        assert!(names("Connection reset by peer (os error 104)", true, "OFFRAMP_TLS_CERTIFICATE"));
        for (error, in_handshake) in [("Connection reset by peer (os error 104)", false), ("Connection refused", true)]
        {
            assert_eq!(TlsFault::explain(error.to_owned(), in_handshake), error);
        }
    }
}
