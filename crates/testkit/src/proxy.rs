//! A TCP proxy that cuts, stalls and slows connections, or closes them in the broker's name.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use offramp::amqp::Broker;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::rabbit::amqp_url;

/// What the broker sends before it closes a connection on an operator's request: `connection.close`, 320.
const CONNECTION_CLOSE: &[u8] = b"\x01\0\0\0\0\0\x1c\0\x0a\0\x32\x01\x40\x11CONNECTION_FORCED\0\0\0\0\xce";

/// On its way to the broker, a proxy turns this into bytes that are not UTF-8: what lapin can send becomes what it cannot read.
pub const NOT_UTF8: &str = "@not-utf-8@";

/// On its way to the broker, what is sent together with this is lost: it is a message that is never confirmed.
pub const LOST: &str = "@lost@";

/// The name of a header with a byte array, which a proxy turns into an array of the same bytes on its way to the broker: so
/// lapin can send what it could not put in words without overflowing its stack.
pub const NESTED: &str = "@nested@";

/// `depth` nested arrays, as bytes of the AMQP encoding.
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
    /// Nothing passes to the client.
    mute: bool,
    /// Nothing passes to the server.
    deaf: bool,
    /// Connections end when it changes.
    cuts: u32,
    /// Clients are told to close when it changes.
    closes: u32,
    /// How late an answer begins.
    late: Duration,
    /// What is added to the time of day that MongoDB's `hello` answers with, in milliseconds.
    clock_shift: i64,
    /// What contains this does not pass to the server. Empty: everything passes.
    held: &'static str,
}

impl Weather {
    fn holds(&self, bytes: &[u8]) -> bool {
        !self.held.is_empty() && bytes.windows(self.held.len()).any(|window| window == self.held.as_bytes())
    }
}

impl Proxy {
    /// A proxy in front of the broker.
    pub async fn start() -> Self {
        let url = url::Url::parse(&amqp_url()).unwrap();
        Self::to(url.host_str().unwrap(), url.port().unwrap_or(5672)).await
    }

    /// A proxy in front of a server. The server need not be there yet, and may go and come back.
    pub async fn to(host: &str, port: u16) -> Self {
        let target = (host.to_owned(), port);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let fair =
            Weather { mute: false, deaf: false, cuts: 0, closes: 0, late: Duration::ZERO, clock_shift: 0, held: "" };
        let (weather, seen) = watch::channel(fair);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (target, seen) = (target.clone(), seen.clone());
                tokio::spawn(async move {
                    let Ok(server) = TcpStream::connect(target).await else { return };
                    // It holds nothing back by itself.
                    if client.set_nodelay(true).and(server.set_nodelay(true)).is_err() {
                        return;
                    }
                    let (client_in, client_out) = client.into_split();
                    let (server_in, server_out) = server.into_split();
                    let mut until = seen.clone();
                    let cuts = until.borrow().cuts;
                    let asked = AtomicBool::new(false);
                    tokio::select! {
                        // A cut comes first: what was held back by then is lost, even when all passes again at once.
                        biased;
                        _ = until.wait_for(|weather| weather.cuts != cuts) => {}
                        () = pass(client_in, server_out, seen.clone(), false, &asked) => {}
                        () = pass(server_in, client_out, seen, true, &asked) => {}
                    }
                });
            }
        });
        Self { address, weather }
    }

    /// A proxy in front of the server of a URL, and the URL that leads through it.
    pub async fn in_front_of(url: &str) -> (Self, String) {
        let mut url = url::Url::parse(url).unwrap();
        let proxy = Self::to(url.host_str().unwrap(), url.port().unwrap()).await;
        url.set_host(Some("127.0.0.1")).unwrap();
        url.set_port(Some(proxy.address.port())).unwrap();
        (proxy, url.into())
    }

    /// The same for MongoDB.
    pub async fn in_front_of_mongodb(url: &str) -> (Self, String) {
        let (proxy, url) = Self::in_front_of(url).await;
        let mut url = url::Url::parse(&url).unwrap();
        let options: Vec<_> = url.query_pairs().into_owned().filter(|(name, _)| name != "replicaSet").collect();
        // Otherwise the driver asks the replica set where it is, and goes there.
        url.query_pairs_mut().clear().extend_pairs(options).append_pair("directConnection", "true");
        (proxy, url.into())
    }

    /// The broker, seen through this proxy.
    pub fn broker(&self, name: &str) -> Broker {
        let mut url = url::Url::parse(&amqp_url()).unwrap();
        url.set_host(Some("127.0.0.1")).unwrap();
        url.set_port(Some(self.address.port())).unwrap();
        Broker::new(url.as_str().parse().unwrap(), name)
    }

    /// Shifts MongoDB's time of day, as clients see it, by this many seconds.
    pub fn shift_clock(&self, seconds: i64) {
        self.weather.send_modify(|weather| weather.clock_shift = seconds * 1_000);
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes every open connection.
    pub fn cut(&self) {
        self.weather.send_modify(|weather| weather.cuts += 1);
    }

    /// Closes every AMQP connection in the broker's name. Only while no frame is being sent.
    pub fn close_as_the_broker(&self) {
        self.weather.send_modify(|weather| weather.closes += 1);
    }

    /// Holds both directions and closes nothing, like an unplugged cable.
    pub fn stall(&self) {
        self.hold(true, true);
    }

    /// Holds everything that the server sends.
    pub fn mute(&self) {
        self.hold(true, false);
    }

    /// Holds everything that the client sends.
    pub fn deafen(&self) {
        self.hold(false, true);
    }

    /// Lets everything pass again, including what was held.
    pub fn resume(&self) {
        self.hold(false, false);
    }

    /// From now on requests that contain this text wait, until there is another one. Only for clients that ask one thing at a
    /// time over a connection.
    pub fn hold_requests(&self, with: &'static str) {
        self.weather.send_modify(|weather| weather.held = with);
    }

    /// Delays each response. Only for clients that send one request at a time on a connection.
    pub fn delay_answers(&self, late: Duration) {
        self.weather.send_modify(|weather| weather.late = late);
    }

    fn hold(&self, mute: bool, deaf: bool) {
        self.weather.send_modify(|weather| (weather.mute, weather.deaf) = (mute, deaf));
    }
}

/// Passes bytes on, until either side ends or, where the client is at the far end, it is told to close. `asked`:
/// whether the client has said something since the server did.
async fn pass(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    mut seen: watch::Receiver<Weather>,
    to_client: bool,
    asked: &AtomicBool,
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
        if !to_client && buffer[..count].windows(LOST.len()).any(|bytes| bytes == LOST.as_bytes()) {
            continue;
        }
        let marked = buffer[..count].windows(NESTED.len()).position(|bytes| bytes == NESTED.as_bytes());
        if let Some(kind) = marked.filter(|_| !to_client).and_then(|at| buffer[..count].get_mut(at + NESTED.len())) {
            *kind = b'A';
        }
        let clock_shift = seen.borrow().clock_shift;
        if to_client && clock_shift != 0 {
            shift_local_time(&mut buffer[..count], clock_shift);
        }
        if !to_client {
            asked.store(true, Ordering::Relaxed);
        } else if asked.swap(false, Ordering::Relaxed) {
            let late = seen.borrow().late;
            if !late.is_zero() {
                tokio::time::sleep(late).await;
            }
        }
        let bytes = &buffer[..count];
        let passes = |weather: &Weather| !if to_client { weather.mute } else { weather.deaf || weather.holds(bytes) };
        if seen.wait_for(passes).await.is_err() || to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

/// Adds to the instants of `localTime` in BSON: type, name, and eight bytes of milliseconds.
fn shift_local_time(bytes: &mut [u8], milliseconds: i64) {
    const FIELD: &[u8] = b"\x09localTime\0";
    let fields = bytes.windows(FIELD.len()).enumerate().filter(|(_, bytes)| *bytes == FIELD);
    let places: Vec<usize> = fields.map(|(at, _)| at + FIELD.len()).collect();
    for at in places {
        if let Some(time) = bytes.get_mut(at..at + 8) {
            let shifted = i64::from_le_bytes(time.try_into().unwrap()) + milliseconds;
            time.copy_from_slice(&shifted.to_le_bytes());
        }
    }
}
