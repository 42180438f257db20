//! The mail server: connection, login, the name in EHLO, the sender. No recipient is named, and no email is sent.

use offramp::advice;
use offramp::config::{MailSettings, SenderSettings};
use offramp::tls::Tls;
use offramp_mail::{Deadlines, SendError, Transport};

use super::finding::Finding;

pub async fn check(settings: MailSettings, sender: &SenderSettings, tls: &Tls) -> Finding {
    let name = settings.name(&sender.mail_from);
    let url = settings.smtp_url.clone();
    let finding = Finding::new("mail").fact(url.to_string());
    let checking = async {
        let unusable = |error| advice::append(&error, advice::mail_config_error(&error));
        let url = settings.url().map_err(unusable)?;
        let tls = tls.client_config().map_err(|error| error.to_string())?;
        let transport = Transport::new(&url, name.clone(), tls, Deadlines::interactive()).map_err(unusable)?;
        let is_server = matches!(transport, Transport::Smtp(_));
        transport.check(&sender.mail_from).await.map(|reply| (reply, is_server)).map_err(|error| {
            let sentence = match &error {
                // The cause alone: the server may have answered.
                SendError::Unavailable(cause) => cause.to_string(),
                other => other.to_string(),
            };
            advice::append(sentence, advice::send_error(&error))
        })
    };
    match checking.await {
        Ok((directory, false)) => finding.fact(directory),
        Ok((greeting, true)) => finding.fact(format!("it says: {greeting}")).fact(format!(
            "it accepts EHLO {name} and the sender {} (some servers judge both only when a recipient is named)",
            sender.mail_from.email()
        )),
        Err(error) => finding.problem(error),
    }
}
