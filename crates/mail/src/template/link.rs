//! The addresses of links. The author of a fact must not choose the host or the addressee, and no fact may change what an
//! address means.

use super::facts_view::{EMAIL_ADDRESSES, LINKS, PHONES, last_name};
use super::tags::{Tag, TagKind, Tags};

/// The address of a link.
pub(super) struct Address {
    pub(super) url: String,
    /// As the plain part shows it: without `mailto:` and `tel:`.
    pub(super) shown: String,
}

/// Checks where a link leads, and encodes the facts in its address.
pub(super) fn link_address(url: &str, tags: &mut Tags) -> Result<Address, String> {
    if is_link_fact(url, tags) {
        return Ok(Address { url: url.to_owned(), shown: url.to_owned() });
    }
    let known = ["http://", "https://", "mailto:", "tel:"];
    let Some(scheme) = known.into_iter().find(|scheme| url.starts_with(scheme)) else {
        let links = LINKS.map(|link| format!("{{{{{link}}}}}")).join(", ");
        return Err(format!("it must begin with https://, http://, mailto: or tel:, or be one of {links}"));
    };
    let rest = &url[scheme.len()..];
    let target = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let addressee = match scheme {
        "mailto:" => &EMAIL_ADDRESSES[..],
        "tel:" => &PHONES[..],
        _ => &[],
    };
    let is_addressee = |tag: &Tag| tag.kind == TagKind::Expression && addressee.contains(&tag.inner());
    let first = target.chars().next().and_then(|char| tags.get(char));
    let is_contact = target.chars().count() == 1 && first.is_some_and(is_addressee);
    if !is_contact && target.chars().any(|char| tags.get(char).is_some()) {
        return Err("the host or addressee is a fact; write it out, and use facts only after it".to_owned());
    }
    let helper = if scheme == "tel:" { "phone_digits" } else { "url_encoded" };
    let encoded = rest.chars().map(|char| match tags.get(char).cloned() {
        Some(tag) if tag.kind == TagKind::Expression => tags.hide_text(TagKind::Expression, &wrapped(&tag, helper)),
        _ => char,
    });
    let encoded: String = encoded.collect();
    let encoded = format!("{scheme}{encoded}");
    let shown = if addressee.is_empty() { encoded.clone() } else { rest.to_owned() };
    Ok(Address { url: encoded, shown })
}

/// `{{url_encoded name}}` for `{{name}}`.
pub(super) fn wrapped(tag: &Tag, helper: &str) -> String {
    let inner = tag.inner();
    if inner.contains(char::is_whitespace) {
        format!("{{{{{helper} ({inner})}}}}")
    } else {
        format!("{{{{{helper} {inner}}}}}")
    }
}

/// Whether an address is a fact that is a link, or one of several such facts.
fn is_link_fact(url: &str, tags: &Tags) -> bool {
    let all: Option<Vec<&Tag>> = url.chars().map(|char| tags.get(char)).collect();
    all.is_some_and(|all| {
        let mut facts = all.iter().filter(|tag| tag.kind == TagKind::Expression).peekable();
        facts.peek().is_some()
            && facts.all(|tag| LINKS.contains(&last_name(tag.inner())) || LINKS.contains(&tag.inner()))
    })
}
