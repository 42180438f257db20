//! How emails leave: over SMTP, on a connection of one's own that is used again and again, or into files.
//!
//! An email counts as sent when the server has replied 250 to its content, or when its file is on the disk. The dialogue
//! never guesses: each reply is read before anything is sent that depends on it, and after a timeout, an I/O error or an
//! unreadable reply nothing more is sent on that connection, not even QUIT. A late reply must not be taken for the reply to
//! a later command.

mod reply;

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use lettre::transport::smtp::authentication::{Credentials, Mechanism};
use lettre::transport::smtp::commands::{Mail, Rcpt};
use lettre::transport::smtp::extension::{ClientId, MailBodyParameter, MailParameter};
use memchr::memmem;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use url::Url;

pub use self::reply::SenderProblem;
use self::reply::{Blame, Reply, Step};
use crate::message::{ComposedEmail, shorten, single_line};

/// Why an email was not sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The server rejects this recipient or this content. No later try can help; other emails are not affected.
    #[error("rejected for good: {0}")]
    Permanent(Cause),
    /// The server does not take this email now. Other emails are not affected.
    #[error("rejected for now: {0}")]
    Transient(Cause),
    /// The server takes no email now, or not so many.
    #[error("throttled: {0}")]
    Throttled(Cause),
    /// The server rejects who we are: name, rights, reputation, quota. Other emails are affected, too.
    #[error("rejected because of the sender: {cause}")]
    Sender {
        /// What it said.
        cause: Cause,
        /// What the server objects to.
        problem: SenderProblem,
        /// Whether it rejects the connection itself, so that no email can be sent.
        rejects_connection: bool,
    },
    /// The server cannot be reached, does not reply, or broke off before it had the whole content.
    #[error("mail server unavailable: {0}")]
    Unavailable(Cause),
    /// The whole content was sent, and no reply to it could be read.
    #[error("in doubt, it may have been delivered: {0}")]
    InDoubt(Cause),
}

impl SendError {
    /// What happened, without the server's words, which may hold a recipient's address.
    #[must_use]
    pub fn brief(&self) -> &str {
        match self {
            Self::Permanent(cause)
            | Self::Transient(cause)
            | Self::Throttled(cause)
            | Self::Sender { cause, .. }
            | Self::Unavailable(cause)
            | Self::InDoubt(cause) => &cause.brief,
        }
    }
}

/// What happened. Its `Display` is a sentence that quotes the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    sentence: String,
    brief: String,
    in_tls_handshake: bool,
}

impl Cause {
    fn of_ours(sentence: String) -> Self {
        Self { brief: sentence.clone(), sentence, in_tls_handshake: false }
    }

    /// What happened, without the server's text, which may contain a recipient's address.
    #[must_use]
    pub fn brief(&self) -> &str {
        &self.brief
    }

    /// Whether the connection failed in the TLS handshake, or before the server's first words after it. A server that
    /// rejects a client certificate may say so only then, or merely close the connection.
    #[must_use]
    pub fn in_tls_handshake(&self) -> bool {
        self.in_tls_handshake
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

/// Why the settings for mails cannot be used. Never holds a password.
#[derive(Debug, thiserror::Error)]
pub enum MailConfigError {
    /// `OFFRAMP_SMTP_URL` is not such an URL.
    #[error(
        "not a mail URL ({0}): use smtp://[user[:password]@]host[:port][?tls=required|none], smtps://[user[:password]@]host[:port], or file:///directory"
    )]
    Url(&'static str),
    /// The user and how to log in do not go together.
    #[error("{0}")]
    Login(LoginProblem),
    /// The directory for mails cannot be used.
    #[error("{path}: {cause}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
}

/// Why it is unclear how to log in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoginProblem {
    /// There is a user, and neither a password nor a token.
    #[error("the user has neither a password nor a token")]
    SecretMissing,
    /// There is a token and no user.
    #[error("there is a token without a user")]
    UserMissing,
    /// There is a token, and a password as well.
    #[error("there is both a password and a token")]
    TwoSecrets,
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
    Smtp { host: String, port: u16, encryption: Encryption, login: Option<Login> },
    Files(PathBuf),
}

/// Who logs in to a mail server.
#[derive(Clone, PartialEq, Eq)]
struct Login {
    user: String,
    /// None: to be given apart from the URL.
    secret: Option<Secret>,
}

impl Login {
    fn complete(self) -> Result<(String, Secret), MailConfigError> {
        let missing = MailConfigError::Login(LoginProblem::SecretMissing);
        self.secret.map(|secret| (self.user, secret)).ok_or(missing)
    }
}

#[derive(Clone, PartialEq, Eq)]
enum Secret {
    Password(String),
    /// The file with an OAuth 2.0 access token. Others replace it before the token expires.
    TokenFile(PathBuf),
}

impl MailUrl {
    /// Reads `smtp://[user[:password]@]host[:port]` (port 25, or 587 with a user), `smtps://…` (port 465) or
    /// `file:///directory`. A user without a password needs [`Self::with_token_file`].
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
            ("", Some(_)) => return Err(MailConfigError::Url("a password needs a user")),
            (user, None) => Some(Login { user: decoded(user)?, secret: None }),
            (user, Some(password)) => {
                Some(Login { user: decoded(user)?, secret: Some(Secret::Password(decoded(password)?)) })
            }
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

    /// The same, with an OAuth 2.0 access token instead of a password. It is read from `file` for each connection.
    ///
    /// # Errors
    /// When the URL names no user, or a password.
    pub fn with_token_file(mut self, file: PathBuf) -> Result<Self, MailConfigError> {
        let Target::Smtp { login: Some(login), .. } = &mut self.0 else {
            return Err(MailConfigError::Login(LoginProblem::UserMissing));
        };
        if login.secret.is_some() {
            return Err(MailConfigError::Login(LoginProblem::TwoSecrets));
        }
        login.secret = Some(Secret::TokenFile(file));
        Ok(self)
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

/// The name of this worker in EHLO. Many servers reject one without a dot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SmtpName(ClientId);

impl SmtpName {
    /// Reads a domain, or an address literal such as `[192.0.2.1]` or `[IPv6:2001:db8::1]`.
    ///
    /// # Errors
    /// A sentence, when it is neither.
    pub fn parse(text: &str) -> Result<Self, String> {
        let not = || "it is neither a domain, such as worker.example.com, nor an address in brackets".to_owned();
        let text = text.trim();
        if let Some(literal) = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
            let ipv6 = literal.get(..5).filter(|tag| tag.eq_ignore_ascii_case("IPv6:")).map(|_| &literal[5..]);
            return match ipv6 {
                Some(address) => address.parse().map(ClientId::Ipv6).map_err(|_| not()),
                None => literal.parse().map(ClientId::Ipv4).map_err(|_| not()),
            }
            .map(Self);
        }
        // Domains beyond ASCII become their `xn--` form. A bare IP address is no domain.
        let Ok(url::Host::Domain(domain)) = url::Host::parse(text) else { return Err(not()) };
        let is_label = |label: &str| {
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
            (1..=63).contains(&label.len())
                && label.bytes().all(allowed)
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        let is_domain = domain.len() <= 253 && domain.split('.').all(is_label);
        if is_domain { Ok(Self(ClientId::Domain(domain))) } else { Err(not()) }
    }

    /// The name of this host if it has a dot, else the domain of the sender.
    #[must_use]
    pub fn of_host_or(sender: &crate::message::Sender) -> Self {
        let host = ClientId::default().to_string();
        let full = |name: &str| Self::parse(name).ok();
        let of_host = if host.contains('.') && !host.starts_with('[') { full(&host) } else { None };
        // The domain of an address is a domain, unless it is a literal.
        of_host.or_else(|| full(sender.domain())).unwrap_or_else(|| Self(ClientId::Domain("localhost".to_owned())))
    }
}

impl fmt::Display for SmtpName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How long each step may take. What takes longer counts as no reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// To find the host and open a TCP connection.
    pub connect: Duration,
    /// For the greeting, and for each step up to the login.
    pub greeting: Duration,
    /// For the replies to MAIL and RCPT.
    pub envelope: Duration,
    /// For the reply to DATA.
    pub data: Duration,
    /// For each block of the content to be taken over by the network.
    pub block: Duration,
    /// For the reply to the whole content: servers scan it first.
    pub content: Duration,
    /// For RSET and QUIT, which no email depends on.
    pub farewell: Duration,
}

impl Default for Deadlines {
    /// Those of RFC 5321 §4.5.3.2. Servers do use them: for call-outs to other servers, greylisting and scanners.
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(30),
            greeting: Duration::from_secs(5 * 60),
            envelope: Duration::from_secs(5 * 60),
            data: Duration::from_secs(2 * 60),
            block: Duration::from_secs(3 * 60),
            content: Duration::from_secs(10 * 60),
            farewell: Duration::from_secs(2),
        }
    }
}

impl Deadlines {
    /// For a person who waits for the answer.
    #[must_use]
    pub fn interactive() -> Self {
        let step = Duration::from_secs(30);
        Self { connect: Duration::from_secs(10), greeting: step, envelope: step, data: step, ..Self::default() }
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
    /// Who logs in, and with what.
    login: Option<(String, Secret)>,
    connector: TlsConnector,
    name: SmtpName,
    deadlines: Deadlines,
}

impl fmt::Debug for SmtpServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SmtpServer").field("url", &self.url).field("deadlines", &self.deadlines).finish_non_exhaustive()
    }
}

impl Transport {
    /// Prepares the way that `url` names, to a server that knows us as `name`; nothing is connected yet. Blocks while it reads
    /// the system's certificates.
    ///
    /// # Errors
    /// When a user has neither password nor token, TLS cannot be set up, or the directory for mails cannot be made.
    pub fn new(
        url: &MailUrl,
        name: SmtpName,
        tls: Arc<ClientConfig>,
        deadlines: Deadlines,
    ) -> Result<Self, MailConfigError> {
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
                login: login.clone().map(Login::complete).transpose()?,
                connector: tls.into(),
                name,
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
                let session = server.connect().await.map_err(|failure| server.error(failure))?;
                server.quit(session).await;
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

/// One task's way out for emails. It connects with the first email and stays connected.
///
/// A `send` that is dropped half-way (a shutdown, a deadline around it) leaves no connection behind in an unknown state:
/// the next `send` connects anew.
#[derive(Debug)]
pub struct MailConnection {
    transport: Arc<Transport>,
    /// Taken out for as long as an email is under way, and put back when every reply was read.
    idle: Option<Session>,
    /// Whether a server has the whole content of the last email.
    is_content_sent: bool,
}

/// What a connection is made of: TCP, or TLS over it.
trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// A connection over which emails can be sent.
struct Session {
    wire: BufReader<Box<dyn Wire>>,
    /// What the server offers, a line for each extension.
    offers: Vec<String>,
    /// Whether it is unknown what the server says next. Nothing more is sent then.
    is_lost: bool,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("offers", &self.offers).finish_non_exhaustive()
    }
}

impl Session {
    fn over(wire: Box<dyn Wire>) -> Self {
        Self { wire: BufReader::new(wire), offers: Vec::new(), is_lost: false }
    }

    fn offers(&self, extension: &str) -> bool {
        self.offers.iter().any(|line| line.trim().eq_ignore_ascii_case(extension))
    }

    /// Whether the server offers a way to log in.
    fn offers_login(&self, mechanism: Mechanism) -> bool {
        let mechanism = mechanism.to_string();
        self.offers.iter().any(|line| {
            let mut words = line.split_ascii_whitespace();
            words.next().is_some_and(|word| word.eq_ignore_ascii_case("AUTH"))
                && words.any(|word| word.eq_ignore_ascii_case(&mechanism))
        })
    }

    async fn say(&mut self, step: Step, limit: Duration, bytes: &[u8]) -> Result<(), Failure> {
        let writing = async {
            self.wire.write_all(bytes).await?;
            self.wire.flush().await
        };
        let written = within(step, limit, writing).await;
        self.is_lost |= written.is_err();
        written
    }

    async fn hear(&mut self, step: Step, limit: Duration) -> Result<Reply, Failure> {
        let reply = within(step, limit, Reply::read(&mut self.wire)).await;
        self.is_lost |= reply.is_err();
        reply
    }

    async fn ask(&mut self, step: Step, limit: Duration, command: &str) -> Result<Reply, Failure> {
        self.say(step, limit, command.as_bytes()).await?;
        self.hear(step, limit).await
    }
}

/// Why a step did not go as it should.
#[derive(Debug)]
struct Failure {
    step: Step,
    what: What,
}

#[derive(Debug)]
enum What {
    /// The server said no: a 4xx or 5xx.
    Rejected(Reply),
    /// The server said something that makes no sense here.
    Unexpected(Reply),
    NoReply(Duration),
    Broken(io::Error),
    /// The connection is not as the settings want it.
    Unfit(String),
}

impl Failure {
    /// Whether the connection is as good as before, and every reply was read. 421 says that the server closes it.
    fn leaves_connection(&self) -> bool {
        !self.step.is_of_connection() && matches!(&self.what, What::Rejected(reply) if reply.code != 421)
    }

    /// Whether it looks as if the server closed an idle connection.
    fn is_closed(&self) -> bool {
        match &self.what {
            What::Rejected(reply) => reply.code == 421,
            What::Broken(error) => error.kind() != io::ErrorKind::InvalidData,
            What::Unexpected(_) | What::NoReply(_) | What::Unfit(_) => false,
        }
    }
}

impl Reply {
    /// The reply, if it is what is wanted: a whole code, or its first digit.
    fn expect(self, step: Step, wanted: u16) -> Result<Self, Failure> {
        let what = match self.code {
            code if code == wanted || code / 100 == wanted => return Ok(self),
            400.. => What::Rejected(self),
            _ => What::Unexpected(self),
        };
        Err(Failure { step, what })
    }
}

/// Any code from 200 to 299.
const POSITIVE: u16 = 2;

async fn within<T>(step: Step, limit: Duration, work: impl Future<Output = io::Result<T>>) -> Result<T, Failure> {
    let what = match tokio::time::timeout(limit, work).await {
        Ok(Ok(done)) => return Ok(done),
        Ok(Err(error)) => What::Broken(error),
        Err(_elapsed) => What::NoReply(limit),
    };
    Err(Failure { step, what })
}

impl MailConnection {
    /// A way out that is not connected yet.
    #[must_use]
    pub fn new(transport: Arc<Transport>) -> Self {
        Self { transport, idle: None, is_content_sent: false }
    }

    /// Sends one email, to its one recipient. Gives the words with which it was accepted, or the file that it is in.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn send(&mut self, mail: &ComposedEmail) -> Result<String, SendError> {
        self.is_content_sent = false;
        let transport = Arc::clone(&self.transport);
        match &*transport {
            Transport::Files(directory) => {
                let (directory, name) = (directory.clone(), file_name(mail));
                // Whoever opens the file shall be able to read it.
                let bytes =
                    mail.bytes(false).map_err(|error| SendError::Transient(Cause::of_ours(error.to_string())))?;
                let temporary = format!(".{}.tmp", mail.entry_id);
                let file = directory.join(&name).display().to_string();
                blocking(move || write_file(&directory, &temporary, &name, &bytes)).await.map(|()| file)
            }
            Transport::Smtp(server) => self.send_to(server, mail).await,
        }
    }

    async fn send_to(&mut self, server: &SmtpServer, mail: &ComposedEmail) -> Result<String, SendError> {
        let idle = self.idle.take();
        let is_fresh = idle.is_none();
        let mut session = match idle {
            Some(session) => session,
            None => server.connect().await.map_err(|failure| server.error(failure))?,
        };
        if mail.needs_smtputf8() && !session.offers("SMTPUTF8") {
            self.idle = Some(session);
            let why = "an address has letters beyond ASCII before the @, and the server takes none such (no SMTPUTF8)";
            return Err(SendError::Permanent(Cause::of_ours(why.to_owned())));
        }
        let mut content = server.content(&session, mail)?;
        let mut announced = server.announce(&mut session, mail, &content).await;
        // Servers close connections that are idle or have carried many emails. That shows with the first command, before
        // anything was sent of this email, so it may start over.
        if !is_fresh && announced.as_ref().is_err_and(Failure::is_closed) {
            drop(session);
            session = server.connect().await.map_err(|failure| server.error(failure))?;
            content = server.content(&session, mail)?;
            announced = server.announce(&mut session, mail, &content).await;
        }
        let sent = match announced {
            Ok(()) => server.transfer(&mut session, content, &mut self.is_content_sent).await,
            Err(failure) => Err(failure),
        };
        self.is_content_sent = false;
        let is_usable = match &sent {
            Ok(_) => true,
            Err(failure) => !session.is_lost && failure.leaves_connection() && server.reset(&mut session).await,
        };
        if is_usable {
            self.idle = Some(session);
        }
        sent.map_err(|failure| server.error(failure))
    }

    /// The error of a `send` that was dropped because it took too long.
    #[must_use]
    pub fn interrupted(&self, why: &str) -> SendError {
        let cause = Cause::of_ours(why.to_owned());
        if self.is_content_sent { SendError::InDoubt(cause) } else { SendError::Unavailable(cause) }
    }

    /// Says goodbye to the server. A next email connects anew.
    pub async fn quit(&mut self) {
        if let (Transport::Smtp(server), Some(session)) = (&*self.transport, self.idle.take()) {
            server.quit(session).await;
        }
    }
}

impl SmtpServer {
    /// Opens a connection up to the point where emails can be sent.
    async fn connect(&self) -> Result<Session, Failure> {
        let limit = self.deadlines.greeting;
        let connecting = async {
            let tcp = TcpStream::connect((self.host.as_str(), self.port)).await?;
            // Without this, what is said in two pieces waits until the server has acknowledged the first, which takes it
            // 40 ms.
            tcp.set_nodelay(true)?;
            Ok(tcp)
        };
        let tcp: Box<dyn Wire> = Box::new(within(Step::Connecting, self.deadlines.connect, connecting).await?);
        let is_implicit = self.encryption == Encryption::Implicit;
        let (wire, greeting) =
            if is_implicit { (self.encrypt(tcp).await?, Step::FirstWordsOverTls) } else { (tcp, Step::Greeting) };
        let mut session = Session::over(wire);
        session.hear(greeting, limit).await?.expect(greeting, 220)?;
        self.greet(&mut session, Step::Ehlo).await?;
        if matches!(self.encryption, Encryption::Required | Encryption::WhereOffered) {
            session = self.start_tls(session).await?;
        }
        if let Some(login) = &self.login {
            self.log_in(&mut session, login).await?;
        }
        Ok(session)
    }

    async fn greet(&self, session: &mut Session, step: Step) -> Result<(), Failure> {
        let hello = format!("EHLO {}\r\n", self.name);
        session.offers = session.ask(step, self.deadlines.greeting, &hello).await?.expect(step, 250)?.lines;
        Ok(())
    }

    /// Upgrades a connection with STARTTLS as far as the settings and the server want it.
    async fn start_tls(&self, mut session: Session) -> Result<Session, Failure> {
        let unfit = |why: &str| Failure { step: Step::StartTls, what: What::Unfit(why.to_owned()) };
        if !session.offers("STARTTLS") {
            if self.encryption == Encryption::Required {
                return Err(unfit("the server does not offer it, and ?tls=required asks for it"));
            }
            if self.login.is_some() {
                return Err(unfit(
                    "the server does not offer it, and a password is not sent in the clear (?tls=none would)",
                ));
            }
            return Ok(session);
        }
        let reply = session.ask(Step::StartTls, self.deadlines.greeting, "STARTTLS\r\n").await?;
        reply.expect(Step::StartTls, 220)?;
        // Whatever somebody on the way slipped in before encryption would count as said by the server.
        if !session.wire.buffer().is_empty() {
            return Err(unfit("there is more than the server's reply, sent before encryption"));
        }
        let wire = self.encrypt(session.wire.into_inner()).await?;
        let mut session = Session::over(wire);
        self.greet(&mut session, Step::FirstWordsOverTls).await?;
        Ok(session)
    }

    async fn encrypt(&self, wire: Box<dyn Wire>) -> Result<Box<dyn Wire>, Failure> {
        let name = ServerName::try_from(self.host.clone())
            .map_err(|error| Failure { step: Step::Tls, what: What::Unfit(error.to_string()) })?;
        let stream = within(Step::Tls, self.deadlines.greeting, self.connector.connect(name, wire)).await?;
        Ok(Box::new(stream))
    }

    async fn log_in(&self, session: &mut Session, (user, secret): &(String, Secret)) -> Result<(), Failure> {
        let limit = self.deadlines.greeting;
        let unfit = |why: String| Failure { step: Step::Auth, what: What::Unfit(why) };
        let (ways, secret): (&[Mechanism], _) = match secret {
            Secret::Password(password) => (&[Mechanism::Plain, Mechanism::Login], password.clone()),
            Secret::TokenFile(file) => {
                let token = within(Step::Auth, limit, read_token(file)).await;
                let read = |failure: Failure| match failure.what {
                    What::Broken(error) => unfit(format!("the token in {}: {error}", file.display())),
                    _ => failure,
                };
                (&[Mechanism::Xoauth2], token.map_err(read)?)
            }
        };
        let credentials = Credentials::new(user.clone(), secret);
        let Some(way) = ways.iter().find(|way| session.offers_login(**way)) else {
            let ways: Vec<_> = ways.iter().map(|way| format!("AUTH {way}")).collect();
            return Err(unfit(format!("the server does not offer {}", ways.join(" or "))));
        };
        let mut line = format!("AUTH {way}");
        if way.supports_initial_response() {
            let response = way.response(&credentials, None).map_err(|error| unfit(error.to_string()))?;
            line.extend([" ", &BASE64.encode(response)]);
        }
        // The user and the password, each for a challenge.
        for _ in 0..3 {
            let reply = session.ask(Step::Auth, limit, &format!("{line}\r\n")).await?;
            if reply.code != 334 {
                reply.expect(Step::Auth, 235)?;
                return Ok(());
            }
            line = match way {
                // The challenge says what is wrong with the token; the server rejects it after an empty line.
                Mechanism::Xoauth2 => String::new(),
                Mechanism::Plain | Mechanism::Login => {
                    let challenge = BASE64.decode(reply.text().trim()).unwrap_or_default();
                    let challenge = String::from_utf8_lossy(&challenge);
                    let response = way.response(&credentials, Some(&challenge));
                    BASE64.encode(response.map_err(|error| unfit(error.to_string()))?)
                }
            };
        }
        Err(unfit("the server keeps asking for user and password".to_owned()))
    }

    /// Encodes an email as this connection takes it.
    fn content(&self, session: &Session, mail: &ComposedEmail) -> Result<Vec<u8>, SendError> {
        mail.bytes(session.offers("8BITMIME"))
            .map_err(|error| SendError::Transient(Cause::of_ours(format!("{}: {error}", self.address()))))
    }

    /// Names the sender and the recipient, at once where the server takes several commands at once (RFC 2920). Every reply
    /// is read, also when the first is a rejection.
    async fn announce(&self, session: &mut Session, mail: &ComposedEmail, content: &[u8]) -> Result<(), Failure> {
        let limit = self.deadlines.envelope;
        let mut options = Vec::new();
        if mail.needs_smtputf8() {
            options.push(MailParameter::SmtpUtfEight);
        }
        if !content.is_ascii() {
            options.push(MailParameter::Body(MailBodyParameter::EightBitMime));
        }
        let sender = Mail::new(mail.envelope.from().cloned(), options).to_string();
        if session.offers("PIPELINING") {
            session.say(Step::Mail, limit, (sender + &recipient(mail)).as_bytes()).await?;
            let sender = session.hear(Step::Mail, limit).await?.expect(Step::Mail, POSITIVE);
            if sender.as_ref().is_err_and(|failure| !failure.leaves_connection()) {
                return sender.map(drop);
            }
            let recipient = session.hear(Step::Rcpt, limit).await;
            // A rejected sender is the answer, whatever is said of the recipient.
            sender?;
            recipient?.expect(Step::Rcpt, POSITIVE)?;
        } else {
            session.ask(Step::Mail, limit, &sender).await?.expect(Step::Mail, POSITIVE)?;
            session.ask(Step::Rcpt, limit, &recipient(mail)).await?.expect(Step::Rcpt, POSITIVE)?;
        }
        Ok(())
    }

    /// Sends the content for a recipient who was accepted. Gives the reply to it.
    async fn transfer(&self, session: &mut Session, content: Vec<u8>, is_sent: &mut bool) -> Result<String, Failure> {
        session.ask(Step::Data, self.deadlines.data, "DATA\r\n").await?.expect(Step::Data, 354)?;
        for block in closed(content).chunks(BLOCK_BYTES) {
            session.say(Step::Content, self.deadlines.block, block).await?;
        }
        *is_sent = true;
        let accepted = session.hear(Step::Reply, self.deadlines.content).await?.expect(Step::Reply, 250)?;
        Ok(shorten(&single_line(&format!("250 {}", accepted.text())), ERROR_CHARS_MAX))
    }

    /// Makes a connection ready for the next email after a rejected one. Tells whether that worked.
    async fn reset(&self, session: &mut Session) -> bool {
        let reply = session.ask(Step::Mail, self.deadlines.farewell, "RSET\r\n").await;
        reply.is_ok_and(|reply| reply.code == 250)
    }

    async fn quit(&self, mut session: Session) {
        // Nothing depends on the reply: the connection is closed either way.
        let _ = session.ask(Step::Mail, self.deadlines.farewell, "QUIT\r\n").await;
    }

    fn error(&self, Failure { step, what }: Failure) -> SendError {
        let (at, name) = (self.address(), step.as_str());
        let quoted = |reply: &Reply| shorten(&single_line(&reply.text()), ERROR_CHARS_MAX);
        match what {
            What::Rejected(reply) => {
                let cause = Cause {
                    sentence: format!("{at}: {name}: {} {}", reply.code, quoted(&reply)).trim_end().to_owned(),
                    brief: format!("{at}: {name}: {}", reply.codes()),
                    in_tls_handshake: false,
                };
                match reply.blame(step) {
                    Blame::Sender => SendError::Sender {
                        cause,
                        problem: reply.sender_problem(step),
                        rejects_connection: step.is_of_connection(),
                    },
                    Blame::Server | Blame::Rate if step.is_of_connection() => SendError::Unavailable(cause),
                    Blame::Rate => SendError::Throttled(cause),
                    Blame::Server => SendError::Transient(cause),
                    Blame::Email => SendError::Permanent(cause),
                }
            }
            What::Unexpected(reply) => no_reply(
                step,
                Cause {
                    sentence: format!("{at}: {name}: unexpected reply {} {}", reply.code, quoted(&reply)),
                    brief: format!("{at}: {name}: unexpected reply {}", reply.codes()),
                    in_tls_handshake: false,
                },
            ),
            What::NoReply(limit) => {
                no_reply(step, Cause::of_ours(format!("{at}: {name}: no reply within {} s", limit.as_secs_f32())))
            }
            What::Broken(error) => {
                let error = shorten(&single_line(&error.to_string()), ERROR_CHARS_MAX);
                let in_tls_handshake = matches!(step, Step::Tls | Step::FirstWordsOverTls);
                no_reply(step, Cause { in_tls_handshake, ..Cause::of_ours(format!("{at}: {name}: {error}")) })
            }
            What::Unfit(why) => SendError::Unavailable(Cause::of_ours(format!("{at}: {name}: {why}"))),
        }
    }

    fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

fn no_reply(step: Step, cause: Cause) -> SendError {
    if step == Step::Reply { SendError::InDoubt(cause) } else { SendError::Unavailable(cause) }
}

/// The command that names the one recipient.
fn recipient(mail: &ComposedEmail) -> String {
    mail.envelope.to().iter().map(|address| Rcpt::new(address.clone(), vec![]).to_string()).collect()
}

/// How much of a content is written under one deadline. Most emails are one block.
const BLOCK_BYTES: usize = 64 * 1024;

/// The longest file with a token, in bytes.
const TOKEN_BYTES_MAX: u64 = 16 * 1024;

/// The longest part of a server's words that is passed on, in characters.
const ERROR_CHARS_MAX: usize = 400;

/// An email with the dot that ends it. Dots at the beginning of lines are doubled (RFC 5321 §4.5.2).
fn closed(content: Vec<u8>) -> Vec<u8> {
    let mut closed = if memmem::find(&content, b"\n.").is_some() { double_dots(&content) } else { content };
    closed.extend_from_slice(if closed.ends_with(b"\r\n") { b".\r\n" } else { b"\r\n.\r\n" });
    closed
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

/// Reads an OAuth 2.0 access token: printable ASCII without blanks (RFC 6750 §2.1).
async fn read_token(file: &Path) -> io::Result<String> {
    let mut text = String::new();
    tokio::fs::File::open(file).await?.take(TOKEN_BYTES_MAX + 1).read_to_string(&mut text).await?;
    let token = text.trim();
    let is_too_long = text.len() as u64 > TOKEN_BYTES_MAX;
    if token.is_empty() || is_too_long || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(io::Error::other("the file holds no token, or more than that"));
    }
    Ok(token.to_owned())
}

/// Runs file work where it may block.
async fn blocking(work: impl FnOnce() -> io::Result<()> + Send + 'static) -> Result<(), SendError> {
    let result = match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(io::Error::other(error)),
    };
    result.map_err(|error| SendError::Unavailable(Cause::of_ours(format!("mail directory: {error}"))))
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
fn file_name(mail: &ComposedEmail) -> String {
    let safe = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '.') { c } else { '_' };
    let to: String = mail.to().chars().map(safe).take(60).collect();
    format!("{}-{}-{to}-{}.eml", mail.date.format("%Y-%m-%dT%H%M%SZ"), mail.template, mail.entry_id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_ehlo_are_domains_or_address_literals() {
        for (text, name) in [
            ("worker.example.com", "worker.example.com"),
            ("École.example", "xn--cole-9oa.example"),
            ("localhost", "localhost"),
            ("[192.0.2.1]", "[192.0.2.1]"),
            ("[ipv6:2001:DB8::1]", "[IPv6:2001:db8::1]"),
        ] {
            assert_eq!(SmtpName::parse(text).unwrap().to_string(), name);
        }
        for text in [
            "",
            "192.0.2.1",
            "[192.0.2]",
            "[2001:db8::1]",
            "[IPv6:x]",
            "a b",
            "a\r\nQUIT",
            "a..b",
            "-a.b",
            "a_b.c",
            "a:25",
        ] {
            assert!(SmtpName::parse(text).is_err(), "{text}");
        }
        let sender = super::super::message::Sender::parse("no-reply@mail.example.com").unwrap();
        assert!(SmtpName::of_host_or(&sender).to_string().contains('.'));
    }

    #[test]
    fn dots_at_the_beginnings_of_lines_are_doubled_and_the_last_one_ends_the_mail() {
        #[track_caller]
        fn check(content: &str, expected: &str) {
            assert_eq!(closed(content.as_bytes().to_vec()), expected.as_bytes());
        }
        check("To: a\r\n\r\nHello.\r\n", "To: a\r\n\r\nHello.\r\n.\r\n");
        check("a\r\n.\r\nb\r\n", "a\r\n..\r\nb\r\n.\r\n");
        check("a\r\n.b\r\n..c\r\n.\r\n", "a\r\n..b\r\n...c\r\n..\r\n.\r\n");
        check("a\n.\n.b", "a\n..\n..b\r\n.\r\n");
        check("é\r\n.é", "é\r\n..é\r\n.\r\n");
        check("", "\r\n.\r\n");
    }
}
