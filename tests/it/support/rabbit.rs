//! RabbitMQ for tests: a fresh prefix for each, its objects deleted afterwards; a second, independent client to look at
//! them with; and a TCP proxy that cuts and stalls connections, or closes them in the broker's name.

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use lapin::options::{
    BasicAckOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeleteOptions,
    QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use offramp::broker::{Broker, RetryDelay, Topology};
use offramp::domain::command::CommandType;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::smtp::ThrowAwayCa;

/// How long a condition may take to come true, in seconds: more than two missed heartbeats.
const PATIENCE_SECONDS: u64 = 40;

/// The broker's address, `OFFRAMP_AMQP_URL`.
pub fn amqp_url() -> String {
    std::env::var("OFFRAMP_AMQP_URL").unwrap_or_else(|_| "amqp://localhost:5672/%2f".to_owned())
}

/// One test's share of the broker.
pub struct Rabbit {
    pub prefix: String,
    pub topology: Topology,
    pub channel: Channel,
    connection: Connection,
}

impl Rabbit {
    /// Runs `test` under a fresh prefix, and deletes what it leaves behind even when it fails.
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

    /// The same, with everything declared.
    pub async fn declared(test: impl AsyncFnOnce(&Rabbit)) {
        Self::run(async |rabbit| {
            rabbit.topology.declare(&rabbit.broker()).await.unwrap();
            test(rabbit).await;
        })
        .await;
    }

    /// The broker, as the program under test reaches it.
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

    /// Puts bodies into the work queue, the way upstream systems do.
    pub async fn commands(&self, bodies: impl IntoIterator<Item = &str>) {
        for body in bodies {
            let properties = BasicProperties::default().with_delivery_mode(2);
            self.publish(&self.prefix, "subscription.cancellation", body.as_bytes(), properties).await;
        }
    }

    /// The next message of a queue, acknowledged.
    pub async fn get(&self, queue: &str) -> Option<lapin::message::Delivery> {
        let message = self.channel.basic_get(queue.into(), BasicGetOptions::default()).await.unwrap()?;
        message.ack(BasicAckOptions::default()).await.unwrap();
        Some(message.delivery)
    }

    /// The next message of a queue, as soon as there is one.
    pub async fn await_message(&self, queue: &str) -> lapin::message::Delivery {
        let end = Instant::now() + Duration::from_secs(PATIENCE_SECONDS);
        while Instant::now() < end {
            if let Some(message) = self.get(queue).await {
                return message;
            }
            sleep(Duration::from_millis(20)).await;
        }
        panic!("no message in {queue} within {PATIENCE_SECONDS} s");
    }

    /// How many messages wait in a queue.
    pub async fn count(&self, queue: &str) -> u32 {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        self.channel.queue_declare(queue.into(), options, FieldTable::default()).await.unwrap().message_count()
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

/// Waits until something is true.
pub async fn eventually(what: &str, condition: impl AsyncFn() -> bool) {
    let end = Instant::now() + Duration::from_secs(PATIENCE_SECONDS);
    while !condition().await {
        assert!(Instant::now() < end, "not within {PATIENCE_SECONDS} s: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// A RabbitMQ of a test's own, besides the shared one: with TLS, for clients that have a certificate of `ca`. Runs without
/// Docker, so on Linux only.
pub struct TlsServer {
    directory: tempfile::TempDir,
    pub port: u16,
}

impl TlsServer {
    pub fn start(ca: &ThrowAwayCa) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let server = Self { directory: tempfile::tempdir().unwrap(), port };
        let folder = server.directory.path().join("rabbitmq/conf.d");
        std::fs::create_dir_all(&folder).unwrap();
        let path = |file| ca.path(file).display().to_string();
        let (root, chain, key) = (path("ca.pem"), path("server.pem"), path("server.key"));
        let settings = format!(
            "listeners.ssl.1 = 127.0.0.1:{port}\nssl_options.cacertfile = {root}\nssl_options.certfile = {chain}\n\
             ssl_options.keyfile = {key}\nssl_options.verify = verify_peer\nssl_options.fail_if_no_peer_cert = true\n"
        );
        std::fs::write(folder.join("tls.conf"), settings).unwrap();
        assert!(server.services(&["start", "rabbitmq"]), "no RabbitMQ with TLS");
        server
    }

    fn services(&self, arguments: &[&str]) -> bool {
        let repository = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        // What the shared servers have unpacked, if anything, need not be fetched again.
        let shared = std::env::var("OFFRAMP_SERVICES_DIR").map_or(repository.join(".services"), Into::into);
        let tools = std::env::var("OFFRAMP_SERVICES_TOOLS").map_or(shared.join("tools"), Into::into);
        let mut command = std::process::Command::new(repository.join("scripts/services"));
        command.args(arguments).env("OFFRAMP_SERVICES_MODE", "native").env("OFFRAMP_SERVICES_TOOLS", tools);
        command.env("OFFRAMP_SERVICES_DIR", self.directory.path()).status().unwrap().success()
    }
}

impl Drop for TlsServer {
    fn drop(&mut self) {
        self.services(&["down"]);
    }
}

/// What the broker sends before it closes a connection on an operator's request: `connection.close`, 320.
const CONNECTION_CLOSE: &[u8] = b"\x01\0\0\0\0\0\x1c\0\x0a\0\x32\x01\x40\x11CONNECTION_FORCED\0\0\0\0\xce";

/// On its way to the broker, a proxy turns this into bytes that are not UTF-8: what lapin can send becomes what it cannot read.
pub const NOT_UTF8: &str = "@not-utf-8@";

/// The name of a header with a byte array, which a proxy turns into an array of the same bytes on its way to the broker: so
/// lapin can send what it could not put in words without overflowing its stack.
pub const NESTED: &str = "@nested@";

/// Arrays in arrays, so many, as bytes.
pub fn nested_arrays(depth: u32) -> Vec<u8> {
    (0..depth).rev().flat_map(|level| [&b"A"[..], &(level * 5).to_be_bytes()].concat()).collect()
}

/// Stands between a client and a server, and can cut or stall what passes.
pub struct Proxy {
    address: SocketAddr,
    weather: watch::Sender<Weather>,
}

#[derive(Clone, Copy, PartialEq)]
struct Weather {
    stalled: bool,
    /// Connections end when it changes.
    cuts: u32,
    /// Clients are told to close when it changes.
    closes: u32,
}

impl Proxy {
    /// A proxy in front of the broker.
    pub async fn start() -> Self {
        let url = url::Url::parse(&amqp_url()).unwrap();
        let target = (url.host_str().unwrap().to_owned(), url.port().unwrap_or(5672));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (weather, seen) = watch::channel(Weather { stalled: false, cuts: 0, closes: 0 });
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (target, seen) = (target.clone(), seen.clone());
                tokio::spawn(async move {
                    let Ok(server) = TcpStream::connect(target).await else { return };
                    let (client_in, client_out) = client.into_split();
                    let (server_in, server_out) = server.into_split();
                    let mut until = seen.clone();
                    let cuts = until.borrow().cuts;
                    tokio::select! {
                        () = pass(client_in, server_out, seen.clone(), false) => {}
                        () = pass(server_in, client_out, seen, true) => {}
                        _ = until.wait_for(|weather| weather.cuts != cuts) => {}
                    }
                });
            }
        });
        Self { address, weather }
    }

    /// The broker, seen through this proxy.
    pub fn broker(&self, name: &str) -> Broker {
        let mut url = url::Url::parse(&amqp_url()).unwrap();
        url.set_host(Some("127.0.0.1")).unwrap();
        url.set_port(Some(self.address.port())).unwrap();
        Broker::new(url.as_str().parse().unwrap(), name)
    }

    /// Ends every connection that is open now.
    pub fn cut(&self) {
        self.weather.send_modify(|weather| weather.cuts += 1);
    }

    /// Tells every client that the broker closes its connection. Only between frames: when nothing is under way.
    pub fn close_as_the_broker(&self) {
        self.weather.send_modify(|weather| weather.closes += 1);
    }

    /// From now on nothing passes, and nothing ends: as when a cable is pulled.
    pub fn stall(&self) {
        self.weather.send_modify(|weather| weather.stalled = true);
    }

    /// Everything passes again, also what had been held.
    pub fn resume(&self) {
        self.weather.send_modify(|weather| weather.stalled = false);
    }
}

/// Passes bytes on, until either side ends or, where the client is at the far end, it is told to close.
async fn pass(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    mut seen: watch::Receiver<Weather>,
    to_client: bool,
) {
    let mut buffer = [0; 16 * 1024];
    let closes = seen.borrow().closes;
    let mut told = seen.clone();
    loop {
        let count = tokio::select! {
            count = from.read(&mut buffer) => Some(count),
            _ = told.wait_for(|weather| to_client && weather.closes != closes) => None,
        };
        let count = match count {
            Some(Ok(count @ 1..)) => count,
            Some(_) => return,
            None => {
                let _ = to.write_all(CONNECTION_CLOSE).await;
                // The client answers, and hangs up.
                return std::future::pending().await;
            }
        };
        let marked = buffer[..count].windows(NOT_UTF8.len()).position(|bytes| bytes == NOT_UTF8.as_bytes());
        if let Some(at) = marked {
            buffer[at..at + NOT_UTF8.len()].fill(0xff);
        }
        let marked = buffer[..count].windows(NESTED.len()).position(|bytes| bytes == NESTED.as_bytes());
        if let Some(kind) = marked.filter(|_| !to_client).and_then(|at| buffer[..count].get_mut(at + NESTED.len())) {
            *kind = b'A';
        }
        if seen.wait_for(|weather| !weather.stalled).await.is_err() || to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
