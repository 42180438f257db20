//! `offramp healthcheck`: asks the worker on this machine or in this container whether it is alive, for images without curl.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use offramp::config::HttpSettings;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::error::WrongConfiguration;
use super::terminal::printable;

/// The default timeout of health checks in Docker is 30 s, of probes in Kubernetes 1 s.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(4);
/// A complete page has less than 10 KB.
const RESPONSE_BYTES_MAX: u64 = 1 << 20;

/// Ask a running worker whether it is alive
///
/// It asks /livez on this machine, at the worker's address. The health check of the Docker image is this subcommand
#[derive(Args, Debug)]
#[command(after_help = "\
Exit code 0: yes. Exit code 1: no, or no worker responds. Restart a worker when it is not alive, but not because it is not ready: it \
waits for a server and recovers by itself.")]
pub struct Arguments {
    /// Ask whether it is ready (/readyz), and print what is not, and why
    #[arg(long)]
    ready: bool,

    #[command(flatten)]
    http: HttpSettings,
}

/// The body of `/readyz`.
#[derive(Deserialize)]
struct Readyz {
    components: BTreeMap<String, Component>,
}

#[derive(Deserialize)]
struct Component {
    ready: bool,
    #[serde(default)]
    reason: String,
}

pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let address = reachable(arguments.http.http_addr).ok_or_else(|| {
        WrongConfiguration(
            "OFFRAMP_HTTP_ADDR has port 0, so the worker listens on a port that only its log names; set a port"
                .to_owned(),
        )
    })?;
    let path = if arguments.ready { "/readyz" } else { "/livez" };
    let (status, body) = timeout(RESPONSE_TIMEOUT, get(address, path))
        .await
        .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "timed out")))
        .with_context(|| format!("no response from http://{address}{path} (OFFRAMP_HTTP_ADDR)"))?;
    if status == 200 {
        println!("{}", if arguments.ready { "ready" } else { "alive" });
        return Ok(());
    }
    if let Some(unready) = unready(status, &body) {
        for (name, reason) in &unready {
            println!("{}: {}", printable(name), printable(reason));
        }
        bail!("not ready: {}", unready.keys().map(String::as_str).collect::<Vec<_>>().join(", "));
    }
    bail!("http://{address}{path} responded with status {status}")
}

/// The components that are not ready, with their reasons, if this is a response of `/readyz` that lists some.
fn unready(status: u16, body: &str) -> Option<BTreeMap<String, String>> {
    let page: Readyz = serde_json::from_str(body).ok().filter(|_| status == 503)?;
    let unready = page.components.into_iter().filter(|(_, component)| !component.ready);
    Some(unready.map(|(name, component)| (name, component.reason)).collect())
}

/// The address at which a worker that listens on `listens` can be reached from the same machine. `None`: any port.
fn reachable(listens: SocketAddr) -> Option<SocketAddr> {
    let ip = match listens.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    (listens.port() != 0).then(|| SocketAddr::new(ip, listens.port()))
}

/// The status and the body of a page. HTTP/1.0, so the body is not chunked and ends with the connection.
async fn get(address: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes()).await?;
    let mut response = Vec::new();
    stream.take(RESPONSE_BYTES_MAX).read_to_end(&mut response).await?;
    let response = String::from_utf8_lossy(&response);
    let (headers, body) = response.split_once("\r\n\r\n").unwrap_or_default();
    let status = headers.strip_prefix("HTTP/").and_then(|line| line.split(' ').nth(1)?.parse().ok());
    let status = status.ok_or_else(|| io::Error::other("what listens there does not speak HTTP"))?;
    Ok((status, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_listens_everywhere_is_reached_locally() {
        let reachable = |listens: &str| reachable(listens.parse().unwrap()).map(|address| address.to_string());
        assert_eq!(reachable("0.0.0.0:9464").unwrap(), "127.0.0.1:9464");
        assert_eq!(reachable("[::]:9464").unwrap(), "[::1]:9464");
        assert_eq!(reachable("192.0.2.7:80").unwrap(), "192.0.2.7:80");
        assert_eq!(reachable("127.0.0.1:0"), None);
    }
}
