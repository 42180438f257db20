//! One task's connection to a mail server, reused from one email to the next.

use super::failure::Failure;
use super::server::SmtpServer;
use super::session::Session;
use super::transaction;
use crate::message::ComposedEmail;
use crate::send_error::{Cause, SendError};

/// One task's connection. It connects with the first email and stays connected.
#[derive(Debug, Default)]
pub(crate) struct SmtpConnection {
    /// Taken out while an email is being sent, and put back when every reply was read.
    idle: Option<Session>,
    is_content_sent: bool,
}

impl SmtpConnection {
    /// Sends one email, if `allows_content` still returns true when the server is ready for its content. Returns the server's
    /// reply.
    pub(crate) async fn send(
        &mut self,
        server: &SmtpServer,
        email: &ComposedEmail,
        allows_content: &(dyn Fn() -> bool + Sync),
    ) -> Result<String, SendError> {
        self.is_content_sent = false;
        let idle = self.idle.take();
        let is_fresh = idle.is_none();
        let mut session = match idle {
            Some(session) => session,
            None => connect(server).await?,
        };
        if email.needs_smtputf8() && !session.offers("SMTPUTF8") {
            self.idle = Some(session);
            let why = "an address is not ASCII before the @, and the server does not support that (no SMTPUTF8)";
            return Err(SendError::Permanent(Cause::new(why)));
        }
        let limits = server.deadlines();
        let mut content = encode(server, &session, email)?;
        let mut announced = transaction::announce(&mut session, email, &content, limits).await;
        // Servers close connections that are idle or have carried many emails. That shows with the first command, before
        // anything of this email was sent, so it can start over.
        if !is_fresh && announced.as_ref().is_err_and(Failure::is_closed) {
            drop(session);
            session = connect(server).await?;
            content = encode(server, &session, email)?;
            announced = transaction::announce(&mut session, email, &content, limits).await;
        }
        let sent = match announced {
            Ok(()) => {
                let is_content_sent = &mut self.is_content_sent;
                transaction::transfer(&mut session, content, limits, allows_content, is_content_sent).await
            }
            Err(failure) => Err(failure),
        };
        self.is_content_sent = false;
        let is_usable = match &sent {
            Ok(_) => true,
            Err(failure) => {
                session.is_in_sync() && failure.keeps_connection() && transaction::reset(&mut session, limits).await
            }
        };
        if is_usable {
            self.idle = Some(session);
        }
        sent.map_err(|failure| failure.into_error(&server.address()))
    }

    /// Whether the server has the whole content of an email whose reply was not read, because `send` was dropped.
    pub(crate) fn is_content_sent(&self) -> bool {
        self.is_content_sent
    }

    pub(crate) async fn quit(&mut self, server: &SmtpServer) {
        if let Some(session) = self.idle.take() {
            server.quit(session).await;
        }
    }
}

async fn connect(server: &SmtpServer) -> Result<Session, SendError> {
    server.connect().await.map_err(|failure| failure.into_error(&server.address()))
}

/// Encodes an email as the server accepts it.
fn encode(server: &SmtpServer, session: &Session, email: &ComposedEmail) -> Result<Vec<u8>, SendError> {
    let unsigned = |error| SendError::Transient(Cause::new(format!("{}: {error}", server.address())));
    email.bytes(session.offers("8BITMIME")).map_err(unsigned)
}
