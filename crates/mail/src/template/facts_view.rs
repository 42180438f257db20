//! The facts of an email as templates see them. Dates, months and amounts are formatted for the reader, and texts are safe
//! to show. A missing fact has no entry, so that a template that uses it without a condition fails.

use std::collections::HashMap;

use chrono::NaiveDate;

use offramp_domain::facts::Facts;

use super::color::{PLAIN, hex, legible_on, parse_color};
use crate::locale::Formats;
use crate::text::{is_direction_override, single_line};

/// The language tag of the email.
const LANGUAGE: &str = "language";
/// The rendered subject, below the subject line.
pub(super) const SUBJECT: &str = "subject";

/// The facts by name.
pub(super) type FactsView = HashMap<&'static str, Value>;

/// The value of a name in templates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Text(String),
    /// A flag, or a name that has parts (`card` has `card.brand`): for conditions only.
    True,
}

impl Value {
    /// Whether it meets a condition.
    pub(super) fn is_truthy(&self) -> bool {
        match self {
            Self::Text(text) => !text.is_empty(),
            Self::True => true,
        }
    }
}

/// The approximate number of names in an email, so that the map need not grow.
const NAMES: usize = 48;

/// Formats facts for templates. `language` is the email's language tag.
pub(super) fn view(facts: &Facts, formats: &Formats, language: &str) -> FactsView {
    // Destructured, so that a new fact cannot be forgotten here.
    let Facts {
        organization,
        manager,
        participant,
        plan,
        actor,
        ends_on,
        previous_ends_on,
        final_billing_on,
        next_billing_on,
        removed_on,
        requested_on,
        reason,
        note,
        invoice_id,
        refund,
        amount,
        card,
        attempt,
        failure_message,
        next_attempt_on,
        past_attempt_on,
        admin_url,
        requests,
        requests_count,
    } = facts;
    let date = |date: &Option<NaiveDate>| date.map(|date| formats.date(date));
    let line = |text: &Option<String>| text.as_deref().map(single_line);
    let prose = |text: &Option<String>| text.as_deref().map(paragraphs);

    let mut view = FactsView::with_capacity(NAMES);
    put_always(&mut view, LANGUAGE, language.to_owned());
    put_flag(&mut view, "organization", true);
    let (name, email) = (single_line(&organization.name), single_line(&organization.email));
    put_always(&mut view, "organization.name", if name.is_empty() { email.clone() } else { name });
    put_always(&mut view, "organization.email", email);
    let color = organization.color.as_deref().and_then(parse_color).unwrap_or(PLAIN);
    put_always(&mut view, "organization.color", hex(color));
    put_always(&mut view, "organization.text_on_color", hex(legible_on(color)));
    put(&mut view, "organization.logo_url", organization.logo_url.as_deref().and_then(web_address));
    if let Some(manager) = manager {
        put_flag(&mut view, "manager", true);
        put(&mut view, "manager.name", line(&manager.name));
        put_always(&mut view, "manager.email", single_line(&manager.email));
    }
    put(&mut view, "participant", line(participant));
    put(&mut view, "plan", line(plan));
    put(&mut view, "actor", line(actor));
    put(&mut view, "ends_on", date(ends_on));
    put(&mut view, "previous_ends_on", date(previous_ends_on));
    put(&mut view, "final_billing_on", date(final_billing_on));
    put(&mut view, "next_billing_on", date(next_billing_on));
    put(&mut view, "removed_on", date(removed_on));
    put(&mut view, "requested_on", date(requested_on));
    put(&mut view, "reason", prose(reason));
    put(&mut view, "note", prose(note));
    put(&mut view, "invoice_id", line(invoice_id));
    put_flag(&mut view, "refund", *refund == Some(true));
    put(&mut view, "amount", amount.as_ref().map(|amount| formats.money(amount)));
    if let Some(card) = card {
        put_flag(&mut view, "card", true);
        put_always(&mut view, "card.brand", single_line(&card.brand));
        put_always(&mut view, "card.last4", single_line(&card.last4));
        put(&mut view, "card.expires", card.expires.map(|month| formats.month(month)));
        put_flag(&mut view, "card.expired", card.expired);
    }
    put(&mut view, "attempt", attempt.map(|attempt| attempt.to_string()));
    put(&mut view, "failure_message", prose(failure_message));
    put(&mut view, "next_attempt_on", date(next_attempt_on));
    put(&mut view, "past_attempt_on", date(past_attempt_on));
    put(&mut view, "admin_url", admin_url.as_deref().and_then(web_address));
    let listed = (!requests.is_empty()).then(|| u32::try_from(requests.len()).unwrap_or(u32::MAX));
    put(&mut view, "requests_count", requests_count.or(listed).map(|count| count.to_string()));
    view
}

/// Adds a fact that every email has.
fn put_always(view: &mut FactsView, name: &'static str, text: String) {
    view.insert(name, Value::Text(text));
}

/// Adds an optional fact. An empty text counts as missing.
fn put(view: &mut FactsView, name: &'static str, text: Option<String>) {
    if let Some(text) = text.filter(|text| !text.is_empty()) {
        put_always(view, name, text);
    }
}

/// Adds a flag.
fn put_flag(view: &mut FactsView, name: &'static str, is_set: bool) {
    if is_set {
        view.insert(name, Value::True);
    }
}

/// Text that a person wrote, line by line, without invisible characters and overrides of the writing direction.
fn paragraphs(text: &str) -> String {
    let lines: Vec<String> = text.lines().map(|line| single_line(line).trim_end().to_owned()).collect();
    let mut kept = String::with_capacity(text.len());
    let mut blank = 0;
    for line in lines {
        if line.is_empty() {
            blank += 1;
            continue;
        }
        if !kept.is_empty() {
            kept.push_str(if blank > 0 { "\n\n" } else { "\n" });
        }
        kept.push_str(&line);
        blank = 0;
    }
    kept
}

/// An http or https URL.
fn web_address(text: &str) -> Option<String> {
    let url = url::Url::parse(text.trim()).ok()?;
    let clean = text.chars().all(|c| !c.is_control() && !is_direction_override(c));
    (clean && matches!(url.scheme(), "http" | "https")).then(|| url.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prose_keeps_its_lines_and_loses_invisible_characters() {
        assert_eq!(paragraphs("  We  move.\r\n\r\n\r\n\r\nTo \u{202e}Laval\u{0}\t!\n"), "We move.\n\nTo Laval !");
        assert_eq!(paragraphs(" \n\t"), "");
    }

    #[test]
    fn only_http_urls_become_links() {
        assert_eq!(
            web_address("https://example.com/a?b=c&d=\"e\"").as_deref(),
            Some("https://example.com/a?b=c&d=%22e%22")
        );
        for text in ["javascript:alert(1)", "data:text/html,x", "//example.com", "admin", ""] {
            assert_eq!(web_address(text), None, "{text}");
        }
    }
}
