//! A rendered mail as the bytes that a mail server takes: addresses checked, headers of the contract (§5), MIME.
//!
//! Names come from documents that other systems write, so nothing is assumed of them: what would end a header line, hide
//! what follows, or make a header endless is taken out before a header is built.

use std::fmt;

use chrono::{DateTime, Utc};
use lettre::address::Envelope;
use lettre::message::header::{Header, HeaderName, HeaderValue};
use lettre::message::{Mailbox as HeaderMailbox, MultiPart, MultiPartKind, SinglePart};
use lettre::{Address, Message};
use uuid::Uuid;

use super::templates::Rendered;
use crate::domain::notification::{Mailbox, Notification, Template};

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
}

/// The address, without the name.
impl fmt::Display for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.email())
    }
}

/// A mail that is ready to leave.
#[derive(Clone, Debug)]
pub struct Composed {
    /// The outbox entry that it comes from.
    pub entry_id: Uuid,
    /// Which mail it is.
    pub template: Template,
    /// When it was composed: its `Date`.
    pub date: DateTime<Utc>,
    /// From which address to which one, as the SMTP dialogue says it.
    pub envelope: Envelope,
    /// With its angle brackets: `<0190…@example.com>`. The same for every try to send the entry.
    pub message_id: String,
    /// The whole mail, with CRLF line ends; in ASCII unless an address is not.
    pub bytes: Vec<u8>,
}

impl Composed {
    /// The one address that it goes to.
    #[must_use]
    pub fn to(&self) -> &str {
        self.envelope.to().first().map_or("", AsRef::as_ref)
    }

    /// Whether a server must know SMTPUTF8 (RFC 6531) to take it. Only an address can bring that about.
    #[must_use]
    pub fn needs_smtputf8(&self) -> bool {
        !self.bytes.is_ascii()
    }
}

/// Puts the mail of the outbox entry `entry_id` together.
///
/// The same entry gives the same `Message-ID` and MIME boundary every time, so a mail sent twice can be recognised.
///
/// # Errors
/// When the recipient's address cannot be used. No later try can help. (An address for answers that cannot be used is left
/// out.)
pub fn compose(
    sender: &Sender,
    entry_id: Uuid,
    notification: &Notification,
    rendered: &Rendered,
    date: DateTime<Utc>,
) -> Result<Composed, AddressError> {
    let to = header_mailbox("recipient's", &notification.to)?;
    // An address that is none must not keep the mail from the one who has a good one.
    let reply_to = header_mailbox("reply-to", &notification.reply_to).ok();
    let from_name = display_name(&notification.facts.organization.name).or_else(|| sender.name.clone());
    let from = HeaderMailbox::new(from_name, sender.address.clone());

    let message_id = format!("<{entry_id}@{}>", sender.domain);
    let recipient = to.email.clone();
    let mut headers = Message::builder();
    if let Some(reply_to) = reply_to {
        headers = headers.reply_to(reply_to);
    }
    let headers = headers
        .from(from)
        .to(to)
        .subject(header_text(&rendered.subject))
        .date(date.into())
        .message_id(Some(message_id.clone()))
        .header(AutoSubmitted)
        .header(XAutoResponseSuppress)
        .header(ContentLanguage(rendered.language.clone()))
        .header(XOfframpTemplate(notification.template));
    let body = MultiPart::builder()
        .kind(MultiPartKind::Alternative)
        .boundary(format!("=_{}", entry_id.simple()))
        .singlepart(SinglePart::plain(rendered.text.clone()))
        .singlepart(SinglePart::html(rendered.html.clone()));

    // With a sender and a recipient at hand neither of these two can fail; should a library think otherwise, it is about
    // the addresses.
    let unusable = |cause: String| AddressError {
        which: "recipient's",
        address: printable(notification.to.email.as_str()),
        cause,
    };
    let envelope =
        Envelope::new(Some(sender.address.clone()), vec![recipient]).map_err(|error| unusable(error.to_string()))?;
    let message = headers.envelope(envelope.clone()).multipart(body).map_err(|error| unusable(error.to_string()))?;
    Ok(Composed { entry_id, template: notification.template, date, envelope, message_id, bytes: message.formatted() })
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

/// Declares a header of fixed name whose value is computed from what it holds.
macro_rules! headers {
    ($($(#[$doc:meta])* $header:ident $(($($field:ty),+))?, $name:literal, |$this:ident| $value:expr;)*) => {$(
        $(#[$doc])*
        #[derive(Clone)]
        struct $header $(($($field),+))?;

        impl Header for $header {
            fn name() -> HeaderName {
                HeaderName::new_from_ascii_str($name)
            }

            fn parse(_: &str) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
                Err("this header is only ever written".into())
            }

            fn display(&self) -> HeaderValue {
                let $this = self;
                HeaderValue::new(Self::name(), $value)
            }
        }
    )*};
}

headers! {
    /// RFC 3834: no one answers a mail of a machine with a mail of a machine.
    AutoSubmitted, "Auto-Submitted", |_this| "auto-generated".to_owned();
    /// The same for Exchange.
    XAutoResponseSuppress, "X-Auto-Response-Suppress", |_this| "All".to_owned();
    /// RFC 3282: the language that the mail is written in.
    ContentLanguage(String), "Content-Language", |this| this.0.clone();
    /// Which mail it is, for filters and for tests.
    XOfframpTemplate(Template), "X-Offramp-Template", |this| this.0.to_string();
}
