//! `offramp healthcheck`: asks the worker on this machine or in this container whether it is alive, for images without curl.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use offramp::config::HttpSettings;
use tokio::time::timeout;

use super::error::WrongConfiguration;
use super::terminal::printable;
use super::worker_http::{Components, get};

/// The default timeout of health checks in Docker is 30 s, of probes in Kubernetes 1 s.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(4);

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
    Components::parse(body).filter(|_| status == 503).map(Components::not_ready)
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
