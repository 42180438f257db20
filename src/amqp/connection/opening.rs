//! Opens one connection to one address, with a deadline for every step.

use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::AsFd;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_rs::Tokio;
use lapin::tcp::RustlsConnector;
use lapin::types::{LongString, ShortString};
use lapin::{AsyncTcpStream, Connection, ConnectionProperties};
use tokio::time::timeout;

use super::request::{code, explain, is_denied};
use crate::amqp::frame_filter::{self, FilteredStream, InFlight};
use crate::amqp::url::BrokerUrl;
use crate::tls::{Tls, TlsFault};

/// The deadline for name resolution, TCP and TLS to one address, in seconds.
const DIAL_SECONDS_MAX: u64 = 5;
/// The deadline for the AMQP handshake, in seconds.
const HANDSHAKE_SECONDS_MAX: u64 = 5;
/// The heartbeat to negotiate, in seconds. A peer that is silent for twice as long counts as dead.
const HEARTBEAT_SECONDS: u16 = 10;

/// A connection that is open.
pub(super) struct Opened {
    pub(super) connection: Connection,
    pub(super) socket: Socket,
    /// The deliveries in flight, and whether they are limited.
    pub(super) in_flight: Arc<InFlight>,
    /// The version that the broker reports, once it has.
    pub(super) version: Arc<OnceLock<String>>,
}

/// Opens a connection to `url`. The broker's list of connections shows `name`.
pub(super) async fn open(url: &BrokerUrl, tls: &Tls, name: String) -> Result<Opened, Failure> {
    let (stream, socket) = open_stream(url, tls).await?;
    let properties = ConnectionProperties::default()
        .with_connection_name(LongString::from(name))
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
            why: TlsFault::explain(explain(&error), url.is_tls()),
        })?;
    Ok(Opened { connection, socket, in_flight, version })
}

/// Opens TCP, and TLS for `amqps://`.
async fn open_stream(url: &BrokerUrl, tls: &Tls) -> Result<(frame_filter::Connection, Socket), Failure> {
    // Made first: reading the system's certificate authorities takes a while, and the broker's handshake timeout is 5 s.
    let config = url.is_tls().then(|| tls.client_config()).transpose();
    let connector = config.map_err(|error| Failure::of(error.to_string()))?.map(RustlsConnector::from);
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
    timeout(Duration::from_secs(DIAL_SECONDS_MAX), dialling)
        .await
        .map_err(|_| Failure::silent(format!("no connection within {DIAL_SECONDS_MAX} s")))?
        .map_err(|error| Failure {
            silent: error.kind() == io::ErrorKind::TimedOut,
            ..Failure::of(TlsFault::explain(error.to_string(), url.is_tls()))
        })
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

/// Why one address did not work.
pub(super) struct Failure {
    pub(super) denied: bool,
    /// Whether it accepted a connection, or took no notice of it, and did not answer in time.
    pub(super) silent: bool,
    pub(super) why: String,
}

impl Failure {
    fn of(why: String) -> Self {
        Self { denied: false, silent: false, why }
    }

    fn silent(why: String) -> Self {
        Self { silent: true, ..Self::of(why) }
    }
}

/// A second handle on a connection's socket. Dropping it shuts the socket down, which is the only way to stop `lapin`'s
/// thread when the peer neither answers nor closes.
pub(super) struct Socket(std::net::TcpStream);

impl Socket {
    pub(super) fn shut_down(&self) {
        // An error means that the socket is already closed.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.shut_down();
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpSocket, TcpStream};

    use super::*;

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
