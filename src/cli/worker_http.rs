//! What a running worker says at its HTTP address.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;

use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// `/metrics` has some 100 KB.
const RESPONSE_BYTES_MAX: u64 = 1 << 20;

/// The body of `/readyz`.
#[derive(Deserialize)]
pub struct Components {
    components: BTreeMap<String, Component>,
}

#[derive(Deserialize)]
struct Component {
    ready: bool,
    #[serde(default)]
    reason: String,
}

impl Components {
    pub fn parse(body: &str) -> Option<Self> {
        serde_json::from_str(body).ok()
    }

    /// The components that are not ready, and why.
    pub fn not_ready(self) -> BTreeMap<String, String> {
        let not_ready = self.components.into_iter().filter(|(_, component)| !component.ready);
        not_ready.map(|(name, component)| (name, component.reason)).collect()
    }
}

/// The status and the body of a page. HTTP/1.0, so the body is not chunked and ends with the connection.
pub async fn get(address: SocketAddr, path: &str) -> io::Result<(u16, String)> {
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
