//! A connection on which replies and commands alternate.

use std::fmt;
use std::io;
use std::time::Duration;

use lettre::transport::smtp::authentication::Mechanism;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};

use super::failure::{Failure, Fault};
use super::reply::Reply;
use super::step::Step;

/// A connection on which replies and commands alternate.
pub(super) struct Session {
    pub(super) wire: BufReader<Box<dyn Wire>>,
    /// The extensions that the server offers, one per line.
    pub(super) extensions: Vec<String>,
    is_in_sync: bool,
    /// The server's first words.
    pub(super) greeting: String,
}

/// TCP, or TLS over TCP.
pub(super) trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("extensions", &self.extensions).finish_non_exhaustive()
    }
}

impl Session {
    pub(super) fn new(wire: Box<dyn Wire>) -> Self {
        Self { wire: BufReader::new(wire), extensions: Vec::new(), is_in_sync: true, greeting: String::new() }
    }

    /// Whether every reply was read so far. If not, nothing more may be sent.
    pub(super) fn is_in_sync(&self) -> bool {
        self.is_in_sync
    }

    pub(super) fn offers(&self, extension: &str) -> bool {
        self.extensions.iter().any(|line| line.trim().eq_ignore_ascii_case(extension))
    }

    pub(super) fn offers_login(&self, mechanism: Mechanism) -> bool {
        let mechanism = mechanism.to_string();
        self.extensions.iter().any(|line| {
            let mut words = line.split_ascii_whitespace();
            words.next().is_some_and(|word| word.eq_ignore_ascii_case("AUTH"))
                && words.any(|word| word.eq_ignore_ascii_case(&mechanism))
        })
    }

    pub(super) async fn write(&mut self, step: Step, limit: Duration, bytes: &[u8]) -> Result<(), Failure> {
        let writing = async {
            self.wire.write_all(bytes).await?;
            self.wire.flush().await
        };
        let written = within(step, limit, writing).await;
        self.is_in_sync &= written.is_ok();
        written
    }

    pub(super) async fn read(&mut self, step: Step, limit: Duration) -> Result<Reply, Failure> {
        let reply = within(step, limit, Reply::read(&mut self.wire)).await;
        self.is_in_sync &= reply.is_ok();
        reply
    }

    /// Sends a command and reads the reply.
    pub(super) async fn request(&mut self, step: Step, limit: Duration, command: &str) -> Result<Reply, Failure> {
        self.write(step, limit, command.as_bytes()).await?;
        self.read(step, limit).await
    }
}

pub(super) async fn within<T>(
    step: Step,
    limit: Duration,
    work: impl Future<Output = io::Result<T>>,
) -> Result<T, Failure> {
    let fault = match tokio::time::timeout(limit, work).await {
        Ok(Ok(done)) => return Ok(done),
        Ok(Err(error)) => Fault::Io(error),
        Err(_elapsed) => Fault::NoReply(limit),
    };
    Err(Failure { step, fault })
}
