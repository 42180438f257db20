//! The mail server: accepts every email, keeps none, and uses as little CPU as possible, on its own thread.
//!
//! It accepts every command and only searches for the ends of lines and emails. That is far less than a real server does, so figures
//! with it are those of the worker, not of a mail server.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What ends an email.
const END: &[u8] = b"\r\n.\r\n";

/// The mail server.
pub struct Sink {
    pub address: SocketAddr,
    taken: Arc<Taken>,
}

#[derive(Default)]
struct Taken {
    count: AtomicUsize,
    /// Whether arrivals are recorded.
    watched: AtomicBool,
    arrivals: Mutex<Vec<(String, Instant)>>,
}

impl Sink {
    /// Starts it, on a free port, for as long as the process lives.
    pub fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let taken = Arc::<Taken>::default();
        let counting = Arc::clone(&taken);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
            runtime.block_on(async move {
                let listener = TcpListener::from_std(listener).unwrap();
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(serve(stream, Arc::clone(&counting)));
                }
            });
        });
        Self { address, taken }
    }

    /// `smtp://127.0.0.1:1234`
    pub fn url(&self) -> String {
        format!("smtp://{}", self.address)
    }

    /// The number of accepted emails.
    pub fn count(&self) -> usize {
        self.taken.count.load(Ordering::Relaxed)
    }

    /// Starts to record the recipient and time of each email.
    pub fn watch(&self) {
        self.taken.watched.store(true, Ordering::Relaxed);
    }

    /// Takes the arrivals recorded since the last call.
    pub fn arrivals(&self) -> Vec<(String, Instant)> {
        std::mem::take(&mut self.taken.arrivals.lock().unwrap())
    }
}

/// One connection, until it ends.
async fn serve(mut stream: TcpStream, taken: Arc<Taken>) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    stream.write_all(b"220 sink ESMTP\r\n").await?;
    let mut input = Vec::with_capacity(64 * 1024);
    let mut answers = Vec::new();
    let mut recipient = String::new();
    let mut in_mail = false;
    // How much of `input` was searched without finding the end of an email.
    let mut seen = 0;
    while stream.read_buf(&mut input).await? > 0 {
        loop {
            if in_mail {
                let Some(end) = input[seen..].windows(END.len()).position(|bytes| bytes == END) else {
                    seen = input.len().saturating_sub(END.len() - 1);
                    break;
                };
                input.drain(..seen + end + END.len());
                (in_mail, seen) = (false, 0);
                taken.count.fetch_add(1, Ordering::Relaxed);
                if taken.watched.load(Ordering::Relaxed) {
                    taken.arrivals.lock().unwrap().push((std::mem::take(&mut recipient), Instant::now()));
                }
                answers.extend_from_slice(b"250 taken\r\n");
                continue;
            }
            let Some(end) = input.iter().position(|byte| *byte == b'\n') else { break };
            let line = &input[..end];
            match line.get(..4).unwrap_or_default() {
                b"EHLO" => answers.extend_from_slice(b"250-sink\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SMTPUTF8\r\n"),
                b"DATA" => {
                    in_mail = true;
                    answers.extend_from_slice(b"354 go on\r\n");
                }
                b"QUIT" => return stream.write_all(b"221 bye\r\n").await,
                b"RCPT" => {
                    if taken.watched.load(Ordering::Relaxed) {
                        let line = String::from_utf8_lossy(line);
                        recipient = line.split(['<', '>']).nth(1).unwrap_or_default().to_owned();
                    }
                    answers.extend_from_slice(b"250 ok\r\n");
                }
                _ => answers.extend_from_slice(b"250 ok\r\n"),
            }
            input.drain(..=end);
        }
        if !answers.is_empty() {
            stream.write_all(&answers).await?;
            answers.clear();
        }
    }
    Ok(())
}
