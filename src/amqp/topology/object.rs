//! One exchange, queue or binding, and how the broker is asked for it.

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use lapin::{Channel, ExchangeKind};

use super::error::TopologyError;
use crate::amqp::connection::{BrokerError, Link};
use crate::amqp::rights::{self, DeniedRight};

/// An object of the broker.
pub(super) enum Object {
    Queue(Queue),
    Exchange { name: String, kind: ExchangeKind },
    Binding { exchange: String, key: String, queue: String },
}

/// A quorum queue.
pub(super) struct Queue {
    pub(super) name: String,
    pub(super) arguments: Vec<(&'static str, AMQPValue)>,
}

impl Object {
    pub(super) fn label(&self) -> String {
        match self {
            Self::Queue(queue) => format!("queue '{}'", queue.name),
            Self::Exchange { name, .. } => format!("exchange '{name}'"),
            Self::Binding { exchange, queue, .. } => {
                format!("the binding from exchange '{exchange}' to queue '{queue}'")
            }
        }
    }

    pub(super) fn denied(&self, permission: &'static str, purpose: &'static str) -> DeniedRight {
        DeniedRight { permission, object: self.label(), purpose }
    }

    /// Whether the user may declare this object, which is missing. (Bindings: not tried.)
    pub(super) async fn may_be_declared(&self, link: &Link) -> Result<bool, BrokerError> {
        match self {
            Self::Queue(queue) => rights::may_declare_queue(link, &queue.name).await,
            Self::Exchange { name, .. } => rights::may_declare_exchange(link, name).await,
            Self::Binding { .. } => Ok(true),
        }
    }

    /// Declares the object; with `passive`, only checks that it exists, with any arguments.
    pub(super) async fn declare(&self, link: &Link, channel: &Channel, passive: bool) -> Result<(), TopologyError> {
        let doing = format!("{} {}", if passive { "find" } else { "declare" }, self.label());
        match self {
            Self::Queue(queue) => {
                let mut arguments = FieldTable::default();
                arguments.insert(ShortString::from("x-queue-type"), long("quorum"));
                for (name, value) in &queue.arguments {
                    arguments.insert(ShortString::from(*name), value.clone());
                }
                let options = QueueDeclareOptions { passive, durable: true, ..QueueDeclareOptions::default() };
                link.ask(doing, channel.queue_declare(short(&queue.name)?, options, arguments)).await?;
            }
            Self::Exchange { name, kind } => {
                let options = ExchangeDeclareOptions { passive, durable: true, ..ExchangeDeclareOptions::default() };
                let none = FieldTable::default();
                link.ask(doing, channel.exchange_declare(short(name)?, kind.clone(), options, none)).await?;
            }
            Self::Binding { exchange, key, queue } => {
                let (queue, exchange, key) = (short(queue)?, short(exchange)?, short(key)?);
                let none = FieldTable::default();
                link.ask(doing, channel.queue_bind(queue, exchange, key, QueueBindOptions::default(), none)).await?;
            }
        }
        Ok(())
    }
}

pub(super) fn long(text: &str) -> AMQPValue {
    AMQPValue::LongString(LongString::from(text))
}

fn short(name: &str) -> Result<ShortString, TopologyError> {
    ShortString::try_new(name).map_err(|_| TopologyError::Name(name.to_owned()))
}
