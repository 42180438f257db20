//! How long each step of the dialogue may take.

use std::time::Duration;

/// How long each step may take. A step that takes longer counts as one without a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// To resolve the host name and open a TCP connection to one of its addresses.
    pub connect: Duration,
    /// For the greeting, and for each step up to the login.
    pub greeting: Duration,
    /// For the replies to MAIL and RCPT.
    pub envelope: Duration,
    /// For the reply to DATA.
    pub data: Duration,
    /// To write each block of the content to the network.
    pub block: Duration,
    /// For the reply to the whole content: servers scan it first.
    pub content: Duration,
    /// For RSET and QUIT, on which no email depends.
    pub farewell: Duration,
}

impl Default for Deadlines {
    /// The deadlines of RFC 5321 §4.5.3.2. Servers do use them up: for call-outs to other servers, greylisting and
    /// scanners.
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(30),
            greeting: Duration::from_secs(5 * 60),
            envelope: Duration::from_secs(5 * 60),
            data: Duration::from_secs(2 * 60),
            block: Duration::from_secs(3 * 60),
            content: Duration::from_secs(10 * 60),
            farewell: Duration::from_secs(2),
        }
    }
}

impl Deadlines {
    /// For a person who waits for the result.
    #[must_use]
    pub fn interactive() -> Self {
        let step = Duration::from_secs(30);
        Self { connect: Duration::from_secs(10), greeting: step, envelope: step, data: step, ..Self::default() }
    }
}
