//! What an email client shows of an email in its list: sender, subject, and the beginning of the text.

use offramp_domain::notification::Notification;
use offramp_mail::{RenderedEmail, Sender};
use serde::Serialize;

/// The most characters of text beside a subject. No client shows more.
const TEXT_CHARS_MAX: usize = 200;

/// An email in a list of emails.
#[derive(Debug, Serialize)]
pub struct InboxLine {
    sender: String,
    subject: String,
    /// The number of characters of the subject.
    subject_length: usize,
    /// The beginning of the text: the `Preview` line, then the text below it.
    text: String,
}

impl InboxLine {
    pub fn new(notification: &Notification, rendered: &RenderedEmail, sender: &Sender) -> Self {
        let organization = notification.facts.organization.name.trim();
        let sender = match organization {
            "" => sender.email().to_owned(),
            name => name.to_owned(),
        };
        Self {
            sender,
            subject: rendered.subject.clone(),
            subject_length: rendered.subject.chars().count(),
            text: beginning(&rendered.html),
        }
    }
}

/// The first characters of a page's text, hidden or not, as email clients take them for their lists.
fn beginning(html: &str) -> String {
    let mut rest = html.split_once("<body").map_or(html, |(_, body)| body.split_once('>').map_or("", |(_, body)| body));
    let mut text = String::new();
    let mut count = 0;
    let mut gap = false;
    while count < TEXT_CHARS_MAX && !rest.is_empty() {
        if let Some(comment) = rest.strip_prefix("<!--") {
            rest = comment.split_once("-->").map_or("", |(_, after)| after);
            continue;
        }
        if rest.starts_with('<') {
            let (tag, after) = rest.split_once('>').unwrap_or((rest, ""));
            let name = tag.trim_start_matches(['<', '/']).split([' ', '/', '\n']).next().unwrap_or_default();
            rest = after;
            match name {
                "style" | "script" | "title" if !tag.starts_with("</") => {
                    rest = after.split_once(&format!("</{name}>")).map_or("", |(_, after)| after);
                }
                // Within a line.
                "a" | "b" | "strong" | "em" | "i" | "span" | "bdi" | "time" => {}
                _ => gap = true,
            }
            continue;
        }
        let (c, after) = character(rest);
        rest = after;
        if matches!(c, ' ' | '\n' | '\r' | '\t') {
            gap = true;
            continue;
        }
        if gap && !text.is_empty() {
            text.push(' ');
            count += 1;
        }
        gap = false;
        text.push(c);
        count += 1;
    }
    text
}

/// The first character of a text that is not empty, with entities resolved, and the rest.
fn character(html: &str) -> (char, &str) {
    const ENTITY_BYTES_MAX: usize = 10;
    let entity = html.strip_prefix('&').and_then(|html| html.split_once(';'));
    if let Some((name, after)) = entity.filter(|(name, _)| name.len() <= ENTITY_BYTES_MAX) {
        let number = |digits: &str| match digits.strip_prefix(['x', 'X']) {
            Some(hex) => u32::from_str_radix(hex, 16).ok(),
            None => digits.parse().ok(),
        };
        let c = match name {
            "amp" => Some('&'),
            "lt" => Some('<'),
            "gt" => Some('>'),
            "quot" => Some('"'),
            "apos" => Some('\''),
            "nbsp" => Some('\u{a0}'),
            "zwnj" => Some('\u{200c}'),
            "shy" => Some('\u{ad}'),
            _ => name.strip_prefix('#').and_then(number).and_then(char::from_u32),
        };
        if let Some(c) = c {
            return (c, after);
        }
    }
    let mut chars = html.chars();
    (chars.next().unwrap_or_default(), chars.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_in_a_list_is_the_text_of_the_page_in_its_order() {
        #[track_caller]
        fn check(body: &str, expected: &str) {
            assert_eq!(beginning(&format!("<head><title>no</title></head><body class=\"x\">{body}</body>")), expected);
        }
        check(
            "<div style=\"display:none\">Until June 14.</div>\n<h1>Your <b>plan</b> ends</h1>",
            "Until June 14. Your plan ends",
        );
        check(
            "<!--[if mso]><table><td>no</td><![endif]--><style>p { }</style><p>L&#xe9;a &amp; No&#235;l&nbsp;!",
            "Léa & Noël\u{a0}!",
        );
        check("a <img alt=\"no\"> b<br>c", "a b c");
        check("&unknown; & <", "&unknown; &");
        check("é".repeat(500).as_str(), &"é".repeat(TEXT_CHARS_MAX));
        check("", "");
    }
}
