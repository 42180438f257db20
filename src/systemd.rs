//! Tells systemd how the worker is (`Type=notify`): started, its status in one line, alive, stopping. The protocol is that of
//! `sd_notify(3)`. Whoever starts the worker otherwise sets no `NOTIFY_SOCKET`, and nothing is sent.
//!
//! "Started" does not mean ready: a worker that waits for a server is started and must not be restarted. What it waits for is in
//! the status, which `systemctl status` shows.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
#[cfg(target_os = "linux")]
use std::os::linux::net::SocketAddrExt;
#[cfg(target_os = "linux")]
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use tokio::time::interval;
use tokio_util::sync::CancellationToken;

use crate::health::Readiness;

/// How often the status is compared with the last one.
const STATUS_INTERVAL: Duration = Duration::from_secs(5);
/// How much longer than the shutdown the stop may take before systemd kills the process.
const STOP_MARGIN: Duration = Duration::from_secs(10);
const STATUS_CHARS_MAX: usize = 300;

/// The socket of systemd, if there is one.
#[derive(Debug, Default)]
pub struct Systemd {
    socket: Option<UnixDatagram>,
    /// How often the process must say that it is alive.
    watchdog: Option<Duration>,
}

impl Systemd {
    /// What systemd has set in the environment of this process.
    #[must_use]
    pub fn from_environment() -> Self {
        Self::new(env::var_os("NOTIFY_SOCKET"), env::var_os("WATCHDOG_USEC").as_deref())
    }

    fn new(socket: Option<OsString>, watchdog_microseconds: Option<&OsStr>) -> Self {
        let Some(path) = socket.filter(|path| !path.is_empty()) else { return Self::default() };
        let watchdog = watchdog_microseconds.and_then(|text| text.to_str()?.parse().ok()).map(Duration::from_micros);
        match connect(&path) {
            Ok(socket) => Self { socket: Some(socket), watchdog },
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "cannot notify systemd (NOTIFY_SOCKET)");
                Self::default()
            }
        }
    }

    /// Reports from the start of the worker until `ended`. The stop, which `stop` begins, may take as long as `shutdown`.
    pub async fn report(
        self,
        readiness: Readiness,
        shutdown: Duration,
        stop: CancellationToken,
        ended: CancellationToken,
    ) {
        if self.socket.is_none() {
            return;
        }
        // Half of the interval, as sd_watchdog_enabled(3) recommends.
        let period = self.watchdog.map_or(STATUS_INTERVAL, |watchdog| STATUS_INTERVAL.min(watchdog / 2));
        let mut ticks = interval(period.max(Duration::from_millis(1)));
        let mut reported = String::new();
        self.send("READY=1");
        let mut stopping = false;
        loop {
            tokio::select! {
                () = ended.cancelled() => return,
                () = stop.cancelled(), if !stopping => {
                    stopping = true;
                    let most = (shutdown + STOP_MARGIN).as_micros();
                    self.send(&format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={most}"));
                }
                _ = ticks.tick() => {}
            }
            let status = status(&readiness);
            if status != reported {
                self.send(&format!("STATUS={status}"));
                reported = status;
            }
            self.send("WATCHDOG=1");
        }
    }

    /// A message that does not arrive is not repeated: systemd's timeouts decide what becomes of the process.
    fn send(&self, message: &str) {
        if let Some(Err(error)) = self.socket.as_ref().map(|socket| socket.send(message.as_bytes())) {
            tracing::debug!(%error, "cannot notify systemd");
        }
    }
}

/// Never waits: systemd's queue being full must not stop a worker.
fn connect(path: &OsStr) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.connect_addr(&address(path)?)?;
    Ok(socket)
}

/// A path, or, as `sd_notify(3)` writes it, a name of the abstract namespace after `@`.
fn address(path: &OsStr) -> io::Result<SocketAddr> {
    #[cfg(target_os = "linux")]
    if let Some(name) = path.as_bytes().strip_prefix(b"@") {
        return SocketAddr::from_abstract_name(name);
    }
    SocketAddr::from_pathname(path)
}

/// One line: "ready", or what is not ready and why.
fn status(readiness: &Readiness) -> String {
    let states = readiness.states();
    let unready: Vec<String> =
        states.into_iter().filter_map(|(name, state)| Some(format!("{name}: {}", state.err()?))).collect();
    if unready.is_empty() {
        return "ready".to_owned();
    }
    let text = format!("not ready: {}", unready.join("; "));
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(STATUS_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixDatagram as Socket;
    use tokio::time::timeout;

    use super::*;

    async fn next(socket: &Socket, wanted: &str) -> String {
        let mut buffer = [0; 1_000];
        let waiting = async {
            loop {
                let length = socket.recv(&mut buffer).await.unwrap();
                let message = String::from_utf8(buffer[..length].to_vec()).unwrap();
                if message.starts_with(wanted) {
                    return message;
                }
            }
        };
        timeout(Duration::from_secs(10), waiting).await.unwrap_or_else(|_| panic!("no {wanted}"))
    }

    #[tokio::test]
    async fn systemd_learns_of_the_start_the_status_and_the_stop() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = Socket::bind(&path).unwrap();
        let systemd = Systemd::new(Some(path.into_os_string()), Some(OsStr::new("20000")));
        let (readiness, stop, ended) = (Readiness::default(), CancellationToken::new(), CancellationToken::new());
        let database = readiness.component("mongodb");
        database.not_ready("unavailable:\nconnection refused");
        let shutdown = Duration::from_secs(25);
        let reporting = tokio::spawn(systemd.report(readiness, shutdown, stop.clone(), ended.clone()));

        assert_eq!(next(&socket, "READY").await, "READY=1");
        assert_eq!(next(&socket, "STATUS").await, "STATUS=not ready: mongodb: unavailable: connection refused");
        next(&socket, "WATCHDOG=1").await;
        database.ready();
        assert_eq!(next(&socket, "STATUS").await, "STATUS=ready");
        stop.cancel();
        assert_eq!(next(&socket, "STOPPING").await, "STOPPING=1\nEXTEND_TIMEOUT_USEC=35000000");
        // A stop of half a minute must not look like a hang.
        next(&socket, "WATCHDOG=1").await;
        ended.cancel();
        reporting.await.unwrap();
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_socket_may_be_abstract() {
        let name = format!("offramp-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        socket.set_nonblocking(true).unwrap();
        let socket = Socket::from_std(socket).unwrap();

        Systemd::new(Some(format!("@{name}").into()), None).send("READY=1");
        assert_eq!(next(&socket, "READY").await, "READY=1");
    }

    #[tokio::test]
    async fn nothing_is_sent_without_systemd() {
        for socket in [None, Some(OsString::new()), Some(OsString::from("/does/not/exist"))] {
            let systemd = Systemd::new(socket, Some(OsStr::new("1000")));
            assert!(systemd.socket.is_none());
            let never = CancellationToken::new();
            systemd.report(Readiness::default(), Duration::ZERO, never.clone(), never).await;
        }
    }
}
