//! Email addresses, and the address that emails come from.

use std::fmt;

use lettre::Address;
use uuid::Uuid;

use crate::headers::display_name;
use crate::text::{shorten, single_line};

/// The address that emails come from. The name beside it is each organization's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sender {
    pub(crate) address: Address,
    /// The name to show where the organization has none.
    pub(crate) name: Option<String>,
    /// The part after the `@`, in ASCII: message ids end in it.
    domain: String,
}

impl Sender {
    /// Parses `no-reply@example.com` or `Offramp <no-reply@example.com>`.
    ///
    /// # Errors
    /// When it is neither.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        let text = text.trim();
        let (name, email) = match text.strip_suffix('>').and_then(|rest| rest.rsplit_once('<')) {
            Some((name, email)) => (Some(name.trim().trim_matches('"')), email),
            None => (None, text),
        };
        let address = parse_address("sender", email)?;
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

    /// The `Message-ID` of an outbox entry's email: `<0190…@example.com>`. The ids of conversations have the same form.
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

/// An invalid email address. Retrying does not help.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the {which} address `{address}` is invalid ({cause})")]
pub struct AddressError {
    /// Whose address: `recipient`, `reply-to` or `sender`.
    pub which: &'static str,
    /// The address, printable and of bounded length.
    pub address: String,
    /// What is wrong with it.
    pub cause: String,
}

impl AddressError {
    pub(crate) fn new(which: &'static str, address: &str, cause: impl fmt::Display) -> Self {
        Self { which, address: shorten(&single_line(address), ADDRESS_CHARS_MAX), cause: cause.to_string() }
    }
}

/// The longest part of an invalid address that an error quotes, in characters.
const ADDRESS_CHARS_MAX: usize = 254;

/// Whether emails can be sent to an address, as far as its form tells.
///
/// # Errors
/// [`AddressError`], with what is wrong.
pub fn check_recipient(address: &str) -> Result<(), AddressError> {
    parse_address("recipient", address).map(drop)
}

/// Parses an address. An internationalised domain becomes its `xn--` form, which every server accepts.
pub(crate) fn parse_address(which: &'static str, text: &str) -> Result<Address, AddressError> {
    let error = |cause: &dyn fmt::Display| AddressError::new(which, text, cause);
    let address = text.trim();
    // A quoted local part may contain nearly anything, but in practice none exists. Anything that could end a line or an
    // address in the SMTP dialogue is rejected.
    if address.chars().any(|c| c.is_control() || c.is_whitespace() || matches!(c, '<' | '>' | '"')) {
        return Err(error(&"it contains a space, a quote, an angle bracket or a control character"));
    }
    let (user, domain) = address.rsplit_once('@').ok_or_else(|| error(&"it has no @"))?;
    let domain = if domain.is_ascii() {
        domain.to_owned()
    } else {
        url::Host::parse(domain).map_err(|cause| error(&cause))?.to_string()
    };
    Address::new(user, domain).map_err(|cause| error(&cause))
}

pub(crate) fn is_ascii(address: &Address) -> bool {
    AsRef::<str>::as_ref(address).is_ascii()
}
