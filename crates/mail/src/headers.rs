//! Text in headers: made safe, and folded.

use lettre::message::header::{HeaderName, HeaderValue};

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
