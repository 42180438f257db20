//! One connection to the broker: dialled under deadlines, over a list of addresses, with TLS where the URL says so.
//!
//! `lapin` recovers nothing here: who owns a [`Link`] rebuilds it. A link that is dropped is cut at the socket, because
//! `lapin`'s own closing waits for a peer that may never answer (a stalled network, a blocked connection), and would
//! keep a thread and its unsent frames as long.

use std::fmt;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_rs::Tokio;
use lapin::tcp::RustlsConnector;
use lapin::types::{LongString, ShortString};
use lapin::{AsyncTcpStream, Channel, Connection, ConnectionProperties, ErrorKind};
use tokio::time::{sleep, timeout};

use super::frame_filter::{self, FilteredStream, InFlight};
use super::reply_code::{ACCESS_REFUSED, NOT_ALLOWED};
use super::url::{BrokerUrl, BrokerUrls};
use crate::advice;
use crate::metrics::BROKER_CONNECTIONS;
use crate::tls::Tls;

/// Resolving a name, opening TCP and TLS to one address, in seconds.
const DIAL_SECONDS_MAX: u64 = 5;
/// AMQP's own handshake, in seconds.
const HANDSHAKE_SECONDS_MAX: u64 = 5;
/// Any question to the broker on an open connection (open a channel, declare, consume), in seconds.
pub(super) const REPLY_SECONDS_MAX: u64 = 5;
/// Saying goodbye, in seconds; the socket is cut afterwards.
const CLOSE_SECONDS_MAX: u64 = 2;
/// How often to look whether a connection still stands, and how long to wait for its last words, in milliseconds.
const LOOK_MILLISECONDS: u64 = 100;
/// The heartbeat that we ask for, in seconds. A peer silent for twice as long is taken for dead.
const HEARTBEAT_SECONDS: u16 = 10;
/// How long to wait before trying again to connect: from the first to the longest, see [`crate::backoff`].
pub(super) const RECONNECT_DELAYS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(1_500));

/// The reply codes for a user or a virtual host that the broker does not accept.
const DENIED_CODES: [u16; 2] = [ACCESS_REFUSED, NOT_ALLOWED];

/// How to reach the broker: addresses, a connection name, TLS. Cheap to clone; opens nothing by itself.
#[derive(Clone)]
pub struct Broker(Arc<Settings>);

struct Settings {
    urls: BrokerUrls,
    name: String,
    tls: Tls,
    /// Which address is tried first: the one that answered last, or the one after the last that failed.
    next: AtomicUsize,
}

impl Broker {
    /// The broker at `urls`. `name` shows up in the broker's list of connections, followed by what each is for.
    /// With `amqps://`, the system's certificate authorities are trusted; see [`Self::with_tls`].
    #[must_use]
    pub fn new(urls: BrokerUrls, name: impl Into<String>) -> Self {
        Self::with_tls(urls, name, Tls::default())
    }

    /// The same with TLS settings of one's own, used for the addresses that are `amqps://`.
    #[must_use]
    pub fn with_tls(urls: BrokerUrls, name: impl Into<String>, tls: Tls) -> Self {
        Self(Arc::new(Settings { urls, name: name.into(), tls, next: AtomicUsize::new(0) }))
    }

    /// The addresses, as they may be shown: without passwords.
    #[must_use]
    pub fn urls(&self) -> &BrokerUrls {
        &self.0.urls
    }

    /// Connects: each address is tried once, in turn, beginning with the one that answered last. `purpose` becomes part
    /// of the connection's name at the broker.
    ///
    /// # Errors
    /// [`BrokerError::Denied`] when an address refuses the user or the virtual host, [`BrokerError::Unreachable`] when
    /// none answers in time.
    pub async fn connect(&self, purpose: &str) -> Result<Link, BrokerError> {
        let urls = self.0.urls.as_slice();
        let mut denied = false;
        let mut problems = Vec::new();
        for _ in urls {
            // Counted before the attempt: one that is abandoned half-way (a caller's deadline) must not come first again.
            let index = self.0.next.fetch_add(1, Ordering::Relaxed) % urls.len();
            let url = &urls[index];
            match Box::pin(self.connect_to(url, purpose)).await {
                Ok(link) => {
                    self.0.next.store(index, Ordering::Relaxed);
                    return Ok(link);
                }
                Err(failure) => {
                    denied |= failure.denied;
                    problems.push(format!("{url}: {}", failure.why));
                }
            }
        }
        let why = problems.join("; ");
        Err(if denied { BrokerError::Denied(why) } else { BrokerError::Unreachable(why) })
    }

    async fn connect_to(&self, url: &BrokerUrl, purpose: &str) -> Result<Link, Failure> {
        // Made first: reading the system's authorities takes a while, and the broker gives a handshake 5 s.
        let tls = url.is_tls().then(|| self.0.tls.client_config()).transpose();
        let connector = tls.map_err(|error| Failure::of(error.to_string()))?.map(RustlsConnector::from);
        let explain_tls = |why: String| advice::append(&why, advice::tls(&why, url.is_tls()));
        let dialling = async {
            let stream = dial(tokio::net::lookup_host((url.host(), url.port())).await?.collect()).await?;
            let AsyncTcpStream::Plain(tcp) = &stream else {
                return Err(io::Error::other("a fresh TCP stream is not plain"));
            };
            // Acks are small frames: without this, each waits for the answer to the one before.
            tcp.get_ref().set_nodelay(true)?;
            let socket = Socket(tcp.get_ref().as_fd().try_clone_to_owned()?.into());
            match &connector {
                Some(connector) => Ok((stream.into_rustls(connector, url.host()).await?, socket)),
                None => Ok((stream, socket)),
            }
        };
        let (stream, socket) = timeout(Duration::from_secs(DIAL_SECONDS_MAX), dialling)
            .await
            .map_err(|_| Failure::of(format!("no connection within {DIAL_SECONDS_MAX} s")))?
            .map_err(|error| Failure::of(explain_tls(error.to_string())))?;
        let properties = ConnectionProperties::default()
            .with_connection_name(LongString::from(format!("{} {purpose}", self.0.name)))
            .with_client_property(ShortString::from("product"), LongString::from(env!("CARGO_PKG_NAME")))
            .with_client_property(ShortString::from("version"), LongString::from(env!("CARGO_PKG_VERSION")));
        // lapin asks for a stream from its own thread, and without a deadline: it gets the one that is open already.
        let (in_flight, version) = (Arc::new(InFlight::default()), Arc::new(OnceLock::new()));
        let filtered = FilteredStream::new(stream, in_flight.clone(), version.clone());
        let stream = std::sync::Mutex::new(Some(AsyncTcpStream::Plain(filtered)));
        let connecting = Connection::connector(
            url.for_handshake(HEARTBEAT_SECONDS),
            frame_filter::runtime(),
            async move |_, _| {
                let stream = stream.lock().ok().and_then(|mut stream| stream.take());
                stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected).into())
            },
            properties,
        );
        let connection = timeout(Duration::from_secs(HANDSHAKE_SECONDS_MAX), connecting)
            .await
            .map_err(|_| Failure::of(format!("no AMQP handshake within {HANDSHAKE_SECONDS_MAX} s")))?
            .map_err(|error| Failure {
                denied: code(&error).is_some_and(is_denied),
                why: explain_tls(explain(&error)),
            })?;
        Ok(Link { connection, socket, in_flight, version })
    }
}

/// Opens TCP to the first of a host's addresses that answers. Each has its share of the time: a silent one leaves some to
/// the next.
async fn dial(addresses: Vec<SocketAddr>) -> io::Result<frame_filter::Connection> {
    let share = Duration::from_secs(DIAL_SECONDS_MAX) / u32::try_from(addresses.len() + 1).unwrap_or(u32::MAX);
    let mut newest = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in addresses {
        match timeout(share, AsyncTcpStream::connect(&Tokio::current(), vec![address])).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => newest = error,
            Err(_) => newest = io::Error::new(io::ErrorKind::TimedOut, format!("{address} does not answer")),
        }
    }
    Err(newest)
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broker").field("urls", &self.0.urls).field("name", &self.0.name).finish_non_exhaustive()
    }
}

/// Why one address did not work.
struct Failure {
    denied: bool,
    why: String,
}

impl Failure {
    fn of(why: String) -> Self {
        Self { denied: false, why }
    }
}

/// An open connection. Dropping it cuts the socket: the broker takes back every delivery it has not seen acknowledged.
pub struct Link {
    connection: Connection,
    socket: Socket,
    in_flight: Arc<InFlight>,
    version: Arc<OnceLock<String>>,
}

impl Link {
    /// Opens a channel.
    ///
    /// # Errors
    /// [`BrokerError::Failed`] or [`BrokerError::Deadline`]; either way the connection is not worth keeping.
    pub(super) async fn channel(&self) -> Result<Channel, BrokerError> {
        self.ask("open a channel", self.connection.create_channel()).await
    }

    /// Puts a question to the broker over this connection, for as long as it stands.
    pub(super) async fn ask<T>(
        &self,
        doing: &'static str,
        question: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T, BrokerError> {
        tokio::select! {
            biased;
            answer = ask(doing, question) => answer,
            () = self.gone() => {
                Err(BrokerError::Failed { doing, why: "the connection is gone".to_owned(), code: None })
            }
        }
    }

    /// Returns some time after the connection is gone, when whatever it had to say is said. `lapin` may never answer what
    /// it was asked at the moment in which a connection breaks.
    pub(super) async fn gone(&self) {
        let look = Duration::from_millis(LOOK_MILLISECONDS);
        while self.is_live() {
            sleep(look).await;
        }
        sleep(look).await;
    }

    /// Whether the connection stands, as far as anybody can know before the next heartbeat.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.connection.status().connected()
    }

    /// The broker's version, as it tells it; empty when it tells none.
    pub(super) fn broker_version(&self) -> &str {
        self.version.get().map_or("", String::as_str)
    }

    /// What was delivered over it and is not out of our hands yet.
    pub(super) fn in_flight(&self) -> &InFlight {
        &self.in_flight
    }

    /// Whether the broker has stopped reading what publishers send (out of memory or disk).
    pub(super) fn is_blocked(&self) -> bool {
        self.connection.status().blocked()
    }

    /// Ends the connection at once, without a word: for one in doubt that others still hold.
    pub(super) fn cut(&self) {
        self.socket.shut();
    }

    /// Says goodbye and closes, within 2 seconds, whatever the peer does.
    pub async fn close(&self) {
        let goodbye = self.connection.close(200, ShortString::from("OK"));
        // Whether the broker answered makes no difference.
        let _ = timeout(Duration::from_secs(CLOSE_SECONDS_MAX), goodbye).await;
        self.cut();
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("live", &self.is_live()).finish_non_exhaustive()
    }
}

/// A second handle on a connection's socket. Dropping it ends the connection in both directions, which is the only way
/// to stop `lapin`'s thread when the peer neither answers nor hangs up.
struct Socket(std::net::TcpStream);

impl Socket {
    fn shut(&self) {
        // An error here means that it is closed already.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.shut();
    }
}

/// Why the broker could not be asked, or did not do as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BrokerError {
    /// No address answered; each with its reason.
    #[error("RabbitMQ does not answer: {0}")]
    Unreachable(String),
    /// An address answered, and refused the user or the virtual host: a matter of configuration.
    #[error("RabbitMQ refuses the connection: {0}")]
    Denied(String),
    /// The connection stood, the broker said no or went away.
    #[error("RabbitMQ did not {doing}: {why}")]
    Failed {
        /// What it was asked.
        doing: &'static str,
        /// What it said.
        why: String,
        /// The AMQP reply code, where it gave one.
        code: Option<u16>,
    },
    /// The connection stood, no answer came.
    #[error("RabbitMQ did not {doing} within {REPLY_SECONDS_MAX} s")]
    Deadline {
        /// What it was asked.
        doing: &'static str,
    },
}

impl BrokerError {
    /// The AMQP reply code: 404 for an object that does not exist, 406 for one that is different, 403 for permissions.
    pub(super) fn code(&self) -> Option<u16> {
        match self {
            Self::Failed { code, .. } => *code,
            _ => None,
        }
    }

    pub(super) fn of(doing: &'static str, error: &lapin::Error) -> Self {
        Self::Failed { doing, why: explain(error), code: code(error) }
    }
}

/// Puts a question to the broker, under the deadline that all questions share.
pub(super) async fn ask<T>(
    doing: &'static str,
    question: impl Future<Output = lapin::Result<T>>,
) -> Result<T, BrokerError> {
    match timeout(Duration::from_secs(REPLY_SECONDS_MAX), question).await {
        Ok(answer) => answer.map_err(|error| BrokerError::of(doing, &error)),
        Err(_) => Err(BrokerError::Deadline { doing }),
    }
}

/// The AMQP reply code in an error, if the broker gave one.
pub(super) fn code(error: &lapin::Error) -> Option<u16> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => Some(error.get_id()),
        _ => None,
    }
}

fn is_denied(code: u16) -> bool {
    DENIED_CODES.contains(&code)
}

/// What the broker or the network said, without lapin's wrapping.
pub(super) fn explain(error: &lapin::Error) -> String {
    match error.kind() {
        ErrorKind::ProtocolError(error) => error.get_message().to_string(),
        ErrorKind::IOError(error) => error.to_string(),
        _ => error.to_string(),
    }
}

/// Counts a connection made: more than one for each purpose means that one was lost.
pub(super) fn count_connection(purpose: &str) {
    metrics::counter!(BROKER_CONNECTIONS, "purpose" => purpose.to_owned()).increment(1);
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpSocket, TcpStream};

    use super::*;

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn of_several_addresses_a_silent_one_does_not_hide_the_next() {
        // Room for one that is not accepted; whoever comes then gets no answer.
        let silent = TcpSocket::new_v4().unwrap();
        silent.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let silent = silent.listen(0).unwrap();
        let address = silent.local_addr().unwrap();
        let _waiting = TcpStream::connect(address).await.unwrap();
        let alone = timeout(2 * Duration::from_secs(DIAL_SECONDS_MAX), dial(vec![address])).await.unwrap();
        assert!(alone.err().unwrap().to_string().contains("does not answer"));

        let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dialling = dial(vec![address, other.local_addr().unwrap()]);
        timeout(Duration::from_secs(DIAL_SECONDS_MAX), dialling).await.unwrap().unwrap();
    }
}
