//! RabbitMQ for tests: a fresh prefix for each test, deleted afterwards, and an independent client to inspect it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::atomic::{AtomicU32, Ordering};

use futures_util::FutureExt;
use lapin::options::{
    BasicAckOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeleteOptions,
    QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use offramp::amqp::{Broker, RetryDelay, Topology};
use offramp_domain::command_ref::CommandType;
use serde_json::json;

use crate::{eventually, setting};

/// The broker's address, `OFFRAMP_AMQP_URL`.
pub fn amqp_url() -> String {
    setting("OFFRAMP_AMQP_URL", "amqp://localhost:5672/%2f")
}

/// One test's share of the broker.
pub struct Rabbit {
    pub prefix: String,
    pub topology: Topology,
    pub channel: Channel,
    connection: Connection,
}

impl Rabbit {
    /// Runs `test` with a fresh prefix, and deletes its objects even if it fails.
    pub async fn run(test: impl AsyncFnOnce(&Rabbit)) {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let connection = Connection::connect(&amqp_url(), ConnectionProperties::default())
            .await
            .unwrap_or_else(|error| panic!("no RabbitMQ at OFFRAMP_AMQP_URL ({error}): run `make services-up` first"));
        let channel = connection.create_channel().await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        let prefix = format!("test-{}-{}-{count}", std::process::id(), uuid::Uuid::new_v4().simple());
        let rabbit = Rabbit { topology: Topology::new(&prefix), prefix, channel, connection };
        let result = AssertUnwindSafe(test(&rabbit)).catch_unwind().await;
        rabbit.delete_all().await;
        if let Err(panic) = result {
            resume_unwind(panic);
        }
    }

    /// [`Self::run`] with the topology declared.
    pub async fn declared(test: impl AsyncFnOnce(&Rabbit)) {
        Self::run(async |rabbit| {
            rabbit.topology.declare(&rabbit.broker()).await.unwrap();
            test(rabbit).await;
        })
        .await;
    }

    /// The broker as the program connects to it.
    pub fn broker(&self) -> Broker {
        Broker::new(amqp_url().parse().unwrap(), self.prefix.clone())
    }

    /// The work queue that these tests use.
    pub fn queue(&self) -> String {
        self.topology.work_queue(CommandType::Cancellation)
    }

    pub async fn publish(&self, exchange: &str, key: &str, body: &[u8], properties: BasicProperties) {
        let options = BasicPublishOptions { mandatory: true, immediate: false };
        let confirm = self.channel.basic_publish(exchange.into(), key.into(), options, body, properties).await.unwrap();
        assert_eq!(confirm.await.unwrap(), lapin::Confirmation::Ack(None));
    }

    /// Publishes bodies to the work queue as upstream systems do.
    pub async fn commands(&self, bodies: impl IntoIterator<Item = &str>) {
        for body in bodies {
            let properties = BasicProperties::default().with_delivery_mode(2);
            self.publish(&self.prefix, "subscription.cancellation", body.as_bytes(), properties).await;
        }
    }

    /// Takes and acknowledges the next message of a queue.
    pub async fn get(&self, queue: &str) -> Option<lapin::message::Delivery> {
        let message = self.channel.basic_get(queue.into(), BasicGetOptions::default()).await.unwrap()?;
        message.ack(BasicAckOptions::default()).await.unwrap();
        Some(message.delivery)
    }

    /// Waits for the next message of a queue, and takes it.
    pub async fn await_message(&self, queue: &str) -> lapin::message::Delivery {
        eventually(&format!("a message in {queue}"), || self.get(queue)).await
    }

    /// The number of waiting messages.
    pub async fn count(&self, queue: &str) -> u32 {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        self.channel.queue_declare(queue.into(), options, FieldTable::default()).await.unwrap().message_count()
    }

    /// See [`redeliver`].
    pub async fn redeliver(&self, queue: &str, messages: u32) {
        redeliver(&self.connection, queue, messages).await;
    }

    pub async fn delete_queue(&self, queue: &str) {
        self.channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
    }

    pub async fn delete_exchange(&self, exchange: &str) {
        self.channel.exchange_delete(exchange.into(), ExchangeDeleteOptions::default()).await.unwrap();
    }

    async fn delete_all(&self) {
        let topology = &self.topology;
        let mut queues = vec![topology.dead_letter_queue()];
        queues.extend(CommandType::ALL.map(|command| topology.work_queue(command)));
        queues.extend(RetryDelay::ALL.map(|delay| topology.retry_queue(delay)));
        let mut exchanges = vec![topology.command_exchange(), topology.event_exchange()];
        exchanges.extend(RetryDelay::ALL.map(|delay| topology.retry_exchange(delay)));
        let channel = self.connection.create_channel().await.unwrap();
        for queue in queues {
            channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
        }
        for exchange in exchanges {
            channel.exchange_delete(exchange.as_str().into(), ExchangeDeleteOptions::default()).await.unwrap();
        }
        self.connection.close(200, "OK".into()).await.unwrap();
    }
}

/// Takes the first `messages` of a queue and closes the channel without acks, like a killed worker, so that the broker counts a
/// redelivery. (From RabbitMQ 4.3 on, `basic.nack` is not counted.)
pub async fn redeliver(connection: &Connection, queue: &str, messages: u32) {
    let channel = connection.create_channel().await.unwrap();
    for _ in 0..messages {
        eventually("a message", async || {
            channel.basic_get(queue.into(), BasicGetOptions::default()).await.unwrap().is_some()
        })
        .await;
    }
    channel.close(200, "OK".into()).await.unwrap();
}

/// A policy at the broker, removed when dropped.
pub struct Policy {
    path: String,
}

impl Policy {
    /// Makes a queue reject all messages, and waits until the policy is in force.
    pub async fn that_rejects(queue: &str) -> Self {
        let policy = Self { path: format!("/api/policies/%2f/{queue}") };
        let pattern = format!("^{}$", queue.replace('.', "\\."));
        let definition = json!({ "pattern": pattern, "apply-to": "queues",
            "definition": { "max-length": 0, "overflow": "reject-publish" } });
        manage("PUT", &policy.path, &definition.to_string());
        let connection = Connection::connect(&amqp_url(), ConnectionProperties::default()).await.unwrap();
        eventually("the policy is in force", async || {
            let channel = connection.create_channel().await.unwrap();
            channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
            let options = BasicPublishOptions::default();
            let probe = channel.basic_publish("".into(), queue.into(), options, b"probe", BasicProperties::default());
            matches!(probe.await.unwrap().await.unwrap(), lapin::Confirmation::Nack(_))
        })
        .await;
        // Closing may fail while channels are still closing.
        drop(connection.close(200, "OK".into()).await);
        policy
    }
}

/// Sends a request to RabbitMQ's management interface.
fn manage(method: &str, path: &str, body: &str) {
    let admin = setting("SERVICES_RABBITMQ_ADMIN", "http://127.0.0.1:15672");
    let address = admin.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    // guest:guest
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Basic Z3Vlc3Q6Z3Vlc3Q=\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 2"), "{answer}");
}

impl Drop for Policy {
    fn drop(&mut self) {
        manage("DELETE", &self.path, "");
    }
}

/// A user of the broker, removed when dropped.
pub struct User {
    name: String,
}

impl User {
    /// A user with permissions on the names that these regular expressions match.
    pub fn new(name: &str, configure: &str, write: &str, read: &str) -> Self {
        let user = Self { name: name.to_owned() };
        manage("PUT", &format!("/api/users/{name}"), &json!({ "password": "secret", "tags": "" }).to_string());
        user.permit(configure, write, read);
        user
    }

    /// Replaces its permissions.
    pub fn permit(&self, configure: &str, write: &str, read: &str) {
        let permissions = json!({ "configure": configure, "write": write, "read": read });
        manage("PUT", &format!("/api/permissions/%2f/{}", self.name), &permissions.to_string());
    }

    /// The broker's address with this user.
    pub fn amqp_url(&self) -> String {
        let url = amqp_url();
        let host = url.strip_prefix("amqp://").unwrap();
        let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
        format!("amqp://{}:secret@{host}", self.name)
    }
}

impl Drop for User {
    fn drop(&mut self) {
        manage("DELETE", &format!("/api/users/{}", self.name), "");
    }
}

/// A virtual host without anything in it, removed when dropped. To clients it is a broker of its own.
pub struct VirtualHost {
    name: String,
}

impl VirtualHost {
    pub fn new(name: &str) -> Self {
        Self::readable(name, ".*")
    }

    /// One in which nobody may read a queue.
    pub fn without_reading(name: &str) -> Self {
        Self::readable(name, "")
    }

    fn readable(name: &str, read: &str) -> Self {
        manage("PUT", &format!("/api/vhosts/{name}"), "{}");
        manage(
            "PUT",
            &format!("/api/permissions/{name}/guest"),
            &json!({ "configure": ".*", "write": ".*", "read": read }).to_string(),
        );
        Self { name: name.to_owned() }
    }

    /// Its address.
    pub fn amqp_url(&self) -> String {
        let mut url = url::Url::parse(&amqp_url()).unwrap();
        url.set_path(&self.name);
        url.into()
    }
}

impl Drop for VirtualHost {
    fn drop(&mut self) {
        manage("DELETE", &format!("/api/vhosts/{}", self.name), "");
    }
}
