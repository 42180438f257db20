//! RabbitMQ and MongoDB, with a prefix and a database of the demo, which are emptied at the start.

use std::env;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bson::{Document, doc};
use futures_util::{StreamExt, TryStreamExt};
use lapin::options::{
    BasicConsumeOptions, BasicGetOptions, ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions,
    QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ConnectionProperties, ErrorKind, ExchangeKind};
use offramp::amqp::{RetryDelay, Topology};
use offramp::config::redact;
use offramp_domain::command_ref::CommandType;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// The prefix and the name of the database, which no real installation uses.
pub const NAME: &str = "offramp-demo";
/// The timeout of a server.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
const START_THEM: &str =
    "run `make services-up` to start missing servers, or `scripts/services status` to see which run";

/// The URLs of the servers.
pub struct Addresses {
    pub amqp: String,
    /// With the demo's own database in it.
    pub mongodb: String,
    pub smtp: String,
    /// The mailbox: a folder, or the URL of Mailpit.
    pub emails: String,
}

impl Addresses {
    /// As `scripts/services env` prints them.
    pub fn from_environment() -> Result<Self> {
        let address = |name: &str| {
            env::var(name)
                .ok()
                .with_context(|| format!("{name} is not set; start the demo with `make demo`, which sets it"))
        };
        Ok(Self {
            amqp: address("OFFRAMP_AMQP_URL")?,
            mongodb: with_database(&address("OFFRAMP_MONGODB_URL")?, NAME)?,
            smtp: address("OFFRAMP_SMTP_URL")?,
            emails: address("SERVICES_MAIL")?,
        })
    }
}

/// The URL with another database name.
fn with_database(url: &str, name: &str) -> Result<String> {
    let (scheme, rest) = url.split_once("://").context("OFFRAMP_MONGODB_URL is not a URL")?;
    let (rest, options) = rest.split_once('?').map_or((rest, String::new()), |(rest, o)| (rest, format!("?{o}")));
    let hosts = rest.split_once('/').map_or(rest, |(hosts, _)| hosts);
    Ok(format!("{scheme}://{hosts}/{name}{options}"))
}

/// Connections to both servers.
pub struct Servers {
    database: mongodb::Database,
    connection: Connection,
    channel: Channel,
    events: Arc<Mutex<Vec<Value>>>,
}

/// A message from the dead-letter queue.
pub struct DeadLetter {
    pub body: Vec<u8>,
    pub reason: String,
    pub error: String,
}

impl Servers {
    /// Connects, and removes the objects of earlier runs.
    pub async fn start_anew(addresses: &Addresses) -> Result<Self> {
        let connecting = Connection::connect(&addresses.amqp, ConnectionProperties::default());
        let connection = answer("RabbitMQ", &addresses.amqp, connecting).await?;
        let channel = connection.create_channel().await?;
        let client = mongodb::Client::with_uri_str(&addresses.mongodb).await.context("OFFRAMP_MONGODB_URL")?;
        let database = client.database(NAME);
        answer("MongoDB", &addresses.mongodb, database.run_command(doc! { "ping": 1 }).into_future()).await?;
        // Without the mail server, emails would only wait in the outbox.
        let smtp = url::Url::parse(&addresses.smtp)?.socket_addrs(|| Some(25)).context("OFFRAMP_SMTP_URL")?;
        answer("the mail server", &addresses.smtp, TcpStream::connect(smtp.as_slice())).await?;

        let servers = Self { database, connection, channel, events: Arc::default() };
        let watched = servers.be_alone().await?;
        servers.remove_everything().await?;
        servers.watch_events(&watched).await?;
        Ok(servers)
    }

    /// Declares the exclusive queue for events. A second demo fails here, before it removes objects that the first one uses.
    async fn be_alone(&self) -> Result<String> {
        let queue = format!("{NAME}.watched-events");
        let options = QueueDeclareOptions { exclusive: true, ..Default::default() };
        match self.channel.queue_declare(queue.as_str().into(), options, FieldTable::default()).await {
            Ok(_) => Ok(queue),
            Err(error) if is_locked(&error) => bail!("another demo is running on these servers; wait until it is done"),
            Err(error) => Err(error.into()),
        }
    }

    async fn remove_everything(&self) -> Result<()> {
        let names = Topology::new(NAME);
        let work = CommandType::ALL.map(|command| names.work_queue(command));
        let retry = RetryDelay::ALL.map(|delay| names.retry_queue(delay));
        for queue in work.into_iter().chain(retry).chain([names.dead_letter_queue()]) {
            self.channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await?;
        }
        let retry = RetryDelay::ALL.map(|delay| names.retry_exchange(delay));
        for exchange in retry.into_iter().chain([names.command_exchange(), names.event_exchange()]) {
            self.channel.exchange_delete(exchange.as_str().into(), ExchangeDeleteOptions::default()).await?;
        }
        self.database.drop().await.context("cannot drop the demo's database")
    }

    /// Collects every event as another system would, with a queue bound to the event exchange.
    async fn watch_events(&self, queue: &str) -> Result<()> {
        let exchange = Topology::new(NAME).event_exchange();
        let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
        let (none, bind) = (FieldTable::default(), QueueBindOptions::default());
        let channel = &self.channel;
        channel.exchange_declare(exchange.as_str().into(), ExchangeKind::Topic, durable, none.clone()).await?;
        channel.queue_bind(queue.into(), exchange.as_str().into(), "#".into(), bind, none.clone()).await?;
        let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
        let mut consumer = channel.basic_consume(queue.into(), "".into(), options, none).await?;
        let events = Arc::clone(&self.events);
        tokio::spawn(async move {
            while let Some(Ok(delivery)) = consumer.next().await {
                let event = serde_json::from_slice(&delivery.data).unwrap_or(Value::Null);
                events.lock().unwrap_or_else(PoisonError::into_inner).push(event);
            }
        });
        Ok(())
    }

    pub fn events(&self) -> Vec<Value> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the dead letters without removing them.
    pub async fn dead_letters(&self) -> Result<Vec<DeadLetter>> {
        let queue = Topology::new(NAME).dead_letter_queue();
        // Closing the channel requeues the unacknowledged messages.
        let channel = self.connection.create_channel().await?;
        let mut letters = Vec::new();
        while let Some(got) = channel.basic_get(queue.as_str().into(), BasicGetOptions::default()).await? {
            let header = |name: &str| match got.properties.headers().as_ref()?.inner().get(name)? {
                AMQPValue::LongString(text) => Some(text.to_string()),
                _ => None,
            };
            letters.push(DeadLetter {
                reason: header("offramp-reason").unwrap_or_default(),
                error: header("offramp-error").unwrap_or_default(),
                body: got.delivery.data,
            });
        }
        channel.close(200, "read".into()).await?;
        Ok(letters)
    }

    /// All documents of a collection.
    pub async fn documents(&self, collection: &str) -> Result<Vec<Document>> {
        Ok(self.database.collection(collection).find(doc! {}).await?.try_collect().await?)
    }

    /// The number of documents with outbox entries.
    pub async fn full_outboxes(&self) -> Result<u64> {
        let mut full = 0;
        for collection in ["subscriptions", "accounts"] {
            let filter = doc! { "outbox.0": { "$exists": true } };
            full += self.database.collection::<Document>(collection).count_documents(filter).await?;
        }
        Ok(full)
    }
}

/// Awaits a server with a timeout, and explains how to start it.
async fn answer<T, E>(server: &str, address: &str, asking: impl Future<Output = Result<T, E>>) -> Result<T>
where
    E: std::error::Error + Send + Sync + 'static,
{
    let answer = timeout(ANSWER_WITHIN, asking).await.map_err(anyhow::Error::from);
    answer
        .and_then(|answer| answer.map_err(anyhow::Error::from))
        .with_context(|| format!("{server} is unavailable at {}; {START_THEM}", redact(address)))
}

fn is_locked(error: &lapin::Error) -> bool {
    matches!(error.kind(), ErrorKind::ProtocolError(error) if error.get_id() == 405)
}
