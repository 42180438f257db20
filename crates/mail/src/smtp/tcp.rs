//! TCP to a mail server: a connection to the first address that answers, which fails soon after the server is gone.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout, timeout_at};

/// How long the server may be silent before it is probed, in seconds. A reply may take minutes, and a server that lost
/// power, or whose address moved to another host, is silent, too. A living system acknowledges a probe, however slow the
/// server is. One that does not know the connection resets it.
const PROBE_AFTER_SECONDS: u64 = 15;
/// The time between two probes, in seconds.
const PROBE_INTERVAL_SECONDS: u64 = 5;
/// How many probes may stay unanswered: more than one, because packets get lost.
const PROBES_MAX: u32 = 3;
/// How long data may stay unacknowledged, in seconds. Without a limit Linux repeats it for a quarter of an hour, and sends
/// no probes meanwhile.
///
/// It is exactly the time of all probes, because Linux applies it to them, too, instead of [`PROBES_MAX`]. A slow server
/// is safe: its system acknowledges what it has room for, usually 64 KB or more, and emails of the built-in templates
/// have 18 to 33 KB. Only of a larger one must the server itself read something within this time.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED_SECONDS_MAX: u64 = PROBE_AFTER_SECONDS + PROBE_INTERVAL_SECONDS * PROBES_MAX as u64;

/// Connects to the first address of `host` that answers, within `limit`.
pub(super) async fn connect(host: &str, port: u16, limit: Duration) -> io::Result<TcpStream> {
    let deadline = Instant::now() + limit;
    let resolved = timeout_at(deadline, lookup_host((host, port))).await;
    let addresses =
        resolved.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no reply from the name server"))??;
    let tcp = dial(&addresses.collect::<Vec<_>>(), deadline).await?;
    set_options(&tcp)?;
    Ok(tcp)
}

/// Opens TCP to the first address that answers. The addresses that are left share the time that is left, so a silent one
/// does not use it up.
async fn dial(addresses: &[SocketAddr], deadline: Instant) -> io::Result<TcpStream> {
    let mut problems = Vec::new();
    for (address, left) in addresses.iter().zip((1..=addresses.len()).rev()) {
        let share = deadline.duration_since(Instant::now()) / u32::try_from(left).unwrap_or(u32::MAX);
        match timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(tcp)) => return Ok(tcp),
            Ok(Err(error)) => problems.push(format!("{address}: {error}")),
            Err(_elapsed) => problems.push(format!("{address} does not answer")),
        }
    }
    if problems.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the host has no address"));
    }
    // Name servers rotate addresses. In one order, the same problems are the same text, which is logged once.
    problems.sort();
    Err(io::Error::other(problems.join("; ")))
}

fn set_options(tcp: &TcpStream) -> io::Result<()> {
    // With Nagle's algorithm, the second of two writes waits for the server's acknowledgement of the first, which takes
    // 40 ms.
    tcp.set_nodelay(true)?;
    let socket = SockRef::from(tcp);
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(PROBE_AFTER_SECONDS))
        .with_interval(Duration::from_secs(PROBE_INTERVAL_SECONDS))
        .with_retries(PROBES_MAX);
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(Duration::from_secs(UNACKNOWLEDGED_SECONDS_MAX)))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;
    #[cfg(target_os = "linux")]
    use tokio::net::TcpSocket;

    use super::*;

    #[tokio::test]
    async fn connections_are_probed_and_unacknowledged_data_is_limited() {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = server.local_addr().unwrap().port();
        let tcp = connect("localhost", port, Duration::from_secs(10)).await.unwrap();
        assert!(tcp.nodelay().unwrap());
        let socket = SockRef::from(&tcp);
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(15));
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(5));
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 3);
        #[cfg(target_os = "linux")]
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_secs(30)));
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn addresses_that_do_not_work_are_skipped() {
        // The backlog has room for one connection; later ones get no answer.
        let silent = TcpSocket::new_v4().unwrap();
        silent.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let silent = silent.listen(0).unwrap();
        let silent_address = silent.local_addr().unwrap();
        let _waiting = TcpStream::connect(silent_address).await.unwrap();
        // Bound but not listening.
        let closed = TcpSocket::new_v4().unwrap();
        closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let closed_address = closed.local_addr().unwrap();
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server_address = server.local_addr().unwrap();
        let dial = async |addresses: &[SocketAddr]| {
            dial(addresses, Instant::now() + Duration::from_secs(2)).await.map(|tcp| tcp.peer_addr().unwrap())
        };

        assert_eq!(dial(&[silent_address, closed_address, server_address]).await.unwrap(), server_address);

        let errors = [
            dial(&[silent_address, closed_address]).await.unwrap_err().to_string(),
            dial(&[closed_address, silent_address]).await.unwrap_err().to_string(),
        ];
        assert!(errors[0].contains(&format!("{silent_address} does not answer")), "{errors:?}");
        assert!(errors[0].contains(&format!("{closed_address}: Connection refused")), "{errors:?}");
        assert_eq!(errors[0], errors[1]);
    }
}
