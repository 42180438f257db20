//! How values and pages are written, without knowing whose.

use chrono::{DateTime, SecondsFormat, Utc};
use maud::{DOCTYPE, Markup, html};
use offramp::clock;
use offramp::store::backlog::Backlog;
use offramp_domain::subscription::Status;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::cli::show::words;
use crate::cli::terminal::age;

/// The number of rows that a page shows at most.
pub const ROWS_MAX: usize = 100;

/// A page without navigation.
pub fn plain(title: &str, content: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            (head(title))
            body.plain { header { p.brand { a href="/" { "Offramp" } } } main id="content" { (content) } }
        }
    }
}

pub fn head(title: &str) -> Markup {
    html! {
        head {
            meta charset="utf-8";
            meta name="viewport" content="width=device-width, initial-scale=1";
            meta name="color-scheme" content="light dark";
            title { (title) " – Offramp" }
            link rel="icon" href="data:,";
            link rel="stylesheet" href="/console.css";
        }
    }
}

/// An instant: its age, with the time in UTC on hover and for machines.
pub fn ago(at: DateTime<Utc>) -> Markup {
    let now = clock::now();
    let words = if at > now { format!("in {}", age(now, at)) } else { format!("{} ago", age(at, now)) };
    html! { time datetime=(rfc3339(at)) title=(utc(at)) { (words) } }
}

/// An instant to the minute, in UTC.
pub fn instant(at: DateTime<Utc>) -> Markup {
    html! { time datetime=(rfc3339(at)) { (utc(at)) } }
}

fn utc(at: DateTime<Utc>) -> String {
    at.format("%Y-%m-%d %H:%M UTC").to_string()
}

fn rfc3339(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// A value in the query of a link.
pub fn encoded(value: &str) -> String {
    utf8_percent_encode(value, NON_ALPHANUMERIC).to_string()
}

/// A link to the page of a document.
pub fn document_link(collection: &str, id: &str) -> Markup {
    let page = match collection {
        "subscriptions" => "subscription",
        "accounts" => "account",
        _ => return html! { span.id { (id) } },
    };
    html! { a.id href={ "/" (page) "?id=" (encoded(id)) } { (id) } }
}

/// The status of a subscription.
pub fn status_badge(status: Status) -> Markup {
    let class = match status {
        Status::Active => "good",
        Status::CancellationRequested | Status::CancellationScheduled => "busy",
        Status::Cancelled | Status::Expired | Status::Removed => "",
    };
    html! { span class={ "badge " (class) } { (words(status)) } }
}

/// `1234567` as `1,234,567`.
pub fn number(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).unwrap_or_default()).collect();
    groups.join(",")
}

/// How many wait; `10,000+` if there may be more than were counted.
pub fn waiting(backlog: Backlog) -> String {
    let more = if backlog.has_more { "+" } else { "" };
    format!("{}{more}", number(u64::try_from(backlog.count).unwrap_or(0)))
}

/// The first button of a form with several: Enter in a field then presses none of them.
pub fn no_default() -> Markup {
    html! { button hidden disabled {} }
}

/// A table that scrolls sideways where it does not fit; with the keyboard, too.
pub fn table(label: &str, head: &Markup, rows: &Markup) -> Markup {
    html! {
        div.table role="group" aria-label=(label) tabindex="0" {
            table { thead { tr { (head) } } tbody { (rows) } }
        }
    }
}

/// The head of a table, without columns of numbers.
pub fn columns(names: &[&str]) -> Markup {
    html! { @for name in names { th scope="col" { (name) } } }
}

/// A list of facts, without those that are not known.
pub fn facts(facts: &[(&str, Option<Markup>)]) -> Markup {
    html! {
        dl.facts {
            @for (name, value) in facts {
                @if let Some(value) = value { div { dt { (name) } dd { (value) } } }
            }
        }
    }
}

/// Text as a fact; nothing if there is none.
pub fn text(value: Option<&str>) -> Option<Markup> {
    value.filter(|value| !value.is_empty()).map(|value| html! { (value) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_groups_of_three_digits() {
        for (plain, grouped) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(number(plain), grouped);
        }
    }

    #[test]
    fn values_of_links_are_encoded() {
        let link = document_link("subscriptions", "a&b=\"<é>/../").into_string();
        assert_eq!(
            link,
            "<a class=\"id\" href=\"/subscription?id=a%26b%3D%22%3C%C3%A9%3E%2F%2E%2E%2F\">a&amp;b=&quot;&lt;é&gt;/../</a>"
        );
    }
}
