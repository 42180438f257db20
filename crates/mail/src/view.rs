//! A mail's facts as templates see them: every date, month and amount already written in the reader's way, every text
//! already fit to be shown. A fact that a mail does not have is not there at all, so that a template that does not ask
//! first is found out.

use std::collections::HashMap;

use chrono::NaiveDate;

use super::locale::Formats;
use super::message::{is_direction_override, single_line};
use offramp_domain::notification::Facts;

/// The names that templates may use besides the facts: the mail's language tag and, outside the subject, the subject.
pub(super) const LANGUAGE: &str = "language";
/// See [`LANGUAGE`].
pub(super) const SUBJECT: &str = "subject";

/// What templates read: what there is to show, by name.
pub(super) type View = HashMap<&'static str, Shown>;

/// What stands for a name in templates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    /// Words to be written.
    Words(String),
    /// No words, only that it is so, or that it has parts to show (`card` has `card.brand`): for conditions.
    Yes,
}

impl Shown {
    /// Whether a condition that asks for it is met.
    pub(super) fn is_there(&self) -> bool {
        match self {
            Self::Words(words) => !words.is_empty(),
            Self::Yes => true,
        }
    }
}

/// How many names a mail may have at most, about: so many that the table of them need not grow.
const NAMES: usize = 48;

/// Puts facts as templates read them. `language` is the tag of the mail's language.
pub(super) fn view(facts: &Facts, formats: &Formats, language: &str) -> View {
    // Taken apart field by field, so that a fact added later cannot be forgotten here.
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
    } = facts;
    let date = |date: &Option<NaiveDate>| date.map(|date| formats.date(date));
    let line = |text: &Option<String>| text.as_deref().map(single_line);
    let prose = |text: &Option<String>| text.as_deref().map(paragraphs);

    let mut view = View::with_capacity(NAMES);
    put_always(&mut view, LANGUAGE, language.to_owned());
    put_yes(&mut view, "organization", true);
    let (name, email) = (single_line(&organization.name), single_line(&organization.email));
    put_always(&mut view, "organization.name", if name.is_empty() { email.clone() } else { name });
    put_always(&mut view, "organization.email", email);
    let color = organization.color.as_deref().and_then(color).unwrap_or(PLAIN);
    put_always(&mut view, "organization.color", hex(color));
    put_always(&mut view, "organization.text_on_color", hex(legible_on(color)));
    put(&mut view, "organization.logo_url", organization.logo_url.as_deref().and_then(web_address));
    put_yes(&mut view, "manager", true);
    put(&mut view, "manager.name", line(&manager.name));
    put_always(&mut view, "manager.email", single_line(&manager.email));
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
    put_yes(&mut view, "refund", *refund == Some(true));
    put(&mut view, "amount", amount.as_ref().map(|amount| formats.money(amount)));
    if let Some(card) = card {
        put_yes(&mut view, "card", true);
        put_always(&mut view, "card.brand", single_line(&card.brand));
        put_always(&mut view, "card.last4", single_line(&card.last4));
        put(&mut view, "card.expires", card.expires.map(|month| formats.month(month)));
        put_yes(&mut view, "card.expired", card.expired);
    }
    put(&mut view, "attempt", attempt.map(|attempt| attempt.to_string()));
    put(&mut view, "failure_message", prose(failure_message));
    put(&mut view, "next_attempt_on", date(next_attempt_on));
    put(&mut view, "past_attempt_on", date(past_attempt_on));
    put(&mut view, "admin_url", admin_url.as_deref().and_then(web_address));
    view
}

/// Adds what every mail has, so that templates need not ask for it.
fn put_always(view: &mut View, name: &'static str, text: String) {
    view.insert(name, Shown::Words(text));
}

/// Adds what there is to show: empty text is nothing.
fn put(view: &mut View, name: &'static str, text: Option<String>) {
    if let Some(text) = text.filter(|text| !text.is_empty()) {
        put_always(view, name, text);
    }
}

/// Adds what can only be asked for, if it is so.
fn put_yes(view: &mut View, name: &'static str, is_so: bool) {
    if is_so {
        view.insert(name, Shown::Yes);
    }
}

/// What a person wrote, in its own lines, without what could not be seen or would turn the rest around.
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

/// A colour's red, green and blue.
type Rgb = [u8; 3];

/// The colour of organizations that have none.
const PLAIN: Rgb = [0x33, 0x47, 0x5b];

/// What CSS takes for a colour, without what shines through. Nothing else gets into a style.
fn color(text: &str) -> Option<Rgb> {
    const COLOR_BYTES_MAX: usize = 64;
    let text = text.trim();
    let color = csscolorparser::parse(text).ok().filter(|_| text.len() <= COLOR_BYTES_MAX)?;
    let [red, green, blue, _] = color.to_rgba8();
    Some([red, green, blue])
}

fn hex([red, green, blue]: Rgb) -> String {
    format!("#{red:02x}{green:02x}{blue:02x}")
}

/// White or black, whichever can be read better on `color`. One of them always has more than the contrast of 4.5 to 1 that
/// WCAG 2 (1.4.3) asks for.
fn legible_on(color: Rgb) -> Rgb {
    let [red, green, blue] = color.map(|value| {
        let value = f32::from(value) / 255.0;
        if value <= 0.04045 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
    });
    let luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue;
    let on_white = 1.05 / (luminance + 0.05);
    let on_black = (luminance + 0.05) / 0.05;
    if on_white >= on_black { [255; 3] } else { [0; 3] }
}

/// A link that leads to the web and nowhere else.
fn web_address(text: &str) -> Option<String> {
    let url = url::Url::parse(text.trim()).ok()?;
    let clean = text.chars().all(|c| !c.is_control() && !is_direction_override(c));
    (clean && matches!(url.scheme(), "http" | "https")).then(|| url.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_person_wrote_keeps_its_lines_and_loses_what_cannot_be_seen() {
        assert_eq!(paragraphs("  We  move.\r\n\r\n\r\n\r\nTo \u{202e}Laval\u{0}\t!\n"), "We move.\n\nTo Laval !");
        assert_eq!(paragraphs(" \n\t"), "");
    }

    #[test]
    fn a_colour_comes_with_one_that_can_be_read_on_it() {
        #[track_caller]
        fn check(text: &str, expected: Option<(&str, &str)>) {
            let found = color(text).map(|color| (hex(color), hex(legible_on(color))));
            assert_eq!(found.as_ref().map(|(color, on)| (color.as_str(), on.as_str())), expected, "{text}");
        }
        check("#0a7d4f", Some(("#0a7d4f", "#ffffff")));
        check("#FFF", Some(("#ffffff", "#000000")));
        check("gold", Some(("#ffd700", "#000000")));
        check("rgb(0 0 139)", Some(("#00008b", "#ffffff")));
        check("#777", Some(("#777777", "#000000")));
        check("#12345", None);
        check("red;background:url(x)", None);
        check("", None);
        check(&" ".repeat(100), None);
    }

    #[test]
    fn only_web_addresses_become_links() {
        assert_eq!(
            web_address("https://example.com/a?b=c&d=\"e\"").as_deref(),
            Some("https://example.com/a?b=c&d=%22e%22")
        );
        for text in ["javascript:alert(1)", "data:text/html,x", "//example.com", "admin", ""] {
            assert_eq!(web_address(text), None, "{text}");
        }
    }
}
