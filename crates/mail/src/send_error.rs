//! Why an email was not sent, by what the sender does about it.

use std::fmt;

/// Why an email was not sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The server rejects this recipient or this content. Retrying does not help; other emails are not affected.
    #[error("rejected permanently: {0}")]
    Permanent(Cause),
    /// The server does not accept this email now. Other emails are not affected.
    #[error("rejected temporarily: {0}")]
    Transient(Cause),
    /// The server accepts no emails now, or fewer.
    #[error("throttled: {0}")]
    Throttled(Cause),
    /// The server rejects this program: its name, rights, reputation or quota. Other emails are affected, too.
    #[error("rejected because of the sender: {cause}")]
    Sender {
        /// The server's reply.
        cause: Cause,
        /// What the server objects to.
        problem: SenderProblem,
        /// Whether it rejects the connection itself, so that no email can be sent.
        rejects_connection: bool,
    },
    /// The server cannot be reached, does not reply, or disconnected before it had the whole content.
    #[error("mail server unavailable: {0}")]
    Unavailable(Cause),
    /// The sender stopped wanting it sent before the server had the whole content. Says nothing about the server.
    #[error("held back: {0}")]
    HeldBack(Cause),
    /// The whole content was sent, and no reply to it was read.
    #[error("in doubt, the email may have been delivered: {0}")]
    InDoubt(Cause),
}

impl SendError {
    /// What happened, without the server's text, which may contain a recipient's address.
    #[must_use]
    pub fn brief(&self) -> &str {
        match self {
            Self::Permanent(cause)
            | Self::Transient(cause)
            | Self::Throttled(cause)
            | Self::Sender { cause, .. }
            | Self::Unavailable(cause)
            | Self::HeldBack(cause)
            | Self::InDoubt(cause) => cause.brief(),
        }
    }
}

/// What a server objects to when it rejects this program, and with it every email.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SenderProblem {
    /// The name in EHLO.
    EhloName,
    /// The connection must be encrypted first.
    EncryptionRequired,
    /// The user, the password or the token; or there is no login where one is required.
    Login,
    /// The email is larger than the server's limit.
    SizeLimit,
    /// The sender's address, which this user may not use or whose domain does not exist.
    SenderAddress,
    /// A quota is exhausted.
    Quota,
    /// The server does not relay for this host or user.
    Relay,
    /// Anything else: reputation, policy.
    Other,
}

/// What happened. Its `Display` quotes the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    text: String,
    /// Where `text` quotes the server: the same without the quote.
    brief: Option<String>,
    in_tls_handshake: bool,
}

impl Cause {
    /// A cause that does not quote the server.
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), brief: None, in_tls_handshake: false }
    }

    /// A cause that quotes the server; `brief` does not.
    pub(crate) fn quoting(text: String, brief: String) -> Self {
        Self { text, brief: Some(brief), in_tls_handshake: false }
    }

    pub(crate) fn with_tls_handshake(self, in_tls_handshake: bool) -> Self {
        Self { in_tls_handshake, ..self }
    }

    /// What happened, without the server's text, which may contain a recipient's address.
    #[must_use]
    pub fn brief(&self) -> &str {
        self.brief.as_ref().unwrap_or(&self.text)
    }

    /// Whether the connection failed in the TLS handshake, or before the server's first reply over TLS. A server that
    /// rejects a client certificate may say so only then, or merely close the connection.
    #[must_use]
    pub fn in_tls_handshake(&self) -> bool {
        self.in_tls_handshake
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
