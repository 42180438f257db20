//! A scripted mail server: it accepts and keeps emails, or rejects, stalls or hangs up where a test wants it to.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustls::ServerConfig;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// A step of the SMTP dialogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    Greeting,
    Ehlo,
    StartTls,
    Auth,
    Mail,
    Rcpt,
    Data,
    Content,
    Rset,
    Quit,
}

/// The server's action at a step.
#[derive(Clone, Copy, Debug)]
pub enum Action {
    /// The usual reply.
    Ok,
    /// Replies this instead of the usual reply. A rejected email is not kept.
    Answer(&'static str),
    /// Does not reply for ten minutes.
    Stall,
    /// Sends the usual reply after this time. At `Content` the email is kept at once.
    Late(Duration),
    /// Closes the connection without a reply. At `Content` the email has been read.
    Drop,
    /// Keeps the email and closes the connection without a reply (`Content` only), which leaves the sender in doubt.
    TakeAndDrop,
}

/// The server's encryption.
#[derive(Clone)]
pub enum Tls {
    No,
    /// With STARTTLS.
    Upgrade(Arc<ServerConfig>),
    Implicit(Arc<ServerConfig>),
}

/// An accepted email.
#[derive(Clone, Debug)]
pub struct ReceivedEmail {
    pub from: String,
    pub to: Vec<String>,
    pub bytes: Vec<u8>,
    pub encrypted: bool,
    pub at: Instant,
    /// Whether the acceptance was sent to the client at once.
    pub answered: bool,
}

#[derive(Default)]
struct Log {
    emails: Vec<ReceivedEmail>,
    commands: Vec<String>,
    connections: usize,
    open: usize,
    counts: HashMap<Step, usize>,
}

type Script = dyn Fn(Step, usize) -> Action + Send + Sync;

/// A server on a free port. Stopped when dropped.
pub struct SmtpSink {
    pub address: SocketAddr,
    log: Arc<Mutex<Log>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for SmtpSink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl SmtpSink {
    /// A server that accepts every email.
    pub async fn start() -> Self {
        Self::scripted(Tls::No, |_, _| Action::Ok).await
    }

    /// A server that is unavailable until the flag is set.
    pub async fn unavailable() -> (Self, Arc<AtomicBool>) {
        let is_back = Arc::new(AtomicBool::new(false));
        let sink = Self::scripted(Tls::No, {
            let is_back = Arc::clone(&is_back);
            move |step, _| match step {
                Step::Greeting if !is_back.load(Ordering::Relaxed) => Action::Answer("421 Try again later"),
                _ => Action::Ok,
            }
        })
        .await;
        (sink, is_back)
    }

    /// A server with a script: its arguments are the step and how often that step was reached on all connections, from 1.
    pub async fn scripted(tls: Tls, script: impl Fn(Step, usize) -> Action + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let log = Arc::new(Mutex::new(Log::default()));
        let script: Arc<Script> = Arc::new(script);
        let task = tokio::spawn({
            let log = Arc::clone(&log);
            async move {
                let mut sessions = tokio::task::JoinSet::new();
                while let Ok((stream, _)) = listener.accept().await {
                    // Like real servers, replies at once, even to pipelined commands.
                    stream.set_nodelay(true).unwrap();
                    let counted = Open::count(&log);
                    let session = Session {
                        script: Arc::clone(&script),
                        log: Arc::clone(&log),
                        tls: tls.clone(),
                        encrypted: false,
                    };
                    sessions.spawn(async move {
                        session.run(stream).await;
                        drop(counted);
                    });
                }
            }
        });
        Self { address, log, task }
    }

    /// `smtp://127.0.0.1:1234`
    pub fn url(&self) -> String {
        format!("smtp://{}", self.address)
    }

    pub fn emails(&self) -> Vec<ReceivedEmail> {
        self.log.lock().unwrap().emails.clone()
    }

    /// Takes the emails accepted since the last call, and clears the recorded commands, for runs that would fill the memory.
    pub fn drain(&self) -> Vec<ReceivedEmail> {
        let mut log = self.log.lock().unwrap();
        log.commands.clear();
        std::mem::take(&mut log.emails)
    }

    pub fn commands(&self) -> Vec<String> {
        self.log.lock().unwrap().commands.clone()
    }

    pub fn connections(&self) -> usize {
        self.log.lock().unwrap().connections
    }

    /// Waits until every connection has ended, so that no more email can be accepted.
    pub async fn deserted(&self) {
        crate::eventually("the end of all connections to the sink", || {
            let is_deserted = self.log.lock().unwrap().open == 0;
            async move { is_deserted.then_some(()) }
        })
        .await;
    }
}

/// Counts an open connection until dropped.
struct Open(Arc<Mutex<Log>>);

impl Open {
    fn count(log: &Arc<Mutex<Log>>) -> Self {
        let mut counts = log.lock().unwrap();
        counts.connections += 1;
        counts.open += 1;
        Self(Arc::clone(log))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.lock().unwrap().open -= 1;
    }
}

struct Session {
    script: Arc<Script>,
    log: Arc<Mutex<Log>>,
    tls: Tls,
    encrypted: bool,
}

/// The connection is over.
struct Over;

impl From<std::io::Error> for Over {
    fn from(_: std::io::Error) -> Self {
        Self
    }
}

trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

impl Session {
    async fn run(mut self, stream: TcpStream) {
        let wire: Box<dyn Wire> = match &self.tls {
            Tls::Implicit(config) => match TlsAcceptor::from(Arc::clone(config)).accept(stream).await {
                Ok(stream) => {
                    self.encrypted = true;
                    Box::new(stream)
                }
                Err(_) => return,
            },
            Tls::No | Tls::Upgrade(_) => Box::new(stream),
        };
        let mut wire = BufReader::new(wire);
        if self.answer(&mut wire, Step::Greeting, "220 sink ESMTP").await.is_ok() {
            let _ = self.talk(wire).await;
        }
    }

    async fn talk(&mut self, mut wire: BufReader<Box<dyn Wire>>) -> Result<(), Over> {
        let (mut from, mut to) = (None, Vec::new());
        loop {
            let mut line = String::new();
            if wire.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            let line = line.trim_end().to_owned();
            self.log.lock().unwrap().commands.push(line.clone());
            let verb = line.split([' ', ':']).next().unwrap_or_default().to_ascii_uppercase();
            match verb.as_str() {
                "EHLO" => {
                    let offer = matches!(self.tls, Tls::Upgrade(_)) && !self.encrypted;
                    let answer = if offer {
                        "250-sink\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-STARTTLS\r\n250 AUTH PLAIN LOGIN XOAUTH2"
                    } else {
                        "250-sink\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 AUTH PLAIN LOGIN XOAUTH2"
                    };
                    self.answer(&mut wire, Step::Ehlo, answer).await?;
                }
                "STARTTLS" => {
                    self.answer(&mut wire, Step::StartTls, "220 go ahead").await?;
                    let Tls::Upgrade(config) = self.tls.clone() else { return Err(Over) };
                    let stream = TlsAcceptor::from(config).accept(wire.into_inner()).await?;
                    self.encrypted = true;
                    wire = BufReader::new(Box::new(stream));
                }
                "AUTH" => {
                    self.answer(&mut wire, Step::Auth, "235 welcome").await?;
                }
                // The empty response to the challenge that explains a rejected token.
                "" => wire.write_all(b"535 5.7.8 bad token\r\n").await?,
                "MAIL" => {
                    (from, to) = (None, Vec::new());
                    if self.answer(&mut wire, Step::Mail, "250 ok").await? {
                        from = Some(address(&line));
                    }
                }
                "RCPT" if from.is_none() => wire.write_all(b"503 5.5.1 from whom?\r\n").await?,
                "RCPT" => {
                    if self.answer(&mut wire, Step::Rcpt, "250 ok").await? {
                        to.push(address(&line));
                    }
                }
                "DATA" => {
                    let usual = if to.is_empty() { "503 for whom?" } else { "354 go on" };
                    let (action, text) = self.decide(Step::Data, usual);
                    Self::act(&mut wire, action, text).await?;
                    if text.starts_with("354") {
                        let bytes = content(&mut wire).await?;
                        if to.is_empty() {
                            wire.write_all(b"554 for whom?\r\n").await?;
                            continue;
                        }
                        let (action, text) = self.decide(Step::Content, "250 taken");
                        let (from, to) = (from.take().unwrap_or_default(), std::mem::take(&mut to));
                        if matches!(action, Action::Ok | Action::TakeAndDrop | Action::Late(_)) {
                            let encrypted = self.encrypted;
                            let answered = matches!(action, Action::Ok);
                            let taken = ReceivedEmail { from, to, bytes, encrypted, at: Instant::now(), answered };
                            self.log.lock().unwrap().emails.push(taken);
                        }
                        Self::act(&mut wire, action, text).await?;
                    }
                }
                "RSET" => {
                    (from, to) = (None, Vec::new());
                    self.answer(&mut wire, Step::Rset, "250 ok").await?;
                }
                "QUIT" => {
                    self.answer(&mut wire, Step::Quit, "221 bye").await?;
                    return Ok(());
                }
                _ => wire.write_all(b"502 what?\r\n").await?,
            }
        }
    }

    /// Replies, and returns whether it was the usual reply.
    async fn answer(&self, wire: &mut BufReader<Box<dyn Wire>>, step: Step, usual: &'static str) -> Result<bool, Over> {
        let (action, text) = self.decide(step, usual);
        Self::act(wire, action, text).await?;
        Ok(matches!(action, Action::Ok | Action::Late(_)))
    }

    /// The action for this occurrence of a step, and the text of its reply.
    fn decide(&self, step: Step, usual: &'static str) -> (Action, &'static str) {
        let nth = {
            let mut log = self.log.lock().unwrap();
            let count = log.counts.entry(step).or_default();
            *count += 1;
            *count
        };
        let action = (self.script)(step, nth);
        (action, if let Action::Answer(text) = action { text } else { usual })
    }

    async fn act(wire: &mut BufReader<Box<dyn Wire>>, action: Action, text: &str) -> Result<(), Over> {
        match action {
            Action::Ok | Action::Answer(_) => {}
            Action::Late(delay) => tokio::time::sleep(delay).await,
            Action::Stall => {
                tokio::time::sleep(Duration::from_secs(600)).await;
                return Err(Over);
            }
            Action::Drop | Action::TakeAndDrop => return Err(Over),
        }
        wire.write_all(format!("{text}\r\n").as_bytes()).await?;
        wire.flush().await?;
        Ok(())
    }
}

/// The address between angle brackets.
fn address(line: &str) -> String {
    line.split(['<', '>']).nth(1).unwrap_or_default().to_owned()
}

/// Reads an email up to the final dot. Keeps bare line feeds, so that tests can find them.
async fn content(wire: &mut BufReader<Box<dyn Wire>>) -> Result<Vec<u8>, Over> {
    let mut bytes = Vec::new();
    loop {
        let mut line = Vec::new();
        if wire.read_until(b'\n', &mut line).await? == 0 {
            return Err(Over);
        }
        if line == b".\r\n" {
            return Ok(bytes);
        }
        bytes.extend_from_slice(line.strip_prefix(b".").unwrap_or(&line));
    }
}
