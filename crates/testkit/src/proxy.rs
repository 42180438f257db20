//! A TCP proxy that cuts, stalls and delays connections, or closes them in the broker's name.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use offramp::amqp::Broker;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::rabbit::amqp_url;

/// The broker's `connection.close` with code 320, as on an operator's request.
const CONNECTION_CLOSE: &[u8] = b"\x01\0\0\0\0\0\x1c\0\x0a\0\x32\x01\x40\x11CONNECTION_FORCED\0\0\0\0\xce";

/// A proxy replaces this text with bytes that are not UTF-8, which lapin can neither send nor read.
pub const NOT_UTF8: &str = "@not-utf-8@";

/// A proxy drops what is sent to the broker together with this text, so that the message is never confirmed.
pub const LOST: &str = "@lost@";

/// The name of a header whose byte array a proxy turns into an AMQP array. lapin could not encode such deeply nested arrays without
/// a stack overflow.
pub const NESTED: &str = "@nested@";

/// `depth` nested arrays, as bytes of the AMQP encoding.
pub fn nested_arrays(depth: u32) -> Vec<u8> {
    (0..depth).rev().flat_map(|level| [&b"A"[..], &(level * 5).to_be_bytes()].concat()).collect()
}

/// A proxy between a client and a server.
pub struct Proxy {
    address: SocketAddr,
    conditions: watch::Sender<Conditions>,
    has_caught: Arc<AtomicBool>,
}

#[derive(Clone, Copy, PartialEq)]
struct Conditions {
    /// Holds bytes to the client.
    mute: bool,
    /// Holds bytes to the server.
    deaf: bool,
    /// Connections are cut when this changes.
    cuts: u32,
    /// Clients receive `connection.close` when this changes.
    closes: u32,
    /// The delay before each response.
    late: Duration,
    /// Added to `localTime` in MongoDB's replies to `hello`, in milliseconds.
    clock_shift: i64,
    /// Requests that contain this text are held. Empty: none.
    held: &'static str,
}

impl Conditions {
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

    /// A proxy in front of a server, which may be unavailable at times.
    pub async fn to(host: &str, port: u16) -> Self {
        let target = (host.to_owned(), port);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let normal =
            Conditions { mute: false, deaf: false, cuts: 0, closes: 0, late: Duration::ZERO, clock_shift: 0, held: "" };
        let (conditions, seen) = watch::channel(normal);
        let has_caught = Arc::new(AtomicBool::new(false));
        let caught = has_caught.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (target, seen, caught) = (target.clone(), seen.clone(), caught.clone());
                tokio::spawn(async move {
                    let Ok(server) = TcpStream::connect(target).await else { return };
                    // No delay by Nagle's algorithm.
                    if client.set_nodelay(true).and(server.set_nodelay(true)).is_err() {
                        return;
                    }
                    let (client_in, client_out) = client.into_split();
                    let (server_in, server_out) = server.into_split();
                    let mut until = seen.clone();
                    let cuts = until.borrow().cuts;
                    let asked = AtomicBool::new(false);
                    tokio::select! {
                        // A cut takes precedence: bytes held by then are lost even if the proxy resumes at once.
                        biased;
                        _ = until.wait_for(|conditions| conditions.cuts != cuts) => {}
                        () = pass(client_in, server_out, seen.clone(), false, &asked, &caught) => {}
                        () = pass(server_in, client_out, seen, true, &asked, &caught) => {}
                    }
                });
            }
        });
        Self { address, conditions, has_caught }
    }

    /// A proxy in front of the server of a URL, and the URL of the proxy.
    pub async fn in_front_of(url: &str) -> (Self, String) {
        let mut url = url::Url::parse(url).unwrap();
        let proxy = Self::to(url.host_str().unwrap(), url.port().unwrap()).await;
        url.set_host(Some("127.0.0.1")).unwrap();
        url.set_port(Some(proxy.address.port())).unwrap();
        (proxy, url.into())
    }

    /// [`Self::in_front_of`] for MongoDB.
    pub async fn in_front_of_mongodb(url: &str) -> (Self, String) {
        let (proxy, url) = Self::in_front_of(url).await;
        let mut url = url::Url::parse(&url).unwrap();
        let options: Vec<_> = url.query_pairs().into_owned().filter(|(name, _)| name != "replicaSet").collect();
        // Otherwise the driver would discover the members of the replica set and bypass the proxy.
        url.query_pairs_mut().clear().extend_pairs(options).append_pair("directConnection", "true");
        (proxy, url.into())
    }

    /// The broker behind this proxy.
    pub fn broker(&self, name: &str) -> Broker {
        Self::broker_behind([self], name)
    }

    /// The broker behind these proxies: as many addresses, in this order.
    pub fn broker_behind<'a>(proxies: impl IntoIterator<Item = &'a Self>, name: &str) -> Broker {
        let url = |proxy: &Self| {
            let mut url = url::Url::parse(&amqp_url()).unwrap();
            url.set_host(Some("127.0.0.1")).unwrap();
            url.set_port(Some(proxy.address.port())).unwrap();
            url.to_string()
        };
        let urls: Vec<String> = proxies.into_iter().map(url).collect();
        Broker::new(urls.join(",").parse().unwrap(), name)
    }

    /// Shifts MongoDB's clock, as clients see it, by this many seconds.
    pub fn shift_clock(&self, seconds: i64) {
        self.conditions.send_modify(|conditions| conditions.clock_shift = seconds * 1_000);
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether a request was dropped because of [`LOST`], or is held by [`Self::hold_requests`].
    pub fn has_caught(&self) -> bool {
        self.has_caught.load(Ordering::Relaxed)
    }

    /// Closes every open connection.
    pub fn cut(&self) {
        self.conditions.send_modify(|conditions| conditions.cuts += 1);
    }

    /// Closes every AMQP connection in the broker's name. Use it only while no frame is being sent.
    pub fn close_as_the_broker(&self) {
        self.conditions.send_modify(|conditions| conditions.closes += 1);
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

    /// Passes everything again, including held bytes.
    pub fn resume(&self) {
        self.hold(false, false);
    }

    /// Holds requests that contain this text, until the next call. Only for clients that send one request at a time on a connection.
    pub fn hold_requests(&self, with: &'static str) {
        self.conditions.send_modify(|conditions| conditions.held = with);
    }

    /// Delays each response. Only for clients that send one request at a time on a connection.
    pub fn delay_answers(&self, late: Duration) {
        self.conditions.send_modify(|conditions| conditions.late = late);
    }

    fn hold(&self, mute: bool, deaf: bool) {
        self.conditions.send_modify(|conditions| (conditions.mute, conditions.deaf) = (mute, deaf));
    }
}

/// Forwards bytes until either side ends, or sends `connection.close` to the client. `asked` is whether the client has sent
/// something since the server's last response, `caught` whether something of the client was dropped, or held because of its text.
async fn pass(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    mut seen: watch::Receiver<Conditions>,
    to_client: bool,
    asked: &AtomicBool,
    caught: &AtomicBool,
) {
    let mut buffer = [0; 16 * 1024];
    let closes = seen.borrow().closes;
    let mut told = seen.clone();
    loop {
        let count = tokio::select! {
            count = from.read(&mut buffer) => Some(count),
            _ = told.wait_for(|conditions| to_client && conditions.closes != closes) => None,
        };
        let count = match count {
            Some(Ok(count @ 1..)) => count,
            Some(_) => return,
            None => {
                let _ = to.write_all(CONNECTION_CLOSE).await;
                // The client confirms and closes the connection.
                return std::future::pending().await;
            }
        };
        let marked = buffer[..count].windows(NOT_UTF8.len()).position(|bytes| bytes == NOT_UTF8.as_bytes());
        if let Some(at) = marked {
            buffer[at..at + NOT_UTF8.len()].fill(0xff);
        }
        if !to_client && buffer[..count].windows(LOST.len()).any(|bytes| bytes == LOST.as_bytes()) {
            caught.store(true, Ordering::Relaxed);
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
        if !to_client && seen.borrow().holds(bytes) {
            caught.store(true, Ordering::Relaxed);
        }
        let passes = |conditions: &Conditions| {
            !if to_client { conditions.mute } else { conditions.deaf || conditions.holds(bytes) }
        };
        if seen.wait_for(passes).await.is_err() || to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

/// Shifts each `localTime` in BSON: type, name, and eight bytes of milliseconds.
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
