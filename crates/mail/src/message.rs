//! A rendered mail as the bytes that a mail server takes: addresses checked, headers of the contract (§5), MIME, and a
//! signature where one is wanted.
//!
//! Names come from documents that other systems write, so nothing is assumed of them: what would end a header line, hide
//! what follows, or make a header endless is taken out before a header is built.

use std::fmt;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use lettre::Address;
use lettre::address::Envelope;
use lettre::message::header::{self, HeaderName, HeaderValue, Headers};
use lettre::message::{Mailbox as HeaderMailbox, Mailboxes};
use uuid::Uuid;

use super::dkim::{DkimSigner, SigningError};
use super::mime::{Alternative, Encoding};
use super::templates::RenderedEmail;
use offramp_domain::notification::{Mailbox, Notification, Template};

/// The longest display name of an address, in characters. A header carries no more than a reader sees of it.
const DISPLAY_NAME_CHARS_MAX: usize = 100;

/// Why an address cannot be written to. That does not pass: the mail can never leave as it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the {which} address `{address}` is not an e-mail address ({cause})")]
pub struct AddressError {
    /// Whose address: `recipient's`, `reply-to`, `sender's`.
    pub which: &'static str,
    /// The address, printable and of bounded length.
    pub address: String,
    /// What is wrong with it.
    pub cause: String,
}

/// From whom mails come: the address of `OFFRAMP_MAIL_FROM`. The name beside it is each organization's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sender {
    address: Address,
    /// The name to show where the organization has none.
    name: Option<String>,
    /// The part after the `@`, in ASCII: message ids end in it.
    domain: String,
}

impl Sender {
    /// Reads `no-reply@example.com` or `Offramp <no-reply@example.com>`.
    ///
    /// # Errors
    /// When it is neither.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        let text = text.trim();
        let (name, email) = match text.strip_suffix('>').and_then(|rest| rest.rsplit_once('<')) {
            Some((name, email)) => (Some(name.trim().trim_matches('"')), email),
            None => (None, text),
        };
        let address = parse_address("sender's", email)?;
        Ok(Self { name: name.and_then(display_name), domain: address.domain().to_owned(), address })
    }

    /// The address.
    #[must_use]
    pub fn email(&self) -> &str {
        self.address.as_ref()
    }

    /// The part of the address after the `@`, in ASCII.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The `Message-ID` of the email of an outbox entry: `<0190…@example.com>`. Also those of conversations look like this.
    #[must_use]
    pub fn message_id(&self, id: Uuid) -> String {
        format!("<{id}@{}>", self.domain)
    }
}

/// The address, without the name.
impl fmt::Display for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.email())
    }
}

/// What the ids of a mail are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The outbox entry that it comes from.
    pub entry_id: Uuid,
    /// The conversation that it belongs to: see [`conversation_id`](offramp_domain::notification::conversation_id).
    pub conversation_id: Uuid,
}

/// A mail that is ready to leave, once it is known how its body has to be encoded.
#[derive(Clone, Debug)]
pub struct ComposedEmail {
    /// The outbox entry that it comes from.
    pub entry_id: Uuid,
    /// Which mail it is.
    pub template: Template,
    /// The language that it is written in: its `Content-Language`.
    pub language: String,
    /// When it was composed: its `Date`.
    pub date: DateTime<Utc>,
    /// From which address to which one, as the SMTP dialogue says it.
    pub envelope: Envelope,
    /// With its angle brackets: `<0190…@example.com>`. The same for every try to send the entry.
    pub message_id: String,
    /// Every header but the signature and those that say how the body is encoded, in lines that end in CRLF. In ASCII unless
    /// an address is not.
    headers: String,
    text: String,
    html: String,
    signer: Option<Arc<DkimSigner>>,
}

impl ComposedEmail {
    /// The one address that it goes to.
    #[must_use]
    pub fn to(&self) -> &str {
        self.envelope.to().first().map_or("", AsRef::as_ref)
    }

    /// Whether a server must know SMTPUTF8 (RFC 6531) to take it. Only the addresses that it goes from and to decide.
    #[must_use]
    pub fn needs_smtputf8(&self) -> bool {
        needs_smtputf8(&self.envelope)
    }

    /// The same mail, to be signed by `signer` when it leaves.
    #[must_use]
    pub fn signed_by(self, signer: Option<Arc<DkimSigner>>) -> Self {
        Self { signer, ..self }
    }

    /// The whole mail, with CRLF line ends. In ASCII, unless it is for somebody who takes 8-bit bodies or an address is not.
    ///
    /// A signed mail is in ASCII for everybody: who passes it on to a server that does not take 8 bits would have to encode
    /// it anew, and the signature would not hold any more.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn bytes(&self, takes_8bit: bool) -> Result<Vec<u8>, SigningError> {
        let body = Alternative::new(&self.text, &self.html, self.entry_id);
        let encoding = if takes_8bit && self.signer.is_none() && body.fits_as_it_is() {
            Encoding::AsItIs
        } else {
            Encoding::QuotedPrintable
        };
        let mut mail = Vec::with_capacity(self.headers.len() + body.size_hint(encoding));
        mail.extend_from_slice(self.headers.as_bytes());
        body.write_headers(encoding, &mut mail);
        let headers_end = mail.len();
        mail.extend_from_slice(b"\r\n");
        body.write(encoding, &mut mail);
        if let Some(signer) = &self.signer {
            let (headers, body) = mail.split_at(headers_end);
            let signature = signer.sign(headers, &body[2..], self.date)?;
            mail.splice(0..0, signature.into_bytes());
        }
        Ok(mail)
    }
}

/// Puts the mail of an outbox entry together.
///
/// An address for answers that is not in ASCII is left out, unless the recipient's is not either: it would need SMTPUTF8 from
/// every server on the way, and one that lacks it would keep the email from a recipient whom it can reach.
///
/// The same entry gives the same `Message-ID` and MIME boundary every time, so a mail sent twice can be recognised. Mails of
/// the same conversation refer to the same id, which is that of no mail, so mail programs show them together.
///
/// # Errors
/// When the recipient's address cannot be used. No later try can help. (An address for answers that cannot be used is left
/// out.)
pub fn compose(
    sender: &Sender,
    origin: Origin,
    notification: &Notification,
    rendered: RenderedEmail,
    date: DateTime<Utc>,
) -> Result<ComposedEmail, AddressError> {
    let to = header_mailbox("recipient's", &notification.to)?;
    // An address that is none must not keep the mail from the one who has a good one.
    let reply_to = header_mailbox("reply-to", &notification.reply_to).ok();
    let from_name = display_name(&notification.facts.organization.name).or_else(|| sender.name.clone());
    let from = HeaderMailbox::new(from_name, sender.address.clone());
    // Fails only without a recipient.
    let envelope = Envelope::new(Some(sender.address.clone()), vec![to.email.clone()]).map_err(|cause| {
        AddressError { which: "recipient's", address: printable(&notification.to.email), cause: cause.to_string() }
    })?;

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
    // Not the header of lettre, which knows no year before 1970.
    headers.insert_raw(plain("Date", &date.to_rfc2822()));
    headers.set(header::MessageId::from(message_id.clone()));
    headers.set(header::InReplyTo::from(conversation.clone()));
    headers.set(header::References::from(conversation));
    // RFC 3834: no one answers a mail of a machine with a mail of a machine. The second says the same to Exchange.
    headers.insert_raw(plain("Auto-Submitted", "auto-generated"));
    headers.insert_raw(plain("X-Auto-Response-Suppress", "All"));
    // RFC 3282.
    headers.insert_raw(plain("Content-Language", &language));
    // For filters and for tests.
    headers.insert_raw(plain("X-Offramp-Template", template.as_str()));
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

fn needs_smtputf8(envelope: &Envelope) -> bool {
    !envelope.from().into_iter().chain(envelope.to()).all(is_ascii)
}

fn is_ascii(address: &Address) -> bool {
    AsRef::<str>::as_ref(address).is_ascii()
}

/// How many headers [`compose`] writes.
const HEADERS_MAX: usize = 12;

fn plain(name: &'static str, value: &str) -> HeaderValue {
    HeaderValue::new(HeaderName::new_from_ascii_str(name), value.to_owned())
}

/// The longest line of headers where there is a space to break it at, in bytes (RFC 5322 §2.1.1).
const HEADER_LINE_BYTES_MAX: usize = 78;

/// Folds what lettre leaves on a line that is too long: a long name and the address behind it.
fn folded(headers: String) -> String {
    if headers.split("\r\n").all(|line| line.len() <= HEADER_LINE_BYTES_MAX) {
        return headers;
    }
    let mut folded = String::with_capacity(headers.len() + 32);
    for mut line in headers.split_terminator("\r\n") {
        while let Some(at) = break_of(line) {
            let (now, later) = line.split_at(at);
            folded.push_str(now);
            folded.push_str("\r\n");
            line = later;
        }
        folded.push_str(line);
        folded.push_str("\r\n");
    }
    folded
}

/// Before which space to break a line of a header that is too long: the last that leaves it short enough, else the first.
fn break_of(line: &str) -> Option<usize> {
    if line.len() <= HEADER_LINE_BYTES_MAX {
        return None;
    }
    // Neither in front of what a line says nor behind it.
    let value = match line.find(": ") {
        Some(colon) if !line.starts_with(' ') => colon + 1,
        _ => line.len() - line.trim_start().len(),
    };
    let spaces = line.char_indices().filter(|&(at, c)| c == ' ' && at > value && !line[at..].trim_start().is_empty());
    let mut spaces = spaces.map(|(at, _)| at);
    let first = spaces.next()?;
    Some(spaces.take_while(|&at| at <= HEADER_LINE_BYTES_MAX).last().unwrap_or(first))
}

fn header_mailbox(which: &'static str, mailbox: &Mailbox) -> Result<HeaderMailbox, AddressError> {
    let name = mailbox.name.as_deref().and_then(display_name);
    Ok(HeaderMailbox::new(name, parse_address(which, &mailbox.email)?))
}

/// Reads an address. A domain in letters beyond ASCII becomes its `xn--` form, which every server takes.
fn parse_address(which: &'static str, text: &str) -> Result<Address, AddressError> {
    let error = |cause: String| AddressError { which, address: printable(text), cause };
    let text = text.trim();
    // A quoted local part may hold nearly anything, but nobody's does: whatever could end a line or an address in the
    // SMTP dialogue stays out.
    if text.chars().any(|c| c.is_control() || c.is_whitespace() || matches!(c, '<' | '>' | '"')) {
        return Err(error("it has a space, a quote, an angle bracket or a control character in it".to_owned()));
    }
    let (user, domain) = text.rsplit_once('@').ok_or_else(|| error("it has no @".to_owned()))?;
    let domain = if domain.is_ascii() {
        domain.to_owned()
    } else {
        url::Host::parse(domain).map_err(|cause| error(cause.to_string()))?.to_string()
    };
    Address::new(user, domain).map_err(|cause| error(cause.to_string()))
}

/// A name for the side of an address; `None` where nothing of it can be shown.
fn display_name(name: &str) -> Option<String> {
    let name = header_text(name);
    (!name.is_empty()).then(|| shorten(&name, DISPLAY_NAME_CHARS_MAX))
}

/// One line for a header: no control character, no override of the writing direction, no run of spaces, nothing that
/// could pass for an already encoded word.
#[must_use]
pub(super) fn header_text(text: &str) -> String {
    single_line(text).replace("=?", "= ?")
}

/// One line: every run of white space and control characters is one space; overrides of the writing direction, which
/// could make the rest of a line read backwards, are taken out. Non-breaking spaces stay.
#[must_use]
pub(super) fn single_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    let mut gap = false;
    for c in text.chars().filter(|&c| !is_direction_override(c)) {
        if c.is_control() || c == ' ' || matches!(c, '\u{2028}' | '\u{2029}') {
            gap = true;
        } else {
            if gap && !line.is_empty() {
                line.push(' ');
            }
            gap = false;
            line.push(c);
        }
    }
    line
}

/// Whether `c` embeds, overrides or isolates a writing direction. (The plain marks of right-to-left writing are not such.)
#[must_use]
pub(super) fn is_direction_override(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// At most `chars_max` characters, the last of them `…` where something was cut.
#[must_use]
pub(super) fn shorten(text: &str, chars_max: usize) -> String {
    if text.chars().nth(chars_max).is_none() {
        return text.to_owned();
    }
    let kept: String = text.chars().take(chars_max.saturating_sub(1)).collect();
    format!("{}…", kept.trim_end())
}

/// Text from outside as an error sentence can carry it.
fn printable(text: &str) -> String {
    shorten(&single_line(text), 254)
}

#[cfg(test)]
mod tests {
    use chrono::TimeZone;

    use super::*;
    use crate::samples::samples;
    use offramp_domain::notification::Recipient;

    #[test]
    fn the_date_header_knows_every_year() {
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
}
