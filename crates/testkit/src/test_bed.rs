//! A database and a prefix for one test, on the real servers. A successful test removes both.

use std::time::Duration;

use bson::{Document, doc};
use futures_util::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions,
    ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind};
use mongodb::error::ErrorKind;
use serde_json::Value;
use uuid::Uuid;

use crate::{PATIENCE, eventually, eventually_within, rabbit, setting};

/// The work queues of a prefix.
pub const LANES: [&str; 5] =
    ["cancellation", "cancellation-request", "cancellation-confirmation", "payment-failure", "card-expiry"];
/// MongoDB's `BackgroundOperationInProgressForNamespace`.
const INDEX_BUILD_IN_PROGRESS: i32 = 12587;
const RETRY_DELAYS: [&str; 5] = ["5s", "30s", "2m", "10m", "1h"];

/// The servers, with a database and a prefix that no other test uses.
pub struct TestBed {
    pub prefix: String,
    pub mongodb_url: String,
    pub amqp_url: String,
    pub database: mongodb::Database,
    pub channel: Channel,
    connection: Connection,
}

impl TestBed {
    /// An empty test bed.
    pub async fn new(test: &str) -> Self {
        Self::at(test, &setting("OFFRAMP_MONGODB_URL", "mongodb://localhost:27017/offramp")).await
    }

    /// An empty test bed in the MongoDB at this URL.
    pub async fn at(test: &str, mongodb_url: &str) -> Self {
        Self::of_servers(test, mongodb_url, &rabbit::amqp_url()).await
    }

    /// An empty test bed in the RabbitMQ at this URL.
    pub async fn at_broker(test: &str, amqp_url: &str) -> Self {
        Self::of_servers(test, &setting("OFFRAMP_MONGODB_URL", "mongodb://localhost:27017/offramp"), amqp_url).await
    }

    /// An empty test bed in the MongoDB and the RabbitMQ at these URLs.
    pub async fn of_servers(test: &str, mongodb_url: &str, amqp_url: &str) -> Self {
        let id = Uuid::new_v4().simple().to_string();
        let name = format!("t-{test}-{}", &id[..8]);
        let mongodb_url = with_database(mongodb_url, &name);
        let client = mongodb::Client::with_uri_str(&mongodb_url).await.expect("OFFRAMP_MONGODB_URL");
        let database = client.database(&name);
        database.run_command(doc! { "ping": 1 }).await.expect("MongoDB is unavailable; run `make services-up`");

        let (connection, channel) = connect(amqp_url).await;
        Self { prefix: name, mongodb_url, amqp_url: amqp_url.to_owned(), database, channel, connection }
    }

    /// The same test bed with a new connection to the broker, for instance after a restart.
    pub async fn reopened(&self) -> Self {
        let (connection, channel) = connect(&self.amqp_url).await;
        Self {
            prefix: self.prefix.clone(),
            mongodb_url: self.mongodb_url.clone(),
            amqp_url: self.amqp_url.clone(),
            database: self.database.clone(),
            channel,
            connection,
        }
    }

    pub fn collection(&self, name: &str) -> mongodb::Collection<Document> {
        self.database.collection(name)
    }

    /// Sets the validator of an existing collection, once no index of it is being built: MongoDB rejects the change until then.
    pub async fn set_validator(&self, collection: &str, validator: Document) {
        let command = doc! { "collMod": collection, "validator": validator };
        eventually("a validator that is set", || async {
            match self.database.run_command(command.clone()).await.map_err(|error| *error.kind) {
                Ok(_) => true,
                Err(ErrorKind::Command(error)) if error.code == INDEX_BUILD_IN_PROGRESS => false,
                Err(error) => panic!("{error}"),
            }
        })
        .await;
    }

    pub async fn document(&self, collection: &str, id: &str) -> Option<Document> {
        self.collection(collection).find_one(doc! { "_id": id }).await.unwrap()
    }

    /// Waits until a subscription has this status.
    pub async fn status_becomes(&self, id: &str, status: &str) -> Document {
        eventually(&format!("{id} to be {status}"), || async {
            self.document("subscriptions", id).await.filter(|document| document.get_str("status").ok() == Some(status))
        })
        .await
    }

    /// Collects every event from now on in a queue of the test.
    pub async fn watch_events(&self) -> Events {
        let queue = format!("{}.test-events", self.prefix);
        let exchange = format!("{}.events", self.prefix);
        let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
        self.channel
            .exchange_declare(exchange.as_str().into(), ExchangeKind::Topic, options, FieldTable::default())
            .await
            .unwrap();
        let options = QueueDeclareOptions { durable: true, ..Default::default() };
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        self.channel.queue_declare(queue.as_str().into(), options, arguments).await.unwrap();
        self.channel
            .queue_bind(
                queue.as_str().into(),
                exchange.as_str().into(),
                "#".into(),
                QueueBindOptions::default(),
                FieldTable::default(),
            )
            .await
            .unwrap();
        Events { queue }
    }

    /// Publishes bytes as upstream systems do: to the command exchange, persistent, confirmed, and routed.
    pub async fn publish(&self, routing_key: &str, body: &[u8]) {
        self.publish_with(routing_key, body, BasicProperties::default()).await;
    }

    /// [`Self::publish`] with other properties.
    pub async fn publish_with(&self, routing_key: &str, body: &[u8], properties: BasicProperties) {
        let confirmation = self
            .channel
            .basic_publish(
                self.prefix.as_str().into(),
                routing_key.into(),
                BasicPublishOptions { mandatory: true, ..Default::default() },
                body,
                properties.with_delivery_mode(2),
            )
            .await
            .unwrap()
            .await
            .unwrap();
        assert!(matches!(confirmation, lapin::Confirmation::Ack(None)), "{routing_key}: {confirmation:?}");
    }

    /// Publishes a command with its type as the routing key.
    pub async fn command(&self, command: &Value) {
        self.command_at_attempt(command, 0).await;
    }

    /// Publishes a command as its retry number `attempt`.
    pub async fn command_at_attempt(&self, command: &Value, attempt: u32) {
        let mut headers = FieldTable::default();
        if attempt > 0 {
            headers.insert("offramp-attempt".into(), AMQPValue::LongUInt(attempt));
        }
        let properties = BasicProperties::default().with_headers(headers);
        self.publish_with(command["type"].as_str().unwrap(), command.to_string().as_bytes(), properties).await;
    }

    /// Takes and acknowledges one message from a queue of this prefix, if there is one.
    pub async fn take(&self, queue: &str) -> Option<(Vec<u8>, BasicProperties)> {
        let queue = format!("{}.{queue}", self.prefix);
        let got = self.channel.basic_get(queue.as_str().into(), BasicGetOptions::default()).await.unwrap()?;
        got.ack(BasicAckOptions::default()).await.unwrap();
        Some((got.data.clone(), got.properties.clone()))
    }

    /// Redelivers the first message of a queue of this prefix. See [`rabbit::redeliver`].
    pub async fn redeliver(&self, queue: &str) {
        rabbit::redeliver(&self.connection, &format!("{}.{queue}", self.prefix), 1).await;
    }

    /// Waits for the next dead letter.
    pub async fn dead_letter(&self) -> DeadLetter {
        let (body, properties) = eventually("a dead letter", || self.take("dead-letters")).await;
        DeadLetter { body, properties }
    }

    /// Waits until every outbox is empty.
    pub async fn outboxes_empty(&self) {
        self.outboxes_empty_within(PATIENCE).await;
    }

    /// [`Self::outboxes_empty`] with a time limit of its own.
    pub async fn outboxes_empty_within(&self, patience: Duration) {
        eventually_within(patience, "empty outboxes", || async {
            for collection in ["subscriptions", "accounts", "organizations"] {
                let filter = doc! { "outbox.0": { "$exists": true } };
                if self.collection(collection).count_documents(filter).await.unwrap() > 0 {
                    return None;
                }
            }
            Some(())
        })
        .await;
    }

    /// Deletes the database, queues and exchanges of the test.
    pub async fn remove(self) {
        self.database.drop().await.unwrap();
        let mut queues = vec!["dead-letters".to_owned(), "test-events".to_owned()];
        queues.extend(LANES.map(str::to_owned));
        queues.extend(RETRY_DELAYS.map(|delay| format!("retry.{delay}")));
        for queue in queues {
            let queue = format!("{}.{queue}", self.prefix);
            self.channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
        }
        let mut exchanges = vec![self.prefix.clone(), format!("{}.events", self.prefix)];
        exchanges.extend(RETRY_DELAYS.map(|delay| format!("{}.retry.{delay}", self.prefix)));
        for exchange in exchanges {
            self.channel.exchange_delete(exchange.as_str().into(), ExchangeDeleteOptions::default()).await.unwrap();
        }
    }
}

/// A connection, and a channel with publisher confirms.
async fn connect(amqp_url: &str) -> (Connection, Channel) {
    let connection = Connection::connect(amqp_url, ConnectionProperties::default())
        .await
        .expect("RabbitMQ is unavailable; run `make services-up`");
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    (connection, channel)
}

/// A message from the dead-letter queue.
pub struct DeadLetter {
    pub body: Vec<u8>,
    properties: BasicProperties,
}

impl DeadLetter {
    /// A header as text, empty if it is missing.
    pub fn header(&self, name: &str) -> String {
        let headers = self.properties.headers().as_ref();
        match headers.and_then(|headers| headers.inner().get(name)) {
            Some(AMQPValue::LongString(text)) => text.to_string(),
            Some(AMQPValue::ShortString(text)) => text.to_string(),
            Some(AMQPValue::LongUInt(number)) => number.to_string(),
            Some(AMQPValue::LongInt(number)) => number.to_string(),
            Some(AMQPValue::Timestamp(seconds)) => seconds.to_string(),
            Some(other) => format!("{other:?}"),
            None => String::new(),
        }
    }
}

/// The events of a prefix.
pub struct Events {
    queue: String,
}

impl Events {
    /// Takes all arrived events, in order.
    pub async fn take(&self, bed: &TestBed) -> Vec<Value> {
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let waiting = bed
            .channel
            .queue_declare(self.queue.as_str().into(), options, FieldTable::default())
            .await
            .unwrap()
            .message_count();
        let mut consumer = bed
            .channel
            .basic_consume(
                self.queue.as_str().into(),
                "".into(),
                BasicConsumeOptions { no_ack: true, ..Default::default() },
                FieldTable::default(),
            )
            .await
            .unwrap();
        let mut events = Vec::new();
        while events.len() < waiting as usize {
            let delivery = consumer.next().await.unwrap().unwrap();
            events.push(serde_json::from_slice(&delivery.data).unwrap());
        }
        bed.channel.basic_cancel(consumer.tag(), lapin::options::BasicCancelOptions::default()).await.unwrap();
        events
    }

    /// Waits for the next event that `is` accepts, and skips the events before it.
    pub async fn next(&self, bed: &TestBed, is: impl Fn(&Value) -> bool) -> Value {
        eventually("an event", || async {
            let got =
                bed.channel.basic_get(self.queue.as_str().into(), BasicGetOptions { no_ack: true }).await.unwrap()?;
            let event: Value = serde_json::from_slice(&got.data).unwrap();
            is(&event).then_some(event)
        })
        .await
    }
}

/// The URL with another database name.
fn with_database(url: &str, name: &str) -> String {
    let (start, options) = url.split_once('?').map_or((url, None), |(start, options)| (start, Some(options)));
    let scheme_end = start.find("://").expect("a MongoDB URL") + 3;
    let host_end = start[scheme_end..].find('/').map_or(start.len(), |at| scheme_end + at);
    match options {
        Some(options) => format!("{}/{name}?{options}", &start[..host_end]),
        None => format!("{}/{name}", &start[..host_end]),
    }
}
