//! Which rights a user has at RabbitMQ, found out without changing anything: each request is invalid in a way that the broker notices
//! only after it has checked the right. (Tried with 3.10 and 4.3. The broker logs each as a channel error.)
//!
//! | right | request | reply if the user has it |
//! |---|---|---|
//! | configure | declare a missing object with an argument of the wrong type | 406 |
//! | write | publish with an expiration that is no number | 406; 404 where the exchange is missing |
//! | read | consume with a priority that is no number | 406; 404 where the queue is missing |
//!
//! No message is routed, no consumer is registered, and nothing is declared.

use std::fmt;

use lapin::options::{
    BasicCancelOptions, BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use lapin::{BasicProperties, ExchangeKind};

use super::connection::{BrokerError, Link};
use super::reply_code::{ACCESS_REFUSED, NOT_FOUND, PRECONDITION_FAILED};

/// What the broker shows of our invalid requests in its log.
const TRIAL: &str = "offramp check: only to try the right";

/// A right that a worker needs and its user lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeniedRight {
    /// `configure`, `write` or `read`, as RabbitMQ names it.
    pub permission: &'static str,
    /// `queue 'x'` or `exchange 'x'`. The default exchange is `amq.default` in permissions.
    pub object: String,
    /// What the worker needs it for.
    pub purpose: &'static str,
}

/// `read queue 'x' (to receive commands)`
impl fmt::Display for DeniedRight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ({})", self.permission, self.object, self.purpose)
    }
}

/// Whether the user may publish to an exchange, with this routing key.
pub(super) async fn may_write(link: &Link, exchange: &str, key: &str) -> Result<bool, BrokerError> {
    let channel = link.channel().await?;
    link.ask("enable confirms", channel.confirm_select(ConfirmSelectOptions::default())).await?;
    let properties = BasicProperties::default().with_expiration(ShortString::from(TRIAL));
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let publishing = async {
        let confirm = channel.basic_publish(name(exchange), name(key), options, &[], properties).await?;
        confirm.await.map(drop)
    };
    permitted(link.ask("try a publication", publishing).await)
}

/// Whether the user may consume a queue.
pub(super) async fn may_read(link: &Link, queue: &str) -> Result<bool, BrokerError> {
    let channel = link.channel().await?;
    let mut arguments = FieldTable::default();
    arguments.insert(ShortString::from("x-priority"), text(TRIAL));
    let tag = ShortString::from("offramp-check");
    let consuming = channel.basic_consume(name(queue), tag.clone(), BasicConsumeOptions::default(), arguments);
    let consumed = link.ask("try a consumer", consuming).await.map(drop);
    if consumed.is_ok() {
        // Not expected; dropping the channel returns what was delivered.
        link.ask("cancel a consumer", channel.basic_cancel(tag, BasicCancelOptions::default())).await?;
    }
    permitted(consumed)
}

/// Whether the user may declare a queue that does not exist.
pub(super) async fn may_declare_queue(link: &Link, queue: &str) -> Result<bool, BrokerError> {
    let channel = link.channel().await?;
    let mut arguments = FieldTable::default();
    arguments.insert(ShortString::from("x-dead-letter-exchange"), AMQPValue::LongInt(0));
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let declaring = channel.queue_declare(name(queue), options, arguments);
    permitted(link.ask("try a declaration", declaring).await.map(drop))
}

/// Whether the user may declare an exchange that does not exist.
pub(super) async fn may_declare_exchange(link: &Link, exchange: &str) -> Result<bool, BrokerError> {
    let channel = link.channel().await?;
    let mut arguments = FieldTable::default();
    arguments.insert(ShortString::from("alternate-exchange"), AMQPValue::LongInt(0));
    let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let declaring = channel.exchange_declare(name(exchange), ExchangeKind::Topic, options, arguments);
    permitted(link.ask("try a declaration", declaring).await)
}

fn permitted(tried: Result<(), BrokerError>) -> Result<bool, BrokerError> {
    match tried {
        Ok(()) => Ok(true),
        Err(error) => match error.code() {
            Some(ACCESS_REFUSED) => Ok(false),
            Some(PRECONDITION_FAILED | NOT_FOUND) => Ok(true),
            _ => Err(error),
        },
    }
}

fn name(text: &str) -> ShortString {
    ShortString::try_new(text).unwrap_or_default()
}

fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(LongString::from(text))
}
