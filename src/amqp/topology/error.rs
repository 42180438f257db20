//! Why an object could not be declared or checked.

use crate::amqp::connection::BrokerError;

/// AMQP's limit for names, in bytes.
const NAME_BYTES_MAX: usize = 255;

/// Why an object could not be declared or checked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopologyError {
    /// An object exists with other arguments. Retrying does not help.
    #[error("{object} exists already with other arguments: {difference}. Nothing was changed")]
    Different {
        object: String,
        /// The difference, in the broker's words.
        difference: String,
    },
    /// An object is missing, and the user may not create it. Retrying does not help.
    #[error("{object} is missing, and this user lacks the permission to create it: {why}")]
    Forbidden { object: String, why: String },
    /// The prefix makes a name too long for AMQP.
    #[error("the name '{0}' exceeds AMQP's {NAME_BYTES_MAX} bytes")]
    Name(String),
    /// The broker is unavailable, or failed otherwise.
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

impl TopologyError {
    /// The reply code with which the broker refused.
    pub(super) fn code(&self) -> Option<u16> {
        match self {
            Self::Broker(error) => error.code(),
            _ => None,
        }
    }
}
