//! A failed step of the dialogue, and the [`SendError`] that it leads to.

use std::io;
use std::time::Duration;

use super::blame::Blame;
use super::reply::Reply;
use super::step::Step;
use crate::send_error::{Cause, SendError};
use crate::text::{shorten, single_line};

/// The longest quote of a server, in characters.
pub(super) const QUOTE_CHARS_MAX: usize = 400;

/// A failed step.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) step: Step,
    pub(super) fault: Fault,
}

/// Why a step failed.
#[derive(Debug)]
pub(super) enum Fault {
    /// The server rejected the command: 4xx or 5xx.
    Rejected(Reply),
    /// The reply makes no sense at this step.
    Unexpected(Reply),
    NoReply(Duration),
    Io(io::Error),
    /// The connection does not meet the settings.
    Unfit(String),
    /// The sender no longer wants the email sent.
    HeldBack,
}

impl Failure {
    pub(super) fn unfit(step: Step, why: impl Into<String>) -> Self {
        Self { step, fault: Fault::Unfit(why.into()) }
    }

    /// Whether the connection can be used again: every reply was read, and the server does not close it (421).
    pub(super) fn keeps_connection(&self) -> bool {
        !self.step.is_of_connection() && matches!(&self.fault, Fault::Rejected(reply) if reply.code != 421)
    }

    /// Whether it looks as if the server had closed an idle connection.
    pub(super) fn is_closed(&self) -> bool {
        match &self.fault {
            Fault::Rejected(reply) => reply.code == 421,
            Fault::Io(error) => error.kind() != io::ErrorKind::InvalidData,
            Fault::Unexpected(_) | Fault::NoReply(_) | Fault::Unfit(_) | Fault::HeldBack => false,
        }
    }

    /// `address` is the server's, for the text.
    pub(super) fn into_error(self, address: &str) -> SendError {
        let Self { step, fault } = self;
        let at = format!("{address}: {}", step.as_str());
        let quote = |reply: &Reply| shorten(&single_line(&reply.text()), QUOTE_CHARS_MAX);
        match fault {
            Fault::Rejected(reply) => {
                let text = format!("{at}: {} {}", reply.code, quote(&reply)).trim_end().to_owned();
                rejection(step, &reply, Cause::quoting(text, format!("{at}: {}", reply.codes())))
            }
            Fault::Unexpected(reply) => {
                let text = format!("{at}: unexpected reply {} {}", reply.code, quote(&reply));
                no_reply(step, Cause::quoting(text, format!("{at}: unexpected reply {}", reply.codes())))
            }
            Fault::NoReply(limit) => {
                no_reply(step, Cause::new(format!("{at}: no reply within {} s", limit.as_secs_f32())))
            }
            Fault::Io(error) => {
                let error = shorten(&single_line(&error.to_string()), QUOTE_CHARS_MAX);
                let in_tls_handshake = matches!(step, Step::Tls | Step::FirstReplyOverTls);
                no_reply(step, Cause::new(format!("{at}: {error}")).with_tls_handshake(in_tls_handshake))
            }
            Fault::Unfit(why) => SendError::Unavailable(Cause::new(format!("{at}: {why}"))),
            Fault::HeldBack => {
                SendError::HeldBack(Cause::new(format!("{at}: the dialogue took longer than the sender may wait")))
            }
        }
    }
}

fn rejection(step: Step, reply: &Reply, cause: Cause) -> SendError {
    match reply.blame(step) {
        Blame::Sender => SendError::Sender {
            cause,
            problem: reply.sender_problem(step),
            rejects_connection: step.is_of_connection(),
        },
        Blame::Server | Blame::Rate if step.is_of_connection() => SendError::Unavailable(cause),
        Blame::Rate => SendError::Throttled(cause),
        Blame::Server => SendError::Transient(cause),
        Blame::Email => SendError::Permanent(cause),
    }
}

fn no_reply(step: Step, cause: Cause) -> SendError {
    if step == Step::Reply { SendError::InDoubt(cause) } else { SendError::Unavailable(cause) }
}

impl Reply {
    /// Any code from 200 to 299, for [`expect`](Self::expect).
    pub(super) const POSITIVE: u16 = 2;

    /// Returns the reply if it has the wanted code, or its first digit.
    pub(super) fn expect(self, step: Step, wanted: u16) -> Result<Self, Failure> {
        let fault = match self.code {
            code if code == wanted || code / 100 == wanted => return Ok(self),
            400.. => Fault::Rejected(self),
            _ => Fault::Unexpected(self),
        };
        Err(Failure { step, fault })
    }
}
