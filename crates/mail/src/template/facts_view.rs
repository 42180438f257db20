//! The facts of an email as templates see them: one JSON object. Dates, months and amounts are formatted for the reader, and
//! texts are safe to show. A missing fact has no entry, so that a template that uses it without a condition fails. `raw` has
//! dates and numbers again, in forms that can be compared.

use std::sync::LazyLock;

use chrono::NaiveDate;
use handlebars::JsonValue as Json;
use icu::locale::LanguageIdentifier;
use offramp_domain::calendar::YearMonth;
use offramp_domain::facts::{CardFacts, Facts, OrganizationFacts, PendingRequest};
use serde_json::{Map, json};

use super::color::{PLAIN, hex, legible_on, parse_color, visible_on_white};
use crate::locale::{Reader, parse_tag};
use crate::samples::every_fact;
use crate::text::{is_direction_override, shorten, single_line};

/// The rendered subject, below the subject line.
pub(super) const SUBJECT: &str = "subject";

/// Facts that are links. Other facts are text that a person wrote, which could lead anywhere.
pub(super) const LINKS: [&str; 6] =
    ["admin_url", "admin_account_url", "account_url", "payment_url", "payment_method_url", "organization.website"];
/// Facts that `mailto:` may address.
pub(super) const EMAIL_ADDRESSES: [&str; 2] = ["organization.email", "manager.email"];
/// Facts that `tel:` may call.
pub(super) const PHONES: [&str; 1] = ["organization.phone"];
/// What people wrote, in any number of lines. The plain part quotes it.
const PROSE: [&str; 4] = ["reason", "note", "message", "failure_message"];
/// Names of people and things, and amounts, whose writing direction is their own: those that lists have, too, and others.
const NAMES: [&str; 6] = ["participant", "plan", "actor", "amount", "invoice_id", "subscription_id"];
const LONG_NAMES: [&str; 3] = ["manager.name", "organization.name", "organization.address"];

/// Stands for a name that is empty.
const EMPTY_NAME: &str = "—";
/// The longest name in an email, in characters. Longer ones are cut.
const NAME_CHARS_MAX: usize = 120;

/// The longest postal address, in characters.
const ADDRESS_CHARS_MAX: usize = 240;
/// The longest reason in a list of requests, in characters.
const LISTED_REASON_CHARS_MAX: usize = 200;
/// The longest line of a quotation in the plain part, in characters. A longer one could be padded so that an email client
/// breaks it where it pleases its author, and what follows would look like a line of ours.
const QUOTED_LINE_CHARS_MAX: usize = 72;

/// The last part of a name: `participant` of `this.participant`.
pub(super) fn last_name(path: &str) -> &str {
    path.rsplit(['.', '/']).next().unwrap_or(path)
}

/// Whether a name is text that a person wrote, in any number of lines.
pub(super) fn is_prose(path: &str) -> bool {
    PROSE.contains(&last_name(path))
}

/// Whether a name is that of a person, thing or place, or an amount.
pub(super) fn is_name(path: &str) -> bool {
    LONG_NAMES.contains(&path) || NAMES.contains(&last_name(path))
}

/// Whether a name is a phone number.
pub(super) fn is_phone(path: &str) -> bool {
    PHONES.contains(&path)
}

/// Whether a name is the address of an email account or of a page, which is written from left to right.
pub(super) fn is_address(path: &str) -> bool {
    EMAIL_ADDRESSES.contains(&path) || LINKS.contains(&path)
}

/// Whether a name is a date.
pub(super) fn is_date(path: &str) -> bool {
    let name = last_name(path);
    name.ends_with("_on") || name == "last_day"
}

/// Every name that templates may use, with a value of its type.
pub(super) static EVERY_NAME: LazyLock<Map<String, Json>> = LazyLock::new(|| {
    let mut names = view(&every_fact(), &Reader::new(&parse_tag("en").unwrap_or(LanguageIdentifier::UNKNOWN)));
    names.insert(SUBJECT.to_owned(), Json::from(SUBJECT));
    names
});

/// Formats facts for templates.
pub(super) fn view(facts: &Facts, reader: &Reader) -> Map<String, Json> {
    // Destructured, so that a new fact cannot be forgotten here.
    let Facts {
        organization,
        manager,
        participant,
        plan,
        actor,
        ends_on,
        previous_ends_on,
        ended,
        final_billing_on,
        next_billing_on,
        invoices_unknown,
        removed_on,
        requested_on,
        superseded,
        reason,
        note,
        message,
        invoice_id,
        refund,
        amount,
        card,
        attempt,
        failure_message,
        failure_code,
        next_attempt_on,
        past_attempt_on,
        admin_url,
        admin_account_url,
        account_url,
        payment_method_url,
        payment_url,
        requests,
        requests_count,
    } = facts;
    let mut view = View { names: Map::with_capacity(NAMES_EXPECTED), raw: Map::new(), reader };
    view.put("language", Some(reader.language.clone()));
    view.put("direction", Some(reader.direction().to_owned()));
    view.names.insert("organization".to_owned(), organization_names(organization));
    if let Some(manager) = manager {
        let manager = [("name", manager.name.as_deref().map(name)), ("email", Some(needed_address(&manager.email)))];
        view.names.insert("manager".to_owned(), object(manager));
    }
    view.put("participant", participant.as_deref().map(needed));
    view.put("plan", plan.as_deref().map(needed));
    view.put("actor", actor.as_deref().map(name));
    view.date("ends_on", *ends_on);
    view.date("previous_ends_on", *previous_ends_on);
    view.flag("ended", *ended);
    view.date("final_billing_on", *final_billing_on);
    view.date("next_billing_on", *next_billing_on);
    view.flag("invoices_unknown", *invoices_unknown);
    view.date("removed_on", *removed_on);
    view.date("requested_on", *requested_on);
    view.flag("superseded", *superseded);
    view.put("reason", reason.as_deref().map(paragraphs));
    view.put("note", note.as_deref().map(paragraphs));
    view.put("message", message.as_deref().map(paragraphs));
    view.put("invoice_id", invoice_id.as_deref().map(needed));
    if let Some(refund) = refund {
        view.names.insert("refund".to_owned(), Json::Bool(*refund));
    }
    if let Some(amount) = amount {
        view.put("amount", Some(reader.formats.money(amount)));
        view.raw.insert("amount".to_owned(), Json::from(amount.value.as_str()));
        view.raw.insert("currency".to_owned(), Json::from(amount.currency.as_str()));
    }
    view.card(card.as_ref());
    view.number("attempt", *attempt);
    view.put("failure_message", failure_message.as_deref().map(paragraphs));
    view.put("failure_code", failure_code.map(|code| code.as_str().to_owned()));
    view.date("next_attempt_on", *next_attempt_on);
    view.date("past_attempt_on", *past_attempt_on);
    view.put("admin_url", admin_url.as_deref().and_then(web_address));
    view.put("admin_account_url", admin_account_url.as_deref().and_then(web_address));
    view.put("account_url", account_url.as_deref().and_then(web_address));
    view.put("payment_method_url", payment_method_url.as_deref().and_then(web_address));
    view.put("payment_url", payment_url.as_deref().and_then(web_address));
    if !requests.is_empty() {
        let requests = requests.iter().map(|request| pending_request(request, reader)).collect();
        view.names.insert("requests".to_owned(), Json::Array(requests));
    }
    view.number("requests_count", *requests_count);
    let View { mut names, raw, .. } = view;
    names.insert("raw".to_owned(), Json::Object(raw));
    names
}

/// The approximate number of names in an email.
const NAMES_EXPECTED: usize = 64;

struct View<'a> {
    names: Map<String, Json>,
    raw: Map<String, Json>,
    reader: &'a Reader,
}

impl View<'_> {
    /// Adds a text. An empty one counts as missing.
    fn put(&mut self, name: &str, text: Option<String>) {
        if let Some(text) = text.filter(|text| !text.is_empty()) {
            self.names.insert(name.to_owned(), Json::String(text));
        }
    }

    fn date(&mut self, name: &str, date: Option<NaiveDate>) {
        if let Some(date) = date {
            self.names.insert(name.to_owned(), Json::String(self.reader.formats.date(date)));
            self.raw.insert(name.to_owned(), Json::String(date.to_string()));
        }
    }

    /// Adds a flag. Without it, it is false.
    fn flag(&mut self, name: &str, is_set: bool) {
        if is_set {
            self.names.insert(name.to_owned(), Json::Bool(true));
        }
    }

    fn number(&mut self, name: &str, number: Option<u32>) {
        if let Some(number) = number {
            self.names.insert(name.to_owned(), Json::from(number));
            self.raw.insert(name.to_owned(), Json::from(number));
        }
    }

    fn card(&mut self, card: Option<&CardFacts>) {
        let Some(CardFacts { brand, last4, expires, expired }) = card else { return };
        let last_day = expires.map(YearMonth::last_day);
        let mut names = object([
            ("brand", Some(needed(brand))),
            ("last4", Some(needed(last4))),
            ("expires", expires.map(|month| self.reader.formats.month(month))),
            ("last_day", last_day.map(|day| self.reader.formats.date(day))),
        ]);
        names["expired"] = Json::Bool(*expired);
        self.names.insert("card".to_owned(), names);
        if let Some(last_day) = last_day {
            self.raw.insert("card".to_owned(), json!({ "last_day": last_day.to_string() }));
        }
    }
}

fn organization_names(organization: &OrganizationFacts) -> Json {
    let OrganizationFacts { name: full_name, email, phone, address, website, color, logo_url } = organization;
    let color = color.as_deref().and_then(parse_color).unwrap_or(PLAIN);
    let (full_name, email) = (name(full_name), needed_address(email));
    object([
        ("name", Some(if full_name.is_empty() { email.clone() } else { full_name })),
        ("email", Some(email)),
        ("phone", phone.as_deref().map(name)),
        ("address", address.as_deref().map(lines_joined)),
        ("website", website.as_deref().and_then(web_address)),
        ("color", Some(hex(color))),
        ("text_on_color", Some(hex(legible_on(color)))),
        ("accent_color", Some(hex(visible_on_white(color)))),
        ("logo_url", logo_url.as_deref().and_then(web_address)),
    ])
}

fn pending_request(request: &PendingRequest, reader: &Reader) -> Json {
    let PendingRequest { subscription_id, participant, plan, requested_on, days, actor, reason, admin_url } = request;
    let mut names = object([
        ("subscription_id", subscription_id.as_deref().map(name)),
        ("participant", participant.as_deref().map(name)),
        ("plan", plan.as_deref().map(name)),
        ("requested_on", Some(reader.formats.date(*requested_on))),
        ("actor", actor.as_deref().map(name)),
        ("reason", reason.as_deref().map(|reason| shorten(&paragraphs(reason), LISTED_REASON_CHARS_MAX))),
        ("admin_url", admin_url.as_deref().and_then(web_address)),
    ]);
    names["days"] = Json::from(*days);
    names
}

/// An object of texts. An empty one counts as missing.
fn object<const N: usize>(texts: [(&str, Option<String>); N]) -> Json {
    let texts = texts.into_iter().filter_map(|(name, text)| Some((name, text.filter(|text| !text.is_empty())?)));
    Json::Object(texts.map(|(name, text)| (name.to_owned(), Json::String(text))).collect())
}

/// The longest email address (RFC 5321 §4.5.3.1.3), in characters.
const EMAIL_CHARS_MAX: usize = 254;

/// An email address that every email shows. A cut one would lead to somebody else.
fn needed_address(address: &str) -> String {
    let address = single_line(address);
    if address.chars().count() > EMAIL_CHARS_MAX { needed("") } else { needed(&address) }
}

/// A name on one line.
fn name(name: &str) -> String {
    shorten(&single_line(name), NAME_CHARS_MAX)
}

/// A name that templates need. One that is empty must not hold back the email.
fn needed(text: &str) -> String {
    let text = name(text);
    if text.is_empty() { EMPTY_NAME.to_owned() } else { text }
}

/// The lines of an address on one line.
fn lines_joined(text: &str) -> String {
    let lines: Vec<String> = text.lines().map(single_line).filter(|line| !line.is_empty()).collect();
    shorten(&lines.join(", "), ADDRESS_CHARS_MAX)
}

/// Marks what people wrote as a quotation, line by line: in the plain part, nothing else tells it from our own words.
pub(super) fn quote_prose(names: &mut Map<String, Json>) {
    for (name, value) in names.iter_mut() {
        match value {
            Json::String(text) if PROSE.contains(&name.as_str()) => *text = quoted(text),
            Json::Array(items) => items.iter_mut().filter_map(Json::as_object_mut).for_each(quote_prose),
            _ => {}
        }
    }
}

/// Each line begins with `> `, and what is before and after is on lines of its own.
fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + text.len() / 16 + 8);
    for line in text.lines() {
        for part in wrapped(line) {
            quoted.push_str("\n> ");
            quoted.push_str(part);
        }
    }
    quoted.push('\n');
    quoted
}

/// Breaks a line at spaces, or anywhere if there is none.
fn wrapped(line: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = line;
    while let Some((end, _)) = rest.char_indices().nth(QUOTED_LINE_CHARS_MAX) {
        let (part, after) = match rest[..end].rfind(' ').filter(|&at| at > 0) {
            Some(space) => (&rest[..space], &rest[space + 1..]),
            None => rest.split_at(end),
        };
        parts.push(part);
        rest = after;
    }
    parts.push(rest);
    parts
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
