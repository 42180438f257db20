//! A page from a server on this machine: the worker's health and metrics, Mailpit's list of mails.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// The body of `http://{address}{path}`; anything but 200 is an error.
pub async fn get(address: &str, path: &str) -> Result<String> {
    timeout(ANSWER_WITHIN, ask(address, path)).await?.with_context(|| format!("http://{address}{path}"))
}

async fn ask(address: &str, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    // HTTP/1.0, so that the answer ends with the connection and comes in one piece.
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let answer = String::from_utf8(answer)?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.split(' ').nth(1) == Some("200") => Ok(body.to_owned()),
        Some((head, _)) => bail!("{}", head.lines().next().unwrap_or_default()),
        None => bail!("no answer"),
    }
}
