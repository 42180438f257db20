//! Text in headers: made safe, and folded.

use lettre::message::header::{HeaderName, HeaderValue};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use crate::text::{shorten, single_line};

/// The longest display name of an address, in characters. Readers see no more of it.
const DISPLAY_NAME_CHARS_MAX: usize = 100;

/// The longest line of headers that has a space to break it at, in bytes (RFC 5322 §2.1.1).
const LINE_BYTES_MAX: usize = 78;

/// A display name for an address; `None` where nothing of it is visible.
pub(crate) fn display_name(name: &str) -> Option<String> {
    let name = header_text(name);
    (!name.is_empty()).then(|| shorten(&name, DISPLAY_NAME_CHARS_MAX))
}

/// One line for a header, without anything that could pass for an already encoded word.
#[must_use]
pub(crate) fn header_text(text: &str) -> String {
    single_line(text).replace("=?", "= ?")
}

pub(crate) fn raw(name: &'static str, value: &str) -> HeaderValue {
    HeaderValue::new(HeaderName::new_from_ascii_str(name), value.to_owned())
}

/// Every character that is not visible ASCII, and those with a meaning in our headers.
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'%').add(b';').add(b'=').add(b'"');

/// The longest header line without a space, in bytes. A line may have 998 (RFC 5322 §2.1.1).
const TOKEN_BYTES_MAX: usize = 900;

/// An id of another system as a part of a header: percent-encoded, so that any character may be in it.
pub(crate) fn token(id: &str) -> String {
    utf8_percent_encode(id, ENCODED).to_string()
}

/// A header line, with its end, whose parts are tokens. A token that is too long for a line is broken by white space, which it cannot
/// have of its own.
pub(crate) fn token_header(name: &str, tokens: &[String]) -> String {
    let mut header = format!("{name}:");
    for token in tokens {
        // ASCII, so it can be cut anywhere.
        for chunk in token.as_bytes().chunks(TOKEN_BYTES_MAX) {
            header.push(' ');
            header.push_str(&String::from_utf8_lossy(chunk));
        }
    }
    header.push_str("\r\n");
    folded(header)
}

/// Folds the lines that lettre leaves too long: a long name and the address after it.
pub(crate) fn folded(headers: String) -> String {
    if headers.split("\r\n").all(|line| line.len() <= LINE_BYTES_MAX) {
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

/// The space before which to break a line that is too long: the last one that leaves it short enough, else the first.
fn break_of(line: &str) -> Option<usize> {
    if line.len() <= LINE_BYTES_MAX {
        return None;
    }
    // Never before or after the value as a whole.
    let value = match line.find(": ") {
        Some(colon) if !line.starts_with(' ') => colon + 1,
        _ => line.len() - line.trim_start().len(),
    };
    let spaces = line.char_indices().filter(|&(at, c)| c == ' ' && at > value && !line[at..].trim_start().is_empty());
    let mut spaces = spaces.map(|(at, _)| at);
    let first = spaces.next()?;
    Some(spaces.take_while(|&at| at <= LINE_BYTES_MAX).last().unwrap_or(first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_safe_in_headers_whatever_they_are_made_of() {
        #[track_caller]
        fn check(id: &str, expected: &str) {
            assert_eq!(token(id), expected);
        }
        check("https://shop.example/web?a=b", "https://shop.example/web?a%3Db");
        check("c-0001", "c-0001");
        check("a b\r\nBcc: x@y", "a%20b%0D%0ABcc:%20x@y");
        check("=?utf-8?q?x?=", "%3D?utf-8?q?x?%3D");
        check("é;\u{202e}\"%", "%C3%A9%3B%E2%80%AE%22%25");
    }

    #[test]
    fn long_tokens_are_broken_between_characters() {
        let id = "\u{1f600}".repeat(128);
        let header = token_header("X-Offramp-Subscription", &[token(&id)]);
        assert!(header.ends_with("\r\n") && header.lines().all(|line| line.len() < 998), "{header}");
        let (_, value) = header.split_once(':').unwrap();
        let joined: String = value.split_whitespace().collect();
        assert_eq!(percent_encoding::percent_decode_str(&joined).decode_utf8().unwrap(), id);
        let short = token_header("X-Offramp-Command", &["source=shop;".to_owned(), "id=c-1".to_owned()]);
        assert_eq!(short, "X-Offramp-Command: source=shop; id=c-1\r\n");
    }
}
