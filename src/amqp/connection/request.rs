//! Requests under a common deadline, and why a request or a connection failed.

use std::borrow::Cow;
use std::time::Duration;

use lapin::ErrorKind;
use tokio::time::timeout;

use crate::amqp::reply_code::{ACCESS_REFUSED, NOT_ALLOWED, PRECONDITION_FAILED};

/// The deadline for any request on an open connection (open a channel, declare, consume), in seconds.
pub(in crate::amqp) const REPLY_SECONDS_MAX: u64 = 5;

/// The reply codes for an invalid user or virtual host.
const DENIED_CODES: [u16; 2] = [ACCESS_REFUSED, NOT_ALLOWED];

/// Why a connection or a request failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BrokerError {
    /// No address works. Lists the reason for each.
    #[error("RabbitMQ is unavailable: {0}")]
    Unreachable(String),
    /// No address works, and at least one did not answer in time, so that a server may be frozen. Lists the reason for each.
    #[error("RabbitMQ is unavailable: {0}")]
    Silent(String),
    /// An address rejected the user or the virtual host: a configuration error.
    #[error("RabbitMQ rejects the connection: {0}")]
    Denied(String),
    /// The broker rejected the request, or the connection was lost.
    #[error("RabbitMQ failed to {doing}: {why}")]
    Failed {
        /// The request, as a verb phrase.
        doing: Cow<'static, str>,
        why: String,
        /// The AMQP reply code, if the broker sent one.
        code: Option<u16>,
    },
    /// The node lacks what another address has: it has lost its data, or has not joined its cluster yet.
    #[error(
        "this RabbitMQ node has no {object}, but another address has: it does not belong to the cluster, or not yet"
    )]
    Stranger {
        /// What it lacks.
        object: String,
    },
    /// The node lacks something, and too few other addresses can be asked whether they have it: it may not belong to the cluster.
    #[error(
        "this RabbitMQ node has no {object}; only {lacking} of {all} addresses say so, but at least half must lack it before it is declared"
    )]
    Unattested {
        /// What it lacks.
        object: String,
        /// How many addresses, this one included, lack it.
        lacking: usize,
        /// How many addresses there are.
        all: usize,
    },
    /// No reply arrived in time, on an open connection.
    #[error("RabbitMQ did not {doing} within {REPLY_SECONDS_MAX} s")]
    Deadline {
        /// The request, as a verb phrase.
        doing: Cow<'static, str>,
    },
}

impl BrokerError {
    /// The AMQP reply code, if the broker sent one. See [`crate::amqp::reply_code`].
    pub(in crate::amqp) fn code(&self) -> Option<u16> {
        match self {
            Self::Failed { code, .. } => *code,
            _ => None,
        }
    }

    /// Whether it may be over soon, without an operator: a server is frozen or restarts, or a queue has no leader.
    pub(in crate::amqp) fn may_pass(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Denied(_) => false,
            Self::Silent(_) | Self::Stranger { .. } | Self::Unattested { .. } | Self::Deadline { .. } => true,
            Self::Failed { code, .. } => !code.is_some_and(|code| is_denied(code) || code == PRECONDITION_FAILED),
        }
    }

    pub(in crate::amqp) fn of(doing: impl Into<Cow<'static, str>>, error: &lapin::Error) -> Self {
        Self::Failed { doing: doing.into(), why: explain(error), code: code(error) }
    }
}

/// Sends a request to the broker, under the common deadline.
pub(in crate::amqp) async fn ask<T>(
    doing: impl Into<Cow<'static, str>>,
    request: impl Future<Output = lapin::Result<T>>,
) -> Result<T, BrokerError> {
    let doing = doing.into();
    match timeout(Duration::from_secs(REPLY_SECONDS_MAX), request).await {
        Ok(reply) => reply.map_err(|error| BrokerError::of(doing, &error)),
        Err(_) => Err(BrokerError::Deadline { doing }),
    }
}

/// The AMQP reply code in an error, if the broker sent one.
pub(in crate::amqp) fn code(error: &lapin::Error) -> Option<u16> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => Some(error.get_id()),
        _ => None,
    }
}

pub(super) fn is_denied(code: u16) -> bool {
    DENIED_CODES.contains(&code)
}

/// The message of the broker or the network, without lapin's prefix.
pub(in crate::amqp) fn explain(error: &lapin::Error) -> String {
    match error.kind() {
        ErrorKind::ProtocolError(error) => error.get_message().to_string(),
        ErrorKind::IOError(error) => error.to_string(),
        _ => error.to_string(),
    }
}
