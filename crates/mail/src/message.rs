//! A rendered email as the bytes that a mail server receives: headers, MIME body, and a signature where one is wanted.
//!
//! Names come from documents that other systems write, so nothing is assumed about them. Anything that would end a header
//! line, hide the rest of it, or make it endless is removed before a header is built.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use lettre::address::Envelope;
use lettre::message::header::{self, Headers};
use lettre::message::{Mailbox as HeaderMailbox, Mailboxes};
use offramp_domain::command_ref::CommandKey;
use offramp_domain::contact::Mailbox;
use offramp_domain::notification::{Notification, Template};
use uuid::Uuid;

use crate::address::{AddressError, Sender, is_ascii, parse_address};
use crate::dkim::{DkimSigner, SigningError};
use crate::headers::{display_name, folded, header_text, raw, token, token_header};
use crate::mime::{Alternative, Encoding};
use crate::template::RenderedEmail;

/// An email that is ready to be sent, in the encoding that the server supports.
#[derive(Clone, Debug)]
pub struct ComposedEmail {
    pub entry_id: Uuid,
    pub template: Template,
    /// The language of the text: its `Content-Language`.
    pub language: String,
    /// When it was composed: its `Date`.
    pub date: DateTime<Utc>,
    /// The addresses in the SMTP dialogue.
    pub envelope: Envelope,
    /// With its angle brackets: `<0190…@example.com>`. The same for every attempt to send the entry.
    pub message_id: String,
    /// All headers except the signature and those about the encoding of the body, in lines that end in CRLF. ASCII unless an
    /// address is not.
    headers: String,
    text: String,
    html: String,
    signer: Option<Arc<DkimSigner>>,
}

impl ComposedEmail {
    /// The address of the one recipient.
    #[must_use]
    pub fn to(&self) -> &str {
        self.envelope.to().first().map_or("", AsRef::as_ref)
    }

    /// Whether a server needs SMTPUTF8 (RFC 6531) to accept it. Only the addresses of the envelope decide.
    #[must_use]
    pub fn needs_smtputf8(&self) -> bool {
        needs_smtputf8(&self.envelope)
    }

    /// The same email with headers that say what it is about: for the filters of the recipient, and for support.
    #[must_use]
    pub fn about(mut self, about: About<'_>) -> Self {
        let (name, id) = match about.document {
            AboutDocument::Subscription(id) => ("X-Offramp-Subscription", id),
            AboutDocument::Account(id) => ("X-Offramp-Account", id),
            AboutDocument::Organization(id) => ("X-Offramp-Organization", id),
        };
        self.headers.push_str(&token_header(name, &[token(id)]));
        if let Some(CommandKey { source, id }) = about.command {
            let source = format!("source={};", token(source.as_str()));
            let id = format!("id={}", token(id.as_str()));
            self.headers.push_str(&token_header("X-Offramp-Command", &[source, id]));
        }
        self
    }

    /// The same email, to be signed by `signer` when it is sent.
    #[must_use]
    pub fn signed_by(self, signer: Option<Arc<DkimSigner>>) -> Self {
        Self { signer, ..self }
    }

    /// The whole email, with CRLF line ends. The body is ASCII unless `supports_8bit`.
    ///
    /// A signed email is always ASCII. A relay would have to encode an 8-bit body again for a server that does not support
    /// 8BITMIME, which would break the signature.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn bytes(&self, supports_8bit: bool) -> Result<Vec<u8>, SigningError> {
        let body = Alternative::new(&self.text, &self.html, self.entry_id);
        let encoding = if supports_8bit && self.signer.is_none() && body.fits_8bit() {
            Encoding::EightBit
        } else {
            Encoding::Ascii
        };
        let mut email = Vec::with_capacity(self.headers.len() + body.size_hint(encoding));
        email.extend_from_slice(self.headers.as_bytes());
        body.write_headers(encoding, &mut email);
        let headers_end = email.len();
        email.extend_from_slice(b"\r\n");
        body.write(encoding, &mut email);
        if let Some(signer) = &self.signer {
            let (headers, body) = email.split_at(headers_end);
            let signature = signer.sign(headers, &body[2..], self.date)?;
            email.splice(0..0, signature.into_bytes());
        }
        Ok(email)
    }
}

/// Where the ids of an email come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The email's outbox entry.
    pub entry_id: Uuid,
    /// The conversation that it belongs to: see [`conversation_id`](offramp_domain::effect_id::conversation_id).
    pub conversation_id: Uuid,
}

/// What an email is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct About<'a> {
    pub document: AboutDocument<'a>,
    /// The command that caused it, if that is known.
    pub command: Option<&'a CommandKey>,
}

/// The document that an email is about, by its `_id`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AboutDocument<'a> {
    Subscription(&'a str),
    Account(&'a str),
    Organization(&'a str),
}

/// Composes the email of an outbox entry.
///
/// A reply-to address that is not ASCII is left out, unless the recipient's is not ASCII either: it would need SMTPUTF8 from
/// every server on the way, and a server without it could not deliver to a recipient whom it can reach otherwise.
///
/// The same entry always gives the same `Message-ID` and MIME boundary, so that an email sent twice can be recognised.
/// Emails of the same conversation refer to the same id, so that email clients show them together. No email has that id.
///
/// # Errors
/// When the recipient's address is invalid. Retrying does not help. (An invalid reply-to address is left out.)
pub fn compose(
    sender: &Sender,
    origin: Origin,
    notification: &Notification,
    rendered: RenderedEmail,
    date: DateTime<Utc>,
) -> Result<ComposedEmail, AddressError> {
    let to = header_mailbox("recipient", &notification.to)?;
    // An invalid reply-to address is no reason not to send the email.
    let reply_to = notification.reply_to.as_ref().and_then(|to| header_mailbox("reply-to", to).ok());
    let from_name = display_name(&notification.facts.organization.name).or_else(|| sender.name.clone());
    let from = HeaderMailbox::new(from_name, sender.address.clone());
    // Fails only without a recipient.
    let envelope = Envelope::new(Some(sender.address.clone()), vec![to.email.clone()])
        .map_err(|cause| AddressError::new("recipient", &notification.to.email, cause))?;

    let RenderedEmail { subject, text, html, language } = rendered;
    let template = notification.template;
    let message_id = sender.message_id(origin.entry_id);
    let conversation = sender.message_id(origin.conversation_id);
    let mut headers = Headers::with_capacity(HEADERS_MAX);
    headers.set(header::From::from(Mailboxes::from(from)));
    if let Some(reply_to) = reply_to.filter(|to| is_ascii(&to.email) || needs_smtputf8(&envelope)) {
        headers.set(header::ReplyTo::from(Mailboxes::from(reply_to)));
    }
    headers.set(header::To::from(Mailboxes::from(to)));
    headers.set(header::Subject::from(header_text(&subject)));
    // Not lettre's header, which does not support years before 1970.
    headers.insert_raw(raw("Date", &date.to_rfc2822()));
    headers.set(header::MessageId::from(message_id.clone()));
    headers.set(header::InReplyTo::from(conversation.clone()));
    headers.set(header::References::from(conversation));
    // RFC 3834: suppresses automatic replies. The second header is Exchange's own.
    headers.insert_raw(raw("Auto-Submitted", "auto-generated"));
    headers.insert_raw(raw("X-Auto-Response-Suppress", "All"));
    // RFC 3282.
    headers.insert_raw(raw("Content-Language", &language));
    // For filters and for tests.
    headers.insert_raw(raw("X-Offramp-Template", template.as_str()));
    Ok(ComposedEmail {
        entry_id: origin.entry_id,
        template,
        language,
        date,
        envelope,
        message_id,
        headers: folded(headers.to_string()),
        text,
        html,
        signer: None,
    })
}

/// How many headers [`compose`] writes at most.
const HEADERS_MAX: usize = 12;

fn needs_smtputf8(envelope: &Envelope) -> bool {
    !envelope.from().into_iter().chain(envelope.to()).all(is_ascii)
}

fn header_mailbox(which: &'static str, mailbox: &Mailbox) -> Result<HeaderMailbox, AddressError> {
    let name = mailbox.name.as_deref().and_then(display_name);
    Ok(HeaderMailbox::new(name, parse_address(which, &mailbox.email)?))
}

#[cfg(test)]
mod tests {
    use chrono::TimeZone;

    use offramp_domain::notification::Recipient;

    use super::*;
    use crate::samples::samples;

    #[test]
    fn the_date_header_supports_every_year() {
        let sender = Sender::parse("no-reply@offramp.example").unwrap();
        let origin = Origin { entry_id: Uuid::nil(), conversation_id: Uuid::nil() };
        let mut samples = samples(Template::RequestAccepted, Recipient::AccountManager, "en");
        let notification = samples.remove(0).notification;
        let check = |year, expected: &str| {
            let rendered = RenderedEmail {
                subject: "S".to_owned(),
                text: "T".to_owned(),
                html: "H".to_owned(),
                language: "en".to_owned(),
            };
            let date = Utc.with_ymd_and_hms(year, 1, 31, 12, 0, 9).unwrap();
            let composed = compose(&sender, origin, &notification, rendered, date).unwrap();
            let header = composed.headers.lines().find(|line| line.starts_with("Date: ")).unwrap();
            assert_eq!(header, format!("Date: {expected}"));
        };
        check(1900, "Wed, 31 Jan 1900 12:00:09 +0000");
        check(1969, "Fri, 31 Jan 1969 12:00:09 +0000");
        check(2026, "Sat, 31 Jan 2026 12:00:09 +0000");
        check(9999, "Sun, 31 Jan 9999 12:00:09 +0000");
    }

    #[test]
    fn headers_say_what_an_email_is_about() {
        let sender = Sender::parse("no-reply@offramp.example").unwrap();
        let origin = Origin { entry_id: Uuid::nil(), conversation_id: Uuid::nil() };
        let notification = samples(Template::RequestAccepted, Recipient::AccountManager, "en").remove(0).notification;
        let command =
            CommandKey { source: "https://shop.example/".try_into().unwrap(), id: "c 1\r\nBcc: x".try_into().unwrap() };
        let headers = |about| {
            let rendered = RenderedEmail {
                subject: "S".to_owned(),
                text: "T".to_owned(),
                html: "H".to_owned(),
                language: "en".to_owned(),
            };
            let composed =
                compose(&sender, origin, &notification, rendered, DateTime::UNIX_EPOCH).unwrap().about(about);
            let bytes = composed.bytes(false).unwrap();
            let parsed = mail_parser::MessageParser::default().parse(&bytes).unwrap();
            let names =
                ["X-Offramp-Subscription", "X-Offramp-Account", "X-Offramp-Organization", "X-Offramp-Command", "Bcc"];
            names.map(|name| parsed.header_raw(name).map(|value| value.trim().to_owned()))
        };
        let text = |text: &str| Some(text.to_owned());
        let document = AboutDocument::Subscription("sub/1 é");
        assert_eq!(
            headers(About { document, command: Some(&command) }),
            [text("sub/1%20%C3%A9"), None, None, text("source=https://shop.example/; id=c%201%0D%0ABcc:%20x"), None]
        );
        let document = AboutDocument::Account("acc-1");
        assert_eq!(headers(About { document, command: None }), [None, text("acc-1"), None, None, None]);
        let document = AboutDocument::Organization("org-1");
        assert_eq!(headers(About { document, command: None }), [None, None, text("org-1"), None, None]);
    }
}
