//! Where emails go: to a mail server, or into files.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::ClientConfig;

use crate::address::Sender;
use crate::file;
use crate::mail_url::{MailConfigError, MailUrl, Target};
use crate::message::ComposedEmail;
use crate::send_error::{Cause, SendError};
use crate::smtp::{Deadlines, SmtpConnection, SmtpName, SmtpServer};

/// Where emails go. There is one for the whole program; each task that sends has its own [`MailConnection`].
#[derive(Debug)]
pub enum Transport {
    /// To a mail server.
    Smtp(Box<SmtpServer>),
    /// Into `.eml` files in this directory.
    Files(PathBuf),
}

impl Transport {
    /// The transport that `url` names, under the name `name`. Nothing is connected or created yet.
    ///
    /// # Errors
    /// When a user has neither a password nor a token.
    pub fn new(
        url: &MailUrl,
        name: SmtpName,
        tls: Arc<ClientConfig>,
        deadlines: Deadlines,
    ) -> Result<Self, MailConfigError> {
        match &url.0 {
            Target::Files(path) => Ok(Self::Files(path.clone())),
            Target::Smtp(endpoint) => {
                Ok(Self::Smtp(Box::new(SmtpServer::new(endpoint.clone(), name, tls, deadlines)?)))
            }
        }
    }

    /// Connects, encrypts, logs in and names the sender as for an email, names no recipient, and disconnects. Returns the server's
    /// greeting. In a directory, writes a file and removes it; a missing directory is not created. Returns the directory.
    ///
    /// # Errors
    /// When an email could not be sent; the text names the step that failed.
    pub async fn check(&self, sender: &Sender) -> Result<String, SendError> {
        match self {
            Self::Smtp(server) => server.check(sender).await,
            Self::Files(directory) => file::check(directory).await,
        }
    }

    /// Creates the directory for emails, if they go into one and it is missing.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn prepare(&self) -> Result<(), MailConfigError> {
        match self {
            Self::Smtp(_) => Ok(()),
            Self::Files(path) => {
                fs::create_dir_all(path).map_err(|cause| MailConfigError::Directory { path: path.clone(), cause })
            }
        }
    }
}

/// One task's connection. It connects with the first email and stays connected.
///
/// It is safe to drop a `send` that is not finished (a shutdown, a deadline around it): the connection is dropped with it,
/// and the next `send` opens a new one.
#[derive(Debug)]
pub struct MailConnection {
    transport: Arc<Transport>,
    smtp: SmtpConnection,
}

impl MailConnection {
    /// Does not connect yet.
    #[must_use]
    pub fn new(transport: Arc<Transport>) -> Self {
        Self { transport, smtp: SmtpConnection::default() }
    }

    /// Sends one email to its one recipient. Returns the server's reply, or the path of the file.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn send(&mut self, email: &ComposedEmail) -> Result<String, SendError> {
        self.send_while(email, &|| true).await
    }

    /// As [`Self::send`], but asks `allows_content` right before the content is sent to a mail server. If it returns false,
    /// the email is not sent: the dialogue may have taken longer than its sender may wait.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn send_while(
        &mut self,
        email: &ComposedEmail,
        allows_content: &(dyn Fn() -> bool + Sync),
    ) -> Result<String, SendError> {
        match &*self.transport {
            Transport::Smtp(server) => self.smtp.send(server, email, allows_content).await,
            Transport::Files(directory) => file::write(directory, email).await,
        }
    }

    /// The error of a `send` that was dropped, for example because it took too long.
    #[must_use]
    pub fn interrupted(&self, why: &str) -> SendError {
        let cause = Cause::new(why);
        if self.smtp.is_content_sent() { SendError::InDoubt(cause) } else { SendError::HeldBack(cause) }
    }

    /// Disconnects with QUIT. The next email opens a new connection.
    pub async fn quit(&mut self) {
        if let Transport::Smtp(server) = &*self.transport {
            self.smtp.quit(server).await;
        }
    }
}
