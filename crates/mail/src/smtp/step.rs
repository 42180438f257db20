//! The steps of an SMTP dialogue.

/// A step of the dialogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Connecting,
    /// The TLS handshake.
    Tls,
    /// The first reply after the handshake. A server that rejects our certificate says so only now, or closes the
    /// connection.
    FirstReplyOverTls,
    Greeting,
    Ehlo,
    StartTls,
    Auth,
    Mail,
    Rcpt,
    Data,
    /// The content is being sent, and the server cannot have all of it.
    Content,
    /// The whole content was sent.
    Reply,
}

impl Step {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Tls => "TLS",
            Self::FirstReplyOverTls => "first reply over TLS",
            Self::Greeting => "greeting",
            Self::Ehlo => "EHLO",
            Self::StartTls => "STARTTLS",
            Self::Auth => "AUTH",
            Self::Mail => "MAIL",
            Self::Rcpt => "RCPT",
            Self::Data => "DATA",
            Self::Content => "content",
            Self::Reply => "reply to the content",
        }
    }

    /// Whether a failure concerns the connection, and so every email.
    pub(super) fn is_of_connection(self) -> bool {
        !matches!(self, Self::Mail | Self::Rcpt | Self::Data | Self::Content | Self::Reply)
    }
}
