//! The name of this worker in EHLO.

use std::fmt;

use lettre::transport::smtp::extension::ClientId;

use crate::address::Sender;

/// The name of this worker in EHLO. Many servers reject a name without a dot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SmtpName(ClientId);

impl SmtpName {
    /// Parses a domain, or an address literal such as `[192.0.2.1]` or `[IPv6:2001:db8::1]`.
    ///
    /// # Errors
    /// A sentence, when it is neither.
    pub fn parse(text: &str) -> Result<Self, String> {
        let invalid = || "it is neither a domain, such as worker.example.com, nor an IP address in brackets".to_owned();
        let text = text.trim();
        if let Some(literal) = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
            let ipv6 = literal.get(..5).filter(|tag| tag.eq_ignore_ascii_case("IPv6:")).map(|_| &literal[5..]);
            return match ipv6 {
                Some(address) => address.parse().map(ClientId::Ipv6).map_err(|_| invalid()),
                None => literal.parse().map(ClientId::Ipv4).map_err(|_| invalid()),
            }
            .map(Self);
        }
        // An internationalised domain becomes its `xn--` form. An IP address without brackets is not a domain.
        let Ok(url::Host::Domain(domain)) = url::Host::parse(text) else { return Err(invalid()) };
        let is_label = |label: &str| {
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
            (1..=63).contains(&label.len())
                && label.bytes().all(allowed)
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        let is_domain = domain.len() <= 253 && domain.split('.').all(is_label);
        if is_domain { Ok(Self(ClientId::Domain(domain))) } else { Err(invalid()) }
    }

    /// The name of this host if it has a dot, else the domain of the sender.
    #[must_use]
    pub fn of_host_or(sender: &Sender) -> Self {
        let host = ClientId::default().to_string();
        let full = |name: &str| Self::parse(name).ok();
        let of_host = if host.contains('.') && !host.starts_with('[') { full(&host) } else { None };
        // The domain of an address may be an address literal, which does not parse.
        of_host.or_else(|| full(sender.domain())).unwrap_or_else(|| Self(ClientId::Domain("localhost".to_owned())))
    }
}

impl fmt::Display for SmtpName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ehlo_names_are_domains_or_address_literals() {
        for (text, name) in [
            ("worker.example.com", "worker.example.com"),
            ("École.example", "xn--cole-9oa.example"),
            ("localhost", "localhost"),
            ("[192.0.2.1]", "[192.0.2.1]"),
            ("[ipv6:2001:DB8::1]", "[IPv6:2001:db8::1]"),
        ] {
            assert_eq!(SmtpName::parse(text).unwrap().to_string(), name);
        }
        for text in [
            "",
            "192.0.2.1",
            "[192.0.2]",
            "[2001:db8::1]",
            "[IPv6:x]",
            "a b",
            "a\r\nQUIT",
            "a..b",
            "-a.b",
            "a_b.c",
            "a:25",
        ] {
            assert!(SmtpName::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_default_ehlo_name_has_a_dot() {
        let sender = Sender::parse("no-reply@mail.example.com").unwrap();
        assert!(SmtpName::of_host_or(&sender).to_string().contains('.'));
    }
}
