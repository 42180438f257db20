//! An HTTP client for servers on this machine: one request for each connection.

use std::time::Duration;
use std::{fmt, io};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const RESPONSE_SECONDS_MAX: u64 = 5;

/// A response.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    /// The status line and the headers, in lower case.
    pub headers: String,
    pub body: String,
}

impl fmt::Display for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.status, self.body)
    }
}

impl Response {
    pub(crate) fn parse(bytes: Vec<u8>) -> Option<Self> {
        let text = String::from_utf8(bytes).ok()?;
        let (headers, body) = text.split_once("\r\n\r\n")?;
        let status = headers.split(' ').nth(1)?.parse().ok()?;
        Some(Self { status, headers: headers.to_ascii_lowercase(), body: body.to_owned() })
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("not JSON: {self}"))
    }
}

/// Requests `http://{address}{path}`. Any status is a success.
pub async fn get(address: &str, path: &str) -> io::Result<Response> {
    timeout(Duration::from_secs(RESPONSE_SECONDS_MAX), request(address, path)).await?
}

async fn request(address: &str, path: &str) -> io::Result<Response> {
    let mut stream = TcpStream::connect(address).await?;
    // HTTP/1.0, so that the response is not chunked and ends with the connection.
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes()).await?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await?;
    Response::parse(bytes).ok_or_else(|| io::Error::other(format!("http://{address}{path}: not an HTTP response")))
}
