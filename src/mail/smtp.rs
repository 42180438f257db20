//! How mails leave: over SMTP, on a connection of one's own that is used again and again, or into files.
//!
//! A mail counts as sent when the server has answered 250 to its content, or when its file is on the disk. Whenever it
//! is not clear what a server has understood, the connection is dropped; it is never used again to find out.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use lettre::transport::smtp::authentication::{Credentials, Mechanism};
use lettre::transport::smtp::client::{AsyncSmtpConnection, AsyncTokioStream};
use lettre::transport::smtp::commands::{Data, Ehlo, Mail, Rcpt, Rset};
use lettre::transport::smtp::extension::{ClientId, Extension, MailBodyParameter, MailParameter};
use lettre::transport::smtp::response::Response;
use memchr::memmem;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use url::Url;

use super::message::{Composed, shorten, single_line};
use crate::tls::{Tls, explain};

/// Why a mail did not leave, by whose trouble it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The server will never take this mail (5xx to its recipient or its content). Other mails are not affected.
    #[error("refused for good: {0}")]
    Permanent(String),
    /// The server does not take this mail now (4xx to its recipient or its content). Other mails are not affected.
    #[error("refused for now: {0}")]
    Transient(String),
    /// The server cannot be reached, is not let in by, does not answer, or broke off: no mail can leave now. When it
    /// broke off after the content was sent, the mail may have been taken; the message id lets a repeat be recognised.
    #[error("mail server unavailable: {0}")]
    Unavailable(String),
}

/// Why the settings for mails cannot be used. Never holds a password.
#[derive(Debug, thiserror::Error)]
pub enum MailConfigError {
    /// `OFFRAMP_SMTP_URL` is not such an URL.
    #[error(
        "not a mail URL ({0}): use smtp://[user:password@]host[:port][?tls=required|none], smtps://[user:password@]host[:port], or file:///directory"
    )]
    Url(&'static str),
    /// TLS cannot be set up.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The directory for mails cannot be used.
    #[error("{path}: {cause}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
}

/// Whether an `smtp://` connection is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encryption {
    /// From the first byte (`smtps://`).
    Implicit,
    /// With STARTTLS, or no mail leaves (`?tls=required`).
    Required,
    /// With STARTTLS where the server offers it; a password is never sent without.
    WhereOffered,
    /// Never (`?tls=none`).
    Never,
}

/// `OFFRAMP_SMTP_URL`, read. Its `Debug` and `Display` leave the password out.
#[derive(Clone, PartialEq, Eq)]
pub struct MailUrl(Target);

#[derive(Clone, PartialEq, Eq)]
enum Target {
    Smtp { host: String, port: u16, encryption: Encryption, login: Option<(String, String)> },
    Files(PathBuf),
}

impl MailUrl {
    /// Reads `smtp://[user:password@]host[:port]` (port 25, or 587 with a password), `smtps://…` (port 465) or
    /// `file:///directory`.
    ///
    /// `smtp://` is encrypted with STARTTLS where the server offers it, `?tls=required` refuses a server that does not, and
    /// `?tls=none` never encrypts.
    ///
    /// # Errors
    /// When it is anything else. The error does not quote the text, which may hold a password.
    pub fn parse(text: &str) -> Result<Self, MailConfigError> {
        let url = Url::parse(text.trim()).map_err(|_| MailConfigError::Url("it cannot be read as an URL"))?;
        match url.scheme() {
            "file" => {
                let path =
                    url.to_file_path().map_err(|()| MailConfigError::Url("a file URL needs an absolute path"))?;
                return Ok(Self(Target::Files(path)));
            }
            "smtp" | "smtps" => {}
            _ => return Err(MailConfigError::Url("the scheme is none of smtp, smtps and file")),
        }
        if !matches!(url.path(), "" | "/") || url.fragment().is_some() {
            return Err(MailConfigError::Url("there is something behind the host"));
        }
        let encryption = match (url.scheme(), url.query()) {
            ("smtps", None) => Encryption::Implicit,
            ("smtp", None) => Encryption::WhereOffered,
            ("smtp", Some("tls=required")) => Encryption::Required,
            ("smtp", Some("tls=none")) => Encryption::Never,
            _ => return Err(MailConfigError::Url("the only options are ?tls=required and ?tls=none, for smtp://")),
        };
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or(MailConfigError::Url("the host is missing"))?;
        let login = match (url.username(), url.password()) {
            ("", None) => None,
            (user, Some(password)) if !user.is_empty() => Some((decoded(user)?, decoded(password)?)),
            _ => return Err(MailConfigError::Url("a user needs a password, and a password a user")),
        };
        let port = url.port().unwrap_or(match (encryption, &login) {
            (Encryption::Implicit, _) => 465,
            (_, Some(_)) => 587,
            (_, None) => 25,
        });
        // An IPv6 address is in brackets in an URL, and nowhere else.
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self(Target::Smtp { host, port, encryption, login }))
    }
}

/// A part of an URL with its `%40` and the like resolved.
fn decoded(text: &str) -> Result<String, MailConfigError> {
    percent_encoding::percent_decode_str(text)
        .decode_utf8()
        .map(std::borrow::Cow::into_owned)
        .map_err(|_| MailConfigError::Url("the user or the password is not UTF-8"))
}

impl fmt::Display for MailUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Target::Files(path) => write!(f, "file://{}", path.display()),
            Target::Smtp { host, port, encryption, login } => {
                let scheme = if *encryption == Encryption::Implicit { "smtps" } else { "smtp" };
                let login = if login.is_some() { "***@" } else { "" };
                let option = match encryption {
                    Encryption::Required => "?tls=required",
                    Encryption::Never => "?tls=none",
                    Encryption::Implicit | Encryption::WhereOffered => "",
                };
                if host.contains(':') {
                    write!(f, "{scheme}://{login}[{host}]:{port}{option}")
                } else {
                    write!(f, "{scheme}://{login}{host}:{port}{option}")
                }
            }
        }
    }
}

impl fmt::Debug for MailUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MailUrl({self})")
    }
}

/// How long each step may take. When one takes longer the server counts as unavailable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// To find the host and open a TCP connection.
    pub connect: Duration,
    /// For the answer to any one command, the greeting, or a TLS handshake.
    pub command: Duration,
    /// For the answer to a mail's content: servers look for viruses before they give it.
    pub content: Duration,
    /// For a farewell, which nothing depends on.
    pub quit: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            command: Duration::from_secs(30),
            content: Duration::from_secs(60),
            quit: Duration::from_secs(2),
        }
    }
}

/// Where mails go. One for the whole program; every task that sends has a [`MailConnection`] of its own.
#[derive(Debug)]
pub enum Transport {
    /// To a mail server.
    Smtp(Box<SmtpServer>),
    /// Into `.eml` files in this directory.
    Files(PathBuf),
}

/// A mail server, and how it is talked to.
pub struct SmtpServer {
    url: MailUrl,
    host: String,
    port: u16,
    encryption: Encryption,
    login: Option<Credentials>,
    connector: TlsConnector,
    hello: ClientId,
    deadlines: Deadlines,
}

impl fmt::Debug for SmtpServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SmtpServer").field("url", &self.url).field("deadlines", &self.deadlines).finish_non_exhaustive()
    }
}

impl Transport {
    /// Prepares the way that `url` names; nothing is connected yet. Blocks while it reads the system's certificates.
    ///
    /// # Errors
    /// When TLS cannot be set up, or the directory for mails cannot be made.
    pub fn new(url: &MailUrl, tls: &Tls, deadlines: Deadlines) -> Result<Self, MailConfigError> {
        match &url.0 {
            Target::Files(path) => {
                let failed = |cause| MailConfigError::Directory { path: path.clone(), cause };
                fs::create_dir_all(path).map_err(failed)?;
                Ok(Self::Files(path.clone()))
            }
            Target::Smtp { host, port, encryption, login } => Ok(Self::Smtp(Box::new(SmtpServer {
                url: url.clone(),
                host: host.clone(),
                port: *port,
                encryption: *encryption,
                login: login.clone().map(|(user, password)| Credentials::new(user, password)),
                connector: tls.client_config()?.into(),
                hello: ClientId::default(),
                deadlines,
            }))),
        }
    }

    /// Connects, encrypts and logs in as for a mail, and says goodbye; or writes a file and removes it.
    ///
    /// # Errors
    /// When a mail could not leave; the sentence says at which step.
    pub async fn check(&self) -> Result<(), SendError> {
        match self {
            Self::Smtp(server) => {
                let connection = server.connect().await?;
                server.quit(connection).await;
                Ok(())
            }
            Self::Files(directory) => {
                let directory = directory.clone();
                blocking(move || {
                    let probe = directory.join(format!(".offramp-{}.tmp", uuid::Uuid::new_v4()));
                    File::create(&probe)?.write_all(b"offramp")?;
                    fs::remove_file(&probe)
                })
                .await
            }
        }
    }
}

/// One task's way out for mails. It connects with the first mail and stays connected.
///
/// A `send` that is dropped half-way (a shutdown, a deadline around it) leaves no connection behind in an unknown state:
/// the next `send` connects anew.
#[derive(Debug)]
pub struct MailConnection {
    transport: Arc<Transport>,
    /// Taken out for as long as a mail is under way, and put back when it is clear what the server has understood.
    idle: Option<Open>,
}

/// A connection over which mails can be sent.
struct Open {
    smtp: AsyncSmtpConnection,
    /// Whether the server takes several commands at once (RFC 2920).
    pipelines: bool,
    /// Whether it may still say something that was asked for a mail that is done with. Then nothing that it says next can
    /// be trusted.
    lags: bool,
}

impl fmt::Debug for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Open").field("pipelines", &self.pipelines).finish_non_exhaustive()
    }
}

impl MailConnection {
    /// A way out that is not connected yet.
    #[must_use]
    pub fn new(transport: Arc<Transport>) -> Self {
        Self { transport, idle: None }
    }

    /// Sends one mail, to its one recipient. Gives the words with which it was taken, or the file that it is in.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn send(&mut self, mail: &Composed) -> Result<String, SendError> {
        match &*self.transport {
            Transport::Files(directory) => {
                let (directory, name) = (directory.clone(), file_name(mail));
                // Whoever opens the file shall be able to read it.
                let bytes = mail.bytes(false).map_err(|error| SendError::Transient(error.to_string()))?;
                let temporary = format!(".{}.tmp", mail.entry_id);
                let file = directory.join(&name).display().to_string();
                blocking(move || write_file(&directory, &temporary, &name, &bytes)).await.map(|()| file)
            }
            Transport::Smtp(server) => {
                let (mut connection, fresh) = match self.idle.take() {
                    Some(connection) => (connection, false),
                    None => (server.connect().await?, true),
                };
                if mail.needs_smtputf8() && !connection.smtp.server_info().supports_feature(Extension::SmtpUtfEight) {
                    self.idle = Some(connection);
                    let why = "an address has letters beyond ASCII before the @, and the server takes none such (no SMTPUTF8)";
                    return Err(SendError::Permanent(why.to_owned()));
                }
                let content = match server.begin(&mut connection, mail).await {
                    Ok(content) => content,
                    // Servers close connections that are idle or have carried many mails. That shows with the first
                    // command, before anything was sent of this mail, so it may start over.
                    Err(SendError::Unavailable(_)) if !fresh => {
                        drop(connection);
                        connection = server.connect().await?;
                        server.begin(&mut connection, mail).await?
                    }
                    Err(error) => return Err(error),
                };
                let result = server.transfer(&mut connection, mail, content).await;
                let usable = match &result {
                    Ok(_) => true,
                    Err(SendError::Permanent(_) | SendError::Transient(_)) => server.reset(&mut connection).await,
                    Err(SendError::Unavailable(_)) => false,
                };
                if usable {
                    self.idle = Some(connection);
                }
                result
            }
        }
    }

    /// Says goodbye to the server. A next mail connects anew.
    pub async fn quit(&mut self) {
        if let (Transport::Smtp(server), Some(connection)) = (&*self.transport, self.idle.take()) {
            server.quit(connection).await;
        }
    }
}

impl SmtpServer {
    /// Opens a connection up to the point where mails can be sent. Every failure is the server's trouble.
    async fn connect(&self) -> Result<Open, SendError> {
        let tcp = self
            .within("connecting", self.deadlines.connect, TcpStream::connect((self.host.as_str(), self.port)))
            .await?;
        // Without this, what is said in two pieces waits until the server has acknowledged the first, which takes it 40 ms.
        tcp.set_nodelay(true).map_err(|error| self.unavailable("connecting", error))?;
        let (stream, first_words, offers): (Box<dyn AsyncTokioStream>, _, _) = match self.encryption {
            Encryption::Implicit => (Box::new(self.encrypt(tcp, &[]).await?), FIRST_WORDS_OVER_TLS, None),
            Encryption::Required | Encryption::WhereOffered => self.start_tls(tcp).await?,
            Encryption::Never => (Box::new(tcp), "greeting", None),
        };
        let mut smtp = self
            .within(
                first_words,
                self.deadlines.command,
                AsyncSmtpConnection::connect_with_transport(stream, &self.hello),
            )
            .await?;
        if let Some(login) = &self.login {
            self.within("logging in", self.deadlines.command, smtp.auth(&[Mechanism::Plain, Mechanism::Login], login))
                .await?;
        }
        // lettre does not tell of everything that the server offers.
        let offers = if let Some(offers) = offers {
            offers
        } else {
            let hello = smtp.command(Ehlo::new(self.hello.clone()));
            let answer = self.within("EHLO", self.deadlines.command, hello).await?;
            answer.message().map(str::to_owned).collect()
        };
        Ok(Open { smtp, pipelines: has(&offers, "PIPELINING"), lags: false })
    }

    /// Upgrades a fresh connection with STARTTLS as far as the settings and the server want it. Returns it with the name of
    /// the next step, and what the server offers where that is known already.
    ///
    /// lettre can do this too, but it reads through a buffer that outlives the upgrade: an answer that somebody on the way
    /// slipped in before it would count as the server's own. Here anything beyond the one answer is refused.
    async fn start_tls(
        &self,
        tcp: TcpStream,
    ) -> Result<(Box<dyn AsyncTokioStream>, &'static str, Option<Vec<String>>), SendError> {
        let limit = self.deadlines.command;
        let mut tcp = BufReader::new(tcp);
        self.within("greeting", limit, expect(&mut tcp, 220)).await?;
        let hello = format!("EHLO {}\r\n", self.hello);
        let saying_hello = self.within("EHLO", limit, async {
            tcp.write_all(hello.as_bytes()).await?;
            expect(&mut tcp, 250).await
        });
        let offers = saying_hello.await?;
        if !has(&offers, "STARTTLS") {
            if self.encryption == Encryption::Required {
                return Err(self.unavailable("STARTTLS", "the server does not offer it, and ?tls=required asks for it"));
            }
            if self.login.is_some() {
                let why = "the server does not offer it, and a password is not sent in the clear (?tls=none would)";
                return Err(self.unavailable("STARTTLS", why));
            }
            return Ok((Box::new(Session { stream: tcp.into_inner(), greeting: GREETED }), "EHLO", Some(offers)));
        }
        self.within("STARTTLS", limit, async {
            tcp.write_all(b"STARTTLS\r\n").await?;
            expect(&mut tcp, 220).await
        })
        .await?;
        if !tcp.buffer().is_empty() {
            return Err(self.unavailable("STARTTLS", "there is more than the server's answer, sent before encryption"));
        }
        Ok((Box::new(self.encrypt(tcp.into_inner(), GREETED).await?), FIRST_WORDS_OVER_TLS, None))
    }

    async fn encrypt(
        &self,
        tcp: TcpStream,
        greeting: &'static [u8],
    ) -> Result<Session<TlsStream<TcpStream>>, SendError> {
        let name = ServerName::try_from(self.host.clone()).map_err(|error| self.unavailable(HANDSHAKE, error))?;
        let handshake = self.connector.connect(name, tcp);
        let stream = self.within(HANDSHAKE, self.deadlines.command, handshake).await?;
        Ok(Session { stream, greeting })
    }

    /// Encodes a mail as this connection takes it, and announces it. Every refusal is the server's trouble: the sender is
    /// the same for all mails, so a server that does not like it likes none.
    ///
    /// A server that takes several commands at once is told the recipient, too, and that the content comes next.
    async fn begin(&self, open: &mut Open, mail: &Composed) -> Result<Vec<u8>, SendError> {
        let takes_8bit = open.smtp.server_info().supports_feature(Extension::EightBitMime);
        let content = mail.bytes(takes_8bit).map_err(|error| SendError::Transient(self.sentence("signing", error)))?;
        let mut options = Vec::new();
        if mail.needs_smtputf8() {
            options.push(MailParameter::SmtpUtfEight);
        }
        if !content.is_ascii() {
            options.push(MailParameter::Body(MailBodyParameter::EightBitMime));
        }
        let mut commands = Mail::new(mail.envelope.from().cloned(), options).to_string();
        if open.pipelines {
            commands.extend([recipient(mail), Data.to_string()]);
        }
        self.within("MAIL", self.deadlines.command, open.smtp.command(commands)).await?;
        Ok(content)
    }

    /// Names the recipient and sends the content. Gives the answer to it.
    async fn transfer(&self, open: &mut Open, mail: &Composed, content: Vec<u8>) -> Result<String, SendError> {
        let limit = self.deadlines.command;
        let ready = if open.pipelines {
            if let Err(error) = self.verdict("RCPT", limit, open.smtp.read_response()).await {
                open.lags = !self.take_back(&mut open.smtp).await;
                return Err(error);
            }
            self.verdict("DATA", limit, open.smtp.read_response()).await?
        } else {
            self.verdict("RCPT", limit, open.smtp.command(recipient(mail))).await?;
            self.verdict("DATA", limit, open.smtp.command(Data)).await?
        };
        if !ready.has_code(354) {
            return Err(self.unavailable("DATA", format!("answered {} in place of 354", u16::from(ready.code()))));
        }
        let accepted = self.verdict("content", self.deadlines.content, open.smtp.command(closed(content))).await?;
        if !accepted.has_code(250) {
            return Err(self.unavailable("content", format!("answered {} in place of 250", u16::from(accepted.code()))));
        }
        let words: Vec<&str> = accepted.message().collect();
        Ok(shorten(&single_line(&format!("250 {}", words.join(" "))), ERROR_CHARS_MAX))
    }

    /// Hears the answer to the DATA that a server was told together with a recipient that it has refused. One that goes on
    /// all the same gets nothing (RFC 2920 §3.1). Tells whether everything is answered now.
    async fn take_back(&self, smtp: &mut AsyncSmtpConnection) -> bool {
        let has_answered = |answer: Result<Response, lettre::transport::smtp::Error>| {
            answer.map_or_else(|error| error.status().is_some(), |_| true)
        };
        let hearing = async {
            match smtp.read_response().await {
                Ok(_) => has_answered(smtp.command(".\r\n").await),
                refused => has_answered(refused),
            }
        };
        tokio::time::timeout(self.deadlines.command, hearing).await.unwrap_or(false)
    }

    /// Makes a connection ready for the next mail after a refused one. Tells whether that worked.
    async fn reset(&self, open: &mut Open) -> bool {
        !open.lags && self.within("RSET", self.deadlines.command, open.smtp.command(Rset)).await.is_ok()
    }

    async fn quit(&self, mut connection: Open) {
        // Nothing depends on the answer: the connection is closed either way.
        let _ = tokio::time::timeout(self.deadlines.quit, connection.smtp.quit()).await;
    }

    /// Waits for a step that concerns this one mail, and tells a refusal of the mail from trouble of the server.
    async fn verdict(
        &self,
        step: &str,
        limit: Duration,
        answer: impl Future<Output = Result<Response, lettre::transport::smtp::Error>>,
    ) -> Result<Response, SendError> {
        let error = match tokio::time::timeout(limit, answer).await {
            Ok(Ok(response)) => return Ok(response),
            Ok(Err(error)) => error,
            Err(_) => return Err(self.timed_out(step, limit)),
        };
        match error.status().map(u16::from) {
            // "I am closing", "not now, not in this order", "log in first": true of every mail, not of this one.
            None | Some(421 | 503 | 530) => Err(self.unavailable(step, error)),
            Some(400..500) => Err(SendError::Transient(self.sentence(step, error))),
            Some(_) => Err(SendError::Permanent(self.sentence(step, error))),
        }
    }

    /// Waits for a step whose failure is the server's trouble.
    async fn within<T, E: fmt::Display>(
        &self,
        step: &str,
        limit: Duration,
        answer: impl Future<Output = Result<T, E>>,
    ) -> Result<T, SendError> {
        match tokio::time::timeout(limit, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(self.unavailable(step, error)),
            Err(_) => Err(self.timed_out(step, limit)),
        }
    }

    fn timed_out(&self, step: &str, limit: Duration) -> SendError {
        self.unavailable(step, format!("no answer within {} s", limit.as_secs_f32()))
    }

    fn unavailable(&self, step: &str, error: impl fmt::Display) -> SendError {
        SendError::Unavailable(self.sentence(step, error))
    }

    /// `mail.example.com:25: RCPT: …`, of bounded length whatever the server says.
    fn sentence(&self, step: &str, error: impl fmt::Display) -> String {
        let error = shorten(&single_line(&error.to_string()), ERROR_CHARS_MAX);
        let error = explain(&error, [HANDSHAKE, FIRST_WORDS_OVER_TLS].contains(&step));
        format!("{}:{}: {step}: {error}", self.host, self.port)
    }
}

/// The step in which connections become encrypted.
const HANDSHAKE: &str = "TLS";

/// The step after it: a server that wants another certificate of us says so only now, or hangs up.
const FIRST_WORDS_OVER_TLS: &str = "first words over TLS";

/// The command that names the one recipient.
fn recipient(mail: &Composed) -> String {
    mail.envelope.to().iter().map(|address| Rcpt::new(address.clone(), vec![]).to_string()).collect()
}

/// A mail with the dot that ends it, in one piece: lettre's own way is to send the dot by itself, which costs a packet and
/// wakes the server once more. Dots at the beginning of lines are doubled (RFC 5321 §4.5.2).
fn closed(content: Vec<u8>) -> String {
    let mut closed = if memmem::find(&content, b"\n.").is_some() { double_dots(&content) } else { content };
    closed.extend_from_slice(if closed.ends_with(b"\r\n") { b".\r\n" } else { b"\r\n.\r\n" });
    String::from_utf8(closed).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// The dots at the beginnings of lines.
fn double_dots(content: &[u8]) -> Vec<u8> {
    let mut doubled = Vec::with_capacity(content.len() + content.len() / 64 + 5);
    let mut copied = 0;
    for at in memmem::find_iter(content, b"\n.") {
        doubled.extend_from_slice(&content[copied..=at]);
        doubled.push(b'.');
        copied = at + 1;
    }
    doubled.extend_from_slice(&content[copied..]);
    doubled
}

/// The longest part of a server's words that is passed on, in characters.
const ERROR_CHARS_MAX: usize = 400;

/// The longest line of an answer, in bytes; RFC 5321 allows 512.
const ANSWER_LINE_BYTES_MAX: u64 = 2048;

/// The most lines of an answer.
const ANSWER_LINES_MAX: usize = 100;

/// Reads one answer of the code `code`, and gives the text of its lines.
async fn expect(stream: &mut BufReader<TcpStream>, code: u16) -> io::Result<Vec<String>> {
    let code = code.to_string();
    let mut lines = Vec::new();
    loop {
        let mut bytes = Vec::new();
        (&mut *stream).take(ANSWER_LINE_BYTES_MAX).read_until(b'\n', &mut bytes).await?;
        let line = String::from_utf8_lossy(&bytes);
        if !line.ends_with('\n') || lines.len() == ANSWER_LINES_MAX {
            return Err(io::Error::other("the answer is cut off or far too long"));
        }
        let (rest, last) = match line.strip_prefix(code.as_str()) {
            Some(rest) if rest.starts_with('-') => (&rest[1..], false),
            Some(rest) => (rest, true),
            None => return Err(io::Error::other(format!("answered {}", line.trim_end()))),
        };
        lines.push(rest.trim_end().to_owned());
        if last {
            return Ok(lines);
        }
    }
}

/// Whether a server offers an extension of SMTP.
fn has(offers: &[String], extension: &str) -> bool {
    offers.iter().any(|line| line.trim().eq_ignore_ascii_case(extension))
}

/// What a client reads first on a session whose real greeting was read before it was encrypted.
const GREETED: &[u8] = b"220 greeted\r\n";

/// A connection as lettre's client takes it: what `greeting` still holds comes first, then what the server says.
#[derive(Debug)]
struct Session<S> {
    stream: S,
    greeting: &'static [u8],
}

impl<S: AsyncRead + Unpin> AsyncRead for Session<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.greeting.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let (now, later) = self.greeting.split_at(self.greeting.len().min(buf.remaining()));
        buf.put_slice(now);
        self.greeting = later;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Session<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl AsyncTokioStream for Session<TcpStream> {
    fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.stream.peer_addr()
    }
}

impl AsyncTokioStream for Session<TlsStream<TcpStream>> {
    fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.stream.get_ref().0.peer_addr()
    }
}

/// Runs file work where it may block.
async fn blocking(work: impl FnOnce() -> io::Result<()> + Send + 'static) -> Result<(), SendError> {
    let result = match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(io::Error::other(error)),
    };
    result.map_err(|error| SendError::Unavailable(format!("mail directory: {error}")))
}

/// Writes a mail under its own name, whole or not at all, and waits until it is on the disk: only then it is sent.
fn write_file(directory: &Path, temporary: &str, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = directory.join(temporary);
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, directory.join(name))?;
    File::open(directory)?.sync_all()
}

/// `2026-06-14T120000Z-payment-failed-marie_example.com-0190….eml`: sorted by time, and safe on every file system.
fn file_name(mail: &Composed) -> String {
    let safe = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '.') { c } else { '_' };
    let to: String = mail.to().chars().map(safe).take(60).collect();
    format!("{}-{}-{to}-{}.eml", mail.date.format("%Y-%m-%dT%H%M%SZ"), mail.template, mail.entry_id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_at_the_beginnings_of_lines_are_doubled_and_the_last_one_ends_the_mail() {
        #[track_caller]
        fn check(content: &str, expected: &str) {
            assert_eq!(closed(content.as_bytes().to_vec()), expected);
        }
        check("To: a\r\n\r\nHello.\r\n", "To: a\r\n\r\nHello.\r\n.\r\n");
        check("a\r\n.\r\nb\r\n", "a\r\n..\r\nb\r\n.\r\n");
        check("a\r\n.b\r\n..c\r\n.\r\n", "a\r\n..b\r\n...c\r\n..\r\n.\r\n");
        check("a\n.\n.b", "a\n..\n..b\r\n.\r\n");
        check("é\r\n.é", "é\r\n..é\r\n.\r\n");
        check("", "\r\n.\r\n");
    }
}
