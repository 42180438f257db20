//! One connection to the broker: a list of addresses, a deadline for every step, TLS for `amqps://`.
//!
//! Nothing here reconnects: the owner of a [`Link`] does. Dropping a link shuts its socket down, because `lapin`'s own
//! close waits for the peer without a deadline (a stalled network, a blocked connection), and keeps a thread and its
//! unsent frames until then.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_rs::Tokio;
use futures_util::future::join_all;
use lapin::tcp::RustlsConnector;
use lapin::types::{LongString, ShortString};
use lapin::{AsyncTcpStream, Channel, Connection, ConnectionProperties, ErrorKind};
use tokio::time::{sleep, timeout};

use super::frame_filter::{self, FilteredStream, InFlight};
use super::reply_code::{ACCESS_REFUSED, NOT_ALLOWED, PRECONDITION_FAILED};
use super::url::BrokerUrls;
use crate::metrics;
use crate::metrics::labels::ConnectionPurpose;
use crate::tls::{Tls, TlsFault};

/// The deadline for name resolution, TCP and TLS to one address, in seconds.
const DIAL_SECONDS_MAX: u64 = 5;
/// The deadline for the AMQP handshake, in seconds.
const HANDSHAKE_SECONDS_MAX: u64 = 5;
/// The deadline for any request on an open connection (open a channel, declare, consume), in seconds.
pub(super) const REPLY_SECONDS_MAX: u64 = 5;
/// The deadline for an orderly close, in seconds. The socket is shut down afterwards.
const CLOSE_SECONDS_MAX: u64 = 2;
/// How often to check that a connection is still open, and how long to wait for errors after its end, in milliseconds.
const POLL_MILLISECONDS: u64 = 100;
/// The heartbeat to negotiate, in seconds. A peer that is silent for twice as long counts as dead.
const HEARTBEAT_SECONDS: u16 = 10;
/// The shortest and the longest backoff between attempts to connect. See [`crate::backoff`].
pub(super) const RECONNECT_DELAYS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(1_500));

/// The reply codes for an invalid user or virtual host.
const DENIED_CODES: [u16; 2] = [ACCESS_REFUSED, NOT_ALLOWED];

/// The settings for connections to the broker. Cheap to clone. Opens nothing by itself.
#[derive(Clone)]
pub struct Broker(Arc<Settings>);

struct Settings {
    urls: BrokerUrls,
    name: String,
    tls: Tls,
    /// The index of the address to try first: the one after the last that failed. An address fails, too, when a node accepts connections
    /// but does not serve them, such as one that is cut off from its cluster.
    next: AtomicUsize,
}

impl Broker {
    /// The broker at `urls`. The broker's list of connections shows `name`, followed by the purpose of each connection.
    /// `amqps://` trusts the system's certificate authorities; see [`Self::with_tls`].
    #[must_use]
    pub fn new(urls: BrokerUrls, name: impl Into<String>) -> Self {
        Self::with_tls(urls, name, Tls::default())
    }

    /// As [`Self::new`], with other TLS settings for `amqps://`.
    #[must_use]
    pub fn with_tls(urls: BrokerUrls, name: impl Into<String>, tls: Tls) -> Self {
        Self(Arc::new(Settings { urls, name: name.into(), tls, next: AtomicUsize::new(0) }))
    }

    /// The addresses. They never display a password.
    #[must_use]
    pub fn urls(&self) -> &BrokerUrls {
        &self.0.urls
    }

    /// Connects. Tries each address once, starting with the one after the last that failed, so that concurrent calls lead to
    /// the same node as long as it serves. `purpose` becomes part of the connection's name at the broker.
    ///
    /// # Errors
    /// [`BrokerError::Denied`] when an address rejects the user or the virtual host, [`BrokerError::Silent`] when one does not
    /// answer, otherwise [`BrokerError::Unreachable`].
    pub async fn connect(&self, purpose: &str) -> Result<Link, BrokerError> {
        let urls = self.0.urls.as_slice();
        let (mut denied, mut silent) = (false, false);
        let mut problems = Vec::new();
        let first = self.0.next.load(Ordering::Relaxed) % urls.len();
        for index in (first..urls.len()).chain(0..first) {
            let mut attempt = Attempt { address: Address { settings: self.0.clone(), index }, succeeded: false };
            match Box::pin(self.connect_to(index, purpose)).await {
                Ok(link) => {
                    attempt.succeeded = true;
                    return Ok(link);
                }
                Err(failure) => {
                    denied |= failure.denied;
                    silent |= failure.silent;
                    problems.push(format!("{}: {}", urls[index], failure.why));
                }
            }
        }
        let why = problems.join("; ");
        Err(match (denied, silent) {
            (true, _) => BrokerError::Denied(why),
            (_, true) => BrokerError::Silent(why),
            _ => BrokerError::Unreachable(why),
        })
    }

    async fn connect_to(&self, index: usize, purpose: &str) -> Result<Link, Failure> {
        let url = &self.0.urls.as_slice()[index];
        // Made first: reading the system's certificate authorities takes a while, and the broker's handshake timeout is 5 s.
        let tls = url.is_tls().then(|| self.0.tls.client_config()).transpose();
        let connector = tls.map_err(|error| Failure::of(error.to_string()))?.map(RustlsConnector::from);
        let explain_tls = |why: String| TlsFault::explain(why, url.is_tls());
        let dialling = async {
            let stream = dial(tokio::net::lookup_host((url.host(), url.port())).await?.collect()).await?;
            let AsyncTcpStream::Plain(tcp) = &stream else {
                return Err(io::Error::other("a new TCP stream is not plain"));
            };
            // Acks are small frames. With Nagle's algorithm, each would wait for the TCP ack of the one before.
            tcp.get_ref().set_nodelay(true)?;
            let socket = Socket(tcp.get_ref().as_fd().try_clone_to_owned()?.into());
            match &connector {
                Some(connector) => Ok((stream.into_rustls(connector, url.host()).await?, socket)),
                None => Ok((stream, socket)),
            }
        };
        let (stream, socket) = timeout(Duration::from_secs(DIAL_SECONDS_MAX), dialling)
            .await
            .map_err(|_| Failure::silent(format!("no connection within {DIAL_SECONDS_MAX} s")))?
            .map_err(|error| Failure {
                silent: error.kind() == io::ErrorKind::TimedOut,
                ..Failure::of(explain_tls(error.to_string()))
            })?;
        let properties = ConnectionProperties::default()
            .with_connection_name(LongString::from(format!("{} {purpose}", self.0.name)))
            .with_client_property(ShortString::from("product"), LongString::from(env!("CARGO_PKG_NAME")))
            .with_client_property(ShortString::from("version"), LongString::from(env!("CARGO_PKG_VERSION")));
        // lapin would connect without a deadline: it gets the stream that is already open.
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
            .map_err(|_| Failure::silent(format!("no AMQP handshake within {HANDSHAKE_SECONDS_MAX} s")))?
            .map_err(|error| Failure {
                denied: code(&error).is_some_and(is_denied),
                silent: false,
                why: explain_tls(explain(&error)),
            })?;
        Ok(Link { connection, socket, in_flight, version, address: Address { settings: self.0.clone(), index } })
    }
}

/// Opens TCP to the first address that answers. Each address gets an equal share of the time, so a silent one does not
/// use it up.
async fn dial(addresses: Vec<SocketAddr>) -> io::Result<frame_filter::Connection> {
    let share = Duration::from_secs(DIAL_SECONDS_MAX) / u32::try_from(addresses.len() + 1).unwrap_or(u32::MAX);
    let mut last_error = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in addresses {
        match timeout(share, AsyncTcpStream::connect(&Tokio::current(), vec![address])).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last_error = error,
            Err(_) => last_error = io::Error::new(io::ErrorKind::TimedOut, format!("{address} does not answer")),
        }
    }
    Err(last_error)
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broker").field("urls", &self.0.urls).field("name", &self.0.name).finish_non_exhaustive()
    }
}

/// Why one address did not work.
struct Failure {
    denied: bool,
    /// Whether it accepted a connection, or took no notice of it, and did not answer in time.
    silent: bool,
    why: String,
}

impl Failure {
    fn of(why: String) -> Self {
        Self { denied: false, silent: false, why }
    }

    fn silent(why: String) -> Self {
        Self { silent: true, ..Self::of(why) }
    }
}

/// An open connection. Dropping it shuts the socket down: the broker requeues every unacknowledged delivery.
pub struct Link {
    connection: Connection,
    socket: Socket,
    in_flight: Arc<InFlight>,
    version: Arc<OnceLock<String>>,
    address: Address,
}

/// Which of the broker's addresses a connection leads to.
struct Address {
    settings: Arc<Settings>,
    index: usize,
}

impl Address {
    /// Makes the next attempt to connect begin with another address, if there is one and this would be the first.
    fn failed(&self) {
        let count = self.settings.urls.as_slice().len();
        let after = |next: usize| (next % count == self.index).then_some(self.index + 1);
        // An error means that another address comes first already.
        let _ = self.settings.next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, after);
    }
}

/// An attempt to connect. Unless it succeeds, its address has failed, also if its caller no longer waits.
struct Attempt {
    address: Address,
    succeeded: bool,
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if !self.succeeded {
            self.address.failed();
        }
    }
}

impl Link {
    /// Connections to the broker's other addresses that answer.
    pub(super) async fn to_other_addresses(&self, purpose: &str) -> Vec<Self> {
        let Address { settings, index } = &self.address;
        let broker = Broker(settings.clone());
        let others = (0..settings.urls.as_slice().len()).filter(|other| other != index);
        join_all(others.map(|other| broker.connect_to(other, purpose)))
            .await
            .into_iter()
            .filter_map(Result::ok)
            .collect()
    }

    /// Opens a channel.
    ///
    /// # Errors
    /// [`BrokerError::Failed`] or [`BrokerError::Deadline`]. Discard the connection after either.
    pub(super) async fn channel(&self) -> Result<Channel, BrokerError> {
        self.ask("open a channel", self.connection.create_channel()).await
    }

    /// Sends a request over this connection. Fails once the connection is lost: `lapin` may never complete a request that
    /// was sent at that moment.
    pub(super) async fn ask<T>(
        &self,
        doing: impl Into<Cow<'static, str>>,
        request: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T, BrokerError> {
        let doing = doing.into();
        let reply = tokio::select! {
            biased;
            reply = ask(doing.clone(), request) => reply,
            () = self.lost() => {
                Err(BrokerError::Failed { doing, why: "the connection was lost".to_owned(), code: None })
            }
        };
        if matches!(reply, Err(BrokerError::Deadline { .. })) {
            self.address.failed();
        }
        reply
    }

    /// Returns shortly after the connection is lost, once `lapin` has delivered its last errors.
    pub(super) async fn lost(&self) {
        let interval = Duration::from_millis(POLL_MILLISECONDS);
        while self.is_live() {
            sleep(interval).await;
        }
        sleep(interval).await;
    }

    /// Whether the connection is open, as far as is known before the next heartbeat.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.connection.status().connected()
    }

    /// The address it leads to, without a password.
    pub(super) fn url(&self) -> String {
        self.address.settings.urls.as_slice()[self.address.index].to_string()
    }

    /// The index of that address.
    pub(super) fn address_index(&self) -> usize {
        self.address.index
    }

    /// How many addresses the broker has.
    pub(super) fn address_count(&self) -> usize {
        self.address.settings.urls.as_slice().len()
    }

    /// The version that the broker reports; empty if it reports none.
    pub(super) fn broker_version(&self) -> &str {
        self.version.get().map_or("", String::as_str)
    }

    /// Whether the cluster's metadata can be read and changed wherever a majority of its nodes is: from RabbitMQ 4.2 on, which keeps it in
    /// Khepri. Earlier ones ask the node that led a queue, even if that is cut off, until it is given up.
    pub(super) fn has_majority_metadata(&self) -> bool {
        keeps_metadata_in_khepri(self.broker_version())
    }

    pub(super) fn in_flight(&self) -> &InFlight {
        &self.in_flight
    }

    /// Whether the broker blocks publishers, because it is low on memory or disk.
    pub(super) fn is_blocked(&self) -> bool {
        self.connection.status().blocked()
    }

    /// Ends the connection at once, also for other holders of this link. For a connection in doubt: the next one tries another address
    /// first.
    pub(super) fn cut(&self) {
        self.address.failed();
        self.socket.shut_down();
    }

    /// Closes the connection in order if the broker replies within 2 seconds, otherwise at the socket.
    pub async fn close(&self) {
        let closing = self.connection.close(200, ShortString::from("OK"));
        // Whether the broker replied makes no difference.
        let _ = timeout(Duration::from_secs(CLOSE_SECONDS_MAX), closing).await;
        self.socket.shut_down();
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("live", &self.is_live()).finish_non_exhaustive()
    }
}

/// A second handle on a connection's socket. Dropping it shuts the socket down, which is the only way to stop `lapin`'s
/// thread when the peer neither answers nor closes.
struct Socket(std::net::TcpStream);

impl Socket {
    fn shut_down(&self) {
        // An error means that the socket is already closed.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.shut_down();
    }
}

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
    /// No reply arrived in time, on an open connection.
    #[error("RabbitMQ did not {doing} within {REPLY_SECONDS_MAX} s")]
    Deadline {
        /// The request, as a verb phrase.
        doing: Cow<'static, str>,
    },
}

impl BrokerError {
    /// The AMQP reply code, if the broker sent one. See [`super::reply_code`].
    pub(super) fn code(&self) -> Option<u16> {
        match self {
            Self::Failed { code, .. } => *code,
            _ => None,
        }
    }

    /// Whether it may be over soon, without an operator: a server is frozen or restarts, or a queue has no leader.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Denied(_) => false,
            Self::Silent(_) | Self::Stranger { .. } | Self::Deadline { .. } => true,
            Self::Failed { code, .. } => !code.is_some_and(|code| is_denied(code) || code == PRECONDITION_FAILED),
        }
    }

    pub(super) fn of(doing: impl Into<Cow<'static, str>>, error: &lapin::Error) -> Self {
        Self::Failed { doing: doing.into(), why: explain(error), code: code(error) }
    }
}

/// Sends a request to the broker, under the common deadline.
pub(super) async fn ask<T>(
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
pub(super) fn code(error: &lapin::Error) -> Option<u16> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => Some(error.get_id()),
        _ => None,
    }
}

fn is_denied(code: u16) -> bool {
    DENIED_CODES.contains(&code)
}

/// The message of the broker or the network, without lapin's prefix.
pub(super) fn explain(error: &lapin::Error) -> String {
    match error.kind() {
        ErrorKind::ProtocolError(error) => error.get_message().to_string(),
        ErrorKind::IOError(error) => error.to_string(),
        _ => error.to_string(),
    }
}

fn keeps_metadata_in_khepri(version: &str) -> bool {
    let mut numbers = version.split('.').map_while(|number| number.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(4), Some(2))
}

/// Counts a connection. More than one for a purpose means that one was lost.
pub(super) fn count_connection(purpose: ConnectionPurpose) {
    metrics::current().broker_connections.of((purpose,)).increment(1);
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpSocket, TcpStream};

    use super::*;

    #[test]
    fn metadata_is_kept_by_a_majority_from_4_2_on() {
        for (version, expected) in [
            ("", false),
            ("3.10.8", false),
            ("4.1.9", false),
            ("4.2.0", true),
            ("4.3.6", true),
            ("5.0.0-rc.1", true),
            ("?", false),
        ] {
            assert_eq!(keeps_metadata_in_khepri(version), expected, "{version}");
        }
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn dialling_skips_an_address_that_does_not_answer() {
        // The backlog has room for one connection; later ones get no answer.
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
