//! Logging in: PLAIN or LOGIN with a password, XOAUTH2 with a token.

use std::io;
use std::path::Path;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use lettre::transport::smtp::authentication::{Credentials, Mechanism};
use tokio::io::AsyncReadExt;

use super::failure::{Failure, Fault};
use super::session::{Session, within};
use super::step::Step;
use crate::mail_url::Secret;

/// The longest token file, in bytes.
const TOKEN_BYTES_MAX: u64 = 16 * 1024;

pub(super) async fn log_in(session: &mut Session, user: &str, secret: &Secret, limit: Duration) -> Result<(), Failure> {
    let unfit = |why: String| Failure::unfit(Step::Auth, why);
    let (mechanisms, secret): (&[Mechanism], _) = match secret {
        Secret::Password(password) => (&[Mechanism::Plain, Mechanism::Login], password.clone()),
        Secret::TokenFile(file) => {
            let token = within(Step::Auth, limit, read_token(file)).await.map_err(|failure| match failure.fault {
                Fault::Io(error) => unfit(format!("the token in {}: {error}", file.display())),
                _ => failure,
            });
            (&[Mechanism::Xoauth2], token?)
        }
    };
    let credentials = Credentials::new(user.to_owned(), secret);
    let Some(mechanism) = mechanisms.iter().find(|mechanism| session.offers_login(**mechanism)) else {
        let names: Vec<_> = mechanisms.iter().map(|mechanism| format!("AUTH {mechanism}")).collect();
        return Err(unfit(format!("the server does not offer {}", names.join(" or "))));
    };
    let mut line = format!("AUTH {mechanism}");
    if mechanism.supports_initial_response() {
        let response = mechanism.response(&credentials, None).map_err(|error| unfit(error.to_string()))?;
        line.extend([" ", &BASE64.encode(response)]);
    }
    // LOGIN has two challenges: for the user and for the password.
    for _ in 0..3 {
        let reply = session.request(Step::Auth, limit, &format!("{line}\r\n")).await?;
        if reply.code != 334 {
            reply.expect(Step::Auth, 235)?;
            return Ok(());
        }
        line = match mechanism {
            // The challenge explains what is wrong with the token. The server rejects the token after an empty line.
            Mechanism::Xoauth2 => String::new(),
            Mechanism::Plain | Mechanism::Login => {
                let challenge = BASE64.decode(reply.text().trim()).unwrap_or_default();
                let challenge = String::from_utf8_lossy(&challenge);
                let response = mechanism.response(&credentials, Some(&challenge));
                BASE64.encode(response.map_err(|error| unfit(error.to_string()))?)
            }
        };
    }
    Err(unfit("the server keeps asking for user and password".to_owned()))
}

/// Reads an OAuth 2.0 access token: printable ASCII without spaces (RFC 6750 §2.1).
async fn read_token(file: &Path) -> io::Result<String> {
    let mut text = String::new();
    tokio::fs::File::open(file).await?.take(TOKEN_BYTES_MAX + 1).read_to_string(&mut text).await?;
    let token = text.trim();
    let is_too_long = text.len() as u64 > TOKEN_BYTES_MAX;
    if token.is_empty() || is_too_long || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(io::Error::other("the file must contain one token and nothing else"));
    }
    Ok(token.to_owned())
}
