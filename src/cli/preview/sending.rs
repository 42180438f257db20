//! Sending a sample to the author, through the configured mail server.

use std::sync::Arc;

use offramp::advice;
use offramp::tls::Tls;
use offramp_mail::{ComposedEmail, Deadlines, MailConnection, MailUrl, SmtpName, Transport};

/// The server that samples are sent to.
#[derive(Clone)]
pub struct MailServer {
    pub url: MailUrl,
    pub name: SmtpName,
    pub tls: Tls,
}

impl MailServer {
    /// Sends an email, and returns the server's reply, or the reason why there is none.
    pub async fn send(&self, composed: &ComposedEmail) -> Result<String, String> {
        let Self { url, name, tls } = self.clone();
        let transport = tokio::task::spawn_blocking(move || {
            let tls = tls.client_config().map_err(|error| error.to_string())?;
            Transport::new(&url, name, tls, Deadlines::interactive())
                .and_then(|transport| transport.prepare().map(|()| transport))
                .map_err(|error| advice::append(&error, advice::mail_config_error(&error)))
        })
        .await
        .map_err(|error| error.to_string())??;
        let mut connection = MailConnection::new(Arc::new(transport));
        let answer = connection.send(composed).await;
        let answer = answer.map_err(|error| advice::append(&error, advice::send_error(&error)))?;
        connection.quit().await;
        Ok(answer)
    }
}
