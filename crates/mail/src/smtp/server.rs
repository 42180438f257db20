//! A mail server: opening a connection to it, up to the point where emails can be sent.

use std::fmt;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio_rustls::TlsConnector;

use super::deadlines::Deadlines;
use super::failure::{Failure, Fault, QUOTE_CHARS_MAX};
use super::login::log_in;
use super::name::SmtpName;
use super::session::{Session, Wire, within};
use super::step::Step;
use super::tcp;
use super::transaction;
use crate::address::Sender;
use crate::mail_url::{Encryption, Login, MailConfigError, Secret, SmtpEndpoint};
use crate::send_error::SendError;
use crate::text::{shorten, single_line};

/// A mail server, and how to connect to it.
pub struct SmtpServer {
    host: String,
    port: u16,
    encryption: Encryption,
    /// The user, and the secret.
    login: Option<(String, Secret)>,
    connector: TlsConnector,
    name: SmtpName,
    deadlines: Deadlines,
}

impl fmt::Debug for SmtpServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = self.address();
        f.debug_struct("SmtpServer")
            .field("address", &address)
            .field("deadlines", &self.deadlines)
            .finish_non_exhaustive()
    }
}

impl SmtpServer {
    pub(crate) fn new(
        endpoint: SmtpEndpoint,
        name: SmtpName,
        tls: Arc<ClientConfig>,
        deadlines: Deadlines,
    ) -> Result<Self, MailConfigError> {
        let SmtpEndpoint { host, port, encryption, login } = endpoint;
        let login = login.map(Login::complete).transpose()?;
        Ok(Self { host, port, encryption, login, connector: tls.into(), name, deadlines })
    }

    pub(super) fn deadlines(&self) -> Deadlines {
        self.deadlines
    }

    /// `host:port`, for error texts.
    pub(super) fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// Connects, encrypts, logs in and names the sender as for an email, then disconnects. Names no recipient. Returns the server's
    /// greeting.
    pub(crate) async fn check(&self, sender: &Sender) -> Result<String, SendError> {
        let failed = |failure: Failure| failure.into_error(&self.address());
        let mut session = self.connect().await.map_err(failed)?;
        let greeting = session.greeting.clone();
        let accepted = transaction::name_sender(&mut session, sender.address.clone(), self.deadlines).await;
        if session.is_in_sync() {
            transaction::reset(&mut session, self.deadlines).await;
            self.quit(session).await;
        }
        accepted.map_err(failed).map(|()| greeting)
    }

    /// Opens a connection, up to the point where emails can be sent.
    pub(super) async fn connect(&self) -> Result<Session, Failure> {
        let limit = self.deadlines.greeting;
        let connected = tcp::connect(&self.host, self.port, self.deadlines.connect).await;
        let tcp = connected.map_err(|error| Failure { step: Step::Connecting, fault: Fault::Io(error) })?;
        let tcp: Box<dyn Wire> = Box::new(tcp);
        let is_implicit = self.encryption == Encryption::Implicit;
        let (wire, greeting) =
            if is_implicit { (self.encrypt(tcp).await?, Step::FirstReplyOverTls) } else { (tcp, Step::Greeting) };
        let mut session = Session::new(wire);
        let first = session.read(greeting, limit).await?.expect(greeting, 220)?;
        session.greeting = shorten(&single_line(&first.text()), QUOTE_CHARS_MAX);
        self.greet(&mut session, Step::Ehlo).await?;
        if matches!(self.encryption, Encryption::Required | Encryption::WhereOffered) {
            session = self.start_tls(session).await?;
        }
        if let Some((user, secret)) = &self.login {
            log_in(&mut session, user, secret, limit).await?;
        }
        Ok(session)
    }

    async fn greet(&self, session: &mut Session, step: Step) -> Result<(), Failure> {
        let hello = format!("EHLO {}\r\n", self.name);
        session.extensions = session.request(step, self.deadlines.greeting, &hello).await?.expect(step, 250)?.lines;
        Ok(())
    }

    /// Encrypts a connection with STARTTLS, as far as the settings and the server want it.
    async fn start_tls(&self, mut session: Session) -> Result<Session, Failure> {
        let unfit = |why: &str| Failure::unfit(Step::StartTls, why);
        if !session.offers("STARTTLS") {
            if self.encryption == Encryption::Required {
                return Err(unfit("the server does not offer it, and ?tls=required demands it"));
            }
            if self.login.is_some() {
                return Err(unfit(
                    "the server does not offer it, and a password is not sent unencrypted (unless with ?tls=none)",
                ));
            }
            return Ok(session);
        }
        let reply = session.request(Step::StartTls, self.deadlines.greeting, "STARTTLS\r\n").await?;
        reply.expect(Step::StartTls, 220)?;
        // Anything that a man in the middle injected before encryption would pass for the server's words after it.
        if !session.wire.buffer().is_empty() {
            return Err(unfit("something follows the server's reply, sent before encryption"));
        }
        let greeting = session.greeting;
        let wire = self.encrypt(session.wire.into_inner()).await?;
        let mut session = Session::new(wire);
        session.greeting = greeting;
        self.greet(&mut session, Step::FirstReplyOverTls).await?;
        Ok(session)
    }

    async fn encrypt(&self, wire: Box<dyn Wire>) -> Result<Box<dyn Wire>, Failure> {
        let name =
            ServerName::try_from(self.host.clone()).map_err(|error| Failure::unfit(Step::Tls, error.to_string()))?;
        let stream = within(Step::Tls, self.deadlines.greeting, self.connector.connect(name, wire)).await?;
        Ok(Box::new(stream))
    }

    pub(super) async fn quit(&self, mut session: Session) {
        // Nothing depends on the reply: the connection is closed either way.
        let _ = session.request(Step::Mail, self.deadlines.farewell, "QUIT\r\n").await;
    }
}
